//! Too much of everything: slow readers, huge values, hogs, full pipes.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::crowd::{Crowd, Habit, Tally};
use crate::pooler::{Memory, Plan, Pooler, Target, login};
use crate::scale::{pick, seconds};
use crate::wire::{Client, Fault, Frames};

/// How fast light requests are right now.
fn light_latency(pooler: &Pooler, user: &str, during: impl FnOnce()) -> Tally {
    let habit = Habit::LIGHT.pausing(Duration::from_millis(pick(2, 50)));
    let crowd = Crowd::start(pick(3, 50), &pooler.address, user, habit);
    during();
    let tally = crowd.finish();
    tally.assert_faultless();
    tally
}

/// S41: clients that ask for much and hardly read cost bounded memory and nobody's time. Twenty with 50 MB each, or a
/// hundred with 300 MB.
#[test]
fn s41_slow_readers() {
    for mode in ["transaction", "session"] {
        let cluster = Cluster::shared();
        let (user, good) = (cluster.user("user"), cluster.user("good"));
        let pooler = Plan::new(cluster).mode(mode).max_connections(pick(25, 160)).start_alone();
        let mut calm = light_latency(&pooler, &good, || sleep(seconds(0.7, 20.0)));
        let mut memory = Memory::of(&pooler);
        let mut slow: Vec<(Client, usize)> = (0..pick(20, 100)).map(|_| (pooler.client(&user), 0)).collect();
        let (rows, row_bytes) = pick((50, 1_000_000), (30_000, 10_000));
        for (client, _) in &mut slow {
            client.query("select 1").expect("a server");
            client
                .send(
                    &Frames::new()
                        .query(&format!("select repeat('l', {row_bytes}) from generate_series(1, {rows})"))
                        .0,
                )
                .expect("open");
        }
        let mut pressed = light_latency(&pooler, &good, || {
            let end = Instant::now() + seconds(3.0, 120.0);
            while Instant::now() < end {
                for (client, seen) in &mut slow {
                    *seen += usize::from(client.read_past(|_| {}).expect("a message").0 == b'D');
                }
                memory.look(&pooler);
                sleep(seconds(0.1, 1.0));
            }
        });
        eprintln!("s41 {mode}: calm {}", calm.describe());
        eprintln!("s41 {mode}: pressed {}, {} KB more", pressed.describe(), memory.grown() >> 10);
        memory.assert_grown_less_than((32 << 20) + slow.len() as u64 * (64 << 10));
        let limit = calm.p99() * 3 + Duration::from_millis(pick(80, 10));
        assert!(pressed.p99() < limit, "good clients' p99 is {:?}, {limit:?} allowed", pressed.p99());
        // Finally read, two of them get all of it; the others leave.
        slow.truncate(2);
        for (client, seen) in &mut slow {
            loop {
                match client.read_past(|_| {}).expect("the rest") {
                    (b'D', length) => *seen += usize::from(length == row_bytes + 6),
                    (b'Z', _) => break,
                    _ => {}
                }
            }
            assert_eq!(*seen, rows);
            assert_eq!(client.query("select 1").expect("a server").value(), "1");
        }
        drop(slow);
        pooler.finish();
    }
}

/// S42: a row of 200 MB comes down and a parameter of 100 MB goes up, whole, in little memory; or two rows of 500 MB and
/// four parameters of 200 MB at once.
#[test]
fn s42_huge_values() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(4).start();
    let mut warm = pooler.client(&user);
    warm.query("select 1").expect("a server");
    let row_bytes = pick(200_000_000, 500_000_000);
    let grown = grown_while(&pooler, || at_once(pick(1, 2), || read_row(&pooler, &user, row_bytes)));
    assert!(grown < 32 << 20, "{} KB more for rows of {row_bytes} bytes", grown >> 10);
    let value: Vec<u8> = (0..pick(100, 200) << 20).map(|i: usize| b'a' + (i % 23) as u8).collect();
    let again = grown_while(&pooler, || at_once(pick(1, 4), || send_parameter(&pooler, &user, &value)));
    assert!(again < 32 << 20, "{} KB more for parameters of {} bytes", again >> 10, value.len());
    eprintln!("s42: {} KB more for rows, {} KB for parameters", grown >> 10, again >> 10);
    drop(warm);
    pooler.finish();
}

