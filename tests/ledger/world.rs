//! A process in virtual time: shards with clients and connections, a ledger, mail that takes time, and a PostgreSQL
//! that takes time to open and to close connections.

use pgpinion::ids::{RouteName, ShardId};
use pgpinion::ledger::{
    Action, Failure, Ledger, Order, Permit, Policy, Request, Rest, RouteNo, Share, Terms,
};
use pgpinion::random::Random;
use pgpinion::time::Instant;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub const US: u64 = 1_000;
pub const MS: u64 = 1_000_000;
pub const S: u64 = 1_000_000_000;

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub shards: usize,
    /// The shard that runs the ledger.
    pub home: usize,
    pub policy: Policy,
    pub clients: Vec<ClientPlan>,
    /// One way, at least and at most.
    pub mail: (u64, u64),
    pub connect: u64,
    pub close: u64,
    /// Of dials, in percent.
    pub failing: u64,
    /// Of those, that the server refuses for having no room.
    pub overloaded: u64,
    /// Of transactions, in a thousand, that end with the death of the server.
    pub dying: u64,
    /// How long a client waits for a server.
    pub patience: u64,
}

#[derive(Clone, Debug)]
pub struct ClientPlan {
    pub route: usize,
    pub shard: usize,
    /// Mean length of a transaction.
    pub busy: u64,
    /// Between two transactions.
    pub think: u64,
    pub from: u64,
    pub until: u64,
    /// Transactions take a random time around the mean, or just that.
    pub steady: bool,
    /// Keeps its server over several transactions: of its transactions, in percent.
    pub pinning: u64,
}

impl Plan {
    pub fn new(shards: usize, limit: u32) -> Self {
        Self {
            shards,
            home: 0,
            policy: Policy::even(limit),
            clients: Vec::new(),
            mail: (10 * US, 60 * US),
            connect: 5 * MS,
            close: 2 * MS,
            failing: 0,
            overloaded: 0,
            dying: 0,
            patience: 3600 * S,
        }
    }

    /// Clients of a route, spread over the shards.
    pub fn clients(mut self, route: usize, count: usize, busy: u64, think: u64, from: u64) -> Self {
        for number in 0..count {
            let shard = number % self.shards;
            self.clients.push(ClientPlan { route, shard, busy, think, from, ..ClientPlan::default() });
        }
        self
    }

    /// The same on one shard.
    pub fn clients_on(mut self, shard: usize, route: usize, count: usize, busy: u64, think: u64) -> Self {
        for _ in 0..count {
            self.clients.push(ClientPlan { route, shard, busy, think, ..ClientPlan::default() });
        }
        self
    }
}

impl Default for ClientPlan {
    fn default() -> Self {
        Self { route: 0, shard: 0, busy: MS, think: 0, from: 0, until: u64::MAX, steady: false, pinning: 0 }
    }
}

pub fn route_name(route: usize) -> RouteName {
    RouteName { section: 0, database: "app".into(), user: format!("user{route}").into(), session: None }
}

enum Event {
    /// A client wants a server.
    Want(usize),
    /// A client's transaction is over.
    Done(usize, usize),
    /// A client has waited for too long.
    Tired(usize, u64),
    /// A client goes away.
    Leave(usize),
    Dialed(usize),
    Closed(usize),
    Mail(usize, Letter),
    Wake(usize),
    Reload(Policy),
}

enum Letter {
    Request(ShardId, Request),
    Order(Order),
    Connection(usize),
}

/// Ordered by time, then by number.
struct Entry(u64, u64, Event);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

struct Connection {
    permit: Option<Permit>,
    route: usize,
    shard: usize,
    dialed_at: u64,
    open: bool,
}

#[derive(Default)]
struct Pool {
    no: Option<RouteNo>,
    idle: Vec<usize>,
    waiting: VecDeque<usize>,
    /// Clients that are connected.
    clients: u32,
}

struct ShardSim {
    share: Share,
    pools: Vec<Pool>,
    wake_at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Away,
    Thinking,
    Waiting,
    Linked,
    Gone,
}

pub struct Client {
    pub plan: ClientPlan,
    state: State,
    since: u64,
    turn: u64,
    pinned: bool,
    server: Option<usize>,
    pub done: u64,
    pub expired: u64,
}

