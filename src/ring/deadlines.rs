//! When the ring must wake up by itself: lingering sockets, connects, paused listeners, sleeping tasks.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::slots::Key;
use crate::time::Instant;

/// A heap of points in time. What is over before its time is left in it and skipped when it comes up.
pub(super) struct Deadlines {
    heap: BinaryHeap<Reverse<(Instant, Due)>>,
}

/// What is due; the numbers are those of a [`Key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Socket(u32, u32),
    Listener(u32, u32),
    Wait(u32, u32),
}

impl Deadlines {
    pub fn new() -> Self {
        Self { heap: BinaryHeap::new() }
    }

    pub fn add(&mut self, at: Instant, due: Due) {
        if at != Instant::NEVER {
            self.heap.push(Reverse((at, due)));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// The earliest that is still wanted.
    pub fn earliest(&mut self, wanted: impl Fn(Due) -> bool) -> Instant {
        while let Some(Reverse((at, due))) = self.heap.peek() {
            if wanted(*due) {
                return *at;
            }
            self.heap.pop();
        }
        Instant::NEVER
    }

    /// The next that is due at `now`.
    pub fn expired(&mut self, now: Instant) -> Option<Due> {
        let Reverse((at, due)) = *self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop();
        Some(due)
    }
}

impl Due {
    pub fn socket(key: Key) -> Self {
        Self::Socket(key.slot, key.generation)
    }

    pub fn listener(key: Key) -> Self {
        Self::Listener(key.slot, key.generation)
    }

    pub fn wait(key: Key) -> Self {
        Self::Wait(key.slot, key.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unwanted_deadlines_are_skipped() {
        let mut deadlines = Deadlines::new();
        for (at, slot) in [(30, 3), (10, 1), (20, 2)] {
            deadlines.add(Instant::from_nanos(at), Due::Wait(slot, 0));
        }
        deadlines.add(Instant::NEVER, Due::Wait(4, 0));
        assert_eq!(deadlines.earliest(|due| due != Due::Wait(1, 0)), Instant::from_nanos(20));
        assert_eq!(deadlines.expired(Instant::from_nanos(19)), None);
        assert_eq!(deadlines.expired(Instant::from_nanos(40)), Some(Due::Wait(2, 0)));
        assert_eq!(deadlines.expired(Instant::from_nanos(40)), Some(Due::Wait(3, 0)));
        assert!(deadlines.is_empty());
    }
}
