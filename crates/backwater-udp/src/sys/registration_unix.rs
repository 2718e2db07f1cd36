//! A sender's own registration with the reactor: a duplicate of the descriptor in an `AsyncFd`.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UdpSocket,
};

pub(crate) struct Registration(AsyncFd<OwnedFd>);

impl Registration {
    pub(crate) fn new(socket: &UdpSocket) -> io::Result<Self> {
        let fd = socket.as_fd().try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` is open and names one description until it is dropped, which the `AsyncFd` does.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::WRITABLE) }?;
        Ok(Self(fd))
    }

    /// Calls `attempt` once the reactor says writable; its `WouldBlock` clears that. Ready when it did something else.
    pub(crate) fn poll_write<R>(
        &self,
        _socket: &UdpSocket,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|_| attempt()) {
                return Poll::Ready(result);
            }
        }
    }
}
