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

/// Datagrams of one allocation to one peer that leave in one call.
pub(crate) struct Run {
    pub(crate) via: AllocationId,
    pub(crate) to: PeerAddr,
    pub(crate) fields: Fields,
    pub(crate) shape: Shape,
    first: u32,
    last: u32,
}

/// Where a payload lies in the batch.
struct Piece {
    slot: u32,
    start: u32,
    len: u32,
    next: u32,
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

    pub(crate) fn push(
        &mut self,
        via: AllocationId,
        to: PeerAddr,
        fields: Fields,
        (slot, start, len): (usize, usize, usize),
    ) {
        let piece = self.pieces.len() as u32;
        self.pieces.push(Piece { slot: slot as u32, start: start as u32, len: len as u32, next: END });
        if self.open.len() <= via.index() {
            self.open.resize(via.index() + 1, (self.stamp.wrapping_sub(1), 0));
        }
        let open = &mut self.open[via.index()];
        if open.0 == self.stamp
            && let Some(run) = self.runs.get_mut(open.1 as usize)
            && run.takes(via, to, fields, len)
        {
            self.pieces[run.last as usize].next = piece;
            run.last = piece;
            run.shape.append(len);
            return;
        }
        *open = (self.stamp, self.runs.len() as u32);
        let mut shape = Shape::default();
        shape.append(len);
        self.runs.push(Run { via, to, fields, shape, first: piece, last: piece });
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter()
    }

    /// The payloads of a run, in their order.
    pub(crate) fn payloads<'b>(&self, run: &Run, batch: &'b RecvBatch) -> impl Iterator<Item = &'b [u8]> {
        let at = |index: u32| self.pieces.get(index as usize);
        std::iter::successors(at(run.first), move |piece| at(piece.next)).filter_map(move |piece| {
            let train = batch.train(piece.slot as usize)?;
            train.payload.get(piece.start as usize..)?.get(..piece.len as usize)
        })
    }
}

impl Run {
    fn takes(&self, via: AllocationId, to: PeerAddr, fields: Fields, len: usize) -> bool {
        (self.via, self.to, self.fields) == (via, to, fields) && self.shape.can_append(len)
    }
}
