//! A relay behind a one-to-one NAT: peers know its relayed addresses by an address that is none of the host's.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use backwater_relay::{Arguments, Config, Counters, Relay};
use backwater_stun::*;
use backwater_turn::server::DropReason;

use crate::{
    client::{Client, channel_data, client, start},
    clients::{python, python_with},
    support::{in_namespace, ip, skip},
};

const PAIRS: usize = 24;

/// In the namespace nothing routes to the external address, so nobody sends anything back from there.
fn behind_a_nat(args: &[&str]) -> Relay {
    let nat = ["--relay-address", "10.0.0.10", "--external-address", "192.0.2.10", "--allow-peer", "192.0.2.0/24"];
    start(&[&nat[..], args].concat())
}

fn total(relay: &Relay, counter: fn(&Counters) -> u64) -> u64 {
    relay.counters().iter().map(|c| counter(c)).sum()
}

fn until(mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < limit, "it did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether `to` receives a Data indication with `payload` from the advertised address `from`.
fn indicated(to: &Client, from: SocketAddr, payload: &[u8]) -> bool {
    let mut buffer = [0; 2000];
    let Ok(len) = to.socket.recv(&mut buffer) else { return false };
    let message = Message::parse(&buffer[..len]).unwrap();
    assert_eq!(message.get::<XorPeerAddress>().unwrap().unwrap().0, from);
    message.get::<Data<'_>>().unwrap().unwrap().0 == payload
}

#[test]
fn every_client_reaches_every_other_behind_a_nat_that_does_not_hairpin() {
    in_namespace("nat::every_client_reaches_every_other_behind_a_nat_that_does_not_hairpin", || {
        ip("addr add 10.0.0.10/32 dev lo");
        for threads in ["1", "2", "4", "8"] {
            let mut relay = behind_a_nat(&["--threads", threads]);
            let mut clients: Vec<_> = (0..2 * PAIRS).map(|_| client(&relay)).collect();
            let relayed: Vec<_> = clients.iter_mut().map(Client::allocate).collect();
            let mut reached = [0; 2];
            for pair in 0..PAIRS {
                let (a, b) = (2 * pair, 2 * pair + 1);
                clients[a].bind_channel(0x4000, relayed[b]).unwrap();
                clients[b].permit(relayed[a]).unwrap();
                clients[a].socket.send(&channel_data(0x4000, b"by channel")).unwrap();
                reached[0] += usize::from(indicated(&clients[b], relayed[a], b"by channel"));
                let mut out = [0; 200];
                let mut w = Writer::new(&mut out, Class::Indication, Method::SEND, TransactionId([1; 12])).unwrap();
                w.attribute(&XorPeerAddress(relayed[a])).unwrap().attribute(&Data(b"back")).unwrap();
                clients[b].socket.send(w.finish()).unwrap();
                let mut buffer = [0; 200];
                let received = clients[a].socket.recv(&mut buffer);
                reached[1] += usize::from(received.is_ok_and(|len| buffer[..len] == channel_data(0x4000, b"back")));
            }
            assert_eq!(reached, [PAIRS; 2], "{threads} threads");
            relay.stop(Duration::ZERO);
        }
    });
}

/// As in a container: the host's own address is not known beforehand, the one that is forwarded to it is.
#[test]
fn a_wildcard_listener_with_an_external_address_is_enough() {
    in_namespace("nat::a_wildcard_listener_with_an_external_address_is_enough", || {
        ip("addr add 10.0.0.10/32 dev lo");
        let args = ["relay", "--listen", "0.0.0.0:0", "--external-address", "192.0.2.10", "--user", "alice:secret"];
        let args =
            [&args[..], &["--allow-peer", "192.0.2.0/24", "--allow-peer", "10.0.0.0/8", "--threads", "4"]].concat();
        let matches = Arguments::command().try_get_matches_from(args).unwrap();
        let mut relay = Relay::start(&Config::new(&Arguments::read(&matches, []).unwrap()).unwrap()).unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], relay.local_addrs()[0].port()));
        let mut clients: Vec<_> = (0..16).map(|_| Client::new(addr, "alice", "secret", "backwater")).collect();
        let relayed: Vec<_> = clients.iter_mut().map(Client::allocate).collect();
        assert!(relayed.iter().all(|addr| addr.ip() == std::net::IpAddr::from([192, 0, 2, 10])));
        for pair in 0..8 {
            let (a, b) = (2 * pair, 2 * pair + 1);
            clients[a].bind_channel(0x4000, relayed[b]).unwrap();
            clients[b].permit(relayed[a]).unwrap();
            clients[a].socket.send(&channel_data(0x4000, b"between clients")).unwrap();
            assert!(indicated(&clients[b], relayed[a], b"between clients"));
        }
        // What the NAT forwards arrives at any address of the host.
        let peer = std::net::UdpSocket::bind("10.0.0.10:0").unwrap();
        let peer_addr = peer.local_addr().unwrap();
        clients[0].permit(peer_addr).unwrap();
        peer.send_to(b"from outside", SocketAddr::from(([10, 0, 0, 10], relayed[0].port()))).unwrap();
        assert!(indicated(&clients[0], peer_addr, b"from outside"));
        relay.stop(Duration::ZERO);
    });
}

