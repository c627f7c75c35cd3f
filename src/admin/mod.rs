//! The console: what its commands mean, and what is answered.
//!
//! Pure. It reads the text of a simple query ([`parse`]), and makes tables of reports ([`show`]) and messages of tables
//! ([`Answer`]). Who may ask, where the reports come from, and what a reload does is the business of others.
//!
//! Names, tags and texts are PgBouncer's wherever the thing is, so that what operators have written for it works.

mod answer;
pub mod show;

pub use answer::{Answer, Table};

use crate::wire::frame::HEADER_BYTES;
use crate::wire::frontend::{longest, tag};
use crate::wire::{Refusal, SqlState};
use bytes::Bytes;

/// What an administrator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Nothing: an empty query.
    Empty,
    /// `SHOW QUOTA`: needs the reports of all shards.
    Quota,
    /// `SHOW SHARDS`: needs the reports of all shards.
    Shards,
    /// `SHOW CONFIG`.
    Config,
    /// `SHOW VERSION`.
    Version,
    /// `SHOW HELP`.
    Help,
    /// `SHOW` of a parameter that drivers ask for: its name and value.
    Parameter(&'static str, &'static str),
    /// `SET` of a parameter that drivers set: it has no effect.
    SetIgnored,
    /// `RELOAD`.
    Reload,
}

/// What stands at the beginning of a client's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Not a whole message yet.
    Incomplete,
    /// The text of a query, and the bytes that it took.
    Query(String, usize),
    /// The client says goodbye.
    Terminate,
    /// Nothing that the console understands: the session ends.
    Broken(Refusal),
}

/// Reads the first message.
pub fn read(bytes: &[u8]) -> Reading {
    let Some(&[kind, ref length @ ..]) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Reading::Incomplete;
    };
    let length = u32::from_be_bytes(*length) as usize;
    match kind {
        tag::TERMINATE => Reading::Terminate,
        tag::QUERY if length < 4 => Reading::Broken(bad_length(length)),
        tag::QUERY if length > COMMAND_BYTES_MAX => Reading::Broken(too_long(length)),
        tag::QUERY => match bytes.get(HEADER_BYTES..length + 1) {
            Some(body) => {
                let text = body.split(|&byte| byte == 0).next().unwrap_or_default();
                Reading::Query(String::from_utf8_lossy(text).into_owned(), length + 1)
            }
            None => Reading::Incomplete,
        },
        _ if longest(kind) > 0 => Reading::Broken(extended_protocol()),
        _ => Reading::Broken(bad_length(length)),
    }
}

/// Reads the text of a query: one command, in any case, with or without a semicolon.
///
/// # Errors
/// What to answer; the session goes on.
pub fn parse(text: &str) -> Result<Command, Refusal> {
    let text = text.trim().trim_end_matches(';').trim_end();
    let words: Vec<String> = text.split_whitespace().map(str::to_ascii_lowercase).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => Ok(Command::Empty),
        ["show" | "select", what] => show_command(what).ok_or_else(|| unknown(text)),
        ["show"] => Ok(Command::Help),
        ["reload"] => Ok(Command::Reload),
        ["set", ..] => set(text),
        _ => Err(unknown(text)),
    }
}

fn show_command(what: &str) -> Option<Command> {
    let parameter = || PARAMETERS.iter().find(|(name, _)| *name == what);
    match what {
        "quota" => Some(Command::Quota),
        "shards" => Some(Command::Shards),
        "config" => Some(Command::Config),
        "version" | "version()" => Some(Command::Version),
        "help" => Some(Command::Help),
        _ => parameter().map(|&(name, value)| Command::Parameter(name, value)),
    }
}

fn set(text: &str) -> Result<Command, Refusal> {
    let name: String =
        text[3..].trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    let known = PARAMETERS.iter().any(|(known, _)| known.eq_ignore_ascii_case(&name));
    if known || SET_ONLY.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
        return Ok(Command::SetIgnored);
    }
    let refusal =
        Refusal::new(SqlState::FEATURE_NOT_SUPPORTED, format!("cannot set '{name}' in the console"));
    Err(refusal
        .hint("Write it into the configuration file, then RELOAD; SHOW CONFIG tells what a reload applies."))
}

fn unknown(text: &str) -> Refusal {
    let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let refusal = Refusal::new(SqlState::SYNTAX_ERROR, format!("invalid command '{shown}', use SHOW HELP;"));
    refusal.hint(format!("Commands: {}.", COMMANDS.join(", ")))
}

/// What a client is told that may not use the console. The text is PgBouncer's.
pub fn not_allowed() -> Refusal {
    let refusal = Refusal::new(SqlState::INSUFFICIENT_PRIVILEGE, "not allowed");
    refusal.hint("The console is for admin_users.")
}

/// What a client is told that speaks the extended protocol. It ends the session, as PgBouncer does: who waits for the
/// answer to a Sync would wait for ever.
fn extended_protocol() -> Refusal {
    let text = "extended query protocol not supported by admin console";
    Refusal::new(SqlState::FEATURE_NOT_SUPPORTED, text).hint("Use simple queries, as psql does.")
}

fn bad_length(length: usize) -> Refusal {
    Refusal::new(SqlState::PROTOCOL_VIOLATION, format!("invalid frontend message of length {length}"))
}

fn too_long(bytes: usize) -> Refusal {
    let text = format!("a command of {bytes} bytes; at most {COMMAND_BYTES_MAX} are read");
    Refusal::new(SqlState::PROTOCOL_VIOLATION, text)
}

