//! What is in flight to a server, and what becomes of it.

use super::statements::Fingerprint;
use super::{Cache, Names, Statement, Statements};
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
}

/// A message in flight.
#[derive(Debug)]
pub(super) enum Note {
    /// A Close of ours.
    Close(Fingerprint),
    /// A Parse of ours.
    Parse(Fingerprint),
    /// The client's Parse.
    Define(Rc<[u8]>, Rc<Statement>),
    /// A Close in the place of the client's Parse: the server has the statement.
    DefineKnown(Rc<[u8]>, Rc<Statement>),
    /// The client's Parse of a name that it has, under a name that is taken, so that it fails.
    DefineTwice(Rc<[u8]>, Rc<Statement>),
    /// The client's Close.
    Undefine(Rc<[u8]>),
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
        Self { cache, notes: VecDeque::new() }
    }

    /// What it has prepared.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Messages in flight about which something is remembered.
    pub fn in_flight(&self) -> usize {
        self.notes.len()
    }

    /// A noted message was answered. `names` are those of the client that sent it, if it is still there.
    pub fn answered(&mut self, names: Option<&mut Names>) -> Show {
        let Some(note) = self.notes.pop_front() else { return Show::Pass };
        let show = match &note {
            Note::Close(_) | Note::Parse(_) => Show::Swallow,
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
            Receipt::Plain | Receipt::Noted { done: false } => (Show::Pass, None),
            Receipt::Noted { done: true } => (self.answered(names), None),
            Receipt::Struck { noted, failed } => (Show::Pass, self.struck(noted, failed, names)),
        }
    }

    fn settle(&mut self, note: Note, names: Option<&mut Names>, done: bool) {
        match note {
            Note::Close(fingerprint) => self.cache.close_ended(&fingerprint, done),
            Note::Parse(fingerprint) => self.cache.parse_ended(&fingerprint, done),
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
            // It should have failed: now the name may stand for something else.
            Note::DefineTwice(_, statement) if done => self.cache.doubt(&statement.fingerprint),
            Note::DefineTwice(..) | Note::Use(..) | Note::UseOfNothing(_) | Note::Refuse(_) => {}
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
            b"DEALLOCATE\0" => return self.cache.doubt_all(),
            // It is not whole, and may be any of them.
            _ if body.len() < length => self.cache.doubt_all(),
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
            Note::Close(_) | Note::Parse(_) | Note::DefineKnown(..) | Note::Undefine(_) => None,
        }
    }
}

impl Edit {
    /// The ErrorResponse that the client gets, made of the body of the server's.
    pub fn apply(self, body: &[u8], server: &mut OnServer, statements: &mut Statements) -> Bytes {
        match self.0 {
            Change::Instead(error) => error,
            Change::Rename(name, Some(statement)) => {
                if spoils(body) {
                    server.cache.doubt(&statement.fingerprint);
                    statements.expire(&statement);
                }
                renamed(body, &statement.fingerprint.name(), &name)
            }
            Change::Rename(name, None) => renamed(body, super::statements::NOTHING, &name),
        }
    }
}

/// An error after which a statement has to be prepared anew: its result has another type than before (0A000), or it is
/// not there (26000).
fn spoils(body: &[u8]) -> bool {
    body.split(|&byte| byte == 0).any(|field| matches!(field, b"C0A000" | b"C26000"))
}

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
    use super::*;

    #[test]
    fn an_error_speaks_of_the_clients_name() {
        let message = renamed(b"C26000\0Mstatement \"pgpinion_12\" is not\0\0", b"pgpinion_12", b"mine");
        assert_eq!(&message[..], b"E\0\0\0\x25C26000\0Mstatement \"mine\" is not\0\0".as_slice());
        assert_eq!(message.len(), usize::from(message[4]) + 1);
        assert!(spoils(b"SERROR\0C0A000\0Mx\0\0") && !spoils(b"SERROR\0C22P02\0MC26000\0\0"));
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
            server.completed(body, *length, None);
            assert_eq!(server.cache.touch(&statement, 1), *kept, "{}", String::from_utf8_lossy(body));
        }
    }
}
