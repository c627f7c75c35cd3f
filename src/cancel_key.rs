//! The process id and key that a client is given for cancelling: where it lives, and a secret.
//!
//! A CancelRequest comes on a connection of its own, to whichever shard accepts that. The process id says which shard the
//! client lives on and where in its table; the key says that the request is by the client, or by whom it trusts.
//!
//! Keys are not kept: each is derived of a secret of the process and of the session's id, which no two sessions share. A
//! client of protocol 3.0 is given 4 bytes of it, one of 3.2 all 32, as many as PostgreSQL 18 gives.

use crate::ids::{SessionId, ShardId};
use sha2::{Digest, Sha256};
use std::fmt;

/// What the keys of all clients are derived of. The same on all shards of a process, and nowhere else.
#[derive(Clone, Copy)]
pub struct Secret([u8; KEY_BYTES]);

impl Secret {
    /// These bytes, which nobody must be able to guess.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The key of a session: all of it if its protocol knows long ones.
    pub fn key_of(&self, session: SessionId, long: bool) -> CancelKey {
        // Both parts have a fixed length and fit in one block: nothing can be appended, and nothing cut off.
        let digest = Sha256::new().chain_update(self.0).chain_update(session.to_bits().to_be_bytes());
        CancelKey { bytes: digest.finalize().into(), length: if long { KEY_BYTES } else { SHORT_KEY_BYTES } }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A client's key.
pub struct CancelKey {
    bytes: [u8; KEY_BYTES],
    length: usize,
}

impl CancelKey {
    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Compares it with what somebody claims, in a time that does not tell how much of it is right.
    pub fn is(&self, claimed: &[u8]) -> bool {
        let own = self.as_slice();
        let difference = own.iter().zip(claimed).fold(0, |sum, (one, other)| sum | (one ^ other));
        own.len() == claimed.len() && std::hint::black_box(difference) == 0
    }
}

/// The process id of the client in this place of a shard's table. Counted through all shards, so that it stays small and
/// positive, as process ids are: 0 says that there is none.
pub fn process_of(shard: ShardId, slot: u32, shards: usize) -> u32 {
    let number = u64::from(slot) * shards as u64 + u64::from(shard.0) + 1;
    u32::try_from(number).unwrap_or(0)
}

/// The place that a process id names: the shard, and the place in its table.
pub fn place_of(process: u32, shards: usize) -> Option<(ShardId, u32)> {
    let number = (process as usize).checked_sub(1)?;
    let shard = u16::try_from(number.checked_rem(shards)?).ok()?;
    Some((ShardId(shard), u32::try_from(number / shards).ok()?))
}

/// As PostgreSQL 18. The protocol allows 256; who stands in front of us may want to add something of its own.
const KEY_BYTES: usize = 32;

/// What protocol 3.0 has room for.
const SHORT_KEY_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::IdSource;

    #[test]
    fn a_process_id_names_its_place_and_no_other() {
        for shards in [1, 2, 3, 128] {
            let mut seen = std::collections::HashSet::new();
            for slot in [0, 1, 2, 9999, 78_124] {
                for shard in 0..shards {
                    let shard = ShardId(shard as u16);
                    let process = process_of(shard, slot, shards);
                    assert!(process > 0 && process <= i32::MAX as u32 && seen.insert(process));
                    assert_eq!(place_of(process, shards), Some((shard, slot)));
                }
            }
        }
        assert_eq!(place_of(0, 2), None);
        assert_eq!(place_of(7, 0), None);
        assert_eq!(process_of(ShardId(1), u32::MAX, 2), 0, "no process id for a place that has none");
    }

    #[test]
    fn a_key_is_right_only_as_a_whole() {
        let mut ids = IdSource::new(ShardId(1));
        let (secret, session) = (Secret::new([7; 32]), ids.session());
        for (long, bytes) in [(false, 4), (true, 32)] {
            let key = secret.key_of(session, long);
            let right = key.as_slice().to_vec();
            assert!(right.len() == bytes && key.is(&right));
            for at in 0..bytes {
                let mut wrong = right.clone();
                wrong[at] ^= 1;
                assert!(!key.is(&wrong) && !key.is(&right[..at]), "{at}");
            }
            assert!(!key.is(&[&right[..], &[0]].concat()));
        }
        assert!(!secret.key_of(session, true).is(secret.key_of(session, false).as_slice()));
    }

    #[test]
    fn no_two_sessions_and_no_two_processes_have_the_same_key() {
        let mut seen = std::collections::HashSet::new();
        for secret in [Secret::new([0; 32]), Secret::new([1; 32])] {
            for shard in 0..2 {
                let mut ids = IdSource::new(ShardId(shard));
                for _ in 0..100 {
                    assert!(seen.insert(secret.key_of(ids.session(), false).as_slice().to_vec()));
                }
            }
        }
    }
}
