use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use arrayvec::ArrayVec;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::PeerAddr;

/// Who may be a peer.
///
/// An IPv6 address that stands for an IPv4 one is judged as both: mapped and compatible addresses, 6to4
/// (RFC 3056), Teredo (RFC 4380), ISATAP (RFC 5214), and NAT64 (RFC 6052). A denied prefix wins over an allowed one, an
/// allowed one over what is refused by default: whatever the registries of special-purpose addresses (RFC 6890) do not
/// call globally reachable, and multicast. Two things are refused whatever is allowed: the addresses that stand for this
/// host (`0.0.0.0/8`, `::`), and the relay's own listeners.
#[derive(Clone, Debug)]
pub struct PeerRules {
    /// Allowed prefixes among those that are refused by default.
    pub allow: Vec<IpNet>,
    /// Refused prefixes.
    pub deny: Vec<IpNet>,
    /// NAT64 prefixes beside `64:ff9b::/96`, of 32, 40, 48, 56, 64 or 96 bits.
    pub nat64: Vec<Ipv6Net>,
    /// The relay's own listeners. Their ports are refused at every address of this host and of `relayed`.
    pub listeners: Vec<SocketAddr>,
    /// The addresses of relayed ports, and the external addresses that peers see instead. The wildcard stands for every
    /// address of this host.
    pub relayed: Vec<IpAddr>,
    /// Returns whether an address is one of this host's. The server calls it for a new permission, never for a datagram.
    pub is_local: fn(IpAddr) -> bool,
}

/// The default rules, for a relay without a listener.
impl Default for PeerRules {
    fn default() -> Self {
        Self { allow: vec![], deny: vec![], nat64: vec![], listeners: vec![], relayed: vec![], is_local: |_| false }
    }
}

/// Why an address may not be a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerRefused {
    /// The address is in a prefix of [`PeerRules::deny`].
    #[error("{subject} is in the denied prefix {net}")]
    Denied {
        /// The address that the rule is about.
        subject: Subject,
        /// The rule.
        net: IpNet,
    },
    /// The address is in a range that is refused unless it is allowed.
    #[error("{subject} is in {net} ({range}), which is refused unless allowed")]
    Default {
        /// The address that the rule is about.
        subject: Subject,
        /// The range.
        net: IpNet,
        /// The purpose of the range.
        range: &'static str,
    },
    /// The address stands for the host that sends to it.
    #[error("{subject} stands for this host itself")]
    ThisHost {
        /// The address that the rule is about.
        subject: Subject,
    },
    /// The address is one of the relay's own listeners.
    #[error("it is a listener of this relay")]
    Listener,
    /// The address is an IPv4-mapped IPv6 address, which no peer has.
    #[error("it is an IPv4 address mapped into IPv6")]
    Mapped,
}

/// Which address a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The peer's address itself.
    Peer,
    /// The IPv4 address that the peer's IPv6 address stands for.
    StandsFor(Ipv4Addr),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer => f.write_str("it"),
            Self::StandsFor(ip) => write!(f, "it stands for {ip}, which"),
        }
    }
}

impl PeerRefused {
    /// Returns what an operator changes to allow the peer.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Denied { .. } => "take the prefix out of deny-peer",
            Self::Default { subject: Subject::Peer, .. } => "add the address or a prefix of it to allow-peer",
            Self::Default { subject: Subject::StandsFor(_), .. } => {
                "add the IPv4 address that it stands for, or a prefix of that, to allow-peer"
            }
            Self::ThisHost { .. } | Self::Listener | Self::Mapped => "none: it is never allowed",
        }
    }
}

type Range = (IpNet, &'static str);

const fn v4(ip: [u8; 4], prefix: u8, name: &'static str) -> Range {
    (IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]), prefix)), name)
}

const fn v6(first: [u16; 4], last: u16, prefix: u8, name: &'static str) -> Range {
    let [a, b, c, d] = first;
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, last), prefix)), name)
}

