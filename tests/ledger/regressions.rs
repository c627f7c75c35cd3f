//! What went wrong once, and what single letters must do.

use crate::world::{ClientPlan, MS, Plan, S, US, World, route_name, set_terms};
use pgpinion::ids::ShardId;
use pgpinion::ledger::{
    Action, Destination, Due, Failure, Ledger, Level, Order, Permit, Policy, Reason, Request, Rest, RouteNo,
    Share, Status,
};
use pgpinion::time::Instant;
use std::time::Duration;

const HERE: ShardId = ShardId(0);
const THERE: ShardId = ShardId(1);

fn at(nanos: u64) -> Instant {
    Instant::from_nanos(10 * S + nanos)
}

/// A ledger whose shards answer every status.
struct Desk {
    ledger: Ledger,
    now: Instant,
    permits: Vec<(usize, Permit)>,
}

impl Desk {
    fn new(policy: Policy) -> Self {
        Self { ledger: Ledger::new(policy, 2, 1), now: at(0), permits: Vec::new() }
    }

    fn say(&mut self, request: Request) {
        self.ledger.handle(HERE, request, self.now);
    }

    fn want(&mut self, route: usize, wanting: u32, received: u32) {
        let since = if wanting > 0 { self.now } else { Instant::NEVER };
        self.say(Request::Levels(vec![Level { received, ..level(route, wanting, since) }]));
    }

    fn pass(&mut self, nanos: u64) {
        self.now = self.now + Duration::from_nanos(nanos);
    }

    /// Decides, keeps what is granted, and returns the other orders: grants per route, and the rest.
    fn decide(&mut self) -> (Vec<usize>, Vec<Order>) {
        self.pass(MS);
        self.ledger.tick(self.now);
        let (mut grants, mut others) = (Vec::new(), Vec::new());
        for (to, order) in self.ledger.take_orders() {
            match order {
                Order::Grant { route, permit } => {
                    let number = (0..99).find(|&number| route_name(number) == route).unwrap();
                    grants.push(number);
                    self.permits.push((number, permit));
                }
                Order::Status(status) => {
                    self.ledger.handle(to, Request::Noted, self.now);
                    others.push(Order::Status(status));
                }
                Order::Seen(_) => {}
                order => others.push(order),
            }
        }
        (grants, others)
    }

    fn fail(&mut self, route: usize, failure: Failure) {
        self.fail_and_return(route, failure, Reason::Closed);
    }

    fn fail_and_return(&mut self, route: usize, failure: Failure, reason: Reason) {
        self.say(Request::Failed { route: route_name(route), failure });
        let place = self.permits.iter().position(|(each, _)| *each == route).unwrap();
        let (_, permit) = self.permits.remove(place);
        self.say(Request::Returned { route: route_name(route), permit, reason });
    }

    fn open(&mut self, route: usize) {
        self.say(Request::Opened { route: route_name(route), took: Duration::from_millis(5) });
    }
}

/// Clients that have begun to wait, and nothing else.
fn level(route: usize, wanting: u32, since: Instant) -> Level {
    Level {
        route: route_name(route),
        wanting,
        since,
        busy: 0,
        overdue: 0,
        idle: 0,
        idle_since: Instant::NEVER,
        deserted: false,
        pinned: 0,
        received: 0,
    }
}

/// A share in which a route has so many linked connections.
fn share_with(linked: usize, now: Instant) -> (Share, RouteNo, Vec<Permit>) {
    let mut share = Share::default();
    let route = share.enter(&route_name(0));
    let mut ledger = Ledger::new(Policy::even(9), 1, 1);
    let mut permits = Vec::new();
    for _ in 0..linked {
        share.waits(route, now);
    }
    let mut clock = now;
    while permits.len() < linked {
        share.flush(clock);
        share.take_requests().into_iter().for_each(|request| ledger.handle(HERE, request, clock));
        clock = clock + Duration::from_millis(1);
        ledger.tick(clock);
        for (_, order) in ledger.take_orders() {
            if let Action::Dial(_, permit) = share.handle(order) {
                permits.push(permit);
                share.opened(route, Duration::from_millis(5));
                assert_eq!(share.rest(route, now), Rest::Serve);
            }
        }
    }
    share.flush(clock);
    share.take_requests();
    share.handle_quietly(Order::Seen(Vec::new()));
    (share, route, permits)
}

