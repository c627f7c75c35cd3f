//! Bugs that the simulator and the fuzz targets found, each as a script.

use super::script::*;
use super::*;
use crate::limits::{LOW_WATER_BYTES, UNSENT_BYTES_HIGH};
use std::time::Duration;

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
    assert_eq!(shard.endpoints[0].ledger.as_ref().unwrap().overview().dialing, 0);
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
    let clients = ["u", "v"].map(|user| client_of(&mut shard, user.as_bytes()[0].into(), user));
    let mut dialled = dials(&mut shard);
    let mut answered = 0;
    for _ in 0..20 {
        assert_eq!(dialled.len(), 1, "there is one connection to open");
        let server = dialled.remove(0);
        let owner = Party::Server(server).to_owner();
        assert!(dials_within(&mut shard, OPENING).is_empty());
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
        // The other one waits.
        assert!(dials_within(&mut shard, TURN).is_empty(), "not before the first one is closed");
        let closing = matches!(shard.servers.get(server).unwrap().state, server::State::Closing);
        assert!(closing, "its turn is over");
        shard.closed(owner);
        dialled = dials_within(&mut shard, TURN);
    }
    assert!(answered >= 10, "{answered} of 20 connections were of use");
}

/// What is dialled while so much time passes, in which the shard acts on each of its deadlines.
fn dials_within(shard: &mut Shard, time: Duration) -> Vec<ServerKey> {
    let (mut dialled, end) = (Vec::new(), shard.now + time);
    loop {
        dialled.extend(dials(shard));
        let next = shard.next_deadline();
        if next > end {
            shard.set_time(end);
            return dialled;
        }
        shard.set_time(next.max(shard.now));
        shard.tick();
    }
}

/// What opening a connection takes: longer than a route keeps it.
const OPENING: Duration = Duration::from_millis(200);

/// More than five times that: a route's turn is over by then.
const TURN: Duration = Duration::from_secs(2);

