//! Tries without a sender or beside what one holds.

use super::*;

const WAIT: Policy = Policy::Wait { deadline: Duration::from_secs(10) };

fn blocked(row: Row) -> Model {
    let model = model(row, 1, WAIT);
    model.world.borrow_mut().episodes = vec![(Instant::now(), Instant::now() + NEVER)];
    model
}

fn room(core: &mut SenderCore<Model>) -> Poll<io::Result<()>> {
    core.poll_room(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn room_is_waited_for_after_a_refusal_and_only_then() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd);
        let mut core = SenderCore::new(model.clone());
        assert!(room(&mut core).is_ready(), "nothing was refused");
        let slices = [IoSlice::new(b"x")];
        let mut t = Transmit::new(TO, &slices);
        for _ in 0..3 {
            assert_eq!(core.try_send(&mut t).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert!(room(&mut core).is_pending());
            poll_fn(|cx| core.poll_room(cx)).await.unwrap();
        }
        assert_eq!(model.stats.snapshot().silent.recovery.timer.count(), 0, "there was no room yet");
        model.world.borrow_mut().episodes.clear();
        assert_eq!(core.try_send(&mut t).unwrap().sent, 1);
        assert!(room(&mut core).is_ready());
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.sent, counted.silent.recovery.timer.count()), (1, 1, 1));
    });
}

#[test]
fn who_waits_for_room_goes_on_waiting_until_the_system_says_that_there_is_some() {
    runtime().block_on(async {
        let model = blocked(Row::SendBuffer);
        let mut core = SenderCore::new(model.clone());
        let slices = [IoSlice::new(b"x")];
        assert!(core.try_send(&mut Transmit::new(TO, &slices)).is_err());
        assert!((0..3).all(|_| room(&mut core).is_pending()));
        model.world.borrow_mut().episodes.clear();
        model.world.borrow_mut().edges.push(Reverse((Instant::now(), 0)));
        model.world.borrow_mut().deliver_due(Instant::now());
        assert!(room(&mut core).is_ready());
    });
}

/// What is offered to be held is tried at once.
#[test]
fn a_sender_that_waits_for_room_sends_what_is_offered_meanwhile() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd);
        let mut core = SenderCore::new(model.clone());
        let slices = [IoSlice::new(b"x")];
        let mut ts = [Transmit::new(TO, &slices)];
        assert!(core.try_send(&mut ts[0]).is_err() && room(&mut core).is_pending());
        model.world.borrow_mut().episodes.clear();
        assert!(core.poll_send_batch(&mut Context::from_waker(Waker::noop()), &mut ts).is_ready());
        assert_eq!(model.stats.snapshot().sent, 1);
    });
}

#[test]
fn a_sender_that_holds_gives_that_up_and_has_had_no_refusal_to_wait_for() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd);
        let mut core = SenderCore::new(model.clone());
        let slices = [IoSlice::new(b"x")];
        let mut ts = [Transmit::new(TO, &slices)];
        assert!(core.poll_send_batch(&mut Context::from_waker(Waker::noop()), &mut ts).is_pending());
        assert!(room(&mut core).is_ready());
        assert_eq!((model.stats.snapshot().drops.cancelled, model.stats.snapshot().held), (1, 0));
    });
}

/// Without a sender: nothing is held, and what another one holds is accepted anew.
#[test]
fn a_try_without_a_sender_is_counted() {
    runtime().block_on(async {
        let model = blocked(Row::FreeBsd);
        let mut core = SenderCore::new(model.clone());
        let slices = [IoSlice::new(b"12")];
        let mut ts = [Transmit::new(TO, &slices).segment_size(1)];
        assert!(core.poll_send_batch(&mut Context::from_waker(Waker::noop()), &mut ts).is_pending());
        assert_eq!(try_send(&model, &mut ts[0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        model.world.borrow_mut().episodes.clear();
        assert_eq!(try_send(&model, &mut ts[0]).unwrap().sent, 2);
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.sent, counted.held), (4, 2, 2));
        drop(core);
        model.failures.borrow_mut().push_back(libc::EBADF);
        let mut t = Transmit::new(TO, &slices);
        assert_eq!(try_send(&model, &mut t).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.drops.socket, counted.drops.cancelled, counted.held), (5, 1, 2, 0));
    });
}
