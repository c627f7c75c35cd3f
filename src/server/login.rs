//! Logging in to PostgreSQL: what it asks, what we answer. Knows the protocol, computes nothing that takes long.
//!
//! ```text
//!   StartupMessage -> [v] -> [R challenge -> answer]* -> R ok -> S* K -> Z [-> connect_query -> ... Z]
//! ```
//!
//! We ask for the newest protocol. PostgreSQL before 18 negotiates that down to 3.0 (`v`); what does not know how to
//! negotiate refuses, or closes without a word, and is to be asked for 3.0 the next time ([`LoginError::TooNew`],
//! [`Login::may_be_too_new`]).
//!
//! SCRAM's key derivation takes milliseconds, so it is handed out as [`ScramWork`] and its result comes back through
//! [`Login::scram_done`].

use super::Parameters;
use crate::limits::{
    AUTHENTICATION_BYTES_MAX, CANCEL_KEY_BYTES_MAX, CANCEL_KEY_BYTES_MIN, SCRAM_ITERATIONS_MAX,
};
use crate::wire::backend::{self, tag};
use crate::wire::error::{Report, SqlState};
use crate::wire::frontend;
use bytes::Bytes;
use postgres_protocol::authentication::{md5_hash, sasl};
use std::fmt;

/// Who we are towards the server.
#[derive(Clone)]
pub struct Credentials {
    /// The role.
    pub user: String,
    /// Its password, if we know one.
    pub password: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.user)
    }
}

/// Why a login did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginError {
    /// The server refused: its ErrorResponse as it came, for the client, and as read.
    Refused(Bytes, Report),
    /// The server refused the version of the protocol, as read: it does not negotiate.
    TooNew(Report),
    /// The server asks for a password and none is configured.
    NoPassword(String),
    /// The server wants something that we do not speak.
    Unsupported(String),
    /// The server did not do what it was told to do first, and says why.
    ConnectQuery(Report),
    /// The server broke the protocol.
    Nonsense(String),
}

impl fmt::Display for LoginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(_, report) => write!(f, "the server refused the login: {report}"),
            Self::TooNew(report) => {
                write!(f, "the server does not negotiate the protocol's version: {report}")
            }
            Self::NoPassword(user) => write!(
                f,
                "the server asks for a password of user \"{user}\" and none is configured: set `password` in \
                 [databases.…] or add the user to `auth_file`"
            ),
            Self::Unsupported(what) => write!(f, "the server asks for {what}, which pgpinion does not speak"),
            Self::ConnectQuery(report) => write!(f, "connect_query failed: {report}"),
            Self::Nonsense(what) => write!(f, "the server broke the protocol during login: {what}"),
        }
    }
}

/// What is to be done after a message of the server.
#[derive(Debug)]
pub enum LoginStep {
    /// Wait for the next message.
    Continue,
    /// Send this.
    Send(Bytes),
    /// Compute this away from the shard, then call [`Login::scram_done`].
    Compute(ScramWork),
    /// Logged in, ready for queries.
    Done,
}

/// The step of a SCRAM exchange that takes milliseconds: the key derivation.
pub struct ScramWork {
    exchange: Box<sasl::ScramSha256>,
    message: Bytes,
}

impl ScramWork {
    /// Does it. Runs on any thread.
    pub fn run(mut self) -> ScramResult {
        let outcome = self.exchange.update(&self.message).map_err(|error| error.to_string());
        ScramResult { exchange: self.exchange, outcome }
    }
}

impl fmt::Debug for ScramWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramWork")
    }
}

/// What came out of a [`ScramWork`].
pub struct ScramResult {
    exchange: Box<sasl::ScramSha256>,
    outcome: Result<(), String>,
}

impl fmt::Debug for ScramResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramResult")
    }
}

