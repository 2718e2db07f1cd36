//! A client that changes its address (RFC 8016), on a relay with several threads.

use std::{net::SocketAddr, time::Duration};

use backwater_relay::{Counter, Counters, Relay};
use backwater_stun::*;

use crate::client::{Client, channel_data, client, peer, peer6, start, start_dual};

fn total(relay: &Relay, field: fn(&Counters) -> &Counter) -> u64 {
    relay.counters().iter().map(|c| field(c).get()).sum()
}

fn ticket(reply: &[u8]) -> Vec<u8> {
    Message::parse(reply).unwrap().get::<MobilityTicket<'_>>().unwrap().expect("a ticket").0.to_vec()
}

fn refresh(client: &mut Client, ticket: &[u8], seconds: u32) -> Result<Vec<u8>, u16> {
    client.request(Method::REFRESH, &|w| {
        w.attribute(&MobilityTicket(ticket)).unwrap().attribute(&Lifetime(seconds)).unwrap();
    })
}

/// The kernel spreads 5-tuples over the threads: of forty moves, about thirty go to another one.
#[test]
fn a_moved_client_keeps_its_allocation_across_threads() {
    let mut relay = start_dual(&["--threads", "4"]);
    let mut client = client(&relay);
    let reply = client.try_allocate(&|w| {
        w.attribute(&MobilityTicket(&[])).unwrap().attribute(&AdditionalAddressFamily(AddressFamily::Ipv6)).unwrap();
    });
    let reply = reply.unwrap();
    let relayed: Vec<SocketAddr> =
        Message::parse(&reply).unwrap().all::<XorRelayedAddress>().map(|a| a.unwrap().0).collect();
    let peers = [(peer(), 0x4001, relayed[0]), (peer6(), 0x4002, relayed[1])];
    for ((_, addr), channel, _) in &peers {
        client.bind_channel(*channel, *addr).unwrap();
    }
    let mut tickets = vec![ticket(&reply)];
    let mut buffer = [0; 100];
    // The sockets of the past stay, so that none of their ports comes again.
    let mut past = Vec::new();
    for step in 0..40u8 {
        past.push(client.socket.try_clone().unwrap());
        client.move_elsewhere();
        let reply = refresh(&mut client, tickets.last().unwrap(), 600).unwrap();
        tickets.push(ticket(&reply));
        for ((peer, _), channel, relayed) in &peers {
            client.socket.send(&channel_data(*channel, &[step; 9])).unwrap();
            assert_eq!(peer.recv_from(&mut buffer).unwrap(), (9, *relayed));
            peer.send_to(&[step; 7], *relayed).unwrap();
            assert_eq!(client.socket.recv(&mut buffer).unwrap(), 11);
            assert_eq!(buffer[..11], channel_data(*channel, &[step; 7]));
        }
    }
    let moved = total(&relay, |c| &c.moved);
    assert!((10..=40).contains(&moved), "{moved} of 40 moves went to another thread");
    println!("{moved} of 40 moves went to another thread");
    // What was used before is no good, and there is one allocation still.
    client.move_elsewhere();
    assert_eq!(refresh(&mut client, &tickets[39], 600).unwrap_err(), 437);
    assert_eq!((total(&relay, |c| &c.allocations), total(&relay, |c| &c.closed)), (1, 0));
    // Deleted from yet another address: its ports are free.
    refresh(&mut client, &tickets[40], 0).unwrap();
    assert_eq!(total(&relay, |c| &c.closed), 1);
    for addr in relayed {
        std::net::UdpSocket::bind(addr).unwrap();
    }
    relay.stop(Duration::ZERO);
}

/// From IPv4 to IPv6, which is another listener: what peers send follows.
#[test]
fn a_client_may_change_its_address_family() {
    let mut relay = start_dual(&["--threads", "2"]);
    let mut v4 = client(&relay);
    let reply = v4.try_allocate(&|w| {
        w.attribute(&MobilityTicket(&[])).unwrap();
    });
    let reply = reply.unwrap();
    let relayed = Message::parse(&reply).unwrap().get::<XorRelayedAddress>().unwrap().unwrap().0;
    let (peer, peer_addr) = peer();
    v4.bind_channel(0x4001, peer_addr).unwrap();
    let mut v6 = Client::new(relay.local_addrs()[1], "alice", "secret", "backwater");
    refresh(&mut v6, &ticket(&reply), 600).unwrap();
    peer.send_to(b"x", relayed).unwrap();
    let mut buffer = [0; 10];
    assert_eq!(v6.socket.recv(&mut buffer).unwrap(), 5);
    relay.stop(Duration::ZERO);
}

/// Tickets of a flood that name every thread and nothing: each is answered, and nobody else is held up.
#[test]
fn forged_and_spent_tickets_change_nothing() {
    let mut relay = start(&["--threads", "2"]);
    let mut owner = client(&relay);
    let reply = owner.try_allocate(&|w| {
        w.attribute(&MobilityTicket(&[])).unwrap();
    });
    let first = ticket(&reply.unwrap());
    owner.move_elsewhere();
    refresh(&mut owner, &first, 600).unwrap();
    let mut other = client(&relay);
    for bit in 0..8 * first.len() {
        let mut forged = first.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(refresh(&mut other, &forged, 600).unwrap_err(), 400);
        assert_eq!(refresh(&mut other, &first, 600).unwrap_err(), 437);
    }
    owner.request(Method::REFRESH, &|_| ()).unwrap();
    relay.stop(Duration::ZERO);
}
