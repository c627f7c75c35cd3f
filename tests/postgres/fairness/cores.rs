//! Fair between cores, and work conserving over them: where a client is makes no difference, with steering switched off.

use std::time::{Duration, Instant};

use super::demand::Demand;
use super::{MS, pick, seconds};
use crate::cluster::Cluster;
use crate::console::{console, plan, values};
use crate::pooler::{Pooler, Target};
use crate::process::{cpus, eventually};
use crate::random::Random;
use crate::wire::Client;

/// There is only one core, or something else to test.
fn has_no_cores() -> bool {
    !Target::is_pgpinion() || cpus().len() < 2
}

/// Clients of `user` on this shard: the kernel spreads them, and those it puts elsewhere are let go.
fn clients_on(pooler: &Pooler, admin: &mut Client, user: &str, shard: usize, count: usize) -> Vec<Client> {
    let (mut here, mut elsewhere) = (Vec::new(), Vec::new());
    let number = shard.to_string();
    let mut before = clients_there(admin, user, &number);
    while here.len() < count {
        assert!(elsewhere.len() < 200, "the kernel puts nobody on shard {shard}");
        let client = pooler.client(user);
        let now = clients_there(admin, user, &number);
        if now > before {
            here.push(client)
        } else {
            elsewhere.push(client)
        }
        before = now;
    }
    elsewhere.into_iter().for_each(Client::terminate_and_wait);
    here
}

fn clients_there(admin: &mut Client, user: &str, shard: &str) -> usize {
    let shown = values(admin, "SHOW QUOTA", &[("user", user), ("shard", shard)], "clients");
    shown.iter().map(|count| count.parse::<usize>().expect("a count")).sum()
}

fn quota(admin: &mut Client, user: &str, column: &str) -> u64 {
    let shown = values(admin, "SHOW QUOTA", &[("user", user), ("shard", "all")], column);
    shown[0].parse().expect("a number")
}

/// All connections of a route are busy on shard 0, and clients come to shard 1: they get their part.
#[test]
fn clients_of_another_core_get_their_part() {
    if has_no_cores() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let mark = cluster.mark();
    let pooler = plan(cluster).shards(2).max_connections(4).set("steering", false).start_alone();
    let mut admin = console(&pooler);
    let second = clients_on(&pooler, &mut admin, &user, 1, 8);
    let first = clients_on(&pooler, &mut admin, &user, 0, 8);
    let first = Demand::of(first, "select pg_sleep(0.01)");
    eventually("the first core is at work", Duration::from_secs(5), || first.served() >= 100);
    let came = Instant::now();
    let second = Demand::of(second, "select pg_sleep(0.01)");
    while second.served() == 0 {
        assert!(came.elapsed() < Duration::from_secs(2), "the other core gets nothing");
        std::thread::sleep(MS);
    }
    let waited = came.elapsed();
    let before = (first.served(), second.served());
    std::thread::sleep(seconds(2.0, 20.0));
    let (one, two) = (first.served() - before.0, second.served() - before.1);
    for demand in [first, second] {
        demand.finish().assert_faultless();
    }
    let starts = cluster.starts_since(mark, &user);
    eprintln!("cores: {one} and {two} transactions, the first after {waited:?}, {starts} opened");
    let ratio = two as f64 / one as f64;
    assert!((pick(0.7, 0.8)..=pick(1.43, 1.25)).contains(&ratio), "{one} and {two}");
    assert!(waited < seconds(0.5, 0.05), "{waited:?}");
    assert!(starts <= 4, "{starts} opened: connections are closed where they could move");
    drop(admin);
    pooler.finish();
}

/// As many clients as connections, on both cores, each asking now and then: there is always an idle one, often on the
/// other core. It comes over, nothing is opened anew, and it comes fast.
#[test]
fn nobody_waits_beside_an_idle_connection() {
    if has_no_cores() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let mark = cluster.mark();
    let pooler = plan(cluster).shards(2).max_connections(4).set("steering", false).start_alone();
    let mut admin = console(&pooler);
    let mut clients = clients_on(&pooler, &mut admin, &user, 0, 4);
    clients.extend(clients_on(&pooler, &mut admin, &user, 1, 4));
    // Four opened before it is measured: a new connection takes its time.
    clients[..4].iter_mut().for_each(|client| drop(client.query("begin").expect("a server")));
    clients[..4].iter_mut().for_each(|client| drop(client.query("commit").expect("a server")));
    let mut random = Random::new(4);
    let mut times = Vec::new();
    let (start, time) = (Instant::now(), seconds(2.0, 30.0));
    while start.elapsed() < time {
        // Four of the eight at once: as many as there are connections, on cores as it comes.
        for at in 0..4 {
            clients.swap(at, random.between(at as u64, 7) as usize);
        }
        for client in &mut clients[..4] {
            client.send(&crate::wire::Frames::new().query("begin").0).expect("open");
        }
        let asked = Instant::now();
        for client in &mut clients[..4] {
            client.collect().expect("an idle server");
        }
        times.push(asked.elapsed());
        clients[..4].iter_mut().for_each(|client| drop(client.query("commit").expect("its server")));
    }
    times.sort_unstable();
    let (p50, p99) = (times[times.len() / 2], times[(times.len() - 1) * 99 / 100]);
    let waits = quota(&mut admin, &user, "wait_p99_us");
    let (moved, starts) = (quota(&mut admin, &user, "handed_in"), cluster.starts_since(mark, &user));
    eprintln!(
        "work conserving: {} rounds of four, p50 {p50:?}, p99 {p99:?}; p99 of waits {waits} us; {moved} moves, {starts} opened",
        times.len()
    );
    assert_eq!(starts, 4, "opened");
    assert!(moved as usize > times.len() / 10, "only {moved} moves in {} rounds", times.len());
    // On a busy machine some wait for the kernel to run the other core's thread.
    assert!(p50 < 2 * MS, "half of the rounds took {p50:?} and more");
    assert!(waits < pick(50_000, 2_000), "99 of 100 waited at most {waits} us");
    drop((clients, admin));
    pooler.finish();
}

