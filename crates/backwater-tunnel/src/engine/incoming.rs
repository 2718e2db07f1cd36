//! What arrives.

use std::time::Instant;

use backwater_udp::RecvDatagram;
use tracing::info;

use super::{
    Engine,
    initiator::{self, Initiator},
    peer::{Heard, kind, name_of},
};

/// What a datagram was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A message of a peer's.
    Accepted,
    /// A handshake message that made a session with the peer of this number. The driver may note the time
    /// ([`Engine::set_last_handshake`]).
    Session(usize),
    /// Nothing that this side wants. It is counted.
    Refused,
}

impl Engine {
    #[inline]
    pub(super) fn take_datagram(&mut self, now: Instant, datagram: RecvDatagram<'_>) -> Received {
        let number = match *datagram.payload {
            [kind::DATA | kind::COOKIE, _, _, _, a, b, c, d, ..]
            | [kind::RESPONSE, _, _, _, _, _, _, _, a, b, c, d, ..] => {
                self.indices.peer(u32::from_le_bytes([a, b, c, d]))
            }
            [kind::INITIATION, ..] => {
                let Self { limiter, initiations, private_key, public_key, messages, .. } = self;
                match initiator::of(limiter, initiations, private_key, public_key, datagram, messages) {
                    Initiator::Known(key) => self.by_key.get(&key).copied(),
                    Initiator::Doubtful => {
                        self.counters.cookies_sent += 1;
                        return Received::Refused;
                    }
                    Initiator::Nobody => None,
                }
            }
            _ => None,
        };
        let kind = datagram.payload.first().copied();
        let Some((number, peer)) = number.and_then(|number| Some((number, self.peers.get_mut(number)?))) else {
            match kind {
                Some(kind::INITIATION) => self.counters.handshakes_refused += 1,
                _ => self.counters.strange += 1,
            }
            return Received::Refused;
        };
        let allows = |from| self.allowed.owner(from, &mut self.last_source) == Some(number);
        match peer.receive(now, datagram, &mut self.coalescer, &mut self.messages, allows) {
            Heard::Good => Received::Accepted,
            Heard::Handshake => {
                info!(peer = %name_of(&peer.public_key), endpoint = %datagram.source, "session established");
                Received::Session(number)
            }
            Heard::Cookie => {
                self.counters.cookies_sent += 1;
                Received::Refused
            }
            Heard::Bad => {
                if kind != Some(kind::DATA) {
                    self.counters.handshakes_refused += 1;
                }
                Received::Refused
            }
        }
    }
}
