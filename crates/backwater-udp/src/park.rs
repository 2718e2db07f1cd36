//! A sender that waits: when it tries again. No I/O, and the time is an argument.
//!
//! *Advised*: the system has promised to say when there is room. Listen, with a timer behind it that grows. The first wake-up
//! that ends in a refusal is about an edge from before the wait, which sends that succeeded did not clear: that refusal did. Another
//! one means that the promise was worthless or that a closed bit is latched: register anew, once per interval, and otherwise
//! leave it to the timer. A timer that fires while the socket is still blocked may mean a lost
//! edge: register anew.
//!
//! *Silent*: nothing was promised, and readiness is always true. Yield twice, then wait 1, 2, 4, 8 ms.

use std::time::Duration;

use tokio::time::Instant;

/// What a refusal promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Advised,
    Silent,
}

/// What made a sender try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Readiness,
    Timer,
    /// The policy was switched, or another sender of the socket has found room.
    Call,
}

/// The first backstop of an advised wait, and the longest.
pub(crate) const FIRST_BACKSTOP: Duration = Duration::from_millis(25);
pub(crate) const LAST_BACKSTOP: Duration = Duration::from_millis(100);

/// The longest silent wait is the first doubled this often: 8 ms.
const DOUBLINGS: u32 = 3;

/// The least of tokio's timers.
const TICK: Duration = Duration::from_millis(1);

/// Attempts that follow at once in a silent wait: a shortage of buffers mostly clears within them.
const YIELDS: u32 = 2;

/// Attempts within a tick, but for the timer's.
const MAX_PER_TICK: usize = 4;

#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) since: Instant,
    /// Since when there was no room for anything of it.
    pub(crate) blocked_since: Instant,
    pub(crate) class: Class,
    /// When to try without being called.
    pub(crate) at: Instant,
    /// Whether readiness counts.
    pub(crate) listening: bool,
    /// Whether readiness may be from before the wait.
    stale: bool,
    /// Whether the next attempt follows at once.
    pub(crate) yielding: bool,
    backstop: Duration,
    renewed: Instant,
    silent_attempts: u32,
    /// The times of the last attempts, in a ring.
    recent: [Instant; MAX_PER_TICK],
    attempts: usize,
}

/// Whether to register anew before waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renew {
    Yes,
    No,
}

impl Parked {
    /// After the first refusal.
    pub(crate) fn new(class: Class, now: Instant, recovery: Option<Duration>, random: u32) -> Self {
        let mut parked = Self {
            since: now,
            blocked_since: now,
            class,
            at: now,
            listening: false,
            stale: true,
            yielding: false,
            backstop: FIRST_BACKSTOP,
            renewed: now,
            silent_attempts: 0,
            recent: [now; MAX_PER_TICK],
            attempts: 1,
        };
        match class {
            Class::Advised => parked.listen(now),
            Class::Silent => parked.wait_silently(now, recovery, random),
        }
        parked
    }

    /// After another refusal.
    pub(crate) fn refused(
        &mut self,
        class: Class,
        by: By,
        now: Instant,
        recovery: Option<Duration>,
        random: u32,
    ) -> Renew {
        if let Some(place) = self.recent.get_mut(self.attempts % MAX_PER_TICK) {
            *place = now;
        }
        self.attempts += 1;
        if class != self.class {
            self.class = class;
            self.backstop = FIRST_BACKSTOP;
            self.silent_attempts = 0;
            if class == Class::Advised {
                self.listen(now);
                self.renewed = now;
                return Renew::Yes;
            }
        }
        match (class, by) {
            (Class::Silent, By::Call) => Renew::No,
            (Class::Silent, By::Readiness | By::Timer) => {
                self.wait_silently(now, recovery, random);
                Renew::No
            }
            (Class::Advised, By::Call) => Renew::No,
            (Class::Advised, By::Readiness) if std::mem::take(&mut self.stale) => Renew::No,
            (Class::Advised, By::Readiness) if now - self.renewed < self.backstop => {
                self.listening = false;
                Renew::No
            }
            (Class::Advised, By::Readiness) => {
                self.renewed = now;
                Renew::Yes
            }
            (Class::Advised, By::Timer) => {
                self.backstop = (self.backstop * 2).min(LAST_BACKSTOP);
                self.renewed = now;
                self.listen(now);
                Renew::Yes
            }
        }
    }

    /// There was room for a part: the queue empties, and there will be more soon.
    pub(crate) fn made_progress(&mut self, now: Instant) {
        self.blocked_since = now;
        self.backstop = FIRST_BACKSTOP;
        self.silent_attempts = self.silent_attempts.min(YIELDS);
    }

