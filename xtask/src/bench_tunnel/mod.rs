//! `cargo xtask bench tunnel`: WireGuard implementations between two networks, and iperf3 across.
//!
//! All tunnels run side by side and idle but one. Rounds go through the loads, and in each load through the tunnels, so
//! that whatever the machine does meanwhile happens to all of them; what is compared is the ratio within a round.

mod load;
mod network;
pub(crate) mod pressure;
mod process;
mod report;
mod subject;

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    cargo::{Metadata, cargo},
    namespace,
};
use load::Load;
use report::Report;
use subject::{Idle, Kind, Programs, Tunnel};

#[derive(Args)]
pub(crate) struct Options {
    /// Rounds through all loads.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each load lasts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// One round with short loads: to see that it works, not to quote.
    #[arg(long)]
    quick: bool,
    /// IPv6 outside.
    #[arg(long)]
    ipv6: bool,
    /// Only these: all that are there by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Write the tables to this file as well.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Cargo's target directory, where the programs are: given to the part that runs inside the namespace.
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

/// WireGuard's control sockets are in /run, which an ordinary user may not write to, and whose own tunnels are none of our
/// business. What is written there is gone with the last process.
const OWN_RUN: &str = r#"mount -t tmpfs tmpfs /run && mkdir /run/wireguard && exec "$@""#;

/// How long the idle tunnels are watched.
const IDLE: Duration = Duration::from_secs(20);
const IDLE_QUICK: Duration = Duration::from_secs(5);

/// Between loads, for what is still on its way.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    match &options.inside {
        None => outside(root, options),
        Some(target) => inside(target, options),
    }
}

/// Builds, and starts this program again in a namespace.
fn outside(root: &Path, options: &Options) -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "this needs Linux: network namespaces and /proc");
    ensure!(is_installed("iperf3"), "this needs iperf3: apt-get install iperf3");
    ensure!(is_installed("ip"), "this needs ip: apt-get install iproute2");
    let target = Metadata::read(root)?.target_directory;
    let programs = Programs { target: target.clone() };
    let mut kinds = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| options.only.is_empty() || options.only.contains(kind)) {
        match prepare(root, kind, &programs) {
            Ok(()) => kinds.push(kind.to_string()),
            // Without ours there is nothing to compare with.
            Err(e) if kind == Kind::Backwater => return Err(e),
            Err(e) => eprintln!("{kind} is left out: {e:#}"),
        }
    }
    ensure!(!kinds.is_empty(), "nothing to measure");

    let mut again = again()?;
    again.args(["bench", "tunnel", "--inside"]).arg(&target);
    again.args(["--rounds", &options.rounds.to_string(), "--seconds", &options.seconds.to_string()]);
    again.args(["--only", &kinds.join(",")]);
    again.args(options.quick.then_some("--quick"));
    again.args(options.ipv6.then_some("--ipv6"));
    if let Some(path) = &options.markdown {
        again.arg("--markdown").arg(std::path::absolute(path)?);
    }
    ensure!(again.status().context("starting setpriv and unshare (util-linux)")?.success(), "the benchmark failed");
    Ok(())
}

/// This program, to be started in a network namespace with a /run of its own.
fn again() -> Result<Command> {
    let mut again = namespace::command()?;
    again.args(["unshare", "-m", "sh", "-c", OWN_RUN, "sh"]).arg(env::current_exe()?);
    Ok(again)
}

/// Builds ours, and installs what cargo can; says of the rest whether it is there.
fn prepare(root: &Path, kind: Kind, programs: &Programs) -> Result<()> {
    ensure!(kind == Kind::Backwater || is_installed("wg"), "apt-get install wireguard-tools");
    match kind {
        Kind::Backwater => {
            let mut build = cargo(root);
            build.args(["build", "--release", "--locked", "-p", "backwater-tunnel"]);
            ensure!(build.status()?.success(), "the build failed");
        }
        Kind::WireguardGo => ensure!(is_installed("wireguard-go"), "apt-get install wireguard-go"),
        Kind::BoringtunCli | Kind::GotatunCli => {
            if let Some(version) = kind.version().filter(|_| !programs.path(kind).exists()) {
                let at = programs.peers();
                let mut install = cargo(root);
                install.args(["install", &kind.to_string(), "--version", version, "--locked", "--root"]).arg(&at);
                install.arg("--target-dir").arg(at.join("build"));
                ensure!(install.status()?.success(), "it could not be installed");
            }
        }
        Kind::Kernel => {
            let mut add = namespace::command()?;
            add.args(["ip", "link", "add", "wg0", "type", "wireguard"]);
            ensure!(add.output()?.status.success(), "this kernel has no WireGuard");
        }
    }
    Ok(())
}

