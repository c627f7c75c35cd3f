//! Bugs that the simulator found, each as a script.

use super::script::*;
use super::*;
use std::time::Duration;

/// When a route's turn is over, and then some.
const LONG: Duration = Duration::from_millis(200);

/// The permit came back at once, and PostgreSQL, which was slow, had one connection more than it may.
#[test]
fn a_login_that_takes_too_long_keeps_its_permit_until_postgres_has_closed() {
    let mut shard = shard();
    client(&mut shard, 0);
    let server = dials(&mut shard)[0];
    shard.dialed(server, Ok(socket(100)));
    effects(&mut shard);
    shard.set_time(Instant::default() + shard.config.timeouts.server_connect);
    shard.tick();
    let lingers = effects(&mut shard).into_iter().find_map(|effect| match effect {
        Effect::Close { linger, .. } => Some(linger),
        _ => None,
    });
    assert_eq!(lingers, Some(Some(shard.config.timeouts.server_close)));
    assert_eq!(shard.census().permits, 1);
    shard.closed(Party::Server(server).to_owner());
    assert_eq!(shard.census().permits, 0);
}

/// It was taken for idle, in no pool: nobody's for ever, closed twice when the shard was drained, and its attempt was
/// counted as under way for ever.
#[test]
fn a_server_that_says_goodbye_with_its_greeting_is_closed() {
    let mut shard = shard();
    client(&mut shard, 0);
    let server = dials(&mut shard)[0];
    let owner = Party::Server(server).to_owner();
    shard.dialed(server, Ok(socket(100)));
    shard.sent(owner, 1000);
    shard.received(owner, &[hello(), goodbye()].concat());
    assert_eq!(closed(&mut shard), [100]);
    assert_eq!(shard.endpoints[0].dialing, 0);
    shard.drain();
    assert!(!closed(&mut shard).contains(&100), "it is closed already");
    shard.closed(owner);
    assert_eq!(shard.census().permits, 0);
}

/// The client had been sent away between the two, and was sent the goodbye behind its close.
#[test]
fn what_a_server_says_behind_the_last_answer_is_not_for_a_client_that_was_sent_away() {
    let (mut shard, (client, _), (server, _)) = linked_on(shard_with(PoolMode::Session));
    shard.sent(server, 1000);
    shard.drain();
    shard.received(server, &[message(b'C', b"SELECT 1\0"), message(b'Z', b"I"), goodbye()].concat());
    let effects = effects(&mut shard);
    let to = |wanted: u32| {
        let about = effects.iter().filter(move |effect| match effect {
            Effect::Send { socket, .. } | Effect::Close { socket, .. } => socket.slot == wanted,
            _ => false,
        });
        about.map(|effect| matches!(effect, Effect::Close { .. })).collect::<Vec<bool>>()
    };
    assert_eq!(to(0), [false, false, true], "the answer, why it ends, the end");
    assert_eq!(to(100).last(), Some(&true), "the server is closed");
    shard.closed(client);
    shard.closed(server);
    assert!(shard.is_empty());
}

/// Each took the connection from the other before it had served anybody, for ever, where opening one took longer than
/// a turn.
#[test]
fn two_routes_that_share_one_connection_each_get_something_done_with_it() {
    let mut shard = shard();
    let mut now = Instant::default();
    let clients = ["u", "v"].map(|user| client_of(&mut shard, user.as_bytes()[0].into(), user));
    let mut answered = 0;
    for _ in 0..20 {
        for server in dials(&mut shard) {
            let owner = Party::Server(server).to_owner();
            now = now + LONG;
            shard.set_time(now);
            log_in(&mut shard, server);
            for (client, key) in &clients {
                if shard.clients.get(*key).unwrap().state == client::State::Idle {
                    shard.received(*client, &message(b'Q', b"select 1\0"));
                }
            }
            shard.sent(owner, 1000);
            if matches!(shard.servers.get(server).unwrap().state, server::State::Linked(_)) {
                answered += 1;
                shard.received(owner, &[message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat());
            }
            let closing =
                shard.servers.get(server).is_some_and(|each| matches!(each.state, server::State::Closing));
            assert!(closing, "the other one waits");
            shard.closed(owner);
        }
    }
    assert!(answered >= 10, "{answered} of 20 connections were of use");
}
