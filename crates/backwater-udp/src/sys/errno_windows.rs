//! The errors of sends and receives, from their numbers (`WSAGetLastError`).

use std::io;

use socket2::SockRef;

use crate::wait::decision::Errno;

pub(crate) fn errno(e: &io::Error) -> Errno {
    match e.raw_os_error() {
        Some(10035) => Errno::WouldBlock,
        Some(10004) => Errno::Interrupted,
        Some(10055) => Errno::NoBuffers,
        Some(10040) => Errno::MessageSize,
        Some(10022 | 10047 | 10039) => Errno::Invalid,
        Some(10013) => Errno::Prohibited,
        Some(10051 | 10065 | 10050 | 10064 | 10049) => Errno::Unreachable,
        // WSAENETRESET is a time-to-live that ran out on the way.
        Some(10052 | 10054 | 10061) => Errno::Refused,
        // ERROR_INVALID_HANDLE, WSAEBADF, WSAENOTSOCK, WSAESHUTDOWN, WSANOTINITIALISED
        Some(6 | 10009 | 10038 | 10058 | 10093) => Errno::Socket,
        Some(_) => Errno::Other,
        // Not the system's: it was seen here, or by quinn-udp, that it cannot be sent so.
        None if e.kind() == io::ErrorKind::InvalidInput => Errno::Invalid,
        // The reactor's.
        None => Errno::Socket,
    }
}

/// Nothing is decided by this on Windows.
pub(crate) fn writable(_socket: SockRef<'_>) -> bool {
    true
}
