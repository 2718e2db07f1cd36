//! `cargo xtask bench udp`: builds `crates/bench-udp` and runs it in a network namespace of its own.

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
    /// Rounds through all loads; three and a half minutes end them too. The rows behind a full queue take half a minute more.
    #[arg(long, default_value_t = 41)]
    rounds: usize,
    /// Two rounds: to see that it works, not to quote.
    #[arg(long)]
    quick: bool,
    /// Write the tables to this file as well.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "this needs Linux: network namespaces and /proc");
    let cores = std::thread::available_parallelism()?.get();
    ensure!(cores >= 2, "this needs two cores, one for what is measured and one for the other end");
    let directory = Metadata::read(root)?.target_directory.join("bench-udp");
    let manifest = root.join("crates/bench-udp/Cargo.toml");
    let mut build = cargo(root);
    build.args(["build", "--release", "--manifest-path"]).arg(manifest).arg("--target-dir").arg(&directory);
    ensure!(build.status()?.success(), "the build failed");

    let rounds = if options.quick { 2 } else { options.rounds.max(1) };
    let mut command = namespace::command()?;
    command.arg(directory.join("release/bench-udp")).arg(rounds.to_string()).stderr(Stdio::inherit());
    let out = command.output().context("starting setpriv and unshare (util-linux)")?;
    ensure!(out.status.success(), "the benchmark failed");
    std::io::stdout().write_all(&out.stdout)?;
    if let Some(path) = &options.markdown {
        std::fs::write(path, &out.stdout).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
