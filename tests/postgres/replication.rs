//! Replication connections through the pooler, in every pool mode: PostgreSQL's own tools, a subscription, and every
//! message.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::cluster::{Cluster, Release, bin};
use crate::pooler::{Plan, Pooler, Target};
use crate::process::{self, Process, eventually, give_away};
use crate::wire::{Address, Client, Frames, cancel};

/// A cluster whose log can be followed, and a pooler of transactions before it.
fn cluster(release: Release) -> Cluster {
    let settings = [("wal_level", "logical"), ("max_wal_senders", "10"), ("max_replication_slots", "10")];
    Cluster::of(release, &settings)
}

/// PgBouncer 1.18 refuses replication connections.
fn is_of_use() -> bool {
    Target::current() != Target::Pgbouncer
}

fn connect(address: &Address, replication: &str, more: &[(&str, &str)]) -> Client {
    let parameters =
        [&[("user", "postgres"), ("database", "app"), ("replication", replication)], more].concat();
    Client::connect(address, &parameters).expect("a login")
}

/// One of PostgreSQL's programs, whose connections go through the pooler.
fn tool(pooler: &Pooler, name: &str) -> Command {
    let Address::Tcp(address) = &pooler.address else { panic!("poolers of tests listen on TCP") };
    let mut command = Command::new(bin(name));
    command.env("PGHOST", address.ip().to_string()).env("PGPORT", address.port().to_string());
    command.env("PGUSER", "postgres").env("PGCONNECT_TIMEOUT", "10");
    command
}

/// WAL senders that serve somebody.
fn senders(cluster: &Cluster) -> String {
    cluster.value("select count(*) from pg_stat_activity where backend_type = 'walsender'")
}

fn assert_no_sender_left(cluster: &Cluster) {
    eventually("no WAL sender is left", Duration::from_secs(5), || senders(cluster) == "0");
}

#[test]
fn a_base_backup_is_whole() {
    if !is_of_use() {
        return;
    }
    let cluster = cluster(Release::Installed);
    cluster.sql("create table kept as select i, repeat('x', 500) as text from generate_series(1, 50000) i");
    for (mode, wal) in [("transaction", "stream"), ("transaction", "fetch"), ("session", "stream")] {
        let pooler = Plan::new(&cluster).mode(mode).max_connections(4).start();
        let folder = process::folder("backup");
        let data = folder.join("data");
        process::run(tool(&pooler, "pg_basebackup").args(["-c", "fast", "-X", wal, "-D"]).arg(&data));
        process::run(Command::new(bin("pg_verifybackup")).arg(&data));
        assert_no_sender_left(&cluster);
        give_away(&folder);
        assert_eq!(rows_of_copy(&data, &folder), "50000");
        pooler.finish();
    }
}

/// Starts a server on a backup and counts.
fn rows_of_copy(data: &Path, folder: &Path) -> String {
    let port = process::free_port();
    let mut command = process::unprivileged(bin("postgres"));
    command.arg("-D").arg(data).args(["-c", &format!("port={port}")]);
    command.args(["-c", &format!("unix_socket_directories={}", folder.display())]);
    let mut copy = Process::spawn(&mut command, &folder.join("log"));
    let parameters = [("user", "postgres"), ("database", "app")];
    let mut rows = String::new();
    eventually("the copy answers", Duration::from_secs(60), || {
        let Ok(mut client) = Client::connect(&Address::tcp(port), &parameters) else { return false };
        rows = client.query("select count(*) from kept").expect("the copy is there").value();
        true
    });
    copy.signal(Signal::SIGQUIT);
    assert!(copy.wait(Duration::from_secs(10)).is_some());
    rows
}

#[test]
fn the_log_is_received() {
    if !is_of_use() {
        return;
    }
    let cluster = cluster(Release::Installed);
    let pooler = Plan::new(&cluster).start();
    let folder = process::folder("wal");
    let receive =
        |more: &[&str]| process::run(tool(&pooler, "pg_receivewal").args(["-D"]).arg(&folder).args(more));
    receive(&["--slot", "followed", "--create-slot"]);
    // Begins where the log is, and goes on from what is there.
    for table in ["first", "second"] {
        let end = cluster.value("select pg_current_wal_lsn()");
        cluster.sql(&format!("create table {table} as select i from generate_series(1, 10000) i"));
        receive(&["--slot", "followed", "--no-loop", "--synchronous", "--endpos", &end]);
        cluster.sql("select pg_switch_wal()");
    }
    receive(&["--slot", "followed", "--drop-slot"]);
    let segments = std::fs::read_dir(&folder).expect("own folder").count();
    assert!(segments >= 2, "{segments} segments were received");
    assert_no_sender_left(&cluster);
    pooler.finish();
}

