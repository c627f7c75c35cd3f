//! The deterministic simulator: whole shards, without ring and kernel.
//!
//! Scripted clients on one side, a model of PostgreSQL on the other, and in between the very shard that runs in
//! production. Bytes arrive in random pieces, sends progress at random, servers die, refuse, are slow, clients leave in
//! the middle of anything; time is virtual. One seed is one run: `SIM_SEED=n cargo test --test simulator` replays it.
//!
//! What is held against every run:
//! - each client's bytes are exactly what a PostgreSQL of its own would have sent (up to the point where a fault
//!   ended its session, which it is then told);
//! - server connections open or being opened never exceed the endpoint's share;
//! - no server begins a transaction for one client while another's is open;
//! - without faults every client comes to its end, and when all have left and the shard was drained nothing is
//!   left: no server, no permit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]

mod postgres;
mod world;

use world::{Faults, World};

/// Seeds per test in an ordinary run.
const SEEDS: u64 = 400;

fn seeds() -> Box<dyn Iterator<Item = u64>> {
    match std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => Box::new(std::iter::once(seed)),
        None => {
            let count = std::env::var("SIM_SEEDS").ok().and_then(|count| count.parse().ok());
            Box::new(0..count.unwrap_or(SEEDS))
        }
    }
}

fn run(test: &str, faults: Faults) {
    for seed in seeds() {
        let outcome = std::panic::catch_unwind(|| World::new(seed, faults).run());
        if let Err(panic) = outcome {
            eprintln!(
                "replay with: SIM_SEED={seed} cargo test --no-default-features --test simulator {test}"
            );
            std::panic::resume_unwind(panic);
        }
    }
}

const NONE: Faults = Faults { clients_leave: false, servers_die: false, dials_fail: false, panics: false };

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
fn panics_end_the_connections_they_concern_and_no_other() {
    run("panics_end", Faults { panics: true, ..NONE });
}

#[test]
fn everything_at_once() {
    run(
        "everything_at_once",
        Faults { clients_leave: true, servers_die: true, dials_fail: true, panics: true },
    );
}
