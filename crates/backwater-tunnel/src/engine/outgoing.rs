//! What leaves: the GSO batch, and the packets that are encrypted into it.

use std::time::Instant;

use backwater_udp::Ecn;

use super::{
    Engine, Outcome, Transmit,
    packet::{
        DevicePacket, ecn,
        segment::{Rest, Segments},
        virtio,
    },
    peer::{Refused, Sealed, Sealer},
};

/// Packets that one round takes from a peer's queue.
const BUDGET: usize = 64;

/// The batch, and what is to be encrypted behind it.
pub(super) struct Outgoing {
    pub(super) sealer: Sealer,
    /// The batch leaves before anything is added.
    is_closed: bool,
    /// The packet of which a part is in the batch.
    unfinished: Option<Unfinished>,
    round: Option<Round>,
}

struct Unfinished {
    peer: usize,
    /// With its `virtio_net_hdr`; `None`: it is in the engine's packet buffer.
    queued: Option<Box<[u8]>>,
    /// Bytes of its IP packet.
    len: usize,
    rest: Rest,
    ecn: Option<Ecn>,
}

/// A round over the queues of the peers.
struct Round {
    peer: usize,
    packets: usize,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self { sealer: Sealer::new(), is_closed: false, unfinished: None, round: None }
    }

    /// Whether the packet that was taken last is in the batch, or waits, as a whole.
    pub(super) fn is_finished(&self) -> bool {
        self.unfinished.is_none()
    }
}

impl Engine {
    /// Begins a round over what waits for a session or for room: [`poll_transmit`](Self::poll_transmit) returns at most 64 packets of each
    /// peer that has no datagrams held.
    pub fn drain_queues(&mut self) {
        self.outgoing.round = Some(Round { peer: 0, packets: 0 });
    }

    /// Closes the batch: no packet will follow, and [`poll_transmit`](Self::poll_transmit) returns it.
    #[inline]
    pub fn flush(&mut self) {
        self.outgoing.is_closed = !self.outgoing.sealer.batch.is_empty();
    }

