//! Datagrams that are larger than a link, with and without fragmentation.
#![cfg(all(target_os = "linux", not(backwater_portable)))]
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]

#[path = "support/icmp.rs"]
mod icmp;
#[path = "support/mod.rs"]
mod support;
#[path = "support/veth.rs"]
mod veth;

use std::{
    io::IoSlice,
    net::{SocketAddr, UdpSocket as Std},
    time::Duration,
};

use backwater_udp::{DropReason, Fragmentation, IcmpError, IcmpKind, Transmit, UdpSocket};
use icmp::{Forged, Forger};
use support::{block_on, in_namespace, ip};
use veth::Veth;

/// A socket at the far end, and its address.
fn far(veth: &Veth, v6: bool) -> (Std, SocketAddr) {
    let any = veth.far(v6, 0);
    let socket = veth.at_far_end(move |_| Std::bind(any).unwrap()).join().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

fn set_mtu(veth: &Veth, mtu: u32) {
    ip(&format!("link set near0 mtu {mtu}"));
    veth.at_far_end(move |_| ip(&format!("link set far0 mtu {mtu}"))).join().unwrap();
}

/// Sends one of `len` bytes; whether it was taken, and what the error queue had.
async fn send(socket: &UdpSocket, to: SocketAddr, len: usize) -> (u32, Vec<IcmpError>) {
    let payload = vec![7; len];
    let report = socket.sender().send(&mut Transmit::new(to, &[IoSlice::new(&payload)])).await.unwrap();
    assert_eq!(report.sent + report.dropped.get(DropReason::TooLarge), 1, "{report:?}");
    (report.sent, std::iter::from_fn(|| socket.next_icmp_error()).collect())
}

fn received(socket: &Std) -> usize {
    socket.recv(&mut [0; 65_536]).unwrap()
}

/// Fragments that the far end has received.
fn fragments(veth: &Veth, v6: bool) -> u64 {
    let read = move |_| {
        let file = if v6 { "/proc/thread-self/net/snmp6" } else { "/proc/thread-self/net/snmp" };
        let text = std::fs::read_to_string(file).unwrap();
        if v6 {
            return text.lines().find_map(|l| l.strip_prefix("Ip6ReasmReqds")).unwrap().trim().parse().unwrap();
        }
        let mut lines = text.lines().filter_map(|l| l.strip_prefix("Ip: "));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        names.split(' ').zip(values.split(' ')).find(|(n, _)| *n == "ReasmReqds").unwrap().1.parse().unwrap()
    };
    veth.at_far_end(read).join().unwrap()
}

#[test]
fn a_datagram_larger_than_the_link_is_dropped_or_fragmented_as_its_owner_wants() {
    in_namespace("a_datagram_larger_than_the_link_is_dropped_or_fragmented_as_its_owner_wants", || {
        let veth = Veth::new(0);
        for (mtu, v6) in [(1500, false), (1500, true), (1280, false), (1280, true)] {
            set_mtu(&veth, mtu);
            let (sink, to) = far(&veth, v6);
            let headers = if v6 { 48 } else { 28 };
            let (fits, over) = (mtu as usize - headers, mtu as usize - headers + 1);
            block_on(async {
                let socket = UdpSocket::bind(veth.near(v6)).unwrap();
                assert_eq!(socket.fragmentation(), Fragmentation::Never);
                assert_eq!(send(&socket, to, fits).await, (1, vec![]));
                assert_eq!(received(&sink), fits);
                for _ in 0..3 {
                    let (sent, errors) = send(&socket, to, over).await;
                    let seen: Vec<_> = errors.iter().map(|e| (e.destination, e.kind)).collect();
                    assert_eq!((sent, seen), (0, vec![(to, IcmpKind::LocalMtu { mtu })]));
                }
                let stats = socket.stats().snapshot();
                assert_eq!(stats.icmp_errors, 0, "the host's own error is not an ICMP message");
                assert_eq!(stats.attempts, 4, "the kernel's own error is not taken for one about an earlier datagram");

                socket.set_fragmentation(Fragmentation::Allowed).unwrap();
                assert_eq!(socket.fragmentation(), Fragmentation::Allowed);
                for len in [fits, over, 3000, 60_000] {
                    assert_eq!(send(&socket, to, len).await, (1, vec![]), "{mtu} {v6} {len}");
                    assert_eq!(received(&sink), len);
                }
                // The kernel takes no GSO batch of such segments.
                let payload = vec![7; 10 * over];
                let slices = [IoSlice::new(&payload)];
                let mut batch = Transmit::new(to, &slices).segment_size(over);
                assert_eq!(socket.sender().send(&mut batch).await.unwrap().sent, 10);
                assert!((0..10).all(|_| received(&sink) == over));

                socket.set_fragmentation(Fragmentation::Never).unwrap();
                assert_eq!(send(&socket, to, over).await.0, 0);
                let socket = UdpSocket::builder().fragmentation(Fragmentation::Allowed).bind(veth.near(v6)).unwrap();
                assert_eq!(send(&socket, to, over).await.0, 1);
                assert_eq!(received(&sink), over);
            });
        }
    });
}

/// A forged "fragmentation needed" changes nothing for IPv4. IPv6 has no routers that fragment, so the kernel believes a "packet
/// too big", down to 1,280 bytes.
#[test]
fn a_forged_path_mtu_costs_no_datagram_and_fragments_only_ipv6() {
    in_namespace("a_forged_path_mtu_costs_no_datagram_and_fragments_only_ipv6", || {
        let veth = Veth::new(0);
        set_mtu(&veth, 1500);
        for v6 in [false, true] {
            for fragmentation in [Fragmentation::Never, Fragmentation::Allowed] {
                let (sink, to) = far(&veth, v6);
                block_on(async {
                    let socket = UdpSocket::builder().fragmentation(fragmentation).bind(veth.near(v6)).unwrap();
                    assert_eq!(send(&socket, to, 1400).await.0, 1);
                    received(&sink);
                    let from = socket.local_addr();
                    let forge = move |_| {
                        let (icmp_type, code) = if v6 { (2, 0) } else { (3, 4) };
                        for info in [1280, 600, 68] {
                            let payload: Vec<_> = (0..50).collect();
                            let forged = Forged { from, to, payload: &payload, icmp_type, code, info };
                            Forger::new(v6).send(&forged);
                        }
                    };
                    veth.at_far_end(forge).join().unwrap();
                    let mut errors = Vec::new();
                    let before = fragments(&veth, v6);
                    // 1,232 bytes fit into 1,280 with IPv6's headers.
                    for _ in 0..10 {
                        let (sent, seen) = send(&socket, to, 1232).await;
                        errors.extend(seen);
                        assert_eq!((sent, received(&sink)), (1, 1232));
                    }
                    assert_eq!(fragments(&veth, v6), before, "{v6} {fragmentation:?}");
                    for _ in 0..10 {
                        assert_eq!(send(&socket, to, 1400).await, (1, vec![]));
                        assert_eq!(received(&sink), 1400);
                    }
                    let grown = fragments(&veth, v6) - before;
                    let want = if v6 && fragmentation == Fragmentation::Allowed { 20 } else { 0 };
                    assert_eq!(grown, want, "{v6} {fragmentation:?}");
                    assert!(!errors.is_empty());
                    for error in errors {
                        assert_eq!(error.destination, to);
                        assert!(matches!(error.kind, IcmpKind::PacketTooBig { mtu: 1280 | 600 | 68 }), "{error:?}");
                        assert_eq!(*error.quoted, *(0..32).collect::<Vec<u8>>());
                    }
                });
            }
        }
    });
}
