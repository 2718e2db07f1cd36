//! What callers, and those who only send datagrams, could make of the queue.

use super::*;

/// A transmit that was held is the queue's: offered again it is nobody's, whether there is room for a copy or not.
#[tokio::test(start_paused = true)]
async fn what_is_held_is_not_taken_or_counted_again_when_it_is_offered_again() {
    let paths = paths(&[(0.001, 0.0)], PATIENT);
    let mut queue =
        QueueCore::new(paths.clone(), QueueBounds { of_a_key: 2 * BIG, of_all: 2 * BIG, ..QueueBounds::default() });
    let bytes = [7; 2 * BIG];
    let slices = [IoSlice::new(&bytes)];
    let mut t = Transmit::new(to(1), &slices).segment_size(BIG);
    queue.send(1, &mut t).unwrap();
    assert_eq!(queue.held(), 2);
    queue.send(1, &mut t).unwrap();
    assert_balance(&queue, &paths);
    queue.send_or_drop(1, &mut t).unwrap();
    assert_balance(&queue, &paths);
    assert_eq!((queue.held(), paths.stats.snapshot().accepted), (2, 2));
}

/// A sender that held it before gives it up by itself.
#[tokio::test(start_paused = true)]
async fn what_a_sender_holds_is_counted_once_more_when_the_queue_drops_it() {
    let paths = paths(&[(0.001, 0.0)], PATIENT);
    let mut queue = QueueCore::new(paths.clone(), QueueBounds { of_a_key: BIG, of_all: BIG, ..QueueBounds::default() });
    send(&mut queue, 1, BIG, 0..1);
    let bytes = [7; BIG];
    let slices = [IoSlice::new(&bytes)];
    let mut t = Transmit::new(to(1), &slices);
    let mut sender = SenderCore::new(paths.clone());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(sender.poll_send_batch(&mut cx, std::slice::from_mut(&mut t)).is_pending());
    queue.send(1, &mut t).unwrap();
    drop(sender);
    assert_balance(&queue, &paths);
}

/// New destinations all the time, none of which takes anything: what the queue knows of those that are over is bounded.
#[tokio::test(start_paused = true)]
async fn ever_new_destinations_cost_no_more_than_what_waits() {
    let paths = paths(&[(0.001, 0.0); 600], WAIT);
    let mut queue = queue(&paths);
    for number in 0..1000u32 {
        for n in 0..40 {
            send(&mut queue, ((number * 40 + n) % 60_000) as u16, 4, 0..1);
        }
        run(&mut queue, MS).await;
    }
    let lines = queue.lines().unwrap();
    assert!(lines.transmits <= 40 * 110, "{}", lines.transmits);
    let (known, turns) = (lines.lines.len(), lines.turns.len());
    assert!(known.max(turns) <= 2 * lines.transmits + 64, "{known} lines, {turns} turns, {} wait", lines.transmits);
    assert_balance(&queue, &paths);
}

/// The same: one whose path has room again is served.
#[tokio::test(start_paused = true)]
async fn ever_new_destinations_do_not_starve_one_that_waits() {
    let mut links = vec![(0.001, 0.0); 600];
    links[599] = (1e6, 0.0);
    let paths = paths(&links, WAIT);
    let mut queue = queue(&paths);
    send(&mut queue, 59_900, BIG, 0..1);
    paths.world.borrow_mut().links[599].limit = 1e9;
    for number in 0..90u32 {
        for n in 0..10 {
            send(&mut queue, (number * 10 + n) as u16, 4, 0..1);
        }
        run(&mut queue, MS).await;
    }
    assert_eq!(queue.held_bytes(59_900), 0);
    assert_eq!(paths.world.borrow().numbers(59_900), [0]);
}

/// Paths that had room for a part once, and have none since, stop nobody.
#[tokio::test(start_paused = true)]
async fn lines_that_have_begun_do_not_starve_one_that_waits() {
    let mut links = vec![(1e-9, 0.0); 6];
    links[5] = (1e6, 0.0);
    let paths = paths(&links, PATIENT);
    let mut queue = queue(&paths);
    for link in 0..6 {
        send(&mut queue, link * 100, BIG, 0..1);
        send(&mut queue, link * 100, BIG, 1..2);
    }
    for link in 0..5 {
        paths.world.borrow_mut().links[link].limit = 1.5 * BIG as f64;
    }
    run(&mut queue, 50 * MS).await;
    assert_eq!(queue.held(), 7);
    paths.world.borrow_mut().links[5].limit = 1e9;
    run(&mut queue, 100 * MS).await;
    assert_eq!(paths.world.borrow().numbers(500), [0, 1]);
    assert_balance(&queue, &paths);
}

/// Polls it so often, as fast as other tasks let it.
async fn poll(queue: &mut QueueCore<Paths, u16>, times: u32) {
    for _ in 0..times {
        poll_fn(|cx| {
            let _ = queue.poll_flush(cx, &mut |_, _, _| {});
            Poll::Ready(())
        })
        .await;
    }
}

/// A system that does not say which datagram an error is about is asked once more, not for ever.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_sent_is_dropped_after_it_was_held_too() {
    let paths = paths(&[(1.0, 0.0)], PATIENT);
    let mut queue = queue(&paths);
    send(&mut queue, 1, BIG, 0..1);
    paths.fails.set(libc::ENETUNREACH);
    tokio::time::sleep(20 * MS).await;
    poll(&mut queue, 10).await;
    assert_eq!((queue.held(), paths.stats.snapshot().drops.unreachable), (0, 1));
    assert_balance(&queue, &paths);
}

