//! A configuration without a file: one server, every database of it.

use super::addresses::parse_port;
use super::error::ConfigError;
use super::file::{blank_database, blank_endpoint};
use super::settings::{ENDPOINT, Setting};
use super::{Config, FALLBACK, Host, Listen, cores};

impl Config {
    /// Serves the server at `HOST`, `HOST:PORT`, or a socket's directory `DIR` or `DIR:PORT`, with defaults. There is a
    /// shard on each of `cpus`, those the process may run on.
    pub fn upstream(server: &str, cpus: &[usize]) -> Result<Config, ConfigError> {
        if cpus.is_empty() {
            return Err(ConfigError::new("the process may run on no CPU"));
        }
        let mut config = Config::with_defaults()?;
        let mut endpoint = blank_endpoint("main");
        Setting::set_defaults(ENDPOINT, &mut endpoint).map_err(ConfigError::new)?;
        let (host, port) = split(server);
        let wrong = |why| ConfigError::new(format!("the server {why}"));
        endpoint.hosts = vec![Host::parse(host).map_err(wrong)?];
        if let Some(port) = port {
            endpoint.port = parse_port(port).map_err(wrong)?;
        }
        let defaults = cores::defaults().map_err(ConfigError::new)?;
        config.cores.shards = cores::on_every(cpus, defaults);
        config.endpoints.push(endpoint);
        config.databases.push(blank_database(FALLBACK));
        Ok(config)
    }

    /// Listens on these places instead of the default one, if there are any.
    pub fn listen_on(&mut self, places: &[String]) -> Result<(), ConfigError> {
        let mut listen = Vec::new();
        for place in places {
            let parsed = Listen::parse(place).map_err(|why| ConfigError::new(format!("`--listen` {why}")))?;
            listen.extend(parsed.into_iter().filter(|place| !listen.contains(place)).collect::<Vec<_>>());
        }
        if !listen.is_empty() {
            self.listen = listen;
        }
        Ok(())
    }
}

/// Host and port. An IPv6 address without brackets has no port.
fn split(server: &str) -> (&str, Option<&str>) {
    if server.parse::<std::net::Ipv6Addr>().is_ok() {
        return (server, None);
    }
    match server.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (server, None),
    }
}
