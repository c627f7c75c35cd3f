//! A server that was idle for longer than `server_check_delay` is asked `server_check_query` before it serves again: its
//! connection may have been dropped on the way without a word.
//!
//! ```text
//!   Linked: [check -> Z] [values -> Z] then the client's own
//!              | an error, the end, or nothing for too long
//!              v
//!           Closing, and the client gets another server
//! ```
//!
//! The server is linked while it is checked, so that nobody else waits for it, and what its client says is kept until it has
//! passed. The client notices nothing of a server that fails.

use super::client::State as ClientState;
use super::server::Server;
use super::{Alarm, ClientKey, ServerKey, Shard};
use crate::parameters::Replay;
use crate::session::Until;
use crate::wire::backend::{Status, tag};
use crate::wire::error::Report;
use crate::wire::frontend;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// What a linked server does for us ahead of its client's bytes.
pub(super) enum Errand {
    /// It is given its client's values.
    Values(Replay),
    /// It is checked.
    Check(Check),
}

/// A check under way.
#[derive(Default)]
pub(super) struct Check {
    /// Why it does not pass.
    failure: Option<String>,
    /// Of its ReadyForQuery.
    status: Option<Status>,
}

impl Errand {
    /// Whether the server is told to set this parameter.
    pub(super) fn sets(&self, name: &str) -> bool {
        match self {
            Self::Values(replay) => replay.sets(name),
            Self::Check(_) => false,
        }
    }

    /// A message of the server. True if it is the last one.
    pub(super) fn received(&mut self, message: u8, body: &Bytes) -> bool {
        match self {
            Self::Values(replay) => replay.received(message, body),
            Self::Check(check) => check.received(message, body),
        }
    }
}

impl Check {
    fn received(&mut self, message: u8, body: &Bytes) -> bool {
        match message {
            tag::ERROR_RESPONSE => self.failure = Some(Report::read(body).to_string()),
            tag::READY_FOR_QUERY => self.status = body.first().and_then(|&byte| Status::from_byte(byte)),
            _ => {}
        }
        message == tag::READY_FOR_QUERY
    }
}

impl Server {
    pub(super) fn is_being_checked(&self) -> bool {
        self.replay.as_ref().is_some_and(|errand| matches!(**errand, Errand::Check(_)))
    }
}

