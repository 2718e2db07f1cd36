//! Packets of one flow, joined into one for the TUN device (receive offload).

use std::{
    io::{self, IoSlice},
    mem,
};

use arrayvec::ArrayVec;

use super::{
    checksum::Sum,
    header::{Flow, Packet, protocol},
    virtio,
};

/// Bytes of packets that are held at the most.
const ARENA: usize = 256 * 1024;
/// Packets that are held at the most, those that were joined counted once.
const MAX_ITEMS: usize = 256;
/// Items that can still grow.
const MAX_OPEN: usize = 16;
/// `UDP_GRO_CNT_MAX` and the smallest `UDP_MAX_SEGMENTS` of any kernel.
const MAX_SEGMENTS: usize = 64;
/// Of one item, in bytes: the length field of IPv4.
const MAX_ITEM: usize = 65_535;
/// Pieces of the arena that an item consists of: one for each time that packets of another flow came between.
const MAX_PIECES: usize = 32;
/// Bytes that a header in front of what is joined can have: 40 of IPv6 and 60 of TCP.
const MAX_HEADERS: usize = 100;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;

/// What the device takes joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// Nothing: it knows of no [`virtio::Header`] either, and gets packets alone.
    None,
    /// TCP.
    Tcp,
    /// TCP, and UDP too (`TUN_F_USO4`, Linux 6.2).
    TcpAndUdp,
}

/// What became of the packets.
#[derive(Debug, Default)]
pub struct Flushed {
    /// Packets that the device took, each of those that were joined counted.
    pub packets: usize,
    /// Writes that it took them by.
    pub writes: usize,
    /// Packets that it refused. They are gone.
    pub lost: usize,
    /// Why it refused the first of them.
    pub error: Option<io::Error>,
}

/// Gathers packets and joins what one segment of TCP, or one train of UDP, could have been: what comes out, segmented
/// again, is what went in, but for identifications that mean nothing (RFC 6864). No flow's order changes.
///
/// Nobody checks the packets' TCP and UDP checksums here: WireGuard has authenticated every byte since the peer, and
/// the kernel's own WireGuard too marks what it decrypted as needing no check (`CHECKSUM_UNNECESSARY`,
/// `wg_packet_consume_data_done`) before it joins it. A packet that is written alone keeps the sum that it came with;
/// Linux' TUN device makes nothing of [`virtio::DATA_VALID`] so far (`tun_get_user`), and so has it checked.
///
/// It allocates when it is made, and never again.
#[derive(Debug)]
pub struct Coalescer {
    offload: Offload,
    arena: Box<[u8]>,
    /// Where the arena is free from; at least [`MAX_HEADERS`].
    end: usize,
    /// Bytes of headers that the next packet is expected to have. It is decrypted to so many bytes before `end`, over
    /// what is there, which is put back afterwards: its payload then lies behind the one before it without being moved.
    overlap: usize,
    /// What was at the end when space was last lent.
    covered: [u8; MAX_HEADERS],
    /// Bytes lent, from `end - overlap` on; 0: none, and `covered` is where it belongs.
    lent: usize,
    items: Box<[Item]>,
    /// Items in use. They are in the order of their first packets.
    used: usize,
    /// Those that can grow, at the most one of a flow.
    open: ArrayVec<(Flow, usize), MAX_OPEN>,
}

/// One write.
#[derive(Debug, Clone)]
struct Item {
    /// Room for the virtio header, then the first bytes of the first packet: at least those of its headers.
    head: [u8; virtio::LEN + MAX_HEADERS],
    /// Bytes in use of it.
    head_len: usize,
    /// The rest: where in the arena, and how long.
    pieces: ArrayVec<(usize, usize), MAX_PIECES>,
    /// Packets in it.
    count: usize,
    /// Their headers, which are all alike.
    headers: Headers,
    /// Bytes of payload in the first packet, and so in every one but the last.
    size: usize,
    /// Bytes of payload in all of them.
    payload: usize,
    /// FIN and PSH of the last one.
    last_flags: u8,
    /// What the identification grows by from one packet to the next: 0 or 1. Known with the second.
    id_step: u16,
}

/// Where the headers of a packet end that can be joined with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Headers {
    is_v6: bool,
    is_tcp: bool,
    /// Bytes of both.
    len: usize,
}

impl Headers {
    /// Bytes of the IP header.
    fn transport(self) -> usize {
        if self.is_v6 { 40 } else { 20 }
    }
}

