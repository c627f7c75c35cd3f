//! A new configuration for a shard at work: limits, shares and timeouts. Endpoints and databases keep their places.

use super::Shard;
use crate::config::Config;
use std::sync::Arc;

impl Shard {
    /// Goes on with this configuration, which [`Config::reload`] has made of the one that held. Limits hold at once: where
    /// more is held than may be, no connection is opened, idle ones are closed now and others when they are released.
    /// A timeout that has begun to run ends as it would have; the next is the new one.
    pub fn configure(&mut self, config: Arc<Config>) {
        assert_eq!(config.endpoints.len(), self.endpoints.len(), "a reload keeps the endpoints");
        assert_eq!(config.databases.len(), self.config.databases.len(), "a reload keeps the databases");
        self.config = config;
        for endpoint in 0..self.endpoints.len() {
            let limit = self.config.endpoints[endpoint].max_connections;
            self.endpoints[endpoint].ledger.set_limit(limit);
            self.close_surplus(endpoint);
            self.serve_endpoint(endpoint);
        }
    }

    /// Closes idle servers until no more are held than may be, or none is idle.
    fn close_surplus(&mut self, endpoint: usize) {
        while self.is_over_limit(endpoint) {
            let routes = self.endpoints[endpoint].routes.iter().filter_map(|&key| self.routes.get(key));
            // The one that has most gives first.
            let richest = routes.filter(|route| route.pool.idle() > 0).max_by_key(|route| route.pool.held());
            let Some(server) = richest.and_then(|route| route.pool.coldest_idle()) else { return };
            self.close_server(server, OVER_LIMIT);
        }
    }

    /// More is held than a lowered limit allows, what closes already not counted.
    #[inline]
    pub(super) fn is_over_limit(&self, endpoint: usize) -> bool {
        let endpoint = &self.endpoints[endpoint];
        endpoint.ledger.held() - endpoint.closing > endpoint.ledger.limit()
    }
}

/// Why such a server is closed.
pub(super) const OVER_LIMIT: &str = "max_connections was lowered";
