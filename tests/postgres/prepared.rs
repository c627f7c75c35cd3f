//! S11: named prepared statements in transaction and statement pooling. The same script goes to PostgreSQL and through the
//! pooler, and every message must be the same, byte for byte.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::pooler::{Plan, Pooler, Target, login};
use crate::random::Random;
use crate::wire::{Client, Frames};

/// PgBouncer 1.18 knows nothing of named statements.
fn is_of_use() -> bool {
    Target::current() != Target::Pgbouncer
}

#[test]
fn s11_scripts_answer_as_postgresql_to_the_byte() {
    if !is_of_use() {
        return;
    }
    for cluster in Cluster::of_each_release() {
        scripts_answer_as_postgresql(cluster);
    }
}

fn scripts_answer_as_postgresql(cluster: &Cluster) {
    let user = cluster.user("user");
    for (mode, connections, statements) in [
        ("transaction", 1, 200),
        ("transaction", 3, 2),
        ("session", 1, 200),
        ("statement", 1, 200),
        ("statement", 3, 2),
    ] {
        let pooler = Plan::new(cluster)
            .mode(mode)
            .max_connections(connections)
            .set("max_prepared_statements", statements)
            .start();
        for (name, script) in scripts() {
            let mut direct = Client::connect(&cluster.address(), &login(&user)).expect("PostgreSQL");
            let mut through = pooler.client(&user);
            let fits = |frames: &&Frames| mode != "statement" || !begins_transaction(frames);
            for (step, frames) in script.iter().filter(fits).enumerate() {
                let frames = frames.clone().query(LAST_QUERY);
                let (expected, got) = (answer(&mut direct, &frames), answer(&mut through, &frames));
                assert!(
                    are_equal(&expected, &got),
                    "{mode}, {name}, step {step}: {}",
                    difference(&frames, &expected, &got)
                );
            }
            through.assert_silent(Duration::from_millis(20));
        }
        pooler.finish();
    }
}

/// A transaction over several requests, which statement mode refuses.
fn begins_transaction(frames: &Frames) -> bool {
    frames.0.windows(5).any(|word| word == b"begin")
}

