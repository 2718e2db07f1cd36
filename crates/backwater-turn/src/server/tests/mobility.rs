//! RFC 8016, with one server and with two.

use super::*;

const MOVED: &str = "192.0.2.77:1234";

/// Two threads of one relay; the allocation is on the first, its client comes to either.
struct Threads([Bench; 2]);

impl Threads {
    fn new() -> Self {
        let first = Bench::on_thread(0);
        let now = first.now;
        Self([first, Bench { now, ..Bench::on_thread(1) }])
    }

    /// Feeds a datagram to a thread, and lets the threads move what is to be moved.
    fn bytes(&mut self, thread: usize, client: &str, bytes: &[u8]) -> (Action, Vec<u8>) {
        let (action, reply) = self.0[thread].bytes(client, bytes);
        let Action::Handover(request) = action else { return (action, reply) };
        let given = match self.0.get_mut(request.thread()) {
            Some(owner) => owner.server.detach(&request),
            None => Err(Code::ALLOCATION_MISMATCH),
        };
        let mut reply = [0; MAX_REPLY];
        let now = self.0[thread].now.instant;
        let (_, action) = self.0[thread].server.attach(now, &request, given, &mut reply);
        let (Action::Reply(len) | Action::Unbind(_, _, len)) = action else { panic!("{action:?}") };
        (action, reply[..len].to_vec())
    }

    fn refresh(&mut self, thread: usize, client: &str, user: &str, ticket: &[u8], more: Fill<'_>) -> (Action, Vec<u8>) {
        let request = self.0[thread].signed(client, user, Method::REFRESH, &|w| {
            put(w, &MobilityTicket(ticket));
            more(w);
        });
        self.bytes(thread, client, &request)
    }
}

fn ticket(reply: &[u8]) -> Vec<u8> {
    Message::parse(reply).unwrap().get::<MobilityTicket<'_>>().unwrap().expect("a ticket").0.to_vec()
}

fn lifetime(reply: &[u8]) -> u32 {
    Message::parse(reply).unwrap().get::<Lifetime>().unwrap().unwrap().0
}

/// An allocation with a ticket and a channel.
fn mobile(b: &mut Bench) -> (AllocationId, Vec<u8>) {
    let (action, _) = b.request(CLIENT, Method::ALLOCATE, &|w| {
        udp(w);
        put(w, &MobilityTicket(&[]));
    });
    let Action::Bind(bind) = action else { panic!("{action:?}") };
    let mut reply = [0; MAX_REPLY];
    let Action::Reply(len) = b.server.bound(b.now.instant, bind.id, relayed(RELAYED, None), &mut reply) else {
        panic!()
    };
    b.channel(CLIENT, 0x4000, PEER);
    (bind.id, ticket(&reply[..len]))
}

const DATA: [u8; 5] = [0x40, 0, 0, 1, 9];

#[test]
fn a_client_that_moves_keeps_its_allocation_on_either_thread() {
    for thread in [0, 1] {
        let mut t = Threads::new();
        let (id, first) = mobile(&mut t.0[0]);
        let (action, reply) = t.refresh(thread, MOVED, "alice", &first, &|w| put(w, &Lifetime(900)));
        assert!(matches!(action, Action::Reply(_)));
        assert_eq!((code(&reply, true), lifetime(&reply)), (0, 900));
        assert_ne!(ticket(&reply), first);
        assert_eq!(t.0.each_ref().map(|b| b.server.allocations()), [1 - thread, thread]);
        // Channels and permissions came along; the old address is nobody now.
        let peer = PeerAddr(addr(PEER));
        let Action::Forward { via, to, .. } = t.0[thread].bytes(MOVED, &DATA).0 else { panic!() };
        assert_eq!(to, peer);
        let (to, framing) = t.0[thread].server.handle_peer(t.0[0].now.instant, via, peer, 1).unwrap();
        assert_eq!((to, framing), (from(MOVED), Framing::Channel(ChannelNumber::MIN)));
        assert_eq!(t.0[0].bytes(CLIENT, &DATA).0, Action::Drop(DropReason::NoAllocation));
        assert!(t.0[0].server.handle_peer(t.0[0].now.instant, id, peer, 1).is_err());
        // It expires where it is.
        for b in &mut t.0 {
            b.pass(899);
            assert_eq!(b.server.expire(b.now.instant), None);
            b.pass(1);
        }
        assert_eq!(t.0[thread].server.expire(t.0[0].now.instant), Some((via, V4)));
        assert_eq!(t.0[1 - thread].server.expire(t.0[0].now.instant), None);
    }
}

#[test]
fn each_handover_needs_the_newest_ticket() {
    let mut t = Threads::new();
    let (_, mut ticket_now) = mobile(&mut t.0[0]);
    let mut old = Vec::new();
    for step in 0..6 {
        let client = format!("192.0.2.{}:9", 10 + step);
        let (_, reply) = t.refresh(step % 2, &client, "alice", &ticket_now, &|_| ());
        assert_eq!(code(&reply, true), 0);
        old.push(std::mem::replace(&mut ticket_now, ticket(&reply)));
        for used in &old {
            let (_, reply) = t.refresh(1 - step % 2, "192.0.2.200:9", "alice", used, &|_| ());
            assert_eq!(code(&reply, true), 437, "a ticket is good once");
        }
    }
}

