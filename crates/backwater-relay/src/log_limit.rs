//! Lines of the log that a client gives rise to: it must not be able to fill the disk.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// Counts the lines of one kind that one thread writes.
pub(crate) struct LogLimit {
    lines: u32,
    interval: Duration,
    state: Cell<(Instant, u32)>,
}

impl LogLimit {
    /// Five lines in a second.
    pub(crate) fn new(now: Instant) -> Self {
        Self { lines: 5, interval: Duration::from_secs(1), state: Cell::new((now, 0)) }
    }

    /// One line in a minute: for what the metrics count, and an operator is to hear of.
    pub(crate) fn once_a_minute(now: Instant) -> Self {
        Self { lines: 1, interval: Duration::from_secs(60), ..Self::new(now) }
    }

    /// Whether a line may be written now; it counts then.
    pub(crate) fn allows(&self, now: Instant) -> bool {
        let (mut since, mut lines) = self.state.get();
        if now.saturating_duration_since(since) >= self.interval {
            (since, lines) = (now, 0);
        }
        self.state.set((since, lines.saturating_add(1)));
        lines < self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_limited_in_each_interval() {
        let now = Instant::now();
        let count = |limit: &LogLimit, at| (0..20).filter(|_| limit.allows(at)).count();
        let minute = Duration::from_secs(60);
        for (limit, lines) in [(LogLimit::new(now), 5), (LogLimit::once_a_minute(now), 1)] {
            assert_eq!((count(&limit, now), count(&limit, now + minute)), (lines, lines));
            assert_eq!(count(&limit, now + minute), 0);
        }
    }
}
