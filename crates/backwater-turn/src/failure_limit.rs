use std::{net::IpAddr, time::Instant};

use crate::bucket::{Buckets, Rate, Ticks, network};

/// Limits how many wrong passwords the server verifies: for each source, each IPv6 site, and each user name.
///
/// A source is an IPv4 address or an IPv6 network of 64 bits; the nonce has proved that the request comes from there. A site is
/// an IPv6 network of 48 bits. The server verifies no password of a source or a site at its limit. For a user name at its
/// limit, it verifies one of each source whose recent passwords were right, so that guesses from elsewhere do not keep the
/// user out. The tables have 2 MiB together and do not grow. All threads share them.
#[derive(Debug)]
pub struct FailureLimit {
    of_source: Rate,
    of_site: Rate,
    of_name: Rate,
    ticks: Ticks,
    /// IPv4 sources. An attacker with many IPv6 networks does not fill this table.
    v4: Buckets,
    v6: Buckets,
    sites: Buckets,
    names: Buckets,
}

/// How many sources' failures an IPv6 site may have.
const SOURCES_OF_SITE: u64 = 16;

impl FailureLimit {
    /// Allows `per_minute` failures a minute to a source, and as many at once; to an IPv6 site 16 times as many, and to a user
    /// name twice as many.
    pub fn new(per_minute: u32, now: Instant) -> Self {
        let per_minute = u64::from(per_minute);
        Self {
            of_source: Rate::per_minute(per_minute),
            of_site: Rate::per_minute(per_minute * SOURCES_OF_SITE),
            of_name: Rate::per_minute(per_minute * 2),
            ticks: Ticks::new(now),
            v4: Buckets::new(),
            v6: Buckets::new(),
            sites: Buckets::new(),
            names: Buckets::new(),
        }
    }

    /// Returns whether the server may verify a password that this source sends for this user name.
    pub(crate) fn allows(&self, ip: IpAddr, name: &str, now: Instant) -> bool {
        let now = self.ticks.at(now);
        let (sources, source) = self.source(ip);
        let in_site = ip.to_canonical().is_ipv4() || self.sites.has(site(source), now, self.of_site);
        in_site
            && sources.has(source, now, self.of_source)
            && (sources.is_full(source, now) || self.names.has(name, now, self.of_name))
    }

    /// Counts a failure of this source. `name` is the user whose password was wrong, if the server knows the user.
    pub(crate) fn failed(&self, ip: IpAddr, name: Option<&str>, now: Instant) {
        let now = self.ticks.at(now);
        let (sources, source) = self.source(ip);
        sources.take(source, now, self.of_source);
        if ip.to_canonical().is_ipv6() {
            self.sites.take(site(source), now, self.of_site);
        }
        if let Some(name) = name {
            self.names.take(name, now, self.of_name);
        }
    }

    fn source(&self, ip: IpAddr) -> (&Buckets, u64) {
        (if ip.to_canonical().is_ipv4() { &self.v4 } else { &self.v6 }, network(ip))
    }
}

/// Returns the 48 bits of an IPv6 network of 64 bits.
fn site(network: u64) -> u64 {
    network >> 16
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, Ipv6Addr},
        time::Duration,
    };

    use super::*;

    /// Returns how many of 1,000 guesses are verified.
    fn guesses(limit: &FailureLimit, ips: &[&str], name: &str, now: Instant) -> usize {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let looked_at = |i: &usize| {
            let ip = ips[i % ips.len()];
            let allowed = limit.allows(ip, name, now);
            allowed.then(|| limit.failed(ip, Some(name), now));
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

    /// Lets each source guess as often as the limit allows, each for another user name.
    fn exhaust(limit: &FailureLimit, sources: impl Iterator<Item = IpAddr>, now: Instant) {
        for (i, ip) in sources.enumerate() {
            let name = i.to_string();
            (0..100).take_while(|_| limit.allows(ip, &name, now)).for_each(|_| limit.failed(ip, Some(&name), now));
        }
    }

    fn refused(limit: &FailureLimit, sources: impl Iterator<Item = IpAddr>, now: Instant) -> usize {
        sources.filter(|ip| !limit.allows(*ip, "alice", now)).count()
    }

    fn networks(site: u128, count: u128) -> impl Iterator<Item = IpAddr> {
        (0..count).map(move |i| Ipv6Addr::from(0x2001_0db8 << 96 | site << 80 | i << 64).into())
    }

    fn v4(first: u32, count: u32) -> impl Iterator<Item = IpAddr> {
        (first..first + count).map(|ip| Ipv4Addr::from(ip).into())
    }

    #[test]
    fn one_ipv6_site_at_its_limit_refuses_no_ipv4_source_and_hardly_another_site() {
        let now = Instant::now();
        let limit = FailureLimit::new(30, now);
        exhaust(&limit, networks(0, 20_000), now);
        assert_eq!(refused(&limit, v4(0x0500_0000, 20_000), now), 0);
        let others = refused(&limit, (1..20_001).flat_map(|site| networks(site, 1)), now);
        assert!(others < 200, "{others} of 20,000 other sites");
        assert_eq!(refused(&limit, networks(0, 20_000), now), 20_000, "the site itself");
    }

    #[test]
    fn many_sources_at_their_limit_refuse_few_others() {
        let now = Instant::now();
        let limit = FailureLimit::new(30, now);
        exhaust(&limit, v4(0x0500_0000, 1000), now);
        let others = refused(&limit, v4(0x0600_0000, 10_000), now);
        // One bucket for each source: about 150. Two: about 10.
        assert!(others < 75, "{others} of 10,000 others");
    }
}
