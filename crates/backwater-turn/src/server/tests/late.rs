//! Copies of requests that the network delivers late (RFC 8489, section 6.3.1).

use super::*;

const DELETE: Fill<'_> = &|w| put(w, &Lifetime(0));

/// A late copy of a request for the client's last allocation changes nothing in the next one, and gets the answer of the first.
#[test]
fn a_late_copy_changes_nothing_in_the_next_allocation() {
    let mut b = Bench::new();
    b.allocate(CLIENT);
    let number = ChannelNumber::new(0x4000).unwrap();
    let requests = [
        b.signed(CLIENT, "alice", Method::CREATE_PERMISSION, &|w| put(w, &XorPeerAddress(addr(PEER)))),
        b.signed(CLIENT, "alice", Method::CHANNEL_BIND, &|w| {
            w.attribute(&number).unwrap().attribute(&XorPeerAddress(addr(PEER))).unwrap();
        }),
        b.signed(CLIENT, "alice", Method::REFRESH, &|w| put(w, &Lifetime(1200))),
        // Refused now, it could be granted later.
        b.signed(CLIENT, "alice", Method::ALLOCATE, &udp),
        b.signed(CLIENT, "alice", Method::REFRESH, DELETE),
    ];
    let answers = requests.each_ref().map(|request| b.bytes(CLIENT, request).1);
    assert_eq!(answers.each_ref().map(|answer| code(answer, true)), [0, 0, 0, 437, 0]);
    let send = plain(Class::Indication, Method::SEND, &|w| {
        w.attribute(&XorPeerAddress(addr(PEER))).unwrap().attribute(&Data(b"x")).unwrap();
    });
    for allocations in [0, 1] {
        for (request, answer) in requests.iter().zip(&answers) {
            assert_eq!(b.bytes(CLIENT, request), (Action::Reply(answer.len()), answer.clone()));
        }
        assert_eq!(b.server.allocations(), allocations);
        assert!(matches!(b.bytes(CLIENT, &send).0, Action::Drop(_)), "a permission from the last allocation");
        if allocations == 0 {
            b.allocate(CLIENT);
        }
    }
    // A known transaction id alone gets no remembered answer: the copy must have the integrity too.
    let mut forged = requests[0].clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(code(&b.bytes(CLIENT, &forged).1, false), 401);
    // Also when the nonce is too old by now, or the clock was set.
    b.now.unix += Duration::from_secs(100_000);
    b.now.instant += Duration::from_secs(39);
    assert_eq!(b.bytes(CLIENT, &requests[4]).1, answers[4]);
    b.now.instant += Duration::from_secs(1);
    assert_eq!(code(&b.bytes(CLIENT, &requests[4]).1, false), 438);
    assert_eq!(b.server.allocations(), 1);
}

/// A failure is an answer too: a port that is free by now is not bound for a client that has given up.
#[test]
fn a_late_copy_of_a_request_that_failed_fails_again() {
    let mut b = Bench::new();
    let request = b.signed(CLIENT, "alice", Method::ALLOCATE, &udp);
    let Action::Bind(bind) = b.bytes(CLIENT, &request).0 else { panic!() };
    let mut reply = [0; MAX_REPLY];
    assert!(matches!(b.server.bound(b.now.instant, bind.id, Bound::default(), &mut reply), Action::Reply(_)));
    assert_eq!(code(&b.bytes(CLIENT, &request).1, true), 508);
    assert_eq!(b.server.allocations(), 0);
}

/// A user with many requests pushes out its own answers, not those of others.
#[test]
fn a_flood_of_one_user_does_not_make_another_users_late_copy_delete_an_allocation() {
    let mut b = Bench::new();
    b.allocate(CLIENT);
    let delete = b.signed(CLIENT, "alice", Method::REFRESH, DELETE);
    let answer = b.bytes(CLIENT, &delete).1;
    b.allocate(CLIENT);
    for _ in 0..30_000 {
        let request = b.signed("192.0.2.77:1", "bob", Method::REFRESH, DELETE);
        assert!(matches!(b.bytes("192.0.2.77:1", &request).0, Action::Reply(_)));
    }
    assert_eq!(b.bytes(CLIENT, &delete), (Action::Reply(answer.len()), answer));
    assert_eq!(b.server.allocations(), 1);
}
