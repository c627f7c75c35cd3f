//! A sampler on PostgreSQL's side that remembers when it saw what.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::wire::Client;

/// A thread that counts backends until it is asked for the result.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Timeline>>,
}

/// What it saw, in order.
#[derive(Debug)]
pub struct Timeline(pub Vec<Moment>);

/// Backends by user.
#[derive(Debug)]
pub struct Moment {
    /// When PostgreSQL had answered.
    pub at: Instant,
    held: HashMap<String, usize>,
}

impl Watch {
    /// With this rest after each sample: none is as fast as PostgreSQL can.
    pub fn start(cluster: &Cluster, rest: Duration) -> Self {
        let (stop, address) = (Arc::new(AtomicBool::new(false)), cluster.address());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let parameters = [("user", "postgres"), ("database", "app"), ("application_name", "watch")];
            let mut client = Client::connect(&address, &parameters).expect("a free superuser slot");
            let mut moments = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                moments.push(moment(&mut client));
                std::thread::sleep(rest);
            }
            Timeline(moments)
        });
        Self { stop, thread: Some(thread) }
    }

    pub fn finish(mut self) -> Timeline {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).expect("the watch")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Moment {
    pub fn of(&self, user: &str) -> usize {
        self.held.get(user).copied().unwrap_or(0)
    }

    pub fn of_all(&self, users: &[String]) -> usize {
        users.iter().map(|user| self.of(user)).sum()
    }
}

impl Timeline {
    pub fn most(&self, users: &[String]) -> usize {
        self.0.iter().map(|moment| moment.of_all(users)).max().expect("samples")
    }

    /// The samples of a while.
    pub fn between(&self, from: Instant, to: Instant) -> impl Iterator<Item = &Moment> {
        self.0.iter().filter(move |moment| (from..=to).contains(&moment.at))
    }

    /// How long after `from` this was so for the first time.
    pub fn until(&self, from: Instant, so: impl Fn(&Moment) -> bool) -> Option<Duration> {
        let found = self.0.iter().find(|moment| moment.at >= from && so(moment))?;
        Some(found.at - from)
    }

    /// How many connections a user had, on average.
    pub fn mean(&self, user: &str) -> f64 {
        self.0.iter().map(|moment| moment.of(user)).sum::<usize>() as f64 / self.0.len() as f64
    }
}

fn moment(client: &mut Client) -> Moment {
    let rows = client.query(BACKENDS).expect("PostgreSQL is there").text_rows();
    let count = |row: Vec<String>| (row[0].clone(), row[1].parse().expect("a count"));
    Moment { at: Instant::now(), held: rows.into_iter().map(count).collect() }
}

const BACKENDS: &str = "select usename, count(*) from pg_stat_activity
    where backend_type = 'client backend' and usename <> 'postgres' group by 1";
