//! `up`: the tunnel itself.

use std::{path::PathBuf, process::ExitCode};

use backwater_udp::Policy;

/// Opens a tunnel, in the foreground, until SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A WireGuard configuration; its name, without `.conf`, names the tunnel and its device.
    pub file: PathBuf,
    /// What to log: a level, or a list of them by module (`info,backwater_udp=debug`).
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// What to do with a datagram that the system has no room for: wait, wait:50ms, or drop.
    #[arg(long, value_name = "POLICY", default_value = "wait")]
    pub backpressure: Policy,
}

/// Opens the tunnel and returns when it is closed again.
///
/// # Errors
/// [`Errors`](crate::config::Errors), or why it cannot start.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("{}: up is not built yet", args.file.display())
}
