//! Quotas and limits, over all threads of a relay.

use std::{
    cell::Cell,
    net::UdpSocket,
    time::{Duration, Instant},
};

use backwater_relay::Relay;
use backwater_stun::*;
use backwater_turn::{QuotaReason, server::DropReason};

use crate::{
    client::{Client, PATIENCE, channel_data, client, peer, start},
    support::{in_namespace, ip},
};

fn dropped(relay: &Relay, reason: DropReason) -> u64 {
    relay.counters().iter().map(|c| c.dropped(reason)).sum()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_users_quota_counts_on_all_threads() {
    let mut relay =
        start(&["--threads", "4", "--user", "bob:secret", "--max-allocations-per-user", "5", "--max-allocations", "8"]);
    let mut clients: Vec<_> = (0..12).map(|_| client(&relay)).collect();
    let results: Vec<_> = clients.iter_mut().map(|c| c.try_allocate(&|_| ()).map(drop)).collect();
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 5);
    assert_eq!(results.iter().filter(|r| **r == Err(486)).count(), 7);
    let busy = relay.counters().iter().filter(|c| c.allocations.get() > 0).count();
    assert!(busy >= 2, "the kernel spreads clients over the threads");
    let addr = relay.local_addrs()[0];
    let mut bobs: Vec<_> = (0..4).map(|_| Client::new(addr, "bob", "secret", "backwater")).collect();
    let results: Vec<_> = bobs.iter_mut().map(|c| c.try_allocate(&|_| ()).map(drop)).collect();
    assert_eq!(results, [Ok(()), Ok(()), Ok(()), Err(508)]);
    let refused = |reason| relay.counters().iter().map(|c| c.over_quota(reason)).sum::<u64>();
    assert_eq!(QuotaReason::ALL.iter().map(|&reason| refused(reason)).collect::<Vec<_>>(), [7, 1, 0, 0]);
    // A place that is given back can be had again.
    let delete: crate::client::Fill<'_> = &|w| {
        w.attribute(&Lifetime(0)).unwrap();
    };
    clients[0].request(Method::REFRESH, delete).unwrap();
    bobs[3].try_allocate(&|_| ()).unwrap();
    relay.stop(Duration::ZERO);
}

#[test]
fn blanks_belong_to_a_password() {
    let mut relay = start(&["--user", "bob: a b "]);
    let addr = relay.local_addrs()[0];
    Client::new(addr, "bob", " a b ", "backwater").allocate();
    assert_eq!(Client::new(addr, "bob", " a b", "backwater").try_allocate(&|_| ()).unwrap_err(), 401);
    relay.stop(Duration::ZERO);
}

#[test]
fn what_is_over_a_users_rate_is_dropped_and_counted() {
    let mut relay = start(&["--threads", "2", "--max-bytes-per-second-per-user", "100000"]);
    let (peer, peer_addr) = peer();
    let mut clients = [client(&relay), client(&relay)];
    for client in &mut clients {
        client.allocate();
        client.bind_channel(0x4000, peer_addr).unwrap();
    }
    let started = Instant::now();
    let (mut forwarded, mut buffer) = (0, [0; 2000]);
    for i in 0..400 {
        clients[i % 2].socket.send(&channel_data(0x4000, &[1; 1000])).unwrap();
        // Each is forwarded or dropped before the next is sent: no buffer on the way overflows.
        until("the datagram is forwarded or dropped", || {
            let to_peers: u64 = relay.counters().iter().map(|c| c.to_peers.get()).sum();
            to_peers + dropped(&relay, DropReason::Bandwidth) == i as u64 + 1
        });
        if i as u64 - forwarded == dropped(&relay, DropReason::Bandwidth) {
            peer.recv(&mut buffer).unwrap();
            forwarded += 1;
        }
    }
    // A second's worth at once, and then as time passes.
    let most = 100 + started.elapsed().as_millis() as u64 / 10 + 1;
    assert!((100..=most).contains(&forwarded), "{forwarded} of at most {most}");
    assert_eq!(dropped(&relay, DropReason::Bandwidth), 400 - forwarded);
    relay.stop(Duration::ZERO);
}

/// Behind one address, as in an office that comes back after an outage.
#[test]
fn eight_hundred_clients_of_one_address_join_at_once() {
    in_namespace("limits::eight_hundred_clients_of_one_address_join_at_once", || {
        ip("addr add 192.0.2.1/32 dev lo");
        let mut relay = start(&["--listen", "192.0.2.1:0"]);
        let addr = relay.local_addrs()[1];
        let mut clients: Vec<_> = (0..800)
            .map(|_| {
                let mut client = Client::new(addr, "alice", "secret", "backwater");
                client.socket = UdpSocket::bind("192.0.2.1:0").unwrap();
                client.socket.connect(addr).unwrap();
                client.socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                client
            })
            .collect();
        let joined: Vec<_> = clients.iter_mut().map(Client::allocate).collect();
        assert_eq!(joined.len(), 800);
        assert_eq!(dropped(&relay, DropReason::ReplyLimit), 0);
        relay.stop(Duration::ZERO);
    });
}

/// A flood of requests from one address is answered at its rate and leaves nothing; others do not notice.
#[test]
fn a_flood_of_strangers_is_answered_at_its_rate() {
    in_namespace("limits::a_flood_of_strangers_is_answered_at_its_rate", || {
        for host in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            ip(&format!("addr add {host}/32 dev lo"));
        }
        let args = ["--threads", "2", "--listen", "192.0.2.1:0", "--reply-limit", "50"];
        let mut relay = start(&args);
        let addr = relay.local_addrs()[1];
        let replies = || relay.counters().iter().map(|c| c.replies.get()).sum::<u64>();
        let request = |method| {
            let mut buffer = [0; 100];
            let w = Writer::new(&mut buffer, Class::Request, method, TransactionId([1; 12])).unwrap();
            w.finish().to_vec()
        };
        let flood: Vec<_> = (0..20).map(|_| UdpSocket::bind("192.0.2.2:0").unwrap()).collect();
        let started = Instant::now();
        for i in 0..5000 {
            let method = if i % 2 == 0 { Method::BINDING } else { Method::ALLOCATE };
            flood[i % flood.len()].send_to(&request(method), addr).unwrap();
            // Not to overrun the receive buffer: each is to be looked at.
            if i % 50 == 49 {
                until("the requests are answered or dropped", || {
                    replies() + dropped(&relay, DropReason::ReplyLimit) == i as u64 + 1
                });
            }
        }
        let most = 50 + (50.0 * started.elapsed().as_secs_f64()) as u64 + 1;
        let answers = Cell::new(0);
        flood.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        until("the answers arrive", || {
            let arrived = |socket: &UdpSocket| std::iter::from_fn(|| socket.recv(&mut [0; 100]).ok()).count() as u64;
            answers.set(answers.get() + flood.iter().map(arrived).sum::<u64>());
            answers.get() == replies()
        });
        assert!((50..=most).contains(&replies()), "{} of at most {most}", replies());
        assert_eq!(dropped(&relay, DropReason::ReplyLimit), 5000 - replies());
        let mut other = Client::new(addr, "alice", "secret", "backwater");
        other.socket = UdpSocket::bind("192.0.2.3:0").unwrap();
        other.socket.connect(addr).unwrap();
        other.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        other.allocate();
        // Loopback is not limited.
        for _ in 0..200 {
            client(&relay).exchange(Method::BINDING, &|_| ());
        }
        relay.stop(Duration::ZERO);
    });
}
