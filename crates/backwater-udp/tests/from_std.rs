//! Sockets that somebody else has made, with options of their own.
#![cfg(all(target_os = "linux", not(backwater_portable)))]
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]

#[path = "support/mod.rs"]
mod support;

use std::{
    io::IoSlice,
    net::{SocketAddr, UdpSocket as Std},
    os::fd::AsRawFd,
    time::Duration,
};

use backwater_udp::{Ecn, RecvBatch, Transmit, UdpSocket};
use support::{block_on, in_namespace};
use tokio::time::timeout;

fn set(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    // SAFETY: the kernel reads an int from the pointer, and its length is given.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size_of::<libc::c_int>() as u32)
    };
    assert_eq!(result, 0, "{level} {name}: {}", std::io::Error::last_os_error());
}

async fn send(from: &UdpSocket, to: SocketAddr, datagrams: usize, ecn: Option<Ecn>) {
    let payload = vec![7; 1200 * datagrams];
    let slices = [IoSlice::new(&payload)];
    let mut t = Transmit::new(to, &slices).segment_size(1200).ecn(ecn);
    assert_eq!(from.sender().send(&mut t).await.unwrap().sent, datagrams as u32);
}

/// The lengths of what arrives.
async fn receive(socket: &UdpSocket, count: usize) -> Vec<usize> {
    let (mut receiver, mut batch, mut seen) = (socket.receiver(), RecvBatch::new(8), Vec::new());
    while seen.len() < count {
        let received = timeout(Duration::from_secs(10), receiver.recv(&mut batch)).await;
        received.expect("datagrams are missing").unwrap();
        seen.extend(batch.datagrams().map(|d| d.payload.len()));
    }
    seen
}

const SOFTWARE_TIMESTAMPS: libc::c_int = (libc::SOF_TIMESTAMPING_RX_SOFTWARE
    | libc::SOF_TIMESTAMPING_TX_SOFTWARE
    | libc::SOF_TIMESTAMPING_SOFTWARE) as libc::c_int;

/// `asm-generic/socket.h`
const SO_RCVMARK: libc::c_int = 75;

/// The kernel puts them before the length of the segments, which must not be cut off.
#[test]
fn a_gro_batch_is_taken_apart_whatever_else_its_socket_asks_for() {
    // Marks are for those who may set them.
    in_namespace("a_gro_batch_is_taken_apart_whatever_else_its_socket_asks_for", || {
        block_on(async {
            let std = Std::bind("127.0.0.1:0").unwrap();
            set(&std, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, SOFTWARE_TIMESTAMPS);
            for name in [libc::SO_TIMESTAMPNS, libc::SO_RXQ_OVFL, SO_RCVMARK] {
                set(&std, libc::SOL_SOCKET, name, 1);
            }
            for name in [libc::IP_RECVTTL, libc::IP_RECVOPTS, libc::IP_RETOPTS, libc::IP_RECVORIGDSTADDR] {
                set(&std, libc::IPPROTO_IP, name, 1);
            }
            let (a, b) = (UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap(), UdpSocket::from_std(std).unwrap());
            for _ in 0..10 {
                send(&a, b.local_addr(), 10, None).await;
                assert_eq!(receive(&b, 10).await, [1200; 10]);
            }
        });
    });
}

/// Each comes back by the error queue, which is charged to the receive buffer, and fails no call.
#[tokio::test]
async fn timestamps_of_what_was_sent_do_not_fill_the_receive_buffer() {
    let std = Std::bind("127.0.0.1:0").unwrap();
    set(&std, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, SOFTWARE_TIMESTAMPS);
    let (a, b) = (UdpSocket::from_std(std).unwrap(), UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap());
    for _ in 0..10 {
        for _ in 0..5 {
            for _ in 0..50 {
                send(&a, b.local_addr(), 1, None).await;
            }
            receive(&b, 50).await;
        }
        let nothing = async { a.receiver().recv(&mut RecvBatch::new(1)).await };
        timeout(Duration::from_millis(20), nothing).await.expect_err("nothing was sent");
        for _ in 0..20 {
            send(&b, a.local_addr(), 1, None).await;
        }
        assert_eq!(receive(&a, 20).await, [1200; 20]);
    }
    assert_eq!((a.stats().snapshot().icmp_errors, a.next_icmp_error()), (0, None), "they are no ICMP messages");
}

/// The type-of-service byte or traffic class of the next datagram.
fn type_of_service(socket: &Std) -> u8 {
    let (mut byte, mut control) = ([0u8; 2000], [0u64; 16]);
    let mut slice = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // SAFETY: all zeroes is a valid msghdr; the buffers outlive the call and their lengths are given with them. The control
    // message is aligned as `u64` is, and both kinds begin with the byte (of a little-endian int).
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        (header.msg_iov, header.msg_iovlen) = (&raw mut slice, 1);
        (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control) as _);
        assert!(libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) > 0);
        let message = libc::CMSG_FIRSTHDR(&raw const header);
        assert!(!message.is_null());
        let data = libc::CMSG_DATA(message);
        if (*message).cmsg_level == libc::IPPROTO_IPV6 { data.cast::<i32>().read_unaligned() as u8 } else { *data }
    }
}

#[tokio::test]
async fn the_ecn_field_leaves_the_dscp_as_it_is() {
    for (any, level, name, receive) in [
        ("127.0.0.1:0", libc::IPPROTO_IP, libc::IP_TOS, libc::IP_RECVTOS),
        ("[::1]:0", libc::IPPROTO_IPV6, libc::IPV6_TCLASS, libc::IPV6_RECVTCLASS),
    ] {
        let (std, b) = (Std::bind(any).unwrap(), Std::bind(any).unwrap());
        // Expedited forwarding (RFC 3246).
        set(&std, level, name, 0xB8);
        set(&b, level, receive, 1);
        let a = UdpSocket::from_std(std).unwrap();
        for (ecn, want) in [(None, 0xB8), (Some(Ecn::Ect0), 0xBA), (Some(Ecn::Ce), 0xBB)] {
            send(&a, b.local_addr().unwrap(), 1, ecn).await;
            assert_eq!(type_of_service(&b), want, "{any} {ecn:?}");
        }
    }
}

#[tokio::test]
async fn a_dual_stack_socket_that_is_connected_to_a_mapped_address_answers_its_peer() {
    let b = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let a = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None).unwrap();
    a.set_only_v6(false).unwrap();
    let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{}", b.local_addr().port()).parse().unwrap();
    a.connect(&mapped.into()).unwrap();
    let a = UdpSocket::from_std(a.into()).unwrap();
    assert_eq!(a.peer_addr(), Some(b.local_addr()));
    for to in [mapped, b.local_addr()] {
        send(&a, to, 3, Some(Ecn::Ect0)).await;
        assert_eq!(receive(&b, 3).await, [1200; 3]);
    }
}
