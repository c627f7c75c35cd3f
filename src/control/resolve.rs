//! Name resolution, off the shards: the system's resolver blocks, for seconds if a name server is down.
//!
//! ```text
//! shards --Request--> owner --name--> lookup threads
//!                     owner <-Answer-
//! ```
//!
//! The owner has the table of names: what is known and until when, and who waits for what is being looked up. A name is
//! looked up once however many ask for it. No lock, and every queue has a bound.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::affinity::Housekeeping;
use crate::config::Dns;

/// Where to ask for names. Cheap to clone; when the last one is dropped, the threads end.
#[derive(Clone, Debug)]
pub struct Resolver {
    requests: Sender<Request>,
}

/// How an answer goes back. It runs on a thread of the resolver and must not wait.
type Reply = Box<dyn FnOnce(io::Result<Vec<SocketAddr>>) + Send>;

/// What a name resolves to, or why not: an `io::Error` that can be given to several.
type Found = Result<Vec<IpAddr>, (io::ErrorKind, String)>;

type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

struct Request {
    name: String,
    waiter: Waiter,
}

struct Waiter {
    port: u16,
    reply: Reply,
}

struct Answer {
    name: String,
    found: Found,
}

impl Resolver {
    /// Starts the threads.
    pub fn start(dns: Dns, housekeeping: &Housekeeping) -> io::Result<Resolver> {
        Self::start_with(Arc::new(system_lookup), dns, housekeeping)
    }

    fn start_with(lookup: Arc<Lookup>, dns: Dns, housekeeping: &Housekeeping) -> io::Result<Resolver> {
        let (requests, asked) = bounded(REQUESTS_WAITING_MAX);
        let (names, to_look_up) = bounded::<String>(NAMES_MAX);
        let (answers, answered) = bounded(NAMES_MAX);
        for _ in 0..LOOKUP_THREADS {
            let (to_look_up, answers, lookup) = (to_look_up.clone(), answers.clone(), lookup.clone());
            housekeeping.spawn("lookup", move || look_up_all(&to_look_up, &answers, &*lookup))?;
        }
        let mut owner = Owner { names: Names::new(dns), asked, to_look_up: names, answered };
        housekeeping.spawn("resolve", move || owner.run())?;
        Ok(Resolver { requests })
    }

    /// Asks for the addresses of a name, in the system's order of preference. `reply` is called once, on another thread;
    /// only if there are too many requests, at once on this one. It must not wait.
    pub fn resolve(
        &self,
        name: &str,
        port: u16,
        reply: impl FnOnce(io::Result<Vec<SocketAddr>>) + Send + 'static,
    ) {
        let waiter = Waiter { port, reply: Box::new(reply) };
        if let Err(refused) = self.requests.try_send(Request { name: name.to_owned(), waiter }) {
            refused.into_inner().waiter.answer(&too_busy());
        }
    }
}

/// The thread that has the table.
struct Owner {
    names: Names,
    asked: Receiver<Request>,
    to_look_up: Sender<String>,
    answered: Receiver<Answer>,
}

impl Owner {
    /// Until nobody can ask any more.
    fn run(&mut self) {
        loop {
            select! {
                recv(self.asked) -> request => match request {
                    Ok(request) => self.handle_request(request),
                    Err(_) => return,
                },
                recv(self.answered) -> answer => match answer {
                    Ok(answer) => self.names.handle_answer(answer, Instant::now()),
                    Err(_) => return,
                },
            }
        }
    }

    fn handle_request(&mut self, request: Request) {
        if let Some(name) = self.names.handle_request(request, Instant::now())
            && let Err(refused) = self.to_look_up.try_send(name)
        {
            let answer = Answer { name: refused.into_inner(), found: too_busy() };
            self.names.handle_answer(answer, Instant::now());
        }
    }
}

/// What is known of names. Time is an argument.
struct Names {
    dns: Dns,
    entries: HashMap<String, Entry>,
}

enum Entry {
    Pending(Vec<Waiter>),
    Known { found: Found, until: Instant },
}

