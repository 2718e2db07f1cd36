//! What the system says of this process.

use serde::Serialize;

/// By the names that Prometheus's client libraries give the same values, without the prefix `process_`.
#[derive(Debug, Serialize)]
pub(super) struct Process {
    pub(super) resident_memory_bytes: u64,
    pub(super) open_fds: u64,
    pub(super) max_fds: u64,
    pub(super) cpu_seconds_total: f64,
}

impl Process {
    /// Reads `/proc/self` (proc_pid_status(5), proc_pid_fd(5)) and the process's CPU clock. `None` where the system has none.
    #[cfg(target_os = "linux")]
    pub(super) fn now() -> Option<Self> {
        use rustix::{
            process::{Resource, getrlimit},
            time::{ClockId, clock_gettime},
        };

        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))?;
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Some(Self {
            resident_memory_bytes: resident.parse::<u64>().ok()? * 1024,
            // One is the directory's own.
            open_fds: std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64,
            max_fds: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            cpu_seconds_total: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
        })
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn now() -> Option<Self> {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn process_values_are_those_of_this_process() {
        let before = Process::now().unwrap();
        let held: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let now = Process::now().unwrap();
        // Other tests of this process open and close some meanwhile.
        assert!(now.open_fds > 50 && now.open_fds <= now.max_fds, "{before:?} {now:?}");
        assert!(now.resident_memory_bytes > 1 << 20 && now.cpu_seconds_total >= before.cpu_seconds_total);
        drop(held);
    }
}
