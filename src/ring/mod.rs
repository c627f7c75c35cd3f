//! The network ring of a shard: sockets, receive buffers, sends, deadlines and wake-ups on one io_uring.
//!
//! Knows bytes and descriptors, and whom an event concerns only as an opaque [`Owner`]. Knows no message. Driven
//! by the engine, from one task of one glommio executor:
//!
//! ```text
//!   loop {
//!       if tasks.may_be_runnable() { tasks.settle().await }       // never sleep on a runnable task
//!       ring.turn(until, &mut |event| engine.dispatch(event))?;   // submit, wait, reap: one system call
//!   }
//! ```
//!
//! Every method may be called from within the callback of [`Ring::turn`]. What they ask for becomes entries of the
//! ring's next submission; the sends of one turn to one socket become one vectored send. A received buffer is
//! passed on to a send without copying ([`Outgoing::Buffer`]), unless buffers are scarce.
//!
//! `unsafe` is allowed in this room only: it is where the kernel is told addresses.
#![allow(unsafe_code)]

mod address;
mod buffers;
pub mod clock;
mod deadlines;
mod doorbell;
mod entropy;
mod error;
mod executor;
mod kernel;
mod listeners;
mod outgoing;
mod prefetch;
mod remote;
mod slots;
mod sockets;
mod tasks;
#[cfg(test)]
mod tests;
mod waits;

use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue, types};

pub use address::{
    Keepalive, SocketAddress, TcpOptions, local_address, peer_address, set_loopback_congestion,
    set_tcp_options, stream_socket, tcp_listener, unix_listener,
};
pub use buffers::Received;
pub use doorbell::Doorbell;
pub use entropy::random_bytes;
pub use error::RingError;
pub use executor::run_shard;
pub use listeners::ListenerId;
pub use outgoing::Outgoing;
pub use prefetch::prefetch;
pub use remote::{Broken, Promise, Remote};
pub use tasks::Tasks;
pub use waits::Sleep;

use self::buffers::Buffers;
use self::deadlines::{Deadlines, Due};
use self::kernel::Kernel;
use self::listeners::Listener;
use self::remote::LetterBox;
use self::slots::{Key, Kind, Slots};
use self::sockets::Sockets;
use self::waits::Wait;
use crate::ids::{Owner, SocketId};
use crate::time::Instant;

/// How a shard's ring is dimensioned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingSettings {
    /// Entries of the submission queue. More in one turn cost an extra system call.
    pub sq_entries: u32,
    /// Entries of the completion queue. More at once are kept by the kernel, at a cost.
    pub cq_entries: u32,
    /// Receive buffers: a power of two, at most 32768.
    pub recv_buffers: u16,
    /// Size of a receive buffer.
    pub recv_buffer_bytes: u32,
    /// How long a turn looks for completions before it sleeps.
    pub busy_poll: Duration,
}

/// A shard's ring. Clones are handles to the same ring; it stays on the thread that made it.
#[derive(Clone)]
pub struct Ring {
    shared: Rc<Shared>,
}

/// What happened, and to whom.
#[derive(Debug)]
pub enum Event {
    /// A connection came in on the listener with this tag.
    Accepted {
        /// The listener's tag.
        tag: u32,
        /// The connection, not yet adopted.
        fd: OwnedFd,
    },
    /// A listener could not accept. It tries again by itself.
    AcceptFailed {
        /// The listener's tag.
        tag: u32,
        /// Why.
        error: io::Error,
    },
    /// Bytes arrived.
    Received {
        /// Where.
        socket: SocketId,
        /// Whose it is.
        owner: Owner,
        /// The bytes.
        buffer: Received,
    },
    /// A direction of the connection is over. At most once for receiving and once for sending; the socket
    /// stays open until it is closed.
    Ended {
        /// Which.
        socket: SocketId,
        /// Whose it is.
        owner: Owner,
        /// The error number, or `None` at the end of what the peer sends.
        error: Option<i32>,
    },
    /// The kernel took bytes off the socket's queue, or will within this turn.
    Sent {
        /// Which.
        socket: SocketId,
        /// Whose it is.
        owner: Owner,
        /// How many it took.
        bytes: usize,
        /// How many are left.
        unsent: usize,
    },
    /// Bytes that were said to be sent could not be sent at once: they are queued again.
    Unsent {
        /// Where.
        socket: SocketId,
        /// Whose it is.
        owner: Owner,
        /// How many.
        bytes: usize,
    },
    /// The last event of a socket that was [closed](Ring::close).
    Closed {
        /// Which it was.
        socket: SocketId,
        /// Whose it was.
        owner: Owner,
    },
    /// The last event of a socket that was [taken](Ring::take).
    Taken {
        /// Which it was.
        socket: SocketId,
        /// Whose it was.
        owner: Owner,
        /// The connection, with no operation on it.
        fd: OwnedFd,
    },
    /// The [`Doorbell`] was rung, once or several times; also by a [`Promise`] that was kept.
    Doorbell,
}

