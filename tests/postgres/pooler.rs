//! The program under test, and what else the same scenarios can run against.
//!
//! `PGPINION_TEST_TARGET=direct` lets the clients talk to PostgreSQL itself and `=pgbouncer` to PgBouncer: that is
//! how the scenarios and their oracles are checked, and where a difference is looked up.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::cluster::{Cluster, Samples};
use crate::process::{self, Process, eventually, free_port, give_away, unprivileged};
use crate::wire::{Address, Client, Fault};

/// What stands between the clients and PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Pgpinion,
    Pgbouncer,
    Direct,
}

impl Target {
    pub fn current() -> Self {
        match std::env::var("PGPINION_TEST_TARGET").as_deref() {
            Err(_) | Ok("pgpinion") => Target::Pgpinion,
            Ok("pgbouncer") => Target::Pgbouncer,
            Ok("direct") => Target::Direct,
            Ok(other) => panic!("PGPINION_TEST_TARGET is pgpinion, pgbouncer or direct, not {other:?}"),
        }
    }

    pub fn is_pgpinion() -> bool {
        Self::current() == Target::Pgpinion
    }

    pub fn is_direct() -> bool {
        Self::current() == Target::Direct
    }
}

/// A configuration to be.
#[derive(Clone, Debug)]
pub struct Plan {
    host: String,
    port: u16,
    mode: &'static str,
    max_connections: usize,
    shards: usize,
    unix_listener: bool,
    settings: Vec<(String, String)>,
    database: Vec<(String, String)>,
    more: String,
}

impl Plan {
    /// Transaction mode, one shard, ten connections to this cluster; every database by its own name.
    pub fn new(cluster: &Cluster) -> Self {
        Self::to_port(cluster.port())
    }

    /// The same for a server that is no cluster.
    pub fn to_port(port: u16) -> Self {
        Self {
            host: "127.0.0.1".into(),
            port,
            mode: "transaction",
            max_connections: 10,
            shards: 1,
            unix_listener: false,
            settings: Vec::new(),
            database: Vec::new(),
            more: String::new(),
        }
    }

    pub fn mode(mut self, mode: &'static str) -> Self {
        self.mode = mode;
        self
    }

    pub fn max_connections(mut self, count: usize) -> Self {
        self.max_connections = count;
        self
    }

    /// One shard per processor, at most this many.
    pub fn shards(mut self, count: usize) -> Self {
        self.shards = count;
        self
    }

    /// The server by its socket folder instead of its address.
    pub fn upstream_folder(mut self, folder: &Path) -> Self {
        self.host = folder.display().to_string();
        self
    }

    pub fn unix_listener(mut self) -> Self {
        self.unix_listener = true;
        self
    }

