//! The ledger and the shards' shares of it, in virtual time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]

mod exhaustive;
mod fairness;
mod letters;
mod quotas;
mod random_worlds;
mod regressions;
mod world;
