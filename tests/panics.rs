//! What a panic does: to one connection, or to the process. Each test that must end a process starts itself as one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]

use pgpinion::cancel_key::Secret;
use pgpinion::config::Config;
use pgpinion::control::affinity::Housekeeping;
use pgpinion::control::log::Logger;
use pgpinion::engine::panics::{EndsTheProcess, guarded, report};
use pgpinion::ids::{Owner, RouteName, ShardId, SocketId};
use pgpinion::ledger::Share;
use pgpinion::pool::Pool;
use pgpinion::ring::{self, Ring, RingSettings};
use pgpinion::shard::{Effect, Peer, Shard};
use pgpinion::time::Instant;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

fn config() -> Config {
    Config::upstream("127.0.0.1:5432", &[0]).unwrap()
}

/// A shard with two clients that have only connected.
fn shard() -> (Shard, [Owner; 2]) {
    let mut shard = Shard::new(Arc::new(config()), ShardId(0), 1, 0, Secret::new([7; 32]));
    let owners = [0, 1].map(|slot| shard.accepted(SocketId { slot, generation: 0 }, Peer::Unix, false));
    shard.take_effects(&mut Vec::new());
    (shard, owners)
}

/// The sockets that are to be closed.
fn closes(shard: &mut Shard) -> Vec<u32> {
    let mut effects = Vec::new();
    shard.take_effects(&mut effects);
    let slots = effects.iter().filter_map(|effect| match effect {
        Effect::Close { socket, .. } => Some(socket.slot),
        _ => None,
    });
    let mut slots: Vec<u32> = slots.collect();
    slots.dedup();
    slots
}

#[test]
fn a_panic_closes_the_connection_whose_event_it_was_and_no_other() {
    let (mut shard, [first, second]) = shard();
    assert!(!guarded(&mut shard, first, |_| panic!("on purpose, by a test")));
    assert_eq!(closes(&mut shard), [0]);
    assert!(guarded(&mut shard, first, |shard| shard.closed(first)));
    assert!(guarded(&mut shard, second, |shard| shard.received(second, &[0, 0, 0, 8, 4, 210, 22, 47])));
    let mut effects = Vec::new();
    shard.take_effects(&mut effects);
    assert!(matches!(effects[..], [Effect::Send { .. }]), "the other is answered: {effects:?}");
    assert_eq!(shard.census().clients, 1);
}

/// Runs one of the tests below in a process of its own, which is told to do what must end it.
fn run_alone(test: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .unwrap()
}

/// `act` must end the process with this message.
fn ends_the_process(test: &str, message: &str, act: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        let housekeeping = Housekeeping::new(&[]);
        let (logger, _writer) = Logger::start(&config().log, &housekeeping).unwrap();
        report(logger);
        act();
        println!("{SURVIVED}");
        return;
    }
    let output = run_alone(test);
    let (said, printed) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(!printed.contains(SURVIVED), "it went on: {printed}{said}");
    assert_eq!(output.status.signal(), Some(SIGABRT), "{}: {printed}{said}", output.status);
    assert!(said.contains(&format!("pgpinion: {message}")), "it did not say why: {said}");
}

/// As an event of a client whose handling panics.
fn while_handling(act: impl FnOnce()) {
    let (mut shard, [first, _]) = shard();
    guarded(&mut shard, first, |_| act());
}

#[test]
fn a_broken_invariant_of_a_pool_ends_the_process() {
    ends_the_process("a_broken_invariant_of_a_pool_ends_the_process", ACCOUNT, || {
        while_handling(|| Pool::<u8, u8>::default().gone());
    });
}

#[test]
fn a_broken_invariant_of_the_ledger_ends_the_process() {
    ends_the_process("a_broken_invariant_of_the_ledger_ends_the_process", ACCOUNT, || {
        while_handling(|| {
            let mut share = Share::default();
            let route = RouteName { section: 0, database: "d".into(), user: "u".into(), session: None };
            let no = share.enter(&route);
            share.opened(no, Duration::ZERO);
        });
    });
}

#[test]
fn a_broken_invariant_of_the_ring_ends_the_process() {
    ends_the_process("a_broken_invariant_of_the_ring_ends_the_process", ACCOUNT, || {
        while_handling(|| {
            let ring = Ring::new(&RingSettings::default()).unwrap();
            let turn_within_a_turn = || {
                let _ = ring.turn(Instant::default(), &mut |_| {});
                Instant::default()
            };
            let _ = ring.turn_until(turn_within_a_turn, &mut |_| {});
        });
    });
}

#[test]
fn a_panic_of_a_shard_outside_of_any_connection_ends_the_process() {
    let test = "a_panic_of_a_shard_outside_of_any_connection_ends_the_process";
    ends_the_process(test, "a shard panicked outside of any connection, ending", || {
        let thread = std::thread::spawn(|| {
            ring::run_shard(None, || async {
                let _ends = EndsTheProcess;
                panic!("on purpose, by a test");
            })
        });
        drop(thread.join());
    });
}

const ALONE: &str = "PGPINION_TEST_ALONE";
const SURVIVED: &str = "the process lives on";
const ACCOUNT: &str = "an account of connections is wrong, ending:";
const SIGABRT: i32 = 6;
