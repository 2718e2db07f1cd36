//! `cargo xtask bench relay`: servers on one core, the load on another, in a network namespace of their own.
//!
//! All servers run side by side and idle but one. Rounds go through the cells, and in each cell through the servers,
//! so that whatever the machine does meanwhile happens to all of them; what is compared is the ratio within a round.

mod blocked;
pub(crate) mod cpu;
mod report;
mod search;
mod server;
pub(crate) mod statistics;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use backwater_probe::load::Direction;
use clap::Args;

use crate::{
    cargo::{Metadata, cargo},
    namespace,
};
pub(crate) use report::{machine, verdict};

use report::Report;
use search::Timing;
use server::{Kind, Programs, Server, TURN_SERVER};

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Rounds through all cells.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// One round with shorter loads: to see that it works, not to quote.
    #[arg(long)]
    quick: bool,
    /// All combinations of what is varied, not only one at a time; one round may then take as long as there is time.
    #[arg(long)]
    full: bool,
    /// Only these servers: all that are there by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Another coturn, measured as it is and with --multiplex-peer --udp-gso.
    #[arg(long, value_name = "TURNSERVER", env = "BENCH_COTURN")]
    coturn: Option<PathBuf>,
    /// Peers that receive datagrams one by one, without receive offload; only loads that go up.
    #[arg(long)]
    plain_sink: bool,
    /// Only this row: 990 clients, alone and beside ten whose path is full.
    #[arg(long, conflicts_with_all = ["full", "plain_sink"])]
    blocked: bool,
    /// Write the tables to this file as well.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Where the programs are: given to the part that runs inside the namespace.
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

/// A load: what is varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) direction: Direction,
    pub(crate) size: usize,
    pub(crate) clients: usize,
    pub(crate) burst: usize,
}

/// What one thing at a time is varied of.
const BASE: Cell = Cell { direction: Direction::Up, size: 100, clients: 10, burst: 8 };

const DIRECTIONS: [Direction; 3] = [Direction::Up, Direction::Down, Direction::Across];
const SIZES: [usize; 2] = [100, 1200];
const CLIENTS: [usize; 4] = [1, 10, 100, 1000];
const BURSTS: [usize; 3] = [1, 8, 32];

/// One for the server, one for the load.
const SERVER_CORE: &str = "0";
const LOAD_CORE: &str = "1";

/// Allocations held at once: for the memory of one, and to see that there can be so many.
const HELD: usize = 15_000;

/// Allocations that are made for the rate of them: few enough that the server does not yet search for a free port.
const MADE: usize = 4_000;

/// A run ends with the round that would exceed it: a busy machine makes every search long, and no figure good.
const LONGEST: Duration = Duration::from_secs(480);

fn cells(full: bool, plain_sink: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    for direction in DIRECTIONS {
        for size in SIZES {
            for clients in CLIENTS {
                for burst in BURSTS {
                    let cell = Cell { direction, size, clients, burst };
                    let apart = [
                        cell.direction != BASE.direction,
                        cell.size != BASE.size,
                        cell.clients != BASE.clients,
                        cell.burst != BASE.burst,
                    ];
                    let wanted = full || apart.iter().filter(|&&differs| differs).count() <= 1;
                    let alone = direction == Direction::Across && clients == 1;
                    if wanted && !alone && (!plain_sink || direction == Direction::Up) {
                        cells.push(cell);
                    }
                }
            }
        }
    }
    cells
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    match &options.inside {
        None => outside(root, options),
        Some(programs) => inside(programs, options),
    }
}

/// Builds, and starts this program again in a namespace.
fn outside(root: &Path, options: &Options) -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "this needs Linux: network namespaces and /proc");
    let cores = std::thread::available_parallelism()?.get();
    ensure!(cores >= 2, "this needs two cores, one for the server and one for the load");
    let directory = Metadata::read(root)?.target_directory;
    let programs = Programs { ours: directory.join("release"), coturn: options.coturn.clone() };
    let kinds = kinds(options, &programs)?;
    let mut packages = vec!["xtask", "backwater-probe"];
    if kinds.contains(&Kind::Backwater) {
        packages.push("backwater-relay");
    }
    let mut build = cargo(root);
    build.args(["build", "--release", "--locked"]).args(packages.iter().flat_map(|p| ["-p", p]));
    ensure!(build.status()?.success(), "the build failed");
    if kinds.contains(&Kind::TurnServer) && !programs.turn_server().exists() {
        let at = directory.join("turn-server");
        let mut install = cargo(root);
        install.args(["install", "turn-server", "--version", TURN_SERVER, "--locked", "--no-default-features"]);
        install.args(["--features", "udp", "--root"]).arg(&at).arg("--target-dir").arg(at.join("build"));
        ensure!(install.status()?.success(), "turn-server could not be installed");
    }

    let markdown = options.markdown.as_deref().map(std::path::absolute).transpose()?;
    let mut again = namespace::command()?;
    again.args(["taskset", "-c", LOAD_CORE]).arg(programs.ours.join("xtask"));
    again.args(["bench", "relay", "--inside"]).arg(&programs.ours);
    again.args(["--rounds", &options.rounds.to_string(), "--only", &names(&kinds)]);
    again.args(options.quick.then_some("--quick"));
    again.args(options.full.then_some("--full"));
    again.args(options.plain_sink.then_some("--plain-sink"));
    again.args(options.blocked.then_some("--blocked"));
    if let Some(path) = &options.coturn {
        again.arg("--coturn").arg(std::path::absolute(path)?);
    }
    if let Some(path) = &markdown {
        again.arg("--markdown").arg(path);
    }
    ensure!(again.status().context("starting setpriv and unshare (util-linux)")?.success(), "the benchmark failed");
    Ok(())
}

