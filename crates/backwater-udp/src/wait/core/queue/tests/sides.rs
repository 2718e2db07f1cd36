//! A path with a deep queue fills the send buffer of a socket of its own.

use super::*;

/// A link of 25 bytes a millisecond (200 kbit/s) with a queue of any depth, others that are free, and one that is refused.
const DEEP_AND_FAST: [(f64, f64); 3] = [(25.0, 1e12), (1e6, 1e12), (1e-3, 2000.0)];

fn deep(policy: Policy, send_buffer: f64, with_sides: bool) -> Paths {
    let mut paths = paths(&DEEP_AND_FAST, policy);
    paths.world.borrow_mut().send_buffer = send_buffer;
    paths.sides = with_sides.then(Rc::default);
    paths
}

/// Send-only sockets that are open.
fn open(paths: &Paths) -> usize {
    paths.sides.as_ref().map_or(0, |sides| Rc::strong_count(sides) - 2)
}

/// Sends a datagram to the slow destination and to one of `others` in each of so many milliseconds: how many of the others' went at once.
async fn beside(queue: &mut QueueCore<Paths, u16>, others: u16, milliseconds: u32) -> u32 {
    let mut at_once = 0;
    for number in 0..milliseconds {
        send(queue, 7, BIG, number..number + 1);
        at_once += send(queue, 100 + (number % u32::from(others)) as u16 % 100, BIG, number..number + 1).sent;
        run(queue, MS).await;
    }
    at_once
}

#[tokio::test(start_paused = true)]
async fn a_deep_queue_stops_no_other_destination() {
    for (policy, others) in [(WAIT, 1), (Policy::Drop, 1), (WAIT, 40), (Policy::Drop, 40)] {
        let paths = deep(policy, 100_000.0, true);
        let mut queue = queue(&paths);
        assert_eq!(beside(&mut queue, others, 5000).await, 5000, "{policy:?}, {others} others");
        assert!(open(&paths) <= 16);
        assert_balance(&queue, &paths);
        let world = paths.world.borrow();
        // What the slow path has taken is what it could, and a send buffer or two.
        assert!(world.numbers(7).len() >= 5000 * 25 / BIG + 100);
        assert!((0..200).all(|port| world.numbers(port).is_sorted()), "in order");
    }
}

/// What it would be otherwise.
#[tokio::test(start_paused = true)]
async fn without_sockets_of_their_own_a_deep_queue_stops_all() {
    for policy in [WAIT, Policy::Drop] {
        let paths = deep(policy, 100_000.0, false);
        let at_once = beside(&mut queue(&paths), 1, 5000).await;
        assert!(at_once < 500, "{policy:?}: {at_once}");
    }
}

/// A large send buffer is looked at before it is full: all that share it go on to do so.
#[tokio::test(start_paused = true)]
async fn a_large_send_buffer_does_not_fill_up() {
    let paths = deep(WAIT, 2e6, true);
    let mut queue = queue(&paths);
    assert_eq!(beside(&mut queue, 90, 4000).await, 4000);
    let world = paths.world.borrow();
    let shared = world.in_flight(0, Instant::now());
    assert!(shared < 1.4e6, "{shared} bytes are in the shared send buffer");
}

#[tokio::test(start_paused = true)]
async fn sockets_are_given_back_when_they_are_idle() {
    let paths = deep(WAIT, 100_000.0, true);
    let mut queue = queue(&paths);
    beside(&mut queue, 20, 500).await;
    let before = open(&paths);
    assert!(before > 0);
    // What the slow path has waits for up to twelve seconds.
    for _ in 0..4 {
        run(&mut queue, 15_000 * MS).await;
    }
    assert_eq!((open(&paths), queue.held()), (0, 0));
    assert!(queue.busy.is_none(), "nothing is kept");
    assert_balance(&queue, &paths);
}

