//! Ranges of addresses, and the prefixes that they are.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    v4: bool,
    first: u128,
    last: u128,
}

impl Range {
    /// Reads an address, two with a hyphen, or a prefix.
    pub(super) fn read(text: &str) -> Option<Self> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Self::new(net.network(), net.broadcast());
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Self::new(first.trim().parse().ok()?, last.trim().parse().ok()?)
    }

    fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        let number = |ip| match ip {
            IpAddr::V4(ip) => u128::from(u32::from(ip)),
            IpAddr::V6(ip) => u128::from(ip),
        };
        let range = Self { v4: first.is_ipv4(), first: number(first), last: number(last) };
        (first.is_ipv4() == last.is_ipv4() && range.first <= range.last).then_some(range)
    }

    /// Returns what of this range is in none of the `others`.
    pub(super) fn without(self, others: &[Self]) -> Vec<Self> {
        let mut left = vec![self];
        for other in others.iter().filter(|other| other.v4 == self.v4) {
            let cut = |range: Self| {
                let before = other.first.checked_sub(1).map(|last| Self { last: last.min(range.last), ..range });
                let after = other.last.checked_add(1).map(|first| Self { first: first.max(range.first), ..range });
                [before, after].into_iter().flatten().filter(|part| part.first <= part.last)
            };
            left = left.into_iter().flat_map(cut).collect();
        }
        left
    }

    /// Returns the fewest prefixes that are this range.
    pub(super) fn prefixes(self) -> Vec<IpNet> {
        let bits: u32 = if self.v4 { 32 } else { 128 };
        let (mut prefixes, mut at) = (Vec::new(), self.first);
        loop {
            // The largest block that begins here and ends in the range.
            let aligned = at.trailing_zeros().min(bits);
            let size = (0..=aligned).rev().find(|&size| last(at, size) <= self.last).unwrap_or(0);
            let length = (bits - size) as u8;
            prefixes.extend(if self.v4 {
                Ipv4Net::new(Ipv4Addr::from(at as u32), length).map(IpNet::V4).ok()
            } else {
                Ipv6Net::new(Ipv6Addr::from(at), length).map(IpNet::V6).ok()
            });
            match last(at, size).checked_add(1) {
                Some(next) if next <= self.last => at = next,
                _ => return prefixes,
            }
        }
    }
}

/// The last address of a block of `1 << size` that begins at an address.
fn last(at: u128, size: u32) -> u128 {
    at | u128::MAX.checked_shr(128 - size).unwrap_or(0)
}

/// Returns the prefixes of all ranges, each once.
pub(super) fn prefixes(ranges: impl IntoIterator<Item = Range>) -> Vec<IpNet> {
    ranges.into_iter().flat_map(Range::prefixes).collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ranges: &[Range]) -> Vec<String> {
        prefixes(ranges.iter().copied()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_are_the_fewest_prefixes() {
        for (range, expected) in [
            ("83.166.64.0-83.166.95.255", &["83.166.64.0/19"][..]),
            ("10.0.0.1", &["10.0.0.1/32"]),
            ("10.0.0.1-10.0.0.4", &["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/32"]),
            ("0.0.0.0-255.255.255.255", &["0.0.0.0/0"]),
            ("255.255.255.255", &["255.255.255.255/32"]),
            ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", &["::/0"]),
            ("2001:db8::1-2001:db8::2", &["2001:db8::1/128", "2001:db8::2/128"]),
            ("10.1.2.3/8", &["10.0.0.0/8"]),
        ] {
            assert_eq!(text(&[Range::read(range).unwrap()]), expected, "{range}");
        }
        for wrong in ["", "-", "10.0.0.2-10.0.0.1", "10.0.0.1-::1", "example.org", "10.0.0.1-"] {
            assert_eq!(Range::read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_taken_out_of_a_range_is_not_in_it() {
        let read = |text| Range::read(text).unwrap();
        let all = read("0.0.0.0-255.255.255.255");
        assert_eq!(text(&all.without(&[read("128.0.0.0-255.255.255.255")])), ["0.0.0.0/1"]);
        assert_eq!(text(&all.without(&[read("0.0.0.0-127.255.255.255"), read("128.0.0.0/1")])), [""; 0]);
        assert_eq!(text(&all.without(&[read("::/0")])), ["0.0.0.0/0"]);
        let rest = read("10.0.0.0-10.0.0.7").without(&[read("10.0.0.3"), read("10.0.0.4-10.0.0.5"), read("192.0.2.1")]);
        assert_eq!(text(&rest), ["10.0.0.0/31", "10.0.0.2/32", "10.0.0.6/31"]);
        assert_eq!(text(&read("::/0").without(&[read("::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")])), ["::/128"]);
    }
}
