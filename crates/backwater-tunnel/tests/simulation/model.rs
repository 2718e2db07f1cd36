//! Who may hear what: each packet that a host sends, and to whom it may be delivered.

use std::collections::HashMap;

use backwater_tunnel::packet::{
    DevicePacket,
    header::{Packet, protocol},
    segment::Segments,
    virtio,
};

use super::random::Random;

/// For experiments (RFC 3692). Its payload begins with a packet's number.
const EXPERIMENT: u8 = 253;

/// The hosts behind a node have the addresses of its prefixes: 10.0.N.0/24 and fd00:N::/32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// The node, or a number that no node has.
    pub node: u8,
    /// The last byte of its address.
    pub host: u8,
}

struct Sent {
    bytes: Vec<u8>,
    /// The node that it may be delivered to, once.
    to: Option<usize>,
    delivered: bool,
}

/// What became of packets. A packet of many segments counts as many.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Sent by a host.
    pub sent: u64,
    /// Delivered to the right host, as they were sent.
    pub delivered: u64,
    /// What a host was told of its packet (ICMP).
    pub told: u64,
}

/// The packets of a world.
#[derive(Default)]
pub struct Model {
    packets: HashMap<u64, Sent>,
    next: u64,
    /// What became of them.
    pub count: Count,
}

impl Model {
    /// Makes a packet of a host's, with the header of the device. `to`: the node that it may be delivered to. `segments`: as a train
    /// of so many; 1: as an ordinary packet of `len` bytes.
    #[allow(clippy::too_many_arguments, reason = "it is what a packet is")]
    pub fn packet(
        &mut self,
        random: &mut Random,
        from: Host,
        destination: Host,
        to: Option<usize>,
        is_v6: bool,
        len: usize,
        segments: usize,
    ) -> Vec<u8> {
        let first = self.next;
        let mut payload = Vec::new();
        let protocol = if segments > 1 { protocol::UDP } else { EXPERIMENT };
        for number in 0..segments as u64 {
            let mut part = vec![random.below(256) as u8; len.max(8)];
            part[..8].copy_from_slice(&(first + number).to_be_bytes());
            payload.extend(part);
        }
        let mut header = virtio::Header::default();
        if segments > 1 {
            let length = (8 + payload.len()) as u16;
            let mut udp = vec![0, 7, 0, 7, 0, 0, 0, 0];
            udp[4..6].copy_from_slice(&length.to_be_bytes());
            payload.splice(..0, udp);
            (header.gso_type, header.gso_size) = (virtio::GSO_UDP_L4, len.max(8) as u16);
        }
        let ip =
            if is_v6 { v6(from, destination, protocol, &payload) } else { v4(from, destination, protocol, &payload) };
        let raw = [&header.to_bytes()[..], &ip].concat();
        let packet = DevicePacket::parse(&raw).unwrap();
        let mut parts = Segments::new(&packet.header, packet.ip.bytes()).unwrap();
        let mut out = vec![0; 70_000];
        while let Some(len) = parts.next(&mut out) {
            self.packets.insert(self.next, Sent { bytes: out[..len].to_vec(), to, delivered: false });
            self.next += 1;
        }
        assert_eq!(self.next, first + segments as u64);
        self.count.sent += segments as u64;
        raw
    }

    /// A node gives a packet to its host: it must have been sent, to this node, as it is, and not have been delivered yet.
    pub fn delivered(&mut self, node: usize, bytes: &[u8]) {
        let packet = Packet::parse(bytes).expect("what is delivered is a packet");
        let at = match packet.protocol() {
            EXPERIMENT => 0,
            protocol::UDP => 8,
            protocol::ICMP | protocol::ICMPV6 => {
                self.count.told += 1;
                return;
            }
            other => panic!("node {node}: a packet of protocol {other}"),
        };
        let number = u64::from_be_bytes(*packet.payload()[at..].first_chunk().unwrap());
        let sent = self.packets.get_mut(&number).expect("what is delivered was sent");
        assert_eq!(sent.to, Some(node), "packet {number} is not for node {node}");
        assert_eq!(sent.bytes, bytes, "packet {number} is as it was sent");
        assert!(!std::mem::replace(&mut sent.delivered, true), "packet {number} is delivered once");
        self.count.delivered += 1;
    }

    /// The number of the next packet.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Whether the packet of this number was delivered.
    pub fn is_delivered(&self, number: u64) -> bool {
        self.packets.get(&number).is_some_and(|sent| sent.delivered)
    }
}

fn v4(from: Host, to: Host, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut ip =
        vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, from.node, from.host, 10, 0, to.node, to.host];
    ip[2..4].copy_from_slice(&len.to_be_bytes());
    ip.extend(payload);
    ip
}

fn v6(from: Host, to: Host, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0; 40];
    (ip[0], ip[6], ip[7]) = (0x60, protocol, 64);
    ip[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    for (at, host) in [(8, from), (24, to)] {
        (ip[at], ip[at + 3], ip[at + 15]) = (0xfd, host.node, host.host);
    }
    ip.extend(payload);
    ip
}
