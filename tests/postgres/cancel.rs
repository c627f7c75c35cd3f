//! Cancel requests (S07, A12): the right query, and no other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::console::{console, plan, values};
use crate::pooler::{Plan, Pooler, Target, login};
use crate::process::eventually;
use crate::random::Random;
use crate::scale::{is_long, pick, seconds};
use crate::wire::{Address, Client, Frames, ask_to_cancel, cancel};

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
        let ways = [
            ("transaction", 1, false),
            ("transaction", 1, true),
            ("transaction", 2, false),
            ("session", 2, false),
            ("statement", 2, false),
        ];
        for (mode, shards, unix) in ways {
            let mut plan = Plan::new(cluster).mode(mode).shards(shards);
            if unix {
                plan = plan.upstream_folder(cluster.socket_folder());
            }
            let pooler = plan.start();
            long_queries_are_cancelled(cluster, &pooler, mode);
            pooler.finish();
        }
    }
}

/// Clients of protocol 3.0 and 3.2 in turn.
fn long_queries_are_cancelled(cluster: &Cluster, pooler: &Pooler, mode: &str) {
    let user = cluster.user("user");
    let connect = |number: u16| {
        let speaking = Client::connect_speaking(&pooler.address, number % 2 * 2, &login(&user));
        speaking.expect("a login").0
    };
    let mut clients: Vec<Client> = (0..6).map(connect).collect();
    for round in 0..4 {
        for client in &mut clients {
            let (code, took) = cancelled(cluster, pooler, &user, client, "select pg_sleep(30)");
            assert_eq!(code, "57014", "{mode}, round {round}");
            assert!(took < Duration::from_secs(2), "{took:?}");
            assert_eq!(client.query("select 1").expect("a server").value(), "1");
        }
    }
    let statements = ["do $$ begin perform pg_sleep(30); end $$", "begin; select pg_sleep(30)"];
    for statement in &statements[..if mode == "statement" { 1 } else { 2 }] {
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

/// S07: those who cancel their own short queries too late never hit those of others on the same server. 200 requests for each
/// pool, or 10,000.
#[test]
fn s07_a_late_cancel_hits_nobody_else() {
    let cluster = Cluster::shared();
    // Most requests of the first find their query in the queue, most of the last come when it is over.
    let ways = pick([(1, 1), (2, 4), (1, 6)], [(1, 1), (2, 2), (2, 8)]).map(|(s, c)| ("transaction", s, c));
    // In session mode everybody has a server.
    let session = ("session", 2, pick(8, 20));
    for (mode, shards, connections) in ways.into_iter().chain([session]) {
        let user = cluster.user("user");
        let pooler = Plan::new(cluster).mode(mode).shards(shards).max_connections(connections).start();
        let (done, asked, hit) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        let most = thread::scope(|scope| {
            for _ in 0..pick(4, 10) {
                scope.spawn(|| be_victim(&pooler, &user, &done));
            }
            let counts = (&asked, &hit);
            let (pooler, user, done) = (&pooler, &user, &done);
            let attackers: Vec<_> = (0..pick(4, 10))
                .map(|number| scope.spawn(move || attack(pooler, user, number, counts)))
                .collect();
            let sampler = scope.spawn(move || {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(pooler.upstream_connections());
                    thread::sleep(Duration::from_millis(20));
                }
                most
            });
            let outcomes: Vec<_> = attackers.into_iter().map(|attacker| attacker.join()).collect();
            done.store(true, Ordering::Relaxed);
            outcomes.into_iter().for_each(|outcome| outcome.expect("no assertion failed"));
            sampler.join().expect("it only looks")
        });
        let (asked, hit) = (asked.into_inner(), hit.into_inner());
        assert_eq!(asked as u64, pick(4, 10) * rounds());
        assert!(hit > 0, "no request came in time");
        println!("{mode}: {hit} of {asked} came in time; {most} connections to {connections} servers");
        assert!(most <= 2 * connections, "{most} connections: more requests than servers");
        cluster.assert_quiet(&user, if Target::is_direct() { 50 } else { connections });
        pooler.finish();
    }
}

fn be_victim(pooler: &Pooler, user: &str, done: &AtomicBool) {
    let mut victim = pooler.client(user);
    let query = pick("select pg_sleep(0.001)", "select pg_sleep(0.004)");
    let mut served = 0;
    while !done.load(Ordering::Relaxed) {
        let reply = victim.query(query).expect("a server");
        assert_eq!(reply.code(), "", "hit by somebody's cancel request");
        served += 1;
    }
    assert!(served > 0);
}

/// Queries of 2 ms, cancelled after 0 to 4 ms.
fn attack(pooler: &Pooler, user: &str, number: u64, (asked, hit): (&AtomicUsize, &AtomicUsize)) {
    let mut client = pooler.client(user);
    let key = client.key();
    for round in 0..rounds() {
        client.send(&Frames::new().query("select pg_sleep(0.002)").0).expect("open");
        thread::sleep(Duration::from_micros(500 * ((number + round) % 9)));
        cancel(&pooler.address, &key);
        asked.fetch_add(1, Ordering::Relaxed);
        let reply = client.collect().expect("an answer");
        assert!(["", "57014"].contains(&reply.code()), "{}", reply.code());
        hit.fetch_add(usize::from(reply.code() == "57014"), Ordering::Relaxed);
    }
}

fn rounds() -> u64 {
    pick(50, 1000)
}

/// PostgreSQL sends its signal twice, and hits with the second what a client says right behind the answer: of clients that do not wait
/// for the end of their request, as most drivers, one in a thousand directly.
#[test]
fn s07_the_query_behind_a_cancelled_one_is_not_hit() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    for mode in ["transaction", "session"] {
        let user = cluster.user("user");
        let pooler = Plan::new(cluster).mode(mode).shards(2).max_connections(20).start();
        let end = Instant::now() + Duration::from_secs(pick(3, 60));
        let cancelled: usize = thread::scope(|scope| {
            let cancels = || {
                let mut client = pooler.client(&user);
                let key = client.key();
                let mut cancelled = 0;
                while Instant::now() < end {
                    client.send(&Frames::new().query(SLEEPS).0).expect("open");
                    while client.read().expect("a notice").tag != b'N' {}
                    let _asker = ask_to_cancel(&pooler.address, &key);
                    assert_eq!(client.collect().expect("an answer").code(), "57014");
                    cancelled += 1;
                    assert_eq!(client.query("select 1").expect("a server").code(), "", "after {cancelled}");
                }
                cancelled
            };
            let clients: Vec<_> = (0..12).map(|_| scope.spawn(cancels)).collect();
            clients.into_iter().map(|client| client.join().expect("no assertion failed")).sum()
        });
        println!("{mode}: {cancelled} cancelled");
        assert!(cancelled > 0);
        pooler.finish();
    }
}

