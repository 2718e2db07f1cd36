use std::{
    fmt,
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use tokio::time::Sleep;

use crate::{Ecn, UdpSocket, socket::Inner, sys, wait::decision::Errno};

/// Receives. See [`UdpSocket::receiver`].
pub struct Receiver {
    socket: UdpSocket,
    /// What receiving into a caller's buffers needs.
    slots: Option<sys::Slots>,
    /// While receiving fails for no reason that is known.
    pause: Option<Pin<Box<Sleep>>>,
    /// Whether nothing has arrived since the socket was last found empty.
    idle: bool,
}

/// Room for what one call receives: `slots` trains of up to 64 KiB. It belongs to a thread rather than to a socket;
/// memory that no datagram has reached yet is not resident.
pub struct RecvBatch {
    buffers: sys::Buffers,
    filled: usize,
    fallback_ip: Option<IpAddr>,
}

/// What the system tells about a received GRO batch, or a single datagram, in a buffer of the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecvMeta {
    /// Who sent it. An IPv4 address is never shown as mapped into IPv6.
    pub source: SocketAddr,
    /// The address it came to, where known.
    pub local_ip: Option<IpAddr>,
    /// The index of the interface it came in by. Told for a socket that is bound to the wildcard address.
    pub interface: Option<u32>,
    /// The ECN field of its datagrams.
    pub ecn: Option<Ecn>,
    /// The time to live (IPv4) or hop limit (IPv6) that its datagrams arrived with, where
    /// [`UdpSocketBuilder::receive_hop_limit`](crate::UdpSocketBuilder::receive_hop_limit) asks for it.
    pub hop_limit: Option<u8>,
    /// The length of every datagram but the last, which may be shorter, in bytes.
    pub segment_size: usize,
    /// Bytes that were received, of all datagrams together.
    pub len: usize,
    /// Whether the buffer was too small: the rest is lost. Linux only: elsewhere it is not told.
    pub truncated: bool,
    /// When the kernel received it (the first one of a GRO batch), where
    /// [`UdpSocketBuilder::receive_timestamps`](crate::UdpSocketBuilder::receive_timestamps) asks for it.
    pub timestamp: Option<SystemTime>,
}

impl Default for RecvMeta {
    /// Of nothing: to be overwritten.
    fn default() -> Self {
        Self {
            source: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            local_ip: None,
            interface: None,
            ecn: None,
            hop_limit: None,
            segment_size: 0,
            len: 0,
            truncated: false,
            timestamp: None,
        }
    }
}

/// A run of datagrams of one flow that the system received as one (GRO), or a single datagram.
#[derive(Clone, Copy, Debug)]
pub struct GroBatch<'a> {
    /// Who sent it. An IPv4 address is never shown as mapped into IPv6.
    pub source: SocketAddr,
    /// The address it came to, where known.
    pub local_ip: Option<IpAddr>,
    /// The index of the interface it came in by. Told for a socket that is bound to the wildcard address.
    pub interface: Option<u32>,
    /// The ECN field of its datagrams.
    pub ecn: Option<Ecn>,
    /// The time to live (IPv4) or hop limit (IPv6) that its datagrams arrived with, where
    /// [`UdpSocketBuilder::receive_hop_limit`](crate::UdpSocketBuilder::receive_hop_limit) asks for it.
    pub hop_limit: Option<u8>,
    /// When the kernel received it (the first one of a GRO batch), where
    /// [`UdpSocketBuilder::receive_timestamps`](crate::UdpSocketBuilder::receive_timestamps) asks for it.
    pub timestamp: Option<SystemTime>,
    /// The length of every datagram but the last, which may be shorter.
    pub segment_size: usize,
    /// The datagrams, one after the other.
    pub payload: &'a [u8],
}

/// A received datagram, borrowed from the [`RecvBatch`].
#[derive(Clone, Copy, Debug)]
pub struct RecvDatagram<'a> {
    /// Who sent it. An IPv4 address is never shown as mapped into IPv6.
    pub source: SocketAddr,
    /// The address it came to, where known.
    pub local_ip: Option<IpAddr>,
    /// Its ECN field.
    pub ecn: Option<Ecn>,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// Errors that a receive may come across before it lets others run.
const ERRORS_PER_POLL: usize = 16;

/// How long receiving rests when each of so many attempts has failed, and not because of ICMP messages.
const PAUSE: Duration = Duration::from_millis(10);

/// Buffers that one call fills, at most.
const MAX_BUFFERS: usize = 64;

impl Receiver {
    /// `None` if the socket has one.
    pub(crate) fn new(socket: UdpSocket) -> Option<Self> {
        let is_taken = socket.0.receiver_taken.swap(true, Relaxed);
        (!is_taken).then_some(Self { socket, slots: None, pause: None, idle: true })
    }

