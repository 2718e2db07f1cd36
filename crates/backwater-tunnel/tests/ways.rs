//! Which way the engine uses, direct or by a relay, in virtual time: two engines, and a network that blocks one way or the other.

#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use backwater_stun::{ChannelData, ChannelNumber};
use backwater_tunnel::{
    config::{Config, Key},
    engine::{Engine, Event, Offload, Outcome, Route, packet::virtio},
};
use backwater_udp::RecvDatagram;

const STEP: Duration = Duration::from_millis(50);
const LATENCY: Duration = Duration::from_millis(20);

/// What the direct way lets through.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Open {
    out: bool,
    back: bool,
}

const OPEN: Open = Open { out: true, back: true };
const BLOCKED: Open = Open { out: false, back: false };

/// A datagram under way: when it arrives, whether at the near end, its source, whether by the relay.
struct Flying(Instant, bool, SocketAddr, bool, Vec<u8>);

struct World {
    now: Instant,
    near: Engine,
    far: Engine,
    direct: Open,
    relay_works: bool,
    flying: Vec<Flying>,
    /// Datagrams that the near end has sent, directly and to the relay.
    sent: [usize; 2],
    /// Packets that have arrived at the near end and at the far end.
    arrived: [usize; 2],
    silences: usize,
    channel: ChannelNumber,
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn near_address() -> SocketAddr {
    address("192.0.2.1:51820")
}

fn far_address() -> SocketAddr {
    address("198.51.100.2:51820")
}

fn server() -> SocketAddr {
    address("203.0.113.3:3478")
}

fn relayed_address() -> SocketAddr {
    address("203.0.113.3:50000")
}

impl World {
    fn new(mode: &str, direct: Open) -> Self {
        let now = Instant::now();
        let (near_key, far_key) = (Key::generate().unwrap(), Key::generate().unwrap());
        let engine = |own: &Key, peer: &Key, rest: &str| {
            let (own, peer) = (own.to_base64(), peer.public().to_base64());
            let text = format!("[Interface]\nPrivateKey = {own}\n[Peer]\nPublicKey = {peer}\n{rest}");
            let config = Config::parse("ways", &text).unwrap().0;
            Engine::new(now, SystemTime::UNIX_EPOCH, &config, 1416, Offload::None).unwrap()
        };
        let relay = format!("[Relay]\nUri = turn:203.0.113.3\nSecret = s\nMode = {mode}\n");
        let near = format!("Endpoint = {}\nAllowedIPs = 10.0.0.2/32\n{relay}", far_address());
        let mut world = Self {
            now,
            near: engine(&near_key, &far_key, &near),
            far: engine(&far_key, &near_key, "AllowedIPs = 10.0.0.1/32\n"),
            direct,
            relay_works: true,
            flying: Vec::new(),
            sent: [0; 2],
            arrived: [0; 2],
            silences: 0,
            channel: ChannelNumber::MIN,
        };
        world.near.start(now);
        world.far.start(now);
        world
    }

    /// As the driver's: the relay has a channel to each address that is wanted.
    fn bind(&mut self) {
        let wanted: Vec<_> = self.near.relay_peers().collect();
        for peer in wanted {
            let route = Route::Relayed { relay: server(), peer, channel: self.channel };
            self.near.set_relayed(self.now, peer, Some(route));
        }
    }

    fn unbind(&mut self) {
        let wanted: Vec<_> = self.near.relay_peers().collect();
        wanted.into_iter().for_each(|peer| self.near.set_relayed(self.now, peer, None));
    }

