//! Receives through quinn-udp.

use std::{
    io::{self, IoSliceMut},
    time::SystemTime,
};

use quinn_udp::BATCH_SIZE;
use socket2::SockRef;

use super::{SLOT_BYTES, State};
use crate::{Ecn, receiver::RecvMeta};

/// Room for received GRO batches, and for what the system tells about them.
pub(crate) struct Buffers {
    data: Box<[u8]>,
    metas: Box<[RecvMeta]>,
    slots: Slots,
}

/// What quinn-udp tells about each message of a call.
pub(crate) struct Slots(Box<[quinn_udp::RecvMeta]>);

impl Buffers {
    pub(crate) fn new(count: usize) -> Self {
        let data = vec![0; count * SLOT_BYTES].into();
        Self { data, metas: vec![RecvMeta::default(); count].into(), slots: Slots::new(count) }
    }

    pub(crate) fn slots(&self) -> usize {
        self.metas.len()
    }

    pub(crate) fn receive(&mut self, socket: SockRef<'_>, state: &State) -> io::Result<usize> {
        let mut rooms = self.data.chunks_exact_mut(SLOT_BYTES);
        let mut bufs: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(rooms.next().unwrap_or_default()));
        self.slots.receive_into(socket, state, &mut bufs, &mut self.metas)
    }

    /// Fills a slot with what another socket has received.
    pub(crate) fn put(&mut self, slot: usize, meta: &RecvMeta, bytes: &[u8]) {
        let room = self.data.get_mut(slot * SLOT_BYTES..).and_then(|data| data.get_mut(..bytes.len()));
        if let (Some(place), Some(room)) = (self.metas.get_mut(slot), room) {
            room.copy_from_slice(bytes);
            *place = RecvMeta { len: bytes.len(), ..*meta };
        }
    }

    pub(crate) fn train(&self, slot: usize) -> Option<(&RecvMeta, &[u8])> {
        let meta = self.metas.get(slot)?;
        Some((meta, self.data.get(slot * SLOT_BYTES..)?.get(..meta.len)?))
    }
}

impl Slots {
    pub(crate) fn new(count: usize) -> Self {
        Self(vec![quinn_udp::RecvMeta::default(); count].into())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Receives into `bufs`, as many of them as there are slots and metas.
    pub(crate) fn receive_into(
        &mut self,
        socket: SockRef<'_>,
        state: &State,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize> {
        let count = bufs.len().min(metas.len()).min(self.len()).min(BATCH_SIZE);
        let (Some(bufs), Some(told)) = (bufs.get_mut(..count), self.0.get_mut(..count)) else { return Ok(0) };
        let received = state.receive(socket, bufs, told)?;
        for (meta, told) in metas.iter_mut().zip(told.iter()).take(received) {
            *meta = translated(told);
        }
        Ok(received)
    }
}

fn translated(told: &quinn_udp::RecvMeta) -> RecvMeta {
    let mut source = told.addr;
    source.set_ip(source.ip().to_canonical());
    RecvMeta {
        source,
        local_ip: told.dst_ip.map(|ip| ip.to_canonical()),
        interface: told.interface_index,
        ecn: told.ecn.and_then(|ecn| Ecn::from_bits(ecn as u8)),
        segment_size: if told.stride == 0 { told.len } else { told.stride },
        len: told.len,
        timestamp: told.timestamp.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)),
        ..RecvMeta::default()
    }
}
