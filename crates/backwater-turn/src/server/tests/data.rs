//! The way of data between a client and its peers.

use super::*;

#[test]
fn data_passes_with_a_permission_or_a_channel() {
    let mut b = Bench::new();
    let send = plain(Class::Indication, Method::SEND, &|w| {
        w.attribute(&XorPeerAddress(addr(PEER))).unwrap().attribute(&Data(b"hello")).unwrap();
    });
    assert_eq!(b.bytes(CLIENT, &send).0, Action::Drop(DropReason::NoAllocation));
    let id = b.allocate(CLIENT);
    let peer = PeerAddr(addr(PEER));
    assert_eq!(b.bytes(CLIENT, &send).0, Action::Drop(DropReason::NoPermission));
    assert_eq!(b.server.handle_peer(b.now.instant, id, peer, 1), Err(DropReason::NoPermission));
    assert!(matches!(b.permit(CLIENT, "203.0.113.7:1"), Action::Reply(_)));
    let (action, _) = b.bytes(CLIENT, &send);
    let Action::Forward { via, to, range, .. } = action else { panic!("{action:?}") };
    assert_eq!((via, to, &send[range]), (id, peer, &b"hello"[..]));
    assert_eq!(b.server.handle_peer(b.now.instant, id, peer, 1), Ok((from(CLIENT), Framing::Indication)));

    let data = ChannelData::header(ChannelNumber::MIN, 5);
    let data = [&data[..], b"hello\0\0\0"].concat();
    assert_eq!(b.bytes(CLIENT, &data).0, Action::Drop(DropReason::NoChannel));
    assert!(matches!(b.channel(CLIENT, 0x4000, PEER).0, Action::Reply(_)));
    assert_eq!(b.bytes(CLIENT, &data).0, Action::Forward { via: id, to: peer, range: 4..9, dont_fragment: false });
    assert_eq!(b.bytes("192.0.2.1:1", &data).0, Action::Drop(DropReason::NoAllocation));
    assert_eq!(
        b.server.handle_peer(b.now.instant, id, peer, 1),
        Ok((from(CLIENT), Framing::Channel(ChannelNumber::MIN)))
    );
    b.pass(300);
    assert_eq!(b.server.handle_peer(b.now.instant, id, peer, 1), Err(DropReason::NoPermission));
    assert_eq!(b.bytes(CLIENT, &send).0, Action::Drop(DropReason::NoPermission));
    b.pass(300);
    assert_eq!(b.bytes(CLIENT, &data).0, Action::Drop(DropReason::NoChannel));
}

#[test]
fn equal_headers_of_a_batch_pass_with_the_first() {
    let mut b = Bench::new();
    let id = b.allocate(CLIENT);
    b.channel(CLIENT, 0x4000, PEER);
    let message = |channel: u16, len, payload: &[u8]| {
        [&ChannelData::header(ChannelNumber::new(channel).unwrap(), len)[..], payload].concat()
    };
    let first = message(0x4000, 5, b"hello");
    let alike = message(0x4000, 5, b"world");
    let others = [message(0x4001, 5, b"hello"), message(0x4000, 4, b"hello"), message(0x4000, 5, b"hell")];
    for other in others {
        let follow = [&alike, &alike, &other, &alike].map(Vec::as_slice);
        assert_eq!(b.server.passes_too(id, &first, follow.into_iter()), 2, "{other:?}");
    }
    let send = plain(Class::Indication, Method::SEND, &|_| {});
    assert_eq!(b.server.passes_too(id, &send, [&send[..]].into_iter()), 0);
    assert_eq!(b.server.passes_too(id, b"@", [&b"@"[..]].into_iter()), 0);
}

#[test]
fn data_indications_hold_what_the_peer_sent() {
    let mut b = Bench::new();
    let peer = PeerAddr(addr(PEER));
    let (one, two) = (b.server.data_indication(peer, 5).unwrap(), b.server.data_indication(peer, 5).unwrap());
    assert_ne!(one.as_bytes(), two.as_bytes());
    let whole = [one.as_bytes(), b"hello", one.padding()].concat();
    let message = Message::parse(&whole).unwrap();
    assert_eq!(message.get::<XorPeerAddress>().unwrap().unwrap().0, addr(PEER));
    assert_eq!(message.get::<Data<'_>>().unwrap().unwrap().0, b"hello");
}
