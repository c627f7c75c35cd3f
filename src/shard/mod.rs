//! The whole state of one core, and every decision it takes: clients, servers, pools, permits, deadlines.
//!
//! Pure: events in ([`Shard::accepted`], [`Shard::received`], [`Shard::sent`], [`Shard::ended`], [`Shard::closed`],
//! [`Shard::dialed`], [`Shard::scram_done`], [`Shard::tick`], [`Shard::drain`]), effects out
//! ([`Shard::take_effects`], to be applied after each event). The time comes in with [`Shard::set_time`].
//!
//! ```text
//!   client:  Startup -> AwaitParameters -> Idle <-> Waiting -> Linked -> Idle ... -> Leaving
//!   server:  Dialing -> Login -> Idle <-> Linked -> (Draining -> Cleaning ->) Idle ... -> Closing
//! ```
//!
//! A server is released (Linked -> Idle, or straight to the client that waits longest) in the same step in which the
//! last byte of its last answer is handed to the ring: before its client can read it.

mod client;
mod deadlines;
mod effect;
mod farewell;
mod login;
mod passing;
mod pools;
mod server;

pub use client::Client;
pub use effect::{DialError, Effect, Party, Peer, Piece};
pub use server::Server;

use crate::config::{Config, LogLevel, PoolMode};
use crate::ids::{ConnectionId, IdSource, Owner, SessionId, ShardId, SocketId};
use crate::ledger::Ledger;
use crate::log_line::Line;
use crate::pool::Pool;
use crate::prepared::Statements;
use crate::server::{Credentials, Parameters, ScramResult};
use crate::slab::{Key, Slab};
use crate::time::Instant;
use crate::wire::error::Report;
use bytes::{Bytes, BytesMut};
use deadlines::{Deadline, Deadlines};
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

type ClientKey = Key<Client>;
type ServerKey = Key<Server>;
type RouteKey = Key<Route>;

/// See the module.
pub struct Shard {
    config: Arc<Config>,
    ids: IdSource,
    now: Instant,
    clients: Slab<Client>,
    servers: Slab<Server>,
    routes: Slab<Route>,
    /// By index of the database in the configuration, database name and user as the client gave them.
    routes_by_name: HashMap<(usize, String, String), RouteKey>,
    endpoints: Vec<EndpointState>,
    /// Prepared statements of all clients.
    statements: Statements,
    /// Where messages are rewritten.
    rewritten: BytesMut,
    deadlines: Deadlines<Alarm>,
    effects: Vec<Effect>,
    draining: bool,
    random: Random,
    stats: Stats,
}

/// One (endpoint, database, user) on this shard: the clients that may share servers, and these.
struct Route {
    name: (usize, String, String),
    endpoint: usize,
    mode: PoolMode,
    dbname: String,
    credentials: Credentials,
    pool: Pool<ServerKey, ClientKey>,
    /// Clients that log in and wait to learn what the server reports about itself.
    logins: VecDeque<ClientKey>,
    /// What the server that logged in last reported.
    parameters: Option<Rc<Parameters>>,
    /// The server refused this route's login; until then nobody asks again.
    refused: Option<(Instant, Bytes, Report)>,
    clients: usize,
}

/// An endpoint as this shard sees it.
struct EndpointState {
    ledger: Ledger,
    routes: Vec<RouteKey>,
    dialing: usize,
    closing: usize,
    /// Attempts that failed one after the other.
    failures: u32,
    last_error: Option<String>,
    retry: Deadline,
}

/// What a deadline belongs to, as a number for the heap: a party's owner, or an endpoint below it.
#[derive(Clone, Copy)]
enum Alarm {
    Client(ClientKey),
    Server(ServerKey),
    Endpoint(usize),
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Transactions (or sessions' statements outside one) whose end let a server rest.
    pub transactions: u64,
    /// Query and Execute messages.
    pub queries: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
    /// Clients that logged in.
    pub logins: u64,
    /// Server connections opened.
    pub opened: u64,
    /// Time clients waited for a server.
    pub wait: std::time::Duration,
}

/// How many of each there are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Clients in any state.
    pub clients: usize,
    /// Clients that wait for a server.
    pub waiting: usize,
    /// Servers in any state.
    pub servers: usize,
    /// Servers at rest.
    pub idle: usize,
    /// Permits held, over all endpoints.
    pub permits: usize,
}

