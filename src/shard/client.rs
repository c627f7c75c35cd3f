//! The clients of a shard: login, waiting, talking, leaving.

use super::{Alarm, ClientKey, Deadline, Effect, Party, Peer, Piece, RouteKey, ServerKey, Shard, console};
use crate::config::{LogLevel, NAME_BYTES_MAX};
use crate::guard::Kinds;
use crate::ids::{Owner, RouteName, SessionId, ShardId, SocketId};
use crate::limits::{OWED_REPLIES_MAX, UNSENT_BYTES_HIGH, UNSENT_BYTES_LOW};
use crate::parameters::Values;
use crate::prepared::{Names, Unnamed};
use crate::session::{End, Opening, Session, Until};
use crate::time::Instant;
use crate::wire::startup::{self, Packet, Startup, StartupError};
use crate::wire::{Refusal, SqlState, backend};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;
use std::time::Duration;

/// A client: what a shard remembers of it while it is idle, and little more while it is not.
pub struct Client {
    pub(super) socket: SocketId,
    pub(super) session_id: SessionId,
    pub(super) state: State,
    pub(super) route: Option<RouteKey>,
    pub(super) session: Session,
    /// Its prepared statements.
    pub(super) names: Option<Box<Names>>,
    /// And that without a name.
    pub(super) unnamed: Unnamed,
    /// Bytes received that cannot go on yet.
    pub(super) pending: Vec<u8>,
    /// What those have to wait for although there is a server.
    pub(super) until: Option<Until>,
    /// Bytes handed to the ring that have not left.
    pub(super) unsent: u32,
    receiving: bool,
    /// What it was seen leaving behind: told once each.
    pub(super) leaves: Kinds,
    surplus: bool,
    /// It was to move to another shard once: it does not again.
    pub(super) steered: bool,
    /// The minor version of the protocol that it speaks.
    pub(super) minor: u16,
    /// It was told that it waits.
    pub(super) notified: bool,
    /// Its session's parameters; while it logs in, those it asks for.
    pub(super) values: Arc<Values>,
    pub(super) deadline: Deadline,
    pub(super) connected: Instant,
    /// How long it may wait: as it was when it began to, whatever a reload says meanwhile.
    pub(super) patience: Option<Duration>,
    /// Since when it waits.
    pub(super) since: Instant,
    pub(super) peer: Peer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Has not sent its startup packet; whether it asked for encryption in vain (TLS, GSS).
    Startup { asked_tls: bool, asked_gss: bool },
    /// Is being taken out of the ring, to go to another shard; whether it ended since, and how.
    Moving { to: ShardId, ended: Option<Option<i32>> },
    /// Is a cancel request that is being dealt with.
    Cancelling,
    /// Is let in as soon as a server has said what it reports, and accepted what this client asks for.
    AwaitParameters,
    /// Has a server that is asked whether it accepts that.
    Checking(ServerKey),
    /// Between transactions.
    Idle,
    /// Has a query, and no server yet.
    Waiting,
    /// Has a server.
    Linked(ServerKey),
    /// Uses the console, and may ask.
    Console,
    /// Uses the console, and has asked.
    ConsoleWaiting,
    /// Is told why, and closed.
    Leaving,
}

impl State {
    pub(super) const STARTUP: Self = Self::Startup { asked_tls: false, asked_gss: false };
}

impl Client {
    pub(super) fn new(socket: SocketId, session_id: SessionId, peer: Peer, connected: Instant) -> Self {
        Self {
            socket,
            session_id,
            state: State::STARTUP,
            route: None,
            session: Session::default(),
            names: None,
            unnamed: Unnamed::default(),
            pending: Vec::new(),
            until: None,
            unsent: 0,
            receiving: true,
            leaves: Kinds::NONE,
            surplus: false,
            steered: false,
            minor: 0,
            notified: false,
            values: Arc::default(),
            deadline: Deadline::default(),
            connected,
            patience: None,
            since: connected,
            peer,
        }
    }
}

impl Shard {
    /// A client connected. `surplus` says that the process has all the clients it may have: this one will be told so.
    /// Returns whose its socket is.
    pub fn accepted(&mut self, socket: SocketId, peer: Peer, surplus: bool) -> Owner {
        let mut client = Client::new(socket, self.ids.session(), peer, self.now);
        client.surplus = surplus;
        let key = self.clients.insert(client);
        self.begin_session(key);
        Party::Client(key).to_owner()
    }

