//! Clients and peers against the server over a bad network: datagrams are lost, doubled, late and out of order, clients
//! change their addresses and some take their allocations along, clocks jump. Each answer is compared with a model of who
//! may send to whom, and until when.
//!
//! The server is driven as the relay drives it, but for the sockets. `BACKWATER_STEPS` says how many steps,
//! `BACKWATER_SEED` replays one world.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod clients;
mod model;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use backwater_stun::*;
use backwater_turn::{
    ClientAddr, Credentials, Families, FiveTuple, Limits, Now, PeerAddr, PeerRules, PerFamily, Quotas, RelayedAddr,
    server::{
        Action, AllocationId, Bound, Config, DetachedAllocation, Framing, HandoverRequest, MAX_REPLY, PortRequest,
        Server,
    },
};

use model::{Answer, Held, MOVES, Model, granted};

const REALM: &str = "example.org";
const USERS: [&str; 3] = ["alice", "bob", "carol"];
const MAX_ALLOCATIONS: usize = 5;
const PER_USER: usize = 2;
const MAX_LIFETIME: u32 = 3600;

/// Steps of one world, so that a seed that fails is soon replayed.
const STEPS: usize = 2000;

/// Worlds that once failed.
const SEEDS: &[u64] = &[
    // A client that moved to delete its allocation, twice under way at once: the second was told that there is none.
    1795405086612343975,
];

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut x = self.0;
        x ^= x >> 32;
        (x.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// What a datagram asks for.
#[derive(Clone, Debug)]
enum Ask {
    Binding,
    Allocate { families: Families, port: PortRequest, lifetime: Option<u32>, mobile: bool },
    Refresh { lifetime: Option<u32>, family: Option<AddressFamily>, ticket: Option<Vec<u8>> },
    Permit { peers: Vec<SocketAddr> },
    Channel { number: u16, peer: SocketAddr },
    Send { peer: SocketAddr },
    Data { number: u16 },
}

/// How a request says who made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signed {
    No,
    Wrongly,
    Well,
}

/// A datagram of a client's.
#[derive(Clone, Debug)]
struct Sent {
    ask: Ask,
    from: FiveTuple,
    user: usize,
    signed: Signed,
    /// Whom the nonce was given to, and when.
    nonce: Option<(FiveTuple, Duration)>,
    id: TransactionId,
    bytes: Vec<u8>,
}

struct Client {
    address: FiveTuple,
    user: usize,
    nonce: Option<(Vec<u8>, FiveTuple, Duration)>,
    /// The last that it was told, which may be spent or another's.
    ticket: Option<Vec<u8>>,
    /// It has another address than before, and has not been told a ticket since.
    away: bool,
}

struct World {
    random: Random,
    now: Now,
    server: Server,
    model: Model,
    clients: Vec<Client>,
    /// On their way: when they arrive, and which.
    flying: BinaryHeap<Reverse<(Instant, usize)>>,
    sent: Vec<Sent>,
    /// The relay's sockets.
    sockets: HashMap<SocketAddr, AllocationId>,
    ports: u16,
    tokens: Vec<[u8; 8]>,
    /// The relay's, in its order.
    mail: VecDeque<Mail>,
    count: Count,
}

/// What the relay's threads tell each other about an allocation that is to move.
enum Mail {
    Ask(Sent, Box<HandoverRequest>),
    Answer(Sent, Box<HandoverRequest>, Result<DetachedAllocation, Code>),
}

