//! Every order in which things can happen in a small world: two shards, two routes, two permits, three clients.
//!
//! The world is run again from its beginning for each sequence of choices. Two sequences that lead to the same state, but
//! for the time of day, are followed once.

use crate::world::{MS, S, US, route_name};
use pgpinion::ids::ShardId;
use pgpinion::ledger::{Action, Ledger, Order, Permit, Policy, Request, Rest, Share};
use pgpinion::time::Instant;
use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// Which shard, which route, how many transactions, and whether it may leave while it waits.
const CLIENTS: [(usize, usize, u32, bool); 3] = [(0, 0, 2, false), (1, 0, 1, true), (1, 1, 1, false)];
const SHARDS: usize = 2;
const LIMIT: u32 = 2;

/// The shard that runs the ledger.
const HOME: usize = 0;

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// A client begins a transaction.
    Begin(usize),
    /// It ends it.
    End(usize),
    /// It goes away instead of waiting.
    Leave(usize),
    Dialed(usize),
    Closed(usize),
    /// The next letter of a mailbox is read.
    Read(usize),
    /// Nothing happens for a while.
    Pass,
}

#[derive(Debug)]
enum Letter {
    Request(ShardId, Request),
    Order(Order),
    Connection(usize),
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Doing {
    Dialing,
    Idle,
    Serving(usize),
    Moving,
    Closing,
    Gone,
}

#[derive(Debug)]
struct Connection {
    shard: usize,
    route: usize,
    doing: Doing,
    permit: Option<Permit>,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Client {
    Ready(u32),
    Waiting(u32),
    Served(u32),
    Finished,
}

#[derive(Debug)]
struct Small {
    now: Instant,
    ledger: Ledger,
    shares: Vec<Share>,
    /// Waiting clients of each shard and route.
    queues: [[VecDeque<usize>; 2]; SHARDS],
    mailboxes: [VecDeque<Letter>; SHARDS],
    connections: Vec<Connection>,
    clients: [Client; 3],
    /// How often in a row only time passed.
    passed: u32,
}

impl Small {
    fn new() -> Self {
        Self {
            now: Instant::from_nanos(S),
            ledger: Ledger::new(Policy::even(LIMIT), SHARDS, 1),
            shares: (0..SHARDS).map(|_| Share::default()).collect(),
            queues: Default::default(),
            mailboxes: Default::default(),
            connections: Vec::new(),
            clients: CLIENTS.map(|(_, _, transactions, _)| Client::Ready(transactions)),
            passed: 0,
        }
    }

    fn choices(&self) -> Vec<Choice> {
        let mut choices = Vec::new();
        for (shard, mailbox) in self.mailboxes.iter().enumerate() {
            if !mailbox.is_empty() {
                choices.push(Choice::Read(shard));
            }
        }
        for (number, connection) in self.connections.iter().enumerate() {
            match connection.doing {
                Doing::Dialing => choices.push(Choice::Dialed(number)),
                Doing::Closing => choices.push(Choice::Closed(number)),
                _ => {}
            }
        }
        // Time passes only when nothing is on its way: that much faster is everything than the clock.
        let quiet = choices.is_empty();
        for (number, client) in self.clients.iter().enumerate() {
            match client {
                Client::Ready(_) => choices.push(Choice::Begin(number)),
                Client::Served(_) => choices.push(Choice::End(number)),
                Client::Waiting(_) if CLIENTS[number].3 => choices.push(Choice::Leave(number)),
                _ => {}
            }
        }
        let waiting = self.clients.iter().any(|client| matches!(client, Client::Waiting(_)));
        let serving = self.clients.iter().any(|client| matches!(client, Client::Served(_)));
        if quiet && waiting && (!serving || self.passed == 0) {
            choices.push(Choice::Pass);
        }
        choices
    }

