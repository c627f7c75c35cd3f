//! Who gets how much, and how soon: the table that the algorithm was chosen by, and what is promised to operators.

use crate::world::{ClientPlan, MS, Plan, S, US, World, route_name, set_terms};
use pgpinion::ledger::{Policy, Terms};

/// Between two transactions of a busy client.
const THINK: u64 = 150 * US;

/// As many as most machines have, and as many as there may be.
const SHARDS: [usize; 3] = [2, 4, 64];

/// Plays it with so many shards each.
fn on_each(play: impl Fn(usize)) {
    for shards in SHARDS {
        println!("{shards} shards:");
        play(shards);
    }
}

fn run(plan: Plan, seconds: u64) -> World {
    let mut world = World::new(plan, 1);
    world.run(seconds * S);
    world
}

fn total(world: &World) -> u64 {
    world.tally.done.iter().sum()
}

/// The least of a route against the most of another.
fn evenness(done: &[u64]) -> f64 {
    let (least, most) = (done.iter().min().unwrap(), done.iter().max().unwrap());
    *least as f64 / *most as f64
}

/// Jain's index: 1 if all have the same, 1/n if one has all.
fn jain(done: &[u64]) -> f64 {
    let sum: f64 = done.iter().map(|&each| each as f64).sum();
    let squares: f64 = done.iter().map(|&each| (each as f64).powi(2)).sum();
    sum * sum / (done.len() as f64 * squares)
}

fn terms(policy: &mut Policy, route: usize, weight: u32, floor: u32, ceiling: u32) {
    set_terms(policy, &route_name(route).user, move |terms| {
        *terms = Terms { weight, floor, ceiling, ..*terms };
    });
}

#[test]
fn four_busy_routes_share_ten_connections_without_churn() {
    on_each(|shards| {
        let plan =
            (0..4).fold(Plan::new(shards, 10), |plan, route| plan.clients(route, 50, 2 * MS, THINK, 0));
        let world = run(plan, 5);
        println!(
            "{} transactions, {} opened, {:.2} even",
            total(&world),
            world.tally.opened,
            evenness(&world.tally.done)
        );
        assert!(total(&world) >= 24_000, "{} transactions of 25,000", total(&world));
        assert!(world.tally.opened <= 30, "{} connections opened", world.tally.opened);
        assert!(evenness(&world.tally.done) >= 0.85, "{:?}", world.tally.done);
    });
}

/// The same with longer transactions and for longer: what cannot be divided evenly goes round, every two seconds.
#[test]
fn four_busy_routes_that_take_turns_with_the_rest_reopen_little() {
    on_each(|shards| {
        let plan =
            (0..4).fold(Plan::new(shards, 10), |plan, route| plan.clients(route, 50, 20 * MS, THINK, 0));
        let world = run(plan, 20);
        println!("{} opened, {:.2} even", world.tally.opened, evenness(&world.tally.done));
        assert!(world.tally.opened <= 30, "{} connections opened", world.tally.opened);
        assert!(evenness(&world.tally.done) >= 0.85, "{:?}", world.tally.done);
    });
}

#[test]
fn more_routes_than_connections_take_turns() {
    on_each(|shards| {
        let plan =
            (0..12).fold(Plan::new(shards, 4), |plan, route| plan.clients(route, 5, 10 * MS, THINK, 0));
        let world = run(plan, 20);
        let waits = (0..12).map(|route| world.wait_percentile(route, 0.99)).max().unwrap();
        println!(
            "{} transactions, {} opened, {:.2} even, p99 {} ms",
            total(&world),
            world.tally.opened,
            evenness(&world.tally.done),
            waits / MS
        );
        assert!(total(&world) >= 6_500, "{} transactions of 8,000", total(&world));
        assert!(evenness(&world.tally.done) >= 0.8, "{:?}", world.tally.done);
        assert!(waits < S, "the 99th percentile of waits is {} ms", waits / MS);
    });
}

#[test]
fn two_routes_take_turns_with_one_connection() {
    on_each(|shards| {
        let plan = Plan::new(shards, 1).clients(0, 1, 5 * MS, THINK, 0).clients(1, 1, 5 * MS, THINK, 0);
        let world = run(plan, 10);
        println!(
            "{} transactions, {} opened, {:.2} even",
            total(&world),
            world.tally.opened,
            evenness(&world.tally.done)
        );
        assert!(total(&world) >= 1500, "{} transactions", total(&world));
        assert!(evenness(&world.tally.done) >= 0.85, "{:?}", world.tally.done);
    });
}

