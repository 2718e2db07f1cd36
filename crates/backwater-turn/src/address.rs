use std::{fmt, net::SocketAddr};

use backwater_stun::AddressFamily;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub SocketAddr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

address!(
    /// The address that a client's datagrams come from: its server-reflexive transport address.
    ClientAddr
);
address!(
    /// The address of someone whom a client exchanges data with through the relay.
    PeerAddr
);
address!(
    /// A relayed transport address: where peers reach a client.
    RelayedAddr
);

/// What tells a client's allocation from all others (RFC 8656, section 2), its protocol being UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FiveTuple {
    /// The client.
    pub client: ClientAddr,
    /// The server's transport address that it uses.
    pub server: SocketAddr,
}

/// One thing for IPv4 and one for IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerFamily<T> {
    /// IPv4's.
    pub v4: T,
    /// IPv6's.
    pub v6: T,
}

/// Some of the address families, or both, or none.
pub type Families = PerFamily<bool>;

impl<T> PerFamily<T> {
    /// That of a family.
    #[inline]
    pub fn get(&self, family: AddressFamily) -> &T {
        match family {
            AddressFamily::Ipv4 => &self.v4,
            AddressFamily::Ipv6 => &self.v6,
        }
    }

    /// That of a family, to be changed.
    #[inline]
    pub fn get_mut(&mut self, family: AddressFamily) -> &mut T {
        match family {
            AddressFamily::Ipv4 => &mut self.v4,
            AddressFamily::Ipv6 => &mut self.v6,
        }
    }

    /// What `f` makes of each.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> PerFamily<U> {
        PerFamily { v4: f(self.v4), v6: f(self.v6) }
    }
}

impl Families {
    /// One family.
    pub fn only(family: AddressFamily) -> Self {
        Self { v4: family == AddressFamily::Ipv4, v6: family == AddressFamily::Ipv6 }
    }

    /// Those that are in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { v4: self.v4 && other.v4, v6: self.v6 && other.v6 }
    }

    /// Whether there is any.
    pub fn any(self) -> bool {
        self.v4 || self.v6
    }

    /// Those that are in it.
    pub fn iter(self) -> impl Iterator<Item = AddressFamily> {
        [AddressFamily::Ipv4, AddressFamily::Ipv6].into_iter().filter(move |family| *self.get(*family))
    }
}
