//! What a line of the log says. The pure rooms make lines; `control::log` writes them.
//!
//! A line knows whom it concerns as ids and names of their own, so that the writer can show them as fields and
//! nobody formats an id into a message.

use std::fmt;

use crate::ids::{ConnectionId, SessionId};

/// How much a line matters. The order is that of `log_level`: a level includes all that stand before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Something is broken and an operator has to act.
    Error,
    /// Something is wrong and was dealt with.
    Warn,
    /// Something worth knowing happened.
    Info,
    /// Of use to whoever looks for a fault.
    Debug,
}

impl Level {
    /// The word in the text format.
    pub fn word(self) -> &'static str {
        match self {
            Level::Error => "ERROR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Debug => "DEBUG",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Whom a line concerns. What is not known stays `None` and is not written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// The client's session.
    pub session: Option<SessionId>,
    /// The server connection.
    pub connection: Option<ConnectionId>,
    /// The database as the client asked for it.
    pub database: Option<String>,
    /// The user the client logged in as.
    pub user: Option<String>,
    /// The other end's address, or the path of the socket.
    pub peer: Option<String>,
}

/// One line of the log, without its time: the writer's side stamps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How much it matters.
    pub level: Level,
    /// What happened, in one sentence.
    pub message: String,
    /// Whom it concerns.
    pub fields: Fields,
}

impl Line {
    /// A line that concerns nobody in particular yet.
    pub fn new(level: Level, message: impl Into<String>) -> Self {
        Self { level, message: message.into(), fields: Fields::default() }
    }

    /// Something is broken.
    pub fn error(message: impl Into<String>) -> Self {
        Self::new(Level::Error, message)
    }

    /// Something is wrong and was dealt with.
    pub fn warn(message: impl Into<String>) -> Self {
        Self::new(Level::Warn, message)
    }

    /// Something worth knowing happened.
    pub fn info(message: impl Into<String>) -> Self {
        Self::new(Level::Info, message)
    }

    /// Something for whoever looks for a fault.
    pub fn debug(message: impl Into<String>) -> Self {
        Self::new(Level::Debug, message)
    }

    /// The line, said about this client's session.
    pub fn session(mut self, session: SessionId) -> Self {
        self.fields.session = Some(session);
        self
    }

    /// The line, said about this server connection.
    pub fn connection(mut self, connection: ConnectionId) -> Self {
        self.fields.connection = Some(connection);
        self
    }

    /// The line, said about this database.
    pub fn database(mut self, database: impl Into<String>) -> Self {
        self.fields.database = Some(database.into());
        self
    }

    /// The line, said about this user.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.fields.user = Some(user.into());
        self
    }

    /// The line, said about this peer.
    pub fn peer(mut self, peer: impl Into<String>) -> Self {
        self.fields.peer = Some(peer.into());
        self
    }
}
