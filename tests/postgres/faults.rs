//! Servers that die and networks that break.

use std::collections::{BTreeMap, HashSet};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::cluster::Cluster;
use crate::crowd::{Crowd, Habit};
use crate::fake_server::{self, FakeServer};
use crate::pooler::{Plan, Pooler, Target, login};
use crate::process::eventually;
use crate::proxy::{Pace, Proxy, Weather};
use crate::random::Random;
use crate::scale::{is_long, pick, seconds};
use crate::wire::{Address, Client, Fault, Frames};

/// E7: a backend killed between transactions is nobody's error; one killed inside is an error, and nothing is tried
/// again in secret.
#[test]
fn e7_killed_between_and_inside_transactions() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let mark = cluster.mark();
    let pooler = Plan::new(cluster).max_connections(2).start();
    let mut client = pooler.client(&user);
    client.query(&format!("create table once_{user} (a int)")).expect("a server");
    for _ in 0..10 {
        let pid = client.query("select pg_backend_pid()").expect("a living server").value();
        kill_backend(cluster, &pid);
    }
    for active in [false, true] {
        let mut inside = pooler.client(&user);
        inside.query("begin").expect("a server");
        let pid = inside.query("select pg_backend_pid()").expect("a server").value();
        inside.query(&format!("insert into once_{user} values (1)")).expect("a server");
        if active {
            inside.send(&Frames::new().query("select pg_sleep(10)").0).expect("open");
            eventually("it sleeps", Duration::from_secs(2), || {
                cluster.value(&format!("select state from pg_stat_activity where pid = {pid}")) == "active"
            });
        }
        let start = Instant::now();
        kill_backend(cluster, &pid);
        let fault = if active { inside.collect() } else { inside.query("select 1") };
        let code = match fault {
            Ok(reply) => reply.code().to_owned(),
            Err(fault) => fault.code().to_owned(),
        };
        assert!(code == "57P01" || code == "08006" || Target::current() == Target::Pgbouncer, "{code:?}");
        assert!(start.elapsed() < Duration::from_secs(1), "told after {:?}", start.elapsed());
    }
    assert_eq!(client.query(&format!("select count(*) from once_{user}")).expect("a server").value(), "0");
    cluster.assert_log_clean(mark, &user, &[]);
    drop(client);
    pooler.finish();
}

fn kill_backend(cluster: &Cluster, pid: &str) {
    cluster.sql(&format!("select pg_terminate_backend({pid})"));
    eventually("the backend is gone", Duration::from_secs(5), || {
        cluster.sql(&format!("select 1 from pg_stat_activity where pid = {pid}")).is_empty()
    });
}

/// S30: backends killed at random under load: each kill hurts at most one client, and the ledger is right.
#[test]
fn s30_backend_termination() {
    let cluster = Cluster::shared();
    let (user, ledger) = (cluster.user("user"), cluster.user("other"));
    let mark = cluster.mark();
    let pooler = Plan::new(cluster).shards(2).max_connections(8).start();
    let book = Ledger::new(cluster, &ledger, pick(10, 100));
    let (entries, kills) = book.run(&pooler, || kill_at_random(cluster, &ledger));
    let written = book.check(&entries);
    let errors: usize = entries.iter().map(|entry| entry.faults.len()).sum();
    eprintln!("s30: {written} transactions, {kills} kills, {errors} errors: {:?}", codes(&entries));
    assert_eq!(kills, pick(30, 500));
    assert!(errors <= kills, "{errors} errors for {kills} kills");
    for fault in entries.iter().flat_map(|entry| &entry.faults) {
        let code = fault.code();
        let known = code == "57P01" || code == "08006" || !Target::is_pgpinion();
        assert!(known && !fault.is_timeout(), "a killed backend's client got {fault}");
    }
    // Idle ones alone: no error at all.
    if !Target::is_direct() {
        let mut clients: Vec<Client> = (0..4).map(|_| pooler.client(&user)).collect();
        let mut kills = 0;
        for _ in 0..pick(20, 60) {
            for client in &mut clients {
                client.query("select 1").expect("a living server");
            }
            for pid in cluster.backends(&user) {
                kill_backend(cluster, &pid.to_string());
                kills += 1;
            }
        }
        eprintln!("s30: {kills} kills of idle ones, no error");
    }
    cluster.assert_log_clean(mark, &ledger, &[]);
    pooler.finish();
}

