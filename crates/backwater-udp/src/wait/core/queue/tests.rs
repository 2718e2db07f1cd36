//! The queue as shipped, over a model of paths: queues in front of links, some of them shared, and the socket's send buffer.

#![allow(clippy::unwrap_used)]

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io::IoSlice,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Sleep, sleep_until, timeout};

use super::*;
use crate::{
    Backpressure, Stats,
    io::{Drained, SendBuffer},
    sys::Outgoing,
    wait::{core::SenderCore, decision::Os, fairness::Contention},
};

const MS: Duration = Duration::from_millis(1);
const BIG: usize = 1000;

/// A queue in front of a link.
#[derive(Clone, Copy, Debug)]
struct Link {
    /// Bytes that leave in a millisecond.
    rate: f64,
    /// Bytes that it holds.
    limit: f64,
    empty_at: Instant,
}

#[derive(Debug, PartialEq, Eq)]
struct Went {
    to: u16,
    number: u32,
    at: Instant,
}

struct World {
    links: Vec<Link>,
    /// Of each socket: what has not left its link counts.
    send_buffer: f64,
    /// What each socket has sent, until it has left.
    sockets: Vec<Vec<InFlight>>,
    went: Vec<Went>,
    refused: u64,
    /// Bytes of the largest call that was not refused.
    largest: usize,
}

#[derive(Clone, Copy)]
struct InFlight {
    bytes: f64,
    rate: f64,
    gone_at: Instant,
}

#[derive(Clone)]
struct Paths {
    world: Rc<RefCell<World>>,
    socket: usize,
    /// Whether there are send-only sockets. Each has a clone.
    sides: Option<Rc<()>>,
    /// How often one was asked for that could not be made.
    failed: Rc<Cell<u32>>,
    may_make_sides: bool,
    promotes: bool,
    /// What it is connected to.
    path: Option<(SocketAddr, Option<IpAddr>)>,
    /// What sends on connected sockets fail with; 0 if they do not.
    connected_fail: Rc<Cell<i32>>,
    /// How often the send buffer was looked at.
    looks: Rc<Cell<u32>>,
    /// Every send-only socket has failed.
    sides_fail: Rc<Cell<bool>>,
    /// Connected, on a system without an error queue, and what every send fails with; 0 for none of it.
    fails: Rc<Cell<i32>>,
    stats: Arc<Stats>,
    backpressure: Backpressure,
    contention: Rc<Contention>,
}

/// Destinations lead over the link of their port's hundreds.
fn to(port: u16) -> SocketAddr {
    ([192, 0, 2, 1], port).into()
}

impl World {
    fn in_flight(&self, socket: usize, at: Instant) -> f64 {
        let left = |sent: &InFlight| {
            sent.bytes.min(sent.gone_at.saturating_duration_since(at).as_secs_f64() * 1e3 * sent.rate)
        };
        self.sockets[socket].iter().map(left).sum()
    }

    /// When half of the send buffer is free again.
    fn writable_at(&self, socket: usize, now: Instant) -> Instant {
        let is_full = |ms: u32| self.in_flight(socket, now + ms * MS / 10) > self.send_buffer / 2.0;
        let (mut full, mut free) = (0, 1 << 24);
        if !is_full(full) {
            return now;
        }
        while full + 1 < free {
            let middle = (full + free) / 2;
            *(if is_full(middle) { &mut full } else { &mut free }) = middle;
        }
        now + free * MS / 10
    }

    fn link(&mut self, to: u16) -> &mut Link {
        &mut self.links[usize::from(to / 100)]
    }

    fn numbers(&self, to: u16) -> Vec<u32> {
        self.went.iter().filter(|went| went.to == to).map(|went| went.number).collect()
    }
}

impl Io for Paths {
    type Registration = Option<Pin<Box<Sleep>>>;

    fn os(&self) -> Os {
        if self.is_connected() { Os::Other } else { Os::Linux }
    }

