use std::collections::BTreeMap;

use backwater_udp::{DropReason, Sample, StatsSnapshot};
use serde::Serialize;

use super::Treatment;

/// What came of one treatment on one kind of socket. Datagrams, where nothing else is said.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// How a refusal was treated.
    pub policy: Treatment,
    /// Whether the socket was connected.
    pub connected: bool,
    /// How long it took; a little longer than asked for, since the last datagram may be held.
    pub seconds: f64,
    /// Handed to the sender.
    pub offered: u64,
    /// Taken by the system.
    pub sent: u64,
    /// The same per second, without the pauses.
    pub sent_per_second: f64,
    /// Not sent, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// `offered - sent - dropped`: anything but zero is a fault.
    pub unaccounted: i64,
    /// System calls that send.
    pub attempts: u64,
    /// Times that the sender had to wait.
    pub waits: u64,
    /// How long it waited, all together.
    pub blocked_seconds: f64,
    /// By what the refusal promised.
    pub classes: Vec<Class>,
    /// Waits for a promised event that the timer had to end, and after which nothing was sent for 300 ms.
    pub edges_examined: u64,
    /// Of those, the ones in which the event had not come even then, although there was room.
    pub lost_edges: u64,
    /// Events after which the system refused all the same.
    pub spurious_wakes: u64,
    /// Times that the system took nothing for five seconds.
    pub stuck: u64,
    /// Offered again although the system may have queued them (Apple's systems only).
    pub possible_duplicates: u64,
    /// ICMP messages about earlier datagrams (Linux only).
    pub icmp_errors: u64,
    /// Time that this process ran on a processor.
    pub cpu_seconds: f64,
    /// The same by wall time; 1 is one processor.
    pub cpu_share: f64,
    /// Time in which nothing was sent in order to see whether an event is late.
    pub paused_seconds: f64,
    /// What only the naive mapping does.
    pub naive: Option<NaiveOutcome>,
    /// What ended the run early.
    pub error: Option<String>,
}

/// What happened after the refusals of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Class {
    /// `advised`: the system has promised an event; `silent`: it has not; `any`: the naive mapping does not ask.
    pub class: &'static str,
    /// Times that the system said `ENOBUFS`.
    pub enobufs: u64,
    /// What made the sender try again, successfully or not.
    pub woken: Woken,
    /// What made the attempt that found room.
    pub recovered: Woken,
    /// From the refusal until there was room, in all the waits that ended so, by upper bound.
    pub recovery: Vec<Bucket>,
    /// The same, all together.
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
    /// How often.
    pub count: u64,
}

/// What only the naive mapping does.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct NaiveOutcome {
    /// Times that the system said `EWOULDBLOCK`.
    pub would_block: u64,
    /// Times that nobody woke the sender for a second or longer, although a direct send then succeeded. It would have
    /// waited for ever; the probe registers it anew.
    pub hangs: u64,
    /// How long those lasted.
    pub hung_seconds: f64,
    /// Events in the worst tenth of a second after which the system refused all the same, as a rate per second.
    pub worst_wakes_per_second: f64,
    /// How long that rate was above 1,000.
    pub spin_seconds: f64,
}

impl Woken {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.readiness + self.timer + self.policy
    }
}

