//! Linux and Android: `sendmsg` and `sendmmsg` with `UDP_SEGMENT`, `recvmmsg` with `UDP_GRO`.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd,
    ptr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use libc::{c_int, c_void, iovec, mmsghdr, msghdr};
use socket2::{Domain, SockRef, Socket};

use super::{Outgoing, SLOT_BYTES, Segmentation, SentSeveral, cmsg::Control, devices};
use crate::{
    events::{IcmpError, IcmpKind, IcmpQuote},
    socket::{Fragmentation, Leaving},
    wait::decision::Os,
};

pub(crate) const OS: Os = Os::Linux;

/// `PRIORITY` is how the error queue wakes a receiver: `SO_SELECT_ERR_QUEUE` makes `datagram_poll` report `EPOLLPRI` with
/// it, while `EPOLLERR` alone wakes nobody who waits to read.
pub(crate) const RECEIVE_INTEREST: tokio::io::Interest =
    tokio::io::Interest::READABLE.add(tokio::io::Interest::PRIORITY);

/// Entries of the error queue that are read at a time; a receive buffer of the default size holds some 280.
const DRAIN_BUDGET: usize = 512;

/// `linux/errqueue.h`: the error was made here, or an ICMP message was received.
const SO_EE_ORIGIN_LOCAL: u8 = 1;
const SO_EE_ORIGIN_ICMP: u8 = 2;
const SO_EE_ORIGIN_ICMP6: u8 = 3;

/// `linux/in6.h`; libc does not know it everywhere.
pub(super) const IPV6_UNICAST_IF: c_int = 76;

#[cfg(not(target_os = "android"))]
use libc::SO_SELECT_ERR_QUEUE;
/// `asm-generic/socket.h`, which Android's architectures have; libc does not know it there.
#[cfg(target_os = "android")]
const SO_SELECT_ERR_QUEUE: c_int = 45;

pub(crate) struct State {
    /// Whether it can send IPv4: as mapped addresses from an IPv6 socket.
    v4: bool,
    v6: bool,
    /// What of the type-of-service byte and of the traffic class is not the ECN field: what the socket was given before.
    dscp: [u8; 2],
    segmentation: Segmentation,
    /// Whether datagrams may arrive as GRO batches.
    receive_offload: AtomicBool,
    /// A kernel has refused the ECN field.
    no_ecn: AtomicBool,
    /// What datagrams that name no source are sent from, if not from what the socket is bound to.
    source: Option<IpAddr>,
}

impl State {
    pub(crate) fn new(socket: &Socket, packet_info: bool) -> io::Result<Self> {
        let v6 = socket.domain()? == Domain::IPV6;
        let on = |level, name| set_option(socket, level, name, 1);
        let v4 = !v6 || !socket.only_v6()?;
        if v6 {
            on(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS)?;
            on(libc::IPPROTO_IPV6, libc::IPV6_RECVERR)?;
            if packet_info {
                on(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)?;
            }
        }
        if v4 {
            on(libc::IPPROTO_IP, libc::IP_RECVTOS)?;
            // Without it a full queue discipline loses the datagram and reports success.
            on(libc::IPPROTO_IP, libc::IP_RECVERR)?;
            if packet_info {
                on(libc::IPPROTO_IP, libc::IP_PKTINFO)?;
            }
        }
        on(libc::SOL_SOCKET, SO_SELECT_ERR_QUEUE)?;
        // Kernels before 5.0 have no receive offload: datagrams then arrive one by one.
        let receive_offload = on(libc::SOL_UDP, libc::UDP_GRO).is_ok();
        // Kernels before 4.18 have no segmentation offload; the option of the socket tells whether the message would
        // be understood.
        let segmentation = set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        devices::socket_made();
        let dscp = |level, name, has| if has { option(socket, level, name).map(|tos| tos as u8 & !3) } else { Ok(0) };
        let dscp = [dscp(libc::IPPROTO_IP, libc::IP_TOS, v4)?, dscp(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, v6)?];
        let segmentation = Segmentation::new(segmentation);
        let (receive_offload, no_ecn) = (AtomicBool::new(receive_offload), AtomicBool::new(false));
        let state = Self { v4, v6, dscp, segmentation, receive_offload, no_ecn, source: None };
        state.set_fragmentation(&SockRef::from(socket), Fragmentation::Never)?;
        Ok(state)
    }

