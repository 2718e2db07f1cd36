//! Engines in memory and in virtual time: who may send what, and what comes of datagrams that nobody should have sent.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    fmt::Write,
    mem::take,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use backwater_tunnel::{
    config::{Config, Key},
    engine::{Engine, Offload, Outcome, Received, Route},
    packet::virtio,
};
use backwater_udp::RecvDatagram;

/// An engine, and what stands for its device and its socket.
struct End {
    address: SocketAddr,
    engine: Engine,
    received: Vec<Vec<u8>>,
}

/// Ends with the addresses 192.0.2.0, .1, and so on.
struct World {
    now: Instant,
    ends: Vec<End>,
    /// Under way: from, to, and what.
    network: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

impl World {
    /// The first end is everybody's peer, who knows all addresses. `allowed`: each other end's, there; here everything is allowed.
    fn new(mtu: u16, allowed: &[&str]) -> Self {
        let now = Instant::now();
        let keys: Vec<_> = (0..=allowed.len()).map(|_| Key::generate().unwrap()).collect();
        let interface = |key: &Key| format!("[Interface]\nPrivateKey = {}\n", key.to_base64());
        let peer = |number: usize, allowed: &str| {
            let key = keys[number].public().to_base64();
            format!("[Peer]\nPublicKey = {key}\nEndpoint = 192.0.2.{number}:51820\nAllowedIPs = {allowed}\n")
        };
        let mut hub = interface(&keys[0]);
        allowed.iter().enumerate().for_each(|(number, allowed)| hub.write_str(&peer(number + 1, allowed)).unwrap());
        let spokes = keys[1..].iter().map(|key| interface(key) + &peer(0, "0.0.0.0/0, ::/0"));
        let end = |(number, text): (usize, String)| {
            let config = Config::parse("test", &text).unwrap().0;
            let mut engine = Engine::new(now, SystemTime::now(), &config, mtu, Offload::None).unwrap();
            engine.start(now);
            End { address: format!("192.0.2.{number}:51820").parse().unwrap(), engine, received: Vec::new() }
        };
        let ends = std::iter::once(hub).chain(spokes).enumerate().map(end).collect();
        Self { now, ends, network: Vec::new() }
    }

    /// The host of this end sends a packet.
    fn send(&mut self, end: usize, packet: &[u8]) {
        let engine = &mut self.ends[end].engine;
        let len = virtio::LEN + packet.len();
        engine.packet_buffer()[..len].copy_from_slice(&[&[0; virtio::LEN][..], packet].concat());
        engine.handle_packet(self.now, len);
        self.drain(end);
    }

    /// A datagram arrives at this end.
    fn arrive(&mut self, end: usize, source: SocketAddr, payload: &[u8]) -> Received {
        let engine = &mut self.ends[end].engine;
        assert!(engine.has_space(payload.len()), "{} bytes", payload.len());
        let received = engine.handle_datagram(self.now, RecvDatagram { source, local_ip: None, ecn: None, payload });
        self.drain(end);
        received
    }

    fn drain(&mut self, end: usize) {
        let (now, End { address, engine, received }) = (self.now, &mut self.ends[end]);
        while engine.poll_event(now).is_some() {}
        engine.drain_queues();
        engine.flush();
        while let Some(message) = engine.poll_message() {
            self.network.push((*address, message.destination, message.bytes.to_vec()));
        }
        while let Some(transmit) = engine.poll_transmit(now) {
            let datagrams = transmit.bytes.chunks(transmit.segment_size);
            let outcome = Outcome { sent: datagrams.len(), bytes: transmit.bytes.len(), ..Outcome::default() };
            let to = transmit.route.destination();
            self.network.extend(datagrams.map(|datagram| (*address, to, datagram.to_vec())));
            engine.handle_sent(now, outcome);
        }
        engine.poll_device(|slices| {
            received.push(slices.iter().flat_map(|slice| slice.to_vec()).collect());
            Ok(0)
        });
    }

    /// Delivers all that is under way.
    fn deliver(&mut self) {
        while !self.network.is_empty() {
            self.now += Duration::from_millis(1);
            for (from, to, payload) in take(&mut self.network) {
                let end = self.ends.iter().position(|end| end.address == to).unwrap();
                self.arrive(end, from, &payload);
            }
        }
    }

    /// Passes time until the next timeout of an end.
    fn pass(&mut self) {
        self.now = self.ends.iter().map(|end| end.engine.poll_timeout()).min().unwrap().max(self.now);
        for end in 0..self.ends.len() {
            self.ends[end].engine.handle_timeout(self.now);
            self.drain(end);
        }
    }

    fn received(&mut self, end: usize) -> Vec<Vec<u8>> {
        take(&mut self.ends[end].received)
    }
}

/// An IPv4 packet of a protocol that is for experiments (RFC 3692).
fn packet(from: [u8; 4], to: [u8; 4], len: u16) -> Vec<u8> {
    let mut packet = vec![0; len.into()];
    packet[..10].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 253]);
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[12..16].copy_from_slice(&from);
    packet[16..20].copy_from_slice(&to);
    packet
}

