//! Another socket takes the place of one whose owner finds it stuck.
#![cfg(unix)]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[cfg(all(target_os = "linux", not(backwater_portable)))]
#[path = "support/mod.rs"]
mod support;

use std::{
    io::{ErrorKind, IoSlice},
    net::{SocketAddr, UdpSocket as Std},
    os::fd::AsRawFd,
    time::Duration,
};

use backwater_udp::{Fragmentation, Receiver, RecvBatch, Transmit, UdpSocket};
use socket2::SockRef;
use tokio::time::timeout;

const ANY: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];
const PATIENCE: Duration = Duration::from_secs(10);

fn other(any: &str) -> Std {
    let socket = Std::bind(any).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The next `count` datagrams, with their sources.
async fn received(receiver: &mut Receiver, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let (mut batch, mut seen) = (RecvBatch::new(2), Vec::new());
    while seen.len() < count {
        timeout(PATIENCE, receiver.recv(&mut batch)).await.expect("a datagram arrives").unwrap();
        seen.extend(batch.datagrams().map(|d| (d.source, d.payload.to_vec())));
    }
    seen
}

/// Where a datagram that is sent now comes from.
async fn source(from: &mut backwater_udp::Sender, to: &Std) -> SocketAddr {
    let payload = [IoSlice::new(b"x")];
    assert_eq!(from.send(&mut Transmit::new(to.local_addr().unwrap(), &payload)).await.unwrap().sent, 1);
    to.recv_from(&mut [0; 8]).unwrap().1
}

/// The port to ask for, the second time: the same, or any.
fn wanted(socket: &UdpSocket, same: bool) -> u16 {
    if same { socket.local_addr().port() } else { 0 }
}

#[tokio::test]
async fn all_handles_go_on_with_the_new_socket() {
    for (any, same) in ANY.into_iter().flat_map(|any| [(any, true), (any, false)]) {
        let (socket, peer) = (UdpSocket::bind(any.parse().unwrap()).unwrap(), other(any));
        let (clone, mut sender, mut receiver) = (socket.clone(), socket.sender(), socket.receiver());
        let (before, number) = (socket.local_addr(), socket.as_raw_fd());
        // The receiver waits when the socket is replaced.
        let receiving = tokio::spawn(async move { (received(&mut receiver, 1).await, receiver) });
        tokio::task::yield_now().await;
        assert_eq!(source(&mut sender, &peer).await, before);
        socket.rebind(wanted(&socket, same)).unwrap();
        let now = clone.local_addr();
        assert_eq!((now.ip(), now.port() == before.port()), (before.ip(), same), "{any}");
        assert_eq!(clone.as_raw_fd(), number);
        assert_eq!(source(&mut sender, &peer).await, now);
        assert_eq!(source(&mut clone.sender(), &peer).await, now);
        peer.send_to(b"first", now).unwrap();
        let (seen, mut receiver) = receiving.await.unwrap();
        assert_eq!(seen, [(peer.local_addr().unwrap(), b"first".to_vec())], "{any}");
        peer.send_to(b"second", now).unwrap();
        assert_eq!(received(&mut receiver, 1).await[0].1, b"second");
        let stats = socket.stats().snapshot();
        assert_eq!((stats.accepted, stats.sent, stats.held, stats.received), (3, 3, 0, 2), "the counters go on");
    }
}

#[tokio::test]
async fn what_the_former_socket_has_received_comes_first() {
    for (any, same) in ANY.into_iter().flat_map(|any| [(any, true), (any, false)]) {
        let (socket, peer) = (UdpSocket::bind(any.parse().unwrap()).unwrap(), other(any));
        for n in 0..10u8 {
            peer.send_to(&[n], socket.local_addr()).unwrap();
        }
        socket.rebind(wanted(&socket, same)).unwrap();
        for n in 10..20u8 {
            peer.send_to(&[n], socket.local_addr()).unwrap();
        }
        let want: Vec<_> = (0..20u8).map(|n| (peer.local_addr().unwrap(), vec![n])).collect();
        assert_eq!(received(&mut socket.receiver(), 20).await, want, "{any}");
        assert_eq!(socket.stats().snapshot().received, 20);
    }
}

#[tokio::test]
async fn a_port_that_is_taken_leaves_the_socket_as_it_is() {
    for any in ANY {
        let (socket, peer, taken) = (UdpSocket::bind(any.parse().unwrap()).unwrap(), other(any), other(any));
        let (before, mut receiver) = (socket.local_addr(), socket.receiver());
        let receiving = tokio::spawn(async move { received(&mut receiver, 1).await });
        tokio::task::yield_now().await;
        let error = socket.rebind(taken.local_addr().unwrap().port()).unwrap_err();
        assert_eq!((error.kind(), socket.local_addr()), (ErrorKind::AddrInUse, before), "{any}");
        assert_eq!(source(&mut socket.sender(), &peer).await, before);
        peer.send_to(b"still", before).unwrap();
        assert_eq!(receiving.await.unwrap(), [(peer.local_addr().unwrap(), b"still".to_vec())]);
        // Its port was shared for no longer than the call.
        assert!(Std::bind(before).is_err());
    }
}

#[tokio::test]
async fn options_are_kept() {
    for any in ANY {
        let builder = UdpSocket::builder().receive_buffer(150_000).send_buffer(90_000).reuse_port(true);
        let socket = builder.fragmentation(Fragmentation::Allowed).bind(any.parse().unwrap()).unwrap();
        let v4 = socket.local_addr().is_ipv4();
        let options = |socket: &UdpSocket| {
            // SAFETY: the socket is open.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket.as_raw_fd()) };
            let options = SockRef::from(&fd);
            let of_family = if v4 {
                (options.tos_v4().unwrap(), options.ttl_v4().unwrap())
            } else {
                (options.tclass_v6().unwrap(), options.unicast_hops_v6().unwrap())
            };
            let buffers = (socket.receive_buffer().unwrap(), socket.send_buffer().unwrap());
            (
                of_family,
                buffers,
                options.broadcast().unwrap(),
                options.reuse_port().unwrap(),
                options.nonblocking().unwrap(),
            )
        };
        {
            // SAFETY: the socket is open.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket.as_raw_fd()) };
            let set = SockRef::from(&fd);
            set.set_broadcast(true).unwrap();
            if v4 {
                set.set_tos_v4(0x28).unwrap();
            } else {
                set.set_tclass_v6(0x28).unwrap();
            }
            // Portable code cannot.
            let _ = socket.set_hop_limit(Some(33));
        }
        let before = options(&socket);
        assert_eq!((before.0.0, before.2, before.3), (0x28, true, true));
        for same in [true, false] {
            socket.rebind(wanted(&socket, same)).unwrap();
            assert_eq!((options(&socket), socket.fragmentation()), (before, Fragmentation::Allowed), "{any}");
        }
    }
}

#[tokio::test]
async fn a_connected_socket_stays_connected() {
    for (any, same) in ANY.into_iter().flat_map(|any| [(any, true), (any, false)]) {
        let (peer, stranger) = (other(any), other(any));
        let to = peer.local_addr().unwrap();
        let socket = UdpSocket::builder().connect(any.parse().unwrap(), to).unwrap();
        socket.rebind(wanted(&socket, same)).unwrap();
        assert_eq!(socket.peer_addr(), Some(to));
        stranger.send_to(b"stranger's", socket.local_addr()).unwrap();
        peer.send_to(b"peer's", socket.local_addr()).unwrap();
        assert_eq!(received(&mut socket.receiver(), 1).await, [(to, b"peer's".to_vec())], "{any}");
        assert_eq!(source(&mut socket.sender(), &peer).await, socket.local_addr());
    }
}

/// Two threads go on while the socket is replaced, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_is_replaced_all_the_time_works() {
    let socket = UdpSocket::bind(ANY[0].parse().unwrap()).unwrap();
    let (peer, at) = (other(ANY[0]), socket.local_addr());
    let to = peer.local_addr().unwrap();
    let sending = tokio::spawn({
        let mut sender = socket.sender();
        async move {
            for _ in 0..2000 {
                sender.send_to(b"x", to).await.unwrap();
            }
        }
    });
    let receiving = tokio::spawn({
        let mut receiver = socket.receiver();
        async move { while received(&mut receiver, 1).await[0].1 != b"last" {} }
    });
    for n in 0..100u32 {
        peer.send_to(&n.to_be_bytes(), at).unwrap();
        socket.rebind(at.port()).unwrap();
        tokio::task::yield_now().await;
    }
    sending.await.unwrap();
    peer.send_to(b"last", at).unwrap();
    receiving.await.unwrap();
    let stats = socket.stats().snapshot();
    assert_eq!((stats.accepted, stats.held), (2000, 0));
}

