//! The send loop: the same code in production and in the tests' model of reactors and kernels.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    io::Io,
    stats::{DropReason, SendReport},
    transmit::{Hold, Transmit},
    wait::backoff::Class,
};

mod attempt;
mod queue;
mod room;
mod sender;
mod timer;
mod wait;

pub(crate) use queue::QueueCore;
pub(crate) use sender::SenderCore;

use attempt::{Budget, attempt_one, drop_rest, pass};
use wait::{Wait, clear_blocked, look_for_edge, see_whether_stuck};

/// What a sender and a queue have in common: how they wait.
pub(crate) struct Core<I: Io> {
    io: I,
    /// Names it among those who wait and in what it holds; 0 until it has to.
    id: u32,
    /// Counts what it has held: the transmits of one call have the same number.
    generation: u32,
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
        Self { io, id: 0, generation: 0, wait: None }
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
        let sent = t.cursor.report.sent;
        let ended = attempt_one(&self.io, self.id, t, failed, &mut Budget::unlimited());
        if t.cursor.report.sent > sent {
            self.made_progress();
        }
        ended
    }

    fn is_parked(&self) -> bool {
        self.wait.as_ref().is_some_and(|wait| wait.parked.is_some())
    }

    fn name(&mut self) {
        while self.id == 0 {
            self.id = NEXT_ID.fetch_add(1, Relaxed);
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
        self.unpark();
    }
}

/// Offers `t` to the system for no sender: nothing is held.
pub(crate) fn try_send<I: Io>(io: &I, t: &mut Transmit<'_>) -> io::Result<SendReport> {
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
fn result_of<I: Io>(io: &I, ended: Attempt, t: &mut Transmit<'_>) -> io::Result<SendReport> {
    match ended {
        Attempt::Done => Ok(t.cursor.report),
        Attempt::Refused(_) | Attempt::Crowded | Attempt::Paused => Err(io::ErrorKind::WouldBlock.into()),
        Attempt::Fatal(e) => {
            drop_rest(io, std::slice::from_mut(t), DropReason::Socket);
            Err(e)
        }
    }
}

#[cfg(all(test, unix))]
mod model;
