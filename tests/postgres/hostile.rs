//! Clients that mean harm, or do not know better.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::crowd::{Crowd, Habit};
use crate::pooler::{Memory, Plan, Pooler, Target, login};
use crate::process::{self, eventually};
use crate::random::Random;
use crate::scale::{is_long, pick, seconds};
use crate::wire::{Address, Client, Frames, PROTOCOL_3, packet, startup};

/// Where in its life a client starts to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    BeforeStartup,
    Idle,
    InTransaction,
    InCopy,
    InBatch,
}

const STATES: [State; 5] =
    [State::BeforeStartup, State::Idle, State::InTransaction, State::InCopy, State::InBatch];

/// S15: malformed bytes in every state: the offender is gone soon, and nobody else notices.
#[test]
fn s15_malformed_corpus() {
    let cases = corpus();
    assert!(cases.len() >= 120, "{} cases", cases.len());
    for shards in [1, 2] {
        offend(shards, cases.iter().flat_map(|case| STATES.map(|state| (state, case.clone()))).collect());
    }
}

/// S15: the same with bytes from a seed: noise, and real messages with a few bytes changed.
#[test]
fn s15_random_corpus() {
    let mut random = Random::new(15);
    let valid = corpus_seeds();
    let mut offences = Vec::new();
    for number in 0..pick(2500, 200_000) {
        let bytes = if number % 3 == 0 {
            let count = random.between(1, 300) as usize;
            random.bytes(count)
        } else {
            let mut bytes = random.pick(&valid).clone();
            for _ in 0..random.between(1, 4) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.next() as u8;
            }
            let end = random.between(1, bytes.len() as u64) as usize;
            bytes.truncate(end.max(1));
            bytes
        };
        offences.push((*random.pick(&STATES), bytes));
    }
    offend(2, offences);
}

fn offend(shards: usize, offences: Vec<(State, Vec<u8>)>) {
    let cluster = Cluster::shared();
    let (user, canary) = (cluster.user("user"), cluster.user("canary"));
    let mark = cluster.mark();
    let pooler = Plan::new(cluster).shards(shards).max_connections(8).set("client_login_timeout", 3).start();
    let habit = Habit::LIGHT.pausing(Duration::from_millis(50));
    let calm = Crowd::start(pick(1, 50), &pooler.address, &canary, habit);
    let before = pooler.rss();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..pick(6, 12) {
            scope.spawn(|| {
                while let Some((state, bytes)) = offences.get(next.fetch_add(1, Ordering::Relaxed)) {
                    assert!(is_gone_after(&pooler, &user, *state, bytes), "still there: {state:?} {bytes:?}");
                }
            });
        }
    });
    let mut tally = calm.finish();
    tally.assert_faultless();
    let grown = pooler.rss().saturating_sub(before);
    let count = offences.len();
    eprintln!(
        "s15 {shards} shards: {count} offences, {} KB more; the good: {}",
        grown >> 10,
        tally.describe()
    );
    assert!(tally.p99() < Duration::from_millis(pick(500, 100)), "the canary's p99 is {:?}", tally.p99());
    assert!(grown < 64 << 20, "{} MB for nonsense", grown >> 20);
    cluster.assert_log_clean(
        mark,
        &canary,
        &["invalid length of startup packet", "incomplete startup packet"],
    );
    let mut client = pooler.client(&user);
    assert_eq!(client.query("select 1").expect("served as ever").value(), "1");
    drop(client);
    pooler.finish();
}

/// Sends the bytes, then says that no more will come: within ten seconds the other side has closed too.
fn is_gone_after(pooler: &Pooler, user: &str, state: State, bytes: &[u8]) -> bool {
    let mut client = misbehave(&pooler.address, user, state, bytes);
    client.stream().finish_sending();
    client.is_closed_within(Duration::from_secs(10))
}

/// A client that has come to this state and sent these bytes.
fn misbehave(address: &Address, user: &str, state: State, bytes: &[u8]) -> Client {
    let mut client = Client::dial(address).expect("it accepts");
    client.set_lenient();
    if state != State::BeforeStartup {
        client.log_in(&login(user)).expect("a login");
    }
    let preparation = match state {
        State::BeforeStartup | State::Idle => None,
        State::InTransaction => Some(("begin", b'Z')),
        State::InCopy => Some(("begin; create temp table t (a text); copy t from stdin", b'G')),
        State::InBatch => None,
    };
    if let Some((statement, last)) = preparation {
        client.send(&Frames::new().query(statement).0).expect("open");
        while client.read().expect("a server").tag != last {}
    }
    if state == State::InBatch {
        client.send(&Frames::new().unnamed("select 1", &[]).0).expect("open");
    }
    // It may be closed in our face while we speak.
    let _ = client.stream().try_clone().expect("a descriptor").write_all(bytes);
    client
}

