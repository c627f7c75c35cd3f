//! The clients of a fuzzed shard: what they may say, and what they must be told.

use super::postgres::Postgres;
use crate::wire::{Framer, backend, frame, frontend};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// A run, as it is written in the tokens that name its clients. It follows from the input, which so cannot have them.
#[derive(Clone, Copy, Default)]
pub(super) struct Run(pub u32);

impl Run {
    fn prefix(self) -> String {
        format!("<{:08x}.", self.0)
    }

    /// Half of the runs are with a PostgreSQL of today.
    pub(super) fn is_new_release(self) -> bool {
        self.0 & 1 != 0
    }

    /// The first token in these bytes, or nothing.
    pub(super) fn token_in(self, bytes: &[u8]) -> String {
        let prefix = self.prefix();
        let Some(at) = bytes.windows(prefix.len()).position(|window| window == prefix.as_bytes()) else {
            return String::new();
        };
        let whole = bytes[at..].iter().position(|&byte| byte == b'>').map(|end| &bytes[at..=at + end]);
        // One that was cut runs into whatever follows.
        let is_token = |text: &&[u8]| text.len() <= TOKEN_BYTES_MAX && text.is_ascii() && !text.contains(&0);
        whole.filter(is_token).map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
    }

    /// The client that it names.
    pub(super) fn owner_in(self, bytes: &[u8]) -> Option<String> {
        let token = self.token_in(bytes);
        let owner = token.split('.').nth(1)?;
        owner.bytes().all(|byte| byte.is_ascii_alphanumeric()).then(|| owner.to_owned())
    }
}

/// A client: with a PostgreSQL of its own beside it, which says what it has to be told.
pub(super) struct Client {
    run: Run,
    pub name: String,
    tokens: usize,
    /// Of a message that was cut.
    pub tail: Vec<u8>,
    reference: Postgres,
    expected: VecDeque<(u8, Bytes)>,
    framer: Framer,
    input: Vec<u8>,
    /// It is in.
    welcome: bool,
    /// It was told an error that it did not ask for: its session must end.
    pub refused: bool,
    /// What it is told differs from what one PostgreSQL would say: a request was cancelled.
    pub differs: bool,
    /// Process id and key.
    pub cancel_key: Bytes,
    /// It was told something with this token in it.
    pub last_token: String,
}

impl Client {
    pub(super) fn new(run: Run, name: String) -> Self {
        Self {
            run,
            name,
            tokens: 0,
            tail: Vec::new(),
            reference: Postgres::started(run),
            expected: VecDeque::new(),
            framer: Framer::default(),
            input: Vec::new(),
            welcome: false,
            refused: false,
            differs: false,
            cancel_key: Bytes::new(),
            last_token: String::new(),
        }
    }

    pub(super) fn startup(&self, named: bool) -> Vec<u8> {
        let name = if named { format!("application_name\0{}\0", self.name) } else { String::new() };
        let body = format!("\0\x03\0\0user\0u\0database\0d\0{name}\0");
        [&(body.len() as u32 + 4).to_be_bytes()[..], body.as_bytes()].concat()
    }

    /// A token that nobody has seen yet.
    pub(super) fn token(&mut self) -> String {
        self.tokens += 1;
        format!("{}{}.{}>", self.run.prefix(), self.name, self.tokens)
    }

    /// Notes what it sends, and what PostgreSQL would say to that.
    pub(super) fn sends(&mut self, bytes: &[u8]) {
        self.reference.receive(bytes, true);
        let mut said = Bytes::from(self.reference.answer(usize::MAX, true));
        while let Some([tag, length @ ..]) = said.first_chunk::<5>().copied() {
            let message = said.split_to(u32::from_be_bytes(length) as usize + 1);
            if !is_aside(tag) {
                self.expected.push_back((tag, message.slice(5..)));
            }
        }
    }

    /// The stream is between two messages.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.tail.is_empty() && self.reference.is_at_boundary()
    }

    /// It said goodbye, or what no PostgreSQL would go on after.
    pub(super) fn is_over(&self) -> bool {
        self.reference.gone
    }

    /// Nobody can know how many answers it gets, and one may go down with its server.
    pub(super) fn is_doubtful(&self) -> bool {
        self.reference.doubtful
    }

    /// Reads what it is told. As long as the servers behave (`honest`), that is what PostgreSQL would say, and an error if
    /// its session must end.
    pub(super) fn receive(&mut self, bytes: &[u8], honest: bool) {
        let mut at = 0;
        loop {
            let segment = match self.framer.next(bytes, &mut at, backend::longest) {
                Ok(Some(segment)) => segment,
                Ok(None) => return,
                Err(error) => {
                    assert!(!honest, "{} is told what is no message: {error}", self.name);
                    return;
                }
            };
            self.input.extend_from_slice(segment.body_part(bytes));
            if segment.ends {
                let body = Bytes::from(std::mem::take(&mut self.input));
                self.read(segment.tag, body, honest);
            }
        }
    }

    fn read(&mut self, tag: u8, body: Bytes, honest: bool) {
        let token = self.run.token_in(&body);
        if !token.is_empty() {
            self.last_token = token;
        }
        let owner = self.run.owner_in(&body).filter(|owner| honest && *owner != self.name);
        assert!(owner.is_none(), "{} is told what is for {owner:?}: {body:?}", self.name);
        if !self.welcome {
            match tag {
                backend::tag::BACKEND_KEY_DATA => self.cancel_key = body,
                backend::tag::READY_FOR_QUERY => self.welcome = true,
                backend::tag::ERROR_RESPONSE => self.refused = true,
                _ => {}
            }
            return;
        }
        if is_aside(tag) || !honest || self.differs || self.is_doubtful() {
            return;
        }
        assert!(!self.refused, "{} is told {} behind its end: {body:?}", self.name, char::from(tag));
        match self.expected.pop_front() {
            Some((expected, of)) if expected == tag && is_alike(tag, &of, &body) => {}
            // A limit of ours, told before PostgreSQL would have the whole message: the session goes on.
            _ if tag == backend::tag::ERROR_RESPONSE && body.starts_with(b"SERROR\0VERROR\0C54000\0") => {
                self.differs = true;
            }
            _ if tag == backend::tag::ERROR_RESPONSE => self.refused = true,
            other => panic!("{} is told {} {body:?} instead of {other:?}", self.name, char::from(tag)),
        }
    }
}

