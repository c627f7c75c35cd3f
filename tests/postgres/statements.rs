//! S11: what is kept of named prepared statements, on servers and for clients: how many, how large, for how long.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::pooler::{Plan, Pooler, Target};
use crate::process::{cpus, eventually};
use crate::random::Random;
use crate::scale::{is_long, pick, seconds};
use crate::wire::{Client, Frames, Reply};

fn ask(client: &mut Client, frames: Frames) -> Reply {
    client.send(&frames.sync().0).expect("open");
    client.collect().expect("an answer")
}

fn prepare(client: &mut Client, name: &str, text: &str) -> Reply {
    ask(client, Frames::new().parse(name, text))
}

fn run(client: &mut Client, name: &str) -> Reply {
    ask(client, Frames::new().bind("", name, &[]).describe(b'P', "").execute("", 0))
}

/// Text, name and time of what the server has that the client gets.
fn on_server(client: &mut Client) -> Vec<Vec<String>> {
    let all = "select statement, name, prepare_time from pg_prepared_statements order by statement";
    client.query(all).expect("a server").text_rows()
}

fn texts_on_server(client: &mut Client) -> Vec<String> {
    on_server(client).into_iter().map(|row| row[0].clone()).collect()
}

#[test]
fn s11_the_statement_used_longest_ago_is_closed() {
    if !Target::is_pgpinion() {
        return;
    }
    for mode in ["transaction", "statement"] {
        let cluster = Cluster::shared();
        let user = cluster.user("user");
        let pooler =
            Plan::new(cluster).mode(mode).max_connections(1).set("max_prepared_statements", 3).start();
        let mut client = pooler.client(&user);
        for number in 1..=3 {
            assert_eq!(
                prepare(&mut client, &format!("s{number}"), &format!("select {number}")).sequence,
                "1Z"
            );
        }
        assert_eq!(run(&mut client, "s1").value(), "1");
        assert_eq!(prepare(&mut client, "s4", "select 4").sequence, "1Z");
        assert_eq!(texts_on_server(&mut client), ["select 1", "select 3", "select 4"]);
        assert_eq!(run(&mut client, "s2").value(), "2");
        assert_eq!(texts_on_server(&mut client), ["select 1", "select 2", "select 4"]);
        // All of them in one batch, again and again.
        for _ in 0..3 {
            let frames = (1..=4).fold(Frames::new(), |frames, number| {
                frames.bind("", &format!("s{number}"), &[]).execute("", 0)
            });
            let reply = ask(&mut client, frames);
            assert_eq!(reply.text_rows().concat(), ["1", "2", "3", "4"]);
            assert_eq!(on_server(&mut client).len(), 3);
        }
        drop(client);
        pooler.finish();
    }
}

