//! Messages nobody asked for: notices, notifications, changed parameters, farewells.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::console::{self, console, values};
use crate::crowd::{Crowd, Habit};
use crate::fake_server::{self, FakeServer, complete, echo, notice, ready, welcome};
use crate::pooler::{Plan, Target, login};
use crate::process::eventually;
use crate::scale::{is_long, pick, seconds};
use crate::wire::{Client, Fault, Frames};

const SOON: Duration = Duration::from_secs(5);

/// S14: ten thousand notices in a transaction reach their owner in order, and nobody after him.
#[test]
fn s14_notices_reach_their_owner_only() {
    for (mode, shards) in [("transaction", 1), ("session", 2)] {
        let cluster = Cluster::shared();
        let user = cluster.user("user");
        let pooler = Plan::new(cluster).mode(mode).shards(shards).max_connections(1).start();
        let mut one = pooler.client(&user);
        one.query("begin").expect("the only server");
        let token = one.token();
        let loud =
            format!("do $$ begin for i in 1..10000 loop raise notice '{token} %', i; end loop; end $$");
        let reply = one.query(&loud).expect("the same server");
        assert_eq!(reply.notices.len(), 10_000);
        for (notice, i) in reply.notices.iter().zip(1..) {
            assert_eq!(notice.message, format!("{token} {i}"));
        }
        one.query("commit").expect("the same server");
        one.terminate();
        let mut two = pooler.client(&user);
        let reply = two.query("select 1").expect("a server");
        assert!(reply.notices.is_empty(), "somebody else's notice");
        drop(two);
        pooler.finish();
    }
}

/// S14: parameters that change while connections are idle, in use, and in between, disturb nobody.
#[test]
fn s14_changing_parameters_disturb_nobody() {
    for (mode, habit) in [("transaction", Habit::LIGHT), ("session", Habit::LIGHT.reconnecting_after(10))] {
        let cluster = Cluster::private(&[]);
        let user = cluster.user("user");
        let pooler = Plan::new(&cluster).mode(mode).shards(2).max_connections(4).start();
        let crowd = Crowd::start(8, &pooler.address, &user, habit.pausing(Duration::from_millis(5)));
        for round in 0..pick(20, 50) {
            let zone = ["Asia/Tokyo", "Europe/Berlin", "UTC"][round % 3];
            cluster.sql(&format!("alter system set timezone = '{zone}'"));
            cluster.reload();
            sleep(Duration::from_millis(80));
        }
        let mut tally = crowd.finish();
        tally.assert_faultless();
        eprintln!("s14 {mode}: {}", tally.describe());
        pooler.finish();
    }
}

/// S14: LISTEN in session mode: everything arrives, in order, and only where it was asked for.
#[test]
fn s14_listen_in_session_mode() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).mode("session").shards(2).max_connections(3).start();
    let mut listener = pooler.client(&user);
    let mut bystander = pooler.client(&user);
    let mut sender = pooler.client(&user);
    listener.query("listen news").expect("a server");
    bystander.query("listen other").expect("a server");
    for batch in 0..pick(20, 200) {
        let from = batch * 100;
        let send = format!("select pg_notify('news', i::text) from generate_series({from}, {from} + 99) i");
        sender.query(&send).expect("a server");
    }
    for expected in 0..pick(2000, 20_000) {
        let message = listener.read().expect("a notification");
        assert_eq!(message.tag, b'A');
        let text = String::from_utf8_lossy(&message.body[4..]).into_owned();
        assert_eq!(text, format!("news\0{expected}\0"));
    }
    bystander.assert_silent(Duration::from_millis(200));
    listener.terminate();
    // The next session on that backend does not listen.
    let mut next = pooler.client(&user);
    assert_eq!(next.query("select count(*) from pg_listening_channels()").expect("a server").value(), "0");
    drop((bystander, sender, next));
    pooler.finish();
}

