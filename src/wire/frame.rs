//! Framing: where messages begin and end in a stream that arrives in arbitrary pieces.
//!
//! A [`Framer`] keeps what must be known between two pieces (at most four bytes of a header and a count) and never
//! holds a body: whoever drives it forwards ranges of the buffer it was given.

use bytes::{BufMut, BytesMut};
use std::fmt;
use std::ops::Range;

/// Bytes of a tag and a length.
pub const HEADER_BYTES: usize = 5;

/// Appends a message whose body is `parts`, one behind the other.
pub fn put(to: &mut BytesMut, tag: u8, parts: &[&[u8]]) {
    let body: usize = parts.iter().map(|part| part.len()).sum();
    to.reserve(body + HEADER_BYTES);
    to.put_u8(tag);
    to.put_u32(u32::try_from(body + 4).unwrap_or(u32::MAX));
    for part in parts {
        to.put_slice(part);
    }
}

/// The part of one message that lies in the buffer at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The message's type.
    pub tag: u8,
    /// Bytes of the body, the length field not counted.
    pub body: u32,
    /// Where in the buffer this part lies, header included as far as it is in this buffer.
    pub range: Range<usize>,
    /// Bytes of the header that came in earlier buffers: what [`Framer::kept`] was before this one.
    pub carried: usize,
    /// The header was completed in this buffer: the message is seen for the first time.
    pub begins: bool,
    /// The message's last byte is in this buffer.
    pub ends: bool,
}

impl Segment {
    /// The body, if all of it is in this buffer.
    pub fn whole_body<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        if !(self.begins && self.ends) {
            return None;
        }
        bytes.get(self.range.end - self.body as usize..self.range.end)
    }

    /// The part of the body that is in this buffer.
    pub fn body_part<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let header = if self.begins { HEADER_BYTES - self.carried } else { 0 };
        &bytes[self.range.start + header..self.range.end]
    }
}

/// Up to four bytes of a header whose rest has not come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    bytes: [u8; HEADER_BYTES - 1],
    length: u8,
}

impl Kept {
    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// A length field that no message can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameError {
    /// The type the message claims.
    pub tag: u8,
    /// The length field as sent.
    pub length: u32,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tag, length } = self;
        if tag.is_ascii_graphic() {
            write!(f, "invalid message length {length} in a message of type '{}'", char::from(*tag))
        } else {
            write!(f, "invalid message length {length} in a message of type {tag:#04x}")
        }
    }
}

impl std::error::Error for FrameError {}

/// Follows one direction of a connection from message to message.
#[derive(Clone, Debug, Default)]
pub struct Framer {
    /// Body bytes of the current message that have not been seen.
    remaining: u32,
    body: u32,
    tag: u8,
    carried: u8,
    header: [u8; HEADER_BYTES],
}

impl Framer {
    /// The next segment of `bytes` from `at` on, which moves behind it; `None` when there is nothing more, or only the
    /// beginning of a header, which is then kept. `longest` says how long the body and length of a message of
    /// a type may be.
    ///
    /// # Errors
    /// A length below 4 or above what `longest` allows. The stream cannot be followed any further.
    #[inline]
    pub fn next(
        &mut self,
        bytes: &[u8],
        at: &mut usize,
        longest: impl Fn(u8) -> u32,
    ) -> Result<Option<Segment>, FrameError> {
        let start = *at;
        let available = bytes.len() - start;
        if self.remaining > 0 {
            return Ok(self.resume(start, available, at));
        }
        let carried = usize::from(self.carried);
        if carried + available < HEADER_BYTES {
            self.header[carried..carried + available].copy_from_slice(&bytes[start..]);
            self.carried += available as u8;
            *at = bytes.len();
            return Ok(None);
        }
        let rest = HEADER_BYTES - carried;
        self.header[carried..].copy_from_slice(&bytes[start..start + rest]);
        let [tag, length @ ..] = self.header;
        let length = u32::from_be_bytes(length);
        if length < 4 || length > longest(tag) {
            return Err(FrameError { tag, length });
        }
        self.carried = 0;
        self.tag = tag;
        self.body = length - 4;
        let here = (self.body as usize).min(available - rest);
        self.remaining = self.body - here as u32;
        *at = start + rest + here;
        let ends = self.remaining == 0;
        Ok(Some(Segment { tag, body: self.body, range: start..*at, carried, begins: true, ends }))
    }

