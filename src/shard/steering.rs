//! Clients that change their shard at login, so that a route with few permits lives on few shards and finds its servers
//! there without mail.
//!
//! The decision falls when the startup packet has been read, and before it is answered: whoever moves has
//! heard nothing from us but that there is no encryption. The packet goes as it came, and the other shard reads it as if it
//! had accepted the client. A client moves at most once.

use super::client::{Client, State};
use super::{ClientKey, Effect, Party, Shard};
use crate::config::LogLevel;
use crate::ids::{Owner, RouteName, ShardId, SocketId};
use crate::mail::{Letter, MovedClient};

impl Shard {
    /// Where this client belongs, if that is not here.
    pub(super) fn home_elsewhere(&self, key: ClientKey, route: &RouteName) -> Option<ShardId> {
        let client = self.clients.get(key)?;
        if !self.config.steering || self.draining || client.steered {
            return None;
        }
        let home = self.home_of(route);
        (home != self.id).then_some(home)
    }

    /// The shard for the next client of a route: this one, if the route lives here, else each of its homes in turn.
    /// The kernel has spread clients evenly over the shards, and this leaves them so over the homes.
    pub(super) fn home_of(&self, route: &RouteName) -> ShardId {
        let homes = homes(self.permits_of(route), self.shards);
        if homes == self.shards {
            return self.id;
        }
        let mut ranking: Vec<(u64, ShardId)> = (0..self.shards)
            .map(|shard| ShardId(shard as u16))
            .map(|shard| (score(route, shard), shard))
            .collect();
        ranking.sort_unstable_by(|one, other| other.cmp(one));
        ranking.truncate(homes);
        if ranking.iter().any(|&(_, home)| home == self.id) {
            return self.id;
        }
        // The shards do not all begin with the same one.
        let turn = self.stats.steered_out as usize + usize::from(self.id.0);
        ranking[turn % homes].1
    }

    /// What a route can have at most.
    fn permits_of(&self, route: &RouteName) -> usize {
        let database = &self.config.databases[route.section];
        let role = database.user.as_deref().unwrap_or(&route.user);
        let settings = self
            .config
            .routes
            .iter()
            .find(|settings| *settings.database == *route.database && settings.user == role);
        let limit = self.config.endpoint_of(database).max_connections;
        settings.and_then(|settings| settings.max_connections).map_or(limit, |ceiling| ceiling.min(limit))
    }

    /// Lets a client go to another shard, with its startup packet unanswered.
    pub(super) fn steer(&mut self, key: ClientKey, to: ShardId) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.state = State::Moving { to, ended: None };
        client.deadline.clear();
        self.effects.push(Effect::Take { socket: client.socket });
    }

    /// Where a client that was taken out of its ring goes; `None` if it stays.
    pub(super) fn client_destination(&self, key: ClientKey) -> Option<ShardId> {
        match self.clients.get(key)?.state {
            State::Moving { to, ended: None } => Some(to),
            _ => None,
        }
    }

    pub(super) fn client_leaves(&mut self, key: ClientKey) {
        let Some(client) = self.clients.remove(key) else { return };
        let State::Moving { to, .. } = client.state else { unreachable!("it has a destination") };
        let moved = MovedClient {
            session: client.session_id,
            peer: client.peer,
            connected: client.connected,
            secret: client.secret,
            unread: client.pending,
        };
        self.stats.steered_out += 1;
        self.log(LogLevel::Debug, Some(moved.session), None, || format!("steered to shard {to}"));
        self.effects.push(Effect::Mail { to, letter: Letter::Client(Box::new(moved), ()) });
    }

    /// A client that was taken out of its ring is in it again.
    pub(super) fn client_stays(&mut self, key: ClientKey, socket: SocketId) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.socket = socket;
        let State::Moving { ended, .. } = client.state else {
            // It was sent away meanwhile.
            return self.effects.push(Effect::Close { socket, linger: None });
        };
        client.state = State::STARTUP;
        client.steered = true;
        match ended {
            Some(error) => self.client_ended(key, error),
            None => self.begin_session(key),
        }
    }

    /// A client of another shard is ours from now on.
    pub(super) fn client_arrives(&mut self, moved: MovedClient, socket: SocketId) -> Owner {
        let MovedClient { session, peer, connected, secret, unread } = moved;
        let mut client = Client::new(socket, session, peer, secret, connected);
        client.steered = true;
        client.pending = unread;
        let key = self.clients.insert(client);
        self.stats.steered_in += 1;
        self.begin_session(key);
        Party::Client(key).to_owner()
    }
}

/// Shards that a route with so many permits lives on: as many as have [`PERMITS_PER_HOME`] each.
fn homes(permits: usize, shards: usize) -> usize {
    permits.div_ceil(PERMITS_PER_HOME).clamp(1, shards)
}

/// Rendezvous hashing (Thaler, Ravishankar 1996): each shard's claim to a route depends on nothing but the two.
fn score(route: &RouteName, shard: ShardId) -> u64 {
    let section = route.section.to_le_bytes();
    let shard = shard.0.to_le_bytes();
    // Between two names stands a byte that neither has.
    let bytes = [&section[..], route.database.as_bytes(), &[0], route.user.as_bytes(), &[0], &shard].concat();
    // FNV-1a, and a finalizer that lets the last byte reach all bits (splitmix64's).
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// With two, a client whose neighbour is in a transaction still finds a server on its own shard.
const PERMITS_PER_HOME: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_lives_on_as_many_shards_as_its_permits_are_worth() {
        for (permits, shards, expected) in
            [(1, 8, 1), (2, 8, 1), (3, 8, 2), (4, 8, 2), (15, 8, 8), (16, 8, 8), (1000, 8, 8), (1, 1, 1)]
        {
            assert_eq!(homes(permits, shards), expected, "{permits} permits on {shards} shards");
        }
    }

    #[test]
    fn routes_are_spread_evenly_over_the_shards() {
        let (routes, shards) = (8000, 8u16);
        let mut count = vec![0; usize::from(shards)];
        for number in 0..routes {
            let user = format!("u{number}").into();
            let route = RouteName { section: 0, database: "d".into(), user };
            let home = (0..shards).max_by_key(|&shard| score(&route, ShardId(shard))).unwrap();
            count[usize::from(home)] += 1;
        }
        assert!(count.iter().all(|&each| (850..1150).contains(&each)), "{count:?}");
    }
}
