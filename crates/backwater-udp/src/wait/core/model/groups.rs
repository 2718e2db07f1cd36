//! Several senders of a socket, several destinations, queues that destinations share, and a send buffer that all share.

use tokio::task::LocalSet;

use super::*;
use crate::wait::{
    backoff::By,
    core::sender::remaining,
    fairness::{Bottleneck, Refused},
};

const MS: Duration = Duration::from_millis(1);
const WAIT: Policy = Policy::Wait { deadline: Duration::from_secs(100) };

/// A socket whose send buffer has room, with a queue for each of so many destinations.
fn socket(policy: Policy, queues: &[Link]) -> Model {
    let model = model(Row::SendBuffer, 1, policy);
    model.world.borrow_mut().episodes.clear();
    for (number, link) in queues.iter().enumerate() {
        model.queues.borrow_mut().insert(to(number), Rc::new(Cell::new(*link)));
    }
    model
}

fn to(number: usize) -> SocketAddr {
    ([127, 0, 0, 1], 1000 + number as u16).into()
}

fn full() -> Link {
    Link::new(MS, 0)
}

/// Gives a destination a queue that takes all.
fn open(model: &Model, number: usize) {
    model.queues.borrow()[&to(number)].set(Link::new(MS / 1000, 1_000_000));
}

/// So many senders that each send a datagram to one of so many full queues; to a full send buffer, for 150 ms, if there are none. Runs
/// the test when all wait, after 100 ms.
fn waiting<R>(senders: usize, queues: usize, test: impl AsyncFnOnce(&Model) -> R) -> R {
    runtime().block_on(LocalSet::new().run_until(async {
        let model = socket(WAIT, &vec![full(); queues]);
        if queues == 0 {
            model.world.borrow_mut().episodes = vec![(Instant::now(), Instant::now() + 150 * MS)];
        }
        for sender in 0..senders {
            let model = model.clone();
            tokio::task::spawn_local(async move {
                let mut core = SenderCore::new(model);
                let slices = [IoSlice::new(b"x")];
                let mut t = Transmit::new(to(sender % queues.max(1)), &slices);
                poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(&mut t))).await.unwrap();
            });
        }
        let watched = model.clone();
        tokio::task::spawn_local(async move { reactor(&watched).await });
        tokio::time::sleep(100 * MS).await;
        assert_eq!(model.stats.snapshot().held, senders as u64);
        test(&model).await
    }))
}

/// Attempts within a time of the model's clock.
async fn attempts(model: &Model, time: Duration) -> u64 {
    let before = model.stats.snapshot().attempts;
    tokio::time::sleep(time).await;
    model.stats.snapshot().attempts - before
}

#[test]
fn as_many_as_wait_for_a_queue_it_is_tried_as_often_as_for_one() {
    for (senders, most) in [(1, 140), (10, 140), (2_000, 140)] {
        let attempts = waiting(senders, 1, async |model| attempts(model, 1000 * MS).await);
        assert!((110..=most).contains(&attempts), "{senders}: {attempts}");
    }
}

#[test]
fn whatever_the_number_of_queues_they_are_tried_four_times_a_millisecond() {
    for queues in [10, 100, 1_000] {
        let attempts = waiting(queues, queues, async |model| attempts(model, 1000 * MS).await);
        assert!((1_000..=4_500).contains(&attempts), "{queues}: {attempts}");
    }
}

#[test]
fn those_who_wait_for_a_full_send_buffer_have_one_registration() {
    waiting(1_000, 0, async |model| {
        assert_eq!(model.world.borrow().registrations.len(), 1);
        let before = model.stats.snapshot().attempts;
        tokio::time::sleep(51 * MS).await;
        let counted = model.stats.snapshot();
        assert_eq!((counted.sent, counted.held), (1_000, 0), "each calls the next");
        assert!(counted.attempts - before <= 1_002, "{}", counted.attempts - before);
        assert_eq!((counted.advised.wakes.readiness, counted.advised.wakes.policy), (1, 999));
    });
}

#[test]
fn one_that_finds_room_empties_the_line_and_that_of_other_paths() {
    waiting(1_000, 100, async |model| {
        (0..100).for_each(|queue| open(model, queue));
        tokio::time::sleep(10 * MS).await;
        let counted = model.stats.snapshot();
        assert_eq!((counted.sent, counted.held), (1_000, 0));
    });
}

