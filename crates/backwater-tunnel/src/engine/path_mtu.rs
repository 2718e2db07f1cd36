//! How long a datagram to a peer may be.

use std::time::{Duration, Instant};

use super::{lengths::OVERHEAD, wireguard::kind};

/// An MTU that an ICMP message has told is believed for this long (RFC 1191, section 6.3).
const LIFETIME: Duration = Duration::from_secs(600);

/// A datagram from the peer that is longer than the learnt MTU disproves it, but not before this time has passed: the two
/// directions may differ, and the next ICMP message costs packets.
const SETTLED: Duration = Duration::from_secs(60);

/// No ICMP message lowers the MTU below this: IPv6 has no less (RFC 8200, section 5).
const LEAST: u32 = 1280;

/// The Internet carries no longer packets.
const INTERNET: u32 = 1500;

/// Data messages that may follow one until an ICMP message about it arrives: what a path of 1 Gbit/s takes in 45 ms. On a faster
/// or longer path the first ICMP messages come too late. The packets inside are lost until TCP slows down; then one is in time.
const LATELY: u64 = 4096;

/// The path to a peer, as far as its MTU goes. All MTUs are of the outer packet, in bytes.
#[derive(Debug, Default)]
pub(crate) struct PathMtu {
    /// Bytes of the headers outside of WireGuard's.
    outer: usize,
    /// Of this host's route to the peer; `None`: not known.
    route: Option<u32>,
    /// What an ICMP message told.
    learnt: Option<(u32, Instant)>,
    /// The latest datagram of the session in use, and of the one before it.
    sent: [Option<Sent>; 2],
}

/// A data message (WireGuard, section 5.4.6).
#[derive(Clone, Copy, Debug)]
struct Sent {
    receiver: [u8; 4],
    counter: u64,
}

impl PathMtu {
    /// Begins anew for a path with so many bytes of headers outside of WireGuard's.
    pub(crate) fn reset(&mut self, outer: usize) {
        *self = Self { outer, sent: self.sent, ..Self::default() };
    }

    /// Sets the MTU of this host's route. Returns whether it is another one than before.
    pub(crate) fn set_route(&mut self, mtu: Option<u32>) -> bool {
        std::mem::replace(&mut self.route, mtu) != mtu
    }

    /// The MTU of this host's route, where known.
    pub(crate) fn route(&self) -> Option<u32> {
        self.route
    }

    /// Data messages were sent, of which this is the first.
    pub(crate) fn on_sent(&mut self, message: &[u8], count: u64) {
        let Some(Sent { receiver, counter }) = Sent::parse(message) else { return };
        let [latest, before] = &mut self.sent;
        if latest.is_some_and(|latest| latest.receiver != receiver) {
            *before = *latest;
        }
        *latest = Some(Sent { receiver, counter: counter + count.saturating_sub(1) });
    }

    /// Learns from an ICMP message that only packets of `mtu` bytes pass. `quoted`: the first bytes of the UDP payload that the
    /// message is about. Returns whether it was believed: it must quote a data message that was sent lately, with the index by
    /// which the peer knows the session.
    ///
    /// A sender that does not see the path has to guess both. The peer chooses the index at random (32 bits). The counter begins at 0
    /// with each session, so that it adds little on a path with little traffic.
    pub(crate) fn learn(&mut self, now: Instant, mtu: u32, quoted: &[u8]) -> bool {
        let was_sent = Sent::parse(quoted).is_some_and(|quoted| {
            let lately = |sent: &Sent| {
                sent.receiver == quoted.receiver
                    && sent.counter.checked_sub(quoted.counter).is_some_and(|ago| ago < LATELY)
            };
            self.sent.iter().flatten().any(lately)
        });
        if was_sent {
            self.learnt = Some((mtu.max(LEAST), now));
        }
        was_sent
    }

    /// A datagram of `len` bytes of UDP payload came from the peer: what was learnt is forgotten if the path carries more.
    #[inline]
    pub(crate) fn on_received(&mut self, now: Instant, len: usize) {
        if let Some((mtu, since)) = self.learnt
            && len + self.headers() - OVERHEAD > mtu as usize
            && now.saturating_duration_since(since) >= SETTLED
        {
            self.learnt = None;
        }
    }

    /// The longest packet inside that needs no fragmentation outside, in bytes.
    pub(crate) fn fits(&self, now: Instant) -> usize {
        self.inside(self.learnt(now).into_iter().chain(self.route).min())
    }

    /// The longest packet inside that is sent at all, in bytes; the local host is told so for longer ones. `mtu_is_configured`:
    /// the operator wants packets that the route does not carry to be fragmented outside.
    pub(crate) fn longest(&self, now: Instant, is_v6_inside: bool, mtu_is_configured: bool) -> usize {
        let route = self.route.filter(|_| !mtu_is_configured);
        let told = self.inside(self.learnt(now).into_iter().chain(route).min());
        if is_v6_inside { told.max(LEAST as usize) } else { told }
    }

    /// Whether the kernel has to fragment datagrams on this path, or routers may have to. `mtu`: the device's, in bytes.
    pub(crate) fn needs_fragments(&self, now: Instant, mtu: usize, mtu_is_configured: bool) -> bool {
        let beyond = |outer: u32| mtu > self.inside(Some(outer));
        beyond(INTERNET) || mtu_is_configured && self.route.is_some_and(beyond) || self.fits(now) < LEAST as usize
    }

    /// Bytes before and after the packet inside.
    fn headers(&self) -> usize {
        self.outer + OVERHEAD
    }

    fn inside(&self, outer: Option<u32>) -> usize {
        outer.map_or(usize::MAX, |outer| (outer as usize).saturating_sub(self.headers()))
    }

    fn learnt(&self, now: Instant) -> Option<u32> {
        let (mtu, since) = self.learnt?;
        (now.saturating_duration_since(since) <= LIFETIME).then_some(mtu)
    }
}

impl Sent {
    fn parse(message: &[u8]) -> Option<Self> {
        let &[kind::DATA, _, _, _, a, b, c, d, ref counter @ ..] = message.first_chunk::<16>()? else { return None };
        Some(Self { receiver: [a, b, c, d], counter: u64::from_le_bytes(*counter.first_chunk()?) })
    }
}

#[cfg(test)]
mod tests;
