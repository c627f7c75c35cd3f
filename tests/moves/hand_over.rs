//! Idle servers handed over, because the ledger recalls them for clients of another shard.

use crate::shards::{Shards, answer, config, message, query};
use pgpinion::config::Config;
use pgpinion::ids::Owner;
use std::time::Duration;

/// Two shards; the first, which keeps the ledger, has a client and the only permit, with an idle server; on the second a
/// client waits.
fn a_server_here_and_a_client_there() -> (Shards, Owner, Owner) {
    let (mut shards, server) = a_server_here(unsteered(1));
    let there = &mut shards.sides[1];
    let client = there.log_in();
    there.receive(client, &query());
    assert!(there.dials.is_empty() && there.shard.census().waiting == 1);
    (shards, server, client)
}

fn a_server_here(config: Config) -> (Shards, Owner) {
    let mut shards = Shards::new(2, config);
    shards.sides[0].log_in();
    let server = shards.sides[0].dial();
    assert_eq!(shards.sides[0].shard.census().idle, 1);
    (shards, server)
}

fn unsteered(permits: usize) -> Config {
    let mut config = config(permits);
    config.steering = false;
    config
}

#[test]
fn a_server_goes_with_all_it_has_and_serves_who_waits() {
    let (mut shards, _, client) = a_server_here_and_a_client_there();
    shards.recall(0);
    assert_eq!(shards.sides[0].shard.census().idle, 0, "nobody is linked to it any more");
    let leaving = |shards: &Shards| {
        let census = shards.sides[0].shard.census();
        census.servers - census.permits
    };
    assert_eq!((shards.permits(), leaving(&shards)), (vec![0, 0], 1), "it is counted out before it leaves");
    assert_eq!(shards.sides[0].give_taken(true), 1);
    assert_eq!((shards.permits(), leaving(&shards)), (vec![0, 0], 0), "it is in the letter");
    assert!(shards.sides[0].logged("handed over to shard 1"));
    shards.deliver();
    assert_eq!((shards.permits(), shards.permits_given()), (vec![0, 1], 1));
    let there = &mut shards.sides[1];
    // The client there had not even been let in: nobody had told what servers report.
    assert!(there.sent(client).windows(14).any(|bytes| bytes == b"server_version"));
    let id = there.log.iter().find(|line| line.contains("taken over from shard 0")).unwrap();
    let id = id.split(' ').next().unwrap().to_owned();
    assert!(id.starts_with("0."), "it keeps the name that its first shard gave it: {id}");
    there.answer();
    assert!(there.sent(client).ends_with(&answer()));
    assert_eq!(there.shard.census().idle, 1);
    assert_eq!((there.shard.stats().handed_in, there.shard.stats().opened), (1, 0));
    assert_eq!(shards.sides[0].shard.stats().handed_out, 1);
    shards.finish();
}

#[test]
fn a_server_in_use_goes_when_it_is_released() {
    let (mut shards, server, client) = a_server_here_and_a_client_there();
    let here = &mut shards.sides[0];
    let busy =
        *here.sockets.values().find_map(|socket| socket.owner.filter(|&o| o != server)).as_ref().unwrap();
    here.receive(busy, &query());
    shards.settle();
    assert!(!shards.sides[0].is_taking(), "its client has it");
    shards.sides[0].answer();
    assert!(shards.sides[0].sent(busy).ends_with(&answer()));
    shards.hand_over(0);
    shards.sides[1].answer();
    assert!(shards.sides[1].sent(client).ends_with(&answer()));
    shards.finish();
}

#[test]
fn a_notice_that_comes_on_the_way_is_read_there() {
    let notice = message(b'N', b"SNOTICE\0C00000\0Mon the way\0\0");
    for cut in 0..=notice.len() {
        let (mut shards, server, client) = a_server_here_and_a_client_there();
        shards.recall(0);
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
        there.answer();
        assert!(there.sent(client).ends_with(&answer()));
        assert_eq!(there.logged("notice between sessions: "), cut > 0);
        shards.finish();
    }
}

