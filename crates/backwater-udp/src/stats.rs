//! What has become of the datagrams of a transmit, and of all datagrams of a socket.

use std::{
    fmt, io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    notices::Notices,
    wait::backoff::{By, Class},
};

mod snapshot;

pub use snapshot::{ByWaker, ClassSnapshot, DropTotals, Enobufs, HistogramSnapshot, Sample, StatsSnapshot};

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
    /// The system had no room, and neither had the [`SendQueue`](crate::SendQueue).
    QueueFull,
}

impl DropReason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::NoBuffers,
        Self::Deadline,
        Self::TooLarge,
        Self::Unreachable,
        Self::NotPermitted,
        Self::Invalid,
        Self::Cancelled,
        Self::Socket,
        Self::Other,
        Self::QueueFull,
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
            Self::QueueFull => "queue_full",
        }
    }
}

/// Why a single datagram was not sent: see [`Sender::send_to`](crate::Sender::send_to).
impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoBuffers => "dropped: the system had no room",
            Self::Deadline => "dropped: the system had no room until the deadline",
            Self::TooLarge => "dropped: too large for the path or for UDP",
            Self::Unreachable => "dropped: the destination cannot be reached",
            Self::NotPermitted => "dropped: a local firewall or policy refuses it",
            Self::Invalid => "dropped: the system does not take such an address",
            Self::Cancelled => "dropped: given up",
            Self::Socket => "dropped: the socket failed",
            Self::Other => "dropped: the system refuses it for a reason that the log has",
            Self::QueueFull => "dropped: the system had no room, and too much waits already",
        })
    }
}

impl std::error::Error for DropReason {}

/// Dropped datagrams by reason.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
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

/// Those that are not zero, by name.
impl fmt::Debug for DropCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let some = DropReason::ALL.into_iter().filter(|&reason| self.get(reason) > 0);
        f.debug_map().entries(some.map(|reason| (reason.name(), self.get(reason)))).finish()
    }
}

/// What became of the datagrams of a transmit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendReport {
    /// Accepted by the kernel.
    pub sent: u32,
    /// Dropped, with the reason.
    pub dropped: DropCounts,
}

/// Counters shared by all clones and senders of a socket, or of several sockets (see
/// [`UdpSocketBuilder::stats`](crate::UdpSocketBuilder::stats)). They only grow. Datagrams, where nothing else is said.
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
    /// The values now. They are read one after the other while others count: `held` may be off by what happens meanwhile.
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
            queue_full: dropped(DropReason::QueueFull),
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
        snapshot.held = snapshot.accepted.saturating_sub(snapshot.sent + snapshot.dropped_total());
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

    pub(crate) fn no_registration(&self, error: &io::Error) {
        self.notices.no_registration(error);
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

impl Histogram {
    fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            buckets: std::array::from_fn(|i| self.buckets[i].load(Relaxed)),
            seconds: self.micros.load(Relaxed) as f64 / 1e6,
        }
    }
}

#[cfg(test)]
mod tests;
