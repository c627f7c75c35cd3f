//! Replication connections: a server of their own, opened with the client's packet and closed with it.

use crate::shards::{Shards, Side, answer, config, message, query};
use pgpinion::config::PoolMode;
use pgpinion::ids::Owner;

const LOGICAL: (&str, &str) = ("replication", "database");

/// The only server there is to be dialled, with what it was asked for.
fn dial(side: &mut Side) -> (Owner, String) {
    let server = side.dial();
    let startup = side.sent(server);
    (server, String::from_utf8_lossy(&startup[8..]).into_owned())
}

fn is_in(greeting: &[u8]) -> bool {
    greeting.starts_with(&message(b'R', &[0; 4])) && greeting.ends_with(&message(b'Z', b"I"))
}

#[test]
fn the_startup_packet_goes_to_a_server_of_its_own() {
    for mode in [PoolMode::Transaction, PoolMode::Statement, PoolMode::Session] {
        let mut config = config(2);
        config.pool_mode = mode;
        config.server_reset_query = String::new();
        let mut shards = Shards::new(1, config);
        let side = &mut shards.sides[0];
        let client =
            side.log_in_with(&[LOGICAL, ("application_name", "standby"), ("options", "-c TimeZone=PRC")]);
        assert!(side.sent(client).is_empty(), "nobody has told what servers report");
        let (server, startup) = dial(side);
        for asked in [
            "user\0u\0",
            "database\0d\0",
            "replication\0database\0",
            "application_name\0standby\0",
            "TimeZone\0PRC\0",
        ] {
            assert!(startup.contains(asked), "{asked:?} is not in {startup:?}");
        }
        assert!(is_in(&side.sent(client)));
        // It keeps it when it is at rest, and others get other ones.
        for _ in 0..2 {
            side.receive(client, &query());
            assert_eq!(side.sent(server), query());
            side.receive(server, &answer());
            assert_eq!(side.sent(client), answer());
        }
        let other = side.log_in();
        side.receive(other, &query());
        shards.settle();
        let side = &mut shards.sides[0];
        let (ordinary, startup) = dial(side);
        assert!(!startup.contains("replication"), "{startup:?}");
        side.receive(ordinary, &answer());
        assert!(side.sent(other).ends_with(&answer()));
        side.end(client);
        assert!(side.sent(server).ends_with(&message(b'X', b"")), "the server goes with its client");
        side.close_all();
        assert_eq!(shards.permits(), [1], "the permit came back");
        shards.finish();
    }
}

#[test]
fn it_needs_a_permit_like_all_others() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let first = side.log_in();
    let idle = side.dial();
    side.receive(first, &query());
    side.sent(idle);
    side.receive(idle, &answer());
    let client = side.log_in_with(&[LOGICAL]);
    shards.come_to_rest();
    let side = &mut shards.sides[0];
    assert!(side.dials.is_empty(), "an idle connection of another route makes room first");
    assert!(side.sent(idle).ends_with(&message(b'X', b"")));
    side.close_all();
    shards.settle();
    let side = &mut shards.sides[0];
    let (server, _) = dial(side);
    assert!(is_in(&side.sent(client)));
    // It is kept: who else wants one waits, and gets it when the client leaves.
    side.sent(first);
    side.receive(first, &query());
    shards.settle();
    let side = &mut shards.sides[0];
    assert!(side.dials.is_empty() && side.sent(server).is_empty());
    assert_eq!(side.shard.census().waiting, 1);
    side.receive(client, &message(b'X', b""));
    side.close_all();
    shards.settle();
    let side = &mut shards.sides[0];
    let (ordinary, _) = dial(side);
    side.receive(ordinary, &answer());
    assert!(side.sent(first).ends_with(&answer()));
    shards.finish();
}

/// Each of them, of the same user, on two shards: none is served by another's, and none is handed over.
#[test]
fn two_of_the_same_user_share_nothing() {
    let mut shards = Shards::new(2, config(4));
    let mut pairs = Vec::new();
    for shard in [0, 0, 1] {
        let client = shards.sides[shard].log_in_with(&[LOGICAL]);
        shards.settle();
        assert!(!shards.sides[shard].is_taking(), "it stays where it came to");
        let (server, _) = dial(&mut shards.sides[shard]);
        assert!(is_in(&shards.sides[shard].sent(client)));
        pairs.push((shard, client, server));
    }
    for &(shard, client, server) in &pairs {
        shards.sides[shard].receive(client, &query());
        assert_eq!(shards.sides[shard].sent(server), query());
    }
    let (shard, client, server) = pairs.remove(0);
    shards.sides[shard].end(client);
    assert!(shards.sides[shard].sent(server).is_empty(), "it is busy, and cancelled");
    assert_eq!(shards.sides[shard].cancels.len(), 1);
    let next = shards.sides[shard].log_in_with(&[LOGICAL]);
    shards.settle();
    assert!(shards.sides[shard].sent(next).is_empty(), "the next one waits for one of its own");
    assert_eq!(shards.sides.iter().map(|side| side.shard.stats().handed_out).sum::<u64>(), 0);
    shards.finish();
}