impl Shard {
    /// Shard `id` of `shards`, with nothing in it yet. `seed` is for jitter, not for secrets.
    pub fn new(config: Arc<Config>, id: ShardId, shards: usize, seed: u64) -> Self {
        let share = |max| Ledger::share(max, id, shards);
        let endpoints =
            config.endpoints.iter().map(|each| EndpointState::new(share(each.max_connections))).collect();
        Self {
            config,
            ids: IdSource::new(id),
            now: Instant::default(),
            clients: Slab::default(),
            servers: Slab::default(),
            routes: Slab::default(),
            routes_by_name: HashMap::new(),
            endpoints,
            statements: Statements::default(),
            rewritten: BytesMut::with_capacity(REWRITTEN_BYTES),
            deadlines: Deadlines::default(),
            effects: Vec::new(),
            draining: false,
            random: Random(seed),
            stats: Stats::default(),
        }
    }

    /// Tells the time. It never goes back.
    #[inline]
    pub fn set_time(&mut self, now: Instant) {
        debug_assert!(now >= self.now, "time goes on");
        self.now = now;
    }

    /// Bytes arrived. Effects may refer to them by [`Piece::Received`].
    #[inline]
    pub fn received(&mut self, owner: Owner, bytes: &[u8]) {
        match Party::from_owner(owner) {
            Party::Client(key) => self.client_received(key, bytes),
            Party::Server(key) => self.server_received(key, bytes),
        }
    }

    /// Bytes left for good.
    #[inline]
    pub fn sent(&mut self, owner: Owner, bytes: usize) {
        match Party::from_owner(owner) {
            Party::Client(key) => self.client_sent(key, bytes),
            Party::Server(key) => self.server_sent(key, bytes),
        }
    }

    /// Bytes that were said to have left are still here after all.
    pub fn unsent(&mut self, owner: Owner, bytes: usize) {
        match Party::from_owner(owner) {
            Party::Client(key) => self.client_unsent(key, bytes),
            Party::Server(key) => self.server_unsent(key, bytes),
        }
    }

    /// The peer ended the connection, or it broke (`error` is the errno).
    pub fn ended(&mut self, owner: Owner, error: Option<i32>) {
        match Party::from_owner(owner) {
            Party::Client(key) => self.client_ended(key, error),
            Party::Server(key) => self.server_ended(key, error),
        }
    }

    /// A connection that was to be closed is closed, on the other side too if it was let.
    pub fn closed(&mut self, owner: Owner) {
        match Party::from_owner(owner) {
            Party::Client(key) => drop(self.clients.remove(key)),
            Party::Server(key) => self.server_closed(key),
        }
    }

    /// A panic happened while an event of this party was handled: it cannot be trusted, and neither can whom it is
    /// linked to. Both are closed.
    pub fn condemn(&mut self, owner: Owner) {
        match Party::from_owner(owner) {
            Party::Client(key) => self.condemn_client(key),
            Party::Server(key) => self.condemn_server(key),
        }
    }

    /// A dial came to its end.
    pub fn dialed(&mut self, server: Key<Server>, outcome: Result<SocketId, DialError>) {
        self.server_dialed(server, outcome);
    }

    /// A computation for a login is done.
    pub fn scram_done(&mut self, server: Key<Server>, result: ScramResult) {
        self.login_computed(server, result);
    }

    /// When [`Shard::tick`] wants to be called at the latest.
    #[inline]
    pub fn next_deadline(&self) -> Instant {
        self.deadlines.next()
    }

