//! The queue packet by packet.

use proptest::prelude::*;

use super::{super::codel::TARGET, *};
use crate::packet::{checksum::Sum, header::protocol};

const MTU: usize = 1420;
const NO_BOUND: usize = usize::MAX;

/// An IPv4 packet of `len` bytes from this port, in place of whose payload there is a number.
fn packet(protocol: u8, port: u16, ecn: u8, len: usize, number: u32) -> Vec<u8> {
    let mut packet = vec![0; virtio::LEN + len.max(32)];
    let ip = &mut packet[virtio::LEN..];
    ip[..2].copy_from_slice(&[0x45, ecn]);
    ip[2..4].copy_from_slice(&(len.max(32) as u16).to_be_bytes());
    (ip[8], ip[9]) = (64, protocol);
    let sum = Sum::default().bytes(&ip[..20]).checksum();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip[20..22].copy_from_slice(&port.to_be_bytes());
    ip[28..32].copy_from_slice(&number.to_be_bytes());
    packet
}

fn tcp(port: u16, number: u32) -> Vec<u8> {
    packet(protocol::TCP, port, 0, MTU, number)
}

fn port_and_number(packet: &[u8]) -> (u16, u32) {
    (u16::from_be_bytes([packet[30], packet[31]]), u32::from_be_bytes(packet[38..42].try_into().unwrap()))
}

fn order(queue: &mut Fair, now: Instant) -> Vec<(u16, u32)> {
    std::iter::from_fn(|| queue.dequeue(now, NO_BOUND, MTU)).map(|next| port_and_number(&next.packet)).collect()
}

#[test]
fn gives_back_what_came_in() {
    let (mut queue, now) = (Fair::new(1), Instant::now());
    let odd: [&[u8]; 5] = [&[], &[1], &[0; 9], &[0; 10], &[0xff; 70_000]];
    for packet in odd {
        queue.enqueue(now, packet, NO_BOUND);
    }
    assert_eq!((queue.packets(), queue.bytes()), (5, 70_020));
    for packet in odd {
        let next = queue.dequeue(now + TARGET, NO_BOUND, MTU).unwrap();
        assert_eq!((&*next.packet, next.drop_first_segment, next.waited), (packet, false, TARGET));
    }
    assert_eq!((queue.dequeue(now, NO_BOUND, MTU), queue.packets(), queue.bytes()), (None, 0, 0));
}

#[test]
fn flows_take_turns_and_a_sparse_one_goes_first() {
    let (mut queue, now) = (Fair::new(1), Instant::now());
    for number in 0..100 {
        queue.enqueue(now, &tcp(1, number), NO_BOUND);
    }
    for number in 0..3 {
        queue.enqueue(now, &tcp(2, number), NO_BOUND);
    }
    let first: Vec<_> = (0..6).map(|_| port_and_number(&queue.dequeue(now, NO_BOUND, MTU).unwrap().packet)).collect();
    assert_eq!(first, [(1, 0), (1, 1), (2, 0), (2, 1), (1, 2), (2, 2)]);
    // A ping comes, and goes before all that waits.
    queue.enqueue(now, &packet(protocol::ICMP, 0, 0, 84, 7), NO_BOUND);
    let rest = order(&mut queue, now);
    assert_eq!(rest[0].1, 7);
    assert!(rest[1..].iter().map(|(_, number)| *number).eq(3..100));
}

#[test]
fn a_train_is_paid_for_over_many_rounds() {
    let (mut queue, now) = (Fair::new(1), Instant::now());
    for number in 0..10 {
        queue.enqueue(now, &packet(protocol::TCP, 1, 0, 60_000, number), NO_BOUND);
    }
    for number in 0..400 {
        queue.enqueue(now, &tcp(2, number), NO_BOUND);
    }
    let mut bytes = [0; 2];
    while bytes[0] + bytes[1] < 900_000 {
        let next = queue.dequeue(now, NO_BOUND, MTU).unwrap().packet;
        bytes[usize::from(port_and_number(&next).0) - 1] += next.len();
    }
    assert!(bytes[0].abs_diff(bytes[1]) < 62_000, "{bytes:?}");
}

#[test]
fn the_fattest_flow_loses_its_oldest() {
    let (mut queue, now) = (Fair::new(1), Instant::now());
    let bound = 20 * tcp(0, 0).len();
    for number in 0..5 {
        queue.enqueue(now, &tcp(1, number), bound);
    }
    for number in 0..50 {
        queue.enqueue(now, &tcp(2, number), bound);
    }
    assert_eq!((queue.packets(), queue.counters().overflowed), (20, 35));
    let (slim, fat): (Vec<_>, Vec<_>) = order(&mut queue, now).into_iter().partition(|(port, _)| *port == 1);
    assert!(slim.into_iter().map(|(_, number)| number).eq(0..5));
    assert!(fat.into_iter().map(|(_, number)| number).eq(35..50));
    // Where the bound fell, all go that are too many.
    for number in 0..15 {
        queue.enqueue(now, &tcp(1, number), bound);
    }
    queue.enqueue(now, &tcp(2, 0), 2 * tcp(0, 0).len());
    assert_eq!(queue.packets(), 2);
}

