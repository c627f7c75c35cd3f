//! Files good and bad, and what is said of them.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::report::bare_or_quoted;
use super::settings::{CORE, DATABASE, ENDPOINT, GENERAL, ROUTE, Setting};
use super::*;

const CPUS: [usize; 4] = [0, 1, 2, 3];

/// Parses a file, with others beside it.
fn parse_with(text: &str, files: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let files: HashMap<&str, &str> = files.iter().copied().collect();
    let read = |path: &Path| {
        let text = path.to_str().and_then(|path| files.get(path));
        text.map(|text| (*text).to_owned()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    };
    parse(Path::new("etc/p.toml"), text, &CPUS, &read)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// What is said of a file that has `lines` in `[pgpinion]` and else is good.
fn general(lines: &str) -> Result<Config, Vec<String>> {
    parse_with(&format!("[pgpinion]\n{lines}\n{SERVER}"), &[])
}

/// What is said of a cores.toml.
fn cores(text: &str) -> Result<Config, Vec<String>> {
    parse_with(&format!("[pgpinion]\ncores = \"c.toml\"\n{SERVER}"), &[("etc/c.toml", text)])
}

const SERVER: &str = "[endpoints.main]\nhost = \"127.0.0.1\"\n[databases.\"*\"]\n";

fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

#[test]
fn nothing_said_means_the_defaults() {
    let config = parse_with(SERVER, &[]).unwrap();
    assert_eq!(config.listen, [Listen::Tcp("127.0.0.1:6432".parse().unwrap())]);
    assert_eq!(config.pool_mode, PoolMode::Transaction);
    assert_eq!(config.max_client_conn, 10_000);
    assert_eq!(config.auth_type, AuthType::Trust);
    assert!(config.admin_users.is_empty());
    assert_eq!(config.server_reset_query, "DISCARD ALL");
    assert_eq!(config.leak_policy_of("any", "user"), LeakPolicy::Reset);
    assert_eq!(config.waiting_clients_max_of("any", "user"), usize::MAX);
    assert_eq!(
        config.timeouts,
        Timeouts {
            query_wait: seconds(120),
            query_wait_notify: seconds(5),
            server_idle: seconds(600),
            server_check: Delay(Duration::from_secs(30)),
            server_lifetime: seconds(3600),
            server_connect: Duration::from_secs(15),
            server_close: Duration::from_secs(5),
            client_login: seconds(60),
            client_idle: None,
            idle_transaction: None,
            shutdown: None,
        }
    );
    let tcp = Tcp {
        keepalive: true,
        idle: Duration::from_secs(5),
        interval: Duration::from_secs(5),
        count: 5,
        user_timeout: None,
        socket_buffer: None,
        backlog: 4096,
    };
    assert_eq!(config.tcp, tcp);
    let log = Log { format: LogFormat::Text, level: LogLevel::Info, connections: true, disconnections: true };
    assert_eq!(config.log, log);
    assert_eq!(config.stats_period, seconds(60));
    assert_eq!((config.endpoints[0].port, config.endpoints[0].max_connections), (5432, 90));
    let shard = Shard {
        cpu: 3,
        sq_entries: 1024,
        cq_entries: 8192,
        recv_buffers: 256,
        recv_buffer_bytes: 32768,
        busy_poll_us: 0,
    };
    assert_eq!(config.cores.shards[3], shard);
    assert_eq!(config.summary(), "1 endpoint, 1 database, 4 shards on CPUs 0-3");
}

#[test]
fn every_default_is_within_its_own_limits() {
    let mut config = Config::with_defaults().unwrap();
    Setting::set_defaults(GENERAL, &mut config).unwrap();
    Setting::set_defaults(ENDPOINT, &mut file::blank_endpoint("x")).unwrap();
    super::cores::defaults().unwrap();
}

/// Each setting at its default or its example, in a file of its own.
#[test]
fn every_setting_is_accepted() {
    fn lines<T>(settings: &[Setting<T>]) -> Vec<String> {
        let value = |setting: &Setting<T>| match setting.default {
            "" => setting.unit,
            default => default,
        };
        settings.iter().map(|setting| format!("{} = {}", setting.name, value(setting))).collect()
    }
    let files = [("etc/userlist.txt", "\"app\" \"x\""), ("etc/cores.toml", "[[core]]\ncpu = 2")];
    for line in lines(GENERAL) {
        parse_with(&format!("[pgpinion]\n{line}\n{SERVER}"), &files)
            .unwrap_or_else(|e| panic!("{line}: {e:?}"));
    }
    for line in lines(DATABASE) {
        general(&format!("[databases.app]\n{line}\n")).unwrap_or_else(|e| panic!("{line}: {e:?}"));
    }
    for line in lines(ROUTE) {
        general(&format!("[routes.\"app/x\"]\n{line}\n")).unwrap_or_else(|e| panic!("{line}: {e:?}"));
    }
    let endpoint = lines(ENDPOINT).join("\n");
    parse_with(&format!("[endpoints.main]\n{endpoint}\n[databases.a]\n"), &[]).unwrap();
    cores(&format!("housekeeping = [0]\n[[core]]\n{}", lines(CORE).join("\n"))).unwrap();
}

/// Each setting of PgBouncer 1.25 either means the same here, or is answered by what to do instead.
#[test]
fn every_setting_of_pgbouncer_is_known() {
    let names = "admin_users application_name_add_host auth_dbname auth_file auth_hba_file auth_ident_file \
        auth_ldap_options auth_query auth_type auth_user autodb_idle_timeout cancel_wait_timeout client_idle_timeout \
        client_login_timeout client_tls13_ciphers client_tls_ca_file client_tls_cert_file client_tls_ciphers \
        client_tls_dheparams client_tls_ecdhcurve client_tls_key_file client_tls_protocols client_tls_sslmode conffile \
        default_pool_size disable_pqexec dns_max_ttl dns_nxdomain_ttl dns_zone_check_period idle_transaction_timeout \
        ignore_startup_parameters job_name listen_addr listen_backlog listen_port log_connections log_disconnections \
        log_pooler_errors log_stats logfile login_notify_message max_client_conn max_db_client_connections \
        max_db_connections max_packet_size max_prepared_statements max_user_client_connections max_user_connections \
        min_pool_size peer_id pidfile pkt_buf pool_mode pool_idle_timeout query_timeout query_wait_notify \
        query_wait_timeout reserve_pool_size reserve_pool_timeout resolv_conf sbuf_loopcnt scram_iterations \
        server_check_delay server_check_query server_connect_timeout server_fast_close server_idle_timeout \
        server_lifetime server_login_retry server_reset_query server_reset_query_always server_round_robin \
        server_tls13_ciphers server_tls_ca_file server_tls_cert_file server_tls_ciphers server_tls_key_file \
        server_tls_protocols server_tls_sslmode service_name so_reuseport stats_period stats_users suspend_timeout \
        syslog syslog_facility syslog_ident tcp_defer_accept tcp_keepalive tcp_keepcnt tcp_keepidle tcp_keepintvl \
        tcp_socket_buffer tcp_user_timeout track_extra_parameters transaction_timeout unix_socket_dir \
        unix_socket_group unix_socket_mode user verbose";
    for name in names.split_whitespace() {
        let ours = GENERAL.iter().any(|setting| setting.name == name);
        let answered = pgbouncer::answer("[pgpinion]", name).is_some();
        assert!(ours != answered, "{name}: a setting of ours is {ours}, answered is {answered}");
    }
}

#[test]
fn the_skeleton_is_read() {
    let text = r#"
[pgpinion]
listen = ["127.0.0.1:6432", "*:6433", "localhost:6434", "[::1]:6435", "unix:/run/p", "unix:/run/p:6436"]
pool_mode = "session"
admin_users = "postgres, dba"
auth_file = "userlist.txt"
cores = "cores.toml"
query_wait_timeout = 0.5
idle_transaction_timeout = 1_000
stats_period = 0
log_connections = 0
[endpoints.second]
host = ["db1", "::1", "/run/postgresql", "@abstract"]
port = 5433
max_connections = 100
[endpoints.main]
host = "10.0.0.1,db2"
[databases.app]
endpoint = "main"
dbname = "real"
user = "forced"
password = "geheim"
pool_mode = "statement"
[databases."*"]
endpoint = "second"
[routes."app/batch"]
weight = 2
min_connections = 1
max_connections = 20
leak_policy = "refuse"
"#;
    let cores = "housekeeping = [0]\n[default]\nrecv_buffers = 256\n[[core]]\ncpu = 3\nbusy_poll_us = 50\n[[core]]\ncpu = 1\n";
    let files = [("etc/cores.toml", cores), ("etc/userlist.txt", "\"batch\" \"md5x\"\n")];
    let config = parse_with(text, &files).unwrap();
    let listen: Vec<String> = config.listen.iter().map(Listen::text).collect();
    let expected = [
        "127.0.0.1:6432",
        "0.0.0.0:6433",
        "[::]:6433",
        "127.0.0.1:6434",
        "[::1]:6435",
        "unix:/run/p",
        "unix:/run/p:6436",
    ];
    assert_eq!(listen, expected);
    assert_eq!(config.admin_users, ["postgres", "dba"]);
    assert_eq!(config.timeouts.query_wait, Some(Duration::from_millis(500)));
    assert_eq!(config.timeouts.idle_transaction, seconds(1000));
    assert_eq!((config.stats_period, config.log.connections), (None, false));
    let names: Vec<&str> = config.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
    assert_eq!(names, ["second", "main"]);
    assert_eq!(
        config.endpoints[0].hosts,
        [
            Host::Name("db1".into()),
            Host::Address("::1".parse().unwrap()),
            Host::Socket("/run/postgresql".into()),
            Host::Socket("@abstract".into()),
        ]
    );
    assert_eq!(config.endpoints[1].hosts[1], Host::Name("db2".into()));

    let app = config.database("app").unwrap();
    assert_eq!((app.endpoint, app.name_on_server("app")), (1, "real"));
    assert_eq!(config.pool_mode_of(app), PoolMode::Statement);
    assert_eq!(config.server_password(app, "batch").unwrap().reveal(), "geheim");
    let other = config.database("other").unwrap();
    assert_eq!((other.endpoint, other.name_on_server("other")), (0, "other"));
    assert_eq!(config.pool_mode_of(other), PoolMode::Session);
    assert_eq!(config.server_password(other, "batch").unwrap().reveal(), "md5x");

    let shards: Vec<_> =
        config.cores.shards.iter().map(|s| (s.cpu, s.recv_buffers, s.busy_poll_us)).collect();
    assert_eq!(shards, [(3, 256, 50), (1, 256, 0)]);
    assert_eq!(config.cores.housekeeping, [0]);
    let policies = ["batch", "other"].map(|user| config.leak_policy_of("app", user));
    assert_eq!(policies, [LeakPolicy::Refuse, LeakPolicy::Reset]);
    assert_eq!((config.routes[0].weight, config.routes[0].max_connections), (2, Some(20)));
    assert_eq!(config.descriptors_needed(), 10_000 + 2 * 190 + 7 * 2 + 2 * 16 + 64);
}

#[test]
fn a_route_has_its_own_bound_of_waiting_clients_or_that_of_all() {
    let route = "[routes.\"app/batch\"]\nmax_waiting_clients = 3";
    let bounds = |text: &str| {
        let config = general(text).unwrap();
        ["batch", "other"].map(|user| config.waiting_clients_max_of("app", user))
    };
    assert_eq!(bounds(&format!("max_waiting_clients = 50\n{route}")), [3, 50]);
    assert_eq!(bounds(&format!("max_waiting_clients = 0\n{route}")), [3, usize::MAX]);
    let refused = general("max_waiting_clients = -1").unwrap_err();
    assert_eq!(refused, ["etc/p.toml:2:23: `max_waiting_clients` must not be negative, and is -1"]);
    let old = general(route).unwrap();
    let reloaded = old.reload(&general(&route.replace('3', "4")).unwrap()).unwrap();
    assert_eq!(reloaded.applied, ["routes.\"app/batch\".max_waiting_clients: 3 -> 4"]);
}

#[test]
fn checks_are_as_in_pgbouncer() {
    for (line, expected) in [
        ("", Some("")),
        ("server_check_query = \"<empty>\"", Some("")),
        ("server_check_query = \"\"", None),
        ("server_check_query = \"select 1\"", Some("select 1")),
    ] {
        let config = parse_with(&format!("[pgpinion]\n{line}\n{SERVER}"), &[]).unwrap();
        assert_eq!(config.check_query(), expected, "{line}");
    }
}

#[test]
fn no_secret_is_shown() {
    let config = general("[databases.app]\npassword = \"geheim\"").unwrap();
    assert!(!format!("{config:?} {}", config.render()).contains("geheim"));
}

#[test]
fn what_is_rendered_reads_as_the_same() {
    let text = "server_reset_query = \"RESET \\\"a\\\"\\n;\"\nserver_check_query = \"\"\nserver_check_delay = 0\nclient_idle_timeout = 0.25\ntcp_socket_buffer = 65536\n\
        [endpoints.\"odd name\"]\nhost = [\"a\", \"/b\"]\n\
        [databases.\"o'd\\\"d\"]\nendpoint = \"odd name\"\npool_mode = \"session\"\n[databases.plain]\nendpoint = \"main\"\nconnect_query = \"set role \\\"a\\\"\"\n\
        [routes.\"plain/a b\"]\nmax_connections = 3\n\
        [endpoints.main]\nhost = \"127.0.0.1\"\n";
    let config = parse_with(&format!("[pgpinion]\n{text}"), &[]).unwrap();
    let rendered = config.render();
    assert_eq!(parse_with(&rendered, &[]).as_ref(), Ok(&config), "{rendered}");
}

#[test]
fn a_server_is_enough() {
    let config = Config::upstream("db.example:5433", &[0, 1]).unwrap();
    assert_eq!(config.endpoints[0].hosts, [Host::Name("db.example".into())]);
    assert_eq!((config.endpoints[0].port, config.cores.shards.len()), (5433, 2));
    assert_eq!(config.database("any").unwrap().name_on_server("any"), "any");
    let table = [
        ("127.0.0.1", "127.0.0.1", 5432),
        ("[::1]:5433", "::1", 5433),
        ("::1", "::1", 5432),
        ("/run/postgresql", "/run/postgresql", 5432),
        ("/run/postgresql:5434", "/run/postgresql", 5434),
    ];
    for (server, host, port) in table {
        let endpoint = &Config::upstream(server, &[0]).unwrap().endpoints[0];
        assert_eq!((endpoint.hosts[0].text().as_str(), endpoint.port), (host, port), "{server}");
    }
    for server in ["", ":5432", "host:", "host:0", "host:65536", "ho st:1", "host:+1"] {
        assert!(Config::upstream(server, &[0]).is_err(), "{server}");
    }
    let many: Vec<usize> = (0..256).collect();
    let config = Config::upstream("a", &many).unwrap();
    assert_eq!(config.cores.shards.len(), 256, "shards share connections: there may be fewer of those");
}

/// One line in [pgpinion], which is the second of the file, and what is said of it.
const BAD_GENERAL: &[(&str, &str)] = &[
    (
        "max_client_con = 1",
        "2:1: unknown key `max_client_con` in [pgpinion]; did you mean `max_client_conn`?",
    ),
    ("frobnicate = 1", "2:1: unknown key `frobnicate` in [pgpinion]"),
    (
        "max_client_conn = \"many\"",
        "2:19: `max_client_conn` must be a whole number, like `max_client_conn = 10000`, not a string",
    ),
    (
        "max_client_conn = 1.5",
        "2:19: `max_client_conn` must be a whole number, like `max_client_conn = 10000`, not a fraction",
    ),
    ("server_check_delay = -1", "2:22: `server_check_delay` must not be negative, and is -1"),
    (
        "server_check_delay = \"30s\"",
        "2:22: `server_check_delay` must be a number of seconds, like `server_check_delay = 30`, not a string",
    ),
    (
        "query_wait_notify = true",
        "2:21: `query_wait_notify` must be a number of seconds, 0 for off, like `query_wait_notify = 5`, not true or false",
    ),
    (
        "disable_pqexec = 2",
        "2:18: `disable_pqexec` must be true or false, like `disable_pqexec = false`, not a whole number",
    ),
    ("server_check_query = \"a\\u0000\"", "2:22: `server_check_query` must not contain a zero byte"),
    (
        "connect_query = \"select 1\"",
        "2:1: unknown key `connect_query` in [pgpinion]: use it in [databases.NAME]",
    ),
    ("max_client_conn = 0", "2:19: `max_client_conn` must be at least 1, and is 0"),
    ("max_client_conn = -1", "2:19: `max_client_conn` must not be negative, and is -1"),
    ("max_client_conn = 10000001", "2:19: `max_client_conn` must be at most 10000000, and is 10000001"),
    (
        "listen = 6432",
        "2:10: `listen` must be a list of strings, like `listen = [\"127.0.0.1:6432\"]`, not a whole number",
    ),
    ("listen = [\"127.0.0.1:0\"]", "2:11: `listen` must have a port from 1 to 65535, not \"0\""),
    (
        "listen = [\"127.0.0.1\"]",
        "2:11: `listen` must have a port, like \"127.0.0.1:6432\", not \"127.0.0.1\"",
    ),
    (
        "listen = [\"db.example:6432\"]",
        "2:11: `listen` must be a numeric address, `localhost`, `*` or `unix:DIR`, not \"db.example:6432\"; IPv6 like \
         \"[::1]:6432\"",
    ),
    ("listen = []", "2:10: `listen` must not be empty: clients need a place to connect to"),
    ("listen = [\"*:1\", \"0.0.0.0:1\"]", "2:18: `listen` has \"0.0.0.0:1\" twice"),
    ("listen = [1]", "2:11: `listen` must have strings only, not a whole number"),
    (
        "listen = [\"unix:run\"]",
        "2:11: `listen` must name the socket's directory by a path from /, not \"unix:run\"",
    ),
    (
        "pool_mode = \"transactions\"",
        "2:13: `pool_mode` must be \"session\", \"transaction\" or \"statement\", not \"transactions\"",
    ),
    (
        "leak_policy = \"drop\"",
        "2:15: `leak_policy` must be \"allow\", \"log\", \"reset\", \"pin\" or \"refuse\", not \"drop\"",
    ),
    (
        "[routes.\"a/b\"]\nleak_policy = true",
        "3:15: `leak_policy` must be \"allow\", \"log\", \"reset\", \"pin\" or \"refuse\", like `leak_policy = \"pin\"`, not \
         true or false",
    ),
    (
        "pool_mode = 1",
        "2:13: `pool_mode` must be \"session\", \"transaction\" or \"statement\", like `pool_mode = \"transaction\"`, not a \
         whole number",
    ),
    (
        "auth_type = \"md5\"",
        "2:13: `auth_type` = \"md5\" is not in this version; use \"trust\", and let `listen` be reached only by those you \
         trust",
    ),
    ("auth_type = \"mdfive\"", "2:13: `auth_type` must be \"trust\", not \"mdfive\""),
    (
        "query_wait_timeout = \"2min\"",
        "2:22: `query_wait_timeout` must be a number of seconds, 0 for off, like `query_wait_timeout = 120`, not a string",
    ),
    ("query_wait_timeout = -0.5", "2:22: `query_wait_timeout` must not be negative, and is -0.5"),
    ("query_wait_timeout = nan", "2:22: `query_wait_timeout` must be at most 315360000 seconds, and is NaN"),
    ("query_wait_timeout = inf", "2:22: `query_wait_timeout` must be at most 315360000 seconds, and is inf"),
    (
        "server_connect_timeout = 0",
        "2:26: `server_connect_timeout` must be more than 0: it cannot be switched off",
    ),
    ("tcp_keepidle = 0.5", "2:16: `tcp_keepidle` must be at least 1, and is 0"),
    (
        "tcp_keepalive = 2",
        "2:17: `tcp_keepalive` must be true or false, like `tcp_keepalive = true`, not a whole number",
    ),
    (
        "log_level = \"loud\"",
        "2:13: `log_level` must be \"error\", \"warn\", \"info\" or \"debug\", not \"loud\"",
    ),
    ("admin_users = [\"\"]", "2:16: `admin_users` must not be an empty name"),
    (
        "metrics_listen = \"127.0.0.1:9432\"",
        "2:1: unknown key `metrics_listen` in [pgpinion]: not supported yet; the console's SHOW commands and the lines of \
         `stats_period` have the numbers",
    ),
    ("cores = \"none.toml\"", "2:9: `cores`: etc/none.toml cannot be read: entity not found"),
    ("auth_file = \"none\"", "2:13: `auth_file`: etc/none cannot be read: entity not found"),
    (
        "server_tls_sslmode = \"require\"",
        "2:1: unknown key `server_tls_sslmode` in [pgpinion]: TLS is not in this version; keep both sides on networks you \
         trust",
    ),
    ("listen_port = 6432", "2:1: unknown key `listen_port` in [pgpinion]: use `listen = [\"ADDRESS:PORT\"]`"),
    ("max_client_conn = 1\nmax_client_conn = 2", "3:1: not TOML: duplicate key"),
    ("max_client_conn 1", "2:17: not TOML: key with no value, expected `=`"),
];

/// Whole files, and what is said of them.
const BAD_FILES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "1:1: no PostgreSQL server is named; add [endpoints.main] with `host = \"127.0.0.1\"`",
            "1:1: no database is named; [databases.\"*\"] with `endpoint = \"main\"` offers all of a server",
        ],
    ),
    (
        "[pgbouncer]\n[endpoints.main]\nhost = \"a\"\n[databases.a]\n",
        &["1:2: unknown section `pgbouncer`; its settings stand in [pgpinion] here"],
    ),
    (
        "listen = 1\n[endpoint.main]\nhost = \"a\"\n[databases.a]\nendpoint = \"main\"\n",
        &[
            "1:1: unknown key `listen`; it belongs into [pgpinion]",
            "1:1: no PostgreSQL server is named; add [endpoints.main] with `host = \"127.0.0.1\"`",
            "2:2: unknown section `endpoint`; did you mean `endpoints`?",
            "5:12: no endpoint is named \"main\"; there are none yet; add [endpoints.main]",
        ],
    ),
    (
        "[endpoints.main]\nport = 0\nmax_connections = 0\n[databases.a]\n",
        &[
            "1:12: [endpoints.main] needs a `host`, like `host = \"127.0.0.1\"`",
            "2:8: `port` must be at least 1, and is 0",
            "3:19: `max_connections` must be at least 1, and is 0",
        ],
    ),
    (
        "[endpoints.a]\nhost = \"a:5432\"\n[endpoints.b]\nhost = \"\"\nport = 70000\n[databases.x]\n[databases.y]\nendpoint = \"c\"",
        &[
            "2:8: `host` must be without the port, which has a key of its own: `port`; not \"a:5432\"",
            "4:8: `host` must not be empty",
            "5:8: `port` must be at most 65535, and is 70000",
            "6:12: [databases.x] needs an `endpoint`; there is a, b",
            "8:12: no endpoint is named \"c\"; there is a, b; did you mean `a`?",
        ],
    ),
    (
        "[endpoints.main]\nhost = \"a\"\n[databases.pgpinion]\n[databases.b]\nhost = \"x\"\nuser = \"\"\npasword = \"x\"\n",
        &[
            "3:12: [databases.pgpinion] is the console's name; take another one",
            "5:1: unknown key `host` in [databases.b]: a server is an endpoint of its own: put this into [endpoints.NAME], and \
             `endpoint = \"NAME\"` here",
            "6:8: `user` must not be an empty name",
            "7:1: unknown key `pasword` in [databases.b]; did you mean `password`?",
        ],
    ),
    (
        "[endpoints.main]\nhost = \"a\"\n[databases]\na = \"dbname=a\"\n",
        &[
            "3:2: no database is named; [databases.\"*\"] with `endpoint = \"main\"` offers all of a server",
            "4:5: [databases.a] must be a table, not a string",
        ],
    ),
    (
        "[endpoints.main]\nhost = \"a\"\n[databases.app]\n[routes.app]\n[routes.\"ap/x\"]\n[routes.\"app/x\"]\nweight = 0\n\
         min_connections = 5\nmax_connections = 2\n[routes.\"app/y\"]\nmax_connections = 0\n[routes.\"app/z\"]\nmin_connections = 90\n",
        &[
            "1:12: `max_connections` of [endpoints.main] is 90, and its routes are promised 95 by their `min_connections`; \
             raise the one or lower the others",
            "4:9: [routes.app] must be named after a database and a user, like [routes.\"app/batch\"]",
            "5:9: [routes.\"ap/x\"]: no database is named \"ap\"; did you mean `app`?",
            "7:10: `weight` must be at least 1, and is 0",
            "8:19: `min_connections` (5) is more than `max_connections` (2)",
            "11:19: `max_connections` must be at least 1, and is 0; leave it out for no bound",
        ],
    ),
    (
        "[pgpinion]\ndefault_pool_size = 4\n[endpoints.main]\nhost = \"a\"\nmax_connections = 10\nreserve = 10\n\
         [databases.app]\npool_size = 0\n[databases.b]\npool_size = 3\n[routes.\"app/x\"]\nmin_connections = 5\n\
         [routes.\"b/x\"]\nmin_connections = 4\n",
        &[
            "5:19: `max_connections` of [endpoints.main] is 10, and its routes are promised 9 by their `min_connections` and \
             10 are its `reserve`; raise the one or lower the others",
            "6:11: `reserve` of [endpoints.main] is 10 of its 10 `max_connections`: that leaves nothing to others than \
             admin_users; lower it",
            "8:13: `pool_size` must be at least 1, and is 0; leave it out for no bound",
            "12:19: `min_connections` (5) is more than `default_pool_size` (4); lower it, or give the route a \
             `max_connections` of its own",
            "14:19: `min_connections` (4) is more than the database's `pool_size` (3); lower it, or give the route a \
             `max_connections` of its own",
        ],
    ),
    (
        "[pgpinion]\nmin_pool_size = 1\n[endpoints.main]\nhost = \"a\"\n[databases.app]\nmax_db_connections = 5\n",
        &[
            "2:1: unknown key `min_pool_size` in [pgpinion]: idle servers stay for `server_idle_timeout`; what a route can \
             always have is `min_connections` of [routes.\"DATABASE/USER\"]",
            "6:1: unknown key `max_db_connections` in [databases.app]: give the database an endpoint of its own, which may \
             have the same `host`, and set `max_connections` there",
        ],
    ),
];

