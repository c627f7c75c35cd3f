//! Giving a server the values of its client: one batch ahead of the client's bytes, whose answers are ours.
//!
//! ```text
//!   Close  Parse(select set_config($1, $2, false))  [Bind Execute]*  Close  Sync
//!   3      1                                        [2    D C    ]*  3      Z
//! ```
//!
//! Names and values are bound, never quoted. All is one transaction: a value that is refused leaves all as they were. NULL
//! sets a parameter back to the server's default. PostgreSQL answers with the value as it took it. The statement has a
//! name of its own so that the unnamed one stays whose it is, and is closed first in case a failure left it there.

use super::{Setting, Values};
use crate::wire::backend::tag as reply;
use crate::wire::frame;
use crate::wire::frontend::tag as request;
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// A batch under way.
#[derive(Debug)]
pub struct Replay {
    wanted: Arc<Values>,
    changes: Vec<(Arc<str>, Option<Arc<str>>)>,
    /// What the server says of each change, in order.
    taken: Vec<Option<Arc<str>>>,
    /// The body of its error.
    failure: Option<Bytes>,
}

impl Replay {
    /// What a server that has `has` needs to have what is wanted; `None` if that is nothing.
    pub fn new(has: &Values, wanted: &Arc<Values>) -> Option<Self> {
        let mut changes = Vec::new();
        for (name, value) in wanted.iter() {
            if has.get(name) != Some(value) {
                changes.push((name.clone(), Some(value.clone())));
            }
        }
        for (name, _) in has.iter() {
            if wanted.get(name).is_none() {
                changes.push((name.clone(), None));
            }
        }
        // The other values are written in this encoding.
        changes.sort_by_key(|(name, _)| &**name != "client_encoding");
        let wanted = wanted.clone();
        (!changes.is_empty()).then(|| Self { wanted, changes, taken: Vec::new(), failure: None })
    }

    /// The batch; `enter` is told the type of each of its messages.
    pub fn request(&self, mut enter: impl FnMut(u8)) -> Bytes {
        let mut batch = BytesMut::with_capacity(160 + 64 * self.changes.len());
        let mut put = |tag: u8, parts: &[&[u8]]| {
            enter(tag);
            frame::put(&mut batch, tag, parts);
        };
        put(request::CLOSE, &[b"S", STATEMENT]);
        put(request::PARSE, &[STATEMENT, QUERY, &2u16.to_be_bytes(), &TEXT_OID, &TEXT_OID]);
        for (name, value) in &self.changes {
            let (length, value) = match value {
                Some(value) => (value.len() as u32, value.as_bytes()),
                None => (u32::MAX, &b""[..]),
            };
            let name_length = (name.len() as u32).to_be_bytes();
            let head = [b"\0", STATEMENT, &[0, 0, 0, 2]].concat();
            put(
                request::BIND,
                &[&head, &name_length, name.as_bytes(), &length.to_be_bytes(), value, &[0, 0]],
            );
            put(request::EXECUTE, &[&[0; 5]]);
        }
        put(request::CLOSE, &[b"S", STATEMENT]);
        put(request::SYNC, &[]);
        batch.freeze()
    }

    /// A message of the server, which the account has found right. True if it is the batch's last.
    pub fn received(&mut self, tag: u8, body: &Bytes) -> bool {
        match tag {
            reply::DATA_ROW => self.taken.push(read_text(body)),
            reply::ERROR_RESPONSE => self.failure = Some(body.clone()),
            _ => {}
        }
        tag == reply::READY_FOR_QUERY
    }

    /// Whether the batch sets this parameter: what the server reports of it is known from its answer.
    pub fn sets(&self, name: &str) -> bool {
        self.changes.iter().any(|(each, _)| each.eq_ignore_ascii_case(name))
    }

    /// The values that were wanted.
    pub fn wanted(&self) -> &Arc<Values> {
        &self.wanted
    }

    /// What came of it: the settings that the server took otherwise than they were wanted.
    ///
    /// # Errors
    /// The body of the server's error. Its values are as they were.
    pub fn outcome(self) -> Result<Vec<Setting>, Bytes> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let answered = self.changes.into_iter().zip(self.taken);
        let otherwise = answered.filter_map(|((name, wanted), taken)| match (wanted, taken) {
            (Some(wanted), Some(taken)) if wanted != taken => Some((name, taken)),
            _ => None,
        });
        Ok(otherwise.collect())
    }
}

