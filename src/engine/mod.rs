//! A pinned core: executor, ring and shard meet.
//!
//! The driver is a loop on the shard's thread: take completions from the ring, hand them to the shard, do what it wants
//! done, poll tasks if one may be runnable, and sleep in the ring until something happens. The data path is dispatch:
//! no task and no waker between a received byte and its send. Tasks are for what is strictly sequential: dialling a
//! server, cancelling a query, waiting for a computation.

mod dial;
pub mod panics;
mod post;
mod process;
mod reload;
#[cfg(test)]
mod tests;

pub use process::{RunError, run};
pub use reload::Source;

use crate::cancel_key::Secret;
use crate::config::{Config, LogLevel};
use crate::control::crypto::Helpers;
use crate::control::log::Logger;
use crate::control::resolve::Resolver;
use crate::ids::{Owner, ShardId, SocketId};
use crate::mail::{Letter, STEERED_MAX};
use crate::metrics::{CoreReport, Stats};
use crate::ring::{
    self, CloseMode, Event, Keepalive, Outgoing, Received, Ring, SocketAddress, Tasks, TcpOptions, clock,
};
use crate::shard::{Effect, Party, Peer, Piece, Server, Shard};
use crate::slab::Key;
use crate::time::Instant;
use crossbeam_channel::{Receiver, Sender};
use hashbrown::HashMap;
use post::Post;
use std::cell::{Cell, RefCell};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What reaches a shard from other threads.
#[derive(Clone, Debug)]
pub enum Mail {
    /// Finish transactions, and send everybody away.
    Drain,
    /// All shards have: go. Whom a letter still brings is sent away first.
    End,
    /// End now.
    Stop,
    /// Write the counts of the last period to the log.
    Report,
    /// Go on with this configuration, and say so.
    Configure {
        /// The same for all shards.
        config: Arc<Config>,
        /// Which of the published ones it is.
        generation: u64,
    },
    /// The reload that a client of the console asked for came to its end.
    Reloaded {
        /// Its key, as a number.
        client: u64,
        /// It is applied on all shards.
        good: bool,
    },
}

/// What a shard tells the main thread.
#[derive(Debug)]
pub(crate) enum News {
    /// It goes on with the configuration of this generation.
    Configured(u64),
    /// It was drained. Told once.
    Drained,
    /// A client of its console wants a reload.
    Reload { from: ShardId, client: u64 },
}

/// A letter on its way.
pub(crate) struct Parcel {
    pub from: ShardId,
    pub letter: Letter<OwnedFd>,
}

/// What a shard is made of. All of it may be shared or sent.
pub(crate) struct Parts {
    pub config: Arc<Config>,
    pub id: ShardId,
    pub shards: usize,
    pub listeners: Vec<OwnedFd>,
    /// Words of the main thread.
    pub mail: Receiver<Mail>,
    pub news: Sender<News>,
    /// Letters of the other shards.
    pub post: Post<Parcel>,
    /// Clients of the whole process: counted at accept and close only.
    pub clients: Arc<AtomicUsize>,
    pub logger: Logger,
    pub resolver: Resolver,
    pub helpers: Helpers,
    pub seed: u64,
    /// What cancel keys are derived of, on all shards.
    pub secret: Secret,
}

/// One shard at work.
pub(crate) struct Engine {
    config: RefCell<Arc<Config>>,
    id: ShardId,
    ring: Ring,
    tasks: Tasks,
    shard: RefCell<Shard>,
    effects: RefCell<Vec<Effect>>,
    mail: Receiver<Mail>,
    news: Sender<News>,
    told_drained: Cell<bool>,
    post: Post<Parcel>,
    /// Of the connection that was just taken out of the ring.
    descriptor: Cell<Option<OwnedFd>>,
    clients: Arc<AtomicUsize>,
    logger: RefCell<Logger>,
    resolver: Resolver,
    helpers: Helpers,
    listeners: RefCell<Vec<crate::ring::ListenerId>>,
    /// Connections of cancel requests, with the server that is meant and when PostgreSQL has had time enough.
    cancels: RefCell<HashMap<SocketId, (Key<Server>, Instant)>>,
    stopping: Cell<bool>,
    may_end: Cell<bool>,
    reported: Cell<Stats>,
    panics: Cell<u64>,
    /// The CPU it is pinned to.
    cpu: usize,
    doorbells: Cell<u64>,
}

