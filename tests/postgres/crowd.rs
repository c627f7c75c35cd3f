//! Clients that behave, ask for their own tokens in many ways, and check each reply to the last byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::pooler::Target;
use crate::process::eventually;
use crate::random::Random;
use crate::wire::{Address, Client, Fault, Frames, PgError, Reply};

/// How much the replies weigh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diet {
    /// Short replies only.
    Light,
    /// Everything, up to a megabyte.
    Full,
}

/// How a member of a crowd lives.
#[derive(Clone, Copy, Debug)]
pub struct Habit {
    pub diet: Diet,
    /// Rest after each request.
    pub pause: Duration,
    /// Requests before it leaves and comes back.
    pub session_requests: u64,
}

impl Habit {
    pub const LIGHT: Habit = Habit { diet: Diet::Light, pause: Duration::ZERO, session_requests: u64::MAX };
    pub const FULL: Habit = Habit { diet: Diet::Full, ..Habit::LIGHT };

    pub fn pausing(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    pub fn reconnecting_after(self, requests: u64) -> Self {
        Self { session_requests: requests, ..self }
    }
}

/// Threads with a client each, asking until told to stop.
#[derive(Debug)]
pub struct Crowd {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Tally>>,
}

/// What a crowd lived through.
#[derive(Debug, Default)]
pub struct Tally {
    pub requests: u64,
    pub faults: Vec<Fault>,
    latencies: Vec<Duration>,
}

impl Tally {
    /// The latency that 99 of 100 requests kept.
    pub fn p99(&mut self) -> Duration {
        self.percentile(99)
    }

    pub fn percentile(&mut self, percent: usize) -> Duration {
        assert!(!self.latencies.is_empty(), "nothing was asked");
        self.latencies.sort_unstable();
        self.latencies[(self.latencies.len() - 1) * percent / 100]
    }

    /// What was asked and how long it took, for a person to read.
    pub fn describe(&mut self) -> String {
        let (median, p99, most) = (self.percentile(50), self.p99(), self.percentile(100));
        format!(
            "{} requests, {} faults, p50 {median:?}, p99 {p99:?}, longest {most:?}",
            self.requests,
            self.faults.len()
        )
    }

    /// Fails unless something was asked and everything answered.
    pub fn assert_faultless(&self) {
        let faults: Vec<String> = self.faults.iter().take(5).map(|fault| fault.to_string()).collect();
        assert!(faults.is_empty(), "{} of {} requests failed: {faults:?}", self.faults.len(), self.requests);
        assert!(self.requests > 0, "nothing was asked");
    }

    pub fn assert_no_hang(&self) {
        assert!(!self.faults.iter().any(Fault::is_timeout), "{} hung", self.faults.len());
    }

    fn add(&mut self, other: Tally) {
        self.requests += other.requests;
        self.faults.extend(other.faults);
        self.latencies.extend(other.latencies);
    }
}

impl Crowd {
    /// `count` clients of `user`.
    pub fn start(count: usize, address: &Address, user: &str, habit: Habit) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..count)
            .map(|number| {
                let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
                let (address, user) = (address.clone(), user.to_owned());
                std::thread::spawn(move || member(number, &address, &user, habit, &stop, &asked))
            })
            .collect();
        Self { stop, asked, threads }
    }

    /// Lets them go on until `time` has passed and `requests` are answered.
    pub fn live(&self, time: Duration, requests: u64) {
        std::thread::sleep(time);
        eventually(&format!("{requests} requests are answered"), time.max(10 * MINUTE), || {
            self.asked() >= requests
        });
    }

    /// Requests answered so far.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// A separate user asking 20 times a second.
    pub fn canary(address: &Address, user: &str) -> Self {
        Self::start(1, address, user, Habit::LIGHT.pausing(Duration::from_millis(50)))
    }

    pub fn finish(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut tally = Tally::default();
        for thread in self.threads.drain(..) {
            tally.add(thread.join().expect("a member found the pooler wrong"));
        }
        tally
    }
}

