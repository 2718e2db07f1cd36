//! When waiting has ceased to be better than dropping.

use std::{
    collections::VecDeque,
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use crate::{DropReason, StatsSnapshot, policy_text::duration};

/// How much a [`Breaker`] puts up with. Without a limit it never trips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Lost edges in any minute that are still put up with.
    pub lost_edges: Option<u64>,
    /// How long nothing may be sent although something has to wait.
    pub stall: Option<Duration>,
}

/// Why a [`Breaker`] tripped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trip {
    /// So many promised readiness events did not come, within a minute.
    LostEdges(u64),
    /// For so long nothing was sent, although something had to wait.
    Stall(Duration),
}

/// Looks at the counters from time to time, and says when their owner had better switch to [`Policy::Drop`].
///
/// It has no clock and no thread: what it finds is as exact as the times at which it is asked. Ask once a second.
///
/// [`Policy::Drop`]: crate::Policy::Drop
#[derive(Clone, Debug)]
pub struct Breaker {
    limits: Limits,
    /// When each total of lost edges was first seen, the oldest first; one of them may be older than the window.
    lost_edges: VecDeque<(Instant, u64)>,
    last: Option<StatsSnapshot>,
    /// Since when nothing has been sent although something has to wait.
    stalled: Option<Instant>,
}

/// In which lost edges are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// The most entries of the window, should it be asked too often: the oldest then go early.
const MAX_ENTRIES: usize = 256;

impl Breaker {
    /// One that has seen nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, lost_edges: VecDeque::new(), last: None, stalled: None }
    }

    /// Whether the counters have passed a limit. It then begins anew, as after [`reset`](Self::reset).
    pub fn check(&mut self, now: Instant, stats: &StatsSnapshot) -> Option<Trip> {
        let trip = self.check_lost_edges(now, stats).or(self.check_stall(now, stats));
        if trip.is_some() {
            self.reset();
        } else {
            self.last = Some(*stats);
        }
        trip
    }

    /// Forgets what it has seen: what is counted from the next check on counts.
    pub fn reset(&mut self) {
        *self = Self::new(self.limits);
    }

    fn check_lost_edges(&mut self, now: Instant, stats: &StatsSnapshot) -> Option<Trip> {
        let limit = self.limits.lost_edges?;
        let total = stats.lost_edges;
        if self.lost_edges.back().is_none_or(|&(_, last)| last != total) {
            self.lost_edges.push_back((now, total));
        }
        // The last total seen at or before the window's beginning is what it began with.
        let began = |at: Instant| now.saturating_duration_since(at) >= WINDOW;
        while self.lost_edges.get(1).is_some_and(|&(at, _)| began(at)) || self.lost_edges.len() > MAX_ENTRIES {
            self.lost_edges.pop_front();
        }
        let (_, first) = *self.lost_edges.front()?;
        let lost = total.saturating_sub(first);
        (lost > limit).then_some(Trip::LostEdges(lost))
    }

    fn check_stall(&mut self, now: Instant, stats: &StatsSnapshot) -> Option<Trip> {
        let limit = self.limits.stall?;
        let last = self.last.as_ref()?;
        // What waits may have come and gone by its deadline since the last time.
        let gave_up = |s: &StatsSnapshot| s.dropped(DropReason::Deadline);
        let waits = stats.held() > 0 || stats.parked != last.parked || gave_up(stats) != gave_up(last);
        if stats.sent != last.sent || !waits {
            self.stalled = None;
            return None;
        }
        let time = now.saturating_duration_since(*self.stalled.get_or_insert(now));
        (time >= limit).then_some(Trip::Stall(time))
    }
}

impl FromStr for Limits {
    type Err = LimitsError;

    /// Reads `lost-edges=10/min`, `stall=5s`, or both with a comma.
    fn from_str(text: &str) -> Result<Self, LimitsError> {
        let mut limits = Self::default();
        for part in text.split(',') {
            let (name, value) = part.trim().split_once('=').ok_or(LimitsError)?;
            let repeated = match name {
                "lost-edges" => {
                    let count = value.strip_suffix("/min").and_then(|n| n.parse().ok()).ok_or(LimitsError)?;
                    limits.lost_edges.replace(count).is_some()
                }
                "stall" => {
                    let time = duration(value).filter(|time| !time.is_zero()).ok_or(LimitsError)?;
                    limits.stall.replace(time).is_some()
                }
                _ => return Err(LimitsError),
            };
            if repeated {
                return Err(LimitsError);
            }
        }
        Ok(limits)
    }
}

