//! SIGHUP: limits that change under load, and files that change nothing.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::crowd::{Crowd, Habit};
use crate::pooler::{Plan, Target};
use crate::process::eventually;

const SOON: Duration = Duration::from_secs(5);

/// From 20 to 4 and back while 30 clients ask: nobody notices, and once 4 holds there is never a fifth.
#[test]
fn a_limit_is_lowered_and_raised_under_load() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let mark = cluster.mark();
    let pooler = Plan::new(cluster).shards(2).max_connections(20).start();
    let crowd = Crowd::start(30, &pooler.address, &user, Habit::LIGHT);
    eventually("the pools are full", SOON, || cluster.backends(&user).len() > 10);
    for _ in 0..2 {
        pooler.reload(|text| text.replace("max_connections = 20", "max_connections = 4"));
        eventually("the lower limit holds", SOON, || cluster.backends(&user).len() <= 4);
        let sampler = cluster.sample();
        std::thread::sleep(Duration::from_millis(500));
        pooler.assert_capped(&sampler.finish(), &user, 4);
        pooler.reload(|text| text.replace("max_connections = 4", "max_connections = 20"));
        let sampler = cluster.sample();
        eventually("the higher limit is used", SOON, || cluster.backends(&user).len() > 10);
        std::thread::sleep(Duration::from_millis(300));
        pooler.assert_capped(&sampler.finish(), &user, 20);
    }
    crowd.finish().assert_faultless();
    let log = pooler.log();
    assert!(log.contains("reload: endpoints.main.max_connections: 20 -> 4"), "{}", pooler.log_tail());
    assert_eq!(log.matches("reload: applied on all shards").count(), 4);
    cluster.assert_log_clean(mark, &user, &[]);
    pooler.finish();
}

/// Idle servers above a lowered limit are closed without anybody asking for them.
#[test]
fn idle_servers_above_a_lowered_limit_are_closed() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(6).start();
    let mut clients: Vec<_> = (0..6).map(|_| pooler.client(&user)).collect();
    for client in &mut clients {
        client.query("begin").expect("a server");
    }
    for client in &mut clients[2..] {
        client.query("commit").expect("a server");
    }
    assert_eq!(cluster.backends(&user).len(), 6);
    pooler.reload(|text| text.replace("max_connections = 6", "max_connections = 1"));
    eventually("idle ones are gone, open transactions are not", SOON, || cluster.backends(&user).len() == 2);
    for client in &mut clients[..2] {
        client.query("select 1").expect("its transaction goes on");
        client.query("commit").expect("and ends");
    }
    eventually("one is left", SOON, || cluster.backends(&user).len() == 1);
    drop(clients);
    pooler.finish();
}

/// What is wrong is told with its line, what waits for a restart is named, and nothing else happens.
#[test]
fn a_broken_file_changes_nothing() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).shards(2).max_connections(4).start();
    let good = pooler.reload(|text| text.to_owned());
    eventually("it is read", SOON, || pooler.log().contains("reload: applied on all shards"));
    let line = 1 + good.lines().take_while(|line| !line.starts_with("max_connections")).count();
    let broken = [
        (
            "max_connections = 4",
            "max_connections = 8\nno_such_key = 1",
            format!(":{}:1: unknown key", line + 1),
        ),
        ("max_connections = 4", "max_connections = ", "not TOML".to_owned()),
        (
            "max_connections = 4",
            "max_connections = 8\nreserve = 9",
            "`reserve` of [endpoints.main]".to_owned(),
        ),
        ("max_connections = 4", "max_connections = 100_000", "above 4096 needs a restart".to_owned()),
    ];
    let broken_count = broken.len();
    for (from, to, complaint) in broken {
        pooler.reload(|_| good.replace(from, to));
        eventually(&complaint, SOON, || pooler.log().contains(&complaint));
    }
    eventually("it says so", SOON, || {
        pooler.log().matches("reload: nothing was changed").count() == broken_count
    });
    let crowd = Crowd::start(10, &pooler.address, &user, Habit::LIGHT);
    let sampler = cluster.sample();
    std::thread::sleep(Duration::from_millis(300));
    pooler.assert_capped(&sampler.finish(), &user, 4);
    crowd.finish().assert_faultless();

    pooler.reload(|_| good.replace("pool_mode = \"transaction\"", "pool_mode = \"session\""));
    let told = "reload: needs a restart: pool_mode: \"transaction\" -> \"session\"";
    eventually(told, SOON, || pooler.log().contains(told));
    assert_eq!(pooler.log().matches("reload: applied on all shards").count(), 1 + 1);
    pooler.finish();
}

/// A timeout and the level of the log hold for whoever waits next.
#[test]
fn timeouts_and_the_log_follow() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(1).start();
    let mut holder = pooler.client(&user);
    holder.query("begin").expect("a server");
    let mut waiter = pooler.client(&user);
    pooler.reload(|text| text.replace("[endpoints.main]", "query_wait_timeout = 0.2\n[endpoints.main]"));
    eventually("it holds", SOON, || pooler.log().contains("reload: applied on all shards"));
    let fault = waiter.query("select 1").expect_err("it waits in vain");
    assert!(
        fault.to_string().contains("query_wait_timeout: no server connection became free within 0.2 s"),
        "{fault}"
    );
    // The line that says that this is applied is below the new level: its effect must tell.
    pooler.reload(|text| text.replace("log_level = \"debug\"", "log_level = \"error\""));
    eventually("logins are logged no more", SOON, || {
        let before = pooler.log();
        drop(pooler.client(&user));
        pooler.log() == before
    });
    drop((holder, waiter));
    pooler.finish();
}