/// S14: the same channel in two databases is two channels.
#[test]
fn s14_a_channel_belongs_to_its_database() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let database = format!("beside_{user}");
    cluster.sql(&format!("create database {database}"));
    let pooler = Plan::new(cluster).mode("session").shards(2).max_connections(3).start();
    let elsewhere = [("user", user.as_str()), ("database", database.as_str())];
    let mut here = pooler.client(&user);
    let mut there = Client::connect(&pooler.address, &elsewhere).expect("a login");
    let mut sender = Client::connect(&pooler.address, &elsewhere).expect("a login");
    here.query("listen news").expect("a server");
    there.query("listen news").expect("a server");
    sender.query("notify news, 'for there'").expect("a server");
    assert_eq!(there.read().expect("a notification").tag, b'A');
    here.assert_silent(Duration::from_millis(200));
    drop((here, there, sender));
    pooler.finish();
}

/// A2: idle servers that die are noticed at once, and cost no client an error.
#[test]
fn a2_dead_idle_servers_cost_nothing() {
    if Target::is_direct() {
        return;
    }
    for (mode, shards) in [("transaction", 1), ("transaction", 2)] {
        let cluster = Cluster::shared();
        let user = cluster.user("user");
        let pooler = console::plan(cluster).mode(mode).shards(shards).max_connections(5).start();
        let mut clients: Vec<Client> = (0..5).map(|_| pooler.client(&user)).collect();
        let mut admin = Target::is_pgpinion().then(|| console(&pooler));
        for _ in 0..5 {
            for client in &mut clients {
                client.query("begin").expect("a server");
            }
            for client in &mut clients {
                client.query("commit").expect("the same server");
            }
            let mark = cluster.mark();
            let pids = cluster.backends(&user);
            assert_eq!(pids.len(), 5, "backends hold five transactions");
            terminate_all(cluster, &user);
            if let Some(admin) = &mut admin {
                let all = [("user", user.as_str()), ("shard", "all")];
                eventually("they are known to be gone, and nobody asked", seconds(2.0, 0.1), || {
                    values(admin, "SHOW QUOTA", &all, "idle") == ["0"]
                });
            }
            eventually("the killed are gone", Duration::from_secs(2), || {
                let now = cluster.backends(&user);
                !pids.iter().any(|pid| now.contains(pid))
            });
            for client in &mut clients {
                assert_eq!(client.query("select 1").expect("a living server").value(), "1");
            }
            assert!(cluster.starts_since(mark, &user) <= pids.len());
        }
        drop((clients, admin));
        pooler.finish();
    }
}

