//! ICMP and ICMPv6 errors, forged by a raw socket.

use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// An error about a UDP datagram from `from` to `to`.
#[derive(Clone, Copy, Debug)]
pub struct Forged<'a> {
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// The first bytes of the datagram's payload.
    pub payload: &'a [u8],
    pub icmp_type: u8,
    pub code: u8,
    /// The second word of the ICMP header: the MTU or the pointer.
    pub info: u32,
}

/// Sends forged ICMP errors; needs `CAP_NET_RAW`.
pub struct Forger {
    socket: Socket,
    v6: bool,
}

impl Forger {
    pub fn new(v6: bool) -> Self {
        let (domain, protocol) = if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        Self { socket: Socket::new(domain, Type::RAW, Some(protocol)).unwrap(), v6 }
    }

    /// Sends the message to the host that has supposedly sent the datagram.
    pub fn send(&self, forged: &Forged<'_>) {
        let mut message = vec![forged.icmp_type, forged.code, 0, 0];
        message.extend(forged.info.to_be_bytes());
        message.extend(quoted(forged));
        if !self.v6 {
            // The kernel computes the checksum of ICMPv6 only.
            let sum = checksum(&message).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
        }
        self.socket.send_to(&message, &SocketAddr::new(forged.from.ip(), 0).into()).unwrap();
    }
}

/// The datagram's IP and UDP headers and its first bytes. It claims to be of 1,500 bytes, whatever follows.
fn quoted(forged: &Forged<'_>) -> Vec<u8> {
    let mut packet = match (forged.from.ip(), forged.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header =
                [&[0x45, 0, 5, 220, 0, 0, 0x40, 0, 64, 17, 0, 0][..], &from.octets(), &to.octets()].concat();
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            [&[0x60, 0, 0, 0, 5, 180, 17, 64][..], &from.octets(), &to.octets()].concat()
        }
        _ => panic!("addresses of two families"),
    };
    packet.extend(forged.from.port().to_be_bytes());
    packet.extend(forged.to.port().to_be_bytes());
    packet.extend([5, 180, 0, 0]);
    packet.extend(forged.payload);
    packet
}

/// RFC 1071, of an even number of bytes or with a zero behind them.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|b| u32::from(b[0]) << 8 | u32::from(b.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
