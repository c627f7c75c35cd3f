//! What the ring costs: a round trip of 100 bytes over a socket pair, with 1 and with 64 pairs at once, and a task spawned
//! and run to its end.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use pgpinion::ids::Owner;
use pgpinion::ring::{Event, Outgoing, Ring, RingSettings, Tasks, run_shard};
use pgpinion::time::Instant;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long `rounds` round trips take, spread over `pairs` pairs whose both ends are on one ring.
fn round_trips(pairs: u64, rounds: u64) -> Duration {
    let ring = Ring::new(&RingSettings::default()).expect("a ring");
    let mut asking = Vec::new();
    for number in 0..pairs {
        let (one, other) = UnixStream::pair().expect("a pair");
        let one = ring.adopt(one.into(), Owner(0));
        let other = ring.adopt(other.into(), Owner(1 + number));
        ring.start_receiving(one);
        ring.start_receiving(other);
        asking.push(one);
    }
    for socket in asking {
        ring.send(socket, Outgoing::Own(Bytes::from_static(&[7; 100])));
    }
    let mut done = 0;
    let start = std::time::Instant::now();
    while done < rounds {
        let mut see = |event| {
            if let Event::Received { socket, owner, buffer } = event {
                done += u64::from(owner == Owner(0));
                ring.send(socket, Outgoing::Buffer(buffer));
            }
        };
        ring.turn(Instant::NEVER, &mut see).expect("the ring turns");
    }
    start.elapsed()
}

fn round_trip(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring round trip");
    for pairs in [1, 64] {
        group.bench_function(format!("{pairs} pairs"), |bencher| {
            bencher.iter_custom(|rounds| round_trips(pairs, rounds));
        });
    }
    group.finish();
}

fn spawn(criterion: &mut Criterion) {
    criterion.bench_function("task spawn and end", |bencher| {
        bencher.iter_custom(|rounds| {
            let timed = run_shard(None, || async move {
                let tasks = Tasks::new(drop);
                let start = std::time::Instant::now();
                for _ in 0..rounds {
                    tasks.spawn(async {});
                    tasks.settle().await;
                }
                start.elapsed()
            });
            timed.expect("an executor")
        });
    });
}

criterion_group!(benches, round_trip, spawn);
criterion_main!(benches);
