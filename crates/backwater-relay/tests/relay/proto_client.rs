//! The client of the turn-client-proto crate: SHA-256 and dual allocations by somebody else's reading of the RFCs.
//!
//! It reads the security features in a nonce from the other end than erratum 6290 of RFC 8489 says, so it never finds that
//! the relay takes USERHASH; PASSWORD-ALGORITHMS it takes by its presence.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use backwater_stun::*;
use turn_client_proto::{
    api::{Transmit, TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet},
    prelude::*,
    stun::Instant as Clock,
    types::{self, TransportType::Udp, TurnCredentials, stun::message::IntegrityAlgorithm},
    udp::TurnClientUdp,
};

use crate::client::{PATIENCE, peer, peer6, start_dual};

/// The client, its socket and its clock, and what went over the wire.
struct ProtoClient {
    turn: TurnClientUdp,
    socket: UdpSocket,
    began: Instant,
    /// What its clock is ahead of the world's.
    ahead: Duration,
    sent: Vec<Vec<u8>>,
    received: Vec<Vec<u8>>,
    events: Vec<TurnEvent>,
    data: Vec<(SocketAddr, Vec<u8>)>,
    icmp: Vec<(SocketAddr, u8, u8)>,
}

impl ProtoClient {
    fn new(server: SocketAddr, integrity: IntegrityAlgorithm) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(server).unwrap();
        let mut config = TurnConfig::new(TurnCredentials::new("alice", "secret"));
        config.set_supported_integrity(integrity);
        config.add_address_family(types::AddressFamily::IPV6);
        Self {
            turn: TurnClientUdp::allocate(socket.local_addr().unwrap(), server, config),
            socket,
            began: Instant::now(),
            ahead: Duration::ZERO,
            sent: Vec::new(),
            received: Vec::new(),
            events: Vec::new(),
            data: Vec::new(),
            icmp: Vec::new(),
        }
    }

    fn now(&self) -> Clock {
        Clock::from_nanos((self.began.elapsed() + self.ahead).as_nanos() as i64)
    }

    /// Sends what the client wants to send, and gives it what comes, for as long as `until` says and nothing is wrong.
    fn drive(&mut self, limit: Duration, until: impl Fn(&Self) -> bool) -> bool {
        let limit = Instant::now() + limit;
        let mut buffer = [0; 2000];
        self.socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        while Instant::now() < limit {
            if let TurnPollRet::Closed = self.turn.poll(self.now()) {
                return until(self);
            }
            while let Some(transmit) = self.turn.poll_transmit(self.now()) {
                self.socket.send(&transmit.data).unwrap();
                self.sent.push(transmit.data.to_vec());
            }
            while let Some(event) = self.turn.poll_event() {
                self.events.push(event);
            }
            if until(self) {
                return true;
            }
            let Ok(len) = self.socket.recv(&mut buffer) else { continue };
            self.received.push(buffer[..len].to_vec());
            let transmit = Transmit::new(buffer[..len].to_vec(), Udp, self.turn.remote_addr(), self.turn.local_addr());
            match self.turn.recv(transmit, self.now()) {
                TurnRecvRet::Handled => {}
                TurnRecvRet::Ignored(transmit) => panic!("what the relay has sent was ignored: {:?}", transmit.data),
                TurnRecvRet::PeerData(data) => self.data.push((data.peer, data.data().to_vec())),
                TurnRecvRet::PeerIcmp { peer, icmp_type, icmp_code, .. } => {
                    self.icmp.push((peer, icmp_type, icmp_code));
                }
            }
        }
        until(self)
    }

    fn until(&mut self, what: &str, until: impl Fn(&Self) -> bool) {
        assert!(self.drive(PATIENCE, until), "{what}: not within {PATIENCE:?}, but {:?}", self.events);
    }

    fn send_to(&mut self, peer: SocketAddr, data: &[u8]) {
        let transmit = self.turn.send_to(Udp, peer, data, self.now()).unwrap().expect("a datagram").build();
        self.socket.send(&transmit.data).unwrap();
        self.sent.push(transmit.data);
    }

    /// The messages of this class, of either side.
    fn of(&self, class: Class) -> Vec<Message<'_>> {
        let all = self.sent.iter().chain(&self.received).filter_map(|bytes| Message::parse(bytes).ok());
        all.filter(|m| m.class() == class).collect()
    }

    fn answers(&self) -> usize {
        self.of(Class::SuccessResponse).len() + self.of(Class::ErrorResponse).len()
    }

    fn requests(&self, method: Method) -> usize {
        self.of(Class::Request).iter().filter(|m| m.method() == method).count()
    }
}