trait Quietly {
    fn handle_quietly(&mut self, order: Order);
}

impl Quietly for Share {
    fn handle_quietly(&mut self, order: Order) {
        assert!(matches!(self.handle(order), Action::None));
    }
}

fn recall(to: Destination) -> Order {
    Order::Recall { route: route_name(0), to, due: Due::Next }
}

fn levels(share: &mut Share) -> Vec<Level> {
    let requests = share.take_requests();
    requests
        .into_iter()
        .filter_map(|request| if let Request::Levels(levels) = request { Some(levels) } else { None })
        .flatten()
        .collect()
}

// ---- shares ----

#[test]
fn a_recall_is_paid_ahead_of_the_own_waiting_client() {
    let (mut share, route, _permits) = share_with(2, at(0));
    share.waits(route, at(0));
    share.handle_quietly(recall(Destination::Close));
    assert_eq!(share.rest(route, at(MS)), Rest::Close);
    assert_eq!(share.rest(route, at(MS)), Rest::Serve);
}

#[test]
fn closing_comes_before_moving() {
    let (mut share, route, _permits) = share_with(2, at(0));
    share.handle_quietly(recall(Destination::Shard(THERE)));
    share.handle_quietly(recall(Destination::Close));
    assert_eq!(share.rest(route, at(MS)), Rest::Close);
    assert_eq!(share.rest(route, at(MS)), Rest::HandOver(THERE));
}

#[test]
fn a_client_that_has_waited_as_long_comes_before_one_of_another_shard() {
    let (mut share, route, _permits) = share_with(1, at(0));
    share.waits(route, at(MS));
    share.waits(route, at(9 * MS));
    let (route_of, to) = (route_name(0), Destination::Shard(THERE));
    share.handle_quietly(Order::Recall { route: route_of, to, due: Due::Behind(at(2 * MS)) });
    assert_eq!(share.rest(route, at(10 * MS)), Rest::Serve);
    assert_eq!(share.rest(route, at(11 * MS)), Rest::HandOver(THERE));
}

#[test]
fn what_is_recalled_only_from_rest_is_not_taken_from_a_client() {
    let (mut share, route, _permits) = share_with(1, at(0));
    let (name, to) = (route_name(0), Destination::Shard(THERE));
    share.handle_quietly(Order::Recall { route: name, to, due: Due::Now });
    assert!(matches!(share.take_requests()[..], [Request::Void { .. }]));
    share.waits(route, at(MS));
    assert_eq!(share.rest(route, at(2 * MS)), Rest::Serve);
}

/// Told once when the first has waited for a millisecond, and again when nobody does any more.
#[test]
fn long_waits_are_told() {
    let (mut share, route, _permits) = share_with(1, at(0));
    share.handle_quietly(Order::Status(Status { tight: true, ..Status::default() }));
    share.waits(route, at(5 * MS));
    share.flush(at(5 * MS));
    levels(&mut share);
    share.handle_quietly(Order::Seen(Vec::new()));
    assert!(share.next_deadline() <= at(6 * MS));
    share.tick(at(6 * MS));
    assert!(matches!(levels(&mut share)[..], [Level { wanting: 1, overdue: 1, .. }]));
    share.handle_quietly(Order::Seen(Vec::new()));
    assert_eq!(share.rest(route, at(7 * MS)), Rest::Serve);
    share.flush(at(7 * MS));
    let mut told = Vec::new();
    for _ in 0..9 {
        let next = share.next_deadline();
        if next == Instant::NEVER {
            break;
        }
        share.tick(next);
        told.extend(levels(&mut share));
    }
    assert!(matches!(told[..], [Level { wanting: 0, overdue: 0, .. }]), "{told:?}");
    assert_eq!(share.next_deadline(), Instant::NEVER, "nothing happens any more");
}

#[test]
fn a_connection_that_its_client_keeps_pays_a_recall_when_the_client_leaves() {
    let (mut share, route, _permits) = share_with(1, at(0));
    share.pin(route, true);
    share.handle_quietly(recall(Destination::Close));
    assert!(share.take_requests().is_empty(), "it is neither paid nor declined");
    share.waits(route, at(MS));
    share.pin(route, false);
    assert_eq!(share.rest(route, at(2 * MS)), Rest::Close, "ahead of its own shard's next client");
}

