//! The socket on a real kernel's loopback.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use backwater_udp::{DatagramSink, DropReason, Ecn, Policy, RecvBatch, Sender, Transmit, UdpSocket};
use bytes::Bytes;
use futures_util::Sink as _;
use tokio::time::timeout;

const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";

fn bind(addr: &str) -> UdpSocket {
    UdpSocket::bind(addr.parse().unwrap()).unwrap()
}

#[cfg(target_os = "linux")]
fn bind_dual_stack() -> UdpSocket {
    let dual = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None).unwrap();
    dual.set_only_v6(false).unwrap();
    dual.bind(&"[::]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    UdpSocket::from_std(dual.into()).unwrap()
}

/// Receives until `count` datagrams are there; more, or none for ten seconds, is a failure.
async fn receive(socket: &UdpSocket, count: usize) -> Vec<(SocketAddr, Option<IpAddr>, Option<Ecn>, Vec<u8>)> {
    let (mut receiver, mut batch, mut seen) = (socket.receiver(), RecvBatch::new(8), Vec::new());
    while seen.len() < count {
        timeout(Duration::from_secs(10), receiver.recv(&mut batch)).await.expect("datagrams are missing").unwrap();
        seen.extend(batch.datagrams().map(|d| (d.source, d.local_ip, d.ecn, d.payload.to_vec())));
    }
    assert_eq!(seen.len(), count);
    seen
}

#[tokio::test]
async fn a_train_arrives_as_its_datagrams() {
    for addr in [V4, V6] {
        let (a, b) = (bind(addr), bind(addr));
        let data: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        for (segment, len) in [(1, 3), (100, 6400), (100, 6450), (1200, 60_000), (700, 100_000), (9000, 9001)] {
            let want: Vec<_> = data[..len].chunks(segment).map(<[u8]>::to_vec).collect();
            for slice_len in [len, 77] {
                let slices: Vec<_> = data[..len].chunks(slice_len).map(IoSlice::new).collect();
                let mut t = Transmit::new(b.local_addr(), &slices).segment_size(segment);
                let report = a.sender().send(&mut t).await.unwrap();
                assert_eq!((report.sent as usize, report.dropped.total()), (want.len(), 0));
                let got = receive(&b, want.len()).await;
                assert!(got.iter().all(|d| d.0 == a.local_addr() && d.1 == Some(b.local_addr().ip())));
                assert_eq!(got.into_iter().map(|d| d.3).collect::<Vec<_>>(), want, "{addr} {segment} {len}");
            }
        }
    }
}

#[tokio::test]
async fn headers_are_skipped_and_inserted() {
    let (a, b) = (bind(V4), bind(V4));
    let train: Vec<u8> = (0..64u8).flat_map(|i| [vec![0xAA; 4], vec![i; 100]].concat()).collect();
    let stripped: Vec<_> = train.chunks(104).map(|d| IoSlice::new(&d[4..])).collect();
    let mut t = Transmit::new(b.local_addr(), &stripped).segment_size(100);
    a.sender().send(&mut t).await.unwrap();
    for (i, datagram) in receive(&b, 64).await.into_iter().enumerate() {
        assert_eq!(datagram.3, [i as u8; 100]);
    }
    let inserted: Vec<_> = train.chunks(104).flat_map(|d| [IoSlice::new(b"head"), IoSlice::new(&d[4..])]).collect();
    let mut t = Transmit::new(b.local_addr(), &inserted).segment_size(104);
    a.sender().send(&mut t).await.unwrap();
    for (i, datagram) in receive(&b, 64).await.into_iter().enumerate() {
        assert_eq!(datagram.3, [b"head".to_vec(), vec![i as u8; 100]].concat());
    }
}