#[test]
fn a_goodbye_that_comes_on_the_way_is_heard_there() {
    let (mut shards, server, _) = a_server_here_and_a_client_there();
    shards.recall(0);
    let goodbye = message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0");
    shards.sides[0].receive(server, &goodbye);
    assert_eq!(shards.sides[0].give_taken(true), 1);
    shards.deliver();
    let there = &mut shards.sides[1];
    assert!(there.logged("terminating connection"));
    assert_eq!(there.shard.census().waiting, 1, "the client waits on");
    shards.settle();
    assert!(shards.sides[1].dials.is_empty(), "PostgreSQL has not closed it yet");
    assert_eq!(shards.sides[1].close_all(), 1);
    shards.settle();
    assert_eq!(shards.sides[1].dials.len(), 1, "its permit is for who waits");
    assert_eq!(shards.permits(), [0, 1]);
    shards.finish();
}

#[test]
fn a_server_that_ends_on_the_way_is_closed_here_and_its_permit_goes_there() {
    let (mut shards, server, _) = a_server_here_and_a_client_there();
    shards.recall(0);
    shards.sides[0].receive(server, &message(b'E', b"SFATAL\0C57P01\0Mgoing\0\0"));
    shards.sides[0].end(server);
    assert_eq!(shards.sides[0].give_taken(true), 0);
    assert!(shards.sides[0].logged("going"), "what it said last is told");
    shards.settle();
    assert_eq!((shards.permits_given(), shards.sides[1].dials.len()), (1, 0), "until it is closed");
    assert_eq!(shards.sides[0].close_all(), 1);
    shards.settle();
    assert_eq!(shards.sides[1].dials.len(), 1, "its permit is for who waits");
    assert_eq!((shards.permits(), shards.permits_given()), (vec![0, 1], 1));
    assert_eq!(shards.sides[0].shard.stats().handed_out, 0);
    shards.finish();
}

/// The ledger has counted it there already.
#[test]
fn a_server_on_its_way_goes_though_its_shard_drains() {
    let (mut shards, _, client) = a_server_here_and_a_client_there();
    shards.recall(0);
    shards.sides[0].shard.drain();
    shards.sides[0].apply(&[]);
    assert_eq!(shards.sides[0].give_taken(true), 1);
    assert_eq!(shards.sides[0].close_all(), 1, "the client");
    assert!(shards.sides[0].shard.is_empty());
    shards.deliver();
    shards.sides[1].answer();
    assert!(shards.sides[1].sent(client).ends_with(&answer()));
    shards.finish();
}

#[test]
fn whoever_drains_sends_away_what_arrives() {
    let (mut shards, _, _) = a_server_here_and_a_client_there();
    shards.recall(0);
    assert_eq!(shards.sides[0].give_taken(true), 1);
    shards.sides[1].shard.drain();
    shards.sides[1].apply(&[]);
    shards.deliver();
    let there = &mut shards.sides[1];
    assert!(there.logged("server closing because: shutting down"));
    there.close_all();
    assert!(there.shard.is_empty() && there.shard.census().permits == 0);
    shards.settle();
    assert_eq!(shards.permits_given(), 0);
    shards.finish();
}

#[test]
fn a_server_condemned_on_the_way_is_closed_here() {
    for taken_already in [false, true] {
        let (mut shards, server, _) = a_server_here_and_a_client_there();
        shards.recall(0);
        let here = &mut shards.sides[0];
        let socket = *here.sockets.iter().find(|(_, socket)| socket.taking).unwrap().0;
        here.shard.condemn(server);
        here.apply(&[]);
        if taken_already {
            // The close finds no socket: the descriptor is on its way out of the ring.
            let socket = here.sockets.get_mut(&socket).unwrap();
            (socket.closing, socket.taking) = (false, true);
            assert_eq!(here.give_taken(true), 0);
        }
        // Else its permit came back while PostgreSQL still executed for it, and there was one connection too many.
        assert!(here.sockets.values().any(|socket| socket.closing && socket.lingers), "{taken_already}");
        assert_eq!(here.close_all(), 1);
        assert_eq!(shards.permits_given(), 1);
        shards.settle();
        assert_eq!(shards.sides[1].dials.len(), 1, "its permit is for who waits");
        shards.finish();
    }
}