/// S30: the client of a killed backend is told at once, whether it waits for an answer or for nothing.
#[test]
fn s30_who_is_affected_is_told_at_once() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).shards(2).max_connections(4).start();
    let mut slowest = Duration::ZERO;
    for active in [false, true].repeat(pick(5, 50)) {
        let mut client = pooler.client(&user);
        client.query("begin").expect("a server");
        let pid = client.query("select pg_backend_pid()").expect("a server").value();
        if active {
            client.send(&Frames::new().query("select pg_sleep(60)").0).expect("open");
            eventually("it sleeps", Duration::from_secs(5), || {
                cluster.value(&format!("select state from pg_stat_activity where pid = {pid}")) == "active"
            });
        }
        let start = Instant::now();
        cluster.sql(&format!("select pg_terminate_backend({pid})"));
        let told = client.read_to_end(Duration::from_secs(5)).expect("a reason");
        slowest = slowest.max(start.elapsed());
        assert!(told.code == "57P01" || !Target::is_pgpinion(), "{told}");
    }
    eprintln!("s30: told after {slowest:?} at most");
    assert!(slowest < seconds(1.0, 0.2), "told after {slowest:?}");
    pooler.finish();
}

/// Ends backends of `user`, idle, in a transaction and active ones in turn, as far as there are such. How many.
fn kill_at_random(cluster: &Cluster, user: &str) -> usize {
    let mut random = Random::new(30);
    let mut kills = 0;
    let end = Instant::now() + seconds(15.0, 300.0);
    while kills < pick(30, 500) && Instant::now() < end {
        let state = random.pick(&["idle", "idle in transaction", "active"]);
        let killed = cluster.sql(&format!(
            "select pg_terminate_backend(pid) from (select pid from pg_stat_activity where usename = '{user}'
             and backend_type = 'client backend' order by state <> '{state}', random() limit 1) one"
        ));
        kills += killed.len();
        sleep(seconds(0.04, 0.2));
    }
    kills
}

/// S32: the whole server dies at once, again and again: nobody hangs, nobody gets a foreign reply, service resumes.
#[test]
fn s32_immediate_restarts_under_load() {
    let cluster = Cluster::private(&[("restart_after_crash", "on")]);
    let user = cluster.user("user");
    let pooler = Plan::new(&cluster).shards(2).max_connections(5).set("query_wait_timeout", 10).start();
    let crowd = Crowd::start(pick(12, 50), &pooler.address, &user, Habit::FULL);
    for _ in 0..pick(3, 5) {
        sleep(seconds(0.5, 5.0));
        cluster.stop(Signal::SIGQUIT);
        sleep(seconds(0.3, 1.0));
        cluster.start();
        let start = Instant::now();
        assert_resumes(&pooler, &user, Duration::from_secs(3));
        eprintln!("s32: service resumes {:?} after PostgreSQL", start.elapsed());
    }
    sleep(Duration::from_millis(300));
    let mut tally = crowd.finish();
    eprintln!("s32: {}", tally.describe());
    tally.assert_no_hang();
    assert!(tally.requests > 50, "only {} requests", tally.requests);
    pooler.finish();
}

/// S31: fast restarts: what was acknowledged is there, exactly once.
#[test]
fn s31_fast_restarts_lose_nothing() {
    let cluster = Cluster::private(&[]);
    let user = cluster.user("user");
    let pooler = Plan::new(&cluster).shards(2).max_connections(5).set("query_wait_timeout", 10).start();
    let book = Ledger::new(&cluster, &user, pick(12, 200));
    let (entries, mut recoveries) = book.run(&pooler, || {
        let recoveries: Vec<f64> = (0..pick(3, 20)).map(|_| restart_once(&cluster, &book)).collect();
        assert_resumes(&pooler, &user, Duration::from_secs(3));
        sleep(Duration::from_millis(300));
        recoveries
    });
    let written = book.check(&entries);
    recoveries.sort_by(f64::total_cmp);
    eprintln!(
        "s31: {written} transactions; errors {:?}; throughput after / before {recoveries:.2?}",
        codes(&entries)
    );
    if is_long() {
        assert!(recoveries[recoveries.len() / 2] >= 0.9, "throughput comes back to {recoveries:.2?}");
        assert!(!codes(&entries).contains_key("57P03"), "who may wait was told of the start");
    }
    assert!(
        entries.iter().all(|entry| entry.faults.iter().all(|fault| !fault.is_timeout())),
        "somebody hung"
    );
    assert!(entries.iter().all(|entry| entry.acknowledged.len() > 5), "somebody was left out");
    pooler.finish();
}

