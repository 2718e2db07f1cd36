//! How often the event loop yields its core between GSO batches.

use std::time::{Duration, Instant};

/// Yields the core (`sched_yield`) between GSO batches that the loop sends, within a budget.
///
/// A program that receives through the tunnel on this host often shares the loop's core. Its socket holds about ninety full
/// datagrams (`rmem_default`), less than the loop makes within one time slice. The program reads them while the loop yields.
///
/// Another program may use the yielded core for a whole time slice. The budget bounds that: the loop yields at most 1.5 times the
/// time that it has used itself, and so keeps two fifths of the core or more.
pub(crate) struct YieldBudget {
    /// Nanoseconds that the loop may still yield. Negative after another program took longer than the budget.
    credit: i64,
    since: Instant,
}

/// The longest time between two yields that counts as used by the loop. The rest may have been another program's.
const MAX_USED: Duration = Duration::from_micros(200);

/// Limits of the credit, in nanoseconds: 1 ms saved, 100 ms of debt.
const MAX_CREDIT: i64 = 1_000_000;
const MIN_CREDIT: i64 = -100_000_000;

impl YieldBudget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { credit: 0, since: now }
    }

    /// Yields the core if the budget allows it.
    pub(crate) fn yield_core(&mut self) {
        if self.may_yield(Instant::now()) {
            std::thread::yield_now();
            self.returned(Instant::now());
        }
    }

    fn may_yield(&mut self, now: Instant) -> bool {
        let used = nanoseconds(now.saturating_duration_since(self.since).min(MAX_USED));
        self.credit = (self.credit + used + used / 2).min(MAX_CREDIT);
        self.since = now;
        self.credit > 0
    }

    fn returned(&mut self, now: Instant) {
        self.credit = (self.credit - nanoseconds(now.saturating_duration_since(self.since))).max(MIN_CREDIT);
        self.since = now;
    }
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulates one second: a batch takes 100 µs, and others keep a yielded core for `others`. Returns the loop's share of the
    /// core, and how often it yielded.
    fn share(others: Duration) -> (f64, u32) {
        let batch = Duration::from_micros(100);
        let begin = Instant::now();
        let (mut now, mut budget, mut own, mut yields) = (begin, YieldBudget::new(begin), Duration::ZERO, 0);
        while now - begin < Duration::from_secs(1) {
            (now, own) = (now + batch, own + batch);
            if budget.may_yield(now) {
                now += others;
                yields += 1;
                budget.returned(now);
            }
        }
        (own.as_secs_f64() / (now - begin).as_secs_f64(), yields)
    }

    #[test]
    fn short_yields_follow_every_batch() {
        assert_eq!(share(Duration::ZERO), (1.0, 10_000));
        let (share, yields) = share(Duration::from_micros(120));
        assert!(share < 0.46 && yields > 4_500, "{share} {yields}");
    }

    #[test]
    fn long_yields_leave_the_loop_two_fifths_of_the_core() {
        for others in [Duration::from_millis(3), Duration::from_millis(100)] {
            let (share, _) = share(others);
            assert!((0.35..0.45).contains(&share), "{share} beside {others:?}");
        }
    }
}