/// The answer to `RELOAD`. The text of the failure is PgBouncer's.
pub fn reloaded(good: bool) -> Bytes {
    if good {
        return Answer::default().complete("RELOAD");
    }
    let text = "RELOAD failed, see logs for additional details";
    Answer::default().error(&Refusal::new(SqlState::CONFIG_FILE_ERROR, text))
}

/// The parameters that a session begins with.
pub const STATUS: [(&str, &str); 7] = [
    ("server_version", concat!(env!("CARGO_PKG_VERSION"), "/pgpinion")),
    ("client_encoding", "UTF8"),
    ("server_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "GMT"),
    ("standard_conforming_strings", "on"),
    ("is_superuser", "on"),
];

/// All there are.
const COMMANDS: [&str; 6] =
    ["SHOW QUOTA", "SHOW SHARDS", "SHOW CONFIG", "SHOW VERSION", "SHOW HELP", "RELOAD"];

/// What drivers ask for at their start.
const PARAMETERS: [(&str, &str); 5] = [
    ("client_encoding", "UTF-8"),
    ("default_transaction_isolation", "read committed"),
    ("standard_conforming_strings", "on"),
    ("datestyle", "ISO"),
    ("timezone", "GMT"),
];

/// And what they set.
const SET_ONLY: [&str; 2] = ["application_name", "extra_float_digits"];

/// The longest command is far below; what is longer is data.
pub const COMMAND_BYTES_MAX: usize = 8192;

/// Of a command that does not exist, in the answer.
const SHOWN_CHARS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_in_any_form() {
        let table = [
            ("", Command::Empty),
            (" ;\n", Command::Empty),
            ("SHOW QUOTA", Command::Quota),
            ("show quota;", Command::Quota),
            ("select\n quota ;", Command::Quota),
            ("Show Shards", Command::Shards),
            ("SHOW CONFIG", Command::Config),
            ("SHOW VERSION", Command::Version),
            ("select version()", Command::Version),
            ("SHOW HELP;", Command::Help),
            ("SHOW", Command::Help),
            ("RELOAD;", Command::Reload),
            ("SHOW TimeZone", Command::Parameter("timezone", "GMT")),
            ("SET datestyle TO 'ISO'", Command::SetIgnored),
            ("set extra_float_digits=3", Command::SetIgnored),
        ];
        for (text, command) in table {
            assert_eq!(parse(text), Ok(command), "{text:?}");
        }
    }

    #[test]
    fn messages_are_read_when_they_are_whole() {
        let query = b"Q\0\0\0\x0bRELOAD\0rest";
        for cut in 0..12 {
            assert_eq!(read(&query[..cut]), Reading::Incomplete, "cut at {cut}");
        }
        assert_eq!(read(query), Reading::Query("RELOAD".into(), 12));
        assert_eq!(read(b"X\0\0\0\x04"), Reading::Terminate);
        for (bytes, code) in [
            (&b"P\0\0\0\x08"[..], SqlState::FEATURE_NOT_SUPPORTED),
            (b"S\0\0\0\x04", SqlState::FEATURE_NOT_SUPPORTED),
            (b"?\0\0\0\x04", SqlState::PROTOCOL_VIOLATION),
            (b"Q\0\0\0\x03", SqlState::PROTOCOL_VIOLATION),
            (b"Q\xff\xff\xff\xff", SqlState::PROTOCOL_VIOLATION),
        ] {
            let Reading::Broken(refusal) = read(bytes) else { panic!("{bytes:?}") };
            assert_eq!(refusal.code, code, "{bytes:?}");
        }
    }

    #[test]
    fn what_does_not_exist_is_told_with_what_does() {
        for text in ["SHOW", "SHOW POOLS", "RELOAD x", "BEGIN", "SHOW QUOTA; SHOW SHARDS", "\u{1F980}"] {
            let Err(refusal) = parse(text) else {
                assert_eq!(text, "SHOW", "{text:?} was understood");
                continue;
            };
            assert_eq!(refusal.code, SqlState::SYNTAX_ERROR);
            assert_eq!(refusal.message, format!("invalid command '{text}', use SHOW HELP;"));
            assert!(refusal.hint.unwrap().contains("SHOW QUOTA, SHOW SHARDS"));
        }
        let refusal = parse("SET max_client_conn = 5").unwrap_err();
        assert_eq!(refusal.message, "cannot set 'max_client_conn' in the console");
        assert!(parse(&"x".repeat(5000)).unwrap_err().message.len() < 200);
    }

    /// Whatever bytes come: an answer, and never more taken than there is.
    #[test]
    fn any_bytes_are_read() {
        let mut random = 1u64;
        for _ in 0..20_000 {
            let mut next = || {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) as usize
            };
            let body: Vec<u8> =
                (0..next() % 24).map(|_| b"sShHoOwWeTt \0;\xff\xc3\xa9=QR"[next() % 20]).collect();
            let mut bytes = vec![b'Q'];
            bytes.extend((body.len() as u32 + 4 + (next() % 3) as u32).to_be_bytes());
            bytes.extend(&body);
            match read(&bytes) {
                Reading::Query(text, used) => {
                    assert!(used <= bytes.len());
                    let _ = parse(&text);
                }
                Reading::Incomplete => assert_ne!(bytes[4] as usize, body.len() + 4),
                other => panic!("{bytes:?}: {other:?}"),
            }
            let _ = parse(&String::from_utf8_lossy(&body));
        }
    }
}
