//! pgpinion: a thread-per-core io_uring connection pooler for PostgreSQL.

pub mod arguments;
pub mod config;
#[cfg(feature = "runtime")]
pub mod control;
#[cfg(feature = "runtime")]
pub mod engine;
pub mod fuzzing;
pub mod ids;
pub mod ledger;
pub mod limits;
pub mod log_line;
pub mod pool;
#[cfg(feature = "runtime")]
pub mod ring;
pub mod server;
pub mod session;
pub mod shard;
pub mod slab;
pub mod time;
pub mod wire;