fn terminate_all(cluster: &Cluster, user: &str) {
    cluster.sql(&format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{user}'"));
}

/// A server that says things between transactions is still one connection, and the next client does not hear them.
#[test]
fn a6_words_between_transactions_are_swallowed() {
    if !Target::is_pgpinion() {
        return;
    }
    for dribble in [false, true] {
        let (said, heard) = std::sync::mpsc::channel();
        let fake = FakeServer::start(move |mut connection| {
            if !connection.log_in() {
                return;
            }
            while let Some((tag, body)) = connection.read_frame() {
                if !connection.answer(tag, &body) {
                    return;
                }
                if tag != b'Q' {
                    continue;
                }
                // Long enough for the pooler to have taken the server back.
                sleep(Duration::from_millis(20));
                let words = [
                    notice("between two transactions"),
                    Frames::new().frame(b'S', &[b"application_name\0somebody\0"]).0,
                    Frames::new().frame(b'A', &[&7_u32.to_be_bytes(), b"channel\0payload\0"]).0,
                ]
                .concat();
                let sent = if dribble { connection.dribble(&words) } else { connection.send(&words) };
                let _ = said.send(sent);
            }
        });
        let pooler = Plan::to_port(fake.port()).max_connections(1).start();
        let (mut one, mut two) = (pooler.client("user"), pooler.client("user"));
        for round in 0..10 {
            for client in [&mut one, &mut two] {
                let statement = format!("select {round}");
                let reply = client.query(&statement).expect("the fake");
                assert_eq!(reply.value(), statement);
                assert!(reply.notifications.is_empty(), "a notification for somebody else");
                assert!(
                    heard.recv_timeout(Duration::from_secs(5)).expect("the fake speaks"),
                    "it was cut short"
                );
                sleep(Duration::from_millis(100));
            }
        }
        assert_eq!(fake.accepted(), 1, "the connection was thrown away for talking");
        drop((one, two));
        pooler.finish();
    }
}

/// Every message of a server one byte at a time, and notices at odd moments of the login.
#[test]
fn a6_a_server_that_dribbles_and_a_login_with_notices() {
    if !Target::is_pgpinion() {
        return;
    }
    let fake = FakeServer::start(|mut connection| {
        if !connection.read_startup() {
            return;
        }
        let welcome = welcome(connection.number);
        let (start, end) = welcome.split_at(9);
        connection.dribble(&[start, &notice("in the middle of the login"), end].concat());
        while let Some((tag, body)) = connection.read_frame() {
            match tag {
                b'Q' => {
                    let text = String::from_utf8_lossy(&body[..body.len() - 1]).into_owned();
                    connection.dribble(&[notice("first"), echo(&text)].concat());
                }
                b'X' => return,
                _ => {
                    connection.answer(tag, &body);
                }
            }
        }
    });
    let pooler = Plan::to_port(fake.port()).max_connections(2).start();
    let mut client = pooler.client("user");
    for round in 0..10 {
        let reply = client.query(&format!("select {round}")).expect("the fake");
        assert_eq!(reply.value(), format!("select {round}"));
        assert_eq!(reply.notices.len(), 1);
        assert_eq!(reply.sequence, "TDCZ");
    }
    drop(client);
    pooler.finish();
}

/// A flood of notices on an idle connection is read and forgotten.
#[test]
fn a6_a_flood_while_idle_is_forgotten() {
    if !Target::is_pgpinion() {
        return;
    }
    let (flooded, done) = std::sync::mpsc::channel();
    let fake = FakeServer::start(move |mut connection| {
        if !connection.log_in() {
            return;
        }
        while let Some((tag, body)) = connection.read_frame() {
            if !connection.answer(tag, &body) {
                return;
            }
            if tag == b'Q' && body.starts_with(b"flood") {
                sleep(Duration::from_millis(20));
                let words = notice(&"n".repeat(1000));
                let sent = (0..100_000).take_while(|_| connection.send(&words)).count();
                let _ = flooded.send(sent);
            }
        }
    });
    let pooler = Plan::to_port(fake.port()).max_connections(1).start();
    let mut client = pooler.client("user");
    client.query("select 1").expect("the fake");
    let before = pooler.rss();
    client.query("flood").expect("the fake");
    let mut most = before;
    let start = Instant::now();
    let sent = loop {
        most = most.max(pooler.rss());
        match done.recv_timeout(Duration::from_millis(20)) {
            Ok(sent) => break sent,
            Err(_) => assert!(start.elapsed() < Duration::from_secs(20), "the flood is not read"),
        }
    };
    assert_eq!(sent, 100_000);
    assert!(most - before < 32 << 20, "{} MB for a flood", (most - before) >> 20);
    assert_eq!(client.query("select 2").expect("the same server").value(), "select 2");
    assert_eq!(fake.accepted(), 1);
    client.assert_silent(Duration::from_millis(50));
    drop(client);
    pooler.finish();
}

/// An idle server that announces a notice of 100 MB, or sends nonsense, is closed; the others live.
#[test]
fn a6_an_idle_server_that_lies_is_closed() {
    if !Target::is_pgpinion() {
        return;
    }
    let lies: [&[u8]; 4] =
        [b"N\x06\x00\x00\x00S", b"\x00\x00\x00\x00\x00", b"Z\x00\x00\x00\x05I", b"E\xff\xff\xff\xff"];
    for lie in lies {
        let (said, heard) = std::sync::mpsc::channel();
        let fake = FakeServer::start(move |mut connection| {
            if !connection.log_in() {
                return;
            }
            while let Some((tag, body)) = connection.read_frame() {
                if !connection.answer(tag, &body) {
                    return;
                }
                if tag == b'Q' && body.starts_with(b"lie") {
                    sleep(Duration::from_millis(50));
                    connection.send(lie);
                    let _ = said.send(connection.is_closed_within(Duration::from_secs(10)));
                    return;
                }
            }
        });
        let pooler = Plan::to_port(fake.port()).max_connections(2).start();
        let mut client = pooler.client("user");
        client.query("lie").expect("the fake");
        assert!(heard.recv_timeout(Duration::from_secs(11)).expect("the fake"), "a liar is kept: {lie:?}");
        assert_eq!(client.query("select 1").expect("another server").value(), "select 1");
        assert!(fake.accepted() >= 2);
        drop(client);
        pooler.finish();
    }
}

/// Servers that break the protocol in the middle of a reply end that client's request with an error, not a hang.
#[test]
fn servers_that_break_the_protocol_are_closed() {
    if !Target::is_pgpinion() {
        return;
    }
    let broke = "the server broke the protocol: ";
    let lies: [(&[u8], &str, &str); 5] = [
        (b"D\xff\xff\xff\xff", "08P01", broke),
        (b"D\x00\x00\x00\x00", "08P01", broke),
        (b"\x00\x00\x00\x00\x05\x00", "08P01", broke),
        (b"HTTP/1.1 400 Bad Request\r\n", "08P01", broke),
        (b"", "08006", "server"),
    ];
    for (lie, code, text) in lies {
        let fake = FakeServer::start(move |mut connection| {
            if !connection.log_in() {
                return;
            }
            while let Some((tag, body)) = connection.read_frame() {
                if tag == b'Q' && body.starts_with(b"lie") {
                    connection.send(lie);
                    return;
                }
                if !connection.answer(tag, &body) {
                    return;
                }
            }
        });
        let pooler = Plan::to_port(fake.port()).max_connections(2).start();
        let mut other = pooler.client("user");
        other.query("begin").expect("the fake");
        let mut client = pooler.client("user");
        client.set_lenient();
        client.set_timeout(Duration::from_secs(5));
        let fault = client.query("lie").map(|reply| reply.sequence).expect_err("no reply is whole");
        let Fault::Closed(Some(error)) = &fault else { panic!("{fault} after {lie:?}") };
        eprintln!("{}: {error}", lie.escape_ascii());
        assert_eq!(error.code, code, "{error} after {lie:?}");
        assert!(error.message.contains(text), "{error} after {lie:?}");
        eventually(&format!("in the log: {error}"), SOON, || pooler.log().contains(&error.message));
        assert_eq!(other.query("select 1").expect("another server").value(), "select 1");
        drop((client, other));
        pooler.finish();
    }
}

/// Servers that misbehave at login cost the waiting client an error in time, never a hang.
#[test]
fn servers_that_fail_logins_are_reported() {
    if !Target::is_pgpinion() {
        return;
    }
    let scripts: [(&str, &[u8], &str); 6] = [
        ("silent", b"", "08006"),
        ("garbage", b"\xde\xad\xbe\xef\xde\xad\xbe\xef\xde\xad", "08P01"),
        ("huge", b"R\x7f\xff\xff\xff\x00\x00\x00\x00", "08P01"),
        ("unknown authentication", b"R\x00\x00\x00\x08\x00\x00\x00\x63", "08P01"),
        ("no SQLSTATE", b"E\x00\x00\x00\x12SFATAL\x00Mwords\x00\x00", "08P01"),
        ("an error without its end", b"E\x00\x00\x00\x06S\x00", "08P01"),
    ];
    for (what, bytes, code) in scripts {
        let fake = FakeServer::start(move |mut connection| {
            if connection.read_startup() {
                connection.send(bytes);
                connection.is_closed_within(Duration::from_secs(20));
            }
        });
        let pooler = Plan::to_port(fake.port())
            .max_connections(2)
            .set("query_wait_timeout", 2)
            .set("server_connect_timeout", 1)
            .start();
        let start = Instant::now();
        let mut client = Client::dial(&pooler.address).expect("it accepts");
        client.set_lenient();
        let outcome = client.log_in(&login("user")).and_then(|()| client.query("select 1"));
        let fault = outcome.map(|reply| reply.sequence).expect_err(what);
        assert!(!fault.is_timeout() && start.elapsed() < Duration::from_secs(4), "{what}: {fault}");
        eprintln!("{what}: {fault}");
        assert_eq!(fault.code(), code, "{what}: {fault}");
        drop(client);
        pooler.finish();
    }
}

/// A server may say anything at any time: in the middle of rows, of a COPY, between the messages of a batch. It all comes
/// where it was said, and what it says of parameters holds.
#[test]
fn asynchronous_words_come_where_they_were_said() {
    if !Target::is_pgpinion() {
        return;
    }
    let words = || {
        Frames::new()
            .frame(b'S', &[b"TimeZone\0PRC\0"])
            .frame(b'N', &[b"SNOTICE\0VNOTICE\0C00000\0Msaid\0Danything\0Hat all\0Xsome field\0\0"])
            .frame(b'A', &[&[0, 0, 0, 7], b"news\0of today\0"])
            .0
    };
    // What a server says to `rows` and to `copy`, with the words between any two messages.
    let row = |value: &str| Frames::new().frame(b'D', &[&[0, 1, 0, 0, 0, 1], value.as_bytes()]).0;
    let echoed = echo("x");
    let column = echoed[..1 + u32::from_be_bytes(echoed[1..5].try_into().expect("four")) as usize].to_vec();
    let scripts: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("rows", vec![column, row("1"), row("2"), complete("SELECT 2"), ready(b'I')]),
        (
            "copy",
            vec![
                Frames::new().frame(b'H', &[&[0, 0, 1, 0, 0]]).0,
                Frames::new().copy_data(b"1\n").0,
                Frames::new().copy_data(b"2\n").0,
                Frames::new().copy_done().0,
                complete("COPY 2"),
                ready(b'I'),
            ],
        ),
        ("nothing", vec![Frames::new().frame(b'I', &[]).0, ready(b'I')]),
        ("error", vec![fake_server::error("ERROR", "22012", "division by zero"), ready(b'I')]),
    ];
    let answers: Vec<(String, Vec<u8>)> = scripts
        .iter()
        .map(|(name, parts)| ((*name).to_owned(), [words(), parts.join(&words()[..])].concat()))
        .collect();
    for (mode, dribbles) in [("transaction", false), ("transaction", true), ("session", false)] {
        for (name, expected) in &answers {
            let got = answer_of_fake(mode, dribbles, name, expected);
            assert!(got == *expected, "{mode}, {name}: {:?} instead of {:?}", shown(&got), shown(expected));
        }
    }
}

