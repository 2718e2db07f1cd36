//! What `backwater-probe check` says of this relay. The client is backwater-turn's.

use std::path::Path;

use backwater_probe::check::{Outcome, Report, Transport, Trust, check};
use backwater_turn::client::Credential;

use super::*;
use crate::support::block_on;

fn checked(at: SocketAddr, transport: Transport, password: &str) -> Report {
    let credential = Credential::new("alice", password).unwrap();
    block_on(check("the relay", at, &[transport], Some(&credential))).unwrap()
}

#[test]
fn every_step_works_over_udp_tcp_and_tls() {
    let (files, _) = CertificateFiles::new();
    let mut relay = start_tcp(&files.args());
    let (datagrams, connections) = (relay.local_addrs()[0], relay.local_tcp_addrs()[0]);
    let trust = Trust::new("localhost", Some(Path::new(&files.chain))).unwrap();
    for (at, transport) in
        [(datagrams, Transport::Udp), (connections, Transport::Tcp), (connections, Transport::Tls(trust))]
    {
        let report = checked(at, transport, "secret");
        assert!(report.works, "{report}");
        let exchanged = report.transports[0].exchanged.as_ref().unwrap();
        assert!(exchanged.sent == 100 && exchanged.received > 0, "{report}");
    }
    until("all are closed", || total(&relay, |c| &c.closed) == 3);
    relay.stop(Duration::ZERO);
}

#[test]
fn wrong_password_is_told_from_a_peer_that_is_not_allowed() {
    let mut relay = start_tcp(&["--deny-peer", "127.0.0.1"]);
    for (password, fails) in [("guess", "authentication"), ("secret", "permission")] {
        let report = checked(relay.local_tcp_addrs()[0], Transport::Tcp, password);
        let steps = &report.transports[0].steps;
        let first = steps.iter().find(|step| step.outcome != Outcome::Works).unwrap();
        assert_eq!((first.step, first.outcome), (fails, Outcome::Fails), "{report}");
        assert!(first.advice.is_some() && !report.works, "{report}");
    }
    relay.stop(Duration::ZERO);
}
