//! The ledger's account of one route: what each shard holds, wants and owes.

use super::letters::{Destination, Level};
use super::policy::Terms;
use crate::ids::{RouteName, ShardId};
use crate::time::Instant;
use std::time::Duration;

/// A route's account.
#[derive(Debug)]
pub(super) struct Account {
    pub name: RouteName,
    pub terms: Terms,
    /// One per shard that has or had to do with it, in order of shards.
    pub holdings: Vec<Holding>,
    /// Moves that were ordered and have not been made: from, to.
    moves: Vec<(ShardId, ShardId)>,
    /// Permits held times time, by weight: who has had more must give way when there is nothing else to choose by.
    pub turn: f64,
    /// When it was last given a permit.
    pub granted_at: Instant,
    /// When it last gave up all it had.
    pub emptied_at: Instant,
    /// The server wants none of it until then.
    pub refused_until: Instant,
    /// Permits that are on their way to the ledger and meant for this route, in this balance.
    pub planned: u32,
    pub sums: Sums,
}

/// What the holdings of a route add up to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub credit: u32,
    /// Permits that recalls will bring back.
    pub closes: u32,
    /// Connections that could be recalled, and those of them that no client keeps.
    pub payable: u32,
    pub payable_soon: u32,
    /// Permits wanted, grants on their way taken off.
    pub need: u32,
    /// The same with ordered moves taken off.
    pub lack: u32,
    /// Since when the first waits of those.
    pub since: Instant,
    /// Connections at rest, as far as known.
    pub idle: u32,
    pub idle_since: Instant,
    /// None of the shards that have permits has clients.
    pub deserted: bool,
}

/// What one shard has of a route.
#[derive(Debug)]
pub(super) struct Holding {
    pub shard: ShardId,
    /// Permits at the shard or on the way there.
    pub credit: u32,
    /// Recalls to close that are not answered.
    pub closes: u32,
    /// Recalls to another shard that are not answered.
    pub leaving: u32,
    /// Recalls to this shard that are not answered.
    pub coming: u32,
    /// Of `closes` and `leaving`, those that were taken back.
    pub kept: u32,
    /// Clients that want a connection, at the shard's last level.
    pub wanting: u32,
    pub since: Instant,
    /// Clients at work or waiting; `None` if the shard was not asked.
    pub busy: Option<u32>,
    /// Those that have waited for long.
    pub overdue: u32,
    /// Grants and connections that the shard had not received at its last level.
    pub sent: u32,
    pub idle: u32,
    pub idle_since: Instant,
    pub deserted: bool,
    pub pinned: u32,
    /// Since when the oldest recall, or the last answer to one, is.
    pub owing_since: Instant,
    /// How long a recall may go unanswered before another connection is looked for.
    pub patience: Duration,
    /// When it was last given a permit.
    pub received_at: Instant,
    pub totals: Totals,
}

/// What happened to a route's permits on a shard since somebody first used it there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Permits granted.
    pub granted: u64,
    /// Recalls to close.
    pub recalled: u64,
    /// Connections that came from other shards.
    pub moved_in: u64,
    /// Connections that went to other shards.
    pub moved_out: u64,
}

impl Holding {
    fn new(shard: ShardId) -> Self {
        Self {
            shard,
            credit: 0,
            closes: 0,
            leaving: 0,
            coming: 0,
            kept: 0,
            wanting: 0,
            since: Instant::NEVER,
            busy: None,
            overdue: 0,
            sent: 0,
            idle: 0,
            idle_since: Instant::NEVER,
            deserted: false,
            pinned: 0,
            owing_since: Instant::NEVER,
            patience: PATIENCE_MIN,
            received_at: Instant::default(),
            totals: Totals::default(),
        }
    }

    /// Permits wanted that are not on their way.
    pub fn need(&self) -> u32 {
        self.wanting.saturating_sub(self.sent)
    }

    /// The same, if ordered moves are made.
    pub fn lack(&self) -> u32 {
        self.need().saturating_sub(self.coming)
    }

    /// Clients that have waited for long and for whom nothing is on its way.
    pub fn pressing(&self) -> u32 {
        self.overdue.saturating_sub(self.sent + self.coming)
    }

    /// Connections that can still be told to close, when their clients leave if not before.
    pub fn payable(&self) -> u32 {
        self.credit.saturating_sub(self.closes)
    }

