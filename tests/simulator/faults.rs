//! What can go wrong, one thing at a time.

use crate::network::{End, Taking};
use crate::plan::Faults;
use crate::steps::Step;
use crate::world::World;
use pgpinion::config::Config;
use pgpinion::ids::Owner;
use pgpinion::shard::Party;
use pgpinion::time::Instant;
use std::sync::Arc;
use std::time::Duration;

impl Faults {
    /// What may go wrong at any time, and whether it does.
    pub fn kinds(&self) -> [(bool, Step); FAULT_KINDS] {
        [
            (self.clients_leave, World::client_vanishes),
            (self.clients_leave, World::client_stalls),
            (self.servers_die, World::backend_dies),
            (self.servers_speak, World::backend_speaks),
            (self.servers_dawdle, World::backend_goes_deaf),
            (self.shards_stall, World::shard_stalls),
            (self.panics, World::condemn),
            (self.reloads, World::new_limits),
            (self.drains_early, World::begin_to_drain),
        ]
    }
}

/// How many of those there are.
pub const FAULT_KINDS: usize = 9;

impl World {
    /// Something goes wrong, if it may.
    pub fn fault(&mut self) -> bool {
        if !self.chance.one_in(self.plan.fault_every) {
            return false;
        }
        let possible = self.faults.kinds();
        let chosen: Vec<_> = (0..FAULT_KINDS).filter(|&kind| possible[kind].0).collect();
        let Some(kind) = self.chance.pick(&chosen) else { return false };
        let happened = possible[kind].1(self);
        self.happened[kind] += u64::from(happened);
        happened
    }

    fn living_clients(&self) -> Vec<usize> {
        let lives = |number: &usize| {
            let client = &self.clients[*number];
            !client.done && client.socket.is_some_and(|slot| self.sockets.contains_key(&slot))
        };
        (0..self.clients.len()).filter(lives).collect()
    }

    fn client_vanishes(&mut self) -> bool {
        let living = self.living_clients();
        let Some(number) = self.chance.pick(&living) else { return false };
        let client = &mut self.clients[number];
        client.done = true;
        if let Some(socket) = client.socket.and_then(|slot| self.sockets.get_mut(&slot)) {
            socket.peer_ended = true;
        }
        true
    }

    fn client_stalls(&mut self) -> bool {
        let living = self.living_clients();
        let Some(number) = self.chance.pick(&living) else { return false };
        self.clients[number].stalls_until = self.now + self.chance.up_to(STALL_MAX);
        true
    }

    /// One whose connection is on the move more often than it would come about.
    fn some_backend(&mut self) -> Option<(usize, u32)> {
        let moving = self.sockets.values().filter(|socket| socket.taking != Taking::Not);
        let moving = moving.filter_map(|socket| match socket.peer {
            End::Server(endpoint, number) => Some((endpoint, number)),
            End::Client(_) => None,
        });
        let moving: Vec<(usize, u32)> = moving.collect();
        if self.chance.one_in(2) && !moving.is_empty() {
            return self.chance.pick(&moving);
        }
        let endpoint = self.chance.below(self.clusters.len());
        let backends = self.clusters[endpoint].ids();
        self.chance.pick(&backends).map(|number| (endpoint, number))
    }

    fn backend_dies(&mut self) -> bool {
        let Some((endpoint, number)) = self.some_backend() else { return false };
        let politely = self.chance.one_in(2);
        let Some(backend) = self.clusters[endpoint].backend(number) else { return false };
        backend.postgres.die(politely);
        let output = std::mem::take(&mut backend.postgres.output);
        let socket = self.clusters[endpoint].exit(number);
        if let Some(socket) = socket.and_then(|slot| self.sockets.get_mut(&slot)) {
            socket.incoming.extend(output);
            socket.peer_ended = true;
        }
        true
    }

    /// It answers nothing for longer than anybody is patient with one that only has to show that it is alive.
    fn backend_goes_deaf(&mut self) -> bool {
        let Some((endpoint, number)) = self.some_backend() else { return false };
        let until = self.now + DEAF_MIN + self.chance.up_to(DEAF_MIN / 8);
        let Some(backend) = self.clusters[endpoint].backend(number) else { return false };
        let socket = backend.socket.and_then(|slot| self.sockets.get(&slot));
        let heard = socket.is_some_and(|socket| socket.incoming.is_empty());
        let deaf = backend.postgres.is_logged_in() && heard && backend.busy_until <= self.now;
        if deaf {
            backend.busy_until = until;
        }
        deaf
    }

