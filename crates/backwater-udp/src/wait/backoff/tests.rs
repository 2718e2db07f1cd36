use super::*;

const MS: Duration = TICK;

/// No jitter.
const PACE: Pace = Pace { spacing: Duration::ZERO, longest: None, random: 128 };

/// A silent back-off that has been refused so often, by its timer.
fn silent(now: Instant, refusals: u32, recovery: Option<Duration>) -> Backoff {
    let mut backoff = Backoff::new(Class::Silent, now, recovery, PACE);
    for _ in 0..refusals {
        backoff.refused(By::Timer, now, PACE);
    }
    backoff
}

#[test]
fn the_timer_of_an_advised_wait_grows() {
    let now = Instant::now();
    let mut b = Backoff::new(Class::Advised, now, None, PACE);
    assert_eq!((b.at, b.yielding), (now + 25 * MS, false));
    let mut at = b.at;
    for (next, longest) in [(50, false), (100, false), (100, true)] {
        b.refused(By::Timer, at, PACE);
        assert_eq!((b.at, b.is_long(at)), (at + next * MS, longest));
        at = b.at;
    }
    b.refused(By::Readiness, at, PACE);
    b.refused(By::Call, at, PACE);
    assert_eq!(b.at, at, "the timer stays");
    b.found_room(at + MS);
    assert_eq!((b.at, b.is_long(at)), (at, false), "it is due");
    b.refused(By::Readiness, at + MS, PACE);
    assert_eq!(b.at, at + 26 * MS);
    b.refused(By::Timer, at + 26 * MS, PACE);
    b.found_room(at + 27 * MS);
    assert_eq!(b.at, at + 52 * MS, "sooner than it was");
    b.refused(By::Timer, at + 30 * MS, PACE);
    assert_eq!(b.at, at + 80 * MS);
}

#[test]
fn a_silent_wait_yields_twice_and_then_grows_to_eight_milliseconds() {
    let now = Instant::now();
    let mut b = silent(now, 0, None);
    assert!(b.yielding && b.at == now);
    b.refused(By::Timer, now, PACE);
    assert!(b.yielding);
    let waits = [(1, false)].into_iter().chain([(2, false); 8]).chain([(4, true), (4, true), (8, true), (8, true)]);
    for (wait, longest) in waits {
        b.refused(By::Timer, now, PACE);
        assert!(!b.yielding);
        assert_eq!((b.at - now, b.is_long(now)), (wait * MS, longest));
    }
    for random in [0, 255] {
        b.refused(By::Timer, now, Pace { random, ..PACE });
        assert!((7 * MS..=9 * MS).contains(&(b.at - now)));
    }
    assert_eq!(silent(now, 13, Some(6 * MS)).at - now, 3 * MS, "half of the recovery");
    assert_eq!(silent(now, 13, Some(MS / 10)).at - now, MS);
}

#[test]
fn room_begins_a_silent_wait_anew() {
    let now = Instant::now();
    let mut b = silent(now, 13, None);
    assert_eq!(b.at, now + 8 * MS);
    b.found_room(now + 9 * MS);
    assert_eq!(b.at, now + 8 * MS, "it is due");
    b.refused(By::Timer, now, PACE);
    let mut b = silent(now, 13, None);
    b.found_room(now + 5 * MS);
    assert_eq!((b.at, b.yielding), (now + 6 * MS, false));
    for wait in [1, 2] {
        b.refused(By::Timer, now, PACE);
        assert_eq!((b.at, b.yielding), (now + wait * MS, false));
    }
    let mut b = silent(now, 0, None);
    b.found_room(now);
    b.refused(By::Timer, now, PACE);
    assert!(b.yielding, "its second time is still to come");
}

#[test]
fn a_call_that_ends_in_a_refusal_is_no_reason_to_wait_longer() {
    let now = Instant::now();
    let mut b = silent(now, 2, None);
    for _ in 0..5 {
        b.refused(By::Call, now, PACE);
        assert_eq!((b.at, b.yielding), (now + MS, false));
    }
    b.refused(By::Timer, now, PACE);
    assert_eq!(b.at, now + 2 * MS);
}

#[test]
fn how_long_it_took_is_smoothed_and_counted_once() {
    let now = Instant::now();
    let mut b = silent(now, 0, None);
    b.found_room(now + 16 * MS);
    b.found_room(now + 16 * MS);
    assert_eq!(b.recovery, Some(16 * MS), "nothing was refused between them");
    b.refused(By::Timer, now + 17 * MS, PACE);
    b.found_room(now + 24 * MS);
    assert_eq!(b.recovery, Some(15 * MS), "8 ms");
}

#[test]
fn a_wait_is_long_by_what_it_took_lately() {
    let now = Instant::now();
    for (recovery, ms) in [(10, 20), (60, 100)] {
        let b = silent(now, 11, Some(recovery * MS));
        assert!(!b.is_long(now + ms * MS - MS / 10) && b.is_long(now + ms * MS));
        assert!(!silent(now, 10, Some(recovery * MS)).is_long(now + ms * MS));
    }
}

