use std::{
    iter,
    sync::{Arc, atomic::AtomicU32},
    task::Wake,
};

use super::*;

const MS: Duration = Duration::from_millis(1);
const A: Bottleneck = Bottleneck::Path(1);
const B: Bottleneck = Bottleneck::Path(2);

fn refused(bottleneck: Bottleneck, by: By) -> Refused {
    Refused { bottleneck, by, recovery: None, longest: None }
}

/// A clock that stands still, and wakers that count.
struct Line {
    c: Contention,
    now: Instant,
    woken: Vec<Arc<Counts>>,
}

#[derive(Default)]
struct Counts(AtomicU32);

impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl Line {
    /// Senders from 1 on, each of which waits for what is given.
    fn of(waiting: &[Bottleneck]) -> Self {
        let woken = (0..=waiting.len()).map(|_| Arc::default()).collect();
        let mut line = Self { c: Contention::default(), now: Instant::now(), woken };
        for (sender, bottleneck) in (1..).zip(waiting) {
            line.refused(sender, *bottleneck, By::Timer);
            line.wait(sender);
        }
        line
    }

    fn refused(&self, sender: u32, bottleneck: Bottleneck, by: By) {
        self.c.refused(sender, refused(bottleneck, by), self.now);
    }

    fn wait(&mut self, sender: u32) -> Place {
        self.c.wait(sender, &self.woken[sender as usize].clone().into(), self.now)
    }

    /// Room for a sender that waits, or for one that does not and sends elsewhere.
    fn found_room(&self, sender: u32) {
        self.c.found_room(sender, iter::empty(), || self.now);
    }

    /// Which were woken since this was asked last and have something to try; not the one that is to look in time.
    fn woken(&self) -> Vec<usize> {
        let queues = self.c.queues();
        let has_to_try = |sender: u32| {
            let waiter = queues.waiters.get(&sender)?;
            let probes = queues.groups.get(&waiter.bottleneck)?.prober_id() == Some(sender);
            (waiter.called || probes).then_some(())
        };
        let woken = self.woken.iter().enumerate().filter(|(_, woken)| woken.0.swap(0, Relaxed) > 0);
        woken.map(|(sender, _)| sender).filter(|sender| has_to_try(*sender as u32).is_some()).collect()
    }

    fn is_woken(&self, sender: usize) -> bool {
        self.woken[sender].0.load(Relaxed) > 0
    }

    fn probers(&mut self) -> Vec<u32> {
        (1..self.woken.len() as u32).filter(|sender| self.wait(*sender).probes).collect()
    }
}

#[test]
fn of_those_that_wait_for_the_same_one_probes() {
    let mut line = Line::of(&[A, A, B, A, Bottleneck::Socket, Bottleneck::Sender(6)]);
    assert_eq!(line.probers(), [1, 3, 5, 6]);
    assert_eq!(line.c.waiting.load(Relaxed), 6);
    assert!(line.wait(1).yielding && !line.wait(2).yielding);
    // The second looks soon whether it does, the others seldom.
    let due = [2, 4].map(|sender| line.wait(sender).at - line.now);
    assert!(due[0] == 25 * MS && (100 * MS..200 * MS).contains(&due[1]), "{due:?}");
    assert!(line.woken().is_empty());
}

#[test]
fn all_that_wait_are_called_when_the_socket_is_replaced() {
    let mut line = Line::of(&[A, A, B, Bottleneck::Socket]);
    assert_eq!(line.c.replaced(), 0);
    line.c.socket_replaced();
    assert_eq!((line.woken(), line.c.replaced()), (vec![1, 2, 3, 4], 1));
    assert!((1..=4).all(|sender| line.wait(sender).called));
    assert!((1..=4).all(|sender| !line.wait(sender).called), "once");
}