/// What happened, so that it is known that it did.
#[derive(Debug, Default)]
struct Count {
    codes: HashMap<u16, usize>,
    forwarded: usize,
    to_channels: usize,
    to_indications: usize,
    refused_data: usize,
    expired: usize,
    repeated: usize,
    /// Copies that came when the client had another allocation already.
    overtaken: usize,
    moved: usize,
    /// Requests to move that were refused.
    unmoved: usize,
    /// Moves whose new address had an allocation by then.
    lost: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let now = Now { instant: Instant::now(), unix: Duration::from_secs(1_800_000_000) };
        let mut credentials = Credentials::new(REALM).unwrap();
        for user in USERS {
            credentials.add_user(user, "secret").unwrap();
        }
        let nets = |all: &[&str]| all.iter().map(|net| net.parse().unwrap()).collect();
        let server = Server::new(Config {
            credentials: credentials.into(),
            peers: PeerRules {
                allow: nets(&["203.0.113.0/24", "2001:db8::/32"]),
                deny: nets(&["203.0.113.66/32"]),
                ..PeerRules::default()
            },
            families: Families { v4: true, v6: true },
            max_lifetime: Duration::from_secs(MAX_LIFETIME.into()),
            quotas: Quotas::new(
                Limits { allocations: PER_USER, ..Limits::default() },
                Limits { allocations: MAX_ALLOCATIONS, ..Limits::default() },
                now.instant,
            ),
            reply_limit: None,
            failure_limit: None,
            directory: None,
            relayed_ports: Default::default(),
            nonce_key: [random.below(256) as u8; 64],
            thread: 0,
        });
        let clients = (0..7).map(|i| Client {
            address: client_address(i),
            user: i as usize % 3,
            nonce: None,
            ticket: None,
            away: false,
        });
        Self {
            clients: clients.collect(),
            random,
            now,
            server,
            model: Model::default(),
            flying: BinaryHeap::new(),
            sent: Vec::new(),
            sockets: HashMap::new(),
            ports: 50_000,
            tokens: Vec::new(),
            mail: VecDeque::new(),
            count: Count::default(),
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..34 => self.a_client_sends(),
            34..52 => self.a_peer_sends(),
            52..58 => self.mail_is_read(),
            58..96 => {
                if let Some(Reverse((at, index))) = self.flying.pop() {
                    self.pass(at.saturating_duration_since(self.now.instant));
                    self.arrives(&self.sent[index].clone());
                }
            }
            96 if self.random.one_in(3) => {
                let seconds = self.random.below(300);
                self.pass(Duration::from_secs(seconds));
            }
            97 if self.random.one_in(20) => {
                let seconds = self.random.below(4000);
                self.pass(Duration::from_secs(seconds));
            }
            // The wall clock is set.
            98 if self.random.one_in(20) => {
                let seconds = Duration::from_secs(self.random.below(7200));
                let back = self.random.one_in(2);
                self.now.unix = if back { self.now.unix.saturating_sub(seconds) } else { self.now.unix + seconds };
            }
            // A router forgets a client's address.
            98 | 99 => {
                let index = self.random.below(self.clients.len() as u64) as usize;
                let client = &mut self.clients[index];
                // Mostly to one that is nobody's, for one that takes its allocation along.
                if client.ticket.is_some() || self.random.one_in(6) {
                    client.address = client_address(self.random.below(if client.ticket.is_some() { 40 } else { 12 }));
                    client.away = true;
                }
            }
            _ => {}
        }
    }

    /// The clocks go on, and the relay's timer is on time.
    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.unix += time;
        let now = self.now.instant;
        if let Some(end) = self.model.next_expiry() {
            let timer = self.server.poll_timeout();
            assert!(
                timer.is_some_and(|at| at <= end),
                "the timer is late: {timer:?}, but {end:?}, {:?}",
                self.model.held
            );
        }
        while let Some((id, families)) = self.server.expire(now) {
            let (from, held) = self.model.held.iter_mut().find(|(_, held)| held.id == id).unwrap();
            for family in families.iter() {
                let (relayed, until) = held.close(family).unwrap();
                assert!(until <= now, "expired {:?} too early", until - now);
                self.sockets.remove(&relayed);
                self.count.expired += 1;
            }
            if held.is_over() {
                let from = *from;
                self.model.held.remove(&from);
            }
        }
        assert!(self.model.next_expiry().is_none_or(|end| end > now), "something should have expired");
        assert_eq!(self.server.allocations(), self.model.held.len());
    }

    fn a_client_sends(&mut self) {
        let random = &mut self.random;
        let index = random.below(self.clients.len() as u64) as usize;
        let client = &self.clients[index];
        let mut ask = ask(random, &self.tokens);
        if let Some(ticket) = &client.ticket
            && client.away
            && !random.one_in(4)
        {
            let lifetime = random.pick(&[None, None, None, Some(2000), Some(0)]);
            let family = random.pick(&[None, None, None, Some(AddressFamily::Ipv4), Some(AddressFamily::Ipv6)]);
            ask = Ask::Refresh { lifetime, family, ticket: Some(ticket.clone()) };
        }
        if let Ask::Refresh { ticket: Some(ticket), .. } = &mut ask
            && random.one_in(20)
        {
            let byte = random.below(ticket.len() as u64) as usize;
            ticket[byte] ^= 1;
        }
        let user = if random.one_in(30) { random.below(3) as usize } else { client.user };
        let signed = match (&client.nonce, random.below(40)) {
            (None, _) | (_, 0) => Signed::No,
            (_, 1) => Signed::Wrongly,
            _ => Signed::Well,
        };
        let mut id = [0; 12];
        id[4..].copy_from_slice(&(self.sent.len() as u64).to_be_bytes());
        let mut sent = Sent {
            ask,
            from: client.address,
            user,
            signed,
            nonce: client.nonce.as_ref().map(|(_, to, at)| (*to, *at)),
            id: TransactionId(id),
            bytes: Vec::new(),
        };
        sent.bytes = encode(&sent, client.nonce.as_ref().map_or(&[], |(nonce, ..)| nonce));
        let copies = match random.below(10) {
            0 => 0,
            1 => 2,
            _ => 1,
        };
        for copy in 0..copies {
            let late = match random.below(100) {
                0 => random.below(60_000),
                1..50 if copy > 0 => random.below(45_000),
                _ => random.below(80),
            };
            self.flying.push(Reverse((self.now.instant + Duration::from_millis(late), self.sent.len())));
        }
        self.sent.push(sent);
    }

    fn arrives(&mut self, sent: &Sent) {
        let mut reply = [0; MAX_REPLY];
        let mut action = self.server.handle_client(self.now, sent.from, &sent.bytes, &mut reply);
        match sent.ask {
            Ask::Send { peer } => {
                let to = self.model.permitted(&sent.from, peer, self.now.instant).then_some(peer);
                return self.forwards(sent, &action, to);
            }
            Ask::Data { number } => {
                let to = self.model.channel(&sent.from, number, self.now.instant);
                return self.forwards(sent, &action, to);
            }
            _ => {}
        }
        if let Some(first) = self.model.answer_to_copy(sent, self.now.instant) {
            assert_eq!(action, Action::Reply(first.len()), "{sent:?}: a copy");
            assert_eq!(reply[..first.len()], *first, "{sent:?}: a copy");
            self.count.repeated += 1;
            self.count.overtaken += usize::from(self.model.is_overtaken(sent));
            return;
        }
        let mut right = self.model.codes(sent, self.now);
        let known = self.model.held.contains_key(&sent.from);
        if let Action::Handover(request) = action {
            assert!(right.contains(&MOVES), "{sent:?}: is asked for, but {right:?}");
            return self.mail.push_back(Mail::Ask(sent.clone(), request));
        }
        if let Action::Bind(bind) = action {
            assert!(right == [0] && !known, "{sent:?}: binds, but {right:?}");
            let (bound, held) = self.bind(sent, bind.id, bind.families, bind.port);
            self.model.claimed(sent, &bound, self.now.instant);
            if held.is_none() {
                right = vec![508];
            }
            action = self.server.bound(self.now.instant, bind.id, bound, &mut reply);
            self.model.held.extend(held.map(|held| (sent.from, held)));
        }
        self.answered(sent, &action, &reply, &right);
    }

    fn answered(&mut self, sent: &Sent, action: &Action, reply: &[u8], right: &[u16]) {
        let len = match action {
            Action::Reply(len) | Action::Forbid(len, ..) | Action::OverQuota(len, _) => *len,
            Action::Unauthenticated(failure) => failure.reply.unwrap(),
            Action::Unbind(id, families, len) => {
                let held = &self.model.held[&sent.from];
                assert_eq!(*id, held.id);
                for family in families.iter() {
                    self.sockets.remove(&held.relayed.get(family).unwrap().0).unwrap();
                }
                *len
            }
            other => panic!("{sent:?}: {other:?}, not {right:?}"),
        };
        let message = Message::parse(&reply[..len]).unwrap();
        let code = message.get::<ErrorCode<'_>>().unwrap().map_or(0, |error| error.code.number());
        assert!(right.contains(&code), "{sent:?}: {code}, not {right:?}, of {:?}", self.model.held.get(&sent.from));
        assert_eq!((message.transaction_id(), message.class() == Class::SuccessResponse), (sent.id, code == 0));
        *self.count.codes.entry(code).or_default() += 1;
        if sent.signed == Signed::Well && ![401, 438].contains(&code) && !matches!(sent.ask, Ask::Binding) {
            let held = self.model.held.get(&sent.from).map(|held| held.id);
            self.model
                .answered
                .insert((sent.from, sent.id), Answer { reply: reply[..len].to_vec(), at: self.now.instant, held });
        }
        self.reads(sent, &message, code);
        if code == 0 {
            self.model.succeeded(sent, self.now.instant);
        }
        assert_eq!(self.server.allocations(), self.model.held.len());
    }

    /// The relay's part of a move. Its threads do not wait for each other: anything may come in between.
    fn mail_is_read(&mut self) {
        match self.mail.pop_front() {
            None => {}
            Some(Mail::Ask(sent, request)) => {
                let given = self.server.detach(&request);
                match (&given, self.model.gives(&sent)) {
                    (Ok(_), Ok(from)) => {
                        let held = self.model.held.remove(&from).unwrap();
                        for (relayed, _) in held.relayed.v4.iter().chain(&held.relayed.v6) {
                            self.sockets.remove(relayed).unwrap();
                        }
                        self.model.moving.push_back(held);
                    }
                    (Err(code), Err(right)) => {
                        assert!(right.contains(&code.number()), "{sent:?}: {code:?}, not {right:?}")
                    }
                    (given, right) => panic!("{sent:?}: given {}, but {right:?}", given.is_ok()),
                }
                self.mail.push_back(Mail::Answer(sent, request, given));
            }
            Some(Mail::Answer(sent, request, given)) => {
                let right = self.model.taken(&sent, given.as_ref().err().map(|code| code.number()));
                let first = self.model.answer_to_copy(&sent, self.now.instant).map(<[u8]>::to_vec);
                let came = given.is_ok().then(|| self.model.moving.pop_front().unwrap());
                self.count.unmoved += usize::from(came.is_none());
                let mut reply = [0; MAX_REPLY];
                let (id, action) = self.server.attach(self.now.instant, &request, given, &mut reply);
                if let (None, None, Some(first)) = (id, &came, first) {
                    // Another copy was answered while this one was under way.
                    assert_eq!((&action, &reply[..first.len()]), (&Action::Reply(first.len()), &first[..]));
                    self.count.repeated += 1;
                    return;
                }
                match (id, came) {
                    (Some(id), Some(held)) => self.arrived(&sent, id, held),
                    // With its sockets.
                    (None, Some(_)) => self.count.lost += 1,
                    (Some(id), None) => panic!("{sent:?}: {id:?} came from nowhere"),
                    (None, None) => {}
                }
                self.answered(&sent, &action, &reply, &[right]);
            }
        }
    }

    fn arrived(&mut self, sent: &Sent, id: AllocationId, held: Held) {
        let peer = PeerAddr(PEERS[0].parse().unwrap());
        assert!(self.server.handle_peer(self.now.instant, held.id, peer, 12).is_err(), "the old name is good still");
        for (relayed, _) in held.relayed.v4.iter().chain(&held.relayed.v6) {
            self.sockets.insert(*relayed, id);
        }
        let held = Held { id, ticket: None, ..held };
        assert!(self.model.held.insert(sent.from, held).is_none());
        self.count.moved += 1;
    }

    /// What stands in an answer, and what the client makes of it.
    fn reads(&mut self, sent: &Sent, message: &Message<'_>, code: u16) {
        if let (401 | 438, Some(Nonce(nonce))) = (code, message.get().unwrap()) {
            let lost = self.random.one_in(10);
            let client = self.clients.iter_mut().find(|client| client.address == sent.from && !lost);
            if let Some(client) = client {
                client.nonce = Some((nonce.to_vec(), sent.from, self.now.unix));
            }
            return;
        }
        if let (437, Ask::Refresh { ticket: Some(_), .. }) = (code, &sent.ask)
            && let Some(client) = self.clients.iter_mut().find(|client| client.address == sent.from)
        {
            client.ticket = None;
        }
        if let Ask::Binding = sent.ask {
            assert_eq!(message.get::<XorMappedAddress>().unwrap().unwrap().0, sent.from.client.0);
            return;
        }
        let verified = message.verify(&key(sent.user)).unwrap();
        let told = verified.get::<MobilityTicket<'_>>().unwrap().map(|MobilityTicket(ticket)| ticket);
        match &sent.ask {
            Ask::Allocate { .. } if code == 0 => {
                self.learns(sent, told);
                let held = &self.model.held[&sent.from];
                assert_eq!(told.is_some(), held.mobile);
                let told: Vec<_> = verified.all::<XorRelayedAddress>().map(|address| address.unwrap().0).collect();
                // A repeated answer tells what was granted at first.
                let have = held.relayed.v4.into_iter().chain(held.relayed.v6).map(|(relayed, _)| relayed);
                assert!(have.into_iter().all(|relayed| told.contains(&relayed)), "{told:?}, but {held:?}");
                if let Some(ReservationToken(token)) = verified.get().unwrap() {
                    self.tokens.push(token);
                }
            }
            Ask::Refresh { lifetime, ticket, .. } if code == 0 => {
                self.learns(sent, told);
                assert_eq!(told.is_some(), ticket.is_some() && self.model.held.contains_key(&sent.from));
                let told = verified.get::<Lifetime>().unwrap().unwrap().0;
                let right = if *lifetime == Some(0) { 0 } else { granted(*lifetime).as_secs() as u32 };
                assert_eq!(told, right);
            }
            _ => {}
        }
    }

    /// A ticket is told as long as it is good, and never again.
    fn learns(&mut self, sent: &Sent, told: Option<&[u8]>) {
        let Some(told) = told.map(<[u8]>::to_vec) else { return };
        let held = self.model.held.get_mut(&sent.from).unwrap();
        match &held.ticket {
            Some(ticket) => assert_eq!(*ticket, told),
            None => {
                assert!(self.model.tickets.insert(told.clone()), "a ticket of the past: {sent:?}");
                held.ticket = Some(told.clone());
            }
        }
        let lost = self.random.one_in(10);
        if let Some(client) = self.clients.iter_mut().find(|client| client.address == sent.from && !lost) {
            (client.ticket, client.away) = (Some(told), false);
        }
    }

    /// The relay's part: some ports cannot be had.
    fn bind(&mut self, sent: &Sent, id: AllocationId, families: Families, port: PortRequest) -> (Bound, Option<Held>) {
        let Ask::Allocate { lifetime, mobile, .. } = sent.ask else { panic!("{sent:?} binds") };
        let until = self.now.instant + granted(lifetime);
        let mut bound = Bound::default();
        let mut wanted = families;
        match port {
            PortRequest::Any => {}
            PortRequest::Even { reserve_next } => {
                bound.token = reserve_next.then(|| (self.ports as u64).to_be_bytes());
            }
            PortRequest::Reserved(token) => {
                let known = self.tokens.iter().position(|t| *t == token).map(|at| self.tokens.remove(at));
                wanted = Families { v4: known.is_some(), v6: false };
            }
        }
        let mut relayed = PerFamily::default();
        for family in wanted.iter() {
            if self.random.one_in(12) {
                continue;
            }
            self.ports += 1;
            let ip = match family {
                AddressFamily::Ipv4 => IpAddr::from([198, 51, 100, 1]),
                AddressFamily::Ipv6 => "2001:db8:f::1".parse().unwrap(),
            };
            let address = SocketAddr::new(ip, self.ports);
            self.sockets.insert(address, id);
            *bound.relayed.get_mut(family) = Some(RelayedAddr(address));
            *relayed.get_mut(family) = Some((address, until));
        }
        let any = relayed.v4.is_some() || relayed.v6.is_some();
        let held = any.then(|| Held {
            id,
            user: sent.user,
            request: sent.id,
            relayed,
            permissions: HashMap::new(),
            channels: HashMap::new(),
            mobile,
            ticket: None,
        });
        (bound, held)
    }

    fn forwards(&mut self, sent: &Sent, action: &Action, right: Option<SocketAddr>) {
        match (action, right) {
            (Action::Forward { via, to, range, .. }, Some(right)) => {
                assert_eq!((*to, *via), (PeerAddr(right), self.model.held[&sent.from].id));
                assert_eq!(&sent.bytes[range.clone()], payload(&sent.id));
                self.count.forwarded += 1;
            }
            (Action::Drop(_), None) => self.count.refused_data += 1,
            _ => panic!("{sent:?}: {action:?}, not to {right:?}; {:?}", self.model.held.get(&sent.from)),
        }
    }

    fn a_peer_sends(&mut self) {
        let peer = self.random.pick(&PEERS).parse().unwrap();
        let mut sockets: Vec<_> = self.sockets.iter().map(|(a, id)| (*a, *id)).collect();
        sockets.retain(|(address, _)| address.is_ipv4() == SocketAddr::is_ipv4(&peer));
        sockets.sort_unstable();
        if sockets.is_empty() {
            return;
        }
        let (_, id) = self.random.pick(&sockets);
        let now = self.now.instant;
        let (from, held) = self.model.held.iter().find(|(_, held)| held.id == id).unwrap();
        let channel = held
            .channels
            .iter()
            .find(|(_, (p, until))| *p == peer && *until > now)
            .map(|(n, _)| ChannelNumber::new(*n).unwrap());
        let got = self.server.handle_peer(now, id, PeerAddr(peer), 12);
        if !self.model.permitted(from, peer, now) {
            assert!(got.is_err(), "{peer} has no permission, but {got:?}");
            self.count.refused_data += 1;
            return;
        }
        let (to, framing) = got.unwrap();
        assert_eq!(to, *from);
        match framing {
            Framing::Channel(number) => {
                assert_eq!(Some(number), channel);
                self.count.to_channels += 1;
            }
            Framing::Indication => {
                assert_eq!(None, channel);
                self.count.to_indications += 1;
            }
        }
    }
}