/// A cores.toml, and what is said of it.
const BAD_CORES: &[(&str, &str)] = &[
    ("[[core]]\ncpu = 4", "2:7: `cpu` is 4, which this process may not run on; it may on 0-3"),
    ("[[core]]\ncpu = 1\n[[core]]\ncpu = 1", "4:7: CPU 1 has a [[core]] already; one shard per CPU"),
    ("[[core]]\nbusy_poll_us = 1", "1:1: [[core]] needs a CPU, like `cpu = 2`"),
    ("[[core]]\ncpu = \"1\"", "2:7: `cpu` must be a whole number, like `cpu = 2`, not a string"),
    ("[core]\ncpu = 1", "1:1: a core is written [[core]], with two brackets"),
    (
        "[default]\nrecv_buffers = 500",
        "2:16: `recv_buffers` must be a power of two, like 256 or 512, and is 500",
    ),
    ("[default]\nrecv_buffers = 65536", "2:16: `recv_buffers` must be at most 32768, and is 65536"),
    ("[default]\nrecv_buffer_bytes = 512", "2:21: `recv_buffer_bytes` must be at least 1024, and is 512"),
    (
        "[default]\nrecv_buffer_bytes = 2097152",
        "2:21: `recv_buffer_bytes` must be at most 1048576, and is 2097152",
    ),
    (
        "[default]\nrecv_buffer_bytes = 1030",
        "2:21: `recv_buffer_bytes` must be a multiple of 64, and is 1030",
    ),
    (
        "[default]\ncq_entries = 512",
        "2:14: `cq_entries` must be at least `sq_entries` (1024), and is 512; eight times as many is usual",
    ),
    ("[default]\ncpu = 1", "2:7: `cpu` belongs into a [[core]], not into [default]"),
    ("[default]\nsq_entries = 1\ncq_entries = 1", "3:14: `cq_entries` must be at least 2, and is 1"),
    ("[default]\nsq_entires = 1", "2:1: unknown key `sq_entires` in [default]; did you mean `sq_entries`?"),
    ("busy_poll_us = 1", "1:1: unknown key `busy_poll_us`; it belongs into [default] or a [[core]]"),
    ("[[cores]]\ncpu = 1", "1:3: unknown key `cores`; did you mean `core`?"),
    (
        "housekeeping = [9]",
        "1:16: `housekeeping` has CPU 9, which this process may not run on; it may on 0-3",
    ),
    (
        "housekeeping = [0,1,2,3]",
        "1:1: `housekeeping` leaves no CPU for a shard; leave one out, or list the shards as [[core]]",
    ),
    (
        "housekeeping = 0",
        "1:16: `housekeeping` must be a list of whole numbers, like `housekeeping = []`, not a whole number",
    ),
];

