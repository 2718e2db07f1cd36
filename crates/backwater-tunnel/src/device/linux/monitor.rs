//! What changes in the network, and whether the machine has slept.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{RouteNetlinkMessage, route::RouteAttribute};
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, Sleep, sleep};

use super::netlink::messages;
use crate::device::Change;

/// The least time between two changes that are told.
const INTERVAL: Duration = Duration::from_millis(200);

/// How much of what the kernel tells is read before another has a turn, in datagrams.
const BUDGET: usize = 64;

/// A longer sleep counts.
const SLEEP: Duration = Duration::from_secs(2);

/// `RTMGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE` of `linux/rtnetlink.h`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Watches the network: its devices, addresses and routes, but for the tunnel's own. The first change is told at once,
/// what follows within 200 ms as one.
pub struct Monitor {
    socket: TokioSocket,
    own: u32,
    buffer: Vec<u8>,
    seen: Change,
    /// The own device has changed.
    own_changed: bool,
    /// When the next may be told.
    next: Pin<Box<Sleep>>,
}

impl Monitor {
    /// `own` is the index of the device whose changes are ours.
    pub(super) fn new(own: u32) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
        let next = Box::pin(sleep(Duration::ZERO));
        Ok(Self {
            socket,
            own,
            buffer: Vec::with_capacity(32 << 10),
            seen: Change::default(),
            own_changed: false,
            next,
        })
    }

    /// Ready with what has changed since the last time. The task of the last call is woken.
    pub fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<Change> {
        self.read(cx);
        if self.seen == Change::default() {
            return Poll::Pending;
        }
        ready!(self.next.as_mut().poll(cx));
        self.next.as_mut().reset(Instant::now() + INTERVAL);
        Poll::Ready(std::mem::take(&mut self.seen))
    }

    /// Whether the own device has changed since the last time, as far as [`poll_change`](Self::poll_change) has seen.
    pub fn own_device_changed(&mut self) -> bool {
        std::mem::take(&mut self.own_changed)
    }

    fn read(&mut self, cx: &mut Context<'_>) {
        for _ in 0..BUDGET {
            self.buffer.clear();
            match self.socket.poll_recv(cx, &mut self.buffer) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => {
                    let (change, own_changed) = change(&self.buffer, self.own);
                    self.seen = merged(self.seen, change);
                    self.own_changed |= own_changed;
                }
                // More has changed than the socket had room for (ENOBUFS): anything may have.
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "changes of the network were missed");
                    self.seen = Change { link: true, address: true, route: true };
                    self.own_changed = true;
                }
            }
        }
        cx.waker().wake_by_ref();
    }
}

/// Notices that the machine has slept: the time since the start with and without sleep have drifted apart.
pub struct Suspended {
    asleep: Duration,
}

impl Suspended {
    /// Begins now.
    #[allow(clippy::new_without_default, reason = "it begins at a time")]
    pub fn new() -> Self {
        Self { asleep: asleep() }
    }

    /// Returns how long it has slept since the last call, or since the start, if that was more than two seconds.
    pub fn check(&mut self) -> Option<Duration> {
        self.has_slept(asleep())
    }

    fn has_slept(&mut self, asleep: Duration) -> Option<Duration> {
        let before = std::mem::replace(&mut self.asleep, asleep);
        Some(asleep.saturating_sub(before)).filter(|slept| *slept > SLEEP)
    }
}

/// How long the machine has slept since it was started.
fn asleep() -> Duration {
    let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    // The one that is ahead is read last, so that what passes in between is not taken for sleep.
    let awake = read(ClockId::Monotonic);
    read(ClockId::Boottime).saturating_sub(awake)
}

/// What a datagram tells of, but for the device `own`, and whether that is another. What cannot be read is a change of anything.
fn change(datagram: &[u8], own: u32) -> (Change, bool) {
    let (mut change, mut own_changed) = (Change::default(), false);
    for message in messages(datagram) {
        let Ok(NetlinkPayload::InnerMessage(message)) = message.map(|message| message.payload) else {
            return (Change { link: true, address: true, route: true }, true);
        };
        if let RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) = message {
            change.link |= link.header.index != own;
            own_changed |= link.header.index == own;
        } else if let RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) = message {
            change.address |= address.header.index != own;
        } else if let RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) = message {
            change.route |= !route.attributes.contains(&RouteAttribute::Oif(own));
        }
    }
    (change, own_changed)
}

fn merged(a: Change, b: Change) -> Change {
    Change { link: a.link | b.link, address: a.address | b.address, route: a.route | b.route }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_noticed_once() {
        let seconds = Duration::from_secs_f64;
        let mut suspended = Suspended { asleep: seconds(100.0) };
        assert_eq!(suspended.has_slept(seconds(100.0)), None);
        assert_eq!(suspended.has_slept(seconds(102.0)), None, "no more than two seconds");
        assert_eq!(suspended.has_slept(seconds(104.1)), Some(seconds(104.1) - seconds(102.0)));
        assert_eq!(suspended.has_slept(seconds(104.1)), None);
        assert_eq!(suspended.has_slept(seconds(0.0)), None);
    }

    #[test]
    fn nobody_sleeps_here() {
        assert_eq!(Suspended::new().check(), None);
    }

    #[test]
    fn what_cannot_be_read_is_a_change() {
        assert_eq!(change(&[1, 2, 3], 7), (Change { link: true, address: true, route: true }, true));
        assert_eq!(change(&[], 7), (Change::default(), false));
    }
}
