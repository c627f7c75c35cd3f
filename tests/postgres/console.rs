//! The console, from the wire: who may, what is answered, and that it is true.

use std::process::Command;
use std::time::Duration;

use crate::cluster::{Cluster, bin};
use crate::crowd::{Crowd, Habit};
use crate::pooler::{Plan, Pooler, Target};
use crate::process::{eventually, run};
use crate::wire::{Client, Fault, Frames};

const SOON: Duration = Duration::from_secs(5);

fn plan(cluster: &Cluster) -> Plan {
    Plan::new(cluster).set("admin_users", "[\"dba\"]")
}

fn console(pooler: &Pooler) -> Client {
    Client::connect(&pooler.address, &[("user", "dba"), ("database", "pgpinion")]).expect("the console")
}

/// The rows of an answer as maps would have them: the value of `column` in each row that has `key` = `value`.
fn values(console: &mut Client, command: &str, filter: &[(&str, &str)], column: &str) -> Vec<String> {
    let reply = console.query(command).expect("an answer");
    assert!(reply.errors.is_empty(), "{command}: {:?}", reply.errors);
    let at = |name: &str| {
        let found = reply.columns.iter().position(|column| column == name);
        found.unwrap_or_else(|| panic!("{command} has no column {name}: {:?}", reply.columns))
    };
    let matches = |row: &Vec<String>| filter.iter().all(|(name, value)| row[at(name)] == *value);
    reply.text_rows().into_iter().filter(matches).map(|row| row[at(column)].clone()).collect()
}

#[test]
fn only_administrators_may() {
    if !Target::is_pgpinion() {
        return;
    }
    let pooler = plan(Cluster::shared()).set("max_client_conn", 1).start();
    for database in ["pgpinion", "pgbouncer"] {
        let refused = Client::connect(&pooler.address, &[("user", "app"), ("database", database)]);
        let Err(Fault::Closed(Some(error))) = refused else { panic!("{database}: {refused:?}") };
        assert_eq!((error.code.as_str(), error.message.as_str()), ("42501", "not allowed"));
        let mut admin =
            Client::connect(&pooler.address, &[("user", "dba"), ("database", database)]).expect("in");
        assert_eq!(admin.query("SHOW VERSION;").expect("a version").commands, ["SHOW"]);
        let parameter =
            |name: &str| admin.parameters.iter().find(|(each, _)| each == name).map(|(_, value)| value);
        assert!(parameter("server_version").expect("a version").ends_with("/pgpinion"));
        assert_eq!(parameter("client_encoding").expect("an encoding"), "UTF8");
        // `max_client_conn` is used up, and the console is for just that.
        let second = Client::connect(&pooler.address, &[("user", "dba"), ("database", database)]);
        second.expect("an administrator").terminate_and_wait();
        admin.terminate_and_wait();
    }
    pooler.finish();
}

#[test]
fn commands_and_errors_are_pgbouncer_s() {
    if !Target::is_pgpinion() {
        return;
    }
    let pooler = plan(Cluster::shared()).start();
    let mut admin = console(&pooler);
    let reply = admin.query("SHOW POOLZ").expect("an error is an answer");
    assert_eq!(reply.errors[0].message, "invalid command 'SHOW POOLZ', use SHOW HELP;");
    assert_eq!((reply.code(), reply.sequence.as_str(), reply.status), ("42601", "EZ", b'I'));
    let help = admin.query("show help").expect("help");
    assert_eq!((help.commands, help.notices[0].message.as_str()), (vec!["SHOW".to_owned()], "Console usage"));
    assert_eq!(admin.query("").expect("nothing").sequence, "IZ");
    assert_eq!(admin.query("set timezone to 'UTC'").expect("ignored").notices[0].message, "SET ignored");
    assert_eq!(admin.query("show client_encoding").expect("a parameter").value(), "UTF-8");
    assert_eq!(values(&mut admin, "SHOW CONFIG", &[("key", "pool_mode")], "value"), ["\"transaction\""]);
    assert_eq!(
        values(&mut admin, "SHOW CONFIG", &[("key", "endpoints.main.max_connections")], "value"),
        ["10"]
    );
    assert_eq!(values(&mut admin, "SHOW CONFIG", &[("key", "listen")], "changeable"), ["no"]);

    // Several in one packet, and one cut into bytes.
    let batch = Frames::new().query("SHOW VERSION").query("SHOW SHARDS").query("SHOW HELP").0;
    admin.send(&batch).expect("sent");
    for sequence in ["TDCZ", "TDCZ", "CZ"] {
        assert_eq!(admin.collect().expect("an answer").sequence, sequence);
    }
    for byte in Frames::new().query("SHOW VERSION").0 {
        admin.send(&[byte]).expect("sent");
    }
    assert_eq!(admin.collect().expect("an answer").sequence, "TDCZ");

    let Err(Fault::Closed(Some(error))) = admin.extended("SHOW VERSION", &[]) else { panic!("no error") };
    assert_eq!(error.message, "extended query protocol not supported by admin console");
    let mut admin = console(&pooler);
    let large = Frames::new().query(&"x".repeat(100_000)).0;
    let _ = admin.send(&large);
    assert_eq!(admin.read_to_end(SOON).expect("an error").code, "08P01");
    pooler.finish();
}

