//! TURN over TCP.

use super::*;
use crate::{
    client::{client, peer},
    program::Program,
    support::{in_namespace, skip},
};

#[test]
fn every_odd_length_goes_both_ways_cut_at_every_byte() {
    let mut relay = start_tcp(&[]);
    let (socket, addr) = peer();
    let mut client = StreamClient::tcp(relay.local_tcp_addrs()[0]);
    client.allocate();
    client.bind_channel(0x4000, addr);
    let mut buffer = [0; 2000];
    for len in 0..=33 {
        let payload: Vec<u8> = (0..len).collect();
        let frame = padded(0x4000, &payload);
        for cut in 0..=frame.len() {
            // The piece behind the cut has the beginning of the next frame.
            client.send(&frame[..cut]);
            client.send(&[&frame[cut..], &frame[..]].concat());
            for _ in 0..2 {
                let (received, from) = socket.recv_from(&mut buffer).unwrap();
                assert_eq!(buffer[..received], payload, "{len} bytes, cut at {cut}");
                socket.send_to(&payload, from).unwrap();
                assert_eq!(client.frame(), frame);
            }
        }
    }
    drop(client);
    relay.stop(Duration::ZERO);
}

/// Send and Data indications, and a large message: all that UDP carries.
#[test]
fn indications_and_the_largest_datagram_go_both_ways() {
    let mut relay = start_tcp(&[]);
    let (socket, addr) = peer();
    let mut client = StreamClient::tcp(relay.local_tcp_addrs()[0]);
    let relayed = client.allocate();
    client.request(Method::CREATE_PERMISSION, &|w| drop(w.attribute(&XorPeerAddress(addr)))).unwrap();
    let mut buffer = vec![0; 70_000];
    for len in [0, 1, 1001, 60_003] {
        let payload = vec![len as u8; len];
        let mut message = vec![0; 70_000];
        let mut w = Writer::new(&mut message, Class::Indication, Method::SEND, TransactionId([3; 12])).unwrap();
        w.attribute(&XorPeerAddress(addr)).unwrap().attribute(&Data(&payload)).unwrap();
        let message = w.finish();
        client.send(message);
        let (received, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..received], from), (&payload[..], relayed));
        socket.send_to(&payload, relayed).unwrap();
        let frame = client.frame();
        assert_eq!(Message::parse(&frame).unwrap().get::<Data<'_>>().unwrap().unwrap().0, payload);
    }
    client.bind_channel(0x4001, addr);
    let payload = vec![7; 65_507];
    client.send(&padded(0x4001, &payload));
    let (received, _) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[..received], payload);
    socket.send_to(&payload, relayed).unwrap();
    assert_eq!(client.frame(), padded(0x4001, &payload));
    relay.stop(Duration::ZERO);
}

/// A client over UDP and one over TCP of the same relay reach each other, without a socket in between.
#[test]
fn clients_over_udp_and_tcp_reach_each_other() {
    let mut relay = start_tcp(&[]);
    let mut over_udp = client(&relay);
    let mut over_tcp = StreamClient::tcp(relay.local_tcp_addrs()[0]);
    let (udp_relayed, tcp_relayed) = (over_udp.allocate(), over_tcp.allocate());
    over_udp.bind_channel(0x4000, tcp_relayed).unwrap();
    over_tcp.bind_channel(0x4000, udp_relayed);
    for len in [1, 2, 3, 4, 1200] {
        let payload = vec![len as u8; len];
        over_udp.socket.send(&channel_data(0x4000, &payload)).unwrap();
        assert_eq!(over_tcp.frame(), padded(0x4000, &payload));
        over_tcp.send(&padded(0x4000, &payload));
        let mut buffer = [0; 2000];
        let received = over_udp.socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..received], channel_data(0x4000, &payload));
    }
    assert_eq!(total(&relay, |c| &c.inside), 10);
    relay.stop(Duration::ZERO);
}

/// What a client has sent in one piece with its requests is handled in its order, and nothing of it is lost to a full queue.
#[test]
fn stream_of_datagrams_loses_nothing_on_its_way_to_the_peer() {
    let mut relay = start_tcp(&[]);
    let (socket, addr) = peer();
    let mut client = StreamClient::tcp(relay.local_tcp_addrs()[0]);
    client.allocate();
    client.bind_channel(0x4000, addr);
    let mut received = 0u32;
    for round in 0..50u32 {
        // As many as a receive buffer holds.
        let frames: Vec<u8> = (0..100)
            .flat_map(|n| padded(0x4000, &[&(round * 100 + n).to_be_bytes()[..], &[0; 301]].concat()))
            .collect();
        client.send(&frames);
        let mut buffer = [0; 2000];
        for _ in 0..100 {
            let len = socket.recv(&mut buffer).unwrap();
            assert_eq!((len, &buffer[..4]), (305, &received.to_be_bytes()[..]));
            received += 1;
        }
    }
    assert_eq!(total(&relay, |c| &c.to_peers), 5000);
    relay.stop(Duration::ZERO);
}

