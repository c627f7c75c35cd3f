//! Bytes to messages and back: framing, startup packets, the messages we make or read ourselves, SQLSTATEs.
//!
//! Pure, and blind to what a message means for a session. Layout of every message after startup (PostgreSQL
//! documentation, "Frontend/Backend Protocol", Message Formats); integers are big-endian:
//!
//! ```text
//!   0      1                    5
//!   +------+--------------------+----------------------
//!   | tag  | length (with self) | body: length - 4 bytes
//!   +------+--------------------+----------------------
//! ```
//!
//! A startup packet has the same shape without the tag.

pub mod backend;
pub mod error;
pub mod frame;
pub mod frontend;
pub mod startup;

pub use error::{Refusal, SqlState};
pub use frame::{FrameError, Framer, Kept, Segment};
