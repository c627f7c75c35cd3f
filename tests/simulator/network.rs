//! Sockets of the shards' rings, and who is on the other side.

use pgpinion::ids::Owner;
use pgpinion::time::Instant;
use std::time::Duration;

pub struct Socket {
    pub shard: usize,
    pub owner: Owner,
    pub peer: End,
    pub receiving: bool,
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
            owner: Owner(0),
            peer,
            receiving: false,
            unsent: Vec::new(),
            incoming: Vec::new(),
            peer_ended: false,
            told_end: false,
            closing: None,
            closing_until: Instant::NEVER,
        }
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
