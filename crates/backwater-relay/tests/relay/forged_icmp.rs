//! ICMP errors forged by somebody off the path: the relay goes on.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use crate::{
    client::{Client, PATIENCE, channel_data, peer},
    icmp::{Forged, Forger},
    program::Program,
    support::in_namespace,
};

/// More than the receive buffer of a listener holds.
const BURST: usize = 2000;

/// Every code of "destination unreachable", then time exceeded and parameter problem.
const KINDS: [(u8, u8); 18] = [
    (3, 0),
    (3, 1),
    (3, 2),
    (3, 3),
    (3, 4),
    (3, 5),
    (3, 6),
    (3, 7),
    (3, 8),
    (3, 9),
    (3, 10),
    (3, 11),
    (3, 12),
    (3, 13),
    (3, 14),
    (3, 15),
    (11, 0),
    (12, 0),
];

fn forge(about: SocketAddr, (icmp_type, code): (u8, u8)) {
    let to = SocketAddr::new(about.ip(), 9);
    let forger = Forger::new(false);
    for _ in 0..BURST {
        forger.send(&Forged { from: about, to, payload: &[0; 40], icmp_type, code, info: 1300 });
    }
}

/// The next datagram that is wanted, if one comes in time.
fn next(socket: &UdpSocket, is_wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let mut buffer = [0; 1500];
    loop {
        let len = socket.recv(&mut buffer).ok()?;
        if is_wanted(&buffer[..len]) {
            return Some(buffer[..len].to_vec());
        }
    }
}

fn is_channel_data(datagram: &[u8]) -> bool {
    datagram[0] & 0xC0 == 0x40
}

/// Anyone can send these, to the listener's address and to a relayed one, without a spoofed source.
#[test]
fn forged_icmp_errors_of_every_kind_do_not_silence_the_relay() {
    in_namespace("forged_icmp::forged_icmp_errors_of_every_kind_do_not_silence_the_relay", || {
        let args = ["--listen", "127.0.0.1:0", "--user", "alice:secret", "--drain", "0", "--allow-peer", "127.0.0.0/8"];
        let mut program = Program::start(&[&args[..], &["--threads", "1"]].concat(), 0);
        let listener: SocketAddr = program.line("listening for TURN")["listener"].as_str().unwrap().parse().unwrap();
        let mut client = Client::new(listener, "alice", "secret", "backwater");
        let relayed = client.allocate();
        let (peer, peer_addr) = peer();
        client.bind_channel(0x4000, peer_addr).unwrap();
        for kind in KINDS {
            for about in [listener, relayed] {
                forge(about, kind);
            }
            // Receive buffers are full of errors, and the client's of what it is told of them (Data indications, RFC 8656,
            // section 11.5): datagrams get lost until they have been read.
            let arrives = || {
                client.socket.send(&channel_data(0x4000, b"up?")).unwrap();
                let there = next(&peer, |_| true).is_some();
                peer.send_to(b"up!", relayed).unwrap();
                there && next(&client.socket, is_channel_data).is_some()
            };
            let wait_for = |time| {
                for socket in [&peer, &client.socket] {
                    socket.set_read_timeout(Some(time)).unwrap();
                }
            };
            wait_for(Duration::from_millis(100));
            assert!((0..100).any(|_| arrives()), "{kind:?}: the relay does not answer any more");
            while next(&client.socket, |_| true).is_some() {}
            wait_for(PATIENCE);
            client.bind_channel(0x4000, peer_addr).unwrap();
            for number in 0..20u8 {
                let payload = [number; 8];
                client.socket.send(&channel_data(0x4000, &payload)).unwrap();
                assert_eq!(next(&peer, |d| d != b"up?").unwrap(), payload, "{kind:?}");
                peer.send_to(&payload, relayed).unwrap();
                let answer = next(&client.socket, is_channel_data);
                assert_eq!(answer.unwrap(), channel_data(0x4000, &payload), "{kind:?}");
            }
        }
    });
}