    fn backend_speaks(&mut self) -> bool {
        let Some((endpoint, number)) = self.some_backend() else { return false };
        let what = self.chance.below(3);
        let Some(backend) = self.clusters[endpoint].backend(number) else { return false };
        if !backend.postgres.is_logged_in() || backend.postgres.gone {
            return false;
        }
        backend.postgres.speak(what);
        let output = std::mem::take(&mut backend.postgres.output);
        if let Some(socket) = backend.socket.and_then(|slot| self.sockets.get_mut(&slot)) {
            socket.incoming.extend(output);
        }
        true
    }

    fn shard_stalls(&mut self) -> bool {
        let shard = self.chance.below(self.nodes.len());
        let ended = self.nodes[shard].stalls_until;
        // Not again and again: what the ring times out is measured in seconds.
        let rested = self.now >= ended + STALL_MAX || ended == Instant::default();
        if rested {
            self.nodes[shard].stalls_until = self.now + self.chance.up_to(STALL_MAX);
        }
        rested
    }

    /// The operator changes the limits, and what is promised of them.
    fn new_limits(&mut self) -> bool {
        let mut config = Config::clone(&self.config);
        for (endpoint, cluster) in config.endpoints.iter_mut().zip(&mut self.clusters) {
            endpoint.max_connections = 1 + self.chance.below(3 * self.plan.shards);
            cluster.max_connections = cluster.max_connections.max(endpoint.max_connections);
        }
        if self.plan.uneven {
            let limits: Vec<usize> = config.endpoints.iter().map(|each| each.max_connections).collect();
            let shares = self.plan.shares.draw(&mut self.later, &self.plan.endpoints(), &limits);
            shares.apply(&mut config);
        }
        for (most, endpoint) in self.for_users.iter_mut().zip(&config.endpoints) {
            *most = (*most).max(endpoint.max_connections - endpoint.reserve);
        }
        self.config = Arc::new(config);
        true
    }

    /// A shard goes on with the configuration that holds now.
    pub fn configure(&mut self) -> bool {
        let limits: Vec<usize> = self.config.endpoints.iter().map(|each| each.max_connections).collect();
        let others: Vec<usize> = (0..self.nodes.len())
            .filter(|&shard| !Arc::ptr_eq(&self.nodes[shard].config, &self.config) && !self.is_stalled(shard))
            .collect();
        let Some(shard) = self.chance.pick(&others) else { return false };
        self.nodes[shard].limits = limits;
        self.nodes[shard].config = self.config.clone();
        let config = self.config.clone();
        self.tell(shard, &[], |shard| shard.configure(config));
        true
    }

    fn begin_to_drain(&mut self) -> bool {
        let begins = !self.draining && self.chance.one_in(4);
        self.draining |= begins;
        begins
    }

    /// A panic while an event of this party was handled: it is closed with whom it is linked to, and nobody else.
    fn condemn(&mut self) -> bool {
        let dialled = self.dials.iter().map(|dial| (dial.shard, Party::Server(dial.server).to_owner()));
        let sockets = self.sockets.values().filter(|socket| socket.taking != Taking::Gone);
        let sockets = sockets.map(|socket| (socket.shard, socket.owner));
        let parties: Vec<(usize, Owner)> = sockets.chain(dialled).collect();
        let Some((shard, owner)) = self.chance.pick(&parties) else { return false };
        self.trace(|| format!("shard {shard}: panic about {:?}", Party::from_owner(owner)));
        let before = self.sockets_where(|socket| socket.closing.is_some());
        self.tell(shard, &[], |shard| shard.condemn(owner));
        let after = self.sockets_where(|socket| socket.closing.is_some());
        // One that is on its way out of its ring is closed when it is back.
        let itself = self.sockets.values().find(|socket| (socket.shard, socket.owner) == (shard, owner));
        if let Some(End::Client(number)) = itself.map(|socket| socket.peer) {
            self.clients[number].condemned = true;
        }
        // What is idle elsewhere may be closed for who waits now that a permit is on its way back.
        let mut clients = 0;
        for slot in after.into_iter().filter(|slot| !before.contains(slot)) {
            if let End::Client(number) = self.sockets[&slot].peer {
                self.clients[number].condemned = true;
                clients += 1;
            }
        }
        assert!(clients <= 1, "{clients} clients were closed for one");
        true
    }
}

/// A check of a server is given up before, and `server_close_timeout` is not over until it has ended.
const DEAF_MIN: Duration = Duration::from_millis(2100);

/// The longest that a client or a core does nothing.
const STALL_MAX: Duration = Duration::from_secs(2);