#[cfg(all(target_os = "linux", not(backwater_portable)))]
mod stuck {
    use std::{future::poll_fn, task::Poll};

    use backwater_udp::{Backpressure, Policy, QueueBounds, SendQueue, UdpSocketBuilder};

    use super::{
        support::{block_on, in_namespace, ip, tc},
        *,
    };

    const SLOW: &str = "10.7.0.2:0";

    /// Loopback, with a deep queue before one address, which a datagram of 1,000 bytes leaves in ten seconds.
    fn loopback_with_a_stuck_address() {
        ip("address add 10.7.0.1/32 dev lo");
        ip("address add 10.7.0.2/32 dev lo");
        tc("qdisc add dev lo root handle 1: htb default 10");
        tc("class add dev lo parent 1: classid 1:10 htb rate 10gbit");
        tc("class add dev lo parent 1: classid 1:20 htb rate 800bit ceil 800bit burst 2k cburst 2k");
        tc("qdisc add dev lo parent 1:20 bfifo limit 100mb");
        tc("filter add dev lo parent 1: protocol ip prio 1 u32 match ip dst 10.7.0.2 flowid 1:20");
    }

    fn builder() -> UdpSocketBuilder {
        let policy = Policy::Wait { deadline: Duration::from_secs(3600) };
        UdpSocket::builder().send_buffer(30_000).backpressure(Backpressure::new(policy))
    }

