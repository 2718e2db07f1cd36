//! Several senders of one socket: those who wait get their turn.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
};

/// The senders that wait, the longest first. A sender that finds room calls the first of them, and yields to it once before its own
/// next datagram. A sender that was called and does not come leaves the queue.
#[derive(Default)]
pub(crate) struct Contention {
    waiting: AtomicUsize,
    /// Which sender was called and has not come yet: the number of the turn, and below it the sender's. 0 is nobody.
    called: AtomicU64,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiters: VecDeque<Waiter>,
    turns: u32,
}

struct Waiter {
    sender: u32,
    called: bool,
    waker: Waker,
}

impl Contention {
    /// Joins the queue, or renews the waker. Returns whether the sender was called.
    pub(crate) fn wait(&self, sender: u32, waker: &Waker) -> bool {
        let mut queue = self.queue();
        let called = match queue.waiters.iter_mut().find(|waiter| waiter.sender == sender) {
            Some(waiter) => {
                waiter.waker.clone_from(waker);
                std::mem::take(&mut waiter.called)
            }
            None => {
                queue.waiters.push_back(Waiter { sender, called: false, waker: waker.clone() });
                false
            }
        };
        self.changed(&queue, sender);
        called
    }

    pub(crate) fn leave(&self, sender: u32) {
        let mut queue = self.queue();
        queue.waiters.retain(|waiter| waiter.sender != sender);
        self.changed(&queue, sender);
    }

    /// There is room: the sender that has waited longest is called, and goes to the end of the queue. None is while another that
    /// was called has not come: it calls the next.
    pub(crate) fn found_room(&self, sender: u32) {
        if self.waiting.load(Relaxed) == 0 || self.called.load(Relaxed) != 0 {
            return;
        }
        let waker = {
            let mut queue = self.queue();
            let Some(at) = queue.waiters.iter().position(|waiter| waiter.sender != sender) else { return };
            let Some(mut waiter) = queue.waiters.remove(at) else { return };
            waiter.called = true;
            queue.turns = queue.turns.wrapping_add(1).max(1);
            self.called.store(u64::from(queue.turns) << 32 | u64::from(waiter.sender), Relaxed);
            let waker = waiter.waker.clone();
            queue.waiters.push_back(waiter);
            waker
        };
        // A waker may poll, and a poll takes the lock.
        waker.wake();
    }

    /// Whether no sender was called that has not come yet.
    pub(crate) fn is_nobodys_turn(&self) -> bool {
        self.called.load(Relaxed) == 0
    }

    /// The number of the turn of another sender that was called and has not come yet.
    pub(crate) fn turn_of_another(&self, sender: u32) -> Option<u32> {
        let called = self.called.load(Relaxed);
        (called != 0 && called as u32 != sender).then_some((called >> 32) as u32)
    }

    /// The sender that was called, that turn, has had its chance: it leaves the queue until it waits again.
    pub(crate) fn dismiss(&self, turn: u32) {
        let mut queue = self.queue();
        let called = self.called.load(Relaxed);
        if (called >> 32) as u32 == turn {
            queue.waiters.retain(|waiter| waiter.sender != called as u32);
            self.changed(&queue, called as u32);
        }
    }

    /// The queue is another, and `sender` has come, or will not.
    fn changed(&self, queue: &Queue, sender: u32) {
        self.waiting.store(queue.waiters.len(), Relaxed);
        if self.called.load(Relaxed) as u32 == sender {
            self.called.store(0, Relaxed);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, atomic::AtomicU32},
        task::Wake,
    };

    use super::*;

    #[test]
    fn the_longest_waiting_is_called_first() {
        let c = Contention::default();
        c.found_room(1);
        assert_eq!(c.turn_of_another(1), None);
        for sender in [2, 3, 2] {
            assert!(!c.wait(sender, Waker::noop()));
        }
        c.found_room(1);
        let turn = c.turn_of_another(1);
        assert!(turn.is_some() && turn == c.turn_of_another(3) && !c.is_nobodys_turn());
        assert_eq!(c.turn_of_another(2), None, "its own");
        c.found_room(1);
        assert_eq!(c.turn_of_another(1), turn, "one at a time");
        assert!(!c.wait(3, Waker::noop()) && c.wait(2, Waker::noop()), "2 was called");
        assert!(!c.wait(2, Waker::noop()), "once");
        assert!(c.is_nobodys_turn());
        c.found_room(2);
        assert!(c.wait(3, Waker::noop()), "the next in turn");
        c.found_room(3);
        assert!(c.wait(2, Waker::noop()), "no sender calls itself");
    }

    #[test]
    fn a_sender_that_was_called_and_does_not_come_leaves_the_queue() {
        let c = Contention::default();
        c.wait(2, Waker::noop());
        c.found_room(1);
        let turn = c.turn_of_another(1).unwrap();
        c.dismiss(turn + 1);
        assert_eq!(c.turn_of_another(1), Some(turn), "another turn");
        c.dismiss(turn);
        assert!(c.is_nobodys_turn());
        c.found_room(1);
        assert!(c.is_nobodys_turn(), "nobody waits");
        // It comes late, and waits again.
        assert!(!c.wait(2, Waker::noop()));
        c.found_room(1);
        assert_ne!(c.turn_of_another(1).unwrap(), turn);
        c.leave(2);
        assert!(c.is_nobodys_turn());
        c.found_room(1);
        assert!(c.is_nobodys_turn(), "nobody waits");
    }

    /// Polls where it is woken, as executors may.
    #[test]
    fn a_waker_may_use_the_queue() {
        struct Polls(Contention, AtomicU32);
        impl Wake for Polls {
            fn wake(self: Arc<Self>) {
                assert!(self.0.wait(2, Waker::noop()));
                self.1.fetch_add(1, Relaxed);
            }
        }
        let polls = Arc::new(Polls(Contention::default(), AtomicU32::new(0)));
        polls.0.wait(2, &polls.clone().into());
        polls.0.found_room(1);
        assert_eq!(polls.1.load(Relaxed), 1);
    }
}
