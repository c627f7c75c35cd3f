//! Throwaway PostgreSQL servers.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::process::{self, Process, eventually, folder, free_port, give_away, unprivileged};
use crate::wire::{Address, Client};

/// A PostgreSQL that clusters can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The one that the system has.
    Installed,
    /// PostgreSQL 18, which `tests/postgres/install` gets.
    Eighteen,
}

impl Release {
    /// All there are here.
    pub fn all() -> Vec<Release> {
        let eighteen = eighteen().map(|_| Release::Eighteen);
        if eighteen.is_none() {
            eprintln!("PostgreSQL 18 is not here: tests/postgres/install gets it");
        }
        [Release::Installed].into_iter().chain(eighteen).collect()
    }

    fn bin(self, name: &str) -> PathBuf {
        match self {
            Release::Installed => bin(name),
            Release::Eighteen => {
                eighteen().expect("it was asked for after it was found").join("bin").join(name)
            }
        }
    }
}

/// Where PostgreSQL 18 is, if it is: a copy that the user who runs servers can read, wherever this program is.
fn eighteen() -> Option<&'static Path> {
    static COPY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let copy = COPY.get_or_init(|| {
        let native = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/postgresql-18/native");
        native.join("bin/postgres").exists().then(|| {
            let folder = folder("postgresql18");
            process::run(Command::new("cp").arg("-a").arg(native.join(".")).arg(&folder));
            give_away(&folder);
            folder
        })
    });
    copy.as_deref()
}

