//! One budget for all cores, against real PostgreSQL and two shards: exact, fair, work conserving, and never a storm.
//!
//! What was measured is printed (`--nocapture`).

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

use crate::scale::{is_long, pick, seconds};

const SOON: Duration = Duration::from_secs(5);
const MS: Duration = Duration::from_millis(1);
