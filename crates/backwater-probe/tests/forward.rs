//! The load generator against the forwarder, on loopback: everything that is sent is counted, once.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[cfg(target_os = "linux")]
#[path = "../../backwater-udp/tests/support/mod.rs"]
mod support;

use std::{net::SocketAddr, time::Duration};

use backwater_probe::{
    forward::Forwarder,
    load::{Load, LoadError, Outcome, Session, Setup},
};

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A port that was free a moment ago.
fn free() -> SocketAddr {
    std::net::UdpSocket::bind(any()).unwrap().local_addr().unwrap()
}

fn load(size: usize, burst: usize, rate: f64) -> Load {
    Load { size, burst, rate, warm_up: Duration::from_millis(20), duration: Duration::from_millis(150) }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The forwarder has a thread of its own, as a server has a process; it ends with the test.
fn forwarder(listen: SocketAddr, to: SocketAddr) {
    std::thread::spawn(move || runtime().block_on(Forwarder { listen, to }.run()));
}

async fn through_forwarder(clients: usize, loads: &[Load]) -> Vec<Outcome> {
    let server = free();
    let setup = Setup { server, credential: None, clients, sink: any(), plain_sink: clients > 1 };
    let mut session = Session::open(&setup).await.unwrap();
    forwarder(server, session.sink());
    // The first load shows when the forwarder is there.
    for attempt in 0.. {
        let (outcome, _) = session.run(&load(100, 1, 1000.0), || ()).await.unwrap();
        if outcome.received > 0 {
            break;
        }
        assert!(attempt < 20, "the forwarder does not start");
    }
    let mut outcomes = Vec::new();
    for load in loads {
        outcomes.push(session.run(load, || ()).await.unwrap().0);
    }
    session.close().await.unwrap();
    outcomes
}

#[test]
fn counts_add_up() {
    let loads = [load(100, 8, 20_000.0), load(1200, 8, 20_000.0), load(1200, 64, 40_000.0), load(99, 1, 5_000.0)];
    for clients in [1, 5] {
        for (o, load) in runtime().block_on(through_forwarder(clients, &loads)).iter().zip(&loads) {
            assert_eq!((o.clients, o.size, o.burst), (clients, load.size, load.burst));
            assert_eq!(o.sent, o.received + o.lost, "{o:?}");
            assert!(o.sent > 0 && o.sent % load.burst as u64 == 0, "whole trains: {o:?}");
            // At this rate only a machine that does something else for long makes anybody lose.
            assert!(o.received > o.sent / 2, "{o:?}");
            assert!(o.received_per_second > 0.0 && o.p50_us <= o.p99_us, "{o:?}");
        }
    }
}

#[test]
fn what_nobody_forwards_is_lost() {
    let setup = Setup { server: free(), credential: None, clients: 2, sink: any(), plain_sink: false };
    let outcome = runtime().block_on(async {
        let mut session = Session::open(&setup).await.unwrap();
        session.run(&load(100, 8, 10_000.0), || ()).await.unwrap().0
    });
    assert_eq!((outcome.received, outcome.lost), (0, outcome.sent));
    assert!(outcome.sent > 0 && outcome.valid, "{outcome:?}");
}

#[test]
fn a_load_that_cannot_be_is_refused() {
    let setup = Setup { server: free(), credential: None, clients: 1, sink: any(), plain_sink: false };
    runtime().block_on(async {
        let mut session = Session::open(&setup).await.unwrap();
        for bad in [load(7, 1, 1.0), load(100, 0, 1.0), load(65_504, 1, 1.0)] {
            assert!(matches!(session.run(&bad, || ()).await, Err(LoadError::Invalid(_))), "{bad:?}");
        }
    });
}

#[cfg(target_os = "linux")]
#[test]
fn what_the_system_has_no_room_for_is_refused_and_no_error() {
    support::in_namespace("what_the_system_has_no_room_for_is_refused_and_no_error", || {
        support::tc("qdisc add dev lo root tbf rate 1mbit burst 70k limit 80k");
        let setup = Setup { server: free(), credential: None, clients: 1, sink: any(), plain_sink: false };
        runtime().block_on(async {
            let mut session = Session::open(&setup).await.unwrap();
            for load in [load(1000, 1, 10_000.0), load(1000, 8, 10_000.0)] {
                let outcome = session.run(&load, || ()).await.unwrap().0;
                assert!(outcome.sent > 0 && outcome.refused > 0, "{outcome:?}");
            }
        });
    });
}
