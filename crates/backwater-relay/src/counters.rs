//! What a thread has done, readable from the others.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use backwater_turn::{AuthFailureReason, QuotaReason, server::DropReason};

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
    /// Receives that failed.
    pub receive_errors: Counter,
    dropped: [Counter; DropReason::ALL.len()],
    auth_failures: [Counter; AuthFailureReason::ALL.len()],
    over_quota: [Counter; QuotaReason::ALL.len()],
}

impl Counters {
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
