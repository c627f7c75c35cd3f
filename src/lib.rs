//! pgpinion: a thread-per-core io_uring connection pooler for PostgreSQL.
//!
//! # The map
//!
//! Imports go downwards only; `tests/architecture.rs` holds the table.
//!
//! ```text
//! arguments                     the command line, as values
//! ids time limits random slab log_line words
//! metrics                       numbers to be looked at: waits, routes, shards
//! wire                          bytes <-> messages: framing, startup, errors
//! config                        what the operator asked for, valid by construction
//! parameters                    values of sessions, and how a server gets its client's
//! guard                         what commands leave behind that does not follow their client
//! cancel_key                    where a client that may be cancelled lives
//! admin                         the console: commands and their answers
//! server session pool ledger    machines: what a server owes, what a client's bytes mean, who waits, permits
//! prepared                      named statements that follow a client from server to server
//! mail                          what one shard writes to another: moving connections, inquiries
//! shard                         the whole state of one core: events in, effects out
//! -- from here on there is a kernel --
//! ring                          io_uring: sockets, buffers, deadlines, doorbell, tasks. Knows no message
//! control                       threads beside the shards: log, signals, names, key derivation
//! engine                        a pinned core: ring and shard meet
//! ```
//!
//! # The way of a query
//!
//! `engine` gets `Received` from the `ring` and calls `Shard::received`. The client is idle: `session` says
//! that its bytes need a server, the `pool` gives the one used last, and `session` passes the bytes while
//! `server::Owed` enters each message. The effect is a send of the very buffer the bytes came in. The answer
//! comes as `Received` of the server: framed, held against the account, sent on to the client from the
//! buffer it came in. With the ReadyForQuery that settles the account the server goes back to the pool, or
//! to who waits, in the same step.
//!
//! # What always holds
//!
//! - A server is given to a client only when it owes nothing, nothing of it is unread, and no transaction is
//!   open.
//! - Server connections open or being opened never exceed `max_connections`: a permit comes back when
//!   PostgreSQL has closed its side.
//! - Bytes once sent to a server are never sent again, and nothing is committed that its client did not
//!   commit.
//! - A buffer belongs to the kernel or to the operation that reads it; a slot that is reused gets another
//!   generation.
//!
//! # Words
//!
//! client, server: the two kinds of connection we hold. shard: a pinned core and all it owns. endpoint: one
//! PostgreSQL server. route: (endpoint, database, user), what a pool is keyed by. permit: the right to hold
//! one server connection. link, release: give a server to a client, take it back. letter, inbox: what crosses
//! cores, and where it lies. hand-over: a live server connection goes to another shard. steering: a client
//! does, at login. session id, connection id: of a client's session and of a server connection's life, in every
//! line that concerns them.

pub mod admin;
pub mod arguments;
pub mod cancel_key;
pub mod config;
#[cfg(feature = "runtime")]
pub mod control;
#[cfg(feature = "runtime")]
pub mod engine;
pub mod fuzzing;
pub mod guard;
pub mod ids;
pub mod ledger;
pub mod limits;
pub mod log_line;
pub mod mail;
pub mod metrics;
pub mod parameters;
pub mod pool;
pub mod prepared;
pub mod random;
#[cfg(feature = "runtime")]
pub mod ring;
pub mod server;
pub mod session;
pub mod shard;
pub mod slab;
pub mod time;
pub mod wire;
