//! Clients that do not do as they should, and what they cost the others.

use super::*;
use crate::client::{client, peer};

/// Sends datagrams of a client over UDP to a peer, and sees each of them arrive.
fn all_arrive(over_udp: &Client, socket: &UdpSocket, count: u32) {
    let mut buffer = [0; 100];
    for n in 0..count {
        over_udp.socket.send(&channel_data(0x4000, &n.to_be_bytes())).unwrap();
        let len = socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..len], n.to_be_bytes());
    }
}

#[test]
fn client_that_never_reads_costs_nobody_else_and_is_cut_off() {
    let mut relay = start_tcp(&[]);
    let (socket, addr) = peer();
    let mut well = client(&relay);
    well.allocate();
    well.bind_channel(0x4000, addr).unwrap();
    let mut deaf = StreamClient::tcp(relay.local_tcp_addrs()[0]);
    let relayed = deaf.allocate();
    deaf.bind_channel(0x4000, addr);
    // Until its socket, the system's queue and ours are full.
    while dropped(&relay, DropReason::SlowClient) == 0 {
        for _ in 0..10 {
            socket.send_to(&[1; 1200], relayed).unwrap();
        }
        all_arrive(&well, &socket, 1);
    }
    all_arrive(&well, &socket, 1000);
    until("it is cut off", || ended(&relay, CutOff::Stalled) == 1);
    until("its allocation is gone", || total(&relay, |c| &c.closed) == 1);
    let gone = dropped(&relay, DropReason::SlowClient) + dropped(&relay, DropReason::ClientGone);
    assert_eq!(total(&relay, |c| &c.stream_accepted), total(&relay, |c| &c.stream_sent) + gone);
    all_arrive(&well, &socket, 100);
    relay.stop(Duration::ZERO);
}

