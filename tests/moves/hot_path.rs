//! A query that finds an idle server on its own shard costs no mail and no allocation.
#![allow(unsafe_code)]

use crate::shards::{Shards, answer, config, query};
use pgpinion::ids::Owner;
use pgpinion::shard::{Effect, Shard};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

/// The system's allocator, counting for each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: passed on to the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on to the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a number of queries has cost.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cost {
    allocations: u64,
    letters: usize,
    sends: usize,
}

/// In each round every client asks, and the server answers each. Time passes, and the shard acts on its deadlines, as
/// under the engine.
fn play(shards: &mut Shards, clients: &[Owner], server: Owner, rounds: usize) -> Cost {
    let (question, reply) = (query(), answer());
    // Swapped with the shard's own list, as the engine does.
    let mut effects: Vec<Effect> = Vec::with_capacity(64);
    let mut cost = Cost::default();
    let before = ALLOCATIONS.get();
    for _ in 0..rounds {
        let questions = clients.iter().map(|&client| (client, &question));
        for (owner, bytes) in questions.chain(clients.iter().map(|_| (server, &reply))) {
            shards.now = shards.now + Duration::from_micros(10);
            let shard = &mut shards.sides[BUSY].shard;
            shard.set_time(shards.now);
            if shard.next_deadline() <= shards.now {
                shard.tick();
                take(shard, &mut effects, &mut cost);
            }
            shard.received(owner, bytes);
            take(shard, &mut effects, &mut cost);
            for &each in clients {
                shard.sent(each, reply.len());
            }
            shard.sent(server, question.len());
            take(shard, &mut effects, &mut cost);
        }
    }
    cost.allocations = ALLOCATIONS.get() - before;
    cost
}

fn take(shard: &mut Shard, effects: &mut Vec<Effect>, cost: &mut Cost) {
    shard.take_effects(effects);
    for effect in effects.drain(..) {
        cost.letters += usize::from(matches!(effect, Effect::Mail { .. } | Effect::Take { .. }));
        cost.sends += usize::from(matches!(effect, Effect::Send { .. }));
    }
}

/// Two shards; on the one that does not keep the ledger so many clients, and the only server.
fn clients_and_a_server(count: usize) -> (Shards, Vec<Owner>, Owner) {
    let mut config = config(1);
    config.steering = false;
    let mut shards = Shards::new(2, config);
    let clients = (0..count).map(|_| shards.sides[BUSY].log_in()).collect();
    shards.settle();
    let server = shards.sides[BUSY].dial();
    shards.settle();
    shards.come_to_rest();
    (shards, clients, server)
}

#[test]
fn a_query_on_its_own_shard_allocates_nothing_and_writes_no_letter() {
    let (mut shards, clients, server) = clients_and_a_server(1);
    // Lists grow to their size, and what is known of the route becomes old.
    play(&mut shards, &clients, server, 1000);
    let cost = play(&mut shards, &clients, server, 1000);
    assert_eq!(cost, Cost { allocations: 0, letters: 0, sends: 2000 });
    assert_eq!(shards.sides[BUSY].shard.stats().transactions, 2000);
    shards.finish();
}

/// What the ledger knows of a queue is its height, and that stays the same.
#[test]
fn a_queue_that_stays_as_high_as_it_was_writes_no_letter() {
    let (mut shards, clients, server) = clients_and_a_server(5);
    for _ in 0..50 {
        for &client in &clients {
            shards.sides[BUSY].receive(client, &query());
        }
        for _ in &clients {
            shards.settle();
            shards.sides[BUSY].answer();
        }
    }
    // Waits were long so far. That they are not any more is said too.
    for _ in 0..500 {
        for &client in &clients {
            shards.sides[BUSY].receive(client, &query());
        }
        for _ in &clients {
            shards.pass(Duration::from_micros(10));
            shards.deliver();
            shards.sides[BUSY].answer();
        }
    }
    let cost = play(&mut shards, &clients, server, 1000);
    println!("1,000 rounds of 5 clients on one server: {cost:?}");
    assert_eq!((cost.letters, cost.sends), (0, 10_000));
    shards.finish();
}

/// The ledger is on the other one.
const BUSY: usize = 1;