/// Scripts, each of steps that are awaited. A step ends outside any transaction.
fn scripts() -> Vec<(&'static str, Vec<Frames>)> {
    let new = Frames::new;
    let run = |frames: Frames, name: &str, parameters: &[&str]| {
        frames.bind("", name, parameters).describe(b'P', "").execute("", 0)
    };
    let long = |count: usize, end: &str| "n".repeat(count) + end;
    let same = (long(63, "a"), long(63, "b"));
    let other = (long(62, "a"), long(62, "b"));
    let endless = long(4097, "");
    let huge = "p".repeat(9_000);
    let large = format!("select $1::text, '{}'", "x".repeat(100_000));
    vec![
        ("all at once", vec![run(new().parse("a", "select $1::int + 1"), "a", &["1"]).sync()]),
        (
            "one after the other",
            vec![
                new().parse("a", "select $1::int + 1").sync(),
                new().describe(b'S', "a").sync(),
                run(new(), "a", &["1"]).sync(),
                run(run(new(), "a", &["2"]), "a", &["3"]).sync(),
                new().close(b'S', "a").sync(),
                run(new(), "a", &["1"]).sync(),
                new().parse("a", "select 'other'").sync(),
                run(new(), "a", &[]).sync(),
            ],
        ),
        (
            "a name twice",
            vec![
                new().parse("a", "select 1").sync(),
                new().parse("a", "select 1").parse("b", "select 2").sync(),
                new().parse("a", "select 2").sync(),
                new().parse("a", "selec").sync(),
                new().parse("a", "select * from nowhere").sync(),
                run(new(), "b", &[]).sync(),
                run(new(), "a", &[]).sync(),
                new().parse("c", "select 3").parse("c", "select 4").sync(),
                run(new(), "c", &[]).sync(),
                new().parse("d", "select 3").sync().parse("d", "select 4").sync(),
                run(new(), "d", &[]).sync(),
            ],
        ),
        (
            "a Parse that fails",
            vec![
                new().parse("a", "selec 1").sync(),
                run(new(), "a", &[]).sync(),
                new().parse("a", "select 1").sync(),
                run(new(), "a", &[]).sync(),
                new().parse("b", "selec").sync().parse("b", "select 7").sync(),
                run(new().parse("c", "selec").sync(), "c", &[]).sync(),
                run(
                    new().parse("d", "select 1/0").parse("e", "selec").parse("f", "select 1").sync(),
                    "d",
                    &[],
                )
                .sync(),
                run(new(), "e", &[]).sync(),
                run(new(), "f", &[]).sync(),
            ],
        ),
        (
            "names nobody defined",
            vec![
                run(new(), "nobody", &[]).sync(),
                new().describe(b'S', "nobody").sync(),
                new().close(b'S', "nobody").sync(),
                run(new(), "pgpinion_", &[]).sync(),
                new().describe(b'S', "pgpinion_7564e853d733d68343faa17c9a20341076f01a3f").sync(),
                new().close(b'S', "pgpinion_7564e853d733d68343faa17c9a20341076f01a3f").sync(),
                new().parse("pgpinion_x", "select 8").sync(),
                run(new(), "pgpinion_x", &[]).sync(),
            ],
        ),
        (
            "wrong numbers of parameters",
            vec![
                new().parse("a", "select $1::int").sync(),
                run(new(), "a", &[]).sync(),
                run(new(), "a", &["1", "2"]).sync(),
                run(new(), "a", &["no number"]).sync(),
                run(new(), "a", &["1"]).sync(),
            ],
        ),
        (
            "skipped after an error",
            vec![
                new().parse("a", "select 1").sync(),
                run(new().unnamed("select 1/0", &[]).parse("b", "select 2"), "b", &[])
                    .close(b'S', "a")
                    .sync(),
                run(new(), "a", &[]).sync(),
                run(new(), "b", &[]).sync(),
                run(new().unnamed("select 1/0", &[]).close(b'S', "a").sync(), "a", &[]).sync(),
                new().unnamed("select 1/0", &[]).parse("a", "select 2").sync().parse("c", "select 3").sync(),
                run(run(new(), "a", &[]), "c", &[]).sync(),
            ],
        ),
        (
            "a transaction that fails",
            vec![
                new().parse("a", "select 1").parse("r", "rollback").sync(),
                new().query("begin").query("select 1/0").parse("a2", "select 1").sync().query("rollback"),
                run(new(), "a2", &[]).sync(),
                run(new().query("begin").query("select 1/0"), "a", &[]).sync().query("rollback"),
                new().query("begin").query("select 1/0").describe(b'S', "a").sync().query("rollback"),
                new().query("begin").query("select 1/0").parse("r2", "rollback").sync().query("rollback"),
                run(new().query("begin").query("select 1/0"), "r", &[]).sync(),
                new().query("begin").query("select 1/0").close(b'S', "a").sync().query("rollback"),
                run(new(), "a", &[]).sync(),
                new()
                    .unnamed("begin", &[])
                    .sync()
                    .unnamed("select 1/0", &[])
                    .sync()
                    .parse("z", "select 1")
                    .sync()
                    .query("rollback"),
                run(new(), "z", &[]).sync(),
            ],
        ),
        (
            "flushes and portals",
            vec![
                new()
                    .parse("a", "select i from generate_series(1, 5) i")
                    .flush()
                    .bind("p", "a", &[])
                    .flush()
                    .execute("p", 2)
                    .close(b'S', "a")
                    .execute("p", 2)
                    .flush()
                    .execute("p", 0)
                    .close(b'P', "p")
                    .sync(),
                new()
                    .query("begin")
                    .parse("b", "select i from generate_series(1, 5) i")
                    .bind("q", "b", &[])
                    .execute("q", 1)
                    .sync()
                    .close(b'S', "b")
                    .execute("q", 1)
                    .sync()
                    .query("commit"),
            ],
        ),
        (
            "names as long as they may be",
            vec![
                new().parse(&same.0, "select 1").sync(),
                run(new(), &same.1, &[]).sync(),
                new().parse(&same.1, "select 2").sync(),
                new().close(b'S', &same.1).sync(),
                run(new(), &same.0, &[]).sync(),
                new().parse(&other.0, "select 1").parse(&other.1, "select 2").sync(),
                run(run(new(), &other.0, &[]), &other.1, &[]).sync(),
                new().parse(&endless, "select 3").sync(),
                run(new(), &endless, &["1"]).sync(),
                run(new(), &endless, &[]).sync(),
                new().parse("a", "select 5").bind(&huge, "a", &[]).execute(&huge, 0).sync(),
            ],
        ),
        (
            "large texts and values",
            vec![
                new().parse("large", &large).sync(),
                run(new(), "large", &[&"v".repeat(300_000)]).sync(),
                run(new().parse("small", "select $1::text"), "small", &[&"v".repeat(300_000)]).sync(),
                run(run(new(), "small", &[&"w".repeat(70_000)]), "large", &[&"v".repeat(70_000)]).sync(),
            ],
        ),
        (
            "messages out of shape",
            vec![
                new().frame(b'P', &[b"a\0select 1\0\0"]).sync(),
                new().frame(b'P', &[b"a\0select 1\0\0\x01"]).sync(),
                new().frame(b'P', &[b"a"]).sync(),
                new().frame(b'D', &[b"S"]).sync(),
                new().frame(b'D', &[b"Sa"]).sync(),
                new().frame(b'D', &[b"Sa\0b\0"]).sync(),
                new().frame(b'D', &[b"X\0"]).sync(),
                new().frame(b'C', &[b"Sa\0b"]).sync(),
                new().frame(b'B', &[b"p"]).sync(),
                new().frame(b'B', &[b"\0a"]).sync(),
                new().frame(b'B', &[b"\0a\0"]).sync(),
                new().parse("a", "select 1").frame(b'B', &[b"\0a\0"]).sync(),
                new().parse("a2", "select 1").frame(b'B', &[b"\0a2\0\0\0\0\0\0\0\0"]).sync(),
            ],
        ),
        (
            "commands between",
            vec![
                new().parse("a", "select 1").query("select 2").bind("", "a", &[]).execute("", 0).sync(),
                new().query("deallocate all").parse("a", "select 2").sync(),
                run(new(), "a", &[]).sync(),
                new().query("discard all"),
                new().parse("a", "select 3").sync(),
                run(new(), "a", &[]).sync(),
                new().query("deallocate a"),
                run(new(), "a", &[]).sync(),
                new().query("deallocate a").query("deallocate nobody"),
                new()
                    .parse("a", "select 4")
                    .sync()
                    .query("DEALLOCATE PREPARE \"a\";")
                    .bind("", "a", &[])
                    .sync(),
                new()
                    .parse("a", "select 5")
                    .sync()
                    .query("begin; select 1/0")
                    .query("deallocate a")
                    .query("rollback"),
                run(new(), "a", &[]).sync(),
                new().query("begin").query("deallocate a").query("rollback"),
                run(new(), "a", &[]).sync(),
                new().parse("a", "select 6").query("deallocate a").parse("a", "select 7").sync(),
                run(new(), "a", &[]).sync(),
                new().query("prepare p as select 1").query("begin").query("deallocate p").query("commit"),
                run(new(), "a", &[]).sync(),
            ],
        ),
        (
            "a COPY in the middle",
            vec![
                run(
                    new()
                        .query("begin; create temp table t (a int) on commit drop")
                        .parse("copy", "copy t from stdin")
                        .bind("", "copy", &[])
                        .execute("", 0)
                        .copy_data(b"1\n")
                        .copy_done()
                        .parse("count", "select count(*) from t"),
                    "count",
                    &[],
                )
                .sync()
                .query("commit"),
                run(new(), "count", &[]).sync(),
                run(
                    new()
                        .query("begin; create temp table t (a int) on commit drop; copy t from stdin")
                        .copy_data(b"1\n2\n")
                        .copy_done(),
                    "count",
                    &[],
                )
                .sync()
                .query("commit"),
            ],
        ),
        (
            "typed",
            vec![
                new().frame(b'P', &[b"t\0select $1\0\0\x01\0\0\0\x17"]).describe(b'S', "t").sync(),
                new()
                    .frame(b'P', &[b"u\0select $1\0\0\x01\0\0\0\x19"])
                    .describe(b'S', "u")
                    .describe(b'S', "t")
                    .sync(),
                run(run(new(), "t", &["1"]), "u", &["x"]).sync(),
            ],
        ),
    ]
}

