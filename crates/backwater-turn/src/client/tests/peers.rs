//! Permissions, channels and data.

use super::*;

#[test]
fn data_is_sent_only_while_the_server_has_the_channel() {
    let mut b = Bench::allocated();
    let channel = b.client.bind(b.now, addr(PEER)).unwrap();
    assert_eq!(channel, ChannelNumber::MIN);
    let mut buffer = *b"????data";
    assert_eq!(b.client.send(b.now, channel, &mut buffer), Err(SendError::NotGranted));
    let began = b.now;
    let request = b.request(Method::CHANNEL_BIND);
    assert_eq!((get(&request), get(&request)), (Some(channel), Some(XorPeerAddress(addr(PEER)))));
    b.pass(Duration::from_millis(400));
    b.succeed(&request, &|_| ());
    assert_eq!(b.client.send(b.now, channel, &mut buffer), Ok(()));
    let message = ChannelData::parse(&buffer).unwrap();
    assert_eq!((message.channel(), message.data()), (channel, &b"data"[..]));
    // The server has bound the channel after the request was sent: it keeps the permission for at least 300 s.
    assert_eq!(b.client.send(began + secs(299), channel, &mut buffer), Ok(()));
    assert_eq!(b.client.send(began + secs(300), channel, &mut buffer), Err(SendError::NotGranted));
    assert_eq!(b.client.send(b.now, channel, &mut [0; 3]), Err(SendError::Length));
    assert_eq!(b.client.send(b.now, channel, &mut vec![0; 65_540]), Err(SendError::Length));
    assert_eq!(b.client.send(b.now, ChannelNumber::MAX, &mut buffer), Err(SendError::NotGranted));
}

#[test]
fn indication_needs_a_permission() {
    let mut b = Bench::allocated();
    let peer = addr(PEER);
    assert_eq!(b.client.send_indication(b.now, peer, 4).err(), Some(SendError::NotGranted));
    b.client.permit(b.now, peer.ip()).unwrap();
    let request = b.request(Method::CREATE_PERMISSION);
    b.succeed(&request, &|_| ());
    assert_eq!(b.events(), [Event::Permitted(peer.ip())]);
    let prefix = b.client.send_indication(b.now, peer, 5).unwrap();
    let indication = [prefix.as_bytes(), b"hello", prefix.padding()].concat();
    assert_eq!((get(&indication), get(&indication)), (Some(XorPeerAddress(peer)), Some(Data(b"hello"))));
    // The port does not matter; the address does.
    assert!(b.client.send_indication(b.now, addr("203.0.113.7:1"), 5).is_ok());
    assert!(b.client.send_indication(b.now, addr("203.0.113.8:7000"), 5).is_err());
    assert_eq!(b.client.send_indication(b.now, peer, 70_000).err(), Some(SendError::Length));
}

#[test]
fn payload_is_a_part_of_the_input() {
    let mut b = Bench::allocated();
    let peer = addr(PEER);
    let indication = |attribute: Fill<'_>| {
        let mut buffer = [0; 200];
        let mut w = Writer::new(&mut buffer, Class::Indication, Method::DATA, TransactionId([3; 12])).unwrap();
        put(&mut w, &XorPeerAddress(peer));
        attribute(&mut w);
        w.finish().to_vec()
    };
    let data = indication(&|w| put(w, &Data(b"hello")));
    assert_eq!(b.client.handle_input(b.now, addr(SERVER), &data), Input::Ignored, "no permission");
    b.client.permit(b.now, peer.ip()).unwrap();
    let input = b.client.handle_input(b.now, addr(SERVER), &data);
    let Input::Data { peer: from, payload } = input else { panic!("{input:?}") };
    assert_eq!((from, &data[payload]), (peer, &b"hello"[..]));
    assert_eq!(b.client.handle_input(b.now, addr("198.51.100.2:3478"), &data), Input::Ignored, "another server");
    let icmp = Icmp { icmp_type: 3, code: 3, data: 0 };
    let told = indication(&|w| put(w, &icmp));
    assert_eq!(b.client.handle_input(b.now, addr(SERVER), &told), Input::Consumed);
    assert_eq!(b.events(), [Event::Icmp { peer, icmp }]);

    let channel = b.client.bind(b.now, peer).unwrap();
    // Over a stream, and from some servers over UDP, padding follows.
    let data = [&ChannelData::header(channel, 5)[..], b"hello\0\0\0"].concat();
    assert_eq!(b.client.handle_input(b.now, addr(SERVER), &data), Input::Data { peer, payload: 4..9 });
    b.client.release(b.now, channel);
    assert_eq!(b.client.handle_input(b.now, addr(SERVER), &data), Input::Ignored);
}

#[test]
fn permissions_and_channels_are_refreshed_at_half_of_their_lifetime() {
    let mut b = Bench::allocated_with(|config| config.keepalive = None);
    b.bound(PEER);
    b.client.permit(b.now, IpAddr::from([203, 0, 113, 9])).unwrap();
    let request = b.request(Method::CREATE_PERMISSION);
    b.succeed(&request, &|_| ());
    b.events();
    assert_eq!(b.wait(), secs(150));
    let requests = b.sent();
    assert_eq!(requests.len(), 2);
    for request in requests {
        b.succeed(&request, &|_| ());
    }
    assert_eq!(b.events(), [], "a refresh is no event");
    b.client.forget(IpAddr::from([203, 0, 113, 9]));
    b.pass(secs(150));
    assert_eq!(b.sent().len(), 2, "Refresh and ChannelBind");
}

#[test]
fn ten_requests_at_most_are_in_flight() {
    let mut b = Bench::allocated_with(|config| config.keepalive = None);
    for n in 0..100 {
        b.client.permit(b.now, IpAddr::from([203, 0, 113, n])).unwrap();
    }
    let mut granted = 0;
    while granted < 100 {
        let requests = b.sent();
        assert!((1..=10).contains(&requests.len()), "{}", requests.len());
        for request in requests {
            b.succeed(&request, &|_| ());
            granted += 1;
        }
    }
    assert_eq!(b.events().len(), 100);
    b.quiet();
}

#[test]
fn peer_that_is_refused_for_good_is_not_asked_for_again() {
    for code in [Code::FORBIDDEN, Code::PEER_ADDRESS_FAMILY_MISMATCH, Code::BAD_REQUEST] {
        let mut b = Bench::allocated_with(|config| config.keepalive = None);
        b.client.bind(b.now, addr(PEER)).unwrap();
        let request = b.request(Method::CHANNEL_BIND);
        b.refuse(&request, code);
        let refused = Event::PeerRefused { peer: addr(PEER), code, reason: code.reason().to_owned() };
        assert_eq!(b.events(), [refused]);
        assert_eq!(b.wait(), secs(300), "the allocation's refresh");
        b.request(Method::REFRESH);
        // The caller may insist.
        b.client.bind(b.now, addr(PEER)).unwrap();
        b.request(Method::CHANNEL_BIND);
    }
}

#[test]
fn peer_without_room_is_asked_for_again_after_a_minute() {
    let mut b = Bench::allocated_with(|config| config.keepalive = None);
    b.client.permit(b.now, addr(PEER).ip()).unwrap();
    let request = b.request(Method::CREATE_PERMISSION);
    b.refuse(&request, Code::INSUFFICIENT_CAPACITY);
    assert!(matches!(b.events()[..], [Event::PeerRefused { .. }]));
    assert_eq!(b.wait(), secs(60));
    b.request(Method::CREATE_PERMISSION);
}