    /// One packet each way, or from the near end alone, and everything that is due then.
    fn step(&mut self, traffic: bool) {
        self.now += STEP;
        if traffic {
            for is_near in [true, false] {
                let ends = if is_near { [1, 2] } else { [2, 1] };
                let packet = packet(ends);
                let engine = if is_near { &mut self.near } else { &mut self.far };
                let len = virtio::LEN + packet.len();
                engine.packet_buffer()[..len].copy_from_slice(&[&[0; virtio::LEN][..], &packet].concat());
                engine.handle_packet(self.now, len);
                self.drain(is_near);
            }
        }
        let (due, rest) = std::mem::take(&mut self.flying).into_iter().partition(|Flying(at, ..)| *at <= self.now);
        self.flying = rest;
        for Flying(_, to_near, source, is_relayed, payload) in due {
            let datagram = RecvDatagram { source, local_ip: None, ecn: None, payload: &payload };
            let engine = if to_near { &mut self.near } else { &mut self.far };
            assert!(engine.has_space(payload.len()));
            if is_relayed && to_near {
                engine.handle_relayed(self.now, datagram);
            } else {
                engine.handle_datagram(self.now, datagram);
            }
            self.drain(to_near);
        }
        for is_near in [true, false] {
            let engine = if is_near { &mut self.near } else { &mut self.far };
            if self.now >= engine.poll_timeout() {
                engine.handle_timeout(self.now);
            }
            self.drain(is_near);
        }
    }

    fn drain(&mut self, is_near: bool) {
        let mut sent = Vec::new();
        let (mut is_new, mut silences, mut arrived) = (false, 0, 0);
        let engine = if is_near { &mut self.near } else { &mut self.far };
        while let Some(event) = engine.poll_event(self.now) {
            is_new |= matches!(event, Event::RelayPeers);
            silences += usize::from(matches!(event, Event::RelayIsSilent));
        }
        while let Some(message) = engine.poll_message() {
            sent.push((message.destination, message.bytes.to_vec()));
        }
        engine.drain_queues();
        engine.flush();
        while let Some(transmit) = engine.poll_transmit(self.now) {
            let datagrams = transmit.bytes.chunks(transmit.segment_size);
            let outcome = Outcome { sent: datagrams.len(), bytes: transmit.bytes.len(), ..Outcome::default() };
            sent.extend(datagrams.map(|datagram| (transmit.route.destination(), datagram.to_vec())));
            engine.handle_sent(self.now, outcome);
        }
        engine.poll_device(|_| {
            arrived += 1;
            Ok(0)
        });
        self.silences += silences;
        self.arrived[usize::from(!is_near)] += arrived;
        if is_new && self.relay_works {
            self.bind();
        }
        for (to, bytes) in sent {
            self.send(is_near, to, bytes);
        }
    }

    /// What the network makes of a datagram.
    fn send(&mut self, from_near: bool, to: SocketAddr, bytes: Vec<u8>) {
        let at = self.now + LATENCY;
        if from_near {
            self.sent[usize::from(to == server())] += 1;
        }
        if from_near && to == server() {
            let data = ChannelData::parse(&bytes).unwrap();
            assert_eq!((data.channel(), data.data().len()), (self.channel, bytes.len() - 4));
            if self.relay_works {
                self.flying.push(Flying(at + LATENCY, false, relayed_address(), true, data.data().to_vec()));
            }
        } else if from_near && to == far_address() {
            if self.direct.out {
                self.flying.push(Flying(at, false, near_address(), false, bytes));
            }
        } else if !from_near && to == relayed_address() {
            if self.relay_works {
                self.flying.push(Flying(at + LATENCY, true, far_address(), true, bytes));
            }
        } else {
            assert_eq!((from_near, to), (false, near_address()));
            if self.direct.back {
                self.flying.push(Flying(at, true, far_address(), false, bytes));
            }
        }
    }

    fn is_relayed(&self) -> bool {
        self.near.peer(0).unwrap().route.is_some_and(Route::is_relayed)
    }

    /// Steps with traffic until it holds. Returns how long that took.
    fn until(&mut self, at_most: Duration, mut holds: impl FnMut(&Self) -> bool) -> Duration {
        let begin = self.now;
        while !holds(self) {
            assert!(self.now - begin < at_most, "not within {at_most:?}");
            self.step(true);
        }
        self.now - begin
    }

