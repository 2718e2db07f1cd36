//! The counters, for Prometheus.

use std::sync::atomic::Ordering::SeqCst;

use backwater_ops::{MetricKind, Metrics};
use backwater_turn::{AuthFailureReason, QuotaReason, server::DropReason};
use backwater_udp::{Policy, StatsSnapshot, stats::Sample};

use super::Control;
use crate::counters::{Counter, Counters};

/// Everything, summed over the threads.
pub(super) fn render(control: &Control) -> String {
    let mut m = Metrics::default();
    m.family("backwater_build_info", MetricKind::Gauge, "Always 1; the version is in the label.").add(
        "",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1.0,
    );
    policy(&mut m, control.backpressure.get());
    relay(&mut m, control);
    let mut sockets = StatsSnapshot::default();
    control.stats.iter().for_each(|stats| sockets += stats.snapshot());
    sockets.samples().iter().for_each(|sample| socket(&mut m, sample));
    m.to_string()
}

fn policy(m: &mut Metrics, now: Policy) {
    let (wait, seconds) = match now {
        Policy::Wait { deadline } => (1.0, deadline.as_secs_f64()),
        Policy::Drop => (0.0, 0.0),
    };
    m.family("backwater_policy", MetricKind::Gauge, "1 for the back-pressure policy in force, 0 for the other.")
        .add("", &[("policy", "wait")], wait)
        .add("", &[("policy", "drop")], 1.0 - wait);
    m.gauge("backwater_policy_deadline_seconds", "How long a datagram is held at most; 0 with drop.", seconds);
}

fn relay(m: &mut Metrics, control: &Control) {
    let total = |get: &dyn Fn(&Counters) -> u64| control.counters.iter().map(|c| get(c)).sum::<u64>();
    let field = |field: fn(&Counters) -> &Counter| total(&|c| field(c).get());
    // The other way round, one that comes and goes in between would be one less than none.
    let closed = field(|c| &c.closed);
    let made = field(|c| &c.allocations);
    m.gauge("backwater_relay_allocations", "Allocations there are.", made.saturating_sub(closed) as f64);
    m.counter("backwater_relay_allocations_total", "Allocations made.", made);
    let draining = control.draining.load(SeqCst);
    m.gauge("backwater_relay_draining", "1 while new clients are turned away.", f64::from(u8::from(draining)));
    for (name, help, get) in COUNTERS {
        m.counter(name, help, field(*get));
    }
    let help = "Requests with a valid nonce that did not authenticate.";
    let failures = m.family("backwater_relay_auth_failures_total", MetricKind::Counter, help);
    for &reason in AuthFailureReason::ALL {
        failures.add("", &[("reason", reason.name())], total(&|c| c.auth_failures(reason)) as f64);
    }
    let help = "Requests answered with 486 or 508 since a limit was reached.";
    let refusals = m.family("backwater_relay_over_quota_total", MetricKind::Counter, help);
    for &reason in QuotaReason::ALL {
        refusals.add("", &[("reason", reason.name())], total(&|c| c.over_quota(reason)) as f64);
    }
    let help = "Datagrams that were dropped before they were handed to a socket.";
    let drops = m.family("backwater_relay_drops_total", MetricKind::Counter, help);
    for &reason in DropReason::ALL {
        drops.add("", &[("reason", reason.name())], total(&|c| c.dropped(reason)) as f64);
    }
}

type Field = fn(&Counters) -> &Counter;

const COUNTERS: &[(&str, &str, Field)] = &[
    ("backwater_relay_to_peers_total", "Datagrams on their way to peers.", |c| &c.to_peers),
    ("backwater_relay_to_clients_total", "Datagrams on their way to clients.", |c| &c.to_clients),
    ("backwater_relay_inside_total", "Of both: from one client to another without a socket in between.", |c| &c.inside),
    ("backwater_relay_icmp_total", "ICMP messages about peers that clients were told about.", |c| &c.icmp),
    ("backwater_relay_replies_total", "Answers to requests.", |c| &c.replies),
    ("backwater_relay_moved_total", "Allocations that followed their client to another thread.", |c| &c.moved),
    ("backwater_relay_forbidden_total", "Requests answered with 403.", |c| &c.forbidden),
    ("backwater_relay_bind_failed_total", "Allocations that found no port.", |c| &c.bind_failed),
    ("backwater_relay_receive_errors_total", "Receives that failed.", |c| &c.receive_errors),
];

fn socket(m: &mut Metrics, sample: &Sample) {
    let suffix = ["_bucket", "_sum", "_count"].into_iter().find(|suffix| sample.name.ends_with(suffix));
    let base = sample.name.strip_suffix(suffix.unwrap_or_default()).unwrap_or(sample.name);
    let kind = match suffix {
        Some(_) => MetricKind::Histogram,
        None if base.ends_with("_total") => MetricKind::Counter,
        None => MetricKind::Gauge,
    };
    let labels: Vec<_> = sample.labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
    m.family(&format!("backwater_{base}"), kind, sample.help).add(suffix.unwrap_or_default(), &labels, sample.value);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use backwater_udp::{Backpressure, Stats};

    use super::*;
    use crate::health::Health;

    fn control() -> Control {
        let counters = || Arc::new(Counters::default());
        Control::new(
            Backpressure::default(),
            vec![counters(), counters()],
            vec![Arc::default(), Arc::default()],
            Health::new(),
        )
    }

    #[test]
    fn threads_are_summed() {
        let control = control();
        control.counters[0].to_peers.add(2);
        control.counters[1].to_peers.add(3);
        control.counters[1].count_drop(DropReason::NoPermission, 4);
        control.counters[0].count_auth_failure(AuthFailureReason::Expired);
        control.counters[1].count_auth_failure(AuthFailureReason::Expired);
        control.counters[0].count_over_quota(QuotaReason::UserAllocations);
        control.counters[1].count_over_quota(QuotaReason::UserAllocations);
        control.counters[0].allocations.add(7);
        control.counters[0].closed.add(1);
        let text = render(&control);
        for line in [
            "backwater_relay_to_peers_total 5",
            "backwater_relay_drops_total{reason=\"no_permission\"} 4",
            "backwater_relay_auth_failures_total{reason=\"expired\"} 2",
            "backwater_relay_auth_failures_total{reason=\"wrong_password\"} 0",
            "backwater_relay_over_quota_total{reason=\"user_allocations\"} 2",
            "backwater_relay_over_quota_total{reason=\"channels\"} 0",
            "backwater_relay_allocations 6",
            "backwater_relay_allocations_total 7",
            "backwater_policy{policy=\"wait\"} 1",
            "backwater_policy_deadline_seconds 0.1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        control.backpressure.set(Policy::Drop);
        assert!(render(&control).contains("backwater_policy{policy=\"drop\"} 1\n"));
    }

    #[test]
    fn every_metric_of_a_socket_has_its_kind_and_its_help() {
        let text = render(&control());
        for sample in Stats::default().snapshot().samples() {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|s| sample.name.strip_suffix(s));
            let base = base.unwrap_or(sample.name);
            assert!(!sample.help.is_empty(), "{base} has no help");
            assert_eq!(text.matches(&format!("# TYPE backwater_{base} ")).count(), 1, "{base}");
        }
        assert!(text.contains("# TYPE backwater_recovery_seconds histogram\n"));
    }
}