/// What a client hears that asks for `name`, to which the server says `answer`: at once or byte by byte.
fn answer_of_fake(mode: &'static str, dribbles: bool, name: &str, answer: &[u8]) -> Vec<u8> {
    let said = answer.to_vec();
    let fake = FakeServer::start(move |mut connection| {
        if connection.log_in() && connection.read_frame().is_some() {
            let _ = if dribbles { connection.dribble(&said) } else { connection.send(&said) };
            connection.serve();
        }
    });
    let pooler = Plan::to_port(fake.port()).mode(mode).max_connections(1).start();
    let mut client = pooler.client("user");
    client.send(&Frames::new().query(name).0).expect("open");
    let mut got = Vec::new();
    loop {
        let message = client.read().expect("an answer");
        got.extend(Frames::new().frame(message.tag, &[&message.body]).0);
        if message.tag == b'Z' {
            break;
        }
    }
    assert_eq!(client.parameter("TimeZone"), Some("PRC"));
    client.assert_silent(Duration::from_millis(20));
    drop(client);
    pooler.finish();
    got
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\0', "~")
}

/// A server that refuses politely: its own words reach the client.
#[test]
fn a_refusing_server_is_quoted() {
    if !Target::is_pgpinion() {
        return;
    }
    let fake = FakeServer::start(|mut connection| {
        if connection.read_startup() {
            connection.send(&fake_server::error("FATAL", "28000", "go away, stranger"));
        }
    });
    let pooler = Plan::to_port(fake.port()).set("query_wait_timeout", 2).start();
    let fault = match pooler.try_client("user") {
        Ok(mut client) => client.query("select 1").map(|reply| reply.sequence).expect_err("refused"),
        Err(fault) => fault,
    };
    assert_eq!(fault.code(), "28000", "{fault}");
    assert!(fault.to_string().contains("go away, stranger"), "{fault}");
    pooler.finish();
}

