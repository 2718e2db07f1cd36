//! Everything that the administration shows of the relay: one typed snapshot, from which the metrics and the page's JSON are made.

use std::sync::{PoisonError, atomic::Ordering::SeqCst};

use backwater_turn::{AuthFailureReason, QuotaReason, server::DropReason};
use backwater_udp::StatsSnapshot;
use serde::Serialize;

use super::{Control, policy, process::Process};
use crate::{
    counters::{BYTES, ByName, Counter, Counters, DELAY, DURATION, HistogramSnapshot, PROTOCOLS},
    ingress::stream::CutOff,
};

/// The relay at one moment, all threads together. Counters count from the start of the process.
#[derive(Debug, Serialize)]
pub(super) struct Snapshot {
    pub(super) version: &'static str,
    pub(super) uptime_seconds: f64,
    pub(super) threads: usize,
    pub(super) draining: bool,
    pub(super) failed: bool,
    /// URIs of the relay, for clients.
    pub(super) uris: Vec<String>,
    pub(super) policy: policy::Body,
    /// Allocations there are.
    pub(super) allocations: u64,
    pub(super) allocations_total: u64,
    /// TCP connections there are, with TLS and without.
    pub(super) connections: u64,
    /// TCP connections since the start, by what their first byte has told.
    pub(super) connections_by_transport: ByName,
    pub(super) connections_ended: ByName,
    /// By [`COUNTERS`].
    pub(super) counters: ByName,
    pub(super) bytes: Bytes,
    pub(super) auth_failures: ByName,
    pub(super) over_quota: ByName,
    /// Datagrams that were dropped before they were handed to a socket.
    pub(super) drops: ByName,
    pub(super) allocation_seconds: HistogramSnapshot,
    pub(super) allocation_bytes: HistogramSnapshot,
    pub(super) delay_seconds: HistogramSnapshot,
    /// What has become of requests to hooks.
    pub(super) hooks: ByName,
    pub(super) paths: Paths,
    pub(super) process: Option<Process>,
}

/// Payload bytes by the client's transport.
#[derive(Debug, Serialize)]
pub(super) struct Bytes {
    pub(super) to_peers: ByName,
    pub(super) to_clients: ByName,
}

/// The counters of the sockets, and of the queues in front of them.
#[derive(Debug, Serialize)]
pub(super) struct Paths {
    /// Of the listeners.
    pub(super) clients: StatsSnapshot,
    /// Of the relayed sockets.
    pub(super) peers: StatsSnapshot,
}

/// A counter of the relay's: its name in JSON, which is that of the metric without `backwater_relay_` and `_total`, what it
/// counts, and where it is.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    get: fn(&Counters) -> &Counter,
}

const fn row(name: &'static str, help: &'static str, get: fn(&Counters) -> &Counter) -> Row {
    Row { name, help, get }
}

pub(super) const COUNTERS: &[Row] = &[
    row("to_peers", "Datagrams on their way to peers.", |c| &c.to_peers),
    row("to_clients", "Datagrams on their way to clients.", |c| &c.to_clients),
    row("inside", "Of both: from one client to another without a socket in between.", |c| &c.inside),
    row("icmp", "ICMP messages about peers that clients were told about.", |c| &c.icmp),
    row("replies", "Answers to requests.", |c| &c.replies),
    row("moved", "Allocations that followed their client to another thread.", |c| &c.moved),
    row("forbidden", "Requests answered with 403.", |c| &c.forbidden),
    row("bind_failed", "Allocations that found no port.", |c| &c.bind_failed),
    row("stream_accepted", "Peers' datagrams that were handed to TCP connections.", |c| &c.stream_accepted),
    row("stream_sent", "Of these: datagrams that the system took.", |c| &c.stream_sent),
    row("receive_errors", "Receives that failed.", |c| &c.receive_errors),
];

impl Snapshot {
    pub(super) fn of(control: &Control) -> Self {
        let counters = || control.threads.iter().map(|thread| &*thread.counters);
        let total = |get: &dyn Fn(&Counters) -> u64| counters().map(get).sum::<u64>();
        let stats = |get: &dyn Fn(&super::ThreadView) -> StatsSnapshot| {
            control.threads.iter().map(get).fold(StatsSnapshot::default(), |mut sum, stats| {
                sum += stats;
                sum
            })
        };
        // The other way round, one that comes and goes in between would be one less than none.
        let closed = total(&|c| c.closed.get());
        let made = total(&|c| c.allocations.get());
        let disconnected = total(&|c| c.disconnected.get());
        Self {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: control.started.elapsed().as_secs_f64(),
            threads: control.threads.len(),
            draining: control.draining.load(SeqCst),
            failed: control.health.has_failed(),
            uris: control.uris.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            policy: control.backpressure.get().into(),
            allocations: made.saturating_sub(closed),
            allocations_total: made,
            connections: total(&|c| c.connections.get()).saturating_sub(disconnected),
            connections_by_transport: ByName(vec![
                ("tcp", total(&|c| c.over_tcp.get())),
                ("tls", total(&|c| c.over_tls.get())),
            ]),
            connections_ended: ByName(CutOff::ALL.iter().map(|&r| (r.name(), total(&|c| c.cut_offs(r)))).collect()),
            counters: ByName(COUNTERS.iter().map(|row| (row.name, total(&|c| (row.get)(c).get()))).collect()),
            bytes: Bytes {
                to_peers: ByName(PROTOCOLS.iter().map(|&p| (p.name(), total(&|c| c.bytes_to_peers(p)))).collect()),
                to_clients: ByName(PROTOCOLS.iter().map(|&p| (p.name(), total(&|c| c.bytes_to_clients(p)))).collect()),
            },
            auth_failures: ByName(
                AuthFailureReason::ALL.iter().map(|&r| (r.name(), total(&|c| c.auth_failures(r)))).collect(),
            ),
            over_quota: ByName(QuotaReason::ALL.iter().map(|&r| (r.name(), total(&|c| c.over_quota(r)))).collect()),
            drops: ByName(DropReason::ALL.iter().map(|&r| (r.name(), total(&|c| c.dropped(r)))).collect()),
            allocation_seconds: HistogramSnapshot::sum(&DURATION, counters().map(|c| &c.durations)),
            allocation_bytes: HistogramSnapshot::sum(&BYTES, counters().map(|c| &c.bytes)),
            delay_seconds: HistogramSnapshot::sum(&DELAY, counters().map(|c| &c.delays)),
            hooks: ByName(control.hooks.by_name()),
            paths: Paths {
                clients: stats(&|thread| thread.listeners.snapshot()),
                peers: stats(&|thread| thread.relayed.snapshot()),
            },
            process: Process::now(),
        }
    }
}
