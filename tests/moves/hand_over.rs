//! Idle servers handed over.

use crate::shards::{Shards, answer, config, message, query};
use pgpinion::config::Config;
use pgpinion::ids::Owner;
use std::time::Duration;

/// Two shards; the first has a client and an idle server, the second a client that waits for one and may open none.
fn a_server_here_and_a_client_there() -> (Shards, Owner, Owner) {
    let mut shards = Shards::new(2, unsteered(1));
    let [here, there] = &mut shards.sides[..] else { unreachable!() };
    // One permit: the first shard has it.
    here.log_in();
    let server = here.dial();
    let client = there.log_in();
    there.receive(client, &query());
    assert!(there.dials.is_empty() && there.shard.census().waiting == 1);
    (shards, server, client)
}

fn unsteered(permits: usize) -> Config {
    let mut config = config(permits);
    config.steering = false;
    config
}

#[test]
fn a_server_goes_with_all_it_has_and_serves_who_waits() {
    let (mut shards, _, client) = a_server_here_and_a_client_there();
    assert!(shards.sides[0].hand_over(1));
    assert_eq!(shards.sides[0].shard.census().idle, 0, "nobody is linked to it any more");
    assert_eq!(shards.permits(), [1, 0], "its permit is held until it leaves");
    assert_eq!(shards.sides[0].give_taken(true), 1);
    assert_eq!(shards.permits(), [0, 0], "it is in the letter");
    assert!(shards.sides[0].logged("handed over to shard 1"));
    shards.deliver();
    assert_eq!(shards.permits(), [0, 1]);
    let there = &mut shards.sides[1];
    // The client there had not even been let in: nobody had told what servers report.
    assert!(there.sent(client).windows(14).any(|bytes| bytes == b"server_version"));
    let server =
        there.sockets.values().find(|socket| socket.sent.ends_with(&query())).unwrap().owner.unwrap();
    let id = there.log.iter().find(|line| line.contains("taken over from shard 0")).unwrap();
    let id = id.split(' ').next().unwrap().to_owned();
    assert!(id.starts_with("0."), "it keeps the name that its first shard gave it: {id}");
    there.receive(server, &answer());
    assert!(there.sent(client).ends_with(&answer()));
    assert_eq!(there.shard.census().idle, 1);
    assert_eq!((there.shard.stats().handed_in, there.shard.stats().opened), (1, 0));
    assert_eq!(shards.sides[0].shard.stats().handed_out, 1);
    shards.finish();
}

#[test]
fn a_notice_that_comes_on_the_way_is_read_there() {
    let notice = message(b'N', b"SNOTICE\0C00000\0Mon the way\0\0");
    for cut in 0..=notice.len() {
        let (mut shards, server, client) = a_server_here_and_a_client_there();
        shards.sides[0].hand_over(1);
        shards.sides[0].receive(server, &notice[..cut]);
        assert_eq!(shards.sides[0].give_taken(true), 1);
        shards.deliver();
        let there = &mut shards.sides[1];
        let whole = cut == 0 || cut == notice.len();
        let waiting = there.shard.census().waiting;
        assert_eq!(waiting, usize::from(!whole), "nobody gets it in the middle of a message, cut at {cut}");
        if !whole {
            let server = there.sockets.values().map(|socket| socket.owner.unwrap()).find(|&o| o != client);
            there.receive(server.unwrap(), &notice[cut..]);
            assert_eq!(there.shard.census().waiting, 0, "cut at {cut}");
        }
        let linked =
            there.sockets.values().find(|socket| socket.sent.ends_with(&query())).unwrap().owner.unwrap();
        there.receive(linked, &answer());
        assert!(there.sent(client).ends_with(&answer()));
        assert_eq!(there.logged("notice between sessions: "), cut > 0);
        shards.finish();
    }
}

#[test]
fn a_goodbye_that_comes_on_the_way_is_heard_there() {
    let (mut shards, server, _) = a_server_here_and_a_client_there();
    shards.sides[0].hand_over(1);
    let goodbye = message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0");
    shards.sides[0].receive(server, &goodbye);
    assert_eq!(shards.sides[0].give_taken(true), 1);
    shards.deliver();
    let there = &mut shards.sides[1];
    assert!(there.logged("terminating connection"));
    assert_eq!(there.shard.census().waiting, 1, "the client waits on");
    assert_eq!(there.close_all(), 1);
    assert_eq!(shards.sides[1].dials.len(), 1, "the permit came back where the connection ended");
    assert_eq!(shards.permits(), [0, 1]);
    shards.finish();
}

#[test]
fn a_server_that_ends_on_the_way_stays_and_is_closed_here() {
    let (mut shards, server, _) = a_server_here_and_a_client_there();
    shards.sides[0].hand_over(1);
    shards.sides[0].receive(server, &message(b'E', b"SFATAL\0C57P01\0Mgoing\0\0"));
    shards.sides[0].end(server);
    assert_eq!(shards.sides[0].give_taken(true), 0);
    assert_eq!(shards.permits(), [1, 0]);
    assert!(shards.sides[0].logged("going"), "what it said last is told");
    assert_eq!(shards.sides[0].close_all(), 1);
    assert_eq!(shards.permits(), [0, 0]);
    assert_eq!(shards.sides[0].shard.stats().handed_out, 0);
    shards.finish();
}