/// Whether a program is found inside the namespace.
fn is_installed(program: &str) -> bool {
    let path = namespace::path();
    env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn inside(target: &Path, options: &Options) -> Result<()> {
    let report = measure(&Programs { target: target.to_owned() }, options)?;
    publish(&report, options.markdown.as_deref(), report.failures.len())
}

/// Prints a report, and writes it to a file too if one is named. Measurements that failed are an error afterwards.
fn publish(report: &impl std::fmt::Display, markdown: Option<&Path>, failures: usize) -> Result<()> {
    let text = report.to_string();
    print!("{text}");
    if let Some(path) = markdown {
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    ensure!(failures == 0, "{failures} measurements failed");
    Ok(())
}

fn measure(programs: &Programs, options: &Options) -> Result<Report> {
    let began = Instant::now();
    let rounds = if options.quick { 1 } else { options.rounds.max(1) };
    let seconds = if options.quick { options.seconds.min(2) } else { options.seconds };
    network::make()?;
    let mut tunnels = Vec::new();
    for (index, kind) in (0..).zip(Kind::ALL.into_iter().filter(|kind| options.only.contains(kind))) {
        tunnels.push(Tunnel::start(kind, index, programs, options.ipv6).with_context(|| format!("starting {kind}"))?);
    }
    let mut report = Report::new(tunnels.iter().map(|tunnel| tunnel.kind).collect(), options.ipv6, seconds)?;
    report.idle = idle(&tunnels, if options.quick { IDLE_QUICK } else { IDLE })?;
    for round in 0..rounds {
        report.rounds = round + 1;
        // Another one goes first in each load, and in the same load of the next round.
        for (first, load) in (round..).zip(Load::ALL) {
            let first = first % tunnels.len();
            let (last, foremost) = tunnels.split_at_mut(first);
            for tunnel in foremost.iter_mut().chain(last) {
                sleep(PAUSE);
                let kind = tunnel.kind;
                let at = format!("{:>4.0} s  round {}/{rounds}  {load}", began.elapsed().as_secs_f64(), round + 1);
                match load::measure(load, tunnel, seconds) {
                    Ok(figures) => {
                        eprintln!("{at}  {kind:<13}  {figures}");
                        report.figures.push((kind, load, round, figures));
                    }
                    Err(e) => {
                        eprintln!("{at}  {kind:<13}  failed: {e:#}");
                        report.failures.push(format!("{kind}, {load}, round {}: {e:#}", round + 1));
                    }
                }
            }
        }
    }
    for (kind, idle) in &mut report.idle {
        let tunnel = tunnels.iter().find(|tunnel| tunnel.kind == *kind);
        // One that has ended shows among the failures.
        idle.resident_after = tunnel.and_then(|tunnel| tunnel.resident().ok());
    }
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

/// What they do while nothing is sent; those that have processes.
fn idle(tunnels: &[Tunnel], how_long: Duration) -> Result<Vec<(Kind, Idle)>> {
    sleep(Duration::from_secs(1));
    let wake_ups = || tunnels.iter().map(Tunnel::wake_ups).collect::<Result<Vec<_>>>();
    let (began, before) = (Instant::now(), wake_ups()?);
    sleep(how_long);
    let (elapsed, after) = (began.elapsed().as_secs_f64(), wake_ups()?);
    let mut idle = Vec::new();
    for ((tunnel, before), after) in tunnels.iter().zip(before).zip(after) {
        if tunnel.kind.has_processes() {
            let wake_ups = [0, 1].map(|end| after[end].saturating_sub(before[end]) as f64 / elapsed);
            idle.push((tunnel.kind, Idle { wake_ups, resident: tunnel.resident()?, resident_after: None }));
        }
    }
    Ok(idle)
}
