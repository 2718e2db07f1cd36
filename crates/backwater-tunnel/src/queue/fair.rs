//! Whose turn it is (RFC 8290).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::codel::{Codel, INTERVAL, Verdict};
use crate::packet::{ecn, header::Packet, virtio};

/// The packets that wait for one path: FQ-CoDel of RFC 8290 over whole packets as the TUN device gives them, that is a
/// `virtio_net_hdr` and an IP packet of up to 64 KiB that may stand for many segments.
///
/// Flows are told apart by a hash of addresses, protocol and ports, share the path byte by byte (deficit round robin), and
/// have a CoDel each; one that has nothing waiting goes first. The caller bounds it in bytes, and reads no packet that
/// [`has_room`](Self::has_room) has no room for.
///
/// Beyond the RFC, an ECN-capable packet is marked, too, when more than half of the bound waits behind it and its flow has its
/// share of that. CoDel begins to signal only after an interval, in which slow start doubles what it sends several times: it
/// would reach the bound, and then lose. Half of it is left for what is sent until the mark is heeded.
#[derive(Debug)]
pub struct Fair {
    seed: u64,
    flows: Vec<FlowQueue>,
    /// Indices of flows that were empty when their packet came, and of the others.
    new: VecDeque<u8>,
    old: VecDeque<u8>,
    bytes: usize,
    packets: usize,
    /// Since when more than half of the bound waits.
    crowded_since: Option<Instant>,
    counters: Counters,
}

/// What has become of packets. `enqueued == dequeued + dropped + overflowed + Fair::packets()`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    /// Packets that came in.
    pub enqueued: u64,
    /// Packets that were given back, be it without their first segment.
    pub dequeued: u64,
    /// Of these, packets in which congestion experienced (CE) was set, or was set already when it should have been.
    pub marked: u64,
    /// Of these, packets whose first segment is to be dropped since CoDel said so.
    pub first_segment_dropped: u64,
    /// Packets that were dropped since CoDel said so.
    pub dropped: u64,
    /// Packets that were dropped since the bound was reached.
    pub overflowed: u64,
}

/// A packet whose turn it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Dequeued {
    /// As it came in, but for a mark in the IP header.
    pub packet: Box<[u8]>,
    /// CoDel drops one segment of this packet of many: the first is to be left out when it is taken apart.
    pub drop_first_segment: bool,
    /// How long it was in the queue.
    pub waited: Duration,
}

/// Flows of the same hash share a queue and so a CoDel: of 10 flows, one in 30 does. 256 of them cost 32 KiB.
const FLOWS: usize = 1 << u8::BITS;

/// Bytes that a flow may send in a round (RFC 8290, section 5.2.4). A packet of many segments is paid for over many rounds.
const QUANTUM: i64 = 1514;

/// Time for CoDel to signal and for TCP's slow start to be cut as often as it takes; with less, the simulation's loses whole
/// trains here.
const TO_HEED: Duration = INTERVAL.saturating_mul(5);

/// Places that a flow keeps while it has nothing, so that its next packet needs no memory but its own.
const KEPT: usize = 8;

#[derive(Debug, Default)]
struct FlowQueue {
    packets: VecDeque<Waiting>,
    bytes: usize,
    /// Bytes that it may still send in this round; below 0, those that it sent too early.
    deficit: i64,
    /// In one of the two lists.
    is_listed: bool,
    codel: Codel,
}

/// Memory of its own and as much as it needs, which costs 0.1 µs, a tenth of what it takes to encrypt a packet of 1,400 bytes.
/// In buffers of 64 KiB a bound on bytes would not bound memory.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    packet: Box<[u8]>,
}

