//! `cargo xtask bench stun`: builds `crates/bench-stun` and runs it.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::cargo::{Metadata, cargo};

#[derive(Args)]
pub(crate) struct Options {
    /// Rounds through all codecs; nine at least.
    #[arg(default_value_t = 101)]
    rounds: usize,
    /// Write the figures to this file as well, as a code block.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let directory = Metadata::read(root)?.target_directory.join("bench-stun");
    let mut command = cargo(root);
    command.args(["run", "--release", "--locked", "--manifest-path"]).arg(root.join("crates/bench-stun/Cargo.toml"));
    command.arg("--target-dir").arg(directory).arg("--").arg(options.rounds.to_string());
    let out = command.stderr(Stdio::inherit()).output().context("starting cargo")?;
    ensure!(out.status.success(), "the benchmark failed");
    std::io::stdout().write_all(&out.stdout)?;
    if let Some(path) = &options.markdown {
        let text = String::from_utf8(out.stdout)?;
        let block = format!("```text\n{}\n```\n", text.trim_end());
        std::fs::write(path, block).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
