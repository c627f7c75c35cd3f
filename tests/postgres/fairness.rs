//! One budget for all cores, against real PostgreSQL and two shards: exact, fair, work conserving, and never a storm.
//!
//! Each test takes seconds. `PGPINION_TEST_LONG=1` gives it the crowds, the time and the strict numbers it was asked for
//! with; those need a machine with nothing else to do. What was measured is printed (`--nocapture`).

mod cores;
mod demand;
mod limit;
mod queue;
mod routes;
mod starts;
mod tenants;
mod waking;
mod watch;

use std::time::Duration;

/// Long runs and strict numbers are wanted.
fn is_long() -> bool {
    std::env::var_os("PGPINION_TEST_LONG").is_some_and(|value| value == "1")
}

/// What fits the time there is.
fn pick<T>(short: T, long: T) -> T {
    if is_long() { long } else { short }
}

/// A time in seconds.
fn seconds(short: f64, long: f64) -> Duration {
    Duration::from_secs_f64(pick(short, long))
}

const SOON: Duration = Duration::from_secs(5);
const MS: Duration = Duration::from_millis(1);