    /// The socket it receives from.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Fills `batch` with what has arrived; waits when that is nothing. An owner who cares for
    /// [`UdpSocket::next_icmp_error`] asks for it after each call, also when this is pending.
    ///
    /// An error that an earlier send left on the socket (an ICMP message, say) is skipped: it does not concern what
    /// is received, and must not end a receive loop. So is any other that does not mean the end of the socket; where it
    /// goes on, receiving is tried a few times every 10 ms, and the log says so.
    ///
    /// # Errors
    /// When the socket itself has failed (`EBADF`, `ENOTSOCK`, `EPIPE`), or the reactor is shut down.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>, batch: &mut RecvBatch) -> Poll<io::Result<()>> {
        batch.filled = 0;
        batch.fallback_ip = self.socket.0.local_ip();
        let Self { socket, pause, idle, .. } = self;
        let received = poll_into(socket, pause, idle, cx, Room::Batch(&mut batch.buffers));
        batch.filled = ready!(received)?;
        self.socket.0.stats.receive(batch.gro_batches().map(|t| t.datagram_count()).sum());
        Poll::Ready(Ok(()))
    }

    /// Receives into buffers of the caller's, one datagram or GRO batch into each, and returns how many it has filled: at most 64, and
    /// no more than there are of either. Waits when nothing has arrived. The other metas stay as they are.
    ///
    /// A GRO batch has up to 65,535 bytes. A shorter buffer may lose a part of it ([`RecvMeta::truncated`]), unless the socket was made
    /// with [`UdpSocketBuilder::receive_offload(false)`](crate::UdpSocketBuilder::receive_offload): then it has to hold one datagram.
    ///
    /// # Errors
    /// As [`poll_recv`](Self::poll_recv).
    pub fn poll_recv_into(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.len().min(meta.len()).min(MAX_BUFFERS);
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let Self { socket, slots, pause, idle } = self;
        let slots = match slots {
            Some(slots) if slots.len() >= wanted => slots,
            slots => slots.insert(sys::Slots::new(wanted)),
        };
        let received = ready!(poll_into(socket, pause, idle, cx, Room::Callers { slots, bufs, meta }))?;
        let fallback_ip = self.socket.0.local_ip();
        let filled = meta.iter_mut().take(received);
        let datagrams = filled.map(|meta| {
            meta.local_ip = meta.local_ip.or(fallback_ip);
            meta.datagram_count()
        });
        self.socket.0.stats.receive(datagrams.sum());
        Poll::Ready(Ok(received))
    }

    /// Fills `batch`; waits until something has arrived.
    ///
    /// Cancel safe: nothing is taken from the socket by a future that did not finish.
    ///
    /// # Errors
    /// As [`poll_recv`](Self::poll_recv).
    pub async fn recv(&mut self, batch: &mut RecvBatch) -> io::Result<()> {
        poll_fn(|cx| self.poll_recv(cx, batch)).await
    }
}

