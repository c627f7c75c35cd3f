//! Statements by content: one allocation for all clients of a shard that prepared the same.

use crate::guard::Kinds;
use hashbrown::HashMap;
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::hash::{DefaultHasher, Hasher};
use std::rc::Rc;

/// 160 bits of the SHA-256 of a statement's text and parameter types. The same on every shard, so that a server
/// connection that changes shards keeps what it has prepared. Nobody can make two texts with the same one (that takes
/// 2^80 attempts), so a name means one text to whoever shares the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; FINGERPRINT_BYTES]);

/// What a Parse says behind the name.
#[derive(Debug)]
pub struct Statement {
    pub(super) fingerprint: Fingerprint,
    /// The text, terminated, and the types of parameters as sent.
    pub(super) body: Box<[u8]>,
    /// As the server described it that prepared it last; unknown, no server is trusted to have it as it is now.
    pub(super) shape: Cell<Option<Shape>>,
    /// What it may leave behind, once somebody asked.
    pub(super) leaves: Cell<Option<Kinds>>,
}

/// The types of a statement's parameters, and the names and types of its result: what a client that prepared it counts
/// on. The same on every shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape(u64);

/// All statements that clients of a shard have prepared, and some that they had: who connects for each query, or gives up
/// a statement and prepares it again, finds it as it was left.
#[derive(Debug, Default)]
pub struct Statements {
    by_fingerprint: HashMap<Fingerprint, Rc<Statement>>,
    bytes: usize,
    /// What nobody has any more is swept up when there is so much.
    sweep_at: usize,
}

impl Fingerprint {
    /// Of the body of a Parse behind the name.
    pub fn of(body: &[u8], context: &str) -> Self {
        let mut digest = Sha256::new_with_prefix(body);
        // What stands behind the body cannot be taken for more of it: that says how long it is.
        digest.update(context);
        let digest = digest.finalize();
        let mut bytes = [0; FINGERPRINT_BYTES];
        bytes.copy_from_slice(&digest[..FINGERPRINT_BYTES]);
        Self(bytes)
    }

    /// The name on servers.
    pub fn name(&self) -> [u8; NAME_BYTES] {
        let mut name = [0; NAME_BYTES];
        name[..PREFIX.len()].copy_from_slice(PREFIX);
        for (digits, byte) in name[PREFIX.len()..].chunks_exact_mut(2).zip(self.0) {
            digits[0] = HEX_DIGITS[usize::from(byte >> 4)];
            digits[1] = HEX_DIGITS[usize::from(byte & 15)];
        }
        name
    }
}

impl Statements {
    /// The statement of the body of a Parse behind the name.
    pub fn intern(&mut self, body: &[u8]) -> Rc<Statement> {
        self.intern_within(body, "")
    }

    /// The same of a client whose session has values that decide what the text means.
    pub fn intern_within(&mut self, body: &[u8], context: &str) -> Rc<Statement> {
        let fingerprint = Fingerprint::of(body, context);
        if let Some(statement) = self.by_fingerprint.get(&fingerprint) {
            return statement.clone();
        }
        self.bytes += body.len() + ENTRY_BYTES;
        if self.bytes > self.sweep_at.max(SWEEP_BYTES_MIN) {
            self.sweep();
        }
        let statement = Rc::new(Statement {
            fingerprint,
            body: body.into(),
            shape: Cell::new(None),
            leaves: Cell::new(None),
        });
        self.by_fingerprint.insert(fingerprint, statement.clone());
        statement
    }

    fn sweep(&mut self) {
        let mut freed = 0;
        self.by_fingerprint.retain(|_, statement| {
            let goes = Rc::strong_count(statement) == 1;
            freed += if goes { statement.body.len() + ENTRY_BYTES } else { 0 };
            !goes
        });
        self.bytes -= freed;
        self.sweep_at = self.bytes * 2;
    }

    /// Entries, those included that nobody uses and that were not swept up yet.
    pub fn len(&self) -> usize {
        self.by_fingerprint.len()
    }

    /// No entry at all.
    pub fn is_empty(&self) -> bool {
        self.by_fingerprint.is_empty()
    }
}