#[test]
fn a_queue_that_stays_full_holds_up_no_other() {
    waiting(300, 3, async |model| {
        open(model, 1);
        tokio::time::sleep(12 * MS).await;
        assert_eq!(model.stats.snapshot().sent, 100);
        open(model, 2);
        tokio::time::sleep(12 * MS).await;
        assert_eq!(model.stats.snapshot().sent, 200);
    });
}

/// The prober holds more than the queue will ever take; datagrams behind it would fit.
#[test]
fn what_fits_does_not_wait_for_what_never_fits() {
    runtime().block_on(LocalSet::new().run_until(async {
        let model = socket(WAIT, &[full()]);
        let c = &model.contention;
        let bottleneck = c.path((to(0), None));
        let refuse = |by| {
            c.refused(u32::MAX, Refused { bottleneck, by, recovery: None, longest: None }, Instant::now());
        };
        refuse(By::Timer);
        for _ in 0..3 {
            let model = model.clone();
            tokio::task::spawn_local(async move {
                let mut core = SenderCore::new(model);
                let slices = [IoSlice::new(b"x")];
                let mut t = Transmit::new(to(0), &slices);
                poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(&mut t))).await.unwrap();
            });
        }
        tokio::task::yield_now().await;
        open(&model, 0);
        for _ in 0..40 {
            let place = c.wait(u32::MAX, Waker::noop(), Instant::now());
            if place.called || place.probes && place.at <= Instant::now() {
                refuse(if place.called { By::Call } else { By::Timer });
            }
            tokio::time::sleep(MS).await;
        }
        assert_eq!(model.stats.snapshot().sent, 3);
    }));
}

/// Senders that have been given up without a word, and that were the probers.
#[test]
fn probers_that_do_not_come_hold_up_nobody_for_long() {
    runtime().block_on(LocalSet::new().run_until(async {
        let model = socket(WAIT, &[full()]);
        let slices = [IoSlice::new(b"x")];
        let mut gone = [(); 3].map(|()| SenderCore::new(model.clone()));
        for core in &mut gone {
            let mut t = Transmit::new(to(0), &slices);
            let polled = core.poll_send_batch(&mut Context::from_waker(Waker::noop()), std::slice::from_mut(&mut t));
            assert!(polled.is_pending());
        }
        let mut core = SenderCore::new(model.clone());
        let others = tokio::task::spawn_local(async move {
            let slices = [IoSlice::new(b"x")];
            let mut t = Transmit::new(to(0), &slices);
            poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(&mut t))).await.unwrap();
        });
        tokio::task::yield_now().await;
        open(&model, 0);
        let began = Instant::now();
        others.await.unwrap();
        assert!(began.elapsed() <= 300 * MS, "{:?}", began.elapsed());
        drop(gone);
        assert_eq!((model.stats.snapshot().sent, model.stats.snapshot().held), (1, 0));
    }));
}

/// What a sender of a schedule waits for: how much is left for each destination, since when.
#[derive(Clone, Default)]
struct Held {
    left: Vec<(SocketAddr, u32)>,
    since: Option<Instant>,
    /// At how many looks in a row there was room for all of it, and how many sleeps had ended when that began.
    with_room: u32,
    ended: u32,
    /// It is not polled for a while.
    asleep: bool,
}

/// At how many looks, of one a millisecond, there may be room for all that a sender holds: the longest silent wait with its jitter
/// and a timer's slack. When the send buffer was full, the longest backstop: an edge may come right before it is full again.
const LOOKS: u32 = 12;
const LOOKS_AFTER_EDGES: u32 = LOOKS + 100;

/// What a prober that does not come adds: the longest backstop, and until another takes its place.
const LOOKS_MORE: u32 = 130;

struct Schedule {
    model: Model,
    held: RefCell<Vec<Held>>,
    /// Sleeps that have begun, and that have ended.
    begun: Cell<u32>,
    ended: Cell<u32>,
    switched: Cell<Option<Instant>>,
    deadline: Duration,
    /// At how many looks there may be room for all that a sender holds.
    looks: u32,
}

