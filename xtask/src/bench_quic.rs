//! `cargo xtask bench quic`: builds `crates/bench-quic` and runs it in a network namespace of its own.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    cargo::{Metadata, cargo},
    namespace,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Megabytes of each transfer. At 20 Mbit/s 1,000 of them take seven minutes for each socket and round.
    #[arg(long, default_value_t = 50)]
    megabytes: u64,
    /// Rounds through all links and sockets.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long Backwater's sockets hold a datagram, in milliseconds; several values are compared.
    #[arg(long, default_value = "1000", value_delimiter = ',')]
    deadlines: Vec<u64>,
    /// Two rounds of 2 MB: to see that it works, not to quote.
    #[arg(long)]
    quick: bool,
    /// Write the tables to this file as well.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "this needs Linux: network namespaces and tc");
    let directory = Metadata::read(root)?.target_directory.join("quic");
    let manifest = root.join("crates/bench-quic/Cargo.toml");
    let mut build = cargo(root);
    build.args(["build", "--release", "--manifest-path"]).arg(manifest).arg("--target-dir").arg(&directory);
    ensure!(build.status()?.success(), "the build failed");

    let (megabytes, rounds) = if options.quick { (2, 2) } else { (options.megabytes.max(1), options.rounds.max(1)) };
    let deadlines: Vec<_> = options.deadlines.iter().map(u64::to_string).collect();
    let mut command = namespace::command()?;
    command.arg(directory.join("release/bench-quic"));
    command.args([megabytes.to_string(), rounds.to_string(), deadlines.join(",")]).stderr(Stdio::inherit());
    let out = command.output().context("starting setpriv and unshare (util-linux)")?;
    ensure!(out.status.success(), "the benchmark failed");
    std::io::stdout().write_all(&out.stdout)?;
    if let Some(path) = &options.markdown {
        std::fs::write(path, &out.stdout).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
