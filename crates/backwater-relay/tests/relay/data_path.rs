//! The way of a datagram: what it costs, and where it may come and go.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use backwater_relay::{Arguments, Config, Relay};
use backwater_stun::*;

use crate::client::Client;

/// Counts the allocations of all threads whose name begins with `relay-`.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

std::thread_local! {
    static IS_RELAY: std::cell::Cell<Option<bool>> = const { std::cell::Cell::new(None) };
}

/// Asked at the first allocation of a thread that happens after its name is set.
fn is_relay() -> bool {
    IS_RELAY.with(|known| {
        known.get().unwrap_or_else(|| {
            known.set(Some(false));
            let relay = std::thread::current().name().is_some_and(|name| name.starts_with("relay-"));
            known.set(Some(relay));
            relay
        })
    })
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNT.load(Relaxed) && is_relay() {
            ALLOCATIONS.fetch_add(1, Relaxed);
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

static COUNT: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

pub fn start(args: &[&str]) -> Relay {
    let base = ["relay", "--listen", "127.0.0.1:0", "--user", "alice:secret", "--allow-peer", "127.0.0.0/8"];
    let args = base.iter().chain(args).copied();
    let matches = Arguments::command().try_get_matches_from(args).unwrap();
    Relay::start(&Config::new(&Arguments::read(&matches, |_| None).unwrap()).unwrap()).unwrap()
}

pub fn client(relay: &Relay) -> Client {
    Client::new(relay.local_addrs()[0], "alice", "secret", "backwater")
}

fn peer() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

fn channel_data(number: u16, payload: &[u8]) -> Vec<u8> {
    let header = ChannelData::header(ChannelNumber::new(number).unwrap(), payload.len() as u16);
    [&header[..], payload].concat()
}

#[test]
fn channel_data_is_forwarded_without_an_allocation() {
    let mut relay = start(&["--threads", "1"]);
    let mut client = client(&relay);
    let relayed = client.allocate();
    let (peer, peer_addr) = peer();
    client.bind_channel(0x4000, peer_addr).unwrap();

    let message = channel_data(0x4000, &[7; 1000]);
    let mut buffer = [0; 2000];
    let mut round = |count| {
        for _ in 0..count {
            client.socket.send(&message).unwrap();
            assert_eq!(peer.recv_from(&mut buffer).unwrap(), (1000, relayed));
            assert_eq!(buffer[..1000], [7; 1000]);
            peer.send_to(&buffer[..1000], relayed).unwrap();
            assert_eq!(client.socket.recv(&mut buffer).unwrap(), 1004);
            assert_eq!(buffer[..1004], message);
        }
    };
    round(100);
    COUNT.store(true, Relaxed);
    round(5000);
    COUNT.store(false, Relaxed);
    assert_eq!(ALLOCATIONS.load(Relaxed), 0, "for 10,000 datagrams");

    // The meter works: an allocation on the relay's thread is seen.
    COUNT.store(true, Relaxed);
    let mut other = Client::new(relay.local_addrs()[0], "alice", "secret", "backwater");
    other.allocate();
    COUNT.store(false, Relaxed);
    assert!(ALLOCATIONS.load(Relaxed) > 0);
    relay.stop(Duration::ZERO);
}

#[test]
fn every_framing_goes_both_ways() {
    let mut relay = start(&[]);
    let mut client = client(&relay);
    let relayed = client.allocate();
    let (peer, peer_addr) = peer();
    let mut buffer = [0; 2000];

    peer.send_to(b"not yet permitted", relayed).unwrap();
    client.permit(peer_addr).unwrap();
    for len in [0, 1, 2, 3, 4, 5, 1200] {
        let payload = vec![len as u8; len];
        let mut out = [0; 2000];
        let mut w = Writer::new(&mut out, Class::Indication, Method::SEND, TransactionId([1; 12])).unwrap();
        w.attribute(&XorPeerAddress(peer_addr)).unwrap().attribute(&Data(&payload)).unwrap();
        client.socket.send(w.finish()).unwrap();
        assert_eq!(peer.recv_from(&mut buffer).unwrap(), (len, relayed));
        assert_eq!(buffer[..len], payload);

        peer.send_to(&payload, relayed).unwrap();
        let received = client.socket.recv(&mut buffer).unwrap();
        let message = Message::parse(&buffer[..received]).unwrap();
        assert_eq!(message.get::<XorPeerAddress>().unwrap().unwrap().0, peer_addr);
        assert_eq!(message.get::<Data<'_>>().unwrap().unwrap().0, payload);
    }
    client.bind_channel(0x4001, peer_addr).unwrap();
    for len in [0, 1, 2, 3, 4, 1200] {
        let payload = vec![len as u8; len];
        let mut message = channel_data(0x4001, &payload);
        message.extend([0; 3].iter().take(len.wrapping_neg() & 3));
        client.socket.send(&message).unwrap();
        assert_eq!(peer.recv_from(&mut buffer).unwrap(), (len, relayed), "padding is not data");
        peer.send_to(&payload, relayed).unwrap();
        let received = client.socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..received], channel_data(0x4001, &payload));
    }
    let dropped = |reason| relay.counters().iter().map(|c| c.dropped(reason)).sum::<u64>();
    assert_eq!(dropped(backwater_turn::server::DropReason::NoPermission), 1);
    relay.stop(Duration::ZERO);
}

/// Trains whose datagrams differ in length, channel and owner come out as what went in, in order within a flow.
#[test]
fn a_mixed_burst_keeps_every_flow_in_order() {
    let mut relay = start(&["--threads", "1"]);
    let (peer_a, addr_a) = peer();
    let (peer_b, addr_b) = peer();
    let mut one = client(&relay);
    one.allocate();
    one.bind_channel(0x4000, addr_a).unwrap();
    one.bind_channel(0x4001, addr_b).unwrap();
    let lengths = [100, 100, 40, 100, 0, 100, 100, 1, 1, 300, 300];
    for i in 0..220u8 {
        let payload = vec![i; lengths[i as usize % lengths.len()]];
        one.socket.send(&channel_data(0x4000 + u16::from(i % 2), &payload)).unwrap();
    }
    let mut buffer = [0; 2000];
    for i in 0..220u8 {
        let peer = if i % 2 == 0 { &peer_a } else { &peer_b };
        let len = peer.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..len], vec![i; lengths[i as usize % lengths.len()]], "datagram {i}");
    }
    relay.stop(Duration::ZERO);
}

