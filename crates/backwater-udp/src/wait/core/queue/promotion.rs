//! Which keys are busy enough for a connected socket.
//!
//! XNU tells a connected socket of congestion, and drops an unconnected one's datagrams with success.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::time::Instant;

/// Datagrams in one send, or in a second, from which on a destination is busy.
const BUSY_BATCH: usize = 16;
const BUSY_SECOND: usize = 25;
const SECOND: Duration = Duration::from_secs(1);

/// Keys that are counted at a time. Of more, those that come while all these are in use are not.
const MOST: usize = 256;

/// How long a key whose destination has failed does without.
const PAUSE: Duration = Duration::from_secs(10);

pub(super) type Path = (SocketAddr, Option<IpAddr>);

pub(super) struct Promotion<K> {
    rates: BTreeMap<K, Rate>,
    /// When those that are over are looked for.
    clear_at: Option<Instant>,
}

struct Rate {
    path: Path,
    /// When the second began.
    since: Instant,
    datagrams: usize,
    not_before: Instant,
}

impl<K: Copy + Ord> Promotion<K> {
    pub(super) fn new() -> Self {
        Self { rates: BTreeMap::new(), clear_at: None }
    }

    /// Counts datagrams of a key. Whether it is busy with this path now.
    pub(super) fn is_busy(&mut self, key: K, path: Path, datagrams: usize, now: Instant) -> bool {
        if !self.rates.contains_key(&key) && !self.has_room(now) {
            return datagrams >= BUSY_BATCH;
        }
        let begin = |not_before| Rate { path, since: now, datagrams: 0, not_before };
        let rate = self.rates.entry(key).or_insert_with(|| begin(now));
        if rate.path != path || now - rate.since >= SECOND {
            *rate = begin(rate.not_before);
        }
        rate.datagrams += datagrams;
        (datagrams >= BUSY_BATCH || rate.datagrams >= BUSY_SECOND) && now >= rate.not_before
    }

    /// The key has a socket.
    pub(super) fn promoted(&mut self, key: K) {
        self.rates.remove(&key);
    }

    /// Its destination has failed.
    pub(super) fn demoted(&mut self, key: K, path: Path, now: Instant) {
        if self.rates.contains_key(&key) || self.has_room(now) {
            self.rates.insert(key, Rate { path, since: now, datagrams: 0, not_before: now + PAUSE });
        }
    }

    fn has_room(&mut self, now: Instant) -> bool {
        if self.rates.len() >= MOST && self.clear_at.is_none_or(|at| at <= now) {
            self.clear_at = Some(now + SECOND);
            self.rates.retain(|_, rate| now - rate.since < SECOND || now < rate.not_before);
        }
        self.rates.len() < MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn path(port: u16) -> Path {
        (([192, 0, 2, 1], port).into(), None)
    }

    #[test]
    fn a_key_is_busy_from_sixteen_in_a_send_or_twenty_five_in_a_second() {
        let (mut promotion, mut now) = (Promotion::new(), Instant::now());
        assert!(!promotion.is_busy(1, path(1), 15, now) && promotion.is_busy(2, path(2), 16, now));
        for _ in 0..100 {
            now += 42 * MS;
            assert!(!promotion.is_busy(3, path(3), 1, now), "24 a second");
        }
        let busy: Vec<_> = (0..30u32).filter(|n| promotion.is_busy(4, path(4), 1, now + *n * 40 * MS)).collect();
        assert_eq!(busy.first(), Some(&24), "the 25th within a second");
    }

    #[test]
    fn another_path_of_the_same_key_is_counted_anew() {
        let (mut promotion, now) = (Promotion::new(), Instant::now());
        assert!((0..24).all(|_| !promotion.is_busy(1, path(1), 1, now)));
        assert!((0..24).all(|_| !promotion.is_busy(1, path(2), 1, now)));
        assert!(promotion.is_busy(1, path(2), 1, now));
    }

    #[test]
    fn a_key_whose_destination_has_failed_waits_ten_seconds() {
        let (mut promotion, mut now) = (Promotion::new(), Instant::now());
        assert!(promotion.is_busy(1, path(1), 16, now));
        promotion.promoted(1);
        promotion.demoted(1, path(1), now);
        for _ in 0..10 {
            assert!(!promotion.is_busy(1, path(1), 64, now));
            now += SECOND - MS;
        }
        assert!(promotion.is_busy(1, path(1), 64, now + 10 * MS));
    }

    #[test]
    fn keys_without_number_cost_bounded_memory() {
        let (mut promotion, now) = (Promotion::new(), Instant::now());
        for key in 0..10_000u32 {
            promotion.is_busy(key, path(1), 1, now);
            promotion.demoted(key, path(1), now);
        }
        assert_eq!(promotion.rates.len(), MOST);
        assert!(promotion.is_busy(20_000, path(1), 16, now), "a full send is seen all the same");
        promotion.is_busy(20_000, path(1), 1, now + 11 * SECOND);
        assert_eq!(promotion.rates.len(), 1, "those that are over make room");
    }
}
