//! How large a test is: seconds of it in the usual run, or the crowds, the time and the strict numbers that it was asked
//! for with, by `PGPINION_TEST_LONG=1`. Those need a release build and a machine with nothing else to do.

use std::time::Duration;

/// Long runs and strict numbers are wanted.
pub fn is_long() -> bool {
    std::env::var_os("PGPINION_TEST_LONG").is_some_and(|value| value == "1")
}

/// What fits the time there is.
pub fn pick<T>(short: T, long: T) -> T {
    if is_long() { long } else { short }
}

/// A time in seconds.
pub fn seconds(short: f64, long: f64) -> Duration {
    Duration::from_secs_f64(pick(short, long))
}
