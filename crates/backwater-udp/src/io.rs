//! What a sender needs of the world besides the clock. The tests put a model of a reactor and a kernel in its place.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    Backpressure, Stats, UdpSocket,
    lease::Lease,
    socket::Inner,
    sys::{self, Outgoing},
    transmit::{Header, Transmit},
    wait::{
        backoff::Parked,
        decision::{Os, Refusal, Verdict, decide},
        fairness::{Contention, Place},
    },
};

/// What an error queue held.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Drained {
    /// Whether ICMP messages have been read since the count that was given, here or by another task: they are about earlier
    /// datagrams.
    pub(crate) icmp: bool,
    /// Whether the kernel says itself that a datagram to this destination is too large.
    pub(crate) too_large: bool,
}

/// A socket's send buffer, in bytes as the system counts them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendBuffer {
    /// Taken up by datagrams that have not left yet.
    pub(crate) used: usize,
    pub(crate) size: usize,
}

pub(crate) trait Io {
    /// A sender's own registration with the reactor.
    type Registration;

    fn os(&self) -> Os;
    fn is_connected(&self) -> bool;
    /// How many datagrams of this transmit a call may take at most, and how many bytes.
    fn limits(&self, t: &Transmit<'_>) -> (usize, usize);
    /// The system call.
    fn send(&self, out: &Outgoing<'_>) -> io::Result<()>;
    /// Sends as many of several as the system takes, in their order; an error is about the first of them.
    fn send_several<'a>(&self, outs: impl Iterator<Item = Outgoing<'a>>) -> io::Result<usize> {
        sys::one_by_one(outs, |out| self.send(out))
    }
    /// Whether the system says now that there is room.
    fn writable(&self) -> bool;
    /// How many ICMP messages have been read from the error queue.
    fn icmp_errors(&self) -> u64;
    /// Empties the error queue. `seen` is what [`icmp_errors`](Self::icmp_errors) was before the call that failed.
    fn drain_errors(&self, destination: SocketAddr, seen: u64) -> Drained;
    /// The system refuses GSO batches to this destination, with segments of so many bytes and more.
    fn segmentation_refused(&self, destination: &SocketAddr, segment_bytes: usize);

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

    /// How full the send buffer is, where the system says so.
    fn send_buffer(&self) -> Option<SendBuffer> {
        None
    }

    /// A socket with a send buffer of its own, whose datagrams look like this one's, and which receives nothing. It has the same
    /// counters and policy.
    fn send_only(&self) -> io::Result<Self>
    where
        Self: Sized,
    {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether a busy destination gets a connected socket.
    fn promotes(&self) -> bool {
        false
    }

    /// A socket that is connected to a destination, at this one's port, and sends from that source. What it receives arrives here.
    fn connected_beside(&self, _destination: SocketAddr, _source: Option<IpAddr>) -> io::Result<Self>
    where
        Self: Sized,
    {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Nothing is sent on such a socket any more.
    fn detach(&self) {}

    /// What a datagram that is to leave with `header` needs on such a socket.
    fn header_for_a_side(&self, header: Header) -> Header {
        header
    }

    /// What to wait for: as `parked` and `place` say.
    fn schedule(&self, _parked: &mut Parked, _place: &mut Place) {}
}

impl Io for UdpSocket {
    type Registration = Lease;

    fn os(&self) -> Os {
        sys::OS
    }

    fn is_connected(&self) -> bool {
        self.0.peer.is_some()
    }

    #[inline]
    fn limits(&self, t: &Transmit<'_>) -> (usize, usize) {
        let (datagrams, bytes) = self.0.state.limits(&t.destination, t.datagram_len());
        (datagrams, bytes.min(self.0.max_train_bytes))
    }

    fn send(&self, out: &Outgoing<'_>) -> io::Result<()> {
        self.prepare(out.header);
        self.0.state.send(self.0.sock_ref(), out, self.0.peer)
    }

    /// Those that need the same options of the socket.
    fn send_several<'a>(&self, outs: impl Iterator<Item = Outgoing<'a>>) -> io::Result<usize> {
        let mut outs = outs.peekable();
        let header = outs.peek().map(|out| out.header).unwrap_or_default();
        self.prepare(header);
        let alike = outs.take_while(|out| out.header == header);
        let sent = self.0.state.send_several(self.0.sock_ref(), alike, self.0.peer)?;
        if sent.failed {
            // The kernel reports the messages that went, and forgets the error, but not what the error queue has about it.
            self.0.drain_errors(None, u64::MAX);
        }
        Ok(sent.messages)
    }

    fn writable(&self) -> bool {
        sys::writable(self.0.sock_ref())
    }

    fn icmp_errors(&self) -> u64 {
        self.0.events.icmp_errors()
    }

    fn drain_errors(&self, destination: SocketAddr, seen: u64) -> Drained {
        self.0.drain_errors(Some(destination), seen)
    }

    fn segmentation_refused(&self, destination: &SocketAddr, segment_bytes: usize) {
        self.0.state.segmentation_refused(destination, segment_bytes);
    }

    fn register(&self) -> io::Result<Self::Registration> {
        Lease::new(&self.0.io, &self.0.leases)
    }

    fn renew(&self, registration: &mut Self::Registration) -> io::Result<()> {
        registration.renew(&self.0.io)
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

    fn send_buffer(&self) -> Option<SendBuffer> {
        sys::send_buffer(self.0.sock_ref())
    }

    fn send_only(&self) -> io::Result<Self> {
        self.send_only_socket()
    }

    fn promotes(&self) -> bool {
        self.0.promotes
    }

    fn connected_beside(&self, destination: SocketAddr, source: Option<IpAddr>) -> io::Result<Self> {
        UdpSocket::connected_beside(self, destination, source)
    }

    fn detach(&self) {
        UdpSocket::detach(self);
    }

    /// What this socket has been given stays its own.
    fn header_for_a_side(&self, header: Header) -> Header {
        let own = self.header();
        Header {
            hop_limit: header.hop_limit.or(own.hop_limit),
            fragmentation: header.fragmentation.or(own.fragmentation),
        }
    }
}

impl Inner {
    /// Empties the error queue into the events, within a budget. The rest makes the next call fail, and that one drains again.
    pub(crate) fn drain_errors(&self, destination: Option<SocketAddr>, seen: u64) -> Drained {
        let mut too_large = false;
        let icmp_errors = self.events.drain(|events| {
            self.state.drain_errors(self.sock_ref(), |mut error| {
                too_large |= destination.is_some_and(|to| error.is_too_large_for(to));
                let is_icmp = error.is_icmp();
                let kept = events.push(error);
                if is_icmp {
                    self.stats.icmp_error(kept);
                }
            });
        });
        Drained { icmp: icmp_errors > seen, too_large }
    }
}
