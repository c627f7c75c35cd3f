//! The deterministic simulator: whole shards, without ring and kernel.
//!
//! 1 to 64 of the very shards that run in production, scripted clients that come to any of them, a model of PostgreSQL,
//! one virtual clock. Bytes arrive in random pieces, sends progress at random, each kind of step is rare in one run and
//! frequent in another; what goes wrong is in [`plan::Faults`]. One seed is one run:
//! `SIM_SEED=n cargo test --no-default-features --test simulator NAME` replays it, with `SIM_TRACE=1` it tells what
//! happens, and `SIM_SEEDS=n` makes a long run of n seeds.
//!
//! What is held against every run (`oracles`, `client`, `cluster`):
//! - each client's bytes are exactly what a PostgreSQL of its own would have sent, up to the point where a fault ended
//!   its session, which it is then told;
//! - connections that PostgreSQL has open, and those being opened, never exceed `max_connections` over all shards. A
//!   backend counts until its process has ended, whatever the pooler thinks. No route has more than its ceiling, nor
//!   users more than what is not reserved;
//! - no backend sees a statement of one client within the transaction of another;
//! - each server holds one permit, and is somewhere; nobody waits on a shard beside an idle server of the same route;
//!   nobody is in a state that no event takes it out of;
//! - every client comes to its end: it has had all answers, or was told why not. When all shards were drained nothing
//!   is left: no server, no permit, no socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]

mod chance;
mod client;
mod cluster;
mod faults;
mod moves;
mod network;
mod oracles;
mod plan;
mod postgres;
mod shares;
mod steps;
mod world;

use plan::Faults;
use world::{Story, World};

/// Seeds per test in an ordinary run: seconds.
const SEEDS: u64 = 400;

/// Seeds that found something once. In 705 and 867 nothing happened any more while a client waited, and nobody looked; in 246
/// one waited beside an idle server of another shard because its route's logins were refused.
const FOUND: [u64; 3] = [246, 705, 867];

fn seeds() -> Box<dyn Iterator<Item = u64>> {
    match std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => Box::new(std::iter::once(seed)),
        None => {
            let count = std::env::var("SIM_SEEDS").ok().and_then(|count| count.parse().ok());
            Box::new((0..count.unwrap_or(SEEDS)).chain(FOUND))
        }
    }
}

fn run(test: &str, faults: Faults) {
    let mut all = Story::default();
    for seed in seeds() {
        match std::panic::catch_unwind(|| World::new(seed, faults).run()) {
            Ok(story) => all += story,
            Err(panic) => {
                eprintln!(
                    "replay with: SIM_SEED={seed} cargo test --no-default-features --test simulator {test}"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{all:?}");
    if std::env::var_os("SIM_SEED").is_none() {
        // A world in which nothing happens proves nothing.
        assert!(all.served > 0 && all.transactions > all.served && all.opened > 0, "{all:?}");
        assert!(all.handed_over > 0 && all.steered > 0 && all.told > 0, "{all:?}");
        assert!(all.notified > 0 && all.uneven > 0, "{all:?}");
        assert_eq!(
            all.unsound > 0,
            faults.servers_dawdle || faults.shards_stall || faults.servers_die,
            "{all:?}"
        );
        assert_eq!(all.lost > 0, faults.refuse_clients() || faults.panics, "{all:?}");
        for ((may, _), happened) in faults.kinds().iter().zip(all.faults) {
            assert_eq!(happened > 0, *may, "{all:?}");
        }
        assert_eq!(all.surplus > 0, faults.impatient, "{all:?}");
        assert_eq!(all.turned_away > 0, faults.dials_fail, "{all:?}");
    }
}

const NONE: Faults = Faults {
    clients_leave: false,
    servers_die: false,
    dials_fail: false,
    servers_dawdle: false,
    servers_speak: false,
    reloads: false,
    shards_stall: false,
    panics: false,
    drains_early: false,
    impatient: false,
    many_shards: false,
};

const ALL: Faults = Faults {
    clients_leave: true,
    servers_die: true,
    dials_fail: true,
    servers_dawdle: true,
    servers_speak: true,
    reloads: true,
    shards_stall: true,
    panics: true,
    drains_early: true,
    impatient: true,
    many_shards: false,
};

#[test]
fn without_faults_every_client_gets_what_postgres_would_have_sent() {
    run("without_faults", NONE);
}

#[test]
fn clients_that_leave_in_the_middle_disturb_nobody() {
    run("clients_that_leave", Faults { clients_leave: true, ..NONE });
}

#[test]
fn servers_that_die_and_dials_that_fail_are_survived() {
    run("servers_that_die", Faults { servers_die: true, dials_fail: true, ..NONE });
}

#[test]
fn a_slow_postgres_and_slow_cores_break_no_limit() {
    run("a_slow_postgres", Faults { servers_dawdle: true, shards_stall: true, ..NONE });
}

#[test]
fn what_nobody_asked_for_disturbs_nobody() {
    run("what_nobody_asked_for", Faults { servers_speak: true, ..NONE });
}

#[test]
fn limits_change_under_load() {
    run("limits_change", Faults { reloads: true, servers_dawdle: true, ..NONE });
}

#[test]
fn panics_end_the_connections_they_concern_and_no_other() {
    run("panics_end", Faults { panics: true, ..NONE });
}

#[test]
fn a_drain_in_the_middle_of_work_comes_to_its_end() {
    run("a_drain", Faults { drains_early: true, servers_dawdle: true, ..NONE });
}

#[test]
fn everything_at_once() {
    run("everything_at_once", ALL);
}

#[test]
fn everything_at_once_on_sixty_four_shards() {
    run("everything_at_once_on", Faults { many_shards: true, ..ALL });
}

/// Here nobody is refused: each client has all its answers.
#[test]
fn a_slow_postgres_and_reloads_on_sixty_four_shards() {
    let faults =
        Faults { clients_leave: true, servers_dawdle: true, shards_stall: true, reloads: true, ..NONE };
    run("a_slow_postgres_and", Faults { many_shards: true, ..faults });
}
