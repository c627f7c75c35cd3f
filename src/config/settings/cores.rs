//! The settings of cores.toml.

use super::Setting;
use crate::config::Shard;
use crate::config::values::Cpu;

type OfCore = Setting<CoreSection>;

/// `[default]` and `[[core]]` of cores.toml.
pub(in crate::config) const CORE: &[OfCore] = &[
    OfCore::new("cpu", "", "2", |c| &mut c.cpu, "the CPU this shard is pinned to"),
    OfCore::new(
        "sq_entries",
        "1024",
        "submissions",
        |c| &mut c.shard.sq_entries,
        "submissions that fit in one turn",
    )
    .within(1, SQ_ENTRIES_MAX),
    OfCore::new(
        "cq_entries",
        "8192",
        "completions",
        |c| &mut c.shard.cq_entries,
        "completions that fit until they are reaped",
    )
    .within(CQ_ENTRIES_MIN, CQ_ENTRIES_MAX),
    OfCore::new(
        "recv_buffers",
        "256",
        "buffers",
        |c| &mut c.shard.recv_buffers,
        "buffers that data is received into",
    )
    .within(1, RECV_BUFFERS_MAX),
    OfCore::new(
        "recv_buffer_bytes",
        "32768",
        "bytes",
        |c| &mut c.shard.recv_buffer_bytes,
        "size of each of them",
    )
    .within(1024, RECV_BUFFER_BYTES_MAX),
    OfCore::new(
        "busy_poll_us",
        "0",
        "microseconds",
        |c| &mut c.shard.busy_poll_us,
        "how long to spin before blocking",
    )
    .within(0, BUSY_POLL_US_MAX),
];

/// The keys of cores.toml outside its tables.
pub(in crate::config) const CORES: &[Setting<Vec<usize>>] = &[Setting::new(
    "housekeeping",
    "[]",
    "CPUs",
    |housekeeping| housekeeping,
    "CPUs for the threads of control; none for wherever the kernel likes",
)];

/// A block of cores.toml before its CPU is checked.
pub(in crate::config) struct CoreSection {
    pub cpu: Cpu,
    pub shard: Shard,
}

/// `IORING_MAX_ENTRIES`.
const SQ_ENTRIES_MAX: u64 = 32_768;

/// The ring takes no less: the completion queue is to be twice the submission queue, which has one entry at least.
const CQ_ENTRIES_MIN: u64 = 2;

/// `IORING_MAX_CQ_ENTRIES`.
const CQ_ENTRIES_MAX: u64 = 2 * SQ_ENTRIES_MAX;

/// The kernel's bound of a provided buffer ring.
const RECV_BUFFERS_MAX: u64 = 32_768;

/// 1 MiB: a larger message takes several buffers anyway.
const RECV_BUFFER_BYTES_MAX: u64 = 1 << 20;

/// A second: whoever spins longer wants `busy` cores, not polling.
const BUSY_POLL_US_MAX: u64 = 1_000_000;
