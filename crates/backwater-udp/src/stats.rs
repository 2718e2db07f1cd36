use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    notices::Notices,
    park::{By, Class},
};

/// Why a datagram was dropped instead of sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DropReason {
    /// The system had no room and the policy was to drop.
    NoBuffers,
    /// It was held for longer than its deadline.
    Deadline,
    /// Larger than the path or the protocol allows (`EMSGSIZE`).
    TooLarge,
    /// No route, or the network is down (`ENETUNREACH`, `EHOSTUNREACH`, `ENETDOWN`, `EADDRNOTAVAIL`).
    Unreachable,
    /// A local firewall or policy refused it (`EPERM`, `EACCES`).
    NotPermitted,
    /// The system does not take such an address or such a train (`EINVAL`, `EAFNOSUPPORT`).
    Invalid,
    /// The caller gave it up: the future, the transmit or the sender was dropped.
    Cancelled,
    /// The socket failed.
    Socket,
    /// The system said what nobody expects of a send, or a driver failed (`EIO`). The log has the error.
    Other,
}

impl DropReason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::NoBuffers,
        Self::Deadline,
        Self::TooLarge,
        Self::Unreachable,
        Self::NotPermitted,
        Self::Invalid,
        Self::Cancelled,
        Self::Socket,
        Self::Other,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoBuffers => "no_buffers",
            Self::Deadline => "deadline",
            Self::TooLarge => "too_large",
            Self::Unreachable => "unreachable",
            Self::NotPermitted => "not_permitted",
            Self::Invalid => "invalid",
            Self::Cancelled => "cancelled",
            Self::Socket => "socket",
            Self::Other => "other",
        }
    }
}

/// Dropped datagrams by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCounts([u32; DropReason::ALL.len()]);

impl DropCounts {
    /// Datagrams dropped for this reason.
    pub fn get(&self, reason: DropReason) -> u32 {
        self.0[reason as usize]
    }

    /// Datagrams dropped for any reason.
    pub fn total(&self) -> u32 {
        self.0.iter().sum()
    }

    pub(crate) fn add(&mut self, reason: DropReason, datagrams: u32) {
        self.0[reason as usize] += datagrams;
    }
}

/// What became of the datagrams of a transmit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Accepted by the kernel.
    pub sent: u32,
    /// Dropped, with the reason.
    pub dropped: DropCounts,
}

/// Counters shared by all clones and senders of a socket, or of several sockets (see
/// [`Builder::stats`](crate::Builder::stats)). They only grow. Datagrams, where nothing else is said.
#[derive(Debug, Default)]
pub struct Stats {
    /// Accepted and sent in one go, and counted here alone: each counter costs a locked instruction.
    passed: AtomicU64,
    /// The others.
    accepted: AtomicU64,
    sent: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
    received: AtomicU64,
    parked: AtomicU64,
    attempts: AtomicU64,
    no_buffers: [[AtomicU64; 2]; 2],
    wakes: [[AtomicU64; 3]; 2],
    recovery: [[Histogram; 3]; 2],
    lost_edges: AtomicU64,
    spurious_wakes: AtomicU64,
    partial: AtomicU64,
    blocked_micros: AtomicU64,
    stuck: AtomicU64,
    possible_duplicates: AtomicU64,
    icmp_errors: AtomicU64,
    icmp_errors_lost: AtomicU64,
    receive_errors: AtomicU64,
    notices: Notices,
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

/// The upper bounds of the histogram's buckets, in seconds; there is one more without a bound.
pub const BUCKETS: [f64; 10] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];

