//! S04: whatever a client pipelines, it reads what PostgreSQL itself would have answered.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::crowd::{Crowd, Habit};
use crate::pooler::{Plan, Target, login};
use crate::random::Random;
use crate::scale::pick;
use crate::wire::{Client, Frames};

#[test]
fn s04_pipelines_with_errors_answer_as_postgresql() {
    // PgBouncer 1.18 loses count of such pipelines, and one client then reads another's replies.
    if Target::current() == Target::Pgbouncer {
        return;
    }
    let ways = [("transaction", 1), ("transaction", 2), ("session", 1)];
    let clusters = Cluster::of_each_release();
    for (cluster, (mode, shards)) in clusters.iter().flat_map(|&cluster| ways.map(|way| (cluster, way))) {
        let (user, other) = (cluster.user("user"), cluster.user("other"));
        // In session mode each keeps one, and the rest would wait until others have left.
        let clients = pick(3, 50);
        let servers = if mode == "session" { clients as usize + 3 } else { 6 };
        let pooler = Plan::new(cluster).mode(mode).shards(shards).max_connections(servers).start();
        let crowd = Crowd::start(2, &pooler.address, &other, Habit::LIGHT);
        std::thread::scope(|scope| {
            for number in 0..clients {
                let (pooler, user) = (&pooler, &user);
                scope.spawn(move || {
                    let mut random = Random::new(400 + number);
                    let mut direct = Client::connect(&cluster.address(), &login(user)).expect("PostgreSQL");
                    let mut through = pooler.client(user);
                    for _ in 0..pick(150, 400) {
                        let frames = pipeline(&mut random);
                        let expected = answer(&mut direct, &frames);
                        let got = answer(&mut through, &frames);
                        assert!(expected == got, "{}", difference(&frames, &expected, &got));
                    }
                    through.assert_silent(Duration::from_millis(50));
                });
            }
        });
        crowd.finish().assert_faultless();
        cluster.assert_quiet(&user, if Target::is_direct() { usize::MAX } else { servers });
        pooler.finish();
    }
}

/// PostgreSQL 18 calls itself idle after a Query within a batch and a Sync, and fails the next command with XX000. That is not
/// for somebody else to hear.
#[test]
fn s04_what_a_query_within_a_batch_leaves_is_nobody_elses() {
    if !Target::is_pgpinion() {
        return;
    }
    for cluster in Cluster::of_each_release() {
        for mode in ["transaction", "statement", "session"] {
            let user = cluster.user("user");
            let pooler = Plan::new(cluster).mode(mode).max_connections(1).start();
            for leaves in [false, true] {
                let mut client = pooler.client(&user);
                let begun = Frames::new().unnamed("select 1", &[]);
                // In statement mode PostgreSQL 18 has begun a transaction, which is refused.
                client.send(&begun.query("select 2").sync().0).expect("open");
                match client.collect().and_then(|first| Ok((first, client.collect()?))) {
                    Ok((first, second)) => {
                        assert_eq!(first.sequence, "12TDCTDCZ", "{mode}");
                        assert_eq!((second.sequence.as_str(), second.status), ("Z", b'I'), "{mode}");
                    }
                    Err(fault) => assert_eq!((mode, fault.code()), ("statement", "0A000"), "{fault}"),
                }
                // In session mode the server is its own, with what it made of it.
                if leaves || mode == "session" {
                    client.terminate_and_wait();
                }
                let mut next = pooler.client(&user);
                for statement in ["begin; select 3; commit", "select 4"] {
                    let reply = next.query(statement).expect("a server");
                    assert_eq!(reply.code(), "", "{mode}: {:?}", reply.errors);
                }
                next.terminate_and_wait();
            }
            pooler.finish();
        }
    }
}

/// 1 to 30 (or 50) groups, most of them odd. Ends outside any transaction, with a row that says so: how many ReadyForQuery come
/// before depends on which queries are skipped after an error.
fn pipeline(random: &mut Random) -> Frames {
    let mut frames = Frames::new();
    for _ in 0..random.between(1, pick(30, 50)) {
        let value = random.below(1000).to_string();
        let select =
            |frames: Frames| frames.unnamed("select $1::text, i from generate_series(1, 3) i", &[&value]);
        frames = match random.below(24) {
            0 => frames.unnamed("select 1/0", &[]).unnamed("select 1", &[]).sync(),
            1 => frames.unnamed("selec 1", &[]).sync(),
            2 => frames.bind("", "no such statement", &[]).execute("", 0).sync(),
            3 => select(frames).flush().sync(),
            4 => select(frames).query("select 'simple inside'"),
            5 => select(frames).sync().sync(),
            6 => select(frames).close(b'P', "").close(b'S', "nobody").sync(),
            7 => suspended(frames).sync(),
            8 => suspended(frames).flush().execute("p", 1).execute("p", 0).close(b'P', "p").sync(),
            9 => frames.parse("", "select $1::int").describe(b'S', "").sync(),
            10 => frames.query("begin"),
            11 => frames.query("commit"),
            12 => frames.query("select 1; select 1/0; select 2"),
            13 => frames.query(""),
            14 => frames.unnamed("", &[]).sync(),
            15 => frames.query("select repeat('w', 30000); begin; select 2; rollback"),
            16 => frames.unnamed("begin", &[]).sync().unnamed("select 1", &[]).sync(),
            17 => frames.query("set local work_mem = '1MB'"),
            18 => frames.unnamed("copy (select 7) to stdout", &[]).sync(),
            // abs(int4) without its argument.
            19 => frames.function_call(1397),
            _ => select(frames).sync(),
        };
    }
    frames.sync().query("rollback").query(LAST_QUERY)
}

/// A named portal of which one row is fetched.
fn suspended(frames: Frames) -> Frames {
    frames
        .parse("", "select i from generate_series(1, 3) i")
        .bind("p", "", &[])
        .describe(b'P', "p")
        .execute("p", 1)
}

/// All that is answered, without what differs between two sessions by itself.
fn answer(client: &mut Client, frames: &Frames) -> Vec<String> {
    client.send(&frames.0).expect("open");
    let mut seen = Vec::new();
    let mut ends = false;
    loop {
        let message = client.read().unwrap_or_else(|fault| {
            panic!("{fault} after {} messages for {:?}", seen.len(), String::from_utf8_lossy(&frames.0))
        });
        let body = match message.tag {
            b'S' => continue,
            b'E' | b'N' => message.error().to_string(),
            _ => String::from_utf8_lossy(&message.body).into_owned(),
        };
        ends |= message.tag == b'D' && body.contains(LAST_VALUE);
        seen.push(format!("{} {body}", message.tag as char));
        if ends && message.tag == b'Z' {
            return seen;
        }
    }
}

const LAST_QUERY: &str = "select 'the last of all'";
const LAST_VALUE: &str = "the last of all";

fn difference(frames: &Frames, expected: &[String], got: &[String]) -> String {
    let at = expected.iter().zip(got).take_while(|(one, two)| one == two).count();
    let around =
        |list: &[String]| list.iter().skip(at.saturating_sub(3)).take(8).cloned().collect::<Vec<_>>();
    format!(
        "after {at} equal messages, PostgreSQL: {:?}, received: {:?}\nrequest: {:?}",
        around(expected),
        around(got),
        String::from_utf8_lossy(&frames.0)
    )
}
