//! What goes to the server for a client's message about a statement.

use super::deallocate;
use super::names::{Known, Meaning};
use super::notes::Note;
use super::statements::{NAME_BYTES, NOTHING, PREFIX};
use super::{Fingerprint, Names, OnServer, Statement, Statements, Unnamed, Watch};
use crate::limits::{
    MESSAGE_BYTES_MAX, PREPARED_BYTES_PER_CLIENT_MAX, STATEMENT_BYTES_MAX, STATEMENT_NAMES_BYTES_MAX,
};
use crate::server::Owed;
use crate::wire::frame::HEADER_BYTES;
use crate::wire::frontend::tag;
use crate::wire::{Refusal, SqlState};
use bytes::{BufMut, Bytes, BytesMut};
use std::rc::Rc;

/// A client and its server, while the client's messages are taken through.
pub struct Exchange<'a> {
    /// The shard's.
    pub statements: &'a mut Statements,
    /// The client's; made when it first has some.
    pub names: &'a mut Option<Box<Names>>,
    /// The client's without a name.
    pub unnamed: &'a mut Unnamed,
    /// The server's.
    pub server: &'a mut OnServer,
    /// The server is in a transaction that failed, or was at the last ReadyForQuery.
    pub failed: bool,
    /// Values of the client's session that decide what a statement's text means: its encoding, and where names are looked
    /// up as far as that is known.
    pub context: &'a dyn Fn() -> String,
    /// Statements that the server may have prepared.
    pub statements_max: usize,
    /// Named statements follow the client; else only what is watched for is looked at.
    pub follows: bool,
    /// What is watched for in the texts of commands, if anything is.
    pub watch: Option<Watch<'a>>,
    /// What goes to the server in the place of messages is appended here.
    pub out: &'a mut BytesMut,
    /// Why the server is to be closed at its next rest.
    pub doomed: &'a mut Option<&'static str>,
}

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the server as it is.
    Pass,
    /// What was appended goes to the server in the place of the header and so many bytes of the body; the account
    /// knows it.
    Rewritten(usize),
    /// So many bytes of the message, with its header, must be there first.
    Incomplete(usize),
    /// Answers must come first.
    Stalled,
    /// It is beyond what we can read.
    Refused(Refusal),
}

