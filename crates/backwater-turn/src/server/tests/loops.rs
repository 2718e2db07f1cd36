//! No datagram goes round in the relay.

use super::*;

/// The addresses that reach the relay of this test.
const OWN: [&str; 4] = ["5.5.5.5", "9.9.9.9", "6.6.6.6", "127.0.0.1"];
const LISTENERS: [&str; 2] = ["0.0.0.0:3478", "5.5.5.5:5349"];

/// An attacker with an account, who sends requests, data and nested requests to every address of the relay.
struct Attacker {
    bench: Bench,
    /// The relayed addresses that there are, and their clients.
    relayed: HashMap<SocketAddr, AllocationId>,
    /// Clients of allocations.
    clients: Vec<SocketAddr>,
    ports: u16,
    state: u64,
    passes: usize,
}

impl Attacker {
    fn new() -> Self {
        let mut bench = Bench::with_limits(0, Limits::default(), Limits::default());
        let rules = &mut bench.server.config.peers;
        rules.allow = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()).into();
        rules.listeners = LISTENERS.map(addr).into();
        rules.relayed = ["5.5.5.5", "9.9.9.9"].map(|ip| ip.parse().unwrap()).into();
        rules.is_local = |ip| OWN.contains(&&*ip.to_string());
        Self { bench, relayed: HashMap::new(), clients: vec![], ports: 50_000, state: 1, passes: 0 }
    }

    fn below(&mut self, n: usize) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % n
    }

    /// Some address of the relay's: a listener by any of its names, a relayed one, or one that nobody has.
    fn target(&mut self) -> SocketAddr {
        let ip = OWN[self.below(OWN.len())];
        let port = [3478, 5349, 50_001, 50_002, 50_003, 7][self.below(6)];
        addr(&format!("{ip}:{port}"))
    }

    /// Returns a request that is signed for this source, or data in some framing that may contain one.
    fn payload(&mut self, from: SocketAddr, depth: usize) -> Vec<u8> {
        let target = self.target();
        let client = from.to_string();
        match self.below(if depth == 0 { 3 } else { 6 }) {
            0 => self.bench.signed(&client, "alice", Method::ALLOCATE, &udp),
            1 => self.bench.signed(&client, "alice", Method::CREATE_PERMISSION, &|w| put(w, &XorPeerAddress(target))),
            2 => {
                let number = ChannelNumber::new(0x4000 + self.below(4) as u16).unwrap();
                self.bench.signed(&client, "alice", Method::CHANNEL_BIND, &|w| {
                    w.attribute(&number).unwrap().attribute(&XorPeerAddress(target)).unwrap();
                })
            }
            what => {
                // What comes out at the target should be from one of the relayed addresses.
                let source = self.target();
                let inner = self.payload(source, depth - 1);
                if what == 3 {
                    let number = ChannelNumber::new(0x4000 + self.below(4) as u16).unwrap();
                    return [&ChannelData::header(number, inner.len() as u16)[..], &inner].concat();
                }
                plain(Class::Indication, Method::SEND, &|w| {
                    w.attribute(&XorPeerAddress(target)).unwrap().attribute(&Data(&inner)).unwrap();
                })
            }
        }
    }

    /// A datagram comes to a listener, and goes on as often as the relay lets it. Each time through a relayed socket counts.
    fn arrives(&mut self, from: SocketAddr, bytes: &[u8], passes: usize) {
        self.passes = self.passes.max(passes);
        assert!(passes <= 2, "a datagram has passed the relay {passes} times");
        let mut reply = [0; MAX_REPLY];
        match self.bench.server.handle_client(self.bench.now, super::from(&from.to_string()), bytes, &mut reply) {
            Action::Bind(bind) => {
                self.ports += 1;
                let socket = SocketAddr::new([5, 5, 5, 5].into(), self.ports);
                let bound = relayed(&socket.to_string(), None);
                self.bench.server.bound(self.bench.now.instant, bind.id, bound, &mut reply);
                self.bench.server.config.relayed_ports.insert(RelayedAddr(socket));
                self.relayed.insert(socket, bind.id);
                self.clients.push(from);
            }
            Action::Forward { via, to, range, .. } => self.leaves(via, to.0, bytes[range].to_vec(), passes + 1),
            Action::Reply(_)
            | Action::Unauthenticated(_)
            | Action::Unbind(..)
            | Action::Handover(_)
            | Action::Drop(_)
            | Action::Forbid(..)
            | Action::OverQuota(..) => {}
        }
    }

    /// A datagram leaves a relayed socket. A NAT on its way may give it the relay's external address as its source.
    fn leaves(&mut self, via: AllocationId, to: SocketAddr, bytes: Vec<u8>, passes: usize) {
        assert!(passes <= 2, "a datagram has passed the relay {passes} times");
        let (&socket, _) = self.relayed.iter().find(|(_, id)| **id == via).unwrap();
        let outside = SocketAddr::new([9, 9, 9, 9].into(), socket.port());
        let source = if self.below(2) == 0 { socket } else { outside };
        assert!(OWN.contains(&&*to.ip().to_string()));
        let inside = SocketAddr::new([5, 5, 5, 5].into(), to.port());
        if to.port() == 3478 || to.port() == 5349 {
            self.arrives(source, &bytes, passes);
        } else if let Some(&id) = self.relayed.get(&inside)
            && let Ok((client, _)) =
                self.bench.server.handle_peer(self.bench.now.instant, id, PeerAddr(source), bytes.len())
        {
            // The second time, down to a client. A client that is one of the relay's own addresses would send it on.
            self.passes = self.passes.max(passes + 1);
            assert!(!OWN.contains(&&*client.client.0.ip().to_string()), "{client:?} is no client");
        }
    }
}