/// More clients than connections, all asking all the time: connections move, none is opened anew.
#[test]
fn a_saturated_route_opens_nothing_anew() {
    if has_no_cores() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let mark = cluster.mark();
    let pooler = plan(cluster).shards(2).max_connections(4).set("steering", false).start_alone();
    let demand = Demand::start(&pooler, &user, 24, "select pg_sleep(0.002)");
    std::thread::sleep(seconds(2.0, 20.0));
    let served = demand.served();
    let outcome = demand.finish();
    outcome.assert_faultless();
    let starts = cluster.starts_since(mark, &user);
    let mut admin = console(&pooler);
    let moved = quota(&mut admin, &user, "handed_in");
    eprintln!(
        "saturated: {served} transactions, {moved} moves, {starts} opened, p99 {:?}",
        outcome.percentile(99)
    );
    assert_eq!(starts, 4, "opened");
    drop(admin);
    pooler.finish();
}

/// F9: two clients on two cores take turns on the only connection: always the same backend, and in order.
#[test]
fn f9_one_connection_for_two_cores() {
    if has_no_cores() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let mark = cluster.mark();
    let pooler = plan(cluster).shards(2).max_connections(1).set("steering", false).start_alone();
    let mut admin = console(&pooler);
    let mut clients = clients_on(&pooler, &mut admin, &user, 0, 1);
    clients.extend(clients_on(&pooler, &mut admin, &user, 1, 1));
    let pid = clients[0].query("select pg_backend_pid()").expect("a server").value();
    let start = Instant::now();
    let turns = 1000;
    for turn in 0..turns {
        let reply = clients[turn % 2].query("select pg_backend_pid()").expect("the server");
        assert_eq!(reply.value(), pid);
    }
    let moves = quota(&mut admin, &user, "handed_in");
    eprintln!("f9: {turns} turns, {moves} moves, {:?} each", start.elapsed() / turns as u32);
    assert!(moves + 1 >= turns as u64, "{moves} moves in {turns} turns");
    assert_eq!(cluster.starts_since(mark, &user), 1);
    drop((clients, admin));
    pooler.finish();
}

/// F10: a warm route with a connection for each client needs no letter, however many its transactions.
#[test]
fn f10_a_warm_route_writes_no_letter() {
    if has_no_cores() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let plan = plan(cluster).shards(2).max_connections(8).set("steering", false).set("stats_period", 0);
    let pooler = plan.start_alone();
    let mut admin = console(&pooler);
    let mut clients = clients_on(&pooler, &mut admin, &user, 0, 2);
    clients.extend(clients_on(&pooler, &mut admin, &user, 1, 2));
    clients.iter_mut().for_each(|client| drop(client.query("begin").expect("a server")));
    clients.iter_mut().for_each(|client| drop(client.query("commit").expect("its server")));
    // Warming up is over when nothing is written any more but what the console's own question takes.
    let mut counts = Vec::new();
    eventually("all that was is told", Duration::from_secs(5), || {
        std::thread::sleep(30 * MS);
        counts.push(letters(&mut admin));
        matches!(counts[..], [.., one, two, three, four] if two - one == three - two && three - two == four - three)
    });
    let question = counts[counts.len() - 1] - counts[counts.len() - 2];
    let transactions = pick(2_000, 25_000);
    let before = letters(&mut admin);
    let ask = |client: &mut Client| {
        for _ in 0..transactions {
            client.query("select 1").expect("a server");
        }
    };
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(move || ask(client));
        }
    });
    let written = letters(&mut admin) - before - question;
    eprintln!("f10: {written} letters for {} transactions", 4 * transactions);
    assert_eq!(written, 0, "letters on the hot path");
    drop((clients, admin));
    pooler.finish();
}

fn letters(admin: &mut Client) -> u64 {
    let written = values(admin, "SHOW SHARDS", &[], "letters_out");
    written.iter().map(|count| count.parse::<u64>().expect("a count")).sum()
}
