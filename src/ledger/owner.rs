//! The owner of one endpoint's permits.

use super::Permit;
use super::account::{Account, Totals};
use super::governor::Governor;
use super::letters::{Destination, Due, Failure, Level, Order, Reason, Request, Status};
use super::policy::{Levels, Policy, Terms};
use crate::ids::{RouteName, ShardId};
use crate::time::Instant;
use hashbrown::HashMap;
use std::time::Duration;

/// The owner of one endpoint's permits: letters of shards in ([`Ledger::handle`]), letters to shards out
/// ([`Ledger::take_orders`]), decisions in between ([`Ledger::tick`]). See the module for what it guarantees, and why.
///
/// **Call order.** Letters are handed over as they arrive, all that there are; then, if [`Ledger::next_deadline`] has
/// come, `tick`; then the orders are sent.
#[derive(Debug)]
pub struct Ledger {
    pub(super) policy: Policy,
    pub(super) accounts: Vec<Option<Account>>,
    by_name: HashMap<RouteName, usize>,
    pub(super) shards: Vec<Shard>,
    pub(super) governor: Governor,
    /// Permits given and not come back.
    pub(super) held: u32,
    /// Of these, by routes that may not use the reserve.
    pub(super) held_by_users: u32,
    /// Recalls that are not answered: to close, and to move. Each is bounded by itself, lest moves that wait hide from
    /// another route what could be closed for it.
    pub(super) closes: u32,
    pub(super) moves: u32,
    /// Until when one permit each is not used, because the server had no room.
    pub(super) overloads: Vec<Instant>,
    pub(super) tight: bool,
    /// When it became tight, or the last time somebody was left without.
    pub(super) tight_since: Instant,
    pub(super) lacked_at: Instant,
    pub(super) aged_at: Instant,
    /// Something has changed since the last decisions.
    changed: bool,
    balance_at: Instant,
    /// When to decide again though nothing changes.
    pub(super) revisit_at: Instant,
    pub(super) orders: Vec<(ShardId, Order)>,
    totals: Overview,
}

/// What the ledger knows of a shard.
#[derive(Debug, Default)]
pub(super) struct Shard {
    pub credit: u32,
    /// Routes that want permits there.
    pub wanting: u32,
    /// The list of levels that came, to be sent back.
    pub seen: Option<Vec<Level>>,
    /// What it was told last.
    pub told: Status,
    /// The weights of the routes that used the endpoint then, added up.
    pub told_weights: u32,
    pub told_unanswered: bool,
}

/// One route on one shard, as it is in the books.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The route.
    pub route: RouteName,
    /// And the shard.
    pub shard: ShardId,
    /// Permits there.
    pub held: u32,
    /// Permits wanted there and not on their way.
    pub wanting: u32,
    /// Since the route was first used there.
    pub totals: Totals,
}

/// An endpoint's permits, all routes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// Permits there are.
    pub limit: u32,
    /// Permits given and not come back.
    pub held: u32,
    /// Connections being opened.
    pub dialing: u32,
    /// Permits not used at the moment because the server had no room.
    pub overloaded: u32,
    /// How often it had none.
    pub overloads: u64,
    /// Dials that came to nothing.
    pub failures: u64,
}

impl Ledger {
    /// The ledger of an endpoint that `shards` shards use. `seed` is for jitter.
    pub fn new(policy: Policy, shards: usize, seed: u64) -> Self {
        Self {
            policy,
            accounts: Vec::new(),
            by_name: HashMap::new(),
            shards: (0..shards).map(|_| Shard::default()).collect(),
            governor: Governor::new(seed),
            held: 0,
            held_by_users: 0,
            closes: 0,
            moves: 0,
            overloads: Vec::new(),
            tight: false,
            tight_since: Instant::default(),
            lacked_at: Instant::default(),
            aged_at: Instant::default(),
            changed: false,
            balance_at: Instant::default(),
            revisit_at: Instant::NEVER,
            orders: Vec::new(),
            totals: Overview::default(),
        }
    }

    /// Another policy holds from now on. What is above a lower limit is recalled; until it has come back nothing new is
    /// granted.
    pub fn reload(&mut self, policy: Policy) {
        self.policy = policy;
        self.held_by_users = 0;
        for account in self.accounts.iter_mut().flatten() {
            account.terms = (self.policy.terms)(&account.name);
            account.add_up();
            if !account.terms.administrator {
                self.held_by_users += account.sums.credit;
            }
        }
        for shard in &mut self.shards {
            // What was told of quotas is not true any more.
            shard.told_weights = 0;
        }
        self.changed = true;
    }

