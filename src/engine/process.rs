//! The process: threads, listeners, signals, the end.

use super::{Engine, Mail, Parts};
use crate::config::{self, Config, Listen, LogLevel};
use crate::control::{Helpers, Logger, Resolver, Signal, Signals};
use crate::ids::ShardId;
use crate::ring::{self, Doorbell, Ring, RingSettings, Tasks};
use crossbeam_channel::{Receiver, Sender, bounded, never, select, tick, unbounded};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::Duration;

/// Why the process could not start, or had to end.
#[derive(Debug)]
pub struct RunError(String);

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RunError {}

/// A shard's thread as the main thread sees it.
struct ShardThread {
    thread: JoinHandle<()>,
    mail: Sender<Mail>,
    doorbell: Doorbell,
}

/// What all shards are given.
struct Common {
    config: Arc<Config>,
    clients: Arc<AtomicUsize>,
    logger: Logger,
    resolver: Resolver,
    helpers: Helpers,
    ended: Sender<Result<(), RunError>>,
}

/// Serves until told to end: SIGTERM lets transactions finish, a second one or SIGINT does not.
///
/// # Errors
/// What was missing at the start (an address in use, a limit, a kernel feature), or a shard that failed.
pub fn run(config: Config) -> Result<(), RunError> {
    let signals = Signals::take().map_err(|error| RunError(format!("cannot take signals: {error}")))?;
    let logger = Logger::start(&config.log);
    let outcome = serve(config, &signals, &logger);
    logger.flush();
    outcome
}

fn serve(config: Config, signals: &Signals, logger: &Logger) -> Result<(), RunError> {
    check_descriptors(&config, logger);
    report_panics(logger.clone());
    let (ended, endings) = unbounded();
    let common = Common {
        resolver: Resolver::start(),
        helpers: Helpers::start(config.cores.shards.len()),
        config: Arc::new(config),
        clients: Arc::new(AtomicUsize::new(0)),
        logger: logger.clone(),
        ended,
    };
    let mut listeners = Listeners::open(&common.config)?;
    let shards = start_shards(&common, &mut listeners)?;
    announce(&common, &shards);
    let outcome = watch(&common, &shards, signals, &endings);
    for shard in shards {
        // A shard that panicked has reported it already.
        let _ = shard.thread.join();
    }
    outcome
}

/// Listening sockets: a TCP address has one for each shard, and the kernel spreads connections; a socket file has one
/// that all shards accept on.
struct Listeners {
    per_shard: Vec<Vec<OwnedFd>>,
    /// Removed at the end.
    files: Vec<PathBuf>,
}

impl Listeners {
    fn open(config: &Config) -> Result<Self, RunError> {
        let shards = config.cores.shards.len();
        let mut listeners = Self { per_shard: (0..shards).map(|_| Vec::new()).collect(), files: Vec::new() };
        for listen in &config.listen {
            listeners.add(listen, config)?;
        }
        Ok(listeners)
    }

    fn add(&mut self, listen: &Listen, config: &Config) -> Result<(), RunError> {
        let backlog = config.tcp.backlog;
        match listen {
            Listen::Tcp(address) => {
                let failed = |error| RunError(format!("cannot listen on {address}: {error}"));
                for shard in &mut self.per_shard {
                    let listener = ring::tcp_listener(*address, backlog).map_err(failed)?;
                    ring::set_tcp_options(listener.as_fd(), &super::tcp_options(config)).map_err(failed)?;
                    shard.push(listener);
                }
            }
            Listen::Unix(folder, port) => {
                let path = folder.join(format!(".s.PGSQL.{port}"));
                let failed = |error: io::Error| RunError(format!("cannot listen on {}: {error}", path.display()));
                let listener = ring::unix_listener(&path, SOCKET_FILE_MODE, backlog).map_err(failed)?;
                for shard in &mut self.per_shard {
                    shard.push(listener.try_clone().map_err(failed)?);
                }
                self.files.push(path);
            }
        }
        Ok(())
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        for file in &self.files {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(file);
        }
    }
}

fn start_shards(common: &Common, listeners: &mut Listeners) -> Result<Vec<ShardThread>, RunError> {
    let count = common.config.cores.shards.len();
    let mut shards = Vec::with_capacity(count);
    for (index, settings) in common.config.cores.shards.iter().enumerate() {
        let own = std::mem::take(&mut listeners.per_shard[index]);
        match start_shard(common, own, index, settings) {
            Ok(shard) => shards.push(shard),
            Err(error) => {
                tell(&shards, Mail::Stop);
                return Err(error);
            }
        }
    }
    Ok(shards)
}

fn start_shard(
    common: &Common,
    listeners: Vec<OwnedFd>,
    index: usize,
    settings: &config::Shard,
) -> Result<ShardThread, RunError> {
    let failed = |error: &dyn fmt::Display| RunError(format!("shard {index} on CPU {}: {error}", settings.cpu));
    let (mail, mailbox) = bounded(MAIL_MAX);
    let (ready, doorbell) = bounded(1);
    let parts = Parts {
        config: common.config.clone(),
        id: ShardId(index as u16),
        shards: common.config.cores.shards.len(),
        listeners,
        mail: mailbox,
        clients: common.clients.clone(),
        logger: common.logger.clone(),
        resolver: common.resolver.clone(),
        helpers: common.helpers.clone(),
        seed: u64::from(super::random_secret()) << 32 | u64::from(super::random_secret()),
    };
    let ring_settings = RingSettings {
        sq_entries: settings.sq_entries,
        cq_entries: settings.cq_entries,
        recv_buffers: settings.recv_buffers,
        recv_buffer_bytes: settings.recv_buffer_bytes,
        busy_poll: settings.busy_poll,
    };
    let (cpu, ended) = (settings.cpu, common.ended.clone());
    let name = format!("shard-{index}");
    let thread = std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            let outcome = ring::run_shard(Some(cpu), move || shard_main(parts, ring_settings, ready));
            let outcome = outcome.map_err(|error| error.to_string()).and_then(|inner| inner);
            let _ = ended.send(outcome.map_err(|error| RunError(format!("shard {index} on CPU {cpu}: {error}"))));
        })
        .map_err(|error| failed(&error))?;
    match doorbell.recv() {
        Ok(doorbell) => Ok(ShardThread { thread, mail, doorbell }),
        // It ended before it was ready; why is in its outcome.
        Err(_) => Err(RunError(format!("shard {index} on CPU {cpu} did not start"))),
    }
}

