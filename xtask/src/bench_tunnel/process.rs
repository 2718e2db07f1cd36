//! Programs that end: in time by themselves, or with what holds them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// A program that runs, until this is dropped.
pub(super) struct Process {
    child: Child,
    output: PathBuf,
}

/// How long a step may take that has nothing to wait for.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

impl Process {
    /// What it prints goes to /run, by that name.
    pub(super) fn start(mut command: Command, name: &str) -> Result<Self> {
        let output = Path::new("/run").join(name);
        let file = fs::File::create(&output)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { child, output })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// An error, with what it said last, if it has ended.
    pub(super) fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let text = self.printed()?;
                let last: Vec<_> = text.lines().rev().take(5).collect();
                bail!("it has ended with {status}: {}", last.join(" | "))
            }
        }
    }

    /// What it has printed when it has ended, and whether successfully.
    pub(super) fn finish(mut self, patience: Duration) -> Result<(bool, String)> {
        let mut status = None;
        wait_until(patience, || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        Ok((status.is_some_and(|status| status.success()), self.printed()?))
    }

    fn printed(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.output)?).into_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing to do about a failure: it has ended by itself then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its successful end.
pub(super) fn run(command: Command, arguments: &str) -> Result<()> {
    output(command, arguments).map(|_| ())
}

/// The same, and what it printed.
pub(super) fn output(mut command: Command, arguments: &str) -> Result<String> {
    command.args(arguments.split_whitespace());
    let (success, text) = Process::start(command, "step")?.finish(PATIENCE).with_context(|| arguments.to_owned())?;
    ensure!(success, "{arguments}: {}", text.trim());
    Ok(text)
}

/// Asks again and again.
pub(super) fn wait_until(patience: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !done()? {
        ensure!(began.elapsed() < patience, "not within {} s", patience.as_secs());
        sleep(Duration::from_millis(10));
    }
    Ok(())
}
