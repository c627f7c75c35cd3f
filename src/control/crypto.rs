//! Helpers for what takes milliseconds of CPU: deriving SCRAM keys, signing handshakes. A shard that did it itself would
//! let all its connections wait.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Sender, bounded};

use super::affinity::Housekeeping;

/// What a helper runs. Its result goes back by whatever mail the job holds.
pub type Job = Box<dyn FnOnce() + Send>;

/// Where to hand jobs in. When the last of them is dropped, the helpers end.
#[derive(Clone, Debug)]
pub struct Helpers {
    jobs: Sender<Job>,
}

/// The helpers have so much to do that the job was not taken: refuse the login, and say to come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

impl Helpers {
    /// Starts the helpers for so many shards.
    pub fn start(shards: usize, housekeeping: &Housekeeping) -> io::Result<Helpers> {
        let (jobs, work) = bounded::<Job>(JOBS_WAITING_MAX);
        for _ in 0..helpers_for(shards) {
            let work = work.clone();
            housekeeping.spawn("crypto", move || work.iter().for_each(run))?;
        }
        Ok(Helpers { jobs })
    }

    /// Hands a job in. Never waits.
    pub fn submit(&self, job: Job) -> Result<(), Busy> {
        self.jobs.try_send(job).map_err(|_| Busy)
    }
}

/// A panic ends the job, not the helper. The panic hook has told of it; who waits for the result sees its mail dropped.
fn run(job: Job) {
    let _ = catch_unwind(AssertUnwindSafe(job));
}

fn helpers_for(shards: usize) -> usize {
    (shards / SHARDS_PER_HELPER).max(1)
}

/// A login takes a helper some 2 ms with 4096 iterations; 500 logins a second for four shards are a storm.
const SHARDS_PER_HELPER: usize = 4;

/// Two seconds of work for one helper: who stands behind that is better refused than left waiting.
const JOBS_WAITING_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_panic_ends_the_job_and_not_the_helper() {
        let helpers = Helpers::start(1, &Housekeeping::new(&[])).unwrap();
        let (send, receive) = bounded(1);
        helpers.submit(Box::new(|| panic!("of the test"))).unwrap();
        helpers.submit(Box::new(move || send.send(7).unwrap())).unwrap();
        assert_eq!(receive.recv_timeout(Duration::from_secs(10)), Ok(7));
    }

    #[test]
    fn a_full_queue_refuses() {
        let helpers = Helpers::start(1, &Housekeeping::new(&[])).unwrap();
        let (started, has_started) = bounded::<()>(1);
        let (go, wait) = bounded::<()>(0);
        helpers
            .submit(Box::new(move || {
                started.send(()).unwrap();
                let _ = wait.recv();
            }))
            .unwrap();
        has_started.recv().unwrap();
        for _ in 0..JOBS_WAITING_MAX {
            helpers.submit(Box::new(|| ())).unwrap();
        }
        assert_eq!(helpers.submit(Box::new(|| ())), Err(Busy));
        drop(go);
    }

    #[test]
    fn four_shards_share_a_helper() {
        assert_eq!([1, 4, 7, 8, 64].map(helpers_for), [1, 1, 1, 2, 16]);
    }
}
