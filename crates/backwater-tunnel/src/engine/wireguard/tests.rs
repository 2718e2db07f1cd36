//! Two sides in virtual time, and one beside boringtun.

use std::net::SocketAddr;

use boringtun::noise::{Tunn, TunnResult};
use proptest::prelude::*;

use super::{guard::Judgement, *};

const SECOND: Duration = Duration::from_secs(1);

/// An IPv4 packet of 40 bytes from 10.0.0.1.
const PACKET: [u8; 40] = {
    let mut packet = [0; 40];
    (packet[0], packet[3], packet[8], packet[9], packet[12], packet[15]) = (0x45, 40, 64, 17, 10, 1);
    packet
};

/// One side, its indices, and what it has to send.
struct Side {
    tunnel: Tunnel,
    indices: SessionIndices,
    private: StaticSecret,
    sent: Vec<Vec<u8>>,
}

/// Two sides and a time.
struct Pair {
    now: Instant,
    sides: [Side; 2],
}

fn key() -> StaticSecret {
    private_key(&Key([0; 32])).unwrap()
}

impl Side {
    fn new(now: Instant, private: StaticSecret, theirs: PublicKey, preshared: Option<[u8; 32]>) -> Self {
        let clock = Clock::new(now, SystemTime::now());
        let tunnel = Tunnel::new(0, &private, theirs, preshared, clock);
        Self { tunnel, indices: SessionIndices::default(), private, sent: Vec::new() }
    }

    fn initiate(&mut self, now: Instant) {
        let mut message = [0; 148];
        self.sent.extend(self.tunnel.initiate(now, true, &mut self.indices, &mut message).map(<[u8]>::to_vec));
    }

    fn send(&mut self, now: Instant, packet: &[u8]) -> bool {
        let mut message = [0; 148];
        let len = self.tunnel.seal(now, packet, &mut message);
        self.sent.extend(len.map(|len| message[..len].to_vec()));
        len.is_some()
    }

    /// Takes a message. `Ok`: the packet in it.
    fn take(&mut self, now: Instant, message: &[u8]) -> Result<Vec<u8>, Error> {
        let mut scratch = vec![0; message.len().max(148)];
        if message.first() == Some(&kind::INITIATION) {
            let public = PublicKey::from(&self.private);
            let initiation = Initiation::open(&self.private, &public, message).ok_or(Error::Invalid)?;
            let response = self.tunnel.respond(now, initiation, &mut self.indices, &mut scratch)?;
            self.sent.push(response.to_vec());
            return Ok(Vec::new());
        }
        match self.tunnel.receive(now, message, &mut scratch, &mut self.indices)? {
            Received::Packet(packet, source) => {
                assert_eq!(source, IpAddr::from([10, 0, 0, 1]));
                Ok(packet.to_vec())
            }
            Received::Response => {
                self.send(now, &[]);
                Ok(Vec::new())
            }
            Received::Keepalive | Received::Cookie => Ok(Vec::new()),
        }
    }

    /// Does what is due. Returns whether the handshake was given up.
    fn tick(&mut self, now: Instant) -> bool {
        let mut message = [0; 148];
        let is_due = self.tunnel.due().is_some_and(|at| now >= at) || self.tunnel.timers.renew;
        let mut does_something = false;
        loop {
            match self.tunnel.tick(now, &mut self.indices, &mut message) {
                Due::Nothing => break,
                Due::Send(message) => self.sent.push(message.to_vec()),
                Due::Expired => return true,
            }
            does_something = true;
        }
        assert!(is_due || !does_something, "it was not due");
        assert!(self.tunnel.due().is_none_or(|at| at > now), "it is still due");
        false
    }
}

impl Pair {
    fn new(preshared: [Option<[u8; 32]>; 2]) -> Self {
        let (now, keys) = (Instant::now(), [key(), key()]);
        let [a, b] = [0, 1]
            .map(|side: usize| Side::new(now, keys[side].clone(), PublicKey::from(&keys[1 - side]), preshared[side]));
        Self { now, sides: [a, b] }
    }

    /// With a session that the first side has initiated.
    fn connected() -> Self {
        let mut pair = Self::new([None; 2]);
        pair.sides[0].initiate(pair.now);
        pair.deliver();
        assert!(pair.established() == [true; 2]);
        pair
    }

    fn established(&self) -> [bool; 2] {
        self.sides.each_ref().map(|side| side.tunnel.is_established(self.now))
    }

