use std::{
    fmt,
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll, ready},
};

use crate::{
    UdpSocket,
    decision::Errno,
    sys::{self, RawTrain},
    transmit::Ecn,
};

/// Receives. See [`UdpSocket::receiver`].
#[derive(Debug)]
pub struct Receiver {
    socket: UdpSocket,
}

/// Room for what one call receives: `slots` trains of up to 64 KiB. It belongs to a thread rather than to a socket;
/// memory that no datagram has reached yet is not resident.
pub struct RecvBatch {
    buffers: sys::Buffers,
    filled: usize,
    fallback_ip: Option<IpAddr>,
}

/// A run of datagrams of one flow that the system received as one (GRO), or a single datagram.
#[derive(Clone, Copy, Debug)]
pub struct Train<'a> {
    /// Who sent it. An IPv4 address is never shown as mapped into IPv6.
    pub source: SocketAddr,
    /// The address it came to, where known.
    pub local_ip: Option<IpAddr>,
    /// The ECN field of its datagrams.
    pub ecn: Option<Ecn>,
    /// The length of every datagram but the last, which may be shorter.
    pub segment_size: usize,
    /// The datagrams, one after the other.
    pub payload: &'a [u8],
}

/// A received datagram, borrowed from the [`RecvBatch`].
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Who sent it. An IPv4 address is never shown as mapped into IPv6.
    pub source: SocketAddr,
    /// The address it came to, where known.
    pub local_ip: Option<IpAddr>,
    /// Its ECN field.
    pub ecn: Option<Ecn>,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// Errors about earlier datagrams that a receive may come across before it lets others run.
const PENDING_ERRORS: usize = 16;

/// Whether an error of a receive is about a datagram that was sent earlier.
fn is_about_the_past(error: &io::Error) -> bool {
    match sys::errno(error) {
        Errno::Refused
        | Errno::Unreachable
        | Errno::MessageSize
        | Errno::NotPermitted
        | Errno::Interrupted
        | Errno::NoBuffers => true,
        Errno::WouldBlock | Errno::Invalid | Errno::Io | Errno::Other => false,
    }
}

impl Receiver {
    pub(crate) fn new(socket: UdpSocket) -> Self {
        Self { socket }
    }

    /// Fills `batch` with what has arrived; waits when that is nothing. An owner who cares for
    /// [`UdpSocket::next_icmp_error`] asks for it after each call, also when this is pending.
    ///
    /// An error that an earlier send left on the socket (an ICMP message, say) is skipped: it does not concern what
    /// is received, and must not end a receive loop.
    ///
    /// # Errors
    /// The system's, when the socket itself has failed.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>, batch: &mut RecvBatch) -> Poll<io::Result<()>> {
        let inner = &*self.socket.0;
        batch.filled = 0;
        batch.fallback_ip = inner.local_ip();
        for _ in 0..PENDING_ERRORS {
            match ready!(inner.io.poll_receive(cx, || batch.buffers.receive(inner.sock_ref(), &inner.state))) {
                Ok(slots) => {
                    batch.filled = slots;
                    inner.stats.receive(batch.trains().map(|t| t.datagram_count()).sum());
                    return Poll::Ready(Ok(()));
                }
                // Someone else's misfortune: an undrained queue of them would fill the receive buffer.
                Err(e) if is_about_the_past(&e) => {
                    inner.drain_errors(None);
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        // A flood of them. Others may run, and then this goes on.
        cx.waker().wake_by_ref();
        Poll::Pending
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

impl RecvBatch {
    /// Room for 1 to 64 trains; another number is brought into that range. More save system calls; eight, half a megabyte of
    /// full trains, stay in most caches until they are sent on.
    pub fn new(slots: usize) -> Self {
        Self { buffers: sys::Buffers::new(slots.clamp(1, 64)), filled: 0, fallback_ip: None }
    }

    /// What was received last, by train.
    pub fn trains(&self) -> impl Iterator<Item = Train<'_>> {
        (0..self.filled).filter_map(|slot| self.train(slot))
    }

    /// One of them, by its place.
    pub fn train(&self, slot: usize) -> Option<Train<'_>> {
        if slot >= self.filled {
            return None;
        }
        let RawTrain { source, local_ip, ecn, segment_size, payload } = self.buffers.train(slot)?;
        Some(Train { source, local_ip: local_ip.or(self.fallback_ip), ecn, segment_size, payload })
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
    pub fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        self.trains().flat_map(|train| train.datagrams())
    }
}

impl<'a> Train<'a> {
    /// The payloads.
    #[inline]
    pub fn payloads(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        // `chunks` would yield nothing for no bytes, but an empty datagram is one.
        let empty = self.payload.is_empty().then_some(self.payload);
        self.payload.chunks(self.segment_size.max(1)).chain(empty)
    }

    /// The datagrams.
    pub fn datagrams(&self) -> impl Iterator<Item = Datagram<'a>> + use<'a> {
        let Self { source, local_ip, ecn, .. } = *self;
        self.payloads().map(move |payload| Datagram { source, local_ip, ecn, payload })
    }

    /// How many datagrams it holds.
    pub fn datagram_count(&self) -> usize {
        self.payload.len().div_ceil(self.segment_size.max(1)).max(1)
    }
}

impl fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.trains()).finish()
    }
}
