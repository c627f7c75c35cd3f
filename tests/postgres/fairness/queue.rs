//! F8: in the queue of a route it goes by arrival, a turn is never lost, and waiting has an end.

use std::time::{Duration, Instant};

use super::SOON;
use crate::cluster::Cluster;
use crate::console::{console, plan, values};
use crate::pooler::{Pooler, Target};
use crate::process::eventually;
use crate::wire::{Client, Frames};

/// Ten clients behind one connection, each queued before the next one comes.
fn queue_up(pooler: &Pooler, user: &str, count: usize) -> Vec<Client> {
    let mut admin = console(pooler);
    let mut queue: Vec<Client> = Vec::new();
    for number in 1..=count {
        let mut client = pooler.client(user);
        client
            .send(&Frames::new().query("select clock_timestamp()::text from pg_sleep(0.002)").0)
            .expect("open");
        assert_waiting(&mut admin, user, number);
        queue.push(client);
    }
    queue
}

fn assert_waiting(admin: &mut Client, user: &str, count: usize) {
    let all = [("user", user), ("shard", "all")];
    eventually("they wait", SOON, || values(admin, "SHOW QUOTA", &all, "waiting") == [count.to_string()]);
}

#[test]
fn f8_first_come_first_served() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    // A route with one connection lives on one of the shards: its queue is one.
    let pooler = plan(cluster).shards(2).max_connections(1).start();
    let mut holder = pooler.client(&user);
    holder.query("begin").expect("a server");
    let mut queue = queue_up(&pooler, &user, 12);
    // Two change their mind: one without a word, one with.
    let mut admin = console(&pooler);
    let start = Instant::now();
    queue.remove(7).reset();
    queue.remove(3).terminate();
    assert_waiting(&mut admin, &user, 10);
    assert!(start.elapsed() < Duration::from_secs(1), "noticed after {:?}", start.elapsed());
    holder.query("commit").expect("its server");
    let served: Vec<String> =
        queue.iter_mut().map(|client| client.collect().expect("its turn").value()).collect();
    assert!(served.is_sorted(), "{served:?}");
    drop((queue, holder, admin));
    pooler.finish();
}

#[test]
fn f8_waiting_has_an_end() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = plan(cluster).shards(2).max_connections(1).set("query_wait_timeout", 1).start();
    let mut holder = pooler.client(&user);
    holder.query("begin").expect("a server");
    let mut waiters: Vec<(Instant, Client)> = Vec::new();
    for _ in 0..5 {
        let mut client = pooler.client(&user);
        let start = Instant::now();
        client.send(&Frames::new().query("select 1").0).expect("open");
        waiters.push((start, client));
    }
    for (start, mut client) in waiters {
        let fault = client.collect().expect_err("all in vain");
        let waited = start.elapsed();
        assert!(!fault.code().is_empty() && fault.to_string().contains("query_wait_timeout"), "{fault}");
        assert!((950..1500).contains(&waited.as_millis()), "told after {waited:?}");
    }
    // And the connection is still the holder's.
    holder.query("commit").expect("its server");
    assert_eq!(pooler.client(&user).query("select 1").expect("a server").value(), "1");
    drop(holder);
    pooler.finish();
}
