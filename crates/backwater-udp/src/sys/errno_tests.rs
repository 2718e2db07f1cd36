//! From the raw number of an error to what is done about it. Windows' numbers are tested on every system, a Unix system's
//! on itself: the names are the same everywhere, and `libc` knows the numbers.

use std::io;

#[cfg(any(target_os = "linux", target_vendor = "apple", target_os = "freebsd"))]
use crate::sys::{OS, errno};
use crate::{
    stats::DropReason,
    wait::decision::{Errno, Os, Refusal, Verdict, decide},
};

#[allow(dead_code, reason = "`writable` is not tested")]
#[path = "errno_windows.rs"]
mod windows;

/// A number; what is done about a single datagram, and about a GSO batch, when the error queue is empty.
type Row = (i32, Verdict, Verdict);

const fn alike(number: i32, verdict: Verdict) -> Row {
    (number, verdict, verdict)
}

const INVALID: (Verdict, Verdict) = (Verdict::Drop(DropReason::Invalid), Verdict::Split);
const TOO_LARGE: (Verdict, Verdict) = (Verdict::Drop(DropReason::TooLarge), Verdict::Split);
const NOT_PERMITTED: Verdict = Verdict::Drop(DropReason::NotPermitted);
const UNREACHABLE: Verdict = Verdict::Drop(DropReason::Unreachable);
const OTHER: Verdict = Verdict::Drop(DropReason::Other);

fn check(os: Os, errno: impl Fn(&io::Error) -> Errno, rows: &[Row]) {
    for &(number, single, batch) in rows {
        let errno = errno(&io::Error::from_raw_os_error(number));
        for (train, expected) in [(false, single), (true, batch)] {
            let refusal = Refusal {
                os,
                errno,
                connected: false,
                writable: false,
                earlier_errors: false,
                maybe_earlier: false,
                train,
                again: false,
            };
            assert_eq!(decide(&refusal), expected, "{number}: {refusal:?}");
        }
    }
}

#[test]
fn windows_numbers() {
    let rows = [
        alike(10035, Verdict::WhenReady),  // WSAEWOULDBLOCK
        alike(10004, Verdict::Again),      // WSAEINTR
        alike(10055, Verdict::OnTimer),    // WSAENOBUFS
        (10040, TOO_LARGE.0, TOO_LARGE.1), // WSAEMSGSIZE
        (10022, INVALID.0, INVALID.1),     // WSAEINVAL
        (10047, INVALID.0, INVALID.1),     // WSAEAFNOSUPPORT
        (10039, INVALID.0, INVALID.1),     // WSAEDESTADDRREQ
        alike(10013, NOT_PERMITTED),       // WSAEACCES
        alike(10051, UNREACHABLE),         // WSAENETUNREACH
        alike(10065, UNREACHABLE),         // WSAEHOSTUNREACH
        alike(10050, UNREACHABLE),         // WSAENETDOWN
        alike(10064, UNREACHABLE),         // WSAEHOSTDOWN
        alike(10049, UNREACHABLE),         // WSAEADDRNOTAVAIL
        alike(10052, Verdict::Again),      // WSAENETRESET
        alike(10054, Verdict::Again),      // WSAECONNRESET
        alike(10061, Verdict::Again),      // WSAECONNREFUSED
        alike(6, Verdict::Fatal),          // ERROR_INVALID_HANDLE
        alike(10009, Verdict::Fatal),      // WSAEBADF
        alike(10038, Verdict::Fatal),      // WSAENOTSOCK
        alike(10058, Verdict::Fatal),      // WSAESHUTDOWN
        alike(10093, Verdict::Fatal),      // WSANOTINITIALISED
        alike(10045, OTHER),               // WSAEOPNOTSUPP
    ];
    check(Os::Other, windows::errno, &rows);
}

