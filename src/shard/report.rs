//! What a shard tells of itself.

use super::server::State;
use super::{Effect, Route, RouteKey, Shard, permits};
use crate::ids::RouteName;
use crate::ledger::Ledger;
use crate::log_line::Line;
use crate::metrics::{Census, CoreReport, Quota, ROUTES_REPORTED_MAX, RouteReport, ShardReport, Stats};
use hashbrown::HashMap;
use std::cmp::Reverse;

/// One route on one shard, now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteCensus<'a> {
    /// Which.
    pub name: &'a RouteName,
    /// Clients logged in, or about to be.
    pub clients: usize,
    /// Clients that wait for a server, or to be let in.
    pub waiting: usize,
    /// Servers in any state.
    pub held: usize,
    /// Servers at rest.
    pub idle: usize,
}

impl Shard {
    /// Counts since the start.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Counts of now.
    pub fn census(&self) -> Census {
        Census {
            clients: self.clients.len(),
            waiting: self.routes.iter().map(|(_, route)| route.pool.waiting() + route.logins.len()).sum(),
            servers: self.servers.len(),
            idle: self.routes.iter().map(|(_, route)| route.pool.idle()).sum(),
            permits: self.endpoints.iter().map(|endpoint| endpoint.share.held()).sum(),
        }
    }

    /// Counts of now, by route.
    pub fn routes(&self) -> impl Iterator<Item = RouteCensus<'_>> {
        self.routes.iter().map(|(_, route)| RouteCensus {
            name: &route.name,
            clients: route.clients,
            waiting: route.pool.waiting() + route.logins.len(),
            held: route.pool.held(),
            idle: route.pool.idle(),
        })
    }

    /// All there is to tell, together with what the engine knows of the core.
    pub fn report(&self, core: CoreReport) -> ShardReport {
        let mut busy: Vec<(RouteKey, &Route)> = self.routes.iter().collect();
        busy.sort_by_key(|(_, route)| Reverse((route.pool.waiting(), route.waits.now.count())));
        let linked = self.linked_by_route();
        let reported = busy.iter().take(ROUTES_REPORTED_MAX);
        let routes = reported.map(|&(key, route)| self.report_route(key, route, &linked)).collect();
        let routes_left_out = busy.len().saturating_sub(ROUTES_REPORTED_MAX);
        let (shard, census, stats) = (self.id, self.census(), self.stats);
        ShardReport { shard, core, census, stats, routes, routes_left_out, quotas: self.quotas() }
    }

    fn linked_by_route(&self) -> HashMap<RouteKey, Linked> {
        let mut linked: HashMap<_, Linked> = HashMap::new();
        for (_, server) in self.servers.iter() {
            if matches!(server.state, State::Linked(_)) {
                let of_route = linked.entry(server.route).or_default();
                of_route.all += 1;
                of_route.pinned += usize::from(server.pinned);
            }
        }
        linked
    }

    /// What the ledgers that are kept here let routes insist on.
    fn quotas(&self) -> Vec<Quota> {
        let settings = self.config.endpoints.iter();
        let ledgers = self
            .endpoints
            .iter()
            .zip(settings)
            .filter_map(|(endpoint, settings)| Some((endpoint.ledger.as_deref()?, &settings.name)));
        let of_endpoint = |(ledger, endpoint): (&'_ Ledger, &'_ String)| {
            let quota = |(name, connections): (&RouteName, f64)| Quota {
                endpoint: endpoint.clone(),
                database: name.database.to_string(),
                user: user_of(name),
                connections,
            };
            ledger.quotas().map(quota).collect::<Vec<_>>()
        };
        ledgers.flat_map(of_endpoint).collect()
    }

    /// What a route can insist on, as far as this shard was told: while it neither has nor wants connections of the
    /// endpoint, what it knows grows old, and what it never knew is the limit.
    pub(super) fn quota(&self, name: &RouteName) -> f64 {
        let endpoint = self.config.databases[name.section].endpoint;
        let limit = self.config.endpoints[endpoint].max_connections as f64;
        let levels = self.endpoints[endpoint].share.status().levels;
        levels.quota(&permits::terms(&self.config, name)).min(limit)
    }

    fn report_route(&self, key: RouteKey, route: &Route, linked: &HashMap<RouteKey, Linked>) -> RouteReport {
        let linked = linked.get(&key).copied().unwrap_or_default();
        RouteReport {
            endpoint: self.config.endpoints[route.endpoint].name.clone(),
            database: route.name.database.to_string(),
            user: user_of(&route.name),
            clients: route.clients,
            permits: route.pool.held(),
            idle: route.pool.idle(),
            linked: linked.all,
            pinned: linked.pinned,
            waiting: route.pool.waiting() + route.logins.len(),
            counts: route.counts,
            waits: route.waits.both(),
            longest: self.now.since(self.first_waiting_since(route)),
        }
    }

    /// A period of the statistics is over: a line for each of the busiest routes, and one for how many there are more.
    pub fn end_period(&mut self) {
        let links = |route: &Route| route.waits.now.count() + route.pool.waiting() as u64;
        let mut busy: Vec<(RouteKey, &Route)> =
            self.routes.iter().filter(|(_, route)| links(route) > 0).collect();
        busy.sort_by_key(|(_, route)| Reverse(links(route)));
        let linked = self.linked_by_route();
        let line = |&(key, route): &(RouteKey, &Route)| {
            let report = self.report_route(key, route, &linked);
            self.line_of(&RouteReport { waits: route.waits.now.clone(), ..report }, self.quota(&route.name))
        };
        let mut lines: Vec<Line> = busy.iter().take(ROUTES_LOGGED_MAX).map(line).collect();
        if busy.len() > ROUTES_LOGGED_MAX {
            let more = busy.len() - ROUTES_LOGGED_MAX;
            lines.push(Line::info(format!("stats: shard {}: {more} more routes", self.id)));
        }
        self.effects.extend(lines.into_iter().map(Effect::Log));
        for key in self.routes.keys() {
            if let Some(route) = self.routes.get_mut(key) {
                route.waits.turn();
            }
        }
    }

    fn line_of(&self, route: &RouteReport, quota: f64) -> Line {
        let (waits, counts) = (&route.waits, &route.counts);
        let text = format!(
            "stats: shard {}: route: {} links, {} waited, wait p50 {} us, p99 {} us, max {} us, longest now {} us; permits \
             {} ({} linked, {} pinned, {} idle), quota {:.2}, {} waiting; {} granted, {} recalled, {} handed in, {} handed out, {} steered",
            self.id,
            waits.count(),
            waits.waited(),
            waits.quantile(0.5).as_micros(),
            waits.quantile(0.99).as_micros(),
            waits.max().as_micros(),
            route.longest.as_micros(),
            route.permits,
            route.linked,
            route.pinned,
            route.idle,
            quota,
            route.waiting,
            counts.granted,
            counts.recalled,
            counts.handed_in,
            counts.handed_out,
            counts.steered,
        );
        Line::info(text).database(&route.database).user(&route.user)
    }
}

/// The user as shown.
fn user_of(name: &RouteName) -> String {
    match name.session {
        Some(_) => format!("{} (replication)", name.user),
        None => name.user.to_string(),
    }
}

/// Servers of a route that have a client.
#[derive(Clone, Copy, Default)]
struct Linked {
    all: usize,
    /// For longer than a transaction.
    pinned: usize,
}

/// Lines of routes that one shard writes in a period: enough to see who is busy, few enough to be read.
const ROUTES_LOGGED_MAX: usize = 10;
