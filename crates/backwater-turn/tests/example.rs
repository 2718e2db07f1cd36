//! The example client, through the example relay, to a peer that echoes.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use backwater_turn::client::{Client, Config, Credential, Event, Failure, Input};

#[path = "../examples/client.rs"]
#[allow(dead_code)]
mod client;
#[path = "../examples/relay.rs"]
#[allow(dead_code)]
mod relay;

fn bound() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

/// Returns the address of a relay that runs as long as the tests.
fn start() -> std::net::SocketAddr {
    let listener = bound();
    let server = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            relay::Relay::new(tokio::net::UdpSocket::from_std(listener).unwrap()).unwrap().run().await
        })
    });
    server
}

#[test]
fn example_client_reaches_a_peer_through_the_example_relay() {
    let server = start();
    let peer = bound();
    let address = peer.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((len, source)) = peer.recv_from(&mut buffer) {
            peer.send_to(&buffer[..len], source).unwrap();
        }
    });
    let user = Credential::new("alice", "secret").unwrap();
    assert_eq!(client::ask(server, user, address, b"to the peer and back").unwrap(), b"to the peer and back");
}

#[test]
fn example_client_says_that_the_password_is_wrong() {
    let user = Credential::new("alice", "guess").unwrap();
    let error = client::ask(start(), user, "127.0.0.1:9".parse().unwrap(), b"").unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Failure::Unauthenticated));
}

#[test]
fn example_relay_has_indications_for_a_peer_without_a_channel() {
    let (server, socket, peer) = (start(), bound(), bound());
    for socket in [&socket, &peer] {
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    }
    let address = peer.local_addr().unwrap();
    let config = Config::new(server, Credential::new("alice", "secret").unwrap(), [9; 64]);
    let mut client = Client::new(Instant::now(), config);
    client.permit(Instant::now(), address.ip()).unwrap();
    let mut buffer = [0; 2000];
    let payload = loop {
        while let Some(transmit) = client.poll_transmit(Instant::now()) {
            socket.send_to(transmit.bytes, transmit.server).unwrap();
        }
        while let Some(event) = client.poll_event() {
            if let Event::Permitted(_) = event {
                let prefix = client.send_indication(Instant::now(), address, 5).unwrap();
                let datagram = [prefix.as_bytes(), b"hello", prefix.padding()].concat();
                socket.send_to(&datagram, server).unwrap();
                let mut received = [0; 100];
                let (len, relayed) = peer.recv_from(&mut received).unwrap();
                peer.send_to(&received[..len], relayed).unwrap();
            }
        }
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        if let Input::Data { payload, .. } = client.handle_input(Instant::now(), from, &buffer[..len]) {
            break payload;
        }
    };
    assert!(buffer[0] == 0 && &buffer[payload] == b"hello", "a Data indication");
}