    /// Returns the next GSO batch to send. To be followed by [`handle_sent`](Self::handle_sent), which says what became of it; until then it
    /// is returned again. `None`: there is nothing to send; what there is of an open batch is returned after [`flush`](Self::flush).
    #[inline]
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit<'_>> {
        if !self.outgoing.is_closed && self.outgoing.unfinished.is_none() && self.outgoing.round.is_none() {
            return None;
        }
        if !self.fill_batch(now) {
            return None;
        }
        let batch = &self.outgoing.sealer.batch;
        let &(peer, ecn, _) = batch.common()?;
        let path = &self.peers.get_mut(peer)?.path;
        Some(Transmit {
            peer,
            route: path.route()?,
            local_ip: path.local_ip,
            ecn,
            segment_size: batch.shape().segment_size(),
            bytes: batch.bytes(),
        })
    }

    /// Takes what became of the batch that [`poll_transmit`](Self::poll_transmit) returned.
    pub fn handle_sent(&mut self, now: Instant, outcome: Outcome) {
        let batch = &mut self.outgoing.sealer.batch;
        let Some(&(peer, ..)) = batch.common() else { return };
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.sent(now, batch.bytes(), batch.shape().datagrams(), &outcome);
        }
        batch.clear();
        self.outgoing.is_closed = false;
    }

    /// Takes what became of datagrams of a peer's that the driver held.
    pub fn handle_held(&mut self, now: Instant, peer: usize, outcome: Outcome) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.held_are_done(now, &outcome);
        }
    }

    /// Takes a packet of so many bytes that is in the packet buffer. Returns whether there is room for another.
    pub(super) fn take_packet(&mut self, now: Instant, len: usize) -> bool {
        let raw = self.buffer.get(..len).unwrap_or_default();
        let Some(packet) = DevicePacket::parse(raw) else {
            self.counters.device_malformed += 1;
            return true;
        };
        let number = self.allowed.owner(packet.destination(), &mut self.last_destination);
        let Outgoing { sealer, is_closed, unfinished, .. } = &mut self.outgoing;
        let (refused, has_room) = match number.and_then(|number| self.peers.get_mut(number)) {
            None => (Refused::NoPeer, true),
            Some(peer) => match peer.offer(now, &packet, self.mtu_is_configured, sealer, &mut self.messages) {
                Ok(None) => return peer.has_room(now) || self.has_room(now),
                Ok(Some(mut segments)) => {
                    let ecn = ecn::of(packet.ip.bytes());
                    if peer.seal(now, &mut segments, ecn, self.mtu, sealer) == Sealed::Full {
                        let (peer, len) = (peer.number(), packet.ip.bytes().len());
                        *unfinished = Some(Unfinished { peer, queued: None, len, rest: segments.pause(), ecn });
                        *is_closed = true;
                    }
                    return true;
                }
                Err(refused) => (refused, peer.has_room(now)),
            },
        };
        self.tell_host(now, len, refused);
        has_room || self.has_room(now)
    }

    /// Encrypts until there is a batch that leaves. Returns whether there is.
    fn fill_batch(&mut self, now: Instant) -> bool {
        loop {
            if self.outgoing.is_closed {
                let batch = &mut self.outgoing.sealer.batch;
                let datagrams = batch.shape().datagrams();
                let (peer, channel) = batch.common().map_or((usize::MAX, 0), |&(peer, _, channel)| (peer, channel));
                match self.peers.get_mut(peer) {
                    Some(peer) if peer.path.route().is_some_and(|route| route.channel() == channel) => return true,
                    Some(peer) => peer.drop_batch(datagrams),
                    None => {}
                }
                batch.clear();
                self.outgoing.is_closed = false;
            } else if let Some(unfinished) = self.outgoing.unfinished.take() {
                self.seal_more(now, unfinished);
            } else if !self.take_queued(now) {
                return false;
            }
        }
    }

    /// Encrypts more of a packet.
    fn seal_more(&mut self, now: Instant, unfinished: Unfinished) {
        let Unfinished { peer: number, queued, len, rest, ecn } = unfinished;
        let raw = queued.as_deref().unwrap_or(&self.buffer);
        let packet = raw.get(virtio::LEN..virtio::LEN + len).unwrap_or_default();
        let (Some(peer), Some(mut segments)) = (self.peers.get_mut(number), Segments::resume(rest, packet)) else {
            return;
        };
        let Outgoing { sealer, is_closed, unfinished, .. } = &mut self.outgoing;
        if peer.seal(now, &mut segments, ecn, self.mtu, sealer) == Sealed::Full {
            let rest = segments.pause();
            (*is_closed, *unfinished) = (true, Some(Unfinished { peer: number, queued, len, rest, ecn }));
        }
    }

    /// Takes the next packet of the round and encrypts it. Returns whether the round goes on.
    fn take_queued(&mut self, now: Instant) -> bool {
        let Outgoing { sealer, is_closed, unfinished, round } = &mut self.outgoing;
        let Some(Round { peer: number, packets }) = round else { return false };
        while *number < self.peers.end() {
            if *packets < BUDGET
                && let Some(peer) = self.peers.get_mut(*number)
                && peer.is_waiting()
                && let Some(next) = peer.dequeue(now, self.mtu, *packets == 0, &mut self.messages)
            {
                *packets += 1;
                let Some(packet) = DevicePacket::parse(&next.packet) else { continue };
                let Ok(mut segments) = Segments::new(&packet.header, packet.ip.bytes()) else { continue };
                if next.drop_first_segment {
                    sealer.skip(&mut segments);
                }
                let ecn = ecn::of(packet.ip.bytes());
                if peer.seal(now, &mut segments, ecn, self.mtu, sealer) == Sealed::Full {
                    let (len, rest) = (packet.ip.bytes().len(), segments.pause());
                    *unfinished = Some(Unfinished { peer: *number, queued: Some(next.packet), len, rest, ecn });
                    *is_closed = true;
                    return true;
                }
                continue;
            }
            (*number, *packets) = (*number + 1, 0);
            // A batch has one peer's datagrams.
            *is_closed = !sealer.batch.is_empty();
            if *is_closed {
                return true;
            }
        }
        *round = None;
        false
    }
}
