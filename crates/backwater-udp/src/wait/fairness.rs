//! The senders of a socket that wait, in groups of those that wait for the same.
//!
//! Of each group one sender, the *prober*, tries again for all of them ([`Backoff`] says when). The others wait to be called, and look
//! now and then whether the prober does its work. A sender that finds room calls the next, and that one probes from then on.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    ops::Bound::{Excluded, Unbounded},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use super::backoff::{Backoff, By, Class, FIRST_BACKSTOP, LAST_BACKSTOP, Pace};

/// What has no room: those that wait for the same are a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bottleneck {
    /// The socket's send buffer, or its flow.
    Socket,
    /// The path to a destination: a hash, see [`Contention::path`].
    Path(u64),
    /// Several paths, or what is not known: a sender's own.
    Sender(u32),
}

impl Bottleneck {
    fn class(self) -> Class {
        match self {
            Self::Socket => Class::Advised,
            Self::Path(_) | Self::Sender(_) => Class::Silent,
        }
    }
}

/// A refusal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    pub(crate) bottleneck: Bottleneck,
    /// What made the sender try.
    pub(crate) by: By,
    /// How long it took lately until this sender had room.
    pub(crate) recovery: Option<Duration>,
    /// The longest silent wait, if less than others'.
    pub(crate) longest: Option<Duration>,
}

/// What a sender that waits has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Another sender has found room: try now.
    pub(crate) called: bool,
    /// Whether it tries for all that wait for the same.
    pub(crate) probes: bool,
    /// When to try, or to look whether the prober does.
    pub(crate) at: Instant,
    /// Whether to try as soon as others have run.
    pub(crate) yielding: bool,
}

#[derive(Default)]
pub(crate) struct Contention {
    /// Senders that may be called.
    waiting: AtomicUsize,
    /// Senders that were called and have not come yet.
    called: AtomicUsize,
    /// Sockets that were in the place of this one before.
    replaced: AtomicU32,
    hasher: RandomState,
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    waiters: HashMap<u32, Waiter>,
    groups: HashMap<Bottleneck, Group>,
    /// The groups by when they were tried or called last.
    rota: BTreeMap<u64, Bottleneck>,
    /// The last number given to a place in a group, or to a turn.
    places: u64,
    /// The last number given to anything else.
    numbers: u64,
    waiting: usize,
    called: usize,
    /// The group that was called last by a sender which does not wait for the same.
    crossed: Option<Bottleneck>,
    /// No sender calls another group before that.
    quiet_until: Option<Instant>,
    /// The wakers to call once the lock is released.
    wakes: Vec<Waker>,
}

struct Waiter {
    bottleneck: Bottleneck,
    /// Its place in its group; `None` when it was called, or due to probe, and did not come.
    place: Option<u64>,
    called: bool,
    /// When it comes without being woken.
    comes_at: Instant,
    waker: Waker,
}

struct Group {
    /// The senders by their places: who was called or has joined last is last.
    places: BTreeMap<u64, u32>,
    /// The prober's place, which is one of them, and since when it is that sender's.
    prober: u64,
    since: Instant,
    backoff: Backoff,
    /// The number of the prober's turn while it was called and has not come.
    turn: Option<u64>,
    /// Before that none of the group is called by others than its own, since the last that was found no room.
    quiet_until: Instant,
    /// Its place in the rota.
    stamp: u64,
}

/// How long a sender that is due may take to come. Then another takes its place.
const PATIENCE: Duration = FIRST_BACKSTOP;

/// What each of many senders adds to the time between two looks of one. Each look wakes the runtime, which costs more than the look.
const SELDOM: Duration = Duration::from_millis(10);

/// The least time between two timed attempts of a socket, whatever the number of groups; and between two calls of a group's senders
/// that find no room.
const SPACING: Duration = Duration::from_micros(250);

/// Groups that a sender may look at for one to call that is not its own.
const LOOKS: usize = 4;

impl Contention {
    /// The bottleneck of those who send from `source` to `destination`. Nobody outside can make two the same.
    pub(crate) fn path(&self, (destination, source): (SocketAddr, Option<IpAddr>)) -> Bottleneck {
        Bottleneck::Path(self.hasher.hash_one((destination, source)))
    }