#[test]
fn whoever_drains_hands_nothing_over() {
    let (mut shards, _, _) = a_server_here_and_a_client_there();
    shards.sides[0].hand_over(1);
    shards.sides[0].shard.drain();
    shards.sides[0].apply(&[]);
    assert_eq!(shards.sides[0].give_taken(true), 0);
    assert!(shards.sides[0].logged("shutting down"));
    assert_eq!(shards.sides[0].close_all(), 2);
    assert!(shards.sides[0].shard.is_empty());
    assert!(!shards.sides[0].hand_over(1));
    shards.finish();
}

#[test]
fn whoever_drains_sends_away_what_arrives() {
    let (mut shards, _, _) = a_server_here_and_a_client_there();
    shards.sides[0].hand_over(1);
    assert_eq!(shards.sides[0].give_taken(true), 1);
    shards.sides[1].shard.drain();
    shards.sides[1].apply(&[]);
    shards.deliver();
    let there = &mut shards.sides[1];
    assert!(there.logged("server closing because: shutting down"));
    there.close_all();
    assert!(there.shard.is_empty() && there.shard.census().permits == 0);
    shards.finish();
}

#[test]
fn a_server_condemned_on_the_way_is_closed_here() {
    for taken_already in [false, true] {
        let (mut shards, server, _) = a_server_here_and_a_client_there();
        let here = &mut shards.sides[0];
        here.hand_over(1);
        let socket = *here.sockets.iter().find(|(_, socket)| socket.taking).unwrap().0;
        here.shard.condemn(server);
        here.apply(&[]);
        if taken_already {
            // The close finds no socket: the descriptor is on its way out of the ring.
            let socket = here.sockets.get_mut(&socket).unwrap();
            (socket.closing, socket.taking) = (false, true);
            assert_eq!(here.give_taken(true), 0);
        }
        assert_eq!(here.close_all(), 1);
        assert_eq!(shards.permits(), [0, 0]);
        shards.finish();
    }
}

#[test]
fn the_idle_deadline_goes_on() {
    let mut config = unsteered(2);
    config.timeouts.server_idle = Some(Duration::from_secs(10));
    config.timeouts.server_lifetime = None;
    let mut shards = Shards::new(2, config);
    shards.sides[0].log_in();
    shards.sides[0].dial();
    shards.pass(Duration::from_secs(6));
    shards.sides[0].hand_over(1);
    shards.sides[0].give_taken(true);
    shards.deliver();
    shards.pass(Duration::from_secs(3));
    assert_eq!(shards.sides[1].shard.census().idle, 1);
    shards.pass(Duration::from_secs(2));
    assert!(shards.sides[1].logged("server_idle_timeout (age=11.000s)"), "{:?}", shards.sides[1].log);
    shards.finish();
}

#[test]
fn the_lifetime_goes_on() {
    let mut config = unsteered(2);
    config.timeouts.server_idle = None;
    config.timeouts.server_lifetime = Some(Duration::from_secs(100));
    let mut shards = Shards::new(2, config);
    shards.sides[0].log_in();
    shards.sides[0].dial();
    shards.pass(Duration::from_secs(80));
    shards.sides[0].hand_over(1);
    shards.sides[0].give_taken(true);
    shards.deliver();
    assert_eq!(shards.sides[1].shard.census().idle, 1);
    shards.pass(Duration::from_secs(21));
    assert!(shards.sides[1].logged("server_lifetime (age=101.000s)"), "{:?}", shards.sides[1].log);
    shards.finish();
}

#[test]
fn the_coldest_goes() {
    let mut shards = Shards::new(2, unsteered(8));
    let here = &mut shards.sides[0];
    let clients = [here.log_in(), here.log_in()];
    here.dial();
    for client in clients {
        here.receive(client, &query());
    }
    let second = here.dial();
    let first = here.sockets.values().find(|socket| socket.sent.ends_with(&query())).unwrap().owner.unwrap();
    here.receive(second, &answer());
    here.receive(first, &answer());
    assert_eq!(here.shard.census().idle, 2);
    here.hand_over(1);
    assert!(here.sockets.values().any(|socket| socket.taking && socket.owner == Some(second)));
    here.give_taken(true);
    shards.deliver();
    shards.finish();
}

#[test]
fn nothing_moves_when_it_is_switched_off_or_there_is_nothing() {
    let (mut shards, _, _) = a_server_here_and_a_client_there();
    assert!(!shards.sides[0].hand_over(0), "to itself");
    assert!(!shards.sides[1].hand_over(0), "it has none");
    let mut config = unsteered(2);
    config.hand_over = false;
    let mut shards = Shards::new(2, config);
    shards.sides[0].log_in();
    shards.sides[0].dial();
    assert!(!shards.sides[0].hand_over(1));
}

#[test]
fn a_server_comes_and_goes_a_hundred_times() {
    let mut shards = Shards::new(2, unsteered(2));
    for side in &mut shards.sides {
        side.log_in();
    }
    shards.sides[0].dial();
    shards.sides[1].dial();
    for round in 0..100u16 {
        let (from, to) = (usize::from(round % 2), (round + 1) % 2);
        assert!(shards.sides[from].hand_over(to));
        assert_eq!(shards.sides[from].give_taken(true), 1);
        shards.deliver();
        assert_eq!(shards.permits().iter().sum::<usize>(), 2);
    }
    shards.finish();
}