    pub(crate) fn send_from(&mut self, source: Option<IpAddr>) {
        self.source = source;
    }

    pub(crate) fn set_fragmentation(&self, socket: &Socket, fragmentation: Fragmentation) -> io::Result<()> {
        let (v4, v6) = match fragmentation {
            // PROBE, not DO: a forged "packet too big" must not shrink what leaves here.
            Fragmentation::Never => (libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_PROBE),
            // OMIT, not DONT, for the same reason. IPv6 routers do not fragment: there the kernel has to learn.
            Fragmentation::Allowed => (libc::IP_PMTUDISC_OMIT, libc::IPV6_PMTUDISC_DONT),
        };
        if self.v6 {
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, v6)?;
        }
        if self.v4 {
            set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, v4)?;
        }
        Ok(())
    }

    /// `None`: the system's default.
    pub(crate) fn set_hop_limit(&self, socket: &Socket, hops: Option<u8>) -> io::Result<()> {
        // -1 is the kernel's word for its default, in both options (`do_ip_setsockopt`, `do_ipv6_setsockopt`).
        let hops = hops.map_or(-1, c_int::from);
        if self.v6 {
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, hops)?;
        }
        if self.v4 {
            set_option(socket, libc::IPPROTO_IP, libc::IP_TTL, hops)?;
        }
        Ok(())
    }

    pub(crate) fn receive_hop_limit(&self, socket: &Socket) -> io::Result<()> {
        if self.v6 {
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)?;
        }
        if self.v4 {
            set_option(socket, libc::IPPROTO_IP, libc::IP_RECVTTL, 1)?;
        }
        Ok(())
    }

    pub(crate) fn receive_timestamps(&self, socket: &Socket) -> io::Result<()> {
        set_option(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)
    }

    pub(crate) fn no_receive_offload(&self, socket: &Socket) -> io::Result<()> {
        self.receive_offload.store(false, Relaxed);
        // A kernel that does not know it has none.
        let _ = set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 0);
        Ok(())
    }

    pub(crate) fn max_receive_segments(&self) -> usize {
        // `UDP_GRO_CNT_MAX` of Linux.
        if self.receive_offload.load(Relaxed) { 64 } else { 1 }
    }

    pub(crate) fn max_segments(&self) -> usize {
        if self.segmentation.is_supported() { devices::limits().0 } else { 1 }
    }

    #[inline]
    pub(crate) fn limits(&self, to: &SocketAddr, segment_bytes: usize) -> (usize, usize) {
        if self.segmentation.allows(to, segment_bytes) { devices::limits() } else { (1, usize::MAX) }
    }

    pub(crate) fn segmentation_refused(&self, to: &SocketAddr, segment_bytes: usize) {
        self.segmentation.refused(to, segment_bytes);
    }

    pub(crate) fn drain_errors(&self, socket: SockRef<'_>, mut event: impl FnMut(IcmpError)) {
        for _ in 0..DRAIN_BUDGET {
            let mut name = Name::new();
            let mut control = Control::<256>::new();
            // SAFETY: all zeroes is a valid msghdr (null pointers with zero lengths).
            let mut header: msghdr = unsafe { mem::zeroed() };
            header.msg_name = name.0.as_mut_ptr().cast();
            header.msg_namelen = Name::BYTES as _;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = 256 as _;
            let mut payload = [0u8; IcmpQuote::MAX];
            let mut slice = iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
            (header.msg_iov, header.msg_iovlen) = (&raw mut slice, 1);
            // SAFETY: name, control, slice and payload outlive the call and their lengths are given with them.
            let n =
                unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
            if n < 0 {
                break;
            }
            let control = control.received(header.msg_controllen as _);
            if let Some(error) = control.filter_map(|message| extended_error(message, name.read())).next() {
                let quoted = payload.get(..n as usize).unwrap_or(&payload).into();
                event(IcmpError { quoted, ..error });
            }
        }
    }

    pub(crate) fn send(&self, socket: SockRef<'_>, out: &Outgoing<'_>, peer: Option<SocketAddr>) -> io::Result<()> {
        let (mut name, mut control) = (Name::new(), Control::new());
        // SAFETY: all zeroes is a valid msghdr (null pointers with zero lengths).
        let mut header: msghdr = unsafe { mem::zeroed() };
        self.address(out, peer, &mut name, &mut header)?;
        self.describe(out, &mut control, &mut header);
        // The kernel takes longer to look at a slice than to copy 600 bytes, and little less long than to copy 1,200
        // (`cargo xtask bench udp`, the forwarding rows).
        match out.slices {
            [_, _, ..] => super::gathered(out, |bytes| send_message(&socket, &mut header, &[IoSlice::new(bytes)])),
            _ => send_message(&socket, &mut header, out.slices),
        }
        .map(drop)
        .or_else(|error| self.send_without_ecn(socket, out, peer, error))
    }

    /// Kernels before 3.13 refuse the ECN field of one message with `EINVAL`, some Android ones with `EIO`: a datagram goes without
    /// it then, and so do all after it.
    #[cold]
    fn send_without_ecn(
        &self,
        socket: SockRef<'_>,
        out: &Outgoing<'_>,
        peer: Option<SocketAddr>,
        error: io::Error,
    ) -> io::Result<()> {
        let may_be_it = matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO))
            && out.ecn.is_some()
            && out.segment_size.is_none()
            && !self.no_ecn.load(Relaxed);
        if !may_be_it || self.send(socket, &Outgoing { ecn: None, ..*out }, peer).is_err() {
            return Err(error);
        }
        self.no_ecn.store(true, Relaxed);
        Ok(())
    }

    pub(crate) fn send_several<'a>(
        &self,
        socket: SockRef<'_>,
        outs: impl Iterator<Item = Outgoing<'a>>,
        peer: Option<SocketAddr>,
    ) -> io::Result<SentSeveral> {
        thread_local! {
            static ROOM: RefCell<Option<Box<Room>>> = const { RefCell::new(None) };
        }
        // Taken out meanwhile: a thread that ends has none any more, and gets one for the occasion.
        let mut room = ROOM.try_with(RefCell::take).ok().flatten().unwrap_or_default();
        let sent = room.send(self, socket, outs, peer);
        let _ = ROOM.try_with(|kept| kept.replace(Some(room)));
        sent
    }

    /// Addresses a message. It points to `name`.
    #[inline(always)]
    fn address(
        &self,
        out: &Outgoing<'_>,
        peer: Option<SocketAddr>,
        name: &mut Name,
        header: &mut msghdr,
    ) -> io::Result<()> {
        let name_len = match peer {
            None => name.write(out.destination, self.v6),
            // The name left out saves looking up the route.
            Some(peer) if super::is_same(&peer, out.destination) => 0,
            Some(_) => return Err(io::Error::from_raw_os_error(libc::EISCONN)),
        };
        if out.source.is_some() && super::is_of_another_family(out.source, self.v6) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        header.msg_name = name.0.as_mut_ptr().cast();
        header.msg_namelen = name_len;
        Ok(())
    }

    /// Says the rest of what is not in the bytes. The message points to `control`.
    #[inline(always)]
    fn describe(&self, out: &Outgoing<'_>, control: &mut Control<SEND_CONTROL>, header: &mut msghdr) {
        control.clear();
        if let Some(size) = out.segment_size {
            devices::batch_offered();
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
        }
        if let Some(ecn) = out.ecn
            && !self.no_ecn.load(Relaxed)
        {
            let [tos, class] = self.dscp.map(|dscp| c_int::from(dscp | ecn as u8).to_ne_bytes());
            // The kernel reads the one of the packet's family, and a mapped destination makes an IPv4 packet.
            if out.destination.ip().to_canonical().is_ipv4() {
                control.push(libc::IPPROTO_IP, libc::IP_TOS, &tos);
            } else {
                control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &class);
            }
        }
        if let Some(source) = out.source.or(self.source) {
            push_source(control, source, self.v6);
        }
        // A length of zero is none at all.
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control.len() as _;
    }
}

