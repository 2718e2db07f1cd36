//! Views of IP, TCP and UDP headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol numbers (IANA).
pub mod protocol {
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
}

/// IPv6 extension headers that are skipped before a packet is taken for one of an unknown protocol.
const MAX_EXTENSION_HEADERS: usize = 8;

/// An IP packet whose header was looked at. Nothing behind it was: that is the transport's.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// At least the fixed header (20 or 40 bytes), and as long as it says.
    bytes: &'a [u8],
    /// ≤ `bytes.len()`.
    transport: usize,
    protocol: u8,
    is_fragment: bool,
}

impl<'a> Packet<'a> {
    /// Looks at one; bytes behind its own length (WireGuard's padding) are cut. `None`: neither IPv4 nor IPv6, or
    /// shorter than its header says.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<20>()?;
        let transport = usize::from(header[0] & 0xf) * 4;
        let bytes = bytes.get(..usize::from(u16::from_be_bytes([header[2], header[3]])))?;
        if transport < 20 || bytes.len() < transport {
            return None;
        }
        // More fragments, or an offset (RFC 791, section 3.1).
        let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
        Some(Self { bytes, transport, protocol: header[9], is_fragment })
    }

    fn parse_v6(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<40>()?;
        let bytes = bytes.get(..40 + usize::from(u16::from_be_bytes([header[4], header[5]])))?;
        let mut packet = Self { bytes, transport: 40, protocol: header[6], is_fragment: false };
        for _ in 0..MAX_EXTENSION_HEADERS {
            let Some(&[next, len, ..]) = packet.payload().first_chunk::<8>() else { break };
            let skipped = match packet.protocol {
                // Hop-by-hop options, routing, destination options (RFC 8200, section 4).
                0 | 43 | 60 => 8 + usize::from(len) * 8,
                // Fragment. What follows it in the first one is not in the others, so all of them end here.
                44 => {
                    packet.transport += 8;
                    packet.protocol = next;
                    packet.is_fragment = true;
                    break;
                }
                // Authentication (RFC 4302, section 2.2).
                51 => 8 + usize::from(len) * 4,
                _ => break,
            };
            if packet.transport + skipped > bytes.len() {
                break;
            }
            packet.transport += skipped;
            packet.protocol = next;
        }
        Some(packet)
    }

    /// All of it: its length is what the header says.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether it is IPv6; else it is IPv4.
    #[inline]
    pub fn is_v6(&self) -> bool {
        self.bytes[0] >> 4 == 6
    }

    /// Bytes before the transport header: the IP header with its options or extension headers.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.transport
    }

    /// The protocol of [`payload`](Self::payload): for IPv6 that of the last extension header that was understood.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// What is behind the IP header and its extensions.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.transport..]
    }

    /// Whether it is but a part of a packet, be it the first.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.is_fragment
    }

    /// DSCP in the upper six bits, ECN in the lower two: IPv4's byte 1, IPv6's traffic class, which are bits 4 to 11 of
    /// the packet (RFC 2474, RFC 3168).
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        if self.is_v6() { self.bytes[0] << 4 | self.bytes[1] >> 4 } else { self.bytes[1] }
    }

    /// TTL or hop limit.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        if self.is_v6() { self.bytes[7] } else { self.bytes[8] }
    }

    /// Source and destination as they are in the header, 8 or 32 bytes: for
    /// [`Sum::pseudo_header`](super::checksum::Sum).
    #[inline]
    pub fn addresses(&self) -> &'a [u8] {
        if self.is_v6() { &self.bytes[8..40] } else { &self.bytes[12..20] }
    }

    /// Where it comes from.
    #[inline]
    pub fn source(&self) -> IpAddr {
        if self.is_v6() { self.v6_address(8) } else { self.v4_address(12) }
    }

    /// Where it goes.
    #[inline]
    pub fn destination(&self) -> IpAddr {
        if self.is_v6() { self.v6_address(24) } else { self.v4_address(16) }
    }

    /// Source and destination port of what has ports at the usual place (TCP, UDP, UDP-Lite, DCCP, SCTP) and is no
    /// fragment.
    #[inline]
    pub fn ports(&self) -> Option<(u16, u16)> {
        let has_ports = matches!(self.protocol, protocol::TCP | protocol::UDP | 33 | 132 | 136);
        let &[s0, s1, d0, d1] = self.payload().first_chunk().filter(|_| has_ports && !self.is_fragment)?;
        Some((u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])))
    }

    /// Whose order must be kept, and who shares a queue.
    #[inline]
    pub fn flow(&self) -> Flow {
        let ports = self.ports().map_or(0, |(source, destination)| u64::from(source) << 16 | u64::from(destination));
        let kind = u64::from(self.protocol) << 32 | u64::from(self.is_v6()) << 40 | u64::from(self.is_fragment) << 41;
        let mut words = [0, 0, 0, 0, ports | kind];
        let (addresses, _) = self.addresses().as_chunks();
        for (word, address) in words.iter_mut().zip(addresses) {
            *word = u64::from_ne_bytes(*address);
        }
        Flow(words)
    }

    fn v4_address(&self, at: usize) -> IpAddr {
        let mut address = [0; 4];
        address.copy_from_slice(&self.bytes[at..at + 4]);
        Ipv4Addr::from(address).into()
    }

    fn v6_address(&self, at: usize) -> IpAddr {
        let mut address = [0; 16];
        address.copy_from_slice(&self.bytes[at..at + 16]);
        Ipv6Addr::from(address).into()
    }
}

