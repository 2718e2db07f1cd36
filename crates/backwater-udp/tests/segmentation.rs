//! GSO batches that a device, a route's MTU or a device above another one does not take as they are.
#![cfg(all(target_os = "linux", not(backwater_portable)))]
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]

#[path = "support/mod.rs"]
mod support;
#[path = "support/veth.rs"]
mod veth;

use std::{
    io::IoSlice,
    net::SocketAddr,
    time::{Duration, Instant},
};

use backwater_udp::{DropReason, Fragmentation, Policy, SendReport, Transmit, UdpSocket};
use support::{block_on, in_namespace, installed, ip, skip};
use veth::Veth;

/// Longer than any queue here takes to empty, many times over.
const PATIENT: Policy = Policy::Wait { deadline: Duration::from_secs(10) };

/// Sends a GSO batch of so many bytes, whose datagrams begin with numbers. What became of it, and in how many system calls.
async fn send(socket: &UdpSocket, to: SocketAddr, bytes: usize, segment: usize, first: u32) -> (SendReport, u64) {
    let mut payload = vec![0; bytes];
    for (datagram, number) in payload.chunks_mut(segment).zip(first..) {
        datagram[..4].copy_from_slice(&number.to_be_bytes());
    }
    let before = socket.stats().snapshot().attempts;
    let report = socket.sender().send(&mut Transmit::new(to, &[IoSlice::new(&payload)]).segment_size(segment)).await;
    (report.unwrap(), socket.stats().snapshot().attempts - before)
}

/// A macvlan device that takes 16 segments passes 20 on as 20 packets, of which the queue below drops what it likes: of 2,000
/// datagrams that were sent, a hundred arrived.
#[test]
fn a_batch_is_no_longer_than_a_device_above_another_takes() {
    in_namespace("a_batch_is_no_longer_than_a_device_above_another_takes", || {
        for (index, v6) in [(0, false), (1, true)] {
            let veth = Veth::new(index);
            let (near, far) = (veth.near(v6).ip(), veth.far(v6, 0).ip());
            ip(&format!("address flush dev near{index}"));
            ip(&format!("link add upper{index} link near{index} type macvlan mode bridge"));
            ip(&format!("link set upper{index} addrgenmode none gso_max_segs 16"));
            ip(&format!("link set upper{index} up"));
            let address = if v6 { format!("{near}/64 nodad") } else { format!("{near}/24") };
            ip(&format!("address add {address} dev upper{index}"));
            ip(&format!("neighbor add {far} lladdr 02:00:00:00:{index:02x}:02 dev upper{index} nud permanent"));
            veth.shape("rate 20mbit burst 70000 limit 40000");
            let (sink, before) = (veth.sink(v6), veth.missed_by_the_receiver());
            let stats = block_on(async {
                let socket = UdpSocket::bind((near, 0).into()).unwrap();
                socket.backpressure().set(PATIENT);
                for first in (0..2000).step_by(20) {
                    send(&socket, sink.addr, 20 * 1200, 1200, first).await;
                }
                socket.stats().snapshot()
            });
            let arrived = sink.finish().len() as u64 + veth.missed_by_the_receiver() - before;
            assert_eq!((stats.sent, arrived), (2000, 2000), "IPv6: {v6}, {stats:?}");
            assert!(stats.no_buffers_total() > 0, "the queue was never full: {stats:?}");
        }
    });
}

