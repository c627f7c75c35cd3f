//! The sockets of a ring: receiving, sending, and the ways a socket ends.
//!
//! ```text
//!   Open --close(AfterSending)--> Draining --all sent--> Lingering --EOF, or linger over--> Closing --> closed
//!     \______________________________close(Now), error_______\____________________________/
//! ```
//!
//! An operation in flight holds its socket: a descriptor is closed only when the last completion is there.

use std::collections::VecDeque;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use io_uring::{cqueue, opcode, squeue, types};

use super::deadlines::Due;
use super::kernel::BUFFER_GROUP;
use super::outgoing::{Outgoing, Queue, Vectors};
use super::slots::{Key, Kind, Slots};
use super::{CloseMode, Event, State, clock};
use crate::ids::{Owner, SocketId};
use crate::time::Instant;

/// All sockets of a ring.
pub(super) struct Sockets {
    pub table: Slots<Socket>,
    /// Have something to send and no send in flight.
    dirty: Vec<Key>,
    /// Wait for a buffer to receive into, longest first.
    starved: VecDeque<Key>,
    vectors: Vectors,
    /// Sends of the coming system call that are over when it returns.
    inline: Vec<Key>,
    pub out_of_buffers: u64,
    pub copied: u64,
}

/// One socket's entry. There are ten thousands of them, and most are idle.
pub(super) struct Socket {
    owner: Owner,
    queue: Queue,
    /// When draining or lingering ends; an earlier deadline is an outdated one.
    due: Instant,
    fd: OwnedFd,
    /// Of the send in flight, if it has several pieces.
    vector: u32,
    /// Pieces in flight: the first ones of the queue.
    sending: u8,
    phase: Phase,
    /// Receives that must come in short before several may be in flight again.
    restless: u8,
    /// A receive is wanted.
    wanted: bool,
    receiving: Receiving,
    /// Nothing more will be received: end of file, or an error.
    ended: bool,
    /// Nothing more can be sent.
    broken: bool,
    /// While draining: something was sent since the last look.
    progressed: bool,
    /// Is to be handed out as soon as nothing is in flight.
    taken: bool,
    /// How long the peer has to end after us.
    linger_ms: u32,
    /// The send in flight is over when the coming system call returns, and was announced as sent.
    inline: bool,
    /// The socket took no more at once: sends wait for it, and complete, until the queue is empty.
    stalled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Draining,
    Lingering,
    Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    No,
    /// In the list of those that wait for a buffer.
    Starved,
    Armed,
    Cancelled,
}

impl Sockets {
    pub fn new() -> Self {
        Self {
            table: Slots::new(),
            dirty: Vec::new(),
            starved: VecDeque::new(),
            vectors: Vectors::new(),
            inline: Vec::new(),
            out_of_buffers: 0,
            copied: 0,
        }
    }

    /// Whose a socket is.
    #[inline]
    pub fn owner(&self, key: Key) -> Option<Owner> {
        self.table.get(key).map(|socket| socket.owner)
    }
}

impl Socket {
    fn wants_to_receive(&self) -> bool {
        match self.phase {
            Phase::Open => self.wanted && !self.ended && !self.taken,
            // What the peer still sends is read and dropped.
            Phase::Draining | Phase::Lingering => !self.ended,
            Phase::Closing => false,
        }
    }

    /// The send in flight is over. How many pieces it had.
    fn end_send(&mut self, vectors: &mut Vectors) -> usize {
        if self.vector != NO_VECTOR {
            vectors.release(mem::replace(&mut self.vector, NO_VECTOR));
        }
        self.inline = false;
        usize::from(mem::take(&mut self.sending))
    }

    /// Bytes of the send in flight.
    fn announced(&self) -> usize {
        self.queue.iter().take(usize::from(self.sending)).map(|piece| piece.as_slice().len()).sum()
    }

    fn has_unsubmitted(&self) -> bool {
        self.queue.len() > usize::from(self.sending)
    }

    fn has_operations(&self) -> bool {
        self.sending > 0 || matches!(self.receiving, Receiving::Armed | Receiving::Cancelled)
    }
}