const PEERS: [&str; 10] = [
    "203.0.113.1:7000",
    "203.0.113.1:7001",
    "203.0.113.2:7000",
    "203.0.113.3:7000",
    "203.0.113.66:7000",
    "127.0.0.1:7000",
    "[2001:db8::1]:7000",
    "[2001:db8::2]:7000",
    "[2001:db8::2]:7001",
    "[::1]:7000",
];

fn ask(random: &mut Random, tokens: &[[u8; 8]]) -> Ask {
    let peer = |random: &mut Random| random.pick(&PEERS).parse().unwrap();
    let number = |random: &mut Random| 0x4000 + random.below(4) as u16;
    let lifetime = |random: &mut Random| random.pick(&[None, Some(1), Some(600), Some(700), Some(2000), Some(100_000)]);
    match random.below(100) {
        0..2 => Ask::Binding,
        2..20 => {
            let v4 = Families { v4: true, v6: false };
            let both = Families { v4: true, v6: true };
            let (families, port) = match random.below(8) {
                0 => (Families { v4: false, v6: true }, PortRequest::Any),
                1 | 2 => (both, PortRequest::Any),
                3 => (v4, PortRequest::Even { reserve_next: random.one_in(2) }),
                4 if !tokens.is_empty() => (v4, PortRequest::Reserved(random.pick(tokens))),
                _ => (v4, PortRequest::Any),
            };
            Ask::Allocate { families, port, lifetime: lifetime(random), mobile: !random.one_in(3) }
        }
        20..28 => {
            let lifetime = if random.one_in(4) { Some(0) } else { lifetime(random) };
            let family = random.pick(&[None, None, Some(AddressFamily::Ipv4), Some(AddressFamily::Ipv6)]);
            Ask::Refresh { lifetime, family, ticket: None }
        }
        28..42 => {
            let count = 1 + random.below(3);
            Ask::Permit { peers: (0..count).map(|_| peer(random)).collect() }
        }
        42..56 => Ask::Channel { number: number(random), peer: peer(random) },
        56..78 => Ask::Send { peer: peer(random) },
        _ => Ask::Data { number: number(random) },
    }
}

