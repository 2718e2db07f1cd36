//! Random schedules of each row, and what the naive mapping makes of the rows.

use super::*;

async fn schedule(row: Row, seed: u64) {
    let mut random = Random(seed ^ 0x5DEE_CE66D);
    let deadline = if random.below(4) == 0 { Duration::from_millis(100) } else { random.ms(1, 120) };
    let policy = if random.below(8) == 0 { Policy::Drop } else { Policy::Wait { deadline } };
    let model = model(row, seed, policy);
    let sending = async {
        let mut core = SenderCore::new(model.clone());
        let payload = vec![0; 640];
        for _ in 0..1 + random.below(5) {
            if random.below(2) == 0 {
                tokio::time::sleep(random.ms(0, 20)).await;
            }
            model.world.borrow_mut().refused.clear();
            let slices = [IoSlice::new(&payload)];
            let datagrams = 1 + random.below(64) as usize;
            let several = if random.below(3) == 0 { 2 + random.below(3) as usize } else { 1 };
            let transmit = || Transmit::new(TO, &slices).segment_size(640 / datagrams);
            let mut ts: Vec<_> = std::iter::repeat_with(transmit).take(several).collect();
            let count: u64 = ts.iter().map(|t| t.remaining() as u64).sum();
            let before = model.stats.snapshot();
            let start = Instant::now();
            let give_up = if random.below(10) == 0 { random.ms(0, 50) } else { NEVER };
            let switch = if random.below(6) == 0 { random.ms(0, 50) } else { NEVER };
            let mut switched = false;
            let sent = {
                let mut send = pin!(poll_fn(|cx| core.poll_send_batch(cx, &mut ts)));
                loop {
                    tokio::select! {
                        biased;
                        result = &mut send => break Some(result),
                        () = sleep_until(start + give_up) => break None,
                        () = sleep_until(start + switch), if !switched => {
                            switched = true;
                            model.backpressure.set(Policy::Drop);
                        }
                    }
                }
            };
            let took = start.elapsed();
            let after = model.stats.snapshot();
            assert_eq!(after.accepted, before.accepted + count);
            check_attempts(&model.world.borrow().refused, several);
            match sent {
                Some(report) => {
                    let report = report.unwrap();
                    assert_eq!(u64::from(report.sent + report.dropped.total()), count, "a datagram without an end");
                    assert_eq!(after.held, 0);
                    let bound = if switched { switch.min(deadline) } else { deadline };
                    assert!(took <= bound + SLACK, "ended after {took:?}, not {bound:?}");
                    if row == Row::Others {
                        assert_eq!(u64::from(report.sent), count, "another's error cost a datagram");
                    }
                }
                None => {
                    assert!(give_up < NEVER, "a sender that hangs");
                    assert!(took <= give_up + SLACK);
                    assert_eq!(after.held, ts.iter().map(|t| t.remaining() as u64).sum::<u64>());
                }
            }
            if switched {
                model.backpressure.set(policy);
            }
        }
        drop(core);
        let end = model.stats.snapshot();
        assert_eq!(end.held, 0, "conservation");
        if row != Row::XnuRace {
            assert_eq!(end.lost_edges, 0, "an edge that came, or was not promised");
        }
        let delivered = model.world.borrow().delivered;
        if row == Row::XnuQueued {
            assert!(delivered >= end.sent);
        } else {
            assert_eq!(delivered, end.sent, "sent means taken, once");
        }
    };
    tokio::select! {
        () = sending => {}
        () = reactor(&model) => {}
    }
}

/// Schedules that failed once.
const KEPT: [(Row, u64); 1] = [(Row::Others, 6_806_083_381_806_478_400)];

