use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::PeerAddr;

/// Who may be a peer. A denied prefix wins over an allowed one, an allowed one over the ranges that are refused by
/// default: loopback, link-local, multicast, unspecified and broadcast.
#[derive(Clone, Debug, Default)]
pub struct PeerRules {
    /// Allowed although refused by default.
    pub allow: Vec<IpNet>,
    /// Refused.
    pub deny: Vec<IpNet>,
    /// The relay's own listeners: never a peer, whatever is allowed.
    pub listeners: Vec<SocketAddr>,
}

/// Why an address may not be a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerRefused {
    /// A prefix of [`PeerRules::deny`].
    #[error("it is in the denied prefix {0}")]
    Denied(IpNet),
    /// A range that is refused unless it is allowed.
    #[error("it is in {0}, which is refused unless allowed")]
    Default(IpNet),
    /// One of the relay's own listeners.
    #[error("it is a listener of this relay")]
    Listener,
    /// An IPv4 address in the clothes of an IPv6 one, which no peer has.
    #[error("it is an IPv4 address mapped into IPv6")]
    Mapped,
}

impl PeerRefused {
    /// What an operator changes to allow it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Denied(_) => "take the prefix out of deny-peer",
            Self::Default(_) => "add the address or a prefix of it to allow-peer",
            Self::Listener | Self::Mapped => "none: it is never allowed",
        }
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6(first: u16, last: u16, prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last), prefix))
}

const REFUSED_BY_DEFAULT: [IpNet; 9] = [
    v4(0, 0, 0, 0, 8),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(224, 0, 0, 0, 4),
    v4(255, 255, 255, 255, 32),
    v6(0, 0, 128),
    v6(0, 1, 128),
    v6(0xfe80, 0, 10),
    v6(0xff00, 0, 8),
];

impl PeerRules {
    /// Whether peers at this address are allowed.
    ///
    /// # Errors
    /// Why not.
    pub fn check_ip(&self, ip: IpAddr) -> Result<(), PeerRefused> {
        let canonical = ip.to_canonical();
        if let Some(net) = find(&self.deny, canonical) {
            return Err(PeerRefused::Denied(net));
        }
        if let Some(net) = find(&REFUSED_BY_DEFAULT, canonical)
            && find(&self.allow, canonical).is_none()
        {
            return Err(PeerRefused::Default(net));
        }
        if canonical != ip { Err(PeerRefused::Mapped) } else { Ok(()) }
    }

    /// Whether this peer is allowed.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, peer: PeerAddr) -> Result<(), PeerRefused> {
        self.check_ip(peer.0.ip())?;
        if self.is_listener(peer) { Err(PeerRefused::Listener) } else { Ok(()) }
    }

    /// Whether it is a listener of the relay: its address is one, or its port is that of one on the wildcard address.
    pub fn is_listener(&self, peer: PeerAddr) -> bool {
        self.listeners.iter().any(|l| l.port() == peer.0.port() && (l.ip() == peer.0.ip() || self.is_own(*l, peer)))
    }

    /// A listener on the wildcard address is reached at any local address. Those are not known here, so its port is
    /// out of bounds in the ranges that only an explicit permission opens, and at the addresses of other listeners.
    fn is_own(&self, listener: SocketAddr, peer: PeerAddr) -> bool {
        let ip = peer.0.ip();
        listener.ip().is_unspecified()
            && listener.is_ipv4() == ip.is_ipv4()
            && (find(&REFUSED_BY_DEFAULT, ip).is_some() || self.listeners.iter().any(|l| l.ip() == ip))
    }
}

fn find(nets: &[IpNet], ip: IpAddr) -> Option<IpNet> {
    nets.iter().find(|net| net.contains(&ip)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rules: &PeerRules, peer: &str) -> Result<(), PeerRefused> {
        rules.check(PeerAddr(peer.parse().unwrap()))
    }

    #[test]
    fn some_ranges_are_refused_by_default() {
        let rules = PeerRules::default();
        for refused in [
            "0.0.0.0:1",
            "0.1.2.3:1",
            "127.0.0.1:1",
            "127.255.0.1:1",
            "169.254.169.254:80",
            "224.0.0.1:1",
            "239.255.255.255:1",
            "255.255.255.255:1",
            "[::]:1",
            "[::1]:1",
            "[fe80::1]:1",
            "[febf::1]:1",
            "[ff02::1]:1",
        ] {
            assert!(matches!(check(&rules, refused), Err(PeerRefused::Default(_))), "{refused}");
        }
        for allowed in ["192.0.2.1:1", "10.0.0.1:1", "8.8.8.8:53", "[2001:db8::1]:1", "[fec0::1]:1"] {
            assert_eq!(check(&rules, allowed), Ok(()), "{allowed}");
        }
    }

    #[test]
    fn a_mapped_address_is_judged_as_what_it_is_and_never_allowed() {
        let mut rules = PeerRules::default();
        assert!(matches!(check(&rules, "[::ffff:127.0.0.1]:1"), Err(PeerRefused::Default(_))));
        assert_eq!(check(&rules, "[::ffff:192.0.2.1]:1"), Err(PeerRefused::Mapped));
        rules.allow = vec!["127.0.0.0/8".parse().unwrap()];
        assert_eq!(check(&rules, "[::ffff:127.0.0.1]:1"), Err(PeerRefused::Mapped));
    }

    #[test]
    fn denied_wins_over_allowed_wins_over_default() {
        let deny: IpNet = "127.0.0.2/32".parse().unwrap();
        let rules = PeerRules { allow: vec!["127.0.0.0/8".parse().unwrap()], deny: vec![deny], listeners: vec![] };
        assert_eq!(check(&rules, "127.0.0.1:1"), Ok(()));
        assert_eq!(check(&rules, "127.0.0.2:1"), Err(PeerRefused::Denied(deny)));
        assert!(check(&rules, "169.254.0.1:1").is_err());
    }

    #[test]
    fn a_listener_is_never_a_peer() {
        let mut rules = PeerRules {
            allow: vec!["127.0.0.0/8".parse().unwrap()],
            deny: vec![],
            listeners: vec!["127.0.0.1:3478".parse().unwrap()],
        };
        assert_eq!(check(&rules, "127.0.0.1:3478"), Err(PeerRefused::Listener));
        assert_eq!(check(&rules, "127.0.0.1:3479"), Ok(()));
        assert_eq!(check(&rules, "127.0.0.2:3478"), Ok(()));
        rules.listeners = vec!["0.0.0.0:3478".parse().unwrap(), "192.0.2.9:5349".parse().unwrap()];
        assert_eq!(check(&rules, "127.0.0.2:3478"), Err(PeerRefused::Listener));
        assert_eq!(check(&rules, "192.0.2.9:3478"), Err(PeerRefused::Listener));
        assert_eq!(check(&rules, "192.0.2.10:3478"), Ok(()));
    }
}
