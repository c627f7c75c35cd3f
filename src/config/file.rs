//! pgpinion.toml, together with the files it names.

use std::io;
use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;

use super::error::ConfigError;
use super::report::{Report, Section, Span};
use super::settings::{DATABASE, DatabaseSection, ENDPOINT, GENERAL, ROUTE, Setting};
use super::suggest::did_you_mean;
use super::values::check_name;
use super::*;

/// Reads a configuration from its text. `cpus` are those the process may run on; `read` gives the text of a file
/// that the configuration names. On failure tells all that is wrong, not only the first.
pub fn parse(
    path: &Path,
    text: &str,
    cpus: &[usize],
    read: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Config, Vec<ConfigError>> {
    let mut config = Config::with_defaults().map_err(|error| vec![error])?;
    let mut report = Report::new(path, text);
    let mut errors = Vec::new();
    if let Some(tree) = report.tree() {
        let mut reader = Reader { report: &mut report, config: &mut config, cpus };
        reader.read_tree(tree.get_ref(), path, read, &mut errors);
    }
    let mut all = report.into_errors();
    all.append(&mut errors);
    if all.is_empty() { Ok(config) } else { Err(all) }
}

/// Reads the tree into the configuration.
struct Reader<'r, 'a> {
    report: &'r mut Report<'a>,
    config: &'r mut Config,
    cpus: &'r [usize],
}

/// Where an endpoint's numbers of connections stand.
struct EndpointPlace {
    max_connections: Span,
    reserve: Span,
}

impl Reader<'_, '_> {
    fn read_tree(
        &mut self,
        tree: &DeTable<'_>,
        path: &Path,
        read: &dyn Fn(&Path) -> io::Result<String>,
        errors: &mut Vec<ConfigError>,
    ) {
        self.check_top_level(tree);
        if let Some(general) = self.section(tree, "pgpinion") {
            self.report.read(GENERAL, self.config, &general);
            self.read_files(&general, path, read, errors);
        } else {
            self.config.cores.shards = default_shards(self.cpus);
        }
        let places = self.read_endpoints(tree);
        self.read_databases(tree);
        self.read_routes(tree);
        self.check_shares(&places);
    }

    fn section<'t>(&mut self, tree: &'t DeTable<'t>, name: &str) -> Option<Section<'t>> {
        let (key, value) = tree.get_key_value(name)?;
        let title = format!("[{name}]");
        match value.get_ref().as_table() {
            Some(table) => Some(Section { title, header: key.span(), table }),
            None => {
                self.report.add(value.span(), format!("`{name}` must be a table: write it as {title}"));
                None
            }
        }
    }

    fn check_top_level(&mut self, tree: &DeTable<'_>) {
        for (key, value) in tree {
            let name = key.get_ref().as_ref();
            if TOP_LEVEL.contains(&name) {
                continue;
            }
            let hint = match name {
                "pgbouncer" => "; its settings stand in [pgpinion] here".to_owned(),
                "users" => "; what is asked for a user stands in [routes.\"DATABASE/USER\"]".to_owned(),
                "peers" => "; one process serves all cores and needs no peers".to_owned(),
                _ if GENERAL.iter().any(|setting| setting.name == name) => {
                    "; it belongs into [pgpinion]".to_owned()
                }
                _ => did_you_mean(name, TOP_LEVEL.into_iter()),
            };
            let what = if value.get_ref().is_table() { "section" } else { "key" };
            self.report.add(key.span(), format!("unknown {what} `{name}`{hint}"));
        }
    }

    fn read_files(
        &mut self,
        general: &Section<'_>,
        path: &Path,
        read: &dyn Fn(&Path) -> io::Result<String>,
        errors: &mut Vec<ConfigError>,
    ) {
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut fetch = |file: &Path, key: &str| {
            let file = directory.join(file);
            let text = read(&file).map_err(|error| {
                let text = format!("`{key}`: {} cannot be read: {error}", file.display());
                self.report.add(general.span_of(key), text);
            });
            Some((file, text.ok()?))
        };
        let users = self.config.files.auth_file.as_deref().and_then(|file| fetch(file, "auth_file"));
        let cores = match self.config.files.cores.as_deref() {
            Some(file) => fetch(file, "cores").map(Some),
            None => Some(None),
        };
        if let Some((file, text)) = users {
            let mut report = Report::new(&file, &text);
            self.config.users = userlist::parse(&text, &mut report);
            errors.append(&mut report.into_errors());
        }
        match cores {
            Some(Some((file, text))) => self.read_cores(&file, &text, errors),
            Some(None) => self.config.cores.shards = default_shards(self.cpus),
            None => {}
        }
    }

    fn read_cores(&mut self, file: &Path, text: &str, errors: &mut Vec<ConfigError>) {
        let Ok(defaults) = cores::defaults() else { return };
        let mut report = Report::new(file, text);
        if let Some(cores) = cores::parse(&mut report, defaults, self.cpus) {
            self.config.cores = cores;
        }
        errors.append(&mut report.into_errors());
    }

    fn read_endpoints(&mut self, tree: &DeTable<'_>) -> Vec<EndpointPlace> {
        let mut places = Vec::new();
        let sections = self.section(tree, "endpoints").map(|section| section.tables(self.report));
        for (name, section) in sections.unwrap_or_default() {
            self.check_title(name, &section);
            let mut endpoint = blank_endpoint(name);
            if let Err(text) = Setting::set_defaults(ENDPOINT, &mut endpoint) {
                self.report.add(section.header.clone(), text);
            }
            self.report.read(ENDPOINT, &mut endpoint, &section);
            if !section.table.contains_key("host") {
                let title = &section.title;
                self.report.add(
                    section.header.clone(),
                    format!("{title} needs a `host`, like `host = \"127.0.0.1\"`"),
                );
            }
            places.push(EndpointPlace {
                max_connections: section.span_of("max_connections"),
                reserve: section.span_of("reserve"),
            });
            self.config.endpoints.push(endpoint);
        }
        if self.config.endpoints.is_empty() {
            self.report.add(
                header(tree, "endpoints"),
                "no PostgreSQL server is named; add [endpoints.main] with `host = \"127.0.0.1\"`",
            );
        }
        places
    }

    fn read_databases(&mut self, tree: &DeTable<'_>) {
        let sections = self.section(tree, "databases").map(|section| section.tables(self.report));
        for (name, section) in sections.unwrap_or_default() {
            self.check_title(name, &section);
            if CONSOLE_NAMES.contains(&name) {
                let title = &section.title;
                self.report
                    .add(section.header.clone(), format!("{title} is the console's name; take another one"));
            }
            let mut entry = DatabaseSection { endpoint: None, database: blank_database(name) };
            self.report.read(DATABASE, &mut entry, &section);
            self.check_not_zero("pool_size", entry.database.pool_size, &section);
            entry.database.endpoint = self.find_endpoint(entry.endpoint.as_deref(), &section);
            self.config.databases.push(entry.database);
        }
        if self.config.databases.is_empty() {
            let example = "[databases.\"*\"] with `endpoint = \"main\"` offers all of a server";
            self.report.add(header(tree, "databases"), format!("no database is named; {example}"));
        }
    }

    /// The index of the endpoint of that name; if none is given, of the only one.
    fn find_endpoint(&mut self, name: Option<&str>, section: &Section<'_>) -> usize {
        let endpoints = &self.config.endpoints;
        let known = || endpoints.iter().map(|endpoint| endpoint.name.as_str());
        let index = match name {
            Some(name) => known().position(|known| known == name),
            None => (endpoints.len() == 1 || section.table.contains_key("endpoint")).then_some(0),
        };
        if let Some(index) = index {
            return index;
        }
        let there = match endpoints.is_empty() {
            true => "there are none yet; add [endpoints.main]".to_owned(),
            false => format!("there is {}", known().collect::<Vec<_>>().join(", ")),
        };
        let message = match name {
            Some(name) => format!("no endpoint is named \"{name}\"; {there}{}", did_you_mean(name, known())),
            None => format!("{} needs an `endpoint`; {there}", section.title),
        };
        self.report.add(section.span_of("endpoint"), message);
        0
    }

    fn read_routes(&mut self, tree: &DeTable<'_>) {
        let sections = self.section(tree, "routes").map(|section| section.tables(self.report));
        for (name, section) in sections.unwrap_or_default() {
            let Some((database, user)) = split_route(name) else {
                let title = &section.title;
                let message =
                    format!("{title} must be named after a database and a user, like [routes.\"app/batch\"]");
                self.report.add(section.header.clone(), message);
                continue;
            };
            let mut route = blank_route(database, user);
            if let Err(text) = Setting::set_defaults(ROUTE, &mut route) {
                self.report.add(section.header.clone(), text);
            }
            self.report.read(ROUTE, &mut route, &section);
            self.check_route(&route, &section);
            self.config.routes.push(route);
        }
    }

    fn check_route(&mut self, route: &RouteSettings, section: &Section<'_>) {
        for name in [&route.database, &route.user] {
            if let Err(why) = check_name(name) {
                self.report.add(section.header.clone(), format!("each part of {} {why}", section.title));
            }
        }
        if self.config.database(&route.database).is_none() {
            let known: Vec<&str> = self.config.databases.iter().map(|known| known.name.as_str()).collect();
            let hint = did_you_mean(&route.database, known.iter().copied());
            let message = format!("{}: no database is named \"{}\"{hint}", section.title, route.database);
            self.report.add(section.header.clone(), message);
        }
        if let Some(message) = shares::floor_above_ceiling(self.config, route) {
            self.report.add(section.span_of("min_connections"), message);
        }
        self.check_not_zero("max_connections", route.max_connections, section);
    }

    /// What endpoints have must be enough for what is promised of it.
    fn check_shares(&mut self, places: &[EndpointPlace]) {
        for (index, place) in places.iter().enumerate() {
            for (key, message) in shares::faults(self.config, index) {
                let span = if key == "reserve" { &place.reserve } else { &place.max_connections };
                self.report.add(span.clone(), message);
            }
        }
    }

    /// A bound of 0 connections would be no bound at all.
    fn check_not_zero(&mut self, key: &str, value: Option<usize>, section: &Section<'_>) {
        if section.table.contains_key(key) && value.is_none() {
            let message = format!("`{key}` must be at least 1, and is 0; leave it out for no bound");
            self.report.add(section.span_of(key), message);
        }
    }

    fn check_title(&mut self, name: &str, section: &Section<'_>) {
        if let Err(why) = check_name(name) {
            self.report.add(section.header.clone(), format!("{} {why}", section.title));
        }
    }
}

impl Config {
    /// All settings at their defaults, and nothing to serve yet.
    pub(super) fn with_defaults() -> Result<Config, ConfigError> {
        let mut config = blank();
        Setting::set_defaults(GENERAL, &mut config).map_err(ConfigError::new)?;
        Ok(config)
    }
}

/// Where a section stands, or the start of the file if it does not.
fn header(tree: &DeTable<'_>, name: &str) -> Span {
    tree.get_key_value(name).map_or(0..0, |(key, _)| key.span())
}

/// A shard on each CPU. Defaults that cannot be read leave none, which a test rules out.
fn default_shards(cpus: &[usize]) -> Vec<Shard> {
    cores::defaults().map(|defaults| cores::on_every(cpus, defaults)).unwrap_or_default()
}

/// Database and user of a route's name.
fn split_route(name: &str) -> Option<(&str, &str)> {
    name.split_once('/')
        .filter(|(database, user)| !database.is_empty() && !user.is_empty() && !user.contains('/'))
}

pub(super) fn blank_endpoint(name: &str) -> Endpoint {
    Endpoint { name: name.to_owned(), hosts: Vec::new(), port: 0, max_connections: 0, reserve: 0 }
}

pub(super) fn blank_database(name: &str) -> Database {
    Database {
        name: name.to_owned(),
        endpoint: 0,
        dbname: None,
        user: None,
        password: None,
        pool_mode: None,
        pool_size: None,
        connect_query: String::new(),
    }
}

fn blank_route(database: &str, user: &str) -> RouteSettings {
    RouteSettings {
        database: database.to_owned(),
        user: user.to_owned(),
        weight: 0,
        min_connections: 0,
        max_connections: None,
        max_waiting_clients: None,
        leak_policy: None,
    }
}

/// Before the defaults of `settings` are filled in.
fn blank() -> Config {
    Config {
        listen: Vec::new(),
        pool_mode: PoolMode::Session,
        max_client_conn: 0,
        max_prepared_statements: 0,
        max_waiting_clients: None,
        default_pool_size: None,
        hand_over: false,
        steering: false,
        auth_type: AuthType::Trust,
        admin_users: Vec::new(),
        timeouts: Timeouts {
            query_wait: None,
            query_wait_notify: None,
            server_idle: None,
            server_check: Delay::default(),
            server_lifetime: None,
            server_connect: Duration::ZERO,
            server_close: Duration::ZERO,
            client_login: None,
            client_idle: None,
            idle_transaction: None,
            shutdown: None,
        },
        server_reset_query: String::new(),
        server_check_query: String::new(),
        application_name_add_host: false,
        disable_pqexec: false,
        ignore_startup_parameters: Vec::new(),
        track_extra_parameters: Vec::new(),
        leak_policy: LeakPolicy::Allow,
        tcp: Tcp {
            keepalive: false,
            idle: Duration::ZERO,
            interval: Duration::ZERO,
            count: 0,
            user_timeout: None,
            socket_buffer: None,
            backlog: 0,
        },
        log: Log {
            format: LogFormat::Text,
            level: LogLevel::Info,
            connections: false,
            disconnections: false,
        },
        stats_period: None,
        dns: Dns { max_ttl: Duration::ZERO, nxdomain_ttl: Duration::ZERO },
        files: Files::default(),
        endpoints: Vec::new(),
        databases: Vec::new(),
        routes: Vec::new(),
        users: Users::default(),
        cores: Cores::default(),
    }
}

const TOP_LEVEL: [&str; 4] = ["pgpinion", "endpoints", "databases", "routes"];
