//! `backwater-turn`'s client against coturn: what our own server shares its mistakes about would not show.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use backwater_turn::{
    Families,
    client::{Allocated, Client, Config, Credential, Event, Input},
    server::PortRequest,
};
use coturn::{Coturn, with_coturn};

mod coturn;
#[path = "../../backwater-udp/tests/support/mod.rs"]
mod support;

const PATIENCE: Duration = Duration::from_secs(60);

struct Driven {
    client: Client,
    socket: UdpSocket,
    payload: Vec<u8>,
}

impl Driven {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let mut seed = [0; 64];
        getrandom::fill(&mut seed).unwrap();
        let credential = Credential::new("alice", "secret").unwrap();
        let mut config = Config::new("127.0.0.1:3478".parse().unwrap(), credential, seed);
        change(&mut config);
        Self { client: Client::new(Instant::now(), config), socket: bound(), payload: Vec::new() }
    }

    /// Goes on until an event is the one that is waited for, or until data has come.
    fn until<T>(&mut self, mut found: impl FnMut(Option<&Event>) -> Option<T>) -> T {
        let start = Instant::now();
        let mut buffer = [0; 2000];
        loop {
            assert!(start.elapsed() < PATIENCE, "it does not come");
            while let Some(transmit) = self.client.poll_transmit(Instant::now()) {
                self.socket.send_to(transmit.bytes, transmit.server).unwrap();
            }
            while let Some(event) = self.client.poll_event() {
                if let Some(found) = found(Some(&event)) {
                    return found;
                }
                assert!(!matches!(event, Event::Failed(_) | Event::Lost(_) | Event::PeerRefused { .. }), "{event:?}");
            }
            if let Ok((len, from)) = self.socket.recv_from(&mut buffer)
                && let Input::Data { payload, .. } = self.client.handle_input(Instant::now(), from, &buffer[..len])
            {
                self.payload = buffer[payload].to_vec();
                if let Some(found) = found(None) {
                    return found;
                }
            }
            self.client.handle_timeout(Instant::now());
        }
    }

    fn allocated(&mut self) -> Allocated {
        self.until(|event| match event {
            Some(Event::Allocated(allocated)) => Some(allocated.clone()),
            _ => None,
        })
    }

    /// A channel to the peer carries data in both directions.
    fn reaches(&mut self, peer: &UdpSocket, relayed: SocketAddr) {
        let to = peer.local_addr().unwrap();
        let channel = self.client.bind(Instant::now(), to).unwrap();
        let mut datagram = *b"????to the peer";
        if self.client.send(Instant::now(), channel, &mut datagram).is_err() {
            self.until(|event| matches!(event, Some(Event::Bound { .. })).then_some(()));
            self.client.send(Instant::now(), channel, &mut datagram).unwrap();
        }
        self.socket.send_to(&datagram, self.client.server()).unwrap();
        let mut buffer = [0; 100];
        let (len, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"to the peer"[..], relayed));
        peer.send_to(b"and back", relayed).unwrap();
        self.until(|event| event.is_none().then_some(()));
        assert_eq!(self.payload, b"and back");
    }
}

fn bound() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    socket
}

fn peer(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn dual_allocation_relays_for_both_families() {
    with_coturn("dual_allocation_relays_for_both_families", || {
        let _coturn = Coturn::start("--allow-loopback-peers -E 127.0.0.1 -E ::1");
        let mut client = Driven::new(|config| config.families = Families { v4: true, v6: true });
        let Allocated { relayed, missing, .. } = client.allocated();
        assert_eq!(missing, None);
        client.reaches(&peer("127.0.0.1:0"), relayed.v4.unwrap());
        client.reaches(&peer("[::1]:0"), relayed.v6.unwrap());
    });
}

#[test]
fn allocation_moves_to_another_port_with_its_channels() {
    with_coturn("allocation_moves_to_another_port_with_its_channels", || {
        let _coturn = Coturn::start("--allow-loopback-peers --mobility");
        let mut client = Driven::new(|config| config.mobility = true);
        let relayed = client.allocated().relayed.v4.unwrap();
        let peer = peer("127.0.0.1:0");
        client.reaches(&peer, relayed);
        client.socket = bound();
        client.client.rebound(Instant::now());
        client.until(|event| matches!(event, Some(Event::Moved)).then_some(()));
        client.reaches(&peer, relayed);
    });
}

#[test]
fn even_port_is_even_and_the_next_one_is_kept_for_its_token() {
    with_coturn("even_port_is_even_and_the_next_one_is_kept_for_its_token", || {
        let _coturn = Coturn::start("--allow-loopback-peers");
        let mut first = Driven::new(|config| config.port = PortRequest::Even { reserve_next: true });
        let Allocated { relayed, token, .. } = first.allocated();
        let port = relayed.v4.unwrap().port();
        assert_eq!(port % 2, 0);
        let mut second = Driven::new(|config| config.port = PortRequest::Reserved(token.unwrap()));
        assert_eq!(second.allocated().relayed.v4.unwrap().port(), port + 1);
        second.client.close(Instant::now());
        second.until(|event| matches!(event, Some(Event::Closed)).then_some(()));
    });
}
