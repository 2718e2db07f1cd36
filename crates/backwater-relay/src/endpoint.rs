//! A socket, and what it could not take yet.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    task::{Context, Poll},
};

use backwater_udp::{
    DropReason, Fragmentation, QueueBounds, Receiver, SendQueue, Transmit, UdpSocket, UdpSocketBuilder,
};

use crate::{
    fields::{Fields, IS_FRAGMENTATION_A_CHOICE},
    ports::Lease,
};

/// What a listener may hold back: for one client, and for all.
const OF_LISTENER: QueueBounds = QueueBounds { of_a_key: 256 << 10, of_all: 8 << 20, dedicated_sockets: 16 };

/// What a relayed socket may hold back: for one peer, and for all. They are one client's: it takes no sockets from the listeners.
const OF_ALLOCATION: QueueBounds = QueueBounds { of_a_key: 256 << 10, of_all: 256 << 10, dedicated_sockets: 0 };

/// A socket. Nobody waits for it to send: what it refuses waits in a line for its destination, bounded in bytes and by the policy's
/// deadline.
pub(crate) struct Endpoint {
    pub(crate) socket: UdpSocket,
    pub(crate) receiver: RefCell<Receiver>,
    queue: RefCell<SendQueue<SocketAddr>>,
    /// The last to go: the port is free once the socket is closed.
    lease: Option<Lease>,
}

/// Returns the options of all of a relay's sockets: what they send may be fragmented, but where DONT-FRAGMENT says no.
pub(crate) fn builder() -> UdpSocketBuilder {
    let builder = UdpSocket::builder().receive_hop_limit(true);
    if IS_FRAGMENTATION_A_CHOICE { builder.fragmentation(Fragmentation::Allowed) } else { builder }
}

impl Endpoint {
    pub(crate) fn listener(socket: UdpSocket) -> Self {
        Self::new(socket, OF_LISTENER, None)
    }

    pub(crate) fn relayed(socket: UdpSocket, lease: Lease) -> Self {
        Self::new(socket, OF_ALLOCATION, Some(lease))
    }

    fn new(socket: UdpSocket, bounds: QueueBounds, lease: Option<Lease>) -> Self {
        let receiver = RefCell::new(socket.receiver());
        Self { receiver, queue: RefCell::new(SendQueue::new(socket.clone(), bounds)), socket, lease }
    }

    /// Closes it, and returns what keeps its port.
    pub(crate) fn into_lease(mut self) -> Option<Lease> {
        self.lease.take()
    }

    /// Sends `t` with these fields. What the system has no room for is held. Returns whether the system found nothing wrong with it.
    pub(crate) fn send(&self, fields: Fields, t: Transmit<'_>) -> bool {
        let mut t = fields.of(t);
        let Ok(report) = self.queue.borrow_mut().send(t.destination(), &mut t) else {
            // What a failed socket could not send is in its counters; the task that receives on it sees to the rest.
            return false;
        };
        let dropped = |reason| report.dropped.get(reason);
        report.dropped.total() == dropped(DropReason::NoBuffers) + dropped(DropReason::QueueFull)
    }

    /// As [`send`](Self::send), but what the system has no room for is dropped.
    pub(crate) fn send_or_drop(&self, fields: Fields, t: Transmit<'_>) {
        let mut t = fields.of(t);
        let _ = self.queue.borrow_mut().send_or_drop(t.destination(), &mut t);
    }

    /// Sends what is held. Pending while something still is.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.queue.borrow_mut().poll_flush(cx)
    }

    /// Whether nothing is held.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.borrow().held() == 0
    }
}
