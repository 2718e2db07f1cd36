//! A node: an engine, and what stands for its sockets and its device.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use backwater_tunnel::{
    config::Config,
    engine::{Engine, Event, Offload, Outcome, Received},
};
use backwater_udp::RecvDatagram;

use super::{
    model::Model,
    network::{Datagram, Network},
    random::Random,
};

/// The time of a world, which begins with 0. All have this time, but for nodes that were suspended.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    wall: SystemTime,
    now: Duration,
}

impl Clock {
    fn new() -> Self {
        Self { start: Instant::now(), wall: SystemTime::now(), now: Duration::ZERO }
    }

    /// The time since the start.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Goes to a later time.
    pub fn set(&mut self, now: Duration) {
        assert!(now >= self.now, "time does not go back");
        self.now = now;
    }
}

/// What all nodes share.
pub struct World {
    /// The time.
    pub clock: Clock,
    /// The only source of chance.
    pub random: Random,
    /// The network.
    pub network: Network,
    /// Who may hear what.
    pub model: Model,
}

impl World {
    /// A world at its beginning.
    pub fn new(random: Random) -> Self {
        Self { clock: Clock::new(), random, network: Network::new(), model: Model::default() }
    }

    /// Lets time pass, and each node do what is due. Returns the datagrams that have arrived.
    pub fn pass(&mut self, nodes: &mut [Node], time: Duration) -> Vec<Datagram> {
        let until = self.clock.now() + time;
        let mut arrived = Vec::new();
        loop {
            let mut next = self.network.next().unwrap_or(Duration::MAX);
            for node in &*nodes {
                next = next.min(node.next(self));
            }
            if next > until {
                break;
            }
            // What was due before the clock jumped is due now.
            self.clock.set(next.max(self.clock.now()));
            while let Some(datagram) = self.network.arrive(self.clock.now()) {
                match nodes.iter_mut().find(|node| node.address == datagram.to) {
                    Some(node) => {
                        node.receive(self, &datagram);
                        arrived.push(datagram);
                    }
                    None => self.network.count.unreachable += 1,
                }
            }
            for node in &mut *nodes {
                if node.next(self) <= self.clock.now() {
                    node.run(self);
                }
            }
        }
        self.clock.set(until);
        arrived
    }
}

/// Datagrams that the socket had no room for.
struct Held {
    peer: usize,
    is_v6: bool,
    datagrams: Vec<Vec<u8>>,
    until: Duration,
}

/// An engine, with a socket that may be full, and a host.
pub struct Node {
    /// Its number, and its hosts'.
    pub number: usize,
    /// Where it is reached. NAT may change it.
    pub address: SocketAddr,
    /// One batch in so many is refused, for up to two seconds; 0: none.
    pub is_full: u64,
    /// Datagrams of data that the engine has made.
    pub sealed: u64,
    /// The engine.
    pub engine: Engine,
    config: Config,
    held: Vec<Held>,
    /// Its clock did not go on for so long.
    suspended_for: Duration,
    suspended_until: Option<Duration>,
    last_suspend: Duration,
}

impl Node {
    /// A node, as it is started.
    pub fn new(world: &mut World, number: usize, address: SocketAddr, config: Config) -> Self {
        let mut node = Self {
            number,
            address,
            is_full: 0,
            sealed: 0,
            engine: engine(world.clock.start + world.clock.now, world.clock.wall + world.clock.now, &config),
            config,
            held: Vec::new(),
            suspended_for: Duration::ZERO,
            suspended_until: None,
            last_suspend: Duration::ZERO,
        };
        node.engine.start(node.now(world));
        node.drain(world);
        node
    }

    /// Ends it and starts it again: it has forgotten its sessions. Its wall clock is wrong by so many seconds.
    pub fn restart(&mut self, world: &mut World, wrong_by: i64) {
        let wall = world.clock.wall + world.clock.now;
        let error = Duration::from_secs(wrong_by.unsigned_abs());
        let wall = if wrong_by < 0 { wall - error } else { wall + error };
        self.engine = engine(self.now(world), wall, &self.config);
        (self.sealed, self.held) = (0, Vec::new());
        self.engine.start(self.now(world));
        self.drain(world);
    }

    /// Has it sleep: what arrives is lost, and its monotonic clock stands still.
    pub fn suspend(&mut self, world: &World, time: Duration) {
        if self.suspended_until.is_none() {
            self.suspended_for += time;
            self.last_suspend = time;
            self.suspended_until = Some(world.clock.now() + time);
        }
    }

    /// Whether it sleeps.
    pub fn is_suspended(&self) -> bool {
        self.suspended_until.is_some()
    }

    /// Its monotonic clock.
    pub fn now(&self, world: &World) -> Instant {
        let asleep = self.suspended_until.map_or(Duration::ZERO, |until| until.saturating_sub(world.clock.now()));
        (world.clock.start + world.clock.now) + asleep - self.suspended_for
    }

