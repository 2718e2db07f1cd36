//! `backwater-probe load`, as a user runs it against a server.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    net::{SocketAddr, UdpSocket},
    process::{Command, Output},
    sync::mpsc,
    thread,
};

use backwater_stun::{Class, Code, ErrorCode, Message, Nonce, Realm, Username, Writer};

#[cfg(target_os = "linux")]
#[path = "../../backwater-udp/tests/support/mod.rs"]
mod support;

fn load(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_backwater-probe")).arg("load").args(arguments).output().unwrap()
}

/// The only line of its errors, and its exit code.
fn error(arguments: &[&str]) -> (String, Option<i32>) {
    let out = load(arguments);
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(out.stdout.is_empty(), "{arguments:?}");
    (text.trim_end().to_owned(), out.status.code())
}

/// A server that challenges each request, and refuses those with a name. Tells the names.
fn server() -> (SocketAddr, mpsc::Receiver<String>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    let (tell, names) = mpsc::channel();
    thread::spawn(move || {
        let (mut buffer, mut answer) = ([0; 2048], [0; 2048]);
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let request = Message::parse(&buffer[..len]).unwrap();
            let name = request.get::<Username<'_>>().unwrap();
            let code = if name.is_some() { Code::FORBIDDEN } else { Code::UNAUTHENTICATED };
            let mut writer =
                Writer::new(&mut answer, Class::ErrorResponse, request.method(), request.transaction_id()).unwrap();
            writer.attribute(&ErrorCode { code, reason: "" }).unwrap();
            writer.attribute(&Realm("example.org")).unwrap().attribute(&Nonce(b"nonce")).unwrap();
            socket.send_to(writer.finish(), from).unwrap();
            if let Some(Username(name)) = name
                && tell.send(name.to_owned()).is_err()
            {
                break;
            }
        }
    });
    (addr, names)
}

#[test]
fn a_user_is_split_at_the_last_colon_or_made_from_a_secret() {
    let (addr, names) = server();
    let addr = addr.to_string();
    for (arguments, want) in [
        (&["--user", "alice:secret"][..], "alice"),
        (&["--user", "4102444800:bob:2QMwgfmMcAz/ppR8DP9W/j3UGFQ="], "4102444800:bob"),
        (&["--user", "alice", "--password", "with:colons"], "alice"),
        (&["--user", "a:b", "--password", "with:colons"], "a:b"),
    ] {
        let (said, code) = error(&[&["--server", &addr], arguments].concat());
        assert_eq!((names.recv().unwrap(), code), (want.to_owned(), Some(1)), "{said}");
        assert!(said.contains("refused with 403"), "{said}");
    }
    for (arguments, want) in [(&["--secret", "hush"][..], "probe"), (&["--secret", "hush", "--user", "bob"], "bob")] {
        error(&[&["--server", &addr], arguments].concat());
        let user = names.recv().unwrap();
        let (expiry, name) = user.split_once(':').unwrap();
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(name == want && (now..=now + 3600).contains(&expiry.parse().unwrap()), "{user} at {now}");
    }
    for wrong in [&["--user", "alice"][..], &[], &["--secret", "hush", "--user", "a:b"]] {
        let (said, code) = error(wrong);
        assert!(code == Some(1) && said.lines().count() == 1 && said.contains("--user"), "{wrong:?}: {said}");
    }
}

/// The password that the command makes from a secret is the one that a server makes.
#[test]
fn a_time_limited_credential_is_what_openssl_makes() {
    // printf 1433895918:1 | openssl dgst -sha1 -hmac north -binary | base64
    let expiry = std::time::Duration::from_secs(1_433_895_918);
    let credential = backwater_probe::turn::Credential::time_limited("north", "1", expiry);
    assert_eq!((&*credential.user, &*credential.password), ("1433895918:1", "FVvRuEpfqU2aWPC2GTK78NIG77I="));
}

#[test]
fn a_server_may_be_a_name_or_a_turn_uri() {
    let (addr, names) = server();
    for server in [format!("turn:127.0.0.1:{}?transport=udp", addr.port()), format!("turn:{addr}"), addr.to_string()] {
        let (said, code) = error(&["--server", &server, "--user", "alice:secret"]);
        assert_eq!((&*names.recv().unwrap(), code), ("alice", Some(1)), "{said}");
    }
    let (said, code) = error(&["--server", "turn:host.invalid", "--user", "alice:secret"]);
    let want = "backwater-probe: host.invalid:3478 is no address, and no host that can be found";
    assert_eq!((&*said, code), (want, Some(2)));
    for wrong in ["turns:127.0.0.1", "stun:127.0.0.1", "turn:127.0.0.1?transport=tcp"] {
        let (said, code) = error(&["--server", wrong, "--user", "alice:secret"]);
        assert!(code == Some(2) && said.contains("only TURN over UDP"), "{said}");
    }
}

#[test]
fn a_server_that_is_silent_is_told_from_a_port_that_nobody_listens_on() {
    for host in ["127.0.0.1", "[::1]"] {
        let Ok(silent) = UdpSocket::bind(format!("{host}:0")) else {
            assert!(std::env::var_os("CI").is_none(), "no IPv6 here");
            println!("skipped: no IPv6 here");
            return;
        };
        let addr = silent.local_addr().unwrap().to_string();
        let (said, code) = error(&["--server", &addr, "--user", "alice:secret"]);
        let nothing = format!("nothing came back from {addr}: UDP is blocked on the way, or the address is wrong");
        assert!(code == Some(1) && said.ends_with(&nothing), "{said}");
        drop(silent);
        let (said, code) = error(&["--server", &addr, "--user", "alice:secret"]);
        if cfg!(target_os = "linux") {
            let nobody = format!("nobody listens at {addr}: the host has sent ICMP port unreachable");
            assert!(code == Some(1) && said.ends_with(&nobody), "{said}");
        }
    }
}

/// In a network without a route.
#[cfg(target_os = "linux")]
#[test]
fn a_server_without_a_route_is_said_so() {
    support::in_namespace("a_server_without_a_route_is_said_so", || {
        let (said, code) = error(&["--server", "192.0.2.1", "--user", "alice:secret"]);
        assert_eq!(code, Some(1));
        assert!(said.ends_with("this host has sent nothing to 192.0.2.1:3478: it has no route there"), "{said}");
    });
}

#[test]
fn help_promises_what_there_is() {
    let out = Command::new(env!("CARGO_BIN_EXE_backwater-probe")).arg("--help").output().unwrap();
    let help = String::from_utf8(out.stdout).unwrap();
    assert!(help.starts_with("Load-tests TURN servers"), "{help}");
    assert!(!help.to_lowercase().contains("check"), "{help}");
}