#[test]
fn a_prober_that_goes_hands_over_at_once() {
    let mut line = Line::of(&[A; 4]);
    line.c.leave(1, line.now);
    assert!(line.is_woken(3), "it is to look in time whether 2 has come");
    assert!(line.c.is_nobodys_turn(), "nobody has found room");
    assert_eq!((line.woken(), line.wait(2).probes, line.wait(3).probes), (vec![2], true, false));
    line.c.leave(3, line.now);
    assert!(line.woken().is_empty(), "it was not the prober");
    line.refused(2, B, By::Timer);
    assert_eq!((line.woken(), line.wait(4).probes, line.wait(2).probes), (vec![4], true, true), "it waits for another");
    line.c.leave(4, line.now);
    line.c.leave(2, line.now);
    assert_eq!(line.c.waiting.load(Relaxed), 0);
    let queues = line.c.queues();
    assert!(queues.waiters.is_empty() && queues.groups.is_empty() && queues.rota.is_empty(), "nothing is kept");
    drop(queues);
    assert!(line.woken.iter().all(|counts| Arc::strong_count(counts) == 1));
}

#[test]
fn a_prober_that_does_not_come_is_replaced() {
    let mut line = Line::of(&[A; 4]);
    let at = line.wait(1).at;
    line.now = at + 25 * MS - MS / 10;
    assert!((2..=4).all(|sender| !line.wait(sender).probes));
    line.now = at + 25 * MS;
    assert!(line.wait(2).probes && !line.wait(3).probes);
    assert!(line.wait(2).at <= line.now, "it is to try at once");
    assert!(line.is_woken(3), "it is to look in time");
    assert_eq!(line.wait(3).at, line.now + 25 * MS);
    // Neither does the second come any more: anyone who looks then takes its place.
    line.now += 25 * MS;
    assert!(line.wait(4).probes && !line.wait(3).probes);
    assert_eq!(line.c.waiting.load(Relaxed), 2);
    assert_eq!(line.wait(3).at, line.now + 25 * MS);
    // A sender that comes late is the last in its group.
    assert!(!line.wait(1).probes && !line.wait(2).probes);
    line.c.leave(4, line.now);
    line.c.leave(3, line.now);
    assert!(line.wait(1).probes && !line.wait(2).probes);
    assert_eq!(line.c.waiting.load(Relaxed), 2);
}

/// As many as there are look as seldom.
#[test]
fn thousands_look_a_hundred_times_a_second() {
    let mut line = Line::of(&[A; 4000]);
    let looks: f64 = (3..=4000).map(|sender| 1.0 / (line.wait(sender).at - line.now).as_secs_f64()).sum();
    assert!(looks < 100.0, "{looks}");
}

#[test]
fn the_longest_waiting_is_called_first_and_one_at_a_time() {
    let mut line = Line::of(&[A; 3]);
    line.found_room(1);
    assert_eq!((line.woken(), line.c.is_nobodys_turn()), (vec![2], false));
    line.found_room(1);
    assert!(line.woken().is_empty(), "2 has not come");
    let place = line.wait(2);
    assert!(place.called && place.probes && line.c.is_nobodys_turn());
    assert!(!line.wait(2).called, "once");
    assert!(!line.wait(1).probes, "who was called probes from then on");
    for (sender, next) in [(2, 3), (3, 1), (1, 2)] {
        line.found_room(sender);
        assert_eq!(line.woken(), [next], "who has found room is the last in line");
        assert!(line.wait(next as u32).called);
    }
}

#[test]
fn a_call_is_passed_on_by_one_that_goes() {
    let mut line = Line::of(&[A; 3]);
    line.found_room(1);
    line.c.leave(2, line.now);
    assert_eq!(line.woken(), [3]);
    assert!(!line.c.is_nobodys_turn(), "it is its turn");
    assert!(line.wait(3).called && line.c.is_nobodys_turn());
    line.found_room(3);
    line.c.leave(3, line.now);
    assert_eq!(line.woken(), [1]);
    line.c.leave(1, line.now);
    assert!(line.c.is_nobodys_turn(), "nobody is left");
}

