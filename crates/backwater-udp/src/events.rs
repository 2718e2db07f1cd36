use std::{
    collections::VecDeque,
    fmt,
    net::{IpAddr, SocketAddr},
    ops::Deref,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

/// An entry of the socket's error queue (`IP_RECVERR`, `IPV6_RECVERR`). Linux only.
///
/// All kinds but [`IcmpKind::LocalMtu`] are ICMP messages about a datagram that was sent earlier. An ICMP message never
/// costs another datagram: the sender or the receiver that reads it goes on. Anyone on the path, and some hosts off it, can
/// forge one, so treat it as a hint, and compare [`quoted`](Self::quoted) with what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Where the datagram was going. The port is 0 for an IPv4 [`IcmpKind::LocalMtu`] that the receiver of an unconnected
    /// socket reads before the sender does: the kernel does not record it.
    pub destination: SocketAddr,
    /// Who reported it, where known.
    pub reporter: Option<IpAddr>,
    /// What about.
    pub kind: IcmpKind,
    /// The first bytes of the UDP payload that the ICMP message quotes.
    pub quoted: IcmpQuote,
}

impl IcmpError {
    /// Whether it is an ICMP message, and not this host's kernel's own word.
    pub(crate) fn is_icmp(&self) -> bool {
        !matches!(self.kind, IcmpKind::LocalMtu { .. })
    }

    /// Whether the kernel says that a datagram to `to` was too large. If so, the event gets the port, which the kernel does not record.
    pub(crate) fn is_too_large_for(&mut self, to: SocketAddr) -> bool {
        let is_it = !self.is_icmp() && to.ip().to_canonical() == self.destination.ip();
        if is_it {
            self.destination = to;
        }
        is_it
    }
}

/// What an ICMP message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IcmpKind {
    /// The destination, or something on the way, does not take it; the numbers are ICMP's or, for IPv6, ICMPv6's.
    Unreachable {
        /// The type.
        icmp_type: u8,
        /// The code.
        code: u8,
    },
    /// It was larger than a link on the way takes.
    PacketTooBig {
        /// What that link takes, in bytes, IP header included.
        mtu: u32,
    },
    /// This host's kernel refused it with `EMSGSIZE`: it was larger than the MTU of the route (`SO_EE_ORIGIN_LOCAL`). Not
    /// received from anyone, so not forged. The send that failed has counted it as
    /// [`TooLarge`](crate::DropReason::TooLarge).
    LocalMtu {
        /// The MTU of the route in bytes, IP header included.
        mtu: u32,
    },
}

/// The first bytes of a datagram that an ICMP message quotes, 32 at most.
///
/// Empty where the message quotes no more than the headers, which is all that RFC 792 asks for.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct IcmpQuote {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl IcmpQuote {
    /// Bytes that are kept.
    pub const MAX: usize = 32;
}

impl From<&[u8]> for IcmpQuote {
    /// Keeps the first [`MAX`](Self::MAX) bytes.
    fn from(payload: &[u8]) -> Self {
        let mut quoted = Self::default();
        for (kept, byte) in quoted.bytes.iter_mut().zip(payload) {
            *kept = *byte;
            quoted.len += 1;
        }
        quoted
    }
}

impl Deref for IcmpQuote {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or_default()
    }
}

impl fmt::Debug for IcmpQuote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Events that wait for the owner, at most.
const MAX_EVENTS: usize = 64;

/// A bounded queue. The lock is taken only when there is an event, or may be.
#[derive(Default)]
pub(crate) struct Events {
    some: AtomicBool,
    /// ICMP messages that were read, kept or not.
    icmp_errors: AtomicU64,
    queue: Mutex<VecDeque<IcmpError>>,
}

/// The events while somebody empties the socket's error queue into them.
pub(crate) struct Draining<'a> {
    events: &'a Events,
    queue: MutexGuard<'a, VecDeque<IcmpError>>,
}

