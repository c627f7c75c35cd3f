//! A client's side of the protocol after login: what its bytes mean, and whether a server is needed for them.
//!
//! Pure. It cannot choose a server, only say that one is needed ([`Session::opening`]); and while one is linked it
//! enters everything that goes there in the server's account ([`Session::pass`]).

use crate::limits::COLLECTED_BYTES_MAX;
use crate::prepared::{Exchange, Verdict};
use crate::server::Owed;
use crate::wire::frame::HEADER_BYTES;
use crate::wire::frontend::{longest, tag};
use crate::wire::{Framer, Kept, Refusal, Segment, SqlState};
use bytes::BytesMut;
use std::ops::Range;

/// The client's stream.
#[derive(Debug, Default)]
pub struct Session {
    framer: Framer,
    /// Bytes of a dropped message that are still to come.
    dropping: u32,
    /// A batch was cancelled before it got a server: what comes is dropped up to its Sync.
    skipping: bool,
    /// The rest of the current body is not passed on: something else went in its place.
    replaced: bool,
    /// Simple queries are not allowed.
    extended_only: bool,
}

/// How far the bytes at hand have been gone through: start with the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Framed up to here.
    at: usize,
    /// Passed on or replaced up to here when something was replaced last.
    passed: usize,
}

impl Progress {
    /// Everything before `at` has been dealt with.
    pub fn starting_at(at: usize) -> Self {
        Self { at, passed: at }
    }
}

/// What a session passes its messages to.
pub struct Link<'a> {
    /// The server's account.
    pub owed: &'a mut Owed,
    /// Named statements, if they follow the client from server to server.
    pub prepared: Option<Exchange<'a>>,
}

impl Link<'_> {
    /// What was written in the place of messages and not taken away.
    #[inline]
    pub fn rewritten(&mut self) -> Option<&mut BytesMut> {
        self.prepared.as_mut().map(|exchange| &mut *exchange.out)
    }
}

/// What the bytes of a client without a server amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Opening {
    /// Keep what stands from here on and wait for more.
    Incomplete(usize),
    /// What stands from here on needs a server.
    NeedsServer(usize),
    /// The Sync of a cancelled batch came, and is to be answered; what stands from here on has not been looked at.
    Synced(usize),
    /// The client says goodbye.
    Terminate,
    /// The client broke the protocol.
    Broken(Refusal),
}

/// What may go to the linked server.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Passage {
    /// This goes first: it came with earlier bytes.
    pub kept: Kept,
    /// Then this range of the bytes at hand.
    pub range: Range<usize>,
    /// Then what was appended to [`Exchange::out`], and there is more to pass.
    pub rewritten: bool,
    /// What is not passed on yet, and is to be passed again, with what follows it.
    pub held: Option<Held>,
    /// Whole or partial queries begun, for the statistics.
    pub queries: u32,
    /// Why nothing that follows is passed on.
    pub end: Option<End>,
}

/// The beginning of a message that cannot be passed on yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    /// What came of it with earlier bytes.
    pub kept: Kept,
    /// Where it begins in the bytes at hand.
    pub from: usize,
    /// What it waits for.
    pub until: Until,
}

/// What has to happen before a message can be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// So many bytes of it are there.
    Bytes(usize),
    /// The server has answered what it was asked.
    Answers,
}

/// The end of a session that its client brought about.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It said goodbye.
    Terminate,
    /// It broke the protocol.
    Broken(Refusal),
}

impl Session {
    /// Refuses simple queries from now on.
    pub fn allow_extended_only(&mut self) {
        self.extended_only = true;
    }

