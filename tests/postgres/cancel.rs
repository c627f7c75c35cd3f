//! Cancel requests (S07, A12): the right query, and no other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::console::{console, plan, values};
use crate::pooler::{Plan, Pooler, Target, login};
use crate::process::eventually;
use crate::wire::{Client, Frames, cancel};

/// Runs `statement`, cancels it when PostgreSQL is at it, and says what came of it and how long that took.
fn cancelled(
    cluster: &Cluster,
    pooler: &Pooler,
    user: &str,
    client: &mut Client,
    statement: &str,
) -> (String, Duration) {
    let key = client.key();
    client.send(&Frames::new().query(statement).0).expect("open");
    // A request that comes before PostgreSQL has begun cancels nothing.
    let running =
        format!("select count(*) from pg_stat_activity where usename = '{user}' and state = 'active'");
    eventually("it runs", SOON, || cluster.value(&running) == "1");
    let asked = Instant::now();
    cancel(&pooler.address, &key);
    let reply = client.collect().expect("the session goes on");
    (reply.code().to_owned(), asked.elapsed())
}

#[test]
fn a_long_query_is_cancelled_and_its_session_goes_on() {
    for cluster in Cluster::of_each_release() {
        for (shards, unix) in [(1, false), (1, true), (2, false)] {
            let mut plan = Plan::new(cluster).shards(shards);
            if unix {
                plan = plan.upstream_folder(cluster.socket_folder());
            }
            let pooler = plan.start();
            long_queries_are_cancelled(cluster, &pooler);
            pooler.finish();
        }
    }
}

/// Clients of protocol 3.0 and 3.2 in turn.
fn long_queries_are_cancelled(cluster: &Cluster, pooler: &Pooler) {
    let user = cluster.user("user");
    let connect = |number: u16| {
        let speaking = Client::connect_speaking(&pooler.address, number % 2 * 2, &login(&user));
        speaking.expect("a login").0
    };
    let mut clients: Vec<Client> = (0..6).map(connect).collect();
    for round in 0..4 {
        for client in &mut clients {
            let (code, took) = cancelled(cluster, pooler, &user, client, "select pg_sleep(30)");
            assert_eq!(code, "57014", "round {round}");
            assert!(took < Duration::from_secs(2), "{took:?}");
            assert_eq!(client.query("select 1").expect("a server").value(), "1");
        }
    }
    for statement in ["begin; select pg_sleep(30)", "do $$ begin perform pg_sleep(30); end $$"] {
        assert_eq!(cancelled(cluster, pooler, &user, &mut clients[0], statement).0, "57014");
        let _ = clients[0].query("rollback").expect("a server");
    }
}

#[test]
fn who_waits_for_a_server_is_cancelled_there() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = plan(cluster).max_connections(1).start();
    let mut admin = console(&pooler);
    let mut waits = || {
        eventually("the client waits", Duration::from_secs(5), || {
            values(&mut admin, "SHOW QUOTA", &[("user", &user), ("shard", "all")], "waiting") == ["1"]
        })
    };
    let mut holder = pooler.client(&user);
    holder.query("begin").expect("a server");
    let mut client = pooler.client(&user);
    // A query, and a batch of which the Sync comes later.
    client.send(&Frames::new().query("select 1").0).expect("open");
    waits();
    cancel(&pooler.address, &client.key());
    let reply = client.collect().expect("an answer");
    assert_eq!((reply.code(), reply.status, reply.sequence.as_str()), ("57014", b'I', "EZ"));
    client.send(&Frames::new().unnamed("select 2", &[]).0).expect("open");
    waits();
    cancel(&pooler.address, &client.key());
    assert_eq!(client.read().expect("an answer").error().code, "57014");
    client.send(&Frames::new().unnamed("select 3", &[]).sync().query("select 4").0).expect("open");
    assert_eq!(client.collect().expect("an answer").sequence, "Z");
    holder.query("commit").expect("a server");
    assert_eq!(client.collect().expect("an answer").value(), "4");
    drop((holder, client));
    cluster.assert_quiet(&user, 1);
    pooler.finish();
}

