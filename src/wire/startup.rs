//! What a client may send before it has logged in: a startup packet, or a request for encryption or cancelling.
//!
//! ```text
//!   0                    4         8
//!   +--------------------+---------+---------------------------------------
//!   | length (with self) | code    | startup: name\0 value\0 ... \0
//!   +--------------------+---------+---------------------------------------
//! ```

use crate::limits::{CANCEL_KEY_BYTES_MAX, STARTUP_BYTES_MAX};
use bytes::{BufMut, Bytes, BytesMut};
use std::fmt;

/// The first packet of a connection, or the next after a refused request for encryption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// The client wants a session.
    Startup(Startup),
    /// SSLRequest.
    Ssl,
    /// GSSENCRequest.
    Gss,
    /// CancelRequest: a process id and a key.
    Cancel {
        /// The process id of the BackendKeyData that the client was given.
        process: u32,
        /// Its key: 4 bytes in protocol 3.0, up to 256 in 3.2.
        key: Vec<u8>,
    },
}

/// A StartupMessage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// The minor version of protocol 3 asked for.
    pub minor: u16,
    /// In the order sent. A name that stands twice: PostgreSQL takes the last.
    pub parameters: Vec<(String, String)>,
}

impl Startup {
    /// The value of a parameter: the last, as PostgreSQL has it.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().rev().find(|(each, _)| each == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The minor version that is spoken with this client: what it asks for, or the newest one we know.
    pub fn negotiated_minor(&self) -> u16 {
        self.minor.min(MINOR_MAX)
    }

    /// Whether a replication connection is asked for, as PostgreSQL reads it: `database`, or a boolean.
    ///
    /// # Errors
    /// The value, if it is neither.
    pub fn replication(&self) -> Result<Option<Replication>, &str> {
        let Some(value) = self.get("replication") else { return Ok(None) };
        let is_prefix = |word: &str, least: usize| {
            (least..=word.len()).contains(&value.len()) && word[..value.len()].eq_ignore_ascii_case(value)
        };
        if value == "database" {
            Ok(Some(Replication::Logical))
        } else if value == "1" || is_prefix("true", 1) || is_prefix("yes", 1) || is_prefix("on", 2) {
            Ok(Some(Replication::Physical))
        } else if value == "0" || is_prefix("false", 1) || is_prefix("no", 1) || is_prefix("off", 2) {
            Ok(None)
        } else {
            Err(value)
        }
    }

    /// Options of the protocol itself that the client asks for, all unknown to us.
    pub fn protocol_options(&self) -> Vec<String> {
        let names = self.parameters.iter().map(|(name, _)| name);
        names.filter(|name| name.starts_with("_pq_.")).cloned().collect()
    }
}

/// What a replication connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// Changes of one database, decoded; and SQL.
    Logical,
    /// The write-ahead log and the files of the whole cluster. It belongs to no database.
    Physical,
}

/// Why bytes are no packet we can go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartupError {
    /// A length below 8 or above [`STARTUP_BYTES_MAX`].
    Length(u32),
    /// A major version other than 3.
    Version(u16, u16),
    /// The bytes of a TLS ClientHello: encryption without asking.
    DirectTls,
    /// The parameters are not terminated strings in pairs.
    Layout,
    /// A name or value is not UTF-8.
    Encoding,
    /// A CancelRequest that is too short for a process id, or with a key of this many bytes.
    Cancel(usize),
}

impl fmt::Display for StartupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "invalid length {length} of startup packet"),
            Self::Version(major, minor) => {
                write!(
                    f,
                    "unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{MINOR_MAX}"
                )
            }
            Self::DirectTls => f.write_str("received a TLS handshake, but this port does not speak TLS"),
            Self::Layout => f.write_str("invalid startup packet layout: expected terminator as last byte"),
            Self::Encoding => f.write_str("invalid startup packet: names and values must be UTF-8"),
            Self::Cancel(0) => f.write_str("invalid cancel request: no key"),
            Self::Cancel(bytes) => {
                write!(
                    f,
                    "invalid cancel request: a key of {bytes} bytes; there are at most {CANCEL_KEY_BYTES_MAX}"
                )
            }
        }
    }
}

impl std::error::Error for StartupError {}

