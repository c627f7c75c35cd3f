//! Clients that wait for a server: they are told so after a while, and refused in the end.

use super::client::State;
use super::{ClientKey, Shard};
use crate::time::Instant;
use crate::wire::{Refusal, SqlState, backend};
use bytes::BytesMut;

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
        let Some(client) = self.clients.get_mut(key) else { return };
        client.state = State::Waiting;
        client.since = self.now;
        client.notified = false;
        let Some(route) = client.route else { return };
        let notify = self.now.deadline(self.config.timeouts.query_wait_notify);
        let until = self.begin_patience(key).min(notify);
        self.set_client_deadline(key, until);
        self.hold_back(key);
        self.enqueue(key, route);
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
    use crate::shard::script::*;
    use crate::shard::{Effect, Piece, Shard};
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
