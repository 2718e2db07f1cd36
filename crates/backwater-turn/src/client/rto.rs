//! The retransmission time-out of requests, from measured round trips (RFC 8489 §6.2.1, RFC 6298).

use std::time::{Duration, Instant};

/// The time-out before the first measurement (RFC 8489 §6.2.1).
pub(super) const INITIAL: Duration = Duration::from_millis(500);

/// The shortest time-out: a server that is held up for a moment is not flooded.
const MIN: Duration = Duration::from_millis(200);

/// The longest time-out before a request's first retransmission.
const MAX: Duration = Duration::from_secs(3);

/// How long a measurement is valid without a newer one (RFC 8489 §6.2.1).
const VALID_FOR: Duration = Duration::from_secs(600);

/// Estimates the retransmission time-out for one server.
#[derive(Debug)]
pub(super) struct Rto {
    estimate: Option<Estimate>,
    /// The time-out that replaces the estimate after a response to a retransmitted request, until the next measurement (Karn).
    backed_off: Option<Duration>,
    updated: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Estimate {
    smoothed: Duration,
    variation: Duration,
}

impl Rto {
    pub(super) fn new(now: Instant) -> Self {
        Self { estimate: None, backed_off: None, updated: now }
    }

    /// Returns the time-out of a request that begins now.
    pub(super) fn current(&mut self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.updated) > VALID_FOR {
            *self = Self::new(now);
        }
        let estimated = || self.estimate.map(|Estimate { smoothed, variation }| smoothed + 4 * variation);
        self.backed_off.or_else(estimated).unwrap_or(INITIAL).clamp(MIN, MAX)
    }

    /// Returns the smoothed round-trip time, if there is a valid measurement.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.estimate.map(|estimate| estimate.smoothed)
    }

    /// Updates the estimate with a round trip of a request that was sent once (RFC 6298 §2).
    pub(super) fn measured(&mut self, now: Instant, round_trip: Duration) {
        let estimate = match self.estimate {
            None => Estimate { smoothed: round_trip, variation: round_trip / 2 },
            Some(Estimate { smoothed, variation }) => Estimate {
                smoothed: (7 * smoothed + round_trip) / 8,
                variation: (3 * variation + smoothed.abs_diff(round_trip)) / 4,
            },
        };
        *self = Self { estimate: Some(estimate), backed_off: None, updated: now };
    }

    /// Keeps the time-out of a retransmitted request, whose round trip cannot be measured: the response may be to any of its copies
    /// (Karn's algorithm, RFC 6298 §3).
    pub(super) fn ambiguous(&mut self, now: Instant, waited: Duration) {
        self.backed_off = Some(waited.min(MAX));
        self.updated = now;
    }

    /// Forgets all measurements: a request had no response, or the path is another one.
    pub(super) fn reset(&mut self, now: Instant) {
        *self = Self::new(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn time_out_follows_the_measured_round_trips() {
        let now = Instant::now();
        let mut rto = Rto::new(now);
        assert_eq!(rto.current(now), INITIAL);
        rto.measured(now, ms(400));
        // 400 + 4 * 200: RFC 6298 §2.2.
        assert_eq!((rto.current(now), rto.round_trip()), (ms(1200), Some(ms(400))));
        (0..100).for_each(|_| rto.measured(now, ms(400)));
        assert!(rto.current(now) < ms(410));
        (0..100).for_each(|_| rto.measured(now, ms(1)));
        assert_eq!(rto.current(now), MIN);
        rto.measured(now, Duration::from_secs(3600));
        assert_eq!(rto.current(now), MAX);
    }

    #[test]
    fn response_to_a_retransmitted_request_keeps_the_longer_time_out() {
        let now = Instant::now();
        let mut rto = Rto::new(now);
        rto.ambiguous(now, ms(1000));
        assert_eq!(rto.current(now), ms(1000));
        rto.measured(now, ms(300));
        assert_eq!(rto.current(now), ms(900));
    }

    #[test]
    fn measurements_expire_after_ten_minutes() {
        let now = Instant::now();
        let mut rto = Rto::new(now);
        rto.measured(now, ms(10));
        assert_eq!(rto.current(now + VALID_FOR), MIN);
        assert_eq!(rto.current(now + VALID_FOR + ms(1)), INITIAL);
    }
}
