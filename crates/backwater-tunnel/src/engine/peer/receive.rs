//! What comes from a peer.

use std::{net::IpAddr, time::Instant};

use backwater_udp::RecvDatagram;

use super::{
    Heard, Peer, kind,
    ways::{Origin, Proof},
};
use crate::engine::{
    messages::{MAX_MESSAGE, Messages},
    packet::{coalesce::Coalescer, ecn},
    wireguard::{Error, Initiation, Received},
};

impl Peer {
    /// Takes an initiation that has this peer's public key in it, and answers it.
    pub(crate) fn respond(
        &mut self,
        now: Instant,
        origin: Origin,
        datagram: RecvDatagram<'_>,
        initiation: Initiation,
        messages: &mut Messages,
    ) -> Heard {
        let mut buffer = [0; MAX_MESSAGE];
        let Ok(response) = self.tunnel.respond(now, initiation, &mut messages.indices, &mut buffer) else {
            return Heard::Bad;
        };
        self.way_back(origin, datagram.source).into_iter().for_each(|route| messages.push(route, response));
        self.heard(now, origin, datagram.source, datagram.local_ip, Proof::Initiation);
        self.counters.handshakes += 1;
        Heard::Handshake
    }

    /// Takes a datagram that says it is from this peer, but no initiation. A packet in it goes to the coalescer, if `allows` its source.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        origin: Origin,
        datagram: RecvDatagram<'_>,
        coalescer: &mut Coalescer,
        messages: &mut Messages,
        allows: impl FnOnce(IpAddr) -> bool,
    ) -> Heard {
        let RecvDatagram { source, local_ip, ecn: outer, payload } = datagram;
        let Some(space) = coalescer.space(payload.len().max(MAX_MESSAGE)) else { return Heard::Bad };
        let (packet, from) = match self.tunnel.receive(now, payload, space, &mut messages.indices) {
            Ok(Received::Packet(packet, from)) => (packet, from),
            Ok(Received::Keepalive) => {
                self.count_received();
                self.heard(now, origin, source, local_ip, Proof::None);
                self.confirm(now);
                return Heard::Good;
            }
            Ok(Received::Response) => {
                self.heard(now, origin, source, local_ip, Proof::Response);
                self.counters.handshakes += 1;
                if let Some(initiated) = self.initiated.take() {
                    let rtt = now.saturating_duration_since(initiated);
                    self.rtt = Some(rtt);
                    self.ways.measured(origin, rtt);
                }
                self.confirm(now);
                // The peer may use the session once it has heard from this side.
                self.keep_alive(now, messages);
                return Heard::Handshake;
            }
            // Anyone can send it who saw the initiation: it says nothing of where the peer is.
            Ok(Received::Cookie) => return Heard::Good,
            Err(Error::Replayed) => {
                self.counters.replayed += 1;
                return Heard::Bad;
            }
            Err(Error::Unknown | Error::Invalid) => {
                self.counters.invalid += u64::from(payload.first() == Some(&kind::DATA));
                return Heard::Bad;
            }
        };
        let len = packet.len();
        self.path.mtu.on_received(now, payload.len());
        self.count_received();
        if !allows(from) {
            self.counters.source_not_allowed += 1;
        } else if !ecn::decapsulate(packet, outer) {
            self.counters.congested += 1;
        } else {
            self.counters.bytes_received += len as u64;
            coalescer.push(len);
        }
        self.heard(now, origin, source, local_ip, Proof::None);
        self.confirm(now);
        Heard::Good
    }

    /// Data has come.
    fn count_received(&mut self) {
        self.counters.datagrams_received += 1;
        self.counters.datagrams_missing = self.tunnel.missing();
    }

    /// A responder may use its session once the initiator has.
    fn confirm(&mut self, now: Instant) {
        if !self.established {
            self.established = self.tunnel.is_established(now);
        }
    }
}
