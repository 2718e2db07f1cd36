//! Each example, run as its first line says. `cargo test` builds the examples before it runs a test.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The program of an example, or `None` and a line where it has not been built.
fn example(name: &str) -> Option<Command> {
    let test = std::env::current_exe().unwrap();
    let directory = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples");
    let program: PathBuf = directory.join(name).with_extension(std::env::consts::EXE_EXTENSION);
    if program.is_file() {
        return Some(Command::new(program));
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{} is not built", program.display());
    eprintln!("skipped: {} is not built; `cargo test -p backwater-udp` without `--test` builds it", program.display());
    None
}

fn output(name: &str) -> Option<String> {
    let out = example(name)?.output().unwrap();
    assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
    Some(String::from_utf8(out.stdout).unwrap())
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn echo_sends_back_what_it_receives() {
    let Some(mut command) = example("echo") else { return };
    let mut server = Server(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address: SocketAddr = line.trim().parse().unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    client.connect(address).unwrap();
    for message in ["one", "two"] {
        client.send(message.as_bytes()).unwrap();
        let mut buffer = [0; 10];
        let len = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], message.as_bytes());
    }
}

#[test]
fn many_destinations_sends_every_message_to_every_subscriber() {
    let Some(out) = output("many_destinations") else { return };
    assert!(out.starts_with("500 sent, 0 dropped"), "{out}");
}

#[test]
fn foreign_loop_gets_back_each_line() {
    let Some(out) = output("foreign_loop") else { return };
    assert_eq!(out, "one\ntwo\nthree\n");
}

#[test]
fn switch_policy_reports_each_period() {
    let Some(out) = output("switch_policy") else { return };
    let policies: Vec<_> = out.lines().filter_map(|line| line.split([' ', ':']).next()).collect();
    assert_eq!(policies, ["Wait", "Drop", "Wait", "Drop"], "{out}");
}
