//! What the caller has not read yet.

use std::collections::VecDeque;

/// The latest `MOST` events.
pub(crate) struct Unread<T, const MOST: usize>(VecDeque<T>);

impl<T, const MOST: usize> Default for Unread<T, MOST> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T, const MOST: usize> Unread<T, MOST> {
    /// Adds an event; the oldest goes if there are too many.
    pub(crate) fn push(&mut self, event: T) {
        if self.0.len() >= MOST {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        self.0.pop_front()
    }
}