impl Coalescer {
    /// For a device of this kind.
    pub fn new(offload: Offload) -> Self {
        let item = Item {
            head: [0; _],
            head_len: 0,
            pieces: ArrayVec::new(),
            count: 0,
            headers: Headers::default(),
            size: 0,
            payload: 0,
            last_flags: 0,
            id_step: 0,
        };
        Self {
            offload,
            // One at the end too, for a payload that has to be moved up.
            arena: vec![0; MAX_HEADERS + ARENA + MAX_HEADERS].into(),
            end: MAX_HEADERS,
            overlap: 0,
            covered: [0; _],
            lent: 0,
            items: vec![item; MAX_ITEMS].into(),
            used: 0,
            open: ArrayVec::new(),
        }
    }

    /// Whether there is nothing to flush.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Where the next packet can be written, with all that is behind it; its content is anything. What was lent before
    /// and not [pushed](Self::push) is given up. `None`: flush first; after that up to 65,535 bytes are there for
    /// certain.
    #[inline]
    pub fn space(&mut self, len: usize) -> Option<&mut [u8]> {
        self.uncover();
        if self.used == self.items.len() {
            return None;
        }
        let start = self.end - self.overlap;
        let space = start..start.checked_add(len)?;
        if space.end > self.arena.len() - MAX_HEADERS {
            return None;
        }
        self.covered.copy_from_slice(&self.arena[self.end - MAX_HEADERS..self.end]);
        self.lent = len;
        Some(&mut self.arena[space])
    }

    /// Takes the IP packet of `len` bytes that was written to the start of the [space](Self::space) lent last.
    #[inline]
    pub fn push(&mut self, len: usize) {
        let len = len.min(self.lent);
        if len == 0 {
            return self.uncover();
        }
        let start = self.end - self.overlap;
        let bytes = &self.arena[start..start + len];
        let packet = if self.offload == Offload::None { None } else { Packet::parse(bytes) };
        let Some(packet) = packet else { return self.begin(start, len, None) };
        let (len, flow) = (packet.bytes().len(), packet.flow());
        let open = self.open.iter().position(|(other, _)| *other == flow);
        let Some(segment) = Segment::of(&packet, self.offload) else {
            if packet.is_fragment() {
                // It has no ports, and may belong to any.
                self.open.clear();
            } else if let Some(open) = open {
                self.open.swap_remove(open);
            }
            return self.begin(start, len, None);
        };
        let Some(open) = open else { return self.begin(start, len, Some((flow, segment))) };

        let item = &mut self.items[self.open[open].1];
        let payload = start + segment.headers.len;
        // The bytes before `end` are to be put back.
        let free = payload.max(self.end);
        if !item.join(&segment, &bytes[..segment.headers.len], free) {
            self.open.swap_remove(open);
            return self.begin(start, len, Some((flow, segment)));
        }
        if segment.is_last || segment.payload < item.size || item.count == MAX_SEGMENTS {
            self.open.swap_remove(open);
        }
        if payload != free {
            self.arena.copy_within(payload..start + len, free);
        }
        self.uncover();
        self.end = free + segment.payload;
        self.overlap = segment.headers.len;
    }

