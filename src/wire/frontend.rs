//! Messages that clients send: their types, how long they may be, and the few that we send to servers ourselves.

use super::frame::put;
use crate::limits::{MESSAGE_BYTES_MAX, SMALL_MESSAGE_BYTES_MAX};
use bytes::{Bytes, BytesMut};

/// Message types, as the protocol chapter names them.
pub mod tag {
    #![allow(missing_docs)]
    pub const BIND: u8 = b'B';
    pub const CLOSE: u8 = b'C';
    pub const COPY_DATA: u8 = b'd';
    pub const COPY_DONE: u8 = b'c';
    pub const COPY_FAIL: u8 = b'f';
    pub const DESCRIBE: u8 = b'D';
    pub const EXECUTE: u8 = b'E';
    pub const FLUSH: u8 = b'H';
    pub const FUNCTION_CALL: u8 = b'F';
    pub const PARSE: u8 = b'P';
    pub const PASSWORD: u8 = b'p';
    pub const QUERY: u8 = b'Q';
    pub const SYNC: u8 = b'S';
    pub const TERMINATE: u8 = b'X';
}

/// The largest length field PostgreSQL accepts for a message type (`SocketBackend`); 0 for a type that does not exist.
pub fn longest(tag: u8) -> u32 {
    match tag {
        tag::QUERY | tag::PARSE | tag::BIND | tag::FUNCTION_CALL | tag::COPY_DATA => MESSAGE_BYTES_MAX,
        tag::CLOSE
        | tag::DESCRIBE
        | tag::EXECUTE
        | tag::FLUSH
        | tag::SYNC
        | tag::TERMINATE
        | tag::COPY_DONE
        | tag::COPY_FAIL => SMALL_MESSAGE_BYTES_MAX,
        _ => 0,
    }
}

/// A simple query. `text` must not contain a zero byte.
pub fn query(text: &str) -> Bytes {
    message(tag::QUERY, &[text.as_bytes(), b"\0"])
}

/// The polite end of a connection.
pub fn terminate() -> Bytes {
    Bytes::from_static(b"X\0\0\0\x04")
}

/// A password, or the answer to an md5 challenge.
pub fn password(answer: &[u8]) -> Bytes {
    message(tag::PASSWORD, &[answer, b"\0"])
}

/// The first message of a SASL exchange: the mechanism's name and its initial response.
pub fn sasl_initial_response(mechanism: &str, data: &[u8]) -> Bytes {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes();
    message(tag::PASSWORD, &[mechanism.as_bytes(), b"\0", &length, data])
}

/// A later message of a SASL exchange.
pub fn sasl_response(data: &[u8]) -> Bytes {
    message(tag::PASSWORD, &[data])
}

fn message(tag: u8, parts: &[&[u8]]) -> Bytes {
    let mut bytes = BytesMut::new();
    put(&mut bytes, tag, parts);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed() {
        assert_eq!(&query("x")[..], b"Q\0\0\0\x06x\0");
        assert_eq!(&sasl_initial_response("A", b"bc")[..], b"p\0\0\0\x0cA\0\0\0\0\x02bc");
        assert_eq!(longest(b'?'), 0);
    }
}