#[test]
fn after_a_call_for_nothing_only_those_who_wait_for_the_same_call() {
    let mut line = Line::of(&[]);
    let to = ([127, 0, 0, 1], 1).into_path();
    let path = line.c.path(to);
    for sender in 1..=3 {
        line.woken.push(Arc::default());
        line.refused(sender, path, By::Timer);
        line.wait(sender);
    }
    line.now += 5 * MS;
    line.c.found_room(9, iter::once(to), || line.now);
    assert_eq!(line.woken(), [1]);
    line.wait(1);
    line.refused(1, path, By::Call);
    line.woken();
    line.c.found_room(9, iter::once(to), || line.now);
    assert!(line.woken().is_empty());
    line.found_room(1);
    assert_eq!(line.woken(), [2], "it had room after all");
}

/// Only the first in line cannot use the room.
#[test]
fn one_that_is_called_for_nothing_passes_the_call_on_once() {
    let mut line = Line::of(&[A; 4]);
    line.found_room(1);
    assert_eq!(line.woken(), [2]);
    line.wait(2);
    line.refused(2, A, By::Call);
    assert_eq!(line.woken(), [3], "the next in line");
    let place = line.wait(3);
    assert!(place.called && !place.probes, "2 goes on trying");
    line.refused(3, A, By::Call);
    assert!(line.woken().is_empty());
    assert_eq!(line.probers(), [2]);
    // Long after there was room a call is only a try.
    line.now += 50 * MS;
    line.found_room(9);
    assert_eq!(line.woken(), [3]);
    assert!(line.wait(3).probes);
    line.refused(3, A, By::Call);
    assert!(line.woken().is_empty());
}

#[test]
fn another_group_is_called_if_there_is_none_for_the_same() {
    let mut line = Line::of(&[A, B, B, Bottleneck::Sender(4)]);
    let path = line.c.path(([127, 0, 0, 1], 1).into_path());
    assert!(!matches!(path, Bottleneck::Socket));
    line.found_room(1);
    assert_eq!(line.woken(), [2], "of the group that was tried longest ago");
    line.wait(2);
    line.found_room(2);
    assert_eq!(line.woken(), [3], "waits for the same");
    line.wait(3);
    line.found_room(9);
    assert_eq!(line.woken(), [4], "B was called lately");
    line.wait(4);
    line.refused(4, Bottleneck::Sender(4), By::Call);
    line.found_room(9);
    assert!(line.woken().is_empty(), "the last such call was for nothing");
    line.now += SPACING;
    line.found_room(9);
    assert_eq!(line.woken(), [1], "a moment ago");
}

#[test]
fn room_calls_one_sender_whatever_others_wait_for() {
    let mut line = Line::of(&[A, A, Bottleneck::Socket]);
    line.found_room(1);
    assert_eq!(line.woken(), [2]);
    assert!(!line.wait(3).called);
}

/// The timer has shown that one sender waits long; an event that was worthless shows nothing.
#[test]
fn a_worthless_event_replaces_no_prober() {
    let mut line = Line::of(&[Bottleneck::Socket; 3]);
    for _ in 0..3 {
        line.now = line.wait(1).at;
        line.refused(1, Bottleneck::Socket, By::Timer);
    }
    assert_eq!(line.probers(), [2]);
    line.now += 200 * MS;
    line.woken();
    line.refused(2, Bottleneck::Socket, By::Readiness);
    assert!(line.woken().is_empty());
    assert!(line.wait(2).probes);
}

trait IntoPath {
    fn into_path(self) -> (SocketAddr, Option<IpAddr>);
}

impl IntoPath for ([u8; 4], u16) {
    fn into_path(self) -> (SocketAddr, Option<IpAddr>) {
        (self.into(), None)
    }
}

#[test]
fn a_path_is_a_destination_and_a_source() {
    let c = Contention::default();
    let (to, from) = (([127, 0, 0, 1], 1).into(), Some([127, 0, 0, 2].into()));
    assert_eq!(c.path((to, from)), c.path((to, from)));
    assert_ne!(c.path((to, from)), c.path((to, None)));
    assert_ne!(c.path((to, None)), c.path((([127, 0, 0, 1], 2).into(), None)));
}

