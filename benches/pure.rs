//! What the pure rooms cost: framing per message and per megabyte, and a whole query through a shard (linked, passed on,
//! answered, released) without ring and kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgpinion::cancel_key::Secret;
use pgpinion::config::{Config, LeakPolicy};
use pgpinion::ids::{Owner, ShardId, SocketId};
use pgpinion::shard::{Effect, Party, Peer, Shard};
use pgpinion::time::Instant;
use pgpinion::wire::{Framer, backend};
use std::hint::black_box;
use std::sync::Arc;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn frames(bytes: &[u8]) -> usize {
    let (mut framer, mut at, mut count) = (Framer::default(), 0, 0);
    while let Ok(Some(segment)) = framer.next(bytes, &mut at, backend::longest) {
        count += usize::from(segment.begins);
    }
    count
}

fn framing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("framing");
    let rows: Vec<u8> = (0..1000).flat_map(|_| message(b'D', &[7; 30])).collect();
    group.throughput(Throughput::Elements(1000));
    group.bench_function("rows of 30 bytes", |bencher| bencher.iter(|| frames(black_box(&rows))));
    let large = message(b'D', &vec![7; 1 << 20]);
    group.throughput(Throughput::Bytes(large.len() as u64));
    group.bench_function("a row of 1 MB", |bencher| bencher.iter(|| frames(black_box(&large))));
    group.finish();
}

/// A shard with one server and one client, both logged in.
struct Bench {
    shard: Shard,
    effects: Vec<Effect>,
    client: Owner,
    server: Owner,
}

impl Bench {
    fn new(leak_policy: LeakPolicy) -> Self {
        let mut config = Config::upstream("127.0.0.1:5432", &[0]).expect("a valid address");
        config.leak_policy = leak_policy;
        let shard = Shard::new(Arc::new(config), ShardId(0), 1, 1, Secret::new([7; 32]));
        let none = Owner(0);
        let mut bench = Self { shard, effects: Vec::new(), client: none, server: none };
        bench.shard.set_time(Instant::from_nanos(1));
        bench.client = bench.shard.accepted(SocketId { slot: 0, generation: 0 }, Peer::Unix, false);
        let mut startup = vec![0, 3, 0, 0];
        startup.extend_from_slice(b"user\0u\0\0");
        let packet = [&(startup.len() as u32 + 4).to_be_bytes()[..], &startup].concat();
        bench.shard.received(bench.client, &packet);
        let server = bench.effects().iter().find_map(|effect| match effect {
            Effect::Dial { server, .. } => Some(*server),
            _ => None,
        });
        let server = server.expect("a server is dialled");
        bench.server = Party::Server(server).to_owner();
        bench.shard.dialed(server, Ok(SocketId { slot: 1, generation: 0 }));
        bench.sent(bench.server);
        let hello = [message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
        bench.shard.received(bench.server, &hello);
        bench.sent(bench.client);
        bench
    }

    fn effects(&mut self) -> Vec<Effect> {
        let mut effects = std::mem::take(&mut self.effects);
        effects.clear();
        self.shard.take_effects(&mut effects);
        effects
    }

    fn sent(&mut self, owner: Owner) {
        self.shard.sent(owner, usize::MAX >> 32);
        self.effects = self.effects();
    }

    fn event(&mut self, owner: Owner, bytes: &[u8]) {
        self.shard.received(owner, bytes);
        let effects = self.effects();
        self.effects = effects;
    }
}

fn query(criterion: &mut Criterion) {
    let long = format!("select {} from accounts where aid = 1", "a.very_long_name, ".repeat(50));
    let texts = [("select 1", "select 1"), ("1 KB", &long)];
    for (name, text) in texts {
        for policy in [LeakPolicy::Allow, LeakPolicy::Reset] {
            one_query(
                criterion,
                &format!("link, pass on, answer, release: {name}, {policy:?}"),
                text,
                policy,
            );
        }
    }
}

fn one_query(criterion: &mut Criterion, name: &str, text: &str, policy: LeakPolicy) {
    let mut bench = Bench::new(policy);
    let question = message(b'Q', format!("{text}\0").as_bytes());
    let answer =
        [message(b'T', &[0; 30]), message(b'D', &[0; 7]), message(b'C', b"SELECT 1\0"), message(b'Z', b"I")];
    let answer = answer.concat();
    let (client, server) = (bench.client, bench.server);
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| {
            bench.event(client, black_box(&question));
            bench.sent(server);
            bench.event(server, black_box(&answer));
            bench.sent(client);
        });
    });
    assert!(bench.shard.stats().transactions > 0, "queries went through");
}

criterion_group!(benches, framing, query);
criterion_main!(benches);
