//! Windows has no `AsyncFd`: senders share the readiness of tokio's socket, which remembers one waker. The timer
//! behind every wait serves the others.

use std::{
    io,
    task::{Context, Poll, ready},
};

use tokio::{io::Interest, net::UdpSocket};

pub(crate) struct Registration;

impl Registration {
    pub(crate) fn new(_socket: &UdpSocket) -> io::Result<Self> {
        Ok(Self)
    }

    /// Calls `attempt` once the reactor says writable; its `WouldBlock` clears that. Ready when it did something else.
    pub(crate) fn poll_write<R>(
        &self,
        socket: &UdpSocket,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            ready!(socket.poll_send_ready(cx))?;
            match socket.try_io(Interest::WRITABLE, &mut attempt) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}
