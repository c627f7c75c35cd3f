//! The servers of a shard: login, answers, and what happens when a client leaves one behind.

use super::client::Goodbye;
use super::{Alarm, ClientKey, Deadline, DialError, Effect, Piece, RouteKey, ServerKey, Shard};
use crate::config::{LogLevel, PoolMode};
use crate::ids::{ConnectionId, SessionId, SocketId};
use crate::ledger::Permit;
use crate::limits::{DRAIN_MAX, DRAINED_BYTES_MAX, UNDERSTOOD_BYTES_MAX, UNSENT_BYTES_LOW};
use crate::server::{Login, LoginError, LoginStep, Nonsense, Owed, ScramResult};
use crate::time::Instant;
use crate::wire::backend::{self, Status, tag};
use crate::wire::error::Report;
use crate::wire::{Framer, Kept, Refusal, Segment, SqlState, frontend, startup};
use bytes::Bytes;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// A server connection.
pub struct Server {
    pub(super) id: ConnectionId,
    pub(super) route: RouteKey,
    pub(super) endpoint: usize,
    pub(super) permit: Permit,
    pub(super) state: State,
    socket: Option<SocketId>,
    pub(super) owed: Owed,
    framer: Framer,
    /// Of the last ReadyForQuery.
    status: Status,
    unsent: usize,
    receiving: bool,
    /// The body of a message that we read ourselves, as far as it has come.
    heard: Vec<u8>,
    /// It said why it ends: its client need not be told again.
    said_goodbye: bool,
    opened: Instant,
    /// When its `server_lifetime` is over.
    pub(super) expires: Instant,
    pub(super) deadline: Deadline,
    pub(super) last_session: Option<SessionId>,
    key: Option<(u32, Bytes)>,
}

pub(super) enum State {
    /// Is being connected.
    Dialing,
    /// Is connected, not logged in.
    Login(Box<Login>),
    /// Waits for a client.
    Idle,
    /// Serves a client.
    Linked(ClientKey),
    /// Its client left: it is heard out, for so many bytes more.
    Draining(usize),
    /// It was told to roll back, or to forget the session.
    Cleaning(Cleaning),
    /// Its end is arranged; its permit comes back when PostgreSQL has closed it too.
    Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cleaning {
    Rollback,
    Reset,
}

impl Server {
    pub(super) fn new(
        id: ConnectionId,
        route: RouteKey,
        endpoint: usize,
        permit: Permit,
        opened: Instant,
        expires: Instant,
    ) -> Self {
        Self {
            id,
            route,
            endpoint,
            permit,
            state: State::Dialing,
            socket: None,
            owed: Owed::default(),
            framer: Framer::default(),
            status: Status::Idle,
            unsent: 0,
            receiving: false,
            heard: Vec::new(),
            said_goodbye: false,
            opened,
            expires,
            deadline: Deadline::default(),
            last_session: None,
            key: None,
        }
    }

    #[inline]
    pub(super) fn socket(&self) -> SocketId {
        let Some(socket) = self.socket else { unreachable!("a server is spoken to after it was dialled") };
        socket
    }

    #[inline]
    pub(super) fn count_unsent(&mut self, bytes: usize) {
        self.unsent += bytes;
    }

    #[inline]
    pub(super) fn unsent(&self) -> usize {
        self.unsent
    }

    /// Nothing is owed, unread or unsent, and no transaction is open.
    #[inline]
    pub(super) fn is_at_rest(&self) -> bool {
        self.status == Status::Idle
            && self.owed.is_settled()
            && !self.owed.in_doubt()
            && self.unsent == 0
            && self.framer.at_boundary()
    }

    #[inline]
    pub(super) fn may_be_linked(&self) -> bool {
        matches!(self.state, State::Idle) && self.is_at_rest()
    }

