//! A client: its script, and the PostgreSQL of its own that it compares every answer with.

use crate::chance::Chance;
use crate::postgres::{Postgres, message};
use pgpinion::time::Instant;

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
    received: Vec<u8>,
    greeted: bool,
    compared: usize,
    /// It has had all answers and said goodbye, or left.
    pub done: bool,
    /// Its session was ended: it was told, or the connection closed.
    pub lost: bool,
    /// A panic did that.
    pub condemned: bool,
}

impl Client {
    pub fn new(name: String, database: &str, user: &str, chance: &mut Chance) -> Self {
        let steps = (0..1 + chance.below(6))
            .flat_map(|turn| transaction(chance, &format!("{name}-{turn}")))
            .collect();
        let mut body = vec![0, 3, 0, 0];
        body.extend(format!("user\0{user}\0database\0{database}\0\0").bytes());
        let mut unsent = (body.len() as u32 + 4).to_be_bytes().to_vec();
        unsent.extend(body);
        Self {
            name,
            socket: None,
            thinks_until: Instant::default(),
            stalls_until: Instant::default(),
            unsent,
            steps,
            reference: Postgres::logged_in(),
            received: Vec::new(),
            greeted: false,
            compared: 0,
            done: false,
            lost: false,
            condemned: false,
        }
    }

    /// It has come to its end, good or bad.
    pub fn is_over(&self) -> bool {
        self.done || self.lost
    }

    /// Every answer has come, and nothing is half sent.
    pub fn is_between_steps(&self) -> bool {
        self.unsent.is_empty() && self.greeted && self.compared == self.reference.output.len()
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
            self.reference.receive(&self.unsent);
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
            self.received.drain(..end + 6);
        }
        // Message by message: the same byte may begin an answer and the news that there will be none.
        while let Some(length) = first_message(&self.received) {
            let got = &self.received[..length];
            let rest = &self.reference.output[self.compared..];
            if is_unasked(got) {
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

/// What a server may say at any time.
fn is_unasked(message: &[u8]) -> bool {
    matches!(message[0], b'N' | b'A' | b'S') && message.windows(7).any(|window| window == b"UNASKED")
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
    match chance.below(16) {
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
        14 => vec![(0..10).map(|_| query(&format!("ECHO {token}"))).collect::<Vec<_>>().concat()],
        _ => vec![query(""), query(&format!("NOTICE {token}"))],
    }
}
