//! Datagrams of a received batch that go the same way, gathered so that they leave in one call.

use backwater_turn::{PeerAddr, server::AllocationId};
use backwater_udp::{RecvBatch, gso::Shape};

use crate::fields::Fields;

/// The runs of one batch. The order within a flow is kept.
#[derive(Default)]
pub(crate) struct Runs {
    runs: Vec<Run>,
    pieces: Vec<Piece>,
    /// The run that an allocation's next datagram may join, by the allocation's index; valid if its stamp is that of
    /// the batch.
    open: Vec<(u32, u32)>,
    stamp: u32,
}

/// Where the payloads of runs lie.
#[derive(Clone, Copy)]
pub(crate) enum Source<'b> {
    Batch(&'b RecvBatch),
    /// What a connection has received. Its pieces are one payload each.
    Bytes(&'b [u8]),
}

/// Datagrams of one allocation to one peer that leave in one call.
pub(crate) struct Run {
    pub(crate) via: AllocationId,
    pub(crate) to: PeerAddr,
    pub(crate) fields: Fields,
    pub(crate) shape: Shape,
    first: u32,
    last: u32,
}

/// Where payloads lie in the batch: one, or several of one length in a train.
struct Piece {
    at: Place,
    count: u32,
    next: u32,
}

/// Where a payload lies in the batch.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    slot: u32,
    start: u32,
    len: u32,
}

impl Place {
    /// In the train of this slot, from byte `start` on.
    pub(crate) fn new(slot: usize, start: usize, len: usize) -> Self {
        Self { slot: slot as u32, start: start as u32, len: len as u32 }
    }
}

const END: u32 = u32::MAX;

impl Runs {
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.pieces.clear();
        self.stamp = self.stamp.wrapping_add(1);
        if self.stamp == 0 {
            self.open.clear();
        }
    }

    /// Adds payloads of an allocation's to a peer: one, or several of one length, each `stride` bytes behind the last in its train.
    pub(crate) fn push(
        &mut self,
        via: AllocationId,
        to: PeerAddr,
        fields: Fields,
        mut at: Place,
        (count, stride): (usize, usize),
    ) {
        let mut left = count as u32;
        while left > 0 {
            let taken = self.push_some(via, to, fields, at, left);
            left -= taken;
            at.start += taken * stride as u32;
        }
    }

    /// Adds so many of them as one run takes. Returns how many; one at least.
    fn push_some(&mut self, via: AllocationId, to: PeerAddr, fields: Fields, at: Place, count: u32) -> u32 {
        let piece = self.pieces.len() as u32;
        if self.open.len() <= via.index() {
            self.open.resize(via.index() + 1, (self.stamp.wrapping_sub(1), 0));
        }
        let open = &mut self.open[via.index()];
        let run = match self.runs.get_mut(open.1 as usize) {
            Some(run) if open.0 == self.stamp && run.takes(via, to, fields, at.len as usize) => {
                self.pieces[run.last as usize].next = piece;
                run.last = piece;
                run
            }
            _ => {
                *open = (self.stamp, self.runs.len() as u32);
                self.runs.push_mut(Run { via, to, fields, shape: Shape::default(), first: piece, last: piece })
            }
        };
        let mut taken = 0;
        while taken < count && run.shape.can_append(at.len as usize) {
            run.shape.append(at.len as usize);
            taken += 1;
        }
        self.pieces.push(Piece { at, count: taken, next: END });
        taken
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter()
    }

    /// The payloads of a run, in their order.
    pub(crate) fn payloads<'b>(&self, run: &Run, source: Source<'b>) -> impl Iterator<Item = &'b [u8]> {
        Payloads { pieces: &self.pieces, next: run.first, source, left: 0, stride: 0, len: 0, rest: &[] }
    }
}

/// What is left of a run.
struct Payloads<'r, 'b> {
    pieces: &'r [Piece],
    next: u32,
    source: Source<'b>,
    /// Of the piece that was begun: its payloads, how far apart they are and how long, and the bytes from the next one on.
    left: u32,
    stride: usize,
    len: usize,
    rest: &'b [u8],
}

impl<'b> Iterator for Payloads<'_, 'b> {
    type Item = &'b [u8];

    #[inline]
    fn next(&mut self) -> Option<&'b [u8]> {
        if self.left == 0 {
            let piece = self.pieces.get(self.next as usize)?;
            let (bytes, stride) = match self.source {
                Source::Batch(batch) => {
                    let received = batch.gro_batch(piece.at.slot as usize)?;
                    (received.payload, received.segment_size)
                }
                Source::Bytes(bytes) => (bytes, 0),
            };
            self.rest = bytes.get(piece.at.start as usize..)?;
            (self.left, self.stride, self.len) = (piece.count, stride, piece.at.len as usize);
            self.next = piece.next;
        }
        self.left -= 1;
        let payload = self.rest.get(..self.len)?;
        self.rest = self.rest.get(self.stride..).unwrap_or_default();
        Some(payload)
    }
}

impl Run {
    fn takes(&self, via: AllocationId, to: PeerAddr, fields: Fields, len: usize) -> bool {
        (self.via, self.to, self.fields) == (via, to, fields) && self.shape.can_append(len)
    }
}