#[test]
fn each_fault_is_told_with_its_place() {
    for (lines, expected) in BAD_GENERAL {
        assert_eq!(general(lines).unwrap_err(), [format!("etc/p.toml:{expected}")], "{lines}");
    }
    for (text, expected) in BAD_FILES {
        let expected: Vec<String> = expected.iter().map(|error| format!("etc/p.toml:{error}")).collect();
        assert_eq!(parse_with(text, &[]).unwrap_err(), expected, "{text}");
    }
    for (text, expected) in BAD_CORES {
        assert_eq!(cores(text).unwrap_err(), [format!("etc/c.toml:{expected}")], "{text}");
    }
}

#[test]
fn names_are_no_longer_than_postgresql_allows() {
    let (fits, long) = ("n".repeat(63), "n".repeat(64));
    for key in ["[databases.N]", "[databases.x]\nuser = \"N\"", "[databases.x]\ndbname = \"N\""] {
        general(&key.replace('N', &fits)).unwrap();
        let errors = general(&key.replace('N', &long)).unwrap_err();
        assert!(errors[0].contains("at most 63 bytes") && errors[0].contains("has 64"), "{errors:?}");
    }
}

#[test]
fn faults_of_all_files_are_told_at_once() {
    let text = format!("[pgpinion]\nauth_file = \"u\"\ncores = \"c\"\nbad = 1\n{SERVER}");
    let errors = parse_with(&text, &[("etc/u", "x"), ("etc/c", "y = 1\nz =")]).unwrap_err();
    let places: Vec<&str> = errors.iter().map(|error| error.split(' ').next().unwrap()).collect();
    assert_eq!(places, ["etc/p.toml:4:1:", "etc/u:1:1:", "etc/c:2:4:"]);
}

