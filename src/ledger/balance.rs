//! The ledger's decisions: who is granted a permit, who must give one up, what moves between shards.

use super::account::{Account, Holding, PATIENCE_MAX, PATIENCE_MIN};
use super::letters::{Destination, Due, Order, Status};
use super::owner::Ledger;
use super::policy::Levels;
use crate::ids::ShardId;
use crate::time::Instant;
use std::time::Duration;

impl Ledger {
    /// All decisions that follow from the books as they are.
    pub(super) fn balance(&mut self, now: Instant) {
        self.revisit_at = Instant::NEVER;
        self.open_books(now);
        self.give_way_to_limits(now);
        self.lose_patience(now);
        self.allot(now);
        self.relocate(now);
        self.tell(now);
        self.plan_next(now);
    }

    fn open_books(&mut self, now: Instant) {
        self.overloads.retain(|&until| until > now);
        let passed = now.since(self.aged_at).as_secs_f64();
        self.aged_at = now;
        let mut least = f64::INFINITY;
        for account in self.accounts.iter_mut().flatten() {
            account.turn += f64::from(account.sums.credit) / account.weight() * passed;
            account.add_up();
            account.planned = 0;
            if account.sums.need > 0 {
                least = least.min(account.turn);
            }
        }
        if least < f64::INFINITY {
            self.forgive_turns(least);
        }
    }

    /// Nobody comes back with a claim from the time in which it wanted nothing, nor is punished for long for what it had
    /// when nobody else wanted it.
    fn forgive_turns(&mut self, least: f64) {
        let most = least + 2.0 * self.turn_debt();
        for account in self.accounts.iter_mut().flatten() {
            let from = if account.sums.need > 0 { account.turn } else { least };
            account.turn = account.turn.max(from).min(most);
        }
    }

    fn turn_debt(&self) -> f64 {
        (self.governor.took() * 20).max(TURN_DEBT_MIN).as_secs_f64()
    }

    // ---- level 1: between routes ----

    /// Permits that may be used, the server's health considered.
    pub(super) fn limit(&self) -> i64 {
        (i64::from(self.policy.limit) - self.overloads.len() as i64).max(1)
    }

    /// What a route can always have.
    pub(super) fn floor(&self, account: &Account) -> u32 {
        self.in_proportion(account.terms.floor)
    }

    /// What is kept for administrators.
    pub(super) fn reserve(&self) -> u32 {
        self.in_proportion(self.policy.reserve)
    }

    /// Less than was set while the server has no room for all.
    fn in_proportion(&self, permits: u32) -> u32 {
        let (limit, all) = (self.limit() as u64, u64::from(self.policy.limit.max(1)));
        (u64::from(permits) * limit / all) as u32
    }

    /// Permits that could be granted to a route now; below zero after a reload.
    fn free(&self, administrator: bool) -> i64 {
        let all = self.limit() - i64::from(self.held);
        let users = self.limit() - i64::from(self.reserve()) - i64::from(self.held_by_users);
        if administrator { all } else { all.min(users) }
    }

    /// Permits that are free or being recalled, and not promised to a route yet.
    fn coming(&self, administrator: bool) -> i64 {
        let accounts = || self.accounts.iter().flatten();
        let gain = |account: &Account| i64::from(account.sums.closes) - i64::from(account.planned);
        let all = self.limit() - i64::from(self.held) + accounts().map(gain).sum::<i64>();
        if administrator { all } else { all.min(self.coming_to_users()) }
    }

    /// The same of those that are not reserved.
    fn coming_to_users(&self) -> i64 {
        let users = self.accounts.iter().flatten().filter(|account| !account.terms.administrator);
        let gain: i64 =
            users.map(|account| i64::from(account.sums.closes) - i64::from(account.planned)).sum();
        self.limit() - i64::from(self.reserve()) - i64::from(self.held_by_users) + gain
    }

