//! What a sender needs of the world besides the clock. The tests put a model of a reactor and a kernel in its place.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    Backpressure, Stats, UdpSocket,
    contention::Contention,
    decision::{Os, Refusal, Verdict, decide},
    events::IcmpKind,
    park::Parked,
    socket::Inner,
    sys::{self, Outgoing},
};

/// What an error queue held.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Drained {
    /// Anything that was received: about earlier datagrams, then, or so it seems.
    pub(crate) any: bool,
    /// A datagram to this destination was too large. Loopback answers within the call, so it may be the present one.
    pub(crate) too_big: bool,
}

pub(crate) trait Io {
    /// A sender's own registration with the reactor.
    type Registration;

    fn os(&self) -> Os;
    fn is_connected(&self) -> bool;
    /// How many datagrams a call may take at most, and how many bytes.
    fn limits(&self) -> (usize, usize);
    /// The system call.
    fn send(&self, out: &Outgoing<'_>) -> io::Result<()>;
    /// Sends as many of several as the system takes, in their order; an error is about the first of them.
    fn send_several<'a>(&self, outs: impl Iterator<Item = Outgoing<'a>>) -> io::Result<usize> {
        sys::one_by_one(outs, |out| self.send(out))
    }
    /// Whether the system says now that there is room.
    fn writable(&self) -> bool;
    /// Empties the error queue.
    fn drain_errors(&self, destination: SocketAddr) -> Drained;
    /// A driver has refused to segment.
    fn segmentation_failed(&self);

    fn register(&self) -> io::Result<Self::Registration>;
    /// Registers anew.
    fn renew(&self, registration: &mut Self::Registration) -> io::Result<()>;
    /// Whether an edge has come that no attempt has cleared.
    fn is_ready(&self, registration: &Self::Registration) -> bool;
    /// Calls `attempt`, once, when the reactor says writable. Its `WouldBlock` clears that.
    fn poll_write<R>(
        &self,
        registration: &mut Self::Registration,
        cx: &mut Context<'_>,
        attempt: impl FnOnce() -> io::Result<R>,
    ) -> Poll<io::Result<R>>;

    fn stats(&self) -> &Arc<Stats>;
    fn backpressure(&self) -> &Backpressure;
    fn contention(&self) -> &Contention;

    /// What a failed send means. Only the model's naive sender has another opinion, on this and on the next.
    fn decide(&self, refusal: &Refusal) -> Verdict {
        decide(refusal)
    }

    /// When to try again: as `parked` says.
    fn schedule(&self, _parked: &mut Parked) {}
}

impl Io for UdpSocket {
    type Registration = sys::Registration;

    fn os(&self) -> Os {
        sys::OS
    }

    fn is_connected(&self) -> bool {
        self.0.peer.is_some()
    }

    fn limits(&self) -> (usize, usize) {
        (self.0.state.max_segments(), self.0.max_train_bytes)
    }

    fn send(&self, out: &Outgoing<'_>) -> io::Result<()> {
        self.0.state.send(self.0.sock_ref(), out, self.0.peer)
    }

    fn send_several<'a>(&self, outs: impl Iterator<Item = Outgoing<'a>>) -> io::Result<usize> {
        self.0.state.send_several(self.0.sock_ref(), outs, self.0.peer)
    }

    fn writable(&self) -> bool {
        sys::writable(self.0.sock_ref())
    }

    fn drain_errors(&self, destination: SocketAddr) -> Drained {
        self.0.drain_errors(Some(destination))
    }

    fn segmentation_failed(&self) {
        self.0.state.segmentation_failed();
    }

    fn register(&self) -> io::Result<Self::Registration> {
        sys::Registration::new(&self.0.io)
    }

    fn renew(&self, registration: &mut Self::Registration) -> io::Result<()> {
        registration.renew()
    }

    fn is_ready(&self, registration: &Self::Registration) -> bool {
        registration.is_ready(&self.0.io)
    }

    fn poll_write<R>(
        &self,
        registration: &mut Self::Registration,
        cx: &mut Context<'_>,
        attempt: impl FnOnce() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        registration.poll_write(&self.0.io, cx, attempt)
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.0.stats
    }

    fn backpressure(&self) -> &Backpressure {
        &self.0.backpressure
    }

    fn contention(&self) -> &Contention {
        &self.0.contention
    }
}

impl Inner {
    /// Empties the error queue into the events.
    pub(crate) fn drain_errors(&self, destination: Option<SocketAddr>) -> Drained {
        let mut drained = Drained::default();
        self.state.drain_errors(self.sock_ref(), |mut error| {
            match error.kind {
                // It belongs to the call that failed, and is no sign of earlier errors.
                IcmpKind::LocalMtu { .. } => {
                    if let Some(to) = destination.filter(|to| to.ip().to_canonical() == error.destination.ip()) {
                        error.destination = to;
                    }
                    self.events.push(error);
                    return;
                }
                IcmpKind::PacketTooBig { .. } => drained.too_big |= Some(error.destination) == destination,
                IcmpKind::Unreachable { .. } => {}
            }
            drained.any = true;
            self.stats.icmp_error(self.events.push(error));
        });
        drained
    }
}