    /// Whether a socket of this network is bound to the port.
    fn is_bound(port: u16) -> bool {
        let table = std::fs::read_to_string("/proc/thread-self/net/udp").unwrap();
        table
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1))
            .any(|addr| addr.ends_with(&format!(":{port:04X}")))
    }

    #[test]
    fn senders_that_wait_go_on_at_once() {
        in_namespace("stuck::senders_that_wait_go_on_at_once", || {
            loopback_with_a_stuck_address();
            block_on(async {
                for same in [true, false] {
                    let socket = builder().bind("10.7.0.1:0".parse().unwrap()).unwrap();
                    let (before, slow) = (socket.local_addr(), other(SLOW));
                    let to = slow.local_addr().unwrap();
                    let (bytes, mut senders) = ([7; 1000], Vec::new());
                    let mut fills = 0;
                    // The first fills the send buffer; the others wait behind it.
                    for _ in 0..3 {
                        let mut sender = socket.sender();
                        let sending = async move {
                            loop {
                                sender.send_to(&bytes, to).await.unwrap();
                                fills += 1;
                                assert!(fills < 1000, "nothing is refused");
                            }
                        };
                        senders.push(tokio::spawn(sending));
                    }
                    let waits = |socket: &UdpSocket| (socket.stats().snapshot().held, socket.stats().snapshot().sent);
                    let began = tokio::time::Instant::now();
                    while waits(&socket).0 < 3 {
                        assert!(began.elapsed() < PATIENCE, "three senders wait");
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    let sent = waits(&socket).1;
                    socket.rebind(wanted(&socket, same)).unwrap();
                    // As much again has room, at once; then all wait again.
                    let began = tokio::time::Instant::now();
                    while waits(&socket).1 < sent + sent / 2 || waits(&socket).0 < 3 {
                        assert!(began.elapsed() < PATIENCE, "same port {same}: {:?} {sent}", waits(&socket));
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    assert_eq!(is_bound(before.port()), same, "the former socket is closed");
                    senders.iter().for_each(|sender| sender.abort());
                    for sender in senders {
                        assert!(sender.await.unwrap_err().is_cancelled());
                    }
                    let stats = socket.stats().snapshot();
                    assert_eq!((stats.accepted, stats.held), (stats.sent + stats.dropped_total(), 0));
                }
            });
        });
    }

    #[test]
    fn a_queue_sends_from_the_new_port_also_what_waited_on_a_send_only_socket() {
        in_namespace("stuck::a_queue_sends_from_the_new_port_also_what_waited_on_a_send_only_socket", || {
            loopback_with_a_stuck_address();
            block_on(async {
                let socket = builder().bind("10.7.0.1:0".parse().unwrap()).unwrap();
                let before = socket.local_addr().port();
                let slow = UdpSocket::builder().receive_buffer(1 << 20).bind(SLOW.parse().unwrap()).unwrap();
                let (bytes, to) = ([7; 1000], slow.local_addr());
                let slices = [IoSlice::new(&bytes)];
                let mut queue = SendQueue::new(socket.clone(), QueueBounds::default());
                let send = |queue: &mut SendQueue| queue.send(to, &mut Transmit::new(to, &slices)).unwrap().sent;
                let sent: u32 = (0..200).map(|_| send(&mut queue)).sum();
                let held = queue.held();
                assert!(held > 100 && sent > 25, "{sent} fit into two send buffers, {held} wait");
                let _ = timeout(Duration::from_millis(50), poll_fn(|cx| queue.poll_flush(cx))).await;
                socket.rebind(0).unwrap();
                let began = tokio::time::Instant::now();
                while queue.held() > held - 10 {
                    assert!(began.elapsed() < PATIENCE, "what waits goes on at once");
                    let _ = timeout(Duration::from_millis(5), poll_fn(|cx| queue.poll_flush(cx))).await;
                }
                assert!(!is_bound(before), "nothing is left at the former port");
                let stats = socket.stats().snapshot();
                assert_eq!(stats.accepted, stats.sent + stats.dropped_total() + queue.held() as u64);
                // The slow path forgets its queue; what is sent now comes from the new port.
                tc("qdisc del dev lo root");
                let (mut receiver, mut batch) = (slow.receiver(), RecvBatch::new(8));
                while poll_fn(|cx| Poll::Ready(receiver.poll_recv(cx, &mut batch).is_ready())).await {}
                timeout(PATIENCE, poll_fn(|cx| queue.poll_flush(cx))).await.expect("there is room").unwrap();
                timeout(PATIENCE, receiver.recv(&mut batch)).await.expect("it arrives").unwrap();
                let ports: Vec<_> = batch.datagrams().map(|d| d.source.port()).collect();
                assert!(ports.iter().all(|port| *port == socket.local_addr().port()), "{ports:?}");
            });
        });
    }
}
