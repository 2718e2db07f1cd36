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
    send_queue::QueueBounds,
    stats::{DropReason, SendReport},
    transmit::{Hold, OwnedTransmit, Transmit},
};

mod lines;
mod promotion;
mod sides;

use lines::{Done, LEAST, Line, Lines, Serving};
use promotion::Promotion;
use sides::Sides;

/// Bytes that are sent between two looks at how full the send buffer is. A transmit counts [`LEAST_SEEN`] at least.
const LOOK: u32 = 256 << 10;
const LEAST_SEEN: usize = 2 << 10;

/// There is one for each relayed socket of a relay: what is idle takes 64 bytes.
pub(crate) struct QueueCore<I: Io, K: Copy + Ord> {
    core: Core<I>,
    /// Of the task that empties the queue.
    waker: Option<Waker>,
    busy: Option<Box<Busy<I, K>>>,
    bounds: Limits,
    /// Bytes that were sent since the last look at the send buffer.
    unseen: u32,
}

/// What there is only while something waits, or a key may have a socket of its own.
struct Busy<I: Io, K: Copy + Ord> {
    lines: Lines<K>,
    sides: Option<Sides<I, K>>,
    /// Where busy keys get connected sockets, as long as there is the queue.
    promotion: Option<Promotion<K>>,
}

/// [`QueueBounds`] in less space: 4 GiB are the most.
#[derive(Clone, Copy)]
struct Limits {
    of_a_key: u32,
    of_all: u32,
    sides: u8,
    is_side: bool,
}

impl From<QueueBounds> for Limits {
    fn from(bounds: QueueBounds) -> Self {
        let bytes = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self {
            of_a_key: bytes(bounds.of_a_key),
            of_all: bytes(bounds.of_all),
            sides: bounds.dedicated_sockets.min(sides::MOST) as u8,
            is_side: false,
        }
    }
}

impl Limits {
    fn of_a_side(self) -> Self {
        Self { of_all: self.of_a_key, sides: 0, is_side: true, ..self }
    }
}

impl<I: Io, K: Copy + Ord> QueueCore<I, K> {
    pub(crate) fn new(io: I, bounds: QueueBounds) -> Self {
        let promotes = io.promotes() && !io.is_connected() && bounds.dedicated_sockets > 0;
        let mut queue = Self { core: Core::new(io), waker: None, busy: None, bounds: bounds.into(), unseen: 0 };
        if promotes {
            queue.busy().promotion = Some(Promotion::new());
        }
        queue
    }

    pub(crate) fn core(&self) -> &Core<I> {
        &self.core
    }

    pub(crate) fn held(&self) -> usize {
        let held = self.lines().map_or(0, |lines| lines.datagrams);
        held + self.sides().map_or(0, Sides::held)
    }

    pub(crate) fn held_bytes(&self, key: K) -> usize {
        let bytes = self.lines().map_or(0, |lines| lines.bytes_of(key));
        bytes + self.sides().map_or(0, |sides| sides.held_bytes(key))
    }

    /// Bytes that wait.
    fn bytes(&self) -> usize {
        let bytes = self.lines().map_or(0, |lines| lines.bytes);
        bytes + self.sides().map_or(0, Sides::bytes)
    }

    fn lines(&self) -> Option<&Lines<K>> {
        self.busy.as_ref().map(|busy| &busy.lines)
    }

    fn sides(&self) -> Option<&Sides<I, K>> {
        self.busy.as_ref()?.sides.as_ref()
    }

    fn promotion(&mut self) -> Option<&mut Promotion<K>> {
        self.busy.as_mut()?.promotion.as_mut()
    }

    fn promotes(&self) -> bool {
        self.busy.as_ref().is_some_and(|busy| busy.promotion.is_some())
    }

    fn busy(&mut self) -> &mut Busy<I, K> {
        let new = || Busy { lines: Lines::new(self.bounds.is_side), sides: None, promotion: None };
        self.busy.get_or_insert_with(|| Box::new(new()))
    }