impl Exchange<'_> {
    /// Looks at a message of which `body` is at hand, the beginning of `length` bytes.
    #[inline]
    pub fn look(&mut self, tag: u8, body: &[u8], length: usize, owed: &mut Owed) -> Verdict {
        if let Some(verdict) = self.watch(tag, body, length, owed) {
            return verdict;
        }
        match (tag, body) {
            (tag::PARSE, [0, ..]) => return self.look_at_unnamed_parse(body, length, owed),
            (tag::BIND, [0, 0, ..]) => return self.look_at_unnamed_use(tag, length, owed),
            (tag::QUERY, _) => self.drop_unnamed(owed),
            _ => {}
        }
        match (tag, body) {
            (tag::PARSE | tag::QUERY, _) if !self.follows => Verdict::Pass,
            (tag::PARSE, _) => self.look_at_parse(body, length, owed),
            (tag::BIND, _) => self.look_at_bind(body, length, owed),
            (tag::DESCRIBE | tag::CLOSE, [kind, ..]) if *kind != b'S' => Verdict::Pass,
            (tag::DESCRIBE | tag::CLOSE, _) if body.len() < length => {
                Verdict::Incomplete(HEADER_BYTES + length)
            }
            (tag::DESCRIBE | tag::CLOSE, _) => self.look_at_name(tag, body, length, owed),
            (tag::QUERY, []) if (1..=DEALLOCATE_BYTES_MAX).contains(&length) && self.names.is_some() => {
                Verdict::Incomplete(HEADER_BYTES + 1)
            }
            (tag::QUERY, [b'D' | b'd', ..]) if length <= DEALLOCATE_BYTES_MAX => {
                self.look_at_query(body, length, owed)
            }
            _ => Verdict::Pass,
        }
    }

    /// A query that may deallocate a statement by its name.
    fn look_at_query(&mut self, body: &[u8], length: usize, owed: &mut Owed) -> Verdict {
        if self.names.is_none() || self.is_skipped(owed) {
            return Verdict::Pass;
        }
        if body.len() < length {
            return Verdict::Incomplete(HEADER_BYTES + length);
        }
        let Some(name) = deallocate::name(body) else { return Verdict::Pass };
        match self.meaning(&name, owed) {
            Meaning::Unknown => Verdict::Pass,
            Meaning::Uncertain => Verdict::Stalled,
            Meaning::Known(..) => {
                let empty = self.statements.intern(EMPTY);
                self.prepare(&empty, owed);
                let kept = self.names.get_or_insert_default().sent(&name, None, owed.group());
                let server_name = empty.fingerprint.name();
                put_header(self.out, tag::QUERY, DEALLOCATE.len() + NAME_BYTES + 1);
                self.out.put_slice(DEALLOCATE);
                self.out.put_slice(&server_name);
                self.out.put_u8(0);
                self.server.cache.close_sent(&empty.fingerprint);
                self.note(tag::QUERY, Note::Deallocate(kept, empty.fingerprint), owed);
                Verdict::Rewritten(length)
            }
        }
    }

    fn look_at_parse(&mut self, body: &[u8], length: usize, owed: &mut Owed) -> Verdict {
        if self.is_skipped(owed) || length == 0 {
            self.doubt(owed);
            return Verdict::Pass;
        }
        if body.is_empty() {
            return Verdict::Incomplete(HEADER_BYTES + 1);
        }
        if length > STATEMENT_BYTES_MAX {
            return self.refuse(length, owed, statement_too_long());
        }
        if body.len() < length {
            return Verdict::Incomplete(HEADER_BYTES + length);
        }
        // What is not laid out as a Parse is refused by PostgreSQL: no name can come of it.
        let Some((name, rest)) = split_string(body) else { return Verdict::Pass };
        if !is_statement(rest) {
            return Verdict::Pass;
        }
        match self.meaning(name, owed) {
            Meaning::Uncertain => Verdict::Stalled,
            Meaning::Known(Known { name: kept, released: false, .. }) => {
                self.define_twice(named(kept, name), rest, length, owed)
            }
            Meaning::Known(..) | Meaning::Unknown => self.define(name, rest, length, owed),
        }
    }

    fn look_at_bind(&mut self, body: &[u8], length: usize, owed: &mut Owed) -> Verdict {
        if self.is_skipped(owed) {
            return Verdict::Pass;
        }
        let names = split_string(body).and_then(|(portal, rest)| Some((portal, split_string(rest)?)));
        let Some((portal, (name, rest))) = names else {
            return match body.len() {
                // It has no names, and PostgreSQL says so.
                found if found == length => Verdict::Pass,
                found if found > STATEMENT_NAMES_BYTES_MAX => Verdict::Refused(names_too_long()),
                found => Verdict::Incomplete(HEADER_BYTES + found + 1),
            };
        };
        if name.is_empty() {
            return self.look_at_unnamed_use(tag::BIND, length, owed);
        }
        let read = body.len() - rest.len();
        self.look_at_use(tag::BIND, portal, name, (read, length), owed)
    }

    /// A whole Describe or Close of a statement.
    fn look_at_name(&mut self, tag: u8, body: &[u8], length: usize, owed: &mut Owed) -> Verdict {
        let Some(([b'S', ..], (name, []))) = Some(body).zip(body.get(1..).and_then(split_string)) else {
            return Verdict::Pass;
        };
        if self.is_skipped(owed) {
            self.doubt(owed);
            return Verdict::Pass;
        }
        if name.is_empty() && tag == tag::DESCRIBE {
            return self.look_at_unnamed_use(tag, length, owed);
        }
        if name.is_empty() {
            self.drop_unnamed(owed);
            return Verdict::Pass;
        }
        if tag == tag::DESCRIBE {
            return self.look_at_use(tag, b"", name, (body.len(), body.len()), owed);
        }
        match self.meaning(name, owed) {
            Meaning::Uncertain => return Verdict::Stalled,
            Meaning::Known(..) => {
                put_close(self.out, NOTHING);
                let kept = self.names.get_or_insert_default().sent(name, None, owed.group());
                self.note(tag::CLOSE, Note::Undefine(kept), owed);
            }
            Meaning::Unknown if name.starts_with(PREFIX) => {
                put_close(self.out, NOTHING);
                owed.sent(tag::CLOSE);
            }
            Meaning::Unknown => return Verdict::Pass,
        }
        Verdict::Rewritten(body.len())
    }

    /// A Bind or Describe of a named statement; `read` bytes of its body of `length` are the names.
    fn look_at_use(
        &mut self,
        tag: u8,
        portal: &[u8],
        name: &[u8],
        (read, length): (usize, usize),
        owed: &mut Owed,
    ) -> Verdict {
        let known = match self.meaning(name, owed) {
            Meaning::Uncertain => return Verdict::Stalled,
            Meaning::Known(known) => Some(known),
            Meaning::Unknown if name.starts_with(PREFIX) => None,
            Meaning::Unknown => return Verdict::Pass,
        };
        if length + NAME_BYTES + HEADER_BYTES > MESSAGE_BYTES_MAX as usize {
            return Verdict::Refused(bind_too_long());
        }
        let (note, server_name) = match known {
            Some(Known { name: kept, statement, told, .. }) => {
                if tag == tag::BIND
                    && let Some(verdict) = self.watch_use(&statement, length, owed)
                {
                    return verdict;
                }
                if !self.server.cache.touch(&statement, owed.group()) {
                    return self.prepare_and_learn(&statement, owed);
                }
                if told.is_some() && told != statement.shape.get() {
                    self.names.get_or_insert_default().tell(&kept, statement.shape.get());
                    return self.refuse_with(length, owed, Bytes::from_static(CHANGED));
                }
                let server_name = statement.fingerprint.name();
                (Note::Use(named(kept, name), statement), Some(server_name))
            }
            None => (Note::UseOfNothing(name.into()), None),
        };
        let server_name = server_name.as_ref().map_or(NOTHING, |name| name.as_slice());
        let names = match tag {
            tag::BIND => portal.len() + 1 + server_name.len() + 1,
            _ => 1 + server_name.len() + 1,
        };
        put_header(self.out, tag, names + length - read);
        if tag == tag::BIND {
            self.out.put_slice(portal);
            self.out.put_u8(0);
        } else {
            self.out.put_u8(b'S');
        }
        self.out.put_slice(server_name);
        self.out.put_u8(0);
        self.note(tag, note, owed);
        Verdict::Rewritten(read)
    }

    /// The client gives a name to a statement.
    fn define(&mut self, name: &[u8], rest: &[u8], length: usize, owed: &mut Owed) -> Verdict {
        let statement = self.statements.intern_within(rest, &(self.context)());
        let names = self.names.get_or_insert_default();
        if !names.make_room(name, &statement, PREPARED_BYTES_PER_CLIENT_MAX) {
            return self.refuse(length, owed, too_many_statements());
        }
        let group = owed.group();
        let kept = names.sent(name, Some(statement.clone()), group);
        // PostgreSQL refuses most statements in a transaction that failed: it must see them then.
        let is_certain = !self.failed && !owed.awaits_ready();
        if self.server.cache.touch(&statement, group) && is_certain {
            put_close(self.out, NOTHING);
            self.note(tag::CLOSE, Note::DefineKnown(kept, statement), owed);
        } else {
            self.make_way(&statement, owed);
            put_parse(self.out, &statement);
            self.server.cache.parse_sent(&statement, group);
            self.note(tag::PARSE, Note::Define(kept.clone(), statement.clone()), owed);
            self.learn(statement, Some(kept), owed);
        }
        Verdict::Rewritten(length)
    }

    /// The client gives a name that it has to another statement: PostgreSQL looks at the new text first, and then finds
    /// that the name is taken. Ours is taken for certain, because an empty statement was just prepared under it, which
    /// PostgreSQL allows even in a transaction that failed.
    fn define_twice(&mut self, name: Rc<[u8]>, rest: &[u8], length: usize, owed: &mut Owed) -> Verdict {
        let empty = self.statements.intern(EMPTY);
        self.prepare(&empty, owed);
        put_parse_as(self.out, &empty, rest);
        self.note(tag::PARSE, Note::DefineTwice(name, empty), owed);
        Verdict::Rewritten(length)
    }

    /// The server does not have what the client uses. Before it does, we must know that it is still what the client knows:
    /// tables may have changed, and PostgreSQL refuses to run a statement whose result has other columns than before.
    fn prepare_and_learn(&mut self, statement: &Rc<Statement>, owed: &mut Owed) -> Verdict {
        if !self.server.cache.is_described(statement) {
            self.prepare(statement, owed);
            self.learn(statement.clone(), None, owed);
        }
        // PostgreSQL may keep the answer to itself, even to an earlier Describe, until the Sync that waits behind this.
        put_header(self.out, tag::FLUSH, 0);
        Verdict::Stalled
    }

    /// A Describe of ours, behind a Parse.
    fn learn(&mut self, statement: Rc<Statement>, name: Option<Rc<[u8]>>, owed: &mut Owed) {
        put_describe(self.out, &statement.fingerprint.name());
        self.server.cache.describe_sent(&statement.fingerprint);
        self.note(tag::DESCRIBE, Note::Learn(statement, name), owed);
    }

    /// A Parse of ours, in front of what needs it.
    fn prepare(&mut self, statement: &Statement, owed: &mut Owed) {
        self.make_way(statement, owed);
        put_parse(self.out, statement);
        self.server.cache.parse_sent(statement, owed.group());
        self.note(tag::PARSE, Note::Parse(statement.fingerprint), owed);
    }

    /// Closes what stands in the way of a Parse: what the server has under this name, and what is too much.
    fn make_way(&mut self, statement: &Statement, owed: &mut Owed) {
        self.close(&statement.fingerprint, owed);
        while let Some(surplus) = self.server.cache.surplus(self.statements_max) {
            self.close(&surplus, owed);
        }
    }

    fn close(&mut self, fingerprint: &Fingerprint, owed: &mut Owed) {
        put_close(self.out, &fingerprint.name());
        self.server.cache.close_sent(fingerprint);
        self.note(tag::CLOSE, Note::Close(*fingerprint), owed);
    }

    /// A message that fails takes the place of one that we refuse: so the error comes in its turn, and PostgreSQL skips
    /// what follows.
    pub(super) fn refuse(&mut self, length: usize, owed: &mut Owed, refusal: Refusal) -> Verdict {
        self.refuse_with(length, owed, refusal.to_error())
    }

    fn refuse_with(&mut self, length: usize, owed: &mut Owed, error: Bytes) -> Verdict {
        put_header(self.out, tag::BIND, NOTHING.len() + 8);
        self.out.put_u8(0);
        self.out.put_slice(NOTHING);
        // The end of the name; no formats, no parameters, no formats of results.
        self.out.put_slice(&[0; 7]);
        self.note(tag::BIND, Note::Refuse(error), owed);
        Verdict::Rewritten(length)
    }

    pub(super) fn note(&mut self, tag: u8, note: Note, owed: &mut Owed) {
        if owed.sent_noted(tag) {
            self.server.notes.push_back(note);
        }
    }

    fn meaning(&self, name: &[u8], owed: &Owed) -> Meaning {
        // A simple query may deallocate statements.
        if owed.awaits_query() {
            return Meaning::Uncertain;
        }
        match &self.names {
            Some(names) => names.look_up(name, owed.group()),
            None => Meaning::Unknown,
        }
    }

    /// A client's own name goes to the server among the data of a COPY: if that has failed, which nobody has heard yet, the
    /// server takes it, and other clients would find it there.
    #[cold]
    fn doubt(&mut self, owed: &Owed) {
        if owed.takes_copy_data() {
            *self.doomed = Some("a statement was named among the data of a COPY");
        }
    }

    /// The server will not look at it: it skips everything up to a Sync, or waits for data of a COPY, which such a
    /// message ends badly.
    pub(super) fn is_skipped(&self, owed: &Owed) -> bool {
        owed.awaits_sync() || owed.takes_copy_data()
    }
}

