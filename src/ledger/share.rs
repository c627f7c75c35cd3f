//! A shard's side: what it holds of one endpoint's permits, and what it owes.

use super::letters::{Destination, Due, Failure, Level, Order, Reason, Request, Status};
use super::{
    Permit,
    standing::{OVERDUE, Standing},
};
use crate::ids::{RouteName, ShardId};
use crate::time::Instant;
use hashbrown::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// What one shard holds of one endpoint's permits, by route: counts only. It knows no client and no server; the shard
/// tells it what happens to them, does what it answers, and carries its letters.
///
/// ```text
///             Grant                opened             link_idle
///   (ledger) -------> dialing -------------> rest ?------------- linked
///                       | dial_failed         | ^ \                 |
///                       v                     | |  v      rest ?    |
///                    closing <----------------+ idle <--------------+
///                       | closed     Close    |
///   (ledger) <----------+                     +--- HandOver ---> another shard: arrived, rest ?
///            Returned
/// ```
///
/// `rest ?` is the one decision: a connection that has come to rest pays what the route owes (closing ahead of moving),
/// else serves the client that waits longest, else becomes idle. So idle connections and waiting clients, or idle
/// connections and unpaid recalls, never exist side by side.
///
/// **Call order.** After each event of the shard: [`Share::flush`], then send what [`Share::take_requests`] gives, before
/// any connection leaves. Orders are handed to [`Share::handle`], whose [`Action`] is to be done at once.
/// [`Share::next_deadline`] and [`Share::tick`] are for what may wait.
///
/// **Letters.** What the ledger must know is a level ([`Level`]), and written only when it has changed by more than a
/// quarter: a rise at once, a fall after a window in which the level was not reached again. A queue whose length goes up
/// and down with each transaction therefore says nothing, as its height stays the same. Windows follow one another as long
/// as something happens in them, or as a fall in one is to be confirmed by the next; while clients only wait there is none.
#[derive(Debug)]
pub struct Share {
    routes: Vec<Standing>,
    free: Vec<RouteNo>,
    by_name: HashMap<RouteName, RouteNo>,
    /// Have something to say at once.
    urgent: Vec<RouteNo>,
    /// Something happened that may make untrue what they have said.
    watched: Vec<RouteNo>,
    /// When to look at those.
    window_ends: Instant,
    /// When to look who has waited for long.
    glance_at: Instant,
    /// Levels were sent and not answered.
    unanswered: bool,
    spare: Vec<Level>,
    status: Status,
    requests: Vec<Request>,
    stopped: bool,
}

/// A route in one shard's share of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteNo(u32);

impl RouteNo {
    /// As a number below the most routes there were at once.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What to do with a connection that has come to rest. The share has counted it so already.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It is for the client that waits longest.
    Serve,
    /// Nobody needs it.
    Idle,
    /// Its permit is needed elsewhere.
    Close,
    /// It goes to this shard, with its permit.
    HandOver(ShardId),
}

/// What an order asks for. The share has counted it so already.
#[must_use]
#[derive(Debug)]
pub enum Action {
    /// Nothing, or nothing yet.
    None,
    /// Open a connection.
    Dial(RouteNo, Permit),
    /// Close the connection that was idle longest.
    CloseIdle(RouteNo),
    /// Hand it over.
    HandOverIdle(RouteNo, ShardId),
}

/// How many of each a route has on this shard, and has had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Permits held, in any state.
    pub held: u32,
    /// Connections being opened.
    pub dialing: u32,
    /// Connections at rest.
    pub idle: u32,
    /// Connections being closed.
    pub closing: u32,
    /// Connections that their clients keep.
    pub pinned: u32,
    /// Clients that wait.
    pub waiting: u32,
    /// Recalls that are not paid.
    pub owed: u32,
}

impl Counts {
    /// Connections with a client, or on their way back from one.
    pub fn linked(&self) -> u32 {
        self.held - self.dialing - self.idle - self.closing
    }

