//! What those need who bring buffers, an event loop and a runtime of their own.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "support/mod.rs"]
#[cfg(target_os = "linux")]
mod support;

use std::{
    future::poll_fn,
    io::{IoSlice, IoSliceMut},
    net::SocketAddr,
    time::Duration,
};

use backwater_udp::{DatagramStream, Receiver, RecvBatch, RecvMeta, Sender, Transmit, UdpSocket};
use tokio::time::timeout;

fn bind(addr: &str) -> UdpSocket {
    UdpSocket::bind(addr.parse().unwrap()).unwrap()
}

/// Receives into eight buffers of `size` bytes, until there are so many datagrams.
async fn receive_into(receiver: &mut Receiver, size: usize, datagrams: usize) -> Vec<(RecvMeta, Vec<u8>)> {
    let (mut room, mut metas, mut seen) = (vec![0; 8 * size], [RecvMeta::default(); 8], Vec::new());
    while seen.iter().map(|(meta, _): &(RecvMeta, _)| meta.datagram_count()).sum::<usize>() < datagrams {
        let mut bufs: Vec<_> = room.chunks_exact_mut(size).map(IoSliceMut::new).collect();
        let receiving = poll_fn(|cx| receiver.poll_recv_into(cx, &mut bufs, &mut metas));
        let filled = timeout(Duration::from_secs(10), receiving).await.expect("datagrams are missing").unwrap();
        assert!((1..=8).contains(&filled));
        seen.extend(metas.iter().zip(&bufs).take(filled).map(|(meta, buf)| (*meta, buf[..meta.len].to_vec())));
    }
    seen
}

#[tokio::test]
async fn callers_buffers_receive_what_was_sent() {
    for addr in ["127.0.0.1:0", "[::1]:0"] {
        let (a, b) = (bind(addr), bind(addr));
        let data: Vec<u8> = (0..60_100u32).map(|i| (i % 251) as u8).collect();
        let slices = [IoSlice::new(&data)];
        a.sender().send(&mut Transmit::new(b.local_addr(), &slices).segment_size(1000)).await.unwrap();
        let mut receiver = b.receiver();
        let seen = receive_into(&mut receiver, 65_536, 61).await;
        let payloads = seen.iter().flat_map(|(meta, bytes)| bytes.chunks(meta.segment_size));
        assert!(payloads.eq(data.chunks(1000)), "{addr}");
        for (meta, _) in &seen {
            assert_eq!((meta.source, meta.local_ip), (a.local_addr(), Some(b.local_addr().ip())));
            assert!(!meta.truncated);
        }
        assert_eq!(b.stats().snapshot().received, 61);

        a.sender().send_to(b"", b.local_addr()).await.unwrap();
        let seen = receive_into(&mut receiver, 100, 1).await;
        assert_eq!((seen.len(), seen[0].0.len, seen[0].0.datagram_count()), (1, 0, 1));
        // Without room there is nothing to wait for.
        assert_eq!(poll_fn(|cx| receiver.poll_recv_into(cx, &mut [], &mut [])).await.unwrap(), 0);
    }
}

#[cfg(all(target_os = "linux", not(backwater_portable)))]
#[tokio::test]
async fn metas_tell_what_was_asked_for() {
    for (any, to) in [("0.0.0.0:0", "127.0.0.2"), ("[::]:0", "::1")] {
        let builder = UdpSocket::builder().receive_hop_limit(true).receive_timestamps(true);
        let (a, b) = (bind(any), builder.bind(any.parse().unwrap()).unwrap());
        let to = SocketAddr::new(to.parse().unwrap(), b.local_addr().port());
        let slices = [IoSlice::new(b"onetwo")];
        let before = std::time::SystemTime::now();
        let mut sender = a.sender();
        let mut transmit = Transmit::new(to, &slices).segment_size(3).ecn(Some(backwater_udp::Ecn::Ce)).hop_limit(7);
        sender.send(&mut transmit).await.unwrap();
        let seen = receive_into(&mut b.receiver(), 65_536, 2).await;
        let after = std::time::SystemTime::now();
        for (meta, _) in &seen {
            // Loopback is the first interface of every network namespace.
            assert_eq!((meta.local_ip, meta.interface), (Some(to.ip()), Some(1)), "{any}");
            assert_eq!(
                (meta.ecn, meta.hop_limit, meta.segment_size),
                (Some(backwater_udp::Ecn::Ce), Some(7), 3),
                "{any}"
            );
            let at = meta.timestamp.unwrap();
            assert!((before..=after).contains(&at), "{before:?} {at:?} {after:?}");
        }
        // A batch of the socket's own tells the same.
        sender.send(&mut Transmit::new(to, &slices).segment_size(3)).await.unwrap();
        let mut batch = RecvBatch::new(4);
        b.receiver().recv(&mut batch).await.unwrap();
        let train = batch.gro_batch(0).unwrap();
        assert!(train.timestamp.is_some() && train.interface == Some(1));
    }
}