/// What is shown is what is: clients that are linked, that wait, and for how long, over all shards.
#[test]
fn quota_and_shards_are_true() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let (user, other) = (cluster.user("user"), cluster.user("other"));
    let pooler = plan(cluster).max_connections(4).start();
    let mut holders: Vec<_> = (0..4).map(|_| pooler.client(&user)).collect();
    for holder in &mut holders {
        holder.query("begin").expect("a server");
    }
    let mut waiter = pooler.client(&user);
    waiter.send(&Frames::new().query("select 1").0).expect("sent");
    let mut admin = console(&pooler);
    let all = [("user", user.as_str()), ("shard", "all")];
    eventually("one waits", SOON, || values(&mut admin, "SHOW QUOTA", &all, "waiting") == ["1"]);
    for (column, value) in [
        ("endpoint", "main"),
        ("database", "app"),
        ("clients", "5"),
        ("permits", "4"),
        ("linked", "4"),
        ("idle", "0"),
        ("granted", "4"),
        ("recalled", "0"),
    ] {
        assert_eq!(values(&mut admin, "SHOW QUOTA", &all, column), [value], "{column}");
    }
    std::thread::sleep(Duration::from_millis(200));
    let longest: u64 =
        values(&mut admin, "SHOW QUOTA", &all, "longest_wait_us")[0].parse().expect("a number");
    assert!((200_000..10_000_000).contains(&longest), "{longest} us");
    holders[0].query("commit").expect("its end");
    assert_eq!(waiter.collect().expect("a server").value(), "1");
    let longest_over: u64 =
        values(&mut admin, "SHOW QUOTA", &all, "wait_max_us")[0].parse().expect("a number");
    assert!(longest_over >= longest, "{longest_over} us is not {longest} us and more");
    assert_eq!(values(&mut admin, "SHOW QUOTA", &all, "longest_wait_us"), ["0"]);
    assert_eq!(values(&mut admin, "SHOW QUOTA", &all, "idle"), ["1"]);

    // Another route takes the idle one.
    let mut stranger = pooler.client(&other);
    stranger.query("select 1").expect("a server");
    assert_eq!(values(&mut admin, "SHOW QUOTA", &all, "recalled"), ["1"]);
    assert_eq!(values(&mut admin, "SHOW SHARDS", &[], "panics"), ["0"]);
    assert_eq!(values(&mut admin, "SHOW SHARDS", &[], "clients"), ["7"]);
    assert_eq!(values(&mut admin, "SHOW SHARDS", &[], "permits"), ["4"]);
    drop((holders, waiter, stranger, admin));
    pooler.finish();
}

