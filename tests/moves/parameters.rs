//! The batch that gives a server its client's values, cut and interrupted everywhere.

use crate::shards::{Shards, Side, answer, config, message, query};
use pgpinion::ids::Owner;

/// What PostgreSQL says to a batch that sets one parameter.
fn batch_answer(value: &str) -> Vec<u8> {
    let row = [&[0, 1], &(value.len() as u32).to_be_bytes()[..], value.as_bytes()].concat();
    let complete = [message(b'3', b""), message(b'1', b""), message(b'2', b""), message(b'D', &row)].concat();
    let report = message(b'S', format!("TimeZone\0{value}\0").as_bytes());
    [complete, message(b'C', b"SELECT 1\0"), message(b'3', b""), report, message(b'Z', b"I")].concat()
}

fn batch_error() -> Vec<u8> {
    let error = message(b'E', b"SERROR\0VERROR\0C22023\0Minvalid value\0\0");
    [message(b'3', b""), message(b'1', b""), message(b'2', b""), error, message(b'Z', b"I")].concat()
}

fn reported(value: &str) -> Vec<u8> {
    message(b'S', format!("TimeZone\0{value}\0").as_bytes())
}

/// The types of messages.
fn tags(mut bytes: &[u8]) -> String {
    let mut tags = String::new();
    while !bytes.is_empty() {
        tags.push(bytes[0] as char);
        let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        bytes = &bytes[1 + length..];
    }
    tags
}

const BATCH: &str = "CPBECS";

/// Two clients on one server, of which the first has just set its zone: (server, first, second).
fn two(side: &mut Side) -> (Owner, Owner, Owner) {
    let first = side.log_in();
    let server = side.dial();
    let second = side.log_in();
    side.receive(first, &query());
    side.receive(server, &[message(b'C', b"SET\0"), reported("PRC"), message(b'Z', b"I")].concat());
    for owner in [server, first, second] {
        side.sent(owner);
    }
    (server, first, second)
}

#[test]
fn nothing_is_sent_ahead_while_values_are_equal() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let (server, first, second) = two(side);
    side.receive(first, &query());
    assert_eq!(side.sent(server), query());
    side.receive(server, &answer());
    // The other one has other values, once.
    side.receive(second, &query());
    assert_eq!(tags(&side.sent(server)), format!("{BATCH}Q"), "in one round trip");
    side.receive(server, &[batch_answer("UTC"), answer()].concat());
    assert_eq!(side.sent(second), answer());
    side.receive(second, &query());
    assert_eq!(side.sent(server), query());
    side.receive(server, &answer());
    shards.finish();
}

#[test]
fn answers_to_the_batch_are_nobodys_however_they_are_cut() {
    let bytes = [batch_answer("UTC"), answer()].concat();
    for cut in 0..=bytes.len() {
        let mut shards = Shards::new(1, config(1));
        let side = &mut shards.sides[0];
        let (server, first, second) = two(side);
        side.receive(second, &query());
        for piece in [&bytes[..cut], &bytes[cut..]].into_iter().filter(|piece| !piece.is_empty()) {
            side.receive(server, piece);
        }
        assert_eq!(side.sent(second), answer(), "cut at {cut}");
        assert!(side.sent(first).is_empty());
        assert_eq!(side.shard.census().idle, 1);
        shards.finish();
    }
}

#[test]
fn a_client_that_leaves_meanwhile_leaves_the_server_known() {
    let bytes = [batch_answer("UTC"), answer()].concat();
    for cut in 0..bytes.len() {
        let mut shards = Shards::new(1, config(1));
        let side = &mut shards.sides[0];
        let (server, first, second) = two(side);
        side.receive(second, &query());
        if cut > 0 {
            side.receive(server, &bytes[..cut]);
        }
        side.end(second);
        side.receive(server, &bytes[cut..]);
        assert_eq!(side.shard.census().idle, 1, "cut at {cut}");
        side.sent(server);
        side.receive(first, &query());
        assert_eq!(
            tags(&side.sent(server)),
            format!("{BATCH}Q"),
            "it has the zone of who left: cut at {cut}"
        );
        side.receive(server, &[batch_answer("PRC"), answer()].concat());
        assert_eq!(side.sent(first), answer());
        shards.finish();
    }
}

