//! The receive buffers that are lent to the kernel, and the guards over what arrived in them.
//!
//! A buffer is free, or held while a [`Received`] points into it; the last guard to go frees it. Of the free ones only
//! as many are laid out for the kernel as it lately used within a turn, the ones used last first: the kernel takes
//! them in turn, and if all of them went around, each would have left the cache by the time it is written to again.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::error::RingError;

/// All receive buffers of one ring.
pub(super) struct Buffers {
    /// `struct io_uring_buf_ring`: the buffers laid out, as the kernel takes them.
    ring: Mapping,
    memory: Mapping,
    mask: u16,
    bytes: u32,
    tail: Cell<u16>,
    /// How many guards point into each buffer.
    guards: Box<[Cell<u32>]>,
    /// Free and not laid out, the one used last on top.
    spare: RefCell<Vec<u16>>,
    /// The kernel may write to so many.
    laid_out: Cell<u32>,
    /// So many are to be laid out, if there are.
    working_set: Cell<u32>,
    /// The fewest that were left when more were laid out, since the working set was last reviewed.
    fewest: Cell<u32>,
    layouts: Cell<u32>,
    held: Cell<u32>,
}

/// A range of bytes as they were received. Clones and [`range`](Received::range)s share the buffer, which goes
/// back to the kernel with the last of them: they are for passing on, not for keeping.
pub struct Received {
    buffers: Rc<Buffers>,
    start: u32,
    length: u32,
    id: u16,
}

impl Buffers {
    pub fn new(count: u16, bytes: u32) -> Result<Rc<Self>, RingError> {
        assert!(count.is_power_of_two() && count <= COUNT_MAX && bytes > 0, "settings are checked before");
        let buffers = Self {
            ring: Mapping::new(usize::from(count) * size_of::<RingEntry>())?,
            memory: Mapping::new(usize::from(count) * stride(bytes))?,
            mask: count - 1,
            bytes,
            tail: Cell::new(0),
            guards: vec![Cell::new(0); usize::from(count)].into_boxed_slice(),
            spare: RefCell::new((0..count).rev().collect()),
            laid_out: Cell::new(0),
            working_set: Cell::new(WORKING_SET_MIN.min(u32::from(count))),
            fewest: Cell::new(u32::MAX),
            layouts: Cell::new(0),
            held: Cell::new(0),
        };
        buffers.lay_out();
        Ok(Rc::new(buffers))
    }

    /// Where the kernel finds the ring of free buffers.
    pub fn ring_address(&self) -> u64 {
        self.ring.start.as_ptr() as u64
    }

    pub fn count(&self) -> u16 {
        self.guards.len() as u16
    }

    pub fn free(&self) -> u32 {
        u32::from(self.count()) - self.held.get()
    }

    /// Buffers that the kernel may write to.
    pub fn laid_out(&self) -> u32 {
        self.laid_out.get()
    }

    /// Bytes per buffer.
    pub fn size(&self) -> u32 {
        self.bytes
    }

    /// Fewer than half are free: nobody may hold on to one.
    pub fn are_scarce(&self) -> bool {
        self.free() * 2 < u32::from(self.count())
    }

    /// Lays out what the kernel may need until the next turn.
    pub fn lay_out(&self) {
        let left = self.laid_out.get();
        self.review(left);
        let mut spare = self.spare.borrow_mut();
        let lacking = self.working_set.get().saturating_sub(left) as usize;
        let keep = spare.len().saturating_sub(lacking);
        if keep == spare.len() {
            return;
        }
        for id in spare.drain(keep..).rev() {
            self.lay(id);
        }
        drop(spare);
        // SAFETY: the last two bytes of entry 0 are the tail, aligned, and shared with the kernel as an atomic.
        let shared_tail =
            unsafe { AtomicU16::from_ptr(self.ring.start.byte_add(TAIL_OFFSET).as_ptr().cast()) };
        shared_tail.store(self.tail.get(), Ordering::Release);
        self.check();
    }

    /// The working set doubles when the kernel found nothing laid out, and halves when it lately left more than half.
    fn review(&self, left: u32) {
        self.fewest.set(self.fewest.get().min(left));
        self.layouts.set(self.layouts.get() + 1);
        let working_set = self.working_set.get();
        if left == 0 && self.layouts.get() > 1 {
            self.working_set.set((working_set * 2).min(u32::from(self.count())));
        } else if self.layouts.get() < REVIEW_LAYOUTS {
            return;
        } else if self.fewest.get() > working_set / 2 {
            self.working_set.set((working_set / 2).max(WORKING_SET_MIN.min(u32::from(self.count()))));
        }
        self.layouts.set(1);
        self.fewest.set(u32::MAX);
    }

    /// The kernel filled buffer `id`.
    pub fn take(self: &Rc<Self>, id: u16, length: u32) -> Received {
        let guards = &self.guards[usize::from(id)];
        assert!(guards.get() == 0 && length <= self.bytes, "the kernel filled a buffer that is not its own");
        guards.set(1);
        self.laid_out.set(self.laid_out.get() - 1);
        self.held.set(self.held.get() + 1);
        self.check();
        Received { buffers: Rc::clone(self), start: 0, length, id }
    }

    fn release(&self, id: u16) {
        let guards = &self.guards[usize::from(id)];
        guards.set(guards.get() - 1);
        if guards.get() == 0 {
            self.spare.borrow_mut().push(id);
            self.held.set(self.held.get() - 1);
        }
    }