/// What does not fit into the MTU is too large; what does goes out, in batches too, and so does what goes another way.
#[test]
fn a_batch_larger_than_the_mtu_costs_no_other_batch() {
    in_namespace("a_batch_larger_than_the_mtu_costs_no_other_batch", || {
        let (small, large) = (Veth::new(0), Veth::new(1));
        ip("link set near0 mtu 1360");
        for v6 in [false, true] {
            let (to_small, to_large) = (small.sink(v6), large.sink(v6));
            let any: SocketAddr = if v6 { "[::]:0" } else { "0.0.0.0:0" }.parse().unwrap();
            let mut fragmented = 0;
            block_on(async {
                let socket = UdpSocket::bind(any).unwrap();
                for round in 0..2 {
                    // Ten of 1,400 bytes, and one of 500.
                    let (report, calls) = send(&socket, to_small.addr, 14_500, 1400, 0).await;
                    assert_eq!((report.sent, report.dropped.get(DropReason::TooLarge)), (1, 10), "{report:?}");
                    // The first time the batch as a whole, perhaps twice: the error may have been an ICMP message's.
                    let expected = if round == 0 { 3..=4 } else { 2..=2 };
                    assert!(expected.contains(&calls), "{calls} calls in round {round}");
                    let (report, calls) = send(&socket, to_small.addr, 13_000, 1300, 100).await;
                    assert_eq!((report.sent, calls), (10, 1), "shorter segments fit");
                    let (report, calls) = send(&socket, to_large.addr, 14_500, 1400, 0).await;
                    assert_eq!((report.sent, calls), (11, 1), "another way");
                }

                let socket = UdpSocket::builder().fragmentation(Fragmentation::Allowed).bind(any).unwrap();
                for expected in [12..=13, 11..=11] {
                    let (report, calls) = send(&socket, to_small.addr, 14_500, 1400, 200).await;
                    assert_eq!(report.sent, 11);
                    assert!(expected.contains(&calls), "{calls} calls");
                    let (report, calls) = send(&socket, to_large.addr, 14_500, 1400, 0).await;
                    assert_eq!((report.sent, calls), (11, 1), "another way");
                    fragmented += 11;
                }
            });
            assert_eq!(to_small.finish().len(), 2 * (1 + 10) + fragmented, "IPv6: {v6}");
            assert_eq!(to_large.finish().len(), 4 * 11, "IPv6: {v6}");
        }
    });
}

/// Linux before 6.11 refuses batches (`EIO`) for a device without checksum offload. Later kernels segment them themselves.
#[test]
fn a_device_that_does_not_segment_costs_no_other_its_batches() {
    if !installed("ethtool") {
        return skip("ethtool is not installed (package ethtool)");
    }
    in_namespace("a_device_that_does_not_segment_costs_no_other_its_batches", || {
        for (index, features) in ["tx-udp-segmentation off", "tx off"].into_iter().enumerate() {
            let (plain, other) = (Veth::new(2 * index as u8), Veth::new(2 * index as u8 + 1));
            support::run("ethtool", &format!("-K near{} {features}", 2 * index));
            for v6 in [false, true] {
                let (to_plain, to_other) = (plain.sink(v6), other.sink(v6));
                block_on(async {
                    let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
                    let socket = UdpSocket::bind(any.parse().unwrap()).unwrap();
                    for round in 0..3 {
                        let (report, _) = send(&socket, to_plain.addr, 24_000, 1200, 20 * round).await;
                        assert_eq!(report.sent, 20, "{features}: {report:?}");
                        let (report, calls) = send(&socket, to_other.addr, 24_000, 1200, 20 * round).await;
                        assert_eq!((report.sent, calls), (20, 1), "{features}");
                    }
                });
                assert_eq!((to_plain.finish().len(), to_other.finish().len()), (60, 60), "{features}, IPv6: {v6}");
            }
        }
    });
}

/// Devices change: every 256 batches a thread has them looked at again, every ten seconds at most.
#[test]
fn a_device_above_another_that_comes_later_is_found() {
    in_namespace("a_device_above_another_that_comes_later_is_found", || {
        let veth = Veth::new(0);
        block_on(async {
            let socket = UdpSocket::bind(veth.near(false)).unwrap();
            let any = veth.far(false, 0);
            let far = veth.at_far_end(move |_| std::net::UdpSocket::bind(any).unwrap()).join().unwrap();
            let to = far.local_addr().unwrap();
            assert_eq!(send(&socket, to, 24_000, 1200, 0).await.1, 1);
            ip("link add upper0 link near0 type macvlan");
            ip("link set upper0 gso_max_segs 16");
            ip("link set upper0 up");
            let began = Instant::now();
            while send(&socket, to, 24_000, 1200, 0).await.1 == 1 {
                assert!(began.elapsed() < Duration::from_secs(100), "nobody has looked");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(send(&socket, to, 24_000, 1200, 0).await.1, 2);
        });
    });
}
