//! The snapshot, for Prometheus.

use backwater_ops::{MetricKind, Metrics};
use backwater_udp::{Policy, stats::Sample};

use super::snapshot::{COUNTERS, Snapshot};
use crate::counters::{ByName, HistogramSnapshot};

/// Everything, summed over the threads.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let mut m = Metrics::default();
    m.family("backwater_build_info", MetricKind::Gauge, "Always 1; the version is in the label.").add(
        "",
        &[("version", snapshot.version)],
        1.0,
    );
    policy(&mut m, snapshot.policy.into());
    relay(&mut m, snapshot);
    process(&mut m, snapshot);
    let mut sockets = snapshot.paths.clients;
    sockets += snapshot.paths.peers;
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

fn relay(m: &mut Metrics, snapshot: &Snapshot) {
    m.gauge("backwater_relay_allocations", "Allocations there are.", snapshot.allocations as f64);
    m.counter("backwater_relay_allocations_total", "Allocations made.", snapshot.allocations_total);
    let draining = f64::from(u8::from(snapshot.draining));
    m.gauge("backwater_relay_draining", "1 while new clients are turned away.", draining);
    for (row, (_, value)) in COUNTERS.iter().zip(&snapshot.counters.0) {
        m.counter(&format!("backwater_relay_{}_total", row.name), row.help, *value);
    }
    for (direction, bytes) in [("to_peers", &snapshot.bytes.to_peers), ("to_clients", &snapshot.bytes.to_clients)] {
        let family =
            m.family("backwater_relay_bytes_total", MetricKind::Counter, "Payload bytes, by the client's transport.");
        for (transport, value) in &bytes.0 {
            family.add("", &[("direction", direction), ("transport", transport)], *value as f64);
        }
    }
    m.gauge(
        "backwater_relay_connections",
        "TCP connections there are, with TLS and without.",
        snapshot.connections as f64,
    );
    let help = "TCP connections whose first byte has told what they are.";
    let family = m.family("backwater_relay_connections_total", MetricKind::Counter, help);
    for (transport, value) in &snapshot.connections_by_transport.0 {
        family.add("", &[("transport", transport)], *value as f64);
    }
    let help = "TCP connections that have ended.";
    by_reason(m, "backwater_relay_connections_ended_total", help, &snapshot.connections_ended);
    let help = "Requests with a valid nonce that did not authenticate.";
    by_reason(m, "backwater_relay_auth_failures_total", help, &snapshot.auth_failures);
    let help = "Requests answered with 486 or 508 since a limit was reached.";
    by_reason(m, "backwater_relay_over_quota_total", help, &snapshot.over_quota);
    let help = "Datagrams that were dropped before they were handed to a socket.";
    by_reason(m, "backwater_relay_drops_total", help, &snapshot.drops);
    for (name, value) in &snapshot.hooks.0 {
        m.counter(&format!("backwater_relay_hook_{name}_total"), "Requests to hooks, by what became of them.", *value);
    }
    let help = "How long allocations that have ended lasted.";
    histogram(m, "backwater_relay_allocation_duration_seconds", help, &snapshot.allocation_seconds);
    let help = "Payload of allocations that have ended, both ways together.";
    histogram(m, "backwater_relay_allocation_bytes", help, &snapshot.allocation_bytes);
    let help = "How long a thread takes to come to a new task, measured once a second on each.";
    histogram(m, "backwater_relay_loop_delay_seconds", help, &snapshot.delay_seconds);
}

fn by_reason(m: &mut Metrics, name: &str, help: &'static str, values: &ByName) {
    let family = m.family(name, MetricKind::Counter, help);
    for (reason, value) in &values.0 {
        family.add("", &[("reason", reason)], *value as f64);
    }
}

