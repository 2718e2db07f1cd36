//! How many threads want a core, and how many cores there are.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

pub(super) struct Load {
    /// That are online.
    cores: usize,
    /// /proc/loadavg.
    file: File,
}

impl Load {
    /// None if the kernel does not say.
    pub(super) fn open() -> Option<Self> {
        Some(Self { cores: cores()?, file: File::open("/proc/loadavg").ok()? })
    }

    pub(super) fn cores(&self) -> usize {
        self.cores
    }

    /// Whether more threads run or want to, everywhere, than there are cores.
    pub(super) fn is_too_much(&self) -> bool {
        self.running().is_some_and(|running| running > self.cores)
    }

    fn running(&self) -> Option<usize> {
        let mut text = [0; 64];
        let len = self.file.read_at(&mut text, 0).ok()?;
        running(str::from_utf8(text.get(..len)?).ok()?)
    }
}

/// How many cores are online, if the kernel says so.
pub(super) fn cores() -> Option<usize> {
    count(&fs::read_to_string("/sys/devices/system/cpu/online").ok()?)
}

/// From a list as `0-3,6` (`cpulist_parse`).
fn count(list: &str) -> Option<usize> {
    list.trim().split(',').try_fold(0, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(sum + last.checked_sub(first)? + 1)
    })
}

/// From /proc/loadavg: `0.75 0.35 0.25 3/125 4711`.
fn running(load: &str) -> Option<usize> {
    load.split(' ').nth(3)?.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_understood() {
        assert_eq!(["0-1\n", "0", "0-3,6,8-9\n", ""].map(count), [Some(2), Some(1), Some(7), None]);
        assert_eq!(running("0.75 0.35 0.25 3/125 4711\n"), Some(3));
        assert_eq!(running(""), None);
        let load = Load::open().unwrap();
        assert!(load.cores() > 0);
        assert!(load.running().is_some());
    }
}
