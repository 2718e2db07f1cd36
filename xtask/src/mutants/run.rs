//! Runs the unit tests once for each fault.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::Built;

/// What came of one fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This test failed; empty if the process ended otherwise.
    Killed(String),
    /// The tests did not end, or the process was ended by a signal.
    Hung,
    /// All tests passed.
    Survived,
}

/// One way to run the tests.
pub(super) struct Stage {
    /// Random schedules of each of the model's rows.
    pub(super) schedules: u32,
    /// Seconds of CPU time, of which a run without a fault takes a twentieth: what takes longer spins. Whatever else the machine does.
    pub(super) cpu_seconds: u32,
    /// Tests that are left out.
    pub(super) without: &'static [&'static str],
}

/// Runs the tests with each of the faults, and in the next stage with those that survive.
///
/// # Errors
/// When a test fails without a fault, or a process cannot be started.
pub(super) fn run_all(built: &Built, faults: &[u32], stages: &[Stage]) -> Result<Vec<(u32, Outcome)>> {
    let mut left: Vec<u32> = faults.to_vec();
    let mut results = Vec::new();
    for stage in stages {
        let began = Instant::now();
        let sound = run_one(built, 0, stage, Duration::from_secs(600))?;
        ensure!(sound == Outcome::Survived, "without a fault: {sound:?}");
        // Ten times as long as without a fault, or whatever a busy machine makes of it: what takes longer sleeps.
        let limit = began.elapsed() * 10 + Duration::from_secs(4);
        let tried = run_each(built, &left, stage, limit)?;
        left.clear();
        for (fault, outcome) in tried {
            if outcome == Outcome::Survived {
                left.push(fault);
            } else {
                results.push((fault, outcome));
            }
        }
        println!("{} schedules a row: {} survive", stage.schedules, left.len());
    }
    results.extend(left.into_iter().map(|fault| (fault, Outcome::Survived)));
    results.sort_by_key(|(fault, _)| *fault);
    Ok(results)
}

fn run_each(built: &Built, faults: &[u32], stage: &Stage, limit: Duration) -> Result<Vec<(u32, Outcome)>> {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let work = || -> Result<()> {
            while let Some(&fault) = faults.get(next.fetch_add(1, Relaxed)) {
                let outcome = run_one(built, fault, stage, limit)?;
                let mut results = results.lock().map_err(|_| anyhow::anyhow!("a worker ended"))?;
                results.push((fault, outcome));
                if results.len().is_multiple_of(100) {
                    eprintln!("{} of {}", results.len(), faults.len());
                }
            }
            Ok(())
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a worker ended"))?)
    })?;
    Ok(results.into_inner().unwrap_or_default())
}

/// Ends at the first test that fails.
fn run_one(built: &Built, fault: u32, stage: &Stage, limit: Duration) -> Result<Outcome> {
    // A fault may run, or allocate, without end.
    let limited = format!(r#"ulimit -v 8000000; ulimit -t {}; exec "$@""#, stage.cpu_seconds);
    let mut command = Command::new("sh");
    command.args(["-c", &limited, "sh"]).arg(&built.program);
    command.args(stage.without.iter().flat_map(|test| ["--skip", test]));
    command.current_dir(&built.directory);
    command.env("BACKWATER_MUTANT", fault.to_string()).env("BACKWATER_SCHEDULES", stage.schedules.to_string());
    command.env("RUST_BACKTRACE", "0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("starting the tests")?;
    let outcome = watch(&mut child, limit);
    let _ = child.kill();
    let status = child.wait()?;
    Ok(match outcome {
        Watched::Failed(test) => Outcome::Killed(test),
        Watched::Silent => Outcome::Hung,
        Watched::Ended if status.success() => Outcome::Survived,
        Watched::Ended if status.code().is_none() => Outcome::Hung,
        Watched::Ended => Outcome::Killed(String::new()),
    })
}

enum Watched {
    Failed(String),
    Ended,
    Silent,
}

fn watch(child: &mut Child, limit: Duration) -> Watched {
    let Some(stdout) = child.stdout.take() else { return Watched::Ended };
    let (sender, events) = mpsc::channel();
    // It ends when the process has: the pipe is closed then.
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(test) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
                let _ = sender.send(test.to_owned());
                return;
            }
        }
    });
    match events.recv_timeout(limit) {
        Ok(test) => Watched::Failed(test),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            // The pipe was closed: the process is about to end.
            let _ = child.wait();
            Watched::Ended
        }
        Err(mpsc::RecvTimeoutError::Timeout) => Watched::Silent,
    }
}
