//! What the local host is told about packets that cannot go (RFC 792, RFC 4443).

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    checksum::Sum,
    header::{Packet, protocol},
};

/// Bounds how many messages are sent: 100 a second, and 20 at once (RFC 1812, section 4.3.2.8; RFC 4443, section 2.4 (f)).
#[derive(Clone, Copy, Debug, Default)]
pub struct Limit {
    /// When as many as may be sent at once may be.
    full_at: Option<Instant>,
}

/// That no peer has the destination: host unreachable (type 3, code 1), for IPv6 address unreachable (type 1, code 3), as
/// the kernel's WireGuard says (`wg_xmit`).
///
/// `packet` is the IP packet, and what is returned is one for the TUN device. It seems to come from where the packet was to
/// go: any address of the host itself would be a martian there. `None` for what is not to be answered: ICMP errors, fragments
/// but the first, multicast, broadcast, what has no one to answer to (RFC 1122, section 3.2.2; RFC 4443, section 2.4 (e)),
/// and what is no IP packet.
pub fn unreachable(packet: &[u8]) -> Option<Vec<u8>> {
    let packet = answerable(packet)?;
    let (kind, code) = if packet.is_v6() { (1, 3) } else { (3, 1) };
    Some(message(packet, kind, code, 0))
}

/// That only packets of `mtu` bytes can go: fragmentation needed (type 3, code 4; RFC 1191), for IPv6 packet too big (type 2;
/// RFC 8201). Otherwise like [`unreachable()`].
///
/// An IPv4 packet that may be fragmented (without DF) is answered, too: nothing here fragments, and the host does once it
/// knows. An `mtu` that no host would heed is raised to 68 or 1,280.
pub fn too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let packet = answerable(packet)?;
    let (kind, code, least) = if packet.is_v6() { (2, 0, 1280) } else { (3, 4, 68) };
    Some(message(packet, kind, code, mtu.max(least)))
}

impl Limit {
    /// Whether one more may be sent now; it counts as sent.
    pub fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now)) + Duration::from_millis(10);
        let allowed = full_at.saturating_duration_since(now) <= Duration::from_millis(200);
        if allowed {
            self.full_at = Some(full_at);
        }
        allowed
    }
}

fn answerable(bytes: &[u8]) -> Option<Packet<'_>> {
    let packet = Packet::parse(bytes)?;
    let unicast = match (packet.source(), packet.destination()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            // 240.0.0.0/4 includes the broadcast address.
            let reserved = source.octets()[0] >= 240 || destination.octets()[0] >= 240;
            let nobody = source.octets()[0] == 0 || source.is_loopback() || source.is_multicast();
            !reserved && !nobody && !destination.is_multicast()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let nobody = source.is_unspecified() || source.is_loopback() || source.is_multicast();
            !nobody && !destination.is_multicast()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    };
    (unicast && is_first(&packet) && !is_error(&packet)).then_some(packet)
}

/// Whether it is no fragment, or the first.
fn is_first(packet: &Packet<'_>) -> bool {
    // The word that has the offset, and its bits.
    let (at, offset) = if packet.is_v6() { (packet.header_len() - 6, 0xfff8) } else { (6, 0x1fff) };
    let word = packet.bytes().get(at..).and_then(|bytes| bytes.first_chunk());
    !packet.is_fragment() || word.is_some_and(|word| u16::from_be_bytes(*word) & offset == 0)
}

/// Whether it is an ICMP error, or may be one.
fn is_error(packet: &Packet<'_>) -> bool {
    let kind = packet.payload().first();
    match (packet.is_v6(), packet.protocol()) {
        // Unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792).
        (false, protocol::ICMP) => kind.is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12)),
        // Errors are below 128 (RFC 4443, section 2.1); 137 is a redirect.
        (true, protocol::ICMPV6) => kind.is_none_or(|kind| *kind < 128 || *kind == 137),
        _ => false,
    }
}

