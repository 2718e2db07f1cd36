//! The limit: the system calls, in a loop, with everything prepared that can be.

use std::{io, mem, net::SocketAddr, os::fd::AsRawFd, ptr};

use libc::{c_void, cmsghdr, iovec, mmsghdr, msghdr, sockaddr_in};
use socket2::Socket;

use crate::{
    net,
    subject::{Change, HEADER, Job, Look, SLOT_BYTES, SLOTS, Subject},
};

pub(crate) struct Raw {
    socket: Socket,
    slots: Slots,
}

/// Room for one control message with an int, as the kernel wants it aligned; and for two, of what is received.
type Control = [u64; 3];
type Received = [u64; 6];

/// Where slices are as quick as a copy.
const WORTH_A_SLICE: usize = 768;

struct Slots {
    data: Vec<u8>,
    names: Vec<sockaddr_in>,
    controls: Vec<Received>,
    /// Never touched again: the headers point to them.
    _iovecs: Vec<iovec>,
    headers: Vec<mmsghdr>,
}

impl Raw {
    pub(crate) fn new() -> Self {
        let socket = net::socket();
        net::option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
        // What a tunnel or a relay has to pass on (RFC 6040): no subject is spared it but tokio's socket, which cannot be asked.
        net::option(&socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1);
        Self { socket, slots: Slots::new() }
    }
}

impl Subject for Raw {
    fn address(&self) -> SocketAddr {
        net::address_of(&self.socket)
    }

    /// One call for one destination, and one for all the trains to several.
    fn send(&mut self, job: &Job<'_>, times: usize) {
        let mut names: Vec<_> = job.to.iter().map(name).collect();
        let mut slice = iovec { iov_base: job.train.as_ptr().cast_mut().cast(), iov_len: job.train.len() };
        let mut control = segment(job.size);
        let header =
            |name: &mut sockaddr_in| mmsghdr { msg_hdr: header(name, &raw mut slice, 1, &mut control), msg_len: 0 };
        let mut headers: Vec<_> = names.iter_mut().map(header).collect();
        let fd = self.socket.as_raw_fd();
        for _ in 0..times {
            // SAFETY: the headers point to names, slice and control, which live until the end.
            let done = unsafe {
                match &mut headers[..] {
                    [one] => libc::sendmsg(fd, &raw const one.msg_hdr, 0).min(1) as i32,
                    all => libc::sendmmsg(fd, all.as_mut_ptr(), all.len() as u32, 0),
                }
            };
            assert_eq!(done as usize, headers.len(), "{}", io::Error::last_os_error());
        }
    }

    fn receive(&mut self, datagrams: usize, look: &mut Look) {
        let mut left = datagrams;
        while left > 0 {
            for slot in 0..self.slots.receive(&self.socket) {
                let (train, size) = self.slots.train(slot);
                for datagram in train.chunks(size) {
                    look.at(datagram);
                    left -= 1;
                }
            }
        }
    }

    /// Slices that lie in the received train, or a copy of short datagrams: whichever the kernel is quicker with.
    fn forward(&mut self, change: Change, to: SocketAddr, datagrams: usize) {
        let mut name = name(&to);
        let mut inserted = HEADER;
        let insert = iovec { iov_base: inserted.as_mut_ptr().cast(), iov_len: HEADER.len() };
        let mut slices = [insert; 256];
        let mut copy = vec![0; SLOT_BYTES];
        let mut left = datagrams;
        while left > 0 {
            for slot in 0..self.slots.receive(&self.socket) {
                let (train, size) = self.slots.train(slot);
                let (mut count, mut copied) = (0, 0);
                let copies = size < WORTH_A_SLICE * if change == Change::Insert { 2 } else { 1 };
                for datagram in train.chunks(size) {
                    left -= 1;
                    let (header, rest) = match change {
                        Change::Strip => (&[][..], &datagram[HEADER.len()..]),
                        Change::Insert => (&HEADER[..], datagram),
                    };
                    if copies {
                        let rest_at = copied + header.len();
                        copy[copied..rest_at].copy_from_slice(header);
                        copied = rest_at + rest.len();
                        copy[rest_at..copied].copy_from_slice(rest);
                        continue;
                    }
                    if change == Change::Insert {
                        slices[count] = insert;
                        count += 1;
                    }
                    slices[count] = iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
                    count += 1;
                }
                if copies {
                    slices[0] = iovec { iov_base: copy.as_mut_ptr().cast(), iov_len: copied };
                    count = 1;
                }
                let mut control = segment(change.size(size));
                let header = header(&mut name, slices.as_mut_ptr(), count, &mut control);
                // SAFETY: the header points to name, slices and control, which outlive the call, and the slices to
                // the train, to `copy` and to `inserted`.
                let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const header, 0) };
                assert!(sent > 0, "{}", io::Error::last_os_error());
                slices[0] = insert;
            }
        }
    }
}

