//! What the operator asked for, as values that are valid by construction.
//!
//! Knows the files' language, the settings with their defaults and limits, and how to say what is wrong with a
//! file and where. Knows no machine: which CPUs there are is an argument, and only `load` reads a file. Called at
//! start, by `check`, and on reload; from then on shards share the [`Config`] unchanged.
//!
//! `settings` is the one table of all settings. `file`, `cores` and `userlist` each read one kind of file.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

mod addresses;
mod cores;
mod error;
mod file;
mod load;
mod pgbouncer;
mod reload;
mod render;
mod report;
mod settings;
mod shares;
mod suggest;
#[cfg(test)]
mod tests;
mod upstream;
mod userlist;
mod values;

pub use error::ConfigError;
pub use file::parse;
pub use load::load;
pub use reload::Reloaded;
pub use render::Row;

pub use crate::log_line::Level as LogLevel;

/// Everything the files say, with defaults filled in. Valid: what [`parse`] gives out can be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients connect.
    pub listen: Vec<Listen>,
    /// When a server connection goes back to its pool, unless the database says otherwise.
    pub pool_mode: PoolMode,
    /// Clients at the same time, over all shards.
    pub max_client_conn: usize,
    /// Named prepared statements that a server connection keeps in transaction and statement pooling; 0 leaves them to
    /// the client, who then has to find the server again that it prepared them on.
    pub max_prepared_statements: usize,
    /// Clients of a route that may wait for a server connection on each shard; `None` for as many as come.
    pub max_waiting_clients: Option<usize>,
    /// Connections that a route without a ceiling of its own can have at most; `None` for as many as the endpoint has.
    pub default_pool_size: Option<usize>,
    /// Whether idle server connections go to the shard where they are wanted.
    pub hand_over: bool,
    /// Whether clients go to the shards where their route lives.
    pub steering: bool,
    /// How clients prove who they are.
    pub auth_type: AuthType,
    /// Who may open the console.
    pub admin_users: Vec<String>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// What cleans a server connection between two clients in session pooling; empty for nothing.
    pub server_reset_query: String,
    /// As the file has it: see [`Config::check_query`].
    pub server_check_query: String,
    /// Whether the application_name that a client asks for gets its address.
    pub application_name_add_host: bool,
    /// Whether simple queries are refused.
    pub disable_pqexec: bool,
    /// Parameters of startup packets that are ignored.
    pub ignore_startup_parameters: Vec<String>,
    /// Parameters of startup packets that are honoured beside those that always are.
    pub track_extra_parameters: Vec<String>,
    /// What is done about state of a session that cannot follow its client, unless its route says otherwise.
    pub leak_policy: LeakPolicy,
    /// Options of TCP sockets.
    pub tcp: Tcp,
    /// What is logged, and how.
    pub log: Log,
    /// How often a line of statistics is logged; `None` for never.
    pub stats_period: Option<Duration>,
    /// How long answers of name resolution are kept.
    pub dns: Dns,
    /// The files named in the configuration, as written there.
    pub files: Files,
    /// The PostgreSQL servers, in the order of the file.
    pub endpoints: Vec<Endpoint>,
    /// What clients may ask for, in the order of the file.
    pub databases: Vec<Database>,
    /// What is asked for single routes, in the order of the file.
    pub routes: Vec<RouteSettings>,
    /// The users of `auth_file`.
    pub users: Users,
    /// The shards and the CPUs they are pinned to.
    pub cores: Cores,
}

/// A place where clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    /// An address. `*` in the file is two of them, so a socket of `[::]` must be IPv6 only.
    Tcp(SocketAddr),
    /// `DIR/.s.PGSQL.PORT` in this directory.
    Unix(PathBuf, u16),
}

/// When a server connection goes back to its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolMode {
    /// When the client disconnects.
    Session,
    /// When the transaction is over.
    Transaction,
    /// After each statement; transactions of several statements are refused.
    Statement,
}

/// What is done about state that a client leaves in a server's session, where servers are shared by transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeakPolicy {
    /// Nothing: whoever gets the server next finds it.
    Allow,
    /// The same, and the log says so.
    Log,
    /// The server forgets it before another client gets it.
    Reset,
    /// The server stays with its client.
    Pin,
    /// The command is refused.
    Refuse,
}

/// How clients prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthType {
    /// Not at all: whoever reaches `listen` is believed.
    Trust,
}

/// How long things may take. `None` is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A client waiting for a server connection.
    pub query_wait: Option<Duration>,
    /// A client waiting for one until it is told that it waits.
    pub query_wait_notify: Option<Duration>,
    /// A server connection without use.
    pub server_idle: Option<Duration>,
    /// A server connection without use until it is checked before its next use.
    pub server_check: Delay,
    /// A server connection since it was opened; it is closed at its next release.
    pub server_lifetime: Option<Duration>,
    /// Dialling a server and logging in to it.
    pub server_connect: Duration,
    /// A closing server keeping its slot: after that it is counted as closed.
    pub server_close: Duration,
    /// A client from accept to the end of its login.
    pub client_login: Option<Duration>,
    /// A client without a query, outside a transaction.
    pub client_idle: Option<Duration>,
    /// A client without a query, inside a transaction.
    pub idle_transaction: Option<Duration>,
    /// Draining after SIGTERM.
    pub shutdown: Option<Duration>,
}