impl Shard {
    /// Asks a server that was just given to a client whether it is alive. False: nothing is to be asked.
    #[cold]
    pub(super) fn begin_check(&mut self, client_key: ClientKey, key: ServerKey) -> bool {
        let config = self.config.clone();
        let Some(query) = config.check_query() else { return false };
        let (Some(client), Some(server)) = (self.clients.get_mut(client_key), self.servers.get_mut(key))
        else {
            return false;
        };
        if matches!(client.state, ClientState::Linked(_)) {
            client.until = Some(Until::Answers);
        }
        server.replay = Some(Box::new(Errand::Check(Check::default())));
        server.owed.sent(frontend::tag::QUERY);
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, self.now + CHECK_MAX);
        self.send_to_server(key, frontend::query(query));
        true
    }

    /// The check of a server has come to its last message; `None` if it is not being checked.
    pub(super) fn end_check(&mut self, key: ServerKey) -> Option<Result<(), String>> {
        let server = self.servers.get_mut(key).filter(|server| server.is_being_checked())?;
        let Some(Errand::Check(check)) = server.replay.take().map(|errand| *errand) else { return None };
        server.status = check.status.unwrap_or(Status::Failed);
        let outcome = match check.failure {
            Some(failure) => Err(failure),
            None if server.status != Status::Idle => Err("it left a transaction open".to_owned()),
            None => Ok(()),
        };
        if outcome.is_err() {
            // If its client has left meanwhile, nobody else looks at the outcome.
            server.doomed = Some("server_check_query failed");
        }
        Some(outcome)
    }

    /// A linked server has passed, or not. `rest` is what it said behind that. False: nothing is left to be read for this
    /// client.
    pub(super) fn check_ended(
        &mut self,
        key: ServerKey,
        client_key: ClientKey,
        outcome: Result<(), String>,
        rest: &[u8],
    ) -> bool {
        if let Err(why) = outcome {
            self.fail_check(key, client_key, &why);
            return false;
        }
        let (Some(client), Some(server)) = (self.clients.get(client_key), self.servers.get_mut(key)) else {
            return false;
        };
        server.deadline.clear();
        let logs_in = matches!(client.state, ClientState::Checking(_));
        if logs_in || !Arc::ptr_eq(&client.values, &server.values) {
            self.replay(client_key, key);
        }
        let replaying = self.servers.get(key).is_some_and(|server| server.replay.is_some());
        if logs_in && !replaying {
            self.checked(client_key, key, &[], rest);
            return false;
        }
        self.pass_pending(client_key);
        if !replaying {
            self.ask_to_cancel(key);
        }
        // Its client may have left with what it said.
        let linked = self.is_linked(client_key, key);
        if !linked {
            self.unlinked_received(key, rest);
        }
        linked
    }

    /// The alarm of a linked server.
    pub(super) fn check_took_too_long(&mut self, key: ServerKey, client: ClientKey) {
        if self.servers.get(key).is_some_and(Server::is_being_checked) {
            self.fail_check(key, client, "no answer in time");
        }
    }

    fn fail_check(&mut self, key: ServerKey, client: ClientKey, why: &str) {
        self.close_server(key, &format!("server_check_query failed: {why}"));
        self.find_another(client);
    }

    /// A server that is being checked has ended.
    pub(super) fn check_lost(&mut self, key: ServerKey, client: ClientKey, what: &str) {
        self.log_close(key, &format!("server_check_query failed: {what}"));
        self.end_server(key, None);
        self.find_another(client);
    }

    /// A server that is being checked broke the protocol.
    pub(super) fn check_broke(&mut self, key: ServerKey, client: ClientKey, what: &str) {
        self.close_broken(key, &format!("server_check_query failed: {what}"));
        self.find_another(client);
    }

    /// The server of this client did not pass, and is closed: the client goes on with another one, or waits for it.
    pub(super) fn find_another(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let Some(route) = client.route else { return };
        client.until = None;
        let logs_in = matches!(client.state, ClientState::Checking(_));
        client.state = if logs_in { ClientState::AwaitParameters } else { ClientState::Idle };
        if self.draining {
            self.drain_client(key);
        } else if logs_in {
            self.find_checker(key, route);
        } else {
            self.open_pending(key);
        }
    }
}