/// S15: what PostgreSQL makes of it, pgpinion makes of it too, in nearly all cases; the others are printed.
#[test]
fn s15_verdicts_are_those_of_postgresql() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::private(&[]);
    let user = cluster.user("user");
    let pooler = Plan::new(&cluster).max_connections(30).start();
    let all = corpus();
    let cases: Vec<_> = all.iter().step_by(pick(10, 1)).flat_map(|case| STATES.map(|s| (s, case))).collect();
    let (next, same) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                while let Some(&(state, case)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let [expected, found] = [&cluster.address(), &pooler.address]
                        .map(|address| verdict(misbehave(address, &user, state, case)));
                    if expected.0 == found.0 {
                        same.fetch_add(1, Ordering::Relaxed);
                    } else {
                        let bytes = case[..case.len().min(24)].escape_ascii();
                        eprintln!("s15: {state:?} {bytes}: PostgreSQL {expected:?}, pgpinion {found:?}");
                    }
                }
            });
        }
    });
    let (same, all) = (same.into_inner(), cases.len());
    eprintln!("s15: {same} of {all} verdicts are PostgreSQL's");
    assert!(same * 100 >= all * 95, "{same} of {all}");
    pooler.finish();
}

/// What a client is at that has gone on for a while, and the last error, for a person to read.
fn verdict(mut client: Client) -> (Verdict, String) {
    let (bytes, closed) = client.bytes_within(Duration::from_millis(500));
    let text = String::from_utf8_lossy(&bytes);
    let said = |severity| text.rfind(severity).map(|at| text[at + 1..].replace('\0', " "));
    let last = said("SFATAL\0").or_else(|| said("SERROR\0"));
    let verdict = match &last {
        _ if closed => Verdict::Gone,
        Some(_) => Verdict::Failed,
        None => Verdict::Heard,
    };
    (verdict, last.unwrap_or_default())
}

/// The classes of ends that a client can tell apart. That PostgreSQL says nothing when it refuses a startup packet,
/// and pgpinion says why, is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The connection has ended.
    Gone,
    /// It goes on after an error.
    Failed,
    /// It goes on, or waits for more.
    Heard,
}

/// S15: what no server should wait for even if the client stays.
#[test]
fn s15_plain_violations_close_at_once() {
    // PgBouncer waits for more of some of these.
    if Target::current() == Target::Pgbouncer {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).set("client_login_timeout", 30).start();
    let after_login: [&[u8]; 8] = [
        b"Q\0\0\0\0",
        b"Q\0\0\0\x03",
        b"Q\xff\xff\xff\xff",
        b"\0\0\0\0\x04",
        b"z\0\0\0\x04",
        b"\xff\0\0\0\x04",
        b"R\0\0\0\x08\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
    ];
    for bytes in after_login {
        let mut client = pooler.client(&user);
        client.send(bytes).expect("open");
        let error = client.read_to_end(Duration::from_secs(5));
        assert_eq!(error.expect("a reason").code, "08P01", "{}", bytes.escape_ascii());
    }
    if Target::is_direct() {
        return;
    }
    let mut v2 = vec![0, 2, 0, 0];
    v2.extend([0; 288]);
    let long = startup(&[("user", "user"), ("database", "app"), ("application_name", &"x".repeat(10_100))]);
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    let before_login: [(Vec<u8>, &str, &str); 11] = [
        (vec![0; 4], "08P01", "invalid length 0 of startup packet"),
        (vec![0, 0, 0, 4], "08P01", "invalid length 4 of startup packet"),
        (vec![0, 0, 0, 7, 0, 3, 0], "08P01", "invalid length 7 of startup packet"),
        (vec![0x80, 0, 0, 0, 0, 3, 0, 0], "08P01", "invalid length 2147483648 of startup packet"),
        (vec![0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0], "08P01", "invalid length 4294967295 of startup packet"),
        (vec![0x40, 0, 0, 0, 0, 3, 0, 0], "08P01", "invalid length 1073741824 of startup packet"),
        (packet(b"\0\x03\0\0user\0u"), "08P01", "expected terminator as last byte"),
        (packet(b"\0\x03\0\0user\0\xff\0\0"), "08P01", "must be UTF-8"),
        (packet(&v2), "0A000", "unsupported frontend protocol 2.0"),
        (hello, "08P01", "received a TLS handshake"),
        (long, "08P01", "of startup packet"),
    ];
    for (bytes, code, text) in before_login {
        let mut client = Client::dial(&pooler.address).expect("it accepts");
        let _ = client.stream().try_clone().expect("a descriptor").write_all(&bytes);
        let error = client.read_to_end(Duration::from_secs(5));
        let error = error.unwrap_or_else(|| panic!("closed without a word, not because of: {text}"));
        assert_eq!((error.severity.as_str(), error.code.as_str()), ("FATAL", code), "{error}");
        assert!(error.message.contains(text), "{error}, and not: {text}");
        let told = format!("in the log: {error}");
        eventually(&told, Duration::from_secs(5), || pooler.log().contains(&error.message));
    }
    pooler.finish();
}

