//! The whole state of one core, and every decision it takes: clients, servers, pools, permits, deadlines.
//!
//! Pure: events in ([`Shard::accepted`], [`Shard::received`], [`Shard::sent`], [`Shard::ended`], [`Shard::closed`],
//! [`Shard::taken`], [`Shard::dialed`], [`Shard::cancelled`], [`Shard::scram_done`], [`Shard::mail`], [`Shard::tick`],
//! [`Shard::drain`], [`Shard::configure`]; for the console [`Shard::observed`] and [`Shard::reloaded`]), effects out
//! ([`Shard::take_effects`], to be applied after each event). The time comes in with [`Shard::set_time`].
//!
//! ```text
//!   client:  Startup -> AwaitParameters -> Idle <-> Waiting -> Linked -> Idle ... -> Leaving
//!            a replication connection: AwaitParameters -> Linked -> Leaving
//!   server:  Dialing -> Login -> Idle <-> Linked -> (Draining -> Cleaning ->) Idle ... -> Closing
//! ```
//!
//! A server is released (Linked -> Idle, or straight to the client that waits longest) in the same step in which the
//! last byte of its last answer is handed to the ring: before its client can read it.

mod cancel;
mod check;
mod client;
mod condemn;
mod configure;
mod console;
mod deadlines;
mod effect;
mod farewell;
mod hand_over;
mod leaks;
mod login;
mod parameters;
mod passing;
mod permits;
mod pools;
mod replication;
mod report;
#[cfg(test)]
mod script;
mod server;
mod steering;
#[cfg(test)]
mod tests;
mod waiting;

pub use crate::ids::Peer;
pub use client::Client;
pub use effect::{DialError, Effect, Party, Piece};
pub use report::RouteCensus;
pub use server::Server;

use crate::cancel_key::Secret;
use crate::config::{Config, LeakPolicy, LogLevel, PoolMode};
use crate::ids::{ConnectionId, IdSource, Owner, RouteName, SessionId, ShardId, SocketId};
use crate::ledger::{Ledger, RouteNo};
use crate::log_line::Line;
use crate::mail::Letter;
use crate::metrics::{RecentWaits, RouteCounts, Stats};
use crate::parameters::{Accepted, Registry, Values};
use crate::pool::Pool;
use crate::prepared::Statements;
use crate::random::Random;
use crate::server::{Credentials, Parameters, ScramResult};
use crate::slab::{Key, Slab};
use crate::time::Instant;
use crate::wire::error::Report;
use bytes::{Bytes, BytesMut};
use console::Console;
use deadlines::{Deadline, Deadlines};
use hashbrown::HashMap;
use permits::EndpointState;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

type ClientKey = Key<Client>;
type ServerKey = Key<Server>;
type RouteKey = Key<Route>;

/// See the module.
pub struct Shard {
    config: Arc<Config>,
    id: ShardId,
    shards: usize,
    ids: IdSource,
    now: Instant,
    clients: Slab<Client>,
    servers: Slab<Server>,
    routes: Slab<Route>,
    routes_by_name: HashMap<RouteName, RouteKey>,
    /// What the servers of routes report, as heard last.
    reported: HashMap<RouteName, Arc<Parameters>>,
    endpoints: Vec<EndpointState>,
    /// Endpoints whose share has something to say.
    stirred: Vec<usize>,
    /// Prepared statements of all clients.
    statements: Statements,
    /// Where messages are rewritten.
    rewritten: BytesMut,
    deadlines: Deadlines<Alarm>,
    effects: Vec<Effect>,
    console: Console,
    registry: Registry,
    draining: bool,
    /// Which of the homes of its route the next client is steered to.
    steering_turn: usize,
    /// Cancel requests sent to other shards that are not answered yet.
    cancels_abroad: usize,
    /// What cancel keys are derived of.
    secret: Secret,
    random: Random,
    stats: Stats,
}

