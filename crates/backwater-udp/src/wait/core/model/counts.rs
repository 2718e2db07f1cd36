//! What is counted of a wait, and what a sender keeps of it.

use std::task::Wake;

use super::*;

const WAIT: Policy = Policy::Wait { deadline: Duration::from_secs(1) };
const MS: Duration = Duration::from_millis(1);

/// A system that has no room for so long.
fn blocked(row: Row, time: Duration) -> Model {
    let model = model(row, 1, WAIT);
    block(&model, time);
    model
}

fn block(model: &Model, time: Duration) {
    model.world.borrow_mut().episodes = vec![(Instant::now(), Instant::now() + time)];
}

async fn send(model: &Model, core: &mut SenderCore<Model>, ts: &mut [Transmit<'_>]) -> SendReport {
    tokio::select! {
        report = poll_fn(|cx| core.poll_send_batch(cx, ts)) => report.unwrap(),
        () = reactor(model) => unreachable!(),
    }
}

async fn send_one(model: &Model, core: &mut SenderCore<Model>) -> SendReport {
    let slices = [IoSlice::new(b"x")];
    send(model, core, &mut [Transmit::new(TO, &slices)]).await
}

#[test]
fn a_wait_that_readiness_ends_is_counted() {
    runtime().block_on(async {
        let model = blocked(Row::SendBuffer, 20 * MS);
        let mut core = SenderCore::new(model.clone());
        assert_eq!(send_one(&model, &mut core).await.sent, 1);
        let counted = model.stats.snapshot();
        assert_eq!((counted.parked, counted.partial, counted.blocked), (1, 0, 20 * MS));
        assert_eq!((counted.advised.wakes.readiness, counted.spurious_wakes, counted.advised.wakes.timer), (1, 0, 0));
        assert_eq!(counted.advised.recovery.readiness.count(), 1);
        assert!(core.core.blocked_for().is_none());
    });
}

#[test]
fn readiness_without_room_is_spurious() {
    runtime().block_on(async {
        let model = blocked(Row::Latched, 20 * MS);
        let mut core = SenderCore::new(model.clone());
        assert_eq!(send_one(&model, &mut core).await.sent, 1);
        let counted = model.stats.snapshot();
        assert!(counted.spurious_wakes >= 1);
        assert_eq!(
            counted.spurious_wakes,
            counted.advised.wakes.readiness - counted.advised.recovery.readiness.count()
        );
    });
}

#[test]
fn an_attempt_of_a_timer_is_no_spurious_event_and_neither_is_one_that_sends_a_part() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, 20 * MS);
        let mut core = SenderCore::new(model.clone());
        assert_eq!(send_one(&model, &mut core).await.sent, 1);
        assert!(model.stats.snapshot().silent.wakes.timer > 1);
        assert_eq!(model.stats.snapshot().spurious_wakes, 0);

        let model = blocked(Row::SendBuffer, 20 * MS);
        model.queues.borrow_mut().insert(TO, Rc::new(Cell::new(Link::new(MS / 8, 64))));
        let mut core = SenderCore::new(model.clone());
        let payload = [0; 128];
        let slices = [IoSlice::new(&payload)];
        let mut t = [Transmit::new(TO, &slices).segment_size(1)];
        assert_eq!(send(&model, &mut core, &mut t).await.sent, 128);
        let counted = model.stats.snapshot();
        assert_eq!((counted.advised.wakes.readiness, counted.spurious_wakes), (1, 0));
        // Until there was room for a part, and from then on until there was room for the rest.
        let seconds = counted.advised.recovery.readiness.seconds + counted.silent.recovery.timer.seconds;
        assert!((seconds - counted.blocked.as_secs_f64()).abs() < 1e-9, "{seconds} of {:?}", counted.blocked);
    });
}

#[test]
fn a_batch_of_which_a_part_has_gone_is_partial() {
    runtime().block_on(async {
        let payload = [0; 128];
        let slices = [IoSlice::new(&payload)];
        // Two calls, of which the queue takes one at a time; or nothing of it at first.
        for (link, failures, partial) in [(Some(Link::new(MS, 64)), 0, 1), (None, 1, 0)] {
            let model = model(Row::FreeBsd, 1, WAIT);
            model.world.borrow_mut().episodes.clear();
            model.link.set(link);
            model.failures.borrow_mut().extend(std::iter::repeat_n(libc::ENOBUFS, failures));
            let mut core = SenderCore::new(model.clone());
            let mut t = [Transmit::new(TO, &slices).segment_size(1)];
            assert_eq!(send(&model, &mut core, &mut t).await.sent, 128);
            assert_eq!((model.stats.snapshot().partial, model.stats.snapshot().parked), (partial, 1));
        }
    });
}

