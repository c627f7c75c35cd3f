//! Numbers to be looked at: how long clients waited, and what a route and a shard hold and have done.
//!
//! Only counts: who waits and why is the shard's business. They are gathered where they arise, travel between shards as
//! they are, and are shown by `admin` and in the log.

use crate::ids::ShardId;
use hdrhistogram::Histogram;
use std::time::Duration;

/// How long clients waited for a server, in microseconds.
///
/// Those that did not wait are only counted: that is the hot path. The histogram is made when the first one waits: two
/// significant digits up to [`WAIT_MAX`] are [`HISTOGRAM_BYTES`], and it never grows.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    at_once: u64,
    waited: Option<Box<Histogram<u32>>>,
}

impl Waits {
    /// A client that got its server at once.
    #[inline]
    pub fn count_at_once(&mut self) {
        self.at_once += 1;
    }

    /// A client that waited.
    pub fn record(&mut self, wait: Duration) {
        let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        if let Some(histogram) = self.histogram() {
            histogram.saturating_record(micros.max(1));
        }
    }

    /// Adds those of another shard, or of another time.
    pub fn add(&mut self, other: &Waits) {
        self.at_once += other.at_once;
        if let Some(theirs) = &other.waited
            && let Some(ours) = self.histogram()
        {
            // Both have the same bounds: nothing can be out of range.
            let _ = ours.add(theirs.as_ref());
        }
    }

    /// Forgets all, and keeps the memory.
    pub fn clear(&mut self) {
        self.at_once = 0;
        if let Some(histogram) = &mut self.waited {
            histogram.reset();
        }
    }

    /// Clients that got a server, or gave up waiting for one.
    pub fn count(&self) -> u64 {
        self.at_once + self.waited()
    }

    /// Those of them that waited.
    pub fn waited(&self) -> u64 {
        self.waited.as_ref().map_or(0, |histogram| histogram.len())
    }

    /// What this part of all clients did not exceed, those that did not wait included.
    pub fn quantile(&self, part: f64) -> Duration {
        let (count, waited) = (self.count() as f64, self.waited() as f64);
        let Some(histogram) = self.waited.as_ref().filter(|_| waited > 0.0) else { return Duration::ZERO };
        let rank = (part * count).ceil() - self.at_once as f64;
        if rank <= 0.0 {
            return Duration::ZERO;
        }
        Duration::from_micros(histogram.value_at_quantile(rank / waited).min(histogram.max()))
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.waited.as_ref().map_or(0, |histogram| histogram.max()))
    }

    fn histogram(&mut self) -> Option<&mut Histogram<u32>> {
        if self.waited.is_none() {
            let most = WAIT_MAX.as_micros() as u64;
            self.waited = Histogram::new_with_bounds(1, most, SIGNIFICANT_DIGITS).ok().map(Box::new);
        }
        self.waited.as_deref_mut()
    }
}

/// The waits of this period and of the one before: never less than a whole period is seen, and nothing that is long
/// over.
#[derive(Clone, Debug, Default)]
pub struct RecentWaits {
    /// Of this period so far.
    pub now: Waits,
    before: Waits,
}

impl RecentWaits {
    /// A period is over.
    pub fn turn(&mut self) {
        std::mem::swap(&mut self.now, &mut self.before);
        self.now.clear();
    }

    /// Those of both periods.
    pub fn both(&self) -> Waits {
        let mut both = self.now.clone();
        both.add(&self.before);
        both
    }
}

/// What a route did on one shard since it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteCounts {
    /// Permits it got.
    pub granted: u64,
    /// Connections it had to give up for another route.
    pub recalled: u64,
    /// Connections that came from other shards.
    pub handed_in: u64,
    /// Connections that went to other shards.
    pub handed_out: u64,
    /// Clients that came from other shards at their login.
    pub steered: u64,
}

/// One route on one shard, or over all of them.
#[derive(Clone, Debug, Default)]
pub struct RouteReport {
    /// The server's name in the configuration.
    pub endpoint: String,
    /// As clients name it.
    pub database: String,
    /// As clients name it.
    pub user: String,
    /// Clients, in any state.
    pub clients: usize,
    /// Connections in any state, those being opened or closed included.
    pub permits: usize,
    /// Connections at rest.
    pub idle: usize,
    /// Connections that serve a client.
    pub linked: usize,
    /// Of these, connections that their clients keep for longer than a transaction.
    pub pinned: usize,
    /// Clients that wait for one.
    pub waiting: usize,
    /// What it did.
    pub counts: RouteCounts,
    /// How long its clients waited lately.
    pub waits: Waits,
    /// How long the client has waited that waits longest now.
    pub longest: Duration,
}

impl RouteReport {
    /// Whether this is the same route, on another shard.
    pub fn is_same_route(&self, other: &RouteReport) -> bool {
        (&self.endpoint, &self.database, &self.user) == (&other.endpoint, &other.database, &other.user)
    }

    /// Adds the same route of another shard.
    pub fn add(&mut self, other: &RouteReport) {
        self.clients += other.clients;
        self.permits += other.permits;
        self.idle += other.idle;
        self.linked += other.linked;
        self.pinned += other.pinned;
        self.waiting += other.waiting;
        self.counts.granted += other.counts.granted;
        self.counts.recalled += other.counts.recalled;
        self.counts.handed_in += other.counts.handed_in;
        self.counts.handed_out += other.counts.handed_out;
        self.counts.steered += other.counts.steered;
        self.waits.add(&other.waits);
        self.longest = self.longest.max(other.longest);
    }
}

