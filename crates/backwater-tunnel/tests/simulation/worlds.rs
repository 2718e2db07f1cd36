//! Two and three engines over a bad network, in virtual time: datagrams are lost, doubled, damaged, late and out of order, sockets are
//! full, a node changes its address, sleeps, or is started again, paths have other MTUs, clocks jump, and sessions are renewed as time
//! passes. What each host hears is compared with a model of who may hear what.
//!
//! `BACKWATER_STEPS` says how many steps, `BACKWATER_SEED` replays one world.

use std::{
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use super::{
    model::Host,
    network::{Datagram, Faults},
    node::{Node, World},
    random::Random,
};
use backwater_tunnel::config::{Config, Key};

/// Steps of one world, so that a seed that fails is soon replayed.
const STEPS: usize = 1000;

/// Steps of a run in which no number is given: some seconds without optimization.
const DEFAULT_STEPS: usize = 20_000;

/// When the faults have stopped, packets flow between all nodes after this time: a peer that does not answer is noticed after 15 s
/// (`KEEPALIVE_TIMEOUT + REKEY_TIMEOUT`), and a handshake is repeated every 5 s (`REKEY_TIMEOUT`).
const RECOVERED: Duration = Duration::from_secs(40);

/// Worlds that once failed.
const SEEDS: &[u64] = &[];

#[test]
fn each_packet_is_heard_by_its_peer_alone_and_once_and_is_accounted_for() {
    if let Ok(seed) = std::env::var("BACKWATER_SEED") {
        return run(seed.parse().unwrap()).print();
    }
    let steps: usize = std::env::var("BACKWATER_STEPS").map_or(DEFAULT_STEPS, |steps| steps.parse().unwrap());
    let first = std::env::var("BACKWATER_FIRST_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut total = Total::default();
    for seed in SEEDS.iter().copied().chain(first..first + steps.div_ceil(STEPS) as u64) {
        let world = catch_unwind(AssertUnwindSafe(|| run(seed)));
        match world {
            Ok(world) => total.add(&world),
            Err(panic) => {
                eprintln!("BACKWATER_SEED={seed}");
                resume_unwind(panic);
            }
        }
    }
    total.print();
    total.check();
}

/// What has happened, so that it is known that it did.
#[derive(Debug, Default, Clone)]
struct Total {
    worlds: u64,
    virtual_time: Duration,
    sent: u64,
    delivered: u64,
    told: u64,
    lost: u64,
    added: u64,
    roamed: u64,
    suspended: u64,
    restarted: u64,
    jumped: u64,
    resized: u64,
    handshakes: u64,
    replayed: u64,
    invalid: u64,
    not_allowed: u64,
    held: u64,
    overflowed: u64,
    too_big: u64,
    recovered: Duration,
}

impl Total {
    fn add(&mut self, other: &Self) {
        let Self { worlds, virtual_time, sent, delivered, told, lost, added, .. } = other;
        self.worlds += worlds;
        self.virtual_time += *virtual_time;
        self.sent += sent;
        self.delivered += delivered;
        self.told += told;
        self.lost += lost;
        self.added += added;
        self.roamed += other.roamed;
        self.suspended += other.suspended;
        self.restarted += other.restarted;
        self.jumped += other.jumped;
        self.resized += other.resized;
        self.handshakes += other.handshakes;
        self.replayed += other.replayed;
        self.invalid += other.invalid;
        self.not_allowed += other.not_allowed;
        self.held += other.held;
        self.overflowed += other.overflowed;
        self.too_big += other.too_big;
        self.recovered = self.recovered.max(other.recovered);
    }

    fn print(&self) {
        eprintln!("{self:#?}");
    }

    /// With enough worlds everything has happened.
    fn check(&self) {
        if self.worlds < 20 {
            return;
        }
        for (count, what) in [
            (self.delivered, "packets delivered"),
            (self.told, "hosts told"),
            (self.lost, "datagrams lost"),
            (self.added, "datagrams added"),
            (self.roamed, "addresses changed"),
            (self.suspended, "nodes suspended"),
            (self.restarted, "nodes started again"),
            (self.jumped, "jumps of the clock"),
            (self.resized, "MTUs changed"),
            (self.replayed, "replays"),
            (self.invalid, "forgeries"),
            (self.not_allowed, "sources that are not allowed"),
            (self.held, "batches held"),
            (self.overflowed, "packets dropped by a queue"),
            (self.too_big, "packets too big"),
        ] {
            assert!(count > 0, "nothing of this happened: {what}");
        }
        assert!(self.handshakes > 2 * self.worlds, "sessions are renewed");
    }
}

/// Nodes, of which the last one has no fixed address.
struct Nodes {
    world: World,
    nodes: Vec<Node>,
    /// Datagrams of before, to be sent again.
    recorded: Vec<Datagram>,
    addresses: u16,
    trains: bool,
    total: Total,
}

fn run(seed: u64) -> Total {
    let mut nodes = Nodes::new(seed);
    for _ in 0..STEPS {
        nodes.step();
        for node in &mut nodes.nodes {
            node.check(&mut nodes.world, !nodes.trains);
        }
    }
    nodes.recover();
    nodes.finish()
}

impl Nodes {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        for _ in 0..4 {
            random.below(2);
        }
        let mut world = World::new(random.clone());
        let count = 2 + random.below(2) as usize;
        let keys: Vec<Key> = (0..count).map(|_| Key::generate().unwrap()).collect();
        let preshared = random.one_in(3).then(|| Key::generate().unwrap());
        let nodes = (0..count).map(|number| {
            let mut text = format!("[Interface]\nPrivateKey = {}\n", keys[number].to_base64());
            for peer in (0..count).filter(|peer| *peer != number) {
                text += &format!("[Peer]\nPublicKey = {}\n", keys[peer].public().to_base64());
                // The first node has all that no other has.
                text += match peer {
                    0 => "AllowedIPs = 10.0.0.0/16, fd00::/8\n".to_owned(),
                    peer => format!("AllowedIPs = 10.0.{peer}.0/24, fd00:{peer:02x}::/32\n"),
                }
                .as_str();
                if peer + 1 < count {
                    text += &format!("Endpoint = {}\n", address(peer));
                }
                if let Some(key) = &preshared {
                    text += &format!("PresharedKey = {}\n", key.to_base64());
                }
                if number + 1 == count && random.one_in(2) {
                    text += "PersistentKeepalive = 25\n";
                }
            }
            let (config, warnings) = Config::parse("sim", &text).unwrap();
            assert!(warnings.is_empty(), "{warnings:?}");
            Node::new(&mut world, number, address(number), config)
        });
        let nodes = nodes.collect();
        let trains = random.one_in(3);
        Self { world, nodes, recorded: Vec::new(), addresses: 0, trains, total: Total::default() }
    }

    /// One thing that happens.
    fn step(&mut self) {
        let random = &mut self.world.random;
        match random.below(1000) {
            0..600 => self.send(),
            600..900 => {
                let micros = random.below(100_000);
                self.pass(Duration::from_micros(micros));
            }
            900..950 => {
                let millis = random.below(3_000);
                self.pass(Duration::from_millis(millis));
            }
            950..953 => {
                let seconds = random.below(200);
                self.pass(Duration::from_secs(seconds));
            }
            // Everybody's clock goes on, and nobody was driven: the machine stood still.
            953..954 => {
                let time = Duration::from_secs(random.below(1000));
                self.total.jumped += 1;
                self.world.clock.set(self.world.clock.now() + time);
            }
            954..964 => self.change_faults(),
            964..970 => self.roam(),
            970..973 => {
                let node = random.below(self.nodes.len() as u64) as usize;
                let time = Duration::from_millis(random.below(100_000));
                self.total.suspended += 1;
                self.nodes[node].suspend(&self.world, time);
            }
            973..974 => {
                self.total.restarted += 1;
                let node = random.below(self.nodes.len() as u64) as usize;
                // Who starts with a clock that was set back is refused by peers that it has initiated handshakes to before. They initiate
                // to the nodes that have a fixed address.
                let wrong_by = if node + 1 < self.nodes.len() && random.one_in(3) { -3600 } else { 0 };
                self.tally(node);
                self.nodes[node].restart(&mut self.world, wrong_by);
            }
            974..978 => {
                let node = random.below(self.nodes.len() as u64) as usize;
                let mtu = random.pick(&[1420, 1280, 1400, 576, 1420]);
                self.total.resized += 1;
                self.nodes[node].engine.set_mtu(mtu);
                let route = random.pick(&[None, Some(1500), Some(1400), Some(1300)]);
                (0..self.nodes.len() - 1).for_each(|peer| self.nodes[node].engine.set_route_mtu(peer, route));
            }
            978..988 => {
                let node = random.below(self.nodes.len() as u64) as usize;
                self.nodes[node].is_full = random.pick(&[0, 0, 0, 2, 5, 20]);
            }
            _ => self.attack(),
        }
    }

    /// A host sends a packet, or some: mostly to the right addresses.
    fn send(&mut self) {
        let random = &mut self.world.random;
        let count = self.nodes.len() as u64;
        let node = random.below(count) as usize;
        let is_v6 = random.one_in(4);
        for _ in 0..=random.below(4) * random.below(4) {
            let random = &mut self.world.random;
            let from = Host { node: if random.one_in(20) { random.below(6) as u8 } else { node as u8 }, host: 1 };
            let nodes = count + u64::from(random.one_in(10));
            let to = Host { node: random.below(nodes) as u8, host: random.below(200) as u8 };
            let segments = if self.trains && random.one_in(3) { 2 + random.below(80) as usize } else { 1 };
            let len = random.pick(&[8, 40, 100, 700, 1000, 1180, 1360]) + random.below(40) as usize;
            let len = if segments > 1 { len.min(60_000 / segments) } else { len };
            self.packet(node, from, to, is_v6, len, segments);
        }
    }

    fn packet(&mut self, node: usize, from: Host, to: Host, is_v6: bool, len: usize, segments: usize) -> u64 {
        let World { random, model, .. } = &mut self.world;
        let number = model.next();
        let hears = owner(node, to, self.nodes.len());
        // The receiver wants the source to be the sender's.
        let hears = hears.filter(|&hears| owner(hears, from, self.nodes.len()) == Some(node));
        let raw = model.packet(random, from, to, hears, is_v6, len, segments);
        self.nodes[node].send(&mut self.world, &raw, segments);
        number
    }

    /// Time passes.
    fn pass(&mut self, time: Duration) {
        for datagram in self.world.pass(&mut self.nodes, time) {
            if self.recorded.len() < 64 {
                self.recorded.push(datagram);
            } else {
                let at = self.world.random.below(64) as usize;
                self.recorded[at] = datagram;
            }
        }
    }

    fn change_faults(&mut self) {
        let random = &mut self.world.random;
        let mtu = random.pick(&[1500, 1500, 1400, 1300, 1280]);
        let faults = match random.below(5) {
            0 => Faults::NONE,
            1 => Faults { lost: 1, ..Faults::NONE },
            _ => Faults {
                lost: random.pick(&[0, 2, 5, 20, 100]),
                doubled: random.pick(&[0, 3, 20]),
                late: random.pick(&[0, 3, 20, 1000]),
                damaged: random.pick(&[0, 5, 50]),
                delay: random.pick(&[100, 1_000, 20_000, 300_000]),
                mtu,
            },
        };
        self.world.network.faults = faults;
    }

    /// The last node has another address: NAT has forgotten it, or it is in another network.
    fn roam(&mut self) {
        self.total.roamed += 1;
        self.addresses += 1;
        let ip = if self.world.random.one_in(4) { "[2001:db8::7]" } else { "203.0.113.7" };
        let node = self.nodes.last_mut().unwrap();
        node.address = format!("{ip}:{}", 1000 + self.addresses).parse().unwrap();
        // It may notice.
        if self.world.random.one_in(2) && !node.is_suspended() {
            let now = node.now(&self.world);
            node.engine.handle_new_network(now, None);
            node.drain(&mut self.world);
        }
    }

    /// Somebody sends datagrams of before again, from another address, changed, or of no sense.
    fn attack(&mut self) {
        let World { random, network, clock, .. } = &mut self.world;
        let attacker: SocketAddr = "198.51.100.66:666".parse().unwrap();
        let Some(mut datagram) = (!self.recorded.is_empty())
            .then(|| random.below(self.recorded.len() as u64) as usize)
            .map(|at| self.recorded[at].clone())
        else {
            return;
        };
        match random.below(4) {
            0 => {}
            1 => datagram.from = attacker,
            2 => {
                let len = random.below(datagram.bytes.len() as u64) as usize;
                datagram.bytes.truncate(len);
                (datagram.from, datagram.is_genuine) = (attacker, false);
            }
            _ => {
                let at = random.below(datagram.bytes.len().max(1) as u64) as usize;
                datagram.bytes.iter_mut().skip(at).for_each(|byte| *byte = random.below(256) as u8);
                (datagram.from, datagram.is_genuine) = (attacker, false);
            }
        }
        network.add(clock.now(), random, datagram);
    }

    /// The faults stop. Packets of every node to every other arrive again, and go on to.
    fn recover(&mut self) {
        self.world.network.faults = Faults::NONE;
        for node in &mut self.nodes {
            node.is_full = 0;
            node.engine.set_mtu(1420);
        }
        // What is late is late by up to ten seconds, and who sleeps does so for up to a hundred.
        while self.nodes.iter().any(Node::is_suspended) {
            self.pass(Duration::from_secs(1));
        }
        self.pass(Duration::from_secs(12));
        let start = self.world.clock.now();
        let mut sent = Vec::new();
        while self.world.clock.now() - start < RECOVERED + Duration::from_secs(20) {
            for node in 0..self.nodes.len() {
                for to in (0..self.nodes.len()).filter(|to| *to != node) {
                    let host = |node: usize| Host { node: node as u8, host: 7 };
                    let number = self.packet(node, host(node), host(to), false, 100, 1);
                    sent.push((self.world.clock.now() - start, node, to, number));
                }
            }
            self.pass(Duration::from_millis(500));
        }
        self.pass(Duration::from_secs(1));
        for &(at, node, to, number) in &sent {
            if !self.world.model.is_delivered(number) {
                assert!(at < RECOVERED, "a packet of node {node} to {to}, {at:?} after the faults");
                self.total.recovered = self.total.recovered.max(at);
            }
        }
    }

    /// Adds what a node has counted.
    fn tally(&mut self, node: usize) {
        let engine = &self.nodes[node].engine;
        self.total.too_big += engine.counters().too_big;
        for peer in (0..self.nodes.len() - 1).filter_map(|peer| engine.peer(peer)) {
            self.total.handshakes += peer.counters.handshakes;
            self.total.replayed += peer.counters.replayed;
            self.total.invalid += peer.counters.invalid;
            self.total.not_allowed += peer.counters.source_not_allowed;
            self.total.held += peer.counters.held;
            self.total.overflowed += peer.queue.overflowed + peer.queue.dropped;
        }
    }

    fn finish(mut self) -> Total {
        (0..self.nodes.len()).for_each(|node| self.tally(node));
        let (model, network) = (self.world.model.count, self.world.network.count);
        let waiting = self.world.network.waiting();
        assert_eq!(
            network.sent + network.added,
            network.lost + network.unreachable + network.arrived + waiting,
            "the network loses no datagram that it does not count"
        );
        Total {
            worlds: 1,
            virtual_time: self.world.clock.now(),
            sent: model.sent,
            delivered: model.delivered,
            told: model.told,
            lost: network.lost,
            added: network.added,
            ..self.total
        }
    }
}

/// The node whose peer, by its AllowedIPs, the address is at this node.
fn owner(at: usize, address: Host, count: usize) -> Option<usize> {
    let node = usize::from(address.node);
    // The first node has all that no other has.
    let owner = if node > 0 && node < count && node != at { node } else { 0 };
    (owner != at).then_some(owner)
}

fn address(node: usize) -> SocketAddr {
    format!("192.0.2.{}:51820", node + 1).parse().unwrap()
}