enum State {
    /// The startup message is sent.
    AwaitAuthentication,
    /// SASLInitialResponse is sent.
    AwaitScramChallenge(Box<sasl::ScramSha256>),
    /// The key is being derived elsewhere. The server waits for us, and has nothing to say.
    Computing,
    /// SASLResponse is sent.
    AwaitScramFinal(Box<sasl::ScramSha256>),
    /// SASLFinal was right.
    AwaitScramOk,
    /// AuthenticationOk came.
    AwaitReady,
    /// The first query is sent.
    AwaitConnectQuery,
}

/// A login under way. Feed it whole messages; it says what to do.
pub struct Login {
    credentials: Credentials,
    /// What the server has to do before it is used, if anything.
    connect_query: String,
    state: State,
    /// The minor version of the protocol that we asked for, or that the server has made of it.
    minor: u16,
    /// It has said something.
    answered: bool,
    /// The process id and key for cancelling, once told.
    pub key: Option<(u32, Bytes)>,
    /// The parameters reported so far.
    pub parameters: Parameters,
    /// Notices that came during the login, for the log.
    pub notices: Vec<Report>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

impl Login {
    /// A login whose startup message is about to be sent, which asks for this minor version of the protocol; `connect_query`
    /// follows it, if there is one.
    pub fn new(credentials: Credentials, minor: u16, connect_query: &str) -> Self {
        Self {
            credentials,
            connect_query: connect_query.to_owned(),
            state: State::AwaitAuthentication,
            minor,
            answered: false,
            key: None,
            parameters: Parameters::default(),
            notices: Vec::new(),
        }
    }

    /// Nothing but the version of the protocol has had an effect so far: if the server ends now, that may be why.
    pub fn may_be_too_new(&self) -> bool {
        self.minor > 0 && !self.answered
    }

    /// The server answers a query, whose rows may have any length.
    pub fn is_asking(&self) -> bool {
        matches!(self.state, State::AwaitConnectQuery)
    }

    /// Handles one whole message.
    ///
    /// # Errors
    /// See [`LoginError`]: the connection is to be closed.
    pub fn received(&mut self, tag: u8, body: &Bytes) -> Result<LoginStep, LoginError> {
        if body.len() > AUTHENTICATION_BYTES_MAX {
            return Err(LoginError::Nonsense(format!("a message of {} bytes", body.len())));
        }
        let is_first = !std::mem::replace(&mut self.answered, true);
        match tag {
            tag::ERROR_RESPONSE if self.is_asking() => Err(LoginError::ConnectQuery(Report::read(body))),
            tag::ERROR_RESPONSE => {
                let report = Report::read(body);
                let refuses_version = is_first && self.minor > 0 && is_about_the_protocol(&report);
                Err(match refuses_version {
                    true => LoginError::TooNew(report),
                    false => LoginError::Refused(backend::message(tag, body), report),
                })
            }
            tag::NOTICE_RESPONSE => {
                if self.notices.len() < NOTICES_MAX {
                    self.notices.push(Report::read(body));
                }
                Ok(LoginStep::Continue)
            }
            tag::NEGOTIATE_PROTOCOL_VERSION => {
                self.minor = self.negotiated(body, is_first).map_err(LoginError::Nonsense)?;
                Ok(LoginStep::Continue)
            }
            tag::AUTHENTICATION => self.authentication(body),
            _ if matches!(self.state, State::AwaitReady) => self.after_authentication(tag, body),
            _ if self.is_asking() => self.answer(tag, body),
            _ => Err(unexpected(tag)),
        }
    }

    /// What a NegotiateProtocolVersion makes of the minor version we asked for. We asked for no options.
    fn negotiated(&self, body: &[u8], is_first: bool) -> Result<u16, String> {
        let Some((version, options)) = backend::read_negotiate_protocol_version(body) else {
            return Err("a NegotiateProtocolVersion that cannot be read".into());
        };
        let (major, minor) = (version >> 16, version as u16);
        // The protocol chapter speaks of the minor version alone.
        if !is_first || !matches!(major, 0 | 3) || minor >= self.minor || options > 0 {
            return Err(format!(
                "NegotiateProtocolVersion of {major}.{minor} and {options} options where 3.{} and none were asked for",
                self.minor
            ));
        }
        Ok(minor)
    }

