//! Parameters: those of startup packets, and those that follow a client from server to server (S09).

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::pooler::{Plan, Pooler, Target};
use crate::proxy::{Pace, Proxy, Weather};
use crate::wire::{Client, Fault, Frames};

fn connect(pooler: &Pooler, user: &str, more: &[(&str, &str)]) -> Result<Client, Fault> {
    let parameters = [&[("user", user), ("database", "app")], more].concat();
    Client::connect(&pooler.address, &parameters)
}

fn show(client: &mut Client, name: &str) -> String {
    client.query(&format!("show {name}")).expect("a server").value()
}

fn pid(client: &mut Client) -> String {
    client.query("select pg_backend_pid()").expect("a server").value()
}

/// What drivers send, as PostgreSQL itself answers it.
#[test]
fn startup_parameters_are_as_with_postgresql() {
    if !Target::is_pgpinion() {
        return;
    }
    for cluster in Cluster::of_each_release() {
        startup_parameters_are_as_with(cluster);
    }
}

fn startup_parameters_are_as_with(cluster: &Cluster) {
    let user = cluster.user("user");
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("libpq", &[("application_name", "psql"), ("client_encoding", "UTF8")]),
        (
            "jdbc",
            &[
                ("client_encoding", "UTF8"),
                ("DateStyle", "ISO"),
                ("TimeZone", "Europe/Berlin"),
                ("extra_float_digits", "2"),
            ],
        ),
        ("asyncpg", &[("client_encoding", "'utf-8'")]),
        ("lower case", &[("timezone", "utc"), ("datestyle", "german"), ("intervalstyle", "iso_8601")]),
        ("options", &[("options", "-c TimeZone=PRC --application-name=a\\ b -cDateStyle=sql,dmy")]),
        ("both", &[("options", "-c TimeZone=PRC"), ("TimeZone", "UTC")]),
        ("quotes", &[("application_name", "x'; drop table t; -- \\ \" $1")]),
        ("long", &[("application_name", LONG)]),
        ("nothing", &[]),
    ];
    for mode in ["transaction", "session", "statement"] {
        let pooler = Plan::new(cluster).mode(mode).max_connections(2).start();
        for (name, more) in cases {
            let parameters = [&[("user", user.as_str()), ("database", "app")], *more].concat();
            let mut direct = Client::connect(&cluster.address(), &parameters).expect("a login");
            // The second time nothing needs to be checked.
            for round in 0..2 {
                let mut client = connect(&pooler, &user, more).expect("a login");
                let told = |client: &Client| client.parameters.iter().cloned().collect::<BTreeMap<_, _>>();
                assert_eq!(told(&client), told(&direct), "{name}, {mode}, {round}");
                for setting in SETTINGS {
                    assert_eq!(
                        show(&mut client, setting),
                        show(&mut direct, setting),
                        "{name}, {mode}: {setting}"
                    );
                }
                client.terminate();
            }
        }
        pooler.finish();
    }
}

#[test]
fn startup_parameters_that_nobody_knows_are_refused_or_ignored() {
    if !Target::is_pgpinion() {
        return;
    }
    for cluster in Cluster::of_each_release() {
        what_nobody_knows_is_refused_or_ignored(cluster);
    }
}