/// The IP packet with this message about another; it quotes as much of it as has room in what every host takes, 576 or 1,280
/// bytes.
fn message(about: Packet<'_>, kind: u8, code: u8, mtu: u16) -> Vec<u8> {
    let (addresses, header_len, largest) = if about.is_v6() {
        (about.addresses().split_at(16), 40, 1280)
    } else {
        (about.addresses().split_at(4), 20, 576)
    };
    let (source, destination) = addresses;
    let quoted = about.bytes().len().min(largest - header_len - 8);
    let icmp_len = (8 + quoted) as u16;

    let mut message = Vec::with_capacity(header_len + usize::from(icmp_len));
    if about.is_v6() {
        message.extend([0x60, 0, 0, 0]);
        message.extend(icmp_len.to_be_bytes());
        message.extend([protocol::ICMPV6, 64]);
    } else {
        // Internetwork control (RFC 1812, section 4.3.2.5); not to be fragmented.
        message.extend([0x45, 0xc0]);
        message.extend((20 + icmp_len).to_be_bytes());
        message.extend([0, 0, 0x40, 0, 64, protocol::ICMP, 0, 0]);
    }
    message.extend(destination);
    message.extend(source);
    message.extend([kind, code, 0, 0, 0, 0]);
    message.extend(mtu.to_be_bytes());
    message.extend(&about.bytes()[..quoted]);

    let (header, icmp) = message.split_at_mut(header_len);
    let sum = if about.is_v6() {
        Sum::pseudo_header(&header[8..], protocol::ICMPV6, icmp_len)
    } else {
        let sum = Sum::default().bytes(header).checksum();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        Sum::default()
    };
    let sum = sum.bytes(icmp).checksum();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 7, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 192, 0, 2, 9];
        packet[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet.extend(payload);
        packet
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        (packet[0], packet[6], packet[7]) = (0x60, next, 64);
        packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        (packet[8], packet[23], packet[24], packet[39]) = (0xfd, 1, 0x20, 9);
        packet.extend(payload);
        packet
    }

    fn with(mut packet: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        packet
    }

    /// What a host checks before it believes a message; and its type, code, MTU and quote.
    fn check(about: &[u8], message: &[u8]) -> (u8, u8, u16, Vec<u8>) {
        let (about, packet) = (Packet::parse(about).unwrap(), Packet::parse(message).unwrap());
        assert_eq!((packet.source(), packet.destination()), (about.destination(), about.source()));
        let icmp = packet.payload();
        let sum = if packet.is_v6() {
            assert_eq!((packet.protocol(), packet.header_len()), (protocol::ICMPV6, 40));
            Sum::pseudo_header(packet.addresses(), protocol::ICMPV6, icmp.len() as u16)
        } else {
            assert_eq!((packet.protocol(), packet.header_len()), (protocol::ICMP, 20));
            assert_eq!(Sum::default().bytes(&packet.bytes()[..20]).folded(), 0xffff);
            Sum::default()
        };
        assert_eq!((sum.bytes(icmp).folded(), packet.bytes().len()), (0xffff, message.len()));
        assert!(message.len() <= if packet.is_v6() { 1280 } else { 576 });
        assert!(about.bytes().starts_with(&icmp[8..]));
        (icmp[0], icmp[1], u16::from_be_bytes([icmp[6], icmp[7]]), icmp[8..].to_vec())
    }

    #[test]
    fn says_what_the_kernel_says() {
        for len in [0, 8, 100, 1400] {
            let (four, six) = (v4(protocol::UDP, 0, &vec![5; len]), v6(protocol::UDP, &vec![5; len]));
            let quoted = four[..four.len().min(548)].to_vec();
            assert_eq!(check(&four, &unreachable(&four).unwrap()), (3, 1, 0, quoted.clone()));
            assert_eq!(check(&four, &too_big(&four, 1300).unwrap()), (3, 4, 1300, quoted.clone()));
            assert_eq!(check(&four, &too_big(&four, 0).unwrap()), (3, 4, 68, quoted));
            let quoted = six[..six.len().min(1232)].to_vec();
            assert_eq!(check(&six, &unreachable(&six).unwrap()), (1, 3, 0, quoted.clone()));
            assert_eq!(check(&six, &too_big(&six, 1300).unwrap()), (2, 0, 1300, quoted.clone()));
            assert_eq!(check(&six, &too_big(&six, 1000).unwrap()), (2, 0, 1280, quoted));
        }
    }

    #[test]
    fn padding_is_not_quoted() {
        let about = v4(protocol::UDP, 0, &[1; 8]);
        let padded = [&about[..], &[0; 20]].concat();
        assert_eq!(check(&about, &unreachable(&padded).unwrap()).3, about);
    }

    #[test]
    fn answers_requests_and_first_fragments() {
        for about in [
            v4(protocol::ICMP, 0, &[8, 0, 0, 0]),
            v4(protocol::UDP, 0x2000, &[0; 8]),
            v6(protocol::ICMPV6, &[128, 0, 0, 0]),
            v6(44, &[17, 0, 0, 1, 0, 0, 0, 1, 0, 0]),
        ] {
            check(&about, &unreachable(&about).unwrap());
        }
    }

    #[test]
    fn is_silent_where_it_should_be() {
        let udp = || v4(protocol::UDP, 0, &[0; 8]);
        let mut silent = vec![
            v4(protocol::ICMP, 0, &[]),
            v4(protocol::UDP, 0x0001, &[0; 8]),
            v4(protocol::UDP, 0x2001, &[0; 8]),
            with(udp(), 16, &[224, 0, 0, 251]),
            with(udp(), 16, &[255; 4]),
            with(udp(), 12, &[0; 4]),
            with(udp(), 12, &[127, 0, 0, 1]),
            with(udp(), 12, &[239, 1, 1, 1]),
            with(udp(), 12, &[255; 4]),
            v6(protocol::ICMPV6, &[]),
            v6(protocol::ICMPV6, &[137, 0]),
            v6(44, &[17, 0, 0, 8, 0, 0, 0, 1, 0, 0]),
            v6(44, &[17, 0, 1, 1, 0, 0, 0, 1, 0, 0]),
            v6(44, &[protocol::ICMPV6, 0, 0, 1, 0, 0, 0, 1, 3, 0]),
            v6(60, &[protocol::ICMPV6, 0, 0, 0, 0, 0, 0, 0, 1, 3]),
            with(v6(protocol::UDP, &[0; 8]), 24, &[0xff, 2]),
            with(v6(protocol::UDP, &[0; 8]), 8, &[0xff, 2]),
            with(v6(protocol::UDP, &[0; 8]), 8, &[0; 16]),
            vec![],
            vec![0x45; 19],
            vec![0x75; 60],
        ];
        silent.extend([3, 4, 5, 11, 12].map(|kind| v4(protocol::ICMP, 0, &[kind, 0])));
        silent.extend([1, 2, 3, 4, 127].map(|kind| v6(protocol::ICMPV6, &[kind, 0])));
        // Nor is there an answer to an answer.
        silent.extend([unreachable(&udp()).unwrap(), too_big(&v6(protocol::UDP, &[0; 8]), 1300).unwrap()]);
        for about in silent {
            assert_eq!((unreachable(&about), too_big(&about, 1300)), (None, None), "{about:02x?}");
        }
    }

    #[test]
    fn twenty_at_once_and_a_hundred_a_second() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        let taken = |limit: &mut Limit, now| (0..100).filter(|_| limit.take(now)).count();
        assert_eq!(taken(&mut limit, start), 20);
        let later = (1..=1000).map(|ms| taken(&mut limit, start + Duration::from_millis(ms))).sum::<usize>();
        assert_eq!(later, 100);
        assert_eq!(taken(&mut limit, start + Duration::from_secs(60)), 20);
        assert_eq!(taken(&mut limit, start), 0);
    }

    proptest! {
        #[test]
        fn any_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 3..8u8, next in any::<u8>()) {
            if let [first, ..] = &mut bytes[..] {
                *first = version << 4 | 5;
            }
            let len = bytes.len() as u16;
            if let (6, [_, _, _, _, a, b, kind, ..]) = (version, &mut bytes[..]) {
                [*a, *b] = len.saturating_sub(40).to_be_bytes();
                *kind = [44, 60, protocol::ICMPV6, next][usize::from(next) % 4];
            } else if let (4, [_, _, a, b, ..]) = (version, &mut bytes[..]) {
                [*a, *b] = len.to_be_bytes();
            }
            for message in [unreachable(&bytes), too_big(&bytes, 1300)].into_iter().flatten() {
                check(&bytes, &message);
            }
        }
    }
}
