//! Several senders of one socket: those who wait get their turn.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
};

/// The senders that wait, the longest first. Whoever finds room calls the first of them, and lets it go before its own next
/// datagram.
#[derive(Default)]
pub(crate) struct Contention {
    waiting: AtomicUsize,
    /// Whose turn it is; 0 for nobody's.
    turn: AtomicU64,
    queue: Mutex<VecDeque<(u64, Waker)>>,
}

impl Contention {
    /// Joins the queue, or renews the waker.
    pub(crate) fn wait(&self, id: u64, waker: &Waker) {
        let mut queue = self.queue();
        match queue.iter_mut().find(|(waiting, _)| *waiting == id) {
            Some((_, known)) => known.clone_from(waker),
            None => queue.push_back((id, waker.clone())),
        }
        self.waiting.store(queue.len(), Relaxed);
    }

    pub(crate) fn leave(&self, id: u64) {
        let mut queue = self.queue();
        queue.retain(|(waiting, _)| *waiting != id);
        self.waiting.store(queue.len(), Relaxed);
        drop(queue);
        let _ = self.turn.compare_exchange(id, 0, Relaxed, Relaxed);
    }

    /// Someone has found room: the longest waiting is called, and goes to the end of the queue.
    pub(crate) fn found_room(&self, id: u64) {
        if self.waiting.load(Relaxed) == 0 {
            return;
        }
        let mut queue = self.queue();
        let Some(at) = queue.iter().position(|(waiting, _)| *waiting != id) else { return };
        if let Some(called) = queue.remove(at) {
            self.turn.store(called.0, Relaxed);
            called.1.wake_by_ref();
            queue.push_back(called);
        }
    }

    /// Whether nobody was called.
    pub(crate) fn is_nobodys_turn(&self) -> bool {
        self.turn.load(Relaxed) == 0
    }

    /// Whether somebody else was called and has not had a chance since; asked once, it is so no more.
    pub(crate) fn is_anothers_turn(&self, id: u64) -> bool {
        let turn = self.turn.load(Relaxed);
        turn != 0 && turn != id && self.turn.compare_exchange(turn, 0, Relaxed, Relaxed).is_ok()
    }

    /// Whether this sender was called.
    pub(crate) fn take_turn(&self, id: u64) -> bool {
        self.turn.compare_exchange(id, 0, Relaxed, Relaxed).is_ok()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<(u64, Waker)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_waiting_is_called_and_let_go_first() {
        let c = Contention::default();
        c.found_room(1);
        assert!(!c.is_anothers_turn(1));
        c.wait(2, Waker::noop());
        c.wait(3, Waker::noop());
        c.wait(2, Waker::noop());
        c.found_room(1);
        assert!(c.is_anothers_turn(1), "once");
        assert!(!c.is_anothers_turn(1));
        c.found_room(1);
        assert!(!c.take_turn(2) && c.take_turn(3), "in turn");
        c.found_room(3);
        assert!(c.take_turn(2), "nobody is called by himself");
        c.found_room(1);
        c.leave(3);
        c.leave(2);
        assert!(!c.is_anothers_turn(1), "who has left has no turn");
        c.found_room(1);
        assert!(!c.is_anothers_turn(1));
    }
}
