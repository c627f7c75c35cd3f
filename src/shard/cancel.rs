//! Cancel requests: from whoever asks to the server that is meant, if it is still at it.
//!
//! ```text
//!   asker -> its shard -> the client's shard -> PostgreSQL, on a connection of its own
//! ```
//!
//! PostgreSQL acts on a request when it gets to it, and knows backends only, not queries. So a server that a request is
//! under way to stays with its client until PostgreSQL has closed the connection of that request: no later client can be
//! hit. PostgreSQL sends the signal twice (`signal_child` of its postmaster.c), and the second may come when the query has
//! ended by the first; so what the client says behind the answer is held back as long. The asker's connection is held too,
//! so that it knows. At most one request is under way to a server; there are never more of them than servers.

use super::client::State as ClientState;
use super::server::State;
use super::{ClientKey, Effect, Server, ServerKey, Shard};
use crate::cancel_key::{CancelKey, place_of, process_of};
use crate::config::LogLevel;
use crate::ids::ShardId;
use crate::limits::{CANCEL_ASKERS_MAX, CANCELS_ABROAD_MAX};
use crate::mail::{CancelOrder, Letter};
use crate::slab::Key;
use crate::wire::startup::MINOR_OF_LONG_KEYS;
use crate::wire::{Refusal, SqlState, backend};
use bytes::BytesMut;

/// A cancel request under way to a server.
#[derive(Default)]
pub(super) struct Cancelling {
    /// PostgreSQL has been asked. Else the server is still doing something that is not the client's.
    asked: bool,
    /// Who wait for it.
    askers: Vec<Asker>,
    /// Who asked meanwhile, perhaps for the client's next query.
    later: Vec<Asker>,
}

/// Who asked: its shard, and its own word for it.
pub(super) type Asker = (ShardId, u64);

impl Server {
    /// A signal may still come.
    #[inline]
    pub(super) fn has_cancel_under_way(&self) -> bool {
        self.cancelling.as_ref().is_some_and(|cancelling| cancelling.asked)
    }
}

impl Shard {
    /// What a client is told to cancel with, appended to its greeting.
    pub(super) fn put_cancel_key(&self, client: ClientKey, greeting: &mut BytesMut) {
        let Some(key) = self.cancel_key_of(client) else { return };
        let process = process_of(self.id, client.slot(), self.shards);
        backend::put_backend_key_data(greeting, process, key.as_slice());
    }

    fn cancel_key_of(&self, client: ClientKey) -> Option<CancelKey> {
        let client = self.clients.get(client)?;
        Some(self.secret.key_of(client.session_id, client.minor >= MINOR_OF_LONG_KEYS))
    }

    /// A connection turned out to be a cancel request.
    pub(super) fn cancel_asked(&mut self, asker: ClientKey, process: u32, claimed: Vec<u8>) {
        let Some(client) = self.clients.get_mut(asker) else { return };
        client.state = ClientState::Cancelling;
        let order = CancelOrder { process, claimed, asker: asker.to_bits() };
        match place_of(process, self.shards) {
            Some((shard, _)) if shard != self.id && self.cancels_abroad < CANCELS_ABROAD_MAX => {
                self.cancels_abroad += 1;
                self.effects.push(Effect::Mail { to: shard, letter: Letter::Cancel(Box::new(order)) });
            }
            _ => self.cancel_ordered(self.id, &order),
        }
    }

    /// Cancels what a client of this shard does, if the order is right; who asked is told when that is done.
    pub(super) fn cancel_ordered(&mut self, from: ShardId, order: &CancelOrder) {
        let asker = (from, order.asker);
        let client = place_of(order.process, self.shards)
            .filter(|&(shard, _)| shard == self.id)
            .and_then(|(_, slot)| self.clients.key_at(slot))
            .filter(|&key| self.cancel_key_of(key).is_some_and(|key| key.is(&order.claimed)));
        match client {
            Some(client) => self.cancel_client(client, asker),
            None => self.cancel_done(asker),
        }
    }

    fn cancel_client(&mut self, key: ClientKey, asker: Asker) {
        let under_way = match self.clients.get(key).map(|client| client.state) {
            Some(ClientState::Waiting) => {
                self.cancel_waiting(key);
                false
            }
            Some(ClientState::Linked(server)) => self.cancel_server(server, asker),
            _ => false,
        };
        if !under_way {
            self.cancel_done(asker);
        }
    }

