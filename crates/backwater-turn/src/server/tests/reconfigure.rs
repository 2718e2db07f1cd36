//! A new configuration while there are allocations.

use super::*;
use crate::HashedPassword;

/// Changes what this says, and judges all permissions.
fn change(b: &mut Bench, change: impl FnOnce(&mut Config)) {
    let mut config = b.server.config.clone();
    change(&mut config);
    b.server.reconfigure(config);
    while b.server.review(1) {}
}

fn credentials(users: &[(&str, &str)], secrets: &[&str]) -> Arc<Credentials> {
    let mut credentials = Credentials::new(REALM).unwrap();
    users.iter().for_each(|(name, password)| credentials.add_user(name, password).unwrap());
    secrets.iter().for_each(|secret| credentials.add_secret(secret).unwrap());
    credentials.into()
}

fn refresh(b: &mut Bench) -> (Action, Vec<u8>) {
    b.request(CLIENT, Method::REFRESH, &|_| ())
}

fn is_permitted(b: &Bench, id: AllocationId, peer: &str) -> bool {
    b.server.handle_peer(b.now.instant, id, PeerAddr(addr(peer)), 1).is_ok()
}

#[test]
fn removed_user_cannot_refresh_and_keeps_the_allocation_for_its_lifetime() {
    let mut b = Bench::new();
    let id = b.allocate(CLIENT);
    b.permit(CLIENT, PEER);
    change(&mut b, |config| config.credentials = credentials(&[("bob", "secret")], &[]));
    for _ in 0..2 {
        assert_eq!(code(&refresh(&mut b).1, false), 401);
    }
    assert!(matches!(b.permit(CLIENT, PEER), Action::Unauthenticated(_)));
    assert!(matches!(b.request("192.0.2.9:1", Method::ALLOCATE, &udp).0, Action::Unauthenticated(_)));
    assert!(is_permitted(&b, id, PEER), "data goes on");
    b.pass(600);
    assert_eq!(b.server.expire(b.now.instant), Some((id, V4)));
}

#[test]
fn user_that_stays_refreshes_and_allocates_again() {
    let mut b = Bench::new();
    b.allocate(CLIENT);
    change(&mut b, |config| config.credentials = credentials(&[("alice", "secret")], &[]));
    for _ in 0..2 {
        assert_eq!(code(&refresh(&mut b).1, true), 0);
    }
    b.allocate("192.0.2.1:2");
}

#[test]
fn changed_password_is_the_one_that_counts() {
    let mut b = Bench::new();
    b.allocate(CLIENT);
    change(&mut b, |config| config.credentials = credentials(&[("alice", "another")], &[]));
    assert_eq!(code(&refresh(&mut b).1, false), 401);
    let key = HmacKey::from(&LongTermKey::md5("alice", REALM, "another"));
    for (client, method) in [(CLIENT, Method::REFRESH), ("192.0.2.1:2", Method::ALLOCATE)] {
        let nonce = b.server.nonces.make(ClientAddr(addr(client)), b.now.unix);
        let mut buffer = [0; 500];
        let mut w = Writer::new(&mut buffer, Class::Request, method, b.transaction_id()).unwrap();
        udp(&mut w);
        w.attribute(&Username("alice")).unwrap().attribute(&Realm(REALM)).unwrap();
        w.attribute(&Nonce(&nonce)).unwrap();
        let request = w.integrity_sha1(&key).unwrap().finish().to_vec();
        let (action, mut reply) = b.bytes(client, &request);
        if let Action::Bind(bind) = action {
            reply = vec![0; MAX_REPLY];
            let bound = b.server.bound(b.now.instant, bind.id, relayed(RELAYED, None), &mut reply);
            let Action::Reply(len) = bound else { panic!("{bound:?}") };
            reply.truncate(len);
        }
        let message = Message::parse(&reply).unwrap();
        assert!(message.verify(&key).is_ok(), "{method:?}: signed with the password that counts");
        assert_eq!(code(&reply, false), 0, "{method:?}");
    }
}

