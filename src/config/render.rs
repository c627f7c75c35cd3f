//! A configuration as text: what holds, defaults included.

use std::fmt::Write;

use super::report::bare_or_quoted;
use super::settings::{DATABASE, DatabaseSection, ENDPOINT, GENERAL, ROUTE, Setting};
use super::{Config, cores};

/// One setting as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its key, with its section before it unless that is `[pgpinion]`.
    pub key: String,
    /// As a file would have it; `None` when unset.
    pub value: Option<String>,
    /// The same of its default.
    pub default: Option<&'static str>,
    /// Whether a reload applies it.
    pub live: bool,
}

impl Config {
    /// Every setting as it is, passwords hidden: `[pgpinion]`, then the other sections in the order of the file.
    pub fn settings(&self) -> Vec<Row> {
        let mut config = self.clone();
        let mut all = rows("", GENERAL, &mut config);
        for endpoint in &mut config.endpoints {
            let section = format!("endpoints.{}.", bare_or_quoted(&endpoint.name));
            all.append(&mut rows(&section, ENDPOINT, endpoint));
        }
        for database in &self.databases {
            let section = format!("databases.{}.", bare_or_quoted(&database.name));
            let endpoint = Some(self.endpoint_of(database).name.clone());
            let mut database = DatabaseSection { endpoint, database: database.clone() };
            all.append(&mut rows(&section, DATABASE, &mut database));
        }
        for route in &mut config.routes {
            let section =
                format!("routes.{}.", bare_or_quoted(&format!("{}/{}", route.database, route.user)));
            all.append(&mut rows(&section, ROUTE, route));
        }
        all
    }

    /// The effective settings as a pgpinion.toml, passwords hidden, the shards as comments at the end.
    pub fn render(&self) -> String {
        let mut config = self.clone();
        let mut text = String::new();
        section(&mut text, "[pgpinion]", GENERAL, &mut config);
        for endpoint in &mut config.endpoints {
            let title = format!("[endpoints.{}]", bare_or_quoted(&endpoint.name));
            section(&mut text, &title, ENDPOINT, endpoint);
        }
        for database in &self.databases {
            let title = format!("[databases.{}]", bare_or_quoted(&database.name));
            let endpoint = Some(self.endpoint_of(database).name.clone());
            section(
                &mut text,
                &title,
                DATABASE,
                &mut DatabaseSection { endpoint, database: database.clone() },
            );
        }
        for route in &mut config.routes {
            let title = format!("[routes.{}]", bare_or_quoted(&format!("{}/{}", route.database, route.user)));
            section(&mut text, &title, ROUTE, route);
        }
        self.render_cores(&mut text);
        text
    }

    /// One line: how much of what there is.
    pub fn summary(&self) -> String {
        let cpus: Vec<usize> = self.cores.shards.iter().map(|shard| shard.cpu).collect();
        format!(
            "{}, {}, {} on {} {}",
            count(self.endpoints.len(), "endpoint"),
            count(self.databases.len(), "database"),
            count(cpus.len(), "shard"),
            if cpus.len() == 1 { "CPU" } else { "CPUs" },
            cores::list(&cpus),
        )
    }

    fn render_cores(&self, text: &mut String) {
        for (index, shard) in self.cores.shards.iter().enumerate() {
            let _ = writeln!(
                text,
                "# shard {index}: cpu = {}, sq_entries = {}, cq_entries = {}, recv_buffers = {}, recv_buffer_bytes = {}, \
                 busy_poll_us = {}",
                shard.cpu,
                shard.sq_entries,
                shard.cq_entries,
                shard.recv_buffers,
                shard.recv_buffer_bytes,
                shard.busy_poll_us
            );
        }
        let _ = writeln!(text, "# housekeeping = {:?}", self.cores.housekeeping);
    }
}

/// Writing to a `String` cannot fail.
fn section<T>(text: &mut String, title: &str, settings: &[Setting<T>], of: &mut T) {
    let _ = writeln!(text, "{title}");
    for setting in settings {
        let _ = writeln!(text, "{}", setting.show(of));
    }
    text.push('\n');
}

fn rows<T>(section: &str, settings: &[Setting<T>], of: &mut T) -> Vec<Row> {
    let row = |setting: &Setting<T>| Row {
        key: format!("{section}{}", setting.name),
        value: setting.value(of),
        default: (!setting.default.is_empty()).then_some(setting.default),
        live: setting.live,
    };
    settings.iter().map(row).collect()
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
