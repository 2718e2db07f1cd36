//! The tunnel begins and ends as its surroundings expect.

use std::{
    net::{Ipv6Addr, UdpSocket},
    os::unix::net::UnixDatagram,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::support::{
    Network, in_namespace,
    traffic::{Echo, until_answered},
    tunnel::{NAME, PROGRAMS, Sides, THERE},
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
            let begin = Instant::now();
            tunnel.process.signal(signal);
            let status = tunnel.process.wait();
            assert!(status.success(), "{status}");
            assert!(begin.elapsed() < Duration::from_secs(1), "it took {:?}", begin.elapsed());
            assert_eq!(state(&sides.here), before);
        }
    });
}

/// The uplink takes two megabits a second, half of what is sent, and hardly anything waits before it but in the tunnel.
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
            while socket.send_to(&[0; 1000], (THERE[0], Echo::PORT)).is_ok() {
                sleep(Duration::from_millis(2));
            }
        });
        let arrived = |patience: Duration| {
            sink.set_read_timeout(Some(patience)).unwrap();
            std::iter::repeat_with(|| sink.recv(&mut [0; 1000])).take_while(Result::is_ok).count()
        };
        sleep(Duration::from_millis(700));
        let status = tunnel.status();
        let queued = status["peers"][0]["queued_bytes"].as_u64().unwrap();
        assert!(queued > 7_000, "{status:#}");
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
        let mut command = sides.program(["up", file.to_str().unwrap()]);
        command.env("NOTIFY_SOCKET", &path);
        let mut tunnel = crate::support::Process::spawn("tunnel", command);
        let mut message = [0; 100];
        let len = socket.recv(&mut message).unwrap();
        assert_eq!(str::from_utf8(&message[..len]).unwrap().trim(), "READY=1");
        // It is.
        assert_eq!(sides.output(["status", NAME]).0, 0);
        sides.here.run(&format!("ip link show dev {NAME} up"));
        assert!(tunnel.stop().success());
    });
}
