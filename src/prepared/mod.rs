//! Named prepared statements of clients that change servers.
//!
//! In transaction and statement pooling the server that got a client's Parse is not the one that gets its next Bind.
//! So a client's statements are remembered ([`Names`]), and prepared on the server it is linked to when they are used,
//! at most once there ([`Cache`]), under a name made of their text ([`Fingerprint`]). Pure: bytes of messages in,
//! bytes for the server out.
//!
//! **The server keeps the order.** Whatever the client sends, one message goes to the server in its place, and some of
//! ours may go before it. Nothing is answered from here:
//!
//! ```text
//! client                 to the server                          to the client
//! Parse, not there       [Close] Parse as fingerprint           ParseComplete
//! Parse, there already   Close of nothing                       ParseComplete, for its CloseComplete
//! Parse of a used name   [Close] [Parse as x] Parse as x         42P05
//! Bind, Describe         the same with the fingerprint          what it says
//!   ... not there        [Close] [Parse] and then that          what it says
//! Bind to unknown name   the same untouched                     26000
//! Close                  Close of nothing                       CloseComplete
//! the first Bind, Describe without a name   [Parse without a name, or Close] and that   what it says
//! DEALLOCATE in a Query  [Close] [Parse as x] DEALLOCATE x      what it says
//! more than a client may Bind to nothing                        54000, for its 26000
//! what leak_policy refuses: Parse, Bind  Bind to nothing        0A000, for its 26000
//!   ... Query, FunctionCall              Query of no SQL        0A000, for its 42601
//! [..]: ours, its answer is swallowed
//! ```
//!
//! Thus answers and errors come in the order of PostgreSQL, and what it skips after an error it skips with our messages.
//! What became of each message is learned from the account of answers ([`crate::server::Owed`]), which tells when a noted
//! message is answered or struck: only then is a statement known to be prepared, and a name to be defined.
//!
//! A Parse of ours always has a Close of the same name before it, which is no error when there is nothing to close. So
//! it never matters if the server has a statement that we do not know of. The other way round (a function deallocated
//! it) costs one error, 26000, and the statement is prepared again.
//!
//! What a message means may depend on one that is in flight: on whether a Parse of the same name succeeded, or on what
//! a simple query did. Within a group up to a Sync it does not, because after an error all of it is skipped. Beyond it
//! the client has to wait ([`Verdict::Stalled`]).

mod cache;
mod deallocate;
mod names;
mod notes;
mod rewrite;
mod statements;
mod unnamed;
mod watch;

pub use cache::Cache;
pub use names::Names;
pub use notes::{Edit, OnServer, Show};
pub use rewrite::{Exchange, Verdict};
pub use statements::{Fingerprint, Statement, Statements};
pub use unnamed::Unnamed;
pub use watch::Watch;