/// Asked of any shard, under load: each answers, and the sums are those of PostgreSQL.
#[test]
fn all_shards_answer() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = plan(cluster).shards(2).max_connections(6).set("stats_period", 1).start();
    let shards = crate::process::cpus().len().min(2);
    let crowd = Crowd::start(20, &pooler.address, &user, Habit::LIGHT);
    eventually("the pools are full", SOON, || cluster.backends(&user).len() == 6);
    let mut admins: Vec<_> = (0..8).map(|_| console(&pooler)).collect();
    for admin in &mut admins {
        assert_eq!(values(admin, "SHOW SHARDS", &[], "shard").len(), shards);
        let permits = values(admin, "SHOW QUOTA", &[("user", &user), ("shard", "all")], "permits");
        assert_eq!(permits, ["6"]);
    }
    // All at once: their questions share rounds.
    for admin in &mut admins {
        admin.send(&Frames::new().query("SHOW SHARDS").query("SHOW QUOTA").0).expect("sent");
    }
    for admin in &mut admins {
        assert_eq!(admin.collect().expect("shards").rows.len(), shards);
        assert!(admin.collect().expect("quota").rows.len() >= 2);
    }
    let line = format!("user={user}");
    eventually("a line of the log for the route", SOON, || {
        let log = pooler.log();
        log.lines().any(|each| each.contains("stats: shard 0: route: ") && each.contains(&line))
    });
    crowd.finish().assert_faultless();
    drop(admins);
    pooler.finish();
}

/// A dozen routes: ten lines, and one that says that there are more.
#[test]
fn the_log_has_a_bound() {
    if !Target::is_pgpinion() {
        return;
    }
    let cluster = Cluster::shared();
    let pooler = plan(cluster).max_connections(12).set("stats_period", 1).start();
    let mut clients: Vec<_> = (0..12).map(|_| pooler.client(&cluster.user("user"))).collect();
    let mut lines = Vec::new();
    eventually("a period in which all were busy", SOON, || {
        for client in &mut clients {
            client.query("select 1").expect("a server");
        }
        lines = pooler.log().lines().filter(|line| line.contains("stats: ")).map(str::to_owned).collect();
        lines.iter().any(|line| line.ends_with("stats: shard 0: 2 more routes"))
    });
    let end = lines.iter().position(|line| line.ends_with("2 more routes")).expect("just seen");
    let routes = lines[..end].iter().rev().take_while(|line| line.contains("stats: shard 0: route: "));
    assert_eq!(routes.count(), 10);
    drop(clients);
    pooler.finish();
}

#[test]
fn reload_answers_when_it_is_done() {
    if !Target::is_pgpinion() {
        return;
    }
    let pooler = plan(Cluster::shared()).shards(2).max_connections(4).start();
    let mut admin = console(&pooler);
    let good = pooler.edit(|text| text.replace("max_connections = 4", "max_connections = 8"));
    assert_eq!(admin.query("RELOAD").expect("done").commands, ["RELOAD"]);
    // The log is written beside all this.
    let told = "reload: endpoints.main.max_connections: 4 -> 8";
    eventually(told, SOON, || pooler.log().contains(told));
    for _ in 0..4 {
        let mut any = console(&pooler);
        let limit = [("key", "endpoints.main.max_connections")];
        assert_eq!(values(&mut any, "SHOW CONFIG", &limit, "value"), ["8"], "on each shard");
    }
    pooler.edit(|_| good.replace("max_connections", "max_conections"));
    let failed = admin.query("RELOAD").expect("an answer");
    assert_eq!(failed.errors[0].message, "RELOAD failed, see logs for additional details");
    eventually("why it failed", SOON, || pooler.log().contains("did you mean `max_connections`?"));
    // Who is no administrator any more keeps the session, and gets no other.
    pooler.edit(|_| good.replace("[\"dba\"]", "[]"));
    assert_eq!(admin.query("RELOAD").expect("done").commands, ["RELOAD"]);
    assert!(Client::connect(&pooler.address, &[("user", "dba"), ("database", "pgpinion")]).is_err());
    drop(admin);
    pooler.finish();
}

#[test]
fn psql_can_use_it() {
    if !Target::is_pgpinion() {
        return;
    }
    let pooler = plan(Cluster::shared()).unix_listener().start();
    let folder = pooler.unix.parent().expect("a folder").display().to_string();
    let mut psql = Command::new(bin("psql"));
    psql.args(["-X", "-h", &folder, "-p", "6432", "-U", "dba", "-d", "pgpinion", "-At"]);
    psql.args(["-c", "SHOW VERSION", "-c", "SHOW QUOTA", "-c", "SHOW SHARDS", "-c", "RELOAD"]);
    let output = run(&mut psql);
    assert!(output.contains("pgpinion 0.") && output.ends_with("RELOAD\n"), "{output}");
    pooler.finish();
}
