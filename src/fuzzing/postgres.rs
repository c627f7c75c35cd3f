//! A model of PostgreSQL that answers when it is told to, and takes nearly valid messages as PostgreSQL does.

use super::client::Run;
use crate::wire::frame;
use crate::wire::frontend::{self, tag};
use bytes::BytesMut;
use std::collections::{BTreeMap, VecDeque};

/// One backend. Told are statements by their first words; everything else is a SELECT of one row.
#[derive(Default)]
pub(super) struct Postgres {
    run: Run,
    started: bool,
    input: Vec<u8>,
    /// Whole messages that it has not looked at.
    queue: VecDeque<(u8, Vec<u8>)>,
    /// What it has said and not flushed.
    output: BytesMut,
    /// How much of that left its buffer.
    flushed: usize,
    status: Status,
    skipping: bool,
    /// The message at hand is of the extended protocol: its error skips what follows.
    extended: bool,
    /// Messages of the extended protocol came after the last Sync.
    batch_open: bool,
    /// A batch has a transaction of its own, up to its Sync: newer releases tell so behind what is not of the batch.
    implicit: Option<bool>,
    copying: Option<Copying>,
    statements: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The unnamed statement is of the batch at hand.
    unnamed_is_new: bool,
    /// An error came in the batch that said it, or would have taken it away: who pools may have forgotten it since.
    unnamed_is_unknown: bool,
    portals: BTreeMap<Vec<u8>, Portal>,
    /// `TimeZone`, if it was set.
    zone: Option<String>,
    /// A session-level lock is held, or something is listened to.
    pub left: bool,
    /// Whose work it is at, as told by the tokens in it.
    tenant: Option<String>,
    /// It got a Sync within the data of a COPY, or something else behind data that it refused, or may have before it failed:
    /// nobody but PostgreSQL knows whether that is answered. Or it was asked for an unnamed statement that may be forgotten.
    pub doubtful: bool,
    /// The last COPY ended within its data.
    refused_data: bool,
    /// Its process is about to end, or it has nothing sensible to say any more.
    pub gone: bool,
    /// The fuzzer spoke for it: what it says proves nothing.
    pub lies: bool,
    /// It said something that answers nothing: nobody but who had it then may have it.
    pub broke: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Status {
    #[default]
    Idle,
    Transaction,
    Failed,
}

struct Copying {
    token: String,
    extended: bool,
    /// What of a simple query is still to be executed.
    rest: Vec<String>,
}

#[derive(Clone)]
struct Portal {
    text: String,
    parameters: Vec<Vec<u8>>,
    suspended: bool,
}

impl Postgres {
    /// One that waits for a startup packet.
    pub(super) fn new(run: Run) -> Self {
        Self { run, implicit: run.is_new_release().then_some(false), ..Self::default() }
    }

    /// One whose client has logged in already.
    pub(super) fn started(run: Run) -> Self {
        Self { started: true, ..Self::new(run) }
    }

    /// Bytes of a client. `heard` says that all it has answered has been received.
    pub(super) fn receive(&mut self, bytes: &[u8], heard: bool) {
        if self.gone {
            return;
        }
        if heard && self.is_at_rest() {
            self.tenant = None;
        }
        self.input.extend_from_slice(bytes);
        while let Some((tag, body)) = self.take_message() {
            if let Some(owner) = self.run.owner_in(&body) {
                let stranger = self.tenant.as_ref().filter(|tenant| **tenant != owner && !self.lies);
                assert!(
                    stranger.is_none(),
                    "{} of {owner} comes to a server at work for {stranger:?}",
                    char::from(tag)
                );
                assert!(
                    !self.broke || self.tenant.as_ref() == Some(&owner),
                    "{owner} gets a server that broke the protocol"
                );
                self.tenant = Some(owner);
            }
            if heard && is_dropped(tag) && self.rests() {
                // That is no work.
                self.tenant = None;
            }
            self.queue.push_back((tag, body));
        }
    }