#[test]
fn a_connection_that_dies_pays_the_recall_that_waits() {
    let (mut share, route, mut permits) = share_with(2, at(0));
    share.handle_quietly(recall(Destination::Close));
    share.close(route);
    share.closed(route, permits.pop().unwrap());
    for request in share.take_requests() {
        if let Request::Returned { permit, reason, .. } = request {
            assert_eq!(reason, Reason::Recalled);
            drop(permit);
        }
    }
    assert_eq!(share.rest(route, at(MS)), Rest::Idle, "and the other is not asked for");
}

#[test]
fn a_recall_that_is_taken_back_is_void() {
    let (mut share, route, _permits) = share_with(1, at(0));
    share.handle_quietly(recall(Destination::Close));
    share.handle_quietly(Order::Keep { route: route_name(0), to: Destination::Close });
    share.handle_quietly(Order::Keep { route: route_name(0), to: Destination::Close });
    assert_eq!(share.take_requests().len(), 1, "one answer to one recall");
    assert_eq!(share.rest(route, at(MS)), Rest::Idle);
}

/// The grant had reduced what the ledger was told; the connection went to pay a recall, and nobody spoke of the client
/// again.
#[test]
fn a_client_whose_connection_pays_a_recall_is_spoken_of_again() {
    let (mut share, route, _permits) = share_with(1, at(0));
    share.waits(route, at(0));
    share.flush(at(0));
    assert_eq!(levels(&mut share).len(), 1);
    share.handle_quietly(Order::Seen(Vec::new()));
    share.arrived(route);
    share.handle_quietly(recall(Destination::Close));
    assert_eq!(share.rest(route, at(MS)), Rest::Close);
    share.flush(at(MS));
    let told = levels(&mut share);
    assert!(told.iter().any(|level| level.wanting == 1), "{told:?}");
}

/// A level said that somebody wants, and nobody did any more; the client that came next was not spoken of, and the
/// ledger did not know since when it waited.
#[test]
fn the_first_client_where_nothing_is_held_is_spoken_of_with_its_time() {
    let mut share = Share::default();
    let route = share.enter(&route_name(0));
    share.waits(route, at(0));
    share.flush(at(0));
    assert_eq!(levels(&mut share)[0].since, at(0));
    share.handle_quietly(Order::Seen(Vec::new()));
    share.waiter_left(route, 0);
    share.waits(route, at(MS));
    share.flush(at(MS));
    assert_eq!(levels(&mut share)[0].since, at(MS));
}

/// What is between two transactions was told as idle since long ago, and closed for a route that has nothing.
#[test]
fn what_comes_and_goes_with_transactions_is_not_told_as_rested() {
    let (mut share, route, _permits) = share_with(1, at(0));
    share.handle_quietly(Order::Status(Status { tight: true, ..Status::default() }));
    assert_eq!(share.rest(route, at(0)), Rest::Idle);
    share.flush(at(0));
    assert!(levels(&mut share).iter().all(|level| level.idle_since == Instant::NEVER));
    share.handle_quietly(Order::Seen(Vec::new()));
    // Unused for a window: now it is.
    share.tick(at(6 * MS));
    share.tick(at(12 * MS));
    let told = levels(&mut share);
    assert!(told.iter().any(|level| level.idle_since == at(0)), "{told:?}");
    share.handle_quietly(Order::Seen(Vec::new()));
    // Used again: that is said at once.
    assert!(share.link_idle(route));
    share.flush(at(13 * MS));
    assert_eq!(levels(&mut share)[0].idle_since, Instant::NEVER);
}

#[test]
fn a_grant_that_nobody_needs_any_more_goes_back() {
    let mut desk = Desk::new(Policy::even(1));
    desk.want(0, 1, 0);
    assert_eq!(desk.decide().0, [0]);
    let (_, permit) = desk.permits.pop().unwrap();
    let mut share = Share::default();
    share.handle_quietly(Order::Grant { route: route_name(0), permit });
    share.flush(at(0));
    for request in share.take_requests() {
        desk.say(request);
    }
    assert_eq!(desk.ledger.overview().held, 0);
    assert_eq!(desk.ledger.overview().dialing, 0);
}

// ---- the ledger ----

