//! A raw, blocking PostgreSQL client that trusts nobody.
//!
//! Each message is checked for its shape, each wait has a deadline, and every byte received goes through a token
//! scanner: a token that belongs to another client, anywhere in the stream, ends the test.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::random::Random;

/// Where to connect to.
#[derive(Clone, Debug)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    pub fn tcp(port: u16) -> Self {
        Address::Tcp((Ipv4Addr::LOCALHOST, port).into())
    }

    pub fn dial(&self) -> io::Result<Stream> {
        match self {
            Address::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, DEADLINE)?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Address::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path)?)),
        }
    }
}

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Some(timeout.max(Duration::from_millis(1)));
        match self {
            Stream::Tcp(stream) => stream.set_read_timeout(timeout),
            Stream::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    pub fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_write_timeout(Some(timeout)),
            Stream::Unix(stream) => stream.set_write_timeout(Some(timeout)),
        }
    }

    pub fn try_clone(&self) -> io::Result<Stream> {
        Ok(match self {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
        })
    }

    /// Small kernel buffers on our side, so that the other side's sends stop early.
    pub fn set_small_buffers(&self, bytes: usize) {
        let set = |fd: std::os::fd::BorrowedFd<'_>| {
            setsockopt(&fd, sockopt::RcvBuf, &bytes).and_then(|()| setsockopt(&fd, sockopt::SndBuf, &bytes))
        };
        match self {
            Stream::Tcp(stream) => set(stream.as_fd()),
            Stream::Unix(stream) => set(stream.as_fd()),
        }
        .expect("own socket");
    }

    /// Closes with a reset instead of an orderly end, where the socket knows such a thing.
    pub fn reset(self) {
        if let Stream::Tcp(stream) = &self {
            let now = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&stream.as_fd(), sockopt::Linger, &now).expect("own socket");
        }
    }

    /// Ends our direction only.
    pub fn finish_sending(&self) {
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(std::net::Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(std::net::Shutdown::Write),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a request did not end in ReadyForQuery.
#[derive(Debug)]
pub enum Fault {
    /// The connection ended; with the last error message received, if there was one.
    Closed(Option<PgError>),
    /// Nothing came in time: a hang.
    Timeout(Duration),
    /// The socket failed otherwise.
    Io(io::Error),
}

impl Fault {
    /// The SQLSTATE the server left with, or nothing.
    pub fn code(&self) -> &str {
        match self {
            Fault::Closed(Some(error)) => &error.code,
            _ => "",
        }
    }

    pub fn is_timeout(&self) -> bool {
        matches!(self, Fault::Timeout(_))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Closed(None) => write!(f, "closed without a word"),
            Fault::Closed(Some(error)) => write!(f, "closed after {error}"),
            Fault::Timeout(limit) => write!(f, "no message within {limit:?}"),
            Fault::Io(error) => write!(f, "{error}"),
        }
    }
}

/// An ErrorResponse.
#[derive(Clone, Debug)]
pub struct PgError {
    pub severity: String,
    pub code: String,
    pub message: String,
}

impl fmt::Display for PgError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.code, self.message)
    }
}

impl PgError {
    fn parse(body: &[u8]) -> Self {
        let mut error = PgError { severity: String::new(), code: String::new(), message: String::new() };
        for field in body.split(|&byte| byte == 0).filter(|field| !field.is_empty()) {
            let text = String::from_utf8_lossy(&field[1..]).into_owned();
            match field[0] {
                b'S' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                _ => {}
            }
        }
        error
    }
}

/// One message from the server.
#[derive(Clone, Debug)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Message {
    pub fn error(&self) -> PgError {
        PgError::parse(&self.body)
    }

    /// The values of a DataRow.
    pub fn row(&self) -> Vec<Option<Vec<u8>>> {
        let mut body = Fields(&self.body);
        let count = body.u16();
        (0..count)
            .map(|_| match body.u32() {
                u32::MAX => None,
                length => Some(body.take(length as usize).to_vec()),
            })
            .collect()
    }
}

