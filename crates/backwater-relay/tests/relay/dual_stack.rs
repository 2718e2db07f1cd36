//! An allocation with an IPv4 and an IPv6 address.

use std::{net::SocketAddr, time::Duration};

use backwater_stun::*;

use crate::client::{channel_data, client, peer, peer6, start_dual};

/// Data goes both ways through both, and each ends when it is told to: its port is free then.
#[test]
fn both_families_relay_and_end_apart() {
    let mut relay = start_dual(&["--threads", "1"]);
    let mut client = client(&relay);
    let reply = client.try_allocate(&|w| {
        w.attribute(&AdditionalAddressFamily(AddressFamily::Ipv6)).unwrap();
    });
    let reply = reply.unwrap();
    let relayed: Vec<SocketAddr> =
        Message::parse(&reply).unwrap().all::<XorRelayedAddress>().map(|a| a.unwrap().0).collect();
    let [v4, v6] = relayed[..] else { panic!("{relayed:?}") };
    assert!(v4.is_ipv4() && v6.is_ipv6());
    let mut buffer = [0; 100];
    let peers = [(peer(), 0x4001, v4), (peer6(), 0x4002, v6)];
    for ((peer, peer_addr), channel, relayed) in &peers {
        client.bind_channel(*channel, *peer_addr).unwrap();
        client.socket.send(&channel_data(*channel, b"up")).unwrap();
        assert_eq!(peer.recv_from(&mut buffer).unwrap(), (2, *relayed));
        peer.send_to(b"down", *relayed).unwrap();
        assert_eq!(client.socket.recv(&mut buffer).unwrap(), 8);
        assert_eq!(buffer[..8], channel_data(*channel, b"down"));
    }
    client
        .request(Method::REFRESH, &|w| {
            w.attribute(&RequestedAddressFamily(AddressFamily::Ipv6)).unwrap().attribute(&Lifetime(0)).unwrap();
        })
        .unwrap();
    std::net::UdpSocket::bind(v6).unwrap();
    std::net::UdpSocket::bind(v4).unwrap_err();
    let (_, addr6) = &peers[1].0;
    assert_eq!(client.bind_channel(0x4002, *addr6).unwrap_err(), 443);
    let closed = |relay: &backwater_relay::Relay| relay.counters().iter().map(|c| c.closed.get()).sum::<u64>();
    assert_eq!(closed(&relay), 0, "the allocation is there still");
    client
        .request(Method::REFRESH, &|w| {
            w.attribute(&Lifetime(0)).unwrap();
        })
        .unwrap();
    std::net::UdpSocket::bind(v4).unwrap();
    assert_eq!(closed(&relay), 1);
    relay.stop(Duration::ZERO);
}
