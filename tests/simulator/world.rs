//! One run: a shard, its clients, its servers, and chance.

use crate::postgres::Postgres;
use bytes::Bytes;
use pgpinion::config::{Config, PoolMode};
use pgpinion::ids::{Owner, ShardId, SocketId};
use pgpinion::shard::{DialError, Effect, Party, Peer, Piece, Shard};
use pgpinion::time::Instant;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Copy)]
pub struct Faults {
    pub clients_leave: bool,
    pub servers_die: bool,
    pub dials_fail: bool,
}

/// Splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A socket of the shard, and who is on the other side.
struct Socket {
    owner: Owner,
    peer: End,
    receiving: bool,
    /// Handed to the ring, not sent.
    unsent: Vec<u8>,
    /// Sent by the peer, not received.
    incoming: Vec<u8>,
    /// The peer will send no more.
    peer_ended: bool,
    told_end: bool,
    /// Being closed: lingering until the peer ends, or at once.
    closing: Option<bool>,
    closing_until: Instant,
}

enum End {
    Client(usize),
    Server(Postgres),
}

/// A client with its script and the PostgreSQL of its own that it compares with.
struct Client {
    name: String,
    socket: Option<SocketId>,
    unsent: Vec<u8>,
    /// Bytes of the script that are not in `unsent` yet, a step each; a step waits for the answer of the one before.
    steps: Vec<Vec<u8>>,
    reference: Postgres,
    received: Vec<u8>,
    greeted: bool,
    compared: usize,
    done: bool,
    /// A fault ended its session.
    lost: bool,
}