/// A fast restart after a while of calm. What is written per second after it, by what was before.
fn restart_once(cluster: &Cluster, book: &Ledger) -> f64 {
    let calm = seconds(0.7, 12.0);
    sleep(calm / 2);
    let before = book.rate(calm / 2);
    cluster.restart(Signal::SIGINT);
    if is_long() {
        sleep(Duration::from_secs(2));
    }
    book.rate(seconds(0.2, 3.0)) / before
}

/// What the writers were told, by SQLSTATE; a connection lost without a word has none.
fn codes(entries: &[Entry]) -> BTreeMap<String, usize> {
    let mut codes = BTreeMap::new();
    for fault in entries.iter().flat_map(|entry| &entry.faults) {
        *codes.entry(fault.code().to_owned()).or_default() += 1;
    }
    codes
}

fn assert_resumes(pooler: &Pooler, user: &str, limit: Duration) {
    eventually("service resumes", limit, || {
        pooler
            .try_client(user)
            .and_then(|mut client| client.query("select 1"))
            .is_ok_and(|reply| reply.code() == "")
    });
}

/// O3: clients that insert numbered rows, two at a time in a transaction, and remember what they were told.
#[derive(Debug)]
struct Ledger<'a> {
    cluster: &'a Cluster,
    user: String,
    table: String,
    clients: usize,
    /// Transactions of all clients so far.
    written: AtomicU64,
}

#[derive(Debug, Default)]
struct Entry {
    client: usize,
    acknowledged: HashSet<u64>,
    attempted: u64,
    faults: Vec<Fault>,
}

impl<'a> Ledger<'a> {
    fn new(cluster: &'a Cluster, user: &str, clients: usize) -> Self {
        let table = format!("ledger_{user}");
        cluster.sql(&format!(
            "create table {table} (client int, seq int, half int, primary key (client, seq, half));
             grant all on {table} to public"
        ));
        Self { cluster, user: user.to_owned(), table, clients, written: AtomicU64::new(0) }
    }

    /// Transactions per second, measured over `time`.
    fn rate(&self, time: Duration) -> f64 {
        let (before, start) = (self.written.load(Ordering::Relaxed), Instant::now());
        sleep(time);
        (self.written.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64()
    }

    /// Clients write while `event` runs.
    fn run<T>(&self, pooler: &Pooler, event: impl FnOnce() -> T) -> (Vec<Entry>, T) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..self.clients)
                .map(|number| {
                    let stop = &stop;
                    scope.spawn(move || self.write(number, &pooler.address, stop))
                })
                .collect();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(event));
            stop.store(true, Ordering::Relaxed);
            let entries = writers.into_iter().map(|writer| writer.join().expect("a writer")).collect();
            (entries, outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    fn write(&self, number: usize, address: &Address, stop: &AtomicBool) -> Entry {
        let mut entry = Entry { client: number, ..Entry::default() };
        let mut kept = None;
        while !stop.load(Ordering::Relaxed) {
            entry.attempted += 1;
            let seq = entry.attempted;
            let client = match kept.take() {
                Some(client) => Ok(client),
                None => Client::connect(address, &login(&self.user)),
            };
            match client.and_then(|mut client| self.transact(&mut client, number, seq).map(|()| client)) {
                Ok(client) => {
                    entry.acknowledged.insert(seq);
                    self.written.fetch_add(1, Ordering::Relaxed);
                    kept = Some(client);
                }
                Err(fault) => {
                    entry.faults.push(fault);
                    sleep(Duration::from_millis(20));
                }
            }
        }
        entry
    }

    fn transact(&self, client: &mut Client, number: usize, seq: u64) -> Result<(), Fault> {
        let insert = |half: u8| format!("insert into {} values ({number}, {seq}, {half})", self.table);
        let statements = match seq % 3 {
            0 => vec![format!("{}; {}", insert(0), insert(1))],
            1 => vec!["begin".to_owned(), insert(0), insert(1), "commit".to_owned()],
            _ => {
                let frames = Frames::new().unnamed(&insert(0), &[]).unnamed(&insert(1), &[]).sync();
                client.send(&frames.0)?;
                return failed(client.collect()?.errors);
            }
        };
        for statement in statements {
            let reply = client.query(&statement)?;
            failed(reply.errors)?;
            // A COMMIT that did not is answered ROLLBACK.
            assert!(!reply.commands.contains(&"ROLLBACK".to_owned()), "a lost transaction without an error");
        }
        Ok(())
    }

    /// Acknowledged means there, twice; there means acknowledged or in doubt, never by halves. How many there are.
    fn check(&self, entries: &[Entry]) -> usize {
        let acknowledged: usize = entries.iter().map(|entry| entry.acknowledged.len()).sum();
        assert!(acknowledged > 0, "nothing was written");
        let rows =
            self.cluster.sql(&format!("select client, seq, count(*) from {} group by 1, 2", self.table));
        let mut found = HashSet::new();
        for row in rows {
            assert_eq!(row[2], "2", "half a transaction: {row:?}");
            found.insert((row[0].parse().expect("client"), row[1].parse().expect("seq")));
        }
        for entry in entries {
            for seq in &entry.acknowledged {
                assert!(found.contains(&(entry.client, *seq)), "lost: {} of client {}", seq, entry.client);
            }
            let own = found.iter().filter(|(client, _)| *client == entry.client).count();
            let doubtful = own - entry.acknowledged.len();
            assert!(doubtful <= entry.faults.len(), "{doubtful} rows without an acknowledgement or an error");
        }
        acknowledged
    }
}

