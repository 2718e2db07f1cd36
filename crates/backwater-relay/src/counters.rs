//! What a thread has done, readable from the others.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use backwater_turn::{AuthFailureReason, Protocol, QuotaReason, server::DropReason};
use serde::{Serialize, Serializer};

use crate::ingress::stream::CutOff;

/// What clients may use, in the order of their numbers.
pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Udp, Protocol::Tcp];

/// A number that one thread adds to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        // One writer: no need for a locked instruction.
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A histogram that one thread adds to.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [Counter; MAX_BUCKETS],
    sum: Counter,
}

const MAX_BUCKETS: usize = 12;

/// The upper bounds of a histogram's buckets, in the unit that it counts in, and how many of that unit are one in the metrics.
#[derive(Debug)]
pub(crate) struct Buckets {
    bounds: &'static [u64],
    unit: f64,
}

/// How long allocations last, in milliseconds.
pub(crate) const DURATION: Buckets = Buckets {
    bounds: &[1_000, 10_000, 60_000, 300_000, 600_000, 1_800_000, 3_600_000, 14_400_000, 43_200_000, 86_400_000],
    unit: 1e3,
};

/// Payload of an allocation, both ways together, in bytes.
pub(crate) const BYTES: Buckets = Buckets {
    bounds: &[0, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000],
    unit: 1.0,
};

/// How long a thread takes to come to a new task, in microseconds.
pub(crate) const DELAY: Buckets =
    Buckets { bounds: &[50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 100_000, 1_000_000], unit: 1e6 };

/// A histogram at one moment, over all threads.
#[derive(Debug, Serialize)]
pub(crate) struct HistogramSnapshot {
    /// The upper bounds of all buckets but the last, which has none.
    pub(crate) bounds: Vec<f64>,
    /// How many values are in each bucket.
    pub(crate) buckets: Vec<u64>,
    /// All values added up.
    pub(crate) sum: f64,
}

impl Histogram {
    /// Counts a value, in the unit of `buckets`.
    pub(crate) fn observe(&self, buckets: &Buckets, value: u64) {
        let at = buckets.bounds.partition_point(|&bound| bound < value);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.add(1);
            self.sum.add(value);
        }
    }
}

impl HistogramSnapshot {
    /// Adds up the histograms of all threads.
    pub(crate) fn sum<'a>(buckets: &Buckets, of: impl Iterator<Item = &'a Histogram> + Clone) -> Self {
        let counts = (0..=buckets.bounds.len()).map(|at| of.clone().map(|h| h.buckets[at].get()).sum());
        Self {
            buckets: counts.collect(),
            bounds: buckets.bounds.iter().map(|&bound| bound as f64 / buckets.unit).collect(),
            sum: of.map(|h| h.sum.get()).sum::<u64>() as f64 / buckets.unit,
        }
    }
}

/// Numbers by name, in an order. In JSON: an object.
#[derive(Debug)]
pub(crate) struct ByName(pub(crate) Vec<(&'static str, u64)>);

impl Serialize for ByName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// The counters of one thread. Datagrams, where nothing else is said.
#[derive(Debug, Default)]
pub struct Counters {
    /// Allocations made.
    pub allocations: Counter,
    /// Allocations that are gone again.
    pub closed: Counter,
    /// Allocations that came from another thread, after their client (RFC 8016).
    pub moved: Counter,
    /// Requests answered with 403.
    pub forbidden: Counter,
    /// Allocations that found no port: answered with 508.
    pub bind_failed: Counter,
    /// From clients to peers.
    pub to_peers: Counter,
    /// From peers to clients.
    pub to_clients: Counter,
    /// Of both of these: from one client to another of the same thread, without a socket in between.
    pub inside: Counter,
    /// ICMP messages about peers that clients were told about.
    pub icmp: Counter,
    /// Answers to requests.
    pub replies: Counter,
    /// Connections accepted.
    pub connections: Counter,
    /// Connections that have ended.
    pub disconnected: Counter,
    /// Connections that turned out to be TURN over TCP.
    pub over_tcp: Counter,
    /// Connections that turned out to be TURN over TLS.
    pub over_tls: Counter,
    /// Peers' datagrams handed to connections. Each is sent, dropped as `slow_client` or `client_gone`, or still held.
    pub stream_accepted: Counter,
    /// Of these: sent, that is, taken by the system.
    pub stream_sent: Counter,
    /// Receives that failed.
    pub receive_errors: Counter,
    bytes_to_peers: [Counter; PROTOCOLS.len()],
    bytes_to_clients: [Counter; PROTOCOLS.len()],
    dropped: [Counter; DropReason::ALL.len()],
    auth_failures: [Counter; AuthFailureReason::ALL.len()],
    over_quota: [Counter; QuotaReason::ALL.len()],
    /// By [`DURATION`], of allocations that have ended.
    pub(crate) durations: Histogram,
    /// By [`BYTES`], of allocations that have ended.
    pub(crate) bytes: Histogram,
    /// By [`DELAY`].
    pub(crate) delays: Histogram,
    cut_offs: [Counter; CutOff::ALL.len()],
}

impl Counters {
    /// Counts payload to peers.
    #[inline]
    pub(crate) fn add_bytes_to_peers(&self, from: Protocol, bytes: usize) {
        self.bytes_to_peers[from as usize].add(bytes as u64);
    }

    /// Counts payload to clients.
    #[inline]
    pub(crate) fn add_bytes_to_clients(&self, to: Protocol, bytes: usize) {
        self.bytes_to_clients[to as usize].add(bytes as u64);
    }

    pub(crate) fn count_drop(&self, reason: DropReason, datagrams: usize) {
        if let Some(counter) = self.dropped.get(reason as usize) {
            counter.add(datagrams as u64);
        }
    }

    pub(crate) fn count_auth_failure(&self, reason: AuthFailureReason) {
        if let Some(counter) = self.auth_failures.get(reason as usize) {
            counter.add(1);
        }
    }

    pub(crate) fn count_over_quota(&self, reason: QuotaReason) {
        if let Some(counter) = self.over_quota.get(reason as usize) {
            counter.add(1);
        }
    }

    /// Payload bytes of the datagrams to peers from clients that use this protocol.
    pub fn bytes_to_peers(&self, from: Protocol) -> u64 {
        self.bytes_to_peers[from as usize].get()
    }

    /// Payload bytes of the datagrams to clients that use this protocol.
    pub fn bytes_to_clients(&self, to: Protocol) -> u64 {
        self.bytes_to_clients[to as usize].get()
    }

    pub(crate) fn count_cut_off(&self, why: CutOff) {
        if let Some(counter) = self.cut_offs.get(why as usize) {
            counter.add(1);
        }
    }

    pub(crate) fn count_transport(&self, is_tls: bool) {
        if is_tls { &self.over_tls } else { &self.over_tcp }.add(1);
    }

    /// Connections that have ended for this reason.
    pub fn cut_offs(&self, why: CutOff) -> u64 {
        self.cut_offs.get(why as usize).map_or(0, Counter::get)
    }

    /// Requests refused with 486 or 508 since this limit was reached.
    pub fn over_quota(&self, reason: QuotaReason) -> u64 {
        self.over_quota.get(reason as usize).map_or(0, Counter::get)
    }

    /// Requests that did not authenticate for this reason.
    pub fn auth_failures(&self, reason: AuthFailureReason) -> u64 {
        self.auth_failures.get(reason as usize).map_or(0, Counter::get)
    }

    /// Dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped.get(reason as usize).map_or(0, Counter::get)
    }
}