#[test]
fn a_sender_yields_to_one_that_was_called_and_may_want_the_same_room() {
    let mut line = Line::of(&[A, A]);
    let to = ([127, 0, 0, 1], 1).into_path();
    let path = line.c.path(to);
    assert_eq!(line.c.turn_of_another(9, to, 0), None);
    line.found_room(1);
    assert_eq!(line.c.turn_of_another(9, to, 0), None, "another path's");
    line.wait(2);
    for sender in [3, 4] {
        line.woken.push(Arc::default());
        line.refused(sender, path, By::Timer);
        line.wait(sender);
    }
    line.c.found_room(3, iter::once(to), || line.now);
    let turn = line.c.turn_of_another(9, to, 0).unwrap();
    assert_eq!(line.c.turn_of_another(9, to, turn), None, "once");
    assert_eq!(line.c.turn_of_another(4, to, 0), None, "its own");
    // Two of them that do not come are each yielded to once.
    line.found_room(9);
    let crossed = line.c.turn_of_another(9, ([127, 0, 0, 1], 2).into_path(), 0).unwrap();
    assert!(crossed > turn);
    assert_eq!(line.c.turn_of_another(9, to, crossed), None);
    line.wait(1);
    line.wait(4);
    assert_eq!(line.c.turn_of_another(9, to, 0), None);
    // One that does not wait and is called by one that has found room elsewhere.
    line.c.leave(3, line.now);
    line.c.leave(4, line.now);
    line.c.leave(1, line.now);
    line.found_room(9);
    assert!(line.c.turn_of_another(9, to, 0).is_some(), "it may be the same queue");
}

#[test]
fn a_prober_that_waits_as_long_as_ever_lets_the_next_try() {
    let mut line = Line::of(&[A; 3]);
    // Two yields, 1 ms, and eight times 2.
    for _ in 0..11 {
        assert_eq!(line.probers(), [1]);
        line.now = line.wait(1).at;
        line.refused(1, A, By::Timer);
    }
    for prober in [2, 3, 1, 2] {
        assert_eq!((line.woken(), line.probers()), (vec![prober as usize], vec![prober]));
        line.now = line.wait(prober).at;
        line.refused(prober, A, By::Timer);
    }
    assert_eq!(line.woken(), [3]);
}

/// A thousand groups: each in its turn, four a millisecond.
#[test]
fn many_groups_share_four_attempts_a_millisecond() {
    let groups: Vec<_> = (0..1000).map(Bottleneck::Path).collect();
    let mut line = Line::of(&groups);
    let began = line.now;
    let mut due: BTreeMap<_, _> = (1..=1000).map(|sender| ((line.wait(sender).at, sender), ())).collect();
    let mut tries = HashMap::<_, u32>::new();
    while let Some(((at, sender), ())) = due.pop_first() {
        if at > began + 10_000 * MS {
            break;
        }
        line.now = at;
        *tries.entry(sender).or_default() += 1;
        line.refused(sender, groups[sender as usize - 1], By::Timer);
        due.insert((line.wait(sender).at, sender), ());
    }
    // 40 each, and those of the first round, when there were fewer groups.
    assert!(tries.len() == 1000 && tries.values().all(|&tries| (35..=60).contains(&tries)), "{tries:?}");
    assert!(tries.values().sum::<u32>() <= 44_000);
}

#[test]
fn one_that_was_called_and_does_not_come_leaves_its_group() {
    let mut line = Line::of(&[A; 3]);
    line.found_room(1);
    line.woken();
    line.now += PATIENCE - MS;
    line.found_room(1);
    assert!(line.woken().is_empty());
    line.now += MS;
    line.found_room(1);
    assert_eq!(line.woken(), [3]);
    assert_eq!(line.c.waiting.load(Relaxed), 2);
    // It comes late, and was called all the same.
    assert!(line.wait(2).called && !line.wait(2).called);
    assert_eq!(line.c.waiting.load(Relaxed), 3);
    assert!(line.wait(3).called && line.c.is_nobodys_turn());
}

