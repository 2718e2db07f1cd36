//! Who holds what: transmits that are offered again, elsewhere, in other company, or not at all; and who goes first.

use super::*;

/// A system without room.
fn blocked(row: Row, policy: Policy) -> Model {
    let model = model(row, 1, policy);
    model.world.borrow_mut().episodes = vec![(Instant::now(), Instant::now() + NEVER)];
    model
}

fn poll(core: &mut SenderCore<Model>, ts: &mut [Transmit<'_>]) -> Poll<SendReport> {
    core.poll_send_batch(&mut Context::from_waker(Waker::noop()), ts).map(Result::unwrap)
}

fn poll_one(core: &mut SenderCore<Model>, t: &mut Transmit<'_>) -> Poll<SendReport> {
    poll(core, std::slice::from_mut(t))
}

const WAIT: Policy = Policy::Wait { deadline: Duration::from_secs(100) };

#[test]
fn a_transmit_that_another_sender_holds_is_sent_when_it_is_offered_here() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, WAIT);
        let slices = [IoSlice::new(b"12345678")];
        let mut t = Transmit::new(TO, &slices).segment_size(1);
        let (mut a, mut b) = (SenderCore::new(model.clone()), SenderCore::new(model.clone()));
        assert!(poll_one(&mut a, &mut t).is_pending());
        model.world.borrow_mut().episodes.clear();
        let Poll::Ready(report) = poll_one(&mut b, &mut t) else { panic!("there is room") };
        assert_eq!((report.sent, report.dropped.total()), (8, 0));
        drop((a, b));
        let counted = model.stats.snapshot();
        // Each of them has accepted it, and the one that did not send it has given it up.
        assert_eq!((counted.accepted, counted.sent, counted.drops.cancelled, counted.held), (16, 8, 8, 0));
        assert_eq!(model.world.borrow().delivered, 8);
    });
}

#[test]
fn transmits_that_are_offered_by_turns_are_accepted_anew_each_time() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, WAIT);
        let slices = [IoSlice::new(b"12345")];
        let mut ts = [(); 2].map(|()| Transmit::new(TO, &slices).segment_size(1));
        let mut core = SenderCore::new(model.clone());
        for (turn, accepted) in [(0, 5), (1, 10), (0, 15), (0, 15)] {
            assert!(poll_one(&mut core, &mut ts[turn]).is_pending());
            let counted = model.stats.snapshot();
            assert_eq!((counted.accepted, counted.held), (accepted, 5));
        }
        model.world.borrow_mut().episodes.clear();
        for (t, sent) in ts.iter_mut().zip([5, 10]) {
            let report = poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(t))).await.unwrap();
            assert_eq!((report.sent, model.stats.snapshot().sent), (5, sent));
        }
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.drops.cancelled, counted.held), (20, 10, 0));
    });
}

#[test]
fn what_is_left_out_of_a_batch_is_given_up() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, WAIT);
        let slices = [IoSlice::new(b"12345")];
        let mut ts = [(); 3].map(|()| Transmit::new(TO, &slices).segment_size(1));
        let mut core = SenderCore::new(model.clone());
        assert!(poll(&mut core, &mut ts).is_pending());
        assert!(poll(&mut core, &mut ts[..1]).is_pending());
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.drops.cancelled, counted.held), (15, 10, 5));
        assert!(poll(&mut core, &mut ts).is_pending());
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.drops.cancelled, counted.held), (25, 10, 15));
    });
}

#[test]
fn a_transmit_that_is_offered_instead_of_another_has_a_deadline_of_its_own() {
    runtime().block_on(async {
        let ms = Duration::from_millis(1);
        let model = blocked(Row::FreeBsd, Policy::Wait { deadline: 100 * ms });
        let slices = [IoSlice::new(b"x")];
        let mut ts = [(); 2].map(|()| Transmit::new(TO, &slices));
        let [first, second] = &mut ts;
        let mut core = SenderCore::new(model.clone());
        assert!(poll_one(&mut core, first).is_pending());
        tokio::time::sleep(60 * ms).await;
        let began = Instant::now();
        let report = poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(second))).await.unwrap();
        assert_eq!((report.dropped.get(DropReason::Deadline), began.elapsed()), (1, 100 * ms));
    });
}

#[test]
fn a_transmit_that_goes_at_once_instead_of_one_that_is_held_ends_the_wait() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, WAIT);
        let slices = [IoSlice::new(b"x")];
        let mut core = SenderCore::new(model.clone());
        assert!(poll_one(&mut core, &mut Transmit::new(TO, &slices)).is_pending());
        model.world.borrow_mut().episodes.clear();
        assert!(poll_one(&mut core, &mut Transmit::new(TO, &slices)).is_ready());
        let counted = model.stats.snapshot();
        assert_eq!((counted.sent, counted.drops.cancelled, counted.held), (1, 1, 0));
        assert!(!core.core.is_parked() && core.core.blocked_for().is_none());
    });
}

