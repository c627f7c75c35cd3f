//! Many at once in front of a cold pool: all are served, none is refused, and PostgreSQL is not stormed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use super::{MS, pick};
use crate::cluster::Cluster;
use crate::fake_server::FakeServer;
use crate::pooler::{Plan, Pooler, Target, login};
use crate::wire::{Client, Frames, startup};

/// `count` clients that all dial, then all log in, then all ask, a few threads for them all. How long until the last
/// was served.
fn storm(pooler: &Pooler, user: &str, count: usize, statement: &str) -> Duration {
    let start = Instant::now();
    scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let dial = |_| Client::dial(&pooler.address).expect("a place in the backlog");
                let mut clients: Vec<Client> = (0..count / THREADS).map(dial).collect();
                let both = [startup(&login(user)), Frames::new().query(statement).0].concat();
                clients.iter_mut().for_each(|client| client.send(&both).expect("open"));
                for client in &mut clients {
                    client.set_timeout(Duration::from_secs(60));
                    let logged_in = client.collect().unwrap_or_else(|fault| panic!("refused: {fault}"));
                    assert_eq!(logged_in.status, b'I');
                    let reply = client.collect().unwrap_or_else(|fault| panic!("refused: {fault}"));
                    assert_eq!(reply.sequence, "TDCZ", "{:?}", reply.errors);
                }
            });
        }
    });
    start.elapsed()
}

const THREADS: usize = 8;

#[test]
fn a_storm_of_clients_is_served() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let mark = cluster.mark();
    let pooler = Plan::new(cluster).shards(2).max_connections(50).start_alone();
    let count = pick(1000, 5000);
    let took = storm(&pooler, &user, count, "select 1");
    let starts = cluster.starts_since(mark, &user);
    eprintln!("storm: {count} clients served after {took:?}, {starts} connections opened");
    assert!((1..=50).contains(&starts), "{starts} opened");
    cluster.assert_log_clean(mark, &user, &[]);
    pooler.finish();
}

/// F2: PostgreSQL has just as many places as the limit says. A burst takes them all, and asks for no more.
#[test]
fn f2_a_burst_takes_all_places_and_no_more() {
    if !Target::is_pgpinion() {
        return;
    }
    // Three are for superusers, and none of them is here meanwhile.
    let cluster = Cluster::private(&[("max_connections", "13")]);
    let user = cluster.user("user");
    let mark = cluster.mark();
    let pooler = Plan::new(&cluster).shards(2).max_connections(10).start_alone();
    let count = pick(200, 2000);
    let took = storm(&pooler, &user, count, "select pg_sleep(0.005)");
    let full = cluster.log_since(mark, &user).iter().filter(|line| line.contains(" 53300 ")).count();
    let starts = cluster.starts_since(mark, &user);
    eprintln!("f2: {count} clients served after {took:?}, {starts} connections opened, {full} refused");
    assert_eq!((starts, full), (10, 0), "opened and refused by PostgreSQL");
    pooler.finish();
}

/// E5: a hundred with short transactions, and a server where a login takes 50 ms: who waits is served by what is there
/// before much is opened, and never are more opened side by side than the governor says.
#[test]
fn e5_a_cold_start_is_slow_but_not_one_by_one() {
    if !Target::is_pgpinion() {
        return;
    }
    let (dialing, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (dialing, most.clone());
    let slow = FakeServer::start(move |mut connection| {
        if connection.number > 0 {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            sleep(50 * MS);
            now.fetch_sub(1, Ordering::SeqCst);
        }
        if connection.log_in() {
            connection.serve();
        }
    });
    let pooler = Plan::to_port(slow.port()).shards(2).max_connections(50).start_alone();
    let took = storm(&pooler, "user_0", 96, "select 1");
    let (opened, side_by_side) = (slow.accepted(), most.load(Ordering::SeqCst));
    eprintln!("e5: 96 clients served after {took:?}, {opened} opened, {side_by_side} side by side");
    assert!(side_by_side <= 16, "{side_by_side} side by side");
    assert!((2..=pick(30, 10)).contains(&opened), "{opened} opened");
    pooler.finish();
}