    fn is_connected(&self) -> bool {
        self.fails.get() != 0
    }

    fn limits(&self, _: &Transmit<'_>) -> (usize, usize) {
        (64, usize::MAX)
    }

    fn send(&self, out: &Outgoing<'_>) -> io::Result<()> {
        let world = &mut *self.world.borrow_mut();
        if self.is_connected() {
            return Err(io::Error::from_raw_os_error(self.fails.get()));
        }
        if self.socket > 0 && self.sides_fail.get() {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        assert!(self.path.is_none_or(|(to, source)| (to, source) == (*out.destination, *out.source)));
        let (now, port) = (Instant::now(), out.destination.port());
        world.sockets[self.socket].retain(|sent| sent.gone_at > now);
        if world.in_flight(self.socket, now) >= world.send_buffer {
            world.refused += 1;
            return Err(io::Error::from_raw_os_error(libc::EWOULDBLOCK));
        }
        let link = world.link(port);
        let begin = link.empty_at.max(now);
        let queued = (begin - now).as_secs_f64() * 1e3 * link.rate;
        if queued + out.bytes as f64 > link.limit {
            world.refused += 1;
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        }
        link.empty_at = begin + MS.mul_f64(out.bytes as f64 / link.rate);
        let sent = InFlight { bytes: out.bytes as f64, rate: link.rate, gone_at: link.empty_at };
        world.sockets[self.socket].push(sent);
        world.largest = world.largest.max(out.bytes);
        let bytes: Vec<u8> = out.slices.iter().flat_map(|slice| slice.to_vec()).collect();
        for datagram in bytes.chunks(out.segment_size.map_or(bytes.len(), usize::from).max(1)) {
            let number = u32::from_be_bytes(datagram[..4].try_into().unwrap());
            world.went.push(Went { to: port, number, at: now });
        }
        Ok(())
    }

    fn writable(&self) -> bool {
        let world = self.world.borrow();
        world.in_flight(self.socket, Instant::now()) <= world.send_buffer / 2.0
    }

    fn icmp_errors(&self) -> u64 {
        0
    }

    fn drain_errors(&self, _destination: SocketAddr, _seen: u64) -> Drained {
        Drained::default()
    }

    fn segmentation_refused(&self, _: &SocketAddr, _: usize) {}

    fn register(&self) -> io::Result<Self::Registration> {
        Ok(None)
    }

    fn renew(&self, registration: &mut Self::Registration) -> io::Result<()> {
        *registration = None;
        Ok(())
    }

    fn is_ready(&self, _registration: &Self::Registration) -> bool {
        self.writable()
    }

    fn poll_write<R>(
        &self,
        registration: &mut Self::Registration,
        cx: &mut Context<'_>,
        attempt: impl FnOnce() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let now = Instant::now();
        let at = self.world.borrow().writable_at(self.socket, now);
        if at > now {
            let edge = registration.get_or_insert_with(|| Box::pin(sleep_until(at)));
            edge.as_mut().reset(at);
            assert!(edge.as_mut().poll(cx).is_pending());
            return Poll::Pending;
        }
        Poll::Ready(attempt())
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    fn backpressure(&self) -> &Backpressure {
        &self.backpressure
    }

    fn contention(&self) -> &Contention {
        &self.contention
    }

    fn send_buffer(&self) -> Option<SendBuffer> {
        self.looks.set(self.looks.get() + 1);
        self.sides.as_ref()?;
        let world = self.world.borrow();
        let used = world.in_flight(self.socket, Instant::now()).ceil();
        Some(SendBuffer { used: used as usize, size: world.send_buffer as usize })
    }

    fn promotes(&self) -> bool {
        self.promotes
    }

    fn connected_beside(&self, destination: SocketAddr, source: Option<IpAddr>) -> io::Result<Self> {
        let (path, fails) = (Some((destination, source)), self.connected_fail.clone());
        Ok(Self { path, fails, promotes: false, ..self.send_only()? })
    }

    fn send_only(&self) -> io::Result<Self> {
        if !self.may_make_sides {
            self.failed.set(self.failed.get() + 1);
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let world = &mut *self.world.borrow_mut();
        world.sockets.push(Vec::new());
        Ok(Self { socket: world.sockets.len() - 1, contention: Rc::default(), ..self.clone() })
    }
}

fn paths(links: &[(f64, f64)], policy: Policy) -> Paths {
    let now = Instant::now();
    let links = links.iter().map(|&(rate, limit)| Link { rate, limit, empty_at: now }).collect();
    Paths {
        world: Rc::new(RefCell::new(World {
            links,
            send_buffer: f64::INFINITY,
            sockets: vec![Vec::new()],
            went: Vec::new(),
            refused: 0,
            largest: 0,
        })),
        socket: 0,
        sides: None,
        failed: Rc::default(),
        may_make_sides: true,
        promotes: false,
        path: None,
        connected_fail: Rc::default(),
        looks: Rc::default(),
        sides_fail: Rc::default(),
        fails: Rc::default(),
        stats: Arc::default(),
        backpressure: Backpressure::new(policy),
        contention: Rc::default(),
    }
}

const WAIT: Policy = Policy::Wait { deadline: Duration::from_millis(100) };
const PATIENT: Policy = Policy::Wait { deadline: Duration::from_secs(3600) };

/// One that is a link's load for a tenth of a second, and one that is free.
const SLOW_AND_FAST: [(f64, f64); 2] = [(10.0, 2000.0), (1e6, 1e9)];

fn queue(paths: &Paths) -> QueueCore<Paths, u16> {
    QueueCore::new(paths.clone(), QueueBounds::default())
}

/// Numbered datagrams of so many bytes.
fn send(queue: &mut QueueCore<Paths, u16>, port: u16, bytes: usize, numbers: std::ops::Range<u32>) -> SendReport {
    let mut train = Vec::new();
    for number in numbers {
        train.extend_from_slice(&number.to_be_bytes());
        train.resize(train.len() + bytes - 4, 0);
    }
    let slices = [IoSlice::new(&train)];
    queue.send(port, &mut Transmit::new(to(port), &slices).segment_size(bytes)).unwrap()
}

async fn flush(queue: &mut QueueCore<Paths, u16>) {
    poll_fn(|cx| queue.poll_flush(cx, &mut |_, _, _| {})).await.unwrap();
}

/// Polls it for so long.
async fn run(queue: &mut QueueCore<Paths, u16>, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        let left = until - Instant::now();
        if timeout(left, flush(queue)).await.is_ok() {
            tokio::time::sleep_until(until).await;
        }
    }
}

fn assert_balance(queue: &QueueCore<Paths, u16>, paths: &Paths) {
    let s = paths.stats.snapshot();
    assert_eq!(s.accepted, s.sent + s.dropped_total() + queue.held() as u64, "{s:?}");
    assert_eq!(s.held, queue.held() as u64);
    assert_eq!(s.sent, paths.world.borrow().went.len() as u64);
}

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

/// Shared and separate paths, and how many links there are.
fn random_paths(random: &mut fastrand::Rng) -> (Paths, u16) {
    let links: Vec<_> =
        (0..random.u16(1..5)).map(|_| (10f64.powi(random.i32(0..4)), f64::from(random.u32(0..20_000)))).collect();
    let mut paths = paths(&links, if random.bool() { WAIT } else { Policy::Drop });
    if random.bool() {
        paths.world.borrow_mut().send_buffer = f64::from(random.u32(2000..50_000));
    }
    paths.sides = random.bool().then(Rc::default);
    (paths, links.len() as u16)
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

mod connected;
mod hostile;
mod reports;
mod sides;
mod turns;
