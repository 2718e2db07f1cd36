//! `cargo xtask bench relay`: servers on one core, the load on another, in a network namespace of their own.
//!
//! All servers run side by side and idle but one. Rounds go through the cells, and in each cell through the servers,
//! so that whatever the machine does meanwhile happens to all of them; what is compared is the ratio within a round.

mod cpu;
mod report;
mod search;
mod server;
mod statistics;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::{
    cargo::{Metadata, cargo},
    namespace,
};
use report::Report;
use search::Timing;
use server::{Kind, Server};

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Rounds through all cells.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// One round with shorter loads: to see that it works, not to quote.
    #[arg(long)]
    quick: bool,
    /// Only these servers.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "backwater,coturn,raw")]
    only: Vec<Kind>,
    /// Peers that receive datagrams one by one, without receive offload.
    #[arg(long)]
    plain_sink: bool,
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
    pub(crate) size: usize,
    pub(crate) clients: usize,
    pub(crate) burst: usize,
}

/// One for the server, one for the load.
const SERVER_CORE: &str = "0";
const LOAD_CORE: &str = "1";

/// Allocations held at once for the memory of one.
const HELD: usize = 1000;

/// A run ends with the round that would exceed it: a busy machine makes every search long, and no figure good.
const LONGEST: Duration = Duration::from_secs(600);

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for size in [100, 1200] {
        for clients in [1, 10] {
            for burst in [1, 8] {
                cells.push(Cell { size, clients, burst });
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
    let mut packages = vec!["xtask", "backwater-probe"];
    if options.only.contains(&Kind::Backwater) {
        packages.push("backwater-relay");
    }
    let mut build = cargo(root);
    build.args(["build", "--release", "--locked"]).args(packages.iter().flat_map(|p| ["-p", p]));
    ensure!(build.status()?.success(), "the build failed");
    let programs = Metadata::read(root)?.target_directory.join("release");

    let markdown = options.markdown.as_deref().map(std::path::absolute).transpose()?;
    let mut again = namespace::command()?;
    again.args(["taskset", "-c", LOAD_CORE]).arg(programs.join("xtask"));
    again.args(["bench", "relay", "--inside"]).arg(&programs);
    again.args(["--rounds", &options.rounds.to_string(), "--only", &names(&options.only)]);
    again.args(options.quick.then_some("--quick"));
    again.args(options.plain_sink.then_some("--plain-sink"));
    if let Some(path) = &markdown {
        again.arg("--markdown").arg(path);
    }
    ensure!(again.status().context("starting setpriv and unshare (util-linux)")?.success(), "the benchmark failed");
    Ok(())
}

fn names(kinds: &[Kind]) -> String {
    let names: Vec<_> = kinds.iter().filter_map(ValueEnum::to_possible_value).collect();
    names.iter().map(|value| value.get_name()).collect::<Vec<_>>().join(",")
}

fn inside(programs: &Path, options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(measure(programs, options))?;
    let text = report.to_string();
    print!("{text}");
    if let Some(path) = &options.markdown {
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

async fn measure(programs: &Path, options: &Options) -> Result<Report> {
    let began = Instant::now();
    let timing = if options.quick { Timing::QUICK } else { Timing::FULL };
    let rounds = if options.quick { 1 } else { options.rounds.max(1) };
    let kinds = Kind::ALL.into_iter().filter(|kind| options.only.contains(kind));
    let mut report = Report::new(kinds.clone().collect(), cells(), options.plain_sink)?;

    for kind in kinds.clone().filter(|kind| kind.is_turn()) {
        let kib = Server::start(kind, programs, options.plain_sink).await?.memory_per_allocation(HELD).await?;
        eprintln!("{kind}: {kib:.1} KiB per allocation");
        report.memory(kind, kib);
    }
    report.ceilings = search::ceilings(&report.cells, options.plain_sink, timing).await?;
    for round in 0..rounds {
        if round > 0 && began.elapsed() * (round as u32 + 1) / round as u32 > LONGEST {
            eprintln!("no time for another round");
            break;
        }
        report.rounds = round + 1;
        let mut servers = Vec::new();
        for kind in kinds.clone() {
            servers.push(Server::start(kind, programs, options.plain_sink).await?);
        }
        for (index, cell) in cells().into_iter().enumerate() {
            let first = (round + index) % servers.len();
            servers.rotate_left(first);
            for server in &servers {
                let figures = search::measure(server, cell, timing)
                    .await
                    .with_context(|| format!("{}, {cell:?}", server.kind))?;
                eprintln!(
                    "{:>4.0} s  round {}/{rounds}  {cell}  {:<9}  {figures}",
                    began.elapsed().as_secs_f64(),
                    round + 1,
                    server.kind.to_string()
                );
                report.add(server.kind, cell, figures);
            }
        }
    }
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>4} B, {:>2} clients, bursts of {}", self.size, self.clients, self.burst)
    }
}