/// It was never stopped where each receive ended within a query: what its server had not taken piled up.
#[test]
fn a_client_that_says_more_than_its_server_takes_is_stopped() {
    let (mut shard, (client, key), (server, _)) = linked_on(shard_with(PoolMode::Transaction));
    shard.sent(server, 1000);
    // Each piece begins with the end of a query and ends with the beginning of one.
    let (one, piece_bytes) = (message(b'Q', b"select 1\0"), 32 * 1024);
    let queries = one.repeat(piece_bytes / one.len() + 2);
    shard.received(client, &queries[..8]);
    let (mut at, mut took, mut receiving) = (8, 0, true);
    while receiving && took < 100 {
        shard.received(client, &queries[at % one.len()..][..piece_bytes]);
        (at, took) = (at + piece_bytes, took + 1);
        for effect in effects(&mut shard) {
            if let Effect::Receive { socket, on } = effect {
                assert_eq!(socket, shard.clients.get(key).unwrap().socket);
                receiving = on;
            }
        }
    }
    assert!(took <= UNSENT_BYTES_HIGH / piece_bytes + 2, "{took} pieces of 32 KB were taken");
    // It goes on when the server has taken most of it, or when it answers.
    shard.sent(server, took * piece_bytes);
    for _ in 0..50_000 {
        shard.received(server, &[message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat());
        shard.sent(client, 1000);
    }
    let resumed = effects(&mut shard).iter().any(|effect| matches!(effect, Effect::Receive { on: true, .. }));
    assert!(resumed, "it is stopped for ever");
}

/// Found by fuzzing: what had come of its header was sent to the client, whose stream was broken from there on.
#[test]
fn a_description_of_ours_whose_header_is_cut_is_not_shown() {
    let answer = [
        message(b'3', b""),
        message(b'1', b""),
        message(b't', b"\0\0"),
        message(b'n', b""),
        message(b'C', b"BEGIN\0"),
        message(b'Z', b"I"),
    ]
    .concat();
    for cut in 0..answer.len() {
        let mut shard = shard();
        let (client, _) = client(&mut shard, 0);
        let server = dials(&mut shard)[0];
        let server = log_in(&mut shard, server);
        effects(&mut shard);
        let parse = message(b'P', b"a\0BEGIN\0\0\0");
        let batch = [parse, message(b'E', &[0; 5]), message(b'S', b"")].concat();
        shard.received(client, &batch);
        let mut told = Vec::new();
        for piece in [&answer[..cut], &answer[cut..]] {
            shard.sent(server, 1000);
            effects(&mut shard);
            shard.received(server, piece);
            for effect in effects(&mut shard) {
                match effect {
                    Effect::Send { socket, piece: Piece::Own(bytes) } if socket.slot == 0 => {
                        told.extend(bytes)
                    }
                    Effect::Send { socket, piece: Piece::Received(range) } if socket.slot == 0 => {
                        told.extend_from_slice(&piece[range]);
                    }
                    _ => {}
                }
            }
        }
        let expected = [message(b'1', b""), message(b'C', b"BEGIN\0"), message(b'Z', b"I")].concat();
        assert_eq!(told, expected, "cut at {cut}");
    }
}

/// Found by fuzzing: what was pipelined behind the BEGIN went on in its transaction, and where a named statement was among it
/// the client missed a ReadyForQuery.
#[test]
fn a_transaction_in_statement_pooling_ends_the_session_whatever_follows() {
    let (mut shard, (client, _), (server, _)) = linked_on(shard_with(PoolMode::Statement));
    shard.received(client, &[message(b'P', b"\0select 1\0\0\0"), message(b'S', b"")].concat());
    shard.sent(server, 1000);
    effects(&mut shard);
    let begun = [message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat();
    shard.received(server, &[begun, message(b'1', b"")].concat());
    let told: Vec<_> = effects(&mut shard)
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Send { socket, piece } if socket.slot == 0 => Some(piece),
            Effect::Close { socket, .. } if socket.slot == 0 => None,
            _ => None,
        })
        .collect();
    let [Piece::Received(passed), Piece::Own(error)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(*passed, 0..11, "the answer, and no ReadyForQuery");
    assert!(error.starts_with(b"E") && String::from_utf8_lossy(error).contains("statement pooling"));
}

/// Found by fuzzing: it was refused only when the ring had told that the BEGIN had left. What the client had said until then was
/// answered in that transaction, and behind the first answer a ReadyForQuery was missing.
#[test]
fn a_transaction_in_statement_pooling_ends_the_session_before_the_ring_tells_that_it_was_begun() {
    let (mut shard, (client, _), (server, _)) = linked_on(shard_with(PoolMode::Statement));
    shard.received(server, &[message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat());
    let told: Vec<_> = effects(&mut shard).into_iter().filter(|effect| is_about(effect, 0)).collect();
    let [
        Effect::Send { piece: Piece::Received(passed), .. },
        Effect::Send { piece: Piece::Own(error), .. },
        Effect::Close { .. },
    ] = &told[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!(*passed, 0..11, "the answer, and no ReadyForQuery");
    assert!(error.starts_with(b"E") && String::from_utf8_lossy(error).contains("statement pooling"));
    shard.received(client, &message(b'Q', b"select 2\0"));
    shard.sent(server, 1000);
    let rollback = effects(&mut shard).into_iter().find(|effect| is_about(effect, 100));
    assert!(
        matches!(&rollback, Some(Effect::Send { piece: Piece::Own(bytes), .. }) if bytes.ends_with(b"ROLLBACK\0")),
        "what it said since then goes nowhere: {rollback:?}"
    );
}

/// PostgreSQL says T behind a Query within a batch, of the batch's own transaction: its Sync, which ends that, was on its way and
/// the session was over.
#[test]
fn a_batch_that_waits_for_its_sync_is_no_transaction_in_statement_pooling() {
    for told_that_it_left in [false, true] {
        let (mut shard, (client, _), (server, _)) = linked_on(shard_with(PoolMode::Statement));
        shard.sent(server, 1000);
        shard.received(server, &[message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat());
        let batch = [message(b'P', b"\0select 1\0\0\0"), message(b'Q', b"select 2\0")].concat();
        shard.received(client, &batch);
        if told_that_it_left {
            shard.sent(server, 1000);
        }
        effects(&mut shard);
        let within = [message(b'1', b""), message(b'C', b"SELECT 1\0"), message(b'Z', b"T")].concat();
        shard.received(server, &within);
        let told: Vec<_> = effects(&mut shard).into_iter().filter(|effect| is_about(effect, 0)).collect();
        let whole = matches!(&told[..], [Effect::Send { piece: Piece::Received(range), .. }] if *range == (0..within.len()));
        assert!(whole, "{told:?}");
        shard.sent(server, 1000);
        shard.received(client, &message(b'S', b""));
        shard.sent(server, 1000);
        shard.received(server, &message(b'Z', b"T"));
        let told = effects(&mut shard).into_iter().filter(|effect| is_about(effect, 0));
        let refused = told.last().is_some_and(|effect| matches!(effect, Effect::Close { .. }));
        assert!(refused, "the transaction is more than a batch");
    }
}

fn is_about(effect: &Effect, slot: u32) -> bool {
    match effect {
        Effect::Send { socket, .. } | Effect::Close { socket, .. } => socket.slot == slot,
        _ => false,
    }
}

/// The Sync of its batch was taken for one among the data of the COPY, and the query behind it for skipped: the server was given to
/// the next client, who got the answer.
#[test]
fn a_client_whose_query_may_be_skipped_behind_a_copy_that_failed_is_sent_away() {
    let (mut shard, (client, _), (server, _)) = linked();
    shard.sent(server, 1000);
    shard.received(server, &[message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat());
    let batch = [
        message(b'P', b"\0copy t from stdin\0\0\0"),
        message(b'B', &[0; 8]),
        message(b'E', &[0; 5]),
        message(b'S', b""),
    ];
    shard.received(client, &batch.concat());
    shard.sent(server, 1000);
    let begun = [message(b'1', b""), message(b'2', b""), message(b'G', &[0; 3])].concat();
    shard.received(server, &[begun, message(b'E', b"SERROR\0CP0001\0\0")].concat());
    assert!(closed(&mut shard).is_empty(), "it may be about to say Sync");
    shard.received(client, &message(b'Q', b"select 2\0"));
    let told: Vec<_> = effects(&mut shard).into_iter().filter(|effect| is_about(effect, 0)).collect();
    let [Effect::Send { piece: Piece::Own(error), .. }, Effect::Close { .. }] = &told[..] else {
        panic!("{told:?}")
    };
    assert!(error.starts_with(b"E") && String::from_utf8_lossy(error).contains("08P01"));
    shard.sent(server, 1000);
    let answer = [message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat();
    shard.received(server, &[message(b'Z', b"I"), answer, message(b'Z', b"I")].concat());
    assert_eq!((shard.census().idle, closed(&mut shard)), (0, vec![100]), "nobody else gets it");
}

/// Found by fuzzing: the client had its header, and what the next server said was read as the rest of it.
#[test]
fn a_server_in_doubt_is_not_closed_within_its_ready_for_query() {
    let (mut shard, (client, _), (server, _)) = linked();
    shard.sent(server, 1000);
    shard.received(server, &[message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat());
    let copy = [message(b'P', b"\0copy t from stdin\0\0\0"), message(b'B', &[0; 8]), message(b'E', &[0; 5])];
    shard.received(client, &[copy.concat(), message(b'S', b"")].concat());
    shard.sent(server, 1000);
    shard.received(server, &[message(b'1', b""), message(b'2', b""), message(b'G', &[0; 3])].concat());
    shard.received(client, &[message(b'd', b"wrong"), message(b'c', b""), message(b'S', b"")].concat());
    shard.sent(server, 1000);
    let failed = [message(b'E', b"SERROR\0C22P04\0\0"), message(b'Z', b"I")].concat();
    let (first, last) = failed.split_at(failed.len() - 1);
    effects(&mut shard);
    shard.received(server, first);
    assert!(closed(&mut shard).is_empty(), "it is not over");
    shard.received(server, last);
    let about = effects(&mut shard);
    let told = about.iter().find(|effect| is_about(effect, 0));
    assert!(matches!(told, Some(Effect::Send { piece: Piece::Received(range), .. }) if *range == (0..1)));
    let is_closed = |effect: &Effect| matches!(effect, Effect::Close { socket, .. } if socket.slot == 100);
    assert!(about.iter().any(is_closed), "nobody else gets it");
}

/// Found by fuzzing: the Describe of ours that the Bind waits for was in the same batch, and nothing made PostgreSQL say what
/// came of it. The client's Sync waited behind the Bind, for ever.
#[test]
fn a_bind_that_waits_for_a_description_of_the_same_batch_is_not_stuck() {
    let mut config = Config::upstream("127.0.0.1:5432", &[0]).unwrap();
    config.max_prepared_statements = 1;
    let mut shard = Shard::new(Arc::new(config), ShardId(0), 1, 0, Secret::new([7; 32]));
    let (client, _) = client(&mut shard, 0);
    let server = dials(&mut shard)[0];
    log_in(&mut shard, server);
    effects(&mut shard);
    let parses = [message(b'P', b"a\0select 1\0\0\0"), message(b'P', b"b\0select 2\0\0\0")].concat();
    shard.received(client, &[parses, message(b'B', b"\0a\0\0\0\0\0\0\0"), message(b'S', b"")].concat());
    let sent = sent_to_server(&mut shard);
    assert!(sent.ends_with(&message(b'H', b"")), "{}", String::from_utf8_lossy(&sent));
}

/// Found by fuzzing: the COPY had failed, the server executed the command, and kept for its next client what that had left.
#[test]
fn what_is_said_among_the_data_of_a_copy_is_watched_too() {
    let mut config = Config::upstream("127.0.0.1:5432", &[0]).unwrap();
    (config.endpoints[0].max_connections, config.leak_policy) = (1, LeakPolicy::Reset);
    let shard = Shard::new(Arc::new(config), ShardId(0), 1, 0, Secret::new([7; 32]));
    let (mut shard, (client, _), (server, key)) = linked_on(shard);
    shard.sent(server, 1000);
    shard.received(server, &message(b'G', &[0; 3]));
    shard.received(client, &[message(b'd', b"wrong"), message(b'Q', b"LISTEN x\0")].concat());
    shard.sent(server, 1000);
    let failed = [message(b'E', b"SERROR\0C22P04\0\0"), message(b'Z', b"I")].concat();
    shard.received(server, &[failed, message(b'C', b"LISTEN\0"), message(b'Z', b"I")].concat());
    assert_eq!(shard.census().idle, 0, "it is cleaned first");
    assert!(matches!(shard.servers.get(key).unwrap().state, server::State::Cleaning(_)));
}

/// Found by fuzzing: the end of the batch gave the server back twice, and the process ended. Its client had sent nothing yet that
/// could be cancelled.
#[test]
fn a_cancel_request_during_a_batch_of_ours_gives_the_server_back_once() {
    let (mut shard, (client, key), (server, _)) = linked();
    shard.sent(server, 1000);
    let answer = [message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat();
    shard.received(server, &[answer, message(b'S', b"TimeZone\0PRC\0")].concat());
    shard.received(server, &message(b'S', b"TimeZone\0CET\0"));
    // It has a server for this, which gets its parameters first.
    shard.received(client, &message(b'H', b""));
    shard.sent(server, 1000);
    ask_to_cancel(&mut shard, key, 1);
    let row = message(b'D', &[0, 1, 0, 0, 0, 0]);
    let batch = [
        message(b'3', b""),
        message(b'1', b""),
        message(b'2', b""),
        row,
        message(b'C', b"SELECT 1\0"),
        message(b'3', b""),
        message(b'Z', b"I"),
    ];
    shard.received(server, &batch.concat());
    assert_eq!(closed(&mut shard), [1], "who asked is told");
    let (clients, servers) = shard.strays();
    assert!(clients.is_empty() && servers.is_empty());
    assert_eq!(shard.census().idle, 1);
}

/// PostgreSQL signals twice: the second may come when the query has ended by the first.
#[test]
fn what_a_client_says_behind_a_cancelled_query_is_not_hit() {
    let (mut shard, (client, key), (server, server_key)) = linked();
    shard.sent(server, 1000);
    let asks_postgres = |shard: &mut Shard| {
        let effects = effects(shard);
        let sent = effects
            .iter()
            .filter(|effect| matches!(effect, Effect::Send { socket, .. } if socket.slot == 100));
        let cancels = effects.iter().filter(|effect| matches!(effect, Effect::Cancel { .. }));
        (sent.count(), cancels.count())
    };
    ask_to_cancel(&mut shard, key, 1);
    assert_eq!(asks_postgres(&mut shard), (0, 1));
    let next = message(b'Q', b"select 2\0");
    shard.received(client, &next[..3]);
    let answer = [message(b'E', b"SERROR\0C57014\0\0"), message(b'Z', b"I")].concat();
    shard.received(server, &answer);
    shard.received(client, &next[3..7]);
    shard.received(client, &next[7..]);
    // That one is cancelled too, and only when it runs.
    ask_to_cancel(&mut shard, key, 2);
    assert_eq!(asks_postgres(&mut shard), (0, 0));
    shard.cancelled(server_key, true);
    assert_eq!(asks_postgres(&mut shard), (1, 1));
    shard.sent(server, 1000);
    shard.received(server, &answer);
    shard.cancelled(server_key, true);
    assert_eq!((closed(&mut shard), shard.census().idle), (vec![2], 1));
}

/// Found by fuzzing: the COPY had failed, the server took the statement under the client's own name, and another client that used
/// this name ran it.
#[test]
fn a_server_that_may_have_taken_a_clients_name_for_a_statement_is_not_given_on() {
    let (mut shard, (client, _), (server, _)) = linked();
    shard.sent(server, 1000);
    shard.received(server, &message(b'G', &[0; 3]));
    shard.received(client, &[message(b'P', b"a\0select 1\0\0\0"), message(b'S', b"")].concat());
    shard.sent(server, 1000);
    let failed = [message(b'E', b"SERROR\0C22P04\0\0"), message(b'Z', b"I")].concat();
    shard.received(server, &[failed, message(b'1', b""), message(b'Z', b"I")].concat());
    assert_eq!((closed(&mut shard), shard.census().idle), (vec![100], 0));
}

/// Found by fuzzing: the query's error was taken for one that the Parse behind it could be part of, and the Bind found none.
#[test]
fn an_error_of_a_query_leaves_the_statement_without_a_name_behind_it() {
    let (mut shard, (client, _), (server, _)) = linked();
    shard.sent(server, 1000);
    shard.received(client, &[message(b'P', b"\0select 2\0\0\0"), message(b'S', b"")].concat());
    shard.sent(server, 1000);
    let failed = [message(b'E', b"SERROR\0C26000\0\0"), message(b'Z', b"I")].concat();
    shard.received(server, &[failed, message(b'1', b""), message(b'Z', b"I")].concat());
    assert_eq!(shard.census().idle, 1);
    effects(&mut shard);
    shard.received(client, &[message(b'B', &[0; 8]), message(b'S', b"")].concat());
    let sent = sent_to_server(&mut shard);
    assert!(sent.starts_with(&message(b'P', b"\0select 2\0\0\0")), "{}", String::from_utf8_lossy(&sent));
}

/// Its client would find another value on another server.
#[test]
fn a_value_that_cannot_follow_is_told_and_its_server_not_given_on() {
    let (mut shard, _, (server, _)) = linked();
    shard.sent(server, 1000);
    shard.received(server, &message(b'S', b"search_path\0caf\xe9\0"));
    let warned = effects(&mut shard).into_iter().any(|effect| match effect {
        Effect::Log(line) => line.level == LogLevel::Warn && line.message.contains("does not follow"),
        _ => false,
    });
    assert!(warned);
    shard.received(server, &[message(b'C', b"SET\0"), message(b'Z', b"I")].concat());
    assert_eq!(closed(&mut shard), [100]);
}

/// Found by fuzzing: the server was given back, and to who waited: that client lost its session, too.
#[test]
fn a_server_that_says_goodbye_to_a_client_that_has_asked_nothing_is_nobodys() {
    let mut config = Config::upstream("127.0.0.1:5432", &[0]).unwrap();
    (config.endpoints[0].max_connections, config.leak_policy) = (1, LeakPolicy::Reset);
    let shard = Shard::new(Arc::new(config), ShardId(0), 1, 0, Secret::new([7; 32]));
    let (mut shard, (client, _), (server, _)) = linked_on(shard);
    shard.sent(server, 1000);
    shard.received(server, &[message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat());
    // The beginning of a long query, which is collected.
    shard.received(client, b"Q\0\x01\0\0");
    let (other, _) = self::client(&mut shard, 1);
    shard.received(other, &message(b'Q', b"select 2\0"));
    effects(&mut shard);
    shard.received(server, &goodbye());
    assert_eq!(closed(&mut shard), [0, 100]);
    shard.closed(server);
    shard.set_time(Instant::default() + Duration::from_secs(1));
    shard.tick();
    assert_eq!((dials(&mut shard).len(), shard.census().waiting), (1, 1), "who waits gets another one");
}

/// What a server is known to say yet is heard of in large pieces; not the end of it, which may be all there is.
#[test]
fn a_long_message_is_heard_of_in_large_pieces() {
    let (mut shard, (client, _), (server, _)) = linked_on(shard_with(PoolMode::Transaction));
    shard.sent(server, 1000);
    let low_waters = |shard: &mut Shard| {
        let asked = effects(shard).into_iter();
        let asked = asked.filter_map(|effect| match effect {
            Effect::LowWater { bytes, .. } => Some(bytes),
            _ => None,
        });
        asked.collect::<Vec<_>>()
    };
    let row = message(b'D', &vec![0; 200_000]);
    let (piece, low) = (32 * 1024, LOW_WATER_BYTES);
    let mut asked = Vec::new();
    for part in row.chunks(piece) {
        shard.received(server, part);
        shard.sent(client, part.len());
        asked.push(low_waters(&mut shard));
    }
    let missing = |pieces: usize| (row.len() - pieces * piece) as u32;
    assert_eq!(asked, [vec![low], vec![], vec![], vec![], vec![missing(5)], vec![1], vec![]]);
    // Neither do short ones wait, nor what is left of one when its client has gone.
    shard.received(server, &message(b'D', &[0; 70_000])[..40_000]);
    assert_eq!(low_waters(&mut shard), [0; 0]);
    shard.received(server, &[0; 30_005]);
    shard.received(server, &row[..piece]);
    assert_eq!(low_waters(&mut shard), [low]);
    shard.ended(client, None);
    shard.received(server, &row[piece..6 * piece]);
    assert_eq!(low_waters(&mut shard), [1]);
}
