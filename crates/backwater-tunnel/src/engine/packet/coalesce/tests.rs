//! Packets joined, and what is written to the device taken apart again as the kernel would.

use proptest::{collection::vec, prelude::*};

use super::{
    super::segment::{
        Segments,
        tests::{all, datagram, gso, ip, seal, tcp_segment},
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
    // DSCP, identification, TTL; sequence number, acknowledgement, window, urgent pointer.
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
fn what_differs_in_ipv6() {
    let segment = |i: u32| ip(true, 0, protocol::TCP, &tcp_segment([1, 2], 10 * i, ACK, &[], &[1; 10]));
    let packets: Vec<_> = (0..3).map(segment).map(seal).collect();
    assert_eq!(counts(&joined(Offload::Tcp, &packets)), [3]);
    // Traffic class, flow label, hop limit.
    for byte in [0, 1, 2, 3, 7] {
        let mut packets = packets.clone();
        packets[1][byte] ^= 1;
        assert_eq!(counts(&joined(Offload::Tcp, &packets)), [1, 1, 1], "byte {byte}");
    }
}

#[test]
fn headers_of_many_lengths_at_the_arenas_end() {
    for len in (1_300..1_400).step_by(4) {
        let (mut coalescer, mut packets) = (Coalescer::new(Offload::TcpAndUdp), Vec::new());
        for id in 0.. {
            let short = udp([1, 2], id, &vec![1; len]);
            let segment = tcp_segment([1, 2], u32::from(id) * 1_400, ACK, &[1; 40], &[2; 1_400]);
            let long = seal(ip(true, 0, protocol::TCP, &segment));
            let before = packets.len();
            for packet in [long, short] {
                let Some(space) = coalescer.space(packet.len()) else { break };
                space.copy_from_slice(&packet);
                coalescer.push(packet.len());
                packets.push(packet);
            }
            if packets.len() != before + 2 {
                break;
            }
        }
        assert!(packets.len() > 2 * MAX_SEGMENTS);
        let mut apart = taken_apart(&parse(written(&mut coalescer)));
        apart.sort_by_key(|packet| packet[0]);
        packets.sort_by_key(|packet| packet[0]);
        assert!(apart == packets, "{len}");
    }
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
    let header = virtio::Header::default();
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

/// Flow, bytes of payload, flags; whether sequence number, identification and options are not those expected.
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
fn a_wrong_checksum_stays_wrong() {
    for is_tcp in [true, false] {
        for wrong in 0..20 {
            let mut packets: Vec<_> = (0..20u16)
                .map(|i| {
                    let payload = [i as u8; 101];
                    if is_tcp { tcp([1, 2], i, 101 * u32::from(i), &payload) } else { udp([1, 2], i, &payload) }
                })
                .collect();
            // A bit of the payload, the last odd byte, and the checksum itself.
            let len = packets[wrong].len();
            let at = [len - 50, len - 1, if is_tcp { 36 } else { 26 }][wrong % 3];
            packets[wrong][at] ^= 0x10;
            let writes = joined(Offload::TcpAndUdp, &packets);
            assert_eq!(taken_apart(&writes), packets, "{wrong}");
            let expected: Vec<_> = [wrong, 1, 19 - wrong].into_iter().filter(|&count| count > 0).collect();
            assert_eq!(counts(&writes), expected);
            // The kernel is not told that it is right.
            assert_eq!(writes[usize::from(wrong > 0)].0, virtio::Header::default());
        }
    }
}
