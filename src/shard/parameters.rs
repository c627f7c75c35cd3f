//! Parameters follow their client: what it asks for at login is checked once, and a server that is given to it gets its
//! values, if it has others, ahead of its bytes.
//!
//! ```text
//!   client:  AwaitParameters -> Checking -> AwaitParameters -> Idle      (values that no server has accepted yet)
//!   server:  Linked: [batch of ours, whose answers nobody sees] then the client's own
//! ```
//!
//! Of those who wait for a check, one at a time gets a server: what it learns may be what the others want to know.

use super::check::Errand;
use super::client::State as ClientState;
use super::server::State;
use super::{Alarm, ClientKey, Peer, RouteKey, ServerKey, Shard};
use crate::config::{LogLevel, PoolMode};
use crate::limits::{DRAIN_MAX, DRAINED_BYTES_MAX};
use crate::parameters::{Policy, Replay, Setting, Values, is_followed, is_role, wishes};
use crate::server::Parameters;
use crate::wire::Refusal;
use crate::wire::backend::{self, Status, tag};
use crate::wire::error::{Report, as_fatal};
use crate::wire::startup::Startup;
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

impl Shard {
    // ---- login ----

    /// What a client asks for in its startup packet.
    pub(super) fn wishes(&self, startup: &Startup, peer: Peer) -> Result<Values, Refusal> {
        let tracked = &self.config.track_extra_parameters;
        let ignored = &self.config.ignore_startup_parameters;
        let mut wishes = wishes(&startup.parameters, Policy { tracked, ignored })?;
        if self.config.application_name_add_host {
            // As PgBouncer writes it, for one without a name too.
            let name = wishes.get(APPLICATION_NAME).map_or("app", |name| name);
            let name = format!("{name} - {peer}").into();
            wishes.set(&APPLICATION_NAME.into(), name);
        }
        Ok(wishes)
    }

    /// A server of a route has told what it reports: what new clients begin with.
    pub(super) fn learn_defaults(&mut self, key: RouteKey, parameters: Arc<Parameters>) -> Arc<Values> {
        let defaults = self.defaults_of(&parameters);
        if let Some(route) = self.routes.get_mut(key) {
            route.parameters = Some(parameters);
            route.defaults = defaults.clone();
        }
        defaults
    }

    pub(super) fn defaults_of(&mut self, parameters: &Parameters) -> Arc<Values> {
        self.registry.share(Values::reported(parameters.iter()))
    }

    /// A client knows what its route's servers report: it is let in, unless it asks for something that no server of the
    /// route has accepted yet.
    pub(super) fn admit(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let Some(route_key) = client.route else { return };
        let Some(route) = self.routes.get_mut(route_key) else { return };
        let Some(parameters) = route.parameters.clone() else { return };
        if client.values.is_empty() {
            client.values = route.defaults.clone();
            return self.welcome(key, &parameters);
        }
        let (values, startup, known) = route.accepted.resolve(&route.defaults, &client.values);
        if !known {
            if route.is_queue_full() {
                return self.refuse_surplus(key);
            }
            route.checks.push_back(key);
            return self.check_next(route_key);
        }
        client.values = match startup.is_empty() {
            true => route.defaults.clone(),
            false => {
                let startup = self.registry.share(startup);
                self.registry.share(values.with_startup(startup))
            }
        };
        self.welcome(key, &parameters);
    }

    /// The next client whose wishes must be checked waits for a server.
    fn check_next(&mut self, key: RouteKey) {
        let Some(route) = self.routes.get_mut(key) else { return };
        if route.checking.is_some() {
            return;
        }
        let Some(client) = route.checks.pop_front() else { return };
        route.checking = Some(client);
        self.find_checker(client, key);
    }

    /// A client whose wishes are checked next gets a server, or waits for one.
    pub(super) fn find_checker(&mut self, client: ClientKey, key: RouteKey) {
        if self.link_idle(client) {
            return self.pass_pending(client);
        }
        self.enqueue(client, key);
    }

    /// The server that checks a client's wishes had them already.
    pub(super) fn check_is_over(&mut self, client: ClientKey, server: ServerKey) {
        if self.servers.get(server).is_some_and(|server| server.replay.is_none()) {
            self.checked(client, server, &[], &[]);
        }
    }

