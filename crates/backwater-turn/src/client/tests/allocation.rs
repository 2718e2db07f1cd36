//! The life of an allocation.

use super::*;
use crate::PerFamily;

#[test]
fn allocation_is_asked_for_with_what_the_configuration_says() {
    let mut b = Bench::with(|config| {
        config.families = Families { v4: true, v6: true };
        config.port = PortRequest::Even { reserve_next: false };
        (config.dont_fragment, config.mobility) = (true, true);
        config.lifetime = Some(secs(1800));
    });
    let request = b.request(Method::ALLOCATE);
    assert_eq!(get(&request), Some(RequestedTransport::UDP));
    assert_eq!(get(&request), Some(AdditionalAddressFamily(AddressFamily::Ipv6)));
    assert!(has(&request, crate::address::DRAFT_ADDITIONAL_ADDRESS_FAMILY), "the number that coturn knows");
    assert_eq!((get(&request), get(&request)), (Some(EvenPort { reserve_next: false }), Some(DontFragment)));
    assert_eq!((get(&request), get(&request)), (Some(MobilityTicket(&[])), Some(Lifetime(1800))));

    let mut b = Bench::with(|config| config.families = Families { v4: false, v6: true });
    assert_eq!(get(&b.request(Method::ALLOCATE)), Some(RequestedAddressFamily(AddressFamily::Ipv6)));
    let mut b = Bench::with(|config| config.port = PortRequest::Reserved([5; 8]));
    let request = b.request(Method::ALLOCATE);
    assert_eq!(get(&request), Some(ReservationToken([5; 8])));
    assert!(!has(&request, AttributeType::REQUESTED_ADDRESS_FAMILY));
    let mut b = Bench::new();
    let plain = b.request(Method::ALLOCATE);
    assert_eq!(Message::parse(&plain).unwrap().attributes().count(), 1);
}

#[test]
fn dual_allocation_tells_both_addresses_or_why_one_is_missing() {
    let v6 = "[2001:db8:f::1]:50001";
    let both = |config: &mut Config| config.families = Families { v4: true, v6: true };
    let mut b = Bench::with(both);
    b.challenge();
    b.allocate(&|w| put(w, &XorRelayedAddress(addr(v6))));
    let [Event::Allocated(allocated)] = &b.events()[..] else { panic!() };
    assert_eq!(allocated.relayed, PerFamily { v4: Some(addr(RELAYED)), v6: Some(addr(v6)) });
    assert_eq!((allocated.mapped, allocated.lifetime), (Some(addr(MAPPED)), secs(600)));

    let mut b = Bench::with(both);
    b.challenge();
    let (family, code) = (AddressFamily::Ipv6, Code::ADDRESS_FAMILY_NOT_SUPPORTED);
    b.allocate(&|w| put(w, &AddressErrorCode { family, code, reason: "" }));
    let [Event::Allocated(allocated)] = &b.events()[..] else { panic!() };
    assert_eq!((allocated.relayed.v6, allocated.missing), (None, Some((family, code))));
}

#[test]
fn allocation_is_refreshed_at_half_of_its_lifetime() {
    let mut b = Bench::allocated_with(|config| config.keepalive = None);
    assert_eq!(b.wait(), secs(300));
    let request = b.request(Method::REFRESH);
    b.succeed(&request, &|w| put(w, &Lifetime(1000)));
    assert_eq!(b.wait(), secs(500));
    b.request(Method::REFRESH);
}

#[test]
fn lost_messages_are_sent_again_and_are_the_same() {
    let mut b = Bench::new();
    let first = b.request(Method::ALLOCATE);
    assert_eq!(b.wait(), Duration::from_millis(500));
    assert_eq!(b.request(Method::ALLOCATE), first);
    assert_eq!(b.wait(), secs(1));
    assert_eq!(b.request(Method::ALLOCATE), first);
    b.challenge_with(&first, Code::UNAUTHENTICATED, b"nonce");
    // The round trip is unknown: the longer wait stays.
    b.request(Method::ALLOCATE);
    assert_eq!(b.wait(), secs(2));
}

