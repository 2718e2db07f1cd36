//! A queue for one socket and many destinations.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll},
    time::Duration,
};

use crate::{UdpSocket, stats::SendReport, transmit::Transmit, wait::core::QueueCore};

/// Sends to many destinations on one socket, and keeps what there is no room for: for a task that must not wait for any of them.
///
/// Kernels refuse a *path* (an interface's queue, a traffic class, a full neighbour table), not a socket. So what is refused
/// waits in a line for its key, by default its destination, and other keys' datagrams go on. `EWOULDBLOCK` alone means that
/// the socket has no room for anyone. Lines are served by turns, so many bytes each (deficit round robin). Each key, and all together,
/// keep no more than the [`QueueBounds`] say, and nothing for longer than the [`Policy`](crate::Policy) of the socket; under
/// [`Policy::Drop`](crate::Policy::Drop) nothing is kept.
///
/// A path with a deep queue refuses nothing, but keeps the send buffer full, which stops all keys. So on Linux a key that sends while
/// the send buffer is more than half full gets a send-only socket of its own (16 at most, 256 in a process), which sends from the same
/// address and port, and receives nothing. It is given back once it has been empty and idle for ten seconds, and closed if it fails: what
/// waits there goes on by the shared socket. `docs/backpressure.md` says more.
///
/// On Apple's systems, where an unconnected socket is told nothing of congestion, a key that sends 16 datagrams at once, or 25 in a second, to one
/// destination gets a connected socket instead (as many). What it receives arrives at the [`Receiver`](crate::Receiver) of the queue's socket, which
/// has to be polled.
///
/// A transmit is counted as accepted, sent, dropped or held from when it is given to the queue; what the queue holds when it is
/// dropped is counted as [`Cancelled`](crate::DropReason::Cancelled).
///
/// [`poll_flush`](Self::poll_flush) has to be polled by a task: it sends what waits, and is the only one to wait.
///
/// ```
/// use backwater_udp::{QueueBounds, DatagramStream, SendQueue, Transmit, UdpSocket};
/// use std::{future::poll_fn, io::IoSlice};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let here = UdpSocket::bind("127.0.0.1:0".parse().unwrap())?;
/// let there = UdpSocket::bind("127.0.0.1:0".parse().unwrap())?;
/// let mut queue = SendQueue::new(here, QueueBounds::default());
/// let to = there.local_addr();
/// let payload = [IoSlice::new(b"hello")];
/// queue.send(to, &mut Transmit::new(to, &payload))?;
/// poll_fn(|cx| queue.poll_flush(cx)).await?;
/// assert_eq!(&*DatagramStream::new(there.receiver()).recv().await?.payload, b"hello");
/// # std::io::Result::Ok(()) }).unwrap();
/// ```
pub struct SendQueue<K: Copy + Ord = SocketAddr>(QueueCore<UdpSocket, K>);

/// How much a [`SendQueue`] keeps, in bytes of payload, 4 GiB at most; a transmit counts 512 at least, which is what one costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueBounds {
    /// Of one key.
    pub of_a_key: usize,
    /// Of all keys together.
    pub of_all: usize,
    /// Keys that may have a socket of their own at a time, 16 at most. On Linux that socket only sends; on Apple's systems it is connected to
    /// the key's destination; on other systems no key gets one. All queues of a process together have 256, so that a queue whose keys
    /// all belong to one user wants none.
    pub dedicated_sockets: usize,
}

impl Default for QueueBounds {
    /// 256 KiB a key, 4 MiB together, 16 dedicated sockets.
    fn default() -> Self {
        Self { of_a_key: 256 << 10, of_all: 4 << 20, dedicated_sockets: 16 }
    }
}

/// A relay has one for each allocation: what is idle is small.
const _: () = assert!(size_of::<SendQueue>() <= 64);

impl<K: Copy + Ord> SendQueue<K> {
    /// A queue without anything in it.
    pub fn new(socket: UdpSocket, bounds: QueueBounds) -> Self {
        Self(QueueCore::new(socket, bounds))
    }

    /// The socket it sends on.
    pub fn socket(&self) -> &UdpSocket {
        self.0.core().io()
    }

    /// Sends what the system takes of `t` now, behind what waits under the same key, and keeps a copy of the rest or drops it:
    /// nothing of `t` is left to be offered again. The report is of what is done: what is missing from it is held.
    ///
    /// # Errors
    /// When the socket has failed; what was left of `t` is then dropped.
    pub fn send(&mut self, key: K, t: &mut Transmit<'_>) -> io::Result<SendReport> {
        self.0.send(key, t)
    }

    /// As [`send`](Self::send), but nothing is held: what there is no room for is dropped as
    /// [`NoBuffers`](crate::DropReason::NoBuffers). For answers to whom nothing is known of.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_or_drop(&mut self, key: K, t: &mut Transmit<'_>) -> io::Result<SendReport> {
        self.0.send_or_drop(key, t)
    }

    /// Sends what waits. Pending while something does; the task is woken when there may be room, and by a
    /// [`send`](Self::send) that begins to wait. A poll makes 64 system calls at most, and four for each send-only socket, and drops at
    /// most 1,024 datagrams; if there is more to do, it wakes the task again.
    ///
    /// Cancel safe: what waits goes on waiting.
    ///
    /// # Errors
    /// When the socket has failed; what waited is then dropped.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush_with(cx, |_, _, _| {})
    }

    /// As [`poll_flush`](Self::poll_flush), and tells what becomes of the datagrams that were held: calls `done` with a key, what was
    /// sent and dropped of what waited under it since the last call, and the bytes of payload that were sent.
    ///
    /// A key's datagrams that [`send`](Self::send) has held end in exactly one such report, but for those that are
    /// [cancelled](Self::cancel).
    ///
    /// # Errors
    /// As [`poll_flush`](Self::poll_flush).
    pub fn poll_flush_with(
        &mut self,
        cx: &mut Context<'_>,
        mut done: impl FnMut(K, &SendReport, usize),
    ) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx, &mut done)
    }

    /// Sends what waits under a key to `destination`, from `source`; the peer has moved. Returns at once.
    pub fn redirect(&mut self, key: K, destination: SocketAddr, source: Option<IpAddr>) {
        self.0.redirect(key, destination, source);
    }

    /// Gives up what waits under a key; it is counted as [`Cancelled`](crate::DropReason::Cancelled).
    pub fn cancel(&mut self, key: K) {
        self.0.cancel(key);
    }

    /// Datagrams that wait.
    pub fn held(&self) -> usize {
        self.0.held()
    }

    /// Bytes that wait under a key, as they count towards [`QueueBounds::of_a_key`].
    pub fn held_bytes(&self, key: K) -> usize {
        self.0.held_bytes(key)
    }

    /// As [`Sender::is_stuck`](crate::Sender::is_stuck), of the socket that all keys share.
    pub fn is_stuck(&self) -> bool {
        self.0.core().is_stuck()
    }

    /// As [`Sender::blocked_for`](crate::Sender::blocked_for), of the socket that all keys share.
    pub fn blocked_for(&self) -> Option<Duration> {
        self.0.core().blocked_for()
    }
}

impl<K: Copy + Ord> fmt::Debug for SendQueue<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendQueue").field("socket", self.socket()).field("held", &self.held()).finish_non_exhaustive()
    }
}
