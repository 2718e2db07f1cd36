//! What a refusal holds up, for how long, and how much is kept.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_path_that_is_refused_holds_up_no_other() {
    let paths = paths(&SLOW_AND_FAST, PATIENT);
    let mut queue = queue(&paths);
    for number in 0..50 {
        send(&mut queue, 7, BIG, number..number + 1);
        let report = send(&mut queue, 107, BIG, number..number + 1);
        assert_eq!(report.sent, 1, "at once");
        run(&mut queue, MS).await;
    }
    assert!(queue.held() > 30 && queue.held_bytes(107) == 0);
    assert_balance(&queue, &paths);
    flush(&mut queue).await;
    assert_eq!(paths.world.borrow().numbers(7), (0..50).collect::<Vec<_>>(), "in order");
    assert_eq!(queue.held(), 0);
    assert_balance(&queue, &paths);
}

/// What every sender of one socket did before: a line for all.
#[tokio::test(start_paused = true)]
async fn one_line_for_all_holds_up_the_other() {
    let paths = paths(&SLOW_AND_FAST, PATIENT);
    let mut queue = queue(&paths);
    let mut sent = 0;
    for number in 0..50u32 {
        send(&mut queue, 7, BIG, number..number + 1);
        let bytes = number.to_be_bytes();
        // Under the same key.
        sent += queue.send(7, &mut Transmit::new(to(107), &[IoSlice::new(&bytes)])).unwrap().sent;
        run(&mut queue, MS).await;
    }
    assert!(sent < 5, "{sent} of 50");
}

#[tokio::test(start_paused = true)]
async fn lines_behind_one_link_have_equal_shares() {
    let paths = paths(&[(100.0, 3000.0)], PATIENT);
    let mut queue = queue(&paths);
    for n in 0..200 {
        send(&mut queue, 1, BIG, n..n + 1);
    }
    for n in 0..200 {
        send(&mut queue, 2, BIG, n..n + 1);
    }
    // Trains, one of which is more than the link's queue.
    for n in 0..5 {
        send(&mut queue, 3, BIG, n * 40..(n + 1) * 40);
    }
    run(&mut queue, 3000 * MS).await;
    assert_balance(&queue, &paths);
    let world = paths.world.borrow();
    let shares = [1, 2, 3].map(|port| world.numbers(port).len() * BIG);
    let all: usize = shares.iter().sum();
    assert!(all > 270_000, "{shares:?}");
    assert!(shares.iter().all(|&share| share > all / 5), "{shares:?}");
    for port in [1, 2, 3] {
        assert!(world.numbers(port).is_sorted());
    }
}

#[tokio::test(start_paused = true)]
async fn no_call_takes_more_than_a_turn() {
    let paths = paths(&[(100.0, 0.0)], PATIENT);
    let mut queue = queue(&paths);
    send(&mut queue, 1, BIG, 0..60);
    paths.world.borrow_mut().links[0].limit = 1e9;
    flush(&mut queue).await;
    let world = paths.world.borrow();
    assert_eq!(world.numbers(1), (0..60).collect::<Vec<_>>());
    let most = lines::QUANTUM as usize;
    assert!((most / 2..=most).contains(&world.largest), "{}", world.largest);
}

/// Whether a policy to drop is the reason, or a bound: the socket is known to have had no room, and for how long.
#[tokio::test(start_paused = true)]
async fn what_is_refused_and_dropped_tells_since_when_there_is_no_room() {
    let paths = paths(&[(1e-9, 0.0)], Policy::Drop);
    let mut queue = queue(&paths);
    send(&mut queue, 1, BIG, 0..1);
    tokio::time::sleep(MS).await;
    send(&mut queue, 1, BIG, 1..2);
    assert_eq!(queue.core.blocked_for(), Some(MS));
    paths.world.borrow_mut().links[0].limit = 1e9;
    send(&mut queue, 1, BIG, 2..3);
    assert_eq!(queue.core.blocked_for(), None);
    assert_balance(&queue, &paths);
}

