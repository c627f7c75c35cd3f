//! Starting, stopping, checking, and what the log tells afterwards.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::cluster::Cluster;
use crate::crowd::{Crowd, Habit};
use crate::pooler::{Plan, Target, program};
use crate::process::{self, eventually};
use crate::wire::Client;

/// SIGTERM: idle clients go, nobody new comes, an open transaction may end; then it is over, and well.
#[test]
fn sigterm_drains_at_transaction_boundaries() {
    if !Target::is_pgpinion() {
        return;
    }
    for (mode, shards) in [("transaction", 1), ("transaction", 2), ("session", 1)] {
        let cluster = Cluster::shared();
        let user = cluster.user("user");
        let mark = cluster.mark();
        let pooler = Plan::new(cluster).mode(mode).shards(shards).max_connections(4).start();
        let mut idle = pooler.client(&user);
        idle.query("select 1").expect("a server");
        let mut open = pooler.client(&user);
        open.query("begin").expect("a server");
        pooler.signal(Signal::SIGTERM);
        let farewell = idle.read_to_end(Duration::from_secs(3)).expect("a word at the end");
        assert_eq!(farewell.code, "57P01", "{farewell}");
        let refused = pooler.try_client(&user);
        assert!(refused.is_err(), "{mode}: a login during the drain");
        assert!(!refused.expect_err("refused").is_timeout(), "{mode}: a login that hangs during the drain");
        std::thread::sleep(Duration::from_millis(300));
        for _ in 0..3 {
            assert_eq!(open.query("select 1").expect("its transaction is still open").value(), "1");
        }
        let commit = open.query("commit").expect("a transaction may end");
        assert_eq!(commit.commands, ["COMMIT"]);
        let farewell = open.read_to_end(Duration::from_secs(3));
        assert!(farewell.is_none_or(|error| error.code == "57P01"));
        assert_eq!(pooler.wait(Duration::from_secs(5)), Some(0), "its exit code\n{}", pooler.log_tail());
        eventually("no backend is left", Duration::from_secs(1), || cluster.backends(&user).is_empty());
        cluster.assert_log_clean(mark, &user, &[]);
        pooler.finish_stopped();
    }
}

/// SIGTERM with nobody there, and under load: no transaction that was acknowledged is lost, and nobody hangs.
#[test]
fn sigterm_under_load() {
    if !Target::is_pgpinion() {
        return;
    }
    for clients in [0, 20] {
        let cluster = Cluster::shared();
        let user = cluster.user("user");
        let mark = cluster.mark();
        let pooler = Plan::new(cluster).shards(2).max_connections(4).start();
        let crowd = Crowd::start(clients, &pooler.address, &user, Habit::LIGHT);
        std::thread::sleep(Duration::from_millis(500));
        pooler.signal(Signal::SIGTERM);
        assert_eq!(pooler.wait(Duration::from_secs(5)), Some(0), "its exit code\n{}", pooler.log_tail());
        let tally = crowd.finish();
        tally.assert_no_hang();
        for fault in &tally.faults {
            // A word, a close, or nobody listening any more; never an error in the middle of a transaction.
            assert!(matches!(fault.code(), "57P01" | "57P03" | ""), "{fault}");
        }
        cluster.assert_log_clean(mark, &user, &[]);
        eventually("no backend is left", Duration::from_secs(1), || cluster.backends(&user).is_empty());
        pooler.finish_stopped();
    }
}

/// SIGINT, or SIGTERM twice: at once, whatever is open.
#[test]
fn sigint_and_second_sigterm_stop_at_once() {
    if !Target::is_pgpinion() {
        return;
    }
    for signals in [
        &[Signal::SIGINT][..],
        &[Signal::SIGTERM, Signal::SIGTERM][..],
        &[Signal::SIGTERM, Signal::SIGINT][..],
    ] {
        let cluster = Cluster::shared();
        let user = cluster.user("user");
        let pooler = Plan::new(cluster).max_connections(4).start();
        let mut open = pooler.client(&user);
        open.query("begin").expect("a server");
        let start = Instant::now();
        for (number, signal) in signals.iter().enumerate() {
            if number > 0 {
                std::thread::sleep(Duration::from_millis(300));
                assert_eq!(pooler.wait(Duration::ZERO), None, "a transaction is still open");
            }
            pooler.signal(*signal);
        }
        let code = pooler.wait(Duration::from_secs(3));
        assert!(code.is_some(), "{signals:?}: still there after {:?}", start.elapsed());
        assert!(
            open.is_closed_within(Duration::from_secs(1)),
            "{signals:?}: the client's connection is open"
        );
        eventually("no backend is left", Duration::from_secs(2), || cluster.backends(&user).is_empty());
        pooler.finish_stopped();
    }
}

