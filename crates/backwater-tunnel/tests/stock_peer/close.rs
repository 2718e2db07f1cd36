//! The tunnel begins and ends as its surroundings expect.

use std::{
    net::{Ipv6Addr, UdpSocket},
    os::unix::net::UnixDatagram,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::support::{
    Network, Process, in_namespace,
    traffic::{Echo, until_answered},
    tunnel::{NAME, PROGRAM, PROGRAMS, Sides, THERE},
};

/// All of the system's state that a tunnel touches.
fn state(network: &Network) -> Vec<String> {
    ["link", "address", "-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"]
        .map(|what| network.run(&format!("ip -j {what}")))
        .into_iter()
        .chain([network.run("find /run -type s")])
        .collect()
}

#[test]
fn nothing_is_left() {
    in_namespace("close::nothing_is_left", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        for (allowed, signal) in [
            ("", Signal::TERM),
            ("AllowedIPs = 0.0.0.0/0, ::/0, 10.77.0.0/16, fd77::/64", Signal::TERM),
            ("", Signal::INT),
        ] {
            let before = state(&sides.here);
            let mut tunnel = sides.up("", &format!("Endpoint = 10.9.1.2:51820\n{allowed}"));
            until_answered(&sides.here, THERE[1], Duration::from_secs(5));
            let during = state(&sides.here);
            for (name, (before, during)) in ["links", "addresses"].iter().zip(before.iter().zip(&during)) {
                assert!(before != during, "the {name} are as they were");
            }
            assert!(during[6].contains(&format!("/run/backwater/{NAME}.sock")), "{}", during[6]);
            assert_eq!(before[2] != during[2] && before[3] != during[3], !allowed.is_empty(), "rules: {}", during[2]);
            // Also while there is traffic.
            let _traffic = sides.here.start(&format!("ping -f {}", THERE[0]));
            sleep(Duration::from_millis(100));
            tunnel.process.signal(signal);
            let status = tunnel.process.wait();
            assert!(status.success(), "{status}");
            assert_eq!(state(&sides.here), before);
        }
    });
}

/// Everything that a process can catch but what Linux ignores or stops by default, and SIGHUP, which has tests of its own.
/// The kernel's real-time signals are numbered 34 to 64 outside of the C library.
#[test]
fn nothing_is_left_by_any_signal() {
    const QUIET: [i32; 9] = [9, 13, 17, 18, 19, 20, 21, 22, 23];
    in_namespace("close::nothing_is_left_by_any_signal", PROGRAMS, || {
        let sides = Sides::new();
        let before = state(&sides.here);
        for signal in (2..=31).filter(|signal| !QUIET.contains(signal) && *signal != 28).chain([34, 64]) {
            let mut tunnel = sides.up("", "Endpoint = 10.9.1.2:51820\nAllowedIPs = 0.0.0.0/0, ::/0");
            assert!(state(&sides.here) != before);
            sides.here.run(&format!("kill -{signal} {}", tunnel.process.id()));
            let status = tunnel.process.wait();
            assert_eq!(state(&sides.here), before, "signal {signal}: {status}");
            // A service manager starts the tunnel anew after what nobody means as an order to end it.
            let expected = if [2, 15].contains(&signal) { 0 } else { 1 };
            assert_eq!(status.code(), Some(expected), "signal {signal}");
            assert!(
                tunnel.log().contains("\"message\":\"down\",\"tunnel\":\"bw0\",\"reason\":\"SIG") || signal > 31,
                "{}",
                tunnel.log()
            );
        }
    });
}

#[test]
fn hangup_without_a_terminal_restores_the_log_filter() {
    in_namespace("close::hangup_without_a_terminal_restores_the_log_filter", PROGRAMS, || {
        let sides = Sides::new();
        let before = state(&sides.here);
        let own = [HANGUP_COUNTS, &["setsid"]].concat();
        let mut tunnel = sides.up_by(&own, &sides.configuration("", ""), &["--log", "info,backwater_udp=off"]);
        assert_eq!(sides.output(["set", "log", "off"]).0, 0);
        tunnel.process.signal(Signal::HUP);
        let end = Instant::now() + Duration::from_secs(60);
        while !tunnel.log().contains("\"filter\":\"info,backwater_udp=off\"") {
            assert!(Instant::now() < end, "{}", tunnel.log());
            sleep(Duration::from_millis(20));
        }
        assert_eq!(sides.output(["status", NAME]).0, 0, "it still runs");
        assert!(tunnel.process.stop().success());
        assert_eq!(state(&sides.here), before);
    });
}

/// The shell that runs the tests may ignore SIGHUP, and its children inherit that.
const HANGUP_COUNTS: &[&str] = &["env", "--default-signal=HUP"];

