//! Drivers with their habits, in transaction mode and without a special setting. `tests/drivers/install` gets them;
//! `tests/run` calls it. Without them there is nothing to run.

mod tokio_habits;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{Cluster, bin};
use crate::pooler::{Plan, Pooler, Target};
use crate::process;
use crate::wire::Address;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the drivers are installed, if they are.
fn drivers() -> Option<PathBuf> {
    let folder = root().join("target/drivers");
    let installed = folder.join("Jdbc.class").exists();
    if !installed {
        eprintln!("drivers are not installed: tests/drivers/install gets them");
    }
    (installed && Target::current() != Target::Pgbouncer).then_some(folder)
}

/// Few servers, and few statements on each: what a driver prepared is mostly somewhere else.
fn pooler(cluster: &Cluster) -> Pooler {
    Plan::new(cluster).shards(2).max_connections(3).set("max_prepared_statements", 40).start_alone()
}

/// Runs a program whose connections go through the pooler, as the environment tells it.
fn run(pooler: &Pooler, user: &str, command: &mut Command) {
    let Address::Tcp(address) = &pooler.address else { panic!("poolers of tests listen on TCP") };
    let began = Instant::now();
    let output = command
        .current_dir(root())
        .env("PGHOST", address.ip().to_string())
        .env("PGPORT", address.port().to_string())
        .env("PGUSER", user)
        .env("PGDATABASE", "app")
        .env("PGCONNECT_TIMEOUT", "10")
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{text}{:.1} s", began.elapsed().as_secs_f64());
    assert!(output.status.success(), "{command:?}: {text}");
    assert!(began.elapsed() < Duration::from_secs(60), "a short form");
}

#[test]
fn psycopg_3_prepares_everything() {
    let Some(drivers) = drivers() else { return };
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = pooler(cluster);
    // With the libpq it brings, which closes statements, and with the system's, which may have to deallocate them.
    for implementation in ["binary", "python"] {
        let mut command = Command::new(drivers.join("venv/bin/python"));
        command.arg("tests/drivers/psycopg_habits.py").env("PSYCOPG_IMPL", implementation);
        run(&pooler, &user, &mut command);
    }
    pooler.finish();
}

#[test]
fn asyncpg_keeps_its_statement_cache() {
    let Some(drivers) = drivers() else { return };
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = pooler(cluster);
    run(&pooler, &user, Command::new(drivers.join("venv/bin/python")).arg("tests/drivers/asyncpg_habits.py"));
    pooler.finish();
}

#[test]
fn sqlalchemy_pools_and_maps() {
    python("sqlalchemy_habits.py");
}

/// Its iterators use cursors that it declares outside a transaction if it has none: WITH HOLD, which belong to a session. In
/// an atomic block they are as any other.
#[test]
fn django_does_its_basics() {
    python("django_habits.py");
}

/// Runs a program of the drivers' folder.
fn python(program: &str) {
    let Some(drivers) = drivers() else { return };
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = pooler(cluster);
    let program = Path::new("tests/drivers").join(program);
    run(&pooler, &user, Command::new(drivers.join("venv/bin/python")).arg(program));
    pooler.finish();
}

#[test]
fn node_postgres_names_its_queries() {
    let Some(drivers) = drivers() else { return };
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = pooler(cluster);
    let mut command = Command::new("node");
    command.arg("tests/drivers/node_habits.js").env("NODE_PATH", drivers.join("node_modules"));
    run(&pooler, &user, &mut command);
    pooler.finish();
}

#[test]
fn jdbc_prepares_at_the_first_use() {
    let Some(drivers) = drivers() else { return };
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = pooler(cluster);
    let classes = format!("{}:/usr/share/java/postgresql.jar", drivers.display());
    run(&pooler, &user, Command::new("java").args(["-Xshare:auto", "-cp", &classes, "Jdbc"]));
    pooler.finish();
}