/// Says when it has begun.
const SLEEPS: &str = "do $$ begin raise notice 'begun'; end $$; select pg_sleep(30)";

/// S07: of long queries nearly all end within a quarter of a second.
#[test]
fn s07_long_queries_end_soon() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).shards(2).max_connections(10).start();
    let (cancels_each, clients) = (pick(3, 50), 10);
    let all = thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|number| {
                let (pooler, user) = (&pooler, &user);
                scope.spawn(move || {
                    let mut client = pooler.client(user);
                    let mut random = Random::new(700 + number);
                    let one = |round| cancel_long(cluster, pooler, &mut client, (number, round), &mut random);
                    (0..cancels_each).map(one).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().expect("no assertion failed")).collect::<Vec<_>>()
    });
    let late: Vec<_> = all.iter().filter(|took| **took > Duration::from_millis(250)).collect();
    println!(
        "{} queries cancelled, {} after more than 250 ms, the last after {:?}",
        all.len(),
        late.len(),
        all.iter().max()
    );
    assert!(!is_long() || late.len() * 100 <= all.len(), "{late:?} of {}", all.len());
    pooler.finish();
}

/// How long a query of some seconds goes on after it is cancelled.
fn cancel_long(
    cluster: &Cluster,
    pooler: &Pooler,
    client: &mut Client,
    (number, round): (u64, u64),
    random: &mut Random,
) -> Duration {
    let mark = format!("long {number}.{round}.{}", random.next());
    let statement = format!("select pg_sleep({}) /* {mark} */", random.between(1, 5) + 2);
    let running = format!(
        "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%{mark}%'"
    );
    client.send(&Frames::new().query(&statement).0).expect("open");
    eventually("it runs", SOON, || cluster.value(&running) == "1");
    let asked = Instant::now();
    cancel(&pooler.address, &client.key());
    let reply = client.collect().expect("an answer");
    assert_eq!((reply.code(), reply.status), ("57014", b'I'));
    asked.elapsed()
}