/// A client that ends its connection leaves nothing behind: no allocation, no descriptor.
#[cfg(target_os = "linux")]
#[test]
fn clients_that_vanish_take_their_allocations_and_descriptors_along() {
    let args = ["--listen", "127.0.0.1:0", "--listen-tcp", "127.0.0.1:0", "--user", "alice:secret", "--threads", "2"];
    let args = [&args[..], &["--admin", "127.0.0.1:0", "--drain", "0"]].concat();
    let mut relay = Program::start_with(&args, &[]);
    let listener = relay.line("listening for TURN over TCP")["listener"].as_str().unwrap().parse().unwrap();
    let admin: SocketAddr = relay.line("administration")["admin"].as_str().unwrap().parse().unwrap();
    let metric = |name: &str| {
        let (_, text) = crate::admin::get(admin, "/metrics");
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap().to_owned();
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as u64
    };
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", relay.pid())).unwrap().count();
    let at_start = descriptors();
    for _ in 0..3 {
        let clients: Vec<_> = (0..100)
            .map(|_| {
                let mut client = StreamClient::tcp(listener);
                client.allocate();
                client
            })
            .collect();
        assert_eq!((metric("backwater_relay_allocations"), metric("backwater_relay_connections")), (100, 100));
        assert!(descriptors() >= at_start + 200);
        drop(clients);
        until("they are gone", || {
            (metric("backwater_relay_allocations"), metric("backwater_relay_connections")) == (0, 0)
                && descriptors() <= at_start
        });
    }
    assert_eq!(metric("backwater_relay_connections_total{transport=\"tcp\"}"), 300);
    assert_eq!(relay.terminate(), Some(0));
}

/// RFC 8016 from a connection to UDP and back: the allocation outlives the connection.
#[test]
fn mobile_allocation_goes_from_a_connection_to_udp() {
    let mut relay = start_tcp(&[]);
    let (socket, addr) = peer();
    let mut over_tcp = StreamClient::tcp(relay.local_tcp_addrs()[0]);
    let reply = over_tcp.request(Method::ALLOCATE, &|w| {
        w.attribute(&RequestedTransport::UDP).unwrap().attribute(&MobilityTicket(&[])).unwrap();
    });
    let reply = reply.unwrap();
    let message = Message::parse(&reply).unwrap();
    let ticket = message.get::<MobilityTicket<'_>>().unwrap().unwrap().0.to_vec();
    let relayed = message.get::<XorRelayedAddress>().unwrap().unwrap().0;
    over_tcp.bind_channel(0x4000, addr);
    drop(over_tcp);
    until("the connection is gone", || total(&relay, |c| &c.disconnected) == 1);
    // Nobody is there for it now.
    socket.send_to(b"lost", relayed).unwrap();
    until("it is dropped", || dropped(&relay, DropReason::ClientGone) == 1);
    let mut over_udp = client(&relay);
    over_udp.request(Method::REFRESH, &|w| drop(w.attribute(&MobilityTicket(&ticket)))).unwrap();
    socket.send_to(b"found", relayed).unwrap();
    let mut buffer = [0; 100];
    let len = over_udp.socket.recv(&mut buffer).unwrap();
    assert_eq!(buffer[..len], channel_data(0x4000, b"found"));
    assert_eq!(total(&relay, |c| &c.closed), 0);
    relay.stop(Duration::ZERO);
}

/// The header of a load balancer names the client; whoever is not listed cannot send one.
#[test]
fn proxy_protocol_names_the_client_and_is_believed_of_listed_proxies_only() {
    let header = |client: [u8; 4], port: u16| {
        let body = [&client[..], &[198, 51, 100, 1], &port.to_be_bytes(), &3478u16.to_be_bytes()].concat();
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C"[..], &body].concat()
    };
    let mapped = |client: &mut StreamClient| {
        let reply = client.request(Method::BINDING, &|_| ()).unwrap();
        Message::parse(&reply).unwrap().get::<XorMappedAddress>().unwrap().unwrap().0.to_string()
    };
    let mut relay = start_tcp(&["--proxy-protocol-from", "127.0.0.1"]);
    let at = relay.local_tcp_addrs()[0];
    let mut client = StreamClient::tcp(at);
    for byte in header([192, 0, 2, 1], 4000) {
        client.send(&[byte]);
    }
    assert_eq!(mapped(&mut client), "192.0.2.1:4000");
    client.allocate();
    // The load balancer reuses the addresses: the old connection is gone there.
    let mut next = StreamClient::tcp(at);
    next.send(&header([192, 0, 2, 1], 4000));
    assert_eq!(mapped(&mut next), "192.0.2.1:4000");
    until("the old one is gone", || ended(&relay, CutOff::Replaced) == 1 && total(&relay, |c| &c.closed) == 1);
    next.allocate();
    // A health check of its own, and a client that sends none.
    let mut own = StreamClient::tcp(at);
    own.send(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    assert!(mapped(&mut own).starts_with("127.0.0.1:"));
    let mut without = connect(at);
    without.write_all(&[0, 1, 0, 0]).unwrap();
    assert!(until_ended(&without).is_empty());
    assert_eq!(ended(&relay, CutOff::Proxy), 1);
    relay.stop(Duration::ZERO);

    let mut relay = start_tcp(&["--proxy-protocol-from", "127.0.0.2"]);
    let mut forger = connect(relay.local_tcp_addrs()[0]);
    forger.write_all(&header([192, 0, 2, 1], 4000)).unwrap();
    assert!(until_ended(&forger).is_empty());
    assert_eq!(ended(&relay, CutOff::NotTurn), 1);
    relay.stop(Duration::ZERO);
}

/// WebRTC in Python over `turn:…?transport=tcp`.
#[test]
fn aiortc_connects_over_tcp() {
    let Some(with) = crate::clients::python_with("aiortc") else {
        return skip("aiortc is not installed (pip install aiortc)");
    };
    in_namespace("streams::tcp::aiortc_connects_over_tcp", || {
        let args = ["--listen", "127.0.0.1:3478", "--listen-tcp", "127.0.0.1:3478", "--threads", "2"];
        let mut relay = crate::client::start(&args);
        crate::clients::python(&with, "aiortc_pair.py", &["?transport=tcp"], "500 messages each way, relayed");
        assert_eq!(total(&relay, |c| &c.over_tcp), 2);
        until("they are gone", || total(&relay, |c| &c.closed) == 2);
        relay.stop(Duration::ZERO);
    });
}
