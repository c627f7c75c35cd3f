//! From a dial to a server at rest, or to a reason why not.

use super::server::{Server, State};
use super::{Alarm, DialError, Effect, RouteKey, ServerKey, Shard};
use crate::config::LogLevel;
use crate::ids::SocketId;
use crate::limits::{DRAIN_MAX, DRAINED_BYTES_MAX};
use crate::server::{Login, LoginError, LoginStep, ScramResult};
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
                let (endpoint, route, id) = (server.endpoint, server.route, server.id);
                self.log(LogLevel::Warn, None, Some(id), || format!("no server connection: {error}"));
                self.dial_failed(endpoint, route, error.0);
                self.server_closed(key);
            }
        }
    }

    pub(super) fn begin_login(&mut self, key: ServerKey, socket: SocketId) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let Some(route) = self.routes.get(server.route) else { return };
        let hello =
            startup::startup_message(&[("user", &route.credentials.user), ("database", &route.dbname)]);
        server.receiving = true;
        server.state = State::Login(Box::new(Login::new(route.credentials.clone())));
        let at = server.opened + self.config.timeouts.server_connect;
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, at);
        self.effects.push(Effect::Receive { socket, on: true });
        self.send_to_server(key, hello);
    }

    pub(super) fn login_received(&mut self, key: ServerKey, bytes: &[u8]) {
        let mut at = 0;
        loop {
            let Some(server) = self.servers.get_mut(key) else { return };
            let segment = match server.framer.next(bytes, &mut at, login_longest) {
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
        let (id, endpoint, route_key) = (server.id, server.endpoint, server.route);
        let process = server.key.as_ref().map(|(process, _)| *process).unwrap_or_default();
        let took = self.now.since(server.opened);
        for notice in notices {
            self.log(LogLevel::Info, None, Some(id), || format!("during login: {notice}"));
        }
        self.log(LogLevel::Info, None, Some(id), || login_text(process, took));
        if let Some(route) = self.routes.get_mut(route_key) {
            route.parameters = Some(Arc::new(parameters));
        }
        self.dial_succeeded(endpoint, route_key);
        if rest.is_empty() && self.servers.get(key).is_some_and(Server::is_at_rest) {
            self.rest(key);
        } else {
            self.unlinked_received(key, rest);
        }
        self.welcome_waiting(route_key);
    }

    /// Lets in who waited to learn what the route's servers report.
    pub(super) fn welcome_waiting(&mut self, route: RouteKey) {
        let Some(route) = self.routes.get_mut(route) else { return };
        let Some(parameters) = route.parameters.clone() else { return };
        for client in std::mem::take(&mut route.logins) {
            self.welcome(client, &parameters);
        }
    }

    pub(super) fn login_failed(&mut self, key: ServerKey, error: LoginError) {
        let Some(server) = self.servers.get(key) else { return };
        let (id, endpoint, route) = (server.id, server.endpoint, server.route);
        let text = error.to_string();
        self.log(LogLevel::Warn, None, Some(id), || format!("login failed: {text}"));
        match error {
            LoginError::Refused(message, report) if !is_transient(&report) => {
                // A server may leave out what a client cannot do without.
                let sound = report.code.len() == 5 && message.ends_with(b"\0\0");
                let own = || Refusal::new(SqlState::PROTOCOL_VIOLATION, text.clone()).to_message("");
                self.login_refused(endpoint, route, if sound { message } else { own() }, report);
            }
            LoginError::Refused(_, report) => self.dial_failed(endpoint, route, report.to_string()),
            LoginError::NoPassword(_) | LoginError::Unsupported(_) => {
                let refusal = Refusal::new(SqlState::INVALID_AUTHORIZATION, text.clone());
                let report = Report { severity: "FATAL".into(), code: "28000".into(), message: text };
                self.login_refused(endpoint, route, refusal.to_message(""), report);
            }
            LoginError::Nonsense(_) => {
                let refusal = Refusal::new(SqlState::PROTOCOL_VIOLATION, text.clone());
                let report = Report { severity: "FATAL".into(), code: "08P01".into(), message: text };
                self.login_refused(endpoint, route, refusal.to_message(""), report);
            }
        }
        self.end_server(key, Some(self.config.timeouts.server_close));
    }
}

/// During the login a server has nothing long to say.
fn login_longest(message: u8) -> u32 {
    backend::longest(message).min(crate::limits::UNDERSTOOD_BYTES_MAX as u32)
}

/// Refusals that pass: the server starts, stops, or is full.
fn is_transient(report: &Report) -> bool {
    matches!(report.code.get(..2), Some("08" | "53" | "57" | "58" | "XX"))
}

fn login_text(process: u32, took: Duration) -> String {
    format!("server logged in: backend process {process} (took {:.1} ms)", took.as_secs_f64() * 1e3)
}