    /// Looks at the bytes of a client that has no server: is there something that needs one? A message of up to
    /// [`COLLECTED_BYTES_MAX`] is waited for until it is whole. Data of a COPY that is over is dropped, as
    /// PostgreSQL does.
    pub fn opening(&mut self, bytes: &[u8]) -> Opening {
        let mut at = (self.dropping as usize).min(bytes.len());
        self.dropping -= at as u32;
        loop {
            let Some(header) = bytes[at..].first_chunk::<HEADER_BYTES>() else {
                return Opening::Incomplete(at);
            };
            let [tag, length @ ..] = *header;
            let length = u32::from_be_bytes(length);
            if let Err(refusal) = check(tag, length) {
                return Opening::Broken(refusal);
            }
            let total = length as usize + 1;
            let available = bytes.len() - at;
            match tag {
                tag::TERMINATE => return Opening::Terminate,
                tag::QUERY if self.extended_only => return Opening::Broken(simple_query()),
                tag::SYNC if self.skipping => {
                    if total > available {
                        return Opening::Incomplete(at);
                    }
                    self.skipping = false;
                    return Opening::Synced(at + total);
                }
                tag if self.skipping || matches!(tag, tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL) => {
                    let here = total.min(available);
                    self.dropping = (total - here) as u32;
                    at += here;
                }
                _ if total <= available || total > COLLECTED_BYTES_MAX => return Opening::NeedsServer(at),
                _ => return Opening::Incomplete(at),
            }
        }
    }

    /// Drops the request at the beginning of what the client sent while it waited for a server. True if that was all of
    /// the request: a ReadyForQuery ends its answer. Else the rest of the batch is dropped when it comes, and its Sync is
    /// answered ([`Opening::Synced`]).
    pub fn cancel(&mut self, pending: &mut Vec<u8>) -> bool {
        let Some([tag, length @ ..]) = pending.first_chunk::<HEADER_BYTES>().copied() else { return true };
        let total = u32::from_be_bytes(length) as usize + 1;
        if !matches!(tag, tag::QUERY | tag::FUNCTION_CALL) {
            self.skipping = true;
            return false;
        }
        let here = total.min(pending.len());
        self.dropping = (total - here) as u32;
        pending.drain(..here);
        true
    }

    /// Goes through bytes of a client that has a server from where `progress` says, and enters its messages in the
    /// server's account. To be called again while it says [`Passage::rewritten`].
    #[inline]
    pub fn pass(&mut self, bytes: &[u8], progress: &mut Progress, link: &mut Link<'_>) -> Passage {
        let mut passage = Passage { range: progress.passed..progress.at, ..Passage::default() };
        let kept = self.framer.kept();
        loop {
            let segment = match self.framer.next(bytes, &mut progress.at, longest) {
                Ok(Some(segment)) => segment,
                Ok(None) => return passage,
                Err(error) => {
                    let refusal = check(error.tag, error.length).err();
                    passage.end = Some(End::Broken(refusal.unwrap_or_else(|| broken(error.to_string()))));
                    return passage;
                }
            };
            if segment.begins {
                if segment.tag == tag::TERMINATE {
                    passage.end = Some(End::Terminate);
                    return passage;
                }
                if self.extended_only && segment.tag == tag::QUERY {
                    // Nothing of it goes to the server.
                    self.framer = Framer::default();
                    passage.end = Some(End::Broken(simple_query()));
                    return passage;
                }
                if let Some(exchange) = &mut link.prepared
                    && is_about_statements(segment.tag)
                {
                    let body = segment.body_part(bytes);
                    let verdict = exchange.look(segment.tag, body, segment.body as usize, link.owed);
                    if verdict != Verdict::Pass {
                        self.follow(verdict, &segment, kept, progress, &mut passage);
                        return passage;
                    }
                }
                if segment.carried > 0 {
                    passage.kept = kept;
                }
                if matches!(segment.tag, tag::QUERY | tag::EXECUTE) {
                    passage.queries += 1;
                }
                link.owed.sent(segment.tag);
            } else if self.replaced {
                self.replaced = !segment.ends;
                passage.range.start = segment.range.end;
            }
            passage.range.end = segment.range.end;
        }
    }

