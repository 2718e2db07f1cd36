//! Floods by counts.

use x25519_dalek::StaticSecret;

use super::*;
use crate::engine::{
    session_indices::SessionIndices,
    wireguard::{Clock, Received, Tunnel, private_key},
};

fn address(number: u32) -> SocketAddr {
    SocketAddr::new(IpAddr::V4((0x0a00_0000 + number).into()), 1000)
}

fn nobody(_: IpAddr) -> bool {
    false
}

/// A guard of a key, and what somebody sends who only knows the public one.
struct Flood {
    guard: Guard,
    public: PublicKey,
    now: Instant,
    number: u64,
}

impl Flood {
    fn new() -> Self {
        let public = PublicKey::from(&private_key(&crate::config::Key([0; 32])).unwrap());
        let now = Instant::now();
        Self { guard: Guard::new(now, &public).unwrap(), public, now, number: 0 }
    }

    /// An initiation with a right `mac1`.
    fn message(&mut self) -> [u8; INITIATION] {
        self.number += 1;
        let mut message = [0; INITIATION];
        message[0] = kind::INITIATION;
        message[8..16].copy_from_slice(&self.number.to_le_bytes());
        let mac1 = noise::mac(&noise::mac1_key(&self.public), &[&message[..116]]);
        message[116..132].copy_from_slice(&mac1);
        message
    }

    fn judge(&mut self, source: SocketAddr) -> Judgement {
        let message = self.message();
        self.guard.judge(self.now, source, &message, nobody)
    }

    /// How many of `count` initiations are decrypted, answered by cookies, and refused.
    fn from(&mut self, count: u32, source: impl Fn(u32) -> SocketAddr) -> [u32; 3] {
        let mut outcomes = [0; 3];
        for number in 0..count {
            outcomes[match self.judge(source(number)) {
                Judgement::Decrypt => 0,
                Judgement::Cookie(_) => 1,
                Judgement::Refuse => 2,
            }] += 1;
        }
        outcomes
    }
}

/// A peer that is honest, and takes cookies.
struct Honest {
    tunnel: Tunnel,
    indices: SessionIndices,
}

impl Honest {
    fn new(flood: &Flood) -> Self {
        let private: StaticSecret = private_key(&crate::config::Key([0; 32])).unwrap();
        let clock = Clock::new(flood.now, std::time::SystemTime::now());
        Self { tunnel: Tunnel::new(0, &private, flood.public, None, clock), indices: SessionIndices::default() }
    }

    fn message(&mut self, now: Instant) -> [u8; INITIATION] {
        let mut message = [0; INITIATION];
        assert!(self.tunnel.initiate(now, true, &mut self.indices, &mut message).is_some());
        message
    }

    fn take(&mut self, now: Instant, cookie: &[u8; COOKIE]) {
        let received = self.tunnel.receive(now, cookie, &mut [], &mut self.indices);
        assert_eq!(received, Ok(Received::Cookie));
    }
}

#[test]
fn one_source_takes_its_own_share_alone() {
    let mut flood = Flood::new();
    assert_eq!(flood.from(3000, |_| address(1)), [20, 2980, 0]);
    // Also from other ports, but not another host.
    assert!(matches!(flood.judge(SocketAddr::new(address(1).ip(), 7)), Judgement::Cookie(_)));
    assert_eq!(flood.judge(address(2)), Judgement::Decrypt);
    flood.now += PERIOD;
    assert_eq!(flood.from(3000, |_| address(1)), [20, 2980, 0]);
}

#[test]
fn ipv6_network_of_64_bits_is_one_source_and_a_mapped_address_is_ipv4() {
    let mut flood = Flood::new();
    let in_network = |network: u16| {
        move |host: u32| SocketAddr::new([0x2001, 0xdb8, 0, network, 0, 0, (host >> 16) as u16, host as u16].into(), 5)
    };
    assert_eq!(flood.from(100, in_network(1)), [20, 80, 0]);
    assert_eq!(flood.from(100, in_network(2)), [20, 80, 0]);
    let mapped = |_| SocketAddr::new("::ffff:192.0.2.1".parse().unwrap(), 5);
    assert_eq!(flood.from(15, mapped), [15, 0, 0]);
    assert_eq!(flood.from(15, |_| SocketAddr::from(([192, 0, 2, 1], 5))), [5, 10, 0]);
}

#[test]
fn beside_a_thousand_sources_known_addresses_pass_at_once_and_others_with_a_cookie() {
    let mut flood = Flood::new();
    assert_eq!(flood.from(3000, |number| address(number % 1000)), [200, 2800, 0]);
    let (mut known, mut roaming) = (Honest::new(&flood), Honest::new(&flood));
    let (now, home, away) = (flood.now, address(5000), address(6000));
    let message = known.message(now);
    assert_eq!(flood.guard.judge(now, home, &message, |ip| ip == home.ip()), Judgement::Decrypt);
    let message = roaming.message(now);
    let Judgement::Cookie(cookie) = flood.guard.judge(now, away, &message, nobody) else { panic!("no cookie") };
    roaming.take(now, &cookie);
    let message = roaming.message(now);
    assert_eq!(flood.guard.judge(now, away, &message, nobody), Judgement::Decrypt);
}

