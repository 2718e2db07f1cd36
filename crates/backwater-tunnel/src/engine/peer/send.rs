//! What goes to a peer.

use std::time::Instant;

use backwater_stun::CHANNEL_HEADER_LEN;
use backwater_udp::{Ecn, gso::Batch};

use super::{Peer, Refused};
use crate::engine::{
    Outcome,
    lengths::{LONGEST_PACKET, MAX_DATAGRAM, OVERHEAD},
    messages::Messages,
    packet::{DevicePacket, segment::Segments, virtio},
    queue::fair::Dequeued,
    route::Route,
};

/// What the datagrams of a batch have in common: the peer's number, the ECN field, and the number of the relay's channel (0: none).
pub(in crate::engine) type Common = (usize, Option<Ecn>, u16);

/// Encrypts packets into one GSO batch.
pub(in crate::engine) struct Sealer {
    pub(in crate::engine) batch: Batch<Common>,
    /// One segment: it stays in the cache.
    scratch: Box<[u8]>,
}

/// How far [`Peer::seal`] went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Sealed {
    /// All segments are in the batch.
    All,
    /// The batch has to leave before the next segment.
    Full,
}

impl Sealer {
    pub(in crate::engine) fn new() -> Self {
        Self {
            batch: Batch::new(CHANNEL_HEADER_LEN + MAX_DATAGRAM),
            scratch: vec![0; virtio::LEN + 65_536 + 16].into(),
        }
    }

    /// Leaves out the next segment.
    pub(in crate::engine) fn skip(&mut self, segments: &mut Segments<'_>) {
        segments.next(&mut self.scratch);
    }
}

