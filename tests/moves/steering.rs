//! Clients steered at login.

use crate::shards::{Shards, answer, config, query, startup};
use pgpinion::cancel_key::process_of;
use pgpinion::config::Config;
use pgpinion::ids::ShardId;
use pgpinion::ledger::PERMITS_PER_HOME;
use pgpinion::shard::Party;

/// One permit: a route lives on one shard.
fn scarce() -> Config {
    config(1)
}

/// The home of the route, and some other shard.
fn home_and_another(shards: &mut Shards) -> (usize, usize) {
    for index in 0..shards.sides.len() {
        let side = &mut shards.sides[index];
        let client = side.log_in();
        let steered = side.sockets.values().any(|socket| socket.taking);
        side.give_taken(true);
        let addressed = side.letters.iter().find(|(_, letter)| letter.connection().is_some());
        let home = addressed.map(|(to, _)| usize::from(to.0));
        assert_eq!(home.is_some(), steered);
        shards.deliver();
        match home {
            Some(home) => return (home, index),
            None => {
                let mut owners = shards.sides[index].sockets.values().map(|socket| socket.owner.unwrap());
                assert!(owners.any(|owner| owner == client));
            }
        }
    }
    panic!("every shard is its home");
}

#[test]
fn a_client_goes_to_the_home_of_its_route_and_is_served_there() {
    let mut shards = Shards::new(4, scarce());
    let (home, other) = home_and_another(&mut shards);
    let before = shards.sides[home].shard.census().clients;
    let client = shards.sides[other].connect();
    let bytes = [startup(), query()].concat();
    // In two pieces, and the second comes while it is on its way.
    let cut = startup().len() + 3;
    shards.sides[other].receive(client, &bytes[..cut]);
    assert!(shards.sides[other].sent(client).is_empty(), "it is not answered before it moves");
    shards.sides[other].receive(client, &bytes[cut..]);
    assert_eq!(shards.sides[other].give_taken(true), 1);
    assert_eq!(shards.sides[other].shard.census().clients, 0);
    assert!(shards.sides[other].logged(&format!("steered to shard {home}")));
    shards.deliver();
    let there = &mut shards.sides[home];
    assert_eq!(there.shard.census().clients, before + 1);
    assert_eq!(there.shard.stats().steered_in, 2);
    assert!(!there.sockets.values().any(|socket| socket.taking), "it moves once");
    let owner = there.sockets.last_key_value().unwrap().1.owner.unwrap();
    let Party::Client(client) = Party::from_owner(owner) else { panic!("a client came") };
    let place = process_of(ShardId(home as u16), client.slot(), 4).to_be_bytes();
    shards.settle();
    let there = &mut shards.sides[home];
    there.dial();
    let greeted = there.sockets.values().any(|socket| {
        let key = [b"K\0\0\0\x0c".as_slice(), &place].concat();
        socket.sent.windows(key.len()).any(|bytes| bytes == key)
    });
    assert!(greeted, "its cancel key names its place on the shard it stays on");
    there.answer();
    assert!(there.sockets.values().any(|socket| socket.sent.ends_with(&answer())));
    shards.finish();
}

/// Those of one turn of the ring all went to the same home.
#[test]
fn clients_that_come_at_once_are_spread_evenly_over_the_homes() {
    // Two homes.
    let mut shards = Shards::new(8, config(2 * PERMITS_PER_HOME));
    for index in 0..8 {
        for _ in 0..100 {
            shards.sides[index].log_in();
        }
        shards.sides[index].give_taken(true);
    }
    shards.deliver();
    let clients: Vec<usize> = shards.sides.iter().map(|side| side.shard.census().clients).collect();
    let homes: Vec<usize> = clients.iter().copied().filter(|&clients| clients > 0).collect();
    assert_eq!(homes, [400, 400], "{clients:?}");
    let steered: u64 = shards.sides.iter().map(|side| side.shard.stats().steered_out).sum();
    assert_eq!(steered, 600);
    shards.finish();
}

#[test]
fn a_route_with_enough_permits_lives_everywhere() {
    let mut shards = Shards::new(4, config(4 * PERMITS_PER_HOME));
    for side in &mut shards.sides {
        for _ in 0..10 {
            side.log_in();
        }
        assert!(!side.sockets.values().any(|socket| socket.taking));
    }
    shards.finish();
}

#[test]
fn a_client_that_leaves_on_the_way_is_closed_here() {
    let mut shards = Shards::new(4, scarce());
    let (_, other) = home_and_another(&mut shards);
    let side = &mut shards.sides[other];
    let client = side.log_in();
    side.end(client);
    assert_eq!(side.give_taken(true), 0);
    assert!(side.logged("client unexpected eof"));
    assert_eq!(side.close_all(), 1);
    assert_eq!(side.shard.census().clients, 0);
    shards.finish();
}

#[test]
fn a_client_for_whom_there_is_no_room_stays_and_is_served_here() {
    let mut shards = Shards::new(4, scarce());
    let (_, other) = home_and_another(&mut shards);
    let side = &mut shards.sides[other];
    let client = side.log_in();
    side.receive(client, &query());
    assert_eq!(side.give_taken(false), 0);
    assert_eq!(side.shard.census().waiting, 1, "it is let in here, once");
    assert!(!side.sockets.values().any(|socket| socket.taking));
    assert!(side.sockets.values().all(|socket| socket.receiving));
    shards.finish();
}

#[test]
fn a_client_on_its_way_is_drained_where_it_is() {
    let mut shards = Shards::new(4, scarce());
    let (home, other) = home_and_another(&mut shards);
    shards.sides[other].log_in();
    shards.sides[other].shard.drain();
    shards.sides[other].apply(&[]);
    assert_eq!(shards.sides[other].give_taken(true), 0);
    assert!(shards.sides[other].logged("terminating connection"), "{:?}", shards.sides[other].log);
    shards.sides[other].close_all();
    assert!(shards.sides[other].shard.is_empty());
    // And so is one that arrives late.
    let late = (0..4).find(|&index| index != home && index != other).unwrap();
    shards.sides[late].log_in();
    assert_eq!(shards.sides[late].give_taken(true), 1);
    shards.sides[home].shard.drain();
    shards.sides[home].apply(&[]);
    shards.deliver();
    shards.sides[home].close_all();
    assert_eq!(shards.sides[home].shard.census().clients, 0);
    shards.finish();
}

#[test]
fn nobody_is_steered_when_it_is_switched_off() {
    let mut config = scarce();
    config.steering = false;
    let mut shards = Shards::new(4, config);
    for side in &mut shards.sides {
        side.log_in();
        assert!(!side.sockets.values().any(|socket| socket.taking));
    }
    shards.finish();
}

#[test]
fn who_is_refused_is_refused_where_he_came() {
    let mut shards = Shards::new(4, scarce());
    for side in &mut shards.sides {
        let client = side.connect();
        let body = b"\0\x03\0\0user\0u\0replication\0what\0\0";
        side.receive(client, &[&(body.len() as u32 + 4).to_be_bytes()[..], body].concat());
        assert!(side.sent(client).starts_with(b"E"));
        assert!(side.sockets.values().all(|socket| !socket.taking));
    }
    shards.finish();
}
