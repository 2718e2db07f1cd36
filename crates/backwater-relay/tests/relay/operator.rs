//! What the log tells an operator while the relay runs.

use std::net::SocketAddr;

use backwater_stun::*;
use serde_json::Value;

use crate::{
    client::{Client, channel_data, peer},
    program::Program,
    support::{in_namespace, ip},
};

const BASE: [&str; 6] = ["--listen", "127.0.0.1:0", "--user", "alice:secret", "--drain", "0"];

fn start(args: &[&str]) -> (Program, SocketAddr, Value) {
    let mut relay = Program::start(&[&BASE[..], args].concat(), 0);
    let started = relay.line("started");
    let addr = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
    (relay, addr, started)
}

#[test]
fn one_line_at_the_start_says_what_runs() {
    let args = ["--secret", "s", "--threads", "2", "--external-address", "192.0.2.10", "--ports", "50000-50100"];
    let (relay, _, line) = start(&[&args[..], &["--realm", "example.org", "--user", "bob:secret"]].concat());
    for (key, value) in [
        ("version", env!("CARGO_PKG_VERSION")),
        ("relayed", "127.0.0.1 → 192.0.2.10"),
        ("ports", "50000-50100"),
        ("realm", "example.org"),
        ("file", "none"),
    ] {
        assert_eq!(line[key], value, "{line}");
    }
    assert!(line["listen"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    assert_eq!((&line["users"], &line["secrets"], &line["threads"]), (&2.into(), &1.into(), &2.into()));
    assert_eq!(relay.terminate(), Some(0));
}

#[test]
fn a_private_relayed_address_without_an_external_one_is_a_warning() {
    in_namespace("operator::a_private_relayed_address_without_an_external_one_is_a_warning", || {
        ip("addr add 10.0.0.10/32 dev lo");
        let private = ["--relay-address", "10.0.0.10"];
        let mut relay = Program::start(&[&BASE[..], &private].concat(), 0);
        let line = relay.line("private");
        assert_eq!((&line["severity"], &line["relayed"]), (&"WARN".into(), &"10.0.0.10".into()), "{line}");
        assert!(line["remedy"].as_str().unwrap().contains("external-address"), "{line}");
        assert_eq!(relay.terminate(), Some(0));
        for meant in [["--external-address", "9.9.9.9"], ["--allow-peer", "10.0.0.0/8"]] {
            let relay = Program::start(&[&BASE[..], &private, &meant].concat(), 0);
            let (_, lines) = relay.terminate_and_read();
            assert!(lines.iter().all(|line| line["severity"] != "WARN"), "{lines:?}");
        }
    });
}

/// A 403 for the relay's own address must not be mended by opening the internal network.
#[test]
fn a_403_for_the_relays_own_address_says_so() {
    in_namespace("operator::a_403_for_the_relays_own_address_says_so", || {
        ip("addr add 10.0.0.10/32 dev lo");
        let (mut relay, addr, _) = start(&["--relay-address", "10.0.0.10", "--external-address", "192.0.2.10"]);
        for own in ["10.0.0.10", "192.0.2.10"] {
            let mut client = Client::new(addr, "alice", "secret", "backwater");
            client.allocate();
            assert_eq!(client.permit(SocketAddr::new(own.parse().unwrap(), 9)).unwrap_err(), 403);
            let line = relay.line("peer refused with 403");
            assert!(line["why"].as_str().unwrap().starts_with("it is this relay's own"), "{line}");
            let remedy = line["remedy"].as_str().unwrap();
            assert!(remedy.contains(&format!("allow-peer = [\"{own}\"]")) && remedy.contains("opens"), "{line}");
        }
        assert_eq!(relay.terminate(), Some(0));
    });
}

/// Browsers try each other's private candidates as a matter of course.
#[test]
fn a_clients_403s_are_at_info_once() {
    let (relay, addr, _) = start(&["--log-level", "debug", "--threads", "1"]);
    for _ in 0..2 {
        let mut client = Client::new(addr, "alice", "secret", "backwater");
        client.allocate();
        for last in 1..=3 {
            assert_eq!(client.permit(SocketAddr::from(([192, 168, 1, last], 9))).unwrap_err(), 403);
        }
        std::mem::forget(client);
    }
    let (_, lines) = relay.terminate_and_read();
    let severities: Vec<_> = lines
        .iter()
        .filter(|line| line["message"] == "peer refused with 403")
        .map(|line| line["severity"].as_str().unwrap())
        .collect();
    assert_eq!(severities, ["INFO", "DEBUG", "DEBUG", "INFO", "DEBUG", "DEBUG"]);
}

/// Without that line the log would not tell how many bytes they have relayed.
#[test]
fn allocations_that_are_left_when_the_relay_stops_have_their_last_line() {
    for threads in ["1", "4"] {
        let (mut relay, addr, _) =
            start(&["--log-allocations", "on", "--allow-peer", "127.0.0.0/8", "--threads", threads]);
        let (peer, peer_addr) = peer();
        let mut clients: Vec<_> = (0..8).map(|_| Client::new(addr, "alice", "secret", "backwater")).collect();
        let mut expected = Vec::new();
        for (number, client) in clients.iter_mut().enumerate() {
            let relayed = client.allocate();
            client.bind_channel(0x4000, peer_addr).unwrap();
            client.socket.send(&channel_data(0x4000, &vec![0; 100 + number])).unwrap();
            peer.recv(&mut [0; 200]).unwrap();
            expected.push((relayed.to_string(), 100 + number as u64));
        }
        let deleted = clients.pop().unwrap().request(Method::REFRESH, &|w| {
            w.attribute(&Lifetime(0)).unwrap();
        });
        deleted.unwrap();
        relay.line("allocation ended");
        expected.pop();
        let (code, lines) = relay.terminate_and_read();
        let ended = lines.iter().filter(|line| line["message"] == "allocation ended");
        let mut ended: Vec<_> = ended
            .map(|line| {
                assert_eq!((&line["why"], &line["user"]), (&"stopped".into(), &"alice".into()), "{line}");
                (line["relayed"].as_str().unwrap().to_owned(), line["bytes_to_peers"].as_u64().unwrap())
            })
            .collect();
        expected.sort();
        ended.sort();
        assert_eq!((code, ended), (Some(0), expected), "{threads} threads: {lines:?}");
    }
}

/// Clients that get no answer look like a network that loses datagrams.
#[test]
fn a_reply_that_is_suppressed_is_a_warning_once() {
    in_namespace("operator::a_reply_that_is_suppressed_is_a_warning_once", || {
        ip("addr add 192.0.2.1/32 dev lo");
        let args = ["--listen", "192.0.2.1:3478", "--user", "alice:secret", "--drain", "0", "--reply-limit", "5"];
        let mut relay = Program::start(&[&args[..], &["--threads", "1"]].concat(), 1);
        let client = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
        let mut buffer = [0; 100];
        let w = Writer::new(&mut buffer, Class::Request, Method::BINDING, TransactionId([1; 12])).unwrap();
        let request = w.finish().to_vec();
        (0..50).for_each(|_| assert!(client.send_to(&request, "192.0.2.1:3478").is_ok()));
        let line = relay.line("not answered");
        assert_eq!((&line["severity"], &line["source"]), (&"WARN".into(), &"192.0.2.1".into()), "{line}");
        assert!(line["remedy"].as_str().unwrap().contains("reply-limit"), "{line}");
        let (_, lines) = relay.terminate_and_read();
        assert!(!lines.iter().any(|line| line["severity"] == "WARN"), "once: {lines:?}");
    });
}

#[test]
fn the_lines_of_an_allocation_can_be_joined() {
    let (mut relay, addr, _) = start(&["--log-allocations", "on", "--allow-peer", "127.0.0.0/8"]);
    let mut client = Client::new(addr, "alice", "secret", "backwater");
    let relayed = client.allocate();
    let (peer, peer_addr) = peer();
    client.bind_channel(0x4000, peer_addr).unwrap();
    client.socket.send(&channel_data(0x4000, &[0; 100])).unwrap();
    peer.recv(&mut [0; 200]).unwrap();
    (0..2).for_each(|_| assert!(peer.send_to(&[0; 70], relayed).is_ok()));
    (0..2).for_each(|_| assert!(client.socket.recv(&mut [0; 200]).is_ok()));
    for lifetime in [1800, 0] {
        client
            .request(Method::REFRESH, &|w| {
                w.attribute(&Lifetime(lifetime)).unwrap();
            })
            .unwrap();
    }
    let from = client.socket.local_addr().unwrap().to_string();
    for (message, lifetime) in [("allocation made", 600), ("allocation refreshed", 1800), ("allocation ended", 0)] {
        let line = relay.line(message);
        assert_eq!((&line["client"], &line["user"]), (&Value::from(&*from), &"alice".into()), "{line}");
        assert_eq!((&line["relayed"], &line["severity"]), (&relayed.to_string().into(), &"INFO".into()), "{line}");
        if message == "allocation ended" {
            assert_eq!((&line["bytes_to_peers"], &line["bytes_to_client"]), (&100.into(), &140.into()), "{line}");
            assert_eq!(line["why"], "deleted");
        } else {
            assert_eq!(line["lifetime_seconds"], lifetime, "{line}");
        }
    }
    assert_eq!(relay.terminate(), Some(0));
    let (relay, addr, _) = start(&[]);
    Client::new(addr, "alice", "secret", "backwater").allocate();
    let (_, lines) = relay.terminate_and_read();
    assert!(!lines.iter().any(|line| line["message"].as_str().unwrap().starts_with("allocation")), "off: {lines:?}");
}
