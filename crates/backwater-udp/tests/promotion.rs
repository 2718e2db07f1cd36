//! A queue connects sockets for busy destinations. What these catch reaches the receiver of the socket that they stand beside.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    collections::{HashMap, HashSet},
    io::IoSlice,
    net::{IpAddr, SocketAddr, UdpSocket as Std},
    sync::atomic::Ordering::SeqCst,
    time::Duration,
};

use backwater_udp::{QueueBounds, RecvBatch, RecvDatagram, SendQueue, Transmit, UdpSocket, UdpSocketBuilder};
use tokio::time::timeout;

#[path = "support/flood.rs"]
mod flood;

const ANY: [&str; 4] = ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"];
const PATIENCE: Duration = Duration::from_secs(10);

fn builder() -> UdpSocketBuilder {
    UdpSocket::builder().receive_buffer(4 << 20).connect_busy_destinations(true)
}

fn loopback(addr: SocketAddr) -> IpAddr {
    if addr.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() }
}

fn peer(beside: &UdpSocket) -> Std {
    let socket = Std::bind((loopback(beside.local_addr()), 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sockets of this network and family at the port.
fn sockets(at: SocketAddr) -> usize {
    let name = if at.is_ipv4() { "udp" } else { "udp6" };
    let table = std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
    let columns = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let here = columns.filter(|columns| columns[1].ends_with(&format!(":{:04X}", at.port())));
    // While other sockets come and go the kernel may list one twice.
    here.map(|columns| columns[9].to_owned()).collect::<HashSet<_>>().len()
}

/// The kernel may leave one out, too.
fn assert_sockets(at: SocketAddr, wanted: usize) {
    assert!((0..100).any(|_| sockets(at) == wanted), "{at}: {} sockets instead of {wanted}", sockets(at));
}

/// Sends so many datagrams in one call.
fn send(queue: &mut SendQueue, to: SocketAddr, source: Option<IpAddr>, datagrams: usize) -> u32 {
    let bytes = vec![7; datagrams];
    let slices = [IoSlice::new(&bytes)];
    queue.send(to, &mut Transmit::new(to, &slices).segment_size(1).source(source)).unwrap().sent
}

#[tokio::test]
async fn what_is_sent_looks_the_same_from_the_sixteenth_datagram_on() {
    for (any, named) in ANY.into_iter().flat_map(|any| [(any, false), (any, true)]) {
        let socket = builder().bind(any.parse().unwrap()).unwrap();
        let (peer, own) = (peer(&socket), SocketAddr::new(loopback(socket.local_addr()), socket.local_addr().port()));
        let (to, source) = (peer.local_addr().unwrap(), Some(own.ip()).filter(|_| named));
        let mut queue = SendQueue::new(socket.clone(), QueueBounds::default());
        for (datagrams, open) in [(15, 1), (16, 2), (1, 2), (64, 2)] {
            assert_eq!(send(&mut queue, to, source, datagrams), datagrams as u32);
            assert_sockets(own, open);
        }
        for _ in 0..15 + 16 + 1 + 64 {
            assert_eq!(peer.recv_from(&mut [0; 8]).unwrap(), (1, own), "{any}");
        }
        let stats = socket.stats().snapshot();
        assert_eq!((stats.accepted, stats.sent, stats.held), (96, 96, 0));
        // Nobody reads what they catch: they are closed with the socket, if not before.
        drop(queue);
        drop(socket);
        assert_sockets(own, 0);
    }
}

#[tokio::test]
async fn sixteen_destinations_have_one() {
    let socket = builder().bind(ANY[0].parse().unwrap()).unwrap();
    let peers: Vec<_> = (0..40).map(|_| peer(&socket)).collect();
    let mut queue = SendQueue::new(socket.clone(), QueueBounds::default());
    for _ in 0..3 {
        for peer in &peers {
            assert_eq!(send(&mut queue, peer.local_addr().unwrap(), None, 16), 16);
        }
    }
    assert_sockets(socket.local_addr(), 17);
}

/// What a socket has received is not thrown away, so that it is not closed; but no more than 32 are kept so.
#[tokio::test]
async fn a_receiver_that_does_not_come_costs_bounded_sockets() {
    let socket = builder().bind(ANY[0].parse().unwrap()).unwrap();
    let (to, peers) = (socket.local_addr(), [(); 8].map(|()| peer(&socket)));
    for _ in 0..20 {
        let mut queue = SendQueue::new(socket.clone(), QueueBounds::default());
        for peer in &peers {
            assert_eq!(send(&mut queue, peer.local_addr().unwrap(), None, 16), 16);
            peer.send_to(b"x", to).unwrap();
        }
    }
    assert_sockets(to, 1 + 32);
    let (mut receiver, mut batch, mut seen) = (socket.receiver(), RecvBatch::new(8), 0);
    while seen < 20 * peers.len() {
        timeout(PATIENCE, receiver.recv(&mut batch)).await.expect("all arrive").unwrap();
        seen += batch.datagrams().count();
    }
    for _ in 0..2 {
        assert!(timeout(Duration::from_millis(10), receiver.recv(&mut batch)).await.is_err());
    }
    assert_sockets(to, 1);
}

/// Peers send all the while that sockets for them are connected and closed. Each datagram arrives once, and each peer's in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_sockets_come_and_go() {
    for any in ANY {
        let socket = builder().bind(any.parse().unwrap()).unwrap();
        let to = SocketAddr::new(loopback(socket.local_addr()), socket.local_addr().port());
        let peers: Vec<_> = (0..8).map(|_| peer(&socket)).collect();
        let addresses: Vec<_> = peers.iter().map(|peer| peer.local_addr().unwrap()).collect();
        let flood = flood::Flood::start(peers, to);
        let kept = |d: RecvDatagram<'_>| (d.source, d.local_ip, u32::from_be_bytes(d.payload.try_into().unwrap()));
        let receiving = flood.receive(socket.clone(), kept);
        let mut opened = 0;
        for round in 0..200 {
            let mut queue = SendQueue::new(socket.clone(), QueueBounds::default());
            for address in &addresses {
                send(&mut queue, *address, None, 16);
            }
            opened += sockets(to) - 1;
            let at_least = flood.seen.load(SeqCst) + 50;
            while round % 4 == 0 && flood.seen.load(SeqCst) < at_least {
                tokio::task::yield_now().await;
            }
        }
        let sent = flood.stop();
        let all = receiving.await.unwrap();
        assert!(opened > 200, "{any}: {opened} connected sockets were seen");
        let mut numbers: Vec<_> = all.iter().map(|(_, _, number)| *number).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..sent), "{any}: {} of {sent}", all.len());
        let mut last = HashMap::new();
        let mut overtaken = 0;
        for (source, local_ip, number) in all {
            assert_eq!((source, local_ip), (addresses[number as usize % 8], Some(to.ip())), "{any}");
            overtaken += u32::from(last.insert(source, number).is_some_and(|before| before > number));
        }
        eprintln!("{any}: {overtaken} of {sent} were overtaken");
        assert_eq!(socket.stats().snapshot().received, u64::from(sent));
        // All that were connected are closed.
        assert_sockets(to, 1);
    }
}
