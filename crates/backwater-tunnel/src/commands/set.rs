//! `set`: changes a running tunnel.

use std::process::ExitCode;

use backwater_ops::PolicyText;

use super::up;
use crate::control::{self, Request};

/// Changes a running tunnel, until it is closed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The tunnel; may be left out where only one is running.
    #[arg(long, value_name = "NAME", global = true)]
    pub tunnel: Option<String>,
    /// What to change.
    #[command(subcommand)]
    pub what: What,
}

/// What can be changed.
#[derive(Debug, clap::Subcommand)]
pub enum What {
    /// What to do with a datagram that the system has no room for.
    Backpressure {
        /// wait, wait:50ms, or drop.
        policy: PolicyText,
    },
    /// What is logged.
    Log {
        /// A level, or a list of them by module (`info,backwater_udp=debug`).
        #[arg(value_parser = up::log_filter)]
        filter: String,
    },
}

/// Tells the tunnel, which may refuse.
///
/// # Errors
/// When there is no such tunnel, it does not answer, or it refuses.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let name = match args.tunnel {
        Some(name) => name,
        None => match control::running()?.as_slice() {
            [only] => only.clone(),
            [] => anyhow::bail!("no tunnel is up"),
            several => anyhow::bail!("which tunnel? --tunnel {}", several.join("|")),
        },
    };
    let change = match args.what {
        What::Backpressure { policy } => Request::Backpressure(policy.to_string()),
        What::Log { filter } => Request::Log(filter),
    };
    control::change(&name, &change).await?;
    Ok(ExitCode::SUCCESS)
}
