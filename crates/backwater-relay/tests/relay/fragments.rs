//! Datagrams larger than the MTU of their path (RFC 8656, section 14), on a loopback interface of 1,500 bytes.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use backwater_relay::Relay;
use backwater_stun::*;

use crate::{
    client::{Client, channel_data, peer, peer6, start_dual},
    support::{in_namespace, ip},
};

/// The relay, and a client and a peer of each family with the largest payload that fits into 1,500 bytes.
fn both_families(with: impl Fn(&Relay, Client, SocketAddr, UdpSocket, usize)) {
    ip("link set lo mtu 1500");
    let mut relay = start_dual(&["--threads", "1"]);
    for (listener, (peer, peer_addr), fits) in [(0, peer(), 1472), (1, peer6(), 1452)] {
        let mut client = Client::new(relay.local_addrs()[listener], "alice", "secret", "backwater");
        let family = AddressFamily::of(&peer_addr);
        let reply = client.try_allocate(&|w| {
            w.attribute(&RequestedAddressFamily(family)).unwrap();
        });
        let reply = reply.unwrap();
        let relayed = Message::parse(&reply).unwrap().get::<XorRelayedAddress>().unwrap().unwrap().0;
        client.permit(peer_addr).unwrap();
        with(&relay, client, relayed, peer, fits);
    }
    relay.stop(Duration::ZERO);
}

fn send_indication(peer: SocketAddr, payload: &[u8], dont_fragment: bool) -> Vec<u8> {
    let mut buffer = [0; 4000];
    let mut w = Writer::new(&mut buffer, Class::Indication, Method::SEND, TransactionId([1; 12])).unwrap();
    w.attribute(&XorPeerAddress(peer)).unwrap();
    if dont_fragment {
        w.attribute(&DontFragment).unwrap();
    }
    w.attribute(&Data(payload)).unwrap();
    w.finish().to_vec()
}

/// What TURN adds makes a datagram that fitted too large for the rest of the way: it goes on in fragments.
#[test]
fn a_datagram_that_fills_the_mtu_reaches_the_other_side_in_every_framing() {
    in_namespace("fragments::a_datagram_that_fills_the_mtu_reaches_the_other_side_in_every_framing", || {
        both_families(|_, mut client, relayed, peer, fits| {
            let peer_addr = peer.local_addr().unwrap();
            let mut buffer = [0; 4000];
            let payload = |i: usize| vec![i as u8; fits - 27 + i];
            for i in 0..28 {
                peer.send_to(&payload(i), relayed).unwrap();
                let len = client.socket.recv(&mut buffer).unwrap();
                let message = Message::parse(&buffer[..len]).unwrap();
                assert_eq!(message.get::<Data<'_>>().unwrap().unwrap().0, payload(i), "in an indication");
                client.socket.send(&send_indication(peer_addr, &payload(i), false)).unwrap();
                assert_eq!(peer.recv(&mut buffer).unwrap(), payload(i).len());
            }
            client.bind_channel(0x4000, peer_addr).unwrap();
            // At once, so that they are received and sent as trains.
            (0..28).for_each(|_| assert!(peer.send_to(&payload(27), relayed).is_ok()));
            for i in 0..28 {
                let len = client.socket.recv(&mut buffer).unwrap_or_else(|_| panic!("datagram {i}"));
                assert_eq!(buffer[..len], channel_data(0x4000, &payload(27)));
            }
            (0..28).for_each(|_| assert!(client.socket.send(&channel_data(0x4000, &payload(27))).is_ok()));
            for i in 0..28 {
                let len = peer.recv(&mut buffer).unwrap_or_else(|_| panic!("datagram {i}"));
                assert_eq!(buffer[..len], payload(27));
            }
        });
    });
}

/// Only a Send indication with DONT-FRAGMENT is not fragmented, and its client learns what would have fitted.
#[test]
fn dont_fragment_is_honoured_for_its_datagram_and_no_other() {
    in_namespace("fragments::dont_fragment_is_honoured_for_its_datagram_and_no_other", || {
        both_families(|relay, client, _, peer, fits| {
            let peer_addr = peer.local_addr().unwrap();
            let mut buffer = [0; 4000];
            let too_large = vec![7; fits + 100];
            let counted = relay.counters().iter().map(|c| c.icmp.get()).sum::<u64>();
            for round in 1..=3 {
                client.socket.send(&send_indication(peer_addr, &too_large, false)).unwrap();
                assert_eq!(peer.recv(&mut buffer).unwrap(), too_large.len(), "it may be fragmented");
                client.socket.send(&send_indication(peer_addr, &too_large, true)).unwrap();
                let len = client.socket.recv(&mut buffer).expect("an ICMP attribute");
                let message = Message::parse(&buffer[..len]).unwrap();
                assert_eq!(message.get::<XorPeerAddress>().unwrap().unwrap().0, peer_addr);
                let icmp_type = if peer_addr.is_ipv4() { 3 } else { 2 };
                let code = if peer_addr.is_ipv4() { 4 } else { 0 };
                assert_eq!(message.get::<Icmp>().unwrap(), Some(Icmp { icmp_type, code, data: 1500 }));
                client.socket.send(&send_indication(peer_addr, &too_large[..fits], true)).unwrap();
                assert_eq!(peer.recv(&mut buffer).unwrap(), fits, "and nothing in between");
                assert_eq!(relay.counters().iter().map(|c| c.icmp.get()).sum::<u64>(), counted + round);
            }
        });
    });
}
