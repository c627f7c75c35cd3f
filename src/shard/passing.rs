//! What a client that has a server says to it.

use super::client::{Client, State};
use super::server::Server;
use super::{ClientKey, Effect, Piece, ServerKey, Shard, leaks};
use crate::config::{LeakPolicy, PoolMode};
use crate::guard::{self, Kinds};
use crate::limits::{OWED_REPLIES_MAX, UNSENT_BYTES_HIGH};
use crate::prepared::{Exchange, Watch};
use crate::session::{Held, Link, Progress, Until};
use crate::wire::backend::Status;
use bytes::Bytes;
use std::ops::Range;

impl Shard {
    /// Bytes for the linked server.
    #[inline]
    pub(super) fn pass_received(&mut self, key: ClientKey, server_key: ServerKey, bytes: &[u8]) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.deadline.clear();
        let mut from = 0;
        while let Some(client) = self.clients.get_mut(key)
            && let Some(until) = client.until
        {
            // Only the message that was begun is collected; what follows it passes as it lies.
            let missing = match until {
                Until::Bytes(needed) => needed.saturating_sub(client.pending.len()),
                Until::Answers => usize::MAX,
            };
            let taken = missing.min(bytes.len() - from);
            client.pending.extend_from_slice(&bytes[from..from + taken]);
            from += taken;
            match until {
                Until::Answers => return self.hold_back(key),
                Until::Bytes(_) if taken < missing => return,
                Until::Bytes(_) => self.pass_pending(key),
            }
        }
        if from == bytes.len() || !self.is_linked(key, server_key) {
            return;
        }
        self.pass(key, server_key, bytes, from, Piece::Received);
        self.stop_if_full(key, server_key);
    }

    /// The client has got a server, or what it waited for: what it kept goes there.
    pub(super) fn pass_pending(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get(key) else { return };
        let server_key = match client.state {
            State::Linked(server) => server,
            State::Checking(server) => return self.check_is_over(key, server),
            _ => return,
        };
        if self.servers.get(server_key).is_some_and(Server::is_being_checked) {
            return self.hold_back(key);
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        client.until = None;
        let bytes = Bytes::from(std::mem::take(&mut client.pending));
        self.pass(key, server_key, &bytes, 0, |range| Piece::Own(bytes.slice(range)));
        let Some(client) = self.clients.get(key) else { return };
        match (client.state, client.until) {
            (State::Linked(_), Some(Until::Answers)) => self.hold_back(key),
            (State::Linked(_), _) => {
                self.stop_if_full(key, server_key);
                self.server_has_room(key, server_key);
            }
            _ => {}
        }
    }

    /// A client whose server has enough to do is stopped.
    #[inline]
    fn stop_if_full(&mut self, key: ClientKey, server: ServerKey) {
        let Some(server) = self.servers.get(server) else { return };
        if server.unsent() > UNSENT_BYTES_HIGH || server.owed.len() > OWED_REPLIES_MAX {
            self.pause_client(key);
        }
    }

    /// The server came to the end of a request, or waits for its client: what that said next may go on.
    pub(super) fn go_on(&mut self, key: ClientKey) {
        if self.clients.get(key).is_some_and(|client| client.until == Some(Until::Answers)) {
            self.pass_pending(key);
        }
    }

    /// Takes bytes of a client, all behind `from`, to its server. `piece` makes something to be sent of a range of them.
    #[inline]
    fn pass(
        &mut self,
        key: ClientKey,
        server_key: ServerKey,
        bytes: &[u8],
        from: usize,
        piece: impl Fn(Range<usize>) -> Piece,
    ) {
        let Some(Client { session, names, unnamed, pending, until, values, .. }) = self.clients.get_mut(key)
        else {
            return;
        };
        let Some(server) = self.servers.get_mut(server_key) else { return };
        if server.has_cancel_under_way() && server.owed.is_settled() {
            pending.extend_from_slice(session.take_kept().as_slice());
            pending.extend_from_slice(&bytes[from..]);
            *until = Some(Until::Answers);
            return;
        }
        let socket = server.socket();
        let Server { owed, statements, status, unsent, route, defaults, doomed, .. } = server;
        // Who prepared statements before this was switched off goes on with them.
        let follows = self.config.max_prepared_statements > 0 || names.is_some();
        let (shared, leak_policy) = match self.routes.get(*route) {
            Some(route) => (route.mode != PoolMode::Session, route.leak_policy),
            None => (false, LeakPolicy::Allow),
        };
        let watches = leak_policy != LeakPolicy::Allow;
        let for_session = guard::Session {
            follows: &|name| defaults.get(name).is_some(),
            escapes: &|| values.get("standard_conforming_strings").is_some_and(|value| &**value == "off"),
        };
        let watch = watches.then(|| Watch {
            session: for_session,
            refused: leaks::refused(leak_policy),
            seen: Kinds::NONE,
        });
        let context = || {
            let deciding =
                ["client_encoding", "search_path"].map(|name| values.get(name).map_or("", |value| value));
            deciding.join("\0")
        };
        let prepared = (shared && (follows || watches)).then(|| Exchange {
            context: &context,
            statements: &mut self.statements,
            names,
            unnamed,
            server: statements,
            failed: *status == Status::Failed,
            statements_max: self.config.max_prepared_statements.max(1),
            follows,
            watch,
            out: &mut self.rewritten,
            doomed,
        });
        let mut link = Link { owed, prepared };
        let mut progress = Progress::starting_at(from);
        let mut send = |piece| self.effects.push(Effect::Send { socket, piece });
        let mut joins = false;
        let end = loop {
            let already = link.rewritten().map_or(0, |out| out.len());
            let passage = session.pass(bytes, &mut progress, &mut link);
            self.stats.queries += u64::from(passage.queries);
            let kept = passage.kept.as_slice();
            joins |= passage.rewritten && bytes.len() - from <= JOINED_BYTES_MAX;
            match link.rewritten() {
                Some(out) if joins => {
                    out.extend_from_slice(kept);
                    out.extend_from_slice(&bytes[passage.range.clone()]);
                    out[already..].rotate_right(kept.len() + passage.range.len());
                }
                _ => {
                    *unsent += kept.len() + passage.range.len();
                    if !kept.is_empty() {
                        send(Piece::Own(Bytes::copy_from_slice(kept)));
                    }
                    if !passage.range.is_empty() {
                        send(piece(passage.range));
                    }
                }
            }
            let more_joins = joins && passage.rewritten;
            if let Some(out) = link.rewritten().filter(|out| !more_joins && !out.is_empty()) {
                let whole = out.split().freeze();
                *unsent += whole.len();
                send(Piece::Own(whole));
            }
            if let Some(Held { kept, from, until: awaited }) = passage.held {
                pending.extend_from_slice(kept.as_slice());
                pending.extend_from_slice(&bytes[from..]);
                *until = Some(awaited);
            }
            if !passage.rewritten {
                break passage.end;
            }
        };
        let forsaken = link.owed.has_forsaken();
        let watch = link.prepared.and_then(|exchange| exchange.watch);
        if let Some(seen) = watch.map(|watch| watch.seen).filter(|seen| !seen.is_empty()) {
            self.leaks_seen(key, server_key, seen);
        }
        if let Some(end) = end {
            self.end_session(key, end);
        } else if forsaken {
            self.refuse_forsaken(server_key, key);
        }
    }
}

/// Rewritten messages are copied together with their neighbours when all that was received is not more: one piece is
/// cheaper to send than many.
const JOINED_BYTES_MAX: usize = 1024;