/// S16: announcing a gigabyte costs nothing but the bytes that came.
#[test]
fn s16_memory_follows_what_was_sent() {
    let cluster = Cluster::shared();
    let (user, canary) = (cluster.user("user"), cluster.user("canary"));
    let pooler = Plan::new(cluster).max_connections(4).set("client_login_timeout", pick(3, 60)).start();
    let calm = Crowd::canary(&pooler.address, &canary);
    sleep(Duration::from_millis(300));
    let (mut memory, mapped) = (Memory::of(&pooler), pooler.mapped());
    let mut kept = Vec::new();
    for number in 0..pick(200, 1000) {
        let mut client = Client::dial(&pooler.address).expect("it accepts");
        let mut bytes = match number % 4 {
            0 => (1_u32 << 30).to_be_bytes().to_vec(),
            1 => 9_999_u32.to_be_bytes().to_vec(),
            _ if Target::is_direct() && number > 100 => continue,
            _ => {
                client.log_in(&login(&user)).expect("a login");
                let tag = if number % 4 == 2 { b'Q' } else { b'P' };
                [&[tag][..], &(1_u32 << 30).to_be_bytes()].concat()
            }
        };
        if number % 4 < 2 {
            bytes.extend_from_slice(&PROTOCOL_3.to_be_bytes());
        }
        bytes.resize(bytes.len() + 200, b'x');
        let mut stream = client.stream().try_clone().expect("a descriptor");
        stream.set_write_timeout(Duration::from_millis(20)).expect("own socket");
        let _ = stream.write_all(&bytes);
        // Up to a megabyte more, as far as the other side takes it.
        let _ = stream.write_all(&[b'x'; 1 << 20]);
        kept.push(client);
        memory.look(&pooler);
    }
    memory.look(&pooler);
    let mapped = pooler.mapped().saturating_sub(mapped);
    let mut tally = calm.finish();
    let (count, grown) = (kept.len(), memory.grown() >> 10);
    eprintln!(
        "s16: {count} announcements, {grown} KB more, {} KB mapped; canary {}",
        mapped >> 10,
        tally.describe()
    );
    memory.assert_grown_less_than(64 << 20);
    assert!(mapped < 1 << 30, "{} MB more mapped for announcements", mapped >> 20);
    drop(kept);
    tally.assert_faultless();
    pooler.finish();
}

