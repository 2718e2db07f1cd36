//! More is sent than can be carried.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::getpriority_process;

use crate::support::{
    Process, in_namespace,
    traffic::{Echo, until_answered},
    tunnel::{NAME, PROGRAMS, Sides, THERE, number},
};

#[test]
fn overload_keeps_the_priority_and_every_packet_is_counted() {
    in_namespace("overload::overload_keeps_the_priority_and_every_packet_is_counted", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
        let started_with = getpriority_process(None).unwrap();
        assert_eq!(tunnel.niceness(), i64::from(started_with), "the tunnel changes its own priority");

        let target = SocketAddr::new(THERE[0], 7000);
        let sink = sides.there.within(move || UdpSocket::bind(target).unwrap());
        // Packets that the loop has read, and packets that the device dropped since the loop did not read them in time.
        let taken = || {
            let status = tunnel.status();
            ["device_read", "tx_dropped"].map(|name| number(&status["device"], name)).iter().sum::<u64>()
        };
        let before = taken();
        let sending = sides.here.spawn(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let until = Instant::now() + Duration::from_secs(2);
            let mut sent = 0;
            while Instant::now() < until {
                sent += u64::from(socket.send_to(&[0; 100], target).is_ok());
            }
            sent
        });
        thread::sleep(Duration::from_secs(1));
        // The control socket is served during the overload.
        taken();
        let offered = sending.join().unwrap();
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
        let after = taken() - before;
        // The last datagrams that ask for an echo go through the device, too.
        assert!((offered..offered + 1_000).contains(&after), "{offered} were sent, and {after} counted");
        drop(sink);
    });
}

/// A held batch that has left in part is counted by the peer as it is by the transport, whenever an operator looks.
#[test]
fn a_batch_that_has_left_in_part_is_in_the_peers_counters() {
    let programs = [PROGRAMS, &[("tc", "iproute2")]].concat();
    in_namespace("overload::a_batch_that_has_left_in_part_is_in_the_peers_counters", &programs, || {
        let sides = Sides::new();
        // A whole batch fits; it is not taken apart by the queue, but refused until there is room for it or for half of it.
        sides.here.run("tc qdisc add dev fe1 root tbf rate 20mbit burst 80000 limit 128000");
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let tunnel = sides.up("", "Endpoint = 10.9.1.2:51820");
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));

        let target = SocketAddr::new(THERE[0], 7000);
        let sink = sides.there.within(move || UdpSocket::bind(target).unwrap());
        let done = Arc::<AtomicBool>::default();
        let sending = sides.here.spawn({
            let done = done.clone();
            move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                while !done.load(SeqCst) {
                    let _ = socket.send_to(&[0; 1300], target);
                }
            }
        });
        // Messages of the protocol are in the transport's counters alone; there are none in these seconds.
        let transport_alone = || {
            let status = tunnel.status();
            let (transport, peer) = (&status["transport"], &status["peers"][0]["counters"]);
            let finished = number(transport, "accepted_total") - number(transport, "held");
            let of_peer = number(peer, "datagrams_sent") + number(peer, "datagrams_dropped");
            finished as i64 - of_peer as i64
        };
        let seen: BTreeSet<_> = (0..100).map(|_| transport_alone()).collect();
        let held = tunnel.peer("held");
        done.store(true, SeqCst);
        sending.join().unwrap();
        drop(sink);
        assert!(held > 0, "the path was not the bottleneck");
        assert_eq!(seen.len(), 1, "finished datagrams that the peer has not counted: {seen:?}");
    });
}

#[test]
fn its_session_may_be_outside_of_its_container() {
    in_namespace("overload::its_session_may_be_outside_of_its_container", PROGRAMS, || {
        let sides = Sides::new();
        let (_stock, _echo) = (sides.stock(""), Echo::new(&sides.there));
        let file = sides.directory.file("bw0.conf", &sides.configuration("", "Endpoint = 10.9.1.2:51820"));
        // There `getsid` is 0. Who asks is root.
        let container = ["unshare", "--pid", "--fork", "--kill-child"];
        let tunnel = Process::spawn("tunnel", sides.program_by(&container, ["up", file.to_str().unwrap()]));
        tunnel.wait_for(&format!("{NAME} is up"));
        until_answered(&sides.here, THERE[0], Duration::from_secs(5));
    });
}