fn encode(sent: &Sent, nonce: &[u8]) -> Vec<u8> {
    let mut buffer = [0; 1000];
    let (class, method) = match sent.ask {
        Ask::Data { number } => {
            let number = ChannelNumber::new(number).unwrap();
            return [&ChannelData::header(number, 12)[..], payload(&sent.id)].concat();
        }
        Ask::Send { .. } => (Class::Indication, Method::SEND),
        Ask::Binding => (Class::Request, Method::BINDING),
        Ask::Allocate { .. } => (Class::Request, Method::ALLOCATE),
        Ask::Refresh { .. } => (Class::Request, Method::REFRESH),
        Ask::Permit { .. } => (Class::Request, Method::CREATE_PERMISSION),
        Ask::Channel { .. } => (Class::Request, Method::CHANNEL_BIND),
    };
    let mut w = Writer::new(&mut buffer, class, method, sent.id).unwrap();
    match &sent.ask {
        Ask::Binding | Ask::Data { .. } => {}
        Ask::Allocate { families, port, lifetime, mobile } => {
            put(&mut w, &RequestedTransport::UDP);
            match (families.v4, families.v6) {
                (true, true) => put(&mut w, &AdditionalAddressFamily(AddressFamily::Ipv6)),
                (false, _) => put(&mut w, &RequestedAddressFamily(AddressFamily::Ipv6)),
                (true, false) => {}
            }
            match *port {
                PortRequest::Any => {}
                PortRequest::Even { reserve_next } => put(&mut w, &EvenPort { reserve_next }),
                PortRequest::Reserved(token) => put(&mut w, &ReservationToken(token)),
            }
            lifetime.iter().for_each(|seconds| put(&mut w, &Lifetime(*seconds)));
            if *mobile {
                put(&mut w, &MobilityTicket(&[]));
            }
        }
        Ask::Refresh { lifetime, family, ticket } => {
            ticket.iter().for_each(|ticket| put(&mut w, &MobilityTicket(ticket)));
            lifetime.iter().for_each(|seconds| put(&mut w, &Lifetime(*seconds)));
            family.iter().for_each(|family| put(&mut w, &RequestedAddressFamily(*family)));
        }
        Ask::Permit { peers } => peers.iter().for_each(|peer| put(&mut w, &XorPeerAddress(*peer))),
        Ask::Channel { number, peer } => {
            put(&mut w, &ChannelNumber::new(*number).unwrap());
            put(&mut w, &XorPeerAddress(*peer));
        }
        Ask::Send { peer } => {
            put(&mut w, &XorPeerAddress(*peer));
            put(&mut w, &Data(payload(&sent.id)));
            return w.finish().to_vec();
        }
    }
    if sent.signed == Signed::No || matches!(sent.ask, Ask::Binding) {
        return w.finish().to_vec();
    }
    put(&mut w, &Username(USERS[sent.user]));
    put(&mut w, &Realm(REALM));
    put(&mut w, &Nonce(nonce));
    let key = if sent.signed == Signed::Well { key(sent.user) } else { HmacKey::new(b"wrong") };
    w.integrity_sha1(&key).unwrap().finish().to_vec()
}