/// The same rules as everywhere: no permission, no datagram; and a port that is no allocation's goes to nobody.
#[test]
fn a_client_behind_a_nat_needs_a_permission_for_the_advertised_address() {
    in_namespace("nat::a_client_behind_a_nat_needs_a_permission_for_the_advertised_address", || {
        ip("addr add 10.0.0.10/32 dev lo");
        for threads in ["1", "4"] {
            let mut relay = behind_a_nat(&["--threads", threads, "--allow-peer", "10.0.0.0/8"]);
            let mut receiver = client(&relay);
            let to = receiver.allocate();
            // What the host knows the sender as is not what its peers know it as.
            receiver.permit("10.0.0.10:9".parse().unwrap()).unwrap();
            let mut senders: Vec<_> = (0..8).map(|_| client(&relay)).collect();
            for sender in &mut senders {
                sender.allocate();
                sender.bind_channel(0x4000, to).unwrap();
                sender.socket.send(&channel_data(0x4000, b"not permitted")).unwrap();
            }
            until(|| total(&relay, |c| c.dropped(DropReason::NoPermission)) == 8);
            receiver.permit(to).unwrap();
            for (sender, internal) in senders.iter_mut().zip([false, true].into_iter().cycle()) {
                let relayed = SocketAddr::new(to.ip(), sender.relayed().port());
                // The internal address of a relayed port is that allocation too.
                let peer = if internal { SocketAddr::new([10, 0, 0, 10].into(), to.port()) } else { to };
                sender.permit(peer).unwrap();
                let mut out = [0; 200];
                let mut w = Writer::new(&mut out, Class::Indication, Method::SEND, TransactionId([1; 12])).unwrap();
                w.attribute(&XorPeerAddress(peer)).unwrap().attribute(&Data(b"permitted")).unwrap();
                sender.socket.send(w.finish()).unwrap();
                assert!(indicated(&receiver, relayed, b"permitted"), "{threads} threads, {peer}");
            }
            relay.stop(Duration::ZERO);
        }
    });
}

/// Ten pairs of ICE agents that have nothing but relayed candidates.
#[test]
fn aioice_connects_behind_a_nat_that_does_not_hairpin() {
    let Some(with) = python_with("aioice") else { return skip("aioice is not installed (pip install aioice)") };
    in_namespace("nat::aioice_connects_behind_a_nat_that_does_not_hairpin", || {
        ip("addr add 10.0.0.10/32 dev lo");
        let mut relay = behind_a_nat(&["--listen", "127.0.0.1:3478", "--threads", "2"]);
        python(&with, "aioice_pair.py", &["20", "10"], "10 pairs: 20 messages each way, relayed");
        relay.stop(Duration::ZERO);
    });
}
