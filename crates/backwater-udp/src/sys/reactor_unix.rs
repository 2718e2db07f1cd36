//! Readiness through tokio's reactor, by descriptor.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsFd, OwnedFd},
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::io::{Interest, unix::AsyncFd};

/// A socket, registered to receive. Not to send: each freed buffer would wake the reactor, and one error would latch
/// "write closed" for as long as the socket lives.
pub(crate) struct Io(AsyncFd<UdpSocket>);

impl Io {
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        // SAFETY: a `UdpSocket` is open and names one description until it is dropped, which the `AsyncFd` does.
        let io = unsafe { AsyncFd::register_with_interest(socket, super::imp::RECEIVE_INTEREST) }?;
        Ok(Self(io))
    }

    pub(crate) fn sock_ref(&self) -> SockRef<'_> {
        SockRef::from(self.0.get_ref())
    }

    /// Calls `receive` when there may be something, until it is not `WouldBlock`.
    pub(crate) fn poll_receive<R>(
        &self,
        cx: &mut Context<'_>,
        mut receive: impl FnMut() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            if let Ok(result) = guard.try_io(|_| receive()) {
                return Poll::Ready(result);
            }
        }
    }
}

/// A sender's own registration: a duplicate of the descriptor.
pub(crate) struct Registration(Option<AsyncFd<OwnedFd>>);

impl Registration {
    pub(crate) fn new(io: &Io) -> io::Result<Self> {
        Self::register(io.0.as_fd().try_clone_to_owned()?)
    }

    /// Registers anew. The reactor looks at the socket again, and forgets closed bits, which it never clears otherwise.
    pub(crate) fn renew(&mut self) -> io::Result<()> {
        if let Some(fd) = self.0.take() {
            *self = Self::register(fd.into_inner())?;
        }
        Ok(())
    }

    /// Calls `attempt`, once, when the reactor says writable. Its `WouldBlock` clears that.
    pub(crate) fn poll_write<R>(
        &mut self,
        _io: &Io,
        cx: &mut Context<'_>,
        attempt: impl FnOnce() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let fd = self.0.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut guard = ready!(fd.poll_write_ready(cx))?;
        let result = guard.try_io(|_| attempt());
        Poll::Ready(result.unwrap_or_else(|_would_block| Err(io::ErrorKind::WouldBlock.into())))
    }

    fn register(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is open and names one description until it is dropped, which the `AsyncFd` does.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::WRITABLE) }?;
        Ok(Self(Some(fd)))
    }
}
