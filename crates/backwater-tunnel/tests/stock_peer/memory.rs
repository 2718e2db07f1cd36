//! What it takes of the machine.

use std::{thread::sleep, time::Duration};

use crate::support::{
    in_namespace,
    traffic::{Echo, transfer, until_answered},
    tunnel::{PROGRAMS, Sides, THERE},
};

const MIB: u64 = 1 << 20;

#[test]
fn memory_is_flat_and_an_idle_tunnel_sleeps() {
    in_namespace("memory::memory_is_flat_and_an_idle_tunnel_sleeps", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
        // The two timers of what has just happened.
        sleep(Duration::from_secs(3));
        let before = tunnel.sleeps();
        sleep(Duration::from_secs(10));
        let (wakeups, idle) = (tunnel.sleeps() - before, tunnel.process.resident());
        eprintln!("idle: {wakeups} wake-ups in 10 s, {:.1} MiB", idle as f64 / MIB as f64);
        assert!(wakeups < 10, "{wakeups}");
        assert!(idle < 20 * MIB, "{idle}");

        let load = || {
            transfer(&sides.here, &sides.there, THERE[0], 75);
            transfer(&sides.there, &sides.here, crate::support::tunnel::HERE[1], 75);
            tunnel.process.resident()
        };
        let (first, second, third) = (load(), load(), load());
        eprintln!(
            "after 150, 300 and 450 MiB: {:?} MiB",
            [first, second, third].map(|bytes| bytes as f64 / MIB as f64)
        );
        assert!(third < first + MIB, "{first}, {second}, {third}");
    });
}
