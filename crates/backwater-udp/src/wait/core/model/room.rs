//! Waiting for room without a datagram, which the owner then offers itself.

use super::*;

const MS: Duration = Duration::from_millis(1);

/// Blocked from now on for so long.
fn blocked(row: Row, seed: u64, time: Duration) -> Model {
    let model = model(row, seed, Policy::Wait { deadline: NEVER });
    {
        let mut world = model.world.borrow_mut();
        world.episodes = vec![(Instant::now(), Instant::now() + time)];
        world.errors = 0;
    }
    model
}

async fn room(core: &mut SenderCore<Model>) {
    poll_fn(|cx| core.poll_room(cx)).await.unwrap();
}

fn try_one(core: &mut SenderCore<Model>) -> bool {
    let slices = [IoSlice::new(b"x")];
    match core.try_send(&mut Transmit::new(TO, &slices)) {
        Ok(report) => report.sent == 1,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            false
        }
    }
}

/// Offers one until it is sent.
async fn send_by_trying(core: &mut SenderCore<Model>) {
    loop {
        room(core).await;
        if try_one(core) {
            return;
        }
    }
}

#[test]
fn who_tries_is_told_of_room_soon_and_tries_seldom_in_every_row() {
    let rows = ROWS.into_iter().filter(|row| !matches!(row, Row::Permanent | Row::LinuxMemory));
    for (row, seed) in rows.flat_map(|row| (0..20).map(move |seed| (row, seed))) {
        runtime().block_on(async {
            let time = Duration::from_millis(1 + 7 * seed);
            let model = blocked(row, seed, time);
            let sending = async {
                let mut core = SenderCore::new(model.clone());
                let began = Instant::now();
                for _ in 0..5 {
                    send_by_trying(&mut core).await;
                }
                // The longest backstop, if an edge was lost.
                assert!(began.elapsed() <= time + 2 * LAST_BACKSTOP, "{row:?} {seed}: {:?}", began.elapsed());
                assert!(!core.core.is_parked() && core.core.blocked_for().is_none(), "{row:?} {seed}");
            };
            tokio::select! {
                () = sending => {}
                () = reactor(&model) => {}
            }
            let stats = model.stats.snapshot();
            assert_eq!((stats.accepted, stats.sent, stats.held), (5, 5, 0), "{row:?} {seed}");
            check_attempts(&model.world.borrow().refused, 1);
            let tries = model.world.borrow().refused.len() as u64;
            assert!(tries <= 12 + time.as_millis() as u64 / 2, "{row:?} {seed}: {tries} in {time:?}");
        });
    }
}

#[test]
fn nothing_is_waited_for_that_was_not_refused() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, 1, 10 * MS);
        let mut core = SenderCore::new(model.clone());
        let began = Instant::now();
        room(&mut core).await;
        assert!(!try_one(&mut core));
        room(&mut core).await;
        assert!(!try_one(&mut core) && core.core.blocked_for().is_some());
        while !try_one(&mut core) {
            room(&mut core).await;
        }
        assert!(began.elapsed() >= 10 * MS && !core.core.is_parked() && core.core.blocked_for().is_none());
        room(&mut core).await;
        room(&mut core).await;
        assert!(began.elapsed() <= 14 * MS, "{:?}", began.elapsed());
        assert_eq!(model.stats.snapshot().parked, 1, "one wait");
    });
}

#[test]
fn the_owner_decides_when_the_deadline_is_over_and_under_a_policy_to_drop() {
    runtime().block_on(async {
        let model = blocked(Row::SendBuffer, 1, NEVER);
        let mut core = SenderCore::new(model.clone());
        for (policy, least, most) in [
            (Policy::Wait { deadline: 30 * MS }, 30 * MS, 32 * MS),
            (Policy::Wait { deadline: 50 * MS }, 50 * MS, 52 * MS),
            (Policy::Drop, Duration::ZERO, Duration::ZERO),
        ] {
            model.backpressure.set(policy);
            assert!(!try_one(&mut core));
            let began = Instant::now();
            room(&mut core).await;
            assert!((least..=most).contains(&began.elapsed()), "{policy:?}: {:?}", began.elapsed());
        }
        let stats = model.stats.snapshot();
        assert_eq!((stats.accepted, stats.dropped_total(), stats.held), (0, 0, 0));
    });
}

#[test]
fn what_is_held_is_given_up_by_who_waits_without_it() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, 1, NEVER);
        let mut core = SenderCore::new(model.clone());
        let slices = [IoSlice::new(b"x")];
        let mut ts = [Transmit::new(TO, &slices)];
        let sending = poll_fn(|cx| core.poll_send_batch(cx, &mut ts));
        assert!(tokio::time::timeout(MS, sending).await.is_err());
        room(&mut core).await;
        let stats = model.stats.snapshot();
        assert_eq!((stats.accepted, stats.dropped(DropReason::Cancelled), stats.held), (1, 1, 0));
        assert!(!core.core.is_parked());
    });
}

