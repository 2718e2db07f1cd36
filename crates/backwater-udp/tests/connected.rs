//! A connected socket that shares its port with an unconnected one.
#![cfg(unix)]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    io::IoSlice,
    net::{SocketAddr, UdpSocket as Std},
    time::Duration,
};

use backwater_udp::{DropReason, RecvBatch, Transmit, UdpSocket};
use tokio::time::timeout;

#[cfg(target_os = "linux")]
#[path = "support/flood.rs"]
mod flood;

const ANY: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

fn shared(any: &str) -> UdpSocket {
    UdpSocket::builder().reuse_port(true).receive_buffer(4 << 20).bind(any.parse().unwrap()).unwrap()
}

fn other(any: &str) -> (Std, SocketAddr) {
    let socket = Std::bind(any).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

/// The next `count` datagrams with their sources, and what else arrives in a tenth of a second.
async fn received(socket: &UdpSocket, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let (mut receiver, mut batch, mut seen) = (socket.receiver(), RecvBatch::new(8), Vec::new());
    let patience = |seen: usize| Duration::from_millis(if seen < count { 10_000 } else { 100 });
    while let Ok(result) = timeout(patience(seen.len()), receiver.recv(&mut batch)).await {
        result.unwrap();
        seen.extend(batch.datagrams().map(|d| (d.source, d.payload.to_vec())));
    }
    seen
}

async fn send(from: &UdpSocket, to: SocketAddr, payload: &[u8]) -> backwater_udp::SendReport {
    from.sender().send(&mut Transmit::new(to, &[IoSlice::new(payload)])).await.unwrap()
}

fn receive(socket: &Std) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 64];
    let (n, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..n].to_vec(), from)
}

#[tokio::test]
async fn the_peers_datagrams_arrive_at_the_connected_socket_and_others_at_the_unconnected_one() {
    for any in ANY {
        let unconnected = shared(any);
        let (to, (peer, peer_addr)) = (unconnected.local_addr(), other(any));
        let (connected, caught) = unconnected.connect(peer_addr).unwrap();
        assert!(caught.is_empty());
        assert_eq!((connected.local_addr(), connected.peer_addr()), (to, Some(peer_addr)));
        assert_eq!(unconnected.peer_addr(), None);
        let others: Vec<_> = (0..50).map(|_| other(any)).collect();
        for i in 0..4u8 {
            peer.send_to(&[i], to).unwrap();
            for (socket, _) in &others {
                socket.send_to(&[i], to).unwrap();
            }
        }
        let want = |addr: SocketAddr| (0..4u8).map(move |i| (addr, vec![i]));
        assert_eq!(received(&connected, 4).await, want(peer_addr).collect::<Vec<_>>(), "{any}");
        let (mut seen, mut all) =
            (received(&unconnected, 200).await, others.iter().flat_map(|o| want(o.1)).collect::<Vec<_>>());
        seen.sort();
        all.sort();
        assert_eq!(seen, all, "{any}");
        assert_eq!(unconnected.stats().snapshot().received, 4 + 200, "the counters are shared");
    }
}

#[tokio::test]
async fn both_send_from_the_port_and_the_connected_one_to_its_peer_only() {
    for any in ANY {
        let unconnected = shared(any);
        let ((peer, peer_addr), (stranger, stranger_addr)) = (other(any), other(any));
        let (connected, _) = unconnected.connect(peer_addr).unwrap();
        assert_eq!(send(&connected, peer_addr, b"a").await.sent, 1);
        assert_eq!(send(&unconnected, peer_addr, b"b").await.sent, 1);
        assert_eq!(send(&unconnected, stranger_addr, b"c").await.sent, 1);
        let from = unconnected.local_addr();
        assert_eq!((receive(&peer), receive(&peer)), ((b"a".to_vec(), from), (b"b".to_vec(), from)));
        assert_eq!(receive(&stranger), (b"c".to_vec(), from));

        // Single or a train, it is dropped and counted, costs its neighbours nothing, and is not sent.
        let (slices, mut sender) = ([IoSlice::new(b"xyz")], connected.sender());
        let mut batch = [
            Transmit::new(peer_addr, &slices),
            Transmit::new(stranger_addr, &slices),
            Transmit::new(stranger_addr, &slices).segment_size(1),
            Transmit::new(peer_addr, &slices).segment_size(1),
        ];
        let report = std::future::poll_fn(|cx| sender.poll_send_batch(cx, &mut batch)).await.unwrap();
        assert_eq!((report.sent, report.dropped.get(DropReason::Invalid), report.dropped.total()), (4, 4, 4), "{any}");
        stranger.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(stranger.recv(&mut [0; 8]).is_err());
        let stats = connected.stats().snapshot();
        assert_eq!((stats.accepted, stats.sent, stats.dropped_total(), stats.held), (11, 7, 4, 0));
    }
}