    /// A key of `[pgpinion]`; the value as TOML writes it.
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.into(), value.to_string()));
        self
    }

    /// A string key of the database `app`.
    pub fn database(mut self, name: &str, value: &str) -> Self {
        self.database.push((name.into(), value.into()));
        self
    }

    /// Another endpoint on this host, and a database on it.
    pub fn endpoint(mut self, name: &str, port: u16, database: &str) -> Self {
        self.more += &format!(
            "\n[endpoints.{name}]\nhost = \"127.0.0.1\"\nport = {port}\nmax_connections = 10\n\n[databases.{database}]\nendpoint = \"{name}\"\n"
        );
        self
    }

    /// Keys of the route of `user` in the database `app`.
    pub fn route(mut self, user: &str, keys: &str) -> Self {
        self.more += &format!("\n[routes.\"app/{user}\"]\n{keys}\n");
        self
    }

    /// Starts the target and waits until it accepts.
    pub fn start(self) -> Pooler {
        let quiet = Quiet::Shared(QUIET.read().unwrap_or_else(PoisonError::into_inner));
        self.start_with(quiet)
    }

    /// The same, but no other test's pooler runs meanwhile: for those that measure time.
    pub fn start_alone(self) -> Pooler {
        let quiet = Quiet::Alone(QUIET.write().unwrap_or_else(PoisonError::into_inner));
        self.start_with(quiet)
    }

    fn start_with(self, quiet: Quiet) -> Pooler {
        let mut pooler = match Target::current() {
            Target::Direct => self.start_direct(),
            Target::Pgbouncer => self.start_pgbouncer(),
            Target::Pgpinion => self.start_pgpinion(),
        };
        pooler.quiet = Some(quiet);
        pooler
    }

    /// Writes the configuration of pgpinion: the folder, the file, and the port in it.
    pub fn write(&self) -> (PathBuf, PathBuf, u16) {
        let folder = process::folder("pooler");
        let port = free_port();
        let mut listen = format!("\"127.0.0.1:{port}\"");
        if self.unix_listener {
            write!(listen, ", \"unix:{}\"", folder.display()).expect("a string");
        }
        let mut text = format!(
            "[pgpinion]\nlisten = [{listen}]\npool_mode = \"{}\"\nauth_type = \"trust\"\ncores = \"cores.toml\"\nlog_level = \"debug\"\n",
            self.mode
        );
        for (name, value) in &self.settings {
            writeln!(text, "{name} = {value}").expect("a string");
        }
        write!(
            text,
            "\n[endpoints.main]\nhost = \"{}\"\nport = {}\nmax_connections = {}\n\n[databases.\"*\"]\nendpoint = \"main\"\n",
            self.host, self.port, self.max_connections
        )
        .expect("a string");
        if !self.database.is_empty() {
            text.push_str("\n[databases.app]\nendpoint = \"main\"\n");
            for (name, value) in &self.database {
                writeln!(text, "{name} = \"{value}\"").expect("a string");
            }
        }
        text.push_str(&self.more);
        let file = folder.join("pgpinion.toml");
        process::write(&file, &text);
        let cores: String = self.cores().iter().map(|cpu| format!("[[core]]\ncpu = {cpu}\n")).collect();
        process::write(&folder.join("cores.toml"), &cores);
        (folder, file, port)
    }

    /// One processor per shard; tests that run side by side take different ones first.
    fn cores(&self) -> Vec<usize> {
        static TURN: AtomicUsize = AtomicUsize::new(0);
        let mut cpus = process::cpus();
        let turn = TURN.fetch_add(1, Ordering::Relaxed) % cpus.len();
        cpus.rotate_left(turn);
        cpus.truncate(self.shards);
        cpus
    }

    fn start_direct(self) -> Pooler {
        let unix = PathBuf::from(&self.host).join(format!(".s.PGSQL.{}", self.port));
        Pooler {
            process: None,
            address: Address::tcp(self.port),
            unix,
            quiet: None,
            baseline: 0,
            upstream_port: self.port,
        }
    }

    fn start_pgpinion(self) -> Pooler {
        let (folder, file, port) = self.write();
        let mut command = program();
        command.args(["run", "-c"]).arg(&file).current_dir(&folder);
        let log = folder.join("log");
        // In a folder of its own the name is free, whatever the TCP port.
        self.wait_for(Process::spawn(&mut command, &log), port, folder.join(".s.PGSQL.6432"))
    }

    fn start_pgbouncer(self) -> Pooler {
        let folder = process::folder("pooler");
        let port = free_port();
        let mut text = format!(
            "[databases]\n* = host={} port={} pool_size={}\n",
            self.host, self.port, self.max_connections
        );
        if !self.database.is_empty() {
            write!(text, "app = host={} port={}", self.host, self.port).expect("a string");
            for (name, value) in &self.database {
                write!(text, " {name}={value}").expect("a string");
            }
            text.push('\n');
        }
        write!(
            text,
            "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\npool_mode = {}\nauth_type = trust\nauth_file = {}/users\nunix_socket_dir = {}\nverbose = 1\nmax_client_conn = 5000\nserver_login_retry = 0.2\nignore_startup_parameters = extra_float_digits,options\n",
            self.mode,
            folder.display(),
            if self.unix_listener { folder.display().to_string() } else { String::new() }
        )
        .expect("a string");
        for (name, value) in &self.settings {
            writeln!(text, "{name} = {value}").expect("a string");
        }
        let users: String =
            (0..300).flat_map(|n| PURPOSES.iter().map(move |p| format!("\"{p}_{n}\" \"\"\n"))).collect();
        process::write(&folder.join("users"), &format!("{users}\"postgres\" \"\"\n"));
        let file = folder.join("pgbouncer.ini");
        process::write(&file, &text);
        give_away(&folder);
        let mut command = unprivileged("/usr/sbin/pgbouncer");
        command.arg(&file);
        let log = folder.join("log");
        self.wait_for(Process::spawn(&mut command, &log), port, folder.join(format!(".s.PGSQL.{port}")))
    }

    fn wait_for(self, mut process: Process, port: u16, unix: PathBuf) -> Pooler {
        let address = Address::tcp(port);
        eventually("the pooler accepts", Duration::from_secs(15), || {
            assert!(process.is_alive(), "the pooler ended at its start:\n{}", process.log());
            address.dial().is_ok()
        });
        if Target::is_pgpinion() {
            // It listens before all its threads have their rings.
            eventually("the pooler says that it is ready", Duration::from_secs(15), || {
                process.log().contains("is ready")
            });
        }
        let mut seen = usize::MAX;
        eventually("the probe's descriptor is closed", Duration::from_secs(5), || {
            let now = process.descriptors(self.port).len();
            std::mem::replace(&mut seen, now) == now
        });
        Pooler {
            process: Some(Mutex::new(process)),
            address,
            unix,
            quiet: None,
            baseline: seen,
            upstream_port: self.port,
        }
    }
}