    /// Collects the body of a message that we read; `Some` when it is whole. What is above the limit is left out.
    fn hear(&mut self, segment: &Segment, bytes: &[u8]) -> Option<Bytes> {
        if segment.begins {
            self.heard.clear();
        }
        let room = UNDERSTOOD_BYTES_MAX - self.heard.len().min(UNDERSTOOD_BYTES_MAX);
        let part = segment.body_part(bytes);
        self.heard.extend_from_slice(&part[..part.len().min(room)]);
        segment.ends.then(|| Bytes::from(std::mem::take(&mut self.heard)))
    }
}

/// What came of reading a linked server's bytes.
struct Answer {
    /// This goes first: it came with earlier bytes.
    kept: Kept,
    /// What goes to the client.
    range: Range<usize>,
    /// The server broke the protocol behind that.
    broken: Option<String>,
    /// It said that it ends.
    goodbye: Option<Report>,
    /// A ReadyForQuery was among it.
    ready: bool,
}

impl Answer {
    /// What stands before the broken message goes to the client, and ends where a message ends.
    fn broken(mut self, server: &mut Server, at: &mut usize, why: String) -> Self {
        server.framer = Framer::default();
        *at = usize::MAX;
        self.broken = Some(why);
        self
    }
}

impl Shard {
    // ---- login ----

    pub(super) fn server_dialed(&mut self, key: ServerKey, outcome: Result<SocketId, DialError>) {
        let Some(server) = self.servers.get_mut(key) else { return };
        assert!(matches!(server.state, State::Dialing), "a dial ends once");
        match outcome {
            Ok(socket) => self.begin_login(key, socket),
            Err(error) => {
                let (endpoint, route, id) = (server.endpoint, server.route, server.id);
                self.log(LogLevel::Warn, None, Some(id), || format!("no server connection: {error}"));
                self.dial_failed(endpoint, route, error.0);
                self.server_closed(key);
            }
        }
    }

