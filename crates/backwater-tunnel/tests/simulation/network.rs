//! The network between the nodes: it loses, doubles, delays and reorders datagrams, and carries none that is too long.

use std::{cmp::Reverse, collections::BinaryHeap, net::SocketAddr, time::Duration};

use super::random::Random;

/// IPv4 or IPv6, and UDP.
fn overhead(to: SocketAddr) -> usize {
    if to.is_ipv6() { 48 } else { 28 }
}

/// How bad it is.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// One datagram in so many is lost; 0: none. The same for the others.
    pub lost: u64,
    /// Arrives twice.
    pub doubled: u64,
    /// Arrives late, by up to ten seconds.
    pub late: u64,
    /// Arrives with a wrong byte.
    pub damaged: u64,
    /// Every datagram takes so long, in microseconds, and a random part of it more.
    pub delay: u64,
    /// The longest packet, in bytes.
    pub mtu: usize,
}

impl Faults {
    /// Nothing is wrong: ten milliseconds, in order.
    pub const NONE: Self = Self { lost: 0, doubled: 0, late: 0, damaged: 0, delay: 10_000, mtu: 1500 };
}

/// A datagram on its way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Datagram {
    /// The source address, after NAT.
    pub from: SocketAddr,
    /// The destination address.
    pub to: SocketAddr,
    /// UDP payload.
    pub bytes: Vec<u8>,
    /// It is as its sender sent it.
    pub is_genuine: bool,
}

/// What became of datagrams.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Put in by a node.
    pub sent: u64,
    /// Copies that the network made, or somebody else sent.
    pub added: u64,
    /// Lost in the network, or too long for it.
    pub lost: u64,
    /// At an address that no node has (any more), or at a node that is suspended.
    pub unreachable: u64,
    /// Given to a node.
    pub arrived: u64,
}

/// The network.
#[derive(Debug)]
pub struct Network {
    /// Those in force.
    pub faults: Faults,
    /// What became of datagrams.
    pub count: Count,
    on_their_way: BinaryHeap<Reverse<(Duration, u64, Datagram)>>,
    order: u64,
}

impl Network {
    /// One without faults.
    pub fn new() -> Self {
        Self { faults: Faults::NONE, count: Count::default(), on_their_way: BinaryHeap::new(), order: 0 }
    }

    /// Carries a datagram. Returns the MTU if it is too long for that.
    pub fn send(&mut self, now: Duration, random: &mut Random, datagram: Datagram) -> Option<u32> {
        self.count.sent += 1;
        let faults = self.faults;
        if datagram.bytes.len() + overhead(datagram.to) > faults.mtu {
            self.count.lost += 1;
            return Some(faults.mtu as u32);
        }
        if random.one_in(faults.lost) {
            self.count.lost += 1;
            return None;
        }
        if random.one_in(faults.doubled) {
            self.add(now, random, datagram.clone());
        }
        let mut datagram = datagram;
        if random.one_in(faults.damaged) {
            let at = random.below(datagram.bytes.len() as u64) as usize;
            datagram.bytes[at] ^= 1 << random.below(8);
            datagram.is_genuine = false;
        }
        self.put(now, random, datagram);
        None
    }

    /// Carries one that no node has sent, or a copy.
    pub fn add(&mut self, now: Duration, random: &mut Random, datagram: Datagram) {
        self.count.added += 1;
        self.put(now, random, datagram);
    }

    fn put(&mut self, now: Duration, random: &mut Random, datagram: Datagram) {
        let faults = self.faults;
        let mut at = now + Duration::from_micros(faults.delay);
        // Without faults nothing is out of order.
        if faults.late > 0 {
            at += Duration::from_micros(random.below(faults.delay + 1));
            if random.one_in(faults.late) {
                at += Duration::from_millis(random.below(10_000));
            }
        }
        self.order += 1;
        self.on_their_way.push(Reverse((at, self.order, datagram)));
    }

    /// When the next one arrives.
    pub fn next(&self) -> Option<Duration> {
        self.on_their_way.peek().map(|Reverse((at, _, _))| *at)
    }

    /// The next one, if it has arrived by now.
    pub fn arrive(&mut self, now: Duration) -> Option<Datagram> {
        if self.next()? > now {
            return None;
        }
        self.on_their_way.pop().map(|Reverse((_, _, datagram))| datagram)
    }

    /// Those on their way.
    pub fn waiting(&self) -> u64 {
        self.on_their_way.len() as u64
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}
