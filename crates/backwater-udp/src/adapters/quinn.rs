//! [quinn](https://docs.rs/quinn/0.11) 0.11.

use std::{
    cell::Cell,
    io::{self, IoSlice, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, ready},
};

use ::quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{self, EcnCodepoint},
};

use super::QuicReceiver;
use crate::{Ecn, Fragmentation, OwnedTransmit, RecvMeta, Sender, Transmit, UdpSocket};

/// A socket for [`quinn::Endpoint::new_with_abstract_socket`](::quinn::Endpoint::new_with_abstract_socket).
///
/// A batch that the system has no room for is kept and sent when there is room, in parts if need be, and the connection waits meanwhile.
/// Other connections of the endpoint go on. What is older than the deadline of the socket's [`Policy`](crate::Policy) is dropped and counted,
/// and quinn is told that it was sent: its loss recovery takes over. An answer of the endpoint's own (Retry, version negotiation,
/// stateless reset) that there is no room for is given up, as quinn expects.
///
/// ```no_run
/// use backwater_udp::QuinnSocket;
/// use std::sync::Arc;
///
/// # fn server(config: quinn::EndpointConfig, server: quinn::ServerConfig) -> std::io::Result<quinn::Endpoint> {
/// let socket = Arc::new(QuinnSocket::bind("[::1]:4433".parse().unwrap())?);
/// quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, Arc::new(quinn::TokioRuntime))
/// # }
/// ```
#[derive(Debug)]
pub struct QuinnSocket {
    socket: UdpSocket,
    receiver: Mutex<QuicReceiver>,
}

/// Waits for room for one connection.
#[derive(Debug)]
struct Poller(Arc<Mutex<Waiting>>);

#[derive(Debug)]
struct Waiting {
    sender: Sender,
    /// What was refused. quinn offers it again once the poller has said that there is room.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    transmit: OwnedTransmit,
    /// Whether it was sent or dropped, which quinn does not know yet.
    done: bool,
}

thread_local! {
    /// The poller that has said last that there is room: quinn calls `try_send` next, on the same thread, which does not say for
    /// whom.
    static LAST: Cell<Weak<Mutex<Waiting>>> = const { Cell::new(Weak::new()) };
}

impl QuinnSocket {
    /// A socket on this address, which holds a datagram for [`QUIC_DEADLINE`](crate::QUIC_DEADLINE) at most.
    ///
    /// # Errors
    /// As [`UdpSocketBuilder::bind`](crate::UdpSocketBuilder::bind).
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O and time drivers enabled.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        super::bind_for_quic(addr).map(Self::new)
    }

    /// As [`bind`](Self::bind), for a socket with options of its own: give its policy a deadline of
    /// [`QUIC_DEADLINE`](crate::QUIC_DEADLINE). Takes the receiver of `socket`.
    ///
    /// # Panics
    /// If it [is taken](UdpSocket::receiver).
    pub fn new(socket: UdpSocket) -> Self {
        let receiver = Mutex::new(QuicReceiver::new(socket.receiver()));
        Self { socket, receiver }
    }

    /// Its socket: for the counters and the policy.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// The poller that `try_send` is called for.
    fn waiting(&self) -> Option<Arc<Mutex<Waiting>>> {
        let waiting = LAST.try_with(Cell::take).ok()?.upgrade()?;
        let is_ours = Arc::ptr_eq(&lock(&waiting).sender.socket().0, &self.socket.0);
        is_ours.then_some(waiting)
    }
}

impl AsyncUdpSocket for QuinnSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller(Arc::new(Mutex::new(Waiting { sender: self.socket.sender(), held: None }))))
    }

    fn try_send(&self, transmit: &udp::Transmit<'_>) -> io::Result<()> {
        let slices = [IoSlice::new(transmit.contents)];
        let mut t = Transmit::new(transmit.destination, &slices)
            .segment_size(transmit.segment_size.unwrap_or(0))
            .source(transmit.src_ip)
            .ecn(transmit.ecn.and_then(|ecn| Ecn::from_bits(ecn as u8)));
        let Some(waiting) = self.waiting() else { return self.socket.try_send(&mut t).map(drop) };
        let Waiting { sender, held } = &mut *lock(&waiting);
        if let Some(before) = held.take() {
            match (before.transmit.is_rest_of(&t, transmit.contents), before.done) {
                (true, true) => return Ok(()),
                (true, false) => {
                    *held = Some(before);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                // The connection has other plans.
                (false, _) => sender.cancel(),
            }
        }
        sender.try_send(&mut t).map(drop).inspect_err(|error| {
            if error.kind() == io::ErrorKind::WouldBlock {
                *held = Some(Held { transmit: OwnedTransmit::from(&t), done: false });
            }
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        lock(&self.receiver).poll_recv(cx, bufs, meta, translated)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.socket.local_addr())
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.fragmentation() == Fragmentation::Allowed
    }
}

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Waiting { sender, held } = &mut *lock(&self.0);
        if let Some(held) = held
            && !held.done
        {
            ready!(sender.poll_send_owned(cx, &mut held.transmit))?;
            held.done = true;
        }
        let _ = LAST.try_with(|last| last.set(Arc::downgrade(&self.0)));
        Poll::Ready(Ok(()))
    }
}

fn translated(told: &RecvMeta) -> udp::RecvMeta {
    let mut meta = udp::RecvMeta::default();
    (meta.addr, meta.dst_ip) = (told.source, told.local_ip);
    (meta.len, meta.stride) = (told.len, told.segment_size);
    meta.ecn = told.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
    meta
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
