//! The send loop: the same code in production and in the tests' model of reactors and kernels.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    Policy,
    io::Io,
    stats::{DropReason, Report},
    transmit::{Hold, Transmit},
    wait::backoff::Class,
};

mod attempt;
mod queue;
mod room;
mod timer;
mod wait;

pub(crate) use queue::QueueCore;

use attempt::{Budget, attempt, attempt_one, drop_rest, pass};
use wait::{Wait, clear_blocked, look_for_edge, see_whether_stuck};

pub(crate) struct Core<I: Io> {
    io: I,
    /// Names it among those who wait and in what it holds; 0 until it has to.
    id: u32,
    /// Counts what it has held: the transmits of one call have the same number.
    generation: u32,
    /// The last turn of another sender that it has yielded to.
    yielded_to: u64,
    /// Datagrams accepted from transmits that are not done.
    held: usize,
    wait: Option<Box<Wait<I::Registration>>>,
}

/// How an attempt ended.
#[derive(Debug)]
enum Attempt {
    Done,
    /// There is no room.
    Refused(Class),
    /// There may be room, but each call reports another error about an earlier datagram.
    Crowded,
    /// There may be more room, but others have to run.
    Paused,
    Fatal(io::Error),
}

/// What is left of what waits after the old has been dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    New,
    /// There is more to drop, but others have to run.
    Old,
}

/// What waits to be sent.
trait Load {
    /// Offers it to the system, as far as there is room.
    fn attempt<I: Io>(&mut self, io: &I, id: u32) -> Attempt;

    /// Datagrams of it that the system has taken.
    fn sent(&self) -> u64;

    /// Since when the oldest of it waits, if not since the sender does.
    fn since(&mut self) -> Option<Instant>;

    /// Drops what has waited since `since` or longer, as much of it as one poll may.
    fn drop_old<I: Io>(&mut self, io: &I, since: Instant, reason: DropReason) -> Left;

    /// The path that all of it waits for, if it is one.
    fn path(&self) -> Option<(SocketAddr, Option<IpAddr>)>;

    /// The longest silent wait for it, if less than others'.
    fn longest_wait(&self) -> Option<Duration>;
}

impl Load for [Transmit<'_>] {
    fn attempt<I: Io>(&mut self, io: &I, id: u32) -> Attempt {
        attempt(io, id, self, None, Budget::of_a_poll())
    }

    fn sent(&self) -> u64 {
        sent(self)
    }

    fn since(&mut self) -> Option<Instant> {
        None
    }

    fn drop_old<I: Io>(&mut self, io: &I, _since: Instant, reason: DropReason) -> Left {
        drop_rest(io, self, reason);
        Left::Nothing
    }

    fn path(&self) -> Option<(SocketAddr, Option<IpAddr>)> {
        let mut left = self.iter().filter(|t| !t.is_done()).map(Transmit::path);
        left.next().filter(|path| left.all(|other| other == *path))
    }

    fn longest_wait(&self) -> Option<Duration> {
        None
    }
}

/// A system call that failed already, with so many datagrams of the first transmit that is left.
struct Failed {
    error: io::Error,
    datagrams: usize,
}

/// What it takes to wait is given back when it has not been needed for this long.
const IDLE: Duration = Duration::from_secs(10);

static NEXT_ID: AtomicU32 = AtomicU32::new(1);

impl<I: Io> Core<I> {
    pub(crate) fn new(io: I) -> Self {
        Self { io, id: 0, generation: 0, yielded_to: 0, held: 0, wait: None }
    }

    pub(crate) fn io(&self) -> &I {
        &self.io
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.wait.as_ref().is_some_and(|wait| wait.stuck && wait.blocked_since(&self.io).is_some())
    }

    pub(crate) fn blocked_for(&self) -> Option<Duration> {
        self.wait.as_ref().and_then(|wait| wait.blocked_since(&self.io)).map(|since| since.elapsed())
    }

