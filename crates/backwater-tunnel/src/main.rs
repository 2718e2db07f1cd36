//! The program.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context;
#[cfg(target_os = "linux")]
use backwater_tunnel::commands::device;
use backwater_tunnel::{
    commands::{check, generate, set, status, up},
    config::Errors,
};
use clap::{Parser, Subcommand};

/// The command line or the configuration cannot be used. Clap has the same code.
const BAD_CONFIGURATION: u8 = 2;

/// Moves IP packets between this host and WireGuard peers, and manages the queue in front of a congested path.
#[derive(Parser)]
#[command(name = "backwater-tunnel", version, arg_required_else_help = true, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[cfg(target_os = "linux")]
    #[command(flatten)]
    device: device::Args,
}

#[derive(Subcommand)]
enum Command {
    Up(up::Args),
    Check(check::Args),
    Status(status::Args),
    Set(set::Args),
    Generate(generate::Args),
}

fn main() -> ExitCode {
    if let Err(error) = backwater_ops::hide_memory() {
        eprintln!("backwater-tunnel: other processes of this user can read the keys in its memory: {error}");
    }
    run(Cli::parse()).unwrap_or_else(|error| {
        let Some(errors) = error.downcast_ref::<Errors>() else {
            eprintln!("backwater-tunnel: {error:#}");
            return ExitCode::FAILURE;
        };
        // Each has its file and line, where editors and people look for them.
        eprintln!("{errors}");
        ExitCode::from(BAD_CONFIGURATION)
    })
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let result = runtime.block_on(async {
        match cli.command {
            Some(Command::Up(args)) => up::run(args).await,
            Some(Command::Check(args)) => check::run(args).await,
            Some(Command::Status(args)) => status::run(args).await,
            Some(Command::Set(args)) => set::run(args).await,
            Some(Command::Generate(args)) => generate::run(&args),
            #[cfg(target_os = "linux")]
            None => device::run(cli.device).await,
            // Clap wants a command.
            #[cfg(not(target_os = "linux"))]
            None => Ok(ExitCode::from(BAD_CONFIGURATION)),
        }
    });
    // A resolver that does not answer has a thread, which is not waited for.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_one() {
        Cli::command().debug_assert();
        for line in [
            "up a.conf --backpressure wait:50ms",
            "set --tunnel a log info",
            "set log --tunnel a info",
            "set log info --tunnel a",
            "set backpressure drop --tunnel a",
            "set backpressure drop",
            "status --json",
            "wg0",
            "-f wg0",
            "wg0 --foreground",
        ] {
            Cli::try_parse_from(["backwater-tunnel"].into_iter().chain(line.split(' '))).map(|_| ()).unwrap();
        }
        for line in
            ["set backpressure never", "set log verbose", "up a.conf --log verbose", "-f", "wg0 wg1", "wg0 up a.conf"]
        {
            Cli::try_parse_from(["backwater-tunnel"].into_iter().chain(line.split(' '))).map(|_| ()).unwrap_err();
        }
    }
}
