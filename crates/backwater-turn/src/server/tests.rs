use std::net::SocketAddr;

use backwater_stun::*;

use super::*;
use crate::{AuthFailureReason, ClientAddr, Limits, Protocol, QuotaReason, RelayedAddr};

mod authentication;
mod data;
mod dual_stack;
mod late;
mod limits;
mod loops;
mod mobility;
mod reconfigure;
mod secrets;
mod sessions;
mod streams;

const REALM: &str = "example.org";
const CLIENT: &str = "192.0.2.1:40000";
const RELAYED: &str = "198.51.100.1:50000";
const V4: Families = Families { v4: true, v6: false };
const V6: Families = Families { v4: false, v6: true };
const BOTH: Families = Families { v4: true, v6: true };
const PEER: &str = "203.0.113.7:7000";

/// A server and the time.
struct Bench {
    server: Server,
    now: Now,
    nonce: Vec<u8>,
    next_id: u64,
}

type Fill<'f> = &'f dyn Fn(&mut Writer<'_>);

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn from(client: &str) -> FiveTuple {
    FiveTuple::udp(ClientAddr(addr(client)), addr("192.0.2.250:3478"))
}

fn key(user: &str) -> HmacKey {
    HmacKey::from(&LongTermKey::md5(user, REALM, "secret"))
}

fn put<'a>(w: &mut Writer<'_>, attribute: &impl Attribute<'a>) {
    w.attribute(attribute).unwrap();
}

fn udp(w: &mut Writer<'_>) {
    put(w, &RequestedTransport::UDP);
}

impl Bench {
    fn new() -> Self {
        Self::on_thread(0)
    }

    fn on_thread(thread: u16) -> Self {
        Self::with_limits(thread, Limits::default(), Limits { allocations: 3, ..Limits::default() })
    }

    fn with_limits(thread: u16, user: Limits, total: Limits) -> Self {
        let mut credentials = Credentials::new(REALM).unwrap();
        credentials.add_user("alice", "secret").unwrap();
        credentials.add_user("bob", "secret").unwrap();
        credentials.add_user("carol", "secret").unwrap();
        let now = Now { instant: Instant::now(), unix: Duration::from_secs(1_800_000_000) };
        let server = Server::new(Config {
            credentials: credentials.into(),
            // What the tests have for the public internet is documentation's.
            peers: PeerRules {
                allow: ["203.0.113.0/24", "2001:db8::/32"].iter().map(|net| net.parse().unwrap()).collect(),
                ..PeerRules::default()
            },
            families: Families { v4: true, v6: true },
            max_lifetime: Duration::from_secs(3600),
            quotas: Quotas::new(user, total, now.instant),
            reply_limit: Some(Arc::new(ReplyLimit::new(100, now.instant))),
            failure_limit: None,
            directory: None,
            relayed_ports: Arc::default(),
            nonce_key: [1; 64],
            thread,
        });
        Self { server, now, nonce: Vec::new(), next_id: 0 }
    }

    fn pass(&mut self, seconds: u64) {
        self.now.instant += Duration::from_secs(seconds);
        self.now.unix += Duration::from_secs(seconds);
    }

    fn bytes(&mut self, client: &str, bytes: &[u8]) -> (Action, Vec<u8>) {
        self.bytes_from(from(client), bytes)
    }

    fn bytes_from(&mut self, from: FiveTuple, bytes: &[u8]) -> (Action, Vec<u8>) {
        let mut reply = [0; MAX_REPLY];
        let action = self.server.handle_client(self.now, from, bytes, &mut reply);
        let len = match action {
            Action::Reply(len) | Action::Unbind(_, _, len) | Action::Forbid(len, ..) | Action::OverQuota(len, _) => len,
            Action::Unauthenticated(ref failure) => failure.reply.unwrap_or(0),
            Action::Forward { .. } | Action::Bind(_) | Action::Handover(_) | Action::Drop(_) => 0,
        };
        (action, reply[..len].to_vec())
    }