#[test]
fn what_is_ecn_capable_is_marked_and_loses_nothing() {
    let (mut queue, start) = (Fair::new(1), Instant::now());
    for number in 0..300 {
        queue.enqueue(start, &packet(protocol::TCP, 1, 2, MTU, number), NO_BOUND);
    }
    for ms in 0..300 {
        let next = queue.dequeue(start + Duration::from_millis(10 + ms), NO_BOUND, MTU).unwrap().packet;
        assert_eq!(Sum::default().bytes(&next[10..30]).folded(), 0xffff);
    }
    let counters = queue.counters();
    assert_eq!((counters.marked, counters.dropped, counters.dequeued), (3, 0, 300));
}

/// Takes `count` packets, one each 1/8 ms, that came 1/8 ms apart and wait for `waited` microseconds. Returns which are marked.
fn marks_of_a_steady_queue(ecn: u8, waited: u64, count: u32) -> Vec<bool> {
    let (mut queue, start) = (Fair::new(1), Instant::now());
    let at = |number: u32, micros: u64| start + Duration::from_micros(u64::from(number) * 125 + micros);
    let mut next = 0;
    let taken = (0..count).map(|number| {
        let now = at(number, waited);
        while at(next, 0) <= now {
            queue.enqueue(at(next, 0), &packet(protocol::UDP, 1, ecn, MTU, next), NO_BOUND);
            next += 1;
        }
        let taken = queue.dequeue(now, NO_BOUND, MTU).unwrap();
        ecn::of(&taken.packet[virtio::LEN..]) == Some(Ecn::Ce)
    });
    taken.collect()
}

#[test]
fn ect1_is_marked_from_one_millisecond_on_and_ect0_by_codel_alone() {
    assert!(!marks_of_a_steady_queue(1, 999, 4000).contains(&true));
    assert!(!marks_of_a_steady_queue(1, 1000, 4000).contains(&false), "each packet, from the first on");
    assert!(!marks_of_a_steady_queue(2, 4999, 4000).contains(&true));
    let classic = marks_of_a_steady_queue(2, 5000, 4000);
    assert_eq!((classic[..800].contains(&true), classic[800]), (false, true), "after CoDel's interval");
    assert!(!marks_of_a_steady_queue(0, 1000, 4000).contains(&true), "what is not capable");
}

#[test]
fn single_packet_of_an_l4s_flow_is_not_marked_but_a_train_is() {
    for (len, marked) in [(MTU, 0), (MTU + 1, 1)] {
        let (mut queue, now) = (Fair::new(1), Instant::now());
        // Another flow's backlog is not its own.
        (0..20).for_each(|number| queue.enqueue(now, &tcp(1, number), NO_BOUND));
        queue.enqueue(now, &packet(protocol::TCP, 2, 1, len, 20), NO_BOUND);
        while queue.dequeue(now + TARGET / 2, NO_BOUND, MTU).is_some() {}
        assert_eq!(queue.counters().marked, marked, "{len} bytes");
    }
}

#[test]
fn what_is_not_loses_packets_or_the_first_segment_of_a_train() {
    for train in [false, true] {
        let (mut queue, start) = (Fair::new(1), Instant::now());
        for number in 0..300 {
            let mut packet = tcp(1, number);
            packet[1] = if train { virtio::GSO_TCPV4 } else { virtio::GSO_NONE };
            queue.enqueue(start, &packet, NO_BOUND);
        }
        let at = |ms: u64| start + Duration::from_millis(10 + ms);
        let taken: Vec<_> = (0..300).map_while(|ms| queue.dequeue(at(ms), NO_BOUND, MTU)).collect();
        let signals = [100, 200, 271];
        let counters = queue.counters();
        if train {
            assert_eq!((counters.dequeued, counters.first_segment_dropped, counters.dropped), (300, 3, 0));
            assert!(taken.iter().enumerate().all(|(ms, next)| next.drop_first_segment == signals.contains(&ms)));
        } else {
            assert_eq!((counters.dequeued, counters.first_segment_dropped, counters.dropped), (297, 0, 3));
            let numbers = taken.iter().map(|next| port_and_number(&next.packet).1);
            assert!(numbers.eq((0..300).filter(|number| ![100, 201, 273].contains(number))));
        }
    }
}