/// `check` and `run` say what is wrong with a file, where, and by their exit code.
#[test]
fn configuration_mistakes_are_named() {
    if !Target::is_pgpinion() {
        return;
    }
    let (folder, good, _) = Plan::to_port(5432).write();
    let text = std::fs::read_to_string(&good).expect("just written");
    let (code, output) = check(&good);
    assert_eq!(code, Some(0), "{output}");
    let bad = [
        ("an unknown key", text.replace("pool_mode", "pool_moed"), Some("pool_moed")),
        ("a wrong value", text.replace("\"transaction\"", "\"transactional\""), Some("transactional")),
        (
            "a negative number",
            text.replace("max_connections = 10", "max_connections = -10"),
            Some("max_connections"),
        ),
        ("no TOML", text.replace("[pgpinion]", "[pgpinion"), None),
        (
            "an endpoint that is not there",
            text.replace("endpoint = \"main\"", "endpoint = \"mian\""),
            Some("mian"),
        ),
        ("the same twice", format!("{text}\n[endpoints.main]\nhost = \"127.0.0.1\"\n"), None),
    ];
    for (what, text, names) in bad {
        let file = folder.join("bad.toml");
        process::write(&file, &text);
        let (code, output) = check(&file);
        assert!(code.is_some_and(|code| code != 0 && code < 128), "{what}: exit code {code:?}\n{output}");
        assert!(output.contains("bad.toml"), "{what}: the file is not named\n{output}");
        assert!(!output.contains("panicked"), "{what}:\n{output}");
        if let Some(name) = names {
            assert!(output.contains(name), "{what}: {name} is not named\n{output}");
        }
        let run = program().args(["run", "-c"]).arg(&file).output().expect("the program");
        assert!(!run.status.success(), "{what}: it runs");
    }
    let (code, output) = check(&folder.join("nowhere.toml"));
    assert!(code.is_some_and(|code| code != 0), "{output}");
    assert!(output.contains("nowhere.toml"), "{output}");
}

fn check(file: &std::path::Path) -> (Option<i32>, String) {
    let output = program().args(["check", "-c"]).arg(file).output().expect("the program");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// `run --upstream` needs no file.
#[test]
fn runs_without_a_file() {
    if !Target::is_pgpinion() {
        return;
    }
    let output = program().args(["run", "--upstream", "nonsense:port"]).output().expect("the program");
    assert!(!output.status.success());
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

/// A7: from the log one can tell whom each server connection served, and whom it served last when it died.
#[test]
fn a7_the_log_tells_who_used_which_connection() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::private(&[]);
    cluster.sql("create role user_0 login password 'h1dden-in-here'");
    cluster
        .set_hba("local all postgres trust\nhost all postgres all trust\nhost all all all scram-sha-256\n");
    eventually("pg_hba.conf is loaded", Duration::from_secs(5), || {
        Client::connect(&cluster.address(), &[("user", "user_0"), ("database", "app")]).is_err()
    });
    let pooler = Plan::new(&cluster).max_connections(1).database("password", "h1dden-in-here").start();
    for _ in 0..3 {
        let mut client = pooler.client("user_0");
        client.query("select 'a secret value'").expect("a server");
        client.extended("select $1::text", &["another secret value"]).expect("a server");
        client.terminate_and_wait();
    }
    cluster.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'user_0'");
    let fatal =
        |line: &&str| line.contains("57P01") || line.contains("terminating connection due to administrator");
    eventually("the farewell is logged", Duration::from_secs(2), || {
        pooler.log().lines().any(|line| fatal(&line))
    });
    let log = pooler.log();
    let about: Vec<(&str, String)> =
        log.lines().filter_map(|line| id(line, "connection").map(|connection| (line, connection))).collect();
    let connection = about.first().unwrap_or_else(|| panic!("no line has a connection id:\n{log}")).1.clone();
    assert!(about.iter().all(|(_, id)| *id == connection), "there was one server connection only:\n{log}");
    let mut sessions: Vec<String> = about.iter().filter_map(|(line, _)| id(line, "session")).collect();
    let last = sessions.last().expect("a session").clone();
    sessions.dedup();
    assert!(sessions.len() >= 3, "three sessions used it:\n{log}");
    let farewell = log.lines().find(fatal).expect("just seen");
    assert_eq!(id(farewell, "connection"), Some(connection), "{farewell}");
    assert_eq!(id(farewell, "session"), Some(last), "{farewell}");
    for secret in ["h1dden-in-here", "a secret value", "another secret value", "SCRAM-SHA-256$"] {
        assert!(!log.contains(secret), "{secret:?} is in the log");
    }
    pooler.finish();
}

/// The id that follows a word: `connection=0.7`, `connection 0.7` and `connection: 0.7` all do.
fn id(line: &str, word: &str) -> Option<String> {
    line.match_indices(word).find_map(|(at, _)| {
        let rest = line[at + word.len()..].trim_start_matches(['=', ' ', ':', '"']);
        let id: String =
            rest.chars().take_while(|letter| letter.is_ascii_digit() || *letter == '.').collect();
        let id = id.trim_end_matches('.');
        id.split_once('.')
            .filter(|(shard, count)| !shard.is_empty() && !count.is_empty())
            .map(|_| id.to_owned())
    })
}
