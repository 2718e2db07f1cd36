use std::{
    fmt,
    hash::{Hash, Hasher},
    net::SocketAddr,
};

use backwater_stun::{AddressFamily, AttributeType};

/// ADDITIONAL-ADDRESS-FAMILY in a draft of RFC 8656. coturn and its client use this number.
pub(crate) const DRAFT_ADDITIONAL_ADDRESS_FAMILY: AttributeType = AttributeType(0x8032);

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
    /// The transport address of a peer.
    PeerAddr
);
address!(
    /// A relayed transport address: peers reach a client there.
    RelayedAddr
);

/// The 5-tuple that identifies an allocation (RFC 8656 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FiveTuple {
    /// The client.
    pub client: ClientAddr,
    /// The transport address of the server's listener.
    pub server: SocketAddr,
    /// The protocol between the two.
    pub protocol: Protocol,
}

/// The transport protocol between a client and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// UDP: anybody can forge the source, and datagrams can be lost or doubled.
    Udp,
    /// TCP, with TLS or without: the handshake has proved the source.
    Tcp,
}

impl Protocol {
    /// Returns the word for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

impl FiveTuple {
    /// Returns the 5-tuple of a client that sends datagrams.
    #[inline]
    pub fn udp(client: ClientAddr, server: SocketAddr) -> Self {
        Self { client, server, protocol: Protocol::Udp }
    }

    /// Returns the 5-tuple of a connection.
    #[inline]
    pub fn tcp(client: ClientAddr, server: SocketAddr) -> Self {
        Self { client, server, protocol: Protocol::Tcp }
    }

    /// Whether nobody can have forged the source.
    pub(crate) fn is_proven(&self) -> bool {
        self.protocol == Protocol::Tcp
    }
}

/// The hash of a 5-tuple leaves out the protocol, so that a look-up costs what it did with UDP alone: at most two clients share
/// the addresses.
impl Hash for FiveTuple {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.client.hash(state);
        self.server.hash(state);
    }
}

/// A value for IPv4 and one for IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerFamily<T> {
    /// For IPv4.
    pub v4: T,
    /// For IPv6.
    pub v6: T,
}

/// A set of address families.
pub type Families = PerFamily<bool>;

impl<T> PerFamily<T> {
    /// Returns the value for a family.
    #[inline]
    pub fn get(&self, family: AddressFamily) -> &T {
        match family {
            AddressFamily::Ipv4 => &self.v4,
            AddressFamily::Ipv6 => &self.v6,
        }
    }

    /// Returns the value for a family, to change it.
    #[inline]
    pub fn get_mut(&mut self, family: AddressFamily) -> &mut T {
        match family {
            AddressFamily::Ipv4 => &mut self.v4,
            AddressFamily::Ipv6 => &mut self.v6,
        }
    }

    /// Applies `f` to both values.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> PerFamily<U> {
        PerFamily { v4: f(self.v4), v6: f(self.v6) }
    }
}

impl Families {
    /// Returns the set of one family.
    pub fn only(family: AddressFamily) -> Self {
        Self { v4: family == AddressFamily::Ipv4, v6: family == AddressFamily::Ipv6 }
    }

    /// Returns the families that are in both sets.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { v4: self.v4 && other.v4, v6: self.v6 && other.v6 }
    }

    /// Returns whether the set has a family.
    pub fn any(self) -> bool {
        self.v4 || self.v6
    }

    /// Returns the families in the set.
    pub fn iter(self) -> impl Iterator<Item = AddressFamily> {
        [AddressFamily::Ipv4, AddressFamily::Ipv6].into_iter().filter(move |family| *self.get(*family))
    }
}