/// As when an SSH connection breaks. `script` gives the tunnel a terminal, which is gone with it.
#[test]
fn hangup_of_its_terminal_ends_the_tunnel() {
    let programs = [PROGRAMS, &[("script", "bsdutils")]].concat();
    in_namespace("close::hangup_of_its_terminal_ends_the_tunnel", &programs, || {
        let sides = Sides::new();
        let before = state(&sides.here);
        let mut terminal = in_a_terminal(&sides, &format!("{} ", HANGUP_COUNTS.join(" ")));
        terminal.signal(Signal::KILL);
        terminal.wait();
        until_gone(&sides, &before);
    });
}

#[test]
fn nohup_keeps_the_tunnel_when_its_terminal_is_gone() {
    let programs = [PROGRAMS, &[("script", "bsdutils"), ("nohup", "coreutils")]].concat();
    in_namespace("close::nohup_keeps_the_tunnel_when_its_terminal_is_gone", &programs, || {
        let sides = Sides::new();
        let before = state(&sides.here);
        let mut terminal = in_a_terminal(&sides, "nohup ");
        terminal.signal(Signal::KILL);
        terminal.wait();
        sleep(Duration::from_millis(500));
        assert_eq!(sides.output(["status", NAME]).0, 0, "it still runs");
        let log = std::fs::read_dir(sides.log_directory()).unwrap().next().unwrap().unwrap().file_name();
        let process = log.to_str().unwrap().split('-').nth(1).unwrap().to_owned();
        sides.here.run(&format!("kill {process}"));
        until_gone(&sides, &before);
    });
}

/// `script`, which gives the tunnel a terminal of its own.
fn in_a_terminal(sides: &Sides, prefix: &str) -> Process {
    let configuration = sides.configuration("", "AllowedIPs = 0.0.0.0/0, ::/0");
    let file = sides.directory.file(&format!("{NAME}.conf"), &configuration);
    let line = format!("{prefix}{PROGRAM} up {}", file.display());
    let mut command = sides.here.command_of(["script", "-qefc", &line, "/dev/null"]);
    sides.environment(&mut command);
    let terminal = Process::spawn("terminal", command);
    let end = Instant::now() + Duration::from_secs(60);
    while sides.output(["status", NAME]).0 != 0 {
        assert!(Instant::now() < end, "it does not come up");
        sleep(Duration::from_millis(20));
    }
    terminal
}

fn until_gone(sides: &Sides, before: &[String]) {
    let end = Instant::now() + Duration::from_secs(60);
    while state(&sides.here) != before {
        assert!(Instant::now() < end, "{:?}", state(&sides.here));
        sleep(Duration::from_millis(20));
    }
}

/// The uplink takes two megabits a second, a small part of what is sent, and hardly anything waits before it but in the tunnel.
#[test]
fn what_is_held_is_sent() {
    in_namespace("close::what_is_held_is_sent", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, echo) = (sides.stock(""), Echo::new(&sides.there));
        let mut tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
        drop(echo);
        let sink = sides.there.within(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, Echo::PORT)).unwrap());
        sides.here.run("tc qdisc add dev fe1 root tbf rate 2mbit burst 3k limit 3k");
        let sender = sides.here.spawn(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            // Until the tunnel is gone.
            while (0..5).all(|_| socket.send_to(&[0; 1000], (THERE[0], Echo::PORT)).is_ok()) {
                sleep(Duration::from_millis(2));
            }
        });
        let arrived = |patience: Duration| {
            sink.set_read_timeout(Some(patience)).unwrap();
            std::iter::repeat_with(|| sink.recv(&mut [0; 1000])).take_while(Result::is_ok).count()
        };
        let (mut status, mut queued, begin) = (tunnel.status(), 0, Instant::now());
        while queued <= 7_000 {
            assert!(begin.elapsed() < Duration::from_secs(20), "nothing is held: {status:#}");
            sleep(Duration::from_millis(100));
            status = tunnel.status();
            queued = status["peers"][0]["queued_bytes"].as_u64().unwrap();
        }
        let before = arrived(Duration::from_micros(1));
        let end = tunnel.process.stop();
        let after = arrived(Duration::from_millis(500));
        eprintln!("{queued} bytes were queued; {before} datagrams arrived before the signal, {after} after it");
        assert!(end.success() && after > 7, "{before}, {after}: {status:#}");
        sender.join().unwrap();
    });
}

#[test]
fn systemd_is_told() {
    in_namespace("close::systemd_is_told", PROGRAMS, || {
        let sides = Sides::new();
        let path = sides.directory.path.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let file = sides.directory.file(&format!("{NAME}.conf"), &sides.configuration("", ""));
        // As systemd says whom its watchdog is for.
        let own = ["sh", "-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\""];
        let mut command = sides.program_by(&own, ["up", file.to_str().unwrap()]);
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
        let mut tunnel = crate::support::Process::spawn("tunnel", command);
        let mut message = [0; 100];
        for expected in ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"] {
            let len = socket.recv(&mut message).unwrap();
            assert_eq!(str::from_utf8(&message[..len]).unwrap().trim(), expected);
        }
        // It is.
        assert_eq!(sides.output(["status", NAME]).0, 0);
        sides.here.run(&format!("ip link show dev {NAME} up"));
        assert!(tunnel.stop().success());
    });
}