    /// For so long, with traffic. Returns what share of the packets arrived at each end.
    fn share(&mut self, time: Duration) -> [f64; 2] {
        let (begin, before) = (self.now, self.arrived);
        let mut steps = 0;
        while self.now - begin < time {
            self.step(true);
            steps += 1;
        }
        [0, 1].map(|end| (self.arrived[end] - before[end]) as f64 / f64::from(steps))
    }
}

/// An IPv4 packet between these ends, of a protocol that is for experiments (RFC 3692).
fn packet([from, to]: [u8; 2]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 120, 0, 0, 0x40, 0, 64, 253, 0, 0, 10, 0, 0, from, 10, 0, 0, to];
    packet.resize(120, 7);
    packet
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn relay_is_used_at_once_where_the_direct_way_is_blocked() {
    let mut world = World::new("auto", BLOCKED);
    world.until(SECOND, |world| world.arrived.iter().all(|count| *count > 0));
    assert!(world.is_relayed());
    assert!(world.share(300 * SECOND).iter().all(|share| *share > 0.99), "also while the direct way is tried");
}

#[test]
fn direct_way_is_used_where_it_works_and_left_when_it_stops() {
    let mut world = World::new("auto", OPEN);
    world.until(SECOND, |world| world.arrived.iter().all(|count| *count > 0));
    assert!(!world.is_relayed(), "the direct way is faster here");
    for _ in 0..3 {
        world.direct = BLOCKED;
        let time = world.until(10 * SECOND, World::is_relayed);
        assert!(time < 7 * SECOND, "{time:?}");
        world.share(SECOND);
        assert!(world.share(60 * SECOND).iter().all(|share| *share > 0.99));
        world.direct = OPEN;
        world.until(40 * SECOND, |world| !world.is_relayed());
        assert!(world.share(200 * SECOND).iter().all(|share| *share > 0.99), "without a further change");
    }
}

/// The peer hears what is tried, and sends to where nothing comes from: until the next message by the relay.
#[test]
fn way_that_works_in_one_direction_only_is_not_used() {
    for direct in [Open { out: true, back: false }, Open { out: false, back: true }] {
        let mut world = World::new("auto", direct);
        world.until(20 * SECOND, |world| world.arrived.iter().all(|count| *count > 0));
        let [to_near, to_far] = world.share(300 * SECOND);
        assert!(to_far > 0.99 && to_near > 0.98, "{to_near} {to_far}");
        assert!(world.is_relayed());
    }
}

#[test]
fn nothing_goes_directly_in_mode_always() {
    let mut world = World::new("always", OPEN);
    world.until(SECOND, |world| world.arrived.iter().all(|count| *count > 0));
    assert!(world.share(300 * SECOND).iter().all(|share| *share > 0.99));
    world.relay_works = false;
    world.share(100 * SECOND);
    assert_eq!(world.sent[0], 0);
    assert!(world.silences > 0, "the driver is told");
    // The relay was started again: the driver has another channel.
    world.unbind();
    assert!(world.near.peer(0).unwrap().route.is_none());
    (world.relay_works, world.channel) = (true, ChannelNumber::new(0x4001).unwrap());
    world.bind();
    world.until(10 * SECOND, World::is_relayed);
    world.share(10 * SECOND);
    assert!(world.share(100 * SECOND).iter().all(|share| *share > 0.99));
    assert_eq!(world.sent[0], 0);
}

#[test]
fn lost_allocation_leaves_the_direct_way_until_there_is_another_one() {
    let mut world = World::new("auto", BLOCKED);
    world.until(SECOND, |world| world.arrived.iter().all(|count| *count > 0));
    world.relay_works = false;
    world.unbind();
    world.step(true);
    assert!(!world.is_relayed());
    world.share(2 * SECOND);
    (world.relay_works, world.channel) = (true, ChannelNumber::new(0x4001).unwrap());
    world.bind();
    world.until(SECOND, World::is_relayed);
    world.share(SECOND);
    assert!(world.share(60 * SECOND).iter().all(|share| *share > 0.99));
}

/// Nobody who has nothing to say is woken to try a way.
#[test]
fn no_way_is_tried_without_traffic() {
    let mut world = World::new("auto", BLOCKED);
    world.until(SECOND, |world| world.arrived.iter().all(|count| *count > 0));
    world.share(60 * SECOND);
    for _ in 0..2000 {
        world.step(false);
    }
    let before = world.sent;
    for _ in 0..4000 {
        world.step(false);
    }
    assert_eq!(world.sent, before);
}

#[test]
fn no_relay_is_wanted_in_mode_never() {
    let mut world = World::new("never", OPEN);
    world.until(SECOND, |world| world.arrived.iter().all(|count| *count > 0));
    assert_eq!((world.near.relay_peers().count(), world.sent[1]), (0, 0));
}
