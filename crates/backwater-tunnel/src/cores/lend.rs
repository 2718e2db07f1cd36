//! The core is lent to others between trains.

use std::time::{Duration, Instant};

/// Lets other programs run between trains: the other end, if that is on this host, and whoever takes what it delivers.
///
/// Where these share the cores, and all cores are busy, a loop that runs on until its time slice ends, some milliseconds, sends in
/// it many times what the buffer of a UDP socket holds, and the program that reads the socket does not run meanwhile. What is
/// lost there was encrypted, sent and decrypted for nothing (docs/benchmarks.md). On a core of its own the loop loses nothing but
/// the system call. Of two ends that are programs as any other it is who reads the device that lends: if who delivers did so too, it
/// would leave the core to the other. Where they go before others it is who delivers; who reads pauses.
///
/// Nobody gives a core back earlier than he must, so there is a limit: half as much again as this loop has used itself. Beside
/// a program that computes on the same core it keeps two fifths of it, or more.
pub(crate) struct Lender {
    /// Nanoseconds that may still be lent.
    credit: i64,
    since: Instant,
}

/// What counts as used for one train, at most. The rest of a longer time was others' too.
const TRAIN: Duration = Duration::from_micros(200);

/// Credit that is kept, at most, and what is remembered of a debt.
const MOST: i64 = 1_000_000;
const LEAST: i64 = -100_000_000;

impl Lender {
    pub(super) fn new(now: Instant) -> Self {
        Self { credit: 0, since: now }
    }

    /// A train has gone, or a look found nothing to do. Returns whether the core was lent.
    pub(super) fn lend(&mut self) -> bool {
        let may = self.may(Instant::now());
        if may {
            std::thread::yield_now();
            self.is_back(Instant::now());
        }
        may
    }

    fn may(&mut self, now: Instant) -> bool {
        let used = nanoseconds(now.saturating_duration_since(self.since).min(TRAIN));
        self.credit = (self.credit + used + used / 2).min(MOST);
        self.since = now;
        self.credit > 0
    }

    fn is_back(&mut self, now: Instant) {
        self.credit = (self.credit - nanoseconds(now.saturating_duration_since(self.since))).max(LEAST);
        self.since = now;
    }
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a second, the part that the loop has when each train takes 100 µs, and others take so long when they may; and how often
    /// they may.
    fn shared(others: Duration) -> (f64, u32) {
        let train = Duration::from_micros(100);
        let begin = Instant::now();
        let (mut now, mut lender, mut own, mut times) = (begin, Lender::new(begin), Duration::ZERO, 0);
        while now - begin < Duration::from_secs(1) {
            (now, own) = (now + train, own + train);
            if lender.may(now) {
                now += others;
                times += 1;
                lender.is_back(now);
            }
        }
        (own.as_secs_f64() / (now - begin).as_secs_f64(), times)
    }

    #[test]
    fn who_gives_back_soon_is_lent_to_after_each_train_and_nobody_gets_more_than_three_fifths() {
        let (share, times) = shared(Duration::from_micros(120));
        assert!(share < 0.46 && times > 4_500, "{share} {times}");
        for others in [Duration::from_millis(3), Duration::from_millis(100)] {
            let (share, _) = shared(others);
            assert!((0.35..0.45).contains(&share), "{share} of it beside {others:?}");
        }
        assert_eq!(shared(Duration::ZERO), (1.0, 10_000));
    }
}
