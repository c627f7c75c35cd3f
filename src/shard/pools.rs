//! Who gets which server: routes, linking, releasing, opening, giving up.

use super::client::State as ClientState;
use super::configure::OVER_LIMIT;
use super::server::{Server, State as ServerState};
use super::{Alarm, ClientKey, Effect, Route, RouteKey, ServerKey, Shard};
use crate::config::{LogLevel, PoolMode};
use crate::ids::RouteName;
use crate::ledger::Permit;
use crate::limits::{DIAL_BACKOFF_MAX, DIAL_BACKOFF_MIN, DIALS_PER_ENDPOINT_MAX};
use crate::metrics::{RecentWaits, RouteCounts};
use crate::pool::Pool;
use crate::server::Credentials;
use crate::time::Instant;
use crate::wire::error::Report;
use crate::wire::{Refusal, SqlState};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;

impl Route {
    /// Clients wait for whom no connection is being opened.
    pub(super) fn wants_server(&self) -> bool {
        self.pool.wants_more() || (!self.logins.is_empty() && self.pool.held() == 0)
    }
}

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
        Ok(RouteName { section, database: database.into(), user: user.into() })
    }

    /// The route of that name, which is made if there is none.
    pub(super) fn route_named(&mut self, name: &RouteName) -> RouteKey {
        if let Some(&route) = self.routes_by_name.get(name) {
            return route;
        }
        let settings = &self.config.databases[name.section];
        let role = settings.user.clone().unwrap_or_else(|| name.user.to_string());
        let password = self.config.server_password(settings, &role).map(|secret| secret.reveal().to_owned());
        let route = Route {
            endpoint: settings.endpoint,
            mode: self.config.pool_mode_of(settings),
            dbname: settings.name_on_server(&name.database).to_owned(),
            credentials: Credentials { user: role, password },
            name: name.clone(),
            pool: Pool::default(),
            logins: VecDeque::new(),
            parameters: None,
            refused: None,
            clients: 0,
            waits: RecentWaits::default(),
            counts: RouteCounts::default(),
        };
        let endpoint = route.endpoint;
        let key = self.routes.insert(route);
        self.routes_by_name.insert(name.clone(), key);
        self.endpoints[endpoint].routes.push(key);
        key
    }

    /// A client comes to a route: it is let in at once if the server's parameters are known.
    pub(super) fn enter_route(&mut self, client: ClientKey, key: RouteKey) {
        let now = self.now;
        let Some(route) = self.routes.get_mut(key) else { return };
        route.clients += 1;
        if let Some(parameters) = route.parameters.clone() {
            return self.welcome(client, &parameters);
        }
        match &route.refused {
            Some((until, error, report)) if *until > now => {
                let (error, reason) = (error.clone(), report.to_string());
                return self.refuse_with(client, error, &reason);
            }
            _ => route.logins.push_back(client),
        }
        self.set_client_deadline(client, now.deadline(self.config.timeouts.query_wait));
        self.demand(key);
    }

    /// A client has left a route. A route that nobody uses is forgotten.
    pub(super) fn leave_route(&mut self, key: RouteKey) {
        let Some(route) = self.routes.get_mut(key) else { return };
        assert!(route.clients > 0, "a client that leaves a route has entered it");
        route.clients -= 1;
        self.forget_unused(key);
    }

    pub(super) fn forget_unused(&mut self, key: RouteKey) {
        let unused = self.routes.get(key).is_some_and(|route| route.clients == 0 && route.pool.is_unused());
        if !unused {
            return;
        }
        let Some(route) = self.routes.remove(key) else { return };
        self.routes_by_name.remove(&route.name);
        self.endpoints[route.endpoint].routes.retain(|&each| each != key);
    }

    pub(super) fn forget_waiting(&mut self, route: Option<RouteKey>, client: ClientKey) {
        let Some(route) = route.and_then(|key| self.routes.get_mut(key)) else { return };
        route.pool.forget_waiting(client);
        route.logins.retain(|&each| each != client);
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
        client.state = ClientState::Linked(server_key);
        client.deadline.clear();
        server.deadline.clear();
        server.state = ServerState::Linked(client_key);
        if self.config.log.level >= LogLevel::Debug && server.last_session != session {
            let connection = server.id;
            self.log(LogLevel::Debug, session, Some(connection), || "linked to another session".into());
        }
        if let Some(server) = self.servers.get_mut(server_key) {
            server.last_session = session;
        }
    }

    /// The server has answered everything and is in no transaction: its client gives it back, unless it keeps it for
    /// its session.
    #[inline]
    pub(super) fn release(&mut self, server: ServerKey, client: ClientKey, route: RouteKey) {
        let session_mode = self.routes.get(route).is_some_and(|route| route.mode == PoolMode::Session);
        if !session_mode {
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
        server.state = ServerState::Idle;
        let (route_key, endpoint) = (server.route, server.endpoint);
        let expired = server.expires <= self.now;
        let is_new = server.last_session.is_none();
        if self.draining {
            return self.close_server(key, "shutting down");
        }
        if expired {
            return self.close_server(key, "server_lifetime");
        }
        if self.is_over_limit(endpoint) {
            return self.close_server(key, OVER_LIMIT);
        }
        if self.must_yield(route_key, is_new) {
            self.count_recall(route_key);
            return self.close_server(key, "its slot goes to a route below its quota");
        }
        let Some(route) = self.routes.get_mut(route_key) else {
            unreachable!("a route lives as long as it has servers")
        };
        match route.pool.dequeue() {
            Some(client) => {
                self.count_wait(client, route_key);
                self.link(client, key);
                self.resume_server(key);
                self.pass_pending(client);
            }
            None => {
                route.pool.put_idle(key);
                self.set_idle_deadline(key);
                self.resume_server(key);
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

    /// Whether a server of this route that comes to rest must make room for another route of its endpoint: any that
    /// waits while nobody waits here, one that waits below its quota while this one is above, or one that has nothing
    /// while this one has had its turn. One that is new serves somebody first.
    #[inline]
    fn must_yield(&self, key: RouteKey, is_new: bool) -> bool {
        let Some(route) = self.routes.get(key) else { return false };
        let endpoint = &self.endpoints[route.endpoint];
        if endpoint.routes.len() < 2 || endpoint.ledger.held() < endpoint.ledger.limit() {
            return false;
        }
        let others =
            || endpoint.routes.iter().filter(|&&each| each != key).filter_map(|&each| self.routes.get(each));
        let wanting = others().filter(|other| other.wants_server()).count();
        if wanting <= endpoint.closing {
            return false;
        }
        if route.pool.waiting() == 0 {
            return true;
        }
        // Two routes whose connections take longer to open than a turn would take them from each other for ever.
        if is_new {
            return false;
        }
        let active = 1 + others().filter(|other| other.pool.held() > 0 || other.wants_server()).count();
        let quota = endpoint.ledger.quota(active);
        others().filter(|other| other.wants_server()).any(|other| {
            let below = other.pool.held() < quota && route.pool.held() > quota;
            let starving = other.pool.held() == 0 && self.has_waited(other, TURN);
            below || starving
        })
    }

    fn has_waited(&self, route: &Route, long: Duration) -> bool {
        self.first_waiting_since(route) + long <= self.now
    }

    // ---- opening ----

    /// Opens what a route lacks, as far as permits, the endpoint's health and the number of attempts allow.
    pub(super) fn demand(&mut self, key: RouteKey) {
        loop {
            let Some(route) = self.routes.get_mut(key) else { return };
            if self.draining || !route.wants_server() {
                return;
            }
            let endpoint = &mut self.endpoints[route.endpoint];
            let attempts_max = if endpoint.failures > 0 { 1 } else { DIALS_PER_ENDPOINT_MAX };
            if endpoint.retry.at() != Instant::NEVER || endpoint.dialing >= attempts_max {
                return;
            }
            match endpoint.ledger.take() {
                Some(permit) => self.dial(key, permit),
                None => return self.reclaim(key),
            }
        }
    }

    fn dial(&mut self, route_key: RouteKey, permit: Permit) {
        let Some(route) = self.routes.get_mut(route_key) else {
            unreachable!("dialled for is a route that wants a server")
        };
        route.pool.dial_begins();
        route.counts.granted += 1;
        let endpoint = route.endpoint;
        self.endpoints[endpoint].dialing += 1;
        let id = self.ids.connection();
        let expires = match self.config.timeouts.server_lifetime {
            // Connections opened together are not closed together.
            Some(lifetime) => self.now + self.random.portion(lifetime, 0.9),
            None => Instant::NEVER,
        };
        let key = self.servers.insert(Server::new(id, route_key, endpoint, permit, self.now, expires));
        self.effects.push(Effect::Dial { server: key, endpoint });
    }

    /// All permits are held: an idle server of another route makes room. (If there is none, the next release does.)
    fn reclaim(&mut self, wanting: RouteKey) {
        let Some(route) = self.routes.get(wanting) else { return };
        let endpoint = &self.endpoints[route.endpoint];
        let wanted: usize = endpoint
            .routes
            .iter()
            .filter_map(|&key| self.routes.get(key))
            .map(|route| {
                route.pool.waiting().saturating_sub(route.pool.dialing()).max(route.logins.len().min(1))
            })
            .sum();
        if endpoint.closing >= wanted {
            return;
        }
        let others = endpoint.routes.iter().filter(|&&key| key != wanting);
        let idle = others.filter_map(|&key| self.routes.get(key)).filter(|route| route.pool.idle() > 0);
        let victim = idle.max_by_key(|route| route.pool.held()).and_then(|route| route.pool.coldest_idle());
        let Some(victim) = victim else { return };
        if let Some(route) = self.servers.get(victim).map(|server| server.route) {
            self.count_recall(route);
        }
        self.close_server(victim, "its slot goes to another route");
    }

    fn count_recall(&mut self, route: RouteKey) {
        if let Some(route) = self.routes.get_mut(route) {
            route.counts.recalled += 1;
        }
    }

    /// A permit or an attempt became free: the routes that lack most come first.
    pub(super) fn serve_endpoint(&mut self, endpoint: usize) {
        let mut wanting: Vec<(usize, Instant, RouteKey)> = self.endpoints[endpoint]
            .routes
            .iter()
            .filter_map(|&key| self.routes.get(key).map(|route| (key, route)))
            .filter(|(_, route)| route.wants_server())
            .map(|(key, route)| (route.pool.held(), self.first_waiting_since(route), key))
            .collect();
        wanting.sort_by_key(|&(held, since, _)| (held, since));
        for (_, _, route) in wanting {
            self.demand(route);
        }
    }

    pub(super) fn first_waiting_since(&self, route: &Route) -> Instant {
        let first = route.pool.first_waiting().or(route.logins.front().copied());
        first.and_then(|client| self.clients.get(client)).map_or(Instant::NEVER, |client| client.since)
    }

    /// A dial or a login succeeded.
    pub(super) fn dial_succeeded(&mut self, endpoint: usize, route: RouteKey) {
        let state = &mut self.endpoints[endpoint];
        state.dialing -= 1;
        state.failures = 0;
        state.last_error = None;
        if let Some(route) = self.routes.get_mut(route) {
            route.pool.dial_ends();
            route.refused = None;
        }
        self.stats.opened += 1;
        self.serve_endpoint(endpoint);
    }

    /// A dial or a login failed in a way that another attempt may mend: after a pause.
    pub(super) fn dial_failed(&mut self, endpoint: usize, route: RouteKey, error: String) {
        let state = &mut self.endpoints[endpoint];
        state.dialing -= 1;
        state.last_error = Some(error);
        // Attempts made side by side fail as one.
        if state.retry.at() == Instant::NEVER {
            let doublings = state.failures.min(10);
            state.failures = state.failures.saturating_add(1);
            let pause = (DIAL_BACKOFF_MIN * (1 << doublings)).min(DIAL_BACKOFF_MAX);
            let at = self.now + self.random.portion(pause, 0.5);
            self.deadlines.set(Alarm::Endpoint(endpoint), &mut state.retry, at);
        }
        if let Some(route) = self.routes.get_mut(route) {
            route.pool.dial_ends();
        }
    }

    /// The server refused the login itself: whoever waits for this route is told, and for a moment nobody asks again.
    pub(super) fn login_refused(&mut self, endpoint: usize, key: RouteKey, error: Bytes, report: Report) {
        let state = &mut self.endpoints[endpoint];
        state.dialing -= 1;
        let until = self.now + LOGIN_RETRY;
        let Some(route) = self.routes.get_mut(key) else { return };
        route.pool.dial_ends();
        route.refused = Some((until, error.clone(), report.clone()));
        let mut waiting: Vec<ClientKey> = route.logins.drain(..).collect();
        // Those in the queue go on waiting while the route has servers that will come back.
        if route.pool.held() <= 1 {
            waiting.extend(std::iter::from_fn(|| route.pool.dequeue()));
        }
        for client in waiting {
            self.refuse_with(client, error.clone(), &report.to_string());
        }
        self.serve_endpoint(endpoint);
    }

    pub(super) fn endpoint_alarm(&mut self, endpoint: usize, rang: Instant) {
        let state = &mut self.endpoints[endpoint];
        if self.deadlines.is_due(Alarm::Endpoint(endpoint), &mut state.retry, rang, self.now) {
            self.serve_endpoint(endpoint);
        }
    }

    // ---- giving up ----

    /// A connection is gone on both sides: its permit is free.
    pub(super) fn server_closed(&mut self, key: ServerKey) {
        let Some(server) = self.servers.remove(key) else { return };
        let (endpoint, route) = (server.endpoint, server.route);
        let state = &mut self.endpoints[endpoint];
        state.closing -= usize::from(matches!(server.state, ServerState::Closing));
        state.ledger.give_back(server.permit);
        if let Some(route) = self.routes.get_mut(route) {
            route.pool.gone();
        }
        self.forget_unused(route);
        self.serve_endpoint(endpoint);
    }
}

/// How long a route that has nothing waits before one that has its share gives something up.
const TURN: Duration = Duration::from_millis(50);

/// A login that the server refused is not tried again for this long: a wrong password is not a reason to storm it.
const LOGIN_RETRY: Duration = Duration::from_secs(1);
