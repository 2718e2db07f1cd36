use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// An ICMP message about a datagram that was sent earlier. Linux only.
///
/// It never costs another datagram: the sender and the receiver that come across it go on. Anyone on the path, and some
/// off it, can forge one, so treat it as a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Where the datagram was going.
    pub destination: SocketAddr,
    /// Who reported it, where known.
    pub reporter: Option<IpAddr>,
    /// What about.
    pub kind: IcmpKind,
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
}

/// Events that wait for the owner, at most.
const MAX_EVENTS: usize = 64;

/// A bounded queue. The lock is taken only when there is an event, or may be.
#[derive(Default)]
pub(crate) struct Events {
    some: AtomicBool,
    queue: Mutex<VecDeque<IcmpError>>,
}

impl Events {
    /// Returns whether there was room.
    pub(crate) fn push(&self, event: IcmpError) -> bool {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let room = queue.len() < MAX_EVENTS;
        if room {
            queue.push_back(event);
            self.some.store(true, Relaxed);
        }
        room
    }

    pub(crate) fn pop(&self) -> Option<IcmpError> {
        if !self.some.load(Relaxed) {
            return None;
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let event = queue.pop_front();
        self.some.store(!queue.is_empty(), Relaxed);
        event
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
        };
        assert_eq!(events.pop(), None);
        for port in 0..MAX_EVENTS as u16 {
            assert!(events.push(event(port)));
        }
        assert!(!events.push(event(999)));
        for port in 0..MAX_EVENTS as u16 {
            assert_eq!(events.pop(), Some(event(port)));
        }
        assert_eq!(events.pop(), None);
    }
}