#[test]
fn a_retransmission_is_answered_alike() {
    for thread in [0, 1] {
        let mut t = Threads::new();
        let (_, first) = mobile(&mut t.0[0]);
        let request = t.0[thread].signed(MOVED, "alice", Method::REFRESH, &|w| put(w, &MobilityTicket(&first)));
        let (_, reply) = t.bytes(thread, MOVED, &request);
        assert_eq!(code(&reply, true), 0);
        assert_eq!(t.bytes(thread, MOVED, &request).1, reply);
        // Two that were under way at once: the second finds nothing where it asks, but what the first has brought.
        let mut t = Threads::new();
        let (_, first) = mobile(&mut t.0[0]);
        let request = t.0[1].signed(MOVED, "alice", Method::REFRESH, &|w| put(w, &MobilityTicket(&first)));
        let asked: Vec<_> = (0..2)
            .map(|_| {
                let (action, _) = t.0[1].bytes(MOVED, &request);
                let Action::Handover(request) = action else { panic!("{action:?}") };
                request
            })
            .collect();
        let given: Vec<_> = asked.iter().map(|request| t.0[0].server.detach(request)).collect();
        for (request, given) in asked.iter().zip(given) {
            let mut reply = [0; MAX_REPLY];
            let now = t.0[1].now.instant;
            let (_, Action::Reply(len)) = t.0[1].server.attach(now, request, given, &mut reply) else { panic!() };
            assert_eq!(code(&reply[..len], true), 0);
        }
        assert_eq!(t.0[1].server.allocations(), 1);
    }
}

#[test]
fn a_move_with_no_lifetime_deletes() {
    let mut t = Threads::new();
    let (_, first) = mobile(&mut t.0[0]);
    let request = t.0[1].signed(MOVED, "alice", Method::REFRESH, &|w| {
        w.attribute(&MobilityTicket(&first)).unwrap().attribute(&Lifetime(0)).unwrap();
    });
    let (action, reply) = t.bytes(1, MOVED, &request);
    assert!(matches!(action, Action::Unbind(_, V4, _)));
    assert_eq!(code(&reply, true), 0);
    assert_eq!(t.0.each_ref().map(|b| b.server.allocations()), [0, 0]);
    let (action, reply) = t.bytes(1, MOVED, &request);
    assert!(matches!(action, Action::Reply(_)), "a retransmission");
    assert_eq!((code(&reply, true), lifetime(&reply)), (0, 0));
}

#[test]
fn ticket_of_another_user_or_forged_moves_nothing() {
    let mut t = Threads::new();
    let (_, good) = mobile(&mut t.0[0]);
    let bob = t.refresh(1, MOVED, "bob", &good, &|_| ()).1;
    Message::parse(&bob).unwrap().verify(&key("bob")).unwrap();
    assert_eq!(code(&bob, false), 441);
    let mut forged = good.clone();
    forged[20] ^= 1;
    for bad in [&forged[..], &[], &[b'A'; 35], &good[..34]] {
        assert_eq!(code(&t.refresh(1, MOVED, "alice", bad, &|_| ()).1, true), 400);
    }
    let v6: Fill<'_> = &|w| put(w, &RequestedAddressFamily(AddressFamily::Ipv6));
    assert_eq!(code(&t.refresh(1, MOVED, "alice", &good, v6).1, true), 443);
    // Who has an allocation of its own there does not get a second one.
    t.0[1].allocate(MOVED);
    assert_eq!(code(&t.refresh(1, MOVED, "alice", &good, &|_| ()).1, true), 437);
    // An allocation that was not asked to be mobile gets no ticket; one that was may refresh with it in place.
    let (_, reply) = t.0[1].request(MOVED, Method::REFRESH, &|_| ());
    assert!(!Message::parse(&reply).unwrap().contains(AttributeType::MOBILITY_TICKET));
    let (action, reply) = t.refresh(0, CLIENT, "alice", &good, &|_| ());
    assert!(matches!(action, Action::Reply(_)));
    assert_eq!(ticket(&reply), good);
    let nonempty: Fill<'_> = &|w| {
        udp(w);
        put(w, &MobilityTicket(&[1; 30]));
    };
    assert_eq!(code(&t.0[1].request("192.0.2.5:5", Method::ALLOCATE, nonempty).1, true), 400);
    assert_eq!(t.0.each_ref().map(|b| b.server.allocations()), [1, 1]);
}

#[test]
fn handover_to_a_client_with_an_allocation_is_refused() {
    // Both threads have the same quotas, as in a relay.
    let limits = Limits { channels: 1, permissions: 1, ..Limits::default() };
    let mut t = Threads([0, 1].map(|thread| Bench::with_limits(thread, limits, Limits::default())));
    t.0[1].server.config.quotas = t.0[0].server.config.quotas.clone();
    let (_, good) = mobile(&mut t.0[0]);
    let request = t.0[1].signed(MOVED, "alice", Method::REFRESH, &|w| put(w, &MobilityTicket(&good)));
    let Action::Handover(request) = t.0[1].bytes(MOVED, &request).0 else { panic!() };
    let given = t.0[0].server.detach(&request);
    t.0[1].allocate(MOVED);
    let mut reply = [0; MAX_REPLY];
    assert_eq!(code(&t.0[1].channel(MOVED, 0x4000, PEER).1, true), 508, "the other has it");
    let (id, action) = t.0[1].server.attach(t.0[1].now.instant, &request, given, &mut reply);
    let Action::Reply(len) = action else { panic!("{action:?}") };
    assert_eq!((id, code(&reply[..len], true)), (None, 437));
    assert_eq!(code(&t.0[1].channel(MOVED, 0x4000, PEER).1, true), 0, "gone with all that it had");
}