#[test]
fn server_that_does_not_answer_is_asked_less_and_less_often() {
    let mut b = Bench::new();
    let (mut first, mut before) = (vec![], vec![]);
    let start = b.now;
    for _ in 0..200 {
        for request in b.sent() {
            if request != before {
                first.push((b.now - start).as_secs());
                before = request;
            }
        }
        b.wait();
    }
    let gaps: Vec<_> = first.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.is_sorted_by(|a, b| a <= &(b + 20)), "{gaps:?}");
    assert!(gaps.iter().all(|gap| (39..120).contains(gap)), "{gaps:?}");
    assert!(b.events().contains(&Event::NoResponse(Method::ALLOCATE)));
}

#[test]
fn allocation_ends_when_nothing_answers_and_another_is_made() {
    let mut b = Bench::allocated();
    b.bound(PEER);
    let (start, mut events) = (b.now, vec![]);
    while !events.contains(&Event::Lost(Loss::Expired)) {
        b.wait();
        b.sent();
        events.extend(b.events());
    }
    assert_eq!(b.now - start, secs(600));
    assert!(events.contains(&Event::NoResponse(Method::REFRESH)));
    b.now += secs(60);
    b.client.handle_timeout(b.now);
    b.allocate(&|_| ());
    let request = b.request(Method::CHANNEL_BIND);
    assert_eq!(get(&request), Some(XorPeerAddress(addr(PEER))));
}

#[test]
fn server_that_has_restarted_gets_the_same_channels_again() {
    let mut b = Bench::allocated();
    let channel = b.bound(PEER);
    b.pass(secs(100));
    b.client.refresh(b.now);
    for request in b.sent() {
        if !Message::parse(&request).unwrap().is(Class::Request, Method::BINDING) {
            b.refuse(&request, Code::ALLOCATION_MISMATCH);
            break;
        }
    }
    assert_eq!(b.events(), [Event::Lost(Loss::Unknown)]);
    assert_eq!(b.client.send(b.now, channel, &mut [0; 8]), Err(SendError::NoAllocation));
    b.allocate(&|_| ());
    assert_eq!(b.client.send(b.now, channel, &mut [0; 8]), Err(SendError::NotGranted));
    let request = b.request(Method::CHANNEL_BIND);
    assert_eq!(get(&request), Some(channel));
    b.succeed(&request, &|_| ());
    assert!(b.client.send(b.now, channel, &mut [0; 8]).is_ok());
}

#[test]
fn closed_client_deletes_its_allocation() {
    let mut b = Bench::allocated();
    b.client.close(b.now);
    let request = b.request(Method::REFRESH);
    assert_eq!(get(&request), Some(Lifetime(0)));
    assert!(!b.client.is_closed());
    b.succeed(&request, &|w| put(w, &Lifetime(0)));
    assert_eq!((b.events(), b.client.is_closed()), (vec![Event::Closed], true));
    b.quiet();
    assert_eq!(b.client.poll_timeout(), None);
    // Nothing to delete, nothing to wait for.
    let mut b = Bench::new();
    b.client.close(b.now);
    assert!(b.client.is_closed());
    // A request in flight may have made an allocation.
    let mut b = Bench::new();
    b.challenge();
    b.request(Method::ALLOCATE);
    b.client.close(b.now);
    let request = b.request(Method::REFRESH);
    b.refuse(&request, Code::ALLOCATION_MISMATCH);
    assert!(b.client.is_closed());
}

#[test]
fn ticket_takes_the_allocation_to_another_address() {
    let mut b = Bench::with(|config| config.mobility = true);
    b.challenge();
    b.allocate(&|w| put(w, &MobilityTicket(b"first")));
    b.events();
    let channel = b.bound(PEER);
    b.client.rebound(b.now);
    assert_eq!(b.client.send(b.now, channel, &mut [0; 8]), Err(SendError::NoAllocation));
    let request = b.request(Method::REFRESH);
    assert_eq!(get(&request), Some(MobilityTicket(b"first")));
    b.succeed(&request, &|w| {
        put(w, &Lifetime(600));
        put(w, &MobilityTicket(b"second"));
    });
    assert_eq!(b.events(), [Event::Moved]);
    assert!(b.client.send(b.now, channel, &mut [0; 8]).is_ok());
    let request = b.request(Method::CHANNEL_BIND);
    // A NAT that gives the client another address shows by a 437.
    b.refuse(&request, Code::ALLOCATION_MISMATCH);
    let request = b.request(Method::REFRESH);
    assert_eq!(get(&request), Some(MobilityTicket(b"second")));
    b.refuse(&request, Code::MOBILITY_FORBIDDEN);
    assert_eq!(b.events(), [Event::Lost(Loss::Refused(Code::MOBILITY_FORBIDDEN))]);
}