impl Stats {
    /// The values now. `accepted` is read last, so that `sent` and `dropped` never exceed it.
    pub fn snapshot(&self) -> StatsSnapshot {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let passed = get(&self.passed);
        let sent = get(&self.sent) + passed;
        let dropped = |reason: DropReason| get(&self.dropped[reason as usize]);
        let drops = DropTotals {
            no_buffers: dropped(DropReason::NoBuffers),
            deadline: dropped(DropReason::Deadline),
            too_large: dropped(DropReason::TooLarge),
            unreachable: dropped(DropReason::Unreachable),
            not_permitted: dropped(DropReason::NotPermitted),
            invalid: dropped(DropReason::Invalid),
            cancelled: dropped(DropReason::Cancelled),
            socket: dropped(DropReason::Socket),
            other: dropped(DropReason::Other),
        };
        let class = |class: Class| {
            let class = class as usize;
            let wakes = |by: By| get(&self.wakes[class][by as usize]);
            let recovery = |by: By| self.recovery[class][by as usize].snapshot();
            ClassSnapshot {
                enobufs: Enobufs {
                    connected: get(&self.no_buffers[class][1]),
                    unconnected: get(&self.no_buffers[class][0]),
                },
                wakes: ByWaker { readiness: wakes(By::Readiness), timer: wakes(By::Timer), policy: wakes(By::Call) },
                recovery: ByWaker {
                    readiness: recovery(By::Readiness),
                    timer: recovery(By::Timer),
                    policy: recovery(By::Call),
                },
            }
        };
        let (advised, silent) = (class(Class::Advised), class(Class::Silent));
        let mut snapshot = StatsSnapshot {
            sent,
            held: 0,
            drops,
            advised,
            silent,
            parked: get(&self.parked),
            received: get(&self.received),
            attempts: get(&self.attempts),
            lost_edges: get(&self.lost_edges),
            spurious_wakes: get(&self.spurious_wakes),
            partial: get(&self.partial),
            blocked: Duration::from_micros(get(&self.blocked_micros)),
            stuck: get(&self.stuck),
            possible_duplicates: get(&self.possible_duplicates),
            icmp_errors: get(&self.icmp_errors),
            icmp_errors_lost: get(&self.icmp_errors_lost),
            receive_errors: get(&self.receive_errors),
            accepted: get(&self.accepted) + passed,
        };
        snapshot.held = snapshot.accepted - snapshot.sent - snapshot.dropped_total();
        snapshot
    }

    /// Accepted and sent.
    pub(crate) fn passed(&self, datagrams: usize) {
        add(&self.passed, datagrams as u64);
    }

    pub(crate) fn accept(&self, datagrams: usize) {
        add(&self.accepted, datagrams as u64);
    }

    pub(crate) fn sent(&self, datagrams: usize) {
        add(&self.sent, datagrams as u64);
    }

    pub(crate) fn dropped(&self, reason: DropReason, datagrams: usize) {
        add(&self.dropped[reason as usize], datagrams as u64);
    }

    pub(crate) fn receive(&self, datagrams: usize) {
        add(&self.received, datagrams as u64);
    }

    pub(crate) fn attempt(&self, calls: u64) {
        add(&self.attempts, calls);
    }

    pub(crate) fn no_buffers(&self, connected: bool, class: Class) {
        add(&self.no_buffers[class as usize][usize::from(connected)], 1);
    }

    pub(crate) fn park(&self) {
        add(&self.parked, 1);
        self.notices.waiting();
    }

    pub(crate) fn wake(&self, class: Class, by: By) {
        add(&self.wakes[class as usize][by as usize], 1);
    }

    pub(crate) fn recover(&self, class: Class, by: By, after: Duration) {
        let histogram = &self.recovery[class as usize][by as usize];
        let bucket = BUCKETS.iter().position(|&bound| after.as_secs_f64() <= bound).unwrap_or(BUCKETS.len());
        add(&histogram.buckets[bucket], 1);
        add(&histogram.micros, after.as_micros() as u64);
    }

    pub(crate) fn lost_edge(&self) {
        add(&self.lost_edges, 1);
        self.notices.lost_edge();
    }

    pub(crate) fn spurious_wake(&self) {
        add(&self.spurious_wakes, 1);
    }

    pub(crate) fn partial(&self) {
        add(&self.partial, 1);
    }

    pub(crate) fn blocked(&self, time: Duration) {
        add(&self.blocked_micros, time.as_micros() as u64);
    }

    pub(crate) fn stuck(&self) {
        add(&self.stuck, 1);
        self.notices.stuck();
    }

    pub(crate) fn unstuck(&self) {
        self.notices.unstuck();
    }

    pub(crate) fn segmentation_off(&self) {
        self.notices.segmentation_off();
    }

    pub(crate) fn possible_duplicates(&self, datagrams: usize) {
        add(&self.possible_duplicates, datagrams as u64);
    }

    pub(crate) fn unknown_error(&self, error: &io::Error) {
        self.notices.unknown_error(error);
    }

    pub(crate) fn receive_error(&self, error: &io::Error) {
        add(&self.receive_errors, 1);
        self.notices.receive_error(error);
    }

    pub(crate) fn icmp_error(&self, kept: bool) {
        add(&self.icmp_errors, 1);
        if !kept {
            add(&self.icmp_errors_lost, 1);
            self.notices.icmp_error_lost();
        }
    }
}

fn add(counter: &AtomicU64, n: u64) {
    if n != 0 {
        counter.fetch_add(n, Relaxed);
    }
}