#[test]
fn what_a_silent_route_hoards_goes_to_who_waits() {
    on_each(|shards| {
        let plan =
            Plan::new(shards, 10).clients(0, 10, 50 * MS, 30 * S, 0).clients(1, 20, 5 * MS, THINK, 2 * S);
        let mut world = World::new(plan, 1);
        world.run(2 * S - MS);
        assert_eq!(world.held(0), 10);
        world.run(3 * S);
        assert_eq!((world.held(0), world.held(1)), (0, 10), "within a second");
    });
}

#[test]
fn a_hog_does_not_keep_a_single_client_waiting() {
    on_each(|shards| {
        let plan = Plan::new(shards, 10).clients(0, 50, 20 * MS, THINK, 0).clients(1, 1, 5 * MS, THINK, S);
        let world = run(plan, 20);
        let (p99, most) = (world.wait_percentile(1, 0.99), world.wait_percentile(1, 1.0));
        println!("p99 {} us, most {} ms", p99 / US, most / MS);
        assert!(p99 < 2 * MS, "99 of 100 waits of the single client are below {} us", p99 / US);
        assert!(most < 60 * MS, "its longest wait is {} ms", most / MS);
    });
}

#[test]
fn a_hundred_routes_all_make_progress_on_twenty_connections() {
    on_each(|shards| {
        let plan =
            (0..100).fold(Plan::new(shards, 20), |plan, route| plan.clients(route, 4, 10 * MS, THINK, 0));
        let mut world = World::new(plan, 1);
        let mut before = vec![0; 100];
        // A while is enough where it is not the usual one: there is much to play.
        for turn in 1..=if shards == 4 { 10 } else { 3 } {
            world.run(turn * 2 * S);
            let still: Vec<_> = (0..100).filter(|&route| world.tally.done[route] == before[route]).collect();
            assert!(still.is_empty(), "routes {still:?} did nothing for two seconds");
            before.clone_from(&world.tally.done);
        }
        println!(
            "{} transactions, {} opened, Jain {:.3}",
            total(&world),
            world.tally.opened,
            jain(&world.tally.done)
        );
        assert!(jain(&world.tally.done) >= 0.95, "{}", jain(&world.tally.done));
    });
}

#[test]
fn shares_follow_weights() {
    on_each(|shards| {
        let mut plan =
            (0..3).fold(Plan::new(shards, 20), |plan, route| plan.clients(route, 40, 10 * MS, THINK, 0));
        for (route, weight) in [(0, 1), (1, 2), (2, 4)] {
            terms(&mut plan.policy, route, weight, 0, 99);
        }
        let world = run(plan, 30);
        let sum = total(&world) as f64;
        for (route, part) in [(0, 1.0), (1, 2.0), (2, 4.0)] {
            let share = world.tally.done[route] as f64 / sum;
            println!("route {route}: {share:.3} of all, {:.3} is its part", part / 7.0);
            assert!(
                (share / (part / 7.0) - 1.0).abs() < 0.10,
                "route {route} has {share} instead of {}",
                part / 7.0
            );
        }
    });
}

#[test]
fn floors_and_ceilings_hold_against_a_crowd() {
    on_each(|shards| {
        let mut plan =
            (0..3).fold(Plan::new(shards, 10), |plan, route| plan.clients(route, 40, 10 * MS, THINK, 0));
        terms(&mut plan.policy, 0, 1, 6, 99);
        terms(&mut plan.policy, 1, 1, 0, 1);
        let mut world = World::new(plan, 1);
        world.run(2 * S);
        for step in 0..1000 {
            world.run(2 * S + step * MS);
            assert!(world.held(0) >= 6, "a floor of 6, and {} held", world.held(0));
            assert!(world.held(1) <= 1, "a ceiling of 1, and {} held", world.held(1));
        }
        assert_eq!((world.held(0), world.held(1), world.held(2)), (6, 1, 3));
    });
}