impl Drop for Crowd {
    /// A test that fails leaves nobody behind who asks on.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn member(
    number: usize,
    address: &Address,
    user: &str,
    habit: Habit,
    stop: &AtomicBool,
    answered: &AtomicU64,
) -> Tally {
    let mut random = Random::new(number as u64 + 1);
    let mut tally = Tally::default();
    let mut client = None;
    let mut asked = 0;
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let outcome = match client.take() {
            Some(client) => Ok(client),
            None => Client::connect(address, &[("user", user), ("database", "app")]),
        };
        let outcome = outcome.and_then(|mut connected| {
            ask(&mut connected, &mut random, habit.diet)?;
            Ok(connected)
        });
        tally.requests += 1;
        match outcome {
            Ok(connected) => {
                tally.latencies.push(start.elapsed());
                answered.fetch_add(1, Ordering::Relaxed);
                asked += 1;
                if asked % habit.session_requests == 0 {
                    connected.terminate();
                } else {
                    client = Some(connected);
                }
            }
            Err(fault) => {
                tally.faults.push(fault);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        std::thread::sleep(habit.pause);
    }
    if let Some(mut client) = client {
        // A server that restarts or changes its parameters may have more to say; such crowds are not on full diet.
        if habit.diet == Diet::Full && tally.faults.is_empty() {
            client.assert_silent(Duration::from_millis(50));
        }
        client.terminate();
    }
    tally
}

/// One request of a random kind, its reply checked.
pub fn ask(client: &mut Client, random: &mut Random, diet: Diet) -> Result<(), Fault> {
    client.forget_tokens();
    match random.below(if diet == Diet::Full { 17 } else { 10 }) {
        0 | 1 => simple_value(client),
        2 => column_name(client),
        3 => raised_notice(client),
        4 => error_text(client),
        5 | 6 => bound_value(client),
        7 => pipeline(client, random),
        8 => broken_batch(client),
        9 => transaction(client, random),
        10 => many_rows(client, random),
        11 => large_value(client, random),
        12 => copied_rows(client, random),
        13 => large_parameter(client, random),
        _ => named_statement(client, random),
    }
}

fn simple_value(client: &mut Client) -> Result<(), Fault> {
    let token = client.token();
    let reply = client.query(&format!("select '{token}'"))?;
    expect(&reply, "TDCZ")?;
    assert_eq!(reply.value(), token);
    Ok(())
}

fn column_name(client: &mut Client) -> Result<(), Fault> {
    let token = client.token();
    let reply = client.query(&format!("select 1 as \"{token}\""))?;
    expect(&reply, "TDCZ")?;
    assert_eq!(reply.columns, [token]);
    Ok(())
}

fn raised_notice(client: &mut Client) -> Result<(), Fault> {
    let token = client.token();
    let reply = client.query(&format!("do $$ begin raise notice '{token}'; end $$"))?;
    expect(&reply, "CZ")?;
    assert_eq!(reply.notices.len(), 1);
    assert_eq!(reply.notices[0].message, token);
    Ok(())
}

fn error_text(client: &mut Client) -> Result<(), Fault> {
    let token = client.token();
    let reply = client.query(&format!("select '{token}'::int"))?;
    expect(&reply, "EZ")?;
    assert_eq!(reply.code(), "22P02");
    assert!(reply.errors[0].message.contains(&token), "{}", reply.errors[0]);
    Ok(())
}

fn bound_value(client: &mut Client) -> Result<(), Fault> {
    let token = client.token();
    let reply = client.extended("select $1::text", &[&token])?;
    expect(&reply, "12TDCZ")?;
    assert_eq!(reply.value(), token);
    Ok(())
}

/// 1 to 20 groups sent at once, each with a Sync of its own or all with one.
fn pipeline(client: &mut Client, random: &mut Random) -> Result<(), Fault> {
    let tokens: Vec<String> = (0..random.between(1, 20)).map(|_| client.token()).collect();
    let one_sync = random.chance(30);
    let mut frames = Frames::new();
    for token in &tokens {
        frames = frames.unnamed("select $1::text", &[token]);
        frames = if one_sync { frames } else { frames.sync() };
    }
    client.send(&if one_sync { frames.sync() } else { frames }.0)?;
    if one_sync {
        let reply = client.collect()?;
        expect(&reply, &("12TDC".repeat(tokens.len()) + "Z"))?;
        let values: Vec<String> = reply.text_rows().into_iter().flatten().collect();
        assert_eq!(values, tokens);
    } else {
        for token in &tokens {
            let reply = client.collect()?;
            expect(&reply, "12TDCZ")?;
            assert_eq!(&reply.value(), token);
        }
    }
    Ok(())
}

/// After an error PostgreSQL skips everything up to Sync.
fn broken_batch(client: &mut Client) -> Result<(), Fault> {
    let token = client.token();
    let frames = Frames::new().unnamed("select 1/0", &[]).unnamed("select 1", &[]).sync();
    client.send(&frames.unnamed("select $1::text", &[&token]).sync().0)?;
    let broken = client.collect()?;
    expect(&broken, "1EZ")?;
    assert_eq!(broken.code(), "22012");
    let reply = client.collect()?;
    expect(&reply, "12TDCZ")?;
    assert_eq!(reply.value(), token);
    Ok(())
}

/// Several requests in one transaction stay on one backend.
fn transaction(client: &mut Client, random: &mut Random) -> Result<(), Fault> {
    let reply = client.query("begin")?;
    expect(&reply, "CZ")?;
    assert_eq!(reply.status, b'T');
    let pid = client.query("select pg_backend_pid()")?;
    expect(&pid, "TDCZ")?;
    let token = client.token();
    let set = client.query(&format!("set local application_name = '{token}'"))?;
    expect(&set, "CZ")?;
    let shown = client.extended("select current_setting('application_name'), pg_backend_pid()", &[])?;
    expect(&shown, "12TDCZ")?;
    assert_eq!(shown.status, b'T');
    assert_eq!(shown.text_rows(), [[token, pid.value()]]);
    if random.chance(30) {
        let failed = client.query("select 1/0")?;
        expect(&failed, "EZ")?;
        assert_eq!(failed.status, b'E');
    }
    let end: &str = if random.chance(50) { "commit" } else { "rollback" };
    let reply = client.query(end)?;
    expect(&reply, "CZ")?;
    assert_eq!(reply.status, b'I');
    Ok(())
}

/// Each row has its number and a number that only this request can have there.
fn many_rows(client: &mut Client, random: &mut Random) -> Result<(), Fault> {
    let token = client.token();
    let (count, key) = (random.between(1, 3000), random.below(1 << 32));
    let reply = client.query(&format!(
        "select '{token}', i, (i::int8 * 2654435761 + {key}) % 4294967296 from generate_series(1, {count}) i"
    ))?;
    expect(&reply, &format!("T{}CZ", "D".repeat(count as usize)))?;
    for (row, i) in reply.text_rows().into_iter().zip(1_u64..) {
        let keyed = (i * 2_654_435_761 + key) % (1 << 32);
        assert_eq!(row, [token.clone(), i.to_string(), keyed.to_string()]);
    }
    Ok(())
}

fn large_value(client: &mut Client, random: &mut Random) -> Result<(), Fault> {
    let token = client.token();
    let letter = random.pick(&["a", "b", "c", "d"]);
    let count = 1 << random.between(0, 20);
    let reply = client.query(&format!("select '{token}' || repeat('{letter}', {count}) || '{token}'"))?;
    expect(&reply, "TDCZ")?;
    assert!(
        reply.value() == token.clone() + &letter.repeat(count) + &token,
        "a value of {count} bytes differs"
    );
    Ok(())
}

fn copied_rows(client: &mut Client, random: &mut Random) -> Result<(), Fault> {
    let token = client.token();
    let count = random.between(0, 2000);
    let reply =
        client.query(&format!("copy (select '{token}', i from generate_series(1, {count}) i) to stdout"))?;
    expect(&reply, &format!("H{}cCZ", "d".repeat(count as usize)))?;
    let rows: String = (1..=count).map(|i| format!("{token}\t{i}\n")).collect();
    assert!(reply.copied == rows.as_bytes(), "{count} copied rows differ");
    Ok(())
}

fn large_parameter(client: &mut Client, random: &mut Random) -> Result<(), Fault> {
    let value = client.token() + &"p".repeat(1 << random.between(0, 18));
    let reply = client.extended("select $1::text", &[&value])?;
    expect(&reply, "12TDCZ")?;
    assert!(reply.value() == value, "a parameter of {} bytes differs", value.len());
    Ok(())
}

/// Few names for many clients; the statement is used in another transaction than it was prepared in.
fn named_statement(client: &mut Client, random: &mut Random) -> Result<(), Fault> {
    // PgBouncer 1.18 knows no named statements.
    if Target::current() == Target::Pgbouncer {
        return bound_value(client);
    }
    let (token, name) = (client.token(), format!("named_{}", random.below(20)));
    client.send(&Frames::new().parse(&name, &format!("select $1::text || '{token}'")).sync().0)?;
    expect(&client.collect()?, "1Z")?;
    for round in ["first", "second"] {
        let frames = Frames::new().bind("", &name, &[round]).describe(b'P', "").execute("", 0).sync();
        client.send(&frames.0)?;
        let reply = client.collect()?;
        expect(&reply, "2TDCZ")?;
        assert_eq!(reply.value(), format!("{round}{token}"));
    }
    client.send(&Frames::new().close(b'S', &name).sync().0)?;
    expect(&client.collect()?, "3Z")
}

/// The exact sequence of messages; a server that left is a fault, anything else a failure.
pub fn expect(reply: &Reply, sequence: &str) -> Result<(), Fault> {
    if reply.sequence == sequence {
        return Ok(());
    }
    if let Some(error) = reply.errors.iter().find(|error| server_is_gone(error)) {
        return Err(Fault::Closed(Some(error.clone())));
    }
    panic!("{sequence:?} expected, {:?} received, {:?}", reply.sequence, reply.errors);
}

/// The classes of errors that a lost or stopping server causes, and those of a pooler without one.
pub fn server_is_gone(error: &PgError) -> bool {
    matches!(&*error.code, "57P01" | "57P02" | "57P03" | "08006" | "08001" | "08003" | "08P01" | "53300")
}

const MINUTE: Duration = Duration::from_secs(60);
