//! Two shards at work, each on a thread of its own, with real sockets and a PostgreSQL that says little: connections
//! change their shard.
#![allow(clippy::print_stderr)]

use super::*;
use crate::control::affinity::Housekeeping;
use crate::mail::letters_max;
use crate::ring::{Promise, RingSettings, local_address, run_shard, tcp_listener};
use crossbeam_channel::{bounded, unbounded};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Something to be done on a shard's thread.
type Job = Box<dyn FnOnce(&Rc<Engine>) + Send>;

/// Shards that run.
struct Shards {
    running: Vec<Running>,
    news: Receiver<News>,
    clients: Arc<AtomicUsize>,
}

struct Running {
    thread: JoinHandle<()>,
    mail: Sender<Mail>,
    doorbell: crate::ring::Doorbell,
    /// The shard waits for its next job.
    waiting: Receiver<Promise<Job>>,
    address: SocketAddr,
}

impl Shards {
    fn start(count: usize, config: Config) -> Self {
        let config = Arc::new(config);
        let housekeeping = Housekeeping::new(&[]);
        let (logger, _) = Logger::start_on(io::sink(), &config.log, &housekeeping).unwrap();
        let resolver = Resolver::start(config.dns, &housekeeping).unwrap();
        let helpers = Helpers::start(1, &housekeeping).unwrap();
        let (tell, news) = unbounded();
        let clients = Arc::new(AtomicUsize::new(0));
        let posts = Post::connect(count, letters_max([1], count)).unwrap();
        let mut running = Vec::new();
        for (index, post) in posts.into_iter().enumerate() {
            let listener = tcp_listener("127.0.0.1:0".parse().unwrap(), 128).unwrap();
            let SocketAddress::Inet(address) = local_address(listener.as_fd()).unwrap() else { panic!() };
            let (mail, mailbox) = bounded(16);
            let doorbell = post.doorbell();
            let parts = Parts {
                config: config.clone(),
                id: ShardId(index as u16),
                shards: count,
                listeners: vec![listener],
                mail: mailbox,
                news: tell.clone(),
                post,
                clients: clients.clone(),
                logger: logger.clone(),
                resolver: resolver.clone(),
                helpers: helpers.clone(),
                seed: 1,
                secret: Secret::new([7; 32]),
            };
            let (wait, waiting) = bounded(1);
            let thread = std::thread::spawn(move || {
                run_shard(None, move || run(parts, wait)).unwrap();
            });
            running.push(Running { thread, mail, doorbell, waiting, address });
        }
        Self { running, news, clients }
    }

    /// Has a shard's thread do something.
    fn on<T: Send + 'static>(&self, shard: usize, job: impl FnOnce(&Rc<Engine>) -> T + Send + 'static) -> T {
        let (reply, answer) = bounded(1);
        let promise = self.running[shard].waiting.recv_timeout(PATIENCE).unwrap();
        promise.fulfil(Box::new(move |engine| reply.send(job(engine)).unwrap()));
        answer.recv_timeout(PATIENCE).unwrap()
    }

    fn stats(&self) -> Vec<Stats> {
        let stats = |engine: &Rc<Engine>| engine.shard.borrow().stats();
        (0..self.running.len()).map(|shard| self.on(shard, stats)).collect()
    }

    fn client(&self, shard: usize) -> Client {
        let stream = TcpStream::connect(self.running[shard].address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Client(stream);
        let body = b"\0\x03\0\0user\0u\0database\0d\0\0";
        client.0.write_all(&[&(body.len() as u32 + 4).to_be_bytes()[..], body].concat()).unwrap();
        client
    }

    fn tell(&self, mail: &Mail) {
        for running in &self.running {
            running.mail.send(mail.clone()).unwrap();
            running.doorbell.ring();
        }
    }

    /// Ends all in good order.
    fn finish(self) {
        self.tell(&Mail::Drain);
        for _ in &self.running {
            assert!(matches!(self.news.recv_timeout(PATIENCE), Ok(News::Drained)));
        }
        assert_eq!(self.clients.load(Ordering::Relaxed), 0, "every client was counted out once");
        self.tell(&Mail::End);
        for running in self.running {
            running.thread.join().unwrap();
        }
    }
}

