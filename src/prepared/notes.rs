//! What is in flight to a server, and what becomes of it.

use super::statements::Fingerprint;
use super::statements::Shape;
use super::{Cache, Names, Statement};
use crate::server::Receipt;
use crate::wire::backend::tag;
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::VecDeque;
use std::rc::Rc;

/// The statements of a server connection: what it has, and what was sent about them and is not answered.
#[derive(Debug, Default)]
pub struct OnServer {
    pub(super) cache: Cache,
    /// One for each noted entry of the server's account, in the same order.
    pub(super) notes: VecDeque<Note>,
    /// The command that is complete deallocated a statement that we know.
    expected: bool,
    /// The unnamed statement is that of the linked client, or there is none as the client has none.
    pub(super) has_clients_unnamed: bool,
    /// A description that a client may wait for has come to its end.
    learned: bool,
    /// Of the description that is coming.
    parameters: Vec<u8>,
}

/// A message in flight.
#[derive(Debug)]
pub(super) enum Note {
    /// A Parse or Close without a name of ours.
    Ours,
    /// A Close of ours.
    Close(Fingerprint),
    /// A Parse of ours.
    Parse(Fingerprint),
    /// A Describe of ours, behind a Parse: of the client, which gave this name, or of ours.
    Learn(Rc<Statement>, Option<Rc<[u8]>>),
    /// The client's Parse.
    Define(Rc<[u8]>, Rc<Statement>),
    /// A Close in the place of the client's Parse: the server has the statement.
    DefineKnown(Rc<[u8]>, Rc<Statement>),
    /// The client's Parse of a name that it has, under a name that is taken, so that it fails.
    DefineTwice(Rc<[u8]>, Rc<Statement>),
    /// The client's Close.
    Undefine(Rc<[u8]>),
    /// The client's DEALLOCATE of a name, as one of ours.
    Deallocate(Rc<[u8]>, Fingerprint),
    /// The client's Bind or Describe, by the name it used.
    Use(Rc<[u8]>, Rc<Statement>),
    /// The client used a name of ours.
    UseOfNothing(Rc<[u8]>),
    /// A message that fails, and the ErrorResponse that the client gets for it.
    Refuse(Bytes),
}

/// What the client sees of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// The message.
    Pass,
    /// Nothing.
    Swallow,
    /// Nothing, and its body goes to [`OnServer::described`].
    Collect,
    /// This instead.
    Instead(&'static [u8]),
}

/// What has to be changed in an ErrorResponse before the client reads it, and learned from it.
#[derive(Debug)]
pub struct Edit(Change);

#[derive(Debug)]
enum Change {
    Rename(Rc<[u8]>, Option<Rc<Statement>>),
    Instead(Bytes),
}

impl OnServer {
    /// What the server has prepared, to go with its connection to another shard; nothing may be in flight.
    pub fn into_cache(self) -> Cache {
        debug_assert!(self.notes.is_empty(), "nothing is in flight");
        self.cache
    }

    /// The same on the other side.
    pub fn from_cache(cache: Cache) -> Self {
        Self { cache, ..Self::default() }
    }

    /// It is given to a client: its unnamed statement is somebody else's.
    #[inline]
    pub fn linked(&mut self) {
        self.has_clients_unnamed = false;
    }

    /// What it has prepared.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Messages in flight about which something is remembered.
    pub fn in_flight(&self) -> usize {
        self.notes.len()
    }

    /// The next answer is to a Describe of ours.
    fn describes(&self) -> bool {
        matches!(self.notes.front(), Some(Note::Learn(..)))
    }

    /// The whole body of a message that was to be collected.
    pub fn described(&mut self, tag: u8, body: &[u8], names: Option<&mut Names>) {
        if tag == tag::PARAMETER_DESCRIPTION {
            self.parameters = body.to_vec();
            return;
        }
        let shape =
            Shape::of(&std::mem::take(&mut self.parameters), (tag == tag::ROW_DESCRIPTION).then_some(body));
        if let Some(Note::Learn(statement, name)) = self.notes.pop_front() {
            self.learned = true;
            self.cache.describe_ended(&statement.fingerprint, Some(shape));
            statement.shape.set(Some(shape));
            if let (Some(names), Some(name)) = (names, name) {
                names.tell(&name, Some(shape));
            }
        }
    }