impl Fair {
    /// An empty queue. `seed` is a random number, so that nobody can choose flows that share a queue with others.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            flows: std::iter::repeat_with(FlowQueue::default).take(FLOWS).collect(),
            new: VecDeque::new(),
            old: VecDeque::new(),
            bytes: 0,
            packets: 0,
            crowded_since: None,
            counters: Counters::default(),
        }
    }

    /// Bytes that wait, `virtio_net_hdr`s included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no packet waits.
    pub fn is_empty(&self) -> bool {
        self.packets == 0
    }

    /// Packets that wait.
    pub fn packets(&self) -> usize {
        self.packets
    }

    /// What has become of packets since the queue was made.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether another packet is to be read for this path: while fewer than `bound` bytes wait. The device holds the others.
    ///
    /// Also, in spite of the bound, once more than half of it has waited for 500 ms and the flow that has most of it is not
    /// ECN-capable. It had time to heed its losses; what goes on as before is to be lost here, at its own expense, since the
    /// device drops everybody's packets alike: beside a flood, TCP would starve (a test of the simulation shows both). A flow
    /// that is ECN-capable is left to the device, so that one that heeds marks loses nothing; one that does not can starve the
    /// others.
    pub fn has_room(&self, now: Instant, bound: usize) -> bool {
        if self.bytes < bound {
            return true;
        }
        let heeded = self.crowded_since.is_some_and(|since| now.saturating_duration_since(since) >= TO_HEED);
        let fattest = self.fattest().filter(|_| heeded);
        fattest.and_then(|index| self.flow(index).packets.front()).is_some_and(|head| !head.is_ecn_capable())
    }

    /// Puts a packet at the end of its flow. If `bound` bytes or more wait, the flow that has most of them loses from its head
    /// before (RFC 8290, section 4.1), so that never more than the bound and one packet wait.
    ///
    /// Where one packet was taken apart ([`Rate::longest_train`](super::rate::Rate::longest_train)), the bound is for the
    /// first of its segments, and `usize::MAX` for the others: they were admitted with it.
    pub fn enqueue(&mut self, now: Instant, packet: &[u8], bound: usize) {
        self.make_room(bound);
        let index = self.flow_of(packet);
        let flow = &mut self.flows[usize::from(index)];
        if !flow.is_listed {
            flow.is_listed = true;
            flow.deficit = QUANTUM;
            self.new.push_back(index);
        }
        flow.bytes += packet.len();
        flow.packets.push_back(Waiting { since: now, packet: packet.into() });
        self.bytes += packet.len();
        self.packets += 1;
        self.counters.enqueued += 1;
        if self.is_crowded(bound) {
            self.crowded_since.get_or_insert(now);
        }
    }

    /// Takes the packet whose turn it is. `bound` is that of [`enqueue`](Self::enqueue), and `mtu` is the TUN device's, in bytes.
    /// Packets that CoDel drops on the way are counted.
    pub fn dequeue(&mut self, now: Instant, bound: usize, mtu: usize) -> Option<Dequeued> {
        loop {
            let is_new = !self.new.is_empty();
            let index = *self.new.front().or(self.old.front())?;
            if self.flow(index).deficit <= 0 {
                self.flows[usize::from(index)].deficit += QUANTUM;
                self.end_turn(is_new);
                self.old.push_back(index);
                continue;
            }
            let Some(mut head) = self.pop(index) else {
                self.on_empty(index, is_new);
                continue;
            };
            if !self.is_crowded(bound) {
                self.crowded_since = None;
            }
            let waited = now.saturating_duration_since(head.since);
            let ecn_capable = head.is_ecn_capable();
            let crowds = self.crowds(index, head.packet.len(), bound);
            let flow = &mut self.flows[usize::from(index)];
            let verdict = flow.codel.judge(now, waited, self.bytes, mtu, ecn_capable);
            let drop_first_segment = verdict == Verdict::Drop && head.is_train();
            if verdict == Verdict::Drop && !drop_first_segment {
                self.counters.dropped += 1;
                continue;
            }
            flow.deficit -= head.packet.len() as i64;
            if ecn_capable && (verdict == Verdict::Mark || crowds) {
                ecn::mark(ip_mut(&mut head.packet));
                self.counters.marked += 1;
            }
            self.counters.first_segment_dropped += u64::from(drop_first_segment);
            self.counters.dequeued += 1;
            return Some(Dequeued { packet: head.packet, drop_first_segment, waited });
        }
    }

    /// A flow whose turn it is has nothing: it leaves the lists, but not before the others had their turn if it was new, or it
    /// would always come first (RFC 8290, section 4.2).
    fn on_empty(&mut self, index: u8, is_new: bool) {
        self.end_turn(is_new);
        let others_wait = !self.old.is_empty();
        let flow = &mut self.flows[usize::from(index)];
        flow.codel.on_empty();
        if is_new && others_wait {
            self.old.push_back(index);
        } else {
            flow.is_listed = false;
            flow.packets.shrink_to(KEPT);
        }
    }

    fn is_crowded(&self, bound: usize) -> bool {
        self.bytes > bound / 2
    }

    /// Whether more than half of the bound waits behind a packet of `len` bytes, and its flow has its share of that.
    fn crowds(&self, index: u8, len: usize, bound: usize) -> bool {
        let flows = self.new.len() + self.old.len();
        self.is_crowded(bound) && (self.flow(index).bytes + len).saturating_mul(flows) >= self.bytes
    }

    /// Drops all that waits, as if nothing might.
    pub fn clear(&mut self) {
        self.make_room(1);
    }

    /// Drops until fewer than `bound` bytes wait. A flow that is found to have most loses up to half of it at a time, so that
    /// looking for it costs little beside what it loses.
    fn make_room(&mut self, bound: usize) {
        while self.bytes >= bound {
            let Some(index) = self.fattest() else { return };
            let half = self.flow(index).bytes / 2;
            while self.bytes >= bound && self.flow(index).bytes > half {
                self.pop(index);
                self.counters.overflowed += 1;
            }
        }
    }

    /// The flow that has most bytes waiting. All that have any are listed.
    fn fattest(&self) -> Option<u8> {
        let listed = self.new.iter().chain(&self.old).copied();
        listed.filter(|index| !self.flow(*index).packets.is_empty()).max_by_key(|index| self.flow(*index).bytes)
    }

    fn pop(&mut self, index: u8) -> Option<Waiting> {
        let flow = &mut self.flows[usize::from(index)];
        let waiting = flow.packets.pop_front()?;
        flow.bytes -= waiting.packet.len();
        self.bytes -= waiting.packet.len();
        self.packets -= 1;
        Some(waiting)
    }

    fn flow(&self, index: u8) -> &FlowQueue {
        &self.flows[usize::from(index)]
    }

    fn end_turn(&mut self, is_new: bool) {
        if is_new {
            self.new.pop_front()
        } else {
            self.old.pop_front()
        };
    }

    /// What is no IP packet has a flow of its own.
    fn flow_of(&self, packet: &[u8]) -> u8 {
        Packet::parse(ip(packet)).map_or(0, |packet| packet.flow().hash(self.seed) as u8)
    }
}

