//! How fast the path is, and how much may wait for it.

use std::time::{Duration, Instant};

/// The rate of a path, from what it took while more was waiting for it, and the sizes of the queues in front of it that
/// follow from the rate.
///
/// A sample is what the path took in 100 ms of backlogged time, not necessarily in one piece; the estimate is the mean of the
/// newest sample and the estimate before. The largest of the last three samples is a sixth too high for a path whose samples
/// vary by a fifth, and a mean in which the newest weighs 1/8 needs two seconds after a fall (a test compares them).
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

/// How long a packet may wait in the queue in front of it.
pub const LONGEST_WAIT: Duration = Duration::from_millis(50);

const SAMPLE: Duration = Duration::from_millis(100);

/// Until there is one, slow start runs into a bound that knows nothing.
const FIRST_SAMPLE: Duration = Duration::from_millis(20);

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
            let enough = if self.estimate.is_some() { SAMPLE } else { FIRST_SAMPLE };
            if self.backlogged_for >= enough {
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

    /// How many bytes are to go to the path at once: what it takes in 5 ms, 3,020 at least; more than 64 KiB if its rate is not
    /// known.
    ///
    /// Nothing overtakes what is on its way, and CoDel and the bound deal in whole packets: one from the TUN device that is
    /// longer than this is to be taken apart before it is queued. TCP makes them longer than a millisecond's worth only where
    /// the round trip is short (`tcp_tso_autosize`).
    pub fn longest_train(&self, now: Instant) -> usize {
        (self.bound(now) / 10).max(LEAST_BOUND)
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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A path that takes `bytes` every `every`, and is never idle, for `time`.
    fn run(rate: &mut Rate, now: &mut Instant, bytes: usize, every: Duration, time: Duration) {
        let end = *now + time;
        while *now < end {
            *now += every;
            rate.on_sent(*now, bytes, true);
        }
    }

    #[test]
    fn nothing_is_known_of_a_path_that_is_no_bottleneck() {
        let (mut rate, mut now) = (Rate::default(), Instant::now());
        for _ in 0..10_000 {
            now += MS;
            rate.on_sent(now, 1500, false);
        }
        assert_eq!(rate.bytes_per_second(now), None);
        assert_eq!((rate.bound(now), rate.longest_train(now) > 1 << 16), (4 << 20, true));
    }

    #[test]
    fn sizes_follow_from_the_rate() {
        let mbit_bound_and_longest =
            [(0.1, 3020, 3020), (1.0, 6250, 3020), (20.0, 125_000, 12_500), (5000.0, 4 << 20, 419_430)];
        for (mbit, bound, longest) in mbit_bound_and_longest {
            let (mut rate, mut now) = (Rate::default(), Instant::now());
            run(&mut rate, &mut now, (mbit * 125.0 * 20.0) as usize, 20 * MS, 300 * MS);
            assert_eq!((rate.bound(now), rate.longest_train(now)), (bound, longest));
        }
    }

    #[test]
    fn only_backlogged_time_counts() {
        let (mut rate, mut now) = (Rate::default(), Instant::now());
        // Ten times: three milliseconds of a megabyte a second, then long nothing; what was sent first waited for nothing.
        for _ in 0..10 {
            rate.on_sent(now, 50_000, true);
            run(&mut rate, &mut now, 1000, MS, 2 * MS);
            now += MS;
            rate.on_sent(now, 1000, false);
            now += 500 * MS;
        }
        assert_eq!(rate.bytes_per_second(now), Some(1_000_000));
    }

    #[test]
    fn forgets_what_is_old_but_not_while_the_path_is_held_up() {
        let (mut rate, mut now) = (Rate::default(), Instant::now());
        run(&mut rate, &mut now, 1000, MS, 100 * MS);
        let stopped = now;
        now += 60_000 * MS;
        assert_eq!(rate.bytes_per_second(now), Some(1_000_000));
        rate = Rate::default();
        run(&mut rate, &mut now, 1000, MS, 100 * MS);
        rate.on_sent(now, 0, false);
        assert_eq!(rate.bytes_per_second(now + 9999 * MS), Some(1_000_000));
        assert_eq!(rate.bytes_per_second(now + 10_000 * MS), None);
        // Nor does a clock that goes back matter.
        rate.on_sent(stopped, 1000, true);
        rate.on_sent(stopped, 1000, true);
    }

    #[test]
    fn no_numbers_overflow() {
        let (mut rate, mut now) = (Rate::default(), Instant::now());
        for time in [Duration::ZERO, MS, 100 * MS, Duration::from_secs(1 << 30), Duration::from_nanos(1)] {
            for bytes in [0, 1, usize::MAX] {
                now += time;
                rate.on_sent(now, bytes, true);
                assert!((LEAST_BOUND..=LARGEST_BOUND).contains(&rate.bound(now)));
            }
        }
    }

    /// Wi-Fi, say: samples that vary by a fifth of the rate, which falls to a tenth half-way.
    #[test]
    fn the_estimate_is_near_and_soon() {
        let mut random = fastrand::Rng::with_seed(1);
        let rates = [2500.0; 200].into_iter().chain([250.0; 200]);
        let samples: Vec<f64> = rates.map(|rate| rate * (0.65 + 0.7 * random.f64())).collect();
        let (mut rate, mut now) = (Rate::default(), Instant::now());
        let ours: Vec<f64> = samples
            .iter()
            .map(|sample| {
                run(&mut rate, &mut now, *sample as usize, MS, 100 * MS);
                rate.bytes_per_second(now).unwrap() as f64 / 1000.0
            })
            .collect();
        let largest: Vec<f64> = (0..400).map(|i| samples[i.max(2) - 2..=i].iter().fold(0.0, |a, b| b.max(a))).collect();
        let slow = samples.iter().scan(2500.0, |mean, sample| {
            *mean += (sample - *mean) / 8.0;
            Some(*mean)
        });
        let slow: Vec<f64> = slow.collect();
        let mean = |estimates: &[f64]| estimates[..200].iter().sum::<f64>() / 200.0 / 2500.0;
        // Samples until it is within a half of the new rate.
        let delay = |estimates: &[f64]| estimates[200..].iter().position(|rate| *rate < 375.0).unwrap();
        let figures = [&ours, &largest, &slow].map(|estimates| (mean(estimates), delay(estimates)));
        println!("{figures:.3?}");
        assert!((figures[0].0 - 1.0).abs() < 0.05 && figures[0].1 <= 6);
        assert!(figures[1].0 > 1.1 && figures[2].1 >= 10);
    }
}