/// Clients share what is the same, and each server prepares it once, under the same name.
#[test]
fn s11_equal_statements_are_prepared_once() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(2).start();
    let (mut one, mut two) = (pooler.client(&user), pooler.client(&user));
    assert_eq!(prepare(&mut one, "mine", "select 'same'").sequence, "1Z");
    let first = on_server(&mut one);
    assert_eq!(first.len(), 1);
    let name = &first[0][1];
    assert!(name.starts_with("pgpinion_") && name.len() == 49, "{name}");
    assert_eq!(prepare(&mut two, "yours", "select 'same'").sequence, "1Z");
    for _ in 0..3 {
        assert_eq!(run(&mut one, "mine").value(), "same");
        assert_eq!(run(&mut two, "yours").value(), "same");
    }
    assert_eq!(on_server(&mut two), first, "prepared once");
    // On another server it has the same name.
    assert_eq!(one.query("begin").expect("a server").status, b'T');
    assert_eq!(run(&mut two, "yours").value(), "same");
    let there = on_server(&mut two);
    assert_eq!((there.len(), &there[0][1]), (1, name));
    assert_ne!(there[0][2], first[0][2], "it is another server");
    assert_eq!(one.query("commit").expect("a server").status, b'I');
    // The same text with other types is another statement, and so is another text of the same name.
    let typed = Frames::new().frame(b'P', &[b"typed\0select $1\0\0\x01\0\0\0\x17"]);
    assert_eq!(ask(&mut one, typed.frame(b'P', &[b"text\0select $1\0\0\x01\0\0\0\x19"])).sequence, "11Z");
    assert_eq!(prepare(&mut one, "yours", "select 'other'").sequence, "1Z");
    let values = [("typed", "7"), ("text", "seven")].map(|(name, value)| {
        ask(&mut one, Frames::new().bind("", name, &[value]).describe(b'P', "").execute("", 0)).value()
    });
    assert_eq!(values, ["7", "seven"]);
    assert_eq!(run(&mut one, "yours").value(), "other");
    assert_eq!(run(&mut two, "yours").value(), "same");
    // What the clients took with them is nobody's, and is there for the next.
    one.terminate_and_wait();
    two.terminate_and_wait();
    let mut third = pooler.client(&user);
    assert_eq!(run(&mut third, "yours").code(), "26000");
    let before = on_server(&mut third);
    assert_eq!(prepare(&mut third, "yours", "select 'same'").sequence, "1Z");
    assert_eq!(run(&mut third, "yours").value(), "same");
    assert_eq!(on_server(&mut third), before, "it was there already");
    drop(third);
    pooler.finish();
}

/// A server that goes from shard to shard takes along what it has prepared, and has it prepared once.
#[test]
fn s11_statements_move_with_their_server() {
    if !Target::is_pgpinion() || cpus().len() < 2 {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).shards(2).max_connections(1).set("steering", false).start();
    // One of 20 clients is on another shard than the rest, but for one time in half a million.
    let mut clients: Vec<Client> = (0..20).map(|_| pooler.client(&user)).collect();
    for client in &mut clients {
        assert_eq!(prepare(client, "s", "select 'same', pg_backend_pid()").sequence, "1Z");
    }
    let found = (run(&mut clients[0], "s").text_rows(), on_server(&mut clients[0]));
    assert_eq!(found.1.len(), 1);
    for _ in 0..3 {
        for client in &mut clients {
            assert_eq!((run(client, "s").text_rows(), on_server(client)), found);
        }
    }
    let moved = || pooler.log().contains("handed over to shard");
    eventually("the log tells of it", Duration::from_secs(5), moved);
    drop(clients);
    pooler.finish();
}

/// Eight megabytes for each client, and one for each text. Who wants more is refused in order, and loses nothing.
#[test]
fn s11_what_a_client_holds_has_a_bound() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(1).start();
    let (mut client, mut other) = (pooler.client(&user), pooler.client(&user));
    let text = |number: usize, bytes: usize| format!("select '{number}' /* {} */", "x".repeat(bytes));
    let name = |number: usize| format!("s{number}");
    for number in 0..8 {
        assert_eq!(prepare(&mut client, &name(number), &text(number, 1_000_000)).sequence, "1Z", "{number}");
    }
    let frames = Frames::new()
        .unnamed("select 'before'", &[])
        .parse("s8", &text(8, 1_000_000))
        .bind("", "s8", &[])
        .execute("", 0);
    let reply = ask(&mut client, frames);
    assert_eq!((reply.sequence.as_str(), reply.code(), reply.status), ("12TDCEZ", "54000", b'I'));
    assert!(reply.errors[0].message.contains("may have 8388608 bytes"), "{}", reply.errors[0]);
    assert_eq!(run(&mut client, "s8").code(), "26000", "it was not remembered");
    for number in [0, 7] {
        assert_eq!(run(&mut client, &name(number)).value(), number.to_string());
    }
    // Others have a bound of their own, and a Close makes room.
    assert_eq!(prepare(&mut other, "s8", &text(8, 1_000_000)).sequence, "1Z");
    assert_eq!(ask(&mut client, Frames::new().close(b'S', "s3")).sequence, "3Z");
    assert_eq!(prepare(&mut client, "s8", &text(8, 1_000_000)).sequence, "1Z");
    assert_eq!(run(&mut client, "s8").value(), "8");
    assert_eq!(prepare(&mut client, "s9", &text(9, 1_000_000)).code(), "54000");
    // So does a DEALLOCATE ALL.
    assert_eq!(client.query("deallocate all").expect("a server").commands, ["DEALLOCATE ALL"]);
    for number in 10..18 {
        assert_eq!(prepare(&mut client, &name(number), &text(number, 1_000_000)).sequence, "1Z", "{number}");
    }
    // One that is too large has to go without a name.
    let huge = text(1, 1_100_000);
    let reply = prepare(&mut other, "huge", &huge);
    assert_eq!((reply.sequence.as_str(), reply.code()), ("EZ", "54000"));
    assert_eq!(other.extended(&huge, &[]).expect("a server").value(), "1");
    assert_eq!(run(&mut other, "s8").value(), "8");
    drop((client, other));
    pooler.finish();
}