/// Reads a packet from the beginning of `bytes`: the packet and its length in bytes, or `None` while it is not whole.
/// Errors are found as early as they can be, so that nobody waits for bytes that an impossible length announces.
///
/// # Errors
/// See [`StartupError`].
pub fn read(bytes: &[u8]) -> Result<Option<(Packet, usize)>, StartupError> {
    if bytes.starts_with(&TLS_HANDSHAKE) {
        return Err(StartupError::DirectTls);
    }
    let Some(length) = bytes.first_chunk() else { return Ok(None) };
    let announced = u32::from_be_bytes(*length);
    let length = announced as usize;
    if !(8..=STARTUP_BYTES_MAX).contains(&length) {
        return Err(StartupError::Length(announced));
    }
    let Some(packet) = bytes.get(4..length) else { return Ok(None) };
    let Some((code, body)) = packet.split_first_chunk() else { return Err(StartupError::Length(announced)) };
    let packet = match u32::from_be_bytes(*code) {
        SSL_REQUEST => Packet::Ssl,
        GSSENC_REQUEST => Packet::Gss,
        CANCEL_REQUEST => read_cancel(body)?,
        version => read_startup(version, body)?,
    };
    Ok(Some((packet, length)))
}

fn read_cancel(body: &[u8]) -> Result<Packet, StartupError> {
    let Some((process, key)) = body.split_first_chunk() else { return Err(StartupError::Cancel(0)) };
    if key.is_empty() || key.len() > CANCEL_KEY_BYTES_MAX {
        return Err(StartupError::Cancel(key.len()));
    }
    Ok(Packet::Cancel { process: u32::from_be_bytes(*process), key: key.to_vec() })
}

fn read_startup(version: u32, body: &[u8]) -> Result<Packet, StartupError> {
    let (major, minor) = ((version >> 16) as u16, version as u16);
    if major != 3 {
        return Err(StartupError::Version(major, minor));
    }
    let mut parameters = Vec::new();
    let mut rest = body;
    loop {
        let (name, after) = read_string(rest)?;
        if name.is_empty() {
            return if after.is_empty() {
                Ok(Packet::Startup(Startup { minor, parameters }))
            } else {
                Err(StartupError::Layout)
            };
        }
        let (value, after) = read_string(after)?;
        parameters.push((name.to_owned(), value.to_owned()));
        rest = after;
    }
}

fn read_string(bytes: &[u8]) -> Result<(&str, &[u8]), StartupError> {
    let end = bytes.iter().position(|&byte| byte == 0).ok_or(StartupError::Layout)?;
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| StartupError::Encoding)?;
    Ok((text, &bytes[end + 1..]))
}

/// A StartupMessage of protocol 3 in this minor version.
pub fn startup_message(minor: u16, parameters: &[(&str, &str)]) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u32(PROTOCOL_3_0 | u32::from(minor));
    for (name, value) in parameters {
        body.put_slice(name.as_bytes());
        body.put_u8(0);
        body.put_slice(value.as_bytes());
        body.put_u8(0);
    }
    body.put_u8(0);
    with_length(&body)
}

/// A CancelRequest.
pub fn cancel_request(process: u32, key: &[u8]) -> Bytes {
    let mut body = BytesMut::with_capacity(8 + key.len());
    body.put_u32(CANCEL_REQUEST);
    body.put_u32(process);
    body.put_slice(key);
    with_length(&body)
}

fn with_length(body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(body.len() + 4);
    bytes.put_u32(u32::try_from(body.len() + 4).unwrap_or(u32::MAX));
    bytes.put_slice(body);
    bytes.freeze()
}

/// The newest minor version of protocol 3 that we speak. From 2 on (PostgreSQL 18) cancel keys may be long; nothing else
/// differs. 1 was never used by anybody, and is like 0.
pub const MINOR_MAX: u16 = 2;

/// From this minor version on cancel keys may be longer than 4 bytes.
pub const MINOR_OF_LONG_KEYS: u16 = 2;

