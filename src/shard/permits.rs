//! Permits: this shard's share of each endpoint's, the ledgers that it keeps, and the letters between the two.
//!
//! What happens to clients and servers is told to the [`Share`] as it happens; what follows from it for others is
//! written when the event is over ([`Shard::settle_permits`]), and before any connection leaves. Between a share and a
//! ledger of the same shard a letter is a call.

use super::deadlines::Deadline;
use super::server::Server;
use super::{Alarm, Effect, RouteKey, ServerKey, Shard};
use crate::config::Config;
use crate::ids::{RouteName, ShardId};
use crate::ledger::{Action, Failure, Ledger, Order, Permit, Policy, Request, RouteNo, Share, Terms};
use crate::mail::{Letter, LostServer};
use crate::time::Instant;
use std::sync::Arc;

/// An endpoint as this shard sees it.
pub(super) struct EndpointState {
    pub(super) share: Share,
    /// Of all shards, if it is kept here.
    pub(super) ledger: Option<Box<Ledger>>,
    /// By their numbers in the share.
    routes: Vec<Option<RouteKey>>,
    alarm: Deadline,
    /// Until then its servers are asked for protocol 3.0: one refused to negotiate.
    pub(super) old_protocol_until: Instant,
    /// Something happened that may have to be told.
    stirred: bool,
}

impl EndpointState {
    pub(super) fn new(ledger: Option<Ledger>) -> Self {
        Self {
            share: Share::default(),
            ledger: ledger.map(Box::new),
            routes: Vec::new(),
            alarm: Deadline::default(),
            old_protocol_until: Instant::default(),
            stirred: false,
        }
    }

    /// The route of this number is this.
    pub(super) fn number(&mut self, no: RouteNo, key: RouteKey) {
        if self.routes.len() <= no.index() {
            self.routes.resize(no.index() + 1, None);
        }
        self.routes[no.index()] = Some(key);
    }

    pub(super) fn leave(&mut self, no: RouteNo) {
        self.routes[no.index()] = None;
        self.share.leave(no);
    }
}

/// The shard that keeps an endpoint's ledger.
pub(super) fn keeper(endpoint: usize, shards: usize) -> ShardId {
    ShardId((endpoint % shards) as u16)
}

/// How an endpoint's permits are to be shared, as configured.
pub(super) fn policy(config: &Arc<Config>, endpoint: usize) -> Policy {
    let settings = &config.endpoints[endpoint];
    let (limit, reserve) = (settings.max_connections as u32, settings.reserve as u32);
    let of_route = config.clone();
    let terms = move |name: &RouteName| terms(&of_route, name);
    Policy { limit, reserve, hand_over: config.hand_over, terms: Arc::new(terms) }
}

/// What a route may have, as configured.
pub(super) fn terms(config: &Config, name: &RouteName) -> Terms {
    let terms = config.terms(&name.database, &name.user);
    if name.session.is_some() {
        return Terms { weight: terms.weight, floor: 0, ceiling: 1, administrator: terms.may_use_reserve };
    }
    Terms {
        weight: terms.weight,
        floor: terms.floor as u32,
        ceiling: terms.ceiling.map_or(u32::MAX, |ceiling| ceiling as u32),
        administrator: terms.may_use_reserve,
    }
}

impl Shard {
    /// The share of an endpoint, to which something happens.
    #[inline]
    pub(super) fn share(&mut self, endpoint: usize) -> &mut Share {
        let state = &mut self.endpoints[endpoint];
        if !state.stirred {
            state.stirred = true;
            self.stirred.push(endpoint);
        }
        &mut state.share
    }

    /// Writes what the last event has made necessary to write, and does what our own ledgers answer.
    #[inline]
    pub(super) fn settle_permits(&mut self) {
        while let Some(endpoint) = self.stirred.pop() {
            self.endpoints[endpoint].stirred = false;
            self.settle_endpoint(endpoint);
        }
    }