    /// Writes what is held, in the order in which the items began, each by one call with all of its slices. An error
    /// ends neither this nor what is to be written: the packets of that item are lost.
    pub fn flush(&mut self, mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> Flushed {
        self.uncover();
        let mut flushed = Flushed::default();
        for item in &mut self.items[..self.used] {
            let mut slices = ArrayVec::<_, { 1 + MAX_PIECES }>::new();
            if self.offload != Offload::None {
                item.finish();
                slices.push(IoSlice::new(&item.head[..virtio::LEN + item.head_len]));
            }
            slices.extend(item.pieces.iter().map(|&(start, len)| IoSlice::new(&self.arena[start..start + len])));
            match write(&slices) {
                Ok(_) => {
                    flushed.packets += item.count;
                    flushed.writes += 1;
                }
                Err(error) => {
                    flushed.lost += item.count;
                    flushed.error.get_or_insert(error);
                }
            }
        }
        self.open.clear();
        self.used = 0;
        self.end = MAX_HEADERS;
        flushed
    }

    /// Makes an item of the packet at `start`; one that others can join when it is known for a segment of a flow.
    fn begin(&mut self, start: usize, len: usize, segment: Option<(Flow, Segment)>) {
        // `space` has seen that there is one.
        let item = &mut self.items[self.used];
        let headers = segment.as_ref().map_or(0, |(_, segment)| segment.headers.len);
        // What lies over others' bytes goes into the head too, and so nothing has to be moved.
        item.head_len = headers.max(self.overlap.min(len));
        item.head[virtio::LEN..][..item.head_len].copy_from_slice(&self.arena[start..start + item.head_len]);
        item.pieces.clear();
        if len > item.head_len {
            item.pieces.push((start + item.head_len, len - item.head_len));
        }
        item.count = 1;
        if let Some((flow, segment)) = segment {
            item.headers = segment.headers;
            item.size = segment.payload;
            item.payload = segment.payload;
            item.last_flags = 0;
            if !segment.is_last {
                if self.open.is_full() {
                    self.open.remove(0);
                }
                self.open.push((flow, self.used));
            }
        }
        self.uncover();
        self.used += 1;
        self.end = self.end.max(start + len);
        self.overlap = if headers == 0 { self.overlap } else { headers };
    }

    /// Puts back what lent space was over.
    fn uncover(&mut self) {
        if mem::take(&mut self.lent) != 0 {
            self.arena[self.end - MAX_HEADERS..self.end].copy_from_slice(&self.covered);
        }
    }
}

/// What a packet must be to join others, or to be joined: what Linux' own GRO takes (`tcp_gro_receive`,
/// `udp_gro_receive`, `inet_gro_receive`), but for CWR, which says something of one packet.
#[derive(Debug)]
struct Segment {
    headers: Headers,
    /// Bytes; not 0.
    payload: usize,
    /// FIN and PSH.
    last_flags: u8,
    /// Whether nothing may follow.
    is_last: bool,
}

impl Segment {
    #[inline]
    fn of(packet: &Packet<'_>, offload: Offload) -> Option<Self> {
        let is_tcp = match packet.protocol() {
            protocol::TCP => true,
            protocol::UDP if offload == Offload::TcpAndUdp => false,
            _ => return None,
        };
        let (is_v6, transport) = (packet.is_v6(), packet.payload());
        let mut headers = Headers { is_v6, is_tcp, len: 0 };
        // Neither options nor extension headers.
        if packet.is_fragment() || packet.header_len() != headers.transport() {
            return None;
        }
        // What is joined gets a new one, which would hide that this was wrong.
        if !is_v6 && Sum::default().bytes(packet.bytes().first_chunk::<20>()?).checksum() != 0 {
            return None;
        }
        let last_flags = if is_tcp {
            let header = transport.first_chunk::<20>()?;
            let len = usize::from(header[12] >> 4) * 4;
            if len < 20 || header[13] & !(FIN | PSH | ECE) != ACK {
                return None;
            }
            headers.len = headers.transport() + len;
            header[13] & (FIN | PSH)
        } else {
            let header = transport.first_chunk::<8>()?;
            let is_whole = usize::from(u16::from_be_bytes([header[4], header[5]])) == transport.len();
            if !is_whole || header[6..] == [0, 0] {
                return None;
            }
            headers.len = headers.transport() + 8;
            0
        };
        let payload = packet.bytes().len().checked_sub(headers.len).filter(|len| *len != 0)?;
        Some(Self { headers, payload, last_flags, is_last: last_flags != 0 })
    }
}

impl Item {
    /// Takes this segment of the same flow, whose payload is, or will be, at `at` in the arena. `false`: it cannot.
    #[inline]
    fn join(&mut self, segment: &Segment, header: &[u8], at: usize) -> bool {
        let payload = self.payload + segment.payload;
        let fits = segment.headers == self.headers
            && segment.payload <= self.size
            && self.headers.len + payload <= MAX_ITEM
            && self.is_followed_by(header);
        if !fits {
            return false;
        }
        match self.pieces.last_mut() {
            Some((start, len)) if *start + *len == at => *len += segment.payload,
            _ => match self.pieces.try_push((at, segment.payload)) {
                Ok(()) => {}
                Err(_) => return false,
            },
        }
        self.count += 1;
        self.payload = payload;
        self.last_flags = segment.last_flags;
        true
    }

    /// Whether these headers, of the same kind and flow, are what segmentation would make the next ones.
    #[inline]
    fn is_followed_by(&mut self, header: &[u8]) -> bool {
        let (ip, transport) = self.head[virtio::LEN..][..self.headers.len].split_at(self.headers.transport());
        let (next_ip, next) = header.split_at(self.headers.transport());
        if self.headers.is_tcp {
            let sequence = |header: &[u8]| u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let follows = sequence(next) == sequence(transport).wrapping_add(self.payload as u32)
                && next[8..13] == transport[8..13]
                && (next[13] ^ transport[13]) & !(FIN | PSH) == 0
                && next[14..16] == transport[14..16]
                && next[18..] == transport[18..];
            if !follows {
                return false;
            }
        }
        if self.headers.is_v6 {
            return next_ip[..4] == ip[..4] && next_ip[6..8] == ip[6..8];
        }
        let id = |header: &[u8]| u16::from_be_bytes([header[4], header[5]]);
        let grown = id(next_ip).wrapping_sub(id(ip));
        if self.count == 1 {
            // One that stays as it is means something unless DF is set (RFC 6864, section 4.1).
            let may_stay = ip[6] & 0x40 != 0;
            if grown != 1 && !(grown == 0 && may_stay) {
                return false;
            }
            self.id_step = grown;
        }
        usize::from(grown) == self.count * usize::from(self.id_step)
            && next_ip[..2] == ip[..2]
            && next_ip[6..10] == ip[6..10]
    }