fn run(row: Row) {
    let runtime = runtime();
    let count = number("BACKWATER_SCHEDULES").unwrap_or(2000);
    let first = number("BACKWATER_SEED");
    let base = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seeds = match first {
        Some(seed) => vec![seed],
        None => (0..count).map(|i| base.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect(),
    };
    let kept = KEPT.iter().filter(|(kept, _)| *kept == row).map(|(_, seed)| *seed);
    for seed in kept.chain(seeds) {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(schedule(row, seed))));
        if let Err(panic) = result {
            eprintln!("{row:?} failed with BACKWATER_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

macro_rules! rows {
    ($($name:ident $row:ident,)*) => {
        $(#[test]
        fn $name() {
            run(Row::$row);
        })*

        #[test]
        fn every_row_has_a_test() {
            assert_eq!([$(Row::$row),*], ROWS);
        }
    };
}

rows! {
    xnu_advised XnuAdvised,
    xnu_race XnuRace,
    xnu_queued XnuQueued,
    xnu_silent XnuSilent,
    freebsd FreeBsd,
    linux_queue LinuxQueue,
    linux_memory LinuxMemory,
    windows Windows,
    send_buffer SendBuffer,
    permanent Permanent,
    latched Latched,
    others Others,
}

/// A latched bit makes readiness worthless; registered anew it is worth something again, and comes before the timer.
#[test]
fn registering_anew_brings_readiness_back() {
    runtime().block_on(async {
        let model = model(Row::Latched, 1, Policy::Wait { deadline: Duration::from_secs(1) });
        let now = Instant::now();
        model.world.borrow_mut().episodes = vec![(now, now + Duration::from_millis(60))];
        let mut core = SenderCore::new(model.clone());
        let slices = [IoSlice::new(b"x")];
        let mut t = Transmit::new(TO, &slices);
        tokio::select! {
            report = poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(&mut t))) => {
                assert_eq!(report.unwrap().sent, 1);
            }
            () = reactor(&model) => {}
        }
        // By the timers alone: 25, 75, 175 ms.
        assert!(now.elapsed() <= Duration::from_millis(62), "{:?}", now.elapsed());
    });
}

/// One datagram after the other, for `seconds`, into a system that has no room for 40 of every 61 ms. Then how many edges
/// count as lost. `lost` says whether they are.
fn lost_edges_under_load(row: Row, seconds: u64, lost: bool) -> u64 {
    runtime().block_on(async {
        let model = Model { lossy: lost, ..model(row, 1, Policy::Wait { deadline: Duration::from_secs(1) }) };
        let (begin, ms) = (Instant::now(), Duration::from_millis(1));
        let every = (0..seconds * 16).map(|i| begin + ms * 61 * i as u32);
        model.world.borrow_mut().episodes = every.map(|start| (start, start + ms * 40)).collect();
        let sending = async {
            let mut core = SenderCore::new(model.clone());
            let slices = [IoSlice::new(b"x")];
            while begin.elapsed() < Duration::from_secs(seconds) {
                let mut t = Transmit::new(TO, &slices);
                poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(&mut t))).await.unwrap();
                tokio::time::sleep(ms).await;
            }
        };
        tokio::select! {
            () = sending => {}
            () = reactor(&model) => {}
        }
        let stats = model.stats.snapshot();
        assert!(stats.parked >= seconds * 5, "{stats:?}");
        stats.lost_edges
    })
}

/// An edge is lost when none has come for 250 ms after a timer found room. Whether the sender had to wait again meanwhile is
/// not asked: under load it always has to.
#[test]
fn lost_edges_are_counted_under_load_and_none_where_they_come() {
    let lost = lost_edges_under_load(Row::XnuAdvised, 10, true);
    assert!((10..=40).contains(&lost), "{lost}");
    for row in [Row::XnuAdvised, Row::XnuQueued, Row::SendBuffer] {
        assert_eq!(lost_edges_under_load(row, 10, false), 0, "{row:?}");
    }
}

#[test]
fn a_switch_of_the_policy_releases_a_sender_at_once() {
    runtime().block_on(async {
        let model = model(Row::Permanent, 1, Policy::Wait { deadline: Duration::from_secs(10) });
        model.world.borrow_mut().episodes = vec![(Instant::now(), Instant::now() + NEVER)];
        let (now, handle) = (Instant::now(), model.backpressure.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            handle.set(Policy::Drop);
        });
        let mut core = SenderCore::new(model);
        let slices = [IoSlice::new(b"x")];
        let mut t = Transmit::new(TO, &slices);
        let report = poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(&mut t))).await.unwrap();
        assert_eq!(report.dropped.get(DropReason::NoBuffers), 1);
        assert!(now.elapsed() < Duration::from_millis(13), "{:?}: not by the switch", now.elapsed());
    });
}

