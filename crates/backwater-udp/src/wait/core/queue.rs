//! What waits on one socket, each key in a line of its own: a path that is refused holds up no other.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll, Waker},
};

use tokio::time::Instant;

use super::{Attempt, Class, Core, Load, attempt::drop_rest};
use crate::{
    Policy,
    io::Io,
    send_queue::Bounds,
    stats::{DropReason, Report},
    transmit::{Hold, OwnedTransmit, Transmit},
};

mod lines;
mod promotion;
mod sides;

use lines::Done;
use lines::{LEAST, Line, Lines, Serving};
use promotion::Promotion;
use sides::Sides;

/// Bytes that are sent between two looks at how full the send buffer is. A transmit counts [`LEAST_SEEN`] at least.
const LOOK: usize = 256 << 10;
const LEAST_SEEN: usize = 2 << 10;

pub(crate) struct QueueCore<I: Io, K: Copy + Ord> {
    core: Core<I>,
    bounds: Bounds,
    lines: Option<Box<Lines<K>>>,
    /// Of the task that empties the queue.
    waker: Option<Waker>,
    sides: Option<Box<Sides<I, K>>>,
    /// Where busy keys get connected sockets.
    promotion: Option<Box<Promotion<K>>>,
    /// Bytes that were sent since the last look at the send buffer.
    unseen: usize,
    is_side: bool,
}

impl<I: Io, K: Copy + Ord> QueueCore<I, K> {
    pub(crate) fn new(io: I, bounds: Bounds) -> Self {
        let promotes = io.promotes() && !io.is_connected() && bounds.send_only_sockets > 0;
        let promotion = promotes.then(|| Box::new(Promotion::new()));
        Self {
            core: Core::new(io),
            bounds,
            lines: None,
            waker: None,
            sides: None,
            promotion,
            unseen: 0,
            is_side: false,
        }
    }

    pub(crate) fn core(&self) -> &Core<I> {
        &self.core
    }

    pub(crate) fn held(&self) -> usize {
        let held = self.lines.as_ref().map_or(0, |lines| lines.datagrams);
        held + self.sides.as_ref().map_or(0, |sides| sides.held())
    }

