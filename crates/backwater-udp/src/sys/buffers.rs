//! Room for what a socket receives, and what the system tells about it.

use super::{SLOT_BYTES, Slots};
use crate::receiver::RecvMeta;

/// Room for received GRO batches.
pub(crate) struct Buffers {
    /// [`SLOT_BYTES`] for each slot. It never grows: `slots` may point into it.
    pub(super) data: Vec<u8>,
    pub(super) metas: Vec<RecvMeta>,
    pub(super) slots: Slots,
}

impl Buffers {
    pub(crate) fn new(count: usize) -> Self {
        let mut data = vec![0; count * SLOT_BYTES];
        let slots = Slots::over(&mut data);
        Self { data, metas: vec![RecvMeta::default(); count], slots }
    }

    pub(crate) fn slots(&self) -> usize {
        self.metas.len()
    }

    /// Fills a slot with what another socket has received.
    pub(crate) fn put(&mut self, slot: usize, meta: &RecvMeta, bytes: &[u8]) {
        let room = self.data.get_mut(slot * SLOT_BYTES..).and_then(|data| data.get_mut(..bytes.len()));
        if let (Some(place), Some(room)) = (self.metas.get_mut(slot), room) {
            room.copy_from_slice(bytes);
            *place = RecvMeta { len: bytes.len(), ..*meta };
        }
    }

    /// What is in a slot.
    pub(crate) fn gro_batch(&self, slot: usize) -> Option<(&RecvMeta, &[u8])> {
        let meta = self.metas.get(slot)?;
        Some((meta, self.data.get(slot * SLOT_BYTES..)?.get(..meta.len)?))
    }
}
