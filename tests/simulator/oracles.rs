//! What is held against every run.

use crate::steps::LOGIN_MAX;
use crate::world::{Node, World};
use pgpinion::ids::RouteName;
use pgpinion::ledger::{Order, Request};
use pgpinion::mail::Letter;
use pgpinion::time::Instant;
use std::collections::HashMap;
use std::time::Duration;

impl World {
    /// After each step.
    pub fn check(&mut self) {
        for cluster in &self.clusters {
            let (open, dialing) = (cluster.open_connections(), cluster.dialing);
            assert!(
                open + dialing <= cluster.max_connections,
                "{open} open and {dialing} dialled of {}",
                cluster.max_connections
            );
        }
        self.check_shard(self.touched);
        for endpoint in 0..self.clusters.len() {
            self.check_given(endpoint);
            if self.nodes.len() <= 4 {
                self.check_permits(endpoint);
            }
        }
    }

    /// More are given only within the limit, also after it was lowered.
    fn check_given(&mut self, endpoint: usize) {
        let keeper = self
            .nodes
            .iter()
            .find_map(|node| node.shard.permits_given(endpoint).map(|given| (given, node.limits[endpoint])));
        let Some((given, limit)) = keeper else { panic!("some shard keeps the ledger") };
        let before = std::mem::replace(&mut self.clusters[endpoint].given, given);
        assert!(given <= limit.max(before), "{given} permits given, of {limit}, and {before} before");
    }

    /// Every permit that was given is held by one server, or in one letter.
    fn check_permits(&self, endpoint: usize) {
        let of_endpoint = |name: &RouteName| self.config.databases[name.section].endpoint == endpoint;
        let routes = self.nodes.iter().flat_map(|node| node.shard.routes());
        let held: usize = routes.filter(|route| of_endpoint(route.name)).map(|route| route.held).sum();
        let letters = self.nodes.iter().flat_map(|node| &node.inbox);
        let carried = letters.filter(|(_, letter, _)| match letter {
            Letter::Server(server, ()) => server.endpoint == endpoint,
            Letter::Lost(lost) => lost.endpoint == endpoint,
            Letter::ToLedger(to) => to.0 == endpoint && matches!(to.1, Request::Returned { .. }),
            Letter::FromLedger(from) => from.0 == endpoint && matches!(from.1, Order::Grant { .. }),
            Letter::Client(..)
            | Letter::Parameters(_)
            | Letter::Cancel(_)
            | Letter::Cancelled(_)
            | Letter::Inquire
            | Letter::Report(_) => false,
        });
        let carried = carried.count();
        let given = self.nodes.iter().find_map(|node| node.shard.permits_given(endpoint));
        assert_eq!(given, Some(held + carried), "given, and {held} held and {carried} in letters");
    }

    fn check_shard(&self, number: usize) {
        let shard = &self.nodes[number].shard;
        for route in shard.routes() {
            assert!(
                route.waiting == 0 || route.idle == 0,
                "shard {number}: clients wait beside idle servers of their route: {route:?}"
            );
        }
        let (clients, servers) = shard.strays();
        assert!(clients.is_empty() && servers.is_empty(), "shard {number}: strays {clients:?} {servers:?}");
    }

    /// When nothing can happen until some time has passed.
    pub fn check_rest(&self) {
        for number in 0..self.nodes.len() {
            self.check_shard(number);
        }
        (0..self.clusters.len()).for_each(|endpoint| self.check_permits(endpoint));
        self.check_shares();
        let here: usize = self.nodes.iter().map(|node| node.shard.census().servers).sum();
        let letters = self.nodes.iter().flat_map(|node| &node.inbox);
        let servers = here + letters.filter(|(_, letter, _)| matches!(letter, Letter::Server(..))).count();
        let sockets = self.sockets.values().filter(|socket| socket.is_server()).count();
        assert_eq!(servers, sockets + self.dials.len(), "every server is somewhere");
    }

    /// No route has more than its ceiling. Users have no more than has ever been left to them, until it is taken back.
    fn check_shares(&self) {
        for ((database, user, _), ceiling) in self.plan.routes.iter().zip(&self.ceilings) {
            let held = self.held_by(|name| *name.database == **database && *name.user == **user);
            assert!(ceiling.is_none_or(|most| held <= most), "{user} has {held} of {ceiling:?}");
        }
        for (endpoint, &most) in self.for_users.iter().enumerate() {
            let held = self.held_by_users(endpoint);
            assert!(held <= most, "users have {held} of {most}, the rest is reserved");
        }
    }

