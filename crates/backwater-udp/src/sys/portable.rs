//! Everything but Linux, through quinn-udp. (And Linux too under `--cfg backwater_portable`, to be tested.)

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
};

use quinn_udp::{EcnCodepoint, RecvMeta, UdpSocketState};
use socket2::{SockRef, Socket};

use super::{Outgoing, Segmentation, SentSeveral};
use crate::{
    Ecn,
    events::IcmpError,
    gso::MAX_SEGMENTS,
    socket::{Fragmentation, Leaving},
    wait::decision::Os,
};

pub(crate) const OS: Os = if cfg!(target_vendor = "apple") { Os::Apple } else { Os::Other };

#[cfg(unix)]
pub(crate) const RECEIVE_INTEREST: tokio::io::Interest = tokio::io::Interest::READABLE;

/// Apple has no SO_DOMAIN; an unbound socket has the unspecified address of its family.
fn is_v6(socket: &Socket) -> io::Result<bool> {
    Ok(socket.local_addr()?.is_ipv6())
}

pub(crate) struct State {
    inner: UdpSocketState,
    v6: bool,
    segmentation: Segmentation,
}

impl State {
    pub(crate) fn new(socket: &Socket, _packet_info: bool) -> io::Result<Self> {
        let inner = UdpSocketState::new(socket.into())?;
        // Connected sockets are not sent on by quinn-udp, but on Windows.
        let segmentation = Segmentation::new(!cfg!(unix) || socket.peer_addr().is_err());
        Ok(Self { inner, v6: is_v6(socket)?, segmentation })
    }

    /// quinn-udp has set DF where it can; what differs from that is set here.
    pub(crate) fn set_fragmentation(&self, socket: &Socket, fragmentation: Fragmentation) -> io::Result<()> {
        dont_fragment::set(socket, fragmentation == Fragmentation::Never)
    }

    /// It is not told what arrived with which, so there is nothing to send on.
    pub(crate) fn set_hop_limit(&self, _socket: &Socket, _hops: Option<u8>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// quinn-udp does not tell it.
    pub(crate) fn receive_hop_limit(&self, _socket: &Socket) -> io::Result<()> {
        Ok(())
    }

    /// quinn-udp asks for none but on Linux.
    pub(crate) fn receive_timestamps(&self, _socket: &Socket) -> io::Result<()> {
        Ok(())
    }

    /// quinn-udp has switched it on where it can.
    pub(crate) fn no_receive_offload(&self, _socket: &Socket) -> io::Result<()> {
        if self.max_receive_segments() == 1 { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    pub(crate) fn max_receive_segments(&self) -> usize {
        self.inner.gro_segments()
    }

    pub(crate) fn max_segments(&self) -> usize {
        if self.segmentation.is_supported() { self.inner.max_gso_segments().min(MAX_SEGMENTS) } else { 1 }
    }

    pub(super) fn receive(
        &self,
        socket: SockRef<'_>,
        bufs: &mut [IoSliceMut<'_>],
        told: &mut [RecvMeta],
    ) -> io::Result<usize> {
        self.inner.recv((&*socket).into(), bufs, told)
    }

    pub(crate) fn limits(&self, to: &SocketAddr, segment_bytes: usize) -> (usize, usize) {
        let allows = self.segmentation.allows(to, segment_bytes);
        (if allows { self.inner.max_gso_segments().min(MAX_SEGMENTS) } else { 1 }, usize::MAX)
    }

    pub(crate) fn segmentation_refused(&self, to: &SocketAddr, segment_bytes: usize) {
        self.segmentation.refused(to, segment_bytes);
    }

    /// There is no error queue.
    pub(crate) fn drain_errors(&self, _socket: SockRef<'_>, _event: impl FnMut(IcmpError)) {}

    pub(crate) fn send(&self, socket: SockRef<'_>, out: &Outgoing<'_>, peer: Option<SocketAddr>) -> io::Result<()> {
        let is_elsewhere = peer.is_some_and(|peer| !super::is_same(&peer, out.destination));
        if is_elsewhere || super::is_of_another_family(out.source, self.v6) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let send = |contents: &[u8]| {
            #[cfg(unix)]
            if peer.is_some() {
                return super::connected::send(socket, out, contents);
            }
            self.send_contents(socket, out, contents)
        };
        match out.slices {
            [] => send(&[]),
            [one] => send(one),
            _ => super::gathered(out, send),
        }
    }

    pub(crate) fn send_several<'a>(
        &self,
        socket: SockRef<'_>,
        outs: impl Iterator<Item = Outgoing<'a>>,
        peer: Option<SocketAddr>,
    ) -> io::Result<SentSeveral> {
        let messages = super::one_by_one(outs, |out| self.send((&*socket).into(), out, peer))?;
        Ok(SentSeveral { messages, failed: false })
    }

    fn send_contents(&self, socket: SockRef<'_>, out: &Outgoing<'_>, contents: &[u8]) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination: *out.destination,
            ecn: out.ecn.map(codepoint),
            contents,
            segment_size: out.segment_size.map(usize::from),
            src_ip: *out.source,
        };
        // `send` would swallow errors.
        self.inner.try_send((&*socket).into(), &transmit)
    }
}

/// No system but Linux has all of them.
pub(crate) fn set_leaving(_socket: &Socket, _leaving: &Leaving) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn codepoint(ecn: Ecn) -> EcnCodepoint {
    match ecn {
        Ecn::Ect0 => EcnCodepoint::Ect0,
        Ecn::Ect1 => EcnCodepoint::Ect1,
        Ecn::Ce => EcnCodepoint::Ce,
    }
}

#[cfg(any(target_vendor = "apple", target_os = "freebsd", target_os = "linux", target_os = "android"))]
mod dont_fragment {
    use std::{io, os::fd::AsRawFd};

    use libc::c_int;
    use socket2::Socket;

    #[cfg(any(target_os = "linux", target_os = "android"))]
    const V4: (c_int, c_int, c_int) = (libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE, libc::IP_PMTUDISC_OMIT);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const V6: (c_int, c_int, c_int) = (libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_DONT);
    #[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
    const V4: (c_int, c_int, c_int) = (libc::IP_DONTFRAG, 1, 0);
    #[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
    const V6: (c_int, c_int, c_int) = (libc::IPV6_DONTFRAG, 1, 0);

    pub(super) fn set(socket: &Socket, dont: bool) -> io::Result<()> {
        let v6 = super::is_v6(socket)?;
        if v6 {
            set_option(socket, libc::IPPROTO_IPV6, V6, dont)?;
        }
        // Apple and FreeBSD know no IPv4 option of an IPv6 socket: mapped destinations keep the system's default.
        if !v6 || (cfg!(any(target_os = "linux", target_os = "android")) && !socket.only_v6()?) {
            set_option(socket, libc::IPPROTO_IP, V4, dont)?;
        }
        Ok(())
    }

    fn set_option(socket: &Socket, level: c_int, (name, on, off): (c_int, c_int, c_int), dont: bool) -> io::Result<()> {
        let value = if dont { on } else { off };
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
}

#[cfg(not(any(target_vendor = "apple", target_os = "freebsd", target_os = "linux", target_os = "android")))]
mod dont_fragment {
    pub(super) fn set(_socket: &socket2::Socket, _dont: bool) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}