/// What the engine knows of a core, and the shard does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreReport {
    /// The CPU it is pinned to.
    pub cpu: usize,
    /// Turns of the ring: system calls that submitted, reaped or slept.
    pub turns: u64,
    /// Times another thread woke it.
    pub doorbells: u64,
    /// Letters from other shards.
    pub letters_in: u64,
    /// Letters to other shards.
    pub letters_out: u64,
    /// Connections that were closed because handling them panicked.
    pub panics: u64,
    /// Receive buffers that are free.
    pub buffers_free: u32,
    /// Receive buffers altogether.
    pub buffers: u32,
}

/// Counts of a shard since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Transactions (or sessions' statements outside one) whose end let a server rest.
    pub transactions: u64,
    /// Query and Execute messages.
    pub queries: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
    /// Clients that logged in.
    pub logins: u64,
    /// Server connections opened.
    pub opened: u64,
    /// Servers given to other shards.
    pub handed_out: u64,
    /// Servers got from other shards.
    pub handed_in: u64,
    /// Clients sent to other shards.
    pub steered_out: u64,
    /// Clients that other shards sent.
    pub steered_in: u64,
    /// Time clients waited for a server.
    pub wait: Duration,
}

/// How many of each a shard has now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Clients in any state.
    pub clients: usize,
    /// Clients that wait for a server.
    pub waiting: usize,
    /// Servers in any state.
    pub servers: usize,
    /// Servers at rest.
    pub idle: usize,
    /// Permits held, over all endpoints.
    pub permits: usize,
}

/// All that is told of one shard.
#[derive(Clone, Debug)]
pub struct ShardReport {
    /// Which.
    pub shard: ShardId,
    /// Its core.
    pub core: CoreReport,
    /// What it has.
    pub census: Census,
    /// What it did.
    pub stats: Stats,
    /// Its routes, the busiest first, at most [`ROUTES_REPORTED_MAX`].
    pub routes: Vec<RouteReport>,
    /// Routes beyond that.
    pub routes_left_out: usize,
    /// Of the endpoints whose ledgers it keeps: each route, of any shard, that holds connections or waits for some.
    pub quotas: Vec<Quota>,
}

/// What a route can insist on, over all shards.
#[derive(Clone, Debug, PartialEq)]
pub struct Quota {
    /// The server's name in the configuration.
    pub endpoint: String,
    /// As clients name it.
    pub database: String,
    /// As clients name it.
    pub user: String,
    /// Connections it can have while all that want some want all they can get.
    pub connections: f64,
}

/// Nobody waits longer than an hour without `query_wait_timeout` being off; what is longer counts as this.
pub const WAIT_MAX: Duration = Duration::from_secs(3600);

/// 1 percent: who looks at a wait wants to know whether it is 12 or 13 ms, not 12.1.
const SIGNIFICANT_DIGITS: u8 = 2;

/// 256 counts of 4 bytes for waits below 256 us, and 128 more for each of 24 doublings up to an hour.
pub const HISTOGRAM_BYTES: usize = 4 * (256 + 24 * 128);

/// Routes of one shard that a report tells of: 2.7 MB of histograms at most, and a millisecond to put them together, in
/// which no client is served.
pub const ROUTES_REPORTED_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn a_histogram_has_the_size_that_is_told() {
        let mut waits = Waits::default();
        assert!(waits.waited.is_none(), "no memory for a route that nobody waits for");
        waits.record(micros(1));
        let size = |waits: &Waits| 4 * waits.waited.as_ref().unwrap().distinct_values();
        assert_eq!(size(&waits), HISTOGRAM_BYTES);
        waits.record(Duration::MAX);
        assert_eq!(size(&waits), HISTOGRAM_BYTES);
        assert!(waits.max() >= WAIT_MAX && waits.max() < WAIT_MAX * 2, "{:?}", waits.max());
    }

    #[test]
    fn those_that_did_not_wait_count() {
        let mut waits = Waits::default();
        assert_eq!((waits.quantile(0.5), waits.max()), (Duration::ZERO, Duration::ZERO));
        for _ in 0..90 {
            waits.count_at_once();
        }
        for wait in 1..=10 {
            waits.record(micros(wait * 10));
        }
        assert_eq!((waits.count(), waits.waited()), (100, 10));
        assert_eq!(waits.quantile(0.5), Duration::ZERO);
        assert_eq!(waits.quantile(0.9), Duration::ZERO);
        assert_eq!(waits.quantile(0.91), micros(10));
        assert_eq!(waits.quantile(0.99), micros(90));
        assert_eq!((waits.quantile(1.0), waits.max()), (micros(100), micros(100)));
    }

    #[test]
    fn shards_add_up() {
        let (mut one, mut two) = (Waits::default(), Waits::default());
        one.record(micros(1000));
        two.count_at_once();
        two.record(micros(3000));
        two.add(&one);
        assert_eq!((two.count(), two.waited()), (3, 2));
        // Two digits: a bucket's width away at most.
        assert!(two.quantile(0.5).abs_diff(micros(1000)) <= micros(10), "{:?}", two.quantile(0.5));
        let mut none = Waits::default();
        none.add(&two);
        assert_eq!(none.max(), two.max());
    }

    #[test]
    fn what_is_two_periods_old_is_forgotten() {
        let mut recent = RecentWaits::default();
        recent.now.record(micros(5));
        recent.turn();
        recent.now.record(micros(3));
        assert_eq!((recent.both().max(), recent.now.max()), (micros(5), micros(3)));
        recent.turn();
        assert_eq!(recent.both().max(), micros(3));
        recent.turn();
        assert_eq!(recent.both().count(), 0);
    }
}