impl Change {
    /// Bytes of a datagram of `size` afterwards.
    pub(crate) fn size(self, size: usize) -> usize {
        match self {
            Self::Strip => size - HEADER.len(),
            Self::Insert => size + HEADER.len(),
        }
    }
}

impl Slots {
    fn new() -> Self {
        let mut data = vec![0; SLOTS * SLOT_BYTES];
        let mut names = vec![name(&SocketAddr::from(([0, 0, 0, 0], 0))); SLOTS];
        let mut controls: Vec<Received> = vec![[0; 6]; SLOTS];
        let slices = data.chunks_mut(SLOT_BYTES);
        let mut iovecs: Vec<_> =
            slices.map(|slot| iovec { iov_base: slot.as_mut_ptr().cast::<c_void>(), iov_len: SLOT_BYTES }).collect();
        let parts = names.iter_mut().zip(&mut iovecs).zip(&mut controls);
        let headers = parts
            .map(|((name, slice), control)| mmsghdr { msg_hdr: header(name, slice, 1, control.first_chunk_mut().unwrap()), msg_len: 0 })
            .collect();
        Self { data, names, controls, _iovecs: iovecs, headers }
    }

    fn receive(&mut self, socket: &Socket) -> usize {
        for header in &mut self.headers {
            header.msg_hdr.msg_controllen = size_of::<Received>();
        }
        // SAFETY: the headers point into the other vectors, which never grow.
        let count =
            unsafe { libc::recvmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), SLOTS as u32, 0, ptr::null_mut()) };
        assert!(count > 0, "{}", io::Error::last_os_error());
        count as usize
    }

    /// The train, and the size of its datagrams.
    fn train(&self, slot: usize) -> (&[u8], usize) {
        let length = self.headers[slot].msg_len as usize;
        let at = slot * SLOT_BYTES;
        std::hint::black_box(&self.names[slot]);
        let header = &self.headers[slot].msg_hdr;
        let (mut size, mut ecn) = (length, 0);
        // SAFETY: the kernel has written whole messages there, of an int each, but for IP_TOS, which is a byte.
        unsafe {
            let mut control = libc::CMSG_FIRSTHDR(header);
            while let Some(&cmsghdr { cmsg_type, .. }) = control.as_ref() {
                match cmsg_type {
                    libc::UDP_GRO => size = libc::CMSG_DATA(control).cast::<i32>().read_unaligned() as usize,
                    libc::IP_TOS => ecn = *libc::CMSG_DATA(control) & 3,
                    other => panic!("control message {other}"),
                }
                control = libc::CMSG_NXTHDR(header, control);
            }
        }
        std::hint::black_box(ecn);
        (&self.data[at..at + length], size)
    }
}

fn name(address: &SocketAddr) -> sockaddr_in {
    let SocketAddr::V4(address) = address else { panic!("IPv4 only") };
    sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
}

/// The control message that cuts a train.
fn segment(size: usize) -> Control {
    let mut control: Control = [0; 3];
    let at: *mut cmsghdr = control.as_mut_ptr().cast();
    // SAFETY: there is room for a header of 16 bytes and eight bytes after it, and it is aligned.
    unsafe {
        (*at).cmsg_level = libc::SOL_UDP;
        (*at).cmsg_type = libc::UDP_SEGMENT;
        (*at).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as usize;
        libc::CMSG_DATA(at).cast::<u16>().write_unaligned(u16::try_from(size).unwrap());
    }
    control
}

fn header(name: *mut sockaddr_in, slices: *mut iovec, count: usize, control: *mut Control) -> msghdr {
    // SAFETY: zeroes are a valid msghdr.
    let mut header: msghdr = unsafe { mem::zeroed() };
    header.msg_name = name.cast();
    header.msg_namelen = size_of::<sockaddr_in>() as u32;
    header.msg_iov = slices;
    header.msg_iovlen = count;
    header.msg_control = control.cast();
    header.msg_controllen = size_of::<Control>();
    header
}