/// One (endpoint, database, user) on this shard: the clients that may share servers, and these.
struct Route {
    name: RouteName,
    /// In the share of its endpoint.
    no: RouteNo,
    endpoint: usize,
    mode: PoolMode,
    leak_policy: LeakPolicy,
    waiting_clients_max: usize,
    dbname: String,
    credentials: Credentials,
    /// What the only server of a replication connection is asked for, beside user and database.
    own: Option<Box<[(String, String)]>>,
    pool: Pool<ServerKey, ClientKey>,
    /// Clients that log in and wait to learn what the server reports about itself.
    logins: VecDeque<ClientKey>,
    /// What the server that logged in last reported.
    parameters: Option<Arc<Parameters>>,
    /// Of that, what follows a client.
    defaults: Arc<Values>,
    accepted: Accepted,
    /// Clients that log in and ask for values that must be checked.
    checks: VecDeque<ClientKey>,
    /// The one of them that waits for a server, or has it.
    checking: Option<ClientKey>,
    /// The server refused this route's login; until then nobody asks again.
    refused: Option<(Instant, Bytes, Report)>,
    clients: usize,
    waits: RecentWaits,
    counts: RouteCounts,
}

/// What a deadline belongs to, as a number for the heap: a party's owner, or an endpoint below it.
#[derive(Clone, Copy)]
enum Alarm {
    Client(ClientKey),
    Server(ServerKey),
    Endpoint(usize),
    /// The console's round of inquiries.
    Console,
}

/// An alarm that rings: see [`Shard::due`].
pub struct Due {
    alarm: Alarm,
    rang: Instant,
}

impl Due {
    /// Whom it concerns, if it is a client or a server.
    pub fn owner(&self) -> Option<Owner> {
        match self.alarm {
            Alarm::Client(key) => Some(Party::Client(key).to_owner()),
            Alarm::Server(key) => Some(Party::Server(key).to_owner()),
            Alarm::Endpoint(_) | Alarm::Console => None,
        }
    }
}

impl Shard {
    /// Shard `id` of `shards`, with nothing in it yet. `seed` is for jitter; `secret`, which is the same for all of them,
    /// for the cancel keys of clients.
    pub fn new(config: Arc<Config>, id: ShardId, shards: usize, seed: u64, secret: Secret) -> Self {
        let endpoints = (0..config.endpoints.len()).map(|endpoint| {
            let keeps = permits::keeper(endpoint, shards) == id;
            EndpointState::new(keeps.then(|| Ledger::new(permits::policy(&config, endpoint), shards, seed)))
        });
        let endpoints = endpoints.collect();
        Self {
            config,
            id,
            shards,
            ids: IdSource::new(id),
            now: Instant::default(),
            clients: Slab::default(),
            servers: Slab::default(),
            routes: Slab::default(),
            routes_by_name: HashMap::new(),
            reported: HashMap::new(),
            endpoints,
            stirred: Vec::new(),
            statements: Statements::default(),
            rewritten: BytesMut::with_capacity(REWRITTEN_BYTES),
            deadlines: Deadlines::default(),
            effects: Vec::new(),
            console: Console::default(),
            registry: Registry::default(),
            draining: false,
            // The shards do not all begin with the same one.
            steering_turn: usize::from(id.0),
            secret,
            random: Random::new(seed),
            cancels_abroad: 0,
            stats: Stats::default(),
        }
    }

    /// Tells the time. It never goes back.
    #[inline]
    pub fn set_time(&mut self, now: Instant) {
        debug_assert!(now >= self.now, "time goes on");
        self.now = now;
    }

