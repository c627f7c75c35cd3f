//! Every bound that does not come from the configuration, with its reason.

use std::time::Duration;

/// PostgreSQL's own bound (`MAX_STARTUP_PACKET_LENGTH`): more is no startup packet.
pub const STARTUP_BYTES_MAX: usize = 10_000;

/// The shortest cancel key there is: that of protocol 3.0.
pub const CANCEL_KEY_BYTES_MIN: usize = 4;

/// The longest cancel key that protocol 3.2 allows.
pub const CANCEL_KEY_BYTES_MAX: usize = 256;

/// PostgreSQL's bound on messages that may be large (`PQ_LARGE_MESSAGE_LIMIT`): one allocation of its own.
pub const MESSAGE_BYTES_MAX: u32 = 0x3fff_ffff;

/// PostgreSQL's bound on messages that need not be large (`PQ_SMALL_MESSAGE_LIMIT`).
pub const SMALL_MESSAGE_BYTES_MAX: u32 = 10_000;

/// An authentication message larger than this is an attack on the memory of whoever collects it.
pub const AUTHENTICATION_BYTES_MAX: usize = 65_536;

/// Bytes a client may have waiting (for a server, or to be sent on) before we stop reading from it; the same for
/// a server's bytes waiting for its client. Four receive buffers of the default size keep a fast stream moving.
pub const UNSENT_BYTES_HIGH: usize = 128 * 1024;

/// Reading goes on when what waits has fallen to this.
pub const UNSENT_BYTES_LOW: usize = 32 * 1024;

/// While a server is known to say so much more, it is heard of in pieces of at least this size. Below
/// [`UNSENT_BYTES_HIGH`], or each piece would stop it.
pub const LOW_WATER_BYTES: u32 = 64 * 1024;

/// A message that begins a transaction and is not larger than this is collected before a server is taken for it,
/// so that a client that sends half a query holds nothing but its own bytes.
pub const COLLECTED_BYTES_MAX: usize = 16 * 1024;

/// Requests a client may have unanswered on its server. PostgreSQL flushes its answers at 8 kB, so that a client
/// that reads them can never be stopped by this; one that does not is stopped by its socket first.
pub const OWED_REPLIES_MAX: usize = 65_536;

/// A message of the server that we read ourselves (parameter, notice, error) is read up to this size.
pub const UNDERSTOOD_BYTES_MAX: usize = 16 * 1024;

/// What a server may still have to say to a client that left, before closing it is cheaper than listening.
pub const DRAINED_BYTES_MAX: usize = 1024 * 1024;

/// How long a server may take to come to rest after its client left.
pub const DRAIN_MAX: Duration = Duration::from_millis(500);

/// Who may wait for the end of the cancel requests of one query. Nobody needs more than one.
pub const CANCEL_ASKERS_MAX: usize = 16;

/// Cancel requests that a shard has sent to another one and that are not answered yet.
pub const CANCELS_ABROAD_MAX: usize = 256;

/// How long PostgreSQL may take to act on a cancel request and close its connection. After that nobody knows when it will
/// act, and the server that is meant is not used again.
pub const CANCEL_MAX: Duration = Duration::from_secs(5);

/// Server connections of one endpoint that are opened at the same time, over all shards: enough to fill a pool within a
/// few round trips, few enough that a cold start is no storm (PostgreSQL forks a process for each). That each is
/// answered bounds the letters about it, too.
pub const DIALS_MAX: u32 = 16;

/// First pause after a failed connection attempt; doubles up to `DIAL_BACKOFF_MAX`.
pub const DIAL_BACKOFF_MIN: Duration = Duration::from_millis(50);

/// At most this between attempts, so that service resumes within a second of the server's return.
pub const DIAL_BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A server that did not let us in when we asked for the newest protocol is asked for 3.0 for so long. Long enough that the
/// attempts that fail do not matter, short enough that a newer server is noticed.
pub const OLD_PROTOCOL_FOR: Duration = Duration::from_secs(600);

/// SCRAM iterations we compute at a server's wish (PostgreSQL's default is 4,096). More is an attack on our CPU.
pub const SCRAM_ITERATIONS_MAX: u32 = 1_000_000;

/// A named prepared statement that is kept for a client: it is collected whole. JDBC's and Rails' are far below.
pub const STATEMENT_BYTES_MAX: usize = 1024 * 1024;

/// What a client's named prepared statements may hold, with a fixed part for each. JDBC keeps 256 or 5 MiB of them.
pub const PREPARED_BYTES_PER_CLIENT_MAX: usize = 8 * 1024 * 1024;

/// The names of portal and statement in a Bind: PostgreSQL looks at 63 bytes of each.
pub const STATEMENT_NAMES_BYTES_MAX: usize = 32 * 1024;
