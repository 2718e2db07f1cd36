use std::{net::IpAddr, time::Instant};

use crate::bucket::{Buckets, Rate, Ticks, network};

/// Limits the responses to a source that has not authenticated, so that a forged source cannot direct a flood at somebody else.
///
/// A source is an IPv4 address or an IPv6 network of 64 bits. The table has a fixed size (512 KiB). A keyed hash maps a source to
/// two of its buckets; the source gets a response while one of them has a token. All threads share the table. Loopback is not
/// limited, since no network can forge it.
#[derive(Debug)]
pub struct ReplyLimit {
    rate: Rate,
    ticks: Ticks,
    sources: Buckets,
}

impl ReplyLimit {
    /// Allows `per_second` responses per second to a source, and as many at once.
    pub fn new(per_second: u32, now: Instant) -> Self {
        Self { rate: Rate::new(per_second.into(), 0), ticks: Ticks::new(now), sources: Buckets::new() }
    }

    /// Returns whether a source gets a response, and counts it.
    pub(crate) fn allows(&self, ip: IpAddr, now: Instant) -> bool {
        let ip = ip.to_canonical();
        let source = (ip.is_ipv4(), network(ip));
        ip.is_loopback() || self.sources.take(source, self.ticks.at(now), self.rate)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn count(limit: &ReplyLimit, ips: &[&str], now: Instant) -> usize {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        (0..10_000).filter(|i| limit.allows(ips[i % ips.len()], now)).count()
    }

    #[test]
    fn each_source_has_its_own_rate() {
        let now = Instant::now();
        let limit = ReplyLimit::new(100, now);
        assert_eq!(count(&limit, &["192.0.2.1"], now), 100);
        assert_eq!(count(&limit, &["::ffff:192.0.2.1"], now), 0);
        assert_eq!(count(&limit, &["192.0.2.1"], now + Duration::from_millis(500)), 50);
        assert_eq!(count(&limit, &["192.0.2.2"], now), 100);
        assert_eq!(count(&limit, &["2001:db8::1", "2001:db8::2", "2001:db8::ffff:0:0:1"], now), 100);
        assert_eq!(count(&limit, &["2001:db8:0:1::1"], now), 100);
        assert_eq!(count(&limit, &["127.0.0.1", "::1"], now), 10_000);
    }
}
