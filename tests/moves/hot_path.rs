//! What finds an idle server on its own shard costs no mail and no allocation, in whichever protocol it asks.
#![allow(unsafe_code)]

use crate::shards::{Shards, answer, config, message, query};
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

/// What a client asks, and what its server answers.
struct Talk {
    question: Vec<u8>,
    reply: Vec<u8>,
}

impl Talk {
    fn simple() -> Self {
        Self { question: query(), reply: answer() }
    }

    /// The unnamed statement, parsed anew each time.
    fn extended() -> Self {
        let parse = message(b'P', b"\0select 1\0\0\0");
        let question = [parse, Self::run(b"\0\0"), message(b'S', b"")].concat();
        let reply = [message(b'1', b""), Self::ran()].concat();
        Self { question, reply }
    }

    /// A statement by its name, parsed once.
    fn preparing() -> Vec<u8> {
        let parse = message(b'P', b"one\0select 1\0\0\0");
        [parse, message(b'S', b"")].concat()
    }

    /// The same statement, run.
    fn prepared() -> Self {
        Self { question: [Self::run(b"\0one\0"), message(b'S', b"")].concat(), reply: Self::ran() }
    }

    /// Bind, with these names of portal and statement, Describe, and Execute.
    fn run(names: &[u8]) -> Vec<u8> {
        let bind = message(b'B', &[names, &[0; 6]].concat());
        [bind, message(b'D', b"P\0"), message(b'E', b"\0\0\0\0\0")].concat()
    }

    fn ran() -> Vec<u8> {
        [message(b'2', b""), message(b'n', b""), answer()].concat()
    }
}

/// In each round every client asks, and the server answers each. Time passes, and the shard acts on its deadlines, as
/// under the engine.
fn play(shards: &mut Shards, talk: &Talk, clients: &[Owner], server: Owner, rounds: usize) -> Cost {
    let Talk { question, reply } = talk;
    // Swapped with the shard's own list, as the engine does.
    let mut effects: Vec<Effect> = Vec::with_capacity(64);
    let mut cost = Cost::default();
    let before = ALLOCATIONS.get();
    for _ in 0..rounds {
        let questions = clients.iter().map(|&client| (client, question));
        for (owner, bytes) in questions.chain(clients.iter().map(|_| (server, reply))) {
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
                shard.sent(each, ALL);
            }
            shard.sent(server, ALL);
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

/// What PostgreSQL answers to these messages about a statement without parameters and rows.
fn answers(mut asked: &[u8]) -> Vec<u8> {
    let mut reply = Vec::new();
    while let [tag, a, b, c, d, rest @ ..] = asked {
        let (body, rest) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize - 4);
        reply.extend(match (tag, body.first()) {
            (b'P', _) => message(b'1', b""),
            (b'C', _) => message(b'3', b""),
            (b'D', Some(b'S')) => [message(b't', &[0; 2]), message(b'n', b"")].concat(),
            (b'S', _) => message(b'Z', b"I"),
            other => panic!("{other:?} is sent to prepare a statement"),
        });
        asked = rest;
    }
    reply
}

/// A thousand of these cost so much, when all is warm.
fn cost_of(first: Option<Vec<u8>>, talk: &Talk) -> Cost {
    let (mut shards, clients, server) = clients_and_a_server(1);
    if let Some(first) = &first {
        let side = &mut shards.sides[BUSY];
        // Its startup packet.
        side.sent(server);
        side.receive(clients[0], first);
        let asked = side.sent(server);
        side.receive(server, &answers(&asked));
        assert_eq!(side.sent(clients[0]).last(), Some(&b'I'), "{:?}", side.log);
    }
    // Lists grow to their size, and what is known of the route becomes old.
    play(&mut shards, talk, &clients, server, 1000);
    let cost = play(&mut shards, talk, &clients, server, 1000);
    let transactions = 2000 + u64::from(first.is_some());
    assert_eq!(shards.sides[BUSY].shard.stats().transactions, transactions);
    shards.finish();
    cost
}

#[test]
fn a_query_on_its_own_shard_allocates_nothing_and_writes_no_letter() {
    assert_eq!(cost_of(None, &Talk::simple()), Cost { allocations: 0, letters: 0, sends: 2000 });
}

#[test]
fn so_does_the_extended_protocol() {
    assert_eq!(cost_of(None, &Talk::extended()), Cost { allocations: 0, letters: 0, sends: 2000 });
}

#[test]
fn so_does_a_prepared_statement() {
    let cost = cost_of(Some(Talk::preparing()), &Talk::prepared());
    assert_eq!(cost, Cost { allocations: 0, letters: 0, sends: 2000 });
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
    let cost = play(&mut shards, &Talk::simple(), &clients, server, 1000);
    println!("1,000 rounds of 5 clients on one server: {cost:?}");
    assert_eq!((cost.letters, cost.sends), (0, 10_000));
    shards.finish();
}

/// The ledger is on the other one.
const BUSY: usize = 1;

/// As many bytes as there are to send.
const ALL: usize = usize::MAX >> 33;