impl Schedule {
    /// Offers random transmits, one batch after the other; now and then it gives one up, is dropped, or is not polled for a while.
    async fn send(&self, index: usize, mut random: Random, destinations: u64, sleeps: bool) {
        let payload = [0; 64];
        let slices = [IoSlice::new(&payload)];
        let mut core = SenderCore::new(self.model.clone());
        for _ in 0..1 + random.below(8) {
            if random.below(2) == 0 {
                tokio::time::sleep(random.ms(0, 20)).await;
            }
            let several = if random.below(4) == 0 { 2 + random.below(3) } else { 1 };
            let size = if random.below(2) == 0 { 64 } else { 64 / (1 + random.below(16) as usize) };
            let transmit = |_| Transmit::new(to(random.below(destinations) as usize), &slices).segment_size(size);
            let mut ts: Vec<_> = (0..several).map(transmit).collect();
            let (began, count) = (Instant::now(), remaining(&ts) as u64);
            let give_up = if random.below(8) == 0 { random.ms(0, 30) } else { NEVER };
            let sleep = if sleeps && random.below(3) == 0 { random.ms(1, 60) } else { NEVER };
            let sleeps = (sleep, random.ms(1, 80));
            let ended = self.offer(index, &mut core, &mut ts, give_up, sleeps).await;
            self.held.borrow_mut()[index] = Held::default();
            match ended {
                Some(report) => {
                    assert_eq!(u64::from(report.sent + report.dropped.total()), count, "a datagram without an end");
                    let bound = self.deadline + if sleep < NEVER { 80 * MS } else { Duration::ZERO };
                    assert!(began.elapsed() <= bound + SLACK, "ended after {:?}", began.elapsed());
                }
                None if random.below(2) == 0 => core.give_up(&mut ts),
                None => core = SenderCore::new(self.model.clone()),
            }
        }
    }

