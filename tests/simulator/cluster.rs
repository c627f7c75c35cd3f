//! One PostgreSQL server: its backends, and how many there may be. A backend is there until its process has ended,
//! whatever the pooler thinks of it by then.

use crate::postgres::Postgres;
use pgpinion::time::Instant;
use std::collections::BTreeMap;

pub struct Cluster {
    backends: BTreeMap<u32, Backend>,
    next: u32,
    /// Its backends are told something before they are used.
    introduces: bool,
    /// What PostgreSQL is set to: the most that the configuration has ever said.
    pub max_connections: usize,
    /// Permits that the ledger had given when it was last looked at.
    pub given: usize,
    /// Connections being made to it: the pooler has decided on them.
    pub dialing: usize,
}

pub struct Backend {
    pub postgres: Postgres,
    /// It checks who logs in.
    pub logs_in_until: Instant,
    /// It executes: its answers come later, and it does not notice that its client has gone.
    pub busy_until: Instant,
    /// When its process ends.
    pub exits_at: Instant,
    /// The pooler's end of the connection, as long as it is open there.
    pub socket: Option<u32>,
}

impl Cluster {
    pub fn new(max_connections: usize, introduces: bool) -> Self {
        Self { backends: BTreeMap::new(), next: 0, introduces, max_connections, given: 0, dialing: 0 }
    }

    /// A connection is accepted: there must be room for it.
    pub fn open(&mut self, socket: u32) -> u32 {
        assert!(
            self.backends.len() < self.max_connections,
            "sorry, too many clients already: {} backends of {}",
            self.backends.len(),
            self.max_connections
        );
        let id = self.next;
        self.next += 1;
        let backend = Backend {
            postgres: Postgres::new(if id.is_multiple_of(2) { 0 } else { 2 }, self.introduces),
            logs_in_until: Instant::default(),
            busy_until: Instant::default(),
            exits_at: Instant::NEVER,
            socket: Some(socket),
        };
        self.backends.insert(id, backend);
        id
    }

    /// None if its process has ended.
    pub fn backend(&mut self, id: u32) -> Option<&mut Backend> {
        self.backends.get_mut(&id)
    }

    pub fn is_busy(&self, id: u32, now: Instant) -> bool {
        self.backends.get(&id).is_some_and(|backend| backend.busy_until > now)
    }

    /// The process has ended. Returns the pooler's end of its connection.
    pub fn exit(&mut self, id: u32) -> Option<u32> {
        self.backends.remove(&id).and_then(|backend| backend.socket)
    }

    pub fn exiting(&self, now: Instant) -> Option<u32> {
        self.backends.iter().find(|(_, backend)| backend.exits_at <= now).map(|(&id, _)| id)
    }

    /// Some connection is not logged in yet.
    pub fn is_opening(&self, now: Instant) -> bool {
        self.backends.values().any(|each| !each.postgres.is_logged_in() || each.logs_in_until > now)
    }

    pub fn ids(&self) -> Vec<u32> {
        self.backends.keys().copied().collect()
    }

    pub fn open_connections(&self) -> usize {
        self.backends.len()
    }

    /// When something happens by itself.
    pub fn next_event(&self, now: Instant) -> Instant {
        let times = self.backends.values().flat_map(|backend| [backend.busy_until, backend.exits_at]);
        times.filter(|&at| at > now).min().unwrap_or(Instant::NEVER)
    }
}