#[test]
fn client_without_a_ticket_allocates_anew_at_another_address() {
    let mut b = Bench::allocated();
    b.client.rebound(b.now);
    assert_eq!(b.events(), [Event::Lost(Loss::Rebound)]);
    b.request(Method::ALLOCATE);
}

#[test]
fn keepalive_finds_out_that_a_nat_has_changed_the_address() {
    let mut b = Bench::allocated();
    assert_eq!(b.wait(), secs(15));
    let request = b.request(Method::BINDING);
    b.respond(&request, SUCCESS, false, &|w| put(w, &XorMappedAddress(addr(MAPPED))));
    b.quiet();
    b.wait();
    let request = b.request(Method::BINDING);
    b.respond(&request, SUCCESS, false, &|w| put(w, &XorMappedAddress(addr("192.0.2.9:1"))));
    assert_eq!(b.events(), [Event::Lost(Loss::Rebound)]);
    b.request(Method::ALLOCATE);

    let mut b = Bench::with(|config| config.mobility = true);
    b.challenge();
    b.allocate(&|w| put(w, &MobilityTicket(b"ticket")));
    b.wait();
    let request = b.request(Method::BINDING);
    b.respond(&request, SUCCESS, false, &|w| put(w, &XorMappedAddress(addr("192.0.2.9:1"))));
    let request = b.request(Method::REFRESH);
    assert_eq!(get(&request), Some(MobilityTicket(b"ticket")));
}

/// After a short life, the next attempt waits: a server that forgets at once would be asked without a pause.
#[test]
fn allocation_that_is_lost_at_once_is_followed_by_a_pause() {
    let mut b = Bench::allocated();
    for pause in [1, 2, 4] {
        b.client.refresh(b.now);
        let request = b.request(Method::REFRESH);
        b.refuse(&request, Code::ALLOCATION_MISMATCH);
        assert_eq!(b.events(), [Event::Lost(Loss::Unknown)]);
        let waited = b.wait();
        assert!((secs(pause)..=secs(pause) * 5 / 4).contains(&waited), "{waited:?}");
        b.allocate(&|_| ());
        b.events();
    }
}

#[test]
fn data_in_both_directions_needs_no_keepalive() {
    let mut b = Bench::allocated();
    let channel = b.bound(PEER);
    for _ in 0..14 {
        b.pass(secs(10));
        b.client.send(b.now, channel, &mut [0; 8]).unwrap();
        let data = [&ChannelData::header(channel, 1)[..], b"x"].concat();
        let input = b.client.handle_input(b.now, addr(SERVER), &data);
        assert_eq!(input, Input::Data { peer: addr(PEER), payload: 4..5 });
        b.quiet();
    }
}

#[test]
fn stream_sends_each_request_once_and_waits_for_a_connection() {
    let mut b = Bench::with(|config| config.protocol = Protocol::Tcp);
    b.request(Method::ALLOCATE);
    assert_eq!(b.wait(), Duration::from_millis(39_500));
    assert_eq!(b.events(), [Event::NoResponse(Method::ALLOCATE)]);
    b.client.disconnected(b.now);
    b.quiet();
    b.client.rebound(b.now);
    b.challenge();
    b.allocate(&|_| ());
    b.events();
    b.client.disconnected(b.now);
    assert_eq!(b.events(), [Event::Lost(Loss::Rebound)]);
    b.quiet();
    assert_eq!(b.client.poll_timeout(), None);
    b.client.rebound(b.now);
    b.request(Method::ALLOCATE);
}