    /// One that no request had yet.
    fn transaction_id(&mut self) -> TransactionId {
        self.next_id += 1;
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.next_id.to_be_bytes());
        TransactionId(id)
    }

    /// A request as `user` with a valid nonce.
    fn signed(&mut self, client: &str, user: &str, method: Method, fill: Fill<'_>) -> Vec<u8> {
        let id = self.transaction_id();
        let nonce = self.server.nonces.make(ClientAddr(addr(client)), self.now.unix);
        signed(id, user, &nonce, method, fill)
    }

    fn request(&mut self, client: &str, method: Method, fill: Fill<'_>) -> (Action, Vec<u8>) {
        let bytes = self.signed(client, "alice", method, fill);
        self.bytes(client, &bytes)
    }

    fn allocate(&mut self, client: &str) -> AllocationId {
        let (action, _) = self.request(client, Method::ALLOCATE, &udp);
        let Action::Bind(bind) = action else { panic!("{action:?}") };
        let mut reply = [0; MAX_REPLY];
        let bound = self.server.bound(self.now.instant, bind.id, relayed(RELAYED, None), &mut reply);
        assert!(matches!(bound, Action::Reply(_)));
        bind.id
    }

    fn permit(&mut self, client: &str, peer: &str) -> Action {
        let peer = addr(peer);
        self.request(client, Method::CREATE_PERMISSION, &|w| put(w, &XorPeerAddress(peer))).0
    }

    fn channel(&mut self, client: &str, number: u16, peer: &str) -> (Action, Vec<u8>) {
        let (number, peer) = (ChannelNumber::new(number).unwrap(), addr(peer));
        self.request(client, Method::CHANNEL_BIND, &|w| {
            w.attribute(&number).unwrap().attribute(&XorPeerAddress(peer)).unwrap();
        })
    }
}

fn signed(id: TransactionId, user: &str, nonce: &[u8], method: Method, fill: Fill<'_>) -> Vec<u8> {
    let mut buffer = [0; 2000];
    let mut w = Writer::new(&mut buffer, Class::Request, method, id).unwrap();
    fill(&mut w);
    w.attribute(&Username(user)).unwrap().attribute(&Realm(REALM)).unwrap();
    w.attribute(&Nonce(nonce)).unwrap();
    w.integrity_sha1(&key(user)).unwrap().finish().to_vec()
}

fn relayed(addrs: &str, token: Option<[u8; 8]>) -> Bound {
    let mut bound = Bound { token, ..Bound::default() };
    for relayed in addrs.split_whitespace().map(addr) {
        *bound.relayed.get_mut(AddressFamily::of(&relayed)) = Some(RelayedAddr(relayed));
    }
    bound
}

fn plain(class: Class, method: Method, fill: Fill<'_>) -> Vec<u8> {
    let mut buffer = [0; 2000];
    let mut w = Writer::new(&mut buffer, class, method, TransactionId([9; 12])).unwrap();
    fill(&mut w);
    w.finish().to_vec()
}

/// The error code of a reply; 0 for a success. Its integrity must be alice's if `signed`.
fn code(reply: &[u8], signed: bool) -> u16 {
    let message = Message::parse(reply).unwrap();
    if signed {
        message.verify(&key("alice")).unwrap();
    }
    message.get::<ErrorCode<'_>>().unwrap().map_or(0, |e| e.code.number())
}