    /// What is above a limit is recalled: the endpoint's, the users', a route's.
    fn give_way_to_limits(&mut self, now: Instant) {
        for route in 0..self.accounts.len() {
            while self.accounts[route]
                .as_ref()
                .is_some_and(|account| account.allotted() > account.terms.ceiling)
            {
                if !self.recall_from(route, now) {
                    break;
                }
            }
        }
        for administrator in [false, true] {
            while self.coming(administrator) < 0 {
                let Some(victim) = self.most_privileged(administrator) else { break };
                if !self.recall_from(victim, now) {
                    break;
                }
            }
        }
    }

    /// The route that has most for its weight, floors left alone as long as there is another.
    fn most_privileged(&self, administrators_too: bool) -> Option<usize> {
        let candidates = self.open().filter(|(_, account)| {
            account.sums.payable > 0 && (administrators_too || !account.terms.administrator)
        });
        let rank = |account: &Account| {
            (account.allotted() > self.floor(account), account.sums.payable_soon > 0, account.level())
        };
        candidates
            .max_by(|(_, one), (_, other)| {
                rank(one).partial_cmp(&rank(other)).unwrap_or(std::cmp::Ordering::Equal)
            })
            .map(|(route, _)| route)
    }

    fn open(&self) -> impl Iterator<Item = (usize, &Account)> {
        self.accounts
            .iter()
            .enumerate()
            .filter_map(|(route, account)| account.as_ref().map(|account| (route, account)))
    }

    /// So many recalls of a kind may be unanswered: one for each permit, also while more are held than a limit that was
    /// lowered allows. Inboxes are as large as the limits at the start need.
    fn recalls_max(&self) -> u32 {
        self.policy.limit.max(self.held)
    }

    /// Recalls one connection of a route, from the shard that can spare it best.
    fn recall_from(&mut self, route: usize, now: Instant) -> bool {
        if self.closes >= self.recalls_max() {
            return false;
        }
        let Some(account) = &self.accounts[route] else { return false };
        let payable = account.holdings.iter().filter(|holding| holding.payable() > 0);
        let spare = |holding: &&Holding| {
            let soon = holding.payable_soon();
            (soon > 0, !holding.is_slow(), holding.idle > 0, holding.movable(), soon)
        };
        let Some(from) = payable.max_by_key(spare).map(|holding| holding.shard) else { return false };
        self.recall(route, from, Destination::Close, Due::Next, now);
        true
    }

    /// Grants what is free to the routes that have least, plans what is coming for them, and recalls what they lack from
    /// those that have more than their part.
    fn allot(&mut self, now: Instant) {
        let mut passed_over: Vec<usize> = Vec::new();
        while passed_over.len() < ROUTES_PASSED_OVER_MAX
            && let Some((route, administrator)) = self.neediest(&passed_over, now)
        {
            if self.free(administrator) > 0 {
                match self.shard_to_grant(route) {
                    Some(_) if !self.governor.may_dial(now) => return,
                    Some(shard) => self.grant_to(route, shard, now),
                    None => passed_over.push(route),
                }
            } else if self.coming(administrator) > 0 {
                self.plan(route);
            } else if !self.knows_rest(now) || (self.governor.is_failing() && !self.may_probe(now)) {
                return;
            } else {
                match self.victim_for(route, now) {
                    Ok(victim) if self.recall_from(victim, now) => self.plan(route),
                    Ok(_) => passed_over.push(route),
                    Err(at) => {
                        self.revisit(at);
                        passed_over.push(route);
                    }
                }
            }
        }
    }

    /// While dials fail nothing that works is closed in order to open something; but for one at a time, as otherwise,
    /// with all permits in use, nobody would ever learn that dials succeed again.
    fn may_probe(&self, now: Instant) -> bool {
        self.governor.may_dial(now) && self.closes == 0
    }

