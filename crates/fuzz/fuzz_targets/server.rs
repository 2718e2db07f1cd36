//! Sequences of whatever a network and a clock may bring to two servers that share a key: requests that are signed and
//! make sense, requests that are broken, data, ICMP messages, time. Nothing panics, nothing goes through a socket that is not
//! there, and nothing is kept beyond the limits.
#![no_main]

mod input;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use backwater_stun::*;
use backwater_turn::{
    ClientAddr, Credentials, FailureLimit, Families, FiveTuple, Limits, Now, PeerAddr, PeerRules, Quotas, RelayedAddr,
    ReplyLimit,
    server::{Action, AllocationId, Bound, Config, MAX_REPLY, Server},
};
use input::Input;
use libfuzzer_sys::fuzz_target;

const REALM: &str = "example.org";
const USERS: [&str; 2] = ["alice", "bob"];
const MAX_ALLOCATIONS: usize = 6;
const CLIENTS: usize = 4;

/// Steps of one run.
const STEPS: usize = 400;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static CREDENTIALS: LazyLock<Credentials> = LazyLock::new(|| {
    let mut credentials = Credentials::new(REALM).unwrap();
    USERS.iter().for_each(|user| credentials.add_user(user, "secret").unwrap());
    credentials
});
static KEYS: LazyLock<[HmacKey; 2]> =
    LazyLock::new(|| USERS.map(|user| HmacKey::from(&LongTermKey::md5(user, REALM, "secret"))));

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut world = World::new(&mut input);
    for _ in 0..STEPS {
        if input.0.is_empty() {
            break;
        }
        world.step(&mut input);
    }
});

struct World {
    now: Now,
    servers: [Server; 2],
    /// What a relay would have bound.
    sockets: [HashMap<AllocationId, Families>; 2],
    nonces: [Vec<u8>; CLIENTS],
    tickets: Vec<Vec<u8>>,
    tokens: Vec<[u8; 8]>,
    last: Option<(usize, FiveTuple, Vec<u8>)>,
    next: u32,
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let now = Now { instant: *START, unix: Duration::from_secs(1_800_000_000) };
        let flags = input.byte();
        let bytes_per_second = (flags & 1 != 0).then_some(1000);
        let total = Limits { allocations: MAX_ALLOCATIONS, permissions: 20, channels: 20, bytes_per_second };
        let quotas = Quotas::new(Limits { allocations: 4, ..total }, total, now.instant);
        let reply_limit = (flags & 2 != 0).then(|| Arc::new(ReplyLimit::new(5, now.instant)));
        let failure_limit = (flags & 8 != 0).then(|| Arc::new(FailureLimit::new(5, now.instant)));
        let server = |thread| {
            Server::new(Config {
                credentials: CREDENTIALS.clone().into(),
                peers: PeerRules {
                    allow: ["203.0.113.0/24", "2001:db8::/32"].map(|net| net.parse().unwrap()).to_vec(),
                    deny: vec!["203.0.113.64/26".parse().unwrap()],
                    ..PeerRules::default()
                },
                families: Families { v4: true, v6: flags & 4 == 0 },
                max_lifetime: Duration::from_secs(3600),
                quotas: quotas.clone(),
                reply_limit: reply_limit.clone(),
                failure_limit: failure_limit.clone(),
                directory: None,
                relayed_ports: Arc::default(),
                nonce_key: [3; 64],
                thread,
            })
        };
        Self {
            now,
            servers: [server(0), server(1)],
            sockets: Default::default(),
            nonces: Default::default(),
            tickets: Vec::new(),
            tokens: Vec::new(),
            last: None,
            next: 0,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        let (at, client) = (usize::from(what >> 4 & 1), usize::from(what >> 5) % CLIENTS);
        match what & 15 {
            0..=6 => {
                let bytes = self.request(input, client);
                self.arrives(input, at, client, bytes);
            }
            7 => {
                let number = ChannelNumber::new(0x4000 + u16::from(input.byte() & 3)).unwrap();
                let payload = input.bytes(40);
                let bytes = [&ChannelData::header(number, payload.len() as u16), payload].concat();
                self.arrives(input, at, client, bytes);
            }
            8 => {
                let bytes = self.indication(input);
                self.arrives(input, at, client, bytes);
            }
            9 => {
                let bytes = input.bytes(120).to_vec();
                self.arrives(input, at, client, bytes);
            }
            // Sent again, or broken.
            10 | 11 => {
                if let Some((at, from, mut bytes)) = self.last.clone() {
                    if what & 15 == 11 {
                        let place = usize::from(input.short()) % bytes.len().max(1);
                        bytes.get_mut(place).into_iter().for_each(|byte| *byte ^= input.byte() | 1);
                    }
                    self.handle(input, at, from, &bytes);
                }
            }
            12 | 13 => self.from_network(input, at),
            14 => self.pass(Duration::from_millis(u64::from(input.short()) * u64::from(input.byte()))),
            _ => {
                let seconds = Duration::from_secs(input.short().into());
                self.now.unix =
                    if input.byte() & 1 == 0 { self.now.unix.saturating_sub(seconds) } else { self.now.unix + seconds };
            }
        }
        let held: usize = self.servers.iter().map(Server::allocations).sum();
        assert!(held <= MAX_ALLOCATIONS, "{held} allocations");
        assert_eq!(held, self.sockets.iter().map(HashMap::len).sum::<usize>());
    }

