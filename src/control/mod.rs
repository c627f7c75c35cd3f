//! The control plane: ordinary threads and ordinary libraries, for what no query waits for.
//!
//! Knows the machine and its slow corners: signals, name resolution, the log, limits, CPU-heavy jobs. Knows no client
//! byte, and no shard ever waits for it: whatever is asked here is asked by mail with a bound, and answered by calling
//! back. The engine starts it before the shards and stops it after them.

pub mod affinity;
pub mod crypto;
pub mod limits;
pub mod log;
mod log_format;
pub mod resolve;
pub mod signals;