/// What the engine asks for.
impl State {
    pub fn adopt(&mut self, fd: OwnedFd, owner: Owner) -> SocketId {
        let key = self.sockets.table.insert(Socket {
            owner,
            queue: Queue::default(),
            due: Instant::NEVER,
            fd,
            vector: NO_VECTOR,
            sending: 0,
            phase: Phase::Open,
            restless: 0,
            wanted: false,
            receiving: Receiving::No,
            ended: false,
            broken: false,
            progressed: false,
            taken: false,
            linger_ms: 0,
            inline: false,
            stalled: false,
        });
        key.into()
    }

    pub fn set_owner(&mut self, id: SocketId, owner: Owner) {
        if let Some(socket) = self.sockets.table.get_mut(id.into()) {
            socket.owner = owner;
        }
    }

    pub fn descriptor(&self, id: SocketId) -> Option<&OwnedFd> {
        self.sockets.table.get(id.into()).map(|socket| &socket.fd)
    }

    pub fn unsent(&self, id: SocketId) -> usize {
        self.sockets.table.get(id.into()).map_or(0, |socket| {
            let sent = if socket.inline { socket.announced() } else { 0 };
            socket.queue.bytes() - sent
        })
    }

    pub fn start_receiving(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.table.get_mut(id.into()) {
            socket.wanted = true;
            self.receive(id.into());
        }
    }

    pub fn stop_receiving(&mut self, id: SocketId) {
        let key = id.into();
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        if socket.phase != Phase::Open {
            return;
        }
        socket.wanted = false;
        socket.restless = CALM_RECEIVES;
        self.cancel_receive(key);
    }

    pub fn send(&mut self, id: SocketId, mut piece: Outgoing) {
        let key = id.into();
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        if socket.phase != Phase::Open || socket.broken || piece.as_slice().is_empty() {
            return;
        }
        // Whoever sends must not depend on how fast the peer reads.
        if matches!(piece, Outgoing::Buffer(_)) && self.buffers.are_scarce() {
            piece = Outgoing::Own(Bytes::copy_from_slice(piece.as_slice()));
            self.sockets.copied += 1;
        }
        if socket.queue.is_empty() {
            self.sockets.dirty.push(key);
        }
        socket.queue.push(piece);
    }

    pub fn close(&mut self, id: SocketId, mode: CloseMode) {
        let key = id.into();
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        match (mode, socket.phase) {
            (CloseMode::Now, _) => self.begin_closing(key),
            (CloseMode::AfterSending(_), Phase::Open) if socket.broken => self.begin_closing(key),
            (CloseMode::AfterSending(linger), Phase::Open) => {
                socket.phase = Phase::Draining;
                socket.linger_ms = u32::try_from(linger.as_millis()).unwrap_or(u32::MAX);
                if socket.queue.is_empty() {
                    self.begin_lingering(key);
                } else {
                    self.end_within(key, STALL);
                    self.receive(key);
                }
            }
            (CloseMode::AfterSending(_), _) => {}
        }
    }

    pub fn take(&mut self, id: SocketId) {
        let key = id.into();
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        if socket.phase == Phase::Open {
            socket.wanted = false;
            socket.taken = true;
            self.cancel_receive(key);
            self.give_away(key);
        }
    }
}

/// What the turn does.
impl State {
    /// Makes one send for each socket that has something queued and none in flight.
    pub fn submit_sends(&mut self) {
        let mut dirty = mem::take(&mut self.sockets.dirty);
        dirty.retain(|&key| {
            self.submit_send(key);
            // What was queued behind an inline send goes out after the next system call.
            self.sockets.table.get(key).is_some_and(|socket| socket.inline && socket.has_unsubmitted())
        });
        dirty.append(&mut self.sockets.dirty);
        self.sockets.dirty = dirty;
    }

    /// Something is queued that no send in flight takes along.
    pub fn has_unsubmitted(&self) -> bool {
        !self.sockets.dirty.is_empty()
    }

    /// The system call is over, and what it had to say of inline sends was handled: those left have succeeded.
    pub fn settle_inline(&mut self) {
        let mut inline = mem::take(&mut self.sockets.inline);
        for key in inline.drain(..) {
            let Some(socket) = self.sockets.table.get_mut(key) else { continue };
            if socket.inline {
                self.in_flight -= 1;
                self.on_inline_sent(key);
            }
        }
        self.sockets.inline = inline;
    }