/// A secret is replaced by one after the other: the credentials of the second go on, also when they have expired.
#[test]
fn allocation_of_a_secret_that_stays_goes_on_after_its_credential_expired() {
    for (left, refreshed) in [(&["north", "west"][..], 0), (&["north"], 401)] {
        let mut b = Bench::new();
        change(&mut b, |config| config.credentials = credentials(&[], &["west"]));
        let user = format!("{}:carol", b.now.unix.as_secs() + 10);
        let key = HmacKey::from(&LongTermKey::md5(&user, REALM, &crate::time_limited_password("west", &user)));
        let send = |b: &mut Bench, method| {
            let nonce = b.server.nonces.make(ClientAddr(addr(CLIENT)), b.now.unix);
            let mut buffer = [0; 500];
            let mut w = Writer::new(&mut buffer, Class::Request, method, b.transaction_id()).unwrap();
            udp(&mut w);
            w.attribute(&Username(&user)).unwrap().attribute(&Realm(REALM)).unwrap();
            w.attribute(&Nonce(&nonce)).unwrap();
            let request = w.integrity_sha1(&key).unwrap().finish().to_vec();
            b.bytes(CLIENT, &request)
        };
        let Action::Bind(bind) = send(&mut b, Method::ALLOCATE).0 else { panic!() };
        b.server.bound(b.now.instant, bind.id, relayed(RELAYED, None), &mut [0; MAX_REPLY]);
        b.pass(60);
        change(&mut b, |config| config.credentials = credentials(&[], left));
        for _ in 0..2 {
            assert_eq!(code(&send(&mut b, Method::REFRESH).1, false), refreshed, "{left:?}");
        }
    }
}

#[test]
fn peer_that_a_new_rule_denies_loses_its_permission_and_channel() {
    let mut b = Bench::new();
    let id = b.allocate(CLIENT);
    let [kept, denied] = ["203.0.113.7:9", "203.0.113.200:9"];
    b.channel(CLIENT, 0x4001, kept);
    b.channel(CLIENT, 0x4002, denied);
    let deny = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
    change(&mut b, |config| config.peers.deny = deny(&["203.0.113.128/25"]));
    assert!(is_permitted(&b, id, kept) && !is_permitted(&b, id, denied));
    let data = |number: u16| {
        let number = ChannelNumber::new(number).unwrap();
        [&ChannelData::header(number, 2)[..], b"hi"].concat()
    };
    assert!(matches!(b.bytes(CLIENT, &data(0x4001)).0, Action::Forward { .. }));
    assert_eq!(b.bytes(CLIENT, &data(0x4002)).0, Action::Drop(DropReason::NoChannel));
    assert!(matches!(b.permit(CLIENT, denied), Action::Forbid(..)));
    change(&mut b, |config| config.peers.deny = vec![]);
    assert!(!is_permitted(&b, id, denied), "it has to be asked for again");
    b.permit(CLIENT, denied);
    assert!(is_permitted(&b, id, denied));
}

/// The port of a listener that is added is no peer's, also where its address has a permission already.
#[test]
fn added_listener_is_no_peer() {
    let mut b = Bench::new();
    let id = b.allocate(CLIENT);
    let listener = "203.0.113.7:3479";
    b.permit(CLIENT, listener);
    assert!(is_permitted(&b, id, listener));
    change(&mut b, |config| config.peers.listeners.push(addr(listener)));
    assert!(!is_permitted(&b, id, listener) && is_permitted(&b, id, "203.0.113.7:9"));
}

#[test]
fn lower_quota_ends_nothing_and_counts_from_then_on() {
    let mut b = Bench::new();
    let ids = ["192.0.2.1:1", "192.0.2.1:2"].map(|client| b.allocate(client));
    b.server.config.quotas.set_limits(Limits { allocations: 1, ..Limits::default() }, Limits::default());
    assert_eq!(code(&b.request(CLIENT, Method::ALLOCATE, &udp).1, true), 486);
    assert!(ids.iter().all(|&id| b.server.session(id).is_some()));
    b.server.config.quotas.set_limits(Limits::default(), Limits::default());
    b.allocate(CLIENT);
}

