//! After a panic: whoever's state it may have left half changed is closed, and nobody else notices.

use super::client::State as ClientState;
use super::server::State as ServerState;
use super::{Client, ClientKey, Effect, Party, Server, ServerKey, Shard};
use crate::ids::Owner;
use crate::ledger::Failure;
use crate::session::Until;
use crate::slab::Key;
use hashbrown::HashSet;

impl Shard {
    /// A panic happened while an event of this party was handled: it cannot be trusted, and neither can whom it is
    /// linked to. Both are closed, and so is whoever the panic left in a state that no other step takes it out of.
    pub fn condemn(&mut self, owner: Owner) {
        match Party::from_owner(owner) {
            Party::Client(key) => self.condemn_client(key),
            Party::Server(key) => self.condemn_server(key),
        }
        self.condemn_strays();
    }

    fn condemn_client(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let socket = client.socket;
        if let ClientState::Linked(server) | ClientState::Checking(server) = client.state {
            client.state = ClientState::Idle;
            self.condemn_server_alone(server);
        }
        self.leave(key, None, REASON);
        // It may have been leaving already, at its leisure or half done.
        self.effects.push(Effect::Close { socket, linger: None });
    }

    fn condemn_server(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get(key) else { return };
        match server.state {
            ServerState::Linked(client) => {
                self.condemn_client(client);
                self.condemn_server_alone(key);
            }
            _ => self.condemn_server_alone(key),
        }
    }

    fn condemn_server_alone(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get(key) else { return };
        match server.state {
            // Its dial will end by itself.
            ServerState::Dialing if server.socket.is_none() => return,
            // Its end is arranged.
            ServerState::Closing => return,
            ServerState::Dialing | ServerState::Login(_) => {
                self.dial_failed(key, Failure::Unreachable(REASON.into()));
            }
            _ => {}
        }
        self.cut_off(key, REASON);
    }

    /// A step that was not finished may have left a link that one side knows nothing of, or that carries nothing, or a
    /// client that waits in no queue. None of them would ever be moved on.
    fn condemn_strays(&mut self) {
        let (clients, servers) = self.strays();
        for client in clients {
            self.condemn_client(client);
        }
        for server in servers {
            self.condemn_server_alone(server);
        }
    }

    /// Parties in a state that no event would take them out of. Between two events there is none, and the simulator
    /// looks.
    pub fn strays(&self) -> (Vec<Key<Client>>, Vec<Key<Server>>) {
        let queued: HashSet<ClientKey> = self
            .routes
            .iter()
            .flat_map(|(_, route)| {
                let logging_in = route.logins.iter().chain(&route.checks).copied();
                route.pool.waiting_clients().chain(logging_in)
            })
            .collect();
        let clients = self.clients.iter().filter(|(key, client)| self.is_stray_client(*key, client, &queued));
        let servers = self.servers.iter().filter(|(key, server)| self.is_stray_server(*key, server));
        (clients.map(|(key, _)| key).collect(), servers.map(|(key, _)| key).collect())
    }

    fn is_stray_client(&self, key: ClientKey, client: &Client, queued: &HashSet<ClientKey>) -> bool {
        match client.state {
            // A link that could be given back carries nothing, unless a message is being collected for it.
            ClientState::Linked(server) => {
                let collects = matches!(client.until, Some(Until::Bytes(_)));
                !self.is_linked(key, server) || (!collects && self.gives_back(server, key))
            }
            ClientState::Checking(server) => !self.is_linked(key, server),
            ClientState::Waiting | ClientState::AwaitParameters => !queued.contains(&key),
            ClientState::Startup { .. }
            | ClientState::Cancelling
            | ClientState::Idle
            | ClientState::Console
            | ClientState::ConsoleWaiting
            | ClientState::Moving { .. }
            | ClientState::Leaving => false,
        }
    }

    fn is_stray_server(&self, key: ServerKey, server: &Server) -> bool {
        match server.state {
            ServerState::Linked(client) => !self.is_linked(client, key),
            _ => false,
        }
    }

    /// Both know it.
    pub(super) fn is_linked(&self, client: ClientKey, server: ServerKey) -> bool {
        let client_knows = self.clients.get(client).is_some_and(|each| {
            [ClientState::Linked(server), ClientState::Checking(server)].contains(&each.state)
        });
        let server_knows = self
            .servers
            .get(server)
            .is_some_and(|each| matches!(each.state, ServerState::Linked(linked) if linked == client));
        client_knows && server_knows
    }
}