    // ---- letters ----

    /// Takes note of a shard's letter. What follows from it is decided by [`Ledger::tick`].
    pub fn handle(&mut self, from: ShardId, request: Request, now: Instant) {
        self.changed = true;
        match request {
            Request::Levels(levels) => self.take_levels(from, levels),
            Request::Opened { took, .. } => self.governor.opened(took),
            Request::Failed { route, failure } => self.dial_failed(&route, &failure, now),
            Request::Returned { route, permit, reason } => self.returned(from, &route, permit, reason, now),
            Request::Moved { route, to } => {
                self.account(&route).moved(from, to, now);
                self.shard(from).credit -= 1;
                self.shard(to).credit += 1;
                self.moves -= 1;
            }
            Request::Void { route, to } => {
                self.account(&route).void(from, to, now);
                *self.unanswered(to) -= 1;
            }
            Request::Noted => self.shard(from).told_unanswered = false,
        }
    }

    fn take_levels(&mut self, from: ShardId, mut levels: Vec<Level>) {
        let tight = self.shard(from).told.tight;
        for level in levels.drain(..) {
            let holding = self.account(&level.route).at(from);
            let wanted = holding.wanting > 0;
            holding.take(&level, tight);
            let shard = self.shard(from);
            shard.wanting = shard.wanting + u32::from(level.wanting > 0) - u32::from(wanted);
        }
        self.shard(from).seen = Some(levels);
    }

    fn dial_failed(&mut self, route: &RouteName, failure: &Failure, now: Instant) {
        self.totals.failures += 1;
        self.governor.failed(failure, now);
        match failure {
            Failure::Overloaded(_) => {
                self.totals.overloads += 1;
                self.overloads.push(now + OVERLOAD_LASTS);
                // More than all there are is no more than all.
                let excess = self.overloads.len().saturating_sub(self.policy.limit as usize);
                self.overloads.drain(..excess);
            }
            Failure::Refused => self.account(route).refused_until = now + REFUSAL_LASTS,
            Failure::Unreachable(_) => {}
        }
    }

    fn returned(&mut self, from: ShardId, route: &RouteName, permit: Permit, reason: Reason, now: Instant) {
        let recalled = reason == Reason::Recalled;
        let account = self.account(route);
        account.returned(from, recalled, now);
        let administrator = account.terms.administrator;
        self.closes -= u32::from(recalled);
        self.shard(from).credit -= 1;
        self.held -= 1;
        self.held_by_users -= u32::from(!administrator);
        if reason == Reason::Unused {
            self.governor.unused();
        }
        permit.spend();
    }

    fn shard(&mut self, shard: ShardId) -> &mut Shard {
        &mut self.shards[usize::from(shard.0)]
    }

    fn account(&mut self, name: &RouteName) -> &mut Account {
        let index = match self.by_name.get(name) {
            Some(&index) => index,
            None => self.open_account(name),
        };
        let Some(account) = &mut self.accounts[index] else {
            unreachable!("names lead to accounts that are open")
        };
        account
    }

    fn open_account(&mut self, name: &RouteName) -> usize {
        let index = self.accounts.iter().position(Option::is_none).unwrap_or(self.accounts.len());
        let account = Some(Account::new(name.clone(), (self.policy.terms)(name)));
        match self.accounts.get_mut(index) {
            Some(place) => *place = account,
            None => self.accounts.push(account),
        }
        self.by_name.insert(name.clone(), index);
        index
    }

    // ---- time ----

    /// When [`Ledger::tick`] wants to be called at the latest.
    pub fn next_deadline(&self) -> Instant {
        if self.changed { self.balance_at } else { self.revisit_at }
    }

    /// Decides, if it is time to.
    pub fn tick(&mut self, now: Instant) {
        if now < self.next_deadline() {
            return;
        }
        self.changed = false;
        self.balance(now);
        self.close_accounts();
        let active = self.by_name.len() as u32;
        self.balance_at = now + BALANCE_GAP * (1 + active / ROUTES_PER_GAP);
        self.check();
    }

    fn close_accounts(&mut self) {
        for place in &mut self.accounts {
            if let Some(account) = place.take_if(|account| !account.is_active() && account.is_unused()) {
                self.by_name.remove(&account.name);
            }
        }
    }

    /// The letters to be sent, in order.
    pub fn take_orders(&mut self) -> Vec<(ShardId, Order)> {
        std::mem::take(&mut self.orders)
    }

    // ---- to be read ----

