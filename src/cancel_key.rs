//! The process id and key that a client is given for cancelling: where it lives, and a secret.
//!
//! A CancelRequest comes on a connection of its own, to whichever shard accepts that. The process id says which shard the
//! client lives on and where in its table; the secret says that the request is by the client, or by whom it trusts.

use crate::ids::ShardId;

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

/// Compares a secret with what somebody claims, in a time that does not tell how much of it is right.
pub fn is_same(secret: &[u8], claimed: &[u8]) -> bool {
    let difference = secret.iter().zip(claimed).fold(0, |sum, (one, other)| sum | (one ^ other));
    secret.len() == claimed.len() && std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn secrets_are_the_same_only_as_a_whole() {
        assert!(is_same(b"abcd", b"abcd"));
        for wrong in [&b"abce"[..], b"bbcd", b"abc", b"abcde", b""] {
            assert!(!is_same(b"abcd", wrong), "{wrong:?}");
        }
    }
}