#[test]
fn why_dials_fail_is_told_and_taken_back() {
    let mut desk = Desk::new(Policy::even(4));
    desk.want(0, 4, 0);
    assert_eq!(desk.decide().0.len(), 4);
    for _ in 0..4 {
        desk.fail(0, Failure::Unreachable("connection refused".into()));
    }
    let (grants, others) = desk.decide();
    assert!(grants.is_empty(), "a pause comes first");
    let trouble = others
        .iter()
        .find_map(|order| if let Order::Status(status) = order { status.trouble.clone() } else { None });
    assert_eq!(trouble.as_deref(), Some("connection refused"));
    desk.pass(60 * MS);
    desk.want(0, 4, 4);
    assert_eq!(desk.decide().0.len(), 1, "one probe");
    desk.open(0);
    let (grants, others) = desk.decide();
    assert!(!grants.is_empty());
    assert!(
        others.iter().any(|order| matches!(order, Order::Status(Status { trouble: None, .. }))),
        "{others:?}"
    );
}

#[test]
fn a_server_without_room_is_offered_one_less_for_ten_seconds() {
    let mut desk = Desk::new(Policy::even(2));
    desk.want(0, 2, 0);
    assert_eq!(desk.decide().0.len(), 2);
    desk.open(0);
    desk.fail(0, Failure::Overloaded("too many clients already".into()));
    desk.pass(S);
    desk.want(0, 1, 2);
    assert!(desk.decide().0.is_empty());
    assert_eq!((desk.ledger.overview().overloaded, desk.ledger.overview().overloads), (1, 1));
    desk.pass(9 * S);
    assert_eq!(desk.decide().0.len(), 1);
    assert_eq!(desk.ledger.overview().overloaded, 0);
}

/// What was kept for administrators stayed the same while the server had room for less and less, and nobody else was let in.
#[test]
fn a_server_without_room_has_less_for_administrators_too() {
    let mut desk = Desk::new(Policy { reserve: 2, ..Policy::even(4) });
    desk.want(0, 2, 0);
    assert_eq!(desk.decide().0.len(), 2);
    for _ in 0..2 {
        desk.fail(0, Failure::Overloaded("too many clients already".into()));
    }
    desk.pass(S);
    desk.want(0, 1, 2);
    assert_eq!(desk.ledger.overview().overloaded, 2);
    assert_eq!(desk.decide().0.len(), 1, "half of two are kept, and one is for users");
}

#[test]
fn a_refused_login_keeps_only_its_own_route_waiting() {
    let mut desk = Desk::new(Policy::even(4));
    desk.want(0, 1, 0);
    assert_eq!(desk.decide().0, [0]);
    desk.fail(0, Failure::Refused);
    desk.want(0, 1, 1);
    desk.decide();
    desk.want(1, 1, 0);
    assert_eq!(desk.decide().0, [1]);
    desk.pass(S);
    assert_eq!(desk.decide().0, [0]);
}

/// Logins of the route were refused, and so nobody was asked for a second what rests: a client waited beside an idle
/// connection of another shard.
#[test]
fn a_refused_login_keeps_no_client_beside_an_idle_connection_of_another_shard() {
    let (mut desk, told) = refused_beside_an_idle_connection(Policy::even(4));
    assert!(told.iter().any(|order| matches!(order, Order::Status(status) if status.tight)), "{told:?}");
    let idle = Level { idle: 1, idle_since: desk.now, ..level(0, 0, Instant::NEVER) };
    desk.say(Request::Levels(vec![idle]));
    let (_, orders) = desk.decide();
    let moves =
        |order: &Order| matches!(order, Order::Recall { to, .. } if *to == Destination::Shard(ShardId(1)));
    assert!(orders.iter().any(moves), "{orders:?}");
}

/// It was closed for the shard that may not open one, when another route made the ledger ask what rests: a route that PostgreSQL lets
/// in no more lost what it had.
#[test]
fn a_refused_login_closes_no_connection_where_none_move() {
    let policy = Policy { hand_over: false, ..Policy::even(3) };
    let (mut desk, _) = refused_beside_an_idle_connection(policy);
    desk.want(1, 3, 0);
    assert_eq!(desk.decide().0, [1, 1]);
    desk.open(1);
    desk.open(1);
    desk.want(1, 1, 2);
    desk.decide();
    let idle = Level { idle: 1, idle_since: desk.now, ..level(0, 0, Instant::NEVER) };
    desk.say(Request::Levels(vec![idle]));
    for _ in 0..9 {
        desk.pass(100 * MS);
        let (grants, orders) = desk.decide();
        let recalls = |order: &Order| matches!(order, Order::Recall { .. });
        assert!(grants.is_empty() && !orders.iter().any(recalls), "{orders:?}");
    }
}

