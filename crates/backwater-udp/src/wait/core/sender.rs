//! A sender: it holds the transmits of one call, which stay their owner's.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Attempt, Core, Left, Load,
    attempt::{Budget, attempt, drop_rest, pass},
    result_of,
};
use crate::{
    Policy,
    io::Io,
    stats::{DropReason, SendReport},
    transmit::{Hold, Transmit},
    wait::backoff::Class,
};

pub(crate) struct SenderCore<I: Io> {
    pub(super) core: Core<I>,
    /// The last turn of another sender that it has yielded to.
    yielded_to: u64,
    /// Datagrams accepted from transmits that are not done.
    pub(super) held: usize,
}

impl<I: Io> SenderCore<I> {
    pub(crate) fn new(io: I) -> Self {
        Self { core: Core::new(io), yielded_to: 0, held: 0 }
    }

    pub(crate) fn core(&self) -> &Core<I> {
        &self.core
    }

    pub(crate) fn poll_send_batch(
        &mut self,
        cx: &mut Context<'_>,
        ts: &mut [Transmit<'_>],
    ) -> Poll<io::Result<SendReport>> {
        let mut failed = None;
        if self.held == 0 && self.core.wait.is_none() && self.core.io.contention().is_nobodys_turn() {
            match pass(&self.core.io, self.core.id, ts) {
                Ok(Some(sent)) => return Poll::Ready(Ok(SendReport { sent, ..SendReport::default() })),
                Ok(None) => {}
                Err(known) => failed = Some(known),
            }
        }
        self.accept(ts);
        if self.held == 0 {
            return Poll::Ready(Ok(total(ts)));
        }
        if !self.core.is_parked() {
            if failed.is_none() && self.yields(ts) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let before = sent(ts);
            let ended = attempt(&self.core.io, self.core.id, ts, failed, Budget::of_a_poll());
            if sent(ts) > before {
                self.core.made_progress();
            }
            match ended {
                Attempt::Refused(_) if self.core.io.backpressure().get() == Policy::Drop => {
                    drop_rest(&self.core.io, ts, DropReason::NoBuffers);
                    self.core.was_blocked();
                    return Poll::Ready(self.finish(ts, Attempt::Done));
                }
                Attempt::Crowded => self.core.park(sent(ts) > 0, Class::Silent, None, true),
                Attempt::Refused(class) => self.core.park(sent(ts) > 0, class, ts.path(), false),
                Attempt::Paused => return self.pause(cx, ts),
                ended @ (Attempt::Done | Attempt::Fatal(_)) => return Poll::Ready(self.finish(ts, ended)),
            }
        }
        let Some(mut wait) = self.core.wait.take() else { return Poll::Pending };
        let ended = self.core.poll_parked(cx, &mut wait, ts);
        self.core.wait = Some(wait);
        match ended {
            Poll::Ready(ended) => {
                self.core.unpark();
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

    pub(crate) fn try_send(&mut self, t: &mut Transmit<'_>) -> io::Result<SendReport> {
        if !self.holds(t) {
            t.cursor.hold = Hold::default();
        }
        let (before, sent) = (t.remaining(), t.cursor.report.sent);
        let ended = self.core.offer(t);
        if t.is_accepted() {
            self.held = self.held.saturating_sub(before - t.remaining());
        }
        if matches!(ended, Attempt::Fatal(_)) && t.is_accepted() {
            // It is dropped.
            self.held = self.held.saturating_sub(t.remaining());
        }
        self.tried(&ended, t, t.cursor.report.sent > sent);
        result_of(&self.core.io, ended, t)
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

    /// Whether it holds `t`, rather than another sender, or none any more.
    fn holds(&self, t: &Transmit<'_>) -> bool {
        self.held > 0 && t.cursor.hold == Hold { sender: self.core.id, generation: self.core.generation }
    }

    /// Holds `ts` instead of what it has held until now: what of that is not among them is given up.
    fn accept(&mut self, ts: &mut [Transmit<'_>]) {
        let kept: usize = ts.iter().filter(|t| self.holds(t)).map(Transmit::remaining).sum();
        let all = remaining(ts);
        if kept == 0 {
            self.cancel();
        } else if kept < self.held {
            self.core.io.stats().dropped(DropReason::Cancelled, self.held - kept);
        }
        if all != kept || all != self.held {
            // A copy of a cursor may have been offered along with it.
            self.core.io.stats().accept(all - kept.min(self.held));
            self.core.name();
            self.core.generation = self.core.generation.wrapping_add(1);
            let hold = Hold { sender: self.core.id, generation: self.core.generation };
            for t in ts.iter_mut().filter(|t| !t.is_done()) {
                t.cursor.hold = hold;
            }
        }
        self.held = all;
    }

    /// Lets a sender go first that has waited for the same, or may have, and was called; but once each time.
    fn yields(&mut self, ts: &[Transmit<'_>]) -> bool {
        let contention = self.core.io.contention();
        let Some(path) = ts.iter().find(|t| !t.is_done()).map(Transmit::path) else { return false };
        let Some(turn) = contention.turn_of_another(self.core.id, path, self.yielded_to) else { return false };
        self.yielded_to = turn;
        true
    }

    /// The rest goes on when others have run.
    fn pause(&mut self, cx: &mut Context<'_>, ts: &[Transmit<'_>]) -> Poll<io::Result<SendReport>> {
        self.held = remaining(ts);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Counts what is held as given up.
    fn cancel(&mut self) {
        self.cancel_held();
        self.core.unpark();
    }

    pub(super) fn cancel_held(&mut self) {
        if self.held > 0 {
            self.core.io.stats().dropped(DropReason::Cancelled, self.held);
            self.held = 0;
            self.core.unpark();
        }
    }

    fn finish(&mut self, ts: &mut [Transmit<'_>], ended: Attempt) -> io::Result<SendReport> {
        self.held = 0;
        self.core.look_after();
        match ended {
            Attempt::Fatal(e) => {
                drop_rest(&self.core.io, ts, DropReason::Socket);
                Err(e)
            }
            Attempt::Done | Attempt::Refused(_) | Attempt::Crowded | Attempt::Paused => Ok(total(ts)),
        }
    }
}

impl<I: Io> Drop for SenderCore<I> {
    fn drop(&mut self) {
        self.cancel();
    }
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

/// What has become of all of them.
fn total(ts: &[Transmit<'_>]) -> SendReport {
    if let [t] = ts {
        return t.cursor.report;
    }
    let mut total = SendReport::default();
    for t in ts {
        total.sent += t.cursor.report.sent;
        for reason in DropReason::ALL {
            total.dropped.add(reason, t.cursor.report.dropped.get(reason));
        }
    }
    total
}

/// Datagrams that are neither sent nor dropped.
pub(super) fn remaining(ts: &[Transmit<'_>]) -> usize {
    ts.iter().map(Transmit::remaining).sum()
}

/// Datagrams that the system has taken.
fn sent(ts: &[Transmit<'_>]) -> u64 {
    ts.iter().map(|t| u64::from(t.cursor.report.sent)).sum()
}

impl<I: Io> fmt::Debug for SenderCore<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parked = self.core.wait.as_ref().and_then(|wait| wait.parked.as_ref());
        f.debug_struct("Sender").field("held", &self.held).field("parked", &parked).finish_non_exhaustive()
    }
}
