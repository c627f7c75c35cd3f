//! Names of things that live for a while: sockets, connections, sessions.
//!
//! Slots are reused; a key carries the generation of its slot, so that a key that outlived its thing finds
//! nothing instead of a stranger.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// A pinned core's number, counted from 0 in the order of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// A socket of one shard's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketId {
    /// Index into the ring's table of sockets.
    pub slot: u32,
    /// Changes each time the slot is given to another socket.
    pub generation: u32,
}

/// What a socket's events concern, in the words of whoever opened it. The ring only hands it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

/// A client's session: from accept to close. Unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(u64);

/// A server connection's life: from dial to close. Unique in the process; keeps its value when the connection
/// moves to another shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64);

/// A route as its clients name it. Means the same on every shard, as a shard's own key does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteName {
    /// Index of the database's section in the configuration.
    pub section: usize,
    /// The database, as clients ask for it.
    pub database: Arc<str>,
    /// The user, as clients say it.
    pub user: Arc<str>,
    /// Of a client whose server is for nobody else (a replication connection): its session. It is a route of its own.
    pub session: Option<SessionId>,
}

/// Where a client comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An address.
    Tcp(SocketAddr),
    /// A local process.
    Unix,
}

/// Gives out the ids of one shard, without asking any other.
#[derive(Debug)]
pub struct IdSource {
    shard: ShardId,
    next: u64,
}

impl IdSource {
    /// The source of ids that start with the shard's number.
    pub fn new(shard: ShardId) -> Self {
        Self { shard, next: 1 }
    }

    /// The next client's session id.
    pub fn session(&mut self) -> SessionId {
        SessionId(self.take())
    }

    /// The next server connection's id.
    pub fn connection(&mut self) -> ConnectionId {
        ConnectionId(self.take())
    }

    fn take(&mut self) -> u64 {
        let id = u64::from(self.shard.0) << COUNTER_BITS | self.next;
        self.next += 1;
        assert!(self.next < 1 << COUNTER_BITS, "a shard ran out of ids");
        id
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.database, self.user)?;
        match self.session {
            Some(session) => write!(f, " (replication, session {session})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix => f.write_str("unix"),
        }
    }
}

impl SessionId {
    /// As a number.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The shard that accepted the client. It may have moved since.
    pub fn origin(self) -> ShardId {
        ShardId((self.0 >> COUNTER_BITS) as u16)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self.0, f)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self.0, f)
    }
}

fn show(id: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{}.{}", id >> COUNTER_BITS, id & ((1 << COUNTER_BITS) - 1))
}

/// 2^48 ids: a million connections a second for nine years.
const COUNTER_BITS: u32 = 48;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_their_shard() {
        let mut ids = IdSource::new(ShardId(3));
        let session = ids.session();
        assert_eq!((session.to_string().as_str(), session.origin()), ("3.1", ShardId(3)));
        assert_eq!(ids.connection().to_string(), "3.2");
    }
}
