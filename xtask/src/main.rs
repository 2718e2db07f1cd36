//! The project's own tasks: `cargo xtask --help`.
#![forbid(unsafe_code)]

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};
use bench_tunnel::pressure;
use clap::{Parser, Subcommand};

mod api;
mod bench;
mod bench_quic;
mod bench_stun;
mod bench_tunnel;
mod bench_udp;
mod cargo;
mod cross;
#[cfg(unix)]
mod deb;
mod deny;
mod mutants;
mod namespace;
mod package;
mod stress;
mod tidy;
mod wine;

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Checks what the compiler does not: who depends on whom, forbidden words, links, lengths.
    Tidy,
    /// Compares the public items of the libraries with the lists in docs/api.
    Api(api::Options),
    /// Compares with others, in a network namespace of its own.
    #[command(subcommand)]
    Bench(Bench),
    /// Checks licences, sources and duplicates of all dependencies by deny.toml, without a network.
    Deny,
    /// Packs the relay as a Debian package, and checks that it installs and purges.
    #[cfg(unix)]
    Deb(deb::Options),
    /// Packs the libraries as for a registry, builds them from the packages, and checks each combination of their features.
    Package(package::Options),
    /// Runs the README's test command beside busy loops, and lists the tests that failed.
    StressTests(stress::Options),
    /// Puts faults into the send loop, and lists those that no test notices.
    Mutants(mutants::Options),
    /// What it is worth to wait: TCP through tunnels whose uplink refuses datagrams.
    Experiment(pressure::Options),
    /// Type-checks the code for other systems.
    Cross(cross::Options),
    /// Runs what can run under Wine: check, generate, configuration and logs.
    Wine,
}

#[derive(Subcommand)]
enum Bench {
    /// The relay, coturn and a raw forwarder, under the same load.
    Relay(bench::Options),
    /// The codec and those that others use, on one thread.
    Stun(bench_stun::Options),
    /// The tunnel, wireguard-go, boringtun-cli and gotatun-cli, with iperf3 across.
    Tunnel(bench_tunnel::Options),
    /// quinn and noq on our sockets and on their own, through full queues.
    Quic(bench_quic::Options),
    /// The socket, a raw loop of system calls, quinn-udp and tokio's own socket.
    Udp(bench_udp::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Api(options) => api::run(root(), &options),
        Task::Tidy => tidy::run(root()),
        #[cfg(unix)]
        Task::Deb(options) => deb::run(root(), &options),
        Task::Deny => deny::run(root()),
        Task::Package(options) => package::run(root(), &options),
        Task::StressTests(options) => stress::run(root(), &options),
        Task::Bench(Bench::Relay(options)) => bench::run(root(), &options),
        Task::Bench(Bench::Stun(options)) => bench_stun::run(root(), &options),
        Task::Bench(Bench::Tunnel(options)) => bench_tunnel::run(root(), &options),
        Task::Bench(Bench::Quic(options)) => bench_quic::run(root(), &options),
        Task::Bench(Bench::Udp(options)) => bench_udp::run(root(), &options),
        Task::Mutants(options) => mutants::run(root(), &options),
        Task::Experiment(options) => pressure::run(root(), &options),
        Task::Cross(options) => cross::run(root(), &options),
        Task::Wine => wine::run(root()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository. `cargo run` says where the manifest is at run time; the compiler's value serves a binary that was
/// started otherwise.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Runs a program and returns what it printed.
fn output(command: &mut std::process::Command) -> Result<String> {
    let out = command.output().with_context(|| format!("starting {:?}", command.get_program()))?;
    anyhow::ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?)
}
