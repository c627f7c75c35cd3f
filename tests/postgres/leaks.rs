//! S09: what a client leaves in the session of a server that it shares.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::console::values;
use crate::pooler::{Plan, Pooler, Target, login};
use crate::process::eventually;
use crate::scale::pick;
use crate::wire::{Client, Frames, Reply};

/// What becomes of a kind of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The client has it on every server, and nobody else does.
    Follows,
    /// It is gone when the transaction is over.
    Forgotten,
    /// The client has it until it leaves, with its server.
    Kept,
    /// The command is refused.
    Refused,
}

use Fate::{Follows, Forgotten, Kept, Refused};

/// A way to leave something behind.
struct Kind {
    name: &'static str,
    /// In one simple query, or one batch of the extended protocol each.
    leave: &'static [&'static str],
    /// True as long as it is there.
    shows: &'static str,
    /// By policy: reset, pin, refuse.
    fates: [Fate; 3],
}

const fn kind(
    name: &'static str,
    leave: &'static [&'static str],
    shows: &'static str,
    fates: [Fate; 3],
) -> Kind {
    Kind { name, leave, shows, fates }
}

const UNTRACKED: [Fate; 3] = [Forgotten, Kept, Refused];

const KINDS: &[Kind] = &[
    kind("SET", &["set work_mem = '77kB'"], "current_setting('work_mem') = '77kB'", UNTRACKED),
    kind("SET ROLE", &["set role pg_monitor"], "current_user = 'pg_monitor'", UNTRACKED),
    kind(
        "SESSION AUTHORIZATION",
        &["set session authorization pg_monitor"],
        "session_user = 'pg_monitor'",
        UNTRACKED,
    ),
    kind(
        "search_path",
        &["set search_path = leaked"],
        "current_setting('search_path') = 'leaked'",
        UNTRACKED,
    ),
    kind(
        "TimeZone",
        &["set timezone = 'Asia/Tokyo'"],
        "current_setting('timezone') = 'Asia/Tokyo'",
        [Follows; 3],
    ),
    kind(
        "read_only",
        &["set default_transaction_read_only = on"],
        "current_setting('default_transaction_read_only') = 'on'",
        [Follows; 3],
    ),
    kind(
        "statement_timeout",
        &["/* of its own */ SET Statement_Timeout TO 54321"],
        "current_setting('statement_timeout') = '54321ms'",
        UNTRACKED,
    ),
    kind(
        "application_name",
        &["set application_name = 'leaked'"],
        "current_setting('application_name') = 'leaked'",
        [Follows; 3],
    ),
    kind(
        "set_config",
        &["select set_config('leak.own', 'leaked', false)"],
        "coalesce(current_setting('leak.own', true), '') = 'leaked'",
        UNTRACKED,
    ),
    kind(
        "temp table",
        &["create temp table leaked_table (a int)"],
        "to_regclass('pg_temp.leaked_table') is not null",
        UNTRACKED,
    ),
    kind("LISTEN", &["listen leaked"], "exists (select from pg_listening_channels())", UNTRACKED),
    kind(
        "advisory lock",
        &["select pg_try_advisory_lock(4711, 1)"],
        "exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())",
        [Kept, Kept, Refused],
    ),
    kind(
        "PREPARE",
        &["prepare leaked as select 1"],
        "exists (select from pg_prepared_statements where name = 'leaked')",
        UNTRACKED,
    ),
    kind(
        "WITH HOLD cursor",
        &["declare leaked cursor with hold for select 1"],
        "exists (select from pg_cursors where name = 'leaked')",
        UNTRACKED,
    ),
    kind(
        "sequence currval",
        &["select nextval('leak_sequence')"],
        "currval('leak_sequence') > 0",
        [Forgotten; 3],
    ),
    kind("open transaction", &["begin", "create table leak_open (a int)"], "true", [Kept; 3]),
];

/// How the client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Terminate,
    Closes,
    Stays,
}

/// What others look for: all kinds in one row. What cannot be asked without an error is asked for by itself.
fn probe() -> String {
    let shows =
        KINDS.iter().filter(|kind| kind.name != "sequence currval" && kind.name != "open transaction");
    let parts: Vec<String> = shows.map(|kind| format!("({})::text", kind.shows)).collect();
    format!("select concat_ws(',', {}, txid_current_if_assigned() is not null)", parts.join(", "))
}

fn rounds() -> usize {
    pick(2, 50)
}

fn leaks(policy: &'static str, column: usize) {
    if !Target::is_pgpinion() {
        return;
    }
    for cluster in Cluster::of_each_release() {
        leaks_before(cluster, policy, column);
    }
}

