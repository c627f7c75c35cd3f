//! What a shard wants done, and the little that it must be told.

use crate::ids::{Owner, ShardId, SocketId};
use crate::log_line::Line;
use crate::mail::Letter;
use crate::server::ScramWork;
use crate::shard::{Client, Server};
use crate::slab::Key;
use bytes::Bytes;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

/// Bytes for a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A range of the bytes of the event being handled: they need not be copied.
    Received(Range<usize>),
    /// Bytes of our own.
    Own(Bytes),
}

/// Something to be done, in order, before the next event is handled.
#[derive(Debug)]
pub enum Effect {
    /// Send this; [`super::Shard::sent`] tells of the progress.
    Send {
        /// To this socket.
        socket: SocketId,
        /// These bytes.
        piece: Piece,
    },
    /// Begin or stop to receive. Received bytes may still come after a stop.
    Receive {
        /// From this socket.
        socket: SocketId,
        /// Begin, or stop.
        on: bool,
    },
    /// Tell of what arrives once it is so many bytes, or the peer has ended. They will come: whoever asks for them has seen the
    /// length of the message that they belong to.
    LowWater {
        /// On this socket.
        socket: SocketId,
        /// So many; 1 for whatever arrives.
        bytes: u32,
    },
    /// End this connection; [`super::Shard::closed`] tells when its descriptor is gone.
    Close {
        /// This socket. Nothing more is received from it.
        socket: SocketId,
        /// Send what is queued, say that no more will come, and wait this long for the peer's end. `None`: at once.
        linger: Option<Duration>,
    },
    /// Take this connection out of the ring without closing it, and tell by [`super::Shard::taken`]. What has arrived
    /// before is told as ever.
    Take {
        /// This socket.
        socket: SocketId,
    },
    /// Send a letter. One that moves a connection takes along the descriptor that [`super::Shard::taken`] told of.
    Mail {
        /// To this shard, which is another one.
        to: ShardId,
        /// What to send.
        letter: Letter<()>,
    },
    /// Open a connection and tell by [`super::Shard::dialed`].
    Dial {
        /// The server's entry.
        server: Key<Server>,
        /// Index of the endpoint in the configuration.
        endpoint: usize,
    },
    /// Ask PostgreSQL to cancel what a connection is doing, and tell by [`super::Shard::cancelled`].
    Cancel {
        /// The server's entry.
        server: Key<Server>,
        /// Its connection, which may be closing: the request goes to its peer's address.
        socket: SocketId,
        /// Process id and key.
        key: (u32, Bytes),
    },
    /// Compute this elsewhere and tell by [`super::Shard::scram_done`].
    Compute {
        /// The server that is logging in.
        server: Key<Server>,
        /// What to compute.
        work: ScramWork,
    },
    /// Tell what is known of this core, by [`super::Shard::observed`].
    Observe,
    /// Read the configuration again, and tell by [`super::Shard::reloaded`] when that is done.
    Reload {
        /// Who wants it.
        client: Key<Client>,
    },
    /// Write a line.
    Log(Line),
}

/// Why no connection could be opened, and to where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialError(pub String);

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose socket it is, as told to the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// A client.
    Client(Key<Client>),
    /// A server.
    Server(Key<Server>),
}

impl Party {
    /// As the ring carries it.
    pub fn to_owner(self) -> Owner {
        match self {
            Self::Client(key) => Owner(key.to_bits()),
            Self::Server(key) => Owner(key.to_bits() | SERVER_BIT),
        }
    }

    /// What [`Party::to_owner`] made this of.
    #[inline]
    pub fn from_owner(owner: Owner) -> Self {
        if owner.0 & SERVER_BIT == 0 {
            Self::Client(Key::from_bits(owner.0))
        } else {
            Self::Server(Key::from_bits(owner.0 & !SERVER_BIT))
        }
    }
}

/// Keys have 63 bits.
const SERVER_BIT: u64 = 1 << 63;