    /// Makes the headers those of all of it.
    fn finish(&mut self) {
        let (device, head) = self.head[..virtio::LEN + self.head_len].split_at_mut(virtio::LEN);
        let mut header = virtio::Header { flags: virtio::DATA_VALID, ..virtio::Header::default() };
        if self.count > 1 {
            let Headers { is_v6, is_tcp, len } = self.headers;
            let (ip, transport) = head.split_at_mut(self.headers.transport());
            // No more than `MAX_ITEM`.
            let transport_len = (len - ip.len() + self.payload) as u16;
            let addresses = if is_v6 {
                put(ip, 4, transport_len);
                &ip[8..]
            } else {
                put(ip, 2, transport_len + 20);
                put(ip, 10, 0);
                let sum = Sum::default().bytes(ip).checksum();
                put(ip, 10, sum);
                &ip[12..]
            };
            let protocol = if is_tcp { protocol::TCP } else { protocol::UDP };
            let sum = Sum::pseudo_header(addresses, protocol, transport_len).folded();
            let (gso_type, csum_offset) = if is_tcp {
                transport[13] |= self.last_flags;
                (if is_v6 { virtio::GSO_TCPV6 } else { virtio::GSO_TCPV4 }, 16)
            } else {
                put(transport, 4, transport_len);
                (virtio::GSO_UDP_L4, 6)
            };
            put(transport, csum_offset, sum);
            header = virtio::Header {
                flags: virtio::NEEDS_CSUM,
                gso_type,
                hdr_len: len as u16,
                gso_size: self.size as u16,
                csum_start: ip.len() as u16,
                csum_offset: csum_offset as u16,
            };
        }
        device.copy_from_slice(&header.to_bytes());
    }
}

fn put(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use proptest::{collection::vec, prelude::*};

    use super::{
        super::{
            checksum::tests::best_ns,
            segment::{
                Segments,
                tests::{all, datagram, gso, ip, seal, tcp_segment},
            },
        },
        *,
    };

    const CWR: u8 = 0x80;

    /// Writes it where it asks for, with garbage behind it as decryption leaves it. `false`: it has no room.
    fn put_in(coalescer: &mut Coalescer, packet: &[u8]) -> bool {
        let Some(space) = coalescer.space(packet.len() + 16) else { return false };
        space[..packet.len()].copy_from_slice(packet);
        space[packet.len()..].fill(0xee);
        coalescer.push(packet.len());
        true
    }

    fn written(coalescer: &mut Coalescer) -> Vec<Vec<u8>> {
        let mut writes = Vec::new();
        let flushed = coalescer.flush(|slices| {
            writes.push(slices.iter().flat_map(|slice| slice.iter()).copied().collect::<Vec<u8>>());
            Ok(writes.last().unwrap().len())
        });
        assert_eq!((flushed.writes, flushed.lost), (writes.len(), 0));
        assert!(coalescer.is_empty());
        writes
    }

    fn joined<'a>(offload: Offload, packets: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<(virtio::Header, Vec<u8>)> {
        let mut coalescer = Coalescer::new(offload);
        for packet in packets {
            assert!(put_in(&mut coalescer, packet));
        }
        parse(written(&mut coalescer))
    }

    fn parse(writes: Vec<Vec<u8>>) -> Vec<(virtio::Header, Vec<u8>)> {
        let parse = |write: Vec<u8>| {
            let (header, packet) = write.split_first_chunk().unwrap();
            (virtio::Header::parse(header), packet.to_vec())
        };
        writes.into_iter().map(parse).collect()
    }

    /// What the kernel makes of what it is given.
    fn taken_apart(writes: &[(virtio::Header, Vec<u8>)]) -> Vec<Vec<u8>> {
        writes.iter().flat_map(|(header, packet)| all(header, packet)).collect()
    }

    fn tcp(ports: [u16; 2], id: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        seal(ip(false, id, protocol::TCP, &tcp_segment(ports, sequence, ACK, &[], payload)))
    }