    fn held_by_users(&self, endpoint: usize) -> usize {
        self.held_by(|name| {
            self.config.databases[name.section].endpoint == endpoint && !self.config.is_admin(&name.user)
        })
    }

    fn held_by(&self, wanted: impl Fn(&RouteName) -> bool) -> usize {
        let routes = self.nodes.iter().flat_map(|node| node.shard.routes());
        routes.filter(|route| wanted(route.name)).map(|route| route.held).sum()
    }

    /// Nobody waits for long beside what could serve it: an idle server of its route on another shard, or a free permit.
    /// Counted is time that passes because nothing can happen: the letters are read, and what is left are the delays that
    /// the shards and the ledgers name. What takes longer by right is left out: cores that stall, logins that last, dials
    /// that failed and are not tried again at once.
    pub fn check_withheld(&mut self, until: Instant) {
        let stalls = (0..self.nodes.len()).any(|shard| self.is_stalled(shard));
        let logins = self.clusters.iter().any(|cluster| cluster.is_opening(self.now));
        let opening = logins || !self.dials.is_empty();
        if stalls || opening || self.draining || !self.plan.hand_over {
            return;
        }
        let before = std::mem::take(&mut self.withheld);
        for route in self.routes_withheld() {
            let passed = before.get(&route).copied().unwrap_or_default() + until.since(self.now);
            self.trace(|| format!("{route:?} waits for {passed:?} beside what could serve it"));
            assert!(
                passed <= WITHHELD_MAX,
                "{route:?} waits for {passed:?} beside what could serve it: {:#?}",
                self.nodes.iter().flat_map(|node| node.shard.routes()).collect::<Vec<_>>()
            );
            self.withheld.insert(route, passed);
        }
    }

    /// Routes that wait and need not.
    fn routes_withheld(&self) -> Vec<RouteName> {
        let mut routes: HashMap<RouteName, RouteSum> = HashMap::new();
        for route in self.nodes.iter().flat_map(|node| node.shard.routes()) {
            let sum = routes.entry(route.name.clone()).or_default();
            sum.waiting += route.waiting;
            sum.idle += route.idle;
            sum.held += route.held;
        }
        let faults = self.faults;
        let in_time = !faults.servers_dawdle || self.plan.connect_max > LOGIN_MAX;
        let dials_succeed = in_time && !(faults.dials_fail || faults.servers_die || faults.panics);
        let withheld = |route: &RouteName, sum: &RouteSum| {
            let endpoint = self.config.databases[route.section].endpoint;
            let ceiling = self.config.terms(&route.database, &route.user).ceiling;
            let may_grow = dials_succeed && ceiling.is_none_or(|ceiling| sum.held < ceiling);
            sum.waiting > 0 && (sum.idle > 0 || (may_grow && self.is_permit_free(endpoint, route)))
        };
        let chosen = routes.into_iter().filter(|(route, sum)| withheld(route, sum));
        chosen.map(|(route, _)| route).collect()
    }

    /// One that this route may have: the keeper of the ledger knows.
    fn is_permit_free(&self, endpoint: usize, route: &RouteName) -> bool {
        let free = |node: &Node| {
            let given = node.shard.permits_given(endpoint)?;
            let left_to_users = node.limits[endpoint] - node.config.endpoints[endpoint].reserve;
            let may = self.config.is_admin(&route.user) || self.held_by_users(endpoint) < left_to_users;
            Some(given < node.limits[endpoint] && may)
        };
        self.nodes.iter().find_map(free).unwrap_or(false)
    }

    /// When all that could happen has.
    pub fn check_clients(&self) {
        for client in &self.clients {
            let ended = client.is_over() || client.condemned;
            assert!(ended, "{client} was left waiting");
        }
    }

    /// When all shards were drained.
    pub fn check_end(&self) {
        for (number, node) in self.nodes.iter().enumerate() {
            let census = node.shard.census();
            assert!(node.shard.is_empty(), "shard {number} is left with {census:?}");
            assert!(node.shard.is_settled(), "shard {number} has not settled its permits");
        }
        assert!(self.sockets.is_empty() && self.dials.is_empty(), "a socket is left");
    }
}

/// A route on all shards.
#[derive(Default)]
struct RouteSum {
    waiting: usize,
    idle: usize,
    held: usize,
}

/// What a shard and a ledger may wait for before they decide: a few windows.
const WITHHELD_MAX: Duration = Duration::from_millis(20);
