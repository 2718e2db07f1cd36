//! How long a sender waits, for what, and what it does meanwhile.

use super::*;

const MS: Duration = Duration::from_millis(1);

async fn send(core: &mut SenderCore<Model>, ts: &mut [Transmit<'_>]) -> SendReport {
    poll_fn(|cx| core.poll_send_batch(cx, ts)).await.unwrap()
}

async fn send_one(core: &mut SenderCore<Model>) -> SendReport {
    let slices = [IoSlice::new(b"x")];
    send(core, &mut [Transmit::new(TO, &slices)]).await
}

fn wait(ms: u64) -> Policy {
    Policy::Wait { deadline: Duration::from_millis(ms) }
}

/// Blocks it from now on for so long.
fn block(model: &Model, time: Duration) {
    model.world.borrow_mut().episodes = vec![(Instant::now(), Instant::now() + time)];
}

#[test]
fn a_sender_is_stuck_only_while_nothing_is_taken() {
    runtime().block_on(async {
        let model = model(Row::FreeBsd, 1, wait(10));
        let mut core = SenderCore::new(model.clone());
        let second = Duration::from_secs(1);
        // Two drops that are six seconds apart, and datagrams that go at once between them.
        for _ in 0..2 {
            block(&model, second / 50);
            assert_eq!(send_one(&mut core).await.dropped.get(DropReason::Deadline), 1);
            tokio::time::sleep(second).await;
            for _ in 0..5 {
                assert_eq!(send_one(&mut core).await.sent, 1);
                tokio::time::sleep(second).await;
            }
        }
        assert!(!core.core.is_stuck() && core.core.blocked_for().is_none());

        block(&model, second * 8);
        let began = Instant::now();
        while began.elapsed() < second * 4 {
            send_one(&mut core).await;
        }
        assert!(!core.core.is_stuck());
        assert!((3..=4).contains(&core.core.blocked_for().unwrap().as_secs()));
        while began.elapsed() < second * 6 {
            send_one(&mut core).await;
        }
        assert!(core.core.is_stuck());
        sleep_until(began + second * 9).await;
        assert_eq!(send_one(&mut core).await.sent, 1);
        assert!(!core.core.is_stuck() && core.core.blocked_for().is_none(), "it went at once");
        assert_eq!(model.stats.snapshot().stuck, 1);
    });
}

/// The clock of a stuck sender is about one socket, not about the next in its place.
#[test]
fn a_sender_goes_on_at_once_when_the_socket_is_replaced_and_is_stuck_no_more() {
    runtime().block_on(async {
        for (row, seconds) in [(Row::SendBuffer, 5), (Row::Permanent, 5), (Row::XnuAdvised, 30)] {
            let model = model(row, 1, wait(3_600_000));
            let mut core = SenderCore::new(model.clone());
            block(&model, NEVER);
            let slices = [IoSlice::new(b"x")];
            let mut ts = [Transmit::new(TO, &slices)];
            for times in 1..=2 {
                // It is noticed when the system is tried.
                let stuck = Duration::from_secs(seconds) + LAST_BACKSTOP;
                assert!(tokio::time::timeout(stuck, send(&mut core, &mut ts)).await.is_err());
                assert!(core.core.is_stuck() && core.core.blocked_for().unwrap() >= stuck - LAST_BACKSTOP, "{row:?}");
                assert_eq!(model.stats.snapshot().stuck, times);
                model.contention.socket_replaced();
                assert!(!core.core.is_stuck() && core.core.blocked_for().is_none(), "{row:?}");
                // The next one takes nothing either.
                assert!(tokio::time::timeout(Duration::ZERO, send(&mut core, &mut ts)).await.is_err());
                assert!(core.core.blocked_for().unwrap() < MS);
            }
            model.world.borrow_mut().episodes.clear();
            model.contention.socket_replaced();
            let sent = tokio::time::timeout(Duration::ZERO, send(&mut core, &mut ts)).await;
            assert_eq!(sent.unwrap().sent, 1, "{row:?}");
            let counted = model.stats.snapshot();
            assert_eq!((counted.accepted, counted.sent, counted.held), (1, 1, 0));
        }
    });
}

#[test]
fn a_sender_that_drops_is_stuck_too() {
    runtime().block_on(async {
        for (row, seconds) in [(Row::FreeBsd, 5), (Row::LinuxQueue, 5), (Row::XnuAdvised, 30)] {
            let model = model(row, 1, Policy::Drop);
            let mut core = SenderCore::new(model.clone());
            block(&model, NEVER);
            for second in 0..seconds + 2 {
                assert_eq!(send_one(&mut core).await.dropped.get(DropReason::NoBuffers), 1);
                assert_eq!(core.core.is_stuck(), second >= seconds, "{row:?} {second}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            model.world.borrow_mut().episodes.clear();
            assert_eq!(send_one(&mut core).await.sent, 1);
            assert!(!core.core.is_stuck());
        }
    });
}

/// Of each poll, and of a batch as well as of a long transmit.
#[test]
fn a_poll_makes_a_bounded_number_of_system_calls() {
    runtime().block_on(async {
        let payload = vec![0; 20_000];
        let slices = [IoSlice::new(&payload)];
        let long = || Transmit::new(TO, &slices).segment_size(1);
        let (mut one, mut several) = ([long()], [(); 3].map(|()| long()));
        for ts in [&mut one[..], &mut several[..]] {
            let model = model(Row::SendBuffer, 1, Policy::default());
            model.world.borrow_mut().episodes.clear();
            let mut core = SenderCore::new(model.clone());
            let (all, mut calls) = (20_000 * ts.len() as u64, 0);
            let mut polls = 0;
            poll_fn(|cx| {
                let polled = core.poll_send_batch(cx, ts);
                let counted = model.stats.snapshot();
                assert!(counted.attempts - calls <= 64, "{} system calls in a poll", counted.attempts - calls);
                assert_eq!((counted.accepted, counted.sent + counted.held), (all, all));
                (calls, polls) = (counted.attempts, polls + 1);
                polled
            })
            .await
            .unwrap();
            assert_eq!((model.world.borrow().delivered, polls), (all, all.div_ceil(64).div_ceil(64)));
        }
    });
}

/// The timers are exact to a millisecond, and the queues hold from one to twenty-four of them.
#[test]
fn a_queue_that_is_smaller_than_a_batch_keeps_the_link_busy() {
    let each = Duration::from_micros(96);
    for (datagrams, train, limit) in [(64, 1, 32), (256, 1, 32), (256, 1, 64), (64, 1, 64), (64, 1, 256), (20, 20, 40)]
    {
        runtime().block_on(async {
            let model = model(Row::FreeBsd, 1, wait(100));
            model.link.set(Some(Link::new(each, limit)));
            let mut core = SenderCore::new(model.clone());
            let payload = vec![0; train];
            let slices = [IoSlice::new(&payload)];
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(2) {
                let t = || Transmit::new(TO, &slices).segment_size(1);
                let mut ts: Vec<_> = std::iter::repeat_with(t).take(datagrams / train).collect();
                assert_eq!(send(&mut core, &mut ts).await.dropped.total(), 0, "{datagrams} into {limit}");
            }
            let took = began.elapsed();
            let counted = model.stats.snapshot();
            let share = (each * counted.sent as u32).as_secs_f64() / took.as_secs_f64();
            let calls = counted.attempts as f64 / took.as_millis() as f64;
            eprintln!("{datagrams} in trains of {train} into {limit}: {share:.2} of the link, {calls:.2} calls/ms");
            assert!(share >= 0.9, "{datagrams} in trains of {train} into {limit}: {share}");
        });
    }
}

/// One refusal, then room: what goes to the same destination stays behind what was refused, and the rest does not wait.
#[test]
fn a_batch_keeps_the_order_within_a_destination() {
    runtime().block_on(async {
        let other = SocketAddr::from(([127, 0, 0, 1], 10));
        for errno in [libc::ENOBUFS, libc::EWOULDBLOCK] {
            let model = model(Row::SendBuffer, 1, Policy::default());
            model.world.borrow_mut().episodes.clear();
            model.failures.borrow_mut().push_back(errno);
            let mut core = SenderCore::new(model.clone());
            let bytes: Vec<_> = (0..6u8).map(|i| [i]).collect();
            let slices: Vec<_> = bytes.iter().map(|b| [IoSlice::new(b)]).collect();
            let to = [TO, TO, other, TO, other, TO];
            let mut ts: Vec<_> = to.iter().zip(&slices).map(|(to, slices)| Transmit::new(*to, slices)).collect();
            tokio::select! {
                report = send(&mut core, &mut ts) => assert_eq!(report.sent, 6),
                () = reactor(&model) => {}
            }
            let log = model.log.borrow();
            let went = |to| log.iter().filter(|(t, _)| *t == to).map(|(_, byte)| *byte).collect::<Vec<_>>();
            assert_eq!((went(TO), went(other)), (vec![0, 1, 3, 5], vec![2, 4]));
            assert_eq!(log[0].0, other, "it does not wait");
        }
    });
}

/// A descriptor of its own is what a sender needs to wait for readiness.
#[test]
fn a_sender_without_a_descriptor_waits_by_the_timer() {
    runtime().block_on(async {
        let model = model(Row::SendBuffer, 1, wait(100));
        let mut core = SenderCore::new(model.clone());
        for _ in 0..2 {
            // Once it has none to begin with, and once it loses the one that it has.
            model.registering_fails.set(Some(libc::EMFILE));
            block(&model, Duration::from_millis(30));
            let began = Instant::now();
            tokio::select! {
                report = send_one(&mut core) => assert_eq!(report.sent, 1),
                () = reactor(&model) => {}
            }
            assert!(began.elapsed() <= Duration::from_millis(80), "{:?}", began.elapsed());
            model.registering_fails.set(None);
            let began = Instant::now();
            block(&model, Duration::from_millis(3));
            tokio::select! {
                report = send_one(&mut core) => assert_eq!(report.sent, 1),
                () = reactor(&model) => {}
            }
            assert_eq!(began.elapsed(), Duration::from_millis(3), "by the event, and not by the timer");
        }
        assert_eq!(model.stats.snapshot().dropped_total(), 0);
    });
}

/// Outages without a promise, one every 100 ms: how much longer than each a datagram is held, and how many calls that takes.
#[test]
fn short_outages_are_over_soon_and_long_ones_cost_few_calls() {
    for (outage, most, calls) in [(3, 2, 5.0), (5, 3, 6.0), (10, 3, 8.0), (16, 3, 12.0), (40, 9, 17.0), (80, 9, 22.0)] {
        runtime().block_on(async {
            let model = model(Row::FreeBsd, 1, wait(1000));
            let (began, ms) = (Instant::now(), Duration::from_millis(1));
            let at = |i| began + ms * 100 * i;
            model.world.borrow_mut().episodes = (0..100).map(|i| (at(i), at(i) + ms * outage)).collect();
            let mut core = SenderCore::new(model.clone());
            while began.elapsed() < ms * 10_000 {
                send_one(&mut core).await;
                tokio::time::sleep(ms).await;
            }
            let counted = model.stats.snapshot();
            let over = counted.blocked / counted.parked as u32 - ms * outage;
            let tries = (counted.attempts - counted.sent) as f64 / counted.parked as f64;
            eprintln!("an outage of {outage} ms: held for {over:?} longer, {tries:.2} calls");
            assert!(over <= ms * most && tries <= calls, "{outage} ms: {over:?}, {tries} calls");
        });
    }
}

/// A flood of others' errors is no want of room; what comes after it may be.
#[test]
fn a_policy_drops_what_finds_no_room_after_a_flood_of_others_errors() {
    runtime().block_on(async {
        let model = model(Row::FreeBsd, 1, Policy::Drop);
        block(&model, NEVER);
        model.failures.borrow_mut().extend([libc::ECONNREFUSED; 4]);
        let mut core = SenderCore::new(model.clone());
        let began = Instant::now();
        assert_eq!(send_one(&mut core).await.dropped.get(DropReason::NoBuffers), 1);
        assert!(began.elapsed() <= SLACK, "{:?}", began.elapsed());
    });
}

/// The timer that would find it fires later than the deadline.
#[test]
fn what_has_room_at_its_deadline_is_sent() {
    runtime().block_on(async {
        let model = Model { lossy: true, ..model(Row::SendBuffer, 1, wait(10)) };
        block(&model, Duration::from_millis(5));
        let mut core = SenderCore::new(model.clone());
        assert_eq!(send_one(&mut core).await.sent, 1);
        let wakes = model.stats.snapshot().advised.wakes;
        assert_eq!((wakes.timer, wakes.policy), (1, 0));
    });
}

#[test]
fn what_has_room_when_the_policy_is_switched_is_sent() {
    runtime().block_on(async {
        let model = Model { lossy: true, ..model(Row::SendBuffer, 1, wait(1000)) };
        block(&model, Duration::from_millis(5));
        let mut core = SenderCore::new(model.clone());
        let switch = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            model.backpressure.set(Policy::Drop);
        };
        let (report, ()) = tokio::join!(send_one(&mut core), switch);
        let wakes = model.stats.snapshot().advised.wakes;
        assert_eq!((report.sent, wakes.policy, wakes.timer), (1, 1, 0));
    });
}

/// The timers of a wait with a promise are longer than this deadline.
#[test]
fn a_sender_is_stuck_whose_datagrams_are_dropped_before_it_tries_again() {
    runtime().block_on(async {
        let model = model(Row::Permanent, 1, wait(10));
        block(&model, NEVER);
        let mut core = SenderCore::new(model.clone());
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(5000) {
            assert!(!core.core.is_stuck(), "{:?}", began.elapsed());
            assert_eq!(send_one(&mut core).await.dropped.get(DropReason::Deadline), 1);
        }
        assert!(core.core.is_stuck());
    });
}

/// Room for the first of two calls, and then none for so many seconds.
#[test]
fn a_sender_of_which_a_part_has_gone_is_blocked_from_then_on() {
    let ms = Duration::from_millis(1);
    let payload = [0; 128];
    let slices = [IoSlice::new(&payload)];
    // At the deadline, and before it.
    for (deadline, blocked_for, stuck) in [(20, None, false), (10_000, Some(6000 * ms), true)] {
        runtime().block_on(async {
            let model = model(Row::SendBuffer, 1, wait(deadline));
            block(&model, 20 * ms);
            model.queues.borrow_mut().insert(TO, Rc::new(Cell::new(Link::new(NEVER, 64))));
            let mut core = SenderCore::new(model.clone());
            let mut t = [Transmit::new(TO, &slices).segment_size(1)];
            let began = Instant::now();
            tokio::select! {
                report = send(&mut core, &mut t) => {
                    assert_eq!((report.sent, report.dropped.get(DropReason::Deadline)), (64, 64));
                    assert_eq!(began.elapsed(), 20 * ms);
                }
                () = reactor(&model) => {}
                () = sleep_until(began + 6020 * ms) => {}
            }
            assert_eq!((core.core.blocked_for(), core.core.is_stuck()), (blocked_for, stuck), "{deadline}");
            assert_eq!(model.stats.snapshot().sent, 64);
        });
    }
}

#[test]
fn a_socket_that_fails_while_a_sender_waits_ends_the_wait() {
    runtime().block_on(async {
        let model = model(Row::FreeBsd, 1, wait(1000));
        block(&model, NEVER);
        let mut core = SenderCore::new(model.clone());
        let slices = [IoSlice::new(b"123")];
        let mut ts = [Transmit::new(TO, &slices).segment_size(1)];
        let fail = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            model.failures.borrow_mut().push_back(libc::EBADF);
        };
        let (ended, ()) = tokio::join!(poll_fn(|cx| core.poll_send_batch(cx, &mut ts)), fail);
        assert_eq!(ended.unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!((model.stats.snapshot().drops.socket, model.stats.snapshot().held), (3, 0));
    });
}

/// What a poll may send is bounded; the rest is no new wait.
#[test]
fn a_long_transmit_that_has_waited_goes_on_as_soon_as_others_have_run() {
    runtime().block_on(async {
        let model = model(Row::FreeBsd, 1, wait(1000));
        block(&model, Duration::from_millis(20));
        let mut core = SenderCore::new(model.clone());
        let payload = vec![0; 20_000];
        let slices = [IoSlice::new(&payload)];
        let mut ts = [Transmit::new(TO, &slices).segment_size(1)];
        let mut polls = 0;
        let report = poll_fn(|cx| {
            let polled = core.poll_send_batch(cx, &mut ts);
            polls += u32::from(model.stats.snapshot().sent > 0);
            assert!(polls == 0 || core.core.blocked_for().is_none() && !core.core.is_parked());
            polled
        });
        let began = Instant::now();
        assert_eq!(report.await.unwrap().sent, 20_000);
        let counted = model.stats.snapshot();
        // It was refused so often that it goes datagram by datagram.
        assert_eq!((counted.parked, polls), (1, 20_000u32.div_ceil(64)));
        assert_eq!(counted.blocked, began.elapsed());
    });
}