/// A time after which something is done; zero is at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delay(pub Duration);

/// Options of TCP sockets, of clients and servers alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// `SO_KEEPALIVE`.
    pub keepalive: bool,
    /// `TCP_KEEPIDLE`: silence before the first probe.
    pub idle: Duration,
    /// `TCP_KEEPINTVL`: between two probes.
    pub interval: Duration,
    /// `TCP_KEEPCNT`: unanswered probes until the connection is dead.
    pub count: u32,
    /// `TCP_USER_TIMEOUT`: unacknowledged data until the connection is dead.
    pub user_timeout: Option<Duration>,
    /// `SO_RCVBUF` and `SO_SNDBUF` in bytes; `None` leaves them to the kernel.
    pub socket_buffer: Option<usize>,
    /// `listen(2)`: connections the kernel keeps until they are accepted.
    pub backlog: u32,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// The least that is written.
    pub level: LogLevel,
    /// Whether logins are.
    pub connections: bool,
    /// Whether disconnections are, with their reason.
    pub disconnections: bool,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How long answers of name resolution are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Addresses.
    pub max_ttl: Duration,
    /// That there are none.
    pub nxdomain_ttl: Duration,
}

/// The files named in the configuration, as written there: relative ones start at the configuration's directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// The per-core file.
    pub cores: Option<PathBuf>,
    /// Users and their passwords.
    pub auth_file: Option<PathBuf>,
}

/// One PostgreSQL server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name in the configuration.
    pub name: String,
    /// Where it is: tried in this order until one answers.
    pub hosts: Vec<Host>,
    /// Its port, also the one in the name of its socket.
    pub port: u16,
    /// Connections to it, over all shards and routes.
    pub max_connections: usize,
    /// Of these, connections that only routes of [`Config::admin_users`] may use.
    pub reserve: usize,
}

/// Where a PostgreSQL server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// To be resolved before each dial.
    Name(String),
    /// An address.
    Address(IpAddr),
    /// The directory of its socket, or `@` and the name of an abstract one.
    Socket(PathBuf),
}

/// What clients may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// The name clients use; `*` is the fallback and passes the asked name on.
    pub name: String,
    /// Index of its server in [`Config::endpoints`].
    pub endpoint: usize,
    /// Its name on the server, if that is another one.
    pub dbname: Option<String>,
    /// The user that all its clients become on the server.
    pub user: Option<String>,
    /// The password for the server; otherwise that of `auth_file`.
    pub password: Option<Secret>,
    /// Its own pool mode.
    pub pool_mode: Option<PoolMode>,
    /// Its own [`Config::default_pool_size`].
    pub pool_size: Option<usize>,
    /// What each of its server connections does before its first use; empty for nothing.
    pub connect_query: String,
}

/// What is asked for one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSettings {
    /// The database as clients ask for it.
    pub database: String,
    /// The user as clients say it.
    pub user: String,
    /// Its part of the endpoint's connections, against the other routes' weights.
    pub weight: u32,
    /// Connections it can always have.
    pub min_connections: usize,
    /// Connections it can have at most; `None` for as many as [`Terms::ceiling`] says.
    pub max_connections: Option<usize>,
    /// Its own [`Config::max_waiting_clients`].
    pub max_waiting_clients: Option<usize>,
    /// Its own [`Config::leak_policy`].
    pub leak_policy: Option<LeakPolicy>,
}

/// What holds for one route's connections, wherever it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Its part of the endpoint's connections, against the other routes' weights.
    pub weight: u32,
    /// Connections it can always have.
    pub floor: usize,
    /// Connections it can have at most: its `max_connections`, else its database's `pool_size`, else
    /// `default_pool_size`; `None` for as many as the endpoint has.
    pub ceiling: Option<usize>,
    /// Whether it may use the endpoint's reserve.
    pub may_use_reserve: bool,
}

/// The users of `auth_file`, with their passwords or what is kept instead of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users(BTreeMap<String, Secret>);

/// The shards, and the CPUs for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cores {
    /// One per pinned core; the index is the shard's number.
    pub shards: Vec<Shard>,
    /// Where the threads of control run; empty for wherever the kernel likes.
    pub housekeeping: Vec<usize>,
}

/// One pinned core and the size of its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The CPU it is pinned to.
    pub cpu: usize,
    /// Submissions that fit in one turn. A power of two.
    pub sq_entries: u32,
    /// Completions that fit until they are reaped. A power of two.
    pub cq_entries: u32,
    /// Buffers to receive into. A power of two.
    pub recv_buffers: u32,
    /// Size of each of them.
    pub recv_buffer_bytes: u32,
    /// Microseconds to spin before blocking.
    pub busy_poll_us: u32,
}

