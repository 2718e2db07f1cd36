//! Forged ICMP errors of every type and code: they cost no datagram in either direction.
#![cfg(all(target_os = "linux", not(backwater_portable)))]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "support/icmp.rs"]
mod icmp;
#[path = "support/mod.rs"]
mod support;

use std::{future::poll_fn, io::IoSlice, net::SocketAddr, time::Duration};

use backwater_udp::{DatagramStream, Receiver, RecvBatch, Transmit, UdpSocket};
use futures_util::StreamExt as _;
use icmp::{Forged, Forger};
use support::{block_on, in_namespace};

/// More errors than the default receive buffer holds: some 280 of them.
const BURST: usize = 400;

/// Every type and code that the kernel turns into an errno: ICMP destination unreachable (RFC 792, RFC 1122, RFC 1812), time
/// exceeded (in transit; Linux ignores the one of reassembly), parameter problem; ICMPv6 destination unreachable (RFC 4443), packet too big, time exceeded, parameter problem.
fn kinds(v6: bool) -> Vec<(u8, u8)> {
    let codes: &[(u8, u8)] = if v6 { &[(1, 8), (2, 1), (3, 2), (4, 4)] } else { &[(3, 16), (11, 1), (12, 3)] };
    codes.iter().flat_map(|&(icmp_type, codes)| (0..codes).map(move |code| (icmp_type, code))).collect()
}

struct Pair {
    a: UdpSocket,
    b: UdpSocket,
    at_b: Receiver,
    forger: Forger,
}

impl Pair {
    fn new(v6: bool, connected: bool) -> Self {
        let any = if v6 { "[::1]:0" } else { "127.0.0.1:0" }.parse().unwrap();
        let b = UdpSocket::bind(any).unwrap();
        let a = if connected { UdpSocket::builder().connect(any, b.local_addr()) } else { UdpSocket::bind(any) };
        let a = a.unwrap();
        Self { at_b: b.receiver(), forger: Forger::new(v6), a, b }
    }

    /// Errors about what `a` has supposedly sent to `b` if it is connected to it, else to somebody else.
    fn forge(&self, (icmp_type, code): (u8, u8)) {
        let mut to = self.b.local_addr();
        if self.a.peer_addr().is_none() {
            to.set_port(9);
        }
        let forged = Forged { from: self.a.local_addr(), to, payload: &[0; 40], icmp_type, code, info: 1300 };
        (0..BURST).for_each(|_| self.forger.send(&forged));
    }
}

/// One datagram, a GSO batch and a batch of several: 61 datagrams.
async fn send(from: &UdpSocket, to: SocketAddr) {
    let (one, twenty) = ([IoSlice::new(b"x")], [IoSlice::new(&[7; 2000])]);
    let mut sender = from.sender();
    let mut check = async |ts: &mut [Transmit<'_>], count| {
        let report = poll_fn(|cx| sender.poll_send_batch(cx, ts)).await.expect("the socket has not failed");
        assert_eq!((report.sent, report.dropped.total()), (count, 0), "{report:?}");
    };
    check(&mut [Transmit::new(to, &one)], 1).await;
    check(&mut [Transmit::new(to, &twenty).segment_size(100)], 20).await;
    check(&mut std::array::from_fn::<_, 40, _>(|_| Transmit::new(to, &one)), 40).await;
}

async fn receive(receiver: &mut Receiver, count: usize) {
    let (mut batch, mut seen) = (RecvBatch::new(32), 0);
    while seen < count {
        let received = tokio::time::timeout(Duration::from_secs(10), receiver.recv(&mut batch)).await;
        received.expect("a datagram is missing").expect("the socket has not failed");
        seen += batch.datagrams().count();
    }
    assert_eq!(seen, count);
}

#[test]
fn forged_icmp_errors_of_every_kind_cost_no_datagram() {
    in_namespace("forged_icmp_errors_of_every_kind_cost_no_datagram", || {
        block_on(async {
            for (v6, connected) in [(false, false), (false, true), (true, false), (true, true)] {
                let mut pair = Pair::new(v6, connected);
                let mut at_a = pair.a.receiver();
                let (a, b) = (pair.a.local_addr(), pair.b.local_addr());
                for kind in kinds(v6) {
                    eprintln!("{kind:?} v6: {v6} connected: {connected}");
                    let before = pair.a.stats().snapshot();
                    pair.forge(kind);
                    send(&pair.a, b).await;
                    receive(&mut pair.at_b, 61).await;
                    pair.forge(kind);
                    // Each entry takes memory of the receive buffer until it is read, which the receiver does when it runs.
                    let mut batch = RecvBatch::new(1);
                    let nothing = at_a.recv(&mut batch);
                    tokio::time::timeout(Duration::from_millis(20), nothing).await.expect_err("nothing was sent");
                    send(&pair.b, a).await;
                    receive(&mut at_a, 61).await;
                    let after = pair.a.stats().snapshot();
                    assert!(after.icmp_errors - before.icmp_errors > BURST as u64 / 2, "{kind:?}: {after:?}");
                    assert_eq!((after.accepted - before.accepted, after.sent - before.sent), (61, 61));
                }
            }
        });
    });
}

#[test]
fn a_stream_goes_on_after_every_kind_of_forged_icmp_error() {
    in_namespace("a_stream_goes_on_after_every_kind_of_forged_icmp_error", || {
        block_on(async {
            for v6 in [false, true] {
                let pair = Pair::new(v6, false);
                let mut stream = DatagramStream::new(pair.a.receiver());
                for kind in kinds(v6) {
                    pair.forge(kind);
                    let nothing = stream.next();
                    tokio::time::timeout(Duration::from_millis(20), nothing).await.expect_err("nothing was sent");
                    send(&pair.b, pair.a.local_addr()).await;
                    for _ in 0..61 {
                        let next = tokio::time::timeout(Duration::from_secs(10), stream.next()).await;
                        next.expect("a datagram is missing").expect("the stream goes on").unwrap();
                    }
                }
            }
        });
    });
}