    fn begin_login(&mut self, key: ServerKey, socket: SocketId) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let Some(route) = self.routes.get(server.route) else { return };
        let hello = startup::startup_message(&[("user", &route.credentials.user), ("database", &route.dbname)]);
        server.socket = Some(socket);
        server.receiving = true;
        server.state = State::Login(Box::new(Login::new(route.credentials.clone())));
        let at = server.opened + self.config.timeouts.server_connect;
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, at);
        self.effects.push(Effect::Receive { socket, on: true });
        self.send_to_server(key, hello);
    }

    fn login_received(&mut self, key: ServerKey, bytes: &[u8]) {
        let mut at = 0;
        let mut done = false;
        loop {
            let Some(server) = self.servers.get_mut(key) else { return };
            let segment = match server.framer.next(bytes, &mut at, login_longest) {
                Ok(Some(segment)) => segment,
                Ok(None) => break,
                Err(error) => return self.login_failed(key, LoginError::Nonsense(error.to_string())),
            };
            let Some(body) = server.hear(&segment, bytes) else { continue };
            match &mut server.state {
                // Logged in, and more came in the same breath.
                State::Login(_) if done => self.idle_message(key, segment.tag, &body),
                State::Login(login) => {
                    let step = login.received(segment.tag, &body);
                    done = matches!(step, Ok(LoginStep::Done));
                    self.login_step(key, step);
                }
                _ => return,
            }
        }
        if done {
            self.logged_in(key);
        }
    }

    fn login_step(&mut self, key: ServerKey, step: Result<LoginStep, LoginError>) {
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

    fn logged_in(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let State::Login(login) = std::mem::replace(&mut server.state, State::Idle) else { return };
        let Login { key: cancel_key, parameters, notices, .. } = *login;
        server.key = cancel_key;
        server.deadline.clear();
        let (id, endpoint, route_key) = (server.id, server.endpoint, server.route);
        let process = server.key.as_ref().map(|(process, _)| *process).unwrap_or_default();
        let took = self.now.since(server.opened);
        for notice in notices {
            self.log(LogLevel::Info, None, Some(id), || format!("during login: {notice}"));
        }
        self.log(LogLevel::Info, None, Some(id), || login_text(process, took));
        let parameters = Rc::new(parameters);
        let logins = self.routes.get_mut(route_key).map(|route| {
            route.parameters = Some(parameters.clone());
            std::mem::take(&mut route.logins)
        });
        self.dial_succeeded(endpoint, route_key);
        if self.servers.get(key).is_some_and(Server::is_at_rest) {
            self.rest(key);
        } else {
            self.hear_out(key);
        }
        for client in logins.unwrap_or_default() {
            self.welcome(client, &parameters);
        }
    }

    fn login_failed(&mut self, key: ServerKey, error: LoginError) {
        let Some(server) = self.servers.get(key) else { return };
        let (id, endpoint, route) = (server.id, server.endpoint, server.route);
        let text = error.to_string();
        self.log(LogLevel::Warn, None, Some(id), || format!("login failed: {text}"));
        match error {
            LoginError::Refused(message, report) if !is_transient(&report) => {
                self.login_refused(endpoint, route, message, report);
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

    // ---- answers ----

    #[inline]
    pub(super) fn server_received(&mut self, key: ServerKey, bytes: &[u8]) {
        let Some(server) = self.servers.get_mut(key) else { return };
        match &mut server.state {
            State::Linked(client) => {
                let client = *client;
                self.answer_received(key, client, bytes);
            }
            State::Login(_) => self.login_received(key, bytes),
            State::Idle | State::Cleaning(_) => self.unlinked_received(key, bytes),
            State::Draining(left) if *left >= bytes.len() => {
                *left -= bytes.len();
                self.unlinked_received(key, bytes);
            }
            State::Draining(_) => self.close_server(key, "too much was left unread by its client"),
            State::Dialing | State::Closing => {}
        }
    }

    /// Bytes of a linked server: on to its client, and an eye on where the answer ends.
    #[inline]
    fn answer_received(&mut self, key: ServerKey, client: ClientKey, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let Some(server) = self.servers.get_mut(key) else { return };
            let answer = read_answer(server, bytes, &mut at);
            let settled = server.owed.is_settled();
            self.stats.transactions += u64::from(answer.ready && server.status == Status::Idle);
            if !self.pass_answer(key, client, answer) {
                return;
            }
            if settled {
                if at < bytes.len() && self.gives_back(key, client) {
                    return self.take_back(key, client, &bytes[at..]);
                }
                self.ready(key, client);
            }
        }
        self.server_has_room(client, key);
    }

    /// False: the server broke the protocol, and the two are parted.
    #[inline]
    fn pass_answer(&mut self, key: ServerKey, client: ClientKey, answer: Answer) -> bool {
        let pause = self.answer_client(client, answer.kept.as_slice(), answer.range);
        if let Some(report) = &answer.goodbye {
            self.heard_goodbye(key, report);
        }
        if let Some(broken) = answer.broken {
            self.break_link(key, client, broken);
            return false;
        }
        let Some(server) = self.servers.get_mut(key) else { return false };
        if pause && server.receiving {
            server.receiving = false;
            self.effects.push(Effect::Receive { socket: server.socket(), on: false });
        }
        true
    }

    /// The transaction is over, and with it the client's right to this server.
    fn gives_back(&self, key: ServerKey, client: ClientKey) -> bool {
        let Some(server) = self.servers.get(key) else { return false };
        let session_mode = self.routes.get(server.route).is_some_and(|route| route.mode == PoolMode::Session);
        !session_mode && server.is_at_rest() && !self.client_within_body(client)
    }

    /// A server says more behind the end of its answer. That is not for the client that gives it back, nor for the
    /// next: it might be the news that the server goes.
    fn take_back(&mut self, key: ServerKey, client: ClientKey, bytes: &[u8]) {
        self.unlink_client(client);
        let Some(server) = self.servers.get_mut(key) else { return };
        server.state = State::Draining(DRAINED_BYTES_MAX);
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, self.now + DRAIN_MAX);
        self.unlinked_received(key, bytes);
    }

    /// After a ReadyForQuery, or when the last byte to the server has left: is the transaction over?
    #[inline]
    fn ready(&mut self, key: ServerKey, client: ClientKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let route = server.route;
        if server.is_at_rest() {
            if !self.client_within_body(client) {
                self.release(key, client, route);
            }
        } else if server.owed.is_settled() && server.unsent == 0 {
            self.settled(key, client);
        }
    }

    /// Everything is answered, but the server is not at rest.
    fn settled(&mut self, key: ServerKey, client: ClientKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let mode = self.routes.get(server.route).map(|route| route.mode);
        if server.status != Status::Idle {
            if mode == Some(PoolMode::Statement) {
                let text = "transaction blocks are not allowed in statement pooling mode";
                let refusal = Refusal::new(SqlState::FEATURE_NOT_SUPPORTED, text);
                return self.refuse(client, refusal.hint("Use pool_mode = \"transaction\" for this database."));
            }
            self.idle_in_transaction(client);
        } else if server.owed.in_doubt() && mode != Some(PoolMode::Session) {
            self.unlink_client(client);
            self.close_server(key, "nobody knows whether it has more to say");
        }
    }

    fn client_within_body(&self, client: ClientKey) -> bool {
        self.clients.get(client).is_some_and(|client| client.session.is_within_body())
    }

    /// The server ends the session and says why; its client has been sent this.
    fn heard_goodbye(&mut self, key: ServerKey, report: &Report) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.said_goodbye = true;
        let (id, session) = (server.id, server.last_session);
        self.log(LogLevel::Warn, session, Some(id), || format!("server: {report}"));
    }

    /// The server said something that answers nothing.
    fn break_link(&mut self, key: ServerKey, client: ClientKey, what: String) {
        let text = format!("the server broke the protocol: {what}");
        self.close_broken(key, &text);
        self.refuse(client, Refusal::new(SqlState::PROTOCOL_VIOLATION, text));
    }

    /// Bytes of a server without a client: idle, being heard out, or being cleaned.
    fn unlinked_received(&mut self, key: ServerKey, bytes: &[u8]) {
        let mut at = 0;
        loop {
            let Some(server) = self.servers.get_mut(key) else { return };
            if matches!(server.state, State::Closing) {
                return;
            }
            let segment = match server.framer.next(bytes, &mut at, backend::longest) {
                Ok(Some(segment)) => segment,
                Ok(None) => break,
                Err(error) => return self.close_broken(key, &error.to_string()),
            };
            if segment.begins
                && let Err(nonsense) = server.owed.received(segment.tag)
            {
                return self.close_broken(key, &nonsense.to_string());
            }
            if !is_understood(segment.tag) {
                continue;
            }
            if let Some(body) = server.hear(&segment, bytes) {
                self.idle_message(key, segment.tag, &body);
            }
        }
        self.set_aside(key);
        self.advance_cleaning(key);
    }

    /// An idle server that has begun to say something is not given to anybody until it has said it.
    fn set_aside(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get(key) else { return };
        if !matches!(server.state, State::Idle) || server.is_at_rest() {
            return;
        }
        if let Some(route) = self.routes.get_mut(server.route) {
            route.pool.remove_idle(key);
        }
        self.hear_out(key);
    }

    /// A message of a server that no client hears.
    fn idle_message(&mut self, key: ServerKey, message: u8, body: &Bytes) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let (id, session) = (server.id, server.last_session);
        match message {
            tag::READY_FOR_QUERY => match body.first().and_then(|&byte| Status::from_byte(byte)) {
                Some(status) => server.status = status,
                None => self.close_broken(key, "a transaction status that does not exist"),
            },
            tag::NOTICE_RESPONSE => {
                let report = Report::read(body);
                self.log(LogLevel::Info, session, Some(id), || format!("notice between sessions: {report}"));
            }
            tag::NOTIFICATION_RESPONSE => {
                self.log(LogLevel::Debug, session, Some(id), || "notification for nobody".into());
            }
            tag::ERROR_RESPONSE => {
                let report = Report::read(body);
                let cleaning = matches!(server.state, State::Cleaning(_));
                let idle = matches!(server.state, State::Idle);
                self.log(LogLevel::Warn, session, Some(id), || format!("server: {report}"));
                if report.is_fatal() || cleaning || idle {
                    self.close_broken(key, "it ended the session, or could not be cleaned");
                }
            }
            tag::PARAMETER_STATUS => {}
            _ => self.close_broken(key, &Nonsense { tag: message }.to_string()),
        }
    }

    /// The next step for a server whose client left, if the last one is done.
    fn advance_cleaning(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        if !server.owed.is_settled() || server.unsent > 0 || !server.framer.at_boundary() {
            return;
        }
        match server.state {
            State::Draining(_) | State::Cleaning(Cleaning::Rollback) => self.clean(key),
            State::Cleaning(Cleaning::Reset) if server.is_at_rest() => self.rest(key),
            State::Cleaning(Cleaning::Reset) => self.close_server(key, "the reset query left a transaction open"),
            _ => {}
        }
    }

    /// Rolls back what is open, makes the server forget the session where that is the rule, and lets it rest.
    fn clean(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        if server.owed.in_doubt() {
            return self.close_server(key, "nobody knows whether it has more to say");
        }
        let session_mode = self.routes.get(server.route).is_some_and(|route| route.mode == PoolMode::Session);
        if server.status != Status::Idle {
            if matches!(server.state, State::Cleaning(_)) {
                return self.close_server(key, "it could not be rolled back");
            }
            self.tell(key, Cleaning::Rollback, "ROLLBACK");
        } else if session_mode && !self.config.server_reset_query.is_empty() {
            let config = self.config.clone();
            self.tell(key, Cleaning::Reset, &config.server_reset_query);
        } else {
            self.rest(key);
        }
    }

    fn tell(&mut self, key: ServerKey, cleaning: Cleaning, text: &str) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.state = State::Cleaning(cleaning);
        server.owed.sent(frontend::tag::QUERY);
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, self.now + CLEAN_MAX);
        self.send_to_server(key, frontend::query(text));
    }

    // ---- sending ----

    fn send_to_server(&mut self, key: ServerKey, bytes: Bytes) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.unsent += bytes.len();
        self.effects.push(Effect::Send { socket: server.socket(), piece: Piece::Own(bytes) });
    }

    #[inline]
    pub(super) fn server_sent(&mut self, key: ServerKey, bytes: usize) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.unsent = server.unsent.saturating_sub(bytes);
        if server.unsent > UNSENT_BYTES_LOW {
            return;
        }
        match server.state {
            State::Linked(client) => {
                // The answer may have come before we learned that the last byte of the question had left.
                if server.unsent == 0 && server.owed.is_settled() {
                    self.ready(key, client);
                }
                self.server_has_room(client, key);
            }
            State::Draining(_) | State::Cleaning(_) => self.advance_cleaning(key),
            _ => {}
        }
    }

    /// The client has room again.
    #[inline]
    pub(super) fn resume_server(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        if !server.receiving {
            server.receiving = true;
            self.effects.push(Effect::Receive { socket: server.socket(), on: true });
        }
    }

    // ---- the end ----

    /// The client of this server leaves. The server is heard out and cleaned where it can be brought to rest for
    /// certain, else closed. Returns whether the client can still be told something: the stream to it is between
    /// two messages, and the server has not said goodbye itself.
    pub(super) fn abandon(&mut self, key: ServerKey, within_body: bool) -> bool {
        let Some(server) = self.servers.get_mut(key) else { return true };
        if matches!(server.state, State::Closing) {
            return !server.said_goodbye && !server.framer.is_within_body();
        }
        let can_speak = !server.said_goodbye && !server.framer.is_within_body();
        if within_body {
            self.close_server(key, "its client left in the middle of a message");
        } else if server.owed.copies_in() {
            self.close_server(key, "its client left in the middle of a COPY");
        } else if !server.owed.settles_by_itself() && !server.owed.in_doubt() {
            // A Sync ends the batch that the client left open.
            server.owed.sent(frontend::tag::SYNC);
            self.send_to_server(key, Bytes::from_static(b"S\0\0\0\x04"));
            self.hear_out(key);
        } else if server.owed.in_doubt() {
            self.close_server(key, "nobody knows whether it has more to say");
        } else {
            self.hear_out(key);
        }
        can_speak
    }

    fn hear_out(&mut self, key: ServerKey) {
        self.resume_server(key);
        let Some(server) = self.servers.get_mut(key) else { return };
        server.state = State::Draining(DRAINED_BYTES_MAX);
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, self.now + DRAIN_MAX);
        self.advance_cleaning(key);
    }

    /// Closes a server: politely if it is between two messages, with a cancel request if it is busy. Its permit
    /// comes back when PostgreSQL has closed its side.
    pub(super) fn close_server(&mut self, key: ServerKey, reason: &str) {
        let Some(server) = self.servers.get_mut(key) else { return };
        if matches!(server.state, State::Closing) {
            return;
        }
        let busy = !server.owed.is_settled();
        let cancel = if busy { server.key.clone() } else { None };
        if let Some(key) = cancel {
            self.effects.push(Effect::Cancel { socket: server.socket(), key });
        }
        if !busy && server.unsent == 0 {
            self.send_to_server(key, frontend::terminate());
        }
        self.log_close(key, reason);
        let linger = self.config.timeouts.server_close;
        self.end_server(key, Some(linger));
    }

    /// Closes a server that broke the protocol, or ended: there is nothing more to say to it.
    fn close_broken(&mut self, key: ServerKey, reason: &str) {
        self.log_close(key, reason);
        self.end_server(key, Some(self.config.timeouts.server_close));
    }

    fn log_close(&mut self, key: ServerKey, reason: &str) {
        let Some(server) = self.servers.get(key) else { return };
        let (id, session, age) = (server.id, server.last_session, self.now.since(server.opened));
        let level = if self.config.log.disconnections { LogLevel::Info } else { LogLevel::Debug };
        self.log(level, session, Some(id), || {
            format!("server closing because: {reason} (age={:.3}s)", age.as_secs_f64())
        });
    }

    fn end_server(&mut self, key: ServerKey, linger: Option<Duration>) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let state = std::mem::replace(&mut server.state, State::Closing);
        server.deadline.clear();
        let (socket, route, endpoint) = (server.socket(), server.route, server.endpoint);
        match state {
            State::Closing => return,
            State::Idle => {
                if let Some(route) = self.routes.get_mut(route) {
                    route.pool.remove_idle(key);
                }
            }
            _ => {}
        }
        self.endpoints[endpoint].closing += 1;
        self.effects.push(Effect::Close { socket, linger });
    }

    pub(super) fn server_ended(&mut self, key: ServerKey, error: Option<i32>) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.unsent = 0;
        let what = match error {
            None => "the server closed the connection".to_owned(),
            Some(errno) => {
                format!("the server connection failed: {}", std::io::Error::from_raw_os_error(errno))
            }
        };
        match server.state {
            State::Closing | State::Dialing => {}
            State::Login(_) => {
                let (endpoint, route) = (server.endpoint, server.route);
                self.dial_failed(endpoint, route, format!("{what} during login"));
                self.log_close(key, &what);
                self.end_server(key, None);
            }
            State::Linked(client) => {
                self.log_close(key, &what);
                self.end_server(key, None);
                self.lose_server(client, what);
            }
            _ => {
                self.log_close(key, &what);
                self.end_server(key, None);
            }
        }
    }

    /// The client's server is gone. Bytes once sent to a server are never sent again: the client must know.
    fn lose_server(&mut self, client: ClientKey, what: String) {
        let refusal = Refusal::new(SqlState::CONNECTION_FAILURE, what);
        let reason = refusal.to_string();
        self.leave(client, Some(Goodbye::Refusal(refusal)), &reason);
    }

    pub(super) fn condemn_server(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get(key) else { return };
        if let State::Linked(client) = server.state {
            return self.condemn_client(client);
        }
        self.condemn_server_alone(key);
    }

    pub(super) fn condemn_server_alone(&mut self, key: ServerKey) {
        if self.servers.get(key).is_some_and(|server| server.socket.is_some()) {
            self.close_broken(key, "internal error");
        }
    }

    // ---- deadlines and draining ----

    pub(super) fn server_alarm(&mut self, key: ServerKey, rang: Instant) {
        let Some(server) = self.servers.get_mut(key) else { return };
        if !self.deadlines.is_due(Alarm::Server(key), &mut server.deadline, rang, self.now) {
            return;
        }
        match &server.state {
            State::Login(_) => {
                let (endpoint, route) = (server.endpoint, server.route);
                self.dial_failed(endpoint, route, "server_connect_timeout during login".into());
                self.log_close(key, "server_connect_timeout during login");
                self.end_server(key, None);
            }
            State::Idle => {
                let reason = if server.expires <= self.now { "server_lifetime" } else { "server_idle_timeout" };
                self.close_server(key, reason);
            }
            State::Draining(_) => self.close_server(key, "it was busy for too long after its client had left"),
            State::Cleaning(_) => self.close_server(key, "cleaning it took too long"),
            State::Dialing | State::Linked(_) | State::Closing => {}
        }
    }

    pub(super) fn drain_server(&mut self, key: ServerKey) {
        if self.servers.get(key).is_some_and(|server| matches!(server.state, State::Idle)) {
            self.close_server(key, "shutting down");
        }
    }
}

