//! How large a test is: seconds of it in the usual run, or the crowds, the time and the strict numbers that it was asked
//! for with, by `PGPINION_TEST_LONG=1`. Those need a release build and a machine with nothing else to do.

use std::time::Duration;

/// Long runs and strict numbers are wanted.
pub fn is_long() -> bool {
    times() > 0
}

/// How many times its time a long run is wanted to take, where more of it shows more: of a minute `PGPINION_TEST_LONG=60` makes an
/// hour.
pub fn times() -> u32 {
    let value = std::env::var("PGPINION_TEST_LONG").unwrap_or_default();
    value.parse().unwrap_or(0)
}

/// What fits the time there is.
pub fn pick<T>(short: T, long: T) -> T {
    if is_long() { long } else { short }
}

/// A time in seconds.
pub fn seconds(short: f64, long: f64) -> Duration {
    Duration::from_secs_f64(pick(short, long))
}
