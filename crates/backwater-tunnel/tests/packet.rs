//! What is joined and taken apart, before the kernel: a TUN device with offloads in a network of the test's own.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    io::{IoSlice, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use backwater_tunnel::packet::{
    coalesce::{Coalescer, Offload},
    header::Packet,
    segment::Segments,
    virtio,
};
use backwater_udp::Transmit;
use tun_rs::{DeviceBuilder, SyncDevice};

#[path = "../../backwater-udp/tests/support/mod.rs"]
mod support;

const NEAR: [&str; 2] = ["10.7.0.1", "fd07::1"];
/// Nobody has it: what goes there comes out of the device.
const FAR: [&str; 2] = ["10.7.0.2", "fd07::2"];

/// A device that takes TCP and UDP joined; `None` says why not.
fn device() -> Option<SyncDevice> {
    let device = DeviceBuilder::new().name("tun0").mtu(1420).offload(true).build_sync();
    let device = match device {
        Ok(device) => device,
        Err(error) => {
            support::skip(&format!("no TUN device: {error}"));
            return None;
        }
    };
    if !device.udp_gso() {
        support::skip("this kernel has no UDP segmentation offload for TUN devices (Linux 6.2)");
        return None;
    }
    support::ip("link set tun0 addrgenmode none");
    support::ip("link set tun0 up");
    support::ip(&format!("address add {}/24 dev tun0", NEAR[0]));
    support::ip(&format!("address add {}/64 dev tun0 nodad", NEAR[1]));
    Some(device)
}

fn address(ip: &str, port: u16) -> SocketAddr {
    (ip.parse::<IpAddr>().unwrap(), port).into()
}

/// A train of datagrams of `size` bytes from the far address to the near one, taken apart: their sums are right.
fn datagrams(v6: bool, port: u16, payload: &[u8], size: u16) -> Vec<Vec<u8>> {
    let len = (8 + payload.len()) as u16;
    let octets = |ip: &str| match ip.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut packet = if v6 {
        [&[0x60, 0, 0, 0], &len.to_be_bytes()[..], &[17, 64]].concat()
    } else {
        [&[0x45, 0], &(20 + len).to_be_bytes()[..], &[0, 1, 0x40, 0, 64, 17, 0, 0]].concat()
    };
    packet.extend(octets(FAR[usize::from(v6)]));
    packet.extend(octets(NEAR[usize::from(v6)]));
    packet.extend([9u16, port, len, 0].map(u16::to_be_bytes).concat());
    packet.extend(payload);
    let gso_type = virtio::GSO_UDP_L4;
    let header = virtio::Header { gso_type, gso_size: size, ..virtio::Header::default() };
    let mut segments = Segments::new(&header, &packet).unwrap();
    let mut out = [0; 1500];
    std::iter::from_fn(|| segments.next(&mut out).map(|len| out[..len].to_vec())).collect()
}

fn push(coalescer: &mut Coalescer, packet: &[u8]) {
    coalescer.space(packet.len()).unwrap().copy_from_slice(packet);
    coalescer.push(packet.len());
}

