//! What happens to a server that no client holds: it is watched while idle, heard out and cleaned when its client
//! left, and closed when it cannot be brought to rest for certain.

use super::client::Goodbye;
use super::parameters::{Answer, resets};
use super::server::{Cleaning, State};
use super::{Alarm, ClientKey, Effect, ServerKey, Shard};
use crate::config::{LogLevel, PoolMode};
use crate::guard::Kinds;
use crate::ledger::Failure;
use crate::limits::{DRAIN_MAX, DRAINED_BYTES_MAX};
use crate::prepared::Show;
use crate::server::Nonsense;
use crate::time::Instant;
use crate::wire::backend::{self, Status, tag};
use crate::wire::error::Report;
use crate::wire::{Refusal, SqlState, frontend};
use bytes::Bytes;
use std::time::Duration;

impl Shard {
    /// Bytes of a server without a client: idle, being heard out, or being cleaned.
    pub(super) fn unlinked_received(&mut self, key: ServerKey, bytes: &[u8]) {
        self.read_unlinked(key, bytes);
        self.set_aside(key);
        self.advance_cleaning(key);
    }

    /// Reads messages that no client hears.
    pub(super) fn read_unlinked(&mut self, key: ServerKey, bytes: &[u8]) {
        let mut at = 0;
        loop {
            let Some(server) = self.servers.get_mut(key) else { return };
            if matches!(server.state, State::Closing) {
                return;
            }
            let segment = match server.framer.next(bytes, &mut at, backend::longest_unheard) {
                Ok(Some(segment)) => segment,
                Ok(None) => return,
                Err(error) => return self.close_broken(key, &error.to_string()),
            };
            // What a client waited for that is gone still tells what the server has prepared.
            if segment.begins {
                match server.account(segment.tag, None) {
                    Ok(Show::Collect) => server.begin_collecting(),
                    Ok(_) => {}
                    Err(nonsense) => return self.close_broken(key, &nonsense.to_string()),
                }
            }
            if server.collects {
                server.collect(&segment, bytes, None);
                continue;
            }
            if segment.begins && segment.tag == tag::COMMAND_COMPLETE {
                server.statements.completed(segment.body_part(bytes), segment.body as usize, None);
            }
            let replaying = server.replay.is_some();
            if !replaying && !is_understood(segment.tag) {
                continue;
            }
            let Some(body) = server.hear(&segment, bytes) else { continue };
            if !replaying {
                self.idle_message(key, segment.tag, &body);
            } else if matches!(self.replay_answer(key, segment.tag, &body), Answer::Last) {
                // Whatever came of it, there is no client to tell.
                if self.end_check(key).is_none() {
                    let _ = self.end_replay(key);
                }
            }
        }
    }

