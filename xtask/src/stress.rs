//! `cargo xtask stress-tests`: runs the README's test command beside busy loops, and lists the tests that failed.
//!
//! A test that fails here and passes on an idle machine asserts something about the machine: a time, a rate, or a share of CPU.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    hint,
    io::{self, BufRead, BufReader, Write as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use anyhow::{Result, ensure};
use clap::Args;

use crate::cargo::cargo;

/// The README's test command. `cargo xtask tidy` looks for it there and in CONTRIBUTING.md.
pub(crate) const TEST_COMMAND: &str = "cargo test --workspace --no-fail-fast";

#[derive(Args)]
pub(crate) struct Options {
    /// How often to run the tests.
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Busy loops beside them, at normal niceness. 0 is a plain run.
    #[arg(long, default_value_t = 4)]
    loops: u32,
    /// Only the tests of these crates.
    #[arg(short, long)]
    package: Vec<String>,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let mut words: Vec<_> = TEST_COMMAND.split(' ').skip(1).filter(|word| *word != "--workspace").collect();
    if options.package.is_empty() {
        words.push("--workspace");
    }
    words.extend(options.package.iter().flat_map(|package| ["--package", package]));
    // The compiler has the machine to itself.
    let built = cargo(root).args(&words).arg("--no-run").status()?;
    ensure!(built.success(), "the tests do not compile");

    let (mut failed, mut unsuccessful) = (BTreeMap::<String, u32>::new(), 0);
    let loops = BusyLoops::start(options.loops);
    for run in 1..=options.runs {
        let began = Instant::now();
        let (success, failures) = one_run(root, &words)?;
        println!("run {run} of {}: {} failures, {:.0?}", options.runs, failures.len(), began.elapsed());
        unsuccessful += u32::from(!success);
        for failure in failures {
            *failed.entry(failure).or_default() += 1;
        }
    }
    drop(loops);
    print!("{}", table(&failed, options.runs));
    ensure!(unsuccessful == 0, "{unsuccessful} of {} runs failed beside {} busy loops", options.runs, options.loops);
    println!("{} runs beside {} busy loops: no test failed", options.runs, options.loops);
    Ok(())
}

/// Runs the tests once, shows what they write, and returns whether all passed and which did not.
fn one_run(root: &Path, words: &[&str]) -> Result<(bool, Vec<String>)> {
    let (reader, writer) = io::pipe()?;
    let mut command = cargo(root);
    command.args(words).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // It has the writing ends: they must be closed here for the reading end to come to an end.
    drop(command);
    let mut failures = Failures::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let mut out = io::stdout().lock();
        out.write_all(&line)?;
        out.write_all(b"\n")?;
        failures.line(&String::from_utf8_lossy(&line));
    }
    Ok((child.wait()?.success(), failures.all))
}

/// Threads that do nothing but use a processor. They end with the value, or with the process.
struct BusyLoops(Arc<AtomicBool>);

impl BusyLoops {
    fn start(count: u32) -> Self {
        let stop = Arc::<AtomicBool>::default();
        for _ in 0..count {
            let stop = stop.clone();
            thread::spawn(move || {
                while !stop.load(Relaxed) {
                    hint::spin_loop();
                }
            });
        }
        Self(stop)
    }
}

impl Drop for BusyLoops {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Reads the failures out of what `cargo test` writes, line by line.
#[derive(Default)]
struct Failures {
    /// Each as cargo's arguments for the test binary, and the test's name.
    all: Vec<String>,
    /// The names in the list at the end of the binary that runs.
    names: Vec<String>,
    in_list: bool,
}

impl Failures {
    fn line(&mut self, line: &str) {
        if line == "failures:" {
            // The list comes after the details, which begin in the same way.
            self.in_list = true;
            self.names.clear();
        } else if let Some(rest) = line.strip_prefix("error: ").filter(|rest| rest.contains("to rerun pass `")) {
            let arguments = rest.split('`').nth(1).unwrap_or_default();
            // A binary that was ended by a signal has no list.
            if self.names.is_empty() {
                self.names.push("(ended before its tests)".to_owned());
            }
            self.all.extend(self.names.drain(..).map(|name| format!("{arguments} {name}")));
            self.in_list = false;
        } else if line.starts_with("test result: ") {
            self.in_list = false;
        } else if line.trim_start().starts_with("Running ") || line.trim_start().starts_with("Doc-tests ") {
            self.names.clear();
        } else if self.in_list
            && let Some(name) = line.strip_prefix("    ")
        {
            self.names.push(name.to_owned());
        } else if !line.is_empty() {
            self.in_list = false;
        }
    }
}

/// How often each test failed; empty if none did.
fn table(failed: &BTreeMap<String, u32>, runs: u32) -> String {
    let mut table = String::new();
    if !failed.is_empty() {
        table.push_str("failed  test\n");
    }
    for (test, count) in failed {
        let _ = writeln!(table, "{:>6}  {test}", format!("{count}/{runs}"));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What cargo writes about a test that failed in a namespace (its output has a report of its own), a binary that was
    /// ended by a signal, one without failures, and a documentation test.
    const OUTPUT: &str = "\
     Running tests/queue.rs (target/debug/deps/queue-1a2b)

running 2 tests
test one ... FAILED
test two ... ok

failures:

---- one stdout ----

running 1 test
failures:
    one

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.10s

    four blanks, and no test

failures:
    one

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s

error: test failed, to rerun pass `-p backwater-udp --test queue`
     Running tests/loopback.rs (target/debug/deps/loopback-1a2b)

running 1 test
error: test failed, to rerun pass `-p backwater-udp --test loopback`

Caused by:
  process didn't exit successfully: `loopback-1a2b` (signal: 6, SIGABRT: process abort signal)
     Running unittests src/lib.rs (target/debug/deps/backwater_udp-1a2b)

running 1 test
test fine ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

   Doc-tests backwater_udp

failures:
    crates/backwater-udp/src/lib.rs - (line 7)

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s

error: doctest failed, to rerun pass `-p backwater-udp --doc`
error: 3 targets failed:
    `-p backwater-udp --test queue`
    `-p backwater-udp --test loopback`
    `-p backwater-udp --doc`
";

    #[test]
    fn failures_are_found_in_cargo_s_output() {
        let mut failures = Failures::default();
        OUTPUT.lines().for_each(|line| failures.line(line));
        let expected = [
            "-p backwater-udp --test queue one",
            "-p backwater-udp --test loopback (ended before its tests)",
            "-p backwater-udp --doc crates/backwater-udp/src/lib.rs - (line 7)",
        ];
        assert_eq!(failures.all, expected);
    }

    #[test]
    fn the_table_counts_runs_and_is_empty_without_failures() {
        assert_eq!(table(&BTreeMap::new(), 5), "");
        let failed = [("a b".to_owned(), 2), ("c".to_owned(), 5)].into();
        assert_eq!(table(&failed, 5), "failed  test\n   2/5  a b\n   5/5  c\n");
    }
}
