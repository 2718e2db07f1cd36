//! The pace of the GSO batches.

/// Spaces GSO batches evenly. Time is nanoseconds since any fixed moment.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Nanoseconds between two batches; zero is as fast as possible.
    interval: f64,
    next: f64,
}

/// Nanoseconds that a late sender catches up on at most. A longer burst would be lost in the server's receive buffer and count as the
/// server's loss. The rate is lower instead.
const MOST_BEHIND: f64 = 1e6;

impl Pace {
    /// Paces `rate` datagrams per second in batches of `burst`; a rate of zero is as fast as possible.
    pub(crate) fn new(rate: f64, burst: usize, now: u64) -> Self {
        Self { interval: if rate > 0.0 { burst as f64 / rate * 1e9 } else { 0.0 }, next: now as f64 }
    }

    /// Returns how many batches to send now, at most `most`.
    pub(crate) fn due(&mut self, now: u64, most: usize) -> usize {
        if self.interval <= 0.0 {
            return most;
        }
        let now = now as f64;
        self.next = self.next.max(now - MOST_BEHIND);
        if now < self.next {
            return 0;
        }
        let due = (((now - self.next) / self.interval) as usize + 1).min(most);
        self.next += due as f64 * self.interval;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_at_a_rate_is_that_many() {
        for (rate, burst, step) in [(100_000.0, 8, 700), (300_000.0, 1, 1_000), (999_999.0, 8, 10_000)] {
            let mut pace = Pace::new(rate, burst, 0);
            let trains: usize = (0..1_000_000_000 / step).map(|i| pace.due(i * step, 64)).sum();
            let datagrams = (trains * burst) as f64;
            assert!((datagrams - rate).abs() <= rate * 0.001 + burst as f64, "{datagrams} of {rate}");
        }
    }

    #[test]
    fn a_long_gap_is_not_caught_up() {
        let mut pace = Pace::new(1_000_000.0, 1, 0);
        pace.due(0, 64);
        let after: usize = (0..1000).map(|_| pace.due(500_000_000, 64)).sum();
        assert!((1000..=1001).contains(&after), "{after}: a millisecond's worth");
    }

    #[test]
    fn no_rate_is_no_limit() {
        assert_eq!(Pace::new(0.0, 8, 0).due(0, 17), 17);
    }
}
