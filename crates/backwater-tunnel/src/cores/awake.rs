//! A core that is not left idle.

use std::time::{Duration, Instant};

use super::load::Load;

/// Whether to look for the next long train rather than sleep until it comes.
///
/// A core that falls idle takes over what waits for another (`sched_balance_newidle`). Where both ends are on this host, and cores
/// are scarce, that is the sender: it waits whenever the near end runs. On this core nothing holds it back, until the near end has
/// come after it, and much of what was sent meanwhile is lost.
pub(super) struct Awake {
    load: Option<Load>,
    /// The last long train.
    train: Option<Instant>,
    /// At the load.
    looked: Option<Instant>,
    signs: u32,
}

/// Between two trains of a sender without limit: the near end's pause, and what it reads before it sends.
const GAP: Duration = Duration::from_micros(300);

/// Between two looks at the load.
const LOOK: Duration = Duration::from_millis(1);

/// How often there was too much load, less how often there was not: at most, and from when on it counts.
const MOST: u32 = 16;
const ENOUGH: u32 = 8;

impl Awake {
    pub(super) fn new() -> Self {
        Self { load: Load::open(), train: None, looked: None, signs: 0 }
    }

    /// A long train was delivered.
    pub(super) fn train(&mut self, now: Instant) {
        self.train = Some(now);
    }

    /// There is nothing to do. Whether to stay awake nonetheless.
    pub(super) fn stays(&mut self, now: Instant) -> bool {
        if !is_within(GAP, self.train, now) {
            return false;
        }
        if !is_within(LOOK, self.looked, now) {
            self.looked = Some(now);
            let is_too_much = self.load.as_ref().is_some_and(Load::is_too_much);
            self.saw(is_too_much);
        }
        self.signs >= ENOUGH
    }

    fn saw(&mut self, too_much: bool) {
        self.signs = if too_much { (self.signs + 1).min(MOST) } else { self.signs.saturating_sub(1) };
    }
}

fn is_within(time: Duration, since: Option<Instant>, now: Instant) -> bool {
    since.is_some_and(|since| now.saturating_duration_since(since) < time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_awake_after_a_train_while_there_is_too_much_load() {
        let begin = Instant::now();
        let mut awake = Awake { looked: Some(begin), ..Awake::new() };
        (0..ENOUGH).for_each(|_| awake.saw(true));
        assert!(!awake.stays(begin));
        awake.train(begin);
        assert!(awake.stays(begin + GAP / 2));
        assert!(!awake.stays(begin + GAP));
        awake.saw(false);
        assert!(!awake.stays(begin + GAP / 2));
        // What lasted is not forgotten at once, but soon.
        (0..1000).for_each(|_| awake.saw(true));
        awake.saw(false);
        assert!(awake.stays(begin + GAP / 2));
        (0..8).for_each(|_| awake.saw(false));
        assert!(!awake.stays(begin + GAP / 2));
    }

    #[test]
    fn the_load_is_looked_at_once_a_millisecond() {
        let begin = Instant::now();
        let mut awake = Awake { load: None, signs: MOST, ..Awake::new() };
        // No load is known: each look is one that finds none.
        let stays = (0..40).filter(|&quarter| {
            let now = begin + LOOK / 4 * quarter;
            awake.train(now);
            awake.stays(now)
        });
        assert_eq!(stays.count(), 32);
    }
}