    fn take_message(&mut self) -> Option<(u8, Vec<u8>)> {
        if !self.started {
            let length = u32::from_be_bytes(*self.input.first_chunk()?) as usize;
            if self.input.len() < length {
                return None;
            }
            self.input.drain(..length);
            self.started = true;
            self.greet();
        }
        let [tag, length @ ..] = *self.input.first_chunk::<5>()?;
        let length = u32::from_be_bytes(length);
        if length < 4 || length > frontend::longest(tag) {
            self.gone = true;
            return None;
        }
        let total = length as usize + 1;
        if self.input.len() < total {
            return None;
        }
        let message: Vec<u8> = self.input.drain(..total).collect();
        Some((tag, message[5..].to_vec()))
    }

    fn greet(&mut self) {
        self.put(b'R', &[&[0; 4]]);
        for status in [&b"TimeZone\0UTC\0"[..], b"application_name\0\0", b"server_version\0model\0"] {
            self.put(b'S', &[status]);
        }
        self.put(b'K', &[&[0, 0, 0, 9, 1, 2, 3, 4]]);
        self.ready();
    }

    pub(super) fn is_started(&self) -> bool {
        self.started
    }

    /// There are messages that it has not looked at.
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Its bytes end between two messages.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.input.is_empty()
    }

    /// It has nothing to answer, and its session is as if nobody had used it.
    pub(super) fn is_at_rest(&self) -> bool {
        self.rests() && self.input.is_empty()
    }

    /// The same, whatever has come of its next message.
    fn rests(&self) -> bool {
        let silent = self.copying.is_none() && self.queue.iter().all(|(tag, _)| is_dropped(*tag));
        let begun = self.skipping || self.batch_open || self.implicit == Some(true);
        let settled = self.started && silent && self.output.is_empty();
        settled && self.status == Status::Idle && !begun && !self.left
    }

    /// Looks at so many messages; what it says goes out where PostgreSQL flushes, or all of it.
    pub(super) fn answer(&mut self, messages: usize, flush: bool) -> Vec<u8> {
        for _ in 0..messages {
            let Some((tag, body)) = self.queue.pop_front().filter(|_| !self.gone) else { break };
            self.message(tag, &body);
        }
        if flush || self.gone {
            self.flush();
        }
        self.output.split_to(std::mem::take(&mut self.flushed)).to_vec()
    }

    fn flush(&mut self) {
        self.flushed = self.output.len();
    }

    fn put(&mut self, tag: u8, parts: &[&[u8]]) {
        frame::put(&mut self.output, tag, parts);
    }

    fn ready(&mut self) {
        let status = match self.status {
            Status::Idle if self.implicit == Some(true) => b"T",
            Status::Idle => b"I",
            Status::Transaction => b"T",
            Status::Failed => b"E",
        };
        self.put(b'Z', &[status]);
        self.flush();
        self.batch_open = false;
        self.unnamed_is_new = false;
        if self.status == Status::Idle && self.implicit != Some(true) {
            self.portals.clear();
        }
    }

    fn error(&mut self, code: &str, token: &str) {
        if self.status == Status::Transaction {
            self.status = Status::Failed;
        }
        self.set_implicit(false);
        let text = format!("SERROR\0VERROR\0C{code}\0M{token}\0\0");
        self.put(b'E', &[text.as_bytes()]);
        self.flush();
        self.skipping = self.extended;
        self.unnamed_is_unknown |= self.unnamed_is_new;
    }

    /// What it has said without a name so far is gone.
    fn drop_unnamed(&mut self) {
        self.statements.remove(&b""[..]);
        (self.unnamed_is_new, self.unnamed_is_unknown) = (false, false);
    }

    fn set_implicit(&mut self, is: bool) {
        self.implicit = self.implicit.map(|_| is);
    }

    /// The session cannot go on.
    fn fatal(&mut self) {
        self.put(b'E', &[b"SFATAL\0VFATAL\0C08P01\0Mlost\0\0"]);
        self.gone = true;
    }

