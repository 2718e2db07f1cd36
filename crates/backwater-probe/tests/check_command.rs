//! `backwater-probe check`, as a user runs it against servers that work and servers that do not.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    net::{TcpListener, UdpSocket},
    process::{Command, Output},
};

use serde_json::Value;

#[cfg(target_os = "linux")]
mod coturn;
#[cfg(target_os = "linux")]
#[path = "../../backwater-udp/tests/support/mod.rs"]
mod support;

fn check(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_backwater-probe")).arg("check").args(arguments).output().unwrap()
}

/// The report as JSON, and the exit code.
fn report(arguments: &[&str]) -> (Value, Option<i32>) {
    let out = check(&[arguments, &["--json"]].concat());
    let text = String::from_utf8(out.stdout).unwrap();
    let problem = || format!("{arguments:?}: {text} {}", String::from_utf8_lossy(&out.stderr));
    (serde_json::from_str(&text).unwrap_or_else(|_| panic!("{}", problem())), out.status.code())
}

/// The outcomes of a transport's steps: `y`es, `n`o, or `-`.
fn outcomes(report: &Value, transport: &str) -> String {
    let transports = report["transports"].as_array().unwrap();
    let transport = transports.iter().find(|t| t["transport"] == transport).unwrap();
    let letter = |step: &Value| match step["outcome"].as_str().unwrap() {
        "works" => 'y',
        "fails" => 'n',
        _ => '-',
    };
    transport["steps"].as_array().unwrap().iter().map(letter).collect()
}

/// What the steps that fail say, with their advice.
fn failures(report: &Value) -> String {
    let transports = report["transports"].as_array().unwrap();
    let steps = transports.iter().flat_map(|t| t["steps"].as_array().unwrap()).filter(|s| s["outcome"] == "fails");
    let lines = steps.map(|s| format!("{}: {} {}\n", s["step"], s["detail"], s["advice"].as_str().expect("advice")));
    lines.collect()
}

/// coturn, which listens on UDP and TCP.
#[cfg(target_os = "linux")]
mod with_coturn {
    use serde_json::Value;

    use super::{
        check,
        coturn::{Coturn, with_coturn},
        failures, outcomes, report,
    };

    #[test]
    fn coturn_works_over_udp_and_tcp() {
        with_coturn("with_coturn::coturn_works_over_udp_and_tcp", || {
            let _coturn = Coturn::start("--allow-loopback-peers");
            let (report, code) = report(&["turn:127.0.0.1", "--user", "alice:secret"]);
            assert_eq!(code, Some(0), "{report}");
            for transport in ["udp", "tcp"] {
                assert_eq!(outcomes(&report, transport), "yyyyyy", "{report}");
            }
            assert_eq!((&report["works"], report["nat"]["kind"].as_str()), (&Value::Bool(true), Some("none")));
            for transport in report["transports"].as_array().unwrap() {
                let exchanged = &transport["exchanged"];
                assert!(exchanged["sent"] == 100 && exchanged["received"].as_u64() > Some(0), "{exchanged}");
                assert!(exchanged["median_ms"].as_f64() <= exchanged["longest_ms"].as_f64());
            }
            // One transport alone, as people read it.
            let out = check(&["turn:127.0.0.1?transport=tcp", "--user", "alice:secret"]);
            let text = String::from_utf8(out.stdout).unwrap();
            assert!(out.status.success() && text.contains("\nTCP\n") && !text.contains("\nUDP\n"), "{text}");
            assert!(text.ends_with("This server works from here, over TCP.\n"), "{text}");
        });
    }

