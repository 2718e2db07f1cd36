//! Two engines in memory: they shake hands and pass a packet. `cargo run --example engine`.
//!
//! The driver here is two addresses and a loop: it moves the messages and the data of one engine to the other, and the packets to a
//! list. A real driver does the same with sockets, a TUN device and a timer.

#![allow(missing_docs, unreachable_pub, reason = "a test runs it too")]

use std::{
    error::Error,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use backwater_tunnel::{
    config::{Config, Key},
    engine::{Engine, Offload, Outcome},
    packet::virtio,
};
use backwater_udp::RecvDatagram;

/// One end: an engine, and what stands for its socket and its device.
struct End {
    address: SocketAddr,
    engine: Engine,
    /// Packets that the device was given.
    received: Vec<Vec<u8>>,
}

impl End {
    fn new(now: Instant, address: &str, key: &Key, peer: &Key, rest: &str) -> Result<Self, Box<dyn Error>> {
        let text = format!(
            "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\n{rest}\n",
            key.to_base64(),
            peer.public().to_base64()
        );
        let (config, _) = Config::parse("example", &text)?;
        let engine = Engine::new(now, SystemTime::now(), &config, 1420, Offload::None)?;
        Ok(Self { address: address.parse()?, engine, received: Vec::new() })
    }

    /// The local host sends a packet through the tunnel.
    fn send(&mut self, now: Instant, packet: &[u8], network: &mut Vec<(SocketAddr, Vec<u8>)>) {
        // Without offloads the header before the packet is zeros.
        let len = virtio::LEN + packet.len();
        self.engine.packet_buffer()[..len].copy_from_slice(&[&[0; virtio::LEN][..], packet].concat());
        self.engine.handle_packet(now, len);
        self.drain(now, network);
    }

    /// Does what the engine wants done, until it wants nothing.
    fn drain(&mut self, now: Instant, network: &mut Vec<(SocketAddr, Vec<u8>)>) {
        while self.engine.poll_event(now).is_some() {}
        while let Some(message) = self.engine.poll_message() {
            network.push((message.destination, message.bytes.to_vec()));
        }
        self.engine.drain_queues();
        self.engine.flush();
        while let Some(transmit) = self.engine.poll_transmit(now) {
            let datagrams = transmit.bytes.chunks(transmit.segment_size);
            let outcome = Outcome { sent: datagrams.len(), bytes: transmit.bytes.len(), ..Outcome::default() };
            network.extend(datagrams.map(|datagram| (transmit.route.destination(), datagram.to_vec())));
            self.engine.handle_sent(now, outcome);
        }
        let received = &mut self.received;
        self.engine.poll_device(|slices| {
            received.push(slices.iter().flat_map(|slice| slice.to_vec()).collect());
            Ok(0)
        });
    }

    fn receive(&mut self, now: Instant, source: SocketAddr, payload: &[u8], network: &mut Vec<(SocketAddr, Vec<u8>)>) {
        if self.engine.has_space(payload.len()) {
            self.engine.handle_datagram(now, RecvDatagram { source, local_ip: None, ecn: None, payload });
        }
        self.drain(now, network);
    }
}

/// A packet of IPv4 from 10.0.0.1 to 10.0.0.2, of a protocol that is for experiments (RFC 3692).
fn packet(payload: &[u8]) -> Vec<u8> {
    let len = 20 + payload.len() as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 253, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet.extend(payload);
    packet
}

pub fn main() -> Result<(), Box<dyn Error>> {
    let mut now = Instant::now();
    let (ours, theirs) = (Key::generate()?, Key::generate()?);
    let mut near =
        End::new(now, "192.0.2.1:51820", &ours, &theirs, "Endpoint = 192.0.2.2:51820\nAllowedIPs = 10.0.0.2/32")?;
    let mut far = End::new(now, "192.0.2.2:51820", &theirs, &ours, "AllowedIPs = 10.0.0.1/32")?;

    let mut network = Vec::new();
    near.engine.start(now);
    far.engine.start(now);
    // There is no session yet: the packet waits, and the engine initiates a handshake.
    let sent = packet(b"hello");
    near.send(now, &sent, &mut network);
    // What is under way arrives a millisecond later, and the answers are under way then.
    while !network.is_empty() {
        now += Duration::from_millis(1);
        for (destination, payload) in std::mem::take(&mut network) {
            let (to, from) = if destination == near.address { (&mut near, &far) } else { (&mut far, &near) };
            let source = from.address;
            println!("{source} -> {destination}: {} bytes of type {}", payload.len(), payload[0]);
            to.receive(now, source, &payload, &mut network);
        }
    }
    assert_eq!(far.received, [sent]);
    println!("{destination} has received the packet", destination = far.address);
    println!("the next timeout is in {:?}", near.engine.poll_timeout().saturating_duration_since(now));
    Ok(())
}