#[test]
fn who_leaves_before_its_server_is_there_leaves_nothing_behind() {
    for leaves_at in 0..3 {
        let mut shards = Shards::new(1, config(1));
        let side = &mut shards.sides[0];
        let client = side.log_in_with(&[LOGICAL]);
        if leaves_at == 0 {
            side.end(client);
        }
        let server = side.dial_only();
        if leaves_at == 1 {
            side.end(client);
        }
        side.receive(server, &[message(b'R', &[0; 4]), message(b'K', &[0; 8])].concat());
        if leaves_at == 2 {
            side.end(client);
        }
        side.receive(server, &message(b'Z', b"I"));
        assert!(side.sent(server).ends_with(&message(b'X', b"")), "{leaves_at}");
        side.close_all();
        assert_eq!((shards.permits(), shards.sides[0].shard.census().servers), (vec![0], 0), "{leaves_at}");
        shards.finish();
    }
}

#[test]
fn data_goes_both_ways_until_both_are_done() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let client = side.log_in_with(&[("replication", "true")]);
    let (server, _) = dial(side);
    side.sent(client);
    let start = message(b'Q', b"START_REPLICATION 0/1\0");
    side.receive(client, &start);
    assert_eq!(side.sent(server), start);
    let data = |text: &[u8]| message(b'd', text);
    let stream = [message(b'W', &[0, 0, 0]), data(b"wal"), data(b"keepalive")].concat();
    for byte in &stream {
        side.receive(server, &[*byte]);
    }
    assert_eq!(side.sent(client), stream);
    for piece in [data(b"status"), data(b"status"), message(b'c', b"")] {
        side.receive(client, &piece);
        assert_eq!(side.sent(server), piece);
        side.receive(server, &data(b"more"));
        assert_eq!(side.sent(client), data(b"more"));
    }
    let end = [message(b'c', b""), message(b'C', b"COPY 0\0"), message(b'Z', b"I")].concat();
    side.receive(server, &end);
    assert_eq!(side.sent(client), end);
    side.receive(client, &query());
    side.receive(server, &answer());
    assert_eq!(side.sent(client), answer());
    shards.finish();
}

#[test]
fn a_stream_without_end_ends_when_the_shard_does() {
    for (opening, goes_on) in [(b'W', false), (b'H', true)] {
        let mut shards = Shards::new(1, config(1));
        let side = &mut shards.sides[0];
        let client = side.log_in_with(&[("replication", "1")]);
        let (server, _) = dial(side);
        side.receive(client, &query());
        side.receive(server, &[message(opening, &[0, 0, 0]), message(b'd', b"data")].concat());
        side.sent(client);
        side.shard.drain();
        side.apply(&[]);
        let told = side.sent(client);
        assert_eq!(told.windows(5).any(|bytes| bytes == b"57P01"), !goes_on);
        if goes_on {
            let end = [message(b'c', b""), message(b'C', b"SELECT\0"), message(b'Z', b"I")].concat();
            side.receive(server, &end);
            assert!(side.sent(client).starts_with(&end), "a base backup comes to its end");
        }
        shards.finish();
    }
}

#[test]
fn what_is_no_replication_is_pooled_and_nonsense_is_refused() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let first = side.log_in_with(&[("replication", "off")]);
    let (_, startup) = dial(side);
    assert!(!startup.contains("replication") && is_in(&side.sent(first)));
    let second = side.log_in_with(&[("replication", "false")]);
    assert!(is_in(&side.sent(second)));
    let third = side.log_in_with(&[("replication", "perhaps")]);
    let told = String::from_utf8_lossy(&side.sent(third)).into_owned();
    assert!(
        told.contains("22023") && told.contains("invalid value for parameter \"replication\": \"perhaps\"")
    );
    shards.finish();
}