/// S17: clients that never finish their login, half of them after an SSLRequest, are closed on time, and good logins go on.
#[test]
fn s17_slowloris() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let timeout = seconds(3.0, 10.0);
    for shards in [1, 2] {
        let pooler =
            Plan::new(cluster).shards(shards).set("client_login_timeout", timeout.as_secs()).start_alone();
        let hello = startup(&login(&user));
        let started = Instant::now();
        let mut slow = Vec::new();
        process::allow_descriptors(3000);
        for number in 0..pick(200, 2000) {
            let mut client = Client::dial(&pooler.address).expect("it accepts");
            if number % 2 == 0 {
                // The answer is no, and then it may go on without.
                client.send(&packet(&SSL_REQUEST.to_be_bytes())).expect("open");
                let mut answer = [0];
                client
                    .stream()
                    .try_clone()
                    .expect("a descriptor")
                    .read_exact(&mut answer)
                    .expect("an answer");
                assert_eq!(answer, *b"N");
            }
            slow.push(client);
            // Not faster than a listener's queue can take: a dropped SYN comes again after a second.
            sleep(Duration::from_millis(1));
        }
        let all_open = Instant::now();
        let mut logins = Vec::new();
        for round in 0..3 {
            for client in &mut slow {
                client.send(&hello[round..=round]).expect("still in time");
            }
            let next = started + timeout.mul_f64(0.3) * (round as u32 + 1);
            while Instant::now() < next {
                let start = Instant::now();
                let mut good = pooler.client(&user);
                assert_eq!(good.query("select 1").expect("a server").value(), "1");
                good.terminate();
                logins.push(start.elapsed());
                sleep(Duration::from_millis(20));
            }
        }
        logins.sort_unstable();
        let (p99, worst) = (logins[(logins.len() - 1) * 99 / 100], logins[logins.len() - 1]);
        eprintln!("s17 {shards} shards: {} good logins, p99 {p99:?}, longest {worst:?}", logins.len());
        assert!(worst < Duration::from_millis(500) || is_long(), "a good login took {worst:?}");
        assert!(p99 < Duration::from_millis(pick(500, 100)), "good logins' p99 is {p99:?}");
        // PgBouncer looks at its clients once in a while only.
        let slack = if Target::is_pgpinion() { 1000 } else { 3000 };
        let deadline = all_open + timeout + Duration::from_millis(slack);
        for client in &mut slow {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            assert!(client.is_closed_within(left), "still open {:?} after the last came", all_open.elapsed());
        }
        eprintln!("s17 {shards} shards: {} closed {:?} after the last came", slow.len(), all_open.elapsed());
        assert!(started.elapsed() + Duration::from_millis(100) > timeout, "closed before their time");
        drop(slow);
        pooler.finish();
    }
}

/// S27: bytes that look like messages inside values are values, wherever receives and messages are cut: in a Bind, to the
/// unnamed statement and to a named one, whose name gets longer on the way, and in a COPY.
#[test]
fn s27_messages_inside_values_stay_values() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(2).start();
    let mut client = pooler.client(&user);
    let (table, copied) = (format!("smuggled_{user}"), format!("copied_{user}"));
    let bait = Frames::new().query(&format!("create table {table} (a int)")).0;
    client.query(&format!("create table {copied} (a text)")).expect("a server");
    client.send(&Frames::new().parse("named", "select length($1::bytea)").sync().0).expect("open");
    assert_eq!(client.collect().expect("a server").sequence, "1Z");
    // PgBouncer 1.18 does not follow names.
    let names: &[&str] = if Target::current() == Target::Pgbouncer { &[""] } else { &["", "named"] };
    let small = (1..=pick(4, 64)).map(|k| 4096 * k);
    let large = (1..=pick(4, 64)).map(|k| 16_384 * k);
    for boundary in small.chain(large) {
        for place in boundary - 5..=boundary + 5 {
            for name in names {
                bind_with_bait(&mut client, name, place, &bait);
            }
            copy_with_bait(&mut client, &copied, place, &bait);
        }
    }
    assert_eq!(cluster.value(&format!("select count(*) from pg_class where relname = '{table}'")), "0");
    drop(client);
    pooler.finish();
}

/// The bait begins so many bytes behind the beginning of the request.
fn bind_with_bait(client: &mut Client, name: &str, place: usize, bait: &[u8]) {
    let head = match name {
        "" => Frames::new().parse("", "select length($1::bytea)"),
        _ => Frames::new(),
    };
    let names = [&[0][..], name.as_bytes(), &[0]].concat();
    // Tag and length; names; a format, one value, its length.
    let before = head.0.len() + 5 + names.len() + 10;
    let mut value = vec![b' '; place.saturating_sub(before)];
    value.extend_from_slice(bait);
    value.resize(place + 200, b' ');
    let length = (value.len() as u32).to_be_bytes();
    let frames = head.frame(b'B', &[&names, &[0, 1, 0, 1, 0, 1], &length, &value, &[0, 0]]);
    client.send(&frames.execute("", 0).sync().0).expect("open");
    let reply = client.collect().expect("a server");
    let sequence = if name.is_empty() { "12DCZ" } else { "2DCZ" };
    assert_eq!((reply.sequence.as_str(), reply.value()), (sequence, value.len().to_string()), "{place}");
}

