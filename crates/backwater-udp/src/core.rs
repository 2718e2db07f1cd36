//! The send loop: the same code in production and in the tests' model of reactors and kernels.

use std::{
    fmt, io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::{
    Policy,
    decision::{Errno, Os, Refusal, Verdict},
    io::{Drained, Io},
    park::{By, Class, LAST_BACKSTOP, Parked, Renew},
    stats::{DropReason, Report},
    sys::errno,
    transmit::{Next, Scratch, Transmit},
};

pub(crate) struct Core<I: Io> {
    io: I,
    /// Names it among those who wait; 0 until it has to.
    id: u64,
    /// Datagrams accepted from transmits that are not done.
    held: usize,
    wait: Option<Box<Wait<I::Registration>>>,
}

/// What it takes to wait.
struct Wait<R> {
    /// Made by the first wait that listens.
    registration: Option<R>,
    timer: Pin<Box<Sleep>>,
    parked: Option<Parked>,
    /// Whether the next poll is to try at once.
    yielded: bool,
    /// Whether it is not for want of room that it waits: a policy to drop does not concern it.
    crowded: bool,
    /// How long it took until there was room, smoothed.
    recovery: Option<Duration>,
    last_used: Instant,
    /// Since when the socket has taken nothing.
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
    Fatal(io::Error),
}

/// A system call that failed already, with so many datagrams of the first transmit that is left.
struct Failed {
    error: io::Error,
    datagrams: usize,
}

/// Calls in a row that may end in `EINTR`, and in somebody else's error.
const MAX_INTERRUPTED: u32 = 16;
const MAX_OTHERS_ERRORS: u32 = 3;

/// A registration that has not been needed for this long is given back.
const IDLE: Duration = Duration::from_secs(10);

/// A socket that has taken nothing for this long is stuck.
const STUCK: Duration = Duration::from_secs(5);

/// How late a promised event may be before it counts as lost.
const LOST_EDGE: Duration = Duration::from_millis(250);

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl<I: Io> Core<I> {
    pub(crate) fn new(io: I) -> Self {
        Self { io, id: 0, held: 0, wait: None }
    }

    pub(crate) fn io(&self) -> &I {
        &self.io
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.wait.as_ref().is_some_and(|wait| wait.stuck)
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
            if failed.is_none() && self.io.contention().is_anothers_turn(self.id) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match attempt_after(failed, &self.io, self.id, ts) {
                Attempt::Refused(_) if self.io.backpressure().get() == Policy::Drop => {
                    drop_rest(&self.io, ts, DropReason::NoBuffers);
                    return Poll::Ready(self.finish(ts, Attempt::Done));
                }
                Attempt::Crowded => self.park(ts, Class::Silent, true),
                Attempt::Refused(class) => self.park(ts, class, false),
                ended @ (Attempt::Done | Attempt::Fatal(_)) => return Poll::Ready(self.finish(ts, ended)),
            }
        }
        let Some(mut wait) = self.wait.take() else { return Poll::Pending };
        let ended = self.poll_parked(cx, &mut wait, ts);
        self.wait = Some(wait);
        match ended {
            Poll::Ready(ended) => {
                self.unpark();
                Poll::Ready(self.finish(ts, ended))
            }
            Poll::Pending => {
                self.held = ts.iter().map(Transmit::remaining).sum();
                Poll::Pending
            }
        }
    }

    pub(crate) fn try_send(&mut self, t: &mut Transmit<'_>) -> io::Result<Report> {
        let failed = match pass(&self.io, self.id, std::slice::from_mut(t)) {
            Ok(Some(sent)) => return Ok(Report { sent, ..Report::default() }),
            Ok(None) => None,
            Err(failed) => Some(failed),
        };
        let before = t.remaining();
        let ended = attempt_one(&self.io, self.id, t, failed);
        if t.cursor.accepted {
            self.held -= (before - t.remaining()).min(self.held);
        }
        match ended {
            Attempt::Done => Ok(t.cursor.report),
            Attempt::Refused(_) | Attempt::Crowded => Err(io::ErrorKind::WouldBlock.into()),
            Attempt::Fatal(e) => Err(e),
        }
    }

    fn is_parked(&self) -> bool {
        self.wait.as_ref().is_some_and(|wait| wait.parked.is_some())
    }

    fn accept(&mut self, ts: &mut [Transmit<'_>]) {
        let resumed = ts.iter().any(|t| t.cursor.accepted && !t.is_done());
        if !resumed {
            self.cancel();
        }
        let mut accepted = 0;
        for t in ts.iter_mut().filter(|t| !t.cursor.accepted) {
            t.cursor.accepted = true;
            accepted += t.remaining();
        }
        self.held += accepted;
        self.io.stats().accept(accepted);
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
            Attempt::Done | Attempt::Refused(_) | Attempt::Crowded => Ok(total(ts)),
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

    fn park(&mut self, ts: &[Transmit<'_>], class: Class, crowded: bool) {
        let now = Instant::now();
        if self.id == 0 {
            self.id = NEXT_ID.fetch_add(1, Relaxed);
        }
        self.io.stats().park();
        if ts.iter().any(|t| t.cursor.report.sent > 0) {
            self.io.stats().partial();
        }
        let wait = self.wait.get_or_insert_with(|| {
            Box::new(Wait {
                registration: None,
                timer: Box::pin(tokio::time::sleep_until(now)),
                parked: None,
                yielded: false,
                crowded: false,
                recovery: None,
                last_used: now,
                blocked_since: None,
                stuck: false,
                suspect: None,
            })
        });
        wait.last_used = now;
        look_for_edge(&self.io, wait, now);
        wait.blocked_since.get_or_insert(now);
        let mut parked = Parked::new(class, now, wait.recovery, random(self.id));
        self.io.schedule(&mut parked);
        wait.yielded = false;
        wait.crowded = crowded;
        wait.parked = Some(parked);
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

    fn poll_parked(
        &self,
        cx: &mut Context<'_>,
        wait: &mut Wait<I::Registration>,
        ts: &mut [Transmit<'_>],
    ) -> Poll<Attempt> {
        // First to be woken by a switch, then to read the policy: a switch in between is not missed.
        self.io.backpressure().wait(self.id, cx.waker());
        self.io.contention().wait(self.id, cx.waker());
        loop {
            let Some(parked) = &mut wait.parked else { return Poll::Ready(Attempt::Done) };
            let now = Instant::now();
            let (until, reason) = match self.io.backpressure().get() {
                Policy::Wait { deadline } => (parked.since + deadline, DropReason::Deadline),
                Policy::Drop if wait.crowded => (parked.since + LAST_BACKSTOP, DropReason::Deadline),
                Policy::Drop => (now, DropReason::NoBuffers),
            };
            let class = parked.class;
            let (ended, by) = if now >= until {
                let by = if reason == DropReason::Deadline { By::Timer } else { By::Call };
                let ended = match attempt(&self.io, self.id, ts) {
                    Attempt::Refused(_) | Attempt::Crowded => {
                        drop_rest(&self.io, ts, reason);
                        self.see_whether_stuck(wait, now);
                        return Poll::Ready(Attempt::Done);
                    }
                    ended @ (Attempt::Done | Attempt::Fatal(_)) => ended,
                };
                (ended, by)
            } else if std::mem::take(&mut wait.yielded) {
                (attempt(&self.io, self.id, ts), By::Timer)
            } else if self.io.contention().take_turn(self.id) && parked.may_attempt(now) {
                (attempt(&self.io, self.id, ts), By::Call)
            } else if parked.yielding {
                wait.yielded = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            } else {
                match self.poll_wake(cx, wait, until, ts) {
                    Poll::Ready(woken) => woken,
                    Poll::Pending => return Poll::Pending,
                }
            };
            self.io.stats().wake(class, by);
            wait.crowded = matches!(ended, Attempt::Crowded);
            match ended {
                Attempt::Refused(_) | Attempt::Crowded => {
                    let class = if let Attempt::Refused(class) = ended { class } else { Class::Silent };
                    if by == By::Readiness {
                        self.io.stats().spurious_wake();
                    }
                    if let Err(e) = self.wait_on(wait, class, by, now) {
                        drop_rest(&self.io, ts, DropReason::Socket);
                        return Poll::Ready(Attempt::Fatal(e));
                    }
                }
                ended @ (Attempt::Done | Attempt::Fatal(_)) => {
                    self.recovered(wait, class, by, now);
                    return Poll::Ready(ended);
                }
            }
        }
    }

    /// Waits for readiness, where it counts, and for the timer; tries when either comes.
    fn poll_wake(
        &self,
        cx: &mut Context<'_>,
        wait: &mut Wait<I::Registration>,
        until: Instant,
        ts: &mut [Transmit<'_>],
    ) -> Poll<(Attempt, By)> {
        let Some(parked) = &wait.parked else { return Poll::Ready((Attempt::Done, By::Call)) };
        if parked.listening {
            let registration = match &mut wait.registration {
                Some(registration) => registration,
                none => match self.io.register() {
                    Ok(registration) => none.insert(registration),
                    Err(e) => return Poll::Ready((fail(&self.io, ts, e), By::Call)),
                },
            };
            // The call is made inside the reactor's `try_io`, so that a wake-up which arrives meanwhile is not erased.
            let mut ended = None;
            let polled = self.io.poll_write(registration, cx, || {
                let blocked =
                    matches!(ended.insert(attempt(&self.io, self.id, ts)), Attempt::Refused(_) | Attempt::Crowded);
                if blocked { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            if ended.is_some() {
                wait.suspect = None;
            }
            match (polled, ended) {
                (Poll::Ready(_), Some(ended)) => return Poll::Ready((ended, By::Readiness)),
                (Poll::Ready(Err(e)), None) => return Poll::Ready((fail(&self.io, ts, e), By::Readiness)),
                (Poll::Ready(Ok(())), None) | (Poll::Pending, _) => {}
            }
        }
        let at = parked.at.min(until);
        if wait.timer.deadline() != at {
            wait.timer.as_mut().reset(at);
        }
        match wait.timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready((attempt(&self.io, self.id, ts), By::Timer)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// After another refusal: how to go on waiting.
    fn wait_on(&self, wait: &mut Wait<I::Registration>, class: Class, by: By, now: Instant) -> io::Result<()> {
        let Some(parked) = &mut wait.parked else { return Ok(()) };
        let renew = parked.refused(class, by, now, wait.recovery, random(self.id));
        self.io.schedule(parked);
        if renew == Renew::Yes {
            // A new registration knows nothing of an edge that came.
            look_for_edge(&self.io, wait, now);
            if let Some(registration) = &mut wait.registration {
                self.io.renew(registration)?;
            }
        }
        self.see_whether_stuck(wait, now);
        Ok(())
    }

    fn see_whether_stuck(&self, wait: &mut Wait<I::Registration>, now: Instant) {
        if !wait.stuck && wait.blocked_since.is_some_and(|since| now - since >= STUCK) {
            wait.stuck = true;
            self.io.stats().stuck();
        }
    }

    fn recovered(&self, wait: &mut Wait<I::Registration>, class: Class, by: By, now: Instant) {
        let Some(parked) = &wait.parked else { return };
        let after = now - parked.since;
        self.io.stats().recover(class, by, after);
        wait.recovery = Some(wait.recovery.map_or(after, |known| (known * 7 + after) / 8));
        wait.blocked_since = None;
        if std::mem::take(&mut wait.stuck) {
            self.io.stats().unstuck();
        }
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

/// Sends transmits that no sender has accepted before, as nearly all are: whole, in one call. How many datagrams went if that
/// was all.
fn pass<I: Io>(io: &I, id: u64, ts: &mut [Transmit<'_>]) -> Result<Option<u32>, Failed> {
    if ts.iter().any(|t| t.cursor.accepted) {
        return Ok(None);
    }
    let all = ts.len();
    let (went, datagrams) = match ts {
        [t] => {
            let Some(chunk) = t.whole(io.limits()) else { return Ok(None) };
            io.send(&t.outgoing(&chunk)).map_err(|error| Failed { error, datagrams: chunk.datagrams })?;
            (1, went(io, t, t.remaining(), t.cursor.bytes_left))
        }
        ts => send_together(io, ts)?,
    };
    if went > 0 {
        io.stats().passed(datagrams);
        io.stats().attempt(1);
        io.contention().found_room(id);
    }
    Ok((went == all).then_some(datagrams as u32))
}

/// Tries each transmit that is not done. What is refused is advised only if all of it is.
fn attempt<I: Io>(io: &I, id: u64, ts: &mut [Transmit<'_>]) -> Attempt {
    attempt_after(None, io, id, ts)
}

/// The same, without the first system call if that is known to have failed.
fn attempt_after<I: Io>(mut failed: Option<Failed>, io: &I, id: u64, ts: &mut [Transmit<'_>]) -> Attempt {
    if let [t] = ts {
        return attempt_one(io, id, t, failed);
    }
    let (mut refused, mut crowded) = (None, false);
    let mut i = ts.iter().take_while(|t| t.is_done()).count();
    while i < ts.len() {
        let together = match failed.take() {
            Some(failed) => Err(failed),
            None => send_together(io, ts.get_mut(i..).unwrap_or_default()),
        };
        let failed = match together {
            Ok((went, datagrams)) => {
                if went > 0 {
                    io.stats().attempt(1);
                    io.stats().sent(datagrams);
                    io.contention().found_room(id);
                }
                i += went;
                None
            }
            Err(failed) => Some(failed),
        };
        let Some(t) = ts.get_mut(i) else { break };
        i += 1;
        match attempt_one(io, id, t, failed) {
            Attempt::Done => {}
            Attempt::Crowded => crowded = true,
            Attempt::Refused(class) => {
                refused = Some(if refused == Some(Class::Silent) { Class::Silent } else { class });
            }
            Attempt::Fatal(e) => return fail(io, ts, e),
        }
    }
    refused.map_or(if crowded { Attempt::Crowded } else { Attempt::Done }, Attempt::Refused)
}

/// Sends those at the front that can go out whole, if there are several of them, in one call: how many went, and of how
/// many datagrams.
fn send_together<I: Io>(io: &I, ts: &mut [Transmit<'_>]) -> Result<(usize, usize), Failed> {
    let limits = io.limits();
    let [first, second, ..] = ts else { return Ok((0, 0)) };
    if first.whole(limits).is_none() || second.whole(limits).is_none() {
        return Ok((0, 0));
    }
    let datagrams = first.remaining();
    let outs = ts.iter().map_while(|t| Some(t.outgoing(&t.whole(limits)?)));
    let sent = io.send_several(outs).map_err(|error| Failed { error, datagrams })?;
    let datagrams = ts.iter_mut().take(sent).map(|t| went(io, t, t.remaining(), t.cursor.bytes_left)).sum();
    Ok((sent, datagrams))
}

/// The loop of system calls, the first of which may be known to have failed.
fn attempt_one<I: Io>(io: &I, id: u64, t: &mut Transmit<'_>, mut failed: Option<Failed>) -> Attempt {
    let (mut calls, mut interrupted, mut others) = (0, 0, 0);
    let mut seen = io.icmp_errors();
    let ended = loop {
        if t.is_done() {
            break Attempt::Done;
        }
        let mut scratch = Scratch::new();
        let (max_datagrams, max_bytes) = io.limits();
        let chunk = t.chunk(max_datagrams, max_bytes, &mut scratch);
        let (datagrams, bytes) = (chunk.datagrams, chunk.bytes);
        if datagrams == 0 {
            // The next one consists of more slices than fit in a call.
            let bytes = t.datagram_len().min(t.cursor.bytes_left);
            give_up(io, t, 1, bytes, DropReason::Invalid);
            continue;
        }
        if datagrams == 1 && bytes > t.max_payload() {
            // On loopback the kernel answers with an ICMP message, which looks like one about an earlier datagram.
            failed = None;
            give_up(io, t, 1, bytes, DropReason::TooLarge);
            continue;
        }
        calls += 1;
        let known = failed.is_some();
        // Segmentation may have been turned off since the call that is known.
        let call = || io.send(&t.outgoing(&chunk)).map_err(|error| Failed { error, datagrams });
        let Err(Failed { error, datagrams: tried }) = failed.take().map_or_else(call, Err) else {
            (interrupted, others) = (0, 0);
            went(io, t, datagrams, bytes);
            if t.cursor.accepted {
                io.stats().sent(datagrams);
            } else {
                io.stats().passed(datagrams);
            }
            io.contention().found_room(id);
            continue;
        };
        // What was read before a call that is known is not, and a system without an error queue tells nothing at all.
        let maybe_earlier = others == 0 && (known || io.os() != Os::Linux && io.is_connected());
        let refusal = classify(io, t, &error, tried > 1, seen, maybe_earlier);
        seen = io.icmp_errors();
        match refusal {
            Verdict::Again if errno(&error) == Errno::Interrupted && interrupted < MAX_INTERRUPTED => interrupted += 1,
            Verdict::Again if others < MAX_OTHERS_ERRORS => others += 1,
            // A flood of them: hold the datagram, which they do not concern.
            Verdict::Again => break Attempt::Crowded,
            Verdict::WhenReady => break Attempt::Refused(Class::Advised),
            Verdict::OnTimer => break Attempt::Refused(Class::Silent),
            Verdict::OnTimerSmaller => {
                t.cursor.at_most = (tried as u8 / 2).max(1);
                break Attempt::Refused(Class::Silent);
            }
            Verdict::Drop(reason) => {
                if reason == DropReason::Other {
                    io.stats().unknown_error(&error);
                }
                give_up(io, t, datagrams, bytes, reason);
            }
            Verdict::Split => t.cursor.at_most = 1,
            Verdict::SplitAll => {
                io.segmentation_failed();
                io.stats().segmentation_off();
                t.cursor.at_most = 1;
            }
            Verdict::Fatal => {
                drop_rest(io, std::slice::from_mut(t), DropReason::Socket);
                break Attempt::Fatal(error);
            }
        }
    };
    io.stats().attempt(calls);
    ended
}

/// The kernel has taken these, the next of the transmit. How many datagrams they are.
fn went<I: Io>(io: &I, t: &mut Transmit<'_>, datagrams: usize, bytes: usize) -> usize {
    if t.cursor.next == Next::MaybeQueued {
        io.stats().possible_duplicates(datagrams);
    }
    t.sent(datagrams, bytes);
    datagrams
}

/// These, the next of the transmit, are not sent.
fn give_up<I: Io>(io: &I, t: &mut Transmit<'_>, datagrams: usize, bytes: usize, reason: DropReason) {
    if !t.cursor.accepted {
        io.stats().accept(datagrams);
    }
    t.dropped(datagrams, bytes, reason);
    io.stats().dropped(reason, datagrams);
}

/// Gathers what the decision depends on, each thing only where it does.
fn classify<I: Io>(
    io: &I,
    t: &mut Transmit<'_>,
    error: &io::Error,
    train: bool,
    seen: u64,
    maybe_earlier: bool,
) -> Verdict {
    let errno = errno(error);
    let no_buffers = errno == Errno::NoBuffers;
    let drained = match errno {
        Errno::WouldBlock | Errno::NoBuffers | Errno::Interrupted => Drained::default(),
        // Whatever its number: one that is unknown may be an ICMP message's too.
        Errno::MessageSize
        | Errno::Invalid
        | Errno::Io
        | Errno::NotPermitted
        | Errno::Prohibited
        | Errno::Unreachable
        | Errno::Refused
        | Errno::Socket
        | Errno::Other => io.drain_errors(t.destination, seen),
    };
    let refusal = Refusal {
        os: io.os(),
        errno,
        connected: io.is_connected(),
        writable: !no_buffers || !io.is_connected() || io.writable(),
        earlier_errors: drained.icmp,
        maybe_earlier: maybe_earlier && !drained.too_large,
        train,
        again: t.cursor.next != Next::Fresh,
    };
    let verdict = io.decide(&refusal);
    if no_buffers {
        let class = if verdict == Verdict::WhenReady { Class::Advised } else { Class::Silent };
        io.stats().no_buffers(refusal.connected, class);
        // XNU may refuse with this advice what it has queued (`FLOWADV_FLOW_CONTROLLED` set behind `ip_output`).
        if verdict == Verdict::WhenReady {
            t.cursor.next = Next::MaybeQueued;
        } else if t.cursor.next == Next::Fresh {
            t.cursor.next = Next::Refused;
        }
    }
    verdict
}

fn fail<I: Io>(io: &I, ts: &mut [Transmit<'_>], error: io::Error) -> Attempt {
    drop_rest(io, ts, DropReason::Socket);
    Attempt::Fatal(error)
}

fn drop_rest<I: Io>(io: &I, ts: &mut [Transmit<'_>], reason: DropReason) {
    for t in ts {
        give_up(io, t, t.remaining(), t.cursor.bytes_left, reason);
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

/// Differs between senders and from call to call; that is all that jitter needs.
fn random(id: u64) -> u32 {
    static STATE: AtomicU64 = AtomicU64::new(0x9E37_79B9_7F4A_7C15);
    let mut x = STATE.fetch_add(id.wrapping_mul(0xA076_1D64_78BD_642F), Relaxed);
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
