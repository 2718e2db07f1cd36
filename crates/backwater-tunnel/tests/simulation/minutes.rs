//! What takes minutes or hours in real time: the renewal of sessions, outages, and silence. The times are those of WireGuard's constants
//! (whitepaper, section 6.1).

use std::time::Duration;

use super::{
    model::Host,
    network::Faults,
    node::{Node, World},
    random::Random,
};
use backwater_tunnel::config::{Config, Key};

const NEAR: usize = 0;
const FAR: usize = 1;

/// Two nodes. The near one knows where the far one is.
struct Pair {
    world: World,
    nodes: Vec<Node>,
}

impl Pair {
    fn new(near: &str) -> Self {
        let mut world = World::new(Random(1));
        let keys = [Key::generate().unwrap(), Key::generate().unwrap()];
        let nodes = [near, ""].into_iter().enumerate().map(|(number, rest)| {
            let (own, peer) = (keys[number].to_base64(), keys[1 - number].public().to_base64());
            let endpoint = if number == NEAR { "Endpoint = 192.0.2.2:51820\n" } else { "" };
            let text = format!(
                "[Interface]\nPrivateKey = {own}\n[Peer]\nPublicKey = {peer}\nAllowedIPs = 10.0.{}.0/24\n{endpoint}{rest}",
                1 - number
            );
            let (config, _) = Config::parse("sim", &text).unwrap();
            Node::new(&mut world, number, format!("192.0.2.{}:51820", number + 1).parse().unwrap(), config)
        });
        let nodes = nodes.collect();
        Self { world, nodes }
    }

    /// A host behind `from` sends a packet to one behind the other node. Returns the packet's number.
    fn send(&mut self, from: usize) -> u64 {
        let host = |node: usize| Host { node: node as u8, host: 1 };
        let number = self.world.model.next();
        let World { random, model, .. } = &mut self.world;
        let raw = model.packet(random, host(from), host(1 - from), Some(1 - from), false, 100, 1);
        assert!(self.nodes[from].send(&mut self.world, &raw, 1), "there is room");
        self.nodes[from].drain(&mut self.world);
        number
    }

    fn pass(&mut self, time: Duration) {
        self.world.pass(&mut self.nodes, time);
    }

    /// Sends a packet from the near end each 200 ms, which the far end answers, until an answer arrives. Returns the time that it took.
    fn until_answered(&mut self) -> Duration {
        let start = self.world.clock.now();
        loop {
            let packet = self.send(NEAR);
            self.pass(Duration::from_millis(100));
            if self.world.model.is_delivered(packet) {
                let answer = self.send(FAR);
                self.pass(Duration::from_millis(100));
                if self.world.model.is_delivered(answer) {
                    return self.world.clock.now() - start;
                }
            }
            assert!(self.world.clock.now() - start < Duration::from_secs(600), "no answer");
        }
    }

    fn handshakes(&self, node: usize) -> u64 {
        self.nodes[node].engine.peer(0).unwrap().counters.handshakes
    }

    /// The network carries nothing, or everything.
    fn cut(&mut self, is_cut: bool) {
        self.world.network.faults = Faults { lost: is_cut.into(), ..Faults::NONE };
    }
}

/// Nothing has come for fifteen seconds, but nothing was sent either. The end that has heard last says so after ten
/// (`KEEPALIVE_TIMEOUT`), and is not thought gone.
#[test]
fn pause_does_not_renew_the_session() {
    let mut pair = Pair::new("");
    for _ in 0..4 {
        assert!(pair.until_answered() < Duration::from_secs(1));
        pair.pass(Duration::from_secs(20));
    }
    assert_eq!((pair.handshakes(NEAR), pair.handshakes(FAR)), (1, 1));
}

/// A session is renewed after two minutes (`REKEY_AFTER_TIME`), by the end that made it.
#[test]
fn no_packet_is_lost_while_sessions_are_renewed_for_an_hour() {
    let mut pair = Pair::new("");
    let mut sent = Vec::new();
    while pair.world.clock.now() < Duration::from_secs(3600) {
        sent.extend([pair.send(NEAR), pair.send(FAR)]);
        pair.pass(Duration::from_millis(500));
    }
    pair.pass(Duration::from_secs(1));
    // The far end does not know where the near one is before it has heard from it.
    assert!(sent.iter().skip(2).all(|&packet| pair.world.model.is_delivered(packet)));
    assert!((29..=31).contains(&pair.handshakes(NEAR)), "{}", pair.handshakes(NEAR));
}

