//! The glommio executor of a shard, made as small as it goes: it runs tasks, and does no I/O.

use std::future::Future;
use std::time::Duration;

use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};

use super::error::{RingError, check_io_uring, check_kernel, check_locked_memory};

/// Runs a shard on this thread, pinned to `cpu` if there is one, until the future of `main` ends.
///
/// # Errors
///
/// What keeps the executor from being made, and what to do about it.
pub fn run_shard<F: Future>(cpu: Option<usize>, main: impl FnOnce() -> F) -> Result<F::Output, RingError> {
    // Before glommio makes its own rings, for it panics where it cannot.
    check_kernel()?;
    check_locked_memory()?;
    check_io_uring()?;
    let placement = cpu.map_or(Placement::Unbound, Placement::Fixed);
    let executor = LocalExecutorBuilder::new(placement)
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(RING_DEPTH)
        .preempt_timer(PREEMPT_TIMER)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .make()
        .map_err(|error| RingError::Executor(error.to_string()))?;
    Ok(executor.run(async move { main().await }))
}

/// The least that glommio registers with each of its rings.
const IO_MEMORY_BYTES: usize = 64 * 1024;

/// Entries of each of glommio's three rings, of which only its own timers and its eventfd make use.
const RING_DEPTH: usize = 16;

/// It would end the sleep in our ring; and the only task that must not run for long is the driver's.
const PREEMPT_TIMER: Duration = Duration::from_secs(365 * 24 * 3600);
