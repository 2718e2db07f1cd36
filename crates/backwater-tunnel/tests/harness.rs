//! What the tests across networks stand on (`support`).

#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod support;

use rustix::process::Signal;
use support::{Network, Process, in_namespace, keys};

const PROGRAMS: &[(&str, &str)] =
    &[("wireguard-go", "wireguard-go"), ("wg", "wireguard-tools"), ("ping", "iputils-ping")];

#[test]
fn two_stock_peers_see_each_other() {
    in_namespace("two_stock_peers_see_each_other", PROGRAMS, || {
        let (a, b) = (Network::new("a"), Network::new("b"));
        a.join(&b, 1);
        let ((a_private, a_public), (b_private, b_public)) = (keys(), keys());
        for (there, here) in [("10.9.1.2", "10.9.1.1:"), ("[fd09:1::2]", "[fd09:1::1]:")] {
            let of_a = format!(
                "[Interface]\nPrivateKey = {a_private}\n\
                 [Peer]\nPublicKey = {b_public}\nEndpoint = {there}:51820\nAllowedIPs = 10.0.0.2/32, fd00::2/128\n"
            );
            let of_b = format!(
                "[Interface]\nPrivateKey = {b_private}\nListenPort = 51820\n\
                 [Peer]\nPublicKey = {a_public}\nAllowedIPs = 10.0.0.1/32, fd00::1/128\n"
            );
            let mut b_peer = b.wireguard("wg0", &of_b, &["10.0.0.2/24", "fd00::2/64"]);
            let mut a_peer = a.wireguard("wg0", &of_a, &["10.0.0.1/24", "fd00::1/64"]);
            for inside in ["10.0.0.2", "fd00::2"] {
                a.run(&format!("ping -c 3 -i 0.2 -w 50 {inside}"));
            }
            let endpoints = b.run("wg show wg0 endpoints");
            assert!(endpoints.contains(here), "{endpoints}");
            assert!(a_peer.resident() > 1 << 20);
            // The next have the same name.
            assert!(a_peer.stop().success());
            b_peer.signal(Signal::KILL);
            assert!(!b_peer.wait().success());
        }
    });
}

#[test]
fn a_process_ends_with_its_value_and_its_words_are_kept() {
    in_namespace("a_process_ends_with_its_value_and_its_words_are_kept", &[], || {
        let network = Network::new("a");
        let script = "trap 'echo ends >&2; exit 3' TERM; echo begins; while :; do sleep 0.01; done";
        let mut process = Process::spawn("sh", network.command_of(["sh", "-c", script]));
        process.wait_for("begins");
        assert_eq!(process.stop().code(), Some(3));
        process.wait_for("ends");
        let process = network.start("sleep 60");
        let id = process.id();
        assert!(std::fs::exists(format!("/proc/{id}")).unwrap());
        drop(process);
        assert!(!std::fs::exists(format!("/proc/{id}")).unwrap());
    });
}
