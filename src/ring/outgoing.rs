//! What waits to be sent on a socket, and the vectors by which the kernel reads several pieces at once.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::buffers::Received;

/// A piece of what is to be sent.
#[derive(Debug)]
pub enum Outgoing {
    /// Bytes as they were received, sent out of the buffer they arrived in.
    Buffer(Received),
    /// Bytes of our own.
    Own(Bytes),
}

/// The pieces of one socket in order, those in flight first. Empty it owns no heap memory.
#[derive(Default)]
pub(super) struct Queue {
    first: Option<Outgoing>,
    /// Boxed, because nearly all sockets have none nearly always.
    #[expect(clippy::box_collection, reason = "a socket's entry is counted in bytes")]
    rest: Option<Box<VecDeque<Outgoing>>>,
    bytes: usize,
}

/// The vectors of sends in flight.
pub(super) struct Vectors {
    #[expect(clippy::vec_box, reason = "the kernel reads them where they are")]
    all: Vec<Box<Vector>>,
    free: Vec<u32>,
}

/// A message header and the pieces it refers to.
pub(super) struct Vector {
    header: libc::msghdr,
    pieces: [libc::iovec; PIECES_MAX],
}

impl Outgoing {
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Buffer(received) => received,
            Self::Own(bytes) => bytes,
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Buffer(received) => received.advance(count as u32),
            Self::Own(bytes) => bytes.advance(count),
        }
    }
}

impl Queue {
    /// Bytes that the kernel did not take yet.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.as_ref().map_or(0, |rest| rest.len())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Outgoing> {
        self.first.iter().chain(self.rest.iter().flat_map(|rest| rest.iter()))
    }

    pub fn push(&mut self, piece: Outgoing) {
        self.bytes += piece.as_slice().len();
        if self.first.is_none() {
            self.first = Some(piece);
        } else {
            self.rest.get_or_insert_default().push_back(piece);
        }
    }

    /// The kernel took `count` bytes.
    pub fn advance(&mut self, mut count: usize) {
        assert!(count <= self.bytes, "the kernel sent more than it was given");
        self.bytes -= count;
        while let Some(first) = &mut self.first {
            let length = first.as_slice().len();
            if length > count {
                first.advance(count);
                return;
            }
            count -= length;
            self.pop();
        }
    }

    /// The kernel took the first `pieces`.
    pub fn drop_first(&mut self, pieces: usize) {
        for _ in 0..pieces {
            self.bytes -= self.first.as_ref().map_or(0, |first| first.as_slice().len());
            self.pop();
        }
    }

    /// Drops everything behind the first `pieces`.
    pub fn truncate(&mut self, pieces: usize) {
        if pieces == 0 {
            *self = Self::default();
        } else if let Some(rest) = &mut self.rest {
            rest.truncate(pieces - 1);
            self.bytes = self.iter().map(|piece| piece.as_slice().len()).sum();
        }
    }

    fn pop(&mut self) {
        self.first = self.rest.as_mut().and_then(|rest| rest.pop_front());
        if self.first.is_none() {
            self.rest = None;
        }
    }
}

impl Vectors {
    pub fn new() -> Self {
        Self { all: Vec::new(), free: Vec::new() }
    }

    /// A vector of the first pieces of `queue`: its number, where its header is, how many pieces it took.
    pub fn fill(&mut self, queue: &Queue) -> (u32, *const libc::msghdr, u8) {
        let number = self.free.pop().unwrap_or_else(|| {
            self.all.push(Box::new(Vector::new()));
            (self.all.len() - 1) as u32
        });
        let vector = &mut *self.all[number as usize];
        let mut count = 0;
        for (piece, place) in queue.iter().zip(&mut vector.pieces) {
            let bytes = piece.as_slice();
            *place = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            count += 1;
        }
        vector.header.msg_iov = vector.pieces.as_mut_ptr();
        vector.header.msg_iovlen = count as _;
        (number, &raw const vector.header, count)
    }

    /// The send that read it is over.
    pub fn release(&mut self, number: u32) {
        self.free.push(number);
    }
}

impl Vector {
    fn new() -> Self {
        // SAFETY: all zeroes is a valid msghdr: no name, no pieces, no control data.
        let header = unsafe { std::mem::zeroed() };
        Self { header, pieces: [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PIECES_MAX] }
    }
}

/// Pieces per send. A vector of 64 is a kilobyte; beyond that the bytes outweigh the calls.
const PIECES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_send_leaves_the_rest_in_order() {
        let mut queue = Queue::default();
        for piece in ["abc", "de", "fghi"] {
            queue.push(Outgoing::Own(Bytes::from_static(piece.as_bytes())));
        }
        queue.advance(4);
        let left: Vec<u8> = queue.iter().flat_map(|piece| piece.as_slice().to_vec()).collect();
        assert_eq!((left.as_slice(), queue.bytes(), queue.len()), (&b"efghi"[..], 5, 2));
        queue.truncate(1);
        assert_eq!((queue.bytes(), queue.len()), (1, 1));
        queue.advance(1);
        assert!(queue.is_empty() && queue.rest.is_none());
    }

    #[test]
    fn an_idle_queue_is_small() {
        assert!(size_of::<Queue>() <= 64, "{}", size_of::<Queue>());
    }
}
