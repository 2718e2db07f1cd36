use std::time::Duration;

use super::*;

#[test]
fn snapshots_of_sockets_add_up() {
    let (one, other) = (Stats::default(), Stats::default());
    for (stats, n) in [(&one, 3), (&other, 4)] {
        stats.accept(10 * n);
        stats.sent(5 * n);
        DropReason::ALL.iter().enumerate().for_each(|(i, &reason)| stats.dropped(reason, i * n / 8));
        stats.no_buffers(true, Class::Advised);
        stats.wake(Class::Silent, By::Call);
        stats.recover(Class::Silent, By::Timer, Duration::from_secs(n as u64));
        stats.blocked(Duration::from_secs(n as u64));
    }
    let mut sum = one.snapshot();
    sum += other.snapshot();
    let values = |snapshot: StatsSnapshot| snapshot.samples().into_iter().map(|sample| sample.value);
    let expected = values(one.snapshot()).zip(values(other.snapshot())).map(|(one, other)| one + other);
    assert_eq!(values(sum).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert_eq!(sum.accepted, sum.sent + sum.dropped_total() + sum.held);
}

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
