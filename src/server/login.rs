//! Logging in to PostgreSQL: what it asks, what we answer. Knows the protocol, computes nothing that takes long.
//!
//! ```text
//!   StartupMessage -> [R challenge -> answer]* -> R ok -> S* K -> Z [-> connect_query -> ... Z]
//! ```
//!
//! SCRAM's key derivation takes milliseconds, so it is handed out as [`ScramWork`] and its result comes back through
//! [`Login::scram_done`].

use super::Parameters;
use crate::limits::{AUTHENTICATION_BYTES_MAX, SCRAM_ITERATIONS_MAX};
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
    /// A login whose startup message is about to be sent.
    pub fn new(credentials: Credentials, connect_query: &str) -> Self {
        Self {
            credentials,
            connect_query: connect_query.to_owned(),
            state: State::AwaitAuthentication,
            key: None,
            parameters: Parameters::default(),
            notices: Vec::new(),
        }
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
        match tag {
            tag::ERROR_RESPONSE if self.is_asking() => Err(LoginError::ConnectQuery(Report::read(body))),
            tag::ERROR_RESPONSE => Err(LoginError::Refused(backend::message(tag, body), Report::read(body))),
            tag::NOTICE_RESPONSE => {
                if self.notices.len() < NOTICES_MAX {
                    self.notices.push(Report::read(body));
                }
                Ok(LoginStep::Continue)
            }
            tag::NEGOTIATE_PROTOCOL_VERSION => Ok(LoginStep::Continue),
            tag::AUTHENTICATION => self.authentication(body),
            _ if matches!(self.state, State::AwaitReady) => self.after_authentication(tag, body),
            _ if self.is_asking() => self.answer(tag, body),
            _ => Err(unexpected(tag)),
        }
    }

    fn after_authentication(&mut self, tag: u8, body: &Bytes) -> Result<LoginStep, LoginError> {
        match tag {
            tag::PARAMETER_STATUS => self.reported(body),
            tag::BACKEND_KEY_DATA => {
                let (process, key) = backend::read_backend_key_data(body).ok_or_else(|| unexpected(tag))?;
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
        Login::new(Credentials { user: "u".into(), password: password.map(Into::into) }, connect_query)
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
