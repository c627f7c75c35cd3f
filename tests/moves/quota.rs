//! What `SHOW QUOTA` says that routes can insist on.

use crate::shards::{Shards, config, query};
use pgpinion::admin::show;
use pgpinion::config::RouteSettings;
use pgpinion::metrics::CoreReport;

/// Clients of this user, each with a query, on this shard.
fn clients(shards: &mut Shards, shard: usize, user: &str, count: usize) {
    for _ in 0..count {
        let body = format!("\0\x03\0\0user\0{user}\0database\0d\0\0");
        let packet = [&(body.len() as u32 + 4).to_be_bytes()[..], body.as_bytes(), &query()].concat();
        let client = shards.sides[shard].connect();
        shards.sides[shard].receive(client, &packet);
    }
}

/// Each dial comes to a server.
fn settle(shards: &mut Shards) {
    for _ in 0..20 {
        shards.settle();
        for side in &mut shards.sides {
            while !side.dials.is_empty() {
                side.dial();
            }
        }
    }
}

/// User, shard and quota.
fn shown(shards: &mut Shards) -> Vec<(String, String, String)> {
    let reports: Vec<_> = shards.sides.iter().map(|side| side.shard.report(CoreReport::default())).collect();
    let table = show::quota(&reports);
    let column = |name: &str| table.columns.iter().position(|(each, _)| *each == name).unwrap();
    let (user, shard, quota) = (column("user"), column("shard"), column("quota"));
    let text = |cell: &Option<String>| cell.clone().unwrap_or_default();
    table.rows.iter().map(|row| (text(&row[user]), text(&row[shard]), text(&row[quota]))).collect()
}

#[test]
fn quotas_add_up_to_the_limit_and_are_the_same_on_all_shards() {
    let mut config = config(20);
    config.steering = false;
    let route = |user: &str| RouteSettings {
        database: "d".into(),
        user: user.into(),
        weight: 1,
        min_connections: 0,
        max_connections: None,
        max_waiting_clients: None,
        leak_policy: None,
    };
    config.routes = vec![
        RouteSettings { weight: 2, ..route("heavy") },
        RouteSettings { min_connections: 10, ..route("floor") },
        RouteSettings { max_connections: Some(2), ..route("capped") },
    ];
    let mut shards = Shards::new(2, config);
    for user in ["capped", "floor", "heavy", "plain"] {
        clients(&mut shards, 0, user, 20);
    }
    settle(&mut shards);
    // The ledger, which is on the other shard, has not heard of it, and has told it nothing.
    clients(&mut shards, 1, "plain", 1);
    let expected = [
        ("capped", "0", "2"),
        ("capped", "all", "2"),
        ("floor", "0", "10"),
        ("floor", "all", "10"),
        ("heavy", "0", "5.33"),
        ("heavy", "all", "5.33"),
        ("plain", "0", "2.66"),
        ("plain", "1", "2.66"),
        ("plain", "all", "2.66"),
    ];
    let rows = shown(&mut shards);
    let rows: Vec<_> = rows.iter().map(|(user, shard, quota)| (&**user, &**shard, &**quota)).collect();
    assert_eq!(rows, expected);
}

/// They were 0 each, and are little.
#[test]
fn many_routes_have_a_part_of_a_connection_each() {
    let mut config = config(2);
    config.steering = false;
    let mut shards = Shards::new(2, config);
    for user in 0..8 {
        clients(&mut shards, user % 2, &format!("user{user}"), 2);
    }
    settle(&mut shards);
    let rows = shown(&mut shards);
    assert_eq!(rows.len(), 16);
    assert!(rows.iter().all(|(_, _, quota)| quota == "0.25"), "{rows:?}");
}
