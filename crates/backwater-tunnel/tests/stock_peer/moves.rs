//! Either end gets another address, or is started again.

use std::{net::UdpSocket, thread::sleep, time::Duration};

use backwater_tunnel::config::Key;
use boringtun::{
    noise::{TunnResult, rate_limiter::RateLimiter},
    x25519::PublicKey,
};
use rustix::process::Signal;

use crate::support::{
    in_namespace,
    traffic::{Echo, until_answered},
    tunnel::{HERE, PROGRAMS, Sides, THERE},
};

const SOON: Duration = Duration::from_secs(2);
const CALL: Duration = Duration::from_secs(5);

#[test]
fn our_address_changes() {
    in_namespace("moves::our_address_changes", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[0], CALL);
        sides.here.run("ip address del 10.9.1.1/24 dev fe1");
        sides.here.run("ip address add 10.9.1.3/24 dev fe1");
        let time = until_answered(&sides.here, THERE[0], SOON);
        eprintln!("our IPv4 address has changed: {time:.1?}");
        let endpoints = sides.there.run("wg show wg0 endpoints");
        assert!(endpoints.contains("10.9.1.3:"), "{endpoints}");
        assert_eq!(tunnel.peer("handshakes"), 1, "the session goes on");
    });
}

/// The peer has something to say, and learns without hearing from our host where we are now.
#[test]
fn our_ipv6_address_changes_while_only_the_peer_sends() {
    in_namespace("moves::our_ipv6_address_changes_while_only_the_peer_sends", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _here, _there) = (sides.stock(""), Echo::new(&sides.here), Echo::new(&sides.there));
        let tunnel = sides.up("", "Endpoint = [fd09:1::2]:51820");
        until_answered(&sides.here, THERE[0], CALL);
        sides.here.run("ip address add fd09:1::3/64 dev fe1 nodad");
        sides.here.run("ip address del fd09:1::1/64 dev fe1");
        let time = until_answered(&sides.there, HERE[0], SOON);
        eprintln!("our IPv6 address has changed: {time:.1?}");
        let endpoints = sides.there.run("wg show wg0 endpoints");
        assert!(endpoints.contains("[fd09:1::3]:"), "{endpoints}");
        assert_eq!(tunnel.peer("handshakes"), 1, "the session goes on");
    });
}

#[test]
fn the_peers_address_changes() {
    in_namespace("moves::the_peers_address_changes", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _here, _there) = (sides.stock(""), Echo::new(&sides.here), Echo::new(&sides.there));
        let tunnel = sides.up("ListenPort = 51820", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[0], CALL);
        sides.there.run("ip address del 10.9.1.2/24 dev fe1");
        sides.there.run("ip address add 10.9.1.4/24 dev fe1");
        let key = sides.there.run("wg show wg0 peers");
        // And once more, by the other family.
        for (we_are, it_is) in [("10.9.1.1", "10.9.1.4"), ("[fd09:1::1]", "[fd09:1::2]")] {
            sides.there.run(&format!("wg set wg0 peer {} endpoint {we_are}:51820", key.trim()));
            let time = until_answered(&sides.there, HERE[0], SOON);
            eprintln!("the peer's address has changed: {time:.1?}");
            until_answered(&sides.here, THERE[1], SOON);
            assert_eq!(tunnel.status()["peers"][0]["endpoint"], format!("{it_is}:51820"));
        }
        assert_eq!(tunnel.peer("handshakes"), 1, "the session goes on");
    });
}