const DEALLOCATE: &[u8] = b"deallocate ";

/// The longest query that is looked at for it: two keywords and a name of up to 63 bytes.
const DEALLOCATE_BYTES_MAX: usize = 128;

/// A statement without text and parameters.
const EMPTY: &[u8] = &[0; 3];

/// The name as the client wrote it now.
fn named(kept: Rc<[u8]>, given: &[u8]) -> Rc<[u8]> {
    if *kept == *given { kept } else { given.into() }
}

/// A terminated string, and what follows it.
pub(super) fn split_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// A text, and as many types as announced.
fn is_statement(rest: &[u8]) -> bool {
    let Some((_, types)) = split_string(rest) else { return false };
    let Some((count, types)) = types.split_first_chunk() else { return false };
    types.len() == usize::from(u16::from_be_bytes(*count)) * 4
}

pub(super) fn put_header(out: &mut BytesMut, tag: u8, body: usize) {
    out.put_u8(tag);
    out.put_u32(u32::try_from(body + 4).unwrap_or(u32::MAX));
}

fn put_close(out: &mut BytesMut, name: &[u8]) {
    put_target(out, tag::CLOSE, name);
}

fn put_describe(out: &mut BytesMut, name: &[u8]) {
    put_target(out, tag::DESCRIBE, name);
}

