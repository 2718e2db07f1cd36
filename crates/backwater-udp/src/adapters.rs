//! [`Sink`] and [`Stream`] for those who would rather own their datagrams than poll.

#[cfg(feature = "gotatun")]
pub(crate) mod gotatun;
#[cfg(feature = "noq")]
pub(crate) mod noq;
#[cfg(feature = "quinn")]
pub(crate) mod quinn;

use std::{
    fmt,
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use futures_core::{FusedStream, Stream};
use futures_sink::Sink;
use tokio::task::coop;

use crate::{
    Ecn,
    receiver::{GroBatch, Receiver, RecvBatch},
    sender::Sender,
    transmit::OwnedTransmit,
};

/// How long a socket for QUIC holds a datagram: an outage of the link that is shorter costs none, and a longer one no more than a
/// few. In `cargo xtask bench quic` 20 ms to 2 s made no difference to goodput; what a shorter deadline dropped was declared lost.
#[cfg(any(feature = "quinn", feature = "noq"))]
pub const QUIC_DEADLINE: std::time::Duration = std::time::Duration::from_secs(1);

/// A socket with this deadline.
#[cfg(any(feature = "quinn", feature = "noq"))]
fn bind_for_quic(addr: SocketAddr) -> io::Result<crate::UdpSocket> {
    let policy = crate::Policy::Wait { deadline: QUIC_DEADLINE };
    crate::UdpSocket::builder().backpressure(crate::Backpressure::new(policy)).bind(addr)
}

/// Receives for a QUIC library, whose metas are of another type.
#[cfg(any(feature = "quinn", feature = "noq"))]
#[derive(Debug)]
struct QuicReceiver {
    receiver: Receiver,
    metas: Vec<crate::RecvMeta>,
}

#[cfg(any(feature = "quinn", feature = "noq"))]
impl QuicReceiver {
    fn new(receiver: Receiver) -> Self {
        Self { receiver, metas: Vec::new() }
    }

    fn poll_recv<M>(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        metas: &mut [M],
        translate: impl Fn(&crate::RecvMeta) -> M,
    ) -> Poll<io::Result<usize>> {
        self.metas.resize(metas.len(), crate::RecvMeta::default());
        let received = ready!(self.receiver.poll_recv_into(cx, bufs, &mut self.metas))?;
        for (meta, told) in metas.iter_mut().zip(&self.metas).take(received) {
            *meta = translate(told);
        }
        Poll::Ready(Ok(received))
    }
}

/// A datagram that owns its bytes: what a [`DatagramSink`] takes and a [`DatagramStream`] yields.
///
/// It means the same on both sides, so that one which was received goes back whence it came when it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedDatagram {
    /// Where it goes, or where it came from.
    pub peer: SocketAddr,
    /// The address of this host that it leaves from, or that it came to. `None` where the system chooses, or does not say.
    pub local_ip: Option<IpAddr>,
    /// Its ECN field; `None` is not-ECT.
    pub ecn: Option<Ecn>,
    /// Its bytes.
    pub payload: Bytes,
}

impl From<(SocketAddr, Bytes)> for OwnedDatagram {
    fn from((peer, payload): (SocketAddr, Bytes)) -> Self {
        Self { peer, local_ip: None, ecn: None, payload }
    }
}

/// Sends [`OwnedDatagram`]s one by one, and holds the one that there is no room for.
///
/// `start_send` offers the datagram to the system at once; `poll_ready` and `poll_flush` are pending while it is held, and
/// the [policy](crate::Policy) of the socket says how long that may be. A datagram that is dropped for a reason (too large,
/// unreachable, too old) is not an error: the socket's [`Stats`](crate::Stats) count it. An error means that the socket has
/// failed, and that the datagram, if one was held, is counted as dropped for that.
///
/// Cancel safe: what is held stays held when a future that waits for it is dropped. When the sink itself is dropped, it is
/// counted as [`Cancelled`](crate::DropReason::Cancelled).
///
/// ```
/// use backwater_udp::{DatagramSink, DatagramStream, UdpSocket};
/// use bytes::Bytes;
/// use futures_util::{SinkExt, StreamExt};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let here = UdpSocket::bind("127.0.0.1:0".parse().unwrap())?;
/// let there = UdpSocket::bind("127.0.0.1:0".parse().unwrap())?;
///
/// let mut sink = DatagramSink::new(here.sender());
/// sink.feed((there.local_addr(), Bytes::from_static(b"one")).into()).await?;
/// sink.send((there.local_addr(), Bytes::from_static(b"two")).into()).await?;
///
/// let mut stream = DatagramStream::new(there.receiver());
/// for expected in ["one", "two"] {
///     let datagram = stream.next().await.unwrap()?;
///     assert_eq!((datagram.peer, &*datagram.payload), (here.local_addr(), expected.as_bytes()));
/// }
/// # std::io::Result::Ok(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct DatagramSink {
    sender: Sender,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    datagram: OwnedDatagram,
    transmit: OwnedTransmit,
}