impl Engine {
    pub(crate) fn new(parts: Parts, ring: Ring, tasks: Tasks) -> Rc<Self> {
        let cpu = parts.config.cores.shards.get(usize::from(parts.id.0)).map_or(0, |core| core.cpu);
        let shard = Shard::new(parts.config.clone(), parts.id, parts.shards, parts.seed, parts.secret);
        let listeners = parts.listeners.into_iter().map(|listener| ring.listen(listener, 0)).collect();
        Rc::new(Self {
            config: RefCell::new(parts.config),
            id: parts.id,
            ring,
            tasks,
            shard: RefCell::new(shard),
            effects: RefCell::new(Vec::with_capacity(64)),
            mail: parts.mail,
            news: parts.news,
            told_drained: Cell::new(false),
            post: parts.post,
            descriptor: Cell::new(None),
            clients: parts.clients,
            logger: RefCell::new(parts.logger),
            resolver: parts.resolver,
            helpers: parts.helpers,
            listeners: RefCell::new(listeners),
            cancels: RefCell::new(HashMap::new()),
            stopping: Cell::new(false),
            may_end: Cell::new(false),
            reported: Cell::new(Stats::default()),
            panics: Cell::new(0),
            cpu,
            doorbells: Cell::new(0),
        })
    }

    /// The driver. Returns when the shard was told to end and has.
    ///
    /// # Errors
    /// The ring failed: nothing can go on.
    pub(crate) async fn drive(self: &Rc<Self>) -> io::Result<()> {
        let _ends = panics::EndsTheProcess;
        while !self.stopping.get() {
            let slept = Cell::new(true);
            let about_to_sleep = || {
                slept.set(true);
                self.post.ring_bells();
                self.shard.borrow().next_deadline()
            };
            self.ring.turn_until(about_to_sleep, &mut |event| {
                if slept.replace(false) {
                    self.shard.borrow_mut().set_time(clock::now());
                }
                self.dispatch(event);
            })?;
            self.tick();
            if self.tasks.may_be_runnable() {
                self.tasks.settle().await;
            }
            if self.is_drained() {
                if self.may_end.get() {
                    break;
                }
                if !self.told_drained.replace(true) {
                    self.tell(News::Drained);
                }
            }
        }
        self.post.ring_bells();
        Ok(())
    }

    fn is_drained(&self) -> bool {
        self.listeners.borrow().is_empty() && self.shard.borrow().is_empty()
    }

    /// Acts on deadlines that have come.
    fn tick(self: &Rc<Self>) {
        let now = clock::now();
        if self.shard.borrow().next_deadline() > now {
            return;
        }
        self.shard.borrow_mut().set_time(now);
        loop {
            let Some(due) = self.shard.borrow_mut().due() else { return };
            match due.owner() {
                Some(owner) => self.guarded(owner, None, |shard| shard.ring(due)),
                None => self.with_shard(None, |shard| shard.ring(due)),
            }
        }
    }

    fn dispatch(self: &Rc<Self>, event: Event) {
        match event {
            Event::Received { owner, buffer, .. } => {
                if let Some(next) = self.ring.upcoming() {
                    ring::prefetch(self.shard.borrow().memory_of(next));
                }
                self.guarded(owner, Some(&buffer), |shard| shard.received(owner, &buffer));
            }
            Event::Sent { owner, bytes, .. } => self.guarded(owner, None, |shard| shard.sent(owner, bytes)),
            Event::Unsent { owner, bytes, .. } => {
                self.guarded(owner, None, |shard| shard.unsent(owner, bytes))
            }
            Event::Ended { owner, error, .. } => self.guarded(owner, None, |shard| shard.ended(owner, error)),
            Event::Closed { socket, owner: NOBODY } => self.cancel_closed(socket),
            Event::Closed { owner, .. } => {
                if matches!(Party::from_owner(owner), Party::Client(_)) {
                    self.clients.fetch_sub(1, Ordering::Relaxed);
                }
                self.guarded(owner, None, |shard| shard.closed(owner));
            }
            Event::Accepted { fd, .. } => self.accepted(fd),
            Event::AcceptFailed { error, .. } => {
                self.write(LogLevel::Error, format!("shard {}: cannot accept: {error}", self.id));
            }
            Event::Doorbell => {
                self.doorbells.set(self.doorbells.get() + 1);
                self.read_mail();
            }
            Event::Taken { owner, fd, .. } => self.taken(owner, fd),
        }
    }

    /// Lets the shard handle an event of `owner`, whom a panic condemns.
    fn guarded(self: &Rc<Self>, owner: Owner, buffer: Option<&Received>, handle: impl FnOnce(&mut Shard)) {
        if !panics::guarded(&mut self.shard.borrow_mut(), owner, handle) {
            self.panics.set(self.panics.get() + 1);
        }
        self.apply(buffer);
    }

    pub(crate) fn with_shard(self: &Rc<Self>, buffer: Option<&Received>, handle: impl FnOnce(&mut Shard)) {
        handle(&mut self.shard.borrow_mut());
        self.apply(buffer);
    }

