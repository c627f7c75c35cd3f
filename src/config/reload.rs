//! What a reload may change while everything runs, and what it may not.

use std::collections::{BTreeMap, BTreeSet};

use super::render::Row;
use super::report::bare_or_quoted;
use super::{Config, Database, Endpoint, shares};

/// What a reload comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Reloaded {
    /// What holds from now on.
    pub config: Config,
    /// What it applies, as `key: old -> new`.
    pub applied: Vec<String>,
    /// What else differs in the files, and holds as it was until the restart.
    pub needs_restart: Vec<String>,
}

impl Config {
    /// What becomes of this configuration when the files now say `new`: limits, shares, timeouts and what is logged are
    /// taken over. All else goes on as it is. Endpoints and databases keep their order: indices stay good.
    ///
    /// # Errors
    /// What is new does not go together with what stays: nothing may change.
    pub fn reload(&self, new: &Config) -> Result<Reloaded, String> {
        let config = Config {
            max_prepared_statements: new.max_prepared_statements,
            max_waiting_clients: new.max_waiting_clients,
            default_pool_size: new.default_pool_size,
            hand_over: new.hand_over,
            steering: new.steering,
            admin_users: new.admin_users.clone(),
            ignore_startup_parameters: new.ignore_startup_parameters.clone(),
            track_extra_parameters: new.track_extra_parameters.clone(),
            leak_policy: new.leak_policy,
            server_check_query: new.server_check_query.clone(),
            application_name_add_host: new.application_name_add_host,
            timeouts: new.timeouts,
            log: new.log,
            stats_period: new.stats_period,
            endpoints: self.endpoints.iter().map(|endpoint| endpoint.reload(new)).collect(),
            databases: self.databases.iter().map(|database| database.reload(new)).collect(),
            routes: new.routes.clone(),
            ..self.clone()
        };
        let of_endpoints = (0..config.endpoints.len()).flat_map(|index| shares::faults(&config, index));
        let of_routes = config.routes.iter().filter_map(|route| shares::floor_above_ceiling(&config, route));
        if let Some(fault) = of_endpoints.map(|(_, fault)| fault).chain(of_routes).next() {
            return Err(format!("it does not go together with what holds until a restart: {fault}"));
        }
        let (applied, needs_restart) = (differences(self, &config), config.waiting_for_restart(new));
        Ok(Reloaded { config, applied, needs_restart })
    }

    fn waiting_for_restart(&self, new: &Config) -> Vec<String> {
        let mut names = differences(self, new);
        // What is not shown, or not a setting of the main file.
        let password = |config: &Config, name: &str| {
            config.databases.iter().find(|each| each.name == name).and_then(|each| each.password.clone())
        };
        let changed = self.databases.iter().filter(|each| each.password != password(new, &each.name));
        names.extend(changed.map(|each| format!("databases.{}.password", bare_or_quoted(&each.name))));
        if self.users != new.users {
            names.push("the contents of auth_file".into());
        }
        if self.cores != new.cores {
            names.push("the cores".into());
        }
        names
    }
}

impl Endpoint {
    fn reload(&self, new: &Config) -> Endpoint {
        match new.endpoints.iter().find(|each| each.name == self.name) {
            Some(new) => {
                Endpoint { max_connections: new.max_connections, reserve: new.reserve, ..self.clone() }
            }
            None => self.clone(),
        }
    }
}

impl Database {
    fn reload(&self, new: &Config) -> Database {
        let found = new.databases.iter().find(|each| each.name == self.name);
        Database { pool_size: found.map_or(self.pool_size, |new| new.pool_size), ..self.clone() }
    }
}

/// Keys whose values differ, and how.
fn differences(old: &Config, new: &Config) -> Vec<String> {
    let (old, new) = (old.settings(), new.settings());
    let by_key = |rows: Vec<Row>| -> BTreeMap<String, String> {
        rows.into_iter().filter_map(|row| Some((row.key, row.value?))).collect()
    };
    let (old, new) = (by_key(old), by_key(new));
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let show = |value: Option<&String>| value.map_or("unset".to_owned(), String::clone);
    let both = keys.into_iter().map(|key| (key, old.get(key), new.get(key)));
    let changed = both.filter(|(_, old, new)| old != new);
    changed.map(|(key, old, new)| format!("{key}: {} -> {}", show(old), show(new))).collect()
}
