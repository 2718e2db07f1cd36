//! When to mark or drop (RFC 8289).

use std::time::{Duration, Instant};

/// The wait that a standing queue is held to (RFC 8289, section 4.3).
pub const TARGET: Duration = Duration::from_millis(5);

/// How long a queue may be above the target before its senders are told: the worst round trip that is expected
/// (RFC 8289, section 4.2).
pub const INTERVAL: Duration = Duration::from_millis(100);

/// The wait from which on packets with ECT(1) are marked: those of L4S (RFC 9331, section 4.1), whose senders slow down a little for
/// each mark, and so keep the queue that short. It is what `ce_threshold` is for Linux' `fq_codel`.
pub const CE_THRESHOLD: Duration = Duration::from_millis(1);

/// What is to be done with a packet that leaves the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it is.
    Forward,
    /// It goes on with congestion experienced (CE) set.
    Mark,
    /// It is not sent.
    Drop,
}

/// The state of one queue: CoDel as RFC 8289, section 5, has it, but that a signal may be a mark.
#[derive(Clone, Copy, Debug, Default)]
pub struct Codel {
    /// When the queue will have been above the target for an interval.
    above_until: Option<Instant>,
    signalling: bool,
    /// When the next signal is due; after a time of signalling, when it would have been.
    next_signal: Option<Instant>,
    /// Signals in this time of signalling, and how many it began with.
    count: u32,
    first_count: u32,
}

impl Codel {
    /// Judges the packet that is taken from the queue at `now` after it waited for `waited`. After [`Verdict::Drop`] the
    /// next packet is to be taken and judged at once.
    ///
    /// `backlog` is how many bytes wait without it: where they are no more than `mtu` there is nothing to gain, and the path
    /// would only idle (RFC 8289, section 4.1).
    pub fn judge(&mut self, now: Instant, waited: Duration, backlog: usize, mtu: usize, ecn_capable: bool) -> Verdict {
        let above = self.is_above(now, waited, backlog, mtu);
        match (self.signals(now, above), ecn_capable) {
            (false, _) => Verdict::Forward,
            (true, true) => Verdict::Mark,
            (true, false) => Verdict::Drop,
        }
    }

    /// The queue was found empty: it is not above the target.
    pub fn on_empty(&mut self) {
        self.above_until = None;
        self.signalling = false;
    }

    /// Whether the queue has been above the target for an interval.
    fn is_above(&mut self, now: Instant, waited: Duration, backlog: usize, mtu: usize) -> bool {
        if waited < TARGET || backlog <= mtu {
            self.above_until = None;
            return false;
        }
        now >= *self.above_until.get_or_insert(now + INTERVAL)
    }

    fn signals(&mut self, now: Instant, above: bool) -> bool {
        if !above {
            self.signalling = false;
            return false;
        }
        let due = self.next_signal;
        if self.signalling {
            let Some(due) = due.filter(|due| now >= *due) else { return false };
            self.count = self.count.saturating_add(1);
            self.next_signal = Some(due + until_next(self.count));
        } else {
            // It goes on near the rate that held the queue down before, if that was not long ago.
            let recent = due.is_some_and(|due| now.saturating_duration_since(due) < 16 * INTERVAL);
            let since_then = self.count - self.first_count;
            self.signalling = true;
            self.count = if recent && since_then > 1 { since_then } else { 1 };
            self.first_count = self.count;
            self.next_signal = Some(now + until_next(self.count));
        }
        true
    }
}

/// The control law: TCP's rate falls with the square root of how often it is told (RFC 8289, section 3.3).
fn until_next(count: u32) -> Duration {
    INTERVAL.div_f64(f64::from(count.max(1)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: usize = 1500;

    /// Judges a packet a millisecond that waited for `waited`, and says at which milliseconds it signals.
    fn signals(codel: &mut Codel, start: Instant, millis: std::ops::Range<u64>, waited: Duration) -> Vec<u64> {
        let judge =
            |ms: &u64| codel.judge(start + Duration::from_millis(*ms), waited, 9000, MTU, false) == Verdict::Drop;
        millis.filter(judge).collect()
    }

    #[test]
    fn signals_come_after_an_interval_and_then_more_and_more_often() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        let long = TARGET;
        // 100, then 100/√1, 100/√2, 100/√3, ... later, on the next millisecond.
        assert_eq!(signals(&mut codel, start, 0..500, long), [100, 200, 271, 329, 379, 424, 464]);
        // What is short ends it at once; a new time of signalling soon after goes on at 7 - 1 signals.
        assert_eq!(signals(&mut codel, start, 500..510, TARGET / 2), [] as [u64; 0]);
        assert_eq!(signals(&mut codel, start, 510..740, long), [610, 651, 689, 724]);
        // Long after it begins anew.
        assert_eq!(signals(&mut codel, start, 740..750, TARGET / 2), [] as [u64; 0]);
        assert_eq!(signals(&mut codel, start, 5000..5300, long), [5100, 5200, 5271]);
    }

    #[test]
    fn a_burst_of_less_than_an_interval_passes() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        for round in 0..20 {
            assert_eq!(signals(&mut codel, start, 110 * round..110 * round + 99, TARGET * 9), [] as [u64; 0]);
            assert_eq!(signals(&mut codel, start, 110 * round + 99..110 * round + 100, TARGET / 2), [] as [u64; 0]);
        }
    }

    #[test]
    fn a_queue_of_one_packet_is_left_alone() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        for ms in 0..1000 {
            let now = start + Duration::from_millis(ms);
            assert_eq!(codel.judge(now, TARGET * 9, MTU, MTU, true), Verdict::Forward);
        }
        for ms in 1000..1100 {
            let now = start + Duration::from_millis(ms);
            assert_eq!(codel.judge(now, TARGET * 9, MTU + 1, MTU, true), Verdict::Forward);
        }
        assert_eq!(codel.judge(start + Duration::from_millis(1100), TARGET, MTU + 1, MTU, true), Verdict::Mark);
    }

    #[test]
    fn an_empty_queue_ends_it() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        assert_eq!(signals(&mut codel, start, 0..150, TARGET), [100]);
        codel.on_empty();
        assert_eq!(signals(&mut codel, start, 150..250, TARGET), [] as [u64; 0]);
    }
}