#[test]
fn sender_that_forges_a_known_address_takes_that_share_alone_and_its_owner_passes_with_a_cookie() {
    let mut flood = Flood::new();
    flood.from(3000, |number| address(number % 1000));
    let (home, now) = (address(5000), flood.now);
    for _ in 0..3000 {
        let message = flood.message();
        flood.guard.judge(now, home, &message, |ip| ip == home.ip());
    }
    let mut honest = Honest::new(&flood);
    let message = honest.message(now);
    let Judgement::Cookie(cookie) = flood.guard.judge(now, home, &message, |ip| ip == home.ip()) else {
        panic!("no cookie")
    };
    honest.take(now, &cookie);
    let message = honest.message(now);
    assert_eq!(flood.guard.judge(now, home, &message, |ip| ip == home.ip()), Judgement::Decrypt);
    // Another peer is at a known address, too.
    let message = Honest::new(&flood).message(now);
    assert_eq!(flood.guard.judge(now, address(7000), &message, |_| true), Judgement::Decrypt);
}

#[test]
fn cookie_is_good_for_its_address_and_port_and_for_two_minutes_at_least() {
    let mut flood = Flood::new();
    let full = |flood: &mut Flood| _ = flood.from(1000, address);
    full(&mut flood);
    let (mut honest, source) = (Honest::new(&flood), address(5000));
    let message = honest.message(flood.now);
    let Judgement::Cookie(cookie) = flood.guard.judge(flood.now, source, &message, nobody) else { panic!("no cookie") };
    honest.take(flood.now, &cookie);
    let mut judge = |flood: &mut Flood, source| {
        let message = honest.message(flood.now);
        flood.guard.judge(flood.now, source, &message, nobody) == Judgement::Decrypt
    };
    assert!(judge(&mut flood, source));
    assert!(!judge(&mut flood, SocketAddr::new(source.ip(), 1001)), "another port");
    assert!(!judge(&mut flood, address(5001)), "another address");
    flood.now += Duration::from_secs(119);
    full(&mut flood);
    assert!(judge(&mut flood, source));
}

#[test]
fn cookie_of_an_old_secret_is_worth_nothing() {
    let mut flood = Flood::new();
    let source = address(5000);
    let cookie = flood.guard.cookie(flood.guard.epoch(flood.now), source);
    let mut message = flood.message();
    let mac2 = noise::mac(&cookie, &[&message[..132]]);
    message[132..].copy_from_slice(&mac2);
    for (seconds, good) in [(0, true), (239, true), (240, false)] {
        assert_eq!(
            flood.guard.has_mac2(flood.now + Duration::from_secs(seconds), source, &message),
            good,
            "{seconds} s"
        );
    }
}

#[test]
fn holders_of_cookies_have_limits_too() {
    let mut flood = Flood::new();
    flood.from(1000, address);
    let decrypted = (0..3000).filter(|number| {
        let source = address(number % 1000);
        let mut message = flood.message();
        let cookie = flood.guard.cookie(flood.guard.epoch(flood.now), source);
        let mac2 = noise::mac(&cookie, &[&message[..132]]);
        message[132..].copy_from_slice(&mac2);
        flood.guard.judge(flood.now, source, &message, nobody) == Judgement::Decrypt
    });
    assert_eq!(decrypted.count(), 200);
}

#[test]
fn copy_of_an_initiation_is_refused_and_takes_nobodys_share() {
    let mut flood = Flood::new();
    let message = flood.message();
    assert_eq!(flood.guard.judge(flood.now, address(1), &message, nobody), Judgement::Decrypt);
    for _ in 0..3000 {
        assert_eq!(flood.guard.judge(flood.now, address(1), &message, nobody), Judgement::Refuse);
    }
    assert_eq!(flood.judge(address(1)), Judgement::Decrypt);
}

#[test]
fn sender_that_does_not_know_the_public_key_gets_no_answer_and_costs_nothing() {
    let mut flood = Flood::new();
    for number in 0..3000u64 {
        let mut message = flood.message();
        message[116] ^= 1;
        message[20..28].copy_from_slice(&number.to_le_bytes());
        assert_eq!(flood.guard.judge(flood.now, address(1), &message, nobody), Judgement::Refuse);
    }
    for len in 0..INITIATION {
        assert_eq!(flood.guard.judge(flood.now, address(1), &vec![1; len], nobody), Judgement::Refuse);
    }
    assert_eq!(flood.judge(address(1)), Judgement::Decrypt);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut flood = Flood::new();
    flood.from(20_000, address);
    assert!(flood.guard.of_sources.len() <= MAX_REMEMBERED && flood.guard.seen.len() <= MAX_REMEMBERED);
}
