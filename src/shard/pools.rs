//! Who gets which server: routes, linking, releasing, opening, giving up.

use super::client::State as ClientState;
use super::server::State as ServerState;
use super::{Alarm, ClientKey, Route, RouteKey, ServerKey, Shard};
use crate::config::{LogLevel, PoolMode};
use crate::ids::RouteName;
use crate::ledger::{Failure, Rest};
use crate::metrics::{RecentWaits, RouteCounts};
use crate::parameters::Accepted;
use crate::pool::Pool;
use crate::server::Credentials;
use crate::time::Instant;
use crate::wire::error::Report;
use crate::wire::{Refusal, SqlState};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

impl Shard {
    // ---- routes ----

    /// The name of the route of a database and user as a client names them.
    pub(super) fn route_name(&self, database: &str, user: &str) -> Result<RouteName, Refusal> {
        let Some(settings) = self.config.database(database) else {
            let refusal =
                Refusal::new(SqlState::INVALID_CATALOG_NAME, format!("no such database: {database}"));
            return Err(refusal.hint("Databases are listed in pgpinion.toml, sections [databases.NAME]."));
        };
        let section =
            self.config.databases.iter().position(|each| std::ptr::eq(each, settings)).unwrap_or_default();
        Ok(RouteName { section, database: database.into(), user: user.into(), session: None })
    }

    /// The route of that name, which is made if there is none.
    pub(super) fn route_named(&mut self, name: &RouteName) -> RouteKey {
        if let Some(&route) = self.routes_by_name.get(name) {
            return route;
        }
        let settings = &self.config.databases[name.section];
        let role = settings.user.clone().unwrap_or_else(|| name.user.to_string());
        let password = self.config.server_password(settings, &role).map(|secret| secret.reveal().to_owned());
        let endpoint = settings.endpoint;
        let mode = match name.session {
            Some(_) => PoolMode::Session,
            None => self.config.pool_mode_of(settings),
        };
        let dbname = settings.name_on_server(&name.database).to_owned();
        let leak_policy = self.config.leak_policy_of(&name.database, &name.user);
        let waiting_clients_max = self.config.waiting_clients_max_of(&name.database, &name.user);
        let no = self.share(endpoint).enter(name);
        let reported = self.reported.get(name).cloned();
        let defaults = reported.as_ref().map(|reported| self.defaults_of(reported)).unwrap_or_default();
        let key = self.routes.insert(Route {
            no,
            endpoint,
            mode,
            leak_policy,
            waiting_clients_max,
            dbname,
            credentials: Credentials { user: role, password },
            own: None,
            name: name.clone(),
            pool: Pool::default(),
            logins: VecDeque::new(),
            parameters: reported,
            defaults,
            accepted: Accepted::default(),
            checks: VecDeque::new(),
            checking: None,
            refused: None,
            clients: 0,
            waits: RecentWaits::default(),
            counts: RouteCounts::default(),
        });
        self.routes_by_name.insert(name.clone(), key);
        self.endpoints[endpoint].number(no, key);
        key
    }

    /// A client comes to a route: it is let in at once if the server's parameters are known.
    pub(super) fn enter_route(&mut self, client: ClientKey, key: RouteKey) {
        let now = self.now;
        let Some(route) = self.routes.get_mut(key) else { return };
        route.clients += 1;
        if route.clients == 1 {
            let (endpoint, no) = (route.endpoint, route.no);
            self.share(endpoint).visited(no);
        }
        let Some(route) = self.routes.get_mut(key) else { return };
        if route.parameters.is_some() {
            let until = self.begin_patience(client);
            self.set_client_deadline(client, until);
            return self.admit(client);
        }
        match &route.refused {
            Some((until, error, report)) if *until > now => {
                let (error, reason) = (error.clone(), report.to_string());
                return self.refuse_with(client, error, &reason);
            }
            _ if route.is_queue_full() => return self.refuse_surplus(client),
            _ => route.logins.push_back(client),
        }
        let (endpoint, no, is_first) = (route.endpoint, route.no, route.logins.len() == 1);
        let until = self.begin_patience(client);
        self.set_client_deadline(client, until);
        if is_first {
            self.share(endpoint).probe(no, Some(now));
        }
    }

