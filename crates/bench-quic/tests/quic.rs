//! quinn and noq on Backwater's sockets, and on their own.
#![allow(missing_docs)]

use std::time::Duration;

use backwater_udp::DropReason;
use bench_quic::{
    Link, Outcome, Sockets, noq, quinn,
    support::{in_namespace, installed, run, skip},
    veth::Veth,
};

/// Nothing is dropped for its age.
const OURS: Sockets = Sockets::Backwater(Duration::from_secs(10));

type Transfer = fn(&Link, Sockets, u64) -> Outcome;

const BOTH: [(&str, Transfer); 2] = [("quinn", quinn::transfer), ("noq", noq::transfer)];

/// 16 ms of 20 Mbit/s, and a burst that no batch exceeds.
const SLOW: &str = "rate 20mbit burst 20000 limit 40000";

/// All that the connection has sent has arrived, and the books add up.
fn lost_nothing(name: &str, outcome: &Outcome) {
    assert_eq!(outcome.lost_locally(), Some(0), "{name}: {outcome:?}");
    let stats = outcome.stats.as_ref().unwrap();
    assert_eq!((stats.dropped_total(), stats.held), (0, 0), "{name}: {stats:?}");
    assert_eq!(stats.accepted, stats.sent, "{name}: {stats:?}");
}

#[test]
fn a_transfer_over_loopback_arrives() {
    in_namespace("a_transfer_over_loopback_arrives", || {
        for (name, transfer) in BOTH {
            lost_nothing(name, &transfer(&Link::Loopback, OURS, 4 << 20));
        }
    });
}

#[test]
fn nothing_is_lost_locally_before_a_slow_link() {
    in_namespace("nothing_is_lost_locally_before_a_slow_link", || {
        let veth = Veth::new(0);
        veth.shape(SLOW);
        let link = Link::Veth(veth);
        for (name, transfer) in BOTH {
            let outcome = transfer(&link, OURS, 4 << 20);
            lost_nothing(name, &outcome);
            let refusals = outcome.stats.unwrap().silent.enobufs.unconnected;
            assert!(refusals > 0, "{name}: the queue was never full");
            // With the crate's own socket datagrams are lost.
            let stock = transfer(&link, Sockets::Stock, 4 << 20);
            assert!(stock.lost_locally() > Some(0), "{name}: {stock:?}");
        }
    });
}

/// The send buffer is full instead.
#[test]
fn nothing_is_lost_locally_before_a_deep_queue() {
    in_namespace("nothing_is_lost_locally_before_a_deep_queue", || {
        let veth = Veth::new(0);
        veth.shape("rate 20mbit burst 20000 limit 100mb");
        let link = Link::Veth(veth);
        for (name, transfer) in BOTH {
            lost_nothing(name, &transfer(&link, OURS, 4 << 20));
        }
    });
}

/// Linux before 6.11 refuses batches (`EIO`) for a device without checksum offload. Later kernels segment them themselves.
#[test]
fn a_transfer_goes_on_where_the_device_does_not_segment() {
    if !installed("ethtool") {
        return skip("ethtool is not installed (package ethtool)");
    }
    in_namespace("a_transfer_goes_on_where_the_device_does_not_segment", || {
        for (index, features) in ["tx-udp-segmentation off", "tx off"].into_iter().enumerate() {
            let veth = Veth::new(index as u8);
            run("ethtool", &format!("-K near{index} {features}"));
            veth.shape(SLOW);
            let link = Link::Veth(veth);
            for (name, transfer) in BOTH {
                lost_nothing(name, &transfer(&link, OURS, 2 << 20));
            }
        }
    });
}

/// The MTU becomes smaller than the segments in the middle of the transfer, and the kernel refuses each batch of them (`EMSGSIZE`).
/// Datagrams that are too large are dropped, as the system's own socket would; what fits goes out.
#[test]
fn a_transfer_goes_on_where_the_route_refuses_batches() {
    in_namespace("a_transfer_goes_on_where_the_route_refuses_batches", || {
        let veth = Veth::new(0);
        veth.shape(SLOW);
        let link = Link::Veth(veth);
        for (name, transfer) in BOTH {
            let shrinking = std::thread::spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                run("ip", "link set near0 mtu 1300");
            });
            let outcome = transfer(&link, OURS, 4 << 20);
            shrinking.join().unwrap();
            run("ip", "link set near0 mtu 9216");
            let stats = outcome.stats.as_ref().unwrap();
            let too_large = stats.dropped(DropReason::TooLarge);
            assert!(too_large > 0, "{name}: {stats:?}");
            assert_eq!((stats.dropped_total(), stats.held), (too_large, 0), "{name}: {stats:?}");
            assert_eq!(outcome.lost_locally(), Some(too_large), "{name}: {outcome:?}");
        }
    });
}

/// 2 MB while another connection of the endpoint waits for a queue that takes a datagram each 10 ms.
#[test]
fn a_connection_that_waits_holds_up_no_other() {
    in_namespace("a_connection_that_waits_holds_up_no_other", || {
        let (slow, fast) = (Veth::new(0), Veth::new(1));
        slow.shape("rate 1mbit burst 20000 limit 40000");
        let links = [(&Link::Veth(slow), 400_000), (&Link::Veth(fast), 2 << 20)];
        assert!(quinn::overtakes(OURS, links));
        assert!(noq::overtakes(OURS, links));
    });
}

#[tokio::test]
async fn sockets_for_quic_hold_a_datagram_for_a_second() {
    let any = "127.0.0.1:0".parse().unwrap();
    let sockets = [
        backwater_udp::QuinnSocket::bind(any).unwrap().socket().clone(),
        backwater_udp::NoqSocket::bind(any).unwrap().socket().clone(),
    ];
    for socket in sockets {
        let deadline = backwater_udp::QUIC_DEADLINE;
        assert_eq!(socket.backpressure().get(), backwater_udp::Policy::Wait { deadline });
    }
}

/// As its first line says.
#[test]
fn the_example_of_a_client_runs() {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples/quinn_client");
    assert!(program.is_file(), "`cargo test` without `--test` builds it");
    let out = std::process::Command::new(program).output().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.starts_with("1048576 bytes came back\n") && said.ends_with(" 0 dropped\n"), "{said}");
}