/// A route with a connection on the first shard, where nobody waits, and a client on the second, whose login was refused.
fn refused_beside_an_idle_connection(policy: Policy) -> (Desk, Vec<Order>) {
    let mut desk = Desk::new(policy);
    desk.want(0, 1, 0);
    assert_eq!(desk.decide().0, [0]);
    desk.open(0);
    desk.want(0, 0, 1);
    let there = ShardId(1);
    let wants = |desk: &mut Desk, received| {
        let level = Level { received, ..level(0, 1, desk.now) };
        desk.ledger.handle(there, Request::Levels(vec![level]), desk.now);
    };
    wants(&mut desk, 0);
    assert_eq!(desk.decide().0, [0]);
    let (route, (_, permit)) = (route_name(0), desk.permits.pop().unwrap());
    let failed = Request::Failed { route: route.clone(), failure: Failure::Refused };
    let returned = Request::Returned { route, permit, reason: Reason::Closed };
    desk.ledger.handle(there, failed, desk.now);
    desk.ledger.handle(there, returned, desk.now);
    wants(&mut desk, 1);
    let (grants, told) = desk.decide();
    assert!(grants.is_empty(), "{grants:?}");
    (desk, told)
}

/// The debt of a route that had more for long was collected from what it had just been granted, again and again.
#[test]
fn what_was_just_granted_is_not_recalled_for_a_debt() {
    let mut policy = Policy::even(8);
    set_terms(&mut policy, "user0", |terms| terms.weight = 5);
    let mut plan = (0..9).fold(Plan::new(6, 8), |plan, route| plan.clients(route, 4, 5 * MS, 100 * US, 0));
    plan.policy = policy;
    let mut world = World::new(plan, 1);
    world.run(10 * S);
    assert!(world.tally.done.iter().all(|&done| done > 500), "{:?}", world.tally.done);
    assert!(world.tally.done.iter().sum::<u64>() > 10_000, "{:?}", world.tally.done);
}

/// With one permit, a move that waited for its turn counted as the one recall there may be. And when a route had given up
/// its connection, it was granted to it again, as its own queue was longer.
#[test]
fn a_move_that_waits_does_not_hide_the_only_connection_from_another_route() {
    let mut plan =
        Plan::new(2, 1).clients_on(1, 0, 6, 10 * MS, 100 * US).clients_on(0, 0, 6, 10 * MS, 100 * US);
    plan = plan.clients_on(0, 1, 1, 5 * MS, MS);
    let mut world = World::new(plan, 1);
    world.run(5 * S);
    assert!(world.wait_percentile(1, 1.0) < 150 * MS, "{} ms", world.wait_percentile(1, 1.0) / MS);
    assert!(world.tally.done[1] > 100);
}

/// Users could not have back what administrators had taken beyond the reserve and did not use.
#[test]
fn what_administrators_leave_unused_beyond_the_reserve_is_for_all() {
    let mut plan = Plan::new(1, 8).clients(0, 8, 20 * MS, 30 * S, 0).clients(1, 20, 5 * MS, 100 * US, S);
    plan.policy.reserve = 2;
    set_terms(&mut plan.policy, "user0", |terms| terms.administrator = true);
    let mut world = World::new(plan, 1);
    world.run(S - MS);
    assert!(world.held(0) > 4);
    world.run(3 * S);
    assert_eq!(world.held(1), 6);
}

/// Connections were closed on one shard to be opened on another before they had served anybody.
#[test]
fn without_hand_over_connections_are_used_before_they_are_closed_for_another_shard() {
    let mut plan = (0..5).fold(Plan::new(3, 6), |plan, route| plan.clients(route, 7, 5 * MS, MS, 0));
    plan.policy.hand_over = false;
    plan.connect = 10 * MS;
    let mut world = World::new(plan, 1);
    world.run(5 * S);
    assert_eq!(world.tally.moved, 0);
    assert!(world.tally.done.iter().all(|&done| done > 300), "{:?}", world.tally.done);
    assert!(world.tally.opened < 700, "{} opened", world.tally.opened);
}

