//! S06: every way through COPY. In and out, text and binary, simple and extended, with Sync, Flush or nothing behind the
//! Execute, to each of six ends: 96 sessions, each taken directly and through the pooler.

use std::fmt;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::pooler::{Plan, Pooler, Target, login};
use crate::scale::pick;
use crate::streams::{Step, answer, assert_same};
use crate::wire::{Client, Frames};

/// How the command is sent, and what comes behind it before the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Simple,
    ExtendedSync,
    ExtendedFlush,
    Extended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Good,
    /// The server fails at the first row, or at the last of many.
    Early,
    Late,
    CopyFail,
    /// The client goes away in the middle.
    Death,
    /// Messages of a COPY where there is none any more.
    Stray,
}

#[derive(Clone, Copy)]
struct Case {
    is_in: bool,
    binary: bool,
    sent: Sent,
    end: End,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.is_in { "in" } else { "out" };
        let format = if self.binary { "binary" } else { "text" };
        write!(f, "{way}, {format}, {:?}, {:?}", self.sent, self.end)
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for is_in in [true, false] {
        for binary in [true, false] {
            for sent in [Sent::Simple, Sent::ExtendedSync, Sent::ExtendedFlush, Sent::Extended] {
                for end in [End::Good, End::Early, End::Late, End::CopyFail, End::Death, End::Stray] {
                    cases.push(Case { is_in, binary, sent, end });
                }
            }
        }
    }
    cases
}

impl Case {
    /// Everything that the client says, at once.
    fn frames(&self, table: &str) -> Frames {
        let mut frames = self.begun(table);
        if self.is_in {
            for chunk in self.data().chunks(CHUNK_BYTES) {
                frames = frames.copy_data(chunk);
            }
        }
        frames = match self.end {
            End::CopyFail => frames.copy_fail("no more of this"),
            _ if self.is_in => frames.copy_done(),
            _ => frames,
        };
        if self.end == End::Stray {
            frames = frames.copy_data(b"stray\n").copy_done().copy_fail("stray");
        }
        if self.sent == Sent::Simple { frames } else { frames.sync() }
    }

    /// The command.
    fn begun(&self, table: &str) -> Frames {
        let format = if self.binary { " (format binary)" } else { "" };
        let text = match (self.is_in, self.end) {
            (true, _) => format!("copy {table} from stdin{format}"),
            (false, End::Early) => {
                format!("copy (select 1 / (i - 1) from generate_series(1, 5) i) to stdout{format}")
            }
            (false, End::Late) => {
                format!("copy (select 1 / ({ROWS} - i) from generate_series(1, {ROWS}) i) to stdout{format}")
            }
            (false, _) => format!("copy (select i from generate_series(1, {ROWS}) i) to stdout{format}"),
        };
        let extended = || Frames::new().parse("", &text).bind("", "", &[]).execute("", 0);
        match self.sent {
            Sent::Simple => Frames::new().query(&text),
            Sent::ExtendedSync => extended().sync(),
            Sent::ExtendedFlush => extended().flush(),
            Sent::Extended => extended(),
        }
    }

    fn data(&self) -> Vec<u8> {
        let wrong = match self.end {
            End::Early => 0,
            End::Late => ROWS - 1,
            _ => ROWS,
        };
        let rows = (0..ROWS).map(|number| (number, number == wrong));
        if !self.binary {
            let row = |(number, is_wrong)| if is_wrong { "x\n".into() } else { format!("{number}\n") };
            return rows.map(row).collect::<String>().into_bytes();
        }
        let mut data = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
        for (number, is_wrong) in rows {
            data.extend_from_slice(&[0, if is_wrong { 2 } else { 1 }, 0, 0, 0, 4]);
            data.extend_from_slice(&(number as u32).to_be_bytes());
        }
        data.extend_from_slice(&[0xff, 0xff]);
        data
    }

    /// Count and sum of what is in the table then.
    fn rows(&self) -> &'static str {
        let arrives = self.is_in && matches!(self.end, End::Good | End::Stray);
        if arrives { ALL_ROWS } else { "0 rows" }
    }
}

#[test]
fn s06_every_copy_answers_as_postgresql() {
    // PgBouncer 1.18 miscounts the Sync during a COPY.
    if Target::current() == Target::Pgbouncer {
        return;
    }
    for cluster in Cluster::of_each_release() {
        for (mode, shards) in [("transaction", 1), ("transaction", 2), ("session", 1), ("statement", 1)] {
            let user = cluster.user("user");
            let table = format!("matrix_{user}");
            cluster.sql(&format!("set role {user}; create table {table} (a int)"));
            let pooler = Plan::new(cluster).mode(mode).shards(shards).max_connections(2).start();
            for round in 0..pick(1, 20) {
                for case in cases() {
                    let what = format!("{case}, {mode}, {shards} shards, round {round}");
                    take(case, &what, cluster, &pooler, &user, &table);
                }
            }
            cluster.assert_quiet(&user, if Target::is_direct() { 20 } else { 2 });
            pooler.finish();
        }
    }
}

fn take(case: Case, what: &str, cluster: &Cluster, pooler: &Pooler, user: &str, table: &str) {
    let mut through = pooler.client(user);
    if case.end == End::Death {
        die(case, through, table);
    } else {
        let step = Step::All(case.frames(table));
        let mut direct = Client::connect(&cluster.address(), &login(user)).expect("PostgreSQL");
        let expected = answer(&mut direct, &step);
        assert_eq!(emptied(cluster, table), case.rows(), "{what}: directly");
        assert_same(what, &step, &expected, &answer(&mut through, &step));
        assert_eq!(through.query("select 'goes on'").expect("a server").value(), "goes on", "{what}");
        through.terminate();
    }
    // Both servers are free, and soon. In statement mode one has to do.
    let began = Instant::now();
    let mut next = [pooler.client(user), pooler.client(user)];
    for client in &mut next {
        let takes = if what.contains("statement") { "select 1" } else { "begin" };
        assert_eq!(client.query(takes).expect("a free server").code(), "", "{what}");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_millis(pick(5000, 100)), "{what}: the next waited {took:?}");
    assert_eq!(emptied(cluster, table), case.rows(), "{what}");
}

/// In the middle of the data, as soon as there is some.
fn die(case: Case, mut client: Client, table: &str) {
    client.send(&case.begun(table).0).expect("open");
    let first = if case.is_in { b'G' } else { b'H' };
    while client.read().expect("a server").tag != first {}
    if case.is_in {
        let data = case.data();
        let half = Frames::new().copy_data(&data[..data.len() / 2]).0;
        client.send(&half[..half.len() - 3]).expect("open");
    }
    if case.binary { client.reset() } else { drop(client) }
}

/// What is in the table, which is emptied.
fn emptied(cluster: &Cluster, table: &str) -> String {
    let sum = format!("select count(*) || ' rows' || coalesce(' of ' || sum(a), '') from {table}");
    let found = cluster.value(&sum);
    cluster.sql(&format!("truncate {table}"));
    found
}

const ROWS: usize = 4000;
const ALL_ROWS: &str = "4000 rows of 7998000";

/// Rows are cut anywhere.
const CHUNK_BYTES: usize = 777;
