//! Exact: PostgreSQL never sees one connection more than the limit, whatever happens and however long a close takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use super::watch::{Timeline, Watch};
use super::{MS, SOON, pick, seconds};
use crate::cluster::Cluster;
use crate::console::{console, plan, values};
use crate::crowd::{Crowd, Habit};
use crate::fake_server::FakeServer;
use crate::pooler::{Plan, Pooler, Target};
use crate::process::eventually;
use crate::random::Random;
use crate::scale::times;
use crate::wire::{Client, Frames};

/// F13 and F16: clients arrive and leave, routes come and go, backends are killed, logins are refused, and the limit is
/// reloaded from 20 to 5 to 20; then all are gone, and so is each connection. A long run takes a minute, in which the sampler does
/// not rest; F16 asks for an hour (`PGPINION_TEST_LONG=60`), of which its samples would not fit into memory.
#[test]
fn the_limit_is_exact_in_any_churn() {
    if !Target::is_pgpinion() {
        return;
    }
    // Three for superusers, one for each of ours: a 21st connection would be refused.
    let cluster = Cluster::private(&[("max_connections", "26")]);
    let users: Vec<String> = (0..8).map(|_| cluster.user("user")).collect();
    let mark = cluster.mark();
    let pooler = plan(&cluster).shards(2).max_connections(20).set("server_idle_timeout", 1).start_alone();
    let watch = Watch::start(&cluster, if times() > 1 { 2 * MS } else { Duration::ZERO });
    let phase = seconds(2.0, 20.0) * times().max(1);
    let (mut lowered, mut raised) = (Instant::now(), Instant::now());
    let stop = AtomicBool::new(false);
    scope(|scope| {
        scope.spawn(|| come_and_go(&pooler, &users, &stop));
        scope.spawn(|| kill_and_refuse(&cluster, &users, &stop));
        sleep(phase);
        set_limit(&pooler, 20, 5, 1);
        lowered = Instant::now();
        sleep(phase);
        raised = Instant::now();
        set_limit(&pooler, 5, 20, 2);
        sleep(phase);
        stop.store(true, Ordering::Relaxed);
    });
    let seen = watch.finish();
    assert_exact(&seen, &users, lowered, raised);
    let log = users.iter().flat_map(|user| cluster.log_since(mark, user));
    let refused = log.filter(|line| line.contains(" 53300 ")).count();
    assert_eq!(refused, 0, "PostgreSQL had no place for a connection");
    let mut admin = console(&pooler);
    eventually("all permits are free again", SOON, || {
        values(&mut admin, "SHOW SHARDS", &[], "permits").iter().all(|permits| permits == "0")
    });
    assert!(users.iter().all(|user| cluster.backends(user).is_empty()), "a connection without a permit");
    drop(admin);
    pooler.finish();
}

/// Four crowds at a time; the oldest leaves for one of another user.
fn come_and_go(pooler: &Pooler, users: &[String], stop: &AtomicBool) {
    let habit = Habit::LIGHT.reconnecting_after(15).pausing(2 * MS);
    let mut crowds = std::collections::VecDeque::new();
    for user in users.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        crowds.push_back(Crowd::start(10, &pooler.address, user, habit));
        if crowds.len() > 4 {
            crowds.pop_front().expect("five").finish().assert_no_hang();
        }
        // And one vanishes in its transaction, if it came so far.
        if let Ok(mut client) = pooler.try_client(user) {
            let _ = client.query("begin");
            client.reset();
        }
        sleep(200 * MS);
    }
    for crowd in crowds {
        crowd.finish().assert_no_hang();
    }
}

/// A backend at random every 50 ms; and now and then a user may not log in for a while.
fn kill_and_refuse(cluster: &Cluster, users: &[String], stop: &AtomicBool) {
    let parameters = [("user", "postgres"), ("database", "app"), ("application_name", "killer")];
    let mut client = Client::connect(&cluster.address(), &parameters).expect("a free superuser slot");
    let mut random = Random::new(13);
    while !stop.load(Ordering::Relaxed) {
        client.query(KILL).expect("PostgreSQL is there");
        let user = random.pick(users).clone();
        let refused = random.chance(10);
        if refused {
            client.query(&format!("alter role {user} nologin")).expect("PostgreSQL is there");
        }
        sleep(50 * MS);
        if refused {
            client.query(&format!("alter role {user} login")).expect("PostgreSQL is there");
        }
    }
}

fn set_limit(pooler: &Pooler, from: usize, to: usize, reloads: usize) {
    let line = |limit: usize| format!("max_connections = {limit}\n");
    pooler.reload(|text| text.replace(&line(from), &line(to)));
    eventually("the limit is reloaded", SOON, || {
        pooler.log().matches("reload: applied on all shards").count() == reloads
    });
}

