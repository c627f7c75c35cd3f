//! One route's pool on one shard: which servers are idle, who waits.
//!
//! Only lists. It never sees a byte, and chooses by rules that stand here: the server used last is used first (its
//! caches are warm, and the others can go when they are not needed), and who came first is served first.

use std::collections::VecDeque;

/// Idle servers `S` and waiting clients `C` of one route.
#[derive(Debug)]
pub struct Pool<S, C> {
    idle: Vec<S>,
    waiting: VecDeque<C>,
    /// Connections held in any state, closing ones included.
    held: usize,
    dialing: usize,
}

impl<S, C> Default for Pool<S, C> {
    fn default() -> Self {
        Self { idle: Vec::new(), waiting: VecDeque::new(), held: 0, dialing: 0 }
    }
}

impl<S: Copy + PartialEq, C: Copy + PartialEq> Pool<S, C> {
    /// The idle server that was used last.
    #[inline]
    pub fn take_idle(&mut self) -> Option<S> {
        self.idle.pop()
    }

    /// The idle server that was used longest ago.
    pub fn coldest_idle(&self) -> Option<S> {
        self.idle.first().copied()
    }

    /// A server came to rest and nobody waits for it.
    #[inline]
    pub fn put_idle(&mut self, server: S) {
        debug_assert!(!self.idle.contains(&server), "a server is idle once");
        self.idle.push(server);
    }

    /// An idle server is idle no longer, without being linked. True if it was.
    pub fn remove_idle(&mut self, server: S) -> bool {
        let at = self.idle.iter().position(|&each| each == server);
        at.map(|at| self.idle.remove(at)).is_some()
    }

    /// A client begins to wait.
    pub fn enqueue(&mut self, client: C) {
        self.waiting.push_back(client);
    }

    /// The client that has waited longest.
    #[inline]
    pub fn dequeue(&mut self) -> Option<C> {
        self.waiting.pop_front()
    }

    /// The client that has waited longest, who goes on waiting.
    pub fn first_waiting(&self) -> Option<C> {
        self.waiting.front().copied()
    }

    /// Everybody who waits, longest first.
    pub fn waiting_clients(&self) -> impl Iterator<Item = C> {
        self.waiting.iter().copied()
    }

    /// A client waits no longer: it left, or waited too long.
    pub fn forget_waiting(&mut self, client: C) {
        if let Some(at) = self.waiting.iter().position(|&each| each == client) {
            self.waiting.remove(at);
        }
    }

    /// A connection is being opened.
    pub fn dial_begins(&mut self) {
        self.held += 1;
        self.dialing += 1;
    }

    /// The opening came to an end, good or bad.
    pub fn dial_ends(&mut self) {
        assert!(self.dialing > 0, "a dial that ends has begun");
        self.dialing -= 1;
    }

    /// A connection came from another shard.
    pub fn arrives(&mut self) {
        self.held += 1;
    }

    /// A connection is gone, or gone to another shard.
    pub fn gone(&mut self) {
        assert!(self.held > self.idle.len(), "a connection that is gone was held, and not idle");
        self.held -= 1;
    }

    /// Clients wait for whom no connection is being opened.
    #[inline]
    pub fn wants_more(&self) -> bool {
        self.waiting.len() > self.dialing
    }

    /// Connections held in any state.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Connections being opened.
    pub fn dialing(&self) -> usize {
        self.dialing
    }

    /// Idle connections.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Waiting clients.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Nothing is held and nobody waits.
    pub fn is_unused(&self) -> bool {
        self.held == 0 && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_come_last_in_first_out_and_clients_first_come_first_served() {
        let mut pool = Pool::<u8, char>::default();
        for server in 1..=3 {
            pool.dial_begins();
            pool.dial_ends();
            pool.put_idle(server);
        }
        assert_eq!(pool.coldest_idle(), Some(1));
        assert_eq!(pool.take_idle(), Some(3));
        assert!(pool.remove_idle(1) && !pool.remove_idle(1));
        pool.gone();
        assert_eq!((pool.idle(), pool.held()), (1, 2));
        for client in ['a', 'b', 'c'] {
            pool.enqueue(client);
        }
        pool.forget_waiting('a');
        assert_eq!(pool.dequeue(), Some('b'));
        assert_eq!(pool.dequeue(), Some('c'));
        assert_eq!(pool.dequeue(), None);
    }
}