/// What happened, in numbers.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub opened: u64,
    pub moved: u64,
    pub letters: u64,
    pub levels: u64,
    pub failed: u64,
    pub open_most: usize,
    /// Per route: transactions, and waits in nanoseconds.
    pub done: Vec<u64>,
    pub waits: Vec<Vec<u64>>,
    /// Per route: when a transaction ended last.
    pub released_at: Vec<u64>,
    /// Most letters unread in one mailbox.
    pub unread_most: usize,
    pub dialing_most: u32,
    /// How often time alone made a shard or the ledger act.
    pub ticks: u64,
}

pub struct World {
    pub plan: Plan,
    pub now: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    number: u64,
    random: Random,
    pub ledger: Ledger,
    shards: Vec<ShardSim>,
    connections: Vec<Connection>,
    pub clients: Vec<Client>,
    /// When the last letter arrives in each mailbox, and how many are on the way.
    mailboxes: Vec<(u64, usize)>,
    /// Permits in letters.
    travelling: u32,
    open: usize,
    /// What must not be exceeded: the limit, or what was held when it was lowered.
    cap: u32,
    pub tally: Tally,
    ledger_wake: u64,
    stopped: bool,
}

impl World {
    pub fn new(plan: Plan, seed: u64) -> Self {
        let routes = plan.clients.iter().map(|client| client.route + 1).max().unwrap_or(0);
        let shard = || ShardSim {
            share: Share::default(),
            pools: (0..routes).map(|_| Pool::default()).collect(),
            wake_at: u64::MAX,
        };
        let mut world = Self {
            now: 0,
            queue: BinaryHeap::new(),
            number: 0,
            random: Random::new(seed),
            ledger: Ledger::new(plan.policy.clone(), plan.shards, seed),
            shards: (0..plan.shards).map(|_| shard()).collect(),
            connections: Vec::new(),
            clients: Vec::new(),
            mailboxes: vec![(0, 0); plan.shards],
            travelling: 0,
            open: 0,
            cap: plan.policy.limit,
            tally: Tally {
                done: vec![0; routes],
                waits: vec![Vec::new(); routes],
                released_at: vec![0; routes],
                ..Tally::default()
            },
            ledger_wake: u64::MAX,
            stopped: false,
            plan,
        };
        for (index, plan) in world.plan.clients.clone().into_iter().enumerate() {
            let (from, until) = (plan.from, plan.until);
            world.clients.push(Client {
                plan,
                state: State::Away,
                since: 0,
                turn: 0,
                pinned: false,
                server: None,
                done: 0,
                expired: 0,
            });
            world.at(from, Event::Want(index));
            if until < u64::MAX {
                world.at(until, Event::Leave(index));
            }
        }
        world
    }

