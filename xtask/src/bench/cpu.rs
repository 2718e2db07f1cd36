//! What a server costs.

use std::fs;

use anyhow::{Context, Result, ensure};

/// Nanoseconds that the threads of a process have run.
///
/// From `schedstat` (first field), which counts nanoseconds; the times in `/proc/PID/stat` and `/proc/stat` count
/// ticks of 4 ms on kernels with tick accounting, too coarse for a load of a third of a second.
///
/// Work in softirqs counts as well: on loopback the kernel does it within the sender's own call, and charges it to
/// that thread, unless it was built with `CONFIG_IRQ_TIME_ACCOUNTING`. Then the figures are too good, for all
/// servers alike; [`charges_softirq`] finds out.
pub(super) fn run_time(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} has ended"))? {
        let path = task?.path().join("schedstat");
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let nanos = text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
        sum += nanos.with_context(|| format!("{} is not understood", path.display()))?;
    }
    ensure!(sum > 0, "/proc/{pid}/task/*/schedstat is empty: the kernel does not count run time");
    Ok(sum)
}

/// Resident memory in KiB.
pub(super) fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok());
    kib.with_context(|| format!("/proc/{pid}/status has no VmRSS"))
}
