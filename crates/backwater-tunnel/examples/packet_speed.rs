//! What a packet of 1,380 bytes costs on its way between TUN device and encryption:
//! `cargo run --release --example packet_speed`.

use std::{hint::black_box, time::Instant};

use backwater_tunnel::packet::{
    checksum::Sum,
    coalesce::{Coalescer, Offload},
    segment::Segments,
    virtio,
};

const PAYLOAD: usize = 1_380;
/// As many as fit into one packet of the device.
const TRAIN: usize = 44;
const TRAINS: usize = 4;

/// Nanoseconds that it takes when nothing else is on the processor: the best of many rounds.
fn best_ns(mut run: impl FnMut()) -> f64 {
    let mut round = || {
        let started = Instant::now();
        (0..500).for_each(|_| run());
        started.elapsed().as_nanos() as f64 / 500.0
    };
    (0..200).map(|_| round()).fold(f64::MAX, f64::min)
}

/// A packet of the device with a train in it: TCP with timestamps, or UDP.
fn train(is_v6: bool, is_tcp: bool, port: u16) -> (virtio::Header, Vec<u8>) {
    let payload = vec![0xa5; PAYLOAD * TRAIN];
    let port = port.to_be_bytes();
    let mut transport = if is_tcp {
        let options = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        [&port[..], &[0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 8, 0, 0, 0, 0, 0], &options].concat()
    } else {
        [port, [0, 9], (8 + payload.len() as u16).to_be_bytes(), [0, 0]].concat()
    };
    transport.extend(payload);
    let (protocol, len) = (if is_tcp { 6 } else { 17 }, transport.len() as u16);
    let mut packet = if is_v6 {
        [&[0x60, 0, 0, 0], &len.to_be_bytes()[..], &[protocol, 64], &[0xfd; 32]].concat()
    } else {
        [&[0x45, 0], &(20 + len).to_be_bytes()[..], &[0, 1, 0x40, 0, 64, protocol, 0, 0], &[10; 8]].concat()
    };
    packet.extend(transport);
    let gso_type = match (is_tcp, is_v6) {
        (true, false) => virtio::GSO_TCPV4,
        (true, true) => virtio::GSO_TCPV6,
        (false, _) => virtio::GSO_UDP_L4,
    };
    (virtio::Header { gso_type, gso_size: PAYLOAD as u16, ..virtio::Header::default() }, packet)
}

fn apart((header, packet): &(virtio::Header, Vec<u8>)) -> Vec<Vec<u8>> {
    let mut out = [0; 1_500];
    let Ok(mut segments) = Segments::new(header, packet) else { return Vec::new() };
    std::iter::from_fn(|| segments.next(&mut out).map(|len| out[..len].to_vec())).collect()
}

fn main() {
    let bytes = vec![0xa5; 1_400];
    let ns = best_ns(|| {
        black_box(Sum::default().bytes(black_box(&bytes)).checksum());
    });
    println!("checksum of 1,400 bytes: {ns:.1} ns, {:.1} GB/s", 1_400.0 / ns);

    for (name, is_v6, is_tcp) in [("TCP, IPv4", false, true), ("TCP, IPv6", true, true), ("UDP, IPv4", false, false)] {
        let train = train(is_v6, is_tcp, 1);
        let mut out = [0; 1_500];
        let ns = best_ns(|| {
            let (header, packet) = black_box(&train);
            let Ok(mut segments) = Segments::new(header, packet) else { return };
            while segments.next(black_box(&mut out)).is_some() {}
        });
        println!("segment, {name}: {:.1} ns a packet", ns / TRAIN as f64);
    }

    for (name, flows, is_tcp) in
        [("TCP", 1, true), ("UDP", 1, false), ("TCP, 4 flows that take turns", 4, true), ("16 flows", 16, true)]
    {
        let flows: Vec<_> = (0..flows).map(|port| apart(&train(false, is_tcp, port))).collect();
        let packets: Vec<_> =
            (0..TRAINS * TRAIN).map(|i| flows[i % flows.len()][i / flows.len() % TRAIN].clone()).collect();
        let mut coalescer = Coalescer::new(Offload::TcpAndUdp);
        let with = best_ns(|| {
            for packet in black_box(&packets) {
                let Some(space) = coalescer.space(packet.len() + 16) else { return };
                space[..packet.len()].copy_from_slice(packet);
                coalescer.push(packet.len());
            }
            coalescer.flush(|slices| Ok(black_box(slices).len()));
        });
        // What decryption would have to write anyway.
        let mut arena = vec![0; 1_500 * packets.len()];
        let without = best_ns(|| {
            for (packet, space) in black_box(&packets).iter().zip(arena.chunks_exact_mut(1_448)) {
                black_box(space)[..packet.len()].copy_from_slice(packet);
            }
        });
        println!("coalesce, {name}: {:.1} ns a packet", (with - without) / packets.len() as f64);
    }
}
