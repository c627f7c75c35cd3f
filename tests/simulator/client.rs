//! A client: its script, and the PostgreSQL of its own that it compares every answer with.

use crate::chance::Chance;
use crate::postgres::{Postgres, message};
use pgpinion::time::Instant;

/// What clients do that not every configuration allows.
#[derive(Clone, Copy, Default)]
pub struct Habits {
    /// They leave something behind on servers.
    pub leaves: bool,
    /// That is refused.
    pub is_refused: bool,
}

pub struct Client {
    pub name: String,
    pub socket: Option<u32>,
    /// Sends nothing before: not come yet, or thinking between two transactions.
    pub thinks_until: Instant,
    /// Neither sends nor reads before.
    pub stalls_until: Instant,
    /// Bytes of the step at hand that have not been sent.
    pub unsent: Vec<u8>,
    /// What it will send, a step each; a step waits for the answer of the one before.
    pub steps: Vec<Vec<u8>>,
    reference: Postgres,
    /// It is an administrator, and has the console instead.
    console: Option<Console>,
    received: Vec<u8>,
    greeted: bool,
    compared: usize,
    /// It has had all answers and said goodbye, or left.
    pub done: bool,
    /// Its session was ended: it was told, or the connection closed.
    pub lost: bool,
    /// A panic did that.
    pub condemned: bool,
    /// How often it was told that it waits.
    pub notified: u64,
}

/// What the console is asked, and what it tells of how many shards.
struct Console {
    shards: usize,
    asked: usize,
    answered: usize,
    /// Rows of the answer at hand, and shards that it says are missing.
    told: usize,
}

impl Console {
    fn receive(&mut self, message: &[u8]) {
        self.told += usize::from(matches!(message[0], b'D' | b'N'));
        if message[0] == b'Z' {
            assert_eq!(self.told, self.shards, "each shard has told of itself, or is said to be missing");
            self.told = 0;
            self.answered += 1;
        }
    }
}

impl Client {
    /// One that asks for all shards, a few times.
    pub fn administrator(name: String, shards: usize, chance: &mut Chance) -> Self {
        let mut client = Self::new(name, "pgpinion", ADMINISTRATOR, Habits::default(), chance);
        client.steps = (0..1 + chance.below(3)).map(|_| message(b'Q', b"SHOW SHARDS\0")).collect();
        client.console = Some(Console { shards, asked: 0, answered: 0, told: 0 });
        client
    }

    pub fn new(name: String, database: &str, user: &str, habits: Habits, chance: &mut Chance) -> Self {
        let steps = (0..1 + chance.below(6))
            .flat_map(|turn| {
                let token = format!("{name}-{turn}");
                let leaves = habits.leaves && chance.one_in(6);
                if leaves { leaving(chance, &token) } else { transaction(chance, &token) }
            })
            .collect();
        let mut body = vec![0, 3, 0, 0];
        body.extend(format!("user\0{user}\0database\0{database}\0").bytes());
        let mut reference = Postgres::logged_in();
        reference.refuses = habits.is_refused;
        if chance.one_in(3) {
            // A zone has to be checked by a server, a name has not.
            let zone = ["PRC", "UTC", "Asia/Tokyo"][chance.below(3)];
            body.extend(format!("TimeZone\0{zone}\0application_name\0{name}\0").bytes());
            reference.ask_for([("TimeZone", zone), ("application_name", &name)]);
        }
        body.push(0);
        let mut unsent = (body.len() as u32 + 4).to_be_bytes().to_vec();
        unsent.extend(body);
        Self {
            name,
            socket: None,
            thinks_until: Instant::default(),
            stalls_until: Instant::default(),
            unsent,
            steps,
            reference,
            console: None,
            received: Vec::new(),
            greeted: false,
            compared: 0,
            done: false,
            lost: false,
            condemned: false,
            notified: 0,
        }
    }

    /// Answers of the console.
    pub fn was_told(&self) -> usize {
        self.console.as_ref().map_or(0, |console| console.answered)
    }

    /// It has come to its end, good or bad.
    pub fn is_over(&self) -> bool {
        self.done || self.lost
    }

    /// Every answer has come, and nothing is half sent.
    pub fn is_between_steps(&self) -> bool {
        let answered = match &self.console {
            Some(console) => console.answered == console.asked,
            None => self.compared == self.reference.output.len(),
        };
        self.unsent.is_empty() && self.greeted && answered
    }