    /// Clients at work or waiting.
    pub fn busy(&self) -> u32 {
        self.linked() + self.waiting
    }
}

impl Default for Share {
    fn default() -> Self {
        Self {
            routes: Vec::new(),
            free: Vec::new(),
            by_name: HashMap::new(),
            urgent: Vec::new(),
            watched: Vec::new(),
            window_ends: Instant::NEVER,
            glance_at: Instant::NEVER,
            unanswered: false,
            spare: Vec::new(),
            status: Status::default(),
            requests: Vec::new(),
            stopped: false,
        }
    }
}

impl Share {
    // ---- routes ----

    /// The entry of a route, which lives until it is [left](Share::leave) and empty.
    pub fn enter(&mut self, name: &RouteName) -> RouteNo {
        if let Some(&no) = self.by_name.get(name) {
            self.at(no).named = true;
            return no;
        }
        let no = self.free.pop().unwrap_or(RouteNo(self.routes.len() as u32));
        let entry = Standing::new(name.clone());
        match self.routes.get_mut(no.0 as usize) {
            Some(place) => *place = entry,
            None => self.routes.push(entry),
        }
        self.by_name.insert(name.clone(), no);
        no
    }

    /// The shard will not use this number again.
    pub fn leave(&mut self, no: RouteNo) {
        self.at(no).named = false;
        self.forget_unused(no);
    }

    fn forget_unused(&mut self, no: RouteNo) {
        let route = self.at(no);
        if route.named || !route.is_unused() {
            return;
        }
        let name = route.name.clone();
        self.by_name.remove(&name);
        self.free.push(no);
    }

    #[inline]
    fn at(&mut self, no: RouteNo) -> &mut Standing {
        &mut self.routes[no.0 as usize]
    }

    // ---- linking and resting ----

    /// Whether there is an idle connection to link; it counts as linked from now on. The hot path: no letter.
    #[inline]
    pub fn link_idle(&mut self, no: RouteNo) -> bool {
        let route = self.at(no);
        let found = route.counts.idle > 0;
        route.counts.idle -= u32::from(found);
        if route.idle_ended() {
            self.make_urgent(no);
        }
        if self.status.tight {
            self.at(no).busy_rose();
            self.watch(no);
        }
        found
    }

    /// A linked connection, one just [opened](Share::opened) or one that [arrived](Share::arrived) has come to rest.
    #[inline]
    pub fn rest(&mut self, no: RouteNo, now: Instant) -> Rest {
        let tight = self.status.tight;
        let route = self.at(no);
        if route.counts.owed > 0
            && let Some(paid) = self.pay(no)
        {
            return paid;
        }
        let route = self.at(no);
        if route.waiting.pop_front().is_some() {
            route.counts.waiting -= 1;
            self.watch(no);
            return Rest::Serve;
        }
        if route.counts.idle == 0 {
            route.idle_since = now;
        }
        route.counts.idle += 1;
        if tight {
            self.idle_rose(no);
        }
        Rest::Idle
    }

    /// A connection at rest pays a recall, if one is due.
    fn pay(&mut self, no: RouteNo) -> Option<Rest> {
        let paid = self.at(no).pay()?;
        // Whoever it might have served is still waiting.
        self.demand_rose(no);
        match paid {
            Destination::Close => Some(Rest::Close),
            Destination::Shard(to) => {
                self.hand_over(no, to);
                Some(Rest::HandOver(to))
            }
        }
    }

    fn hand_over(&mut self, no: RouteNo, to: ShardId) {
        let route = self.at(no);
        route.counts.held -= 1;
        let name = route.name.clone();
        let waiting = route.counts.waiting > 0;
        self.requests.push(Request::Moved { route: name, to });
        self.void_excess(no);
        if waiting {
            // Whoever waits longest here is compared with those of other shards from now on.
            self.make_urgent(no);
        }
    }

