//! Connections of clients that have no allocation.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::StreamId;

/// How long a connection may be without an allocation.
pub(crate) const MAX_IDLE: Duration = Duration::from_secs(15);

/// Connections without an allocation that a thread has at most.
pub(crate) const MAX_HALF_OPEN: usize = 1024;

/// Of those, how many of one source: an IPv4 address, or an IPv6 network of 64 bits.
pub(crate) const MAX_HALF_OPEN_OF_SOURCE: u32 = 256;

/// The connections of a thread without an allocation, the oldest first. Where they are too many, the oldest one goes: a client that
/// means it has an allocation within a second.
#[derive(Default)]
pub(crate) struct HalfOpen {
    queue: VecDeque<Waiting>,
    of_source: HashMap<u64, u32>,
}

struct Waiting {
    id: StreamId,
    /// `None` for a proxy's, of which the client is not known yet.
    source: Option<u64>,
    until: Instant,
}

impl HalfOpen {
    /// Adds a connection. Returns the one that must go for it.
    pub(crate) fn add(&mut self, id: StreamId, source: Option<IpAddr>, now: Instant) -> Option<StreamId> {
        let source = source.map(network);
        self.queue.push_back(Waiting { id, source, until: now + MAX_IDLE });
        let count = source.map(|source| {
            let count = self.of_source.entry(source).or_default();
            *count += 1;
            *count
        });
        let crowded = count.is_some_and(|count| count > MAX_HALF_OPEN_OF_SOURCE);
        let place = match crowded {
            true => self.queue.iter().position(|waiting| waiting.source == source),
            false => (self.queue.len() > MAX_HALF_OPEN).then_some(0),
        };
        self.remove_at(place?)
    }

    /// Removes a connection: it is gone, or has an allocation.
    pub(crate) fn remove(&mut self, id: StreamId) {
        if let Some(place) = self.queue.iter().position(|waiting| waiting.id == id) {
            self.remove_at(place);
        }
    }

    /// Removes a connection that has been here for too long.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<StreamId> {
        self.queue.front().filter(|waiting| waiting.until <= now)?;
        self.remove_at(0)
    }

    fn remove_at(&mut self, place: usize) -> Option<StreamId> {
        let waiting = self.queue.remove(place)?;
        if let Some(source) = waiting.source
            && let Some(count) = self.of_source.get_mut(&source)
        {
            *count -= 1;
            if *count == 0 {
                self.of_source.remove(&source);
            }
        }
        Some(waiting.id)
    }
}

/// Returns a number for an IPv4 address, or for an IPv6 network of 64 bits. No global one begins with 16 zero bits.
fn network(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => (u128::from(ip) >> 64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> StreamId {
        StreamId(n as u64)
    }

    #[test]
    fn oldest_connection_of_a_crowded_source_goes_and_no_other() {
        let (mut half_open, now) = (HalfOpen::default(), Instant::now());
        let (ours, theirs) = ("192.0.2.1".parse().ok(), "192.0.2.2".parse().ok());
        assert_eq!(half_open.add(id(1000), ours, now), None);
        for n in 0..256 {
            assert_eq!(half_open.add(id(n), theirs, now), None);
        }
        assert_eq!(half_open.add(id(256), theirs, now), Some(id(0)));
        half_open.remove(id(1));
        assert_eq!(half_open.add(id(257), theirs, now), None);
        assert_eq!(half_open.add(id(258), theirs, now), Some(id(2)));
        assert_eq!(half_open.expire(now + MAX_IDLE - Duration::from_millis(1)), None);
        let expired: Vec<_> = std::iter::from_fn(|| half_open.expire(now + MAX_IDLE)).collect();
        assert_eq!((expired.len(), expired[0]), (257, id(1000)));
        assert!(half_open.of_source.is_empty());
    }

    #[test]
    fn all_together_are_bounded() {
        let (mut half_open, now) = (HalfOpen::default(), Instant::now());
        let source = |n: usize| Some(IpAddr::from((0x2001_0db8_u128 << 96 | (n as u128) << 64).to_be_bytes()));
        let gone: Vec<_> = (0..2000).filter_map(|n| half_open.add(id(n), source(n), now)).collect();
        assert_eq!(gone, (0..2000 - MAX_HALF_OPEN).map(id).collect::<Vec<_>>());
        assert_eq!((half_open.queue.len(), half_open.of_source.len()), (MAX_HALF_OPEN, MAX_HALF_OPEN));
        // A proxy's connections count in all only.
        let gone = (0..2000).filter_map(|n| half_open.add(id(2000 + n), None, now)).count();
        assert_eq!((gone, half_open.of_source.len()), (2000, 0));
    }
}
