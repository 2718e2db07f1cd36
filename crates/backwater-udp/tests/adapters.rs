//! The sink and the stream, on loopback and behind a queue that fills up.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[cfg(target_os = "linux")]
#[path = "support/mod.rs"]
mod support;

use std::{
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Waker},
    time::Duration,
};

use backwater_udp::{DatagramSink, DatagramStream, DropReason, Ecn, OwnedDatagram, RecvBatch, Transmit, UdpSocket};
use bytes::Bytes;
use futures_util::{Sink, SinkExt, StreamExt};
use tokio::time::timeout;

fn bind(addr: &str) -> UdpSocket {
    UdpSocket::bind(addr.parse().unwrap()).unwrap()
}

async fn next(stream: &mut DatagramStream) -> OwnedDatagram {
    timeout(Duration::from_secs(10), stream.next()).await.expect("a datagram is missing").unwrap().unwrap()
}

#[tokio::test]
async fn what_goes_in_comes_out() {
    for addr in ["127.0.0.1:0", "[::1]:0"] {
        let (a, b) = (bind(addr), bind(addr));
        let mut sink = DatagramSink::new(a.sender());
        let mut stream = DatagramStream::new(b.receiver());
        for (i, ecn) in [None, Some(Ecn::Ect0), Some(Ecn::Ect1), Some(Ecn::Ce)].into_iter().enumerate() {
            let payload = Bytes::from(vec![i as u8; i * 400]);
            let local_ip = Some(a.local_addr().ip());
            sink.feed(OwnedDatagram { peer: b.local_addr(), local_ip, ecn, payload: payload.clone() }).await.unwrap();
            let got = next(&mut stream).await;
            assert_eq!(got, OwnedDatagram { peer: a.local_addr(), local_ip: Some(b.local_addr().ip()), ecn, payload });
        }
        sink.close().await.unwrap();
        let stats = a.stats().snapshot();
        assert_eq!((stats.accepted, stats.sent, stats.held), (4, 4, 0));
    }
}

#[tokio::test]
async fn a_train_comes_out_as_its_datagrams() {
    let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let data: Vec<u8> = (0..60_000u32).map(|i| (i % 251) as u8).collect();
    let slices = [std::io::IoSlice::new(&data)];
    let mut stream = DatagramStream::with_batch(b.receiver(), RecvBatch::new(2));
    for segment in [1000, 1100, 60_000] {
        a.sender().send(&mut Transmit::new(b.local_addr(), &slices).segment_size(segment)).await.unwrap();
        for want in data.chunks(segment) {
            assert_eq!(next(&mut stream).await.payload, want);
        }
    }
}

#[tokio::test]
async fn a_stream_forwarded_to_a_sink_is_an_echo() {
    let (client, server) = (bind("127.0.0.1:0"), bind("0.0.0.0:0"));
    tokio::spawn(DatagramStream::new(server.receiver()).forward(DatagramSink::new(server.sender())));
    let to = SocketAddr::from(([127, 0, 0, 1], server.local_addr().port()));
    let mut sink = DatagramSink::new(client.sender());
    let mut stream = DatagramStream::new(client.receiver());
    for i in 0..100u8 {
        sink.send((to, Bytes::from(vec![i])).into()).await.unwrap();
        let echo = next(&mut stream).await;
        assert_eq!((echo.peer, &*echo.payload), (to, &[i][..]));
    }
}

#[tokio::test]
async fn what_cannot_be_sent_is_counted_and_no_error() {
    let a = bind("127.0.0.1:0");
    let mut sink = DatagramSink::new(a.sender());
    sink.send((SocketAddr::from(([127, 0, 0, 1], 9)), Bytes::from(vec![0; 65_508])).into()).await.unwrap();
    assert_eq!(sink.held(), None);
    assert_eq!(a.stats().snapshot().dropped(DropReason::TooLarge), 1);
}

/// Goes on inside a namespace in which loopback passes `rate`, with a queue that is never full, and `false` outside.
#[cfg(target_os = "linux")]
fn inside_slow_loopback(name: &str, rate: &str) -> bool {
    let mut inside = false;
    support::in_namespace(name, || {
        support::tc(&format!("qdisc add dev lo root tbf rate {rate} burst 3k limit 10mb"));
        inside = true;
    });
    inside
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_sink_that_is_held_loses_nothing() {
    if !inside_slow_loopback("a_sink_that_is_held_loses_nothing", "8mbit") {
        return;
    }
    let a = UdpSocket::builder().send_buffer(20_000).bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let b = bind("127.0.0.1:0");
    let to = b.local_addr();
    let receiving = tokio::spawn(async move {
        let mut stream = DatagramStream::new(b.receiver());
        let mut seen = Vec::new();
        while seen.len() < 1000 {
            seen.push(u32::from_be_bytes(*next(&mut stream).await.payload.first_chunk().unwrap()));
        }
        seen
    });
    let mut sink = DatagramSink::new(a.sender());
    for i in 0..1000u32 {
        let payload = Bytes::from([i.to_be_bytes().to_vec(), vec![0; 996]].concat());
        // Every way to wait, and a wait that is given up now and then: the datagram stays in the sink.
        if i % 7 == 0 {
            let _ = timeout(Duration::from_micros(500), sink.flush()).await;
        }
        sink.feed((to, payload).into()).await.unwrap();
    }
    sink.close().await.unwrap();
    // The queue is emptied on whichever CPU: the kernel may deliver out of order.
    let mut seen = receiving.await.unwrap();
    seen.sort_unstable();
    assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    let stats = a.stats().snapshot();
    assert!(stats.parked > 10, "nothing was held: {stats:?}");
    assert_eq!((stats.accepted, stats.sent, stats.held), (1000, 1000, 0));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_a_dropped_sink_holds_is_cancelled_once() {
    if !inside_slow_loopback("what_a_dropped_sink_holds_is_cancelled_once", "8kbit") {
        return;
    }
    let a = UdpSocket::builder().send_buffer(20_000).bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let datagram = OwnedDatagram::from((SocketAddr::from(([127, 0, 0, 1], 9)), Bytes::from(vec![0; 1000])));
    let mut sink = DatagramSink::new(a.sender());
    let mut accepted = 0;
    while sink.held().is_none() {
        Pin::new(&mut sink).start_send(datagram.clone()).unwrap();
        accepted += 1;
    }
    // It counts from the moment it was handed over, though nobody has waited for it yet.
    let stats = a.stats().snapshot();
    assert_eq!((stats.accepted, stats.sent, stats.held), (accepted, accepted - 1, 1));
    assert!(timeout(Duration::from_millis(20), sink.flush()).await.is_err());
    let again = pin!(&mut sink).start_send(datagram.clone()).unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::InvalidInput);
    assert!(Pin::new(&mut sink).poll_ready(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(sink);
    let stats = a.stats().snapshot();
    assert_eq!((stats.accepted, stats.held, stats.dropped(DropReason::Cancelled)), (accepted, 0, 1));
    assert_eq!(stats.dropped_total(), 1);
}
