//! The core of whoever sends is looked for.

use std::time::{Duration, Instant};

use rustix::{
    io,
    thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
};
use tracing::debug;

use super::load::Load;

/// Moves the thread to another core when the sender runs on another, and there are fewer cores than programs that want one.
///
/// Only a guess whether it is that core; if not, the signs stay.
pub(super) struct Seeker {
    signs: Signs,
    /// None: it does not move.
    load: Option<Load>,
}

/// What tells where the sender runs.
#[derive(Default)]
struct Signs {
    /// That it is elsewhere.
    weight: u32,
    /// That it is here, since the last that it is not, and since the last move.
    here: u32,
    /// Moves, since it was here for some time.
    moves: usize,
    rests_until: Option<Instant>,
}

/// A packet that came while the loop ran. Where the sender is on another core that is shared too, it does so less than half of the
/// time.
const CAME: u32 = 6;
/// None came.
const NONE: u32 = 2;
/// A turn after a turn that left packets: after a move what waits in the device, 500 packets, must be read before anything else can
/// be seen.
const FLOODED: u32 = 1;
/// It is elsewhere.
const ENOUGH: u32 = 24;
/// Looks without a packet after which the core was the right one.
const SETTLED: u32 = 32;

/// When several senders have a core each, no core is right. After some moves for each there are none for so long.
const MOVES: usize = 2;
const REST: Duration = Duration::from_millis(100);

impl Seeker {
    pub(super) fn new() -> Self {
        Self { signs: Signs::default(), load: Load::open() }
    }

    #[cfg(test)]
    pub(super) fn that_stays() -> Self {
        Self { signs: Signs::default(), load: None }
    }

    /// After a train the device was looked at again, and `came`, or not, a packet since.
    pub(super) fn looked(&mut self, now: Instant, came: bool) {
        if self.signs.looked(came) {
            self.move_on(now);
        }
    }

    /// Two turns in sequence have left packets.
    pub(super) fn flooded(&mut self, now: Instant) {
        if self.signs.add(FLOODED) {
            self.move_on(now);
        }
    }

    fn move_on(&mut self, now: Instant) {
        let Some(load) = self.load.as_ref().filter(|load| self.signs.has_rested(now) && load.is_too_much()) else {
            return;
        };
        let cores = load.cores();
        self.signs.moves(now, MOVES * cores);
        if let Err(error) = to_next_core(cores) {
            debug!(%error, "the loop stays on its core");
            self.load = None;
        }
    }
}

impl Signs {
    fn looked(&mut self, came: bool) -> bool {
        if came {
            self.here = 0;
            return self.add(CAME);
        }
        self.weight = self.weight.saturating_sub(NONE);
        self.here = self.here.saturating_add(1);
        if self.here >= SETTLED {
            self.moves = 0;
        }
        false
    }

    /// Returns whether it is enough. They begin anew then.
    fn add(&mut self, weight: u32) -> bool {
        self.weight += weight;
        let enough = self.weight >= ENOUGH;
        if enough {
            self.weight = 0;
        }
        enough
    }

    fn has_rested(&self, now: Instant) -> bool {
        self.rests_until.is_none_or(|until| now >= until)
    }

    /// The thread moves. After as many moves as there may be, it is not soon.
    fn moves(&mut self, now: Instant, most: usize) {
        self.here = 0;
        self.moves += 1;
        if self.moves >= most {
            self.moves = 0;
            self.rests_until = Some(now + REST);
        }
    }
}

/// Moves this thread. Then it may run where it might before: the scheduler goes on from there.
fn to_next_core(cores: usize) -> io::Result<()> {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|core| all.set(core));
    let allowed = sched_getaffinity(None)?;
    let Some(next) = following(&allowed, sched_getcpu()) else { return Ok(()) };
    let mut one = CpuSet::new();
    one.set(next);
    sched_setaffinity(None, &one)?;
    // Who may run everywhere may do so on a core that comes later, too.
    let before = if allowed.count() as usize >= cores { &all } else { &allowed };
    // If these are no longer to be had: on all that are, rather than on this one for ever.
    sched_setaffinity(None, before).or_else(|_| sched_setaffinity(None, &all))
}

/// The next after this one, around.
fn following(allowed: &CpuSet, here: usize) -> Option<usize> {
    (here + 1..CpuSet::MAX_CPU).chain(0..here).find(|&core| allowed.is_set(core))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_here_is_not_looked_for() {
        let mut signs = Signs::default();
        // After a move the device is full: 500 packets are 12 turns.
        assert!(!(0..12).any(|_| signs.add(FLOODED)));
        // Then each train, of one or two turns, is followed by a look that finds nothing.
        for _ in 0..10_000 {
            assert!(!signs.looked(false));
            assert!(!signs.add(FLOODED));
        }
    }

    #[test]
    fn a_sender_elsewhere_is_looked_for_soon() {
        let mut always = Signs::default();
        assert_eq!((0..100).position(|_| always.looked(true)), Some(3));
        let mut flooded = Signs::default();
        assert_eq!((0..100).position(|_| flooded.add(FLOODED)), Some(23));
        // One of three looks finds a packet.
        let mut seldom = Signs::default();
        let looks = (0..1000).position(|look| seldom.looked(look % 3 == 0));
        assert!(looks.is_some_and(|looks| looks < 40), "{looks:?}");
    }

    #[test]
    fn where_no_core_is_right_it_rests() {
        let begin = Instant::now();
        let mut signs = Signs::default();
        // For a second, a sign every millisecond; now and then nothing came.
        let mut moves = 0;
        for ms in 0..1000 {
            let now = begin + Duration::from_millis(ms);
            if signs.has_rested(now) {
                signs.moves(now, 4);
                moves += 1;
            }
            signs.looked(false);
        }
        assert!((36..=44).contains(&moves), "{moves}");
        // Who has found one moves at once when it changes, and often.
        let mut found = Signs::default();
        for _ in 0..100 {
            assert!(found.has_rested(begin));
            found.moves(begin, 4);
            (0..SETTLED).for_each(|_| assert!(!found.looked(false)));
        }
    }

    #[test]
    fn the_next_core_is_one_that_is_allowed() {
        let mut allowed = CpuSet::new();
        [1, 3, 6].into_iter().for_each(|core| allowed.set(core));
        assert_eq!([0, 1, 3, 6, 9].map(|here| following(&allowed, here)), [1, 3, 6, 1, 1].map(Some));
        let mut one = CpuSet::new();
        one.set(2);
        assert_eq!(following(&one, 2), None);
    }

    #[test]
    fn it_moves_and_may_run_where_it_might_before() {
        std::thread::spawn(|| {
            let allowed = sched_getaffinity(None).unwrap();
            // The scheduler may have moved it on meanwhile, on a busy machine.
            let moved = (0..50).any(|_| {
                let here = sched_getcpu();
                to_next_core(allowed.count() as usize).unwrap();
                sched_getcpu() != here
            });
            assert_eq!(moved, allowed.count() > 1);
            assert_eq!(sched_getaffinity(None).unwrap(), allowed);
            // Who was told where to run stays there.
            let mut one = CpuSet::new();
            one.set(sched_getcpu());
            sched_setaffinity(None, &one).unwrap();
            to_next_core(crate::cores::load::cores().unwrap()).unwrap();
            assert_eq!(sched_getaffinity(None).unwrap(), one);
        })
        .join()
        .unwrap();
    }
}