    /// Those of them that no client keeps: they come to rest when a transaction ends.
    pub fn payable_soon(&self) -> u32 {
        self.credit.saturating_sub(self.closes + self.pinned)
    }

    /// Connections that can still be told to leave.
    pub fn movable(&self) -> u32 {
        self.payable().saturating_sub(self.leaving)
    }

    /// Connections it will have when all is done that was ordered.
    pub fn prospect(&self) -> u32 {
        (self.credit + self.coming).saturating_sub(self.closes + self.leaving)
    }

    /// Clients at work or waiting: what its part is measured by.
    pub fn busy(&self) -> u32 {
        self.busy.unwrap_or_else(|| self.credit.saturating_sub(self.idle) + self.need())
    }

    fn owes(&self) -> u32 {
        self.closes + self.leaving
    }

    /// When recalls should have been answered; never, if all were taken back.
    pub fn overdue_at(&self, patience: Duration) -> Instant {
        if self.owes() > self.kept { self.owing_since + patience } else { Instant::NEVER }
    }

    /// Was slow to answer its last recalls.
    pub fn is_slow(&self) -> bool {
        self.patience > PATIENCE_MIN || self.kept > 0
    }

    /// A recall was answered; by a connection, or by none.
    fn answered(&mut self, paid: bool, now: Instant) {
        // Whether it was one of those taken back is not known. If it was not, another is taken back twice, which is
        // harmless; if it was and still counted, the next would never be.
        self.kept = self.kept.saturating_sub(1).min(self.owes());
        self.owing_since = if self.owes() == 0 { Instant::NEVER } else { now };
        if paid {
            self.patience = PATIENCE_MIN;
        }
    }

    /// The level of a shard that was told to speak of connections at rest, or not to.
    pub fn take(&mut self, level: &Level, tight: bool) {
        assert!(self.sent >= level.received, "a shard received more than it was sent");
        self.sent -= level.received;
        (self.wanting, self.since) = (level.wanting, level.since);
        self.forget_rest();
        if tight {
            self.busy = Some(level.busy);
            (self.overdue, self.pinned) = (level.overdue, level.pinned);
            (self.idle, self.idle_since) = (level.idle, level.idle_since);
            self.deserted = level.deserted;
        }
    }

    pub fn forget_rest(&mut self) {
        (self.busy, self.overdue, self.pinned, self.deserted) = (None, 0, 0, false);
        (self.idle, self.idle_since) = (0, Instant::NEVER);
    }

    fn is_unused(&self) -> bool {
        self.credit + self.owes() + self.coming + self.wanting + self.sent == 0
    }
}

impl Account {
    pub fn new(name: RouteName, terms: Terms) -> Self {
        Self {
            name,
            terms,
            holdings: Vec::new(),
            moves: Vec::new(),
            turn: 0.0,
            granted_at: Instant::default(),
            emptied_at: Instant::default(),
            refused_until: Instant::default(),
            planned: 0,
            sums: Sums::default(),
        }
    }

    /// The holding of a shard.
    pub fn at(&mut self, shard: ShardId) -> &mut Holding {
        let place = match self.holdings.binary_search_by_key(&shard, |each| each.shard) {
            Ok(place) => place,
            Err(place) => {
                self.holdings.insert(place, Holding::new(shard));
                place
            }
        };
        &mut self.holdings[place]
    }

    /// Adds up the holdings, which have changed.
    pub fn add_up(&mut self) {
        let mut sums =
            Sums { since: Instant::NEVER, idle_since: Instant::NEVER, deserted: true, ..Sums::default() };
        for each in &self.holdings {
            sums.credit += each.credit;
            // Some will find nothing left to close.
            sums.closes += each.closes.min(each.credit);
            sums.payable += each.payable();
            sums.payable_soon += each.payable_soon();
            sums.need += each.need();
            sums.lack += each.lack();
            sums.idle += each.idle;
            sums.deserted &= each.deserted || each.credit == 0;
            if each.need() > 0 {
                sums.since = sums.since.min(each.since);
            }
            if each.idle > 0 {
                sums.idle_since = sums.idle_since.min(each.idle_since);
            }
        }
        self.sums = sums;
    }

    /// Since when a route that has nothing waits for its turn. One that has just had its turn comes after those that have
    /// not, however long its own queue is.
    pub fn waits_since(&self) -> Instant {
        self.sums.since.max(self.emptied_at)
    }

    /// Permits the route has and will keep, as far as decided.
    pub fn allotted(&self) -> u32 {
        self.sums.credit - self.sums.closes + self.planned
    }