    /// When it is to be driven next.
    pub fn next(&self, world: &World) -> Duration {
        if let Some(until) = self.suspended_until {
            return until;
        }
        let timeout = self.engine.poll_timeout().saturating_duration_since(self.now(world));
        let held = self.held.iter().map(|held| held.until.saturating_sub(world.clock.now())).min();
        world.clock.now() + held.map_or(timeout, |held| held.min(timeout))
    }

    /// Does what is due.
    pub fn run(&mut self, world: &mut World) {
        if let Some(until) = self.suspended_until {
            if world.clock.now() < until {
                return;
            }
            self.suspended_until = None;
            let now = self.now(world);
            self.engine.handle_timeout(now);
            // Its sockets are new.
            self.drop_held();
            self.engine.handle_closed_sockets();
            self.engine.handle_new_network(now, Some(self.last_suspend));
        } else if self.engine.poll_timeout() <= self.now(world) {
            assert!(self.engine.handle_timeout(self.now(world)), "a timeout that is due does something");
        }
        self.release(world);
        self.drain(world);
    }

    /// A host sends a packet of so many segments. Returns whether the engine had room to read it.
    pub fn send(&mut self, world: &mut World, raw: &[u8], segments: usize) -> bool {
        let now = self.now(world);
        if self.is_suspended() || !self.engine.has_room(now) {
            return false;
        }
        self.engine.handle_timeout(now);
        self.drain(world);
        let before = (self.waited_or_refused(), self.peers().map(|peer| peer.queued).sum::<usize>(), self.sealed);
        self.engine.packet_buffer()[..raw.len()].copy_from_slice(raw);
        self.engine.handle_packet(now, raw.len());
        self.transmit(world);
        if world.random.one_in(2) {
            // Without it the batch stays open, as while there are more packets.
            self.drain(world);
            if before.1 == 0 && before.0 == self.waited_or_refused() {
                assert_eq!(self.sealed - before.2, segments as u64, "each segment is sent");
            }
        }
        true
    }

    /// Packets that were put into a queue, or refused.
    fn waited_or_refused(&self) -> u64 {
        let counters = self.engine.counters();
        let refused = counters.no_peer + counters.no_endpoint + counters.too_big + counters.device_malformed;
        refused + self.peers().map(|peer| peer.queue.enqueued).sum::<u64>()
    }

    /// A datagram arrives.
    pub fn receive(&mut self, world: &mut World, datagram: &Datagram) {
        if self.is_suspended() {
            world.network.count.unreachable += 1;
            return;
        }
        world.network.count.arrived += 1;
        self.engine.handle_timeout(self.now(world));
        self.drain(world);
        let before = self.refused();
        let delivered = world.model.count.delivered;
        let payload = &datagram.bytes[..];
        let recv = RecvDatagram { source: datagram.from, local_ip: None, ecn: None, payload };
        assert!(self.engine.has_space(payload.len()), "the device takes everything");
        let now = self.now(world);
        let received = self.engine.handle_datagram(now, recv);
        self.drain(world);
        let (refused, delivered) = (self.refused() - before, world.model.count.delivered - delivered);
        if payload.first() == Some(&4) {
            // Data: a packet that is delivered, a keepalive, or one more that is counted.
            let is_keepalive = payload.len() == 32 && received == Received::Accepted;
            assert_eq!(
                delivered + refused + u64::from(is_keepalive),
                1,
                "each datagram is accounted for: {received:?}"
            );
        } else {
            assert_eq!(delivered, 0, "only data is delivered");
        }
        if !datagram.is_genuine {
            assert_eq!(delivered, 0, "what is damaged is not delivered");
        }
    }

    /// Tells the engine that its socket has sent a datagram that was too long for the path.
    fn learn(&mut self, world: &World, to: SocketAddr, mtu: u32, bytes: &[u8]) {
        self.engine.handle_icmp_mtu(self.now(world), to, mtu, &bytes[..bytes.len().min(64)]);
    }

    /// Takes everything that the engine wants done.
    pub fn drain(&mut self, world: &mut World) {
        let now = self.now(world);
        while let Some(event) = self.engine.poll_event(now) {
            if let Event::NewRoute { peer, route } = event {
                let is_v6 = route.destination().is_ipv6();
                // The engine has counted them as dropped.
                self.held.retain(|held| held.peer != peer || held.is_v6 == is_v6);
                self.engine.set_route_mtu(peer, Some(1500));
            }
        }
        while let Some(message) = self.engine.poll_message() {
            let datagram = Datagram {
                from: self.address,
                to: message.destination,
                bytes: message.bytes.to_vec(),
                is_genuine: true,
            };
            world.network.send(world.clock.now(), &mut world.random, datagram);
        }
        loop {
            self.engine.drain_queues();
            self.transmit(world);
            if !self.engine.is_ready() {
                break;
            }
        }
        self.engine.flush();
        self.transmit(world);
        let (model, number) = (&mut world.model, self.number);
        self.engine.poll_device(|slices| {
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            model.delivered(number, &bytes);
            Ok(bytes.len())
        });
    }