/// Nothing was recalled while dials failed, so that with all permits in use no dial was made that could have succeeded.
#[test]
fn a_failure_while_all_permits_are_in_use_is_not_for_ever() {
    let mut desk = Desk::new(Policy::even(3));
    desk.want(0, 3, 0);
    assert_eq!(desk.decide().0.len(), 3);
    desk.open(0);
    desk.open(0);
    // The last dial fails after its permit was taken away.
    desk.ledger.reload(Policy::even(2));
    desk.decide();
    desk.fail_and_return(0, Failure::Unreachable("connection refused".into()), Reason::Recalled);
    desk.want(0, 0, 3);
    desk.pass(S);
    desk.want(1, 1, 0);
    let mut recalls = 0;
    for _ in 0..100 {
        desk.pass(5 * MS);
        let (_, others) = desk.decide();
        recalls += others.iter().filter(|order| matches!(order, Order::Recall { .. })).count();
    }
    assert_eq!(recalls, 1, "one is closed to try");
}

#[test]
fn a_client_that_leaves_the_queue_leaves_nothing_behind() {
    let mut plan = Plan::new(3, 2).clients(0, 9, 50 * MS, MS, 0);
    for number in 0..6 {
        let until = 100 * MS + number * 7 * MS;
        let route = 1 + number as usize % 2;
        plan.clients.push(ClientPlan {
            route,
            shard: number as usize % 3,
            busy: MS,
            until,
            ..ClientPlan::default()
        });
    }
    let mut world = World::new(plan, 1);
    world.run(S);
    assert!(world.ledger.rows().iter().all(|row| row.route == route_name(0)), "{:?}", world.ledger.rows());
    world.end();
}

/// When the time had come to close an idle connection here and to open one there was not a time at which anybody looked.
#[test]
fn without_hand_over_a_client_beside_an_idle_connection_of_another_shard_is_served() {
    for idle_on in 0..2 {
        let mut plan = Plan::new(2, 1).clients_on(idle_on, 0, 1, MS, 3600 * S);
        let (shard, think, from) = (1 - idle_on, 3600 * S, 20 * MS);
        plan.clients.push(ClientPlan { shard, think, from, ..ClientPlan::default() });
        plan.policy.hand_over = false;
        let mut world = World::new(plan, 1);
        world.run(S);
        assert_eq!(world.tally.done, [2], "{:?}\n{}", world.ledger, world.describe(0));
        assert!(world.wait_percentile(0, 1.0) < 100 * MS, "{} ms", world.wait_percentile(0, 1.0) / MS);
    }
}

/// While a client waited, its shard looked every 5 ms whether it still did, and so did the ledger.
#[test]
fn nobody_wakes_for_nothing_while_a_client_waits_for_long() {
    for (shard, route, hand_over) in [(0, 0, true), (1, 0, true), (1, 0, false), (0, 1, true), (1, 1, true)] {
        let mut plan = Plan::new(2, 1);
        let (busy, from, think) = (10 * S, 10 * MS, 3600 * S);
        plan.clients.push(ClientPlan { busy, think, steady: true, ..ClientPlan::default() });
        plan.clients.push(ClientPlan { shard, route, from, think, ..ClientPlan::default() });
        plan.policy.hand_over = hand_over;
        let mut world = World::new(plan, 1);
        world.run(9 * S);
        let ticks = world.tally.ticks;
        assert!(ticks < 40, "{ticks} ticks with a client on {shard} of route {route}, {hand_over}");
        world.run(11 * S);
        assert_eq!(world.tally.done.iter().sum::<u64>(), 2);
    }
}

/// Nine routes of users had nothing; the reserve was free, and what could not be done for them was looked at first.
#[test]
fn an_administrator_behind_many_users_is_granted_the_reserve() {
    let mut policy = Policy::even(2);
    policy.reserve = 1;
    set_terms(&mut policy, "user20", |terms| terms.administrator = true);
    let mut desk = Desk::new(policy);
    for route in 0..10 {
        desk.want(route, 1, 0);
        desk.pass(MS);
    }
    assert_eq!(desk.decide().0.len(), 1);
    desk.want(20, 1, 0);
    assert_eq!(desk.decide().0, [20]);
}