    /// A client of this route waits from now on, because nothing is idle.
    pub fn waits(&mut self, no: RouteNo, now: Instant) {
        if self.status.tight && self.glance_at == Instant::NEVER {
            self.glance_at = now + OVERDUE;
        }
        let route = self.at(no);
        assert!(route.counts.idle == 0, "a client does not wait beside an idle connection");
        route.waiting.push_back(now);
        route.counts.waiting += 1;
        route.busy_rose();
        self.demand_rose(no);
    }

    /// The client at this place of the queue waits no longer: it left, or was refused.
    pub fn waiter_left(&mut self, no: RouteNo, place: usize) {
        let route = self.at(no);
        let left = route.waiting.remove(place);
        assert!(left.is_some(), "a client that leaves the queue is in it");
        route.counts.waiting -= 1;
        self.watch(no);
    }

    /// Somebody needs a connection of this route to be opened if there is none, to learn how the server is set; or,
    /// with `None`, nobody does any more.
    pub fn probe(&mut self, no: RouteNo, since: Option<Instant>) {
        self.at(no).probing = since;
        self.demand_rose(no);
    }

    /// The last client of this route has left, `for_good` if it had not come for a moment only: nobody will miss what rests.
    pub fn deserted(&mut self, no: RouteNo, for_good: bool) {
        self.set_deserted(no, for_good);
    }

    /// A client of this route has come.
    pub fn visited(&mut self, no: RouteNo) {
        self.set_deserted(no, false);
    }

    fn set_deserted(&mut self, no: RouteNo, deserted: bool) {
        let tight = self.status.tight;
        if self.at(no).desert(deserted) && tight {
            self.make_urgent(no);
        }
    }

    /// A linked connection is its client's for more than a transaction; or, with `false`, no longer. It pays no recall
    /// meanwhile.
    pub fn pin(&mut self, no: RouteNo, pinned: bool) {
        let tight = self.status.tight;
        let route = self.at(no);
        if pinned {
            route.counts.pinned += 1;
        } else {
            assert!(route.counts.pinned > 0, "what is unpinned was pinned");
            route.counts.pinned -= 1;
        }
        if tight {
            self.watch(no);
        }
    }

    // ---- opening, moving, closing ----

    /// A dial came to a connection that is logged in. It must now [rest](Share::rest), or close.
    pub fn opened(&mut self, no: RouteNo, took: Duration) {
        let route = self.at(no);
        route.dial_ends();
        let name = route.name.clone();
        self.requests.push(Request::Opened { route: name, took });
    }

    /// A dial came to nothing. What is left of it counts as closing.
    pub fn dial_failed(&mut self, no: RouteNo, failure: Failure) {
        let route = self.at(no);
        route.dial_ends();
        let name = route.name.clone();
        self.requests.push(Request::Failed { route: name, failure });
        self.close(no);
    }

    /// A connection came from another shard, with its permit. It must now [rest](Share::rest).
    pub fn arrived(&mut self, no: RouteNo) {
        let route = self.at(no);
        route.counts.held += 1;
        route.receive();
        self.watch(no);
    }

    /// An idle connection is going to be closed, though nobody recalled it.
    pub fn close_idle(&mut self, no: RouteNo) {
        let route = self.at(no);
        assert!(route.counts.idle > 0, "what is closed was there");
        route.counts.idle -= 1;
        self.close(no);
    }

    /// A linked connection is going to be closed, or one that was just opened or has just arrived.
    pub fn close(&mut self, no: RouteNo) {
        self.at(no).close();
        self.void_excess(no);
        self.demand_rose(no);
    }

    /// A connection is gone on both sides.
    pub fn closed(&mut self, no: RouteNo, permit: Permit) {
        let (route, reason) = self.at(no).closed();
        self.requests.push(Request::Returned { route, permit, reason });
        if self.at(no).counts.held == 0 && self.at(no).demand() > 0 {
            self.make_urgent(no);
        }
        self.forget_unused(no);
    }

