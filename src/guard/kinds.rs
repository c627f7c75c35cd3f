//! The kinds of what is left behind.

use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Sub};

/// Something that a command leaves in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `SET` of a parameter that does not follow the client.
    Parameter,
    /// `SET ROLE`, `SET SESSION AUTHORIZATION`.
    Role,
    /// `LISTEN`.
    Listen,
    /// A session-level advisory lock.
    Lock,
    /// A temporary table, view or other object.
    Temporary,
    /// A `WITH HOLD` cursor.
    Cursor,
    /// `PREPARE` in SQL, or a named Parse that is not followed.
    Prepared,
    /// What `currval` and `lastval` say.
    Sequence,
    /// A text that is too long to be looked at.
    Unread,
}

/// Any of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Kinds(u16);

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 9] = [
        Kind::Parameter,
        Kind::Role,
        Kind::Listen,
        Kind::Lock,
        Kind::Temporary,
        Kind::Cursor,
        Kind::Prepared,
        Kind::Sequence,
        Kind::Unread,
    ];

    /// What to do instead.
    pub fn advice(self) -> &'static str {
        match self {
            Kind::Parameter => "Use SET LOCAL in a transaction, or set it for the role or the database",
            Kind::Role => "Use SET LOCAL ROLE in a transaction",
            Kind::Listen => "Let one client listen for all",
            Kind::Lock => "Use pg_advisory_xact_lock",
            Kind::Temporary => "Use ON COMMIT DROP in a transaction",
            Kind::Cursor => "Use the cursor in one transaction, without WITH HOLD",
            Kind::Prepared => "Use the driver's prepared statements, which follow their client",
            Kind::Sequence => "Use RETURNING",
            Kind::Unread => "Use a shorter text, or COPY",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Parameter => "SET of a parameter that PostgreSQL does not report",
            Kind::Role => "SET ROLE or SESSION AUTHORIZATION",
            Kind::Listen => "LISTEN",
            Kind::Lock => "a session-level advisory lock",
            Kind::Temporary => "a temporary object",
            Kind::Cursor => "a cursor WITH HOLD",
            Kind::Prepared => "PREPARE",
            Kind::Sequence => "the last value of a sequence",
            Kind::Unread => "whatever a text of more than 1 MiB leaves",
        })
    }
}

impl Kinds {
    /// Nothing.
    pub const NONE: Self = Self(0);

    /// There is none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those there are.
    pub fn iter(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |&kind| !(self & kind.into()).is_empty())
    }
}

impl From<Kind> for Kinds {
    fn from(kind: Kind) -> Self {
        Self(1 << kind as u16)
    }
}

impl FromIterator<Kind> for Kinds {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::NONE, |all, kind| all | kind.into())
    }
}

impl BitOr for Kinds {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Kinds {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for Kinds {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Kinds {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}
