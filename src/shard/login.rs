//! From a dial to a server at rest, or to a reason why not.

use super::server::{Server, State};
use super::{Alarm, DialError, Effect, RouteKey, ServerKey, Shard};
use crate::config::LogLevel;
use crate::ids::{RouteName, ShardId, SocketId};
use crate::ledger::Failure;
use crate::limits::{DRAIN_MAX, DRAINED_BYTES_MAX, OLD_PROTOCOL_FOR, UNDERSTOOD_BYTES_MAX};
use crate::mail::Letter;
use crate::parameters::Values;
use crate::server::{Login, LoginError, LoginStep, Parameters, ScramResult};
use crate::wire::error::Report;
use crate::wire::{Refusal, SqlState, backend, startup};
use std::sync::Arc;
use std::time::Duration;

impl Shard {
    pub(super) fn server_dialed(&mut self, key: ServerKey, outcome: Result<SocketId, DialError>) {
        let Some(server) = self.servers.get_mut(key) else { return };
        assert!(matches!(server.state, State::Dialing), "a dial ends once");
        match outcome {
            Ok(socket) => {
                // First of all: a socket that nobody knows is never closed.
                server.socket = Some(socket);
                self.begin_login(key, socket);
            }
            Err(error) => {
                let id = server.id;
                self.log(LogLevel::Warn, None, Some(id), || format!("no server connection: {error}"));
                self.dial_failed(key, Failure::Unreachable(error.0.into()));
                self.server_closed(key);
            }
        }
    }