    pub(crate) fn held_bytes(&self, key: K) -> usize {
        let bytes = self.lines.as_ref().map_or(0, |lines| lines.bytes_of(key));
        bytes + self.sides.as_ref().map_or(0, |sides| sides.held_bytes(key))
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
            if let Ok(report) = side.send(key, t) {
                return Ok(self.look_at_destination(key, t, report));
            }
            self.close_side(Some(key));
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
        if let Some(of_side) = self.side(side, t) {
            if let Ok(report) = of_side.send_or_drop(key, t) {
                return Ok(self.look_at_destination(key, t, report));
            }
            self.close_side(side);
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
        if self.promotion.is_some() {
            return self.connected_side(key?, t);
        }
        if !self.has_side(key) {
            self.unseen += t.cursor.bytes_left.max(LEAST_SEEN);
            if self.unseen < LOOK || !self.is_crowded() || self.open_side(key).is_none() {
                return None;
            }
        }
        self.of_side(key, t)
    }

    fn has_side(&mut self, key: Option<K>) -> bool {
        self.close_sides_of_earlier_socket();
        self.sides.as_ref().is_some_and(|sides| sides.has(key))
    }

    /// The sides send from the port of a socket that another one has replaced.
    #[inline]
    fn close_sides_of_earlier_socket(&mut self) {
        if let Some(sides) = &self.sides
            && sides.replaced != self.core.io.contention().replaced()
        {
            self.close_sides();
        }
    }

    /// What waits on them goes on here.
    #[cold]
    fn close_sides(&mut self) {
        let Some(mut sides) = self.sides.take() else { return };
        for (key, line) in sides.take_lines() {
            self.adopt(key, line);
        }
    }

    /// What waits on it goes on here. If it has failed, that says nothing about the socket that all keys share.
    #[cold]
    fn close_side(&mut self, key: Option<K>) {
        if let Some((key, line)) = self.sides.as_mut().and_then(|sides| sides.close(key)) {
            self.adopt(key, line);
        }
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
        if self.is_side || self.promotion.is_some() || self.bounds.send_only_sockets == 0 {
            return None;
        }
        let most = self.bounds.send_only_sockets;
        let replaced = self.core.io.contention().replaced();
        let side = self.sides.get_or_insert_with(|| Box::new(Sides::new(replaced))).open(&self.core.io, key, most)?;
        side.waker.clone_from(&self.waker);
        side.bounds = Bounds { of_all: self.bounds.of_a_key, ..self.bounds };
        if let Some(key) = key
            && let Some(lines) = &mut self.lines
            && let Some(mut line) = lines.take(key)
        {
            for transmit in line.transmits() {
                transmit.header = self.core.io.header_for_a_side(transmit.header);
            }
            side.adopt(key, line);
            if lines.datagrams == 0 {
                lines.clear();
                self.core.unpark();
            }
        }
        Some(())
    }

    /// The connected socket of a key, if this transmit goes its way. A busy key gets one.
    #[inline(never)]
    fn connected_side(&mut self, key: K, t: &mut Transmit<'_>) -> Option<&mut Self> {
        if self.has_side(Some(key)) {
            if self.sides.as_ref()?.path(key) != Some(t.path()) {
                return None;
            }
        } else {
            let is_busy = self.promotion.as_mut()?.is_busy(key, t.path(), t.remaining(), Instant::now());
            // What waits here would be overtaken.
            if !is_busy || self.held_bytes(key) > 0 {
                return None;
            }
            self.connect_side(key, t.path())?;
        }
        self.of_side(Some(key), t)
    }

    #[cold]
    fn connect_side(&mut self, key: K, path: promotion::Path) -> Option<()> {
        let most = self.bounds.send_only_sockets;
        let replaced = self.core.io.contention().replaced();
        let sides = self.sides.get_or_insert_with(|| Box::new(Sides::new(replaced)));
        let side = sides.connect(&self.core.io, key, path, most)?;
        side.waker.clone_from(&self.waker);
        side.bounds = Bounds { of_all: self.bounds.of_a_key, ..self.bounds };
        self.promotion.as_mut()?.promoted(key);
        // It looks for idle ones from now on.
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
        Some(())
    }

    /// Returns what came of a send on a socket of the key's own. If it is a connected one, and the destination has failed, the key goes on
    /// without.
    #[inline]
    fn look_at_destination(&mut self, key: K, t: &Transmit<'_>, report: Report) -> Report {
        const FAILURES: [DropReason; 3] = [DropReason::Unreachable, DropReason::Invalid, DropReason::Other];
        if let Some(promotion) = &mut self.promotion
            && FAILURES.iter().any(|reason| report.dropped.get(*reason) > 0)
        {
            promotion.demoted(key, t.path(), Instant::now());
            self.close_side(Some(key));
        }
        report
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
        if line.is_empty() {
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
            if is_full || lines.has(key) {
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
            Attempt::Fatal(e) => {
                if !self.is_side {
                    drop_rest(&self.core.io, std::slice::from_mut(t), DropReason::Socket);
                }
                Err(e)
            }
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
        self.core.name();
        self.core.io.stats().accept(t.remaining());
        t.cursor.hold = Hold { sender: self.core.id, generation: 0 };
        lines.push(key, OwnedTransmit::from(&*t), Instant::now());
        t.let_go();
        if self.core.is_parked() {
            self.core.refused(class);
        } else {
            self.core.park(t.cursor.report.sent > 0, class, None, false);
            if let Some(waker) = &self.waker {
                waker.wake_by_ref();
            }
        }
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>, done: Done<'_, K>) -> Poll<io::Result<()>> {
        self.close_sides_of_earlier_socket();
        let flushed = self.poll_lines(cx, done);
        let Some(sides) = &mut self.sides else { return flushed };
        let mut failed = Vec::new();
        let of_sides = sides.poll(cx, done, &mut failed);
        let is_pending = of_sides.is_pending() || !failed.is_empty();
        for (key, line) in failed {
            self.adopt(key, line);
        }
        if is_pending && matches!(flushed, Poll::Ready(Ok(()))) { Poll::Pending } else { flushed }
    }

    fn poll_lines(&mut self, cx: &mut Context<'_>, done: Done<'_, K>) -> Poll<io::Result<()>> {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            waker @ None => *waker = Some(cx.waker().clone()),
        }
        let Some(lines) = &mut self.lines else { return Poll::Ready(Ok(())) };
        if lines.datagrams == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut serving = Serving { lines, done };
        let ended = match self.core.wait.take() {
            Some(mut wait) if wait.parked.is_some() => {
                let ended = self.core.poll_parked(cx, &mut wait, &mut serving);
                self.core.wait = Some(wait);
                ended
            }
            wait => {
                self.core.wait = wait;
                Poll::Ready(serving.attempt(&self.core.io, self.core.id))
            }
        };
        let Poll::Ready(ended) = ended else { return Poll::Pending };
        self.core.unpark();
        match ended {
            Attempt::Paused => {
                if let Policy::Wait { deadline } = self.core.io.backpressure().get()
                    && let Some(since) = Instant::now().checked_sub(deadline)
                {
                    serving.drop_old(&self.core.io, since, DropReason::Deadline);
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
                serving.lines.clear();
                self.core.look_after();
                Poll::Ready(Ok(()))
            }
            Attempt::Fatal(e) => {
                if !self.is_side {
                    serving.drop_all(&self.core.io, DropReason::Socket);
                }
                Poll::Ready(Err(e))
            }
        }
    }

    pub(crate) fn redirect(&mut self, key: K, destination: SocketAddr, source: Option<IpAddr>) {
        if self.promotion.is_some() {
            // It is connected to the former destination.
            self.close_side(Some(key));
        } else if let Some(sides) = &mut self.sides {
            sides.redirect(key, destination, source);
        }
        if let Some(lines) = &mut self.lines {
            lines.redirect(key, destination, source);
        }
    }

    /// What waits under this key is given up.
    pub(crate) fn cancel(&mut self, key: K) {
        if let Some(sides) = &mut self.sides {
            sides.cancel(key);
        }
        let Some(lines) = &mut self.lines else { return };
        let datagrams = lines.cancel(key);
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

#[cfg(test)]
mod tests;