#[test]
fn the_files_in_tuning_are_good_and_complete() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning");
    let config = load(&root.join("pgpinion.toml"), &CPUS).unwrap();
    assert!(!config.cores.shards.is_empty());
    let text = std::fs::read_to_string(root.join("pgpinion.toml")).unwrap();
    let cores = std::fs::read_to_string(root.join("cores.toml")).unwrap();
    for name in GENERAL.iter().map(|setting| setting.name) {
        assert!(text.contains(&format!("\n{name} = ")) || text.contains(&format!("\n# {name} = ")), "{name}");
    }
    for name in CORE.iter().map(|setting| setting.name) {
        assert!(
            cores.contains(&format!("\n{name} = ")) || cores.contains(&format!("\n# {name} = ")),
            "{name}"
        );
    }
}

#[test]
fn a_missing_file_is_told() {
    let errors = load(Path::new("/nowhere/p.toml"), &CPUS).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "/nowhere/p.toml: cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn keys_are_quoted_only_if_they_must() {
    assert_eq!(bare_or_quoted("a-b_1"), "a-b_1");
    assert_eq!(bare_or_quoted("*"), "\"*\"");
}

#[test]
fn the_terms_of_a_route_are_its_own_else_its_database_s_else_the_general_ones() {
    let text = "[pgpinion]\ndefault_pool_size = 7\nadmin_users = [\"dba\"]\n[endpoints.main]\nhost = \"a\"\n\
        [databases.\"*\"]\n[databases.app]\npool_size = 5\n\
        [routes.\"app/batch\"]\nweight = 3\nmin_connections = 1\nmax_connections = 2\n[routes.\"app/web\"]\nweight = 2\n";
    let config = parse_with(text, &[]).unwrap();
    let terms = |weight, floor, ceiling, may_use_reserve| Terms {
        weight,
        floor,
        ceiling: Some(ceiling),
        may_use_reserve,
    };
    assert_eq!(config.terms("app", "batch"), terms(3, 1, 2, false));
    assert_eq!(config.terms("app", "web"), terms(2, 0, 5, false));
    assert_eq!(config.terms("app", "dba"), terms(1, 0, 5, true));
    assert_eq!(config.terms("other", "web"), terms(1, 0, 7, false));
    assert_eq!(general("").unwrap().terms("any", "x").ceiling, None);
}