/// Sets how datagrams leave.
pub(crate) fn set_leaving(socket: &Socket, leaving: &Leaving) -> io::Result<()> {
    let v6 = socket.domain()? == Domain::IPV6;
    let v4 = !v6 || !socket.only_v6()?;
    if let Some(mark) = leaving.mark {
        socket.set_mark(mark)?;
    }
    // The index is in network byte order (`do_ip_setsockopt`, `do_ipv6_setsockopt`).
    let interface = leaving.interface.filter(|_| leaving.device.is_none()).map(|index| index.to_be() as c_int);
    let tos = leaving.dscp.map(|dscp| c_int::from(dscp << 2));
    for (has, level, tos_name, interface_name) in [
        (v4, libc::IPPROTO_IP, libc::IP_TOS, libc::IP_UNICAST_IF),
        (v6, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, IPV6_UNICAST_IF),
    ] {
        for (name, value) in [(tos_name, tos), (interface_name, interface)] {
            if let Some(value) = value.filter(|_| has) {
                set_option(socket, level, name, value)?;
            }
        }
    }
    if let Some(device) = &leaving.device {
        socket.bind_device(Some(device))?;
    }
    Ok(())
}

/// Makes the call. Inlined: the call leaves nothing of what predicts a return.
#[inline(always)]
fn send_message(socket: &SockRef<'_>, header: &mut msghdr, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    header.msg_iov = slices.as_ptr().cast_mut().cast::<iovec>();
    header.msg_iovlen = slices.len() as _;
    let header = ptr::from_ref(header);
    // SAFETY: what the header points to outlives the call: name and control are its maker's, with their lengths, and IoSlice is
    // guaranteed to have the layout of iovec. The kernel reads them only.
    done(unsafe { libc::syscall(libc::SYS_sendmsg, socket.as_raw_fd(), header, SEND_FLAGS) })
}

