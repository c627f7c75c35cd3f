//! Settings of single behaviours: `application_name_add_host`, `connect_query`, `server_check_query`, `query_wait_notify`,
//! `disable_pqexec`.

use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::pooler::{Plan, Pooler, Target, login};
use crate::process::eventually;
use crate::proxy::Proxy;
use crate::wire::{Client, Frames};

#[test]
fn application_names_get_the_address() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler =
        Plan::new(cluster).max_connections(1).unix_listener().set("application_name_add_host", true).start();
    let mut named = Client::connect(
        &pooler.address,
        &[("user", &user), ("database", "app"), ("application_name", "billing")],
    )
    .expect("a login");
    let crate::wire::Stream::Tcp(stream) = named.stream() else { panic!("by TCP") };
    let expected = format!("billing - {}", stream.local_addr().expect("connected"));
    assert_eq!(named.parameter("application_name"), Some(expected.as_str()), "it is told so");
    let mut nameless = pooler.client(&user);
    let mut local =
        Client::connect(&crate::wire::Address::Unix(pooler.unix.clone()), &login(&user)).expect("a login");
    for _ in 0..3 {
        let show = |client: &mut Client| client.query("show application_name").expect("a server").value();
        assert_eq!(show(&mut named), expected);
        let name = show(&mut nameless);
        assert!(name.starts_with("app - 127.0.0.1:"), "{name}");
        assert_eq!(show(&mut local), "app - unix");
        let seen = "select application_name from pg_stat_activity where pid = pg_backend_pid()";
        assert_eq!(named.query(seen).expect("a server").value(), expected, "PostgreSQL sees it");
    }
    // What it sets itself is left alone.
    named.query("set application_name = 'mine'").expect("a server");
    nameless.query("select 1").expect("a server");
    assert_eq!(named.query("show application_name").expect("a server").value(), "mine");
    drop((named, nameless, local));
    pooler.finish();
}

#[test]
fn connect_query_runs_before_the_first_use() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    for mode in ["transaction", "session"] {
        let query = "set work_mem = '1234kB'; set timezone = 'PRC'; select repeat('x', 100000)";
        let pooler =
            Plan::new(cluster).mode(mode).max_connections(3).database("connect_query", query).start();
        let mut clients: Vec<Client> = (0..3).map(|_| pooler.client(&user)).collect();
        for client in &mut clients {
            assert_eq!(client.parameter("TimeZone"), Some("PRC"), "it belongs to how the server begins");
            client.query("begin").expect("a server");
        }
        for client in &mut clients {
            assert_eq!(client.query("show work_mem").expect("its server").value(), "1234kB");
            assert_eq!(client.query("show timezone").expect("its server").value(), "PRC");
            client.query("commit").expect("its server");
        }
        if mode == "transaction" {
            // What a client leaves is not taken back together with it.
            for client in &mut clients {
                client.query("set work_mem = '64kB'").expect("a server");
                assert_eq!(client.query("show work_mem").expect("another").value(), "1234kB");
            }
        }
        drop(clients);
        pooler.finish();
    }
}

/// The error is the client's, at once, and PostgreSQL's connection is closed.
#[test]
fn a_connect_query_that_fails_is_told() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    for (query, code, text) in [
        ("select * from nowhere", "42P01", "ERROR 42P01: relation \"nowhere\" does not exist"),
        ("select 1; begin", "F0000", "it left a transaction open"),
        ("copy pg_class from stdin", "42501", "ERROR 42501: permission denied"),
        ("create temp table own (a int); copy own from stdin", "F0000", "it waits for data of a COPY"),
    ] {
        let pooler = Plan::new(cluster).database("connect_query", query).start();
        let began = Instant::now();
        let fault = pooler.try_client(&user).expect_err("it cannot be let in");
        assert!(began.elapsed() < Duration::from_secs(5), "{query}: told after {:?}", began.elapsed());
        let said = fault.to_string();
        assert_eq!(fault.code(), code, "{query}: {said}");
        assert!(said.contains("connect_query failed: ") && said.contains(text), "{query}: {said}");
        assert_logs(&pooler, "login failed: connect_query failed");
        eventually("its connection is closed", Duration::from_secs(5), || cluster.backends(&user).is_empty());
        pooler.finish();
    }
}