/// Polls where it is woken, as executors may; and owns a sender.
#[test]
fn a_waker_may_use_the_queue_when_it_is_woken_and_when_it_is_dropped() {
    struct Polls(Arc<Contention>, AtomicU32);
    impl Wake for Polls {
        fn wake(self: Arc<Self>) {
            assert!(self.0.wait(2, Waker::noop(), Instant::now()).called);
            self.1.fetch_add(1, Relaxed);
        }
    }
    impl Drop for Polls {
        fn drop(&mut self) {
            self.0.leave(3, Instant::now());
        }
    }
    let c = Arc::new(Contention::default());
    let polls = Arc::new(Polls(c.clone(), AtomicU32::new(0)));
    let now = Instant::now();
    c.refused(2, refused(A, By::Timer), now);
    c.wait(2, &polls.clone().into(), now);
    c.found_room(1, iter::empty(), || now);
    assert_eq!(polls.1.load(Relaxed), 1);
    c.wait(2, &polls.into(), now);
    c.wait(2, Waker::noop(), now);
    let polls = Arc::new(Polls(c.clone(), AtomicU32::new(0)));
    c.wait(2, &polls.into(), now);
    c.leave(2, now);
}

#[test]
fn a_group_that_was_tried_lately_is_the_last_to_be_called_by_others() {
    let mut line = Line::of(&[A, B]);
    line.refused(1, A, By::Timer);
    line.found_room(9);
    assert_eq!(line.woken(), [2], "A was tried since");
    line.wait(2);
    line.found_room(9);
    assert_eq!(line.woken(), [1], "B was called since");
    line.wait(1);
    line.found_room(9);
    assert_eq!(line.woken(), [2]);
}

#[test]
fn one_that_waits_for_the_same_is_not_passed_over_for_another_group() {
    let mut line = Line::of(&[B]);
    let to = ([127, 0, 0, 1], 1).into_path();
    line.woken.push(Arc::default());
    line.refused(2, line.c.path(to), By::Timer);
    line.wait(2);
    line.c.found_room(9, iter::once(to), || line.now);
    assert_eq!(line.woken(), [2]);
    line.c.found_room(9, iter::once(to), || line.now);
    assert!(line.woken().is_empty() && !line.wait(1).called, "2 has not come");
}

#[test]
fn who_waits_for_the_send_buffer_is_called_by_anyone_who_has_no_other_to_call() {
    let mut line = Line::of(&[A, Bottleneck::Socket]);
    line.found_room(1);
    assert_eq!((line.woken(), line.wait(2).called), (vec![2], true));
    let queues = line.c.queues();
    assert!(queues.crossed.is_none(), "room is the send buffer's too");
}

#[test]
fn one_that_is_called_while_it_tries_keeps_its_turn() {
    let mut line = Line::of(&[A, A]);
    for _ in 0..11 {
        line.now = line.wait(1).at;
        line.refused(1, A, By::Timer);
    }
    assert!(line.wait(2).probes);
    line.now = line.wait(2).at;
    // Another has found room meanwhile, and called 2: 1 was called last.
    line.found_room(9);
    assert_eq!(line.woken(), [1]);
    line.now += 50 * MS;
    line.refused(1, A, By::Timer);
    assert!(!line.c.is_nobodys_turn());
    let place = line.wait(1);
    assert!(place.called && place.probes && line.c.is_nobodys_turn());
}

#[test]
fn one_that_was_replaced_waits_again_when_it_is_refused() {
    let mut line = Line::of(&[A, A]);
    line.now += 25 * MS;
    assert!(line.wait(2).probes);
    assert_eq!(line.c.waiting.load(Relaxed), 1);
    line.refused(1, A, By::Timer);
    assert_eq!(line.c.waiting.load(Relaxed), 2);
}

#[test]
fn one_that_was_called_is_late_by_the_call_and_not_by_its_timer() {
    let mut line = Line::of(&[Bottleneck::Socket; 3]);
    // The timer of the group is 100 ms off.
    for _ in 0..3 {
        line.now = line.wait(1).at;
        line.refused(1, Bottleneck::Socket, By::Timer);
    }
    line.found_room(9);
    assert_eq!(line.woken(), [1]);
    line.now += 25 * MS - MS / 10;
    assert!(!line.wait(2).probes && !line.wait(3).probes);
    line.now += MS / 10;
    assert!(line.wait(2).probes, "the backstop is not waited for");
}
