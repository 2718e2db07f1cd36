//! Whose turn it is, and when the next attempt follows.

use super::*;

/// The send buffer has room for one call more each time that it is half empty.
#[tokio::test(start_paused = true)]
async fn a_batch_goes_on_at_each_event() {
    let paths = paths(&[(1000.0, 1e9)], PATIENT);
    paths.world.borrow_mut().send_buffer = 10_000.0;
    let train = vec![0; 256_000];
    let slices = [IoSlice::new(&train)];
    let mut ts = [Transmit::new(to(1), &slices).segment_size(100)];
    let mut core = SenderCore::new(paths.clone());
    let began = Instant::now();
    assert_eq!(poll_fn(|cx| core.poll_send_batch(cx, &mut ts)).await.unwrap().sent, 2560);
    let counted = paths.stats.snapshot();
    assert_eq!((counted.advised.wakes.timer, counted.spurious_wakes), (0, 0));
    assert!(began.elapsed() <= 256 * MS, "{:?}: the link was idle", began.elapsed());
}

/// A timer finds room before half of the send buffer is free, which is when the system says that there is room.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_not_due_yet_is_not_lost() {
    let paths = paths(&[(100.0, 1e9)], PATIENT);
    paths.world.borrow_mut().send_buffer = 10_000.0;
    let mut queue = queue(&paths);
    for n in 0..200 {
        send(&mut queue, 1, BIG, n..n + 1);
    }
    flush(&mut queue).await;
    let counted = paths.stats.snapshot();
    assert_eq!((counted.sent, counted.lost_edges), (200, 0));
    assert!(counted.advised.wakes.timer > 10, "{:?}", counted.advised.wakes);
}

/// What is refused while others wait does not put off their next attempt.
#[tokio::test(start_paused = true)]
async fn datagrams_that_are_refused_all_the_time_stop_nobody_that_waits() {
    let mut links = vec![(0.001, 0.0); 600];
    links[599] = (1e6, 0.0);
    let paths = paths(&links, PATIENT);
    let mut queue = queue(&paths);
    send(&mut queue, 59_900, BIG, 0..1);
    for n in 0..200 {
        if n == 100 {
            paths.world.borrow_mut().links[599].limit = 1e9;
        }
        send(&mut queue, n, 4, 0..1);
        tokio::time::sleep(MS / 4).await;
        let mut cx = Context::from_waker(Waker::noop());
        assert!(queue.poll_flush(&mut cx, &mut |_, _, _| {}).is_pending());
    }
    assert_eq!(paths.world.borrow().numbers(59_900), [0]);
    assert_balance(&queue, &paths);
}

/// The first that finds it full tells all, also those that wait for a path of theirs; and all go on when the system says so.
#[tokio::test(start_paused = true)]
async fn a_send_buffer_that_fills_up_while_others_wait_is_not_tried_for_each_datagram() {
    let paths = paths(&[(0.001, 0.0), (1000.0, 1e9)], PATIENT);
    paths.world.borrow_mut().send_buffer = 10_000.0;
    let mut queue = queue(&paths);
    send(&mut queue, 1, BIG, 0..1);
    for n in 0..100 {
        send(&mut queue, 101, BIG, n..n + 1);
        send(&mut queue, 102 + n as u16 % 90, BIG, n..n + 1);
    }
    assert_eq!(paths.world.borrow().refused, 2);
    run(&mut queue, 6 * MS).await;
    assert!(paths.stats.snapshot().advised.wakes.readiness > 0);
    run(&mut queue, 300 * MS).await;
    assert_eq!(queue.held(), 1);
    assert_balance(&queue, &paths);
}

/// One that sends little need not wait for all that have been refused, and that not only once.
#[tokio::test(start_paused = true)]
async fn a_key_that_begins_to_wait_is_tried_before_the_others() {
    let mut links = vec![(1e-9, 0.0); 80];
    links.push((1e6, 0.0));
    let paths = paths(&links, PATIENT);
    let mut queue = queue(&paths);
    for link in 0..80 {
        send(&mut queue, link * 100, BIG, 0..1);
    }
    run(&mut queue, 50 * MS).await;
    for n in 0..5 {
        paths.world.borrow_mut().links[80].limit = 0.0;
        send(&mut queue, 8000, BIG, n..n + 1);
        paths.world.borrow_mut().links[80].limit = 1e9;
        // All others are tried in twenty.
        run(&mut queue, 5 * MS).await;
        assert_eq!(paths.world.borrow().numbers(8000).len(), n as usize + 1);
    }
}

/// A key whose first datagram has gone: the next one has a deadline of its own.
#[tokio::test(start_paused = true)]
async fn a_datagram_behind_one_that_has_gone_has_a_deadline_of_its_own() {
    let paths = paths(&[(1e-9, 0.0)], WAIT);
    let mut queue = queue(&paths);
    send(&mut queue, 1, BIG, 0..1);
    send(&mut queue, 2, BIG, 0..1);
    run(&mut queue, 60 * MS).await;
    send(&mut queue, 1, BIG, 1..2);
    // Room for one of the three.
    paths.world.borrow_mut().links[0].limit = 1.5 * BIG as f64;
    run(&mut queue, 30 * MS).await;
    assert_eq!(queue.held(), 2);
    run(&mut queue, 60 * MS).await;
    assert_eq!((queue.held(), queue.held_bytes(1)), (1, BIG), "90 ms old");
    run(&mut queue, 20 * MS).await;
    assert_eq!((queue.held(), paths.stats.snapshot().drops.deadline), (0, 2));
    assert_balance(&queue, &paths);
}

/// What is known of a full send buffer is not forgotten over a path that was refused before it in the same pass.
#[tokio::test(start_paused = true)]
async fn a_full_send_buffer_is_waited_for_by_its_event_whatever_else_is_refused() {
    let paths = paths(&[(1e-9, 0.0), (1000.0, 1e9)], PATIENT);
    paths.world.borrow_mut().send_buffer = 10_000.0;
    let mut queue = queue(&paths);
    send(&mut queue, 1, BIG, 0..1);
    for n in 0..200 {
        send(&mut queue, 101, BIG, n..n + 1);
    }
    run(&mut queue, 220 * MS).await;
    assert_eq!((paths.world.borrow().numbers(101).len(), queue.held()), (200, 1));
    // An event each 5 ms, at each of which the refused path may be tried too.
    let refused = paths.world.borrow().refused;
    assert!(refused <= 3 * 220 / 5, "{refused}");
    assert_balance(&queue, &paths);
}

/// Whoever flushes is told in the poll that sends the last.
#[tokio::test(start_paused = true)]
async fn a_queue_is_flushed_when_the_last_datagram_has_gone() {
    let paths = paths(&[(1e6, 0.0)], PATIENT);
    let mut queue = queue(&paths);
    send(&mut queue, 1, BIG, 0..1);
    paths.world.borrow_mut().links[0].limit = 1e9;
    tokio::time::sleep(20 * MS).await;
    let mut polls = 0;
    poll_fn(|cx| {
        polls += 1;
        assert!(polls == 1 || queue.held() > 0, "it has been empty since the last poll");
        queue.poll_flush(cx, &mut |_, _, _| {})
    })
    .await
    .unwrap();
}
