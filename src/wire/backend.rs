//! Messages that servers send: their types, how long they may be, and those that we make or read ourselves.

use super::frame::put;
use crate::limits::CANCEL_KEY_BYTES_MAX;
use bytes::{BufMut, Bytes, BytesMut};

/// Message types, as the protocol chapter names them.
pub mod tag {
    #![allow(missing_docs)]
    pub const AUTHENTICATION: u8 = b'R';
    pub const BACKEND_KEY_DATA: u8 = b'K';
    pub const BIND_COMPLETE: u8 = b'2';
    pub const CLOSE_COMPLETE: u8 = b'3';
    pub const COMMAND_COMPLETE: u8 = b'C';
    pub const COPY_BOTH_RESPONSE: u8 = b'W';
    pub const COPY_DATA: u8 = b'd';
    pub const COPY_DONE: u8 = b'c';
    pub const COPY_IN_RESPONSE: u8 = b'G';
    pub const COPY_OUT_RESPONSE: u8 = b'H';
    pub const DATA_ROW: u8 = b'D';
    pub const EMPTY_QUERY_RESPONSE: u8 = b'I';
    pub const ERROR_RESPONSE: u8 = b'E';
    pub const FUNCTION_CALL_RESPONSE: u8 = b'V';
    pub const NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';
    pub const NO_DATA: u8 = b'n';
    pub const NOTICE_RESPONSE: u8 = b'N';
    pub const NOTIFICATION_RESPONSE: u8 = b'A';
    pub const PARAMETER_DESCRIPTION: u8 = b't';
    pub const PARAMETER_STATUS: u8 = b'S';
    pub const PARSE_COMPLETE: u8 = b'1';
    pub const PORTAL_SUSPENDED: u8 = b's';
    pub const READY_FOR_QUERY: u8 = b'Z';
    pub const ROW_DESCRIPTION: u8 = b'T';
}

/// The transaction status of a ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `I`: not in a transaction.
    Idle,
    /// `T`: in a transaction.
    Transaction,
    /// `E`: in a transaction that failed.
    Failed,
}

impl Status {
    /// The status a byte stands for.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Status::Idle),
            b'T' => Some(Status::Transaction),
            b'E' => Some(Status::Failed),
            _ => None,
        }
    }
}

/// The largest length field a server's message of a type can have: fixed where the protocol fixes it; what PostgreSQL's
/// own limits allow (1,664 columns, 65,535 parameters, names of 63 bytes); 1 GB for data, and for errors and notices, which
/// quote data. 0 for a type that does not exist. More is a broken server, and is not waited for.
#[inline]
pub fn longest(tag: u8) -> u32 {
    match tag {
        tag::DATA_ROW
        | tag::COPY_DATA
        | tag::FUNCTION_CALL_RESPONSE
        | tag::ERROR_RESPONSE
        | tag::NOTICE_RESPONSE => 0x3fff_ffff + 4,
        tag::READY_FOR_QUERY => 5,
        tag::PARSE_COMPLETE
        | tag::BIND_COMPLETE
        | tag::CLOSE_COMPLETE
        | tag::EMPTY_QUERY_RESPONSE
        | tag::NO_DATA
        | tag::PORTAL_SUSPENDED
        | tag::COPY_DONE => 4,
        tag::BACKEND_KEY_DATA => 4 + 4 + CANCEL_KEY_BYTES_MAX as u32,
        tag::ROW_DESCRIPTION
        | tag::PARAMETER_DESCRIPTION
        | tag::PARAMETER_STATUS
        | tag::NOTIFICATION_RESPONSE
        | tag::COMMAND_COMPLETE
        | tag::COPY_IN_RESPONSE
        | tag::COPY_OUT_RESPONSE
        | tag::COPY_BOTH_RESPONSE
        | tag::AUTHENTICATION
        | tag::NEGOTIATE_PROTOCOL_VERSION => 1 << 20,
        _ => 0,
    }
}