fn leaks_before(cluster: &Cluster, policy: &'static str, column: usize) {
    let user = cluster.user("user");
    cluster.sql(&format!("alter role {user} superuser"));
    cluster.sql("create sequence if not exists leak_sequence");
    let pooler =
        Plan::new(cluster).max_connections(2).route(&user, &format!("leak_policy = \"{policy}\"")).start();
    let probe = probe();
    let clean = {
        let mut direct = Client::connect(&cluster.address(), &login(&user)).expect("PostgreSQL");
        direct.query(&probe).expect("an answer").value()
    };
    let mut others = [pooler.client(&user), pooler.client(&user)];
    let mut looked = 0;
    for round in 0..rounds() {
        for kind in KINDS {
            for way in [Way::Terminate, Way::Closes, Way::Stays] {
                let fate = match kind.fates[column] {
                    // Since version 18 PostgreSQL reports it.
                    _ if kind.name == "search_path" && reports_search_path(&others[0]) => Follows,
                    fate => fate,
                };
                let what = format!("{policy}: {}, {way:?}, round {round}", kind.name);
                let mut leaver = pooler.client(&user);
                leave(&mut leaver, kind, fate, round % 2 == 1, &what);
                let holds_server = fate == Kept && way == Way::Stays;
                let stays = depart(leaver, way);
                look(&mut others, &probe, &clean, holds_server, &what);
                looked += 1;
                if let Some(mut leaver) = stays {
                    assert_eq!(is_there(&mut leaver, kind), matches!(fate, Follows | Kept), "{what}");
                    leaver.terminate_and_wait();
                    look(&mut others, &probe, &clean, false, &what);
                }
            }
        }
    }
    assert_eq!(looked, rounds() * KINDS.len() * 3);
    drop(others);
    let held = "select count(*) from pg_locks where locktype = 'advisory' and objid = 1 and classid = 4711";
    assert_eq!(cluster.value(held), "0", "no lock outlives its client");
    pooler.finish();
}

fn reports_search_path(client: &Client) -> bool {
    client.parameters.iter().any(|(name, _)| name == "search_path")
}

fn leave(leaver: &mut Client, kind: &Kind, fate: Fate, extended: bool, what: &str) {
    for statement in kind.leave {
        let reply = if extended { leaver.extended(statement, &[]) } else { leaver.query(statement) };
        let reply = reply.expect("an answer");
        if fate == Refused {
            assert_eq!((reply.code(), reply.status), ("0A000", b'I'), "{what}");
        } else {
            assert!(reply.errors.is_empty(), "{what}: {:?}", reply.errors);
        }
    }
    assert!(leaver.query("select 1").expect("it goes on").errors.is_empty(), "{what}");
}

/// The client, if it stays.
fn depart(leaver: Client, way: Way) -> Option<Client> {
    match way {
        Way::Terminate => leaver.terminate_and_wait(),
        Way::Closes => leaver.reset(),
        Way::Stays => return Some(leaver),
    }
    None
}

/// Others find nothing, on all the servers that they can have.
fn look(others: &mut [Client; 2], probe: &str, clean: &str, holds_server: bool, what: &str) {
    let count = if holds_server { 1 } else { 2 };
    for other in &mut others[..count] {
        assert_eq!(other.query("begin").expect("a server").status, b'T', "{what}");
        assert_eq!(other.query(probe).expect("an answer").value(), clean, "{what}");
        let sequence = other.query("select currval('leak_sequence')").expect("an answer");
        assert_eq!(sequence.code(), "55000", "{what}: {:?}", sequence.text_rows());
    }
    for other in &mut others[..count] {
        assert_eq!(other.query("rollback").expect("an answer").status, b'I', "{what}");
    }
}

fn is_there(leaver: &mut Client, kind: &Kind) -> bool {
    let reply = leaver.query(&format!("select {}", kind.shows)).expect("an answer");
    reply.errors.is_empty() && reply.value() == "t"
}

#[test]
fn s09_reset() {
    leaks("reset", 0);
}

#[test]
fn s09_pin() {
    leaks("pin", 1);
}

#[test]
fn s09_refuse() {
    leaks("refuse", 2);
}

fn started(policy: &str, connections: usize) -> (Pooler, String) {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let plan = Plan::new(cluster).max_connections(connections).set("leak_policy", format!("\"{policy}\""));
    (plan.set("admin_users", "[\"dba\"]").start(), user)
}

fn sequences(client: &mut Client, frames: &Frames, answers: usize) -> Vec<Reply> {
    client.send(&frames.0).expect("sent");
    (0..answers).map(|_| client.collect().expect("an answer")).collect()
}

