//! The routes to the peers: their MTUs, and what follows for the device and the sockets.

use std::time::Instant;

use backwater_udp::{Fragmentation, IcmpError, IcmpKind};
use tracing::{debug, info, warn};

use super::EventLoop;
use crate::{device, engine::peer::name_of};

impl EventLoop {
    /// Looks up the routes to all peers, or to those whose endpoint is new, and fits the MTU to them.
    pub(super) fn look_up_routes(&mut self, now: Instant, all: bool) {
        for peer in self.peers.iter_mut().filter(|peer| all || peer.needs_route) {
            peer.needs_route = false;
            let Some(endpoint) = peer.endpoint() else { continue };
            let mtu =
                self.link.route_mtu(endpoint.ip()).inspect_err(|error| debug!(%error, %endpoint, "no route")).ok();
            peer.path_mtu.set_route(mtu);
        }
        self.fit_mtu(now);
    }

    /// Learns the MTU of a path from an entry of a socket's error queue.
    pub(super) fn learn_from(&mut self, now: Instant, error: &IcmpError) {
        debug!(?error, "about an earlier datagram");
        match error.kind {
            IcmpKind::PacketTooBig { mtu } => {
                for peer in self.peers.iter_mut().filter(|peer| peer.endpoint() == Some(error.destination)) {
                    if peer.path_mtu.learn(now, mtu, &error.quoted) {
                        debug!(peer = %name_of(&peer.public_key), mtu, "the path's MTU was learnt");
                    }
                }
                self.set_fragmentation(now);
            }
            // Its port may not be known.
            IcmpKind::LocalMtu { mtu } => {
                let ip = error.destination.ip();
                for peer in self.peers.iter_mut().filter(|peer| peer.endpoint().is_some_and(|to| to.ip() == ip)) {
                    if peer.path_mtu.set_route(Some(mtu)) {
                        info!(peer = %name_of(&peer.public_key), mtu, "a datagram was longer than the MTU of the route to the peer");
                    }
                }
                self.fit_mtu(now);
            }
            IcmpKind::Unreachable { .. } | _ => {}
        }
    }

    /// Gives the device the MTU of the routes, unless it is configured, and the sockets what they need for it.
    fn fit_mtu(&mut self, now: Instant) {
        let routes = self.peers.iter().filter_map(|peer| peer.path_mtu.route());
        if let Some(mtu) = device::default_mtu(routes)
            && !self.tools.mtu_is_configured
            && mtu != self.link.mtu()
        {
            match self.link.set_mtu(mtu) {
                Ok(()) => info!(mtu, "the device's MTU follows the routes to the peers"),
                Err(error) => warn!(%error, mtu, "the device's MTU cannot be set"),
            }
            self.tools.mtu = self.link.mtu().into();
        }
        self.set_fragmentation(now);
    }

    /// Lets the sockets fragment where a path needs it, and only there.
    pub(super) fn set_fragmentation(&mut self, now: Instant) {
        for v6 in [false, true] {
            let Some(side) = self.path.side(v6) else { continue };
            let (mtu, configured) = (self.tools.mtu, self.tools.mtu_is_configured);
            let needs = self.peers.iter().find(|peer| {
                peer.endpoint().is_some_and(|endpoint| endpoint.is_ipv6() == v6)
                    && peer.path_mtu.needs_fragments(now, mtu, configured)
            });
            let wanted = if needs.is_some() { Fragmentation::Allowed } else { Fragmentation::Never };
            if wanted == side.socket.fragmentation() {
                continue;
            }
            match (side.socket.set_fragmentation(wanted), needs) {
                (Ok(()), Some(peer)) => {
                    let (fits, peer) = (peer.path_mtu.fits(now), name_of(&peer.public_key));
                    if fits < mtu {
                        warn!(
                            peer,
                            mtu,
                            fits,
                            "datagrams are fragmented: the device's MTU is more than fits the path to the peer"
                        );
                    } else {
                        debug!(
                            peer,
                            mtu, "datagrams may be fragmented: they are longer than the Internet's 1,500 bytes"
                        );
                    }
                }
                (Ok(()), None) => info!("datagrams are no longer fragmented"),
                // It is tried again with each tick.
                (Err(error), _) => debug!(%error, "the socket's fragmentation cannot be set"),
            }
        }
    }
}