async fn shard_main(parts: Parts, settings: RingSettings, ready: Sender<Doorbell>) -> Result<(), String> {
    let ring = Ring::new(&settings).map_err(|error| error.to_string())?;
    let doorbell = ring.doorbell();
    // The panic hook has reported it.
    let tasks = Tasks::new(drop);
    let engine = Engine::new(parts, ring, tasks);
    let _ = ready.send(doorbell);
    engine.drive().await.map_err(|error| format!("the ring failed: {error}"))
}

/// Waits for signals and for the shards' end.
fn watch(
    common: &Common,
    shards: &[ShardThread],
    signals: &Signals,
    endings: &Receiver<Result<(), RunError>>,
) -> Result<(), RunError> {
    let reports = common.config.stats_period.map_or_else(never, tick);
    let mut shutdown_deadline = never();
    let mut draining = false;
    let mut running = shards.len();
    let mut outcome = Ok(());
    while running > 0 {
        select! {
            recv(signals.receiver()) -> signal => match signal {
                Ok(Signal::Hangup) => {
                    common.logger.write(LogLevel::Warn, "SIGHUP: this version does not reload; restart instead".into());
                }
                Ok(Signal::Terminate) if !draining => {
                    draining = true;
                    common.logger.write(LogLevel::Info, "SIGTERM: finishing transactions".into());
                    shutdown_deadline = common.config.timeouts.shutdown.map_or_else(never, crossbeam_channel::after);
                    tell(shards, Mail::Drain);
                }
                Ok(Signal::Terminate | Signal::Interrupt) | Err(_) => {
                    common.logger.write(LogLevel::Info, "stopping at once".into());
                    tell(shards, Mail::Stop);
                }
            },
            recv(shutdown_deadline) -> _ => {
                common.logger.write(LogLevel::Warn, "shutdown_timeout: stopping at once".into());
                tell(shards, Mail::Stop);
            },
            recv(reports) -> _ => tell(shards, Mail::Report),
            recv(endings) -> ending => {
                running -= 1;
                if let Ok(Err(error)) = ending {
                    common.logger.write(LogLevel::Error, error.to_string());
                    tell(shards, Mail::Stop);
                    outcome = Err(error);
                }
            },
        }
    }
    outcome
}

fn tell(shards: &[ShardThread], mail: Mail) {
    for shard in shards {
        // A full mailbox has reports in it that nobody will miss; a shard that is gone needs no mail.
        let _ = shard.mail.send_timeout(mail, MAIL_PATIENCE);
        shard.doorbell.ring();
    }
}

fn announce(common: &Common, shards: &[ShardThread]) {
    let listen: Vec<String> = common.config.listen.iter().map(ToString::to_string).collect();
    let text = format!(
        "pgpinion {} is ready: {} shards, listening on {}",
        env!("CARGO_PKG_VERSION"),
        shards.len(),
        listen.join(", ")
    );
    common.logger.write(LogLevel::Info, text);
}

/// Raises the limit on descriptors and says so when it does not suffice.
fn check_descriptors(config: &Config, logger: &Logger) {
    let needed = config.descriptors_needed() as u64;
    match crate::control::raise_descriptor_limit() {
        Ok((soft, _)) if soft < needed => logger.write(
            LogLevel::Warn,
            format!(
                "max_client_conn and the endpoints' max_connections need {needed} descriptors, and the limit is {soft}: \
                 raise LimitNOFILE (systemd) or nofile (limits.conf)"
            ),
        ),
        Ok(_) => {}
        Err(error) => logger.write(LogLevel::Warn, format!("cannot raise the limit on descriptors: {error}")),
    }
}

/// Panics go to the log with their place. One in a room whose invariants all connections rest on ends the process: its
/// account of who holds what cannot be trusted any more, and the service manager starts a new one.
fn report_panics(logger: Logger) {
    std::panic::set_hook(Box::new(move |panic| {
        let backtrace = std::backtrace::Backtrace::force_capture();
        logger.write(LogLevel::Error, format!("panic: {panic}\n{backtrace}"));
        let place = panic.location().map(|location| location.file()).unwrap_or_default();
        if ACCOUNTS.iter().any(|room| place.contains(room)) {
            logger.write(LogLevel::Error, "an account of connections is wrong: ending the process".into());
            logger.flush();
            std::process::abort();
        }
    }));
}

/// Rooms whose assertions guard what all connections share.
const ACCOUNTS: [&str; 4] = ["src/ledger", "src/pool", "src/ring", "src/slab"];

/// Mail for a shard that has not been read: a few reports at most, one word to drain, one to stop.
const MAIL_MAX: usize = 16;
const MAIL_PATIENCE: Duration = Duration::from_millis(100);

/// Everybody may connect; who may log in is another question. As PostgreSQL and PgBouncer have it.
const SOCKET_FILE_MODE: u32 = 0o777;
