//! How other threads wake a shard.
//!
//! One atomic says whether the shard is awake, asleep, or was rung. Only the ringer who finds it asleep makes
//! a system call. All changes are swaps of the same atomic, so that they are in one order, and a ring is
//! either seen by the shard before it sleeps, or sees that it sleeps.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Wakes the turn of a shard's ring from any thread.
#[derive(Clone, Debug)]
pub struct Doorbell(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: AtomicU8,
    /// An eventfd; the ring polls it.
    bell: File,
}

impl Doorbell {
    /// A bell for a ring that is still to be [made](super::Ring::with_doorbell).
    ///
    /// # Errors
    ///
    /// Those of `eventfd(2)`.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a plain system call without pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and has no other owner.
        let bell = unsafe { File::from_raw_fd(fd) };
        Ok(Self(Arc::new(Shared { state: AtomicU8::new(AWAKE), bell })))
    }

    /// Ends the shard's sleep, or prevents its next. What was written before is seen by whoever the
    /// shard's [`Event::Doorbell`](super::Event::Doorbell) reaches. True if the shard slept: waking it took a system call.
    pub fn ring(&self) -> bool {
        let asleep = self.0.state.swap(RUNG, Ordering::SeqCst) == ASLEEP;
        if asleep {
            // The write cannot block, and fails only when the counter is full: the shard then has its wake-up.
            let _ = (&self.0.bell).write(&1u64.to_ne_bytes());
        }
        asleep
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.0.bell.as_raw_fd()
    }

    /// Whether somebody rang and it was not answered yet.
    pub(super) fn is_rung(&self) -> bool {
        self.0.state.load(Ordering::Relaxed) == RUNG
    }

    /// From now on a ring writes to the eventfd. False, and nothing changed, if it rang already.
    pub(super) fn fall_asleep(&self) -> bool {
        self.0.state.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Back to work. Whether it rang since the last time.
    pub(super) fn answer(&self) -> bool {
        self.0.state.load(Ordering::Relaxed) != AWAKE && self.0.state.swap(AWAKE, Ordering::SeqCst) == RUNG
    }
}

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const RUNG: u8 = 2;