/// With sixteen slow paths there is none left for others, which wait as they would without.
#[tokio::test(start_paused = true)]
async fn no_more_than_sixteen_are_open() {
    let links: Vec<_> = (0..40).map(|_| (25.0, 1e12)).collect();
    let mut paths = paths(&links, WAIT);
    paths.world.borrow_mut().send_buffer = 20_000.0;
    paths.sides = Some(Rc::default());
    let mut queue = queue(&paths);
    for number in 0..200 {
        for link in 0..40 {
            send(&mut queue, link * 100, BIG, number..number + 1);
        }
        run(&mut queue, MS).await;
    }
    assert_eq!(open(&paths), 16);
    assert_balance(&queue, &paths);
    flush(&mut queue).await;
    assert_balance(&queue, &paths);
    drop(queue);
    assert_eq!(Rc::strong_count(paths.sides.as_ref().unwrap()), 1);
}

/// What waits for a path of its own when the shared send buffer fills up goes on by a socket of its own.
#[tokio::test(start_paused = true)]
async fn a_line_that_waits_moves_to_a_socket_of_its_own() {
    let paths = deep(PATIENT, 100_000.0, true);
    paths.world.borrow_mut().links[2].rate = 1.0;
    let mut queue = queue(&paths);
    for number in 0..5 {
        send(&mut queue, 207, BIG, number..number + 1);
    }
    assert_eq!((queue.held(), queue.held_bytes(207)), (3, 3 * BIG));
    for number in 0..300 {
        send(&mut queue, 7, BIG, number..number + 1);
    }
    run(&mut queue, 20 * MS).await;
    send(&mut queue, 207, BIG, 5..6);
    let lines = queue.lines().map_or(0, |lines| lines.datagrams);
    assert!(lines + 4 <= queue.held() && queue.held_bytes(207) == 4 * BIG);
    assert_balance(&queue, &paths);
    run(&mut queue, 6100 * MS).await;
    assert_eq!(paths.world.borrow().numbers(207), (0..6).collect::<Vec<_>>());
    assert_balance(&queue, &paths);
    queue.cancel(7);
    assert_eq!(queue.held(), 0);
    assert_balance(&queue, &paths);
}

/// They send from the port of the socket that was there before.
#[tokio::test(start_paused = true)]
async fn what_waits_on_sockets_of_their_own_goes_on_with_the_socket_that_is_there_now() {
    let paths = deep(PATIENT, 20_000.0, true);
    let mut queue = queue(&paths);
    for number in 0..100 {
        for port in [7, 8, 107] {
            send(&mut queue, port, BIG, number..number + 1);
        }
        run(&mut queue, MS).await;
    }
    let (held, opened) = (queue.held(), open(&paths));
    assert!(held > 100 && opened >= 2, "{held} {opened}");
    paths.contention.socket_replaced();
    let _ = timeout(Duration::ZERO, flush(&mut queue)).await;
    let lines = queue.lines().unwrap();
    assert_eq!(
        (open(&paths), lines.datagrams, queue.held_bytes(7) + queue.held_bytes(8)),
        (0, queue.held(), queue.bytes())
    );
    assert!(lines.ages.iter().map(|(since, _)| since).is_sorted(), "the oldest first");
    assert_balance(&queue, &paths);
    for number in 100..110 {
        send(&mut queue, 7, BIG, number..number + 1);
    }
    flush(&mut queue).await;
    assert_eq!(paths.world.borrow().numbers(7), (0..110).collect::<Vec<_>>(), "in order");
    assert_eq!(paths.world.borrow().numbers(8), (0..100).collect::<Vec<_>>(), "in order");
    assert_balance(&queue, &paths);
}

/// Anyone can be a stranger: all of them together have one socket.
#[tokio::test(start_paused = true)]
async fn answers_to_strangers_fill_a_socket_of_theirs() {
    let paths = deep(WAIT, 100_000.0, true);
    let mut queue = queue(&paths);
    let bytes = [IoSlice::new(&[0; BIG])];
    let mut at_once = 0;
    for number in 0..2000u32 {
        let stranger = (number % 90) as u16;
        queue.send_or_drop(stranger, &mut Transmit::new(to(stranger), &bytes)).unwrap();
        at_once += send(&mut queue, 150, BIG, number..number + 1).sent;
        run(&mut queue, MS).await;
    }
    assert_eq!(at_once, 2000);
    assert!(open(&paths) <= 2, "{}", open(&paths));
    assert_balance(&queue, &paths);
}