    pub fn reload_at(&mut self, time: u64, policy: Policy) {
        self.at(time, Event::Reload(policy));
    }

    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        if low >= high { low } else { low + self.random.number() % (high - low + 1) }
    }

    fn percent(&mut self, percent: u64) -> bool {
        percent > 0 && self.random.number() % 100 < percent
    }

    fn at(&mut self, time: u64, event: Event) {
        self.number += 1;
        self.queue.push(Reverse(Entry(time.max(self.now), self.number, event)));
    }

    fn instant(&self) -> Instant {
        Instant::from_nanos(self.now)
    }

    // ---- running ----

    pub fn run(&mut self, until: u64) {
        while self.queue.peek().is_some_and(|Reverse(entry)| entry.0 <= until) {
            let Some(Reverse(Entry(time, _, event))) = self.queue.pop() else { return };
            self.now = time;
            self.step(event);
            self.check();
        }
        self.now = until;
    }

    /// Everybody leaves, what is open is closed; runs until nothing happens any more.
    pub fn end(&mut self) {
        for client in 0..self.clients.len() {
            self.leave(client);
        }
        self.run(self.now + 30 * S);
        self.stopped = true;
        for shard in 0..self.shards.len() {
            for route in 0..self.shards[shard].pools.len() {
                while let Some(connection) = self.shards[shard].pools[route].idle.pop() {
                    let no = self.no(shard, route);
                    self.shards[shard].share.close_idle(no);
                    self.closing(connection);
                }
            }
            self.settle(shard);
        }
        self.run(self.now + 10 * S);
        for (index, shard) in self.shards.iter().enumerate() {
            assert_eq!(shard.share.held(), 0, "shard {index} holds permits though all is over");
            assert!(shard.share.is_settled(), "shard {index} is not settled: {:?}", shard.share);
        }
        assert_eq!(self.open, 0, "connections are open though all is over");
        assert!(self.ledger.overview().held == 0, "permits are held though all is over");
        assert!(self.ledger.is_settled(), "the ledger is not settled: {:?}", self.ledger);
    }

    fn step(&mut self, event: Event) {
        let shard = match event {
            Event::Want(client) => {
                self.want(client);
                self.clients[client].plan.shard
            }
            Event::Done(client, connection) => {
                self.done(client, connection);
                self.clients[client].plan.shard
            }
            Event::Tired(client, turn) => {
                let is = &mut self.clients[client];
                if is.state == State::Waiting && is.turn == turn {
                    is.expired += 1;
                    let think = is.plan.think;
                    self.unqueue(client);
                    self.clients[client].state = State::Thinking;
                    self.at(self.now + think.max(MS), Event::Want(client));
                }
                self.clients[client].plan.shard
            }
            Event::Leave(client) => {
                self.leave(client);
                self.clients[client].plan.shard
            }
            Event::Dialed(connection) => {
                let shard = self.connections[connection].shard;
                self.dialed(connection);
                shard
            }
            Event::Closed(connection) => {
                let shard = self.connections[connection].shard;
                self.closed(connection);
                shard
            }
            Event::Mail(shard, letter) => {
                self.mailboxes[shard].1 -= 1;
                self.receive(shard, letter);
                shard
            }
            Event::Wake(shard) => shard,
            Event::Reload(policy) => {
                self.cap = self.ledger.overview().held.max(policy.limit);
                self.plan.policy = policy.clone();
                self.ledger.reload(policy);
                self.plan.home
            }
        };
        self.settle(shard);
    }

    /// Deadlines, letters: what a shard does at the end of each turn.
    fn settle(&mut self, shard: usize) {
        if self.shards[shard].share.next_deadline() <= self.instant() {
            let now = self.instant();
            self.tally.ticks += 1;
            self.shards[shard].share.tick(now);
        }
        self.post(shard);
        if shard == self.plan.home {
            while self.ledger.next_deadline() <= self.instant() {
                let now = self.instant();
                self.tally.ticks += 1;
                self.ledger.tick(now);
                self.post_orders();
            }
            let wake = self.ledger.next_deadline().as_nanos();
            if wake < self.ledger_wake || self.ledger_wake <= self.now {
                self.ledger_wake = wake;
                if wake < u64::MAX {
                    self.at(wake, Event::Wake(shard));
                }
            }
        }
        let wake = self.shards[shard].share.next_deadline().as_nanos();
        let known = self.shards[shard].wake_at;
        if wake < known || known <= self.now {
            self.shards[shard].wake_at = wake;
            if wake < u64::MAX {
                self.at(wake, Event::Wake(shard));
            }
        }
    }

    /// Sends what the share has to say.
    fn post(&mut self, shard: usize) {
        let now = self.instant();
        self.shards[shard].share.flush(now);
        for request in self.shards[shard].share.take_requests() {
            self.tally.levels += u64::from(matches!(request, Request::Levels(_)));
            if shard == self.plan.home {
                self.ledger.handle(ShardId(shard as u16), request, now);
            } else {
                self.travelling += u32::from(matches!(request, Request::Returned { .. }));
                self.mail(self.plan.home, Letter::Request(ShardId(shard as u16), request));
            }
        }
    }

    fn post_orders(&mut self) {
        for (to, order) in self.ledger.take_orders() {
            let to = usize::from(to.0);
            if to == self.plan.home {
                self.obey(to, order);
            } else {
                self.travelling += u32::from(matches!(order, Order::Grant { .. }));
                self.mail(to, Letter::Order(order));
            }
        }
        self.post(self.plan.home);
    }

    fn mail(&mut self, to: usize, letter: Letter) {
        let (least, most) = self.plan.mail;
        let arrives = (self.now + self.between(least, most)).max(self.mailboxes[to].0);
        self.mailboxes[to].0 = arrives;
        self.mailboxes[to].1 += 1;
        self.tally.letters += 1;
        self.tally.unread_most = self.tally.unread_most.max(self.mailboxes[to].1);
        self.at(arrives, Event::Mail(to, letter));
    }

    fn receive(&mut self, shard: usize, letter: Letter) {
        let now = self.instant();
        match letter {
            Letter::Request(from, request) => {
                self.travelling -= u32::from(matches!(request, Request::Returned { .. }));
                self.ledger.handle(from, request, now);
            }
            Letter::Order(order) => {
                self.travelling -= u32::from(matches!(order, Order::Grant { .. }));
                self.obey(shard, order);
            }
            Letter::Connection(connection) => {
                self.travelling -= 1;
                self.connections[connection].shard = shard;
                let no = self.no(shard, self.connections[connection].route);
                self.shards[shard].share.arrived(no);
                self.rest(connection);
            }
        }
    }

    fn obey(&mut self, shard: usize, order: Order) {
        match self.shards[shard].share.handle(order) {
            Action::None => {}
            Action::Dial(no, permit) => self.dial(shard, no, permit),
            Action::CloseIdle(no) => {
                let connection = self.coldest(shard, no);
                self.closing(connection);
            }
            Action::HandOverIdle(no, to) => {
                let connection = self.coldest(shard, no);
                self.hand_over(connection, to);
            }
        }
    }

    fn coldest(&mut self, shard: usize, no: RouteNo) -> usize {
        let pool = self.shards[shard].pools.iter_mut().find(|pool| pool.no == Some(no));
        pool.expect("a recalled route is known").idle.remove(0)
    }

    // ---- connections ----

    fn dial(&mut self, shard: usize, no: RouteNo, permit: Permit) {
        let route = self.shards[shard].pools.iter().position(|pool| pool.no == Some(no));
        let route = route.expect("what is dialled for waits");
        let (permit, dialed_at) = (Some(permit), self.now);
        self.connections.push(Connection { permit, route, shard, dialed_at, open: true });
        self.open += 1;
        self.tally.opened += 1;
        self.tally.open_most = self.tally.open_most.max(self.open);
        let takes = self.between(self.plan.connect * 8 / 10, self.plan.connect * 15 / 10);
        self.at(self.now + takes, Event::Dialed(self.connections.len() - 1));
    }

    fn dialed(&mut self, connection: usize) {
        let (shard, route) = (self.connections[connection].shard, self.connections[connection].route);
        let no = self.no(shard, route);
        if self.percent(self.plan.failing) {
            let overloaded = self.plan.overloaded;
            let why: Arc<str> = "refused".into();
            let failure =
                if self.percent(overloaded) { Failure::Overloaded(why) } else { Failure::Unreachable(why) };
            self.tally.failed += 1;
            self.shards[shard].share.dial_failed(no, failure);
            return self.closing(connection);
        }
        let took = Duration::from_nanos(self.now - self.connections[connection].dialed_at);
        self.shards[shard].share.opened(no, took);
        self.rest(connection);
    }

    fn rest(&mut self, connection: usize) {
        let (shard, route) = (self.connections[connection].shard, self.connections[connection].route);
        let (no, now) = (self.no(shard, route), self.instant());
        match self.shards[shard].share.rest(no, now) {
            Rest::Serve => {
                let client = self.shards[shard].pools[route].waiting.pop_front().expect("somebody waits");
                self.link(client, connection);
            }
            Rest::Idle => self.shards[shard].pools[route].idle.push(connection),
            Rest::Close => self.closing(connection),
            Rest::HandOver(to) => self.hand_over(connection, to),
        }
    }

    fn hand_over(&mut self, connection: usize, to: ShardId) {
        // The ledger must hear of it before it leaves.
        self.post(self.connections[connection].shard);
        self.travelling += 1;
        self.tally.moved += 1;
        self.connections[connection].shard = usize::MAX;
        self.mail(usize::from(to.0), Letter::Connection(connection));
    }

    fn closing(&mut self, connection: usize) {
        let takes = self.between(self.plan.close / 2, self.plan.close);
        self.at(self.now + takes, Event::Closed(connection));
    }

    fn closed(&mut self, connection: usize) {
        let is = &mut self.connections[connection];
        is.open = false;
        let (shard, route) = (is.shard, is.route);
        let permit = is.permit.take().expect("what closes was open");
        self.open -= 1;
        let no = self.no(shard, route);
        self.shards[shard].share.closed(no, permit);
    }

    // ---- clients ----

    fn no(&mut self, shard: usize, route: usize) -> RouteNo {
        let shard = &mut self.shards[shard];
        let no = shard.share.enter(&route_name(route));
        shard.pools[route].no = Some(no);
        no
    }

    fn want(&mut self, client: usize) {
        let (state, route, shard) = {
            let is = &self.clients[client];
            (is.state, is.plan.route, is.plan.shard)
        };
        if state == State::Gone {
            return;
        }
        if state == State::Away {
            self.come(client);
        }
        let now = self.instant();
        let is = &mut self.clients[client];
        (is.since, is.turn) = (self.now, is.turn + 1);
        if let Some(server) = is.server {
            return self.link(client, server);
        }
        let no = self.no(shard, route);
        if self.shards[shard].share.link_idle(no) {
            let connection = self.shards[shard].pools[route].idle.pop().expect("one is idle");
            return self.link(client, connection);
        }
        self.shards[shard].share.waits(no, now);
        self.shards[shard].pools[route].waiting.push_back(client);
        self.clients[client].state = State::Waiting;
        let turn = self.clients[client].turn;
        if self.plan.patience < 3600 * S {
            self.at(self.now + self.plan.patience, Event::Tired(client, turn));
        }
    }

    fn link(&mut self, client: usize, connection: usize) {
        let is = &mut self.clients[client];
        let waited = self.now - is.since;
        is.state = State::Linked;
        let (busy, steady, pinning, route, shard) =
            (is.plan.busy, is.plan.steady, is.plan.pinning, is.plan.route, is.plan.shard);
        let pinned = is.pinned;
        is.server = Some(connection);
        self.tally.waits[route].push(waited);
        if !pinned && self.percent(pinning) {
            let no = self.no(shard, route);
            self.shards[shard].share.pin(no, true);
            self.clients[client].pinned = true;
        }
        let takes = if steady {
            busy
        } else {
            let part = (self.random.number() >> 11) as f64 / (1u64 << 53) as f64;
            (-(1.0 - part).ln() * busy as f64) as u64
        };
        self.at(self.now + takes.max(1), Event::Done(client, connection));
    }

    fn done(&mut self, client: usize, connection: usize) {
        let dies = self.random.number() % 1000 < self.plan.dying;
        let unpins = self.percent(30);
        let is = &mut self.clients[client];
        is.done += 1;
        let (route, think, shard, gone) =
            (is.plan.route, is.plan.think, is.plan.shard, is.state == State::Gone);
        self.tally.done[route] += 1;
        self.tally.released_at[route] = self.now;
        if !gone {
            is.state = State::Thinking;
        }
        let releases = !is.pinned || gone || dies || unpins;
        if releases {
            is.server = None;
            if std::mem::replace(&mut is.pinned, false) {
                let no = self.no(shard, route);
                self.shards[shard].share.pin(no, false);
            }
        }
        if !gone {
            let pause = self.between(think / 2, think + think / 2);
            self.at(self.now + pause, Event::Want(client));
        }
        if releases && (dies || self.stopped) {
            let no = self.no(shard, route);
            self.shards[shard].share.close(no);
            self.closing(connection);
        } else if releases {
            self.rest(connection);
        }
        if gone {
            self.go(client);
        }
    }

    /// A client has connected.
    fn come(&mut self, client: usize) {
        let (shard, route) = (self.clients[client].plan.shard, self.clients[client].plan.route);
        let no = self.no(shard, route);
        let is = &mut self.shards[shard];
        is.pools[route].clients += 1;
        if is.pools[route].clients == 1 {
            is.share.visited(no);
        }
    }

    /// A client has disconnected.
    fn go(&mut self, client: usize) {
        let plan = &self.clients[client].plan;
        let (shard, route, stayed) = (plan.shard, plan.route, self.now - plan.from);
        let no = self.no(shard, route);
        let is = &mut self.shards[shard];
        is.pools[route].clients -= 1;
        if is.pools[route].clients == 0 {
            is.share.deserted(no, stayed >= VISIT_MIN);
        }
    }

    fn leave(&mut self, client: usize) {
        let state = self.clients[client].state;
        match state {
            State::Waiting => self.unqueue(client),
            State::Thinking => {
                if let Some(connection) = self.clients[client].server.take() {
                    let (shard, route) = (self.clients[client].plan.shard, self.clients[client].plan.route);
                    let no = self.no(shard, route);
                    self.clients[client].pinned = false;
                    self.shards[shard].share.pin(no, false);
                    self.rest(connection);
                }
            }
            _ => {}
        }
        self.clients[client].state = State::Gone;
        if matches!(state, State::Waiting | State::Thinking) {
            self.go(client);
        }
        let shard = self.clients[client].plan.shard;
        self.settle(shard);
    }

    fn unqueue(&mut self, client: usize) {
        let (shard, route) = (self.clients[client].plan.shard, self.clients[client].plan.route);
        let place = self.shards[shard].pools[route].waiting.iter().position(|&each| each == client);
        let place = place.expect("who waits is in the queue");
        self.shards[shard].pools[route].waiting.remove(place);
        let no = self.no(shard, route);
        self.shards[shard].share.waiter_left(no, place);
    }

    // ---- what must hold ----

    fn check(&mut self) {
        let overview = self.ledger.overview();
        self.tally.dialing_most = self.tally.dialing_most.max(overview.dialing);
        self.cap = self.cap.min(overview.held).max(overview.limit);
        assert!(overview.held <= self.cap, "{} permits are held, and {} allowed", overview.held, self.cap);
        assert!(
            self.open <= overview.held as usize,
            "{} connections with {} permits",
            self.open,
            overview.held
        );
        // Of many shards, all are looked at now and then only.
        if self.shards.len() > SHARDS_MANY && !self.number.is_multiple_of(SHARDS_MANY as u64) {
            return;
        }
        let mut held = 0;
        for shard in &self.shards {
            held += shard.share.held();
            for pool in &shard.pools {
                let Some(no) = pool.no else { continue };
                let counts = shard.share.counts(no);
                assert!(
                    counts.waiting as usize == pool.waiting.len() || shard.share.counts(no).held == 0,
                    "the share knows who waits"
                );
                assert!(counts.idle == 0 || counts.waiting == 0, "idle beside waiting: {counts:?}");
            }
        }
        assert_eq!(
            overview.held as usize,
            held + self.travelling as usize,
            "permits are lost or doubled: {overview:?}"
        );
    }

    /// Clients that wait now, and for how long.
    pub fn waiting(&self) -> impl Iterator<Item = (&Client, u64)> {
        self.clients
            .iter()
            .filter(|client| client.state == State::Waiting)
            .map(|client| (client, self.now - client.since))
    }

    /// What the shards and the clients of a route know of it, to understand a failure.
    pub fn describe(&self, route: usize) -> String {
        let mut text = String::new();
        for (index, shard) in self.shards.iter().enumerate() {
            let pool = &shard.pools[route];
            let counts = pool.no.map(|no| shard.share.counts(no));
            text += &format!("shard {index}: {counts:?}, idle {:?}, waiting {:?}\n", pool.idle, pool.waiting);
        }
        for client in self.clients.iter().filter(|client| client.plan.route == route) {
            text += &format!("client on {}: {:?} since {}\n", client.plan.shard, client.state, client.since);
        }
        text
    }

    /// Permits that a route holds.
    pub fn held(&self, route: usize) -> u32 {
        self.ledger.rows().iter().filter(|row| row.route == route_name(route)).map(|row| row.held).sum()
    }

    /// Permits that a route holds on a shard.
    pub fn held_on(&self, route: usize, shard: usize) -> u32 {
        let rows = self.ledger.rows();
        let mine = rows.iter().filter(|row| row.route == route_name(route));
        mine.filter(|row| usize::from(row.shard.0) == shard).map(|row| row.held).sum()
    }

    /// A share of the waits of a route is not longer than this.
    pub fn wait_percentile(&self, route: usize, part: f64) -> u64 {
        let mut waits = self.tally.waits[route].clone();
        waits.sort_unstable();
        let place = ((waits.len() as f64 * part) as usize).min(waits.len().saturating_sub(1));
        waits.get(place).copied().unwrap_or(0)
    }
}

/// Gives the routes of a user other terms.
pub fn set_terms(policy: &mut Policy, user: &str, change: impl Fn(&mut Terms) + Send + Sync + 'static) {
    let (before, user) = (policy.terms.clone(), user.to_owned());
    policy.terms = Arc::new(move |name| {
        let mut terms = before(name);
        if *name.user == *user {
            change(&mut terms);
        }
        terms
    });
}

/// A shard says that a route is deserted when its last client has stayed for so long.
const VISIT_MIN: u64 = S;

/// So many that looking at each after each event would take most of the time.
const SHARDS_MANY: usize = 16;
