//! One route in a shard's share: the counts, what was said of them, and what is owed.

use super::letters::{Destination, Due, Level, Reason};
use super::share::{Counts, WINDOW};
use crate::ids::RouteName;
use crate::time::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// See the module.
#[derive(Debug)]
pub(super) struct Standing {
    pub name: RouteName,
    /// The shard has its number.
    pub named: bool,
    pub counts: Counts,
    /// Since when each client waits, as they stand in the queue.
    pub waiting: VecDeque<Instant>,
    /// Somebody waits for any connection at all.
    pub probing: Option<Instant>,
    /// No client is here, and the last one was not here for a moment only.
    pub deserted: bool,
    /// Since when there has been an idle connection without a break.
    pub idle_since: Instant,
    /// Recalls to close that are not paid.
    closes: u32,
    /// Recalls to other shards that are not paid, in order of arrival.
    moves: VecDeque<(Destination, Due)>,
    /// Connections that close and pay a recall with it.
    paying: u32,

    /// The demand that the ledger knows, less what it has sent since.
    told: u32,
    /// Idle and pinned connections that the ledger knows of.
    pub told_rest: (u32, u32),
    /// Clients at work or waiting that the ledger knows of.
    told_busy: u32,
    /// Clients that wait for long that the ledger knows of, less what it has sent since.
    told_overdue: u32,
    told_deserted: bool,
    /// Since when the ledger believes that there has always been an idle one; `NEVER` if it does not.
    told_idle_since: Instant,
    /// Grants and arrivals since the ledger was told last.
    received: u32,
    /// The highest demand of this window.
    pub peak: u32,
    /// The most clients at work or waiting at once in this window.
    busy_peak: u32,
    /// The most idle connections of this window.
    idle_peak: u32,
    /// The most clients that waited for long in this window.
    overdue_peak: u32,
    /// Is in the list of those that have to say something now.
    pub urgent: bool,
    /// Is in the list of those to look at when the window ends.
    pub watched: bool,
}

impl Standing {
    pub fn new(name: RouteName) -> Self {
        Self {
            name,
            named: true,
            counts: Counts::default(),
            waiting: VecDeque::new(),
            probing: None,
            deserted: false,
            idle_since: Instant::NEVER,
            closes: 0,
            moves: VecDeque::new(),
            paying: 0,
            told: 0,
            told_rest: (0, 0),
            told_busy: 0,
            told_overdue: 0,
            told_deserted: false,
            told_idle_since: Instant::NEVER,
            received: 0,
            peak: 0,
            busy_peak: 0,
            idle_peak: 0,
            overdue_peak: 0,
            urgent: false,
            watched: false,
        }
    }

    /// Nothing is here, and the ledger knows it.
    pub fn is_unused(&self) -> bool {
        self.counts == Counts::default()
            && self.probing.is_none()
            && (self.told, self.told_rest, self.told_busy, self.told_overdue, self.received)
                == (0, (0, 0), 0, 0, 0)
            && !self.urgent
            && !self.watched
    }

    // ---- connections ----

    pub fn dial_ends(&mut self) {
        assert!(self.counts.dialing > 0, "a dial that ends has begun");
        self.counts.dialing -= 1;
    }

    /// A grant or a connection came: the ledger wants that much less for this route, and so do we of it.
    pub fn receive(&mut self) {
        self.received += 1;
        self.told = self.told.saturating_sub(1);
        self.told_overdue = self.told_overdue.saturating_sub(1);
    }

    /// A connection that is not idle begins to close. If the route owes one to be closed, this is it.
    pub fn close(&mut self) {
        self.counts.closing += 1;
        if self.closes > 0 {
            self.closes -= 1;
            self.counts.owed -= 1;
            self.paying += 1;
        }
        assert!(self.counts.closing <= self.counts.held, "what closes is held");
    }

    pub fn closed(&mut self) -> (RouteName, Reason) {
        assert!(self.counts.closing > 0, "what is closed was closing");
        self.counts.closing -= 1;
        self.counts.held -= 1;
        let reason = if self.paying > 0 { Reason::Recalled } else { Reason::Closed };
        self.paying = self.paying.saturating_sub(1);
        (self.name.clone(), reason)
    }

    // ---- recalls ----