/// Where none can be made, a try a second is all that it costs.
#[tokio::test(start_paused = true)]
async fn a_socket_that_cannot_be_made_is_asked_for_once_a_second() {
    let mut paths = deep(Policy::Drop, 100_000.0, true);
    paths.may_make_sides = false;
    let mut queue = queue(&paths);
    beside(&mut queue, 10, 5000).await;
    assert!((3..=5).contains(&paths.failed.get()), "{}", paths.failed.get());
    assert_balance(&queue, &paths);
}

/// The socket that all keys share is fine: what has waited, and what comes then, goes by it.
#[tokio::test(start_paused = true)]
async fn a_send_only_socket_that_fails_is_closed_and_costs_no_datagram() {
    // Whoever finds out: a datagram that is sent, or the task that empties the queue.
    for (next, waits, finder) in [(25, false, "send"), (60, true, "poll")] {
        let paths = deep(PATIENT, 20_000.0, true);
        let mut queue = queue(&paths);
        for number in 0..next {
            send(&mut queue, 7, BIG, number..number + 1);
        }
        assert_eq!((open(&paths), queue.held() > 0), (1, waits), "{finder}");
        // The send buffer that all share has room again.
        run(&mut queue, 500 * MS).await;
        paths.sides_fail.set(true);
        send(&mut queue, 7, BIG, next..next + 1);
        run(&mut queue, 500 * MS).await;
        assert_eq!(open(&paths), 0, "{finder}");
        assert_balance(&queue, &paths);
        send(&mut queue, 7, BIG, next + 1..next + 2);
        run(&mut queue, 10_000 * MS).await;
        assert_eq!(paths.world.borrow().numbers(7), (0..next + 2).collect::<Vec<_>>(), "{finder}");
        assert_eq!((queue.held(), paths.stats.snapshot().drops.socket), (0, 0));
        assert_balance(&queue, &paths);
    }
}

/// One that is closed is not replaced at once: the next might fail as well.
#[tokio::test(start_paused = true)]
async fn answers_to_strangers_go_on_when_their_socket_fails() {
    let paths = deep(WAIT, 100_000.0, true);
    let mut queue = queue(&paths);
    let bytes = [IoSlice::new(&[0; BIG])];
    let answer = |queue: &mut QueueCore<Paths, u16>, port| {
        queue.send_or_drop(port, &mut Transmit::new(to(port), &bytes)).unwrap().sent
    };
    while open(&paths) == 0 {
        answer(&mut queue, 7);
    }
    run(&mut queue, 3000 * MS).await;
    paths.sides_fail.set(true);
    for _ in 0..3 {
        assert_eq!(answer(&mut queue, 107), 1);
    }
    assert_eq!((open(&paths), paths.stats.snapshot().drops.socket), (0, 0));
    assert_balance(&queue, &paths);
}

/// A queue looks once in 256 KiB, of which each datagram counts 2 KiB at least; one whose keys get no sockets never does.
#[tokio::test(start_paused = true)]
async fn the_send_buffer_is_looked_at_once_in_256_kib() {
    let paths = deep(WAIT, 1e9, true);
    let mut queue = queue(&paths);
    for (datagrams, bytes, looks) in [(127, 4, 0), (1, 4, 1), (63, 4096, 1), (1, 4096, 2), (1, 2048, 2)] {
        for n in 0..datagrams {
            send(&mut queue, 107, bytes, n..n + 1);
        }
        assert_eq!(paths.looks.get(), looks, "{datagrams} of {bytes} bytes");
    }
    let bounds = QueueBounds { dedicated_sockets: 0, ..QueueBounds::default() };
    let paths = deep(WAIT, 100_000.0, true);
    let mut queue = QueueCore::new(paths.clone(), bounds);
    for n in 0..300 {
        send(&mut queue, 7, BIG, n..n + 1);
    }
    assert!((paths.looks.get(), open(&paths)) == (0, 0) && queue.sides().is_none() && queue.held() > 0);
}