#[test]
fn binding_response_has_the_address_and_amplifies_little() {
    let mut b = Bench::new();
    for client in [CLIENT, "[2001:db8::1]:5"] {
        let request = plain(Class::Request, Method::BINDING, &|_| ());
        let (_, reply) = b.bytes(client, &request);
        let message = Message::parse(&reply).unwrap();
        assert_eq!(message.get::<XorMappedAddress>().unwrap().unwrap().0, addr(client));
        assert!(reply.len() as f64 / request.len() as f64 <= if client == CLIENT { 1.6 } else { 2.2 });
        assert_eq!(message.check_fingerprint(), FingerprintCheck::Absent);
    }
    let mut buffer = [0; 100];
    let w = Writer::new(&mut buffer, Class::Request, Method::BINDING, TransactionId([1; 12])).unwrap();
    let mut request = w.fingerprint().unwrap().finish().to_vec();
    let (_, reply) = b.bytes(CLIENT, &request);
    assert_eq!(Message::parse(&reply).unwrap().check_fingerprint(), FingerprintCheck::Valid);
    *request.last_mut().unwrap() ^= 1;
    assert_eq!(b.bytes(CLIENT, &request).0, Action::Drop(DropReason::Fingerprint));
}

/// Browsers print the reason phrase. It is left out where the answer would be over 4.5 times its request.
#[test]
fn challenge_has_a_reason_phrase_unless_it_amplifies() {
    let mut b = Bench::new();
    let reason = |reply: &[u8]| {
        Message::parse(reply).unwrap().get::<ErrorCode<'_>>().unwrap().map(|e| e.reason.to_owned()).unwrap()
    };
    let allocate = plain(Class::Request, Method::ALLOCATE, &|w| {
        w.attribute(&RequestedTransport::UDP).unwrap();
    });
    let (_, reply) = b.bytes(CLIENT, &allocate);
    assert_eq!((code(&reply, false), &*reason(&reply)), (401, "Unauthenticated"));
    assert!(2 * reply.len() <= 9 * allocate.len());
    let bare = plain(Class::Request, Method::ALLOCATE, &|_| ());
    let (_, reply) = b.bytes(CLIENT, &bare);
    assert_eq!((code(&reply, false), &*reason(&reply)), (401, ""));
    assert!(2 * reply.len() <= 9 * bare.len());
}

#[test]
fn peer_port_zero_is_refused() {
    let mut b = Bench::new();
    b.allocate(CLIENT);
    let (_, reply) = b.channel(CLIENT, 0x4000, "203.0.113.7:0");
    assert_eq!(code(&reply, true), 400);
}