/// S07: all who wait are cancelled where they wait, and nobody else.
#[test]
fn s07_all_of_a_queue_are_cancelled() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = plan(cluster).shards(2).max_connections(1).set("query_wait_timeout", 60).start();
    let mut admin = console(&pooler);
    let mut waits = |count: usize| {
        eventually("they wait", SOON, || {
            values(&mut admin, "SHOW QUOTA", &[("user", &user), ("shard", "all")], "waiting")
                == [count.to_string()]
        });
    };
    let mut holder = pooler.client(&user);
    let mut clients: Vec<Client> = (0..pick(20, 200)).map(|_| pooler.client(&user)).collect();
    holder.query("begin").expect("a server");
    for client in &mut clients {
        client.send(&Frames::new().query("select 'served'").0).expect("open");
    }
    waits(clients.len());
    // Every fifth is left alone.
    let count = clients.len();
    let (left_alone, cancelled): (Vec<_>, Vec<_>) =
        clients.into_iter().enumerate().partition(|(number, _)| number % 5 == 0);
    for (_, client) in &cancelled {
        cancel(&pooler.address, &client.key());
    }
    for (number, mut client) in cancelled {
        let reply = client.collect().expect("an answer");
        assert_eq!((reply.code(), reply.status), ("57014", b'I'), "{number}");
    }
    waits(count.div_ceil(5));
    holder.query("commit").expect("its server");
    for (number, mut client) in left_alone {
        assert_eq!(client.collect().expect("an answer").value(), "served", "{number}");
    }
    drop(holder);
    cluster.assert_quiet(&user, 1);
    pooler.finish();
}

/// A request may come by another way than its client did: by TCP or by the unix socket.
#[test]
fn requests_come_by_tcp_and_by_unix_sockets() {
    for cluster in Cluster::of_each_release() {
        for by_folder in [false, true] {
            let user = cluster.user("user");
            let mut plan = Plan::new(cluster).shards(2).unix_listener();
            if by_folder {
                plan = plan.upstream_folder(cluster.socket_folder());
            }
            let pooler = plan.start();
            let unix = match Target::is_direct() {
                true => cluster.socket_folder().join(format!(".s.PGSQL.{}", cluster.port())),
                false => pooler.unix.clone(),
            };
            let ways = [pooler.address.clone(), Address::Unix(unix)];
            for (client_way, cancel_way) in [(0, 1), (1, 0), (1, 1)] {
                for minor in [0, 2] {
                    let speaking = Client::connect_speaking(&ways[client_way], minor, &login(&user));
                    let mut client = speaking.expect("a login").0;
                    client.send(&Frames::new().query("select pg_sleep(30)").0).expect("open");
                    let running = format!(
                        "select count(*) from pg_stat_activity where usename = '{user}' and state = 'active'"
                    );
                    eventually("it runs", SOON, || cluster.value(&running) == "1");
                    cancel(&ways[cancel_way], &client.key());
                    let reply = client.collect().expect("an answer");
                    assert_eq!(reply.code(), "57014", "{client_way}, {cancel_way}, 3.{minor}");
                    assert_eq!(client.query("select 1").expect("a server").value(), "1");
                    client.terminate();
                }
            }
            pooler.finish();
        }
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
    eventually("the query has ended", seconds(3.0, 0.2), || cluster.value(&running) == "0");
    let mut next = pooler.client(&user);
    assert_eq!(next.query("select 1").expect("a server").value(), "1");
    drop(next);
    pooler.finish();
}

const SOON: Duration = Duration::from_secs(5);