/// A text that is no [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsError;

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected limits such as lost-edges=10/min,stall=5s")
    }
}

impl std::error::Error for LimitsError {}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LostEdges(count) => write!(f, "{count} lost readiness events within a minute"),
            Self::Stall(time) => write!(f, "nothing sent for {:.1} s although something waits", time.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stats;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn breaker(limits: &str) -> Breaker {
        Breaker::new(limits.parse().unwrap())
    }

    fn send_one(stats: &Stats) {
        stats.accept(1);
        stats.sent(1);
    }

    #[test]
    fn lost_edges_are_counted_within_a_minute() {
        let (stats, start) = (Stats::default(), Instant::now());
        let mut b = breaker("lost-edges=3/min");
        // Those from before it was made are none of its.
        (0..100).for_each(|_| stats.lost_edge());
        for second in 0..600 {
            // Three in any minute, for ten minutes.
            if second % 20 == 0 && second > 0 {
                stats.lost_edge();
            }
            assert_eq!(b.check(start + seconds(second), &stats.snapshot()), None, "{second}");
        }
        (0..2).for_each(|_| stats.lost_edge());
        assert_eq!(b.check(start + seconds(600), &stats.snapshot()), Some(Trip::LostEdges(4)));
        assert_eq!(b.check(start + seconds(601), &stats.snapshot()), None, "it begins anew");
    }

    #[test]
    fn a_stall_is_nothing_sent_while_something_waits() {
        let (stats, start) = (Stats::default(), Instant::now());
        let mut b = breaker("stall=5s");
        for second in 0..20 {
            assert_eq!(b.check(start + seconds(second), &stats.snapshot()), None, "nothing waits");
        }
        stats.accept(1);
        for second in 20..25 {
            assert_eq!(b.check(start + seconds(second), &stats.snapshot()), None);
        }
        send_one(&stats);
        for second in 25..31 {
            assert_eq!(b.check(start + seconds(second), &stats.snapshot()), None, "one was sent in between");
        }
        assert_eq!(b.check(start + seconds(31), &stats.snapshot()), Some(Trip::Stall(seconds(5))));
        assert_eq!(b.check(start + seconds(32), &stats.snapshot()), None, "it begins anew");
    }

    #[test]
    fn what_waits_and_goes_by_its_deadline_between_two_checks_stalls_too() {
        let (stats, start) = (Stats::default(), Instant::now());
        let mut b = breaker("stall=2s");
        let mut trips = Vec::new();
        for second in 0..4 {
            stats.accept(1);
            stats.park();
            stats.dropped(DropReason::Deadline, 1);
            trips.push(b.check(start + seconds(second), &stats.snapshot()));
        }
        assert_eq!(trips, [None, None, None, Some(Trip::Stall(seconds(2)))]);
    }

    #[test]
    fn what_is_dropped_for_another_reason_is_no_stall() {
        let (stats, start) = (Stats::default(), Instant::now());
        let mut b = breaker("stall=1s,lost-edges=0/min");
        for second in 0..10 {
            stats.accept(1);
            stats.dropped(DropReason::TooLarge, 1);
            assert_eq!(b.check(start + seconds(second), &stats.snapshot()), None);
        }
    }

    #[test]
    fn without_limits_it_never_trips_and_it_keeps_little() {
        let (stats, start) = (Stats::default(), Instant::now());
        let mut none = Breaker::new(Limits::default());
        let mut b = breaker("lost-edges=1000000/min");
        stats.accept(1);
        for ms in 0..5_000 {
            stats.lost_edge();
            let at = start + Duration::from_millis(ms);
            assert_eq!(none.check(at, &stats.snapshot()), None);
            assert_eq!(b.check(at, &stats.snapshot()), None);
        }
        assert!(b.lost_edges.len() <= MAX_ENTRIES);
    }

    #[test]
    fn limits_are_read_or_refused() {
        let limits = |lost_edges, stall| Ok(Limits { lost_edges, stall });
        assert_eq!("lost-edges=10/min,stall=5s".parse(), limits(Some(10), Some(seconds(5))));
        assert_eq!("stall=500ms".parse(), limits(None, Some(Duration::from_millis(500))));
        assert_eq!("stall=5s, lost-edges=0/min".parse(), limits(Some(0), Some(seconds(5))));
        for text in
            ["", "stall", "stall=5", "stall=0s", "lost-edges=10", "lost-edges=x/min", "stall=1s,stall=2s", "x=1s,"]
        {
            assert_eq!(text.parse::<Limits>(), Err(LimitsError), "{text}");
        }
    }
}