/// Never above the limit; above a lowered one never rising, but for dials that were under way.
fn assert_exact(seen: &Timeline, users: &[String], lowered: Instant, raised: Instant) {
    let most = seen.most(users);
    let settled = lowered + 300 * MS;
    let mut least = usize::MAX;
    for moment in seen.between(settled, raised) {
        let now = moment.of_all(users);
        assert!(now <= 5 || now <= least, "{now} after {least}, and the limit is 5");
        least = least.min(now);
    }
    let low = seen.until(lowered, |moment| moment.of_all(users) <= 5);
    let high = seen.until(raised, |moment| moment.of_all(users) > 15);
    eprintln!("exact: {} samples, {most} at most; down after {low:?}, up after {high:?}", seen.0.len());
    assert_eq!(most, 20, "all, and no more");
    assert!(low.is_some_and(|took| took < seconds(2.0, 0.5)), "down to 5 after {low:?}");
    assert!(high.is_some(), "the higher limit is not used");
}

/// F15: a connection that takes its time to close is there until it has closed.
#[test]
fn f15_a_slow_close_keeps_its_permit() {
    if !Target::is_pgpinion() {
        return;
    }
    let delay = seconds(0.7, 5.0);
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, peak) = (open.clone(), most.clone());
    let slow = FakeServer::start(move |mut connection| {
        peak.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        if connection.log_in() {
            connection.serve();
            sleep(delay);
        }
        counted.fetch_sub(1, Ordering::SeqCst);
    });
    let pooler =
        Plan::to_port(slow.port()).shards(2).max_connections(2).set("server_close_timeout", 10).start();
    let mut waits = Vec::new();
    for round in 0..pick(3, 5) {
        for user in ["user_1", "user_2", "user_3"] {
            // A login waits for the route's first server.
            let start = Instant::now();
            let mut client = pooler.client(user);
            client.query(&format!("round {round}")).expect("a server, in the end");
            waits.push(start.elapsed());
            client.terminate();
        }
    }
    let longest = waits.iter().max().expect("rounds");
    eprintln!(
        "f15: {} open at most, longest wait {longest:?} for closes of {delay:?}",
        most.load(Ordering::SeqCst)
    );
    assert_eq!(most.load(Ordering::SeqCst), 2);
    assert!(*longest > delay / 2, "nobody waited for a close: {waits:?}");
    assert!(*longest < 3 * delay + SOON, "{waits:?}");
    pooler.finish();
}

/// F14: who keeps a connection for a session keeps it, whoever waits; who waits is told, and served when one is free.
/// A route keeps no more than it may have at all.
#[test]
fn f14_pinned_connections_are_not_taken() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    for mode in ["session", "transaction"] {
        let (user, other) = (cluster.user("user"), cluster.user("other"));
        let plan = plan(cluster).mode(mode).set("leak_policy", "\"pin\"").set("query_wait_timeout", 0.5);
        let pooler = plan.route(&user, "max_connections = 6").shards(2).max_connections(7).start();
        let mut pinned: Vec<Client> = (0..6).map(|_| pinning(&pooler, &user)).collect();
        assert_told(&pooler, &user);
        let mut last = pinning(&pooler, &other);
        for waiter in [&user, &other] {
            assert_told(&pooler, waiter);
        }
        let mut admin = console(&pooler);
        for (user, count) in [(&user, "6"), (&other, "1")] {
            let all = [("user", user.as_str()), ("shard", "all")];
            for column in ["permits", "linked", "pinned"] {
                assert_eq!(values(&mut admin, "SHOW QUOTA", &all, column), [count], "{column}, {mode} mode");
            }
        }
        for client in &mut pinned {
            client.query("insert into mine values (1)").expect("the same server");
        }
        last.send(&Frames::new().terminate().0).expect("open");
        assert_eq!(pooler.client(&other).query("select 1").expect("the free one").value(), "1");
        drop((pinned, last, admin));
        pooler.finish();
    }
}

/// A client that has made a server its own.
fn pinning(pooler: &Pooler, user: &str) -> Client {
    let mut client = pooler.client(user);
    client.query("create temp table mine (i int)").expect("a server");
    client
}

/// A client that asks now is told in time that it waited in vain.
fn assert_told(pooler: &Pooler, user: &str) {
    let start = Instant::now();
    let told = match pooler.try_client(user) {
        Ok(mut client) => client.query("select 1").expect_err("all are pinned").to_string(),
        Err(fault) => fault.to_string(),
    };
    assert!(told.contains("query_wait_timeout"), "{told}");
    assert!((0.5..2.0).contains(&start.elapsed().as_secs_f64()), "told after {:?}", start.elapsed());
}

const KILL: &str = "select pg_terminate_backend(pid) from pg_stat_activity
    where backend_type = 'client backend' and usename <> 'postgres' order by random() limit 1";