/// What is closed on one shard to be opened on another is PostgreSQL's until it has closed.
#[test]
fn a_ceiling_counts_what_is_being_closed() {
    on_each(|shards| {
        let plan = Plan::new(shards, 3).clients_on(0, 0, 2, 5 * MS, THINK);
        let mut plan = plan.clients_on(1, 0, 2, 5 * MS, THINK);
        terms(&mut plan.policy, 0, 1, 0, 1);
        plan.policy.hand_over = false;
        plan.close = 200 * MS;
        let mut world = World::new(plan, 1);
        for step in 0..5000 {
            world.run(step * MS);
            assert!(world.held(0) <= 1, "a ceiling of 1, and {} held after {step} ms", world.held(0));
        }
        assert!(world.clients.iter().all(|client| client.done > 10));
        assert!(world.tally.opened > 1, "nothing was closed");
        world.end();
    });
}

#[test]
fn the_reserve_is_for_administrators() {
    on_each(|shards| {
        let mut plan =
            Plan::new(shards, 10).clients(0, 40, 10 * MS, THINK, 0).clients(1, 2, 5 * MS, THINK, S);
        plan.policy.reserve = 2;
        set_terms(&mut plan.policy, "user1", |terms| terms.administrator = true);
        let mut world = World::new(plan, 1);
        world.run(S - MS);
        assert_eq!(world.held(0), 8);
        world.run(S + 20 * MS);
        assert_eq!((world.held(0), world.held(1)), (8, 2), "an administrator waits for nobody");
    });
}

#[test]
fn a_newcomer_has_its_part_within_a_tenth_of_a_second() {
    on_each(|shards| {
        let mut plan =
            Plan::new(shards, 20).clients(0, 64, 10 * MS, THINK, 0).clients(1, 10, 10 * MS, THINK, S);
        plan.clients.iter_mut().filter(|client| client.route == 1).for_each(|client| client.until = 3 * S);
        let mut world = World::new(plan, 1);
        world.run(S - MS);
        assert_eq!(world.held(0), 20);
        let mut has_ten = None;
        for at in 0..2000 {
            world.run(S + at * MS);
            if world.held(1) == 10 && has_ten.is_none() {
                has_ten = Some(at);
            }
        }
        println!("ten after {has_ten:?} ms, p99 {} ms", world.wait_percentile(1, 0.99) / MS);
        assert!(has_ten.is_some_and(|after| after <= 100), "ten after {has_ten:?} ms");
        assert!(world.wait_percentile(1, 0.99) < 30 * MS);
        assert_back_at_once(&mut world);
    });
}

/// The second route leaves after three seconds. From the end of its last transaction the first one has all twenty within
/// 10 ms, and the time in which connections are opened.
fn assert_back_at_once(world: &mut World) {
    world.run(3 * S);
    assert_eq!((world.held(0), world.held(1)), (10, 10));
    let opened = world.tally.opened;
    let is_back = |world: &World| world.held(0) == 20 && world.ledger.overview().dialing == 0;
    let mut opening = 0;
    while !is_back(world) {
        assert!(world.now < 4 * S, "{} are back", world.held(0));
        opening += if world.ledger.overview().dialing > 0 { STEP } else { 0 };
        world.run(world.now + STEP);
    }
    let took = world.now - world.tally.released_at[1];
    println!("all back after {} us, of which opening took {} us", took / US, opening / US);
    assert_eq!(world.tally.opened - opened, 10);
    assert!(took <= 10 * MS + opening, "back after {} us, {} us of it opening", took / US, opening / US);
    // Side by side: two rounds of the governor's window.
    assert!(opening <= 2 * world.plan.connect * 3 / 2 + MS, "opening took {} us", opening / US);
}

/// What is looked at how often.
const STEP: u64 = 50 * US;

#[test]
fn one_route_on_all_shards_hands_over_and_reconnects_nothing() {
    on_each(|shards| {
        let plan = Plan::new(shards, 4).clients(0, 16, 2 * MS, THINK, 0);
        let world = run(plan, 10);
        println!(
            "{} transactions, {} opened, {} moved",
            total(&world),
            world.tally.opened,
            world.tally.moved
        );
        assert_eq!(world.tally.opened, 4);
        assert!(total(&world) >= 19_000, "{} transactions of 20,000", total(&world));
    });
}