    /// A client has left a route, after having been connected for this long. A route that nobody uses is forgotten.
    pub(super) fn leave_route(&mut self, key: RouteKey, stayed: Duration) {
        let Some(route) = self.routes.get_mut(key) else { return };
        assert!(route.clients > 0, "a client that leaves a route has entered it");
        route.clients -= 1;
        if route.clients == 0 {
            let (endpoint, no) = (route.endpoint, route.no);
            self.share(endpoint).deserted(no, stayed >= VISIT_MIN);
        }
        self.forget_unused(key);
    }

    pub(super) fn forget_unused(&mut self, key: RouteKey) {
        let unused = self.routes.get(key).is_some_and(|route| route.clients == 0 && route.pool.is_unused());
        if !unused {
            return;
        }
        let Some(route) = self.routes.remove(key) else { return };
        self.routes_by_name.remove(&route.name);
        self.share(route.endpoint);
        self.endpoints[route.endpoint].leave(route.no);
    }

    pub(super) fn forget_waiting(&mut self, route: Option<RouteKey>, client: ClientKey) {
        let Some(route) = route.and_then(|key| self.routes.get_mut(key)) else { return };
        let place = route.pool.forget_waiting(client);
        let had_logins = !route.logins.is_empty();
        route.logins.retain(|&each| each != client);
        let (endpoint, no, logins_left) = (route.endpoint, route.no, had_logins && route.logins.is_empty());
        if let Some(place) = place {
            self.share(endpoint).waiter_left(no, place);
        }
        if logins_left {
            self.share(endpoint).probe(no, None);
        }
    }

    /// A client waits for a server from now on.
    pub(super) fn enqueue(&mut self, client: ClientKey, route: RouteKey) {
        let now = self.now;
        let Some(route) = self.routes.get_mut(route) else { return };
        route.pool.enqueue(client);
        let (endpoint, no) = (route.endpoint, route.no);
        self.share(endpoint).waits(no, now);
    }

    // ---- linking and releasing ----

    /// Links an idle server of the client's route, if there is one. No mail, no allocation.
    #[inline]
    pub(super) fn link_idle(&mut self, client: ClientKey) -> bool {
        let Some(route) = self.clients.get(client).and_then(|client| client.route) else { return false };
        let Some(route) = self.routes.get_mut(route) else { return false };
        // Whoever waits already comes first.
        if route.pool.waiting() > 0 {
            return false;
        }
        match route.pool.take_idle() {
            Some(server) => {
                route.waits.now.count_at_once();
                let (endpoint, no) = (route.endpoint, route.no);
                let counted = self.share(endpoint).link_idle(no);
                debug_assert!(counted, "the share counts what the pool has");
                self.link(client, server);
                true
            }
            None => false,
        }
    }

    #[inline]
    fn link(&mut self, client_key: ClientKey, server_key: ServerKey) {
        let session = self.session_of(client_key);
        let (Some(client), Some(server)) =
            (self.clients.get_mut(client_key), self.servers.get_mut(server_key))
        else {
            unreachable!("linked are only a client and a server that are there")
        };
        assert!(
            !matches!(client.state, ClientState::Linked(_) | ClientState::Leaving),
            "a client has one server"
        );
        assert!(server.may_be_linked(), "a server that is given to a client is at rest");
        let checking = client.state == ClientState::AwaitParameters;
        client.state = match checking {
            true => ClientState::Checking(server_key),
            false => ClientState::Linked(server_key),
        };
        client.deadline.clear();
        server.deadline.clear();
        server.state = ServerState::Linked(client_key);
        server.statements.linked();
        client.unnamed.linked();
        let same = Arc::ptr_eq(&client.values, &server.values);
        let stale = self.now.since(server.proven) >= self.config.timeouts.server_check.0;
        if self.config.log.level >= LogLevel::Debug && server.last_session != session {
            let connection = server.id;
            self.log(LogLevel::Debug, session, Some(connection), || "linked to another session".into());
        }
        let Some(server) = self.servers.get_mut(server_key) else { return };
        server.last_session = session;
        let route = server.route;
        if self.routes.get(route).is_some_and(|route| route.mode == PoolMode::Session) {
            self.pin(server_key);
            if self.is_own(route) {
                return self.greet_owner(client_key, server_key);
            }
        }
        if checking {
            let until = self.begin_patience(client_key);
            self.set_client_deadline(client_key, until);
        }
        if stale && self.begin_check(client_key, server_key) {
            return;
        }
        if checking || !same {
            self.replay(client_key, server_key);
        }
    }