/// A running target.
#[derive(Debug)]
pub struct Pooler {
    process: Option<Mutex<Process>>,
    pub address: Address,
    /// Where its unix socket is, if it has one.
    pub unix: PathBuf,
    quiet: Option<Quiet>,
    baseline: usize,
    upstream_port: u16,
}

/// Whether this pooler may be measured, or only used.
#[derive(Debug)]
#[expect(dead_code, reason = "guards are held, not read")]
enum Quiet {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

static QUIET: RwLock<()> = RwLock::new(());

impl Pooler {
    /// A client of the database `app`.
    pub fn client(&self, user: &str) -> Client {
        self.try_client(user).unwrap_or_else(|fault| panic!("login of {user}: {fault}\n{}", self.log_tail()))
    }

    pub fn try_client(&self, user: &str) -> Result<Client, Fault> {
        Client::connect(&self.address, &login(user))
    }

    pub fn log(&self) -> String {
        self.process.as_ref().map_or_else(String::new, |process| process.lock().expect("lock").log())
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        self.process.as_ref().map_or(0, |process| process.lock().expect("lock").rss())
    }

    /// Mapped memory in bytes, used or not.
    pub fn mapped(&self) -> u64 {
        self.process.as_ref().map_or(0, |process| process.lock().expect("lock").mapped())
    }

    pub fn cpu(&self) -> Duration {
        self.process.as_ref().map_or(Duration::ZERO, |process| process.lock().expect("lock").cpu())
    }

    /// Voluntary sleeps per thread.
    pub fn sleeps(&self) -> Vec<(String, u64)> {
        self.process.as_ref().map_or_else(Vec::new, |process| process.lock().expect("lock").sleeps())
    }

    /// TCP connections to the server, those included that ask for something to be cancelled.
    pub fn upstream_connections(&self) -> usize {
        let count =
            |process: &Mutex<Process>| process.lock().expect("lock").connections_to(self.upstream_port);
        self.process.as_ref().map_or(0, count)
    }

    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("a pooler").lock().expect("lock").signal(signal);
    }

