//! Allocations, as an operator sees and ends them.

use super::*;

#[test]
fn sessions_are_listed_with_what_they_have_relayed() {
    let mut b = Bench::new();
    let created = b.now.instant;
    let id = b.allocate(CLIENT);
    b.pass(7);
    let second = b.allocate("192.0.2.2:40000");
    b.channel(CLIENT, 0x4001, PEER);
    let data = ChannelData::header(ChannelNumber::new(0x4001).unwrap(), 5);
    b.bytes(CLIENT, &[&data[..], b"hello"].concat());
    b.server.handle_peer(b.now.instant, id, PeerAddr(addr(PEER)), 11).unwrap();

    let ids: Vec<_> = b.server.sessions(0..b.server.indices()).map(|session| session.id).collect();
    assert_eq!(ids, [id, second]);
    let session = b.server.session(id).unwrap();
    assert_eq!((session.five_tuple, session.user), (from(CLIENT), "alice"));
    assert_eq!((session.created, session.expires), (created, Some(created + Duration::from_secs(600))));
    assert_eq!(session.relayed.v4.unwrap().0, addr(RELAYED));
    assert_eq!((session.bytes_to_peers, session.bytes_to_client), (5, 11));
    assert_eq!((session.permissions, session.channels), (1, 1));
    assert_eq!(b.server.sessions(1..usize::MAX).map(|session| session.id).collect::<Vec<_>>(), [second]);
    assert_eq!(b.server.sessions(b.server.indices()..usize::MAX).count(), 0);
}

#[test]
fn allocation_without_a_bound_socket_is_no_session() {
    let mut b = Bench::new();
    let (action, _) = b.request(CLIENT, Method::ALLOCATE, &udp);
    let Action::Bind(Bind { id, .. }) = action else { panic!("{action:?}") };
    assert_eq!(b.server.sessions(0..usize::MAX).count(), 0);
    assert!(b.server.session(id).is_none() && b.server.end(id).is_none());
    assert_eq!(b.server.allocations(), 1, "it is still being bound");
}

#[test]
fn operator_ends_one_allocation_and_its_client_gets_437() {
    let mut b = Bench::new();
    let (id, other) = (b.allocate(CLIENT), b.allocate("192.0.2.2:40000"));
    while b.server.poll_event().is_some() {}
    assert_eq!(b.server.end(id), Some(V4));
    assert!(b.server.end(id).is_none() && b.server.session(id).is_none(), "ended already");
    let event = b.server.poll_event().unwrap();
    assert!(matches!(event.kind, EventKind::Ended { why: Ending::Operator, .. }), "{event:?}");
    assert_eq!(b.server.poll_event(), None);
    let (_, reply) = b.request(CLIENT, Method::REFRESH, &|_| ());
    assert_eq!(code(&reply, true), 437);
    assert_eq!(b.server.sessions(0..usize::MAX).map(|session| session.id).collect::<Vec<_>>(), [other]);
    // The next one in its place is another one.
    assert_ne!(b.allocate(CLIENT), id);
    assert_eq!(b.server.end(id), None);
}

#[test]
fn id_is_read_as_it_is_written() {
    let id = AllocationId { index: 7, generation: u32::MAX };
    assert_eq!(id.to_string(), "7-4294967295");
    assert_eq!("7-4294967295".parse(), Ok(id));
    for text in ["", "7", "7-", "-7", "7-4294967296", "7-1-1", "a-1", " 7-1"] {
        assert!(text.parse::<AllocationId>().is_err(), "{text}");
    }
}