/// How much memory `act` costs the pooler.
fn grown_while(pooler: &Pooler, act: impl FnOnce() + Send) -> u64 {
    let mut memory = Memory::of(pooler);
    std::thread::scope(|scope| {
        let acting = scope.spawn(act);
        while !acting.is_finished() {
            memory.look(pooler);
            sleep(Duration::from_millis(5));
        }
    });
    memory.grown()
}

/// The same act by so many at once.
fn at_once(count: usize, act: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(&act);
        }
    });
}

/// One row of one value, looked at byte for byte.
fn read_row(pooler: &Pooler, user: &str, bytes: usize) {
    let mut client = pooler.client(user);
    client.set_timeout(seconds(20.0, 300.0));
    client
        .send(&Frames::new().query(&format!("select repeat('0123456789', {})", bytes / 10)).0)
        .expect("open");
    loop {
        let mut at = 0;
        let see = |part: &[u8]| {
            for byte in part {
                // The row begins with 2 bytes of count and 4 of length; the other messages are short.
                assert!(at < 1000 || *byte == b'0' + ((at - 6) % 10) as u8, "byte {at} of the row is {byte}");
                at += 1;
            }
        };
        let (tag, length) = client.read_past(see).expect("the row");
        assert!(tag != b'D' || length == bytes + 6, "a row of {length} bytes");
        if tag == b'Z' {
            break;
        }
    }
}

/// One parameter, of which PostgreSQL tells the digest.
fn send_parameter(pooler: &Pooler, user: &str, value: &[u8]) {
    let mut client = pooler.client(user);
    client.set_timeout(seconds(20.0, 300.0));
    let head = [&b"\0\0\0\0\0\x01"[..], &(value.len() as u32).to_be_bytes()].concat();
    let bind = [b"B", &((4 + head.len() + value.len() + 2) as u32).to_be_bytes()[..], &head].concat();
    let parse = Frames::new().parse("", "select md5($1::text) || '/' || length($1::text)");
    client.send(&[parse.0, bind].concat()).expect("open");
    for part in value.chunks(4 << 20) {
        client.send(part).expect("open");
    }
    client.send(&[&[0, 0][..], &Frames::new().execute("", 0).sync().0].concat()).expect("open");
    let reply = client.collect().expect("a server");
    let expected = format!(
        "select md5(substr(repeat('abcdefghijklmnopqrstuvw', {0} / 23 + 1), 1, {0})) || '/{0}'",
        value.len()
    );
    assert_eq!(reply.value(), Cluster::shared().value(&expected));
}

/// A COPY of 2 GB (in the usual run 20 MB) to a client that reads 10 MB a second, row by row, costs next to no memory
/// and nobody's time.
#[test]
fn a_slow_reader_of_a_large_copy_costs_no_memory() {
    let cluster = Cluster::shared();
    let (user, canary) = (cluster.user("user"), cluster.user("canary"));
    let pooler = Plan::new(cluster).start_alone();
    let calm = Crowd::canary(&pooler.address, &canary);
    let mut reader = pooler.client(&user);
    reader.query("select 1").expect("a server");
    let rows: usize = pick(20_000, 2_147_484);
    let grown = grown_while(&pooler, || read_slowly(&mut reader, rows, 10e6));
    let mut tally = calm.finish();
    tally.assert_faultless();
    eprintln!("copy of {} MB at 10 MB/s: {} KB more; canary {}", rows / 1000, grown >> 10, tally.describe());
    assert!(grown < 32 << 20, "{} KB more", grown >> 10);
    drop(reader);
    pooler.finish();
}

