//! The process: threads, listeners, signals, the end.

use super::post::Post;
use super::reload::{Reloads, Source};
use super::{Engine, Mail, News, Parcel, Parts};
use crate::cancel_key::Secret;
use crate::config::{self, Config, Listen};
use crate::control::affinity::Housekeeping;
use crate::control::crypto::Helpers;
use crate::control::limits::raise_descriptors;
use crate::control::log::Logger;
use crate::control::resolve::Resolver;
use crate::control::signals::{self, Signal};
use crate::ids::ShardId;
use crate::log_line::Line;
use crate::mail::letters_max;
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
pub(super) struct ShardThread {
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
    secret: Secret,
    news: Sender<News>,
    ended: Sender<Result<(), RunError>>,
}

/// Serves until told to end: SIGTERM lets transactions finish, a second one or SIGINT does not. SIGHUP asks `source` for
/// a new configuration.
///
/// # Errors
/// What was missing at the start (an address in use, a limit, a kernel feature), or a shard that failed.
pub fn run(config: Config, source: Source<'_>) -> Result<(), RunError> {
    let failed = |what: &'static str| move |error: io::Error| RunError(format!("cannot {what}: {error}"));
    let blocked = signals::block().map_err(failed("block signals"))?;
    let housekeeping = Housekeeping::new(&config.cores.housekeeping);
    let (logger, writer) = Logger::start(&config.log, &housekeeping).map_err(failed("start the log"))?;
    let (deliver, received) = unbounded();
    let listening = blocked.listen(&housekeeping, move |signal| {
        // Nobody receives only when the process ends anyway.
        let _ = deliver.send(signal);
    });
    listening.map_err(failed("wait for signals"))?;
    let outcome = serve(config, source, &housekeeping, &received, &logger);
    writer.finish(LOG_PATIENCE);
    outcome
}