    /// The same for one unit of weight.
    pub fn level(&self) -> f64 {
        f64::from(self.allotted()) / self.weight()
    }

    pub fn weight(&self) -> f64 {
        f64::from(self.terms.weight)
    }

    /// It has permits, or somebody wants some.
    pub fn is_active(&self) -> bool {
        self.sums.credit > 0 || self.sums.need > 0
    }

    pub fn is_unused(&self) -> bool {
        self.moves.is_empty() && self.holdings.iter().all(Holding::is_unused)
    }

    // ---- what is ordered, and what comes of it ----

    pub fn grant(&mut self, shard: ShardId, now: Instant) {
        self.granted_at = now;
        let holding = self.at(shard);
        holding.credit += 1;
        holding.sent += 1;
        holding.received_at = now;
        holding.totals.granted += 1;
    }

    pub fn recall(&mut self, from: ShardId, to: Destination, now: Instant) {
        if to == Destination::Close && self.sums.credit <= self.sums.closes + 1 {
            self.emptied_at = now;
        }
        let holding = self.at(from);
        holding.idle = holding.idle.saturating_sub(1);
        if holding.owes() == 0 {
            holding.owing_since = now;
        }
        match to {
            Destination::Close => {
                holding.closes += 1;
                holding.totals.recalled += 1;
            }
            Destination::Shard(to) => {
                holding.leaving += 1;
                self.moves.push((from, to));
                self.at(to).coming += 1;
            }
        }
    }

    pub fn returned(&mut self, from: ShardId, recalled: bool, now: Instant) {
        let holding = self.at(from);
        assert!(holding.credit > 0, "a shard returned a permit that it did not have");
        holding.credit -= 1;
        if recalled {
            assert!(holding.closes > 0, "a shard paid a recall that was not made");
            holding.closes -= 1;
            holding.answered(true, now);
        }
    }

    pub fn moved(&mut self, from: ShardId, to: ShardId, now: Instant) {
        self.move_ends(from, to, true, now);
        let donor = self.at(from);
        assert!(donor.credit > 0, "a shard gave away a permit that it did not have");
        donor.credit -= 1;
        donor.totals.moved_out += 1;
        let heir = self.at(to);
        heir.credit += 1;
        heir.sent += 1;
        heir.received_at = now;
        heir.totals.moved_in += 1;
    }

    pub fn void(&mut self, from: ShardId, to: Destination, now: Instant) {
        match to {
            Destination::Shard(to) => self.move_ends(from, to, false, now),
            Destination::Close => {
                let holding = self.at(from);
                assert!(holding.closes > 0, "a shard declined a recall that was not made");
                holding.closes -= 1;
                holding.answered(false, now);
            }
        }
    }

    fn move_ends(&mut self, from: ShardId, to: ShardId, made: bool, now: Instant) {
        let place = self.moves.iter().position(|&each| each == (from, to));
        assert!(place.is_some(), "a shard answered a move that was not ordered");
        place.map(|place| self.moves.remove(place));
        let donor = self.at(from);
        donor.leaving -= 1;
        donor.answered(made, now);
        self.at(to).coming -= 1;
    }

    /// Takes back a recall, if one is left that was not taken back. Its answer is still to come.
    pub fn keep_one(&mut self, from: ShardId) -> Option<Destination> {
        let kept = self.at(from).kept;
        let holding = self.at(from);
        if kept >= holding.owes() {
            return None;
        }
        holding.kept += 1;
        if kept < holding.closes {
            return Some(Destination::Close);
        }
        let place = (kept - holding.closes) as usize;
        let moves: Vec<ShardId> =
            self.moves.iter().filter(|(each, _)| *each == from).map(|&(_, to)| to).collect();
        moves.get(place).map(|&to| Destination::Shard(to))
    }

    /// An ordered move to this shard that could be taken back.
    pub fn move_to(&self, to: ShardId) -> Option<ShardId> {
        self.moves.iter().find(|&&(_, each)| each == to).map(|&(from, _)| from)
    }
}

/// A recall is answered when a transaction of the route ends. Those that take longer than this are not waited for if
/// others might be shorter; the patience with a shard doubles each time it was lost in vain.
pub(super) const PATIENCE_MIN: Duration = Duration::from_millis(10);

/// The most it doubles to.
pub(super) const PATIENCE_MAX: Duration = Duration::from_secs(1);
