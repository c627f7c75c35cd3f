//! The protocol's version, and cancel keys of each length, on both sides.

use crate::shards::{Shards, Side, answer, config, message, query};
use pgpinion::ids::Owner;
use std::time::Duration;

/// The bodies of all messages of this type.
fn bodies(stream: &[u8], tag: u8) -> Vec<Vec<u8>> {
    let (mut rest, mut found) = (stream, Vec::new());
    while let Some((header, body)) = rest.split_first_chunk::<5>() {
        let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4;
        if header[0] == tag {
            found.push(body[..length].to_vec());
        }
        rest = &body[length..];
    }
    found
}

/// What a shard told a client to cancel with: process id and key.
fn told(greeting: &[u8]) -> Vec<u8> {
    bodies(greeting, b'K').remove(0)
}

fn ask(side: &mut Side, told: &[u8]) -> Owner {
    let asker = side.connect();
    let length = (8 + told.len()) as u32;
    side.receive(asker, &[&length.to_be_bytes()[..], &80_877_102u32.to_be_bytes(), told].concat());
    asker
}

/// The minor version that a server was asked for.
fn asked(side: &mut Side, server: Owner) -> u16 {
    let startup = side.sent(server);
    assert_eq!(startup[4..6], [0, 3]);
    u16::from_be_bytes([startup[6], startup[7]])
}

#[test]
fn clients_are_told_the_version_they_get_and_a_key_that_it_has_room_for() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    side.log_in();
    side.dial();
    let options: &[(&str, &str)] = &[("_pq_.a", "1"), ("_pq_.b", "")];
    let none: &[(&str, &str)] = &[];
    for (minor, wishes, negotiated, key_bytes) in [
        (0, none, None, 4),
        (0, options, Some(b"\0\x03\0\0\0\0\0\x02_pq_.a\0_pq_.b\0".to_vec()), 4),
        (1, none, None, 4),
        (2, none, None, 32),
        (2, options, Some(b"\0\x03\0\x02\0\0\0\x02_pq_.a\0_pq_.b\0".to_vec()), 32),
        (9, none, Some(b"\0\x03\0\x02\0\0\0\0".to_vec()), 32),
    ] {
        let client = side.log_in_speaking(minor, wishes);
        let greeting = side.sent(client);
        assert_eq!(bodies(&greeting, b'v'), negotiated.into_iter().collect::<Vec<_>>(), "3.{minor}");
        assert_eq!(told(&greeting).len(), 4 + key_bytes, "3.{minor}");
        side.end(client);
    }
    shards.finish();
}

#[test]
fn a_key_is_good_only_as_a_whole_however_long() {
    for minor in [0, 2] {
        let mut shards = Shards::new(1, config(1));
        let side = &mut shards.sides[0];
        let first = side.log_in_speaking(minor, &[]);
        let server = side.dial_told(&[7; 32]);
        let right = told(&side.sent(first));
        side.receive(first, &query());
        for at in 4..right.len() {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            ask(side, &wrong);
            ask(side, &right[..at]);
        }
        ask(side, &[&right[..], &[0]].concat());
        ask(side, &[&right[..], &[0; 260]].concat());
        assert!(side.cancels.is_empty(), "3.{minor}");
        ask(side, &right);
        assert_eq!(side.cancel_keys, [(9, vec![7; 32].into())], "3.{minor}");
        let server_key = side.cancels.remove(0);
        side.shard.cancelled(server_key, true);
        side.receive(server, &answer());
        shards.finish();
    }
}

/// No bytes of a session's are another's, also where it takes the same place.
#[test]
fn the_next_client_in_the_same_place_has_another_key() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    side.log_in();
    side.dial();
    let mut seen = std::collections::HashSet::new();
    for round in 0..20 {
        let client = side.log_in_speaking(if round % 2 == 0 { 2 } else { 0 }, &[]);
        let told = told(&side.sent(client));
        assert!(seen.insert(told[4..8].to_vec()));
        side.end(client);
        side.close_all();
    }
    shards.finish();
}