    /// A connection at rest, not counted as idle, goes where a recall wants it; `None` if none is due.
    pub fn pay(&mut self) -> Option<Destination> {
        if self.closes > 0 {
            self.close();
            return Some(Destination::Close);
        }
        let head = self.waiting.front().copied().unwrap_or(Instant::NEVER);
        let comes_first = |due: Due| match due {
            Due::Behind(after) => head != Instant::NEVER && head <= after + MOVE_GAP,
            Due::Now | Due::Next => false,
        };
        let place = self.moves.iter().position(|&(_, due)| !comes_first(due));
        let (to, _) = self.moves.remove(place?)?;
        self.counts.owed -= 1;
        Some(to)
    }

    /// A recall came. True: the connection that was idle longest pays it at once.
    pub fn recall(&mut self, to: Destination, due: Due) -> bool {
        self.told_rest.0 = self.told_rest.0.saturating_sub(1);
        if self.counts.idle > 0 {
            self.counts.idle -= 1;
            if to == Destination::Close {
                self.counts.closing += 1;
                self.paying += 1;
            }
            return true;
        }
        self.counts.owed += 1;
        match to {
            Destination::Close => self.closes += 1,
            Destination::Shard(_) => self.moves.push_back((to, due)),
        }
        false
    }

    /// A recall that need not be paid any more; false if it was.
    pub fn forgive(&mut self, to: Destination) -> bool {
        let found = match to {
            Destination::Close => {
                let found = self.closes > 0;
                self.closes -= u32::from(found);
                found
            }
            Destination::Shard(_) => match self.moves.iter().rposition(|&(each, _)| each == to) {
                Some(at) => self.moves.remove(at).is_some(),
                None => false,
            },
        };
        self.counts.owed -= u32::from(found);
        found
    }

    /// Takes off a recall that no connection can pay.
    pub fn excess(&mut self) -> Option<Destination> {
        let counts = &mut self.counts;
        if counts.owed <= counts.held - counts.closing {
            return None;
        }
        counts.owed -= 1;
        Some(match self.moves.pop_back() {
            Some((to, _)) => to,
            None => {
                self.closes -= 1;
                Destination::Close
            }
        })
    }

    // ---- levels ----

    /// Clients for whom no connection is being opened.
    #[inline]
    pub fn demand(&self) -> u32 {
        let counts = &self.counts;
        let probe = u32::from(self.probing.is_some() && counts.held == counts.closing);
        counts.waiting.saturating_sub(counts.dialing).max(probe)
    }

    /// Takes note of a demand that may have risen. True: the ledger must know.
    #[inline]
    pub fn demand_rose(&mut self) -> bool {
        let (demand, counts) = (self.demand(), &self.counts);
        self.peak = self.peak.max(demand);
        // Where nothing is held, since when the first waits decides who is next.
        let first = counts.held == counts.closing && counts.waiting == 1;
        first || exceeds(demand, self.told)
    }

    /// Takes note of another client at work or waiting.
    #[inline]
    pub fn busy_rose(&mut self) {
        self.busy_peak = self.busy_peak.max(self.counts.busy());
    }

    /// Takes note of another idle connection. True: the ledger must know.
    #[inline]
    pub fn idle_rose(&mut self) -> bool {
        self.idle_peak = self.idle_peak.max(self.counts.idle);
        exceeds(self.counts.idle, self.told_rest.0)
    }

    /// Clients that have waited for so long that a connection at rest elsewhere should come.
    fn overdue(&self, now: Instant) -> u32 {
        let waited = self.waiting.partition_point(|&since| since + OVERDUE <= now) as u32;
        waited.saturating_sub(self.counts.dialing)
    }

    /// Takes note of clients that have waited for long by now. True: the ledger must know.
    pub fn overdue_rose(&mut self, now: Instant) -> bool {
        let overdue = self.overdue(now);
        self.overdue_peak = self.overdue_peak.max(overdue);
        exceeds(overdue, self.told_overdue)
    }

    /// When the next client will have waited for long.
    pub fn next_overdue(&self, now: Instant) -> Instant {
        let waited = self.waiting.partition_point(|&since| since + OVERDUE <= now);
        self.waiting.get(waited).map_or(Instant::NEVER, |&since| since + OVERDUE)
    }

    /// The last idle connection is linked. True: the ledger must know, lest it takes what is in use for spare.
    #[inline]
    pub fn idle_ended(&self) -> bool {
        self.counts.idle == 0 && self.told_idle_since != Instant::NEVER
    }

