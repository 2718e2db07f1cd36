//! The peer's endpoint is a name, or an address that is written in another way. The names are in a hosts file of the test's own.

use std::{fs, net::UdpSocket, time::Duration};

use backwater_tunnel::config::Config;
use boringtun::{
    noise::{Tunn, TunnResult},
    x25519::{PublicKey, StaticSecret},
};

use crate::support::{
    in_namespace,
    traffic::{Echo, until_answered},
    tunnel::{NAME, PROGRAMS, Sides, THERE},
};

/// A handshake without an answer takes five seconds (`REKEY_TIMEOUT`); a busy machine has ten times as long as two of them.
const PATIENCE: Duration = Duration::from_secs(100);

/// Sides where `peer.example` has these addresses.
fn named(addresses: &[&str]) -> Sides {
    let sides = Sides::new();
    let hosts = sides.directory.file("hosts", "");
    sides.here.run(&format!("mount --bind {} /etc/hosts", hosts.display()));
    name(&sides, addresses);
    sides
}

fn name(sides: &Sides, addresses: &[&str]) {
    let lines: Vec<_> = addresses.iter().map(|address| format!("{address} peer.example\n")).collect();
    // The file is mounted: it must not become another one.
    fs::write(sides.directory.path.join("hosts"), lines.concat()).unwrap();
}

#[test]
fn the_next_address_of_a_name_is_tried_when_one_does_not_answer() {
    in_namespace("names::the_next_address_of_a_name_is_tried_when_one_does_not_answer", PROGRAMS, || {
        for addresses in [["fd09:1::9", "10.9.1.2"], ["fd09:1::2", "10.9.1.9"]] {
            let sides = named(&addresses);
            let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
            let tunnel = sides.up("", "Endpoint = peer.example:51820");
            until_answered(&sides.here, THERE[0], PATIENCE);
            let endpoint = tunnel.status()["peers"][0]["endpoint"].to_string();
            assert!(["\"[fd09:1::2]:51820\"", "\"10.9.1.2:51820\""].contains(&&*endpoint), "{endpoint}");
        }
    });
}

#[test]
fn a_name_is_resolved_again_while_handshakes_fail() {
    in_namespace("names::a_name_is_resolved_again_while_handshakes_fail", PROGRAMS, || {
        let sides = named(&["10.9.1.9"]);
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let tunnel = sides.up("", "Endpoint = peer.example:51820\nPersistentKeepalive = 25");
        tunnel.wait_for_log("10.9.1.9:51820", PATIENCE);
        name(&sides, &["10.9.1.2"]);
        until_answered(&sides.here, THERE[0], PATIENCE);

        // And once more, in the middle of a session.
        sides.there.run("ip address del 10.9.1.2/24 dev fe1");
        sides.there.run("ip address add 10.9.1.4/24 dev fe1");
        name(&sides, &["10.9.1.4"]);
        until_answered(&sides.here, THERE[0], PATIENCE);
        assert_eq!(tunnel.status()["peers"][0]["endpoint"], "10.9.1.4:51820");
    });
}

/// A peer that answers nothing until it has been tried at both of its addresses.
#[test]
fn check_tries_the_addresses_of_a_name_side_by_side() {
    in_namespace("names::check_tries_the_addresses_of_a_name_side_by_side", PROGRAMS, || {
        let sides = named(&["fd09:1::2", "10.9.1.2"]);
        let Config { interface, peers, .. } = Config::read(&sides.peer_configuration()).unwrap().0;
        let (private, public) = (StaticSecret::from(interface.private_key.0), PublicKey::from(peers[0].public_key.0));
        let mut tunn = Tunn::new(private, public, None, None, 1, None);
        let addresses = ["10.9.1.2:51820", "[fd09:1::2]:51820"];
        let sockets = sides.there.within(move || addresses.map(|address| UdpSocket::bind(address).unwrap()));
        std::thread::spawn(move || {
            let (mut messages, mut answer) = ([[0; 2048]; 2], [0; 2048]);
            loop {
                let received = [0, 1].map(|at| sockets[at].recv_from(&mut messages[at]).unwrap());
                for (at, (len, from)) in received.into_iter().enumerate() {
                    let message = &messages[at][..len];
                    if let TunnResult::WriteToNetwork(bytes) = tunn.decapsulate(None, message, &mut answer) {
                        sockets[at].send_to(bytes, from).unwrap();
                    }
                }
            }
        });
        let text = sides.configuration("", "Endpoint = peer.example:51820");
        let file = sides.directory.file(&format!("{NAME}.conf"), &text);
        let (code, out, err) = sides.output(["check", file.to_str().unwrap()]);
        assert_eq!((code, &*err), (0, ""), "{out}");
        for address in addresses {
            assert!(out.contains(&format!(" at peer.example, {address}: answered in ")), "{out}");
        }
    });
}

#[test]
fn a_name_that_does_not_resolve_is_named_in_the_log_and_on_stderr() {
    in_namespace("names::a_name_that_does_not_resolve_is_named_in_the_log_and_on_stderr", PROGRAMS, || {
        let sides = named(&[]);
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let tunnel = sides.up("", "Endpoint = peer.example:51820\nPersistentKeepalive = 25");
        tunnel.wait_for_log("does not resolve", PATIENCE);
        let log = tunnel.log();
        let line = log.lines().find(|line| line.contains("does not resolve")).unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["severity"], &line["name"]), (&"WARN".into(), &"peer.example".into()), "{line}");
        tunnel.process.wait_for(": the name peer.example does not resolve: ");
        // It is tried again, and told once.
        name(&sides, &["10.9.1.2"]);
        until_answered(&sides.here, THERE[0], PATIENCE);
        let said = tunnel.process.output();
        assert_eq!(said.matches("does not resolve").count(), 1, "{said}");
    });
}

#[test]
fn an_ipv4_mapped_endpoint_is_ipv4() {
    in_namespace("names::an_ipv4_mapped_endpoint_is_ipv4", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let tunnel = sides.up("", "Endpoint = [::ffff:10.9.1.2]:51820");
        until_answered(&sides.here, THERE[0], PATIENCE);
        assert_eq!(tunnel.status()["peers"][0]["endpoint"], "10.9.1.2:51820");
    });
}
