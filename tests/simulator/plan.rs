//! What a run is like, drawn from its seed: how many of everything, how fast, and what goes wrong.

use crate::chance::Chance;
use crate::client::Habits;
use crate::shares::Shares;
use pgpinion::config::{Config, Delay, LeakPolicy, PoolMode, RouteSettings};
use std::time::Duration;

/// What goes wrong.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// Clients vanish in the middle of anything, or neither read nor write for a while.
    pub clients_leave: bool,
    pub servers_die: bool,
    /// Connections are refused, or let nobody in.
    pub dials_fail: bool,
    /// PostgreSQL takes its time to execute and to end.
    pub servers_dawdle: bool,
    /// PostgreSQL says what nobody asked for, to whoever is linked or to nobody.
    pub servers_speak: bool,
    /// A shard's core does something else for a while.
    pub shards_stall: bool,
    /// The limits change while everybody is at work.
    pub reloads: bool,
    /// Any party is condemned, in any state.
    pub panics: bool,
    /// The shards are told to drain while their clients are at work.
    pub drains_early: bool,
    /// Clients are refused when they have waited for a little while, or where too many wait.
    pub impatient: bool,
    /// There are as many shards as there may be.
    pub many_shards: bool,
}

impl Faults {
    /// A client may be told that its session has to end.
    pub fn refuse_clients(&self) -> bool {
        self.servers_die || self.dials_fail || self.drains_early || self.impatient
    }
}

/// Of which kinds the shards, their clients and PostgreSQL are.
pub struct Plan {
    pub shards: usize,
    /// Connections of each endpoint.
    pub limits: Vec<usize>,
    pub mode: PoolMode,
    pub leak_policy: LeakPolicy,
    /// Database, user, and how many clients.
    pub routes: Vec<(String, String, usize)>,
    /// Clients of the console.
    pub administrators: usize,
    /// How often each kind of thing happens, against the others.
    pub weights: Vec<usize>,
    /// Servers are handed over.
    pub hand_over: bool,
    /// Clients are steered to the shards that their route lives on.
    pub steering: bool,
    /// What the routes may have. Those with a ceiling live on few shards.
    pub shares: Shares,
    /// They are not even, and may change with the limits.
    pub uneven: bool,
    /// One in so many chances for something to go wrong is taken.
    pub fault_every: usize,
    /// Clients of a route all come to one shard.
    pub flock: bool,
    /// How long a connection may take to be made.
    pub connect_max: Duration,
    /// The longest pause of a client between two steps.
    pub think_max: Duration,
    /// How long a client waits for a server.
    pub patience: Duration,
    /// The longest a step takes of the clock.
    pub step_max: Duration,
    /// What servers are asked after some time without use, and after how long.
    pub check: (&'static str, Duration),
    /// After how long a client is told that it waits.
    pub notify: Option<Duration>,
    /// Servers do something before their first use.
    pub introduces: bool,
    /// So many clients of a route may wait on a shard.
    pub waiting_max: Option<usize>,
}

/// The most shards there are.
const SHARDS_MAX: usize = 64;

impl Plan {
    /// `later` draws what was added later: all else stays as it was.
    pub fn draw(chance: &mut Chance, later: &mut Chance, faults: Faults, kinds: usize) -> Self {
        let shards = match chance.below(8) {
            0..=2 => 1,
            3..=5 => 2 + chance.below(3),
            6 => 2 + chance.below(15),
            _ => 2 + chance.below(SHARDS_MAX - 1),
        };
        let shards = if faults.many_shards { SHARDS_MAX } else { shards };
        let endpoints = 1 + usize::from(chance.one_in(4));
        let limits = (0..endpoints)
            .map(|_| {
                let most = if chance.one_in(2) { 4 } else { 2 * shards + 2 };
                1 + chance.below(most)
            })
            .collect();
        let mode = if chance.one_in(3) { PoolMode::Session } else { PoolMode::Transaction };
        let leak_policy =
            [LeakPolicy::Allow, LeakPolicy::Reset, LeakPolicy::Pin, LeakPolicy::Refuse][chance.below(4)];
        let routes: Vec<_> = (0..1 + chance.below(5))
            .map(|number| {
                let database = if endpoints == 2 && chance.one_in(2) { "other" } else { "main" };
                let crowd = if chance.one_in(3) { 12 } else { 4 };
                (database.to_owned(), format!("u{number}"), 1 + chance.below(crowd))
            })
            .collect();
        let mut plan = Self {
            shards,
            limits,
            mode,
            leak_policy,
            administrators: if chance.one_in(4) { 1 + chance.below(3) } else { 0 },
            weights: (0..kinds).map(|_| [1, 3, 10, 30][chance.below(4)]).collect(),
            hand_over: chance.one_in(2),
            steering: chance.one_in(2),
            shares: Shares::even(&draw_ceilings(chance, routes.len()), endpoints),
            fault_every: [10, 50, 200][chance.below(3)],
            flock: chance.one_in(3),
            patience: if faults.impatient { Duration::from_millis(500) } else { Duration::from_secs(3600) },
            connect_max: Duration::from_secs(if faults.servers_dawdle && chance.one_in(2) { 1 } else { 15 }),
            think_max: [Duration::ZERO, Duration::from_millis(5), Duration::from_secs(2)][chance.below(3)],
            step_max: [Duration::ZERO, Duration::from_micros(5), Duration::from_millis(1)][chance.below(3)],
            check: (
                ["", "<empty>", "ECHO check"][later.below(3)],
                [Duration::ZERO, Duration::from_micros(100), Duration::from_millis(5)][later.below(3)],
            ),
            notify: [None, Some(Duration::from_micros(100)), Some(Duration::from_millis(5))][later.below(3)],
            introduces: later.one_in(2),
            uneven: later.one_in(2),
            waiting_max: None,
            routes,
        };
        if plan.uneven {
            plan.shares = plan.shares.draw(later, &plan.endpoints(), &plan.limits);
        }
        if faults.impatient {
            plan.waiting_max = [None, Some(1), Some(3)][later.below(3)];
        }
        plan
    }

