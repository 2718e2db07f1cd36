//! What attackers try, with and without an account: `docs/security.md` names the promise that each test holds.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use backwater_relay::{Arguments, Config, Counters, Relay};
use backwater_stun::*;
use backwater_turn::server::DropReason;

use crate::{
    client::{Client, PATIENCE, client, start},
    support::{in_namespace, ip},
};

fn start_with(args: &str) -> Relay {
    let args = ["relay", "--user", "alice:secret"].into_iter().chain(args.split_whitespace());
    let matches = Arguments::command().try_get_matches_from(args).unwrap();
    Relay::start(&Config::new(&Arguments::read(&matches, []).unwrap()).unwrap()).unwrap()
}

fn total(relay: &Relay, counter: fn(&Counters) -> u64) -> u64 {
    relay.counters().iter().map(|c| counter(c)).sum()
}

fn dropped(relay: &Relay, reason: DropReason) -> u64 {
    relay.counters().iter().map(|c| c.dropped(reason)).sum()
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn send_indication(peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut buffer = [0; 2000];
    let mut w = Writer::new(&mut buffer, Class::Indication, Method::SEND, TransactionId([7; 12])).unwrap();
    w.attribute(&XorPeerAddress(peer)).unwrap().attribute(&Data(payload)).unwrap();
    w.finish().to_vec()
}

/// Addresses that look public live in the namespace only. Each relay is asked for a channel to its own listener by every
/// name that the listener has, and for a nested request to it by Send indication.
#[test]
fn a_listener_is_no_peer_by_any_of_its_addresses() {
    in_namespace("security::a_listener_is_no_peer_by_any_of_its_addresses", || {
        for addr in ["5.5.5.5/32", "5.5.5.6/32", "9.9.9.9/32", "2600::5/128", "2600::6/128"] {
            ip(&format!("addr add {addr} dev lo"));
        }
        // Every address of a routed prefix is this host's too, though no interface has it.
        ip("route add local 6.6.6.0/24 dev lo");
        let v4 = ["5.5.5.5", "5.5.5.6", "6.6.6.6", "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3"];
        let v6 = ["2600::5", "2600::6", "::1", "::", "2002:505:505::1", "64:ff9b::5.5.5.5", "fe80::5efe:505:505"];
        for (args, family, from, bad) in [
            ("--listen 0.0.0.0:3478 --relay-address 5.5.5.5", AddressFamily::Ipv4, "5.5.5.6:0", &v4[..]),
            ("--listen [::]:3478 --relay-address 2600::5", AddressFamily::Ipv6, "[2600::6]:0", &v6),
            (
                "--listen 5.5.5.5:3478 --external-address 9.9.9.9",
                AddressFamily::Ipv4,
                "5.5.5.6:0",
                &["5.5.5.5", "9.9.9.9"],
            ),
        ] {
            let mut relay = start_with(&format!("{args} --allow-peer 0.0.0.0/0 --allow-peer ::/0"));
            let server = if family == AddressFamily::Ipv4 { "5.5.5.5:3478" } else { "[2600::5]:3478" };
            let mut client = Client::new(server.parse().unwrap(), "alice", "secret", "backwater");
            client.socket = UdpSocket::bind(from).unwrap();
            client.socket.connect(server).unwrap();
            client.socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            client
                .try_allocate(&|w| {
                    w.attribute(&RequestedAddressFamily(family)).unwrap();
                })
                .unwrap();
            for (bad, number) in bad.iter().zip(0x4000..) {
                let listener = SocketAddr::new(bad.parse().unwrap(), 3478);
                assert_eq!(client.bind_channel(number, listener).err(), Some(403), "{args}: {listener}");
                // Another port of the same address is no listener, and a permission is for all ports.
                if client.permit(listener).is_ok() {
                    let before = dropped(&relay, DropReason::Peer);
                    let nested = client.encode(Method::ALLOCATE, &|w| {
                        w.attribute(&RequestedTransport::UDP).unwrap();
                    });
                    client.socket.send(&send_indication(listener, &nested)).unwrap();
                    wait_until("the relay has not dropped it", || dropped(&relay, DropReason::Peer) == before + 1);
                }
            }
            assert_eq!((total(&relay, |c| c.allocations.get()), total(&relay, |c| c.to_peers.get())), (1, 0), "{args}");
            relay.stop(Duration::ZERO);
        }
    });
}

/// CVE-2020-26262 and what came after it, with everything allowed that can be: the addresses that stand for this host.
#[test]
fn this_host_is_never_a_peer() {
    let mut relay = start(&["--allow-peer", "0.0.0.0/0", "--allow-peer", "::/0"]);
    let mut client = client(&relay);
    client.allocate();
    for host in ["0.0.0.0", "0.0.0.1", "0.255.255.255"] {
        let peer = SocketAddr::new(host.parse().unwrap(), 9);
        assert_eq!(client.permit(peer).err(), Some(403), "{peer}");
        assert_eq!(client.bind_channel(0x4000, peer).err(), Some(403), "{peer}");
    }
    relay.stop(Duration::ZERO);
}

/// RFC 8656, section 5, and RFC 8489, section 6.3.1: the network may double a datagram and deliver the copy late.
#[test]
fn late_copies_of_requests_change_nothing() {
    let mut relay = start(&["--threads", "1"]);
    let mut client = client(&relay);
    client.allocate();
    let delete: crate::client::Fill<'_> = &|w| {
        w.attribute(&Lifetime(0)).unwrap();
    };
    let allocate: crate::client::Fill<'_> = &|w| {
        w.attribute(&RequestedTransport::UDP).unwrap();
    };
    let mut buffer = [0; 2000];
    let mut send = |client: &Client, request: &[u8]| {
        client.socket.send(request).unwrap();
        let len = client.socket.recv(&mut buffer).unwrap();
        buffer[..len].to_vec()
    };
    let count = |relay: &Relay| (total(relay, |c| c.allocations.get()), total(relay, |c| c.closed.get()));

    let deletion = client.encode(Method::REFRESH, delete);
    let deleted = send(&client, &deletion);
    let allocation = client.encode(Method::ALLOCATE, allocate);
    let allocated = send(&client, &allocation);
    assert_eq!(count(&relay), (2, 1));
    assert_eq!(send(&client, &deletion), deleted, "the same answer");
    assert_eq!(count(&relay), (2, 1), "a late copy of the deletion has deleted the next allocation");

    client.request(Method::REFRESH, delete).unwrap();
    assert_eq!(count(&relay), (2, 2));
    assert_eq!(send(&client, &allocation), allocated, "the same answer");
    assert_eq!(count(&relay), (2, 2), "a late copy of the request has made an allocation that nobody knows");
    relay.stop(Duration::ZERO);
}