    fn resume(&mut self, start: usize, available: usize, at: &mut usize) -> Option<Segment> {
        if available == 0 {
            return None;
        }
        let here = (self.remaining as usize).min(available);
        self.remaining -= here as u32;
        *at = start + here;
        let ends = self.remaining == 0;
        Some(Segment { tag: self.tag, body: self.body, range: start..*at, carried: 0, begins: false, ends })
    }

    /// Nothing of a message has arrived that has not arrived whole.
    pub fn at_boundary(&self) -> bool {
        self.remaining == 0 && self.carried == 0
    }

    /// Part of a body has been seen and the rest has not come.
    pub fn is_within_body(&self) -> bool {
        self.remaining > 0
    }

    /// Bytes of the current message's body that have not come.
    #[inline]
    pub fn missing(&self) -> u32 {
        self.remaining
    }

    /// The beginning of a header that has arrived so far.
    #[inline]
    pub fn kept(&self) -> Kept {
        let [a, b, c, d, _] = self.header;
        Kept { bytes: [a, b, c, d], length: self.carried }
    }

    /// The same, forgotten here: the next bytes are taken for the beginning of a message.
    pub fn take_kept(&mut self) -> Kept {
        let kept = self.kept();
        self.carried = 0;
        kept
    }
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

    /// Messages as (tag, body), put together from the segments of a stream cut in pieces.
    fn collect(pieces: &[&[u8]]) -> Result<Vec<(u8, Vec<u8>)>, FrameError> {
        let mut framer = Framer::default();
        let mut messages = Vec::new();
        let mut body = Vec::new();
        for piece in pieces {
            let mut at = 0;
            while let Some(segment) = framer.next(piece, &mut at, |_| 1 << 20)? {
                body.extend_from_slice(segment.body_part(piece));
                if segment.ends {
                    assert_eq!(body.len(), segment.body as usize);
                    messages.push((segment.tag, std::mem::take(&mut body)));
                }
            }
            assert_eq!(at, piece.len(), "a piece is always used up");
        }
        Ok(messages)
    }

    #[test]
    fn a_stream_cut_at_every_two_bytes_gives_the_same_messages() {
        let stream = [message(b'Q', b"select 1\0"), message(b'S', b""), message(b'd', &[7; 40])].concat();
        let whole = collect(&[&stream]).unwrap();
        assert_eq!(whole.len(), 3);
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(collect(&pieces).unwrap(), whole, "cut at {first} and {second}");
            }
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(collect(&bytes).unwrap(), whole);
    }

    #[test]
    fn impossible_lengths_are_refused_as_soon_as_the_header_is_there() {
        for length in [0u32, 3, (1 << 20) + 1, u32::MAX] {
            let mut bytes = vec![b'Q'];
            bytes.extend(length.to_be_bytes());
            assert_eq!(collect(&[&bytes]), Err(FrameError { tag: b'Q', length }));
        }
    }

    #[test]
    fn boundaries_are_known() {
        let mut framer = Framer::default();
        assert!(framer.at_boundary());
        let stream = message(b'Q', b"abc\0");
        for cut in 1..stream.len() {
            let mut at = 0;
            let mut framer = framer.clone();
            framer.next(&stream[..cut], &mut at, |_| 100).unwrap();
            assert!(!framer.at_boundary(), "cut at {cut}");
        }
        let mut at = 0;
        framer.next(&stream, &mut at, |_| 100).unwrap();
        assert!(framer.at_boundary());
    }
}
