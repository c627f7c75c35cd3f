//! What can go wrong, one thing at a time.

use crate::network::End;
use crate::steps::Step;
use crate::world::World;
use pgpinion::ids::Owner;
use pgpinion::shard::Party;
use pgpinion::time::Instant;
use std::time::Duration;

impl World {
    /// Something goes wrong, if it may.
    pub fn fault(&mut self) -> bool {
        if !self.chance.one_in(10) {
            return false;
        }
        let faults = self.faults;
        let possible: [(bool, Step); 6] = [
            (faults.clients_leave, Self::client_vanishes),
            (faults.clients_leave, Self::client_stalls),
            (faults.servers_die, Self::backend_dies),
            (faults.shards_stall, Self::shard_stalls),
            (faults.panics, Self::condemn),
            (faults.drains_early, Self::begin_to_drain),
        ];
        let chosen: Vec<_> = possible.iter().filter(|(may, _)| *may).map(|&(_, fault)| fault).collect();
        match self.chance.pick(&chosen) {
            Some(fault) => fault(self),
            None => false,
        }
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

    fn backend_dies(&mut self) -> bool {
        let endpoint = self.chance.below(self.clusters.len());
        let backends = self.clusters[endpoint].ids();
        let Some(number) = self.chance.pick(&backends) else { return false };
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

    fn begin_to_drain(&mut self) -> bool {
        let begins = !self.draining && self.chance.one_in(20);
        self.draining |= begins;
        begins
    }

    /// A panic while an event of this party was handled: it is closed with whom it is linked to, and nobody else.
    fn condemn(&mut self) -> bool {
        let dialled = self.dials.iter().map(|dial| (dial.shard, Party::Server(dial.server).to_owner()));
        let sockets = self.sockets.values().map(|socket| (socket.shard, socket.owner));
        let parties: Vec<(usize, Owner)> = sockets.chain(dialled).collect();
        let Some((shard, owner)) = self.chance.pick(&parties) else { return false };
        self.trace(|| format!("shard {shard}: panic about {:?}", Party::from_owner(owner)));
        let before = self.sockets_where(|socket| socket.closing.is_some());
        self.tell(shard, &[], |shard| shard.condemn(owner));
        let after = self.sockets_where(|socket| socket.closing.is_some());
        let (mut clients, mut servers) = (0, 0);
        for slot in after.into_iter().filter(|slot| !before.contains(slot)) {
            match self.sockets[&slot].peer {
                End::Client(number) => {
                    self.clients[number].condemned = true;
                    clients += 1;
                }
                End::Server(..) => servers += 1,
            }
        }
        assert!(clients <= 1 && servers <= 1, "{clients} clients and {servers} servers were closed for one");
        true
    }
}

/// The longest that a client or a core does nothing.
const STALL_MAX: Duration = Duration::from_secs(2);