fn what_nobody_knows_is_refused_or_ignored(cluster: &Cluster) {
    let user = cluster.user("user");
    let pooler = Plan::new(cluster)
        .max_connections(1)
        .set("ignore_startup_parameters", "\"geqo, options\"")
        .set("track_extra_parameters", "[\"Search_Path\", \"intervalstyle\"]")
        .start();
    let mut first = connect(&pooler, &user, &[]).expect("a login");
    let backend = pid(&mut first);
    for (more, code, text) in [
        ([("statement_timeout", "5")], "08P01", "unsupported startup parameter: statement_timeout"),
        (
            [("TimeZone", "Nowhere/Land")],
            "22023",
            "invalid value for parameter \"TimeZone\": \"Nowhere/Land\"",
        ),
        ([("client_encoding", "x'y")], "22023", "invalid value for parameter \"client_encoding\": \"x'y\""),
    ] {
        for _ in 0..2 {
            let fault = connect(&pooler, &user, &more).expect_err("it cannot be had");
            assert_eq!(fault.code(), code, "{fault}");
            assert!(fault.to_string().contains(text), "{fault}");
            assert!(fault.to_string().contains("FATAL"), "{fault}");
        }
    }
    let more = [("geqo", "off"), ("options", "-c nonsense"), ("search_path", "pg_catalog, \"a b\"")];
    let mut client = connect(&pooler, &user, &more).expect("a login");
    assert_eq!(show(&mut client, "geqo"), "on");
    assert_eq!(show(&mut client, "search_path"), "pg_catalog, \"a b\"");
    assert_eq!(show(&mut first, "search_path"), "\"$user\", public", "what one asks for is not for others");
    for _ in 0..2 {
        let styled = connect(&pooler, &user, &[("IntervalStyle", "POSTGRES_verbose")]).expect("a login");
        assert_eq!(styled.parameter("IntervalStyle"), Some("postgres_verbose"), "as PostgreSQL writes it");
    }
    assert_eq!(pid(&mut first), backend, "who asks for nonsense costs no server");
    drop((first, client));
    pooler.finish();
}

/// PostgreSQL 18 reports `search_path`: a SET of it follows there. In a startup packet it has to be asked for, as with
/// PgBouncer; what every PostgreSQL reports need not.
#[test]
fn s09_what_is_reported_follows() {
    if !Target::is_pgpinion() {
        return;
    }
    for cluster in Cluster::of_each_release() {
        let user = cluster.user("user");
        let pooler = Plan::new(cluster).max_connections(1).start();
        let mut other = connect(&pooler, &user, &[]).expect("a login");
        for wish in [("search_path", "pg_catalog"), ("options", "-c search_path=pg_catalog")] {
            let fault = connect(&pooler, &user, &[wish]).expect_err("it was not asked for").to_string();
            assert!(
                fault.contains("unsupported startup parameter") && fault.contains("search_path"),
                "{fault}"
            );
        }
        let wish = [("options", "-c default_transaction_read_only=on")];
        let mut client = connect(&pooler, &user, &wish).expect("a login");
        for _ in 0..2 {
            assert_eq!(show(&mut client, "transaction_read_only"), "on");
            assert_eq!(client.query("create table refused (a int)").expect("a server").code(), "25006");
            assert_eq!(show(&mut other, "transaction_read_only"), "off");
        }
        let is_reported = other.parameter("search_path").is_some();
        for path in ["information_schema", "\"A b\", c"] {
            client.query(&format!("set search_path = {path}")).expect("a server");
            assert_eq!(show(&mut other, "search_path"), "\"$user\", public");
            let left = if is_reported { path } else { "\"$user\", public" };
            assert_eq!(show(&mut client, "search_path"), left);
            assert_eq!(client.parameter("search_path"), is_reported.then_some(path));
        }
        drop((client, other));
        pooler.finish();
    }
}

