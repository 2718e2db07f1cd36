//! The queue between senders like TCP and a path, event by event and in no real time. TCP is a model of Linux's: slow start
//! without HyStart, CUBIC (RFC 9438), one cut in a window of data, trains of a millisecond's worth (`tcp_tso_autosize`). It
//! cannot show more than that.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

use super::{fair::Fair, rate::Rate};
use crate::packet::{header::protocol, virtio};

const MTU: usize = 1420;
const HEADERS: usize = virtio::LEN + 40;
const MSS: usize = MTU - 40;
/// Packets that a TUN device holds (`TUN_READQ_SIZE`).
const DEVICE_LEN: usize = 500;
/// What Linux puts in one packet at most.
const LARGEST_TRAIN: f64 = 44.0;

type Nanos = u64;
const MS: Nanos = 1_000_000;
const S: Nanos = 1000 * MS;
/// Figures are taken from here on: slow start is over.
const WARM: Nanos = S;

/// How a source sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp {
        ecn: bool,
    },
    /// Packets of so many bytes, one in each interval, whatever becomes of them.
    Constant {
        bytes: usize,
        every: Nanos,
    },
}

#[derive(Debug)]
struct Source {
    kind: Kind,
    tcp: Tcp,
    /// The number of the next segment, and of the next that the receiver expects.
    next: u64,
    expected: u64,
    delivered: u64,
    lost: u64,
    /// How long each packet waited since it was sent, in the TUN device and in the queue.
    waits: Vec<Nanos>,
}

/// Sizes in segments.
#[derive(Debug)]
struct Tcp {
    window: f64,
    in_flight: f64,
    threshold: f64,
    /// CUBIC's: the window before the last cut, when it was, and that of Reno since then.
    largest: f64,
    cut_at: Nanos,
    reno: f64,
    /// Signals about what was sent before this one are old.
    recovered: u64,
    round_trip: f64,
    last_ack: Nanos,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ack { source: usize, number: u64, sent_at: Nanos, segments: u64, marked: bool, lost: u64 },
    Send(usize),
    PathIsFree(usize),
    Rate(u64),
    Tick,
}

struct Simulation {
    start: Instant,
    now: Nanos,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    scheduled: u64,
    sources: Vec<Source>,
    /// What the TUN device holds, and what it dropped.
    device: VecDeque<Vec<u8>>,
    device_len: usize,
    device_dropped: u64,
    queue: Fair,
    rate: Rate,
    /// The path's, in bytes per second.
    path: u64,
    path_is_busy: bool,
    /// One way.
    delay: Nanos,
    /// What the event loop and the queue do for the path.
    reads_beyond_bound: bool,
    takes_apart: bool,
    marks_early: bool,
    /// The bound at each tick, every 10 ms.
    bounds: Vec<usize>,
}

impl Simulation {
    fn new(mbit: f64, kinds: &[Kind]) -> Self {
        let source = |kind: &Kind| Source {
            kind: *kind,
            tcp: Tcp {
                window: 10.0,
                in_flight: 0.0,
                threshold: f64::INFINITY,
                largest: 0.0,
                cut_at: 0,
                reno: 0.0,
                recovered: 0,
                round_trip: 0.02,
                last_ack: 0,
            },
            next: 0,
            expected: 0,
            delivered: 0,
            lost: 0,
            waits: Vec::new(),
        };
        let mut simulation = Self {
            start: Instant::now(),
            now: 0,
            events: BinaryHeap::new(),
            scheduled: 0,
            sources: kinds.iter().map(source).collect(),
            device: VecDeque::new(),
            device_len: DEVICE_LEN,
            device_dropped: 0,
            queue: Fair::new(1),
            rate: Rate::default(),
            path: per_second(mbit),
            path_is_busy: false,
            delay: 10 * MS,
            reads_beyond_bound: true,
            takes_apart: true,
            marks_early: true,
            bounds: Vec::new(),
        };
        for source in 0..kinds.len() {
            simulation.at(source as Nanos * 1000, Event::Send(source));
        }
        simulation.at(0, Event::Tick);
        simulation
    }

