//! `ENOBUFS`, which the standard library has no name for.

use std::io;

/// `WSAENOBUFS`; Linux's `ENOBUFS`; that of the BSDs, and so of Apple's systems.
const ENOBUFS: i32 = if cfg!(windows) {
    10_055
} else if cfg!(any(target_os = "linux", target_os = "android")) {
    105
} else {
    55
};

/// Returns whether an error is `ENOBUFS`.
pub(crate) fn is_no_buffers(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ENOBUFS)
}
