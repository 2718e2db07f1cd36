//! `backwater-probe load`, as a user runs it against a server.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    collections::HashSet,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, UdpSocket},
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use backwater_stun::{
    Class, Code, ErrorCode, HmacKey, Lifetime, LongTermKey, Message, Method, Nonce, Realm, Username, Writer,
    XorRelayedAddress,
};

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

/// A server that challenges each request, and refuses those with a name. Tells the names, of a request that is sent again only once.
fn server() -> (SocketAddr, mpsc::Receiver<String>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    let (tell, names) = mpsc::channel();
    thread::spawn(move || {
        let (mut buffer, mut answer, mut latest) = ([0; 2048], [0; 2048], None);
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let request = Message::parse(&buffer[..len]).unwrap();
            let name = request.get::<Username<'_>>().unwrap();
            let is_new = latest.replace(request.transaction_id()) != Some(request.transaction_id());
            let code = if name.is_some() { Code::FORBIDDEN } else { Code::UNAUTHENTICATED };
            let mut writer =
                Writer::new(&mut answer, Class::ErrorResponse, request.method(), request.transaction_id()).unwrap();
            writer.attribute(&ErrorCode { code, reason: "" }).unwrap();
            writer.attribute(&Realm("example.org")).unwrap().attribute(&Nonce(b"nonce")).unwrap();
            socket.send_to(writer.finish(), from).unwrap();
            if let Some(Username(name)) = name
                && is_new
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
        assert!(code == Some(2) && said.lines().count() == 1 && said.contains("--user"), "{wrong:?}: {said}");
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
        let nothing = format!(
            "nothing came back from {addr}: UDP is blocked on the way, the address is wrong, or the server drops"
        );
        assert!(code == Some(1) && said.contains(&nothing), "{said}");
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
fn server_without_a_route_is_reported() {
    support::in_namespace("server_without_a_route_is_reported", || {
        let (said, code) = error(&["--server", "192.0.2.1", "--user", "alice:secret"]);
        assert_eq!(code, Some(1));
        assert!(said.ends_with("this host has sent nothing to 192.0.2.1:3478: it has no route there"), "{said}");
    });
}

#[test]
fn help_promises_what_there_is() {
    let out = Command::new(env!("CARGO_BIN_EXE_backwater-probe")).arg("--help").output().unwrap();
    let help = String::from_utf8(out.stdout).unwrap();
    assert!(help.starts_with("Checks and load-tests TURN servers"), "{help}");
    assert!(help.contains("Exit codes: 0: ") && help.contains("2: the command line"), "{help}");
}

#[test]
fn mistakes_of_the_command_line_say_what_was_expected() {
    for (arguments, want) in [
        (&["--peer", "192.0.2.7"][..], "expected an IP address of this host and a port, such as 192.0.2.7:0"),
        (&["--peer", "host:9"], "expected an IP address of this host and a port"),
        (&["--user", "a:b", "--size", "7"], "--size must be 8 to "),
        (&["--user", "a:b", "--burst", "0"], "--burst must be at least 1"),
        (&["--user", "a:b", "--duration", "nan"], "--duration must be a number of seconds"),
        (&["--user", "a:b", "--clients", "0"], "there must be clients"),
        (&["--user", "a:b", "--clients", "3", "--direction", "across"], "an even number of them across"),
    ] {
        let (said, code) = error(arguments);
        assert!(code == Some(2) && said.contains(want), "{arguments:?}: {said}");
    }
}

/// A server that grants so many allocations, and channels unless it `denies` them. Tells the methods of what it has granted.
fn granting(capacity: usize, denies: bool) -> (SocketAddr, mpsc::Receiver<Method>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    let (tell, granted) = mpsc::channel();
    let key = HmacKey::from(&LongTermKey::md5("alice", "example.org", "secret"));
    thread::spawn(move || {
        let (mut buffer, mut answer) = ([0; 2048], [0; 2048]);
        let mut allocated = HashSet::new();
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            // A load is ChannelData.
            let Ok(request) = Message::parse(&buffer[..len]) else { continue };
            let (method, is_known) = (request.method(), request.get::<Username<'_>>().unwrap().is_some());
            let is_full = !allocated.contains(&from) && allocated.len() >= capacity;
            let code = match method {
                _ if !is_known => Some(Code::UNAUTHENTICATED),
                Method::ALLOCATE if is_full => Some(Code::INSUFFICIENT_CAPACITY),
                Method::CHANNEL_BIND if denies => Some(Code::FORBIDDEN),
                _ => None,
            };
            let class = if code.is_some() { Class::ErrorResponse } else { Class::SuccessResponse };
            let mut writer = Writer::new(&mut answer, class, method, request.transaction_id()).unwrap();
            if let Some(code) = code {
                writer.attribute(&ErrorCode { code, reason: "" }).unwrap();
            }
            if !is_known {
                writer.attribute(&Realm("example.org")).unwrap().attribute(&Nonce(b"nonce")).unwrap();
                socket.send_to(writer.finish(), from).unwrap();
                continue;
            }
            if method == Method::ALLOCATE && code.is_none() {
                allocated.insert(from);
                let relayed = SocketAddr::from(([192, 0, 2, 1], from.ip().to_string().len() as u16));
                writer.attribute(&XorRelayedAddress(relayed)).unwrap();
            }
            socket.send_to(writer.integrity_sha1(&key).unwrap().finish(), from).unwrap();
            let is_granted = match method {
                Method::REFRESH => {
                    assert_eq!(request.get::<Lifetime>().unwrap(), Some(Lifetime(0)));
                    // A copy of the request is no further one.
                    allocated.remove(&from)
                }
                _ => code.is_none(),
            };
            if is_granted && tell.send(method).is_err() {
                break;
            }
        }
    });
    (addr, granted)
}

/// Waits until so many requests of this method have been granted.
fn until_granted(granted: &mpsc::Receiver<Method>, method: Method, count: usize) {
    for _ in 0..count {
        while granted.recv_timeout(Duration::from_secs(60)).unwrap() != method {}
    }
}

#[test]
fn a_denied_peer_is_named_and_the_allocations_are_given_back() {
    let (addr, granted) = granting(usize::MAX, true);
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let server = addr.to_string();
    let (said, code) = error(&["--server", &server, "--user", "alice:secret", "--clients", "3", "--peer", &peer]);
    let want = format!("{server} refused with 403: it does not allow the peer {peer}");
    assert!(code == Some(1) && said.ends_with(&want), "{said}");
    until_granted(&granted, Method::REFRESH, 3);
}

#[test]
fn allocations_are_given_back_when_others_are_refused() {
    let (addr, granted) = granting(2, false);
    let (said, code) = error(&["--server", &addr.to_string(), "--user", "alice:secret", "--clients", "3"]);
    assert!(code == Some(1) && said.contains("refused with 508"), "{said}");
    until_granted(&granted, Method::REFRESH, 2);
}

#[cfg(unix)]
#[test]
fn a_signal_gives_the_allocations_back() {
    for (command, signal, code) in
        [("hold", "-INT", Some(0)), ("hold", "-TERM", Some(0)), ("load", "-TERM", Some(1)), ("load", "-HUP", Some(1))]
    {
        let (addr, granted) = granting(usize::MAX, false);
        let mut program = Command::new(env!("CARGO_BIN_EXE_backwater-probe"));
        program.args([command, "--server", &addr.to_string(), "--user", "alice:secret", "--clients", "2"]);
        program.args(if command == "hold" { ["--seconds", "600"] } else { ["--duration", "600"] });
        if command == "load" {
            program.args(["--rate", "100", "--plain-sink"]);
        }
        let mut child = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if command == "hold" {
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "holding 2 allocations\n");
        } else {
            // It may still be binding the other channel, or send already.
            until_granted(&granted, Method::CHANNEL_BIND, 1);
        }
        let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let status = child.wait().unwrap();
        let mut said = String::new();
        child.stderr.unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), code, "{command} {signal}: {said}");
        assert_eq!(said, if command == "hold" { "" } else { "backwater-probe: stopped by a signal\n" });
        until_granted(&granted, Method::REFRESH, 2);
    }
}

/// Such as a relay does after too many wrong passwords: the challenge comes back, and then nothing.
#[test]
fn a_server_that_drops_requests_is_told_from_one_that_is_silent() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    thread::spawn(move || {
        let (mut buffer, mut answer) = ([0; 2048], [0; 2048]);
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let request = Message::parse(&buffer[..len]).unwrap();
            if request.get::<Username<'_>>().unwrap().is_none() {
                let id = request.transaction_id();
                let mut writer = Writer::new(&mut answer, Class::ErrorResponse, request.method(), id).unwrap();
                writer.attribute(&ErrorCode { code: Code::UNAUTHENTICATED, reason: "" }).unwrap();
                writer.attribute(&Realm("example.org")).unwrap().attribute(&Nonce(b"nonce")).unwrap();
                socket.send_to(writer.finish(), from).unwrap();
            }
        }
    });
    let (said, code) = error(&["--server", &addr.to_string(), "--user", "alice:secret"]);
    assert_eq!(code, Some(1));
    assert!(said.contains(&format!("{addr} has answered before, but not this: the server drops requests")), "{said}");
}
