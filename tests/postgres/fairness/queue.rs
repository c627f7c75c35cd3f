//! F8: in the queue of a route it goes by arrival, a turn is never lost, and waiting has an end.

use std::time::{Duration, Instant};

use super::{SOON, pick, seconds};
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
    assert!(start.elapsed() < seconds(1.0, 0.1), "noticed after {:?}", start.elapsed());
    holder.query("commit").expect("its server");
    let served: Vec<String> =
        queue.iter_mut().map(|client| client.collect().expect("its turn").value()).collect();
    assert!(served.is_sorted(), "{served:?}");
    // Who said goodbye while it waited has used no server.
    let all = [("user", user.as_str()), ("shard", "all")];
    assert_eq!(values(&mut admin, "SHOW QUOTA", &all, "links"), ["11"], "the holder and ten");
    drop((queue, holder, admin));
    pooler.finish();
}

/// A queue that is full refuses who comes at once; those in it are served in their order, and a reload makes it longer.
#[test]
fn f8_a_full_queue_refuses_at_once() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let (user, other) = (cluster.user("user"), cluster.user("other"));
    let plan = plan(cluster).shards(2).max_connections(2).set("max_waiting_clients", 3);
    let pooler = plan.route(&user, "max_connections = 1").start();
    let mut holder = pooler.client(&user);
    holder.query("begin").expect("a server");
    let mut queue = queue_up(&pooler, &user, 3);
    let refuse = |most: usize| {
        let mut client = pooler.client(&user);
        let start = Instant::now();
        let fault = client.query("select 1").expect_err("the queue is full");
        let took = start.elapsed();
        eprintln!("f8: refused after {took:?}: {fault}");
        assert_eq!(fault.code(), "53300", "{fault}");
        assert!(fault.to_string().contains(&format!("max_waiting_clients: {most} clients of")), "{fault}");
        assert!(took < Duration::from_millis(500), "after {took:?}");
    };
    (0..5).for_each(|_| refuse(3));
    // Another route has a queue of its own, and a server.
    pooler.client(&other).query("select 1").expect("a server");
    pooler.reload(|text| text.replace("max_waiting_clients = 3", "max_waiting_clients = 4"));
    eventually("it holds", SOON, || pooler.log().contains("reload: applied on all shards"));
    let mut late = pooler.client(&user);
    late.send(&Frames::new().query("select clock_timestamp()::text").0).expect("open");
    assert_waiting(&mut console(&pooler), &user, 4);
    refuse(4);
    queue.push(late);
    holder.query("commit").expect("its server");
    let served: Vec<String> =
        queue.iter_mut().map(|client| client.collect().expect("its turn").value()).collect();
    assert!(served.is_sorted(), "{served:?}");
    // And there is room again.
    pooler.client(&user).query("select 1").expect("a server");
    drop((queue, holder));
    pooler.finish();
}

#[test]
fn f8_waiting_has_an_end() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = plan(cluster).shards(2).max_connections(1).set("query_wait_timeout", 2).start();
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
        assert_eq!(fault.code(), "53300", "{fault}");
        assert!(fault.to_string().contains("query_wait_timeout"), "{fault}");
        assert!((2.0..pick(2.5, 2.2)).contains(&waited.as_secs_f64()), "told after {waited:?}");
    }
    // And the connection is still the holder's.
    holder.query("commit").expect("its server");
    assert_eq!(pooler.client(&user).query("select 1").expect("a server").value(), "1");
    drop(holder);
    pooler.finish();
}