/// A source that has a valid nonce sends 2,000 wrong passwords. The relay verifies a few of them.
#[test]
fn passwords_cannot_be_tried_at_will() {
    in_namespace("security::passwords_cannot_be_tried_at_will", || {
        ip("addr add 5.5.5.5/32 dev lo");
        ip("addr add 5.5.5.6/32 dev lo");
        let mut relay = start_with("--listen 5.5.5.5:3478 --reply-limit 0 --threads 1");
        let guesser = |from: &str, password: &str| {
            let mut client = Client::new("5.5.5.5:3478".parse().unwrap(), "alice", password, "backwater");
            client.socket = UdpSocket::bind((from, 0)).unwrap();
            client.socket.connect("5.5.5.5:3478").unwrap();
            client.socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            client
        };
        let mut attacker = guesser("5.5.5.6", "wrong");
        // The first gets the nonce, the second is a guess.
        attacker.request(Method::ALLOCATE, &|_| ()).unwrap_err();
        let guess = attacker.encode(Method::ALLOCATE, &|w| {
            w.attribute(&RequestedTransport::UDP).unwrap();
        });
        for _ in 0..2000 {
            attacker.socket.send(&guess).unwrap();
            std::thread::sleep(Duration::from_micros(50));
        }
        // Behind the guesses, so that all of them have been handled.
        let mut last = guesser("5.5.5.6", "wrong");
        last.exchange(Method::BINDING, &|_| ());
        let answers = total(&relay, |c| c.replies.get());
        assert!(answers < 500, "{answers} of 2000 guesses were looked at");
        // From elsewhere the user gets in.
        guesser("5.5.5.5", "secret").allocate();
        relay.stop(Duration::ZERO);
    });
}

/// A 401 may go to a forged address, so it is at most 4.5 times as long as its request.
#[test]
fn what_a_stranger_gets_is_no_more_than_four_and_a_half_times_what_it_sent() {
    for realm in ["a", "example.org", "turn.eu-west-1.media.example.com", &"x".repeat(48), &"é".repeat(24)] {
        let mut relay = start(&["--realm", realm]);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut buffer = [0; 2000];
        for method in [Method::BINDING, Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION] {
            for attributes in 0..3 {
                let mut request = [0; 200];
                let mut w = Writer::new(&mut request, Class::Request, method, TransactionId([1; 12])).unwrap();
                for _ in 0..attributes {
                    w.attribute(&RequestedTransport::UDP).unwrap();
                }
                let request = w.finish().to_vec();
                socket.send_to(&request, relay.local_addrs()[0]).unwrap();
                // A short request may get no answer.
                let patience = if attributes == 0 { Duration::from_millis(500) } else { PATIENCE };
                socket.set_read_timeout(Some(patience)).unwrap();
                let answer = socket.recv(&mut buffer).ok();
                let most = request.len() * 9 / 2;
                assert!(answer.is_none_or(|len| len <= most), "{answer:?} for {}: {realm}", request.len());
                // What a client really sends is answered.
                assert!(answer.is_some() || attributes == 0, "{realm}");
            }
        }
        relay.stop(Duration::ZERO);
    }
    let long = ["relay", "--user", "a:b", "--listen", "127.0.0.1:0", "--realm", &"x".repeat(49)];
    let matches = Arguments::command().try_get_matches_from(long).unwrap();
    let errors = Config::new(&Arguments::read(&matches, []).unwrap()).unwrap_err();
    assert!(errors[0].to_string().contains("--realm"), "{errors:?}");
}