/// The peer sends to an address of ours that the system would not pick, so we answer from it, until it is gone.
#[test]
fn an_address_that_is_gone_is_not_sent_from() {
    in_namespace("moves::an_address_that_is_gone_is_not_sent_from", PROGRAMS, || {
        for (family, endpoint, second) in [(0, "10.9.1.2", "10.9.1.5"), (1, "[fd09:1::2]", "fd09:1::5")] {
            let sides = Sides::new();
            let nodad = if family == 1 { "nodad preferred_lft 0" } else { "" };
            sides.here.run(&format!("ip address add {second}/24 dev fe1 {nodad}"));
            let (_stock, _here, _there) = (sides.stock(""), Echo::new(&sides.here), Echo::new(&sides.there));
            let tunnel = sides.up("ListenPort = 51820", &format!("Endpoint = {endpoint}:51820"));
            until_answered(&sides.here, THERE[0], CALL);
            let key = sides.there.run("wg show wg0 peers");
            let at = if family == 1 { format!("[{second}]") } else { second.to_owned() };
            sides.there.run(&format!("wg set wg0 peer {} endpoint {at}:51820", key.trim()));
            until_answered(&sides.there, HERE[0], CALL);
            let endpoints = sides.there.run("wg show wg0 endpoints");
            assert!(endpoints.contains(&at), "we answer from where we are reached: {endpoints}");

            sides.here.run(&format!("ip address del {second}/24 dev fe1"));
            let output = sides.here.run(&format!("ping -c 16 -i 0.05 -W 5 {}", THERE[0]));
            eprintln!("{output}");
            // The first may find out.
            assert!(tunnel.peer("datagrams_dropped") <= 1, "{:#}", tunnel.status());
            let endpoints = sides.there.run("wg show wg0 endpoints");
            assert!(!endpoints.contains(&at), "{endpoints}");
        }
    });
}

#[test]
fn we_are_killed_and_started_again() {
    in_namespace("moves::we_are_killed_and_started_again", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        for _ in 0..2 {
            let mut tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
            let time = until_answered(&sides.here, THERE[0], CALL);
            eprintln!("we were started: {time:.1?}");
            tunnel.process.signal(Signal::KILL);
            tunnel.process.wait();
            sleep(Duration::from_millis(100));
        }
    });
}

#[test]
fn the_peer_is_started_again_and_calls() {
    in_namespace("moves::the_peer_is_started_again_and_calls", PROGRAMS, || {
        let sides = Sides::new();
        let _tunnel = sides.up("ListenPort = 51820", "Endpoint = 10.9.1.2:51820");
        let (_here, _there) = (Echo::new(&sides.here), Echo::new(&sides.there));
        for _ in 0..2 {
            let mut stock = sides.stock("Endpoint = 10.9.1.1:51820");
            let time = until_answered(&sides.there, HERE[0], CALL);
            eprintln!("the peer was started: {time:.1?}");
            until_answered(&sides.here, THERE[0], SOON);
            stock.signal(Signal::KILL);
            stock.wait();
        }
    });
}

/// A cookie says nothing of where the peer is: anyone can send one who saw the initiation and knows the peer's public key.
#[test]
fn a_cookie_from_elsewhere_is_taken_and_moves_nothing() {
    in_namespace("moves::a_cookie_from_elsewhere_is_taken_and_moves_nothing", PROGRAMS, || {
        let sides = Sides::new();
        sides.there.run("ip address add 10.9.1.9/24 dev fe1");
        let [peer, other] = ["10.9.1.2:51820", "10.9.1.9:4000"].map(|address| {
            let socket = sides.there.within(move || UdpSocket::bind(address).unwrap());
            socket.set_read_timeout(Some(60 * Duration::from_secs(1))).unwrap();
            socket
        });
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820\nPersistentKeepalive = 1");
        let mut message = [0; 200];
        let mut next = || {
            let (len, from) = peer.recv_from(&mut message).unwrap();
            (message[..len].to_vec(), from)
        };
        let (initiation, from) = next();
        assert_eq!((initiation.len(), &initiation[132..]), (148, &[0; 16][..]), "no cookie yet");
        // One that is always under load.
        let key = PublicKey::from(Key::from_base64(sides.public_keys()[1]).unwrap().0);
        let mut reply = [0; 64];
        let Err(TunnResult::WriteToNetwork(cookie)) =
            RateLimiter::new(&key, 0).verify_packet(Some(from.ip()), &initiation, &mut reply)
        else {
            panic!("no cookie")
        };
        other.send_to(cookie, from).unwrap();
        let with_cookie = std::iter::repeat_with(&mut next).find(|(message, _)| message[132..] != [0; 16]);
        assert_eq!(with_cookie.unwrap().1, from);
        assert_eq!(tunnel.status()["peers"][0]["endpoint"], "10.9.1.2:51820");
        other.set_nonblocking(true).unwrap();
        assert!(other.recv(&mut [0; 200]).is_err(), "something came to where the cookie was from");
    });
}