#[test]
fn a_value_that_is_refused_later_ends_both() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let (server, _, second) = two(side);
    side.receive(second, &query());
    side.receive(server, &batch_error());
    let told = side.sent(second);
    assert!(told.starts_with(b"E") && told.windows(6).any(|window| window == b"VFATAL"), "{told:?}");
    assert_eq!(side.cancels.len(), 1, "what it does is not what the client wants");
    assert_eq!(side.shard.census().idle, 0);
    shards.finish();
}

#[test]
fn a_login_with_a_value_that_is_refused_costs_no_server() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let (server, first, _) = two(side);
    let bad = side.log_in_with(&[("TimeZone", "nowhere")]);
    assert!(side.sent(bad).is_empty());
    assert_eq!(tags(&side.sent(server)), BATCH);
    side.receive(server, &batch_error());
    assert_eq!(tags(&side.sent(bad)), "E");
    side.receive(first, &query());
    assert_eq!(side.sent(server), query(), "its values are as they were");
    side.receive(server, &answer());
    shards.finish();
}

#[test]
fn one_check_serves_all_who_ask_for_the_same() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let (server, ..) = two(side);
    let wish = [("timezone", "prc"), ("application_name", "me")];
    let mut clients: Vec<Owner> = (0..20).map(|_| side.log_in_with(&wish)).collect();
    side.end(clients.remove(7));
    assert_eq!(tags(&side.sent(server)).matches('S').count(), 1, "one batch");
    // The zone and the name; the server had a zone of that name already, but not written so.
    let row = |value: &str| {
        let row = [&[0, 1], &(value.len() as u32).to_be_bytes()[..], value.as_bytes()].concat();
        [message(b'2', b""), message(b'D', &row), message(b'C', b"SELECT 1\0")].concat()
    };
    let head = [message(b'3', b""), message(b'1', b"")].concat();
    side.receive(server, &[head, row("PRC"), row("me"), message(b'3', b""), message(b'Z', b"I")].concat());
    for client in &clients {
        let greeting = side.sent(*client);
        assert_eq!(tags(&greeting), "RSSKZ");
        assert!(greeting.windows(12).any(|window| window == b"TimeZone\0PRC"), "as PostgreSQL writes it");
    }
    side.receive(clients[3], &query());
    assert_eq!(side.sent(server), query());
    side.receive(server, &answer());
    shards.finish();
}

#[test]
fn a_cancel_request_waits_for_the_batch() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let client = side.log_in();
    let server = side.dial();
    let greeting = side.sent(client);
    let other = side.log_in();
    side.receive(other, &query());
    side.receive(server, &[message(b'C', b"SET\0"), reported("PRC"), message(b'Z', b"I")].concat());
    let at = greeting.windows(5).position(|window| window == b"K\0\0\0\x0c").unwrap();
    side.receive(client, &query());
    let asker = side.connect();
    let request = [&[0, 0, 0, 16][..], &80_877_102u32.to_be_bytes(), &greeting[at + 5..at + 13]].concat();
    side.receive(asker, &request);
    assert!(side.cancels.is_empty(), "the batch would be hit");
    side.receive(server, &batch_answer("UTC"));
    assert_eq!(side.cancels.len(), 1);
    side.sent(client);
    side.receive(server, &answer());
    let cancelled = side.cancels.remove(0);
    side.shard.cancelled(cancelled, true);
    side.apply(&[]);
    assert_eq!(side.sent(client), answer());
    shards.finish();
}

#[test]
fn values_travel_with_their_server() {
    let mut config = config(1);
    config.steering = false;
    let mut shards = Shards::new(2, config);
    two(&mut shards.sides[0]);
    shards.settle();
    let there = &mut shards.sides[1];
    let client = there.log_in();
    let greeting = there.sent(client);
    assert!(greeting.windows(12).any(|window| window == b"TimeZone\0UTC"), "what a new session has");
    there.receive(client, &query());
    shards.hand_over(0);
    let there = &mut shards.sides[1];
    let server = there.sockets.values().find(|socket| socket.sent.ends_with(&query())).unwrap();
    assert!(tags(&server.sent).ends_with(&format!("{BATCH}Q")), "the server has another zone");
    let server = server.owner.unwrap();
    there.receive(server, &[batch_answer("UTC"), answer()].concat());
    assert_eq!(there.sent(client), answer());
    shards.finish();
}