    /// Does what is to be done with a message that does not pass as it is.
    fn follow(
        &mut self,
        verdict: Verdict,
        segment: &Segment,
        kept: Kept,
        progress: &mut Progress,
        passage: &mut Passage,
    ) {
        let until = match verdict {
            Verdict::Pass => return,
            Verdict::Rewritten(bytes) => {
                passage.rewritten = true;
                passage.queries += u32::from(segment.tag == tag::QUERY);
                let body_from = segment.range.start + HEADER_BYTES - segment.carried;
                self.replaced = body_from + bytes > segment.range.end;
                progress.passed = (body_from + bytes).min(segment.range.end);
                return;
            }
            Verdict::Refused(refusal) => {
                passage.end = Some(End::Broken(refusal));
                return;
            }
            Verdict::Incomplete(bytes) => Until::Bytes(bytes),
            Verdict::Stalled => Until::Answers,
        };
        self.framer = Framer::default();
        let kept = if segment.carried > 0 { kept } else { Kept::default() };
        passage.held = Some(Held { kept, from: segment.range.start, until });
    }

    /// Part of a message's body has been passed on and the rest has not come.
    pub fn is_within_body(&self) -> bool {
        self.framer.is_within_body()
    }

    /// The beginning of a header that has come and belongs to no passage yet, up to four bytes. The session forgets
    /// it: the caller keeps it for [`Session::opening`].
    pub fn take_kept(&mut self) -> Kept {
        self.framer.take_kept()
    }
}

/// These may name a prepared statement, which a Query rarely does, or leave something on the server.
#[inline]
fn is_about_statements(tag: u8) -> bool {
    matches!(tag, tag::PARSE | tag::BIND | tag::DESCRIBE | tag::CLOSE | tag::QUERY | tag::FUNCTION_CALL)
}

fn check(tag: u8, length: u32) -> Result<(), Refusal> {
    let longest = longest(tag);
    if longest == 0 {
        return Err(broken(format!("invalid frontend message type {tag}")));
    }
    if length < 4 || length > longest {
        return Err(broken(crate::wire::FrameError { tag, length }.to_string()));
    }
    Ok(())
}

/// PgBouncer's words.
fn simple_query() -> Refusal {
    Refusal::new(SqlState::PROTOCOL_VIOLATION, "PQexec disallowed")
        .hint("disable_pqexec is set: use the extended query protocol.")
}

