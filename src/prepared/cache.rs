//! What one server connection has prepared, as far as we know.

use super::Statement;
use super::statements::{Fingerprint, Shape};
use hashbrown::HashMap;

/// Statements prepared on a server. Plain data: it moves with the connection to another shard, when nothing is in
/// flight.
#[derive(Debug, Default)]
pub struct Cache {
    slots: HashMap<Fingerprint, Slot>,
    /// Counts uses.
    clock: u64,
}

/// A statement that the server has, had, or is about to have.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// When it was used last.
    used: u64,
    presence: Presence,
    /// As the server described it.
    shape: Option<Shape>,
    /// Parses, Closes and Describes of ours in flight.
    parses: u32,
    closes: u32,
    describes: u32,
    /// The group of the last Parse in flight, unless a Close follows it.
    group: Option<u32>,
}

/// According to the answers so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Presence {
    #[default]
    Absent,
    /// It was there, and something happened that may have removed it.
    Doubtful,
    Present,
}

impl Slot {
    /// A message of `group` that is sent now finds it, if it is not skipped.
    fn is_there(&self, group: u32) -> bool {
        (self.presence == Presence::Present && self.closes == 0) || self.group == Some(group)
    }

    /// It counts: the server has it, as far as anybody knows, and is not told to close it.
    fn counts(&self) -> bool {
        (self.presence != Presence::Absent && self.closes == 0) || self.group.is_some()
    }

    fn is_forgotten(&self) -> bool {
        self.presence == Presence::Absent && self.parses + self.closes + self.describes == 0
    }
}

impl Cache {
    /// Whether a message of `group` that is sent now finds this statement, as it is known to be; if so it is used.
    #[inline]
    pub(super) fn touch(&mut self, statement: &Statement, group: u32) -> bool {
        let Some(slot) = self.slots.get_mut(&statement.fingerprint) else { return false };
        let is_new = slot.group == Some(group);
        let is_known = slot.shape.is_some() && slot.shape == statement.shape.get();
        let found = slot.is_there(group) && (is_new || is_known);
        if found {
            self.clock += 1;
            slot.used = self.clock;
        }
        found
    }

    /// The server was asked to describe it and has not done so yet.
    pub(super) fn is_described(&self, statement: &Statement) -> bool {
        self.slots.get(&statement.fingerprint).is_some_and(|slot| slot.describes > 0)
    }

    /// A Describe is sent.
    pub(super) fn describe_sent(&mut self, fingerprint: &Fingerprint) {
        self.slots.entry(*fingerprint).or_default().describes += 1;
    }

    /// It is answered, or was skipped.
    pub(super) fn describe_ended(&mut self, fingerprint: &Fingerprint, shape: Option<Shape>) {
        self.change(fingerprint, |slot| {
            slot.describes = slot.describes.saturating_sub(1);
            slot.shape = shape.or(slot.shape);
        });
    }

    /// A Parse is sent, in `group`.
    pub(super) fn parse_sent(&mut self, statement: &Statement, group: u32) {
        self.clock += 1;
        let slot = self.slots.entry(statement.fingerprint).or_default();
        slot.used = self.clock;
        slot.shape = None;
        slot.parses += 1;
        slot.group = Some(group);
    }

    /// A Parse is answered (`done`), or failed or was skipped.
    pub(super) fn parse_ended(&mut self, fingerprint: &Fingerprint, done: bool) {
        self.change(fingerprint, |slot| {
            slot.parses = slot.parses.saturating_sub(1);
            if done {
                slot.presence = Presence::Present;
            }
            if slot.parses == 0 {
                slot.group = None;
            }
        });
    }

    /// A Close is sent.
    pub(super) fn close_sent(&mut self, fingerprint: &Fingerprint) {
        let slot = self.slots.entry(*fingerprint).or_default();
        slot.closes += 1;
        slot.group = None;
    }

    /// A Close is answered (`done`), or was skipped.
    pub(super) fn close_ended(&mut self, fingerprint: &Fingerprint, done: bool) {
        self.change(fingerprint, |slot| {
            slot.closes = slot.closes.saturating_sub(1);
            if done {
                slot.presence = Presence::Absent;
            }
        });
    }

    /// The server said something that casts doubt on this statement: it is prepared again before its next use.
    pub(super) fn doubt(&mut self, fingerprint: &Fingerprint) {
        self.change(fingerprint, |slot| slot.presence = slot.presence.min_doubtful());
    }

