//! The io_uring instance itself: entries in, completions out, one system call between them.
//!
//! Knows neither sockets nor buffers. The system call is made here and not by the io-uring crate, because the
//! crate remembers a registered ring descriptor in a value that borrows the ring.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{IoUring, cqueue, squeue};

use super::RingSettings;
use super::error::RingError;

/// A ring, bound to the thread that made it.
pub(super) struct Kernel {
    uring: IoUring,
    /// Index of the registered ring descriptor, which saves the lookup of the descriptor in each call.
    registered: Option<u32>,
    /// Entries for which the submission queue had no room, in order.
    overflow: VecDeque<squeue::Entry>,
    pub enters: u64,
    pub completions: u64,
}

/// How long to stay in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Submit, collect what is there, return.
    No,
    /// Until a completion arrives.
    Forever,
    /// Until a completion arrives, or so long.
    For(Duration),
}

impl Kernel {
    pub fn new(settings: &RingSettings) -> Result<Self, RingError> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun().setup_submit_all();
        builder.setup_cqsize(settings.cq_entries).dontfork();
        if !settings.busy_poll.is_zero() {
            // What a busy poll looks at: without an enter, deferred work shows nowhere else.
            builder.setup_taskrun_flag();
        }
        let uring =
            builder.build(settings.sq_entries).map_err(|e| RingError::of_setup("io_uring_setup", e))?;
        let registered = register_descriptor(uring.as_raw_fd());
        Ok(Self { uring, registered, overflow: VecDeque::new(), enters: 0, completions: 0 })
    }

    /// Gives the kernel `entries` at `address` as its ring of receive buffers, under group 0.
    ///
    /// # Safety
    ///
    /// The memory stays mapped for as long as the ring lives.
    pub unsafe fn register_buffers(&self, address: u64, entries: u16) -> Result<(), RingError> {
        // SAFETY: passed on to the caller.
        unsafe { self.uring.submitter().register_buf_ring_with_flags(address, entries, BUFFER_GROUP, 0) }
            .map_err(|e| RingError::of_setup("io_uring_register (buffer ring)", e))
    }

    /// Queues an entry. A full submission queue is submitted; what the kernel then refuses waits here.
    ///
    /// # Safety
    ///
    /// What the entry points to stays as it is until its completion.
    pub unsafe fn push(&mut self, entry: squeue::Entry) {
        if self.overflow.is_empty() {
            // SAFETY: passed on to the caller.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            // An error comes again with the turn's own call, which reports it.
            let _ = self.enter(Wait::No);
        }
        self.overflow.push_back(entry);
        self.refill();
    }

    /// Submits everything queued and waits for at least one completion as `wait` says.
    pub fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.refill();
        while !self.overflow.is_empty() {
            let before = self.overflow.len();
            self.system_call(Wait::No)?;
            self.refill();
            if self.overflow.len() == before {
                // The kernel takes nothing until completions are reaped.
                return Ok(());
            }
        }
        self.system_call(wait)
    }

    pub fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Whether the kernel has work for us that only an enter brings: deferred work, overflown completions.
    pub fn has_deferred(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Everything pushed was submitted, and every completion is where it can be taken.
    pub fn is_through(&mut self) -> bool {
        let queue = self.uring.submission();
        self.overflow.is_empty() && queue.is_empty() && !queue.cq_overflow()
    }

    pub fn next(&mut self) -> Option<cqueue::Entry> {
        let completion = self.uring.completion().next()?;
        self.completions += 1;
        Some(completion)
    }

    fn refill(&mut self) {
        if self.overflow.is_empty() {
            return;
        }
        let mut queue = self.uring.submission();
        while let Some(entry) = self.overflow.front() {
            // SAFETY: the promise made to `push` holds until the entry completes.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.overflow.pop_front();
        }
    }

    fn system_call(&mut self, wait: Wait) -> io::Result<()> {
        let to_submit = self.uring.submission().len();
        let (fd, mut flags) = match self.registered {
            Some(index) => (index as i32, ENTER_GETEVENTS | ENTER_REGISTERED_RING),
            None => (self.uring.as_raw_fd(), ENTER_GETEVENTS),
        };
        let time;
        let mut argument = EventsArgument { sigmask: 0, sigmask_size: 0, min_wait_usec: 0, time: 0 };
        let mut argument_size = 0;
        if let Wait::For(duration) = wait {
            time = KernelTimespec {
                seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
                nanos: i64::from(duration.subsec_nanos()),
            };
            argument.time = &raw const time as u64;
            argument_size = size_of::<EventsArgument>();
            flags |= ENTER_EXT_ARG;
        }
        let argument_pointer = if argument_size == 0 { std::ptr::null() } else { &raw const argument };
        let min_complete = u32::from(wait != Wait::No);
        self.enters += 1;
        // SAFETY: `argument` and `time` live across the call, and the entries' own promises were made to `push`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                fd,
                to_submit as u32,
                min_complete,
                flags,
                argument_pointer,
                argument_size,
            )
        };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // The time is over; a signal came; the kernel wants its completions reaped, or is short of memory
            // for the moment. The entries it did not take are still queued.
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        }
    }
}

impl Drop for Kernel {
    /// A registered descriptor would keep the ring alive until the thread ends.
    fn drop(&mut self) {
        if let Some(index) = self.registered {
            let update = ResourceUpdate { offset: index, reserved: 0, data: 0 };
            // SAFETY: the kernel reads one update, and `update` is one.
            unsafe {
                libc::syscall(
                    libc::SYS_io_uring_register,
                    self.uring.as_raw_fd(),
                    UNREGISTER_RING_FDS,
                    &raw const update,
                    1,
                )
            };
        }
    }
}

/// The index of the registered descriptor; `None` if the kernel has no slot left for it.
fn register_descriptor(fd: i32) -> Option<u32> {
    let mut update = ResourceUpdate { offset: u32::MAX, reserved: 0, data: fd as u64 };
    // SAFETY: the kernel reads and writes one update, and `update` is one.
    let result =
        unsafe { libc::syscall(libc::SYS_io_uring_register, fd, REGISTER_RING_FDS, &raw mut update, 1) };
    (result == 1).then_some(update.offset)
}

/// `struct io_uring_getevents_arg`
#[repr(C)]
struct EventsArgument {
    sigmask: u64,
    sigmask_size: u32,
    min_wait_usec: u32,
    time: u64,
}

/// `struct __kernel_timespec`
#[repr(C)]
struct KernelTimespec {
    seconds: i64,
    nanos: i64,
}

/// `struct io_uring_rsrc_update`
#[repr(C)]
struct ResourceUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// The one group of provided buffers.
pub(super) const BUFFER_GROUP: u16 = 0;

// From linux/io_uring.h.
const ENTER_GETEVENTS: u32 = 1 << 0;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_REGISTERED_RING: u32 = 1 << 4;
const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;
