//! pgpinion against real PostgreSQL, hostile clients, dying servers and bad networks.
//!
//! `SEED=n` repeats a run's choices; `PGPINION_TEST_TARGET=direct` or `pgbouncer` runs what makes sense there;
//! `PGPINION_TEST_LONG=1` runs scenarios in their full length (`scale`). What was measured is printed (`--nocapture`).

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod cluster;
mod crowd;
mod drivers;
mod fake_server;
mod pipelines;
mod pooler;
mod process;
mod proxy;
mod random;
mod scale;
mod streams;
mod wire;

mod asynchronous;
mod cancel;
mod console;
mod copy;
mod copy_matrix;
mod crosstalk;
mod fairness;
mod faithful;
mod faults;
mod hostile;
mod isolation;
mod leaks;
mod lifecycle;
mod load;
mod login;
mod parameters;
mod pooling;
mod prepared;
mod pressure;
mod protocol;
mod reload;
mod replication;
mod settings;
mod statements;