#[test]
fn s11_random_pipelines_answer_as_postgresql_to_the_byte() {
    if !is_of_use() {
        return;
    }
    for cluster in Cluster::of_each_release() {
        random_pipelines_answer_as_postgresql(cluster);
    }
}

fn random_pipelines_answer_as_postgresql(cluster: &Cluster) {
    let user = cluster.user("user");
    let ways = [
        ("transaction", 1, 1, 200),
        ("transaction", 3, 2, 3),
        ("transaction", 4, 1, 5),
        ("statement", 1, 1, 200),
        ("statement", 3, 2, 3),
    ];
    // A Query within a batch begins a transaction in PostgreSQL 18, which statement mode refuses.
    let begins = !std::ptr::eq(cluster, Cluster::shared());
    for (mode, connections, shards, statements) in
        ways.into_iter().filter(|(mode, ..)| !begins || *mode != "statement")
    {
        let pooler = Plan::new(cluster)
            .mode(mode)
            .shards(shards)
            .max_connections(connections)
            .set("max_prepared_statements", statements)
            .start();
        std::thread::scope(|scope| {
            for number in 0..4 {
                let (pooler, user) = (&pooler, &user);
                scope.spawn(move || compare(cluster, pooler, mode, user, 1100 + number));
            }
        });
        assert_bounded(&pooler, mode, &user, connections, statements);
        pooler.finish();
    }
}