/// How a socket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseMode {
    /// At once; what is unsent is dropped.
    Now,
    /// When everything queued was sent and the peer has ended too, for which it gets so long.
    AfterSending(Duration),
}

/// What a ring holds and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Receive buffers that the kernel may fill.
    pub buffers_free: u32,
    /// Receive buffers altogether.
    pub buffers: u32,
    /// Sockets that are not closed yet.
    pub sockets: usize,
    /// Operations in the kernel or on the way there; the doorbell's is always one.
    pub in_flight: usize,
    /// System calls made.
    pub enters: u64,
    /// Completions reaped.
    pub completions: u64,
    /// Receives that ended because no buffer was free.
    pub out_of_buffers: u64,
    /// Ranges that were copied because buffers were scarce.
    pub copied: u64,
}

struct Shared {
    state: RefCell<State>,
    doorbell: Doorbell,
    busy_poll: Duration,
    in_turn: Cell<bool>,
}

/// A turn under way.
struct InTurn<'a>(&'a Cell<bool>);

/// Everything a ring owns. Its methods are spread over the files of this room, by what they are about.
struct State {
    kernel: ManuallyDrop<Kernel>,
    buffers: Rc<Buffers>,
    sockets: Sockets,
    waits: Slots<Wait>,
    listeners: Slots<Listener>,
    deadlines: Deadlines,
    letters: LetterBox,
    /// Taken from the kernel, not yet looked at.
    gathered: VecDeque<cqueue::Entry>,
    /// Not yet delivered.
    events: VecDeque<Event>,
    /// Of tasks to wake as soon as the state is not borrowed.
    wakes: Vec<Waker>,
    in_flight: usize,
    /// Since the listeners were last told.
    descriptors_closed: bool,
    bell: i32,
}

impl Ring {
    /// Makes a ring that belongs to this thread.
    ///
    /// # Errors
    ///
    /// The setting that is out of range, or what the kernel refuses and what to do about it.
    pub fn new(settings: &RingSettings) -> Result<Self, RingError> {
        let doorbell = Doorbell::new().map_err(|error| RingError::System("eventfd", error))?;
        Self::with_doorbell(settings, doorbell)
    }

