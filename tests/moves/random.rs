//! Worlds of chance: servers move and clients are steered at any moment, letters take any time (in order per pair), bytes
//! and ends arrive in the middle of it. `MOVES_SEED=n` replays one.

use crate::shards::{Shards, config, message, startup};
use pgpinion::ids::{Owner, ShardId};
use pgpinion::shard::{DialError, Party, Peer};
use std::collections::BTreeMap;
use std::time::Duration;

/// Splitmix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A client and what it has heard.
#[derive(Default)]
struct Client {
    asked: usize,
    answered: usize,
    greeted: bool,
    /// It was told that its session is over, or left.
    over: bool,
    unread: Vec<u8>,
}

/// A process of PostgreSQL.
#[derive(Default)]
struct Process {
    started: bool,
    unread: Vec<u8>,
    /// The rest of a message that it is in the middle of.
    rest: Vec<u8>,
}

struct World {
    chance: Chance,
    shards: Shards,
    limit: usize,
    clients: BTreeMap<usize, Client>,
    processes: BTreeMap<usize, Process>,
    next_peer: usize,
    faults: bool,
    draining: bool,
}

/// Where a socket is: its shard and slot.
type Place = (usize, u32);

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let count = 2 + chance.below(4);
        let limit = 1 + chance.below(3 * count);
        let mut config = config(limit);
        config.steering = chance.one_in(2);
        let shards = Shards::new(count, config);
        let (clients, processes) = Default::default();
        let faults = seed % 2 == 1;
        Self { chance, shards, limit, clients, processes, next_peer: 0, faults, draining: false }
    }

    /// Returns how many servers and how many clients moved, and how many questions were answered.
    fn run(mut self) -> [u64; 3] {
        for _ in 0..4000 {
            self.step();
            self.check();
        }
        let faults = std::mem::replace(&mut self.faults, false);
        self.settle();
        self.check_rest(faults);
        // Then the shards drain, and nothing is left.
        self.draining = true;
        for side in &mut self.shards.sides {
            side.shard.drain();
            side.apply(&[]);
        }
        for _ in 0..100_000 {
            if self.shards.sides.iter().all(|side| side.shard.is_empty() && side.letters.is_empty()) {
                break;
            }
            self.go_on();
            self.shards.pass(Duration::from_millis(1));
            self.check();
        }
        let census: Vec<_> = self.shards.sides.iter().map(|side| side.shard.census()).collect();
        assert!(
            self.shards.sides.iter().all(|side| side.shard.is_empty() && side.letters.is_empty()),
            "something is left: {census:?}"
        );
        assert_eq!(self.shards.permits().iter().sum::<usize>(), 0);
        let moved: u64 = self.shards.sides.iter().map(|side| side.shard.stats().handed_out).sum();
        let arrived: u64 = self.shards.sides.iter().map(|side| side.shard.stats().handed_in).sum();
        assert_eq!(moved, arrived);
        let steered: u64 = self.shards.sides.iter().map(|side| side.shard.stats().steered_in).sum();
        let transactions = self.shards.sides.iter().map(|side| side.shard.stats().transactions).sum();
        [moved, steered, transactions]
    }

    /// Everything that is under way arrives.
    fn settle(&mut self) {
        for _ in 0..3000 {
            self.go_on();
            self.check();
        }
    }

    /// Something that has been begun goes on.
    fn go_on(&mut self) {
        match self.chance.below(8) {
            0 => self.dial(self.draining),
            1 => self.give(),
            2 => self.read_letter(),
            3 => self.close(),
            4 | 5 => self.deliver(),
            6 => self.finish_message(),
            _ => self.work(),
        }
    }

    /// Nothing is under way: whoever has no answer waits where there is no server.
    fn check_rest(&self, faults: bool) {
        let unanswered =
            |client: &&Client| !client.over && (!client.greeted || client.answered < client.asked);
        let unanswered = self.clients.values().filter(unanswered).count();
        let sides = &self.shards.sides;
        assert_eq!(unanswered, sides.iter().map(|side| side.shard.census().waiting).sum::<usize>());
        for side in sides {
            let census = side.shard.census();
            assert!(census.idle == 0 || census.waiting == 0, "{census:?}");
            let given_up = side.log.iter().find(|line| line.contains("server closing"));
            assert!(faults || given_up.is_none(), "{given_up:?}");
        }
    }

    fn step(&mut self) {
        match self.chance.below(16) {
            0 => self.connect(),
            1 | 2 => self.ask(),
            3..=5 => self.deliver(),
            6 | 7 => self.work(),
            8 => self.begin_hand_over(),
            9 => self.give(),
            10 | 11 => self.read_letter(),
            12 => self.close(),
            13 => self.dial(false),
            14 => self.say_something(),
            _ if self.chance.one_in(4) => self.leave(),
            _ => self.shards.pass(Duration::from_micros(100)),
        }
    }

    /// A socket for which this holds.
    fn pick(&mut self, wanted: impl Fn(&World, Owner, &crate::shards::Socket) -> bool) -> Option<Place> {
        let mut found = Vec::new();
        for (index, side) in self.shards.sides.iter().enumerate() {
            for (&slot, socket) in &side.sockets {
                if socket.owner.is_some_and(|owner| wanted(self, owner, socket)) {
                    found.push((index, slot));
                }
            }
        }
        (!found.is_empty()).then(|| found[self.chance.below(found.len())])
    }

    fn socket(&mut self, (index, slot): Place) -> &mut crate::shards::Socket {
        self.shards.sides[index].sockets.get_mut(&slot).unwrap()
    }

    fn connect(&mut self) {
        if self.clients.len() >= 12 {
            return;
        }
        let index = self.chance.below(self.shards.sides.len());
        let side = &mut self.shards.sides[index];
        let socket = side.open();
        let peer = self.next_peer;
        self.next_peer += 1;
        let entry = side.sockets.get_mut(&socket.slot).unwrap();
        (entry.peer, entry.incoming) = (peer, startup());
        let owner = side.shard.accepted(socket, Peer::Unix, 7, false);
        side.own(socket, owner);
        side.apply(&[]);
        self.clients.insert(peer, Client::default());
    }

    /// A client asks, the first time before it is let in.
    fn ask(&mut self) {
        let place = self.pick(|world, owner, socket| {
            let Some(client) = world.clients.get(&socket.peer) else { return false };
            is_client(owner) && !client.over && client.asked == client.answered
        });
        let Some(place) = place else { return };
        let peer = self.socket(place).peer;
        let client = self.clients.get_mut(&peer).unwrap();
        client.asked += 1;
        let text = format!("{peer}-{}\0", client.asked);
        self.socket(place).incoming.extend(message(b'Q', text.as_bytes()));
    }

    /// Bytes or an end reach a shard, also of a connection that is being taken.
    fn deliver(&mut self) {
        let place = self.pick(|_, _, socket| {
            socket.receiving
                && !socket.closing
                && !socket.told_end
                && (!socket.incoming.is_empty() || socket.ended)
        });
        let Some(place) = place else { return };
        let length = 1 + self.chance.below(40);
        let socket = self.socket(place);
        let owner = socket.owner.unwrap();
        let bytes: Vec<u8> = socket.incoming.drain(..length.min(socket.incoming.len())).collect();
        if bytes.is_empty() {
            socket.told_end = true;
            self.shards.sides[place.0].end(owner);
        } else {
            self.shards.sides[place.0].receive(owner, &bytes);
        }
    }

    /// The other sides read what was sent to them.
    fn work(&mut self) {
        let Some(place) = self.pick(|_, _, socket| !socket.sent.is_empty()) else { return };
        let socket = self.socket(place);
        let (owner, peer, bytes) = (socket.owner.unwrap(), socket.peer, std::mem::take(&mut socket.sent));
        if is_client(owner) {
            self.hear(peer, &bytes);
        } else {
            self.serve(place, peer, &bytes);
        }
    }

    fn hear(&mut self, peer: usize, bytes: &[u8]) {
        let Some(client) = self.clients.get_mut(&peer) else { return };
        client.unread.extend_from_slice(bytes);
        while let Some((tag, body)) = next_message(&mut client.unread) {
            match tag {
                b'Z' if !client.greeted => client.greeted = true,
                b'Z' => client.answered += 1,
                b'D' => {
                    let expected = format!("{peer}-{}", client.answered + 1);
                    assert_eq!(String::from_utf8_lossy(&body), expected, "somebody else's answer");
                }
                b'E' => client.over = true,
                _ => {}
            }
        }
        assert!(client.answered <= client.asked);
    }

    fn serve(&mut self, place: Place, peer: usize, bytes: &[u8]) {
        let process = self.processes.get_mut(&peer).unwrap();
        process.unread.extend_from_slice(bytes);
        // It is in the middle of a message: the answer comes behind it.
        let mut output = std::mem::take(&mut process.rest);
        let mut ended = false;
        if !process.started {
            let Some(length) = process.unread.first_chunk() else { return };
            let length = u32::from_be_bytes(*length) as usize;
            if process.unread.len() < length {
                return;
            }
            process.unread.drain(..length);
            process.started = true;
            output.extend([message(b'R', &[0; 4]), message(b'Z', b"I")].concat());
        }
        while let Some((tag, body)) = next_message(&mut process.unread) {
            match tag {
                b'Q' => {
                    output.extend(message(b'D', body.strip_suffix(b"\0").unwrap()));
                    output.extend([message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat());
                }
                b'X' => ended = true,
                _ => panic!("message type {tag}"),
            }
        }
        let socket = self.socket(place);
        socket.incoming.extend(output);
        socket.ended |= ended;
    }

    /// A process says something that nobody asked for, or ends.
    fn say_something(&mut self) {
        let place = self.pick(|world, owner, socket| {
            let process = world.processes.get(&socket.peer);
            !is_client(owner) && !socket.ended && process.is_some_and(|process| process.started)
        });
        let Some(place) = place else { return };
        let peer = self.socket(place).peer;
        let mut bytes = std::mem::take(&mut self.processes.get_mut(&peer).unwrap().rest);
        if self.faults && self.chance.one_in(8) {
            let goodbye = message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0");
            bytes.extend(if self.chance.one_in(2) { goodbye } else { Vec::new() });
            self.socket(place).ended = true;
        } else {
            bytes.extend(message(b'N', b"SNOTICE\0C00000\0Mby the way\0\0"));
            let cut = bytes.len() - self.chance.below(20);
            self.processes.get_mut(&peer).unwrap().rest = bytes.split_off(cut);
        }
        self.socket(place).incoming.extend(bytes);
    }

    fn finish_message(&mut self) {
        let place = self.pick(|world, owner, socket| {
            let process = world.processes.get(&socket.peer);
            !is_client(owner) && !socket.ended && process.is_some_and(|process| !process.rest.is_empty())
        });
        let Some(place) = place else { return };
        let peer = self.socket(place).peer;
        let rest = std::mem::take(&mut self.processes.get_mut(&peer).unwrap().rest);
        self.socket(place).incoming.extend(rest);
    }

    fn begin_hand_over(&mut self) {
        let count = self.shards.sides.len();
        let to = self.chance.below(count);
        let idle = |&from: &usize| self.shards.sides[from].shard.census().idle > 0;
        let Some(from) = (0..count).map(|offset| (to + offset) % count).rfind(idle) else {
            return;
        };
        self.shards.sides[from].hand_over(to as u16);
    }

    fn give(&mut self) {
        let Some((index, slot)) = self.pick(|_, _, socket| socket.taking) else { return };
        let has_room = !self.chance.one_in(8);
        self.shards.sides[index].give(slot, has_room);
    }

    fn read_letter(&mut self) {
        let writers: Vec<usize> = (0..self.shards.sides.len())
            .filter(|&index| !self.shards.sides[index].letters.is_empty())
            .collect();
        if writers.is_empty() {
            return;
        }
        let from = writers[self.chance.below(writers.len())];
        let letters = &mut self.shards.sides[from].letters;
        // Any reader's first.
        let to = letters[self.chance.below(letters.len())].0;
        let at = letters.iter().position(|(each, _)| *each == to).unwrap();
        let (to, letter) = letters.remove(at);
        self.shards.sides[usize::from(to.0)].read(ShardId(from as u16), letter);
    }

    /// A connection that is to be closed is: a server's when PostgreSQL has read what was sent, and ended.
    fn close(&mut self) {
        let place = self.pick(|_, owner, socket| {
            socket.closing && (is_client(owner) || socket.ended || socket.sent.is_empty())
        });
        let Some((index, slot)) = place else { return };
        let side = &mut self.shards.sides[index];
        let socket = side.sockets.remove(&slot).unwrap();
        side.shard.closed(socket.owner.unwrap());
        side.apply(&[]);
        self.processes.remove(&socket.peer);
        self.clients.remove(&socket.peer);
    }

    fn dial(&mut self, always_fails: bool) {
        let dialing: Vec<usize> = (0..self.shards.sides.len())
            .filter(|&index| !self.shards.sides[index].dials.is_empty())
            .collect();
        if dialing.is_empty() {
            return;
        }
        let index = dialing[self.chance.below(dialing.len())];
        let side = &mut self.shards.sides[index];
        let server = side.dials.remove(0);
        if always_fails || self.faults && self.chance.one_in(8) {
            side.shard.dialed(server, Err(DialError("by chance".into())));
        } else {
            let socket = side.open();
            let peer = self.next_peer;
            self.next_peer += 1;
            side.sockets.get_mut(&socket.slot).unwrap().peer = peer;
            side.own(socket, Party::Server(server).to_owner());
            self.processes.insert(peer, Process::default());
            side.shard.dialed(server, Ok(socket));
        }
        side.apply(&[]);
    }

    fn leave(&mut self) {
        let place = self.pick(|_, owner, socket| is_client(owner) && !socket.ended);
        let Some(place) = place else { return };
        let goodbye = self.chance.one_in(2);
        let socket = self.socket(place);
        socket.ended = true;
        if goodbye {
            socket.incoming.extend(message(b'X', b""));
        }
        let peer = socket.peer;
        if let Some(client) = self.clients.get_mut(&peer) {
            client.over = true;
        }
    }

    fn check(&self) {
        let sides = &self.shards.sides;
        let servers = |owner: Option<Owner>| owner.is_some_and(|owner| !is_client(owner));
        let open: usize = sides
            .iter()
            .map(|side| side.sockets.values().filter(|socket| servers(socket.owner)).count())
            .sum();
        let dialing: usize = sides.iter().map(|side| side.dials.len()).sum();
        let letters = sides.iter().flat_map(|side| &side.letters);
        let moving = letters.filter(|(_, letter)| servers(letter.connection().unwrap().owner)).count();
        assert!(open + dialing + moving <= self.limit, "{open} + {dialing} + {moving} of {}", self.limit);
        // Each connection has its permit with it.
        let permits: usize = sides.iter().map(|side| side.shard.census().permits).sum();
        assert_eq!(permits, open + dialing);
    }
}

fn is_client(owner: Owner) -> bool {
    matches!(Party::from_owner(owner), Party::Client(_))
}

/// Takes the first message out, if it is whole.
fn next_message(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let length = u32::from_be_bytes(bytes.get(1..5)?.try_into().ok()?) as usize + 1;
    let message: Vec<u8> = if bytes.len() >= length { bytes.drain(..length).collect() } else { return None };
    Some((message[0], message[5..].to_vec()))
}

#[test]
fn moves_at_any_moment_mix_nothing_up_and_lose_nothing() {
    let seeds = match std::env::var("MOVES_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..400u64,
    };
    let mut sum = [0; 3];
    let all = seeds.end - seeds.start > 1;
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| World::new(seed).run());
        let counts = outcome.unwrap_or_else(|panic| {
            eprintln!("replay with: MOVES_SEED={seed} cargo test --no-default-features --test moves random");
            std::panic::resume_unwind(panic)
        });
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    println!("{} servers and {} clients moved, {} questions were answered", sum[0], sum[1], sum[2]);
    assert!(!all || sum.iter().all(|&sum| sum > 400), "the worlds are too quiet: {sum:?}");
}
