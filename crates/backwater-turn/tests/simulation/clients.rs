//! The client against the server, both real, over a bad network and through NATs: datagrams are lost, doubled, late and out of
//! order, NATs give clients other addresses, the server restarts, hosts sleep, clocks jump. Then the network gets well, and each
//! client has to have its channels back, and data in both directions, within [`RECOVERY`].
//!
//! While nothing has happened behind a client's back, each datagram that it sends has to have its permission at the server.

use std::{collections::HashSet, ops::Range};

use backwater_turn::client::{self, Client, Credential, Event, Input, SendError};

use super::*;

/// The longest time until data flows again. The longest waits add up to it: a request that was sent for the sixth time as the
/// network got well (96 s), half of a permission's lifetime until a restart of the server shows (150 s), and the pause after a
/// short-lived allocation (75 s), or after an address in use (120 s).
const RECOVERY: Duration = Duration::from_secs(450);

/// Steps of a world before its network gets well.
const TROUBLE: usize = 1500;

/// A round of [`World::until_data_flows`].
const ROUND: Duration = Duration::from_millis(500);

/// The longest that a grant, or a request in flight, lasts.
const REMEMBERED: Duration = Duration::from_secs(700);

const SERVER: &str = "192.0.2.250:3478";

/// Worlds that once failed.
const SEEDS: &[u64] = &[
    // A NAT gave a client an address back at which the server still had an earlier allocation of the client's.
    1795792888098126519,
    // The same, just after the allocation had moved, so that the client did not know from where the server saw it.
    1795798902883348684,
];

struct Host {
    client: Client,
    peers: Vec<(SocketAddr, ChannelNumber)>,
    /// Its address behind the NAT.
    mapped: SocketAddr,
    /// How far its clock is behind: it stands while the host sleeps.
    behind: Duration,
    /// Until when it sleeps.
    asleep: Option<Instant>,
    relayed: Vec<SocketAddr>,
    /// Nothing has happened that the client may not know of.
    knows: bool,
    /// From when on what it takes for granted was granted after its last sleep.
    trusted_after: Instant,
    /// What has arrived from peers.
    heard: HashSet<SocketAddr>,
}

enum Flying {
    ToServer(SocketAddr, Vec<u8>),
    ToClient(SocketAddr, Vec<u8>),
}

struct World {
    random: Random,
    now: Now,
    server: Server,
    restarts: u8,
    hosts: Vec<Host>,
    flying: BinaryHeap<Reverse<(Instant, usize)>>,
    datagrams: HashMap<usize, Flying>,
    next: usize,
    sockets: HashMap<AllocationId, Vec<SocketAddr>>,
    addresses: u16,
    /// Addresses that clients have left, and when.
    left: VecDeque<(SocketAddr, Instant)>,
    /// Until when nothing arrives.
    silent_until: Instant,
    well: bool,
    count: Count,
}