/// One PostgreSQL server with a superuser `postgres` and a database `app`; ends when dropped.
#[derive(Debug)]
pub struct Cluster {
    release: Release,
    folder: PathBuf,
    port: u16,
    log: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Cluster {
    /// The server that all well-behaved tests share. Nobody restarts it or changes its settings.
    pub fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Cluster::private(&[("max_connections", "400")]))
    }

    /// One such server of each version there is.
    pub fn of_each_release() -> Vec<&'static Cluster> {
        static EIGHTEEN: OnceLock<Cluster> = OnceLock::new();
        let shared = |release| match release {
            Release::Installed => Cluster::shared(),
            Release::Eighteen => {
                EIGHTEEN.get_or_init(|| Cluster::of(Release::Eighteen, &[("max_connections", "400")]))
            }
        };
        Release::all().into_iter().map(shared).collect()
    }

    /// A server for one test, with these settings.
    pub fn private(settings: &[(&str, &str)]) -> Cluster {
        Cluster::of(Release::Installed, settings)
    }

    /// The same of this version.
    pub fn of(release: Release, settings: &[(&str, &str)]) -> Cluster {
        let folder = folder("cluster");
        let data = folder.join("data");
        process::run(Command::new("cp").arg("-a").arg(template(release)).arg(&data));
        let port = free_port();
        let mut conf = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\n",
            folder.display()
        );
        conf.push_str(CONFIGURATION);
        for (name, value) in settings {
            conf.push_str(&format!("{name} = '{value}'\n"));
        }
        process::write(&data.join("postgresql.conf"), &conf);
        give_away(&folder);
        let log = folder.join("log");
        let cluster = Cluster { release, folder, port, log, process: Mutex::new(None) };
        cluster.start();
        cluster.sql("grant all on schema public to public");
        cluster
    }

    /// Starts it and waits until it answers.
    pub fn start(&self) {
        self.launch();
        eventually("PostgreSQL accepts connections", Duration::from_secs(60), || {
            self.try_sql("select 1").is_ok()
        });
    }

    /// Starts it without waiting.
    pub fn launch(&self) {
        let mut command = unprivileged(self.release.bin("postgres"));
        command.arg("-D").arg(self.folder.join("data"));
        *self.process.lock().expect("lock") = Some(Process::spawn(&mut command, &self.log));
    }

    /// Ends it: SIGINT is a fast stop, SIGQUIT an immediate one.
    pub fn stop(&self, how: Signal) {
        let mut process = self.process.lock().expect("lock").take().expect("it runs");
        process.signal(how);
        assert!(process.wait(Duration::from_secs(30)).is_some(), "PostgreSQL does not stop");
    }

    pub fn restart(&self, how: Signal) {
        self.stop(how);
        self.start();
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its unix socket.
    pub fn socket_folder(&self) -> &Path {
        &self.folder
    }

    pub fn address(&self) -> Address {
        Address::tcp(self.port)
    }

    /// Replaces `pg_hba.conf` and loads it.
    pub fn set_hba(&self, lines: &str) {
        process::write(&self.folder.join("data/pg_hba.conf"), lines);
        self.reload();
    }

    pub fn reload(&self) {
        self.process.lock().expect("lock").as_ref().expect("it runs").signal(Signal::SIGHUP);
    }

    /// Runs a statement directly as superuser; rows as text.
    pub fn sql(&self, statement: &str) -> Vec<Vec<String>> {
        self.try_sql(statement).unwrap_or_else(|error| panic!("{statement}: {error}"))
    }

    pub fn try_sql(&self, statement: &str) -> Result<Vec<Vec<String>>, String> {
        let address = Address::Unix(self.folder.join(format!(".s.PGSQL.{}", self.port)));
        let parameters = [("user", "postgres"), ("database", "app"), ("application_name", "harness")];
        let mut client = Client::connect(&address, &parameters).map_err(|fault| fault.to_string())?;
        let reply = client.query(statement).map_err(|fault| fault.to_string())?;
        match reply.errors.first() {
            Some(error) => Err(error.to_string()),
            None => Ok(reply.text_rows()),
        }
    }

    /// The one value of a query.
    pub fn value(&self, statement: &str) -> String {
        self.sql(statement).swap_remove(0).swap_remove(0)
    }

    /// A new role that may log in and create things in `public`; its name starts with `name`.
    pub fn user(&self, name: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let user = format!("{name}_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.sql(&format!("create role {user} login"));
        user
    }

    /// Process ids of the backends that serve `user`.
    pub fn backends(&self, user: &str) -> Vec<i32> {
        let rows = self.sql(&format!(
            "select pid from pg_stat_activity where usename = '{user}' and backend_type = 'client backend'"
        ));
        rows.iter().map(|row| row[0].parse().expect("a pid")).collect()
    }

    /// Samples `pg_stat_activity` as fast as it answers, until asked for the result.
    pub fn sample(&self) -> Sampler {
        Sampler::start(self.address())
    }

    /// A point in the server's log.
    pub fn mark(&self) -> LogMark {
        LogMark(fs::metadata(&self.log).expect("the log").len())
    }

    /// The lines of the server's log since `mark` that concern `user` or nobody.
    pub fn log_since(&self, mark: LogMark, user: &str) -> Vec<String> {
        let bytes = fs::read(&self.log).expect("the log");
        let text = String::from_utf8_lossy(&bytes[mark.0 as usize..]).into_owned();
        let ours = |line: &&str| {
            line.contains(&format!(" <{user}> "))
                || line.contains(" <> ")
                || line.contains(&format!("user={user} "))
        };
        text.lines().filter(ours).map(str::to_owned).collect()
    }

    /// Backends started for `user` since `mark`.
    pub fn starts_since(&self, mark: LogMark, user: &str) -> usize {
        let authorized = format!("connection authorized: user={user} ");
        self.log_since(mark, user).iter().filter(|line| line.contains(&authorized)).count()
    }

    /// Fails if the server noticed something that a pooler must never do to it. `allow` names what this test
    /// provokes itself.
    pub fn assert_log_clean(&self, mark: LogMark, user: &str, allow: &[&str]) {
        let explanation = |line: &String| {
            ["CONTEXT:  ", "STATEMENT:  ", "DETAIL:  "].iter().any(|word| line.contains(word))
        };
        for line in self.log_since(mark, user).into_iter().filter(|line| !explanation(line)) {
            let bad = BAD_SIGNS.iter().find(|sign| line.contains(**sign));
            let allowed = allow.iter().any(|text| line.contains(text));
            assert!(bad.is_none() || allowed, "PostgreSQL's log has {:?}:\n{line}", bad.expect("found"));
        }
    }

    /// Waits until `user` has left nothing behind: no open transaction, no lock, no running statement.
    pub fn assert_quiet(&self, user: &str, backends_max: usize) {
        let busy = format!(
            "select count(*) from pg_stat_activity where usename = '{user}' and state <> 'idle'
             union all select count(*) from pg_locks l join pg_stat_activity a using (pid)
                where a.usename = '{user}' and l.locktype = 'advisory'"
        );
        eventually("backends are idle and hold no lock", Duration::from_secs(5), || {
            self.sql(&busy).iter().all(|row| row[0] == "0")
        });
        let backends = self.backends(user).len();
        assert!(backends <= backends_max, "{backends} backends for {user}, more than {backends_max}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.lock().ok().and_then(|mut process| process.take()) {
            process.signal(Signal::SIGQUIT);
            process.wait(Duration::from_secs(10));
        }
    }
}

/// A position in a cluster's log.
#[derive(Clone, Copy, Debug)]
pub struct LogMark(u64);

/// A thread that watches `pg_stat_activity`.
#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Samples>>,
}