    // ---- orders ----

    /// Acts on a letter.
    pub fn handle(&mut self, order: Order) -> Action {
        match order {
            Order::Grant { route, permit } => self.granted(&route, permit),
            Order::Recall { route, to, due } => self.recalled(&route, to, due),
            Order::Keep { route, to } => {
                if let Some(no) = self.by_name.get(&route).copied()
                    && self.at(no).forgive(to)
                {
                    self.void(no, to);
                }
                Action::None
            }
            Order::Seen(spare) => {
                self.unanswered = false;
                self.spare = spare;
                Action::None
            }
            Order::Status(status) => {
                self.take_status(status);
                Action::None
            }
        }
    }

    fn granted(&mut self, name: &RouteName, permit: Permit) -> Action {
        let no = self.find(name);
        let stopped = self.stopped;
        let route = self.at(no);
        route.receive();
        if !stopped && route.named && route.peak > 0 {
            route.peak -= 1;
            route.counts.held += 1;
            route.counts.dialing += 1;
            self.watch(no);
            return Action::Dial(no, permit);
        }
        let route = route.name.clone();
        self.requests.push(Request::Returned { route, permit, reason: Reason::Unused });
        self.make_urgent(no);
        Action::None
    }

    fn recalled(&mut self, name: &RouteName, to: Destination, due: Due) -> Action {
        let no = self.find(name);
        self.watch(no);
        if !self.at(no).recall(to, due) {
            if due == Due::Now && self.at(no).forgive(to) {
                self.void(no, to);
            }
            self.void_excess(no);
            return Action::None;
        }
        match to {
            Destination::Close => Action::CloseIdle(no),
            Destination::Shard(to) => {
                self.hand_over(no, to);
                Action::HandOverIdle(no, to)
            }
        }
    }

    /// The entry of a route that an order names. The shard may have left it.
    fn find(&mut self, name: &RouteName) -> RouteNo {
        self.by_name.get(name).copied().unwrap_or_else(|| {
            let no = self.enter(name);
            self.at(no).named = false;
            no
        })
    }

    /// Nothing is opened from now on: the shard ends.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Recalls that no connection is left to pay are given back, those for other shards first.
    fn void_excess(&mut self, no: RouteNo) {
        while let Some(to) = self.at(no).excess() {
            self.void(no, to);
        }
    }

    fn void(&mut self, no: RouteNo, to: Destination) {
        let route = self.at(no);
        let route = route.name.clone();
        self.requests.push(Request::Void { route, to });
    }

    fn take_status(&mut self, status: Status) {
        let became_tight = status.tight && !self.status.tight;
        self.status = status;
        for index in 0..self.routes.len() {
            let no = RouteNo(index as u32);
            let counts = self.at(no).counts;
            if !self.status.tight {
                self.at(no).forget_rest();
            } else if became_tight && (counts.idle > 0 || counts.pinned > 0) {
                self.make_urgent(no);
            }
            if became_tight && counts.waiting > 0 {
                self.watch(no);
                // At once: how long they have waited is not known here.
                self.glance_at = Instant::default();
            }
        }
        self.requests.push(Request::Noted);
    }

    // ---- levels ----

    #[inline]
    fn demand_rose(&mut self, no: RouteNo) {
        if self.at(no).demand_rose() {
            self.make_urgent(no);
        } else {
            self.watch(no);
        }
    }

    #[inline]
    fn idle_rose(&mut self, no: RouteNo) {
        if self.at(no).idle_rose() {
            self.make_urgent(no);
        } else {
            self.watch(no);
        }
    }

    fn make_urgent(&mut self, no: RouteNo) {
        self.watch(no);
        if !std::mem::replace(&mut self.at(no).urgent, true) {
            self.urgent.push(no);
        }
    }

