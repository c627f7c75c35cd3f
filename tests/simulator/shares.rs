//! What routes may have against each other, and what endpoints keep for administrators.

use crate::chance::Chance;
use crate::client::ADMINISTRATOR;
use pgpinion::config::Config;

/// Of all routes, in the order of the plan, and of all endpoints.
#[derive(Clone, Debug)]
pub struct Shares {
    routes: Vec<RouteShare>,
    reserves: Vec<usize>,
    /// The first route is an administrator's.
    administers: bool,
}

#[derive(Clone, Copy, Debug)]
struct RouteShare {
    weight: usize,
    floor: usize,
    ceiling: Option<usize>,
}

impl Shares {
    /// All have the same, but for these ceilings.
    pub fn even(ceilings: &[Option<usize>], endpoints: usize) -> Self {
        let route = |&ceiling| RouteShare { weight: 1, floor: 0, ceiling };
        let routes = ceilings.iter().map(route).collect();
        Self { routes, reserves: vec![0; endpoints], administers: false }
    }

    /// Draws the others. `endpoints` are those of the routes. Something of each limit is left to all.
    pub fn draw(&self, chance: &mut Chance, endpoints: &[usize], limits: &[usize]) -> Self {
        let mut left: Vec<usize> = limits.iter().map(|limit| limit - 1).collect();
        let mut take = |chance: &mut Chance, endpoint: usize, most: usize| {
            let taken = if chance.one_in(2) { chance.below(left[endpoint].min(most) + 1) } else { 0 };
            left[endpoint] -= taken;
            taken
        };
        let reserves = (0..limits.len()).map(|endpoint| take(chance, endpoint, 2)).collect();
        let routes = self.routes.iter().zip(endpoints).map(|(&before, &endpoint)| {
            let floor = take(chance, endpoint, before.ceiling.unwrap_or(3).min(3));
            RouteShare { weight: [1, 1, 2, 5][chance.below(4)], floor, ..before }
        });
        Self { routes: routes.collect(), reserves, administers: true }
    }

    pub fn apply(&self, config: &mut Config) {
        for (route, share) in config.routes.iter_mut().zip(&self.routes) {
            route.weight = share.weight as u32;
            route.min_connections = share.floor;
            route.max_connections = share.ceiling;
        }
        for (endpoint, &reserve) in config.endpoints.iter_mut().zip(&self.reserves) {
            endpoint.reserve = reserve;
        }
        config.admin_users = vec![ADMINISTRATOR.into()];
        if self.administers {
            config.admin_users.push("u0".into());
        }
    }
}
