//! Several shards, and just enough around them to see what they want done. Letters and descriptors move when a test says
//! so.

use bytes::Bytes;
use pgpinion::cancel_key::Secret;
use pgpinion::config::{Config, LogLevel};
use pgpinion::ids::{Owner, ShardId, SocketId};
use pgpinion::mail::Letter;
use pgpinion::shard::{DialError, Effect, Party, Peer, Piece, Server, Shard};
use pgpinion::slab::Key;
use pgpinion::time::Instant;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// One shard, its sockets by slot, and what it has asked for.
pub struct Side {
    pub shard: Shard,
    pub sockets: BTreeMap<u32, Socket>,
    next_slot: u32,
    pub dials: Vec<Key<Server>>,
    /// Written and not read yet, each with the connection it moves.
    pub letters: Vec<(ShardId, Letter<Socket>)>,
    /// The connection that was just taken out.
    taken: Option<Socket>,
    /// Servers that cancel requests were sent to, and with which keys.
    pub cancels: Vec<Key<Server>>,
    pub cancel_keys: Vec<(u32, Bytes)>,
    /// Lines of the log with the connection or session they concern.
    pub log: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Socket {
    pub owner: Option<Owner>,
    /// What the other side has not read.
    pub sent: Vec<u8>,
    pub receiving: bool,
    pub taking: bool,
    pub closing: bool,
    /// It is closed when the other side has closed it, too.
    pub lingers: bool,
}

pub struct Shards {
    pub sides: Vec<Side>,
    pub now: Instant,
}

/// Settings for a test: all that is logged, and so many permits for all shards together.
pub fn config(permits: usize) -> Config {
    let mut config = Config::upstream("127.0.0.1:5432", &[0]).unwrap();
    config.log.level = LogLevel::Debug;
    config.endpoints[0].max_connections = permits;
    config
}

pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

pub fn startup() -> Vec<u8> {
    let body = b"\0\x03\0\0user\0u\0database\0d\0\0";
    [&(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

pub fn query() -> Vec<u8> {
    message(b'Q', b"select 1\0")
}

pub fn answer() -> Vec<u8> {
    [message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat()
}

impl Shards {
    pub fn new(count: usize, config: Config) -> Self {
        let config = Arc::new(config);
        let now = Instant::from_nanos(1_000_000_000);
        let side = |index| {
            let mut shard = Shard::new(config.clone(), ShardId(index as u16), count, 1, Secret::new([7; 32]));
            shard.set_time(now);
            let (sockets, dials, letters, cancels, cancel_keys, log) = Default::default();
            Side {
                shard,
                sockets,
                next_slot: 10 * (index as u32 + 1),
                dials,
                letters,
                taken: None,
                cancels,
                cancel_keys,
                log,
            }
        };
        Self { sides: (0..count).map(side).collect(), now }
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        for side in &mut self.sides {
            side.shard.set_time(self.now);
            side.shard.tick();
            side.apply(&[]);
        }
    }

    /// Delivers all letters, one after the other.
    pub fn deliver(&mut self) {
        while let Some(from) = self.sides.iter().position(|side| !side.letters.is_empty()) {
            let (to, letter) = self.sides[from].letters.remove(0);
            self.sides[usize::from(to.0)].read(ShardId(from as u16), letter);
        }
    }

    /// Letters go to and fro, and the ledger has the time for all that it can decide at once.
    pub fn settle(&mut self) {
        for _ in 0..DECISIONS {
            self.deliver();
            self.pass(DECISION);
        }
        self.deliver();
    }

    /// What has fallen is said too, at the end of a window.
    pub fn come_to_rest(&mut self) {
        for _ in 0..10 {
            self.pass(Duration::from_millis(10));
            self.deliver();
        }
    }

    /// The ledger decides until a connection of this shard is to be taken out of its ring.
    pub fn recall(&mut self, from: usize) {
        self.settle();
        assert!(self.sides[from].is_taking(), "no connection of shard {from} is recalled");
    }

    /// The ledger has a connection of this shard handed over, without anything coming in between.
    pub fn hand_over(&mut self, from: usize) {
        self.recall(from);
        assert_eq!(self.sides[from].give_taken(true), 1);
        self.deliver();
    }

    pub fn permits(&self) -> Vec<usize> {
        self.sides.iter().map(|side| side.shard.census().permits).collect()
    }

    /// Permits that the ledger has given.
    pub fn permits_given(&self) -> usize {
        self.sides[0].shard.permits_given(0).unwrap()
    }

    /// Ends everything, and checks that nothing is left.
    pub fn finish(mut self) {
        for side in &mut self.sides {
            side.shard.drain();
            side.apply(&[]);
            for server in std::mem::take(&mut side.dials) {
                side.shard.dialed(server, Err(DialError("the test is over".into())));
                side.apply(&[]);
            }
        }
        for _ in 0..3 {
            self.settle();
            for side in &mut self.sides {
                side.give_taken(true);
                side.close_all();
            }
        }
        self.settle();
        self.come_to_rest();
        for side in &self.sides {
            assert!(side.shard.is_empty(), "{:?}", side.shard.census());
            assert_eq!(side.shard.census().permits, 0);
        }
        assert_eq!(self.permits_given(), 0, "every permit came back to the ledger");
        assert!(self.sides.iter().all(|side| side.shard.is_settled()), "and all is said");
    }
}

impl Side {
    pub fn open(&mut self) -> SocketId {
        let slot = self.next_slot;
        self.next_slot += 1;
        self.sockets.insert(slot, Socket::default());
        SocketId { slot, generation: 0 }
    }

    pub fn own(&mut self, socket: SocketId, owner: Owner) {
        self.sockets.get_mut(&socket.slot).unwrap().owner = Some(owner);
    }

    pub fn connect(&mut self) -> Owner {
        let socket = self.open();
        let owner = self.shard.accepted(socket, Peer::Unix, false);
        self.own(socket, owner);
        self.apply(&[]);
        owner
    }

    /// A client that has sent its startup packet.
    pub fn log_in(&mut self) -> Owner {
        self.log_in_with(&[])
    }

    /// The same with more parameters.
    pub fn log_in_with(&mut self, parameters: &[(&str, &str)]) -> Owner {
        self.log_in_speaking(0, parameters)
    }

    /// The same with this minor version of the protocol.
    pub fn log_in_speaking(&mut self, minor: u8, parameters: &[(&str, &str)]) -> Owner {
        let mut body = startup()[4..].to_vec();
        body[3] = minor;
        body.pop();
        for (name, value) in parameters {
            body.extend(format!("{name}\0{value}\0").bytes());
        }
        body.push(0);
        let owner = self.connect();
        self.receive(owner, &[&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat());
        owner
    }

    /// The next dial succeeds, and PostgreSQL lets us in.
    pub fn dial(&mut self) -> Owner {
        self.dial_told(&[1, 2, 3, 4])
    }

    /// The next dial succeeds, and PostgreSQL has said nothing yet.
    pub fn dial_only(&mut self) -> Owner {
        let server = self.dials.remove(0);
        let owner = Party::Server(server).to_owner();
        let socket = self.open();
        self.own(socket, owner);
        self.shard.dialed(server, Ok(socket));
        self.apply(&[]);
        owner
    }

    /// The next dial succeeds, and PostgreSQL lets us in and tells this key.
    pub fn dial_told(&mut self, key: &[u8]) -> Owner {
        let owner = self.dial_only();
        let hello = [
            message(b'R', &[0; 4]),
            message(b'S', b"server_version\x0015\0"),
            message(b'S', b"TimeZone\0UTC\0"),
            message(b'K', &[&[0, 0, 0, 9], key].concat()),
            message(b'Z', b"I"),
        ];
        self.receive(owner, &hello.concat());
        owner
    }

    pub fn receive(&mut self, owner: Owner, bytes: &[u8]) {
        self.shard.received(owner, bytes);
        self.apply(bytes);
    }

    pub fn end(&mut self, owner: Owner) {
        self.shard.ended(owner, None);
        self.apply(&[]);
    }

    /// What has been sent to somebody since the last time.
    pub fn sent(&mut self, owner: Owner) -> Vec<u8> {
        let socket = self.sockets.values_mut().find(|socket| socket.owner == Some(owner));
        std::mem::take(&mut socket.unwrap().sent)
    }

    /// The server that was asked last and has not answered.
    pub fn asked(&self) -> Owner {
        let asked = self.sockets.values().find(|socket| socket.sent.ends_with(&query()));
        asked.unwrap().owner.unwrap()
    }

    /// The server that was asked answers.
    pub fn answer(&mut self) {
        let server = self.asked();
        self.sent(server);
        self.receive(server, &answer());
    }

    pub fn is_taking(&self) -> bool {
        self.sockets.values().any(|socket| socket.taking)
    }

    /// The ring hands out what is to be taken. Returns how many connections left; the others are in it again.
    pub fn give_taken(&mut self, has_room: bool) -> usize {
        let taken: Vec<u32> =
            self.sockets.iter().filter(|(_, socket)| socket.taking).map(|(&slot, _)| slot).collect();
        let mut left = 0;
        for slot in taken {
            left += usize::from(self.give(slot, has_room));
        }
        left
    }

    /// The same for one. True if it left.
    pub fn give(&mut self, slot: u32, has_room: bool) -> bool {
        let taken = self.sockets.remove(&slot).unwrap();
        let owner = taken.owner.unwrap();
        let leaves = self.shard.taken(owner, |_| has_room);
        if leaves {
            self.taken = Some(taken);
        } else {
            let socket = self.put_back(taken);
            self.own(socket, owner);
            self.shard.stays(owner, socket);
        }
        self.apply(&[]);
        assert!(self.taken.is_none(), "a letter goes with it");
        leaves
    }

    fn put_back(&mut self, socket: Socket) -> SocketId {
        let id = self.open();
        self.sockets.insert(id.slot, Socket { taking: false, receiving: false, closing: false, ..socket });
        id
    }

    pub fn read(&mut self, from: ShardId, letter: Letter<Socket>) {
        let letter = letter.map(|socket| self.put_back(socket));
        let socket = letter.connection().copied();
        let owner = self.shard.mail(from, letter);
        assert_eq!(socket.is_some(), owner.is_some(), "a connection that comes belongs to somebody");
        if let (Some(socket), Some(owner)) = (socket, owner) {
            self.own(socket, owner);
        }
        self.apply(&[]);
    }

    /// Closes what is to be closed.
    pub fn close_all(&mut self) -> usize {
        let closing: Vec<u32> =
            self.sockets.iter().filter(|(_, socket)| socket.closing).map(|(&slot, _)| slot).collect();
        for slot in &closing {
            let owner = self.sockets.remove(slot).unwrap().owner.unwrap();
            self.shard.closed(owner);
            self.apply(&[]);
        }
        closing.len()
    }

    pub fn logged(&self, text: &str) -> bool {
        self.log.iter().any(|line| line.contains(text))
    }

    /// Does what the shard wants done. Everything that is sent leaves at once.
    pub fn apply(&mut self, bytes: &[u8]) {
        loop {
            let mut effects = Vec::new();
            self.shard.take_effects(&mut effects);
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.act(effect, bytes);
            }
            for socket in self.sockets.values_mut() {
                if let Some(owner) = socket.owner {
                    self.shard.sent(owner, usize::MAX >> 33);
                }
            }
        }
    }

    fn act(&mut self, effect: Effect, bytes: &[u8]) {
        match effect {
            Effect::Send { socket, piece } => {
                let piece = match piece {
                    Piece::Own(bytes) => bytes,
                    Piece::Received(range) => Bytes::copy_from_slice(&bytes[range]),
                };
                self.sockets.get_mut(&socket.slot).unwrap().sent.extend(&piece);
            }
            Effect::Receive { socket, on } => self.sockets.get_mut(&socket.slot).unwrap().receiving = on,
            Effect::LowWater { .. } => {}
            Effect::Take { socket } => self.sockets.get_mut(&socket.slot).unwrap().taking = true,
            Effect::Close { socket, linger } => {
                // A socket that is out of the ring already is not found there.
                if let Some(socket) = self.sockets.get_mut(&socket.slot) {
                    (socket.closing, socket.taking) = (true, false);
                    socket.lingers = linger.is_some();
                }
            }
            Effect::Mail { to, letter } => {
                let letter = letter.map(|()| self.taken.take().unwrap());
                self.letters.push((to, letter));
            }
            Effect::Dial { server, .. } => self.dials.push(server),
            Effect::Log(line) => {
                let id = line.fields.connection.map(|id| id.to_string());
                let id = id.or(line.fields.session.map(|id| id.to_string())).unwrap_or_default();
                self.log.push(format!("{id} {}", line.message));
            }
            Effect::Cancel { server, key, .. } => {
                self.cancels.push(server);
                self.cancel_keys.push(key);
            }
            Effect::Compute { .. } | Effect::Observe | Effect::Reload { .. } => {
                panic!("nothing of that in these tests")
            }
        }
    }
}

/// More than the ledger takes between two decisions.
const DECISION: Duration = Duration::from_micros(100);

/// As many as it takes until everybody has said what the ledger asked, with some to spare.
const DECISIONS: usize = 10;