/// Data in indications and over channels, both ways and in both families; then half an hour on the client's clock, in which
/// it refreshes everything; then it leaves.
#[test]
fn turn_client_proto_has_a_dual_allocation_with_each_integrity() {
    for algorithm in [IntegrityAlgorithm::Sha1, IntegrityAlgorithm::Sha256] {
        let mut relay = start_dual(&["--threads", "2"]);
        let mut client = ProtoClient::new(relay.local_addrs()[0], algorithm);
        client.until("allocated", |c| c.turn.relayed_addresses().count() == 2);
        let relayed: Vec<_> = client.turn.relayed_addresses().map(|(_, addr)| addr).collect();
        let mut buffer = [0; 100];
        let peers = [peer(), peer6()];
        // This client counts channels apart for each family, and so asks for the number of its IPv4 channel again, which is
        // 400 (RFC 8656, section 12.2). The one that is bound at the same time gets the next number.
        let taken = "[::1]:9".parse().unwrap();
        for (socket, addr) in &peers {
            let relayed = *relayed.iter().find(|r| r.is_ipv4() == addr.is_ipv4()).unwrap();
            client.turn.create_permission(Udp, addr.ip(), client.now()).unwrap();
            client.until("permitted", |c| c.turn.have_permission(Udp, addr.ip()));
            for bound in [false, true] {
                if bound {
                    if addr.is_ipv6() {
                        client.turn.bind_channel(Udp, taken, client.now()).unwrap();
                    }
                    client.turn.bind_channel(Udp, *addr, client.now()).unwrap();
                    let created = |e: &TurnEvent| matches!(e, TurnEvent::ChannelCreated(_, peer) if peer == addr);
                    client.until("bound", |c| c.events.iter().any(created));
                }
                client.send_to(*addr, b"up");
                assert_eq!(socket.recv_from(&mut buffer).unwrap(), (2, relayed));
                let before = client.data.len();
                socket.send_to(b"down", relayed).unwrap();
                client.until("received", |c| c.data.len() > before);
                assert_eq!(client.data[before], (*addr, b"down".to_vec()));
                let framed = [client.sent.last().unwrap(), client.received.last().unwrap()];
                assert!(framed.iter().all(|bytes| Message::parse(bytes).is_err() == bound), "{framed:?}");
            }
        }
        for _ in 0..60 {
            client.ahead += Duration::from_secs(30);
            client.drive(Duration::from_millis(15), |_| false);
            client.until("answered", |c| c.of(Class::Request).len() == c.answers());
        }
        for (method, least) in [(Method::REFRESH, 1), (Method::CREATE_PERMISSION, 10), (Method::CHANNEL_BIND, 6)] {
            assert!(client.requests(method) >= least, "{method:?}: {}", client.requests(method));
        }
        let failed: Vec<_> = client.events.iter().filter(|e| format!("{e:?}").contains("Failed")).collect();
        assert!(matches!(failed[..], [TurnEvent::ChannelCreateFailed(_, peer)] if *peer == taken), "{failed:?}");
        client.send_to(peers[1].1, b"still there");
        assert_eq!(peers[1].0.recv(&mut buffer).unwrap(), 11);
        client.turn.delete(client.now()).unwrap();
        let closed = || relay.counters().iter().map(|c| c.closed.get()).sum::<u64>();
        client.until("deleted", |_| closed() == 1);
        says_who_it_is(&client, algorithm);
        relay.stop(Duration::ZERO);
    }
}

/// All requests but the first were protected as configured, and all answers but the challenge were alike.
fn says_who_it_is(client: &ProtoClient, algorithm: IntegrityAlgorithm) {
    let (key, integrity) = match algorithm {
        IntegrityAlgorithm::Sha1 => (LongTermKey::md5("alice", "backwater", "secret"), Integrity::Sha1),
        IntegrityAlgorithm::Sha256 => (LongTermKey::sha256("alice", "backwater", "secret"), Integrity::Sha256),
    };
    let key = HmacKey::from(&key);
    let (requests, answers) = (client.of(Class::Request), client.of(Class::SuccessResponse));
    assert!(answers.len() >= 18, "{}", answers.len());
    for message in requests[1..].iter().chain(&answers) {
        assert_eq!(message.verify(&key).unwrap().integrity(), integrity);
    }
    let errors = client.of(Class::ErrorResponse).into_iter().map(|m| m.get::<ErrorCode<'_>>().unwrap().unwrap());
    assert_eq!(errors.map(|e| e.code.number()).collect::<Vec<_>>(), [401, 400]);
}

/// It takes the ICMP attribute's type and code for eight bits each, where the figure (RFC 8656, section 18.13) has seven and
/// nine: what it says is the type doubled.
#[test]
#[cfg(target_os = "linux")]
fn turn_client_proto_is_told_of_a_port_that_is_closed() {
    let mut relay = start_dual(&["--threads", "1"]);
    let mut client = ProtoClient::new(relay.local_addrs()[0], IntegrityAlgorithm::Sha256);
    client.until("allocated", |c| c.turn.relayed_addresses().count() == 2);
    for ((socket, addr), unreachable) in [(peer(), (2 * 3, 3)), (peer6(), (2, 4))] {
        drop(socket);
        client.turn.create_permission(Udp, addr.ip(), client.now()).unwrap();
        client.until("permitted", |c| c.turn.have_permission(Udp, addr.ip()));
        let is_told = |c: &ProtoClient| c.icmp.contains(&(addr, unreachable.0, unreachable.1));
        // The kernel may have no ICMP message left this second.
        for _ in 0..100 {
            client.send_to(addr, b"anybody?");
            if client.drive(Duration::from_millis(100), is_told) {
                break;
            }
        }
        client.until("told", is_told);
    }
    relay.stop(Duration::ZERO);
}