/// Everything up to a ReadyForQuery.
#[derive(Debug, Default)]
pub struct Reply {
    /// The tags of all messages but asynchronous ones (notices, notifications, parameters).
    pub sequence: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Option<Vec<u8>>>>,
    pub commands: Vec<String>,
    pub errors: Vec<PgError>,
    pub notices: Vec<PgError>,
    pub notifications: Vec<(String, String)>,
    pub copied: Vec<u8>,
    pub status: u8,
}

impl Reply {
    pub fn text_rows(&self) -> Vec<Vec<String>> {
        let text = |value: &Option<Vec<u8>>| match value {
            Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            None => String::new(),
        };
        self.rows.iter().map(|row| row.iter().map(text).collect()).collect()
    }

    /// The one value of the one row.
    pub fn value(&self) -> String {
        assert!(self.errors.is_empty(), "{}", self.errors[0]);
        assert_eq!(self.rows.len(), 1, "one row: {}", self.sequence);
        self.text_rows().swap_remove(0).swap_remove(0)
    }

    /// The SQLSTATE of the first error, or nothing.
    pub fn code(&self) -> &str {
        self.errors.first().map_or("", |error| &error.code)
    }

    fn add(&mut self, message: &Message) {
        let body = &message.body;
        match message.tag {
            b'T' => self.columns = columns(body),
            b'D' => self.rows.push(message.row()),
            b'C' => self.commands.push(text(&body[..body.len() - 1])),
            b'E' => self.errors.push(message.error()),
            b'N' => self.notices.push(message.error()),
            b'A' => {
                let mut parts = body[4..].split(|&byte| byte == 0);
                let mut part = || text(parts.next().unwrap_or_default());
                self.notifications.push((part(), part()));
            }
            b'd' => self.copied.extend_from_slice(body),
            b'Z' => self.status = body[0],
            _ => {}
        }
        if !ASYNCHRONOUS.contains(&message.tag) {
            self.sequence.push(message.tag as char);
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    buffer: Vec<u8>,
    start: usize,
    timeout: Duration,
    strict: bool,
    tokens: Tokens,
    last_error: Option<PgError>,
    /// All ParameterStatus so far, in order.
    pub parameters: Vec<(String, String)>,
    /// The process id and key of BackendKeyData.
    pub key: Option<(u32, Vec<u8>)>,
}

impl Client {
    /// Dials, logs in with these startup parameters, and waits for ReadyForQuery.
    pub fn connect(address: &Address, parameters: &[(&str, &str)]) -> Result<Self, Fault> {
        let mut client = Self::dial(address)?;
        client.log_in(parameters)?;
        Ok(client)
    }

    /// The same with this minor version of protocol 3. All that was answered, too.
    pub fn connect_speaking(
        address: &Address,
        minor: u16,
        parameters: &[(&str, &str)],
    ) -> Result<(Self, Vec<Message>), Fault> {
        let mut client = Self::dial(address)?;
        client.send(&startup_of(PROTOCOL_3 | u32::from(minor), parameters))?;
        let mut greeting = Vec::new();
        while greeting.last().is_none_or(|message: &Message| message.tag != b'Z') {
            greeting.push(client.read()?);
        }
        Ok((client, greeting))
    }

    /// Dials and sends nothing.
    pub fn dial(address: &Address) -> Result<Self, Fault> {
        Ok(Self::over(address.dial().map_err(Fault::Io)?))
    }

    pub fn over(stream: Stream) -> Self {
        stream.set_write_timeout(DEADLINE).expect("own socket");
        Self {
            stream,
            buffer: Vec::new(),
            start: 0,
            timeout: DEADLINE,
            strict: true,
            tokens: Tokens::new(),
            last_error: None,
            parameters: Vec::new(),
            key: None,
        }
    }

    pub fn log_in(&mut self, parameters: &[(&str, &str)]) -> Result<(), Fault> {
        self.send(&startup(parameters))?;
        let reply = self.collect()?;
        assert_eq!(reply.status, b'I', "a login ends idle");
        Ok(())
    }

    /// What the server last said a parameter is.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().rev().find(|(each, _)| each == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The process id and key to cancel with.
    pub fn key(&self) -> (u32, Vec<u8>) {
        self.key.clone().expect("a login tells them")
    }

    /// How long each message may take from now on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Accept messages of any shape: for those that talk to servers that lie.
    pub fn set_lenient(&mut self) {
        self.strict = false;
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// A fresh token that only this client may ever read.
    pub fn token(&mut self) -> String {
        self.tokens.issue()
    }

    /// Forget the tokens of earlier requests: from now on their replies are foreign too.
    pub fn forget_tokens(&mut self) {
        self.tokens.legal.clear();
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        match self.stream.write_all(bytes) {
            Ok(()) => Ok(()),
            Err(error) if is_timeout(&error) => Err(Fault::Timeout(DEADLINE)),
            // What the server said before it closed tells more than the broken pipe.
            Err(error) => Err(self.last_words(error)),
        }
    }

    pub fn query(&mut self, statement: &str) -> Result<Reply, Fault> {
        self.send(&Frames::new().query(statement).0)?;
        self.collect()
    }

    /// Unnamed Parse, Bind, Describe, Execute, Sync with text parameters.
    pub fn extended(&mut self, statement: &str, parameters: &[&str]) -> Result<Reply, Fault> {
        self.send(&Frames::new().unnamed(statement, parameters).sync().0)?;
        self.collect()
    }

    /// Reads up to and with the next ReadyForQuery. CopyInResponse ends it too: the caller has the word.
    pub fn collect(&mut self) -> Result<Reply, Fault> {
        let mut reply = Reply::default();
        loop {
            let message = self.read()?;
            reply.add(&message);
            if message.tag == b'Z' || message.tag == b'G' {
                return Ok(reply);
            }
        }
    }

    /// The next message.
    pub fn read(&mut self) -> Result<Message, Fault> {
        let deadline = Instant::now() + self.timeout;
        let (tag, length) = self.read_header(deadline)?;
        while self.buffer.len() - self.start < length {
            self.receive(deadline)?;
        }
        let body = self.buffer[self.start..self.start + length].to_vec();
        self.start += length;
        let message = Message { tag, body };
        self.note(&message);
        if message.tag == b'R' && message.body.get(..4) != Some(&[0; 4]) {
            return Err(Fault::Io(io::Error::other("asked for a password")));
        }
        Ok(message)
    }

    /// The next message's tag and how long its body was; its bytes are given to `see` and not kept.
    pub fn read_past(&mut self, mut see: impl FnMut(&[u8])) -> Result<(u8, usize), Fault> {
        let (tag, length) = self.read_header(Instant::now() + self.timeout)?;
        let mut left = length;
        while left > 0 {
            if self.buffer.len() == self.start {
                self.receive(Instant::now() + self.timeout)?;
            }
            let now = left.min(self.buffer.len() - self.start);
            see(&self.buffer[self.start..self.start + now]);
            self.start += now;
            left -= now;
        }
        Ok((tag, length))
    }

    /// Fails if a byte arrives within `time`; a close is none.
    pub fn assert_silent(&mut self, time: Duration) {
        assert_eq!(self.buffer.len(), self.start, "bytes after the reply: {:?}", &self.buffer[self.start..]);
        match self.receive(Instant::now() + time) {
            Err(_) => {}
            Ok(()) => panic!("bytes after the reply: {:?}", &self.buffer[self.start..]),
        }
    }

    /// Reads until the other side closes; fails if it has not within `limit`. The last error it sent, if any.
    pub fn read_to_end(&mut self, limit: Duration) -> Option<PgError> {
        let deadline = Instant::now() + limit;
        self.strict = false;
        loop {
            self.timeout = deadline.saturating_duration_since(Instant::now());
            match self.read() {
                Ok(_) => {}
                Err(Fault::Closed(error)) => return error,
                Err(Fault::Timeout(_)) => panic!("still open after {limit:?}"),
                Err(Fault::Io(_)) => return self.last_error.clone(),
            }
        }
    }

    /// What comes within `limit`, messages or not, and whether the other side has closed then.
    pub fn bytes_within(&mut self, limit: Duration) -> (Vec<u8>, bool) {
        let deadline = Instant::now() + limit;
        loop {
            if let Err(fault) = self.receive(deadline) {
                return (self.buffer.split_off(self.start), !fault.is_timeout());
            }
        }
    }

    /// True if the other side has closed, or does within `limit`.
    pub fn is_closed_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            self.start = self.buffer.len();
            match self.receive(deadline) {
                Ok(()) => {}
                Err(Fault::Timeout(_)) => return false,
                Err(_) => return true,
            }
        }
    }

    /// An orderly goodbye.
    pub fn terminate(mut self) {
        let _ = self.send(&Frames::new().terminate().0);
    }

    /// Says goodbye and waits until the other side has closed.
    pub fn terminate_and_wait(mut self) {
        let _ = self.send(&Frames::new().terminate().0);
        assert!(self.is_closed_within(DEADLINE), "Terminate does not close");
    }

    /// Closes with a reset.
    pub fn reset(self) {
        self.stream.reset();
    }

    fn read_header(&mut self, deadline: Instant) -> Result<(u8, usize), Fault> {
        while self.buffer.len() - self.start < 5 {
            self.receive(deadline)?;
        }
        let header = &self.buffer[self.start..self.start + 5];
        let tag = header[0];
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        assert!(KNOWN.contains(&tag), "no such message from a server: {tag:#04x}, announcing {length} bytes");
        assert!((4..1 << 30).contains(&length), "message {:?} announces {length} bytes", tag as char);
        self.start += 5;
        Ok((tag, length - 4))
    }

    fn receive(&mut self, deadline: Instant) -> Result<(), Fault> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        self.stream.set_read_timeout(left).map_err(Fault::Io)?;
        let mut chunk = [0; RECEIVE_BYTES];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(Fault::Closed(self.last_error.clone())),
            Ok(count) => {
                if let Err(token) = self.tokens.scan(&chunk[..count]) {
                    panic!("client {:08x} reads a foreign token {token}", self.tokens.client);
                }
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(())
            }
            // A read with a timeout ends so when the process was stopped and goes on.
            Err(error) if error.kind() == ErrorKind::Interrupted => self.receive(deadline),
            Err(error) if is_timeout(&error) => Err(Fault::Timeout(self.timeout)),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                Err(Fault::Closed(self.last_error.clone()))
            }
            Err(error) => Err(Fault::Io(error)),
        }
    }

    fn last_words(&mut self, error: io::Error) -> Fault {
        self.timeout = Duration::from_millis(500);
        loop {
            match self.read() {
                Ok(_) => {}
                Err(Fault::Closed(words)) => return Fault::Closed(words),
                Err(_) => break,
            }
        }
        match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Fault::Closed(self.last_error.clone()),
            _ => Fault::Io(error),
        }
    }

    fn note(&mut self, message: &Message) {
        if self.strict {
            check_shape(message);
        }
        match message.tag {
            b'E' => self.last_error = Some(message.error()),
            b'S' => {
                let mut parts = message.body.split(|&byte| byte == 0);
                let mut part = || text(parts.next().unwrap_or_default());
                self.parameters.push((part(), part()));
            }
            b'K' => {
                let (process, key) = message.body.split_first_chunk().expect("a process id");
                self.key = Some((u32::from_be_bytes(*process), key.to_vec()));
            }
            b'Z' => self.last_error = None,
            _ => {}
        }
    }
}

