//! Sockets of their own for keys that need one.
//!
//! *Send-only* ones are for keys that fill the send buffer of the socket which all keys share.
//! A path with a deep queue refuses nothing: its datagrams stay in the send buffer until that is full, and then `EWOULDBLOCK` stops every
//! key. The kernel does not tell whose datagrams they are. So a key gets a socket of its own when the shared send buffer is more than
//! half full; if the key's path is slow, it fills only its own send buffer, and otherwise that socket is soon another key's.
//!
//! *Connected* ones are for keys that are busy ([`promotion`](super::promotion)). A queue has the ones or the others.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use super::{Done, Line, QueueCore, promotion::Path};
use crate::{io::Io, send_queue::QueueBounds, wait::core::timer::Timer};

/// Of one queue.
pub(super) const MOST: usize = 16;

/// Of the process: each is a descriptor, or two while it waits.
const MOST_OF_ALL: usize = 256;

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// One is given back when it has not been used for this long, or for twice as long.
const IDLE: Duration = Duration::from_secs(10);

/// When there was none to be had, none is looked for until then: that takes a call for each.
const PAUSE: Duration = Duration::from_millis(1);

/// When the system did not let one be made: it will not soon, and a try takes a dozen calls.
const PAUSE_OF_ERROR: Duration = Duration::from_secs(1);

/// System calls that one side makes in a poll of the queue.
pub(super) const CALLS: u32 = 4;

pub(super) struct Sides<I: Io, K: Copy + Ord> {
    /// The one that was given to a key last is the last.
    all: Vec<Side<I, K>>,
    not_before: Option<Instant>,
    timer: Timer,
    /// When to look for idle ones.
    look_at: Option<Instant>,
    /// How many sockets had been replaced by others when these were opened.
    pub(super) replaced: u32,
}

struct Side<I: Io, K: Copy + Ord> {
    /// `None`: of all to whom answers are sent or dropped.
    key: Option<K>,
    /// What it is connected to, and from where.
    path: Option<Path>,
    queue: QueueCore<I, K>,
    used: Instant,
    _counted: Counted,
}

