//! Sends into a queue that fills up, in a network namespace.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "support/mod.rs"]
mod support;

use std::{
    io::IoSlice,
    task::Poll,
    time::{Duration, Instant},
};

use backwater_udp::{DropReason, Policy, RecvBatch, Transmit, UdpSocket};
use support::{block_on, in_namespace, tc};

/// Loopback behind a queue that passes 8 Mbit/s and holds far more than a socket's send buffer: sends meet
/// `EWOULDBLOCK`, as behind a slow network card.
fn slow_loopback() {
    tc("qdisc add dev lo root tbf rate 8mbit burst 3k limit 10mb");
}

#[test]
fn a_full_send_buffer_holds_the_sender_and_loses_nothing() {
    in_namespace("a_full_send_buffer_holds_the_sender_and_loses_nothing", || {
        slow_loopback();
        block_on(async {
            let any = "127.0.0.1:0".parse().unwrap();
            let a = UdpSocket::builder().send_buffer(20_000).bind(any).unwrap();
            let b = UdpSocket::bind(any).unwrap();
            let to = b.local_addr();
            let receiving = tokio::spawn(async move {
                let (mut receiver, mut batch, mut seen) = (b.receiver(), RecvBatch::new(8), Vec::new());
                while seen.len() < 1000 {
                    receiver.recv(&mut batch).await.unwrap();
                    seen.extend(batch.datagrams().map(|d| u32::from_be_bytes(*d.payload.first_chunk().unwrap())));
                }
                seen
            });
            let mut sender = a.sender();
            for i in 0..1000u32 {
                let payload = [i.to_be_bytes().to_vec(), vec![0; 996]].concat();
                let slices = [IoSlice::new(&payload)];
                assert_eq!(sender.send(&mut Transmit::new(to, &slices)).await.unwrap().sent, 1);
            }
            // The queue is emptied on whichever CPU: the kernel may deliver out of order.
            let mut seen = receiving.await.unwrap();
            seen.sort_unstable();
            assert_eq!(seen, (0..1000).collect::<Vec<_>>());
            let stats = a.stats().snapshot();
            assert!(stats.parked > 10, "{stats:?}");
            assert_eq!((stats.accepted, stats.sent, stats.held), (1000, 1000, 0));
            // Half of the buffer is free after some ten milliseconds, which the system says. On a busy machine the backstop's
            // timer, at 25, may be seen first, but not each time.
            assert!(stats.advised.recovery.readiness.count() > 0, "{stats:#?}");
        });
    });
}

