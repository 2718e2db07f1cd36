//! This host's network: the sockets, the routes to the peers, their MTUs, and what follows for the device and the sockets.

use std::{
    task::{Context, Waker},
    time::{Duration, Instant},
};

use backwater_stun::CHANNEL_HEADER_LEN;
use backwater_udp::{Fragmentation, IcmpError, IcmpKind};
use tracing::{debug, info, warn};

use super::event_loop::EventLoop;
use crate::{
    device::{self, Change},
    engine::{Route, peer::name_of},
};

/// Between two tries to bind sockets anew.
const RETRY: Duration = Duration::from_secs(5);

impl EventLoop {
    /// Follows a change of the network. It is also told of where nothing is different, as by a router that advertises itself again.
    pub(super) fn follow_network(&mut self, now: Instant, change: Change) {
        let mut moved = false;
        for peer in self.engine.peers_mut() {
            let source = peer.destination().and_then(|destination| self.sockets.source(destination));
            moved |= peer.path.set_source(source);
            if peer.path.local_ip.is_some_and(|ip| self.sockets.is_gone(ip)) {
                peer.path.local_ip = None;
            }
        }
        debug!(?change, moved, "the network has changed");
        if moved {
            info!("this side's address has changed");
            self.rebind(now);
        }
        self.look_up_routes(now);
        if moved || change.link {
            self.engine.handle_new_network(now, None);
        }
    }

    /// Looks, with each tick, whether the sockets are good.
    pub(super) fn check_sockets(&mut self, now: Instant) {
        let waited = now.saturating_duration_since(self.rebound) >= RETRY;
        if let Some(slept) = self.suspended.check() {
            info!(seconds = slept.as_secs(), "the system was suspended");
            self.rebind(now);
            self.engine.handle_new_network(now, Some(slept));
        } else if waited && (self.broken || !self.sockets.is_bound() || self.sockets.is_stuck()) {
            warn!("the path takes nothing: binding anew");
            self.rebind(now);
            self.engine.handle_new_network(now, None);
        }
        self.set_fragmentation(now);
        self.size_send_buffers(now);
    }

    /// Takes what has arrived already, for a bounded time, before sockets are closed.
    pub(super) fn receive_the_last(&mut self, now: Instant) {
        self.receive(&mut Context::from_waker(Waker::noop()), now);
    }

    /// Begins with new sockets.
    pub(super) fn rebind(&mut self, now: Instant) {
        (self.rebound, self.broken) = (now, false);
        self.receive_the_last(now);
        let port = self.sockets.close();
        self.engine.handle_closed_sockets();
        if let Err(error) = self.sockets.rebind(port) {
            warn!(%error, "no socket can be bound");
        }
        self.relay.iter_mut().for_each(|relay| relay.rebound(now));
        self.set_fragmentation(now);
    }

    /// Looks up the MTUs of the routes to all peers, and fits the device's to them.
    pub(super) fn look_up_routes(&mut self, now: Instant) {
        for peer in self.engine.peers_mut() {
            let Some(destination) = peer.destination() else { continue };
            let mtu = self.link.route_mtu(destination.ip());
            peer.path.mtu.set_route(mtu.inspect_err(|error| debug!(%error, %destination, "no route")).ok());
        }
        self.fit_mtu(now);
    }

    /// Looks up the new route to a peer.
    pub(super) fn look_up_route(&mut self, peer: usize, route: Route) {
        let to = route.destination();
        let mtu = self.link.route_mtu(to.ip()).inspect_err(|error| debug!(%error, %to, "no route")).ok();
        let source = self.sockets.source(to);
        self.engine.set_route(peer, source, mtu);
    }

    /// Learns the MTU of a path from an entry of a socket's error queue.
    pub(super) fn learn_from(&mut self, now: Instant, error: &IcmpError) {
        debug!(?error, "about an earlier datagram");
        match error.kind {
            IcmpKind::PacketTooBig { mtu } => {
                self.engine.handle_icmp_mtu(now, error.destination, mtu, &error.quoted);
                self.set_fragmentation(now);
            }
            IcmpKind::LocalMtu { mtu } => {
                self.engine.handle_local_mtu(error.destination, mtu);
                self.fit_mtu(now);
            }
            IcmpKind::Unreachable { .. } | _ => {}
        }
    }

    /// Fits each send buffer to the paths: what waits in the socket is behind the queue that is managed, so it is as little as keeps
    /// the paths busy.
    pub(super) fn size_send_buffers(&mut self, now: Instant) {
        for v6 in [false, true] {
            let here = self.engine.peers().filter(|peer| peer.destination().is_some_and(|to| to.is_ipv6() == v6));
            let rate: u64 = here.filter_map(|peer| peer.path.rate.bytes_per_second(now)).sum();
            if let Some(side) = self.sockets.side(v6) {
                side.size_send_buffer(rate);
            }
        }
    }

    /// Gives the device the MTU of the routes, unless it is configured, and the sockets what they need for it.
    pub(super) fn fit_mtu(&mut self, now: Instant) {
        // With room for the header of ChannelData, whichever way is in use: the device's MTU does not change with it.
        let header = if self.relay.is_some() { CHANNEL_HEADER_LEN as u32 } else { 0 };
        let routes = self.engine.peers().filter_map(|peer| peer.path.mtu.route());
        let routes = routes.map(|mtu| mtu.saturating_sub(header));
        if let Some(mtu) = device::default_mtu(routes)
            && !self.engine.mtu_is_configured()
            && mtu != self.link.mtu()
        {
            match self.link.set_mtu(mtu) {
                Ok(()) => info!(mtu, "the device's MTU follows the routes to the peers"),
                Err(error) => warn!(%error, mtu, "the device's MTU cannot be set"),
            }
            self.engine.set_mtu(self.link.mtu());
        }
        self.set_fragmentation(now);
    }

    /// Lets the sockets fragment where a path needs it, and only there.
    pub(super) fn set_fragmentation(&mut self, now: Instant) {
        for v6 in [false, true] {
            let Some(side) = self.sockets.side(v6) else { continue };
            let (mtu, configured) = (self.engine.mtu(), self.engine.mtu_is_configured());
            let needs = self.engine.peers().find(|peer| {
                peer.destination().is_some_and(|to| to.is_ipv6() == v6)
                    && peer.path.mtu.needs_fragments(now, mtu, configured)
            });
            let wanted = if needs.is_some() { Fragmentation::Allowed } else { Fragmentation::Never };
            if wanted == side.socket.fragmentation() {
                continue;
            }
            match (side.socket.set_fragmentation(wanted), needs) {
                (Ok(()), Some(peer)) => {
                    let (fits, peer) = (peer.path.mtu.fits(now), name_of(&peer.public_key));
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