fn serve(
    config: Config,
    source: Source<'_>,
    housekeeping: &Housekeeping,
    signals: &Receiver<Signal>,
    logger: &Logger,
) -> Result<(), RunError> {
    let failed = |error: io::Error| RunError(format!("cannot start a helper thread: {error}"));
    check_descriptors(&config, logger);
    super::panics::report(logger.clone());
    let (ended, endings) = unbounded();
    let (tell_news, news) = unbounded();
    let common = Common {
        resolver: Resolver::start(config.dns, housekeeping).map_err(failed)?,
        helpers: Helpers::start(config.cores.shards.len(), housekeeping).map_err(failed)?,
        config: Arc::new(config),
        clients: Arc::new(AtomicUsize::new(0)),
        logger: logger.clone(),
        secret: Secret::new(ring::random_bytes()),
        news: tell_news,
        ended,
    };
    let mut listeners = Listeners::open(&common.config)?;
    let shards = start_shards(&common, &mut listeners, &endings)?;
    announce(&common, &shards);
    let reloads = Reloads::new(source, common.config.clone(), common.logger.clone());
    let outcome = watch(reloads, &shards, signals, &news, &endings);
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
            Listen::Unix(..) => {
                let path = PathBuf::from(show_listen(listen));
                let failed =
                    |error: io::Error| RunError(format!("cannot listen on {}: {error}", path.display()));
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

fn start_shards(
    common: &Common,
    listeners: &mut Listeners,
    endings: &Receiver<Result<(), RunError>>,
) -> Result<Vec<ShardThread>, RunError> {
    let count = common.config.cores.shards.len();
    // It matters how many permits there are, not of which endpoint.
    let others = std::iter::repeat_n(0, common.config.endpoints.len() - 1);
    let limits = std::iter::once(permits_max(&common.config)).chain(others);
    let posts = Post::connect(count, letters_max(limits, count))
        .map_err(|error| RunError(format!("cannot make the shards' doorbells: {error}")))?;
    let mut shards = Vec::with_capacity(count);
    for ((index, settings), post) in common.config.cores.shards.iter().enumerate().zip(posts) {
        let own = std::mem::take(&mut listeners.per_shard[index]);
        match start_shard(common, own, post, index, settings) {
            Ok(shard) => shards.push(shard),
            Err(error) => {
                tell(&shards, Mail::Stop);
                // Why a shard ended says more than that it did.
                return Err(endings.try_recv().ok().and_then(Result::err).unwrap_or(error));
            }
        }
    }
    Ok(shards)
}

fn start_shard(
    common: &Common,
    listeners: Vec<OwnedFd>,
    post: Post<Parcel>,
    index: usize,
    settings: &config::Shard,
) -> Result<ShardThread, RunError> {
    let failed =
        |error: &dyn fmt::Display| RunError(format!("shard {index} on CPU {}: {error}", settings.cpu));
    let (mail, mailbox) = bounded(MAIL_MAX);
    let (ready, started) = bounded(1);
    let doorbell = post.doorbell();
    let parts = Parts {
        config: common.config.clone(),
        id: ShardId(index as u16),
        shards: common.config.cores.shards.len(),
        listeners,
        mail: mailbox,
        news: common.news.clone(),
        post,
        clients: common.clients.clone(),
        logger: common.logger.clone(),
        resolver: common.resolver.clone(),
        helpers: common.helpers.clone(),
        seed: u64::from_ne_bytes(ring::random_bytes()),
        secret: common.secret,
    };
    let ring_settings = RingSettings {
        sq_entries: settings.sq_entries,
        cq_entries: settings.cq_entries,
        recv_buffers: u16::try_from(settings.recv_buffers).unwrap_or(u16::MAX),
        recv_buffer_bytes: settings.recv_buffer_bytes,
        busy_poll: Duration::from_micros(settings.busy_poll_us.into()),
    };
    let (cpu, ended) = (settings.cpu, common.ended.clone());
    let name = format!("shard-{index}");
    let thread = std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            let outcome = ring::run_shard(Some(cpu), move || shard_main(parts, ring_settings, ready));
            let outcome = outcome.map_err(|error| error.to_string()).and_then(|inner| inner);
            let _ =
                ended.send(outcome.map_err(|error| RunError(format!("shard {index} on CPU {cpu}: {error}"))));
        })
        .map_err(|error| failed(&error))?;
    match started.recv() {
        Ok(()) => Ok(ShardThread { thread, mail, doorbell }),
        Err(_) => {
            // It ended before it was ready. Why is in its outcome, if it did not panic, once the thread is over.
            let _ = thread.join();
            Err(RunError(format!("shard {index} on CPU {cpu} did not start")))
        }
    }
}

async fn shard_main(parts: Parts, settings: RingSettings, ready: Sender<()>) -> Result<(), String> {
    let ring = Ring::with_doorbell(&settings, parts.post.doorbell()).map_err(|error| error.to_string())?;
    // The panic hook has reported it.
    let tasks = Tasks::new(drop);
    let engine = Engine::new(parts, ring, tasks);
    let _ = ready.send(());
    engine.drive().await.map_err(|error| format!("the ring failed: {error}"))
}