/// No server has more statements than it may, whatever failed or was skipped on the way. (Where a Close of ours was skipped with
/// its batch, and the batches behind it were under way, it has more until the next Parse.)
fn assert_bounded(pooler: &Pooler, mode: &str, user: &str, connections: usize, statements: usize) {
    if !Target::is_pgpinion() || mode == "statement" && connections > 1 {
        return;
    }
    let mut clients: Vec<Client> = (0..connections).map(|_| pooler.client(user)).collect();
    let mut seen = 0;
    for client in &mut clients {
        if mode != "statement" {
            // Each keeps a server of its own.
            assert_eq!(client.query("begin").expect("a server").code(), "");
        }
        client.send(&Frames::new().parse("last", "select 'last'").sync().0).expect("open");
        assert_eq!(client.collect().expect("an answer").sequence, "1Z");
        let count = client.query("select count(*) from pg_prepared_statements").expect("a server").value();
        let count: usize = count.parse().expect("a number");
        assert!(count <= statements, "{count} statements on a server, {statements} allowed");
        seen += count;
    }
    assert!(seen > 0, "what was prepared is somewhere");
    drop(clients);
}

fn compare(cluster: &Cluster, pooler: &Pooler, mode: &str, user: &str, seed: u64) {
    let mut random = Random::new(seed);
    let (texts, queries) = match mode {
        "statement" => (&TEXTS[..TEXTS.len() - 3], &QUERIES[..QUERIES.len() - 2]),
        _ => (TEXTS, QUERIES),
    };
    let mut direct = Client::connect(&cluster.address(), &login(user)).expect("PostgreSQL");
    let mut through = pooler.client(user);
    for _ in 0..250 {
        let frames = pipeline(&mut random, texts, queries);
        let expected = answer(&mut direct, &frames);
        let got = answer_in_pieces(&mut through, &frames, &mut random);
        // What a Query within a batch leaves in PostgreSQL 18 fails the next command of that session, or does not if a Parse
        // comes between, in the place of which it may have got a Close.
        let lost = expected
            .iter()
            .chain(&got)
            .any(|message| String::from_utf8_lossy(message).contains("\0CXX000\0"));
        assert!(lost || are_equal(&expected, &got), "{}", difference(&frames, &expected, &got));
        if expected != got {
            // What came after the Parse that failed was skipped: a Close, for one. From here on the two would differ.
            direct = Client::connect(&cluster.address(), &login(user)).expect("PostgreSQL");
            through = pooler.client(user);
        }
    }
    through.assert_silent(Duration::from_millis(50));
}

