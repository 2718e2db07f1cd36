//! The way of a datagram: what it costs, and where it may come and go.

use std::{
    io::IoSlice,
    time::{Duration, Instant},
};

use backwater_relay::{Arguments, Config, Relay};
use backwater_stun::*;
use backwater_turn::server::DropReason;
use backwater_udp::{Transmit, UdpSocket};

use crate::client::{Client, PATIENCE, channel_data, client, peer, start};

#[test]
fn every_framing_goes_both_ways() {
    let mut relay = start(&[]);
    let mut client = client(&relay);
    let relayed = client.allocate();
    let (peer, peer_addr) = peer();
    let mut buffer = [0; 2000];

    let unpermitted = || relay.counters().iter().map(|c| c.dropped(DropReason::NoPermission)).sum::<u64>();
    peer.send_to(b"not yet permitted", relayed).unwrap();
    let limit = Instant::now() + PATIENCE;
    while unpermitted() == 0 {
        assert!(Instant::now() < limit, "the relay has not dropped it");
        std::thread::sleep(Duration::from_millis(1));
    }
    client.permit(peer_addr).unwrap();
    for len in [0, 1, 2, 3, 4, 5, 1200] {
        let payload = vec![len as u8; len];
        let mut out = [0; 2000];
        let mut w = Writer::new(&mut out, Class::Indication, Method::SEND, TransactionId([1; 12])).unwrap();
        w.attribute(&XorPeerAddress(peer_addr)).unwrap().attribute(&Data(&payload)).unwrap();
        client.socket.send(w.finish()).unwrap();
        assert_eq!(peer.recv_from(&mut buffer).unwrap(), (len, relayed));
        assert_eq!(buffer[..len], payload);

        peer.send_to(&payload, relayed).unwrap();
        let received = client.socket.recv(&mut buffer).unwrap();
        let message = Message::parse(&buffer[..received]).unwrap();
        assert_eq!(message.get::<XorPeerAddress>().unwrap().unwrap().0, peer_addr);
        assert_eq!(message.get::<Data<'_>>().unwrap().unwrap().0, payload);
    }
    client.bind_channel(0x4001, peer_addr).unwrap();
    for len in [0, 1, 2, 3, 4, 1200] {
        let payload = vec![len as u8; len];
        let mut message = channel_data(0x4001, &payload);
        message.extend([0; 3].iter().take(len.wrapping_neg() & 3));
        client.socket.send(&message).unwrap();
        assert_eq!(peer.recv_from(&mut buffer).unwrap(), (len, relayed), "padding is not data");
        peer.send_to(&payload, relayed).unwrap();
        let received = client.socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..received], channel_data(0x4001, &payload));
    }
    assert_eq!(unpermitted(), 1);
    relay.stop(Duration::ZERO);
}

/// A peer's port that nobody listens on: the client learns of it, by IPv4 and by IPv6, and data goes on.
#[test]
fn a_client_learns_that_a_peer_is_unreachable() {
    let mut relay = crate::client::start_dual(&["--threads", "1"]);
    let mut client = client(&relay);
    client
        .try_allocate(&|w| {
            w.attribute(&AdditionalAddressFamily(AddressFamily::Ipv6)).unwrap();
        })
        .unwrap();
    let (there, there_addr) = peer();
    client.bind_channel(0x4001, there_addr).unwrap();
    let mut buffer = [0; 2000];
    for (channel, (gone, addr), icmp_type, code) in [(0x4002, peer(), 3, 3), (0x4003, crate::client::peer6(), 1, 4)] {
        drop(gone);
        client.bind_channel(channel, addr).unwrap();
        client.socket.send(&channel_data(channel, b"anyone?")).unwrap();
        let len = client.socket.recv(&mut buffer).unwrap();
        let message = Message::parse(&buffer[..len]).unwrap();
        assert_eq!(message.get::<XorPeerAddress>().unwrap().unwrap().0, addr);
        assert_eq!(message.get::<Icmp>().unwrap(), Some(Icmp { icmp_type, code, data: 0 }));
        client.socket.send(&channel_data(0x4001, b"and you?")).unwrap();
        assert_eq!(there.recv(&mut buffer).unwrap(), 8);
    }
    assert_eq!(relay.counters().iter().map(|c| c.icmp.get()).sum::<u64>(), 2);
    relay.stop(Duration::ZERO);
}

/// Trains whose datagrams differ in length, channel and owner come out as what went in, in order within a flow.
#[test]
fn a_mixed_burst_keeps_every_flow_in_order() {
    let mut relay = start(&["--threads", "1"]);
    let (peer_a, addr_a) = peer();
    let (peer_b, addr_b) = peer();
    let mut one = client(&relay);
    one.allocate();
    one.bind_channel(0x4000, addr_a).unwrap();
    one.bind_channel(0x4001, addr_b).unwrap();
    let lengths = [100, 100, 40, 100, 0, 100, 100, 1, 1, 300, 300];
    for i in 0..220u8 {
        let payload = vec![i; lengths[i as usize % lengths.len()]];
        one.socket.send(&channel_data(0x4000 + u16::from(i % 2), &payload)).unwrap();
    }
    let mut buffer = [0; 2000];
    for i in 0..220u8 {
        let peer = if i % 2 == 0 { &peer_a } else { &peer_b };
        let len = peer.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..len], vec![i; lengths[i as usize % lengths.len()]], "datagram {i}");
    }
    relay.stop(Duration::ZERO);
}

