//! What comes from a peer.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use backwater_udp::RecvDatagram;
use boringtun::noise::{TunnResult, errors::WireGuardError};

use super::{Heard, Peer, kind};
use crate::engine::{
    lengths::MAX_DATAGRAM,
    messages::{MAX_MESSAGE, Messages},
    packet::{coalesce::Coalescer, ecn},
    route::Route,
};

impl Peer {
    /// Takes a datagram that says it is from this peer. A packet in it goes to the coalescer, if `allows` its source.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        datagram: RecvDatagram<'_>,
        coalescer: &mut Coalescer,
        messages: &mut Messages,
        allows: impl FnOnce(IpAddr) -> bool,
    ) -> Heard {
        let RecvDatagram { source, local_ip, ecn: outer, payload } = datagram;
        let message = payload.first().copied().unwrap_or_default();
        let Some(space) = coalescer.space(payload.len().max(MAX_MESSAGE)) else { return Heard::Bad };
        let (packet, from) = match self.tunn.decapsulate(Some(source.ip()), payload, space) {
            TunnResult::WriteToTunnelV4(packet, from) => (packet, IpAddr::from(from)),
            TunnResult::WriteToTunnelV6(packet, from) => (packet, IpAddr::from(from)),
            TunnResult::WriteToNetwork(answer) => {
                let is_cookie = answer.first() == Some(&kind::COOKIE);
                messages.push(source, answer);
                if is_cookie {
                    return Heard::Cookie;
                }
                self.heard(now, source, local_ip);
                self.handshaken(now, message, messages);
                return Heard::Handshake;
            }
            // A keepalive, or a cookie, which anyone can send who saw the initiation.
            TunnResult::Done => {
                if message == kind::DATA {
                    self.count_received(payload);
                    self.heard(now, source, local_ip);
                    self.confirm();
                }
                return Heard::Good;
            }
            TunnResult::Err(error) => {
                if matches!(error, WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter) {
                    self.counters.replayed += 1;
                } else if message == kind::DATA {
                    self.counters.invalid += 1;
                }
                return Heard::Bad;
            }
        };
        let len = packet.len();
        self.path.mtu.on_received(now, payload.len());
        self.unanswered.get_or_insert(now);
        self.count_received(payload);
        if !allows(from) {
            self.counters.source_not_allowed += 1;
        } else if !ecn::decapsulate(packet, outer) {
            self.counters.congested += 1;
        } else {
            self.counters.bytes_received += len as u64;
            coalescer.push(len);
        }
        self.heard(now, source, local_ip);
        self.confirm();
        Heard::Good
    }

    /// An authenticated message came from this address to this one of the host's: the peer is there.
    fn heard(&mut self, now: Instant, source: SocketAddr, local_ip: Option<IpAddr>) {
        self.heard = Some(now);
        self.endpoints.on_answer(source);
        self.moved(Route::Direct(source), local_ip);
    }

    /// A message of a handshake was good, and answered.
    fn handshaken(&mut self, now: Instant, message: u8, messages: &mut Messages) {
        self.counters.handshakes += 1;
        if message == kind::RESPONSE {
            if let Some(initiated) = self.initiated.take() {
                self.rtt = Some(now.saturating_duration_since(initiated));
            }
            self.confirm();
        }
        // What was kept when the session before this one ended.
        let mut buffer = vec![0; MAX_DATAGRAM];
        while let TunnResult::WriteToNetwork(kept) = self.tunn.decapsulate(None, &[], &mut buffer) {
            if let Some(route) = self.path.route() {
                messages.push(route.destination(), kept);
            }
        }
    }

    /// Data has come.
    fn count_received(&mut self, payload: &[u8]) {
        self.counters.datagrams_received += 1;
        let missing = self.counters.datagrams_missing.saturating_add_signed(self.numbers.come(payload));
        self.counters.datagrams_missing = missing;
    }

    /// A responder may use its session once the initiator has.
    fn confirm(&mut self) {
        if !self.established {
            self.established = self.tunn.time_since_last_handshake().is_some();
        }
    }
}