#[tokio::test]
async fn ecn_goes_both_ways() {
    for addr in [V4, V6] {
        let (a, b) = (bind(addr), bind(addr));
        for ecn in [None, Some(Ecn::Ect0), Some(Ecn::Ect1), Some(Ecn::Ce)] {
            let slices = [IoSlice::new(b"xyz")];
            // quinn-udp's room for control messages (96 bytes) is too small on Linux for what comes with a train.
            let count = if cfg!(backwater_portable) { 1 } else { 3 };
            let mut t = Transmit::new(b.local_addr(), &slices).segment_size(3 / count).ecn(ecn);
            a.sender().send(&mut t).await.unwrap();
            let got: Vec<_> = receive(&b, count).await.iter().map(|d| d.2).collect();
            assert_eq!(got, vec![ecn; count], "{addr}");
        }
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_wildcard_socket_knows_and_chooses_its_address() {
    let (a, b) = (bind("0.0.0.0:0"), bind("0.0.0.0:0"));
    let to = SocketAddr::new([127, 0, 0, 2].into(), b.local_addr().port());
    let slices = [IoSlice::new(b"hi")];
    let mut t = Transmit::new(to, &slices).source(Some([127, 0, 0, 3].into()));
    a.sender().send(&mut t).await.unwrap();
    let got = receive(&b, 1).await.remove(0);
    assert_eq!(got.0, SocketAddr::new([127, 0, 0, 3].into(), a.local_addr().port()));
    assert_eq!(got.1, Some([127, 0, 0, 2].into()));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_dual_stack_socket_shows_no_mapped_addresses() {
    let dual = bind_dual_stack();
    let four = bind(V4);
    let slices = [IoSlice::new(b"hi")];
    let mut t = Transmit::new(four.local_addr(), &slices).ecn(Some(Ecn::Ect0)).source(Some([127, 0, 0, 1].into()));
    assert_eq!(dual.sender().send(&mut t).await.unwrap().sent, 1);
    let got = receive(&four, 1).await.remove(0);
    assert_eq!((got.0.port(), got.2), (dual.local_addr().port(), Some(Ecn::Ect0)));
    let mut t = Transmit::new(SocketAddr::new([127, 0, 0, 1].into(), dual.local_addr().port()), &slices);
    four.sender().send(&mut t).await.unwrap();
    let got = receive(&dual, 1).await.remove(0);
    assert_eq!((got.0, got.1), (four.local_addr(), Some([127, 0, 0, 1].into())));
}

/// Neighbours differ in one thing each, or in nothing. (The portable file sends one by one, and quinn-udp leaves out the ECN field
/// of what goes to IPv4 from a socket of both families without a source.)
#[cfg(all(target_os = "linux", not(backwater_portable)))]
#[tokio::test]
async fn each_of_a_batch_has_its_own_length_ecn_and_source() {
    let dual = bind_dual_stack();
    let ends = [bind(V4), bind(V6)];
    let (whole, pieces) = ([IoSlice::new(b"abcdef")], [IoSlice::new(b"abcd"), IoSlice::new(b"ef")]);
    let ect = Some(Ecn::Ect0);
    let cases = [
        (0, 2, None, None),
        (0, 2, None, None),
        (1, 2, None, None),
        (1, 3, None, None),
        (1, 3, ect, None),
        (0, 3, ect, None),
        (0, 3, ect, None),
        (0, 3, Some(Ecn::Ce), None),
        (0, 3, Some(Ecn::Ce), Some(IpAddr::from([127, 0, 0, 2]))),
        (0, 6, None, Some([127, 0, 0, 3].into())),
        (0, 6, None, None),
    ];
    let mut slices = [&whole[..], &pieces].into_iter().cycle();
    let mut batch = cases.map(|(end, len, ecn, source)| {
        let to: &UdpSocket = &ends[end];
        Transmit::new(to.local_addr(), slices.next().unwrap()).segment_size(len).ecn(ecn).source(source)
    });
    let mut sender = dual.sender();
    std::future::poll_fn(|cx| sender.poll_send_batch(cx, &mut batch)).await.unwrap();
    for (end, socket) in ends.iter().enumerate() {
        let want = cases
            .iter()
            .filter(|case| case.0 == end)
            .flat_map(|case| b"abcdef".chunks(case.1).map(move |payload| (payload, case)));
        let want: Vec<_> = want.collect();
        for (got, (payload, (_, _, ecn, source))) in receive(socket, want.len()).await.into_iter().zip(want) {
            assert_eq!((got.3.as_slice(), got.2), (payload, *ecn), "to {}", socket.local_addr());
            assert_eq!(got.0.ip(), source.unwrap_or(socket.local_addr().ip()));
        }
    }
}

#[tokio::test]
async fn an_empty_datagram_goes_out() {
    let (a, b) = (bind(V4), bind(V4));
    assert_eq!(a.sender().send(&mut Transmit::new(b.local_addr(), &[])).await.unwrap().sent, 1);
    assert_eq!(receive(&b, 1).await.remove(0).3, b"");
}

#[tokio::test]
async fn what_cannot_be_sent_is_dropped_for_a_reason() {
    let a = bind(V4);
    let big = vec![0; 65_508];
    let slices = [IoSlice::new(&big)];
    for (to, slices, reason) in
        [(a.local_addr(), &slices[..], DropReason::TooLarge), ("[::1]:9".parse().unwrap(), &[], DropReason::Invalid)]
    {
        let report = a.sender().send(&mut Transmit::new(to, slices)).await.unwrap();
        assert_eq!((report.sent, report.dropped.get(reason)), (0, 1), "{to}: {report:?}");
    }
    let stats = a.stats().snapshot();
    assert_eq!((stats.accepted, stats.dropped_total(), stats.held), (2, 2, 0));
}

#[tokio::test]
async fn a_broken_destination_in_a_batch_does_not_stop_the_others() {
    let (a, b) = (bind(V4), bind(V4));
    let slices = [IoSlice::new(b"hi")];
    let mut batch = [
        Transmit::new(b.local_addr(), &slices),
        Transmit::new("[::1]:9".parse().unwrap(), &slices),
        Transmit::new(b.local_addr(), &slices),
    ];
    let mut sender = a.sender();
    let report = std::future::poll_fn(|cx| sender.poll_send_batch(cx, &mut batch)).await.unwrap();
    assert_eq!((report.sent, report.dropped.get(DropReason::Invalid)), (2, 1));
    receive(&b, 2).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_port_is_shared_by_those_who_agree() {
    let first = UdpSocket::builder().reuse_port(true).bind(V4.parse().unwrap()).unwrap();
    UdpSocket::builder().reuse_port(true).bind(first.local_addr()).unwrap();
    assert!(UdpSocket::bind(first.local_addr()).is_err());
}

#[tokio::test]
async fn buffers_are_what_was_asked_or_what_the_system_allows() {
    let s = UdpSocket::builder().receive_buffer(100_000).send_buffer(70_000).bind(V4.parse().unwrap()).unwrap();
    assert!(s.receive_buffer().unwrap() >= 100_000);
    assert!(s.send_buffer().unwrap() >= 70_000);
    UdpSocket::builder().receive_buffer(1 << 30).send_buffer(1 << 30).bind(V4.parse().unwrap()).unwrap();
}

/// Of tokio's cooperative budget, which is 128 of such steps, sending takes its part.
#[tokio::test]
async fn a_task_that_sends_in_a_loop_lets_others_run() {
    let (a, to) = (bind(V4), "127.0.0.1:9".parse().unwrap());
    let turns = Arc::new(AtomicU32::new(0));
    let count = turns.clone();
    let other = tokio::spawn(async move {
        loop {
            count.fetch_add(1, Relaxed);
            tokio::task::yield_now().await;
        }
    });
    let mut sender = a.sender();
    for _ in 0..12_800 {
        sender.send(&mut Transmit::new(to, &[])).await.unwrap();
    }
    assert!(turns.swap(0, Relaxed) >= 90);
    let mut sink = DatagramSink::new(sender);
    for _ in 0..12_800 {
        std::future::poll_fn(|cx| Pin::new(&mut sink).poll_ready(cx)).await.unwrap();
        Pin::new(&mut sink).start_send((to, Bytes::new()).into()).unwrap();
    }
    assert!(turns.load(Relaxed) >= 90);
    other.abort();
}

/// What is borrowed from a batch may be kept across an await, in a task that moves between threads.
#[tokio::test]
async fn a_batch_is_forwarded_by_a_spawned_task() {
    let (a, b) = (bind(V4), bind(V4));
    let (from, at) = (a.local_addr(), b.local_addr());
    let forwarding = tokio::spawn(async move {
        let (mut receiver, mut sender, mut batch) = (b.receiver(), b.sender(), RecvBatch::new(8));
        receiver.recv(&mut batch).await.unwrap();
        for train in batch.gro_batches() {
            for payload in train.payloads() {
                sender.send_to(payload, from).await.unwrap();
            }
        }
    });
    a.sender().send_to(b"hello", at).await.unwrap();
    assert_eq!(receive(&a, 1).await[0].3, b"hello");
    forwarding.await.unwrap();
}

#[tokio::test]
async fn a_datagram_that_is_dropped_is_an_error_where_it_is_the_only_one() {
    let a = bind(V4);
    let mut sender = a.sender();
    for (to, len, reason) in [("127.0.0.1:9", 65_508, DropReason::TooLarge), ("[::1]:9", 1, DropReason::Invalid)] {
        let error = sender.send_to(&vec![0; len], to.parse().unwrap()).await.unwrap_err();
        assert_eq!(error.get_ref().unwrap().downcast_ref::<DropReason>(), Some(&reason), "{error}");
    }
    sender.send_to(b"", a.local_addr()).await.unwrap();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_source_of_another_family_is_invalid() {
    let (a, b) = (bind(V4), bind(V4));
    let slices = [IoSlice::new(b"hi")];
    for (source, sent) in [("::1", 0), ("::ffff:127.0.0.1", 1), ("127.0.0.1", 1)] {
        let source = source.parse().unwrap();
        let transmit = || Transmit::new(b.local_addr(), &slices).source(Some(source));
        let report = a.sender().send(&mut transmit()).await.unwrap();
        assert_eq!((report.sent, report.dropped.get(DropReason::Invalid)), (sent, 1 - sent), "{source}");
        let mut several = [transmit(), transmit()];
        let mut sender = a.sender();
        let report = std::future::poll_fn(|cx| sender.poll_send_batch(cx, &mut several)).await.unwrap();
        assert_eq!((report.sent, report.dropped.get(DropReason::Invalid)), (2 * sent, 2 - 2 * sent), "{source}");
    }
}

/// 65,507 bytes are the most for IPv4, also where its address is mapped into IPv6.
#[cfg(all(target_os = "linux", not(backwater_portable)))]
#[tokio::test]
async fn a_batch_to_a_mapped_address_takes_as_many_calls_as_one_to_ipv4() {
    let (dual, b) = (bind_dual_stack(), bind(V4));
    let payload = vec![0; 60 * 1100];
    let slices = [IoSlice::new(&payload)];
    for to in [b.local_addr().to_string(), format!("[::ffff:127.0.0.1]:{}", b.local_addr().port())] {
        let before = dual.stats().snapshot().attempts;
        let mut t = Transmit::new(to.parse().unwrap(), &slices).segment_size(1100);
        assert_eq!(dual.sender().send(&mut t).await.unwrap().sent, 60);
        assert_eq!(dual.stats().snapshot().attempts - before, 2, "{to}");
    }
}

#[test]
fn a_sender_is_small() {
    assert!(size_of::<Sender>() <= 40);
    let ms = if cfg!(target_vendor = "apple") { 500 } else { 100 };
    assert_eq!(Policy::default(), Policy::Wait { deadline: Duration::from_millis(ms) });
}

#[tokio::test]
#[cfg(all(target_os = "linux", not(backwater_portable)))]
async fn hop_limits_are_told_and_sent() {
    for addr in [V4, V6] {
        let (a, b) = (bind(addr), UdpSocket::builder().receive_hop_limit(true).bind(addr.parse().unwrap()).unwrap());
        let slices = [IoSlice::new(b"onetwo")];
        let transmit = || Transmit::new(b.local_addr(), &slices).segment_size(3);
        let (mut receiver, mut batch) = (b.receiver(), RecvBatch::new(8));
        let mut sender = a.sender();
        for hops in [Some(1), Some(200), None, Some(0)] {
            a.set_hop_limit(hops).unwrap();
            sender.send(&mut transmit()).await.unwrap();
            a.set_hop_limit(Some(7)).unwrap();
            sender.send(&mut transmit()).await.unwrap();
            let mut seen = Vec::new();
            while seen.len() < 4 {
                timeout(Duration::from_secs(10), receiver.recv(&mut batch))
                    .await
                    .expect("datagrams are missing")
                    .unwrap();
                for train in batch.gro_batches() {
                    seen.extend(std::iter::repeat_n(train.hop_limit, train.datagram_count()));
                }
            }
            let first = hops.filter(|&hops| hops > 0).unwrap_or(64);
            assert_eq!(seen, [[Some(first); 2], [Some(7); 2]].concat(), "{addr}");
        }
    }
}