/// The IANA registries of special-purpose addresses, but for what they call globally reachable; and multicast.
const REFUSED_BY_DEFAULT: [Range; 29] = [
    v4([10, 0, 0, 0], 8, "private use"),
    v4([100, 64, 0, 0], 10, "carrier-grade NAT"),
    v4([127, 0, 0, 0], 8, "loopback"),
    v4([169, 254, 0, 0], 16, "link-local"),
    v4([172, 16, 0, 0], 12, "private use"),
    v4([192, 0, 0, 0], 24, "protocol assignments"),
    v4([192, 0, 2, 0], 24, "documentation"),
    v4([192, 88, 99, 0], 24, "6to4 relays"),
    v4([192, 168, 0, 0], 16, "private use"),
    v4([198, 18, 0, 0], 15, "benchmarking"),
    v4([198, 51, 100, 0], 24, "documentation"),
    v4([203, 0, 113, 0], 24, "documentation"),
    v4([224, 0, 0, 0], 4, "multicast"),
    v4([255, 255, 255, 255], 32, "broadcast"),
    v4([240, 0, 0, 0], 4, "reserved"),
    v6([0, 0, 0, 0], 1, 128, "loopback"),
    v6([0x0064, 0xff9b, 1, 0], 0, 48, "local-use NAT64"),
    v6([0x0100, 0, 0, 0], 0, 64, "discard"),
    v6([0x0100, 0, 0, 1], 0, 64, "dummy"),
    v6([0x2001, 0x0002, 0, 0], 0, 48, "benchmarking"),
    v6([0x2001, 0x0db8, 0, 0], 0, 32, "documentation"),
    v6([0x2001, 0, 0, 0], 0, 23, "protocol assignments"),
    v6([0x3fff, 0, 0, 0], 0, 20, "documentation"),
    v6([0x5f00, 0, 0, 0], 0, 16, "segment routing"),
    v6([0xfc00, 0, 0, 0], 0, 7, "unique local"),
    v6([0xfe80, 0, 0, 0], 0, 10, "link-local"),
    v6([0xfec0, 0, 0, 0], 0, 10, "site-local"),
    v6([0xff00, 0, 0, 0], 0, 8, "multicast"),
    // Mapped and compatible addresses too, which are judged by what they stand for as well.
    v6([0, 0, 0, 0], 0, 8, "reserved"),
];

/// What of those ranges is reachable after all; Teredo and NAT64 depend on what an address stands for.
const REACHABLE: [Range; 10] = [
    v4([192, 0, 0, 9], 32, "PCP anycast"),
    v4([192, 0, 0, 10], 32, "TURN anycast"),
    v6([0x0064, 0xff9b, 0, 0], 0, 96, "NAT64"),
    v6([0x2001, 0, 0, 0], 0, 32, "Teredo"),
    v6([0x2001, 1, 0, 0], 1, 128, "PCP anycast"),
    v6([0x2001, 1, 0, 0], 2, 128, "TURN anycast"),
    v6([0x2001, 3, 0, 0], 0, 32, "AMT"),
    v6([0x2001, 4, 0x112, 0], 0, 48, "AS112"),
    v6([0x2001, 0x20, 0, 0], 0, 28, "ORCHIDv2"),
    v6([0x2001, 0x30, 0, 0], 0, 28, "drone remote identification"),
];

/// IPv4 addresses that one IPv6 address may stand for.
const MAX_EMBEDDED: usize = 8;

impl PeerRules {
    /// Checks whether peers at this address are allowed.
    ///
    /// # Errors
    /// Why they are refused.
    pub fn check_ip(&self, ip: IpAddr) -> Result<(), PeerRefused> {
        let all = self.subjects(ip);
        for &(subject, ip) in &all {
            if let Some(net) = find(&self.deny, ip) {
                return Err(PeerRefused::Denied { subject, net });
            }
        }
        if let Some(&(subject, _)) = all.iter().find(|(_, ip)| is_this_host(*ip)) {
            return Err(PeerRefused::ThisHost { subject });
        }
        let mapped = matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        for &(subject, ip) in &all {
            // The IPv4 address that a mapped address stands for explains more than that it is mapped.
            let judged = !(mapped && subject == Subject::Peer);
            if let Some((net, range)) = refused_by_default(ip)
                && judged
                && find(&self.allow, ip).is_none()
            {
                return Err(PeerRefused::Default { subject, net, range });
            }
        }
        if mapped { Err(PeerRefused::Mapped) } else { Ok(()) }
    }