#[test]
fn changes_are_received_decoded() {
    if !is_of_use() {
        return;
    }
    let cluster = cluster(Release::Installed);
    cluster.sql("create table changed (text text)");
    for mode in ["transaction", "session"] {
        let pooler = Plan::new(&cluster).mode(mode).start();
        let receive = |more: &[&str]| {
            process::run(tool(&pooler, "pg_recvlogical").args(["-d", "app", "--slot", "decoded"]).args(more))
        };
        receive(&["--create-slot", "--plugin", "test_decoding"]);
        let mut writer =
            Client::connect(&pooler.address, &[("user", "postgres"), ("database", "app")]).expect("a login");
        for number in 0..500 {
            let insert = format!("insert into changed values ('{mode} {number}')");
            assert_eq!(writer.query(&insert).expect("a server").code(), "");
        }
        let end = cluster.value("select pg_current_wal_lsn()");
        let changes = receive(&["--start", "--no-loop", "--endpos", &end, "-f", "-"]);
        for number in 0..500 {
            assert!(changes.contains(&format!("'{mode} {number}'")), "{mode} {number} is missing");
        }
        receive(&["--drop-slot"]);
        assert_no_sender_left(&cluster);
        drop(writer);
        pooler.finish();
    }
}

/// Between the versions there are, through the pooler of the publisher.
#[test]
fn a_subscription_follows_its_publication() {
    if !is_of_use() {
        return;
    }
    for release in Release::all() {
        let (publisher, subscriber) = (cluster(release), cluster(Release::Installed));
        for side in [&publisher, &subscriber] {
            side.sql("create table followed (i int primary key)");
        }
        publisher.sql("insert into followed select i from generate_series(1, 1000) i");
        publisher.sql("create publication everything for all tables");
        let pooler = Plan::new(&publisher).start();
        let Address::Tcp(address) = &pooler.address else { panic!("poolers of tests listen on TCP") };
        subscriber.sql(&format!(
            "create subscription ours connection 'host=127.0.0.1 port={} dbname=app user=postgres' publication everything",
            address.port()
        ));
        let count = || subscriber.value("select count(*) from followed");
        eventually("what was there is copied", Duration::from_secs(30), || count() == "1000");
        publisher.sql("insert into followed select i from generate_series(1001, 1500) i");
        eventually("what is new follows", Duration::from_secs(30), || count() == "1500");
        let name = "select application_name from pg_stat_replication";
        assert_eq!(publisher.value(name), "ours", "who replicates is called as it calls itself");
        subscriber.sql("drop subscription ours");
        assert_no_sender_left(&publisher);
        pooler.finish();
    }
}

/// The tags of all messages up to and with a ReadyForQuery, each repeated one once.
fn shape(client: &mut Client) -> String {
    let mut shape = String::new();
    while !shape.ends_with('Z') {
        let message = client.read().expect("an answer");
        if !shape.ends_with(message.tag as char) && message.tag != b'N' {
            shape.push(message.tag as char);
        }
    }
    shape
}

/// Streams the log from where it is, both ways, and ends it in order.
fn stream(cluster: &Cluster, client: &mut Client) -> String {
    let start = cluster.value("select pg_current_wal_flush_lsn()");
    client.send(&Frames::new().query(&format!("START_REPLICATION PHYSICAL {start}")).0).expect("open");
    assert_eq!(client.read().expect("an answer").tag, b'W');
    cluster.sql("select pg_logical_emit_message(true, 'test', repeat('x', 100000))");
    let mut received = 0;
    // A status (position 0) that asks for an answer.
    let status = [&b"r"[..], &[0; 32], &[1]].concat();
    client.send(&Frames::new().copy_data(&status).0).expect("open");
    while received < 100_000 {
        let message = client.read().expect("the log");
        assert_eq!(message.tag, b'd');
        received += message.body.len();
    }
    client.send(&Frames::new().copy_data(&status).copy_done().0).expect("open");
    shape(client)
}

