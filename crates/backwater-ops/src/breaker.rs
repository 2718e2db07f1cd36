//! The circuit breaker: when a program had better switch its back-pressure policy to drop.

use std::{
    collections::VecDeque,
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use backwater_udp::{DropReason, StatsSnapshot};

use crate::policy_text::duration;

/// What a [`Breaker`] tolerates. Without a limit it never trips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The most readiness events that may be lost in any minute.
    pub lost_edges: Option<u64>,
    /// How long a socket may send nothing although a datagram waits.
    pub stall: Option<Duration>,
}

/// Why a [`Breaker`] tripped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trip {
    /// So many promised readiness events were lost within a minute.
    LostEdges(u64),
    /// For so long the socket sent nothing, although a datagram waited.
    Stall(Duration),
}

/// Compares a socket's counters with limits, and says when the program had better switch to [`Policy::Drop`].
///
/// The breaker has no clock and no thread: its result is as exact as the times of its checks. Check once a second.
///
/// [`Policy::Drop`]: backwater_udp::Policy::Drop
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
    /// Makes a breaker that has seen nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, lost_edges: VecDeque::new(), last: None, stalled: None }
    }

    /// Returns which limit the counters have passed, if any. The breaker then begins anew, as after [`reset`](Self::reset).
    pub fn check(&mut self, now: Instant, stats: &StatsSnapshot) -> Option<Trip> {
        let trip = self.check_lost_edges(now, stats).or(self.check_stall(now, stats));
        if trip.is_some() {
            self.reset();
        } else {
            self.last = Some(*stats);
        }
        trip
    }

    /// Forgets what it has seen: only what is counted after the next check trips it.
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
        let waits = stats.held > 0 || stats.parked != last.parked || gave_up(stats) != gave_up(last);
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
mod tests;