#[test]
fn limit_of_bytes_that_is_set_counts_for_allocations_that_there_are() {
    let mut b = Bench::new();
    let id = b.allocate(CLIENT);
    b.permit(CLIENT, PEER);
    let pass = |b: &Bench| {
        (0..100).filter(|_| b.server.handle_peer(b.now.instant, id, PeerAddr(addr(PEER)), 1200).is_ok()).count()
    };
    assert_eq!(pass(&b), 100);
    let limit = Limits { bytes_per_second: Some(1000), ..Limits::default() };
    b.server.config.quotas.set_limits(limit, Limits::default());
    change(&mut b, |_| ());
    // 64 KiB may come at once.
    assert_eq!(pass(&b), 54);
    b.server.config.quotas.set_limits(Limits::default(), Limits::default());
    change(&mut b, |_| ());
    assert_eq!(pass(&b), 100);
}

#[test]
fn permissions_of_many_allocations_are_judged_a_few_at_a_time() {
    let mut b = Bench::with_limits(0, Limits::default(), Limits::default());
    let clients: Vec<_> = (1..=200).map(|port| format!("192.0.2.1:{port}")).collect();
    let ids: Vec<_> = clients.iter().map(|client| b.allocate(client)).collect();
    clients.iter().for_each(|client| drop(b.permit(client, PEER)));
    let mut config = b.server.config.clone();
    config.peers.allow.clear();
    b.server.reconfigure(config);
    let left = |b: &Bench| ids.iter().filter(|&&id| is_permitted(b, id, PEER)).count();
    let mut counts = vec![left(&b)];
    while b.server.review(20) {
        counts.push(left(&b));
    }
    assert_eq!((counts[0], left(&b)), (200, 0));
    assert!(counts.windows(2).all(|pair| pair[0] - pair[1] <= 20), "{counts:?}");
}

/// A user whom somebody else knows: asked about once, for as long as the answer is good.
#[test]
fn user_of_a_directory_authenticates_once_the_answer_is_there() {
    use std::sync::Mutex;
    let mut b = Bench::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let list = asked.clone();
    let ask = move |name: &str| {
        list.lock().unwrap().push(name.to_owned());
        true
    };
    let directory = Arc::new(Directory::new(b.now.instant, ask));
    let keys = HashedPassword::new("alice", REALM, "secret").unwrap();
    change(&mut b, |config| {
        config.credentials = credentials(&[("bob", "secret")], &[]);
        config.directory = Some(directory.clone());
    });
    let allocate = b.signed(CLIENT, "alice", Method::ALLOCATE, &udp);
    for _ in 0..3 {
        assert_eq!(b.bytes(CLIENT, &allocate).0, Action::Drop(DropReason::Lookup));
    }
    assert_eq!(*asked.lock().unwrap(), ["alice"]);
    let good_until = b.now.instant + Duration::from_secs(60);
    directory.answer("alice", Some(&keys), good_until);
    let Action::Bind(bind) = b.bytes(CLIENT, &allocate).0 else { panic!() };
    b.server.bound(b.now.instant, bind.id, relayed(RELAYED, None), &mut [0; MAX_REPLY]);
    assert_eq!(code(&refresh(&mut b).1, true), 0);
    let bob = b.signed("192.0.2.1:2", "bob", Method::ALLOCATE, &udp);
    assert!(matches!(b.bytes("192.0.2.1:2", &bob).0, Action::Bind(_)), "he needs no answer");

    b.pass(60);
    assert_eq!(refresh(&mut b).0, Action::Drop(DropReason::Lookup), "it is asked for again");
    directory.answer("alice", Some(&keys), b.now.instant + Duration::from_secs(60));
    assert_eq!(code(&refresh(&mut b).1, true), 0);
    b.pass(60);
    refresh(&mut b);
    directory.answer("alice", None, b.now.instant + Duration::from_secs(10));
    assert!(
        matches!(refresh(&mut b).0, Action::Unauthenticated(failure) if failure.reason == AuthFailureReason::UnknownUser)
    );
    assert_eq!(*asked.lock().unwrap(), ["alice"; 3]);
}