impl DatagramSink {
    /// Sends with this sender.
    pub fn new(sender: Sender) -> Self {
        Self { sender, held: None }
    }

    /// The sender.
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// The datagram that there was no room for, if any.
    pub fn held(&self) -> Option<&OwnedDatagram> {
        self.held.as_ref().map(|held| &held.datagram)
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(held) = &mut self.held else { return Poll::Ready(Ok(())) };
        let done = ready!(self.sender.poll_send_owned(cx, &mut held.transmit));
        self.held = None;
        Poll::Ready(done.map(drop))
    }
}

impl Sink<OwnedDatagram> for DatagramSink {
    type Error = io::Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A task that sends in a loop lets others run, as with tokio's sockets.
        ready!(coop::poll_proceed(cx)).made_progress();
        self.get_mut().poll_held(cx)
    }

    /// Offers the datagram to the system.
    ///
    /// # Errors
    /// The system's, when the socket has failed. `InvalidInput` while another datagram is held, since `poll_ready` was not
    /// waited for; this one then was never accepted, and is not counted.
    fn start_send(self: Pin<&mut Self>, datagram: OwnedDatagram) -> io::Result<()> {
        let this = self.get_mut();
        if this.held.is_some() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "start_send before poll_ready was ready"));
        }
        let transmit = OwnedTransmit::new(datagram.peer, datagram.payload.clone());
        let transmit = transmit.source(datagram.local_ip).ecn(datagram.ecn);
        this.held = Some(Held { datagram, transmit });
        // Offered now, it is counted from now on. Whoever waits for it polls again, with a waker of his own.
        match this.poll_held(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => done,
            Poll::Pending => Ok(()),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_held(cx)
    }

    /// Waits for what is held; the socket stays open, and the sink can be used again.
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_held(cx)
    }
}

/// Yields what a socket receives as [`OwnedDatagram`]s.
///
/// The datagrams of a train, and of trains after it, share an allocation, which is used again once all of them are gone: a
/// consumer that keeps up costs none. One that keeps single datagrams for long had better copy them, since each keeps up
/// to 128 KiB alive.
///
/// It ends when the socket has failed, after the error. Cancel safe.
pub struct DatagramStream {
    receiver: Receiver,
    batch: RecvBatch,
    /// The next train of the batch that is not taken apart yet.
    next_slot: usize,
    current: Option<Rest>,
    /// Where payloads are copied to.
    arena: BytesMut,
    failed: bool,
}

/// What is left of a train. It has at least one datagram, perhaps an empty one.
#[derive(Debug)]
struct Rest {
    peer: SocketAddr,
    local_ip: Option<IpAddr>,
    ecn: Option<Ecn>,
    segment_size: usize,
    payload: Bytes,
}

/// Twice the longest train: at the most one allocation for its bytes and one for their count, in two trains.
const ARENA: usize = 128 << 10;

/// Trains that a stream receives in one call, unless it is told otherwise.
const SLOTS: usize = 8;

impl DatagramStream {
    /// Yields what arrives there.
    pub fn new(receiver: Receiver) -> Self {
        Self::with_batch(receiver, RecvBatch::new(SLOTS))
    }

    /// As [`new`](Self::new), with a batch to receive into; what it holds is not yielded.
    pub fn with_batch(receiver: Receiver, batch: RecvBatch) -> Self {
        let next_slot = batch.len();
        Self { receiver, batch, next_slot, current: None, arena: BytesMut::new(), failed: false }
    }

    /// The next datagram; waits until there is one. Cancel safe.
    ///
    /// # Errors
    /// When the socket has failed; see [`Receiver::poll_recv`].
    pub async fn recv(&mut self) -> io::Result<OwnedDatagram> {
        let next = poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await;
        next.unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
    }