    /// Where the entry of a client or server lies.
    #[inline]
    pub fn memory_of(&self, owner: Owner) -> Range<*const u8> {
        match Party::from_owner(owner) {
            Party::Client(key) => self.clients.memory_of(key),
            Party::Server(key) => self.servers.memory_of(key),
        }
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

    /// A connection was taken out of the ring. True if it leaves: the effects have the letter that its descriptor goes
    /// with. Else it goes back into the ring, which [`Shard::stays`] tells. `has_room` says whether a shard can be sent
    /// one more client.
    #[must_use = "somebody has to keep the descriptor"]
    pub fn taken(&mut self, owner: Owner, has_room: impl FnOnce(ShardId) -> bool) -> bool {
        let party = Party::from_owner(owner);
        let leaves = match party {
            // Who drains sees its own to their end.
            Party::Client(key) => !self.draining && self.client_destination(key).is_some_and(has_room),
            // The ledger knows that it goes.
            Party::Server(key) => self.server_destination(key).is_some(),
        };
        match party {
            Party::Client(key) if leaves => self.client_leaves(key),
            Party::Server(key) if leaves => self.server_leaves(key),
            _ => {}
        }
        leaves
    }

    /// A connection that was taken out of the ring is in it again, as this socket.
    pub fn stays(&mut self, owner: Owner, socket: SocketId) {
        match Party::from_owner(owner) {
            Party::Client(key) => self.client_stays(key, socket),
            Party::Server(key) => self.server_stays(key, socket),
        }
    }

    /// Another shard wrote. If a connection came along, its socket is that of the party returned.
    pub fn mail(&mut self, from: ShardId, letter: Letter<SocketId>) -> Option<Owner> {
        match letter {
            Letter::Server(server, socket) => Some(self.server_arrives(from, *server, socket)),
            Letter::Client(client, socket) => Some(self.client_arrives(*client, socket)),
            Letter::ToLedger(request) => {
                let (endpoint, request) = *request;
                self.requested(from, endpoint, request);
                None
            }
            Letter::FromLedger(order) => {
                let (endpoint, order) = *order;
                self.obey(endpoint, order);
                None
            }
            Letter::Lost(lost) => {
                self.server_lost(*lost);
                None
            }
            Letter::Parameters(heard) => {
                let (name, parameters) = *heard;
                self.hear_parameters(name, parameters);
                None
            }
            Letter::Cancel(order) => {
                self.cancel_ordered(from, &order);
                None
            }
            Letter::Cancelled(asker) => {
                self.cancel_answered(asker);
                None
            }
            Letter::Inquire => {
                self.inquired(from);
                None
            }
            Letter::Report(report) => {
                self.told(*report);
                None
            }
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
        while let Some(due) = self.due() {
            self.ring(due);
        }
    }

    /// The next alarm that rings, for [`Shard::ring`]: what it concerns can be asked before it is acted on.
    pub fn due(&mut self) -> Option<Due> {
        let due = self.deadlines.ringing(self.now).map(|(alarm, rang)| Due { alarm, rang });
        if due.is_none() {
            self.sweep_alarms();
        }
        due
    }

    /// Acts on an alarm.
    pub fn ring(&mut self, Due { alarm, rang }: Due) {
        match alarm {
            Alarm::Client(key) => self.client_alarm(key, rang),
            Alarm::Server(key) => self.server_alarm(key, rang),
            Alarm::Endpoint(endpoint) => self.endpoint_alarm(endpoint, rang),
            Alarm::Console => self.console_alarm(rang),
        }
    }

    fn sweep_alarms(&mut self) {
        let living = self.clients.len() + self.servers.len() + self.endpoints.len();
        if self.deadlines.len() > 4 * living + ALARMS_SPARE {
            let (clients, servers) = (&self.clients, &self.servers);
            self.deadlines.retain(|alarm| match alarm {
                Alarm::Client(key) => clients.get(key).is_some(),
                Alarm::Server(key) => servers.get(key).is_some(),
                Alarm::Endpoint(_) | Alarm::Console => true,
            });
        }
    }

    /// Begins the orderly end: whoever is between transactions is sent away now, the others when theirs is over.
    /// The shard [is empty](Shard::is_empty) when all are gone.
    pub fn drain(&mut self) {
        self.draining = true;
        for endpoint in 0..self.endpoints.len() {
            self.share(endpoint).stop();
        }
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
        self.settle_permits();
        std::mem::swap(&mut self.effects, empty);
    }

    /// There is something to be done.
    #[inline]
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
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

impl From<Alarm> for u64 {
    fn from(alarm: Alarm) -> u64 {
        match alarm {
            Alarm::Client(key) => Party::Client(key).to_owner().0,
            Alarm::Server(key) => Party::Server(key).to_owner().0,
            Alarm::Endpoint(index) => u64::MAX - index as u64,
            Alarm::Console => CONSOLE_ALARM,
        }
    }
}

impl From<u64> for Alarm {
    fn from(number: u64) -> Self {
        if u64::MAX - number < ENDPOINTS_MAX {
            return Alarm::Endpoint((u64::MAX - number) as usize);
        }
        if number == CONSOLE_ALARM {
            return Alarm::Console;
        }
        match Party::from_owner(Owner(number)) {
            Party::Client(key) => Alarm::Client(key),
            Party::Server(key) => Alarm::Server(key),
        }
    }
}

/// Alarms of things that are gone that may lie around before they are swept up.
const ALARMS_SPARE: usize = 4096;

/// Allocated at a time for rewritten messages: dozens of them.
const REWRITTEN_BYTES: usize = 4096;

/// The topmost numbers of an alarm are endpoints: slots of a server's key stay far below.
const ENDPOINTS_MAX: u64 = 1 << 16;

/// And the one below them.
const CONSOLE_ALARM: u64 = u64::MAX - ENDPOINTS_MAX;
