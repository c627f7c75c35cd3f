//! A PostgreSQL server that does what the script says: one thread per connection.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::wire::Frames;

/// A listening fake; ends, with all its connections, when dropped.
#[derive(Debug)]
pub struct FakeServer {
    port: u16,
    stop: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    accepted: Arc<AtomicUsize>,
}

impl FakeServer {
    /// Runs `script` for each connection; the connection ends with it.
    pub fn start(script: impl Fn(FakeConnection) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let fake = Self {
            port: listener.local_addr().expect("bound").port(),
            stop: Arc::default(),
            connections: Arc::default(),
            accepted: Arc::default(),
        };
        let (stop, connections, accepted) =
            (fake.stop.clone(), fake.connections.clone(), fake.accepted.clone());
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let number = accepted.fetch_add(1, Ordering::Relaxed);
                stream.set_nodelay(true).expect("own socket");
                connections.lock().expect("lock").push(stream.try_clone().expect("a descriptor"));
                let script = Arc::clone(&script);
                std::thread::spawn(move || script(FakeConnection { stream, number, startup: Vec::new() }));
            }
        });
        fake
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections there were so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        for stream in self.connections.lock().expect("lock").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// One accepted connection.
#[derive(Debug)]
pub struct FakeConnection {
    stream: TcpStream,
    /// Counted from 0.
    pub number: usize,
    /// The body of the startup message, once read.
    pub startup: Vec<u8>,
}

impl FakeConnection {
    /// Reads the startup message, refusing encryption on the way. False if the other side leaves.
    pub fn read_startup(&mut self) -> bool {
        loop {
            let Some(length) = self.read_exact(4) else { return false };
            let length = u32::from_be_bytes(length.try_into().expect("four")) as usize;
            let Some(body) = self.read_exact(length - 4) else { return false };
            if body.len() == 4 {
                self.send(b"N");
                continue;
            }
            self.startup = body;
            return true;
        }
    }

    /// The whole login of a server that trusts everybody.
    pub fn log_in(&mut self) -> bool {
        self.read_startup() && self.send(&welcome(self.number))
    }

    /// Answers every statement by its own text until the other side leaves.
    pub fn serve(&mut self) {
        while let Some((tag, body)) = self.read_frame() {
            if !self.answer(tag, &body) {
                return;
            }
        }
    }

    /// Answers one message as `serve` does; false when the conversation is over.
    pub fn answer(&mut self, tag: u8, body: &[u8]) -> bool {
        match tag {
            b'Q' => self.send(&echo(&String::from_utf8_lossy(&body[..body.len() - 1]))),
            b'P' => self.send(&Frames::new().frame(b'1', &[]).0),
            b'B' => self.send(&Frames::new().frame(b'2', &[]).0),
            b'D' => self.send(&Frames::new().frame(b'n', &[]).0),
            b'C' => self.send(&Frames::new().frame(b'3', &[]).0),
            b'E' => self.send(&complete("SELECT 0")),
            b'S' => self.send(&ready(b'I')),
            b'X' => false,
            _ => true,
        }
    }

    /// The next message, or `None` at the end.
    pub fn read_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let header = self.read_exact(5)?;
        let length = u32::from_be_bytes(header[1..].try_into().expect("four")) as usize;
        Some((header[0], self.read_exact(length - 4)?))
    }

    /// False if the other side is gone.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// One byte per segment.
    pub fn dribble(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| {
            std::thread::sleep(Duration::from_micros(200));
            self.send(&[*byte])
        })
    }

    /// Waits until the other side closes; false if it has not within `limit`.
    pub fn is_closed_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut chunk = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.stream.set_read_timeout(Some(left)).expect("own socket");
            match self.stream.read(&mut chunk) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    fn read_exact(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }
}

impl Drop for FakeConnection {
    /// There is another descriptor of the socket: dropping this one would not close it.
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// AuthenticationOk to ReadyForQuery.
pub fn welcome(number: usize) -> Vec<u8> {
    let mut frames = Frames::new().frame(b'R', &[&[0; 4]]);
    for (name, value) in PARAMETERS {
        frames = frames.frame(b'S', &[name.as_bytes(), &[0], value.as_bytes(), &[0]]);
    }
    let key = [(number as u32 + 1000).to_be_bytes(), 7777_u32.to_be_bytes()].concat();
    [frames.frame(b'K', &[&key]).0, ready(b'I')].concat()
}

pub fn ready(status: u8) -> Vec<u8> {
    Frames::new().frame(b'Z', &[&[status]]).0
}

pub fn complete(tag: &str) -> Vec<u8> {
    Frames::new().frame(b'C', &[tag.as_bytes(), &[0]]).0
}

pub fn notice(text: &str) -> Vec<u8> {
    complaint(b'N', "NOTICE", "00000", text)
}

pub fn error(severity: &str, code: &str, text: &str) -> Vec<u8> {
    complaint(b'E', severity, code, text)
}

/// One row of one text column, complete and ready.
pub fn echo(value: &str) -> Vec<u8> {
    let frames = Frames::new()
        .frame(b'T', &[&[0, 1], b"echo\0", &[0; 6], &[0, 0, 0, 25], &[0xff; 2], &[0xff; 4], &[0; 2]])
        .frame(b'D', &[&[0, 1], &(value.len() as u32).to_be_bytes(), value.as_bytes()]);
    [frames.0, complete("SELECT 1"), ready(b'I')].concat()
}

fn complaint(tag: u8, severity: &str, code: &str, text: &str) -> Vec<u8> {
    let fields = format!("S{severity}\0V{severity}\0C{code}\0M{text}\0\0");
    Frames::new().frame(tag, &[fields.as_bytes()]).0
}

const PARAMETERS: [(&str, &str); 12] = [
    ("application_name", ""),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("default_transaction_read_only", "off"),
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("IntervalStyle", "postgres"),
    ("is_superuser", "off"),
    ("server_encoding", "UTF8"),
    ("server_version", "15.0"),
    ("standard_conforming_strings", "on"),
    ("TimeZone", "UTC"),
];