    fn after_authentication(&mut self, tag: u8, body: &Bytes) -> Result<LoginStep, LoginError> {
        match tag {
            tag::PARAMETER_STATUS => self.reported(body),
            tag::BACKEND_KEY_DATA => {
                let (process, key) = backend::read_backend_key_data(body).ok_or_else(|| unexpected(tag))?;
                if !(CANCEL_KEY_BYTES_MIN..=CANCEL_KEY_BYTES_MAX).contains(&key.len()) {
                    return Err(LoginError::Nonsense(format!(
                        "a cancel key of {} bytes; {CANCEL_KEY_BYTES_MIN} to {CANCEL_KEY_BYTES_MAX} are allowed",
                        key.len()
                    )));
                }
                self.key = Some((process, Bytes::copy_from_slice(key)));
                Ok(LoginStep::Continue)
            }
            tag::READY_FOR_QUERY if body.as_ref() == b"I" && self.connect_query.is_empty() => {
                Ok(LoginStep::Done)
            }
            tag::READY_FOR_QUERY if body.as_ref() == b"I" => {
                self.state = State::AwaitConnectQuery;
                Ok(LoginStep::Send(frontend::query(&self.connect_query)))
            }
            _ => Err(unexpected(tag)),
        }
    }

    /// A message that answers the first query. Rows and whatever else comes of it are for nobody.
    fn answer(&mut self, tag: u8, body: &Bytes) -> Result<LoginStep, LoginError> {
        match tag {
            tag::PARAMETER_STATUS => self.reported(body),
            tag::READY_FOR_QUERY if body.as_ref() == b"I" => Ok(LoginStep::Done),
            tag::READY_FOR_QUERY => Err(unfinished("it left a transaction open")),
            tag::COPY_IN_RESPONSE | tag::COPY_BOTH_RESPONSE => Err(unfinished("it waits for data of a COPY")),
            tag::BACKEND_KEY_DATA => Err(unexpected(tag)),
            _ => Ok(LoginStep::Continue),
        }
    }

    fn reported(&mut self, body: &Bytes) -> Result<LoginStep, LoginError> {
        let told = backend::read_parameter_status(body);
        let (name, value) = told.ok_or_else(|| unexpected(tag::PARAMETER_STATUS))?;
        self.parameters.set(name, value);
        Ok(LoginStep::Continue)
    }

    fn authentication(&mut self, body: &Bytes) -> Result<LoginStep, LoginError> {
        let Some((code, data)) = body.split_first_chunk() else {
            return Err(unexpected(tag::AUTHENTICATION));
        };
        let state = std::mem::replace(&mut self.state, State::Computing);
        let (next, step) = match (u32::from_be_bytes(*code), state) {
            (0, State::AwaitAuthentication | State::AwaitScramOk) => (State::AwaitReady, LoginStep::Continue),
            (3, State::AwaitAuthentication) => {
                let answer = frontend::password(self.password()?.as_bytes());
                (State::AwaitAuthentication, LoginStep::Send(answer))
            }
            (5, State::AwaitAuthentication) => {
                let salt = data.try_into().map_err(|_| unexpected(tag::AUTHENTICATION))?;
                let hash = md5_hash(self.credentials.user.as_bytes(), self.password()?.as_bytes(), salt);
                (State::AwaitAuthentication, LoginStep::Send(frontend::password(hash.as_bytes())))
            }
            (10, State::AwaitAuthentication) => self.begin_scram(data)?,
            (11, State::AwaitScramChallenge(exchange)) => {
                check_iterations(data)?;
                let message = body.slice(4..);
                (State::Computing, LoginStep::Compute(ScramWork { exchange, message }))
            }
            (12, State::AwaitScramFinal(mut exchange)) => {
                // Two hashes: the long derivation was done before.
                let outcome = exchange.finish(&body[4..]);
                outcome.map_err(|error| LoginError::Nonsense(format!("SCRAM: {error}")))?;
                (State::AwaitScramOk, LoginStep::Continue)
            }
            (7..=9, _) => return Err(LoginError::Unsupported("GSSAPI or SSPI authentication".into())),
            (code, _) => {
                return Err(LoginError::Nonsense(format!("authentication request {code} out of turn")));
            }
        };
        self.state = next;
        Ok(step)
    }

