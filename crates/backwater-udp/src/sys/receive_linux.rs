//! Linux and Android: `recvmmsg` with `UDP_GRO`.

use std::{
    io::{self, IoSliceMut},
    net::IpAddr,
    os::fd::AsRawFd,
    ptr,
    time::{Duration, SystemTime},
};

use libc::{c_int, c_void, iovec, mmsghdr};
use socket2::SockRef;

use super::{
    Buffers, SLOT_BYTES, State,
    cmsg::{Control, Messages},
    imp::{Name, done, int},
};
use crate::{Ecn, receiver::RecvMeta};

/// What one `recvmmsg` needs beside the room for the bytes.
///
/// The headers point into the other vectors, none of which ever grows: they are set up once, and only the lengths that
/// the kernel changed are put back.
pub(crate) struct Slots {
    names: Vec<Name>,
    controls: Vec<Control<RECEIVE_CONTROL>>,
    iovecs: Vec<iovec>,
    headers: Vec<mmsghdr>,
    /// How many headers the kernel has written to.
    used: usize,
}

// SAFETY: the pointers lead to memory that the same value or a caller of `receive` owns, and are followed by the kernel only,
// during `receive`.
unsafe impl Send for Slots {}

// SAFETY: only `receive` follows the pointers, and it takes the value for itself alone.
unsafe impl Sync for Slots {}

/// Bytes of control messages on receive: 24 for each `int`, 40 for `in6_pktinfo`, 32 for `in_pktinfo` and for a timestamp. The kernel
/// puts those that the owner of a socket has asked for (marks, options) before the length of a GRO batch's segments: room for all of
/// them.
const RECEIVE_CONTROL: usize = 512;

impl Buffers {
    pub(crate) fn receive(&mut self, socket: SockRef<'_>, _state: &State) -> io::Result<usize> {
        self.slots.receive(socket, self.metas.len(), &mut self.metas)
    }
}

impl Slots {
    pub(crate) fn new(count: usize) -> Self {
        let mut names = vec![Name::new(); count];
        let mut controls = vec![Control::new(); count];
        let mut iovecs = vec![iovec { iov_base: ptr::null_mut(), iov_len: 0 }; count];
        let parts = iovecs.iter_mut().zip(&mut names).zip(&mut controls);
        let headers = parts.map(|((iov, name), control)| {
            // SAFETY: all zeroes is a valid mmsghdr (null pointers with zero lengths).
            let mut header: mmsghdr = unsafe { std::mem::zeroed() };
            let h = &mut header.msg_hdr;
            h.msg_name = name.0.as_mut_ptr().cast();
            h.msg_iov = iov;
            h.msg_iovlen = 1;
            h.msg_control = control.as_mut_ptr().cast();
            header
        });
        let headers = headers.collect();
        Self { names, controls, iovecs, headers, used: count }
    }

    /// Slots that point into this memory, [`SLOT_BYTES`] each.
    pub(super) fn over(data: &mut [u8]) -> Self {
        let mut slots = Self::new(data.len() / SLOT_BYTES);
        for (iov, room) in slots.iovecs.iter_mut().zip(data.chunks_exact_mut(SLOT_BYTES)) {
            *iov = iovec { iov_base: room.as_mut_ptr().cast::<c_void>(), iov_len: room.len() };
        }
        slots
    }

    pub(crate) fn len(&self) -> usize {
        self.headers.len()
    }

    /// Receives into `bufs`, as many of them as there are slots and metas.
    pub(crate) fn receive_into(
        &mut self,
        socket: SockRef<'_>,
        _state: &State,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize> {
        let count = bufs.len().min(metas.len()).min(self.len());
        for (iov, buf) in self.iovecs.iter_mut().zip(bufs.iter_mut()) {
            *iov = iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        }
        self.receive(socket, count, metas)
    }

    /// Receives into the first `count` of the `iovecs`, whose memory is the caller's alone.
    #[inline]
    fn receive(&mut self, socket: SockRef<'_>, count: usize, metas: &mut [RecvMeta]) -> io::Result<usize> {
        for header in self.headers.iter_mut().take(self.used) {
            header.msg_hdr.msg_namelen = Name::BYTES as _;
            header.msg_hdr.msg_controllen = RECEIVE_CONTROL as _;
        }
        self.used = 0;
        // SAFETY: each of the first `count` headers points to a name and to control data that live in `self`, and to an iovec of memory
        // that its caller lends for the call, with their lengths; nothing else touches them during the call.
        let received = done(unsafe {
            let headers = self.headers.as_mut_ptr();
            let no_timeout = ptr::null_mut::<libc::timespec>();
            libc::syscall(libc::SYS_recvmmsg, socket.as_raw_fd(), headers, count, libc::MSG_DONTWAIT, no_timeout)
        })?;
        self.used = received;
        let filled = self.headers.iter().zip(&self.iovecs).zip(&self.names).zip(&self.controls);
        for ((((header, iov), name), control), meta) in filled.take(received).zip(metas) {
            let len = (header.msg_len as usize).min(iov.iov_len);
            let control = control.received(header.msg_hdr.msg_controllen as _);
            let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            *meta = RecvMeta { source: name.read(), len, segment_size: len, truncated, ..RecvMeta::default() };
            read_control(meta, control);
        }
        Ok(received)
    }
}

#[inline]
fn read_control(meta: &mut RecvMeta, messages: Messages<'_>) {
    for (level, kind, data) in messages {
        match (level, kind) {
            // ip(7): a byte here, although an int is taken on send.
            (libc::IPPROTO_IP, libc::IP_TOS) => meta.ecn = data.first().and_then(|&b| Ecn::from_bits(b)),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                meta.ecn = int(data).and_then(|tos| Ecn::from_bits(tos as u8));
            }
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                meta.hop_limit = int(data).and_then(|hops| u8::try_from(hops).ok());
            }
            // struct in_pktinfo { int ifindex; in_addr spec_dst; in_addr addr; }: spec_dst is the one to answer from.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                meta.interface = interface(int(data));
                meta.local_ip = data.get(4..8).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(IpAddr::from);
            }
            // struct in6_pktinfo { in6_addr addr; int ifindex; }.
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let ip = data.first_chunk::<16>().map(|b| IpAddr::from(*b));
                meta.local_ip = ip.map(|ip| ip.to_canonical());
                meta.interface = interface(data.get(16..).and_then(int));
            }
            (libc::SOL_UDP, libc::UDP_GRO) => {
                if let Some(size) = int(data).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0) {
                    meta.segment_size = size;
                }
            }
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => meta.timestamp = timestamp(data),
            _ => {}
        }
    }
}

fn interface(index: Option<c_int>) -> Option<u32> {
    index.and_then(|index| u32::try_from(index).ok()).filter(|&index| index != 0)
}

/// `struct timespec`: two longs.
fn timestamp(data: &[u8]) -> Option<SystemTime> {
    const LONG: usize = size_of::<libc::c_long>();
    let long = |at: usize| {
        let bytes = data.get(at * LONG..)?.first_chunk::<LONG>()?;
        u64::try_from(libc::c_long::from_ne_bytes(*bytes)).ok()
    };
    let nanoseconds = u32::try_from(long(1)?).ok().filter(|&n| n < 1_000_000_000)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(long(0)?, nanoseconds))
}
