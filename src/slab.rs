//! A table whose keys never name a stranger: a slot that is given to something new gets a new generation.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::ops::Range;

/// Names an entry of a `Slab<T>`.
pub struct Key<T> {
    slot: u32,
    generation: u32,
    of: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    /// Its place in the table, which others had before and will have again.
    pub fn slot(self) -> u32 {
        self.slot
    }

    /// The key as a number below 2^63, for whoever carries it without looking.
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// The key that [`Key::to_bits`] made this number of.
    pub fn from_bits(bits: u64) -> Self {
        Self { slot: bits as u32, generation: (bits >> 32) as u32, of: PhantomData }
    }
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T> PartialEq for Key<T> {
    fn eq(&self, other: &Self) -> bool {
        self.slot == other.slot && self.generation == other.generation
    }
}

impl<T> Eq for Key<T> {}

impl<T> Hash for Key<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.to_bits().hash(state);
    }
}

impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}/{}", self.slot, self.generation)
    }
}

/// Entries by key. Freed slots are reused last in, first out, so that a busy table stays small.
#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Keeps a value.
    pub fn insert(&mut self, value: T) -> Key<T> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { generation: 0, value: None });
            (self.entries.len() - 1) as u32
        });
        let entry = &mut self.entries[slot as usize];
        assert!(entry.value.is_none(), "a free slot is empty");
        entry.value = Some(value);
        Key { slot, generation: entry.generation, of: PhantomData }
    }

    /// Takes a value out; its key names nothing from here on.
    pub fn remove(&mut self, key: Key<T>) -> Option<T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = (entry.generation + 1) & GENERATION_MASK;
        self.free.push(key.slot);
        Some(value)
    }

    /// The value, unless it is gone.
    #[inline]
    pub fn get(&self, key: Key<T>) -> Option<&T> {
        let entry = self.entries.get(key.slot as usize)?;
        if entry.generation == key.generation { entry.value.as_ref() } else { None }
    }

    /// Where the value lies, or did.
    #[inline]
    pub fn memory_of(&self, key: Key<T>) -> Range<*const u8> {
        let range =
            self.entries.get(key.slot as usize).map(std::slice::from_ref).unwrap_or_default().as_ptr_range();
        range.start.cast()..range.end.cast()
    }

    /// The value, unless it is gone.
    #[inline]
    pub fn get_mut(&mut self, key: Key<T>) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.generation == key.generation { entry.value.as_mut() } else { None }
    }

    /// The key of the value in a place of the table, if there is one.
    pub fn key_at(&self, slot: u32) -> Option<Key<T>> {
        let entry = self.entries.get(slot as usize)?;
        entry.value.as_ref().map(|_| Key { slot, generation: entry.generation, of: PhantomData })
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (Key<T>, &T)> {
        self.entries.iter().enumerate().filter_map(|(slot, entry)| {
            let key = Key { slot: slot as u32, generation: entry.generation, of: PhantomData };
            entry.value.as_ref().map(|value| (key, value))
        })
    }

    /// All keys, for walks that change the table.
    pub fn keys(&self) -> Vec<Key<T>> {
        self.iter().map(|(key, _)| key).collect()
    }
}

/// 31 bits, so that a key and one bit more fit 64.
const GENERATION_MASK: u32 = 0x7fff_ffff;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_find_its_successor() {
        let mut slab = Slab::default();
        let first = slab.insert("a");
        assert_eq!(slab.remove(first), Some("a"));
        let second = slab.insert("b");
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"b"));
        assert_eq!((slab.key_at(second.slot()), slab.key_at(7)), (Some(second), None));
        assert_eq!(Key::from_bits(second.to_bits()), second);
        assert_eq!(slab.len(), 1);
    }
}
