//! Clients that wait for a server: they are told so after a while, and refused in the end.

use super::client::State;
use super::{ClientKey, Route, Shard};
use crate::time::Instant;
use crate::wire::{Refusal, SqlState, backend};
use bytes::BytesMut;

impl Route {
    /// As many clients wait as may: for a server, to learn what servers report, or to have their wishes checked by one.
    pub(super) fn is_queue_full(&self) -> bool {
        self.pool.waiting() + self.logins.len() + self.checks.len() >= self.waiting_clients_max
    }
}

impl Shard {
    /// A client waits from now on, for as long as it may. Returns until when that is.
    pub(super) fn begin_patience(&mut self, key: ClientKey) -> Instant {
        let patience = self.config.timeouts.query_wait;
        if let Some(client) = self.clients.get_mut(key) {
            client.patience = patience;
        }
        self.now.deadline(patience)
    }

    /// A client's request waits for a server from now on.
    pub(super) fn wait_for_server(&mut self, key: ClientKey) {
        let Some(route) = self.clients.get(key).and_then(|client| client.route) else { return };
        if self.routes.get(route).is_some_and(Route::is_queue_full) {
            return self.refuse_surplus(key);
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        client.state = State::Waiting;
        client.since = self.now;
        client.notified = false;
        let notify = self.now.deadline(self.config.timeouts.query_wait_notify);
        let until = self.begin_patience(key).min(notify);
        self.set_client_deadline(key, until);
        self.hold_back(key);
        self.enqueue(key, route);
    }

    /// Sends a client away that would have to wait where the queue is full. Those in it keep their places.
    pub(super) fn refuse_surplus(&mut self, key: ClientKey) {
        let Some(route) = self.clients.get(key).and_then(|client| client.route) else { return };
        let Some(route) = self.routes.get(route) else { return };
        let (most, name) = (route.waiting_clients_max, &route.name);
        let text = format!(
            "max_waiting_clients: {most} clients of database {:?} and user {:?} wait for a server connection already",
            name.database, name.user
        );
        let refusal = Refusal::new(SqlState::TOO_MANY_CONNECTIONS, text)
            .hint("Raise max_waiting_clients or the endpoint's max_connections, or shorten transactions.");
        self.refuse(key, refusal);
    }

    /// A client that waits is told so, once, and in the end refused.
    pub(super) fn waited(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let end = client.since.deadline(client.patience);
        if std::mem::replace(&mut client.notified, true) || end <= self.now {
            return self.waited_too_long(key);
        }
        let mut notice = BytesMut::with_capacity(128);
        backend::put_notice(&mut notice, QUEUED, "");
        self.send_to_client(key, notice.freeze());
        self.set_client_deadline(key, end);
    }

    pub(super) fn waited_too_long(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get(key) else { return };
        let seconds = client.patience.unwrap_or_default().as_secs_f64();
        let Some(route_key) = client.route else { return };
        self.count_wait(key, route_key);
        let Some(route) = self.routes.get(route_key) else { return };
        let refusal = match self.endpoints[route.endpoint].share.trouble() {
            Some(error) => {
                let text = format!("query_wait_timeout: no server connection within {seconds} s: {error}");
                Refusal::new(SqlState::CONNECTION_FAILURE, text)
            }
            None => {
                let text = format!("query_wait_timeout: no server connection became free within {seconds} s");
                Refusal::new(SqlState::TOO_MANY_CONNECTIONS, text)
                    .hint("Raise the endpoint's max_connections, or shorten transactions.")
            }
        };
        self.refuse(key, refusal);
    }
}

/// PgBouncer's words, which people look for.
const QUEUED: &str = "No server connection available in postgres backend, client being queued";

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::shard::client::State;
    use crate::shard::script::*;
    use crate::shard::{Effect, Peer, Piece, Shard};
    use crate::time::Instant;
    use std::sync::Arc;
    use std::time::Duration;

    /// What was sent to the client on this socket.
    fn told(shard: &mut Shard, slot: u32) -> String {
        let sent = effects(shard).into_iter().filter_map(|effect| match effect {
            Effect::Send { socket, piece: Piece::Own(bytes) } if socket.slot == slot => Some(bytes),
            _ => None,
        });
        sent.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
    }

    fn at(shard: &mut Shard, seconds: u64) {
        shard.set_time(Instant::default() + Duration::from_secs(seconds));
        shard.tick();
    }

    /// A reload with these seconds of query_wait_timeout, and without notices.
    fn reload(shard: &mut Shard, seconds: u64) {
        let mut config = Config::upstream("127.0.0.1:5432", &[0]).unwrap();
        config.endpoints[0].max_connections = 1;
        config.timeouts.query_wait = Some(Duration::from_secs(seconds));
        config.timeouts.query_wait_notify = None;
        shard.configure(Arc::new(config));
    }

    /// A reload after which so many clients of a route may wait.
    fn bound(shard: &mut Shard, most: usize) {
        let mut config = Config::upstream("127.0.0.1:5432", &[0]).unwrap();
        config.endpoints[0].max_connections = 1;
        config.max_waiting_clients = Some(most);
        shard.configure(Arc::new(config));
    }