#[test]
fn a_server_is_handed_over_with_its_long_key() {
    let mut config = config(1);
    config.steering = false;
    for bytes in [4, 32, 256] {
        let mut shards = Shards::new(2, config.clone());
        shards.sides[0].log_in();
        shards.sides[0].dial_told(&vec![5; bytes]);
        let client = shards.sides[1].log_in_speaking(2, &[]);
        shards.sides[1].receive(client, &query());
        shards.hand_over(0);
        let there = &mut shards.sides[1];
        let told = told(&there.sent(client));
        // The asker comes to the other shard.
        ask(&mut shards.sides[0], &told);
        shards.deliver();
        let there = &mut shards.sides[1];
        assert_eq!(there.cancel_keys, [(9, vec![5; bytes].into())]);
        let server = there.cancels.remove(0);
        there.shard.cancelled(server, true);
        there.answer();
        shards.deliver();
        shards.finish();
    }
}

#[test]
fn a_client_that_is_steered_speaks_its_version_there() {
    let mut shards = Shards::new(2, config(1));
    let homeless: Vec<Owner> = (0..2).map(|side| shards.sides[side].log_in_speaking(2, &[])).collect();
    let from = shards.sides.iter().position(Side::is_taking).expect("one of them is not at home");
    assert_eq!(shards.sides[from].give_taken(true), 1);
    shards.deliver();
    let home = 1 - from;
    shards.settle();
    let there = &mut shards.sides[home];
    there.dial();
    let owners: Vec<Owner> = there.sockets.values().filter_map(|socket| socket.owner).collect();
    let greetings: Vec<Vec<u8>> = owners.into_iter().map(|owner| there.sent(owner)).collect();
    let keys = greetings.iter().flat_map(|greeting| match greeting.first() {
        Some(b'R') => bodies(greeting, b'K'),
        _ => Vec::new(),
    });
    assert_eq!(keys.map(|key| key.len()).collect::<Vec<_>>(), [36, 36], "{homeless:?}");
    shards.finish();
}

#[test]
fn servers_are_asked_for_the_newest_version_and_may_speak_an_older_one() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let client = side.log_in();
    let server = side.dial_only();
    assert_eq!(asked(side, server), 2);
    side.receive(server, &message(b'v', &[0, 3, 0, 0, 0, 0, 0, 0]));
    side.receive(server, &message(b'R', &[0; 4]));
    side.receive(server, &[message(b'K', &[0, 0, 0, 9, 1, 2, 3, 4]), message(b'Z', b"I")].concat());
    assert!(side.sent(client).ends_with(&message(b'Z', b"I")));
    shards.finish();
}

/// What does not know how to negotiate: old PostgreSQL, PgBouncer before 1.22, and whoever hangs up.
#[test]
fn who_cannot_negotiate_is_asked_for_the_oldest_version_for_a_while() {
    let refusal = message(b'E', b"SFATAL\0C08P01\0Mbad packet header: '0000002a00030002'\0\0");
    for word in [Some(refusal), None] {
        let mut shards = Shards::new(1, config(1));
        let client = shards.sides[0].log_in();
        let server = shards.sides[0].dial_only();
        assert_eq!(asked(&mut shards.sides[0], server), 2);
        match &word {
            Some(word) => shards.sides[0].receive(server, word),
            None => shards.sides[0].end(server),
        }
        shards.sides[0].close_all();
        assert!(shards.sides[0].sent(client).is_empty(), "the client waits on");
        shards.come_to_rest();
        let side = &mut shards.sides[0];
        assert!(side.logged("is asked for protocol 3.0 for 10 minutes"));
        assert_eq!(side.dials.len(), 1, "there is another attempt");
        let server = side.dial();
        assert!(side.sent(client).ends_with(&message(b'Z', b"I")));
        assert_eq!(asked(side, server), 0);
        // The server may have been replaced by a newer one meanwhile.
        side.end(server);
        side.close_all();
        shards.pass(Duration::from_secs(600));
        let side = &mut shards.sides[0];
        side.receive(client, &query());
        shards.settle();
        let side = &mut shards.sides[0];
        let server = side.dial();
        assert_eq!(asked(side, server), 2);
        side.receive(server, &answer());
        shards.finish();
    }
}

#[test]
fn a_key_of_no_allowed_length_is_told_to_whoever_wants_that_server() {
    for bytes in [0, 3, 257, 5000] {
        let mut shards = Shards::new(1, config(1));
        let side = &mut shards.sides[0];
        let client = side.log_in();
        side.dial_told(&vec![1; bytes]);
        let told = String::from_utf8_lossy(&side.sent(client)).into_owned();
        let expected = format!("a cancel key of {bytes} bytes; 4 to 256 are allowed");
        assert!(told.contains(&expected) && told.contains("08P01"), "{told:?}");
        shards.finish();
    }
}