/// What is filled.
pub(crate) enum Room<'r, 'b> {
    Batch(&'r mut sys::Buffers),
    Callers { slots: &'r mut sys::Slots, bufs: &'r mut [IoSliceMut<'b>], meta: &'r mut [RecvMeta] },
}

impl Room<'_, '_> {
    /// GRO batches that it takes.
    pub(crate) fn slots(&self) -> usize {
        match self {
            Self::Batch(buffers) => buffers.slots(),
            Self::Callers { slots, bufs, meta } => bufs.len().min(meta.len()).min(slots.len()),
        }
    }

    #[inline]
    fn receive(&mut self, inner: &Inner) -> io::Result<usize> {
        match self {
            Self::Batch(buffers) => buffers.receive(inner.sock_ref(), &inner.state),
            Self::Callers { slots, bufs, meta } => slots.receive_into(inner.sock_ref(), &inner.state, bufs, meta),
        }
    }

    /// Fills a slot with what another socket has received.
    pub(crate) fn put(&mut self, slot: usize, of: &RecvMeta, bytes: &[u8]) {
        match self {
            Self::Batch(buffers) => buffers.put(slot, of, bytes),
            Self::Callers { bufs, meta, .. } => {
                let (Some(buf), Some(place)) = (bufs.get_mut(slot), meta.get_mut(slot)) else { return };
                let len = bytes.len().min(buf.len());
                buf.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
                *place = RecvMeta { len, truncated: of.truncated || len < bytes.len(), ..*of };
            }
        }
    }
}

#[inline]
fn poll_into(
    socket: &UdpSocket,
    pause: &mut Option<Pin<Box<Sleep>>>,
    idle: &mut bool,
    cx: &mut Context<'_>,
    mut room: Room<'_, '_>,
) -> Poll<io::Result<usize>> {
    let inner = &*socket.0;
    if let Some(resting) = pause {
        ready!(resting.as_mut().poll(cx));
        *pause = None;
    }
    let mut failed = 0;
    for _ in 0..ERRORS_PER_POLL {
        let mut icmp = false;
        let received = inner.intake.poll_receive(inner, cx, &mut room, |socket, room| {
            let seen = socket.events.icmp_errors();
            let received = room.receive(socket);
            let is_empty = matches!(&received, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
            // Woken for nothing: the error queue has entries that no call reports, timestamps of sent datagrams say.
            let was_empty = !std::ptr::eq(socket, inner) || std::mem::replace(idle, is_empty);
            if was_empty && is_empty {
                socket.drain_errors(None, u64::MAX);
            }
            // Whatever the error's number, it may be about an earlier datagram; and an undrained queue of such errors would fill
            // the receive buffer.
            if received.is_err() && !is_empty {
                icmp = socket.drain_errors(None, seen).icmp;
            }
            received
        });
        match ready!(received) {
            Err(e) if sys::errno(&e) != Errno::Socket => {
                let is_known = matches!(sys::errno(&e), Errno::Interrupted | Errno::Refused);
                if !icmp && !is_known {
                    failed += 1;
                    inner.stats.receive_error(&e);
                }
            }
            done => return Poll::Ready(done),
        }
    }
    if failed == ERRORS_PER_POLL {
        let resting = pause.insert(Box::pin(tokio::time::sleep(PAUSE)));
        ready!(resting.as_mut().poll(cx));
    }
    // A flood of them. Others may run, and then this goes on.
    cx.waker().wake_by_ref();
    Poll::Pending
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.socket.0.receiver_taken.store(false, Relaxed);
    }
}

impl RecvMeta {
    /// How many datagrams it is about.
    pub fn datagram_count(&self) -> usize {
        self.len.div_ceil(self.segment_size.max(1)).max(1)
    }
}

impl RecvBatch {
    /// Room for 1 to 64 trains; another number is brought into that range. More save system calls; eight, half a megabyte of
    /// full trains, stay in most caches until they are sent on.
    pub fn new(slots: usize) -> Self {
        Self { buffers: sys::Buffers::new(slots.clamp(1, 64)), filled: 0, fallback_ip: None }
    }

    /// What was received last, by train.
    pub fn gro_batches(&self) -> impl Iterator<Item = GroBatch<'_>> {
        (0..self.filled).filter_map(|slot| self.gro_batch(slot))
    }

    /// One of them, by its place.
    pub fn gro_batch(&self, slot: usize) -> Option<GroBatch<'_>> {
        if slot >= self.filled {
            return None;
        }
        let (meta, payload) = self.buffers.gro_batch(slot)?;
        Some(GroBatch::new(meta, self.fallback_ip, payload))
    }

    /// How many trains were received last.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether nothing was received last.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Whether there may be more to receive at once.
    pub fn is_full(&self) -> bool {
        self.filled == self.buffers.slots()
    }

    /// What was received last, by datagram.
    pub fn datagrams(&self) -> impl Iterator<Item = RecvDatagram<'_>> {
        self.gro_batches().flat_map(|train| train.datagrams())
    }
}

impl<'a> GroBatch<'a> {
    /// `fallback_ip` is the address it came to when the system does not say.
    pub(crate) fn new(meta: &RecvMeta, fallback_ip: Option<IpAddr>, payload: &'a [u8]) -> Self {
        let RecvMeta { source, local_ip, interface, ecn, hop_limit, segment_size, timestamp, .. } = *meta;
        let local_ip = local_ip.or(fallback_ip);
        Self { source, local_ip, interface, ecn, hop_limit, timestamp, segment_size, payload }
    }

    /// The payloads.
    #[inline]
    pub fn payloads(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        Payloads { rest: Some(self.payload), size: self.segment_size.max(1) }
    }

    /// The datagrams.
    pub fn datagrams(&self) -> impl Iterator<Item = RecvDatagram<'a>> + use<'a> {
        let Self { source, local_ip, ecn, .. } = *self;
        self.payloads().map(move |payload| RecvDatagram { source, local_ip, ecn, payload })
    }

    /// How many datagrams it holds.
    pub fn datagram_count(&self) -> usize {
        self.payload.len().div_ceil(self.segment_size.max(1)).max(1)
    }
}

/// What is left of a train. No bytes at all are an empty datagram, which `chunks` would leave out.
#[derive(Clone)]
struct Payloads<'a> {
    rest: Option<&'a [u8]>,
    size: usize,
}

impl<'a> Iterator for Payloads<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        let (next, rest) = rest.split_at_checked(self.size).unwrap_or((rest, &[]));
        self.rest = if rest.is_empty() { None } else { Some(rest) };
        Some(next)
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&self.socket).finish()
    }
}

impl fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.gro_batches()).finish()
    }
}