/// Messages to a server, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Frames(pub Vec<u8>);

impl Frames {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn frame(mut self, tag: u8, parts: &[&[u8]]) -> Self {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.0.push(tag);
        self.0.extend_from_slice(&(length as u32 + 4).to_be_bytes());
        for part in parts {
            self.0.extend_from_slice(part);
        }
        self
    }

    pub fn query(self, statement: &str) -> Self {
        self.frame(b'Q', &[statement.as_bytes(), &[0]])
    }

    pub fn parse(self, name: &str, statement: &str) -> Self {
        self.frame(b'P', &[name.as_bytes(), &[0], statement.as_bytes(), &[0, 0, 0]])
    }

    /// Text parameters, text results.
    pub fn bind(self, portal: &str, statement: &str, parameters: &[&str]) -> Self {
        let mut values = Vec::new();
        for value in parameters {
            values.extend_from_slice(&(value.len() as u32).to_be_bytes());
            values.extend_from_slice(value.as_bytes());
        }
        let count = (parameters.len() as u16).to_be_bytes();
        self.frame(
            b'B',
            &[portal.as_bytes(), &[0], statement.as_bytes(), &[0, 0, 0], &count, &values, &[0, 0]],
        )
    }

    /// `S` for a statement, `P` for a portal.
    pub fn describe(self, kind: u8, name: &str) -> Self {
        self.frame(b'D', &[&[kind], name.as_bytes(), &[0]])
    }