/// A COPY out of numbered rows of a thousand bytes, no faster than so many bytes per second.
fn read_slowly(client: &mut Client, rows: usize, bytes_per_second: f64) {
    let statement =
        format!("copy (select lpad(i::text, 1000, 'x') from generate_series(1, {rows}) i) to stdout");
    client.send(&Frames::new().query(&statement).0).expect("open");
    let (start, mut bytes, mut seen) = (Instant::now(), 0.0, 0);
    loop {
        let mut row = Vec::with_capacity(1001);
        let (tag, length) = client.read_past(|part| row.extend_from_slice(part)).expect("rows");
        match tag {
            b'd' => {
                seen += 1;
                let number = format!("{seen}\n");
                let right =
                    length == 1001 && row.ends_with(number.as_bytes()) && row[1000 - number.len()] == b'x';
                assert!(right, "row {seen}: {}", String::from_utf8_lossy(&row));
            }
            b'Z' => break,
            _ => {}
        }
        bytes += length as f64;
        sleep(Duration::from_secs_f64(bytes / bytes_per_second).saturating_sub(start.elapsed()));
    }
    assert_eq!(seen, rows);
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
    let stop = AtomicBool::new(false);
    let mut pressed = std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..pick(1, usize::MAX) {
                copy_out(&mut copier).expect("all rows");
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        scope.spawn(|| {
            ask_and_never_read(hog);
            while !stop.load(Ordering::Relaxed) {
                ask_and_never_read(pooler.client(&user));
            }
        });
        let pressed = light_latency(&pooler, &good, || {
            let end = Instant::now() + seconds(3.0, 60.0);
            while Instant::now() < end {
                sleep(Duration::from_millis(100));
                memory.look(&pooler);
            }
        });
        stop.store(true, Ordering::Relaxed);
        pressed
    });
    drop(copier);
    eprintln!("s48: {}, {} KB more", pressed.describe(), memory.grown() >> 10);
    memory.assert_grown_less_than(32 << 20);
    // Two cores carry PostgreSQL, the clients and the pooler: generous, but no starvation.
    let limit = Duration::from_millis(pick(150, 20));
    assert!(pressed.p99() < limit, "good clients' p99 is {:?}", pressed.p99());
    pooler.finish();
}

/// 300 MB, as fast as they come.
fn copy_out(client: &mut Client) -> Result<(), Fault> {
    let rows = "copy (select repeat('c', 1000) from generate_series(1, 300000)) to stdout";
    client.send(&Frames::new().query(rows).0)?;
    while client.read_past(|_| {})?.0 != b'Z' {}
    Ok(())
}

/// Up to a million requests, until the pipe has been full for a while.
fn ask_and_never_read(hog: Client) {
    let mut stream = hog.stream().try_clone().expect("a descriptor");
    stream.set_write_timeout(Duration::from_millis(2500)).expect("own socket");
    let many = Frames::new().query("select 1").0.repeat(10_000);
    let _full = (0..100).find(|_| stream.write_all(&many).is_err());
    hog.reset();
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
        let pooler = Plan::new(cluster).shards(shards).max_connections(pick(6, 22)).start();
        let start = Instant::now();
        let grown = grown_while(&pooler, || {
            at_once(pick(5, 20), || send_all_then_read(&pooler, &user, buffers));
        });
        eprintln!("s49 {shards} shards: {:?}, {} KB more", start.elapsed(), grown >> 10);
        assert!(grown < 32 << 20, "{} KB more", grown >> 10);
        pooler.finish();
    }
}

/// Requests of 40 KB up and 20 KB down, or in the long form 100 MB up and as much down; without reading until everything
/// is sent or the pipe has been full for a while.
fn send_all_then_read(pooler: &Pooler, user: &str, buffers: Option<usize>) {
    let mut client = pooler.client(user);
    client.set_timeout(seconds(20.0, 120.0));
    let (requests, comment_bytes, value_bytes) = pick((200, 20_000, 20_000), (2500, 0, 40_000));
    if let Some(bytes) = buffers {
        client.stream().set_small_buffers(bytes);
    }
    let tokens: Vec<String> = (0..requests).map(|_| client.token()).collect();
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|token| {
            let statement = format!("select $1::text -- {}", "q".repeat(comment_bytes));
            Frames::new().unnamed(&statement, &[&format!("{token}{}", "v".repeat(value_bytes))]).sync().0
        })
        .collect();
    let mut stream = client.stream().try_clone().expect("a descriptor");
    let writer = std::thread::spawn(move || {
        stream.set_write_timeout(seconds(30.0, 300.0)).expect("own socket");
        stream.write_all(&bytes).expect("it takes all once its replies are read");
    });
    // The pipe is full in both directions long before this.
    sleep(seconds(1.5, 15.0));
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