/// A queue that has more than a poll sends, on a machine that polls it seldom.
#[tokio::test(start_paused = true)]
async fn what_waits_for_its_turn_is_kept_no_longer_than_the_policy_says() {
    let paths = paths(&[(1e9, 0.0)], WAIT);
    let mut queue =
        QueueCore::new(paths.clone(), QueueBounds { of_a_key: 4 << 20, of_all: 4 << 20, ..QueueBounds::default() });
    for n in 0..2000 {
        send(&mut queue, 1, BIG, n..n + 1);
    }
    paths.world.borrow_mut().links[0].limit = 1e12;
    for _ in 0..12 {
        tokio::time::sleep(10 * MS).await;
        poll(&mut queue, 1).await;
    }
    assert_eq!(queue.held(), 0);
    assert!(paths.stats.snapshot().drops.deadline > 1000);
    assert_balance(&queue, &paths);
}

/// When the send buffer is full for all, a datagram costs no call.
#[tokio::test(start_paused = true)]
async fn a_full_send_buffer_is_not_looked_at_for_each_datagram() {
    let mut paths = paths(&[(1.0, 1e9)], PATIENT);
    paths.world.borrow_mut().send_buffer = 10_000.0;
    paths.sides = Some(Rc::default());
    paths.may_make_sides = false;
    let mut queue = queue(&paths);
    for n in 0..200 {
        send(&mut queue, (n % 50) as u16, BIG, n..n + 1);
    }
    assert!(paths.looks.get() < 10, "{}", paths.looks.get());
    assert_balance(&queue, &paths);
}

/// Whether it waits or has waited: the runtime that it was used on may be gone.
#[test]
fn a_queue_may_be_used_on_another_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    for waits in [false, true] {
        let first = runtime();
        let (paths, mut queue) = first.block_on(async {
            let mut paths = paths(&[(1000.0, 1e9), (1.0, 0.0)], PATIENT);
            if !waits {
                paths.world.borrow_mut().send_buffer = 10_000.0;
                paths.sides = Some(Rc::default());
            }
            let mut queue = queue(&paths);
            for n in 0..50 {
                send(&mut queue, 1, BIG, n..n + 1);
            }
            if waits {
                send(&mut queue, 101, BIG, 0..1);
            }
            run(&mut queue, MS).await;
            if !waits {
                flush(&mut queue).await;
            }
            (paths, queue)
        });
        assert_eq!(queue.held() > 0, waits);
        drop(first);
        runtime().block_on(async {
            paths.world.borrow_mut().links[1].limit = 1e9;
            run(&mut queue, 20_000 * MS).await;
            assert_eq!(queue.held(), 0);
        });
    }
}

/// A queue with a datagram for each of so many keys, none of which has room.
fn crowd(keys: u16, policy: Policy) -> (Paths, QueueCore<Paths, u16>) {
    let paths = paths(&[(0.001, 0.0); 600], policy);
    let mut queue = queue(&paths);
    for key in 0..keys {
        send(&mut queue, key, 4, 0..1);
    }
    assert_eq!(queue.held(), usize::from(keys));
    (paths, queue)
}

/// Other tasks run between two thousand of them.
#[tokio::test(start_paused = true)]
async fn a_poll_drops_a_bounded_number_of_datagrams_and_wakes_itself_for_more() {
    for switch in [false, true] {
        let (paths, mut queue) = crowd(5000, WAIT);
        if switch {
            paths.backpressure.set(Policy::Drop);
        } else {
            tokio::time::sleep(200 * MS).await;
        }
        let woken = Arc::<Woken>::default();
        let mut polls = 0;
        while queue.held() > 0 {
            let before = (queue.held(), woken.count());
            let polled = woken.poll(&mut queue);
            polls += 1;
            assert!(before.0 - queue.held() <= 1024, "{} in a poll", before.0 - queue.held());
            assert!(woken.count() > before.1 || polled.is_ready(), "nobody polls it again");
            assert_balance(&queue, &paths);
        }
        assert!((5..=7).contains(&polls), "{polls}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_poll_forgets_a_bounded_number_of_lines_without_datagrams() {
    let (paths, mut queue) = crowd(5000, PATIENT);
    (0..4999).for_each(|key| queue.cancel(key));
    let known = |queue: &QueueCore<Paths, u16>| queue.lines().map_or(0, |lines| lines.lines.len());
    assert_eq!(known(&queue), 5000);
    let began = Instant::now();
    while known(&queue) > 1 {
        let before = known(&queue);
        tokio::time::sleep(MS).await;
        poll(&mut queue, 1).await;
        assert!(before - known(&queue) <= 1024, "{} in a poll", before - known(&queue));
        assert!(began.elapsed() < 100 * MS);
    }
    assert_eq!(queue.held(), 1);
    assert_balance(&queue, &paths);
}

/// All that it had is sent: there is nothing to keep.
#[tokio::test(start_paused = true)]
async fn what_is_done_is_not_kept_behind_what_waits() {
    let paths = paths(&SLOW_AND_FAST, PATIENT);
    let mut queue = queue(&paths);
    send(&mut queue, 107, BIG, 0..1);
    let bytes = 1u32.to_be_bytes();
    let slices = [IoSlice::new(&bytes)];
    let mut t = Transmit::new(to(107), &slices);
    assert_eq!(queue.send(107, &mut t).unwrap().sent, 1);
    paths.world.borrow_mut().links[1].limit = 0.0;
    send(&mut queue, 107, BIG, 2..3);
    assert_eq!(queue.send(107, &mut t).unwrap().sent, 1);
    assert_eq!((queue.held(), queue.lines().unwrap().transmits), (1, 1));
    assert_balance(&queue, &paths);
}
