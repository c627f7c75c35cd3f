//! The one place that reads the clock.

use crate::time::Instant;

/// The monotonic clock's time.
pub fn now() -> Instant {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, and `time` is one.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert!(result == 0, "CLOCK_MONOTONIC exists on every Linux");
    Instant::from_nanos(time.tv_sec.unsigned_abs() * NANOS_PER_SECOND + time.tv_nsec.unsigned_abs())
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;
