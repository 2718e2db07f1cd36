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
mod tests;