/// Whoever knew the old columns is told once that they have changed, on whatever server; the next use works.
#[test]
fn s11_a_result_that_changes_is_told_once() {
    if !Target::is_pgpinion() {
        return;
    }
    for cluster in Cluster::of_each_release() {
        for (mode, connections) in [("transaction", 1), ("transaction", 2), ("statement", 2)] {
            a_result_changes(cluster, mode, connections);
        }
    }
}

fn a_result_changes(cluster: &Cluster, mode: &str, connections: usize) {
    let user = cluster.user("user");
    let function = format!("changes_{user}");
    let define = |columns: &str, values: &str| {
        cluster.sql(&format!(
            "drop function if exists {function};
             create function {function}() returns table({columns}) language sql as $$ select {values} $$"
        ));
    };
    let mode: &'static str = if mode == "statement" { "statement" } else { "transaction" };
    let pooler = Plan::new(cluster).mode(mode).max_connections(connections).start();
    define("a int", "1");
    let statement = format!("select * from {function}()");
    let (mut one, mut two) = (pooler.client(&user), pooler.client(&user));
    for client in [&mut one, &mut two] {
        assert_eq!(prepare(client, "s", &statement).sequence, "1Z");
        assert_eq!(run(client, "s").columns, ["a"]);
    }
    for (columns, values, row) in
        [("a int, b text", "2, 'x'", &["2", "x"][..]), ("a text", "'y'", &["y"]), ("c text", "'z'", &["z"])]
    {
        define(columns, values);
        for client in [&mut one, &mut two] {
            let reply = run(client, "s");
            assert_eq!((reply.sequence.as_str(), reply.code()), ("EZ", "0A000"), "{mode}: {columns}");
            assert_eq!(reply.errors[0].message, "cached plan must not change result type");
            for _ in 0..3 {
                let reply = run(client, "s");
                assert_eq!(reply.code(), "", "{mode}: {columns}: {:?}", reply.errors);
                assert_eq!(reply.text_rows(), [row], "{mode}: {columns}");
            }
        }
        // Who prepares it now knows nothing else.
        let mut third = pooler.client(&user);
        assert_eq!(prepare(&mut third, "s", &statement).sequence, "1Z");
        assert_eq!(run(&mut third, "s").text_rows(), [row], "{mode}: {columns}");
        third.terminate_and_wait();
    }
    drop((one, two));
    cluster.sql(&format!("drop function {function}"));
    pooler.finish();
}

/// Whoever deallocates everything, and however: all statements that were there are prepared again where they are used next.
#[test]
fn s11_all_may_be_deallocated_at_any_place() {
    if !Target::is_pgpinion() {
        return;
    }
    for cluster in Cluster::of_each_release() {
        for mode in ["transaction", "statement"] {
            everything_is_deallocated(cluster, mode);
        }
    }
}