#[test]
fn unauthenticated_request_is_challenged_and_leaves_no_state() {
    let mut b = Bench::new();
    let request = plain(Class::Request, Method::ALLOCATE, &|_| ());
    let (_, reply) = b.bytes(CLIENT, &request);
    assert_eq!(code(&reply, false), 401);
    assert!(reply.len() as f64 / request.len() as f64 <= 4.5, "{}", reply.len());
    let message = Message::parse(&reply).unwrap();
    assert_eq!(message.get::<Realm<'_>>().unwrap().unwrap().0, REALM);
    b.nonce = message.get::<Nonce<'_>>().unwrap().unwrap().0.to_vec();
    let features = Nonce(&b.nonce).security_features().unwrap();
    assert!(features.password_algorithms && features.username_anonymity);
    assert_eq!(message.get::<PasswordAlgorithms<'_>>().unwrap(), Some(PasswordAlgorithms::SHA256_MD5));
    for method in [Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND] {
        assert_eq!(code(&b.bytes(CLIENT, &plain(Class::Request, method, &|_| ())).1, false), 401);
    }
    assert_eq!((b.server.allocations(), b.server.clients.len(), b.server.expiries.len()), (0, 0, 0));

    let nonce = b.nonce.clone();
    let good = signed(TransactionId([1; 12]), "alice", &nonce, Method::ALLOCATE, &udp);
    assert_eq!(code(&b.bytes("192.0.2.1:40001", &good).1, false), 438, "another client's nonce");
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    assert_eq!(code(&b.bytes(CLIENT, &bad).1, false), 401, "wrong password");
    let eve = signed(TransactionId([1; 12]), "eve", &nonce, Method::ALLOCATE, &udp);
    assert_eq!(code(&b.bytes(CLIENT, &eve).1, false), 401, "unknown user");
    assert!(matches!(b.bytes(CLIENT, &good).0, Action::Bind(_)));
    b.pass(3601);
    assert_eq!(code(&b.bytes(CLIENT, &good).1, false), 438, "too old");
}

#[test]
fn integrity_without_a_user_name_is_400() {
    let mut b = Bench::new();
    let mut buffer = [0; 200];
    let w = Writer::new(&mut buffer, Class::Request, Method::ALLOCATE, TransactionId([1; 12])).unwrap();
    let request = w.integrity_sha1(&key("alice")).unwrap().finish().to_vec();
    assert_eq!(code(&b.bytes(CLIENT, &request).1, false), 400);
}

#[test]
fn allocate_is_answered_after_the_bind_and_again_for_a_retransmission() {
    let mut b = Bench::new();
    let request = b.signed(CLIENT, "alice", Method::ALLOCATE, &udp);
    let (action, _) = b.bytes(CLIENT, &request);
    let Action::Bind(bind) = action else { panic!("{action:?}") };
    assert_eq!((bind.families, bind.port), (Families::only(AddressFamily::Ipv4), PortRequest::Any));
    assert_eq!(b.bytes(CLIENT, &request).0, Action::Drop(DropReason::InProgress));

    let mut reply = [0; MAX_REPLY];
    let bound = b.server.bound(b.now.instant, bind.id, relayed(RELAYED, Some([5; 8])), &mut reply);
    let Action::Reply(len) = bound else { panic!("{bound:?}") };
    let first = reply[..len].to_vec();
    assert_eq!(code(&first, true), 0);
    let message = Message::parse(&first).unwrap();
    assert_eq!(message.get::<XorRelayedAddress>().unwrap().unwrap().0, addr(RELAYED));
    assert_eq!(message.get::<XorMappedAddress>().unwrap().unwrap().0, addr(CLIENT));
    assert_eq!(message.get::<Lifetime>().unwrap().unwrap().0, 600);
    assert_eq!(message.get::<ReservationToken>().unwrap().unwrap().0, [5; 8]);
    for absent in [AttributeType::MOBILITY_TICKET, AttributeType::ADDRESS_ERROR_CODE] {
        assert!(!message.contains(absent), "nobody has asked for it");
    }

    b.pass(3);
    assert_eq!(b.bytes(CLIENT, &request).1, first, "a retransmission");
    assert_eq!(code(&b.request(CLIENT, Method::ALLOCATE, &udp).1, true), 437, "a new request");
    assert_eq!(b.server.allocations(), 1);
}

#[test]
fn failed_bind_is_508_for_that_client_alone() {
    let mut b = Bench::new();
    let (action, _) = b.request(CLIENT, Method::ALLOCATE, &udp);
    let Action::Bind(bind) = action else { panic!("{action:?}") };
    let mut reply = [0; MAX_REPLY];
    let failed = b.server.bound(b.now.instant, bind.id, Bound::default(), &mut reply);
    let Action::Reply(len) = failed else { panic!("{failed:?}") };
    assert_eq!(code(&reply[..len], true), 508);
    assert_eq!(b.server.allocations(), 0);
    b.allocate(CLIENT);
    assert_eq!(
        b.server.bound(b.now.instant, bind.id, Bound::default(), &mut reply),
        Action::Drop(DropReason::NoAllocation)
    );
    assert_eq!(b.server.allocations(), 1);
}

#[test]
fn allocate_with_an_unsupported_attribute_is_refused() {
    let mut b = Bench::new();
    let ask = |b: &mut Bench, fill: Fill<'_>| b.request(CLIENT, Method::ALLOCATE, fill);
    assert_eq!(code(&ask(&mut b, &|_| ()).1, true), 400, "no transport");
    assert_eq!(code(&ask(&mut b, &|w| put(w, &RequestedTransport::TCP)).1, true), 442);
    let both: Fill<'_> = &|w| {
        udp(w);
        w.attribute(&EvenPort { reserve_next: true }).unwrap().attribute(&ReservationToken([1; 8])).unwrap();
    };
    assert_eq!(code(&ask(&mut b, both).1, true), 400);
    let unknown: Fill<'_> = &|w| {
        udp(w);
        w.attribute(&Priority(3)).unwrap().attribute(&UseCandidate).unwrap();
    };
    let (_, reply) = ask(&mut b, unknown);
    assert_eq!(code(&reply, true), 420);
    let listed: Vec<_> =
        Message::parse(&reply).unwrap().get::<UnknownAttributes<'_>>().unwrap().unwrap().iter().collect();
    assert_eq!(listed, [AttributeType::PRIORITY, AttributeType::USE_CANDIDATE]);

    b.server.config.families.v6 = false;
    let v6: Fill<'_> = &|w| {
        udp(w);
        w.attribute(&RequestedAddressFamily(AddressFamily::Ipv6)).unwrap();
    };
    assert_eq!(code(&ask(&mut b, v6).1, true), 440);
    b.server.config.families.v6 = true;
    let (action, _) = ask(&mut b, v6);
    let Action::Bind(bind) = action else { panic!("{action:?}") };
    assert_eq!(bind.families, Families::only(AddressFamily::Ipv6));
    b.server.bound(b.now.instant, bind.id, Bound::default(), &mut [0; MAX_REPLY]);

    let even: Fill<'_> = &|w| {
        udp(w);
        w.attribute(&EvenPort { reserve_next: true }).unwrap();
    };
    let (action, _) = ask(&mut b, even);
    let Action::Bind(bind) = action else { panic!("{action:?}") };
    assert_eq!(bind.port, PortRequest::Even { reserve_next: true });
}

