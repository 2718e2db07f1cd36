use std::{
    future::poll_fn,
    io::{self, IoSlice},
    net::SocketAddr,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::task::coop;

use crate::{
    UdpSocket,
    stats::{DropReason, SendReport},
    transmit::{OwnedTransmit, Transmit},
    wait::core::SenderCore,
};

/// Sends on a [`UdpSocket`]; one for each task that sends.
///
/// It is small, and has no descriptor and no timer of its own until it has to wait for the first time; it gives them back
/// when it has not had to for some seconds.
#[derive(Debug)]
pub struct Sender(SenderCore<UdpSocket>);

impl Sender {
    pub(crate) fn new(socket: UdpSocket) -> Self {
        Self(SenderCore::new(socket))
    }

    /// The socket it sends on.
    pub fn socket(&self) -> &UdpSocket {
        self.0.core().io()
    }

    /// Whether the system has taken nothing of what this sender offered for five seconds (Apple's systems: 30, since their
    /// flow control may take 20 on a slow link): the owner may want to [`rebind`](UdpSocket::rebind) the socket. Any datagram that is taken ends it. True
    /// under either policy; [`try_send`](Self::try_send) alone never makes it true.
    pub fn is_stuck(&self) -> bool {
        self.0.core().is_stuck()
    }

    /// How long the system has taken nothing of what this sender offered; `None` if it took the last.
    pub fn blocked_for(&self) -> Option<Duration> {
        self.0.core().blocked_for()
    }

    /// Sends what is left of `t`, or drops it for a reason, or holds it: `Pending` until there is room.
    ///
    /// Offer the same `t` again after a wake-up. What was held of another one is given up, and counted as
    /// [`Cancelled`](crate::DropReason::Cancelled); so is what is held when the sender is dropped. A transmit that was given up
    /// may be offered again, to any sender, and what is left of it is then accepted anew.
    ///
    /// One poll makes at most 64 system calls: a transmit that takes more is `Pending`, with the task woken. Calling it in a loop
    /// takes nothing of tokio's cooperative budget, unlike [`send`](Self::send).
    ///
    /// # Errors
    /// Only when the socket has failed; what was left of `t` is then dropped. A destination that cannot be reached, a
    /// firewall, or a datagram that is too large are not errors but reasons in the report, and nothing waits for them.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, t: &mut Transmit<'_>) -> Poll<io::Result<SendReport>> {
        self.0.poll_send_batch(cx, std::slice::from_mut(t))
    }

    /// As [`poll_send`](Self::poll_send), for a transmit that owns its bytes.
    ///
    /// # Errors
    /// As [`poll_send`](Self::poll_send).
    pub fn poll_send_owned(&mut self, cx: &mut Context<'_>, t: &mut OwnedTransmit) -> Poll<io::Result<SendReport>> {
        t.lend(|t| self.poll_send(cx, t))
    }

    /// As [`poll_send`](Self::poll_send), for transmits to several destinations. One that is refused or broken does not
    /// stop those after it, unless they go to the same destination: its datagrams stay in order. The report is of all of them.
    ///
    /// # Errors
    /// As [`poll_send`](Self::poll_send).
    pub fn poll_send_batch(&mut self, cx: &mut Context<'_>, ts: &mut [Transmit<'_>]) -> Poll<io::Result<SendReport>> {
        self.0.poll_send_batch(cx, ts)
    }

    /// Sends `t`; waits while there is no room. A task that sends in a loop yields now and then (tokio's cooperative budget).
    ///
    /// Cancel safe: a future that is dropped leaves `t` where it is, and what was held of it is counted as cancelled at once. Send
    /// it again, or let go of it.
    ///
    /// # Errors
    /// As [`poll_send`](Self::poll_send).
    pub async fn send(&mut self, t: &mut Transmit<'_>) -> io::Result<SendReport> {
        let sending = Sending { sender: self, t };
        poll_fn(|cx| {
            ready!(coop::poll_proceed(cx)).made_progress();
            sending.sender.poll_send(cx, sending.t)
        })
        .await
    }

    /// Sends one datagram; waits while there is no room. For those who would rather have an error than a [`SendReport`].
    ///
    /// Cancel safe: the datagram of a future that is dropped has been sent, or is counted as cancelled.
    ///
    /// # Errors
    /// When the datagram was dropped: `get_ref().downcast_ref::<DropReason>()` of the error says why, and the socket goes on. Else as
    /// [`poll_send`](Self::poll_send).
    pub async fn send_to(&mut self, payload: &[u8], destination: SocketAddr) -> io::Result<()> {
        let payload = [IoSlice::new(payload)];
        let report = self.send(&mut Transmit::new(destination, &payload)).await?;
        match DropReason::ALL.into_iter().find(|&reason| report.dropped.get(reason) > 0) {
            Some(reason) => Err(io::Error::other(reason)),
            None => Ok(()),
        }
    }

    /// Sends as much of `t` as the system takes now. Nothing is held: what is left stays the caller's, and only what is
    /// sent or dropped is counted as accepted.
    ///
    /// # Errors
    /// `WouldBlock` when some of `t` is left, whether the system said `EWOULDBLOCK` or `ENOBUFS`; else as
    /// [`poll_send`](Self::poll_send).
    pub fn try_send(&mut self, t: &mut Transmit<'_>) -> io::Result<SendReport> {
        self.0.try_send(t)
    }

    /// Waits until another [`try_send`](Self::try_send) may find room, without a datagram: ready at once, unless the last one was
    /// refused. For event loops whose own it is to keep what was refused; [`poll_send`](Self::poll_send) needs no such loop.
    ///
    /// Only a datagram can find out whether a path has room, so the next `try_send` may be refused again, and the back-off then goes on
    /// from where it was. Ready after the deadline of [`Policy::Wait`](crate::Policy::Wait) in any case, and always under
    /// [`Policy::Drop`](crate::Policy::Drop): the caller then drops what it has, or tries again. What this sender holds of a transmit is
    /// given up.
    ///
    /// # Errors
    /// When the socket has failed.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_room(cx)
    }
}

#[cfg(feature = "quinn")]
impl Sender {
    /// Gives up what it holds.
    pub(crate) fn cancel(&mut self) {
        self.0.give_up(&mut []);
    }
}

/// A send that nobody waits for any more holds nothing, and has no turn.
struct Sending<'s, 't, 'a> {
    sender: &'s mut Sender,
    t: &'t mut Transmit<'a>,
}

impl Drop for Sending<'_, '_, '_> {
    fn drop(&mut self) {
        self.sender.0.give_up(std::slice::from_mut(self.t));
    }
}