    /// Delivers what was sent until nothing is. Returns how many messages of each kind that was, and the packets that arrived.
    fn deliver(&mut self) -> ([usize; 5], usize) {
        let (mut kinds, mut packets) = ([0; 5], 0);
        while self.sides.iter().any(|side| !side.sent.is_empty()) {
            for side in 0..2 {
                for message in std::mem::take(&mut self.sides[side].sent) {
                    kinds[usize::from(message[0])] += 1;
                    let taken = self.sides[1 - side].take(self.now, &message);
                    packets += usize::from(taken.is_ok_and(|packet| !packet.is_empty()));
                }
            }
        }
        (kinds, packets)
    }

    /// Passes time in steps of 250 ms, and delivers what the timers send.
    fn pass(&mut self, time: Duration) -> [usize; 5] {
        let (end, mut kinds) = (self.now + time, [0; 5]);
        while self.now < end {
            self.now += SECOND / 4;
            self.sides.iter_mut().for_each(|side| _ = side.tick(self.now));
            kinds.iter_mut().zip(self.deliver().0).for_each(|(sum, more)| *sum += more);
        }
        kinds
    }

    fn exchange(&mut self) -> bool {
        let sent = self.sides.each_mut().map(|side| side.send(self.now, &PACKET));
        sent == [true; 2] && self.deliver().1 == 2
    }
}

#[test]
fn sides_shake_hands_and_exchange_packets() {
    let mut pair = Pair::connected();
    assert!(pair.exchange());
    // Without padding, whatever is behind the packet.
    let padded = [&PACKET[..], &[0; 8]].concat();
    pair.sides[0].send(pair.now, &padded);
    let message = pair.sides[0].sent.pop().unwrap();
    assert_eq!(pair.sides[1].take(pair.now, &message).unwrap(), PACKET);
    assert_eq!(pair.sides[1].take(pair.now, &message), Err(Error::Replayed));
}

#[test]
fn boringtun_is_understood_in_both_roles_with_and_without_a_preshared_key() {
    for preshared in [None, Some([3; 32])] {
        for ours_first in [true, false] {
            let (now, private, theirs) = (Instant::now(), key(), key());
            let mut ours = Side::new(now, private.clone(), PublicKey::from(&theirs), preshared);
            let other = boringtun::x25519::StaticSecret::from(theirs.to_bytes());
            let public = boringtun::x25519::PublicKey::from(PublicKey::from(&private).to_bytes());
            let mut boring = Tunn::new(other, public, preshared, None, 7, None);
            let mut buffer = [0; 256];
            if ours_first {
                ours.initiate(now);
            } else {
                let result = boring.format_handshake_initiation(&mut buffer, false);
                let TunnResult::WriteToNetwork(message) = result else { panic!("{result:?}") };
                ours.take(now, message).map(drop).unwrap();
            }
            // Until both are silent.
            while let Some(message) = (!ours.sent.is_empty()).then(|| ours.sent.remove(0)) {
                if let TunnResult::WriteToNetwork(answer) = boring.decapsulate(None, &message, &mut buffer) {
                    ours.take(now, answer).map(drop).unwrap();
                }
            }
            assert!(ours.tunnel.is_established(now), "{preshared:?}, ours first: {ours_first}");
            assert!(ours.send(now, &PACKET));
            let result = boring.decapsulate(None, &ours.sent.pop().unwrap(), &mut buffer);
            assert!(matches!(&result, TunnResult::WriteToTunnelV4(packet, _) if **packet == PACKET), "{result:?}");
            let result = boring.encapsulate(&PACKET, &mut buffer);
            let TunnResult::WriteToNetwork(message) = result else { panic!("{result:?}") };
            assert_eq!(ours.take(now, message).unwrap(), PACKET);
        }
    }
}

#[test]
fn preshared_key_reaches_the_handshake_when_it_is_changed() {
    let mut pair = Pair::connected();
    let old = (pair.sides[0].send(pair.now, &PACKET), pair.sides[0].sent.pop().unwrap());
    for (step, [first, second], agree) in
        [(1, [Some([1; 32]), None], false), (2, [Some([1; 32]); 2], true), (3, [None, None], true)]
    {
        pair.now += SECOND;
        for (side, preshared) in pair.sides.iter_mut().zip([first, second]) {
            side.tunnel.change_keys(&side.private.clone(), preshared, &mut side.indices);
        }
        assert_eq!(pair.established(), [false; 2], "step {step}");
        pair.sides[0].initiate(pair.now);
        pair.deliver();
        assert_eq!(pair.established(), [agree; 2], "step {step}");
        assert_eq!(pair.sides[1].take(pair.now, &old.1), Err(Error::Unknown), "the session before is over");
    }
    assert!(pair.exchange());
}