impl Waiting {
    fn is_ecn_capable(&self) -> bool {
        ecn::of(ip(&self.packet)).is_some()
    }

    /// Whether it stands for many segments.
    fn is_train(&self) -> bool {
        self.packet.first_chunk().is_some_and(|header| virtio::Header::parse(header).gso_type != virtio::GSO_NONE)
    }
}

fn ip(packet: &[u8]) -> &[u8] {
    packet.get(virtio::LEN..).unwrap_or_default()
}

fn ip_mut(packet: &mut [u8]) -> &mut [u8] {
    packet.get_mut(virtio::LEN..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::codel::TARGET, *};
    use crate::packet::{checksum::Sum, header::protocol};

    const MTU: usize = 1420;
    const NO_BOUND: usize = usize::MAX;

    /// An IPv4 packet of `len` bytes from this port, in place of whose payload there is a number.
    fn packet(protocol: u8, port: u16, ecn: u8, len: usize, number: u32) -> Vec<u8> {
        let mut packet = vec![0; virtio::LEN + len.max(32)];
        let ip = &mut packet[virtio::LEN..];
        ip[..2].copy_from_slice(&[0x45, ecn]);
        ip[2..4].copy_from_slice(&(len.max(32) as u16).to_be_bytes());
        (ip[8], ip[9]) = (64, protocol);
        let sum = Sum::default().bytes(&ip[..20]).checksum();
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip[20..22].copy_from_slice(&port.to_be_bytes());
        ip[28..32].copy_from_slice(&number.to_be_bytes());
        packet
    }

    fn tcp(port: u16, number: u32) -> Vec<u8> {
        packet(protocol::TCP, port, 0, MTU, number)
    }

    fn port_and_number(packet: &[u8]) -> (u16, u32) {
        (u16::from_be_bytes([packet[30], packet[31]]), u32::from_be_bytes(packet[38..42].try_into().unwrap()))
    }

    fn order(queue: &mut Fair, now: Instant) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| queue.dequeue(now, NO_BOUND, MTU)).map(|next| port_and_number(&next.packet)).collect()
    }

    #[test]
    fn gives_back_what_came_in() {
        let (mut queue, now) = (Fair::new(1), Instant::now());
        let odd: [&[u8]; 5] = [&[], &[1], &[0; 9], &[0; 10], &[0xff; 70_000]];
        for packet in odd {
            queue.enqueue(now, packet, NO_BOUND);
        }
        assert_eq!((queue.packets(), queue.bytes()), (5, 70_020));
        for packet in odd {
            let next = queue.dequeue(now + TARGET, NO_BOUND, MTU).unwrap();
            assert_eq!((&*next.packet, next.drop_first_segment, next.waited), (packet, false, TARGET));
        }
        assert_eq!((queue.dequeue(now, NO_BOUND, MTU), queue.packets(), queue.bytes()), (None, 0, 0));
    }

    #[test]
    fn flows_take_turns_and_a_sparse_one_goes_first() {
        let (mut queue, now) = (Fair::new(1), Instant::now());
        for number in 0..100 {
            queue.enqueue(now, &tcp(1, number), NO_BOUND);
        }
        for number in 0..3 {
            queue.enqueue(now, &tcp(2, number), NO_BOUND);
        }
        let first: Vec<_> =
            (0..6).map(|_| port_and_number(&queue.dequeue(now, NO_BOUND, MTU).unwrap().packet)).collect();
        assert_eq!(first, [(1, 0), (1, 1), (2, 0), (2, 1), (1, 2), (2, 2)]);
        // A ping comes, and goes before all that waits.
        queue.enqueue(now, &packet(protocol::ICMP, 0, 0, 84, 7), NO_BOUND);
        let rest = order(&mut queue, now);
        assert_eq!(rest[0].1, 7);
        assert!(rest[1..].iter().map(|(_, number)| *number).eq(3..100));
    }

    #[test]
    fn a_train_is_paid_for_over_many_rounds() {
        let (mut queue, now) = (Fair::new(1), Instant::now());
        for number in 0..10 {
            queue.enqueue(now, &packet(protocol::TCP, 1, 0, 60_000, number), NO_BOUND);
        }
        for number in 0..400 {
            queue.enqueue(now, &tcp(2, number), NO_BOUND);
        }
        let mut bytes = [0; 2];
        while bytes[0] + bytes[1] < 900_000 {
            let next = queue.dequeue(now, NO_BOUND, MTU).unwrap().packet;
            bytes[usize::from(port_and_number(&next).0) - 1] += next.len();
        }
        assert!(bytes[0].abs_diff(bytes[1]) < 62_000, "{bytes:?}");
    }

    #[test]
    fn the_fattest_flow_loses_its_oldest() {
        let (mut queue, now) = (Fair::new(1), Instant::now());
        let bound = 20 * tcp(0, 0).len();
        for number in 0..5 {
            queue.enqueue(now, &tcp(1, number), bound);
        }
        for number in 0..50 {
            queue.enqueue(now, &tcp(2, number), bound);
        }
        assert_eq!((queue.packets(), queue.counters().overflowed), (20, 35));
        let (slim, fat): (Vec<_>, Vec<_>) = order(&mut queue, now).into_iter().partition(|(port, _)| *port == 1);
        assert!(slim.into_iter().map(|(_, number)| number).eq(0..5));
        assert!(fat.into_iter().map(|(_, number)| number).eq(35..50));
        // Where the bound fell, all go that are too many.
        for number in 0..15 {
            queue.enqueue(now, &tcp(1, number), bound);
        }
        queue.enqueue(now, &tcp(2, 0), 2 * tcp(0, 0).len());
        assert_eq!(queue.packets(), 2);
    }

    #[test]
    fn what_is_ecn_capable_is_marked_and_loses_nothing() {
        let (mut queue, start) = (Fair::new(1), Instant::now());
        for number in 0..300 {
            queue.enqueue(start, &packet(protocol::TCP, 1, 2, MTU, number), NO_BOUND);
        }
        for ms in 0..300 {
            let next = queue.dequeue(start + Duration::from_millis(10 + ms), NO_BOUND, MTU).unwrap().packet;
            assert_eq!(Sum::default().bytes(&next[10..30]).folded(), 0xffff);
        }
        let counters = queue.counters();
        assert_eq!((counters.marked, counters.dropped, counters.dequeued), (3, 0, 300));
    }

    #[test]
    fn what_is_not_loses_packets_or_the_first_segment_of_a_train() {
        for train in [false, true] {
            let (mut queue, start) = (Fair::new(1), Instant::now());
            for number in 0..300 {
                let mut packet = tcp(1, number);
                packet[1] = if train { virtio::GSO_TCPV4 } else { virtio::GSO_NONE };
                queue.enqueue(start, &packet, NO_BOUND);
            }
            let at = |ms: u64| start + Duration::from_millis(10 + ms);
            let taken: Vec<_> = (0..300).map_while(|ms| queue.dequeue(at(ms), NO_BOUND, MTU)).collect();
            let signals = [100, 200, 271];
            let counters = queue.counters();
            if train {
                assert_eq!((counters.dequeued, counters.first_segment_dropped, counters.dropped), (300, 3, 0));
                assert!(taken.iter().enumerate().all(|(ms, next)| next.drop_first_segment == signals.contains(&ms)));
            } else {
                assert_eq!((counters.dequeued, counters.first_segment_dropped, counters.dropped), (297, 0, 3));
                let numbers = taken.iter().map(|next| port_and_number(&next.packet).1);
                assert!(numbers.eq((0..300).filter(|number| ![100, 201, 273].contains(number))));
            }
        }
    }

    #[test]
    fn half_of_the_bound_is_marked_at_once_but_not_for_a_slim_flow() {
        let (mut queue, now) = (Fair::new(1), Instant::now());
        let bound = 20 * tcp(0, 0).len();
        for number in 0..15 {
            queue.enqueue(now, &packet(protocol::TCP, 1, 2, MTU, number), bound);
        }
        queue.enqueue(now, &packet(protocol::TCP, 2, 2, MTU, 15), bound);
        let marked = |next: &Dequeued| ecn::of(&next.packet[10..]) == Some(backwater_udp::Ecn::Ce);
        let taken: Vec<_> = std::iter::from_fn(|| queue.dequeue(now, bound, MTU)).map(|next| marked(&next)).collect();
        // The slim flow's packet is the third.
        assert_eq!(taken[..5], [true, true, false, true, true]);
        assert!(!taken[5..].contains(&true));
    }

    #[test]
    fn reads_beyond_the_bound_for_what_does_not_heed_it() {
        let start = Instant::now();
        let bound = 10 * tcp(0, 0).len();
        for ecn in [0, 2] {
            let mut queue = Fair::new(1);
            let mut number = 0;
            let mut fill = |queue: &mut Fair, now| {
                while queue.bytes() < bound {
                    assert!(queue.has_room(now, bound));
                    queue.enqueue(now, &packet(protocol::UDP, 1, ecn, MTU, number), bound);
                    number += 1;
                }
            };
            for ms in 0..200 {
                let now = start + Duration::from_millis(ms);
                fill(&mut queue, now);
                assert!(!queue.has_room(now, bound));
                queue.dequeue(now, bound, MTU);
            }
            let now = start + TO_HEED;
            fill(&mut queue, now);
            assert_eq!(queue.has_room(now, bound), ecn == 0);
            // It does once half is gone.
            while queue.bytes() > bound / 2 {
                queue.dequeue(now, bound, MTU);
            }
            queue.dequeue(now, bound, MTU);
            fill(&mut queue, now);
            assert!(!queue.has_room(now, bound));
        }
    }

    #[test]
    fn an_idle_queue_is_small() {
        let mut queue = Fair::new(1);
        let now = Instant::now();
        for number in 0..20_000 {
            queue.enqueue(now, &packet(protocol::UDP, number as u16, 0, 40, number), NO_BOUND);
        }
        assert_eq!(order(&mut queue, now).len(), 20_000);
        let places: usize = queue.flows.iter().map(|flow| flow.packets.capacity()).sum();
        assert!(FLOWS * size_of::<FlowQueue>() <= 32 << 10 && places <= FLOWS * KEPT, "{places}");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enqueue { flow: u16, len: usize, ecn: u8, train: bool },
        Dequeue,
        Wait(u64),
        Bound(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (0..6u16, prop_oneof![32..1500usize, 1500..65_000usize], 0..4u8, any::<bool>())
                .prop_map(|(flow, len, ecn, train)| Step::Enqueue { flow, len, ecn, train }),
            4 => Just(Step::Dequeue),
            1 => (0..150u64).prop_map(Step::Wait),
            1 => (0..200_000usize).prop_map(Step::Bound),
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_lost_uncounted_or_out_of_order(steps in proptest::collection::vec(step(), 0..400), seed: u64) {
            let mut queue = Fair::new(seed);
            let (mut now, mut bound, mut number) = (Instant::now(), 100_000, 0);
            let mut last = [None; 6];
            for step in steps {
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Bound(bytes) => bound = bytes,
                    Step::Enqueue { flow, len, ecn, train } => {
                        let mut bytes = packet(protocol::TCP, flow, ecn, len, number);
                        bytes[1] = u8::from(train);
                        queue.enqueue(now, &bytes, bound);
                        number += 1;
                        prop_assert!(queue.bytes() < bound.max(1) + bytes.len());
                    }
                    Step::Dequeue => {
                        let waits = queue.packets() > 0;
                        let next = queue.dequeue(now, bound, MTU);
                        prop_assert_eq!(next.is_some(), waits);
                        if let Some(next) = next {
                            let (flow, number) = port_and_number(&next.packet);
                            let before = last[usize::from(flow)].replace(number);
                            prop_assert!(before < Some(number));
                            prop_assert!(!next.drop_first_segment || next.packet[1] == 1);
                        }
                    }
                }
                let counters = queue.counters();
                let gone = counters.dequeued + counters.dropped + counters.overflowed;
                prop_assert_eq!(counters.enqueued, gone + queue.packets() as u64);
                prop_assert_eq!(queue.bytes(), queue.flows.iter().map(|flow| flow.bytes).sum::<usize>());
                prop_assert_eq!(queue.packets(), queue.flows.iter().map(|flow| flow.packets.len()).sum::<usize>());
            }
        }

        #[test]
        fn any_bytes(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..40)) {
            let (mut queue, now) = (Fair::new(1), Instant::now());
            for packet in &packets {
                queue.enqueue(now, packet, 1000);
            }
            while queue.dequeue(now + INTERVAL, 100, 40).is_some() {}
            prop_assert_eq!(queue.bytes(), 0);
        }
    }
}