impl Names {
    fn new(dns: Dns) -> Self {
        Self { dns, entries: HashMap::new() }
    }

    /// Answers, or lets it wait for a lookup on the way; else gives back the name to look up.
    fn handle_request(&mut self, request: Request, now: Instant) -> Option<String> {
        let Request { name, waiter } = request;
        match self.entries.get_mut(&name) {
            Some(Entry::Pending(waiters)) if waiters.len() >= WAITERS_PER_NAME_MAX => {
                waiter.answer(&too_busy());
                return None;
            }
            Some(Entry::Pending(waiters)) => {
                waiters.push(waiter);
                return None;
            }
            Some(Entry::Known { found, until }) if now < *until => {
                waiter.answer(found);
                return None;
            }
            _ => {}
        }
        self.make_room(now);
        if self.entries.len() >= NAMES_MAX {
            waiter.answer(&too_busy());
            return None;
        }
        self.entries.insert(name.clone(), Entry::Pending(vec![waiter]));
        Some(name)
    }

    /// Tells all who waited, and keeps the answer for a while.
    fn handle_answer(&mut self, answer: Answer, now: Instant) {
        let Answer { name, found } = answer;
        let kept_for = if found.is_ok() { self.dns.max_ttl } else { self.dns.nxdomain_ttl };
        let known = Entry::Known { found: found.clone(), until: now + kept_for };
        if let Some(Entry::Pending(waiters)) = self.entries.insert(name, known) {
            waiters.into_iter().for_each(|waiter| waiter.answer(&found));
        }
    }

    /// When the table is full, forgets what is out of date, and if that is nothing all that is known.
    fn make_room(&mut self, now: Instant) {
        if self.entries.len() >= NAMES_MAX {
            self.entries.retain(|_, entry| entry.holds(now));
        }
        if self.entries.len() >= NAMES_MAX {
            self.entries.retain(|_, entry| matches!(entry, Entry::Pending(_)));
        }
    }
}

impl Entry {
    fn holds(&self, now: Instant) -> bool {
        match self {
            Entry::Pending(_) => true,
            Entry::Known { until, .. } => now < *until,
        }
    }
}

impl Waiter {
    /// A reply that panics is told of by the panic hook, and must not end the resolver for everybody.
    fn answer(self, found: &Found) {
        let Waiter { port, reply } = self;
        let answer = match found {
            Ok(addresses) => Ok(addresses.iter().map(|address| SocketAddr::new(*address, port)).collect()),
            Err((kind, text)) => Err(io::Error::new(*kind, text.clone())),
        };
        let _ = catch_unwind(AssertUnwindSafe(|| reply(answer)));
    }
}

fn look_up_all(names: &Receiver<String>, answers: &Sender<Answer>, lookup: &Lookup) {
    for name in names {
        let found = lookup(&name).map_err(|error| (error.kind(), error.to_string()));
        // There is room: no more names are pending than the channel holds.
        if answers.send(Answer { name, found }).is_err() {
            return;
        }
    }
}

/// `getaddrinfo`, so that /etc/hosts and nsswitch.conf hold.
fn system_lookup(name: &str) -> io::Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for address in (name, 0).to_socket_addrs()?.map(|address| address.ip()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    match addresses.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
        false => Ok(addresses),
    }
}

fn too_busy() -> Found {
    Err((io::ErrorKind::WouldBlock, "too many names are being resolved".to_owned()))
}

/// One that hangs on a dead name server leaves one for the other names.
const LOOKUP_THREADS: usize = 2;

/// Names known or on the way. A pooler has a handful; more is a configuration being reloaded in a loop.
const NAMES_MAX: usize = 1024;

/// Requests not yet seen by the owner, which only ever takes microseconds for one.
const REQUESTS_WAITING_MAX: usize = 4096;

