//! Waiting for room: when the send loop goes on, and what it does meanwhile.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use super::{Attempt, Core, Left, Load, timer::Timer};
use crate::{
    Policy,
    io::Io,
    stats::DropReason,
    sys::errno,
    wait::{
        backoff::{By, Class, LAST_BACKSTOP, Parked, Renew},
        decision::{Errno, Os},
        fairness::{Bottleneck, Place, Refused},
    },
};

/// What it takes to wait.
pub(super) struct Wait<R> {
    /// Made by the first wait that listens.
    pub(super) registration: Option<R>,
    timer: Timer,
    pub(super) parked: Option<Parked>,
    /// What refused the last [`try_send`](crate::Sender::try_send), if nobody waits for it yet.
    pub(super) refused: Option<(Class, Option<Path>)>,
    /// What the last wake-up was.
    pub(super) by: By,
    /// Whether the next poll is to try at once.
    yielded: bool,
    /// Whether it is not for want of room that it waits: a policy to drop does not concern it.
    crowded: bool,
    /// How long it took until there was room, smoothed.
    pub(super) recovery: Option<Duration>,
    pub(super) last_used: Instant,
    /// Since when the system has taken nothing, though offered.
    pub(super) blocked_since: Option<Instant>,
    pub(super) stuck: bool,
    /// How many sockets had been replaced then.
    replaced: u32,
    /// When a timer won although an edge was promised, and the socket had room; the first time since the last edge.
    pub(super) suspect: Option<Instant>,
}

/// From where to where.
pub(super) type Path = (SocketAddr, Option<IpAddr>);

/// A retry that was refused.
pub(super) struct Retry {
    pub(super) class: Class,
    pub(super) by: By,
    /// The path that has no room, if it is one.
    pub(super) path: Option<Path>,
    /// The longest silent wait, if less than others'.
    pub(super) longest: Option<Duration>,
}

/// A sender of which the system has taken nothing for this long is stuck. XNU's flow control holds a sender until its own
/// packets have left, which are at most 2,048: 20 s on a link that sends a hundred of them a second.
const STUCK: Duration = Duration::from_secs(5);
const STUCK_APPLE: Duration = Duration::from_secs(30);

/// How late a promised event may be before it counts as lost.
const LOST_EDGE: Duration = Duration::from_millis(250);

impl<R> Wait<R> {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            registration: None,
            timer: Timer::default(),
            parked: None,
            refused: None,
            by: By::Timer,
            yielded: false,
            crowded: false,
            recovery: None,
            last_used: now,
            blocked_since: None,
            stuck: false,
            replaced: 0,
            suspect: None,
        }
    }
}

impl<R> Wait<R> {
    /// The system has taken nothing. What an earlier socket did says nothing about the one in its place.
    pub(super) fn blocked<I: Io>(&mut self, io: &I, now: Instant) {
        let replaced = io.contention().replaced();
        if std::mem::replace(&mut self.replaced, replaced) != replaced {
            clear_blocked(io, self);
            self.suspect = None;
        }
        self.blocked_since.get_or_insert(now);
    }

    /// Since when the system has taken nothing for the socket that is in use.
    pub(super) fn blocked_since<I: Io>(&self, io: &I) -> Option<Instant> {
        self.blocked_since.filter(|_| self.replaced == io.contention().replaced())
    }
}

impl<I: Io> Core<I> {
    /// Begins to wait. `path` is the one that has no room, if it is one.
    pub(super) fn park(&mut self, partial: bool, class: Class, path: Option<Path>, crowded: bool) {
        let now = Instant::now();
        self.io.stats().park();
        if partial {
            self.io.stats().partial();
        }
        let bottleneck = self.bottleneck(class, path);
        let id = self.id;
        self.wait_mut(now);
        let Some(wait) = &mut self.wait else { return };
        wait.last_used = now;
        look_for_edge(&self.io, wait, now);
        wait.blocked(&self.io, now);
        wait.yielded = false;
        wait.crowded = crowded;
        wait.parked = Some(Parked::new(class, bottleneck, now));
        let refused = Refused { bottleneck, by: By::Timer, recovery: wait.recovery, longest: None };
        self.io.contention().refused(id, refused, now);
    }

    pub(super) fn parked_class(&self) -> Option<Class> {
        self.wait.as_ref().and_then(|wait| wait.parked.as_ref()).map(|parked| parked.class)
    }

    /// While it waits, something else was refused: the send buffer may be full now.
    pub(super) fn refused(&mut self, class: Class) {
        if class == Class::Advised
            && self.parked_class() == Some(Class::Silent)
            && let Some(mut wait) = self.wait.take()
        {
            let retry = Retry { class, by: By::Call, path: None, longest: None };
            self.wait_on(&mut wait, retry, Instant::now());
            self.wait = Some(wait);
        }
    }

    pub(super) fn unpark(&mut self) {
        if let Some(wait) = &mut self.wait
            && let Some(parked) = wait.parked.take()
        {
            let now = Instant::now();
            self.io.stats().blocked(now - parked.since);
            wait.last_used = now;
            self.io.backpressure().leave(self.id);
            self.io.contention().leave(self.id, now);
        }
    }

