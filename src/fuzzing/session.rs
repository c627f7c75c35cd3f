//! Whole sessions: the input is a schedule for one shard, two or three clients and PostgreSQL.
//!
//! ```text
//!   input:  mode limits step*
//!   step:   what number [bytes]
//!           0rr kkk pp      rr: how the ring is; kkk: what happens; pp: to which client or server
//! ```
//!
//! Clients and servers say what is right, what is nearly right, and what the input says. Whatever that is: nobody gets a
//! server that is at work for somebody else, or what a server says to somebody else; a client is told what a PostgreSQL of
//! its own would say, up to an error that ends its session; nobody waits for ever; and every permit comes back.

use super::client::{self, Run};
use super::world::{Ring, World};
use crate::config::{Config, LeakPolicy, PoolMode};
use crate::random;
use crate::wire::backend;
use std::time::Duration;

/// A schedule: see the module.
pub fn session(bytes: &[u8]) {
    let [first, second, steps @ ..] = bytes else { return };
    let mut input = Input(&steps[..steps.len().min(INPUT_BYTES_MAX)]);
    let run = Run(bytes.iter().fold(0, |run, &byte| random::mix(run ^ u64::from(byte))) as u32);
    let Some(config) = config(*first, *second) else { return };
    let clients = 2 + usize::from(second >> 1 & 1);
    let mut world = World::new(config, run, clients, second & 4 != 0);
    while let Some([what, number]) = input.take(2) {
        step(&mut world, *what, *number, &mut input);
    }
    finish(world);
}

fn config(first: u8, second: u8) -> Option<Config> {
    let mut config = Config::upstream("127.0.0.1:5432", &[0]).ok()?;
    config.pool_mode =
        [PoolMode::Transaction, PoolMode::Statement, PoolMode::Session][usize::from(first % 3)];
    config.leak_policy = LeakPolicy::Reset;
    config.endpoints.first_mut()?.max_connections = 1 + usize::from(second & 1);
    config.max_prepared_statements = if second & 8 != 0 { 1 } else { 200 };
    config.timeouts.idle_transaction = (second & 16 != 0).then_some(Duration::from_secs(2));
    config.timeouts.client_idle = (second & 32 != 0).then_some(Duration::from_secs(10));
    Some(config)
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// Bytes of a peer: raw ones, or a message whose header is right.
    fn raw(&mut self, how: u8) -> Vec<u8> {
        let bytes = self.take(usize::from(how & 31).min(self.0.len())).unwrap_or_default();
        match bytes.split_first() {
            Some((&tag, body)) if how & 128 != 0 => {
                [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
            }
            _ => bytes.to_vec(),
        }
    }
}

fn step(world: &mut World, what: u8, how: u8, input: &mut Input<'_>) {
    world.ring = [Ring::Prompt, Ring::Silent, Ring::Full, Ring::Slow][usize::from(what >> 5 & 3)];
    let number = usize::from(what & 3);
    let of_clients = number % world.clients.len();
    match what >> 2 & 7 {
        0 | 1 => {
            let message = client::say(&mut world.clients[of_clients], how);
            let cut = match what >> 2 & 1 {
                0 => message.len(),
                _ => cut(input).min(message.len()),
            };
            let tail = std::mem::replace(&mut world.clients[of_clients].tail, message[cut..].to_vec());
            world.client_sends(of_clients, &[&tail, &message[..cut]]);
        }
        2 => {
            let tail = std::mem::take(&mut world.clients[of_clients].tail);
            let raw = input.raw(how);
            world.client_sends(of_clients, &[&tail, &raw]);
        }
        3 => {
            let messages = if how & 15 == 0 { usize::MAX } else { usize::from(how & 15) };
            let cut = if how & 64 != 0 { cut(input) } else { 0 };
            world.server_answers(number, messages, how & 128 != 0, cut);
        }
        4 => {
            let (tag, body): (u8, &[u8]) = match how & 3 {
                0 => (b'N', b"SNOTICE\0Munasked\0\0"),
                1 => (b'A', b"\0\0\0\x01x\0y\0"),
                2 => (b'S', b"in_hot_standby\0on\0"),
                _ => (b'N', b"\0"),
            };
            world.server_speaks(number, &backend::message(tag, body), usize::from(how >> 2));
        }
        5 => {
            let raw = input.raw(how);
            world.server_raves(number, &raw);
        }
        6 => {
            let times = [0, 1, 20, 600, 2_500, 6_000, 40_000, 130_000];
            world.pass(Duration::from_millis(times[usize::from(how & 7)]));
        }
        _ => match how & 7 {
            0 => world.client_ends(of_clients, None),
            1 => world.client_ends(of_clients, Some(RESET)),
            2 => world.server_ends(number, None),
            3 => world.server_ends(number, Some(RESET)),
            4 => {
                world.server_speaks(number, &backend::message(b'E', GOODBYE), 0);
                world.server_ends(number, None);
            }
            5 => world.ask_to_cancel(of_clients),
            6 => world.failing_dials += 1,
            _ => {
                let tail = std::mem::take(&mut world.clients[of_clients].tail);
                world.client_sends(of_clients, &[&tail]);
            }
        },
    }
    world.pass(Duration::from_micros(10));
}

fn cut(input: &mut Input<'_>) -> usize {
    input.take(1).map_or(0, |byte| usize::from(byte[0]))
}

/// Everybody ends what it is at, and leaves; then the shard ends.
fn finish(mut world: World) {
    (world.ring, world.failing_dials) = (Ring::Prompt, 0);
    world.end_liars();
    world.answer_all();
    world.finish_clients();
    for number in 0..world.clients.len() {
        world.client_ends(number, None);
    }
    world.answer_all();
    world.pass(Duration::from_secs(10));
    world.check_rest();
    world.shard.drain();
    world.pass(Duration::ZERO);
    for _ in 0..3 {
        world.pass(Duration::from_secs(1));
    }
    world.check_end();
}

/// More steps find no more.
const INPUT_BYTES_MAX: usize = 4096;

const GOODBYE: &[u8] = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0";

/// `ECONNRESET`.
const RESET: i32 = 104;