/// Of one that is half full nobody is the reason.
#[tokio::test(start_paused = true)]
async fn more_than_half_of_a_send_buffer_is_too_much() {
    const USED: usize = 127 * 2048;
    for (size, is_crowded) in [(2 * USED, false), (2 * USED - 2, true)] {
        let paths = deep(WAIT, size as f64, true);
        paths.world.borrow_mut().links[0].rate = 1.0;
        let mut queue = queue(&paths);
        for n in 0..128 {
            send(&mut queue, 7, 2048, n..n + 1);
        }
        assert_eq!((paths.looks.get() > 0, open(&paths)), (true, usize::from(is_crowded)), "{USED} of {size}");
    }
}

/// The send buffer has nothing to do with it.
#[tokio::test(start_paused = true)]
async fn a_path_that_is_refused_gets_no_socket_of_its_own() {
    let paths = deep(WAIT, 1e9, true);
    let mut queue = queue(&paths);
    for n in 0..20 {
        send(&mut queue, 207, BIG, n..n + 1);
        let bytes = [IoSlice::new(&[0; BIG])];
        queue.send_or_drop(208, &mut Transmit::new(to(208), &bytes)).unwrap();
        run(&mut queue, MS).await;
    }
    assert!(queue.held() > 0 && open(&paths) == 0);
    assert_balance(&queue, &paths);
}

/// What waits on sockets of their own counts for its key and for all, and no more than the bounds say is kept.
#[tokio::test(start_paused = true)]
async fn sockets_of_their_own_keep_no_more_than_the_bounds_say() {
    let paths = deep(PATIENT, 10_000.0, true);
    let bounds = QueueBounds { of_a_key: 10 * BIG, of_all: 15 * BIG, ..QueueBounds::default() };
    let mut queue = QueueCore::new(paths.clone(), bounds);
    for n in 0..60 {
        send(&mut queue, 7, BIG, n..n + 1);
    }
    assert_eq!((open(&paths), queue.held(), queue.held_bytes(7)), (1, 10, 10 * BIG));
    tokio::time::sleep(MS).await;
    for n in 0..60 {
        send(&mut queue, 8, BIG, n..n + 1);
    }
    assert_eq!((open(&paths), queue.held(), queue.held_bytes(8), queue.bytes()), (2, 15, 5 * BIG, 15 * BIG));
    assert_balance(&queue, &paths);
    queue.cancel(8);
    assert_eq!((queue.held(), queue.held_bytes(7), queue.held_bytes(8)), (10, 10 * BIG, 0));
    assert_balance(&queue, &paths);
}

/// The task that empties the queue has polled it while there was nothing to wait for.
#[tokio::test(start_paused = true)]
async fn what_begins_to_wait_on_a_socket_of_its_own_wakes_the_task() {
    let paths = deep(PATIENT, 10_000.0, true);
    let (mut queue, woken) = (queue(&paths), Arc::<Woken>::default());
    assert!(woken.poll(&mut queue).is_ready());
    let mut number = 0;
    while queue.held() == 0 {
        assert_eq!(woken.count(), 0);
        send(&mut queue, 7, BIG, number..number + 1);
        number += 1;
    }
    assert_eq!((open(&paths), woken.count()), (1, 1));
    // Its socket is replaced: what waits goes on by the shared one, and there is nothing else to wake the task.
    paths.contention.socket_replaced();
    assert!(woken.poll(&mut queue).is_pending());
    assert!(open(&paths) == 0 && woken.count() > 1);
    assert_balance(&queue, &paths);
}

/// It is no failure of the socket.
#[tokio::test(start_paused = true)]
async fn a_destination_that_fails_keeps_its_send_only_socket() {
    let paths = deep(WAIT, 20_000.0, true);
    let mut queue = queue(&paths);
    for n in 0..25 {
        send(&mut queue, 7, BIG, n..n + 1);
    }
    run(&mut queue, 3000 * MS).await;
    send(&mut queue, 7, BIG, 25..26);
    assert_eq!(open(&paths), 1);
    paths.fails.set(libc::EHOSTUNREACH);
    assert_eq!(send(&mut queue, 7, BIG, 26..27).dropped.get(DropReason::Unreachable), 1);
    assert_eq!((open(&paths), paths.detached.get()), (1, 0));
    paths.fails.set(0);
    drop(queue);
    assert_eq!((Rc::strong_count(paths.sides.as_ref().unwrap()), paths.detached.get()), (1, 1));
}

