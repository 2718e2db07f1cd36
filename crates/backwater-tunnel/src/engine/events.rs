//! What the driver looks up, resolves, or tells.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use tracing::{debug, info, warn};

use super::{
    Engine, Route,
    peer::{Peer, name_of},
};

/// What the engine wants of its driver, beside moving bytes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Resolve this name, and call [`Engine::handle_resolved`].
    Resolve {
        /// The peer's public key: another peer may have its number when the result is there.
        public_key: [u8; 32],
        /// The name.
        name: String,
        /// The port that goes with it.
        port: u16,
    },
    /// Tell the operator that a peer's name does not resolve. Once for each peer.
    Unresolved {
        /// The peer's number.
        peer: usize,
        /// The name.
        name: String,
        /// Why.
        error: io::Error,
    },
    /// Tell the operator that a peer does not answer. Once for each peer.
    NoAnswer {
        /// The peer's number.
        peer: usize,
        /// Where it was looked for.
        endpoint: SocketAddr,
    },
    /// Drop what is held for a peer, before anything is sent to it: it has another route, and the engine has counted it as dropped.
    GaveUpHeld {
        /// The peer's number.
        peer: usize,
    },
    /// The [addresses](Engine::relay_peers) that the relay is to reach are others. Tell by [`Engine::set_relayed`] which it does reach.
    RelayPeers,
    /// A peer that is reached by the relay does not answer. Look whether the relay still has what it has granted.
    RelayIsSilent,
    /// A peer has another route. Look up its MTU, and call [`Engine::set_route_mtu`].
    NewRoute {
        /// The peer's number.
        peer: usize,
        /// The route.
        route: Route,
    },
}

impl Engine {
    /// Returns the next thing that the driver is to do, beside moving bytes.
    pub fn poll_event(&mut self, now: Instant) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        for peer in self.peers.iter_mut() {
            if peer.path.take_gave_up_held() {
                return Some(Event::GaveUpHeld { peer: peer.number() });
            }
            if peer.ways.take_new() {
                return Some(Event::RelayPeers);
            }
            if let Some(route) = peer.path.take_new() {
                return Some(Event::NewRoute { peer: peer.number(), route });
            }
            if let Some((name, port)) = peer.endpoints.start_resolving(now) {
                return Some(Event::Resolve { public_key: peer.public_key.to_bytes(), name, port });
            }
        }
        None
    }

    /// Takes the addresses of a peer's name, or why there are none.
    pub fn handle_resolved(&mut self, now: Instant, public_key: [u8; 32], result: io::Result<Vec<SocketAddr>>) {
        let Some(peer) = self.by_key.get(&public_key).and_then(|&number| self.peers.get_mut(number)) else { return };
        // The endpoint may be another one by now.
        if !peer.endpoints.is_resolving() {
            return;
        }
        if let Err(error) = peer.endpoints.resolved(now, result) {
            let name = peer.endpoints.name().unwrap_or_default().to_owned();
            warn!(peer = name_of(&peer.public_key), name, %error, "the name of the peer's endpoint does not resolve");
            if peer.is_unresolved() {
                self.events.push_back(Event::Unresolved { peer: peer.number(), name, error });
            }
            return;
        }
        let stays = peer.endpoint().is_some_and(|current| {
            // The others are tried in turn.
            if peer.endpoints.is_failing() { peer.endpoints.contains(current) } else { peer.is_established() }
        });
        if !stays && let Some(first) = peer.endpoints.first() {
            peer.found(now, first, &mut self.messages);
        }
    }

    /// Returns the addresses of the peers that a relay is to reach, each with a channel. Some may be there twice.
    pub fn relay_peers(&self) -> impl Iterator<Item = SocketAddr> {
        self.peers.iter().filter_map(|peer| peer.ways.wanted())
    }

    /// Whether a relay may have to reach a peer by IPv6: one of the addresses of a peer is of it.
    pub fn relay_needs_v6(&self) -> bool {
        let has_v6 = |peer: &Peer| peer.endpoints.has_v6() || peer.ways.wanted().is_some_and(|to| to.is_ipv6());
        self.peers.iter().any(has_v6)
    }

    /// Takes the way by the relay to a peer's address; `None`: the relay does not reach it (any more).
    pub fn set_relayed(&mut self, now: Instant, peer: SocketAddr, route: Option<Route>) {
        for other in self.peers.iter_mut().filter(|other| other.ways.wanted() == Some(peer)) {
            other.set_relayed(now, route, &mut self.messages);
        }
    }

    /// Returns the way by the relay to a peer's address.
    pub(super) fn relayed_to(&self, peer: SocketAddr) -> Option<Route> {
        self.peers.iter().filter_map(|other| other.ways.relayed()).find(|route| route.endpoint() == peer)
    }

    /// Takes the MTU of this host's route to a peer, in bytes of the outer packet; `None`: it is not known.
    pub fn set_route_mtu(&mut self, peer: usize, mtu: Option<u32>) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.path.mtu.set_route(mtu);
        }
    }

    /// Takes what the system says of the new route to a peer: the address that it sends from, and the MTU.
    pub(crate) fn set_route(&mut self, peer: usize, source: Option<IpAddr>, mtu: Option<u32>) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.path.looked_up(source);
            peer.path.mtu.set_route(mtu);
        }
    }

    /// Learns from an ICMP message that packets to `destination` may have no more than `mtu` bytes. `quoted`: the first bytes of the UDP
    /// payload that the message is about. It is believed only if it quotes a datagram that was sent lately.
    pub fn handle_icmp_mtu(&mut self, now: Instant, destination: SocketAddr, mtu: u32, quoted: &[u8]) {
        for peer in self.peers.iter_mut().filter(|peer| peer.destination() == Some(destination)) {
            let headroom = peer.path.route().map_or(0, Route::headroom);
            let quoted = quoted.get(headroom..).unwrap_or_default();
            if peer.path.mtu.learn(now, mtu, quoted) {
                debug!(peer = %name_of(&peer.public_key), mtu, "the path's MTU was learnt");
            }
        }
    }

    /// Learns that this host's route to `destination`, whose port may not be known, has this MTU in bytes.
    pub fn handle_local_mtu(&mut self, destination: SocketAddr, mtu: u32) {
        let ip = destination.ip();
        for peer in self.peers.iter_mut().filter(|peer| peer.destination().is_some_and(|to| to.ip() == ip)) {
            if peer.path.mtu.set_route(Some(mtu)) {
                info!(peer = %name_of(&peer.public_key), mtu, "a datagram was longer than the MTU of the route to the peer");
            }
        }
    }
}