    pub(crate) fn poll_send_batch(
        &mut self,
        cx: &mut Context<'_>,
        ts: &mut [Transmit<'_>],
    ) -> Poll<io::Result<Report>> {
        let mut failed = None;
        if self.held == 0 && self.wait.is_none() && self.io.contention().is_nobodys_turn() {
            match pass(&self.io, self.id, ts) {
                Ok(Some(sent)) => return Poll::Ready(Ok(Report { sent, ..Report::default() })),
                Ok(None) => {}
                Err(known) => failed = Some(known),
            }
        }
        self.accept(ts);
        if self.held == 0 {
            return Poll::Ready(Ok(total(ts)));
        }
        if !self.is_parked() {
            if failed.is_none() && self.yields(ts) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let before = sent(ts);
            let ended = attempt(&self.io, self.id, ts, failed, Budget::of_a_poll());
            if sent(ts) > before {
                self.made_progress();
            }
            match ended {
                Attempt::Refused(_) if self.io.backpressure().get() == Policy::Drop => {
                    drop_rest(&self.io, ts, DropReason::NoBuffers);
                    self.was_blocked();
                    return Poll::Ready(self.finish(ts, Attempt::Done));
                }
                Attempt::Crowded => self.park(sent(ts) > 0, Class::Silent, None, true),
                Attempt::Refused(class) => self.park(sent(ts) > 0, class, ts.path(), false),
                Attempt::Paused => return self.pause(cx, ts),
                ended @ (Attempt::Done | Attempt::Fatal(_)) => return Poll::Ready(self.finish(ts, ended)),
            }
        }
        let Some(mut wait) = self.wait.take() else { return Poll::Pending };
        let ended = self.poll_parked(cx, &mut wait, ts);
        self.wait = Some(wait);
        match ended {
            Poll::Ready(ended) => {
                self.unpark();
                if matches!(ended, Attempt::Paused) {
                    return self.pause(cx, ts);
                }
                Poll::Ready(self.finish(ts, ended))
            }
            Poll::Pending => {
                self.held = remaining(ts);
                Poll::Pending
            }
        }
    }

    pub(crate) fn try_send(&mut self, t: &mut Transmit<'_>) -> io::Result<Report> {
        let sent = t.cursor.report.sent;
        let ended = self.offer(t);
        if matches!(ended, Attempt::Fatal(_)) && t.is_accepted() {
            // It is dropped.
            self.held = self.held.saturating_sub(t.remaining());
        }
        self.tried(&ended, t, t.cursor.report.sent > sent);
        result_of(&self.io, ended, t)
    }

    /// Offers `t` to the system, and neither holds nor drops what is left of it.
    #[inline]
    fn offer(&mut self, t: &mut Transmit<'_>) -> Attempt {
        match pass(&self.io, self.id, std::slice::from_mut(t)) {
            Ok(Some(_)) => {
                self.made_progress();
                Attempt::Done
            }
            Ok(None) => self.offer_slowly(t, None),
            Err(failed) => self.offer_slowly(t, Some(failed)),
        }
    }

    #[inline(never)]
    fn offer_slowly(&mut self, t: &mut Transmit<'_>, failed: Option<Failed>) -> Attempt {
        if !self.holds(t) {
            t.cursor.hold = Hold::default();
        }
        let (before, sent) = (t.remaining(), t.cursor.report.sent);
        let ended = attempt_one(&self.io, self.id, t, failed, &mut Budget::unlimited());
        if t.is_accepted() {
            self.held = self.held.saturating_sub(before - t.remaining());
        }
        if t.cursor.report.sent > sent {
            self.made_progress();
        }
        ended
    }

    /// Counts what is held of `ts` as given up: they may be offered again, to any sender.
    pub(crate) fn give_up(&mut self, ts: &mut [Transmit<'_>]) {
        if self.held > 0 {
            self.cancel();
            for t in ts.iter_mut() {
                t.cursor.hold = Hold::default();
            }
        }
    }

    fn is_parked(&self) -> bool {
        self.wait.as_ref().is_some_and(|wait| wait.parked.is_some())
    }

    /// Whether it holds `t`, rather than another sender, or none any more.
    fn holds(&self, t: &Transmit<'_>) -> bool {
        self.held > 0 && t.cursor.hold == Hold { sender: self.id, generation: self.generation }
    }

    /// Holds `ts` instead of what it has held until now: what of that is not among them is given up.
    fn accept(&mut self, ts: &mut [Transmit<'_>]) {
        let kept: usize = ts.iter().filter(|t| self.holds(t)).map(Transmit::remaining).sum();
        let all = remaining(ts);
        if kept == 0 {
            self.cancel();
        } else if kept < self.held {
            self.io.stats().dropped(DropReason::Cancelled, self.held - kept);
        }
        if all != kept || all != self.held {
            // A copy of a cursor may have been offered along with it.
            self.io.stats().accept(all - kept.min(self.held));
            self.name();
            self.generation = self.generation.wrapping_add(1);
            let hold = Hold { sender: self.id, generation: self.generation };
            for t in ts.iter_mut().filter(|t| !t.is_done()) {
                t.cursor.hold = hold;
            }
        }
        self.held = all;
    }

    /// Lets a sender go first that has waited for the same, or may have, and was called; but once each time.
    fn yields(&mut self, ts: &[Transmit<'_>]) -> bool {
        let contention = self.io.contention();
        let Some(path) = ts.iter().find(|t| !t.is_done()).map(Transmit::path) else { return false };
        let Some(turn) = contention.turn_of_another(self.id, path, self.yielded_to) else { return false };
        self.yielded_to = turn;
        true
    }

    /// The rest goes on when others have run.
    fn pause(&mut self, cx: &mut Context<'_>, ts: &[Transmit<'_>]) -> Poll<io::Result<Report>> {
        self.held = remaining(ts);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn name(&mut self) {
        while self.id == 0 {
            self.id = NEXT_ID.fetch_add(1, Relaxed);
        }
    }

    /// Counts what is held as given up.
    fn cancel(&mut self) {
        self.cancel_held();
        self.unpark();
    }

    fn cancel_held(&mut self) {
        if self.held > 0 {
            self.io.stats().dropped(DropReason::Cancelled, self.held);
            self.held = 0;
            self.unpark();
        }
    }

    fn finish(&mut self, ts: &mut [Transmit<'_>], ended: Attempt) -> io::Result<Report> {
        self.held = 0;
        self.look_after();
        match ended {
            Attempt::Fatal(e) => {
                drop_rest(&self.io, ts, DropReason::Socket);
                Err(e)
            }
            Attempt::Done | Attempt::Refused(_) | Attempt::Crowded | Attempt::Paused => Ok(total(ts)),
        }
    }

    /// Counts an edge that was lost, and gives back what has not been needed for a while.
    fn look_after(&mut self) {
        let Some(wait) = &mut self.wait else { return };
        let now = Instant::now();
        look_for_edge(&self.io, wait, now);
        if now - wait.last_used >= IDLE {
            self.wait = None;
        }
    }

    fn wait_mut(&mut self, now: Instant) -> &mut Wait<I::Registration> {
        self.wait.get_or_insert_with(|| Box::new(Wait::new(now)))
    }

    /// The system has taken something.
    fn made_progress(&mut self) {
        if let Some(wait) = &mut self.wait {
            clear_blocked(&self.io, wait);
        }
    }

    /// The system has taken nothing, and what it was offered is dropped.
    fn was_blocked(&mut self) {
        let now = Instant::now();
        let wait = self.wait_mut(now);
        wait.last_used = now;
        if let Some(wait) = &mut self.wait {
            wait.blocked(&self.io, now);
            see_whether_stuck(&self.io, wait, now);
        }
    }
}

impl<I: Io> Drop for Core<I> {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Offers `t` to the system for no sender: nothing is held.
pub(crate) fn try_send<I: Io>(io: &I, t: &mut Transmit<'_>) -> io::Result<Report> {
    // A sender that holds it counts it as given up by itself.
    t.cursor.hold = Hold::default();
    let failed = match pass(io, 0, std::slice::from_mut(t)) {
        Ok(Some(_)) => return Ok(t.cursor.report),
        Ok(None) => None,
        Err(failed) => Some(failed),
    };
    let ended = attempt_one(io, 0, t, failed, &mut Budget::unlimited());
    result_of(io, ended, t)
}

/// What a socket that has failed leaves is dropped.
fn result_of<I: Io>(io: &I, ended: Attempt, t: &mut Transmit<'_>) -> io::Result<Report> {
    match ended {
        Attempt::Done => Ok(t.cursor.report),
        Attempt::Refused(_) | Attempt::Crowded | Attempt::Paused => Err(io::ErrorKind::WouldBlock.into()),
        Attempt::Fatal(e) => {
            drop_rest(io, std::slice::from_mut(t), DropReason::Socket);
            Err(e)
        }
    }
}

/// What has become of all of them.
fn total(ts: &[Transmit<'_>]) -> Report {
    if let [t] = ts {
        return t.cursor.report;
    }
    let mut total = Report::default();
    for t in ts {
        total.sent += t.cursor.report.sent;
        for reason in DropReason::ALL {
            total.dropped.add(reason, t.cursor.report.dropped.get(reason));
        }
    }
    total
}

/// Datagrams that are neither sent nor dropped.
fn remaining(ts: &[Transmit<'_>]) -> usize {
    ts.iter().map(Transmit::remaining).sum()
}

/// Datagrams that the system has taken.
fn sent(ts: &[Transmit<'_>]) -> u64 {
    ts.iter().map(|t| u64::from(t.cursor.report.sent)).sum()
}

impl<I: Io> fmt::Debug for Core<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parked = self.wait.as_ref().and_then(|wait| wait.parked.as_ref());
        f.debug_struct("Sender").field("held", &self.held).field("parked", &parked).finish_non_exhaustive()
    }
}

#[cfg(all(test, unix))]
mod model;