/// As [`OwnedTransmit`](crate::OwnedTransmit) makes one.
#[test]
fn a_copy_of_a_transmit_that_is_held_is_accepted_as_far_as_the_other_has_gone() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, WAIT);
        let payload = [0; 100];
        let slices = [IoSlice::new(&payload)];
        let mut ts = [(); 2].map(|()| Transmit::new(TO, &slices).segment_size(1));
        let [held, copy] = &mut ts;
        let mut core = SenderCore::new(model.clone());
        assert!(poll_one(&mut core, held).is_pending());
        copy.cursor = held.cursor;
        model.world.borrow_mut().episodes.clear();
        model.queues.borrow_mut().insert(TO, Rc::new(Cell::new(Link::new(NEVER, 64))));
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(poll_one(&mut core, held).is_pending());
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.sent, counted.held), (100, 64, 36));
        assert!(poll_one(&mut core, copy).is_pending());
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.sent, counted.held), (164, 64, 100));
    });
}

#[test]
fn what_fails_with_the_socket_when_it_is_tried_is_held_no_more_and_what_else_is_held_stays() {
    runtime().block_on(async {
        let slices = [IoSlice::new(b"1234")];
        for is_held in [true, false] {
            let model = blocked(Row::FreeBsd, WAIT);
            let mut core = SenderCore::new(model.clone());
            let mut ts = [(); 2].map(|()| Transmit::new(TO, &slices).segment_size(1));
            assert!(poll_one(&mut core, &mut ts[0]).is_pending());
            model.failures.borrow_mut().push_back(libc::EBADF);
            assert_eq!(core.try_send(&mut ts[usize::from(!is_held)]).unwrap_err().raw_os_error(), Some(libc::EBADF));
            let counted = model.stats.snapshot();
            assert_eq!((counted.drops.socket, counted.held), (4, if is_held { 0 } else { 4 }));
            drop(core);
            let counted = model.stats.snapshot();
            assert_eq!((counted.accepted, counted.held), (counted.dropped_total(), 0));
        }
    });
}

/// It takes several calls.
#[test]
fn what_is_tried_beside_what_is_held_is_no_part_of_it() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, WAIT);
        let payload = [0; 300];
        let slices = [IoSlice::new(&payload)];
        let mut ts = [(); 2].map(|()| Transmit::new(TO, &slices).segment_size(1));
        let mut core = SenderCore::new(model.clone());
        assert!(poll_one(&mut core, &mut ts[0]).is_pending());
        model.world.borrow_mut().episodes.clear();
        assert_eq!(core.try_send(&mut ts[1]).unwrap().sent, 300);
        assert!(core.core().blocked_for().is_none(), "the system has taken something");
        assert_eq!(model.stats.snapshot().held, 300);
        drop(core);
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.sent, counted.drops.cancelled), (600, 300, 300));
    });
}

/// Who waits for room holds nothing.
#[test]
fn what_was_given_up_to_wait_for_room_is_accepted_anew() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, WAIT);
        let slices = [IoSlice::new(b"12")];
        let mut t = Transmit::new(TO, &slices).segment_size(1);
        let mut core = SenderCore::new(model.clone());
        assert!(poll_one(&mut core, &mut t).is_pending());
        let _ = core.poll_room(&mut Context::from_waker(Waker::noop()));
        assert_eq!((model.stats.snapshot().drops.cancelled, model.stats.snapshot().held), (2, 0));
        model.world.borrow_mut().episodes.clear();
        assert_eq!(core.try_send(&mut t).unwrap().sent, 2);
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.sent, counted.held), (4, 2, 0));
    });
}

/// More than a poll sends, and then something else instead of the rest.
#[test]
fn the_rest_of_what_a_poll_has_sent_is_given_up_when_something_else_is_offered() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, WAIT);
        model.world.borrow_mut().episodes.clear();
        let payload = [0; 5000];
        let slices = [IoSlice::new(&payload)];
        let mut core = SenderCore::new(model.clone());
        assert!(poll_one(&mut core, &mut Transmit::new(TO, &slices).segment_size(1)).is_pending());
        assert!(poll_one(&mut core, &mut Transmit::new(TO, &slices[..1])).is_ready());
        let counted = model.stats.snapshot();
        assert_eq!((counted.sent, counted.drops.cancelled, counted.held), (64 * 64 + 1, 5000 - 64 * 64, 0));
    });
}

/// Others run between its first attempt and the next, whether it has begun to yield before or not.
#[test]
fn a_sender_yields_before_it_tries_again_each_time_that_it_begins_to_wait() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, WAIT);
        let slices = [IoSlice::new(b"x")];
        let mut core = SenderCore::new(model.clone());
        for attempts in 1..4 {
            let mut t = Transmit::new(TO, &slices);
            assert!(poll_one(&mut core, &mut t).is_pending());
            assert_eq!(model.stats.snapshot().attempts, attempts);
            core.give_up(std::slice::from_mut(&mut t));
        }
    });
}