    fn at(&mut self, time: Nanos, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((time, self.scheduled, event)));
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_nanos(self.now)
    }

    fn run(mut self, until: Nanos) -> Self {
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            if time > until {
                break;
            }
            self.now = time;
            match event {
                Event::Ack { source, number, sent_at, segments, marked, lost } => {
                    self.sources[source].on_ack(time, number, sent_at, segments as f64, marked, lost as f64);
                    self.send_tcp(source);
                }
                Event::Send(source) => match self.sources[source].kind {
                    Kind::Tcp { .. } => self.send_tcp(source),
                    Kind::Constant { bytes, every } => {
                        self.send(source, bytes - 28, 0);
                        self.at(time + every, Event::Send(source));
                    }
                },
                Event::PathIsFree(bytes) => {
                    self.path_is_busy = false;
                    self.rate.on_sent(self.instant(), bytes, self.queue.packets() > 0);
                }
                Event::Rate(rate) => self.path = rate,
                Event::Tick => {
                    self.bounds.push(self.rate.bound(self.instant()));
                    for source in 0..self.sources.len() {
                        if self.sources[source].times_out(time) {
                            self.send_tcp(source);
                        }
                    }
                    self.at(time + 10 * MS, Event::Tick);
                }
            }
            self.pump();
        }
        self
    }

    fn send_tcp(&mut self, source: usize) {
        while let Some(segments) = self.sources[source].may_send(2 * self.delay) {
            self.send(source, segments * MSS, segments);
        }
    }

    fn send(&mut self, source: usize, payload: usize, segments: usize) {
        let this = &mut self.sources[source];
        let (protocol, ecn) = match this.kind {
            Kind::Tcp { ecn } => (protocol::TCP, u8::from(ecn) << 1),
            Kind::Constant { .. } => (protocol::UDP, 0),
        };
        let mut packet = vec![0; HEADERS + payload];
        packet[1] = if segments > 1 { virtio::GSO_TCPV4 } else { virtio::GSO_NONE };
        let length = (packet.len() - virtio::LEN) as u16;
        packet[10..12].copy_from_slice(&[0x45, ecn]);
        packet[12..14].copy_from_slice(&length.to_be_bytes());
        packet[19] = protocol;
        packet[30..34].copy_from_slice(&(source as u32).to_be_bytes());
        // In place of a transport header: the number of the first segment, the time, and how many segments.
        packet[34..42].copy_from_slice(&this.next.to_be_bytes());
        packet[42..50].copy_from_slice(&(self.now << 8 | segments as u64).to_be_bytes());
        this.next += segments.max(1) as u64;
        if self.device.len() < self.device_len {
            self.device.push_back(packet);
        } else {
            self.device_dropped += 1;
        }
    }

    fn pump(&mut self) {
        let now = self.instant();
        let bound = self.rate.bound(now);
        loop {
            while self.queue.bytes() < bound || self.reads_beyond_bound && self.queue.has_room(now, bound) {
                let Some(packet) = self.device.pop_front() else { break };
                self.enqueue(now, &packet, bound);
            }
            if self.path_is_busy {
                return;
            }
            let marked_beyond = if self.marks_early { bound } else { usize::MAX };
            let Some(next) = self.queue.dequeue(now, marked_beyond, MTU) else { return };
            self.carry(&next.packet, next.drop_first_segment);
        }
    }

    fn enqueue(&mut self, now: Instant, packet: &[u8], mut bound: usize) {
        if !self.takes_apart || packet.len() <= self.rate.longest_train(now) {
            return self.queue.enqueue(now, packet, bound);
        }
        for segment in segments(packet) {
            self.queue.enqueue(now, &segment, bound);
            bound = usize::MAX;
        }
    }

    fn carry(&mut self, packet: &[u8], first_segment_is_dropped: bool) {
        let word = |at: usize| u64::from_be_bytes(packet[at..at + 8].try_into().unwrap());
        let (source, number, sent_at, segments) =
            ((word(26) as u32) as usize, word(34), word(42) >> 8, word(42) & 0xff);
        let this = &mut self.sources[source];
        let missing = number - this.expected;
        this.expected = number + segments.max(1);
        let lost = missing + u64::from(first_segment_is_dropped);
        this.lost += lost;
        let bytes = packet.len() - virtio::LEN - if first_segment_is_dropped { MSS } else { 0 };
        if self.now >= WARM {
            this.waits.push(self.now - sent_at);
            this.delivered += bytes as u64;
        }
        let is_tcp = matches!(this.kind, Kind::Tcp { .. });
        self.path_is_busy = true;
        let done = self.now + bytes as u64 * S / self.path;
        self.at(done, Event::PathIsFree(bytes));
        if is_tcp {
            let marked = packet[11] & 3 == 3;
            let ack = Event::Ack { source, number, sent_at, segments: segments + missing, marked, lost };
            self.at(done + 2 * self.delay, ack);
        }
    }

    fn wait(&self, source: usize, percent: usize) -> f64 {
        let mut waits = self.sources[source].waits.clone();
        waits.sort_unstable();
        waits.get(waits.len().saturating_sub(1) * percent / 100).map_or(f64::INFINITY, |wait| *wait as f64 / MS as f64)
    }

    /// Of what the path could carry since it was warm.
    fn share(&self, source: usize) -> f64 {
        self.sources[source].delivered as f64 / (self.path as f64 * (self.now - WARM) as f64 / S as f64)
    }

    fn lost(&self) -> u64 {
        self.sources.iter().map(|source| source.lost).sum()
    }
}