#[test]
fn messages_that_have_not_come_are_counted_over_all_sessions() {
    let mut pair = Pair::connected();
    for expected in [3, 6] {
        (0..3).for_each(|_| drop((pair.sides[0].send(pair.now, &PACKET), pair.sides[0].sent.pop())));
        assert!(pair.exchange());
        assert_eq!(pair.sides[1].tunnel.missing(), expected);
        pair.now += SECOND;
        pair.sides[0].initiate(pair.now);
        pair.deliver();
    }
    assert!(pair.exchange());
    assert_eq!(pair.sides[1].tunnel.missing(), 6, "a new session begins anew");
}

#[test]
fn replayed_initiation_is_refused_also_after_the_keys_were_changed() {
    let mut pair = Pair::new([None; 2]);
    pair.sides[0].initiate(pair.now);
    let old = pair.sides[0].sent[0].clone();
    pair.deliver();
    assert_eq!(pair.sides[1].take(pair.now, &old), Err(Error::Replayed));
    let side = &mut pair.sides[1];
    side.tunnel.change_keys(&side.private.clone(), None, &mut side.indices);
    assert_eq!(side.take(pair.now, &old), Err(Error::Replayed));
}

#[test]
fn initiations_of_one_moment_have_timestamps_in_order() {
    let mut pair = Pair::new([None; 2]);
    for _ in 0..3 {
        pair.sides[0].initiate(pair.now);
        let message = pair.sides[0].sent.pop().unwrap();
        pair.sides[1].take(pair.now, &message).unwrap();
    }
}

#[test]
fn answer_to_the_initiation_before_the_latest_is_good() {
    let mut pair = Pair::new([None; 2]);
    pair.sides[0].initiate(pair.now);
    let first = pair.sides[0].sent.pop().unwrap();
    pair.sides[1].take(pair.now, &first).unwrap();
    let late = pair.sides[1].sent.pop().unwrap();
    pair.sides[0].initiate(pair.now);
    pair.sides[0].take(pair.now, &late).unwrap();
    assert!(pair.sides[0].tunnel.is_established(pair.now));
    assert_eq!(pair.sides[0].take(pair.now, &late), Err(Error::Unknown), "once only");
    pair.deliver();
    assert!(pair.exchange());
}

#[test]
fn both_may_initiate_at_once() {
    let mut pair = Pair::new([None; 2]);
    pair.sides.iter_mut().for_each(|side| side.initiate(pair.now));
    pair.deliver();
    assert!(pair.exchange());
    // Nobody goes on initiating.
    assert_eq!(pair.pass(9 * SECOND)[1], 0);
    assert!(pair.exchange());
}

#[test]
fn data_is_answered_after_ten_seconds_and_a_keepalive_is_not() {
    let mut pair = Pair::connected();
    // Long idle: what comes then is not answered at once, though nothing was sent for long.
    assert_eq!(pair.pass(60 * SECOND), [0; 5]);
    pair.sides[0].send(pair.now, &PACKET);
    assert_eq!(pair.deliver().1, 1);
    assert_eq!(pair.pass(10 * SECOND - SECOND / 4), [0; 5]);
    assert_eq!(pair.pass(SECOND / 4), [0, 0, 0, 0, 1]);
    // Neither side answers that.
    assert_eq!(pair.pass(45 * SECOND), [0; 5]);
}

#[test]
fn keepalive_is_counted_from_the_first_data_that_was_not_answered() {
    let mut pair = Pair::connected();
    let mut keepalives = 0;
    for _ in 0..4 * 29 {
        pair.sides[0].send(pair.now, &PACKET);
        pair.deliver();
        keepalives += pair.pass(SECOND / 4)[usize::from(kind::DATA)];
    }
    assert_eq!(keepalives, 2, "in 29 s of data one way, at 10 s and at 20 s");
}

#[test]
fn silence_after_data_is_a_reason_to_shake_hands_anew() {
    let mut pair = Pair::connected();
    pair.now += 20 * SECOND;
    pair.sides[0].send(pair.now, &PACKET);
    // It is lost.
    pair.sides[0].sent.clear();
    let begin = pair.now;
    while pair.sides[0].sent.is_empty() {
        pair.now += SECOND / 10;
        pair.sides[0].tick(pair.now);
    }
    let after = pair.now - begin;
    assert!(after >= 15 * SECOND && after <= 16 * SECOND, "{after:?}");
    assert_eq!(pair.sides[0].sent[0][0], kind::INITIATION);
    // The session is still used until there is another one.
    assert!(pair.established()[0]);
}