/// How long a check may take. A server that is alive answers within a round trip; opening another takes little longer.
const CHECK_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel_key::Secret;
    use crate::config::{Config, Delay};
    use crate::ids::{Owner, ShardId};
    use crate::shard::script::*;
    use crate::shard::{Effect, Party, Piece};
    use crate::time::Instant;

    /// Shard, client on socket 0, and a server on socket 100 that has been idle for a minute.
    fn idle(query: &str) -> (Shard, Owner, Owner) {
        let mut config = Config::upstream("127.0.0.1:5432", &[0]).unwrap();
        (config.endpoints[0].max_connections, config.server_check_query) = (1, query.into());
        let shard = Shard::new(Arc::new(config), ShardId(0), 1, 0, Secret::new([7; 32]));
        let (mut shard, (client, _), (server, _)) = linked_on(shard);
        shard.sent(server, 1000);
        shard.received(server, &[message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat());
        shard.set_time(Instant::default() + Duration::from_secs(60));
        effects(&mut shard);
        (shard, client, server)
    }

    /// What was sent to a socket.
    fn sent(shard: &mut Shard, slot: u32) -> Vec<u8> {
        let pieces = effects(shard).into_iter().filter_map(|effect| match effect {
            Effect::Send { socket, piece: Piece::Own(bytes) } if socket.slot == slot => Some(bytes.to_vec()),
            Effect::Send { socket, piece: Piece::Received(range) } if socket.slot == slot => {
                Some(vec![b'?'; range.len()])
            }
            _ => None,
        });
        pieces.collect::<Vec<_>>().concat()
    }

    fn select() -> Vec<u8> {
        message(b'Q', b"select 2\0")
    }

    #[test]
    fn an_idle_server_is_checked_before_it_is_used() {
        let (mut shard, client, server) = idle("select 'alive'");
        shard.received(client, &select());
        assert_eq!(sent(&mut shard, 100), message(b'Q', b"select 'alive'\0"));
        shard.sent(server, 1000);
        let answer = [message(b'T', b"\0\0"), message(b'D', b"\0\0"), message(b'C', b"SELECT 1\0")].concat();
        shard.received(server, &answer);
        assert_eq!(effects(&mut shard).len(), 0, "the client sees nothing of it");
        shard.received(server, &message(b'Z', b"I"));
        assert_eq!(sent(&mut shard, 100), select());
        // It has just been used, and is not checked again.
        shard.sent(server, 1000);
        shard.received(server, &[message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat());
        effects(&mut shard);
        shard.received(client, &select());
        assert_eq!(sent(&mut shard, 100), vec![b'?'; select().len()]);
    }

    #[test]
    fn without_a_query_nothing_is_checked() {
        let (mut shard, client, _) = idle("");
        shard.received(client, &select());
        assert_eq!(sent(&mut shard, 100), vec![b'?'; select().len()]);
    }

    #[test]
    fn with_a_delay_of_nothing_every_use_is_checked() {
        let (mut shard, client, server) = idle("<empty>");
        let mut config = Config::clone(&shard.config);
        config.timeouts.server_check = Delay(Duration::ZERO);
        shard.configure(Arc::new(config));
        for _ in 0..3 {
            shard.received(client, &select());
            assert_eq!(sent(&mut shard, 100), message(b'Q', b"\0"));
            shard.sent(server, 1000);
            shard.received(server, &[message(b'I', b""), message(b'Z', b"I")].concat());
            shard.sent(server, 1000);
            shard.received(server, &[message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat());
            effects(&mut shard);
        }
    }

    /// Whatever is wrong with the server: it is closed, and the client's query goes to the next one.
    #[test]
    fn a_client_notices_nothing_of_a_server_that_does_not_pass() {
        type Failure = fn(&mut Shard, Owner);
        let failures: [(&str, Failure); 6] = [
            ("silence", |shard, _| {
                shard.set_time(Instant::default() + Duration::from_secs(60) + CHECK_MAX);
                shard.tick();
            }),
            ("an error", |shard, server| {
                let error = message(b'E', b"SERROR\0VERROR\0C42601\0Mno\0\0");
                shard.received(server, &[error, message(b'Z', b"I")].concat());
            }),
            ("a farewell", |shard, server| {
                shard.received(server, &goodbye());
                shard.ended(server, None);
            }),
            ("the end", |shard, server| shard.ended(server, Some(104))),
            ("nonsense", |shard, server| shard.received(server, &message(b'1', b""))),
            ("a transaction", |shard, server| {
                shard.received(server, &[message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat());
            }),
        ];
        for (what, fail) in failures {
            let (mut shard, client, server) = idle("begin");
            shard.received(client, &select());
            shard.sent(server, 1000);
            effects(&mut shard);
            fail(&mut shard, server);
            let after = effects(&mut shard);
            let is_to_client = |effect: &Effect| matches!(effect, Effect::Send { socket, .. } | Effect::Close { socket, .. } if socket.slot == 0);
            assert!(!after.iter().any(is_to_client), "{what}: {after:?}");
            let closes = after.iter().filter(|each| matches!(each, Effect::Close { .. })).count();
            assert_eq!(closes, 1, "{what}: {after:?}");
            shard.closed(server);
            shard.take_effects(&mut Vec::new());
            // The ledger gives the permit again.
            shard.set_time(Instant::default() + Duration::from_secs(63));
            shard.tick();
            let next = dials(&mut shard);
            let next = *next.first().unwrap_or_else(|| panic!("{what}: nothing is opened"));
            let owner = Party::Server(next).to_owner();
            shard.dialed(next, Ok(socket(101)));
            shard.sent(owner, 1000);
            effects(&mut shard);
            shard.received(owner, &hello());
            assert_eq!(sent(&mut shard, 101), select(), "{what}");
            assert_eq!(shard.strays(), (Vec::new(), Vec::new()), "{what}");
        }
    }

    #[test]
    fn a_client_that_leaves_during_a_check_leaves_the_server_to_others() {
        let (mut shard, client, server) = idle("<empty>");
        shard.received(client, &select());
        shard.sent(server, 1000);
        shard.ended(client, None);
        assert_eq!(closed(&mut shard), [0]);
        shard.received(server, &[message(b'I', b""), message(b'Z', b"I")].concat());
        assert_eq!(shard.census().idle, 1);
    }
}
