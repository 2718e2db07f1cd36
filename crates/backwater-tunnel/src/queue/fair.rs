//! Whose turn it is (RFC 8290).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::codel::{Codel, Verdict};
use crate::packet::{ecn, header::Packet, virtio};

/// The packets that wait for one path: FQ-CoDel of RFC 8290 over whole packets as the TUN device gives them, that is a
/// `virtio_net_hdr` and an IP packet of up to 64 KiB that may stand for many segments.
///
/// Flows are told apart by a hash of addresses, protocol and ports, share the path byte by byte (deficit round robin), and
/// have a CoDel each; one that has nothing waiting goes first. It is bounded in bytes by the caller, who asks
/// [`bytes`](Self::bytes) before a packet is read, and for a flow that has more than its share and does not heed marks.
///
/// Beyond the RFC, what is ECN-capable is also marked while more than half of the bound waits, and the flow's share or more of
/// it is the flow's own. CoDel begins to signal only after an interval, in which slow start doubles what it sends several
/// times: it would meet the bound, and lose.
#[derive(Debug)]
pub struct Fair {
    seed: u64,
    flows: Vec<FlowQueue>,
    /// Indices of flows that were empty when their packet came, and of the others.
    new: VecDeque<u8>,
    old: VecDeque<u8>,
    bytes: usize,
    packets: usize,
    counters: Counters,
}

/// What has become of packets. `enqueued == dequeued + dropped + overflowed + Fair::packets()`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Packets that came in.
    pub enqueued: u64,
    /// Packets that were given back, be it without their first segment.
    pub dequeued: u64,
    /// Of these, packets in which congestion experienced (CE) was set, or was set already when it should have been.
    pub marked: u64,
    /// Of these, packets whose first segment is to be dropped since CoDel said so.
    pub beheaded: u64,
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

    /// Puts a packet at the end of its flow. If `bound` bytes or more wait, the flow that has most of them loses from its head
    /// before (RFC 8290, section 4.1.3), so that never more than the bound and one packet wait.
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
    }

    /// Takes the packet whose turn it is. `bound` is that of [`enqueue`](Self::enqueue), and `mtu` is the TUN device's, in bytes.
    /// Packets that CoDel drops on the way are counted.
    pub fn dequeue(&mut self, now: Instant, bound: usize, mtu: usize) -> Option<Dequeued> {
        loop {
            let is_new = !self.new.is_empty();
            let index = *self.new.front().or(self.old.front())?;
            if self.flows[usize::from(index)].deficit <= 0 {
                self.flows[usize::from(index)].deficit += QUANTUM;
                self.end_turn(is_new);
                self.old.push_back(index);
                continue;
            }
            let Some(Waiting { since, mut packet }) = self.pop(index) else {
                self.end_turn(is_new);
                let others_wait = !self.old.is_empty();
                let flow = &mut self.flows[usize::from(index)];
                flow.codel.on_empty();
                // It does not count as new before the others had their turn, or it would always come first.
                if is_new && others_wait {
                    self.old.push_back(index);
                } else {
                    flow.is_listed = false;
                    flow.packets.shrink_to(32);
                }
                continue;
            };
            let waited = now.saturating_duration_since(since);
            let ecn_capable = ecn::of(ip(&packet)).is_some();
            let crowds = self.crowds(index, bound);
            let flow = &mut self.flows[usize::from(index)];
            let verdict = flow.codel.judge(now, waited, self.bytes, mtu, ecn_capable);
            let drop_first_segment = verdict == Verdict::Drop && has_segments(&packet);
            if verdict == Verdict::Drop && !drop_first_segment {
                self.counters.dropped += 1;
                continue;
            }
            flow.deficit -= packet.len() as i64;
            if ecn_capable && (verdict == Verdict::Mark || crowds) {
                self.counters.marked += 1;
                ecn::mark(ip_mut(&mut packet));
            }
            self.counters.beheaded += u64::from(drop_first_segment);
            self.counters.dequeued += 1;
            return Some(Dequeued { packet, drop_first_segment, waited });
        }
    }

    /// Whether more than half of the bound waits, and as much as its share of it is this flow's.
    fn crowds(&self, index: u8, bound: usize) -> bool {
        let flows = self.new.len() + self.old.len();
        self.bytes > bound / 2 && self.flows[usize::from(index)].bytes.saturating_mul(flows) >= self.bytes
    }

    /// Drops until fewer than `bound` bytes wait. A flow that is found to have most loses half of it at a time, so that looking
    /// for it costs little beside what it loses.
    fn make_room(&mut self, bound: usize) {
        while self.bytes >= bound && self.packets > 0 {
            let Some(fattest) = (0..=u8::MAX).max_by_key(|index| self.flows[usize::from(*index)].bytes) else { return };
            let half = self.flows[usize::from(fattest)].bytes / 2;
            while self.bytes >= bound && self.flows[usize::from(fattest)].bytes > half {
                self.pop(fattest);
                self.counters.overflowed += 1;
            }
        }
    }

    fn pop(&mut self, index: u8) -> Option<Waiting> {
        let flow = &mut self.flows[usize::from(index)];
        let waiting = flow.packets.pop_front()?;
        flow.bytes -= waiting.packet.len();
        self.bytes -= waiting.packet.len();
        self.packets -= 1;
        Some(waiting)
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

fn ip(packet: &[u8]) -> &[u8] {
    packet.get(virtio::LEN..).unwrap_or_default()
}

fn ip_mut(packet: &mut [u8]) -> &mut [u8] {
    packet.get_mut(virtio::LEN..).unwrap_or_default()
}

fn has_segments(packet: &[u8]) -> bool {
    packet.first_chunk().is_some_and(|header| virtio::Header::parse(header).gso_type != virtio::GSO_NONE)
}
