//! Versions of the protocol: clients of 3.0 and 3.2 (and of what does not exist) before PostgreSQL 15 and 18, and before
//! servers that know nothing of versions.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::fake_server::{FakeConnection, FakeServer, error, ready, welcome};
use crate::pooler::{Plan, Pooler, Target, login};
use crate::process::eventually;
use crate::wire::{Address, Client, Fault, Frames, Message, PgError, cancel, startup_of};

/// What a client with these wishes is greeted with, without what is a session's own: parameters, process id and key. Of a
/// refusal, its words.
fn greeting(address: &Address, minor: u16, parameters: &[(&str, &str)]) -> Result<Vec<String>, String> {
    match Client::connect_speaking(address, minor, parameters) {
        Ok((client, greeting)) => {
            client.terminate();
            let told = |message: &Message| match message.tag {
                b'S' => None,
                b'K' => Some(format!("K of {} bytes", message.body.len())),
                tag => Some(format!("{} {:?}", tag as char, message.body)),
            };
            Ok(greeting.iter().filter_map(told).collect())
        }
        Err(fault) => Err(fault.to_string()),
    }
}

/// Before 15 too: the version is settled between the client and us.
#[test]
fn greetings_are_those_of_postgresql_18() {
    let clusters = Cluster::of_each_release();
    let Some(newest) = clusters.get(1) else { return };
    if !Target::is_pgpinion() {
        return;
    }
    for cluster in &clusters {
        let (user, same) = (cluster.user("user"), newest.user("same"));
        let pooler = Plan::new(cluster).start();
        for minor in [0, 1, 2, 3, 9999, u16::MAX] {
            for options in [&[][..], &[("_pq_.b", "1"), ("_pq_.a", "")]] {
                let wishes = |user| [&[("user", user), ("database", "app")], options].concat();
                let expected = greeting(&newest.address(), minor, &wishes(&same)).expect("a login");
                let got = greeting(&pooler.address, minor, &wishes(&user)).expect("a login");
                assert_eq!(got, expected, "3.{minor} with {options:?}");
            }
        }
        pooler.finish();
    }
}

#[test]
fn another_major_version_is_refused_as_by_postgresql_18() {
    let clusters = Cluster::of_each_release();
    let Some(newest) = clusters.get(1) else { return };
    if !Target::is_pgpinion() {
        return;
    }
    let pooler = Plan::new(newest).start();
    let words = |address: &Address, version: u32| -> PgError {
        let mut client = Client::dial(address).expect("it accepts");
        client.send(&startup_of(version, &login("postgres"))).expect("open");
        client.read_to_end(Duration::from_secs(5)).expect("it says why")
    };
    for version in [0x0004_0000, 0x0004_0002, 0x00ff_0003] {
        let (expected, got) = (words(&newest.address(), version), words(&pooler.address, version));
        assert_eq!(got.to_string(), expected.to_string(), "{version:#x}");
    }
    pooler.finish();
}

/// The same script directly and through us, in both versions of the protocol, before each PostgreSQL.
#[test]
fn sessions_of_each_version_answer_as_postgresql() {
    for cluster in Cluster::of_each_release() {
        let user = cluster.user("user");
        for mode in ["transaction", "session"] {
            let pooler = Plan::new(cluster).mode(mode).max_connections(2).start();
            for minor in [0, 2] {
                let speaking = |address: &Address| Client::connect_speaking(address, minor, &login(&user));
                let (mut direct, _) = speaking(&cluster.address()).expect("PostgreSQL");
                let (mut through, _) = speaking(&pooler.address).expect("a login");
                for frames in script() {
                    let (expected, got) = (answer(&mut direct, &frames), answer(&mut through, &frames));
                    assert_eq!(got, expected, "3.{minor}, {mode}");
                }
                through.assert_silent(Duration::from_millis(20));
            }
            pooler.finish();
        }
    }
}

