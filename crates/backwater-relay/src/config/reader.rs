//! How values are read, and what is wrong with them.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, SocketAddr, UdpSocket},
    ops::RangeInclusive,
    str::FromStr,
};

use backwater_ops::{Logs, breaker};
use backwater_turn::Limits as Quota;
use ipnet::{IpNet, Ipv6Net};

use super::{
    Arguments, ConfigError,
    keys::{Key, *},
};
use crate::ports::RelayIp;

pub(super) const PREFIX: &str = "an address or a prefix, such as 10.0.0.0/8 or 2001:db8::/32";

/// Allocations, permissions, channels, bytes a second.
pub(super) const TOTAL_LIMITS: [&Key; 4] = [&MAX_ALLOCATIONS, &MAX_PERMISSIONS, &MAX_CHANNELS, &MAX_BYTES_PER_SECOND];

/// The same of one user.
pub(super) const USER_LIMITS: [&Key; 4] =
    [&MAX_ALLOCATIONS_PER_USER, &MAX_PERMISSIONS_PER_USER, &MAX_CHANNELS_PER_USER, &MAX_BYTES_PER_SECOND_PER_USER];

/// Understands values and gathers what is wrong with them.
pub(super) struct Reader<'a> {
    pub(super) arguments: &'a Arguments,
    pub(super) errors: Vec<ConfigError>,
}

impl Reader<'_> {
    pub(super) fn has(&self, key: &Key) -> bool {
        self.arguments.values.contains_key(key.name)
    }

    pub(super) fn error(&mut self, key: &Key, problem: &str) {
        let key = self.arguments.values.get(key.name).map_or_else(|| key.name.to_owned(), |given| given.place.clone());
        self.errors.push(ConfigError { key, problem: problem.to_owned() });
    }

    pub(super) fn list<T: Value>(&mut self, key: &Key, expected: &str) -> Vec<T> {
        let given = self.arguments.values.get(key.name).map_or(&[][..], |given| &given.values);
        let mut values = Vec::new();
        for text in given {
            match T::read(text) {
                Some(value) => values.push(value),
                None => self.error(key, &format!("expected {expected}, found {text:?}")),
            }
        }
        values
    }

    pub(super) fn one<T: Value>(&mut self, key: &Key, expected: &str) -> Option<T> {
        self.list(key, expected).pop()
    }

    pub(super) fn number(&mut self, key: &Key, range: RangeInclusive<u64>) -> Option<u64> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        let number: u64 = self.one(key, &expected)?;
        if range.contains(&number) {
            return Some(number);
        }
        self.error(key, &format!("expected {expected}, found {number}"));
        None
    }

    /// A value whose own error says what was expected.
    pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, key: &Key) -> Option<T> {
        let text: String = self.one(key, "")?;
        let value = text.trim().parse();
        value.map_err(|error| self.error(key, &format!("{error}, found {text:?}"))).ok()
    }

    /// Allocations, permissions, channels, bytes a second.
    pub(super) fn limits(&mut self, [allocations, permissions, channels, bytes]: [&Key; 4]) -> Quota {
        let mut count = |key: &Key| self.number(key, 1..=1_000_000_000).map_or(usize::MAX, |n| n as usize);
        Quota {
            allocations: count(allocations),
            permissions: count(permissions),
            channels: count(channels),
            bytes_per_second: self.number(bytes, 1000..=1_000_000_000_000),
        }
    }

    /// A limit of one user's that is above that of all users would never be met.
    pub(super) fn no_more_than_all(&mut self, user: &Quota, total: &Quota) {
        let [a, b] = [user, total].map(|q| {
            let bytes = q.bytes_per_second.map_or(usize::MAX, |bytes| bytes as usize);
            [q.allocations, q.permissions, q.channels, bytes]
        });
        for ((user, total), (of_user, of_all)) in a.into_iter().zip(b).zip(USER_LIMITS.into_iter().zip(TOTAL_LIMITS)) {
            if user != usize::MAX && user > total {
                self.error(of_user, &format!("expected at most the {total} of {}, found {user}", of_all.name));
            }
        }
    }

    /// Denied wins: what is allowed inside it is a mistake.
    pub(super) fn no_overlap(&mut self, allow: &[IpNet], deny: &[IpNet]) {
        for allowed in allow {
            if let Some(denied) = deny.iter().find(|denied| denied.contains(allowed)) {
                let problem = format!("{allowed} can never be allowed, since deny-peer has {denied}");
                self.error(&ALLOW_PEER, &problem);
            }
        }
    }

    /// The system would let two sockets share an address, unless it picks their ports.
    pub(super) fn no_duplicates(&mut self, listen: &[SocketAddr]) {
        let mut seen = HashSet::new();
        for addr in listen.iter().filter(|addr| addr.port() != 0) {
            if !seen.insert(addr) {
                self.error(&LISTEN, &format!("expected each address once, found {addr} twice"));
            }
        }
    }

    pub(super) fn switch(&mut self, key: &Key) -> Option<bool> {
        self.one(key, "on or off").map(|Switch(on)| on)
    }

    pub(super) fn log_level(&mut self) -> String {
        let filter = self.one(&LOG_LEVEL, "").unwrap_or_else(|| "info".to_owned());
        if let Err(error) = Logs::check_filter(&filter) {
            self.error(&LOG_LEVEL, &format!("expected a level or a filter: {error}"));
        }
        filter
    }

    pub(super) fn nat64(&mut self) -> Vec<Ipv6Net> {
        let expected = "an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits, such as 2001:db8:64::/96";
        let nets: Vec<Ipv6Net> = self.list(&NAT64_PREFIX, expected);
        for net in &nets {
            if ![32, 40, 48, 56, 64, 96].contains(&net.prefix_len()) {
                self.error(&NAT64_PREFIX, &format!("expected {expected}, found {net}"));
            }
        }
        nets
    }

    pub(super) fn breaker(&mut self) -> Option<breaker::Limits> {
        let off = |text: &String| text.trim() == "off";
        if self.one::<String>(&BREAKER, "").as_ref().is_some_and(off) {
            return None;
        }
        self.parsed(&BREAKER)
    }

    /// There is no password: it must not be reached from elsewhere.
    pub(super) fn admin(&mut self) -> Option<SocketAddr> {
        let addr: SocketAddr = self.one(&ADMIN, "an address and a port, such as 127.0.0.1:9479")?;
        if addr.ip().is_loopback() {
            return Some(addr);
        }
        self.error(&ADMIN, &format!("expected an address on loopback, such as 127.0.0.1:9479, found \"{addr}\""));
        None
    }

    /// The relayed address of a family: as given, or that of a listener.
    pub(super) fn relay_ip(
        &mut self,
        listen: &[SocketAddr],
        relay: &[IpAddr],
        external: &[IpAddr],
        v4: bool,
    ) -> Option<RelayIp> {
        let of_family = |ips: &[IpAddr]| ips.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect::<Vec<_>>();
        let (relay, external) = (of_family(relay), of_family(external));
        for (key, ips) in [(&RELAY_ADDRESS, &relay), (&EXTERNAL_ADDRESS, &external)] {
            if ips.len() > 1 {
                self.error(key, "expected one address of each family");
            }
        }
        let listeners: Vec<IpAddr> = listen.iter().map(SocketAddr::ip).collect();
        let own = of_family(&listeners).into_iter().find(|ip| !ip.is_unspecified());
        // Peers know the wildcard by the external address.
        let wildcard = listeners.iter().copied().find(|ip| ip.is_ipv4() == v4).filter(|_| !external.is_empty());
        let Some(bind) = relay.first().copied().or(own).or(wildcard) else {
            if let Some(external) = external.first() {
                let family = if v4 { "IPv6" } else { "IPv4" };
                let problem =
                    format!("expected an {family} address, as listen and relay-address are, found {external}");
                self.error(&EXTERNAL_ADDRESS, &problem);
            }
            return None;
        };
        if bind.is_unspecified() && external.is_empty() {
            self.error(&RELAY_ADDRESS, "expected an address that clients can be told, found the wildcard");
        }
        Some(RelayIp { bind, advertise: external.first().copied().unwrap_or(bind) })
    }
}

