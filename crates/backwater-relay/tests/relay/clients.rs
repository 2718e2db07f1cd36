//! Clients that others wrote.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    program::Program,
    support::{in_namespace, installed, receive_buffer_errors, skip},
};

pub const RELAY: [&str; 14] = [
    "--listen",
    "127.0.0.1:3478",
    "--listen",
    "[::1]:3478",
    "--user",
    "alice:secret",
    "--allow-peer",
    "127.0.0.0/8",
    "--allow-peer",
    "::1",
    "--threads",
    "2",
    "--drain",
    "0",
];

/// A process that is ended when the test is over.
pub struct Running(Child);

impl Running {
    pub fn start(program: &str, args: &str) -> Self {
        let mut command = Command::new(program);
        command.args(args.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// coturn's client: channels and Send indications, with and without RTCP (without, it asks for no even port and no
/// reservation), client to client and to an echoing peer, IPv4 and IPv6. All at once: it is slow on purpose.
#[test]
fn coturns_client_loses_nothing() {
    if !installed("turnutils_uclient") {
        return skip("turnutils_uclient is not installed (package coturn)");
    }
    in_namespace("clients::coturns_client_loses_nothing", || {
        let relay = Program::start(&RELAY, 2);
        let _peer = Running::start("turnutils_peer", "-p 3480 -L 127.0.0.1 -L ::1");
        let mut modes = Vec::new();
        for (family, host) in [("", "127.0.0.1"), ("-x ", "::1")] {
            for indications in ["", "-s "] {
                for rtcp in ["", "-c "] {
                    for to in ["-y".to_owned(), format!("-e {host} -r 3480")] {
                        modes.push(format!("{family}{indications}{rtcp}{to} -n 1000 -m 10 -l 200 {host}"));
                    }
                }
            }
        }
        assert_eq!(modes.len(), 16);
        lose_nothing(&modes);
        assert_eq!(relay.terminate(), Some(0));
    });
}

/// Dual allocations, mobility (four clients at once, so that some move to another thread), invalid requests on the way, more
/// requests than are needed, padding and DONT-FRAGMENT. Its test of protocol errors never ends, and goes on meanwhile.
#[test]
fn coturns_client_loses_nothing_in_its_other_modes() {
    if !installed("turnutils_uclient") {
        return skip("turnutils_uclient is not installed (package coturn)");
    }
    in_namespace("clients::coturns_client_loses_nothing_in_its_other_modes", || {
        let relay = Program::start(&RELAY, 2);
        let _peer = Running::start("turnutils_peer", "-p 3480 -L 127.0.0.1 -L ::1");
        let _hostile = Running::start("turnutils_uclient", "-R -y -u alice -w secret 127.0.0.1");
        let mut modes: Vec<_> =
            ["-Z -y", "-Z -s -y", "-Z -e 127.0.0.1 -r 3480", "-M -Z -y", "-N -y", "-G -y", "-g -D -y"]
                .map(|mode| format!("{mode} -n 200 -m 4 127.0.0.1"))
                .into();
        for mode in ["-M -y", "-M -s -c -y", "-M -e 127.0.0.1 -r 3480", "-M -x -y"] {
            let host = if mode.contains("-x") { "::1" } else { "127.0.0.1" };
            modes.extend(vec![format!("{mode} -n 200 -m 4 {host}"); 4]);
        }
        lose_nothing(&modes);
        assert_eq!(relay.terminate(), Some(0));
    });
}

/// Runs coturn's client with each of these arguments, all at once. What it misses has found a receive buffer full, its own for
/// one, as on a machine that is too busy to read it: the kernel counts those.
pub fn lose_nothing(modes: &[String]) {
    let (before, mut lost) = (receive_buffer_errors(), 0);
    let start = |args: &String| {
        let mut command = Command::new("turnutils_uclient");
        command.args(["-u", "alice", "-w", "secret"]).args(args.split_whitespace());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let running: Vec<_> = modes.iter().map(|args| (args, start(args))).collect();
    for (args, child) in running {
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "turnutils_uclient {args}: {text}{}", String::from_utf8_lossy(&out.stderr));
        let (_, rest) = text.rsplit_once("Total lost packets ").unwrap_or_else(|| panic!("{args}: {text}"));
        let of_this: u64 = rest.split(' ').next().unwrap().parse().unwrap();
        if of_this > 0 {
            eprintln!("turnutils_uclient {args}: {of_this} lost");
        }
        lost += of_this;
    }
    let full = receive_buffer_errors() - before;
    assert!(lost <= full, "{lost} were lost, of which {full} at most found a receive buffer full");
}

/// The Python to run the scripts with, if it has this module.
pub fn python_with(module: &str) -> Option<String> {
    let python = std::env::var("BACKWATER_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let imported = Command::new(&python).args(["-c", &format!("import {module}")]).output();
    imported.is_ok_and(|out| out.status.success()).then_some(python)
}

/// Runs a script of this directory, which is to say this at its end.
pub fn python(python: &str, script: &str, args: &[&str], says: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/relay").join(script);
    let out = Command::new(python).arg(script).args(args).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && text.contains(says), "{text}");
}

/// An ICE agent in Python: two of them connect through the relay only, and exchange 1,000 messages each way.
#[test]
fn aioice_connects_through_the_relay_only() {
    let Some(with) = python_with("aioice") else { return skip("aioice is not installed (pip install aioice)") };
    in_namespace("clients::aioice_connects_through_the_relay_only", || {
        let relay = Program::start(&RELAY, 2);
        python(&with, "aioice_pair.py", &["1000", "1"], "1 pairs: 1000 messages each way, relayed");
        assert_eq!(relay.terminate(), Some(0));
    });
}

/// WebRTC in Python: a data channel between two peers that may use relayed candidates only. Each of its messages fills a
/// datagram, and all of them have been here.
#[test]
fn aiortc_connects_through_the_relay_only() {
    let Some(with) = python_with("aiortc") else { return skip("aiortc is not installed (pip install aiortc)") };
    in_namespace("clients::aiortc_connects_through_the_relay_only", || {
        let mut relay = crate::client::start(&["--listen", "127.0.0.1:3478", "--threads", "2"]);
        python(&with, "aiortc_pair.py", &[], "500 messages each way, relayed");
        let total =
            |counter: fn(&backwater_relay::Counters) -> u64| relay.counters().iter().map(|c| counter(c)).sum::<u64>();
        assert_eq!((total(|c| c.allocations.get()), total(|c| c.closed.get())), (2, 2));
        for datagrams in [total(|c| c.to_peers.get()), total(|c| c.to_clients.get())] {
            assert!(datagrams > 1000, "{datagrams}");
        }
        relay.stop(Duration::ZERO);
    });
}