    /// Copies the next datagram into `buffer`; waits until there is one. Returns its length and who sent it. What does not fit into the
    /// buffer is lost, as with `recvfrom`. Cancel safe.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn recv_from(&mut self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let OwnedDatagram { peer, payload, .. } = self.recv().await?;
        let len = payload.len().min(buffer.len());
        if let (Some(room), Some(bytes)) = (buffer.get_mut(..len), payload.get(..len)) {
            room.copy_from_slice(bytes);
        }
        Ok((len, peer))
    }

    fn take_next(&mut self) -> Option<OwnedDatagram> {
        if self.current.is_none() {
            let train = self.batch.gro_batch(self.next_slot)?;
            self.next_slot += 1;
            self.current = Some(Rest::of(&train, &mut self.arena));
        }
        let rest = self.current.as_mut()?;
        let datagram = rest.take_next();
        if rest.payload.is_empty() {
            self.current = None;
        }
        Some(datagram)
    }
}

impl Rest {
    fn of(train: &GroBatch<'_>, arena: &mut BytesMut) -> Self {
        let GroBatch { source: peer, local_ip, ecn, segment_size, payload, .. } = *train;
        if arena.capacity() < payload.len() {
            arena.reserve(ARENA.max(payload.len()));
        }
        arena.extend_from_slice(payload);
        Self { peer, local_ip, ecn, segment_size, payload: arena.split().freeze() }
    }

    fn take_next(&mut self) -> OwnedDatagram {
        let len = self.payload.len().min(self.segment_size.max(1));
        OwnedDatagram { peer: self.peer, local_ip: self.local_ip, ecn: self.ecn, payload: self.payload.split_to(len) }
    }
}

impl Stream for DatagramStream {
    type Item = io::Result<OwnedDatagram>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(datagram) = this.take_next() {
                return Poll::Ready(Some(Ok(datagram)));
            }
            if this.failed {
                return Poll::Ready(None);
            }
            let received = ready!(this.receiver.poll_recv(cx, &mut this.batch));
            this.next_slot = 0;
            if let Err(e) = received {
                this.failed = true;
                return Poll::Ready(Some(Err(e)));
            }
        }
    }
}

impl FusedStream for DatagramStream {
    fn is_terminated(&self) -> bool {
        self.failed
    }
}

impl fmt::Debug for DatagramStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramStream").field("receiver", &self.receiver).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::RecvMeta;

    fn train(payload: &[u8], segment_size: usize) -> GroBatch<'_> {
        let source = SocketAddr::from(([127, 0, 0, 1], 9));
        let meta = RecvMeta { source, ecn: Some(Ecn::Ect0), segment_size, len: payload.len(), ..RecvMeta::default() };
        GroBatch::new(&meta, None, payload)
    }

    fn take_apart(rest: &mut Rest) -> VecDeque<Bytes> {
        let mut payloads = VecDeque::from([rest.take_next().payload]);
        while !rest.payload.is_empty() {
            payloads.push_back(rest.take_next().payload);
        }
        payloads
    }

    #[test]
    fn a_train_is_taken_apart_as_it_was_cut() {
        let data: Vec<u8> = (0..=255).collect();
        for (len, segment) in [(0, 0), (0, 100), (1, 1), (200, 100), (250, 100), (256, 256), (10, 100)] {
            let train = train(&data[..len], segment);
            let got = take_apart(&mut Rest::of(&train, &mut BytesMut::new()));
            assert!(train.payloads().eq(got.iter().map(|p| &**p)), "{len} {segment}");
        }
    }

    #[test]
    fn trains_share_an_allocation_and_use_it_again() {
        let (data, mut arena) = (vec![7; 20_000], BytesMut::new());
        let mut payloads = VecDeque::new();
        for _ in 0..6 {
            payloads.extend(take_apart(&mut Rest::of(&train(&data, 1000), &mut arena)));
        }
        assert_eq!(payloads.len(), 120);
        for (a, b) in payloads.iter().zip(payloads.iter().skip(1)) {
            assert_eq!(a.as_ptr_range().end, b.as_ptr(), "in one piece");
        }
        let start = payloads[0].as_ptr();
        payloads.clear();
        let again = take_apart(&mut Rest::of(&train(&data, 1000), &mut arena));
        assert_eq!(again[0].as_ptr(), start, "used again");
    }
}