/// What a train is taken apart into.
fn segments(train: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let word = |at: usize| u64::from_be_bytes(train[at..at + 8].try_into().unwrap());
    let (number, time) = (word(34), word(42));
    (0..time & 0xff).map(move |i| {
        let mut packet = train[..HEADERS + MSS].to_vec();
        packet[1] = virtio::GSO_NONE;
        packet[12..14].copy_from_slice(&(MTU as u16).to_be_bytes());
        packet[34..42].copy_from_slice(&(number + i).to_be_bytes());
        packet[42..50].copy_from_slice(&(time & !0xff | 1).to_be_bytes());
        packet
    })
}

fn per_second(mbit: f64) -> u64 {
    (mbit * 1e6 / 8.0) as u64
}

impl Source {
    /// How many segments the next packet has.
    fn may_send(&mut self, least_round_trip: Nanos) -> Option<usize> {
        let tcp = &mut self.tcp;
        let room = (tcp.window - tcp.in_flight).floor();
        if room < 1.0 {
            return None;
        }
        // What is sent in a millisecond at the pace that TCP would have, and more to what is near (tcp_tso_autosize).
        let paced = tcp.window * 1.2 / tcp.round_trip / 1024.0;
        let near = LARGEST_TRAIN / 2f64.powf((least_round_trip / 512_000) as f64);
        let train = (paced + near).floor().clamp(2.0, LARGEST_TRAIN);
        let segments = room.min(train);
        tcp.in_flight += segments;
        Some(segments as usize)
    }

    fn on_ack(&mut self, now: Nanos, number: u64, sent_at: Nanos, segments: f64, marked: bool, lost: f64) {
        let tcp = &mut self.tcp;
        tcp.last_ack = now;
        tcp.in_flight = (tcp.in_flight - segments).max(0.0);
        tcp.round_trip = tcp.round_trip * 0.875 + (now - sent_at) as f64 / S as f64 * 0.125;
        if marked || lost > 0.0 {
            if number >= tcp.recovered {
                tcp.recovered = self.next;
                tcp.cut(now);
            }
        } else if tcp.window < tcp.threshold {
            tcp.window += segments;
        } else {
            tcp.grow(now, segments);
        }
    }

    fn times_out(&mut self, now: Nanos) -> bool {
        let tcp = &mut self.tcp;
        let timed_out = tcp.in_flight > 0.0 && now - tcp.last_ack > 500 * MS;
        if timed_out {
            tcp.cut(now);
            (tcp.window, tcp.in_flight, tcp.last_ack) = (2.0, 0.0, now);
        }
        timed_out
    }
}

impl Tcp {
    fn cut(&mut self, now: Nanos) {
        self.largest = if self.window < self.largest { self.window * 0.85 } else { self.window };
        self.window = (self.window * 0.7).max(2.0);
        (self.threshold, self.reno, self.cut_at) = (self.window, self.window, now);
    }

    /// RFC 9438, section 4.
    fn grow(&mut self, now: Nanos, segments: f64) {
        let since = (now - self.cut_at) as f64 / S as f64 + self.round_trip;
        let plateau = (self.largest * 0.3 / 0.4).cbrt();
        let target = (self.largest + 0.4 * (since - plateau).powi(3)).clamp(self.window, self.window * 1.5);
        self.window += (target - self.window) / self.window * segments;
        self.reno += 0.53 * segments / self.reno;
        self.window = self.window.max(self.reno);
    }
}

const TCP: Kind = Kind::Tcp { ecn: false };
const TCP_ECN: Kind = Kind::Tcp { ecn: true };
const PING: Kind = Kind::Constant { bytes: 84, every: 97 * MS };

fn flood(mbit: f64) -> Kind {
    Kind::Constant { bytes: 1200, every: (1200.0 * 8.0 / mbit * 1000.0) as Nanos }
}