    /// A server accepted a client's wishes, some of them `otherwise` than they were written. `rest` is what it said
    /// behind that.
    pub(super) fn checked(&mut self, key: ClientKey, server: ServerKey, otherwise: &[Setting], rest: &[u8]) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.state = ClientState::AwaitParameters;
        let Some(route_key) = client.route else { return };
        let Some(route) = self.routes.get_mut(route_key) else { return };
        for (name, wish) in client.values.iter() {
            let taken = otherwise.iter().find(|(each, _)| each.eq_ignore_ascii_case(name));
            route.accepted.learn(name, wish, taken.map_or(wish, |(_, value)| value));
        }
        let others = std::mem::take(&mut route.checks);
        route.checking = None;
        self.take_back_checked(server, rest);
        self.admit(key);
        for other in others {
            self.admit(other);
        }
        self.check_next(route_key);
    }

    /// A server refused a client's wishes: the client learns what PostgreSQL says to who asks for such.
    fn check_failed(&mut self, key: ClientKey, server: ServerKey, error: &Bytes, rest: &[u8]) {
        if let Some(client) = self.clients.get_mut(key) {
            client.state = ClientState::AwaitParameters;
        }
        self.take_back_checked(server, rest);
        self.refuse_with(key, as_fatal(error), &Report::read(error).to_string());
    }

    /// The server of a check is nobody's again. `rest` is what it said behind its answer.
    fn take_back_checked(&mut self, key: ServerKey, rest: &[u8]) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.state = State::Draining(DRAINED_BYTES_MAX);
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, self.now + DRAIN_MAX);
        self.unlinked_received(key, rest);
    }

    /// A client that may have been waiting for a check is gone.
    pub(super) fn forget_check(&mut self, key: RouteKey, client: ClientKey) {
        let Some(route) = self.routes.get_mut(key) else { return };
        route.checks.retain(|&each| each != client);
        if route.checking == Some(client) {
            route.checking = None;
            self.check_next(key);
        }
    }

    // ---- a server gets its client's values ----

    /// Sends a server that was given to a client, or is at rest with it, what it needs to have the client's values.
    #[cold]
    pub(super) fn replay(&mut self, client: ClientKey, key: ServerKey) {
        let Some(wanted) = self.wanted_by(client) else { return };
        let Some(server) = self.servers.get_mut(key) else { return };
        let Some(replay) = Replay::new(&server.values, &wanted) else {
            server.values = wanted;
            return;
        };
        let batch = replay.request(|tag| server.owed.sent(tag));
        server.replay = Some(Box::new(Errand::Values(replay)));
        self.send_to_server(key, batch);
    }

    fn wanted_by(&mut self, key: ClientKey) -> Option<Arc<Values>> {
        let client = self.clients.get(key)?;
        if !matches!(client.state, ClientState::Checking(_)) {
            return Some(client.values.clone());
        }
        let route = self.routes.get(client.route?)?;
        let (values, ..) = route.accepted.resolve(&route.defaults, &client.values);
        Some(self.registry.share(values))
    }

    /// Bytes of a linked server that answer a batch of ours, from `at` on. False: the two are parted, and nothing is left to
    /// be read.
    pub(super) fn replay_received(
        &mut self,
        key: ServerKey,
        client: ClientKey,
        bytes: &[u8],
        at: &mut usize,
    ) -> bool {
        loop {
            let Some(server) = self.servers.get_mut(key) else { return false };
            let segment = match server.framer.next(bytes, at, backend::longest_unheard) {
                Ok(Some(segment)) => segment,
                Ok(None) => return true,
                Err(error) => return self.replay_broke(key, client, error.to_string()),
            };
            if segment.begins
                && let Err(nonsense) = server.owed.received(segment.tag)
            {
                return self.replay_broke(key, client, nonsense.to_string());
            }
            let Some(body) = server.hear(&segment, bytes) else { continue };
            match self.replay_answer(key, segment.tag, &body) {
                Answer::Last => return self.replayed(key, client, &bytes[*at..]),
                Answer::Ours => {}
                Answer::Clients => self.tell_of_server(client, segment.tag, &body),
            }
        }
    }

    /// A client that logs in is not told yet: nothing may come before AuthenticationOk.
    fn tell_of_server(&mut self, key: ClientKey, message: u8, body: &[u8]) {
        if self.clients.get(key).is_some_and(|client| matches!(client.state, ClientState::Linked(_))) {
            self.send_to_client(key, backend::message(message, body));
        }
    }

    fn replay_broke(&mut self, key: ServerKey, client: ClientKey, what: String) -> bool {
        let Some(server) = self.servers.get_mut(key) else { return false };
        server.framer = crate::wire::Framer::default();
        if server.is_being_checked() {
            self.check_broke(key, client, &what);
            return false;
        }
        self.break_link(key, client, what);
        false
    }

    /// One message of a server that is at a batch of ours.
    pub(super) fn replay_answer(&mut self, key: ServerKey, message: u8, body: &Bytes) -> Answer {
        let Some(server) = self.servers.get_mut(key) else { return Answer::Ours };
        let Some(replay) = &mut server.replay else { return Answer::Ours };
        let (id, session) = (server.id, server.last_session);
        match message {
            tag::NOTICE_RESPONSE => {
                let report = Report::read(body);
                self.log(LogLevel::Info, session, Some(id), || format!("while setting parameters: {report}"));
                Answer::Ours
            }
            tag::NOTIFICATION_RESPONSE => Answer::Clients,
            tag::PARAMETER_STATUS => {
                let sets = backend::read_parameter_status(body).is_some_and(|(name, _)| replay.sets(name));
                if sets {
                    return Answer::Ours;
                }
                self.reported(key, body);
                Answer::Clients
            }
            tag::ERROR_RESPONSE if Report::read(body).is_fatal() => {
                let checking = matches!(**replay, Errand::Check(_));
                self.heard_goodbye(key, &Report::read(body));
                if checking { Answer::Ours } else { Answer::Clients }
            }
            tag::READY_FOR_QUERY if body.first().and_then(|&byte| Status::from_byte(byte)).is_none() => {
                server.doomed = Some("a transaction status that does not exist");
                Answer::Last
            }
            _ => {
                if replay.received(message, body) {
                    Answer::Last
                } else {
                    Answer::Ours
                }
            }
        }
    }

    /// The batch is through. False: nothing is left to be read for this client.
    fn replayed(&mut self, key: ServerKey, client: ClientKey, rest: &[u8]) -> bool {
        if let Some(outcome) = self.end_check(key) {
            return self.check_ended(key, client, outcome, rest);
        }
        let outcome = self.end_replay(key);
        let checking =
            matches!(self.clients.get(client).map(|client| client.state), Some(ClientState::Checking(_)));
        match outcome {
            Ok(otherwise) if checking => self.checked(client, key, &otherwise, rest),
            Err(error) if checking => self.check_failed(client, key, &error, rest),
            Ok(otherwise) => {
                self.tell_client(key, client, &otherwise);
                self.ask_to_cancel(key);
                // There was nothing to cancel, and the client has given it back.
                if !self.is_linked(client, key) {
                    self.server_received(key, rest);
                    return false;
                }
                if rest.is_empty() {
                    self.ready_again(key, client);
                }
                return true;
            }
            Err(error) => {
                // It goes on with the client's request, and with values that are not the client's.
                self.close_server(key, "its client's parameters were refused");
                self.refuse_with(client, as_fatal(&error), &Report::read(&error).to_string());
            }
        }
        false
    }

    /// What came of a batch: the server has what was wanted, with what it took `otherwise`, or what it had.
    pub(super) fn end_replay(&mut self, key: ServerKey) -> Result<Vec<Setting>, Bytes> {
        let Some(server) = self.servers.get_mut(key) else { return Ok(Vec::new()) };
        let Some(Errand::Values(replay)) = server.replay.take().map(|errand| *errand) else {
            return Ok(Vec::new());
        };
        server.status = Status::Idle;
        let wanted = replay.wanted().clone();
        let otherwise = replay.outcome()?;
        if otherwise.is_empty() {
            server.values = wanted;
            return Ok(otherwise);
        }
        let mut values = Values::clone(&wanted);
        for (name, value) in &otherwise {
            values.set(name, value.clone());
        }
        server.values = self.registry.share(values);
        Ok(otherwise)
    }

    /// The client's values are those that the server has; what that changes, it is told.
    fn tell_client(&mut self, key: ServerKey, client_key: ClientKey, changed: &[Setting]) {
        let (Some(server), Some(client)) = (self.servers.get(key), self.clients.get_mut(client_key)) else {
            return;
        };
        client.values = server.values.clone();
        let mut news = BytesMut::new();
        for (name, value) in changed.iter().filter(|(name, _)| server.defaults.get(name).is_some()) {
            backend::put_parameter_status(&mut news, name, value);
        }
        if !news.is_empty() {
            self.send_to_client(client_key, news.freeze());
        }
    }

    // ---- a server changes its values ----

    /// A server reports a parameter. Its client, if it has one, reads this too.
    pub(super) fn reported(&mut self, key: ServerKey, body: &[u8]) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let Some((name, value)) = backend::read_parameter_status(body) else {
            server.doomed = Some("it reported a parameter that cannot be read");
            let (id, session) = (server.id, server.last_session);
            return self.log(LogLevel::Warn, session, Some(id), || UNREADABLE.into());
        };
        if is_role(name) {
            return self.role_changed(key, name, value);
        }
        if !is_followed(name) {
            return self.default_changed(key, name, value);
        }
        let before = server.values.clone();
        server.values = self.registry.share(before.with(name, value));
        match server.state {
            State::Linked(client) => {
                let after = server.values.clone();
                let Some(client) = self.clients.get_mut(client) else { return };
                client.values = match Arc::ptr_eq(&client.values, &before) {
                    true => after,
                    false => self.registry.share(client.values.with(name, value)),
                };
            }
            State::Idle | State::Speaking => {
                server.defaults = self.registry.share(server.defaults.with(name, value));
                self.default_changed(key, name, value);
            }
            _ => {}
        }
    }

    /// The session acts as somebody else. That is no parameter that could be given back: as long as it holds, the server
    /// is for no other client.
    fn role_changed(&mut self, key: ServerKey, name: &str, value: &str) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let parameters = self.routes.get(server.route).and_then(|route| route.parameters.as_ref());
        let own = parameters.and_then(|all| all.iter().find(|(each, _)| *each == name));
        server.doomed = match own {
            Some((_, own)) if own == value => server.doomed.filter(|&why| why != ANOTHER_ROLE),
            _ => server.doomed.or(Some(ANOTHER_ROLE)),
        };
    }

    /// New clients are told something else than those before.
    fn default_changed(&mut self, key: ServerKey, name: &str, value: &str) {
        let Some(server) = self.servers.get(key) else { return };
        let route_key = server.route;
        let Some(parameters) = self.routes.get(route_key).and_then(|route| route.parameters.as_ref()) else {
            return;
        };
        let mut parameters = Parameters::clone(parameters);
        parameters.set(name, value);
        self.learn_defaults(route_key, Arc::new(parameters));
    }

    /// A linked server at rest was reset by its client. PostgreSQL went back to what the server logged in with; a session
    /// of the client's own would have gone back to what the client asked for.
    #[cold]
    pub(super) fn restore(&mut self, key: ServerKey, client_key: ClientKey) {
        self.forget_unreported(key);
        if self.servers.get(key).is_some_and(|server| self.is_own(server.route)) {
            // It logged in with the client's own startup packet.
            return;
        }
        let (Some(server), Some(client)) = (self.servers.get(key), self.clients.get_mut(client_key)) else {
            return;
        };
        let changed = client.values.restored(&server.defaults, &server.values);
        let mut values = Values::clone(&client.values);
        let mut news = BytesMut::new();
        for (name, value) in &changed {
            values.set(name, value.clone());
            backend::put_parameter_status(&mut news, name, value);
        }
        client.values = self.registry.share(values);
        let session_mode = self.routes.get(server.route).is_some_and(|route| route.mode == PoolMode::Session);
        if !news.is_empty() {
            self.send_to_client(client_key, news.freeze());
        }
        if session_mode || self.is_kept(key) {
            self.replay(client_key, key);
        }
    }

    /// A server was reset: what it does not report has gone back to nobody knows what.
    #[cold]
    pub(super) fn forget_unreported(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.was_reset = false;
        let values = server.values.forget_unreported(&server.defaults);
        server.values = self.registry.share(values);
    }
}

/// Whose a message is that came while a batch of ours was under way.
pub(super) enum Answer {
    /// Part of its answer, or for the log.
    Ours,
    /// The end of its answer.
    Last,
    /// The client's, as if there were no batch.
    Clients,
}

/// Whether a command sets back what earlier ones have set.
pub(super) fn resets(command: &[u8]) -> bool {
    matches!(command, b"RESET\0" | b"DISCARD ALL\0")
}

const UNREADABLE: &str =
    "a reported value is not UTF-8, or too long to be kept: it does not follow its client";

const APPLICATION_NAME: &str = "application_name";

const ANOTHER_ROLE: &str = "its client made it act as another role";