    /// Whether an attempt that no timer asked for is not one too many.
    pub(crate) fn may_attempt(&self, now: Instant) -> bool {
        self.attempts < MAX_PER_TICK || self.recent.iter().any(|&at| now - at >= TICK)
    }

    fn listen(&mut self, now: Instant) {
        self.listening = true;
        self.yielding = false;
        self.at = now + self.backstop;
    }

    fn wait_silently(&mut self, now: Instant, recovery: Option<Duration>, random: u32) {
        self.listening = false;
        self.yielding = self.silent_attempts < YIELDS;
        if !self.yielding {
            let doublings = (self.silent_attempts - YIELDS).min(DOUBLINGS);
            let wait = TICK * 2u32.pow(doublings);
            // A link that recovers fast must not be left idle for long.
            let wait = recovery.map_or(wait, |recovery| wait.min(recovery / 2)).max(TICK);
            // Up to an eighth more or less, so that senders do not move in step.
            let jitter = wait / 4 * (random % 256) / 256;
            self.at = now + wait - wait / 8 + jitter;
        }
        self.silent_attempts += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = TICK;

    #[test]
    fn an_advised_wait_listens_and_its_timer_grows() {
        let now = Instant::now();
        let mut p = Parked::new(Class::Advised, now, None, 0);
        assert!(p.listening && p.at == now + 25 * MS);
        let mut at = p.at;
        for next in [50, 100, 100] {
            assert_eq!(p.refused(Class::Advised, By::Timer, at, None, 0), Renew::Yes);
            assert_eq!((p.at, p.listening), (at + next * MS, true));
            at = p.at;
        }
    }

    #[test]
    fn a_worthless_wake_registers_anew_once_per_interval_and_then_the_timer_counts() {
        let now = Instant::now();
        let mut p = Parked::new(Class::Advised, now, None, 0);
        assert_eq!(p.refused(Class::Advised, By::Readiness, now, None, 0), Renew::No);
        assert!(p.listening && p.at == now + 25 * MS, "that was an edge from before");
        assert_eq!(p.refused(Class::Advised, By::Readiness, now + MS, None, 0), Renew::No);
        assert!(!p.listening && p.at == now + 25 * MS);
        assert_eq!(p.refused(Class::Advised, By::Timer, now + 25 * MS, None, 0), Renew::Yes);
        assert!(p.listening);
        assert_eq!(p.refused(Class::Advised, By::Readiness, now + 26 * MS, None, 0), Renew::No);
        assert_eq!(p.at, now + 75 * MS, "the timer stays");
        let mut late = Parked::new(Class::Advised, now, None, 0);
        assert_eq!(late.refused(Class::Advised, By::Readiness, now, None, 0), Renew::No);
        assert_eq!(late.refused(Class::Advised, By::Readiness, now + 25 * MS, None, 0), Renew::Yes);
        assert!(late.listening);
    }

    #[test]
    fn a_silent_wait_yields_twice_and_then_doubles_up_to_eight_milliseconds() {
        let now = Instant::now();
        let mut p = Parked::new(Class::Silent, now, None, 128);
        assert!(p.yielding && !p.listening);
        p.refused(Class::Silent, By::Timer, now, None, 128);
        assert!(p.yielding);
        for wait in [1, 2, 4, 8, 8] {
            p.refused(Class::Silent, By::Timer, now, None, 128);
            assert!(!p.yielding && !p.listening);
            assert_eq!(p.at - now, wait * MS);
        }
        for random in [0, 255] {
            p.refused(Class::Silent, By::Timer, now, None, random);
            assert!((7 * MS..=9 * MS).contains(&(p.at - now)));
        }
        p.refused(Class::Silent, By::Timer, now, Some(6 * MS), 128);
        assert_eq!(p.at - now, 3 * MS, "half of the recovery");
        p.refused(Class::Silent, By::Timer, now, Some(MS / 10), 128);
        assert_eq!(p.at - now, MS);
    }

    #[test]
    fn the_class_may_change() {
        let now = Instant::now();
        let mut p = Parked::new(Class::Silent, now, None, 0);
        assert_eq!(p.refused(Class::Advised, By::Timer, now, None, 0), Renew::Yes);
        assert!(p.listening && !p.yielding && p.at == now + 25 * MS);
        assert_eq!(p.refused(Class::Silent, By::Readiness, now + MS, None, 0), Renew::No);
        assert!(!p.listening && p.yielding);
    }

    #[test]
    fn calls_are_not_followed_without_end() {
        let now = Instant::now();
        let mut p = Parked::new(Class::Silent, now, None, 0);
        let mut attempts = 0;
        while p.may_attempt(now) {
            p.refused(Class::Silent, By::Call, now, None, 0);
            attempts += 1;
        }
        assert_eq!(attempts, MAX_PER_TICK - 1);
        assert!(p.may_attempt(now + MS));
    }
}