#[test]
fn initiator_renews_the_session_after_two_minutes_if_it_sends_and_the_responder_does_not() {
    for sender in [0, 1] {
        let mut pair = Pair::connected();
        pair.now += 119 * SECOND;
        assert!(pair.exchange());
        assert_eq!(pair.pass(SECOND)[1], 0);
        pair.sides[sender].send(pair.now, &PACKET);
        // The other side answers within ten seconds, but does not send meanwhile.
        assert_eq!(pair.pass(5 * SECOND)[1], usize::from(sender == 0), "sender {sender}");
        assert!(pair.exchange());
    }
}

#[test]
fn initiator_that_only_receives_renews_the_session_before_it_is_over() {
    let mut pair = Pair::connected();
    pair.now += 164 * SECOND;
    pair.sides[1].send(pair.now, &PACKET);
    pair.deliver();
    assert_eq!(pair.pass(SECOND)[1], 0);
    for expected in [1, 0] {
        pair.sides[1].send(pair.now, &PACKET);
        pair.deliver();
        assert_eq!(pair.pass(SECOND)[1], expected);
    }
    assert!(pair.exchange());
}

#[test]
fn session_is_over_after_three_minutes() {
    for suspended in [false, true] {
        let mut pair = Pair::connected();
        let old: Vec<_> =
            (0..2).map(|_| (pair.sides[0].send(pair.now, &PACKET), pair.sides[0].sent.pop().unwrap()).1).collect();
        let early = pair.now + 180 * SECOND - SECOND / 1000;
        assert!(pair.sides[1].take(early, &old[0]).is_ok());
        if suspended {
            // The clock has stood still, and began less than that ago.
            pair.sides.iter_mut().for_each(|side| side.tunnel.age(180 * SECOND));
        } else {
            pair.now += 180 * SECOND;
        }
        assert_eq!(pair.established(), [false; 2]);
        assert!(!pair.sides[0].send(pair.now, &PACKET));
        assert_eq!(pair.sides[1].take(pair.now, &old[1]), Err(Error::Unknown));
        pair.sides.iter_mut().for_each(|side| _ = side.tick(pair.now));
        assert_eq!(pair.sides[1].indices.len(), 0, "its index is free");
    }
}

#[test]
fn handshake_without_an_answer_is_repeated_for_a_minute_and_a_half() {
    let mut pair = Pair::connected();
    let (begin, mut initiations) = (pair.now, 1);
    pair.sides[0].initiate(pair.now);
    loop {
        pair.now += SECOND / 10;
        let expired = pair.sides[0].tick(pair.now);
        initiations += pair.sides[0].sent.drain(..).filter(|message| message[0] == kind::INITIATION).count();
        if expired {
            break;
        }
    }
    let after = pair.now - begin;
    assert!(
        after >= 90 * SECOND && after < 96 * SECOND && (16..=18).contains(&(initiations - 1)),
        "{after:?}: {initiations}"
    );
    assert!(!pair.sides[0].tick(pair.now + 600 * SECOND) && pair.sides[0].sent.is_empty(), "it is given up");
    assert!(!pair.established()[0], "the session is not used any more: nobody has answered");
    assert_eq!(pair.sides[0].indices.len(), 0);
    pair.sides[0].initiate(pair.now);
    pair.deliver();
    assert!(pair.exchange());
}

#[test]
fn session_over_which_the_peer_is_heard_outlives_a_handshake_that_has_no_answer() {
    let mut pair = Pair::connected();
    pair.sides[0].initiate(pair.now);
    for _ in 0..95 {
        pair.now += SECOND;
        pair.sides[0].tick(pair.now);
        pair.sides[0].sent.clear();
        pair.sides[1].send(pair.now, &PACKET);
        let message = pair.sides[1].sent.pop().unwrap();
        pair.sides[0].take(pair.now, &message).unwrap();
    }
    assert!(pair.established()[0] && !pair.sides[0].tunnel.is_initiating());
}

#[test]
fn a_peer_has_five_indices_at_most_and_none_when_it_is_removed() {
    let mut pair = Pair::new([None; 2]);
    for round in 0..50 {
        pair.now += SECOND;
        for side in &mut pair.sides {
            side.initiate(pair.now);
            if fastrand::bool() {
                side.sent.clear();
            }
        }
        pair.deliver();
        let used = pair.sides.each_ref().map(|side| side.indices.len());
        assert!(used.iter().all(|used| *used <= 5), "round {round}: {used:?}");
    }
    pair.sides.iter_mut().for_each(|side| side.tunnel.clear(&mut side.indices));
    assert_eq!(pair.sides.each_ref().map(|side| side.indices.len()), [0; 2]);
}