async fn run(parts: Parts, wait: Sender<Promise<Job>>) {
    let post = parts.post.doorbell();
    let ring = Ring::with_doorbell(&RingSettings::default(), post).unwrap();
    let engine = Engine::new(parts, ring.clone(), Tasks::new(|panic| std::panic::resume_unwind(panic)));
    let at_work = engine.clone();
    engine.tasks.spawn(async move {
        loop {
            let (promise, job) = ring.remote();
            if wait.send(promise).is_err() {
                return;
            }
            let Ok(job): Result<Job, _> = job.await else { return };
            at_work.shard.borrow_mut().set_time(clock::now());
            job(&at_work);
        }
    });
    engine.drive().await.unwrap();
}

struct Client(TcpStream);

impl Client {
    /// The next message's tag and body.
    fn read(&mut self) -> (u8, Vec<u8>) {
        let mut header = [0; 5];
        self.0.read_exact(&mut header).unwrap();
        let [tag, length @ ..] = header;
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        self.0.read_exact(&mut body).unwrap();
        (tag, body)
    }

    fn read_until_ready(&mut self) -> Vec<(u8, Vec<u8>)> {
        let mut messages = Vec::new();
        loop {
            let message = self.read();
            assert_ne!(message.0, b'E', "{}", String::from_utf8_lossy(&message.1));
            if message.0 == b'Z' {
                return messages;
            }
            messages.push(message);
        }
    }

    fn ask(&mut self) {
        self.0.write_all(b"Q\0\0\0\x0dselect 1\0").unwrap();
    }

    /// Which of PostgreSQL's processes answered.
    fn answer(&mut self) -> String {
        let messages = self.read_until_ready();
        let row = messages.into_iter().find(|(tag, _)| *tag == b'D').unwrap().1;
        String::from_utf8(row).unwrap()
    }
}

/// A PostgreSQL whose processes answer every query with their number, and say `noise` all the time. Returns its port and
/// the messages that its processes got.
fn fake(noise: Option<Duration>) -> (u16, Receiver<(usize, u8)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, got) = unbounded();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let (stream, tell) = (stream.unwrap(), tell.clone());
            stream.set_nodelay(true).unwrap();
            std::thread::spawn(move || serve(stream, number, noise, &tell));
        }
    });
    (port, got)
}

fn serve(mut stream: TcpStream, number: usize, noise: Option<Duration>, tell: &Sender<(usize, u8)>) {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    stream.read_exact(&mut vec![0; u32::from_be_bytes(length) as usize - 4]).unwrap();
    stream.write_all(b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x07\0\0\0\x08Z\0\0\0\x05I").unwrap();
    let row = number.to_string();
    let row = [&b"D"[..], &(row.len() as u32 + 4).to_be_bytes(), row.as_bytes()].concat();
    let answer = [&row[..], b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I"].concat();
    // A message at a time.
    let output = Arc::new(Mutex::new(stream.try_clone().unwrap()));
    if let Some(pause) = noise {
        let output = output.clone();
        std::thread::spawn(move || {
            while say_something(&output).is_ok() {
                std::thread::sleep(pause)
            }
        });
    }
    let (mut input, mut bytes) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        input.extend_from_slice(&bytes[..length]);
        while let Some(length) = input.get(1..5).and_then(|length| <[u8; 4]>::try_from(length).ok()) {
            let length = u32::from_be_bytes(length) as usize + 1;
            if input.len() < length {
                break;
            }
            // Nobody counts any more when the test is over.
            let _ = tell.send((number, input[0]));
            // The last is a goodbye, which nobody wants an answer to.
            let _ = output.lock().unwrap().write_all(&answer);
            input.drain(..length);
        }
    }
    // The other descriptor would keep it open.
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

/// In two pieces, so that the connection is also seen in the middle of a message.
fn say_something(output: &Mutex<TcpStream>) -> io::Result<()> {
    let mut output = output.lock().unwrap();
    let notice = b"N\0\0\0\x19SNOTICE\0Mstill here\0\0";
    output.write_all(&notice[..9])?;
    output.write_all(&notice[9..])
}

fn config(port: u16) -> Config {
    let mut config = Config::upstream(&format!("127.0.0.1:{port}"), &[0]).unwrap();
    // The first shard's.
    config.endpoints[0].max_connections = 1;
    config.steering = false;
    config
}

/// Two shards, a client of each that is let in, and one connection for both.
fn two_shards_and_one_connection(noise: Option<Duration>) -> (Shards, [Client; 2], Receiver<(usize, u8)>) {
    let (port, got) = fake(noise);
    let shards = Shards::start(2, config(port));
    let mut clients = [shards.client(0), shards.client(1)];
    for client in &mut clients {
        client.read_until_ready();
    }
    (shards, clients, got)
}

/// F9.
#[test]
fn one_connection_serves_clients_of_two_shards_in_turn() {
    let (shards, mut clients, got) = two_shards_and_one_connection(None);
    for round in 0..1000 {
        let client = &mut clients[round % 2];
        client.ask();
        assert_eq!(client.answer(), "0", "PostgreSQL's process");
    }
    let stats = shards.stats();
    assert_eq!(stats.iter().map(|stats| stats.opened).sum::<u64>(), 1);
    assert!(stats.iter().all(|stats| stats.handed_out >= 499), "{stats:?}");
    let post = shards.on(0, |engine| engine.post.stats());
    assert!(post.sent >= 1000 && post.bells <= post.sent, "a turn's letters, a bell: {post:?}");
    drop(clients);
    shards.finish();
    let ended: Vec<(usize, u8)> = got.try_iter().filter(|(_, tag)| *tag == b'X').collect();
    assert_eq!(ended, [(0, b'X')], "one connection, which was told goodbye once");
}

/// Both wait for it all the time.
#[test]
fn one_connection_serves_two_shards_that_both_want_it() {
    let (shards, clients, got) = two_shards_and_one_connection(None);
    let asking: Vec<JoinHandle<Client>> = clients
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                for _ in 0..500 {
                    client.ask();
                    assert_eq!(client.answer(), "0");
                }
                client
            })
        })
        .collect();
    let clients: Vec<Client> = asking.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(shards.stats().iter().map(|stats| stats.opened).sum::<u64>(), 1);
    drop(clients);
    shards.finish();
    assert_eq!(got.try_iter().filter(|(_, tag)| *tag == b'Q').count(), 1000);
}