#[test]
fn nested_allowed_ips_belong_to_the_longest_prefix_in_both_directions() {
    let mut world = World::new(1420, &["10.0.0.0/8", "10.1.0.0/16"]);
    let (outer, inner) = ([10, 2, 0, 1], [10, 1, 0, 1]);
    for (address, end) in [(outer, 1), (inner, 2)] {
        let sent = packet([10, 9, 9, 9], address, 100);
        world.send(0, &sent);
        world.deliver();
        assert_eq!([world.received(1), world.received(2)][end - 1], [sent], "to {address:?}");
    }
    for (end, from, is_good) in [(1, outer, true), (1, inner, false), (2, inner, true), (2, outer, false)] {
        let sent = packet(from, [10, 9, 9, 9], 100);
        world.send(end, &sent);
        world.deliver();
        assert_eq!(world.received(0), if is_good { vec![sent] } else { vec![] }, "from {from:?} by {end}");
    }
    let refused = [0, 1].map(|peer| world.ends[0].engine.peer(peer).unwrap().counters.source_not_allowed);
    assert_eq!(refused, [1, 1]);
}

#[test]
fn datagrams_of_any_length_and_kind_are_refused_and_the_session_goes_on() {
    let mut world = World::new(1420, &["10.0.0.1/32"]);
    let (there, here) = ([10, 0, 0, 1], [10, 9, 9, 9]);
    world.send(0, &packet(here, there, 100));
    world.deliver();
    // The index by which the first end knows the session, from what the peer sends to it.
    world.send(1, &packet(there, here, 100));
    let real = world.network[0].2.clone();
    world.deliver();
    let source = world.ends[1].address;
    let before = world.ends[0].engine.peer(0).unwrap().counters;
    let mut refused = 0;
    for len in [0, 1, 4, 15, 16, 31, 32, 63, 64, 65, 92, 148, 149, 1452, 9000, 65_507, 65_527] {
        for kind in 0..6 {
            let mut payload: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(len).collect();
            for (to, from) in payload.iter_mut().zip([&[kind, 0, 0, 0], &real[4..8], &[9; 8]].concat()) {
                *to = from;
            }
            assert_eq!(world.arrive(0, source, &payload), Received::Refused, "{len} bytes of kind {kind}");
            refused += 1;
        }
    }
    let (counters, peer) = (world.ends[0].engine.counters(), world.ends[0].engine.peer(0).unwrap());
    let counted = counters.strange + counters.handshakes_refused + peer.counters.invalid + peer.counters.replayed;
    assert_eq!(counted, refused, "each is counted once: {counters:?} {peer:?}");
    assert_eq!(
        (peer.counters.datagrams_received, peer.route),
        (before.datagrams_received, Some(Route::Direct(source)))
    );
    world.received(0);
    let sent = packet(there, here, 100);
    world.send(1, &sent);
    world.deliver();
    assert_eq!(world.received(0), [sent]);
}

#[test]
fn the_longest_packet_that_a_datagram_holds_arrives() {
    let mut world = World::new(65_535, &["10.0.0.1/32"]);
    let (there, here) = ([10, 0, 0, 1], [10, 9, 9, 9]);
    // 65,507 bytes of UDP payload less the header and the tag, and a multiple of sixteen.
    for (len, arrives) in [(1500, true), (9000, true), (65_472, true), (65_473, false), (65_535, false)] {
        let sent = packet(here, there, len);
        world.send(0, &sent);
        world.deliver();
        assert_eq!(world.received(1), if arrives { vec![sent] } else { vec![] }, "{len} bytes");
        world.received(0);
    }
    assert_eq!(world.ends[0].engine.counters().too_big, 2);
}

/// Also where nothing else happens: the timers do not wait for the interval of an idle tunnel.
#[test]
fn timers_are_on_time_in_an_idle_tunnel() {
    let mut world = World::new(1420, &["10.0.0.1/32"]);
    let (there, here) = ([10, 0, 0, 1], [10, 9, 9, 9]);
    world.send(0, &packet(here, there, 100));
    world.deliver();
    // Until everything that was sent is answered, and then a packet that is lost.
    let end = world.now + Duration::from_secs(40);
    while world.now < end {
        world.pass();
        world.deliver();
    }
    let begin = world.now;
    world.send(0, &packet(here, there, 100));
    world.network.clear();
    while world.network.is_empty() {
        world.pass();
    }
    let after = world.now - begin;
    // KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, up to 333 ms at random, and no more than a tick.
    assert!(after >= Duration::from_secs(15) && after <= Duration::from_millis(15_600), "{after:?}");
    assert_eq!(world.network[0].2[0], 1, "an initiation");
    let begin = world.now;
    world.network.clear();
    while world.network.is_empty() {
        world.pass();
    }
    let after = world.now - begin;
    assert!(after >= Duration::from_secs(5) && after <= Duration::from_millis(5_600), "{after:?}");
}