#[tokio::test(start_paused = true)]
async fn a_line_and_all_of_them_are_bounded() {
    let paths = paths(&[(0.001, 0.0); 2], PATIENT);
    let bounds = QueueBounds { of_a_key: 10 * BIG, of_all: 15 * BIG, ..QueueBounds::default() };
    let mut queue = QueueCore::new(paths.clone(), bounds);
    for n in 0..20 {
        send(&mut queue, 1, BIG, n..n + 1);
    }
    assert_eq!((queue.held(), queue.held_bytes(1)), (10, 10 * BIG));
    for n in 0..20 {
        send(&mut queue, 101, BIG, n..n + 1);
    }
    assert_eq!((queue.held(), queue.held_bytes(101)), (15, 5 * BIG));
    assert_eq!(paths.stats.snapshot().drops.queue_full, 25);
    assert_balance(&queue, &paths);
    queue.cancel(1);
    assert_eq!((queue.held(), paths.stats.snapshot().drops.cancelled), (5, 10));
    // Small ones cost more than their bytes.
    for n in 0..1000 {
        send(&mut queue, 1, 4, n..n + 1);
    }
    assert_eq!(queue.held() - 5, 10 * BIG / LEAST);
    assert_balance(&queue, &paths);
    drop(queue);
    let s = paths.stats.snapshot();
    assert_eq!((s.held, s.drops.cancelled), (0, 15 + (10 * BIG / LEAST) as u64));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_for_longer_than_the_policy_says() {
    let paths = paths(&[(0.001, 0.0)], WAIT);
    let mut queue = queue(&paths);
    send(&mut queue, 1, BIG, 0..1);
    run(&mut queue, 60 * MS).await;
    send(&mut queue, 2, BIG, 0..1);
    run(&mut queue, 45 * MS).await;
    assert_eq!((queue.held(), queue.held_bytes(1)), (1, 0));
    assert_eq!(paths.stats.snapshot().drops.deadline, 1);
    run(&mut queue, 60 * MS).await;
    assert_eq!((queue.held(), paths.stats.snapshot().drops.deadline), (0, 2));
    assert_balance(&queue, &paths);
}

#[tokio::test(start_paused = true)]
async fn a_switch_to_drop_releases_all_lines_at_once() {
    let paths = paths(&[(0.001, 0.0); 20], PATIENT);
    let mut queue = queue(&paths);
    for port in 0..2000 {
        send(&mut queue, port, BIG, 0..1);
    }
    run(&mut queue, 20 * MS).await;
    let (switched, backpressure) = (Instant::now(), paths.backpressure.clone());
    tokio::join!(flush(&mut queue), async { backpressure.set(Policy::Drop) });
    assert!(switched.elapsed() <= 2 * MS);
    assert_eq!((queue.held(), paths.stats.snapshot().drops.no_buffers), (0, 2000));
    assert_eq!(send(&mut queue, 1, BIG, 0..3).dropped.total(), 3);
    assert_eq!(queue.held(), 0);
    assert_balance(&queue, &paths);
}

#[tokio::test(start_paused = true)]
async fn strangers_answers_are_never_held() {
    let paths = paths(&SLOW_AND_FAST, PATIENT);
    let mut queue = queue(&paths);
    let bytes = [IoSlice::new(&[0; BIG])];
    let mut sent = 0;
    for _ in 0..10 {
        sent += queue.send_or_drop(1, &mut Transmit::new(to(1), &bytes)).unwrap().sent;
    }
    assert_eq!((sent, queue.held(), paths.stats.snapshot().drops.no_buffers), (2, 0, 8));
    assert_balance(&queue, &paths);
}

/// A thousand paths are refused for good, and one has room now and then: it is found, and the others cost no more than a few
/// calls a millisecond.
#[tokio::test(start_paused = true)]
async fn many_refused_paths_are_tried_by_turns() {
    let mut links = vec![(1e-9, 0.0); 400];
    links.push((100.0, 1000.0));
    let paths = paths(&links, PATIENT);
    let mut queue = queue(&paths);
    for link in 0..401 {
        for n in 0..3 {
            send(&mut queue, link * 100, BIG, n..n + 1);
        }
    }
    let before = paths.world.borrow().refused;
    run(&mut queue, 1000 * MS).await;
    let world = paths.world.borrow();
    assert_eq!(world.numbers(40_000), [0, 1, 2]);
    let refused = world.refused - before;
    assert!(refused <= 4100, "{refused} calls in a second");
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_long_beside_many_that_go_costs_no_memory() {
    let paths = paths(&[(1e-9, 0.0), (1e6, 0.0)], PATIENT);
    let mut queue = queue(&paths);
    send(&mut queue, 1, BIG, 0..1);
    for n in 0..10_000 {
        paths.world.borrow_mut().links[1].limit = 0.0;
        send(&mut queue, 101, BIG, n..n + 1);
        paths.world.borrow_mut().links[1].limit = 1e9;
        run(&mut queue, 10 * MS).await;
    }
    assert_eq!((paths.world.borrow().numbers(101).len(), queue.held()), (10_000, 1));
    assert!(queue.lines().unwrap().ages.len() < 100);
    assert_balance(&queue, &paths);
}

/// `EWOULDBLOCK` is about the socket: nobody tries until there is room, and then all have their turn.
#[tokio::test(start_paused = true)]
async fn a_full_send_buffer_stops_all_and_then_serves_all() {
    let paths = paths(&[(1000.0, 1e9); 2], PATIENT);
    paths.world.borrow_mut().send_buffer = 10_000.0;
    let mut queue = queue(&paths);
    for n in 0..100 {
        send(&mut queue, 1, BIG, n..n + 1);
        send(&mut queue, 101, BIG, n..n + 1);
    }
    assert_eq!(paths.world.borrow().refused, 1, "the first tells all");
    flush(&mut queue).await;
    let world = paths.world.borrow();
    for port in [1, 101] {
        assert_eq!(world.numbers(port), (0..100).collect::<Vec<_>>());
    }
    assert!(world.refused < 40, "{}", world.refused);
    assert_eq!(paths.stats.snapshot().advised.wakes.timer, 0, "each event is worth as much as the first");
    assert_balance(&queue, &paths);
}

/// What it takes to wait is there only while something waits, or shortly before.
#[tokio::test(start_paused = true)]
async fn an_idle_queue_has_given_back_what_waiting_took() {
    let paths = paths(&SLOW_AND_FAST, PATIENT);
    let mut queue = queue(&paths);
    send(&mut queue, 7, BIG, 0..10);
    assert!(queue.busy.is_some());
    flush(&mut queue).await;
    assert!(queue.busy.is_none() && queue.core.wait.is_some(), "the back-off is remembered for some seconds");
    tokio::time::sleep(11_000 * MS).await;
    flush(&mut queue).await;
    assert!(queue.core.wait.is_none());
    send(&mut queue, 7, BIG, 10..20);
    flush(&mut queue).await;
    assert_eq!(paths.world.borrow().numbers(7), (0..20).collect::<Vec<_>>());
    assert_balance(&queue, &paths);
}

/// Random loads over shared and separate paths, with switches of the policy and what is given up.
#[tokio::test(start_paused = true)]
async fn the_books_balance_whatever_happens() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..300 {
        let (paths, links) = random_paths(&mut random);
        let mut queue = queue(&paths);
        let mut next = 0;
        for _ in 0..random.u32(1..60) {
            let port = random.u16(0..links) * 100 + random.u16(0..3);
            match random.u32(0..20) {
                0 => queue.cancel(port),
                1 => paths.backpressure.set(if random.bool() { WAIT } else { Policy::Drop }),
                2 => run(&mut queue, MS * random.u32(1..40)).await,
                _ => {
                    let count = random.u32(1..30);
                    send(&mut queue, port, random.usize(4..1500), next..next + count);
                    next += count;
                }
            }
            assert_balance(&queue, &paths);
        }
        let since = Instant::now();
        flush(&mut queue).await;
        assert!(since.elapsed() <= 120 * MS);
        assert_eq!(queue.held(), 0);
        assert_balance(&queue, &paths);
        let world = paths.world.borrow();
        for port in 0..500 {
            assert!(world.numbers(port).is_sorted(), "in order");
        }
    }
}

/// Small datagrams, which count more than their bytes, beside one that waits for good.
#[tokio::test(start_paused = true)]
async fn what_has_been_sent_or_dropped_or_given_up_counts_no_more() {
    let paths = paths(&[(1e-9, 0.0), (1e6, 0.0)], PATIENT);
    let mut queue = queue(&paths);
    send(&mut queue, 1, BIG, 0..1);
    let counted = |queue: &QueueCore<Paths, u16>| {
        let lines = queue.lines().unwrap();
        (queue.bytes(), queue.held_bytes(101), lines.transmits, lines.datagrams)
    };
    let all = (BIG + 5 * LEAST, 5 * LEAST, 6, 6);
    for how in ["sent", "given up", "too old"] {
        for n in 0..5 {
            send(&mut queue, 101, 4, n..n + 1);
        }
        assert_eq!(counted(&queue), all, "{how}");
        match how {
            "sent" => {
                paths.world.borrow_mut().links[1].limit = 1e9;
                run(&mut queue, 20 * MS).await;
                paths.world.borrow_mut().links[1].limit = 0.0;
            }
            "given up" => queue.cancel(101),
            _ => {
                // The other one is kept: it came later.
                let line = queue.busy().lines.take(1).unwrap();
                paths.backpressure.set(WAIT);
                run(&mut queue, 90 * MS).await;
                assert_eq!(queue.held(), 5);
                drop(line);
                send(&mut queue, 1, BIG, 1..2);
                run(&mut queue, 20 * MS).await;
            }
        }
        assert_eq!(counted(&queue), (BIG, 0, 1, 1), "{how}");
    }
}

/// So many system calls, and then others run.
#[tokio::test(start_paused = true)]
async fn a_poll_makes_sixty_four_calls() {
    let paths = paths(&[(1e9, 0.0)], PATIENT);
    let (mut queue, woken) = (queue(&paths), Arc::<Woken>::default());
    for n in 0..200 {
        send(&mut queue, 1, 4, n..n + 1);
    }
    paths.world.borrow_mut().links[0].limit = 1e12;
    tokio::time::sleep(20 * MS).await;
    let mut after = vec![200];
    while queue.held() > 0 {
        let before = woken.count();
        let polled = woken.poll(&mut queue);
        assert!(woken.count() > before || polled.is_ready(), "nobody polls it again");
        after.push(queue.held());
    }
    after.dedup();
    assert_eq!(after, [200, 136, 72, 8, 0]);
    assert_balance(&queue, &paths);
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_socket_is_given_is_dropped() {
    let paths = paths(&SLOW_AND_FAST, PATIENT);
    let mut queue = queue(&paths);
    paths.fails.set(libc::EBADF);
    let bytes = [IoSlice::new(&[0; 3 * BIG])];
    for answer in [false, true] {
        let mut t = Transmit::new(to(1), &bytes).segment_size(BIG);
        let failed = if answer { queue.send_or_drop(1, &mut t) } else { queue.send(1, &mut t) };
        assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
    assert_eq!((queue.held(), paths.stats.snapshot().drops.socket), (0, 6));
    assert_balance(&queue, &paths);
}

/// There is no room for it in the bounds either, but those that wait know what to wait for now.
#[tokio::test(start_paused = true)]
async fn a_datagram_that_is_dropped_tells_those_that_wait_of_a_full_send_buffer() {
    let paths = paths(&[(1e-9, 0.0), (1.0, 1e9)], PATIENT);
    paths.world.borrow_mut().send_buffer = 1.0;
    let mut queue = QueueCore::new(paths.clone(), QueueBounds { of_all: BIG, ..QueueBounds::default() });
    send(&mut queue, 1, BIG, 0..1);
    send(&mut queue, 101, BIG, 0..1);
    assert_eq!(queue.core.parked_class(), Some(Class::Silent));
    send(&mut queue, 101, BIG, 1..2);
    assert_eq!((queue.held(), queue.core.parked_class()), (1, Some(Class::Advised)));
    assert_balance(&queue, &paths);
}

/// The policy is switched before the first retry, too.
#[tokio::test(start_paused = true)]
async fn a_wait_is_counted_as_partial_after_a_part_and_ends_with_the_policy() {
    for (limit, partial, held) in [(0.0, 0, 100), (700.0, 1, 36)] {
        let paths = paths(&[(1e-9, limit)], PATIENT);
        let mut queue = queue(&paths);
        // Sixty-four of ten bytes in a call.
        send(&mut queue, 1, 10, 0..100);
        assert_eq!((queue.held(), paths.stats.snapshot().partial), (held, partial));
        let began = Instant::now();
        paths.backpressure.set(Policy::Drop);
        flush(&mut queue).await;
        assert_eq!((began.elapsed(), queue.held()), (Duration::ZERO, 0));
        assert_balance(&queue, &paths);
    }
}