#[cfg(all(target_os = "linux", not(backwater_portable)))]
#[tokio::test]
async fn a_buffer_that_is_too_short_says_so() {
    let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    a.sender().send_to(&[7; 100], b.local_addr()).await.unwrap();
    let seen = receive_into(&mut b.receiver(), 60, 1).await;
    assert_eq!((seen[0].0.timestamp, seen[0].0.hop_limit), (None, None), "nobody asked");
    assert_eq!((seen[0].0.truncated, seen[0].0.len, &seen[0].1[..]), (true, 60, &[7; 60][..]));
}

/// A buffer that holds one datagram is enough then.
#[cfg(all(target_os = "linux", not(backwater_portable)))]
#[tokio::test]
async fn without_receive_offload_datagrams_arrive_one_by_one() {
    let (a, b) = (
        bind("127.0.0.1:0"),
        UdpSocket::builder().receive_offload(false).bind("127.0.0.1:0".parse().unwrap()).unwrap(),
    );
    assert!(a.max_receive_segments() > 1 && b.max_receive_segments() == 1);
    let data = [9; 4000];
    let slices = [IoSlice::new(&data)];
    a.sender().send(&mut Transmit::new(b.local_addr(), &slices).segment_size(1000)).await.unwrap();
    let seen = receive_into(&mut b.receiver(), 1000, 4).await;
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|(meta, bytes)| !meta.truncated && bytes.len() == 1000));
}

#[tokio::test]
async fn a_second_receiver_is_an_error_until_the_first_is_gone() {
    let socket = bind("127.0.0.1:0");
    let first = socket.receiver();
    let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(socket.clone().receiver()))).unwrap_err();
    let message = again.downcast_ref::<String>().unwrap();
    assert!(message.contains("is taken"), "{message}");
    let mut stream = DatagramStream::new(first);
    socket.try_send(&mut Transmit::new(socket.local_addr(), &[])).unwrap();
    assert_eq!(stream.recv().await.unwrap().peer, socket.local_addr());
    drop(stream);
    drop(socket.receiver());
}

#[tokio::test]
async fn a_socket_tries_without_a_sender() {
    let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let slices = [IoSlice::new(b"onetwo")];
    let report = a.try_send(&mut Transmit::new(b.local_addr(), &slices).segment_size(3)).unwrap();
    assert_eq!((report.sent, receive_into(&mut b.receiver(), 65_536, 2).await.is_empty()), (2, false));
    let report = a.try_send(&mut Transmit::new(b.local_addr(), &[IoSlice::new(&[0; 70_000])])).unwrap();
    assert_eq!((report.sent, report.dropped.total()), (0, 1));
    let stats = a.stats().snapshot();
    assert_eq!((stats.accepted, stats.sent, stats.held), (3, 2, 0));
    assert!(a.max_segments() >= 1);
}

