//! pgpinion: a thread-per-core io_uring connection pooler for PostgreSQL.

pub mod ids;
pub mod time;
