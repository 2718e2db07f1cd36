//! The send loop: the same code in production and in the tests' model of reactors and kernels.

use std::{
    fmt, io,
    pin::Pin,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::{
    Policy,
    decision::{Errno, Os},
    io::Io,
    park::{By, Class, LAST_BACKSTOP, Parked, Renew},
    stats::{DropReason, Report},
    sys::errno,
    transmit::{Hold, Transmit},
};

mod attempt;
mod queue;

pub(crate) use queue::QueueCore;

use attempt::{Budget, attempt, attempt_one, drop_rest, pass};

pub(crate) struct Core<I: Io> {
    io: I,
    /// Names it among those who wait and in what it holds; 0 until it has to.
    id: u32,
    /// Counts what it has held: the transmits of one call have the same number.
    generation: u32,
    /// The last turn of another sender that it has yielded to.
    yielded_to: u32,
    /// Datagrams accepted from transmits that are not done.
    held: usize,
    wait: Option<Box<Wait<I::Registration>>>,
}

/// What it takes to wait.
struct Wait<R> {
    /// Made by the first wait that listens.
    registration: Option<R>,
    /// Made by the first wait that needs it.
    timer: Option<Pin<Box<Sleep>>>,
    parked: Option<Parked>,
    /// Whether the next poll is to try at once.
    yielded: bool,
    /// Whether it is not for want of room that it waits: a policy to drop does not concern it.
    crowded: bool,
    /// How long it took until there was room, smoothed.
    recovery: Option<Duration>,
    last_used: Instant,
    /// Since when the system has taken nothing, though offered.
    blocked_since: Option<Instant>,
    stuck: bool,
    /// When a timer won although an edge was promised, and the socket had room; the first time since the last edge.
    suspect: Option<Instant>,
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

/// What waits to be sent.
trait Load {
    /// Offers it to the system, as far as there is room.
    fn attempt<I: Io>(&mut self, io: &I, id: u32) -> Attempt;

    /// Datagrams of it that the system has taken.
    fn sent(&self) -> u64;

    /// Since when the oldest of it waits, if not since the sender does.
    fn since(&mut self) -> Option<Instant>;

    /// Drops what has waited since `since` or longer. Returns whether nothing is left.
    fn drop_old<I: Io>(&mut self, io: &I, since: Instant, reason: DropReason) -> bool;

    fn drop_all<I: Io>(&mut self, io: &I, reason: DropReason);

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

    fn drop_old<I: Io>(&mut self, io: &I, _since: Instant, reason: DropReason) -> bool {
        drop_rest(io, self, reason);
        true
    }

    fn drop_all<I: Io>(&mut self, io: &I, reason: DropReason) {
        drop_rest(io, self, reason);
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

/// A sender of which the system has taken nothing for this long is stuck. XNU's flow control holds a sender until its own
/// packets have left, which are at most 2,048: 20 s on a link that sends a hundred of them a second.
const STUCK: Duration = Duration::from_secs(5);
const STUCK_APPLE: Duration = Duration::from_secs(30);

/// How late a promised event may be before it counts as lost.
const LOST_EDGE: Duration = Duration::from_millis(250);

static NEXT_ID: AtomicU32 = AtomicU32::new(1);

impl<I: Io> Core<I> {
    pub(crate) fn new(io: I) -> Self {
        Self { io, id: 0, generation: 0, yielded_to: 0, held: 0, wait: None }
    }

    pub(crate) fn io(&self) -> &I {
        &self.io
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.wait.as_ref().is_some_and(|wait| wait.stuck)
    }

    pub(crate) fn blocked_for(&self) -> Option<Duration> {
        self.wait.as_ref().and_then(|wait| wait.blocked_since).map(|since| since.elapsed())
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
            if failed.is_none() && self.yields() {
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
                Attempt::Crowded => self.park(sent(ts) > 0, Class::Silent, true),
                Attempt::Refused(class) => self.park(sent(ts) > 0, class, false),
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
        match self.offer(t) {
            Attempt::Done => Ok(t.cursor.report),
            Attempt::Refused(_) | Attempt::Crowded | Attempt::Paused => Err(io::ErrorKind::WouldBlock.into()),
            Attempt::Fatal(e) => Err(e),
        }
    }

    /// Offers `t` to the system, and holds nothing.
    fn offer(&mut self, t: &mut Transmit<'_>) -> Attempt {
        let failed = match pass(&self.io, self.id, std::slice::from_mut(t)) {
            Ok(Some(_)) => {
                self.made_progress();
                return Attempt::Done;
            }
            Ok(None) => None,
            Err(failed) => Some(failed),
        };
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

    /// Lets a sender go first that has waited, and was called, but once each time.
    fn yields(&mut self) -> bool {
        let Some(turn) = self.io.contention().turn_of_another(self.id) else { return false };
        if std::mem::replace(&mut self.yielded_to, turn) == turn {
            self.io.contention().dismiss(turn);
            return false;
        }
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
        if self.held > 0 {
            self.io.stats().dropped(DropReason::Cancelled, self.held);
            self.held = 0;
        }
        self.unpark();
    }

    fn finish(&mut self, ts: &mut [Transmit<'_>], ended: Attempt) -> io::Result<Report> {
        self.held = 0;
        self.look_after();
        match ended {
            Attempt::Fatal(e) => Err(e),
            Attempt::Done | Attempt::Refused(_) | Attempt::Crowded | Attempt::Paused => Ok(total(ts)),
        }
    }

    /// Counts an edge that was lost, and gives back what has not been needed for a while.
    fn look_after(&mut self) {
        let Some(wait) = &mut self.wait else { return };
        if wait.parked.is_some() {
            return;
        }
        let now = Instant::now();
        if wait.suspect.is_some_and(|since| now - since >= LOST_EDGE) {
            look_for_edge(&self.io, wait, now);
        }
        if now - wait.last_used >= IDLE {
            self.wait = None;
        }
    }

    fn wait_mut(&mut self, now: Instant) -> &mut Wait<I::Registration> {
        self.wait.get_or_insert_with(|| {
            Box::new(Wait {
                registration: None,
                timer: None,
                parked: None,
                yielded: false,
                crowded: false,
                recovery: None,
                last_used: now,
                blocked_since: None,
                stuck: false,
                suspect: None,
            })
        })
    }

    fn park(&mut self, partial: bool, class: Class, crowded: bool) {
        let now = Instant::now();
        self.io.stats().park();
        if partial {
            self.io.stats().partial();
        }
        let id = self.id;
        self.wait_mut(now);
        let Some(wait) = &mut self.wait else { return };
        wait.last_used = now;
        look_for_edge(&self.io, wait, now);
        wait.blocked_since.get_or_insert(now);
        if let Some(timer) = &mut wait.timer {
            // Of this runtime: the sender may have come from another one.
            timer.as_mut().set(tokio::time::sleep_until(now));
        }
        let mut parked = Parked::new(class, now, wait.recovery, random(id));
        self.io.schedule(&mut parked);
        wait.yielded = false;
        wait.crowded = crowded;
        wait.parked = Some(parked);
    }

    fn parked_class(&self) -> Option<Class> {
        self.wait.as_ref().and_then(|wait| wait.parked.as_ref()).map(|parked| parked.class)
    }

    /// While it waits, something else was refused: the send buffer may be full now.
    fn refused(&mut self, class: Class) {
        if class == Class::Advised
            && self.parked_class() == Some(Class::Silent)
            && let Some(mut wait) = self.wait.take()
        {
            self.wait_on(&mut wait, class, By::Call, false, None, Instant::now());
            self.wait = Some(wait);
        }
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
        wait.blocked_since.get_or_insert(now);
        if let Some(wait) = &mut self.wait {
            see_whether_stuck(&self.io, wait, now);
        }
    }

    fn unpark(&mut self) {
        if let Some(wait) = &mut self.wait
            && let Some(parked) = wait.parked.take()
        {
            let now = Instant::now();
            self.io.stats().blocked(now - parked.since);
            wait.last_used = now;
            self.io.backpressure().leave(self.id);
            self.io.contention().leave(self.id);
        }
    }

    fn poll_parked<L: Load + ?Sized>(
        &self,
        cx: &mut Context<'_>,
        wait: &mut Wait<I::Registration>,
        load: &mut L,
    ) -> Poll<Attempt> {
        // First to be woken by a switch, then to read the policy: a switch in between is not missed.
        self.io.backpressure().wait(self.id, cx.waker());
        let mut called = self.io.contention().wait(self.id, cx.waker());
        loop {
            let Some(parked) = &mut wait.parked else { return Poll::Ready(Attempt::Done) };
            let now = Instant::now();
            let (longest, reason) = match self.io.backpressure().get() {
                Policy::Wait { deadline } => (deadline, DropReason::Deadline),
                Policy::Drop if wait.crowded => (LAST_BACKSTOP, DropReason::Deadline),
                Policy::Drop => (Duration::ZERO, DropReason::NoBuffers),
            };
            let until = load.since().unwrap_or(parked.since) + longest;
            let (class, before) = (parked.class, load.sent());
            let (ended, by) = if now >= until {
                let by = if reason == DropReason::Deadline { By::Timer } else { By::Call };
                let ended = load.attempt(&self.io, self.id);
                if matches!(ended, Attempt::Refused(_) | Attempt::Crowded) {
                    if load.sent() > before {
                        clear_blocked(&self.io, wait);
                    }
                    let is_done = load.drop_old(&self.io, now - longest, reason);
                    see_whether_stuck(&self.io, wait, now);
                    if is_done {
                        return Poll::Ready(Attempt::Done);
                    }
                }
                (ended, by)
            } else if std::mem::take(&mut called) && parked.may_attempt(now) {
                (load.attempt(&self.io, self.id), By::Call)
            } else if std::mem::take(&mut wait.yielded) {
                (load.attempt(&self.io, self.id), By::Timer)
            } else if parked.yielding {
                wait.yielded = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            } else {
                match self.poll_wake(cx, wait, until, load) {
                    Poll::Ready(woken) => woken,
                    Poll::Pending => return Poll::Pending,
                }
            };
            self.io.stats().wake(class, by);
            wait.crowded = matches!(ended, Attempt::Crowded);
            let progress = load.sent() > before;
            if progress {
                self.recovered(wait, class, by, now);
            }
            match ended {
                Attempt::Refused(_) | Attempt::Crowded => {
                    let class = if let Attempt::Refused(class) = ended { class } else { Class::Silent };
                    if by == By::Readiness && !progress {
                        self.io.stats().spurious_wake();
                    }
                    self.wait_on(wait, class, by, progress, load.longest_wait(), now);
                }
                ended @ (Attempt::Done | Attempt::Paused | Attempt::Fatal(_)) => return Poll::Ready(ended),
            }
        }
    }

    /// Waits for readiness, where it counts, and for the timer; tries when either comes.
    fn poll_wake<L: Load + ?Sized>(
        &self,
        cx: &mut Context<'_>,
        wait: &mut Wait<I::Registration>,
        until: Instant,
        load: &mut L,
    ) -> Poll<(Attempt, By)> {
        let Some(parked) = &wait.parked else { return Poll::Ready((Attempt::Done, By::Call)) };
        if parked.listening {
            let registration = match &mut wait.registration {
                Some(registration) => registration,
                none => match self.io.register() {
                    Ok(registration) => none.insert(registration),
                    Err(e) if errno(&e) == Errno::Socket => return Poll::Ready((self.fail(load, e), By::Call)),
                    Err(e) => {
                        self.io.stats().no_registration(&e);
                        return self.poll_timer(cx, wait, until, load);
                    }
                },
            };
            // The call is made inside the reactor's `try_io`, so that a wake-up which arrives meanwhile is not erased.
            let mut ended = None;
            let polled = self.io.poll_write(registration, cx, || {
                let blocked =
                    matches!(ended.insert(load.attempt(&self.io, self.id)), Attempt::Refused(_) | Attempt::Crowded);
                if blocked { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            if ended.is_some() {
                wait.suspect = None;
            }
            match (polled, ended) {
                (Poll::Ready(_), Some(ended)) => return Poll::Ready((ended, By::Readiness)),
                (Poll::Ready(Err(e)), None) if errno(&e) == Errno::Socket => {
                    return Poll::Ready((self.fail(load, e), By::Readiness));
                }
                (Poll::Ready(Err(e)), None) => self.io.stats().no_registration(&e),
                (Poll::Ready(Ok(())), None) | (Poll::Pending, _) => {}
            }
        }
        self.poll_timer(cx, wait, until, load)
    }

    fn poll_timer<L: Load + ?Sized>(
        &self,
        cx: &mut Context<'_>,
        wait: &mut Wait<I::Registration>,
        until: Instant,
        load: &mut L,
    ) -> Poll<(Attempt, By)> {
        let at = wait.parked.as_ref().map_or(until, |parked| parked.at.min(until));
        let timer = wait.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx).map(|()| (load.attempt(&self.io, self.id), By::Timer))
    }

    fn fail<L: Load + ?Sized>(&self, load: &mut L, error: io::Error) -> Attempt {
        load.drop_all(&self.io, DropReason::Socket);
        Attempt::Fatal(error)
    }

    /// After another refusal: how to go on waiting.
    fn wait_on(
        &self,
        wait: &mut Wait<I::Registration>,
        class: Class,
        by: By,
        progress: bool,
        longest: Option<Duration>,
        now: Instant,
    ) {
        let Some(parked) = &mut wait.parked else { return };
        if progress {
            parked.made_progress(now);
        }
        // A call that found room for a part is the beginning of another wait.
        let by = if progress && by == By::Call { By::Timer } else { by };
        let renew = parked.refused(class, by, now, wait.recovery, random(self.id));
        if let (Some(longest), Class::Silent) = (longest, class) {
            parked.at = parked.at.min(now + longest);
        }
        self.io.schedule(parked);
        wait.blocked_since.get_or_insert(now);
        if renew == Renew::Yes {
            // A new registration knows nothing of an edge that came.
            look_for_edge(&self.io, wait, now);
            if let Some(registration) = &mut wait.registration
                && let Err(e) = self.io.renew(registration)
            {
                // The timer serves, and the next wait registers.
                self.io.stats().no_registration(&e);
                wait.registration = None;
            }
        }
        see_whether_stuck(&self.io, wait, now);
    }

    /// There was room, if only for a part.
    fn recovered(&self, wait: &mut Wait<I::Registration>, class: Class, by: By, now: Instant) {
        clear_blocked(&self.io, wait);
        let Some(parked) = &wait.parked else { return };
        let after = now - parked.blocked_since;
        self.io.stats().recover(class, by, after);
        wait.recovery = Some(wait.recovery.map_or(after, |known| (known * 7 + after) / 8));
        if class == Class::Advised && by == By::Timer && self.io.writable() {
            wait.suspect.get_or_insert(now);
        }
    }
}

impl<I: Io> Drop for Core<I> {
    fn drop(&mut self) {
        self.cancel();
    }
}

fn clear_blocked<I: Io>(io: &I, wait: &mut Wait<I::Registration>) {
    wait.blocked_since = None;
    if std::mem::take(&mut wait.stuck) {
        io.stats().unstuck();
    }
}

fn see_whether_stuck<I: Io>(io: &I, wait: &mut Wait<I::Registration>, now: Instant) {
    let after = if io.os() == Os::Apple { STUCK_APPLE } else { STUCK };
    if !wait.stuck && wait.blocked_since.is_some_and(|since| now - since >= after) {
        wait.stuck = true;
        io.stats().stuck();
    }
}

/// Whether the promised edge has come, if one is missed; it counts as lost when it is too late. That the sender has had to wait
/// again meanwhile excuses nothing: an edge that comes then, whatever for, is taken for the one that is missed.
fn look_for_edge<I: Io>(io: &I, wait: &mut Wait<I::Registration>, now: Instant) {
    let (Some(since), Some(registration)) = (wait.suspect, &wait.registration) else { return };
    let came = io.is_ready(registration);
    let late = now - since >= LOST_EDGE;
    if came || late {
        wait.suspect = None;
    }
    if late && !came {
        io.stats().lost_edge();
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

/// Differs between senders and from call to call; that is all that jitter needs.
fn random(id: u32) -> u32 {
    static STATE: AtomicU64 = AtomicU64::new(0x9E37_79B9_7F4A_7C15);
    let mut x = STATE.fetch_add(u64::from(id).wrapping_mul(0xA076_1D64_78BD_642F), Relaxed);
    x ^= x >> 32;
    (x.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 32) as u32
}

impl<I: Io> fmt::Debug for Core<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parked = self.wait.as_ref().and_then(|wait| wait.parked.as_ref());
        f.debug_struct("Sender").field("held", &self.held).field("parked", &parked).finish_non_exhaustive()
    }
}

#[cfg(all(test, unix))]
mod model;
