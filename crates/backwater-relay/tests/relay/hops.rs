//! Time to live and hop limit (RFC 8656, section 14): one less behind the relay, so that nothing circles for ever.

use std::{
    io::IoSlice,
    net::{SocketAddr, UdpSocket as Std},
    time::{Duration, Instant},
};

use backwater_relay::Relay;
use backwater_stun::*;
use backwater_turn::server::DropReason;
use backwater_udp::{RecvBatch, Transmit, UdpSocket};

use crate::client::{Client, PATIENCE, channel_data, client, peer, peer6, start, start_dual};

fn used_up(relay: &Relay) -> u64 {
    relay.counters().iter().map(|c| c.dropped(DropReason::HopLimit)).sum()
}

fn forwarded(relay: &Relay) -> u64 {
    relay.counters().iter().map(|c| c.to_peers.get() + c.to_clients.get()).sum()
}

fn until(mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < limit, "it did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a datagram with this hop limit, and returns that with which it arrives.
async fn hops(from: &UdpSocket, to: SocketAddr, payload: &[u8], hops: u8, at: &UdpSocket) -> Option<u8> {
    let slices = [IoSlice::new(payload)];
    from.set_hop_limit(Some(hops)).unwrap();
    let sent = from.sender().send(&mut Transmit::new(to, &slices)).await.unwrap();
    assert_eq!(sent.sent, 1);
    let mut batch = RecvBatch::new(1);
    tokio::time::timeout(PATIENCE, at.receiver().recv(&mut batch)).await.expect("a datagram").unwrap();
    batch.gro_batch(0).unwrap().hop_limit
}

#[test]
fn the_hop_limit_is_one_less_behind_the_relay() {
    for v6 in [false, true] {
        let mut relay = start_dual(&["--threads", "1"]);
        let mut client =
            if v6 { Client::new(relay.local_addrs()[1], "alice", "secret", "backwater") } else { client(&relay) };
        let reply = client.try_allocate(&|w| {
            let family = if v6 { AddressFamily::Ipv6 } else { AddressFamily::Ipv4 };
            w.attribute(&RequestedAddressFamily(family)).unwrap();
        });
        let relayed = Message::parse(&reply.unwrap()).unwrap().get::<XorRelayedAddress>().unwrap().unwrap().0;
        let (peer, peer_addr) = if v6 { peer6() } else { peer() };
        client.bind_channel(0x4000, peer_addr).unwrap();
        let listener = client.socket.peer_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let told = |socket: Std| UdpSocket::builder().receive_hop_limit(true).from_std(socket).unwrap();
            let (client, peer) = (told(client.socket), told(peer));
            let message = channel_data(0x4000, b"payload");
            for ttl in [255, 64, 2] {
                assert_eq!(hops(&client, listener, &message, ttl, &peer).await, Some(ttl - 1), "{v6}");
                assert_eq!(hops(&peer, relayed, b"payload", ttl, &client).await, Some(ttl - 1), "{v6}");
            }
            for (from, to, payload) in [(&client, listener, &message[..]), (&peer, relayed, b"payload")] {
                let slices = [IoSlice::new(payload)];
                from.set_hop_limit(Some(1)).unwrap();
                from.sender().send(&mut Transmit::new(to, &slices)).await.unwrap();
            }
        });
        until(|| used_up(&relay) == 2);
        relay.stop(Duration::ZERO);
    }
}

/// Takes one ChannelData header of this number off.
fn unwrapped(message: &[u8], channel: u16) -> Option<Vec<u8>> {
    let message = ChannelData::parse(message).ok().filter(|m| m.channel() == ChannelNumber::new(channel).unwrap())?;
    Some(message.data().to_vec())
}

/// Sends a request through channels, the outermost first, and returns the answer that comes back through them.
fn through(socket: &Std, channels: &[u16], request: &[u8]) -> Vec<u8> {
    let wrap = |inner: Vec<u8>, &channel: &u16| channel_data(channel, &inner);
    socket.send(&channels.iter().rev().fold(request.to_vec(), wrap)).unwrap();
    let mut buffer = [0; 2000];
    loop {
        let len = socket.recv(&mut buffer).expect("an answer");
        let inner = channels.iter().try_fold(buffer[..len].to_vec(), |message, &channel| unwrapped(&message, channel));
        if let Some(inner) = inner {
            return inner;
        }
    }
}

/// Two relays of one service, on each an allocation whose client is the other one's relayed address: what comes there would circle
/// for ever, and grow.
#[test]
fn a_datagram_between_two_relays_ends_with_its_hop_limit() {
    let (mut a, mut b) = (start(&["--threads", "1"]), start(&["--threads", "1"]));
    let (a_addr, b_addr) = (a.local_addrs()[0], b.local_addrs()[0]);
    let mut x = client(&a);
    let reply = x.try_allocate(&|w| {
        w.attribute(&MobilityTicket(&[])).unwrap();
    });
    let ticket = Message::parse(&reply.unwrap()).unwrap().get::<MobilityTicket<'_>>().unwrap().unwrap().0.to_vec();
    x.bind_channel(0x4000, b_addr).unwrap();
    // A client of B, behind the relayed address of X.
    let mut y = client(&b);
    let allocate = |y: &Client| {
        y.encode(Method::ALLOCATE, &|w| {
            w.attribute(&RequestedTransport::UDP).unwrap();
        })
    };
    y.learn_nonce(&through(&x.socket, &[0x4000], &allocate(&y)));
    through(&x.socket, &[0x4000], &allocate(&y));
    let bind = y.encode(Method::CHANNEL_BIND, &|w| {
        w.attribute(&ChannelNumber::new(0x4001).unwrap()).unwrap().attribute(&XorPeerAddress(a_addr)).unwrap();
    });
    let bound = through(&x.socket, &[0x4000], &bind);
    assert_eq!(Message::parse(&bound).unwrap().class(), Class::SuccessResponse);
    // X moves to the relayed address of Y.
    let refresh = |x: &Client| {
        x.encode(Method::REFRESH, &|w| {
            w.attribute(&MobilityTicket(&ticket)).unwrap();
        })
    };
    x.learn_nonce(&through(&x.socket, &[0x4000, 0x4001], &refresh(&x)));
    let last = channel_data(0x4000, &channel_data(0x4001, &refresh(&x)));
    x.socket.send(&last).unwrap();
    until(|| used_up(&a) + used_up(&b) > 0);
    let passes = forwarded(&a) + forwarded(&b);
    assert!(passes < 300, "{passes} passes");
    for relay in [&mut a, &mut b] {
        relay.stop(Duration::ZERO);
    }
}
