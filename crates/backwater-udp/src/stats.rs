use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
}

impl DropReason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::NoBuffers,
        Self::Deadline,
        Self::TooLarge,
        Self::Unreachable,
        Self::NotPermitted,
        Self::Invalid,
        Self::Cancelled,
        Self::Socket,
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

/// Counters in datagrams, shared by all clones and senders of a socket, or of several sockets (see
/// [`Builder::stats`](crate::Builder::stats)). They only grow.
#[derive(Debug, Default)]
pub struct Stats {
    accepted: AtomicU64,
    sent: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
    parked: AtomicU64,
    received: AtomicU64,
}

impl Stats {
    /// The values now. `accepted` is read last, so that `sent` and `dropped` never exceed it.
    pub fn snapshot(&self) -> StatsSnapshot {
        let sent = self.sent.load(Relaxed);
        let dropped = std::array::from_fn(|i| self.dropped[i].load(Relaxed));
        StatsSnapshot {
            sent,
            dropped,
            parked: self.parked.load(Relaxed),
            received: self.received.load(Relaxed),
            accepted: self.accepted.load(Relaxed),
        }
    }

    pub(crate) fn accept(&self, datagrams: usize) {
        self.accepted.fetch_add(datagrams as u64, Relaxed);
    }

    /// Adds what happened between two states of a report.
    pub(crate) fn resolve(&self, before: &Report, after: &Report) {
        if after.sent != before.sent {
            self.sent.fetch_add(u64::from(after.sent - before.sent), Relaxed);
        }
        if after.dropped != before.dropped {
            for reason in DropReason::ALL {
                let n = after.dropped.get(reason) - before.dropped.get(reason);
                self.dropped[reason as usize].fetch_add(u64::from(n), Relaxed);
            }
        }
    }

    pub(crate) fn drop_held(&self, reason: DropReason, datagrams: usize) {
        self.dropped[reason as usize].fetch_add(datagrams as u64, Relaxed);
    }

    pub(crate) fn park(&self) {
        self.parked.fetch_add(1, Relaxed);
    }

    pub(crate) fn receive(&self, datagrams: usize) {
        self.received.fetch_add(datagrams as u64, Relaxed);
    }
}

/// [`Stats`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Datagrams handed to a sender.
    pub accepted: u64,
    /// Datagrams the kernel took.
    pub sent: u64,
    dropped: [u64; DropReason::ALL.len()],
    /// Times that a sender had to wait.
    pub parked: u64,
    /// Datagrams received.
    pub received: u64,
}

impl StatsSnapshot {
    /// Datagrams dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Datagrams dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Datagrams accepted that are neither sent nor dropped yet.
    pub fn held(&self) -> u64 {
        self.accepted - self.sent - self.dropped_total()
    }
}
