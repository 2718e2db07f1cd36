//! How fast the path is, and how much may wait for it.

use std::time::{Duration, Instant};

/// The rate of a path, from what it took while more was waiting for it, and the sizes of the queues in front of it that
/// follow from the rate.
///
/// A sample is what the path took in 100 ms of backlogged time (not necessarily in one piece); the estimate is the mean
/// of the last sample and the estimate before it. The largest of the last few samples follows a rising rate as fast, but
/// sits above a path that serves in bursts and follows a falling one later; a slower mean is steadier than a bound
/// needs and too late after a fall (the tests hold both in figures).
#[derive(Clone, Debug, Default)]
pub struct Rate {
    /// Bytes per second.
    estimate: Option<u64>,
    /// The sample being taken.
    bytes: u64,
    backlogged_for: Duration,
    /// When something was sent last, if more was waiting then.
    backlogged_since: Option<Instant>,
    /// When the path was last known to be the bottleneck.
    last_backlogged: Option<Instant>,
}

/// How long a packet may wait in each of the queues that are sized here.
pub const LONGEST_WAIT: Duration = Duration::from_millis(50);

const SAMPLE: Duration = Duration::from_millis(100);

/// What is as old as this says nothing about the path any more.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Two packets of 1,500 bytes with their `virtio_net_hdr`: with fewer, a path has nothing to do between a packet's
/// leaving and the reading of the next. 50 ms at 0.5 Mbit/s.
const LEAST_BOUND: usize = 2 * 1510;

/// 50 ms at 671 Mbit/s: what memory may cost a peer.
const LARGEST_BOUND: usize = 4 << 20;

impl Rate {
    /// The path took `bytes`; `backlogged` says whether more is waiting for it now.
    ///
    /// Call it also with 0 bytes when the path refuses a datagram, so that the time it refuses counts as backlogged.
    pub fn on_sent(&mut self, now: Instant, bytes: usize, backlogged: bool) {
        self.forget(now);
        if let Some(since) = self.backlogged_since {
            self.bytes = self.bytes.saturating_add(bytes as u64);
            self.backlogged_for = self.backlogged_for.saturating_add(now.saturating_duration_since(since));
            self.last_backlogged = Some(now);
            if self.backlogged_for >= SAMPLE {
                self.take_sample();
            }
        }
        self.backlogged_since = backlogged.then_some(now);
        if backlogged {
            self.last_backlogged = Some(now);
        }
    }

    /// Bytes per second, or `None` if the path was not the bottleneck in the last 10 s.
    pub fn bytes_per_second(&self, now: Instant) -> Option<u64> {
        self.estimate.filter(|_| !self.is_stale(now))
    }

    /// How many bytes may wait in front of the path: what it takes in 50 ms, 3,020 to 4 MiB; 4 MiB if its rate is not known.
    ///
    /// A packet is admitted while fewer bytes than this wait, so that the last one (up to 64 KiB) may reach beyond it.
    pub fn bound(&self, now: Instant) -> usize {
        self.bytes_per_second(now).map_or(LARGEST_BOUND, |rate| {
            usize::try_from(in_longest_wait(rate)).unwrap_or(LARGEST_BOUND).clamp(LEAST_BOUND, LARGEST_BOUND)
        })
    }

    /// How many packets of `mtu` bytes the TUN device may queue (`txqueuelen`) for 50 ms at the path's rate: 16 to 500;
    /// 500, which is the kernel's default (`tun_setup`), if the rate is not known.
    pub fn queue_len(&self, now: Instant, mtu: usize) -> u32 {
        self.bytes_per_second(now).map_or(500, |rate| (in_longest_wait(rate) / mtu.max(1) as u64).clamp(16, 500) as u32)
    }

    fn take_sample(&mut self) {
        let nanos = self.backlogged_for.as_nanos().max(1);
        let sample = u128::from(self.bytes) * 1_000_000_000 / nanos;
        let sample = u64::try_from(sample).unwrap_or(u64::MAX);
        self.estimate = Some(self.estimate.map_or(sample, |estimate| estimate / 2 + sample / 2));
        self.bytes = 0;
        self.backlogged_for = Duration::ZERO;
    }

    fn forget(&mut self, now: Instant) {
        if self.is_stale(now) {
            *self = Self::default();
        }
    }

    /// A path that is held up stays backlogged: its rate is not forgotten before it takes something again.
    fn is_stale(&self, now: Instant) -> bool {
        self.backlogged_since.is_none()
            && self.last_backlogged.is_some_and(|last| now.saturating_duration_since(last) >= REMEMBERED)
    }
}

fn in_longest_wait(bytes_per_second: u64) -> u64 {
    bytes_per_second / (1000 / LONGEST_WAIT.as_millis() as u64)
}
