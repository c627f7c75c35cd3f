//! What tasks wait for: a connect, a point in time, a promise kept by another thread.
//!
//! A wait is an entry in a table; the future holds only its key, so that dropping the future is safe at any
//! time: what the kernel reads stays in the table until the kernel is done.

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use io_uring::{opcode, types};

use super::address::RawAddress;
use super::deadlines::Due;
use super::slots::{Key, Kind};
use super::{Ring, State};
use crate::time::Instant;

/// One thing a task waits for.
pub(super) struct Wait {
    waker: Option<Waker>,
    done: bool,
    connect: Option<Connecting>,
}

struct Connecting {
    fd: OwnedFd,
    /// Boxed, because the kernel reads it where it is.
    address: Box<RawAddress>,
    /// The operation is in the kernel.
    in_flight: bool,
    late: bool,
    abandoned: bool,
    result: io::Result<()>,
}

/// Ready at a point in time.
#[must_use = "it is a future"]
pub struct Sleep {
    wait: WaitGuard,
}

/// A wait of a future; removes it when the future goes.
pub(super) struct WaitGuard {
    ring: Ring,
    key: Key,
}

impl Ring {
    /// Connects `fd`. At the deadline it fails with [`io::ErrorKind::TimedOut`].
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`.
    pub(super) async fn connect_raw(
        &self,
        fd: OwnedFd,
        address: RawAddress,
        by: Instant,
    ) -> io::Result<OwnedFd> {
        let mut wait = WaitGuard { ring: self.clone(), key: self.state().connect(fd, address, by) };
        (&mut wait).await;
        self.state().connected(wait.key)
    }

    /// Ready at `until`. Only within a turn of this ring does it become so.
    pub fn sleep_until(&self, until: Instant) -> Sleep {
        let mut state = self.state();
        let key = state.waits.insert(Wait { waker: None, done: false, connect: None });
        state.deadlines.add(until, Due::wait(key));
        Sleep { wait: WaitGuard { ring: self.clone(), key } }
    }

    /// A wait that only [`State::wake`] ends.
    pub(super) fn wait(&self) -> WaitGuard {
        let key = self.state().waits.insert(Wait { waker: None, done: false, connect: None });
        WaitGuard { ring: self.clone(), key }
    }
}

impl State {
    /// The wait is over.
    pub fn wake(&mut self, key: Key) {
        if let Some(wait) = self.waits.get_mut(key) {
            wait.done = true;
            self.wakes.extend(wait.waker.take());
        }
    }

    pub fn on_wait_due(&mut self, key: Key) {
        let Some(wait) = self.waits.get_mut(key) else { return };
        match &mut wait.connect {
            None => self.wake(key),
            Some(connecting) if connecting.in_flight => {
                connecting.late = true;
                self.cancel(key.user_data(Kind::Connect));
            }
            Some(_) => {}
        }
    }

    pub fn on_connected(&mut self, key: Key, result: i32) {
        let Some(Wait { connect: Some(connecting), .. }) = self.waits.get_mut(key) else { return };
        connecting.in_flight = false;
        connecting.result = match result.saturating_neg() {
            0 => Ok(()),
            libc::ECANCELED | libc::EINTR if connecting.late => Err(io::ErrorKind::TimedOut.into()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        };
        if connecting.abandoned {
            self.waits.remove(key);
            self.descriptors_closed = true;
        } else {
            self.wake(key);
        }
    }

    fn connect(&mut self, fd: OwnedFd, address: RawAddress, by: Instant) -> Key {
        let connect = Connecting {
            fd,
            address: Box::new(address),
            in_flight: true,
            late: false,
            abandoned: false,
            result: Ok(()),
        };
        let key = self.waits.insert(Wait { waker: None, done: false, connect: Some(connect) });
        let Some(Wait { connect: Some(connecting), .. }) = self.waits.get(key) else { return key };
        let (pointer, length) = connecting.address.as_parts();
        let entry = opcode::Connect::new(types::Fd(connecting.fd.as_raw_fd()), pointer, length).build();
        // SAFETY: descriptor and address stay in the table until `on_connected`.
        unsafe { self.submit(entry, key.user_data(Kind::Connect)) };
        self.deadlines.add(by, Due::wait(key));
        key
    }

    fn connected(&mut self, key: Key) -> io::Result<OwnedFd> {
        let Some(Wait { connect: Some(connecting), .. }) = self.waits.remove(key) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        self.descriptors_closed |= connecting.result.is_err();
        connecting.result.map(|()| connecting.fd)
    }

    /// Nobody waits any more.
    fn abandon(&mut self, key: Key) {
        match self.waits.get_mut(key) {
            Some(Wait { connect: Some(connecting), waker, .. }) if connecting.in_flight => {
                connecting.abandoned = true;
                *waker = None;
                self.cancel(key.user_data(Kind::Connect));
            }
            _ => {
                self.waits.remove(key);
            }
        }
    }
}

impl WaitGuard {
    pub fn key(&self) -> Key {
        self.key
    }
}

impl Future for &mut WaitGuard {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.ring.state();
        match state.waits.get_mut(self.key) {
            Some(wait) if !wait.done => {
                wait.waker = Some(context.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        self.ring.state().abandon(self.key);
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut &mut self.wait).poll(context)
    }
}