/// A6: 100,000 notices of 1 KB: in order, from the start, in bounded memory, and others hardly notice.
#[test]
fn a6_a_hundred_thousand_notices() {
    let cluster = Cluster::shared();
    let (user, canary) = (cluster.user("user"), cluster.user("canary"));
    let pooler = Plan::new(cluster).max_connections(4).start_alone();
    let mut calm = Crowd::canary(&pooler.address, &canary);
    sleep(Duration::from_millis(500));
    let mut undisturbed = calm.finish();
    calm = Crowd::canary(&pooler.address, &canary);
    let before = pooler.rss();
    let mut client = pooler.client(&user);
    let token = client.token();
    let start = Instant::now();
    let loud = format!(
        "do $$ begin for i in 1..100000 loop raise notice '{token} % {}', i; end loop; end $$",
        "n".repeat(1000)
    );
    client.send(&Frames::new().query(&loud).0).expect("open");
    let mut most = before;
    for i in 1..=100_000 {
        let message = client.read().expect("a notice");
        assert_eq!(message.tag, b'N');
        if i == 1 {
            assert!(start.elapsed() < seconds(0.5, 0.1), "the first after {:?}", start.elapsed());
        }
        let text = message.error().message;
        assert!(text.starts_with(&format!("{token} {i} ")), "not the {i}th: {}", &text[..60]);
        if i % 1000 == 0 {
            most = most.max(pooler.rss());
        }
    }
    assert_eq!(client.collect().expect("the end").sequence, "CZ");
    assert!(most - before < 32 << 20, "{} MB for notices", (most - before) >> 20);
    let mut disturbed = calm.finish();
    disturbed.assert_faultless();
    undisturbed.assert_faultless();
    let relative = undisturbed.p99() * 3 + Duration::from_millis(40);
    let limit = if is_long() { Duration::from_millis(20) } else { relative };
    eprintln!("a6: the canary's p99 is {:?}, and was {:?}", disturbed.p99(), undisturbed.p99());
    assert!(disturbed.p99() < limit, "{:?} where {limit:?} is allowed", disturbed.p99());
    drop(client);
    pooler.finish();
}

/// Replies of one message more than asked for do not confuse who is next: CommandComplete twice, then ReadyForQuery.
#[test]
fn an_extra_ready_is_never_handed_on() {
    if !Target::is_pgpinion() {
        return;
    }
    let fake = FakeServer::start(|mut connection| {
        if !connection.log_in() {
            return;
        }
        while let Some((tag, body)) = connection.read_frame() {
            // At once: an answer that comes later could be one to the next query, for all that anybody can tell.
            let twice = [echo("twice"), complete("SELECT 9"), ready(b'I')].concat();
            let is_twice = tag == b'Q' && body.starts_with(b"twice");
            if !(if is_twice { connection.send(&twice) } else { connection.answer(tag, &body) }) {
                return;
            }
        }
    });
    let pooler = Plan::to_port(fake.port()).max_connections(1).start();
    let mut one = pooler.client("user");
    let mut two = pooler.client("user");
    for round in 0..20 {
        let _ = one.query("twice");
        let statement = format!("select {round}");
        let reply = two.query(&statement).expect("a server whose replies are counted");
        assert_eq!((reply.sequence.as_str(), reply.value()), ("TDCZ", statement));
        one = pooler.client("user");
    }
    drop((one, two));
    pooler.finish();
}