    fn lay(&self, id: u16) {
        let tail = self.tail.get();
        // SAFETY: the masked index is below the number of entries, and the kernel does not read an entry before
        // the tail has passed it. The reserved bytes, in entry 0 the tail, are left alone.
        unsafe {
            let entry = self.ring.start.cast::<RingEntry>().as_ptr().add(usize::from(tail & self.mask));
            (&raw mut (*entry).address).write(self.address(id) as u64);
            (&raw mut (*entry).length).write(self.bytes);
            (&raw mut (*entry).id).write(id);
        }
        self.tail.set(tail.wrapping_add(1));
        self.laid_out.set(self.laid_out.get() + 1);
    }

    fn check(&self) {
        let spare = self.spare.borrow().len() as u32;
        assert!(
            spare + self.laid_out.get() + self.held.get() == u32::from(self.count()),
            "a receive buffer was lost or doubled"
        );
    }

    fn address(&self, id: u16) -> *mut u8 {
        // SAFETY: ids are below the count, so that the address is inside the mapping.
        unsafe { self.memory.start.as_ptr().add(usize::from(id) * stride(self.bytes)) }
    }
}

impl Received {
    /// A part of it, sharing the buffer.
    ///
    /// # Panics
    ///
    /// If the range is not within it.
    #[must_use]
    pub fn range(&self, range: Range<u32>) -> Received {
        assert!(range.start <= range.end && range.end <= self.length, "a range beyond the bytes received");
        let mut part = self.clone();
        part.start += range.start;
        part.length = range.end - range.start;
        part
    }

    /// Forgets the first `count` bytes.
    pub(super) fn advance(&mut self, count: u32) {
        assert!(count <= self.length);
        self.start += count;
        self.length -= count;
    }
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the kernel does not touch a held buffer, nobody else writes to it, and the range is within it.
        unsafe {
            let start = self.buffers.address(self.id).add(self.start as usize);
            std::slice::from_raw_parts(start, self.length as usize)
        }
    }
}

impl Clone for Received {
    fn clone(&self) -> Self {
        let guards = &self.buffers.guards[usize::from(self.id)];
        guards.set(guards.get() + 1);
        Self { buffers: Rc::clone(&self.buffers), ..*self }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.buffers.release(self.id);
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Received({} bytes of buffer {})", self.length, self.id)
    }
}

/// Zeroed anonymous memory.
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn new(length: usize) -> Result<Self, RingError> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { start, length }),
            _ => Err(RingError::System("mmap of the receive buffers", std::io::Error::last_os_error())),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and whoever points into it keeps it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// `struct io_uring_buf`; the kernel's ring of buffers is an array of them.
#[repr(C)]
struct RingEntry {
    address: u64,
    length: u32,
    id: u16,
    /// In entry 0 this is the ring's tail.
    reserved: u16,
}

/// Buffers that all started at the same place in their page would compete for the same few cache lines.
fn stride(bytes: u32) -> usize {
    (bytes as usize).next_multiple_of(CACHE_LINE) + CACHE_COLOUR
}

const CACHE_LINE: usize = 64;
/// An odd number of lines, so that starts spread over all sets of the cache; three, for most messages fit in them.
const CACHE_COLOUR: usize = 3 * CACHE_LINE;

/// Buffers laid out at least: 1 MiB of the default size, which stays in a core's own cache beside everything else.
const WORKING_SET_MIN: u32 = 32;

/// How many turns a working set is too large before it shrinks.
const REVIEW_LAYOUTS: u32 = 1024;

/// Where `struct io_uring_buf_ring` has its tail.
const TAIL_OFFSET: usize = std::mem::offset_of!(RingEntry, reserved);

/// The kernel's own limit on a ring of buffers.
pub(super) const COUNT_MAX: u16 = 1 << 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_goes_back_with_its_last_guard() {
        let buffers = Buffers::new(4, 100).unwrap();
        let whole = buffers.take(2, 10);
        assert_eq!(buffers.free(), 3);
        let mut part = whole.range(3..9);
        drop(whole);
        assert_eq!((part.len(), buffers.free()), (6, 3));
        part.advance(4);
        assert_eq!(part.range(0..2).len(), 2);
        drop(part);
        assert_eq!(buffers.free(), 4);
    }

    #[test]
    fn the_working_set_follows_what_a_turn_uses() {
        let buffers = Buffers::new(256, 100).unwrap();
        assert_eq!((buffers.laid_out(), buffers.free()), (WORKING_SET_MIN, 256));
        // The kernel takes those laid out in turn: the lowest numbers first.
        let taken: Vec<Received> = (0..32).map(|id| buffers.take(id, 1)).collect();
        buffers.lay_out();
        assert_eq!((buffers.laid_out(), buffers.free()), (64, 224));
        drop(taken);
        // Each turn uses one: far less than half, until the review that follows so many turns.
        for _ in 1..REVIEW_LAYOUTS {
            assert_eq!(buffers.working_set.get(), 64);
            drop(buffers.take(32, 1));
            buffers.lay_out();
        }
        assert_eq!(buffers.working_set.get(), WORKING_SET_MIN);
        assert_eq!((buffers.laid_out(), buffers.free()), (63, 256));
    }

    #[test]
    #[should_panic(expected = "beyond the bytes received")]
    fn a_range_stays_within_what_arrived() {
        let buffers = Buffers::new(4, 100).unwrap();
        let _ = buffers.take(0, 10).range(3..11);
    }
}
