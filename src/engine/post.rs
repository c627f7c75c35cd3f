//! What carries letters from shard to shard: an inbox for each, and the doorbells.
//!
//! One bounded channel per shard, into which all others write: letters are read in the order in which they were sent,
//! whoever sent them. Nobody ever waits to write; that an inbox is full is impossible, and ends the process.
//!
//! A letter lies in the inbox at once, and the doorbell is rung once per turn for all of them together, before the
//! writer may sleep ([`Post::ring_bells`]). The reader looks into its inbox only when its ring says that the bell rang.
//! No letter stays unread for that: it was in the inbox before the bell was rung, and a bell is answered after it
//! was rung, so that the inbox, looked into after the answer, has the letter. A bell rung behind the answer is another
//! one, and ends the next sleep or prevents it (see the ring's doorbell). A busy reader is not interrupted at all: it
//! finds the bell rung at the end of its turn.

use crate::ids::ShardId;
use crate::ring::Doorbell;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::cell::{Cell, RefCell};
use std::io;

/// One shard's end of the post. `T` is a letter.
pub(crate) struct Post<T> {
    id: ShardId,
    inbox: Receiver<T>,
    /// Of all shards, by number.
    addresses: Vec<Address<T>>,
    /// Whom this turn wrote to.
    unrung: RefCell<Vec<ShardId>>,
    stats: Cell<PostStats>,
}

/// Where letters for a shard go.
struct Address<T> {
    inbox: Sender<T>,
    doorbell: Doorbell,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PostStats {
    /// Letters written.
    pub sent: u64,
    /// Letters read.
    pub received: u64,
    /// Bells rung.
    pub bells: u64,
    /// Of these, those that woke somebody.
    pub wakes: u64,
}

impl<T> Post<T> {
    /// The ends of all shards, with inboxes for so many letters each.
    pub(crate) fn connect(shards: usize, letters_max: usize) -> io::Result<Vec<Self>> {
        let inboxes: Vec<_> = (0..shards).map(|_| bounded(letters_max)).collect();
        let bells = (0..shards).map(|_| Doorbell::new()).collect::<io::Result<Vec<_>>>()?;
        let addresses = || {
            inboxes.iter().zip(&bells).map(|((inbox, _), doorbell)| {
                let (inbox, doorbell) = (inbox.clone(), doorbell.clone());
                Address { inbox, doorbell }
            })
        };
        let post = |(index, (_, inbox)): (usize, &(_, Receiver<T>))| Self {
            id: ShardId(index as u16),
            inbox: inbox.clone(),
            addresses: addresses().collect(),
            unrung: RefCell::new(Vec::with_capacity(shards)),
            stats: Cell::default(),
        };
        Ok(inboxes.iter().enumerate().map(post).collect())
    }

    /// What wakes this shard.
    pub(crate) fn doorbell(&self) -> Doorbell {
        self.addresses[usize::from(self.id.0)].doorbell.clone()
    }

    /// Fewer than so many letters wait for a shard.
    pub(crate) fn has_fewer_than(&self, letters: usize, to: ShardId) -> bool {
        self.addresses[usize::from(to.0)].inbox.len() < letters
    }

    /// Puts a letter into a shard's inbox.
    pub(crate) fn send(&self, to: ShardId, letter: T) {
        match self.addresses[usize::from(to.0)].inbox.try_send(letter) {
            Ok(()) => {}
            Err(TrySendError::Disconnected(_)) => unreachable!("an inbox outlives its shard"),
            Err(TrySendError::Full(_)) => panic!("shard {to} has more letters than there can be"),
        }
        let mut unrung = self.unrung.borrow_mut();
        if !unrung.contains(&to) {
            unrung.push(to);
        }
        self.count(|stats| stats.sent += 1);
    }

    /// Rings where letters were left since the last time. To be called before the shard may sleep.
    #[inline]
    pub(crate) fn ring_bells(&self) {
        let mut unrung = self.unrung.borrow_mut();
        for shard in unrung.drain(..) {
            let woken = self.addresses[usize::from(shard.0)].doorbell.ring();
            self.count(|stats| {
                stats.bells += 1;
                stats.wakes += u64::from(woken);
            });
        }
    }

    /// The letters that have come, up to now: who comes later rings again.
    pub(crate) fn read(&self) -> impl Iterator<Item = T> {
        (0..self.inbox.len()).map_while(|_| {
            let letter = self.inbox.try_recv().ok()?;
            self.count(|stats| stats.received += 1);
            Some(letter)
        })
    }

    /// Counts since the start.
    pub(crate) fn stats(&self) -> PostStats {
        self.stats.get()
    }

    fn count(&self, change: impl FnOnce(&mut PostStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }
}

/// A shard ends when the process does. What is in its inbox, or comes there after, ends with the process and
/// not before: a permit that is in a letter must not be lost while somebody counts.
impl<T> Drop for Post<T> {
    fn drop(&mut self) {
        std::mem::forget(self.inbox.clone());
    }
}

#[cfg(test)]
#[allow(clippy::print_stderr)]
mod tests {
    use super::*;
    use crate::ring::{Event, Ring, RingSettings, clock};
    use std::sync::Arc;
    use std::time::Duration;