/// What the log says.
const REASON: &str = "internal error";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LeakPolicy;
    use crate::limits::COLLECTED_BYTES_MAX;
    use crate::shard::DialError;
    use crate::shard::script::*;
    use crate::time::Instant;
    use std::time::Duration;

    #[test]
    fn a_condemned_link_gives_its_permit_back() {
        for of_server in [false, true] {
            let (mut shard, (client, _), (server, _)) = linked();
            shard.condemn(if of_server { server } else { client });
            assert_eq!(closed(&mut shard), [0, 100]);
            shard.closed(client);
            assert_eq!(shard.census().permits, 1, "PostgreSQL has not closed it yet");
            shard.closed(server);
            assert!(shard.is_empty());
            assert_eq!(shard.census().permits, 0);
        }
    }

    #[test]
    fn a_condemned_server_that_is_busy_is_cancelled() {
        let (mut shard, (client, _), _) = linked();
        shard.condemn(client);
        let cancels =
            effects(&mut shard).into_iter().filter(|effect| matches!(effect, Effect::Cancel { .. }));
        assert_eq!(cancels.count(), 1);
    }

    /// The attempt was counted as going on for ever: nobody dialled again.
    #[test]
    fn a_server_condemned_during_its_login_is_an_attempt_that_failed() {
        let mut shard = shard();
        client(&mut shard, 0);
        let server = dials(&mut shard)[0];
        let owner = Party::Server(server).to_owner();
        shard.dialed(server, Ok(socket(100)));
        shard.condemn(owner);
        assert_eq!(closed(&mut shard), [100]);
        shard.closed(owner);
        assert!(dials(&mut shard).is_empty(), "there is a pause after an attempt that failed");
        shard.set_time(Instant::default() + Duration::from_secs(1));
        shard.tick();
        assert_eq!(dials(&mut shard).len(), 1);
    }

    /// The panic came while the clients were told why: the failure was counted again, and the process ended.
    #[test]
    fn a_server_condemned_when_its_attempt_has_failed_is_counted_once() {
        let mut shard = shard();
        client(&mut shard, 0);
        let server = dials(&mut shard)[0];
        let owner = Party::Server(server).to_owner();
        shard.dialed(server, Ok(socket(100)));
        shard.dial_failed(server, Failure::Refused);
        shard.condemn(owner);
        assert_eq!(closed(&mut shard), [100]);
        shard.closed(owner);
        assert_eq!(shard.census().permits, 0);
    }

    #[test]
    fn a_dial_goes_on_when_its_server_is_condemned() {
        let mut shard = shard();
        client(&mut shard, 0);
        let server = dials(&mut shard)[0];
        shard.condemn(Party::Server(server).to_owner());
        assert!(closed(&mut shard).is_empty());
        shard.dialed(server, Err(DialError("refused".into())));
        assert_eq!(shard.census().permits, 0);
    }

    /// The panic came while the client was leaving: its server belonged to nobody for ever.
    #[test]
    fn a_server_whose_client_had_half_left_is_closed() {
        let (mut shard, (client, key), _) = linked();
        shard.clients.get_mut(key).unwrap().state = ClientState::Leaving;
        shard.condemn(client);
        assert_eq!(closed(&mut shard), [0, 100]);
    }

    /// The panic came between taking a client from the queue and linking it: it waited until its timeout, if it had one.
    #[test]
    fn a_client_that_waits_in_no_queue_is_closed() {
        let (mut shard, _, (server, _)) = linked();
        let (waiting, key) = client(&mut shard, 1);
        shard.received(waiting, &message(b'Q', b"select 2\0"));
        let (bystander, _) = client(&mut shard, 2);
        shard.received(bystander, &message(b'Q', b"select 3\0"));
        effects(&mut shard);
        let route = shard.clients.get(key).unwrap().route.unwrap();
        assert_eq!(shard.routes.get_mut(route).unwrap().pool.dequeue(), Some(key));
        shard.condemn(server);
        assert_eq!(closed(&mut shard), [0, 1, 100]);
        assert_eq!(shard.census().waiting, 1, "who waits in the queue goes on waiting");
    }

    /// The panic came before the query of a client that had just got a server was passed on: nobody answered it.
    #[test]
    fn a_link_that_carries_nothing_is_closed() {
        let (mut shard, (client, key), (server, server_key)) = linked();
        shard.sent(server, 1000);
        shard.received(server, &message(b'C', b"SELECT 1\0"));
        shard.received(server, &message(b'Z', b"I"));
        effects(&mut shard);
        assert_eq!(shard.census().idle, 1);
        assert!(shard.link_idle(key), "and then it panics");
        let (other, _) = self::client(&mut shard, 1);
        shard.condemn(other);
        assert_eq!(closed(&mut shard), [0, 1, 100]);
        for owner in [client, other, Party::Server(server_key).to_owner()] {
            shard.closed(owner);
        }
        assert!(shard.is_empty());
    }

    /// Found by fuzzing: nothing of it has gone to the server yet, and its client was closed for the panic of another.
    #[test]
    fn a_client_whose_long_query_is_being_collected_is_no_stray() {
        let (mut shard, (client, key), (server, server_key)) = linked();
        shard.sent(server, 1000);
        shard.received(server, &[message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat());
        let route = shard.clients.get(key).unwrap().route.unwrap();
        shard.routes.get_mut(route).unwrap().leak_policy = LeakPolicy::Reset;
        let query = message(b'Q', &[&vec![b'x'; COLLECTED_BYTES_MAX], &b"\0"[..]].concat());
        shard.received(client, &query[..5]);
        assert_eq!(shard.census().idle, 0, "it has the server");
        let (other, _) = self::client(&mut shard, 1);
        effects(&mut shard);
        shard.condemn(other);
        assert_eq!(closed(&mut shard), [1]);
        shard.received(client, &query[5..]);
        assert!(shard.is_linked(key, server_key) && !shard.servers.get(server_key).unwrap().owed.is_empty());
    }
}