    fn watch(&mut self, no: RouteNo) {
        if !std::mem::replace(&mut self.at(no).watched, true) {
            self.watched.push(no);
        }
    }

    /// Writes what must be said now. To be called after each event.
    #[inline]
    pub fn flush(&mut self, now: Instant) {
        if !self.watched.is_empty() && self.window_ends == Instant::NEVER {
            self.window_ends = now + WINDOW;
        }
        if !self.urgent.is_empty() && !self.unanswered {
            self.write_levels(now);
        }
    }

    fn write_levels(&mut self, now: Instant) {
        let mut levels = std::mem::take(&mut self.spare);
        let tight = self.status.tight;
        for no in std::mem::take(&mut self.urgent) {
            let route = self.at(no);
            route.urgent = false;
            levels.push(route.tell(tight, now));
        }
        self.unanswered = true;
        self.requests.push(Request::Levels(levels));
    }

    /// When [`Share::tick`] wants to be called.
    #[inline]
    pub fn next_deadline(&self) -> Instant {
        self.window_ends.min(self.glance_at)
    }

    /// Says who has waited for long by now and, if a window is over, what has fallen.
    pub fn tick(&mut self, now: Instant) {
        if now >= self.glance_at {
            self.glance(now);
        }
        if now < self.window_ends {
            return;
        }
        self.window_ends = Instant::NEVER;
        let tight = self.status.tight;
        let looked_at = std::mem::take(&mut self.watched);
        for &no in &looked_at {
            let route = self.at(no);
            route.watched = false;
            if route.has_changed(tight, now) {
                self.make_urgent(no);
            } else if route.is_unsettled(tight, now) {
                self.watch(no);
            } else {
                self.forget_unused(no);
            }
        }
        self.flush(now);
        for no in looked_at {
            let route = self.at(no);
            if !route.urgent {
                route.begin_window(now);
            }
        }
    }

    /// Looks at the routes where somebody waits; all of them are watched.
    fn glance(&mut self, now: Instant) {
        self.glance_at = Instant::NEVER;
        if !self.status.tight {
            return;
        }
        for index in 0..self.watched.len() {
            let no = self.watched[index];
            let route = self.at(no);
            let (rose, next) = (route.overdue_rose(now), route.next_overdue(now));
            if rose {
                self.make_urgent(no);
            }
            self.glance_at = self.glance_at.min(next);
        }
        // Not for each client: those that have just come are looked at with the next.
        if self.glance_at != Instant::NEVER {
            self.glance_at = self.glance_at.max(now + OVERDUE / 2);
        }
        self.flush(now);
    }

    // ---- to be read ----

    /// There are letters to be sent.
    #[inline]
    pub fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// The letters for the ledger, in order.
    pub fn take_requests(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.requests)
    }

    /// How it is with the endpoint, as the ledger said last.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Why no connection can be opened, if none can.
    pub fn trouble(&self) -> Option<&Arc<str>> {
        self.status.trouble.as_ref()
    }

    /// What a route has here.
    pub fn counts(&self, no: RouteNo) -> Counts {
        self.routes[no.0 as usize].counts
    }

    /// Nothing is held, nobody waits, and nothing is owed.
    pub fn is_unused(&self, no: RouteNo) -> bool {
        let counts = self.counts(no);
        counts.held == 0 && counts.waiting == 0
    }

    /// All that is held of this endpoint here.
    pub fn held(&self) -> usize {
        self.by_name.values().map(|&no| self.counts(no).held as usize).sum()
    }

    /// Nothing is held, and the ledger knows.
    pub fn is_settled(&self) -> bool {
        self.held() == 0 && !self.unanswered && self.urgent.is_empty() && self.requests.is_empty()
    }
}

/// A level that was not reached for so long has fallen. A few times what a short transaction takes, so that queues that
/// come and go with transactions stay unsaid; and short beside the opening of a connection.
pub const WINDOW: Duration = Duration::from_millis(5);