/// Copied in and, with the rows before it, out again.
fn copy_with_bait(client: &mut Client, table: &str, place: usize, bait: &[u8]) {
    // A zero byte cannot be in a text: the bait is its own without those, and its length is wrong.
    let bait: Vec<u8> = bait.iter().copied().filter(|&byte| byte >= b' ').collect();
    let command = Frames::new().query(&format!("truncate {table}; copy {table} from stdin"));
    let mut data = vec![b' '; place.saturating_sub(command.0.len() + 5)];
    data.extend_from_slice(&bait);
    data.resize(place + 200, b' ');
    data.push(b'\n');
    client.send(&command.copy_data(&data).copy_done().0).expect("open");
    assert_eq!(client.collect().expect("a server").sequence, "CG");
    assert_eq!(client.collect().expect("a server").commands, ["COPY 1"], "{place}");
    let out = client.query(&format!("copy {table} to stdout")).expect("a server");
    assert!(out.copied == data, "{place}: other bytes came back");
}

/// S27: a value of a gigabyte goes through a named statement, whose name gets longer, in little memory; one byte more than may be
/// is refused before any of it is sent on.
#[test]
fn s27_a_value_as_large_as_may_be() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(1).start();
    let mut client = pooler.client(&user);
    client.set_timeout(seconds(20.0, 300.0));
    client.send(&Frames::new().parse("s", "select length($1::bytea)").sync().0).expect("open");
    assert_eq!(client.collect().expect("a server").sequence, "1Z");
    let mut memory = Memory::of(&pooler);
    let bytes: usize = pick(64 << 20, MESSAGE_BYTES_MAX - 1024);
    client.send(&bind_head(bytes)).expect("open");
    let part = vec![b'Q'; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(part.len());
        client.send(&part[..now]).expect("open");
        left -= now;
        memory.look(&pooler);
    }
    client.send(&[&[0, 0][..], &Frames::new().execute("", 0).sync().0].concat()).expect("open");
    let reply = client.collect().expect("a server");
    assert_eq!((reply.sequence.as_str(), reply.value()), ("2DCZ", bytes.to_string()));
    memory.look(&pooler);
    memory.assert_grown_less_than(64 << 20);
    println!("{} KB more for a value of {bytes} bytes", memory.grown() >> 10);
    // With the longer name it would be more than PostgreSQL takes.
    client.send(&bind_head(MESSAGE_BYTES_MAX - 30)).expect("open");
    let error = client.read_to_end(Duration::from_secs(5)).expect("it is told why");
    assert_eq!(error.code, "54000", "{error}");
    let mut next = pooler.client(&user);
    assert_eq!(next.query("select 1").expect("a server").value(), "1");
    drop(next);
    pooler.finish();
}

/// The beginning of a Bind of the statement `s` to one binary value of so many bytes.
fn bind_head(bytes: usize) -> Vec<u8> {
    let body = [&b"\0s\0\0\x01\0\x01\0\x01"[..], &(bytes as u32).to_be_bytes()].concat();
    let length = (4 + body.len() + bytes + 2) as u32;
    [b"B", &length.to_be_bytes()[..], &body].concat()
}

/// PostgreSQL's `PQ_LARGE_MESSAGE_LIMIT`.
const MESSAGE_BYTES_MAX: usize = 0x3fff_ffff;