/// A part was sent, and the rest is refused: the wait begins anew.
#[test]
fn a_transmit_that_is_sent_in_parts_is_waited_for_in_parts() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, 1, Duration::ZERO);
        model.link.set(Some(Link::new(2 * MS, 10)));
        let mut core = SenderCore::new(model.clone());
        let payload = [0; 60];
        let slices = [IoSlice::new(&payload)];
        let mut t = Transmit::new(TO, &slices).segment_size(1);
        let began = Instant::now();
        while core.try_send(&mut t).is_err() {
            room(&mut core).await;
        }
        // Ten fit at once, and one each two milliseconds.
        assert!(began.elapsed() <= 130 * MS, "{:?}", began.elapsed());
        let stats = model.stats.snapshot();
        assert_eq!((stats.accepted, stats.sent, stats.held), (60, 60, 0));
    });
}

#[test]
fn a_try_that_finds_room_leaves_nothing_to_wait_for() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, 1, 10 * MS);
        let mut core = SenderCore::new(model.clone());
        assert!(!try_one(&mut core));
        tokio::time::sleep(10 * MS).await;
        assert!(try_one(&mut core));
        let began = Instant::now();
        room(&mut core).await;
        let stats = model.stats.snapshot();
        assert_eq!((began.elapsed(), stats.parked, stats.blocked), (Duration::ZERO, 0, Duration::ZERO));
    });
}

/// Since the last try that was refused; and no part of anything has been sent.
#[test]
fn the_time_in_which_there_was_no_room_is_counted() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, 1, 10 * MS);
        let mut core = SenderCore::new(model.clone());
        assert!(!try_one(&mut core));
        room(&mut core).await;
        tokio::time::sleep(10 * MS).await;
        assert!(try_one(&mut core));
        let stats = model.stats.snapshot();
        assert!(stats.blocked >= 10 * MS, "{:?}", stats.blocked);
        assert_eq!((stats.parked, stats.partial), (1, 0));
    });
}

/// They are told apart, and one of them tries for all.
#[test]
fn senders_of_a_socket_wait_for_room_side_by_side() {
    for (row, by_event) in [(Row::SendBuffer, true), (Row::FreeBsd, false)] {
        runtime().block_on(async {
            let model = blocked(row, 1, 300 * MS);
            let send = async || {
                let mut core = SenderCore::new(model.clone());
                assert!(!try_one(&mut core));
                send_by_trying(&mut core).await;
            };
            let sending = async { tokio::join!(send(), send(), send(), send(), send(), send(), send(), send()) };
            tokio::select! {
                _ = sending => {}
                () = reactor(&model) => {}
            }
            let stats = model.stats.snapshot();
            assert!(stats.attempts <= 100, "{row:?}: {}", stats.attempts);
            assert_eq!((stats.sent, stats.advised.wakes.readiness > 0), (8, by_event));
        });
    }
}

/// A policy to drop does not wait, even if there was no other before.
#[test]
fn room_is_not_waited_for_under_a_policy_to_drop() {
    runtime().block_on(async {
        let model = blocked(Row::SendBuffer, 1, NEVER);
        model.backpressure.set(Policy::Drop);
        let mut core = SenderCore::new(model.clone());
        let began = Instant::now();
        assert!(!try_one(&mut core));
        room(&mut core).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    });
}

/// Each call reports another error about an earlier datagram: there may be room, but not at once.
#[test]
fn errors_about_earlier_datagrams_are_waited_out() {
    runtime().block_on(async {
        let model = blocked(Row::Others, 1, Duration::ZERO);
        model.failures.borrow_mut().extend([libc::EHOSTUNREACH; 8]);
        let mut core = SenderCore::new(model.clone());
        assert!(!try_one(&mut core));
        assert!(core.poll_room(&mut Context::from_waker(Waker::noop())).is_pending());
        model.failures.borrow_mut().clear();
        send_by_trying(&mut core).await;
        assert_eq!(model.stats.snapshot().sent, 1);
    });
}

#[test]
fn a_try_that_finds_room_allocates_nothing() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd, 1, Duration::ZERO);
        let mut core = SenderCore::new(model.clone());
        assert!(try_one(&mut core) && core.core.wait.is_none());
    });
}

#[test]
fn a_socket_that_has_failed_is_told_to_who_waits_for_room() {
    runtime().block_on(async {
        let model = blocked(Row::SendBuffer, 1, NEVER);
        model.registering_fails.set(Some(libc::EBADF));
        let mut core = SenderCore::new(model.clone());
        assert!(!try_one(&mut core));
        let error = poll_fn(|cx| core.poll_room(cx)).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    });
}

/// Nor does it wait for longer, whatever else is tried meanwhile.
#[test]
fn what_is_held_keeps_its_deadline_when_others_are_tried() {
    runtime().block_on(async {
        let model = model(Row::SendBuffer, 1, Policy::Wait { deadline: 100 * MS });
        model.world.borrow_mut().episodes = vec![(Instant::now(), Instant::now() + NEVER)];
        let mut core = SenderCore::new(model.clone());
        let slices = [IoSlice::new(b"x")];
        let mut held = Transmit::new(TO, &slices);
        for _ in 0..10 {
            let ts = std::slice::from_mut(&mut held);
            assert!(core.poll_send_batch(&mut Context::from_waker(Waker::noop()), ts).is_pending());
            tokio::time::sleep(10 * MS).await;
            assert!(core.try_send(&mut Transmit::new(TO, &slices)).is_err());
        }
        let ts = std::slice::from_mut(&mut held);
        let Poll::Ready(report) = core.poll_send_batch(&mut Context::from_waker(Waker::noop()), ts) else {
            panic!("it waits for longer");
        };
        assert_eq!(report.unwrap().dropped.get(DropReason::Deadline), 1);
    });
}
