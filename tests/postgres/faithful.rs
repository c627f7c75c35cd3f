//! Everything else on the wire: a table of sessions, taken directly and through the pooler, of which every message must be
//! the same, byte for byte. Named statements are in `prepared`, COPY is in `copy`, pipelines made at random are in
//! `pipelines`.

mod scripts;
mod setup;

use crate::cluster::{Cluster, Release};
use crate::pooler::{Plan, Target, login};
use crate::streams::{assert_same, play};

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