    fn on_inline_sent(&mut self, key: Key) {
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        let pieces = socket.end_send(&mut self.sockets.vectors);
        socket.queue.drop_first(pieces);
        let left = !socket.queue.is_empty();
        match socket.phase {
            Phase::Open | Phase::Draining if left => self.sockets.dirty.push(key),
            Phase::Open if socket.taken => self.give_away(key),
            Phase::Draining => self.begin_lingering(key),
            Phase::Closing => {
                socket.queue.truncate(0);
                self.finish(key);
            }
            Phase::Open | Phase::Lingering => {}
        }
    }

    /// A completion of an inline send: it did not take everything at once. Whoever was told that it did is told
    /// better, before anything that happened after.
    pub fn on_inline_failed(&mut self, key: Key, completion: &cqueue::Entry) {
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        socket.stalled = true;
        let (id, owner, phase) = (SocketId::from(key), socket.owner, socket.phase);
        let announced = socket.announced();
        let taken = usize::try_from(completion.result()).unwrap_or(0);
        self.on_sent(key, completion);
        self.retract_sent(id);
        let broken = self.sockets.table.get(key).is_none_or(|socket| socket.broken);
        if phase == Phase::Open && !broken {
            self.events.push_back(Event::Unsent { socket: id, owner, bytes: announced - taken });
        }
    }

    /// Takes back the event that `on_sent` made: the bytes were announced before.
    fn retract_sent(&mut self, id: SocketId) {
        if matches!(self.events.back(), Some(Event::Sent { socket, .. }) if *socket == id) {
            self.events.pop_back();
        }
    }

    pub fn is_inline(&self, key: Key) -> bool {
        self.sockets.table.get(key).is_some_and(|socket| socket.inline)
    }

    /// Lets as many starved sockets receive again as there are buffers.
    pub fn feed_starved(&mut self) {
        let mut rations = self.buffers.laid_out();
        while rations > 0 {
            let Some(key) = self.sockets.starved.pop_front() else { break };
            let Some(socket) = self.sockets.table.get_mut(key) else { continue };
            socket.receiving = Receiving::No;
            self.receive(key);
            rations -= 1;
        }
    }

    pub fn on_received(&mut self, key: Key, completion: &cqueue::Entry) {
        let result = completion.result();
        let received = cqueue::buffer_select(completion.flags())
            .map(|id| self.buffers.take(id, u32::try_from(result).unwrap_or(0)));
        // Without its socket, the guard gives the buffer back.
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        let over = !cqueue::more(completion.flags());
        if over {
            socket.receiving = Receiving::No;
        }
        let open = socket.phase == Phase::Open;
        let (id, owner) = (SocketId::from(key), socket.owner);
        match (result, received) {
            (1.., Some(buffer)) => {
                socket.restless = match socket.restless {
                    0 => 0,
                    left if (result as u32) < self.buffers.size() / 2 => left - 1,
                    _ => CALM_RECEIVES,
                };
                if open {
                    self.events.push_back(Event::Received { socket: id, owner, buffer });
                }
            }
            (0, _) => self.on_end(key, None),
            (RESULT_NO_BUFFERS, _) => {
                self.sockets.out_of_buffers += 1;
                if socket.wants_to_receive() {
                    socket.receiving = Receiving::Starved;
                    self.sockets.starved.push_back(key);
                }
            }
            (RESULT_CANCELLED | RESULT_INTERRUPTED | RESULT_AGAIN, _) => {}
            (result, _) => self.on_end(key, Some(result.saturating_neg())),
        }
        if over {
            self.receive(key);
            self.finish(key);
        }
    }

