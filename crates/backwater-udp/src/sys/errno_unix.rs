//! The errors of a send, from their numbers.

use std::io;

use crate::decision::Errno;

pub(crate) fn errno(e: &io::Error) -> Errno {
    match e.raw_os_error() {
        Some(libc::EAGAIN) => Errno::WouldBlock,
        Some(libc::EINTR) => Errno::Interrupted,
        Some(libc::ENOBUFS | libc::ENOMEM) => Errno::NoBuffers,
        Some(libc::EMSGSIZE) => Errno::MessageSize,
        Some(libc::EINVAL | libc::EAFNOSUPPORT | libc::EDESTADDRREQ) => Errno::Invalid,
        Some(libc::EIO) => Errno::Io,
        Some(libc::EPERM | libc::EACCES) => Errno::NotPermitted,
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN | libc::EADDRNOTAVAIL) => {
            Errno::Unreachable
        }
        Some(libc::ECONNREFUSED | libc::ECONNRESET) => Errno::Refused,
        _ => Errno::Other,
    }
}