fn everything_is_deallocated(cluster: &Cluster, mode: &'static str) {
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).mode(mode).max_connections(1).start();
    let (mut leaver, mut other) = (pooler.client(&user), pooler.client(&user));
    let new = Frames::new;
    let forms = [
        (new().query("deallocate all"), "CZ"),
        (new().query("/* all */ DEALLOCATE PREPARE ALL;"), "CZ"),
        (new().query("select 1; deallocate all; select 2"), "TDCCTDCZ"),
        (new().query("deallocate all; select 1/0"), "CEZ"),
        (new().query("discard all"), "CZ"),
        (new().unnamed("deallocate all", &[]).sync(), "12nCZ"),
        (new().unnamed("discard all", &[]).sync(), "12nCZ"),
        (
            new().unnamed("select 1", &[]).unnamed("deallocate all", &[]).unnamed("select 2", &[]).sync(),
            "12TDC12nC12TDCZ",
        ),
        (
            new()
                .parse("all", "deallocate all")
                .bind("", "all", &[])
                .execute("", 0)
                .close(b'S', "all")
                .sync(),
            "12C3Z",
        ),
        // Transactions do not undo it.
        (new().query("begin; deallocate all; commit"), "CCCZ"),
        (new().query("begin; deallocate all; rollback"), "CCCZ"),
        (new().query("begin; deallocate all; select 1/0").query("rollback"), "CCEZ"),
    ];
    for (number, (frames, sequence)) in forms.iter().enumerate() {
        let stays_open = *sequence == "CCEZ";
        if stays_open && mode == "statement" {
            continue;
        }
        let what = format!("{mode}, {number}");
        let text = format!("select 'statement {number}', $1::text");
        let use_it = |client: &mut Client, value: &str| {
            ask(client, new().bind("", "s", &[value]).describe(b'P', "").execute("", 0))
        };
        for client in [&mut leaver, &mut other] {
            assert_eq!(prepare(client, "s", &text).sequence, "1Z", "{what}");
            assert_eq!(use_it(client, "before").sequence, "2TDCZ", "{what}");
        }
        assert!(texts_on_server(&mut other).contains(&text), "{what}");
        leaver.send(&frames.0).expect("open");
        assert_eq!(leaver.collect().expect("an answer").sequence, *sequence, "{what}");
        if stays_open {
            assert_eq!(leaver.collect().expect("an answer").sequence, "CZ", "{what}");
        }
        assert_eq!(texts_on_server(&mut other), [""; 0], "{what}: PostgreSQL has done it");
        for client in [&mut other, &mut leaver] {
            let reply = use_it(client, "after");
            assert_eq!((reply.code(), reply.sequence.as_str()), ("", "2TDCZ"), "{what}: {:?}", reply.errors);
            assert_eq!(reply.text_rows(), [[format!("statement {number}"), "after".into()]], "{what}");
        }
        // Who has done it may give the name anew, who has not may not.
        assert_eq!(prepare(&mut leaver, "s", &text).sequence, "1Z", "{what}");
        assert_eq!(prepare(&mut other, "s", &text).code(), "42P05", "{what}");
        for client in [&mut leaver, &mut other] {
            assert_eq!(ask(client, new().close(b'S', "s")).sequence, "3Z", "{what}");
        }
    }
    drop((leaver, other));
    pooler.finish();
}