#[test]
fn nothing_is_lost_of_what_arrives_while_a_server_moves() {
    let (shards, mut clients, got) = two_shards_and_one_connection(Some(Duration::from_micros(50)));
    for round in 0..300 {
        let client = &mut clients[round % 2];
        client.ask();
        assert_eq!(client.answer(), "0");
    }
    let stats = shards.stats();
    assert!(stats.iter().all(|stats| stats.handed_in >= 149), "{stats:?}");
    assert_eq!(stats.iter().map(|stats| stats.opened).sum::<u64>(), 1);
    drop(clients);
    shards.finish();
    assert!(got.try_iter().all(|(number, _)| number == 0), "one connection for all of it");
}

#[test]
fn clients_are_steered_and_counted_once() {
    let (port, _got) = fake(None);
    let mut config = config(port);
    config.steering = true;
    config.max_client_conn = 10;
    let shards = Shards::start(2, config);
    let clients: Vec<Client> = (0..10).map(|number| shards.client(number % 2)).collect();
    let end = Instant::now() + PATIENCE;
    let clients_of = |shard| shards.on(shard, |engine| engine.shard.borrow().census().clients);
    let home = loop {
        match (clients_of(0), clients_of(1)) {
            (10, 0) => break 0,
            (0, 10) => break 1,
            found => assert!(Instant::now() < end, "{found:?}"),
        }
    };
    let steered = shards.on(home, |engine| engine.shard.borrow().stats().steered_in);
    assert_eq!(steered, 5);
    assert_eq!(shards.clients.load(Ordering::Relaxed), 10);
    let mut refused = shards.client(1 - home);
    assert_eq!(refused.read().0, b'E', "one too many, wherever it comes");
    drop(clients);
    shards.finish();
}

#[test]
fn what_a_move_costs() {
    let (shards, mut clients, _got) = two_shards_and_one_connection(None);
    let mut ask = |client: usize| {
        let start = Instant::now();
        clients[client].ask();
        assert_eq!(clients[client].answer(), "0");
        start.elapsed()
    };
    let (mut here, mut moved) = (Vec::new(), Vec::new());
    for round in 0..400 {
        moved.push(ask(round % 2));
        here.push(ask(round % 2));
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let (here, moved) = (median(&mut here), median(&mut moved));
    eprintln!(
        "a query on its own shard: {here:?}; one whose server is idle on the other, what the ledger takes included: \
         {moved:?}; median of 400"
    );
    assert!(moved < Duration::from_millis(100), "a move is cheaper than a new connection");
    drop(clients);
    shards.finish();
}

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);
