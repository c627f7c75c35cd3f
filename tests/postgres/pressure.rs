//! Too much of everything: slow readers, huge values, hogs, full pipes.

use std::io::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::crowd::{Crowd, Habit, Tally};
use crate::pooler::{Plan, Pooler, Target, login};
use crate::wire::{Client, Frames};

/// The most memory a pooler has had, looked at often.
#[derive(Debug)]
struct Memory {
    before: u64,
    most: u64,
}

impl Memory {
    fn of(pooler: &Pooler) -> Self {
        let now = pooler.rss();
        Self { before: now, most: now }
    }

    fn look(&mut self, pooler: &Pooler) {
        self.most = self.most.max(pooler.rss());
    }

    fn assert_grown_less_than(&self, bytes: u64) {
        let grown = self.most.saturating_sub(self.before);
        assert!(grown <= bytes, "{} KB more, {} KB allowed", grown >> 10, bytes >> 10);
    }
}

/// How fast light requests are right now.
fn light_latency(pooler: &Pooler, user: &str, during: impl FnOnce()) -> Tally {
    let crowd = Crowd::start(3, &pooler.address, user, Habit::LIGHT.pausing(Duration::from_millis(2)));
    during();
    let tally = crowd.finish();
    tally.assert_faultless();
    tally
}

/// S41: twenty clients that ask for 50 MB each and hardly read cost bounded memory and nobody's time.
#[test]
fn s41_slow_readers() {
    for mode in ["transaction", "session"] {
        let cluster = Cluster::shared();
        let (user, good) = (cluster.user("user"), cluster.user("good"));
        let pooler = Plan::new(cluster).mode(mode).max_connections(25).start_alone();
        let mut calm = light_latency(&pooler, &good, || sleep(Duration::from_millis(700)));
        let mut memory = Memory::of(&pooler);
        let mut slow: Vec<(Client, usize)> = (0..20).map(|_| (pooler.client(&user), 0)).collect();
        for (client, _) in &mut slow {
            client.query("select 1").expect("a server");
            client.send(&Frames::new().query(LARGE_REPLY).0).expect("open");
        }
        let mut pressed = light_latency(&pooler, &good, || {
            let end = Instant::now() + Duration::from_secs(3);
            while Instant::now() < end {
                for (client, rows) in &mut slow {
                    *rows += usize::from(client.read_past(|_| {}).expect("a message").0 == b'D');
                }
                memory.look(&pooler);
                sleep(Duration::from_millis(100));
            }
        });
        memory.assert_grown_less_than((32 << 20) + 20 * (64 << 10));
        let limit = calm.p99() * 3 + Duration::from_millis(80);
        assert!(pressed.p99() < limit, "good clients' p99 is {:?}, {limit:?} allowed", pressed.p99());
        // Finally read, two of them get all of it; the others leave.
        slow.truncate(2);
        for (client, rows) in &mut slow {
            loop {
                match client.read_past(|_| {}).expect("the rest") {
                    (b'D', length) => *rows += usize::from(length == 1_000_006),
                    (b'Z', _) => break,
                    _ => {}
                }
            }
            assert_eq!(*rows, 50);
            assert_eq!(client.query("select 1").expect("a server").value(), "1");
        }
        drop(slow);
        pooler.finish();
    }
}

/// 50 rows of a megabyte.
const LARGE_REPLY: &str = "select repeat('l', 1000000) from generate_series(1, 50)";

/// S42: a row of 200 MB comes down and a parameter of 100 MB goes up, whole, in little memory.
#[test]
fn s42_huge_values() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(2).start();
    let mut client = pooler.client(&user);
    client.query("select 1").expect("a server");
    let mut memory = Memory::of(&pooler);
    client.send(&Frames::new().query("select repeat('0123456789', 20000000)").0).expect("open");
    loop {
        let mut at = 0;
        let (tag, length) = client
            .read_past(|part| {
                for byte in part {
                    // The row begins with 2 bytes of count and 4 of length; the other messages are short.
                    assert!(
                        at < 1000 || *byte == b'0' + ((at - 6) % 10) as u8,
                        "byte {at} of the row is {byte}"
                    );
                    at += 1;
                }
                if at % (8 << 20) < part.len() {
                    memory.look(&pooler);
                }
            })
            .expect("the row");
        assert!(tag != b'D' || length == 200_000_006, "a row of {length} bytes");
        if tag == b'Z' {
            break;
        }
    }
    memory.assert_grown_less_than(64 << 20);

    let value: Vec<u8> = (0..100 << 20).map(|i: usize| b'a' + (i % 23) as u8).collect();
    let length = (value.len() as u32).to_be_bytes();
    let frames = Frames::new()
        .parse("", "select md5($1::text) || '/' || length($1::text)")
        .frame(b'B', &[&[0, 0, 0, 0, 0, 1], &length, &value, &[0, 0]])
        .execute("", 0)
        .sync();
    for part in frames.0.chunks(4 << 20) {
        client.send(part).expect("open");
        memory.look(&pooler);
    }
    let reply = client.collect().expect("a server");
    let expected = cluster.value(
        "select md5(substr(repeat('abcdefghijklmnopqrstuvw', 4559027), 1, 104857600)) || '/104857600'",
    );
    assert_eq!(reply.value(), expected);
    memory.assert_grown_less_than(64 << 20);
    drop(client);
    pooler.finish();
}

