//! The lines of a queue, one for each key, and whose turn it is (deficit round robin).

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use arrayvec::ArrayVec;
use tokio::time::Instant;

use super::sides;
use crate::{
    io::Io,
    stats::{DropReason, SendReport},
    transmit::OwnedTransmit,
    wait::{
        backoff::Class,
        core::{
            Attempt, Left, Load,
            attempt::{Budget, attempt_at_most},
        },
    },
};

/// What a datagram without bytes counts, and what any costs beside its bytes.
pub(super) const LEAST: usize = 512;

/// Bytes that a line may send before the next has its turn: ten full datagrams of an Ethernet, 6.5 ms at 20 Mbit/s.
pub(super) const QUANTUM: i64 = 16 << 10;

/// Lines that may be refused in one pass. With a pass a millisecond it bounds what waiting costs, however many wait.
const REFUSALS: usize = 4;

/// New lines that go before all others in one pass. With the one whose turn is not over that leaves the others a try in each pass.
const NEW: usize = REFUSALS - 2;

/// Datagrams that are dropped in one poll, and lines without any that are forgotten: about a millisecond's work.
const DROPS: usize = 1024;

/// With more than [`REFUSALS`] lines each is tried as often as a sender on its own, as far as that goes.
const LONGEST_WAIT: Duration = Duration::from_millis(8);

pub(super) struct Lines<K> {
    /// A line without anything in it stays until its turn.
    pub(super) lines: BTreeMap<K, Line>,
    /// Each line once.
    pub(super) turns: VecDeque<K>,
    /// How many are new since the last pass.
    new: usize,
    /// When transmits came, the oldest first; some have gone since, but not more than wait.
    pub(super) ages: VecDeque<(Instant, K)>,
    pub(super) transmits: usize,
    pub(super) bytes: usize,
    pub(super) datagrams: usize,
    sent: u64,
    /// System calls of a poll.
    calls: u32,
}

#[derive(Default)]
pub(super) struct Line {
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

/// The lines while they are served, and whom to tell what becomes of what they hold.
pub(super) struct Serving<'a, K> {
    pub(super) lines: &'a mut Lines<K>,
    pub(super) done: Done<'a, K>,
}

/// Takes a key, what has become of datagrams that were held under it, and the bytes of those that were sent.
pub(crate) type Done<'a, K> = &'a mut dyn FnMut(K, &SendReport, usize);

/// How a line's turn ended.
enum Served {
    Empty,
    /// The next one's turn.
    Turn,
    Paused,
    Refused(Class),
    Fatal(io::Error),
}

