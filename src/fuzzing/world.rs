//! One shard, its sockets, and who is on the other side of them.

use super::client::{self, Client, Run};
use super::postgres::Postgres;
use crate::cancel_key::Secret;
use crate::config::Config;
use crate::ids::{Owner, ShardId, SocketId};
use crate::shard::{DialError, Effect, Party, Peer, Piece, Server, Shard};
use crate::slab::Key;
use crate::time::Instant;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// See the module.
pub(super) struct World {
    pub shard: Shard,
    run: Run,
    now: Instant,
    sockets: BTreeMap<u32, Socket>,
    next_slot: u32,
    dials: VecDeque<Key<Server>>,
    cancels: VecDeque<Key<Server>>,
    /// By number; who has left is followed by another one.
    pub clients: Vec<Client>,
    logins: usize,
    /// Clients ask for parameters of their own.
    named: bool,
    /// What the ring is at.
    pub ring: Ring,
    /// So many dials will fail.
    pub failing_dials: usize,
    /// The fuzzer has not spoken for any server.
    honest: bool,
}

/// How soon the ring does what it is told. Nothing is late for ever.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ring {
    Prompt,
    /// It does not tell that bytes have left.
    Silent,
    /// It says that bytes have left, which it takes back: they are still there.
    Full,
    /// It neither dials nor closes.
    Slow,
}

struct Socket {
    owner: Owner,
    end: End,
    /// Pieces that the other side has sent; whether they are answers.
    incoming: VecDeque<(Vec<u8>, bool)>,
    receiving: bool,
    /// The other side will send no more; the errno.
    ended: Option<Option<i32>>,
    told_end: bool,
    /// Bytes that have left, of which the shard does not know.
    untold: usize,
    /// Bytes that have not left.
    held: Vec<u8>,
    closing: bool,
}

enum End {
    /// By number.
    Client(usize),
    Server(Box<Postgres>),
    /// Asks for a cancellation.
    Canceller,
}

impl World {
    /// A shard with so many clients, which are logged in, and the servers that it opened for that.
    pub(super) fn new(config: Config, run: Run, clients: usize, named: bool) -> Self {
        let mut world = Self {
            shard: Shard::new(Arc::new(config), ShardId(0), 1, u64::from(run.0), Secret::new([7; 32])),
            run,
            now: Instant::default(),
            sockets: BTreeMap::new(),
            next_slot: 0,
            dials: VecDeque::new(),
            cancels: VecDeque::new(),
            clients: Vec::new(),
            logins: 0,
            named,
            ring: Ring::Prompt,
            failing_dials: 0,
            honest: true,
        };
        world.clients.extend((0..clients).map(|_| Client::new(run, String::new())));
        for number in 0..clients {
            world.connect(number);
        }
        world.settle();
        world
    }

    fn open(&mut self, end: End) -> SocketId {
        let slot = self.next_slot;
        self.next_slot += 1;
        let socket = Socket {
            owner: Owner(0),
            end,
            incoming: VecDeque::new(),
            receiving: false,
            ended: None,
            told_end: false,
            untold: 0,
            held: Vec::new(),
            closing: false,
        };
        self.sockets.insert(slot, socket);
        SocketId { slot, generation: 0 }
    }

    fn own(&mut self, socket: SocketId, owner: Owner) {
        if let Some(socket) = self.sockets.get_mut(&socket.slot) {
            socket.owner = owner;
        }
    }

    /// A client logs in, as the one of this number.
    fn connect(&mut self, number: usize) {
        self.logins += 1;
        self.clients[number] = Client::new(self.run, format!("c{}", self.logins));
        let startup = self.clients[number].startup(self.named);
        self.accept(End::Client(number), startup);
    }

    fn accept(&mut self, end: End, first: Vec<u8>) {
        let socket = self.open(end);
        let owner = self.shard.accepted(socket, Peer::Unix, false);
        self.own(socket, owner);
        self.apply(&[]);
        self.write(socket.slot, first, false);
    }

    /// Somebody asks to cancel what a client does.
    pub(super) fn ask_to_cancel(&mut self, number: usize) {
        let client = &mut self.clients[number];
        client.differs = true;
        let body = [&80_877_102u32.to_be_bytes()[..], &client.cancel_key].concat();
        let packet = [&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat();
        self.accept(End::Canceller, packet);
    }

    fn client_socket(&self, number: usize) -> Option<u32> {
        let is_its = |socket: &Socket| matches!(socket.end, End::Client(each) if each == number);
        self.sockets.iter().find(|(_, socket)| is_its(socket)).map(|(&slot, _)| slot)
    }

    /// Whether a client is connected, and may go on.
    pub(super) fn is_open(&self, number: usize) -> bool {
        let socket = self.client_socket(number).and_then(|slot| self.sockets.get(&slot));
        socket.is_some_and(|socket| !socket.closing && socket.ended.is_none())
    }

    /// A client sends pieces of its stream. One that is gone comes again first.
    pub(super) fn client_sends(&mut self, number: usize, pieces: &[&[u8]]) {
        let Some(slot) = self.client_socket(number) else { return self.connect(number) };
        if !self.is_open(number) {
            return;
        }
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            self.clients[number].sends(piece);
            self.write(slot, piece.to_vec(), false);
        }
    }

