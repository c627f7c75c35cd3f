//! Looking at commands on their way to the server for what they would leave behind there.

use super::notes::Note;
use super::rewrite::{put_header, split_string};
use super::{Exchange, Statement, Verdict};
use crate::guard::{self, Kind, Kinds};
use crate::limits::STATEMENT_BYTES_MAX;
use crate::server::Owed;
use crate::wire::frame::HEADER_BYTES;
use crate::wire::frontend::tag;
use crate::wire::{Refusal, SqlState};
use bytes::BufMut;

/// What is watched for, and what was seen.
pub struct Watch<'a> {
    /// The session that the commands are for.
    pub session: guard::Session<'a>,
    /// What is refused.
    pub refused: Kinds,
    /// What has been on its way, refused or not.
    pub seen: Kinds,
}

impl Exchange<'_> {
    /// Looks at a message that may carry a command: what to do with it instead of what is done with any other.
    #[inline]
    pub(super) fn watch(&mut self, tag: u8, body: &[u8], length: usize, owed: &mut Owed) -> Option<Verdict> {
        self.watch.as_ref()?;
        // What comes among the data of a COPY ends the session, or is executed if the COPY has failed meanwhile.
        if !matches!(tag, tag::QUERY | tag::PARSE | tag::FUNCTION_CALL) || owed.awaits_sync() {
            return None;
        }
        let seen = match tag {
            tag::FUNCTION_CALL => match body.first_chunk() {
                Some(oid) => guard::look_at_function(u32::from_be_bytes(*oid)),
                None if length >= 4 => return Some(Verdict::Incomplete(HEADER_BYTES + 4)),
                None => return None,
            },
            _ if length > STATEMENT_BYTES_MAX => Kind::Unread.into(),
            _ if body.len() < length => return Some(Verdict::Incomplete(HEADER_BYTES + length)),
            tag::QUERY => self.look_at_text(body),
            _ => {
                let (name, rest) = split_string(body)?;
                let unfollowed = !self.follows && !name.is_empty();
                let named = if unfollowed { Kind::Prepared.into() } else { Kinds::NONE };
                named | self.look_at_text(rest)
            }
        };
        self.weigh(tag, seen, length, owed)
    }

    /// The client binds a statement that it prepared earlier, maybe on another server.
    pub(super) fn watch_use(
        &mut self,
        statement: &Statement,
        length: usize,
        owed: &mut Owed,
    ) -> Option<Verdict> {
        self.watch.as_ref()?;
        // What follows a client may differ from route to route: a closer look is for what may be something.
        let may_leave = statement.leaves.get().unwrap_or_else(|| {
            let nothing = guard::Session { follows: &|_| false, escapes: &|| false };
            let kinds = guard::look(text_of(&statement.body), nothing);
            statement.leaves.set(Some(kinds));
            kinds
        });
        if may_leave.is_empty() {
            return None;
        }
        let seen = self.look_at_text(&statement.body);
        self.weigh(tag::BIND, seen, length, owed)
    }

    pub(super) fn look_at_text(&self, terminated: &[u8]) -> Kinds {
        let Some(watch) = &self.watch else { return Kinds::NONE };
        guard::look(text_of(terminated), watch.session)
    }

    #[inline]
    pub(super) fn weigh(&mut self, tag: u8, seen: Kinds, length: usize, owed: &mut Owed) -> Option<Verdict> {
        let watch = self.watch.as_mut().filter(|_| !seen.is_empty())?;
        watch.seen |= seen;
        let first = (seen & watch.refused).iter().next()?;
        let refusal = refusal(first);
        if matches!(tag, tag::QUERY | tag::FUNCTION_CALL) {
            put_header(self.out, tag::QUERY, NO_SQL.len());
            self.out.put_slice(NO_SQL);
            self.note(tag::QUERY, Note::Refuse(refusal.to_error()), owed);
            return Some(Verdict::Rewritten(length));
        }
        Some(self.refuse(length, owed, refusal))
    }
}

/// What stands before the terminating zero.
fn text_of(terminated: &[u8]) -> &[u8] {
    split_string(terminated).map_or(terminated, |(text, _)| text)
}

/// `feature_not_supported`: what is asked for exists, and not where servers are shared. 25001 would blame a transaction that
/// need not be open.
fn refusal(kind: Kind) -> Refusal {
    let text = format!("{kind} would be left to other clients of this server connection");
    let advice = kind.advice();
    Refusal::new(SqlState::FEATURE_NOT_SUPPORTED, text)
        .detail("pgpinion shares server connections here, and its leak_policy is \"refuse\".")
        .hint(format!("{advice}; or use leak_policy = \"pin\" or pool_mode = \"session\"."))
}

/// Takes the place of a query that is refused: PostgreSQL finds no SQL in it before it looks at anything else, so that an
/// open transaction fails, and one that has failed stays so. Its log has this line.
const NO_SQL: &[u8] = b"pgpinion refused this command: leak_policy\0";
