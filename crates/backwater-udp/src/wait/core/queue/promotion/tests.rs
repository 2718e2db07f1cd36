use super::*;

const MS: Duration = Duration::from_millis(1);

fn path(port: u16) -> Path {
    (([192, 0, 2, 1], port).into(), None)
}

#[test]
fn a_key_is_busy_from_sixteen_in_a_send_or_twenty_five_in_a_second() {
    let (mut promotion, mut now) = (Promotion::new(), Instant::now());
    assert!(!promotion.is_busy(1, path(1), 15, now) && promotion.is_busy(2, path(2), 16, now));
    for _ in 0..100 {
        now += 42 * MS;
        assert!(!promotion.is_busy(3, path(3), 1, now), "24 a second");
    }
    let busy: Vec<_> = (0..30u32).filter(|n| promotion.is_busy(4, path(4), 1, now + *n * 40 * MS)).collect();
    assert_eq!(busy.first(), Some(&24), "the 25th within a second");
}

#[test]
fn another_path_of_the_same_key_is_counted_anew() {
    let (mut promotion, now) = (Promotion::new(), Instant::now());
    assert!((0..24).all(|_| !promotion.is_busy(1, path(1), 1, now)));
    assert!((0..24).all(|_| !promotion.is_busy(1, path(2), 1, now)));
    assert!(promotion.is_busy(1, path(2), 1, now));
}

#[test]
fn a_key_whose_destination_has_failed_waits_ten_seconds() {
    let (mut promotion, mut now) = (Promotion::new(), Instant::now());
    assert!(promotion.is_busy(1, path(1), 16, now));
    promotion.promoted(1);
    promotion.demoted(1, path(1), now);
    for _ in 0..10 {
        assert!(!promotion.is_busy(1, path(1), 64, now));
        now += SECOND - MS;
    }
    assert!(!promotion.is_busy(1, path(1), 64, now + 9 * MS));
    assert!(promotion.is_busy(1, path(1), 64, now + 10 * MS), "when they are over");
}

#[test]
fn keys_without_number_cost_bounded_memory() {
    let (mut promotion, now) = (Promotion::new(), Instant::now());
    for key in 0..10_000u32 {
        promotion.is_busy(key, path(1), 1, now);
        promotion.demoted(key, path(1), now);
    }
    assert_eq!(promotion.rates.len(), MOST);
    assert!(promotion.is_busy(20_000, path(1), 16, now), "a full send is seen all the same");
    promotion.is_busy(20_000, path(1), 1, now + 11 * SECOND);
    assert_eq!(promotion.rates.len(), 1, "those that are over make room");
}

#[test]
fn a_second_of_a_key_ends_where_the_next_begins() {
    let (mut promotion, now) = (Promotion::new(), Instant::now());
    assert!(!promotion.is_busy(1, path(1), 12, now) && !promotion.is_busy(1, path(1), 12, now + 999 * MS));
    assert!(!promotion.is_busy(1, path(1), 1, now + SECOND));
    assert!(!promotion.is_busy(2, path(2), 12, now) && !promotion.is_busy(2, path(2), 12, now + 999 * MS));
    assert!(promotion.is_busy(2, path(2), 1, now + 999 * MS), "the 25th before the second is over");
}

#[test]
fn a_key_that_has_had_a_socket_is_counted_anew() {
    let (mut promotion, now) = (Promotion::new(), Instant::now());
    assert!((0..24).all(|_| !promotion.is_busy(1, path(1), 1, now)) && promotion.is_busy(1, path(1), 1, now));
    promotion.promoted(1);
    assert!((0..24).all(|_| !promotion.is_busy(1, path(1), 1, now)));
}

/// As many keys as are counted at a time, and one more, which is not.
fn full(now: Instant) -> Promotion<u32> {
    let mut promotion = Promotion::new();
    for key in 0..MOST as u32 {
        assert!(!promotion.is_busy(key, path(1), 1, now));
    }
    assert!((0..30).all(|_| !promotion.is_busy(1000, path(1), 1, now)), "it is not counted");
    promotion
}

#[test]
fn a_key_that_is_not_counted_is_busy_with_a_full_send_alone() {
    let now = Instant::now();
    let mut promotion = full(now);
    assert!(!promotion.is_busy(1000, path(1), 15, now) && promotion.is_busy(1000, path(1), 16, now));
    assert!((1..24).all(|_| !promotion.is_busy(0, path(1), 1, now)) && promotion.is_busy(0, path(1), 1, now));
}

#[test]
fn a_failed_destination_is_remembered_while_there_is_room_or_its_key_is_known() {
    let now = Instant::now();
    let mut promotion = full(now);
    promotion.demoted(0, path(1), now);
    promotion.demoted(1000, path(1), now);
    assert!(!promotion.is_busy(0, path(1), 16, now), "it was known");
    assert!(promotion.is_busy(1000, path(1), 16, now), "there was no room for it");
}

/// A key is forgotten when its second is over, and a failed one when its pause is; they are looked for once a second.
#[test]
fn keys_that_are_over_are_looked_for_once_a_second() {
    let now = Instant::now();
    let mut promotion = full(now);
    promotion.demoted(0, path(1), now);
    let is_counted = |promotion: &mut Promotion<u32>, key, at| {
        promotion.is_busy(key, path(2), 1, at);
        promotion.rates.contains_key(&key)
    };
    assert!(!is_counted(&mut promotion, 1000, now + 999 * MS));
    assert!(is_counted(&mut promotion, 1000, now + SECOND));
    assert_eq!(promotion.rates.len(), 2, "the failed one and the new one");
    // Full again, of keys of different ages.
    for key in 2000..2000 + MOST as u32 - 2 {
        assert!(is_counted(&mut promotion, key, now + SECOND + 500 * MS));
    }
    assert!(!is_counted(&mut promotion, 3000, now + 2 * SECOND - MS));
    // The first of them is over, but they have been looked for a moment ago.
    assert!(is_counted(&mut promotion, 3000, now + 2 * SECOND));
    assert!(!is_counted(&mut promotion, 3001, now + 2 * SECOND + 500 * MS));
    assert!(is_counted(&mut promotion, 3001, now + 3 * SECOND));
}

#[test]
fn a_failed_destination_is_forgotten_when_its_pause_is_over() {
    for (at, is_kept) in [(10 * SECOND - MS, true), (10 * SECOND, false)] {
        let (mut promotion, now) = (Promotion::new(), Instant::now());
        promotion.demoted(0, path(1), now);
        for key in 1..MOST as u32 {
            promotion.is_busy(key, path(1), 1, now);
        }
        promotion.is_busy(1000, path(1), 1, now + at);
        assert_eq!((promotion.rates.contains_key(&0), promotion.rates.len()), (is_kept, 1 + usize::from(is_kept)));
    }
}
