//! Clients on connections (RFC 8656 §3.1).

use super::*;

fn tcp(client: &str) -> FiveTuple {
    FiveTuple { protocol: Protocol::Tcp, ..from(client) }
}

/// Allocates on a connection, with a ticket if `mobile`.
fn allocate(b: &mut Bench, mobile: bool) -> (AllocationId, Vec<u8>) {
    let request = b.signed(CLIENT, "alice", Method::ALLOCATE, &|w| {
        udp(w);
        if mobile {
            put(w, &MobilityTicket(&[]));
        }
    });
    let Action::Bind(bind) = b.bytes_from(tcp(CLIENT), &request).0 else { panic!() };
    let mut reply = [0; MAX_REPLY];
    let Action::Reply(len) = b.server.bound(b.now.instant, bind.id, relayed(RELAYED, None), &mut reply) else {
        panic!()
    };
    (bind.id, reply[..len].to_vec())
}

#[test]
fn one_address_has_an_allocation_over_tcp_and_another_over_udp() {
    let mut b = Bench::new();
    let over_udp = b.allocate(CLIENT);
    let (over_tcp, _) = allocate(&mut b, false);
    assert_ne!(over_udp, over_tcp);
    b.channel(CLIENT, 0x4000, PEER);
    let data = [0x40, 0, 0, 1, 9];
    assert!(matches!(b.bytes(CLIENT, &data).0, Action::Forward { via, .. } if via == over_udp));
    assert_eq!(b.bytes_from(tcp(CLIENT), &data).0, Action::Drop(DropReason::NoChannel));
    assert!(matches!(b.bytes(CLIENT, &data).0, Action::Forward { via, .. } if via == over_udp));
    assert_eq!(b.server.client_gone(tcp(CLIENT)), Some((over_tcp, V4)));
    assert!(matches!(b.bytes(CLIENT, &data).0, Action::Forward { via, .. } if via == over_udp));
}

#[test]
fn a_connection_that_ends_takes_its_allocation_along() {
    let mut b = Bench::new();
    let (id, _) = allocate(&mut b, false);
    assert_eq!(b.server.client_gone(from(CLIENT)), None, "UDP has no connection");
    assert_eq!(b.server.client_gone(tcp(CLIENT)), Some((id, V4)));
    assert_eq!((b.server.allocations(), b.server.client_gone(tcp(CLIENT))), (0, None));
    let ended = std::iter::from_fn(|| b.server.poll_event()).last().unwrap();
    assert!(matches!(ended.kind, EventKind::Ended { why: Ending::Disconnected, .. }), "{ended:?}");
    assert_eq!(ended.protocol, Protocol::Tcp);
    b.pass(4000);
    assert_eq!(b.server.expire(b.now.instant), None);
}

#[test]
fn a_mobile_allocation_outlives_its_connection_and_is_nobody_elses() {
    let mut b = Bench::new();
    let (id, reply) = allocate(&mut b, true);
    let ticket = Message::parse(&reply).unwrap().get::<MobilityTicket<'_>>().unwrap().unwrap().0.to_vec();
    assert_eq!((b.server.client_gone(tcp(CLIENT)), b.server.allocations()), (None, 1));
    // Another connection has the same addresses; it has an allocation of its own, which stays when the old one goes.
    assert_eq!(b.bytes_from(tcp(CLIENT), &[0x40, 0, 0, 1, 9]).0, Action::Drop(DropReason::NoAllocation));
    let (other, _) = allocate(&mut b, false);
    let request = b.signed("192.0.2.77:1", "alice", Method::REFRESH, &|w| put(w, &MobilityTicket(&ticket)));
    let Action::Handover(request) = b.bytes("192.0.2.77:1", &request).0 else { panic!() };
    assert_eq!(request.id(), id);
    let detached = b.server.detach(&request);
    let (moved, action) = b.server.attach(b.now.instant, &request, detached, &mut [0; MAX_REPLY]);
    assert!(moved.is_some() && matches!(action, Action::Reply(_)), "{action:?}");
    assert_eq!(b.server.client_gone(tcp(CLIENT)), Some((other, V4)));
    assert!(b.server.has_allocation(from("192.0.2.77:1")));
}

/// No source of a connection is forged: what keeps forged ones from directing answers elsewhere is not for connections.
#[test]
fn an_unauthenticated_request_on_a_connection_is_always_answered() {
    let mut b = Bench::new();
    let shortest = plain(Class::Request, Method::ALLOCATE, &|_| ());
    for _ in 0..200 {
        let (action, reply) = b.bytes_from(tcp(CLIENT), &shortest);
        assert!(matches!(action, Action::Reply(_)), "{action:?}");
        assert_eq!(code(&reply, false), 401);
    }
}