/// Dials that wait for one name: more than an endpoint usually has connections.
const WAITERS_PER_NAME_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    const DNS: Dns = Dns { max_ttl: Duration::from_secs(15), nxdomain_ttl: Duration::from_secs(2) };
    const LONG: Duration = Duration::from_secs(10);

    type Replies = Receiver<Result<Vec<SocketAddr>, String>>;

    /// A request, and where its reply arrives.
    fn request(name: &str) -> (Request, Replies) {
        let (send, receive) = bounded(1);
        let reply: Reply = Box::new(move |answer| {
            let _ = send.send(answer.map_err(|error| error.to_string()));
        });
        (Request { name: name.to_owned(), waiter: Waiter { port: 5432, reply } }, receive)
    }

    fn found() -> Found {
        Ok(vec![IpAddr::from([10, 0, 0, 1])])
    }

    fn addresses() -> Vec<SocketAddr> {
        vec!["10.0.0.1:5432".parse().unwrap()]
    }

    #[test]
    fn a_name_is_looked_up_once_for_all_who_wait() {
        let (mut names, now) = (Names::new(DNS), Instant::now());
        let ((first, first_reply), (second, second_reply)) = (request("db"), request("db"));
        assert_eq!(names.handle_request(first, now).as_deref(), Some("db"));
        assert_eq!(names.handle_request(second, now), None);
        names.handle_answer(Answer { name: "db".into(), found: found() }, now);
        assert_eq!(first_reply.try_recv().unwrap(), Ok(addresses()));
        assert_eq!(second_reply.try_recv().unwrap(), Ok(addresses()));
    }

    #[test]
    fn answers_are_kept_for_their_time() {
        for (found, ttl) in
            [(found(), DNS.max_ttl), (Err((io::ErrorKind::NotFound, "no".into())), DNS.nxdomain_ttl)]
        {
            let (mut names, now) = (Names::new(DNS), Instant::now());
            names.handle_request(request("db").0, now);
            names.handle_answer(Answer { name: "db".into(), found: found.clone() }, now);
            let (early, reply) = request("db");
            assert_eq!(names.handle_request(early, now + ttl - Duration::from_nanos(1)), None);
            assert_eq!(reply.try_recv().unwrap().is_ok(), found.is_ok());
            assert_eq!(names.handle_request(request("db").0, now + ttl).as_deref(), Some("db"));
        }
    }

    #[test]
    fn the_table_has_a_bound() {
        let (mut names, now) = (Names::new(DNS), Instant::now());
        for number in 0..NAMES_MAX {
            assert!(names.handle_request(request(&number.to_string()).0, now).is_some());
        }
        let (over, reply) = request("over");
        assert_eq!(names.handle_request(over, now), None);
        assert_eq!(reply.try_recv().unwrap(), Err("too many names are being resolved".into()));
        names.handle_answer(Answer { name: "7".into(), found: found() }, now);
        assert_eq!(names.handle_request(request("over").0, now).as_deref(), Some("over"));
        assert_eq!(names.entries.len(), NAMES_MAX);
    }

    #[test]
    fn threads_look_up_and_survive_a_panicking_reply() {
        let lookups = Arc::new(AtomicUsize::new(0));
        let counted = lookups.clone();
        let lookup = move |name: &str| {
            counted.fetch_add(1, Ordering::Relaxed);
            if name == "db" {
                Ok(vec![IpAddr::from([10, 0, 0, 1])])
            } else {
                Err(io::Error::other("unknown"))
            }
        };
        let resolver = Resolver::start_with(Arc::new(lookup), DNS, &Housekeeping::new(&[])).unwrap();
        resolver.resolve("db", 5432, |_| panic!("of the test"));
        let (send, receive) = bounded(2);
        for name in ["db", "other"] {
            let send = send.clone();
            resolver.resolve(name, 5432, move |answer| send.send(answer.map_err(|e| e.to_string())).unwrap());
        }
        let mut answers = [receive.recv_timeout(LONG).unwrap(), receive.recv_timeout(LONG).unwrap()];
        answers.sort();
        assert_eq!(answers, [Ok(addresses()), Err("unknown".into())]);
        assert_eq!(lookups.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn the_system_knows_localhost() {
        assert!(system_lookup("localhost").unwrap().iter().all(IpAddr::is_loopback));
    }
}