/// A text that is never shown, in no log and no error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Config {
    /// The database a client asks for: the one of that name, else the fallback.
    pub fn database(&self, name: &str) -> Option<&Database> {
        let named = |wanted: &str| self.databases.iter().find(|database| database.name == wanted);
        named(name).or_else(|| named(FALLBACK))
    }

    /// The pool mode of a database's clients.
    pub fn pool_mode_of(&self, database: &Database) -> PoolMode {
        database.pool_mode.unwrap_or(self.pool_mode)
    }

    /// The server a database is on.
    pub fn endpoint_of(&self, database: &Database) -> &Endpoint {
        &self.endpoints[database.endpoint]
    }

    fn route(&self, database: &str, user: &str) -> Option<&RouteSettings> {
        self.routes.iter().find(|route| route.database == database && route.user == user)
    }

    /// What is done about what clients that ask for `database` as `user` leave in their servers' sessions.
    pub fn leak_policy_of(&self, database: &str, user: &str) -> LeakPolicy {
        self.route(database, user).and_then(|route| route.leak_policy).unwrap_or(self.leak_policy)
    }

    /// How many clients that ask for `database` as `user` may wait for a server connection on each shard.
    pub fn waiting_clients_max_of(&self, database: &str, user: &str) -> usize {
        let own = self.route(database, user).and_then(|route| route.max_waiting_clients);
        own.or(self.max_waiting_clients).unwrap_or(usize::MAX)
    }

    /// What holds for the route of clients that ask for `database` as `user`.
    pub fn terms(&self, database: &str, user: &str) -> Terms {
        let own = self.route(database, user);
        let pool_size = self.database(database).and_then(|database| database.pool_size);
        Terms {
            weight: own.map_or(1, |route| route.weight),
            floor: own.map_or(0, |route| route.min_connections),
            ceiling: own.and_then(|route| route.max_connections).or(pool_size).or(self.default_pool_size),
            may_use_reserve: self.is_admin(user),
        }
    }

    /// Whether this user may open the console, and use the reserves.
    pub fn is_admin(&self, user: &str) -> bool {
        self.admin_users.iter().any(|admin| admin == user)
    }

    /// What to log in with as `user` on the server of this database.
    pub fn server_password<'a>(&'a self, database: &'a Database, user: &str) -> Option<&'a Secret> {
        database.password.as_ref().or_else(|| self.users.get(user))
    }

    /// What a server connection is asked before it is used after some idleness; `None` if it is not.
    pub fn check_query(&self) -> Option<&str> {
        match self.server_check_query.as_str() {
            "" => None,
            EMPTY_QUERY => Some(""),
            query => Some(query),
        }
    }

    /// Connections to all endpoints together.
    pub fn permits(&self) -> usize {
        self.endpoints.iter().map(|endpoint| endpoint.max_connections).sum()
    }

    /// File descriptors that a process at all its limits has open.
    pub fn descriptors_needed(&self) -> usize {
        let servers = self.permits();
        // A cancel request is a connection of its own beside the one it concerns.
        let cancels = servers;
        let listeners = self.listen.len() * self.cores.shards.len();
        let shards = DESCRIPTORS_PER_SHARD * self.cores.shards.len();
        self.max_client_conn + servers + cancels + listeners + shards + DESCRIPTORS_OF_CONTROL
    }
}

impl Database {
    /// Its name on the server, for a client that asked for `asked`.
    pub fn name_on_server<'a>(&'a self, asked: &'a str) -> &'a str {
        match &self.dbname {
            Some(dbname) => dbname,
            None if self.name == FALLBACK => asked,
            None => &self.name,
        }
    }
}

impl Users {
    /// What `auth_file` has beside this user's name.
    pub fn get(&self, name: &str) -> Option<&Secret> {
        self.0.get(name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Secret {
    /// Keeps a text from being shown.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one who needs it to log in.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// The name of the database for all that have no section of their own.
pub const FALLBACK: &str = "*";

/// PgBouncer's word for the empty query, where an empty text is none.
const EMPTY_QUERY: &str = "<empty>";

/// Databases that are the console.
pub const CONSOLE_NAMES: [&str; 2] = ["pgpinion", "pgbouncer"];

/// PostgreSQL's `NAMEDATALEN` less the final zero: a longer name cannot be one of a database or a user.
pub const NAME_BYTES_MAX: usize = 63;

/// The network ring, the executor's three rings and their event descriptors, the doorbell; rounded up to leave room
/// for an accepted client that is about to be refused.
const DESCRIPTORS_PER_SHARD: usize = 16;

/// The three standard streams, the signal's and the resolver's sockets, a scrape or two, files of a reload.
const DESCRIPTORS_OF_CONTROL: usize = 64;
