//! coturn's client over TCP and TLS.

use crate::{
    clients::{RELAY, Running, lose_nothing},
    program::Program,
    streams::CertificateFiles,
    support::{in_namespace, installed, skip},
};

/// Channels and Send indications, client to client and to an echoing peer, IPv4 and IPv6, plain and with TLS on one port. Some at
/// once: it is slow on purpose.
#[test]
fn coturns_client_loses_nothing_over_tcp_and_tls() {
    if !installed("turnutils_uclient") {
        return skip("turnutils_uclient is not installed (package coturn)");
    }
    in_namespace("streams::coturn::coturns_client_loses_nothing_over_tcp_and_tls", || {
        let (files, _) = CertificateFiles::new();
        let tcp = ["--listen-tcp", "127.0.0.1:3478", "--listen-tcp", "[::1]:3478"];
        let relay = Program::start(&[&RELAY[..], &tcp, &files.args()].concat(), 2);
        let _peer = Running::start("turnutils_peer", "-p 3480 -L 127.0.0.1 -L ::1");
        let mut modes = Vec::new();
        for transport in ["-t", "-S -t"] {
            for (family, host) in [("", "127.0.0.1"), ("-x ", "::1")] {
                for indications in ["", "-s "] {
                    for to in ["-y".to_owned(), format!("-c -e {host} -r 3480")] {
                        modes.push(format!("{transport} {family}{indications}{to} -p 3478 -n 100 -m 3 -l 171 {host}"));
                    }
                }
            }
        }
        assert_eq!(modes.len(), 16);
        // More at once keep a busy machine from allocating within the 15 s that a connection has for it.
        modes.chunks(4).for_each(lose_nothing);
        assert_eq!(relay.terminate(), Some(0));
    });
}
