use std::{
    fmt,
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Sleep;

use crate::{
    Ecn, UdpSocket,
    sys::{self, RawTrain},
    wait::decision::Errno,
};

/// Receives. See [`UdpSocket::receiver`].
pub struct Receiver {
    socket: UdpSocket,
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

/// A run of datagrams of one flow that the system received as one (GRO), or a single datagram.
#[derive(Clone, Copy, Debug)]
pub struct Train<'a> {
    /// Who sent it. An IPv4 address is never shown as mapped into IPv6.
    pub source: SocketAddr,
    /// The address it came to, where known.
    pub local_ip: Option<IpAddr>,
    /// The ECN field of its datagrams.
    pub ecn: Option<Ecn>,
    /// The time to live (IPv4) or hop limit (IPv6) that its datagrams arrived with, where
    /// [`Builder::receive_hop_limit`](crate::Builder::receive_hop_limit) asks for it.
    pub hop_limit: Option<u8>,
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

/// Errors that a receive may come across before it lets others run.
const ERRORS_PER_POLL: usize = 16;

/// How long receiving rests when each of so many attempts has failed, and not because of ICMP messages.
const PAUSE: Duration = Duration::from_millis(10);

impl Receiver {
    pub(crate) fn new(socket: UdpSocket) -> Self {
        Self { socket, pause: None, idle: true }
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
        let inner = &*self.socket.0;
        batch.filled = 0;
        batch.fallback_ip = inner.local_ip();
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let (mut failed, idle) = (0, &mut self.idle);
        for _ in 0..ERRORS_PER_POLL {
            let seen = inner.events.icmp_errors();
            let received = inner.intake.poll_receive(&inner.io, cx, &mut batch.buffers, |buffers| {
                let received = buffers.receive(inner.sock_ref(), &inner.state);
                let is_empty = matches!(&received, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
                // Woken for nothing: the error queue has entries that no call reports, timestamps of sent datagrams say.
                if std::mem::replace(idle, is_empty) && is_empty {
                    inner.drain_errors(None, u64::MAX);
                }
                received
            });
            match ready!(received) {
                Ok(slots) => {
                    batch.filled = slots;
                    inner.stats.receive(batch.trains().map(|t| t.datagram_count()).sum());
                    return Poll::Ready(Ok(()));
                }
                Err(e) if sys::errno(&e) == Errno::Socket => return Poll::Ready(Err(e)),
                // Whatever its number, it may be about an earlier datagram; and an undrained queue of such errors would fill
                // the receive buffer.
                Err(e) => {
                    let is_known = matches!(sys::errno(&e), Errno::Interrupted | Errno::Refused);
                    if !inner.drain_errors(None, seen).icmp && !is_known {
                        failed += 1;
                        inner.stats.receive_error(&e);
                    }
                }
            }
        }
        if failed == ERRORS_PER_POLL {
            let pause = self.pause.insert(Box::pin(tokio::time::sleep(PAUSE)));
            ready!(pause.as_mut().poll(cx));
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
        let RawTrain { source, local_ip, ecn, hop_limit, segment_size, payload } = self.buffers.train(slot)?;
        Some(Train { source, local_ip: local_ip.or(self.fallback_ip), ecn, hop_limit, segment_size, payload })
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
    pub fn payloads(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        Payloads { rest: Some(self.payload), size: self.segment_size.max(1) }
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
        f.debug_list().entries(self.trains()).finish()
    }
}