/// Whether the same can be said of both.
fn are_alike(one: &Outgoing<'_>, other: &Outgoing<'_>) -> bool {
    let family = |out: &Outgoing<'_>| out.destination.ip().to_canonical().is_ipv4();
    one.segment_size == other.segment_size
        && one.source == other.source
        && one.ecn == other.ecn
        && (one.ecn.is_none() || family(one) == family(other))
}

/// Messages that one call sends, at most.
const MAX_MESSAGES: usize = 64;

/// What several messages need beside their bytes. It is kept: to clear it for each call would cost more than the calls
/// that are saved.
struct Room {
    names: [Name; MAX_MESSAGES],
    controls: [Control<SEND_CONTROL>; MAX_MESSAGES],
    slices: [iovec; MAX_MESSAGES],
    headers: [mmsghdr; MAX_MESSAGES],
    gathered: Box<[u8]>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            names: [Name::new(); _],
            controls: [Control::new(); _],
            slices: [iovec { iov_base: ptr::null_mut(), iov_len: 0 }; _],
            // SAFETY: all zeroes is a valid mmsghdr (null pointers with zero lengths).
            headers: [unsafe { mem::zeroed() }; _],
            gathered: vec![0; SLOT_BYTES].into(),
        }
    }
}

impl Room {
    fn send<'a>(
        &mut self,
        state: &State,
        socket: SockRef<'_>,
        outs: impl Iterator<Item = Outgoing<'a>>,
        peer: Option<SocketAddr>,
    ) -> io::Result<SentSeveral> {
        let mut free = &mut *self.gathered;
        let places = self.names.iter_mut().zip(&mut self.controls).zip(&mut self.slices).zip(&mut self.headers);
        let mut ready = 0;
        let mut last: Option<(Outgoing<'_>, *mut c_void, _)> = None;
        for (out, (((name, control), slice), place)) in outs.zip(places) {
            let header = &mut place.msg_hdr;
            match state.address(&out, peer, name, header) {
                Err(e) if ready == 0 => return Err(e),
                Err(_) => break,
                Ok(()) => {}
            }
            // Each cache line less counts: the call before has left nothing in the cache.
            match &last {
                Some((last, control, len)) if are_alike(last, &out) => {
                    (header.msg_control, header.msg_controllen) = (*control, *len);
                }
                _ => state.describe(&out, control, header),
            }
            if out.slices.len() > 1 {
                let Some((bytes, rest)) = std::mem::take(&mut free).split_at_mut_checked(out.bytes) else { break };
                free = rest;
                super::gather(out.slices, bytes);
                *slice = iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
                header.msg_iov = slice;
                header.msg_iovlen = 1;
            } else {
                header.msg_iov = out.slices.as_ptr().cast_mut().cast::<iovec>();
                header.msg_iovlen = out.slices.len() as _;
            }
            last = Some((out, header.msg_control, header.msg_controllen));
            ready += 1;
        }
        // SAFETY: the headers point to the caller's slices, and to places of `self` that neither move nor grow until the
        // call has returned; every length is given with them. The kernel writes to `msg_len` only.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), ready, SEND_FLAGS as _) };
        match usize::try_from(sent) {
            Err(_) => Err(io::Error::last_os_error()),
            Ok(messages) => Ok(SentSeveral { messages, failed: messages < ready as usize }),
        }
    }
}