fn failed(errors: Vec<crate::wire::PgError>) -> Result<(), Fault> {
    match errors.into_iter().next() {
        Some(error) => Err(Fault::Closed(Some(error))),
        None => Ok(()),
    }
}

/// S36: the line to the client or to PostgreSQL is cut after every so many bytes, with or without garbage behind; no
/// partial reply counts as whole.
#[test]
fn s36_cuts_on_both_sides() {
    let cluster = Cluster::shared();
    let (user, good) = (cluster.user("user"), cluster.user("good"));
    for server_side in [false, true] {
        if server_side && Target::is_direct() {
            continue;
        }
        let line = Proxy::to_port(cluster.port());
        let port = if server_side { line.port() } else { cluster.port() };
        let wait = if server_side { 1 } else { 5 };
        let pooler = Plan::to_port(port).max_connections(2).set("query_wait_timeout", wait).start();
        let Address::Tcp(address) = pooler.address else { panic!("a TCP pooler") };
        let front = Proxy::to_port(address.port());
        let (cuts, door) =
            if server_side { (&line, pooler.address.clone()) } else { (&front, Address::tcp(front.port())) };
        let calm = Crowd::canary(&pooler.address, &good);
        let mut whole = 0;
        for cut in (0..600).step_by(pick(if server_side { 19 } else { 3 }, 1)) {
            for down in [false, true] {
                cuts.set(Weather {
                    up_bytes: if down { usize::MAX } else { cut },
                    down_bytes: if down { cut } else { usize::MAX },
                    // Our own clients and PostgreSQL are spared, pgpinion is not; and half of the cuts are clean.
                    garbage: down == server_side && cut % 2 == 0,
                    ..Weather::FAIR
                });
                whole += usize::from(ask_once(&door, &user));
                if server_side {
                    // The next one is to meet the weather too, not a connection from before it.
                    cuts.set(Weather::FAIR);
                    cuts.cut();
                }
            }
        }
        let mut tally = calm.finish();
        tally.assert_no_hang();
        eprintln!(
            "s36, server side {server_side}: {whole} whole replies; the other user: {}",
            tally.describe()
        );
        cuts.set(Weather::FAIR);
        cuts.cut();
        assert_resumes(&pooler, &user, Duration::from_secs(3));
        if !server_side {
            tally.assert_faultless();
        }
        pooler.finish();
    }
}

/// A login and a request; either may fail, but what succeeds is right. Whether it did.
fn ask_once(address: &Address, user: &str) -> bool {
    let outcome = Client::connect(address, &login(user)).and_then(|mut client| {
        let token = client.token();
        let reply = client.extended("select $1::text, repeat('y', 500)", &[&token])?;
        if reply.errors.is_empty() {
            assert_eq!(reply.sequence, "12TDCZ");
            assert_eq!(reply.text_rows(), [[token, "y".repeat(500)]]);
        }
        Ok(reply.errors.is_empty())
    });
    match outcome {
        Ok(whole) => whole,
        Err(fault) => {
            assert!(!fault.is_timeout(), "hangs on a cut line: {fault}");
            false
        }
    }
}

/// S36: one byte per segment, both ways, on either side, is only slow.
#[test]
fn s36_dribble_on_both_sides() {
    only_slow(Pace::Dribble, seconds(2.0, 60.0));
}

/// S36: so are waits of up to 200 ms and 64 KB per second.
#[test]
fn s36_jitter_and_little_bandwidth_on_both_sides() {
    only_slow(Pace::Jitter, seconds(2.0, 60.0));
    only_slow(Pace::Slow, seconds(2.0, 60.0));
}