impl Events {
    /// Calls `drain`, after any other that is at it, so that what has left the error queue is counted. How many ICMP messages
    /// were ever read.
    pub(crate) fn drain(&self, drain: impl FnOnce(&mut Draining<'_>)) -> u64 {
        drain(&mut Draining { events: self, queue: self.queue() });
        self.icmp_errors()
    }

    /// How many ICMP messages were ever read.
    pub(crate) fn icmp_errors(&self) -> u64 {
        self.icmp_errors.load(Relaxed)
    }

    pub(crate) fn pop(&self) -> Option<IcmpError> {
        if !self.some.load(Relaxed) {
            return None;
        }
        let mut queue = self.queue();
        let event = queue.pop_front();
        self.some.store(!queue.is_empty(), Relaxed);
        event
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<IcmpError>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Draining<'_> {
    /// Returns whether there was room.
    pub(crate) fn push(&mut self, event: IcmpError) -> bool {
        // Every datagram that is too large makes one: they must not take the place of ICMP messages.
        if event.is_icmp() {
            self.events.icmp_errors.fetch_add(1, Relaxed);
        } else if self.queue.back() == Some(&event) {
            return true;
        }
        let room = self.queue.len() < MAX_EVENTS;
        if room {
            self.queue.push_back(event);
            self.events.some.store(true, Relaxed);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_bounded_and_in_order() {
        let events = Events::default();
        let event = |port| IcmpError {
            destination: SocketAddr::from(([127, 0, 0, 1], port)),
            reporter: None,
            kind: IcmpKind::PacketTooBig { mtu: 1280 },
            quoted: IcmpQuote::default(),
        };
        assert_eq!(events.pop(), None);
        let read = events.drain(|events| {
            for port in 0..MAX_EVENTS as u16 {
                assert!(events.push(event(port)));
            }
            assert!(!events.push(event(999)));
        });
        assert_eq!(read, MAX_EVENTS as u64 + 1);
        for port in 0..MAX_EVENTS as u16 {
            assert_eq!(events.pop(), Some(event(port)));
        }
        assert_eq!(events.pop(), None);
    }

    #[test]
    fn a_route_that_is_too_small_for_many_datagrams_in_a_row_is_told_once() {
        let events = Events::default();
        let event = |mtu| IcmpError {
            destination: SocketAddr::from(([127, 0, 0, 1], 9)),
            reporter: None,
            kind: IcmpKind::LocalMtu { mtu },
            quoted: IcmpQuote::default(),
        };
        let read = events.drain(|events| {
            assert!([1500, 1500, 1500, 1400, 1500].into_iter().all(|mtu| events.push(event(mtu))));
        });
        assert_eq!(read, 0, "they are no ICMP messages");
        let told: Vec<_> = std::iter::from_fn(|| events.pop()).collect();
        assert_eq!(told, [1500, 1400, 1500].map(event));
    }

    #[test]
    fn only_the_kernels_own_word_about_the_same_address_says_that_a_datagram_is_too_large() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let local = IcmpKind::LocalMtu { mtu: 1280 };
        for (kind, of, to, expected) in [
            (local, "192.0.2.1:0", "192.0.2.1:9", true),
            (local, "192.0.2.1:0", "[::ffff:192.0.2.1]:9", true),
            (local, "192.0.2.2:0", "192.0.2.1:9", false),
            (IcmpKind::PacketTooBig { mtu: 1280 }, "192.0.2.1:0", "192.0.2.1:9", false),
        ] {
            let mut event = IcmpError { destination: address(of), reporter: None, kind, quoted: IcmpQuote::default() };
            assert_eq!(event.is_too_large_for(address(to)), expected, "{of} {to} {kind:?}");
            assert_eq!(event.destination, address(if expected { to } else { of }));
        }
    }

    #[test]
    fn a_quote_keeps_the_first_bytes() {
        let payload: Vec<u8> = (0..40).collect();
        for (len, kept) in [(0, 0), (1, 1), (32, 32), (40, 32)] {
            assert_eq!(*IcmpQuote::from(&payload[..len]), payload[..kept]);
        }
    }
}