    fn message(&mut self, tag: u8, body: &[u8]) {
        if let Some(copying) = self.copying.take() {
            return self.copy_message(copying, tag, body);
        }
        if self.skipping && !matches!(tag, tag::SYNC | tag::TERMINATE) {
            self.unnamed_is_unknown |= matches!(tag, tag::PARSE | tag::CLOSE | tag::QUERY);
            return;
        }
        let is_data = matches!(tag, tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL);
        self.doubtful |= self.refused_data && !is_data;
        self.extended =
            matches!(tag, tag::PARSE | tag::BIND | tag::DESCRIBE | tag::EXECUTE | tag::CLOSE | tag::FLUSH);
        self.batch_open |= self.extended && tag != tag::FLUSH;
        let done = match tag {
            tag::QUERY => self.query(body),
            tag::PARSE => self.parse(body),
            tag::BIND => self.bind(body),
            tag::DESCRIBE => self.describe(body),
            tag::EXECUTE => self.execute(body),
            tag::CLOSE => self.close(body),
            tag::FUNCTION_CALL => self.function(body),
            tag::FLUSH => {
                self.flush();
                Some(())
            }
            tag::SYNC => {
                self.skipping = false;
                self.set_implicit(false);
                self.ready();
                Some(())
            }
            tag::TERMINATE => {
                self.gone = true;
                Some(())
            }
            // Data of a COPY that is over.
            _ => Some(()),
        };
        if done.is_none() {
            self.error("08P01", "invalid message format");
            if matches!(tag, tag::QUERY | tag::FUNCTION_CALL) {
                self.ready();
            }
        }
    }

    fn query(&mut self, body: &[u8]) -> Option<()> {
        let (text, []) = split(body)? else { return None };
        self.drop_unnamed();
        let text = String::from_utf8_lossy(text).into_owned();
        let mut statements: Vec<String> =
            text.split(';').map(|each| each.trim().to_owned()).filter(|each| !each.is_empty()).collect();
        if statements.is_empty() {
            self.put(b'I', &[]);
        }
        statements.reverse();
        self.go_on(statements);
        Some(())
    }

    /// Executes the statements of a simple query, the last one first.
    fn go_on(&mut self, mut rest: Vec<String>) {
        while let Some(statement) = rest.pop() {
            if rows(&statement) && self.status != Status::Failed {
                self.put(b'T', &[&[0, 0]]);
            }
            if !self.run(&statement) {
                break;
            }
            if let Some(copying) = &mut self.copying {
                copying.rest = rest;
                return;
            }
        }
        self.ready();
    }

    fn parse(&mut self, body: &[u8]) -> Option<()> {
        let (name, rest) = split(body)?;
        let (text, types) = split(rest)?;
        let (count, types) = types.split_first_chunk()?;
        (types.len() == usize::from(u16::from_be_bytes(*count)) * 4).then_some(())?;
        let statement = String::from_utf8_lossy(text);
        let token = self.run.token_in(text);
        if name.is_empty() {
            self.drop_unnamed();
            self.unnamed_is_new = true;
        }
        if statement.starts_with("BAD") {
            self.error("42601", &token);
        } else if self.status == Status::Failed && !ends_transaction(&statement) && !statement.is_empty() {
            self.error("25P02", &token);
        } else if !name.is_empty() && self.statements.contains_key(name) {
            self.error("42P05", &token);
        } else {
            self.statements.insert(name.to_vec(), text.to_vec());
            self.put(b'1', &[]);
        }
        Some(())
    }

    fn bind(&mut self, body: &[u8]) -> Option<()> {
        let (portal, rest) = split(body)?;
        let (name, rest) = split(rest)?;
        let (formats, rest) = rest.split_first_chunk()?;
        let rest = rest.get(usize::from(u16::from_be_bytes(*formats)) * 2..)?;
        let (count, mut rest) = rest.split_first_chunk()?;
        let mut parameters = Vec::new();
        for _ in 0..u16::from_be_bytes(*count) {
            let (length, value) = rest.split_first_chunk()?;
            let length = u32::from_be_bytes(*length);
            let length = if length == u32::MAX { 0 } else { length as usize };
            parameters.push(value.get(..length)?.to_vec());
            rest = &value[length..];
        }
        let (formats, rest) = rest.split_first_chunk()?;
        (rest.len() == usize::from(u16::from_be_bytes(*formats)) * 2).then_some(())?;
        self.doubtful |= name.is_empty() && self.unnamed_is_unknown;
        let Some(text) = self.statements.get(name) else {
            self.error("26000", "no such statement");
            return Some(());
        };
        let text = String::from_utf8_lossy(text).into_owned();
        if self.status == Status::Failed && !ends_transaction(&text) && !text.is_empty() {
            self.error("25P02", "aborted");
        } else if !portal.is_empty() && self.portals.contains_key(portal) {
            self.error("42P03", "portal exists");
        } else {
            self.portals.insert(portal.to_vec(), Portal { text, parameters, suspended: false });
            self.put(b'2', &[]);
        }
        Some(())
    }