    /// All permits are here, and nobody wants one.
    pub fn is_settled(&self) -> bool {
        self.held == 0 && self.by_name.is_empty() && self.orders.is_empty()
    }

    /// What the books say must add up, at each step.
    fn check(&self) {
        let sum: u32 = self.accounts.iter().flatten().map(|account| account.sums.credit).sum();
        assert!(sum == self.held, "{sum} permits are accounted for, and {} were given", self.held);
        let users = self.accounts.iter().flatten().filter(|account| !account.terms.administrator);
        let by_users: u32 = users.map(|account| account.sums.credit).sum();
        assert!(by_users == self.held_by_users, "users have {by_users} permits, not {}", self.held_by_users);
        let by_shards: u32 = self.shards.iter().map(|shard| shard.credit).sum();
        assert!(by_shards == self.held, "shards have {by_shards} permits, and {} were given", self.held);
    }

    /// The endpoint as a whole.
    pub fn overview(&self) -> Overview {
        Overview {
            limit: self.policy.limit,
            held: self.held,
            dialing: self.governor.dialing(),
            overloaded: self.overloads.len() as u32,
            ..self.totals
        }
    }

    /// Each route that holds permits or wants some, and what it can insist on, on all shards together, while all of them
    /// want all they can get. At most the limit, added up.
    pub fn quotas(&self) -> impl Iterator<Item = (&RouteName, f64)> {
        let levels = self.levels();
        self.active().map(move |account| (&account.name, levels.quota(&self.terms_of(account))))
    }

    pub(super) fn levels(&self) -> Levels {
        let terms: Vec<Terms> = self.active().map(|account| self.terms_of(account)).collect();
        Levels::of(self.limit() as u32, self.reserve(), &terms)
    }

    fn active(&self) -> impl Iterator<Item = &Account> {
        self.accounts.iter().flatten().filter(|account| account.is_active())
    }

    /// As they are while the server has no room for all.
    fn terms_of(&self, account: &Account) -> Terms {
        Terms { floor: self.floor(account), ..account.terms }
    }

    /// Every route on every shard that has to do with it.
    pub fn rows(&self) -> Vec<Row> {
        let active: Vec<&Account> = self.accounts.iter().flatten().collect();
        let rows = active.iter().flat_map(|account| {
            account.holdings.iter().map(move |holding| Row {
                route: account.name.clone(),
                shard: holding.shard,
                held: holding.credit,
                wanting: holding.need(),
                totals: holding.totals,
            })
        });
        rows.collect()
    }

    // ---- orders ----

    pub(super) fn grant(&mut self, route: usize, shard: ShardId, now: Instant) {
        let Some(account) = &mut self.accounts[route] else { unreachable!("a grant is for an open account") };
        account.grant(shard, now);
        account.add_up();
        let (name, user) = (account.name.clone(), !account.terms.administrator);
        self.held += 1;
        self.held_by_users += u32::from(user);
        self.shard(shard).credit += 1;
        self.governor.granted();
        assert!(self.held <= self.policy.limit, "more permits were given than there are");
        self.orders.push((shard, Order::Grant { route: name, permit: Permit::mint() }));
    }

    pub(super) fn recall(&mut self, route: usize, from: ShardId, to: Destination, due: Due, now: Instant) {
        let Some(account) = &mut self.accounts[route] else {
            unreachable!("a recall is from an open account")
        };
        account.recall(from, to, now);
        account.add_up();
        let name = account.name.clone();
        *self.unanswered(to) += 1;
        self.orders.push((from, Order::Recall { route: name, to, due }));
    }

    pub(super) fn unanswered(&mut self, to: Destination) -> &mut u32 {
        match to {
            Destination::Close => &mut self.closes,
            Destination::Shard(_) => &mut self.moves,
        }
    }

    /// Decides again at this time, whatever happens or not.
    pub(super) fn revisit(&mut self, at: Instant) {
        self.revisit_at = self.revisit_at.min(at);
    }
}

/// Decisions are at least so far apart, and further with many routes: they take time, and see more when they wait.
const BALANCE_GAP: Duration = Duration::from_micros(50);

/// Looking at so many routes takes a small part of [`BALANCE_GAP`].
const ROUTES_PER_GAP: u32 = 256;

/// A server that had no room for a connection is offered one less for so long.
const OVERLOAD_LASTS: Duration = Duration::from_secs(10);

/// A login that the server refused is not tried again for this long: a wrong password is not a reason to storm it.
const REFUSAL_LASTS: Duration = Duration::from_secs(1);