/// A value that is written as text.
pub(super) trait Value: Sized {
    fn read(text: &str) -> Option<Self>;
}

macro_rules! from_str {
    ($($t:ty),*) => { $(impl Value for $t {
        fn read(text: &str) -> Option<Self> {
            Self::from_str(text.trim()).ok()
        }
    })* };
}

from_str!(SocketAddr, IpAddr, Ipv6Net, u64);

impl Value for String {
    fn read(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Value for IpNet {
    fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(Self::from))
    }
}

/// Text that must not be shown in an error.
pub(super) struct Text(pub(super) String);

impl Value for Text {
    fn read(text: &str) -> Option<Self> {
        Some(Self(text.to_owned()))
    }
}

struct Switch(bool);

impl Value for Switch {
    fn read(text: &str) -> Option<Self> {
        match text.trim() {
            "on" | "true" => Some(Self(true)),
            "off" | "false" => Some(Self(false)),
            _ => None,
        }
    }
}

pub(super) struct Ports(pub(super) RangeInclusive<u16>);

impl Value for Ports {
    fn read(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (1 <= first && first <= last).then_some(Self(first..=last))
    }
}

/// Loopback in the families that this host has.
pub(super) fn loopback() -> Vec<SocketAddr> {
    let all = [SocketAddr::from(([127, 0, 0, 1], 3478)), SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 3478))];
    all.into_iter().filter(|addr| addr.is_ipv4() || UdpSocket::bind((addr.ip(), 0)).is_ok()).collect()
}