    /// One statement was deallocated, nobody knows which.
    pub(super) fn doubt_all(&mut self) {
        for slot in self.slots.values_mut() {
            slot.presence = slot.presence.min_doubtful();
        }
    }

    /// All statements were deallocated.
    pub(super) fn clear(&mut self) {
        self.slots.retain(|_, slot| {
            slot.presence = Presence::Absent;
            !slot.is_forgotten()
        });
    }

    /// The statement used longest ago, if one more than `count` would be too many.
    pub(super) fn surplus(&self, count: usize) -> Option<Fingerprint> {
        if self.slots.len() < count {
            return None;
        }
        let counting = || self.slots.iter().filter(|(_, slot)| slot.counts());
        if counting().count() < count {
            return None;
        }
        counting().min_by_key(|(_, slot)| slot.used).map(|(fingerprint, _)| *fingerprint)
    }

    /// Statements that the server has.
    pub fn len(&self) -> usize {
        self.slots.values().filter(|slot| slot.counts()).count()
    }

    /// The server has none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn change(&mut self, fingerprint: &Fingerprint, change: impl FnOnce(&mut Slot)) {
        let Some(slot) = self.slots.get_mut(fingerprint) else { return };
        change(slot);
        if slot.is_forgotten() {
            self.slots.remove(fingerprint);
        }
    }
}

impl Presence {
    fn min_doubtful(self) -> Self {
        if self == Presence::Present { Presence::Doubtful } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Statements;
    use super::*;

    #[test]
    fn it_can_be_sent_to_another_shard() {
        fn is_send<T: Send>() {}
        is_send::<Cache>();
    }

    #[test]
    fn a_parse_counts_for_its_group_and_when_answered_for_all() {
        let (mut cache, statement) = (Cache::default(), Statements::default().intern(b"a\0\0\0"));
        let fingerprint = statement.fingerprint;
        cache.close_sent(&fingerprint);
        cache.parse_sent(&statement, 1);
        assert!(cache.touch(&statement, 1) && !cache.touch(&statement, 2));
        cache.close_ended(&fingerprint, true);
        cache.parse_ended(&fingerprint, true);
        assert!(!cache.touch(&statement, 2), "nobody knows what it looks like");
        cache.describe_sent(&fingerprint);
        assert!(cache.is_described(&statement));
        let shape = Shape::of(b"", None);
        cache.describe_ended(&fingerprint, Some(shape));
        statement.shape.set(Some(shape));
        assert!(cache.touch(&statement, 2));
        statement.shape.set(Some(Shape::of(b"another", None)));
        assert!(!cache.touch(&statement, 2), "it has changed since");
        statement.shape.set(Some(shape));
        cache.close_sent(&fingerprint);
        assert!(!cache.touch(&statement, 2), "a Close is on its way");
        cache.close_ended(&fingerprint, false);
        assert!(cache.touch(&statement, 2), "it was skipped");
    }

    #[test]
    fn a_parse_that_fails_is_not_remembered() {
        let (mut cache, statement) = (Cache::default(), Statements::default().intern(b"a\0\0\0"));
        cache.parse_sent(&statement, 1);
        cache.parse_ended(&statement.fingerprint, false);
        assert!(!cache.touch(&statement, 1) && cache.is_empty());
    }

    #[test]
    fn what_is_in_doubt_is_prepared_again_and_still_counts() {
        let (mut cache, statement) = (Cache::default(), Statements::default().intern(b"a\0\0\0"));
        cache.parse_sent(&statement, 1);
        cache.parse_ended(&statement.fingerprint, true);
        cache.doubt_all();
        assert!(!cache.touch(&statement, 2));
        assert_eq!(cache.surplus(1), Some(statement.fingerprint));
        cache.clear();
        assert!(cache.is_empty());
    }

    #[test]
    fn the_one_used_longest_ago_goes_first() {
        let (mut cache, mut statements) = (Cache::default(), Statements::default());
        let all: Vec<_> = (0..3).map(|n| statements.intern(format!("{n}\0\0\0").as_bytes())).collect();
        for statement in &all {
            assert_eq!(cache.surplus(3), None);
            cache.parse_sent(statement, 0);
            cache.parse_ended(&statement.fingerprint, true);
            statement.shape.set(Some(Shape::of(b"", None)));
            cache.describe_ended(&statement.fingerprint, statement.shape.get());
        }
        assert!(cache.touch(&all[0], 1));
        assert_eq!(cache.surplus(3), Some(all[1].fingerprint));
        cache.close_sent(&all[1].fingerprint);
        assert_eq!(cache.surplus(3), None, "one is on its way out");
    }
}
