//! Both ends talk, whoever begins, over both families and about both.

use std::time::Duration;

use crate::support::{
    in_namespace,
    traffic::{Echo, datagrams, transfer},
    tunnel::{HERE, PROGRAMS, Sides, THERE},
};

/// From each side: pings, datagrams of all sizes, then so many MiB.
fn talk(sides: &Sides, family: usize, from_here: u32, from_there: u32) {
    for family in [0, 1] {
        for (network, to) in [(&sides.here, THERE[family]), (&sides.there, HERE[family])] {
            // With `-w` it succeeds once it has five answers; without, it waits for the last one no longer than two round trips of the others.
            network.run(&format!("ping -c 5 -i 0.05 -w 50 {to}"));
        }
        let (_here, _there) = (Echo::new(&sides.here), Echo::new(&sides.there));
        datagrams(&sides.here, THERE[family]);
        datagrams(&sides.there, HERE[family]);
    }
    let show = |way, blocks: u32, time: Duration| {
        eprintln!("{way}: {blocks} MiB in {time:.1?}, {:.0} Mbit/s", f64::from(blocks) * 8.389 / time.as_secs_f64())
    };
    show("sent", from_here, transfer(&sides.here, &sides.there, THERE[family], from_here));
    show("received", from_there, transfer(&sides.there, &sides.here, HERE[family], from_there));
}

#[test]
fn we_call_over_ipv4() {
    in_namespace("talk::we_call_over_ipv4", PROGRAMS, || {
        let sides = Sides::new();
        let _stock = sides.stock("");
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        talk(&sides, 0, 200, 50);
        let status = tunnel.status();
        assert_eq!(status["peers"][0]["endpoint"], "10.9.1.2:51820");
        for none in ["replayed", "invalid", "source_not_allowed", "datagrams_dropped"] {
            assert_eq!(tunnel.peer(none), 0, "{none}: {status:#}");
        }
    });
}

#[test]
fn we_call_over_ipv6() {
    in_namespace("talk::we_call_over_ipv6", PROGRAMS, || {
        let sides = Sides::new();
        let _stock = sides.stock("");
        let tunnel = sides.up("", "Endpoint = [fd09:1::2]:51820");
        talk(&sides, 1, 1, 1);
        assert_eq!(tunnel.status()["peers"][0]["endpoint"], "[fd09:1::2]:51820");
    });
}

#[test]
fn we_are_called_over_ipv4() {
    in_namespace("talk::we_are_called_over_ipv4", PROGRAMS, || {
        let sides = Sides::new();
        let tunnel = sides.up("ListenPort = 51820", "");
        let _stock = sides.stock("Endpoint = 10.9.1.1:51820");
        sides.there.run(&format!("ping -c 1 -W 5 {}", HERE[0]));
        talk(&sides, 1, 1, 1);
        assert_eq!(tunnel.status()["peers"][0]["endpoint"], "10.9.1.2:51820");
    });
}

#[test]
fn we_are_called_over_ipv6() {
    in_namespace("talk::we_are_called_over_ipv6", PROGRAMS, || {
        let sides = Sides::new();
        let tunnel = sides.up("ListenPort = 51820", "");
        let _stock = sides.stock("Endpoint = [fd09:1::1]:51820");
        sides.there.run(&format!("ping -c 1 -W 5 {}", HERE[1]));
        talk(&sides, 0, 50, 50);
        assert_eq!(tunnel.status()["peers"][0]["endpoint"], "[fd09:1::2]:51820");
    });
}