    /// Checks whether this peer is allowed.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn check(&self, peer: PeerAddr) -> Result<(), PeerRefused> {
        self.check_ip(peer.0.ip())?;
        if self.is_listener_port(peer.0.port()) && self.is_own(peer.0.ip()) {
            return Err(PeerRefused::Listener);
        }
        Ok(())
    }

    /// Returns whether a listener has this port. At an [own address](Self::is_own) of the relay, the port is that listener's.
    #[inline]
    pub(crate) fn is_listener_port(&self, port: u16) -> bool {
        self.listeners.iter().any(|listener| listener.port() == port)
    }

    /// Returns whether a datagram to this address comes to this host. That is an address of a listener or of relayed ports,
    /// their external address, any other local address, or an IPv6 address that stands for one of these.
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        self.subjects(ip).iter().any(|&(_, ip)| {
            self.relayed.contains(&ip)
                || self.listeners.iter().any(|listener| listener.ip() == ip)
                || (self.is_local)(ip)
        })
    }

    /// Returns whether relayed ports send from this address, as a listener sees it.
    pub(crate) fn is_relayed(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let wildcard = |own: &IpAddr| own.is_unspecified() && own.is_ipv4() == ip.is_ipv4();
        self.relayed.contains(&ip) || (self.relayed.iter().any(wildcard) && (self.is_local)(ip))
    }

    /// Returns a peer's address, and the addresses that it stands for.
    fn subjects(&self, ip: IpAddr) -> ArrayVec<(Subject, IpAddr), { MAX_EMBEDDED + 1 }> {
        let mut all = ArrayVec::new();
        all.push((Subject::Peer, ip));
        if let IpAddr::V6(v6) = ip {
            all.extend(self.embedded(v6).into_iter().map(|v4| (Subject::StandsFor(v4), IpAddr::V4(v4))));
        }
        all
    }

    /// Returns the IPv4 addresses that an IPv6 address stands for: a datagram to it may arrive there.
    fn embedded(&self, ip: Ipv6Addr) -> ArrayVec<Ipv4Addr, MAX_EMBEDDED> {
        let octets = ip.octets();
        let at = |start: usize| octets.get(start..).and_then(<[u8]>::first_chunk).map(|b: &[u8; 4]| Ipv4Addr::from(*b));
        let mut found = ArrayVec::new();
        match ip.segments() {
            // Not compatible addresses of 0.0.0.0 and 0.0.0.1, but unspecified and loopback.
            [0, 0, 0, 0, 0, 0, 0, _] => {}
            // Mapped (RFC 4291, section 2.5.5.2), compatible (2.5.5.1), translated (RFC 2765), NAT64's own prefix.
            [0, 0, 0, 0, 0, 0xffff | 0, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
                found.extend(at(12));
            }
            [0x2002, ..] => found.extend(at(2)),
            // The server, and the client's address with all its bits turned over.
            [0x2001, 0, ..] => found.extend([at(4), at(12).map(|ip| (!u32::from(ip)).into())].into_iter().flatten()),
            _ => {}
        }
        // ISATAP (RFC 5214, section 6.1), in any prefix; the bit says whether the IPv4 address is globally unique.
        if let [_, _, _, _, 0 | 0x0200, 0x5efe, ..] = ip.segments() {
            found.extend(at(12));
        }
        for net in self.nat64.iter().filter(|net| net.contains(&ip)) {
            // Octet 8 is left out, wherever the address would run over it (RFC 6052, section 2.2).
            let first = usize::from(net.prefix_len() / 8);
            let mut places = (first..16).filter(|&place| place != 8);
            let v4: [u8; 4] = std::array::from_fn(|_| places.next().and_then(|p| octets.get(p)).copied().unwrap_or(0));
            if found.try_push(v4.into()).is_err() {
                break;
            }
        }
        found
    }
}

fn find(nets: &[IpNet], ip: IpAddr) -> Option<IpNet> {
    nets.iter().find(|net| net.contains(&ip)).copied()
}

