//! F7: whoever waits is woken by whatever makes a permit free, each by itself.
//!
//! Reloads that remove a route, and the loss of a shard, are not among them: the one waits for a restart, the other
//! ends the process.

use std::time::{Duration, Instant};

use super::SOON;
use crate::cluster::Cluster;
use crate::console::{console, plan, values};
use crate::pooler::{Plan, Pooler, Target};
use crate::process::eventually;
use crate::wire::{Client, Frames};

/// Two shards, two connections, both in a transaction of one route, and a client of another that waits.
struct Queue {
    pooler: Pooler,
    user: String,
    holders: Vec<Client>,
    waiter: Client,
}

impl Queue {
    fn new(cluster: &Cluster, plan: Plan, held: usize) -> Self {
        let (user, other) = (cluster.user("user"), cluster.user("other"));
        let pooler = plan.shards(2).max_connections(held).start();
        // The login of a route's first client needs a server itself.
        let mut waiter = pooler.client(&other);
        let mut holders: Vec<Client> = (0..held).map(|_| pooler.client(&user)).collect();
        holders.iter_mut().for_each(|holder| drop(holder.query("begin").expect("a server")));
        waiter.send(&Frames::new().query("select 1").0).expect("open");
        wait_for_one(&pooler, &other);
        Self { pooler, user, holders, waiter }
    }

    /// The reason has just been given: the waiter must be served by it.
    fn assert_served(mut self, why: &str) {
        let start = Instant::now();
        self.waiter.set_timeout(Duration::from_secs(3));
        let reply = self.waiter.collect().unwrap_or_else(|fault| panic!("{why}: {fault}"));
        assert_eq!(reply.value(), "1", "{why}");
        eprintln!("f7: {why}: served after {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(1), "{why}: after {:?}", start.elapsed());
        drop((self.holders, self.waiter));
        self.pooler.finish();
    }
}

fn wait_for_one(pooler: &Pooler, user: &str) {
    let mut admin = console(pooler);
    let all = [("user", user), ("shard", "all")];
    eventually("one waits", SOON, || values(&mut admin, "SHOW QUOTA", &all, "waiting") == ["1"]);
}

#[test]
fn f7_a_transaction_ends() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let mut queue = Queue::new(cluster, plan(cluster), 2);
    queue.holders[1].query("commit").expect("its server");
    queue.assert_served("a transaction ends");
}

#[test]
fn f7_a_client_leaves_its_transaction() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let mut queue = Queue::new(cluster, plan(cluster), 2);
    queue.holders.remove(0).reset();
    queue.assert_served("a client leaves its transaction");
    let mut queue = Queue::new(cluster, plan(cluster), 2);
    queue.holders.remove(1).terminate();
    queue.assert_served("a client says goodbye in its transaction");
}

#[test]
fn f7_a_backend_is_killed() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let queue = Queue::new(cluster, plan(cluster), 2);
    let pid = cluster.backends(&queue.user)[0];
    cluster.sql(&format!("select pg_terminate_backend({pid})"));
    queue.assert_served("a backend is killed");
}

#[test]
fn f7_the_limit_is_raised() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let queue = Queue::new(cluster, plan(cluster), 2);
    queue.pooler.reload(|text| text.replace("max_connections = 2\n", "max_connections = 3\n"));
    queue.assert_served("the limit is raised");
}

#[test]
fn f7_a_reset_fails() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let (user, other) = (cluster.user("user"), cluster.user("other"));
    let plan = plan(cluster).mode("session").shards(2).max_connections(1);
    let pooler = plan.set("server_reset_query", "\"select 1/0\"").start();
    let mut holder = pooler.client(&user);
    holder.query("select 1").expect("a server");
    let address = pooler.address.clone();
    let waiting = other.clone();
    let waiter = std::thread::spawn(move || {
        let mut client = Client::connect(&address, &crate::pooler::login(&waiting)).expect("a server");
        client.query("select 1").expect("a server").value()
    });
    wait_for_one(&pooler, &other);
    let start = Instant::now();
    holder.terminate();
    assert_eq!(waiter.join().expect("served"), "1");
    eprintln!("f7: a reset fails: served after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(1), "after {:?}", start.elapsed());
    pooler.finish();
}

/// A login that PostgreSQL refuses takes nothing away from others.
#[test]
fn f7_a_connection_fails() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let (barred, other) = (cluster.user("user"), cluster.user("other"));
    cluster.sql(&format!("alter role {barred} nologin"));
    let pooler = plan(cluster).shards(2).max_connections(1).start();
    let mut client = pooler.client(&other);
    for _ in 0..3 {
        // What was refused is not tried again for a second: who comes meanwhile is told then.
        let fault = pooler.try_client(&barred).expect_err("it may not log in");
        assert_eq!(fault.code(), "28000", "{fault}");
        let start = Instant::now();
        client.query("select 1").expect("a server");
        assert!(start.elapsed() < Duration::from_secs(1), "after {:?}", start.elapsed());
    }
    drop(client);
    pooler.finish();
}

/// What has rested for `server_idle_timeout` is closed; what was kept for its floor is free then, too.
#[test]
fn f7_idle_connections_expire() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = plan(cluster).shards(2).max_connections(2).set("server_idle_timeout", 0.3).start();
    let mut client = pooler.client(&user);
    client.query("select 1").expect("a server");
    let mut admin = console(&pooler);
    let all = [("user", user.as_str()), ("shard", "all")];
    eventually("it expires", SOON, || values(&mut admin, "SHOW QUOTA", &all, "permits") == ["0"]);
    assert!(cluster.backends(&user).is_empty());
    client.query("select 1").expect("a fresh server");
    drop((client, admin));
    pooler.finish();
}