    /// The system has refused what `sender` has: it waits from now on, or still.
    pub(crate) fn refused(&self, sender: u32, refused: Refused, now: Instant) {
        let mut queues = self.queues();
        if refused.by == By::Call {
            queues.quiet_until = Some(now + SPACING);
        }
        let known = queues.waiters.get(&sender).filter(|waiter| waiter.place.is_some());
        if known.is_some_and(|waiter| waiter.bottleneck == refused.bottleneck) {
            self.probed(&mut queues, sender, refused, now);
        } else {
            queues.exit(sender, now, false);
            let waiter = queues.waiters.entry(sender).or_insert_with(|| Waiter {
                bottleneck: refused.bottleneck,
                place: None,
                called: false,
                comes_at: now,
                waker: Waker::noop().clone(),
            });
            waiter.bottleneck = refused.bottleneck;
            self.enter(&mut queues, sender, now, refused);
        }
        self.publish(queues);
    }

    /// Renews the waker, and says what to do.
    pub(crate) fn wait(&self, sender: u32, waker: &Waker, now: Instant) -> Place {
        let mut queues = self.queues();
        let Some(waiter) = queues.waiters.get_mut(&sender) else {
            return Place { called: false, probes: true, at: now + PATIENCE, yielding: false };
        };
        // A waker may own a task, and a task a sender, which takes the lock when it is dropped.
        let known = (!waiter.waker.will_wake(waker)).then(|| std::mem::replace(&mut waiter.waker, waker.clone()));
        let called = std::mem::take(&mut waiter.called);
        if waiter.place.is_none() {
            let bottleneck = waiter.bottleneck;
            self.enter(&mut queues, sender, now, Refused { bottleneck, by: By::Timer, recovery: None, longest: None });
        }
        let place = queues.look(sender, called, now);
        if let Some(waiter) = queues.waiters.get_mut(&sender) {
            waiter.comes_at = place.at;
        }
        self.publish(queues);
        drop(known);
        place
    }

    /// It waits no more.
    pub(crate) fn leave(&self, sender: u32, now: Instant) {
        let mut queues = self.queues();
        queues.exit(sender, now, true);
        let gone = queues.waiters.remove(&sender);
        self.publish(queues);
        drop(gone);
    }

    /// `sender` has found room on these paths, if not for all that it has. The next sender that waits for the same is called; if there
    /// is none, one of the group that was tried longest ago, which may wait for the same after all.
    pub(crate) fn found_room(
        &self,
        sender: u32,
        paths: impl Iterator<Item = (SocketAddr, Option<IpAddr>)>,
        now: impl FnOnce() -> Instant,
    ) {
        if self.waiting.load(Relaxed) == 0 {
            return;
        }
        let now = now();
        let mut queues = self.queues();
        let own = queues.goes_last(sender);
        let (mut last, mut others, mut called) = (None, false, false);
        let paths = paths.filter(|path| last.replace(*path) != Some(*path)).map(|path| self.path(path));
        let others_groups = paths.chain([Bottleneck::Socket]).filter(|group| own != Some(*group));
        for bottleneck in own.into_iter().chain(others_groups) {
            let Some(group) = queues.groups.get_mut(&bottleneck) else { continue };
            group.backoff.found_room(now);
            others |= own != Some(bottleneck) || group.places.len() > 1;
            called = called || queues.call(bottleneck, sender, now);
        }
        if !others && queues.quiet_until.is_none_or(|until| until <= now) {
            let groups = queues.rota.values().copied().filter(|group| own != Some(*group)).take(LOOKS);
            for bottleneck in groups.collect::<arrayvec::ArrayVec<_, LOOKS>>() {
                if queues.call(bottleneck, sender, now) {
                    queues.crossed = Some(bottleneck);
                    break;
                }
            }
        }
        self.publish(queues);
    }

    /// Whether no sender was called that has not come yet.
    pub(crate) fn is_nobodys_turn(&self) -> bool {
        self.called.load(Relaxed) == 0
    }

    /// The turn of another sender that was called, may want the same room, and has not come yet; only one after `known`, so that nobody
    /// yields to a turn twice.
    pub(crate) fn turn_of_another(&self, sender: u32, path: (SocketAddr, Option<IpAddr>), known: u64) -> Option<u64> {
        if self.is_nobodys_turn() {
            return None;
        }
        let queues = self.queues();
        let groups = [Some(self.path(path)), Some(Bottleneck::Socket), queues.crossed];
        groups.into_iter().flatten().find_map(|bottleneck| {
            let group = queues.groups.get(&bottleneck)?;
            let turn = group.turn?;
            (turn > known && group.prober_id() != Some(sender)).then_some(turn)
        })
    }

    /// Another socket is in the place of the one that refused: all that wait try at once.
    pub(crate) fn socket_replaced(&self) {
        let mut queues = self.queues();
        self.replaced.fetch_add(1, Relaxed);
        let Queues { waiters, wakes, .. } = &mut *queues;
        for waiter in waiters.values_mut() {
            waiter.called = true;
            wakes.push(waiter.waker.clone());
        }
        self.publish(queues);
    }

