//! Worlds made from a seed: `LEDGER_SEED=n cargo test --test ledger random` replays one.

use crate::world::{ClientPlan, MS, Plan, S, US, World, set_terms};
use pgpinion::ledger::{Policy, Terms, letters_max};
use pgpinion::random::Random;

struct Dice(Random);

impl Dice {
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.number() % (high - low + 1)
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.0.number().is_multiple_of(many)
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.between(0, choices.len() as u64 - 1) as usize]
    }
}

/// What kinds of trouble a world has beside the usual.
#[derive(Clone, Copy, Default)]
struct Trouble {
    terms: bool,
    reloads: bool,
    pins: bool,
    faults: bool,
    big: bool,
    /// Connections do not move.
    without_hand_over: bool,
    /// Few clients, most of which are away most of the time: nothing happens but what those who wait make happen.
    sparse: bool,
}

fn policy(dice: &mut Dice, limit: u32, routes: usize, terms: bool) -> Policy {
    let mut policy = Policy::even(limit);
    policy.hand_over = !dice.one_in(8);
    if !terms {
        return policy;
    }
    if limit > 3 && dice.one_in(3) {
        policy.reserve = dice.between(1, 2) as u32;
        set_terms(&mut policy, "user0", |terms| terms.administrator = true);
    }
    let mut floors_left = (limit - policy.reserve) / 2;
    for route in 0..routes {
        if dice.one_in(2) {
            continue;
        }
        let floor = dice.between(0, u64::from(floors_left.min(3))) as u32;
        floors_left -= floor;
        let ceiling =
            if dice.one_in(3) { floor.max(dice.between(1, u64::from(limit)) as u32) } else { u32::MAX };
        let weight = dice.of(&[1, 1, 2, 3, 5]);
        set_terms(&mut policy, &format!("user{route}"), move |terms| {
            *terms = Terms { weight, floor, ceiling, ..*terms };
        });
    }
    policy
}

fn world(seed: u64, trouble: Trouble) -> World {
    let mut dice = Dice(Random::new(seed));
    let shards = if trouble.big { dice.between(7, 64) } else { dice.between(1, 6) } as usize;
    let limit = if trouble.big { dice.between(4, 40) } else { dice.between(1, 12) } as u32;
    let routes = dice.between(1, if trouble.sparse { 2 } else { 14 }) as usize;
    let limit = if trouble.sparse { limit.div_ceil(4) } else { limit };
    let mut plan = Plan::new(shards, limit);
    plan.policy = policy(&mut dice, limit, routes, trouble.terms);
    plan.policy.hand_over &= !trouble.without_hand_over;
    plan.home = dice.between(0, shards as u64 - 1) as usize;
    plan.connect = dice.between(MS, 20 * MS);
    plan.close = dice.of(&[100 * US, 2 * MS, 20 * MS]);
    let mail = dice.of(&[5 * US, 20 * US, 500 * US]);
    plan.mail = (mail / 2, mail * 3);
    if trouble.faults {
        plan.failing = dice.of(&[0, 10, 30]);
        plan.overloaded = dice.of(&[0, 50]);
        plan.dying = dice.of(&[0, 5, 50]);
    }
    if dice.one_in(3) {
        plan.patience = dice.between(50 * MS, 2 * S);
    }
    for route in 0..routes {
        let (count, busy, think, from) = (
            dice.between(1, if trouble.sparse { 3 } else { 8 }),
            dice.between(MS, 30 * MS),
            dice.of(if trouble.sparse {
                &[20 * MS, 500 * MS, 3 * S, 60 * S]
            } else {
                &[100 * US, MS, 20 * MS, 500 * MS]
            }),
            dice.between(0, S),
        );
        let pinning = if trouble.pins && dice.one_in(3) { dice.between(1, 20) } else { 0 };
        for _ in 0..count {
            let shard = dice.between(0, shards as u64 - 1) as usize;
            let from = if trouble.sparse { dice.between(0, S) } else { from };
            let until = if dice.one_in(10) { dice.between(S / 2, 3 * S) } else { u64::MAX };
            plan.clients.push(ClientPlan { route, shard, busy, think, from, until, steady: false, pinning });
        }
    }
    let mut world = World::new(plan, seed);
    if trouble.reloads {
        for _ in 0..dice.between(1, 4) {
            let limit = dice.between(1, 12) as u32;
            let mut policy = policy(&mut dice, limit, routes, trouble.terms);
            policy.hand_over &= !trouble.without_hand_over;
            world.reload_at(dice.between(S / 2, 2 * S), policy);
        }
    }
    world
}

