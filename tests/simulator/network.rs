//! Sockets of the shards' rings, and who is on the other side.

use pgpinion::ids::{Owner, SocketId};
use pgpinion::time::Instant;
use std::time::Duration;

pub struct Socket {
    /// The shard that has it; of a letter, who wrote it.
    pub shard: usize,
    /// Changes with each ring that it is put into.
    pub generation: u32,
    pub taking: Taking,
    pub owner: Owner,
    pub peer: End,
    pub receiving: bool,
    /// What arrives is told from so many bytes on.
    pub low_water: u32,
    /// Handed to the ring, not sent.
    pub unsent: Vec<u8>,
    /// Sent by the peer, not received.
    pub incoming: Vec<u8>,
    /// The peer will send no more.
    pub peer_ended: bool,
    pub told_end: bool,
    /// Being closed: once all is sent, lingering so long for the peer's end, or at once.
    pub closing: Option<Option<Duration>>,
    pub closing_until: Instant,
}

/// A connection on its way out of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    Not,
    /// The shard wants it out.
    Asked,
    /// The ring has let go of it, and the shard does not know yet.
    Given,
    /// It is in a letter.
    Gone,
}

#[derive(Clone, Copy)]
pub enum End {
    /// Number of the client.
    Client(usize),
    /// Endpoint, and number of the backend there.
    Server(usize, u32),
}

impl Socket {
    pub fn new(shard: usize, peer: End) -> Self {
        Self {
            shard,
            generation: 0,
            taking: Taking::Not,
            owner: Owner(0),
            peer,
            receiving: false,
            low_water: 1,
            unsent: Vec::new(),
            incoming: Vec::new(),
            peer_ended: false,
            told_end: false,
            closing: None,
            closing_until: Instant::NEVER,
        }
    }

    /// It is in another ring from now on, or in the same one again.
    pub fn adopt(&mut self, slot: u32, shard: usize) -> SocketId {
        self.shard = shard;
        self.generation += 1;
        self.taking = Taking::Not;
        (self.receiving, self.told_end) = (false, false);
        SocketId { slot, generation: self.generation }
    }

    /// A ring has it.
    pub fn is_in_ring(&self) -> bool {
        matches!(self.taking, Taking::Not | Taking::Asked)
    }

    pub fn is_server(&self) -> bool {
        matches!(self.peer, End::Server(..))
    }

    /// The end begins.
    pub fn close(&mut self, linger: Option<Duration>, now: Instant) {
        assert!(self.closing.is_none() || linger.is_none(), "a socket is closed once, and then at once");
        self.closing = Some(linger);
        self.closing_until = now + SENDING_MAX;
        if linger.is_none() {
            self.unsent.clear();
        }
        self.linger(now);
    }

    /// Once all is sent, the peer has so long to end.
    pub fn linger(&mut self, now: Instant) {
        if let Some(linger) = self.closing.filter(|_| self.unsent.is_empty()) {
            self.closing_until = now + linger.unwrap_or_default();
        }
    }

    /// The ring is through with it.
    pub fn is_closable(&self, now: Instant) -> bool {
        match self.closing {
            Some(linger) => {
                linger.is_none() || self.closing_until <= now || (self.peer_ended && self.unsent.is_empty())
            }
            None => false,
        }
    }
}

/// How long the ring tries to send what is left.
const SENDING_MAX: Duration = Duration::from_secs(10);