    /// How many sockets were in the place of this one before.
    pub(crate) fn replaced(&self) -> u32 {
        self.replaced.load(Relaxed)
    }

    /// How long it took lately until those who wait with `sender` had room.
    pub(crate) fn recovery(&self, sender: u32) -> Option<Duration> {
        let queues = self.queues();
        queues.groups.get(&queues.waiters.get(&sender)?.bottleneck)?.backoff.recovery
    }

    /// A sender has tried again, and found no room: that counts if it is the prober.
    fn probed(&self, queues: &mut Queues, sender: u32, refused: Refused, now: Instant) {
        let Refused { bottleneck, by, longest, .. } = refused;
        let pace = self.pace(queues, longest);
        let Some(group) = queues.groups.get_mut(&bottleneck).filter(|group| group.prober_id() == Some(sender)) else {
            return;
        };
        group.backoff.refused(by, now, pace);
        let next = group.after(group.prober).filter(|(place, _)| *place != group.prober);
        if by == By::Call {
            group.quiet_until = now + SPACING;
            // There was room just now: it may be that only this sender's datagrams find none.
            if let Some((_, next)) = next.filter(|_| group.backoff.had_room(now)) {
                queues.wake(next, true);
            }
        } else if let Some((place, id)) = next
            && by == By::Timer
            && group.turn.is_none()
            && group.backoff.is_long(now)
        {
            queues.wake(id, false);
            queues.appoint(bottleneck, place, now);
        }
        queues.restamp(bottleneck);
    }

    /// Puts a sender at the end of its group.
    fn enter(&self, queues: &mut Queues, sender: u32, now: Instant, refused: Refused) {
        let pace = self.pace(queues, refused.longest);
        let (place, stamp) = (queues.last_place(), queues.number());
        let Queues { waiters, groups, rota, .. } = queues;
        let Some(waiter) = waiters.get_mut(&sender) else { return };
        let group = groups.entry(waiter.bottleneck).or_insert_with(|| {
            rota.insert(stamp, waiter.bottleneck);
            let backoff = Backoff::new(waiter.bottleneck.class(), now, refused.recovery, pace);
            Group { places: BTreeMap::new(), prober: place, since: now, backoff, turn: None, quiet_until: now, stamp }
        });
        group.places.insert(place, sender);
        waiter.place = Some(place);
        queues.waiting += 1;
    }