#[tokio::test]
async fn closing_one_does_not_disturb_the_other() {
    for any in ANY {
        let unconnected = shared(any);
        let (to, (peer, peer_addr), (second, second_addr)) = (unconnected.local_addr(), other(any), other(any));
        let (first_connected, _) = unconnected.connect(peer_addr).unwrap();
        let (connected, _) = unconnected.connect(second_addr).unwrap();
        drop(first_connected);
        peer.send_to(b"to the unconnected again", to).unwrap();
        second.send_to(b"to the second", to).unwrap();
        assert_eq!(received(&unconnected, 1).await, [(peer_addr, b"to the unconnected again".to_vec())], "{any}");
        assert_eq!(received(&connected, 1).await, [(second_addr, b"to the second".to_vec())], "{any}");
        drop(unconnected);
        second.send_to(b"still", to).unwrap();
        assert_eq!(received(&connected, 1).await, [(second_addr, b"still".to_vec())], "{any}");
        assert_eq!(send(&connected, second_addr, b"back").await.sent, 1);
        assert_eq!(receive(&second), (b"back".to_vec(), to));
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn who_does_not_share_his_port_cannot_connect() {
    let alone = UdpSocket::bind(ANY[0].parse().unwrap()).unwrap();
    assert_eq!(alone.connect("127.0.0.1:9".parse().unwrap()).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}

/// A stranger sends all the while that peers are connected, one after the other. Between its birth and its connection each
/// socket takes some of it; every datagram is seen once all the same.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_is_lost_while_sockets_are_connected() {
    use std::{
        sync::atomic::Ordering::SeqCst,
        task::{Context, Poll, Waker},
    };
    for any in ANY {
        let unconnected = shared(any);
        let (stranger, source) = other(any);
        let flood = flood::Flood::start(vec![stranger], unconnected.local_addr());
        let receiving = flood.receive(unconnected.clone(), |d| (d.source, d.payload.to_vec()));
        let peers: Vec<_> = (0..500).map(|_| other(any)).collect();
        let (mut connected, mut caught) = (Vec::new(), Vec::new());
        for (_, addr) in &peers {
            let (socket, more) = unconnected.connect(*addr).unwrap();
            flood.seen.fetch_add(more.len() as u32, SeqCst);
            connected.push(socket);
            caught.extend(more.into_iter().map(|d| (d.peer, d.payload.to_vec())));
        }
        let sent = flood.stop();
        eprintln!("{any}: {} of {sent} were caught by sockets that were not connected yet", caught.len());
        let mut all = receiving.await.unwrap();
        all.extend(caught);
        // What the system was about to hand over at that moment.
        let mut batch = RecvBatch::new(8);
        for socket in &connected {
            let mut receiver = socket.receiver();
            while let Poll::Ready(result) = receiver.poll_recv(&mut Context::from_waker(Waker::noop()), &mut batch) {
                result.unwrap();
                all.extend(batch.datagrams().map(|d| (d.source, d.payload.to_vec())));
            }
        }
        all.sort();
        assert!(all.into_iter().eq((0..sent).map(|i| (source, i.to_be_bytes().to_vec()))), "{any}");
    }
}