    fn begin_scram(&self, mechanisms: &[u8]) -> Result<(State, LoginStep), LoginError> {
        if !mechanisms.split(|&byte| byte == 0).any(|name| name == sasl::SCRAM_SHA_256.as_bytes()) {
            let names = String::from_utf8_lossy(mechanisms).replace('\0', " ");
            return Err(LoginError::Unsupported(format!("SASL mechanisms {names}")));
        }
        let password = self.password()?.as_bytes();
        let exchange = sasl::ScramSha256::new(password, sasl::ChannelBinding::unsupported());
        let first = frontend::sasl_initial_response(sasl::SCRAM_SHA_256, exchange.message());
        Ok((State::AwaitScramChallenge(Box::new(exchange)), LoginStep::Send(first)))
    }

    /// Goes on after a computed step.
    ///
    /// # Errors
    /// The server's message was wrong: it does not know the password either, or broke the protocol.
    pub fn scram_done(&mut self, result: ScramResult) -> Result<LoginStep, LoginError> {
        let ScramResult { exchange, outcome } = result;
        outcome.map_err(|error| LoginError::Nonsense(format!("SCRAM: {error}")))?;
        let answer = frontend::sasl_response(exchange.message());
        self.state = State::AwaitScramFinal(exchange);
        Ok(LoginStep::Send(answer))
    }

    fn password(&self) -> Result<&str, LoginError> {
        let password = self.credentials.password.as_deref();
        password.ok_or_else(|| LoginError::NoPassword(self.credentials.user.clone()))
    }
}

/// Refuses an iteration count that would keep a core busy for long (`i=` of the server-first message, RFC 5802).
fn check_iterations(challenge: &[u8]) -> Result<(), LoginError> {
    let text = String::from_utf8_lossy(challenge);
    let count = text.split(',').find_map(|attribute| attribute.strip_prefix("i="));
    match count.and_then(|count| count.parse::<u32>().ok()) {
        Some(count) if (1..=SCRAM_ITERATIONS_MAX).contains(&count) => Ok(()),
        _ => Err(LoginError::Nonsense(format!(
            "a SCRAM iteration count that is none, or above {SCRAM_ITERATIONS_MAX}"
        ))),
    }
}

/// Old PostgreSQL refuses a version as a feature it lacks, and PgBouncer before 1.22 as a packet it cannot read.
fn is_about_the_protocol(report: &Report) -> bool {
    matches!(report.code.as_str(), "0A000" | "08P01")
}

fn unexpected(tag: u8) -> LoginError {
    LoginError::Nonsense(super::Nonsense { tag }.to_string())
}

/// PostgreSQL did as it was told, and that is no way to begin.
fn unfinished(why: &str) -> LoginError {
    let code = SqlState::CONFIG_FILE_ERROR.to_string();
    LoginError::ConnectQuery(Report { severity: "ERROR".into(), code, message: why.into() })
}

/// Notices of a login kept for the log. A server at debug level sends dozens.
const NOTICES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn login(password: Option<&str>) -> Login {
        login_with(password, "")
    }

    fn login_with(password: Option<&str>, connect_query: &str) -> Login {
        Login::new(Credentials { user: "u".into(), password: password.map(Into::into) }, 2, connect_query)
    }

    fn receive(login: &mut Login, tag: u8, body: &'static [u8]) -> Result<LoginStep, LoginError> {
        login.received(tag, &Bytes::from_static(body))
    }

