//! Percentiles of durations.

/// Durations in nanoseconds. All of them are kept, up to a limit.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Vec<u64>);

/// Durations that are kept at most (8 MiB). Later ones are ignored.
const MOST: usize = 1 << 20;

impl Latencies {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn record(&mut self, nanos: u64) {
        if self.0.len() < MOST {
            self.0.push(nanos);
        }
    }

    /// Returns how many durations are kept.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the smallest duration that `percent` of a hundred do not exceed (nearest rank), in microseconds.
    pub(crate) fn percentile(&mut self, percent: usize) -> Option<f64> {
        self.0.sort_unstable();
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).map(|&nanos| nanos as f64 / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile(50), None);
        (1..=200).rev().for_each(|i| latencies.record(i * 1000));
        assert_eq!(latencies.percentile(50), Some(100.0));
        assert_eq!(latencies.percentile(99), Some(198.0));
        assert_eq!(latencies.percentile(100), Some(200.0));
    }
}
