//! Answers as messages: rows in text format, a tag, and always a ReadyForQuery at the end.

use crate::wire::backend::{self, ColumnType};
use crate::wire::{Refusal, frame};
use bytes::{Bytes, BytesMut};

/// Rows under columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Name and type of each.
    pub columns: &'static [(&'static str, ColumnType)],
    /// A value for each column; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
}

/// The messages that answer one query, as far as they are made.
#[derive(Debug, Default)]
pub struct Answer(BytesMut);

impl Answer {
    /// A word beside the answer, with particulars.
    pub fn notice(mut self, message: &str, detail: &str) -> Self {
        backend::put_notice(&mut self.0, message, detail);
        self
    }

    /// Rows, and the end.
    pub fn table(mut self, table: &Table, tag: &str) -> Bytes {
        backend::put_row_description(&mut self.0, table.columns);
        for row in &table.rows {
            debug_assert_eq!(row.len(), table.columns.len(), "a value for each column");
            backend::put_data_row(&mut self.0, row);
        }
        self.complete(tag)
    }

    /// Nothing but a tag, and the end.
    pub fn complete(mut self, tag: &str) -> Bytes {
        backend::put_command_complete(&mut self.0, tag);
        self.end()
    }

    /// The answer to an empty query.
    pub fn empty(mut self) -> Bytes {
        frame::put(&mut self.0, backend::tag::EMPTY_QUERY_RESPONSE, &[]);
        self.end()
    }

    /// What is wrong with the query. The session goes on.
    pub fn error(mut self, refusal: &Refusal) -> Bytes {
        self.0.extend_from_slice(&refusal.to_error());
        self.end()
    }

    fn end(mut self) -> Bytes {
        backend::put_ready_for_query(&mut self.0);
        self.0.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::SqlState;

    #[test]
    fn a_table_is_described_row_by_row() {
        let table = Table {
            columns: &[("name", ColumnType::Text), ("count", ColumnType::Int8)],
            rows: vec![vec![Some("a".into()), Some("7".into())], vec![None, Some(String::new())]],
        };
        let bytes = Answer::default().table(&table, "SHOW");
        let expected: &[u8] = b"T\0\0\0\x35\0\x02\
            name\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0\
            count\0\0\0\0\0\0\0\0\0\0\x14\0\x08\xff\xff\xff\xff\0\0\
            D\0\0\0\x10\0\x02\0\0\0\x01a\0\0\0\x017\
            D\0\0\0\x0e\0\x02\xff\xff\xff\xff\0\0\0\0\
            C\0\0\0\x09SHOW\0Z\0\0\0\x05I";
        assert_eq!(&bytes[..], expected);
    }

    #[test]
    fn an_error_does_not_end_the_session() {
        let bytes = Answer::default().error(&Refusal::new(SqlState::SYNTAX_ERROR, "x"));
        let report = crate::wire::error::Report::read(&bytes[5..]);
        assert_eq!((report.to_string().as_str(), report.is_fatal()), ("ERROR 42601: x", false));
        assert!(bytes.ends_with(b"Z\0\0\0\x05I"));
    }
}
