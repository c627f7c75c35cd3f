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
use crate::ledger;
use crate::mail::{Letter, MovedClient};

impl Shard {
    /// Where this client belongs, if that is not here.
    pub(super) fn home_elsewhere(&self, key: ClientKey, route: &RouteName) -> Option<ShardId> {
        let client = self.clients.get(key)?;
        if !self.config.steering || self.draining || client.steered || route.session.is_some() {
            return None;
        }
        let home = self.home_of(route);
        (home != self.id).then_some(home)
    }

    /// The shard for the next client of a route: this one, if the route lives here, else each of its homes in turn.
    /// The kernel has spread clients evenly over the shards, and this leaves them so over the homes.
    pub(super) fn home_of(&self, route: &RouteName) -> ShardId {
        let homes = ledger::homes(route, self.quota(route).ceil() as usize, self.shards);
        if homes.contains(&self.id) {
            return self.id;
        }
        homes[self.steering_turn % homes.len()]
    }

    /// Lets a client go to another shard, with its startup packet unanswered.
    pub(super) fn steer(&mut self, key: ClientKey, to: ShardId) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.state = State::Moving { to, ended: None };
        client.deadline.clear();
        // Now, and not when it has left: many clients may come in one turn of the ring.
        self.steering_turn = self.steering_turn.wrapping_add(1);
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
        let MovedClient { session, peer, connected, unread } = moved;
        let mut client = Client::new(socket, session, peer, connected);
        client.steered = true;
        client.pending = unread;
        let key = self.clients.insert(client);
        self.stats.steered_in += 1;
        self.begin_session(key);
        Party::Client(key).to_owner()
    }
}
