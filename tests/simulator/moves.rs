//! Connections that move between shards: out of a ring, into a letter, into another ring.

use crate::network::{End, Taking};
use crate::world::World;
use pgpinion::ids::{RouteName, ShardId, SocketId};
use pgpinion::mail::Letter;

impl World {
    /// In place of the ledger: an idle server of some route goes to some other shard. Whoever gives keeps a permit, for
    /// nobody would bring one back.
    pub fn hand_over(&mut self) -> bool {
        if self.nodes.len() < 2 || !self.plan.hand_over || !self.chance.one_in(4) {
            return false;
        }
        let from = self.chance.below(self.nodes.len());
        let to = (from + 1 + self.chance.below(self.nodes.len() - 1)) % self.nodes.len();
        let spare = |route: &RouteName| self.nodes[from].permits[self.plan.endpoint_of(&route.database)] > 1;
        let idle = self.nodes[from].shard.routes().filter(|route| route.idle > 0 && spare(route.name));
        let idle: Vec<RouteName> = idle.map(|route| route.name.clone()).collect();
        if idle.is_empty() || self.is_stalled(from) {
            return false;
        }
        let route = &idle[self.chance.below(idle.len())];
        let begun = self.tell(from, &[], |shard| shard.hand_over(route, ShardId(to as u16)));
        if begun {
            self.nodes[from].permits[self.plan.endpoint_of(&route.database)] -= 1;
        }
        begun
    }

    /// A ring lets go of a connection, or a shard hears that it did.
    pub fn take(&mut self) -> bool {
        let asked = self.sockets_where(|socket| {
            socket.taking == Taking::Asked && socket.unsent.is_empty() && !self.is_stalled(socket.shard)
        });
        let given = self
            .sockets
            .iter()
            .filter(|(_, socket)| socket.taking == Taking::Given && !self.is_stalled(socket.shard));
        let candidates: Vec<u32> = asked.into_iter().chain(given.map(|(&slot, _)| slot)).collect();
        let Some(slot) = self.chance.pick(&candidates) else { return false };
        let Some(socket) = self.sockets.get_mut(&slot) else { return false };
        if socket.taking == Taking::Asked {
            socket.taking = Taking::Given;
        } else {
            self.taken(slot);
        }
        true
    }

    fn taken(&mut self, slot: u32) {
        let Some(socket) = self.sockets.get(&slot) else { return };
        let (shard, owner, peer) = (socket.shard, socket.owner, socket.peer);
        let has_room = !self.chance.one_in(8);
        self.descriptor = Some(slot);
        if self.tell(shard, &[], |shard| shard.taken(owner, |_| has_room)) {
            assert!(self.descriptor.is_none(), "who leaves leaves by letter");
            return;
        }
        let socket = self.sockets.get_mut(&slot).zip(self.descriptor.take());
        let Some(id) = socket.map(|(socket, slot)| socket.adopt(slot, shard)) else { return };
        if let End::Server(endpoint, _) = peer {
            self.nodes[shard].permits[endpoint] += 1;
        }
        self.tell(shard, &[], |shard| shard.stays(owner, id));
    }

    pub fn send_letter(&mut self, from: usize, to: usize, letter: Letter<()>) {
        assert_ne!(from, to, "nobody writes to itself");
        let slot = letter.connection().and_then(|()| self.descriptor.take());
        assert_eq!(slot.is_some(), letter.connection().is_some(), "a connection leaves when it was taken");
        if let Some(socket) = slot.and_then(|slot| self.sockets.get_mut(&slot)) {
            socket.taking = Taking::Gone;
        }
        self.nodes[to].inbox.push_back((from, letter, slot));
    }

    /// A shard reads its next letter.
    pub fn read_letter(&mut self) -> bool {
        let readers: Vec<usize> = (0..self.nodes.len())
            .filter(|&shard| !self.nodes[shard].inbox.is_empty() && !self.is_stalled(shard))
            .collect();
        let Some(to) = self.chance.pick(&readers) else { return false };
        let Some((from, letter, slot)) = self.nodes[to].inbox.pop_front() else { return false };
        let socket = slot.and_then(|slot| self.sockets.get_mut(&slot).map(|socket| (slot, socket)));
        let Some((slot, socket)) = socket else {
            self.tell(to, &[], |shard| shard.mail(ShardId(from as u16), without_connection(letter)));
            return true;
        };
        let id = socket.adopt(slot, to);
        if let End::Server(endpoint, _) = socket.peer {
            self.nodes[to].permits[endpoint] += 1;
        }
        let owner = self.tell(to, &[], |shard| shard.mail(ShardId(from as u16), letter.map(|()| id)));
        if let Some((socket, owner)) = self.sockets.get_mut(&slot).zip(owner) {
            socket.owner = owner;
        }
        true
    }
}

fn without_connection(letter: Letter<()>) -> Letter<SocketId> {
    letter.map(|()| unreachable!("a connection in a letter is there"))
}