/// psql, several at a time on fewer servers: what it prints is what it prints without a pooler.
#[test]
fn psql_prints_what_it_prints_without_a_pooler() {
    if Target::current() == Target::Pgbouncer {
        return;
    }
    for cluster in Cluster::of_each_release() {
        let user = cluster.user("user");
        cluster.sql("create table if not exists psql_rows (id int, owner text not null, text text)");
        cluster.sql(&format!("grant all on psql_rows to {user}"));
        let names: Vec<String> = (0..PSQL_CLIENTS).map(|number| format!("{user}'s {number}")).collect();
        let direct: Vec<String> = names.iter().map(|who| psql(&cluster.address(), &user, who)).collect();
        assert!(direct[0].contains("the end of ") && direct[0].contains("LOCATION:"), "{}", direct[0]);
        let pooler = Plan::new(cluster).shards(2).max_connections(2).start();
        std::thread::scope(|scope| {
            for (who, expected) in names.iter().zip(&direct) {
                let (pooler, user) = (&pooler, &user);
                scope.spawn(move || {
                    let got = psql(&pooler.address, user, who);
                    let same = expected.lines().zip(got.lines()).take_while(|(one, two)| one == two).count();
                    let around = |text: &str| {
                        text.lines().skip(same.saturating_sub(3)).take(8).collect::<Vec<_>>().join("\n")
                    };
                    assert!(got == *expected, "{who}: {}\n--- through:\n{}", around(expected), around(&got));
                });
            }
        });
        interrupts(cluster, &pooler, &user);
        pooler.finish();
    }
}

/// What psql prints, errors among the rest.
fn psql(address: &Address, user: &str, who: &str) -> String {
    let folder = process::folder("psql");
    let file = folder.join("rows");
    let mut command = psql_command(address, user);
    command.args(["-a", "-f", "tests/drivers/psql.sql", "-v", &format!("who={who}"), "-v"]);
    command.arg(format!("file={}", file.display())).current_dir(root());
    let output = command.output().expect("psql is installed with PostgreSQL");
    let text = [output.stdout, b"--- errors:\n".to_vec(), output.stderr].concat();
    // Numbers of large objects are PostgreSQL's own, and files have names of their own.
    let text = String::from_utf8_lossy(&text).replace(&folder.display().to_string(), "FOLDER");
    text.lines().filter(|line| !line.starts_with("lo_")).map(|line| format!("{line}\n")).collect()
}

fn psql_command(address: &Address, user: &str) -> Command {
    let Address::Tcp(address) = address else { panic!("by TCP") };
    let mut command = Command::new(bin("psql"));
    command.args([
        "-X",
        "-U",
        user,
        "-h",
        &address.ip().to_string(),
        "-p",
        &address.port().to_string(),
        "app",
    ]);
    command
}

/// Ctrl-C cancels what it waits for.
fn interrupts(cluster: &Cluster, pooler: &Pooler, user: &str) {
    let mut command = psql_command(&pooler.address, user);
    command.args(["-c", "select 'begun'", "-c", "select pg_sleep(30)"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("psql is installed with PostgreSQL");
    let running = format!(
        "select count(*) from pg_stat_activity where usename = '{user}' and state = 'active' and query like '%pg_sleep%'"
    );
    process::eventually("the query runs", Duration::from_secs(20), || cluster.value(&running) == "1");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it runs");
    let began = Instant::now();
    let output = child.wait_with_output().expect("it ends");
    assert!(began.elapsed() < Duration::from_secs(10), "it was not cancelled");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("begun"), "{said}{errors}");
    assert!(errors.contains("canceling statement due to user request"), "{errors}");
}

const PSQL_CLIENTS: usize = 4;

/// pgbench prepares each statement of its script once for each of its connections; with `-C` that is for each
/// transaction.
#[test]
fn pgbench_prepares() {
    if Target::current() == Target::Pgbouncer {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = pooler(cluster);
    let script = root().join("tests/drivers/pgbench.sql");
    for connections in [&[][..], &["-C"]] {
        let mut command = Command::new(bin("pgbench"));
        command
            .args(["-n", "-M", "prepared", "-c", "8", "-j", "2", "-t", "50", "-f"])
            .arg(&script)
            .args(connections);
        run(&pooler, &user, &mut command);
    }
    pooler.finish();
}