    /// Listens to a client that has not logged in, and reads what it may have said already.
    pub(super) fn begin_session(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let (socket, connected) = (client.socket, client.connected);
        client.receiving = true;
        self.set_client_deadline(key, connected.deadline(self.config.timeouts.client_login));
        self.effects.push(Effect::Receive { socket, on: true });
        if self.draining {
            self.drain_client(key);
        } else {
            self.read_startup(key);
        }
    }

    #[inline]
    pub(super) fn client_received(&mut self, key: ClientKey, bytes: &[u8]) {
        self.stats.received += bytes.len() as u64;
        let Some(client) = self.clients.get_mut(key) else { return };
        match client.state {
            State::Linked(server) => self.pass_received(key, server, bytes),
            State::Idle if client.pending.is_empty() => self.open_received(key, bytes),
            State::Cancelling | State::Leaving => {}
            state => {
                client.pending.extend_from_slice(bytes);
                match state {
                    State::Startup { .. } => self.read_startup(key),
                    State::Moving { .. } => {}
                    State::Idle => self.open_pending(key),
                    State::Console => self.read_commands(key),
                    _ => self.hold_back(key),
                }
            }
        }
    }

    /// Stops a client that sends more than may wait.
    pub(super) fn hold_back(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.pending.len() > UNSENT_BYTES_HIGH {
            self.pause_client(key);
        }
    }

    // ---- login ----

    fn read_startup(&mut self, key: ClientKey) {
        loop {
            let Some(client) = self.clients.get_mut(key) else { return };
            let State::Startup { asked_tls, asked_gss } = client.state else { return };
            let (packet, used) = match startup::read(&client.pending) {
                Ok(None) => return,
                Ok(Some(found)) => found,
                Err(error) => {
                    let code = match error {
                        StartupError::Version(..) => SqlState::FEATURE_NOT_SUPPORTED,
                        _ => SqlState::PROTOCOL_VIOLATION,
                    };
                    return self.refuse(key, Refusal::new(code, error.to_string()));
                }
            };
            if let Packet::Startup(startup) = packet {
                return self.login(key, &startup, used);
            }
            client.pending.drain(..used);
            match packet {
                Packet::Ssl if !asked_tls => {
                    self.deny_encryption(key, State::Startup { asked_tls: true, asked_gss })
                }
                Packet::Gss if !asked_gss => {
                    self.deny_encryption(key, State::Startup { asked_tls, asked_gss: true })
                }
                Packet::Ssl | Packet::Gss => {
                    return self.refuse(key, protocol_violation("encryption was already denied"));
                }
                Packet::Cancel { process, key: claimed } => return self.cancel_asked(key, process, claimed),
                Packet::Startup(_) => unreachable!("a startup packet was read above"),
            }
        }
    }

