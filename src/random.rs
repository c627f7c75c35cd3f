//! Numbers that nobody need guess: jitter. Secrets come from elsewhere.

use std::time::Duration;

/// Splitmix64 (Steele, Lea, Flood 2014): the same seed gives the same numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers that follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, any of 64 bits.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Between `least` and 1 of a duration.
    pub fn portion(&mut self, duration: Duration, least: f64) -> Duration {
        let random = (self.number() >> 11) as f64 / (1u64 << 53) as f64;
        duration.mul_f64(least + (1.0 - least) * random)
    }
}

/// Spreads a number over all bits: numbers that differ in one bit come out unrelated.
pub fn mix(number: u64) -> u64 {
    let mut mixed = number;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
