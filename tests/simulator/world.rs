//! One run: shards, their clients, PostgreSQL, one clock, and chance.

use crate::chance::Chance;
use crate::client::Client;
use crate::cluster::Cluster;
use crate::faults::FAULT_KINDS;
use crate::network::{End, Socket, Taking};
use crate::plan::{Faults, Plan};
use bytes::Bytes;
use pgpinion::cancel_key::Secret;
use pgpinion::config::Config;
use pgpinion::ids::{RouteName, ShardId, SocketId};
use pgpinion::mail::Letter;
use pgpinion::metrics::CoreReport;
use pgpinion::shard::{Effect, Piece, Server, Shard};
use pgpinion::slab::Key;
use pgpinion::time::Instant;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub struct World {
    traced: bool,
    /// How often each kind of thing has happened.
    pub kinds: [u64; Self::KINDS.len()],
    /// The same of what goes wrong.
    pub happened: [u64; FAULT_KINDS],
    pub faults: Faults,
    pub plan: Plan,
    pub chance: Chance,
    /// For what was added later: all else stays as it was.
    pub later: Chance,
    pub now: Instant,
    pub nodes: Vec<Node>,
    pub sockets: BTreeMap<u32, Socket>,
    /// The next socket's number.
    pub next_socket: u32,
    pub dials: Vec<Dial>,
    pub clients: Vec<Client>,
    /// By endpoint.
    pub clusters: Vec<Cluster>,
    pub draining: bool,
    /// What the shards are told to go on with, and will be one after the other.
    pub config: Arc<Config>,
    /// What each route may have at most, and all users' routes of each endpoint together have ever been allowed.
    pub ceilings: Vec<Option<usize>>,
    pub for_users: Vec<usize>,
    /// The connection that was taken out of a ring and goes with the next letter.
    pub descriptor: Option<u32>,
    /// The shard that the last step concerned.
    pub touched: usize,
    /// Servers that did not pass their check.
    unsound: u64,
    /// Clients that were refused because too many waited.
    pub surplus: u64,
    /// Logins that PostgreSQL refused.
    pub turned_away: u64,
    /// For how long each route has had clients waiting beside what could serve them, while nothing else happened.
    pub withheld: HashMap<RouteName, Duration>,
}

/// What came about in a run, or in many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Story {
    pub shards: u64,
    pub transactions: u64,
    pub opened: u64,
    pub handed_over: u64,
    pub steered: u64,
    /// Answers of the console.
    pub told: u64,
    /// Notices to clients that waited.
    pub notified: u64,
    /// Servers that did not pass their check.
    pub unsound: u64,
    /// Runs in which routes had weights, floors, or administrators a reserve.
    pub uneven: u64,
    /// Clients that had all answers, or left.
    pub served: u64,
    /// Clients whose session was ended.
    pub lost: u64,
    /// Clients that were refused because too many waited.
    pub surplus: u64,
    /// Logins that PostgreSQL refused.
    pub turned_away: u64,
    /// Things that went wrong, by their kind.
    pub faults: [u64; FAULT_KINDS],
}

impl std::ops::AddAssign for Story {
    fn add_assign(&mut self, other: Self) {
        self.shards += other.shards;
        self.transactions += other.transactions;
        self.opened += other.opened;
        self.handed_over += other.handed_over;
        self.steered += other.steered;
        self.told += other.told;
        self.notified += other.notified;
        self.unsound += other.unsound;
        self.uneven += other.uneven;
        self.served += other.served;
        self.lost += other.lost;
        self.surplus += other.surplus;
        self.turned_away += other.turned_away;
        self.faults.iter_mut().zip(other.faults).for_each(|(sum, more)| *sum += more);
    }
}

/// A shard and its core.
pub struct Node {
    pub shard: Shard,
    /// Until then its core does something else.
    pub stalls_until: Instant,
    pub told_to_drain: bool,
    /// Letters for it: who wrote them, and the connection that comes along. Whoever writes, they arrive in the order of
    /// their sending.
    pub inbox: VecDeque<(usize, Letter<()>, Option<u32>)>,
    /// `max_connections` of the endpoints, as far as it knows.
    pub limits: Vec<usize>,
    /// What it was told last.
    pub config: Arc<Config>,
}

impl Node {
    /// It was drained, and nothing is on its way to it.
    fn is_through(&self) -> bool {
        self.told_to_drain && self.shard.is_empty() && self.shard.is_settled() && self.inbox.is_empty()
    }
}

