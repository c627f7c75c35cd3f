//! Clients of a route that want transactions all the time, and what they get.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::pooler::{Pooler, login};
use crate::wire::{Address, Client, Fault};

/// Threads with a client each, asking the same again and again until told to stop.
#[derive(Debug)]
pub struct Demand {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Outcome>>,
}

/// What a demand came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// From the question to its answer, login included for the first.
    pub latencies: Vec<Duration>,
    pub faults: Vec<Fault>,
    /// When the last answer came.
    pub answered: Option<Instant>,
}

/// Where a client comes from.
enum Origin {
    LogIn(Address, String),
    There(Box<Client>),
}

impl Demand {
    /// `count` clients of `user` that log in each for itself.
    pub fn start(pooler: &Pooler, user: &str, count: usize, statement: &str) -> Self {
        let origins = (0..count).map(|_| Origin::LogIn(pooler.address.clone(), user.to_owned()));
        Self::spawn(origins, statement)
    }

    /// These clients.
    pub fn of(clients: Vec<Client>, statement: &str) -> Self {
        Self::spawn(clients.into_iter().map(|client| Origin::There(Box::new(client))), statement)
    }

    fn spawn(origins: impl Iterator<Item = Origin>, statement: &str) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let ask = |origin| {
            let (stop, served, statement) = (stop.clone(), served.clone(), statement.to_owned());
            // Hundreds of them: each with no more stack than it needs.
            let thread = Builder::new().stack_size(STACK_BYTES);
            thread.spawn(move || ask_on(origin, &statement, &stop, &served)).expect("a thread")
        };
        let threads = origins.map(ask).collect();
        Self { stop, served, threads }
    }

    /// Transactions so far.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// No further question; what is asked is still answered.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn finish(mut self) -> Outcome {
        self.stop();
        let mut all = Outcome::default();
        for thread in self.threads.drain(..) {
            let mut each = thread.join().expect("a client found the pooler wrong");
            all.latencies.append(&mut each.latencies);
            all.faults.append(&mut each.faults);
            all.answered = all.answered.max(each.answered);
        }
        all.latencies.sort_unstable();
        all
    }
}

impl Drop for Demand {
    /// A test that fails leaves nobody behind who asks on.
    fn drop(&mut self) {
        self.stop();
    }
}

impl Outcome {
    pub fn percentile(&self, percent: usize) -> Duration {
        assert!(!self.latencies.is_empty(), "nothing was asked");
        self.latencies[(self.latencies.len() - 1) * percent / 100]
    }

    pub fn mean(&self) -> Duration {
        self.latencies.iter().sum::<Duration>() / self.latencies.len().max(1) as u32
    }

    pub fn assert_faultless(&self) {
        let faults: Vec<String> = self.faults.iter().take(3).map(Fault::to_string).collect();
        assert!(faults.is_empty(), "{} faults: {faults:?}", self.faults.len());
    }
}

fn ask_on(origin: Origin, statement: &str, stop: &AtomicBool, served: &AtomicU64) -> Outcome {
    let mut outcome = Outcome::default();
    let mut start = Instant::now();
    let client = match origin {
        Origin::LogIn(address, user) => Client::connect(&address, &login(&user)),
        Origin::There(client) => Ok(*client),
    };
    let mut client = match client {
        Ok(client) => client,
        Err(fault) => {
            outcome.faults.push(fault);
            return outcome;
        }
    };
    while !stop.load(Ordering::Relaxed) {
        match client.query(statement) {
            Ok(reply) => assert_eq!(reply.sequence, "TDCZ", "{:?}", reply.errors),
            Err(fault) => {
                outcome.faults.push(fault);
                return outcome;
            }
        }
        let now = Instant::now();
        outcome.latencies.push(now - start);
        outcome.answered = Some(now);
        served.fetch_add(1, Ordering::Relaxed);
        start = now;
    }
    client.terminate();
    outcome
}

/// How equal shares are: 1 if all are the same, 1/n if one has everything (Jain, Chiu and Hawe, 1984).
pub fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    sum * sum / (shares.len() as f64 * squares)
}

/// The least of the shares for each of the most.
pub fn least_to_most(shares: &[f64]) -> f64 {
    let least = shares.iter().copied().fold(f64::MAX, f64::min);
    least / shares.iter().copied().fold(0.0, f64::max)
}

/// A client's receive buffer, and room.
const STACK_BYTES: usize = 512 << 10;