    fn request(&mut self, input: &mut Input<'_>, client: usize) -> Vec<u8> {
        let flags = input.byte();
        let methods = [Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND];
        let method = if flags >> 5 == 7 { Method::BINDING } else { methods[usize::from(flags & 3)] };
        self.next += 1;
        let mut id = [0; 12];
        id[..4].copy_from_slice(&self.next.to_be_bytes());
        let mut buffer = [0; 1500];
        let mut w = Writer::new(&mut buffer, Class::Request, method, TransactionId(id)).unwrap();
        if method == Method::ALLOCATE && flags & 4 == 0 {
            put(&mut w, &RequestedTransport::UDP);
        }
        for _ in 0..input.below(6) {
            self.attribute(input, &mut w);
        }
        let user = usize::from(flags >> 3 & 1);
        if flags & 16 == 0 || !self.nonces[client].is_empty() {
            put(&mut w, &Username(USERS[user]));
            put(&mut w, &Realm(REALM));
            put(&mut w, &Nonce(&self.nonces[client]));
            let signed = w.integrity_sha1(&KEYS[user]).unwrap();
            return if flags & 64 == 0 { signed.finish() } else { signed.fingerprint().unwrap().finish() }.to_vec();
        }
        w.finish().to_vec()
    }

    fn attribute(&self, input: &mut Input<'_>, w: &mut Writer<'_>) {
        match input.byte() % 14 {
            0..=3 => put(w, &XorPeerAddress(peer(input))),
            4 | 5 => put(w, &ChannelNumber::new(0x4000 + u16::from(input.byte() & 3)).unwrap()),
            6 => put(w, &Lifetime(u32::from(input.short()) * u32::from(input.byte() & 1))),
            7 => put(w, &RequestedAddressFamily(family(input))),
            8 => put(w, &AdditionalAddressFamily(AddressFamily::Ipv6)),
            9 => put(w, &EvenPort { reserve_next: input.byte() & 1 == 0 }),
            10 => {
                let known = self.tokens.get(input.below(self.tokens.len().max(1))).copied();
                put(w, &ReservationToken(known.unwrap_or_default()));
            }
            11 => put(w, &MobilityTicket(&[])),
            12 => {
                let known = self.tickets.get(input.below(self.tickets.len().max(1)));
                put(w, &MobilityTicket(known.map_or(input.bytes(50), |ticket| ticket)));
            }
            _ => put(w, &Software("fuzz")),
        }
    }

    fn indication(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let mut buffer = [0; 400];
        let mut w = Writer::new(&mut buffer, Class::Indication, Method::SEND, TransactionId([5; 12])).unwrap();
        put(&mut w, &XorPeerAddress(peer(input)));
        put(&mut w, &Data(input.bytes(60)));
        w.finish().to_vec()
    }

    fn arrives(&mut self, input: &mut Input<'_>, at: usize, client: usize, bytes: Vec<u8>) {
        let from = five_tuple(client, input.byte() & 1);
        self.last = Some((at, from, bytes.clone()));
        self.handle(input, at, from, &bytes);
    }

    fn handle(&mut self, input: &mut Input<'_>, at: usize, from: FiveTuple, bytes: &[u8]) {
        let mut reply = [0; MAX_REPLY];
        let action = self.servers[at].handle_client(self.now, from, bytes, &mut reply);
        self.act(input, at, from, bytes, action, &mut reply);
    }

    fn act(
        &mut self,
        input: &mut Input<'_>,
        at: usize,
        from: FiveTuple,
        bytes: &[u8],
        action: Action,
        reply: &mut [u8; MAX_REPLY],
    ) {
        match action {
            Action::Forward { via, to, range, .. } => {
                assert!(range.end <= bytes.len());
                let open = self.sockets[at].get(&via).expect("a socket that is there");
                assert!(open.get(AddressFamily::of(&to.0)), "a socket of the peer's family");
                assert!(!to.0.ip().is_loopback());
            }
            Action::Reply(len) | Action::Forbid(len, ..) | Action::OverQuota(len, _) => self.read(from, &reply[..len]),
            Action::Unbind(id, families, len) => {
                self.closed(at, id, families);
                self.read(from, &reply[..len]);
            }
            Action::Bind(bind) => {
                let some = input.byte();
                let mut bound = Bound::default();
                for family in [AddressFamily::Ipv4, AddressFamily::Ipv6] {
                    let wanted = *bind.families.get(family) || !bind.families.any() && family == AddressFamily::Ipv4;
                    if wanted && some >> (family as u8 & 7) & 1 == 0 {
                        self.next += 1;
                        let port = self.next as u16 | 1;
                        let relayed = match family {
                            AddressFamily::Ipv4 => SocketAddr::from(([198, 51, 100, 1], port)),
                            AddressFamily::Ipv6 => format!("[2001:db8:f::1]:{port}").parse().unwrap(),
                        };
                        *bound.relayed.get_mut(family) = Some(RelayedAddr(relayed));
                    }
                }
                bound.token = (some & 64 != 0).then_some([some; 8]);
                let families = bound.relayed.map(|relayed| relayed.is_some());
                if families.any() {
                    self.sockets[at].insert(bind.id, families);
                }
                let action = self.servers[at].bound(self.now.instant, bind.id, bound, reply);
                self.act(input, at, from, bytes, action, reply);
            }
            Action::Handover(request) => {
                let owner = request.thread();
                assert!(owner < 2, "a ticket that was never made");
                let given = self.servers[owner].detach(&request);
                let came = given.is_ok().then(|| self.sockets[owner].remove(&request.id()).unwrap());
                let (id, action) = self.servers[at].attach(self.now.instant, &request, given, reply);
                if let (Some(id), Some(families)) = (id, came) {
                    self.sockets[at].insert(id, families);
                }
                self.act(input, at, request.to(), bytes, action, reply);
            }
            Action::Unauthenticated(failure) => {
                if let Some(len) = failure.reply {
                    self.read(from, &reply[..len]);
                }
            }
            Action::Drop(_) => {}
        }
    }