fn broken(message: String) -> Refusal {
    Refusal::new(SqlState::PROTOCOL_VIOLATION, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend((body.len() as u32 + 4).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn simple_queries_are_refused_where_that_is_the_rule() {
        let mut session = Session::default();
        session.allow_extended_only();
        let (batch, query) =
            ([message(b'P', b"\0\0\0\0"), message(b'S', b"")].concat(), message(b'Q', b"x\0"));
        assert_eq!(session.opening(&batch), Opening::NeedsServer(0));
        let Opening::Broken(refusal) = session.opening(&query[..5]) else { panic!("let through") };
        assert_eq!(refusal.message, "PQexec disallowed");
        let mut owed = Owed::default();
        let passage = pass(&mut session, &[batch.clone(), query].concat(), &mut owed);
        assert_eq!(passage.range, 0..batch.len(), "what came before is passed on");
        assert_eq!(passage.end, Some(End::Broken(refusal)));
        assert!(!session.is_within_body(), "nothing of the query was");
    }

    fn pass(session: &mut Session, bytes: &[u8], owed: &mut Owed) -> Passage {
        session.pass(bytes, &mut Progress::default(), &mut Link { owed, prepared: None })
    }

    #[test]
    fn a_query_needs_a_server_when_it_is_whole() {
        let bytes = message(b'Q', b"select 1\0");
        let mut session = Session::default();
        for cut in 0..bytes.len() {
            assert_eq!(session.opening(&bytes[..cut]), Opening::Incomplete(0), "cut at {cut}");
        }
        assert_eq!(session.opening(&bytes), Opening::NeedsServer(0));
    }

    #[test]
    fn a_large_message_needs_a_server_at_once() {
        let mut bytes = vec![b'P'];
        bytes.extend((COLLECTED_BYTES_MAX as u32 + 1).to_be_bytes());
        assert_eq!(Session::default().opening(&bytes), Opening::NeedsServer(0));
    }

    #[test]
    fn leftovers_of_a_copy_are_dropped_however_they_are_cut() {
        let stream = [message(b'd', b"row"), message(b'c', b""), message(b'Q', b"x\0")].concat();
        for cut in 0..=stream.len() {
            let mut session = Session::default();
            let mut kept = stream[..cut].to_vec();
            if let Opening::Incomplete(at) = session.opening(&kept) {
                kept.drain(..at);
                kept.extend(&stream[cut..]);
                let Opening::NeedsServer(at) = session.opening(&kept) else { panic!("cut at {cut}") };
                assert_eq!(kept[at..], message(b'Q', b"x\0"), "cut at {cut}");
            } else {
                assert_eq!(cut, stream.len());
            }
        }
    }

    #[test]
    fn a_cancelled_query_is_dropped_however_it_is_cut() {
        let stream = [message(b'Q', b"slow\0"), message(b'Q', b"next\0")].concat();
        for cut in HEADER_BYTES..stream.len() {
            let mut session = Session::default();
            let mut pending = stream[..cut].to_vec();
            assert!(session.cancel(&mut pending));
            pending.extend(&stream[cut..]);
            let Opening::NeedsServer(at) = session.opening(&pending) else { panic!("cut at {cut}") };
            assert_eq!(pending[at..], message(b'Q', b"next\0"), "cut at {cut}");
        }
    }

    #[test]
    fn a_cancelled_batch_is_dropped_up_to_its_sync() {
        let batch = [message(b'P', b"\0x\0\0\0"), message(b'Q', b"too\0"), message(b'c', b"")].concat();
        let stream = [batch, message(b'S', b""), message(b'Q', b"next\0")].concat();
        for cut in HEADER_BYTES..stream.len() {
            let mut session = Session::default();
            let mut pending = stream[..cut].to_vec();
            assert!(!session.cancel(&mut pending));
            let mut rest = match session.opening(&pending) {
                Opening::Incomplete(at) => {
                    pending.drain(..at);
                    pending.extend(&stream[cut..]);
                    let Opening::Synced(at) = session.opening(&pending) else { panic!("cut at {cut}") };
                    pending[at..].to_vec()
                }
                Opening::Synced(at) => [&pending[at..], &stream[cut..]].concat(),
                other => panic!("{other:?}, cut at {cut}"),
            };
            let Opening::NeedsServer(at) = session.opening(&rest) else { panic!("cut at {cut}") };
            assert_eq!(rest.split_off(at), message(b'Q', b"next\0"), "cut at {cut}");
        }
    }

    #[test]
    fn messages_that_do_not_exist_are_refused() {
        for (tag, length) in [(b'?', 4u32), (b'p', 4), (b'Q', 3), (b'S', 1 << 20), (b'Q', u32::MAX)] {
            let mut bytes = vec![tag];
            bytes.extend(length.to_be_bytes());
            let Opening::Broken(refusal) = Session::default().opening(&bytes) else { panic!("{tag}") };
            assert_eq!(refusal.code, SqlState::PROTOCOL_VIOLATION);
            let passage = pass(&mut Session::default(), &bytes, &mut Owed::default());
            assert_eq!(passage.end, Some(End::Broken(refusal)));
        }
    }

    #[test]
    fn everything_but_a_started_header_passes() {
        let stream = [message(b'P', b"\0x\0\0\0"), message(b'S', b"")].concat();
        for cut in 0..=stream.len() {
            let mut session = Session::default();
            let mut owed = Owed::default();
            let mut passed: Vec<u8> = Vec::new();
            for piece in [&stream[..cut], &stream[cut..]] {
                let passage = pass(&mut session, piece, &mut owed);
                passed.extend_from_slice(passage.kept.as_slice());
                passed.extend_from_slice(&piece[passage.range]);
            }
            assert_eq!(passed, stream, "cut at {cut}");
            assert_eq!(owed.len(), 2);
        }
    }

    #[test]
    fn what_stands_before_a_goodbye_passes() {
        let stream = [message(b'Q', b"x\0"), message(b'X', b""), message(b'Q', b"y\0")].concat();
        let passage = pass(&mut Session::default(), &stream, &mut Owed::default());
        assert_eq!(
            passage,
            Passage { range: 0..7, queries: 1, end: Some(End::Terminate), ..Passage::default() }
        );
    }
}
