//! What comes from a peer.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Instant, SystemTime},
};

use backwater_udp::RecvDatagram;
use boringtun::noise::{TunnResult, errors::WireGuardError};

use super::{Peer, Received, Tools, kind, push};
use crate::{
    engine::packet::ecn,
    io::path::{MAX_URGENT, Path},
};

impl Peer {
    /// Takes a datagram that says it is from this peer. A packet in it goes to the coalescer, if `allows` its source.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        datagram: RecvDatagram<'_>,
        path: &mut Path,
        tools: &mut Tools,
        allows: impl FnOnce(IpAddr) -> bool,
    ) -> Received {
        let RecvDatagram { source, local_ip, ecn: outer, payload } = datagram;
        let message = payload.first().copied().unwrap_or_default();
        let Some(space) = tools.coalescer.space(payload.len().max(MAX_URGENT)) else { return Received::Bad };
        let (packet, from) = match self.tunn.decapsulate(Some(source.ip()), payload, space) {
            TunnResult::WriteToTunnelV4(packet, from) => (packet, IpAddr::from(from)),
            TunnResult::WriteToTunnelV6(packet, from) => (packet, IpAddr::from(from)),
            TunnResult::WriteToNetwork(answer) => {
                let is_cookie = answer.first() == Some(&kind::COOKIE);
                push(&mut tools.urgent, Some(source), answer);
                if is_cookie {
                    return Received::Cookie;
                }
                self.heard(now, source, local_ip, path);
                self.handshaken(now, message, tools);
                return Received::Handshake;
            }
            // A keepalive, or a cookie, which anyone can send who saw the initiation.
            TunnResult::Done => {
                if message == kind::DATA {
                    self.count_received(payload);
                    self.heard(now, source, local_ip, path);
                    self.confirm();
                }
                return Received::Good;
            }
            TunnResult::Err(error) => {
                if matches!(error, WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter) {
                    self.counters.replayed += 1;
                } else if message == kind::DATA {
                    self.counters.invalid += 1;
                }
                return Received::Bad;
            }
        };
        let len = packet.len();
        self.path_mtu.on_received(now, payload.len());
        self.unanswered.get_or_insert(now);
        self.count_received(payload);
        if !allows(from) {
            self.counters.source_not_allowed += 1;
        } else if !ecn::decapsulate(packet, outer) {
            self.counters.congested += 1;
        } else {
            self.counters.bytes_received += len as u64;
            tools.coalescer.push(len);
        }
        self.heard(now, source, local_ip, path);
        self.confirm();
        Received::Good
    }

    /// An authenticated message came from this address to this one of the host's: the peer is there.
    fn heard(&mut self, now: Instant, source: SocketAddr, local_ip: Option<IpAddr>, path: &mut Path) {
        self.heard = Some(now);
        self.endpoints.on_answer(source);
        self.moved(source, local_ip, path);
    }

    /// A message of a handshake was good, and answered.
    fn handshaken(&mut self, now: Instant, message: u8, tools: &mut Tools) {
        self.counters.handshakes += 1;
        self.last_handshake = Some(SystemTime::now());
        if message == kind::RESPONSE {
            if let Some(initiated) = self.initiated.take() {
                self.rtt = Some(now.saturating_duration_since(initiated));
            }
            self.confirm();
        }
        // What was kept when the session before this one ended.
        while let TunnResult::WriteToNetwork(kept) = self.tunn.decapsulate(None, &[], &mut tools.message) {
            push(&mut tools.urgent, self.endpoint, kept);
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