impl Shape {
    /// Of the bodies of a ParameterDescription and of a RowDescription, which is missing if there is no result. Where
    /// columns come from does not matter to anybody, and changes when a table is made anew.
    pub(super) fn of(parameters: &[u8], row: Option<&[u8]>) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(parameters);
        hasher.write_u8(u8::from(row.is_some()));
        let mut rest = row.and_then(|row| row.get(2..)).unwrap_or_default();
        while let Some(end) = rest.iter().position(|&byte| byte == 0) {
            // Name; then table (4), column (2), type (4), length (2), modifier (4), format (2).
            let field = &rest[end + 1..];
            hasher.write(&rest[..=end]);
            hasher.write(field.get(6..16).unwrap_or(field));
            rest = field.get(18..).unwrap_or_default();
        }
        Self(hasher.finish())
    }
}

/// Names on servers begin with this. No client's own name that does is ever passed on.
pub(super) const PREFIX: &[u8] = b"pgpinion_";

/// A name that no statement has: a Close of it does nothing, a Bind to it fails.
pub(super) const NOTHING: &[u8] = PREFIX;

const FINGERPRINT_BYTES: usize = 20;

/// Below PostgreSQL's 63, behind which names are cut off.
pub(super) const NAME_BYTES: usize = PREFIX.len() + 2 * FINGERPRINT_BYTES;
const _: () = assert!(NAME_BYTES < 63);

const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// What may be kept that nobody has.
const SWEEP_BYTES_MIN: usize = 1024 * 1024;

/// An entry of the table and its statement, without the text.
const ENTRY_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_statements_are_one_and_others_are_not() {
        let mut statements = Statements::default();
        let first = statements.intern(b"select $1\0\0\0");
        assert!(Rc::ptr_eq(&first, &statements.intern(b"select $1\0\0\0")));
        let elsewhere = statements.intern_within(b"select $1\0\0\0", "LATIN1");
        assert_ne!(first.fingerprint, elsewhere.fingerprint, "the same bytes are another text");
        let typed = statements.intern(b"select $1\0\0\x01\0\0\0\x17");
        assert!(!Rc::ptr_eq(&first, &typed));
        assert_ne!(first.fingerprint.name(), typed.fingerprint.name());
    }

    #[test]
    fn names_are_stable_from_release_to_release() {
        let name = Fingerprint::of(b"select 1\0\0\0", "").name();
        assert_eq!(std::str::from_utf8(&name), Ok("pgpinion_7564e853d733d68343faa17c9a20341076f01a3f"));
    }

    #[test]
    fn a_shape_is_names_and_types() {
        let row = |name: &str, table: u8, kind: u8| {
            [
                &b"\0\x01"[..],
                name.as_bytes(),
                &[0, 0, 0, 0, table, 0, 1, 0, 0, 0, kind, 0, 4, 0xff, 0xff, 0xff, 0xff, 0, 0],
            ]
            .concat()
        };
        let shape = Shape::of(b"\0\0", Some(&row("a", 1, 23)));
        assert_eq!(shape, Shape::of(b"\0\0", Some(&row("a", 2, 23))), "another table");
        for other in [
            row("b", 1, 23),
            row("a", 1, 25),
            [row("a", 1, 23), row("a", 1, 23)[2..].to_vec()].concat(),
            vec![0, 0],
        ] {
            assert_ne!(shape, Shape::of(b"\0\0", Some(&other)));
        }
        assert_ne!(shape, Shape::of(b"\0\x01\0\0\0\x17", Some(&row("a", 1, 23))));
        assert_ne!(Shape::of(b"\0\0", None), Shape::of(b"\0\0", Some(b"\0\0")));
    }

    #[test]
    fn what_nobody_has_is_swept_up() {
        let mut statements = Statements::default();
        let kept = statements.intern(b"kept\0\0\0");
        for number in 0..50_000 {
            statements.intern(format!("select {number}\0\0\0").as_bytes());
        }
        assert!(statements.len() <= SWEEP_BYTES_MIN / ENTRY_BYTES, "{}", statements.len());
        assert!(Rc::ptr_eq(&kept, &statements.intern(b"kept\0\0\0")));
    }
}