impl Outcome {
    /// Without the run that it came of.
    pub(super) fn of(stats: &StatsSnapshot) -> Self {
        let samples = stats.samples();
        let dropped = DropReason::ALL.map(|reason| (reason.name(), stats.dropped(reason)));
        Self {
            offered: stats.accepted,
            sent: stats.sent,
            dropped: dropped.into_iter().filter(|&(_, n)| n > 0).collect(),
            unaccounted: stats.held() as i64,
            attempts: stats.attempts,
            waits: stats.parked,
            blocked_seconds: stats.blocked.as_secs_f64(),
            classes: ["advised", "silent"].map(|class| Class::of(class, &samples)).into(),
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

    /// Waits for a promised event that the timer had to end.
    pub(super) fn advised_by_timer(&self) -> u64 {
        self.classes.iter().filter(|c| c.class == "advised").map(|c| c.recovered.timer).sum()
    }

    /// Not sent, for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// Times that the system said `ENOBUFS`.
    pub fn enobufs(&self) -> u64 {
        self.classes.iter().map(|class| class.enobufs).sum()
    }

    /// Wake-ups of a sender by the second that it waited.
    pub fn wakes_per_blocked_second(&self) -> f64 {
        let wakes: u64 = self.classes.iter().map(|class| class.woken.total()).sum();
        if self.blocked_seconds > 0.0 { wakes as f64 / self.blocked_seconds } else { 0.0 }
    }
}

impl Class {
    fn of(class: &'static str, samples: &[Sample]) -> Self {
        let samples: Vec<_> = samples.iter().filter(|s| label(s, "class") == Some(class)).collect();
        let sum = |name, by: Option<&str>| {
            let named = samples.iter().filter(|s| s.name == name && (by.is_none() || label(s, "by") == by));
            named.map(|s| s.value).sum::<f64>()
        };
        let woken = |name| {
            let by = |by| sum(name, Some(by)) as u64;
            Woken { readiness: by("readiness"), timer: by("timer"), policy: by("policy") }
        };
        let mut recovery: Vec<Bucket> = Vec::new();
        for sample in samples.iter().filter(|s| s.name == "recovery_seconds_bucket") {
            let Some(bound) = label(sample, "le") else { continue };
            let (le, count) = (bound.parse().ok().filter(|le: &f64| le.is_finite()), sample.value as u64);
            match recovery.iter_mut().find(|bucket| bucket.le == le) {
                Some(bucket) => bucket.count += count,
                None => recovery.push(Bucket { le, count }),
            }
        }
        // They come cumulative.
        let mut below = 0;
        for bucket in &mut recovery {
            let here = bucket.count.saturating_sub(below);
            below += here;
            bucket.count = here;
        }
        Self {
            class,
            enobufs: sum("enobufs_total", None) as u64,
            woken: woken("wake_total"),
            recovered: woken("recovery_seconds_count"),
            recovery,
            recovery_seconds: sum("recovery_seconds_sum", None),
        }
    }
}

fn label<'a>(sample: &'a Sample, name: &str) -> Option<&'a str> {
    sample.labels.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &'static str, labels: &[(&'static str, &str)], value: f64) -> Sample {
        Sample { name, labels: labels.iter().map(|&(name, value)| (name, value.to_owned())).collect(), value }
    }

    #[test]
    fn a_class_is_the_sum_of_its_samples_and_of_no_others() {
        let mut samples = Vec::new();
        for (class, by, n) in [("silent", "timer", 3.0), ("silent", "readiness", 2.0), ("advised", "timer", 7.0)] {
            let labels = [("by", by), ("class", class)];
            samples.push(sample("wake_total", &labels, n * 10.0));
            samples.push(sample("enobufs_total", &[("connected", "no"), ("class", class)], n));
            for (le, of) in [("0.001", 1.0), ("0.002", n - 1.0), ("+Inf", n)] {
                samples.push(sample("recovery_seconds_bucket", &[labels[0], labels[1], ("le", le)], of));
            }
            samples.push(sample("recovery_seconds_count", &labels, n));
            samples.push(sample("recovery_seconds_sum", &labels, n / 8.0));
        }
        let class = Class::of("silent", &samples);
        assert_eq!((class.enobufs, class.woken.timer, class.woken.readiness, class.woken.policy), (5, 30, 20, 0));
        assert_eq!((class.recovered.total(), class.recovery_seconds), (5, 0.625));
        let buckets: Vec<_> = class.recovery.iter().map(|b| (b.le, b.count)).collect();
        assert_eq!(buckets, [(Some(0.001), 2), (Some(0.002), 1), (None, 2)]);
    }
}