/// May come at any time.
fn is_aside(tag: u8) -> bool {
    matches!(
        tag,
        backend::tag::NOTICE_RESPONSE | backend::tag::NOTIFICATION_RESPONSE | backend::tag::PARAMETER_STATUS
    )
}

fn is_alike(tag: u8, expected: &Bytes, told: &Bytes) -> bool {
    // Errors name statements by names of ours, and may be ours.
    tag == backend::tag::ERROR_RESPONSE || expected == told
}

/// Everything that a client may say, as PostgreSQL wants it.
pub(super) fn say(client: &mut Client, number: u8) -> Vec<u8> {
    let token = client.token();
    let query = |text: &str| frontend::query(&format!("{text} {token}")).to_vec();
    let put = |tag: u8, parts: &[&[u8]]| {
        let mut message = BytesMut::new();
        frame::put(&mut message, tag, parts);
        message.to_vec()
    };
    let parse = |name: &str, text: &str| {
        let body = format!("{name}\0{text} {token}\0\0\0");
        put(b'P', &[body.as_bytes()])
    };
    let bind = |portal: &str, name: &str| {
        let body = format!("{portal}\0{name}\0\0\0\0\x01\0\0\0{}{token}\0\0", char::from(token.len() as u8));
        put(b'B', &[body.as_bytes()])
    };
    let named = |tag: u8, kind: &str, name: &str| put(tag, &[kind.as_bytes(), name.as_bytes(), b"\0"]);
    let execute = |portal: &str, rows: u8| put(b'E', &[portal.as_bytes(), &[0, 0, 0, 0, rows]]);
    let bare = |tag: u8| put(tag, &[]);
    let shared = || put(b'P', &[b"s\0select shared\0\0\0"]);
    let batch = |text: &str| [parse("", text), bind("", ""), named(b'D', "P", ""), execute("", 0)].concat();
    match number {
        250..252 => return query("COPYNOT"),
        252.. => return batch("COPYNOT"),
        _ => {}
    }
    match number % MESSAGES {
        0 => query("select"),
        1 => query("BEGIN"),
        2 => query("COMMIT"),
        3 => query("ROLLBACK"),
        4 => query("FAIL"),
        5 => query("COPYIN"),
        6 => query("COPYOUT"),
        7 => query(&format!("select {token}; FAIL {token}; select")),
        8 => query(&format!("COPYIN {token}; select {token}; COPYIN {token}; select")),
        9 => frontend::query("").to_vec(),
        10 => query("LISTEN x"),
        11 => query("SET x"),
        12 => query("select pg_advisory_lock(1)"),
        13 => query(&format!("BEGIN {token}; select")),
        14 => parse("", "select"),
        15 => parse("a", "select"),
        16 => parse("b", "BEGIN"),
        17 => parse("c", "LISTEN x"),
        18 => parse("", "BAD"),
        19 => parse("a", "BAD"),
        20 => shared(),
        21 => bind("", ""),
        22 => bind("", "a"),
        23 => bind("p", "a"),
        24 => bind("", "b"),
        25 => bind("", "s"),
        26 => named(b'D', "S", "a"),
        27 => named(b'D', "S", "s"),
        28 => named(b'D', "P", ""),
        29 => execute("", 0),
        30 => execute("", 1),
        31 => execute("p", 0),
        32 => named(b'C', "S", "a"),
        33 => named(b'C', "S", "s"),
        34 => named(b'C', "P", "p"),
        35 => bare(b'S'),
        36 => bare(b'H'),
        37 => put(b'd', &[b"row ", token.as_bytes()]),
        38 => put(b'd', &[b"bad ", token.as_bytes()]),
        39 => bare(b'c'),
        40 => put(b'f', &[token.as_bytes(), b"\0"]),
        41 => put(b'F', &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]]),
        42 => bare(b'X'),
        43 => frontend::query("DEALLOCATE a").to_vec(),
        44 => [batch("select"), bare(b'S')].concat(),
        45 => [batch("FAIL"), batch("select"), bare(b'S')].concat(),
        46 => batch("COPYIN"),
        47 => [batch("BEGIN"), bare(b'S')].concat(),
        48 => [shared(), bind("", "s"), execute("", 0), bare(b'S')].concat(),
        49 => [bind("", "s"), named(b'D', "P", ""), execute("", 0), bare(b'S')].concat(),
        50 => [batch("select"), bare(b'H')].concat(),
        51 => put(b'd', &[&[b'x'; 20_000]]),
        52 => query(&format!("select {}", "x".repeat(20_000))),
        _ => [bind("", "a"), execute("", 0), bare(b'S'), query("select")].concat(),
    }
}

/// A run, a client, and a number.
const TOKEN_BYTES_MAX: usize = 32;

/// How many there are.
const MESSAGES: u8 = 54;

/// What ends whatever a client is in the middle of, and a query to be answered behind that, with its token.
pub(super) fn come_to_an_end(client: &mut Client) -> (Vec<u8>, String) {
    let end = [40, 35, 3].map(|number| say(client, number)).concat();
    let last = say(client, 0);
    let token = client.run.token_in(&last);
    ([end, last].concat(), token)
}