/// Senders that hold, transmits that wander between them, alone, in batches, by `try_send`, in changing company; senders that
/// end; room that comes and goes.
#[test]
fn whatever_is_offered_to_whom_the_books_add_up() {
    for seed in 0..number("BACKWATER_SCHEDULES").unwrap_or(500) {
        runtime().block_on(async {
            let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let row = ROWS[random.below(ROWS.len() as u64) as usize];
            let policy = if random.below(4) == 0 { Policy::Drop } else { WAIT };
            let model = model(row, seed, policy);
            let payload = [0; 60];
            let slices = [IoSlice::new(&payload)];
            let mut cores: Vec<_> = (0..3).map(|_| SenderCore::new(model.clone())).collect();
            let fresh = |random: &mut Random| Transmit::new(TO, &slices).segment_size(1 + random.below(60) as usize);
            let mut ts: Vec<_> = (0..5).map(|_| fresh(&mut random)).collect();
            for _ in 0..60 {
                let core = random.below(3) as usize;
                let from = random.below(5) as usize;
                let to = from + 1 + random.below(5 - from as u64) as usize;
                match random.below(10) {
                    0..5 => drop(poll(&mut cores[core], &mut ts[from..to])),
                    5 => drop(cores[core].try_send(&mut ts[from])),
                    6 => cores[core] = SenderCore::new(model.clone()),
                    7 => cores[core].give_up(&mut ts[from..to]),
                    8 => ts[from] = fresh(&mut random),
                    _ => tokio::time::sleep(random.ms(1, 40)).await,
                }
                let counted = model.stats.snapshot();
                let held: usize = cores.iter().map(|core| core.held).sum();
                let ended = counted.sent + counted.dropped_total();
                assert_eq!(counted.accepted, ended + held as u64, "{row:?} {seed}");
            }
            drop(cores);
            let counted = model.stats.snapshot();
            assert_eq!(counted.accepted, counted.sent + counted.dropped_total());
            let delivered = model.world.borrow().delivered;
            assert!(delivered == counted.sent || row == Row::XnuQueued && delivered > counted.sent, "{row:?} {seed}");
        });
    }
}

/// One sender has given up waiting, without a word. Another that finds room yields to it once, not each time.
#[test]
fn a_sender_that_was_called_and_does_not_come_is_not_waited_for() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, WAIT);
        let slices = [IoSlice::new(b"x")];
        let [mut gone, mut waits, mut core] = [(); 3].map(|()| SenderCore::new(model.clone()));
        let mut waiting = Transmit::new(TO, &slices);
        assert!(poll_one(&mut gone, &mut Transmit::new(TO, &slices)).is_pending());
        assert!(poll_one(&mut waits, &mut waiting).is_pending());
        model.world.borrow_mut().episodes.clear();
        // It sends, and calls the first; yields to it, sends, and calls the second, since the first has had its time.
        let mut ts = [(); 2].map(|()| Transmit::new(TO, &slices));
        assert!(poll_one(&mut core, &mut ts[0]).is_ready() && poll_one(&mut core, &mut ts[1]).is_pending());
        tokio::time::advance(Duration::from_millis(25)).await;
        assert!(poll_one(&mut core, &mut ts[1]).is_ready() && poll_one(&mut waits, &mut waiting).is_ready());
        assert_eq!(model.stats.snapshot().silent.wakes.policy, 1, "the second was called");
        let pending = (0..300).filter(|_| {
            let mut t = Transmit::new(TO, &slices);
            let yields = poll_one(&mut core, &mut t).is_pending();
            yields && poll_one(&mut core, &mut t).is_pending()
        });
        assert_eq!(pending.count(), 0, "twice in a row");
        let sends = (0..300).filter(|_| poll_one(&mut core, &mut Transmit::new(TO, &slices)).is_ready());
        assert_eq!(sends.count(), 300);
    });
}

/// The sender that finds room yields, and the one that has waited longest sends before it.
#[test]
fn the_sender_that_was_called_goes_first() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, WAIT);
        let slices = [IoSlice::new(b"x")];
        let mut ts = [(); 3].map(|()| Transmit::new(TO, &slices));
        let [mut a, mut b, mut c] = [(); 3].map(|()| SenderCore::new(model.clone()));
        let [ta, tb, tc] = &mut ts;
        assert!(poll_one(&mut a, ta).is_pending() && poll_one(&mut b, tb).is_pending());
        model.world.borrow_mut().episodes.clear();
        assert!(poll_one(&mut c, tc).is_ready());
        let mut again = Transmit::new(TO, &slices);
        assert!(poll_one(&mut c, &mut again).is_pending(), "it yields");
        assert!(poll_one(&mut a, ta).is_ready(), "by the call: its timer has not fired");
        let mut first = Transmit::new(TO, &slices);
        assert!(poll_one(&mut a, &mut first).is_pending(), "now b is called");
        assert!(poll_one(&mut b, tb).is_ready());
        assert!(poll_one(&mut c, &mut again).is_ready() && poll_one(&mut a, &mut first).is_ready());
        let counted = model.stats.snapshot();
        assert_eq!((counted.silent.wakes.policy, counted.silent.wakes.timer), (2, 0));
    });
}
