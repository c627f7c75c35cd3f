//! F7: whoever waits is woken by whatever makes a permit free, each by itself.
//!
//! Reloads that remove a route, and the loss of a shard, are not among them: the one waits for a restart, the other
//! ends the process.

use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use super::SOON;
use crate::cluster::Cluster;
use crate::console::{console, plan, values};
use crate::fake_server::{FakeServer, error, welcome};
use crate::pooler::{Plan, Pooler, Target, login};
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
        let user = cluster.user("user");
        Self::of(cluster, plan, held, user)
    }

    /// The same, of this user.
    fn of(cluster: &Cluster, plan: Plan, held: usize, user: String) -> Self {
        let other = cluster.user("other");
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

/// A client waits while the only permit is that of a connection being made, and that connection is refused.
#[test]
fn f7_a_connection_fails_that_another_waits_for() {
    if !Target::is_pgpinion() {
        return;
    }
    let (arrived, arrival) = mpsc::channel();
    let (refuse, refused) = mpsc::channel::<()>();
    let refused = Mutex::new(refused);
    let fake = FakeServer::start(move |mut connection| {
        if !connection.read_startup() {
            return;
        }
        if connection.startup.windows(6).any(|bytes| bytes == b"barred") {
            let _ = arrived.send(());
            let _ = refused.lock().expect("lock").recv();
            connection.send(&error("FATAL", "28000", "barred"));
        } else if connection.send(&welcome(connection.number)) {
            connection.serve();
        }
    });
    let plan = Plan::to_port(fake.port()).set("admin_users", "[\"dba\"]");
    let pooler = plan.shards(2).max_connections(1).start();
    let mut waiter = pooler.client("other");
    let address = pooler.address.clone();
    let barred = std::thread::spawn(move || Client::connect(&address, &login("barred")));
    arrival.recv_timeout(SOON).expect("its connection is made, with the only permit");
    waiter.send(&Frames::new().query("served").0).expect("open");
    wait_for_one(&pooler, "other");
    let start = Instant::now();
    drop(refuse);
    assert_eq!(waiter.collect().expect("a server").value(), "served");
    eprintln!("f7: a connection fails: served after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(1), "after {:?}", start.elapsed());
    let fault = barred.join().expect("a client").expect_err("it may not log in");
    assert_eq!(fault.code(), "28000", "{fault}");
    drop(waiter);
    pooler.finish();
}

/// What rests is kept for its floor, whoever else waits; when it has rested for `server_idle_timeout` it is free.
#[test]
fn f7_idle_connections_expire_that_another_waits_for() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let plan = plan(cluster).route(&user, "min_connections = 2").set("server_idle_timeout", 0.5);
    let mut queue = Queue::of(cluster, plan, 2, user);
    let start = Instant::now();
    queue.holders.iter_mut().for_each(|holder| drop(holder.query("commit").expect("its server")));
    let reply = queue.waiter.collect().expect("a server, in the end");
    let took = start.elapsed();
    eprintln!("f7: idle connections expire: served after {took:?}");
    assert_eq!(reply.value(), "1");
    assert!(took >= Duration::from_millis(500), "the floor was not kept: {took:?}");
    assert!(took < Duration::from_millis(1500), "after {took:?}");
    drop((queue.holders, queue.waiter));
    queue.pooler.finish();
}

/// The permits of what has expired are back.
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
