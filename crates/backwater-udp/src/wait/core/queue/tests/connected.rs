//! A busy destination gets a connected socket.

use super::*;

const FAST: [(f64, f64); 1] = [(1e6, 1e12)];

fn promoting(links: &[(f64, f64)], policy: Policy) -> Paths {
    Paths { promotes: true, sides: Some(Rc::default()), ..paths(links, policy) }
}

/// A key has sent 48 datagrams on a socket of its own, some of which wait there.
fn waiting() -> (Paths, QueueCore<Paths, u16>) {
    let paths = promoting(&[(10.0, 5000.0)], PATIENT);
    let mut queue = queue(&paths);
    for first in [0, 16, 32] {
        send(&mut queue, 1, 500, first..first + 16);
    }
    assert!(open(&paths) == 1 && queue.held() > 0);
    (paths, queue)
}

/// Connected sockets that are open.
fn open(paths: &Paths) -> usize {
    paths.sides.as_ref().map_or(0, |sides| Rc::strong_count(sides) - 2)
}

#[tokio::test(start_paused = true)]
async fn a_destination_gets_a_socket_when_it_is_busy() {
    let paths = promoting(&FAST, WAIT);
    let mut queue = queue(&paths);
    for number in 0..100 {
        send(&mut queue, 1, BIG, number..number + 1);
        run(&mut queue, 42 * MS).await;
    }
    assert_eq!(open(&paths), 0, "24 a second");
    for number in 0..25 {
        assert_eq!(open(&paths), 0, "{number} of 25 within a second");
        send(&mut queue, 2, BIG, number..number + 1);
        run(&mut queue, MS).await;
    }
    assert_eq!(open(&paths), 1);
    send(&mut queue, 3, BIG, 0..15);
    assert_eq!(open(&paths), 1);
    send(&mut queue, 4, BIG, 0..16);
    assert_eq!(open(&paths), 2);
    for number in 0..100 {
        queue.send_or_drop(5, &mut Transmit::new(to(5), &[IoSlice::new(&u32::to_be_bytes(number))])).unwrap();
    }
    assert_eq!(open(&paths), 2, "answers to strangers are not counted");
    let world = paths.world.borrow();
    assert_eq!((world.numbers(2), world.numbers(4)), ((0..25).collect(), (0..16).collect()));
    drop(world);
    assert_balance(&queue, &paths);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_sixteen_or_what_the_bounds_say_have_one() {
    for most in [0, 2, 16, 100] {
        let paths = promoting(&FAST, WAIT);
        let mut queue =
            QueueCore::new(paths.clone(), QueueBounds { dedicated_sockets: most, ..QueueBounds::default() });
        let mut sent = 0;
        for number in 0..5u32 {
            for port in 0..40 {
                sent += send(&mut queue, port, BIG, number * 16..number * 16 + 16).sent;
            }
            run(&mut queue, 100 * MS).await;
        }
        assert_eq!((open(&paths), sent), (most.min(16), 5 * 40 * 16));
        assert!((0..40).all(|port| paths.world.borrow().numbers(port).is_sorted()), "in order");
        assert_balance(&queue, &paths);
    }
}

#[tokio::test(start_paused = true)]
async fn idle_ones_are_given_back_and_make_room() {
    let paths = promoting(&FAST, WAIT);
    let mut queue = queue(&paths);
    for port in 0..16 {
        send(&mut queue, port, BIG, 0..16);
    }
    assert_eq!(open(&paths), 16);
    // The first two go on.
    for number in 16..16 + 21 {
        for port in 0..2 {
            send(&mut queue, port, BIG, number..number + 1);
        }
        run(&mut queue, 1000 * MS).await;
    }
    assert_eq!(open(&paths), 2);
    send(&mut queue, 20, BIG, 0..16);
    assert_eq!(open(&paths), 3);
    drop(queue);
    assert_eq!(Rc::strong_count(paths.sides.as_ref().unwrap()), 1);
}

/// One destination's failure is not the socket's.
#[tokio::test(start_paused = true)]
async fn a_destination_that_fails_goes_on_without() {
    for errno in [libc::EHOSTUNREACH, libc::EINVAL, libc::EBADF] {
        let paths = promoting(&FAST, WAIT);
        let mut queue = queue(&paths);
        send(&mut queue, 1, BIG, 0..16);
        send(&mut queue, 2, BIG, 0..16);
        assert_eq!(open(&paths), 2);
        paths.connected_fail.set(errno);
        let report = send(&mut queue, 1, BIG, 16..20);
        // A socket that has failed says nothing about the destination.
        let sent = if errno == libc::EBADF { 4 } else { 0 };
        assert_eq!((report.sent, report.dropped.total(), open(&paths)), (sent, 4 - sent, 1), "{errno}");
        for second in 1..=10 {
            let numbers = second * 20..second * 20 + 20;
            assert_eq!(send(&mut queue, 1, BIG, numbers).sent, 20);
            assert_eq!(open(&paths), 1);
            run(&mut queue, 999 * MS).await;
        }
        paths.connected_fail.set(0);
        run(&mut queue, 20 * MS).await;
        send(&mut queue, 1, BIG, 220..240);
        assert_eq!(open(&paths), 2, "it may have one again");
        assert!(paths.world.borrow().numbers(1).is_sorted());
        assert_balance(&queue, &paths);
    }
}

/// The model's connected sockets refuse any other path.
#[tokio::test(start_paused = true)]
async fn another_destination_or_source_of_the_key_goes_by_the_shared_socket() {
    let paths = promoting(&FAST, WAIT);
    let mut queue = queue(&paths);
    send(&mut queue, 1, BIG, 0..16);
    assert_eq!(open(&paths), 1);
    let bytes = 16u32.to_be_bytes();
    let slices = [IoSlice::new(&bytes)];
    for source in [None, Some([192, 0, 2, 9].into())] {
        for port in [1, 2] {
            let mut t = Transmit::new(to(port), &slices).source(source);
            assert_eq!(queue.send(1, &mut t).unwrap().sent, 1);
        }
    }
    assert_eq!(open(&paths), 1);
    assert_balance(&queue, &paths);
}

#[tokio::test(start_paused = true)]
async fn what_is_redirected_goes_by_the_shared_socket() {
    let (paths, mut queue) = waiting();
    let (held, woken) = (queue.held(), Arc::<Woken>::default());
    assert!(woken.poll(&mut queue).is_pending());
    let before = woken.count();
    queue.redirect(1, to(2), None);
    assert_eq!((open(&paths), queue.held()), (0, held));
    assert!(woken.count() > before, "nobody polls it");
    assert_balance(&queue, &paths);
    flush(&mut queue).await;
    let world = paths.world.borrow();
    assert_eq!((world.numbers(1).len() + held, world.numbers(2).len()), (48, held));
    assert!(world.numbers(2).into_iter().eq(48 - held as u32..48), "in order");
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_not_overtaken_by_a_socket_of_its_own() {
    let paths = promoting(&[(10.0, 2000.0)], PATIENT);
    let mut queue = queue(&paths);
    for number in 0..5 {
        send(&mut queue, 1, BIG, number..number + 1);
    }
    assert!(queue.held() > 0);
    send(&mut queue, 1, 50, 5..25);
    assert_eq!(open(&paths), 0);
    flush(&mut queue).await;
    send(&mut queue, 1, 50, 25..45);
    flush(&mut queue).await;
    assert_eq!((open(&paths), paths.world.borrow().numbers(1)), (1, (0..45).collect()));
    assert_balance(&queue, &paths);
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_cannot_be_made_is_asked_for_once_a_second() {
    let paths = Paths { may_make_sides: false, ..promoting(&FAST, WAIT) };
    let mut queue = queue(&paths);
    for number in 0..500 {
        assert_eq!(send(&mut queue, 1, BIG, number * 16..number * 16 + 16).sent, 16);
        run(&mut queue, 10 * MS).await;
    }
    assert!((4..=6).contains(&paths.failed.get()), "{}", paths.failed.get());
    assert_balance(&queue, &paths);
}

#[tokio::test(start_paused = true)]
async fn connected_sockets_are_closed_when_the_shared_one_is_replaced() {
    let (paths, mut queue) = waiting();
    let held = queue.held();
    paths.contention.socket_replaced();
    let _ = timeout(Duration::ZERO, flush(&mut queue)).await;
    assert_eq!((open(&paths), queue.held()), (0, held));
    flush(&mut queue).await;
    assert_eq!(paths.world.borrow().numbers(1), (0..48).collect::<Vec<_>>());
    assert_balance(&queue, &paths);
}

/// Where a queue is not to have sockets of its own, on a connected socket, and on one without promotion.
#[tokio::test(start_paused = true)]
async fn a_queue_that_connects_none_counts_no_destinations() {
    let none = QueueBounds { dedicated_sockets: 0, ..QueueBounds::default() };
    let ordinary = Paths { promotes: false, ..promoting(&FAST, WAIT) };
    let connected = promoting(&FAST, WAIT);
    connected.fails.set(libc::ECONNREFUSED);
    for (paths, bounds) in
        [(promoting(&FAST, WAIT), none), (ordinary, QueueBounds::default()), (connected, QueueBounds::default())]
    {
        let mut queue = QueueCore::new(paths.clone(), bounds);
        paths.fails.set(0);
        send(&mut queue, 1, BIG, 0..64);
        assert!(!queue.promotes() && open(&paths) == 0);
        assert!(woken_flush(&mut queue) && queue.busy.is_none(), "nothing is kept");
    }
}

/// Whether there is nothing to wait for.
fn woken_flush(queue: &mut QueueCore<Paths, u16>) -> bool {
    Arc::<Woken>::default().poll(queue).is_ready()
}

/// It finds the sockets that are idle.
#[tokio::test(start_paused = true)]
async fn the_task_is_woken_when_a_socket_is_connected() {
    let paths = promoting(&FAST, WAIT);
    let (mut queue, woken) = (queue(&paths), Arc::<Woken>::default());
    assert!(woken.poll(&mut queue).is_ready());
    send(&mut queue, 1, BIG, 0..15);
    assert_eq!((open(&paths), woken.count()), (0, 0));
    send(&mut queue, 1, BIG, 15..31);
    assert_eq!((open(&paths), woken.count()), (1, 1));
}

/// The task has polled the queue before the socket was connected.
#[tokio::test(start_paused = true)]
async fn what_begins_to_wait_on_a_connected_socket_wakes_the_task() {
    let paths = promoting(&[(10.0, 20_000.0)], PATIENT);
    let (mut queue, woken) = (queue(&paths), Arc::<Woken>::default());
    assert!(woken.poll(&mut queue).is_ready());
    send(&mut queue, 1, BIG, 0..16);
    assert_eq!((open(&paths), queue.held(), woken.count()), (1, 0, 1));
    send(&mut queue, 1, BIG, 16..32);
    assert!(queue.held() > 0 && woken.count() == 2);
}

#[tokio::test(start_paused = true)]
async fn a_destination_whose_socket_is_closed_is_counted_anew() {
    let paths = promoting(&FAST, WAIT);
    let mut queue = queue(&paths);
    for number in 0..25 {
        send(&mut queue, 1, BIG, number..number + 1);
    }
    assert_eq!(open(&paths), 1);
    paths.contention.socket_replaced();
    for number in 25..49 {
        send(&mut queue, 1, BIG, number..number + 1);
        assert_eq!(open(&paths), 0);
    }
    send(&mut queue, 1, BIG, 49..50);
    assert_eq!((open(&paths), paths.detached.get()), (1, 1));
    assert_balance(&queue, &paths);
}

/// A full send buffer is the socket's that all share.
#[tokio::test(start_paused = true)]
async fn a_queue_that_connects_sockets_opens_no_send_only_ones() {
    let paths = promoting(&[(10.0, 1e9)], PATIENT);
    paths.world.borrow_mut().send_buffer = 5000.0;
    let mut queue = queue(&paths);
    for number in 0..20 {
        send(&mut queue, 1, BIG, number..number + 1);
    }
    let bytes = [IoSlice::new(&[0; BIG])];
    queue.send_or_drop(2, &mut Transmit::new(to(2), &bytes)).unwrap();
    assert!(queue.held() > 0 && open(&paths) == 0);
    assert_balance(&queue, &paths);
}

/// What it has sent leaves without it.
#[tokio::test(start_paused = true)]
async fn an_idle_one_is_given_back_whatever_has_not_left() {
    let paths = promoting(&[(0.1, 1e9)], PATIENT);
    let (mut queue, woken) = (queue(&paths), Arc::<Woken>::default());
    send(&mut queue, 1, BIG, 0..16);
    for _ in 0..3 {
        assert!(woken.poll(&mut queue).is_ready());
        tokio::time::sleep(10_001 * MS).await;
    }
    assert_eq!(open(&paths), 0);
}
