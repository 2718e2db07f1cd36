//! A socket with the options of another, to put in its place, or to have beside it.

use std::{io, net::SocketAddr, os::fd::AsRawFd};

use libc::{c_int, socklen_t};
use socket2::{Domain, Protocol, Socket, Type};

/// Options that are an int on every system, and that an owner may have set.
const OPTIONS: &[(c_int, c_int)] = &[
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    // After the type of service, which sets it, too.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    #[cfg(any(target_os = "linux", target_os = "android"))]
    (libc::SOL_SOCKET, libc::SO_MARK),
    #[cfg(any(target_os = "linux", target_os = "android"))]
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    #[cfg(any(target_os = "linux", target_os = "android"))]
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
    #[cfg(any(target_os = "linux", target_os = "android"))]
    (libc::IPPROTO_IP, libc::IP_UNICAST_IF),
    #[cfg(any(target_os = "linux", target_os = "android"))]
    (libc::IPPROTO_IPV6, 76), // IPV6_UNICAST_IF of `linux/in6.h`, which libc does not know everywhere.
    #[cfg(target_vendor = "apple")]
    (libc::IPPROTO_IP, libc::IP_BOUND_IF),
    #[cfg(target_vendor = "apple")]
    (libc::IPPROTO_IPV6, libc::IPV6_BOUND_IF),
];

/// What Linux reports of a buffer that was asked for: twice as much.
const REPORTED: usize = if cfg!(any(target_os = "linux", target_os = "android")) { 2 } else { 1 };

/// A socket to put in the place of `old`: bound to `local`, and connected if `old` is.
///
/// # Errors
/// Those of the system, of an option too: a datagram without its mark would go another way.
pub(crate) fn replacement(old: &Socket, local: SocketAddr) -> io::Result<Socket> {
    let new = unbound(old, local)?;
    let has = old.local_addr()?.as_socket().map(|addr| addr.port());
    if has == Some(local.port()) && !old.reuse_port()? {
        let bound = bind_beside(&new, old, local);
        new.set_reuse_port(false)?;
        bound?;
    } else {
        new.bind(&local.into())?;
    }
    if let Ok(peer) = old.peer_addr() {
        new.connect(&peer)?;
    }
    Ok(new)
}

/// A socket that is connected to `peer`, at the port of `main`, which goes on with all others' datagrams. What it receives before it is
/// connected may be from anyone. `prepare` is called before it receives anything.
///
/// # Errors
/// Those of the system.
pub(crate) fn connected_beside(
    main: &Socket,
    local: SocketAddr,
    peer: SocketAddr,
    prepare: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<Socket> {
    let new = unbound(main, local)?;
    prepare(&new)?;
    bind_beside(&new, main, source_towards(peer, main, local)?)?;
    new.connect(&peer.into())?;
    Ok(new)
}

/// The address that the route to `peer` has datagrams sent from, if `local` is unspecified. Linux may lose a datagram for a wildcard socket
/// while another one at its port gets its address by connecting: it moves to another list of the kernel's (`udp_lib_rehash`).
fn source_towards(peer: SocketAddr, main: &Socket, local: SocketAddr) -> io::Result<SocketAddr> {
    // A destination without a route is noticed before anything is received.
    let route = unbound(main, local)?;
    route.connect(&peer.into())?;
    if !local.ip().is_unspecified() {
        return Ok(local);
    }
    let mut source = route.local_addr()?.as_socket().unwrap_or(local);
    source.set_port(local.port());
    Ok(source)
}

/// Connects it to where nothing comes from, so that its peer's datagrams arrive elsewhere at its port. Where it cannot be connected twice
/// (XNU, the BSDs), they go on arriving until it is closed.
pub(crate) fn deafen(connected: &Socket) {
    /// RFC 863: discard.
    const NOBODY: u16 = 9;
    if cfg!(any(target_os = "linux", target_os = "android"))
        && let Ok(local) = connected.local_addr()
        && let Some(mut nobody) = local.as_socket()
    {
        nobody.set_port(NOBODY);
        // It is closed soon anyway.
        let _ = connected.connect(&nobody.into());
    }
}

fn unbound(old: &Socket, local: SocketAddr) -> io::Result<Socket> {
    let new = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    new.set_nonblocking(true)?;
    if local.is_ipv6() {
        new.set_only_v6(old.only_v6()?)?;
    }
    for &(level, name) in OPTIONS {
        // A socket of one family may not have the other's.
        if let Ok(value) = option(old, level, name)
            && value != option(&new, level, name)?
        {
            set_option(&new, level, name, value)?;
        }
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Some(device) = old.device()? {
        new.bind_device(Some(&device))?;
    }
    copy_size(old.recv_buffer_size()?, new.recv_buffer_size()?, |bytes| new.set_recv_buffer_size(bytes))?;
    copy_size(old.send_buffer_size()?, new.send_buffer_size()?, |bytes| new.set_send_buffer_size(bytes))?;
    Ok(new)
}

fn copy_size(wanted: usize, has: usize, set: impl Fn(usize) -> io::Result<()>) -> io::Result<()> {
    if wanted == has { Ok(()) } else { set(wanted / REPORTED) }
}

/// Binds `new` where `old` is. The port is shared for the moment of the bind: only this user's sockets could bind it meanwhile. `new` goes
/// on sharing it.
fn bind_beside(new: &Socket, old: &Socket, local: SocketAddr) -> io::Result<()> {
    new.set_reuse_port(true)?;
    let shares = old.reuse_port()?;
    if !shares {
        old.set_reuse_port(true)?;
    }
    let bound = new.bind(&local.into());
    if !shares {
        old.set_reuse_port(false)?;
    }
    bound
}

fn option(socket: &Socket, level: c_int, name: c_int) -> io::Result<c_int> {
    let (mut value, mut len): (c_int, _) = (0, size_of::<c_int>() as socklen_t);
    // SAFETY: the kernel writes an int to the pointer, and its length is given.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

fn set_option(socket: &Socket, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let (value, len) = ((&raw const value).cast(), size_of::<c_int>() as socklen_t);
    // SAFETY: the kernel reads an int from the pointer, and its length is given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