#[test]
fn what_is_given_up_or_too_old_is_counted() {
    in_namespace("what_is_given_up_or_too_old_is_counted", || {
        tc("qdisc add dev lo root tbf rate 8bit burst 10k limit 10mb");
        block_on(async {
            let a = UdpSocket::builder().send_buffer(20_000).bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let payload = vec![0; 64 * 100];
            let slices = [IoSlice::new(&payload)];
            let train = || Transmit::new("127.0.0.1:9".parse().unwrap(), &slices).segment_size(100);
            let mut sender = a.sender();

            a.backpressure().set(Policy::Wait { deadline: Duration::from_secs(5) });
            let mut accepted = 0;
            while tokio::time::timeout(Duration::from_millis(30), sender.send(&mut train())).await.is_ok() {
                accepted += 64;
            }
            let stats = a.stats().snapshot();
            assert_eq!((stats.accepted, stats.sent), (accepted + 64, accepted));
            assert_eq!((stats.held, stats.dropped(DropReason::Cancelled)), (0, 64), "with the future that is dropped");

            a.backpressure().set(Policy::Wait { deadline: Duration::from_millis(40) });
            let start = Instant::now();
            let report = sender.send(&mut train()).await.unwrap();
            assert_eq!(report.dropped.get(DropReason::Deadline), 64);
            assert!(start.elapsed() >= Duration::from_millis(40), "{:?}: before its deadline", start.elapsed());

            a.backpressure().set(Policy::Drop);
            let report = sender.send(&mut train()).await.unwrap();
            assert_eq!(report.dropped.get(DropReason::NoBuffers), 64);

            let mut t = train();
            assert_eq!(sender.try_send(&mut t).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
            assert_eq!((t.remaining(), a.stats().snapshot().held), (64, 0), "try_send holds nothing");

            a.backpressure().set(Policy::default());
            tokio::time::timeout(Duration::from_millis(10), sender.send(&mut train())).await.unwrap_err();
            let stats = a.stats().snapshot();
            assert_eq!((stats.held, stats.dropped(DropReason::Cancelled)), (0, 128));
            let mut t = train();
            let held = std::future::poll_fn(|cx| Poll::Ready(sender.poll_send(cx, &mut t).is_pending())).await;
            assert!(held);
            assert_eq!(a.stats().snapshot().held, 64, "held until it is replaced or the sender goes");
            drop(sender);
            let stats = a.stats().snapshot();
            assert_eq!((stats.held, stats.dropped(DropReason::Cancelled)), (0, 192));
        });
    });
}

/// Another descriptor of a socket shares `O_NONBLOCK` with it, and its owner may clear that. quinn-udp waits then.
#[cfg(not(backwater_portable))]
#[test]
fn a_send_does_not_wait_in_the_kernel_though_another_descriptor_is_made_blocking() {
    in_namespace("a_send_does_not_wait_in_the_kernel_though_another_descriptor_is_made_blocking", || {
        tc("qdisc add dev lo root tbf rate 8bit burst 10k limit 10mb");
        block_on(async {
            let a = UdpSocket::builder().send_buffer(20_000).bind("127.0.0.1:0".parse().unwrap()).unwrap();
            a.try_clone_std().unwrap().set_nonblocking(false).unwrap();
            let payload = vec![0; 1000];
            let slices = [IoSlice::new(&payload)];
            let to = "127.0.0.1:9".parse().unwrap();
            let mut sender = a.sender();
            let began = Instant::now();
            let refused = (0..1000).find_map(|_| sender.try_send(&mut Transmit::new(to, &slices)).err());
            assert_eq!(refused.unwrap().kind(), std::io::ErrorKind::WouldBlock);
            // A bound for what takes milliseconds; by the queue's rate it is 20 s.
            assert!(began.elapsed() < Duration::from_secs(5), "it has waited in the kernel");
            // Several in one call.
            let mut batch = [Transmit::new(to, &slices), Transmit::new(to, &slices)];
            let held =
                std::future::poll_fn(|cx| Poll::Ready(sender.poll_send_batch(cx, &mut batch).is_pending())).await;
            assert!(held);
        });
    });
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Each of them waits alone, and has a descriptor for it.
#[test]
fn senders_that_wait_no_more_give_their_descriptors_back_though_they_do_not_send_again() {
    in_namespace("senders_that_wait_no_more_give_their_descriptors_back_though_they_do_not_send_again", || {
        tc("qdisc add dev lo root tbf rate 8bit burst 10k limit 10mb");
        block_on(async {
            let a = UdpSocket::builder().send_buffer(20_000).bind("127.0.0.1:0".parse().unwrap()).unwrap();
            a.backpressure().set(Policy::Wait { deadline: Duration::from_millis(5) });
            let payload = vec![0; 1000];
            let slices = [IoSlice::new(&payload)];
            let mut senders: Vec<_> = (0..20).map(|_| a.sender()).collect();
            let to = "127.0.0.1:9".parse().unwrap();
            while senders[0].try_send(&mut Transmit::new(to, &slices)).is_ok() {}
            let before = descriptors();
            for sender in &mut senders {
                let report = sender.send(&mut Transmit::new(to, &slices)).await.unwrap();
                assert_eq!(report.dropped.get(DropReason::Deadline), 1);
            }
            assert_eq!(descriptors(), before + 20);
            // The clock of the timers alone.
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(11)).await;
            while descriptors() > before {
                tokio::task::yield_now().await;
            }
            tokio::time::resume();
            // They wait as before.
            for sender in &mut senders {
                let report = sender.send(&mut Transmit::new(to, &slices)).await.unwrap();
                assert_eq!(report.dropped.get(DropReason::Deadline), 1);
            }
        });
    });
}

/// The timers and the reactor of the first runtime rest meanwhile.
#[test]
fn a_sender_that_has_waited_on_one_runtime_waits_on_another() {
    in_namespace("a_sender_that_has_waited_on_one_runtime_waits_on_another", || {
        tc("qdisc add dev lo root tbf rate 8bit burst 10k limit 10mb");
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (first, second) = (runtime(), runtime());
        let payload = vec![0; 1000];
        let slices = [IoSlice::new(&payload)];
        let transmit = || Transmit::new("127.0.0.1:9".parse().unwrap(), &slices);
        let mut sender = first.block_on(async {
            let a = UdpSocket::builder().send_buffer(20_000).bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let mut sender = a.sender();
            while sender.send(&mut transmit()).await.unwrap().sent == 1 {}
            sender
        });
        second.block_on(async {
            for _ in 0..3 {
                let mut t = transmit();
                let sent = tokio::time::timeout(Duration::from_secs(10), sender.send(&mut t)).await;
                assert_eq!(sent.expect("the timer is the other runtime's").unwrap().dropped.total(), 1);
            }
        });
    });
}
