//! Sends on a connected socket of Apple's systems and the BSDs: they refuse a message that names its destination (`EISCONN`).

use std::{io, mem, os::fd::AsRawFd, ptr};

use libc::{c_int, c_void, iovec, msghdr};
use socket2::SockRef;

use super::Outgoing;

/// Bytes for one control message, and its alignment.
type Control = [u64; 8];

/// FreeBSD takes a byte, the others an int.
#[cfg(target_os = "freebsd")]
type Tos = u8;
#[cfg(not(target_os = "freebsd"))]
type Tos = c_int;

pub(super) fn send(socket: SockRef<'_>, out: &Outgoing<'_>, contents: &[u8]) -> io::Result<()> {
    let sent = with_header(out, contents, |header| {
        // SAFETY: everything that the header points to outlives the call, with its length, and is only read.
        unsafe { libc::sendmsg(socket.as_raw_fd(), header, libc::MSG_DONTWAIT) }
    });
    if sent >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    let is_full = error.raw_os_error() == Some(libc::EWOULDBLOCK);
    if is_full && never_fits(contents.len(), socket.send_buffer_size()?) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Err(error)
}

/// XNU says `EWOULDBLOCK`, for ever, of a datagram that is with its control data larger than the send buffer (`sosendcheck`).
fn never_fits(bytes: usize, send_buffer: usize) -> bool {
    cfg!(any(target_vendor = "apple", test)) && bytes + size_of::<Control>() > send_buffer
}

/// Calls `f` with the header of the message: without a name.
fn with_header<R>(out: &Outgoing<'_>, contents: &[u8], f: impl FnOnce(&msghdr) -> R) -> R {
    let mut slice = iovec { iov_base: contents.as_ptr().cast_mut().cast::<c_void>(), iov_len: contents.len() };
    let mut control: Control = [0; 8];
    // SAFETY: all zeroes is a valid msghdr (null pointers with zero lengths).
    let mut header: msghdr = unsafe { mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut slice, 1);
    // OpenBSD and NetBSD do not take the ECN field of IPv4 with a message.
    let v4 = out.destination.ip().to_canonical().is_ipv4();
    if let Some(ecn) = out.ecn
        && !(v4 && cfg!(any(target_os = "openbsd", target_os = "netbsd")))
    {
        header.msg_control = control.as_mut_ptr().cast();
        if v4 {
            push(&mut header, libc::IPPROTO_IP, libc::IP_TOS, ecn as u8 as Tos);
        } else {
            push(&mut header, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, c_int::from(ecn as u8));
        }
    }
    f(&header)
}

/// Makes the header's control data, of which there is none yet, this one message.
fn push<T: Copy>(header: &mut msghdr, level: c_int, kind: c_int, value: T) {
    // SAFETY: `msg_control` points to a `Control`, which is large enough for a header and an int on every system, and aligned.
    unsafe {
        header.msg_controllen = libc::CMSG_SPACE(size_of::<T>() as _) as _;
        let message = libc::CMSG_FIRSTHDR(header);
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = libc::CMSG_LEN(size_of::<T>() as _) as _;
        ptr::write_unaligned(libc::CMSG_DATA(message).cast::<T>(), value);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};

    use super::*;
    use crate::{Ecn, transmit::Header};

    fn outgoing<'a>(destination: &'a SocketAddr, ecn: Option<Ecn>) -> Outgoing<'a> {
        Outgoing {
            destination,
            source: &None,
            ecn,
            header: Header::default(),
            slices: &[],
            bytes: 5,
            segment_size: None,
        }
    }

    #[test]
    fn the_message_has_no_name() {
        for to in ["127.0.0.1:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
            let to: SocketAddr = to.parse().unwrap();
            for ecn in [None, Some(Ecn::Ce)] {
                with_header(&outgoing(&to, ecn), b"bytes", |header| {
                    assert!(header.msg_name.is_null());
                    assert_eq!((header.msg_namelen, header.msg_iovlen), (0, 1));
                    // SAFETY: the header is valid, and so is what it points to.
                    let message = unsafe { libc::CMSG_FIRSTHDR(header).as_ref() };
                    let v4 = to.ip().to_canonical().is_ipv4();
                    let level = if v4 { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
                    assert_eq!(message.map(|message| message.cmsg_level), ecn.map(|_| level));
                });
            }
        }
    }

    #[test]
    fn a_datagram_arrives_and_one_that_never_fits_is_too_large() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
            let to = b.local_addr().unwrap();
            a.connect(to).unwrap();
            for ecn in [None, Some(Ecn::Ect0)] {
                send(SockRef::from(&a), &outgoing(&to, ecn), b"bytes").unwrap();
                let mut buffer = [0; 10];
                assert_eq!(b.recv(&mut buffer).unwrap(), 5);
            }
        }
        assert!(!never_fits(9_000, 9_216) && never_fits(9_200, 9_216));
    }
}