/// Many clients give the same names, to the same and to other statements, while tables change: no wrong row, no error that
/// PostgreSQL would not give.
#[test]
fn s11_many_clients_with_the_same_names() {
    if Target::current() == Target::Pgbouncer {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let table = format!("changing_{user}");
    cluster.sql(&format!("create table {table} as select 1 as a; grant select on {table} to {user}"));
    let pooler = Plan::new(cluster)
        .shards(2)
        .max_connections(pick(4, 20))
        .set("max_prepared_statements", ON_SERVER_MAX)
        .start();
    let (stop, changes, uses) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for number in 0..pick(24, 500) {
            let (pooler, user, table, stop, changes, uses) = (&pooler, &user, &table, &stop, &changes, &uses);
            let member = move || {
                let _end = EndAll(stop);
                let mut member = Member::new(pooler, user, table, changes, number);
                while !stop.load(Ordering::Relaxed) {
                    member.act();
                }
                uses.fetch_add(member.uses, Ordering::Relaxed);
            };
            let builder = std::thread::Builder::new().stack_size(512 * 1024);
            builder.spawn_scoped(scope, member).expect("a thread");
        }
        let end = Instant::now() + seconds(3.0, 60.0);
        let mut half = None;
        let mut witness = pooler.client(&user);
        witness.set_timeout(PATIENCE);
        while Instant::now() < end && !stop.load(Ordering::Relaxed) {
            for statement in ["add column b int", "drop column b"] {
                changes.fetch_add(1, Ordering::SeqCst);
                cluster.sql(&format!("alter table {table} {statement}"));
                changes.fetch_add(1, Ordering::SeqCst);
                let on_server = "select count(*) from pg_prepared_statements";
                let count = witness.query(on_server).expect("a server").value();
                let allowed =
                    Target::is_direct() || count.parse::<usize>().expect("a count") <= ON_SERVER_MAX;
                assert!(allowed, "{count} on one server");
                sleep(seconds(0.3, 2.0));
            }
            if half.is_none() && end.saturating_duration_since(Instant::now()) < seconds(1.5, 30.0) {
                half = Some(pooler.rss());
            }
        }
        stop.store(true, Ordering::Relaxed);
        let (half, last) = (half.unwrap_or(u64::MAX), pooler.rss());
        println!("s11: {} KB after half of the time, {} KB at its end", half >> 10, last >> 10);
        let plateau = half.saturating_add(half / 10).saturating_add(20 << 20);
        assert!(!is_long() || last <= plateau, "memory grows: {half} bytes, then {last}");
    });
    let uses = uses.into_inner();
    println!("s11: {uses} uses, {} changes", changes.into_inner() / 2);
    assert!(uses > 0, "nobody did anything");
    cluster.assert_quiet(&user, if Target::is_direct() { usize::MAX } else { pick(4, 20) });
    pooler.finish();
}

/// A thread that finds something wrong ends the test for all.
struct EndAll<'a>(&'a AtomicBool);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Member<'a> {
    number: u64,
    client: Client,
    random: Random,
    table: &'a str,
    /// Odd while the table is being changed.
    changes: &'a AtomicU64,
    /// What it has prepared: whose text each name has.
    owners: HashMap<u64, u64>,
    /// What it has given up by deallocating everything: those names still work, until they are closed or given anew.
    released: HashSet<u64>,
    uses: u64,
}

impl<'a> Member<'a> {
    fn new(pooler: &Pooler, user: &str, table: &'a str, changes: &'a AtomicU64, number: u64) -> Self {
        let mut client = pooler.client(user);
        client.set_timeout(PATIENCE);
        let random = Random::new(1_100_000 + number);
        let mut member = Self {
            number,
            client,
            random,
            table,
            changes,
            owners: HashMap::new(),
            released: HashSet::new(),
            uses: 0,
        };
        member.prepare_changing();
        member
    }

    fn act(&mut self) {
        let which = self.random.below(pick(40, 200));
        match (self.random.below(100), self.owners.contains_key(&which)) {
            (0..4, _) => self.deallocate_all(),
            (4..10, _) => self.use_changing(),
            (10..18, true) => self.close(which),
            (18..23, true) => self.define_twice(which),
            (10..18, false) => self.fail_to_define(which),
            (18..23, false) => self.use_unknown(which),
            _ => self.use_named(which),
        }
        self.uses += 1;
    }