/// Trains (GSO) of datagrams of one length, whose messages differ in channel, length and padding, or are none.
#[test]
fn a_train_of_mixed_messages_comes_out_as_its_messages() {
    let mut relay = start(&["--threads", "1"]);
    let peers = [peer(), peer()];
    let mut client = client(&relay);
    client.allocate();
    client.bind_channel(0x4000, peers[0].1).unwrap();
    client.bind_channel(0x4001, peers[1].1).unwrap();
    let listener = client.socket.peer_addr().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut expected = [Vec::new(), Vec::new()];
    let mut message = |i: u8, kind: u8| {
        let (channel, len) = match kind {
            b'a' => (0x4000, 100),
            b'b' => (0x4001, 100),
            b'p' => (0x4000, 97),
            b's' => (0x4000, 30),
            b'u' => (0x4002, 100),
            _ => (0x4000, 100),
        };
        let payload = vec![i; len];
        let mut message = channel_data(channel, &payload);
        match kind {
            b'p' => message.extend([0xEE; 3]),
            b'l' => message[3] = 101,
            b'n' => message[0] = 0xFF,
            _ => {}
        }
        if let b'a' | b'b' | b'p' | b's' = kind {
            expected[usize::from(channel - 0x4000)].push(payload);
        }
        message
    };
    let trains: [&[u8]; 8] =
        [b"aaaaaaaa", b"abababab", b"aapppaas", b"aauulnaa", b"bbbbaaab", b"lnuaaaaa", b"aaas", &[b'a'; 60]];
    let mut sent = 0;
    runtime.block_on(async {
        let socket = UdpSocket::from_std(client.socket.try_clone().unwrap()).unwrap();
        let mut sender = socket.sender();
        for train in trains.iter().chain(&trains) {
            let bytes: Vec<u8> = train.iter().zip(sent..).flat_map(|(&kind, i)| message(i, kind)).collect();
            sent += train.len() as u8;
            let slices = [IoSlice::new(&bytes)];
            let report = sender.send(&mut Transmit::new(listener, &slices).segment_size(104)).await.unwrap();
            assert_eq!(report.sent as usize, train.len());
        }
    });
    let mut buffer = [0; 2000];
    for ((peer, _), expected) in peers.iter().zip(&expected) {
        for (n, payload) in expected.iter().enumerate() {
            let len = peer.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], payload, "datagram {n}");
        }
    }
    let dropped = |reason| relay.counters().iter().map(|c| c.dropped(reason)).sum::<u64>();
    let counted = [DropReason::NoChannel, DropReason::ChannelData, DropReason::Protocol].map(dropped);
    assert_eq!(counted, [6, 4, 4]);
    let passed: u64 = relay.counters().iter().map(|c| c.to_peers.get()).sum();
    assert_eq!(passed as usize, expected.iter().map(Vec::len).sum::<usize>());
    relay.stop(Duration::ZERO);
}

/// A reservation is claimed from another 5-tuple, which the kernel may give to another thread.
#[test]
fn a_reservation_is_good_on_every_thread() {
    let mut relay = start(&["--threads", "4"]);
    // They stay: a port that is used again would be the 5-tuple of an allocation that is there already.
    let mut clients = Vec::new();
    let mut allocate = |fill: crate::client::Fill<'_>| {
        clients.push(client(&relay));
        clients.last_mut().unwrap().try_allocate(fill)
    };
    for _ in 0..20 {
        let reserve: crate::client::Fill<'_> = &|w| {
            w.attribute(&EvenPort { reserve_next: true }).unwrap();
        };
        let reply = allocate(reserve).unwrap();
        let message = Message::parse(&reply).unwrap();
        let port = message.get::<XorRelayedAddress>().unwrap().unwrap().0.port();
        let token = message.get::<ReservationToken>().unwrap().unwrap();
        let reply = allocate(&|w| {
            w.attribute(&token).unwrap();
        });
        let reply = reply.unwrap();
        let next = Message::parse(&reply).unwrap().get::<XorRelayedAddress>().unwrap().unwrap().0.port();
        assert_eq!((port % 2, next), (0, port + 1));
        let again = allocate(&|w| {
            w.attribute(&token).unwrap();
        });
        assert_eq!(again.unwrap_err(), 508);
    }
    let busy = relay.counters().iter().filter(|c| c.allocations.get() > 0).count();
    assert!(busy >= 2, "the kernel spreads clients over the threads");
    relay.stop(Duration::ZERO);
}