/// What waits for a path, and is all that waits, goes on by a socket of its own: the shared one waits no more.
#[tokio::test(start_paused = true)]
async fn a_queue_whose_last_line_moves_to_a_socket_of_its_own_waits_no_more() {
    let paths = deep(PATIENT, 100_000.0, true);
    let mut queue = queue(&paths);
    for n in 0..5 {
        send(&mut queue, 207, BIG, n..n + 1);
    }
    assert!(queue.core.is_parked());
    paths.world.borrow_mut().sockets[0].push(InFlight {
        bytes: 60_000.0,
        rate: 1.0,
        gone_at: Instant::now() + 60_000 * MS,
    });
    for n in 0..256 {
        queue.unseen += LEAST_SEEN as u32;
        if open(&paths) > 0 {
            break;
        }
        send(&mut queue, 207, BIG, 5 + n..6 + n);
    }
    assert_eq!((open(&paths), queue.lines().map_or(0, |lines| lines.turns.len() + lines.ages.len())), (1, 0));
    assert!(!queue.core.is_parked());
    assert_balance(&queue, &paths);
}

/// Each of them makes four, beside those of the shared socket.
#[tokio::test(start_paused = true)]
async fn a_socket_of_its_own_makes_four_calls_in_a_poll() {
    let paths = deep(PATIENT, 10_000.0, true);
    let mut queue = queue(&paths);
    for n in 0..60 {
        send(&mut queue, 7, BIG, n..n + 1);
    }
    let held = queue.held();
    assert!(open(&paths) == 1 && held > 12);
    paths.world.borrow_mut().send_buffer = 1e9;
    tokio::time::sleep(200 * MS).await;
    let woken = Arc::<Woken>::default();
    for polls in 1..=3 {
        assert!(woken.poll(&mut queue).is_pending());
        assert_eq!(queue.held(), held - 4 * polls);
    }
    assert_balance(&queue, &paths);
}

/// The shared socket has no room at all.
#[tokio::test(start_paused = true)]
async fn an_answer_that_finds_the_send_buffer_full_goes_by_a_socket_of_its_own() {
    let paths = deep(WAIT, 10_000.0, true);
    let full = InFlight { bytes: 10_000.0, rate: 1.0, gone_at: Instant::now() + 10_000 * MS };
    paths.world.borrow_mut().sockets[0].push(full);
    let mut queue = queue(&paths);
    let bytes = [IoSlice::new(&[0; BIG])];
    assert_eq!(queue.send_or_drop(107, &mut Transmit::new(to(107), &bytes)).unwrap().sent, 1);
    assert_eq!((open(&paths), queue.held()), (1, 0));
    assert_balance(&queue, &paths);
}

/// While the shared socket is full, a key gets the one that another has left.
#[tokio::test(start_paused = true)]
async fn a_key_that_finds_the_shared_socket_full_takes_a_socket_that_is_free() {
    let paths = deep(PATIENT, 10_000.0, true);
    let mut queue = QueueCore::new(paths.clone(), QueueBounds { dedicated_sockets: 1, ..QueueBounds::default() });
    full(&paths);
    send(&mut queue, 107, BIG, 0..1);
    assert!(queue.has_side(Some(107)));
    send(&mut queue, 108, BIG, 0..1);
    assert!(!queue.has_side(Some(108)) && queue.core.parked_class() == Some(Class::Advised));
    tokio::time::sleep(20 * MS).await;
    send(&mut queue, 108, BIG, 1..2);
    assert!(queue.has_side(Some(108)) && !queue.core.is_parked());
    flush(&mut queue).await;
    assert_eq!(paths.world.borrow().numbers(108), [0, 1]);
    assert_balance(&queue, &paths);
}

/// A shared socket without room, for long.
fn full(paths: &Paths) {
    let all = InFlight { bytes: 20_000.0, rate: 0.001, gone_at: Instant::now() + 20_000_000 * MS };
    paths.world.borrow_mut().sockets[0].push(all);
}

