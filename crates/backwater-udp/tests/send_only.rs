//! A queue whose shared send buffer is full sends on sockets of its own. They look like the shared one, and take nothing from it.
#![cfg(all(target_os = "linux", not(backwater_portable)))]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "support/mod.rs"]
mod support;

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr, UdpSocket as StdSocket},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use backwater_udp::{Ecn, IcmpKind, Policy, QueueBounds, RecvBatch, SendQueue, Transmit, UdpSocket, UdpSocketBuilder};
use support::{block_on, in_namespace, ip, tc};

const PATIENCE: Duration = Duration::from_secs(10);

/// Loopback, with a slow and deep queue before one IPv4 and one IPv6 address.
fn loopback_with_a_slow_address() {
    ip("address add 10.7.0.1/32 dev lo");
    ip("address add 10.7.0.2/32 dev lo");
    ip("address add fd07::1/128 dev lo nodad");
    ip("address add fd07::2/128 dev lo nodad");
    tc("qdisc add dev lo root handle 1: htb default 10");
    tc("class add dev lo parent 1: classid 1:10 htb rate 10gbit");
    tc("class add dev lo parent 1: classid 1:20 htb rate 800kbit ceil 800kbit burst 3k");
    tc("qdisc add dev lo parent 1:20 bfifo limit 100mb");
    tc("filter add dev lo parent 1: protocol ip prio 1 u32 match ip dst 10.7.0.2 flowid 1:20");
    tc("filter add dev lo parent 1: protocol ipv6 prio 2 u32 match ip6 dst fd07::2/128 flowid 1:20");
}

fn slow_address(v4: bool) -> IpAddr {
    if v4 { [10, 7, 0, 2].into() } else { [0xfd07, 0, 0, 0, 0, 0, 0, 2].into() }
}

/// The address that a wildcard socket sends from: answers of the kernel to the slow one would fill the send buffer of its ICMP socket.
fn own_address(v4: bool) -> IpAddr {
    if v4 { [10, 7, 0, 1].into() } else { [0xfd07, 0, 0, 0, 0, 0, 0, 1].into() }
}

fn builder() -> UdpSocketBuilder {
    UdpSocket::builder().send_buffer(30_000).backpressure(backwater_udp::Backpressure::new(Policy::Drop))
}

/// How many of `count` datagrams the system takes.
fn fill<'a>(queue: &mut SendQueue, t: impl Fn() -> Transmit<'a>, count: u32) -> u32 {
    (0..count).map(|_| t()).map(|mut t| queue.send(t.destination(), &mut t).unwrap().sent).sum()
}

fn addresses() -> [SocketAddr; 4] {
    ["0.0.0.0:0", "10.7.0.1:0", "[::]:0", "[fd07::1]:0"].map(|any| any.parse().unwrap())
}

/// Ten thousand datagrams arrive while send-only sockets of the same port come and go.
#[test]
fn receiving_is_not_disturbed() {
    in_namespace("receiving_is_not_disturbed", || {
        loopback_with_a_slow_address();
        for any in addresses() {
            block_on(receives_all(any));
        }
    });
}

async fn receives_all(any: SocketAddr) {
    let socket = builder().bind(any).unwrap();
    let own = own_address(any.is_ipv4());
    let to = SocketAddr::new(own, socket.local_addr().port());
    let slow = StdSocket::bind((slow_address(any.is_ipv4()), 0)).unwrap();
    let bytes = [0; 1000];
    let slices = [IoSlice::new(&bytes)];
    let t = || Transmit::new(slow.local_addr().unwrap(), &slices).source(Some(own));
    let arrived = Arc::new(AtomicU32::new(0));
    let seen = arrived.clone();
    let sending = std::thread::spawn(move || {
        let clients: Vec<_> = (0..50).map(|_| StdSocket::bind((own, 0)).unwrap()).collect();
        for n in 0..10_000u32 {
            // Not more than a receive buffer holds.
            let began = std::time::Instant::now();
            while n >= seen.load(SeqCst) + 50 && began.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
            clients[n as usize % clients.len()].send_to(&n.to_be_bytes(), to).unwrap();
        }
    });
    let (mut receiver, mut batch, mut opened) = (socket.receiver(), RecvBatch::new(64), 0);
    let mut shared = SendQueue::new(socket.clone(), QueueBounds::default());
    // The shared send buffer is full from now on.
    assert!(fill(&mut shared, t, 100) > 15);
    while arrived.load(SeqCst) < 10_000 {
        let mut queue = SendQueue::new(socket.clone(), QueueBounds::default());
        opened += fill(&mut queue, t, 1);
        let received = tokio::time::timeout(PATIENCE, receiver.recv(&mut batch)).await;
        received.expect("all arrive").unwrap();
        let from_clients = batch.datagrams().filter(|d| d.payload.len() == 4).count();
        arrived.fetch_add(from_clients as u32, SeqCst);
    }
    sending.join().unwrap();
    assert!(opened > 50, "{any}: {opened} sockets came and went");
}

/// The source, the port and the fields of the header are the same.
#[test]
fn what_is_sent_looks_the_same() {
    in_namespace("what_is_sent_looks_the_same", || {
        loopback_with_a_slow_address();
        for any in addresses() {
            block_on(looks_the_same(any));
        }
    });
}