/// A reservation is claimed from another 5-tuple, which the kernel may give to another thread.
#[test]
fn a_reservation_is_good_on_every_thread() {
    let mut relay = start(&["--threads", "4"]);
    for _ in 0..20 {
        let reserve: crate::client::Fill<'_> = &|w| {
            w.attribute(&EvenPort { reserve_next: true }).unwrap();
        };
        let reply = client(&relay).try_allocate(reserve).unwrap();
        let message = Message::parse(&reply).unwrap();
        let port = message.get::<XorRelayedAddress>().unwrap().unwrap().0.port();
        let token = message.get::<ReservationToken>().unwrap().unwrap();
        let reply = client(&relay).try_allocate(&|w| {
            w.attribute(&token).unwrap();
        });
        let reply = reply.unwrap();
        let next = Message::parse(&reply).unwrap().get::<XorRelayedAddress>().unwrap().unwrap().0.port();
        assert_eq!((port % 2, next), (0, port + 1));
        let again = client(&relay).try_allocate(&|w| {
            w.attribute(&token).unwrap();
        });
        assert_eq!(again.unwrap_err(), 508);
    }
    let busy = relay.counters().iter().filter(|c| c.allocations.get() > 0).count();
    assert!(busy >= 2, "the kernel spreads clients over the threads");
    relay.stop(Duration::ZERO);
}

#[test]
fn a_wildcard_listener_answers_from_where_it_was_asked() {
    let args = ["relay", "--listen", "0.0.0.0:0", "--relay-address", "127.0.0.1", "--user", "alice:secret"];
    let matches = Arguments::command().try_get_matches_from(args).unwrap();
    let mut relay = Relay::start(&Config::new(&Arguments::read(&matches, |_| None).unwrap()).unwrap()).unwrap();
    let port = relay.local_addrs()[0].port();
    for host in [[127, 0, 0, 1], [127, 0, 0, 9]] {
        // Connected: an answer from elsewhere would not arrive.
        let mut client = Client::new((host, port).into(), "alice", "secret", "backwater");
        assert_eq!(client.allocate().ip(), std::net::IpAddr::from([127, 0, 0, 1]));
    }
    relay.stop(Duration::ZERO);
}

#[test]
fn a_peer_that_is_not_allowed_is_403() {
    let mut relay = start(&["--deny-peer", "127.0.0.7"]);
    let listener = relay.local_addrs()[0];
    let mut client = client(&relay);
    client.allocate();
    for peer in ["127.0.0.7:9", "169.254.1.1:9", "0.0.0.0:9", "224.0.0.1:9", "255.255.255.255:9"] {
        assert_eq!(client.permit(peer.parse().unwrap()).unwrap_err(), 403, "{peer}");
        assert_eq!(client.bind_channel(0x4000, peer.parse().unwrap()).unwrap_err(), 403, "{peer}");
    }
    assert_eq!(client.bind_channel(0x4000, listener).unwrap_err(), 403, "the relay itself");
    assert_eq!(client.permit("[::ffff:127.0.0.1]:9".parse().unwrap()).unwrap_err(), 443);
    assert_eq!(relay.counters().iter().map(|c| c.forbidden.get()).sum::<u64>(), 11);
    relay.stop(Duration::ZERO);
}
