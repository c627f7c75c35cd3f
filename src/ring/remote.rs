//! Results that a task awaits from another thread.
//!
//! The other thread stores the value, leaves the number of the wait in the ring's letter box, and rings the doorbell;
//! the task's waker is called by the ring, on its own thread.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use crossbeam_channel::{Receiver, Sender};

use super::doorbell::Doorbell;
use super::slots::Key;
use super::waits::WaitGuard;
use super::{Ring, State};

/// The right and duty of another thread to give a task its value. Dropped, it tells the task that there is none.
#[derive(Debug)]
pub struct Promise<T> {
    value: Arc<Mutex<Option<T>>>,
    notice: Notice,
}

/// The value that another thread promised.
#[must_use = "it is a future"]
pub struct Remote<T> {
    value: Arc<Mutex<Option<T>>>,
    wait: WaitGuard,
}

/// The promise was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Where other threads leave the numbers of waits that are over. Bounded by the waits: each is left once.
pub(super) struct LetterBox {
    sender: Sender<Key>,
    receiver: Receiver<Key>,
}

/// Tells the ring that a wait is over, when dropped.
#[derive(Debug)]
struct Notice {
    wait: Key,
    letters: Sender<Key>,
    doorbell: Doorbell,
}

impl Ring {
    /// A value to be awaited here and given by another thread.
    pub fn remote<T: Send>(&self) -> (Promise<T>, Remote<T>) {
        let wait = self.wait();
        let value = Arc::new(Mutex::new(None));
        let letters = self.state().letters.sender.clone();
        let notice = Notice { wait: wait.key(), letters, doorbell: self.doorbell() };
        (Promise { value: Arc::clone(&value), notice }, Remote { value, wait })
    }
}

impl<T> Promise<T> {
    /// Gives the value. If the task is gone, it goes nowhere.
    pub fn fulfil(self, value: T) {
        let Self { value: place, notice } = self;
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        drop(notice);
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        // Fails only if the ring is gone, and its tasks with it.
        let _ = self.letters.send(self.wait);
        self.doorbell.ring();
    }
}

impl<T> Future for Remote<T> {
    type Output = Result<T, Broken>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        Pin::new(&mut &mut this.wait).poll(context).map(|()| {
            let value = this.value.lock().unwrap_or_else(PoisonError::into_inner).take();
            value.ok_or(Broken)
        })
    }
}

impl LetterBox {
    pub fn new() -> Self {
        let (sender, receiver) = crossbeam_channel::unbounded();
        Self { sender, receiver }
    }
}

impl State {
    /// Wakes the tasks whose promises were kept or broken.
    pub fn open_letters(&mut self) {
        while let Ok(wait) = self.letters.receiver.try_recv() {
            self.wake(wait);
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the thread that was to give the value is gone")
    }
}

impl std::error::Error for Broken {}