    /// Writes its configuration anew, and tells nobody. Returns the new text.
    pub fn edit(&self, change: impl FnOnce(&str) -> String) -> String {
        let file = self.unix.with_file_name("pgpinion.toml");
        let text = change(&std::fs::read_to_string(&file).expect("its configuration"));
        process::write(&file, &text);
        text
    }

    /// The same, and SIGHUP.
    pub fn reload(&self, change: impl FnOnce(&str) -> String) -> String {
        let text = self.edit(change);
        self.signal(Signal::SIGHUP);
        text
    }

    /// Its exit code, or `None` if it still runs after `limit`.
    pub fn wait(&self, limit: Duration) -> Option<i32> {
        self.process.as_ref().expect("a pooler").lock().expect("lock").wait(limit)
    }

    /// To be called when all clients are gone: it must be alive, have nothing to confess, and hold no descriptor
    /// more than at its start but its server connections.
    pub fn finish(self) {
        let Some(process) = &self.process else { return };
        let mut process = process.lock().expect("lock");
        assert!(process.is_alive(), "the pooler has died:\n{}", tail(&process.log()));
        assert_no_panic(&process.log());
        if !Target::is_pgpinion() {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let open = process.descriptors(self.upstream_port);
            if open.len() <= self.baseline + 2 {
                return;
            }
            assert!(Instant::now() < deadline, "{} descriptors at the start, now {open:#?}", self.baseline);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The same when it has ended by order.
    pub fn finish_stopped(self) {
        assert_no_panic(&self.log());
    }

    /// Fails if `user` ever had more backends than the plan allows; without a pooler there is no cap.
    pub fn assert_capped(&self, samples: &Samples, user: &str, most_allowed: usize) {
        let most = samples.most(user);
        let capped = most <= most_allowed || self.process.is_none();
        assert!(capped, "{most} backends of {user} at once, {most_allowed} allowed");
    }

    pub fn log_tail(&self) -> String {
        tail(&self.log()).to_owned()
    }
}

/// The most memory a pooler has had, looked at often.
#[derive(Debug)]
pub struct Memory {
    before: u64,
    most: u64,
}

impl Memory {
    pub fn of(pooler: &Pooler) -> Self {
        let now = pooler.rss();
        Self { before: now, most: now }
    }

    pub fn look(&mut self, pooler: &Pooler) {
        self.most = self.most.max(pooler.rss());
    }

    /// Bytes more than at the start.
    pub fn grown(&self) -> u64 {
        self.most.saturating_sub(self.before)
    }

    pub fn assert_grown_less_than(&self, bytes: u64) {
        let grown = self.grown();
        assert!(grown <= bytes, "{} KB more, {} KB allowed", grown >> 10, bytes >> 10);
    }
}

/// The startup parameters of `user` in the database `app`.
pub fn login(user: &str) -> [(&str, &str); 2] {
    [("user", user), ("database", "app")]
}

fn assert_no_panic(log: &str) {
    let found = log.lines().find(|line| line.contains("panicked") || line.contains("assertion"));
    assert!(
        found.is_none(),
        "the pooler's log confesses:\n{}\n...\n{}",
        found.unwrap_or_default(),
        tail(log)
    );
}

fn tail(log: &str) -> &str {
    let start = log.len().saturating_sub(4000);
    let start = (start..log.len()).find(|&at| log.is_char_boundary(at)).unwrap_or(log.len());
    &log[start..]
}

/// The program: as just built, or `PGPINION_TEST_PROGRAM`, to try another build.
pub fn program() -> Command {
    let other = std::env::var_os("PGPINION_TEST_PROGRAM");
    Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_pgpinion").into()))
}

/// PgBouncer wants to know its users beforehand.
const PURPOSES: [&str; 4] = ["user", "canary", "good", "other"];