#[test]
fn packets_flow_at_once_after_a_minute_without_a_network() {
    let mut pair = Pair::new("");
    pair.until_answered();
    pair.cut(true);
    for _ in 0..300 {
        pair.send(NEAR);
        pair.pass(Duration::from_millis(200));
    }
    pair.cut(false);
    let time = pair.until_answered();
    assert!(time <= Duration::from_secs(1), "{time:?}");
}

/// It has forgotten the session. The near end begins a new one when nothing has come for fifteen seconds though it has sent
/// (`KEEPALIVE_TIMEOUT + REKEY_TIMEOUT`).
#[test]
fn peer_that_was_started_again_is_reached_within_16_seconds() {
    let mut pair = Pair::new("");
    pair.until_answered();
    let Pair { world, nodes } = &mut pair;
    nodes[FAR].restart(world, 0);
    let time = pair.until_answered();
    assert!(time <= Duration::from_secs(16), "{time:?}");
}

/// The near end initiates for a minute and a half (`REKEY_ATTEMPT_TIME`), and then again, since a host still sends.
#[test]
fn peer_that_was_away_for_long_is_reached_within_6_seconds() {
    for seconds in [80, 115, 250, 700, 7200] {
        let mut pair = Pair::new("");
        pair.until_answered();
        pair.cut(true);
        for _ in 0..seconds * 5 {
            pair.send(NEAR);
            pair.pass(Duration::from_millis(200));
        }
        pair.cut(false);
        let time = pair.until_answered();
        // `REKEY_TIMEOUT`, and the interval of the timers.
        assert!(time <= Duration::from_secs(6), "after {seconds} s: {time:?}");
    }
}

#[test]
fn tunnel_that_is_idle_sends_nothing_for_a_day() {
    let mut pair = Pair::new("");
    pair.until_answered();
    // The last answer is acknowledged (`KEEPALIVE_TIMEOUT`).
    pair.pass(Duration::from_secs(30));
    let sent = pair.world.network.count.sent;
    pair.pass(Duration::from_secs(86_400));
    assert_eq!(pair.world.network.count.sent, sent);
    assert!(pair.until_answered() <= Duration::from_secs(1));
    assert_eq!(pair.handshakes(NEAR), 2);
}

#[test]
fn persistent_keepalives_keep_their_interval_for_a_day() {
    let mut pair = Pair::new("PersistentKeepalive = 25\n");
    pair.pass(Duration::from_secs(3600));
    let received = |pair: &Pair| pair.nodes[FAR].engine.peer(0).unwrap().counters.datagrams_received;
    let (before, handshakes) = (received(&pair), pair.handshakes(FAR));
    pair.pass(Duration::from_secs(86_400));
    // The initiator of each new session confirms it by one more.
    let keepalives = received(&pair) - before - (pair.handshakes(FAR) - handshakes);
    // One each 25 s, which the timers see up to five seconds late.
    assert!((86_400 / 30..=86_400 / 25 + 1).contains(&keepalives), "{keepalives}");
}

#[test]
fn suspended_node_is_back_within_a_second() {
    for seconds in [60, 170, 200, 3600, 86_400] {
        let mut pair = Pair::new("");
        pair.until_answered();
        let time = Duration::from_secs(seconds);
        let Pair { world, nodes } = &mut pair;
        nodes[NEAR].suspend(world, time);
        pair.pass(time);
        let time = pair.until_answered();
        assert!(time <= Duration::from_secs(1), "after {seconds} s: {time:?}");
    }
}

#[test]
fn frozen_pair_is_back_within_16_seconds() {
    for seconds in [60, 170, 200, 3600, 86_400] {
        let mut pair = Pair::new("");
        pair.until_answered();
        pair.world.clock.set(pair.world.clock.now() + Duration::from_secs(seconds));
        let time = pair.until_answered();
        assert!(time <= Duration::from_secs(16), "after {seconds} s: {time:?}");
    }
}
