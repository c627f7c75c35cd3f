//! The right to hold server connections: who may open one, and how many.
//!
//! In this version every shard has an even share of an endpoint's `max_connections` to itself, so that the limit
//! holds over all shards at any instant without a word between them. This is the one place that knows.

use crate::ids::ShardId;

/// One shard's share of an endpoint's permits.
#[derive(Debug)]
pub struct Ledger {
    shard: ShardId,
    shards: usize,
    limit: usize,
    held: usize,
    /// Permits that came from other shards, less those that went there.
    moved: isize,
}

/// The right to hold one server connection of the ledger that gave it. Whoever closes the connection gives it back,
/// and not before PostgreSQL has closed it too.
#[must_use = "a permit that is dropped is lost"]
#[derive(Debug)]
pub struct Permit(());

impl Ledger {
    /// The share of shard `shard` of `shards`. The shares of all add up to `max_connections`.
    pub fn share(max_connections: usize, shard: ShardId, shards: usize) -> Self {
        let mut ledger = Self { shard, shards, limit: 0, held: 0, moved: 0 };
        ledger.set_limit(max_connections);
        ledger
    }

    /// Another `max_connections`. More may be held than it allows; none is given out until that is over. What has moved
    /// between shards stays moved; a shard that has parted with more than its new share has none.
    pub fn set_limit(&mut self, max_connections: usize) {
        let remainder = usize::from(usize::from(self.shard.0) < max_connections % self.shards);
        let share = max_connections / self.shards + remainder;
        self.limit = share.saturating_add_signed(self.moved);
    }

    /// A permit, if one is free.
    pub fn take(&mut self) -> Option<Permit> {
        if self.held >= self.limit {
            return None;
        }
        self.held += 1;
        Some(Permit(()))
    }

    /// Gives a permit back.
    pub fn give_back(&mut self, permit: Permit) {
        assert!(self.held > 0, "more permits came back than were given");
        self.held -= 1;
        std::mem::forget(permit);
    }

    /// The connection of a permit is about to leave for another shard, and the permit with it: it counts there from
    /// now on.
    pub fn part_with(&mut self, permit: Permit) -> Permit {
        assert!(self.held > 0, "a permit that leaves was held");
        self.held -= 1;
        self.limit = self.limit.saturating_sub(1);
        self.moved -= 1;
        permit
    }

    /// A permit came along with its connection.
    pub fn take_over(&mut self, permit: Permit) -> Permit {
        self.held += 1;
        self.limit += 1;
        self.moved += 1;
        permit
    }

    /// Permits given and not come back.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Permits there are.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many connections a route may keep while others want some too.
    pub fn quota(&self, active_routes: usize) -> usize {
        (self.limit / active_routes.max(1)).max(1)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        debug_assert!(std::thread::panicking(), "a permit was dropped instead of given back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_the_limit() {
        for max in 1..50 {
            for shards in 1..=max {
                let sum: usize =
                    (0..shards).map(|shard| Ledger::share(max, ShardId(shard as u16), shards).limit()).sum();
                assert_eq!(sum, max);
            }
        }
    }

    #[test]
    fn permits_that_move_leave_the_sum_as_it_is() {
        let mut shares = [Ledger::share(5, ShardId(0), 2), Ledger::share(5, ShardId(1), 2)];
        let permit = shares[0].take().unwrap();
        let permit = shares[0].part_with(permit);
        let permit = shares[1].take_over(permit);
        assert_eq!(shares.each_ref().map(|share| (share.held(), share.limit())), [(0, 2), (1, 3)]);
        shares[1].give_back(permit);
    }

    #[test]
    fn no_permit_beyond_the_limit() {
        let mut ledger = Ledger::share(2, ShardId(0), 1);
        let first = ledger.take().unwrap();
        let second = ledger.take().unwrap();
        assert!(ledger.take().is_none());
        ledger.give_back(first);
        let third = ledger.take().unwrap();
        ledger.give_back(second);
        ledger.give_back(third);
        assert_eq!(ledger.held(), 0);
    }

    #[test]
    fn a_lowered_limit_holds_back_what_comes_back() {
        let mut ledger = Ledger::share(4, ShardId(1), 2);
        let (first, second) = (ledger.take().unwrap(), ledger.take().unwrap());
        ledger.set_limit(3);
        assert_eq!((ledger.limit(), ledger.held()), (1, 2));
        ledger.give_back(first);
        assert!(ledger.take().is_none());
        ledger.give_back(second);
        let third = ledger.take().unwrap();
        ledger.give_back(third);
        ledger.set_limit(4);
        assert_eq!(ledger.limit(), 2);
        let moved = ledger.take().unwrap();
        let moved = ledger.part_with(moved);
        ledger.set_limit(4);
        assert_eq!(ledger.limit(), 1, "what has moved stays moved");
        let back = ledger.take_over(moved);
        assert_eq!((ledger.limit(), ledger.held()), (2, 1));
        ledger.give_back(back);
    }
}
