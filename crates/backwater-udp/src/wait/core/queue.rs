//! What waits on one socket, each key in a line of its own: a path that is refused holds up no other.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll, Waker},
    time::Duration,
};

use arrayvec::ArrayVec;
use tokio::time::Instant;

use super::{
    Attempt, Class, Core, Load,
    attempt::{Budget, attempt_at_most, drop_rest},
};
use crate::{
    Policy,
    io::Io,
    send_queue::Bounds,
    stats::{DropReason, Report},
    transmit::{Hold, OwnedTransmit, Transmit},
};

mod sides;

use sides::Sides;

/// Bytes that are sent between two looks at how full the send buffer is. A transmit counts [`LEAST_SEEN`] at least.
const LOOK: usize = 256 << 10;
const LEAST_SEEN: usize = 2 << 10;

/// Bytes that a line may send before the next has its turn: ten full datagrams of an Ethernet, 6.5 ms at 20 Mbit/s.
const QUANTUM: i64 = 16 << 10;

/// Lines that may be refused in one pass. With a pass a millisecond it bounds what waiting costs, however many wait.
const REFUSALS: usize = 4;

/// New lines that go before all others in one pass. With the one whose turn is not over that leaves the others a try in each pass.
const NEW: usize = REFUSALS - 2;

/// With more than [`REFUSALS`] lines each is tried as often as a sender on its own, as far as that goes.
const LONGEST_WAIT: Duration = Duration::from_millis(8);
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

pub(crate) struct QueueCore<I: Io, K: Copy + Ord> {
    core: Core<I>,
    bounds: Bounds,
    lines: Option<Box<Lines<K>>>,
    /// Of the task that empties the queue.
    waker: Option<Waker>,
    sides: Option<Box<Sides<I, K>>>,
    /// Bytes that were sent since the last look at the send buffer.
    unseen: usize,
    is_side: bool,
}

struct Lines<K> {
    /// A line without anything in it stays until its turn.
    lines: BTreeMap<K, Line>,
    /// Each line once.
    turns: VecDeque<K>,
    /// How many are new since the last pass.
    new: usize,
    /// When transmits came, the oldest first; some have gone since, but not more than wait.
    ages: VecDeque<(Instant, K)>,
    transmits: usize,
    bytes: usize,
    datagrams: usize,
    sent: u64,
    /// System calls of a poll.
    calls: u32,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// Bytes that it may still send in its turn; a datagram may overdraw it.
    credit: i64,
    /// Whether it has sent some in its turn.
    is_served: bool,
}

struct Waiting {
    transmit: OwnedTransmit,
    since: Instant,
}

/// How a line's turn ended.
enum Served {
    Empty,
    /// The next one's turn.
    Turn,
    Paused,
    Refused(Class),
    Fatal(io::Error),
}

impl<I: Io, K: Copy + Ord> QueueCore<I, K> {
    pub(crate) fn new(io: I, bounds: Bounds) -> Self {
        Self { core: Core::new(io), bounds, lines: None, waker: None, sides: None, unseen: 0, is_side: false }
    }

    pub(crate) fn core(&self) -> &Core<I> {
        &self.core
    }

    pub(crate) fn held(&self) -> usize {
        let held = self.lines.as_ref().map_or(0, |lines| lines.datagrams);
        held + self.sides.as_ref().map_or(0, |sides| sides.held())
    }

    pub(crate) fn held_bytes(&self, key: K) -> usize {
        let line = self.lines.as_ref().and_then(|lines| lines.lines.get(&key));
        line.map_or(0, |line| line.bytes) + self.sides.as_ref().map_or(0, |sides| sides.held_bytes(key))
    }

    /// Bytes that wait.
    fn bytes(&self) -> usize {
        let bytes = self.lines.as_ref().map_or(0, |lines| lines.bytes);
        bytes + self.sides.as_ref().map_or(0, |sides| sides.bytes())
    }

    /// Inlined into its callers, with what it calls: the system call leaves nothing of what predicts a return.
    #[inline]
    pub(crate) fn send(&mut self, key: K, t: &mut Transmit<'_>) -> io::Result<Report> {
        if let Some(side) = self.side(Some(key), t) {
            return side.send(key, t);
        }
        match self.offer(key, t)? {
            None => Ok(t.cursor.report),
            Some(class) => self.keep(key, t, class),
        }
    }

