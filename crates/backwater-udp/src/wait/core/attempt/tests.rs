//! The system calls of an attempt, one by one, by a system that answers from a list.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io::IoSlice,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use super::*;
use crate::{
    Backpressure, Stats,
    sys::{Outgoing, Segmentation},
    transmit::Hold,
    wait::{
        backoff::By,
        fairness::{Bottleneck, Contention, Refused},
    },
};

/// Answers each call with the next number; 0, and when there is none, is success.
struct Script {
    os: Os,
    connected: bool,
    writable: Cell<bool>,
    /// How often that was asked.
    polls: Cell<u32>,
    max_datagrams: usize,
    results: RefCell<VecDeque<i32>>,
    /// What the error queue has when it is read.
    drained: Cell<Drained>,
    /// ICMP messages that were read: one more with each reading.
    icmp: Cell<u64>,
    /// What was given as seen at each reading.
    seen: RefCell<Vec<u64>>,
    /// Datagrams of each call.
    calls: RefCell<Vec<usize>>,
    segmentation: Segmentation,
    /// The destinations that were remembered, and from which segment size on.
    remembered: RefCell<Vec<(SocketAddr, usize)>>,
    stats: Arc<Stats>,
    backpressure: Backpressure,
    contention: Contention,
}

impl Script {
    fn new(os: Os, results: &[i32]) -> Self {
        Self {
            os,
            connected: false,
            writable: Cell::new(true),
            polls: Cell::default(),
            max_datagrams: 64,
            results: RefCell::new(results.iter().copied().collect()),
            drained: Cell::default(),
            icmp: Cell::new(5),
            seen: RefCell::default(),
            calls: RefCell::default(),
            segmentation: Segmentation::new(true),
            remembered: RefCell::default(),
            stats: Arc::default(),
            backpressure: Backpressure::default(),
            contention: Contention::default(),
        }
    }

    fn linux(results: &[i32]) -> Self {
        Self::new(Os::Linux, results)
    }

    fn one_by_one(self) -> Self {
        Self { max_datagrams: 1, ..self }
    }

    /// Sends one transmit.
    fn attempt(&self, t: &mut Transmit<'_>) -> Attempt {
        attempt_one(self, 1, t, None, &mut Budget::unlimited())
    }

    /// Whether the sender that waits was called.
    fn called(&self) -> bool {
        !self.contention.is_nobodys_turn()
    }
}

/// Another sender of the socket waits.
fn waits(io: &Script) {
    let refused = Refused { bottleneck: Bottleneck::Socket, by: By::Timer, recovery: None, longest: None };
    io.contention.refused(2, refused, Instant::now());
}

impl Io for Script {
    type Registration = ();

