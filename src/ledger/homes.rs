//! On which shards a route lives.

use crate::ids::{RouteName, ShardId};
use crate::random::mix;

/// The shards that a route's clients are best brought together on, the first choice first: as many as its permits are
/// worth, chosen by rendezvous hashing, so that all shards agree without a word, routes spread evenly, and a permit or
/// a shard more or less moves only those clients that it must.
pub fn homes(route: &RouteName, permits: usize, shards: usize) -> Vec<ShardId> {
    let wanted = permits.div_ceil(PERMITS_PER_HOME).clamp(1, shards.max(1));
    let seed = hash(&route.user, hash(&route.database, 0));
    let mut ranked: Vec<(u64, ShardId)> =
        (0..shards as u16).map(|shard| (mix(seed ^ mix(u64::from(shard) + 1)), ShardId(shard))).collect();
    ranked.sort_unstable_by(|one, other| other.cmp(one));
    ranked.into_iter().take(wanted).map(|(_, shard)| shard).collect()
}

/// FNV-1a: names are short, and nobody gains by a collision.
fn hash(name: &str, seed: u64) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ mix(seed);
    name.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Fewer connections than this cannot keep a core busy with their transactions, and spread over two cores they would have
/// to move between them.
pub const PERMITS_PER_HOME: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn name(user: usize) -> RouteName {
        RouteName { section: 0, database: "app".into(), user: format!("user{user}").into(), session: None }
    }

    #[test]
    fn a_permit_more_adds_a_home_at_most_and_moves_none() {
        for user in 0..100 {
            for permits in 0..100 {
                let (fewer, more) = (homes(&name(user), permits, 16), homes(&name(user), permits + 1, 16));
                assert!(more.starts_with(&fewer) && more.len() <= fewer.len() + 1);
                assert!((1..=16).contains(&fewer.len()));
            }
        }
    }

    #[test]
    fn a_shard_more_takes_clients_over_and_moves_no_others() {
        for user in 0..200 {
            let (before, after) = (homes(&name(user), 4, 7)[0], homes(&name(user), 4, 8)[0]);
            assert!(after == before || after == ShardId(7));
        }
    }

    #[test]
    fn routes_spread_over_the_shards() {
        let mut routes = [0; 8];
        for user in 0..8000 {
            routes[usize::from(homes(&name(user), 1, 8)[0].0)] += 1;
        }
        assert!(routes.iter().all(|&routes| (850..1150).contains(&routes)), "{routes:?}");
    }
}
