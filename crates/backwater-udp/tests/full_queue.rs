//! Sends into a queue discipline that is full: `ENOBUFS`, which Linux shows to a socket with `IP_RECVERR`.
//!
//! The queue is a token bucket (`tbf`) before a veth pair, and the far end says what went through it. What wants ICMP messages
//! or a full send buffer uses loopback: those are not rate limited there, and there is nobody whose hardware address to know.
#![cfg(all(target_os = "linux", not(backwater_portable)))]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "support/mod.rs"]
mod support;
#[path = "support/veth.rs"]
mod veth;

use std::{
    future::poll_fn,
    io::IoSlice,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use backwater_udp::{DropReason, Policy, RecvBatch, Sender, StatsSnapshot, Transmit, UdpSocket};
use support::{block_on, in_namespace, tc};
use veth::{Arrival, Veth};

/// Datagrams through a queue.
#[derive(Clone, Copy, Debug)]
struct Case {
    v6: bool,
    /// Of each datagram, in bytes.
    payload: u32,
    /// Datagrams in a train; 1 is without GSO.
    train: u32,
    megabits: u32,
    /// Both in bytes, and larger than a train.
    burst: u32,
    limit: u32,
}

/// What became of them.
struct Outcome {
    /// In the order of their times.
    arrivals: Vec<Arrival>,
    /// Datagrams that found the receiver's buffer full.
    missed: u64,
    /// The sends that had to wait.
    waits: Vec<Wait>,
    stats: StatsSnapshot,
}

/// A send that had to wait: when it was begun and when it returned, and how many datagrams had been offered by then, its own
/// included.
struct Wait {
    began: SystemTime,
    ended: SystemTime,
    offered: u32,
}

impl Case {
    /// Bytes of a datagram in the queue: with headers of Ethernet, IP and UDP.
    fn bytes(self) -> u32 {
        self.payload + if self.v6 { 62 } else { 42 }
    }

    fn shape(self, veth: &Veth) {
        let Self { megabits, burst, limit, .. } = self;
        veth.shape(&format!("rate {megabits}mbit burst {burst} limit {limit}"));
    }

    /// Offers `count` datagrams, and asserts that each that was sent arrived at the far end, once. On a busy machine some may
    /// find the receiver's buffer full: the far end's kernel counts them (`missed`).
    fn run(self, veth: &Veth, policy: Policy, count: u32) -> Outcome {
        self.shape(veth);
        let (sink, before) = (veth.sink(self.v6), veth.missed_by_the_receiver());
        let (waits, stats) = block_on(async {
            let a = UdpSocket::builder().send_buffer(4 << 20).bind(veth.near(self.v6)).unwrap();
            a.backpressure().set(policy);
            let waits = self.offer(&mut a.sender(), sink.addr, 0..count).await;
            (waits, a.stats().snapshot())
        });
        let mut arrivals = sink.finish();
        // The queue is emptied on whichever CPU: the kernel may deliver out of order.
        arrivals.sort_unstable_by_key(|arrival| arrival.at);
        let missed = veth.missed_by_the_receiver() - before;
        let mut numbers: Vec<_> = arrivals.iter().map(|arrival| arrival.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), arrivals.len(), "{self:?}: a datagram arrived twice");
        assert_eq!((stats.accepted, stats.held), (count.into(), 0), "{stats:?}");
        assert_eq!(stats.sent + stats.dropped_total(), stats.accepted, "{stats:?}");
        Outcome { arrivals, missed, waits, stats }
    }

    /// Offers 20,000 datagrams to a queue that is full most of the time, and asserts that none is lost. Prints the rate and
    /// for how long sends were held, which depend on what else the machine does.
    fn waiting_loses_nothing(self, veth: &Veth) {
        let Outcome { arrivals, missed, waits, stats } = self.run(veth, PATIENT, 20_000);
        assert_eq!((stats.sent, arrivals.len() as u64 + missed), (20_000, 20_000), "{self:?}: {stats:?}");
        assert!(stats.no_buffers_total() > 0 && !waits.is_empty(), "{self:?}: the queue was never full: {stats:?}");
        if missed > 0 {
            eprintln!("{self:?}: no figures, since {missed} datagrams found the receiver's buffer full");
            return;
        }
        // From the first to the last to arrive. What the bucket had saved up before does not count.
        let took = arrivals[19_999].at.duration_since(arrivals[0].at).unwrap();
        let bits = f64::from(19_999 * self.bytes() - self.burst) * 8.0;
        let rate = bits / took.as_secs_f64() / f64::from(self.megabits * 1_000_000);

        // There is room for a send when so many have left the queue that the rest, its own included, are no more than the
        // queue holds. The far end's kernel says when each has left.
        let holds = self.limit / self.bytes();
        let mut held: Vec<_> = waits
            .iter()
            .map(|wait| {
                let left = wait.offered.saturating_sub(holds) as usize;
                let room = left.checked_sub(1).map_or(wait.began, |last| arrivals[last].at.max(wait.began));
                wait.ended.duration_since(room).unwrap_or_default()
            })
            .collect();
        held.sort_unstable();
        eprintln!(
            "{}, {} Mbit/s, {} bytes, {}: {rate:.3} of the rate; held after there was room: {:?}, p99 {:?} of {} waits; {} calls",
            if self.v6 { "IPv6" } else { "IPv4" },
            self.megabits,
            self.payload,
            if self.train == 1 { "no GSO".to_owned() } else { format!("trains of {}", self.train) },
            held[held.len() / 2],
            held[held.len() * 99 / 100],
            held.len(),
            stats.attempts,
        );
    }

    /// Sends datagrams that begin with their numbers, in trains.
    async fn offer(self, sender: &mut Sender, to: SocketAddr, numbers: Range<u32>) -> Vec<Wait> {
        let (train, len) = (self.train, self.payload as usize);
        let (mut payload, mut waits) = (vec![0; len * train as usize], Vec::new());
        for first in numbers.step_by(train as usize) {
            for (datagram, number) in payload.chunks_mut(len).zip(first..) {
                datagram[..4].copy_from_slice(&number.to_be_bytes());
            }
            let slices = [IoSlice::new(&payload)];
            let mut t = Transmit::new(to, &slices).segment_size(len);
            let (began, mut waited) = (SystemTime::now(), false);
            let sent = poll_fn(|cx| {
                let polled = sender.poll_send(cx, &mut t);
                waited |= polled.is_pending();
                polled
            });
            sent.await.unwrap();
            if waited {
                waits.push(Wait { began, ended: SystemTime::now(), offered: first + train });
            }
        }
        waits
    }
}