    /// Offers them, and is not polled for a while after a while (`sleeps`). `None` when it gives up.
    async fn offer(
        &self,
        index: usize,
        core: &mut SenderCore<Model>,
        ts: &mut [Transmit<'_>],
        give_up: Duration,
        sleeps: (Duration, Duration),
    ) -> Option<SendReport> {
        let began = Instant::now();
        let mut send = poll_fn(|cx| {
            let fits = !core.core.is_parked() && self.fits(&left(ts));
            let polled = core.poll_send_batch(cx, ts);
            // It may yield to one that was called.
            assert!(!fits || !core.core.is_parked() || polled.is_ready(), "there was room for all of it");
            let held = &mut self.held.borrow_mut()[index];
            if polled.is_pending() {
                let left = left(ts);
                if left != held.left {
                    *held = Held { left, since: Some(began), with_room: 0, ended: self.ended.get(), asleep: false };
                }
                held.asleep = false;
            } else {
                *held = Held::default();
            }
            polled
        });
        tokio::select! {
            biased;
            report = &mut send => return Some(report.unwrap()),
            () = sleep_until(began + give_up) => return None,
            () = sleep_until(began + sleeps.0) => {}
        }
        self.held.borrow_mut()[index].asleep = true;
        self.begun.set(self.begun.get() + 1);
        tokio::time::sleep(sleeps.1).await;
        self.ended.set(self.ended.get() + 1);
        if began.elapsed() > give_up { None } else { Some(send.await.unwrap()) }
    }

    /// Whether there is room now for all of it.
    fn fits(&self, left: &[(SocketAddr, u32)]) -> bool {
        let queues = self.model.queues.borrow();
        let is_free = self.model.world.borrow().blocked(Instant::now()).is_none();
        // Of those that share a queue each is asked alone: all of them have to fit.
        let all = left.iter().map(|(_, count)| count).sum();
        is_free && left.iter().all(|(to, _)| queues[to].get().fits(all))
    }

    /// Looks each millisecond whether a sender is held though there is room, or after a switch.
    async fn watch(&self) {
        loop {
            tokio::time::sleep(MS).await;
            // All that others do at this time is done before.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            let mut held = self.held.borrow_mut();
            for held in held.iter_mut().filter(|held| held.since.is_some()) {
                let released = self.switched.get().is_none_or(|at| held.asleep || at.elapsed() <= SLACK);
                assert!(released, "the policy drops, and it is held");
                if !self.fits(&held.left) {
                    (held.with_room, held.ended) = (0, self.ended.get());
                    continue;
                }
                held.with_room += 1;
                let bound = self.looks + LOOKS_MORE * (self.begun.get() - held.ended);
                let is_late = held.with_room > bound && !held.asleep;
                assert!(!is_late, "held for {} ms with room: {:?}", held.with_room, held.left);
            }
        }
    }

    async fn switch(&self, mut random: Random, policy: Policy) {
        loop {
            tokio::time::sleep(random.ms(20, 300)).await;
            self.switched.set(Some(Instant::now()));
            self.model.backpressure.set(Policy::Drop);
            tokio::time::sleep(random.ms(0, 10)).await;
            self.switched.set(None);
            self.model.backpressure.set(policy);
        }
    }
}

fn left(ts: &[Transmit<'_>]) -> Vec<(SocketAddr, u32)> {
    ts.iter().filter(|t| !t.is_done()).map(|t| (t.destination, t.remaining() as u32)).collect()
}

async fn senders_and_queues(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66D);
    let deadline = random.ms(20, 400);
    let policy = Policy::Wait { deadline };
    let model = model(Row::SendBuffer, seed, policy);
    let mut looks = LOOKS_AFTER_EDGES;
    if random.below(2) == 0 {
        model.world.borrow_mut().episodes.clear();
        looks = LOOKS;
    }
    let destinations = 1 + random.below(5);
    let links: Vec<_> = (0..1 + random.below(3))
        .map(|_| {
            let each = Duration::from_micros([20, 100, 500, 3000][random.below(4) as usize]);
            Rc::new(Cell::new(Link::new(each, random.below(30) as u32)))
        })
        .collect();
    for number in 0..destinations as usize {
        let link = links[random.below(links.len() as u64) as usize].clone();
        model.queues.borrow_mut().insert(to(number), link);
    }
    let senders = 1 + random.below(10) as usize;
    let sleeps = random.below(3) == 0;
    let schedule = Schedule {
        model: model.clone(),
        held: RefCell::new(vec![Held::default(); senders]),
        begun: Cell::new(0),
        ended: Cell::new(0),
        switched: Cell::new(None),
        deadline,
        looks,
    };
    let schedule = Rc::new(schedule);
    let sending: Vec<_> = (0..senders)
        .map(|index| {
            let (schedule, random) = (schedule.clone(), Random(random.below(u64::MAX)));
            tokio::task::spawn_local(async move { schedule.send(index, random, destinations, sleeps).await })
        })
        .collect();
    let all = async {
        for sender in sending {
            sender.await.unwrap();
        }
    };
    let switches = random.below(2) == 0;
    tokio::select! {
        () = all => {}
        () = schedule.watch() => {}
        () = reactor(&model) => {}
        () = schedule.switch(Random(seed), policy), if switches => {}
    }
    let counted = model.stats.snapshot();
    assert_eq!(counted.held, 0, "conservation");
    assert_eq!(model.world.borrow().delivered, counted.sent, "sent means taken, once");
    assert!(model.contention.is_nobodys_turn());
    assert_eq!(counted.lost_edges, 0);
}

#[test]
fn nobody_waits_for_a_path_that_is_not_its_own() {
    // Each has up to ten senders.
    let count = number("BACKWATER_SCHEDULES").unwrap_or(2000) / 10;
    let seeds = number("BACKWATER_SEED").map_or(0..count, |seed| seed..seed + 1);
    for seed in seeds {
        let run = || runtime().block_on(LocalSet::new().run_until(senders_and_queues(seed)));
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            eprintln!("failed with BACKWATER_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn bottlenecks_differ_by_what_was_refused() {
    runtime().block_on(async {
        let model = socket(WAIT, &[full(), full()]);
        let slices = [IoSlice::new(b"x")];
        let poll = |core: &mut SenderCore<Model>, ts: &mut [Transmit<'_>]| {
            assert!(core.poll_send_batch(&mut Context::from_waker(Waker::noop()), ts).is_pending());
            core.core.wait.as_ref().and_then(|wait| wait.parked.as_ref()).unwrap().bottleneck
        };
        let path = |number| model.contention.path((to(number), None));
        let transmits =
            |to_which: &[usize]| to_which.iter().map(|n| Transmit::new(to(*n), &slices)).collect::<Vec<_>>();
        let mut core = SenderCore::new(model.clone());
        assert_eq!(poll(&mut core, &mut transmits(&[0])), path(0));
        assert_eq!(poll(&mut core, &mut transmits(&[1, 1, 1])), path(1));
        assert_eq!(poll(&mut core, &mut transmits(&[1, 0])), Bottleneck::Sender(core.core.id));
        // What goes does not count; what has gone since does not either.
        open(&model, 0);
        assert_eq!(poll(&mut core, &mut transmits(&[0, 1])), path(1));
        model.failures.borrow_mut().extend([libc::EWOULDBLOCK; 2]);
        assert_eq!(poll(&mut core, &mut transmits(&[0, 1])), Bottleneck::Socket);
        model.failures.borrow_mut().extend([libc::ECONNREFUSED; 20]);
        assert_eq!(
            poll(&mut core, &mut transmits(&[0])),
            Bottleneck::Sender(core.core.id),
            "a flood of others' errors"
        );
    });
}
