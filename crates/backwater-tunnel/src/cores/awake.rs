//! A core that is not left idle.

use std::time::{Duration, Instant};

use super::{Lender, load::Load};

/// Whether to look for the next long train rather than sleep until it comes.
///
/// A core that falls idle takes over what waits for another (`sched_balance_newidle`). Where both ends are on this host, and cores
/// are scarce, that is the sender: it waits whenever the near end runs. On this core nothing holds it back, until the near end has
/// come after it, and much of what was sent meanwhile is lost. Where the sender is, is not known here: that cores are scarce, and that
/// trains follow each other closely, has to do.
pub(super) struct Awake {
    load: Option<Load>,
    /// The last long train was delivered then, and its receiver has run.
    train: Option<Instant>,
    /// The load was looked at then.
    looked: Option<Instant>,
    signs: u32,
    /// Not the one for receivers: what is lent here is not taken from them.
    lender: Lender,
}

/// Between two trains of a sender without limit: the near end's pause, and what it reads before it sends.
const GAP: Duration = Duration::from_micros(300);

/// Between two looks at the load.
const LOOK: Duration = Duration::from_millis(1);

/// Signs are looks that find too much load, less those that do not, and less two for each train that came too late, as there is not more
/// than one look for such a train. At most, and from how many on it stays awake.
const MOST: u32 = 16;
const ENOUGH: u32 = 8;
const LATE: u32 = 2;

impl Awake {
    pub(super) fn new(now: Instant) -> Self {
        Self { load: Load::open(), train: None, looked: None, signs: 0, lender: Lender::new(now) }
    }

    #[cfg(test)]
    pub(super) fn that_sees_too_much(now: Instant) -> Self {
        Self { looked: Some(now), signs: MOST, ..Self::new(now) }
    }

    /// A long train came in the turn that began then, and was delivered now.
    pub(super) fn train(&mut self, began: Instant, now: Instant) {
        if !is_within(GAP, self.train, began) {
            self.signs = self.signs.saturating_sub(LATE);
        }
        self.train = Some(now);
    }

    /// There is nothing to do. Stays awake nonetheless, and lends the core, if that is worth it.
    pub(super) fn stay(&mut self, now: Instant) -> bool {
        self.is_worth_it(now) && self.lender.lend()
    }

    fn is_worth_it(&mut self, now: Instant) -> bool {
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

    fn saw(&mut self, sign: bool) {
        self.signs = if sign { (self.signs + 1).min(MOST) } else { self.signs.saturating_sub(1) };
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
        let mut awake = Awake { signs: ENOUGH, ..Awake::that_sees_too_much(begin) };
        assert!(!awake.is_worth_it(begin));
        awake.train = Some(begin);
        assert!(awake.is_worth_it(begin + GAP / 2));
        assert!(!awake.is_worth_it(begin + GAP));
        awake.saw(false);
        assert!(!awake.is_worth_it(begin + GAP / 2));
        // What lasted is not forgotten at once, but soon.
        (0..1000).for_each(|_| awake.saw(true));
        awake.saw(false);
        assert!(awake.is_worth_it(begin + GAP / 2));
        (0..8).for_each(|_| awake.saw(false));
        assert!(!awake.is_worth_it(begin + GAP / 2));
    }

    #[test]
    fn the_load_is_looked_at_once_a_millisecond() {
        let begin = Instant::now();
        let mut awake = Awake { load: None, train: Some(begin), signs: MOST, ..Awake::new(begin) };
        // No load is known: each look is one that finds none.
        let worth = (0..40).filter(|&quarter| {
            let now = begin + LOOK / 4 * quarter;
            awake.train(now, now);
            awake.is_worth_it(now)
        });
        assert_eq!(worth.count(), 32);
    }

    #[test]
    fn it_does_not_stay_awake_between_trains_that_come_seldom() {
        for (every, stays) in [(GAP / 2, true), (GAP * 3 / 2, false), (LOOK, false), (LOOK * 10, false)] {
            let begin = Instant::now();
            let mut awake = Awake::that_sees_too_much(begin);
            for train in 1..100 {
                let now = begin + every * train;
                // There is always too much load.
                awake.looked = Some(now);
                awake.train(now, now);
                if train % (LOOK.as_micros() / every.as_micros()).max(1) as u32 == 0 {
                    awake.saw(true);
                }
            }
            assert_eq!(awake.is_worth_it(begin + every * 99), stays, "{every:?}");
        }
    }
}