/// Waits for signals, for news of the shards, and for their end.
fn watch(
    mut reloads: Reloads<'_>,
    shards: &[ShardThread],
    signals: &Receiver<Signal>,
    news: &Receiver<News>,
    endings: &Receiver<Result<(), RunError>>,
) -> Result<(), RunError> {
    let mut period = reloads.config.stats_period;
    let mut reports = period.map_or_else(never, tick);
    let mut shutdown_deadline = never();
    let mut draining = false;
    let mut drained = 0;
    let mut running = shards.len();
    let mut outcome = Ok(());
    while running > 0 {
        select! {
            recv(signals) -> signal => match signal {
                Ok(Signal::Reload) => {
                    reloads.logger.line(Line::info("SIGHUP: reading the configuration again"));
                    reloads.reload(shards);
                }
                Ok(Signal::Drain) if !draining => {
                    draining = true;
                    reloads.logger.line(Line::info("SIGTERM: finishing transactions"));
                    shutdown_deadline = reloads.config.timeouts.shutdown.map_or_else(never, crossbeam_channel::after);
                    tell(shards, Mail::Drain);
                }
                Ok(Signal::Drain | Signal::Stop) | Err(_) => {
                    reloads.logger.line(Line::info("stopping at once"));
                    tell(shards, Mail::Stop);
                }
            },
            recv(shutdown_deadline) -> _ => {
                reloads.logger.line(Line::warn("shutdown_timeout: stopping at once"));
                tell(shards, Mail::Stop);
            },
            recv(news) -> told => match told {
                Ok(News::Drained) => {
                    drained += 1;
                    // Not before the last: until then one may write to another.
                    if drained == shards.len() {
                        tell(shards, Mail::End);
                    }
                }
                Ok(News::Configured(generation)) => reloads.applied(generation, shards),
                Ok(News::Reload { from, client }) => reloads.reload_for(from, client, shards),
                Err(_) => unreachable!("the main thread can tell itself news"),
            },
            recv(reports) -> _ => tell(shards, Mail::Report),
            recv(endings) -> ending => {
                running -= 1;
                if let Ok(Err(error)) = ending {
                    reloads.logger.line(Line::error(error.to_string()));
                    tell(shards, Mail::Stop);
                    outcome = Err(error);
                }
            },
        }
        if period != reloads.config.stats_period {
            period = reloads.config.stats_period;
            reports = period.map_or_else(never, tick);
        }
    }
    outcome
}

fn tell(shards: &[ShardThread], mail: Mail) {
    for shard in shards {
        // A full mailbox has reports in it that nobody will miss; a shard that is gone needs no mail.
        tell_one(shard, mail.clone());
    }
}

/// Says whether there was room for it.
pub(super) fn tell_one(shard: &ShardThread, mail: Mail) -> bool {
    let taken = shard.mail.send_timeout(mail, MAIL_PATIENCE).is_ok();
    shard.doorbell.ring();
    taken
}

fn announce(common: &Common, shards: &[ShardThread]) {
    let listen: Vec<String> = common.config.listen.iter().map(show_listen).collect();
    let text = format!(
        "pgpinion {} is ready: {} shards, listening on {}",
        env!("CARGO_PKG_VERSION"),
        shards.len(),
        listen.join(", ")
    );
    common.logger.line(Line::info(text));
}

fn show_listen(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(folder, port) => format!("{}/.s.PGSQL.{port}", folder.display()),
    }
}

/// Permits that the shards' inboxes have room for: a reload may raise limits up to here.
pub(super) fn permits_max(config: &Config) -> usize {
    PERMITS_MIN.max(2 * config.permits())
}

/// Raises the limit on descriptors and says so when it does not suffice.
pub(super) fn check_descriptors(config: &Config, logger: &Logger) {
    let needed = config.descriptors_needed() as u64;
    match raise_descriptors() {
        Ok(limit) if limit.soft < needed => logger.line(Line::warn(format!(
            "max_client_conn and the endpoints' max_connections need {needed} descriptors, and the limit is {}: raise \
             LimitNOFILE (systemd) or nofile (limits.conf)",
            limit.soft
        ))),
        Ok(_) => {}
        Err(error) => logger.line(Line::warn(format!("cannot raise the limit on descriptors: {error}"))),
    }
}

/// More connections than most PostgreSQLs have: 128 kB of inbox for each shard.
const PERMITS_MIN: usize = 4096;

/// How long the last lines of the log may take to be written.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Words for a shard that has not read them: a few to report, configurations and ends of reloads, one to drain, one to
/// end, one to stop.
const MAIL_MAX: usize = 16;
const MAIL_PATIENCE: Duration = Duration::from_millis(100);

/// Everybody may connect; who may log in is another question. As PostgreSQL and PgBouncer have it.
const SOCKET_FILE_MODE: u32 = 0o777;
