//! The load generator against the forwarder, on loopback: everything that is sent is counted, once.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[cfg(target_os = "linux")]
#[path = "../../backwater-udp/tests/support/mod.rs"]
mod support;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::mpsc,
    time::{Duration, Instant},
};

use backwater_probe::{
    forward::Forwarder,
    load::{Direction, Load, LoadError, Outcome, Session, Setup, Via},
};

const DIRECTIONS: [Direction; 3] = [Direction::Up, Direction::Down, Direction::Across];

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A port that was free a moment ago.
fn free() -> SocketAddr {
    UdpSocket::bind(any()).unwrap().local_addr().unwrap()
}

fn load(size: usize, burst: usize, rate: f64) -> Load {
    Load { size, burst, rate, warm_up: Duration::from_millis(20), duration: Duration::from_millis(150) }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The forwarder has a thread of its own, as a server has a process; it ends with the test. It listens where the peer is.
fn forwarder(direction: Direction, peer: SocketAddr) -> SocketAddr {
    let (tell, bound) = mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let forwarder = Forwarder::bind(SocketAddr::new(peer.ip(), 0), direction, peer).unwrap();
            tell.send(forwarder.local_addr()).unwrap();
            forwarder.run().await
        })
    });
    bound.recv().unwrap()
}

async fn through_forwarder(direction: Direction, clients: usize, plain_sink: bool, loads: &[Load]) -> Vec<Outcome> {
    through_forwarder_to(free(), direction, clients, plain_sink, loads).await
}

async fn through_forwarder_to(
    peer: SocketAddr,
    direction: Direction,
    clients: usize,
    plain_sink: bool,
    loads: &[Load],
) -> Vec<Outcome> {
    let via = Via::Forwarder(forwarder(direction, peer));
    let mut session = Session::open(&Setup { via, direction, clients, peer, plain_sink }).await.unwrap();
    let mut outcomes = Vec::new();
    for load in loads {
        outcomes.push(session.run(load, || ()).await.unwrap().0);
    }
    session.close().await.unwrap();
    outcomes
}

fn nothing_between(clients: usize) -> Setup {
    Setup { via: Via::Nothing, direction: Direction::Up, clients, peer: any(), plain_sink: false }
}

#[test]
fn counts_add_up() {
    let loads = [load(100, 8, 20_000.0), load(1200, 8, 20_000.0), load(1200, 64, 40_000.0), load(99, 1, 5_000.0)];
    for direction in DIRECTIONS {
        for clients in [2, 6] {
            let plain = direction == Direction::Up && clients > 2;
            let outcomes = runtime().block_on(through_forwarder(direction, clients, plain, &loads));
            for (o, load) in outcomes.iter().zip(&loads) {
                assert_eq!((o.direction, o.clients, o.size, o.burst), (direction, clients, load.size, load.burst));
                assert_eq!(o.sent, o.received + o.lost, "{o:?}");
                assert!(o.sent > 0 && o.sent % load.burst as u64 == 0, "whole trains: {o:?}");
                assert!(o.received > 0 && o.p50_us <= o.p99_us, "{o:?}");
            }
        }
    }
}

/// On IPv4 loopback the clients share a socket; here each has its own.
#[test]
fn clients_may_have_a_socket_each() {
    let Ok(free) = UdpSocket::bind("[::1]:0") else {
        assert!(std::env::var_os("CI").is_none(), "no IPv6 here");
        println!("skipped: no IPv6 here");
        return;
    };
    let peer = free.local_addr().unwrap();
    drop(free);
    for direction in DIRECTIONS {
        for o in runtime().block_on(through_forwarder_to(peer, direction, 4, false, &[load(100, 8, 20_000.0)])) {
            assert_eq!((o.sent, o.sent % 8), (o.received + o.lost, 0), "{o:?}");
            assert!(o.received > 0, "{o:?}");
        }
    }
}

