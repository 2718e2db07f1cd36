//! What the queue tells of the datagrams that it has held.

use std::collections::BTreeMap;

use super::*;

/// What is known of a key: datagrams that were offered, and what has become of them.
#[derive(Debug, Default)]
struct Account {
    offered: u64,
    sent: u64,
    dropped: u64,
    bytes: u64,
}

type Accounts = RefCell<BTreeMap<u16, Account>>;

impl Account {
    fn add(&mut self, report: &SendReport) {
        self.sent += u64::from(report.sent);
        self.dropped += u64::from(report.dropped.total());
    }
}

async fn run_with(queue: &mut QueueCore<Paths, u16>, time: Duration, accounts: &Accounts) {
    let mut done = |key, report: &SendReport, bytes| {
        let mut accounts = accounts.borrow_mut();
        let account: &mut Account = accounts.entry(key).or_default();
        account.add(report);
        account.bytes += bytes as u64;
    };
    let flushed = timeout(time, poll_fn(|cx| queue.poll_flush(cx, &mut done)));
    let _ = flushed.await.map(Result::unwrap);
}

/// A train of which the last datagram is shorter, over a link that takes it in parts: each part is told once, with its bytes.
#[tokio::test(start_paused = true)]
async fn a_train_that_leaves_in_parts_is_told_in_parts() {
    let paths = paths(&[(10.0, 1500.0)], PATIENT);
    let mut queue = queue(&paths);
    let bytes = [7; 9 * BIG + 10];
    let slices = [IoSlice::new(&bytes)];
    let report = queue.send(1, &mut Transmit::new(to(1), &slices).segment_size(BIG)).unwrap();
    let (mut told, mut parts) = (u64::from(report.sent), 0);
    let mut bytes_told = report.sent as usize * BIG;
    poll_fn(|cx| {
        queue.poll_flush(cx, &mut |key, report, bytes| {
            assert_eq!((key, report.dropped.total()), (1, 0));
            told += u64::from(report.sent);
            bytes_told += bytes;
            parts += 1;
        })
    })
    .await
    .unwrap();
    assert_eq!((told, bytes_told), (10, 9 * BIG + 10));
    assert!(parts > 1);
}

/// A whole key's datagrams are told of when the policy, the deadline or a failed socket drops them.
#[tokio::test(start_paused = true)]
async fn what_is_dropped_is_told_with_the_reason() {
    let paths = paths(&[(1e-9, 0.0); 3], WAIT);
    let mut queue = queue(&paths);
    let told = RefCell::new(Vec::new());
    let poll = async |queue: &mut QueueCore<Paths, u16>| {
        let mut done = |key, report: &SendReport, bytes| told.borrow_mut().push((key, *report, bytes));
        poll_fn(|cx| queue.poll_flush(cx, &mut done)).await
    };
    send(&mut queue, 1, BIG, 0..3);
    poll(&mut queue).await.unwrap();
    send(&mut queue, 101, BIG, 0..2);
    paths.backpressure.set(Policy::Drop);
    poll(&mut queue).await.unwrap();
    paths.backpressure.set(WAIT);
    send(&mut queue, 201, BIG, 0..4);
    send(&mut queue, 1, BIG, 3..4);
    paths.fails.set(libc::EBADF);
    assert!(poll(&mut queue).await.is_err());
    let of = |reason| {
        let told = told.borrow();
        let dropped = told.iter().filter(|(_, report, _)| report.dropped.get(reason) > 0);
        dropped.map(|(key, report, bytes)| (*key, report.dropped.total(), *bytes)).collect::<Vec<_>>()
    };
    assert!(told.borrow().iter().all(|(_, report, _)| *report != SendReport::default()), "nothing is told of nothing");
    assert_eq!(of(DropReason::Deadline), [(1, 3, 0)]);
    assert_eq!(of(DropReason::NoBuffers), [(101, 2, 0)]);
    let mut failed = of(DropReason::Socket);
    failed.sort_unstable();
    assert_eq!(failed, [(1, 1, 0), (201, 4, 0)]);
    assert_balance(&queue, &paths);
}

