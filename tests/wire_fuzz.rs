//! What a peer may send must never panic us, whatever it is: the seed corpus of the fuzz targets and random mutations
//! of it, for a short fixed time, on stable. `tests/fuzz/` runs the same functions under cargo-fuzz for hours.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]

use pgpinion::fuzzing;
use std::path::Path;
use std::time::{Duration, Instant};

/// For each target. The whole run stays below a minute.
const TIME: Duration = Duration::from_secs(4);

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let seeds: Vec<_> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty(), "no seeds in {}", folder.display());
    seeds
}

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..random.below(8) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at.min(bytes.len()), random.next() as u8),
            4 => bytes.extend_from_slice(&seeds[random.below(seeds.len())]),
            _ => {
                let extreme =
                    [0u32, 3, 4, 5, 0x7fff_ffff, 0x8000_0000, u32::MAX][random.below(7)].to_be_bytes();
                for (to, from) in bytes.iter_mut().skip(at).zip(extreme) {
                    *to = from;
                }
            }
        }
    }
    bytes
}

fn run(target: &str, check: fn(&[u8])) {
    let seeds = corpus(target);
    for seed in &seeds {
        check(seed);
    }
    let mut random = Random(0x5eed_0000_0000_0001);
    let end = Instant::now() + TIME;
    let mut inputs = 0u64;
    while Instant::now() < end {
        for _ in 0..100 {
            check(&mutate(&mut random, &seeds));
            inputs += 1;
        }
    }
    println!("{target}: {inputs} inputs");
}

#[test]
fn startup_packets() {
    run("startup", fuzzing::startup);
}

#[test]
fn client_streams() {
    run("client", fuzzing::client);
}

#[test]
fn server_streams() {
    run("server", fuzzing::server);
}