    pub fn on_sent(&mut self, key: Key, completion: &cqueue::Entry) {
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        socket.end_send(&mut self.sockets.vectors);
        let (id, owner) = (SocketId::from(key), socket.owner);
        match (completion.result(), socket.phase) {
            (_, Phase::Closing) => {
                socket.queue.truncate(0);
                self.finish(key);
            }
            (bytes @ 1.., phase) => {
                socket.queue.advance(bytes as usize);
                let unsent = socket.queue.bytes();
                socket.progressed = true;
                if unsent > 0 {
                    self.sockets.dirty.push(key);
                } else {
                    socket.stalled = false;
                }
                let taken = socket.taken;
                if phase == Phase::Open {
                    self.events.push_back(Event::Sent { socket: id, owner, bytes: bytes as usize, unsent });
                    if taken {
                        self.give_away(key);
                    }
                } else if unsent == 0 {
                    self.begin_lingering(key);
                }
            }
            (RESULT_INTERRUPTED | RESULT_AGAIN, _) => self.sockets.dirty.push(key),
            (result, Phase::Open) => {
                socket.broken = true;
                socket.queue.truncate(0);
                let errno = if result == 0 { libc::EPIPE } else { result.saturating_neg() };
                self.events.push_back(Event::Ended { socket: id, owner, error: Some(errno) });
                self.finish(key);
            }
            (_, Phase::Draining | Phase::Lingering) => self.begin_closing(key),
        }
    }

    /// A draining or lingering socket's time is over.
    pub fn on_socket_due(&mut self, key: Key, now: Instant) {
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        if now < socket.due {
            return;
        }
        if socket.phase == Phase::Draining && mem::take(&mut socket.progressed) {
            self.end_within(key, STALL);
        } else {
            self.begin_closing(key);
        }
    }

    /// Arms the receive, if one is wanted and none is in flight.
    fn receive(&mut self, key: Key) {
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        if socket.receiving != Receiving::No || !socket.wants_to_receive() {
            return;
        }
        socket.receiving = Receiving::Armed;
        let fd = types::Fd(socket.fd.as_raw_fd());
        let entry = if socket.restless == 0 {
            opcode::RecvMulti::new(fd, BUFFER_GROUP).build()
        } else {
            let receive = opcode::Recv::new(fd, std::ptr::null_mut(), 0).buf_group(BUFFER_GROUP);
            receive.build().flags(squeue::Flags::BUFFER_SELECT)
        };
        // SAFETY: a receive into provided buffers points to nothing, and the buffers outlive the ring.
        unsafe { self.submit(entry, key.user_data(Kind::Receive)) };
    }

    /// Small sends are tried at once, within the coming system call: it is over when that returns, and no completion
    /// says so. That saves the completion, and above all the turn that it would cost: the same call can sleep.
    fn submit_send(&mut self, key: Key) {
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        if socket.sending > 0 || !matches!(socket.phase, Phase::Open | Phase::Draining) {
            return;
        }
        let inline =
            socket.phase == Phase::Open && !socket.stalled && socket.queue.bytes() <= INLINE_BYTES_MAX;
        let flags = if inline { SEND_FLAGS | libc::MSG_DONTWAIT } else { SEND_FLAGS };
        let fd = types::Fd(socket.fd.as_raw_fd());
        let mut entry = match (socket.queue.len(), socket.queue.iter().next()) {
            (1, Some(piece)) => {
                socket.sending = 1;
                let bytes = piece.as_slice();
                let length = u32::try_from(bytes.len()).unwrap_or(SEND_BYTES_MAX).min(SEND_BYTES_MAX);
                opcode::Send::new(fd, bytes.as_ptr(), length).flags(flags).build()
            }
            (_, Some(_)) => {
                let (vector, header, pieces) = self.sockets.vectors.fill(&socket.queue);
                socket.vector = vector;
                socket.sending = pieces;
                opcode::SendMsg::new(fd, header).flags(flags as u32).build()
            }
            (_, None) => return,
        };
        if inline {
            socket.inline = true;
            entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
            let (bytes, owner) = (socket.announced(), socket.owner);
            let unsent = socket.queue.bytes() - bytes;
            self.sockets.inline.push(key);
            self.events.push_back(Event::Sent { socket: key.into(), owner, bytes, unsent });
        }
        // SAFETY: the pieces stay at the front of the queue, and the vector with the socket, until the send is over.
        unsafe { self.submit(entry, key.user_data(Kind::Send)) };
    }

    fn cancel_receive(&mut self, key: Key) {
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        if socket.receiving == Receiving::Armed {
            socket.receiving = Receiving::Cancelled;
            self.cancel(key.user_data(Kind::Receive));
        }
    }