fn histogram(m: &mut Metrics, name: &str, help: &'static str, values: &HistogramSnapshot) {
    let family = m.family(name, MetricKind::Histogram, help);
    let mut count = 0;
    for (at, n) in values.buckets.iter().enumerate() {
        count += n;
        let bound = values.bounds.get(at).map_or_else(|| "+Inf".to_owned(), f64::to_string);
        family.add("_bucket", &[("le", &bound)], count as f64);
    }
    family.add("_sum", &[], values.sum).add("_count", &[], count as f64);
}

fn process(m: &mut Metrics, snapshot: &Snapshot) {
    let Some(process) = &snapshot.process else { return };
    m.family("process_cpu_seconds_total", MetricKind::Counter, "User and system CPU time.").add(
        "",
        &[],
        process.cpu_seconds_total,
    );
    m.gauge("process_resident_memory_bytes", "Resident memory.", process.resident_memory_bytes as f64);
    m.gauge("process_open_fds", "Open file descriptors.", process.open_fds as f64);
    m.gauge("process_max_fds", "The limit of open file descriptors.", process.max_fds as f64);
}

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
    use backwater_turn::{AuthFailureReason, Protocol, QuotaReason, server::DropReason};
    use backwater_udp::Stats;

    use super::{super::Control, *};
    use crate::counters::{BYTES, DELAY, DURATION};

    fn render(control: &Control) -> String {
        super::render(&Snapshot::of(control))
    }

    #[test]
    fn threads_are_summed() {
        let control = Control::of_threads(2);
        control.threads[0].counters.to_peers.add(2);
        control.threads[1].counters.to_peers.add(3);
        control.threads[1].counters.count_drop(DropReason::NoPermission, 4);
        control.threads[0].counters.count_auth_failure(AuthFailureReason::Expired);
        control.threads[1].counters.count_auth_failure(AuthFailureReason::Expired);
        control.threads[0].counters.count_over_quota(QuotaReason::UserAllocations);
        control.threads[1].counters.count_over_quota(QuotaReason::UserAllocations);
        control.threads[0].counters.allocations.add(7);
        control.threads[0].counters.closed.add(1);
        control.threads[0].counters.add_bytes_to_peers(Protocol::Udp, 100);
        control.threads[1].counters.add_bytes_to_peers(Protocol::Udp, 20);
        for (thread, seconds) in [(0, 0), (0, 11), (1, 60), (1, 100_000)] {
            control.threads[thread].counters.durations.observe(&DURATION, seconds * 1000);
        }
        control.threads[1].counters.bytes.observe(&BYTES, 0);
        control.threads[1].counters.delays.observe(&DELAY, 51);
        let text = render(&control);
        for line in [
            "backwater_relay_bytes_total{direction=\"to_peers\",transport=\"udp\"} 120",
            "backwater_relay_bytes_total{direction=\"to_clients\",transport=\"udp\"} 0",
            "backwater_relay_allocation_duration_seconds_bucket{le=\"1\"} 1",
            "backwater_relay_allocation_duration_seconds_bucket{le=\"60\"} 3",
            "backwater_relay_allocation_duration_seconds_bucket{le=\"86400\"} 3",
            "backwater_relay_allocation_duration_seconds_bucket{le=\"+Inf\"} 4",
            "backwater_relay_allocation_duration_seconds_sum 100071",
            "backwater_relay_allocation_bytes_bucket{le=\"0\"} 1",
            "backwater_relay_loop_delay_seconds_bucket{le=\"0.00005\"} 0",
            "backwater_relay_loop_delay_seconds_bucket{le=\"0.0001\"} 1",
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
        let text = render(&Control::of_threads(2));
        for sample in Stats::default().snapshot().samples() {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|s| sample.name.strip_suffix(s));
            let base = base.unwrap_or(sample.name);
            assert!(!sample.help.is_empty(), "{base} has no help");
            assert_eq!(text.matches(&format!("# TYPE backwater_{base} ")).count(), 1, "{base}");
        }
        assert!(text.contains("# TYPE backwater_recovery_seconds histogram\n"));
    }
}
