//! Lines of the log that a client gives rise to: it must not be able to fill the disk.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// Lines in a second.
const LINES: u32 = 5;

/// Counts the lines of one kind that one thread writes.
pub(crate) struct LogLimit(Cell<(Instant, u32)>);

impl LogLimit {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Cell::new((now, 0)))
    }

    /// Whether a line may be written now; it counts then.
    pub(crate) fn allows(&self, now: Instant) -> bool {
        let (mut since, mut lines) = self.0.get();
        if now.saturating_duration_since(since) >= Duration::from_secs(1) {
            (since, lines) = (now, 0);
        }
        self.0.set((since, lines + 1));
        lines < LINES
    }
}