const PROTOCOL_3_0: u32 = 0x0003_0000;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
/// A TLS record of type handshake, version 3.x.
const TLS_HANDSHAKE: [u8; 2] = [0x16, 0x03];

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        with_length(&[&code.to_be_bytes(), body].concat()).to_vec()
    }

    #[test]
    fn a_startup_message_reads_back_at_its_last_byte_and_not_before() {
        let bytes = startup_message(2, &[("user", "a"), ("database", "b"), ("user", "c")]);
        for cut in 0..bytes.len() {
            assert_eq!(read(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
        let Ok(Some((Packet::Startup(startup), used))) = read(&bytes) else { panic!("not read") };
        assert_eq!((used, startup.minor), (bytes.len(), 2));
        assert_eq!(startup.get("user"), Some("c"), "the last one counts");
        assert_eq!(startup.get("database"), Some("b"));
    }

    #[test]
    fn bad_packets_are_told_apart() {
        let cases: &[(&str, Vec<u8>, StartupError)] = &[
            ("length 0", vec![0; 8], StartupError::Length(0)),
            ("length 4", vec![0, 0, 0, 4], StartupError::Length(4)),
            ("length 2^31", vec![0x80, 0, 0, 0], StartupError::Length(1 << 31)),
            ("http", b"GET / HTTP/1.1\r\n".to_vec(), StartupError::Length(0x4745_5420)),
            ("tls", vec![0x16, 0x03, 0x01, 0x02], StartupError::DirectTls),
            ("protocol 2", packet(0x0002_0000, b"x"), StartupError::Version(2, 0)),
            ("no terminator", packet(PROTOCOL_3_0, b"user\0a\0"), StartupError::Layout),
            ("name only", packet(PROTOCOL_3_0, b"user\0"), StartupError::Layout),
            ("behind the end", packet(PROTOCOL_3_0, b"user\0a\0\0x"), StartupError::Layout),
            ("latin1", packet(PROTOCOL_3_0, b"user\0\xe4\0\0"), StartupError::Encoding),
            ("protocol 4", packet(0x0004_0000, b"x"), StartupError::Version(4, 0)),
            ("cancel", packet(CANCEL_REQUEST, &[]), StartupError::Cancel(0)),
            ("cancel without a key", packet(CANCEL_REQUEST, &[0; 4]), StartupError::Cancel(0)),
            ("cancel with a long key", packet(CANCEL_REQUEST, &[0; 4 + 257]), StartupError::Cancel(257)),
        ];
        for (name, bytes, error) in cases {
            assert_eq!(read(bytes), Err(*error), "{name}");
        }
    }

    #[test]
    fn requests_are_recognised() {
        assert_eq!(read(&packet(SSL_REQUEST, b"")), Ok(Some((Packet::Ssl, 8))));
        assert_eq!(read(&packet(GSSENC_REQUEST, b"")), Ok(Some((Packet::Gss, 8))));
        for bytes in [1, 4, 32, 256] {
            let cancel = Packet::Cancel { process: 1, key: vec![7; bytes] };
            assert_eq!(read(&cancel_request(1, &vec![7; bytes])), Ok(Some((cancel, 12 + bytes))));
        }
    }

    #[test]
    fn replication_is_asked_for_in_postgresqls_words() {
        let asked = |value: &str| {
            let startup = Startup { minor: 0, parameters: vec![("replication".into(), value.into())] };
            startup.replication().map_err(str::to_owned)
        };
        assert_eq!(asked("database"), Ok(Some(Replication::Logical)));
        for value in ["true", "TRUE", "t", "tr", "on", "On", "yes", "y", "1"] {
            assert_eq!(asked(value), Ok(Some(Replication::Physical)), "{value}");
        }
        for value in ["false", "f", "off", "of", "OFF", "no", "n", "0"] {
            assert_eq!(asked(value), Ok(None), "{value}");
        }
        for value in ["", "o", "Database", "2", "truee", "logical", "\u{e4}\u{e4}"] {
            assert_eq!(asked(value), Err(value.to_owned()), "{value}");
        }
        assert_eq!(Startup::default().replication(), Ok(None));
    }

    #[test]
    fn a_minor_version_is_negotiated_down_to_the_newest_we_know() {
        for (asked, spoken) in [(0, 0), (1, 1), (2, 2), (3, 2), (9999, 2), (u16::MAX, 2)] {
            let Ok(Some((Packet::Startup(startup), _))) = read(&startup_message(asked, &[("user", "a")]))
            else {
                panic!("3.{asked} is not read");
            };
            assert_eq!((startup.minor, startup.negotiated_minor()), (asked, spoken));
        }
    }
}
