use std::collections::BTreeMap;

use backwater_udp::{
    DropReason, StatsSnapshot,
    stats::{BUCKETS, ByWaker, ClassSnapshot, HistogramSnapshot},
};
use serde::Serialize;

use super::Treatment;
use crate::latency::Latencies;

/// The outcome of one treatment on one kind of socket. Counts are datagrams unless they say otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// How a refusal was treated.
    pub policy: Treatment,
    /// Whether the socket was connected.
    pub connected: bool,
    /// Seconds of the run; a little more than asked for, since the last datagram may be held.
    pub seconds: f64,
    /// Datagrams handed to the sender.
    pub offered: u64,
    /// Datagrams that the kernel accepted.
    pub sent: u64,
    /// The same per second, without the pauses.
    pub sent_per_second: f64,
    /// Datagrams not sent, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// `offered - sent - dropped`: anything but zero is a fault.
    pub unaccounted: i64,
    /// System calls that send.
    pub attempts: u64,
    /// Times that the sender had to wait.
    pub waits: u64,
    /// Seconds that the sender waited, all together.
    pub blocked_seconds: f64,
    /// The datagrams that had to wait.
    pub holds: Holds,
    /// Refusals, by whether the system promised an event.
    pub classes: Vec<Class>,
    /// Waits for a promised event that the timer had to end, and after which nothing was sent for 300 ms.
    pub edges_examined: u64,
    /// Of those, the ones in which the event had not come even then, although there was room.
    pub lost_edges: u64,
    /// Events after which the system refused all the same.
    pub spurious_wakes: u64,
    /// Times that the system accepted nothing for five seconds.
    pub stuck: u64,
    /// Offered again although the system may have queued them (Apple's systems only).
    pub possible_duplicates: u64,
    /// ICMP messages about earlier datagrams (Linux only).
    pub icmp_errors: u64,
    /// Processor time of this process, in seconds.
    pub cpu_seconds: f64,
    /// The same divided by `seconds`; 1 is one processor.
    pub cpu_share: f64,
    /// Seconds in which nothing was sent, to see whether an event comes late.
    pub paused_seconds: f64,
    /// The counts of the naive mapping alone.
    pub naive: Option<NaiveOutcome>,
    /// The error that ended the run early.
    pub error: Option<String>,
}

/// How long datagrams waited: each from its first refusal until it was sent or dropped.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Holds {
    /// Datagrams that waited. At most about a million are counted.
    pub count: u64,
    /// The median, in seconds.
    pub p50_seconds: Option<f64>,
    /// The 99th percentile, in seconds.
    pub p99_seconds: Option<f64>,
}

/// The refusals of one class, and what followed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Class {
    /// `advised`: the system has promised an event; `silent`: it has not; `any`: the naive mapping does not ask.
    pub class: &'static str,
    /// Times that the system said `ENOBUFS`.
    pub enobufs: u64,
    /// Causes of a new attempt, successful or not.
    pub woken: Woken,
    /// Causes of the attempt that found room.
    pub recovered: Woken,
    /// Time from the refusal until there was room, in the waits that ended so: a histogram.
    pub recovery: Vec<Bucket>,
    /// The sum of those times, in seconds.
    pub recovery_seconds: f64,
}

/// Times, by what woke a sender.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Woken {
    /// The reactor.
    pub readiness: u64,
    /// The timer behind the wait.
    pub timer: u64,
    /// A switch of the policy, or another sender of the socket.
    pub policy: u64,
}

/// A bar of a histogram.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bucket {
    /// At most so many seconds, and more than the bucket before; `null` in the last, which has no bound.
    pub le: Option<f64>,
    /// The number of waits.
    pub count: u64,
}

/// The counts of the naive mapping alone.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct NaiveOutcome {
    /// Times that the system said `EWOULDBLOCK`.
    pub would_block: u64,
    /// Times that the sender had no wake-up for a second or longer, although a direct send then succeeded. A program would wait for
    /// ever; the probe registers the socket anew.
    pub hangs: u64,
    /// Seconds of those hangs.
    pub hung_seconds: f64,
    /// Events in the worst tenth of a second after which the system refused all the same, as a rate per second.
    pub worst_wakes_per_second: f64,
    /// Seconds in which that rate was above 1,000.
    pub spin_seconds: f64,
}

impl Woken {
    fn of<T>(wakers: &ByWaker<T>, count: impl Fn(&T) -> u64) -> Self {
        Self { readiness: count(&wakers.readiness), timer: count(&wakers.timer), policy: count(&wakers.policy) }
    }

    /// Returns their sum.
    pub fn total(&self) -> u64 {
        self.readiness + self.timer + self.policy
    }
}

impl Holds {
    pub(super) fn of(holds: &mut Latencies) -> Self {
        let mut seconds = |percent| holds.percentile(percent).map(|micros| micros / 1e6);
        let [p50_seconds, p99_seconds] = [50, 99].map(&mut seconds);
        Self { count: holds.count() as u64, p50_seconds, p99_seconds }
    }
}

