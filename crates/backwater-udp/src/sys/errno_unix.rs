//! The errors of sends and receives, from their numbers.

use std::{io, os::fd::AsRawFd};

use socket2::SockRef;

use crate::wait::decision::Errno;

pub(crate) fn errno(e: &io::Error) -> Errno {
    match e.raw_os_error() {
        Some(libc::EAGAIN) => Errno::WouldBlock,
        Some(libc::EINTR) => Errno::Interrupted,
        Some(libc::ENOBUFS | libc::ENOMEM) => Errno::NoBuffers,
        Some(libc::EMSGSIZE) => Errno::MessageSize,
        Some(libc::EINVAL | libc::EAFNOSUPPORT | libc::EDESTADDRREQ | libc::EISCONN) => Errno::Invalid,
        Some(libc::EIO) => Errno::Io,
        Some(libc::EPERM) => Errno::NotPermitted,
        Some(libc::EACCES) => Errno::Prohibited,
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN | libc::EADDRNOTAVAIL) => {
            Errno::Unreachable
        }
        Some(
            libc::ECONNREFUSED
            | libc::ECONNRESET
            | libc::ENETRESET
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::EOPNOTSUPP,
        ) => Errno::Refused,
        #[cfg(any(target_os = "linux", target_os = "android"))]
        Some(libc::ENONET) => Errno::Refused,
        Some(libc::EBADF | libc::ENOTSOCK | libc::EPIPE) => Errno::Socket,
        Some(_) => Errno::Other,
        // Not the system's: it was seen here, or by quinn-udp, that it cannot be sent so.
        None if e.kind() == io::ErrorKind::InvalidInput => Errno::Invalid,
        // The reactor's.
        None => Errno::Socket,
    }
}

/// Whether `poll` says now that the socket has room.
pub(crate) fn writable(socket: SockRef<'_>) -> bool {
    let mut fd = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid entry, and no time to wait.
    let ready = unsafe { libc::poll(&raw mut fd, 1, 0) };
    ready == 1 && fd.revents & libc::POLLOUT != 0
}
