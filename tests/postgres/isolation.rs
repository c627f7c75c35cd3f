//! No client sees another's bytes or leavings.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::crowd::{Crowd, Habit};
use crate::pooler::{Memory, Plan, Pooler, Target, login};
use crate::process::eventually;
use crate::random::Random;
use crate::scale::{pick, seconds};
use crate::wire::{Client, Frames, startup};

/// S01: tokens in values, column names, notices, errors, parameters and COPY rows come back to their owner.
fn token_baseline(mode: &'static str, shards: usize, habit: Habit) {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let mark = cluster.mark();
    let pooler = Plan::new(cluster).mode(mode).shards(shards).start();
    let sampler = cluster.sample();
    let mut memory = Memory::of(&pooler);
    let crowd = Crowd::start(pick(40, 200), &pooler.address, &user, habit);
    crowd.live(seconds(4.0, 60.0), pick(1, 150_000));
    let mut tally = crowd.finish();
    tally.assert_faultless();
    memory.look(&pooler);
    eprintln!("s01 {mode}, {shards} shards: {}, {} KB more", tally.describe(), memory.grown() >> 10);
    pooler.assert_capped(&sampler.finish(), &user, 10);
    cluster.assert_log_clean(mark, &user, &[]);
    cluster.assert_quiet(&user, 10);
    pooler.finish();
}

#[test]
fn s01_tokens_transaction_mode_one_shard() {
    token_baseline("transaction", 1, Habit::FULL);
}

#[test]
fn s01_tokens_transaction_mode_two_shards() {
    token_baseline("transaction", 2, Habit::FULL.reconnecting_after(200));
}

#[test]
fn s01_tokens_session_mode_two_shards() {
    token_baseline("session", 2, Habit::FULL.reconnecting_after(5));
}

