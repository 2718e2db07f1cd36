//! Numbers that follow from a seed (PCG's step, and a finalizer).

/// A generator.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// A number less than `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut x = self.0;
        x ^= x >> 32;
        (x.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 33) % n
    }

    /// Whether something happens that does once in `n` times; 0: never.
    pub fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}