fn script() -> Vec<Frames> {
    let new = Frames::new;
    vec![
        new().query("select 1, null, 'text'"),
        new().query("select 1; select 1/0; select 2"),
        new().query(""),
        new().unnamed("select $1::text, i from generate_series(1, 3) i", &["x"]).sync(),
        new().unnamed("select 1/0", &[]).unnamed("select 1", &[]).sync(),
        new().parse("s", "select $1::int + 1").describe(b'S', "s").sync(),
        new().bind("", "s", &["41"]).describe(b'P', "").execute("", 0).close(b'S', "s").sync(),
        new().query("copy (select 1, 'row') to stdout"),
        new().query("do $$ begin raise notice 'seen'; end $$"),
        new().query("begin; create temp table t (a int) on commit drop"),
        new().query("declare c cursor for select i from generate_series(1, 5) i"),
        new().query("fetch 2 from c"),
        new().query("savepoint a; select 1/0"),
        new().query("rollback to a; select 'again'"),
        new().query("commit"),
        // abs(int4) without its argument.
        new().function_call(1397),
    ]
}

/// All messages up to and with the ReadyForQuery.
fn answer(client: &mut Client, frames: &Frames) -> Vec<(char, Vec<u8>)> {
    client.send(&frames.0).expect("open");
    let mut seen = Vec::new();
    while seen.last().is_none_or(|&(tag, _)| tag != 'Z') {
        let message = client.read().expect("an answer");
        seen.push((message.tag as char, message.body));
    }
    seen
}

/// Keys of all lengths that are not the client's: nothing is cancelled, and whoever asks is let go.
#[test]
fn cancel_requests_of_any_length_do_no_harm() {
    for cluster in Cluster::of_each_release() {
        let user = cluster.user("user");
        let pooler = Plan::new(cluster).start();
        for (minor, key_bytes) in [(0, 4), (2, 32)] {
            let speaking = Client::connect_speaking(&pooler.address, minor, &login(&user));
            let (mut client, _) = speaking.expect("a login");
            let (process, key) = client.key();
            if Target::is_pgpinion() {
                assert_eq!(key.len(), key_bytes, "3.{minor}");
            }
            client.send(&Frames::new().query("select pg_sleep(0.5)").0).expect("open");
            for length in (0..key.len()).chain([key.len() + 1, 64, 256, 257, 1000, 9_900]) {
                let mut wrong = key.clone();
                wrong.resize(length, 0);
                cancel(&pooler.address, &(process, wrong));
            }
            assert_eq!(client.collect().expect("an answer").code(), "", "3.{minor}");
            // And the whole one still does.
            let running = format!(
                "select count(*) from pg_stat_activity where usename = '{user}' and state = 'active'"
            );
            client.send(&Frames::new().query("select pg_sleep(30)").0).expect("open");
            eventually("it runs", Duration::from_secs(5), || cluster.value(&running) == "1");
            cancel(&pooler.address, &(process, key));
            assert_eq!(client.collect().expect("an answer").code(), "57014", "3.{minor}");
        }
        pooler.finish();
    }
}

/// A login of a server that trusts everybody, behind what it says first, with this key.
fn let_in(connection: &mut FakeConnection, first: &[u8], key: &[u8]) -> bool {
    let told = Frames::new().frame(b'K', &[&9_u32.to_be_bytes(), key]).0;
    let mut greeting = [first, &welcome(connection.number)].concat();
    let (key_bytes, ready_bytes) = (5 + 8, ready(b'I').len());
    greeting.truncate(greeting.len() - key_bytes - ready_bytes);
    connection.send(&[greeting, told, ready(b'I')].concat())
}

/// The minor version that the connection asks for.
fn asked(connection: &FakeConnection) -> u8 {
    connection.startup[3]
}

fn start(fake: &FakeServer) -> Pooler {
    Plan::to_port(fake.port()).start()
}

/// What cancel requests to a fake server said, with its key.
fn cancelled_with(minor: u16, key: &'static [u8]) -> Vec<u8> {
    let (tell, told) = std::sync::mpsc::channel();
    let fake = FakeServer::start(move |mut connection| {
        if !connection.read_startup() {
            return;
        }
        if connection.startup.starts_with(&80_877_102_u32.to_be_bytes()) {
            let _ = tell.send(connection.startup.clone());
            return;
        }
        let_in(&mut connection, b"", key);
        // The query is answered when the request has come, and by its end.
        while connection.read_frame().is_some() {}
    });
    let pooler = start(&fake);
    let (mut client, _) = Client::connect_speaking(&pooler.address, minor, &login("user")).expect("a login");
    client.send(&Frames::new().query("select 1").0).expect("open");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A request that comes before the query cancels nothing.
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                cancel(&pooler.address, &client.key());
            }
        });
        let request = told.recv_timeout(Duration::from_secs(5)).expect("a request");
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        request
    })
}

