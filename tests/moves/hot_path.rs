//! A query that finds an idle server on its own shard costs no mail and no allocation.
#![allow(unsafe_code)]

use crate::shards::{Shards, answer, config, query};
use pgpinion::shard::Effect;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

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

#[test]
fn a_query_on_its_own_shard_allocates_nothing_and_writes_no_letter() {
    let mut shards = Shards::new(2, config(8));
    let side = &mut shards.sides[0];
    let client = side.log_in();
    let server = side.dial();
    let (question, reply) = (query(), answer());
    // Swapped with the shard's own list, as the engine does.
    let mut effects: Vec<Effect> = Vec::with_capacity(64);
    let (mut letters, mut sends) = (0, 0);
    let mut rounds = |count: usize| {
        let before = ALLOCATIONS.get();
        for _ in 0..count {
            for (owner, bytes) in [(client, &question), (server, &reply)] {
                side.shard.received(owner, bytes);
                side.shard.sent(client, bytes.len());
                side.shard.sent(server, bytes.len());
                side.shard.take_effects(&mut effects);
                for effect in effects.drain(..) {
                    letters += usize::from(matches!(effect, Effect::Mail { .. } | Effect::Take { .. }));
                    sends += usize::from(matches!(effect, Effect::Send { .. }));
                }
            }
        }
        ALLOCATIONS.get() - before
    };
    // Lists grow to their size.
    rounds(10);
    assert_eq!(rounds(1000), 0, "allocations");
    assert_eq!((letters, sends), (0, 2 * 1010));
    assert_eq!(side.shard.stats().transactions, 1010);
    shards.finish();
}
