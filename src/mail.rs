//! What one shard writes to another: the letters, and how many can be under way.
//!
//! Only words. A shard that wants a letter sent says so in an effect; who carries it is the engine's business (or the
//! simulator's). Mail is one-way: nobody waits for an answer, a reply is another letter. Between two shards letters
//! arrive in the order of their sending, and so they do over all who write to one shard.
//!
//! A letter that moves a connection carries it as a `C`: nothing yet where the shard writes it, a descriptor between
//! two engines, a socket where the other shard reads it.

use crate::ids::{ConnectionId, Peer, RouteName, SessionId};
use crate::ledger::{Order, Permit, Request};
use crate::limits::CANCELS_ABROAD_MAX;
use crate::metrics::ShardReport;
use crate::parameters::Values;
use crate::prepared::Cache;
use crate::server::Parameters;
use crate::time::Instant;
use bytes::Bytes;
use std::sync::Arc;

/// One shard to another.
#[derive(Debug)]
pub enum Letter<C> {
    /// A server connection at rest, with all that is known of it: it is yours.
    Server(Box<MovedServer>, C),
    /// A client that has not been answered: go on as if it had come to you.
    Client(Box<MovedClient>, C),
    /// To the ledger of an endpoint, by its index in the configuration.
    ToLedger(Box<(usize, Request)>),
    /// From such a ledger.
    FromLedger(Box<(usize, Order)>),
    /// A server connection that was on its way to you has ended before it left: its permit is yours.
    Lost(Box<LostServer>),
    /// What servers of this route report: whoever logs in need not wait for a server of your own. A hint, which is not
    /// written to who has much to read.
    Parameters(Box<(RouteName, Arc<Parameters>)>),
    /// Somebody asks to cancel what a client of yours does.
    Cancel(Box<CancelOrder>),
    /// A cancel request of yours was dealt with: whoever [asked](CancelOrder::asker) need not wait any more.
    Cancelled(u64),
    /// Tell all about yourself. An inquiry is answered before the next one is written.
    Inquire,
    /// The answer to it.
    Report(Box<ShardReport>),
}

/// A CancelRequest, as it came.
#[derive(Debug)]
pub struct CancelOrder {
    /// Whose query is meant.
    pub process: u32,
    /// What is claimed to be its key, which proves the right to ask.
    pub claimed: Vec<u8>,
    /// Who asked, in the words of the shard that it lives on.
    pub asker: u64,
}

/// A server connection on its way: it owes nothing, is in no transaction, and was between two messages when it was
/// taken.
#[derive(Debug)]
pub struct MovedServer {
    /// Its name, which it keeps.
    pub id: ConnectionId,
    /// Whom it may serve.
    pub route: RouteName,
    /// Index of its endpoint in the configuration.
    pub endpoint: usize,
    /// The right to hold it.
    pub permit: Permit,
    /// When it was dialled.
    pub opened: Instant,
    /// When its `server_lifetime` is over.
    pub expires: Instant,
    /// When it has been idle for too long.
    pub idle_until: Instant,
    /// When it was known to be alive.
    pub proven: Instant,
    /// Whom it served last.
    pub last_session: Option<SessionId>,
    /// What it has prepared.
    pub prepared: Cache,
    /// What a cancel request needs.
    pub key: Option<(u32, Bytes)>,
    /// What its session's parameters are.
    pub values: Arc<Values>,
    /// What they were when it had logged in.
    pub defaults: Arc<Values>,
    /// What the servers of its route report.
    pub parameters: Option<Arc<Parameters>>,
    /// What arrived while it was being taken.
    pub unread: Vec<u8>,
}

/// What is left of a server connection that was to move.
#[derive(Debug)]
pub struct LostServer {
    /// Whom it would have served.
    pub route: RouteName,
    /// Index of its endpoint in the configuration.
    pub endpoint: usize,
    /// The right to hold it.
    pub permit: Permit,
}

/// A client on its way.
#[derive(Debug)]
pub struct MovedClient {
    /// Its session's name, which it keeps.
    pub session: SessionId,
    /// Where it comes from.
    pub peer: Peer,
    /// When it came.
    pub connected: Instant,
    /// What it has sent, from the beginning of its startup packet on.
    pub unread: Vec<u8>,
}

impl<C> Letter<C> {
    /// The connection that moves with it.
    pub fn connection(&self) -> Option<&C> {
        match self {
            Self::Server(_, connection) | Self::Client(_, connection) => Some(connection),
            Self::ToLedger(_)
            | Self::FromLedger(_)
            | Self::Lost(_)
            | Self::Parameters(_)
            | Self::Cancel(_)
            | Self::Cancelled(_)
            | Self::Inquire
            | Self::Report(_) => None,
        }
    }

    /// The same letter with its connection in another form.
    pub fn map<D>(self, change: impl FnOnce(C) -> D) -> Letter<D> {
        match self {
            Self::Server(server, connection) => Letter::Server(server, change(connection)),
            Self::Client(client, connection) => Letter::Client(client, change(connection)),
            Self::ToLedger(request) => Letter::ToLedger(request),
            Self::FromLedger(order) => Letter::FromLedger(order),
            Self::Lost(lost) => Letter::Lost(lost),
            Self::Parameters(parameters) => Letter::Parameters(parameters),
            Self::Cancel(order) => Letter::Cancel(order),
            Self::Cancelled(asker) => Letter::Cancelled(asker),
            Self::Inquire => Letter::Inquire,
            Self::Report(report) => Letter::Report(report),
        }
    }
}

/// Letters that can lie in one shard's inbox, term by term. More is a broken invariant. `limits` are those of the
/// endpoints.
///
/// - To and from ledgers, and servers that move: see [`ledger::letters_max`](crate::ledger::letters_max).
/// - Moved clients and hints: written only while fewer than [`STEERED_MAX`] letters lie there. All other shards may look
///   at the same moment, and then write one each.
/// - Cancel requests: each shard has at most [`CANCELS_ABROAD_MAX`] that are not answered, and so many answers.
/// - Inquiries and reports: one of each from every other shard.
pub fn letters_max(limits: impl IntoIterator<Item = usize>, shards: usize) -> usize {
    crate::ledger::letters_max(limits, shards)
        + STEERED_MAX
        + shards
        + 2 * CANCELS_ABROAD_MAX * shards
        + 2 * shards
}

/// Letters waiting for a shard from which on no clients are steered to it: they stay where they are. A shard empties its
/// inbox in each of its turns, so that even a storm of logins on another does not come near.
pub const STEERED_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_small_and_may_cross_threads() {
        fn crosses<T: Send>() {}
        crosses::<Letter<std::os::fd::OwnedFd>>();
        // An inbox is allocated for the most there can be.
        assert!(size_of::<Letter<std::os::fd::OwnedFd>>() <= 16);
    }
}
