//! Settings of PgBouncer that pgpinion has under another name, or not at all, and what to tell who uses them; also those of
//! pgpinion that are to come.
//!
//! They are refused and not skipped: a `server_tls_sslmode = "verify-full"` that is read and does nothing would be a
//! lie. Where the meaning is the same the name is the same, and the setting is in `settings`.

/// What to say of a key that is PgBouncer's, in the section of that title.
pub(super) fn answer(title: &str, key: &str) -> Option<&'static str> {
    let table = match title {
        "[pgpinion]" => GENERAL,
        _ if title.starts_with("[databases.") => DATABASE,
        _ => return None,
    };
    table.iter().find(|(keys, _)| keys.contains(&key)).map(|(_, answer)| *answer)
}

/// A reserve is for peaks that a fixed size cannot take; here sizes are not fixed.
const NO_RESERVE_POOL: &str = "a route that waits uses all that others leave, at once, and needs no reserve pool; remove the line \
    (`reserve` of [endpoints.NAME] keeps connections for admin_users)";

/// Not the same thing: what a pool keeps open, against what a route can always have.
const NO_MIN_POOL: &str = "idle servers stay for `server_idle_timeout`; what a route can always have is `min_connections` of \
    [routes.\"DATABASE/USER\"]";

/// Keys, and what to say of them.
type Answers = &'static [(&'static [&'static str], &'static str)];

const GENERAL: Answers = &[
    (&["listen_addr", "listen_port"], "use `listen = [\"ADDRESS:PORT\"]`"),
    (
        &["unix_socket_dir", "unix_socket_mode", "unix_socket_group"],
        "use `listen = [\"unix:DIR\"]`, and let the directory's owner and mode decide who may connect",
    ),
    (
        &["max_db_connections"],
        "bound a database by an endpoint of its own, which may have the same `host`: `max_connections` of [endpoints.NAME]",
    ),
    (
        &["max_user_connections"],
        "bound each of the user's routes: `max_connections` of [routes.\"DATABASE/USER\"]",
    ),
    (&["reserve_pool_size", "reserve_pool_timeout"], NO_RESERVE_POOL),
    (&["min_pool_size"], NO_MIN_POOL),
    (&["connect_query"], "use it in [databases.NAME]"),
    (
        &["metrics_listen"],
        "not supported yet; the console's SHOW commands and the lines of `stats_period` have the numbers",
    ),
    (
        &["max_db_client_connections", "max_user_client_connections"],
        "not in this version; `max_client_conn` bounds all clients together",
    ),
    (
        &[
            "client_tls13_ciphers",
            "client_tls_ca_file",
            "client_tls_cert_file",
            "client_tls_ciphers",
            "client_tls_dheparams",
            "client_tls_ecdhcurve",
            "client_tls_key_file",
            "client_tls_protocols",
            "client_tls_sslmode",
            "server_tls13_ciphers",
            "server_tls_ca_file",
            "server_tls_cert_file",
            "server_tls_ciphers",
            "server_tls_key_file",
            "server_tls_protocols",
            "server_tls_sslmode",
        ],
        "TLS is not in this version; keep both sides on networks you trust",
    ),
    (
        &[
            "auth_dbname",
            "auth_hba_file",
            "auth_ident_file",
            "auth_ldap_options",
            "auth_query",
            "auth_user",
            "scram_iterations",
        ],
        "`auth_type = \"trust\"` is the only one of this version, and needs no more",
    ),
    (
        &["logfile", "syslog", "syslog_facility", "syslog_ident"],
        "the log goes to standard error; the service manager keeps it",
    ),
    (&["log_stats"], "use `stats_period = 0` to switch the line of statistics off"),
    (&["verbose"], "use `log_level = \"debug\"`"),
    (&["log_pooler_errors"], "errors sent to clients are always logged"),
    (
        &["pidfile", "user", "job_name", "service_name", "conffile"],
        "the service manager does this; see tuning/pgpinion.service",
    ),
    (&["so_reuseport", "peer_id"], "one process serves all cores; remove the line"),
    (
        &["pkt_buf", "sbuf_loopcnt", "tcp_defer_accept"],
        "the network ring works otherwise; its numbers are in cores.toml",
    ),
    (
        &[
            "server_round_robin",
            "server_fast_close",
            "server_login_retry",
            "server_reset_query_always",
            "suspend_timeout",
        ],
        "not in this version; remove the line",
    ),
    (
        &[
            "query_timeout",
            "transaction_timeout",
            "cancel_wait_timeout",
            "pool_idle_timeout",
            "login_notify_message",
            "autodb_idle_timeout",
        ],
        "not in this version; PostgreSQL's own timeouts (statement_timeout, transaction_timeout) hold through the pooler",
    ),
    (&["max_packet_size"], "not in this version; remove the line"),
    (
        &["resolv_conf", "dns_zone_check_period"],
        "names are resolved by the system's resolver; remove the line",
    ),
    (&["stats_users"], "not in this version; use `admin_users`"),
];

const DATABASE: Answers = &[
    (
        &["host", "port"],
        "a server is an endpoint of its own: put this into [endpoints.NAME], and `endpoint = \"NAME\"` here",
    ),
    (
        &["max_db_connections"],
        "give the database an endpoint of its own, which may have the same `host`, and set `max_connections` there",
    ),
    (&["reserve_pool_size", "reserve_pool"], NO_RESERVE_POOL),
    (&["min_pool_size"], NO_MIN_POOL),
    (&["load_balance_hosts"], "the hosts of an endpoint are tried in order"),
    (&["server_lifetime", "query_wait_timeout"], "use it in [pgpinion], for all databases"),
    (
        &[
            "auth_user",
            "auth_query",
            "auth_dbname",
            "max_db_client_connections",
            "client_encoding",
            "datestyle",
            "timezone",
            "application_name",
        ],
        "not in this version",
    ),
];
