use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use crate::{UdpSocket, core::Core, stats::Report, transmit::Transmit};

/// Sends on a [`UdpSocket`]; one for each task that sends.
///
/// It is small, and has no descriptor and no timer of its own until it has to wait for the first time; it gives them back
/// when it has not had to for some seconds.
#[derive(Debug)]
pub struct Sender(Core<UdpSocket>);

impl Sender {
    pub(crate) fn new(socket: UdpSocket) -> Self {
        Self(Core::new(socket))
    }

    /// The socket it sends on.
    pub fn socket(&self) -> &UdpSocket {
        self.0.io()
    }

    /// Whether the socket has taken nothing for five seconds, though offered: the owner may want to bind a new one.
    pub fn is_stuck(&self) -> bool {
        self.0.is_stuck()
    }

    /// Sends what is left of `t`, or drops it for a reason, or holds it: `Pending` until there is room.
    ///
    /// Offer the same `t` again after a wake-up. What was held of another one is given up, and counted as
    /// [`Cancelled`](crate::DropReason::Cancelled); so is what is held when the sender is dropped.
    ///
    /// # Errors
    /// Only when the socket has failed; what was left of `t` is then dropped. A destination that cannot be reached, a
    /// firewall, or a datagram that is too large are not errors but reasons in the report, and nothing waits for them.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, t: &mut Transmit<'_>) -> Poll<io::Result<Report>> {
        self.0.poll_send_batch(cx, std::slice::from_mut(t))
    }

    /// As [`poll_send`](Self::poll_send), for transmits to several destinations. One that is refused or broken does not
    /// stop those after it. The report is of all of them.
    ///
    /// # Errors
    /// As [`poll_send`](Self::poll_send).
    pub fn poll_send_batch(&mut self, cx: &mut Context<'_>, ts: &mut [Transmit<'_>]) -> Poll<io::Result<Report>> {
        self.0.poll_send_batch(cx, ts)
    }

    /// Sends `t`; waits while there is no room.
    ///
    /// Cancel safe: a future that is dropped leaves `t` where it is. Send it again, or let go of it; what was held is
    /// counted as cancelled with the next datagram, or with the sender.
    ///
    /// # Errors
    /// As [`poll_send`](Self::poll_send).
    pub async fn send(&mut self, t: &mut Transmit<'_>) -> io::Result<Report> {
        poll_fn(|cx| self.poll_send(cx, t)).await
    }

    /// Sends as much of `t` as the system takes now. Nothing is held: what is left stays the caller's, and only what is
    /// sent or dropped is counted as accepted.
    ///
    /// # Errors
    /// `WouldBlock` when some of `t` is left, whether the system said `EWOULDBLOCK` or `ENOBUFS`; else as
    /// [`poll_send`](Self::poll_send).
    pub fn try_send(&mut self, t: &mut Transmit<'_>) -> io::Result<Report> {
        self.0.try_send(t)
    }
}