/// The line for fail2ban has the source, the user name with control characters escaped, and the reason. The lines are limited.
#[test]
fn a_failed_authentication_is_in_the_log_and_in_the_metrics() {
    let args = ["--listen", "127.0.0.1:0", "--user", "alice:secret", "--drain", "0", "--admin", "127.0.0.1:0"];
    let mut relay = crate::program::Program::start(&args, 0);
    let addr = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
    let admin: SocketAddr = relay.line("administration")["admin"].as_str().unwrap().parse().unwrap();
    for (user, password, shown, reason) in [
        ("alice", "wrong", "alice", "wrong_password"),
        ("1500000000:bob", "x", "1500000000:bob", "unknown_user"),
        ("eve\u{1b}[31m\n", "x", r"eve\u{1b}[31m\n", "unknown_user"),
    ] {
        let mut client = Client::new(addr, user, password, "backwater");
        client.try_allocate(&|_| ()).unwrap_err();
        // The client tries twice.
        relay.line("authentication failed");
        let line = relay.line("authentication failed");
        let source = client.socket.local_addr().unwrap();
        assert_eq!((&line["ip"], &line["client"]), (&"127.0.0.1".into(), &source.to_string().into()));
        assert_eq!((&line["user"], &line["reason"]), (&shown.into(), &reason.into()));
        assert_eq!(line["severity"], "INFO");
        // The next second has lines of its own.
        std::thread::sleep(Duration::from_millis(1100));
    }
    let (_, metrics) = crate::admin::get(admin, "/metrics");
    assert!(metrics.contains("backwater_relay_auth_failures_total{reason=\"wrong_password\"} 2\n"), "{metrics}");
    // A guesser gets as many lines as there are to have, and no more.
    let mut guesser = Client::new(addr, "alice", "wrong", "backwater");
    guesser.try_allocate(&|_| ()).unwrap_err();
    for _ in 0..1000 {
        let guess = guesser.encode(Method::ALLOCATE, &|_| ());
        guesser.socket.send(&guess).unwrap();
    }
    let (code, lines) = relay.terminate_and_read();
    let failed = lines.iter().filter(|line| line["message"] == "authentication failed").count();
    assert!(code == Some(0) && (1..100).contains(&failed), "{failed} lines");
    // What is not verified any more is said, too: its client gets no answer.
    let unverified: Vec<_> =
        lines.iter().filter(|l| l["message"].as_str().unwrap().contains("passwords are not verified")).collect();
    assert!((1..10).contains(&unverified.len()) && unverified[0]["source"] == "127.0.0.1", "{unverified:?}");
}

/// Reserved ports are a user's like any others.
#[test]
fn reserved_ports_count_against_their_user() {
    let mut relay = start(&["--threads", "1", "--user", "bob:secret", "--max-allocations-per-user", "4"]);
    let reserve: crate::client::Fill<'_> = &|w| {
        w.attribute(&EvenPort { reserve_next: true }).unwrap();
    };
    let mut reserved = 0;
    for _ in 0..20 {
        let mut client = client(&relay);
        match client.try_allocate(reserve) {
            Ok(_) => reserved += 1,
            Err(code) => assert_eq!(code, 486),
        }
        let _ = client.request(Method::REFRESH, &|w| {
            w.attribute(&Lifetime(0)).unwrap();
        });
    }
    assert!((1..=4).contains(&reserved), "{reserved} ports reserved by a user who may have four");
    // The others have all that there is, and a pair is two allocations.
    let mut bob = Client::new(relay.local_addrs()[0], "bob", "secret", "backwater");
    let reply = bob.try_allocate(reserve).unwrap();
    let token = Message::parse(&reply).unwrap().get::<ReservationToken>().unwrap().unwrap();
    let mut second = Client::new(relay.local_addrs()[0], "bob", "secret", "backwater");
    second
        .try_allocate(&|w| {
            w.attribute(&token).unwrap();
        })
        .unwrap();
    relay.stop(Duration::ZERO);
}