#[test]
fn cookie_goes_into_the_next_initiation_for_two_minutes() {
    let mut pair = Pair::new([None; 2]);
    let source = SocketAddr::from(([10, 9, 1, 1], 5));
    let mut guard = guard::Guard::new(pair.now, &PublicKey::from(&pair.sides[1].private)).unwrap();
    let side = &mut pair.sides[0];
    let reply = loop {
        side.initiate(pair.now);
        let message = side.sent.pop().unwrap();
        assert_eq!(message[132..], [0; 16], "no cookie yet");
        match guard.judge(pair.now, source, &message, |_| false) {
            Judgement::Decrypt => {}
            Judgement::Cookie(reply) => break reply,
            Judgement::Refuse => panic!("refused"),
        }
    };
    let mut scratch = [0; 148];
    for at in 0..reply.len() {
        let mut changed = reply;
        changed[at] ^= 1;
        assert!(side.tunnel.receive(pair.now, &changed, &mut scratch, &mut side.indices).is_err(), "byte {at}");
    }
    assert_eq!(side.tunnel.receive(pair.now, &reply, &mut scratch, &mut side.indices), Ok(Received::Cookie));
    assert_eq!(
        side.tunnel.receive(pair.now, &reply, &mut scratch, &mut side.indices),
        Err(Error::Unknown),
        "once only"
    );
    for (after, has_cookie) in [(0, true), (119, true), (120, false)] {
        side.initiate(pair.now + after * SECOND);
        let message = side.sent.pop().unwrap();
        assert_eq!(message[132..] != [0; 16], has_cookie, "after {after} s");
        if after == 0 {
            assert_eq!(guard.judge(pair.now, source, &message, |_| false), Judgement::Decrypt);
        }
    }
}

#[test]
fn key_without_a_shared_secret_makes_no_initiation() {
    let mut side = Side::new(Instant::now(), key(), PublicKey::from([0; 32]), None);
    side.initiate(Instant::now());
    assert!(side.sent.is_empty() && side.indices.len() == 0);
}

proptest! {
    // A handshake takes some milliseconds without optimization.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_panic_or_are_taken(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..6, len in 0usize..6) {
        let mut pair = Pair::connected();
        // Lengths and headers that are right, too.
        let lengths = [148, 92, 64, 32, 48, bytes.len()];
        bytes.resize(lengths[len], 0);
        if let Some(header) = bytes.first_chunk_mut::<4>() {
            *header = [kind, 0, 0, 0];
        }
        if let Some(index) = bytes.get_mut(4..8) {
            index.copy_from_slice(&pair.sides[0].tunnel.current.as_ref().unwrap().ours.to_le_bytes());
        }
        prop_assert!(pair.sides[0].take(pair.now, &bytes).is_err());
        prop_assert!(pair.exchange());
    }

    /// Whatever is lost, reordered or repeated: once nothing is any more, packets arrive.
    #[test]
    fn sides_find_each_other_again(steps in prop::collection::vec((0u8..8, 0usize..2), 0..200)) {
        let mut pair = Pair::new([None; 2]);
        let mut under_way: Vec<(usize, Vec<u8>)> = Vec::new();
        for (step, side) in steps {
            let now = pair.now;
            match step {
                0 => pair.sides[side].initiate(now),
                1 => drop(pair.sides[side].send(now, &PACKET)),
                2 => pair.now += SECOND / 5,
                3 => pair.now += 40 * SECOND,
                4 if !under_way.is_empty() => drop(under_way.remove(0)),
                5 => under_way.reverse(),
                6 if !under_way.is_empty() => under_way.push(under_way[0].clone()),
                _ if !under_way.is_empty() => {
                    let (to, message) = under_way.remove(0);
                    let _ = pair.sides[to].take(now, &message);
                }
                _ => {}
            }
            for side in 0..2 {
                pair.sides[side].tick(pair.now);
                let sent = std::mem::take(&mut pair.sides[side].sent);
                under_way.extend(sent.into_iter().map(|message| (1 - side, message)));
            }
        }
        for side in &mut pair.sides {
            prop_assert!(side.indices.len() <= 5);
        }
        pair.sides[0].initiate(pair.now);
        pair.deliver();
        prop_assert!(pair.exchange());
    }
}