    fn deny_encryption(&mut self, key: ClientKey, next: State) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if !client.pending.is_empty() {
            // Bytes sent before our answer would be taken for encrypted ones by whoever put them there.
            let refusal = protocol_violation("received unencrypted data after a request for encryption");
            return self.refuse(key, refusal);
        }
        client.state = next;
        self.send_to_client(key, Bytes::from_static(b"N"));
    }

    /// The startup packet has come, in the first `used` of the bytes kept.
    fn login(&mut self, key: ClientKey, startup: &Startup, used: usize) {
        if console::is_wanted(startup) {
            return self.let_in_to_console(key, startup, used);
        }
        let Some(client) = self.clients.get(key) else { return };
        let route = match client.surplus {
            true => Err(too_many_clients()),
            false => self.asked_route(startup, client.session_id),
        };
        match route {
            Err(refusal) => self.refuse(key, refusal),
            Ok(route) => match self.home_elsewhere(key, &route) {
                Some(home) => self.steer(key, home),
                None => self.let_in(key, startup, used, &route),
            },
        }
    }

    fn let_in_to_console(&mut self, key: ClientKey, startup: &Startup, used: usize) {
        self.log_login(key, startup);
        self.negotiate(key, startup);
        if let Some(client) = self.clients.get_mut(key) {
            client.pending.drain(..used);
        }
        self.enter_console(key, startup);
    }

    fn let_in(&mut self, key: ClientKey, startup: &Startup, used: usize, route: &RouteName) {
        let Some(peer) = self.clients.get(key).map(|client| client.peer) else { return };
        let wishes = match self.wishes(startup, peer) {
            Ok(wishes) => wishes,
            Err(refusal) => return self.refuse(key, refusal),
        };
        self.log_login(key, startup);
        self.negotiate(key, startup);
        let own = route.session.is_some();
        let route = self.route_named(route);
        let Some(client) = self.clients.get_mut(key) else { return };
        // Replication commands are simple queries.
        if self.config.disable_pqexec && !own {
            client.session.allow_extended_only();
        }
        client.pending.drain(..used);
        client.route = Some(route);
        client.state = State::AwaitParameters;
        if !wishes.is_empty() {
            client.values = self.registry.share(wishes);
        }
        let steered = client.session_id.origin() != self.id;
        if let Some(route) = self.routes.get_mut(route) {
            route.counts.steered += u64::from(steered);
        }
        match own {
            true => self.enter_own_route(key, route, startup),
            false => self.enter_route(key, route),
        }
    }

    /// Settles the minor version of the protocol, and says so if it is not the one that was asked for, or if options of the
    /// protocol were asked for.
    fn negotiate(&mut self, key: ClientKey, startup: &Startup) {
        let (minor, options) = (startup.negotiated_minor(), startup.protocol_options());
        if let Some(client) = self.clients.get_mut(key) {
            client.minor = minor;
        }
        if minor < startup.minor || !options.is_empty() {
            let mut answer = BytesMut::new();
            backend::put_negotiate_protocol_version(&mut answer, minor, &options);
            self.send_to_client(key, answer.freeze());
        }
    }

    fn asked_route(&self, startup: &Startup, session: SessionId) -> Result<RouteName, Refusal> {
        let user = startup.get("user").unwrap_or_default();
        if user.is_empty() {
            let text = "no PostgreSQL user name specified in startup packet";
            return Err(Refusal::new(SqlState::INVALID_AUTHORIZATION, text));
        }
        let database = startup.get("database").filter(|name| !name.is_empty()).unwrap_or(user);
        for (what, name) in [("user", user), ("database", database)] {
            if name.len() > NAME_BYTES_MAX {
                let text = format!(
                    "the {what} name has {} bytes; PostgreSQL's limit is {NAME_BYTES_MAX}",
                    name.len()
                );
                return Err(Refusal::new(SqlState::INVALID_AUTHORIZATION, text));
            }
        }
        match startup.replication() {
            Ok(None) => self.route_name(database, user),
            Ok(Some(kind)) => self.own_route_name(kind, database, user, session),
            Err(value) => {
                let text = format!("invalid value for parameter \"replication\": \"{value}\"");
                let refusal = Refusal::new(SqlState::INVALID_PARAMETER_VALUE, text);
                Err(refusal.hint("Valid values are: \"false\", 0, \"true\", 1, \"database\"."))
            }
        }
    }

    fn log_login(&mut self, key: ClientKey, startup: &Startup) {
        let Some(client) = self.clients.get(key) else { return };
        let (session, peer) = (client.session_id, client.peer);
        let level = if self.config.log.connections { LogLevel::Info } else { LogLevel::Debug };
        self.log(level, Some(session), None, || {
            let user = startup.get("user").unwrap_or_default();
            let database = startup.get("database").unwrap_or(user);
            format!("login: database={database:?} user={user:?} from={peer}")
        });
    }

    /// The server's parameters are known: the client is in.
    pub(super) fn welcome(&mut self, key: ClientKey, parameters: &crate::server::Parameters) {
        let Some(client) = self.clients.get_mut(key) else { return };
        debug_assert!(matches!(client.state, State::AwaitParameters));
        client.state = State::Idle;
        self.greet(key, parameters);
        self.became_idle(key);
    }

    /// Tells a client that it is in, and all that PostgreSQL tells at that moment.
    pub(super) fn greet(&mut self, key: ClientKey, parameters: &crate::server::Parameters) {
        let Some(client) = self.clients.get(key) else { return };
        let mut greeting = BytesMut::with_capacity(512);
        backend::put_authentication_ok(&mut greeting);
        for (name, value) in parameters.iter() {
            let value = client.values.get(name).map_or(value, |own| own);
            backend::put_parameter_status(&mut greeting, name, value);
        }
        self.put_cancel_key(key, &mut greeting);
        backend::put_ready_for_query(&mut greeting);
        self.stats.logins += 1;
        self.send_to_client(key, greeting.freeze());
    }

    // ---- talking ----

    /// Bytes of a client without a server and with nothing kept.
    #[inline]
    fn open_received(&mut self, key: ClientKey, bytes: &[u8]) {
        let Some(client) = self.clients.get_mut(key) else { return };
        match client.session.opening(bytes) {
            // The common case: whole queries, and a server is idle. Nothing is copied.
            Opening::NeedsServer(0) if self.link_idle(key) => {
                let Some(State::Linked(server)) = self.clients.get(key).map(|client| client.state) else {
                    return;
                };
                self.pass_received(key, server, bytes);
            }
            Opening::NeedsServer(at) | Opening::Incomplete(at) => {
                if let Some(client) = self.clients.get_mut(key) {
                    client.pending.extend_from_slice(&bytes[at..]);
                    self.open_pending(key);
                }
            }
            Opening::Synced(at) => {
                if let Some(client) = self.clients.get_mut(key) {
                    client.pending.extend_from_slice(&bytes[at..]);
                    self.answer_sync(key);
                }
            }
            Opening::Terminate => self.leave(key, None, "client close request"),
            Opening::Broken(refusal) => self.refuse(key, refusal),
        }
    }

    /// Ends the answer to a batch that was cancelled before it got a server.
    fn answer_sync(&mut self, key: ClientKey) {
        let mut answer = BytesMut::with_capacity(6);
        backend::put_ready_for_query(&mut answer);
        self.send_to_client(key, answer.freeze());
        self.open_pending(key);
    }

    /// Looks at what an idle client has kept.
    pub(super) fn open_pending(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.pending.is_empty() || client.state != State::Idle {
            return;
        }
        match client.session.opening(&client.pending) {
            Opening::Incomplete(at) => {
                client.pending.drain(..at);
                if client.pending.is_empty() {
                    client.pending = Vec::new();
                }
            }
            Opening::NeedsServer(at) => {
                client.pending.drain(..at);
                if self.link_idle(key) {
                    self.pass_pending(key);
                } else {
                    self.wait_for_server(key);
                }
            }
            Opening::Synced(at) => {
                client.pending.drain(..at);
                self.answer_sync(key);
            }
            Opening::Terminate => self.leave(key, None, "client close request"),
            Opening::Broken(refusal) => self.refuse(key, refusal),
        }
    }

    /// A client that was about to talk has nothing to wait for any more.
    pub(super) fn became_idle(&mut self, key: ClientKey) {
        self.set_client_deadline(key, self.now.deadline(self.config.timeouts.client_idle));
        self.resume_receiving(key);
        self.open_pending(key);
    }

    pub(super) fn end_session(&mut self, key: ClientKey, end: End) {
        match end {
            End::Terminate => self.leave(key, None, "client close request"),
            End::Broken(refusal) => self.refuse(key, refusal),
        }
    }

    /// The client's transaction is over and its server taken away.
    #[inline]
    pub(super) fn unlink_client(&mut self, key: ClientKey) {
        let idle_deadline = self.now.deadline(self.config.timeouts.client_idle);
        let Some(client) = self.clients.get_mut(key) else { return };
        client.state = State::Idle;
        client.until = None;
        client.pending.extend_from_slice(client.session.take_kept().as_slice());
        client.deadline.clear();
        if idle_deadline != Instant::NEVER {
            self.set_client_deadline(key, idle_deadline);
        }
        if self.draining {
            self.drain_client(key);
        } else {
            self.resume_receiving(key);
        }
    }

    /// The client's server is in a transaction and waits for it to say more.
    pub(super) fn idle_in_transaction(&mut self, key: ClientKey) {
        let timeout = self.config.timeouts.idle_transaction;
        if timeout.is_some() {
            self.set_client_deadline(key, self.now.deadline(timeout));
        }
    }

    /// Receives again, if it was stopped.
    pub(super) fn resume_receiving(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if !client.receiving {
            client.receiving = true;
            self.effects.push(Effect::Receive { socket: client.socket, on: true });
        }
    }

    // ---- sending ----

    /// Bytes of our own. Returns true if the server should pause.
    pub(super) fn send_to_client(&mut self, key: ClientKey, bytes: Bytes) -> bool {
        let Some(client) = self.clients.get_mut(key) else { return false };
        client.unsent += bytes.len() as u32;
        self.stats.sent += bytes.len() as u64;
        self.effects.push(Effect::Send { socket: client.socket, piece: Piece::Own(bytes) });
        client.unsent as usize > UNSENT_BYTES_HIGH
    }

    /// A server's bytes: `header` (what was kept of a header) and a range of what was received. Returns true if
    /// the server should pause.
    #[inline]
    pub(super) fn answer_client(
        &mut self,
        key: ClientKey,
        header: &[u8],
        range: std::ops::Range<usize>,
    ) -> bool {
        let Some(client) = self.clients.get_mut(key) else { return false };
        let bytes = header.len() + range.len();
        client.unsent += bytes as u32;
        self.stats.sent += bytes as u64;
        if !header.is_empty() {
            let piece = Piece::Own(Bytes::copy_from_slice(header));
            self.effects.push(Effect::Send { socket: client.socket, piece });
        }
        if !range.is_empty() {
            self.effects.push(Effect::Send { socket: client.socket, piece: Piece::Received(range) });
        }
        client.unsent as usize > UNSENT_BYTES_HIGH
    }

    #[inline]
    pub(super) fn client_sent(&mut self, key: ClientKey, bytes: usize) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.unsent = client.unsent.saturating_sub(bytes as u32);
        if client.unsent as usize <= UNSENT_BYTES_LOW {
            match client.state {
                State::Linked(server) => self.resume_server(server),
                State::Console => self.read_commands(key),
                _ => {}
            }
        }
    }

    /// Not everything left after all: the server pauses.
    pub(super) fn client_unsent(&mut self, key: ClientKey, bytes: usize) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.unsent += bytes as u32;
        if client.unsent as usize > UNSENT_BYTES_HIGH
            && let State::Linked(server) = client.state
        {
            self.pause_server(server);
        }
    }

    /// The client is stopped: its server has enough to do.
    pub(super) fn pause_client(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.receiving {
            client.receiving = false;
            self.effects.push(Effect::Receive { socket: client.socket, on: false });
        }
    }

    /// The server has room again, or answered: its client may go on.
    #[inline]
    pub(super) fn server_has_room(&mut self, key: ClientKey, server: ServerKey) {
        let Some(client) = self.clients.get(key) else { return };
        if client.receiving {
            return;
        }
        let Some(server) = self.servers.get(server) else { return };
        if server.unsent() <= UNSENT_BYTES_LOW && server.owed.len() <= OWED_REPLIES_MAX / 2 {
            self.resume_receiving(key);
        }
    }

    // ---- leaving ----

    /// Sends a client away with an error.
    pub(super) fn refuse(&mut self, key: ClientKey, refusal: Refusal) {
        let reason = refusal.to_string();
        self.leave(key, Some(Goodbye::Refusal(refusal)), &reason);
    }

    /// Sends a client away with an error as the server wrote it.
    pub(super) fn refuse_with(&mut self, key: ClientKey, error: Bytes, reason: &str) {
        self.leave(key, Some(Goodbye::Message(error)), reason);
    }

    /// Ends a session: its server is given up, its place in a queue too, and the connection is closed.
    pub(super) fn leave(&mut self, key: ClientKey, goodbye: Option<Goodbye>, reason: &str) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let state = std::mem::replace(&mut client.state, State::Leaving);
        if state == State::Leaving {
            return;
        }
        client.pending = Vec::new();
        client.deadline.clear();
        let (socket, session_id, route) = (client.socket, client.session_id, client.route.take());
        let stayed = self.now.since(client.connected);
        let within_body = client.session.is_within_body();
        let mut can_speak = true;
        match state {
            State::Linked(server) | State::Checking(server) => can_speak = self.abandon(server, within_body),
            State::Waiting | State::AwaitParameters => self.forget_waiting(route, key),
            State::ConsoleWaiting => self.forget_asking(key),
            State::Startup { .. }
            | State::Moving { .. }
            | State::Cancelling
            | State::Idle
            | State::Console
            | State::Leaving => {}
        }
        if let Some(goodbye) = goodbye.filter(|_| can_speak) {
            let message = goodbye.into_message(session_id);
            self.send_to_client(key, message);
        }
        let unsent = self.clients.get(key).is_some_and(|client| client.unsent > 0);
        let linger = unsent.then_some(LINGER);
        self.effects.push(Effect::Close { socket, linger });
        if let Some(route) = route {
            self.forget_check(route, key);
            self.leave_route(route, stayed);
        }
        self.log_leave(key, session_id, reason);
    }

    fn log_leave(&mut self, key: ClientKey, session: SessionId, reason: &str) {
        let Some(client) = self.clients.get(key) else { return };
        let (age, peer) = (self.now.since(client.connected), client.peer);
        let level = if self.config.log.disconnections { LogLevel::Info } else { LogLevel::Debug };
        self.log(level, Some(session), None, || {
            format!("client {peer} closing because: {reason} (age={:.3}s)", age.as_secs_f64())
        });
    }

    pub(super) fn client_ended(&mut self, key: ClientKey, error: Option<i32>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if let State::Moving { ended, .. } = &mut client.state {
            *ended = Some(error);
            return;
        }
        // Whatever is unsent will never be read.
        client.unsent = 0;
        let reason = match error {
            None => "client unexpected eof".to_owned(),
            Some(errno) => format!("client connection failed: {}", std::io::Error::from_raw_os_error(errno)),
        };
        self.leave(key, None, &reason);
    }

    // ---- deadlines and draining ----

    pub(super) fn set_client_deadline(&mut self, key: ClientKey, at: Instant) {
        let Some(client) = self.clients.get_mut(key) else { return };
        self.deadlines.set(Alarm::Client(key), &mut client.deadline, at);
    }

    pub(super) fn client_alarm(&mut self, key: ClientKey, rang: Instant) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if !self.deadlines.is_due(Alarm::Client(key), &mut client.deadline, rang, self.now) {
            return;
        }
        let state = client.state;
        match state {
            State::Cancelling => self.leave(key, None, "cancel request, client_login_timeout"),
            State::Startup { .. } => {
                let refusal = Refusal::new(SqlState::PROTOCOL_VIOLATION, "client_login_timeout");
                self.refuse(key, refusal.hint("The startup packet did not come in time."));
            }
            State::Waiting => self.waited(key),
            State::AwaitParameters | State::Checking(_) => self.waited_too_long(key),
            State::Linked(server) if self.rests(server) => self.idle_too_long(key),
            State::Idle => self.idle_too_long(key),
            State::Linked(_) => {
                let refusal = Refusal::new(SqlState::IDLE_IN_TRANSACTION_TIMEOUT, "idle_transaction_timeout");
                self.refuse(key, refusal.hint("The transaction was rolled back."));
            }
            State::ConsoleWaiting => self.reload_took_too_long(key),
            State::Moving { .. } | State::Console | State::Leaving => {}
        }
    }

    fn rests(&self, server: ServerKey) -> bool {
        self.servers.get(server).is_some_and(|server| server.is_at_rest())
    }

    fn idle_too_long(&mut self, key: ClientKey) {
        self.refuse(key, Refusal::new(SqlState::IDLE_SESSION_TIMEOUT, "client_idle_timeout"));
    }

    pub(super) fn drain_client(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get(key) else { return };
        let at_boundary = match client.state {
            State::Linked(server) => {
                let replicates = |server| self.replicates_without_end(server);
                self.rests(server) || self.servers.get(server).is_some_and(replicates)
            }
            State::Moving { .. } | State::Cancelling | State::Leaving => false,
            _ => true,
        };
        if at_boundary {
            let text = "terminating connection due to administrator command";
            self.refuse(key, Refusal::new(SqlState::ADMIN_SHUTDOWN, text).hint("pgpinion is shutting down."));
        }
    }

    /// The session's name, for the log.
    pub(super) fn session_of(&self, key: ClientKey) -> Option<SessionId> {
        self.clients.get(key).map(|client| client.session_id)
    }
}

/// The last thing a client is told.
pub(super) enum Goodbye {
    Refusal(Refusal),
    Message(Bytes),
}

impl Goodbye {
    fn into_message(self, session: SessionId) -> Bytes {
        match self {
            Self::Refusal(refusal) => refusal.to_message(&format!("pgpinion session {session}")),
            Self::Message(bytes) => bytes,
        }
    }
}

fn too_many_clients() -> Refusal {
    Refusal::new(SqlState::TOO_MANY_CONNECTIONS, "no more connections allowed (max_client_conn)")
}

fn protocol_violation(text: &'static str) -> Refusal {
    Refusal::new(SqlState::PROTOCOL_VIOLATION, text)
}

/// How long a client that was sent away may take to read why.
const LINGER: std::time::Duration = std::time::Duration::from_secs(1);