/// Bytes of control messages on send: 24 for `UDP_SEGMENT` and for ECN each, 40 for a source.
const SEND_CONTROL: usize = 88;

/// Not to wait, whatever the owner of another descriptor of the socket has made of `O_NONBLOCK`.
const SEND_FLAGS: c_int = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

/// Reads `struct sock_extended_err` and the address behind it: who reported the error. `None` for one made here, unless it
/// tells the route's MTU.
fn extended_error((level, kind, data): (i32, i32, &[u8]), destination: SocketAddr) -> Option<IcmpError> {
    match (level, kind) {
        (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {}
        _ => return None,
    }
    let (head, offender) = data.split_first_chunk::<16>()?;
    let [e0, e1, e2, e3, origin, icmp_type, code, _, i0, i1, i2, i3, ..] = *head;
    let mtu = u32::from_ne_bytes([i0, i1, i2, i3]);
    let kind = match (origin, c_int::from_ne_bytes([e0, e1, e2, e3])) {
        (SO_EE_ORIGIN_LOCAL, libc::EMSGSIZE) => IcmpKind::LocalMtu { mtu },
        (SO_EE_ORIGIN_ICMP | SO_EE_ORIGIN_ICMP6, libc::EMSGSIZE) => IcmpKind::PacketTooBig { mtu },
        (SO_EE_ORIGIN_ICMP | SO_EE_ORIGIN_ICMP6, _) => IcmpKind::Unreachable { icmp_type, code },
        // Made here, or no error at all: a timestamp of what was sent, say.
        _ => return None,
    };
    let mut name = Name::new();
    let len = offender.len().min(Name::BYTES);
    name.0.get_mut(..len)?.copy_from_slice(offender.get(..len)?);
    let reporter = name.read().ip();
    let reporter = Some(reporter).filter(|ip| !ip.is_unspecified());
    Some(IcmpError { destination, reporter, kind, quoted: IcmpQuote::default() })
}

pub(super) fn int(data: &[u8]) -> Option<c_int> {
    data.first_chunk().map(|b| c_int::from_ne_bytes(*b))
}

fn push_source<const N: usize>(control: &mut Control<N>, source: IpAddr, v6: bool) {
    match (if v6 { source } else { source.to_canonical() }, v6) {
        (IpAddr::V4(ip), false) => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&ip.octets());
            control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        (ip, _) => {
            let ip = match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            let mut info = [0; 20];
            info[..16].copy_from_slice(&ip.octets());
            control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
    }
}

/// `struct sockaddr_in` or `sockaddr_in6`, as bytes.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
pub(super) struct Name(pub(super) [u8; Name::BYTES]);

impl Name {
    pub(super) const BYTES: usize = size_of::<libc::sockaddr_in6>();

    pub(super) const fn new() -> Self {
        Self([0; Self::BYTES])
    }

    /// Writes `to` and returns its length; as an IPv6 address if `v6`.
    fn write(&mut self, to: &SocketAddr, v6: bool) -> libc::socklen_t {
        let b = &mut self.0;
        b[2..4].copy_from_slice(&to.port().to_be_bytes());
        match to {
            SocketAddr::V4(to) if !v6 => {
                b[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                b[4..8].copy_from_slice(&to.ip().octets());
                size_of::<libc::sockaddr_in>() as _
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => {
                b[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                let (ip, flow, scope) = match to {
                    SocketAddr::V4(to) => (to.ip().to_ipv6_mapped(), 0, 0),
                    SocketAddr::V6(to) => (*to.ip(), to.flowinfo(), to.scope_id()),
                };
                b[4..8].copy_from_slice(&flow.to_ne_bytes());
                b[8..24].copy_from_slice(&ip.octets());
                b[24..28].copy_from_slice(&scope.to_ne_bytes());
                size_of::<libc::sockaddr_in6>() as _
            }
        }
    }

    /// The address, with an IPv4 address that was mapped into IPv6 as what it is.
    pub(super) fn read(&self) -> SocketAddr {
        let b = &self.0;
        let port = u16::from_be_bytes([b[2], b[3]]);
        if u16::from_ne_bytes([b[0], b[1]]) == libc::AF_INET as u16 {
            return SocketAddrV4::new(Ipv4Addr::new(b[4], b[5], b[6], b[7]), port).into();
        }
        let ip: [u8; 16] = std::array::from_fn(|i| b[8 + i]);
        let ip = Ipv6Addr::from(ip);
        match ip.to_ipv4_mapped() {
            Some(ip) => SocketAddrV4::new(ip, port).into(),
            None => {
                let scope = u32::from_ne_bytes([b[24], b[25], b[26], b[27]]);
                SocketAddrV6::new(ip, port, 0, scope).into()
            }
        }
    }
}

/// What a system call has returned. Those that move datagrams are made directly: glibc's functions are points where a
/// thread may be cancelled, and what they do for that costs as much as all else around the call.
pub(super) fn done(returned: libc::c_long) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

pub(super) fn option(socket: &Socket, level: c_int, name: c_int) -> io::Result<c_int> {
    let (mut value, mut len): (c_int, _) = (0, size_of::<c_int>() as libc::socklen_t);
    // SAFETY: the kernel writes an int to the pointer, and its length is given.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

pub(super) fn set_option(socket: &Socket, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads an int from the pointer, and its length is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive() {
        for (text, v6) in
            [("127.0.0.1:3478", false), ("192.0.2.7:65535", true), ("[2001:db8::1]:1", true), ("[fe80::1%3]:9", true)]
        {
            let addr: SocketAddr = text.parse().unwrap();
            let mut name = Name::new();
            name.write(&addr, v6);
            assert_eq!(name.read(), addr);
        }
    }

    #[test]
    fn a_family_that_does_not_fit_is_left_to_the_kernel() {
        let mut name = Name::new();
        let len = name.write(&"[::1]:9".parse().unwrap(), false);
        assert_eq!(len as usize, Name::BYTES);
    }
}
