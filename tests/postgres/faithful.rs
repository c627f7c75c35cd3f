//! Everything else on the wire: a table of sessions, taken directly and through the pooler, of which every message must be
//! the same, byte for byte. Named statements are in `prepared`, COPY is in `copy`, pipelines made at random are in
//! `pipelines`.

mod scripts;
mod setup;

use crate::cluster::{Cluster, Release};
use crate::pooler::{Memory, Plan, Target, login};
use crate::streams::{Step, assert_same, play};

use scripts::{Script, scripts};

/// How the pooler is set up, and which of the scripts make sense there.
struct Way {
    mode: &'static str,
    leak_policy: &'static str,
    fits: fn(&Script) -> bool,
}

const WAYS: [Way; 4] = [
    Way { mode: "transaction", leak_policy: "reset", fits: |script| !script.leaves },
    Way { mode: "transaction", leak_policy: "pin", fits: |_| true },
    Way { mode: "session", leak_policy: "reset", fits: |_| true },
    Way { mode: "statement", leak_policy: "reset", fits: |script| !script.leaves && !script.stays_open },
];

#[test]
fn sessions_answer_as_postgresql_to_the_byte() {
    // PgBouncer 1.18 has differences of its own.
    if Target::current() == Target::Pgbouncer {
        return;
    }
    for release in Release::all() {
        let settings = [("max_connections", "50"), ("max_prepared_transactions", "10")];
        let cluster = Cluster::of(release, &settings);
        sessions_answer_as(&cluster);
    }
}

fn sessions_answer_as(cluster: &Cluster) {
    let user = cluster.user("user");
    for statement in setup::SETUP {
        cluster.sql(&format!("set role {user}; {statement}"));
    }
    let oid = |function: &str| {
        cluster.value(&format!("select '{function}'::regproc::oid")).parse().expect("a number")
    };
    let scripts = scripts(oid("tell_all"));
    let parameters = login(&user);
    for way in WAYS {
        let pooler = Plan::new(cluster)
            .mode(way.mode)
            .max_connections(2)
            .set("leak_policy", format!("\"{}\"", way.leak_policy))
            .start();
        for script in scripts.iter().filter(|script| (way.fits)(script)) {
            let what = format!("{}, {}, {}", script.name, way.mode, way.leak_policy);
            cluster.sql("truncate kept");
            let expected = play(&cluster.address(), &parameters, &script.steps, |_| {});
            cluster.sql("truncate kept");
            // Somebody else takes the server that was used last before every other step, and leaves an unnamed statement there.
            let mut other = pooler.client(&user);
            let disturb = |step: usize| {
                let statement = if step % 2 == 1 { "begin" } else { "rollback" };
                if way.mode != "statement" {
                    assert_eq!(other.extended(statement, &[]).expect("a server").code(), "", "{what}");
                }
            };
            let got = play(&pooler.address, &parameters, &script.steps, disturb);
            drop(other);
            for ((step, expected), got) in script.steps.iter().zip(&expected).zip(&got) {
                assert_same(&what, step, expected, got);
            }
        }
        pooler.finish();
    }
}

/// Rows, texts, errors and notices of tens of megabytes, streamed in bounded memory.
#[test]
fn very_large_messages_answer_as_postgresql() {
    if !Target::is_pgpinion() {
        return;
    }
    for cluster in Cluster::of_each_release() {
        let user = cluster.user("user");
        // Such errors would fill its log.
        cluster.sql(&format!("alter role {user} set log_min_messages = panic"));
        let pooler = Plan::new(cluster).max_connections(2).start();
        let mut memory = Memory::of(&pooler);
        let parameters = login(&user);
        for (step, frames) in setup::very_large(LARGE_BYTES).into_iter().enumerate() {
            let what = format!("very large messages, {step}");
            let step = [Step::All(frames)];
            let expected = play(&cluster.address(), &parameters, &step, |_| {});
            let got = play(&pooler.address, &parameters, &step, |_| memory.look(&pooler));
            memory.look(&pooler);
            assert_same(&what, &step[0], &expected[0], &got[0]);
            let largest = got[0].iter().map(Vec::len).max();
            assert!(largest >= Some(LARGE_BYTES) || step_is_upward(&step[0]), "{what}: {largest:?} bytes");
        }
        memory.assert_grown_less_than(32 << 20);
        pooler.finish();
    }
}

/// The client says more than it is told.
fn step_is_upward(step: &Step) -> bool {
    matches!(step, Step::All(frames) if frames.0.len() > LARGE_BYTES)
}

/// More than any bound of ours that is not PostgreSQL's.
const LARGE_BYTES: usize = 70_000_000;