/// The log has what changes, not what is repeated.
#[test]
fn ten_thousand_waits_are_a_handful_of_lines() {
    #[derive(Clone, Default)]
    struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let written = lines.clone();
    let subscriber = tracing_subscriber::fmt().without_time().with_target(false).with_ansi(false);
    let subscriber = subscriber.with_writer(move || written.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    // While there is only one, tracing asks the default of whichever thread comes first whether an event is wanted: that of
    // another test, which has none.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let take = || String::from_utf8(std::mem::take(&mut *lines.0.lock().unwrap())).unwrap();
    let count =
        |text: &str| (text.matches("senders wait").count(), text.matches("a new socket").count(), text.lines().count());
    runtime().block_on(async {
        let model = model(Row::FreeBsd, 1, Policy::Wait { deadline: Duration::from_millis(1) });
        model.world.borrow_mut().episodes = vec![(Instant::now(), Instant::now() + NEVER)];
        let mut core = SenderCore::new(model.clone());
        let slices = [IoSlice::new(b"x")];
        let send = async |core: &mut SenderCore<Model>| {
            let mut t = Transmit::new(TO, &slices);
            poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(&mut t))).await.unwrap()
        };
        for _ in 0..10_000 {
            assert_eq!(send(&mut core).await.sent, 0);
        }
        assert_eq!((model.stats.snapshot().parked, model.stats.snapshot().stuck), (10_000, 1));
        assert_eq!(count(&take()), (1, 1, 2));
        // It ends, unnoticed while nothing is sent; then there is room at the second attempt.
        let now = Instant::now() + Duration::from_secs(20);
        model.world.borrow_mut().episodes = vec![(now, now + Duration::from_micros(500))];
        sleep_until(now).await;
        model.backpressure.set(Policy::default());
        assert_eq!(send(&mut core).await.sent, 1);
        let text = take();
        assert_eq!(
            (count(&text).0, text.matches("takes datagrams again").count(), text.lines().count()),
            (1, 1, 2),
            "{text}"
        );
    });
}

#[derive(Debug, PartialEq, Eq)]
enum Naive {
    Works,
    Hangs,
    Spins,
}

/// What the shipped loop does with the naive mapping's decisions when there is no room for 20 ms.
fn naive(row: Row, seed: u64) -> Naive {
    runtime().block_on(async {
        let model = Model { naive: true, ..model(row, seed, Policy::Wait { deadline: NEVER }) };
        let now = Instant::now();
        model.world.borrow_mut().episodes = vec![(now, now + Duration::from_millis(20))];
        let mut core = SenderCore::new(model.clone());
        let slices = [IoSlice::new(b"x")];
        let mut t = Transmit::new(TO, &slices);
        let mut send = pin!(poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(&mut t))));
        let mut world = pin!(reactor(&model));
        let mut limit = pin!(sleep_until(now + Duration::from_secs(60)));
        poll_fn(|cx| {
            if send.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Naive::Works);
            }
            if model.world.borrow().refused.len() >= 1000 {
                return Poll::Ready(Naive::Spins);
            }
            let _ = world.as_mut().poll(cx);
            limit.as_mut().poll(cx).map(|()| Naive::Hangs)
        })
        .await
    })
}

#[test]
fn the_model_bites_the_naive_mapping_hangs_and_spins_in_it() {
    for row in [Row::XnuAdvised, Row::XnuQueued, Row::SendBuffer] {
        assert_eq!(naive(row, 1), Naive::Works, "{row:?}");
    }
    for row in [Row::XnuSilent, Row::FreeBsd, Row::LinuxMemory, Row::Permanent] {
        assert_eq!(naive(row, 1), Naive::Hangs, "{row:?}");
    }
    for row in [Row::LinuxQueue, Row::Latched] {
        assert_eq!(naive(row, 1), Naive::Spins, "{row:?}");
    }
    let race: Vec<_> = (0..40).map(|seed| naive(Row::XnuRace, seed)).collect();
    assert!(race.contains(&Naive::Hangs) && race.contains(&Naive::Works), "{race:?}");
}