#[derive(Debug, Default)]
struct Count {
    sent: usize,
    refused: usize,
    forwarded: usize,
    received: usize,
    events: HashMap<&'static str, usize>,
    slowest: Duration,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let now = Now { instant: Instant::now(), unix: Duration::from_secs(1_800_000_000) };
        let mut world = Self {
            server: server(now, 0),
            now,
            restarts: 0,
            hosts: Vec::new(),
            flying: BinaryHeap::new(),
            datagrams: HashMap::new(),
            next: 0,
            sockets: HashMap::new(),
            addresses: 0,
            left: VecDeque::new(),
            silent_until: now.instant,
            well: false,
            count: Count::default(),
            random: Random(seed ^ 1),
        };
        for n in 0..1 + random.below(4) {
            let credential = Credential::new(USERS[random.below(3) as usize], "secret").unwrap();
            let mut config = client::Config::new(SERVER.parse().unwrap(), credential, [n as u8; 64]);
            config.mobility = random.one_in(2);
            config.hide_username = random.one_in(2);
            config.families = Families { v4: true, v6: random.one_in(3) };
            let mut client = Client::new(now.instant, config);
            let mut peers = Vec::new();
            for n in 0..1 + random.below(3) {
                let peer = SocketAddr::from(([203, 0, 113, n as u8], 7000 + n as u16));
                peers.push((peer, client.bind(now.instant, peer).unwrap()));
            }
            let mapped = world.fresh_address();
            world.hosts.push(Host {
                client,
                peers,
                mapped,
                behind: Duration::ZERO,
                asleep: None,
                relayed: Vec::new(),
                knows: true,
                trusted_after: now.instant,
                heard: HashSet::new(),
            });
        }
        world
    }

    fn fresh_address(&mut self) -> SocketAddr {
        self.addresses += 1;
        SocketAddr::from(([192, 0, 2, (self.addresses >> 8) as u8], 1024 + self.addresses))
    }

    /// The NAT gives a host another address, sometimes one that another host has left.
    fn rebind(&mut self, host: usize) {
        // Nothing of the other host's is on its way any more.
        let is_old = |(_, at): &(_, Instant)| *at + Duration::from_secs(60) < self.now.instant;
        let old = self.left.front().copied().filter(is_old);
        let mapped = match old {
            Some((mapped, _)) if self.random.one_in(4) => {
                self.left.pop_front();
                mapped
            }
            _ => self.fresh_address(),
        };
        let before = std::mem::replace(&mut self.hosts[host].mapped, mapped);
        self.left.push_back((before, self.now.instant));
    }

    /// Something happens, good or bad.
    fn step(&mut self) {
        let host = self.random.below(self.hosts.len() as u64) as usize;
        match self.random.below(1000) {
            0..4 => {
                self.rebind(host);
                self.hosts[host].knows = false;
            }
            4..6 => {
                // The host knows that it has another address.
                self.rebind(host);
                let now = self.local(host);
                self.hosts[host].client.rebound(now);
                self.drain(host);
            }
            6..8 => {
                self.restarts += 1;
                // A relay has another key each time.
                self.server = server(self.now, self.restarts);
                self.sockets.clear();
                // What the old server has sent is lost.
                self.datagrams.retain(|_, datagram| matches!(datagram, Flying::ToServer(..)));
                self.hosts.iter_mut().for_each(|host| host.knows = false);
            }
            8 => {
                let until = self.now.instant + Duration::from_secs(self.random.below(900));
                let host = &mut self.hosts[host];
                host.asleep.get_or_insert(until);
                host.knows = false;
                host.trusted_after = until + REMEMBERED;
            }
            9 => {
                let seconds = Duration::from_secs(self.random.below(7200));
                let back = self.random.one_in(2);
                self.now.unix = if back { self.now.unix.saturating_sub(seconds) } else { self.now.unix + seconds };
            }
            10..14 => {
                let time = Duration::from_secs(self.random.below(200));
                self.pass(time);
            }
            14 => self.silent_until = self.now.instant + Duration::from_secs(self.random.below(900)),
            15..17 => {
                let now = self.local(host);
                self.hosts[host].client.refresh(now);
                self.drain(host);
            }
            17..300 => drop(self.send(host)),
            300..500 => self.peer_sends(host),
            _ => self.pass_until_next(),
        }
    }

    fn local(&self, host: usize) -> Instant {
        self.now.instant - self.hosts[host].behind
    }

    fn pass_until_next(&mut self) {
        let timers = (0..self.hosts.len()).filter_map(|n| {
            let host = &self.hosts[n];
            host.asleep.or_else(|| host.client.poll_timeout().map(|at| at + host.behind))
        });
        let flying = self.flying.peek().map(|Reverse((at, _))| *at);
        if let Some(at) = timers.chain(flying).min() {
            self.pass(at.saturating_duration_since(self.now.instant));
        }
    }

    /// Time passes, up to the end of which everything happens at its time.
    fn pass(&mut self, time: Duration) {
        let end = self.now.instant + time;
        for turn in 0.. {
            assert!(turn < 200_000, "the clock stands");
            for n in 0..self.hosts.len() {
                self.wake(n);
            }
            let timers = self
                .hosts
                .iter()
                .filter_map(|host| host.asleep.or_else(|| host.client.poll_timeout().map(|at| at + host.behind)));
            let flying = self.flying.peek().map(|Reverse((at, _))| *at);
            let next = timers.chain(flying).min().filter(|at| *at <= end).unwrap_or(end);
            let passed = next.saturating_duration_since(self.now.instant);
            for host in self.hosts.iter_mut().filter(|host| host.asleep.is_some()) {
                host.behind += passed;
            }
            self.now.instant += passed;
            self.now.unix += passed;
            while let Some((id, _)) = self.server.expire(self.now.instant) {
                self.sockets.remove(&id);
            }
            let mut busy = false;
            while let Some(&Reverse((at, n))) = self.flying.peek()
                && at <= self.now.instant
            {
                self.flying.pop();
                self.arrives(n);
                busy = true;
            }
            for n in 0..self.hosts.len() {
                let now = self.local(n);
                let host = &mut self.hosts[n];
                if host.asleep.is_none() && host.client.poll_timeout().is_some_and(|at| at <= now) {
                    host.client.handle_timeout(now);
                    self.drain(n);
                    let timer = self.hosts[n].client.poll_timeout();
                    assert!(timer.is_some_and(|at| at > now), "a timer in the past, or none");
                    busy = true;
                }
            }
            if self.now.instant >= end && !busy {
                return;
            }
        }
    }

    fn wake(&mut self, n: usize) {
        let now = self.now.instant;
        if self.hosts[n].asleep.is_some_and(|until| until <= now) {
            self.hosts[n].asleep = None;
            // Some programs are told, others are not.
            if self.random.one_in(2) {
                let now = self.local(n);
                self.hosts[n].client.refresh(now);
            }
            self.drain(n);
        }
    }

    /// Puts a datagram on its way: not, once or twice, soon or late.
    fn fly(&mut self, make: impl Fn() -> Flying) {
        let copies = match self.random.below(20) {
            _ if self.well => 1,
            _ if self.now.instant < self.silent_until => 0,
            0..4 => 0,
            4..6 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let late = match self.random.below(100) {
                _ if self.well => 20,
                // Not as late as a server forgets what it has answered.
                0 => self.random.below(30_000),
                _ => self.random.below(300),
            };
            self.flying.push(Reverse((self.now.instant + Duration::from_millis(late), self.next)));
            self.datagrams.insert(self.next, make());
            self.next += 1;
        }
    }

    fn drain(&mut self, n: usize) {
        let now = self.local(n);
        let mut sent = Vec::new();
        let host = &mut self.hosts[n];
        while let Some(transmit) = host.client.poll_transmit(now) {
            sent.push(transmit.bytes.to_vec());
            assert!(sent.len() <= 20, "requests without end");
        }
        let (from, mut in_use) = (host.mapped, false);
        while let Some(event) = host.client.poll_event() {
            let name = match event {
                Event::Allocated(allocated) => {
                    let relayed = allocated.relayed;
                    host.relayed = relayed.v4.into_iter().chain(relayed.v6).collect();
                    host.knows = self.now.instant >= host.trusted_after;
                    "allocated"
                }
                Event::Moved => {
                    host.knows = self.now.instant >= host.trusted_after;
                    "moved"
                }
                Event::Bound { .. } => "bound",
                Event::Lost(_) => "lost",
                Event::NoResponse(_) => "no response",
                Event::Refused { .. } => "refused",
                Event::AddressInUse => {
                    in_use = true;
                    "address in use"
                }
                other => panic!("{other:?}"),
            };
            *self.count.events.entry(name).or_default() += 1;
        }
        for bytes in sent {
            self.fly(|| Flying::ToServer(from, bytes.clone()));
        }
        // A program may bind another port, or wait: for up to the lifetime of somebody else's allocation.
        if in_use && (self.well || self.random.one_in(2)) {
            self.rebind(n);
            self.hosts[n].client.rebound(now);
            self.drain(n);
        }
    }

    fn arrives(&mut self, n: usize) {
        match self.datagrams.remove(&n) {
            None => {}
            Some(Flying::ToServer(from, bytes)) => self.serve(from, &bytes),
            Some(Flying::ToClient(to, bytes)) => {
                // The NAT has forgotten the address, or the host sleeps.
                let found = self.hosts.iter().position(|host| host.mapped == to && host.asleep.is_none());
                let Some(n) = found else { return };
                let now = self.local(n);
                let input = self.hosts[n].client.handle_input(now, SERVER.parse().unwrap(), &bytes);
                if let Input::Data { peer, payload } = input {
                    self.received(n, peer, &bytes, payload);
                }
                self.drain(n);
            }
        }
    }

    fn received(&mut self, n: usize, peer: SocketAddr, bytes: &[u8], payload: Range<usize>) {
        assert_eq!(&bytes[payload], peer.to_string().as_bytes());
        self.count.received += 1;
        self.hosts[n].heard.insert(peer);
    }

    /// The relay's part.
    fn serve(&mut self, from: SocketAddr, bytes: &[u8]) {
        let from = five_tuple(from);
        let mut reply = [0; MAX_REPLY];
        let mut action = self.server.handle_client(self.now, from, bytes, &mut reply);
        if let Action::Bind(bind) = action {
            let mut bound = Bound::default();
            for family in bind.families.iter() {
                self.addresses += 1;
                let ip = match family {
                    AddressFamily::Ipv4 => IpAddr::from([198, 51, 100, 1]),
                    AddressFamily::Ipv6 => "2001:db8:f::1".parse().unwrap(),
                };
                *bound.relayed.get_mut(family) = Some(RelayedAddr(SocketAddr::new(ip, 1024 + self.addresses)));
            }
            let relayed = bound.relayed.v4.into_iter().chain(bound.relayed.v6).map(|address| address.0);
            self.sockets.insert(bind.id, relayed.collect());
            action = self.server.bound(self.now.instant, bind.id, bound, &mut reply);
        }
        if let Action::Handover(request) = action {
            let detached = self.server.detach(&request);
            let sockets = if detached.is_ok() { self.sockets.remove(&request.id()) } else { None };
            let (id, next) = self.server.attach(self.now.instant, &request, detached, &mut reply);
            if let (Some(id), Some(sockets)) = (id, sockets) {
                self.sockets.insert(id, sockets);
            }
            action = next;
        }
        let len = match action {
            Action::Reply(len) | Action::Forbid(len, ..) | Action::OverQuota(len, _) => Some(len),
            Action::Unauthenticated(failure) => failure.reply,
            Action::Unbind(id, _, len) => {
                self.sockets.remove(&id);
                Some(len)
            }
            Action::Forward { .. } | Action::Drop(_) | Action::Bind(_) | Action::Handover(_) => None,
        };
        if let Some(len) = len {
            let (to, bytes) = (from.client.0, reply[..len].to_vec());
            self.fly(|| Flying::ToClient(to, bytes.clone()));
        }
    }

    /// A client sends to each of its peers.
    fn send(&mut self, n: usize) -> bool {
        let now = self.local(n);
        if self.hosts[n].asleep.is_some() {
            return false;
        }
        let mut all = true;
        for (peer, channel) in self.hosts[n].peers.clone() {
            let mut datagram = *b"????data";
            let host = &mut self.hosts[n];
            match host.client.send(now, channel, &mut datagram) {
                Ok(()) => {}
                Err(SendError::NotGranted | SendError::NoAllocation) => {
                    self.count.refused += 1;
                    all = false;
                    continue;
                }
                Err(other) => panic!("{other}"),
            }
            self.count.sent += 1;
            let (mapped, knows) = (host.mapped, host.knows);
            let action = self.server.handle_client(self.now, five_tuple(mapped), &datagram, &mut [0; MAX_REPLY]);
            let forwarded = matches!(action, Action::Forward { to, .. } if to == PeerAddr(peer));
            self.count.forwarded += usize::from(forwarded);
            assert!(forwarded || !knows, "data without a permission: {action:?}");
            all &= forwarded;
        }
        all
    }

    /// The peers of a client send to its relayed address.
    fn peer_sends(&mut self, n: usize) {
        for (peer, _) in self.hosts[n].peers.clone() {
            let relayed = &self.hosts[n].relayed;
            let found = self.sockets.iter().find(|(_, all)| all.iter().any(|a| relayed.contains(a) && a.is_ipv4()));
            let Some((&id, _)) = found else { continue };
            let text = peer.to_string();
            let got = self.server.handle_peer(self.now.instant, id, PeerAddr(peer), text.len());
            let Ok((to, framing)) = got else { continue };
            let bytes = match framing {
                Framing::Channel(channel) => {
                    [&ChannelData::header(channel, text.len() as u16)[..], text.as_bytes()].concat()
                }
                Framing::Indication => {
                    let prefix = self.server.data_indication(PeerAddr(peer), text.len()).unwrap();
                    [prefix.as_bytes(), text.as_bytes(), prefix.padding()].concat()
                }
            };
            self.fly(|| Flying::ToClient(to.client.0, bytes.clone()));
        }
    }

    /// The network is well from now on. Returns how long it takes until all data flows.
    fn until_data_flows(&mut self) -> Duration {
        self.well = true;
        let start = self.now.instant;
        let now = self.now.instant;
        for host in &mut self.hosts {
            host.asleep = host.asleep.map(|_| now);
            host.heard.clear();
        }
        loop {
            self.pass(ROUND);
            let mut flows = true;
            for n in 0..self.hosts.len() {
                flows &= self.send(n);
                self.peer_sends(n);
                let Host { heard, peers, .. } = &self.hosts[n];
                flows &= heard.len() == peers.len();
            }
            let took = self.now.instant - start;
            if flows {
                return took;
            }
            let states: Vec<_> = self.hosts.iter().map(|h| (h.client.is_allocated(), h.heard.len())).collect();
            assert!(took <= RECOVERY, "no data after {took:?}: {states:?}");
        }
    }
}