/// More than a hundred and twenty ways to be wrong; some are not wrong in every state, and a close is then all that is asked.
fn corpus() -> Vec<Vec<u8>> {
    let f = Frames::new;
    let mut cases: Vec<Vec<u8>> = Vec::new();
    // Lengths that cannot be, for every tag that matters.
    for tag in *b"QPBDECSHFXdcfp" {
        for length in [0_u32, 3, 1 << 31, u32::MAX] {
            cases.push([&[tag][..], &length.to_be_bytes()].concat());
        }
    }
    // Lengths that are one off, and a gigabyte that never comes.
    for length in [4_u32, 5, 12, 14, 1 << 29, 1 << 30] {
        cases.push([b"Q", &length.to_be_bytes()[..], b"select 1\0"].concat());
    }
    // Bodies that do not hold what they announce.
    cases.extend([
        b"Q\0\0\0\x0cselect 1".to_vec(),
        f().frame(b'P', &[b"no terminator"]).sync().0,
        f().frame(b'P', &[b"\0select 1\0\xff\xff"]).sync().0,
        f().frame(b'B', &[b"\0\0\xff\xff"]).sync().0,
        f().frame(b'B', &[b"\0\0\0\0\xff\xff"]).sync().0,
        f().frame(b'B', &[b"\0\0\0\0\0\x01\x7f\xff\xff\xff"]).sync().0,
        f().frame(b'B', &[b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0"]).sync().0,
        f().frame(b'D', &[b"?\0"]).sync().0,
        f().frame(b'D', &[]).sync().0,
        f().frame(b'C', &[b"Snone"]).sync().0,
        f().frame(b'E', &[b"\0"]).sync().0,
        f().frame(b'F', &[b"\0\0"]).0,
        f().frame(b'S', &[b"extra"]).0,
        f().frame(b'H', &[b"extra"]).sync().0,
        f().frame(b'X', &[b"extra"]).0,
        f().frame(b'Q', &[]).0,
        f().frame(b'Q', &[&[0; 9]]).0,
        f().frame(b'Q', &[b"\xff\xfe\xfd\0"]).0,
    ]);
    // Messages at the wrong time or from the wrong side.
    cases.extend([
        f().copy_data(b"stray").copy_done().copy_fail("stray").0,
        f().frame(b'p', &[b"password\0"]).0,
        f().frame(b'R', &[&[0; 4]]).0,
        f().frame(b'Z', &[b"I"]).0,
        f().frame(b'E', &[b"SFATAL\0C57P01\0\0"]).0,
        f().frame(b'v', &[&[0; 8]]).0,
        startup(&[("user", "again"), ("database", "app")]),
        [startup(&[("user", "one")]), startup(&[("user", "two")])].concat(),
        packet(&80_877_103_u32.to_be_bytes()),
        packet(&80_877_103_u32.to_be_bytes()).repeat(50),
        packet(&80_877_104_u32.to_be_bytes()).repeat(50),
        packet(&[&80_877_102_u32.to_be_bytes()[..], &[0xff; 8]].concat()),
        packet(&[&80_877_102_u32.to_be_bytes()[..], &[0xff; 300]].concat()),
    ]);
    // Startup packets that no driver sends.
    cases.extend([
        packet(&[&PROTOCOL_3.to_be_bytes()[..], b"user\0nobody"].concat()),
        packet(&[&PROTOCOL_3.to_be_bytes()[..], b"user\0"].concat()),
        packet(&[&PROTOCOL_3.to_be_bytes()[..], b"\0"].concat()),
        packet(&PROTOCOL_3.to_be_bytes()),
        packet(&[&PROTOCOL_3.to_be_bytes()[..], &b"a\0b\0".repeat(2400), b"\0"].concat()),
        packet(&[&PROTOCOL_3.to_be_bytes()[..], &b"a\0b\0".repeat(10_000), b"\0"].concat()),
        packet(&[&(3_u32 << 16 | 99).to_be_bytes()[..], b"user\0user\0\0"].concat()),
        packet(&[&(2_u32 << 16).to_be_bytes()[..], &[0; 288]].concat()),
        packet(&[&(9_u32 << 16).to_be_bytes()[..], b"user\0user\0\0"].concat()),
        startup(&[("user", "")]),
        startup(&[("database", "app")]),
        startup(&[("user", &"u".repeat(5000)), ("database", "app")]),
        startup(&[("user", "u"), ("database", &"d".repeat(9000))]),
        startup(&[("user", "u"), ("database", "app"), ("options", "-c=")]),
        startup(&[("user", "u"), ("database", "app"), ("options", "-c")]),
        startup(&[("user", "u"), ("database", "app"), ("replication", "database")]),
        startup(&[("user", "u\u{1}\u{7f}"), ("database", "app'; drop table x; --")]),
        packet(&[&PROTOCOL_3.to_be_bytes()[..], b"user\0\xff\xfe\xfd\0database\0\xc3\x28\0\0"].concat()),
    ]);
    // Other protocols, and plain noise.
    cases.extend([
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec(),
        vec![0; 1000],
        vec![0xff; 1000],
        b"QQQQQQQQQQQQQQQQ".to_vec(),
        (0..=255).collect(),
        vec![b'S'; 4],
        vec![0],
    ]);
    cases
}

/// Valid conversations for the random corpus to spoil.
fn corpus_seeds() -> Vec<Vec<u8>> {
    let f = Frames::new;
    vec![
        f().query("select 1").0,
        f().unnamed("select $1::text", &["value"]).sync().0,
        f().unnamed("select 1", &[]).flush().unnamed("select 2", &[]).sync().sync().0,
        f().query("begin").query("select 1").query("commit").0,
        f().copy_data(b"row\n").copy_data(b"row\n").copy_done().0,
        f().copy_fail("reason").query("rollback").0,
        f().function_call(1299).sync().0,
        f().describe(b'S', "").close(b'P', "").execute("", 3).sync().0,
        startup(&[("user", "u"), ("database", "app"), ("application_name", "x")]),
    ]
}

/// The code of an SSLRequest.
const SSL_REQUEST: u32 = 80_877_103;
