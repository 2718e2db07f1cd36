//! Signals, taken one after the other: they end the tunnel, or restore its log filter.

#[cfg_attr(target_os = "linux", path = "linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "other.rs")]
mod system;

pub(crate) use system::Signals;

/// What a signal asks of the tunnel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// SIGHUP while the terminal is there, or without one: the log filter of the command line is restored.
    Reload,
    /// The tunnel is to be closed.
    End(Ending),
}

/// The signal that ends the tunnel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Its name.
    pub(crate) signal: String,
    /// Whether an operator or a service manager sends it to end a program.
    pub(crate) is_ordinary: bool,
}
