//! Deadlines of many things, each of which moves its own all the time.
//!
//! A thing's deadline moves with every query; the heap must not. So each thing has at most one live alarm in
//! the heap, at or before its deadline; when it rings too early, it is set again. Moving a deadline later costs
//! nothing, and in a busy shard deadlines only move later.

use crate::time::Instant;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A deadline and the alarm that covers it.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    alarm: Instant,
}

impl Default for Deadline {
    fn default() -> Self {
        Self { at: Instant::NEVER, alarm: Instant::NEVER }
    }
}

impl Deadline {
    /// When it is.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Takes it off.
    #[inline]
    pub fn clear(&mut self) {
        self.at = Instant::NEVER;
    }
}

/// Alarms for things named by `K`.
#[derive(Debug)]
pub struct Deadlines<K> {
    alarms: BinaryHeap<Reverse<(Instant, u64)>>,
    of: std::marker::PhantomData<K>,
}

impl<K> Default for Deadlines<K> {
    fn default() -> Self {
        Self { alarms: BinaryHeap::new(), of: std::marker::PhantomData }
    }
}

impl<K: Into<u64> + From<u64>> Deadlines<K> {
    /// Moves a thing's deadline.
    #[inline]
    pub fn set(&mut self, thing: K, deadline: &mut Deadline, at: Instant) {
        deadline.at = at;
        if at < deadline.alarm {
            deadline.alarm = at;
            self.alarms.push(Reverse((at, thing.into())));
        }
    }

    /// When to look again.
    pub fn next(&self) -> Instant {
        self.alarms.peek().map_or(Instant::NEVER, |Reverse((at, _))| *at)
    }

    /// A thing whose alarm rings. Ask [`Deadlines::is_due`] about it.
    pub fn ringing(&mut self, now: Instant) -> Option<(K, Instant)> {
        if self.next() > now {
            return None;
        }
        self.alarms.pop().map(|Reverse((at, thing))| (K::from(thing), at))
    }

    /// Whether the deadline of a thing whose alarm of `rang` rings has come; sets the alarm again if not.
    pub fn is_due(&mut self, thing: K, deadline: &mut Deadline, rang: Instant, now: Instant) -> bool {
        if deadline.alarm != rang {
            return false;
        }
        deadline.alarm = Instant::NEVER;
        let at = deadline.at;
        if at <= now {
            deadline.at = Instant::NEVER;
            return true;
        }
        if at != Instant::NEVER {
            self.set(thing, deadline, at);
        }
        false
    }

    /// Alarms set, those of things that are gone included.
    pub fn len(&self) -> usize {
        self.alarms.len()
    }

    /// Drops the alarms of things that are gone.
    pub fn retain(&mut self, mut lives: impl FnMut(K) -> bool) {
        self.alarms.retain(|Reverse((_, thing))| lives(K::from(*thing)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn a_deadline_that_moves_later_needs_no_new_alarm() {
        let mut deadlines = Deadlines::<u64>::default();
        let mut deadline = Deadline::default();
        for second in 1..1000 {
            deadlines.set(7, &mut deadline, at(second));
        }
        assert_eq!(deadlines.len(), 1);
        let (thing, rang) = deadlines.ringing(at(500)).unwrap();
        assert!(!deadlines.is_due(thing, &mut deadline, rang, at(500)));
        assert_eq!(deadlines.next(), at(999));
        let (thing, rang) = deadlines.ringing(at(999)).unwrap();
        assert!(deadlines.is_due(thing, &mut deadline, rang, at(999)));
        assert_eq!(deadlines.len(), 0);
    }

    #[test]
    fn a_deadline_that_moves_earlier_rings_once() {
        let mut deadlines = Deadlines::<u64>::default();
        let mut deadline = Deadline::default();
        deadlines.set(7, &mut deadline, at(10));
        deadlines.set(7, &mut deadline, at(5));
        let mut due = 0;
        while let Some((thing, rang)) = deadlines.ringing(at(20)) {
            due += usize::from(deadlines.is_due(thing, &mut deadline, rang, at(20)));
        }
        assert_eq!(due, 1);
    }

    #[test]
    fn a_deadline_that_was_taken_off_does_not_ring() {
        let mut deadlines = Deadlines::<u64>::default();
        let mut deadline = Deadline::default();
        deadlines.set(7, &mut deadline, at(1));
        deadline.clear();
        let (thing, rang) = deadlines.ringing(at(2)).unwrap();
        assert!(!deadlines.is_due(thing, &mut deadline, rang, at(2)));
    }
}