#[test]
fn allocations_over_the_limit_are_refused() {
    let mut b = Bench::new();
    for port in 1..=3 {
        b.allocate(&format!("192.0.2.1:{port}"));
    }
    assert_eq!(code(&b.request(CLIENT, Method::ALLOCATE, &udp).1, true), 508);
}

#[test]
fn allocation_ends_without_a_refresh() {
    let mut b = Bench::new();
    let id = b.allocate(CLIENT);
    let lifetime = |seconds| move |w: &mut Writer<'_>| put(w, &Lifetime(seconds));
    for (wanted, granted) in [(0x7FFF_FFFF, 3600), (1, 600), (1200, 1200)] {
        let (_, reply) = b.request(CLIENT, Method::REFRESH, &lifetime(wanted));
        assert_eq!(Message::parse(&reply).unwrap().get::<Lifetime>().unwrap().unwrap().0, granted);
    }
    b.pass(1199);
    assert_eq!(b.server.expire(b.now.instant), None);
    b.pass(1);
    assert!(b.server.poll_timeout().unwrap() <= b.now.instant);
    assert_eq!(b.server.expire(b.now.instant), Some((id, V4)));
    assert_eq!(b.server.expire(b.now.instant), None);
    assert_eq!((b.server.poll_timeout(), b.server.allocations()), (None, 0));
    assert_eq!(code(&b.request(CLIENT, Method::REFRESH, &lifetime(5)).1, true), 437);

    let id = b.allocate(CLIENT);
    let delete = b.signed(CLIENT, "alice", Method::REFRESH, &lifetime(0));
    let (action, reply) = b.bytes(CLIENT, &delete);
    assert_eq!(action, Action::Unbind(id, V4, reply.len()));
    assert_eq!(code(&reply, true), 0);
    assert_eq!(b.bytes(CLIENT, &delete), (Action::Reply(reply.len()), reply), "a retransmission");
    assert_eq!(code(&b.request(CLIENT, Method::REFRESH, &lifetime(0)).1, true), 437);
}