#[test]
fn datagrams_written_as_one_arrive_as_they_were() {
    support::in_namespace("datagrams_written_as_one_arrive_as_they_were", || {
        let Some(device) = device() else { return };
        for v6 in [false, true] {
            let socket = UdpSocket::bind(address(NEAR[usize::from(v6)], 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let port = socket.local_addr().unwrap().port();
            let payload: Vec<u8> = (0..9_500u32).map(|i| (i % 251) as u8).collect();
            let packets = datagrams(v6, port, &payload, 1_000);
            let mut coalescer = Coalescer::new(Offload::TcpAndUdp);
            packets.iter().for_each(|packet| push(&mut coalescer, packet));
            let flushed = coalescer.flush(|slices| device.send_vectored(slices));
            assert_eq!((flushed.packets, flushed.writes, flushed.lost), (10, 1, 0), "{:?}", flushed.error);
            // Written alone: the kernel does not take our word for it.
            let mut corrupted = packets[0].clone();
            *corrupted.last_mut().unwrap() ^= 1;
            for packet in [&corrupted, &packets[3]] {
                push(&mut coalescer, packet);
                let flushed = coalescer.flush(|slices| device.send_vectored(slices));
                assert_eq!((flushed.packets, flushed.writes, flushed.lost), (1, 1, 0), "{:?}", flushed.error);
            }

            let mut received = [0; 1_500];
            for expected in payload.chunks(1_000).chain([&payload[3_000..4_000]]) {
                let (len, from) = socket.recv_from(&mut received).unwrap();
                assert_eq!((&received[..len], from), (expected, address(FAR[usize::from(v6)], 9)));
            }
            assert!(socket.recv_from(&mut received).is_err());
        }
    });
}

#[test]
fn trains_of_a_socket_are_taken_apart() {
    support::in_namespace("trains_of_a_socket_are_taken_apart", || {
        let Some(device) = device() else { return };
        for v6 in [false, true] {
            let payload: Vec<u8> = (0..9_500u32).map(|i| (i % 251) as u8).collect();
            support::block_on(async {
                let socket = backwater_udp::UdpSocket::bind(address(NEAR[usize::from(v6)], 0)).unwrap();
                let slices = [IoSlice::new(&payload)];
                let mut train = Transmit::new(address(FAR[usize::from(v6)], 9), &slices).segment_size(1_000);
                socket.sender().send(&mut train).await.unwrap();
            });
            let mut read = vec![0; 70_000];
            // The kernel has things of its own to say, too.
            let (header, packet) = loop {
                let len = device.recv(&mut read).unwrap();
                let (header, packet) = read[..len].split_first_chunk().unwrap();
                if Packet::parse(packet).is_some_and(|packet| packet.protocol() == 17) {
                    break (virtio::Header::parse(header), packet);
                }
            };
            let mut segments = Segments::new(&header, packet).unwrap();
            assert_eq!((header.gso_type, segments.count()), (virtio::GSO_UDP_L4, 10));
            let mut out = [0; 1_500];
            for expected in payload.chunks(1_000) {
                let len = segments.next(&mut out).unwrap();
                assert_eq!(&Packet::parse(&out[..len]).unwrap().payload()[8..], expected);
            }
        }
    });
}

/// Sends back what comes out of the device with its addresses exchanged, so that whoever calls the far address finds
/// himself there. That changes no sum. Counts the packets and the writes.
fn reflect(device: &SyncDevice, stop: &AtomicBool, packets: &AtomicUsize, writes: &AtomicUsize) {
    let mut coalescer = Coalescer::new(Offload::TcpAndUdp);
    let mut read = vec![0; 70_000];
    while !stop.load(SeqCst) {
        let len = device.recv(&mut read).unwrap();
        let (header, packet) = read[..len].split_first_chunk().unwrap();
        let mut segments = Segments::new(&virtio::Header::parse(header), packet).unwrap();
        while segments.count() != 0 {
            let space = coalescer.space(segments.segment_len()).unwrap();
            let len = segments.next(space).unwrap();
            let addresses = if space[0] >> 4 == 6 { &mut space[8..40] } else { &mut space[12..20] };
            addresses.rotate_left(addresses.len() / 2);
            coalescer.push(len);
        }
        let flushed = coalescer.flush(|slices| device.send_vectored(slices));
        assert_eq!(flushed.lost, 0, "{:?}", flushed.error);
        packets.fetch_add(flushed.packets, SeqCst);
        writes.fetch_add(flushed.writes, SeqCst);
    }
}

#[test]
fn a_tcp_connection_over_the_device() {
    support::in_namespace("a_tcp_connection_over_the_device", || {
        let Some(device) = device() else { return };
        let device = Arc::new(device);
        let stop = Arc::new(AtomicBool::new(false));
        let (packets, writes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let reflector = {
            let (device, stop, packets, writes) = (device.clone(), stop.clone(), packets.clone(), writes.clone());
            thread::spawn(move || reflect(&device, &stop, &packets, &writes))
        };
        const BYTES: usize = 20_000_000;
        let content = |at: usize| (at / 3 % 253) as u8;
        for v6 in [false, true] {
            let listener = TcpListener::bind(address(NEAR[usize::from(v6)], 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let sender = thread::spawn(move || {
                let mut stream = TcpStream::connect(address(FAR[usize::from(v6)], port)).unwrap();
                let data: Vec<u8> = (0..BYTES).map(content).collect();
                stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
                stream.write_all(&data).unwrap();
            });
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            sender.join().unwrap();
            assert_eq!(received.len(), BYTES);
            assert!(received.iter().enumerate().all(|(at, byte)| *byte == content(at)));
        }
        stop.store(true, SeqCst);
        // Wakes the reflector.
        UdpSocket::bind(address(NEAR[0], 0)).unwrap().send_to(b"!", address(FAR[0], 9)).unwrap();
        reflector.join().unwrap();
        let (packets, writes) = (packets.load(SeqCst), writes.load(SeqCst));
        println!("{packets} packets in {writes} writes");
        // Data, and about as many acknowledgements as trains.
        assert!(packets > 2 * BYTES / 1_420 && writes * 3 < packets, "{packets} packets in {writes} writes");
    });
}