    /// There is something it could send now.
    pub fn may_write(&self, now: Instant) -> bool {
        let ready = self.is_between_steps() || !self.unsent.is_empty();
        !self.is_over() && self.thinks_until.max(self.stalls_until) <= now && ready
    }

    /// A piece to send; `None`: it says goodbye.
    pub fn write(&mut self, length: usize) -> Option<Vec<u8>> {
        if self.unsent.is_empty() {
            if self.steps.is_empty() {
                self.done = true;
                return None;
            }
            self.unsent = self.steps.remove(0);
            match &mut self.console {
                Some(console) => console.asked += 1,
                None => self.reference.receive(&self.unsent),
            }
        }
        Some(self.unsent.drain(..length.min(self.unsent.len())).collect())
    }

    /// What it got must be what its own PostgreSQL said, or the news that there will be none: that text is returned.
    pub fn receive(&mut self, bytes: &[u8]) -> Option<String> {
        self.received.extend_from_slice(bytes);
        if self.is_over() {
            return None;
        }
        if !self.greeted {
            if is_refusal(&self.received) {
                return self.lose();
            }
            // The greeting ends with the first ReadyForQuery.
            let end = self.received.windows(6).position(|bytes| bytes == b"Z\0\0\0\x05I")?;
            self.greeted = true;
            let first = char::from(self.received[0]);
            assert!(matches!(first, 'R' | 'v'), "{first} comes before AuthenticationOk");
            self.received.drain(..end + 6);
        }
        // Message by message: the same byte may begin an answer and the news that there will be none.
        while let Some(length) = first_message(&self.received) {
            let got = &self.received[..length];
            if let Some(console) = self.console.as_mut().filter(|_| got[0] != b'E') {
                console.receive(got);
                self.received.drain(..length);
                continue;
            }
            let rest = &self.reference.output[self.compared..];
            if is_notice_of_waiting(got) {
                self.notified += 1;
                self.received.drain(..length);
                continue;
            }
            if is_unasked(got) {
                self.received.drain(..length);
                continue;
            }
            if let (true, Some(refused)) = (is_refused(got), first_message(rest))
                && is_refused(&rest[..refused])
            {
                self.compared += refused;
                self.received.drain(..length);
                continue;
            }
            if !rest.starts_with(got) {
                assert!(
                    is_refusal(&self.received),
                    "{}: got {:?} instead of {:?}",
                    self.name,
                    String::from_utf8_lossy(got),
                    String::from_utf8_lossy(rest)
                );
                return self.lose();
            }
            self.compared += length;
            self.received.drain(..length);
        }
        None
    }

    fn lose(&mut self) -> Option<String> {
        self.lost = true;
        Some(String::from_utf8_lossy(&self.received).into_owned())
    }
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rest = &self.reference.output[self.compared..];
        let rest = String::from_utf8_lossy(&rest[..rest.len().min(40)]);
        write!(f, "{} ({} steps left, awaits {rest:?})", self.name, self.steps.len())
    }
}

/// The length of the first message, if it is whole.
fn first_message(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_be_bytes(bytes.get(1..5)?.try_into().ok()?) as usize + 1;
    (bytes.len() >= length).then_some(length)
}

/// The beginning of a FATAL ErrorResponse.
fn is_refusal(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'E') && bytes.windows(7).any(|window| window == b"SFATAL\0")
}

/// The ErrorResponse to what would be left behind.
fn is_refused(message: &[u8]) -> bool {
    message.first() == Some(&b'E') && message.windows(7).any(|window| window == b"C0A000\0")
}

/// Who may open the console.
pub const ADMINISTRATOR: &str = "dba";

/// What a server may say at any time.
fn is_unasked(message: &[u8]) -> bool {
    matches!(message[0], b'N' | b'A' | b'S') && message.windows(7).any(|window| window == b"UNASKED")
}