    /// Inlined into its callers, with what it calls: the system call leaves nothing of what predicts a return.
    #[inline]
    pub(crate) fn send(&mut self, key: K, t: &mut Transmit<'_>) -> io::Result<SendReport> {
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
    fn keep(&mut self, key: K, t: &mut Transmit<'_>, class: Class) -> io::Result<SendReport> {
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

    pub(crate) fn send_or_drop(&mut self, key: K, t: &mut Transmit<'_>) -> io::Result<SendReport> {
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
        if self.promotes() {
            return self.connected_side(key?, t);
        }
        if !self.has_side(key) {
            self.unseen += t.cursor.bytes_left.clamp(LEAST_SEEN, LOOK as usize) as u32;
            if self.unseen < LOOK || !self.is_crowded() || self.open_side(key).is_none() {
                return None;
            }
        }
        self.of_side(key, t)
    }

    fn has_side(&mut self, key: Option<K>) -> bool {
        self.close_sides_of_earlier_socket();
        self.sides().is_some_and(|sides| sides.has(key))
    }

    /// The sides send from the port of a socket that another one has replaced.
    #[inline]
    fn close_sides_of_earlier_socket(&mut self) {
        if let Some(sides) = self.sides()
            && sides.replaced != self.core.io.contention().replaced()
        {
            self.close_sides();
        }
    }

    /// What waits on them goes on here.
    #[cold]
    fn close_sides(&mut self) {
        let Some(mut sides) = self.busy.as_mut().and_then(|busy| busy.sides.take()) else { return };
        for (key, line) in sides.take_lines() {
            self.adopt(key, line);
        }
    }

    /// What waits on it goes on here. If it has failed, that says nothing about the socket that all keys share.
    #[cold]
    fn close_side(&mut self, key: Option<K>) {
        if let Some((key, line)) = self.busy.as_mut().and_then(|busy| busy.sides.as_mut()?.close(key)) {
            self.adopt(key, line);
        }
    }

    #[cold]
    fn is_crowded(&mut self) -> bool {
        self.unseen = 0;
        self.bounds.sides > 0 && self.core.io.send_buffer().is_some_and(|buffer| buffer.used > buffer.size / 2)
    }

    /// Opens a side for a key. What waits under the key goes with it.
    #[cold]
    fn open_side(&mut self, key: Option<K>) -> Option<()> {
        if self.bounds.sides == 0 || self.promotes() {
            return None;
        }
        let replaced = self.core.io.contention().replaced();
        self.busy();
        let Self { core, waker, busy: Some(busy), bounds, .. } = self else { return None };
        let Busy { lines, sides, .. } = &mut **busy;
        let side = sides.get_or_insert_with(|| Sides::new(replaced)).open(&core.io, key, bounds.sides.into())?;
        side.waker.clone_from(waker);
        side.bounds = bounds.of_a_side();
        if let Some(key) = key
            && let Some(mut line) = lines.take(key)
        {
            for transmit in line.transmits() {
                transmit.header = core.io.header_for_a_side(transmit.header);
            }
            side.adopt(key, line);
            if lines.datagrams == 0 {
                lines.clear();
                core.unpark();
            }
        }
        Some(())
    }

    /// The connected socket of a key, if this transmit goes its way. A busy key gets one.
    #[inline(never)]
    fn connected_side(&mut self, key: K, t: &mut Transmit<'_>) -> Option<&mut Self> {
        if self.has_side(Some(key)) {
            let (path, is_stuck) = self.sides()?.connected(key)?;
            if is_stuck {
                // XNU may hold a flow for good (a throttled class of traffic); another socket is another flow.
                self.demote(key, path);
            }
            if is_stuck || path != t.path() {
                return None;
            }
        } else {
            let is_busy = self.promotion()?.is_busy(key, t.path(), t.remaining(), Instant::now());
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
        let Self { core, waker, busy: Some(busy), bounds, .. } = self else { return None };
        let replaced = core.io.contention().replaced();
        let sides = busy.sides.get_or_insert_with(|| Sides::new(replaced));
        let side = sides.connect(&core.io, key, path, bounds.sides.into())?;
        side.waker.clone_from(waker);
        side.bounds = bounds.of_a_side();
        busy.promotion.as_mut()?.promoted(key);
        // It looks for idle ones from now on.
        if let Some(waker) = waker {
            waker.wake_by_ref();
        }
        Some(())
    }

    /// Returns what came of a send on a socket of the key's own. If it is a connected one, and the destination has failed, the key goes on
    /// without.
    #[inline]
    fn look_at_destination(&mut self, key: K, t: &Transmit<'_>, report: SendReport) -> SendReport {
        const FAILURES: [DropReason; 3] = [DropReason::Unreachable, DropReason::Invalid, DropReason::Other];
        if self.promotes() && FAILURES.iter().any(|reason| report.dropped.get(*reason) > 0) {
            self.demote(key, t.path());
        }
        report
    }

    /// The key goes on without a connected socket, for a while.
    #[cold]
    fn demote(&mut self, key: K, path: promotion::Path) {
        if let Some(promotion) = self.promotion() {
            promotion.demoted(key, path, Instant::now());
        }
        self.close_side(Some(key));
    }

    /// The side of a key, ready for this transmit.
    fn of_side(&mut self, key: Option<K>, t: &mut Transmit<'_>) -> Option<&mut Self> {
        let bytes = self.bytes();
        let Self { core, bounds, busy: Some(busy), .. } = self else { return None };
        let side = busy.sides.as_mut()?.of(key)?;
        let of_others = u32::try_from(bytes - side.bytes()).unwrap_or(u32::MAX);
        side.bounds.of_all = bounds.of_a_key.min(bounds.of_all.saturating_sub(of_others));
        t.header = core.io.header_for_a_side(t.header);
        Some(side)
    }

    /// Takes over what waits under a key elsewhere.
    fn adopt(&mut self, key: K, line: Line) {
        if line.is_empty() {
            return;
        }
        self.busy().lines.put(key, line);
        self.core.name();
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Offers it to the system, unless it is known that there is no room. `Some` says that there is none for the rest.
    #[inline]
    fn offer(&mut self, key: K, t: &mut Transmit<'_>) -> io::Result<Option<Class>> {
        // A sender that holds it counts it as given up by itself.
        t.cursor.hold = Hold::default();
        if let Some(lines) = self.lines() {
            let is_full = self.core.parked_class() == Some(Class::Advised);
            if is_full || lines.has(key) {
                let class = if is_full { Class::Advised } else { Class::Silent };
                return Ok(Some(class).filter(|_| !t.is_done()));
            }
        }
        match self.core.offer(t) {
            Attempt::Done => Ok(None),
            Attempt::Refused(class) => Ok(Some(class)),
            Attempt::Crowded | Attempt::Paused => Ok(Some(Class::Silent)),
            Attempt::Fatal(e) => {
                if !self.bounds.is_side {
                    drop_rest(&self.core.io, std::slice::from_mut(t), DropReason::Socket);
                }
                Err(e)
            }
        }
    }

    fn refuse(&mut self, t: &mut Transmit<'_>, class: Class, reason: DropReason) {
        drop_rest(&self.core.io, std::slice::from_mut(t), reason);
        if self.core.is_parked() {
            self.core.refused(class);
        } else {
            self.core.was_blocked();
        }
    }

    fn hold(&mut self, key: K, t: &mut Transmit<'_>, class: Class) {
        let bytes = t.cursor.bytes_left.max(LEAST);
        let Limits { of_a_key, of_all, .. } = self.bounds;
        if self.held_bytes(key) + bytes > of_a_key as usize || self.bytes() + bytes > of_all as usize {
            return self.refuse(t, class, DropReason::QueueFull);
        }
        self.core.name();
        self.core.io.stats().accept(t.remaining());
        t.cursor.hold = Hold { sender: self.core.id, generation: 0 };
        self.busy().lines.push(key, OwnedTransmit::from(&*t), Instant::now());
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
        let Some(busy) = &mut self.busy else { return flushed };
        let (mut is_pending, mut failed) = (false, Vec::new());
        if let Some(sides) = &mut busy.sides {
            is_pending = sides.poll(cx, done, &mut failed).is_pending() || !failed.is_empty();
            if sides.is_unused() {
                busy.sides = None;
            }
        }
        for (key, line) in failed {
            self.adopt(key, line);
        }
        let is_idle = |busy: &mut Box<Busy<I, K>>| {
            flushed.is_ready() && busy.lines.datagrams == 0 && busy.sides.is_none() && busy.promotion.is_none()
        };
        self.busy.take_if(is_idle);
        if is_pending && matches!(flushed, Poll::Ready(Ok(()))) { Poll::Pending } else { flushed }
    }

    fn poll_lines(&mut self, cx: &mut Context<'_>, done: Done<'_, K>) -> Poll<io::Result<()>> {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            waker @ None => *waker = Some(cx.waker().clone()),
        }
        let Some(busy) = self.busy.as_mut().filter(|busy| busy.lines.datagrams > 0) else {
            self.core.look_after();
            return Poll::Ready(Ok(()));
        };
        let mut serving = Serving { lines: &mut busy.lines, done };
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
                if !self.bounds.is_side {
                    serving.drop_all(&self.core.io, DropReason::Socket);
                }
                Poll::Ready(Err(e))
            }
        }
    }

    pub(crate) fn redirect(&mut self, key: K, destination: SocketAddr, source: Option<IpAddr>) {
        if self.promotes() {
            // It is connected to the former destination.
            self.close_side(Some(key));
        }
        let Some(busy) = &mut self.busy else { return };
        busy.lines.redirect(key, destination, source);
        if let Some(sides) = &mut busy.sides {
            sides.redirect(key, destination, source);
        }
    }

    /// What waits under this key is given up.
    pub(crate) fn cancel(&mut self, key: K) {
        let Some(busy) = &mut self.busy else { return };
        if let Some(sides) = &mut busy.sides {
            sides.cancel(key);
        }
        let lines = &mut busy.lines;
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
        let held = self.lines().map_or(0, |lines| lines.datagrams);
        self.core.io.stats().dropped(DropReason::Cancelled, held);
    }
}

#[cfg(test)]
mod tests;