/// Whatever happens, what is told of a key and what it still holds is what it has been given.
#[tokio::test(start_paused = true)]
async fn the_reports_of_each_key_add_up() {
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..300 {
        let (paths, links) = random_paths(&mut random);
        let mut queue = queue(&paths);
        let accounts = Accounts::default();
        for _ in 0..random.u32(1..60) {
            let port = random.u16(0..links) * 100 + random.u16(0..3);
            match random.u32(0..20) {
                0 => paths.backpressure.set(if random.bool() { WAIT } else { Policy::Drop }),
                1..4 => run_with(&mut queue, MS * random.u32(1..40), &accounts).await,
                _ => {
                    let count = random.u32(1..30);
                    let report = send(&mut queue, port, random.usize(4..1500), 0..count);
                    let mut accounts = accounts.borrow_mut();
                    let account = accounts.entry(port).or_default();
                    account.offered += u64::from(count);
                    account.add(&report);
                }
            }
            let held: u64 = accounts.borrow().values().map(|a| a.offered - a.sent - a.dropped).sum();
            assert_eq!(held, queue.held() as u64);
            for (&key, a) in accounts.borrow().iter() {
                assert_eq!(a.offered == a.sent + a.dropped, queue.held_bytes(key) == 0, "{key}: {a:?}");
            }
        }
        run_with(&mut queue, 1000 * MS, &accounts).await;
        assert!(accounts.borrow().values().all(|a| a.offered == a.sent + a.dropped));
        assert_eq!(queue.held(), 0);
    }
}

/// A peer that has moved gets what waits for it at its new address, and other keys' datagrams go on as before.
#[tokio::test(start_paused = true)]
async fn what_waits_is_redirected_with_its_key() {
    let paths = paths(&[(1e-9, 0.0), (1e6, 1e9)], PATIENT);
    let mut queue = queue(&paths);
    send(&mut queue, 1, BIG, 0..3);
    send(&mut queue, 2, BIG, 0..3);
    queue.redirect(1, to(107), None);
    run(&mut queue, 100 * MS).await;
    assert_eq!((queue.held(), queue.held_bytes(1)), (3, 0));
    assert_eq!(paths.world.borrow().numbers(107), [0, 1, 2]);
    assert_balance(&queue, &paths);
}

/// With no bytes, too, and without those of datagrams that could not be sent.
#[tokio::test(start_paused = true)]
async fn each_datagram_that_ends_is_told_with_the_bytes_that_were_sent() {
    let paths = paths(&[(1e6, 0.0)], PATIENT);
    let mut queue = queue(&paths);
    let told = RefCell::new(Vec::new());
    let poll = async |queue: &mut QueueCore<Paths, u16>| {
        let mut done = |key, report: &SendReport, bytes| told.borrow_mut().push((key, *report, bytes));
        poll_fn(|cx| queue.poll_flush(cx, &mut done)).await.unwrap();
    };
    let sent = SendReport { sent: 1, ..SendReport::default() };
    paths.world.borrow_mut().links[0].limit = -1.0;
    queue.send(1, &mut Transmit::new(to(1), &[])).unwrap();
    assert_eq!(queue.held(), 1);
    paths.world.borrow_mut().links[0].limit = 1e9;
    poll(&mut queue).await;
    assert_eq!(told.take(), [(1, sent, 0)]);

    paths.world.borrow_mut().links[0].limit = 0.0;
    send(&mut queue, 1, BIG, 0..1);
    paths.fails.set(libc::ENETUNREACH);
    tokio::time::sleep(20 * MS).await;
    poll(&mut queue).await;
    let (_, report, bytes) = told.take()[0];
    assert_eq!((report.sent, report.dropped.get(DropReason::Unreachable), bytes), (0, 1, 0));
}