#[test]
fn clients_of_another_shard_get_their_part_of_a_busy_route() {
    on_each(|shards| {
        let plan = Plan::new(shards, 10).clients_on(0, 0, 40, 5 * MS, THINK);
        let mut plan = plan.clients_on(1, 0, 10, 5 * MS, THINK);
        plan.clients.iter_mut().filter(|client| client.shard == 1).for_each(|client| client.from = S);
        let mut world = World::new(plan, 1);
        world.run(S - MS);
        assert_eq!(world.held_on(0, 0), 10);
        world.run(6 * S);
        assert_eq!(world.tally.opened, 10);
        let done = |shard: usize| -> u64 {
            world.clients.iter().filter(|client| client.plan.shard == shard).map(|client| client.done).sum()
        };
        let of_each = [done(0) as f64 / 40.0 / 6.0, done(1) as f64 / 10.0 / 5.0];
        println!("transactions per client and second: {of_each:?}, {} moved", world.tally.moved);
        assert!((of_each[0] / of_each[1]).clamp(0.66, 1.5) == of_each[0] / of_each[1], "{of_each:?}");
    });
}

#[test]
fn two_clients_on_two_shards_share_one_connection() {
    on_each(|shards| {
        let plan = Plan::new(shards, 1).clients_on(0, 0, 1, MS, MS).clients_on(1, 0, 1, MS, MS);
        let world = run(plan, 5);
        assert_eq!(world.tally.opened, 1);
        assert!(evenness(&[world.clients[0].done, world.clients[1].done]) > 0.9);
        assert!(world.wait_percentile(0, 0.999) < 10 * MS, "{} ms", world.wait_percentile(0, 0.999) / MS);
    });
}

#[test]
fn a_limit_that_changes_under_load_holds_both_ways() {
    on_each(|shards| {
        let plan =
            (0..4).fold(Plan::new(shards, 10), |plan, route| plan.clients(route, 20, 20 * MS, THINK, 0));
        let mut world = World::new(plan, 1);
        world.reload_at(S, Policy::even(4));
        world.reload_at(2 * S, Policy::even(10));
        world.run(S - MS);
        assert_eq!(world.ledger.overview().held, 10);
        world.run(S + 300 * MS);
        assert!(
            world.ledger.overview().held <= 4,
            "{} after the longest transaction",
            world.ledger.overview().held
        );
        world.run(2 * S + 100 * MS);
        assert_eq!(world.ledger.overview().held, 10);
        world.end();
    });
}

#[test]
fn five_thousand_clients_at_once_are_served_and_open_no_more_than_the_governor_allows() {
    on_each(|shards| {
        let world = run(Plan::new(shards, 50).clients(0, 5000, MS, S, 0), 3);
        println!("{} opened, {} side by side", world.tally.opened, world.tally.dialing_most);
        assert!(world.clients.iter().all(|client| client.done > 0));
        assert_eq!(world.tally.opened, 50);
        assert!((4..=16).contains(&world.tally.dialing_most), "{}", world.tally.dialing_most);
    });
}

/// E5: who waits is served by what is there before much is opened.
#[test]
fn a_cold_start_opens_little_where_opening_takes_long() {
    on_each(|shards| {
        let mut plan = Plan::new(shards, 50).clients(0, 100, MS, 60 * S, 0);
        plan.connect = 50 * MS;
        let world = run(plan, 2);
        println!("{} opened, {} side by side", world.tally.opened, world.tally.dialing_most);
        assert!(world.clients.iter().all(|client| client.done > 0));
        assert!((4..10).contains(&world.tally.opened), "{} connections opened", world.tally.opened);
    });
}

#[test]
fn pinned_connections_pay_no_recall_and_others_do_instead() {
    on_each(|shards| {
        // Route 0 keeps its connections for long; route 1 does not; route 2 comes later.
        let mut plan =
            Plan::new(shards, 6).clients(1, 3, 5 * MS, THINK, 100 * MS).clients(2, 2, 5 * MS, THINK, S);
        for shard in [0, 1, 0] {
            plan.clients.push(ClientPlan {
                shard,
                busy: 10 * S,
                steady: true,
                pinning: 100,
                ..ClientPlan::default()
            });
        }
        let mut world = World::new(plan, 1);
        world.run(S - MS);
        assert_eq!((world.held(0), world.held(1)), (3, 3));
        world.run(S + 300 * MS);
        assert_eq!(world.held(0), 3);
        assert!(world.held(2) >= 1, "{:?}", world.ledger.rows());
        assert!(world.tally.done[2] > 5);
    });
}