    fn os(&self) -> Os {
        self.os
    }
    fn is_connected(&self) -> bool {
        self.connected
    }
    fn limits(&self, t: &Transmit<'_>) -> (usize, usize) {
        let allows = self.segmentation.allows(&t.destination, t.datagram_len());
        (if allows { self.max_datagrams } else { 1 }, usize::MAX)
    }
    fn send(&self, out: &Outgoing<'_>) -> io::Result<()> {
        let bytes: usize = out.slices.iter().map(|slice| slice.len()).sum();
        self.calls.borrow_mut().push(out.segment_size.map_or(1, |size| bytes.div_ceil(size.into())));
        match self.results.borrow_mut().pop_front().unwrap_or(0) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
    fn writable(&self) -> bool {
        self.polls.set(self.polls.get() + 1);
        self.writable.get()
    }
    fn icmp_errors(&self) -> u64 {
        self.icmp.get()
    }
    fn drain_errors(&self, _: SocketAddr, seen: u64) -> Drained {
        self.seen.borrow_mut().push(seen);
        self.icmp.set(self.icmp.get() + 1);
        self.drained.get()
    }
    fn segmentation_refused(&self, destination: &SocketAddr, segment_bytes: usize) {
        self.remembered.borrow_mut().push((*destination, segment_bytes));
        self.segmentation.refused(destination, segment_bytes);
    }
    fn register(&self) -> io::Result<()> {
        Ok(())
    }
    fn renew(&self, (): &mut ()) -> io::Result<()> {
        Ok(())
    }
    fn is_ready(&self, (): &()) -> bool {
        false
    }
    fn poll_write<R>(
        &self,
        (): &mut (),
        _: &mut Context<'_>,
        _: impl FnOnce() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        Poll::Pending
    }
    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
    fn backpressure(&self) -> &Backpressure {
        &self.backpressure
    }
    fn contention(&self) -> &Contention {
        &self.contention
    }
}

const TO: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

/// Runs with a transmit of so many datagrams of a byte.
fn with<R>(datagrams: usize, run: impl FnOnce(&mut Transmit<'_>) -> R) -> R {
    let payload = vec![0; datagrams];
    let slices = [IoSlice::new(&payload)];
    run(&mut Transmit::new(TO, &slices).segment_size(1))
}

#[test]
fn a_transmit_that_goes_is_counted_once() {
    let io = Script::linux(&[]);
    waits(&io);
    with(3, |t| assert!(matches!(io.attempt(t), Attempt::Done)));
    let counted = io.stats.snapshot();
    assert_eq!((counted.accepted, counted.sent, counted.attempts), (3, 3, 1));
    assert!(io.called());

    let io = Script::linux(&[]).one_by_one();
    io.stats.accept(3);
    with(3, |t| {
        t.cursor.hold = Hold { sender: 1, generation: 1 };
        assert!(matches!(io.attempt(t), Attempt::Done));
    });
    let counted = io.stats.snapshot();
    assert_eq!((counted.sent, counted.attempts, counted.held), (3, 3, 0), "accepted before");
}

#[test]
fn what_a_refusal_promises_depends_on_the_system_the_connection_and_poll() {
    let refused = |os, connected, writable, errno| {
        let io = Script { connected, writable: Cell::new(writable), ..Script::new(os, &[errno]) };
        let class = with(1, |t| match io.attempt(t) {
            Attempt::Refused(class) => class,
            ended @ (Attempt::Done | Attempt::Crowded | Attempt::Paused | Attempt::Fatal(_)) => panic!("{ended:?}"),
        });
        let counted = io.stats.snapshot();
        let by_class = [&counted.advised, &counted.silent].map(|c| (c.enobufs.connected, c.enobufs.unconnected));
        assert!(io.seen.borrow().is_empty(), "no ICMP message has this number");
        (class, by_class)
    };
    for connected in [false, true] {
        for writable in [false, true] {
            let one = if connected { (1, 0) } else { (0, 1) };
            for os in [Os::Linux, Os::Other] {
                assert_eq!(refused(os, connected, writable, libc::ENOBUFS), (Class::Silent, [(0, 0), one]));
                assert_eq!(refused(os, connected, writable, libc::EWOULDBLOCK), (Class::Advised, [(0, 0); 2]));
            }
            let advised = connected && !writable;
            let expected = if advised { (Class::Advised, [one, (0, 0)]) } else { (Class::Silent, [(0, 0), one]) };
            assert_eq!(refused(Os::Apple, connected, writable, libc::ENOBUFS), expected);
            let class = if writable { Class::Silent } else { Class::Advised };
            assert_eq!(refused(Os::Apple, connected, writable, libc::EWOULDBLOCK), (class, [(0, 0); 2]));
        }
    }
}

#[test]
fn what_may_have_been_queued_is_a_possible_duplicate_when_it_goes() {
    for (errno, connected, duplicates) in
        [(libc::ENOBUFS, true, 2), (libc::ENOBUFS, false, 0), (libc::EWOULDBLOCK, true, 0)]
    {
        let io = Script { connected, writable: Cell::new(false), ..Script::new(Os::Apple, &[errno]) };
        with(2, |t| {
            assert!(matches!(io.attempt(t), Attempt::Refused(_)));
            assert!(matches!(io.attempt(t), Attempt::Done));
        });
        assert_eq!(io.stats.snapshot().possible_duplicates, duplicates, "{errno} {connected}");
    }
}

#[test]
fn only_apples_systems_are_asked_whether_there_is_room() {
    let polls = |os, connected, errno| {
        let io = Script { connected, ..Script::new(os, &[errno]) };
        with(1, |t| drop(io.attempt(t)));
        io.polls.get()
    };
    for (connected, refused) in [(false, 0), (true, 1)] {
        assert_eq!(polls(Os::Apple, connected, libc::ENOBUFS), refused);
        assert_eq!(polls(Os::Apple, connected, libc::EWOULDBLOCK), 1);
        assert_eq!(polls(Os::Apple, connected, libc::ENXIO), 0);
        for errno in [libc::ENOBUFS, libc::EWOULDBLOCK, libc::ENXIO] {
            assert_eq!(polls(Os::Linux, connected, errno), 0);
        }
    }
}

#[test]
fn what_may_have_been_queued_stays_so_when_it_is_refused_again() {
    let io = Script { connected: true, writable: Cell::new(false), ..Script::new(Os::Apple, &[libc::ENOBUFS; 2]) };
    with(2, |t| {
        assert!(matches!(io.attempt(t), Attempt::Refused(Class::Advised)));
        io.writable.set(true);
        assert!(matches!(io.attempt(t), Attempt::Refused(Class::Silent)));
        t.cursor.at_most = 2;
        assert!(matches!(io.attempt(t), Attempt::Done));
    });
    assert_eq!(io.stats.snapshot().possible_duplicates, 2);
}

#[test]
fn what_is_known_of_a_datagram_that_is_too_large_says_nothing_about_the_next() {
    let payload = vec![0; 65_518];
    let slices = [IoSlice::new(&payload)];
    let io = Script::linux(&[]);
    io.drained.set(Drained { icmp: false, too_large: true });
    let failed = Failed { error: io::Error::from_raw_os_error(libc::EMSGSIZE), datagrams: 1 };
    let mut t = Transmit::new(TO, &slices).segment_size(65_508);
    assert!(matches!(attempt_one(&io, 1, &mut t, Some(failed), &mut Budget::unlimited()), Attempt::Done));
    let counted = io.stats.snapshot();
    assert_eq!((counted.sent, counted.drops.too_large), (1, 1));
}

#[test]
fn a_destination_of_which_nothing_is_held_is_tried() {
    let slices = [IoSlice::new(b"x")];
    let other = SocketAddr::from(([127, 0, 0, 1], 10));
    let full = libc::EWOULDBLOCK;
    let io = Script::linux(&[0, full, full, 0]);
    io.stats.accept(3);
    let mut ts = [TO, other, TO].map(|to| Transmit::new(to, &slices));
    ts.iter_mut().for_each(|t| t.cursor.hold = Hold { sender: 1, generation: 1 });
    assert!(matches!(attempt(&io, 1, &mut ts, None, Budget::unlimited()), Attempt::Refused(_)));
    assert_eq!(ts.each_ref().map(Transmit::remaining), [0, 1, 0]);
}

#[test]
fn calls_that_are_not_made_are_not_counted() {
    let io = Script::linux(&[]).one_by_one();
    io.stats.accept(4);
    let slices = [IoSlice::new(b"xx")];
    let mut ts = [(); 2].map(|()| Transmit::new(TO, &slices).segment_size(1));
    ts.iter_mut().for_each(|t| t.cursor.hold = Hold { sender: 1, generation: 1 });
    assert!(matches!(attempt(&io, 1, &mut ts, None, Budget::unlimited()), Attempt::Done));
    assert_eq!((io.calls.borrow().len(), io.stats.snapshot().attempts), (4, 4));
}

#[test]
fn a_batch_that_is_refused_twice_is_offered_in_halves() {
    let io = Script::linux(&[libc::ENOBUFS; 6]);
    with(8, |t| {
        for _ in 0..6 {
            assert!(matches!(io.attempt(t), Attempt::Refused(Class::Silent)));
        }
        assert!(matches!(io.attempt(t), Attempt::Done));
    });
    assert_eq!(io.calls.borrow()[..8], [8, 8, 4, 2, 1, 1, 1, 1]);
}

#[test]
fn interrupted_calls_and_others_errors_are_made_again_but_not_for_ever() {
    let interrupted = [libc::EINTR; 16];
    let others = [libc::ECONNREFUSED; 3];
    for (first, calls) in [(&interrupted[..], 17), (&others[..], 4)] {
        // Each success begins the count anew.
        let twice = [first, &[0], first, &[0]].concat();
        let io = Script::linux(&twice).one_by_one();
        with(2, |t| assert!(matches!(io.attempt(t), Attempt::Done)));
        assert_eq!(io.stats.snapshot().attempts, 2 * calls);
    }
    let io = Script::linux(&[libc::ECONNREFUSED; 100]);
    with(1, |t| assert!(matches!(io.attempt(t), Attempt::Crowded)));
    assert_eq!(io.calls.borrow().len(), 4);
    let io = Script::linux(&[libc::EINTR; 100]);
    with(1, |t| assert!(matches!(io.attempt(t), Attempt::Crowded)));
    assert_eq!(io.calls.borrow().len(), 16 + 3 + 1);
}

#[test]
fn every_errno_that_icmp_may_cause_empties_the_error_queue() {
    for errno in [
        libc::EMSGSIZE,
        libc::EINVAL,
        libc::EIO,
        libc::EPERM,
        libc::EACCES,
        libc::EHOSTUNREACH,
        libc::ECONNREFUSED,
        libc::EBADF,
        libc::ENXIO,
    ] {
        let io = Script::linux(&[errno]);
        with(1, |t| drop(io.attempt(t)));
        assert_eq!(*io.seen.borrow(), [5], "{errno}");
    }
    let io = Script::linux(&[libc::EINTR]);
    with(1, |t| drop(io.attempt(t)));
    assert!(io.seen.borrow().is_empty());
    // What was seen is what the last reading has left.
    let io = Script::linux(&[libc::ECONNREFUSED, libc::ECONNREFUSED]);
    with(1, |t| drop(io.attempt(t)));
    assert_eq!(*io.seen.borrow(), [5, 6]);
}

#[test]
fn an_error_is_the_datagrams_own_if_it_can_be_no_other_s() {
    let unreachable = |os, connected, drained, known: bool| {
        let io = Script { connected, ..Script::new(os, if known { &[] } else { &[libc::EHOSTUNREACH] }) };
        io.drained.set(drained);
        let failed = known.then(|| Failed { error: io::Error::from_raw_os_error(libc::EHOSTUNREACH), datagrams: 1 });
        with(1, |t| drop(attempt_one(&io, 1, t, failed, &mut Budget::unlimited())));
        let counted = io.stats.snapshot();
        assert_eq!((counted.accepted, counted.sent + counted.drops.unreachable), (1, 1));
        counted.sent == 1
    };
    let (nothing, icmp) = (Drained::default(), Drained { icmp: true, too_large: false });
    for (os, connected, drained, known, another_s) in [
        (Os::Linux, false, nothing, false, false),
        (Os::Linux, true, nothing, false, false),
        (Os::Linux, false, nothing, true, true),
        (Os::Linux, false, icmp, false, true),
        (Os::Apple, false, nothing, false, false),
        (Os::Apple, true, nothing, false, true),
        (Os::Other, true, nothing, false, true),
    ] {
        assert_eq!(unreachable(os, connected, drained, known), another_s, "{os:?} {connected} {drained:?} {known}");
    }
    // The second time it is its own.
    let io = Script { connected: true, ..Script::new(Os::Apple, &[libc::EHOSTUNREACH; 2]) };
    with(1, |t| assert!(matches!(io.attempt(t), Attempt::Done)));
    assert_eq!((io.calls.borrow().len(), io.stats.snapshot().drops.unreachable), (2, 1));
    // The kernel has said that it is too large: no other call is made to find out.
    let io = Script::linux(&[]);
    io.drained.set(Drained { icmp: false, too_large: true });
    let failed = Failed { error: io::Error::from_raw_os_error(libc::EMSGSIZE), datagrams: 1 };
    with(1, |t| drop(attempt_one(&io, 1, t, Some(failed), &mut Budget::unlimited())));
    assert_eq!((io.calls.borrow().len(), io.stats.snapshot().drops.too_large), (0, 1));
}

#[test]
fn a_batch_that_is_refused_goes_datagram_by_datagram_and_so_do_the_next_to_that_destination() {
    let other = SocketAddr::from(([127, 0, 0, 2], 9));
    for (errno, from) in [(libc::EINVAL, 2), (libc::EMSGSIZE, 2), (libc::EIO, 0)] {
        let io = Script::linux(&[errno]);
        let send = |to, segment| {
            let slices = [IoSlice::new(&[0; 6])];
            let mut t = Transmit::new(to, &slices).segment_size(segment);
            assert!(matches!(io.attempt(&mut t), Attempt::Done));
            io.calls.take()
        };
        assert_eq!(send(TO, 2), [3, 1, 1, 1]);
        assert_eq!(*io.remembered.borrow(), [(TO, from)], "{errno}");
        assert_eq!(send(TO, 2), [1, 1, 1], "{errno}");
        assert_eq!(send(TO, 3), [1, 1], "{errno}");
        assert_eq!(send(other, 2), [3], "{errno}");
        // A device that does not segment does not whatever the size.
        let shorter = if from > 0 { vec![6] } else { vec![1; 6] };
        assert_eq!(send(TO, 1), shorter, "{errno}");
        assert_eq!(io.stats.snapshot().sent, 3 + 3 + 2 + 3 + 6);
    }
}

/// A held batch goes call by call, and is remembered all the same.
#[test]
fn a_batch_that_is_refused_after_it_was_held_is_remembered() {
    let io = Script::linux(&[libc::EMSGSIZE, 0]);
    with(3, |t| {
        let mut budget = Budget::of(64);
        let (ended, bytes) = attempt_at_most(&io, 1, t, 1 << 14, &mut budget);
        assert!(matches!(ended, Attempt::Paused));
        assert_eq!((t.remaining(), bytes), (2, 1), "one of them has been sent");
    });
    assert_eq!((&*io.calls.borrow(), io.remembered.borrow().len()), (&vec![3, 1], 1));
}

#[test]
fn a_batch_whose_datagrams_are_refused_too_says_nothing_about_segmentation() {
    let io = Script::linux(&[libc::EINVAL; 4]);
    with(3, |t| assert!(matches!(io.attempt(t), Attempt::Done)));
    assert_eq!(*io.calls.borrow(), [3, 1, 1, 1]);
    assert_eq!((io.remembered.take(), io.stats.snapshot().drops.invalid), (vec![], 3));
    // A want of room neither.
    let io = Script::linux(&[libc::EIO, libc::ENOBUFS]);
    with(3, |t| {
        assert!(matches!(io.attempt(t), Attempt::Refused(Class::Silent)));
        assert_eq!(io.remembered.take(), []);
        assert!(matches!(io.attempt(t), Attempt::Done));
    });
    assert_eq!(*io.calls.borrow(), [3, 1, 1, 1, 1]);
}

#[test]
fn an_icmp_message_takes_no_batch_apart() {
    let sent = |io: &Script, failed| {
        with(3, |t| assert!(matches!(attempt_one(io, 1, t, failed, &mut Budget::unlimited()), Attempt::Done)));
        assert_eq!((io.remembered.take(), io.stats.snapshot().sent), (vec![], 3));
        io.calls.take()
    };
    let io = Script::linux(&[libc::EMSGSIZE, libc::EMSGSIZE]);
    io.drained.set(Drained { icmp: true, too_large: false });
    assert_eq!(sent(&io, None), [3, 3, 3]);
    // Another task may have read it from the error queue before this one looked.
    let failed = Failed { error: io::Error::from_raw_os_error(libc::EMSGSIZE), datagrams: 3 };
    assert_eq!(sent(&Script::linux(&[]), Some(failed)), [3]);
}

#[test]
fn of_datagrams_that_are_too_large_the_system_is_offered_one() {
    let sizes = |bytes: usize, results: &[i32]| {
        let payload = vec![0; bytes];
        let slices = [IoSlice::new(&payload)];
        let io = Script::linux(results);
        let mut t = Transmit::new(TO, &slices).segment_size(4);
        assert!(matches!(io.attempt(&mut t), Attempt::Done));
        let counted = io.stats.snapshot();
        assert_eq!(counted.accepted, counted.sent + counted.drops.too_large);
        (io.calls.take(), counted.sent, counted.drops.too_large, io.remembered.take())
    };
    let large = libc::EMSGSIZE;
    // The last is shorter, and goes.
    assert_eq!(sizes(14, &[large, large]), (vec![4, 1, 1], 1, 3, vec![(TO, 4)]));
    assert_eq!(sizes(16, &[large, large]), (vec![4, 1], 0, 4, vec![(TO, 4)]));
    assert_eq!(sizes(14, &[large, large, large]), (vec![4, 1, 1], 0, 4, vec![(TO, 4)]));
    assert_eq!(sizes(14, &[large, 0, large]), (vec![4, 1, 1, 1], 2, 2, vec![(TO, 4)]));
}

#[test]
fn what_cannot_go_is_dropped_for_its_reason() {
    let dropped = |errno| {
        let io = Script::linux(&[errno]).one_by_one();
        let fatal = with(2, |t| matches!(io.attempt(t), Attempt::Fatal(_)));
        let counted = io.stats.snapshot();
        assert_eq!(counted.accepted, counted.sent + counted.dropped_total());
        (fatal, counted.sent, counted.drops)
    };
    let drops = crate::stats::DropTotals::default();
    let expect = |errno, drops| assert_eq!(dropped(errno), (false, 1, drops), "{errno}");
    expect(libc::EPERM, crate::stats::DropTotals { not_permitted: 1, ..drops });
    expect(libc::EACCES, crate::stats::DropTotals { not_permitted: 1, ..drops });
    expect(libc::EINVAL, crate::stats::DropTotals { invalid: 1, ..drops });
    expect(libc::ENXIO, crate::stats::DropTotals { other: 1, ..drops });
    assert_eq!(dropped(libc::EBADF), (true, 0, drops), "whoever has offered it may have another socket");
}

#[test]
fn what_udp_cannot_carry_is_not_offered_to_the_system() {
    for (bytes, calls) in [(65_507, 1), (65_508, 0)] {
        let payload = vec![0; bytes];
        let slices = [IoSlice::new(&payload)];
        let io = Script::linux(&[]);
        assert!(matches!(io.attempt(&mut Transmit::new(TO, &slices)), Attempt::Done));
        let counted = io.stats.snapshot();
        assert_eq!(
            (io.calls.borrow().len(), counted.sent, counted.drops.too_large),
            (calls, calls as u64, 1 - calls as u64)
        );
        // An error that is known of it is not another datagram's.
        let io = Script::linux(&[]);
        let failed = Failed { error: io::Error::from_raw_os_error(libc::EMSGSIZE), datagrams: 1 };
        let mut next = [Transmit::new(TO, &slices), Transmit::new(TO, &slices)];
        drop(attempt(&io, 1, &mut next, Some(failed), Budget::unlimited()));
        assert_eq!(io.stats.snapshot().dropped_total() + io.stats.snapshot().sent, 2);
    }
}

/// The last datagram is shorter than the others, and in too many pieces for a call.
#[test]
fn a_last_datagram_of_too_many_pieces_is_dropped() {
    let long = [0; 2000];
    let mut slices = vec![IoSlice::new(&long)];
    slices.extend(std::iter::repeat_n(IoSlice::new(&long[..1]), 1500));
    let io = Script::linux(&[]);
    let mut t = Transmit::new(TO, &slices).segment_size(2000);
    assert!(matches!(io.attempt(&mut t), Attempt::Done));
    let counted = io.stats.snapshot();
    assert_eq!((counted.sent, counted.drops.invalid, t.cursor.bytes_left), (1, 1, 0));
}

#[test]
fn an_attempt_ends_with_its_budget() {
    let io = Script::linux(&[]).one_by_one();
    with(3, |t| {
        assert!(matches!(attempt_one(&io, 1, t, None, &mut Budget::of(2)), Attempt::Paused));
        assert_eq!(t.remaining(), 1);
    });
    // Two that go in one call, and one that does not go whole.
    let io = Script::linux(&[]).one_by_one();
    io.stats.accept(4);
    waits(&io);
    let slices = [IoSlice::new(b"xx")];
    let whole = || Transmit::new(TO, &slices);
    let mut ts = [whole(), whole(), whole().segment_size(1)];
    assert!(matches!(attempt(&io, 1, &mut ts, None, Budget::of(1)), Attempt::Paused));
    assert_eq!(ts.each_ref().map(Transmit::remaining), [0, 0, 2]);
    assert_eq!(io.stats.snapshot().attempts, 1);
    assert!(io.called());
}

#[test]
fn a_batch_is_advised_only_if_all_that_was_refused_is() {
    let slices = [IoSlice::new(b"x")];
    let other = SocketAddr::from(([127, 0, 0, 1], 10));
    for (first, second, class) in [
        (libc::EWOULDBLOCK, libc::EWOULDBLOCK, Class::Advised),
        (libc::EWOULDBLOCK, libc::ENOBUFS, Class::Silent),
        (libc::ENOBUFS, libc::EWOULDBLOCK, Class::Silent),
    ] {
        let io = Script::linux(&[first, second]);
        let mut ts = [TO, other].map(|to| Transmit::new(to, &slices));
        let ended = attempt(&io, 1, &mut ts, None, Budget::unlimited());
        assert!(matches!(ended, Attempt::Refused(c) if c == class), "{ended:?}");
    }
    // A flood of others' errors beside what goes.
    let io = Script::linux(&[libc::ECONNREFUSED; 4]);
    let mut ts = [TO, TO, other].map(|to| Transmit::new(to, &slices));
    assert!(matches!(attempt(&io, 1, &mut ts, None, Budget::unlimited()), Attempt::Crowded));
    assert_eq!(ts.each_ref().map(Transmit::remaining), [1, 1, 0], "order is kept");
}

#[test]
fn a_first_try_takes_what_no_sender_holds_and_counts_what_went() {
    let slices = [IoSlice::new(b"x")];
    let io = Script::linux(&[]);
    waits(&io);
    assert!(matches!(pass(&io, 1, &mut [Transmit::new(TO, &slices)]), Ok(Some(1))));
    let counted = io.stats.snapshot();
    assert_eq!((counted.accepted, counted.sent, counted.attempts), (1, 1, 1));
    assert!(io.called());

    let io = Script::linux(&[]);
    let mut held = [Transmit::new(TO, &slices)];
    held[0].cursor.hold = Hold { sender: 1, generation: 1 };
    assert!(matches!(pass(&io, 1, &mut held), Ok(None)));
    assert!(io.calls.borrow().is_empty());

    let io = Script::linux(&[0, libc::EWOULDBLOCK]);
    let mut ts = [(); 3].map(|()| Transmit::new(TO, &slices));
    assert!(matches!(pass(&io, 1, &mut ts), Ok(None)));
    assert_eq!((io.stats.snapshot().sent, ts.each_ref().map(Transmit::remaining)), (1, [0, 1, 1]));
}