    fn udp(ports: [u16; 2], id: u16, payload: &[u8]) -> Vec<u8> {
        seal(ip(false, id, protocol::UDP, &datagram(ports, payload)))
    }

    fn counts(writes: &[(virtio::Header, Vec<u8>)]) -> Vec<usize> {
        writes.iter().map(|(header, packet)| Segments::new(header, packet).unwrap().count()).collect()
    }

    #[test]
    fn what_was_one_is_one_again() {
        for (is_v6, is_tcp) in [(false, true), (true, true), (false, false), (true, false)] {
            let payload: Vec<u8> = (0..12_345).map(|i| (i % 251) as u8).collect();
            let packet = if is_tcp {
                let options = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
                let flags = ACK | PSH | FIN | ECE;
                ip(is_v6, 7, protocol::TCP, &tcp_segment([1, 2], 0xffff_f000, flags, &options, &payload))
            } else {
                ip(is_v6, 7, protocol::UDP, &datagram([1, 2], &payload))
            };
            let segments = all(&gso(&packet, 1_000), &packet);
            let writes = joined(Offload::TcpAndUdp, &segments);
            let [(header, again)] = &writes[..] else { panic!("{} writes", writes.len()) };
            let transport = Packet::parse(&packet).unwrap().header_len();
            let at = transport + if is_tcp { 16 } else { 6 };
            let mut expected = packet.clone();
            let protocol = if is_tcp { protocol::TCP } else { protocol::UDP };
            let addresses = Packet::parse(&packet).unwrap().addresses();
            let len = (packet.len() - transport) as u16;
            put(&mut expected, at, Sum::pseudo_header(addresses, protocol, len).folded());
            assert_eq!(again, &expected);
            assert_eq!(
                *header,
                virtio::Header {
                    hdr_len: (packet.len() - payload.len()) as u16,
                    csum_start: transport as u16,
                    csum_offset: (at - transport) as u16,
                    ..gso(&packet, 1_000)
                }
            );
            assert_eq!(taken_apart(&writes), segments);
        }
    }

    #[test]
    fn flows_that_take_turns_are_joined_each() {
        let mut packets = Vec::new();
        for i in 0..20u16 {
            for flow in 0..4 {
                packets.push(tcp([flow, 9], i, 100 * u32::from(i), &[flow as u8; 100]));
            }
            packets.push(udp([1, 9], i, &[i as u8; 50]));
        }
        let writes = joined(Offload::TcpAndUdp, &packets);
        assert_eq!(counts(&writes), [20; 5]);
        let of = |all: &[Vec<u8>], flow| -> Vec<_> {
            all.iter().filter(|packet| Packet::parse(packet).unwrap().flow() == flow).cloned().collect()
        };
        let apart = taken_apart(&writes);
        for packet in &packets[..5] {
            let flow = Packet::parse(packet).unwrap().flow();
            assert_eq!(of(&apart, flow), of(&packets, flow));
        }
    }

    #[test]
    fn what_differs_is_not_joined() {
        let next = |change: &dyn Fn(&mut Vec<u8>)| {
            let first = tcp([1, 2], 5, 0, &[1; 100]);
            let mut second = tcp([1, 2], 6, 100, &[2; 100]);
            change(&mut second);
            put(&mut second, 10, 0);
            let sum = Sum::default().bytes(&second[..20]).checksum();
            put(&mut second, 10, sum);
            let second = seal(second);
            let writes = joined(Offload::Tcp, [&first, &second, &tcp([1, 2], 7, 200, &[3; 100])]);
            assert_eq!(taken_apart(&writes)[..2], [first, second]);
            counts(&writes)
        };
        assert_eq!(next(&|_| {}), [3]);
        // DSCP, ECN, TTL, identification, a fragment's offset; sequence, acknowledgement and their window; urgent pointer.
        for byte in [1, 4, 8, 24, 28, 31, 34, 39] {
            assert!(next(&|packet| packet[byte] ^= 0x40).len() > 1, "byte {byte}");
        }
        assert!(next(&|packet| packet[7] = 1).len() > 1);
        assert!(next(&|packet| packet[6] = 0).len() > 1);
        assert!(next(&|packet| packet[1] ^= 1).len() > 1);
        // URG, RST, SYN, ECE, CWR, and without ACK.
        for flags in [0x30, 0x14, 0x12, ACK | ECE, ACK | CWR, 0] {
            assert_eq!(next(&|packet| packet[33] = flags), [1, 1, 1]);
        }
        // The last one may say so.
        for flags in [ACK | PSH, ACK | FIN] {
            assert_eq!(next(&|packet| packet[33] = flags), [2, 1]);
        }
        // A wrong sum of the header is the kernel's to see.
        let mut second = tcp([1, 2], 6, 100, &[2; 100]);
        second[10] ^= 1;
        assert_eq!(counts(&joined(Offload::Tcp, [&tcp([1, 2], 5, 0, &[1; 100]), &second])), [1, 1]);
    }