/// A policy to drop is about a want of room. A flood of others' errors is none, and lasts.
#[test]
fn others_errors_do_not_make_a_policy_drop() {
    runtime().block_on(async {
        for (errors, sent) in [(20, 1), (100_000, 0)] {
            let model = model(Row::SendBuffer, 1, Policy::Drop);
            model.world.borrow_mut().episodes.clear();
            model.failures.borrow_mut().extend(std::iter::repeat_n(libc::ECONNREFUSED, errors));
            let mut core = SenderCore::new(model.clone());
            let began = Instant::now();
            let report = send_one(&model, &mut core).await;
            assert_eq!((report.sent, report.dropped.get(DropReason::Deadline)), (sent, 1 - sent));
            assert!(began.elapsed() <= LAST_BACKSTOP + SLACK);
            assert_eq!((model.stats.snapshot().parked, model.stats.snapshot().partial), (1, 0));
        }
    });
}

#[test]
fn what_is_held_may_be_tried_and_is_then_held_no_more() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, NEVER);
        let slices = [IoSlice::new(b"1234")];
        let mut t = Transmit::new(TO, &slices).segment_size(1);
        let mut core = SenderCore::new(model.clone());
        let poll = |core: &mut SenderCore<Model>, t: &mut Transmit<'_>| {
            core.poll_send_batch(&mut Context::from_waker(Waker::noop()), std::slice::from_mut(t)).is_pending()
        };
        assert!(poll(&mut core, &mut t));
        tokio::time::advance(10 * MS).await;
        assert!(core.core.blocked_for().is_some());
        assert_eq!(core.try_send(&mut t).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(model.stats.snapshot().held, 4);
        assert!(core.core.blocked_for().is_some(), "nothing was taken");
        model.world.borrow_mut().episodes.clear();
        assert_eq!(core.try_send(&mut t).unwrap().sent, 4);
        assert!(core.core.blocked_for().is_none(), "the system has taken something");
        drop(core);
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.sent, counted.dropped_total()), (4, 4, 0));
    });
}

#[test]
fn a_try_ends_what_counts_as_blocked_and_an_error_is_one() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, NEVER);
        model.backpressure.set(Policy::Drop);
        let mut core = SenderCore::new(model.clone());
        send_one(&model, &mut core).await;
        assert!(core.core.blocked_for().is_some());
        assert_eq!(model.stats.snapshot().parked, 0, "it drops at once");
        model.world.borrow_mut().episodes.clear();
        let slices = [IoSlice::new(b"x")];
        assert_eq!(core.try_send(&mut Transmit::new(TO, &slices)).unwrap().sent, 1);
        assert!(core.core.blocked_for().is_none());
        model.failures.borrow_mut().extend([libc::EBADF; 2]);
        assert_eq!(core.try_send(&mut Transmit::new(TO, &slices)).unwrap_err().raw_os_error(), Some(libc::EBADF));
    });
}

#[test]
fn what_is_given_up_is_counted_and_may_be_offered_again() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, NEVER);
        let slices = [IoSlice::new(b"123")];
        let mut ts = [Transmit::new(TO, &slices).segment_size(1)];
        let mut core = SenderCore::new(model.clone());
        assert!(core.poll_send_batch(&mut Context::from_waker(Waker::noop()), &mut ts).is_pending());
        core.give_up(&mut ts);
        assert!(!ts[0].is_accepted());
        let counted = model.stats.snapshot();
        assert_eq!((counted.drops.cancelled, counted.held), (3, 0));
        model.world.borrow_mut().episodes.clear();
        assert_eq!(send(&model, &mut core, &mut ts).await.sent, 3);
        // There is nothing to give up any more.
        core.give_up(&mut ts);
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.sent, counted.drops.cancelled), (6, 3, 3));
    });
}

#[derive(Default)]
struct Unused;

