//! What people get wrong.

use std::{
    fs,
    io::{ErrorKind, Read},
    net::{IpAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use crate::support::{
    Network, in_namespace,
    traffic::{Echo, until_answered},
    tunnel::{NAME, PROGRAM, PROGRAMS, Sides, THERE},
};

#[test]
fn a_broken_configuration_is_a_line_for_each_error() {
    in_namespace("bad_input::a_broken_configuration_is_a_line_for_each_error", PROGRAMS, || {
        let sides = Sides::new();
        let text = "[Interface]\nPrivateKey = x\nMTU = 5\nTable = sh\n[Peer]\nAllowedIPs = 10.0.0.0/33\nEndpoint = a\n";
        let file = sides.directory.file(&format!("{NAME}.conf"), text);
        let before = sides.here.run("ip -j link");
        let (code, out, err) = sides.output(["up", file.to_str().unwrap()]);
        assert_eq!((code, &*out), (2, ""), "{err}");
        let lines: Vec<_> = err.lines().collect();
        let file = file.to_str().unwrap();
        let wanted = ["2: PrivateKey", "3: MTU", "4: Table", "5: PublicKey", "6: AllowedIPs", "7: Endpoint"];
        assert_eq!(lines.len(), wanted.len(), "{err}");
        for wanted in wanted {
            let start = format!("{file}:{wanted}: found ");
            assert_eq!(lines.iter().filter(|line| line.starts_with(&start)).count(), 1, "{wanted} in {err}");
        }
        assert_eq!(sides.here.run("ip -j link"), before);
    });
}

/// Root without capabilities, and where there are others, somebody else: what to grant is said, and nothing is left.
#[test]
fn without_permission_it_says_what_to_grant() {
    let programs = [PROGRAMS, &[("setpriv", "util-linux")]].concat();
    in_namespace("bad_input::without_permission_it_says_what_to_grant", &programs, || {
        let sides = Sides::new();
        let others = fs::read_to_string("/proc/self/uid_map").unwrap().split_whitespace().last() != Some("1");
        let mut users = vec!["--bounding-set -all --inh-caps -all"];
        if others {
            users.push("--reuid 65534 --regid 65534 --clear-groups --bounding-set -all --inh-caps -all");
        }
        for (user, runtime) in users.into_iter().flat_map(|user| [(user, None), (user, Some(()))]) {
            // In a place that is theirs, with a program that they can reach.
            let place = format!("/run/{}", fastrand::u64(..));
            sides.here.run(&format!("mkdir -m 1777 {place}"));
            sides.here.run(&format!("cp {PROGRAM} {place}/backwater-tunnel"));
            sides.here.run(&format!("chmod 755 {place}/backwater-tunnel"));
            let configuration = format!("{place}/{NAME}.conf");
            sides.here.run_with(&format!("tee {configuration}"), &sides.configuration("", ""));
            let line = format!("setpriv {user} {place}/backwater-tunnel up {configuration}");
            let mut command = sides.here.command(&line);
            command.env("XDG_CACHE_HOME", &place).env_remove("XDG_RUNTIME_DIR");
            if runtime.is_some() {
                command.env("XDG_RUNTIME_DIR", &place);
            }
            let out = command.output().unwrap();
            let err = String::from_utf8(out.stderr).unwrap();
            assert_eq!(out.status.code(), Some(1), "{user}: {err}");
            let said: Vec<_> = err.lines().filter(|line| !line.contains("others can read")).collect();
            assert!(
                matches!(said[..], [line] if line.contains("no permission to") && line.contains("CAP_NET_ADMIN")),
                "{user}: {err}"
            );
            assert_eq!(sides.here.run("find /run -name *.sock"), "");
        }
    });
}

/// Whom no peer is for, and a peer that nobody knows where to find: the local host is told, and does not wait in vain.
#[test]
fn packets_for_nobody_are_refused() {
    in_namespace("bad_input::packets_for_nobody_are_refused", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        // The address's prefix leads into the tunnel, and nobody has 10.0.0.9.
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
        refused(&sides.here, ["10.0.0.9", "fd00::9"].map(|address| address.parse().unwrap()));
        let nobody = tunnel.device("no_peer");
        assert!(nobody >= 4, "{nobody}");
        assert_eq!(tunnel.device("no_endpoint"), 0);
        drop(tunnel);

        let tunnel = sides.up("", "");
        refused(&sides.here, THERE);
        let nowhere = tunnel.device("no_endpoint");
        assert!(nowhere >= 4, "{nowhere}");
        assert_eq!(tunnel.device("no_peer"), 0);
    });
}

fn refused(network: &Network, addresses: [IpAddr; 2]) {
    for address in addresses {
        let (succeeded, output) = network.try_run(&format!("ping -c 1 -W 5 {address}"), "");
        assert!(!succeeded && output.contains("Destination") && output.contains("nreachable"), "{output}");
        network.within(move || {
            let error = TcpStream::connect_timeout(&(address, 80).into(), Duration::from_secs(5)).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable), "{error:?}");
        });
    }
}

/// A second tunnel of a name is refused in one line; the first goes on.
#[test]
fn a_name_is_taken_once() {
    in_namespace("bad_input::a_name_is_taken_once", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let mut tunnel = sides.up("", "Endpoint = 10.9.1.2:51820\nAllowedIPs = 0.0.0.0/0, ::/0");
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
        let rules = sides.here.run("ip -j rule");
        let file = sides.directory.path.join(format!("{NAME}.conf"));
        // As one who has the same control socket, and as one who has another.
        for runtime in ["/run", "/run/other"] {
            let mut command = sides.program(["up", file.to_str().unwrap()]);
            let out = command.env("XDG_RUNTIME_DIR", runtime).output().unwrap();
            let err = String::from_utf8(out.stderr).unwrap();
            assert_eq!(out.status.code(), Some(1), "{err}");
            assert!(err.lines().count() == 1 && err.contains(NAME) && err.contains("already"), "{err}");
            assert_eq!(sides.here.run("ip -j rule"), rules);
            assert_eq!(tunnel.peer("handshakes"), 1);
            until_answered(&sides.here, THERE[1], Duration::from_secs(1));
        }
        assert!(tunnel.process.stop().success());
    });
}

/// The log says what the terminal says, and nobody else can read it.
#[test]
fn a_configuration_that_others_can_read_gets_a_warning() {
    in_namespace("bad_input::a_configuration_that_others_can_read_gets_a_warning", PROGRAMS, || {
        let sides = Sides::new();
        let file = sides.directory.file(&format!("{NAME}.conf"), &sides.configuration("PostUp = true", ""));
        fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        let mut process = crate::support::Process::spawn("tunnel", sides.program(["up", file.to_str().unwrap()]));
        process.wait_for("is up");
        assert!(process.stop().success());
        let (said, name) = (process.output(), file.to_str().unwrap());
        assert!(said.lines().any(|line| line.contains(name) && line.contains("PostUp")), "{said}");
        assert!(said.lines().any(|line| line.contains(name) && line.contains("read")), "{said}");
        let log = sides.directory.path.join("dev.backwater.client/data/logs");
        for entry in fs::read_dir(log).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let mut text = String::new();
            fs::File::open(path).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text.matches("\"severity\":\"WARN\"").count(), 2, "{text}");
        }
    });
}
