//! Linux and Android: a second socket that sends from the same address and port, and receives nothing.
//!
//! It is bound to the same port of a *multicast* address of which this host is no member. The kernel then takes the source address from
//! the message or the route, as for an unbound socket (`__inet_bind`, `inet6_bind`: `inet_saddr` stays zero). A lookup never finds it:
//! neither for a datagram to the port, nor for an ICMP error about what it has sent, which goes to the socket that receives. It is not
//! in that one's `SO_REUSEPORT` group, which is of equal addresses only (`reuseport_add_sock`): the spread of clients over a group's
//! sockets stays as it is.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

use libc::socklen_t;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{
    State,
    imp::{IPV6_UNICAST_IF, option, set_option},
};
use crate::io::SendBuffer;

#[cfg(not(target_os = "android"))]
use libc::SO_MEMINFO;
/// `asm-generic/socket.h`, which Android's architectures have; libc does not know it there.
#[cfg(target_os = "android")]
const SO_MEMINFO: libc::c_int = 55;

/// The addresses that nobody uses: MCAST-TEST-NET and the any-source multicast addresses for documentation (RFC 6676, sections 2 and 3).
const NOBODY_V4: Ipv4Addr = Ipv4Addr::new(233, 252, 0, 1);
const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0xdb8, 0, 1);

/// Bytes, of which the kernel makes twice as many. Sixteen of them are less than what a relay's listener has.
const LARGEST_BUFFER: usize = 512 << 10;

pub(crate) fn send_buffer(socket: SockRef<'_>) -> Option<SendBuffer> {
    /// `linux/sock_diag.h`.
    const WMEM_ALLOC: usize = 2;
    const SNDBUF: usize = 3;
    let (mut info, mut len) = ([0u32; 9], size_of::<[u32; 9]>() as socklen_t);
    // SAFETY: the kernel writes at most `len` bytes to the pointer.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_MEMINFO, info.as_mut_ptr().cast(), &raw mut len)
    };
    // Kernels before 4.12 do not have it.
    (result == 0).then_some(SendBuffer { used: info[WMEM_ALLOC] as usize, size: info[SNDBUF] as usize })
}

/// Such a socket, for one that is bound to `local`.
///
/// # Errors
/// Those of the system. `Unsupported` for a dual-stack socket, and for a link-local address, which needs its interface.
pub(crate) fn send_only(main: &Socket, local: SocketAddr) -> io::Result<(Socket, State)> {
    let nobody = match local.ip() {
        IpAddr::V4(_) => IpAddr::from(NOBODY_V4),
        IpAddr::V6(ip) if ip.is_unicast_link_local() || !main.only_v6()? => {
            return Err(io::ErrorKind::Unsupported.into());
        }
        IpAddr::V6(_) => NOBODY_V6.into(),
    };
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // What the owner may have set. The type of service sets the priority, too.
    let of_family = if local.is_ipv4() {
        [(libc::IPPROTO_IP, libc::IP_TOS), (libc::IPPROTO_IP, libc::IP_UNICAST_IF)]
    } else {
        [(libc::IPPROTO_IPV6, libc::IPV6_TCLASS), (libc::IPPROTO_IPV6, IPV6_UNICAST_IF)]
    };
    for (level, name) in [
        of_family[0],
        of_family[1],
        (libc::SOL_SOCKET, libc::SO_PRIORITY),
        (libc::SOL_SOCKET, libc::SO_MARK),
        (libc::SOL_SOCKET, libc::SO_BROADCAST),
    ] {
        let value = option(main, level, name)?;
        if value != option(&socket, level, name)? {
            set_option(&socket, level, name, value)?;
        }
    }
    if let Some(device) = main.device()? {
        socket.bind_device(Some(&device))?;
    }
    socket.set_send_buffer_size((main.send_buffer_size()? / 2).min(LARGEST_BUFFER))?;
    socket.set_reuse_port(true)?;
    bind(&socket, SocketAddr::new(nobody, local.port()), main, local.ip().is_unspecified())?;
    let mut state = State::new(&socket, false)?;
    state.send_from(Some(local.ip()).filter(|ip| !ip.is_unspecified()));
    Ok((socket, state))
}

/// A port that is bound at all addresses has to be shared for the moment of the bind. Only this user's sockets could bind it meanwhile.
fn bind(socket: &Socket, to: SocketAddr, main: &Socket, everywhere: bool) -> io::Result<()> {
    let share = everywhere && option(main, libc::SOL_SOCKET, libc::SO_REUSEPORT)? == 0;
    if share {
        main.set_reuse_port(true)?;
    }
    let bound = socket.bind(&to.into());
    if share {
        main.set_reuse_port(false)?;
    }
    bound
}
