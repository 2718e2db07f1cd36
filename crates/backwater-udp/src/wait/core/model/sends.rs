//! What becomes of a datagram when the system takes it, refuses it, or says what nobody expects.

use super::*;

#[test]
fn a_try_counts_as_accepted_what_it_sends_before_the_next_call_and_nothing_else() {
    runtime().block_on(async {
        let model = model(Row::SendBuffer, 1, Policy::default());
        let now = Instant::now();
        model.world.borrow_mut().episodes = Vec::new();
        let mut core = SenderCore::new(model.clone());
        let payload = [0; 300];
        let slices = [IoSlice::new(&payload)];
        // Three calls.
        let mut t = Transmit::new(TO, &slices).segment_size(2);
        assert_eq!(core.try_send(&mut t).unwrap().sent, 150);
        model.world.borrow_mut().episodes = vec![(now, now + NEVER)];
        let mut t = Transmit::new(TO, &slices).segment_size(2);
        assert_eq!(core.try_send(&mut t).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.sent, counted.held), (150, 150, 0));
    });
}

/// What becomes of five datagrams of which one call fails, and again when it is tried again.
fn failing_with(errno: i32) -> (io::Result<SendReport>, u64) {
    runtime().block_on(async {
        let model = model(Row::SendBuffer, 1, Policy::default());
        model.world.borrow_mut().episodes = Vec::new();
        model.failures.borrow_mut().extend([errno; 2]);
        let slices = [IoSlice::new(b"x")];
        let mut ts: [_; 5] = std::array::from_fn(|_| Transmit::new(TO, &slices));
        let mut core = SenderCore::new(model.clone());
        let sent = poll_fn(|cx| core.poll_send_batch(cx, &mut ts)).await;
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.held), (5, 0));
        (sent, model.world.borrow().delivered)
    })
}

#[test]
fn an_error_that_nobody_expects_costs_one_datagram_and_a_failed_socket_all_of_them() {
    for errno in [libc::ENODEV, libc::EIO, libc::ENXIO, libc::ESHUTDOWN, libc::EREMOTEIO, libc::ENOSYS, 4095] {
        let (sent, delivered) = failing_with(errno);
        let report = sent.unwrap();
        assert_eq!((report.sent, report.dropped.get(DropReason::Other), delivered), (4, 1, 4), "{errno}");
    }
    for errno in [libc::EBADF, libc::ENOTSOCK, libc::EPIPE] {
        let (sent, delivered) = failing_with(errno);
        assert_eq!((sent.unwrap_err().raw_os_error(), delivered), (Some(errno), 0));
    }
    for errno in [libc::ECONNREFUSED, libc::EOPNOTSUPP, libc::EPROTO, libc::ENETRESET] {
        assert_eq!(failing_with(errno).0.unwrap().sent, 5, "an ICMP message is about an earlier datagram");
    }
}

#[test]
fn a_datagram_of_too_many_pieces_is_dropped_and_the_others_go() {
    runtime().block_on(async {
        let model = model(Row::SendBuffer, 1, Policy::default());
        model.world.borrow_mut().episodes = Vec::new();
        let mut core = SenderCore::new(model.clone());
        // Two of one piece, two of 300; and more datagrams than one call takes, so that they go in parts.
        let long = [0; 300];
        let mut slices = vec![IoSlice::new(&long); 2];
        slices.extend(std::iter::repeat_n(IoSlice::new(&long[..1]), 600));
        slices.extend(vec![IoSlice::new(&long); 90]);
        let mut t = Transmit::new(TO, &slices).segment_size(300);
        let sent = poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(&mut t))).await.unwrap();
        assert_eq!((sent.sent, sent.dropped.get(DropReason::Invalid)), (92, 2));
        let counted = model.stats.snapshot();
        assert_eq!((counted.accepted, counted.sent, model.world.borrow().delivered), (94, 92, 92));
    });
}

/// Two senders have a batch each under way when the device refuses both: the second hears of it when the first has seen to it.
#[test]
fn a_batch_that_was_refused_is_taken_apart_whatever_has_changed_meanwhile() {
    runtime().block_on(async {
        let model = model(Row::SendBuffer, 1, Policy::default());
        model.world.borrow_mut().episodes = Vec::new();
        model.refusing.set(Some(TO));
        let payload = [0; 600];
        let slices = [IoSlice::new(&payload)];
        let mut t = Transmit::new(TO, &slices).segment_size(100);
        let mut core = SenderCore::new(model.clone());
        let sent = poll_fn(|cx| core.poll_send_batch(cx, std::slice::from_mut(&mut t))).await.unwrap();
        assert_eq!((sent.sent, model.world.borrow().delivered), (6, 6));
    });
}

/// The datagrams to one destination go one by one, since its device refuses batches. Those to another go in batches, whatever else is
/// refused meanwhile.
#[test]
fn a_destination_whose_device_refuses_batches_costs_no_other_its_batches() {
    let other = SocketAddr::from(([127, 0, 0, 2], 9));
    for seed in 0..50 {
        runtime().block_on(async {
            let model = model(Row::SendBuffer, seed, Policy::Wait { deadline: Duration::from_secs(1) });
            model.refusing.set(Some(TO));
            let mut core = SenderCore::new(model.clone());
            let payload = [0; 6];
            let slices = [IoSlice::new(&payload)];
            for round in 0..20 {
                sleep_until(Instant::now() + Duration::from_millis(seed % 20)).await;
                let mut ts = [TO, other].map(|to| Transmit::new(to, &slices).segment_size(1));
                tokio::select! {
                    report = poll_fn(|cx| core.poll_send_batch(cx, &mut ts)) => assert_eq!(report.unwrap().sent, 12, "{seed} {round}"),
                    () = reactor(&model) => {}
                }
            }
            let calls = |to| model.log.borrow().iter().filter(|(t, _)| *t == to).count();
            assert_eq!((calls(TO), calls(other)), (20 * 6, 20), "{seed}");
            assert_eq!((model.batches_refused.get(), model.world.borrow().delivered), (1, 20 * 12), "{seed}");
        });
    }
}
