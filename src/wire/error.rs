//! SQLSTATEs, and the errors we send ourselves.

use bytes::{BufMut, Bytes, BytesMut};
use std::borrow::Cow;
use std::fmt::{self, Write};

/// A five-character code (PostgreSQL documentation, Appendix A).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// 08P01: somebody broke the protocol.
    pub const PROTOCOL_VIOLATION: Self = Self(*b"08P01");
    /// 08006: the connection to the server broke, or could not be made.
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    /// 0A000: what was asked for does not exist here.
    pub const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    /// 22023: a parameter of the startup packet has a value that does not exist.
    pub const INVALID_PARAMETER_VALUE: Self = Self(*b"22023");
    /// 25P03: a transaction was left open too long.
    pub const IDLE_IN_TRANSACTION_TIMEOUT: Self = Self(*b"25P03");
    /// 28000: this user may not.
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    /// 3D000: no such database.
    pub const INVALID_CATALOG_NAME: Self = Self(*b"3D000");
    /// 42601: what was said cannot be read.
    pub const SYNTAX_ERROR: Self = Self(*b"42601");
    /// 42501: an operation that this route refuses.
    pub const INSUFFICIENT_PRIVILEGE: Self = Self(*b"42501");
    /// 53300: a limit on connections.
    pub const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    /// 57014: somebody asked to cancel this.
    pub const QUERY_CANCELED: Self = Self(*b"57014");
    /// 54000: more than a client may keep.
    pub const PROGRAM_LIMIT_EXCEEDED: Self = Self(*b"54000");
    /// 57P01: the administrator ends this connection.
    pub const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    /// 57P03: the server is starting up, or shutting down.
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    /// 57P05: the client was idle too long.
    pub const IDLE_SESSION_TIMEOUT: Self = Self(*b"57P05");
    /// F0000: a configuration file that cannot be used.
    pub const CONFIG_FILE_ERROR: Self = Self(*b"F0000");
    /// XX000: our own fault.
    pub const INTERNAL_ERROR: Self = Self(*b"XX000");

    /// The code in a field of an ErrorResponse, if it has the right length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The five characters.
    pub fn as_bytes(&self) -> &[u8; 5] {
        &self.0
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why we refuse a client or end its session, in words it may read. FATAL, unless it is [said](Refusal::to_error) of one
/// statement only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The SQLSTATE.
    pub code: SqlState,
    /// What happened.
    pub message: Cow<'static, str>,
    /// What to do about it.
    pub hint: Option<Cow<'static, str>>,
    /// Particulars, such as the last error of the server.
    pub detail: Option<Cow<'static, str>>,
}

impl Refusal {
    /// A refusal with nothing but a message.
    pub fn new(code: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), hint: None, detail: None }
    }

    /// The same with advice.
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with particulars.
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// As the ErrorResponse that ends the session. `context` (the ids of session and connection) goes into its `W` field.
    pub fn to_message(&self, context: &str) -> Bytes {
        self.render(b"FATAL", context)
    }

    /// As the ErrorResponse to a query: the session goes on.
    pub fn to_error(&self) -> Bytes {
        self.render(b"ERROR", "")
    }

    fn render(&self, severity: &[u8], context: &str) -> Bytes {
        let mut body = BytesMut::with_capacity(128);
        let mut field = |kind: u8, text: &[u8]| {
            body.put_u8(kind);
            body.extend(text.iter().filter(|&&byte| byte != 0));
            body.put_u8(0);
        };
        field(b'S', severity);
        field(b'V', severity);
        field(b'C', self.code.as_bytes());
        field(b'M', self.message.as_bytes());
        if let Some(detail) = &self.detail {
            field(b'D', detail.as_bytes());
        }
        if let Some(hint) = &self.hint {
            field(b'H', hint.as_bytes());
        }
        if !context.is_empty() {
            field(b'W', context.as_bytes());
        }
        body.put_u8(0);
        super::backend::message(super::backend::tag::ERROR_RESPONSE, &body)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

/// A server's error as the last thing a session hears: the body of its ErrorResponse, made FATAL.
pub fn as_fatal(body: &[u8]) -> Bytes {
    let mut fatal = BytesMut::with_capacity(body.len() + 8);
    for field in body.split(|&byte| byte == 0).take_while(|field| !field.is_empty()) {
        match field[0] {
            kind @ (b'S' | b'V') => fatal.extend_from_slice(&[&[kind], &b"FATAL"[..]].concat()),
            _ => fatal.extend_from_slice(field),
        }
        fatal.put_u8(0);
    }
    fatal.put_u8(0);
    super::backend::message(super::backend::tag::ERROR_RESPONSE, &fatal)
}

/// The fields of an ErrorResponse or NoticeResponse that a log line or a decision needs. Missing ones are empty:
/// a server may leave out any of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// `V` where there is one, else `S`: ERROR, FATAL, PANIC, WARNING, NOTICE, ...
    pub severity: String,
    /// `C`: the SQLSTATE.
    pub code: String,
    /// `M`: the primary message.
    pub message: String,
}

impl Report {
    /// Reads the body of an ErrorResponse or NoticeResponse as far as it makes sense.
    pub fn read(body: &[u8]) -> Self {
        let mut report = Self::default();
        for field in body.split(|&byte| byte == 0) {
            let Some((kind, text)) = field.split_first() else { break };
            let text = || String::from_utf8_lossy(text).into_owned();
            match kind {
                b'V' => report.severity = text(),
                b'S' if report.severity.is_empty() => report.severity = text(),
                b'C' => report.code = text(),
                b'M' => report.message = text(),
                _ => {}
            }
        }
        report
    }

    /// The session ends with this.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.severity, self.code)?;
        self.message.chars().take(SHOWN_CHARS_MAX).try_for_each(|each| f.write_char(each))
    }
}

/// Of a message in the log: a server may say a lot, and quickly.
const SHOWN_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_back_as_a_report() {
        let message = Refusal::new(SqlState::TOO_MANY_CONNECTIONS, "no\0room").to_message("session 0.1");
        assert_eq!(message[0], b'E');
        let report = Report::read(&message[5..]);
        assert_eq!(report.to_string(), "FATAL 53300: noroom");
        assert!(report.is_fatal());
        let error = Refusal::new(SqlState::QUERY_CANCELED, "stop").to_error();
        assert!(!Report::read(&error[5..]).is_fatal());
    }

    #[test]
    fn an_error_becomes_fatal() {
        let message = as_fatal(b"SFEHLER\0VERROR\0C22023\0Mno\0\0");
        assert_eq!(&message[5..], b"SFATAL\0VFATAL\0C22023\0Mno\0\0");
        assert_eq!(&as_fatal(b"")[..], b"E\0\0\0\x05\0");
    }

    #[test]
    fn a_report_without_fields_is_empty() {
        assert_eq!(Report::read(b"\0"), Report::default());
        assert_eq!(Report::read(b""), Report::default());
        assert_eq!(Report::read(b"Mno end").message, "no end");
    }
}