    /// Longer than anything takes: whoever sleeps so long was not woken.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Reads letters until `done`, writing what `answer` says; sleeps whenever it has nothing to do.
    fn run(post: &Post<u64>, mut step: impl FnMut(&Post<u64>, Option<u64>) -> bool) {
        let settings = RingSettings { recv_buffers: 2, ..RingSettings::default() };
        let ring = Ring::with_doorbell(&settings, post.doorbell()).unwrap();
        let mut more = step(post, None);
        while more {
            let end = clock::now() + PATIENCE;
            let about_to_sleep = || {
                post.ring_bells();
                end
            };
            ring.turn_until(about_to_sleep, &mut |event| {
                if let Event::Doorbell = event {
                    for letter in post.read() {
                        more = step(post, Some(letter));
                    }
                }
            })
            .unwrap();
            assert!(clock::now() < end, "asleep beside a letter: {:?}", post.stats());
        }
        post.ring_bells();
    }

    fn pair(letters_max: usize) -> [Post<u64>; 2] {
        let posts = Post::connect(2, letters_max).unwrap();
        posts.try_into().unwrap_or_else(|_| panic!("two were made"))
    }

    #[test]
    fn no_letter_is_slept_over() {
        // A letter to and fro: both sleep, or are about to, whenever the other writes.
        let [one, other] = pair(1);
        let rounds = 50_000;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                run(&other, |post, letter| {
                    let Some(letter) = letter else { return true };
                    post.send(ShardId(0), letter);
                    letter < rounds
                });
            });
            run(&one, |post, letter| {
                let letter = letter.unwrap_or(0);
                if letter < rounds {
                    post.send(ShardId(1), letter + 1);
                }
                letter < rounds
            });
            assert_eq!((one.stats().sent, one.stats().received), (rounds, rounds));
        });
    }

    #[test]
    fn what_a_letter_to_a_sleeping_shard_costs() {
        let [one, other] = pair(1);
        let (rounds, pause) = (2000, Duration::from_micros(100));
        let mut times = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                run(&other, |post, letter| {
                    let Some(letter) = letter else { return true };
                    post.send(ShardId(0), letter);
                    letter < rounds
                });
            });
            let mut start = clock::now();
            run(&one, |post, letter| {
                let letter = letter.unwrap_or(0);
                times.push(clock::now() - start);
                // Long enough for the other one to fall asleep.
                let end = clock::now() + pause;
                while clock::now() < end {
                    std::hint::spin_loop();
                }
                if letter < rounds {
                    start = clock::now();
                    post.send(ShardId(1), letter + 1);
                }
                letter < rounds
            });
            assert!(one.stats().wakes > rounds / 2, "it slept: {:?}", one.stats());
        });
        times.sort_unstable();
        let median = times[times.len() / 2];
        eprintln!("a letter to a sleeping shard, and back to one that is about to sleep: {median:?}");
        assert!(median < Duration::from_millis(10));
    }

    #[test]
    fn letters_of_several_writers_arrive_in_order_and_bells_are_few() {
        let letters = 30_000u64;
        let mut posts = Post::connect(3, 2 * letters as usize).unwrap();
        let (reader, writers) = (posts.remove(0), posts);
        std::thread::scope(|scope| {
            for post in writers {
                scope.spawn(move || {
                    let start = u64::from(post.id.0) << 32;
                    for letter in 0..letters {
                        post.send(ShardId(0), start + letter);
                        // A turn writes up to a hundred.
                        if letter % (1 + letter % 100) == 0 {
                            post.ring_bells();
                        }
                    }
                    post.ring_bells();
                    assert!(post.stats().bells < letters);
                });
            }
            let mut next = [0, 0];
            run(&reader, |_, letter| {
                if let Some(letter) = letter {
                    let from = (letter >> 32) as usize - 1;
                    assert_eq!(letter & u64::from(u32::MAX), next[from], "of writer {from}");
                    next[from] += 1;
                }
                next != [letters; 2]
            });
        });
    }

    #[test]
    fn a_bell_is_rung_once_for_all_letters_of_a_turn() {
        let [one, other] = pair(10);
        for letter in 0..5 {
            one.send(ShardId(1), letter);
        }
        one.ring_bells();
        one.ring_bells();
        assert_eq!(one.stats(), PostStats { sent: 5, received: 0, bells: 1, wakes: 0 });
        assert_eq!(other.read().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(one.has_fewer_than(1, ShardId(1)));
    }

    #[test]
    fn a_letter_to_a_shard_that_ended_is_not_dropped() {
        let posts = Post::connect(2, 2).unwrap();
        let [one, other] = <[Post<Arc<()>>; 2]>::try_from(posts).unwrap_or_else(|_| panic!("two were made"));
        let letter = Arc::new(());
        one.send(ShardId(1), letter.clone());
        drop(other);
        one.send(ShardId(1), letter.clone());
        drop(one);
        assert_eq!(Arc::strong_count(&letter), 3);
    }

    #[test]
    #[should_panic(expected = "more letters than there can be")]
    fn a_full_inbox_is_a_broken_invariant() {
        let [one, _other] = pair(1);
        one.send(ShardId(1), 1);
        one.send(ShardId(1), 2);
    }
}