    #[test]
    fn sizes() {
        let sizes = |sizes: &[usize]| {
            let mut sequence = 0;
            let mut packets = Vec::new();
            for (len, id) in sizes.iter().zip(0..) {
                packets.push(tcp([1, 2], id, sequence, &vec![id as u8; *len]));
                sequence += *len as u32;
            }
            let writes = joined(Offload::Tcp, &packets);
            assert_eq!(taken_apart(&writes), packets);
            counts(&writes)
        };
        assert_eq!(sizes(&[100, 100, 99, 99]), [3, 1]);
        assert_eq!(sizes(&[100, 101, 101]), [1, 2]);
        // Acknowledgements without data stay alone, and where they were.
        assert_eq!(sizes(&[100, 0, 100, 100, 0, 0]), [1, 1, 2, 1, 1]);
        assert_eq!(sizes(&[100; 130]), [64, 64, 2]);
        assert_eq!(sizes(&[9_000; 9]), [7, 2]);
        assert_eq!(sizes(&[65_000, 494, 1]), [2, 1]);
        assert_eq!(sizes(&[65_000, 496]), [1, 1]);
    }

    #[test]
    fn identifications() {
        let ids = |fragment_flags: u8, ids: [u16; 3]| {
            let packets = ids.map(|id| {
                let mut packet = udp([1, 2], id, &[1; 10]);
                packet[6] = fragment_flags;
                put(&mut packet, 10, 0);
                let sum = Sum::default().bytes(&packet[..20]).checksum();
                put(&mut packet, 10, sum);
                packet
            });
            counts(&joined(Offload::TcpAndUdp, &packets))
        };
        assert_eq!(ids(0x40, [0xffff, 0, 1]), [3]);
        assert_eq!(ids(0x40, [0, 0, 0]), [3]);
        assert_eq!(ids(0x40, [5, 5, 6]), [2, 1]);
        assert_eq!(ids(0x40, [5, 6, 6]), [2, 1]);
        assert_eq!(ids(0x40, [5, 7, 9]), [1, 1, 1]);
        assert_eq!(ids(0, [5, 6, 7]), [3]);
        assert_eq!(ids(0, [5, 5, 5]), [1, 1, 1]);
    }

    #[test]
    fn datagrams() {
        let unsummed = |mut packet: Vec<u8>| {
            put(&mut packet, 26, 0);
            packet
        };
        let packets: Vec<_> = (0..4).map(|id| udp([1, 2], id, &[id as u8; 10])).collect();
        assert_eq!(counts(&joined(Offload::TcpAndUdp, &packets)), [4]);
        assert_eq!(counts(&joined(Offload::Tcp, &packets)), [1; 4]);
        let unsummed: Vec<_> = packets.iter().cloned().map(unsummed).collect();
        assert_eq!(counts(&joined(Offload::TcpAndUdp, &unsummed)), [1; 4]);
        let empty: Vec<_> = (0..3).map(|id| udp([1, 2], id, &[])).collect();
        assert_eq!(counts(&joined(Offload::TcpAndUdp, &empty)), [1; 3]);
        let mut longer = packets.clone();
        longer[1][25] += 1;
        assert_eq!(counts(&joined(Offload::TcpAndUdp, &longer)), [1, 1, 2]);
    }

    #[test]
    fn a_fragment_ends_all_that_it_might_belong_to() {
        let mut fragment = udp([1, 2], 1, &[1; 10]);
        fragment[6] = 0x20;
        let packets = [udp([1, 2], 0, &[0; 10]), fragment, udp([1, 2], 1, &[2; 10])];
        assert_eq!(counts(&joined(Offload::TcpAndUdp, &packets)), [1, 1, 1]);
    }

    #[test]
    fn a_device_without_offloads_gets_the_packets() {
        let packets: Vec<_> = (0..5).map(|i| tcp([1, 2], i, 100 * u32::from(i), &[1; 100])).collect();
        let mut coalescer = Coalescer::new(Offload::None);
        assert!(packets.iter().all(|packet| put_in(&mut coalescer, packet)));
        assert_eq!(written(&mut coalescer), packets);
    }

