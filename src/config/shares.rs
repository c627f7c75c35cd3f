//! Whether the connections of endpoints suffice for what is promised of them.
//!
//! Asked of a file, with its places, and again of what a reload makes of it and the configuration that holds.

use super::report::bare_or_quoted;
use super::{Config, RouteSettings};

/// What is wrong with the numbers of an endpoint: the key of the number, and what to do.
pub(super) fn faults(config: &Config, index: usize) -> Vec<(&'static str, String)> {
    let endpoint = &config.endpoints[index];
    let title = format!("[endpoints.{}]", bare_or_quoted(&endpoint.name));
    let (connections, reserve) = (endpoint.max_connections, endpoint.reserve);
    let shards = config.cores.shards.len();
    let mut faults = Vec::new();
    if connections < shards {
        let message = format!(
            "`max_connections` of {title} is {connections}, and there are {shards} shards: this version divides it evenly \
             over the shards, and each needs at least one; raise it to {shards}, or list at most {connections} cores in \
             cores.toml"
        );
        faults.push(("max_connections", message));
    }
    if reserve > 0 && reserve >= connections {
        let message = format!(
            "`reserve` of {title} is {reserve} of its {connections} `max_connections`: that leaves nothing to others than \
             admin_users; lower it"
        );
        faults.push(("reserve", message));
    }
    let promised = promised(config, index);
    if promised + reserve > connections {
        let reserved = if reserve > 0 { format!(" and {reserve} are its `reserve`") } else { String::new() };
        let message = format!(
            "`max_connections` of {title} is {connections}, and its routes are promised {promised} by their \
             `min_connections`{reserved}; raise the one or lower the others"
        );
        if promised > 0 {
            faults.push(("max_connections", message));
        }
    }
    faults
}

/// What to say of a route that is promised more than it may have.
pub(super) fn floor_above_ceiling(config: &Config, route: &RouteSettings) -> Option<String> {
    let floor = route.min_connections;
    let pool_size = config.database(&route.database).and_then(|database| database.pool_size);
    let bounds = [
        ("`max_connections`", route.max_connections),
        ("the database's `pool_size`", pool_size),
        ("`default_pool_size`", config.default_pool_size),
    ];
    // The first that is set is the one that holds.
    let (name, ceiling) = bounds.into_iter().find_map(|(name, bound)| Some((name, bound?)))?;
    (floor > ceiling).then(|| match route.max_connections {
        Some(_) => format!("`min_connections` ({floor}) is more than {name} ({ceiling})"),
        None => format!(
            "`min_connections` ({floor}) is more than {name} ({ceiling}); lower it, or give the route a \
             `max_connections` of its own"
        ),
    })
}

/// The sum of what is promised to the routes of an endpoint.
fn promised(config: &Config, endpoint: usize) -> usize {
    let on_it = |route: &&RouteSettings| {
        config.database(&route.database).is_some_and(|database| database.endpoint == endpoint)
    };
    config.routes.iter().filter(on_it).map(|route| route.min_connections).sum()
}