/// With `drop`, nothing waits for a client but the rest of what has begun: frames stay whole.
#[test]
fn client_that_reads_late_finds_whole_frames_under_either_policy() {
    let (files, config) = CertificateFiles::new();
    for (policy, over_tls) in
        [("drop", false), ("wait:20ms", false), ("wait:10s", false), ("drop", true), ("wait:20ms", true)]
    {
        let mut relay = start_tcp(&[&["--backpressure", policy], &files.args()[..]].concat());
        let (socket, addr) = peer();
        let at = relay.local_tcp_addrs()[0];
        let mut slow = if over_tls { StreamClient::over(tls(at, &config)) } else { StreamClient::tcp(at) };
        let relayed = slow.allocate();
        slow.bind_channel(0x4000, addr);
        let mut sent = 0u32;
        while dropped(&relay, DropReason::SlowClient) < 100 {
            socket.send_to(&[&sent.to_be_bytes()[..], &[9; 1197]].concat(), relayed).unwrap();
            sent += 1;
            // Each of them is to arrive here.
            until("the relay has it", || {
                u64::from(sent) == total(&relay, |c| &c.to_clients) + dropped(&relay, DropReason::NoPermission)
            });
        }
        // The relay reads what the client asks while something waits for it.
        let request = Client::new(relay.local_addrs()[0], "a", "b", "c").encode(Method::BINDING, &|_| ());
        for _ in 0..10 {
            slow.send(&request);
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut last = None;
        let mut received = 0;
        loop {
            let is_all = received == total(&relay, |c| &c.stream_sent)
                && received + dropped(&relay, DropReason::SlowClient) == total(&relay, |c| &c.stream_accepted);
            if is_all {
                break;
            }
            let frame = slow.frame();
            if frame[0] < 4 {
                continue;
            }
            let number = u32::from_be_bytes(frame[4..8].try_into().unwrap());
            assert_eq!(frame, padded(0x4000, &[&number.to_be_bytes()[..], &[9; 1197]].concat()), "{policy}");
            assert!(last < Some(number), "{policy}: {number} after {last:?}");
            last = Some(number);
            received += 1;
        }
        // It goes on as if nothing had been.
        slow.request(Method::REFRESH, &|_| ()).unwrap();
        relay.stop(Duration::ZERO);
    }
}

/// A client that asks and does not read the answers is read no further, and cut off.
#[test]
fn client_that_reads_no_answers_is_cut_off() {
    let mut relay = start_tcp(&[]);
    let mut deaf = connect(relay.local_tcp_addrs()[0]);
    deaf.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let request = Client::new(relay.local_addrs()[0], "a", "b", "c").encode(Method::BINDING, &|_| ());
    let requests = request.repeat(1000);
    until("the relay reads no more, and ends it", || {
        // The time limit, and then the end.
        let _ = deaf.write(&requests);
        ended(&relay, CutOff::Stalled) + ended(&relay, CutOff::Idle) == 1
    });
    relay.stop(Duration::ZERO);
}

#[test]
fn connections_without_an_allocation_are_bounded_and_end() {
    let mut relay = start_tcp(&[]);
    let at = relay.local_tcp_addrs()[0];
    let (socket, addr) = peer();
    let mut well = client(&relay);
    well.allocate();
    well.bind_channel(0x4000, addr).unwrap();
    let mut here_before = StreamClient::tcp(at);
    here_before.allocate();
    // Slowloris: the beginning of a request, and no more.
    let idle: Vec<_> = (0..600)
        .map(|_| {
            let mut stream = connect(at);
            stream.write_all(&[0, 3, 0, 100, 0x21]).unwrap();
            stream
        })
        .collect();
    until("the oldest ones go", || ended(&relay, CutOff::HalfOpen) == 600 - 256);
    assert!(until_ended(&idle[0]).is_empty());
    all_arrive(&well, &socket, 100);
    // Another one is served meanwhile, and the one that was there stays.
    StreamClient::tcp(at).allocate();
    here_before.request(Method::REFRESH, &|_| ()).unwrap();
    until("the others have had their time", || ended(&relay, CutOff::Idle) >= 255);
    let gone = [CutOff::HalfOpen, CutOff::Idle].map(|why| ended(&relay, why)).iter().sum::<u64>();
    assert_eq!(gone, 600);
    here_before.request(Method::REFRESH, &|_| ()).unwrap();
    relay.stop(Duration::ZERO);
}

#[test]
fn what_is_no_turn_or_too_long_ends_the_connection() {
    let mut relay = start_tcp(&[]);
    let at = relay.local_tcp_addrs()[0];
    let long = [&[0, 1, 0x20, 0, 0x21, 0x12, 0xA4, 0x42][..], &[0; 5000]].concat();
    let cases: [(&[u8], CutOff); 7] = [
        (b"GET / HTTP/1.1\r\n\r\n", CutOff::TooLong),
        (&[0x80; 20], CutOff::NotTurn),
        (&[0x16, 3, 1, 2, 0, 1], CutOff::NotTurn),
        (&[0, 1, 0, 0, 0x22], CutOff::NotTurn),
        (&[0, 1, 0, 2], CutOff::NotTurn),
        (&[0x40, 0, 0xFF, 0xFF], CutOff::TooLong),
        (&long, CutOff::TooLong),
    ];
    for (bytes, why) in cases {
        let before = ended(&relay, why);
        let mut stream = connect(at);
        // It may be ended before all is written.
        let _ = stream.write_all(bytes);
        assert!(until_ended(&stream).is_empty());
        until("it is counted", || ended(&relay, why) == before + 1);
    }
    // A message that is none, inside a frame that is one, ends nothing.
    let mut client = StreamClient::tcp(at);
    client.send(&[0, 1, 0, 4, 0x21, 0x12, 0xA4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 99]);
    client.send(&[0x3F, 0xFF, 0, 0, 0x21, 0x12, 0xA4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    client.allocate();
    relay.stop(Duration::ZERO);
}