/// What Linux and others take for loopback, or for the host that sends: the wildcard, and "this network" (RFC 1122, section
/// 3.2.1.3). CVE-2020-26262.
fn is_this_host(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_unspecified(),
    }
}

fn refused_by_default(ip: IpAddr) -> Option<Range> {
    let of = |ranges: &[Range]| ranges.iter().find(|(net, _)| net.contains(&ip)).copied();
    of(&REFUSED_BY_DEFAULT).filter(|_| of(&REACHABLE).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rules: &PeerRules, peer: &str) -> Result<(), PeerRefused> {
        rules.check_ip(peer.parse().unwrap())
    }

    fn nets<T: std::str::FromStr<Err: fmt::Debug>>(nets: &[&str]) -> Vec<T> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    /// The first and the last address of each range, and what lies beside it.
    #[test]
    fn special_ranges_are_refused_by_default() {
        let rules = PeerRules::default();
        for (first, last) in [
            ("0.0.0.0", "0.255.255.255"),
            ("10.0.0.0", "10.255.255.255"),
            ("100.64.0.0", "100.127.255.255"),
            ("127.0.0.0", "127.255.255.255"),
            ("169.254.0.0", "169.254.255.255"),
            ("172.16.0.0", "172.31.255.255"),
            ("192.0.0.0", "192.0.0.255"),
            ("192.0.2.0", "192.0.2.255"),
            ("192.88.99.0", "192.88.99.255"),
            ("192.168.0.0", "192.168.255.255"),
            ("198.18.0.0", "198.19.255.255"),
            ("198.51.100.0", "198.51.100.255"),
            ("203.0.113.0", "203.0.113.255"),
            ("224.0.0.0", "255.255.255.255"),
            ("::", "::1"),
            ("::2", "::ffff"),
            ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"),
            ("100::", "100::1:ffff:ffff:ffff:ffff"),
            ("2001:1::", "2001:1::"),
            ("2001:1::4", "2001:2:0:ffff:ffff:ffff:ffff:ffff"),
            ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fe80::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            for ip in [first, last] {
                assert!(
                    matches!(check(&rules, ip), Err(PeerRefused::Default { .. } | PeerRefused::ThisHost { .. })),
                    "{ip}"
                );
            }
        }
        for allowed in [
            "1.0.0.0",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.0.9",
            "192.0.0.10",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:1::1",
            "2001:4:112::1",
            "2001:200::1",
            "2606:4700::1111",
            "fbff::1",
        ] {
            assert_eq!(check(&rules, allowed), Ok(()), "{allowed}");
        }
    }

    /// Every IPv6 address that one of these may be written as.
    fn forms(v4: Ipv4Addr) -> Vec<Ipv6Addr> {
        let [a, b] = [u32::from(v4) >> 16, u32::from(v4) & 0xFFFF].map(|half| half as u16);
        [
            [0, 0, 0, 0, 0, 0xffff, a, b],
            [0, 0, 0, 0, 0xffff, 0, a, b],
            [0, 0, 0, 0, 0, 0, a, b],
            [0x64, 0xff9b, 0, 0, 0, 0, a, b],
            [0x2002, a, b, 0, 0, 0, 0, 1],
            [0x2001, 0, a, b, 0, 0, 0x8080, 0x8080],
            [0x2001, 0, 0x808, 0x808, 0, 0, !a, !b],
            [0x2600, 1, 2, 3, 0, 0x5efe, a, b],
            [0x2600, 1, 2, 3, 0x200, 0x5efe, a, b],
            [0xfe80, 0, 0, 0, 0, 0x5efe, a, b],
        ]
        .map(Ipv6Addr::from)
        .into()
    }

    /// CVE-2020-26262, CVE-2026-27624, CVE-2026-53450: loopback by another name, whatever is denied or allowed beside it.
    #[test]
    fn the_published_bypasses_are_closed() {
        let everything = nets(&["0.0.0.0/0", "::/0"]);
        let loopback = nets(&["127.0.0.0/8", "::1/128"]);
        for rules in [
            PeerRules::default(),
            PeerRules { deny: loopback.clone(), ..Default::default() },
            PeerRules { deny: loopback, allow: everything, ..Default::default() },
            PeerRules { allow: nets(&["::/0"]), ..Default::default() },
        ] {
            for ip in ["0.0.0.0", "0.0.0.1", "127.0.0.1", "127.255.255.254"] {
                assert!(check(&rules, ip).is_err(), "{ip}");
                // The compatible form of 0.0.0.1 is loopback, which may be allowed.
                for form in forms(ip.parse().unwrap()).into_iter().filter(|form| !form.is_loopback()) {
                    assert!(rules.check_ip(form.into()).is_err(), "{form} for {ip}");
                }
            }
            assert!(check(&rules, "::").is_err());
        }
    }

    /// What stands for this host is not opened by any `allow-peer`; loopback is.
    #[test]
    fn this_host_is_never_a_peer() {
        let rules = PeerRules { allow: nets(&["0.0.0.0/0", "::/0"]), ..Default::default() };
        for ip in ["0.0.0.0", "0.0.0.1", "0.255.255.255", "::"] {
            assert_eq!(check(&rules, ip), Err(PeerRefused::ThisHost { subject: Subject::Peer }), "{ip}");
        }
        for form in forms([0, 0, 0, 7].into()).into_iter().filter(|form| form.segments()[..7] != [0; 7]) {
            let refused = rules.check_ip(form.into()).unwrap_err();
            assert_eq!(refused, PeerRefused::ThisHost { subject: Subject::StandsFor([0, 0, 0, 7].into()) }, "{form}");
        }
        for ip in ["1.0.0.0", "127.0.0.1", "10.0.0.1", "::1"] {
            assert_eq!(check(&rules, ip), Ok(()), "{ip}");
        }
    }

    #[test]
    fn an_address_is_judged_as_what_it_stands_for() {
        let nat64 = nets(&["2620:64::/32", "64:ff9b:1::/48", "2620:96::/96"]);
        let rules = PeerRules { allow: nets(&["64:ff9b:1::/48"]), nat64, ..Default::default() };
        for (ip, v4) in [
            ("::ffff:127.0.0.1", [127, 0, 0, 1]),
            ("2002:7f00:1::1", [127, 0, 0, 1]),
            ("2002:a00:1::", [10, 0, 0, 1]),
            ("64:ff9b::a9fe:a9fe", [169, 254, 169, 254]),
            ("64:ff9b:1:7f00:0:100::", [127, 0, 0, 1]),
            ("2620:64:c0a8:101::", [192, 168, 1, 1]),
            ("2620:96::c0a8:101", [192, 168, 1, 1]),
            ("2001:0:7f00:1::f7f7:f7f7", [127, 0, 0, 1]),
            ("2001:0:808:808::80ff:fffe", [127, 0, 0, 1]),
        ] {
            let refused = check(&rules, ip).unwrap_err();
            let subject = Subject::StandsFor(v4.into());
            assert!(matches!(refused, PeerRefused::Default { subject: s, .. } if s == subject), "{ip}: {refused}");
            assert!(refused.to_string().starts_with(&format!("it stands for {}, which is in ", Ipv4Addr::from(v4))));
            // Allowing the IPv6 form does not help, and what is denied as IPv4 is denied in every form.
            let allow = nets(&["::/0"]);
            assert_eq!(check(&PeerRules { allow, ..rules.clone() }, ip), Err(refused));
            let deny = nets(&["127.0.0.0/8", "10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16"]);
            let rules = PeerRules { deny, allow: nets(&["0.0.0.0/0", "::/0"]), ..rules.clone() };
            assert!(matches!(check(&rules, ip), Err(PeerRefused::Denied { subject: s, .. }) if s == subject), "{ip}");
        }
        for ip in ["2002:808:808::1", "64:ff9b::808:808", "2001:0:808:808::f7f7:f7f7", "64:ff9b:1:808:8:800::"] {
            assert_eq!(check(&rules, ip), Ok(()), "{ip}");
        }
        let allow = nets(&["10.0.0.0/8"]);
        assert_eq!(check(&PeerRules { allow, ..Default::default() }, "2002:a00:1::"), Ok(()));
    }

    #[test]
    fn a_mapped_address_is_never_allowed() {
        let mut rules = PeerRules::default();
        assert_eq!(check(&rules, "::ffff:8.8.8.8"), Err(PeerRefused::Mapped));
        rules.allow = nets(&["127.0.0.0/8", "::/0"]);
        assert_eq!(check(&rules, "::ffff:127.0.0.1"), Err(PeerRefused::Mapped));
    }

    #[test]
    fn denied_wins_over_allowed_wins_over_default() {
        let deny: IpNet = "127.0.0.2/32".parse().unwrap();
        let rules = PeerRules { allow: nets(&["127.0.0.0/8"]), deny: vec![deny], ..Default::default() };
        assert_eq!(check(&rules, "127.0.0.1"), Ok(()));
        assert_eq!(check(&rules, "127.0.0.2"), Err(PeerRefused::Denied { subject: Subject::Peer, net: deny }));
        assert!(check(&rules, "169.254.0.1").is_err());
        assert_eq!(check(&PeerRules { allow: nets(&["::1/128"]), ..Default::default() }, "::1"), Ok(()));
    }

    #[test]
    fn a_refusal_says_which_rule_it_was() {
        let text = |rules: &PeerRules, ip| check(rules, ip).unwrap_err().to_string();
        let mut rules = PeerRules::default();
        assert_eq!(
            text(&rules, "192.168.1.7"),
            "it is in 192.168.0.0/16 (private use), which is refused unless allowed"
        );
        rules.deny = nets(&["8.8.8.0/24"]);
        assert_eq!(text(&rules, "8.8.8.8"), "it is in the denied prefix 8.8.8.0/24");
        assert_eq!(text(&rules, "2002:808:808::"), "it stands for 8.8.8.8, which is in the denied prefix 8.8.8.0/24");
    }

    /// A listener is each of the host's addresses, that of relayed ports and that of the world outside, with its port.
    #[test]
    fn a_listener_is_never_a_peer() {
        let rules = PeerRules {
            allow: nets(&["0.0.0.0/0", "::/0"]),
            listeners: vec!["0.0.0.0:3478".parse().unwrap(), "8.8.4.4:5349".parse().unwrap()],
            relayed: vec!["5.5.5.5".parse().unwrap(), "9.9.9.9".parse().unwrap()],
            is_local: |ip| ip.is_loopback() || ip == IpAddr::from([6, 6, 6, 6]),
            ..Default::default()
        };
        let check = |peer: SocketAddr| rules.check(PeerAddr(peer));
        for own in ["5.5.5.5", "9.9.9.9", "8.8.4.4", "127.0.0.2", "6.6.6.6", "::1"] {
            let own: IpAddr = own.parse().unwrap();
            for port in [3478, 5349] {
                assert_eq!(check((own, port).into()), Err(PeerRefused::Listener), "{own}");
            }
            assert_eq!(check((own, 3479).into()), Ok(()), "{own}");
            let IpAddr::V4(own) = own else { continue };
            for form in forms(own) {
                assert!(check((form, 3478).into()).is_err(), "{form} for {own}");
            }
        }
        for other in ["8.8.8.8:3478", "6.6.6.7:5349", "[2600::1]:3478"] {
            assert_eq!(check(other.parse().unwrap()), Ok(()), "{other}");
        }
    }

    #[test]
    fn relayed_ports_send_from_their_address_or_from_any_local_one() {
        let is = |rules: &PeerRules, ip: &str| rules.is_relayed(ip.parse().unwrap());
        let mut rules = PeerRules { is_local: |ip| ip.is_loopback(), ..Default::default() };
        rules.relayed = vec!["5.5.5.5".parse().unwrap(), "9.9.9.9".parse().unwrap()];
        assert!(is(&rules, "5.5.5.5") && is(&rules, "9.9.9.9") && is(&rules, "::ffff:5.5.5.5"));
        assert!(!is(&rules, "127.0.0.1") && !is(&rules, "5.5.5.6"));
        rules.relayed = vec!["0.0.0.0".parse().unwrap(), "9.9.9.9".parse().unwrap()];
        assert!(is(&rules, "127.0.0.1") && is(&rules, "9.9.9.9") && !is(&rules, "5.5.5.5") && !is(&rules, "::1"));
    }
}