/// Ten thousand requests and nested requests by somebody with an account, to every address that the relay has: each datagram
/// passes at most twice, up to a relayed address and from another one down to its client.
#[test]
fn no_datagram_passes_the_relay_more_than_twice() {
    let mut a = Attacker::new();
    for i in 0..10_000 {
        let client = addr(&format!("192.0.2.1:{}", 1000 + i % 5));
        let bytes = a.payload(client, 3);
        a.arrives(client, &bytes, 0);
    }
    assert_eq!((a.relayed.len(), a.passes), (5, 2), "no nested allocation, and the attack has reached the last stage");
}

/// A listener that no rule knows of, such as one behind somebody's forwarder, is no way around: the source tells.
#[test]
fn a_request_from_a_relayed_address_is_dropped() {
    let mut a = Attacker::new();
    let request = a.bench.signed(CLIENT, "alice", Method::ALLOCATE, &udp);
    a.arrives(addr(CLIENT), &request, 0);
    let b = &mut a.bench;
    for method in [Method::BINDING, Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND]
    {
        for client in ["5.5.5.5:50001", "9.9.9.9:50001"] {
            let request = b.signed(client, "alice", method, &udp);
            assert_eq!(b.bytes(client, &request).0, Action::Drop(DropReason::Loop), "{method:?} from {client}");
        }
    }
    // The same port elsewhere, and another port there, are anybody's.
    for client in ["6.6.6.6:50001", "5.5.5.5:50002"] {
        let request = b.signed(client, "alice", Method::ALLOCATE, &udp);
        assert!(matches!(b.bytes(client, &request).0, Action::Bind(_)), "{client}");
    }
    b.server.config.relayed_ports.remove(RelayedAddr(addr("5.5.5.5:50001")));
    let request = b.signed("5.5.5.5:50001", "alice", Method::ALLOCATE, &udp);
    assert!(matches!(b.bytes("5.5.5.5:50001", &request).0, Action::Bind(_)));
}

/// A listener's answers, to a request with a forged source, are not data for a client.
#[test]
fn datagram_from_a_listener_is_dropped() {
    let mut a = Attacker::new();
    let request = a.bench.signed(CLIENT, "alice", Method::ALLOCATE, &udp);
    a.arrives(addr(CLIENT), &request, 0);
    let id = a.relayed[&addr("5.5.5.5:50001")];
    let b = &mut a.bench;
    for ip in OWN {
        b.permit(CLIENT, &format!("{ip}:1"));
        let handled =
            |b: &Bench, port: u16| b.server.handle_peer(b.now.instant, id, PeerAddr(addr(&format!("{ip}:{port}"))), 1);
        for port in [3478, 5349] {
            assert_eq!(handled(b, port), Err(DropReason::Peer), "{ip}");
        }
        assert!(handled(b, 7).is_ok(), "{ip}");
    }
    // An address that has become this host's is known for one with the next permission.
    b.server.config.peers.is_local = |_| true;
    b.pass(301);
    b.permit(CLIENT, "8.8.8.8:1");
    assert_eq!(b.server.handle_peer(b.now.instant, id, PeerAddr(addr("8.8.8.8:3478")), 1), Err(DropReason::Peer));
}