    #[test]
    fn coturn_works_over_tls_if_its_certificate_is_trusted() {
        with_coturn("with_coturn::coturn_works_over_tls_if_its_certificate_is_trusted", || {
            let directory = std::env::temp_dir().join(format!("backwater-check-{}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
            let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
            std::fs::write(&certificate, pem("CERTIFICATE", made.cert.der())).unwrap();
            std::fs::write(&key, pem("PRIVATE KEY", &made.signing_key.serialize_der())).unwrap();
            let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
            let coturn = Coturn::with(&format!("--allow-loopback-peers --cert {certificate} --pkey {key}"), 5349);
            let user = ["turns:127.0.0.1", "--user", "alice:secret"];
            let (trusted, code) = report(&[&user[..], &["--ca", certificate]].concat());
            assert_eq!((code, outcomes(&trusted, "tls")), (Some(0), "yyyyyy".to_owned()), "{trusted}");
            assert_eq!(trusted["transports"].as_array().unwrap().len(), 1);
            let (distrusted, code) = report(&user);
            assert_eq!((code, outcomes(&distrusted, "tls")), (Some(1), "n-----".to_owned()), "{distrusted}");
            assert!(failures(&distrusted).contains("issued by an authority that this system trusts"), "{distrusted}");
            drop(coturn);
            std::fs::remove_dir_all(&directory).unwrap();
        });
    }

    /// The encoding of RFC 7468.
    fn pem(label: &str, der: &[u8]) -> String {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let encode = |chunk: &[u8]| {
            let mut bytes = [0; 3];
            bytes[..chunk.len()].copy_from_slice(chunk);
            let bits = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
            let digit =
                |n: usize| if n <= chunk.len() { alphabet[(bits >> (18 - 6 * n) & 63) as usize] as char } else { '=' };
            (0..4).map(digit).collect::<String>()
        };
        let text: Vec<String> = der.chunks(48).map(|line| line.chunks(3).map(encode).collect()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", text.join("\n"))
    }

    #[test]
    fn refused_peer_and_wrong_password_come_with_advice() {
        with_coturn("with_coturn::refused_peer_and_wrong_password_come_with_advice", || {
            let _coturn = Coturn::start("");
            let (refused, code) = report(&["turn:127.0.0.1", "--user", "alice:secret"]);
            assert_eq!(code, Some(1), "{refused}");
            assert_eq!(
                (outcomes(&refused, "udp"), outcomes(&refused, "tcp")),
                ("yyyn--".to_owned(), "yyyn--".to_owned())
            );
            let said = failures(&refused);
            assert!(said.contains("403") && said.contains("allowed-peer-ip"), "{said}");

            let (wrong, code) = report(&["turn:127.0.0.1", "--user", "alice:guess"]);
            assert_eq!((code, outcomes(&wrong, "udp")), (Some(1), "yn----".to_owned()), "{wrong}");
            assert!(failures(&wrong).contains("Check the user name and the password"), "{wrong}");

            // Without a user there is one question less.
            let out = check(&["127.0.0.1"]);
            let text = String::from_utf8(out.stdout).unwrap();
            assert!(out.status.success() && text.contains("This server can be reached."), "{text}");
        });
    }
}

#[test]
fn server_that_is_not_there_comes_with_advice() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let (nobody, code) = report(&[&format!("turn:{address}"), "--user", "alice:secret"]);
    assert_eq!(code, Some(1));
    assert_eq!((outcomes(&nobody, "udp"), outcomes(&nobody, "tcp")), ("n-----".to_owned(), "n-----".to_owned()));
    let said = failures(&nobody);
    assert!(said.contains("nothing comes back") && said.contains("no program listens on this port for TCP"), "{said}");
    drop(silent);
    if cfg!(target_os = "linux") {
        let (nobody, _) = report(&[&format!("turn:{address}?transport=udp")]);
        assert!(failures(&nobody).contains("no program listens on this port for UDP"), "{nobody}");
    }
}

#[test]
fn server_that_closes_the_connection_or_does_not_speak_turn_is_no_hang() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            if number % 2 == 0 {
                let _ = std::io::Write::write_all(&mut stream, b"220 mail.example.org ESMTP\r\n");
                // Until the client has left.
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        }
    });
    for _ in 0..2 {
        let (report, code) = report(&[&format!("turn:{address}?transport=tcp"), "--user", "alice:secret"]);
        assert_eq!((code, outcomes(&report, "tcp")), (Some(1), "yn----".to_owned()), "{report}");
        failures(&report);
    }
    for _ in 0..2 {
        let (report, code) = report(&[&format!("turns:{address}"), "--user", "alice:secret"]);
        assert_eq!((code, outcomes(&report, "tls")), (Some(1), "n-----".to_owned()), "{report}");
        failures(&report);
    }
}

#[test]
fn mistakes_of_the_command_line_exit_with_two() {
    for (arguments, want) in [
        (&["turns:turn.example.org?transport=udp"][..], "TURN over DTLS is not checked"),
        (&["turns:127.0.0.1", "--ca", "/nowhere.pem"], "/nowhere.pem: "),
        (&["turn:host.invalid"], "no host that can be found"),
        (&["127.0.0.1", "--user", "alice"], "expected NAME:PASSWORD"),
        (&["127.0.0.1", "--user", ":x"], "a user name has 1 to 509 bytes"),
        (&[], "<SERVER>"),
    ] {
        let out = check(arguments);
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() == Some(2) && said.contains(want), "{arguments:?}: {said}");
    }
}

#[test]
fn help_is_for_someone_who_has_never_heard_of_turn() {
    let out = check(&["--help"]);
    let help = String::from_utf8(out.stdout).unwrap();
    assert!(help.contains("relays data between computers") && help.contains("Exit codes: 0"), "{help}");
}