    /// The same with the time of now.
    fn with_shard_now(self: &Rc<Self>, handle: impl FnOnce(&mut Shard)) {
        self.with_shard(None, |shard| {
            shard.set_time(clock::now());
            handle(shard);
        });
    }

    /// Does what the shard wants done.
    fn apply(self: &Rc<Self>, buffer: Option<&Received>) {
        let mut effects = self.effects.take();
        self.shard.borrow_mut().take_effects(&mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Send { socket, piece: Piece::Own(bytes) } => {
                    self.ring.send(socket, Outgoing::Own(bytes))
                }
                Effect::Send { socket, piece: Piece::Received(range) } => {
                    let Some(buffer) = buffer else { unreachable!("ranges are of the event being handled") };
                    self.ring
                        .send(socket, Outgoing::Buffer(buffer.range(range.start as u32..range.end as u32)));
                }
                Effect::Receive { socket, on: true } => self.ring.start_receiving(socket),
                Effect::Receive { socket, on: false } => self.ring.stop_receiving(socket),
                Effect::LowWater { socket, bytes } => self.ring.set_low_water(socket, bytes),
                Effect::Close { socket, linger: None } => self.ring.close(socket, CloseMode::Now),
                Effect::Close { socket, linger: Some(linger) } => {
                    self.ring.close(socket, CloseMode::AfterSending(linger));
                }
                Effect::Take { socket } => self.ring.take(socket),
                Effect::Mail { to, letter } => self.send_letter(to, letter),
                Effect::Dial { server, endpoint } => self.spawn_dial(server, endpoint),
                Effect::Cancel { server, socket, key } => self.spawn_cancel(server, socket, key),
                Effect::Compute { server, work } => self.spawn_computation(server, work),
                Effect::Observe => {
                    let core = self.core_report();
                    self.with_shard(None, |shard| shard.observed(core));
                }
                Effect::Reload { client } => {
                    self.tell(News::Reload { from: self.id, client: client.to_bits() });
                }
                Effect::Log(line) => self.logger.borrow().line(line),
            }
        }
        self.effects.replace(effects);
    }

    fn accepted(self: &Rc<Self>, fd: OwnedFd) {
        let peer = match ring::peer_address(fd.as_fd()) {
            Ok(SocketAddress::Inet(address)) => {
                // The other options are the listener's.
                self.set_loopback_congestion(fd.as_fd(), address.ip());
                Peer::Tcp(address)
            }
            Ok(_) => Peer::Unix,
            // It left before we looked.
            Err(_) => return,
        };
        let clients = self.clients.fetch_add(1, Ordering::Relaxed) + 1;
        let clients_max = self.config.borrow().max_client_conn;
        if clients > clients_max + SURPLUS_CLIENTS_MAX {
            self.clients.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let surplus = clients > clients_max;
        let socket = self.ring.adopt(fd, NOBODY);
        let owner = {
            let mut shard = self.shard.borrow_mut();
            shard.accepted(socket, peer, surplus)
        };
        self.ring.set_owner(socket, owner);
        self.apply(None);
    }

    /// Sets what the configuration says on a TCP socket.
    pub(crate) fn set_options(&self, fd: BorrowedFd<'_>) {
        if let Err(error) = ring::set_tcp_options(fd, &tcp_options(&self.config.borrow())) {
            self.write(LogLevel::Warn, format!("shard {}: cannot set TCP options: {error}", self.id));
        }
    }

    /// See [`ring::set_loopback_congestion`]. Without it a connection works as well, at a higher cost.
    fn set_loopback_congestion(&self, fd: BorrowedFd<'_>, peer: IpAddr) {
        if let Err(error) = ring::set_loopback_congestion(fd, peer) {
            self.write(
                LogLevel::Debug,
                format!("shard {}: cannot set the congestion control: {error}", self.id),
            );
        }
    }

    // ---- mail ----

    /// A connection is out of the ring: it goes, if the shard still wants that.
    fn taken(self: &Rc<Self>, owner: Owner, fd: OwnedFd) {
        let has_room = |to| self.post.has_fewer_than(STEERED_MAX, to);
        let leaves = self.shard.borrow_mut().taken(owner, has_room);
        if leaves {
            self.descriptor.set(Some(fd));
            self.apply(None);
        } else {
            let socket = self.ring.adopt(fd, owner);
            self.guarded(owner, None, |shard| shard.stays(owner, socket));
        }
    }

    fn send_letter(self: &Rc<Self>, to: ShardId, letter: Letter<()>) {
        if matches!(letter, Letter::Parameters(_)) && !self.post.has_fewer_than(STEERED_MAX, to) {
            return;
        }
        let letter = letter.map(|()| match self.descriptor.take() {
            Some(fd) => fd,
            None => unreachable!("a connection leaves when it was taken out of the ring"),
        });
        self.post.send(to, Parcel { from: self.id, letter });
    }

    fn read_letter(self: &Rc<Self>, Parcel { from, letter }: Parcel) {
        let letter = letter.map(|fd| self.ring.adopt(fd, NOBODY));
        let socket: Option<SocketId> = letter.connection().copied();
        let owner = self.shard.borrow_mut().mail(from, letter);
        if let (Some(socket), Some(owner)) = (socket, owner) {
            self.ring.set_owner(socket, owner);
        }
        self.apply(None);
    }

    fn read_mail(self: &Rc<Self>) {
        for parcel in self.post.read() {
            self.read_letter(parcel);
        }
        while let Ok(mail) = self.mail.try_recv() {
            match mail {
                Mail::Drain => self.drain(),
                Mail::End => self.may_end.set(true),
                Mail::Stop => self.stopping.set(true),
                Mail::Report => self.report(),
                Mail::Configure { config, generation } => self.configure(config, generation),
                Mail::Reloaded { client, good } => {
                    self.with_shard_now(|shard| shard.reloaded(Key::from_bits(client), good));
                }
            }
        }
    }

    fn configure(self: &Rc<Self>, config: Arc<Config>, generation: u64) {
        let logger = self.logger.borrow().with(&config.log);
        self.logger.replace(logger);
        self.config.replace(config.clone());
        self.with_shard_now(|shard| shard.configure(config));
        self.tell(News::Configured(generation));
    }

    /// Nobody listens only when the process ends.
    fn tell(&self, news: News) {
        let _ = self.news.send(news);
    }

    fn drain(self: &Rc<Self>) {
        for listener in self.listeners.take() {
            self.ring.close_listener(listener);
        }
        self.with_shard(None, |shard| shard.drain());
    }

    /// One line with the counts since the last, and some for the busiest routes.
    fn report(self: &Rc<Self>) {
        self.with_shard_now(Shard::end_period);
        let shard = self.shard.borrow();
        let (now, census, core) = (shard.stats(), shard.census(), self.core_report());
        let last = self.reported.replace(now);
        let (transactions, queries) = (now.transactions - last.transactions, now.queries - last.queries);
        let wait = (now.wait - last.wait).as_micros() / u128::from(transactions.max(1));
        self.write(
            LogLevel::Info,
            format!(
                "stats: shard {}: {transactions} xacts, {queries} queries, {} logins, in {} B, out {} B, wait {wait} us a \
                 xact; clients {} ({} waiting), servers {} ({} idle), {} opened; handed over {} out {} in, steered {} out {} in; \
                 since start: {} turns, {} doorbells, letters {} out {} in; buffers {} of {} free, {} panics",
                self.id,
                now.logins - last.logins,
                now.received - last.received,
                now.sent - last.sent,
                census.clients,
                census.waiting,
                census.servers,
                census.idle,
                now.opened - last.opened,
                now.handed_out - last.handed_out,
                now.handed_in - last.handed_in,
                now.steered_out - last.steered_out,
                now.steered_in - last.steered_in,
                core.turns,
                core.doorbells,
                core.letters_out,
                core.letters_in,
                core.buffers_free,
                core.buffers,
                core.panics,
            ),
        );
    }

    fn core_report(&self) -> CoreReport {
        let (ring, post) = (self.ring.stats(), self.post.stats());
        CoreReport {
            cpu: self.cpu,
            turns: ring.enters,
            doorbells: self.doorbells.get(),
            letters_in: post.received,
            letters_out: post.sent,
            panics: self.panics.get(),
            buffers_free: ring.buffers_free,
            buffers: ring.buffers,
        }
    }

    // ---- log ----

    pub(crate) fn write(&self, level: LogLevel, text: String) {
        self.logger.borrow().log(level, &text);
    }
}

/// TCP options as configured. The connections of a listener inherit its options.
pub(crate) fn tcp_options(config: &Config) -> TcpOptions {
    let tcp = &config.tcp;
    let keepalive = Keepalive { idle: Some(tcp.idle), interval: Some(tcp.interval), count: Some(tcp.count) };
    TcpOptions {
        nodelay: true,
        keepalive: tcp.keepalive.then_some(keepalive),
        user_timeout: tcp.user_timeout,
        socket_buffer: tcp.socket_buffer,
    }
}

/// A socket that belongs to no entry of the shard: its events find nothing.
pub(crate) const NOBODY: Owner = Owner(u64::MAX);

/// Clients above `max_client_conn` that are let in far enough to be told so.
const SURPLUS_CLIENTS_MAX: usize = 100;