    #[inline]
    fn settle_endpoint(&mut self, endpoint: usize) {
        let state = &mut self.endpoints[endpoint];
        state.share.flush(self.now);
        if state.share.has_requests() {
            for request in state.share.take_requests() {
                self.request(endpoint, request);
            }
        }
        self.run_ledger(endpoint);
        let state = &mut self.endpoints[endpoint];
        let decides = state.ledger.as_ref().map_or(Instant::NEVER, |ledger| ledger.next_deadline());
        let at = state.share.next_deadline().min(decides);
        self.deadlines.set(Alarm::Endpoint(endpoint), &mut state.alarm, at);
    }

    fn request(&mut self, endpoint: usize, request: Request) {
        match &mut self.endpoints[endpoint].ledger {
            Some(ledger) => ledger.handle(self.id, request, self.now),
            None => {
                let letter = Letter::ToLedger(Box::new((endpoint, request)));
                self.effects.push(Effect::Mail { to: keeper(endpoint, self.shards), letter });
            }
        }
    }

    fn run_ledger(&mut self, endpoint: usize) {
        let Some(ledger) = &mut self.endpoints[endpoint].ledger else { return };
        if ledger.next_deadline() > self.now {
            return;
        }
        ledger.tick(self.now);
        for (to, order) in ledger.take_orders() {
            if to == self.id {
                self.obey(endpoint, order);
            } else {
                let letter = Letter::FromLedger(Box::new((endpoint, order)));
                self.effects.push(Effect::Mail { to, letter });
            }
        }
    }

    /// A ledger wrote.
    pub(super) fn obey(&mut self, endpoint: usize, order: Order) {
        match self.share(endpoint).handle(order) {
            Action::None => {}
            Action::Dial(no, permit) => {
                let route = self.route_numbered(endpoint, no);
                self.dial(route, permit);
            }
            Action::CloseIdle(no) => {
                let route = self.route_numbered(endpoint, no);
                let server = self.coldest_idle(route);
                self.close_recalled(server);
            }
            Action::HandOverIdle(no, to) => {
                let route = self.route_numbered(endpoint, no);
                let server = self.coldest_idle(route);
                self.hand_over(server, to);
            }
        }
    }

    fn route_numbered(&self, endpoint: usize, no: RouteNo) -> RouteKey {
        let Some(route) = self.endpoints[endpoint].routes[no.index()] else {
            unreachable!("a route that is dialled for, or has a server, is there")
        };
        route
    }

    fn coldest_idle(&self, route: RouteKey) -> ServerKey {
        let Some(server) = self.routes.get(route).and_then(|route| route.pool.coldest_idle()) else {
            unreachable!("the share counts an idle server")
        };
        server
    }

    /// A shard wrote to a ledger of ours.
    pub(super) fn requested(&mut self, from: ShardId, endpoint: usize, request: Request) {
        let Some(ledger) = &mut self.endpoints[endpoint].ledger else {
            unreachable!("shards agree on who keeps which ledger")
        };
        ledger.handle(from, request, self.now);
        // What it decides follows at the end of the event.
        self.share(endpoint);
    }

    pub(super) fn endpoint_alarm(&mut self, endpoint: usize, rang: Instant) {
        let state = &mut self.endpoints[endpoint];
        if self.deadlines.is_due(Alarm::Endpoint(endpoint), &mut state.alarm, rang, self.now) {
            let now = self.now;
            self.share(endpoint).tick(now);
        }
    }

    /// Nothing is held here, the ledgers know, and those that are kept here have all their permits.
    pub fn is_settled(&self) -> bool {
        self.endpoints.iter().all(|endpoint| {
            endpoint.share.is_settled() && endpoint.ledger.as_ref().is_none_or(|ledger| ledger.is_settled())
        })
    }

    /// How many permits of an endpoint are given, if its ledger is kept here.
    pub fn permits_given(&self, endpoint: usize) -> Option<usize> {
        self.endpoints[endpoint].ledger.as_ref().map(|ledger| ledger.overview().held as usize)
    }

    // ---- what happens to servers ----

    pub(super) fn dial(&mut self, route_key: RouteKey, permit: Permit) {
        let Some(route) = self.routes.get_mut(route_key) else {
            unreachable!("dialled for is a route that wants a server")
        };
        route.pool.arrives();
        route.counts.granted += 1;
        let endpoint = route.endpoint;
        let id = self.ids.connection();
        let expires = match self.config.timeouts.server_lifetime {
            // Connections opened together are not closed together.
            Some(lifetime) => self.now + self.random.portion(lifetime, 0.9),
            None => Instant::NEVER,
        };
        let key = self.servers.insert(Server::new(id, route_key, endpoint, permit, self.now, expires));
        self.effects.push(Effect::Dial { server: key, endpoint });
    }

