//! All settings: name, default, unit, limits, meaning, and where the value goes. The only such list there is.
//!
//! Reading a file, filling in defaults and [`Config::render`] walk these tables, so a setting that is not here
//! does not exist, and one that is here is read, checked and shown.

mod cores;

use toml::Spanned;
use toml::de::DeValue;

use super::report::kind;
use super::values::{Fault, Value, Wrong};
use super::{Config, Database, Endpoint, RouteSettings};

pub(super) use cores::{CORE, CORES, CoreSection};

/// One setting of a section that is read into a `T`.
pub(super) struct Setting<T> {
    /// Its key.
    pub name: &'static str,
    /// The TOML it stands at if nothing is said; empty for unset.
    pub default: &'static str,
    /// The unit of the number, or the form of the text; where nothing is the default, an example instead.
    pub unit: &'static str,
    /// What it does.
    pub what: &'static str,
    /// Whether a reload applies it; the others hold until the restart.
    pub live: bool,
    /// The least and the most, for numbers.
    limits: (u64, u64),
    place: fn(&mut T) -> &mut dyn Value,
}

impl<T> Setting<T> {
    const fn new(
        name: &'static str,
        default: &'static str,
        unit: &'static str,
        place: fn(&mut T) -> &mut dyn Value,
        what: &'static str,
    ) -> Self {
        Self { name, default, unit, what, live: false, limits: (0, u64::MAX), place }
    }

    const fn within(mut self, least: u64, most: u64) -> Self {
        self.limits = (least, most);
        self
    }

    const fn live(mut self) -> Self {
        self.live = true;
        self
    }

    /// The TOML that reads as its value; `None` when unset.
    pub fn value(&self, of: &mut T) -> Option<String> {
        (self.place)(of).show()
    }

    /// Takes the value over, or says why not.
    pub fn read(&self, into: &mut T, value: &Spanned<DeValue<'_>>) -> Result<(), Fault> {
        let place = (self.place)(into);
        place.read(value).and_then(|()| self.check_limits(place)).map_err(|wrong| match wrong {
            Wrong::Kind => Fault { span: value.span(), text: self.wrong_kind(place, value.get_ref()) },
            Wrong::Because(why) => Fault { span: value.span(), text: format!("`{}` {why}", self.name) },
            Wrong::Part(span, why) => Fault { span, text: format!("`{}` {why}", self.name) },
        })
    }

    /// Its line in a file; commented out when unset.
    pub fn show(&self, of: &mut T) -> String {
        let (name, unit, what) = (self.name, self.unit, self.what);
        match (self.place)(of).show() {
            Some(value) if self.default.is_empty() => format!("{name} = {value} # {what}"),
            Some(value) => format!("{name} = {value} # [{unit}] {what}"),
            None => format!("# {name} = {unit} # {what}"),
        }
    }

    /// Sets all of a table to their defaults.
    pub fn set_defaults(settings: &[Self], into: &mut T) -> Result<(), String> {
        for setting in settings.iter().filter(|setting| !setting.default.is_empty()) {
            let value = DeValue::parse(setting.default).map_err(|error| error.message().to_owned())?;
            setting.read(into, &value).map_err(|fault| fault.text)?;
        }
        Ok(())
    }

    fn check_limits(&self, place: &dyn Value) -> Result<(), Wrong> {
        let (least, most) = self.limits;
        match place.number() {
            Some(number) if number < least => {
                Err(Wrong::Because(format!("must be at least {least}, and is {number}")))
            }
            Some(number) if number > most => {
                Err(Wrong::Because(format!("must be at most {most}, and is {number}")))
            }
            _ => Ok(()),
        }
    }

    fn wrong_kind(&self, place: &dyn Value, found: &DeValue<'_>) -> String {
        let example = if self.default.is_empty() { self.unit } else { self.default };
        let (name, shape) = (self.name, place.shape());
        format!("`{name}` must be {shape}, like `{name} = {example}`, not {}", kind(found))
    }
}

type General = Setting<Config>;
type OfEndpoint = Setting<Endpoint>;
type OfDatabase = Setting<DatabaseSection>;
type OfRoute = Setting<RouteSettings>;

