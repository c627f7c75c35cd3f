//! The tables of `SHOW`. A name ends in `_us` where it is a time in microseconds.

use super::{Answer, COMMANDS, Table};
use crate::config::{Config, Row};
use crate::metrics::{RouteReport, ShardReport};
use crate::wire::backend::ColumnType;
use crate::wire::backend::ColumnType::{Float8, Int4, Int8, Text};
use bytes::Bytes;
use hashbrown::HashMap;
use std::time::Duration;

/// Each route on each shard, and over all shards: the row whose `shard` is `all`.
pub fn quota(reports: &[ShardReport]) -> Table {
    let mut routes: Vec<(RouteReport, Vec<(String, &RouteReport)>)> = Vec::new();
    for shard in reports {
        for route in &shard.routes {
            let here = (shard.shard.to_string(), route);
            match routes.iter_mut().find(|(all, _)| all.is_same_route(route)) {
                Some((all, each)) => {
                    all.add(route);
                    each.push(here);
                }
                None => routes.push((route.clone(), vec![here])),
            }
        }
    }
    routes.sort_by(|(one, _), (other, _)| name_of(one).cmp(&name_of(other)));
    let quotas = quotas(reports);
    let mut rows = Vec::new();
    for (all, each) in &routes {
        let quota = quotas.get(&name_of(all)).copied();
        rows.extend(each.iter().map(|(shard, route)| quota_row(shard, route, quota)));
        rows.push(quota_row("all", all, quota));
    }
    Table { columns: QUOTA, rows }
}

/// Those of routes that share a name, as replication connections of one user do, added up.
fn quotas(reports: &[ShardReport]) -> HashMap<(&str, &str, &str), f64> {
    let mut quotas = HashMap::new();
    for quota in reports.iter().flat_map(|report| &report.quotas) {
        let name = (quota.endpoint.as_str(), quota.database.as_str(), quota.user.as_str());
        *quotas.entry(name).or_default() += quota.connections;
    }
    quotas
}

/// With two digits, rounded down, so that they add up to no more than there is.
fn hundredths(connections: f64) -> f64 {
    (connections * 100.0 + ROUNDING).floor() / 100.0
}

fn name_of(route: &RouteReport) -> (&str, &str, &str) {
    (&route.endpoint, &route.database, &route.user)
}

fn quota_row(shard: &str, route: &RouteReport, quota: Option<f64>) -> Vec<Option<String>> {
    let (counts, waits) = (&route.counts, &route.waits);
    let names = [&route.endpoint, &route.database, &route.user].map(|name| Some(name.clone()));
    let now = [route.clients, route.permits, route.linked, route.pinned, route.idle, route.waiting];
    let done =
        [counts.granted, counts.recalled, counts.handed_in, counts.handed_out, counts.steered, waits.count()];
    let times = [waits.quantile(0.5), waits.quantile(0.99), waits.max(), route.longest];
    let mut row = names.to_vec();
    row.push(Some(shard.to_owned()));
    row.extend(now.map(number));
    row.push(quota.map(hundredths).and_then(number));
    row.extend(done.map(number));
    row.push(number(waits.waited()));
    row.extend(times.map(micros));
    row
}

/// Each shard.
pub fn shards(reports: &[ShardReport]) -> Table {
    let row = |report: &ShardReport| {
        let (core, census, stats) = (&report.core, &report.census, &report.stats);
        let now = [census.clients, census.waiting, census.servers, census.idle, census.permits];
        let done = [
            core.turns,
            core.doorbells,
            core.letters_in,
            core.letters_out,
            core.panics,
            stats.logins,
            stats.opened,
            stats.transactions,
            stats.queries,
            stats.received,
            stats.sent,
        ];
        let mut row = vec![number(report.shard.0), number(core.cpu)];
        row.extend(now.map(number));
        row.extend([core.buffers_free, core.buffers].map(number));
        row.extend(done.map(number));
        row.push(micros(stats.wait));
        row
    };
    Table { columns: SHARDS, rows: reports.iter().map(row).collect() }
}

/// Each setting, with its section before its name. Values are as the file has them, passwords hidden.
pub fn config(config: &Config) -> Table {
    let row = |Row { key, value, default, live }| {
        let changeable = if live { "yes" } else { "no" };
        vec![Some(key), value, default.map(str::to_owned), Some(changeable.to_owned())]
    };
    Table { columns: CONFIG, rows: config.settings().into_iter().map(row).collect() }
}

/// What this is.
pub fn version() -> Table {
    let version = concat!("pgpinion ", env!("CARGO_PKG_VERSION"));
    Table { columns: &[("version", Text)], rows: vec![vec![Some(version.to_owned())]] }
}

/// One parameter, under its name.
pub fn parameter(name: &str, value: &str) -> Table {
    let columns: &'static [(&'static str, _)] = match name {
        "client_encoding" => &[("client_encoding", Text)],
        "default_transaction_isolation" => &[("default_transaction_isolation", Text)],
        "standard_conforming_strings" => &[("standard_conforming_strings", Text)],
        "datestyle" => &[("DateStyle", Text)],
        _ => &[("TimeZone", Text)],
    };
    Table { columns, rows: vec![vec![Some(value.to_owned())]] }
}