    /// The same with a bell that others have already, and may have rung.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_doorbell(settings: &RingSettings, doorbell: Doorbell) -> Result<Self, RingError> {
        settings.check()?;
        let kernel = Kernel::new(settings)?;
        let buffers = Buffers::new(settings.recv_buffers, settings.recv_buffer_bytes)?;
        // SAFETY: `State::drop` frees the buffers after the kernel is done with them, or never.
        unsafe { kernel.register_buffers(buffers.ring_address(), buffers.count()) }?;
        let mut state = State {
            kernel: ManuallyDrop::new(kernel),
            buffers,
            sockets: Sockets::new(),
            waits: Slots::new(),
            listeners: Slots::new(),
            deadlines: Deadlines::new(),
            letters: LetterBox::new(),
            gathered: VecDeque::new(),
            events: VecDeque::new(),
            wakes: Vec::new(),
            in_flight: 0,
            descriptors_closed: false,
            bell: doorbell.descriptor(),
        };
        state.listen_to_bell();
        let (state, in_turn) = (RefCell::new(state), Cell::new(false));
        Ok(Self { shared: Rc::new(Shared { state, doorbell, busy_poll: settings.busy_poll, in_turn }) })
    }

    /// Accepts on a listening socket until [`close_listener`](Self::close_listener); `tag` names it in events.
    pub fn listen(&self, listening: OwnedFd, tag: u32) -> ListenerId {
        self.state().listen(listening, tag)
    }

    /// Stops accepting and closes the listening socket. Connections already accepted are still delivered.
    pub fn close_listener(&self, listener: ListenerId) {
        self.state().close_listener(listener);
    }

    /// Takes a connected socket in, which must not be non-blocking: the ring waits by itself. It receives nothing until
    /// [`start_receiving`](Self::start_receiving).
    pub fn adopt(&self, fd: OwnedFd, owner: Owner) -> SocketId {
        self.state().adopt(fd, owner)
    }

    /// Whom the events of a socket concern from now on.
    pub fn set_owner(&self, socket: SocketId, owner: Owner) {
        self.state().set_owner(socket, owner);
    }

    /// The number of a socket's descriptor, for logs.
    pub fn raw_fd(&self, socket: SocketId) -> Option<RawFd> {
        self.state().descriptor(socket).map(AsRawFd::as_raw_fd)
    }

    /// Lets `look` have a socket's descriptor, for options and addresses. It must not call the ring.
    pub fn with_fd<R>(&self, socket: SocketId, look: impl FnOnce(BorrowedFd<'_>) -> R) -> Option<R> {
        self.state().descriptor(socket).map(|fd| look(fd.as_fd()))
    }

    /// Delivers what arrives on a TCP socket only once it is so many bytes, or the peer has ended (`SO_RCVLOWAT`). The kernel
    /// may tell sooner: when receiving begins, where its own bounds are lower, and on Unix sockets.
    pub fn set_low_water(&self, socket: SocketId, bytes: u32) {
        if let Some(fd) = self.state().descriptor(socket) {
            // It cannot fail on a socket.
            let _ = address::set_low_water(fd.as_fd(), bytes);
        }
    }

    /// Whom the next completion of this turn concerns, if that is a socket's.
    #[inline]
    pub fn upcoming(&self) -> Option<Owner> {
        let state = self.state();
        let (kind, key) = Key::of_user_data(state.gathered.front()?.user_data());
        let is_of_socket = matches!(kind, Some(Kind::Receive | Kind::Send));
        if is_of_socket { state.sockets.owner(key) } else { None }
    }

    /// Delivers what arrives, from now on.
    pub fn start_receiving(&self, socket: SocketId) {
        self.state().start_receiving(socket);
    }

    /// Leaves what arrives to the kernel, from now on. What it had handed over before is still delivered.
    pub fn stop_receiving(&self, socket: SocketId) {
        self.state().stop_receiving(socket);
    }

    /// Queues a piece. Nothing is queued on a socket that is closing or whose sending has failed.
    pub fn send(&self, socket: SocketId, piece: Outgoing) {
        self.state().send(socket, piece);
    }

    /// Bytes queued or in flight.
    pub fn unsent(&self, socket: SocketId) -> usize {
        self.state().unsent(socket)
    }

    /// Ends a socket. Nothing received is delivered any more; its last event is [`Event::Closed`].
    pub fn close(&self, socket: SocketId, mode: CloseMode) {
        self.state().close(socket, mode);
    }

    /// Takes a socket out of the ring without closing it, when everything queued has been sent. What arrived before is
    /// delivered; its last event is [`Event::Taken`], or [`Event::Closed`] if it is closed in the meantime.
    pub fn take(&self, socket: SocketId) {
        self.state().take(socket);
    }

    /// Connects a [`stream_socket`]. The future may be dropped at any time.
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`, and [`io::ErrorKind::TimedOut`] at the deadline.
    pub async fn connect(&self, fd: OwnedFd, address: &SocketAddress, by: Instant) -> io::Result<OwnedFd> {
        self.connect_raw(fd, address.to_raw()?, by).await
    }

    /// What other threads wake this ring with.
    pub fn doorbell(&self) -> Doorbell {
        self.shared.doorbell.clone()
    }

    /// What the ring holds and did.
    pub fn stats(&self) -> RingStats {
        let state = self.state();
        RingStats {
            buffers_free: state.buffers.free(),
            buffers: u32::from(state.buffers.count()),
            sockets: state.sockets.table.len(),
            in_flight: state.in_flight,
            enters: state.kernel.enters,
            completions: state.kernel.completions,
            out_of_buffers: state.sockets.out_of_buffers,
            copied: state.sockets.copied,
        }
    }

    /// Submits everything queued, sleeps until something happens, the doorbell rings, or `until`, and hands what
    /// happened to `sink`. Does not sleep if there is something to hand over already.
    ///
    /// # Errors
    ///
    /// Those of `io_uring_enter` that no retry cures.
    ///
    /// # Panics
    ///
    /// If called from its own `sink`.
    pub fn turn(&self, until: Instant, sink: &mut impl FnMut(Event)) -> io::Result<()> {
        self.turn_until(|| until, sink)
    }

    /// The same, for a caller whose deadlines move with the events: `until` is asked when the turn is about to sleep.
    ///
    /// # Errors
    ///
    /// As [`turn`](Self::turn).
    pub fn turn_until(
        &self,
        until: impl FnOnce() -> Instant,
        sink: &mut impl FnMut(Event),
    ) -> io::Result<()> {
        let _in_turn = InTurn::new(&self.shared.in_turn);
        self.submit_all(sink);
        let result = self.submit_and_wait(until());
        loop {
            let mut state = self.state();
            let Some(event) = state.next_event() else { break };
            drop(state);
            sink(event);
        }
        let wakes = mem::take(&mut self.state().wakes);
        wakes.into_iter().for_each(Waker::wake);
        result
    }

    /// Makes entries of all that was asked for, telling `sink` what will be sent, until nothing more comes of that.
    fn submit_all(&self, sink: &mut impl FnMut(Event)) {
        self.state().prepare();
        loop {
            let mut state = self.state();
            if state.events.is_empty() {
                state.submit_sends();
            }
            let Some(event) = state.events.pop_front() else { break };
            drop(state);
            sink(event);
        }
    }

    fn submit_and_wait(&self, until: Instant) -> io::Result<()> {
        let mut state = self.state();
        let mut wait = state.patience(until);
        if wait != kernel::Wait::No && !self.shared.busy_poll.is_zero() {
            state.kernel.enter(kernel::Wait::No)?;
            self.look_out(&mut state);
            wait = state.patience(until);
        }
        if wait != kernel::Wait::No && !self.shared.doorbell.fall_asleep() {
            wait = kernel::Wait::No;
        }
        let result = state.kernel.enter(wait).and_then(|()| state.gather());
        if self.shared.doorbell.answer() {
            state.open_letters();
            state.events.push_back(Event::Doorbell);
        }
        state.expire();
        result
    }

    /// Looks for something to do for as long as the settings say.
    fn look_out(&self, state: &mut State) {
        let end = clock::now() + self.shared.busy_poll;
        while !state.kernel.has_completions()
            && !state.kernel.has_deferred()
            && !self.shared.doorbell.is_rung()
            && clock::now() < end
        {
            std::hint::spin_loop();
        }
    }

    fn state(&self) -> RefMut<'_, State> {
        self.shared.state.borrow_mut()
    }
}

impl State {
    /// Turns what was asked for since the last turn into entries.
    fn prepare(&mut self) {
        if mem::take(&mut self.descriptors_closed) {
            self.resume_listeners();
        }
        self.buffers.lay_out();
        self.feed_starved();
        self.submit_sends();
    }

    /// How long the coming wait may be.
    fn patience(&mut self, until: Instant) -> kernel::Wait {
        if !self.events.is_empty()
            || !self.wakes.is_empty()
            || self.kernel.has_completions()
            || self.has_unsubmitted()
        {
            return kernel::Wait::No;
        }
        let Self { sockets, listeners, waits, .. } = self;
        let due = self.deadlines.earliest(|due| match due {
            Due::Socket(slot, generation) => sockets.table.get(Key { slot, generation }).is_some(),
            Due::Listener(slot, generation) => {
                listeners.get(Key { slot, generation }).is_some_and(Listener::is_paused)
            }
            Due::Wait(slot, generation) => waits.get(Key { slot, generation }).is_some(),
        });
        let until = until.min(due);
        if until == Instant::NEVER {
            return kernel::Wait::Forever;
        }
        match until.since(clock::now()) {
            Duration::ZERO => kernel::Wait::No,
            left => kernel::Wait::For(left),
        }
    }

    fn expire(&mut self) {
        if self.deadlines.is_empty() {
            return;
        }
        let now = clock::now();
        while let Some(due) = self.deadlines.expired(now) {
            match due {
                Due::Socket(slot, generation) => self.on_socket_due(Key { slot, generation }, now),
                Due::Listener(slot, generation) => self.on_listener_due(Key { slot, generation }),
                Due::Wait(slot, generation) => self.on_wait_due(Key { slot, generation }),
            }
        }
    }

    /// Takes the completions, those of inline sends first: what they did not send must be known before anything else.
    fn gather(&mut self) -> io::Result<()> {
        for _ in 0..GATHERINGS_MAX {
            while let Some(completion) = self.kernel.next() {
                let (kind, key) = Key::of_user_data(completion.user_data());
                if kind == Some(Kind::Send) && self.is_inline(key) {
                    self.in_flight -= 1;
                    self.on_inline_failed(key, &completion);
                } else {
                    self.sockets.table.prefetch(key);
                    self.gathered.push_back(completion);
                }
            }
            if self.kernel.is_through() {
                self.settle_inline();
                return Ok(());
            }
            self.kernel.enter(kernel::Wait::No)?;
        }
        Err(io::Error::other("the kernel does not take what is submitted"))
    }

    /// The next event, out of what was gathered.
    fn next_event(&mut self) -> Option<Event> {
        while self.events.is_empty() {
            let completion = self.gathered.pop_front()?;
            self.on_completion(&completion);
        }
        self.events.pop_front()
    }

    fn on_completion(&mut self, completion: &cqueue::Entry) {
        let (kind, key) = Key::of_user_data(completion.user_data());
        let over = !cqueue::more(completion.flags());
        self.in_flight -= usize::from(over && kind != Some(Kind::Cancel));
        match kind {
            Some(Kind::Receive) => self.on_received(key, completion),
            Some(Kind::Send) => self.on_sent(key, completion),
            Some(Kind::Accept) => self.on_accepted(key, completion),
            Some(Kind::Connect) => self.on_connected(key, completion.result()),
            // Whoever rang has said so in the doorbell itself.
            Some(Kind::Doorbell) if over => self.listen_to_bell(),
            // Of cancellations only failures are reported: there was nothing left to cancel.
            Some(Kind::Doorbell | Kind::Cancel) => {}
            None => unreachable!("every user data is one of ours"),
        }
    }

    /// Queues an operation that will have exactly one last completion.
    ///
    /// # Safety
    ///
    /// What the entry points to stays as it is until that completion.
    unsafe fn submit(&mut self, entry: squeue::Entry, user_data: u64) {
        self.in_flight += 1;
        // SAFETY: passed on to the caller.
        unsafe { self.kernel.push(entry.user_data(user_data)) };
    }

    /// Queues the cancellation of an operation. Its own last completion tells how it ended.
    fn cancel(&mut self, user_data: u64) {
        let entry = opcode::AsyncCancel::new(user_data).build().flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: a cancellation points to nothing.
        unsafe { self.kernel.push(entry.user_data(Key::NONE.user_data(Kind::Cancel))) };
    }

    /// A multishot poll: each write to the eventfd completes it once, and nobody needs to read it.
    fn listen_to_bell(&mut self) {
        let entry = opcode::PollAdd::new(types::Fd(self.bell), libc::POLLIN as u32).multi(true).build();
        // SAFETY: a poll points to nothing.
        unsafe { self.submit(entry, Key::NONE.user_data(Kind::Doorbell)) };
    }

    /// Ends all operations. True if the kernel is done with our memory.
    fn quiesce(&mut self) -> bool {
        let everything = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        // SAFETY: a cancellation points to nothing.
        unsafe { self.kernel.push(everything.user_data(Key::NONE.user_data(Kind::Cancel))) };
        for _ in 0..QUIESCE_ENTERS_MAX {
            if self.kernel.enter(kernel::Wait::For(QUIESCE_WAIT)).is_err() {
                return false;
            }
            while let Some(completion) = self.kernel.next() {
                let (kind, _) = Key::of_user_data(completion.user_data());
                self.in_flight -=
                    usize::from(!cqueue::more(completion.flags()) && kind != Some(Kind::Cancel));
                if kind == Some(Kind::Accept) && completion.result() >= 0 {
                    // SAFETY: the kernel opened the descriptor for us alone.
                    drop(unsafe { OwnedFd::from_raw_fd(completion.result()) });
                }
            }
            if self.in_flight == 0 {
                return true;
            }
        }
        false
    }
}

impl Drop for State {
    /// Frees what the kernel may read or write only after its last completion. If that does not come, the
    /// memory is leaked rather than given to somebody else.
    fn drop(&mut self) {
        if self.quiesce() {
            // SAFETY: it is dropped once, here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.kernel) };
        } else {
            mem::forget(Rc::clone(&self.buffers));
            mem::forget(mem::replace(&mut self.sockets, Sockets::new()));
            mem::forget(mem::replace(&mut self.waits, Slots::new()));
        }
    }
}

impl<'a> InTurn<'a> {
    fn new(in_turn: &'a Cell<bool>) -> Self {
        assert!(!in_turn.replace(true), "a turn within a turn");
        Self(in_turn)
    }
}

impl Drop for InTurn<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl RingSettings {
    fn check(&self) -> Result<(), RingError> {
        let buffers_fit = self.recv_buffers.is_power_of_two() && self.recv_buffers <= buffers::COUNT_MAX;
        let checks = [
            (SQ_ENTRIES.contains(&self.sq_entries), "sq_entries must be between 1 and 32768"),
            (CQ_ENTRIES.contains(&self.cq_entries), "cq_entries must be between 2 and 65536"),
            (self.sq_entries <= self.cq_entries, "cq_entries must not be less than sq_entries"),
            (buffers_fit, "recv_buffers must be a power of two and at most 32768"),
            (
                BUFFER_BYTES.contains(&self.recv_buffer_bytes),
                "recv_buffer_bytes must be between 512 and 16777216",
            ),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(RingError::Setting(what)),
            None => Ok(()),
        }
    }
}

impl Default for RingSettings {
    fn default() -> Self {
        Self {
            sq_entries: 1024,
            cq_entries: 8192,
            recv_buffers: 256,
            recv_buffer_bytes: 32768,
            busy_poll: Duration::ZERO,
        }
    }
}

/// The kernel's own limits.
const SQ_ENTRIES: std::ops::RangeInclusive<u32> = 1..=32768;
const CQ_ENTRIES: std::ops::RangeInclusive<u32> = 2..=65536;

/// Smaller ones are not worth a completion; larger ones, times their number, not worth the memory.
const BUFFER_BYTES: std::ops::RangeInclusive<u32> = 512..=16 * 1024 * 1024;

/// Each time around the kernel takes entries or hands over completions, thousands at a time.
const GATHERINGS_MAX: usize = 1000;

/// A cancelled operation completes at once, unless a worker of the kernel is in the middle of it.
const QUIESCE_ENTERS_MAX: usize = 50;
const QUIESCE_WAIT: Duration = Duration::from_millis(20);