#[test]
fn nothing_is_cancelled_without_the_key_or_between_queries() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).start();
    let mut client = pooler.client(&user);
    let (process, key) = client.key();
    client.send(&Frames::new().query("select pg_sleep(0.4)").0).expect("open");
    for wrong in [vec![0; 4], vec![255; 4], key.iter().map(|byte| byte ^ 1).collect(), key[..3].to_vec()] {
        cancel(&pooler.address, &(process, wrong));
    }
    cancel(&pooler.address, &(process.wrapping_add(1), key.clone()));
    cancel(&pooler.address, &(0, key.clone()));
    assert_eq!(client.collect().expect("an answer").code(), "");
    // Idle, in a transaction and not.
    cancel(&pooler.address, &(process, key.clone()));
    assert_eq!(client.query("begin").expect("a server").code(), "");
    cancel(&pooler.address, &(process, key.clone()));
    assert_eq!(client.query("select 1").expect("a server").value(), "1");
    client.query("commit").expect("a server");
    // And when the client is gone, its key is nobody's.
    client.terminate_and_wait();
    let mut next = pooler.client(&user);
    next.send(&Frames::new().query("select pg_sleep(0.2)").0).expect("open");
    cancel(&pooler.address, &(process, key));
    assert_eq!(next.collect().expect("an answer").code(), "");
    drop(next);
    pooler.finish();
}

/// S07, short form: those who cancel their own short queries too late never hit those of others on the same server.
#[test]
fn s07_a_late_cancel_hits_nobody_else() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    // Most requests of the first find their query in the queue, most of the last come when it is over.
    for (shards, connections) in [(1, 1), (2, 4), (1, 6)] {
        let pooler = Plan::new(cluster).shards(shards).max_connections(connections).start();
        let (done, asked, hit) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut victim = pooler.client(&user);
                    let mut served = 0;
                    while !done.load(Ordering::Relaxed) {
                        let reply = victim.query("select pg_sleep(0.001)").expect("a server");
                        assert_eq!(reply.code(), "", "hit by somebody's cancel request");
                        served += 1;
                    }
                    assert!(served > 0);
                });
            }
            let attackers: Vec<_> = (0..4)
                .map(|number| {
                    let (pooler, user, asked, hit) = (&pooler, &user, &asked, &hit);
                    scope.spawn(move || {
                        let mut client = pooler.client(user);
                        let key = client.key();
                        for round in 0..50 {
                            client.send(&Frames::new().query("select pg_sleep(0.002)").0).expect("open");
                            thread::sleep(Duration::from_micros(500 * ((number + round) % 9)));
                            cancel(&pooler.address, &key);
                            asked.fetch_add(1, Ordering::Relaxed);
                            let reply = client.collect().expect("an answer");
                            assert!(["", "57014"].contains(&reply.code()), "{}", reply.code());
                            hit.fetch_add(usize::from(reply.code() == "57014"), Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            for attacker in attackers {
                attacker.join().expect("no assertion failed");
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(asked.into_inner(), 200);
        let hit = hit.into_inner();
        assert!(hit > 0, "no request came in time");
        println!("{hit} of 200 came in time");
        pooler.finish();
    }
}

/// A12: a client that dies in a query leaves nothing running.
#[test]
fn a12_the_query_of_a_client_that_died_ends() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(1).start();
    let mut client = pooler.client(&user);
    client.send(&Frames::new().query("select pg_sleep(60)").0).expect("open");
    let running =
        format!("select count(*) from pg_stat_activity where usename = '{user}' and state = 'active'");
    eventually("the query runs", Duration::from_secs(5), || cluster.value(&running) == "1");
    client.reset();
    eventually("the query has ended", Duration::from_secs(3), || cluster.value(&running) == "0");
    let mut next = pooler.client(&user);
    assert_eq!(next.query("select 1").expect("a server").value(), "1");
    drop(next);
    pooler.finish();
}

const SOON: Duration = Duration::from_secs(5);
