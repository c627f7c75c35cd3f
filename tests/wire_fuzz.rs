//! What a peer may send must never panic us, whatever it is: the seed corpus of the fuzz targets and random mutations
//! of it, for a short fixed time, on stable. `tests/fuzz/` runs the same functions under cargo-fuzz for hours.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]

use pgpinion::fuzzing;
use std::path::Path;
use std::time::{Duration, Instant};

/// For each target. The whole run stays below a minute; `FUZZ_SECONDS` makes it longer.
const TIME: Duration = Duration::from_secs(4);

fn time() -> Duration {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    seconds.map_or(TIME, Duration::from_secs)
}

/// Where the random numbers begin: `FUZZ_SEED`, or always the same.
fn seed() -> u64 {
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    seed.unwrap_or(0x5eed_0000_0000_0001)
}

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
        match random.below(7) {
            0 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at.min(bytes.len()), random.next() as u8),
            4 => bytes.extend_from_slice(&seeds[random.below(seeds.len())]),
            5 => bytes.extend((0..random.below(64)).map(|_| random.next() as u8)),
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

/// A failure prints the input: it belongs into the corpus.
fn check_named(target: &str, check: fn(&[u8]), input: &[u8]) {
    let outcome = std::panic::catch_unwind(|| check(input));
    if let Err(panic) = outcome {
        eprintln!("{target} fails with {input:?}");
        std::panic::resume_unwind(panic);
    }
}

fn run(target: &str, check: fn(&[u8])) {
    let seeds = corpus(target);
    for seed in &seeds {
        check_named(target, check, seed);
    }
    let mut random = Random(seed());
    let end = Instant::now() + time();
    let mut inputs = 0u64;
    while Instant::now() < end {
        for _ in 0..100 {
            let input = mutate(&mut random, &seeds);
            check_named(target, check, &input);
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

#[test]
fn whole_sessions() {
    run("session", fuzzing::session);
}

/// Found by fuzzing: with only the header there, the text passed without being looked at.
#[test]
fn a_deallocate_that_is_cut_off_its_header_is_seen() {
    let parse = b"P\0\0\0\x0fa\0select\0\0\0";
    let deallocate = b"Q\0\0\0\x11deallocate a\0";
    let cut = [parse.len() as u8 + 5];
    fuzzing::client(&[&cut[..], parse, deallocate].concat());
}