fn server(now: Now, key: u8) -> Server {
    let mut credentials = Credentials::new(REALM).unwrap();
    for user in USERS {
        credentials.add_user(user, "secret").unwrap();
    }
    Server::new(Config {
        credentials: credentials.into(),
        peers: PeerRules { allow: vec!["203.0.113.0/24".parse().unwrap()], ..PeerRules::default() },
        families: Families { v4: true, v6: true },
        max_lifetime: Duration::from_secs(MAX_LIFETIME.into()),
        quotas: Quotas::new(Limits::default(), Limits::default(), now.instant),
        reply_limit: None,
        failure_limit: None,
        directory: None,
        relayed_ports: Default::default(),
        nonce_key: [key; 64],
        thread: 0,
    })
}

fn five_tuple(client: SocketAddr) -> FiveTuple {
    FiveTuple::udp(ClientAddr(client), SERVER.parse().unwrap())
}

#[test]
fn client_recovers_from_whatever_network_and_server_do() {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse::<u64>().unwrap());
    let steps = number("BACKWATER_STEPS").unwrap_or(40_000);
    let fixed = number("BACKWATER_SEED");
    let first = fixed.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    let worlds = if fixed.is_some() { 1 } else { steps.div_ceil(TROUBLE as u64) };
    let mut total = Count::default();
    for seed in SEEDS.iter().copied().chain(first..first + worlds) {
        let mut world = World::new(seed);
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..world.hosts.len()).for_each(|n| world.drain(n));
            (0..TROUBLE).for_each(|_| world.step());
            world.until_data_flows()
        }));
        let Ok(took) = failed else { panic!("BACKWATER_SEED={seed}") };
        total.add(&world.count);
        total.slowest = total.slowest.max(took);
    }
    println!("{} steps from seed {first}: {total:?}", worlds * TROUBLE as u64);
    if fixed.is_none() {
        for event in ["allocated", "moved", "bound", "lost", "no response"] {
            assert!(total.events.contains_key(event), "{event} never happened: {total:?}");
        }
        assert!(total.events.contains_key("address in use") || steps < 1_000_000, "an address was always free");
        assert!([total.sent, total.refused, total.forwarded, total.received].into_iter().min() > Some(0), "{total:?}");
    }
}

impl Count {
    fn add(&mut self, other: &Self) {
        other.events.iter().for_each(|(event, n)| *self.events.entry(event).or_default() += n);
        self.sent += other.sent;
        self.refused += other.refused;
        self.forwarded += other.forwarded;
        self.received += other.received;
    }
}