    pub(super) fn client_ends(&mut self, number: usize, error: Option<i32>) {
        if let Some(slot) = self.client_socket(number) {
            self.end(slot, error);
        }
    }

    /// The server of this number among those that are open.
    fn server_slot(&self, number: usize) -> Option<u32> {
        let open = |socket: &Socket| match &socket.end {
            End::Server(postgres) => !postgres.gone && !socket.closing,
            _ => false,
        };
        let slots: Vec<u32> =
            self.sockets.iter().filter(|(_, socket)| open(socket)).map(|(&slot, _)| slot).collect();
        slots.get(number % slots.len().max(1)).copied()
    }

    fn postgres(&mut self, slot: u32) -> Option<&mut Postgres> {
        match &mut self.sockets.get_mut(&slot)?.end {
            End::Server(postgres) => Some(postgres),
            _ => None,
        }
    }

    /// A server looks at so many messages. What it says comes in two pieces, the first of so many bytes.
    pub(super) fn server_answers(&mut self, number: usize, messages: usize, flush: bool, cut: usize) {
        let Some(slot) = self.server_slot(number) else { return };
        let Some(postgres) = self.postgres(slot) else { return };
        let said = postgres.answer(messages, flush);
        let gone = postgres.gone;
        let (first, rest) = said.split_at(cut.min(said.len()));
        self.write(slot, first.to_vec(), true);
        self.write(slot, rest.to_vec(), true);
        if gone {
            self.end(slot, None);
        }
    }

    /// A server says something that needs no question.
    pub(super) fn server_speaks(&mut self, number: usize, message: &[u8], cut: usize) {
        let Some(slot) = self.server_slot(number) else { return };
        let (first, rest) = message.split_at(cut.min(message.len()));
        self.write(slot, first.to_vec(), false);
        self.write(slot, rest.to_vec(), false);
    }

    /// A server says what the fuzzer likes.
    pub(super) fn server_raves(&mut self, number: usize, bytes: &[u8]) {
        let Some(slot) = self.server_slot(number) else { return };
        self.honest = false;
        let heard = self
            .sockets
            .get(&slot)
            .is_some_and(|socket| socket.is_heard() && socket.held.is_empty() && socket.untold == 0);
        let Some(postgres) = self.postgres(slot) else { return };
        // Of a doubtful one only itself knows whether it still owes something.
        let settled = heard && postgres.is_at_rest() && !postgres.lies && !postgres.doubtful;
        let unasked = settled && answers_nothing(bytes);
        postgres.lies = true;
        postgres.broke |= unasked;
        self.write(slot, bytes.to_vec(), true);
        if unasked {
            self.settle();
            let socket = self.sockets.get(&slot);
            let stays =
                socket.is_some_and(|socket| socket.receiving && !socket.closing && socket.ended.is_none());
            assert!(!stays, "a server that answers what nobody asked is kept: {bytes:?}");
        }
    }

    pub(super) fn server_ends(&mut self, number: usize, error: Option<i32>) {
        let Some(slot) = self.server_slot(number) else { return };
        if let Some(postgres) = self.postgres(slot) {
            postgres.gone = true;
        }
        self.end(slot, error);
    }

    /// Servers that the fuzzer spoke for end.
    pub(super) fn end_liars(&mut self) {
        let lies = |socket: &Socket| matches!(&socket.end, End::Server(postgres) if postgres.lies);
        let slots: Vec<u32> =
            self.sockets.iter().filter(|(_, socket)| lies(socket)).map(|(&slot, _)| slot).collect();
        for slot in slots {
            self.end(slot, None);
        }
    }

    fn write(&mut self, slot: u32, bytes: Vec<u8>, answers: bool) {
        if let Some(socket) = self.sockets.get_mut(&slot)
            && !bytes.is_empty()
            && socket.ended.is_none()
        {
            socket.incoming.push_back((bytes, answers));
        }
    }

    fn end(&mut self, slot: u32, error: Option<i32>) {
        if let Some(socket) = self.sockets.get_mut(&slot) {
            socket.ended.get_or_insert(error);
        }
    }

    // ---- the ring ----