/// Longer than any queue here takes to empty, many times over.
const PATIENT: Policy = Policy::Wait { deadline: Duration::from_secs(10) };

/// The four run at the same time, each on a link of its own: ten seconds.
#[test]
fn waiting_on_a_full_queue_of_20_mbits_loses_nothing() {
    in_namespace("waiting_on_a_full_queue_of_20_mbits_loses_nothing", || {
        std::thread::scope(|scope| {
            for (index, (v6, train)) in [(false, 1), (false, 20), (true, 1), (true, 20)].into_iter().enumerate() {
                let veth = Veth::new(index as u8);
                let case = Case { v6, payload: 1200, train, megabits: 20, burst: 30_000, limit: 100_000 };
                scope.spawn(move || case.waiting_loses_nothing(&veth));
            }
        });
    });
}

#[test]
fn waiting_on_a_full_queue_of_500_mbits_loses_nothing() {
    in_namespace("waiting_on_a_full_queue_of_500_mbits_loses_nothing", || {
        let veth = Veth::new(0);
        for v6 in [false, true] {
            // A machine may not be able to send so many small ones, one by one, that they fill the queue.
            for (payload, train) in [(8000, 1), (1200, 40)] {
                let case = Case { v6, payload, train, megabits: 500, burst: 100_000, limit: 400_000 };
                case.waiting_loses_nothing(&veth);
            }
        }
    });
}

#[test]
fn dropping_at_a_full_queue_loses_what_is_counted() {
    in_namespace("dropping_at_a_full_queue_loses_what_is_counted", || {
        let veth = Veth::new(0);
        for v6 in [false, true] {
            for train in [1, 20] {
                let case = Case { v6, payload: 1200, train, megabits: 20, burst: 30_000, limit: 100_000 };
                let Outcome { arrivals, missed, stats, .. } = case.run(&veth, Policy::Drop, 20_000);
                assert!(stats.parked == 0 && stats.dropped(DropReason::NoBuffers) > 0, "{stats:?}");
                assert_eq!(stats.dropped_total(), stats.dropped(DropReason::NoBuffers), "{case:?}");
                assert_eq!(arrivals.len() as u64 + missed, stats.sent, "{case:?}");
            }
        }
    });
}

/// A train that is larger than the whole queue is refused for ever as it is; in parts it arrives.
#[test]
fn a_train_larger_than_the_queue_arrives_in_parts() {
    in_namespace("a_train_larger_than_the_queue_arrives_in_parts", || {
        let veth = Veth::new(0);
        for v6 in [false, true] {
            let case = Case { v6, payload: 1200, train: 30, megabits: 20, burst: 70_000, limit: 12_000 };
            let Outcome { arrivals, missed, stats, .. } = case.run(&veth, PATIENT, 300);
            assert_eq!((arrivals.len() as u64 + missed, stats.sent), (300, 300), "{stats:?}");
        }
    });
}

