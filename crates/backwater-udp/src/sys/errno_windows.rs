//! The errors of a send, from their numbers (`WSAGetLastError`).

use std::io;

use socket2::SockRef;

use crate::decision::Errno;

pub(crate) fn errno(e: &io::Error) -> Errno {
    match e.raw_os_error() {
        Some(10035) => Errno::WouldBlock,
        Some(10004) => Errno::Interrupted,
        Some(10055) => Errno::NoBuffers,
        Some(10040) => Errno::MessageSize,
        Some(10022 | 10047 | 10039) => Errno::Invalid,
        Some(10013) => Errno::NotPermitted,
        Some(10051 | 10065 | 10050 | 10064 | 10049) => Errno::Unreachable,
        Some(10054 | 10061) => Errno::Refused,
        // Not the system's: it was seen here, or by quinn-udp, that it cannot be sent so.
        None if e.kind() == io::ErrorKind::InvalidInput => Errno::Invalid,
        _ => Errno::Other,
    }
}

/// Nothing is decided by this on Windows.
pub(crate) fn writable(_socket: SockRef<'_>) -> bool {
    true
}