impl<K: Copy + Ord> Load for Serving<'_, K> {
    /// Serves the lines by turns. One that is refused is not tried again in this pass; after a few the pass ends, and the next one
    /// begins behind them, but for the first whose turn is not over: it had room for a part. What can be sent is, however many
    /// are refused.
    fn attempt<I: Io>(&mut self, io: &I, id: u32) -> Attempt {
        let mut budget = Budget::of(self.lines.calls);
        let (mut refused, mut begun) = (ArrayVec::<_, REFUSALS>::new(), None);
        let mut ended = Attempt::Done;
        self.lines.new = 0;
        let mut forgotten = 0;
        while let Some(key) = self.lines.turns.pop_front() {
            match self.serve(io, id, key, &mut budget) {
                Served::Empty => {
                    self.lines.lines.remove(&key);
                    forgotten += 1;
                    if forgotten == DROPS {
                        break;
                    }
                }
                Served::Turn => self.lines.turns.push_back(key),
                Served::Paused => {
                    self.lines.turns.push_front(key);
                    ended = Attempt::Paused;
                    break;
                }
                Served::Refused(Class::Advised) => {
                    self.lines.turns.push_front(key);
                    ended = Attempt::Refused(Class::Advised);
                    break;
                }
                Served::Refused(Class::Silent) => {
                    if begun.is_none() && self.lines.lines.get(&key).is_some_and(|line| line.is_served) {
                        begun = Some(key);
                    } else {
                        refused.push(key);
                    }
                    if refused.len() + usize::from(begun.is_some()) == REFUSALS {
                        break;
                    }
                }
                Served::Fatal(e) => {
                    self.lines.turns.push_front(key);
                    ended = Attempt::Fatal(e);
                    break;
                }
            }
        }
        if matches!(ended, Attempt::Done) {
            if begun.is_some() || !refused.is_empty() {
                ended = Attempt::Refused(Class::Silent);
            } else if forgotten == DROPS {
                ended = Attempt::Paused;
            }
        }
        self.lines.turns.extend(refused);
        begun.into_iter().for_each(|key| self.lines.turns.push_front(key));
        ended
    }

    fn sent(&self) -> u64 {
        self.lines.sent
    }

    fn since(&mut self) -> Option<Instant> {
        while let Some(&(since, key)) = self.lines.ages.front() {
            let head = self.lines.lines.get(&key).and_then(|line| line.waiting.front());
            if head.is_some_and(|head| head.since <= since) {
                return Some(since);
            }
            self.lines.ages.pop_front();
        }
        None
    }

    fn drop_old<I: Io>(&mut self, io: &I, since: Instant, reason: DropReason) -> Left {
        for _ in 0..DROPS {
            if self.since().is_none_or(|oldest| oldest > since) {
                return if self.lines.datagrams == 0 { Left::Nothing } else { Left::New };
            }
            if let Some((_, key)) = self.lines.ages.pop_front() {
                self.drop_head(io, key, reason);
            }
        }
        Left::Old
    }

    fn path(&self) -> Option<(SocketAddr, Option<IpAddr>)> {
        None
    }

    fn longest_wait(&self) -> Option<Duration> {
        let passes = self.lines.lines.len().div_ceil(REFUSALS) as u32;
        Some(LONGEST_WAIT / passes.max(1))
    }
}

impl<K: Copy + Ord> Serving<'_, K> {
    pub(super) fn drop_all<I: Io>(&mut self, io: &I, reason: DropReason) {
        for (&key, line) in self.lines.lines.iter().filter(|(_, line)| !line.is_empty()) {
            (self.done)(key, &dropped(reason, line.datagrams()), 0);
        }
        io.stats().dropped(reason, self.lines.datagrams);
        self.lines.clear();
    }

    fn serve<I: Io>(&mut self, io: &I, id: u32, key: K, budget: &mut Budget) -> Served {
        let Some(line) = self.lines.lines.get_mut(&key) else { return Served::Empty };
        if line.credit <= 0 {
            line.credit += QUANTUM;
            line.is_served = false;
        }
        loop {
            let Some(head) = line.waiting.front_mut() else { return Served::Empty };
            let (before, counted) = (head.transmit.remaining(), head.transmit.bytes().max(LEAST));
            if before == 0 {
                line.bytes -= counted;
                self.lines.bytes -= counted;
                self.lines.transmits -= 1;
                line.waiting.pop_front();
                continue;
            }
            if line.credit <= 0 {
                return Served::Turn;
            }
            if budget.is_spent() {
                return Served::Paused;
            }
            let credit = line.credit;
            let (ended, bytes) = head.transmit.lend(|t| attempt_at_most(io, id, t, credit, budget));
            line.credit -= bytes as i64;
            line.is_served |= bytes > 0;
            self.lines.datagrams -= before - head.transmit.remaining();
            let report = head.transmit.take_report();
            self.lines.sent += u64::from(report.sent);
            if report != SendReport::default() {
                // Datagrams that were dropped have no part in it.
                let sent = bytes.min(report.sent as usize * head.transmit.datagram_len());
                (self.done)(key, &report, sent);
            }
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
        let Some(line) = self.lines.lines.get_mut(&key) else { return };
        let Some(head) = line.waiting.pop_front() else { return };
        let (datagrams, bytes) = (head.transmit.remaining(), head.transmit.bytes().max(LEAST));
        line.bytes -= bytes;
        self.lines.bytes -= bytes;
        self.lines.transmits -= 1;
        self.lines.datagrams -= datagrams;
        io.stats().dropped(reason, datagrams);
        (self.done)(key, &dropped(reason, datagrams), 0);
    }
}