/// [`Stats`] at one moment. With the feature `serde` its members have the names of `docs/backpressure.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct StatsSnapshot {
    /// Datagrams handed to a sender.
    #[cfg_attr(feature = "serde", serde(rename = "accepted_total"))]
    pub accepted: u64,
    /// Datagrams the kernel took.
    #[cfg_attr(feature = "serde", serde(rename = "sent_total"))]
    pub sent: u64,
    held: u64,
    /// Datagrams dropped, by reason.
    #[cfg_attr(feature = "serde", serde(rename = "drops_total"))]
    pub drops: DropTotals,
    /// Datagrams received.
    #[cfg_attr(feature = "serde", serde(rename = "received_total"))]
    pub received: u64,
    /// Times that a sender had to wait.
    #[cfg_attr(feature = "serde", serde(rename = "parked_total"))]
    pub parked: u64,
    /// System calls that send.
    #[cfg_attr(feature = "serde", serde(rename = "send_attempts_total"))]
    pub attempts: u64,
    /// Refusals that promise a readiness event.
    pub advised: ClassSnapshot,
    /// Refusals that promise none.
    pub silent: ClassSnapshot,
    /// Times that a promised readiness event did not come although there was room, for a quarter of a second.
    #[cfg_attr(feature = "serde", serde(rename = "lost_edge_total"))]
    pub lost_edges: u64,
    /// Readiness events after which the system refused all the same.
    #[cfg_attr(feature = "serde", serde(rename = "spurious_wake_total"))]
    pub spurious_wakes: u64,
    /// Transmits of which a part was sent before the rest had to wait.
    #[cfg_attr(feature = "serde", serde(rename = "partial_batch_total"))]
    pub partial: u64,
    /// The time that senders have waited, all together. Serialised in seconds.
    #[cfg_attr(feature = "serde", serde(rename = "blocked_seconds_total", with = "seconds"))]
    pub blocked: Duration,
    /// Times that a sender found its socket blocked for so long that the owner might bind a new one.
    #[cfg_attr(feature = "serde", serde(rename = "stuck_total"))]
    pub stuck: u64,
    /// Datagrams that were offered again although the system may have queued them (Apple's systems only).
    #[cfg_attr(feature = "serde", serde(rename = "possible_duplicate_total"))]
    pub possible_duplicates: u64,
    /// ICMP messages read from the error queue.
    #[cfg_attr(feature = "serde", serde(rename = "icmp_errors_total"))]
    pub icmp_errors: u64,
    /// Of those, the ones that the owner did not fetch in time.
    #[cfg_attr(feature = "serde", serde(rename = "icmp_errors_lost_total"))]
    pub icmp_errors_lost: u64,
    /// Receives that failed for a reason other than an ICMP message.
    #[cfg_attr(feature = "serde", serde(rename = "receive_errors_total"))]
    pub receive_errors: u64,
}

/// Datagrams dropped, by [`DropReason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
#[allow(missing_docs, reason = "named and explained by DropReason")]
pub struct DropTotals {
    pub no_buffers: u64,
    pub deadline: u64,
    pub too_large: u64,
    pub unreachable: u64,
    pub not_permitted: u64,
    pub invalid: u64,
    pub cancelled: u64,
    pub socket: u64,
    pub other: u64,
}

/// What refusals of one class have led to: those that promise a readiness event, or those that promise none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ClassSnapshot {
    /// `ENOBUFS` seen.
    #[cfg_attr(feature = "serde", serde(rename = "enobufs_total"))]
    pub enobufs: Enobufs,
    /// Wake-ups of senders that wait.
    #[cfg_attr(feature = "serde", serde(rename = "wake_total"))]
    pub wakes: ByWaker<u64>,
    /// From a refusal to the next success.
    #[cfg_attr(feature = "serde", serde(rename = "recovery_seconds"))]
    pub recovery: ByWaker<HistogramSnapshot>,
}

/// `ENOBUFS` seen, by kind of socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Enobufs {
    /// On connected sockets.
    pub connected: u64,
    /// On sockets that are not connected.
    pub unconnected: u64,
}

/// A value for each of what makes a sender try again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ByWaker<T> {
    /// A readiness event.
    pub readiness: T,
    /// The timer behind it.
    pub timer: T,
    /// A switch of the policy, or another sender of the socket.
    pub policy: T,
}

/// A histogram of durations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct HistogramSnapshot {
    /// How many are at most as long as the bound in [`BUCKETS`] and longer than the one before; the last are longer than all.
    pub buckets: [u64; BUCKETS.len() + 1],
    /// All durations together, in seconds.
    pub seconds: f64,
}

/// A value to export, with the name and the labels that it has in every exporter.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The name, without a prefix.
    pub name: &'static str,
    /// Label names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The value: a counter's, or that of a bucket, a sum or a count of a histogram.
    pub value: f64,
}