/// Addresses, protocol and ports of a packet; without the ports for what has none, and for fragments, of which but the
/// first one has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow([u64; 5]);

impl Flow {
    /// Spreads flows over 64 bits, each of them as good as any other. Whoever does not know `seed` cannot make flows
    /// meet but by chance.
    #[inline]
    pub fn hash(&self, seed: u64) -> u64 {
        let [a, b, c, d, e] = self.0;
        let first = fold(a ^ seed, b ^ 0x9e37_79b9_7f4a_7c15);
        // IPv4 has nothing here, and a factor of zero would make all of it zero.
        let second = fold(c ^ seed.rotate_left(32) ^ 0x2545_f491_4f6c_dd1d, d ^ 0xd1b5_4a32_d192_ed03);
        fold(first ^ e ^ 0x8bb8_4b93_962e_acc9, second ^ seed.rotate_left(17))
    }
}

/// Both halves of the product: every bit of it depends on many of either factor.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let len = (20 + payload.len()) as u16;
        let mut packet = vec![0x45, 0xb9, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet.extend(payload);
        packet
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x6b, 0x90, 0, 0, 0, 0, next, 63];
        packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        packet.extend(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).octets());
        packet.extend(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).octets());
        packet.extend(payload);
        packet
    }

    #[test]
    fn ipv4() {
        let mut bytes = v4(17, 0x4000, &[0x12, 0x34, 0, 53, 0, 8, 0, 0]);
        bytes.extend([0; 4]);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.bytes().len(), packet.header_len(), packet.protocol()), (28, 20, protocol::UDP));
        assert_eq!((packet.traffic_class(), packet.hop_limit(), packet.is_fragment()), (0xb9, 64, false));
        assert_eq!(packet.source(), Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(packet.destination(), Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(packet.ports(), Some((0x1234, 53)));
    }

    #[test]
    fn ipv6_with_extension_headers() {
        // Hop-by-hop, then destination options of 16 bytes, then TCP.
        let mut payload = vec![60, 0, 0, 0, 0, 0, 0, 0, 6, 1];
        payload.extend([0; 14]);
        payload.extend([0, 80, 1, 0]);
        let bytes = v6(0, &payload);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.protocol(), packet.header_len(), packet.ports()), (protocol::TCP, 64, Some((80, 256))));
        assert_eq!((packet.traffic_class(), packet.hop_limit()), (0xb9, 63));
        assert_eq!(packet.source(), "fd00::1".parse::<IpAddr>().unwrap());
        assert_eq!(packet.destination(), "fd00::2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_chain_of_extension_headers_ends_somewhere() {
        let endless = v6(60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(100));
        let packet = Packet::parse(&endless).unwrap();
        assert_eq!((packet.protocol(), packet.header_len()), (60, 40 + 8 * MAX_EXTENSION_HEADERS));
        let beyond = v6(60, &[6, 200, 0, 0, 0, 0, 0, 0]);
        let packet = Packet::parse(&beyond).unwrap();
        assert_eq!((packet.protocol(), packet.header_len(), packet.ports()), (60, 40, None));
    }

    #[test]
    fn fragments_are_one_flow_apart_from_the_others() {
        let flow = |bytes: &[u8]| Packet::parse(bytes).unwrap().flow();
        let ports = [1, 2, 3, 4, 5, 6, 7, 8];
        let first = v4(17, 0x2000, &ports);
        assert!(Packet::parse(&first).unwrap().is_fragment());
        assert_eq!(flow(&first), flow(&v4(17, 0x00b9, &[9; 8])));
        assert_ne!(flow(&first), flow(&v4(17, 0, &ports)));
        let fragment = |offset, payload: &[u8]| v6(44, &[&[17, 0, 0, offset, 0, 0, 0, 1], payload].concat());
        assert_eq!(flow(&fragment(1, &ports)), flow(&fragment(8, &[9; 8])));
        assert_ne!(flow(&fragment(1, &ports)), flow(&v6(17, &ports)));
    }

    #[test]
    fn a_flow_is_addresses_protocol_and_ports() {
        let base = v4(17, 0, &[1, 2, 3, 4, 0, 8, 0, 0]);
        let mut flows = vec![Packet::parse(&base).unwrap().flow()];
        for byte in [9, 12, 15, 16, 19, 20, 21, 22, 23] {
            let mut other = base.clone();
            other[byte] = if byte == 9 { 6 } else { other[byte] ^ 0x40 };
            flows.push(Packet::parse(&other).unwrap().flow());
        }
        for seed in [0, 1] {
            let hashes: HashSet<_> = flows.iter().map(|flow| flow.hash(seed)).collect();
            assert_eq!(hashes.len(), flows.len());
        }
        assert!(flows.iter().enumerate().all(|(i, flow)| !flows[..i].contains(flow)));
        // The checksum and TTL are not part of it.
        let mut same = base.clone();
        (same[8], same[26]) = (1, 9);
        assert_eq!(Packet::parse(&same).unwrap().flow(), flows[0]);
        assert_ne!(flows[0].hash(1), flows[0].hash(2));
    }

    #[test]
    fn hashes_fill_the_buckets_evenly() {
        let mut buckets = [0u32; 256];
        for port in 0..25_600u16 {
            let ports = [&port.to_be_bytes()[..], &[0, 80]].concat();
            let hash = Packet::parse(&v4(6, 0, &ports)).unwrap().flow().hash(7);
            buckets[(hash % 256) as usize] += 1;
        }
        assert!(buckets.iter().all(|n| (50..150).contains(n)), "{buckets:?}");
    }

    proptest! {
        #[test]
        fn any_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 3..8u8, len in 0..220u16) {
            if let [first, _, l4a, l4b, l6a, l6b, ..] = &mut bytes[..] {
                *first = version << 4 | *first & 0xf;
                [*l4a, *l4b] = len.to_be_bytes();
                [*l6a, *l6b] = len.saturating_sub(40).to_be_bytes();
            }
            if let Some(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.bytes().len() <= bytes.len());
                prop_assert_eq!(packet.header_len() + packet.payload().len(), packet.bytes().len());
                prop_assert_eq!(packet.source().is_ipv6(), packet.is_v6());
                prop_assert_eq!(packet.destination().is_ipv6(), packet.is_v6());
                packet.flow().hash(0);
            }
        }
    }
}