/// Before a real server: nothing is set while values are equal, and what differs is set on the way of the query.
#[test]
fn values_cost_nothing_while_equal_and_no_round_trip_when_not() {
    if !Target::is_pgpinion() {
        return;
    }
    for cluster in Cluster::of_each_release() {
        let user = cluster.user("user");
        cluster.sql(&format!("alter role {user} set log_statement = 'all'"));
        let proxy = Proxy::to_port(cluster.port());
        proxy.set(Weather::paced(Pace::Far(WAY_MS)));
        let pooler = Plan::to_port(proxy.port()).max_connections(1).start_alone();
        let mark = cluster.mark();
        let set = || {
            let lines = cluster.log_since(mark, &user);
            lines.iter().filter(|line| line.contains("set_config")).count()
        };
        let wishes = [("TimeZone", "PRC"), ("DateStyle", "German"), ("application_name", "one")];
        let mut one = connect(&pooler, &user, &wishes).expect("a login");
        let mut two =
            connect(&pooler, &user, &[("TimeZone", "PRC"), ("application_name", "two")]).expect("a login");
        let ask = |client: &mut Client| {
            let began = Instant::now();
            let all = "select current_setting('TimeZone'), current_setting('application_name')";
            let reply = client.extended(all, &[]).expect("a server");
            (reply.text_rows().concat(), began.elapsed())
        };
        let trips = |took: Duration| took.as_millis() as u64 / (2 * WAY_MS);
        ask(&mut one);
        let before = set();
        for _ in 0..3 {
            assert_eq!(trips(ask(&mut one).1), 1);
        }
        assert_eq!(set(), before, "the values were the client's already");
        for round in 1..=3 {
            for (client, name, differ) in [(&mut two, "two", 2), (&mut one, "one", 2)] {
                let before = set();
                let (row, took) = ask(client);
                assert_eq!(row, ["PRC", name]);
                assert_eq!(trips(took), 1, "{round}: it took {took:?}");
                // The date style and the name; the zone is the same.
                assert_eq!(set() - before, differ, "{round}");
            }
        }
        drop((one, two));
        drop(proxy);
        pooler.finish();
    }
}

/// From one end to the other.
const WAY_MS: u64 = 150;

/// Clients with different values share two servers, and none sees another's.
#[test]
fn s09_values_follow_their_client() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    for mode in ["transaction", "statement"] {
        let pooler = Plan::new(cluster).mode(mode).shards(2).max_connections(2).start();
        thread::scope(|scope| {
            for number in 0..8 {
                let (pooler, user) = (&pooler, &user);
                scope.spawn(move || {
                    let zone = ["UTC", "PRC", "Asia/Tokyo", "Europe/Berlin"][number % 4];
                    let mut client = connect(pooler, user, &[("TimeZone", zone)]).expect("a login");
                    let name = format!("it's \\ {number}");
                    let quoted = name.replace('\'', "''");
                    for round in 0..40 {
                        let set = format!("set application_name = '{quoted} {round}'");
                        assert_eq!(client.query(&set).expect("a server").commands, ["SET"]);
                        assert_eq!(client.parameter("application_name"), Some(&*format!("{name} {round}")));
                        assert_eq!(show(&mut client, "timezone"), zone);
                        let sql = "select current_setting('application_name')";
                        let value = client.extended(sql, &[]).expect("a server").value();
                        assert_eq!(value, format!("{name} {round}"));
                    }
                    client.terminate();
                });
            }
        });
        pooler.finish();
    }
}

#[test]
fn values_follow_what_transactions_make_of_them() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(1).start();
    let mut other = connect(&pooler, &user, &[("TimeZone", "Asia/Tokyo")]).expect("a login");
    let mut client = connect(&pooler, &user, &[]).expect("a login");
    let own = show(&mut client, "timezone");
    for (statements, expected) in [
        (&["set timezone = 'PRC'"][..], "PRC"),
        (&["begin", "set timezone = 'UTC'", "rollback"], "PRC"),
        (&["begin", "set local timezone = 'UTC'", "commit"], "PRC"),
        (&["begin", "set timezone = 'UTC'", "commit"], "UTC"),
        (&["select set_config('timezone', 'PRC', false)"], "PRC"),
        (&["reset timezone"], own.as_str()),
        (&["set timezone = 'PRC'; reset all"], own.as_str()),
        (&["set timezone = 'PRC'", "discard all"], own.as_str()),
    ] {
        for statement in statements {
            assert_eq!(client.query(statement).expect("a server").code(), "", "{statement}");
        }
        assert_eq!(client.parameter("TimeZone"), Some(expected), "{statements:?}");
        assert_eq!(show(&mut other, "timezone"), "Asia/Tokyo", "{statements:?}");
        assert_eq!(show(&mut client, "timezone"), expected, "{statements:?}");
    }
    drop((client, other));
    pooler.finish();
}