/// Each setting set to another value: a reload applies it exactly if the table says so.
#[test]
fn a_reload_applies_what_the_table_calls_live_and_names_the_rest() {
    let files = [("etc/u", "\"a\" \"b\""), ("etc/c", "[[core]]\ncpu = 0\n")];
    let old = general("").unwrap();
    for setting in GENERAL.iter().filter(|setting| setting.name != "auth_type") {
        let line = OTHER_VALUES.iter().find(|line| line.split(' ').next() == Some(setting.name));
        let line = line.unwrap_or_else(|| panic!("no other value of {}", setting.name));
        let new = parse_with(&format!("[pgpinion]\n{line}\n{SERVER}"), &files).unwrap();
        let reloaded = old.reload(&new).unwrap();
        let named =
            |list: &[String]| list.iter().any(|each| each.starts_with(&format!("{}: ", setting.name)));
        assert_eq!(named(&reloaded.applied), setting.live, "{line}: {reloaded:?}");
        assert_eq!(named(&reloaded.needs_restart), !setting.live, "{line}: {reloaded:?}");
        assert_eq!(reloaded.config == old, !setting.live, "{line}");
    }
}

const OTHER_VALUES: &[&str] = &[
    "max_prepared_statements = 0",
    "listen = [\"127.0.0.1:1\"]",
    "pool_mode = \"session\"",
    "max_client_conn = 5",
    "default_pool_size = 5",
    "hand_over = false",
    "steering = false",
    "auth_file = \"u\"",
    "admin_users = [\"x\"]",
    "cores = \"c\"",
    "server_reset_query = \"x\"",
    "server_check_query = \"x\"",
    "server_check_delay = 0",
    "application_name_add_host = true",
    "disable_pqexec = 1",
    "query_wait_notify = 0",
    "ignore_startup_parameters = \"geqo\"",
    "track_extra_parameters = []",
    "leak_policy = \"pin\"",
    "max_waiting_clients = 9",
    "query_wait_timeout = 9",
    "server_idle_timeout = 9",
    "server_lifetime = 9",
    "server_connect_timeout = 9",
    "server_close_timeout = 9",
    "client_login_timeout = 9",
    "client_idle_timeout = 9",
    "idle_transaction_timeout = 9",
    "shutdown_timeout = 9",
    "tcp_keepalive = false",
    "tcp_keepidle = 9",
    "tcp_keepintvl = 9",
    "tcp_keepcnt = 9",
    "tcp_user_timeout = 9",
    "tcp_socket_buffer = 9",
    "listen_backlog = 9",
    "log_format = \"json\"",
    "log_level = \"debug\"",
    "log_connections = false",
    "log_disconnections = false",
    "stats_period = 9",
    "dns_max_ttl = 9",
    "dns_nxdomain_ttl = 9",
];

