//! Whose turn it is (RFC 8290).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use backwater_udp::Ecn;

use super::codel::{CE_THRESHOLD, Codel, INTERVAL, Verdict};
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
///
/// A packet with ECT(1) is marked, too, when it waited for [`CE_THRESHOLD`] and its flow has more than one packet of the MTU
/// waiting (RFC 9332, appendix A.1: a single packet is no queue, however slow the path is).
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
        fattest.and_then(|index| self.flow(index).packets.front()).is_some_and(|head| head.ecn().is_none())
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
            let ecn = head.ecn();
            let crowds = self.crowds(index, head.packet.len(), bound);
            let flow = &mut self.flows[usize::from(index)];
            let verdict = flow.codel.judge(now, waited, self.bytes, mtu, ecn.is_some());
            let is_queue = flow.bytes + head.packet.len() > mtu + virtio::LEN;
            let marked_by_l4s = ecn == Some(Ecn::Ect1) && waited >= CE_THRESHOLD && is_queue;
            let drop_first_segment = verdict == Verdict::Drop && head.is_train();
            if verdict == Verdict::Drop && !drop_first_segment {
                self.counters.dropped += 1;
                continue;
            }
            flow.deficit -= head.packet.len() as i64;
            if ecn.is_some() && (verdict == Verdict::Mark || crowds || marked_by_l4s) {
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
    fn ecn(&self) -> Option<Ecn> {
        ecn::of(ip(&self.packet))
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
mod tests;