#[test]
fn many_bottlenecks_are_tried_less_often() {
    let now = Instant::now();
    let pace = |ms| Pace { spacing: ms * MS, ..PACE };
    let mut b = Backoff::new(Class::Silent, now, Some(MS), pace(20));
    assert_eq!((b.at, b.yielding), (now + 20 * MS, false));
    b.refused(By::Timer, now, pace(3));
    assert_eq!(b.at, now + 3 * MS);
    assert!(Backoff::new(Class::Silent, now, None, pace(1)).yielding);
    let mut b = silent(now, 13, None);
    b.refused(By::Timer, now, Pace { longest: Some(2 * MS), ..PACE });
    assert_eq!(b.at, now + 2 * MS, "or more often");
}

/// What a sender does that tries for all, from then on.
fn prober(class: Class, now: Instant) -> Parked {
    let mut parked = Parked::new(class, Bottleneck::Sender(1), now);
    parked.placed(&place(true, now), now);
    parked
}

fn place(probes: bool, at: Instant) -> Place {
    Place { called: false, probes, at, yielding: false }
}

fn refused(parked: &mut Parked, class: Class, by: By, at: Instant) -> (Renew, bool) {
    (parked.refused(class, Bottleneck::Sender(1), by, at), parked.listening)
}

#[test]
fn a_worthless_wake_registers_anew_once_per_interval_and_then_the_timer_counts() {
    let now = Instant::now();
    let mut p = prober(Class::Advised, now);
    assert!(p.listening);
    assert_eq!(refused(&mut p, Class::Advised, By::Call, now), (Renew::No, true));
    assert_eq!(refused(&mut p, Class::Advised, By::Readiness, now), (Renew::No, true), "an edge from before");
    assert_eq!(refused(&mut p, Class::Advised, By::Readiness, now + 24 * MS), (Renew::No, false));
    assert_eq!(refused(&mut p, Class::Advised, By::Timer, now + 25 * MS), (Renew::Yes, true));
    assert_eq!(refused(&mut p, Class::Advised, By::Readiness, now + 49 * MS), (Renew::No, false));

    let mut p = prober(Class::Advised, now);
    assert_eq!(refused(&mut p, Class::Advised, By::Readiness, now), (Renew::No, true));
    assert_eq!(refused(&mut p, Class::Advised, By::Readiness, now + 25 * MS), (Renew::Yes, true));
    assert_eq!(refused(&mut p, Class::Advised, By::Readiness, now + 49 * MS), (Renew::No, false), "registered lately");
}

#[test]
fn the_class_may_change() {
    let now = Instant::now();
    let mut p = prober(Class::Silent, now);
    assert!(!p.listening);
    assert_eq!(refused(&mut p, Class::Silent, By::Timer, now), (Renew::No, false));
    assert_eq!(refused(&mut p, Class::Advised, By::Timer, now + 30 * MS), (Renew::Yes, true));
    for ms in [31, 32] {
        assert_eq!(refused(&mut p, Class::Advised, By::Readiness, now + ms * MS).0, Renew::No);
    }
    assert_eq!(refused(&mut p, Class::Silent, By::Readiness, now), (Renew::No, false));
    assert_eq!(p.bottleneck, Bottleneck::Sender(1));
}

#[test]
fn only_the_one_that_tries_for_all_listens() {
    let now = Instant::now();
    let mut p = Parked::new(Class::Advised, Bottleneck::Socket, now);
    p.placed(&place(false, now), now);
    assert!(!p.listening);
    p.placed(&place(true, now), now);
    assert!(p.listening);
    // Readiness is worthless, until the timer fires; being told again that it is the one changes nothing.
    for _ in 0..2 {
        refused(&mut p, Class::Advised, By::Readiness, now);
    }
    p.placed(&place(true, now), now);
    assert!(!p.listening);
    p.placed(&place(false, now), now);
    p.placed(&place(true, now + 20 * MS), now + 20 * MS);
    assert!(p.listening);
    assert_eq!(refused(&mut p, Class::Advised, By::Readiness, now + 20 * MS), (Renew::No, true), "an edge from before");
    assert_eq!(refused(&mut p, Class::Advised, By::Readiness, now + 44 * MS), (Renew::No, false));
}

#[test]
fn after_room_for_a_part_the_next_event_is_waited_for_whatever_those_before_were_worth() {
    let now = Instant::now();
    let mut p = prober(Class::Advised, now);
    for listening in [true, false] {
        assert_eq!(refused(&mut p, Class::Advised, By::Readiness, now), (Renew::No, listening));
    }
    p.found_room(now + 2 * MS);
    assert!(p.listening && p.blocked_since == now + 2 * MS);
    for listening in [true, false] {
        assert_eq!(refused(&mut p, Class::Advised, By::Readiness, now + 2 * MS), (Renew::No, listening));
    }
    // No event counts for one that does not try for all, or that was promised none.
    p.placed(&place(false, now), now);
    p.found_room(now + 4 * MS);
    assert!(!p.listening);
    let mut p = prober(Class::Silent, now);
    p.found_room(now);
    assert!(!p.listening);
}