    pub(super) fn begin_login(&mut self, key: ServerKey, socket: SocketId) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let Some(route) = self.routes.get(server.route) else { return };
        let asks_old = self.endpoints[server.endpoint].old_protocol_until > self.now;
        let minor = if asks_old { 0 } else { startup::MINOR_MAX };
        let mut parameters = vec![("user", &*route.credentials.user), ("database", &route.dbname)];
        parameters.extend(route.own.iter().flatten().map(|(name, value)| (&**name, &**value)));
        let hello = startup::startup_message(minor, &parameters);
        server.receiving = true;
        let connect_query = match route.own {
            // A WAL sender runs no queries of ours.
            Some(_) => "",
            None => &self.config.databases[route.name.section].connect_query,
        };
        server.state = State::Login(Box::new(Login::new(route.credentials.clone(), minor, connect_query)));
        let at = server.opened + self.config.timeouts.server_connect;
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, at);
        self.effects.push(Effect::Receive { socket, on: true });
        self.send_to_server(key, hello);
    }

    pub(super) fn login_received(&mut self, key: ServerKey, bytes: &[u8]) {
        let mut at = 0;
        loop {
            let Some(server) = self.servers.get_mut(key) else { return };
            let asking = matches!(&server.state, State::Login(login) if login.is_asking());
            let longest = if asking { backend::longest } else { login_longest };
            let segment = match server.framer.next(bytes, &mut at, longest) {
                Ok(Some(segment)) => segment,
                Ok(None) => return,
                Err(error) => return self.login_failed(key, LoginError::Nonsense(error.to_string())),
            };
            let Some(body) = server.hear(&segment, bytes) else { continue };
            let State::Login(login) = &mut server.state else { return };
            match login.received(segment.tag, &body) {
                Ok(LoginStep::Done) => return self.logged_in(key, &bytes[at..]),
                step => self.login_step(key, step),
            }
        }
    }

    pub(super) fn login_step(&mut self, key: ServerKey, step: Result<LoginStep, LoginError>) {
        match step {
            Ok(LoginStep::Continue | LoginStep::Done) => {}
            Ok(LoginStep::Send(bytes)) => self.send_to_server(key, bytes),
            Ok(LoginStep::Compute(work)) => self.effects.push(Effect::Compute { server: key, work }),
            Err(error) => self.login_failed(key, error),
        }
    }

    pub(super) fn login_computed(&mut self, key: ServerKey, result: ScramResult) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let State::Login(login) = &mut server.state else { return };
        let step = login.scram_done(result);
        self.login_step(key, step);
    }

    /// The server is ours; `rest` is what it said in the same breath.
    fn logged_in(&mut self, key: ServerKey, rest: &[u8]) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let heard_out = State::Draining(DRAINED_BYTES_MAX);
        let State::Login(login) = std::mem::replace(&mut server.state, heard_out) else {
            unreachable!("a login that is done was under way")
        };
        let Login { key: cancel_key, parameters, notices, .. } = *login;
        server.key = cancel_key;
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, self.now + DRAIN_MAX);
        let (id, route_key) = (server.id, server.route);
        let process = server.key.as_ref().map(|(process, _)| *process).unwrap_or_default();
        let took = self.now.since(server.opened);
        for notice in notices {
            self.log(LogLevel::Info, None, Some(id), || format!("during login: {notice}"));
        }
        self.log(LogLevel::Info, None, Some(id), || login_text(process, took));
        let defaults = self.learn(route_key, Arc::new(parameters));
        if let Some(server) = self.servers.get_mut(key) {
            (server.values, server.defaults) = (defaults.clone(), defaults);
        }
        self.doom_ownerless(key);
        self.dial_succeeded(key);
        if rest.is_empty() && self.servers.get(key).is_some_and(Server::is_at_rest) {
            self.rest(key);
        } else {
            self.unlinked_received(key, rest);
        }
        self.welcome_waiting(route_key);
    }

    /// A server of ours has said what it reports. Other shards are told what is news, for a client that logs in there
    /// must not have to wait until a server comes to them.
    fn learn(&mut self, key: RouteKey, parameters: Arc<Parameters>) -> Arc<Values> {
        let known = self.routes.get(key).and_then(|route| route.parameters.as_ref()) == Some(&parameters);
        let defaults = self.learn_defaults(key, parameters.clone());
        let Some(route) = self.routes.get_mut(key) else { return defaults };
        if known || route.own.is_some() {
            return defaults;
        }
        let name = route.name.clone();
        self.remember(name.clone(), parameters.clone());
        for other in (0..self.shards).map(|shard| ShardId(shard as u16)).filter(|&shard| shard != self.id) {
            let letter = Letter::Parameters(Box::new((name.clone(), parameters.clone())));
            self.effects.push(Effect::Mail { to: other, letter });
        }
        defaults
    }

    /// A server of another shard has said what it reports.
    pub(super) fn hear_parameters(&mut self, name: RouteName, parameters: Arc<Parameters>) {
        let key = self.routes_by_name.get(&name).copied();
        self.remember(name, parameters.clone());
        if let Some(key) = key {
            self.learn_defaults(key, parameters);
            self.welcome_waiting(key);
        }
    }

    fn remember(&mut self, name: RouteName, parameters: Arc<Parameters>) {
        if self.reported.len() >= REMEMBERED_MAX {
            self.reported.clear();
        }
        self.reported.insert(name, parameters);
    }

    /// Lets in who waited to learn what the route's servers report.
    pub(super) fn welcome_waiting(&mut self, route: RouteKey) {
        let Some(route) = self.routes.get_mut(route) else { return };
        if route.parameters.is_none() {
            return;
        }
        let (endpoint, no) = (route.endpoint, route.no);
        let waiting = std::mem::take(&mut route.logins);
        if !waiting.is_empty() {
            self.share(endpoint).probe(no, None);
        }
        for client in waiting {
            self.admit(client);
        }
    }

    /// A server of this endpoint does not negotiate the protocol's version: for a while none is expected to.
    pub(super) fn ask_for_old_protocol(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get(key) else { return };
        let id = server.id;
        self.endpoints[server.endpoint].old_protocol_until = self.now + OLD_PROTOCOL_FOR;
        let minutes = OLD_PROTOCOL_FOR.as_secs() / 60;
        self.log(LogLevel::Info, None, Some(id), || {
            format!("its endpoint is asked for protocol 3.0 for {minutes} minutes")
        });
    }

    pub(super) fn login_failed(&mut self, key: ServerKey, error: LoginError) {
        let Some(server) = self.servers.get(key) else { return };
        let id = server.id;
        let text = error.to_string();
        self.log(LogLevel::Warn, None, Some(id), || format!("login failed: {text}"));
        match error {
            LoginError::TooNew(_) => {
                self.ask_for_old_protocol(key);
                self.dial_failed(key, Failure::Unreachable(text.into()));
            }
            LoginError::Refused(message, report) if !is_transient(&report) => {
                // A server may leave out what a client cannot do without.
                let sound = report.code.len() == 5 && message.ends_with(b"\0\0");
                let own = || Refusal::new(SqlState::PROTOCOL_VIOLATION, text.clone()).to_message("");
                self.login_refused(key, if sound { message } else { own() }, report);
            }
            LoginError::ConnectQuery(report) if !is_transient(&report) => {
                let code = SqlState::from_bytes(report.code.as_bytes()).unwrap_or(SqlState::INTERNAL_ERROR);
                let refusal = Refusal::new(code, text).hint(CONNECT_QUERY_HINT);
                self.login_refused(key, refusal.to_message(""), report);
            }
            LoginError::Refused(_, report) | LoginError::ConnectQuery(report) => {
                let reason = report.to_string().into();
                let is_full = report.code == SqlState::TOO_MANY_CONNECTIONS.to_string();
                let failure =
                    if is_full { Failure::Overloaded(reason) } else { Failure::Unreachable(reason) };
                self.dial_failed(key, failure);
            }
            LoginError::NoPassword(_) | LoginError::Unsupported(_) => {
                let refusal = Refusal::new(SqlState::INVALID_AUTHORIZATION, text.clone());
                let report = Report { severity: "FATAL".into(), code: "28000".into(), message: text };
                self.login_refused(key, refusal.to_message(""), report);
            }
            LoginError::Nonsense(_) => {
                let refusal = Refusal::new(SqlState::PROTOCOL_VIOLATION, text.clone());
                let report = Report { severity: "FATAL".into(), code: "08P01".into(), message: text };
                self.login_refused(key, refusal.to_message(""), report);
            }
        }
        self.end_server(key, Some(self.config.timeouts.server_close));
    }
}

/// Routes whose servers' reports are remembered, so that a client of a route that was not used here for a while is let in
/// at once: about 1 MB. If there are more the memory begins anew, and costs a login a wait.
const REMEMBERED_MAX: usize = 4096;

const CONNECT_QUERY_HINT: &str = "It stands in [databases.NAME] of pgpinion.toml.";

/// During the login a server has nothing long to say.
fn login_longest(message: u8) -> u32 {
    let understood = UNDERSTOOD_BYTES_MAX as u32;
    match message {
        // The login says what is wrong with its length.
        backend::tag::BACKEND_KEY_DATA => understood,
        _ => backend::longest(message).min(understood),
    }
}

/// Refusals that pass: the server starts, stops, or is full.
fn is_transient(report: &Report) -> bool {
    matches!(report.code.get(..2), Some("08" | "53" | "57" | "58" | "XX"))
}

fn login_text(process: u32, took: Duration) -> String {
    format!("server logged in: backend process {process} (took {:.1} ms)", took.as_secs_f64() * 1e3)
}
