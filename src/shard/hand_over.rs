//! Servers that change their shard.
//!
//! ```text
//!   here:  Idle -> Moving -> gone, or Speaking if it stays after all
//!   there: Speaking -> Idle, or Linked
//! ```
//!
//! A server is taken out of its ring first, which takes a turn. What arrives until then belongs to it: bytes go along
//! and are read there, an end keeps it here. Its permit goes in any case, and the ledger is told before it leaves.

use super::server::{Server, State};
use super::{Alarm, Effect, Party, ServerKey, Shard};
use crate::config::LogLevel;
use crate::ids::{Owner, ShardId, SocketId};
use crate::limits::DRAIN_MAX;
use crate::mail::{Letter, MovedServer};
use crate::prepared::OnServer;
use crate::time::Instant;

/// What is known of a server that is being taken out of its ring.
pub(super) struct Departure {
    pub(super) to: ShardId,
    /// When it has been idle for too long; never, if it comes from work.
    idle_until: Instant,
    /// What arrived since.
    unread: Vec<u8>,
    /// It ended since, and how.
    ended: Option<Option<i32>>,
}

impl Shard {
    /// Hands over a server that is idle, or has just come to rest. It is the one used longest ago: the shard's own clients
    /// keep those whose caches are warm, and the other's find use for one that would soon be closed. The share has counted
    /// it out already, and with the letters of this event the ledger learns of it, before it leaves.
    pub(super) fn hand_over(&mut self, key: ServerKey, to: ShardId) {
        assert!(to != self.id, "a server moves to another shard");
        let Some(server) = self.servers.get_mut(key) else { return };
        assert!(server.may_be_linked(), "a server that moves is at rest and nobody's");
        let Some(route) = self.routes.get_mut(server.route) else {
            unreachable!("a route lives as long as it has servers")
        };
        let was_idle = route.pool.remove_idle(key);
        let idle_until = if was_idle { server.deadline.at() } else { Instant::NEVER };
        server.deadline.clear();
        server.state = State::Moving(Box::new(Departure { to, idle_until, unread: Vec::new(), ended: None }));
        self.effects.push(Effect::Take { socket: server.socket() });
    }

    /// Where a server that was taken out of its ring goes; `None` if it stays.
    pub(super) fn server_destination(&self, key: ServerKey) -> Option<ShardId> {
        match self.servers.get(key).map(|server| &server.state) {
            Some(State::Moving(departure)) if departure.ended.is_none() => Some(departure.to),
            _ => None,
        }
    }

    pub(super) fn server_leaves(&mut self, key: ServerKey) {
        let Some(server) = self.servers.remove(key) else { return };
        let State::Moving(departure) = server.state else { unreachable!("it has a destination") };
        debug_assert_eq!(server.unsent, 0, "a ring gives away what has nothing to send");
        let Some(route) = self.routes.get_mut(server.route) else {
            unreachable!("a route lives as long as it has servers")
        };
        route.pool.gone();
        let (name, parameters) = (route.name.clone(), route.parameters.clone());
        let moved = MovedServer {
            id: server.id,
            route: name,
            endpoint: server.endpoint,
            permit: server.permit,
            opened: server.opened,
            expires: server.expires,
            idle_until: departure.idle_until,
            proven: server.proven,
            last_session: server.last_session,
            prepared: server.statements.into_cache(),
            key: server.key,
            values: server.values,
            defaults: server.defaults,
            parameters,
            unread: departure.unread,
        };
        self.stats.handed_out += 1;
        if let Some(route) = self.routes.get_mut(server.route) {
            route.counts.handed_out += 1;
        }
        let to = departure.to;
        self.log(LogLevel::Debug, moved.last_session, Some(moved.id), || {
            format!("handed over to shard {to}")
        });
        self.effects.push(Effect::Mail { to, letter: Letter::Server(Box::new(moved), ()) });
        self.forget_unused(server.route);
    }

    /// A server that was taken out of its ring is in it again.
    pub(super) fn server_stays(&mut self, key: ServerKey, socket: SocketId) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.socket = Some(socket);
        let state = std::mem::replace(&mut server.state, State::Speaking);
        let State::Moving(departure) = state else {
            // It was condemned meanwhile. That close did not find it; PostgreSQL may be at it still.
            server.state = state;
            let linger = Some(self.config.timeouts.server_close);
            return self.effects.push(Effect::Close { socket, linger });
        };
        // It ended on the way: what it said last is read here, and only its permit goes on.
        server.counted_by = Some(departure.to);
        server.end_is_counted = true;
        self.read_unlinked(key, &departure.unread);
        self.server_ended(key, departure.ended.flatten());
    }

    /// A server of another shard is ours from now on.
    pub(super) fn server_arrives(&mut self, from: ShardId, moved: MovedServer, socket: SocketId) -> Owner {
        let route_key = self.route_named(&moved.route);
        let mut server =
            Server::new(moved.id, route_key, moved.endpoint, moved.permit, moved.opened, moved.expires);
        server.state = State::Speaking;
        server.socket = Some(socket);
        server.receiving = true;
        server.proven = moved.proven;
        server.last_session = moved.last_session;
        server.statements = OnServer::from_cache(moved.prepared);
        server.key = moved.key;
        (server.values, server.defaults) = (moved.values, moved.defaults);
        let key = self.servers.insert(server);
        self.effects.push(Effect::Receive { socket, on: true });
        self.stats.handed_in += 1;
        self.log(LogLevel::Debug, moved.last_session, Some(moved.id), || {
            format!("taken over from shard {from}")
        });
        let Some(route) = self.routes.get_mut(route_key) else { unreachable!("it was just found or made") };
        route.pool.arrives();
        route.counts.handed_in += 1;
        route.refused = None;
        let no = route.no;
        if let (None, Some(parameters)) = (&route.parameters, moved.parameters) {
            self.learn_defaults(route_key, parameters);
        }
        self.share(moved.endpoint).arrived(no);
        self.settle_in(key, &moved.unread, moved.idle_until);
        self.welcome_waiting(route_key);
        Party::Server(key).to_owner()
    }

    /// Reads what came with a server, and lets it rest if that was all.
    fn settle_in(&mut self, key: ServerKey, unread: &[u8], idle_until: Instant) {
        let Some(server) = self.servers.get_mut(key) else { return };
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, self.now + DRAIN_MAX);
        self.unlinked_received(key, unread);
        let Some(server) = self.servers.get_mut(key) else { return };
        if matches!(server.state, State::Idle) && idle_until != Instant::NEVER {
            // Nobody used it on the way.
            self.deadlines.set(Alarm::Server(key), &mut server.deadline, idle_until.min(server.expires));
        }
    }
}

impl Departure {
    pub(super) fn received(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    pub(super) fn ended(&mut self, error: Option<i32>) {
        self.ended = Some(error);
    }
}
