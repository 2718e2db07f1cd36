use backwater_udp::StatsSnapshot;

use super::*;
use crate::status::{Device, PeerStatus, RelayStatus, RouteStatus};

fn status() -> Status {
    let mut transport = StatsSnapshot::default();
    (transport.accepted, transport.sent) = (20, 13);
    (transport.drops.deadline, transport.drops.unreachable) = (3, 4);
    let mut counters = PeerTotals::default();
    (counters.session.bytes_sent, counters.session.bytes_received) = (1000, 2000);
    (counters.queue.marked, counters.queue.dropped) = (5, 6);
    (counters.queue.overflowed, counters.queue.first_segment_dropped) = (10, 100);
    Status {
        name: "home".into(),
        public_key: "key".into(),
        listen_port: 51820,
        backpressure: "wait:100ms".into(),
        uptime_seconds: 7,
        device: Device { tx_dropped: Some(9), ..Device::default() },
        transport,
        relay: Some(RelayStatus {
            mode: "auto".into(),
            server: Some("192.0.2.9:3478".into()),
            relayed_address: Some("192.0.2.9:50000".into()),
            rtt_ms: Some(2.5),
            problem: None,
        }),
        peers: vec![PeerStatus {
            public_key: "peer".into(),
            endpoint: Some("192.0.2.1:51820".into()),
            routes: vec![
                RouteStatus {
                    kind: "direct".into(),
                    destination: Some("192.0.2.1:51820".into()),
                    in_use: false,
                    rtt_ms: None,
                    datagrams_received: 90,
                    datagrams_missing: 10,
                    reason: None,
                },
                RouteStatus {
                    kind: "relayed".into(),
                    destination: Some("192.0.2.9:3478".into()),
                    in_use: true,
                    rtt_ms: Some(1.25),
                    datagrams_received: 300,
                    datagrams_missing: 0,
                    reason: Some("the direct way does not answer".into()),
                },
            ],
            rtt_ms: Some(1.25),
            last_handshake_seconds: Some(8),
            queued_bytes: 1,
            queue_bound_bytes: 2,
            path_rate: Some(3_000_000),
            counters,
        }],
    }
}

#[test]
fn text_names_every_drop() {
    let text = ForPeople(&status()).to_string();
    for line in [
        "  backpressure: wait:100ms; 13 datagrams sent, 0 held now, 7 dropped (3 deadline, 4 unreachable), 9 dropped by the device\n",
        "    bytes:      1000 sent, 2000 received\n",
        "    queue:      1 of 2 bytes at 3.0 Mbit/s; 5 marked, 116 dropped\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[test]
fn text_names_the_relay_and_the_path_in_use() {
    let text = ForPeople(&status()).to_string();
    for line in [
        "  relay:        auto, 192.0.2.9:3478, RTT 2.5 ms, peers see 192.0.2.9:50000\n",
        "    path:       relayed by 192.0.2.9:3478, 192.0.2.1:51820, RTT 1.2 ms: the direct way does not answer\n",
        "    other path: direct, 192.0.2.1:51820, 10 of 100 datagrams missing\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[test]
fn json_is_read_as_the_same() {
    let json = serde_json::to_value(status()).unwrap();
    assert_eq!(json["transport"]["drops_total"]["unreachable"], 4);
    assert_eq!(json["peers"][0]["counters"]["first_segment_dropped"], 100);
    let read: Status = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), json);
    assert_eq!(ForPeople(&read).to_string(), ForPeople(&status()).to_string());
}
