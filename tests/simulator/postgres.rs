//! A model of PostgreSQL: as much of the protocol chapter as a pooler can get wrong.

use std::collections::{BTreeMap, BTreeSet};

/// What one backend does with bytes.
pub struct Postgres {
    input: Vec<u8>,
    pub output: Vec<u8>,
    started: bool,
    status: Status,
    skipping: bool,
    /// The message at hand is of the extended protocol.
    extended: bool,
    copying: Option<Copying>,
    statement: Option<String>,
    portal: Option<String>,
    /// Statements with names.
    named: BTreeSet<String>,
    /// A bound set_config: name and value.
    setting: Option<(String, Option<String>)>,
    /// The session's parameters, and what was reported of them.
    parameters: BTreeMap<&'static str, String>,
    reported: BTreeMap<&'static str, String>,
    /// The parameters before the transaction that is open.
    before: Option<BTreeMap<&'static str, String>>,
    pub gone: bool,
    /// It lets nobody in, with this SQLSTATE.
    pub turns_away: Option<&'static str>,
    /// The client whose transaction is open, as named by its statements.
    owner: Option<String>,
    /// The client that has left something in the session.
    left: Option<String>,
    /// Leaving something is refused.
    pub refuses: bool,
    /// The newest minor version of the protocol that it speaks: PostgreSQL before 18 knows 0.
    newest: u8,
    /// It must be told something before anything else.
    awaits_introduction: bool,
    /// Everything that a pooler must never let happen.
    pub violations: Vec<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Status {
    #[default]
    Idle,
    Transaction,
    Failed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Copying {
    Simple,
    Extended,
}

impl Default for Postgres {
    fn default() -> Self {
        Self {
            input: Vec::new(),
            output: Vec::new(),
            started: false,
            status: Status::Idle,
            skipping: false,
            extended: false,
            copying: None,
            statement: None,
            portal: None,
            named: BTreeSet::new(),
            setting: None,
            parameters: defaults(),
            reported: defaults(),
            before: None,
            gone: false,
            turns_away: None,
            owner: None,
            left: None,
            refuses: false,
            newest: 2,
            awaits_introduction: false,
            violations: Vec::new(),
        }
    }
}

/// What a session begins with.
fn defaults() -> BTreeMap<&'static str, String> {
    [("TimeZone", "UTC"), ("application_name", ""), ("search_path", "public")]
        .map(|(name, value)| (name, value.to_owned()))
        .into()
}

impl Postgres {
    /// A backend that has just been started, and knows the minor versions of the protocol up to this one.
    pub fn new(newest: u8, awaits_introduction: bool) -> Self {
        Self { newest, awaits_introduction, ..Self::default() }
    }

    /// A backend whose client has logged in already: the reference that a client compares with.
    pub fn logged_in() -> Self {
        Self { started: true, ..Self::default() }
    }

    /// What the startup packet asks for.
    pub fn ask_for<'a>(&mut self, parameters: impl IntoIterator<Item = (&'static str, &'a str)>) {
        for (name, value) in parameters {
            self.parameters.insert(name, value.to_owned());
            self.reported.insert(name, value.to_owned());
        }
    }