    /// Jitter needs no more than a number that differs from time to time.
    fn pace(&self, queues: &mut Queues, longest: Option<Duration>) -> Pace {
        let spacing = SPACING * u32::try_from(queues.groups.len()).unwrap_or(u32::MAX);
        Pace { spacing, longest, random: (queues.number().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32 }
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unlocks, and then wakes: a waker may poll, and a poll takes the lock.
    fn publish(&self, mut queues: MutexGuard<'_, Queues>) {
        self.waiting.store(queues.waiting, Relaxed);
        self.called.store(queues.called, Relaxed);
        let wakes = std::mem::take(&mut queues.wakes);
        drop(queues);
        wakes.into_iter().for_each(Waker::wake);
    }
}

impl Queues {
    /// What a sender that has a place is to do, now that it has come.
    fn look(&mut self, sender: u32, called: bool, now: Instant) -> Place {
        let gone = Place { called, probes: true, at: now + PATIENCE, yielding: false };
        let Some((bottleneck, place)) = self.place_of(sender) else { return gone };
        let Some(group) = self.groups.get_mut(&bottleneck) else { return gone };
        if group.prober == place {
            self.called -= usize::from(group.turn.take().is_some());
        } else {
            let due = if group.turn.is_some() { group.since } else { group.backoff.at.max(group.since) };
            let late = due + PATIENCE;
            if late > now {
                let at = if group.after(group.prober).is_some_and(|(second, _)| second == place) {
                    late
                } else {
                    late.max(now + group.seldom(place))
                };
                return Place { called, probes: false, at, yielding: false };
            }
            if let Some(late) = group.prober_id() {
                self.exit(late, now, false);
            }
            self.appoint(bottleneck, place, now);
        }
        let Some(group) = self.groups.get(&bottleneck) else { return gone };
        Place { called, probes: true, at: group.backoff.at, yielding: group.backoff.yielding }
    }

    /// A sender that has found room is the last in line if it goes on waiting. Its group.
    fn goes_last(&mut self, sender: u32) -> Option<Bottleneck> {
        let (bottleneck, place) = self.place_of(sender)?;
        let last = self.last_place();
        self.restamp(bottleneck);
        let group = self.groups.get_mut(&bottleneck)?;
        group.places.remove(&place);
        group.places.insert(last, sender);
        if group.prober == place {
            group.prober = last;
        }
        self.waiters.get_mut(&sender)?.place = Some(last);
        Some(bottleneck)
    }

    /// Calls the sender of a group that has waited longest, but for the caller: it probes from now on, and is the last in line. None
    /// while another that was called has not come: it calls the next.
    fn call(&mut self, bottleneck: Bottleneck, caller: u32, now: Instant) -> bool {
        if let Some(group) = self.groups.get(&bottleneck)
            && group.turn.is_some()
            && let Some(late) = group.prober_id()
        {
            if now - group.since < PATIENCE {
                return false;
            }
            self.exit(late, now, false);
        }
        let last = self.last_place();
        let is_own = self.waiters.get(&caller).is_some_and(|waiter| waiter.bottleneck == bottleneck);
        let group = self.groups.get_mut(&bottleneck).filter(|group| is_own || group.quiet_until <= now);
        let Some(group) = group else { return false };
        let Some((&place, &sender)) = group.places.iter().find(|(_, sender)| **sender != caller) else { return false };
        group.places.remove(&place);
        group.places.insert(last, sender);
        group.turn = Some(last);
        self.called += 1;
        if let Some(waiter) = self.waiters.get_mut(&sender) {
            waiter.place = Some(last);
        }
        self.wake(sender, true);
        self.appoint(bottleneck, last, now);
        self.restamp(bottleneck);
        true
    }

    /// Takes a sender out of its group. If it was the prober, the next one is, and is called in its place if `call` says so.
    fn exit(&mut self, sender: u32, now: Instant, call: bool) {
        let Some((bottleneck, place)) = self.place_of(sender) else { return };
        let number = self.last_place();
        self.waiting -= 1;
        if let Some(waiter) = self.waiters.get_mut(&sender) {
            waiter.place = None;
        }
        let Some(group) = self.groups.get_mut(&bottleneck) else { return };
        group.places.remove(&place);
        if group.prober != place {
            return;
        }
        let turn = group.turn.take();
        self.called -= usize::from(turn.is_some());
        let Some((next, id)) = group.after(place) else {
            self.rota.remove(&group.stamp);
            self.groups.remove(&bottleneck);
            return;
        };
        let passes = call && turn.is_some();
        if passes {
            group.turn = Some(number);
            self.called += 1;
        }
        self.wake(id, passes);
        self.appoint(bottleneck, next, now);
    }

    /// The sender in that place, which knows or is woken, is the prober from now on. The one behind it looks in time whether it does
    /// its work.
    fn appoint(&mut self, bottleneck: Bottleneck, place: u64, now: Instant) {
        let Some(group) = self.groups.get_mut(&bottleneck) else { return };
        (group.prober, group.since) = (place, now);
        let second = group.after(place).map(|(_, id)| id);
        let comes_at = second.and_then(|id| self.waiters.get(&id)).map(|waiter| waiter.comes_at);
        if let (Some(id), Some(comes_at)) = (second, comes_at)
            && comes_at > now + 2 * PATIENCE
        {
            self.wake(id, false);
        }
    }

    fn wake(&mut self, sender: u32, called: bool) {
        if let Some(waiter) = self.waiters.get_mut(&sender) {
            waiter.called |= called;
            self.wakes.push(waiter.waker.clone());
        }
    }

    /// The group was tried or called now.
    fn restamp(&mut self, bottleneck: Bottleneck) {
        let stamp = self.number();
        if let Some(group) = self.groups.get_mut(&bottleneck) {
            self.rota.remove(&group.stamp);
            self.rota.insert(stamp, bottleneck);
            group.stamp = stamp;
        }
    }

    fn place_of(&self, sender: u32) -> Option<(Bottleneck, u64)> {
        let waiter = self.waiters.get(&sender)?;
        Some((waiter.bottleneck, waiter.place?))
    }

    fn last_place(&mut self) -> u64 {
        self.places += 1;
        self.places
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

impl Group {
    fn prober_id(&self) -> Option<u32> {
        self.places.get(&self.prober).copied()
    }

    /// The place behind `place`, and the sender there; the first behind the last.
    fn after(&self, place: u64) -> Option<(u64, u32)> {
        let after = self.places.range((Excluded(place), Unbounded)).next().or_else(|| self.places.first_key_value());
        after.map(|(place, sender)| (*place, *sender))
    }

    /// How often a sender looks that is neither the prober nor the second: all together a hundred times a second at the most, and not
    /// all at once.
    fn seldom(&self, place: u64) -> Duration {
        let senders = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        let least = (SELDOM * senders).max(LAST_BACKSTOP);
        least + least / 64 * (place % 64) as u32
    }
}

#[cfg(test)]
mod tests;