async fn looks_the_same(any: SocketAddr) {
    let socket = builder().bind(any).unwrap();
    let peer = UdpSocket::builder().receive_hop_limit(true).receive_buffer(1 << 20);
    let peer = peer.bind((slow_address(any.is_ipv4()), 0).into()).unwrap();
    let bytes = [0; 1000];
    let slices = [IoSlice::new(&bytes)];
    let t = || Transmit::new(peer.local_addr(), &slices).ecn(Some(Ecn::Ect0)).hop_limit(33);
    let mut queue = SendQueue::new(socket.clone(), QueueBounds::default());
    let sent = fill(&mut queue, t, 40);
    assert_eq!(sent, fill(&mut SendQueue::new(socket.clone(), QueueBounds::default()), t, 1) + sent - 1);
    assert!(sent > 25, "{any}: {sent} fit");
    let (mut receiver, mut batch, mut seen) = (peer.receiver(), RecvBatch::new(64), Vec::new());
    while seen.len() < sent as usize + 1 {
        tokio::time::timeout(PATIENCE, receiver.recv(&mut batch)).await.expect("all arrive").unwrap();
        for train in batch.gro_batches() {
            seen.extend(train.datagrams().map(|d| (d.source, d.ecn, train.hop_limit)));
        }
    }
    assert_eq!(seen[0].0.port(), socket.local_addr().port());
    assert_eq!((seen[0].1, seen[0].2), (Some(Ecn::Ect0), Some(33)));
    assert!(seen.iter().all(|one| *one == seen[0]), "{any}: {seen:?}");
}

/// They are about what was sent from the shared socket's address: its owner hears of them.
#[test]
fn icmp_errors_come_to_the_shared_socket() {
    in_namespace("icmp_errors_come_to_the_shared_socket", || {
        loopback_with_a_slow_address();
        for limit in ["ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"] {
            std::fs::write(format!("/proc/sys/net/{limit}"), "0").unwrap();
        }
        for any in addresses() {
            block_on(async {
                let socket = builder().bind(any).unwrap();
                let to = |port| SocketAddr::new(slow_address(any.is_ipv4()), port);
                let open = StdSocket::bind(to(0)).unwrap();
                let bytes = [0; 1000];
                let slices = [IoSlice::new(&bytes)];
                let mut queue = SendQueue::new(socket.clone(), QueueBounds::default());
                // The shared send buffer is full, and stays so for longer than a send takes.
                let t = |to| Transmit::new(to, &slices).source(Some(own_address(any.is_ipv4())));
                fill(&mut queue, || t(open.local_addr().unwrap()), 40);
                let (mut receiver, mut batch) = (socket.receiver(), RecvBatch::new(64));
                let began = std::time::Instant::now();
                let error = loop {
                    // The kernel answers so many a second, for all networks together.
                    fill(&mut queue, || t(to(9)), 1);
                    let _ = tokio::time::timeout(Duration::from_millis(20), receiver.recv(&mut batch)).await;
                    if let Some(error) = socket.next_icmp_error() {
                        break error;
                    }
                    assert!(began.elapsed() < PATIENCE, "{any}: no error");
                };
                assert_eq!(error.destination, to(9));
                assert!(matches!(error.kind, IcmpKind::Unreachable { .. }));
            });
        }
    });
}

/// The kernel spreads clients over the sockets of a port. Each stays with the one that it has.
#[test]
fn clients_stay_with_their_listener() {
    in_namespace("clients_stay_with_their_listener", || {
        loopback_with_a_slow_address();
        block_on(async {
            let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
            let first = builder().reuse_port(true).bind(any).unwrap();
            let second = builder().reuse_port(true).bind(first.local_addr()).unwrap();
            let to = SocketAddr::new([10, 7, 0, 1].into(), first.local_addr().port());
            let slow = StdSocket::bind((slow_address(true), 0)).unwrap();
            let clients: Vec<_> = (0..60).map(|_| StdSocket::bind("10.7.0.1:0").unwrap()).collect();
            let listeners = [first, second];
            let mut receivers = listeners.clone().map(|listener| listener.receiver());
            let spread = async |receivers: &mut [backwater_udp::Receiver; 2]| {
                let (mut batch, mut spread) = (RecvBatch::new(64), vec![None; clients.len()]);
                for (n, client) in clients.iter().enumerate() {
                    client.send_to(&[n as u8], to).unwrap();
                }
                while spread.contains(&None) {
                    for (listener, receiver) in receivers.iter_mut().enumerate() {
                        if tokio::time::timeout(Duration::from_millis(20), receiver.recv(&mut batch)).await.is_ok() {
                            let from_clients = batch.datagrams().filter(|d| d.payload.len() == 1);
                            from_clients.for_each(|d| spread[d.payload[0] as usize] = Some(listener));
                        }
                    }
                }
                spread
            };
            let before = spread(&mut receivers).await;
            let bytes = [0; 1000];
            let slices = [IoSlice::new(&bytes)];
            let t = || Transmit::new(slow.local_addr().unwrap(), &slices);
            let mut queues = listeners.map(|listener| SendQueue::new(listener, QueueBounds::default()));
            for queue in &mut queues {
                fill(queue, t, 100);
                let two = [IoSlice::new(&[7, 7])];
                // That there is room says that it is not the shared socket's.
                assert_eq!(fill(queue, || Transmit::new(to, &two), 1), 1);
            }
            assert_eq!(spread(&mut receivers).await, before);
        });
    });
}