    pub fn execute(self, portal: &str, rows_max: u32) -> Self {
        self.frame(b'E', &[portal.as_bytes(), &[0], &rows_max.to_be_bytes()])
    }

    pub fn close(self, kind: u8, name: &str) -> Self {
        self.frame(b'C', &[&[kind], name.as_bytes(), &[0]])
    }

    pub fn flush(self) -> Self {
        self.frame(b'H', &[])
    }

    pub fn sync(self) -> Self {
        self.frame(b'S', &[])
    }

    pub fn terminate(self) -> Self {
        self.frame(b'X', &[])
    }

    pub fn copy_data(self, bytes: &[u8]) -> Self {
        self.frame(b'd', &[bytes])
    }

    pub fn copy_done(self) -> Self {
        self.frame(b'c', &[])
    }

    pub fn copy_fail(self, reason: &str) -> Self {
        self.frame(b'f', &[reason.as_bytes(), &[0]])
    }

    /// Calls the function with this OID without arguments.
    pub fn function_call(self, oid: u32) -> Self {
        self.frame(b'F', &[&oid.to_be_bytes(), &[0; 4], &[0; 2]])
    }

    /// Parse, Bind, Describe and Execute of the unnamed statement.
    pub fn unnamed(self, statement: &str, parameters: &[&str]) -> Self {
        self.parse("", statement).bind("", "", parameters).describe(b'P', "").execute("", 0)
    }
}

