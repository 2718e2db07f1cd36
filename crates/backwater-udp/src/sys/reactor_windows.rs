//! Readiness through tokio's socket: Windows has no `AsyncFd`.

use std::{
    io,
    net::UdpSocket,
    task::{Context, Poll, ready},
};

use socket2::{SockRef, Socket};
use tokio::io::Interest;

/// A socket, registered to receive and to send.
pub(crate) struct Io(tokio::net::UdpSocket);

impl Io {
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        tokio::net::UdpSocket::from_std(socket).map(Self)
    }

    pub(crate) fn sock_ref(&self) -> SockRef<'_> {
        SockRef::from(&self.0)
    }
}

/// The registration to receive is the socket's.
pub(crate) struct Reader;

impl Reader {
    pub(crate) const UNREGISTERED: Self = Self;

    pub(crate) fn new(_io: &Io) -> io::Result<Self> {
        Ok(Self)
    }

    /// Calls `receive` when there may be something, until it is not `WouldBlock`.
    pub(crate) fn poll_receive<R>(
        &mut self,
        io: &Io,
        cx: &mut Context<'_>,
        mut receive: impl FnMut() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            ready!(io.0.poll_recv_ready(cx))?;
            match io.0.try_io(Interest::READABLE, &mut receive) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// No call makes a handle name another socket.
    pub(crate) fn replace(&mut self, _io: &Io, _new: Socket) -> io::Result<Socket> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// All senders share the readiness of the socket, which remembers one waker. The timer behind every wait serves the
/// others.
pub(crate) struct Registration;

impl Registration {
    pub(crate) fn new(_io: &Io) -> io::Result<Self> {
        Ok(Self)
    }

    /// There is nothing to register anew.
    pub(crate) fn renew(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Whether the socket has become writable, and no attempt has cleared that.
    pub(crate) fn is_ready(&self, io: &Io) -> bool {
        io.0.try_io(Interest::WRITABLE, || Ok(())).is_ok()
    }

    /// Calls `attempt`, once, when the reactor says writable. Its `WouldBlock` clears that.
    pub(crate) fn poll_write<R>(
        &mut self,
        io: &Io,
        cx: &mut Context<'_>,
        attempt: impl FnOnce() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        ready!(io.0.poll_send_ready(cx))?;
        Poll::Ready(io.0.try_io(Interest::WRITABLE, attempt))
    }
}
