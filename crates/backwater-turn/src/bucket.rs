use std::{
    hash::{BuildHasher, Hash, RandomState},
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// A token bucket in one word, which all threads share: the time at which it will be full again (GCRA).
#[derive(Debug, Default)]
pub(crate) struct Bucket(AtomicU64);

/// The clock of the buckets: nanoseconds since it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks(Instant);

/// How fast a bucket fills and how much it holds, in nanoseconds of filling.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    tokens: u64,
    /// In which that many tokens come.
    period: Duration,
    depth: u64,
}

/// A rate per second that may change while threads use it; none at first.
///
/// A thread that reads it during a change may see a part of each rate once, which is as good as either of them.
#[derive(Debug, Default)]
pub(crate) struct SharedRate {
    /// Per second; 0 for no rate.
    tokens: AtomicU64,
    depth: AtomicU64,
}

impl SharedRate {
    pub(crate) fn set(&self, rate: Option<Rate>) {
        self.depth.store(rate.map_or(0, |rate| rate.depth), Relaxed);
        self.tokens.store(rate.map_or(0, |rate| rate.tokens), Relaxed);
    }

    pub(crate) fn get(&self) -> Option<Rate> {
        let (tokens, depth) = (self.tokens.load(Relaxed), self.depth.load(Relaxed));
        (tokens > 0).then_some(Rate { tokens, period: Duration::from_secs(1), depth })
    }
}

/// A table of 65,536 buckets (512 KiB) that does not grow.
///
/// A keyed hash maps a key to two buckets, one in each half of the table. Tokens are taken from both, and a key has what the
/// fuller one holds. So keys that use up their tokens refuse another key only if they cover both of its buckets.
#[derive(Debug)]
pub(crate) struct Buckets {
    halves: [Box<[Bucket]>; 2],
    hasher: RandomState,
}

const HALF: usize = 1 << 15;

impl Buckets {
    pub(crate) fn new() -> Self {
        let half = || (0..HALF).map(|_| Bucket::default()).collect();
        Self { halves: [half(), half()], hasher: RandomState::new() }
    }

    /// Takes a token of this key. Returns false if it has none.
    pub(crate) fn take(&self, key: impl Hash, now: u64, rate: Rate) -> bool {
        self.of(key).filter(|bucket| bucket.take(now, rate, 1)).count() > 0
    }

    /// Returns whether this key has a token.
    pub(crate) fn has(&self, key: impl Hash, now: u64, rate: Rate) -> bool {
        self.of(key).any(|bucket| bucket.has(now, rate, 1))
    }

    /// Returns whether no token of this key was taken lately.
    pub(crate) fn is_full(&self, key: impl Hash, now: u64) -> bool {
        self.of(key).any(|bucket| bucket.is_full(now))
    }

    fn of(&self, key: impl Hash) -> impl Iterator<Item = &Bucket> {
        let hash = self.hasher.hash_one(key);
        self.halves.iter().zip([hash, hash >> 32]).filter_map(|(half, hash)| half.get(hash as usize % HALF))
    }
}

/// Returns the network of the source that limits count by: an IPv4 address, or the first 64 bits of an IPv6 address.
pub(crate) fn network(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => (u128::from(ip) >> 64) as u64,
    }
}

impl Ticks {
    pub(crate) fn new(now: Instant) -> Self {
        Self(now)
    }

    pub(crate) fn at(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.0).as_nanos() as u64
    }
}

impl Rate {
    /// Refills `per_second` tokens per second. The bucket holds a second's worth of tokens, and at least `least`.
    pub(crate) fn new(per_second: u64, least: u64) -> Self {
        Self::per(per_second, Duration::from_secs(1), least)
    }

    /// Refills and holds so many tokens per minute.
    pub(crate) fn per_minute(tokens: u64) -> Self {
        Self::per(tokens, Duration::from_secs(60), 0)
    }

    fn per(tokens: u64, period: Duration, least: u64) -> Self {
        let tokens = tokens.max(1);
        let mut rate = Self { tokens, period, depth: 0 };
        rate.depth = rate.nanos(tokens.max(least));
        rate
    }

    fn nanos(self, tokens: u64) -> u64 {
        let nanos = u128::from(tokens) * self.period.as_nanos() / u128::from(self.tokens);
        u64::try_from(nanos).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
    }
}

impl Bucket {
    /// Takes `n` tokens, or none of them. Returns whether it took them.
    pub(crate) fn take(&self, now: u64, rate: Rate, tokens: u64) -> bool {
        let cost = rate.nanos(tokens);
        let taken = self.0.fetch_update(Relaxed, Relaxed, |full| {
            let next = full.max(now) + cost;
            (next <= now + rate.depth).then_some(next)
        });
        taken.is_ok()
    }

    /// Returns whether the bucket has `n` tokens.
    pub(crate) fn has(&self, now: u64, rate: Rate, tokens: u64) -> bool {
        self.0.load(Relaxed).max(now) + rate.nanos(tokens) <= now + rate.depth
    }

    /// Returns whether the bucket is full.
    pub(crate) fn is_full(&self, now: u64) -> bool {
        self.0.load(Relaxed) <= now
    }

    /// Puts back what was just taken.
    pub(crate) fn put_back(&self, rate: Rate, tokens: u64) {
        self.0.fetch_sub(rate.nanos(tokens), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_allows_a_burst_and_then_the_rate() {
        let (bucket, rate) = (Bucket::default(), Rate::new(10, 0));
        let mut now = 5_000_000_000;
        assert_eq!((0..100).filter(|_| bucket.take(now, rate, 1)).count(), 10);
        for _ in 0..50 {
            now += 100_000_000;
            assert!(bucket.take(now, rate, 1) && !bucket.take(now, rate, 1));
        }
        now += 10_000_000_000;
        assert!(bucket.take(now, rate, 7) && !bucket.take(now, rate, 4) && bucket.take(now, rate, 3));
        bucket.put_back(rate, 3);
        assert!(bucket.take(now, rate, 3) && !bucket.take(now, rate, 1));
    }

    #[test]
    fn slow_bucket_holds_a_whole_batch() {
        let (bucket, rate) = (Bucket::default(), Rate::new(1000, 65_536));
        assert!(bucket.take(0, rate, 65_536) && !bucket.take(0, rate, 1));
        assert!(bucket.take(1_000_000_000, rate, 1000));
        // No number of tokens overflows.
        for per_second in [0, 1, u64::MAX] {
            let rate = Rate::new(per_second, u64::MAX);
            Bucket::default().take(u64::MAX / 2, rate, u64::MAX);
        }
    }
}