/// A Describe or Close of a statement.
fn put_target(out: &mut BytesMut, tag: u8, name: &[u8]) {
    put_header(out, tag, name.len() + 2);
    out.put_u8(b'S');
    out.put_slice(name);
    out.put_u8(0);
}

fn put_parse(out: &mut BytesMut, statement: &Statement) {
    put_parse_as(out, statement, &statement.body);
}

/// A Parse of `rest` under the name of `statement`.
fn put_parse_as(out: &mut BytesMut, statement: &Statement, rest: &[u8]) {
    let name = statement.fingerprint.name();
    put_header(out, tag::PARSE, name.len() + 1 + rest.len());
    out.put_slice(&name);
    out.put_u8(0);
    out.put_slice(rest);
}

/// In PostgreSQL's words. Drivers know it by the routine, and prepare the statement anew.
const CHANGED: &[u8] = b"E\0\0\0\x6cSERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0\
    Fplancache.c\0L718\0RRevalidateCachedQuery\0\0";
const _: () = assert!(CHANGED.len() == 0x6c + 1);

fn statement_too_long() -> Refusal {
    let text = format!("a named prepared statement may have {STATEMENT_BYTES_MAX} bytes");
    Refusal::new(SqlState::PROGRAM_LIMIT_EXCEEDED, text).hint("Use an unnamed statement.")
}

fn too_many_statements() -> Refusal {
    let text = format!("the prepared statements of a client may have {PREPARED_BYTES_PER_CLIENT_MAX} bytes");
    Refusal::new(SqlState::PROGRAM_LIMIT_EXCEEDED, text).hint("Deallocate some, or prepare fewer.")
}

fn names_too_long() -> Refusal {
    let text = format!("the names in a Bind may have {STATEMENT_NAMES_BYTES_MAX} bytes");
    Refusal::new(SqlState::PROGRAM_LIMIT_EXCEEDED, text)
}

fn bind_too_long() -> Refusal {
    Refusal::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "a Bind to a named statement may have 1 GB less 128 bytes")
}