/// In session mode each connection is its client's until it leaves, and another client waits for it then: none was ever to
/// spare for a route that came later.
#[test]
fn a_newcomer_gets_its_part_of_connections_that_go_from_session_to_session() {
    for shards in [1, 2] {
        let mut plan = Plan::new(shards, 4);
        for number in 0..24 {
            let route = usize::from(number >= 20);
            let from = if route == 1 { S } else { 0 };
            plan.clients.push(ClientPlan {
                shard: number % shards,
                route,
                from,
                busy: 5 * MS,
                think: MS,
                pinning: 100,
                ..ClientPlan::default()
            });
        }
        let mut world = World::new(plan, 1);
        world.run(S - MS);
        assert_eq!(world.held(0), 4);
        world.run(S + 300 * MS);
        assert_eq!((world.held(0), world.held(1)), (2, 2), "{shards} shards: {:?}", world.ledger.rows());
        let before = world.tally.done.clone();
        world.run(3 * S);
        let done = [0, 1].map(|route| world.tally.done[route] - before[route]);
        assert!(done[1] * 3 > done[0] * 2, "{shards} shards: {done:?}");
    }
}

#[test]
fn where_all_is_pinned_others_are_refused_at_their_deadline_and_served_when_it_ends() {
    on_each(|shards| {
        let mut plan = Plan::new(shards, 6).clients(1, 3, 5 * MS, THINK, S);
        plan.patience = 500 * MS;
        for number in 0..6 {
            let (shard, busy) = (number % 2, 3 * S);
            let until = 2 * S;
            plan.clients.push(ClientPlan {
                shard,
                busy,
                until,
                steady: true,
                pinning: 100,
                ..ClientPlan::default()
            });
        }
        let mut world = World::new(plan, 1);
        world.run(2900 * MS);
        assert_eq!((world.held(0), world.tally.done[1]), (6, 0));
        assert!(
            world.clients.iter().filter(|client| client.plan.route == 1).all(|client| client.expired >= 3)
        );
        world.run(4 * S);
        assert!(world.tally.done[1] > 100, "{}", world.tally.done[1]);
        world.end();
    });
}

#[test]
fn a_recall_is_not_stuck_behind_a_long_transaction() {
    on_each(|shards| {
        // Route 0 is above its part with five transactions of a minute on shard 0, and five short ones on shard 1.
        let mut plan = Plan::new(shards.max(3), 10).clients_on(2, 1, 2, 5 * MS, THINK);
        plan.clients.iter_mut().for_each(|client| client.from = S);
        for number in 0..10 {
            let (shard, busy) = if number < 5 { (0, 60 * S) } else { (1, 5 * MS) };
            plan.clients.push(ClientPlan {
                shard,
                busy,
                think: THINK,
                steady: true,
                ..ClientPlan::default()
            });
        }
        let mut world = World::new(plan, 1);
        world.run(S + 200 * MS);
        let longest = world.wait_percentile(1, 1.0);
        assert!(world.tally.done[1] > 20, "{} done", world.tally.done[1]);
        assert!(longest < 60 * MS, "waited for {} ms", longest / MS);
    });
}

#[test]
fn a_slow_close_keeps_its_permit() {
    on_each(|shards| {
        let mut plan = (0..2).fold(Plan::new(shards, 3), |plan, route| {
            plan.clients(route, 6, 10 * MS, THINK, route as u64 * S)
        });
        plan.close = 5 * S;
        // That open connections never exceed permits is checked at each step.
        let mut world = run(plan, 20);
        assert!(world.tally.done[1] > 0 && world.tally.open_most <= 3);
        assert!(world.ledger.rows().iter().any(|row| row.route == route_name(1)));
        world.end();
    });
}

#[test]
fn routes_of_the_same_part_do_not_evict_each_other_for_ever() {
    on_each(|shards| {
        // Three routes keep 15 of 50 slots for themselves; two others have 50 clients each.
        let mut plan =
            Plan::new(shards, 50).clients(0, 50, 100 * MS, 2 * MS, 0).clients(1, 50, 100 * MS, 2 * MS, 0);
        plan.connect = 20 * MS;
        for number in 0..15 {
            let (shard, route) = (number % 2, 2 + number % 3);
            let busy = 100 * S;
            plan.clients.push(ClientPlan {
                route,
                shard,
                busy,
                steady: true,
                pinning: 100,
                ..ClientPlan::default()
            });
        }
        let world = run(plan, 30);
        println!("{} opened", world.tally.opened);
        assert!(world.tally.opened < 50 + 30, "{} connections opened", world.tally.opened);
    });
}
