//! Counters at one moment.

use std::{ops::AddAssign, time::Duration};

use super::{BUCKETS, DropReason};

/// [`Stats`](super::Stats) at one moment. With the feature `serde` its members have the names of `docs/backpressure.md`.
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
    /// Datagrams accepted that are neither sent nor dropped yet.
    pub held: u64,
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
    /// The system had no room, and neither had the [`SendQueue`](crate::SendQueue).
    pub queue_full: u64,
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
    /// What it is, in a sentence.
    pub help: &'static str,
    /// Label names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The value: a counter's, or that of a bucket, a sum or a count of a histogram.
    pub value: f64,
}

const RECOVERY: &str = "From a refusal to the next success, by what woke the sender.";

impl StatsSnapshot {
    /// Datagrams dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason)
    }

    /// Datagrams dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        DropReason::ALL.iter().map(|&reason| self.dropped(reason)).sum()
    }

    /// `ENOBUFS` seen, whatever it promised.
    pub fn no_buffers_total(&self) -> u64 {
        [self.advised, self.silent].map(|class| class.enobufs.connected + class.enobufs.unconnected).iter().sum()
    }

    /// Everything, as a metrics exporter wants it. `docs/backpressure.md` explains the names.
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        let mut put = |name, help, labels: &[(&'static str, &str)], value: f64| {
            let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            samples.push(Sample { name, help, labels, value });
        };
        put("accepted_total", "Datagrams handed to a sender: sent, dropped or held.", &[], self.accepted as f64);
        put("sent_total", "Datagrams the kernel took.", &[], self.sent as f64);
        put("received_total", "Datagrams received.", &[], self.received as f64);
        put("held", "Datagrams that a sender holds now.", &[], self.held as f64);
        for reason in DropReason::ALL {
            put(
                "drops_total",
                "Datagrams that a sender dropped.",
                &[("reason", reason.name())],
                self.dropped(reason) as f64,
            );
        }
        put("parked_total", "Times that a sender had to wait.", &[], self.parked as f64);
        put("send_attempts_total", "System calls that send.", &[], self.attempts as f64);
        put("lost_edge_total", "Promised readiness events that did not come.", &[], self.lost_edges as f64);
        put(
            "spurious_wake_total",
            "Readiness events after which the system refused all the same.",
            &[],
            self.spurious_wakes as f64,
        );
        put(
            "partial_batch_total",
            "Transmits of which a part was sent before the rest had to wait.",
            &[],
            self.partial as f64,
        );
        put("blocked_seconds_total", "Time that senders have waited.", &[], self.blocked.as_secs_f64());
        put("stuck_total", "Times that a sender found its socket blocked for seconds.", &[], self.stuck as f64);
        put(
            "possible_duplicate_total",
            "Datagrams offered again although the system may have queued them.",
            &[],
            self.possible_duplicates as f64,
        );
        put("icmp_errors_total", "ICMP messages read from the error queue.", &[], self.icmp_errors as f64);
        put(
            "icmp_errors_lost_total",
            "Of those, the ones that nobody fetched in time.",
            &[],
            self.icmp_errors_lost as f64,
        );
        put(
            "receive_errors_total",
            "Receives that failed for a reason other than an ICMP message.",
            &[],
            self.receive_errors as f64,
        );
        for (class_name, class) in [("advised", &self.advised), ("silent", &self.silent)] {
            for (name, n) in [("no", class.enobufs.unconnected), ("yes", class.enobufs.connected)] {
                put(
                    "enobufs_total",
                    "ENOBUFS seen: advised, a readiness event is promised; silent, none is.",
                    &[("connected", name), ("class", class_name)],
                    n as f64,
                );
            }
            let ByWaker { readiness, timer, policy } = &class.recovery;
            for (by_name, wakes, histogram) in [
                ("readiness", class.wakes.readiness, readiness),
                ("timer", class.wakes.timer, timer),
                ("policy", class.wakes.policy, policy),
            ] {
                let labels = [("by", by_name), ("class", class_name)];
                put("wake_total", "Wake-ups of senders that wait, by what woke them.", &labels, wakes as f64);
                let mut count = 0;
                for (i, n) in histogram.buckets.iter().enumerate() {
                    count += n;
                    let bound = BUCKETS.get(i).map_or_else(|| "+Inf".to_owned(), f64::to_string);
                    let labels = [labels[0], labels[1], ("le", bound.as_str())];
                    put("recovery_seconds_bucket", RECOVERY, &labels, count as f64);
                }
                put("recovery_seconds_count", RECOVERY, &labels, count as f64);
                put("recovery_seconds_sum", RECOVERY, &labels, histogram.seconds);
            }
        }
        samples
    }
}

/// Adds up several sockets.
impl AddAssign for StatsSnapshot {
    fn add_assign(&mut self, more: Self) {
        // All fields by name, so that the compiler finds one that is missing here.
        let Self {
            accepted,
            sent,
            held,
            drops,
            received,
            parked,
            attempts,
            advised,
            silent,
            lost_edges,
            spurious_wakes,
            partial,
            blocked,
            stuck,
            possible_duplicates,
            icmp_errors,
            icmp_errors_lost,
            receive_errors,
        } = more;
        self.accepted += accepted;
        self.sent += sent;
        self.held += held;
        self.drops += drops;
        self.received += received;
        self.parked += parked;
        self.attempts += attempts;
        self.advised += advised;
        self.silent += silent;
        self.lost_edges += lost_edges;
        self.spurious_wakes += spurious_wakes;
        self.partial += partial;
        self.blocked += blocked;
        self.stuck += stuck;
        self.possible_duplicates += possible_duplicates;
        self.icmp_errors += icmp_errors;
        self.icmp_errors_lost += icmp_errors_lost;
        self.receive_errors += receive_errors;
    }
}

impl AddAssign for DropTotals {
    fn add_assign(&mut self, more: Self) {
        let Self {
            no_buffers,
            deadline,
            too_large,
            unreachable,
            not_permitted,
            invalid,
            cancelled,
            socket,
            other,
            queue_full,
        } = more;
        self.no_buffers += no_buffers;
        self.deadline += deadline;
        self.too_large += too_large;
        self.unreachable += unreachable;
        self.not_permitted += not_permitted;
        self.invalid += invalid;
        self.cancelled += cancelled;
        self.socket += socket;
        self.other += other;
        self.queue_full += queue_full;
    }
}

impl AddAssign for ClassSnapshot {
    fn add_assign(&mut self, more: Self) {
        let Self { enobufs: Enobufs { connected, unconnected }, wakes, recovery } = more;
        self.enobufs.connected += connected;
        self.enobufs.unconnected += unconnected;
        self.wakes += wakes;
        self.recovery += recovery;
    }
}

impl<T: AddAssign> AddAssign for ByWaker<T> {
    fn add_assign(&mut self, more: Self) {
        let Self { readiness, timer, policy } = more;
        self.readiness += readiness;
        self.timer += timer;
        self.policy += policy;
    }
}

impl AddAssign for HistogramSnapshot {
    fn add_assign(&mut self, more: Self) {
        self.buckets.iter_mut().zip(more.buckets).for_each(|(bucket, more)| *bucket += more);
        self.seconds += more.seconds;
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
            DropReason::QueueFull => self.queue_full,
        }
    }
}

impl HistogramSnapshot {
    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
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
