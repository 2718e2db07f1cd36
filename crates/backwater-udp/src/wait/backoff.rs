//! A sender that waits, and when what it waits for is tried again. No I/O, and the time is an argument.
//!
//! *Advised*: the system has promised to say when there is room. Listen, with a timer behind it that grows. The first wake-up
//! that ends in a refusal is about an edge from before the wait, which sends that succeeded did not clear: that refusal did. Another
//! one means that the promise was worthless or that a closed bit is latched: register anew, once per interval, and otherwise
//! leave it to the timer. A timer that fires while the socket is still blocked may mean a lost
//! edge: register anew.
//!
//! *Silent*: nothing was promised, and readiness is always true. Yield twice, then wait 1 ms, eight times 2, twice 4, and 8 ms.

use std::time::Duration;

use tokio::time::Instant;

use super::fairness::{Bottleneck, Place};

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

/// Whether to register anew before waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renew {
    Yes,
    No,
}

/// The first backstop of an advised wait, and the longest.
pub(crate) const FIRST_BACKSTOP: Duration = Duration::from_millis(25);
pub(crate) const LAST_BACKSTOP: Duration = Duration::from_millis(100);

const BACKSTOP_DOUBLINGS: u32 = 2;

/// The least of tokio's timers.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// Attempts that follow at once in a silent wait: a shortage of buffers mostly clears within them.
const YIELDS: u32 = 2;

/// Then so many of 2 ms follow the first, of 1 ms: what is over within 17 ms is soon noticed.
const SHORT_WAITS: u32 = 8;

/// When a bottleneck is tried again: by one of those who wait for it, for all of them.
#[derive(Debug)]
pub(crate) struct Backoff {
    class: Class,
    /// When to try without being called.
    pub(crate) at: Instant,
    /// Whether the next attempt follows at once.
    pub(crate) yielding: bool,
    attempts: u32,
    /// When there was room last, or when it was first refused.
    blocked_since: Instant,
    /// Whether it was refused since there was room.
    refused: bool,
    /// How long it took until there was room, smoothed.
    pub(crate) recovery: Option<Duration>,
}

/// What else a back-off depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// The least time between two attempts: a socket may have many bottlenecks.
    pub(crate) spacing: Duration,
    /// The most, if less than the back-off's.
    pub(crate) longest: Option<Duration>,
    pub(crate) random: u32,
}

impl Backoff {
    /// After the first refusal.
    pub(crate) fn new(class: Class, now: Instant, recovery: Option<Duration>, pace: Pace) -> Self {
        let mut backoff = Self {
            class,
            at: now + FIRST_BACKSTOP,
            yielding: false,
            attempts: 0,
            blocked_since: now,
            refused: true,
            recovery,
        };
        if class == Class::Silent {
            backoff.wait_silently(now, pace);
        }
        backoff
    }

    /// After another refusal of the sender that tries for all.
    pub(crate) fn refused(&mut self, by: By, now: Instant, pace: Pace) {
        // The first refusal after there was room is no reason to wait longer.
        let first = !std::mem::replace(&mut self.refused, true);
        match self.class {
            Class::Silent => {
                self.attempts += u32::from(!first && by != By::Call);
                self.wait_silently(now, pace);
            }
            Class::Advised if first || by == By::Timer => {
                self.attempts += u32::from(by == By::Timer);
                self.at = now + FIRST_BACKSTOP * 2u32.pow(self.attempts.min(BACKSTOP_DOUBLINGS));
            }
            // The timer stays.
            Class::Advised => {}
        }
    }

    /// There was room: what is full empties, and there will be more soon.
    pub(crate) fn found_room(&mut self, now: Instant) {
        if std::mem::take(&mut self.refused) {
            let after = now - self.blocked_since;
            self.recovery = Some(self.recovery.map_or(after, |known| (known * 7 + after) / 8));
        }
        self.blocked_since = now;
        let (attempts, soon) = match self.class {
            Class::Advised => (0, FIRST_BACKSTOP),
            Class::Silent => (self.attempts.min(YIELDS), TICK),
        };
        self.attempts = attempts;
        // Never later: others look whether the one that tries does so when it is due.
        self.at = self.at.min(now + soon);
    }