/// S42: as many columns and as many parameters as PostgreSQL allows.
#[test]
fn s42_widest_rows_and_most_parameters() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(2).start();
    let mut client = pooler.client(&user);
    let columns: Vec<String> = (0..1664).map(|i| format!("{i} as column_with_a_long_name_{i}")).collect();
    let reply = client.query(&format!("select {}", columns.join(", "))).expect("a server");
    assert_eq!((reply.sequence.as_str(), reply.rows[0].len(), reply.columns.len()), ("TDCZ", 1664, 1664));
    let parameters: Vec<String> = (0..65_535).map(|i| i.to_string()).collect();
    let borrowed: Vec<&str> = parameters.iter().map(String::as_str).collect();
    let numbered: Vec<String> = (1..=65_535).map(|i| format!("${i}")).collect();
    let statement =
        format!("select count(*), sum(v::int) from unnest(array[{}]::text[]) v", numbered.join(","));
    let reply = client.extended(&statement, &borrowed).expect("a server");
    assert_eq!(reply.text_rows(), [["65535", "2147385345"]]);
    drop(client);
    pooler.finish();
}

/// S48: one client that asks without end and never reads, one that streams COPY at full speed: others still get
/// their turn on the same core.
#[test]
fn s48_loop_hogs() {
    let cluster = Cluster::shared();
    let (user, good) = (cluster.user("user"), cluster.user("good"));
    let pooler = Plan::new(cluster).max_connections(8).start_alone();
    let mut memory = Memory::of(&pooler);
    let mut hog = pooler.client(&user);
    let mut copier = pooler.client(&user);
    hog.query("select 1").expect("a server");
    copier.query("select 1").expect("a server");
    let copying = std::thread::spawn(move || {
        copier.send(
            &Frames::new()
                .query("copy (select repeat('c', 1000) from generate_series(1, 300000)) to stdout")
                .0,
        )?;
        while copier.read_past(|_| {})?.0 != b'Z' {}
        Ok::<_, crate::wire::Fault>(())
    });
    let hogging = std::thread::spawn(move || {
        let mut stream = hog.stream().try_clone().expect("a descriptor");
        stream.set_write_timeout(Duration::from_millis(2500)).expect("own socket");
        let many = Frames::new().query("select 1").0.repeat(10_000);
        for _ in 0..100 {
            if stream.write_all(&many).is_err() {
                break;
            }
        }
        hog.reset();
    });
    let mut pressed = light_latency(&pooler, &good, || {
        for _ in 0..30 {
            sleep(Duration::from_millis(100));
            memory.look(&pooler);
        }
    });
    copying.join().expect("the copier").expect("all rows");
    hogging.join().expect("the hog");
    memory.assert_grown_less_than(32 << 20);
    // Two cores carry PostgreSQL, the clients and the pooler: generous, but no starvation.
    assert!(pressed.p99() < Duration::from_millis(150), "good clients' p99 is {:?}", pressed.p99());
    pooler.finish();
}

/// S49: clients that send everything before they read anything, with small buffers: memory stays bounded, and it ends
/// when they read.
#[test]
fn s49_full_duplex() {
    // PgBouncer 1.18 does not read from a server while it waits to write to it.
    if Target::current() == Target::Pgbouncer {
        return;
    }
    for (shards, buffers) in [(1, Some(64 << 10)), (2, None)] {
        let cluster = Cluster::shared();
        let user = cluster.user("user");
        let pooler = Plan::new(cluster).shards(shards).max_connections(6).start();
        let mut memory = Memory::of(&pooler);
        std::thread::scope(|scope| {
            let duplex: Vec<_> =
                (0..5).map(|_| scope.spawn(|| send_all_then_read(&pooler, &user, buffers))).collect();
            while !duplex.iter().all(|thread| thread.is_finished()) {
                memory.look(&pooler);
                sleep(Duration::from_millis(20));
            }
        });
        memory.assert_grown_less_than(32 << 20);
        pooler.finish();
    }
}

/// 200 requests of 20 KB up and 20 KB down, without reading until everything is sent or the pipe has been full for a
/// while.
fn send_all_then_read(pooler: &Pooler, user: &str, buffers: Option<usize>) {
    let mut client = pooler.client(user);
    if let Some(bytes) = buffers {
        client.stream().set_small_buffers(bytes);
    }
    let tokens: Vec<String> = (0..200).map(|_| client.token()).collect();
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|token| {
            let statement = format!("select $1::text -- {}", "q".repeat(20_000));
            Frames::new().unnamed(&statement, &[&format!("{token}{}", "v".repeat(20_000))]).sync().0
        })
        .collect();
    let mut stream = client.stream().try_clone().expect("a descriptor");
    let writer = std::thread::spawn(move || {
        stream.set_write_timeout(Duration::from_secs(30)).expect("own socket");
        stream.write_all(&bytes).expect("it takes all once its replies are read");
    });
    // The pipe is full in both directions long before this.
    sleep(Duration::from_millis(1500));
    for token in &tokens {
        let reply = client.collect().expect("a reply");
        assert_eq!(reply.sequence, "12TDCZ");
        assert!(reply.value().starts_with(token), "replies out of order");
    }
    writer.join().expect("the writer");
    client.terminate();
}

/// A client that sends a burst and half-closes is answered in full before the end.
#[test]
fn a_half_closed_client_gets_what_it_asked_for_or_a_close() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(1).start();
    for _ in 0..20 {
        let mut client = pooler.client(&user);
        client.send(&Frames::new().query("select pg_sleep(0.01)").0).expect("open");
        client.stream().finish_sending();
        assert!(client.is_closed_within(Duration::from_secs(5)), "a half-closed client stays");
    }
    let mut next = Client::connect(&pooler.address, &login(&user)).expect("a login");
    assert_eq!(next.query("select 1").expect("the slot is free").value(), "1");
    drop(next);
    cluster.assert_quiet(&user, if Target::is_direct() { 30 } else { 1 });
    pooler.finish();
}