    #[test]
    fn a_trusting_server_lets_us_in() {
        let mut login = login(None);
        for (tag, body) in [
            (b'R', &[0u8, 0, 0, 0][..]),
            (b'N', b"SNOTICE\0\0"),
            (b'S', b"TimeZone\0UTC\0"),
            (b'K', &[0, 0, 0, 1, 0, 0, 0, 2]),
        ] {
            assert!(matches!(receive(&mut login, tag, body), Ok(LoginStep::Continue)));
        }
        assert!(matches!(receive(&mut login, b'Z', b"I"), Ok(LoginStep::Done)));
        assert_eq!(login.parameters.iter().collect::<Vec<_>>(), [("TimeZone", "UTC")]);
        assert_eq!(login.key, Some((1, Bytes::from_static(&[0, 0, 0, 2]))));
        assert_eq!(login.notices.len(), 1);
    }

    #[test]
    fn a_server_may_speak_an_older_protocol() {
        let mut login = login(None);
        assert!(login.may_be_too_new());
        assert!(receive(&mut login, b'v', &[0, 3, 0, 0, 0, 0, 0, 0]).is_ok());
        assert!(!login.may_be_too_new());
        assert_eq!(login.minor, 0);
        assert!(receive(&mut login, b'R', &[0, 0, 0, 0]).is_ok());
        assert!(receive(&mut login, b'v', &[0, 3, 0, 0, 0, 0, 0, 0]).is_err(), "too late");
    }

    #[test]
    fn negotiations_that_make_no_sense_are_refused() {
        for (body, what) in [
            (&[0, 3, 0, 2, 0, 0, 0, 0][..], "what was asked for"),
            (&[0, 3, 0, 9, 0, 0, 0, 0], "more than was asked for"),
            (&[0, 4, 0, 0, 0, 0, 0, 0], "another protocol"),
            (&[0, 3, 0, 0, 0, 0, 0, 1, b'_', 0], "an option that was not asked for"),
            (&[0, 3, 0, 0], "half a message"),
        ] {
            let error = receive(&mut login(None), b'v', body);
            assert!(matches!(error, Err(LoginError::Nonsense(_))), "{what}");
        }
        let mut old = Login::new(Credentials { user: "u".into(), password: None }, 0, "");
        assert!(receive(&mut old, b'v', &[0, 3, 0, 0, 0, 0, 0, 0]).is_err(), "nothing to negotiate");
    }

    #[test]
    fn a_server_that_does_not_negotiate_is_known_by_its_first_word() {
        let refusal = b"SFATAL\0C08P01\0Mbad packet header\0\0";
        let error = receive(&mut login(None), b'E', refusal).unwrap_err();
        assert!(matches!(&error, LoginError::TooNew(_)), "{error}");
        assert!(error.to_string().contains("bad packet header"), "{error}");
        let mut later = login(None);
        assert!(receive(&mut later, b'R', &[0, 0, 0, 0]).is_ok());
        assert!(matches!(receive(&mut later, b'E', refusal), Err(LoginError::Refused(..))));
        let mut old = Login::new(Credentials { user: "u".into(), password: None }, 0, "");
        assert!(!old.may_be_too_new());
        assert!(matches!(receive(&mut old, b'E', refusal), Err(LoginError::Refused(..))));
        let other = receive(&mut login(None), b'E', b"SFATAL\0C28000\0Mno pg_hba.conf entry\0\0");
        assert!(matches!(other, Err(LoginError::Refused(..))), "a refusal of the login itself");
    }

    #[test]
    fn cancel_keys_have_the_lengths_that_the_protocol_allows() {
        for (bytes, good) in [(0, false), (3, false), (4, true), (32, true), (256, true), (257, false)] {
            let mut login = login(None);
            assert!(receive(&mut login, b'R', &[0, 0, 0, 0]).is_ok());
            let body = Bytes::from([&[0, 0, 0, 1][..], &vec![7; bytes]].concat());
            match login.received(b'K', &body) {
                Ok(_) => assert!(good && login.key == Some((1, body.slice(4..))), "{bytes}"),
                Err(error) => assert!(!good && error.to_string().contains("cancel key"), "{error}"),
            }
        }
        let mut login = login(None);
        assert!(receive(&mut login, b'R', &[0, 0, 0, 0]).is_ok());
        assert!(receive(&mut login, b'K', &[0, 0]).is_err(), "not even a process id");
    }