    /// Whether it has waited for 17 ms (advised: 175), and longer than lately: it may be that one sender's datagrams alone find no room.
    pub(crate) fn is_long(&self, now: Instant) -> bool {
        let most = if self.class == Class::Advised { BACKSTOP_DOUBLINGS } else { YIELDS + SHORT_WAITS };
        let lately = self.recovery.map_or(Duration::ZERO, |recovery| (2 * recovery).min(LAST_BACKSTOP));
        self.attempts > most && now - self.blocked_since >= lately
    }

    /// Whether there was room a moment ago.
    pub(crate) fn had_room(&self, now: Instant) -> bool {
        now - self.blocked_since < 4 * TICK
    }

    fn wait_silently(&mut self, now: Instant, pace: Pace) {
        self.yielding = self.attempts < YIELDS && pace.spacing <= TICK;
        self.at = now;
        if !self.yielding {
            let wait = match self.attempts.saturating_sub(YIELDS) {
                0 => TICK,
                1..=SHORT_WAITS => 2 * TICK,
                9..=10 => 4 * TICK,
                _ => 8 * TICK,
            };
            // A link that recovers fast must not be left idle for long.
            let wait = self.recovery.map_or(wait, |recovery| wait.min(recovery / 2));
            let wait = pace.longest.map_or(wait, |longest| wait.min(longest)).max(TICK).max(pace.spacing);
            // Up to an eighth more or less, so that senders do not move in step.
            let jitter = wait / 4 * (pace.random % 256) / 256;
            self.at += wait - wait / 8 + jitter;
        }
    }
}

#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) since: Instant,
    /// Since when there was no room for anything of it.
    pub(crate) blocked_since: Instant,
    pub(crate) class: Class,
    pub(crate) bottleneck: Bottleneck,
    /// Whether readiness counts.
    pub(crate) listening: bool,
    /// Whether readiness may be from before the wait.
    stale: bool,
    /// Whether it tries for all that wait for the same.
    probes: bool,
    renewed: Instant,
}

impl Parked {
    /// After the first refusal.
    pub(crate) fn new(class: Class, bottleneck: Bottleneck, now: Instant) -> Self {
        Self {
            since: now,
            blocked_since: now,
            class,
            bottleneck,
            listening: false,
            stale: true,
            probes: false,
            renewed: now,
        }
    }

    /// Whether it tries for all that wait for the same may have changed.
    pub(crate) fn placed(&mut self, place: &Place, now: Instant) {
        if place.probes && !self.probes {
            self.renewed = now;
            self.stale = true;
        }
        if place.probes != self.probes {
            self.listening = place.probes && self.class == Class::Advised;
        }
        self.probes = place.probes;
    }

    /// There was room for a part. What readiness there is may be from before, and the next event is worth as much as the first.
    pub(crate) fn found_room(&mut self, now: Instant) {
        self.blocked_since = now;
        self.stale = true;
        self.listening = self.probes && self.class == Class::Advised;
    }

    /// After another refusal.
    pub(crate) fn refused(&mut self, class: Class, bottleneck: Bottleneck, by: By, now: Instant) -> Renew {
        self.bottleneck = bottleneck;
        if class != self.class {
            self.class = class;
            self.listening = class == Class::Advised;
            self.renewed = now;
            return if self.listening { Renew::Yes } else { Renew::No };
        }
        match (class, by) {
            (Class::Silent, _) | (Class::Advised, By::Call) => Renew::No,
            (Class::Advised, By::Readiness) if std::mem::take(&mut self.stale) => Renew::No,
            (Class::Advised, By::Readiness) if now - self.renewed < FIRST_BACKSTOP => {
                self.listening = false;
                Renew::No
            }
            (Class::Advised, By::Readiness) => {
                self.renewed = now;
                Renew::Yes
            }
            (Class::Advised, By::Timer) => {
                self.renewed = now;
                self.listening = true;
                Renew::Yes
            }
        }
    }
}

#[cfg(test)]
mod tests;
