//! `status`: what a running tunnel says of itself.

use std::process::ExitCode;

/// Shows the state of a running tunnel: the path in use, round-trip time, last handshake, bytes, back-pressure.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The tunnel; may be left out where only one is running.
    pub name: Option<String>,
    /// As one JSON object; with `--watch`, one a line.
    #[arg(long)]
    pub json: bool,
    /// Again each second, until interrupted.
    #[arg(long)]
    pub watch: bool,
}

/// Asks the tunnel and prints what it answers.
///
/// # Errors
/// When there is no such tunnel, or it does not answer.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("{}: status is not built yet", args.name.as_deref().unwrap_or("any tunnel"))
}