/// The text of a row's one column, if it has one.
fn read_text(row: &[u8]) -> Option<Arc<str>> {
    let (count, rest) = row.split_first_chunk::<2>()?;
    let (length, text) = rest.split_first_chunk::<4>()?;
    let whole = *count == [0, 1] && u32::from_be_bytes(*length) as usize == text.len();
    std::str::from_utf8(text).ok().filter(|_| whole).map(Into::into)
}

const STATEMENT: &[u8] = b"pgpinion_set\0";
const QUERY: &[u8] = b"select pg_catalog.set_config($1, $2, false)\0";
const TEXT_OID: [u8; 4] = 25u32.to_be_bytes();

#[cfg(test)]
mod tests {
    use super::super::tests::values;
    use super::*;

    fn replay(has: &[(&str, &str)], wanted: &[(&str, &str)]) -> Option<Replay> {
        Replay::new(&values(has), &Arc::new(values(wanted)))
    }

    fn row(text: &str) -> Bytes {
        [&[0, 1][..], &(text.len() as u32).to_be_bytes(), text.as_bytes()].concat().into()
    }

    #[test]
    fn only_what_differs_is_set() {
        assert!(replay(&[("TimeZone", "UTC")], &[("timezone", "UTC")]).is_none());
        let replay = replay(
            &[("DateStyle", "ISO"), ("TimeZone", "UTC"), ("extra_float_digits", "3")],
            &[("DateStyle", "ISO"), ("TimeZone", "PRC"), ("client_encoding", "o'\\x")],
        )
        .unwrap();
        let mut tags = Vec::new();
        let batch = replay.request(|tag| tags.push(tag));
        assert_eq!(tags, b"CPBEBEBECS");
        let text = String::from_utf8_lossy(&batch).into_owned();
        assert!(!text.contains("DateStyle"), "{text:?}");
        let order =
            ["client_encoding", "TimeZone", "extra_float_digits"].map(|name| text.find(name).unwrap());
        assert!(order.is_sorted(), "the encoding comes first: {text:?}");
        assert!(text.contains("\0\0\0\x04o'\\x"), "bound as it is: {text:?}");
        assert!(text.contains("extra_float_digits\u{fffd}\u{fffd}\u{fffd}\u{fffd}"), "NULL: {text:?}");
        // The frames are as long as they say.
        let (mut at, mut count) = (0, 0);
        while at < batch.len() {
            at += 1 + u32::from_be_bytes(batch[at + 1..at + 5].try_into().unwrap()) as usize;
            count += 1;
        }
        assert_eq!((at, count), (batch.len(), tags.len()));
    }

    #[test]
    fn the_server_says_what_it_made_of_a_value() {
        let mut replay = replay(&[], &[("DateStyle", "iso"), ("TimeZone", "PRC")]).unwrap();
        for (tag, body) in [(b'D', row("ISO, MDY")), (b'C', Bytes::new()), (b'D', row("PRC"))] {
            assert!(!replay.received(tag, &body));
        }
        assert!(replay.sets("datestyle") && !replay.sets("search_path"));
        assert!(replay.received(b'Z', &Bytes::from_static(b"I")));
        assert_eq!(replay.outcome(), Ok(vec![("DateStyle".into(), "ISO, MDY".into())]));
    }

    #[test]
    fn a_failure_is_told() {
        let mut replay = replay(&[], &[("TimeZone", "nowhere")]).unwrap();
        replay.received(b'E', &Bytes::from_static(b"SERROR\0\0"));
        assert!(replay.received(b'Z', &Bytes::from_static(b"I")));
        assert_eq!(replay.outcome(), Err(Bytes::from_static(b"SERROR\0\0")));
    }

    #[test]
    fn rows_that_are_none_are_not_read() {
        for bad in
            [&b""[..], &[0, 1], &[0, 1, 0, 0, 0, 9, b'x'], &[0, 2, 0, 0, 0, 0], &[0, 1, 255, 255, 255, 255]]
        {
            assert_eq!(read_text(bad), None, "{bad:?}");
        }
    }
}