#[test]
fn half_of_the_bound_is_marked_at_once_but_not_for_a_slim_flow() {
    let (mut queue, now) = (Fair::new(1), Instant::now());
    let bound = 20 * tcp(0, 0).len();
    for number in 0..15 {
        queue.enqueue(now, &packet(protocol::TCP, 1, 2, MTU, number), bound);
    }
    queue.enqueue(now, &packet(protocol::TCP, 2, 2, MTU, 15), bound);
    let marked = |next: &Dequeued| ecn::of(&next.packet[10..]) == Some(backwater_udp::Ecn::Ce);
    let taken: Vec<_> = std::iter::from_fn(|| queue.dequeue(now, bound, MTU)).map(|next| marked(&next)).collect();
    // The slim flow's packet is the third.
    assert_eq!(taken[..5], [true, true, false, true, true]);
    assert!(!taken[5..].contains(&true));
}

#[test]
fn reads_beyond_the_bound_for_what_does_not_heed_it() {
    let start = Instant::now();
    let bound = 10 * tcp(0, 0).len();
    for ecn in [0, 2] {
        let mut queue = Fair::new(1);
        let mut number = 0;
        let mut fill = |queue: &mut Fair, now| {
            while queue.bytes() < bound {
                assert!(queue.has_room(now, bound));
                queue.enqueue(now, &packet(protocol::UDP, 1, ecn, MTU, number), bound);
                number += 1;
            }
        };
        for ms in 0..200 {
            let now = start + Duration::from_millis(ms);
            fill(&mut queue, now);
            assert!(!queue.has_room(now, bound));
            queue.dequeue(now, bound, MTU);
        }
        let now = start + TO_HEED;
        fill(&mut queue, now);
        assert_eq!(queue.has_room(now, bound), ecn == 0);
        // It does once half is gone.
        while queue.bytes() > bound / 2 {
            queue.dequeue(now, bound, MTU);
        }
        queue.dequeue(now, bound, MTU);
        fill(&mut queue, now);
        assert!(!queue.has_room(now, bound));
    }
}

#[test]
fn an_idle_queue_is_small() {
    let mut queue = Fair::new(1);
    let now = Instant::now();
    for number in 0..20_000 {
        queue.enqueue(now, &packet(protocol::UDP, number as u16, 0, 40, number), NO_BOUND);
    }
    assert_eq!(order(&mut queue, now).len(), 20_000);
    let places: usize = queue.flows.iter().map(|flow| flow.packets.capacity()).sum();
    assert!(FLOWS * size_of::<FlowQueue>() <= 32 << 10 && places <= FLOWS * KEPT, "{places}");
}

#[derive(Clone, Debug)]
enum Step {
    Enqueue { flow: u16, len: usize, ecn: u8, train: bool },
    Dequeue,
    Wait(u64),
    Bound(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..6u16, prop_oneof![32..1500usize, 1500..65_000usize], 0..4u8, any::<bool>())
            .prop_map(|(flow, len, ecn, train)| Step::Enqueue { flow, len, ecn, train }),
        4 => Just(Step::Dequeue),
        1 => (0..150u64).prop_map(Step::Wait),
        1 => (0..200_000usize).prop_map(Step::Bound),
    ]
}

proptest! {
    #[test]
    fn nothing_is_lost_uncounted_or_out_of_order(steps in proptest::collection::vec(step(), 0..400), seed: u64) {
        let mut queue = Fair::new(seed);
        let (mut now, mut bound, mut number) = (Instant::now(), 100_000, 0);
        let mut last = [None; 6];
        for step in steps {
            match step {
                Step::Wait(ms) => now += Duration::from_millis(ms),
                Step::Bound(bytes) => bound = bytes,
                Step::Enqueue { flow, len, ecn, train } => {
                    let mut bytes = packet(protocol::TCP, flow, ecn, len, number);
                    bytes[1] = u8::from(train);
                    queue.enqueue(now, &bytes, bound);
                    number += 1;
                    prop_assert!(queue.bytes() < bound.max(1) + bytes.len());
                }
                Step::Dequeue => {
                    let waits = queue.packets() > 0;
                    let next = queue.dequeue(now, bound, MTU);
                    prop_assert_eq!(next.is_some(), waits);
                    if let Some(next) = next {
                        let (flow, number) = port_and_number(&next.packet);
                        let before = last[usize::from(flow)].replace(number);
                        prop_assert!(before < Some(number));
                        prop_assert!(!next.drop_first_segment || next.packet[1] == 1);
                    }
                }
            }
            let counters = queue.counters();
            let gone = counters.dequeued + counters.dropped + counters.overflowed;
            prop_assert_eq!(counters.enqueued, gone + queue.packets() as u64);
            prop_assert_eq!(queue.bytes(), queue.flows.iter().map(|flow| flow.bytes).sum::<usize>());
            prop_assert_eq!(queue.packets(), queue.flows.iter().map(|flow| flow.packets.len()).sum::<usize>());
        }
    }

    #[test]
    fn any_bytes(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..40)) {
        let (mut queue, now) = (Fair::new(1), Instant::now());
        for packet in &packets {
            queue.enqueue(now, packet, 1000);
        }
        while queue.dequeue(now + INTERVAL, 100, 40).is_some() {}
        prop_assert_eq!(queue.bytes(), 0);
    }
}
