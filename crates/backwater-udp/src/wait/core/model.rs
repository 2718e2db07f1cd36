//! The send loop in a model of reactors and kernels: one for each row of the table in `docs/backpressure.md`.
//!
//! What runs is `Core`, as shipped; only the system call, the readiness source and the clock (tokio's, paused) are
//! replaced. `BACKWATER_SCHEDULES` says how many random schedules each model goes through, `BACKWATER_SEED` replays one.

#![allow(clippy::unwrap_used)]

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    future::poll_fn,
    io::IoSlice,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::{runtime::Runtime, sync::Notify, time::sleep_until};

mod counts;
mod edges;
mod groups;
mod holds;
mod room;
mod schedules;
mod sends;
mod tries;
mod waits;
mod xnu;

use super::*;
use crate::{
    Backpressure, Policy, Stats,
    io::Drained,
    sys::{Outgoing, Segmentation},
    wait::{
        backoff::{LAST_BACKSTOP, Parked},
        decision::{Errno, Os, Refusal, Verdict, decide},
        fairness::{Contention, Place},
    },
};

/// A system that refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    /// XNU, connected: not writable while the flow is controlled, then an edge.
    XnuAdvised,
    /// The same, but feedback that arrives during `ip_output` loses the edge.
    XnuRace,
    /// XNU, connected: refused with advice, and queued all the same.
    XnuQueued,
    /// XNU without advice: always writable, and no edge.
    XnuSilent,
    /// FreeBSD: the same, by its own table row.
    FreeBsd,
    /// Linux, a full queue discipline: an edge at once, which means nothing.
    LinuxQueue,
    /// Linux, no memory for a buffer: no edge, over soon.
    LinuxMemory,
    /// Windows: readiness is always true.
    Windows,
    /// A full send buffer: `EWOULDBLOCK`, then an edge.
    SendBuffer,
    /// `EWOULDBLOCK` without end (quinn #2727, golang #73919).
    Permanent,
    /// A full send buffer behind a latched `WRITE_CLOSED`.
    Latched,
    /// Errors that belong to other destinations.
    Others,
}

const ROWS: [Row; 12] = [
    Row::XnuAdvised,
    Row::XnuRace,
    Row::XnuQueued,
    Row::XnuSilent,
    Row::FreeBsd,
    Row::LinuxQueue,
    Row::LinuxMemory,
    Row::Windows,
    Row::SendBuffer,
    Row::Permanent,
    Row::Latched,
    Row::Others,
];

impl Row {
    fn os(self) -> Os {
        match self {
            Self::XnuAdvised | Self::XnuRace | Self::XnuQueued | Self::XnuSilent => Os::Apple,
            Self::LinuxQueue | Self::LinuxMemory | Self::SendBuffer | Self::Latched | Self::Others => Os::Linux,
            Self::FreeBsd | Self::Windows | Self::Permanent => Os::Other,
        }
    }

    /// Whether the write filter is true while sends are refused.
    fn writable_while_blocked(self) -> bool {
        match self {
            Self::XnuAdvised | Self::XnuRace | Self::XnuQueued | Self::SendBuffer | Self::Latched => false,
            Self::XnuSilent
            | Self::FreeBsd
            | Self::LinuxQueue
            | Self::LinuxMemory
            | Self::Windows
            | Self::Permanent
            | Self::Others => true,
        }
    }

    fn errno(self) -> i32 {
        match self {
            Self::SendBuffer | Self::Permanent | Self::Latched => libc::EWOULDBLOCK,
            Self::Others => libc::EHOSTUNREACH,
            Self::XnuAdvised
            | Self::XnuRace
            | Self::XnuQueued
            | Self::XnuSilent
            | Self::FreeBsd
            | Self::LinuxQueue
            | Self::LinuxMemory
            | Self::Windows => libc::ENOBUFS,
        }
    }