/// A refusal comes in its turn, fails what it stands in, and nothing of the text is run.
#[test]
fn refusals_are_answered_in_order() {
    if !Target::is_pgpinion() {
        return;
    }
    let (pooler, user) = started("refuse", 1);
    let mut client = pooler.client(&user);
    let frames = Frames::new()
        .unnamed("select 1", &[])
        .sync()
        .unnamed("select 2", &[])
        .unnamed("listen a", &[])
        .unnamed("select 3", &[])
        .sync()
        .query("select 4; listen a")
        .function_call(2880)
        .parse("named", "prepare p as select 1")
        .sync()
        .unnamed("select 5", &[])
        .sync();
    let replies = sequences(&mut client, &frames, 6);
    let all: Vec<&str> = replies.iter().map(|reply| reply.sequence.as_str()).collect();
    assert_eq!(all, ["12TDCZ", "12TDCEZ", "EZ", "EZ", "EZ", "12TDCZ"]);
    for refused in &replies[1..5] {
        assert_eq!((refused.code(), refused.status), ("0A000", b'I'));
    }
    assert_eq!(
        replies[1].errors[0].message,
        "LISTEN would be left to other clients of this server connection"
    );

    // Inside a transaction block it fails the transaction, as any error does.
    let frames =
        Frames::new().query("begin").query("set work_mem = '1MB'").query("select 1").query("rollback");
    let replies = sequences(&mut client, &frames, 4);
    let all: Vec<(&str, u8)> = replies.iter().map(|reply| (reply.code(), reply.status)).collect();
    assert_eq!(all, [("", b'T'), ("0A000", b'E'), ("25P02", b'E'), ("", b'I')]);

    // What leaves nothing is not refused, however it looks.
    for text in [
        "begin; set local work_mem = '1MB'; create temp table t (a int) on commit drop; commit",
        "set timezone = 'PRC'; select set_config('work_mem', '1MB', true), set_config('TimeZone', 'UTC', false)",
        "select pg_advisory_xact_lock(1), ';listen a', 'set_config(1,2,3)' -- ; listen a",
        "select nextval('pg_temp.none')",
    ] {
        assert!(client.query(text).expect("an answer").code() != "0A000", "{text}");
    }
    client.terminate_and_wait();
    pooler.finish();
}

/// A statement that was prepared before it is used leaves what it leaves where it is used.
#[test]
fn named_statements_are_watched_where_they_run() {
    if !Target::is_pgpinion() {
        return;
    }
    let (pooler, user) = started("reset", 2);
    let (mut holder, mut leaver) = (pooler.client(&user), pooler.client(&user));
    let prepared = Frames::new().parse("s", "set work_mem = '77kB'").sync();
    assert_eq!(sequences(&mut leaver, &prepared, 1)[0].sequence, "1Z");
    let run = Frames::new().bind("", "s", &[]).execute("", 0).sync();
    for _ in 0..4 {
        // Each time another server is free.
        assert_eq!(sequences(&mut leaver, &run, 1)[0].sequence, "2CZ");
        assert_eq!(holder.query("begin; show work_mem").expect("a server").value(), "4MB");
        assert_eq!(sequences(&mut leaver, &run, 1)[0].sequence, "2CZ");
        assert_eq!(leaver.query("show work_mem").expect("an answer").value(), "4MB");
        holder.query("commit").expect("an answer");
    }
    // What may run changes with the policy, also for what was prepared before.
    pooler.reload(|text| text.replace("leak_policy = \"reset\"", "leak_policy = \"refuse\""));
    eventually("the policy holds", Duration::from_secs(10), || {
        sequences(&mut leaver, &run, 1)[0].code() == "0A000"
    });
    assert_eq!(sequences(&mut leaver, &run, 1)[0].sequence, "EZ");
    pooler.reload(|text| text.replace("leak_policy = \"refuse\"", "leak_policy = \"allow\""));
    eventually("the policy holds", Duration::from_secs(10), || {
        sequences(&mut leaver, &run, 1)[0].sequence == "2CZ"
    });
    pooler.finish();
}

/// Where statements are not followed, their names are left behind.
#[test]
fn names_that_are_not_followed_are_forgotten() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(1).set("max_prepared_statements", 0).start();
    for _ in 0..3 {
        let mut client = pooler.client(&user);
        let frames = Frames::new().parse("same", "select 1").bind("", "same", &[]).execute("", 0).sync();
        assert_eq!(sequences(&mut client, &frames, 1)[0].sequence, "12DCZ");
        client.terminate_and_wait();
    }
    pooler.finish();
}