    fn describe(&mut self, body: &[u8]) -> Option<()> {
        let (kind, rest) = body.split_first()?;
        let (name, []) = split(rest)? else { return None };
        self.doubtful |= *kind == b'S' && name.is_empty() && self.unnamed_is_unknown;
        let text = match kind {
            b'S' => self.statements.get(name).map(|text| String::from_utf8_lossy(text).into_owned()),
            b'P' => self.portals.get(name).map(|portal| portal.text.clone()),
            _ => return None,
        };
        let Some(text) = text else {
            self.error("26000", "nothing of that name");
            return Some(());
        };
        if self.status == Status::Failed && rows(&text) {
            self.error("25P02", "aborted");
            return Some(());
        }
        if *kind == b'S' {
            self.put(b't', &[&[0, 0]]);
        }
        match rows(&text) {
            true => self.put(b'T', &[&[0, 0]]),
            false => self.put(b'n', &[]),
        }
        Some(())
    }

    fn execute(&mut self, body: &[u8]) -> Option<()> {
        let (name, limit) = split(body)?;
        let limit = u32::from_be_bytes(limit.try_into().ok()?);
        let Some(portal) = self.portals.get_mut(name) else {
            self.error("34000", "no such portal");
            return Some(());
        };
        let Portal { text, suspended, parameters } = portal.clone();
        if text.starts_with("select pg_catalog.set_config") {
            self.set_config(&parameters);
            return Some(());
        }
        let portal = self.portals.get_mut(name)?;
        if limit == 1 && rows(&text) && !suspended && self.status != Status::Failed {
            portal.suspended = true;
            self.row(&text);
            self.put(b's', &[]);
        } else if text.is_empty() {
            self.put(b'I', &[]);
        } else if self.run(&text) && self.status == Status::Idle && !ends_transaction(&text) {
            self.set_implicit(true);
        }
        Some(())
    }

    /// What pgpinion prepares to give a server the parameters of its client: a name and a value.
    fn set_config(&mut self, parameters: &[Vec<u8>]) {
        let [name, value] = parameters else { return self.error("08P01", "two parameters are expected") };
        if name == b"TimeZone" {
            self.set_zone(Some(String::from_utf8_lossy(value).into_owned()).filter(|zone| zone != UTC));
        }
        self.put(b'D', &[&[0, 1], &(value.len() as u32).to_be_bytes(), value]);
        self.complete("SELECT 1", "");
    }

    fn set_zone(&mut self, zone: Option<String>) {
        if zone != self.zone {
            self.put(b'S', &[b"TimeZone\0", zone.as_deref().unwrap_or(UTC).as_bytes(), b"\0"]);
            self.zone = zone;
        }
    }

    fn close(&mut self, body: &[u8]) -> Option<()> {
        let (kind, rest) = body.split_first()?;
        let (name, []) = split(rest)? else { return None };
        match kind {
            b'S' if name.is_empty() => self.drop_unnamed(),
            b'S' => drop(self.statements.remove(name)),
            b'P' => drop(self.portals.remove(name)),
            _ => return None,
        }
        self.put(b'3', &[]);
        Some(())
    }

    fn function(&mut self, body: &[u8]) -> Option<()> {
        body.first_chunk::<4>()?;
        match self.status {
            Status::Failed => self.error("25P02", "aborted"),
            _ => self.put(b'V', &[&[255; 4]]),
        }
        self.ready();
        Some(())
    }

    fn row(&mut self, text: &str) {
        let zone = self.zone.as_deref().unwrap_or(UTC);
        let value = format!("{} {zone}", self.run.token_in(text.as_bytes()));
        self.put(b'D', &[&[0, 1], &(value.len() as u32).to_be_bytes(), value.as_bytes()]);
    }