#[test]
fn the_key_of_a_server_is_given_back_whole_however_long() {
    if !Target::is_pgpinion() {
        return;
    }
    for minor in [0, 2] {
        for key in [&[1_u8; 4][..], &[2; 5], &[3; 32], &[4; 256]] {
            let request = cancelled_with(minor, key);
            assert_eq!(request[4..], [&9_u32.to_be_bytes()[..], key].concat(), "3.{minor}");
        }
    }
}

#[test]
fn a_key_of_no_allowed_length_ends_the_login() {
    if !Target::is_pgpinion() {
        return;
    }
    for bytes in [0, 3, 257, 20_000] {
        let fake = FakeServer::start(move |mut connection| {
            if connection.read_startup() {
                let_in(&mut connection, b"", &vec![7; bytes]);
                connection.is_closed_within(Duration::from_secs(10));
            }
        });
        let pooler = start(&fake);
        let fault = pooler.try_client("user").expect_err("there is no server to be had");
        assert_eq!(fault.code(), "08P01", "{fault}");
        let text = fault.to_string();
        let said = if bytes < 16_000 { format!("a cancel key of {bytes} bytes") } else { "length".into() };
        assert!(text.contains("the server broke the protocol") && text.contains(&said), "{text}");
        pooler.finish();
    }
}

#[test]
fn servers_that_know_no_versions_are_asked_for_the_oldest() {
    if !Target::is_pgpinion() {
        return;
    }
    let refusals: [(&str, Vec<u8>); 3] = [
        ("PgBouncer before 1.22", error("FATAL", "08P01", "bad packet header: '0000002a00030002'")),
        ("PostgreSQL before 9.3", error("FATAL", "0A000", "unsupported frontend protocol 3.2")),
        ("somebody who hangs up", Vec::new()),
    ];
    for (who, refusal) in refusals {
        let fake = FakeServer::start(move |mut connection| {
            if !connection.read_startup() {
                return;
            }
            if asked(&connection) > 0 {
                connection.send(&refusal);
                return;
            }
            if let_in(&mut connection, b"", &[1, 2, 3, 4]) {
                connection.serve();
            }
        });
        let pooler = start(&fake);
        let mut client = pooler.client("user");
        assert_eq!(client.query("served").expect("a server").value(), "served", "{who}");
        assert_eq!(fake.accepted(), 2, "{who}: one attempt was enough to learn");
        assert!(pooler.log().contains("is asked for protocol 3.0 for 10 minutes"), "{who}");
        drop(client);
        pooler.finish();
    }
}

#[test]
fn negotiations_of_servers_are_understood_or_refused() {
    if !Target::is_pgpinion() {
        return;
    }
    let cases: &[(&str, &[u8], bool)] = &[
        ("3.0", &[0, 3, 0, 0, 0, 0, 0, 0], true),
        ("3.0, as the chapter writes it", &[0, 0, 0, 0, 0, 0, 0, 0], true),
        ("3.2, as was asked for", &[0, 3, 0, 2, 0, 0, 0, 0], false),
        ("3.3", &[0, 3, 0, 3, 0, 0, 0, 0], false),
        ("4.0", &[0, 4, 0, 0, 0, 0, 0, 0], false),
        ("an option that was not asked for", b"\0\x03\0\0\0\0\0\x01_pq_.x\0", false),
        ("options that are not there", &[0, 3, 0, 0, 0xff, 0xff, 0xff, 0xff], false),
        ("half of it", &[0, 3], false),
    ];
    for &(what, body, good) in cases {
        let fake = FakeServer::start(move |mut connection| {
            let first = Frames::new().frame(b'v', &[body]).0;
            if connection.read_startup() && let_in(&mut connection, &first, &[1, 2, 3, 4]) {
                connection.serve();
            }
        });
        let pooler = start(&fake);
        match pooler.try_client("user") {
            Ok(_) => assert!(good, "{what}"),
            Err(fault) => {
                assert!(!good && matches!(fault, Fault::Closed(Some(_))), "{what}: {fault}");
                assert!(fault.to_string().contains("NegotiateProtocolVersion"), "{what}: {fault}");
            }
        }
        pooler.finish();
    }
}