    #[test]
    fn md5_is_answered_as_documented() {
        let mut login = login(Some("p"));
        let Ok(LoginStep::Send(answer)) = receive(&mut login, b'R', &[0, 0, 0, 5, 1, 2, 3, 4]) else {
            panic!("no answer");
        };
        assert_eq!(answer.len(), 5 + 3 + 32 + 1);
        assert_eq!(&answer[5..8], b"md5");
    }

    #[test]
    fn a_password_that_is_not_there_is_said() {
        let error = receive(&mut login(None), b'R', &[0, 0, 0, 3]).unwrap_err();
        assert!(error.to_string().contains("auth_file"), "{error}");
    }

    #[test]
    fn scram_is_refused_out_of_turn_and_above_the_iteration_limit() {
        let mut start = login(Some("p"));
        assert!(receive(&mut start, b'R', &[0, 0, 0, 12]).is_err());
        let mut login = login(Some("p"));
        let step = receive(&mut login, b'R', b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        assert!(matches!(step, Ok(LoginStep::Send(_))));
        let error = receive(&mut login, b'R', b"\0\0\0\x0br=x,s=AAAA,i=2000000000").unwrap_err();
        assert!(error.to_string().contains("iteration"), "{error}");
    }

    #[test]
    fn ok_without_the_final_message_of_scram_is_refused() {
        let mut login = login(Some("p"));
        let _ = receive(&mut login, b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0").unwrap();
        assert!(
            receive(&mut login, b'R', &[0, 0, 0, 0]).is_err(),
            "the server has not shown that it knows the password"
        );
    }

    /// A login that has come to its connect_query.
    fn asking() -> Login {
        let mut login = login_with(None, "set timezone = 'PRC'");
        receive(&mut login, b'R', &[0; 4]).unwrap();
        receive(&mut login, b'S', b"TimeZone\0UTC\0").unwrap();
        let Ok(LoginStep::Send(query)) = receive(&mut login, b'Z', b"I") else { panic!("nothing is asked") };
        assert_eq!(query.as_ref(), b"Q\0\0\0\x19set timezone = 'PRC'\0");
        login
    }

    #[test]
    fn the_first_query_belongs_to_the_login() {
        let mut login = asking();
        let answer = [
            (b'T', &b"\0\0"[..]),
            (b'D', b"\0\0"),
            (b'N', b"\0"),
            (b'C', b"SET\0"),
            (b'S', b"TimeZone\0PRC\0"),
        ];
        for (tag, body) in answer {
            assert!(matches!(receive(&mut login, tag, body), Ok(LoginStep::Continue)));
        }
        assert!(matches!(receive(&mut login, b'Z', b"I"), Ok(LoginStep::Done)));
        assert_eq!(login.parameters.iter().collect::<Vec<_>>(), [("TimeZone", "PRC")]);
    }

    #[test]
    fn a_first_query_that_fails_or_does_not_end_is_an_error() {
        let cases = [
            (b'E', &b"SERROR\0C42P01\0Mnowhere\0\0"[..], "nowhere"),
            (b'Z', b"T", "transaction open"),
            (b'Z', b"E", "transaction open"),
            (b'G', b"\0\0\0", "COPY"),
        ];
        for (tag, body, expected) in cases {
            let error = receive(&mut asking(), tag, body).unwrap_err();
            assert!(matches!(error, LoginError::ConnectQuery(_)), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn rows_before_login_are_nonsense() {
        assert!(matches!(receive(&mut login(None), b'D', b""), Err(LoginError::Nonsense(_))));
        assert!(matches!(receive(&mut login(None), b'Z', b"I"), Err(LoginError::Nonsense(_))));
    }
}
