//! The unnamed statement of a client that changes servers.
//!
//! PostgreSQL keeps it until the next Parse without a name, or the next simple query. Between two batches another server may
//! be linked, whose unnamed statement is somebody else's. So the client's is remembered, and given to the server ahead of
//! the first Bind or Describe that needs it there; if there is none, the server's is closed, and the client reads that.

use super::Exchange;
use super::Verdict;
use super::notes::Note;
use super::rewrite::put_header;
use crate::limits::STATEMENT_BYTES_MAX;
use crate::server::Owed;
use crate::wire::frame::HEADER_BYTES;
use crate::wire::frontend::tag;
use bytes::BufMut;

/// What a client's last Parse without a name said.
#[derive(Debug, Default)]
pub struct Unnamed {
    /// Behind the name; empty if there is no such statement, or nobody knows whether there is.
    body: Vec<u8>,
    /// The group in which it was sent, as long as the server that got it is linked.
    group: Option<u32>,
}

impl Unnamed {
    fn remember(&mut self, body: &[u8], group: u32) {
        self.forget();
        self.body.extend_from_slice(body);
        self.group = Some(group);
    }

    fn forget(&mut self) {
        self.body.clear();
        self.body.shrink_to(KEPT_BYTES_MAX);
        self.group = None;
    }

    /// The client gets a server: what it sent before is answered, and was not skipped.
    #[inline]
    pub fn linked(&mut self) {
        self.group = None;
    }

    /// An error came, and with it some Parse of a group failed or was skipped: nobody knows whether it was this one. In doubt
    /// nobody knows what became of any group.
    pub fn failed(&mut self, group: Option<u32>, in_doubt: bool) {
        if self.group.is_some_and(|sent| group == Some(sent) || in_doubt) {
            self.forget();
        }
    }
}

impl Exchange<'_> {
    /// A Parse without a name.
    #[inline]
    pub(super) fn look_at_unnamed_parse(&mut self, body: &[u8], length: usize, owed: &Owed) -> Verdict {
        if self.is_skipped(owed) {
            if owed.takes_copy_data() {
                // Unless the COPY has failed, which nobody has heard yet, it is lost.
                self.unnamed.forget();
            }
            return Verdict::Pass;
        }
        if length > STATEMENT_BYTES_MAX {
            self.unnamed.forget();
        } else if body.len() < length {
            return Verdict::Incomplete(HEADER_BYTES + length);
        } else {
            self.unnamed.remember(&body[1..], owed.group());
        }
        self.server.has_clients_unnamed = true;
        Verdict::Pass
    }

    /// A Close without a name, or a simple query: PostgreSQL forgets the statement.
    #[inline]
    pub(super) fn drop_unnamed(&mut self, owed: &Owed) {
        if !self.is_skipped(owed) {
            self.unnamed.forget();
            self.server.has_clients_unnamed = true;
        }
    }

    /// A Bind or Describe without a name, of a body of `length` bytes.
    #[inline]
    pub(super) fn look_at_unnamed_use(&mut self, tag: u8, length: usize, owed: &mut Owed) -> Verdict {
        if self.server.has_clients_unnamed || self.is_skipped(owed) {
            return Verdict::Pass;
        }
        self.bring_unnamed(tag, length, owed)
    }

    #[cold]
    fn bring_unnamed(&mut self, tag: u8, length: usize, owed: &mut Owed) -> Verdict {
        if tag == tag::BIND
            && let Some(verdict) = self.watch_unnamed_use(length, owed)
        {
            return verdict;
        }
        self.server.has_clients_unnamed = true;
        if self.unnamed.body.is_empty() {
            put_header(self.out, tag::CLOSE, 2);
            self.out.put_slice(b"S\0");
            self.note(tag::CLOSE, Note::Ours, owed);
        } else {
            put_header(self.out, tag::PARSE, 1 + self.unnamed.body.len());
            self.out.put_u8(0);
            self.out.put_slice(&self.unnamed.body);
            self.note(tag::PARSE, Note::Ours, owed);
        }
        put_header(self.out, tag, length);
        owed.sent(tag);
        Verdict::Rewritten(0)
    }

    /// What it leaves behind it leaves where it is used.
    fn watch_unnamed_use(&mut self, length: usize, owed: &mut Owed) -> Option<Verdict> {
        self.watch.as_ref()?;
        let seen = self.look_at_text(&self.unnamed.body);
        self.weigh(tag::BIND, seen, length, owed)
    }
}

/// Room that a client keeps for the next one; texts of most applications have it.
const KEPT_BYTES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_forgets_what_it_may_have_skipped() {
        let mut unnamed = Unnamed::default();
        unnamed.remember(b"select 1\0\0\0", 7);
        unnamed.failed(Some(6), false);
        assert!(!unnamed.body.is_empty(), "it was sent behind that");
        unnamed.failed(None, false);
        assert!(!unnamed.body.is_empty(), "it was answered before");
        unnamed.failed(Some(7), false);
        assert!(unnamed.body.is_empty());
        unnamed.remember(b"select 1\0\0\0", 7);
        unnamed.failed(None, true);
        assert!(unnamed.body.is_empty(), "it may have been skipped");
        unnamed.remember(b"select 1\0\0\0", 7);
        unnamed.linked();
        unnamed.failed(Some(7), true);
        assert!(!unnamed.body.is_empty(), "another server counts its own groups");
    }

    #[test]
    fn a_long_text_is_not_kept_room_for() {
        let mut unnamed = Unnamed::default();
        unnamed.remember(&vec![b'x'; 100_000], 1);
        unnamed.forget();
        assert!(unnamed.body.capacity() <= KEPT_BYTES_MAX);
    }
}