#[test]
fn one_flow_fills_the_path_and_waits_little() {
    for mbit in [1.0, 20.0, 500.0] {
        for kind in [TCP, TCP_ECN] {
            let end = Simulation::new(mbit, &[kind]).run(20 * S);
            let (share, p99) = (end.share(0), end.wait(0, 99));
            println!("{mbit} Mbit/s, {kind:?}: {share:.3} of the path, p99 {p99:.1} ms, {} lost", end.lost());
            assert!(share >= 0.95 && p99 <= 50.0);
            assert_eq!(end.lost() == 0, kind == TCP_ECN);
            let counters = end.queue.counters();
            assert_eq!((counters.marked > 0, counters.overflowed), (kind == TCP_ECN, 0));
        }
    }
}

#[test]
fn with_ecn_slow_start_loses_nothing_since_it_is_marked_early() {
    let mut lost_otherwise = 0;
    for mbit in [1.0, 5.0, 20.0, 100.0, 500.0] {
        for flows in [1, 4] {
            for delay in [10, 20, 50] {
                for marks_early in [true, false] {
                    // No more than another 50 ms: nothing but the queue waits before this path.
                    let device_len = (per_second(mbit) as usize / 20 / MTU).clamp(16, DEVICE_LEN);
                    let simulation = Simulation::new(mbit, &vec![TCP_ECN; flows]);
                    let start = Simulation { delay: delay * MS, marks_early, device_len, ..simulation };
                    let end = start.run(3 * S);
                    if marks_early {
                        assert_eq!(end.lost(), 0, "{mbit} Mbit/s, {flows} flows, {delay} ms");
                    } else {
                        lost_otherwise += end.lost();
                    }
                }
            }
        }
    }
    println!("{lost_otherwise} segments lost without early marks");
    assert!(lost_otherwise > 100);
}

#[test]
fn two_flows_share() {
    for mbit in [1.0, 20.0, 500.0] {
        for kinds in [[TCP, TCP], [TCP_ECN, TCP_ECN], [TCP, TCP_ECN]] {
            let end = Simulation::new(mbit, &kinds).run(20 * S);
            let shares = [end.share(0), end.share(1)];
            println!("{mbit} Mbit/s, {kinds:?}: {shares:.3?}");
            assert!(shares.iter().all(|share| (0.45..=0.55).contains(share)));
        }
    }
}

#[test]
fn beside_a_flood_tcp_keeps_its_share_since_the_flood_is_shed_here() {
    for mbit in [5.0, 20.0] {
        for kind in [TCP, TCP_ECN] {
            for reads_beyond_bound in [true, false] {
                let start = Simulation { reads_beyond_bound, ..Simulation::new(mbit, &[kind, flood(10.0 * mbit)]) };
                let end = start.run(6 * S);
                println!("{mbit} Mbit/s, {kind:?}, {reads_beyond_bound}: {:.3}", end.share(0));
                assert!(if reads_beyond_bound { end.share(0) >= 0.4 } else { end.share(0) < 0.01 });
            }
        }
    }
}

/// At 1 Mbit/s, one packet of 1,420 bytes takes 11 ms.
#[test]
fn a_ping_overtakes_bulk() {
    for mbit in [5.0, 20.0, 500.0] {
        for kind in [TCP, TCP_ECN] {
            let end = Simulation::new(mbit, &[kind, kind, PING, kind, kind]).run(10 * S);
            println!("{mbit} Mbit/s, {kind:?}: p99 {:.1} ms", end.wait(2, 99));
            assert!(end.wait(2, 99) <= 10.0 && end.sources[2].lost == 0);
        }
    }
}

#[test]
fn the_bound_follows_the_path() {
    for kind in [TCP, TCP_ECN] {
        let mut start = Simulation::new(20.0, &[kind]);
        start.at(5 * S, Event::Rate(per_second(2.0)));
        start.at(10 * S, Event::Rate(per_second(20.0)));
        let end = start.run(15 * S);
        let bound_at = |time: Nanos| end.bounds[(time / (10 * MS)) as usize];
        println!("{:?}", [5, 6, 10, 11, 15].map(|s| bound_at(s * S - 1)));
        for (time, bound) in [(5, 125_000), (6, 12_500), (10, 12_500), (11, 125_000), (15, 125_000)] {
            assert!(bound_at(time * S - 1).abs_diff(bound) <= bound / 5, "{time} s");
        }
    }
}

/// Where the round trip is short, TCP makes trains of 64 KiB, and on a slow path each of them takes long.
#[test]
fn trains_that_take_long_are_taken_apart() {
    for takes_apart in [true, false] {
        let start = Simulation { delay: MS / 2, takes_apart, ..Simulation::new(5.0, &[TCP]) };
        let end = start.run(10 * S);
        println!("{takes_apart}: p99 {:.1} ms", end.wait(0, 99));
        assert!(if takes_apart { end.wait(0, 99) <= 50.0 } else { end.wait(0, 99) > 500.0 });
    }
}