    fn take(&mut self, choice: Choice) {
        self.now = self.now + Duration::from_nanos(100 * US);
        self.passed = if choice == Choice::Pass { self.passed + 1 } else { 0 };
        match choice {
            Choice::Begin(client) => self.begin(client),
            Choice::End(client) => self.end(client),
            Choice::Leave(client) => self.leave(client),
            Choice::Dialed(number) => {
                let (shard, route) = (self.connections[number].shard, self.connections[number].route);
                let no = self.shares[shard].enter(&route_name(route));
                self.shares[shard].opened(no, Duration::from_nanos(5 * MS));
                self.rest(number);
            }
            Choice::Closed(number) => {
                let connection = &mut self.connections[number];
                connection.doing = Doing::Gone;
                let (shard, route) = (connection.shard, connection.route);
                let permit = connection.permit.take().unwrap();
                let no = self.shares[shard].enter(&route_name(route));
                self.shares[shard].closed(no, permit);
            }
            Choice::Read(shard) => match self.mailboxes[shard].pop_front().unwrap() {
                Letter::Request(from, request) => self.ledger.handle(from, request, self.now),
                Letter::Order(order) => self.obey(shard, order),
                Letter::Connection(number) => {
                    self.connections[number].shard = shard;
                    let no = self.shares[shard].enter(&route_name(self.connections[number].route));
                    self.shares[shard].arrived(no);
                    self.rest(number);
                }
            },
            Choice::Pass => {
                // More than a quantum, so that what waits for time to pass happens.
                self.now = self.now + Duration::from_nanos(60 * MS);
            }
        }
        for shard in 0..SHARDS {
            self.shares[shard].tick(self.now);
            self.post(shard);
        }
        self.ledger.tick(self.now);
        self.post_orders();
        self.check();
    }

    fn post(&mut self, shard: usize) {
        self.shares[shard].flush(self.now);
        for request in self.shares[shard].take_requests() {
            let from = ShardId(shard as u16);
            if shard == HOME {
                self.ledger.handle(from, request, self.now);
            } else {
                self.mailboxes[HOME].push_back(Letter::Request(from, request));
            }
        }
    }

    fn post_orders(&mut self) {
        loop {
            let orders = self.ledger.take_orders();
            if orders.is_empty() {
                return;
            }
            for (to, order) in orders {
                let to = usize::from(to.0);
                if to == HOME {
                    self.obey(to, order);
                    self.post(to);
                } else {
                    self.mailboxes[to].push_back(Letter::Order(order));
                }
            }
        }
    }

    fn obey(&mut self, shard: usize, order: Order) {
        match self.shares[shard].handle(order) {
            Action::None => {}
            Action::Dial(no, permit) => {
                let route = (0..2).find(|&route| self.shares[shard].enter(&route_name(route)) == no).unwrap();
                let connection = Connection { shard, route, doing: Doing::Dialing, permit: Some(permit) };
                match self.connections.iter().position(|each| each.doing == Doing::Gone) {
                    Some(number) => self.connections[number] = connection,
                    None => self.connections.push(connection),
                }
            }
            Action::CloseIdle(no) => {
                let number = self.idle(shard, no);
                self.connections[number].doing = Doing::Closing;
            }
            Action::HandOverIdle(no, to) => {
                let number = self.idle(shard, no);
                self.hand_over(number, to);
            }
        }
    }

    fn idle(&mut self, shard: usize, no: pgpinion::ledger::RouteNo) -> usize {
        let route = (0..2).find(|&route| self.shares[shard].enter(&route_name(route)) == no).unwrap();
        let is = |each: &Connection| (each.shard, each.route, each.doing) == (shard, route, Doing::Idle);
        self.connections.iter().position(is).unwrap()
    }

    fn hand_over(&mut self, number: usize, to: ShardId) {
        let from = self.connections[number].shard;
        self.post(from);
        self.connections[number].doing = Doing::Moving;
        self.connections[number].shard = usize::MAX;
        self.mailboxes[usize::from(to.0)].push_back(Letter::Connection(number));
    }

    fn rest(&mut self, number: usize) {
        let (shard, route) = (self.connections[number].shard, self.connections[number].route);
        let no = self.shares[shard].enter(&route_name(route));
        match self.shares[shard].rest(no, self.now) {
            Rest::Serve => {
                let client = self.queues[shard][route].pop_front().unwrap();
                self.serve(client, number);
            }
            Rest::Idle => self.connections[number].doing = Doing::Idle,
            Rest::Close => self.connections[number].doing = Doing::Closing,
            Rest::HandOver(to) => self.hand_over(number, to),
        }
    }

