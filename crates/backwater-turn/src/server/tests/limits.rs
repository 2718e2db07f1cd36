//! Quotas, and how many answers strangers get.

use super::*;

fn limits(fill: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    fill(&mut limits);
    limits
}

#[test]
fn a_user_at_its_quota_is_486_and_all_together_508() {
    let mut b = Bench::with_limits(0, limits(|l| l.allocations = 1), limits(|l| l.allocations = 2));
    b.allocate(CLIENT);
    let as_user = |b: &mut Bench, client: &str, user: &str| {
        let request = b.signed(client, user, Method::ALLOCATE, &udp);
        let (action, reply) = b.bytes(client, &request);
        let code = if matches!(action, Action::Bind(_)) { 0 } else { code(&reply, false) };
        if let Action::OverQuota(_, refusal) = action {
            assert_eq!((&*refusal.user, refusal.reason.code().number()), (user, code));
        } else {
            assert_eq!(code, 0, "the operator is not told");
        }
        code
    };
    assert_eq!(as_user(&mut b, "192.0.2.1:2", "alice"), 486);
    assert_eq!(as_user(&mut b, "192.0.2.1:3", "bob"), 0);
    assert_eq!(as_user(&mut b, "192.0.2.1:4", "carol"), 508);
    // What is deleted or expires can be had again.
    b.request(CLIENT, Method::REFRESH, &|w| put(w, &Lifetime(0)));
    assert_eq!(as_user(&mut b, "192.0.2.1:2", "alice"), 0);
    b.pass(600);
    while b.server.expire(b.now.instant).is_some() {}
    assert_eq!(as_user(&mut b, "192.0.2.1:5", "carol"), 0);
}

#[test]
fn permissions_and_channels_are_counted_over_allocations() {
    let user = limits(|l| (l.permissions, l.channels) = (3, 2));
    let mut b = Bench::with_limits(0, user, Limits::default());
    b.allocate(CLIENT);
    b.allocate("192.0.2.1:2");
    for (number, peer, want) in [
        (0x4000, "203.0.113.1:1", 0),
        (0x4001, "203.0.113.1:2", 0),
        (0x4002, "203.0.113.1:3", 508),
        (0x4001, "203.0.113.1:2", 0),
    ] {
        let (action, reply) = b.channel(CLIENT, number, peer);
        assert_eq!(code(&reply, true), want, "{number:#x}");
        let reason = if let Action::OverQuota(_, refusal) = action { Some(refusal.reason) } else { None };
        assert_eq!(reason, (want != 0).then_some(QuotaReason::Channels), "{number:#x}");
    }
    let permit =
        |b: &mut Bench, client: &str, peer: &str| matches!(b.permit(client, peer), Action::Reply(len) if len < 60);
    assert!(permit(&mut b, "192.0.2.1:2", "203.0.113.1:1"));
    assert!(permit(&mut b, "192.0.2.1:2", "203.0.113.2:1"));
    let fourth = b.permit("192.0.2.1:2", "203.0.113.3:1");
    assert!(
        matches!(&fourth, Action::OverQuota(_, refusal) if refusal.reason == QuotaReason::Permissions),
        "{fourth:?}"
    );
    assert!(permit(&mut b, "192.0.2.1:2", "203.0.113.2:1"), "a refresh");
    // Two that are the same count once, and a request that is refused takes nothing.
    b.pass(301);
    b.request(CLIENT, Method::REFRESH, &|_| ());
    b.request("192.0.2.1:2", Method::REFRESH, &|_| ());
    let (_, reply) = b.request(CLIENT, Method::CREATE_PERMISSION, &|w| {
        for peer in ["203.0.113.5:1", "203.0.113.5:2", "203.0.113.6:1"] {
            put(w, &XorPeerAddress(addr(peer)));
        }
    });
    assert_eq!(code(&reply, true), 0);
    assert!(permit(&mut b, "192.0.2.1:2", "203.0.113.7:1"));
    assert!(!permit(&mut b, "192.0.2.1:2", "203.0.113.8:1"));
    // An allocation that goes gives all back.
    assert_eq!(code(&b.channel("192.0.2.1:2", 0x4000, "203.0.113.7:1").1, true), 508, "two channels there are");
    b.request(CLIENT, Method::REFRESH, &|w| put(w, &Lifetime(0)));
    assert_eq!(code(&b.channel("192.0.2.1:2", 0x4000, "203.0.113.7:1").1, true), 0);
    assert!(permit(&mut b, "192.0.2.1:2", "203.0.113.8:1"));
}

#[test]
fn bytes_over_the_limit_are_dropped_both_ways() {
    let user = limits(|l| l.bytes_per_second = Some(100_000));
    let mut b = Bench::with_limits(0, user, Limits::default());
    let id = b.allocate(CLIENT);
    b.channel(CLIENT, 0x4000, PEER);
    let data = [&ChannelData::header(ChannelNumber::MIN, 1000)[..], &[0; 1000]].concat();
    let send = plain(Class::Indication, Method::SEND, &|w| {
        w.attribute(&XorPeerAddress(addr(PEER))).unwrap().attribute(&Data(&[0; 1000])).unwrap();
    });
    let peer = PeerAddr(addr(PEER));
    for _ in 0..40 {
        assert!(matches!(b.bytes(CLIENT, &data).0, Action::Forward { .. }));
    }
    for _ in 0..20 {
        assert!(matches!(b.bytes(CLIENT, &send).0, Action::Forward { .. }));
    }
    assert!(b.server.handle_peer(b.now.instant, id, peer, 40_000).is_ok());
    assert_eq!(b.bytes(CLIENT, &data).0, Action::Drop(DropReason::Bandwidth));
    assert_eq!(b.bytes(CLIENT, &send).0, Action::Drop(DropReason::Bandwidth));
    assert_eq!(b.server.handle_peer(b.now.instant, id, peer, 1), Err(DropReason::Bandwidth));
    b.pass(1);
    assert!(b.server.handle_peer(b.now.instant, id, peer, 65_000).is_ok());
}

/// Of a flood from one source, as many are answered as it has a right to; others are not touched, and neither is who has an
/// allocation or proves to be somebody.
#[test]
fn unauthenticated_source_gets_limited_responses() {
    let mut b = Bench::new();
    let binding = plain(Class::Request, Method::BINDING, &|_| ());
    let allocate = plain(Class::Request, Method::ALLOCATE, &udp);
    let mut forged = b.signed(CLIENT, "alice", Method::ALLOCATE, &udp);
    *forged.last_mut().unwrap() ^= 1;
    let mut answers = 0;
    for i in 0..3000 {
        let request = [&binding, &allocate, &forged][i % 3];
        let (action, reply) = b.bytes(&format!("192.0.2.1:{}", 1 + i % 60_000), request);
        assert!(!reply.is_empty() || action == Action::Drop(DropReason::ReplyLimit), "{action:?}");
        answers += usize::from(!reply.is_empty());
    }
    assert_eq!(answers, 100);
    assert!(matches!(b.bytes("192.0.2.2:1", &binding).0, Action::Reply(_)));
    // Who knows the password gets in all the same, and then is no stranger.
    b.allocate(CLIENT);
    assert!(matches!(b.bytes(CLIENT, &binding).0, Action::Reply(_)));
    assert_eq!(b.bytes("192.0.2.1:9", &binding).0, Action::Drop(DropReason::ReplyLimit));
    b.pass(1);
    assert!(matches!(b.bytes("192.0.2.1:9", &binding).0, Action::Reply(_)));
    assert_eq!((b.server.allocations(), b.server.clients.len()), (1, 1));
}
