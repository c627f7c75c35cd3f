//! What the ledger costs in letters.

use crate::world::{MS, Plan, S, US, World, route_name};
use pgpinion::ids::ShardId;
use pgpinion::ledger::{Action, Ledger, Order, Policy, Request, Rest, Share};
use pgpinion::time::Instant;

/// Carries all letters between a ledger and the share of its own shard until none is left.
fn settle(ledger: &mut Ledger, share: &mut Share, now: Instant) -> Vec<Action> {
    let mut actions = Vec::new();
    loop {
        share.flush(now);
        share.take_requests().into_iter().for_each(|request| ledger.handle(ShardId(0), request, now));
        ledger.tick(now);
        let orders = ledger.take_orders();
        if orders.is_empty() {
            return actions;
        }
        actions.extend(orders.into_iter().map(|(_, order): (ShardId, Order)| share.handle(order)));
    }
}

#[test]
fn linking_and_releasing_idle_connections_writes_nothing() {
    let (mut ledger, mut share) = (Ledger::new(Policy::even(1), 1, 1), Share::default());
    let mut now = Instant::from_nanos(S);
    let route = share.enter(&route_name(0));
    share.waits(route, now);
    let permit = settle(&mut ledger, &mut share, now).into_iter().find_map(|action| match action {
        Action::Dial(no, permit) if no == route => Some(permit),
        _ => None,
    });
    let permit = permit.expect("a client that waits is dialled for");
    share.opened(route, std::time::Duration::from_millis(5));
    assert_eq!(share.rest(route, now), Rest::Serve);
    assert_eq!(share.rest(route, now), Rest::Idle);
    // What was said of the client that waited is taken back, and then there is nothing more to say.
    for _ in 0..100 {
        now = now + std::time::Duration::from_millis(1);
        share.tick(now);
        settle(&mut ledger, &mut share, now);
    }
    assert_eq!(share.next_deadline(), Instant::NEVER);
    assert_eq!(ledger.next_deadline(), Instant::NEVER);
    for _ in 0..100_000 {
        assert!(share.link_idle(route));
        assert_eq!(share.rest(route, now), Rest::Idle);
        share.flush(now);
        assert!(!share.has_requests());
        now = now + std::time::Duration::from_micros(100);
    }
    assert_eq!(share.next_deadline(), Instant::NEVER);
    share.close_idle(route);
    share.closed(route, permit);
    for request in share.take_requests() {
        assert!(matches!(request, Request::Returned { .. }));
        ledger.handle(ShardId(0), request, now);
    }
    assert_eq!(ledger.overview().held, 0);
}

/// Letters (and levels, on the ledger's own shard) per second of a plan that has come to its steady state.
fn letters_per_second(plan: Plan) -> (u64, u64, u64) {
    let mut world = World::new(plan, 1);
    world.run(S);
    let before = world.tally.clone();
    world.run(6 * S);
    let done: u64 = world.tally.done.iter().sum::<u64>() - before.done.iter().sum::<u64>();
    let letters = (world.tally.letters + world.tally.levels - before.letters - before.levels) / 5;
    println!(
        "{letters} letters and {} transactions a second, {} moved",
        done / 5,
        world.tally.moved - before.moved
    );
    (letters, done / 5, world.tally.moved - before.moved)
}

#[test]
fn steady_contention_of_one_route_costs_no_letter_per_transaction() {
    let mut letters = Vec::new();
    for busy in [10 * MS, MS, 100 * US] {
        // On the ledger's shard, and on another.
        for shard in [0, 1] {
            let plan = Plan::new(2, 20).clients_on(shard, 0, 64, busy, 10 * US);
            let (each, done, _) = letters_per_second(plan);
            assert!(done > 15 * S / busy, "{done} transactions");
            letters.push(each);
        }
    }
    assert!(letters.iter().all(|&letters| letters <= 300), "letters per second: {letters:?}");
}

#[test]
fn one_client_more_than_connections_costs_no_letter_per_transaction() {
    let plan = Plan::new(2, 20).clients_on(1, 0, 21, 100 * US, 10 * US);
    let (letters, done, _) = letters_per_second(plan);
    assert!(done > 100_000 && letters <= 600, "{letters} letters for {done} transactions a second");
}

#[test]
fn connections_to_spare_end_the_letters() {
    let plan = Plan::new(2, 20).clients_on(1, 0, 10, MS, 100 * US);
    let (letters, done, _) = letters_per_second(plan);
    assert_eq!(letters, 0, "for {done} transactions a second");
}

#[test]
fn two_routes_in_contention_cost_no_letter_per_transaction() {
    let plan = Plan::new(2, 20).clients_on(0, 0, 64, MS, 10 * US).clients_on(1, 1, 64, MS, 10 * US);
    let (letters, done, _) = letters_per_second(plan);
    assert!(letters <= 600, "{letters} letters for {done} transactions a second");
}
