//! What the relay finds out at its start: its outer address, its container, its limits.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
};

use backwater_stun::*;

use crate::{
    client::Client,
    program::{Program, run},
};

const BASE: [&str; 6] = ["--listen", "127.0.0.1:0", "--user", "alice:secret", "--drain", "0"];

/// A NAT that maps 127.0.0.1 to this address and changes ports, as its STUN server outside tells.
fn stun_server(outer: &'static str) -> String {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let uri = format!("stun:{}", server.local_addr().unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 200];
        while let Ok((len, from)) = server.recv_from(&mut buffer) {
            let id = Message::parse(&buffer[..len]).unwrap().transaction_id();
            let mut response = [0; 200];
            let mut w = Writer::new(&mut response, Class::SuccessResponse, Method::BINDING, id).unwrap();
            w.attribute(&XorMappedAddress(outer.parse().unwrap())).unwrap();
            server.send_to(w.finish(), from).unwrap();
        }
    });
    uri
}

#[test]
fn external_address_is_found_by_stun() {
    let server = stun_server("198.51.100.7:1");
    let mut relay = Program::start(&[&BASE[..], &["--external-address", &server]].concat(), 0);
    let line = relay.line("behind a NAT: external-address found by STUN");
    assert_eq!((&line["local"], &line["external"]), (&"127.0.0.1".into(), &"198.51.100.7".into()));
    assert_eq!(relay.line("the NAT changes ports")["severity"], "WARN");
    assert_eq!(relay.line("started")["relayed"], "127.0.0.1 → 198.51.100.7");
    let listener = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
    let relayed = Client::new(listener, "alice", "secret", "backwater").allocate();
    assert_eq!(relayed.ip(), std::net::IpAddr::from([198, 51, 100, 7]));
    assert_eq!(relay.terminate(), Some(0));
}

#[test]
fn external_address_survives_a_reload() {
    let file = std::env::temp_dir().join(format!("backwater-start-{}.toml", std::process::id()));
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nuser = [\"alice:secret\"]\ndrain = 0\nallow-peer = [\"198.51.100.0/24\"]\nexternal-address = [{:?}]\n",
        stun_server("198.51.100.7:1")
    );
    std::fs::write(&file, &text).unwrap();
    let mut relay = Program::start(&["--config", file.to_str().unwrap()], 0);
    let listener: SocketAddr = relay.line("listening")["listener"].as_str().unwrap().parse().unwrap();
    std::fs::write(&file, format!("{text}max-lifetime = 700\n")).unwrap();
    assert_eq!(relay.line("these keys are applied")["keys"], "max-lifetime");
    let mut client = Client::new(listener, "alice", "secret", "backwater");
    client.allocate();
    // A listener is no peer, at the outer address neither.
    let outer = SocketAddr::new([198, 51, 100, 7].into(), listener.port());
    assert_eq!(client.bind_channel(0x4001, outer).unwrap_err(), 403);
    client.bind_channel(0x4001, SocketAddr::new([198, 51, 100, 8].into(), listener.port())).unwrap();
    std::fs::remove_file(file).unwrap();
    assert_eq!(relay.terminate(), Some(0));
}

#[test]
fn stun_server_that_does_not_answer_is_one_line_and_exit_1() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap();
    let (code, lines) = run(&[&BASE[..], &["--external-address", &format!("stun:{addr}")]].concat());
    assert_eq!((code, lines.len()), (Some(1), 1), "{lines:?}");
    assert!(lines[0].contains(&format!("cannot find external-address by STUN from {addr}: no answer")), "{lines:?}");
    silent.set_nonblocking(true).unwrap();
    let received = std::iter::from_fn(|| silent.recv(&mut [0; 100]).ok()).count();
    assert_eq!(received, 4, "it was asked four times");
}

#[test]
fn container_is_in_the_first_line() {
    let mut relay = Program::start_with(&BASE, &[("container", "podman")]);
    let found = relay.line("started")["container"].as_str().unwrap().to_owned();
    // The test may be in one of another kind.
    assert!(["podman", "docker", "kubernetes"].contains(&&*found), "{found}");
    assert_eq!(relay.terminate(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn limit_of_open_files_that_is_too_low_is_said() {
    let starter = |limits: &str| ["sh", "-c", &format!("{limits} && exec \"$0\" \"$@\"")].map(str::to_owned).to_vec();
    let ports = ["--ports", "50000-50999"];
    let mut relay = Program::start_within(&starter("ulimit -Sn 300 && ulimit -Hn 600"), &[&BASE[..], &ports].concat());
    let line = relay.line("the limit of open files is too low");
    assert_eq!(
        (&line["severity"], &line["limit"], &line["relayed_addresses"]),
        (&"WARN".into(), &600.into(), &1000.into())
    );
    let enough_for = line["enough_for"].as_u64().unwrap();
    assert!((400..600).contains(&enough_for), "{line}");
    relay.line("listening");
    assert_eq!(relay.terminate(), Some(0));
    // With the hard limit, it is enough: the soft one is raised to it.
    let few = ["--ports", "50000-50099"];
    let mut relay = Program::start_within(&starter("ulimit -Sn 60 && ulimit -Hn 600"), &[&BASE[..], &few].concat());
    loop {
        let line = relay.line("");
        let message = line["message"].as_str().unwrap();
        assert!(!message.contains("open files"), "{line}");
        if message.contains("listening") {
            break;
        }
    }
    assert_eq!(relay.terminate(), Some(0));
}