    /// Time passes, and deadlines ring.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.shard.set_time(self.now);
        self.tell(&[], Shard::tick);
        self.settle();
    }

    /// Goes on until nothing more can happen.
    pub(super) fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            let slots: Vec<u32> = self.sockets.keys().copied().collect();
            let moved = slots.into_iter().any(|slot| self.move_socket(slot));
            if !(moved || self.ring != Ring::Slow && self.move_slowly()) {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// One thing that the ring tells of a socket. False: there is none.
    fn move_socket(&mut self, slot: u32) -> bool {
        let prompt = matches!(self.ring, Ring::Prompt | Ring::Slow);
        let Some(socket) = self.sockets.get_mut(&slot) else { return false };
        let owner = socket.owner;
        if prompt && !socket.held.is_empty() {
            let held = std::mem::take(&mut socket.held);
            socket.untold += held.len();
            self.deliver(slot, &held);
            return true;
        }
        if prompt && socket.untold > 0 {
            let bytes = std::mem::take(&mut socket.untold);
            self.tell(&[], |shard| shard.sent(owner, bytes));
            return true;
        }
        if socket.closing {
            return false;
        }
        if socket.receiving
            && let Some((bytes, _)) = socket.incoming.pop_front()
        {
            self.tell(&bytes, |shard| shard.received(owner, &bytes));
            return true;
        }
        let all_read = socket.incoming.is_empty() && socket.receiving;
        match socket.ended {
            Some(error) if !socket.told_end && (all_read || error.is_some()) => {
                socket.told_end = true;
                self.tell(&[], |shard| shard.ended(owner, error));
                true
            }
            _ => false,
        }
    }

    /// The end of something that takes its time.
    fn move_slowly(&mut self) -> bool {
        if let Some(server) = self.cancels.pop_front() {
            self.tell(&[], |shard| shard.cancelled(server, true));
            return true;
        }
        if let Some(server) = self.dials.pop_front() {
            if self.failing_dials > 0 {
                self.failing_dials -= 1;
                self.tell(&[], |shard| shard.dialed(server, Err(DialError("refused".into()))));
                return true;
            }
            let socket = self.open(End::Server(Box::new(Postgres::new(self.run))));
            self.own(socket, Party::Server(server).to_owner());
            self.tell(&[], |shard| shard.dialed(server, Ok(socket)));
            return true;
        }
        let closing = self.sockets.iter().find(|(_, socket)| socket.closing).map(|(&slot, _)| slot);
        let Some(socket) = closing.and_then(|slot| self.sockets.remove(&slot)) else { return false };
        if let End::Client(number) = socket.end {
            self.clients[number].tail.clear();
        }
        self.tell(&[], |shard| shard.closed(socket.owner));
        true
    }

    fn tell(&mut self, bytes: &[u8], event: impl FnOnce(&mut Shard)) {
        event(&mut self.shard);
        self.apply(bytes);
        self.check();
    }

    fn apply(&mut self, bytes: &[u8]) {
        let mut effects = Vec::new();
        self.shard.take_effects(&mut effects);
        let mut taken_back = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send { socket, piece: Piece::Own(bytes) } => {
                    taken_back.extend(self.send(socket.slot, &bytes));
                }
                Effect::Send { socket, piece: Piece::Received(range) } => {
                    taken_back.extend(self.send(socket.slot, &bytes[range]));
                }
                Effect::Receive { socket, on } => {
                    if let Some(socket) = self.sockets.get_mut(&socket.slot) {
                        socket.receiving = on;
                    }
                }
                Effect::LowWater { .. } => {}
                Effect::Close { socket, .. } => {
                    if let Some(socket) = self.sockets.get_mut(&socket.slot) {
                        socket.closing = true;
                    }
                }
                Effect::Dial { server, .. } => self.dials.push_back(server),
                Effect::Cancel { server, .. } => self.cancels.push_back(server),
                Effect::Log(_) => {}
                Effect::Take { .. }
                | Effect::Mail { .. }
                | Effect::Compute { .. }
                | Effect::Observe
                | Effect::Reload { .. } => panic!("nothing of that with one shard and trust: {effect:?}"),
            }
        }
        for (owner, bytes) in taken_back {
            self.shard.sent(owner, bytes);
            self.apply(&[]);
            self.shard.unsent(owner, bytes);
            self.apply(&[]);
        }
    }

    /// What is to be said to have left, and then not to have left.
    fn send(&mut self, slot: u32, bytes: &[u8]) -> Option<(Owner, usize)> {
        let ring = self.ring;
        let Some(socket) = self.sockets.get_mut(&slot) else { panic!("a socket is spoken to that is gone") };
        assert!(!socket.closing, "nothing is said behind the end: {bytes:?}");
        if ring == Ring::Full || !socket.held.is_empty() {
            socket.held.extend_from_slice(bytes);
            return (ring == Ring::Full).then_some((socket.owner, bytes.len()));
        }
        socket.untold += bytes.len();
        self.deliver(slot, bytes);
        None
    }

    /// Bytes reach the other side.
    fn deliver(&mut self, slot: u32, bytes: &[u8]) {
        let honest = self.honest;
        let Some(socket) = self.sockets.get_mut(&slot) else { return };
        let heard = socket.is_heard();
        match &mut socket.end {
            End::Client(number) => self.clients[*number].receive(bytes, honest),
            End::Server(postgres) => {
                let greets = !postgres.is_started();
                postgres.receive(bytes, heard);
                if greets {
                    let greeting = postgres.answer(0, true);
                    socket.incoming.push_back((greeting, true));
                }
            }
            End::Canceller => {}
        }
    }

    // ---- what always holds ----

    fn check(&self) {
        let census = self.shard.census();
        assert!(census.waiting == 0 || census.idle == 0, "somebody waits beside an idle server: {census:?}");
        let (clients, servers) = self.shard.strays();
        assert!(clients.is_empty() && servers.is_empty(), "strays: {clients:?} {servers:?}");
    }

    /// All servers answer all that they owe, again and again.
    pub(super) fn answer_all(&mut self) {
        for _ in 0..STEPS_MAX {
            self.pass(MOMENT);
            let busy = self.sockets.iter().find(|(_, socket)| match &socket.end {
                End::Server(postgres) => !socket.closing && !postgres.gone && postgres.has_work(),
                _ => false,
            });
            let Some(slot) = busy.map(|(&slot, _)| slot) else { return };
            let Some(postgres) = self.postgres(slot) else { return };
            let said = postgres.answer(usize::MAX, false);
            let gone = postgres.gone;
            self.write(slot, said, true);
            if gone {
                self.end(slot, None);
            }
        }
        panic!("the servers are asked for ever");
    }

    /// Whatever is open is one of the shard's idle servers, and at rest.
    pub(super) fn check_rest(&mut self) {
        let census = self.shard.census();
        assert!(census.clients == 0 && census.servers == census.idle, "not at rest: {census:?}");
        for socket in self.sockets.values() {
            let End::Server(postgres) = &socket.end else { panic!("a client is left") };
            assert!(postgres.is_at_rest() && socket.receiving, "a server is idle and at work");
        }
    }

    /// Nothing is left at all.
    pub(super) fn check_end(&mut self) {
        let census = self.shard.census();
        assert!(self.shard.is_empty() && self.sockets.is_empty(), "left: {census:?}");
        assert!(census.permits == 0 && self.shard.is_settled(), "permits are left: {census:?}");
        assert_eq!(self.shard.permits_given(0), Some(0));
    }

    /// Says to a client's number what ends its work, for each that can take it, and expects an answer or its end.
    pub(super) fn finish_clients(&mut self) {
        let mut last = Vec::new();
        for number in 0..self.clients.len() {
            if !self.is_open(number) {
                continue;
            }
            let tail = std::mem::take(&mut self.clients[number].tail);
            self.client_sends(number, &[&tail]);
            let client = &self.clients[number];
            // PostgreSQL would have ended a session of which a request was cancelled here: where it is now, nobody knows.
            let lost = client.is_over() && client.differs;
            if lost || !(client.is_at_boundary() || client.is_over()) {
                self.client_ends(number, None);
                continue;
            }
            let (bytes, token) = client::come_to_an_end(&mut self.clients[number]);
            self.client_sends(number, &[&bytes]);
            last.push((number, token));
        }
        self.answer_all();
        for _ in 0..4 {
            self.pass(Duration::from_secs(61));
            self.answer_all();
        }
        for (number, token) in last {
            let client = &self.clients[number];
            let answered = client.last_token == token;
            assert!(answered || !self.is_open(number), "{} is left without an answer", client.name);
            let comparable = self.honest && !client.differs && !client.is_doubtful();
            let over = client.refused || (client.is_over() && comparable);
            assert!(!over || !self.is_open(number), "{} goes on", client.name);
        }
    }
}

impl Socket {
    /// No answer of its is under way.
    fn is_heard(&self) -> bool {
        self.incoming.iter().all(|(_, answers)| !answers)
    }
}

/// The first message that a server must not say unasked is among these bytes.
fn answers_nothing(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some([tag, length @ ..]) = rest.first_chunk::<5>().copied() {
        match tag {
            b'N' | b'A' | b'S' => {}
            // One that is linked may say that it ends.
            b'E' => return false,
            _ => return true,
        }
        let total = u32::from_be_bytes(length) as usize + 1;
        let Some(behind) = rest.get(total..) else { return false };
        rest = behind;
    }
    false
}

/// More than any input needs.
const STEPS_MAX: usize = 100_000;

/// What the ledger takes to decide.
const MOMENT: Duration = Duration::from_millis(1);
