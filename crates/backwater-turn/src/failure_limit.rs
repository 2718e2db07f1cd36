use std::{net::IpAddr, time::Instant};

use crate::bucket::{Buckets, Rate, Ticks, source};

/// Limits how many wrong passwords the server verifies: for each source, and for each user name.
///
/// A source is an IPv4 address or an IPv6 network of 64 bits; the nonce has proved that the request comes from there. The
/// server verifies no password of a source at its limit. For a user name at its limit, it verifies one of each source whose
/// recent passwords were right, so that guesses from elsewhere do not keep the user out. The tables have 1 MiB together and do
/// not grow. All threads share them.
#[derive(Debug)]
pub struct FailureLimit {
    of_source: Rate,
    of_name: Rate,
    ticks: Ticks,
    sources: Buckets,
    names: Buckets,
}

impl FailureLimit {
    /// Allows `per_minute` failures a minute to a source, as many at once, and twice as many to a user name.
    pub fn new(per_minute: u32, now: Instant) -> Self {
        Self {
            of_source: Rate::per_minute(per_minute.into()),
            of_name: Rate::per_minute(u64::from(per_minute) * 2),
            ticks: Ticks::new(now),
            sources: Buckets::new(),
            names: Buckets::new(),
        }
    }

    /// Returns whether the server may verify a password that this source sends for this user name.
    pub(crate) fn allows(&self, ip: IpAddr, name: &str, now: Instant) -> bool {
        let now = self.ticks.at(now);
        let (Some(source), Some(name)) = (self.sources.of(source(ip)), self.names.of(name)) else { return false };
        source.has(now, self.of_source, 1) && (source.is_full(now) || name.has(now, self.of_name, 1))
    }

    /// Counts a failure.
    pub(crate) fn failed(&self, ip: IpAddr, name: &str, now: Instant) {
        let now = self.ticks.at(now);
        self.sources.of(source(ip)).map(|source| source.take(now, self.of_source, 1));
        self.names.of(name).map(|name| name.take(now, self.of_name, 1));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Returns how many of 1,000 guesses are verified.
    fn guesses(limit: &FailureLimit, ips: &[&str], name: &str, now: Instant) -> usize {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let looked_at = |i: &usize| {
            let ip = ips[i % ips.len()];
            let allowed = limit.allows(ip, name, now);
            allowed.then(|| limit.failed(ip, name, now));
            allowed
        };
        (0..1000).filter(looked_at).count()
    }

    #[test]
    fn a_source_has_its_failures_whatever_names_it_tries() {
        let now = Instant::now();
        let limit = FailureLimit::new(30, now);
        assert_eq!(guesses(&limit, &["192.0.2.1"], "alice", now), 30);
        assert_eq!(guesses(&limit, &["::ffff:192.0.2.1"], "bob", now), 0);
        assert_eq!(guesses(&limit, &["192.0.2.1"], "carol", now + Duration::from_secs(10)), 5);
        assert_eq!(guesses(&limit, &["2001:db8::1", "2001:db8::2"], "dave", now), 30);
        // Loopback too: another user of this host may guess.
        assert_eq!(guesses(&limit, &["127.0.0.1"], "erin", now), 30);
    }

    #[test]
    fn a_name_that_many_guess_is_open_to_a_source_that_has_not_failed() {
        let now = Instant::now();
        let limit = FailureLimit::new(30, now);
        assert_eq!(guesses(&limit, &["192.0.2.1", "192.0.2.2", "192.0.2.3"], "alice", now), 60);
        assert!(limit.allows("192.0.2.9".parse().unwrap(), "alice", now));
        // One guess, and no second one until the source's first is forgotten, or the name has had a second of rest.
        assert_eq!(guesses(&limit, &["192.0.2.4"], "alice", now), 1);
        assert_eq!(guesses(&limit, &["192.0.2.4"], "alice", now + Duration::from_millis(900)), 0);
        assert!(limit.allows("192.0.2.4".parse().unwrap(), "bob", now));
    }
}