    /// The first client has come, or the last has left. True: the ledger must know, if it knows what rests.
    pub fn desert(&mut self, deserted: bool) -> bool {
        self.deserted = deserted;
        self.told_deserted != deserted && self.counts.held > 0
    }

    pub fn forget_rest(&mut self) {
        (self.told_rest, self.told_idle_since) = ((0, 0), Instant::NEVER);
        (self.told_busy, self.told_overdue, self.told_deserted) = (0, 0, false);
        (self.busy_peak, self.idle_peak, self.overdue_peak) = (0, 0, 0);
    }

    /// Since when there has been an idle connection, if that is for longer than between two transactions, or the last.
    fn rested_since(&self, now: Instant) -> Instant {
        let rested = self.counts.idle > 0 && (self.deserted || now.since(self.idle_since) >= WINDOW);
        if rested { self.idle_since } else { Instant::NEVER }
    }

    /// What is said differs from what was true in this window.
    pub fn has_changed(&self, tight: bool, now: Instant) -> bool {
        let differs = |is, said| exceeds(is, said) || exceeds(said, is);
        let rest = (self.idle_peak.max(self.counts.idle), self.counts.pinned);
        differs(self.peak, self.told)
            || (tight && (differs(rest.0, self.told_rest.0) || differs(rest.1, self.told_rest.1)))
            || (tight && differs(self.busy_peak.max(self.counts.busy()), self.told_busy))
            || (tight && self.rested_since(now) != self.told_idle_since)
            || (tight && self.deserted != self.told_deserted && self.counts.held > 0)
            || (tight && differs(self.overdue_peak.max(self.overdue(now)), self.told_overdue))
            || (self.told == 0 && self.received > 0)
    }

    /// The next window will be different though nothing happens in it: this one has seen more than there is, or what is
    /// idle, or waits, has not done so for long.
    pub fn is_unsettled(&self, tight: bool, now: Instant) -> bool {
        let resting = self.counts.idle > 0 && self.rested_since(now) == Instant::NEVER;
        let ages = || self.overdue_peak != self.overdue(now) || self.next_overdue(now) != Instant::NEVER;
        let fell = || self.idle_peak != self.counts.idle || self.busy_peak != self.counts.busy();
        self.peak != self.demand() || (tight && (fell() || resting || ages()))
    }

    pub fn begin_window(&mut self, now: Instant) {
        self.peak = self.demand();
        self.busy_peak = self.counts.busy();
        self.idle_peak = self.counts.idle;
        self.overdue_peak = self.overdue(now);
    }

    /// What the ledger should know.
    pub fn tell(&mut self, tight: bool, now: Instant) -> Level {
        self.peak = self.peak.max(self.demand());
        let idle = if tight { self.idle_peak.max(self.counts.idle) } else { 0 };
        let pinned = if tight { self.counts.pinned } else { 0 };
        self.told = self.peak;
        self.told_rest = (idle, pinned);
        self.told_busy = if tight { self.busy_peak.max(self.counts.busy()) } else { 0 };
        self.told_overdue = if tight { self.overdue_peak.max(self.overdue(now)) } else { 0 };
        self.told_deserted = tight && self.deserted;
        self.told_idle_since = if tight { self.rested_since(now) } else { Instant::NEVER };
        Level {
            route: self.name.clone(),
            wanting: self.peak,
            since: self.oldest(),
            busy: self.told_busy,
            overdue: self.told_overdue,
            idle,
            idle_since: self.told_idle_since,
            deserted: self.told_deserted,
            pinned,
            received: std::mem::take(&mut self.received),
        }
    }

    fn oldest(&self) -> Instant {
        let head = self.waiting.front().copied().unwrap_or(Instant::NEVER);
        head.min(self.probing.unwrap_or(Instant::NEVER))
    }
}

/// By more than a quarter, or by anything where there was little.
#[inline]
fn exceeds(is: u32, said: u32) -> bool {
    is > said + said / 4
}

/// A client that waits for longer than this is told to the ledger, so that a connection that rests elsewhere comes. Most
/// waits are shorter where a shard has connections of its own: what rests elsewhere then is between two transactions, and
/// both would ask for what the other has just used.
pub(super) const OVERDUE: Duration = Duration::from_millis(1);

/// A client of another shard must have waited so much longer than those here before a connection leaves them for it:
/// what a hand-over costs is then little beside what it serves.
const MOVE_GAP: Duration = Duration::from_millis(2);