/// What a sampler saw.
#[derive(Debug, Default)]
pub struct Samples {
    pub count: usize,
    most: HashMap<String, usize>,
}

impl Samples {
    /// The most backends that `user` had in one sample.
    pub fn most(&self, user: &str) -> usize {
        self.most.get(user).copied().unwrap_or(0)
    }
}

impl Sampler {
    fn start(address: Address) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = Some(std::thread::spawn(move || {
            let parameters = [("user", "postgres"), ("database", "app"), ("application_name", "sampler")];
            let mut client = Client::connect(&address, &parameters).expect("a free superuser slot");
            let mut samples = Samples::default();
            while !stopped.load(Ordering::Relaxed) {
                let reply = client.query(SAMPLE).expect("PostgreSQL is there");
                samples.count += 1;
                for row in reply.text_rows() {
                    let seen: usize = row[1].parse().expect("a count");
                    let most = samples.most.entry(row[0].clone()).or_default();
                    *most = seen.max(*most);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            samples
        }));
        Self { stop, thread }
    }

    pub fn finish(mut self) -> Samples {
        self.stop.store(true, Ordering::Relaxed);
        let samples = self.thread.take().and_then(|thread| thread.join().ok()).expect("the sampler");
        assert!(samples.count > 0, "nothing was sampled");
        samples
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

const SAMPLE: &str = "select usename, count(*) from pg_stat_activity
    where backend_type = 'client backend' and pid <> pg_backend_pid() and usename is not null group by 1";

/// A data directory that has never run, made once and copied.
fn template(release: Release) -> &'static Path {
    static TEMPLATES: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
    TEMPLATES[release as usize].get_or_init(|| {
        let folder = folder("template");
        give_away(&folder);
        let data = folder.join("data");
        process::run(
            unprivileged(release.bin("initdb"))
                .args([
                    "--no-sync",
                    "--auth=trust",
                    "--username=postgres",
                    "--encoding=UTF8",
                    "--locale=C",
                    "-D",
                ])
                .arg(&data),
        );
        let mut single = unprivileged("bash");
        let create = format!(
            "echo 'create database app' | {} --single -D {} postgres",
            release.bin("postgres").display(),
            data.display()
        );
        process::run(single.args(["-c", &create]));
        data
    })
}

/// Where the server programs are: the newest version Debian's packages left, or the path.
pub fn bin(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin").join(name)).collect();
    found.retain(|path| path.exists());
    found.sort();
    found.pop().unwrap_or_else(|| name.into())
}

const CONFIGURATION: &str = "
fsync = off
full_page_writes = off
shared_buffers = 64MB
max_wal_senders = 0
wal_level = minimal
autovacuum = off
log_connections = on
log_error_verbosity = default
log_line_prefix = '%m [%p] %e <%u> %a '
timezone = 'UTC'
";

/// Protocol violations, unknown and duplicate statements, BEGIN inside a transaction: what a pooler that mixes up
/// its clients makes PostgreSQL say.
const BAD_SIGNS: [&str; 8] = [
    " 08P01 ",
    " 26000 ",
    " 42P05 ",
    " 25001 ",
    "unexpected",
    "PANIC",
    "lost synchronization",
    "terminated by signal",
];
