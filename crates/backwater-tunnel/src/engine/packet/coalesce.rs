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
/// A packet whose TCP or UDP checksum is wrong is written alone and as it is, so that its receiver discards it: WireGuard
/// authenticates what the peer has sent, not that it was right before. (A joined packet gets a new checksum.) Linux' own GRO does the
/// same (`skb_gro_checksum_validate`).
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
        // No longer than the length field of IP allows.
        let sum = Sum::pseudo_header(packet.addresses(), packet.protocol(), transport.len() as u16).bytes(transport);
        if sum.checksum() != 0 {
            return None;
        }
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
        let mut header = virtio::Header::default();
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
mod tests;