    fn use_named(&mut self, which: u64) {
        let name = name(which);
        let (mut frames, mut sequence) = (Frames::new(), "2TDCZ".to_owned());
        if !self.owners.contains_key(&which) {
            // Three in ten are this client's own.
            let owner = if self.random.chance(30) { self.number + 1 } else { 0 };
            frames = frames.parse(&name, &text(which, owner));
            if self.random.chance(50) {
                frames = frames.sync();
                self.client.send(&frames.0).expect("open");
                assert_eq!(self.client.collect().expect("an answer").sequence, "1Z");
                frames = Frames::new();
            } else {
                sequence.insert(0, '1');
            }
            self.owners.insert(which, owner);
            self.released.remove(&which);
        }
        let value = self.random.next().to_string();
        let reply =
            ask(&mut self.client, frames.bind("", &name, &[&value]).describe(b'P', "").execute("", 0));
        assert_eq!(reply.sequence, sequence, "{which}: {:?}", reply.errors);
        assert_eq!(reply.text_rows(), [[format!("{which}.{}", self.owners[&which]), value]]);
    }

    fn close(&mut self, which: u64) {
        assert_eq!(ask(&mut self.client, Frames::new().close(b'S', &name(which))).sequence, "3Z");
        self.owners.remove(&which);
    }

    fn define_twice(&mut self, which: u64) {
        let reply = prepare(&mut self.client, &name(which), "select 'again'");
        assert_eq!((reply.sequence.as_str(), reply.code()), ("EZ", "42P05"));
        self.use_named(which);
    }

    fn fail_to_define(&mut self, which: u64) {
        let reply = prepare(&mut self.client, &name(which), "selec $1");
        assert_eq!((reply.sequence.as_str(), reply.code()), ("EZ", "42601"));
        self.use_named(which);
    }

    fn use_unknown(&mut self, which: u64) {
        let reply = run(&mut self.client, &name(which));
        let released = !Target::is_direct() && self.released.contains(&which);
        // It is bound without its parameter.
        let code = if released { "08P01" } else { "26000" };
        assert_eq!((reply.sequence.as_str(), reply.code()), ("EZ", code), "{which}");
    }

    fn deallocate_all(&mut self) {
        let statement = *self.random.pick(&["deallocate all", "discard all"]);
        assert_eq!(self.client.query(statement).expect("a server").code(), "", "{statement}");
        self.released.extend(self.owners.drain().map(|(which, _)| which));
        self.prepare_changing();
    }

    fn prepare_changing(&mut self) {
        let text = format!("select * from {} where a = 1", self.table);
        let reply = prepare(&mut self.client, "changing", &text);
        assert_eq!(reply.sequence, "1Z", "{:?}", reply.errors);
    }

    /// That the table has changed is told once for each change; a second time if another client's description of it as it was
    /// is read only now.
    fn use_changing(&mut self) {
        let before = self.changes.load(Ordering::SeqCst);
        for attempt in 0..3 {
            let reply = run(&mut self.client, "changing");
            match reply.code() {
                "" => {
                    let row = &reply.text_rows()[0];
                    assert!(*row == ["1"] || *row == ["1", ""], "{row:?}");
                    assert_eq!(reply.columns.len(), row.len());
                    return;
                }
                code => assert_eq!(code, "0A000", "{:?}", reply.errors),
            }
            let calm = before.is_multiple_of(2) && self.changes.load(Ordering::SeqCst) == before;
            if attempt == 2 && calm && !Target::is_direct() {
                panic!("one change is told again and again");
            }
        }
        if Target::is_direct() {
            // PostgreSQL's own statement stays as it is.
            assert_eq!(ask(&mut self.client, Frames::new().close(b'S', "changing")).sequence, "3Z");
            self.prepare_changing();
        }
    }
}

/// Some names are as long as PostgreSQL looks at them, one byte longer, and much longer.
fn name(which: u64) -> String {
    let bytes = match which % 10 {
        0 => 63,
        1 => 64,
        2 => 4097,
        _ => 8,
    };
    let start = format!("s{which}_");
    let more = "n".repeat(bytes - start.len());
    start + &more
}

fn text(which: u64, owner: u64) -> String {
    format!("select '{which}.{owner}', $1::text")
}

const ON_SERVER_MAX: usize = 50;

/// 500 clients wait for each other.
const PATIENCE: Duration = Duration::from_secs(60);