    /// The client has no server yet: its request is answered by us.
    fn cancel_waiting(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let (route, session) = (client.route, client.session_id);
        client.state = ClientState::Idle;
        client.deadline.clear();
        let answered = client.session.cancel(&mut client.pending);
        self.forget_waiting(route, key);
        let refusal = Refusal::new(SqlState::QUERY_CANCELED, "canceling statement due to user request")
            .detail("It waited for a server connection.");
        let mut answer = BytesMut::from(&refusal.to_error()[..]);
        if answered {
            backend::put_ready_for_query(&mut answer);
        }
        self.send_to_client(key, answer.freeze());
        self.log(LogLevel::Debug, Some(session), None, || "cancelled while it waited".into());
        self.became_idle(key);
    }

    /// The server that does what is to be cancelled. False: it does nothing.
    fn cancel_server(&mut self, key: ServerKey, asker: Asker) -> bool {
        let Some(server) = self.servers.get_mut(key) else { return false };
        let idle = server.owed.is_settled() && !server.has_cancel_under_way();
        if idle || server.key.is_none() {
            return false;
        }
        match &mut server.cancelling {
            Some(cancelling) if cancelling.askers.len() + cancelling.later.len() >= CANCEL_ASKERS_MAX => {
                false
            }
            Some(cancelling) if cancelling.asked => {
                cancelling.later.push(asker);
                true
            }
            Some(cancelling) => {
                cancelling.askers.push(asker);
                true
            }
            None => {
                let askers = vec![asker];
                server.cancelling = Some(Box::new(Cancelling { askers, ..Cancelling::default() }));
                // A batch of ours comes first, and must not be hit.
                if server.replay.is_none() {
                    self.ask_to_cancel(key);
                }
                true
            }
        }
    }

    /// Asks PostgreSQL to cancel, if the server is at its client's request by now.
    pub(super) fn ask_to_cancel(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let Some(cancelling) = server.cancelling.as_mut().filter(|cancelling| !cancelling.asked) else {
            return;
        };
        if server.owed.is_settled() || !matches!(server.state, State::Linked(_)) {
            return self.end_cancelling(key);
        }
        let Some(cancel_key) = server.key.clone() else { return };
        cancelling.asked = true;
        let (id, session) = (server.id, server.last_session);
        self.effects.push(Effect::Cancel { server: key, socket: server.socket(), key: cancel_key });
        self.log(LogLevel::Debug, session, Some(id), || "cancel request".into());
    }

    /// A cancel request came to its end: PostgreSQL has closed its connection, or never got it. Else (`ended` is false)
    /// nobody knows when it will act.
    pub fn cancelled(&mut self, key: ServerKey, ended: bool) {
        let Some(server) = self.servers.get_mut(key) else { return };
        if !server.has_cancel_under_way() {
            return;
        }
        if !ended {
            server.doomed = Some("nobody knows whether a cancel request will hit it");
        }
        self.end_cancelling(key);
    }

    fn end_cancelling(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let Some(cancelling) = server.cancelling.take() else { return };
        let Cancelling { askers, later, .. } = *cancelling;
        let linked = match server.state {
            State::Linked(client) => Some(client),
            _ => None,
        };
        for asker in askers {
            self.cancel_done(asker);
        }
        let Some(client) = linked else {
            self.advance_cleaning(key);
            return later.into_iter().for_each(|asker| self.cancel_done(asker));
        };
        self.ready_again(key, client);
        self.go_on(client);
        for asker in later {
            self.cancel_client(client, asker);
        }
    }

    /// Whoever asked need not wait any longer.
    fn cancel_done(&mut self, (shard, asker): Asker) {
        if shard == self.id {
            self.leave(Key::from_bits(asker), None, "cancel request");
        } else {
            self.effects.push(Effect::Mail { to: shard, letter: Letter::Cancelled(asker) });
        }
    }

    /// Another shard has dealt with a request of ours.
    pub(super) fn cancel_answered(&mut self, asker: u64) {
        self.cancels_abroad = self.cancels_abroad.saturating_sub(1);
        self.leave(Key::from_bits(asker), None, "cancel request");
    }

    /// The server is gone, or on its way out: nothing of what it does needs to be cancelled any more.
    pub(super) fn forget_cancelling(&mut self, key: ServerKey) {
        let cancelling = self.servers.get_mut(key).and_then(|server| server.cancelling.take());
        let Some(cancelling) = cancelling else { return };
        for asker in cancelling.askers.into_iter().chain(cancelling.later) {
            self.cancel_done(asker);
        }
    }
}
