//! PostgreSQL's own benchmark as a client, and what idleness and a single request cost.

use std::process::Command;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, bin};
use crate::pooler::{Plan, Target, login};
use crate::process;
use crate::wire::{Address, Client};

/// The built-in scripts by one protocol, with kept connections and with a new one for each transaction.
fn pgbench(protocol: &str, mode: &'static str, shards: usize, scripts: &[&str]) {
    let cluster = Cluster::shared();
    let user = bench_user(cluster);
    let mark = cluster.mark();
    let servers = 10;
    let pooler = Plan::new(cluster).mode(mode).shards(shards).max_connections(servers).start();
    let Address::Tcp(address) = pooler.address else { panic!("a TCP pooler") };
    for script in scripts {
        for reconnect in [false, true] {
            // Session mode serves no more clients at once than there are servers, and pgbench waits for its
            // logins one by one.
            let clients = if mode == "session" { "10" } else { "20" };
            let sampler = cluster.sample();
            let mut command = Command::new(bin("pgbench"));
            command.args(["-n", "-h", "127.0.0.1", "-p", &address.port().to_string(), "-U", &user]);
            command.args(["-M", protocol, "-b", script, "-c", clients, "-j", "2", "-T", "2"]);
            command.args(reconnect.then_some("-C")).arg("app");
            let output = process::run(&mut command);
            let failed = output
                .lines()
                .find(|line| line.contains("failed transactions"))
                .expect("pgbench 15 or newer");
            assert!(failed.contains(" 0 (0.000%)"), "{script} {protocol} -C {reconnect}:\n{output}");
            assert!(!output.contains("error") && !output.contains("aborted"), "{output}");
            let most = sampler.finish().most(&user);
            assert!(most <= servers || Target::is_direct(), "{most} backends in {script}");
        }
    }
    cluster.assert_log_clean(mark, &user, &[]);
    pooler.finish();
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
fn pgbench_simple_protocol() {
    pgbench("simple", "transaction", 1, &["tpcb-like", "simple-update", "select-only"]);
}

#[test]
fn pgbench_extended_protocol_two_shards() {
    pgbench("extended", "transaction", 2, &["tpcb-like", "simple-update", "select-only"]);
}

#[test]
fn pgbench_prepared_in_session_mode() {
    pgbench("prepared", "session", 2, &["tpcb-like", "select-only"]);
}

/// E1: a thousand clients that do nothing cost nothing.
#[test]
fn e1_idle_clients_cost_nothing() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).shards(2).set("max_client_conn", 2000).start_alone();
    let before = pooler.rss();
    let mut clients: Vec<Client> = (0..1000).map(|_| pooler.client(&user)).collect();
    let grown = pooler.rss().saturating_sub(before);
    assert!(grown < 30 << 20, "{} KB for 1000 idle clients", grown >> 10);
    sleep(Duration::from_millis(500));
    let (cpu, sleeps) = (pooler.cpu(), pooler.sleeps());
    sleep(Duration::from_secs(3));
    let used = pooler.cpu() - cpu;
    assert!(used <= Duration::from_millis(40), "{used:?} of CPU time in 3 s of idleness");
    for ((name, before), (_, after)) in sleeps.iter().zip(pooler.sleeps()) {
        assert!(after - before <= 60, "thread {name} woke {} times in 3 s of idleness", after - before);
    }
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
    let allowed = Duration::from_micros(if cfg!(debug_assertions) { 400 } else { 100 });
    assert!(best.0 < allowed || best.1 < 2.5, "adds {:?}, {:.1} times", best.0, best.1);
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