impl Peer {
    /// Takes a packet of the device. Returns the segments to encrypt now; `None`: the packet waits.
    pub(in crate::engine) fn offer<'a>(
        &mut self,
        now: Instant,
        packet: &DevicePacket<'a>,
        mtu_is_configured: bool,
        sealer: &mut Sealer,
        messages: &mut Messages,
    ) -> Result<Option<Segments<'a>>, Refused> {
        let route = self.path.route();
        if route.is_none() && self.ways.wanted().is_none() {
            return Err(Refused::NoEndpoint);
        }
        let segments = Segments::new(&packet.header, packet.ip.bytes()).map_err(|_| Refused::Malformed)?;
        let longest = self.path.mtu.longest(now, packet.ip.is_v6(), mtu_is_configured);
        let longest = longest.min(LONGEST_PACKET - route.map_or(0, Route::headroom).next_multiple_of(16));
        if segments.segment_len() > longest {
            return Err(Refused::TooBig(longest));
        }
        self.established = self.tunnel.is_established(now);
        if !self.established {
            self.call(now, messages);
        }
        let raw = packet.raw();
        let is_short = raw.len() <= self.path.longest_batch(now);
        if self.established && !self.is_waiting() && is_short && route.is_some() {
            return Ok(Some(segments));
        }
        if is_short {
            self.queue.enqueue(now, raw, self.path.bound(now));
        } else {
            self.enqueue_apart(now, segments, &mut sealer.scratch);
        }
        Ok(None)
    }

    /// Nothing overtakes a packet: one that would keep the path busy for long waits as the segments it stands for.
    fn enqueue_apart(&mut self, now: Instant, mut segments: Segments<'_>, scratch: &mut [u8]) {
        let mut bound = self.path.bound(now);
        scratch[..virtio::LEN].copy_from_slice(&virtio::Header::default().to_bytes());
        while let Some(len) = scratch.get_mut(virtio::LEN..).and_then(|space| segments.next(space)) {
            let Some(segment) = scratch.get(..virtio::LEN + len) else { return };
            self.queue.enqueue(now, segment, bound);
            // It was admitted as one packet.
            bound = usize::MAX;
        }
    }

    /// Encrypts segments into the batch until there are none, or until the batch has to leave first.
    pub(in crate::engine) fn seal(
        &mut self,
        now: Instant,
        segments: &mut Segments<'_>,
        ecn: Option<Ecn>,
        mtu: usize,
        sealer: &mut Sealer,
    ) -> Sealed {
        let Sealer { batch, scratch } = sealer;
        let Some(route) = self.path.route() else { return Sealed::All };
        let (common, headroom) = ((self.number, ecn, route.channel()), route.headroom());
        let longest_batch = self.path.longest_batch(now);
        let longest_padded = self.path.mtu.fits(now).min(mtu);
        while segments.count() > 0 {
            let len = segments.segment_len();
            // To a multiple of sixteen, but not beyond the MTU (WireGuard, section 5.4.6).
            let padded = len.next_multiple_of(16).min(longest_padded.max(len));
            let datagram = headroom + padded + OVERHEAD;
            let is_long_enough = batch.shape().bytes() + datagram > longest_batch;
            if !batch.can_append(&common, datagram) || !batch.is_empty() && is_long_enough {
                return Sealed::Full;
            }
            if segments.next(scratch).is_none() {
                break;
            }
            if let Some(padding) = scratch.get_mut(len..padded) {
                padding.fill(0);
            }
            let Some(plain) = scratch.get(..padded) else { break };
            let (header, message) = batch.reserve().split_at_mut(headroom);
            let Some(sealed) = self.tunnel.seal(now, plain, message) else {
                // There was a session before: its numbers have come to their end.
                self.counters.datagrams_dropped += 1;
                continue;
            };
            route.header(sealed).iter().for_each(|bytes| header.copy_from_slice(bytes));
            batch.commit(common, headroom + sealed);
            self.counters.bytes_sent += len as u64;
        }
        Sealed::All
    }

    /// Returns the packet whose turn it is, if there is room for it and a session. `is_first`: of a round.
    pub(in crate::engine) fn dequeue(
        &mut self,
        now: Instant,
        mtu: usize,
        is_first: bool,
        messages: &mut Messages,
    ) -> Option<Dequeued> {
        if self.held > 0 {
            if is_first {
                // The path refuses, which counts as backlogged time.
                self.path.rate.on_sent(now, 0, true);
            }
            return None;
        }
        self.path.route()?;
        self.established = self.tunnel.is_established(now);
        if !self.established {
            if !self.queue.is_empty() {
                self.call(now, messages);
            }
            return None;
        }
        self.queue.dequeue(now, self.path.bound(now), mtu)
    }

    /// Takes what has become of a batch of so many datagrams. The driver holds those that the outcome does not name.
    pub(in crate::engine) fn sent(&mut self, now: Instant, batch: &[u8], datagrams: usize, outcome: &Outcome) {
        let held = datagrams.saturating_sub(outcome.sent + outcome.dropped);
        self.held += held;
        self.counters.held += u64::from(held > 0);
        self.count(now, outcome);
        let headroom = self.path.route().map_or(0, Route::headroom);
        self.path.mtu.on_sent(batch.get(headroom..).unwrap_or_default(), datagrams as u64);
        self.ways.on_sent(now);
    }

    /// Takes what has become of datagrams that were held.
    pub(in crate::engine) fn held_are_done(&mut self, now: Instant, outcome: &Outcome) {
        self.held = self.held.saturating_sub(outcome.sent + outcome.dropped);
        self.count(now, outcome);
    }

    /// Counts datagrams that have no way as dropped.
    pub(in crate::engine) fn drop_batch(&mut self, datagrams: usize) {
        self.counters.datagrams_dropped += datagrams as u64;
    }

    /// Counts what is held as dropped: its socket is closed, or no longer the peer's.
    pub(crate) fn give_up_held(&mut self) {
        self.path.give_up_held();
        self.counters.datagrams_dropped += std::mem::take(&mut self.held) as u64;
    }

    fn count(&mut self, now: Instant, outcome: &Outcome) {
        self.counters.datagrams_sent += outcome.sent as u64;
        self.counters.datagrams_dropped += outcome.dropped as u64;
        if outcome.source_is_gone {
            self.path.local_ip = None;
        }
        self.path.rate.on_sent(now, outcome.bytes, self.is_waiting());
    }
}