fn put<'a>(w: &mut Writer<'_>, attribute: &impl Attribute<'a>) {
    w.attribute(attribute).unwrap();
}

/// Each datagram has its own.
fn payload(id: &TransactionId) -> &[u8] {
    &id.0
}

fn key(user: usize) -> HmacKey {
    HmacKey::from(&LongTermKey::md5(USERS[user], REALM, "secret"))
}

fn client_address(n: u64) -> FiveTuple {
    let client = SocketAddr::new(IpAddr::from([192, 0, 2, 1 + n as u8 / 4]), 40_000 + n as u16);
    FiveTuple::udp(ClientAddr(client), "192.0.2.250:3478".parse().unwrap())
}

#[test]
fn server_agrees_with_the_model() {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse::<u64>().unwrap());
    let steps = number("BACKWATER_STEPS").unwrap_or(40_000);
    let fixed = number("BACKWATER_SEED");
    let first = fixed.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    let worlds = if fixed.is_some() { 1 } else { steps.div_ceil(STEPS as u64) };
    let mut total = Count::default();
    for seed in SEEDS.iter().copied().chain(first..first + worlds) {
        let mut world = World::new(seed);
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..STEPS).for_each(|_| world.step());
        }));
        if failed.is_err() {
            panic!("BACKWATER_SEED={seed}");
        }
        total.add(&world.count);
    }
    println!("{} steps from seed {first}: {total:?}", worlds * STEPS as u64);
    // A simulation in which something never happens proves nothing about it.
    if fixed.is_none() {
        for code in [0, 400, 401, 403, 437, 438, 441, 443, 486, 508] {
            assert!(total.codes.contains_key(&code), "{code} was never answered: {total:?}");
        }
        let Count {
            forwarded,
            to_channels,
            to_indications,
            refused_data,
            expired,
            repeated,
            overtaken,
            moved,
            unmoved,
            ..
        } = total;
        let least =
            [forwarded, to_channels, to_indications, refused_data, expired, repeated, overtaken, moved, unmoved];
        assert!(least.into_iter().min() > Some(0), "something never happened");
        assert!(total.lost > 0 || steps < 1_000_000, "no move came to an address that was taken");
    }
}

impl Count {
    fn add(&mut self, other: &Self) {
        other.codes.iter().for_each(|(code, n)| *self.codes.entry(*code).or_default() += n);
        self.forwarded += other.forwarded;
        self.to_channels += other.to_channels;
        self.to_indications += other.to_indications;
        self.refused_data += other.refused_data;
        self.expired += other.expired;
        self.repeated += other.repeated;
        self.overtaken += other.overtaken;
        self.moved += other.moved;
        self.unmoved += other.unmoved;
        self.lost += other.lost;
    }
}
