//! Signals, taken by one thread that waits for them.
//!
//! They are blocked in all threads, so that none ever interrupts a shard in its ring. SIGPIPE needs nothing: Rust's
//! runtime ignores it, and a broken pipe is an error of the write.

use std::io;
use std::thread::JoinHandle;

use nix::sys::signal::{SigSet, Signal as Number};

use super::affinity::Housekeeping;

/// What an operator asks for by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGTERM: let transactions end, then exit.
    Drain,
    /// SIGINT: exit at once.
    Stop,
}

/// The proof that the signals are blocked.
#[derive(Debug)]
#[must_use = "blocked signals that nobody listens to make a process that cannot be stopped"]
pub struct Blocked(SigSet);

/// Blocks the signals in this thread and all that it will start. Call it before the first thread.
pub fn block() -> io::Result<Blocked> {
    let mut set = SigSet::empty();
    for number in [Number::SIGHUP, Number::SIGTERM, Number::SIGINT] {
        set.add(number);
    }
    set.thread_block()?;
    Ok(Blocked(set))
}

impl Blocked {
    /// Starts the thread that waits for them and calls `deliver` with each. It lasts as long as the process.
    pub fn listen(
        self,
        housekeeping: &Housekeeping,
        mut deliver: impl FnMut(Signal) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        housekeeping.spawn("signals", move || {
            // EINTR is the only error of sigwait that can happen with a good set, and means nothing.
            loop {
                if let Ok(number) = self.0.wait()
                    && let Some(signal) = Signal::of(number)
                {
                    deliver(signal);
                }
            }
        })
    }
}

impl Signal {
    fn of(number: Number) -> Option<Signal> {
        match number {
            Number::SIGHUP => Some(Signal::Reload),
            Number::SIGTERM => Some(Signal::Drain),
            Number::SIGINT => Some(Signal::Stop),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::thread::JoinHandleExt;
    use std::time::Duration;

    use nix::sys::pthread::pthread_kill;

    use super::*;

    #[test]
    fn each_signal_is_delivered() {
        let (send, receive) = crossbeam_channel::unbounded();
        let blocked = block().unwrap();
        let thread =
            blocked.listen(&Housekeeping::new(&[]), move |signal| send.send(signal).unwrap()).unwrap();
        let table = [
            (Number::SIGHUP, Signal::Reload),
            (Number::SIGTERM, Signal::Drain),
            (Number::SIGINT, Signal::Stop),
            (Number::SIGHUP, Signal::Reload),
        ];
        for (number, signal) in table {
            // To that thread alone: the test's other threads do not block it.
            pthread_kill(thread.as_pthread_t(), number).unwrap();
            assert_eq!(receive.recv_timeout(Duration::from_secs(10)), Ok(signal));
        }
    }
}