    /// The peer's direction is over.
    fn on_end(&mut self, key: Key, error: Option<i32>) {
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        socket.ended = true;
        match socket.phase {
            Phase::Open => {
                let ended = Event::Ended { socket: key.into(), owner: socket.owner, error };
                self.events.push_back(ended);
            }
            // The peer may have closed only its own direction, and still read.
            Phase::Draining if error.is_none() => {}
            Phase::Draining | Phase::Lingering => self.begin_closing(key),
            Phase::Closing => {}
        }
    }

    /// All is sent: tell the peer, and read until it closes, because a descriptor closed on unread bytes
    /// resets the connection, and a reset destroys what the peer has not read yet.
    fn begin_lingering(&mut self, key: Key) {
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        if socket.ended {
            return self.begin_closing(key);
        }
        socket.phase = Phase::Lingering;
        let linger = Duration::from_millis(u64::from(socket.linger_ms));
        shut_down(&socket.fd, libc::SHUT_WR);
        self.end_within(key, linger);
        self.receive(key);
    }

    fn end_within(&mut self, key: Key, time: Duration) {
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        socket.due = clock::now() + time;
        self.deadlines.add(socket.due, Due::socket(key));
    }

    fn begin_closing(&mut self, key: Key) {
        let Some(socket) = self.sockets.table.get_mut(key) else { return };
        if socket.phase == Phase::Closing {
            return;
        }
        socket.phase = Phase::Closing;
        socket.taken = false;
        let sending = socket.sending;
        socket.queue.truncate(usize::from(sending));
        if socket.has_operations() {
            if sending > 0 {
                // Whatever the send is at, this ends it; the cancellation only ends it sooner.
                shut_down(&socket.fd, libc::SHUT_RDWR);
                self.cancel(key.user_data(Kind::Send));
            }
            self.cancel_receive(key);
        }
        self.finish(key);
    }

    /// Closes a closing socket, or hands out a taken one, that no operation holds any more.
    fn finish(&mut self, key: Key) {
        let Some(socket) = self.sockets.table.get(key) else { return };
        if socket.taken {
            self.give_away(key);
        } else if socket.phase == Phase::Closing && !socket.has_operations() {
            let owner = socket.owner;
            self.sockets.table.remove(key);
            self.descriptors_closed = true;
            self.events.push_back(Event::Closed { socket: key.into(), owner });
        }
    }

    fn give_away(&mut self, key: Key) {
        let Some(socket) = self.sockets.table.get(key) else { return };
        if socket.phase != Phase::Open || socket.has_operations() || !socket.queue.is_empty() {
            return;
        }
        if let Some(Socket { owner, fd, .. }) = self.sockets.table.remove(key) {
            self.events.push_back(Event::Taken { socket: key.into(), owner, fd });
        }
    }
}

impl From<Key> for SocketId {
    fn from(key: Key) -> Self {
        Self { slot: key.slot, generation: key.generation }
    }
}

impl From<SocketId> for Key {
    fn from(id: SocketId) -> Self {
        Self { slot: id.slot, generation: id.generation }
    }
}

/// Fails if the connection is already gone, which is then as good.
fn shut_down(fd: &OwnedFd, how: i32) {
    // SAFETY: a plain system call without pointers, on a descriptor that is open.
    unsafe { libc::shutdown(fd.as_raw_fd(), how) };
}

/// How long a peer may read nothing of what a closing socket still has to send.
const STALL: Duration = Duration::from_secs(5);

/// A multishot receive may deliver dozens of buffers before a stop reaches it. A socket that had to be stopped
/// receives one by one until so many in a row were short.
const CALM_RECEIVES: u8 = 8;

/// A dead peer is a result, not a signal; and the kernel itself goes on with what it could not send at once.
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;

/// What a socket buffer nearly always takes at once; twice that is where reading from the other side stops.
const INLINE_BYTES_MAX: usize = 32 * 1024;

/// Below what the kernel takes in one send.
const SEND_BYTES_MAX: u32 = 1 << 30;

const NO_VECTOR: u32 = u32::MAX;

const RESULT_NO_BUFFERS: i32 = -libc::ENOBUFS;
const RESULT_CANCELLED: i32 = -libc::ECANCELED;
const RESULT_INTERRUPTED: i32 = -libc::EINTR;
const RESULT_AGAIN: i32 = -libc::EAGAIN;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_small() {
        assert!(size_of::<Socket>() <= 96, "{}", size_of::<Socket>());
    }
}
