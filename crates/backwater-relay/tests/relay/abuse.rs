//! What a network may send.

use std::{net::UdpSocket, time::Duration};

use backwater_stun::*;

use crate::{
    client::{client, start},
    support::skip,
};

/// Bytes that are random, or nearly a message.
fn noise(state: &mut u64, valid: &[u8]) -> Vec<u8> {
    let mut random = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as usize
    };
    let len = random() % 1400;
    let mut bytes: Vec<u8> = match random() % 3 {
        0 => (0..len).map(|_| random() as u8).collect(),
        1 => valid.to_vec(),
        _ => [&[0x40 + (random() % 64) as u8][..], &vec![random() as u8; len]].concat(),
    };
    for _ in 0..random() % 4 {
        let at = random() % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = random() as u8;
        }
    }
    bytes
}

#[test]
fn any_bytes_on_a_listener_or_a_relayed_port_are_survived_and_counted() {
    let mut relay = start(&["--threads", "2"]);
    let listener = relay.local_addrs()[0];
    let mut good = client(&relay);
    let relayed = good.allocate();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let valid = good.exchange(backwater_stun::Method::REFRESH, &|_| ());
    let mut state = 42;
    for i in 0..20_000 {
        let bytes = noise(&mut state, &valid);
        let to = if i % 3 == 0 { relayed } else { listener };
        stranger.send_to(&bytes, to).unwrap();
        if i % 3 == 1 {
            good.socket.send(&bytes).unwrap();
        }
        if i % 64 == 0 {
            // Not to overrun the receive buffers: what is tested is the reading.
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    // New clients are answered, and the old one is still there.
    client(&relay).allocate();
    good.request(backwater_stun::Method::REFRESH, &|_| ()).unwrap();
    let dropped: u64 = backwater_turn::server::DropReason::ALL
        .iter()
        .map(|&reason| relay.counters().iter().map(|c| c.dropped(reason)).sum::<u64>())
        .sum();
    // On a busy machine some find a receive buffer full.
    assert!(dropped > 1_000, "{dropped}");
    relay.stop(Duration::ZERO);
}

/// Ports that the system gives to no socket by itself, and no other test here uses.
#[test]
fn a_port_range_that_is_used_up_is_508_and_recovers() {
    let mut relay = start(&["--threads", "1", "--ports", "29000-29001"]);
    let (mut a, mut b, mut c) = (client(&relay), client(&relay), client(&relay));
    let ports = [a.allocate().port(), b.allocate().port()];
    assert!(ports.contains(&29_000) && ports.contains(&29_001));
    assert_eq!(c.try_allocate(&|_| ()).unwrap_err(), 508);
    a.request(backwater_stun::Method::REFRESH, &|w| {
        w.attribute(&backwater_stun::Lifetime(0)).unwrap();
    })
    .unwrap();
    assert_eq!(c.allocate().port(), ports[0]);
    relay.stop(Duration::ZERO);
}

/// Nine in ten ports of a range, which are not found by chance. Four listeners, since each 5-tuple has one allocation; ports
/// that the clients' own sockets do not take.
#[test]
fn fifteen_thousand_allocations_are_held_by_one_relay() {
    const EACH: usize = 3750;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if limit.is_some_and(|limit| limit < 19_500) {
        return skip("fewer than 19,500 descriptors are allowed (ulimit -n)");
    }
    let more = ["--listen", "127.0.0.2:0", "--listen", "127.0.0.3:0", "--listen", "127.0.0.4:0"];
    let mut relay = start(&[&more[..], &["--ports", "10000-26383", "--threads", "1"]].concat());
    let addrs = relay.local_addrs().to_vec();
    assert_eq!(addrs.len(), 4);
    let sockets: Vec<_> = (0..EACH).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let key = HmacKey::from(&LongTermKey::md5("alice", "backwater", "secret"));
    let mut ports = std::collections::HashSet::new();
    let (mut request, mut reply) = ([0; 300], [0; 300]);
    for addr in addrs {
        for socket in &sockets {
            socket.connect(addr).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut nonce = Vec::new();
            let relayed = loop {
                let id = TransactionId([nonce.len() as u8; 12]);
                let mut w = Writer::new(&mut request, Class::Request, Method::ALLOCATE, id).unwrap();
                w.attribute(&RequestedTransport::UDP).unwrap();
                let request = if nonce.is_empty() {
                    w.finish()
                } else {
                    w.attribute(&Username("alice")).unwrap().attribute(&Realm("backwater")).unwrap();
                    w.attribute(&Nonce(&nonce)).unwrap();
                    w.integrity_sha1(&key).unwrap().finish()
                };
                socket.send(request).unwrap();
                let len = socket.recv(&mut reply).unwrap();
                let message = Message::parse(&reply[..len]).unwrap();
                match message.get::<Nonce<'_>>().unwrap() {
                    Some(Nonce(fresh)) => nonce = fresh.to_vec(),
                    None => break message.get::<XorRelayedAddress>().unwrap().expect("an address").0,
                }
            };
            assert!(ports.insert(relayed.port()), "{relayed} twice");
        }
    }
    assert_eq!(ports.len(), 4 * EACH);
    // And the way of a datagram is there still.
    let mut last = client(&relay);
    let relayed = last.allocate();
    let (peer, peer_addr) = crate::client::peer();
    last.bind_channel(0x4000, peer_addr).unwrap();
    last.socket.send(&crate::client::channel_data(0x4000, b"x")).unwrap();
    assert_eq!(peer.recv_from(&mut reply).unwrap(), (1, relayed));
    relay.stop(Duration::ZERO);
}
