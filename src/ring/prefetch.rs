//! Asking for memory before it is needed.

use std::ops::Range;

/// Asks the processor for these lines of memory; it goes on at once. Between two turns of a shard the kernel, PostgreSQL and others
/// use the same caches, so that each entry that an event concerns is far away when its turn comes.
#[inline]
pub fn prefetch(memory: Range<*const u8>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let mut line = memory.start;
        while line < memory.end {
            // SAFETY: a hint: it neither reads nor faults, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
            line = line.wrapping_add(LINE_BYTES);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = memory;
}

/// Of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;
