//! What arrives.

use std::time::Instant;

use backwater_udp::RecvDatagram;
use tracing::info;

use super::{
    Engine,
    peer::{Heard, Origin, name_of},
    route::Route,
    wireguard::{Initiation, guard::Judgement, kind},
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
    pub(super) fn take_datagram(&mut self, now: Instant, origin: Origin, datagram: RecvDatagram<'_>) -> Received {
        let mut initiation = None;
        let number = match *datagram.payload {
            [kind::DATA | kind::COOKIE, _, _, _, a, b, c, d, ..]
            | [kind::RESPONSE, _, _, _, _, _, _, _, a, b, c, d, ..] => {
                self.messages.indices.peer(u32::from_le_bytes([a, b, c, d]))
            }
            [kind::INITIATION, ..] => {
                let is_known = |ip| self.peers.iter().any(|peer| peer.is_at(ip));
                match self.guard.judge(now, datagram.source, datagram.payload, is_known) {
                    Judgement::Decrypt => {
                        initiation = Initiation::open(&self.private_key, &self.public_key, datagram.payload);
                        initiation.as_ref().and_then(|it| self.by_key.get(&it.public_key).copied())
                    }
                    Judgement::Cookie(reply) => {
                        self.counters.cookies_sent += 1;
                        let way = match origin {
                            Origin::Direct => Some(Route::Direct(datagram.source)),
                            Origin::Relayed => self.relayed_to(datagram.source),
                        };
                        way.into_iter().for_each(|route| self.messages.push(route, &reply));
                        return Received::Refused;
                    }
                    Judgement::Refuse => None,
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
        let heard = match initiation {
            Some(initiation) => peer.respond(now, origin, datagram, initiation, &mut self.messages),
            None => peer.receive(now, origin, datagram, &mut self.coalescer, &mut self.messages, allows),
        };
        match heard {
            Heard::Good => Received::Accepted,
            Heard::Handshake => {
                info!(peer = %name_of(&peer.public_key), endpoint = %datagram.source, "session established");
                Received::Session(number)
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
