//! [noq](https://docs.rs/noq/1) 1.4.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::SocketAddr,
    num::NonZeroUsize,
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::noq::{
    AsyncUdpSocket, UdpSender,
    udp::{self, EcnCodepoint},
};

use super::QuicReceiver;
use crate::{Ecn, Fragmentation, OwnedTransmit, RecvMeta, Sender, Transmit, UdpSocket};

/// A socket for [`noq::Endpoint::new_with_abstract_socket`](::noq::Endpoint::new_with_abstract_socket).
///
/// A batch that the system has no room for is kept and sent when there is room, in parts if need be, and the connection waits meanwhile.
/// Other connections of the endpoint go on. What is older than the deadline of the socket's [`Policy`](crate::Policy) is dropped and counted,
/// and noq is told that it was sent: its loss recovery takes over.
///
/// ```no_run
/// use backwater_udp::NoqSocket;
/// use std::sync::Arc;
///
/// # fn server(config: noq::EndpointConfig, server: noq::ServerConfig) -> std::io::Result<noq::Endpoint> {
/// let socket = Box::new(NoqSocket::bind("[::1]:4433".parse().unwrap())?);
/// noq::Endpoint::new_with_abstract_socket(config, Some(server), socket, Arc::new(noq::TokioRuntime))
/// # }
/// ```
#[derive(Debug)]
pub struct NoqSocket {
    socket: UdpSocket,
    receiver: QuicReceiver,
}

/// Sends for one task.
#[derive(Debug)]
struct NoqSender {
    sender: Sender,
    /// What was refused. noq offers it again.
    held: Option<OwnedTransmit>,
}

impl NoqSocket {
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
        let receiver = QuicReceiver::new(socket.receiver());
        Self { socket, receiver }
    }

    /// Its socket: for the counters and the policy.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }
}

impl AsyncUdpSocket for NoqSocket {
    fn create_sender(&self) -> Pin<Box<dyn UdpSender>> {
        Box::pin(NoqSender { sender: self.socket.sender(), held: None })
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.receiver.poll_recv(cx, bufs, meta, translated)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.socket.local_addr())
    }

    fn max_receive_segments(&self) -> NonZeroUsize {
        at_least_one(self.socket.max_receive_segments())
    }

    fn may_fragment(&self) -> bool {
        self.socket.fragmentation() == Fragmentation::Allowed
    }
}

impl UdpSender for NoqSender {
    fn poll_send(self: Pin<&mut Self>, transmit: &udp::Transmit<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { sender, held } = self.get_mut();
        let slices = [IoSlice::new(transmit.contents)];
        let mut t = Transmit::new(transmit.destination, &slices)
            .segment_size(transmit.segment_size.unwrap_or(0))
            .source(transmit.src_ip)
            .ecn(transmit.ecn.and_then(|ecn| Ecn::from_bits(ecn as u8)));
        if let Some(before) = held {
            if before.is_rest_of(&t, transmit.contents) {
                let sent = ready!(sender.poll_send_owned(cx, before));
                *held = None;
                return Poll::Ready(sent.map(drop));
            }
            // The connection has other plans.
            *held = None;
        }
        let sent = sender.poll_send(cx, &mut t);
        if sent.is_pending() {
            *held = Some(OwnedTransmit::from(&t));
        }
        sent.map_ok(drop)
    }

    fn max_transmit_segments(&self) -> NonZeroUsize {
        at_least_one(self.sender.socket().max_segments())
    }
}

fn translated(told: &RecvMeta) -> udp::RecvMeta {
    let mut meta = udp::RecvMeta::default();
    (meta.addr, meta.dst_ip) = (told.source, told.local_ip);
    (meta.len, meta.stride) = (told.len, told.segment_size);
    meta.ecn = told.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
    meta
}

fn at_least_one(segments: usize) -> NonZeroUsize {
    NonZeroUsize::new(segments).unwrap_or(NonZeroUsize::MIN)
}
