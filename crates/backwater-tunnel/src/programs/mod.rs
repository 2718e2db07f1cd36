//! Programs of the system that the tunnel runs: hooks of its configuration, and what sets the resolver.

use std::io;

#[cfg(target_os = "linux")]
mod linux;

/// Runs a program to its end, with `input` as its standard input. It has the tunnel's standard output and error output, its environment and its
/// permissions; no signal is blocked in it.
///
/// # Errors
/// When it cannot be run, and when its exit code is not 0.
pub(crate) fn run(command: &[&str], input: &str) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    return linux::run(command, input);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (command, input);
        Err(io::ErrorKind::Unsupported.into())
    }
}
