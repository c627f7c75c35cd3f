//! Tenants of very different weight: S46, and F6, where routes that pin much must not make others evict each other.

use std::thread::sleep;
use std::time::Duration;

use super::demand::{Demand, Outcome};
use super::watch::Watch;
use super::{MS, pick, seconds};
use crate::cluster::Cluster;
use crate::crowd::{Crowd, Habit};
use crate::pooler::{Plan, Target};
use crate::process::eventually;
use crate::wire::Client;

const FIVE_MS: &str = "select pg_sleep(0.005)";

/// S46, first half: hundreds of clients behind two connections all have their turn, and about the same wait.
#[test]
fn s46_hundreds_behind_two_connections() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).shards(2).max_connections(2).start_alone();
    let watch = Watch::start(cluster, 10 * MS);
    let demand = Demand::start(&pooler, &user, pick(100, 500), FIVE_MS);
    sleep(seconds(3.0, 60.0));
    let outcome = demand.finish();
    outcome.assert_faultless();
    assert!(watch.finish().most(&[user]) <= 2);
    let (mean, most) = (outcome.mean(), outcome.percentile(100));
    eprintln!(
        "s46: {} transactions on 2 connections, wait {mean:?}, at most {most:?}",
        outcome.latencies.len()
    );
    assert!(most <= 5 * mean, "the longest wait is {most:?}, and {mean:?} is usual");
    pooler.finish();
}

/// S46, second half: one tenant with hundreds of clients, and twenty with one each.
#[test]
fn s46_light_tenants_beside_a_heavy_one() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let light: Vec<String> = (0..20).map(|_| cluster.user("user")).collect();
    let heavy = cluster.user("other");
    let users = [&light[..], std::slice::from_ref(&heavy)].concat();
    let pooler = Plan::new(cluster).shards(2).max_connections(20).start_alone();
    let watch = Watch::start(cluster, 10 * MS);
    let hog = Demand::start(&pooler, &heavy, pick(100, 400), FIVE_MS);
    sleep(500 * MS);
    let demands: Vec<Demand> = light.iter().map(|user| Demand::start(&pooler, user, 1, FIVE_MS)).collect();
    let before = hog.served();
    sleep(seconds(4.0, 60.0));
    let hogged = hog.served() - before;
    demands.iter().for_each(Demand::stop);
    hog.stop();
    let outcomes: Vec<Outcome> = demands.into_iter().map(Demand::finish).collect();
    outcomes.iter().for_each(Outcome::assert_faultless);
    hog.finish().assert_faultless();
    assert!(watch.finish().most(&users) <= 20);
    let each: Vec<usize> = outcomes.iter().map(|outcome| outcome.latencies.len()).collect();
    // A light tenant has one client: its part is one connection, or what is left when 21 share 20.
    let part = (each.iter().sum::<usize>() + hogged as usize) / users.len();
    let least = *each.iter().min().expect("twenty");
    let means: Vec<Duration> = outcomes.iter().map(Outcome::mean).collect();
    let mean = means.iter().sum::<Duration>() / 20;
    let most = *means.iter().max().expect("twenty");
    eprintln!(
        "s46: light tenants {each:?} of {part}, the heavy one {}; wait {mean:?}, at most {most:?}",
        hogged
    );
    assert!(least as f64 >= pick(0.6, 0.8) * part as f64, "{each:?}, and {part} is a part");
    assert!(most <= 5 * mean, "{means:?}");
    pooler.finish();
}

/// In session mode a connection goes from the client that leaves to one that waits: a newcomer has its part all the same.
#[test]
fn a_newcomer_gets_its_part_of_pooled_sessions() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let (first, second) = (cluster.user("other"), cluster.user("good"));
    let pooler = Plan::new(cluster).mode("session").shards(2).max_connections(4).start();
    let habit = Habit::LIGHT.reconnecting_after(3);
    let first = Crowd::start(20, &pooler.address, &first, habit);
    eventually("all connections are in use", Duration::from_secs(10), || first.asked() > 200);
    let second = Crowd::start(8, &pooler.address, &second, habit);
    eventually("the newcomer is served", Duration::from_secs(10), || second.asked() > 20);
    let before = [first.asked(), second.asked()];
    sleep(seconds(2.0, 20.0));
    let [one, two] = [first.asked() - before[0], second.asked() - before[1]];
    eprintln!("sessions: {one} requests and {two} of the newcomer");
    first.finish().assert_faultless();
    second.finish().assert_faultless();
    assert!(two * 2 > one, "{one} requests, and {two} of the newcomer");
    pooler.finish();
}

/// F6: two busy routes and three that pin 15 of 50 connections: what is opened is what is missing, and no more.
#[test]
fn f6_pins_cause_no_eviction_in_turns() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let users: Vec<String> = (0..5).map(|_| cluster.user("user")).collect();
    let mark = cluster.mark();
    let pooler = Plan::new(cluster).shards(2).max_connections(50).start_alone();
    let pins = users[2..].iter().flat_map(|user| std::iter::repeat_n(user, 5));
    let mut pins: Vec<Client> = pins.map(|user| pooler.client(user)).collect();
    pins.iter_mut().for_each(|client| drop(client.query("begin").expect("a server")));
    let demands: Vec<Demand> =
        users[..2].iter().map(|user| Demand::start(&pooler, user, 50, "select pg_sleep(0.1)")).collect();
    sleep(seconds(4.0, 30.0));
    let served: Vec<u64> = demands.iter().map(Demand::served).collect();
    for demand in demands {
        demand.finish().assert_faultless();
    }
    let starts: usize = users.iter().map(|user| cluster.starts_since(mark, user)).sum();
    eprintln!("f6: {starts} connections opened, {served:?} transactions");
    assert!(starts < 50 + 30, "{starts} connections opened");
    pins.iter_mut().for_each(|client| drop(client.query("commit").expect("its server")));
    drop(pins);
    pooler.finish();
}
