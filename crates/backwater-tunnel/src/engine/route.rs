//! Where a peer's datagrams go, and what is known of the way there.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use super::{path_mtu::PathMtu, queue::rate::Rate};

/// How a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Route {
    /// UDP to the peer's own address.
    Direct(SocketAddr),
}

impl Route {
    /// Returns the address that the datagrams are sent to.
    #[inline]
    pub fn destination(self) -> SocketAddr {
        match self {
            Self::Direct(destination) => destination,
        }
    }

    /// Returns the length of the headers outside of WireGuard's, in bytes: IP (20 or 40) and UDP (8).
    pub(crate) fn overhead(self) -> usize {
        match self {
            Self::Direct(destination) => (if destination.is_ipv6() { 40 } else { 20 }) + 8,
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