    /// Whether an edge comes when there is room again.
    fn edge_at_end(self, random: &mut Random) -> bool {
        match self {
            Self::XnuAdvised | Self::XnuQueued | Self::SendBuffer | Self::Latched => true,
            Self::XnuRace => random.below(2) == 0,
            Self::XnuSilent
            | Self::FreeBsd
            | Self::LinuxQueue
            | Self::LinuxMemory
            | Self::Windows
            | Self::Permanent
            | Self::Others => false,
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut x = self.0;
        x ^= x >> 32;
        (x.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 33) % n
    }

    fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// The kernel, and the reactor's view of it.
struct World {
    row: Row,
    random: Random,
    /// While sends are refused: start and end.
    episodes: Vec<(Instant, Instant)>,
    /// Entries in the error queue.
    errors: u32,
    /// By registration. What tokio keeps: readiness, and the tick of its last change.
    registrations: Vec<State>,
    /// Edges on their way.
    edges: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Datagrams that have left, duplicates included.
    delivered: u64,
    /// When sends were refused, for the datagram that is next.
    refused: Vec<Instant>,
    polls: u64,
    /// How often a sender has registered anew.
    renewals: u64,
}

#[derive(Default)]
struct State {
    ready: bool,
    latched: bool,
    tick: u32,
    waker: Option<Waker>,
}

impl World {
    fn blocked(&self, now: Instant) -> Option<Instant> {
        self.episodes.iter().find(|(start, end)| *start <= now && now < *end).map(|(_, end)| *end)
    }

    /// The filter is looked at: an edge if it is true.
    fn evaluate(&mut self, registration: usize, now: Instant) {
        let writable = self.blocked(now).is_none() || self.row.writable_while_blocked();
        let silent = matches!(self.row, Row::Permanent);
        if writable && !silent {
            self.edges.push(Reverse((now, registration)));
        }
    }

    fn deliver_due(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(Reverse((at, registration))) = self.edges.peek().copied() {
            if at > now {
                break;
            }
            self.edges.pop();
            any = true;
            if let Some(state) = self.registrations.get_mut(registration) {
                state.ready = true;
                state.tick += 1;
                if let Some(waker) = state.waker.take() {
                    waker.wake();
                }
            }
        }
        any
    }
}

#[derive(Clone)]
struct Model {
    world: Rc<RefCell<World>>,
    changed: Rc<Notify>,
    stats: Arc<Stats>,
    backpressure: Backpressure,
    contention: Rc<Contention>,
    /// What others have shipped: `ENOBUFS` taken for `EWOULDBLOCK`, and the reactor alone to wait for. All else is ours.
    naive: bool,
    /// No edge comes when there is room again.
    lossy: bool,
    /// The destination whose device refuses GSO batches. Another sender has seen so before.
    refusing: Rc<Cell<Option<SocketAddr>>>,
    segmentation: Rc<Segmentation>,
    batches_refused: Rc<Cell<u32>>,
    /// What the next calls fail with.
    failures: Rc<RefCell<VecDeque<i32>>>,
    /// A queue in front of a link, instead of the row's episodes.
    link: Rc<Cell<Option<Link>>>,
    /// Queues in front of destinations, besides the row's episodes; several destinations may share one.
    queues: Rc<RefCell<HashMap<SocketAddr, Rc<Cell<Link>>>>>,
    /// Where datagrams went, and their first bytes.
    log: Rc<RefCell<Vec<(SocketAddr, u8)>>>,
    /// What registering fails with, and what waiting for readiness fails with.
    registering_fails: Rc<Cell<Option<i32>>>,
    polling_fails: Rc<Cell<Option<i32>>>,
}

/// A queue that datagrams leave at a rate, and that refuses those that do not fit, silently.
#[derive(Clone, Copy)]
struct Link {
    /// What each takes.
    each: Duration,
    /// Datagrams that fit.
    limit: u32,
    /// When it is empty.
    busy_until: Instant,
}

impl Link {
    fn new(each: Duration, limit: u32) -> Self {
        Self { each, limit, busy_until: Instant::now() }
    }

    fn fits(&self, datagrams: u32) -> bool {
        let now = Instant::now();
        self.busy_until.max(now) - now + self.each * datagrams <= self.each * self.limit
    }

    fn take(&mut self, datagrams: u32) -> bool {
        let fits = self.fits(datagrams);
        if fits {
            self.busy_until = self.busy_until.max(Instant::now()) + self.each * datagrams;
        }
        fits
    }
}

impl Io for Model {
    type Registration = usize;

    fn os(&self) -> Os {
        self.world.borrow().row.os()
    }

    fn is_connected(&self) -> bool {
        matches!(self.world.borrow().row, Row::XnuAdvised | Row::XnuRace | Row::XnuQueued)
    }

    fn limits(&self, t: &Transmit<'_>) -> (usize, usize) {
        (if self.segmentation.allows(&t.destination, t.datagram_len()) { 64 } else { 1 }, usize::MAX)
    }

    fn send(&self, out: &Outgoing<'_>) -> io::Result<()> {
        let counted = self.stats.snapshot();
        assert!(counted.accepted >= counted.sent + counted.dropped_total(), "more ended than was accepted");
        let world = &mut *self.world.borrow_mut();
        let now = Instant::now();
        let bytes: usize = out.slices.iter().map(|s| s.len()).sum();
        let datagrams = out.segment_size.map_or(1, |size| bytes.div_ceil(size.into())) as u64;
        if let Some(errno) = self.failures.borrow_mut().pop_front() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if datagrams > 1 && self.refusing.get() == Some(*out.destination) {
            self.batches_refused.set(self.batches_refused.get() + 1);
            self.segmentation.refused(out.destination, 0);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if let Some(mut link) = self.link.get() {
            if !link.take(datagrams as u32) {
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            }
            self.link.set(Some(link));
            world.delivered += datagrams;
            return Ok(());
        }
        let row = world.row;
        if row == Row::Others {
            // Each error is reported once, by whoever calls; and another may have arrived.
            if world.errors > 0 {
                world.errors -= 1;
                return Err(io::Error::from_raw_os_error(row.errno()));
            }
            world.delivered += datagrams;
            world.refused.clear();
            if world.random.below(3) == 0 {
                world.errors = world.random.below(4) as u32;
            }
            return Ok(());
        }
        let Some(end) = world.blocked(now) else {
            if let Some(queue) = self.queues.borrow().get(out.destination) {
                let mut link = queue.get();
                if !link.take(datagrams as u32) {
                    return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
                }
                queue.set(link);
            }
            self.log.borrow_mut().push((*out.destination, out.slices.first().map_or(0, |slice| slice[0])));
            world.delivered += datagrams;
            world.refused.clear();
            return Ok(());
        };
        world.refused.push(now);
        if row == Row::XnuQueued && world.random.below(4) == 0 {
            world.delivered += datagrams;
        }
        if row == Row::LinuxQueue {
            for registration in 0..world.registrations.len() {
                world.edges.push(Reverse((now, registration)));
            }
        } else if !self.lossy && row.edge_at_end(&mut world.random) {
            for registration in 0..world.registrations.len() {
                world.edges.push(Reverse((end, registration)));
            }
        }
        self.changed.notify_one();
        Err(io::Error::from_raw_os_error(row.errno()))
    }

    fn writable(&self) -> bool {
        let world = self.world.borrow();
        world.blocked(Instant::now()).is_none() || world.row.writable_while_blocked()
    }

    fn icmp_errors(&self) -> u64 {
        0
    }

    fn drain_errors(&self, _destination: SocketAddr, _seen: u64) -> Drained {
        let world = &mut *self.world.borrow_mut();
        // The one that was just reported was there.
        let icmp = world.row == Row::Others;
        world.errors = if world.random.below(4) == 0 { 1 } else { 0 };
        Drained { icmp, too_large: false }
    }

    fn segmentation_refused(&self, destination: &SocketAddr, segment_bytes: usize) {
        self.segmentation.refused(destination, segment_bytes);
    }

    fn register(&self) -> io::Result<usize> {
        if let Some(errno) = self.registering_fails.get() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let world = &mut *self.world.borrow_mut();
        let registration = world.registrations.len();
        let latched = world.row == Row::Latched;
        world.registrations.push(State { latched, ..State::default() });
        world.evaluate(registration, Instant::now());
        // A wait that began before has its edge still to come.
        if let Some(end) = world.blocked(Instant::now())
            && !self.lossy
            && world.row.edge_at_end(&mut world.random)
        {
            world.edges.push(Reverse((end, registration)));
        }
        self.changed.notify_one();
        Ok(registration)
    }

    fn renew(&self, registration: &mut usize) -> io::Result<()> {
        if self.naive {
            return Ok(());
        }
        if let Some(errno) = self.registering_fails.get() {
            // The old one is gone.
            *registration = usize::MAX;
            return Err(io::Error::from_raw_os_error(errno));
        }
        let world = &mut *self.world.borrow_mut();
        world.renewals += 1;
        if let Some(state) = world.registrations.get_mut(*registration) {
            (state.ready, state.latched) = (false, false);
            state.tick += 1;
        }
        world.evaluate(*registration, Instant::now());
        self.changed.notify_one();
        Ok(())
    }

    fn is_ready(&self, registration: &usize) -> bool {
        self.world.borrow().registrations.get(*registration).is_some_and(|state| state.ready || state.latched)
    }

    fn poll_write<R>(
        &self,
        registration: &mut usize,
        cx: &mut Context<'_>,
        attempt: impl FnOnce() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        if let Some(errno) = self.polling_fails.get() {
            return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
        }
        let tick = {
            let world = &mut *self.world.borrow_mut();
            world.polls += 1;
            // tokio's budget: a task that spins lets others run now and then.
            if world.polls.is_multiple_of(128) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let Some(state) = world.registrations.get_mut(*registration) else { return Poll::Pending };
            if !state.ready && !state.latched {
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            state.tick
        };
        let result = attempt();
        let world = &mut *self.world.borrow_mut();
        if let Some(state) = world.registrations.get_mut(*registration)
            && matches!(&result, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
            && state.tick == tick
        {
            state.ready = false;
        }
        Poll::Ready(result)
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

    fn decide(&self, refusal: &Refusal) -> Verdict {
        if self.naive && refusal.errno == Errno::NoBuffers { Verdict::WhenReady } else { decide(refusal) }
    }

    fn schedule(&self, parked: &mut Parked, place: &mut Place) {
        if self.naive {
            (parked.listening, place.yielding, place.at) = (true, false, parked.since + NEVER);
        }
    }
}

const TO: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

fn model(row: Row, seed: u64, policy: Policy) -> Model {
    let mut random = Random(seed);
    let mut at = Instant::now();
    let mut episodes = Vec::new();
    for _ in 0..1 + random.below(4) {
        at += random.ms(0, 30);
        let length = if row == Row::LinuxMemory { random.ms(1, 3) } else { random.ms(1, 80) };
        let length = if row == Row::Permanent { NEVER } else { length };
        episodes.push((at, at + length));
        at += length;
    }
    let errors = random.below(4) as u32;
    let world = World {
        row,
        random,
        episodes,
        errors,
        registrations: Vec::new(),
        edges: BinaryHeap::new(),
        delivered: 0,
        refused: Vec::new(),
        polls: 0,
        renewals: 0,
    };
    Model {
        world: Rc::new(RefCell::new(world)),
        changed: Rc::new(Notify::new()),
        stats: Arc::default(),
        backpressure: Backpressure::new(policy),
        contention: Rc::default(),
        naive: false,
        lossy: false,
        refusing: Rc::default(),
        segmentation: Rc::new(Segmentation::new(true)),
        batches_refused: Rc::default(),
        failures: Rc::default(),
        link: Rc::default(),
        queues: Rc::default(),
        log: Rc::default(),
        registering_fails: Rc::default(),
        polling_fails: Rc::default(),
    }
}

/// Delivers edges when they are due; never ends.
async fn reactor(model: &Model) {
    loop {
        let next = {
            let mut world = model.world.borrow_mut();
            if world.deliver_due(Instant::now()) { None } else { Some(world.edges.peek().map(|Reverse((at, _))| *at)) }
        };
        match next {
            None => tokio::task::yield_now().await,
            Some(None) => model.changed.notified().await,
            Some(Some(at)) => tokio::select! {
                () = sleep_until(at) => {}
                () = model.changed.notified() => {}
            },
        }
    }
}

const NEVER: Duration = Duration::from_secs(3600);

/// At most four attempts in a millisecond, after the first two. Each of several transmits, which might go elsewhere, is
/// tried in each.
fn check_attempts(refused: &[Instant], transmits: usize) {
    let tick = Duration::from_millis(1);
    for (i, &at) in refused.iter().enumerate().skip(2 * transmits) {
        let within = refused.iter().skip(i).take_while(|&&later| later < at + tick).count();
        assert!(within <= 4 * transmits, "{within} attempts within a millisecond");
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// tokio's timers are exact to a millisecond, and a policy's deadline is checked when one fires.
const SLACK: Duration = Duration::from_millis(2);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}
