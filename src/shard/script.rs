//! Scripts for tests of a shard: a step is a line.

use super::{ClientKey, Effect, Party, Peer, Piece, ServerKey, Shard};
use crate::cancel_key::Secret;
use crate::config::{Config, PoolMode};
use crate::ids::{Owner, ShardId, SocketId};
use bytes::BytesMut;
use std::sync::Arc;

/// With one connection to give.
pub(super) fn shard() -> Shard {
    shard_with(PoolMode::Transaction)
}

pub(super) fn shard_with(mode: PoolMode) -> Shard {
    let mut config = Config::upstream("127.0.0.1:5432", &[0]).unwrap();
    config.endpoints[0].max_connections = 1;
    config.pool_mode = mode;
    Shard::new(Arc::new(config), ShardId(0), 1, 0, Secret::new([7; 32]))
}

pub(super) fn socket(slot: u32) -> SocketId {
    SocketId { slot, generation: 0 }
}

pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A client that has sent its startup packet, on the socket of this number.
pub(super) fn client(shard: &mut Shard, slot: u32) -> (Owner, ClientKey) {
    client_of(shard, slot, "u")
}

pub(super) fn client_of(shard: &mut Shard, slot: u32, user: &str) -> (Owner, ClientKey) {
    let owner = shard.accepted(socket(slot), Peer::Unix, false);
    let body = format!("\0\x03\0\0user\0{user}\0database\0d\0\0").into_bytes();
    let packet = [&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat();
    shard.received(owner, &packet);
    let Party::Client(key) = Party::from_owner(owner) else { panic!("a client is a client") };
    (owner, key)
}

pub(super) fn dials(shard: &mut Shard) -> Vec<ServerKey> {
    let effects = effects(shard);
    let dials = effects.into_iter().filter_map(|effect| match effect {
        Effect::Dial { server, .. } => Some(server),
        _ => None,
    });
    dials.collect()
}

pub(super) fn effects(shard: &mut Shard) -> Vec<Effect> {
    let mut effects = Vec::new();
    shard.take_effects(&mut effects);
    effects
}

/// A server on socket 100, logged in, all of its bytes sent.
pub(super) fn log_in(shard: &mut Shard, server: ServerKey) -> Owner {
    let owner = Party::Server(server).to_owner();
    shard.dialed(server, Ok(socket(100)));
    shard.sent(owner, 1000);
    shard.received(owner, &hello());
    owner
}

/// What a server says when it lets somebody in.
pub(super) fn hello() -> Vec<u8> {
    [message(b'R', &[0; 4]), message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]), message(b'Z', b"I")].concat()
}

/// What it says when it is told to end.
pub(super) fn goodbye() -> Vec<u8> {
    message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0")
}

/// A client on socket 0, linked to a server on socket 100 that answers its query.
pub(super) fn linked() -> (Shard, (Owner, ClientKey), (Owner, ServerKey)) {
    linked_on(shard())
}

pub(super) fn linked_on(mut shard: Shard) -> (Shard, (Owner, ClientKey), (Owner, ServerKey)) {
    let client = client(&mut shard, 0);
    let server = dials(&mut shard)[0];
    let owner = log_in(&mut shard, server);
    shard.received(client.0, &message(b'Q', b"select 1\0"));
    effects(&mut shard);
    (shard, client, (owner, server))
}

/// A cancel request for what a client does, on the socket of this number.
pub(super) fn ask_to_cancel(shard: &mut Shard, key: ClientKey, slot: u32) {
    let mut known = BytesMut::new();
    shard.put_cancel_key(key, &mut known);
    let asker = shard.accepted(socket(slot), Peer::Unix, false);
    let body = [&80_877_102u32.to_be_bytes()[..], &known[5..]].concat();
    shard.received(asker, &[&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat());
}

/// What went to socket 100, where it was not passed as it was received.
pub(super) fn sent_to_server(shard: &mut Shard) -> Vec<u8> {
    let sent = effects(shard).into_iter().filter_map(|effect| match effect {
        Effect::Send { socket, piece: Piece::Own(bytes) } if socket.slot == 100 => Some(bytes),
        _ => None,
    });
    sent.flatten().collect()
}

pub(super) fn closed(shard: &mut Shard) -> Vec<u32> {
    let mut slots: Vec<u32> = effects(shard)
        .iter()
        .filter_map(|effect| match effect {
            Effect::Close { socket, .. } => Some(socket.slot),
            _ => None,
        })
        .collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}