impl Outcome {
    /// Takes the counts of a socket. The caller sets what describes the run.
    pub(super) fn of(stats: &StatsSnapshot) -> Self {
        let dropped = DropReason::ALL.map(|reason| (reason.name(), stats.dropped(reason)));
        Self {
            offered: stats.accepted,
            sent: stats.sent,
            dropped: dropped.into_iter().filter(|&(_, n)| n > 0).collect(),
            unaccounted: stats.held as i64,
            attempts: stats.attempts,
            waits: stats.parked,
            blocked_seconds: stats.blocked.as_secs_f64(),
            classes: vec![Class::of("advised", &stats.advised), Class::of("silent", &stats.silent)],
            lost_edges: stats.lost_edges,
            spurious_wakes: stats.spurious_wakes,
            stuck: stats.stuck,
            possible_duplicates: stats.possible_duplicates,
            icmp_errors: stats.icmp_errors,
            ..Self::empty(Treatment::Wait)
        }
    }

    pub(super) fn empty(policy: Treatment) -> Self {
        Self {
            policy,
            connected: false,
            seconds: 0.0,
            offered: 0,
            sent: 0,
            sent_per_second: 0.0,
            dropped: BTreeMap::new(),
            unaccounted: 0,
            attempts: 0,
            waits: 0,
            blocked_seconds: 0.0,
            holds: Holds::default(),
            classes: Vec::new(),
            edges_examined: 0,
            lost_edges: 0,
            spurious_wakes: 0,
            stuck: 0,
            possible_duplicates: 0,
            icmp_errors: 0,
            cpu_seconds: 0.0,
            cpu_share: 0.0,
            paused_seconds: 0.0,
            naive: None,
            error: None,
        }
    }

    /// Returns the waits for a promised event that the timer ended.
    pub(super) fn advised_by_timer(&self) -> u64 {
        self.classes.iter().filter(|c| c.class == "advised").map(|c| c.recovered.timer).sum()
    }

    /// Returns the datagrams that were not sent, for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// Returns how often the system said `ENOBUFS`.
    pub fn enobufs(&self) -> u64 {
        self.classes.iter().map(|class| class.enobufs).sum()
    }

    /// Returns the waits that ended because there was room again.
    pub fn recoveries(&self) -> u64 {
        self.classes.iter().map(|class| class.recovered.total()).sum()
    }

    /// Returns how many of those lasted 1 ms at most.
    pub fn recoveries_within_1_ms(&self) -> u64 {
        let buckets = self.classes.iter().flat_map(|class| &class.recovery);
        buckets.filter(|bucket| bucket.le.is_some_and(|le| le <= 0.001)).map(|bucket| bucket.count).sum()
    }

    /// Returns the wake-ups of a sender per second that it waited.
    pub fn wakes_per_blocked_second(&self) -> f64 {
        let wakes: u64 = self.classes.iter().map(|class| class.woken.total()).sum();
        if self.blocked_seconds > 0.0 { wakes as f64 / self.blocked_seconds } else { 0.0 }
    }
}

impl Class {
    fn of(name: &'static str, class: &ClassSnapshot) -> Self {
        let ByWaker { readiness, timer, policy } = &class.recovery;
        let bounds = BUCKETS.into_iter().map(Some).chain([None]);
        let recovery = bounds.enumerate().map(|(at, le)| {
            let count = [readiness, timer, policy].map(|histogram| histogram.buckets[at]).iter().sum();
            Bucket { le, count }
        });
        Self {
            class: name,
            enobufs: class.enobufs.connected + class.enobufs.unconnected,
            woken: Woken::of(&class.wakes, |&wakes| wakes),
            recovered: Woken::of(&class.recovery, HistogramSnapshot::count),
            recovery: recovery.collect(),
            recovery_seconds: readiness.seconds + timer.seconds + policy.seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_sums_its_wakers() {
        let mut stats = ClassSnapshot::default();
        (stats.enobufs.unconnected, stats.enobufs.connected) = (3, 2);
        (stats.wakes.timer, stats.wakes.readiness) = (30, 20);
        for (histogram, n) in [(&mut stats.recovery.timer, 3), (&mut stats.recovery.readiness, 2)] {
            (histogram.buckets[1], histogram.buckets[2], histogram.buckets[BUCKETS.len()]) = (1, n - 2, 1);
            histogram.seconds = n as f64 / 8.0;
        }
        let class = Class::of("silent", &stats);
        assert_eq!((class.enobufs, class.woken.timer, class.woken.readiness, class.woken.policy), (5, 30, 20, 0));
        assert_eq!((class.recovered.total(), class.recovery_seconds), (5, 0.625));
        let buckets: Vec<_> = class.recovery.iter().filter(|b| b.count > 0).map(|b| (b.le, b.count)).collect();
        assert_eq!(buckets, [(Some(0.001), 2), (Some(0.002), 1), (None, 2)]);
    }
}