    fn plan(&mut self, route: usize) {
        if let Some(account) = &mut self.accounts[route] {
            account.planned += 1;
        }
    }

    /// The route that comes next: one that what is free is for, if only for administrators; below its floor, else with
    /// least for its weight; among those that have nothing, the one whose turn was longest ago; among equals, the one that
    /// has had least.
    fn neediest(&self, passed_over: &[usize], now: Instant) -> Option<(usize, bool)> {
        let mut best: Option<(Rank, usize, bool)> = None;
        for (route, account) in self.open() {
            let administrator = account.terms.administrator;
            let sums = &account.sums;
            let none_is_free = self.free(administrator) <= 0;
            // A connection that is being closed is one of the route's until it has closed.
            let (wanted, has) = match none_is_free {
                true => (sums.lack, account.allotted()),
                false => (sums.need, account.allotted().max(sums.credit)),
            };
            if wanted <= account.planned
                || has >= account.terms.ceiling
                || account.refused_until > now
                || passed_over.contains(&route)
            {
                continue;
            }
            let level = account.level();
            let turn = if level == 0.0 { account.waits_since().as_nanos() as f64 } else { account.turn };
            let rank = (none_is_free, account.allotted() >= self.floor(account), level, turn);
            if best.as_ref().is_none_or(|(least, ..)| rank < *least) {
                best = Some((rank, route, administrator));
            }
        }
        best.map(|(_, route, administrator)| (route, administrator))
    }

    /// The shard of a route that lacks most of what it needs; of equals, the one where somebody waits longest.
    fn shard_to_grant(&self, route: usize) -> Option<ShardId> {
        let account = self.accounts[route].as_ref()?;
        let needing = account.holdings.iter().filter(|holding| holding.need() > 0);
        let rank = |holding: &&Holding| {
            let part = f64::from(holding.prospect()) / f64::from(holding.busy().max(1));
            (holding.lack() == 0, part, holding.since)
        };
        let first = needing
            .min_by(|one, other| rank(one).partial_cmp(&rank(other)).unwrap_or(std::cmp::Ordering::Equal));
        first.map(|holding| holding.shard)
    }

    fn grant_to(&mut self, route: usize, shard: ShardId, now: Instant) {
        self.grant(route, shard, now);
        // Whoever was to wait for a connection of another shard need not any more.
        let Some(account) = &mut self.accounts[route] else { return };
        if account.at(shard).coming <= account.at(shard).need() {
            return;
        }
        if let Some(from) = account.move_to(shard) {
            self.keep(route, from, Destination::Shard(shard));
        }
    }

    fn keep(&mut self, route: usize, from: ShardId, to: Destination) {
        let Some(account) = &mut self.accounts[route] else { return };
        let name = account.name.clone();
        let holding = account.at(from);
        if holding.kept < holding.closes + holding.leaving {
            holding.kept += 1;
            self.orders.push((from, Order::Keep { route: name, to }));
        }
    }

    /// The route that must give a permit up for `needy`; or when one must, should nothing happen until then.
    fn victim_for(&self, needy: usize, now: Instant) -> Result<usize, Instant> {
        let Some(poor) = &self.accounts[needy] else { return Err(Instant::NEVER) };
        // What administrators give up helps users only as far as it is not of the reserve.
        let anyone = poor.terms.administrator || self.coming_to_users() > 0;
        let candidates = self.open().filter(|(route, account)| {
            *route != needy
                && account.sums.payable > 0
                && account.allotted() > self.floor(account)
                && (anyone || !account.terms.administrator)
        });
        let mut best = None;
        let mut earliest = Instant::NEVER;
        for (route, rich) in candidates {
            let gives = self.gives(rich, poor, now);
            earliest = earliest.min(gives.at);
            // What clients keep comes last: nobody knows when they leave.
            let rank =
                (rich.sums.payable_soon > 0, gives.unused_at <= now, gives.far, rich.level(), rich.turn);
            if gives.at <= now && best.as_ref().is_none_or(|(most, _)| rank > *most) {
                best = Some((rank, route));
            }
        }
        best.map(|(_, route)| route).ok_or(earliest)
    }

