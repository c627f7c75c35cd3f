//! A new configuration for a shard at work: limits, shares and timeouts. Endpoints and databases keep their places.

use super::{Shard, permits};
use crate::config::Config;
use std::sync::Arc;

impl Shard {
    /// Goes on with this configuration, which [`Config::reload`] has made of the one that held. Limits hold at once: where
    /// more is held than may be, nothing is granted, idle ones are closed now and others when they are released; what was
    /// granted before is still opened.
    /// A timeout that has begun to run ends as it would have; the next is the new one.
    pub fn configure(&mut self, config: Arc<Config>) {
        assert_eq!(config.endpoints.len(), self.endpoints.len(), "a reload keeps the endpoints");
        assert_eq!(config.databases.len(), self.config.databases.len(), "a reload keeps the databases");
        self.config = config;
        self.renew_routes();
        for endpoint in 0..self.endpoints.len() {
            if let Some(ledger) = &mut self.endpoints[endpoint].ledger {
                ledger.reload(permits::policy(&self.config, endpoint));
                // What it decides follows at the end of the event.
                self.share(endpoint);
            }
        }
    }

    fn renew_routes(&mut self) {
        for key in self.routes.keys() {
            let Some(route) = self.routes.get_mut(key) else { continue };
            let (database, user) = (&route.name.database, &route.name.user);
            route.leak_policy = self.config.leak_policy_of(database, user);
            route.waiting_clients_max = self.config.waiting_clients_max_of(database, user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel_key::Secret;
    use crate::ids::{Owner, ShardId, SocketId};
    use crate::shard::{Effect, Party, Peer, ServerKey};
    use crate::time::Instant;
    use std::time::Duration;

    /// A shard with clients that hold transactions open, or want to.
    struct World {
        shard: Shard,
        now: Instant,
        sockets: u32,
        dials: Vec<ServerKey>,
        closes: usize,
    }

    impl World {
        fn new(limit: usize) -> Self {
            let mut shard = Shard::new(config(limit), ShardId(0), 1, 1, Secret::new([7; 32]));
            let now = Instant::from_nanos(1);
            shard.set_time(now);
            Self { shard, now, sockets: 0, dials: Vec::new(), closes: 0 }
        }

        fn socket(&mut self) -> SocketId {
            self.sockets += 1;
            SocketId { slot: self.sockets, generation: 0 }
        }

        /// A client that has asked for something.
        fn client(&mut self) -> Owner {
            let socket = self.socket();
            let owner = self.shard.accepted(socket, Peer::Unix, false);
            self.shard.received(owner, b"\0\0\0\x10\0\x03\0\0user\0u\0\0");
            self.shard.received(owner, b"Q\0\0\0\x0abegin\0");
            self.apply();
            self.pass();
            owner
        }

        fn configure(&mut self, limit: usize) {
            self.shard.configure(config(limit));
            self.apply();
            self.pass();
        }

        /// The oldest dial succeeds, and PostgreSQL lets it in.
        fn let_in(&mut self) -> Owner {
            let (server, socket) = (self.dials.remove(0), self.socket());
            let owner = Party::Server(server).to_owner();
            self.shard.dialed(server, Ok(socket));
            self.shard.sent(owner, 1000);
            self.shard.received(owner, b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I");
            self.apply();
            self.pass();
            owner
        }

        /// Time passes, as much as the ledger needs for all that it can decide.
        fn pass(&mut self) {
            for _ in 0..10 {
                self.now = self.now + Duration::from_micros(100);
                self.shard.set_time(self.now);
                self.shard.tick();
                self.apply();
            }
        }

        fn apply(&mut self) {
            let mut effects = Vec::new();
            self.shard.take_effects(&mut effects);
            for effect in effects {
                match effect {
                    Effect::Dial { server, .. } => self.dials.push(server),
                    Effect::Close { .. } => self.closes += 1,
                    _ => {}
                }
            }
        }
    }

    fn config(limit: usize) -> Arc<Config> {
        let mut config = Config::upstream("127.0.0.1:5432", &[0]).unwrap();
        config.endpoints[0].max_connections = limit;
        Arc::new(config)
    }

    #[test]
    fn a_raised_limit_serves_who_waits() {
        let mut world = World::new(1);
        let clients: Vec<Owner> = (0..3).map(|_| world.client()).collect();
        world.let_in();
        assert_eq!((world.dials.len(), world.shard.census().waiting), (0, 2), "one is served");
        world.configure(2);
        assert_eq!(world.dials.len(), 1, "a permit, a dial");
        world.configure(10);
        assert_eq!(world.dials.len(), 2, "as many as wait");
        assert_eq!(clients.len(), world.shard.census().clients);
    }

    #[test]
    fn a_lowered_limit_ends_what_is_being_opened() {
        let mut world = World::new(3);
        let _clients: Vec<Owner> = (0..3).map(|_| world.client()).collect();
        world.let_in();
        world.let_in();
        assert_eq!(world.dials.len(), 1);
        world.configure(1);
        assert_eq!(world.closes, 0, "open transactions go on, and so does a login");
        let third = world.let_in();
        assert_eq!(world.closes, 1, "but nobody gets the server");
        let before = world.shard.census();
        assert_eq!((before.permits, before.waiting), (3, 1), "its permit is held until it is closed");
        world.shard.closed(third);
        world.apply();
        world.pass();
        assert_eq!((world.shard.census().permits, world.dials.len()), (2, 0), "and is not used again");
        world.configure(3);
        assert_eq!(world.dials.len(), 1, "until there is room");
    }
}