/// Goes through the bytes of a linked server from `at` on, up to the end of the answer: what may go to its client, and
/// what it means for the account.
#[inline]
fn read_answer(server: &mut Server, bytes: &[u8], at: &mut usize) -> Answer {
    let mut answer = Answer { kept: Kept::default(), range: *at..*at, broken: None, goodbye: None, ready: false };
    let kept = server.framer.kept();
    loop {
        let segment = match server.framer.next(bytes, at, backend::longest) {
            Ok(Some(segment)) => segment,
            Ok(None) => return answer,
            Err(error) => return answer.broken(server, at, error.to_string()),
        };
        if segment.begins {
            if let Err(nonsense) = server.owed.received(segment.tag) {
                return answer.broken(server, at, nonsense.to_string());
            }
            if segment.carried > 0 {
                answer.kept = kept;
            }
        }
        answer.range.end = segment.range.end;
        match segment.tag {
            tag::READY_FOR_QUERY if segment.ends => {
                match bytes.get(segment.range.end - 1).and_then(|&byte| Status::from_byte(byte)) {
                    Some(status) => server.status = status,
                    None => {
                        return answer.broken(server, at, "a transaction status that does not exist".into());
                    }
                }
                answer.ready = true;
                if server.owed.is_settled() {
                    return answer;
                }
            }
            tag::ERROR_RESPONSE => {
                let report = server.hear(&segment, bytes).map(|body| Report::read(&body));
                answer.goodbye = report.filter(Report::is_fatal).or(answer.goodbye);
            }
            _ => {}
        }
    }
}

/// Messages of an unlinked server that are read; all others only count.
fn is_understood(message: u8) -> bool {
    matches!(
        message,
        tag::READY_FOR_QUERY
            | tag::NOTICE_RESPONSE
            | tag::NOTIFICATION_RESPONSE
            | tag::ERROR_RESPONSE
            | tag::PARAMETER_STATUS
    )
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

/// How long a rollback or a reset may take.
const CLEAN_MAX: Duration = Duration::from_secs(5);