/// A pinned client is counted, hears what it listens to, and gives its server back by leaving, by `DISCARD ALL` or when it
/// was idle for too long.
#[test]
fn pinned_clients_are_counted_until_they_leave() {
    if !Target::is_pgpinion() {
        return;
    }
    let (pooler, user) = started("pin", 2);
    let mut admin =
        Client::connect(&pooler.address, &[("user", "dba"), ("database", "pgpinion")]).expect("in");
    let all = [("user", user.as_str()), ("shard", "all")];
    let mut pinned = || values(&mut admin, "SHOW QUOTA", &all, "pinned").concat();
    let (mut listener, mut other) = (pooler.client(&user), pooler.client(&user));
    let process = listener.query("listen news; select pg_backend_pid()").expect("an answer").value();
    assert_eq!(pinned(), "1");
    other.query("notify news, 'hello'").expect("an answer");
    let heard = listener.query("select pg_backend_pid()").expect("an answer");
    assert_eq!((heard.value(), heard.notifications), (process, vec![("news".into(), "hello".into())]));
    other.query("select 1").expect("another server");

    // Both servers are kept now: who comes has to wait.
    other.query("set work_mem = '77kB'").expect("an answer");
    assert_eq!(pinned(), "2");
    let mut third = pooler.client(&user);
    third.send(&Frames::new().query("show work_mem").0).expect("sent");
    third.assert_silent(Duration::from_millis(100));
    other.query("discard all").expect("an answer");
    assert_eq!(third.collect().expect("a server").value(), "4MB");
    assert_eq!(pinned(), "1");

    // Its parameters are its own, also after a reset on a server that stays with it.
    let wishes = [("user", user.as_str()), ("database", "app"), ("timezone", "PRC")];
    let mut zoned = Client::connect(&pooler.address, &wishes).expect("in");
    zoned.query("select pg_advisory_lock(815); set timezone = 'Asia/Tokyo'").expect("an answer");
    zoned.query("reset timezone").expect("an answer");
    assert_eq!(zoned.query("show timezone").expect("an answer").value(), "PRC");
    zoned.terminate_and_wait();
    let zone = Cluster::shared().value("show timezone");
    assert_eq!(third.query("show timezone").expect("an answer").value(), zone);

    pooler.reload(|text| text.replace("leak_policy", "client_idle_timeout = 0.2\nleak_policy"));
    eventually("the timeout holds", Duration::from_secs(10), || {
        pooler.log().contains("client_idle_timeout: ")
    });
    listener.query("select 1").expect("an answer");
    assert_eq!(listener.read_to_end(Duration::from_secs(5)).expect("a reason").code, "57P05");
    drop((third, other));
    pooler.finish();
}

/// Each route has its own policy, and those that have none have the general one.
#[test]
fn policies_differ_from_route_to_route() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let policies = ["allow", "log", "reset", "pin", "refuse", "general"];
    let users = policies.map(|policy| (policy, cluster.user("user")));
    let mut plan = Plan::new(cluster).max_connections(2 * policies.len()).set("leak_policy", "\"refuse\"");
    for (policy, user) in &users[..policies.len() - 1] {
        plan = plan.route(user, &format!("leak_policy = \"{policy}\"\nmax_connections = 1"));
    }
    let pooler = plan.start();
    for (policy, user) in &users {
        let mut client = pooler.client(user);
        let refused = client.query("set work_mem = '77kB'").expect("an answer").code() == "0A000";
        assert_eq!(refused, ["refuse", "general"].contains(policy), "{policy}");
        let left = client.query("show work_mem").expect("an answer").value() == "77kB";
        assert_eq!(left, ["allow", "log", "pin"].contains(policy), "{policy}");
        let mut other = pooler.client(user);
        other.send(&Frames::new().query("show work_mem").0).expect("sent");
        if *policy == "pin" {
            other.assert_silent(Duration::from_millis(200));
            client.terminate_and_wait();
            assert_eq!(other.collect().expect("a server").value(), "4MB", "{policy}");
        } else {
            let found = other.collect().expect("a server").value();
            assert_eq!(found == "77kB", ["allow", "log"].contains(policy), "{policy}: {found}");
        }
    }
    pooler.finish();
}

/// Others see what is left there, and the log says who left it: once for each client and kind.
#[test]
fn what_is_only_logged_is_told_once() {
    if !Target::is_pgpinion() {
        return;
    }
    let (pooler, user) = started("log", 1);
    let (mut leaver, mut other) = (pooler.client(&user), pooler.client(&user));
    for _ in 0..3 {
        leaver.query("set work_mem = '77kB'").expect("an answer");
        leaver.query("listen a").expect("an answer");
    }
    assert_eq!(other.query("show work_mem").expect("an answer").value(), "77kB");
    let written = || pooler.log().contains("leak_policy: LISTEN: ");
    eventually("the log is written", Duration::from_secs(5), written);
    let log = pooler.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("leak_policy: ")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (line, what) in lines.iter().zip(["SET of a parameter that PostgreSQL does not report", "LISTEN"]) {
        let whole = format!("leak_policy: {what}: it stays on the server, for whoever gets that next");
        assert!(line.contains(&whole) && line.contains("session") && line.contains("connection"), "{line}");
    }
    drop((leaver, other));
    pooler.finish();
}