/// `[pgpinion]`.
pub(super) const GENERAL: &[General] = &[
    General::new(
        "listen",
        r#"["127.0.0.1:6432"]"#,
        "addresses and ports, or unix:DIR",
        |c| &mut c.listen,
        "where clients connect; `*` is every address, unix:DIR is DIR/.s.PGSQL.6432",
    ),
    General::new(
        "pool_mode",
        r#""transaction""#,
        "session, transaction or statement",
        |c| &mut c.pool_mode,
        "when a server connection goes back to its pool",
    ),
    General::new(
        "max_client_conn",
        "10000",
        "clients",
        |c| &mut c.max_client_conn,
        "clients at the same time, over all shards",
    )
    .within(1, CLIENTS_MAX),
    General::new(
        "max_prepared_statements",
        "200",
        "statements, 0 = off",
        |c| &mut c.max_prepared_statements,
        "named prepared statements kept on each server connection in transaction and statement pooling",
    )
    .within(0, STATEMENTS_MAX)
    .live(),
    General::new(
        "default_pool_size",
        "0",
        "connections, 0 = as many as the endpoint has",
        |c| &mut c.default_pool_size,
        "connections that a route can have at most, unless its database or itself says otherwise",
    )
    .within(0, CONNECTIONS_MAX)
    .live(),
    General::new(
        "hand_over",
        "true",
        "true or false",
        |c| &mut c.hand_over,
        "whether idle server connections go to the shard where they are wanted",
    )
    .live(),
    General::new(
        "steering",
        "true",
        "true or false",
        |c| &mut c.steering,
        "whether clients go, at login, to the few shards that a route with few connections lives on",
    )
    .live(),
    General::new("auth_type", r#""trust""#, "trust", |c| &mut c.auth_type, "how clients prove who they are"),
    General::new(
        "auth_file",
        "",
        r#""userlist.txt""#,
        |c| &mut c.files.auth_file,
        "users and passwords in PgBouncer's format, for logging in to servers",
    ),
    General::new(
        "admin_users",
        "[]",
        "users",
        |c| &mut c.admin_users,
        "who may open the console, the database \"pgpinion\", and use the endpoints' reserves",
    )
    .live(),
    General::new(
        "cores",
        "",
        r#""cores.toml""#,
        |c| &mut c.files.cores,
        "the per-core file; without it, a shard on every CPU the process may use",
    ),
    General::new(
        "server_reset_query",
        r#""DISCARD ALL""#,
        "SQL, empty for none",
        |c| &mut c.server_reset_query,
        "what cleans a server connection between two clients in session pooling",
    ),
    General::new(
        "server_check_query",
        r#""<empty>""#,
        "SQL, <empty> for the empty query, empty for none",
        |c| &mut c.server_check_query,
        "what a server connection must answer before it is used again after server_check_delay",
    )
    .live(),
    General::new(
        "application_name_add_host",
        "false",
        "true or false",
        |c| &mut c.application_name_add_host,
        "whether the application_name that a client connects with gets its address and port",
    )
    .live(),
    General::new(
        "disable_pqexec",
        "false",
        "true or false",
        |c| &mut c.disable_pqexec,
        "whether simple queries, which may hold several statements, are refused",
    ),
    General::new(
        "ignore_startup_parameters",
        "[]",
        "parameters",
        |c| &mut c.ignore_startup_parameters,
        "what clients may ask for in their startup packets and do not get",
    )
    .live(),
    General::new(
        "track_extra_parameters",
        r#"["IntervalStyle"]"#,
        "parameters",
        |c| &mut c.track_extra_parameters,
        "what clients may ask for in their startup packets and get, beside those that every driver sends",
    )
    .live(),
    General::new(
        "leak_policy",
        r#""reset""#,
        "allow, log, reset, pin or refuse",
        |c| &mut c.leak_policy,
        "what is done in transaction and statement pooling about what cannot follow a client, such as LISTEN",
    )
    .live(),
    General::new(
        "max_waiting_clients",
        "0",
        "clients, 0 = all that max_client_conn lets in",
        |c| &mut c.max_waiting_clients,
        "clients of one route that may wait for a server connection on one shard; another is refused at once",
    )
    .within(0, CLIENTS_MAX)
    .live(),
    General::new(
        "query_wait_timeout",
        "120",
        "seconds, 0 = off",
        |c| &mut c.timeouts.query_wait,
        "how long a client may wait for a server connection",
    )
    .live(),
    General::new(
        "query_wait_notify",
        "5",
        "seconds, 0 = off",
        |c| &mut c.timeouts.query_wait_notify,
        "how long a client waits for a server connection until a notice tells it",
    )
    .live(),
    General::new(
        "server_idle_timeout",
        "600",
        "seconds, 0 = off",
        |c| &mut c.timeouts.server_idle,
        "how long a server connection may be without use",
    )
    .live(),
    General::new(
        "server_check_delay",
        "30",
        "seconds, 0 = at each use",
        |c| &mut c.timeouts.server_check,
        "how long a server connection may be without use and still be used without a check",
    )
    .live(),
    General::new(
        "server_lifetime",
        "3600",
        "seconds, 0 = off",
        |c| &mut c.timeouts.server_lifetime,
        "how old a server connection may become",
    )
    .live(),
    General::new(
        "server_connect_timeout",
        "15",
        "seconds",
        |c| &mut c.timeouts.server_connect,
        "how long dialling a server and logging in to it may take",
    )
    .live(),
    General::new(
        "server_close_timeout",
        "5",
        "seconds",
        |c| &mut c.timeouts.server_close,
        "how long a closing server connection may keep its slot",
    )
    .live(),
    General::new(
        "client_login_timeout",
        "60",
        "seconds, 0 = off",
        |c| &mut c.timeouts.client_login,
        "how long a login may take",
    )
    .live(),
    General::new(
        "client_idle_timeout",
        "0",
        "seconds, 0 = off",
        |c| &mut c.timeouts.client_idle,
        "how long a client may be silent outside a transaction",
    )
    .live(),
    General::new(
        "idle_transaction_timeout",
        "0",
        "seconds, 0 = off",
        |c| &mut c.timeouts.idle_transaction,
        "how long a client may be silent inside a transaction",
    )
    .live(),
    General::new(
        "shutdown_timeout",
        "0",
        "seconds, 0 = wait for ever",
        |c| &mut c.timeouts.shutdown,
        "how long SIGTERM waits for clients to finish",
    )
    .live(),
    General::new(
        "tcp_keepalive",
        "true",
        "true or false",
        |c| &mut c.tcp.keepalive,
        "whether the kernel probes silent connections",
    ),
    General::new("tcp_keepidle", "5", "seconds", |c| &mut c.tcp.idle, "silence before the first probe")
        .within(1, KEEPALIVE_SECONDS_MAX),
    General::new("tcp_keepintvl", "5", "seconds", |c| &mut c.tcp.interval, "between two probes")
        .within(1, KEEPALIVE_SECONDS_MAX),
    General::new(
        "tcp_keepcnt",
        "5",
        "probes",
        |c| &mut c.tcp.count,
        "unanswered probes until a connection is dead",
    )
    .within(1, KEEPALIVE_PROBES_MAX),
    General::new(
        "tcp_user_timeout",
        "0",
        "seconds, 0 = the kernel's",
        |c| &mut c.tcp.user_timeout,
        "how long sent data may stay unacknowledged, also by a peer that only does not read",
    ),
    General::new(
        "tcp_socket_buffer",
        "0",
        "bytes, 0 = the kernel's",
        |c| &mut c.tcp.socket_buffer,
        "the kernel's buffer of each direction of a socket",
    )
    .within(0, SOCKET_BUFFER_BYTES_MAX),
    General::new(
        "listen_backlog",
        "4096",
        "connections",
        |c| &mut c.tcp.backlog,
        "connections the kernel keeps until they are accepted; net.core.somaxconn bounds it",
    )
    .within(1, BACKLOG_MAX),
    General::new(
        "log_format",
        r#""text""#,
        "text or json",
        |c| &mut c.log.format,
        "how a line of the log looks",
    )
    .live(),
    General::new(
        "log_level",
        r#""info""#,
        "error, warn, info or debug",
        |c| &mut c.log.level,
        "the least that is logged",
    )
    .live(),
    General::new(
        "log_connections",
        "true",
        "true or false",
        |c| &mut c.log.connections,
        "whether logins are logged",
    )
    .live(),
    General::new(
        "log_disconnections",
        "true",
        "true or false",
        |c| &mut c.log.disconnections,
        "whether disconnections are logged, with their reason",
    )
    .live(),
    General::new(
        "stats_period",
        "60",
        "seconds, 0 = off",
        |c| &mut c.stats_period,
        "how often a line of statistics is logged",
    )
    .live(),
    General::new(
        "dns_max_ttl",
        "15",
        "seconds",
        |c| &mut c.dns.max_ttl,
        "how long the addresses of a name are kept",
    ),
    General::new(
        "dns_nxdomain_ttl",
        "2",
        "seconds",
        |c| &mut c.dns.nxdomain_ttl,
        "how long it is kept that a name has no address",
    ),
];

/// `[endpoints.NAME]`.
pub(super) const ENDPOINT: &[OfEndpoint] = &[
    OfEndpoint::new(
        "host",
        "",
        r#""127.0.0.1""#,
        |e| &mut e.hosts,
        "a name, an address or a socket's directory; several are tried in order",
    ),
    OfEndpoint::new("port", "5432", "port", |e| &mut e.port, "its port").within(1, 65535),
    OfEndpoint::new(
        "max_connections",
        "90",
        "connections",
        |e| &mut e.max_connections,
        "connections to it over all shards and routes; 90 leaves some of PostgreSQL's own 100 to others",
    )
    .within(1, CONNECTIONS_MAX)
    .live(),
    OfEndpoint::new(
        "reserve",
        "0",
        "connections",
        |e| &mut e.reserve,
        "of these, connections that only routes of admin_users may use",
    )
    .within(0, CONNECTIONS_MAX)
    .live(),
];

/// `[databases.NAME]`.
pub(super) const DATABASE: &[OfDatabase] = &[
    OfDatabase::new(
        "endpoint",
        "",
        r#""main""#,
        |d| &mut d.endpoint,
        "the server it is on; may be left out if there is only one",
    ),
    OfDatabase::new(
        "dbname",
        "",
        r#""app""#,
        |d| &mut d.database.dbname,
        "its name on the server, if that is another one",
    ),
    OfDatabase::new(
        "user",
        "",
        r#""app""#,
        |d| &mut d.database.user,
        "the user all clients become on the server",
    ),
    OfDatabase::new(
        "password",
        "",
        r#""secret""#,
        |d| &mut d.database.password,
        "the password for the server",
    ),
    OfDatabase::new("pool_mode", "", r#""session""#, |d| &mut d.database.pool_mode, "a pool mode of its own"),
    OfDatabase::new(
        "pool_size",
        "",
        "20",
        |d| &mut d.database.pool_size,
        "connections that each of its routes can have at most, instead of default_pool_size",
    )
    .within(0, CONNECTIONS_MAX)
    .live(),
    OfDatabase::new(
        "connect_query",
        r#""""#,
        "SQL, empty for none",
        |d| &mut d.database.connect_query,
        "what each of its server connections does before its first use",
    ),
];

/// `[routes."DATABASE/USER"]`.
pub(super) const ROUTE: &[OfRoute] = &[
    OfRoute::new("weight", "1", "parts", |r| &mut r.weight, "its part of the endpoint's connections")
        .within(1, WEIGHT_MAX)
        .live(),
    OfRoute::new(
        "min_connections",
        "0",
        "connections",
        |r| &mut r.min_connections,
        "connections it can always have",
    )
    .within(0, CONNECTIONS_MAX)
    .live(),
    OfRoute::new("max_connections", "", "20", |r| &mut r.max_connections, "connections it can have at most")
        .within(1, CONNECTIONS_MAX)
        .live(),
    OfRoute::new(
        "max_waiting_clients",
        "",
        "50",
        |r| &mut r.max_waiting_clients,
        "a max_waiting_clients of its own, on each shard",
    )
    .within(1, CLIENTS_MAX)
    .live(),
    OfRoute::new("leak_policy", "", r#""pin""#, |r| &mut r.leak_policy, "a leak_policy of its own").live(),
];

/// A database before its endpoint is found.
pub(super) struct DatabaseSection {
    pub endpoint: Option<String>,
    pub database: Database,
}

/// Each client is a descriptor; Linux allows 2^30 at most (`fs.nr_open`), and no host has memory for a tenth of it.
const CLIENTS_MAX: u64 = 10_000_000;

/// Beyond this PostgreSQL's own memory for plans is the matter.
const STATEMENTS_MAX: u64 = 100_000;

/// PostgreSQL's own bound of `max_connections` (`MAX_BACKENDS`, 2^18 - 1).
const CONNECTIONS_MAX: u64 = 262_143;

/// `MAX_TCP_KEEPIDLE` and `MAX_TCP_KEEPINTVL` of Linux, which takes whole seconds.
const KEEPALIVE_SECONDS_MAX: u64 = 32_767;

/// `MAX_TCP_KEEPCNT` of Linux.
const KEEPALIVE_PROBES_MAX: u64 = 127;

/// 64 MiB: more than any connection has in flight, and doubled by the kernel.
const SOCKET_BUFFER_BYTES_MAX: u64 = 64 << 20;

/// `listen(2)` takes an `int`; the kernel keeps it in 32 bits since 5.4.
const BACKLOG_MAX: u64 = i32::MAX as u64;

/// Quotas are ratios of weights: three digits are enough, and sums stay small.
const WEIGHT_MAX: u64 = 1000;