    fn transmit(&mut self, world: &mut World) {
        let now = self.now(world);
        while let Some(transmit) = self.engine.poll_transmit(now) {
            let (peer, to) = (transmit.peer, transmit.route.destination());
            let mut datagrams: Vec<Vec<u8>> =
                transmit.bytes.chunks(transmit.segment_size).map(<[u8]>::to_vec).collect();
            self.sealed += datagrams.len() as u64;
            let takes = if self.held.iter().any(|held| held.peer == peer) {
                0
            } else if world.random.one_in(self.is_full) {
                world.random.below(datagrams.len() as u64 + 1) as usize
            } else {
                datagrams.len()
            };
            let mut rest = datagrams.split_off(takes);
            let dropped = if world.random.one_in(if self.is_full > 0 { 20 } else { 0 }) { rest.len() } else { 0 };
            rest.truncate(rest.len() - dropped);
            let bytes = datagrams.iter().map(Vec::len).sum();
            self.engine.handle_sent(now, Outcome { sent: takes, dropped, bytes, source_is_gone: false });
            if !rest.is_empty() {
                let until = world.clock.now() + Duration::from_micros(world.random.below(2_000_000));
                self.held.push(Held { peer, is_v6: to.is_ipv6(), datagrams: rest, until });
            }
            self.put(world, to, datagrams);
        }
    }

    /// The socket has room for what it held, or drops it.
    fn release(&mut self, world: &mut World) {
        let now = world.clock.now();
        let (due, held) = std::mem::take(&mut self.held).into_iter().partition(|held| held.until <= now);
        self.held = held;
        let due: Vec<Held> = due;
        for Held { peer, datagrams, .. } in due {
            let is_dropped = world.random.one_in(10);
            let bytes = datagrams.iter().map(Vec::len).sum();
            let outcome = if is_dropped {
                Outcome { dropped: datagrams.len(), ..Outcome::default() }
            } else {
                Outcome { sent: datagrams.len(), bytes, ..Outcome::default() }
            };
            self.engine.handle_held(self.now(world), peer, outcome);
            if let Some(route) = self.engine.peer(peer).and_then(|peer| peer.route).filter(|_| !is_dropped) {
                self.put(world, route.destination(), datagrams);
            }
        }
    }

    fn drop_held(&mut self) {
        self.held.clear();
    }

    fn put(&mut self, world: &mut World, to: SocketAddr, datagrams: Vec<Vec<u8>>) {
        for bytes in datagrams {
            let datagram = Datagram { from: self.address, to, bytes: bytes.clone(), is_genuine: true };
            // Not every router says so.
            if let Some(mtu) = world.network.send(world.clock.now(), &mut world.random, datagram)
                && world.random.one_in(2)
            {
                self.learn(world, to, mtu, &bytes);
            }
        }
    }

    /// Datagrams of data that were refused, and counted.
    fn refused(&self) -> u64 {
        let of_peers = self.peers().map(|peer| {
            peer.counters.replayed + peer.counters.invalid + peer.counters.source_not_allowed + peer.counters.congested
        });
        self.engine.counters().strange + of_peers.sum::<u64>()
    }

    fn peers(&self) -> impl Iterator<Item = backwater_tunnel::engine::PeerState> {
        (0..self.config.peers.len()).filter_map(|peer| self.engine.peer(peer))
    }

    /// What went in has come out, waits, or is counted. `is_simple`: no packet was a train.
    pub fn check(&mut self, world: &mut World, is_simple: bool) {
        if !self.is_suspended() {
            self.drain(world);
        }
        let counters = self.engine.counters();
        let (mut queued, mut sent, mut held) = (0, 0, 0);
        for peer in self.peers() {
            queued += peer.queued as u64 + peer.queue.dropped + peer.queue.overflowed;
            sent += peer.counters.datagrams_sent + peer.counters.datagrams_dropped;
            held += peer.held as u64;
        }
        assert_eq!(sent + held, self.sealed, "node {}: each datagram is sent, dropped or held", self.number);
        let in_socket: usize = self.held.iter().map(|held| held.datagrams.len()).sum();
        assert_eq!(held, in_socket as u64, "node {}: the engine knows what is held", self.number);
        if is_simple {
            let refused = counters.no_peer + counters.no_endpoint + counters.too_big + counters.device_malformed;
            assert_eq!(counters.device_read, refused + queued + self.sealed, "node {}: no packet is lost", self.number);
        }
    }
}

fn engine(now: Instant, wall: SystemTime, config: &Config) -> Engine {
    Engine::new(now, wall, config, 1420, Offload::None).expect("the system has random numbers")
}