/// A loop that keeps its datagram itself, and waits without it.
#[cfg(target_os = "linux")]
async fn send_by_trying(sender: &mut Sender, to: SocketAddr, count: u32) {
    let payload = [0; 1200];
    let slices = [IoSlice::new(&payload)];
    for _ in 0..count {
        let mut t = Transmit::new(to, &slices);
        loop {
            poll_fn(|cx| sender.poll_room(cx)).await.unwrap();
            match sender.try_send(&mut t) {
                Ok(report) => break assert_eq!(report.sent, 1),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    }
}

/// At 1 Mbit/s a datagram of 1,200 bytes takes 10 ms.
#[cfg(target_os = "linux")]
async fn a_foreign_loop(queue: &str, send_buffer: usize, refused: impl Fn(&backwater_udp::StatsSnapshot) -> bool) {
    support::tc(&format!("qdisc add dev lo root tbf rate 1mbit burst 3k {queue}"));
    let a = UdpSocket::builder().send_buffer(send_buffer).bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let b = bind("127.0.0.1:0");
    let mut sender = a.sender();
    // Nothing was refused yet.
    assert!(poll_fn(|cx| std::task::Poll::Ready(sender.poll_room(cx).is_ready())).await);
    let mut receiver = b.receiver();
    let sending = send_by_trying(&mut sender, b.local_addr(), 100);
    let (seen, ()) = tokio::join!(receive_into(&mut receiver, 65_536, 100), sending);
    assert_eq!(seen.iter().map(|(meta, _)| meta.datagram_count()).sum::<usize>(), 100);
    let stats = a.stats().snapshot();
    assert_eq!((stats.accepted, stats.sent, stats.held), (100, 100, 0), "{stats:?}");
    assert!(refused(&stats), "{stats:?}");
    // It sleeps between two attempts.
    assert!(stats.attempts < 20 * stats.sent, "{stats:?}");
}

#[cfg(all(target_os = "linux", not(backwater_portable)))]
#[test]
fn a_foreign_loop_waits_for_a_full_queue_without_a_datagram() {
    support::in_namespace("a_foreign_loop_waits_for_a_full_queue_without_a_datagram", || {
        support::block_on(a_foreign_loop("limit 6k", 4 << 20, |stats| stats.silent.enobufs.unconnected > 10));
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_foreign_loop_waits_for_a_full_send_buffer_without_a_datagram() {
    support::in_namespace("a_foreign_loop_waits_for_a_full_send_buffer_without_a_datagram", || {
        support::block_on(a_foreign_loop("limit 10mb", 10_000, |stats| stats.parked > 10));
    });
}

/// What is received may be kept across an await, in tasks of every kind.
async fn echo(socket: UdpSocket) {
    let (mut receiver, mut sender, mut batch) = (socket.receiver(), socket.sender(), RecvBatch::new(4));
    loop {
        receiver.recv(&mut batch).await.unwrap();
        for datagram in batch.datagrams() {
            sender.send_to(datagram.payload, datagram.source).await.unwrap();
        }
    }
}

/// The same with buffers of the caller's.
async fn echo_into(socket: UdpSocket) {
    let (mut receiver, mut sender, mut room) = (socket.receiver(), socket.sender(), vec![0; 2 << 16]);
    loop {
        let mut metas = [RecvMeta::default(); 2];
        let filled = {
            let mut bufs: Vec<_> = room.chunks_exact_mut(1 << 16).map(IoSliceMut::new).collect();
            poll_fn(|cx| receiver.poll_recv_into(cx, &mut bufs, &mut metas)).await.unwrap()
        };
        for (meta, bytes) in metas.iter().zip(room.chunks_exact(1 << 16)).take(filled) {
            let slices = [IoSlice::new(&bytes[..meta.len])];
            sender.send(&mut Transmit::new(meta.source, &slices).segment_size(meta.segment_size)).await.unwrap();
        }
    }
}

async fn answers(server: SocketAddr) {
    let client = bind("127.0.0.1:0");
    let (mut sender, mut stream) = (client.sender(), DatagramStream::new(client.receiver()));
    for i in 0..10u8 {
        sender.send_to(&[i; 10], server).await.unwrap();
        let mut buffer = [0; 20];
        let (len, from) = timeout(Duration::from_secs(10), stream.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!((&buffer[..len], from), (&[i; 10][..], server));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_echo_runs_on_the_multi_threaded_runtime() {
    let servers = [bind("127.0.0.1:0"), bind("127.0.0.1:0")];
    let addrs = servers.each_ref().map(UdpSocket::local_addr);
    let [one, other] = servers;
    let tasks = [tokio::spawn(echo(one)), tokio::spawn(echo_into(other))];
    for addr in addrs {
        tokio::spawn(answers(addr)).await.unwrap();
    }
    tasks.into_iter().for_each(|task| task.abort());
}

#[tokio::test]
async fn an_echo_runs_on_the_current_thread_runtime() {
    let server = bind("127.0.0.1:0");
    let addr = server.local_addr();
    let task = tokio::spawn(echo_into(server));
    answers(addr).await;
    task.abort();
}

#[tokio::test]
async fn an_echo_runs_in_a_local_set() {
    let local = tokio::task::LocalSet::new();
    let server = bind("127.0.0.1:0");
    let addr = server.local_addr();
    local.spawn_local(echo(server));
    local.run_until(answers(addr)).await;
}

/// What the former socket had received, and what arrives at the new one, with the same options.
#[cfg(all(target_os = "linux", not(backwater_portable)))]
#[tokio::test]
async fn callers_buffers_receive_across_a_rebind() {
    let builder = UdpSocket::builder().receive_timestamps(true).receive_offload(false);
    let (a, b) = (bind("127.0.0.1:0"), builder.bind("127.0.0.1:0".parse().unwrap()).unwrap());
    let (mut sender, mut receiver) = (a.sender(), b.receiver());
    for _ in 0..3 {
        sender.send_to(&[7; 100], b.local_addr()).await.unwrap();
    }
    b.rebind(0).unwrap();
    sender.send(&mut Transmit::new(b.local_addr(), &[IoSlice::new(&[7; 200])]).segment_size(100)).await.unwrap();
    let seen = receive_into(&mut receiver, 60, 5).await;
    assert_eq!(seen.len(), 5);
    for (meta, bytes) in &seen {
        assert_eq!((meta.source, meta.local_ip), (a.local_addr(), Some(b.local_addr().ip())));
        assert!(meta.truncated && meta.timestamp.is_some() && bytes == &[7; 60], "{meta:?}");
    }
}

/// How a socket's datagrams leave, as the kernel knows it: DSCP, mark, interface, and the device's name.
#[cfg(all(target_os = "linux", not(backwater_portable)))]
fn leaving(socket: &UdpSocket, v6: bool) -> (u32, u32, u32, Option<Vec<u8>>) {
    let std = socket.try_clone_std().unwrap();
    let known = socket2::SockRef::from(&std);
    let (level, name, interface) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 76) } else { (libc::IPPROTO_IP, libc::IP_TOS, 50) };
    let option = |name| {
        let (mut value, mut len) = (0u32, 4);
        // SAFETY: the kernel writes an int to the pointer, and its length is given.
        let result = unsafe {
            libc::getsockopt(std::os::fd::AsRawFd::as_raw_fd(&std), level, name, (&raw mut value).cast(), &raw mut len)
        };
        assert_eq!(result, 0);
        value
    };
    (option(name), known.mark().unwrap(), u32::from_be(option(interface)), known.device().unwrap())
}

#[cfg(all(target_os = "linux", not(backwater_portable)))]
#[test]
fn datagrams_leave_as_the_builder_says() {
    // A mark is for those who may set it.
    support::in_namespace("datagrams_leave_as_the_builder_says", || {
        support::block_on(async {
            for (addr, v6) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
                let any = addr.parse().unwrap();
                let builder = UdpSocket::builder().dscp(46).mark(7);
                let b = bind(addr);
                let by_index = builder.clone().interface(1).bind(any).unwrap();
                assert_eq!(leaving(&by_index, v6), (46 << 2, 7, 1, None));
                by_index.rebind(0).unwrap();
                assert_eq!(leaving(&by_index, v6), (46 << 2, 7, 1, None), "after it was bound anew");
                let builder = builder.device("lo");
                let a = builder.bind(any).unwrap();
                let wanted = (46 << 2, 7, 0, Some(b"lo".to_vec()));
                assert_eq!(leaving(&a, v6), wanted);
                // The ECN field is beside the DSCP, and does not replace it.
                let slices = [IoSlice::new(b"x")];
                let mut t = Transmit::new(b.local_addr(), &slices).ecn(Some(backwater_udp::Ecn::Ect0));
                a.sender().send(&mut t).await.unwrap();
                assert_eq!(receive_into(&mut b.receiver(), 100, 1).await[0].0.ecn, Some(backwater_udp::Ecn::Ect0));
                a.rebind(0).unwrap();
                assert_eq!(leaving(&a, v6), wanted, "after it was bound anew");
                let connected = builder.connect(any, b.local_addr()).unwrap();
                assert_eq!(leaving(&connected, v6), wanted, "connected");
                assert_eq!(leaving(&bind(addr), v6), (0, 0, 0, None));
            }
            let nowhere = UdpSocket::builder().device("none0").bind("127.0.0.1:0".parse().unwrap());
            assert_eq!(nowhere.unwrap_err().raw_os_error(), Some(libc::ENODEV));
        });
    });
}
