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

/// Seconds that a process has run, in its own code and in the kernel's, with threads that have ended since.
///
/// From `/proc/PID/stat`, which counts in ticks of 10 ms (`USER_HZ`, the same on every machine): for loads of seconds.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    const PER_SECOND: f64 = 100.0;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} has ended"))?;
    ticks(&text).map(|ticks| ticks as f64 / PER_SECOND).with_context(|| format!("/proc/{pid}/stat is not understood"))
}

/// `utime` and `stime`, fields 14 and 15 (proc_pid_stat(5)). The second field is a name and may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// How often the threads of a process have gone to sleep by themselves, and were woken again.
pub(crate) fn wake_ups(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} has ended"))? {
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(task?.path().join("status")) else { continue };
        let count = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let count = count.and_then(|rest| rest.trim().parse::<u64>().ok());
        sum += count.with_context(|| format!("/proc/{pid}/task/*/status has no voluntary_ctxt_switches"))?;
    }
    Ok(sum)
}

/// Resident memory in KiB.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok());
    kib.with_context(|| format!("/proc/{pid}/status has no VmRSS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_fields() {
        let stat = "29830 (a) S (b) S 29808 29807 12289 0 -1 4194560 5581 0 1 0 142 291 0 0 20 0 14 0 1266927\n";
        assert_eq!(ticks(stat), Some(142 + 291));
        assert_eq!(ticks("29830 (a) S 29808"), None);
    }
}