    fn begin(&mut self, client: usize) {
        let Client::Ready(left) = self.clients[client] else { panic!("only who is ready begins") };
        self.clients[client] = Client::Waiting(left);
        let (shard, route, ..) = CLIENTS[client];
        let no = self.shares[shard].enter(&route_name(route));
        if self.shares[shard].link_idle(no) {
            let number = self.idle(shard, no);
            return self.serve(client, number);
        }
        self.shares[shard].waits(no, self.now);
        self.queues[shard][route].push_back(client);
    }

    fn serve(&mut self, client: usize, number: usize) {
        let Client::Waiting(left) = self.clients[client] else { panic!("only who waits is served") };
        self.clients[client] = Client::Served(left);
        self.connections[number].doing = Doing::Serving(client);
    }

    fn end(&mut self, client: usize) {
        let Client::Served(left) = self.clients[client] else { panic!("only who is served ends") };
        self.clients[client] = if left == 1 { Client::Finished } else { Client::Ready(left - 1) };
        let number = self.connections.iter().position(|each| each.doing == Doing::Serving(client)).unwrap();
        self.rest(number);
    }

    fn leave(&mut self, client: usize) {
        let (shard, route, ..) = CLIENTS[client];
        let place = self.queues[shard][route].iter().position(|&each| each == client).unwrap();
        self.queues[shard][route].remove(place);
        let no = self.shares[shard].enter(&route_name(route));
        self.shares[shard].waiter_left(no, place);
        self.clients[client] = Client::Finished;
    }

    fn check(&self) {
        let open = self.connections.iter().filter(|each| each.doing != Doing::Gone).count();
        assert!(open <= LIMIT as usize, "{open} connections are open");
        let letters = self.mailboxes.iter().flatten().filter(|letter| {
            matches!(
                letter,
                Letter::Request(_, Request::Returned { .. }) | Letter::Order(Order::Grant { .. })
            )
        });
        let moving = self.connections.iter().filter(|each| each.doing == Doing::Moving).count();
        let held: usize = self.shares.iter().map(Share::held).sum();
        let all = held + moving + letters.count();
        assert_eq!(self.ledger.overview().held as usize, all, "permits are lost or doubled");
        // A waiting client is served within a few quanta when nothing else happens.
        assert!(self.passed <= 5, "somebody waits for ever");
    }

    /// The state, but for the time of day.
    fn fingerprint(&self) -> u64 {
        let text = without(&format!("{self:?}"), &[("Totals {", "}"), ("turn: ", ","), ("took: ", "s")]);
        let mut hasher = DefaultHasher::new();
        for (index, part) in text.split("Instant(").enumerate() {
            let (number, rest) = if index == 0 { ("", part) } else { part.split_once(')').unwrap() };
            // How long ago, as far as it decides anything.
            let at: u64 = number.parse().unwrap_or(0);
            let ago = self.now.as_nanos().saturating_sub(at);
            (at == u64::MAX, ago < 5 * MS, ago < 60 * MS).hash(&mut hasher);
            rest.hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// A text without what stands between these marks, which tells of the past and decides nothing here.
fn without(text: &str, marks: &[(&str, &str)]) -> String {
    marks.iter().fold(text.to_owned(), |text, (begin, end)| {
        let parts = text.split(begin).enumerate();
        parts.map(|(index, part)| if index == 0 { part } else { part.split_once(end).unwrap().1 }).collect()
    })
}

#[test]
fn all_orders_of_events_in_a_small_world_are_safe_and_end_well() {
    let mut seen = HashSet::new();
    let mut paths: Vec<Vec<Choice>> = vec![Vec::new()];
    let mut ends = 0;
    while let Some(path) = paths.pop() {
        let mut world = Small::new();
        let run = std::panic::AssertUnwindSafe(|| path.iter().for_each(|&choice| world.take(choice)));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("after {path:#?}");
            std::panic::resume_unwind(panic);
        }
        if !seen.insert(world.fingerprint()) {
            continue;
        }
        assert!(seen.len() < STATES_MAX, "more states than can be looked at");
        let choices = world.choices();
        if choices.is_empty() {
            ends += 1;
            let over = world.clients.iter().all(|client| *client == Client::Finished);
            assert!(over, "nothing more can happen, and somebody waits: {path:?}");
        }
        paths.extend(choices.into_iter().map(|choice| [&path[..], &[choice]].concat()));
    }
    println!("{} states, {ends} ends", seen.len());
    assert!(seen.len() > 1000 && ends > 0);
}

/// So many take less than a minute.
const STATES_MAX: usize = 600_000;
