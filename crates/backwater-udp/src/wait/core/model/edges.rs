//! Promised events that come, come late, or do not come; and a reactor that fails.

use super::*;

const MS: Duration = Duration::from_millis(1);
const WAIT: Policy = Policy::Wait { deadline: Duration::from_secs(1) };

/// There is no room from now on, for so long.
fn block(model: &Model, time: Duration) {
    model.world.borrow_mut().episodes = vec![(Instant::now(), Instant::now() + time)];
}

/// The event for the first registration arrives now.
fn edge(model: &Model) {
    let world = &mut *model.world.borrow_mut();
    world.edges.push(Reverse((Instant::now(), 0)));
    world.deliver_due(Instant::now());
}

fn poll(core: &mut SenderCore<Model>, ts: &mut [Transmit<'_>]) -> Poll<io::Result<SendReport>> {
    core.poll_send_batch(&mut Context::from_waker(Waker::noop()), ts)
}

async fn send(model: &Model, core: &mut SenderCore<Model>, ts: &mut [Transmit<'_>]) -> io::Result<SendReport> {
    tokio::select! {
        report = poll_fn(|cx| core.poll_send_batch(cx, ts)) => report,
        () = reactor(model) => unreachable!(),
    }
}

async fn send_one(model: &Model, core: &mut SenderCore<Model>) -> u32 {
    let slices = [IoSlice::new(b"x")];
    send(model, core, &mut [Transmit::new(TO, &slices)]).await.unwrap().sent
}

fn lost(model: &Model) -> u64 {
    model.stats.snapshot().lost_edges
}

/// A sender whose timer has found room right now, though the promised event has not come. No event comes by itself.
async fn suspicious() -> (Model, SenderCore<Model>) {
    let model = Model { lossy: true, ..model(Row::SendBuffer, 1, WAIT) };
    block(&model, 20 * MS);
    let mut core = SenderCore::new(model.clone());
    assert_eq!(send_one(&model, &mut core).await, 1);
    assert_eq!(model.stats.snapshot().advised.wakes.timer, 1);
    (model, core)
}

/// Polls a datagram that the system refuses so often, with the event after the first poll; then gives it up.
fn waits_in_vain(model: &Model, core: &mut SenderCore<Model>, polls: u32) {
    let slices = [IoSlice::new(b"x")];
    let mut ts = [Transmit::new(TO, &slices)];
    for number in 0..polls {
        assert!(poll(core, &mut ts).is_pending());
        if number == 0 {
            edge(model);
        }
    }
    core.give_up(&mut ts);
}

#[test]
fn an_event_that_has_not_come_after_a_quarter_of_a_second_is_lost() {
    runtime().block_on(async {
        for (ms, expected) in [(249, 0), (250, 1)] {
            let (model, mut core) = suspicious().await;
            tokio::time::sleep(ms * MS).await;
            assert_eq!((send_one(&model, &mut core).await, lost(&model)), (1, expected));
            edge(&model);
            tokio::time::sleep(ms * MS).await;
            assert_eq!((send_one(&model, &mut core).await, lost(&model)), (1, expected), "it is counted once");
        }
    });
}

#[test]
fn an_event_that_comes_while_nothing_is_sent_is_not_lost() {
    runtime().block_on(async {
        let (model, mut core) = suspicious().await;
        tokio::time::sleep(100 * MS).await;
        edge(&model);
        tokio::time::sleep(200 * MS).await;
        assert_eq!((send_one(&model, &mut core).await, lost(&model)), (1, 0));
    });
}

/// The event that ends the next wait is another one.
#[test]
fn an_event_that_is_lost_is_counted_when_the_next_wait_begins() {
    runtime().block_on(async {
        let (model, mut core) = suspicious().await;
        tokio::time::sleep(300 * MS).await;
        block(&model, 20 * MS);
        model.world.borrow_mut().edges.push(Reverse((Instant::now() + 20 * MS, 0)));
        assert_eq!((send_one(&model, &mut core).await, lost(&model)), (1, 1));
        assert_eq!(model.stats.snapshot().advised.wakes.readiness, 1);
    });
}

/// It is consumed by a sender that has to wait again, or erased when that one registers anew.
#[test]
fn an_event_that_comes_during_the_next_wait_is_not_lost() {
    runtime().block_on(async {
        for first in [None, Some(libc::ENOBUFS)] {
            let (model, mut core) = suspicious().await;
            tokio::time::sleep(10 * MS).await;
            block(&model, NEVER);
            model.failures.borrow_mut().extend(first);
            waits_in_vain(&model, &mut core, 2);
            assert_eq!(model.world.borrow().renewals, u64::from(first.is_some()));
            model.world.borrow_mut().episodes.clear();
            tokio::time::sleep(300 * MS).await;
            assert_eq!((send_one(&model, &mut core).await, lost(&model)), (1, 0), "{first:?}");
        }
    });
}

/// That is a system call or three.
#[test]
fn a_sender_registers_anew_only_where_readiness_was_worthless() {
    runtime().block_on(async {
        let model = model(Row::SendBuffer, 1, WAIT);
        let mut core = SenderCore::new(model.clone());
        // An event from before the first wait, and refusals without a promise.
        block(&model, 5 * MS);
        assert_eq!(send_one(&model, &mut core).await, 1);
        edge(&model);
        block(&model, 5 * MS);
        assert_eq!(send_one(&model, &mut core).await, 1);
        model.failures.borrow_mut().extend([libc::ENOBUFS; 6]);
        assert_eq!(send_one(&model, &mut core).await, 1);
        assert_eq!(model.world.borrow().renewals, 0);
        block(&model, 30 * MS);
        assert_eq!(send_one(&model, &mut core).await, 1);
        assert_eq!(model.world.borrow().renewals, 1, "the timer has fired");
    });
}

/// A runtime that ends, or a descriptor that another part of the program has closed.
#[test]
fn a_reactor_that_fails_fails_the_sender_and_any_other_error_leaves_it_the_timer() {
    runtime().block_on(async {
        let slices = [IoSlice::new(b"123")];
        for fails_to_register in [true, false] {
            for errno in [libc::EBADF, libc::ENOMEM] {
                let model = model(Row::SendBuffer, 1, WAIT);
                block(&model, 20 * MS);
                let fails = if fails_to_register { &model.registering_fails } else { &model.polling_fails };
                fails.set(Some(errno));
                let mut core = SenderCore::new(model.clone());
                let ended = send(&model, &mut core, &mut [Transmit::new(TO, &slices).segment_size(1)]).await;
                let counted = model.stats.snapshot();
                if errno == libc::EBADF {
                    assert_eq!(ended.unwrap_err().raw_os_error(), Some(errno));
                    assert_eq!((counted.drops.socket, counted.held), (3, 0));
                } else {
                    assert_eq!((ended.unwrap().sent, counted.advised.wakes.timer), (3, 1));
                }
            }
        }
    });
}