    /// Acts on the deadlines that have come.
    pub fn tick(&mut self) {
        while let Some((alarm, rang)) = self.deadlines.ringing(self.now) {
            match alarm {
                Alarm::Client(key) => self.client_alarm(key, rang),
                Alarm::Server(key) => self.server_alarm(key, rang),
                Alarm::Endpoint(endpoint) => self.endpoint_alarm(endpoint, rang),
            }
        }
        let living = self.clients.len() + self.servers.len() + self.endpoints.len();
        if self.deadlines.len() > 4 * living + ALARMS_SPARE {
            let (clients, servers) = (&self.clients, &self.servers);
            self.deadlines.retain(|alarm| match alarm {
                Alarm::Client(key) => clients.get(key).is_some(),
                Alarm::Server(key) => servers.get(key).is_some(),
                Alarm::Endpoint(_) => true,
            });
        }
    }

    /// Begins the orderly end: whoever is between transactions is sent away now, the others when theirs is over.
    /// The shard [is empty](Shard::is_empty) when all are gone.
    pub fn drain(&mut self) {
        self.draining = true;
        for key in self.clients.keys() {
            self.drain_client(key);
        }
        for key in self.servers.keys() {
            self.drain_server(key);
        }
    }

    /// No client and no server is left.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.servers.is_empty()
    }

    /// Swaps the effects of the last event for an empty list, which is filled next.
    #[inline]
    pub fn take_effects(&mut self, empty: &mut Vec<Effect>) {
        debug_assert!(empty.is_empty());
        std::mem::swap(&mut self.effects, empty);
    }

    /// There is something to be done.
    #[inline]
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// Counts since the start.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Counts of now.
    pub fn census(&self) -> Census {
        Census {
            clients: self.clients.len(),
            waiting: self.routes.iter().map(|(_, route)| route.pool.waiting() + route.logins.len()).sum(),
            servers: self.servers.len(),
            idle: self.routes.iter().map(|(_, route)| route.pool.idle()).sum(),
            permits: self.endpoints.iter().map(|endpoint| endpoint.ledger.held()).sum(),
        }
    }

    fn log(
        &mut self,
        level: LogLevel,
        session: Option<SessionId>,
        connection: Option<ConnectionId>,
        text: impl FnOnce() -> String,
    ) {
        if level <= self.config.log.level {
            let mut line = Line::new(level, text());
            (line.fields.session, line.fields.connection) = (session, connection);
            self.effects.push(Effect::Log(line));
        }
    }
}

/// A shard that ends at once closes everything with it: its permits end there too.
impl Drop for Shard {
    fn drop(&mut self) {
        for key in self.servers.keys() {
            if let Some(server) = self.servers.remove(key) {
                self.endpoints[server.endpoint].ledger.give_back(server.permit);
            }
        }
    }
}

impl EndpointState {
    fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            routes: Vec::new(),
            dialing: 0,
            closing: 0,
            failures: 0,
            last_error: None,
            retry: Deadline::default(),
        }
    }
}

impl From<Alarm> for u64 {
    fn from(alarm: Alarm) -> u64 {
        match alarm {
            Alarm::Client(key) => Party::Client(key).to_owner().0,
            Alarm::Server(key) => Party::Server(key).to_owner().0,
            Alarm::Endpoint(index) => u64::MAX - index as u64,
        }
    }
}

impl From<u64> for Alarm {
    fn from(number: u64) -> Self {
        if u64::MAX - number < ENDPOINTS_MAX {
            return Alarm::Endpoint((u64::MAX - number) as usize);
        }
        match Party::from_owner(Owner(number)) {
            Party::Client(key) => Alarm::Client(key),
            Party::Server(key) => Alarm::Server(key),
        }
    }
}

/// Splitmix64 (Steele, Lea, Flood 2014): jitter needs no more.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Between `least` and 1 of a duration.
    fn portion(&mut self, duration: std::time::Duration, least: f64) -> std::time::Duration {
        let random = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        duration.mul_f64(least + (1.0 - least) * random)
    }
}

/// Alarms of things that are gone that may lie around before they are swept up.
const ALARMS_SPARE: usize = 4096;

/// Allocated at a time for rewritten messages: dozens of them.
const REWRITTEN_BYTES: usize = 4096;

/// The topmost numbers of an alarm are endpoints: slots of a server's key stay far below.
const ENDPOINTS_MAX: u64 = 1 << 16;
