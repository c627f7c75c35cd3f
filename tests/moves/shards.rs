//! Several shards, and just enough around them to see what they want done. Letters and descriptors move when a test says
//! so.

use bytes::Bytes;
use pgpinion::config::{Config, LogLevel};
use pgpinion::ids::{Owner, RouteName, ShardId, SocketId};
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
    /// Lines of the log with the connection or session they concern.
    pub log: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Socket {
    pub owner: Option<Owner>,
    /// What the other side has not read.
    pub sent: Vec<u8>,
    /// What the other side wrote and the shard has not got.
    pub incoming: Vec<u8>,
    /// The other side will write no more.
    pub ended: bool,
    pub told_end: bool,
    /// Who is on the other side.
    pub peer: usize,
    pub receiving: bool,
    pub taking: bool,
    pub closing: bool,
}

pub struct Shards {
    pub sides: Vec<Side>,
    pub now: Instant,
}

/// Settings for a test: all that is logged, and so many permits for each shard.
pub fn config(permits: usize) -> Config {
    let mut config = Config::upstream("127.0.0.1:5432", &[0]).unwrap();
    config.log.level = LogLevel::Debug;
    config.endpoints[0].max_connections = permits;
    config
}

pub fn route() -> RouteName {
    RouteName { section: 0, database: "d".into(), user: "u".into() }
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
            let mut shard = Shard::new(config.clone(), ShardId(index as u16), count, 1);
            shard.set_time(now);
            let (sockets, dials, letters, log) = Default::default();
            Side { shard, sockets, next_slot: 10 * (index as u32 + 1), dials, letters, taken: None, log }
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

    pub fn permits(&self) -> Vec<usize> {
        self.sides.iter().map(|side| side.shard.census().permits).collect()
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
            self.deliver();
            for side in &mut self.sides {
                side.give_taken(true);
                side.close_all();
            }
        }
        for side in &self.sides {
            assert!(side.shard.is_empty(), "{:?}", side.shard.census());
            assert_eq!(side.shard.census().permits, 0);
        }
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
        let owner = self.shard.accepted(socket, Peer::Unix, 7, false);
        self.own(socket, owner);
        self.apply(&[]);
        owner
    }

    /// A client that has sent its startup packet.
    pub fn log_in(&mut self) -> Owner {
        let owner = self.connect();
        self.receive(owner, &startup());
        owner
    }

    /// The next dial succeeds, and PostgreSQL lets us in.
    pub fn dial(&mut self) -> Owner {
        let server = self.dials.remove(0);
        let owner = Party::Server(server).to_owner();
        let socket = self.open();
        self.own(socket, owner);
        self.shard.dialed(server, Ok(socket));
        self.apply(&[]);
        let hello = [
            message(b'R', &[0; 4]),
            message(b'S', b"server_version\x0015\0"),
            message(b'K', &[0, 0, 0, 9, 1, 2, 3, 4]),
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

    pub fn hand_over(&mut self, to: u16) -> bool {
        let begun = self.shard.hand_over(&route(), ShardId(to));
        self.apply(&[]);
        begun
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
        let socket = *letter.connection().unwrap();
        let owner = self.shard.mail(from, letter).unwrap();
        self.own(socket, owner);
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
        while self.shard.has_effects() {
            let mut effects = Vec::new();
            self.shard.take_effects(&mut effects);
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
            Effect::Take { socket } => self.sockets.get_mut(&socket.slot).unwrap().taking = true,
            Effect::Close { socket, .. } => {
                // A socket that is out of the ring already is not found there.
                if let Some(socket) = self.sockets.get_mut(&socket.slot) {
                    (socket.closing, socket.taking) = (true, false);
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
            Effect::Cancel { .. } | Effect::Compute { .. } | Effect::Observe | Effect::Reload { .. } => {
                panic!("nothing of that in these tests")
            }
        }
    }
}