#[test]
fn a_reload_changes_limits_and_keeps_what_is_wired() {
    let file = |main: &str, app: &str, more: &str| {
        let text = format!(
            "[endpoints.main]\nhost = \"a\"\n{main}\n[databases.app]\nendpoint = \"main\"\n{app}\n{more}\n"
        );
        parse_with(&text, &[]).unwrap()
    };
    let old = file("max_connections = 20", "password = \"x\"", "[routes.\"app/y\"]\nweight = 2");
    let nothing = Reloaded { config: old.clone(), applied: vec![], needs_restart: vec![] };
    assert_eq!(old.reload(&old), Ok(nothing));

    let app = "password = \"x\"\npool_size = 3";
    let new = file("max_connections = 5\nreserve = 1", app, "[routes.\"app/z\"]\nweight = 4");
    let reloaded = old.reload(&new).unwrap();
    let expected = [
        "databases.app.pool_size: unset -> 3",
        "endpoints.main.max_connections: 20 -> 5",
        "endpoints.main.reserve: 0 -> 1",
        "routes.\"app/y\".min_connections: 0 -> unset",
        "routes.\"app/y\".weight: 2 -> unset",
        "routes.\"app/z\".min_connections: unset -> 0",
        "routes.\"app/z\".weight: unset -> 4",
    ];
    assert_eq!(reloaded.applied, expected);
    assert_eq!((reloaded.config == new, reloaded.needs_restart), (true, vec![]));

    let more = "[routes.\"app/y\"]\nweight = 2\n[endpoints.b]\nhost = \"b\"";
    let other = file("max_connections = 20\nport = 1", "password = \"z\"", more);
    let reloaded = old.reload(&other).unwrap();
    let expected = [
        "endpoints.b.host: unset -> \"b\"",
        "endpoints.b.max_connections: unset -> 90",
        "endpoints.b.port: unset -> 5432",
        "endpoints.b.reserve: unset -> 0",
        "endpoints.main.port: 5432 -> 1",
        "databases.app.password",
    ];
    assert_eq!(reloaded.needs_restart, expected);
    assert_eq!(reloaded.config, old);

    // In the new files the promise is another endpoint's, and good; until a restart it is that of the lowered one.
    let text = "[pgpinion]\ncores = \"c\"\n[endpoints.main]\nhost = \"a\"\nmax_connections = 5\n[endpoints.b]\nhost = \"b\"\n\
                [databases.app]\nendpoint = \"b\"\n[routes.\"app/y\"]\nmin_connections = 10\n";
    let moved = parse_with(text, &[("etc/c", "[[core]]\ncpu = 0\n")]).unwrap();
    let refused = old.reload(&moved).unwrap_err();
    let why = "it does not go together with what holds until a restart: `max_connections`";
    assert!(refused.starts_with(why), "{refused}");
}