/// `tbf` takes a train that is larger than its burst apart, drops what of it does not fit, and reports success when any of it
/// did: that is *sent* for all that a sender can know. Trains within the burst are not taken apart.
#[test]
fn a_queue_that_drops_a_part_of_a_train_says_nothing() {
    in_namespace("a_queue_that_drops_a_part_of_a_train_says_nothing", || {
        let veth = Veth::new(0);
        for v6 in [false, true] {
            let case = Case { v6, payload: 1200, train: 8, megabits: 1, burst: 3_000, limit: 12_000 };
            let Outcome { arrivals, stats, .. } = case.run(&veth, Policy::default(), 16);
            eprintln!("trains larger than the burst: {} reported as sent, {} arrived", stats.sent, arrivals.len());
            assert_eq!((stats.sent, stats.dropped_total(), stats.no_buffers_total()), (16, 0, 0), "{stats:?}");
            assert!((1..16).contains(&arrivals.len()), "{} arrived", arrivals.len());

            case.shape(&veth);
            let sink = veth.sink(v6);
            block_on(async {
                let a = UdpSocket::builder().max_train_bytes(2400).bind(veth.near(v6)).unwrap();
                a.backpressure().set(PATIENT);
                case.offer(&mut a.sender(), sink.addr, 0..16).await;
                assert_eq!(a.stats().snapshot().sent, 16);
            });
            assert_eq!(sink.finish().len(), 16, "trains within the burst");
        }
    });
}

/// Between two system calls that send, a blocked sender waits for a timer: the calls and the polls for a datagram are few,
/// where a sender that spins makes as many as the machine can. `backwater-probe pressure` measures the CPU of both.
#[test]
fn a_blocked_sender_sleeps() {
    in_namespace("a_blocked_sender_sleeps", || {
        let veth = Veth::new(0);
        let sink = veth.sink(false);
        veth.shape("rate 1mbit burst 3k limit 12k");
        let (polls, stats) = block_on(async {
            let payload = [0; 1200];
            let a = UdpSocket::bind(veth.near(false)).unwrap();
            a.backpressure().set(PATIENT);
            let (mut sender, slices, mut polls) = (a.sender(), [IoSlice::new(&payload)], 0u64);
            for _ in 0..300 {
                let mut t = Transmit::new(sink.addr, &slices);
                let sent = poll_fn(|cx| {
                    polls += 1;
                    sender.poll_send(cx, &mut t)
                });
                assert_eq!(sent.await.unwrap().sent, 1);
            }
            (polls, a.stats().snapshot())
        });
        eprintln!("{polls} polls and {} calls for {} datagrams", stats.attempts, stats.sent);
        assert!(stats.parked > 0, "nothing was held: {stats:?}");
        // Two yields, then waits of 1 and 2 ms, where the queue takes 10 ms for a datagram.
        assert!(polls.max(stats.attempts) < 20 * stats.sent, "{polls} polls: {stats:?}");
        assert!(!sink.finish().is_empty());
    });
}

#[test]
fn two_senders_of_one_socket_share_it() {
    in_namespace("two_senders_of_one_socket_share_it", || {
        let veth = Veth::new(0);
        for (v6, train) in [(false, 1), (true, 20)] {
            let case = Case { v6, payload: 1200, train, megabits: 20, burst: 30_000, limit: 60_000 };
            case.shape(&veth);
            let sink = veth.sink(v6);
            // Each stops when either has offered so many: neither has waited for all that the other one had to send.
            const ENOUGH: u32 = 2000;
            let before = veth.missed_by_the_receiver();
            let sent = block_on(async {
                let a = UdpSocket::bind(veth.near(v6)).unwrap();
                a.backpressure().set(PATIENT);
                let (to, over) = (sink.addr, Arc::<AtomicBool>::default());
                let one = |first: u32| {
                    let (mut sender, over) = (a.sender(), over.clone());
                    tokio::spawn(async move {
                        let mut next = first;
                        while !over.load(SeqCst) {
                            case.offer(&mut sender, to, next..next + train).await;
                            next += train;
                            if next - first >= ENOUGH {
                                over.store(true, SeqCst);
                            }
                        }
                        next - first
                    })
                };
                let (first, second) = (one(0), one(1 << 31));
                [first.await.unwrap(), second.await.unwrap()]
            });
            let mut numbers: Vec<_> = sink.finish().iter().map(|arrival| arrival.number).collect();
            numbers.sort_unstable();
            let missed = veth.missed_by_the_receiver() - before;
            assert_eq!(numbers.len() as u64 + missed, u64::from(sent[0] + sent[1]), "none is lost");
            numbers.dedup();
            assert_eq!(numbers.len() as u64 + missed, u64::from(sent[0] + sent[1]), "none arrives twice");
            eprintln!("trains of {train}: {sent:?}");
            assert!(sent.iter().all(|&sent| sent >= ENOUGH / 2), "{sent:?}");
        }
    });
}