/// All commands, as a notice: that is how PgBouncer tells it.
pub fn help() -> Bytes {
    let commands: Vec<String> = COMMANDS.iter().map(|command| format!("\n\t{command}")).collect();
    Answer::default().notice("Console usage", &commands.concat()).complete("SHOW")
}

fn number(value: impl ToString) -> Option<String> {
    Some(value.to_string())
}

fn micros(time: Duration) -> Option<String> {
    number(time.as_micros())
}

/// More than quotas are computed wrong by, in hundredths.
const ROUNDING: f64 = 1e-6;

const QUOTA: &[(&str, ColumnType)] = &[
    ("endpoint", Text),
    ("database", Text),
    ("user", Text),
    ("shard", Text),
    ("clients", Int8),
    ("permits", Int8),
    ("linked", Int8),
    ("pinned", Int8),
    ("idle", Int8),
    ("waiting", Int8),
    ("quota", Float8),
    ("granted", Int8),
    ("recalled", Int8),
    ("handed_in", Int8),
    ("handed_out", Int8),
    ("steered", Int8),
    ("links", Int8),
    ("waited", Int8),
    ("wait_p50_us", Int8),
    ("wait_p99_us", Int8),
    ("wait_max_us", Int8),
    ("longest_wait_us", Int8),
];

const SHARDS: &[(&str, ColumnType)] = &[
    ("shard", Int4),
    ("cpu", Int4),
    ("clients", Int8),
    ("waiting", Int8),
    ("servers", Int8),
    ("idle", Int8),
    ("permits", Int8),
    ("buffers_free", Int8),
    ("buffers", Int8),
    ("turns", Int8),
    ("doorbells", Int8),
    ("letters_in", Int8),
    ("letters_out", Int8),
    ("panics", Int8),
    ("logins", Int8),
    ("opened", Int8),
    ("transactions", Int8),
    ("queries", Int8),
    ("received", Int8),
    ("sent", Int8),
    ("wait_us", Int8),
];

const CONFIG: &[(&str, ColumnType)] =
    &[("key", Text), ("value", Text), ("default", Text), ("changeable", Text)];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardId;
    use crate::metrics::{Census, CoreReport, Stats, Waits};

    fn report(shard: u16, routes: Vec<RouteReport>) -> ShardReport {
        let core = CoreReport { cpu: 7, ..CoreReport::default() };
        let (census, stats) = (Census::default(), Stats::default());
        ShardReport {
            shard: ShardId(shard),
            core,
            census,
            stats,
            routes,
            routes_left_out: 0,
            quotas: Vec::new(),
        }
    }

    fn route(user: &str, permits: usize, wait_us: u64) -> RouteReport {
        let mut waits = Waits::default();
        waits.record(Duration::from_micros(wait_us));
        let longest = Duration::from_micros(wait_us);
        RouteReport {
            endpoint: "main".into(),
            database: "app".into(),
            user: user.into(),
            permits,
            waits,
            longest,
            ..RouteReport::default()
        }
    }

    #[test]
    fn routes_are_shown_shard_by_shard_and_summed_up() {
        let shards = [
            report(0, vec![route("web", 3, 100)]),
            report(1, vec![route("web", 2, 50), route("batch", 1, 7)]),
        ];
        let table = quota(&shards);
        let of = |name: &str| {
            let at = table.columns.iter().position(|(column, _)| *column == name).unwrap();
            table.rows.iter().map(|row| row[at].clone().unwrap()).collect::<Vec<_>>()
        };
        assert!(table.rows.iter().all(|row| row.len() == table.columns.len()));
        assert_eq!(of("user"), ["batch", "batch", "web", "web", "web"]);
        assert_eq!(of("shard"), ["1", "all", "0", "1", "all"]);
        assert_eq!(of("permits"), ["1", "1", "3", "2", "5"]);
        assert_eq!(of("waited"), ["1", "1", "1", "1", "2"]);
        assert_eq!(of("wait_p50_us"), ["7", "7", "100", "50", "50"]);
        assert_eq!(of("wait_max_us"), ["7", "7", "100", "50", "100"]);
        assert_eq!(of("longest_wait_us"), ["7", "7", "100", "50", "100"]);
    }

    #[test]
    fn each_table_has_a_value_for_each_column() {
        let report = report(0, vec![]);
        let settings = Config::upstream("127.0.0.1", &[0]).unwrap();
        for table in [shards(&[report]), config(&settings), version(), parameter("timezone", "GMT")] {
            assert!(!table.rows.is_empty());
            assert!(table.rows.iter().all(|row| row.len() == table.columns.len()), "{table:?}");
        }
        let table = config(&settings);
        let row = table.rows.iter().find(|row| row[0].as_deref() == Some("endpoints.main.max_connections"));
        let expected =
            ["endpoints.main.max_connections", "90", "90", "yes"].map(|text| Some(text.to_owned()));
        assert_eq!(row, Some(&expected.to_vec()));
    }
}