    /// When `rich` must give a permit up for `poor`, as things are: because it does not use it, because it has more by two,
    /// or because it has had more for long enough.
    fn gives(&self, rich: &Account, poor: &Account, now: Instant) -> Gives {
        let contended = rich.sums.need > 0;
        let idle = rich.sums.idle > 0;
        let resting = idle && !contended;
        let poorest = poor.allotted() == 0;
        let floor_missed = poor.allotted() < self.floor(poor);
        let far = level_with(rich, -1.0) >= level_with(poor, 1.0);

        let idle_for = |least: Duration| rich.sums.idle_since + least;
        let had_for_long = rich.granted_at + self.quantum(rich);
        let unused_at = match resting {
            false => Instant::NEVER,
            true if rich.sums.deserted => idle_for(Duration::ZERO),
            true if poorest => idle_for(IDLE_MIN).min(had_for_long),
            true if far => idle_for(IDLE_MIN),
            true => idle_for(self.linger()),
        };
        let had_more_at = match rich.level() > poor.level() {
            true if poorest => had_for_long,
            true if contended || idle => had_for_long.max(self.indebted_at(rich, poor, now)),
            _ => Instant::NEVER,
        };
        let at_once = floor_missed || (far && !resting);
        let at = if at_once { now } else { unused_at.min(had_more_at) };
        Gives { at, unused_at, far }
    }

    /// When `rich` will have had so much more than `poor` that it must make up for it.
    fn indebted_at(&self, rich: &Account, poor: &Account, now: Instant) -> Instant {
        let lacking = self.turn_debt() - (rich.turn - poor.turn);
        if lacking <= 0.0 {
            return now;
        }
        let pace = |account: &Account| f64::from(account.sums.credit) / account.weight();
        let gain = pace(rich) - pace(poor);
        if gain <= 0.0 {
            return Instant::NEVER;
        }
        // Rounded up, so that it is true by then.
        now + Duration::from_secs_f64((lacking / gain).min(DEBT_FORESEEN_MAX)) + Duration::from_millis(1)
    }

    /// How long a permit is left with a route although another has none, by weight.
    fn quantum(&self, account: &Account) -> Duration {
        let (weights, routes) = self
            .open()
            .filter(|(_, account)| account.is_active())
            .fold((0.0, 0.0), |(weights, routes), (_, account)| (weights + account.weight(), routes + 1.0));
        let part = (account.weight() * f64::max(routes, 1.0) / f64::max(weights, 1.0)).clamp(0.1, 10.0);
        (self.governor.took() * 5).max(QUANTUM_MIN).mul_f64(part)
    }

    fn linger(&self) -> Duration {
        (self.governor.took() * 10).max(LINGER_MIN)
    }

    /// Recalls that stay unanswered for too long are taken back where another connection could answer sooner.
    fn lose_patience(&mut self, now: Instant) {
        for route in 0..self.accounts.len() {
            let Some(account) = &self.accounts[route] else { continue };
            let overdue: Vec<ShardId> = account
                .holdings
                .iter()
                .filter(|holding| overdue_at(account, holding) <= now)
                .map(|holding| holding.shard)
                .collect();
            for shard in overdue {
                self.lose_patience_with(route, shard, now);
            }
        }
    }

    fn lose_patience_with(&mut self, route: usize, shard: ShardId, now: Instant) {
        let others = self.others_could_pay(route, shard);
        let Some(account) = &mut self.accounts[route] else { return };
        let name = account.name.clone();
        if !others {
            return;
        }
        let holding = account.at(shard);
        while holding.overdue_at(holding.patience) <= now && holding.patience < PATIENCE_MAX {
            holding.patience = (holding.patience * 2).min(PATIENCE_MAX);
        }
        while let Some(to) = account.keep_one(shard) {
            self.orders.push((shard, Order::Keep { route: name.clone(), to }));
        }
    }