fn run_one(seed: u64, trouble: Trouble) {
    let mut world = world(seed, trouble);
    world.run(3 * S);
    let policy = &world.plan.policy;
    let routes = world.tally.done.len() as u64;
    let turns = routes.div_ceil(u64::from(policy.limit.saturating_sub(policy.reserve).max(1)));
    let failing = if world.plan.failing > 0 { 5 } else { 1 };
    // A server without room is offered less for ten seconds.
    let overloaded = if world.plan.overloaded > 0 { 10 * S } else { 0 };
    let weights = if trouble.terms { 5 } else { 1 };
    let turn = 50 * MS + 5 * world.plan.connect + 3 * world.plan.connect + 200 * MS + world.plan.close;
    let bound = S + 3 * turns * turn * failing * weights + overloaded;
    world.run(3 * S + bound);
    let still = world.waiting().map(|(client, waited)| (client.plan.route, waited));
    let served = (0..routes as usize).map(|route| (route, world.wait_percentile(route, 1.0)));
    let starved = still
        .chain(served)
        .filter(|(_, waited)| *waited > bound)
        .map(|(route, waited)| (route, waited / MS))
        .max();
    if let (Some((route, _)), Ok(_)) = (starved, std::env::var("LEDGER_SEED")) {
        eprintln!("{:#?}\n{}", world.ledger, world.describe(route));
    }
    assert!(starved.is_none(), "more than {} ms (route, waited for ms): {starved:?}", bound / MS);
    let letters = letters_max([12.max(world.plan.policy.limit as usize).max(40)], world.plan.shards);
    assert!(
        world.tally.unread_most <= letters,
        "{} letters unread, {letters} thought possible",
        world.tally.unread_most
    );
    assert!(world.tally.dialing_most <= pgpinion::limits::DIALS_MAX);
    world.end();
}

fn run(test: &str, worlds: u64, trouble: Trouble) {
    let chosen = std::env::var("LEDGER_SEED").ok().and_then(|seed| seed.parse().ok());
    let worlds = std::env::var("LEDGER_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(worlds);
    let seeds = chosen.map_or(0..worlds, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run_one(seed, trouble));
        if let Err(panic) = outcome {
            eprintln!(
                "replay with: LEDGER_SEED={seed} cargo test --no-default-features --test ledger {test}"
            );
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn random_worlds_without_trouble() {
    run("random_worlds_without_trouble", 100, Trouble::default());
}

#[test]
fn random_worlds_with_terms() {
    run("random_worlds_with_terms", 100, Trouble { terms: true, ..Trouble::default() });
}

#[test]
fn random_worlds_with_reloads() {
    run("random_worlds_with_reloads", 60, Trouble { terms: true, reloads: true, ..Trouble::default() });
}

#[test]
fn random_worlds_with_pins_and_faults() {
    run(
        "random_worlds_with_pins_and_faults",
        60,
        Trouble { terms: true, reloads: true, pins: true, faults: true, ..Trouble::default() },
    );
}

#[test]
fn random_worlds_with_many_shards() {
    run("random_worlds_with_many_shards", 15, Trouble { big: true, ..Trouble::default() });
}

#[test]
fn random_worlds_without_hand_over() {
    let without_hand_over = true;
    run("random_worlds_without_hand_over", 100, Trouble { without_hand_over, ..Trouble::default() });
    let trouble = Trouble { terms: true, reloads: true, pins: true, ..Trouble::default() };
    run("random_worlds_without_hand_over", 40, Trouble { without_hand_over, ..trouble });
}

#[test]
fn random_worlds_with_few_clients() {
    for without_hand_over in [false, true] {
        run(
            "random_worlds_with_few_clients",
            100,
            Trouble { sparse: true, without_hand_over, ..Trouble::default() },
        );
    }
}