/// The same of a server that no client listens to: what it says of its own accord is not long.
pub fn longest_unheard(tag: u8) -> u32 {
    match tag {
        tag::ERROR_RESPONSE | tag::NOTICE_RESPONSE => 64 << 20,
        _ => longest(tag),
    }
}

/// A message of the given type and body.
pub fn message(tag: u8, body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(body.len() + 5);
    put(&mut bytes, tag, &[body]);
    bytes.freeze()
}

/// Appends an AuthenticationOk.
pub fn put_authentication_ok(to: &mut BytesMut) {
    put(to, tag::AUTHENTICATION, &[&0u32.to_be_bytes()]);
}

/// Appends a ParameterStatus.
pub fn put_parameter_status(to: &mut BytesMut, name: &str, value: &str) {
    put(to, tag::PARAMETER_STATUS, &[name.as_bytes(), b"\0", value.as_bytes(), b"\0"]);
}

/// Appends a BackendKeyData: a key of 4 bytes, or of up to 256 since protocol 3.2.
pub fn put_backend_key_data(to: &mut BytesMut, process: u32, key: &[u8]) {
    put(to, tag::BACKEND_KEY_DATA, &[&process.to_be_bytes(), key]);
}

/// Appends a ReadyForQuery with status idle.
pub fn put_ready_for_query(to: &mut BytesMut) {
    put(to, tag::READY_FOR_QUERY, &[b"I"]);
}

/// The type of a column in our own answers, which are all text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// `text`.
    Text,
    /// `integer`.
    Int4,
    /// `bigint`.
    Int8,
    /// `double precision`.
    Float8,
}

impl ColumnType {
    /// Its oid in `pg_type`, and the size of its values in bytes; -1 if they vary.
    fn oid_and_size(self) -> (u32, i16) {
        match self {
            Self::Text => (25, -1),
            Self::Int4 => (23, 4),
            Self::Int8 => (20, 8),
            Self::Float8 => (701, 8),
        }
    }
}

/// Appends a RowDescription of columns that belong to no table.
pub fn put_row_description(to: &mut BytesMut, columns: &[(&str, ColumnType)]) {
    let mut body = BytesMut::new();
    body.put_u16(columns.len() as u16);
    for (name, column_type) in columns {
        let (oid, size) = column_type.oid_and_size();
        body.put_slice(name.as_bytes());
        body.put_u8(0);
        body.put_u32(0); // its table
        body.put_u16(0); // its number there
        body.put_u32(oid);
        body.put_i16(size);
        body.put_i32(-1); // no modifier
        body.put_u16(0); // text format
    }
    put(to, tag::ROW_DESCRIPTION, &[&body]);
}

/// Appends a DataRow; `None` is NULL.
pub fn put_data_row(to: &mut BytesMut, values: &[Option<String>]) {
    let mut body = BytesMut::new();
    body.put_u16(values.len() as u16);
    for value in values {
        match value {
            Some(text) => {
                body.put_u32(text.len() as u32);
                body.put_slice(text.as_bytes());
            }
            None => body.put_i32(-1),
        }
    }
    put(to, tag::DATA_ROW, &[&body]);
}

/// Appends a CommandComplete.
pub fn put_command_complete(to: &mut BytesMut, command: &str) {
    put(to, tag::COMMAND_COMPLETE, &[command.as_bytes(), b"\0"]);
}

/// Appends a notice with particulars, or without if there are none.
pub fn put_notice(to: &mut BytesMut, message: &str, detail: &str) {
    let mut parts: Vec<&[u8]> = vec![b"SNOTICE\0VNOTICE\0C00000\0M", message.as_bytes(), b"\0"];
    if !detail.is_empty() {
        parts.extend([&b"D"[..], detail.as_bytes(), b"\0"]);
    }
    parts.push(b"\0");
    put(to, tag::NOTICE_RESPONSE, &parts);
}

