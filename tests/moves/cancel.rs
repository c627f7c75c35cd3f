//! Cancel requests, on their shard and across two.

use crate::shards::{Shards, Side, answer, config, message, query};
use pgpinion::ids::Owner;
use pgpinion::shard::Party;

/// What a shard told a client to cancel with.
fn key(greeting: &[u8]) -> Vec<u8> {
    let at = greeting.windows(5).position(|window| window == b"K\0\0\0\x0c").expect("a key");
    greeting[at + 5..at + 13].to_vec()
}

fn request(key: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 16][..], &80_877_102u32.to_be_bytes(), key].concat()
}

/// One client in a query on the only server, and the next one waiting: (server, first, second, their keys).
fn busy(side: &mut Side) -> (Owner, Owner, Owner, [Vec<u8>; 2]) {
    let first = side.log_in();
    let server = side.dial();
    let second = side.log_in();
    let keys = [key(&side.sent(first)), key(&side.sent(second))];
    side.receive(first, &query());
    side.receive(second, &query());
    (server, first, second, keys)
}

fn ask(side: &mut Side, key: &[u8]) -> Owner {
    let asker = side.connect();
    side.receive(asker, &request(key));
    asker
}

fn is_closing(side: &Side, owner: Owner) -> bool {
    side.sockets.values().any(|socket| socket.owner == Some(owner) && socket.closing)
}

fn cancelled(side: &mut Side, ended: bool) {
    let server = side.cancels.remove(0);
    side.shard.cancelled(server, ended);
    side.apply(&[]);
}

#[test]
fn a_server_is_nobody_elses_while_a_cancel_request_is_under_way_to_it() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let (server, first, second, keys) = busy(side);
    let asker = ask(side, &keys[0]);
    assert_eq!(
        side.cancels,
        [match Party::from_owner(server) {
            Party::Server(key) => key,
            Party::Client(_) => unreachable!(),
        }]
    );
    side.sent(server);
    // The query is answered before PostgreSQL has seen the request.
    side.receive(server, &answer());
    assert_eq!(side.sent(first), answer());
    assert!(side.sent(server).is_empty(), "the next client must wait");
    assert!(!is_closing(side, asker), "who asked waits too");
    cancelled(side, true);
    assert_eq!(side.sent(server), query(), "now it is the next client's");
    assert!(is_closing(side, asker));
    side.receive(server, &answer());
    assert_eq!(side.sent(second), answer());
    shards.finish();
}

#[test]
fn a_server_is_closed_if_nobody_knows_when_the_request_hits_it() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let (server, _, second, keys) = busy(side);
    ask(side, &keys[0]);
    side.receive(server, &answer());
    cancelled(side, false);
    assert!(is_closing(side, server));
    side.close_all();
    shards.settle();
    let side = &mut shards.sides[0];
    let other = side.dial();
    assert!(side.sent(other).ends_with(&query()), "the next client gets another one");
    side.receive(other, &answer());
    assert_eq!(side.sent(second), answer());
    shards.finish();
}

#[test]
fn a_second_request_waits_for_the_first_and_is_not_lost() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let (server, first, second, keys) = busy(side);
    let askers = [ask(side, &keys[0]), ask(side, &keys[0])];
    assert_eq!(side.cancels.len(), 1);
    side.sent(server);
    side.receive(server, &answer());
    assert_eq!(side.sent(first), answer());
    side.receive(first, &query());
    assert!(side.sent(server).is_empty(), "it might be hit");
    assert_eq!(askers.map(|asker| is_closing(side, asker)), [false, false]);
    // Then it is the other client's turn, and what the first says next is cancelled in the queue.
    cancelled(side, true);
    assert_eq!(side.sent(server), query());
    assert!(side.cancels.is_empty());
    assert_eq!(askers.map(|asker| is_closing(side, asker)), [true, true]);
    assert!(side.sent(first).windows(5).any(|window| window == b"57014"));
    side.receive(server, &answer());
    assert_eq!(side.sent(second), answer());
    shards.finish();
}

#[test]
fn a_request_whose_client_left_holds_the_server_all_the_same() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let (server, first, second, keys) = busy(side);
    ask(side, &keys[0]);
    side.end(first);
    side.sent(server);
    side.receive(server, &answer());
    assert!(side.sent(server).is_empty(), "the next client must wait");
    cancelled(side, true);
    assert_eq!(side.sent(server), query());
    side.receive(server, &answer());
    assert_eq!(side.sent(second), answer());
    shards.finish();
}

#[test]
fn who_waits_is_told_and_goes_on() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let (server, _, second, keys) = busy(side);
    let asker = ask(side, &keys[1]);
    assert!(is_closing(side, asker) && side.cancels.is_empty());
    let told = side.sent(second);
    assert!(told.starts_with(b"E") && told.ends_with(&message(b'Z', b"I")));
    assert!(told.windows(5).any(|window| window == b"57014"));
    side.receive(second, &query());
    side.sent(server);
    side.receive(server, &answer());
    assert_eq!(side.sent(server), query());
    side.receive(server, &answer());
    assert_eq!(side.sent(second), answer());
    shards.finish();
}

#[test]
fn a_wrong_secret_an_idle_client_and_nobody_are_left_alone() {
    let mut shards = Shards::new(1, config(1));
    let side = &mut shards.sides[0];
    let (server, first, _, keys) = busy(side);
    let mut wrong = keys[0].clone();
    wrong[7] ^= 1;
    let mut nobody = keys[0].clone();
    nobody[2] = 9;
    for key in [wrong, nobody, vec![0; 8], vec![255; 8]] {
        let asker = ask(side, &key);
        assert!(is_closing(side, asker));
    }
    side.receive(server, &answer());
    let asker = ask(side, &keys[0]);
    assert!(is_closing(side, asker), "it is idle");
    assert_eq!(side.sent(first), answer());
    assert!(side.cancels.is_empty());
    side.receive(server, &answer());
    shards.finish();
}

#[test]
fn requests_reach_the_shard_of_their_client() {
    let mut shards = Shards::new(2, config(2));
    let (server, _, second, keys) = busy(&mut shards.sides[0]);
    let other = &mut shards.sides[1];
    let askers = [ask(other, &keys[0]), ask(other, &keys[1])];
    shards.deliver();
    let side = &mut shards.sides[0];
    assert!(side.sent(second).windows(5).any(|window| window == b"57014"));
    side.receive(server, &answer());
    cancelled(side, true);
    assert!(!is_closing(&shards.sides[1], askers[0]), "it learns that it is done when it is");
    shards.deliver();
    assert_eq!(askers.map(|asker| is_closing(&shards.sides[1], asker)), [true, true]);
    shards.sides[0].receive(server, &answer());
    shards.finish();
}
