use super::*;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn breaker(limits: &str) -> Breaker {
    Breaker::new(limits.parse().unwrap())
}

#[test]
fn lost_edges_are_counted_within_a_minute() {
    let (mut stats, start) = (StatsSnapshot::default(), Instant::now());
    let mut b = breaker("lost-edges=3/min");
    // The breaker ignores those from before its first check.
    stats.lost_edges = 100;
    for second in 0..600 {
        // Three in any minute, for ten minutes.
        stats.lost_edges += u64::from(second % 20 == 0 && second > 0);
        assert_eq!(b.check(start + seconds(second), &stats), None, "{second}");
    }
    stats.lost_edges += 2;
    assert_eq!(b.check(start + seconds(600), &stats), Some(Trip::LostEdges(4)));
    assert_eq!(b.check(start + seconds(601), &stats), None, "the breaker begins anew");
}

#[test]
fn nothing_sent_while_a_datagram_waits_is_a_stall() {
    let (mut stats, start) = (StatsSnapshot::default(), Instant::now());
    let mut b = breaker("stall=5s");
    for second in 0..20 {
        assert_eq!(b.check(start + seconds(second), &stats), None, "nothing waits");
    }
    stats.held = 1;
    for second in 20..25 {
        assert_eq!(b.check(start + seconds(second), &stats), None);
    }
    stats.sent += 1;
    for second in 25..31 {
        assert_eq!(b.check(start + seconds(second), &stats), None, "one was sent in between");
    }
    assert_eq!(b.check(start + seconds(31), &stats), Some(Trip::Stall(seconds(5))));
    assert_eq!(b.check(start + seconds(32), &stats), None, "the breaker begins anew");
}

#[test]
fn a_datagram_that_waits_and_expires_between_two_checks_is_part_of_a_stall() {
    let (mut stats, start) = (StatsSnapshot::default(), Instant::now());
    let mut b = breaker("stall=2s");
    let mut trips = Vec::new();
    for second in 0..4 {
        stats.parked += 1;
        stats.drops.deadline += 1;
        trips.push(b.check(start + seconds(second), &stats));
    }
    assert_eq!(trips, [None, None, None, Some(Trip::Stall(seconds(2)))]);
}

#[test]
fn a_drop_for_another_reason_is_no_stall() {
    let (mut stats, start) = (StatsSnapshot::default(), Instant::now());
    let mut b = breaker("stall=1s,lost-edges=0/min");
    for second in 0..10 {
        stats.drops.too_large += 1;
        assert_eq!(b.check(start + seconds(second), &stats), None);
    }
}

#[test]
fn a_breaker_without_limits_never_trips_and_the_window_is_bounded() {
    let (mut stats, start) = (StatsSnapshot::default(), Instant::now());
    let mut none = Breaker::new(Limits::default());
    let mut b = breaker("lost-edges=1000000/min");
    stats.held = 1;
    for ms in 0..5_000 {
        stats.lost_edges += 1;
        let at = start + Duration::from_millis(ms);
        assert_eq!(none.check(at, &stats), None);
        assert_eq!(b.check(at, &stats), None);
    }
    assert!(b.lost_edges.len() <= MAX_ENTRIES);
}

#[test]
fn limits_are_read_or_refused() {
    let limits = |lost_edges, stall| Ok(Limits { lost_edges, stall });
    assert_eq!("lost-edges=10/min,stall=5s".parse(), limits(Some(10), Some(seconds(5))));
    assert_eq!("stall=500ms".parse(), limits(None, Some(Duration::from_millis(500))));
    assert_eq!("stall=5s, lost-edges=0/min".parse(), limits(Some(0), Some(seconds(5))));
    for text in ["", "stall", "stall=5", "stall=0s", "lost-edges=10", "lost-edges=x/min", "stall=1s,stall=2s", "x=1s,"]
    {
        assert_eq!(text.parse::<Limits>(), Err(LimitsError), "{text}");
    }
}
