//! What shards and a ledger write to each other.

use super::Permit;
use super::policy::Levels;
use crate::ids::{RouteName, ShardId};
use crate::time::Instant;
use std::sync::Arc;
use std::time::Duration;

/// From a shard to the ledger of an endpoint.
#[derive(Debug)]
pub enum Request {
    /// How it is with the routes that changed. At most one of these is unanswered; the answer is [`Order::Seen`].
    Levels(Vec<Level>),
    /// A dial that a grant allowed came to a connection that is logged in.
    Opened {
        /// For this route.
        route: RouteName,
        /// Dialling and logging in took this long.
        took: Duration,
    },
    /// A dial that a grant allowed came to nothing. Its permit follows when nothing is left of it.
    Failed {
        /// For this route.
        route: RouteName,
        /// And why.
        failure: Failure,
    },
    /// A connection is gone on both sides, or a grant was not needed.
    Returned {
        /// Of this route.
        route: RouteName,
        /// What it was allowed by.
        permit: Permit,
        /// And why.
        reason: Reason,
    },
    /// A connection leaves for another shard, as it was recalled to. Written before it leaves.
    Moved {
        /// Of this route.
        route: RouteName,
        /// To this shard.
        to: ShardId,
    },
    /// A recall will not be paid: there is no connection left that could, or it was [taken back](Order::Keep).
    Void {
        /// Of this route.
        route: RouteName,
        /// As it was recalled.
        to: Destination,
    },
    /// The [`Order::Status`] was read, and the levels that it asks for are on their way.
    Noted,
}

/// How it is with a route on a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// This route.
    pub route: RouteName,
    /// Clients for whom no connection is being opened: as many as there were at once of late.
    pub wanting: u32,
    /// Since when the first of them waits.
    pub since: Instant,
    /// Clients at work or waiting, if the endpoint is tight: as many as there were at once of late.
    pub busy: u32,
    /// Clients that have waited for longer than a connection should rest elsewhere meanwhile, if the endpoint is tight.
    pub overdue: u32,
    /// Connections at rest, if the endpoint is tight: as many as there were at once of late.
    pub idle: u32,
    /// Since when there has always been one, if that is for longer than a transaction is short.
    pub idle_since: Instant,
    /// No client of the route is connected here, and the last one had not come for a moment only; if the endpoint is tight.
    pub deserted: bool,
    /// Connections that their clients keep for more than a transaction, if the endpoint is tight.
    pub pinned: u32,
    /// Grants and connections that have come since the last level of this route.
    pub received: u32,
}

/// From a ledger to a shard.
#[derive(Debug)]
pub enum Order {
    /// Open a connection, or return the permit.
    Grant {
        /// For this route.
        route: RouteName,
        /// With this.
        permit: Permit,
    },
    /// Give up a connection.
    Recall {
        /// Of this route.
        route: RouteName,
        /// What to do with it.
        to: Destination,
        /// And which.
        due: Due,
    },
    /// Forget such a recall if it is not paid yet; it is then [void](Request::Void).
    Keep {
        /// Of this route.
        route: RouteName,
        /// As it was recalled.
        to: Destination,
    },
    /// The [`Request::Levels`] was read. The emptied list comes back to be filled again.
    Seen(Vec<Level>),
    /// How it is with the endpoint. At most one of these is unanswered; the answer is [`Request::Noted`].
    Status(Status),
}

/// How it is with an endpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Clients wait and no permit is free: tell of connections at rest.
    pub tight: bool,
    /// Why connections cannot be opened, if they cannot.
    pub trouble: Option<Arc<str>>,
    /// What routes can insist on, as it was when the weights of those that use the endpoint last changed by a quarter.
    pub levels: Levels,
}

/// Which connection pays a recall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// One at rest; if there is none, the recall is [void](Request::Void).
    Now,
    /// One at rest, or else the next that comes to rest.
    Next,
    /// The same, once no client here has waited since before this.
    Behind(Instant),
}

/// What becomes of a recalled connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// It is closed; its permit goes back to the ledger.
    Close,
    /// It goes to this shard, and its permit with it.
    Shard(ShardId),
}

/// Why a permit comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Whoever it was meant for found something else, or left.
    Unused,
    /// The connection ended.
    Closed,
    /// The connection was closed because it was recalled.
    Recalled,
}

/// Why a dial came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server is not there, does not answer, or is not ready.
    Unreachable(Arc<str>),
    /// The server has no room for another connection (SQLSTATE 53300).
    Overloaded(Arc<str>),
    /// The server does not want this route (SQLSTATE class 28, or 3D000): nothing is wrong with the endpoint.
    Refused,
}

/// How many letters about endpoints with these limits a shard's mailbox can hold at most, connections that move
/// included.
///
/// For each endpoint, with P permits and S shards, the letters of one mailbox that nobody has read yet are:
///
/// | to the ledger | at most | because |
/// |---|---|---|
/// | Levels, Noted | 2 S | one of each per shard is unanswered |
/// | Returned | P | each carries a permit |
/// | Moved, Void | 2 P | each answers a recall, of which the ledger leaves P to close and P to move unanswered |
/// | Opened, Failed | [`DIALS_MAX`](crate::limits::DIALS_MAX) | each answers a grant that the governor counts |
///
/// | to the shard | at most | because |
/// |---|---|---|
/// | Grant | P | each carries a permit |
/// | Recall | 2 P | as above |
/// | Keep | 8 P | each recall is taken back twice at most, and 2 P may be answered already |
/// | Seen, Status | 2 | as Levels and Noted |
/// | a connection | P | each carries a permit |
///
/// A permit is in one letter at a time, so that P covers all the letters that carry one. P is the highest limit there was:
/// more than a lowered one may be held, and recalled, for a while.
pub fn letters_max(limits: impl IntoIterator<Item = usize>, shards: usize) -> usize {
    limits.into_iter().map(|permits| 13 * permits + 2 * shards + 2 + crate::limits::DIALS_MAX as usize).sum()
}