/// Connections that the network has forgotten: without the check their clients would hang.
#[test]
fn a_server_that_does_not_answer_its_check_is_replaced() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    for mode in ["transaction", "session"] {
        let proxy = Proxy::to_port(cluster.port());
        let pooler = Plan::to_port(proxy.port())
            .mode(mode)
            .max_connections(2)
            .set("server_check_delay", 0.2)
            .set("server_close_timeout", 0.2)
            .start();
        let mut client = pooler.client(&user);
        assert_eq!(client.query("select 1").expect("a server").value(), "1");
        client.terminate();
        let mut client = pooler.client(&user);
        // For longer than it is trusted, and than it takes to be cleaned.
        std::thread::sleep(Duration::from_millis(500));
        proxy.silence();
        let began = Instant::now();
        let reply = client.query("select 2").expect("another server");
        assert_eq!((reply.value().as_str(), reply.notices.len()), ("2", 0), "{mode}");
        assert!(began.elapsed() < Duration::from_secs(5), "{mode}: after {:?}", began.elapsed());
        assert_logs(&pooler, "server_check_query failed: no answer in time");
        drop(client);
        drop(proxy);
        pooler.finish();
    }
}

/// What the check says of the connection counts, not only that it answers.
#[test]
fn a_check_that_fails_closes_and_one_that_succeeds_does_not() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    // It divides by zero on servers that have served somebody who wanted that.
    let check = "\"select 1 / (current_setting('work_mem') <> '77kB')::int\"";
    let pooler = Plan::new(cluster)
        .max_connections(1)
        .set("server_check_delay", 0)
        .set("server_check_query", check)
        .set("leak_policy", "\"allow\"")
        .start();
    let mut client = pooler.client(&user);
    let pid = |client: &mut Client| client.query("select pg_backend_pid()").expect("a server").value();
    let first = pid(&mut client);
    for _ in 0..20 {
        assert_eq!(pid(&mut client), first);
    }
    client.query("set work_mem = '77kB'").expect("a server");
    let second = pid(&mut client);
    assert_ne!(second, first, "that one did not pass");
    assert_eq!(client.extended("select $1::text", &["x"]).expect("a server").value(), "x");
    assert_eq!(pid(&mut client), second);
    assert_logs(&pooler, "server_check_query failed: ERROR 22012: division by zero");
    drop(client);
    pooler.finish();
}

#[test]
fn who_waits_long_gets_a_notice() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(1).set("query_wait_notify", 0.2).start();
    let mut first = pooler.client(&user);
    let mut second = pooler.client(&user);
    for _ in 0..2 {
        first.query("begin").expect("the server");
        second.send(&Frames::new().query("select 1").0).expect("open");
        let notice = second.read().expect("a notice");
        assert_eq!(notice.tag, b'N');
        let text = String::from_utf8_lossy(&notice.body).into_owned();
        assert_eq!(
            text,
            "SNOTICE\0VNOTICE\0C00000\0MNo server connection available in postgres backend, client being queued\0\0"
        );
        second.assert_silent(Duration::from_millis(500));
        first.query("commit").expect("the server");
        let reply = second.collect().expect("the server");
        assert_eq!((reply.value().as_str(), reply.notices.len()), ("1", 0), "once for each wait");
    }
    assert!(
        second.query("select 2").expect("the server").notices.is_empty(),
        "who does not wait hears nothing"
    );
    drop((first, second));
    pooler.finish();
}

#[test]
fn simple_queries_are_refused_where_that_is_the_rule() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    if Target::is_direct() {
        return;
    }
    let pooler = Plan::new(cluster).max_connections(1).set("disable_pqexec", 1).start();
    for begin in [Frames::new(), Frames::new().unnamed("begin", &[]).sync()] {
        let mut client = pooler.client(&user);
        assert_eq!(client.extended("select $1::text", &["x"]).expect("a server").value(), "x");
        if !begin.0.is_empty() {
            client.send(&begin.0).expect("open");
            client.collect().expect("a server");
        }
        client.send(&Frames::new().query("select 1; drop table x").0).expect("open");
        let error = client.read_to_end(Duration::from_secs(5)).expect("it is told why");
        assert_eq!((error.severity.as_str(), error.message.as_str()), ("FATAL", "PQexec disallowed"));
        assert_eq!(error.code, "08P01");
        // Its server is in no transaction, and serves the next one.
        let mut next = pooler.client(&user);
        let reply = next.extended("select pg_backend_pid()", &[]).expect("a server");
        let pid = reply.value();
        assert_eq!(reply.status, b'I');
        assert!(cluster.backends(&user).iter().any(|backend| backend.to_string() == pid));
        next.terminate();
    }
    pooler.finish();
}

/// The log is written a moment later.
fn assert_logs(pooler: &Pooler, what: &str) {
    eventually(what, Duration::from_secs(5), || pooler.log().contains(what));
}
