//! What a server costs.

use std::fs;

use anyhow::{Context, Result, ensure};

/// Nanoseconds that the threads of a process have run.
///
/// From `schedstat` (first field), which counts nanoseconds. `/proc/stat` counts ticks, of 4 ms on most kernels, too
/// coarse for a load of a third of a second, and everything else that runs on the core.
///
/// Work in softirqs is in it: on loopback the kernel does it within the sender's own call and charges it to that thread
/// (seen: a server that loses, and so has no time left, shows 99 % and more). A kernel with
/// `CONFIG_IRQ_TIME_ACCOUNTING` charges it to nobody; all servers then look better than they are.
pub(super) fn run_time(pid: u32) -> Result<u64> {
    let nanos = schedstat(pid, 0)?;
    ensure!(nanos > 0, "/proc/{pid}/task/*/schedstat is zero: the kernel does not count run time");
    Ok(nanos)
}

/// Nanoseconds that the threads of a process have waited for a core, though they could have run.
pub(super) fn waited(pid: u32) -> Result<u64> {
    schedstat(pid, 1)
}

/// The sum of a field over all threads.
fn schedstat(pid: u32, field: usize) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} has ended"))? {
        let path = task?.path().join("schedstat");
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let nanos = text.split_whitespace().nth(field).and_then(|n| n.parse::<u64>().ok());
        sum += nanos.with_context(|| format!("{} is not understood", path.display()))?;
    }
    Ok(sum)
}

/// Resident memory in KiB.
pub(super) fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok());
    kib.with_context(|| format!("/proc/{pid}/status has no VmRSS"))
}