    #[inline(never)]
    fn keep(&mut self, key: K, t: &mut Transmit<'_>, class: Class) -> io::Result<Report> {
        if class == Class::Advised && self.open_side(Some(key)).is_some() {
            return self.send(key, t);
        }
        if self.core.io.backpressure().get() == Policy::Drop {
            self.refuse(t, class, DropReason::NoBuffers);
        } else {
            self.hold(key, t, class);
        }
        Ok(t.cursor.report)
    }

    pub(crate) fn send_or_drop(&mut self, key: K, t: &mut Transmit<'_>) -> io::Result<Report> {
        let side = Some(key).filter(|_| self.has_side(Some(key)));
        if let Some(side) = self.side(side, t) {
            return side.send_or_drop(key, t);
        }
        match self.offer(key, t)? {
            None => {}
            Some(Class::Advised) if self.open_side(side).is_some() => return self.send_or_drop(key, t),
            Some(class) => self.refuse(t, class, DropReason::NoBuffers),
        }
        Ok(t.cursor.report)
    }

    /// The side of a key. One that has none gets one when the send buffer is found to be more than half full.
    #[inline]
    fn side(&mut self, key: Option<K>, t: &mut Transmit<'_>) -> Option<&mut Self> {
        if !self.has_side(key) {
            self.unseen += t.cursor.bytes_left.max(LEAST_SEEN);
            if self.unseen < LOOK || !self.is_crowded() || self.open_side(key).is_none() {
                return None;
            }
        }
        self.of_side(key, t)
    }

    fn has_side(&self, key: Option<K>) -> bool {
        self.sides.as_ref().is_some_and(|sides| sides.has(key))
    }

    #[cold]
    fn is_crowded(&mut self) -> bool {
        self.unseen = 0;
        !self.is_side
            && self.bounds.send_only_sockets > 0
            && self.core.io.send_buffer().is_some_and(|buffer| buffer.used > buffer.size / 2)
    }

    /// Opens a side for a key. What waits under the key goes with it.
    #[cold]
    fn open_side(&mut self, key: Option<K>) -> Option<()> {
        if self.is_side || self.bounds.send_only_sockets == 0 {
            return None;
        }
        let most = self.bounds.send_only_sockets;
        let side = self.sides.get_or_insert_default().open(&self.core.io, key, most)?;
        side.waker.clone_from(&self.waker);
        side.bounds = Bounds { of_all: self.bounds.of_a_key, ..self.bounds };
        if let Some(key) = key
            && let Some(lines) = &mut self.lines
            && let Some(mut line) = lines.take(key)
        {
            for waiting in &mut line.waiting {
                waiting.transmit.header = self.core.io.header_for_a_side(waiting.transmit.header);
            }
            side.adopt(key, line);
            if lines.datagrams == 0 {
                lines.clear();
                self.core.unpark();
            }
        }
        Some(())
    }

    /// The side of a key, ready for this transmit.
    fn of_side(&mut self, key: Option<K>, t: &mut Transmit<'_>) -> Option<&mut Self> {
        let bytes = self.bytes();
        let Self { core, bounds, sides: Some(sides), .. } = self else { return None };
        let side = sides.of(key)?;
        side.bounds.of_all = bounds.of_a_key.min(bounds.of_all.saturating_sub(bytes - side.bytes()));
        t.header = core.io.header_for_a_side(t.header);
        Some(side)
    }