/// Appends the answer to a client that asks for a newer minor version of the protocol than we know, or for options of its
/// future: the minor version that is spoken, and the options, none of which we know. The protocol chapter says that the
/// first field is the minor version; PostgreSQL of every version sends the major one in front of it.
pub fn put_negotiate_protocol_version(to: &mut BytesMut, minor: u16, options: &[String]) {
    let count = u32::try_from(options.len()).unwrap_or(u32::MAX);
    let mut body = BytesMut::new();
    body.put_u32(0x0003_0000 | u32::from(minor));
    body.put_u32(count);
    for option in options {
        body.put_slice(option.as_bytes());
        body.put_u8(0);
    }
    put(to, tag::NEGOTIATE_PROTOCOL_VERSION, &[&body]);
}

/// The name and value of a ParameterStatus; `None` if its body is not two terminated strings.
pub fn read_parameter_status(body: &[u8]) -> Option<(&str, &str)> {
    let mut fields = body.strip_suffix(b"\0")?.split(|&byte| byte == 0);
    let name = std::str::from_utf8(fields.next()?).ok()?;
    let value = std::str::from_utf8(fields.next()?).ok()?;
    fields.next().is_none().then_some((name, value))
}

/// The process id and cancel key of a BackendKeyData, whose length the caller looks at.
pub fn read_backend_key_data(body: &[u8]) -> Option<(u32, &[u8])> {
    let (process, key) = body.split_first_chunk()?;
    Some((u32::from_be_bytes(*process), key))
}

/// The version (16 bits of major, 16 of minor) of a NegotiateProtocolVersion, and how many options it lists.
pub fn read_negotiate_protocol_version(body: &[u8]) -> Option<(u32, usize)> {
    let (version, rest) = body.split_first_chunk()?;
    let (count, names) = rest.split_first_chunk()?;
    let count = u32::from_be_bytes(*count) as usize;
    let listed = names.iter().filter(|&&byte| byte == 0).count();
    let whole = names.is_empty() || names.ends_with(&[0]);
    (whole && listed == count).then(|| (u32::from_be_bytes(*version), count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_read_back() {
        let mut bytes = BytesMut::new();
        put_parameter_status(&mut bytes, "TimeZone", "UTC");
        assert_eq!(read_parameter_status(&bytes[5..]), Some(("TimeZone", "UTC")));
        for bad in [&b""[..], b"a", b"a\0", b"a\0b\0c\0", b"\xff\0b\0"] {
            assert_eq!(read_parameter_status(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn keys_read_back() {
        let mut bytes = BytesMut::new();
        put_backend_key_data(&mut bytes, 7, &[0, 0, 0, 9]);
        assert_eq!(read_backend_key_data(&bytes[5..]), Some((7, &[0, 0, 0, 9][..])));
        assert_eq!(read_backend_key_data(&[0; 3]), None);
    }

    #[test]
    fn negotiations_read_back() {
        let mut bytes = BytesMut::new();
        put_negotiate_protocol_version(&mut bytes, 2, &["_pq_.a".into(), "_pq_.b".into()]);
        assert_eq!(read_negotiate_protocol_version(&bytes[5..]), Some((0x0003_0002, 2)));
        assert_eq!(read_negotiate_protocol_version(&bytes[5..13]), None, "names are missing");
        assert_eq!(read_negotiate_protocol_version(&bytes[5..bytes.len() - 1]), None);
        assert_eq!(read_negotiate_protocol_version(&[0, 3, 0, 0, 0, 0, 0, 0]), Some((0x0003_0000, 0)));
        for bad in [&[][..], &[0; 7], &[0, 3, 0, 0, 0, 0, 0, 0, 0], &[0, 3, 0, 0, 255, 255, 255, 255]] {
            assert_eq!(read_negotiate_protocol_version(bad), None, "{bad:?}");
        }
    }
}