impl StatsSnapshot {
    /// Datagrams dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason)
    }

    /// Datagrams dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        DropReason::ALL.iter().map(|&reason| self.dropped(reason)).sum()
    }

    /// Datagrams accepted that are neither sent nor dropped yet.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// `ENOBUFS` seen, whatever it promised.
    pub fn no_buffers_total(&self) -> u64 {
        [self.advised, self.silent].map(|class| class.enobufs.connected + class.enobufs.unconnected).iter().sum()
    }

    /// Everything, as a metrics exporter wants it. `docs/backpressure.md` explains the names.
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        let mut put = |name, labels: &[(&'static str, &str)], value: f64| {
            let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            samples.push(Sample { name, labels, value });
        };
        put("accepted_total", &[], self.accepted as f64);
        put("sent_total", &[], self.sent as f64);
        put("received_total", &[], self.received as f64);
        put("held", &[], self.held() as f64);
        for reason in DropReason::ALL {
            put("drops_total", &[("reason", reason.name())], self.dropped(reason) as f64);
        }
        put("parked_total", &[], self.parked as f64);
        put("send_attempts_total", &[], self.attempts as f64);
        put("lost_edge_total", &[], self.lost_edges as f64);
        put("spurious_wake_total", &[], self.spurious_wakes as f64);
        put("partial_batch_total", &[], self.partial as f64);
        put("blocked_seconds_total", &[], self.blocked.as_secs_f64());
        put("stuck_total", &[], self.stuck as f64);
        put("possible_duplicate_total", &[], self.possible_duplicates as f64);
        put("icmp_errors_total", &[], self.icmp_errors as f64);
        put("icmp_errors_lost_total", &[], self.icmp_errors_lost as f64);
        put("receive_errors_total", &[], self.receive_errors as f64);
        for (class_name, class) in [("advised", &self.advised), ("silent", &self.silent)] {
            for (name, n) in [("no", class.enobufs.unconnected), ("yes", class.enobufs.connected)] {
                put("enobufs_total", &[("connected", name), ("class", class_name)], n as f64);
            }
            let ByWaker { readiness, timer, policy } = &class.recovery;
            for (by_name, wakes, histogram) in [
                ("readiness", class.wakes.readiness, readiness),
                ("timer", class.wakes.timer, timer),
                ("policy", class.wakes.policy, policy),
            ] {
                let labels = [("by", by_name), ("class", class_name)];
                put("wake_total", &labels, wakes as f64);
                let mut count = 0;
                for (i, n) in histogram.buckets.iter().enumerate() {
                    count += n;
                    let bound = BUCKETS.get(i).map_or_else(|| "+Inf".to_owned(), f64::to_string);
                    let labels = [labels[0], labels[1], ("le", bound.as_str())];
                    put("recovery_seconds_bucket", &labels, count as f64);
                }
                put("recovery_seconds_count", &labels, count as f64);
                put("recovery_seconds_sum", &labels, histogram.seconds);
            }
        }
        samples
    }
}

impl DropTotals {
    /// Datagrams dropped for this reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        match reason {
            DropReason::NoBuffers => self.no_buffers,
            DropReason::Deadline => self.deadline,
            DropReason::TooLarge => self.too_large,
            DropReason::Unreachable => self.unreachable,
            DropReason::NotPermitted => self.not_permitted,
            DropReason::Invalid => self.invalid,
            DropReason::Cancelled => self.cancelled,
            DropReason::Socket => self.socket,
            DropReason::Other => self.other,
        }
    }
}

impl HistogramSnapshot {
    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl Histogram {
    fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            buckets: std::array::from_fn(|i| self.buckets[i].load(Relaxed)),
            seconds: self.micros.load(Relaxed) as f64 / 1e6,
        }
    }
}

/// A duration as a number of seconds.
#[cfg(feature = "serde")]
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(duration.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_add_up() {
        let stats = Stats::default();
        stats.accept(10);
        stats.dropped(DropReason::Deadline, 3);
        stats.recover(Class::Silent, By::Timer, Duration::from_millis(3));
        stats.recover(Class::Silent, By::Timer, Duration::from_secs(3));
        let samples = stats.snapshot().samples();
        let find = |name: &str, labels: &[(&str, &str)]| {
            let has = |s: &Sample| labels.iter().all(|(n, v)| s.labels.iter().any(|(a, b)| a == n && b == v));
            samples.iter().find(|s| s.name == name && has(s)).unwrap().value
        };
        assert_eq!(find("held", &[]), 7.0);
        assert_eq!(find("drops_total", &[("reason", "deadline")]), 3.0);
        let silent = |le| [("class", "silent"), ("by", "timer"), ("le", le)];
        assert_eq!(find("recovery_seconds_bucket", &silent("0.002")), 0.0);
        assert_eq!(find("recovery_seconds_bucket", &silent("0.005")), 1.0);
        assert_eq!(find("recovery_seconds_bucket", &silent("+Inf")), 2.0);
        assert!((find("recovery_seconds_sum", &silent("0")[..2]) - 3.003).abs() < 1e-9);
    }
}