#[tokio::test(start_paused = true)]
async fn a_system_that_tells_nothing_of_its_send_buffers_is_asked_once_a_second() {
    let paths = deep(Policy::Drop, 10_000.0, false);
    full(&paths);
    let mut queue = queue(&paths);
    for (seconds, looks) in [(0, 1), (1, 2)] {
        tokio::time::sleep(seconds * 1000 * MS).await;
        for n in 0..50 {
            send(&mut queue, 7, BIG, n..n + 1);
        }
        assert_eq!((paths.looks.get(), paths.world.borrow().sockets.len()), (looks, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_socket_of_a_key_has_failed_none_is_opened_for_a_second() {
    let paths = deep(Policy::Drop, 10_000.0, true);
    full(&paths);
    let mut queue = queue(&paths);
    assert_eq!(send(&mut queue, 7, BIG, 0..1).sent, 1);
    paths.sides_fail.set(true);
    let opened = || paths.world.borrow().sockets.len() - 1;
    for (milliseconds, sockets) in [(0, 1), (999, 1), (1, 2)] {
        tokio::time::sleep(milliseconds * MS).await;
        send(&mut queue, 7, BIG, 1..2);
        assert_eq!(opened(), sockets, "{milliseconds} ms");
    }
    assert_balance(&queue, &paths);
}

#[tokio::test(start_paused = true)]
async fn what_waits_on_a_socket_of_its_own_is_redirected() {
    let paths = deep(PATIENT, 10_000.0, true);
    let mut queue = queue(&paths);
    for port in [7, 8] {
        for n in 0..30 {
            send(&mut queue, port, BIG, n..n + 1);
        }
    }
    let held = queue.held_bytes(7) / BIG;
    assert!(open(&paths) == 2 && held > 0 && queue.held_bytes(8) > 0);
    queue.redirect(7, to(107), None);
    flush(&mut queue).await;
    let world = paths.world.borrow();
    assert!(world.numbers(107).into_iter().eq(30 - held as u32..30));
    assert_eq!(world.numbers(8), (0..30).collect::<Vec<_>>());
    assert_eq!(paths.stats.snapshot().dropped_total(), 0);
}

/// One that is idle but for what waits, or has not left, is kept; and the task is woken to look again.
#[tokio::test(start_paused = true)]
async fn a_socket_of_its_own_is_kept_while_it_has_something_to_send() {
    let paths = deep(PATIENT, 10_000.0, true);
    paths.world.borrow_mut().links[0].rate = 0.5;
    let mut queue = queue(&paths);
    for n in 0..30 {
        send(&mut queue, 7, BIG, n..n + 1);
    }
    assert!(open(&paths) == 1 && queue.held() > 0);
    // A datagram leaves in two seconds.
    flush(&mut queue).await;
    assert_eq!((open(&paths), paths.stats.snapshot().drops.cancelled), (1, 0));
    let woken = Arc::<Woken>::default();
    for round in 0..20 {
        assert!(woken.poll(&mut queue).is_ready());
        if open(&paths) == 0 {
            assert!(round >= 1 && queue.busy.is_none());
            assert_eq!(paths.world.borrow().numbers(7), (0..30).collect::<Vec<_>>());
            return;
        }
        let before = woken.count();
        tokio::time::sleep(10_001 * MS).await;
        assert!(woken.count() > before, "round {round}");
    }
    panic!("it is never given back");
}

#[tokio::test(start_paused = true)]
async fn a_socket_on_which_something_waits_is_not_given_to_another_key() {
    let paths = deep(PATIENT, 10_000.0, true);
    paths.world.borrow_mut().links[2] = Link { rate: 1000.0, limit: 0.0, empty_at: Instant::now() };
    let mut queue = QueueCore::new(paths.clone(), QueueBounds { dedicated_sockets: 1, ..QueueBounds::default() });
    full(&paths);
    send(&mut queue, 207, BIG, 0..1);
    assert!(queue.has_side(Some(207)) && queue.held() == 1);
    tokio::time::sleep(20 * MS).await;
    send(&mut queue, 107, BIG, 0..1);
    assert!(queue.has_side(Some(207)) && !queue.has_side(Some(107)));
    assert_eq!(queue.held_bytes(207), BIG);
    assert_balance(&queue, &paths);
}