    pub(super) fn poll_parked<L: Load + ?Sized>(
        &self,
        cx: &mut Context<'_>,
        wait: &mut Wait<I::Registration>,
        load: &mut L,
    ) -> Poll<Attempt> {
        // First to be woken by a switch, then to read the policy: a switch in between is not missed.
        self.io.backpressure().wait(self.id, cx.waker());
        loop {
            let Some(parked) = &mut wait.parked else { return Poll::Ready(Attempt::Done) };
            let now = Instant::now();
            let mut place = self.io.contention().wait(self.id, cx.waker(), now);
            parked.placed(&place, now);
            self.io.schedule(parked, &mut place);
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
                    let left = load.drop_old(&self.io, now - longest, reason);
                    see_whether_stuck(&self.io, wait, now);
                    match left {
                        Left::Nothing => return Poll::Ready(Attempt::Done),
                        Left::New => {}
                        Left::Old => {
                            cx.waker().wake_by_ref();
                            return Poll::Pending;
                        }
                    }
                }
                (ended, by)
            } else if place.called {
                (load.attempt(&self.io, self.id), By::Call)
            } else if place.yielding && std::mem::take(&mut wait.yielded) {
                (load.attempt(&self.io, self.id), By::Timer)
            } else if place.yielding {
                wait.yielded = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            } else {
                ready!(self.poll_wake(cx, wait, place, until, load))
            };
            self.io.stats().wake(class, by);
            wait.by = by;
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
                    let path = load.path().filter(|_| !wait.crowded);
                    let retry = Retry { class, by, path, longest: load.longest_wait() };
                    self.wait_on(wait, retry, now);
                }
                ended @ (Attempt::Done | Attempt::Paused | Attempt::Fatal(_)) => return Poll::Ready(ended),
            }
        }
    }

    /// Waits for readiness, where it counts, and for the timer; tries when either comes. A timer that is not this sender's to try by is
    /// never due here: it has become the one that tries when it is late, or it has looked at its deadline.
    fn poll_wake<L: Load + ?Sized>(
        &self,
        cx: &mut Context<'_>,
        wait: &mut Wait<I::Registration>,
        place: Place,
        until: Instant,
        load: &mut L,
    ) -> Poll<(Attempt, By)> {
        let Some(parked) = &wait.parked else { return Poll::Pending };
        if place.probes && parked.listening {
            let registration = match &mut wait.registration {
                Some(registration) => registration,
                none => match self.io.register() {
                    Ok(registration) => none.insert(registration),
                    Err(e) if errno(&e) == Errno::Socket => {
                        return Poll::Ready((Attempt::Fatal(e), By::Call));
                    }
                    Err(e) => {
                        self.io.stats().no_registration(&e);
                        return self.poll_timer(cx, wait, place, until, load);
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
                    return Poll::Ready((Attempt::Fatal(e), By::Readiness));
                }
                (Poll::Ready(Err(e)), None) => self.io.stats().no_registration(&e),
                (Poll::Ready(Ok(())), None) | (Poll::Pending, _) => {}
            }
        }
        self.poll_timer(cx, wait, place, until, load)
    }

    fn poll_timer<L: Load + ?Sized>(
        &self,
        cx: &mut Context<'_>,
        wait: &mut Wait<I::Registration>,
        place: Place,
        until: Instant,
        load: &mut L,
    ) -> Poll<(Attempt, By)> {
        wait.timer.poll(cx, place.at.min(until)).map(|()| (load.attempt(&self.io, self.id), By::Timer))
    }

    /// After another refusal: how to go on waiting.
    pub(super) fn wait_on(&self, wait: &mut Wait<I::Registration>, retry: Retry, now: Instant) {
        let Retry { class, by, path, longest } = retry;
        let bottleneck = self.bottleneck(class, path);
        let Some(parked) = &mut wait.parked else { return };
        let renew = parked.refused(class, bottleneck, by, now);
        self.io.contention().refused(self.id, Refused { bottleneck, by, recovery: wait.recovery, longest }, now);
        wait.blocked(&self.io, now);
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
    pub(super) fn recovered(&self, wait: &mut Wait<I::Registration>, class: Class, by: By, now: Instant) {
        clear_blocked(&self.io, wait);
        let Some(parked) = &mut wait.parked else { return };
        self.io.stats().recover(class, by, now - parked.blocked_since);
        parked.found_room(now);
        wait.recovery = self.io.contention().recovery(self.id).or(wait.recovery);
        if class == Class::Advised && by == By::Timer && self.io.writable() {
            wait.suspect.get_or_insert(now);
        }
    }

    /// What has no room, if it is `path` or unknown that does not promise to say when it has.
    fn bottleneck(&self, class: Class, path: Option<Path>) -> Bottleneck {
        match (class, path) {
            (Class::Advised, _) => Bottleneck::Socket,
            (Class::Silent, Some(path)) => self.io.contention().path(path),
            (Class::Silent, None) => Bottleneck::Sender(self.id),
        }
    }
}

pub(super) fn clear_blocked<I: Io, R>(io: &I, wait: &mut Wait<R>) {
    wait.blocked_since = None;
    if std::mem::take(&mut wait.stuck) {
        io.stats().unstuck();
    }
}

pub(super) fn see_whether_stuck<I: Io>(io: &I, wait: &mut Wait<I::Registration>, now: Instant) {
    let after = if io.os() == Os::Apple { STUCK_APPLE } else { STUCK };
    if !wait.stuck && wait.blocked_since.is_some_and(|since| now - since >= after) {
        wait.stuck = true;
        io.stats().stuck();
    }
}

/// Whether the promised edge has come, if one is missed; it counts as lost when it is too late. That the sender has had to wait
/// again meanwhile excuses nothing: an edge that comes then, whatever for, is taken for the one that is missed.
pub(super) fn look_for_edge<I: Io>(io: &I, wait: &mut Wait<I::Registration>, now: Instant) {
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
