//! TURN over TLS.

use super::*;
use crate::{
    client::peer,
    program::{Program, run},
};

#[test]
fn tls_and_tcp_share_a_port() {
    let (files, config) = CertificateFiles::new();
    let mut relay = start_tcp(&files.args());
    let at = relay.local_tcp_addrs()[0];
    let (socket, addr) = peer();
    let mut secure = StreamClient::over(tls(at, &config));
    let mut plain = StreamClient::tcp(at);
    for client in [&mut secure, &mut plain] {
        let relayed = client.allocate();
        client.bind_channel(0x4000, addr);
        let mut buffer = vec![0; 70_000];
        for len in [0, 1, 1200, 16_384, 40_001] {
            let payload = vec![len as u8; len];
            client.send(&padded(0x4000, &payload));
            let (received, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..received], from), (&payload[..], relayed));
            socket.send_to(&payload, relayed).unwrap();
            assert_eq!(client.frame(), padded(0x4000, &payload));
        }
    }
    assert_eq!((total(&relay, |c| &c.over_tls), total(&relay, |c| &c.over_tcp)), (1, 1));
    drop((secure, plain));
    until("both are gone", || total(&relay, |c| &c.closed) == 2);
    relay.stop(Duration::ZERO);
}

#[test]
fn application_protocols_are_those_of_turn() {
    let (files, config) = CertificateFiles::new();
    let mut relay = start_tcp(&files.args());
    for (offered, taken) in [(&b"stun.turn"[..], true), (b"stun.nat-discovery", true), (b"h2", false)] {
        let mut config = (*config).clone();
        config.alpn_protocols = vec![offered.to_vec()];
        let mut stream = tls(relay.local_tcp_addrs()[0], &Arc::new(config));
        let done = stream.conn.complete_io(&mut stream.sock);
        assert_eq!(done.is_ok(), taken, "{done:?}");
        assert_eq!(stream.conn.alpn_protocol(), taken.then_some(offered));
    }
    relay.stop(Duration::ZERO);
}

#[test]
fn garbage_instead_of_tls_ends_the_connection_with_an_alert() {
    let (files, config) = CertificateFiles::new();
    let mut relay = start_tcp(&files.args());
    let at = relay.local_tcp_addrs()[0];
    let mut streams = Vec::new();
    for n in 0..50 {
        let mut stream = connect(at);
        let garbage: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(300 + n).collect();
        stream.write_all(&[&[0x16, 3, 1, 0, 200][..], &garbage].concat()).unwrap();
        streams.push(stream);
    }
    for stream in &streams {
        let alert = until_ended(stream);
        assert_eq!(alert.first(), Some(&0x15), "{alert:?}");
    }
    assert_eq!(ended(&relay, CutOff::Tls), 50);
    // Garbage behind the handshake.
    let mut secure = tls(at, &config);
    secure.conn.complete_io(&mut secure.sock).unwrap();
    secure
        .sock
        .write_all(&[0x17, 3, 3, 0, 30, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20])
        .unwrap();
    secure.sock.write_all(&[0; 10]).unwrap();
    until("it has ended", || ended(&relay, CutOff::Tls) == 51);
    StreamClient::over(tls(at, &config)).allocate();
    relay.stop(Duration::ZERO);
}

/// New connections have the new certificate; those that are there go on, and lose nothing.
#[test]
fn certificate_is_replaced_under_load() {
    let (files, old) = CertificateFiles::new();
    let args = ["--listen", "127.0.0.1:0", "--listen-tcp", "127.0.0.1:0", "--user", "alice:secret", "--allow-peer"];
    let args = [&args[..], &["127.0.0.1", "--threads", "1", "--drain", "0"], &files.args()].concat();
    let mut relay = Program::start_with(&args, &[]);
    let at = relay.line("listening for TURN over TCP and TLS")["listener"].as_str().unwrap().parse().unwrap();
    let (socket, addr) = peer();
    let mut client = StreamClient::over(tls(at, &old));
    client.allocate();
    client.bind_channel(0x4000, addr);
    let mut number = 0u32;
    let mut exchange = |client: &mut StreamClient| {
        number += 1;
        client.send(&padded(0x4000, &number.to_be_bytes()));
        let mut buffer = [0; 100];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..len], number.to_be_bytes());
        socket.send_to(&buffer[..len], from).unwrap();
        assert_eq!(client.frame(), padded(0x4000, &number.to_be_bytes()));
    };
    let trusts = |config: &Arc<ClientConfig>| {
        let mut stream = tls(at, config);
        stream.conn.complete_io(&mut stream.sock).is_ok()
    };
    exchange(&mut client);
    assert!(trusts(&old));
    let new = files.replace();
    until("new connections have the new one", || {
        exchange(&mut client);
        trusts(&new)
    });
    relay.line("the certificate was read again");
    assert!(!trusts(&old));
    // A bad one keeps the one that was there; so does a key of another one.
    std::fs::write(&files.chain, "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n").unwrap();
    assert!(relay.line("the certificate cannot be used")["problem"].as_str().unwrap().contains(&files.chain));
    assert!(trusts(&new));
    exchange(&mut client);
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&files.chain, pem("CERTIFICATE", other.cert.der())).unwrap();
    assert!(relay.line("the certificate cannot be used")["problem"].as_str().unwrap().contains("together"));
    assert!(trusts(&new));
    let newest = files.replace();
    relay.line("the certificate was read again");
    assert!(trusts(&newest));
    exchange(&mut client);
    assert_eq!(relay.terminate(), Some(0));
}

#[test]
fn certificate_that_cannot_be_used_is_one_line_at_the_start_and_in_check_config() {
    let (files, _) = CertificateFiles::new();
    let args = ["--listen", "127.0.0.1:0", "--listen-tcp", "127.0.0.1:0", "--user", "a:b"];
    let swapped = ["--tls-certificate", &*files.key, "--tls-key", &*files.chain];
    let (code, lines) = run(&[&args[..], &swapped].concat());
    assert_eq!((code, lines.len()), (Some(1), 1), "{lines:?}");
    assert!(lines[0].contains("the certificate cannot be used: ") && lines[0].contains(&files.key), "{lines:?}");
    let (code, lines) = run(&[&args[..], &swapped, &["check-config"]].concat());
    assert_eq!((code, lines.len()), (Some(2), 1), "{lines:?}");
    assert!(lines[0].contains("tls-certificate: "), "{lines:?}");
    let (code, lines) = run(&[&args[..], &["--tls-key", &files.key, "--proxy-protocol-from", "0.0.0.0/0"]].concat());
    assert_eq!((code, lines.len()), (Some(2), 2), "{lines:?}");
}