/// One of those that are counted here: there are [`MOST_OF_ALL`] at most.
struct Counted(&'static AtomicUsize);

impl<I: Io, K: Copy + Ord> Sides<I, K> {
    pub(super) fn new(replaced: u32) -> Self {
        Self { all: Vec::new(), not_before: None, timer: Timer::default(), look_at: None, replaced }
    }

    pub(super) fn has(&self, key: Option<K>) -> bool {
        self.all.iter().any(|side| side.key == key)
    }

    pub(super) fn of(&mut self, key: Option<K>) -> Option<&mut QueueCore<I, K>> {
        let side = self.all.iter_mut().find(|side| side.key == key)?;
        side.used = Instant::now();
        Some(&mut side.queue)
    }

    /// A side for a key that has none: a new one, or one from which all that another key has sent is gone.
    pub(super) fn open(&mut self, main: &I, key: Option<K>, most: usize) -> Option<&mut QueueCore<I, K>> {
        let now = Instant::now();
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        if main.send_buffer().is_none() {
            self.not_before = Some(now + PAUSE_OF_ERROR);
            return None;
        }
        let may_be_new = self.all.len() < most;
        let new = if may_be_new { Side::new(main) } else { None };
        let Some(mut side) = new.or_else(|| self.take_free()) else {
            self.not_before = Some(now + if may_be_new { PAUSE_OF_ERROR } else { PAUSE });
            return None;
        };
        side.key = key;
        self.all.push(side);
        self.all.last_mut().map(|side| &mut side.queue)
    }

    /// A connected socket for a key that has none.
    pub(super) fn connect(&mut self, main: &I, key: K, path: Path, most: usize) -> Option<&mut QueueCore<I, K>> {
        let now = Instant::now();
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let may_be_new = self.all.len() < most;
        let Some(side) = may_be_new.then(|| Side::connected(main, key, path)).flatten() else {
            self.not_before = Some(now + PAUSE_OF_ERROR);
            return None;
        };
        self.all.push(side);
        self.all.last_mut().map(|side| &mut side.queue)
    }

    /// What the key's socket is connected to, and whether it is stuck.
    pub(super) fn connected(&self, key: K) -> Option<(Path, bool)> {
        let side = self.all.iter().find(|side| side.key == Some(key))?;
        Some((side.path?, side.queue.core().is_stuck()))
    }

    pub(super) fn held(&self) -> usize {
        self.all.iter().map(|side| side.queue.held()).sum()
    }

    pub(super) fn bytes(&self) -> usize {
        self.all.iter().map(|side| side.queue.bytes()).sum()
    }

    pub(super) fn held_bytes(&self, key: K) -> usize {
        self.all.iter().find(|side| side.key == Some(key)).map_or(0, |side| side.queue.held_bytes(key))
    }

    pub(super) fn cancel(&mut self, key: K) {
        if let Some(side) = self.all.iter_mut().find(|side| side.key == Some(key)) {
            side.queue.cancel(key);
        }
    }

    pub(super) fn redirect(&mut self, key: K, destination: SocketAddr, source: Option<IpAddr>) {
        if let Some(side) = self.all.iter_mut().find(|side| side.key == Some(key)) {
            side.queue.redirect(key, destination, source);
        }
    }

    /// Closes the side of a key, since it has failed. Returns what waits there.
    pub(super) fn close(&mut self, key: Option<K>) -> Option<(K, Line)> {
        let at = self.all.iter().position(|side| side.key == key)?;
        // Another might fail as well.
        self.not_before = Some(Instant::now() + PAUSE_OF_ERROR);
        self.all.remove(at).into_line()
    }

    /// Sends what waits, and gives back what is idle. Pending while something waits. Those that fail are closed, and what waits there is
    /// added to `failed`.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, done: Done<'_, K>, failed: &mut Vec<(K, Line)>) -> Poll<()> {
        let mut pending = false;
        let mut at = 0;
        while let Some(side) = self.all.get_mut(at) {
            match side.queue.poll_flush(cx, done) {
                Poll::Ready(Err(_)) => {
                    let key = side.key;
                    failed.extend(self.close(key));
                    continue;
                }
                Poll::Ready(Ok(())) => {}
                Poll::Pending => pending = true,
            }
            at += 1;
        }
        let at = *self.look_at.get_or_insert_with(|| Instant::now() + IDLE);
        if self.timer.poll(cx, at).is_ready() {
            let now = Instant::now();
            self.all.retain(|side| now - side.used < IDLE || !side.is_free());
            self.look_at = Some(now + IDLE);
            // To be woken then.
            let _ = self.timer.poll(cx, now + IDLE);
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Whether there is none, and one may be looked for again.
    pub(super) fn is_unused(&self) -> bool {
        self.all.is_empty() && self.not_before.is_none_or(|at| at <= Instant::now())
    }

    /// What waits on them.
    pub(super) fn take_lines(&mut self) -> Vec<(K, Line)> {
        self.all.drain(..).filter_map(Side::into_line).collect()
    }

    fn take_free(&mut self) -> Option<Side<I, K>> {
        let at = self.all.iter().position(Side::is_free)?;
        Some(self.all.remove(at))
    }
}

impl<I: Io, K: Copy + Ord> Side<I, K> {
    fn new(main: &I) -> Option<Self> {
        let counted = Counted::new(&OPEN)?;
        let io = main.send_only().ok()?;
        Some(Self::with(io, None, None, counted))
    }

    fn into_line(mut self) -> Option<(K, Line)> {
        Some((self.key?, self.queue.busy.as_mut()?.lines.take(self.key?)?))
    }

    fn connected(main: &I, key: K, path: Path) -> Option<Self> {
        let counted = Counted::new(&OPEN)?;
        let io = main.connected_beside(path.0, path.1).ok()?;
        Some(Self::with(io, Some(key), Some(path), counted))
    }

    fn with(io: I, key: Option<K>, path: Option<Path>, counted: Counted) -> Self {
        let queue = QueueCore::new(io, QueueBounds::default());
        Self { key, path, queue, used: Instant::now(), _counted: counted }
    }

    /// Whether all that it was given has left the send buffer. What a connected one has sent leaves without it.
    fn is_free(&self) -> bool {
        let has_left = || self.queue.core().io().send_buffer().is_some_and(|buffer| buffer.used == 0);
        self.queue.held() == 0 && (self.path.is_some() || has_left())
    }
}

impl<I: Io, K: Copy + Ord> Drop for Side<I, K> {
    fn drop(&mut self) {
        self.queue.core().io().detach();
    }
}

impl Counted {
    fn new(open: &'static AtomicUsize) -> Option<Self> {
        let is_one = open.fetch_add(1, Relaxed) < MOST_OF_ALL;
        // Dropped, it is counted no more.
        Some(Self(open)).filter(|_| is_one)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_open_than_a_process_may_have() {
        static OPEN: AtomicUsize = AtomicUsize::new(0);
        let mut open: Vec<_> = std::iter::from_fn(|| Counted::new(&OPEN)).collect();
        assert_eq!((open.len(), OPEN.load(Relaxed)), (MOST_OF_ALL, MOST_OF_ALL));
        open.pop();
        assert!(Counted::new(&OPEN).is_some() && OPEN.load(Relaxed) == MOST_OF_ALL - 1);
        open.clear();
        assert_eq!(OPEN.load(Relaxed), 0);
    }
}
