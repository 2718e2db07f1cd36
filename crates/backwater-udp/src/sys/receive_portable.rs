//! Receives through quinn-udp.

use std::{
    io::{self, IoSliceMut},
    time::SystemTime,
};

use quinn_udp::BATCH_SIZE;
use socket2::SockRef;

use super::{Buffers, SLOT_BYTES, State};
use crate::{Ecn, receiver::RecvMeta};

/// What quinn-udp tells about each message of a call.
pub(crate) struct Slots(Box<[quinn_udp::RecvMeta]>);

impl Buffers {
    pub(crate) fn receive(&mut self, socket: SockRef<'_>, state: &State) -> io::Result<usize> {
        let mut rooms = self.data.chunks_exact_mut(SLOT_BYTES);
        let mut bufs: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(rooms.next().unwrap_or_default()));
        self.slots.receive_into(socket, state, &mut bufs, &mut self.metas)
    }
}

impl Slots {
    pub(crate) fn new(count: usize) -> Self {
        Self(vec![quinn_udp::RecvMeta::default(); count].into())
    }

    /// Slots for this memory, [`SLOT_BYTES`] each.
    pub(super) fn over(data: &mut [u8]) -> Self {
        Self::new(data.len() / SLOT_BYTES)
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