    #[test]
    fn a_packet_alone_is_as_it_was() {
        let packet = tcp([1, 2], 1, 1, &[1; 100]);
        let writes = joined(Offload::Tcp, [&packet]);
        let header = virtio::Header { flags: virtio::DATA_VALID, ..virtio::Header::default() };
        assert_eq!(writes, [(header, packet)]);
    }

    #[test]
    fn padding_is_cut() {
        let packet = tcp([1, 2], 1, 1, &[1; 99]);
        let padded = [&packet[..], &[0; 13]].concat();
        assert_eq!(joined(Offload::Tcp, [&padded])[0].1, packet);
        let second = tcp([1, 2], 2, 100, &[2; 99]);
        assert_eq!(counts(&joined(Offload::Tcp, [&padded, &second])), [2]);
    }

    #[test]
    fn space_that_is_not_used_leaves_nothing_behind() {
        let packets: Vec<_> = (0..3).map(|i| tcp([1, 2], i, 100 * u32::from(i), &[i as u8; 100])).collect();
        let mut coalescer = Coalescer::new(Offload::Tcp);
        for packet in &packets {
            coalescer.space(500).unwrap().fill(0xbb);
            coalescer.space(300).unwrap().fill(0xcc);
            coalescer.push(0);
            coalescer.push(100);
            assert!(put_in(&mut coalescer, packet));
            coalescer.space(700).unwrap().fill(0xdd);
        }
        let writes = parse(written(&mut coalescer));
        assert_eq!(counts(&writes), [3]);
        assert_eq!(taken_apart(&writes), packets);
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut coalescer = Coalescer::new(Offload::Tcp);
        let tiny = udp([1, 2], 1, &[]);
        let held = (0..).take_while(|_| put_in(&mut coalescer, &tiny)).count();
        assert_eq!(held, MAX_ITEMS);
        written(&mut coalescer);
        let held = (0..).take_while(|_| put_in(&mut coalescer, &udp([1, 2], 1, &[0; 1_392]))).count();
        assert_eq!(held, ARENA / 1_420);
        written(&mut coalescer);
        assert!(coalescer.space(65_535).is_some());
        assert!(coalescer.space(usize::MAX).is_none());
    }