    fn complete(&mut self, command: &str, token: &str) {
        let space = if token.is_empty() { "" } else { " " };
        self.put(b'C', &[format!("{command}{space}{token}\0").as_bytes()]);
    }

    /// Executes one statement. False: it failed.
    fn run(&mut self, statement: &str) -> bool {
        let verb = statement.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        let token = self.run.token_in(statement.as_bytes());
        if self.status == Status::Failed && !ends_transaction(statement) {
            self.error("25P02", &token);
            return false;
        }
        match verb.as_str() {
            "FAIL" | "BAD" => {
                self.error("22012", &token);
                return false;
            }
            "BEGIN" => {
                self.status = Status::Transaction;
                self.complete("BEGIN", &token);
            }
            "COMMIT" | "ROLLBACK" => {
                self.status = Status::Idle;
                self.set_implicit(false);
                self.complete(&verb, &token);
            }
            "LISTEN" => {
                self.left = true;
                self.complete("LISTEN", &token);
            }
            "DISCARD" => {
                self.left = false;
                self.statements.retain(|name, _| name.is_empty());
                self.set_zone(None);
                self.complete("DISCARD ALL", "");
            }
            "DEALLOCATE" => {
                let name = statement.split(' ').nth(1).unwrap_or_default();
                if self.statements.remove(name.as_bytes()).is_none() {
                    self.error("26000", "no such statement");
                    return false;
                }
                self.complete("DEALLOCATE", "");
            }
            "SET" => {
                self.set_zone(Some(token));
                self.complete("SET", "");
            }
            "COPYOUT" => {
                self.put(b'H', &[&[0, 0, 0]]);
                self.put(b'd', &[token.as_bytes()]);
                self.put(b'c', &[]);
                self.complete("COPY", &token);
            }
            "COPYIN" => {
                self.put(b'G', &[&[0, 0, 0]]);
                self.flush();
                self.copying = Some(Copying { token, extended: self.extended, rest: Vec::new() });
            }
            // A trigger before the statement fails it: none of its data is looked at.
            "COPYNOT" => {
                self.put(b'G', &[&[0, 0, 0]]);
                self.error("P0001", &token);
                self.doubtful = true;
                return false;
            }
            _ => {
                self.left |= statement.contains("pg_advisory_lock");
                self.row(statement);
                self.complete("SELECT", &token);
            }
        }
        true
    }

    fn copy_message(&mut self, copying: Copying, tag: u8, body: &[u8]) {
        self.doubtful |= tag == tag::SYNC;
        self.refused_data = tag == tag::COPY_DATA && body.starts_with(b"bad");
        let failed = match tag {
            tag::COPY_DATA if body.starts_with(b"bad") => true,
            tag::COPY_FAIL => true,
            tag::COPY_DONE => false,
            tag::COPY_DATA | tag::FLUSH | tag::SYNC => {
                self.copying = Some(copying);
                return;
            }
            _ => return self.fatal(),
        };
        self.extended = copying.extended;
        match failed {
            true => self.error("22P04", &copying.token),
            false => self.complete("COPY", &copying.token),
        }
        match (copying.extended, failed) {
            (true, _) => {}
            (false, true) => self.ready(),
            (false, false) => self.go_on(copying.rest),
        }
    }
}

/// What sessions begin with.
const UTC: &str = "UTC";

/// A terminated string, and what follows it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// Data of a COPY that is over is dropped without a word.
fn is_dropped(tag: u8) -> bool {
    matches!(tag, tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL | tag::FLUSH)
}

fn ends_transaction(statement: &str) -> bool {
    matches!(statement.split(' ').next(), Some("COMMIT" | "ROLLBACK"))
}

/// The statement has a result of rows.
fn rows(statement: &str) -> bool {
    let verb = statement.split(' ').next().unwrap_or_default().to_ascii_uppercase();
    let none = [
        "",
        "FAIL",
        "BAD",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "LISTEN",
        "DISCARD",
        "DEALLOCATE",
        "SET",
        "COPYOUT",
        "COPYIN",
        "COPYNOT",
    ];
    !none.contains(&verb.as_str())
}