    /// The server has answered everything and is in no transaction: its client gives it back, unless it keeps it for
    /// its session.
    #[inline]
    pub(super) fn release(&mut self, server: ServerKey, client: ClientKey, route: RouteKey) {
        let session_mode = self.routes.get(route).is_some_and(|route| route.mode == PoolMode::Session);
        if self.servers.get(server).is_some_and(|server| !server.leaks.is_empty()) {
            self.release_leaking(server, client);
        } else if !session_mode {
            self.unlink_client(client);
            self.rest(server);
            self.open_pending(client);
        } else if self.draining {
            self.drain_client(client);
        }
    }

    /// A server is at rest and nobody's: it goes to who waits, becomes idle, or is closed when that is wanted.
    #[inline]
    pub(super) fn rest(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        assert!(server.is_at_rest(), "a server that rests owes nothing");
        if server.was_reset {
            self.forget_unreported(key);
        }
        let Some(server) = self.servers.get_mut(key) else { return };
        // One that comes from another shard, or has said something, may have been idle before.
        if !matches!(server.state, ServerState::Speaking) {
            server.proven = self.now;
        }
        server.state = ServerState::Idle;
        let (route_key, endpoint) = (server.route, server.endpoint);
        let (expired, doomed) = (server.expires <= self.now, server.doomed);
        let Some(no) = self.routes.get(route_key).map(|route| route.no) else {
            unreachable!("a route lives as long as it has servers")
        };
        if self.draining {
            return self.close_server(key, "shutting down");
        }
        if let Some(reason) = doomed {
            return self.close_server(key, reason);
        }
        if expired {
            return self.close_server(key, "server_lifetime");
        }
        self.unpin(key);
        let now = self.now;
        loop {
            match self.share(endpoint).rest(no, now) {
                Rest::Serve => {
                    let Some(client) = self.routes.get_mut(route_key).and_then(|route| route.pool.dequeue())
                    else {
                        // Who should have been served is gone: a panic came between the two.
                        continue;
                    };
                    self.count_wait(client, route_key);
                    self.link(client, key);
                    self.resume_server(key);
                    return self.pass_pending(client);
                }
                Rest::Idle => {
                    if let Some(route) = self.routes.get_mut(route_key) {
                        route.pool.put_idle(key);
                    }
                    self.set_idle_deadline(key);
                    return self.resume_server(key);
                }
                Rest::Close => return self.close_recalled(key),
                Rest::HandOver(to) => return self.hand_over(key, to),
            }
        }
    }

    /// A client has got a server, or gives up.
    pub(super) fn count_wait(&mut self, client: ClientKey, route: RouteKey) {
        let Some(client) = self.clients.get(client) else { return };
        let wait = self.now.since(client.since);
        self.stats.wait += wait;
        if let Some(route) = self.routes.get_mut(route) {
            route.waits.now.record(wait);
        }
    }

    fn set_idle_deadline(&mut self, key: ServerKey) {
        let idle_end = self.now.deadline(self.config.timeouts.server_idle);
        let Some(server) = self.servers.get_mut(key) else { return };
        let at = idle_end.min(server.expires);
        self.deadlines.set(Alarm::Server(key), &mut server.deadline, at);
    }

    pub(super) fn first_waiting_since(&self, route: &Route) -> Instant {
        let first = route.pool.first_waiting().or(route.logins.front().copied());
        first.and_then(|client| self.clients.get(client)).map_or(Instant::NEVER, |client| client.since)
    }

    /// The server refused the login itself: whoever waits for this route is told, and for a moment nobody asks again.
    pub(super) fn login_refused(&mut self, server: ServerKey, error: Bytes, report: Report) {
        self.dial_failed(server, Failure::Refused);
        let until = self.now + LOGIN_RETRY;
        let Some(route) = self.servers.get(server).map(|server| server.route) else { return };
        let Some(route) = self.routes.get_mut(route) else { return };
        route.refused = Some((until, error.clone(), report.clone()));
        let mut waiting: Vec<ClientKey> = route.logins.iter().copied().collect();
        // Those in the queue go on waiting while the route has servers that will come back.
        if route.pool.held() <= 1 {
            waiting.extend(route.pool.waiting_clients());
        }
        for client in waiting {
            self.refuse_with(client, error.clone(), &report.to_string());
        }
    }
}

/// A login that the server refused is not tried again for this long: a wrong password is not a reason to storm it.
const LOGIN_RETRY: Duration = Duration::from_secs(1);

/// Whoever leaves sooner than this probably comes again soon, as programs do that connect for each request: what rests
/// here is left alone for a while.
const VISIT_MIN: Duration = Duration::from_secs(1);