impl Wake for Unused {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn a_sender_that_waits_no_more_is_forgotten_by_policy_and_queue() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, NEVER);
        let slices = [IoSlice::new(b"x")];
        let unused = Arc::new(Unused);
        let waker = unused.clone().into();
        let held = Arc::strong_count(&unused);
        for given_up in [true, false] {
            block(&model, NEVER);
            let mut core = SenderCore::new(model.clone());
            let mut ts = [Transmit::new(TO, &slices)];
            assert!(core.poll_send_batch(&mut Context::from_waker(&waker), &mut ts).is_pending());
            assert_eq!(Arc::strong_count(&unused), held + 2);
            if given_up {
                core.give_up(&mut ts);
                assert_eq!(Arc::strong_count(&unused), held);
            } else {
                model.world.borrow_mut().episodes.clear();
                sleep_until(Instant::now() + 2 * MS).await;
                while core.poll_send_batch(&mut Context::from_waker(&waker), &mut ts).is_pending() {}
            }
            // A sender's timer keeps one.
            drop(core);
            assert_eq!(Arc::strong_count(&unused), held);
        }
    });
}

#[test]
fn a_registration_that_is_not_needed_is_given_back() {
    runtime().block_on(async {
        let model = blocked(Row::SendBuffer, 5 * MS);
        let mut core = SenderCore::new(model.clone());
        for (idle, kept) in [(MS, true), (IDLE - 10 * MS, true), (IDLE, false)] {
            block(&model, 5 * MS);
            send_one(&model, &mut core).await;
            assert!(core.core.wait.as_ref().is_some_and(|wait| wait.registration.is_some()));
            tokio::time::sleep(idle).await;
            send_one(&model, &mut core).await;
            assert_eq!(core.core.wait.is_some(), kept, "{idle:?}");
        }
        // From the end of a wait on, however long that was.
        model.backpressure.set(Policy::Wait { deadline: IDLE });
        block(&model, IDLE - 1000 * MS);
        send_one(&model, &mut core).await;
        tokio::time::sleep(IDLE / 2).await;
        send_one(&model, &mut core).await;
        assert!(core.core.wait.is_some());
    });
}

/// The second wait of a sender may be longer than its deadline: whoever is stuck is told by what is not taken.
#[test]
fn a_sender_that_waits_long_enough_is_stuck_and_then_it_is_not() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, 8000 * MS);
        model.backpressure.set(Policy::Wait { deadline: Duration::from_secs(20) });
        let mut core = SenderCore::new(model.clone());
        let slices = [IoSlice::new(b"x")];
        let mut ts = [Transmit::new(TO, &slices)];
        tokio::select! {
            _ = poll_fn(|cx| core.poll_send_batch(cx, &mut ts)) => panic!("there is no room"),
            () = sleep_until(Instant::now() + 6000 * MS) => {}
        }
        assert!(core.core.is_stuck());
        assert_eq!(send(&model, &mut core, &mut ts).await.sent, 1);
        assert!(!core.core.is_stuck());
    });
}

#[test]
fn how_long_it_took_until_there_was_room_is_smoothed() {
    runtime().block_on(async {
        let model = blocked(Row::SendBuffer, Duration::ZERO);
        let mut core = SenderCore::new(model.clone());
        for (blocked, smoothed) in [(16, 16), (8, 15), (23, 16)] {
            block(&model, blocked * MS);
            send_one(&model, &mut core).await;
            let wait = core.core.wait.as_ref().unwrap();
            assert_eq!((wait.recovery, wait.suspect), (Some(smoothed * MS), None));
        }
        // No edge was promised.
        let model = self::blocked(Row::FreeBsd, 16 * MS);
        let mut core = SenderCore::new(model.clone());
        send_one(&model, &mut core).await;
        assert_eq!(core.core.wait.as_ref().unwrap().suspect, None);
    });
}

#[derive(Default)]
struct Woken(std::sync::atomic::AtomicU32);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[test]
fn a_sender_that_yields_is_polled_again() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, NEVER);
        let slices = [IoSlice::new(b"x")];
        let [mut waits, mut sends] = [(); 2].map(|()| SenderCore::new(model.clone()));
        let mut first = [Transmit::new(TO, &slices)];
        assert!(waits.poll_send_batch(&mut Context::from_waker(Waker::noop()), &mut first).is_pending());
        model.world.borrow_mut().episodes.clear();
        let woken = Arc::<Woken>::default();
        let waker = woken.clone().into();
        let mut poll = || sends.poll_send_batch(&mut Context::from_waker(&waker), &mut [Transmit::new(TO, &slices)]);
        assert!(poll().is_ready() && poll().is_pending());
        assert_eq!(woken.0.load(Relaxed), 1);
    });
}