    /// Whether a description has come to its end since this was asked last.
    #[inline]
    pub fn take_learned(&mut self) -> bool {
        std::mem::take(&mut self.learned)
    }

    /// A noted message was answered. `names` are those of the client that sent it, if it is still there.
    pub fn answered(&mut self, names: Option<&mut Names>) -> Show {
        let Some(note) = self.notes.pop_front() else { return Show::Pass };
        let show = match &note {
            Note::Ours | Note::Close(_) | Note::Parse(_) => Show::Swallow,
            Note::DefineKnown(..) => Show::Instead(PARSE_COMPLETE),
            _ => Show::Pass,
        };
        self.settle(note, names, true);
        show
    }

    /// The first notes will never be answered. `failed` says that the first of all did not succeed; the others were
    /// skipped. Returns what that means for the error.
    pub fn struck(&mut self, count: usize, failed: bool, mut names: Option<&mut Names>) -> Option<Edit> {
        let edit = self.notes.front().filter(|_| failed).and_then(Note::edit);
        for note in self.notes.drain(..count.min(self.notes.len())).collect::<Vec<_>>() {
            self.settle(note, names.as_deref_mut(), false);
        }
        edit.map(Edit)
    }

    /// Takes a receipt of the account: what the client sees, and what becomes of an error.
    #[inline]
    pub fn received(&mut self, receipt: Receipt, names: Option<&mut Names>) -> (Show, Option<Edit>) {
        match receipt {
            Receipt::Plain => (Show::Pass, None),
            Receipt::Noted { .. } if self.describes() => (Show::Collect, None),
            Receipt::Noted { done: false } => (Show::Pass, None),
            Receipt::Noted { done: true } => (self.answered(names), None),
            Receipt::Struck { noted, failed } => (Show::Pass, self.struck(noted, failed, names)),
        }
    }

    fn settle(&mut self, note: Note, names: Option<&mut Names>, done: bool) {
        match note {
            Note::Close(fingerprint) => self.cache.close_ended(&fingerprint, done),
            Note::Parse(fingerprint) => self.cache.parse_ended(&fingerprint, done),
            // Answered it is by `described`.
            Note::Learn(statement, _) => {
                self.learned = true;
                self.cache.describe_ended(&statement.fingerprint, None);
            }
            Note::Define(name, statement) => {
                self.cache.parse_ended(&statement.fingerprint, done);
                if let Some(names) = names {
                    names.ended(&name, Some(statement), done);
                }
            }
            Note::DefineKnown(name, statement) => {
                if let Some(names) = names {
                    names.ended(&name, Some(statement), done);
                }
            }
            Note::Undefine(name) => {
                if let Some(names) = names {
                    names.ended(&name, None, done);
                }
            }
            Note::Deallocate(name, fingerprint) => {
                self.expected = done;
                self.cache.close_ended(&fingerprint, done);
                if let Some(names) = names {
                    names.ended(&name, None, done);
                }
            }
            // It should have failed: now the name may stand for something else.
            Note::DefineTwice(_, statement) if done => self.cache.doubt(&statement.fingerprint),
            Note::Ours | Note::DefineTwice(..) | Note::Use(..) | Note::UseOfNothing(_) | Note::Refuse(_) => {}
        }
    }

    /// A command is complete; `body` is that of the CommandComplete, as far as it is at hand, of `length` bytes. One
    /// that deallocates statements takes ours too.
    #[inline]
    pub fn completed(&mut self, body: &[u8], length: usize, names: Option<&mut Names>) {
        if matches!(length, 11 | 12 | 15) && body.first().is_none_or(|&first| first == b'D') {
            self.deallocated(body, length, names);
        }
    }

    fn deallocated(&mut self, body: &[u8], length: usize, names: Option<&mut Names>) {
        match body {
            b"DEALLOCATE ALL\0" | b"DISCARD ALL\0" => self.cache.clear(),
            b"DEALLOCATE\0" if std::mem::take(&mut self.expected) => return,
            b"DEALLOCATE\0" => return self.cache.doubt_all(),
            // It is not whole, and may be any of them.
            _ if body.len() < length => {
                self.expected = false;
                self.cache.doubt_all();
            }
            _ => return,
        }
        if let Some(names) = names {
            names.release_all();
        }
    }
}