    fn assert_surplus(shard: &mut Shard, slot: u32) {
        let effects = effects(shard);
        let to = |effect: &&Effect| match effect {
            Effect::Send { socket, .. } | Effect::Close { socket, .. } => socket.slot == slot,
            _ => false,
        };
        let about: Vec<&Effect> = effects.iter().filter(to).collect();
        let [Effect::Send { piece: Piece::Own(error), .. }, Effect::Close { .. }] = about[..] else {
            panic!("{slot} is told why, and closed: {about:?}")
        };
        let error = String::from_utf8_lossy(error);
        for part in ["SFATAL", "C53300", "max_waiting_clients: 2 clients of database \"d\" and user \"u\""] {
            assert!(error.starts_with('E') && error.contains(part), "{error:?}");
        }
    }

    #[test]
    fn who_comes_to_a_full_queue_is_refused_and_those_in_it_keep_their_places() {
        let (mut shard, _, (server, _)) = linked();
        bound(&mut shard, 2);
        let queue: Vec<_> = (1..=2).map(|slot| client(&mut shard, slot)).collect();
        for &(waiting, _) in &queue {
            shard.received(waiting, &message(b'Q', b"select 2\0"));
        }
        let (surplus, _) = client(&mut shard, 3);
        effects(&mut shard);
        shard.received(surplus, &message(b'Q', b"select 3\0"));
        assert_surplus(&mut shard, 3);
        // Another route has a queue of its own.
        let (other, other_key) = client_of(&mut shard, 4, "v");
        assert_eq!(shard.clients.get(other_key).unwrap().state, State::AwaitParameters);
        shard.ended(other, None);
        shard.sent(server, 1000);
        let both = [message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat();
        for (_, key) in queue {
            shard.received(server, &both);
            shard.sent(server, 1000);
            assert!(matches!(shard.clients.get(key).unwrap().state, State::Linked(_)));
        }
    }

    #[test]
    fn a_reload_bounds_a_queue_for_those_that_come_after() {
        let (mut shard, _, _) = linked();
        let clients: Vec<_> = (1..=4).map(|slot| client(&mut shard, slot)).collect();
        let ask = |shard: &mut Shard, at: usize| {
            effects(shard);
            shard.received(clients[at].0, &message(b'Q', b"select 2\0"));
        };
        (0..3).for_each(|at| ask(&mut shard, at));
        bound(&mut shard, 2);
        ask(&mut shard, 3);
        assert_surplus(&mut shard, 4);
        assert!(clients[..3].iter().all(|(_, key)| shard.clients.get(*key).unwrap().state == State::Waiting));
    }

    #[test]
    fn logins_that_wait_for_the_first_server_are_bounded_too() {
        let mut shard = shard();
        bound(&mut shard, 2);
        for slot in 0..2 {
            client(&mut shard, slot);
        }
        let server = dials(&mut shard)[0];
        client(&mut shard, 2);
        assert_surplus(&mut shard, 2);
        // What is known after that needs no server.
        log_in(&mut shard, server);
        effects(&mut shard);
        for slot in 3..6 {
            let (_, key) = client(&mut shard, slot);
            assert_eq!(shard.clients.get(key).unwrap().state, State::Idle);
        }
    }

    #[test]
    fn logins_whose_wishes_a_server_must_check_are_bounded_too() {
        let (mut shard, _, _) = linked();
        bound(&mut shard, 2);
        let log_in = |shard: &mut Shard, slot: u32| {
            effects(shard);
            let owner = shard.accepted(socket(slot), Peer::Unix, false);
            let body = format!("\0\x03\0\0user\0u\0database\0d\0DateStyle\0odd{slot}\0\0").into_bytes();
            shard.received(owner, &[&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat());
        };
        (1..=2).for_each(|slot| log_in(&mut shard, slot));
        assert!(closed(&mut shard).is_empty());
        log_in(&mut shard, 3);
        assert_surplus(&mut shard, 3);
    }

    #[test]
    fn a_wait_that_has_begun_ends_as_it_would_have_without_a_reload() {
        let (mut shard, _, _) = linked();
        reload(&mut shard, 10);
        let (waiting, _) = client(&mut shard, 1);
        shard.received(waiting, &message(b'Q', b"select 2\0"));
        at(&mut shard, 5);
        told(&mut shard, 1);
        reload(&mut shard, 60);
        at(&mut shard, 10);
        let end = told(&mut shard, 1);
        assert!(end.starts_with('E') && end.contains("became free within 10 s"), "{end:?}");
    }

    #[test]
    fn who_waits_is_told_once_for_each_wait_and_refused_in_the_end() {
        let (mut shard, (first, _), (server, _)) = linked();
        let (waiting, _) = client(&mut shard, 1);
        for (from, answer) in [(0, true), (100, false)] {
            at(&mut shard, from);
            shard.received(waiting, &message(b'Q', b"select 2\0"));
            at(&mut shard, from + 4);
            told(&mut shard, 1);
            at(&mut shard, from + 5);
            let notice = told(&mut shard, 1);
            assert!(notice.starts_with('N') && notice.contains("SNOTICE\0VNOTICE\0C00000\0M"), "{notice:?}");
            assert!(notice.contains(super::QUEUED), "{notice:?}");
            at(&mut shard, from + 60);
            assert_eq!(told(&mut shard, 1), "");
            if answer {
                // The server is free, and then is the first client's again.
                shard.sent(server, 1000);
                for _ in 0..2 {
                    shard.received(server, &[message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat());
                    shard.sent(server, 1000);
                }
                shard.received(first, &message(b'Q', b"select 3\0"));
                effects(&mut shard);
            }
        }
        at(&mut shard, 100 + 120);
        assert!(told(&mut shard, 1).contains("query_wait_timeout"));
    }
}
