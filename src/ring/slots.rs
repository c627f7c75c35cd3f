//! Tables whose slots are reused, and the numbers by which the kernel's completions name them.

use super::prefetch::prefetch;

/// A slot's index, and the generation of what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub slot: u32,
    pub generation: u32,
}

/// A table of things that come and go. A key that outlived its thing finds nothing.
pub(super) struct Slots<T> {
    entries: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    value: Option<T>,
    generation: u32,
}

/// What an operation was submitted for; the top byte of its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Receive = 1,
    Send = 2,
    Cancel = 3,
    Accept = 4,
    Connect = 5,
    Doorbell = 6,
}

impl<T> Slots<T> {
    pub fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    pub fn insert(&mut self, value: T) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            assert!(self.entries.len() < SLOTS_MAX, "more slots than a user data can name");
            self.entries.push(Slot { value: None, generation: 0 });
            (self.entries.len() - 1) as u32
        });
        let entry = &mut self.entries[slot as usize];
        entry.value = Some(value);
        Key { slot, generation: entry.generation }
    }

    pub fn get(&self, key: Key) -> Option<&T> {
        let entry = self.entries.get(key.slot as usize)?;
        if entry.generation == key.generation { entry.value.as_ref() } else { None }
    }

    /// Asks for the memory of a slot.
    #[inline]
    pub fn prefetch(&self, key: Key) {
        if let Some(entry) = self.entries.get(key.slot as usize) {
            let range = std::slice::from_ref(entry).as_ptr_range();
            prefetch(range.start.cast()..range.end.cast());
        }
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.generation == key.generation { entry.value.as_mut() } else { None }
    }

    pub fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(key.slot);
        Some(value)
    }

    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// The keys of those that fit.
    pub fn keys(&self, fits: impl Fn(&T) -> bool) -> Vec<Key> {
        let fitting =
            self.entries.iter().enumerate().filter(|(_, entry)| entry.value.as_ref().is_some_and(&fits));
        fitting.map(|(slot, entry)| Key { slot: slot as u32, generation: entry.generation }).collect()
    }
}

impl Key {
    /// Of operations of which there is one per ring.
    pub const NONE: Key = Key { slot: 0, generation: 0 };

    /// `kind:8 slot:24 generation:32`
    pub fn user_data(self, kind: Kind) -> u64 {
        (kind as u64) << 56 | u64::from(self.slot) << 32 | u64::from(self.generation)
    }

    pub fn of_user_data(user_data: u64) -> (Option<Kind>, Key) {
        let kind = match user_data >> 56 {
            1 => Some(Kind::Receive),
            2 => Some(Kind::Send),
            3 => Some(Kind::Cancel),
            4 => Some(Kind::Accept),
            5 => Some(Kind::Connect),
            6 => Some(Kind::Doorbell),
            _ => None,
        };
        let slot = (user_data >> 32) as u32 & (SLOTS_MAX as u32 - 1);
        (kind, Key { slot, generation: user_data as u32 })
    }
}

/// 24 bits of the user data.
const SLOTS_MAX: usize = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_find_the_next_in_its_slot() {
        let mut slots = Slots::new();
        let first = slots.insert("first");
        assert_eq!(slots.remove(first), Some("first"));
        let second = slots.insert("second");
        assert_eq!(second.slot, first.slot);
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get(second), Some(&"second"));
        assert_eq!(slots.len(), 1);
    }

    #[test]
    fn a_user_data_names_its_operation() {
        let key = Key { slot: 0xab_cdef, generation: u32::MAX };
        assert_eq!(Key::of_user_data(key.user_data(Kind::Connect)), (Some(Kind::Connect), key));
    }
}