#[test]
fn the_idle_deadline_goes_on() {
    let mut config = unsteered(1);
    config.timeouts.server_idle = Some(Duration::from_secs(10));
    config.timeouts.server_lifetime = None;
    let (mut shards, _) = a_server_here(config);
    shards.pass(Duration::from_secs(6));
    // It wants to be let in, and asks for nothing.
    shards.sides[1].log_in();
    shards.hand_over(0);
    assert_eq!(shards.sides[1].shard.census().idle, 1);
    shards.pass(Duration::from_secs(3));
    assert_eq!(shards.sides[1].shard.census().idle, 1);
    shards.pass(Duration::from_secs(2));
    assert!(shards.sides[1].logged("server_idle_timeout (age=11.00"), "{:?}", shards.sides[1].log);
    shards.finish();
}

#[test]
fn the_lifetime_goes_on() {
    let mut config = unsteered(1);
    config.timeouts.server_idle = None;
    config.timeouts.server_lifetime = Some(Duration::from_secs(100));
    let (mut shards, _) = a_server_here(config);
    shards.pass(Duration::from_secs(80));
    shards.sides[1].log_in();
    shards.hand_over(0);
    assert_eq!(shards.sides[1].shard.census().idle, 1);
    shards.pass(Duration::from_secs(21));
    assert!(shards.sides[1].logged("server_lifetime (age=101.00"), "{:?}", shards.sides[1].log);
    shards.finish();
}

#[test]
fn the_coldest_goes() {
    let mut shards = Shards::new(2, unsteered(2));
    let here = &mut shards.sides[0];
    let clients = [here.log_in(), here.log_in()];
    here.dial();
    for client in clients {
        here.receive(client, &query());
    }
    shards.settle();
    let here = &mut shards.sides[0];
    let second = here.dial();
    let first = here.asked();
    assert_ne!(first, second);
    here.receive(second, &answer());
    here.receive(first, &answer());
    assert_eq!(here.shard.census().idle, 2);
    let client = shards.sides[1].log_in();
    shards.sides[1].receive(client, &query());
    shards.recall(0);
    let taken = shards.sides[0].sockets.values().filter(|socket| socket.taking);
    assert_eq!(taken.map(|socket| socket.owner).collect::<Vec<_>>(), [Some(second)]);
    shards.hand_over(0);
    shards.sides[1].answer();
    shards.finish();
}

#[test]
fn without_hand_over_it_is_closed_here_and_opened_there() {
    let mut config = unsteered(1);
    config.hand_over = false;
    let (mut shards, _) = a_server_here(config);
    let client = shards.sides[1].log_in();
    shards.sides[1].receive(client, &query());
    shards.settle();
    for _ in 0..20 {
        shards.pass(Duration::from_millis(1));
        shards.deliver();
    }
    assert_eq!(shards.sides[0].shard.census().idle, 1, "a connection is of use for a while first");
    // All has been said, and the ledger was never called again: who waited did so until the idle one was closed.
    shards.pass(Duration::from_millis(100));
    shards.settle();
    assert!(!shards.sides[0].is_taking());
    assert!(shards.sides[0].logged("its permit is recalled"), "{:?}", shards.sides[0].log);
    assert!(shards.sides[1].dials.is_empty(), "PostgreSQL has not closed it yet");
    assert_eq!(shards.sides[0].close_all(), 1);
    shards.settle();
    assert_eq!(shards.sides[1].dials.len(), 1);
    shards.finish();
}

/// F9, without sockets.
#[test]
fn one_connection_serves_two_shards_in_turn() {
    let (mut shards, server) = a_server_here(unsteered(1));
    let here = shards.sides[0].sockets.values().find_map(|socket| socket.owner.filter(|&o| o != server));
    let clients = [here.unwrap(), shards.sides[1].log_in()];
    shards.hand_over(0);
    for round in 0..1000 {
        let (from, to) = ((round + 1) % 2, round % 2);
        shards.sides[to].receive(clients[to], &query());
        shards.hand_over(from);
        assert_eq!((shards.permits().iter().sum::<usize>(), shards.permits_given()), (1, 1));
        shards.sides[to].answer();
        assert!(shards.sides[to].sent(clients[to]).ends_with(&answer()));
    }
    let opened = shards.sides.iter().map(|side| side.shard.stats().opened).sum::<u64>();
    assert_eq!(opened, 1, "nothing was closed and opened");
    shards.finish();
}