/// A StartupMessage of protocol 3.0.
pub fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    startup_of(PROTOCOL_3, parameters)
}

/// A StartupMessage of this version: 16 bits of major, 16 of minor.
pub fn startup_of(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
    }
    body.push(0);
    packet(&body)
}

/// Asks for what the session with this key does to be cancelled, and waits until that was seen to.
pub fn cancel(address: &Address, key: &(u32, Vec<u8>)) {
    let mut asker = ask_to_cancel(address, key);
    assert!(asker.is_closed_within(DEADLINE), "a cancel request is not answered by closing");
}

/// Asks, and does not wait until that is dealt with.
pub fn ask_to_cancel(address: &Address, (process, key): &(u32, Vec<u8>)) -> Client {
    let body = [&CANCEL_REQUEST.to_be_bytes()[..], &process.to_be_bytes(), key].concat();
    let mut asker = Client::dial(address).expect("an address");
    asker.send(&packet(&body)).expect("open");
    asker
}

/// A message without a tag, as before a login.
pub fn packet(body: &[u8]) -> Vec<u8> {
    let mut packet = (body.len() as u32 + 4).to_be_bytes().to_vec();
    packet.extend_from_slice(body);
    packet
}

/// What may be read, and the scanner that looks for what may not.
///
/// A token is `~tK7q~`, then client, sequence and nonce of 8 hex digits each.
#[derive(Debug)]
struct Tokens {
    client: u32,
    sequence: u32,
    nonces: Random,
    legal: HashSet<String>,
    tail: Vec<u8>,
}

impl Tokens {
    fn new() -> Self {
        static CLIENTS: AtomicU32 = AtomicU32::new(1);
        let client = CLIENTS.fetch_add(1, Ordering::Relaxed);
        Self {
            client,
            sequence: 0,
            nonces: Random::new(u64::from(client)),
            legal: HashSet::new(),
            tail: Vec::new(),
        }
    }

    fn issue(&mut self) -> String {
        self.sequence += 1;
        let nonce = self.nonces.next() as u32;
        let token = format!("{TOKEN_PREFIX}{:08x}{:08x}{nonce:08x}", self.client, self.sequence);
        self.legal.insert(token.clone());
        token
    }