fn shape_loopback(parameters: &str) {
    tc(&format!("qdisc replace dev lo root tbf {parameters}"));
}

/// A flood of ICMP errors about one destination costs another's datagrams nothing, and receiving goes on.
#[test]
fn a_destination_that_refuses_does_not_cost_another_its_datagrams() {
    in_namespace("a_destination_that_refuses_does_not_cost_another_its_datagrams", || {
        block_on(async {
            for any in ["127.0.0.1:0", "[::1]:0"] {
                let (a, b) =
                    (UdpSocket::bind(any.parse().unwrap()).unwrap(), UdpSocket::bind(any.parse().unwrap()).unwrap());
                let mut closed = a.local_addr();
                closed.set_port(9);
                let (mut sender, mut back) = (a.sender(), b.sender());
                let (mut at_a, mut at_b, mut batch) = (a.receiver(), b.receiver(), RecvBatch::new(32));
                let slices = [IoSlice::new(b"x")];
                let (mut seen, mut errors) = ((0, 0), 0);
                for _ in 0..2000 {
                    for _ in 0..4 {
                        sender.send(&mut Transmit::new(closed, &slices)).await.unwrap();
                    }
                    let report = sender.send(&mut Transmit::new(b.local_addr(), &slices)).await.unwrap();
                    assert_eq!(report.sent, 1, "{report:?}");
                    back.send(&mut Transmit::new(a.local_addr(), &slices)).await.unwrap();
                    for (receiver, count) in [(&mut at_b, &mut seen.0), (&mut at_a, &mut seen.1)] {
                        let received = tokio::time::timeout(Duration::from_secs(10), receiver.recv(&mut batch)).await;
                        received.expect("a datagram is missing").unwrap();
                        *count += batch.datagrams().count();
                    }
                    while let Some(error) = a.next_icmp_error() {
                        assert_eq!(error.destination, closed);
                        assert!(matches!(error.kind, backwater_udp::IcmpKind::Unreachable { .. }), "{error:?}");
                        errors += 1;
                    }
                }
                assert_eq!(seen, (2000, 2000));
                assert!(errors > 4000, "{errors}");
                // An error alone wakes the receiver, who reads it.
                sender.send(&mut Transmit::new(closed, &slices)).await.unwrap();
                let nothing = tokio::time::timeout(Duration::from_millis(200), at_a.recv(&mut batch)).await;
                assert!(nothing.is_err());
                assert_eq!(a.next_icmp_error().map(|e| e.destination), Some(closed), "{any}");
            }
        });
    });
}

/// An ICMP error latches "write closed" in a registration. A sender that is then held in `EWOULDBLOCK` sleeps all the same.
#[test]
fn a_latched_error_does_not_make_a_held_sender_spin() {
    in_namespace("a_latched_error_does_not_make_a_held_sender_spin", || {
        block_on(async {
            let a = UdpSocket::builder().send_buffer(20_000).bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let mut sender = a.sender();
            let payload = vec![0; 64 * 100];
            let slices = [IoSlice::new(&payload)];
            let to = "127.0.0.1:9".parse().unwrap();
            let train = || Transmit::new(to, &slices).segment_size(100);
            let stop = Policy::Wait { deadline: Duration::from_millis(30) };
            // Held once, so that it has a registration; then free, for an error to come back; then held for a second.
            shape_loopback("rate 8kbit burst 10k limit 10mb");
            a.backpressure().set(stop);
            while sender.send(&mut train()).await.unwrap().dropped.total() == 0 {}
            tc("qdisc del dev lo root");
            let one = [IoSlice::new(b"x")];
            sender.send(&mut Transmit::new(to, &one)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            shape_loopback("rate 8kbit burst 10k limit 10mb");
            a.backpressure().set(stop);
            while sender.send(&mut train()).await.unwrap().dropped.total() == 0 {}

            a.backpressure().set(Policy::Wait { deadline: Duration::from_secs(1) });
            let (before, mut polls, mut last) = (a.stats().snapshot(), 0, train());
            let report = poll_fn(|cx| {
                polls += 1;
                sender.poll_send(cx, &mut last)
            });
            assert_eq!(report.await.unwrap().dropped.get(DropReason::Deadline), 64);
            let after = a.stats().snapshot();
            eprintln!("{polls} polls and {} calls in a second", after.attempts - before.attempts);
            assert!(after.attempts - before.attempts < 60 && polls < 200, "{polls} polls: {after:?}");
        });
    });
}