    /// A dial came to a server that is logged in.
    pub(super) fn dial_succeeded(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get(key) else { return };
        let (endpoint, took) = (server.endpoint, self.now.since(server.opened));
        let Some(route) = self.routes.get_mut(server.route) else {
            unreachable!("a route lives as long as it has servers")
        };
        route.refused = None;
        let no = route.no;
        self.stats.opened += 1;
        self.share(endpoint).opened(no, took);
    }

    /// A dial came to nothing. What is left of it is to be closed.
    pub(super) fn dial_failed(&mut self, key: ServerKey, failure: Failure) {
        let Some(server) = self.servers.get_mut(key) else { return };
        if std::mem::replace(&mut server.end_is_counted, true) {
            // A panic came between this and its end.
            return;
        }
        let (endpoint, route) = (server.endpoint, server.route);
        if let Some(no) = self.routes.get(route).map(|route| route.no) {
            self.share(endpoint).dial_failed(no, failure);
        }
    }

    /// An idle server, or one that has just come to rest, is closed for the sake of another route, or of a lower limit.
    /// The share has counted it already.
    pub(super) fn close_recalled(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.end_is_counted = true;
        if let Some(route) = self.routes.get_mut(server.route) {
            route.counts.recalled += 1;
        }
        self.close_server(key, "its permit is recalled");
    }

    /// The end of a server begins: the share must know.
    pub(super) fn count_end(&mut self, key: ServerKey, was_idle: bool) {
        self.unpin(key);
        let Some(server) = self.servers.get_mut(key) else { return };
        if std::mem::replace(&mut server.end_is_counted, true) {
            return;
        }
        let (endpoint, route) = (server.endpoint, server.route);
        let Some(no) = self.routes.get(route).map(|route| route.no) else { return };
        match was_idle {
            true => self.share(endpoint).close_idle(no),
            false => self.share(endpoint).close(no),
        }
    }

    /// Its client keeps this server for its session: it pays no recall.
    pub(super) fn pin(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        server.pinned = true;
        let (endpoint, route) = (server.endpoint, server.route);
        if let Some(no) = self.routes.get(route).map(|route| route.no) {
            self.share(endpoint).pin(no, true);
        }
    }

    #[inline]
    pub(super) fn unpin(&mut self, key: ServerKey) {
        let Some(server) = self.servers.get_mut(key) else { return };
        if !std::mem::take(&mut server.pinned) {
            return;
        }
        let (endpoint, route) = (server.endpoint, server.route);
        if let Some(no) = self.routes.get(route).map(|route| route.no) {
            self.share(endpoint).pin(no, false);
        }
    }

    /// A connection is gone on both sides: its permit is free.
    pub(super) fn server_closed(&mut self, key: ServerKey) {
        let Some(server) = self.servers.remove(key) else { return };
        assert!(server.end_is_counted, "a server that is gone was closing");
        let (endpoint, route_key) = (server.endpoint, server.route);
        let Some(route) = self.routes.get_mut(route_key) else {
            unreachable!("a route lives as long as it has servers")
        };
        route.pool.gone();
        let no = route.no;
        match server.counted_by {
            None => self.share(endpoint).closed(no, server.permit),
            Some(to) => {
                let lost = LostServer { route: route.name.clone(), endpoint, permit: server.permit };
                self.effects.push(Effect::Mail { to, letter: Letter::Lost(Box::new(lost)) });
            }
        }
        self.forget_unused(route_key);
    }

    /// A server that was on its way here has ended before it left.
    pub(super) fn server_lost(&mut self, lost: LostServer) {
        let route = self.route_named(&lost.route);
        let Some(no) = self.routes.get(route).map(|route| route.no) else {
            unreachable!("it was just found or made")
        };
        let share = self.share(lost.endpoint);
        share.arrived(no);
        share.close(no);
        share.closed(no, lost.permit);
        self.forget_unused(route);
    }
}