/// S02: clients that leave in the middle of a large reply cost the others nothing.
#[test]
fn s02_abandoned_results() {
    for (mode, shards) in [("transaction", 1), ("transaction", 2), ("session", 1)] {
        let cluster = Cluster::shared();
        let (good, leaver) = (cluster.user("good"), cluster.user("other"));
        let pooler = Plan::new(cluster).mode(mode).shards(shards).max_connections(4).start();
        let crowd = Crowd::start(pick(10, 100), &pooler.address, &good, Habit::LIGHT.reconnecting_after(3));
        // The leavers' own route, and the good ones' too: their servers go back and forth.
        let stop = AtomicBool::new(false);
        let left = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for number in 0..pick(6, 20) {
                let user = if number % 2 == 0 { &leaver } else { &good };
                let (pooler, stop, left) = (&pooler, &stop, &left);
                scope.spawn(move || {
                    let mut random = Random::new(200 + number);
                    while !stop.load(Ordering::Relaxed) {
                        abandon(pooler, user, &mut random);
                        left.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            sleep(seconds(2.0, 60.0));
            let end = Instant::now() + 10 * seconds(2.0, 60.0);
            while left.load(Ordering::Relaxed) <= pick(20, 2000) && Instant::now() < end {
                sleep(Duration::from_millis(10));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let left = left.into_inner();
        assert!(left > pick(20, 2000), "only {left} left");
        let mut tally = crowd.finish();
        tally.assert_faultless();
        eprintln!("s02 {mode}, {shards} shards: {left} left; the good: {}", tally.describe());
        assert_slots_serve(&pooler, &good, 4);
        pooler.finish();
    }
}

fn abandon(pooler: &Pooler, user: &str, random: &mut Random) {
    let mut client = pooler.client(user);
    let token = client.token();
    client
        .send(&Frames::new().query(&format!("select '{token}', i from generate_series(1, 20000) i")).0)
        .expect("logged in");
    let enough = random.below(64 * 1024) as usize;
    let mut read = 0;
    while read < enough {
        read += client.read_past(|_| {}).expect("rows").1;
    }
    match random.below(3) {
        0 => client.terminate(),
        1 => client.reset(),
        _ => drop(client),
    }
}

/// As many clients as there are slots can be in a transaction at once, soon, on whatever shards they are.
fn assert_slots_serve(pooler: &Pooler, user: &str, slots: usize) {
    let start = Instant::now();
    let mut clients: Vec<Client> = (0..slots).map(|_| pooler.client(user)).collect();
    for client in &mut clients {
        assert_eq!(client.query("begin").expect("a free slot").status, b'T');
    }
    assert!(start.elapsed() < seconds(2.0, 1.0), "slots free only after {:?}", start.elapsed());
    for client in &mut clients {
        client.query("rollback").expect("still there");
    }
}

/// S03: a client that dies after any byte of any message harms nobody else.
#[test]
fn s03_death_at_every_byte() {
    let cluster = Cluster::shared();
    let (good, victim) = (cluster.user("good"), cluster.user("other"));
    let mark = cluster.mark();
    let pooler = Plan::new(cluster).max_connections(2).start();
    let crowd = Crowd::start(pick(6, 40), &pooler.address, &good, Habit::LIGHT);
    let shapes = shapes();
    let cuts: Vec<(&[u8], usize, bool)> = shapes
        .iter()
        .flat_map(|shape| {
            (0..=shape.len()).flat_map(move |cut| [(&shape[..], cut, true), (&shape[..], cut, false)])
        })
        .collect();
    let deaths = cuts.len() * pick(1, 20);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for number in 0..3 {
            // One of them shares the good clients' servers.
            let user = if number == 0 { &good } else { &victim };
            let (pooler, cuts, next) = (&pooler, &cuts, &next);
            scope.spawn(move || {
                let turns = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
                for turn in turns.take_while(|&turn| turn < deaths) {
                    let (shape, cut, orderly) = cuts[turn % cuts.len()];
                    die_at(pooler, user, &shape[..cut], orderly);
                }
            });
        }
    });
    for cut in 0..startup(&login(&victim)).len() {
        let mut client = Client::dial(&pooler.address).expect("it accepts");
        client.send(&startup(&login(&victim))[..cut]).expect("open");
        if cut % 2 == 0 { client.reset() } else { drop(client) }
    }
    let mut tally = crowd.finish();
    tally.assert_faultless();
    eprintln!("s03: {deaths} deaths at {} places; the good: {}", cuts.len(), tally.describe());
    assert_slots_serve(&pooler, &good, 2);
    let mut own_doing =
        vec!["unexpected EOF", "incomplete message", "incomplete startup packet", "unnamed prepared"];
    if !Target::is_pgpinion() {
        // PgBouncer says Terminate after half a message, which PostgreSQL takes for the message's rest.
        own_doing.extend([
            "insufficient data left",
            "invalid message",
            "synchronization was lost",
            "invalid frontend",
        ]);
    }
    cluster.assert_log_clean(mark, &good, &own_doing);
    pooler.finish();
}

fn die_at(pooler: &Pooler, user: &str, bytes: &[u8], orderly: bool) {
    let mut client = pooler.client(user);
    client.send(bytes).expect("logged in");
    if orderly { drop(client) } else { client.reset() }
}

fn shapes() -> Vec<Vec<u8>> {
    let f = Frames::new;
    let shapes = [
        f().query("select 1"),
        f().query("begin").query("select 1"),
        f().query("select repeat('x', 100000)"),
        f().parse("", "select $1::text").sync(),
        f().unnamed("select $1::text", &["value"]).sync(),
        f().unnamed("select 1", &[]).flush().sync(),
        f().unnamed("select 1", &[]).sync().unnamed("select 2", &[]).sync(),
        f().unnamed("select i from generate_series(1, 9) i", &[]).execute("", 1).sync(),
        f().describe(b'S', "").close(b'P', "").close(b'S', "").sync(),
        f().query("copy pg_temp.none from stdin").copy_data(b"1\n").copy_done(),
        f().query("begin; create temp table t (a int); copy t from stdin").copy_data(b"1\n").copy_fail("no"),
        f().query("copy (select 1) to stdout"),
        f().function_call(1299).sync(),
        f().query("select 1/0").terminate(),
    ];
    shapes.into_iter().map(|frames| frames.0).collect()
}

/// How a client can leave a mess.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    Reset,
    Close,
    Terminate,
    Garbage,
}

/// A4: whatever a client leaves behind, the next one on the same server connection starts clean.
fn dirty_return(mode: &'static str, mess: fn(&str) -> Vec<Mess>) {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let mut owner = Client::connect(&cluster.address(), &login(&user)).expect("PostgreSQL");
    let table = format!("ledger_{user}");
    owner.query(&format!("create table {table} (a int)")).expect("a table");
    drop(owner);
    let mark = cluster.mark();
    let pooler = Plan::new(cluster).mode(mode).max_connections(1).start();
    for Mess { what, frames, last } in mess(&table) {
        for leaving in [Leaving::Reset, Leaving::Close, Leaving::Terminate, Leaving::Garbage] {
            let mut dirty = pooler.client(&user);
            dirty.send(&frames.0).expect("logged in");
            if let Some(last) = last {
                while dirty.read().unwrap_or_else(|fault| panic!("{what}: {fault}")).tag != last {}
            }
            match leaving {
                Leaving::Reset => dirty.reset(),
                Leaving::Close => drop(dirty),
                Leaving::Terminate => dirty.terminate(),
                Leaving::Garbage => {
                    dirty.send(b"\xff\xff\xff\xff\xff\xff\xff\xff").expect("open");
                    // After half a message it counts as that message's rest, and nobody minds yet.
                    dirty.stream().finish_sending();
                    dirty.read_to_end(Duration::from_secs(5));
                }
            }
            let mut next = pooler.client(&user);
            let found =
                next.query(CLEAN).unwrap_or_else(|fault| panic!("after {what}, {leaving:?}: {fault}"));
            assert_eq!(found.status, b'I', "after {what}, {leaving:?}");
            let clean: Vec<String> = CLEAN_VALUES.iter().map(|&value| value.to_owned()).collect();
            assert_eq!(found.text_rows(), [clean], "after {what}, {leaving:?}");
            eventually(
                &format!("the row is rolled back after {what}, {leaving:?}"),
                Duration::from_secs(5),
                || next.query(&format!("select count(*) from {table}")).expect("a server").value() == "0",
            );
            next.terminate();
        }
    }
    cluster.assert_quiet(&user, 1);
    // A client's garbage may reach PostgreSQL; another client's statement in its transaction may not.
    let own_doing = [
        "unexpected EOF",
        "invalid frontend message",
        "incomplete message",
        "invalid message length",
        "synchronization was lost",
        "unexpected message type 0x",
    ];
    cluster.assert_log_clean(mark, &user, &own_doing);
    pooler.finish();
}

/// What a client sends before it leaves, and the message it waits for.
struct Mess {
    what: &'static str,
    frames: Frames,
    last: Option<u8>,
}

#[test]
fn a4_dirty_return_transaction_mode() {
    dirty_return("transaction", transaction_messes);
}

#[test]
fn a4_dirty_return_session_mode() {
    dirty_return("session", |table| {
        let f = Frames::new;
        let mut messes = transaction_messes(table);
        messes.extend([
            Mess {
                what: "a temporary table",
                frames: f().query("create temp table left_over (a int)"),
                last: Some(b'Z'),
            },
            Mess { what: "a setting", frames: f().query("set work_mem = '7MB'"), last: Some(b'Z') },
            Mess {
                what: "a prepared statement",
                frames: f().parse("left_over", "select 1").sync(),
                last: Some(b'Z'),
            },
            Mess { what: "PREPARE", frames: f().query("prepare left_over as select 1"), last: Some(b'Z') },
            Mess { what: "LISTEN", frames: f().query("listen left_over"), last: Some(b'Z') },
            Mess {
                what: "an advisory lock",
                frames: f().query("select pg_advisory_lock(77)"),
                last: Some(b'Z'),
            },
            Mess {
                what: "a cursor WITH HOLD",
                frames: f().query("declare left_over cursor with hold for select 1"),
                last: Some(b'Z'),
            },
        ]);
        messes
    });
}

fn transaction_messes(table: &str) -> Vec<Mess> {
    let f = Frames::new;
    let insert = format!("insert into {table} values (1)");
    vec![
        Mess { what: "an open transaction", frames: f().query("begin").query(&insert), last: Some(b'C') },
        Mess {
            what: "a failed transaction",
            frames: f().query(&format!("begin; {insert}; select 1/0")),
            last: Some(b'Z'),
        },
        Mess {
            what: "an open COPY",
            frames: f().query(&format!("begin; {insert}; copy {table} from stdin")).copy_data(b"1\n"),
            last: Some(b'G'),
        },
        Mess {
            what: "an open COPY alone",
            frames: f().query(&format!("copy {table} from stdin")),
            last: Some(b'G'),
        },
        Mess { what: "half a pipeline", frames: f().unnamed(&insert, &[]).flush(), last: Some(b'C') },
        Mess { what: "half a pipeline, unanswered", frames: f().unnamed(&insert, &[]), last: None },
        Mess {
            what: "half a message",
            frames: Frames(
                [f().query("begin").query(&insert).0, f().query(&insert).0[..9].to_vec()].concat(),
            ),
            last: Some(b'C'),
        },
        Mess {
            what: "a lock and a cursor in a transaction",
            frames: f().query(&format!(
                "begin; {insert}; select pg_advisory_xact_lock(78); declare left_over cursor for select 1"
            )),
            last: Some(b'Z'),
        },
        Mess {
            what: "a temporary table and a setting in a transaction",
            frames: f().query(&format!(
                "begin; {insert}; create temp table left_over (a int); set work_mem = '7MB'; listen left_over"
            )),
            last: Some(b'Z'),
        },
    ]
}

const CLEAN: &str = "select pg_current_xact_id_if_assigned() is null,
    (select count(*) from pg_class where relpersistence = 't' and relnamespace = pg_my_temp_schema()),
    (select count(*) from pg_listening_channels()),
    (select count(*) from pg_cursors where name <> ''),
    (select count(*) from pg_prepared_statements),
    (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'),
    current_setting('work_mem'), current_user = session_user";
const CLEAN_VALUES: [&str; 8] = ["t", "0", "0", "0", "0", "0", "4MB", "t"];