/// A move had been ordered from a shard whose transaction was long; until patience with it ended, nobody thought of the
/// connection that had come to rest on a third shard.
#[test]
fn a_move_that_waits_for_a_transaction_does_not_keep_a_client_beside_an_idle_connection() {
    for rests_after in [100 * MS, 250 * MS, 600 * MS, 1500 * MS] {
        let mut plan = Plan::new(3, 2);
        let think = 3600 * S;
        for (shard, busy) in [(0, 10 * S), (1, rests_after)] {
            plan.clients.push(ClientPlan { shard, busy, think, steady: true, ..ClientPlan::default() });
        }
        plan.clients.push(ClientPlan { shard: 2, from: 20 * MS, think, ..ClientPlan::default() });
        let mut world = World::new(plan, 1);
        world.run(9 * S);
        let waited = world.wait_percentile(0, 1.0);
        assert!(world.tally.done == [2] && waited < rests_after, "{} ms", waited / MS);
    }
}

/// As many connections were being closed as the lower limit allows in all, and for that no idle one moved to who waited.
#[test]
fn a_lower_limit_does_not_stop_moves() {
    let mut desk = Desk::new(Policy::even(4));
    desk.want(0, 3, 0);
    assert_eq!(desk.decide().0.len(), 3);
    (0..3).for_each(|_| desk.open(0));
    desk.want(1, 1, 0);
    assert_eq!(desk.decide().0, [1]);
    desk.open(1);
    desk.want(0, 0, 3);
    desk.ledger.reload(Policy::even(2));
    let (_, others) = desk.decide();
    let recalls =
        |orders: &[Order]| orders.iter().filter(|each| matches!(each, Order::Recall { .. })).count();
    assert_eq!(recalls(&others), 2);
    let level = level(0, 1, desk.now);
    desk.ledger.handle(THERE, Request::Levels(vec![level.clone()]), desk.now);
    desk.decide();
    desk.say(Request::Levels(vec![Level { wanting: 0, since: Instant::NEVER, idle: 1, ..level }]));
    let (_, others) = desk.decide();
    let moved = |each: &Order| matches!(each, Order::Recall { to: Destination::Shard(THERE), .. });
    assert!(others.iter().any(moved), "{others:?}");
}

/// Two shards that are both busy took from each other what rested between two transactions: 5,000 moves a second, which
/// cost as much as the transactions.
#[test]
fn a_shard_with_connections_of_its_own_gets_another_when_somebody_has_waited_for_long() {
    let mut desk = Desk::new(Policy::even(2));
    desk.want(0, 1, 0);
    assert_eq!(desk.decide().0, [0]);
    desk.open(0);
    desk.want(0, 0, 1);
    let mut level = Level { busy: 2, ..level(0, 1, desk.now) };
    let there = |desk: &mut Desk, level: &Level| {
        desk.ledger.handle(THERE, Request::Levels(vec![level.clone()]), desk.now);
    };
    there(&mut desk, &level);
    assert_eq!(desk.decide().0, [0]);
    desk.ledger.handle(
        THERE,
        Request::Opened { route: route_name(0), took: Duration::from_millis(5) },
        desk.now,
    );
    level.received = 1;
    there(&mut desk, &level);
    desk.decide();
    level.received = 0;
    desk.say(Request::Levels(vec![Level { idle: 1, ..level.clone() }]));
    let moves = |orders: &[Order]| orders.iter().any(|each| matches!(each, Order::Recall { .. }));
    let (_, others) = desk.decide();
    assert!(!moves(&others), "{others:?}");
    level.overdue = 1;
    there(&mut desk, &level);
    let (_, others) = desk.decide();
    let to_there = |to: &Destination| *to == Destination::Shard(THERE);
    assert!(matches!(&others[..], [Order::Recall { to, due: Due::Now, .. }] if to_there(to)), "{others:?}");
}

/// What came back between the last decisions and a reload was counted as held by users for ever.
#[test]
fn a_permit_that_comes_back_just_before_a_reload_is_free() {
    let mut desk = Desk::new(Policy::even(1));
    desk.want(0, 1, 0);
    assert_eq!(desk.decide().0, [0]);
    desk.open(0);
    let (_, permit) = desk.permits.remove(0);
    desk.say(Request::Returned { route: route_name(0), permit, reason: Reason::Closed });
    desk.ledger.reload(Policy::even(1));
    desk.want(0, 1, 1);
    assert_eq!(desk.decide().0, [0]);
}