/// Which servers, in the order of the report.
fn kinds(options: &Options, programs: &Programs) -> Result<Vec<Kind>> {
    let other_coturn = options.coturn.is_some();
    let asked = |kind: &Kind| {
        if !options.only.is_empty() {
            return options.only.contains(kind);
        }
        match kind {
            Kind::Backwater | Kind::Coturn | Kind::Raw => true,
            Kind::CoturnAt | Kind::CoturnAtGso => other_coturn,
            Kind::TurnServer => programs.turn_server().exists(),
        }
    };
    let kinds: Vec<_> = Kind::ALL.into_iter().filter(asked).collect();
    let needs_path = kinds.iter().any(|kind| matches!(kind, Kind::CoturnAt | Kind::CoturnAtGso));
    ensure!(other_coturn || !needs_path, "--coturn TURNSERVER is missing");
    if !other_coturn {
        eprintln!("no other coturn than the one that is installed: --coturn TURNSERVER names one");
    }
    if !kinds.contains(&Kind::TurnServer) {
        eprintln!("turn-server is left out: `--only backwater,turn-server` installs it, once");
    }
    Ok(kinds)
}

fn names(kinds: &[Kind]) -> String {
    kinds.iter().map(Kind::to_string).collect::<Vec<_>>().join(",")
}

fn inside(programs: &Path, options: &Options) -> Result<()> {
    let programs = Programs { ours: programs.to_owned(), coturn: options.coturn.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let text = if options.blocked {
        runtime.block_on(blocked::measure(&programs, options))?
    } else {
        runtime.block_on(measure(&programs, options))?.to_string()
    };
    print!("{text}");
    if let Some(path) = &options.markdown {
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

async fn measure(programs: &Programs, options: &Options) -> Result<Report> {
    let began = Instant::now();
    let timing = if options.quick { Timing::QUICK } else { Timing::FULL };
    let rounds = if options.quick { 1 } else { options.rounds.max(1) };
    let start = |kind, direction| Server::start(kind, direction, programs, options.plain_sink);
    let mut kinds: Vec<_> = Kind::ALL.into_iter().filter(|kind| options.only.contains(kind)).collect();
    let cells = cells(options.full, options.plain_sink);
    let mut report = Report::new(kinds.clone(), cells.clone(), options.plain_sink)?;

    for &kind in kinds.iter().filter(|kind| kind.is_turn()) {
        let footprint = start(kind, BASE.direction).await?.footprint(HELD).await;
        let footprint = footprint.with_context(|| format!("holding allocations on {kind}"))?;
        eprintln!("{:>4.0} s  {kind:<13}  {footprint}", began.elapsed().as_secs_f64());
        report.footprints.push((kind, footprint));
    }
    report.alone = search::alone(&cells, options.plain_sink, timing).await?;
    for round in 0..rounds {
        if round > 0 && began.elapsed() * (round as u32 + 1) / round as u32 > LONGEST {
            eprintln!("no time for another round");
            break;
        }
        report.rounds = round + 1;
        let mut servers = Vec::new();
        for &kind in kinds.iter().filter(|kind| kind.is_turn()) {
            servers.push(start(kind, BASE.direction).await?);
        }
        for server in &servers {
            let made = server.make_allocations(MADE).await;
            let made = made.with_context(|| format!("allocating on {}", server.kind))?;
            eprintln!(
                "{:>4.0} s  round {}/{rounds}  {:<13}  {made}",
                began.elapsed().as_secs_f64(),
                round + 1,
                server.kind
            );
            report.made.push((server.kind, made));
        }
        for &cell in &cells {
            kinds.rotate_left(1);
            for &kind in kinds.iter().filter(|kind| kind.serves(cell.direction)) {
                // The raw forwarder has another form for each direction, and keeps its clients for ever.
                let own = if kind.is_turn() { None } else { Some(start(kind, cell.direction).await?) };
                let Some(server) = own.as_ref().or(servers.iter().find(|server| server.kind == kind)) else { continue };
                let figures = search::measure(server, cell, timing).await.with_context(|| format!("{kind}, {cell}"))?;
                eprintln!(
                    "{:>4.0} s  round {}/{rounds}  {cell}  {kind:<13}  {figures}",
                    began.elapsed().as_secs_f64(),
                    round + 1,
                );
                report.add(kind, cell, figures);
            }
        }
    }
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = match self.direction {
            Direction::Up => "up",
            Direction::Down => "down",
            Direction::Across => "client to client",
        };
        write!(f, "{direction}, {} B, {} × {}", self.size, self.clients, self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_varied_at_a_time() {
        let cells = cells(false, false);
        assert_eq!(cells.len(), 1 + 1 + 2 + 3 + 2, "{cells:?}");
        assert!(cells.contains(&BASE));
        assert!(cells.contains(&Cell { direction: Direction::Across, ..BASE }));
        assert!(cells.contains(&Cell { clients: 1000, ..BASE }));
    }

    #[test]
    fn everything_is_crossed_but_a_client_with_itself() {
        assert_eq!(super::cells(true, false).len(), 3 * 2 * 4 * 3 - 2 * 3);
        assert!(super::cells(true, true).iter().all(|cell| cell.direction == Direction::Up));
    }
}