    /// An idle server that has begun to say something, or has not been told everything, is not given to anybody until
    /// that is over.
    pub(super) fn set_aside(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        match server.state {
            State::Idle if !server.is_at_rest() => {
                server.state = State::Speaking;
                if let Some(route) = self.routes.get_mut(server.route)
                    && route.pool.remove_idle(key)
                {
                    let (endpoint, no) = (route.endpoint, route.no);
                    self.share(endpoint).link_idle(no);
                }
            }
            State::Speaking => {}
            _ => return,
        }
        let Some(server) = self.servers.get_mut(key) else { return };
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, self.now + DRAIN_MAX);
    }

    /// A message of a server that no client hears.
    pub(super) fn idle_message(&mut self, key: ServerKey, message: u8, body: &Bytes) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let (id, session) = (server.id, server.last_session);
        match message {
            tag::READY_FOR_QUERY => match body.first().and_then(|&byte| Status::from_byte(byte)) {
                Some(status) => server.became(status),
                None => self.close_broken(key, "a transaction status that does not exist"),
            },
            tag::NOTICE_RESPONSE => {
                let report = Report::read(body);
                self.log(LogLevel::Info, session, Some(id), || format!("notice between sessions: {report}"));
            }
            tag::NOTIFICATION_RESPONSE => {
                self.log(LogLevel::Debug, session, Some(id), || "notification for nobody".into());
            }
            tag::ERROR_RESPONSE => {
                let report = Report::read(body);
                let cleaning = matches!(server.state, State::Cleaning(_));
                let idle = matches!(server.state, State::Idle | State::Speaking);
                self.log(LogLevel::Warn, session, Some(id), || format!("server: {report}"));
                if report.is_fatal() || cleaning || idle {
                    self.close_broken(key, "it ended the session, or could not be cleaned");
                }
            }
            tag::PARAMETER_STATUS => self.reported(key, body),
            tag::COMMAND_COMPLETE => {
                server.completed = true;
                server.was_reset |= resets(body);
            }
            _ => self.close_broken(key, &Nonsense { tag: message }.to_string()),
        }
    }

    /// The next step for a server whose client left, if the last one is done.
    pub(super) fn advance_cleaning(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let halfway = !server.owed.is_settled() || server.unsent > 0 || !server.framer.at_boundary();
        if halfway || server.cancelling.is_some() {
            return;
        }
        match server.state {
            State::Speaking if server.is_at_rest() => self.rest(key),
            State::Speaking => self.close_server(key, "it said something that only a client asks for"),
            State::Draining(_) | State::Cleaning(Cleaning::Rollback) => self.clean(key),
            State::Cleaning(Cleaning::Reset) if server.is_at_rest() => {
                server.leaks = Kinds::NONE;
                self.rest(key);
            }
            State::Cleaning(Cleaning::Reset) => {
                self.close_server(key, "the reset query left a transaction open")
            }
            _ => {}
        }
    }

    /// Rolls back what is open, makes the server forget the session where that is the rule, and lets it rest.
    pub(super) fn clean(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        if server.owed.in_doubt() {
            return self.close_server(key, "nobody knows whether it has more to say");
        }
        let session_mode = self.routes.get(server.route).is_some_and(|route| route.mode == PoolMode::Session);
        if server.status != Status::Idle {
            if matches!(server.state, State::Cleaning(_)) {
                return self.close_server(key, "it could not be rolled back");
            }
            self.tell(key, Cleaning::Rollback, "ROLLBACK");
        } else if !server.leaks.is_empty() {
            self.wash(key);
        } else if session_mode && !self.config.server_reset_query.is_empty() {
            let config = self.config.clone();
            self.tell(key, Cleaning::Reset, &config.server_reset_query);
        } else {
            self.rest(key);
        }
    }

    pub(super) fn tell(&mut self, key: ServerKey, cleaning: Cleaning, text: &str) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.state = State::Cleaning(cleaning);
        server.owed.sent(frontend::tag::QUERY);
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, self.now + CLEAN_MAX);
        self.send_to_server(key, frontend::query(text));
    }

    /// The client of this server leaves. The server is heard out and cleaned where it can be brought to rest for
    /// certain, else closed. Returns whether the client can still be told something: the stream to it is between
    /// two messages, and the server has not said goodbye itself.
    pub(super) fn abandon(&mut self, key: ServerKey, within_body: bool) -> bool {
        let Some(server) = self.servers.get(key) else { return true };
        let can_speak = !server.said_goodbye && !server.is_within_answer();
        if matches!(server.state, State::Closing) {
            return can_speak;
        }
        let own = self.is_own(server.route);
        let Some(server) = self.servers.get_mut(key) else { return true };
        if own && !within_body {
            self.close_server(key, "its client left");
        } else if within_body {
            self.cut_off(key, "its client left in the middle of a message");
        } else if server.owed.copies_in() {
            self.close_server(key, "its client left in the middle of a COPY");
        } else if server.owed.awaits_sync() {
            // It skips everything up to a Sync, which can do nothing but end that.
            server.owed.sent(frontend::tag::SYNC);
            self.send_to_server(key, Bytes::from_static(b"S\0\0\0\x04"));
            self.hear_out(key);
        } else if server.owed.is_batch_open() {
            // A Sync would commit what the client did not.
            self.close_server(key, "its client left in the middle of a batch");
        } else if server.owed.in_doubt() {
            self.close_server(key, "nobody knows whether it has more to say");
        } else {
            self.hear_out(key);
        }
        can_speak
    }

    pub(super) fn hear_out(&mut self, key: ServerKey) {
        self.resume_server(key);
        let Some(server) = self.servers.get_mut(key) else { return };
        server.state = State::Draining(DRAINED_BYTES_MAX);
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, self.now + DRAIN_MAX);
        self.advance_cleaning(key);
    }

    /// Closes a server: politely if it is between two messages, with a cancel request if it is busy. Its permit
    /// comes back when PostgreSQL has closed its side.
    pub(super) fn close_server(&mut self, key: ServerKey, reason: &str) {
        let Some(server) = self.servers.get_mut(key) else { return };
        if matches!(server.state, State::Closing) {
            return;
        }
        if server.owed.is_settled() && server.unsent == 0 {
            self.send_to_server(key, frontend::terminate());
        }
        self.cut_off(key, reason);
    }

    /// Closes a server without a word, which it would take for the rest of a message or not hear before it is done.
    pub(super) fn cut_off(&mut self, key: ServerKey, reason: &str) {
        let Some(server) = self.servers.get(key) else { return };
        let asked = server.cancelling.is_some();
        if let (false, false, Some(cancel_key)) = (asked, server.owed.is_settled(), server.key.clone()) {
            self.effects.push(Effect::Cancel { server: key, socket: server.socket(), key: cancel_key });
        }
        self.log_close(key, reason);
        let linger = self.config.timeouts.server_close;
        self.end_server(key, Some(linger));
    }

    /// Closes a server that broke the protocol, or ended: there is nothing more to say to it.
    pub(super) fn close_broken(&mut self, key: ServerKey, reason: &str) {
        self.log_close(key, reason);
        self.end_server(key, Some(self.config.timeouts.server_close));
    }

    pub(super) fn log_close(&mut self, key: ServerKey, reason: &str) {
        let Some(server) = self.servers.get(key) else { return };
        let (id, session, age) = (server.id, server.last_session, self.now.since(server.opened));
        let level = if self.config.log.disconnections { LogLevel::Info } else { LogLevel::Debug };
        self.log(level, session, Some(id), || {
            format!("server closing because: {reason} (age={:.3}s)", age.as_secs_f64())
        });
    }

    pub(super) fn end_server(&mut self, key: ServerKey, linger: Option<Duration>) {
        let Some(server) = self.servers.get_mut(key) else { return };
        let state = std::mem::replace(&mut server.state, State::Closing);
        server.deadline.clear();
        let (socket, route) = (server.socket(), server.route);
        let was_idle = match state {
            State::Closing => return,
            State::Idle => self.routes.get_mut(route).is_some_and(|route| route.pool.remove_idle(key)),
            State::Moving(departure) => {
                // It has been told that it goes there, and so must its permit.
                server.counted_by = Some(departure.to);
                server.end_is_counted = true;
                false
            }
            _ => false,
        };
        self.count_end(key, was_idle);
        self.effects.push(Effect::Close { socket, linger });
        self.forget_cancelling(key);
    }

    pub(super) fn server_ended(&mut self, key: ServerKey, error: Option<i32>) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.unsent = 0;
        let what = match error {
            None => "the server closed the connection".to_owned(),
            Some(errno) => {
                format!("the server connection failed: {}", std::io::Error::from_raw_os_error(errno))
            }
        };
        match &mut server.state {
            State::Closing | State::Dialing => {}
            State::Moving(departure) => departure.ended(error),
            State::Login(login) => {
                let may_be_too_new = login.may_be_too_new();
                self.dial_failed(key, Failure::Unreachable(format!("{what} during login").into()));
                self.log_close(key, &what);
                if may_be_too_new {
                    self.ask_for_old_protocol(key);
                }
                self.end_server(key, None);
            }
            State::Linked(client) => {
                let client = *client;
                if server.is_being_checked() {
                    return self.check_lost(key, client, &what);
                }
                self.log_close(key, &what);
                self.end_server(key, None);
                self.lose_server(client, what);
            }
            _ => {
                self.log_close(key, &what);
                self.end_server(key, None);
            }
        }
    }

    /// The client's server is gone. Bytes once sent to a server are never sent again: the client must know.
    pub(super) fn lose_server(&mut self, client: ClientKey, what: String) {
        let refusal = Refusal::new(SqlState::CONNECTION_FAILURE, what);
        let reason = refusal.to_string();
        self.leave(client, Some(Goodbye::Refusal(refusal)), &reason);
    }

    pub(super) fn server_alarm(&mut self, key: ServerKey, rang: Instant) {
        let Some(server) = self.servers.get_mut(key) else { return };
        if !self.deadlines.is_due(Alarm::Server(key), &mut server.deadline, rang, self.now) {
            return;
        }
        match &server.state {
            State::Login(_) => {
                self.dial_failed(key, Failure::Unreachable("server_connect_timeout during login".into()));
                self.log_close(key, "server_connect_timeout during login");
                // PostgreSQL may be at it still: its connection counts until it has closed it.
                self.end_server(key, Some(self.config.timeouts.server_close));
            }
            State::Idle => {
                let reason =
                    if server.expires <= self.now { "server_lifetime" } else { "server_idle_timeout" };
                self.close_server(key, reason);
            }
            State::Speaking => self.close_server(key, "it did not end what it said between transactions"),
            State::Draining(_) => {
                self.close_server(key, "it was busy for too long after its client had left")
            }
            State::Cleaning(_) => self.close_server(key, "cleaning it took too long"),
            &State::Linked(client) => self.check_took_too_long(key, client),
            State::Dialing | State::Moving(_) | State::Closing => {}
        }
    }

    pub(super) fn drain_server(&mut self, key: ServerKey) {
        if self.servers.get(key).is_some_and(|server| matches!(server.state, State::Idle)) {
            self.close_server(key, "shutting down");
        }
    }
}

/// Messages of an unlinked server that are read; all others only count.
fn is_understood(message: u8) -> bool {
    matches!(
        message,
        tag::READY_FOR_QUERY
            | tag::NOTICE_RESPONSE
            | tag::NOTIFICATION_RESPONSE
            | tag::ERROR_RESPONSE
            | tag::PARAMETER_STATUS
            | tag::COMMAND_COMPLETE
    )
}

/// How long a rollback or a reset may take.
const CLEAN_MAX: Duration = Duration::from_secs(5);