#[test]
fn the_forwarder_forwards_byte_for_byte() {
    let socket = || {
        let socket = UdpSocket::bind(any()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    };
    let receive = |socket: &UdpSocket| {
        let mut buffer = [0; 2000];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        (buffer[..len].to_vec(), from)
    };
    let framed = |data: &[u8]| [&[0x40, 0, 0, data.len() as u8][..], data].concat();
    let (peer, [a, b]) = (socket(), [socket(), socket()]);

    let server = forwarder(Direction::Down, peer.local_addr().unwrap());
    a.send_to(&framed(b"one"), server).unwrap();
    let (up, egress_of_a) = receive(&peer);
    b.send_to(&framed(b"from b"), server).unwrap();
    let (other_up, egress_of_b) = receive(&peer);
    assert_eq!((&up[..], &other_up[..]), (&b"one"[..], &b"from b"[..]));
    assert_ne!(egress_of_a, egress_of_b);
    for data in [&b"two"[..], b"three", b"four", b""] {
        peer.send_to(data, egress_of_a).unwrap();
        peer.send_to(data, egress_of_b).unwrap();
        assert_eq!(receive(&a), (framed(data), server));
        assert_eq!(receive(&b), (framed(data), server));
    }

    let server = forwarder(Direction::Across, peer.local_addr().unwrap());
    // Forwarded only if it is taken from the socket together with the next.
    let early = framed(b"nobody may be there yet");
    a.send_to(&early, server).unwrap();
    b.send_to(&framed(b"ahead"), server).unwrap();
    assert_eq!(receive(&a), (framed(b"ahead"), server));
    a.send_to(&framed(b"one"), server).unwrap();
    let mut first = receive(&b);
    if first.0 == early {
        first = receive(&b);
    }
    assert_eq!(first, (framed(b"one"), server));
    for data in [&b"two"[..], b"three"] {
        a.send_to(&framed(data), server).unwrap();
        assert_eq!(receive(&b), (framed(data), server));
        b.send_to(&framed(data), server).unwrap();
        assert_eq!(receive(&a), (framed(data), server));
    }
}

#[test]
fn datagrams_without_a_forwarder_are_lost_or_an_error() {
    runtime().block_on(async {
        for direction in DIRECTIONS {
            let via = Via::Forwarder(free());
            let setup = Setup { via, direction, clients: 2, peer: any(), plain_sink: false };
            assert!(matches!(Session::open(&setup).await, Err(LoadError::NotForwarded(_))), "{direction:?}");
        }
        // A way that leads past the sink.
        let elsewhere = UdpSocket::bind(any()).unwrap();
        let via = Via::Forwarder(forwarder(Direction::Up, elsewhere.local_addr().unwrap()));
        let setup = Setup { via, direction: Direction::Up, clients: 2, peer: free(), plain_sink: true };
        let mut session = Session::open(&setup).await.unwrap();
        let outcome = session.run(&load(100, 8, 10_000.0), || ()).await.unwrap().0;
        assert_eq!((outcome.received, outcome.lost), (0, outcome.sent));
        assert!(outcome.sent > 0 && outcome.valid, "{outcome:?}");
    });
}

#[test]
fn invalid_load_is_refused() {
    runtime().block_on(async {
        let mut session = Session::open(&nothing_between(1)).await.unwrap();
        for bad in [load(7, 1, 1.0), load(100, 0, 1.0), load(65_504, 1, 1.0)] {
            assert!(matches!(session.run(&bad, || ()).await, Err(LoadError::Invalid(_))), "{bad:?}");
        }
        let odd = Setup { direction: Direction::Across, ..nothing_between(3) };
        let plain = Setup { direction: Direction::Down, plain_sink: true, ..nothing_between(1) };
        for bad in [nothing_between(0), odd, plain] {
            assert!(matches!(Session::open(&bad).await, Err(LoadError::Invalid(_))), "{bad:?}");
        }
    });
}

#[cfg(target_os = "linux")]
#[test]
fn refused_datagrams_are_counted_and_no_error() {
    support::in_namespace("refused_datagrams_are_counted_and_no_error", || {
        support::tc("qdisc add dev lo root tbf rate 1mbit burst 70k limit 80k");
        runtime().block_on(async {
            let mut session = Session::open(&nothing_between(1)).await.unwrap();
            for load in [load(1000, 1, 10_000.0), load(1000, 8, 10_000.0)] {
                // The link carries 125 datagrams a second. A busy machine may need several runs to send more.
                let end = Instant::now() + Duration::from_secs(60);
                loop {
                    let outcome = session.run(&load, || ()).await.unwrap().0;
                    if outcome.sent > 0 && outcome.refused > 0 {
                        break;
                    }
                    assert!(Instant::now() < end, "{outcome:?}");
                }
            }
        });
    });
}