    /// Nothing more has to be done before it is used.
    pub fn is_logged_in(&self) -> bool {
        self.started && !self.awaits_introduction
    }

    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        while !self.gone && self.step() {}
    }

    fn step(&mut self) -> bool {
        let header = if self.started { 5 } else { 4 };
        let Some(length) = self.input.get(header - 4..header) else { return false };
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize + header - 4;
        if self.input.len() < length {
            return false;
        }
        let message: Vec<u8> = self.input.drain(..length).collect();
        if self.started {
            self.message(message[0], &message[5..]);
        } else if let Some(code) = self.turns_away {
            self.put(b'E', format!("SFATAL\0VFATAL\0C{code}\0Mturned away\0\0").as_bytes());
            self.gone = true;
        } else {
            self.started = true;
            let minor = message[7].min(self.newest);
            if minor < message[7] {
                self.put(b'v', &[0, 3, 0, minor, 0, 0, 0, 0]);
            }
            self.put(b'R', &[0; 4]);
            self.put(b'S', b"server_version\0model\0");
            for (name, value) in self.reported.clone() {
                self.put(b'S', format!("{name}\0{value}\0").as_bytes());
            }
            let key: &[u8] = if minor >= 2 { &[2; 32] } else { &[0, 0, 0, 2] };
            self.put(b'K', &[&[0, 0, 0, 1], key].concat());
            self.ready();
        }
        true
    }

    fn message(&mut self, tag: u8, body: &[u8]) {
        if let Some(copying) = self.copying {
            return self.copy_message(copying, tag, body);
        }
        if self.skipping && !matches!(tag, b'S' | b'X') {
            return;
        }
        self.extended = tag != b'Q';
        let text = String::from_utf8_lossy(body).trim_end_matches('\0').to_owned();
        let introduced = tag == b'Q' && text == "CONNECT now";
        if introduced != std::mem::take(&mut self.awaits_introduction) && tag != b'X' {
            self.violations.push(format!("{text:?} is the first message, or the introduction a later one"));
        }
        match tag {
            b'Q' => self.simple(&text),
            b'P' if body[0] != 0 => self.parse_named(body),
            b'B' if body[1] != 0 => self.bind_named(body),
            b'E' if self.setting.is_some() => self.set_config(),
            b'C' if body[0] == b'S' && body[1] != 0 => {
                self.named.remove(text.trim_start_matches('S'));
                self.put(b'3', b"");
            }
            b'P' if self.refuses && text.contains("LISTEN") => self.refuse(),
            b'P' => {
                self.statement = Some(text.trim_matches('\0').to_owned());
                if text.contains("BADPARSE") { self.error("syntax") } else { self.put(b'1', b"") }
            }
            b'B' => match self.statement.clone() {
                Some(statement) => {
                    self.portal = Some(statement);
                    self.put(b'2', b"");
                }
                None => self.error("no statement"),
            },
            b'D' => self.put(b'T', b"\0\0"),
            b'E' => {
                if let Some(portal) = self.portal.clone() {
                    self.execute(&portal, Some(Copying::Extended));
                } else {
                    self.error("no portal");
                }
            }
            b'C' => self.put(b'3', b""),
            b'H' | b'd' | b'c' | b'f' => {}
            b'S' => {
                self.skipping = false;
                self.ready();
            }
            b'X' => self.gone = true,
            _ => self.violations.push(format!("message type {tag}")),
        }
    }

    /// The only named statement there is: set_config.
    fn parse_named(&mut self, body: &[u8]) {
        let name = until_zero(body);
        if !self.named.insert(name.clone()) {
            self.violations.push(format!("statement {name} exists"));
        }
        self.put(b'1', b"");
    }

    fn bind_named(&mut self, body: &[u8]) {
        let name = until_zero(&body[1..]);
        if name == "pgpinion_" {
            return self.error("no such statement");
        }
        if !self.named.contains(&name) {
            self.violations.push(format!("statement {name} does not exist"));
        }
        let mut rest = &body[1 + name.len() + 1 + 4..];
        let mut value = || {
            let length = u32::from_be_bytes(rest[..4].try_into().unwrap());
            let here = if length == u32::MAX { 0 } else { length as usize };
            let text = String::from_utf8(rest[4..4 + here].to_vec()).unwrap();
            rest = &rest[4 + here..];
            (length != u32::MAX).then_some(text)
        };
        let name = value().unwrap();
        self.setting = Some((name, value()));
        self.put(b'2', b"");
    }

    fn set_config(&mut self) {
        let Some((name, value)) = self.setting.take() else { return };
        if self.status != Status::Idle {
            self.violations.push(format!("{name} set in a transaction"));
        }
        let known = defaults().into_keys().find(|known| *known == name);
        let Some(name) = known else { return self.error("no such parameter") };
        let value = value.unwrap_or_else(|| defaults()[name].clone());
        let row = [&[0, 1], &(value.len() as u32).to_be_bytes()[..], value.as_bytes()].concat();
        self.parameters.insert(name, value);
        self.put(b'D', &row);
        self.put(b'C', b"SELECT 1\0");
    }

    fn simple(&mut self, text: &str) {
        if self.refuses && text.contains("LISTEN") {
            self.refuse();
            return self.ready();
        }
        for statement in text.split(';').filter(|statement| !statement.is_empty()) {
            if !self.execute(statement, Some(Copying::Simple)) {
                break;
            }
            if self.copying.is_some() {
                return;
            }
        }
        if text.is_empty() {
            self.put(b'I', b"");
        }
        if self.copying.is_none() {
            self.ready();
        }
    }

    /// Executes `VERB token`. False: an error.
    fn execute(&mut self, statement: &str, copying: Option<Copying>) -> bool {
        let (verb, token) = statement.split_once(' ').unwrap_or((statement, ""));
        if verb == "pgpinion" {
            self.error("syntax");
            return false;
        }
        let token = token.strip_prefix("application_name = ").unwrap_or(token);
        let client = token.split('-').next().unwrap_or_default().to_owned();
        if self.status != Status::Idle && !client.is_empty() {
            match &self.owner {
                Some(owner) if *owner != client => {
                    self.violations.push(format!("{statement} within the transaction of {owner}"));
                }
                _ => {}
            }
        }
        if let Some(left) =
            self.left.as_ref().filter(|left| **left != client && !client.is_empty() && verb != "DISCARD")
        {
            self.violations.push(format!("{statement} finds what {left} left"));
        }
        if self.status == Status::Failed && !matches!(verb, "ROLLBACK" | "COMMIT") {
            self.error("aborted");
            return false;
        }
        match verb {
            "BEGIN" => {
                if self.status != Status::Idle {
                    self.violations.push(format!("{statement} within a transaction"));
                }
                self.status = Status::Transaction;
                self.before = Some(self.parameters.clone());
                self.owner = Some(client);
                self.put(b'C', b"BEGIN\0");
            }
            "COMMIT" | "ROLLBACK" => {
                let before =
                    self.before.take().filter(|_| verb == "ROLLBACK" || self.status == Status::Failed);
                if let Some(name) = before.and_then(|mut before| before.remove("application_name")) {
                    self.parameters.insert("application_name", name);
                }
                self.status = Status::Idle;
                self.owner = None;
                self.put(b'C', format!("{verb}\0").as_bytes());
            }
            "DISCARD" => {
                self.parameters = defaults();
                self.named.clear();
                self.left = None;
                self.put(b'C', b"DISCARD ALL\0");
            }
            "SHOW" | "SHOWZONE" => {
                let name = if verb == "SHOW" { "application_name" } else { "TimeZone" };
                let value = self.parameters[name].clone();
                self.put(b'D', value.as_bytes());
                self.put(b'C', b"SHOW\0");
            }
            "CONNECT" => self.put(b'C', b"SET\0"),
            "ECHO" => {
                self.put(b'D', token.as_bytes());
                self.put(b'C', b"SELECT 1\0");
            }
            "MANY" => {
                for row in 0..200 {
                    self.put(b'D', format!("{token}-{row}").as_bytes());
                }
                // Now and then one that is heard of in large pieces.
                let dice = token.bytes().fold(0, |sum, byte| sum % (1 << 40) * 31 + u64::from(byte));
                let length = if dice % 50 == 0 { 60_000 + dice as usize % 120_000 } else { 0 };
                self.put(b'D', [token.as_bytes(), &vec![b'-'; length]].concat().as_slice());
                self.put(b'C', b"SELECT 201\0");
            }
            "NOTICE" => {
                self.put(b'N', format!("SNOTICE\0M{token}\0\0").as_bytes());
                self.put(b'C', b"DO\0");
            }
            "SET" => {
                self.parameters.insert("application_name", token.to_owned());
                self.put(b'C', b"SET\0");
            }
            "LISTEN" => {
                self.left = Some(client);
                self.put(b'C', b"LISTEN\0");
            }
            "FAIL" => {
                self.error(token);
                return false;
            }
            "COPYOUT" => {
                self.put(b'H', &[0, 0, 0]);
                for _ in 0..5 {
                    self.put(b'd', token.as_bytes());
                }
                self.put(b'c', b"");
                self.put(b'C', b"COPY 5\0");
            }
            "COPYIN" => {
                self.put(b'G', &[0, 0, 0]);
                self.copying = copying;
            }
            _ => {
                self.error("syntax");
                return false;
            }
        }
        true
    }

    fn copy_message(&mut self, copying: Copying, tag: u8, body: &[u8]) {
        let outcome = match tag {
            b'd' if body == b"bad" => Err("bad data"),
            b'd' | b'S' | b'H' => return,
            b'c' => Ok(()),
            b'f' => Err("copy failed"),
            _ => {
                self.gone = true;
                return;
            }
        };
        self.copying = None;
        match outcome {
            Ok(()) => self.put(b'C', b"COPY 1\0"),
            Err(text) => {
                self.extended = copying == Copying::Extended;
                self.error(text);
            }
        }
        if copying == Copying::Simple {
            self.ready();
        }
    }

    fn refuse(&mut self) {
        self.error_of("0A000", "refused");
    }

    fn error(&mut self, text: &str) {
        self.error_of("42601", text);
    }

    fn error_of(&mut self, code: &str, text: &str) {
        if self.status == Status::Transaction {
            self.status = Status::Failed;
        }
        self.put(b'E', format!("SERROR\0VERROR\0C{code}\0M{text}\0\0").as_bytes());
        // In the simple protocol an error ends the query; in the extended one the rest is skipped.
        self.skipping = self.extended;
    }

    /// It says something that nobody asked for.
    pub fn speak(&mut self, number: usize) {
        match number % 3 {
            0 => self.put(b'N', b"SNOTICE\0MUNASKED\0\0"),
            1 => self.put(b'A', b"\0\0\0\x01UNASKED\0\0"),
            _ => {
                self.put(b'S', b"search_path\0UNASKED\0");
                self.parameters.insert("search_path", "UNASKED".into());
                self.reported.insert("search_path", "UNASKED".into());
            }
        }
    }

    pub fn die(&mut self, politely: bool) {
        if politely && self.started {
            self.put(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0");
        }
        self.gone = true;
    }

    fn ready(&mut self) {
        for (name, value) in self.parameters.clone() {
            if self.reported.insert(name, value.clone()) != Some(value.clone()) {
                self.put(b'S', format!("{name}\0{value}\0").as_bytes());
            }
        }
        let status = match self.status {
            Status::Idle => b"I",
            Status::Transaction => b"T",
            Status::Failed => b"E",
        };
        self.put(b'Z', status);
    }

    fn put(&mut self, tag: u8, body: &[u8]) {
        self.output.push(tag);
        self.output.extend((body.len() as u32 + 4).to_be_bytes());
        self.output.extend_from_slice(body);
    }
}

pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn until_zero(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}