    /// Takes over what waits under a key elsewhere.
    fn adopt(&mut self, key: K, line: Line) {
        if line.waiting.is_empty() {
            return;
        }
        self.lines.get_or_insert_with(|| Lines::new(self.is_side)).put(key, line);
        self.core.name();
        if !self.core.is_parked() {
            self.core.park(false, Class::Silent, None, false);
        }
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Offers it to the system, unless it is known that there is no room. `Some` says that there is none for the rest.
    #[inline]
    fn offer(&mut self, key: K, t: &mut Transmit<'_>) -> io::Result<Option<Class>> {
        if let Some(lines) = &self.lines
            && lines.datagrams > 0
        {
            let is_full = self.core.parked_class() == Some(Class::Advised);
            if is_full || lines.lines.get(&key).is_some_and(|line| !line.waiting.is_empty()) {
                // A sender that holds it counts it as given up by itself.
                t.cursor.hold = Hold::default();
                let class = if is_full { Class::Advised } else { Class::Silent };
                return Ok(Some(class).filter(|_| !t.is_done()));
            }
        }
        match self.core.offer(t) {
            Attempt::Done => Ok(None),
            Attempt::Refused(class) => Ok(Some(class)),
            Attempt::Crowded | Attempt::Paused => Ok(Some(Class::Silent)),
            Attempt::Fatal(e) => Err(e),
        }
    }

    fn refuse(&mut self, t: &mut Transmit<'_>, class: Class, reason: DropReason) {
        drop_rest(&self.core.io, std::slice::from_mut(t), reason);
        if self.held() == 0 {
            self.core.was_blocked();
        } else {
            self.core.refused(class);
        }
    }

    fn hold(&mut self, key: K, t: &mut Transmit<'_>, class: Class) {
        let bytes = t.cursor.bytes_left.max(LEAST);
        if self.held_bytes(key) + bytes > self.bounds.of_a_key || self.bytes() + bytes > self.bounds.of_all {
            return self.refuse(t, class, DropReason::QueueFull);
        }
        let lines = self.lines.get_or_insert_with(|| Lines::new(self.is_side));
        let line = lines.lines.entry(key).or_insert_with(|| {
            // One that sends little need not wait for all that send much. It stays, emptied, until its turn: nobody is new twice
            // in a round.
            lines.turns.insert(if lines.new < NEW { 0 } else { lines.turns.len() }, key);
            lines.new += 1;
            // Most hold one: room for four would be 700 bytes.
            Line { waiting: VecDeque::with_capacity(1), ..Line::default() }
        });
        let now = Instant::now();
        let datagrams = t.remaining();
        self.core.name();
        self.core.io.stats().accept(datagrams);
        t.cursor.hold = Hold { sender: self.core.id, generation: 0 };
        line.bytes += bytes;
        line.waiting.push_back(Waiting { transmit: OwnedTransmit::from(&*t), since: now });
        t.let_go();
        lines.bytes += bytes;
        lines.datagrams += datagrams;
        lines.transmits += 1;
        lines.ages.push_back((now, key));
        lines.forget_what_went();
        if self.core.is_parked() {
            self.core.refused(class);
        } else {
            self.core.park(t.cursor.report.sent > 0, class, None, false);
            if let Some(waker) = &self.waker {
                waker.wake_by_ref();
            }
        }
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.poll_lines(cx);
        let Some(sides) = &mut self.sides else { return flushed };
        let of_sides = sides.poll(cx);
        if of_sides.is_pending() && matches!(flushed, Poll::Ready(Ok(()))) { Poll::Pending } else { flushed }
    }

    fn poll_lines(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            waker @ None => *waker = Some(cx.waker().clone()),
        }
        let Some(lines) = &mut self.lines else { return Poll::Ready(Ok(())) };
        if lines.datagrams == 0 {
            return Poll::Ready(Ok(()));
        }
        let ended = match self.core.wait.take() {
            Some(mut wait) if wait.parked.is_some() => {
                let ended = self.core.poll_parked(cx, &mut wait, &mut **lines);
                self.core.wait = Some(wait);
                ended
            }
            wait => {
                self.core.wait = wait;
                Poll::Ready(lines.attempt(&self.core.io, self.core.id))
            }
        };
        let Poll::Ready(ended) = ended else { return Poll::Pending };
        self.core.unpark();
        match ended {
            Attempt::Paused => {
                if let Policy::Wait { deadline } = self.core.io.backpressure().get()
                    && let Some(since) = Instant::now().checked_sub(deadline)
                {
                    lines.drop_old(&self.core.io, since, DropReason::Deadline);
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Attempt::Refused(class) => {
                self.core.park(false, class, None, false);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Attempt::Crowded | Attempt::Done => {
                lines.clear();
                self.core.look_after();
                Poll::Ready(Ok(()))
            }
            Attempt::Fatal(e) => {
                lines.drop_all(&self.core.io, DropReason::Socket);
                Poll::Ready(Err(e))
            }
        }
    }

    /// What waits under this key is given up.
    pub(crate) fn cancel(&mut self, key: K) {
        if let Some(sides) = &mut self.sides {
            sides.cancel(key);
        }
        let Some(lines) = &mut self.lines else { return };
        let Some(line) = lines.lines.get_mut(&key) else { return };
        lines.bytes -= std::mem::take(&mut line.bytes);
        lines.transmits -= line.waiting.len();
        let datagrams = line.waiting.drain(..).map(|waiting| waiting.transmit.remaining()).sum();
        lines.datagrams -= datagrams;
        self.core.io.stats().dropped(DropReason::Cancelled, datagrams);
        if lines.datagrams == 0 {
            lines.clear();
            self.core.unpark();
        }
    }
}

impl<I: Io, K: Copy + Ord> Drop for QueueCore<I, K> {
    fn drop(&mut self) {
        // Those of the sides are counted by them.
        let held = self.lines.as_ref().map_or(0, |lines| lines.datagrams);
        self.core.io.stats().dropped(DropReason::Cancelled, held);
    }
}

/// What a datagram without bytes counts, and what any costs beside its bytes.
const LEAST: usize = 512;

impl<K: Copy + Ord> Load for Lines<K> {
    /// Serves the lines by turns. One that is refused is not tried again in this pass; after a few the pass ends, and the next one
    /// begins behind them, but for the first whose turn is not over: it had room for a part. What can be sent is, however many
    /// are refused.
    fn attempt<I: Io>(&mut self, io: &I, id: u32) -> Attempt {
        let mut budget = Budget::of(self.calls);
        let (mut refused, mut begun) = (ArrayVec::<_, REFUSALS>::new(), None);
        let mut ended = Attempt::Done;
        self.new = 0;
        while let Some(key) = self.turns.pop_front() {
            match self.serve(io, id, key, &mut budget) {
                Served::Empty => {
                    self.lines.remove(&key);
                }
                Served::Turn => self.turns.push_back(key),
                Served::Paused => {
                    self.turns.push_front(key);
                    ended = Attempt::Paused;
                    break;
                }
                Served::Refused(Class::Advised) => {
                    self.turns.push_front(key);
                    ended = Attempt::Refused(Class::Advised);
                    break;
                }
                Served::Refused(Class::Silent) => {
                    if begun.is_none() && self.lines.get(&key).is_some_and(|line| line.is_served) {
                        begun = Some(key);
                    } else {
                        refused.push(key);
                    }
                    if refused.len() + usize::from(begun.is_some()) == REFUSALS {
                        break;
                    }
                }
                Served::Fatal(e) => {
                    self.turns.push_front(key);
                    ended = Attempt::Fatal(e);
                    break;
                }
            }
        }
        if (begun.is_some() || !refused.is_empty()) && matches!(ended, Attempt::Done) {
            ended = Attempt::Refused(Class::Silent);
        }
        self.turns.extend(refused);
        begun.into_iter().for_each(|key| self.turns.push_front(key));
        ended
    }

    fn sent(&self) -> u64 {
        self.sent
    }

    fn since(&mut self) -> Option<Instant> {
        while let Some(&(since, key)) = self.ages.front() {
            let head = self.lines.get(&key).and_then(|line| line.waiting.front());
            if head.is_some_and(|head| head.since <= since) {
                return Some(since);
            }
            self.ages.pop_front();
        }
        None
    }

    fn drop_old<I: Io>(&mut self, io: &I, since: Instant, reason: DropReason) -> bool {
        while let Some(oldest) = self.since()
            && oldest <= since
            && let Some((_, key)) = self.ages.pop_front()
        {
            self.drop_head(io, key, reason);
        }
        self.datagrams == 0
    }

    fn drop_all<I: Io>(&mut self, io: &I, reason: DropReason) {
        io.stats().dropped(reason, self.datagrams);
        self.clear();
    }

    fn path(&self) -> Option<(SocketAddr, Option<IpAddr>)> {
        None
    }

    fn longest_wait(&self) -> Option<Duration> {
        let passes = self.lines.len().div_ceil(REFUSALS) as u32;
        Some((LONGEST_WAIT / passes.max(1)).max(SHORTEST_WAIT))
    }
}

impl<K: Copy + Ord> Lines<K> {
    fn new(of_side: bool) -> Box<Self> {
        Box::new(Self::with(0, if of_side { sides::CALLS } else { Budget::OF_A_POLL }))
    }

    fn with(sent: u64, calls: u32) -> Self {
        Self {
            lines: BTreeMap::new(),
            turns: VecDeque::new(),
            new: 0,
            ages: VecDeque::new(),
            transmits: 0,
            bytes: 0,
            datagrams: 0,
            sent,
            calls,
        }
    }

    fn take(&mut self, key: K) -> Option<Line> {
        let line = self.lines.remove(&key)?;
        self.turns.retain(|turn| *turn != key);
        self.bytes -= line.bytes;
        self.transmits -= line.waiting.len();
        self.datagrams -= line.datagrams();
        Some(line)
    }

    /// Takes a line of a key that has none here. Nothing else waits here.
    fn put(&mut self, key: K, line: Line) {
        self.bytes += line.bytes;
        self.transmits += line.waiting.len();
        self.datagrams += line.datagrams();
        self.ages.extend(line.waiting.iter().map(|waiting| (waiting.since, key)));
        self.turns.push_back(key);
        self.lines.insert(key, line);
    }

    fn serve<I: Io>(&mut self, io: &I, id: u32, key: K, budget: &mut Budget) -> Served {
        let Some(line) = self.lines.get_mut(&key) else { return Served::Empty };
        if line.credit <= 0 {
            line.credit += QUANTUM;
            line.is_served = false;
        }
        loop {
            let Some(head) = line.waiting.front_mut() else { return Served::Empty };
            let (before, counted) = (head.transmit.remaining(), head.transmit.bytes().max(LEAST));
            if before == 0 {
                line.bytes -= counted;
                self.bytes -= counted;
                self.transmits -= 1;
                line.waiting.pop_front();
                continue;
            }
            if line.credit <= 0 {
                return Served::Turn;
            }
            if budget.is_spent() {
                return Served::Paused;
            }
            let sent = head.transmit.report().sent;
            let credit = line.credit;
            let (ended, bytes) = head.transmit.lend(|t| attempt_at_most(io, id, t, credit, budget));
            line.credit -= bytes as i64;
            line.is_served |= bytes > 0;
            self.datagrams -= before - head.transmit.remaining();
            self.sent += u64::from(head.transmit.report().sent - sent);
            let class = match ended {
                Attempt::Done | Attempt::Paused => continue,
                Attempt::Fatal(e) => return Served::Fatal(e),
                Attempt::Refused(class) => class,
                Attempt::Crowded => Class::Silent,
            };
            return Served::Refused(class);
        }
    }

    fn drop_head<I: Io>(&mut self, io: &I, key: K, reason: DropReason) {
        let Some(line) = self.lines.get_mut(&key) else { return };
        let Some(head) = line.waiting.pop_front() else { return };
        let (datagrams, bytes) = (head.transmit.remaining(), head.transmit.bytes().max(LEAST));
        line.bytes -= bytes;
        self.bytes -= bytes;
        self.transmits -= 1;
        self.datagrams -= datagrams;
        io.stats().dropped(reason, datagrams);
    }

    /// Keeps all of it as small as what waits: one transmit that waits long may see many go, of ever new keys.
    fn forget_what_went(&mut self) {
        if self.lines.len() > 2 * self.transmits + 64 {
            self.lines.retain(|_, line| !line.waiting.is_empty());
            self.turns.retain(|key| self.lines.contains_key(key));
        }
        if self.ages.len() > 2 * self.transmits + 64 {
            self.ages.clear();
            for (&key, line) in &self.lines {
                self.ages.extend(line.waiting.iter().map(|waiting| (waiting.since, key)));
            }
            self.ages.make_contiguous().sort_by_key(|&(since, _)| since);
        }
    }

    fn clear(&mut self) {
        *self = Self::with(self.sent, self.calls);
    }
}

impl Line {
    fn datagrams(&self) -> usize {
        self.waiting.iter().map(|waiting| waiting.transmit.remaining()).sum()
    }
}

#[cfg(test)]
mod tests;
