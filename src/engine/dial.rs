//! What is strictly sequential, as tasks: opening a connection, cancelling a query, waiting for a computation.

use super::{Engine, NOBODY};
use crate::config::{Host, LogLevel};
use crate::ids::SocketId;
use crate::limits::CANCEL_MAX;
use crate::ring::{self, CloseMode, Outgoing, SocketAddress, clock};
use crate::server::ScramWork;
use crate::shard::{DialError, Party, Server};
use crate::slab::Key;
use crate::time::Instant;
use crate::wire::startup;
use bytes::Bytes;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

impl Engine {
    /// Opens a connection to an endpoint, trying its hosts and their addresses in order until one answers or
    /// `server_connect_timeout` is over for all of them together.
    pub(super) fn spawn_dial(self: &Rc<Self>, server: Key<Server>, endpoint: usize) {
        let dial = Dial { engine: self.clone(), server };
        self.tasks.spawn(async move {
            let owner = Party::Server(server).to_owner();
            let outcome = dial.engine.dial(endpoint).await.map(|fd| dial.engine.ring.adopt(fd, owner));
            dial.ends(outcome);
        });
    }

    async fn dial(&self, endpoint: usize) -> Result<OwnedFd, DialError> {
        let config = self.config.borrow().clone();
        let deadline = clock::now() + config.timeouts.server_connect;
        let settings = &config.endpoints[endpoint];
        let mut failures = Vec::new();
        for host in &settings.hosts {
            let addresses = match self.resolve(host, settings.port).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    failures.push(format!("cannot resolve {}: {error}", show(host, settings.port)));
                    continue;
                }
            };
            for address in addresses {
                match self.connect(&address, deadline).await {
                    Ok(fd) => return Ok(fd),
                    Err(error) => failures.push(format!("cannot connect to {address}: {error}")),
                }
            }
        }
        Err(DialError(failures.join("; ")))
    }

    async fn connect(&self, address: &SocketAddress, deadline: Instant) -> io::Result<OwnedFd> {
        let fd = ring::stream_socket(address)?;
        if let SocketAddress::Inet(peer) = address {
            self.set_options(fd.as_fd());
            self.set_loopback_congestion(fd.as_fd(), peer.ip());
        }
        match self.ring.connect(fd, address, deadline).await {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                let seconds = self.config.borrow().timeouts.server_connect.as_secs_f64();
                Err(io::Error::new(
                    error.kind(),
                    format!("no answer within server_connect_timeout ({seconds} s)"),
                ))
            }
            outcome => outcome,
        }
    }

    async fn resolve(&self, host: &Host, port: u16) -> io::Result<Vec<SocketAddress>> {
        match host {
            Host::Address(address) => Ok(vec![SocketAddress::Inet((*address, port).into())]),
            Host::Socket(folder) => {
                let path = folder.join(format!(".s.PGSQL.{port}"));
                let address = match path.to_str().and_then(|path| path.strip_prefix('@')) {
                    Some(name) => SocketAddress::Abstract(name.as_bytes().to_vec()),
                    None => SocketAddress::Unix(path),
                };
                Ok(vec![address])
            }
            Host::Name(name) => {
                let (promise, answer) = self.ring.remote();
                self.resolver.resolve(name, port, move |outcome| promise.fulfil(outcome));
                let gone = |_| io::Error::other("the resolver ended");
                let found = answer.await.map_err(gone)??;
                Ok(found.into_iter().map(SocketAddress::Inet).collect())
            }
        }
    }

    /// Asks PostgreSQL to cancel what a server is at, and tells the shard when that is over: when PostgreSQL has closed the
    /// connection of the request, or did not get it.
    pub(super) fn spawn_cancel(
        self: &Rc<Self>,
        server: Key<Server>,
        socket: SocketId,
        (process, key): (u32, Bytes),
    ) {
        let address = self.ring.with_fd(socket, ring::peer_address);
        let engine = self.clone();
        self.tasks.spawn(async move {
            // Nobody else gets the server meanwhile.
            let deadline = clock::now() + engine.config.borrow().timeouts.server_connect.min(CANCEL_MAX);
            let connected = match address {
                Some(Ok(address)) => {
                    let failed = |error| format!("cannot cancel backend {process} at {address}: {error}");
                    engine.connect(&address, deadline).await.map_err(failed)
                }
                Some(Err(error)) => Err(format!("cannot cancel backend {process}: {error}")),
                None => Err(format!("cannot cancel backend {process}: its connection is closed")),
            };
            match connected {
                Ok(fd) => {
                    let socket = engine.ring.adopt(fd, NOBODY);
                    engine.cancels.borrow_mut().insert(socket, (server, clock::now() + CANCEL_MAX));
                    engine.ring.send(socket, Outgoing::Own(startup::cancel_request(process, &key)));
                    engine.ring.close(socket, CloseMode::AfterSending(CANCEL_MAX));
                }
                Err(error) => {
                    engine.write(LogLevel::Warn, error);
                    engine.cancel_ended(server, true);
                }
            }
        });
    }

    /// A socket that belongs to no entry of the shard is closed: that of a cancel request, if it is listed.
    pub(super) fn cancel_closed(self: &Rc<Self>, socket: SocketId) {
        let cancel = self.cancels.borrow_mut().remove(&socket);
        if let Some((server, deadline)) = cancel {
            self.cancel_ended(server, clock::now() < deadline);
        }
    }

    fn cancel_ended(self: &Rc<Self>, server: Key<Server>, ended: bool) {
        self.with_shard(None, |shard| {
            shard.set_time(clock::now());
            shard.cancelled(server, ended);
        });
    }

    /// Has a helper thread compute a step of a login.
    pub(super) fn spawn_computation(self: &Rc<Self>, server: Key<Server>, work: ScramWork) {
        let engine = self.clone();
        let (promise, result) = self.ring.remote();
        let submitted = self.helpers.submit(Box::new(move || promise.fulfil(work.run())));
        if submitted.is_err() {
            // The queue is full: the login times out and is tried again.
            return self.write(LogLevel::Warn, "too many logins at once for the helper threads".into());
        }
        self.tasks.spawn(async move {
            if let Ok(result) = result.await {
                engine.guarded(Party::Server(server).to_owner(), None, |shard| {
                    shard.set_time(clock::now());
                    shard.scram_done(server, result);
                });
            }
        });
    }
}

/// A dial under way. Even a panic on its way does not leave the shard waiting for it, with a permit in its hands.
struct Dial {
    engine: Rc<Engine>,
    server: Key<Server>,
}

impl Dial {
    fn ends(self, outcome: Result<SocketId, DialError>) {
        self.tell(outcome);
    }

    fn tell(&self, outcome: Result<SocketId, DialError>) {
        self.engine.guarded(Party::Server(self.server).to_owner(), None, |shard| {
            shard.set_time(clock::now());
            shard.dialed(self.server, outcome);
        });
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell(Err(DialError("internal error".into())));
        }
    }
}

fn show(host: &Host, port: u16) -> String {
    match host {
        Host::Name(name) => format!("{name}:{port}"),
        Host::Address(address) => format!("{address}:{port}"),
        Host::Socket(folder) => format!("{}", folder.display()),
    }
}
