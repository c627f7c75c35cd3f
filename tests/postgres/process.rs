//! Child processes, their folders, and what `/proc` says about them.
//!
//! Everything lives in one folder under the temporary directory. A guardian shell waits for the end of this
//! process, however it ends, then kills whatever still names that folder in its command line, and removes it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

/// A folder of its own, for anybody to enter: PostgreSQL may run as another user.
pub fn folder(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let path = root().join(format!("{name}{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&path).expect("a new folder");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("own folder");
    path
}

#[expect(clippy::zombie_processes, reason = "the guardian outlives this process")]
fn root() -> &'static Path {
    static ROOT: OnceLock<(PathBuf, Mutex<Option<ChildStdin>>)> = OnceLock::new();
    let (path, _) = ROOT.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("pgpinion-test-{}", std::process::id()));
        fs::create_dir(&path).expect("a new folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("own folder");
        let guardian = Command::new("bash")
            .args(["-c", GUARDIAN])
            .env("ROOT", &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("bash");
        (path, Mutex::new(guardian.stdin))
    });
    path
}

/// Reads until this process has gone; PostgreSQL takes SIGQUIT as "at once".
const GUARDIAN: &str = r#"
trap '' INT TERM HUP QUIT
cat >/dev/null
for signal in QUIT KILL; do
    for file in $(grep -lasF -f <(echo "$ROOT/") /proc/[0-9]*/cmdline); do
        pid=${file#/proc/}
        kill -$signal "${pid%/cmdline}"
    done
    sleep 0.5
done
rm -rf "$ROOT"
"#;

/// A command that does not run as root, because PostgreSQL and PgBouncer refuse to.
pub fn unprivileged(program: impl AsRef<Path>) -> Command {
    if !Uid::effective().is_root() {
        return Command::new(program.as_ref());
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program.as_ref());
    command
}

/// Gives a path to the user that `unprivileged` commands run as.
pub fn give_away(path: &Path) {
    if Uid::effective().is_root() {
        let done = Command::new("chown").args(["-R", "postgres:postgres"]).arg(path).status();
        assert!(done.expect("chown").success());
    }
}

/// Runs to the end; its output is in the panic if it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("the program exists");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed, {}:\n{text}", output.status);
    text
}

/// A running child with its output in a file. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn spawn(command: &mut Command, log: &Path) -> Self {
        let file = fs::OpenOptions::new().create(true).append(true).open(log).expect("log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a descriptor"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).expect("the log")).into_owned()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the process is there");
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("own child").is_none()
    }

    /// Waits for the end: its exit code, or 128 + signal, or `None` if it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("own child") {
                return Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// Mapped memory in bytes, used or not.
    pub fn mapped(&self) -> u64 {
        self.status_bytes("VmSize:")
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find(|line| line.starts_with(name)).expect("a live process");
        line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number") * 1024
    }

    /// CPU time used so far, user and system, all threads.
    pub fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        let fields: Vec<&str> = stat.rsplit_once(')').expect("stat").1.split_whitespace().collect();
        let ticks: u64 =
            fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
        Duration::from_millis(ticks * 10)
    }

    /// How often its threads went to sleep by themselves, so far: (name, count) by thread.
    pub fn sleeps(&self) -> Vec<(String, u64)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("a live process");
        let mut sleeps = Vec::new();
        for task in tasks.flatten() {
            let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
                line.split_whitespace().nth(1).unwrap_or_default().to_owned()
            };
            sleeps.push((field("Name:"), field("voluntary_ctxt_switches:").parse().unwrap_or(0)));
        }
        sleeps
    }

    /// Open descriptors, without the sockets that are connected to TCP port `except`: what each is.
    pub fn descriptors(&self, except: u16) -> Vec<String> {
        let sockets = tcp_sockets();
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("a live process");
        let targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        let targets = targets.map(|target| target.to_string_lossy().into_owned());
        targets
            .filter_map(|target| match sockets.iter().find(|socket| socket.name == target) {
                Some(socket) if socket.peer_port == except => None,
                Some(socket) => Some(format!("TCP to port {} in state {}", socket.peer_port, socket.state)),
                None => Some(target),
            })
            .collect()
    }

    /// Established TCP connections of its own to this port.
    pub fn connections_to(&self, port: u16) -> usize {
        let sockets = tcp_sockets();
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("a live process");
        let targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        let ours = |socket: &&TcpSocket| socket.peer_port == port && socket.state == "01";
        let open: std::collections::HashSet<&str> =
            sockets.iter().filter(ours).map(|socket| socket.name.as_str()).collect();
        targets.filter(|target| open.contains(&*target.to_string_lossy())).count()
    }

    fn proc(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid())).expect("a live process")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct TcpSocket {
    /// `socket:[inode]`, as links in `/proc` show it.
    name: String,
    peer_port: u16,
    /// The kernel's number: 01 is established, 08 closed by the peer only, 0A listening.
    state: String,
}

fn tcp_sockets() -> Vec<TcpSocket> {
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields
        .map(|fields| TcpSocket {
            name: format!("socket:[{}]", fields[9]),
            peer_port: fields[2]
                .rsplit(':')
                .next()
                .and_then(|port| u16::from_str_radix(port, 16).ok())
                .unwrap_or(0),
            state: fields[3].to_owned(),
        })
        .collect()
}

/// The processors this process may run on.
pub fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).expect("own mask");
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect()
}

/// Makes room for so many open sockets in this process, as far as it may.
pub fn allow_descriptors(count: usize) {
    let (now, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("own limits");
    let wanted = now.max(count as u64);
    assert!(wanted <= most, "{count} descriptors are needed, and {most} allowed");
    setrlimit(Resource::RLIMIT_NOFILE, wanted, most).expect("within the hard limit");
}

/// A TCP port nobody listens on, below those the kernel gives to outgoing connections, so that none of our own
/// clients can take it before its server does.
pub fn free_port() -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    for _ in 0..PORTS.len() {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() as usize * 97;
        let port = PORTS.start + (turn % PORTS.len()) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {PORTS:?}");
}

const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Writes a file whole.
pub fn write(path: &Path, text: &str) {
    fs::File::create(path).and_then(|mut file| file.write_all(text.as_bytes())).expect("own file");
}

/// Polls until `done`, and fails with `what` after `limit`.
pub fn eventually(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