/// Statements of few names and texts, used and misused.
fn pipeline(random: &mut Random, texts: &[&str], queries: &[&str]) -> Frames {
    let mut frames = Frames::new();
    for _ in 0..random.between(1, 25) {
        let name: &str = random.pick::<&str>(NAMES);
        frames = match random.below(16) {
            0..=3 => frames.parse(name, random.pick::<&str>(texts)),
            4..=7 => {
                let parameters = &["1", "2"][..random.below(3).min(random.below(2)) as usize];
                frames.bind("", name, parameters).describe(b'P', "").execute("", 0)
            }
            8 => frames.describe(b'S', name),
            9 => frames.close(b'S', name),
            10 => frames.flush(),
            11 => frames.query(random.pick::<&str>(queries)),
            12 => frames.unnamed(random.pick::<&str>(texts), &[]),
            _ => frames.sync(),
        };
    }
    frames.sync().query("rollback").query(LAST_QUERY)
}

const NAMES: &[&str] = &["a", "b", "c", "d", "e", "a name of its own"];
const TEXTS: &[&str] = &[
    "select 1",
    "select $1::int + 1",
    "select $1::int, $2::text",
    "select i from generate_series(1, 3) i",
    "select 1/0",
    "selec",
    "select * from nowhere",
    "",
    "select repeat('x', 9000)",
    // Not in statement mode.
    "begin",
    "commit",
    "rollback",
];
const QUERIES: &[&str] = &["select 1/0", "select 7", "", "select 1; select 1/0", "begin", "commit"];

/// Sends a request in two pieces and waits for a moment between them, so that it is cut anywhere.
fn answer_in_pieces(client: &mut Client, frames: &Frames, random: &mut Random) -> Vec<Vec<u8>> {
    let cut = random.below(frames.0.len() as u64) as usize;
    client.send(&frames.0[..cut]).expect("open");
    if random.chance(20) {
        std::thread::sleep(Duration::from_micros(random.below(3000)));
    }
    client.send(&frames.0[cut..]).expect("open");
    read_answer(client, frames)
}

fn answer(client: &mut Client, frames: &Frames) -> Vec<Vec<u8>> {
    client.send(&frames.0).expect("open");
    read_answer(client, frames)
}

/// All messages up to the answer to [`LAST_QUERY`].
fn read_answer(client: &mut Client, frames: &Frames) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    let mut ends = false;
    loop {
        let message = client.read().unwrap_or_else(|fault| {
            panic!("{fault} after {} messages for {:?}", seen.len(), shown(&frames.0))
        });
        ends |= message.tag == b'D' && message.body.ends_with(LAST_VALUE.as_bytes());
        seen.push([&[message.tag], &message.body[..]].concat());
        if ends && message.tag == b'Z' {
            return seen;
        }
    }
}

/// The same messages, or the same up to where a statement that this server does not have cannot be prepared because the
/// transaction has failed. The client reads of that (25P02), but from a Parse: its routine and line are others, it comes
/// before PostgreSQL looks at the rest of a Bind, and a Describe that PostgreSQL would have answered fails so. What follows
/// is skipped up to the next Sync, be it a Close, a Query or a rollback: the rest may differ.
fn are_equal(expected: &[Vec<u8>], got: &[Vec<u8>]) -> bool {
    let late = |message: &Vec<u8>| {
        let text = String::from_utf8_lossy(message);
        text.contains("\0C25P02\0") && text.contains("\0Rexec_parse_message\0")
    };
    let at = expected.iter().zip(got).take_while(|(one, two)| one == two).count();
    let in_failed = |ready: Option<&Vec<u8>>| ready.is_some_and(|ready| ready == b"ZE");
    expected == got
        || got.get(at).is_some_and(late)
            && in_failed(got[..at].iter().rfind(|message| message[0] == b'Z'))
            && got.last() == expected.last()
}

const LAST_QUERY: &str = "select 'the last of all'";
const LAST_VALUE: &str = "the last of all";

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(3000)]).replace('\0', "~")
}

fn difference(frames: &Frames, expected: &[Vec<u8>], got: &[Vec<u8>]) -> String {
    let at = expected.iter().zip(got).take_while(|(one, two)| one == two).count();
    let around = |list: &[Vec<u8>]| {
        list.iter().skip(at.saturating_sub(3)).take(6).map(|each| shown(each)).collect::<Vec<_>>()
    };
    format!(
        "after {at} equal messages, PostgreSQL: {:#?}, received: {:#?}\nrequest: {:?}",
        around(expected),
        around(got),
        shown(&frames.0)
    )
}