    /// Somebody else has connections that could be recalled instead.
    fn others_could_pay(&self, route: usize, shard: ShardId) -> bool {
        self.open().any(|(each, account)| {
            account.holdings.iter().any(|holding| {
                (each != route || holding.shard != shard)
                    && holding.payable_soon() > 0
                    && (each == route || account.allotted() > self.floor(account))
            })
        })
    }

    // ---- level 2: between the shards of a route ----

    /// Moves connections to shards that lack them, from shards of the same route that do not use them or have more.
    fn relocate(&mut self, now: Instant) {
        for route in 0..self.accounts.len() {
            let Some(account) = &self.accounts[route] else { continue };
            // What is closed cannot be opened elsewhere as long as logins are refused.
            let stays = !self.policy.hand_over && account.refused_until > now;
            if stays || account.sums.lack == 0 || account.sums.closes >= account.sums.credit {
                continue;
            }
            let mut lacking: Vec<(Instant, ShardId)> = account
                .holdings
                .iter()
                .filter(|holding| holding.lack() > 0)
                .map(|holding| (holding.since, holding.shard))
                .collect();
            lacking.sort_unstable();
            for (_, shard) in lacking {
                self.relocate_to(route, shard, now);
            }
        }
    }

    fn relocate_to(&mut self, route: usize, shard: ShardId, now: Instant) {
        let to = if self.policy.hand_over { Destination::Shard(shard) } else { Destination::Close };
        while *self.unanswered(to) < self.recalls_max()
            && let Some((from, due)) = self.donor_for(route, shard, now)
        {
            self.recall(route, from, to, due, now);
        }
        if !self.policy.hand_over {
            self.revisit(self.next_donor_at(route, shard, now));
        }
    }

    /// The shard that gives a connection up for another of the same route: one where it rests; or, one at a time, one that
    /// has more for its clients, or, if the other has none, one where nobody has waited as long.
    fn donor_for(&self, route: usize, shard: ShardId, now: Instant) -> Option<(ShardId, Due)> {
        let account = self.accounts[route].as_ref()?;
        let heir = account.holdings.iter().find(|holding| holding.shard == shard)?;
        // Without hand-over a connection is closed here and opened there: no more than one at a time.
        if heir.lack() == 0 || (!self.policy.hand_over && account.sums.closes > 0) {
            return None;
        }
        let stay = self.stay(account);
        let donors = || others_of(account, shard).filter(|holding| holding.received_at + stay <= now);
        // Whoever waits where there are connections is served soon as a rule, and what rests elsewhere is as a rule between
        // two transactions: nothing moves before somebody has waited for long.
        let resting = donors().filter(|donor| donor.idle > 0).max_by_key(|donor| donor.idle);
        if let Some(donor) = resting.filter(|_| heir.prospect() == 0 || heir.pressing() > 0) {
            let due = if heir.prospect() == 0 { Due::Next } else { Due::Now };
            return Some((donor.shard, due));
        }
        if heir.coming > 0 || !self.knows_rest(now) {
            return None;
        }
        let (mine, busy) = (heir.prospect(), heir.busy());
        let richer = donors().filter(|donor| {
            let (all, clients) = (mine + donor.prospect(), busy + donor.busy());
            let part = f64::from(all) * f64::from(busy) / f64::from(clients.max(1));
            part - f64::from(mine) >= UNEVENNESS_MIN + part * UNEVENNESS_PART
        });
        let spare = |donor: &&Holding| {
            let last = std::cmp::Reverse((donor.received_at, donor.shard));
            (donor.payable_soon() > donor.leaving, !donor.is_slow(), donor.prospect(), last)
        };
        if let Some(donor) = richer.max_by_key(spare) {
            return Some((donor.shard, Due::Next));
        }
        if mine > 0 || heir.since == Instant::NEVER {
            return None;
        }
        donors().max_by_key(spare).map(|donor| (donor.shard, Due::Behind(heir.since)))
    }