    #[test]
    fn an_error_costs_but_its_item() {
        let mut coalescer = Coalescer::new(Offload::Tcp);
        for (port, id) in [(1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (3, 2)] {
            assert!(put_in(&mut coalescer, &tcp([port, 9], id, 10 * u32::from(id), &[1; 10])));
        }
        let mut calls = 0;
        let flushed = coalescer.flush(|_| {
            calls += 1;
            if calls == 1 { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(0) }
        });
        assert_eq!((flushed.packets, flushed.writes, flushed.lost), (4, 2, 2));
        assert_eq!(flushed.error.unwrap().kind(), io::ErrorKind::InvalidInput);
    }

    /// Flow, bytes of payload, flags, whether the sequence number, the identification or the options are not those expected.
    fn step() -> impl Strategy<Value = (u16, usize, u8, [bool; 3])> {
        let flags = vec![ACK, ACK, ACK, ACK, ACK, ACK, ACK, ACK, ACK | PSH, ACK | FIN, 0x12, ACK | CWR];
        let len = vec![0, 1, 60, 100, 100, 100, 100, 100];
        let rarely = || prop::bool::weighted(0.03);
        let odd = [rarely(), rarely(), rarely()];
        (0..20u16, prop::sample::select(len), prop::sample::select(flags), odd)
    }

    fn offload() -> impl Strategy<Value = Offload> {
        prop::sample::select(vec![Offload::None, Offload::Tcp, Offload::TcpAndUdp])
    }

    proptest! {
        #[test]
        fn no_flow_is_reordered(steps in vec(step(), 1..200), offload in offload()) {
            let mut next = [(0u16, 0u32); 20];
            let mut packets = Vec::new();
            for (serial, (flow, len, flags, odd)) in (0u8..).zip(steps) {
                let (id, sequence) = &mut next[usize::from(flow)];
                *sequence += u32::from(odd[0]);
                *id += u16::from(odd[1]);
                let (is_v6, payload) = (flow % 3 == 0, vec![serial; len]);
                packets.push(seal(if flow % 4 == 3 {
                    ip(is_v6, *id, protocol::UDP, &datagram([flow, 1], &payload))
                } else {
                    let options = vec![1; if odd[2] { 4 } else { usize::from(flow % 3) * 8 }];
                    ip(is_v6, *id, protocol::TCP, &tcp_segment([flow, 1], *sequence, flags, &options, &payload))
                }));
                (*id, *sequence) = (*id + 1, *sequence + len as u32);
            }
            let mut coalescer = Coalescer::new(offload);
            for packet in &packets {
                prop_assert!(put_in(&mut coalescer, packet));
            }
            let writes = written(&mut coalescer);
            let apart = if offload == Offload::None { writes } else { taken_apart(&parse(writes)) };
            prop_assert_eq!(apart.len(), packets.len());
            let sorted = |mut all: Vec<Vec<u8>>| {
                // Stable: the order within a flow stays.
                all.sort_by_key(|packet| Packet::parse(packet).unwrap().flow().hash(0));
                all
            };
            prop_assert_eq!(sorted(apart), sorted(packets));
        }

        #[test]
        fn any_train_comes_back(
            is_v6: bool,
            is_tcp: bool,
            words in 0..11usize,
            len in 1..20_000usize,
            size in 400..2_000u16,
            ends in 0..4u8,
            sequence: u32,
            id: u16,
        ) {
            let payload: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let packet = if is_tcp {
                let flags = ACK | [0, PSH, FIN, PSH | FIN][usize::from(ends)];
                ip(is_v6, id, protocol::TCP, &tcp_segment([1, 2], sequence, flags, &vec![1; 4 * words], &payload))
            } else {
                ip(is_v6, id, protocol::UDP, &datagram([1, 2], &payload))
            };
            let segments = all(&gso(&packet, size), &packet);
            let writes = joined(Offload::TcpAndUdp, &segments);
            prop_assert_eq!(writes.len(), 1);
            // Only the sum is not the same: it is for the device to make.
            let view = Packet::parse(&packet).unwrap();
            let at = view.header_len() + if is_tcp { 16 } else { 6 };
            let mut again = writes[0].1.clone();
            again[at..at + 2].copy_from_slice(&packet[at..at + 2]);
            prop_assert_eq!(again, packet);
            prop_assert_eq!(taken_apart(&writes), segments);
        }

        #[test]
        fn any_bytes(
            packets in vec((vec(any::<u8>(), 0..100), 0..4usize, 0..150usize), 0..40),
            offload in offload(),
        ) {
            let mut coalescer = Coalescer::new(offload);
            let templates = [tcp([1, 2], 1, 1, &[1; 50]), udp([1, 2], 1, &[1; 50])];
            let mut pushed = 0;
            for (mut packet, template, len) in packets {
                if let Some(template) = templates.get(template) {
                    let mut bent = template.clone();
                    for pair in packet.chunks_exact(2).take(3) {
                        let at = usize::from(pair[0]) % bent.len();
                        bent[at] = pair[1];
                    }
                    packet = bent;
                }
                let Some(space) = coalescer.space(packet.len()) else { break };
                space.copy_from_slice(&packet);
                coalescer.push(len);
                pushed += usize::from(len > 0 && !packet.is_empty());
            }
            let flushed = coalescer.flush(|slices| Ok(slices.len()));
            prop_assert_eq!(flushed.packets, pushed);
        }
    }

    #[test]
    #[ignore = "prints a figure"]
    fn speed() {
        for (name, flows, is_tcp) in
            [("TCP", 1, true), ("UDP", 1, false), ("TCP in 4 flows", 4, true), ("TCP in 16 flows", 16, true)]
        {
            let packets: Vec<_> = (0..176u16)
                .map(|i| {
                    let (flow, id) = (i % flows, i / flows);
                    let payload = [0xa5; 1_380];
                    if is_tcp {
                        let segment = tcp_segment([flow, 2], 1_380 * u32::from(id), ACK, &[1; 12], &payload);
                        seal(ip(false, id, protocol::TCP, &segment))
                    } else {
                        udp([flow, 2], id, &payload)
                    }
                })
                .collect();
            let mut coalescer = Coalescer::new(Offload::TcpAndUdp);
            let copy = |space: &mut [u8], packet: &[u8]| space[..packet.len()].copy_from_slice(packet);
            let with = best_ns(|| {
                for packet in black_box(&packets) {
                    copy(coalescer.space(packet.len() + 16).unwrap(), packet);
                    coalescer.push(packet.len());
                }
                coalescer.flush(|slices| Ok(black_box(slices).len()));
            });
            // What decryption would have to write anyway.
            let mut arena = vec![0; ARENA];
            let without = best_ns(|| {
                for (packet, space) in black_box(&packets).iter().zip(arena.chunks_exact_mut(1_448)) {
                    copy(black_box(space), packet);
                }
            });
            let ns = (with - without) / packets.len() as f64;
            println!(
                "coalesce, {name}: {ns:.1} ns per packet of 1,380 B (and {:.1} ns to write it)",
                without / packets.len() as f64
            );
        }
    }
}