#[test]
fn every_message_is_that_of_postgresql() {
    if !is_of_use() {
        return;
    }
    for release in Release::all() {
        let cluster = cluster(release);
        for mode in ["transaction", "session", "statement"] {
            let pooler = Plan::new(&cluster).mode(mode).max_connections(3).start();
            for replication in ["database", "true", "ON"] {
                let mut clients = [cluster.address(), pooler.address.clone()]
                    .map(|address| connect(&address, replication, &[("TimeZone", "PRC")]));
                let names = |client: &Client| {
                    client.parameters.iter().cloned().collect::<std::collections::BTreeSet<_>>()
                };
                assert_eq!(names(&clients[0]), names(&clients[1]), "{replication}");
                for statement in [
                    "IDENTIFY_SYSTEM",
                    "SHOW wal_level",
                    "select 1",
                    "begin; select 1",
                    "commit",
                    "CREATE_REPLICATION_SLOT {slot} TEMPORARY PHYSICAL",
                    "DROP_REPLICATION_SLOT {slot}",
                    "START_REPLICATION PHYSICAL FFFFFFFF/0",
                    "discard all",
                    "BASE_BACKUP (CHECKPOINT 'fast', WAL false, MANIFEST 'no')",
                    "TIMELINE_HISTORY 9",
                ] {
                    let mut slots = ["direct", "through"].into_iter();
                    let answers = clients.each_mut().map(|client| {
                        let statement = statement.replace("{slot}", slots.next().expect("there are two"));
                        client.send(&Frames::new().query(&statement).0).expect("open");
                        shape(client)
                    });
                    assert_eq!(answers[0], answers[1], "{replication}: {statement}");
                }
                // Neither takes messages of the extended protocol.
                let answers = clients.each_mut().map(|client| {
                    client.send(&Frames::new().unnamed("select 1", &[]).sync().0).expect("open");
                    shape(client)
                });
                assert_eq!(answers[0], answers[1], "{replication}");
                let answers = clients.each_mut().map(|client| stream(&cluster, client));
                assert_eq!(answers[0], answers[1], "{replication}");
                let answers = clients.each_mut().map(|client| stream(&cluster, client));
                assert_eq!(answers[0], answers[1], "{replication}, once more");
            }
            assert_no_sender_left(&cluster);
            pooler.finish();
        }
    }
}

#[test]
fn its_server_is_its_own_and_needs_a_permit() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = cluster(Release::Installed);
    let pooler = Plan::new(&cluster).max_connections(2).set("query_wait_timeout", 2).start();
    let pid = |client: &mut Client| client.query("select pg_backend_pid()").expect("a server").value();
    let ordinary = || {
        let parameters = [("user", "postgres"), ("database", "app"), ("replication", "off")];
        Client::connect(&pooler.address, &parameters).expect("a login")
    };
    let (mut first, mut second) =
        (connect(&pooler.address, "database", &[]), connect(&pooler.address, "database", &[]));
    let pids = [pid(&mut first), pid(&mut second)];
    assert_ne!(pids[0], pids[1]);
    assert_eq!(pid(&mut first), pids[0], "it keeps its server");
    let parameters = [("user", "postgres"), ("database", "app")];
    let refused = Client::connect(&pooler.address, &parameters).expect_err("both permits are held");
    assert_eq!(refused.code(), "53300", "{refused}");
    let refused = Client::connect(&pooler.address, &[&parameters[..], &[("replication", "true")]].concat());
    assert_eq!(refused.expect_err("both permits are held").code(), "53300");
    first.terminate_and_wait();
    second.reset();
    assert_no_sender_left(&cluster);
    let (mut one, mut other) = (ordinary(), ordinary());
    assert_eq!(pid(&mut one), pid(&mut other), "those are pooled");
    assert!(!pids.contains(&pid(&mut one)), "no server of the others is left");
    drop((one, other));
    pooler.finish();
}

#[test]
fn it_can_be_cancelled_and_ends_with_the_pooler() {
    if !Target::is_pgpinion() {
        return;
    }
    for release in Release::all() {
        let cluster = cluster(release);
        let pooler = Plan::new(&cluster).start();
        let mut client = connect(&pooler.address, "database", &[]);
        client.send(&Frames::new().query("select pg_sleep(30)").0).expect("open");
        let running =
            "select count(*) from pg_stat_activity where backend_type = 'walsender' and state = 'active'";
        eventually("it runs", Duration::from_secs(5), || cluster.value(running) == "1");
        cancel(&pooler.address, &client.key());
        assert_eq!(client.collect().expect("the session goes on").code(), "57014");
        let mut other = connect(&pooler.address, "true", &[]);
        let start = cluster.value("select pg_current_wal_flush_lsn()");
        other.send(&Frames::new().query(&format!("START_REPLICATION PHYSICAL {start}")).0).expect("open");
        assert_eq!(other.read().expect("an answer").tag, b'W');
        pooler.signal(Signal::SIGTERM);
        for mut client in [client, other] {
            let told = client.read_to_end(Duration::from_secs(5)).expect("it says why");
            assert_eq!(told.code, "57P01");
        }
        assert_eq!(pooler.wait(Duration::from_secs(5)), Some(0));
        assert_no_sender_left(&cluster);
        pooler.finish_stopped();
    }
}

#[test]
fn what_postgresql_refuses_is_told_in_its_words() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = cluster(Release::Installed);
    let user = cluster.user("user");
    let pooler = Plan::new(&cluster).start();
    for more in [("replication", "true"), ("replication", "perhaps")] {
        let parameters = [("user", user.as_str()), ("database", "app"), more];
        let expected = Client::connect(&cluster.address(), &parameters).expect_err("not allowed to");
        let got = Client::connect(&pooler.address, &parameters).expect_err("not allowed to");
        assert_eq!(got.to_string(), expected.to_string(), "{more:?}");
    }
    pooler.finish();
}
