use super::*;

fn message(receiver: [u8; 4], counter: u64) -> Vec<u8> {
    [&[4, 0, 0, 0][..], &receiver, &counter.to_le_bytes(), &[7; 16]].concat()
}

/// Bytes of IP and UDP.
fn outer(is_v6: bool) -> usize {
    if is_v6 { 48 } else { 28 }
}

/// Has sent the datagrams 100 to 109 to a session.
fn path(is_v6: bool) -> PathMtu {
    let mut path = PathMtu::default();
    path.reset(outer(is_v6));
    path.set_route(Some(1500));
    path.on_sent(&message([1, 2, 3, 4], 100), 10);
    path
}

#[test]
fn an_icmp_message_counts_if_it_quotes_what_was_sent_lately() {
    let now = Instant::now();
    let mut path = path(false);
    let sent = message([1, 2, 3, 4], 109);
    for not_sent in
        [&[][..], &sent[..15], &message([1, 2, 3, 5], 105), &message([1, 2, 3, 4], 110), &[1; 32], &message([0; 4], 0)]
    {
        assert!(!path.learn(now, 1400, not_sent), "{not_sent:?}");
        assert_eq!(path.fits(now), 1440);
    }
    assert!(path.learn(now, 1400, &sent));
    assert_eq!(path.fits(now), 1340);
    // The session before the present one counts, too; the one before that does not, and nothing of long ago.
    path.on_sent(&message([2; 4], 0), 1);
    assert!(path.learn(now, 1450, &sent));
    path.on_sent(&message([3; 4], LATELY), 1);
    assert!(!path.learn(now, 1400, &sent));
    assert!(!path.learn(now, 1400, &message([3; 4], 0)));
    assert!(path.learn(now, 1450, &message([3; 4], 1)));
}

#[test]
fn zeros_match_nothing_before_the_first_datagram() {
    assert!(!PathMtu::default().learn(Instant::now(), 1400, &message([0; 4], 0)));
}

#[test]
fn what_was_learnt_is_forgotten_after_ten_minutes_or_when_longer_datagrams_come() {
    let now = Instant::now();
    let mut path = path(false);
    assert!(path.learn(now, 1400, &message([1, 2, 3, 4], 109)));
    assert_eq!(path.fits(now + LIFETIME), 1340);
    assert_eq!(path.fits(now + LIFETIME + Duration::from_secs(1)), 1440);
    path.on_received(now + SETTLED, 1372);
    assert_eq!(path.fits(now + SETTLED), 1340, "1,400 bytes with its headers");
    path.on_received(now, 1373);
    assert_eq!(path.fits(now + SETTLED), 1340, "not settled");
    path.on_received(now + SETTLED, 1373);
    assert_eq!(path.fits(now + SETTLED), 1440);
}

#[test]
fn another_path_begins_without_what_was_learnt() {
    let now = Instant::now();
    let mut path = path(false);
    assert!(path.learn(now, 1400, &message([1, 2, 3, 4], 109)));
    path.reset(outer(true));
    assert_eq!((path.fits(now), path.route()), (usize::MAX, None));
}

#[test]
fn ipv6_inside_has_its_least_mtu_and_is_fragmented_outside() {
    let now = Instant::now();
    for (is_v6, fits) in [(false, 1220), (true, 1200)] {
        let mut path = path(is_v6);
        assert!(!path.needs_fragments(now, 1420, false));
        // No less than 1,280 is believed.
        assert!(path.learn(now, 576, &message([1, 2, 3, 4], 100)));
        assert_eq!(path.fits(now), fits);
        assert_eq!((path.longest(now, false, false), path.longest(now, true, false)), (fits, 1280));
        assert!(path.needs_fragments(now, 1420, false));
    }
}

#[test]
fn a_configured_mtu_beyond_the_route_is_fragmented_and_a_default_one_is_told() {
    let now = Instant::now();
    let mut path = path(true);
    assert_eq!((path.longest(now, false, true), path.longest(now, false, false)), (usize::MAX, 1420));
    assert!(path.needs_fragments(now, 1421, true) && !path.needs_fragments(now, 1420, true));
    assert!(path.set_route(Some(1460)) && !path.set_route(Some(1460)));
    assert_eq!((path.longest(now, false, true), path.longest(now, false, false)), (usize::MAX, 1380));
    assert!(path.needs_fragments(now, 1420, true) && !path.needs_fragments(now, 1420, false));
    // Beyond the local network nobody carries more than 1,500 bytes, and not every router says so.
    path.set_route(Some(9000));
    assert!(path.needs_fragments(now, 8920, false) && !path.needs_fragments(now, 1420, false));
}
