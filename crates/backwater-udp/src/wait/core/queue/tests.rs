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
    transmit::Header,
    wait::{core::SenderCore, decision::Os, fairness::Contention},
};

const MS: Duration = Duration::from_millis(1);
const BIG: usize = 1000;

/// What the model's sockets beside another one have to be told with each datagram.
const HOPS_OF_A_SIDE: u8 = 7;

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
    /// How many sockets were told that nothing is sent on them any more.
    detached: Rc<Cell<usize>>,
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
        assert!(self.socket == 0 || out.header.hop_limit == Some(HOPS_OF_A_SIDE));
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

    fn detach(&self) {
        self.detached.set(self.detached.get() + 1);
    }

    fn header_for_a_side(&self, header: Header) -> Header {
        Header { hop_limit: Some(HOPS_OF_A_SIDE), ..header }
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
        detached: Rc::default(),
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

/// How often it was woken.
#[derive(Default)]
struct Woken(std::sync::atomic::AtomicU32);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Woken {
    fn count(&self) -> u32 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Polls the queue once, to be woken from then on.
    fn poll(self: &Arc<Self>, queue: &mut QueueCore<Paths, u16>) -> Poll<io::Result<()>> {
        let waker = self.clone().into();
        queue.poll_flush(&mut Context::from_waker(&waker), &mut |_, _, _| {})
    }
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

mod connected;
mod hostile;
mod refusals;
mod reports;
mod sides;
mod turns;
