//! The servers of a shard, and their answers. How they log in is in `login`, how they end in `farewell`.

use super::cancel::Cancelling;
use super::check::Errand;
use super::hand_over::Departure;
use super::parameters::resets;
use super::{Alarm, ClientKey, Deadline, Effect, Piece, RouteKey, ServerKey, Shard};
use crate::config::{LogLevel, PoolMode};
use crate::guard::Kinds;
use crate::ids::{ConnectionId, SessionId, ShardId, SocketId};
use crate::ledger::Permit;
use crate::limits::{
    DRAIN_MAX, DRAINED_BYTES_MAX, LOW_WATER_BYTES, UNDERSTOOD_BYTES_MAX, UNSENT_BYTES_HIGH, UNSENT_BYTES_LOW,
};
use crate::parameters::Values;
use crate::prepared::{Edit, Names, OnServer, Show, Unnamed};
use crate::server::{Login, Nonsense, Owed};
use crate::time::Instant;
use crate::wire::backend::{self, Status, tag};
use crate::wire::error::Report;
use crate::wire::{Framer, Kept, Refusal, Segment, SqlState};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// A server connection.
pub struct Server {
    pub(super) id: ConnectionId,
    pub(super) route: RouteKey,
    pub(super) endpoint: usize,
    pub(super) permit: Permit,
    /// The share knows that it ends.
    pub(super) end_is_counted: bool,
    /// Another shard, to which it was moving, counts it already.
    pub(super) counted_by: Option<ShardId>,
    /// Its client keeps it.
    pub(super) pinned: bool,
    /// What its clients have left in its session since it was cleaned.
    pub(super) leaks: Kinds,
    pub(super) state: State,
    pub(super) socket: Option<SocketId>,
    pub(super) owed: Owed,
    pub(super) statements: OnServer,
    pub(super) framer: Framer,
    /// Of the last ReadyForQuery.
    pub(super) status: Status,
    /// A command was completed since then.
    pub(super) completed: bool,
    pub(super) unsent: usize,
    pub(super) receiving: bool,
    /// What arrives is told from so many bytes on.
    low_water: u32,
    /// The body of a message that we read ourselves, as far as it has come.
    pub(super) heard: Vec<u8>,
    /// It describes a statement to us.
    pub(super) collects: bool,
    /// What is to be changed in the error it is saying.
    pub(super) edit: Option<Edit>,
    /// It said why it ends: its client need not be told again.
    pub(super) said_goodbye: bool,
    pub(super) opened: Instant,
    /// When its `server_lifetime` is over.
    pub(super) expires: Instant,
    /// When it came from work: it was alive then.
    pub(super) proven: Instant,
    pub(super) deadline: Deadline,
    pub(super) last_session: Option<SessionId>,
    pub(super) key: Option<(u32, Bytes)>,
    /// A cancel request is under way to it: nobody else may have it until that is over.
    pub(super) cancelling: Option<Box<Cancelling>>,
    /// What its session's parameters are.
    pub(super) values: Arc<Values>,
    /// What they were when it had logged in.
    pub(super) defaults: Arc<Values>,
    /// It is being given its client's, or checked.
    pub(super) replay: Option<Box<Errand>>,
    /// It said that its session was reset.
    pub(super) was_reset: bool,
    /// Why it is closed as soon as it rests.
    pub(super) doomed: Option<&'static str>,
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
    /// Is idle, and in the middle of a message: nobody's until it is through.
    Speaking,
    /// Its client left: it is heard out, for so many bytes more.
    Draining(usize),
    /// It was told to roll back, or to forget the session.
    Cleaning(Cleaning),
    /// Is being taken out of the ring, to go to another shard.
    Moving(Box<Departure>),
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
            end_is_counted: false,
            counted_by: None,
            pinned: false,
            leaks: Kinds::NONE,
            state: State::Dialing,
            socket: None,
            owed: Owed::default(),
            statements: OnServer::default(),
            framer: Framer::default(),
            status: Status::Idle,
            completed: false,
            unsent: 0,
            receiving: false,
            low_water: 1,
            heard: Vec::new(),
            collects: false,
            edit: None,
            said_goodbye: false,
            opened,
            expires,
            proven: opened,
            deadline: Deadline::default(),
            last_session: None,
            key: None,
            cancelling: None,
            values: Arc::default(),
            defaults: Arc::default(),
            replay: None,
            was_reset: false,
            doomed: None,
        }
    }

    #[inline]
    pub(super) fn socket(&self) -> SocketId {
        let Some(socket) = self.socket else { unreachable!("a server is spoken to after it was dialled") };
        socket
    }

    #[inline]
    pub(super) fn unsent(&self) -> usize {
        self.unsent
    }

    /// Nothing is owed, unread or unsent, no transaction is open, and no cancel request is under way.
    #[inline]
    pub(super) fn is_at_rest(&self) -> bool {
        self.status == Status::Idle
            && self.owed.is_settled()
            && !self.owed.in_doubt()
            && self.unsent == 0
            && self.framer.at_boundary()
            && self.cancelling.is_none()
    }

    /// A ReadyForQuery says so. Only a command ends a transaction: PostgreSQL 18 says after a Query within a batch, and the
    /// Sync behind it, that none is open, and fails the next command, whosever that is.
    #[inline]
    pub(super) fn became(&mut self, status: Status) {
        let ended = self.status == Status::Transaction && status == Status::Idle;
        if ended && !self.completed {
            self.doomed = self.doomed.or(Some("its transaction ended without a command"));
        }
        self.status = status;
        self.completed = false;
    }

    /// A transaction is open that is more than one batch.
    fn is_in_transaction(&self) -> bool {
        self.status != Status::Idle && !self.owed.is_within_batch()
    }

    /// Its client has got part of a message.
    pub(super) fn is_within_answer(&self) -> bool {
        self.replay.is_none() && self.framer.is_within_body()
    }

    #[inline]
    pub(super) fn may_be_linked(&self) -> bool {
        matches!(self.state, State::Idle) && self.is_at_rest()
    }

    /// Enters the beginning of a message of the server in the accounts: what the client sees of it. A change that an
    /// error needs is kept until it is whole.
    #[inline]
    pub(super) fn account(&mut self, tag: u8, names: Option<&mut Names>) -> Result<Show, Nonsense> {
        let receipt = self.owed.received(tag)?;
        let (show, edit) = self.statements.received(receipt, names);
        self.edit = edit;
        Ok(show)
    }

    /// The session was reset, by a command whose tag has so many bytes. After `DISCARD ALL`, with nothing sent behind it,
    /// nothing is left of what was.
    fn heard_of_reset(&mut self, tag_bytes: u32) {
        if tag_bytes as usize == b"DISCARD ALL\0".len() && self.owed.len() <= 1 {
            self.leaks = Kinds::NONE;
        }
    }

    pub(super) fn begin_collecting(&mut self) {
        self.heard.clear();
        self.collects = true;
    }

    /// Takes part of a description, whose length is bounded by what a server may say.
    pub(super) fn collect(&mut self, segment: &Segment, bytes: &[u8], names: Option<&mut Names>) {
        self.heard.extend_from_slice(segment.body_part(bytes));
        if segment.ends {
            self.collects = false;
            self.statements.described(segment.tag, &std::mem::take(&mut self.heard), names);
        }
    }

    /// Collects the body of a message that we read; `Some` when it is whole. What is above the limit is left out.
    pub(super) fn hear(&mut self, segment: &Segment, bytes: &[u8]) -> Option<Bytes> {
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
#[derive(Default)]
struct Answer {
    /// This goes first: it came with earlier bytes.
    kept: Kept,
    /// What goes to the client.
    range: Range<usize>,
    /// And this behind it.
    instead: Option<Bytes>,
    /// The server broke the protocol behind that.
    broken: Option<String>,
    /// It said that it ends.
    goodbye: Option<Report>,
    /// A ReadyForQuery was among it.
    ready: bool,
    /// Parameters that it reported.
    reports: Vec<Bytes>,
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
    #[inline]
    pub(super) fn server_received(&mut self, key: ServerKey, bytes: &[u8]) {
        self.server_said(key, bytes);
        if let Some(server) = self.servers.get_mut(key)
            && let Some(socket) = server.socket
        {
            let bytes = low_water(server.framer.missing(), server.low_water);
            if bytes != server.low_water {
                server.low_water = bytes;
                self.effects.push(Effect::LowWater { socket, bytes });
            }
        }
    }

    #[inline]
    fn server_said(&mut self, key: ServerKey, bytes: &[u8]) {
        let Some(server) = self.servers.get_mut(key) else { return };
        match &mut server.state {
            State::Linked(client) => {
                let client = *client;
                self.answer_received(key, client, bytes);
            }
            State::Login(_) => self.login_received(key, bytes),
            State::Idle | State::Speaking | State::Cleaning(_) => self.unlinked_received(key, bytes),
            State::Draining(left) if *left >= bytes.len() => {
                *left -= bytes.len();
                self.unlinked_received(key, bytes);
            }
            State::Draining(_) => self.close_server(key, "too much was left unread by its client"),
            State::Moving(departure) => departure.received(bytes),
            State::Dialing | State::Closing => {}
        }
    }

    /// Bytes of a linked server: on to its client, and an eye on where the answer ends.
    #[inline]
    fn answer_received(&mut self, key: ServerKey, client: ClientKey, bytes: &[u8]) {
        let mut at = 0;
        let route = self.servers.get(key).and_then(|server| self.routes.get(server.route));
        let statement_mode = route.is_some_and(|route| route.mode == PoolMode::Statement);
        while at < bytes.len() {
            let Some(server) = self.servers.get_mut(key) else { return };
            if server.replay.is_some() {
                if self.replay_received(key, client, bytes, &mut at) {
                    continue;
                }
                return;
            }
            let statements =
                self.clients.get_mut(client).map(|client| (&mut client.names, &mut client.unnamed));
            let (names, unnamed) = statements.unzip();
            let names = names.and_then(|names| names.as_deref_mut());
            let answer = read_answer(server, (names, unnamed), bytes, &mut at, statement_mode);
            let settled = server.owed.is_settled();
            let forbidden = statement_mode && answer.ready && server.is_in_transaction();
            let learned = server.statements.take_learned();
            let moves_on = answer.ready || learned || server.owed.copies_in() || server.owed.awaits_sync();
            self.stats.transactions += u64::from(answer.ready && server.status == Status::Idle);
            let ends = answer.goodbye.is_some() && settled;
            if !self.pass_answer(key, client, answer) {
                return;
            }
            if ends {
                // Nothing was asked that it could still answer, and nobody else may get it.
                self.close_broken(key, "it ended the session");
                return self.lose_server(client, "the server ended the session".into());
            }
            if forbidden {
                // What was sent behind it, or is sent before the ring tells that the BEGIN has left, would go on in that
                // transaction.
                self.settled(key, client);
                return self.unlinked_received(key, &bytes[at..]);
            }
            if self.refuse_forsaken(key, client) {
                return self.unlinked_received(key, &bytes[at..]);
            }
            if settled {
                if at < bytes.len() && self.gives_back(key, client) {
                    return self.take_back(key, client, &bytes[at..]);
                }
                self.ready(key, client);
                // They were parted; what is left is not for that client.
                if at < bytes.len() && !self.is_linked(client, key) {
                    return self.unlinked_received(key, &bytes[at..]);
                }
            }
            if moves_on {
                self.go_on(client);
                // It may have left with what it said.
                if at < bytes.len() && !self.is_linked(client, key) {
                    return self.unlinked_received(key, &bytes[at..]);
                }
            }
        }
        self.server_has_room(client, key);
    }

    /// False: the server broke the protocol, and the two are parted.
    #[inline]
    fn pass_answer(&mut self, key: ServerKey, client: ClientKey, answer: Answer) -> bool {
        let mut pause = self.answer_client(client, answer.kept.as_slice(), answer.range);
        if let Some(bytes) = answer.instead {
            pause |= self.send_to_client(client, bytes);
        }
        if let Some(report) = &answer.goodbye {
            self.heard_goodbye(key, report);
        }
        for report in &answer.reports {
            self.reported(key, report);
        }
        if let Some(broken) = answer.broken {
            self.break_link(key, client, broken);
            return false;
        }
        let Some(server) = self.servers.get_mut(key) else { return false };
        if pause && server.receiving {
            self.pause_server(key);
        }
        true
    }

    /// The transaction is over, and with it the client's right to this server.
    pub(super) fn gives_back(&self, key: ServerKey, client: ClientKey) -> bool {
        let Some(server) = self.servers.get(key) else { return false };
        let session_mode = self.routes.get(server.route).is_some_and(|route| route.mode == PoolMode::Session);
        !session_mode && server.is_at_rest() && !self.client_within_body(client) && !self.is_kept(key)
    }

    /// A server says more behind the end of its answer. That is not for the client that gives it back, nor for the
    /// next: it might be the news that the server goes.
    fn take_back(&mut self, key: ServerKey, client: ClientKey, bytes: &[u8]) {
        if self.servers.get(key).is_some_and(|server| server.was_reset) {
            self.restore(key, client);
        }
        self.unlink_client(client);
        let Some(server) = self.servers.get_mut(key) else { return };
        server.state = State::Draining(DRAINED_BYTES_MAX);
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, self.now + DRAIN_MAX);
        self.unlinked_received(key, bytes);
        self.open_pending(client);
    }

    /// After a ReadyForQuery, or when the last byte to the server has left: is the transaction over?
    #[inline]
    fn ready(&mut self, key: ServerKey, client: ClientKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let route = server.route;
        if server.is_at_rest() {
            let was_reset = server.was_reset;
            if !self.client_within_body(client) {
                if was_reset {
                    self.restore(key, client);
                }
                self.release(key, client, route);
            }
        } else if server.owed.is_settled() && server.unsent == 0 && !server.framer.is_within_body() {
            self.settled(key, client);
        }
    }

    /// Something that held a linked server is over, and was no message of its.
    pub(super) fn ready_again(&mut self, key: ServerKey, client: ClientKey) {
        if self.servers.get(key).is_some_and(|server| server.owed.is_settled() && server.unsent == 0) {
            self.ready(key, client);
        }
    }

    /// A request is answered, and everything up to it, but the server is not at rest.
    fn settled(&mut self, key: ServerKey, client: ClientKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let mode = self.routes.get(server.route).map(|route| route.mode);
        if server.status != Status::Idle {
            if mode == Some(PoolMode::Statement) && server.is_in_transaction() {
                let text = "transaction blocks are not allowed in statement pooling mode";
                let refusal = Refusal::new(SqlState::FEATURE_NOT_SUPPORTED, text);
                return self
                    .refuse(client, refusal.hint("Use pool_mode = \"transaction\" for this database."));
            }
            self.idle_in_transaction(client);
        } else if server.owed.in_doubt() && mode != Some(PoolMode::Session) && !self.is_kept(key) {
            self.unlink_client(client);
            self.close_server(key, "nobody knows whether it has more to say");
            self.open_pending(client);
        }
    }

    /// The client might wait for answers that do not come, or read those that come for others: it is sent away, unless the server
    /// is its own. True: it was.
    #[inline]
    pub(super) fn refuse_forsaken(&mut self, key: ServerKey, client: ClientKey) -> bool {
        let forsaken = |server: &&Server| server.owed.has_forsaken() && !server.framer.is_within_body();
        let Some(server) = self.servers.get(key).filter(forsaken) else { return false };
        if self.routes.get(server.route).is_some_and(|route| route.mode == PoolMode::Session) {
            return false;
        }
        let text = "nobody knows what PostgreSQL skips behind a COPY that failed";
        let refusal = Refusal::new(SqlState::PROTOCOL_VIOLATION, text);
        self.refuse(
            client,
            refusal.hint("Send a Sync behind the data of a COPY, and nothing else before it."),
        );
        true
    }

    fn client_within_body(&self, client: ClientKey) -> bool {
        self.clients.get(client).is_some_and(|client| client.session.is_within_body())
    }

    /// The server ends the session and says why; its client has been sent this.
    pub(super) fn heard_goodbye(&mut self, key: ServerKey, report: &Report) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.said_goodbye = true;
        let (id, session) = (server.id, server.last_session);
        self.log(LogLevel::Warn, session, Some(id), || format!("server: {report}"));
    }

    /// The server said something that answers nothing.
    pub(super) fn break_link(&mut self, key: ServerKey, client: ClientKey, what: String) {
        let text = format!("the server broke the protocol: {what}");
        self.close_broken(key, &text);
        self.refuse(client, Refusal::new(SqlState::PROTOCOL_VIOLATION, text));
    }

    // ---- sending ----

    pub(super) fn send_to_server(&mut self, key: ServerKey, bytes: Bytes) {
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
            State::Speaking | State::Draining(_) | State::Cleaning(_) => self.advance_cleaning(key),
            _ => {}
        }
    }

    /// Not everything left after all: the client pauses.
    pub(super) fn server_unsent(&mut self, key: ServerKey, bytes: usize) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.unsent += bytes;
        match server.state {
            State::Linked(client) if server.unsent > UNSENT_BYTES_HIGH => self.pause_client(client),
            State::Idle => self.set_aside(key),
            _ => {}
        }
    }

    /// The server's client has enough to read.
    pub(super) fn pause_server(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        if server.receiving {
            server.receiving = false;
            self.effects.push(Effect::Receive { socket: server.socket(), on: false });
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
}

/// Goes through the bytes of a linked server from `at` on, up to the end of the answer, or to what its client does not
/// see as it is: what may go to its client, and what it means for the account.
#[inline]
fn read_answer(
    server: &mut Server,
    (mut names, mut unnamed): (Option<&mut Names>, Option<&mut Unnamed>),
    bytes: &[u8],
    at: &mut usize,
    statement_mode: bool,
) -> Answer {
    let mut answer = Answer { range: *at..*at, ..Answer::default() };
    let kept = server.framer.kept();
    loop {
        let segment = match server.framer.next(bytes, at, backend::longest) {
            Ok(Some(segment)) => segment,
            Ok(None) => return answer,
            Err(error) => return answer.broken(server, at, error.to_string()),
        };
        if segment.begins {
            let fails = segment.tag == tag::ERROR_RESPONSE;
            let endangered = if fails { server.owed.endangered_group() } else { None };
            match server.account(segment.tag, names.as_deref_mut()) {
                Ok(Show::Pass) => {}
                Ok(Show::Swallow) => return answer,
                Ok(Show::Collect) => server.begin_collecting(),
                Ok(Show::Instead(message)) => {
                    answer.instead = Some(Bytes::from_static(message));
                    return answer;
                }
                Err(nonsense) => return answer.broken(server, at, nonsense.to_string()),
            }
            if fails && let Some(unnamed) = unnamed.as_deref_mut() {
                unnamed.failed(endangered, server.owed.in_doubt());
            }
            if segment.body as usize > UNDERSTOOD_BYTES_MAX {
                server.edit = None;
            }
            if segment.carried > 0 && server.edit.is_none() && !server.collects {
                answer.kept = kept;
            }
        }
        if server.collects {
            server.collect(&segment, bytes, names);
            return answer;
        }
        if segment.tag == tag::ERROR_RESPONSE {
            let withheld = server.edit.is_some();
            if !withheld {
                answer.range.end = segment.range.end;
            }
            let Some(body) = server.hear(&segment, bytes) else {
                if withheld {
                    return answer;
                }
                continue;
            };
            let report = Report::read(&body);
            answer.goodbye = Some(report).filter(Report::is_fatal).or(answer.goodbye);
            if let Some(edit) = server.edit.take() {
                answer.instead = Some(edit.apply(&body, &mut server.statements, names));
                return answer;
            }
            continue;
        }
        answer.range.end = segment.range.end;
        match segment.tag {
            tag::READY_FOR_QUERY if segment.ends => {
                match bytes.get(segment.range.end - 1).and_then(|&byte| Status::from_byte(byte)) {
                    Some(status) => server.became(status),
                    None => {
                        return answer.broken(server, at, "a transaction status that does not exist".into());
                    }
                }
                answer.ready = true;
                if statement_mode && server.is_in_transaction() && segment.begins {
                    // The client is told something else instead.
                    answer.range.end = segment.range.start;
                    answer.kept = if segment.carried > 0 { Kept::default() } else { answer.kept };
                    return answer;
                }
                if server.owed.is_settled() {
                    return answer;
                }
            }
            tag::PARAMETER_STATUS => answer.reports.extend(server.hear(&segment, bytes)),
            tag::COMMAND_COMPLETE => {
                server.completed = true;
                if segment.begins {
                    let names = names.as_deref_mut();
                    server.statements.completed(segment.body_part(bytes), segment.body as usize, names);
                }
                let was_reset = match segment.whole_body(bytes) {
                    Some(body) => resets(body),
                    None => server.hear(&segment, bytes).is_some_and(|body| resets(&body)),
                };
                server.was_reset |= was_reset;
                if was_reset {
                    server.heard_of_reset(segment.body);
                }
            }
            _ => {}
        }
    }
}

/// What a server should be heard of from on: in the middle of a long message, of which PostgreSQL has made all before it sends the
/// first byte, small pieces are not worth waking up for.
#[inline]
fn low_water(missing: u32, current: u32) -> u32 {
    match missing {
        LOW_WATER_BYTES.. => LOW_WATER_BYTES,
        LONG_PIECE_BYTES.. if current > 1 => missing,
        _ => 1,
    }
}

/// The rest of a long message is not waited for if it is less.
const LONG_PIECE_BYTES: u32 = 16 * 1024;
