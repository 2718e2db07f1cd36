use super::*;

fn at(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 51_820))
}

/// Of a name that was resolved to these.
fn named(now: Instant, addresses: &[u8]) -> Endpoints {
    let mut endpoints = Endpoints::new(Some(Endpoint::Name("peer.example".to_owned(), 51_820)));
    endpoints.resolve_soon(now);
    assert_eq!(endpoints.start_resolving(now), Some(("peer.example".to_owned(), 51_820)));
    assert_eq!(endpoints.start_resolving(now), None, "one at a time");
    endpoints.resolved(now, Ok(addresses.iter().copied().map(at).collect())).unwrap();
    endpoints
}

#[test]
fn after_each_failed_handshake_the_next_address_is_tried() {
    let now = Instant::now();
    let mut endpoints = named(now, &[1, 2, 2, 3]);
    let mut current = endpoints.first().unwrap();
    let mut tried = vec![current];
    for _ in 0..4 {
        current = endpoints.handshake_failed(now, current).unwrap();
        tried.push(current);
    }
    assert_eq!(tried, [1, 2, 3, 1, 2].map(at));
    assert_eq!(named(now, &[1]).handshake_failed(now, at(1)), None, "there is no other");
    assert_eq!(Endpoints::new(None).handshake_failed(now, at(1)), None);
}

#[test]
fn the_address_that_answered_is_preferred() {
    let now = Instant::now();
    let mut endpoints = named(now, &[1, 2]);
    endpoints.on_answer(at(2));
    assert_eq!(endpoints.first(), Some(at(2)));
    // A peer that has moved may come back to where it is configured.
    endpoints.on_answer(at(9));
    assert_eq!(
        [9, 1, 2].map(|current| endpoints.handshake_failed(now, at(current))),
        [1, 2, 9].map(|next| Some(at(next)))
    );
    let mut fixed = Endpoints::new(Some(Endpoint::Address(at(1))));
    assert_eq!(fixed.first(), Some(at(1)));
    fixed.on_answer(at(9));
    assert_eq!(fixed.handshake_failed(now, at(9)), Some(at(1)));
    assert_eq!(fixed.start_resolving(now), None);
}

#[test]
fn a_name_is_resolved_again_while_handshakes_fail_at_doubling_intervals() {
    let begin = Instant::now();
    let mut endpoints = named(begin, &[1]);
    assert_eq!(endpoints.start_resolving(begin + LAST_INTERVAL), None, "nothing has failed");
    let mut resolved = Vec::new();
    for second in 0..400 {
        let now = begin + Duration::from_secs(second);
        if second % 5 == 0 {
            endpoints.handshake_failed(now, at(1));
        }
        if endpoints.start_resolving(now).is_some() {
            resolved.push(second);
            endpoints.resolved(now, Ok(vec![at(1)])).unwrap();
        }
    }
    assert_eq!(resolved, [0, 5, 15, 35, 75, 155, 275, 395]);
    endpoints.on_answer(at(1));
    assert_eq!(endpoints.start_resolving(begin + LAST_INTERVAL * 10), None);
}

#[test]
fn a_failed_resolution_is_repeated_and_keeps_the_addresses() {
    let now = Instant::now();
    let mut endpoints = named(now, &[1]);
    endpoints.resolve_soon(now);
    assert!(endpoints.start_resolving(now).is_some());
    assert!(endpoints.resolved(now, Ok(Vec::new())).is_err());
    assert_eq!(endpoints.first(), Some(at(1)));
    assert!(endpoints.start_resolving(now).is_none());
    assert!(endpoints.start_resolving(now + FIRST_INTERVAL).is_some());
    assert!(endpoints.resolved(now, Err(io::ErrorKind::TimedOut.into())).is_err());
    assert!(endpoints.start_resolving(now + FIRST_INTERVAL).is_none());
    assert!(endpoints.start_resolving(now + FIRST_INTERVAL * 2).is_some());
}

#[test]
fn an_address_that_the_name_no_longer_has_is_not_tried_again() {
    let now = Instant::now();
    let mut endpoints = named(now, &[1]);
    endpoints.on_answer(at(1));
    endpoints.handshake_failed(now, at(1));
    assert!(endpoints.start_resolving(now).is_some());
    endpoints.resolved(now, Ok(vec![at(4)])).unwrap();
    assert!(!endpoints.contains(at(1)));
    assert_eq!(endpoints.first(), Some(at(4)));
}

#[test]
fn mapped_addresses_are_ipv4_and_others_stay() {
    let parsed = |text: &str| text.parse::<SocketAddr>().unwrap();
    assert_eq!(canonical(parsed("[::ffff:192.0.2.1]:9")), parsed("192.0.2.1:9"));
    for same in ["192.0.2.1:9", "[2001:db8::1]:9", "[fe80::1%3]:9", "[::192.0.2.1]:9"] {
        assert_eq!(canonical(parsed(same)), parsed(same));
    }
}
