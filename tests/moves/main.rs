//! Connections that move between shards, step by step: idle servers handed over, clients steered at login, and what may
//! come in between. The very shards that run in production, without ring and kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]

mod cancel;
mod hand_over;
mod hot_path;
mod parameters;
mod protocol;
mod quota;
mod replication;
mod shards;
mod steering;