#[test]
fn a_wildcard_listener_answers_from_where_it_was_asked() {
    let args = ["relay", "--listen", "0.0.0.0:0", "--relay-address", "127.0.0.1", "--user", "alice:secret"];
    let matches = Arguments::command().try_get_matches_from(args).unwrap();
    let mut relay = Relay::start(&Config::new(&Arguments::read(&matches, []).unwrap()).unwrap()).unwrap();
    let port = relay.local_addrs()[0].port();
    for host in [[127, 0, 0, 1], [127, 0, 0, 9]] {
        // Connected: an answer from elsewhere would not arrive.
        let mut client = Client::new((host, port).into(), "alice", "secret", "backwater");
        assert_eq!(client.allocate().ip(), std::net::IpAddr::from([127, 0, 0, 1]));
    }
    relay.stop(Duration::ZERO);
}

#[test]
fn a_peer_that_is_not_allowed_is_403() {
    let mut relay = start(&["--deny-peer", "127.0.0.7"]);
    let listener = relay.local_addrs()[0];
    let mut client = client(&relay);
    client.allocate();
    for peer in ["127.0.0.7:9", "169.254.1.1:9", "0.0.0.0:9", "224.0.0.1:9", "255.255.255.255:9"] {
        assert_eq!(client.permit(peer.parse().unwrap()).unwrap_err(), 403, "{peer}");
        assert_eq!(client.bind_channel(0x4000, peer.parse().unwrap()).unwrap_err(), 403, "{peer}");
    }
    assert_eq!(client.bind_channel(0x4000, listener).unwrap_err(), 403, "the relay itself");
    assert_eq!(client.permit("[::ffff:127.0.0.1]:9".parse().unwrap()).unwrap_err(), 443);
    assert_eq!(relay.counters().iter().map(|c| c.forbidden.get()).sum::<u64>(), 11);
    relay.stop(Duration::ZERO);
}

/// Two clients of one relay reach each other as if their datagrams went through the kernel, on one thread and on several.
#[test]
fn one_client_reaches_another_by_the_same_rules() {
    for threads in ["1", "4"] {
        let mut relay = start(&["--threads", threads]);
        let total =
            |counter: fn(&backwater_relay::Counters) -> u64| relay.counters().iter().map(|c| counter(c)).sum::<u64>();
        let (mut a, mut b) = (client(&relay), client(&relay));
        let (relayed_a, relayed_b) = (a.allocate(), b.allocate());
        a.bind_channel(0x4000, relayed_b).unwrap();
        let mut buffer = [0; 2000];

        a.socket.send(&channel_data(0x4000, b"not yet permitted")).unwrap();
        let limit = Instant::now() + PATIENCE;
        while total(|c| c.dropped(DropReason::NoPermission)) == 0 {
            assert!(Instant::now() < limit, "the relay has not dropped it");
            std::thread::sleep(Duration::from_millis(1));
        }
        b.permit(relayed_a).unwrap();
        a.socket.send(&channel_data(0x4000, b"in an indication")).unwrap();
        let len = b.socket.recv(&mut buffer).unwrap();
        let message = Message::parse(&buffer[..len]).unwrap();
        assert_eq!(message.get::<XorPeerAddress>().unwrap().unwrap().0, relayed_a);
        assert_eq!(message.get::<Data<'_>>().unwrap().unwrap().0, b"in an indication");

        b.bind_channel(0x4007, relayed_a).unwrap();
        for len in [0, 1, 100, 100, 100, 40, 1200] {
            let payload = vec![len as u8; len];
            a.socket.send(&channel_data(0x4000, &payload)).unwrap();
            let received = b.socket.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..received], channel_data(0x4007, &payload));
            b.socket.send(&channel_data(0x4007, &payload)).unwrap();
            let received = a.socket.recv(&mut buffer).unwrap();
            let message = Message::parse(&buffer[..received]);
            // A has a channel to B.
            assert!(message.is_err() && buffer[..received] == channel_data(0x4000, &payload));
        }
        // As far as the kernel has put them onto the same thread.
        let inside = total(|c| c.inside.get());
        assert!(if threads == "1" { inside == 16 } else { inside == 0 || inside == 16 }, "{inside}");
        assert_eq!((total(|c| c.to_peers.get()), total(|c| c.to_clients.get())), (16, 15));

        b.request(Method::REFRESH, &|w| {
            w.attribute(&Lifetime(0)).unwrap();
        })
        .unwrap();
        a.socket.send(&channel_data(0x4000, b"nobody")).unwrap();
        let limit = Instant::now() + PATIENCE;
        while total(|c| c.to_peers.get()) < 17 {
            assert!(Instant::now() < limit, "it went nowhere");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(total(|c| c.inside.get()), inside, "its port is nobody's");
        relay.stop(Duration::ZERO);
    }
}