impl Note {
    fn edit(&self) -> Option<Change> {
        match self {
            Note::Use(name, statement)
            | Note::DefineTwice(name, statement)
            | Note::Define(name, statement) => Some(Change::Rename(name.clone(), Some(statement.clone()))),
            Note::UseOfNothing(name) => Some(Change::Rename(name.clone(), None)),
            Note::Refuse(error) => Some(Change::Instead(error.clone())),
            _ => None,
        }
    }
}

impl Edit {
    /// The ErrorResponse that the client gets, made of the body of the server's.
    pub fn apply(self, body: &[u8], server: &mut OnServer, names: Option<&mut Names>) -> Bytes {
        let (name, statement) = match self.0 {
            Change::Instead(error) => return error,
            Change::Rename(name, None) => return renamed(body, super::statements::NOTHING, &name),
            Change::Rename(name, Some(statement)) => (name, statement),
        };
        let has = |field: &[u8]| body.split(|&byte| byte == 0).any(|each| each == field);
        if has(CHANGED) {
            // The client knows now; other servers, and other clients, will have to see.
            server.cache.doubt(&statement.fingerprint);
            statement.shape.set(None);
            if let Some(names) = names {
                names.tell(&name, None);
            }
        } else if has(b"C26000") {
            server.cache.doubt(&statement.fingerprint);
        }
        renamed(body, &statement.fingerprint.name(), &name)
    }
}

/// Where PostgreSQL finds that a plan's result has changed: the one 0A000 that says so.
const CHANGED: &[u8] = b"RRevalidateCachedQuery";

/// An ErrorResponse of `body`, with `to` wherever it says `from`.
fn renamed(body: &[u8], from: &[u8], to: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(body.len() + to.len() + 16);
    message.put_slice(&[tag::ERROR_RESPONSE, 0, 0, 0, 0]);
    let mut rest = body;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        message.put_slice(&rest[..at]);
        message.put_slice(to);
        rest = &rest[at + from.len()..];
    }
    message.put_slice(rest);
    let length = u32::try_from(message.len() - 1).unwrap_or(u32::MAX);
    message[1..5].copy_from_slice(&length.to_be_bytes());
    message.freeze()
}

const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";

#[cfg(test)]
mod tests {
    use super::super::Statements;
    use super::*;

    #[test]
    fn an_error_speaks_of_the_clients_name() {
        let message = renamed(b"C26000\0Mstatement \"pgpinion_12\" is not\0\0", b"pgpinion_12", b"mine");
        assert_eq!(&message[..], b"E\0\0\0\x25C26000\0Mstatement \"mine\" is not\0\0".as_slice());
        assert_eq!(message.len(), usize::from(message[4]) + 1);
    }

    #[test]
    fn commands_that_deallocate_are_told_from_others() {
        let mut statements = Statements::default();
        let statement = statements.intern(b"x\0\0\0");
        let cases: &[(&[u8], usize, bool)] = &[
            (b"DEALLOCATE ALL\0", 15, false),
            (b"DISCARD ALL\0", 12, false),
            (b"DEALLOCATE\0", 11, false),
            (b"", 12, false),
            (b"DEA", 11, false),
            (b"INSERT 0 10\0", 12, true),
            (b"DISCARD SEQ\0", 12, true),
            (b"DELETE 1234\0", 12, true),
            (b"SELECT 1\0", 9, true),
        ];
        for (body, length, kept) in cases {
            let mut server = OnServer::default();
            server.cache.parse_sent(&statement, 0);
            server.cache.parse_ended(&statement.fingerprint, true);
            statement.shape.set(Some(Shape::of(b"", None)));
            server.cache.describe_ended(&statement.fingerprint, statement.shape.get());
            server.completed(body, *length, None);
            assert_eq!(server.cache.touch(&statement, 1), *kept, "{}", String::from_utf8_lossy(body));
        }
    }
}