    /// When a shard may give a connection up for another of the same route that cannot yet.
    fn next_donor_at(&self, route: usize, shard: ShardId, now: Instant) -> Instant {
        let Some(account) = &self.accounts[route] else { return Instant::NEVER };
        let stay = self.stay(account);
        let times = others_of(account, shard).map(|holding| holding.received_at + stay);
        times.filter(|&at| at > now).min().unwrap_or(Instant::NEVER)
    }

    /// How long a shard keeps what it was given although another of the same route waits: if connections do not move, until
    /// opening it has been worth while.
    fn stay(&self, account: &Account) -> Duration {
        if self.policy.hand_over { Duration::ZERO } else { self.quantum(account) }
    }

    // ---- what shards are told ----

    /// All shards that have permits have said what rests there, or have had the time to.
    fn knows_rest(&self, now: Instant) -> bool {
        let answered = |shard: &super::owner::Shard| shard.told.tight && !shard.told_unanswered;
        self.tight
            && (now >= self.tight_since + ANSWER_MAX
                || self.shards.iter().all(|shard| shard.credit == 0 || answered(shard)))
    }

    fn tell(&mut self, now: Instant) {
        // A route whose logins are refused is served by what it has, if that may move.
        let servable = |account: &Account| {
            account.refused_until <= now || (self.policy.hand_over && account.sums.credit > 0)
        };
        let lacking = self.open().any(|(_, account)| account.sums.need > 0 && servable(account));
        if lacking {
            self.lacked_at = now;
            if !std::mem::replace(&mut self.tight, true) {
                self.tight_since = now;
            }
        } else if now >= self.lacked_at + TIGHT_LASTS {
            self.tight = false;
        }
        let weights =
            self.open().filter(|(_, account)| account.is_active()).map(|(_, each)| each.terms.weight).sum();
        let mut levels = None;
        for index in 0..self.shards.len() {
            self.tell_shard(index, weights, &mut levels);
        }
    }

    fn tell_shard(&mut self, index: usize, weights: u32, levels: &mut Option<Levels>) {
        let (tight, trouble) = (self.tight, self.governor.trouble().cloned());
        let id = ShardId(index as u16);
        let shard = &mut self.shards[index];
        if let Some(list) = shard.seen.take() {
            self.orders.push((id, Order::Seen(list)));
        }
        if shard.told_unanswered {
            return;
        }
        let concerned = shard.credit > 0 || shard.wanting > 0;
        let told = &shard.told;
        let weights_differ = weights * 4 > shard.told_weights * 5 || shard.told_weights * 4 > weights * 5;
        let differs = told.tight != tight || told.trouble != trouble || weights_differ;
        // One that has nothing to do with the endpoint is only told that what it knows is not true any more.
        let outdated = told.tight && !tight || told.trouble.is_some() && trouble.is_none();
        if !(outdated || concerned && differs) {
            return;
        }
        let ends = told.tight && !tight;
        let levels = *levels.get_or_insert_with(|| self.levels());
        let shard = &mut self.shards[index];
        shard.told = Status { tight, trouble, levels };
        shard.told_weights = weights;
        shard.told_unanswered = true;
        self.orders.push((id, Order::Status(shard.told.clone())));
        if ends {
            self.forget_rest(id);
        }
    }

    /// A shard that is told that nobody lacks anything will not say what changes.
    fn forget_rest(&mut self, shard: ShardId) {
        for account in self.accounts.iter_mut().flatten() {
            for holding in account.holdings.iter_mut().filter(|holding| holding.shard == shard) {
                holding.forget_rest();
            }
        }
    }

    // ---- when to look again ----