/// Something is left behind, inside a transaction or not.
fn leaving(chance: &mut Chance, token: &str) -> Vec<Vec<u8>> {
    let query = |text: &str| message(b'Q', format!("{text}\0").as_bytes());
    let batch = |text: &str| {
        let parse = message(b'P', format!("\0{text}\0\0\0").as_bytes());
        [parse, message(b'B', &[0; 8]), message(b'D', b"P\0"), message(b'E', &[0; 5])].concat()
    };
    let listen = format!("LISTEN {token}");
    match chance.below(5) {
        0 => vec![query(&listen), query(&format!("ECHO {token}"))],
        1 => vec![[batch(&listen), batch(&format!("ECHO {token}")), message(b'S', b"")].concat()],
        2 => vec![query(&format!("ECHO {token};{listen};ECHO {token}"))],
        3 => {
            let begin = [query(&format!("BEGIN {token}")), query(&listen)].concat();
            vec![begin, query(&format!("ECHO {token}")), query(&format!("COMMIT {token}"))]
        }
        _ => vec![[query(&listen), query(&format!("ECHO {token}"))].concat()],
    }
}

/// What the pooler says to whoever waits for long.
fn is_notice_of_waiting(message: &[u8]) -> bool {
    message[0] == b'N' && message.windows(15).any(|window| window == b"SNOTICE\0VNOTICE")
}

/// The steps of one transaction.
fn transaction(chance: &mut Chance, token: &str) -> Vec<Vec<u8>> {
    let query = |text: &str| message(b'Q', format!("{text}\0").as_bytes());
    let batch = |text: &str| {
        let parse = message(b'P', format!("\0{text}\0\0\0").as_bytes());
        [parse, message(b'B', &[0; 8]), message(b'D', b"P\0"), message(b'E', &[0; 5])].concat()
    };
    let sync = || message(b'S', b"");
    let copy = |end: u8| [message(b'd', b"row"), message(b'd', b"row"), message(end, b"")].concat();
    match chance.below(20) {
        0 => vec![query(&format!("ECHO {token}"))],
        1 => vec![query(&format!("ECHO {token};NOTICE {token};MANY {token}"))],
        2 => vec![
            query(&format!("BEGIN {token}")),
            query(&format!("ECHO {token}")),
            query(&format!("COMMIT {token}")),
        ],
        3 => vec![
            query(&format!("BEGIN {token}")),
            query(&format!("FAIL {token}")),
            query(&format!("ECHO {token}")),
            query(&format!("ROLLBACK {token}")),
        ],
        4 => vec![[batch(&format!("ECHO {token}")), sync()].concat()],
        5 => {
            let groups = (0..1 + chance.below(5)).map(|_| [batch(&format!("ECHO {token}")), sync()].concat());
            vec![groups.collect::<Vec<_>>().concat()]
        }
        6 => vec![[batch(&format!("FAIL {token}")), batch(&format!("ECHO {token}")), sync()].concat()],
        7 => vec![[batch("BADPARSE"), sync()].concat(), query(&format!("ECHO {token}"))],
        8 => vec![[batch(&format!("ECHO {token}")), message(b'H', b"")].concat(), sync()],
        9 => vec![query(&format!("COPYOUT {token}"))],
        10 => vec![query(&format!("COPYIN {token}")), copy(b'c')],
        11 => vec![query(&format!("COPYIN {token}")), copy(b'f')],
        12 => vec![
            query(&format!("COPYIN {token}")),
            [message(b'd', b"bad"), message(b'd', b"row"), message(b'c', b"")].concat(),
            query(&format!("ECHO {token}")),
        ],
        13 => vec![[batch(&format!("COPYIN {token}")), sync(), copy(b'c'), sync()].concat()],
        15 => vec![query(&format!("SET application_name = {token}")), query(&format!("SHOW {token}"))],
        16 => vec![
            query(&format!("SHOWZONE {token};SHOW {token}")),
            [batch(&format!("SHOW {token}")), sync()].concat(),
        ],
        17 | 18 => {
            let end = ["COMMIT", "ROLLBACK"][chance.below(2)];
            let begin =
                [query(&format!("BEGIN {token}")), query(&format!("SET application_name = {token}-x"))]
                    .concat();
            vec![begin, query(&format!("{end} {token}")), query(&format!("SHOW {token}"))]
        }
        14 => vec![(0..10).map(|_| query(&format!("ECHO {token}"))).collect::<Vec<_>>().concat()],
        _ => vec![query(""), query(&format!("NOTICE {token}"))],
    }
}
