//! Statements by content: one allocation for all clients of a shard that prepared the same.

use hashbrown::HashMap;
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::rc::{Rc, Weak};

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
    /// Changes when its plans can no longer be trusted, on whatever server.
    pub(super) epoch: Cell<u32>,
}

/// All statements that clients of a shard have prepared.
#[derive(Debug, Default)]
pub struct Statements {
    by_fingerprint: HashMap<Fingerprint, Weak<Statement>>,
    /// Sweep up what nobody has any more when there are so many.
    sweep_at: usize,
    epoch: u32,
}

impl Fingerprint {
    /// Of the body of a Parse behind the name.
    pub fn of(body: &[u8]) -> Self {
        let digest = Sha256::digest(body);
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
        let fingerprint = Fingerprint::of(body);
        if let Some(statement) = self.by_fingerprint.get(&fingerprint).and_then(Weak::upgrade) {
            return statement;
        }
        if self.by_fingerprint.len() >= self.sweep_at.max(SWEEP_MIN) {
            self.by_fingerprint.retain(|_, statement| statement.strong_count() > 0);
            self.sweep_at = self.by_fingerprint.len() * 2;
        }
        let epoch = Cell::new(self.epoch);
        let statement = Rc::new(Statement { fingerprint, body: body.into(), epoch });
        self.by_fingerprint.insert(fingerprint, Rc::downgrade(&statement));
        statement
    }

    /// What servers have prepared of this is of no use any more.
    pub(super) fn expire(&mut self, statement: &Statement) {
        self.epoch = self.epoch.wrapping_add(1);
        statement.epoch.set(self.epoch);
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

/// Names on servers begin with this. No client's own name that does is ever passed on.
pub(super) const PREFIX: &[u8] = b"pgpinion_";

/// A name that no statement has: a Close of it does nothing, a Bind to it fails.
pub(super) const NOTHING: &[u8] = PREFIX;

const FINGERPRINT_BYTES: usize = 20;

/// Below PostgreSQL's 63, behind which names are cut off.
pub(super) const NAME_BYTES: usize = PREFIX.len() + 2 * FINGERPRINT_BYTES;
const _: () = assert!(NAME_BYTES < 63);

const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Dead entries of a few dozen bytes each that do not matter.
const SWEEP_MIN: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_statements_are_one_and_others_are_not() {
        let mut statements = Statements::default();
        let first = statements.intern(b"select $1\0\0\0");
        assert!(Rc::ptr_eq(&first, &statements.intern(b"select $1\0\0\0")));
        let typed = statements.intern(b"select $1\0\0\x01\0\0\0\x17");
        assert!(!Rc::ptr_eq(&first, &typed));
        assert_ne!(first.fingerprint.name(), typed.fingerprint.name());
    }

    #[test]
    fn names_are_stable_from_release_to_release() {
        let name = Fingerprint::of(b"select 1\0\0\0").name();
        assert_eq!(std::str::from_utf8(&name), Ok("pgpinion_7564e853d733d68343faa17c9a20341076f01a3f"));
    }

    #[test]
    fn what_nobody_has_is_swept_up() {
        let mut statements = Statements::default();
        let kept = statements.intern(b"kept\0\0\0");
        for number in 0..10 * SWEEP_MIN {
            statements.intern(format!("select {number}\0\0\0").as_bytes());
        }
        assert!(statements.len() <= SWEEP_MIN, "{}", statements.len());
        assert!(Rc::ptr_eq(&kept, &statements.intern(b"kept\0\0\0")));
    }
}