/// A deletion is remembered for its own time, whatever was deleted before it.
#[test]
fn a_second_deletion_is_remembered_too() {
    let mut b = Bench::new();
    let delete: Fill<'_> = &|w| put(w, &Lifetime(0));
    b.allocate(CLIENT);
    b.request(CLIENT, Method::REFRESH, delete);
    b.pass(30);
    b.allocate(CLIENT);
    let second = b.signed(CLIENT, "alice", Method::REFRESH, delete);
    let (_, reply) = b.bytes(CLIENT, &second);
    b.pass(11);
    b.allocate("192.0.2.1:2");
    b.request("192.0.2.1:2", Method::REFRESH, delete);
    assert_eq!(b.bytes(CLIENT, &second).1, reply);
}

#[test]
fn another_user_cannot_use_an_allocation() {
    let mut b = Bench::new();
    b.allocate(CLIENT);
    let request = b.signed(CLIENT, "bob", Method::REFRESH, &|_| ());
    let (_, reply) = b.bytes(CLIENT, &request);
    let message = Message::parse(&reply).unwrap();
    message.verify(&key("bob")).unwrap();
    assert_eq!(message.get::<ErrorCode<'_>>().unwrap().unwrap().code, Code::WRONG_CREDENTIALS);
}

#[test]
fn icmp_error_about_a_peer_reaches_the_client() {
    let mut b = Bench::new();
    let id = b.allocate(CLIENT);
    let mut reply = [0; MAX_REPLY];
    let peer = PeerAddr(addr(PEER));
    let icmp = |icmp_type, code, data| Icmp { icmp_type, code, data };
    let mut tell = |b: &mut Bench, peer, icmp| {
        let told = b.server.icmp_indication(b.now.instant, id, peer, icmp, &mut reply);
        told.map(|(to, len)| (to, reply[..len].to_vec()))
    };
    let unreachable = icmp(3, 3, 0);
    assert_eq!(tell(&mut b, peer, unreachable), Err(DropReason::NoPermission));
    b.channel(CLIENT, 0x4000, PEER);
    for (told, whether) in [
        (unreachable, true),
        (icmp(3, 4, 1280), true),
        (icmp(11, 0, 0), true),
        (icmp(12, 0, 0), false),
        (icmp(5, 0, 0), false),
    ] {
        let result = tell(&mut b, peer, told);
        if !whether {
            assert_eq!(result, Err(DropReason::Icmp));
            continue;
        }
        let (to, bytes) = result.unwrap();
        let message = Message::parse(&bytes).unwrap();
        assert!(message.is(Class::Indication, Method::DATA) && to == from(CLIENT));
        assert_eq!(message.get::<XorPeerAddress>().unwrap().unwrap().0, peer.0);
        assert_eq!(message.get::<Icmp>().unwrap(), Some(told));
        assert!(!message.contains(AttributeType::DATA));
    }
    b.pass(300);
    assert_eq!(tell(&mut b, peer, unreachable), Err(DropReason::NoPermission));
}

#[test]
fn forbidden_peer_is_403_and_other_family_443() {
    let mut b = Bench::new();
    b.server.config.peers.listeners.push(addr("203.0.113.250:3478"));
    b.allocate(CLIENT);
    for bad in ["127.0.0.1:80", "0.0.0.0:80", "224.0.0.1:80", "169.254.169.254:80"] {
        assert!(matches!(b.permit(CLIENT, bad), Action::Forbid(_, p, _) if p.0 == addr(bad)), "{bad}");
        let (action, reply) = b.channel(CLIENT, 0x4001, bad);
        assert!(matches!(action, Action::Forbid(..)));
        assert_eq!(code(&reply, true), 403);
    }
    for bad in ["[2001:db8::1]:80", "[::ffff:127.0.0.1]:80", "[::1]:80"] {
        let peer = addr(bad);
        let reply = b.request(CLIENT, Method::CREATE_PERMISSION, &|w| put(w, &XorPeerAddress(peer))).1;
        assert_eq!(code(&reply, true), 443, "{bad}");
    }
    let (action, _) = b.channel(CLIENT, 0x4001, "203.0.113.250:3478");
    assert!(matches!(action, Action::Forbid(_, _, why) if *why == PeerRefused::Listener));
    b.permit(CLIENT, "203.0.113.250:1");
    let send = plain(Class::Indication, Method::SEND, &|w| {
        w.attribute(&XorPeerAddress(addr("203.0.113.250:3478"))).unwrap().attribute(&Data(b"x")).unwrap();
    });
    assert_eq!(b.bytes(CLIENT, &send).0, Action::Drop(DropReason::Peer));
}

#[test]
fn permissions_of_a_request_are_installed_all_or_none() {
    let mut b = Bench::new();
    let id = b.allocate(CLIENT);
    let (_, reply) = b.request(CLIENT, Method::CREATE_PERMISSION, &|w| {
        w.attribute(&XorPeerAddress(addr(PEER))).unwrap();
        w.attribute(&XorPeerAddress(addr("127.0.0.1:1"))).unwrap();
    });
    assert_eq!(code(&reply, true), 403);
    assert!(b.server.handle_peer(b.now.instant, id, PeerAddr(addr(PEER)), 1).is_err());
    assert_eq!(code(&b.request(CLIENT, Method::CREATE_PERMISSION, &|_| ()).1, true), 400);
}

#[test]
fn channel_conflict_is_400() {
    let mut b = Bench::new();
    b.allocate(CLIENT);
    assert_eq!(code(&b.channel(CLIENT, 0x4000, PEER).1, true), 0);
    assert_eq!(code(&b.channel(CLIENT, 0x4000, PEER).1, true), 0, "a refresh");
    assert_eq!(code(&b.channel(CLIENT, 0x4001, PEER).1, true), 400);
    assert_eq!(code(&b.channel(CLIENT, 0x4000, "203.0.113.8:1").1, true), 400);
}

#[test]
fn channels_of_rfc_5766_are_accepted() {
    let mut b = Bench::new();
    let id = b.allocate(CLIENT);
    assert_eq!(code(&b.channel(CLIENT, 0x7FFF, PEER).1, true), 0);
    let data = b.bytes(CLIENT, &[0x7F, 0xFF, 0, 1, 9]).0;
    assert_eq!(data, Action::Forward { via: id, to: PeerAddr(addr(PEER)), range: 4..5, dont_fragment: false });
}

#[test]
fn allocations_that_come_and_go_leave_nothing_behind() {
    let mut b = Bench::new();
    for _ in 0..500 {
        b.allocate(CLIENT);
        let (action, _) = b.request(CLIENT, Method::REFRESH, &|w| put(w, &Lifetime(0)));
        assert!(matches!(action, Action::Unbind(..)));
    }
    assert!(b.server.expiries.len() <= 66, "{}", b.server.expiries.len());
    assert_eq!(b.server.clients.len(), 0);
}

/// What is returned for every datagram, and kept for every allocation.
#[test]
fn action_and_allocation_keep_their_size() {
    assert!(size_of::<Action>() <= 64, "{}", size_of::<Action>());
    assert!(size_of::<Allocation>() <= 352, "{}", size_of::<Allocation>());
}

#[test]
fn random_bytes_cause_no_panic() {
    let mut b = Bench::new();
    b.allocate(CLIENT);
    let valid = b.signed(CLIENT, "alice", Method::REFRESH, &|_| ());
    let mut state = 7u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for _ in 0..20_000 {
        let mut bytes = if random() % 2 == 0 { valid.clone() } else { vec![0; random() % 80] };
        for _ in 0..1 + random() % 8 {
            let at = random() % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random() as u8;
            }
        }
        bytes.truncate(random() % 200);
        b.bytes(CLIENT, &bytes);
    }
    assert!(b.server.allocations() <= 1);
}