impl<K: Copy + Ord> Lines<K> {
    pub(super) fn new(of_side: bool) -> Self {
        Self::with(0, if of_side { sides::CALLS } else { Budget::OF_A_POLL })
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

    /// Whether something waits under a key.
    pub(super) fn has(&self, key: K) -> bool {
        self.lines.get(&key).is_some_and(|line| !line.is_empty())
    }

    pub(super) fn bytes_of(&self, key: K) -> usize {
        self.lines.get(&key).map_or(0, |line| line.bytes)
    }

    pub(super) fn push(&mut self, key: K, transmit: OwnedTransmit, now: Instant) {
        let line = self.lines.entry(key).or_insert_with(|| {
            // One that sends little need not wait for all that send much. It stays, emptied, until its turn: nobody is new twice
            // in a round.
            self.turns.insert(if self.new < NEW { 0 } else { self.turns.len() }, key);
            self.new += 1;
            // Most hold one: room for four would be 700 bytes.
            Line { waiting: VecDeque::with_capacity(1), ..Line::default() }
        });
        let bytes = transmit.bytes().max(LEAST);
        line.bytes += bytes;
        self.bytes += bytes;
        self.datagrams += transmit.remaining();
        self.transmits += 1;
        line.waiting.push_back(Waiting { transmit, since: now });
        self.ages.push_back((now, key));
        self.forget_what_went();
    }

    /// Gives up what waits under a key. Returns how many datagrams that was.
    pub(super) fn cancel(&mut self, key: K) -> usize {
        let Some(line) = self.lines.get_mut(&key) else { return 0 };
        let datagrams = line.datagrams();
        self.bytes -= std::mem::take(&mut line.bytes);
        self.transmits -= line.waiting.len();
        self.datagrams -= datagrams;
        line.waiting.clear();
        datagrams
    }

    /// Sends what waits under a key to another destination, from another source.
    pub(super) fn redirect(&mut self, key: K, destination: SocketAddr, source: Option<IpAddr>) {
        let waiting = self.lines.get_mut(&key).into_iter().flat_map(Line::transmits);
        waiting.for_each(|transmit| transmit.set_way(destination, source));
    }

    pub(super) fn take(&mut self, key: K) -> Option<Line> {
        let line = self.lines.remove(&key)?;
        self.turns.retain(|turn| *turn != key);
        self.bytes -= line.bytes;
        self.transmits -= line.waiting.len();
        self.datagrams -= line.datagrams();
        Some(line)
    }

    /// Takes over what waits elsewhere.
    pub(super) fn put(&mut self, key: K, line: Line) {
        self.bytes += line.bytes;
        self.transmits += line.waiting.len();
        self.datagrams += line.datagrams();
        self.ages.extend(line.waiting.iter().map(|waiting| (waiting.since, key)));
        self.ages.make_contiguous().sort_by_key(|&(since, _)| since);
        let Some(known) = self.lines.get_mut(&key) else {
            self.turns.push_back(key);
            self.lines.insert(key, line);
            return;
        };
        known.bytes += line.bytes;
        known.waiting.extend(line.waiting);
        known.waiting.make_contiguous().sort_by_key(|waiting| waiting.since);
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

    pub(super) fn clear(&mut self) {
        *self = Self::with(self.sent, self.calls);
    }
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn transmits(&mut self) -> impl Iterator<Item = &mut OwnedTransmit> {
        self.waiting.iter_mut().map(|waiting| &mut waiting.transmit)
    }

    fn datagrams(&self) -> usize {
        self.waiting.iter().map(|waiting| waiting.transmit.remaining()).sum()
    }
}

fn dropped(reason: DropReason, datagrams: usize) -> SendReport {
    let mut report = SendReport::default();
    report.dropped.add(reason, datagrams as u32);
    report
}