    /// `Err` with the token if one is not ours.
    fn scan(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.tail.is_empty() {
            let end = self.scan_whole(bytes)?;
            self.tail = bytes[end..].to_vec();
        } else {
            let mut joined = std::mem::take(&mut self.tail);
            joined.extend_from_slice(bytes);
            let end = self.scan_whole(&joined)?;
            self.tail = joined.split_off(end);
        }
        Ok(())
    }

    /// Checks each whole token; gives the position from which a token may continue in the next bytes.
    fn scan_whole(&self, bytes: &[u8]) -> Result<usize, String> {
        let prefix = TOKEN_PREFIX.as_bytes();
        let mut at = 0;
        while let Some(found) = bytes[at..].iter().position(|&byte| byte == prefix[0]) {
            at += found;
            let here = &bytes[at..];
            let seen = here.len().min(prefix.len());
            if here.len() < TOKEN_BYTES && here[..seen] == prefix[..seen] {
                return Ok(at);
            }
            if here.starts_with(prefix) {
                let token = String::from_utf8_lossy(&here[..TOKEN_BYTES]).into_owned();
                if !self.legal.contains(&token) {
                    return Err(token);
                }
            }
            at += 1;
        }
        Ok(bytes.len())
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().expect("two"))
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().expect("four"))
    }

    fn string(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|&byte| byte == 0).expect("a terminator");
        let text = self.take(end);
        self.take(1);
        text
    }
}

/// The lengths inside must agree with the length outside.
fn check_shape(message: &Message) {
    let mut body = Fields(&message.body);
    match message.tag {
        b'D' => {
            for _ in 0..body.u16() {
                let length = body.u32();
                if length != u32::MAX {
                    body.take(length as usize);
                }
            }
        }
        b'T' => {
            for _ in 0..body.u16() {
                body.string();
                body.take(18);
            }
        }
        b'C' => {
            body.string();
        }
        b'S' => {
            body.string();
            body.string();
        }
        b'A' => {
            body.take(4);
            body.string();
            body.string();
        }
        b'E' | b'N' => {
            while body.take(1) != [0] {
                body.string();
            }
        }
        b'Z' => assert!(matches!(body.take(1), b"I" | b"T" | b"E"), "{message:?}"),
        b'K' => {
            body.take(4);
            let key = body.0.len();
            assert!((4..=256).contains(&key), "a cancel key of {key} bytes");
            body.take(key);
        }
        b'1' | b'2' | b'3' | b'n' | b's' | b'I' | b'c' => {}
        _ => return,
    }
    assert!(body.0.is_empty(), "{:?} has {} bytes too many", message.tag as char, body.0.len());
}

fn columns(body: &[u8]) -> Vec<String> {
    let mut body = Fields(body);
    let count = body.u16();
    (0..count)
        .map(|_| {
            let name = text(body.string());
            body.take(18);
            name
        })
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// No request of these tests takes longer unless it says so.
pub const DEADLINE: Duration = Duration::from_secs(20);
const CANCEL_REQUEST: u32 = 80_877_102;
pub const PROTOCOL_3: u32 = 3 << 16;
pub const TOKEN_PREFIX: &str = "~tK7q~";
const TOKEN_BYTES: usize = TOKEN_PREFIX.len() + 24;
const RECEIVE_BYTES: usize = 64 * 1024;
const ASYNCHRONOUS: [u8; 3] = [b'N', b'A', b'S'];
const KNOWN: &[u8] = b"RKSZTDCEINA123tnsGHWcdVv";

#[test]
fn the_scanner_finds_tokens_across_reads() {
    let foreign = format!("~{}~", Tokens::new().issue());
    for cut in 0..foreign.len() {
        let mut tokens = Tokens::new();
        let own = format!("~{}~", tokens.issue());
        assert_eq!(tokens.scan(&own.as_bytes()[..cut]), Ok(()));
        assert_eq!(tokens.scan(&own.as_bytes()[cut..]), Ok(()));
        let parts = [&foreign[..cut], &foreign[cut..cut + 1], &foreign[cut + 1..]];
        let found = parts.iter().any(|part| tokens.scan(part.as_bytes()).is_err());
        assert!(found, "a foreign token cut at {cut} goes unseen");
    }
}