pub struct World {
    chance: Chance,
    faults: Faults,
    seed: u64,
    now: Instant,
    shard: Shard,
    sockets: BTreeMap<u32, Socket>,
    next_socket: u32,
    dials: Vec<pgpinion::slab::Key<pgpinion::shard::Server>>,
    clients: Vec<Client>,
    limit: usize,
    mode: PoolMode,
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut chance = Chance(seed ^ 0x5eed);
        let limit = 1 + chance.below(4);
        let mode = if chance.one_in(3) { PoolMode::Session } else { PoolMode::Transaction };
        let config = config(limit, mode);
        let shard = Shard::new(Arc::new(config), ShardId(0), 1, seed);
        let count = 1 + chance.below(8);
        let mut world = Self {
            chance,
            faults,
            seed,
            now: Instant::from_nanos(1),
            shard,
            sockets: BTreeMap::new(),
            next_socket: 0,
            dials: Vec::new(),
            clients: Vec::new(),
            limit,
            mode,
        };
        for number in 0..count {
            let client = world.client(number);
            world.clients.push(client);
        }
        world
    }

    fn client(&mut self, number: usize) -> Client {
        let name = format!("c{number}");
        let steps = (0..1 + self.chance.below(6))
            .flat_map(|turn| self.transaction(&format!("{name}-{turn}")))
            .collect();
        let user = format!("u{}", if self.chance.one_in(3) { 1 } else { 0 });
        let mut body = vec![0, 3, 0, 0];
        body.extend(format!("user\0{user}\0database\0d\0\0").bytes());
        let mut unsent = (body.len() as u32 + 4).to_be_bytes().to_vec();
        unsent.extend(body);
        Client {
            name,
            socket: None,
            unsent,
            steps,
            reference: Postgres::logged_in(),
            received: Vec::new(),
            greeted: false,
            compared: 0,
            done: false,
            lost: false,
        }
    }

    /// The steps of one transaction.
    fn transaction(&mut self, token: &str) -> Vec<Vec<u8>> {
        let query = |text: &str| message(b'Q', format!("{text}\0").as_bytes());
        let batch = |text: &str| {
            let parse = message(b'P', format!("\0{text}\0\0\0").as_bytes());
            [parse, message(b'B', &[0; 8]), message(b'D', b"P\0"), message(b'E', &[0; 5])].concat()
        };
        let sync = || message(b'S', b"");
        let copy = |end: u8| [message(b'd', b"row"), message(b'd', b"row"), message(end, b"")].concat();
        match self.chance.below(16) {
            0 => vec![query(&format!("ECHO {token}"))],
            1 => vec![query(&format!("ECHO {token};NOTICE {token};MANY {token}"))],
            2 => vec![
                query(&format!("BEGIN {token}")),
                query(&format!("ECHO {token}")),
                query(&format!("COMMIT {token}")),
            ],
            3 => vec![
                query(&format!("BEGIN {token}")),
                query(&format!("FAIL {token}")),
                query(&format!("ECHO {token}")),
                query(&format!("ROLLBACK {token}")),
            ],
            4 => vec![[batch(&format!("ECHO {token}")), sync()].concat()],
            5 => {
                let groups =
                    (0..1 + self.chance.below(5)).map(|_| [batch(&format!("ECHO {token}")), sync()].concat());
                vec![groups.collect::<Vec<_>>().concat()]
            }
            6 => vec![[batch(&format!("FAIL {token}")), batch(&format!("ECHO {token}")), sync()].concat()],
            7 => vec![[batch("BADPARSE"), sync()].concat(), query(&format!("ECHO {token}"))],
            8 => vec![[batch(&format!("ECHO {token}")), message(b'H', b"")].concat(), sync()],
            9 => vec![query(&format!("COPYOUT {token}"))],
            10 => vec![query(&format!("COPYIN {token}")), copy(b'c')],
            11 => vec![query(&format!("COPYIN {token}")), copy(b'f')],
            12 => vec![
                query(&format!("COPYIN {token}")),
                [message(b'd', b"bad"), message(b'd', b"row"), message(b'c', b"")].concat(),
                query(&format!("ECHO {token}")),
            ],
            13 => vec![[batch(&format!("COPYIN {token}")), sync(), copy(b'c'), sync()].concat()],
            14 => vec![(0..10).map(|_| query(&format!("ECHO {token}"))).collect::<Vec<_>>().concat()],
            _ => vec![query(""), query(&format!("NOTICE {token}"))],
        }
    }

    /// Plays until nothing more happens, then ends everything and checks that nothing is left.
    pub fn run(mut self) {
        for step in 0.. {
            assert!(step < STEPS_MAX, "seed {}: it does not come to an end", self.seed);
            self.check();
            if !self.act() && !self.advance() {
                break;
            }
        }
        for client in &self.clients {
            assert!(
                client.done || client.lost,
                "{} was left waiting: {}",
                client.name,
                self.describe(client)
            );
        }
        self.shard.set_time(self.now);
        self.shard.drain();
        self.apply(&[]);
        for _ in 0..STEPS_MAX {
            if !self.act() && (self.shard.is_empty() || !self.advance()) {
                break;
            }
        }
        let census = self.shard.census();
        assert!(self.shard.is_empty() && census.permits == 0, "something is left: {census:?}");
        assert!(self.sockets.is_empty(), "a socket is left");
    }

    fn describe(&self, client: &Client) -> String {
        let rest = &client.reference.output[client.compared..];
        format!("{} steps left, awaits {:?}", client.steps.len(), String::from_utf8_lossy(rest))
    }

    /// One random thing that can happen now; false if there is none.
    fn act(&mut self) -> bool {
        let choices = 6;
        let first = self.chance.below(choices);
        for choice in (0..choices).map(|offset| (first + offset) % choices) {
            let acted = match choice {
                0 => self.connect(),
                1 => self.client_writes(),
                2 => self.deliver(),
                3 => self.flush(),
                4 => self.dial(),
                _ => self.close_or_fault(),
            };
            if acted {
                return true;
            }
        }
        false
    }

    fn advance(&mut self) -> bool {
        let closing = self
            .sockets
            .values()
            .filter(|socket| socket.closing.is_some())
            .map(|socket| socket.closing_until);
        let next = closing.min().unwrap_or(Instant::NEVER).min(self.shard.next_deadline());
        if next == Instant::NEVER
            || (self.clients.iter().all(|client| client.done || client.lost) && self.sockets.is_empty())
        {
            return false;
        }
        self.now = self.now.max(next);
        self.shard.set_time(self.now);
        self.shard.tick();
        self.apply(&[]);
        true
    }

    fn connect(&mut self) -> bool {
        let waiting: Vec<usize> = (0..self.clients.len())
            .filter(|&at| self.clients[at].socket.is_none() && !self.clients[at].done)
            .collect();
        if waiting.is_empty() {
            return false;
        }
        let number = waiting[self.chance.below(waiting.len())];
        let socket = self.open(End::Client(number));
        self.clients[number].socket = Some(socket);
        let owner = self.shard.accepted(socket, Peer::Unix, 7, false);
        self.sockets.get_mut(&socket.slot).unwrap().owner = owner;
        self.apply(&[]);
        true
    }

    fn open(&mut self, peer: End) -> SocketId {
        let slot = self.next_socket;
        self.next_socket += 1;
        let socket = Socket {
            owner: Owner(0),
            peer,
            receiving: false,
            unsent: Vec::new(),
            incoming: Vec::new(),
            peer_ended: false,
            told_end: false,
            closing: None,
            closing_until: Instant::NEVER,
        };
        self.sockets.insert(slot, socket);
        SocketId { slot, generation: 0 }
    }

    /// A client sends a piece, or says goodbye when it is through.
    fn client_writes(&mut self) -> bool {
        let ready: Vec<usize> = (0..self.clients.len()).filter(|&at| self.can_write(at)).collect();
        if ready.is_empty() {
            return false;
        }
        let number = ready[self.chance.below(ready.len())];
        let length = 1 + self.chance.below(60);
        let client = &mut self.clients[number];
        let slot = client.socket.unwrap().slot;
        if client.unsent.is_empty() {
            if client.steps.is_empty() {
                client.done = true;
                let socket = self.sockets.get_mut(&slot).unwrap();
                socket.incoming.extend(message(b'X', b""));
                socket.peer_ended = true;
                return true;
            }
            let step = client.steps.remove(0);
            client.reference.receive(&step);
            client.unsent = step;
        }
        let piece: Vec<u8> = client.unsent.drain(..length.min(client.unsent.len())).collect();
        self.sockets.get_mut(&slot).unwrap().incoming.extend(piece);
        true
    }

    fn can_write(&self, number: usize) -> bool {
        let client = &self.clients[number];
        let Some(socket) = client.socket.and_then(|socket| self.sockets.get(&socket.slot)) else {
            return false;
        };
        let answered = client.greeted && client.compared == client.reference.output.len();
        !client.done && !client.lost && !socket.peer_ended && (!client.unsent.is_empty() || answered)
    }

    /// Bytes, or the end, reach the shard.
    fn deliver(&mut self) -> bool {
        let ready: Vec<u32> = self
            .sockets
            .iter()
            .filter(|(_, socket)| socket.closing.is_none() && !socket.told_end)
            .filter(|(_, socket)| socket.receiving && (!socket.incoming.is_empty() || socket.peer_ended))
            .map(|(&slot, _)| slot)
            .collect();
        if ready.is_empty() {
            return false;
        }
        let slot = ready[self.chance.below(ready.len())];
        let length =
            if self.chance.one_in(4) { 1 + self.chance.below(8) } else { 1 + self.chance.below(4000) };
        let socket = self.sockets.get_mut(&slot).unwrap();
        let owner = socket.owner;
        let bytes: Vec<u8> = socket.incoming.drain(..length.min(socket.incoming.len())).collect();
        self.shard.set_time(self.now);
        if bytes.is_empty() {
            socket.told_end = true;
            self.shard.ended(owner, None);
        } else {
            self.shard.received(owner, &bytes);
        }
        self.apply(&bytes);
        true
    }

    /// A send makes progress, and the peer reads it.
    fn flush(&mut self) -> bool {
        let ready: Vec<u32> = self
            .sockets
            .iter()
            .filter(|(_, socket)| !socket.unsent.is_empty())
            .map(|(&slot, _)| slot)
            .collect();
        if ready.is_empty() {
            return false;
        }
        let slot = ready[self.chance.below(ready.len())];
        let length = if self.chance.one_in(4) { 1 + self.chance.below(8) } else { usize::MAX };
        let socket = self.sockets.get_mut(&slot).unwrap();
        if socket.closing.is_none() && self.chance.one_in(8) {
            // Announced as sent, and taken back: the socket took nothing at once.
            let (owner, bytes) = (socket.owner, socket.unsent.len());
            self.shard.set_time(self.now);
            self.shard.sent(owner, bytes);
            self.apply(&[]);
            self.shard.unsent(owner, bytes);
            self.apply(&[]);
            return true;
        }
        let bytes: Vec<u8> = socket.unsent.drain(..length.min(socket.unsent.len())).collect();
        let (owner, closing) = (socket.owner, socket.closing.is_some());
        match &mut socket.peer {
            End::Server(server) => {
                server.receive(&bytes);
                assert!(server.violations.is_empty(), "{:?}", server.violations);
                socket.incoming.append(&mut server.output);
                socket.peer_ended |= server.gone;
            }
            End::Client(number) => {
                let number = *number;
                self.clients[number].received.extend(&bytes);
                self.compare(number);
            }
        }
        if !closing {
            self.shard.set_time(self.now);
            self.shard.sent(owner, bytes.len());
            self.apply(&[]);
        }
        true
    }

    /// What the client got must be what its own PostgreSQL said.
    fn compare(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if client.done || client.lost {
            return;
        }
        if !client.greeted {
            // The greeting ends with the first ReadyForQuery.
            if is_refusal(&client.received) {
                client.lost = true;
                return;
            }
            let Some(end) = client.received.windows(6).position(|bytes| bytes == b"Z\0\0\0\x05I") else {
                return;
            };
            client.greeted = true;
            client.received.drain(..end + 6);
        }
        // Message by message: the same byte may begin an answer and the news that there will be none.
        while let Some(length) = first_message(&client.received) {
            let got = &client.received[..length];
            let rest = &client.reference.output[client.compared..];
            if rest.starts_with(got) {
                client.compared += length;
                client.received.drain(..length);
                continue;
            }
            let got = String::from_utf8_lossy(got).into_owned();
            assert!(is_refusal(&client.received), "{}: got {got:?} instead of {:?}", client.name, show(rest));
            assert!(
                self.faults.servers_die || self.faults.dials_fail,
                "{} was refused: {got:?}",
                client.name
            );
            client.lost = true;
            return;
        }
    }

    fn dial(&mut self) -> bool {
        if self.dials.is_empty() {
            return false;
        }
        let at = self.chance.below(self.dials.len());
        let server = self.dials.remove(at);
        self.shard.set_time(self.now);
        if self.faults.dials_fail && self.chance.one_in(3) {
            self.shard.dialed(server, Err(DialError("connection refused by chance".into())));
        } else {
            let socket = self.open(End::Server(Postgres::default()));
            self.sockets.get_mut(&socket.slot).unwrap().owner = Party::Server(server).to_owner();
            self.shard.dialed(server, Ok(socket));
        }
        self.apply(&[]);
        true
    }

    fn close_or_fault(&mut self) -> bool {
        let closed = self.sockets.iter().find(|(_, socket)| match socket.closing {
            Some(lingering) => {
                !lingering
                    || socket.closing_until <= self.now
                    || (socket.peer_ended && socket.unsent.is_empty())
            }
            None => false,
        });
        if let Some((&slot, _)) = closed {
            let socket = self.sockets.remove(&slot).unwrap();
            if let End::Client(number) = socket.peer {
                let client = &mut self.clients[number];
                client.lost |= !client.done;
            }
            self.shard.set_time(self.now);
            self.shard.closed(socket.owner);
            self.apply(&[]);
            return true;
        }
        // A lingering peer notices that we are through.
        for socket in self.sockets.values_mut() {
            if socket.closing.is_some() && socket.unsent.is_empty() && !socket.peer_ended {
                socket.peer_ended = true;
                return true;
            }
        }
        if self.faults.servers_die && self.chance.one_in(20) {
            return self.kill_server();
        }
        if self.faults.clients_leave && self.chance.one_in(20) {
            return self.client_vanishes();
        }
        false
    }

    fn kill_server(&mut self) -> bool {
        let politely = self.chance.one_in(2);
        let living: Vec<u32> = self
            .sockets
            .iter()
            .filter(|(_, socket)| matches!(socket.peer, End::Server(_)) && !socket.peer_ended)
            .map(|(&slot, _)| slot)
            .collect();
        if living.is_empty() {
            return false;
        }
        let slot = living[self.chance.below(living.len())];
        let socket = self.sockets.get_mut(&slot).unwrap();
        let End::Server(server) = &mut socket.peer else { return false };
        server.die(politely);
        socket.incoming.append(&mut server.output);
        socket.peer_ended = true;
        true
    }

    fn client_vanishes(&mut self) -> bool {
        let living: Vec<usize> = (0..self.clients.len())
            .filter(|&at| {
                let client = &self.clients[at];
                !client.done && client.socket.is_some_and(|socket| self.sockets.contains_key(&socket.slot))
            })
            .collect();
        if living.is_empty() {
            return false;
        }
        let number = living[self.chance.below(living.len())];
        let client = &mut self.clients[number];
        client.done = true;
        self.sockets.get_mut(&client.socket.unwrap().slot).unwrap().peer_ended = true;
        true
    }

    fn apply(&mut self, bytes: &[u8]) {
        let mut effects = Vec::new();
        self.shard.take_effects(&mut effects);
        for effect in effects {
            match effect {
                Effect::Send { socket, piece } => {
                    let piece = match piece {
                        Piece::Own(bytes) => bytes,
                        Piece::Received(range) => Bytes::copy_from_slice(&bytes[range]),
                    };
                    if let Some(socket) = self.sockets.get_mut(&socket.slot) {
                        assert!(socket.closing.is_none(), "nothing is sent behind a close");
                        socket.unsent.extend(&piece);
                    }
                }
                Effect::Receive { socket, on } => {
                    self.sockets.get_mut(&socket.slot).unwrap().receiving = on;
                }
                Effect::Close { socket, linger } => {
                    let now = self.now;
                    let Some(socket) = self.sockets.get_mut(&socket.slot) else { continue };
                    assert_eq!(socket.closing, None, "a socket is closed once");
                    socket.closing = Some(linger.is_some());
                    socket.closing_until = now + linger.unwrap_or(Duration::ZERO);
                    if linger.is_none() {
                        socket.unsent.clear();
                    }
                }
                Effect::Dial { server, .. } => self.dials.push(server),
                Effect::Cancel { .. } | Effect::Log(_) => {}
                Effect::Compute { .. } => panic!("the model trusts everybody"),
                Effect::Take { .. } | Effect::Mail { .. } => panic!("there is no other shard"),
            }
        }
    }

    fn check(&self) {
        let open = self.sockets.values().filter(|socket| matches!(socket.peer, End::Server(_))).count();
        assert!(
            open + self.dials.len() <= self.limit,
            "{open} open and {} dialled with a limit of {} in {:?} mode",
            self.dials.len(),
            self.limit,
            self.mode
        );
    }
}

/// The length of the first message, if it is whole.
fn first_message(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_be_bytes(bytes.get(1..5)?.try_into().ok()?) as usize + 1;
    (bytes.len() >= length).then_some(length)
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The beginning of a FATAL ErrorResponse.
fn is_refusal(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'E') && bytes.windows(7).any(|window| window == b"SFATAL\0")
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn config(limit: usize, mode: PoolMode) -> Config {
    let mut config = Config::upstream("127.0.0.1:5432", &[0]).expect("a valid address");
    config.endpoints[0].max_connections = limit;
    config.pool_mode = mode;
    config
}

/// Far more than any run needs.
const STEPS_MAX: u64 = 500_000;