    fn closed(&mut self, at: usize, id: AllocationId, families: Families) {
        let open = self.sockets[at].get_mut(&id).expect("what is closed was open");
        for family in families.iter() {
            assert!(std::mem::take(open.get_mut(family)), "closed twice");
        }
        if !open.any() {
            self.sockets[at].remove(&id);
        }
    }

    fn read(&mut self, from: FiveTuple, reply: &[u8]) {
        let message = Message::parse(reply).expect("an answer that can be read");
        assert!(matches!(message.class(), Class::SuccessResponse | Class::ErrorResponse));
        if let Ok(Some(Nonce(nonce))) = message.get() {
            for client in 0..CLIENTS {
                if (0..2).any(|port| five_tuple(client, port) == from) {
                    self.nonces[client] = nonce.to_vec();
                }
            }
        }
        if let Some(verified) = KEYS.iter().find_map(|key| message.verify(key).ok()) {
            if let Ok(Some(MobilityTicket(ticket))) = verified.get() {
                self.tickets.push(ticket.to_vec());
            }
            if let Ok(Some(ReservationToken(token))) = verified.get() {
                self.tokens.push(token);
            }
        }
    }

    fn from_network(&mut self, input: &mut Input<'_>, at: usize) {
        let mut ids: Vec<_> = self.sockets[at].keys().copied().collect();
        ids.sort_unstable();
        let Some(&id) = ids.get(input.below(ids.len().max(1))) else { return };
        let (peer, now) = (PeerAddr(peer(input)), self.now.instant);
        let mut reply = [0; MAX_REPLY];
        if input.byte() & 1 == 0 {
            let len = usize::from(input.short());
            if self.servers[at].handle_peer(now, id, peer, len).is_ok()
                && let Ok(prefix) = self.servers[at].data_indication(peer, len)
            {
                assert_eq!((prefix.as_bytes().len() + len + prefix.padding().len()) % 4, 0);
            }
            return;
        }
        let icmp = Icmp { icmp_type: input.byte(), code: input.byte().into(), data: 0 };
        if let Ok((_, len)) = self.servers[at].icmp_indication(now, id, peer, icmp, &mut reply) {
            assert_eq!(Message::parse(&reply[..len]).unwrap().get::<Icmp>().unwrap(), Some(icmp));
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.unix += time;
        for at in 0..2 {
            while let Some((id, families)) = self.servers[at].expire(self.now.instant) {
                self.closed(at, id, families);
            }
            assert!(self.servers[at].poll_timeout().is_none_or(|at| at > self.now.instant));
        }
    }
}

fn put<'a>(w: &mut Writer<'_>, attribute: &impl Attribute<'a>) {
    w.attribute(attribute).unwrap();
}

fn family(input: &mut Input<'_>) -> AddressFamily {
    if input.byte() & 1 == 0 { AddressFamily::Ipv4 } else { AddressFamily::Ipv6 }
}

fn peer(input: &mut Input<'_>) -> SocketAddr {
    let n = input.byte();
    match n >> 6 {
        0 | 1 => SocketAddr::from(([203, 0, 113, n & 67], 7000 + u16::from(n >> 4 & 1))),
        2 => SocketAddr::from((std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, (n & 3).into()), 7000)),
        _ => ["127.0.0.1:9", "[::1]:9", "[::ffff:203.0.113.1]:9", "[2002:7f00:1::]:9"][usize::from(n & 3)]
            .parse()
            .unwrap(),
    }
}

fn five_tuple(client: usize, port: u8) -> FiveTuple {
    let client = SocketAddr::from(([192, 0, 2, 1 + client as u8], 40_000 + u16::from(port)));
    FiveTuple::udp(ClientAddr(client), SocketAddr::from(([192, 0, 2, 250], 3478)))
}