/// A connection being made.
#[derive(Clone, Copy)]
pub struct Dial {
    pub shard: usize,
    pub server: Key<Server>,
    pub endpoint: usize,
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut chance = Chance::new(seed);
        let mut later = Chance::new(!seed);
        let plan = Plan::draw(&mut chance, &mut later, faults, Self::KINDS.len());
        let config = Arc::new(plan.config());
        let nodes = (0..plan.shards).map(|number| Node {
            shard: Shard::new(
                config.clone(),
                ShardId(number as u16),
                plan.shards,
                seed,
                Secret::new([7; 32]),
            ),
            stalls_until: Instant::default(),
            told_to_drain: false,
            inbox: VecDeque::new(),
            limits: plan.limits.clone(),
            config: config.clone(),
        });
        let mut clients = Vec::new();
        for (database, user, count) in &plan.routes {
            for _ in 0..*count {
                let mut client =
                    Client::new(format!("c{}", clients.len()), database, user, plan.habits(), &mut chance);
                client.thinks_until = client.thinks_until + chance.up_to(plan.think_max);
                clients.push(client);
            }
        }
        for number in 0..plan.administrators {
            let mut client = Client::administrator(format!("a{number}"), plan.shards, &mut chance);
            client.thinks_until = client.thinks_until + chance.up_to(plan.think_max);
            clients.push(client);
        }
        let nodes = nodes.collect();
        Self {
            traced: std::env::var_os("SIM_TRACE").is_some(),
            kinds: [0; Self::KINDS.len()],
            happened: [0; FAULT_KINDS],
            faults,
            nodes,
            clusters: plan.limits.iter().map(|&limit| Cluster::new(limit, plan.introduces)).collect(),
            ceilings: config.routes.iter().map(|route| route.max_connections).collect(),
            for_users: config.endpoints.iter().map(|each| each.max_connections - each.reserve).collect(),
            plan,
            chance,
            later,
            now: Instant::from_nanos(1),
            sockets: BTreeMap::new(),
            next_socket: 0,
            dials: Vec::new(),
            clients,
            draining: false,
            config,
            descriptor: None,
            touched: 0,
            unsound: 0,
            surplus: 0,
            turned_away: 0,
            withheld: HashMap::new(),
        }
    }

    /// Plays until every client has come to its end, drains all shards, and checks that nothing is left.
    pub fn run(mut self) -> Story {
        let patience = if self.chance.one_in(2) { Duration::ZERO } else { Duration::from_secs(3600) };
        self.play(|world| world.clients_are_over());
        self.check_clients();
        // Now and then everything may come to rest first.
        let end = self.now + patience;
        self.play(|world| world.now >= end);
        self.draining = true;
        self.play(|world| world.nodes.iter().all(Node::is_through));
        self.check_end();
        self.story()
    }

    fn story(&self) -> Story {
        let mut story = Story { shards: self.nodes.len() as u64, ..Story::default() };
        for stats in self.nodes.iter().map(|node| node.shard.stats()) {
            story.transactions += stats.transactions;
            story.opened += stats.opened;
            story.handed_over += stats.handed_in;
            story.steered += stats.steered_in;
        }
        story.told = self.clients.iter().map(|client| client.was_told() as u64).sum();
        story.notified = self.clients.iter().map(|client| client.notified).sum();
        story.unsound = self.unsound;
        story.uneven = u64::from(self.plan.uneven);
        story.served = self.clients.iter().filter(|client| client.done).count() as u64;
        (story.surplus, story.turned_away) = (self.surplus, self.turned_away);
        story.faults = self.happened;
        story.lost = self.clients.len() as u64 - story.served;
        story
    }

    /// Steps until then, or until nothing more can happen.
    fn play(&mut self, is_over: impl Fn(&Self) -> bool) {
        for step in 0.. {
            assert!(step < STEPS_MAX, "it does not come to an end: {:?}", self.kinds);
            self.check();
            if is_over(self) || (!self.act() && !self.wait()) {
                return;
            }
        }
    }

    fn clients_are_over(&self) -> bool {
        self.clients.iter().all(Client::is_over)
    }

    /// Time passes until something happens by itself; false if nothing ever will.
    fn wait(&mut self) -> bool {
        let closing = self.sockets.values().filter(|socket| socket.closing.is_some());
        let clients = self.clients.iter().filter(|client| !client.is_over());
        let shards = self.nodes.iter().map(|node| match node.stalls_until {
            until if until > self.now => until,
            _ => node.shard.next_deadline(),
        });
        let next = closing
            .map(|socket| socket.closing_until)
            .chain(clients.flat_map(|client| [client.thinks_until, client.stalls_until]))
            .chain(self.clusters.iter().map(|cluster| cluster.next_event(self.now)))
            .chain(shards)
            .filter(|&at| at > self.now)
            .min()
            .unwrap_or(Instant::NEVER);
        if next == Instant::NEVER {
            return false;
        }
        self.check_rest();
        self.check_withheld(next);
        self.now = next;
        true
    }

    // ---- a shard handles something ----

    /// Lets a shard handle an event that came with these bytes, and does what it wants done.
    pub fn tell<T>(&mut self, shard: usize, bytes: &[u8], event: impl FnOnce(&mut Shard) -> T) -> T {
        let node = &mut self.nodes[shard].shard;
        node.set_time(self.now);
        let outcome = event(node);
        self.touched = shard;
        let mut effects = Vec::new();
        node.take_effects(&mut effects);
        for effect in effects {
            self.apply(shard, effect, bytes);
        }
        outcome
    }

    fn apply(&mut self, shard: usize, effect: Effect, bytes: &[u8]) {
        match effect {
            Effect::Send { socket, piece } => {
                let piece = match piece {
                    Piece::Own(bytes) => bytes,
                    Piece::Received(range) => Bytes::copy_from_slice(&bytes[range]),
                };
                self.trace(|| format!("shard {shard} sends {} bytes to socket {}", piece.len(), socket.slot));
                if let Some(socket) = self.socket_of(shard, socket) {
                    assert!(socket.closing.is_none(), "nothing is sent behind a close");
                    socket.unsent.extend(&piece);
                }
            }
            Effect::Receive { socket, on } => {
                if let Some(socket) = self.socket_of(shard, socket) {
                    socket.receiving = on;
                }
            }
            Effect::LowWater { socket, bytes } => {
                if let Some(socket) = self.socket_of(shard, socket) {
                    socket.low_water = bytes;
                }
            }
            Effect::Close { socket, linger } => {
                let now = self.now;
                self.trace(|| format!("shard {shard} closes socket {} ({linger:?})", socket.slot));
                if let Some(socket) = self.socket_of(shard, socket) {
                    socket.taking = Taking::Not;
                    socket.close(linger, now);
                }
            }
            Effect::Dial { server, endpoint } => {
                self.clusters[endpoint].dialing += 1;
                self.dials.push(Dial { shard, server, endpoint });
            }
            Effect::Cancel { socket, .. } => {
                let Some(End::Server(endpoint, backend)) =
                    self.socket_of(shard, socket).map(|socket| socket.peer)
                else {
                    return;
                };
                if let Some(backend) = self.clusters[endpoint].backend(backend) {
                    backend.busy_until = backend.busy_until.min(self.now);
                }
            }
            Effect::Take { socket } => {
                if let Some(socket) = self.socket_of(shard, socket).filter(|socket| socket.closing.is_none())
                {
                    socket.taking = Taking::Asked;
                }
            }
            Effect::Mail { to, letter } => self.send_letter(shard, usize::from(to.0), letter),
            Effect::Log(line) => {
                self.unsound += u64::from(line.message.contains("server_check_query failed"));
                self.trace(|| format!("shard {shard}: {}", line.message));
            }
            Effect::Compute { .. } => panic!("the model trusts everybody"),
            Effect::Observe => self.tell(shard, &[], |shard| shard.observed(CoreReport::default())),
            Effect::Reload { .. } => panic!("nobody asks for that"),
        }
    }

    /// A replayed run tells what happens.
    pub fn trace(&self, what: impl FnOnce() -> String) {
        if self.traced {
            eprintln!("{:12.6} {}", self.now.as_nanos() as f64 / 1e9, what());
        }
    }

    // ---- sockets ----

    pub fn open_socket(&mut self, shard: usize, peer: End) -> SocketId {
        let slot = self.next_socket;
        self.next_socket += 1;
        self.sockets.insert(slot, Socket::new(shard, peer));
        SocketId { slot, generation: 0 }
    }

    /// A socket as a shard names it; none if its ring has it no more.
    fn socket_of(&mut self, shard: usize, id: SocketId) -> Option<&mut Socket> {
        let socket = self.sockets.get_mut(&id.slot)?;
        if !socket.is_in_ring() || socket.generation != id.generation {
            return None;
        }
        assert_eq!(socket.shard, shard, "a shard names its own sockets only");
        Some(socket)
    }

    pub fn is_stalled(&self, shard: usize) -> bool {
        self.nodes[shard].stalls_until > self.now
    }

    /// The sockets in rings that this is true of.
    pub fn sockets_where(&self, is_wanted: impl Fn(&Socket) -> bool) -> Vec<u32> {
        let wanted = self.sockets.iter().filter(|(_, socket)| socket.is_in_ring() && is_wanted(socket));
        wanted.map(|(&slot, _)| slot).collect()
    }
}

/// Far more than any run needs.
const STEPS_MAX: u64 = 2_000_000;
