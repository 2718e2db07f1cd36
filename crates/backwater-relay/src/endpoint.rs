//! A socket, and what it could not take yet.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use backwater_udp::{Builder, Cursor, Fragmentation, Policy, Receiver, Sender, Transmit, UdpSocket};

use crate::{
    counters::Counters,
    fields::{Fields, IS_FRAGMENTATION_A_CHOICE},
    ports::Lease,
};

/// Payload bytes that one socket may hold back.
const MAX_BYTES: usize = 256 * 1024;

/// A socket. Nobody waits for it to send: what it refuses is copied into a queue of its own, bounded in bytes and by the
/// policy's deadline, so that only its own traffic is held up.
pub(crate) struct Endpoint {
    pub(crate) socket: UdpSocket,
    pub(crate) receiver: RefCell<Receiver>,
    state: RefCell<State>,
    counters: Arc<Counters>,
    /// The last to go: the port is free once the socket is closed.
    lease: Option<Lease>,
}

struct State {
    sender: Sender,
    queue: VecDeque<Held>,
    bytes: usize,
    /// Of the task that empties the queue.
    waker: Option<Waker>,
}

/// A train, or what is left of one.
struct Held {
    destination: SocketAddr,
    source: Option<IpAddr>,
    fields: Fields,
    segment_size: usize,
    bytes: Box<[u8]>,
    datagrams: usize,
    cursor: Option<Cursor>,
    since: Instant,
}

/// Returns the options of all of a relay's sockets: what they send may be fragmented, but where DONT-FRAGMENT says no.
pub(crate) fn builder() -> Builder {
    let builder = UdpSocket::builder().receive_hop_limit(true);
    if IS_FRAGMENTATION_A_CHOICE { builder.fragmentation(Fragmentation::Allowed) } else { builder }
}

impl Endpoint {
    pub(crate) fn new(socket: UdpSocket, lease: Option<Lease>, counters: Arc<Counters>) -> Self {
        let state = State { sender: socket.sender(), queue: VecDeque::new(), bytes: 0, waker: None };
        let receiver = RefCell::new(socket.receiver());
        Self { receiver, socket, state: RefCell::new(state), counters, lease }
    }

    /// Closes it, and returns what keeps its port.
    pub(crate) fn into_lease(mut self) -> Option<Lease> {
        self.lease.take()
    }

    /// Sends `t` with these fields. Holds what the system refuses of it, or drops that when too much is held already or the policy
    /// is to drop. Returns whether the system found nothing wrong with it.
    pub(crate) fn send(&self, now: Instant, fields: Fields, t: &mut Transmit<'_>) -> bool {
        let mut state = self.state.borrow_mut();
        if state.queue.is_empty() {
            fields.prepare(&self.socket);
            let offered = t.remaining();
            match state.sender.try_send(t) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(report) => return report.sent as usize == offered,
                // What a failed socket could not send is in its counters; the task that receives on it sees to the rest.
                Err(_) => return false,
            }
        }
        state.hold(now, fields, t, &self.counters);
        true
    }

    /// Sends what is held. Pending while something still is.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>, now: Instant) -> Poll<io::Result<()>> {
        let state = &mut *self.state.borrow_mut();
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            waker @ None => *waker = Some(cx.waker().clone()),
        }
        let deadline = match state.sender.socket().backpressure().get() {
            Policy::Wait { deadline } => Some(deadline),
            Policy::Drop => None,
        };
        let mut result = Ok(());
        while let Some(held) = state.queue.front_mut()
            && result.is_ok()
        {
            // The sender keeps the time of what it has accepted. Under `Drop` it tries once, and drops what is refused.
            let too_old = deadline.is_some_and(|limit| now.saturating_duration_since(held.since) >= limit);
            if held.cursor.is_none() && too_old {
                self.counters.held_too_long.add(held.datagrams as u64);
            } else {
                let slices = [IoSlice::new(&held.bytes)];
                let mut t = Transmit::new(held.destination, &slices)
                    .segment_size(held.segment_size)
                    .source(held.source)
                    .ecn(held.fields.ecn);
                held.fields.prepare(&self.socket);
                if let Some(cursor) = held.cursor {
                    t = t.resume(cursor);
                }
                let sent = state.sender.poll_send(cx, &mut t);
                held.cursor = Some(t.cursor());
                result = ready!(sent).map(drop);
            }
            state.bytes -= held.bytes.len();
            state.queue.pop_front();
        }
        Poll::Ready(result)
    }

    /// Whether anything is held.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.borrow().queue.is_empty()
    }
}

/// What is held goes with its socket.
impl Drop for Endpoint {
    fn drop(&mut self) {
        // What the sender has accepted already it counts itself.
        let untried = self.state.get_mut().queue.iter().filter(|held| held.cursor.is_none());
        self.counters.held_at_close.add(untried.map(|held| held.datagrams as u64).sum());
    }
}

impl State {
    fn hold(&mut self, now: Instant, fields: Fields, t: &Transmit<'_>, counters: &Counters) {
        let datagrams = t.remaining();
        if self.sender.socket().backpressure().get() == Policy::Drop {
            counters.no_room.add(datagrams as u64);
            return;
        }
        let bytes: Box<[u8]> = t.remaining_slices().flatten().copied().collect();
        if self.bytes + bytes.len() > MAX_BYTES || self.queue.len() >= MAX_BYTES / 64 {
            counters.queue_full.add(datagrams as u64);
            return;
        }
        counters.held.add(datagrams as u64);
        self.bytes += bytes.len();
        self.queue.push_back(Held {
            destination: t.destination(),
            source: t.source_ip(),
            fields,
            segment_size: t.datagram_len(),
            bytes,
            datagrams,
            cursor: None,
            since: now,
        });
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_held_when_a_socket_closes_is_counted() {
        let counters = Arc::new(Counters::default());
        let socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = Endpoint::new(socket, None, counters.clone());
        let slices = [IoSlice::new(b"onetwo")];
        let train = Transmit::new("127.0.0.1:9".parse().unwrap(), &slices).segment_size(3);
        endpoint.state.borrow_mut().hold(Instant::now(), Fields::OWN, &train, &counters);
        assert_eq!((counters.held.get(), counters.held_at_close.get()), (2, 0));
        drop(endpoint);
        assert_eq!(counters.held_at_close.get(), 2);
    }
}
