//! Listening sockets: one multishot accept each.
//!
//! Out of descriptors or memory, a listener pauses until a socket of this ring was closed or [`PAUSE`] is over:
//! it neither spins nor stays deaf.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{cqueue, opcode, types};

use super::deadlines::Due;
use super::slots::{Key, Kind};
use super::{Event, State, clock};

/// A listening socket of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerId(Key);

pub(super) struct Listener {
    fd: OwnedFd,
    tag: u32,
    accepting: bool,
    paused: bool,
    closing: bool,
}

impl State {
    pub fn listen(&mut self, fd: OwnedFd, tag: u32) -> ListenerId {
        let key =
            self.listeners.insert(Listener { fd, tag, accepting: false, paused: false, closing: false });
        self.accept(key);
        ListenerId(key)
    }

    pub fn close_listener(&mut self, ListenerId(key): ListenerId) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        listener.closing = true;
        if listener.accepting {
            self.cancel(key.user_data(Kind::Accept));
        } else {
            self.listeners.remove(key);
        }
    }

    pub fn on_accepted(&mut self, key: Key, completion: &cqueue::Entry) {
        let result = completion.result();
        // SAFETY: a result that is not negative is a descriptor that the kernel opened for us alone.
        let accepted = (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) });
        let Some(listener) = self.listeners.get_mut(key) else { return };
        let tag = listener.tag;
        if let Some(fd) = accepted {
            self.events.push_back(Event::Accepted { tag, fd });
        }
        if cqueue::more(completion.flags()) {
            return;
        }
        listener.accepting = false;
        if listener.closing {
            self.listeners.remove(key);
        } else if result < 0 && !passes_by_itself(-result) {
            listener.paused = true;
            self.deadlines.add(clock::now() + PAUSE, Due::listener(key));
            let error = io::Error::from_raw_os_error(result.saturating_neg());
            self.events.push_back(Event::AcceptFailed { tag, error });
        } else {
            self.accept(key);
        }
    }

    pub fn on_listener_due(&mut self, key: Key) {
        if let Some(listener) = self.listeners.get_mut(key) {
            listener.paused = false;
            self.accept(key);
        }
    }

    /// Descriptors were closed: those who had none left may try again.
    pub fn resume_listeners(&mut self) {
        for key in self.listeners.keys(Listener::is_paused) {
            self.on_listener_due(key);
        }
    }

    fn accept(&mut self, key: Key) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        if listener.accepting || listener.closing {
            return;
        }
        listener.accepting = true;
        let fd = types::Fd(listener.fd.as_raw_fd());
        let entry = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build();
        // SAFETY: a multishot accept points to nothing.
        unsafe { self.submit(entry, key.user_data(Kind::Accept)) };
    }
}

impl Listener {
    pub fn is_paused(&self) -> bool {
        self.paused
    }
}

/// Failures of one connection, or of nothing: the next may well succeed at once.
fn passes_by_itself(errno: i32) -> bool {
    matches!(errno, libc::ECONNABORTED | libc::EINTR | libc::EAGAIN | libc::ECANCELED)
}

/// How long a listener waits that could not accept. Clients wait in the kernel's queue meanwhile.
const PAUSE: Duration = Duration::from_millis(100);
