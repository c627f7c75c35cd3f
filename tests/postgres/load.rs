//! PostgreSQL's own benchmark as a client, and what idleness and a single request cost.

use std::process::Command;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, bin};
use crate::pooler::{Plan, Target, login};
use crate::process;
use crate::scale::{is_long, pick, seconds};
use crate::wire::{Address, Client};

/// The built-in scripts by one protocol, with kept connections and with a new one for each transaction: none fails, and
/// PostgreSQL never has a connection more than the limit.
fn pgbench(protocol: &str, mode: &'static str, shards: usize) {
    let cluster = Cluster::shared();
    let user = bench_user(cluster);
    let mark = cluster.mark();
    let (clients, time) = (pick(20, 100), pick(1, 30));
    // pgbench waits for its logins one by one, while transactions are open: in session mode it stands still unless there
    // is a server for each client.
    let servers = if mode == "session" { clients + 10 } else { pick(10, 20) };
    let pooler = Plan::new(cluster).mode(mode).shards(shards).max_connections(servers).start();
    let Address::Tcp(address) = pooler.address else { panic!("a TCP pooler") };
    let (port, clients) = (address.port().to_string(), clients.to_string());
    for script in ["tpcb-like", "simple-update", "select-only"] {
        for reconnect in [false, true] {
            let sampler = cluster.sample();
            let mut command = Command::new(bin("pgbench"));
            command.args(["-n", "-h", "127.0.0.1", "-p", &port, "-U", &user, "-M", protocol, "-b", script]);
            command.args(["-c", &clients, "-j", "2", "-T", &time.to_string()]);
            let output = process::run(command.args(reconnect.then_some("-C")).arg("app"));
            let what = format!("{script}, {protocol}, {mode} mode{}", if reconnect { ", -C" } else { "" });
            assert_eq!(count(&output, "number of failed transactions"), 0, "{what}:\n{output}");
            let done = count(&output, "number of transactions actually processed");
            assert!(done > 0, "{what}:\n{output}");
            assert!(!output.contains("error") && !output.contains("aborted"), "{what}:\n{output}");
            let most = sampler.finish().most(&user);
            assert!(most <= servers || Target::is_direct(), "{most} backends: {what}");
            eprintln!("pgbench {what}: {done} transactions, {most} of {servers} connections");
        }
    }
    cluster.assert_log_clean(mark, &user, &[]);
    pooler.finish();
}

/// The number in the line of pgbench's report that begins so.
fn count(report: &str, name: &str) -> u64 {
    let line = report.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let number = line.and_then(|line| line.split([' ', '/']).next()?.parse().ok());
    number.unwrap_or_else(|| panic!("pgbench 15 or newer says the {name}:\n{report}"))
}

/// A role of its own for each benchmark, so that its backends can be counted; the tables are made once for all.
fn bench_user(cluster: &Cluster) -> String {
    static TABLES: OnceLock<()> = OnceLock::new();
    TABLES.get_or_init(|| {
        let port = cluster.port().to_string();
        let mut command = Command::new(bin("pgbench"));
        process::run(command.args([
            "-i",
            "-q",
            "-s",
            "5",
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            "postgres",
            "app",
        ]));
        for table in ["accounts", "branches", "history", "tellers"] {
            cluster.sql(&format!("grant all on pgbench_{table} to public"));
        }
    });
    cluster.user("user")
}

#[test]
fn pgbench_simple_in_transaction_mode() {
    pgbench("simple", "transaction", 1);
}

#[test]
fn pgbench_extended_in_transaction_mode() {
    pgbench("extended", "transaction", 2);
}

#[test]
fn pgbench_simple_in_session_mode() {
    pgbench("simple", "session", 2);
}

#[test]
fn pgbench_extended_in_session_mode() {
    pgbench("extended", "session", 1);
}

#[test]
fn pgbench_prepared_in_session_mode() {
    pgbench("prepared", "session", 2);
}

/// E1: thousands of clients that do nothing cost nothing.
#[test]
fn e1_idle_clients_cost_nothing() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let count = pick(1000, 5000);
    process::allow_descriptors(count + 1000);
    let pooler = Plan::new(cluster).shards(2).set("max_client_conn", count + 100).start_alone();
    let before = pooler.rss();
    let mut clients: Vec<Client> = (0..count).map(|_| pooler.client(&user)).collect();
    let grown = pooler.rss().saturating_sub(before);
    assert!(grown < (count as u64 * 30) << 10, "{} KB for {count} idle clients", grown >> 10);
    sleep(Duration::from_millis(500));
    let (cpu, sleeps) = (pooler.cpu(), pooler.sleeps());
    let watched = seconds(3.0, 20.0);
    sleep(watched);
    let used = pooler.cpu() - cpu;
    let woken = sleeps.iter().zip(pooler.sleeps()).map(|((name, before), (_, after))| (name, after - before));
    let most = woken.max_by_key(|(_, times)| *times).expect("threads");
    eprintln!("e1: {count} clients, {} KB, {used:?} of CPU in {watched:?}, {most:?} woke most", grown >> 10);
    // One percent; of a second that a short run has no more than three of, a tick or two of the clock.
    assert!(used <= watched.mul_f64(pick(0.014, 0.01)), "{used:?} of CPU time in {watched:?} of idleness");
    assert!(most.1 as f64 <= 20.0 * watched.as_secs_f64(), "thread {} woke {} times", most.0, most.1);
    for client in clients.iter_mut().step_by(100) {
        assert_eq!(client.query("select 1").expect("a server").value(), "1");
    }
    drop(clients);
    pooler.finish();
}

/// E2: what the way through the pooler adds to one request, in the best of several rounds.
#[test]
fn e2_latency_of_a_single_client() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).start_alone();
    let mut direct = Client::connect(&cluster.address(), &login(&user)).expect("PostgreSQL");
    let mut through = pooler.client(&user);
    let mut best = (Duration::MAX, f64::MAX);
    for _ in 0..6 {
        let (plain, pooled) = (median(&mut direct), median(&mut through));
        let added = pooled.saturating_sub(plain);
        let ratio = pooled.as_secs_f64() / plain.as_secs_f64();
        best = (best.0.min(added), best.1.min(ratio));
    }
    // A timer's quantum or a missed wake-up would be milliseconds; a build without optimisation costs 100 us by itself.
    let allowed = Duration::from_micros(if cfg!(debug_assertions) { 400 } else { pick(100, 60) });
    eprintln!("e2: adds {:?}, {:.2} times", best.0, best.1);
    let slow_machine = !is_long() && best.1 < 2.5;
    assert!(best.0 < allowed || slow_machine, "adds {:?}, {:.1} times", best.0, best.1);
    drop((direct, through));
    pooler.finish();
}

fn median(client: &mut Client) -> Duration {
    let mut times: Vec<Duration> = (0..400)
        .map(|_| {
            let start = Instant::now();
            client.query("select 1").expect("a server");
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}
