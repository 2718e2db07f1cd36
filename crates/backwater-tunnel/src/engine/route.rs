//! Where a peer's datagrams go, and what is known of the way there.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use backwater_stun::{CHANNEL_HEADER_LEN, ChannelData, ChannelNumber};

use super::{path_mtu::PathMtu, queue::rate::Rate};

/// How a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Route {
    /// UDP to the peer's own address.
    Direct(SocketAddr),
    /// ChannelData to a TURN server, which sends it on to the peer (RFC 8656, section 12).
    Relayed {
        /// The server.
        relay: SocketAddr,
        /// The peer's address, as the server reaches it.
        peer: SocketAddr,
        /// The channel to the peer.
        channel: ChannelNumber,
    },
}

impl Route {
    /// Returns the address that the datagrams are sent to.
    #[inline]
    pub fn destination(self) -> SocketAddr {
        match self {
            Self::Direct(destination) => destination,
            Self::Relayed { relay, .. } => relay,
        }
    }

    /// Returns the peer's address.
    #[inline]
    pub fn endpoint(self) -> SocketAddr {
        match self {
            Self::Direct(endpoint) => endpoint,
            Self::Relayed { peer, .. } => peer,
        }
    }

    /// Whether a TURN server sends the datagrams on.
    #[inline]
    pub fn is_relayed(self) -> bool {
        matches!(self, Self::Relayed { .. })
    }

    /// Returns the length of the headers outside of WireGuard's, in bytes: IP (20 or 40), UDP (8), and the [headroom](Self::headroom).
    pub(crate) fn overhead(self) -> usize {
        (if self.is_v6() { 40 } else { 20 }) + 8 + self.headroom()
    }

    /// Returns the bytes in front of each WireGuard message: the header of ChannelData.
    #[inline]
    pub(crate) fn headroom(self) -> usize {
        if self.is_relayed() { CHANNEL_HEADER_LEN } else { 0 }
    }

    /// Returns the number of the channel; 0, which is none, without a relay.
    #[inline]
    pub(crate) fn channel(self) -> u16 {
        match self {
            Self::Direct(_) => 0,
            Self::Relayed { channel, .. } => channel.number(),
        }
    }

    /// Returns what is in the [headroom](Self::headroom) in front of a message of `len` bytes; `None`: nothing is.
    #[inline]
    pub(crate) fn header(self, len: usize) -> Option<[u8; CHANNEL_HEADER_LEN]> {
        match self {
            Self::Direct(_) => None,
            // No message is longer than a datagram.
            Self::Relayed { channel, .. } => Some(ChannelData::header(channel, u16::try_from(len).unwrap_or(u16::MAX))),
        }
    }

    /// Whether the datagrams are sent by IPv6.
    pub(crate) fn is_v6(self) -> bool {
        self.destination().is_ipv6()
    }
}

/// The route in use, with its MTU and its rate, which sizes the queue in front of it.
#[derive(Debug, Default)]
pub(crate) struct Path {
    route: Option<Route>,
    /// The address of this host that the peer sends to, and so expects to hear from; `None`: whichever the system picks.
    pub(crate) local_ip: Option<IpAddr>,
    /// The address that the system picked when it was last looked at.
    source: Option<IpAddr>,
    pub(crate) mtu: PathMtu,
    pub(crate) rate: Rate,
    /// The driver has not been told of the route yet.
    is_new: bool,
    /// Nor that what it holds is given up.
    gave_up_held: bool,
}

impl Path {
    #[inline]
    pub(crate) fn route(&self) -> Option<Route> {
        self.route
    }

    /// Takes another route. Nothing is known of it.
    pub(crate) fn change(&mut self, route: Route) {
        self.mtu.reset(route.overhead());
        self.rate = Rate::default();
        (self.route, self.source, self.is_new) = (Some(route), None, true);
    }

    /// There is no route any more.
    pub(crate) fn clear(&mut self) {
        *self = Self { gave_up_held: self.gave_up_held, ..Self::default() };
    }

    /// What the driver holds is given up.
    pub(crate) fn give_up_held(&mut self) {
        self.gave_up_held = true;
    }

    /// Returns whether the driver has not been told that what it holds is given up.
    pub(crate) fn take_gave_up_held(&mut self) -> bool {
        std::mem::take(&mut self.gave_up_held)
    }

    /// Returns the route if the driver has not been told of it yet.
    pub(crate) fn take_new(&mut self) -> Option<Route> {
        if std::mem::take(&mut self.is_new) { self.route } else { None }
    }

    /// Takes the address that the system sends from by a new route.
    pub(crate) fn looked_up(&mut self, source: Option<IpAddr>) {
        self.source = source;
    }

    /// Takes the address that the system sends from. Returns whether it is another one than before.
    pub(crate) fn set_source(&mut self, source: Option<IpAddr>) -> bool {
        let changed = std::mem::replace(&mut self.source, source) != source && !self.is_new;
        if changed {
            self.local_ip = None;
        }
        changed
    }

    /// Returns how many bytes may wait for the route.
    #[inline]
    pub(crate) fn bound(&self, now: Instant) -> usize {
        self.rate.bound(now)
    }

    /// Returns how many bytes may leave at once.
    #[inline]
    pub(crate) fn longest_batch(&self, now: Instant) -> usize {
        self.rate.longest_train(now)
    }
}