/// `RESET` goes back to what a client asked for when it logged in, as in a session of its own: asyncpg does that each time
/// a connection goes back to its pool.
#[test]
fn reset_goes_back_to_the_startup_packet() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    for mode in ["transaction", "session"] {
        let pooler = Plan::new(cluster).mode(mode).max_connections(2).start();
        let more = [("TimeZone", "PRC"), ("application_name", "me"), ("extra_float_digits", "3")];
        let mut client = connect(&pooler, &user, &more).expect("a login");
        let mut other = connect(&pooler, &user, &[]).expect("a login");
        for reset in
            ["reset all", "discard all", "reset timezone; reset application_name; reset extra_float_digits"]
        {
            let set = "set timezone = 'UTC'; set application_name = 'you'; set extra_float_digits = 0";
            assert_eq!(client.query(set).expect("a server").code(), "");
            for statement in reset.split("; ") {
                assert_eq!(client.query(statement).expect("a server").code(), "", "{statement}");
            }
            for (name, expected) in
                [("timezone", "PRC"), ("application_name", "me"), ("extra_float_digits", "3")]
            {
                assert_eq!(show(&mut client, name), expected, "{mode}, {reset}");
            }
            assert_eq!(client.parameter("TimeZone"), Some("PRC"), "{mode}, {reset}");
            assert_eq!(show(&mut other, "application_name"), "", "{mode}, {reset}");
            assert_eq!(show(&mut other, "extra_float_digits"), "1", "{mode}, {reset}");
        }
        drop((client, other));
        pooler.finish();
    }
}

/// What a pipeline does behind a change of values is not disturbed by it.
#[test]
fn pipelines_behind_a_change_of_values() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(1).start();
    let mut clients: Vec<Client> = ["UTC", "PRC", "Asia/Tokyo"]
        .into_iter()
        .map(|zone| connect(&pooler, &user, &[("TimeZone", zone)]).expect("a login"))
        .collect();
    for round in 0..20 {
        for client in &mut clients {
            let zone = client.parameter("TimeZone").expect("told").to_owned();
            let batch = Frames::new().unnamed("select current_setting('timezone')", &[]).sync();
            let frames = batch.query("select 1/0").unnamed("select 1/0", &[]).sync().query("show timezone");
            client.send(&frames.0).expect("open");
            assert_eq!(client.collect().expect("an answer").value(), zone, "{round}");
            assert_eq!(client.collect().expect("an answer").code(), "22012");
            assert_eq!(client.collect().expect("an answer").code(), "22012");
            assert_eq!(client.collect().expect("an answer").value(), zone, "{round}");
        }
    }
    drop(clients);
    pooler.finish();
}

/// A client that acts as somebody else leaves nobody in that role.
#[test]
fn s09_roles_do_not_reach_others() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(1).set("leak_policy", "\"allow\"").start();
    let mut client = connect(&pooler, "postgres", &[]).expect("a login");
    let backend = pid(&mut client);
    let set = format!("set session authorization {user}");
    assert_eq!(client.query(&set).expect("a server").code(), "");
    let mut other = connect(&pooler, "postgres", &[]).expect("a login");
    assert_eq!(other.query("select current_user").expect("a server").value(), "postgres");
    assert_ne!(pid(&mut other), backend, "that server is closed");
    // Who goes back in the same transaction keeps its server.
    let backend = pid(&mut other);
    let there_and_back = format!("begin; {set}; select 1; reset session authorization; commit");
    assert_eq!(other.query(&there_and_back).expect("a server").code(), "");
    assert_eq!(pid(&mut other), backend);
    drop((client, other));
    pooler.finish();
}

const SETTINGS: [&str; 7] = [
    "client_encoding",
    "datestyle",
    "timezone",
    "intervalstyle",
    "application_name",
    "standard_conforming_strings",
    "extra_float_digits",
];

const LONG: &str = "0123456789012345678901234567890123456789012345678901234567890123456789";