fn only_slow(pace: Pace, time: Duration) {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let line = Proxy::to_port(cluster.port());
    line.set(Weather::paced(pace));
    let port = if Target::is_direct() { cluster.port() } else { line.port() };
    let pooler = Plan::to_port(port).max_connections(3).start();
    let Address::Tcp(address) = pooler.address else { panic!("a TCP pooler") };
    let front = Proxy::to_port(address.port());
    // PgBouncer 1.18 does not take a startup message in parts.
    front.set(if Target::current() == Target::Pgbouncer { Weather::FAIR } else { Weather::paced(pace) });
    let crowd = Crowd::start(6, &Address::tcp(front.port()), &user, Habit::LIGHT.reconnecting_after(20));
    sleep(time);
    let mut tally = crowd.finish();
    tally.assert_faultless();
    eprintln!("s36 {pace:?}: {}", tally.describe());
    drop((front, line));
    pooler.finish();
}

/// S31: however many wait, a server that is not ready is not stormed.
#[test]
fn s31_a_server_that_refuses_is_not_stormed() {
    if Target::is_direct() {
        return;
    }
    let times = Arc::new(Mutex::new(Vec::new()));
    let told = times.clone();
    let refusing = FakeServer::start(move |mut connection| {
        told.lock().expect("lock").push(Instant::now());
        if connection.read_startup() {
            connection.send(&fake_server::error("FATAL", "57P03", "the database system is starting up"));
        }
    });
    let patience = pick(2, 10);
    let pooler = Plan::to_port(refusing.port()).shards(2).set("query_wait_timeout", patience).start();
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let fault = match pooler.try_client("user_0") {
                    Ok(mut client) => {
                        client.query("select 1").map(|reply| reply.sequence).expect_err("no server")
                    }
                    Err(fault) => fault,
                };
                assert!(!fault.is_timeout(), "{fault}");
            });
        }
    });
    let mut times = times.lock().expect("lock").clone();
    times.sort_unstable();
    let second = Duration::from_secs(1);
    let within = |start: &Instant| times.iter().filter(|&at| (*start..*start + second).contains(at)).count();
    let most = times.iter().map(within).max().unwrap_or(0);
    eprintln!("s31: {} attempts in {patience} s, {most} in one of them", times.len());
    assert!((1..=20).contains(&most), "{most} attempts in a second");
    pooler.finish();
}

/// E3: a server that never answers a connection attempt costs what the timeout says, however busy the loop is.
#[test]
fn e3_a_black_hole_is_noticed_on_time() {
    if !Target::is_pgpinion() {
        return;
    }
    let hole = BlackHole::dig();
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster)
        .set("server_connect_timeout", 2)
        .set("query_wait_timeout", 3)
        .set("max_client_conn", 2000)
        .endpoint("hole", hole.address.port(), "lost")
        .start_alone();
    let crowd = Crowd::start(pick(20, 1000), &pooler.address, &user, Habit::LIGHT);
    crowd.live(Duration::ZERO, pick(100, 50_000));
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let parameters = [("user", user.as_str()), ("database", "lost")];
            let fault = match Client::connect(&pooler.address, &parameters) {
                Ok(mut client) => {
                    client.query("select 1").map(|reply| reply.sequence).expect_err("a black hole")
                }
                Err(fault) => fault,
            };
            let after = start.elapsed();
            assert!(!fault.is_timeout() && !fault.code().is_empty(), "{fault}");
            assert!(after < Duration::from_millis(3500), "{after:?}: {fault}");
        });
        let port = format!(":{}", hole.address.port());
        let timed_out = |line: &str| {
            line.contains(&port) && ["timeout", "timed out"].iter().any(|word| line.contains(word))
        };
        eventually("the attempt is logged as timed out", Duration::from_secs(4), || {
            pooler.log().lines().any(timed_out)
        });
        let after = start.elapsed();
        eprintln!("e3: a timeout of 2 s took {after:?}");
        let most = pick(2400, 2200);
        assert!((1800..most).contains(&(after.as_millis() as u64)), "a timeout of 2 s took {after:?}");
    });
    crowd.finish().assert_faultless();
    pooler.finish();
}

/// A listener that never accepts and whose backlog is full: the kernel drops what comes.
#[derive(Debug)]
struct BlackHole {
    address: SocketAddr,
    _listener: TcpListener,
    _fillers: Vec<TcpStream>,
}

impl BlackHole {
    fn dig() -> Self {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, listen, socket};
        let socket =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("a port");
        listen(&socket, 0).expect("a listener");
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().expect("bound");
        let mut fillers = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            fillers.push(stream);
            assert!(fillers.len() < 20, "the backlog never fills");
        }
        Self { address, _listener: listener, _fillers: fillers }
    }
}