#[cfg(target_os = "linux")]
#[test]
fn linux_numbers() {
    let rows = [
        alike(11, Verdict::WhenReady),  // EAGAIN
        alike(4, Verdict::Again),       // EINTR
        alike(105, Verdict::OnTimer),   // ENOBUFS
        alike(12, Verdict::OnTimer),    // ENOMEM
        (90, TOO_LARGE.0, TOO_LARGE.1), // EMSGSIZE
        (22, INVALID.0, INVALID.1),     // EINVAL
        (97, INVALID.0, INVALID.1),     // EAFNOSUPPORT
        (89, INVALID.0, INVALID.1),     // EDESTADDRREQ
        (106, INVALID.0, INVALID.1),    // EISCONN
        (5, OTHER, Verdict::Split),     // EIO
        alike(1, NOT_PERMITTED),        // EPERM
        alike(13, NOT_PERMITTED),       // EACCES
        alike(101, UNREACHABLE),        // ENETUNREACH
        alike(113, UNREACHABLE),        // EHOSTUNREACH
        alike(100, UNREACHABLE),        // ENETDOWN
        alike(112, UNREACHABLE),        // EHOSTDOWN
        alike(99, UNREACHABLE),         // EADDRNOTAVAIL
        alike(111, Verdict::Again),     // ECONNREFUSED
        alike(104, Verdict::Again),     // ECONNRESET
        alike(102, Verdict::Again),     // ENETRESET
        alike(71, Verdict::Again),      // EPROTO
        alike(92, Verdict::Again),      // ENOPROTOOPT
        alike(95, Verdict::Again),      // EOPNOTSUPP
        alike(64, Verdict::Again),      // ENONET
        alike(9, Verdict::Fatal),       // EBADF
        alike(88, Verdict::Fatal),      // ENOTSOCK
        alike(32, Verdict::Fatal),      // EPIPE
        alike(19, OTHER),               // ENODEV
        alike(6, OTHER),                // ENXIO
    ];
    check(OS, errno, &rows);
    // No ICMP message has the first number; the second may be one's.
    let of = |number| errno(&io::Error::from_raw_os_error(number));
    assert_eq!((of(1), of(13)), (Errno::NotPermitted, Errno::Prohibited));
}

/// The two differ in the numbers of `EPROTO` and `EOPNOTSUPP`.
#[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
#[test]
fn apple_and_freebsd_numbers() {
    let (eproto, eopnotsupp) = if cfg!(target_os = "freebsd") { (92, 45) } else { (100, 102) };
    let rows = [
        alike(35, Verdict::WhenReady),     // EAGAIN
        alike(4, Verdict::Again),          // EINTR
        alike(55, Verdict::OnTimer),       // ENOBUFS
        alike(12, Verdict::OnTimer),       // ENOMEM
        (40, TOO_LARGE.0, TOO_LARGE.1),    // EMSGSIZE
        (22, INVALID.0, INVALID.1),        // EINVAL
        (47, INVALID.0, INVALID.1),        // EAFNOSUPPORT
        (39, INVALID.0, INVALID.1),        // EDESTADDRREQ
        (56, INVALID.0, INVALID.1),        // EISCONN
        (5, OTHER, Verdict::Split),        // EIO
        alike(1, NOT_PERMITTED),           // EPERM
        alike(13, NOT_PERMITTED),          // EACCES
        alike(51, UNREACHABLE),            // ENETUNREACH
        alike(65, UNREACHABLE),            // EHOSTUNREACH
        alike(50, UNREACHABLE),            // ENETDOWN
        alike(64, UNREACHABLE),            // EHOSTDOWN
        alike(49, UNREACHABLE),            // EADDRNOTAVAIL
        alike(61, Verdict::Again),         // ECONNREFUSED
        alike(54, Verdict::Again),         // ECONNRESET
        alike(52, Verdict::Again),         // ENETRESET
        alike(eproto, Verdict::Again),     // EPROTO
        alike(42, Verdict::Again),         // ENOPROTOOPT
        alike(eopnotsupp, Verdict::Again), // EOPNOTSUPP
        alike(9, Verdict::Fatal),          // EBADF
        alike(38, Verdict::Fatal),         // ENOTSOCK
        alike(32, Verdict::Fatal),         // EPIPE
        alike(6, OTHER),                   // ENXIO
    ];
    check(OS, errno, &rows);
}

#[test]
fn an_error_without_a_number_is_the_caller_s_or_the_reactor_s() {
    let of = |kind: io::ErrorKind| windows::errno(&kind.into());
    assert_eq!((of(io::ErrorKind::InvalidInput), of(io::ErrorKind::Other)), (Errno::Invalid, Errno::Socket));
    #[cfg(any(target_os = "linux", target_vendor = "apple", target_os = "freebsd"))]
    {
        let of = |kind: io::ErrorKind| errno(&kind.into());
        assert_eq!((of(io::ErrorKind::InvalidInput), of(io::ErrorKind::Other)), (Errno::Invalid, Errno::Socket));
    }
}