    /// The shard that a client comes to if its route flocks.
    pub fn home(&self, client: usize) -> usize {
        let mut before = 0;
        let route = self.routes.iter().position(|(_, _, count)| {
            before += count;
            client < before
        });
        route.unwrap_or_default() % self.shards
    }

    /// Whether a client of these shards may leave something on a server, and what comes of it.
    pub fn habits(&self) -> Habits {
        Habits {
            leaves: self.leak_policy != LeakPolicy::Allow,
            is_refused: self.leak_policy == LeakPolicy::Refuse && self.mode != PoolMode::Session,
        }
    }

    pub fn config(&self) -> Config {
        let mut config = Config::upstream("127.0.0.1:5432", &[0]).expect("a valid address");
        config.pool_mode = self.mode;
        config.leak_policy = self.leak_policy;
        (config.steering, config.hand_over) = (self.steering, self.hand_over);
        for (database, user, _) in &self.routes {
            config.routes.push(RouteSettings {
                database: database.clone(),
                user: user.clone(),
                weight: 1,
                min_connections: 0,
                max_connections: None,
                max_waiting_clients: None,
                leak_policy: None,
            });
        }
        config.max_waiting_clients = self.waiting_max;
        config.timeouts.query_wait = Some(self.patience);
        config.timeouts.query_wait_notify = self.notify;
        (config.server_check_query, config.timeouts.server_check) =
            (self.check.0.into(), Delay(self.check.1));
        if self.introduces {
            config.databases[0].connect_query = "CONNECT now".into();
        }
        config.timeouts.server_connect = self.connect_max;
        config.endpoints[0].max_connections = self.limits[0];
        if let Some(&limit) = self.limits.get(1) {
            let mut other = config.endpoints[0].clone();
            other.name = "other".into();
            other.max_connections = limit;
            config.endpoints.push(other);
            let mut database = config.databases[0].clone();
            database.name = "other".into();
            database.endpoint = 1;
            config.databases.push(database);
        }
        self.shares.apply(&mut config);
        config
    }

    /// The endpoint of each route.
    pub fn endpoints(&self) -> Vec<usize> {
        self.routes.iter().map(|(database, ..)| usize::from(database == "other")).collect()
    }
}

/// Routes that may have so many connections only.
fn draw_ceilings(chance: &mut Chance, routes: usize) -> Vec<Option<usize>> {
    (0..routes).map(|_| chance.one_in(3).then(|| 1 + chance.below(4))).collect()
}