    /// Most decisions follow from letters. Those that follow from time are taken when it has come: what could not be
    /// decided has named its time already, and the others are named here.
    fn plan_next(&mut self, now: Instant) {
        let holdings =
            self.open().flat_map(|(_, account)| account.holdings.iter().map(move |each| (account, each)));
        let times = holdings.map(|(account, holding)| overdue_at(account, holding));
        let overdue = times.filter(|&at| at > now).min();
        self.revisit(overdue.unwrap_or(Instant::NEVER));
        if self.tight && self.lacked_at != now {
            self.revisit(self.lacked_at + TIGHT_LASTS);
        }
        if !self.open().any(|(_, account)| account.sums.need > 0) {
            return;
        }
        if self.tight && !self.knows_rest(now) {
            self.revisit(self.tight_since + ANSWER_MAX);
        }
        if self.governor.retry_at() > now {
            self.revisit(self.governor.retry_at());
        }
        if let Some(&until) = self.overloads.iter().min() {
            self.revisit(until);
        }
        let refused =
            self.open().map(|(_, account)| account.refused_until).filter(|&until| until > now).min();
        if let Some(until) = refused {
            self.revisit(until);
        }
    }
}

/// What routes are compared by, the most important first.
type Rank = (bool, bool, f64, f64);

/// What one route owes another.
struct Gives {
    /// When it must give a permit up.
    at: Instant,
    /// When it will not have used one for so long that it is to spare.
    unused_at: Instant,
    /// It has more by two.
    far: bool,
}

/// The other shards of a route that have a connection they could give up.
fn others_of(account: &Account, shard: ShardId) -> impl Iterator<Item = &Holding> {
    account.holdings.iter().filter(move |holding| holding.shard != shard && holding.movable() > 0)
}

/// When recalls of a shard are taken back: soon, if a connection of the same route rests on another shard by now.
fn overdue_at(account: &Account, holding: &Holding) -> Instant {
    let rests = || others_of(account, holding.shard).any(|other| other.idle > 0);
    let soon = holding.patience > PATIENCE_MIN && rests();
    holding.overdue_at(if soon { PATIENCE_MIN } else { holding.patience })
}

/// What a route would have for its weight with so many more.
fn level_with(account: &Account, more: f64) -> f64 {
    (f64::from(account.allotted()) + more) / account.weight()
}

/// A connection at rest for less than this is probably between two transactions.
const IDLE_MIN: Duration = Duration::from_millis(5);

/// A permit stays with a route at least so long (and five times what opening a connection takes) while a route that has
/// none waits for it: opening must not take more time than using.
const QUANTUM_MIN: Duration = Duration::from_millis(50);

/// An unused connection of a route that has no more than its part is left alone so long (and ten times what opening
/// takes): closing what is needed again costs more than waiting for something else.
const LINGER_MIN: Duration = Duration::from_millis(200);

/// A route that has one permit more than another, because they cannot be divided, passes it on when it has had it for
/// two seconds (and twenty times what opening a connection takes) more.
const TURN_DEBT_MIN: Duration = Duration::from_secs(2);

/// No debt is foreseen for longer than these seconds.
const DEBT_FORESEEN_MAX: f64 = 3600.0;

/// A shard that lacks at least so much of its part of a route's connections is given one; with half a connection the
/// other would lack as much afterwards.
const UNEVENNESS_MIN: f64 = 0.7;

/// And so much of its part more: what is known of how many clients there are may be off by a quarter.
const UNEVENNESS_PART: f64 = 0.1;

/// Routes that cannot be served in one round of decisions before the others are left for the next.
const ROUTES_PASSED_OVER_MAX: usize = 8;

/// Shards go on telling what rests for so long after the last client lacked something.
const TIGHT_LASTS: Duration = Duration::from_millis(20);

/// A shard that has not said for so long what rests there is not waited for.
const ANSWER_MAX: Duration = Duration::from_millis(1);
