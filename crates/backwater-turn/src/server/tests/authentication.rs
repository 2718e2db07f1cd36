//! RFC 8489: password algorithms, SHA-256, USERHASH.

use super::*;

type Sign<'f> = &'f dyn Fn(Writer<'_>, &HmacKey) -> Vec<u8>;

fn sign_sha1(w: Writer<'_>, key: &HmacKey) -> Vec<u8> {
    w.integrity_sha1(key).unwrap().finish().to_vec()
}

fn sign_sha256(w: Writer<'_>, key: &HmacKey) -> Vec<u8> {
    w.integrity_sha256(key).unwrap().finish().to_vec()
}

fn sign_both(w: Writer<'_>, key: &HmacKey) -> Vec<u8> {
    w.integrity_sha1(key).unwrap().integrity_sha256(key).unwrap().fingerprint().unwrap().finish().to_vec()
}

fn sha256_key() -> HmacKey {
    HmacKey::from(&LongTermKey::sha256("alice", REALM, "secret"))
}

impl Bench {
    /// An Allocate request with what `fill` writes in place of the user name and the algorithms.
    fn rfc8489(&mut self, fill: Fill<'_>, key: &HmacKey, sign: Sign<'_>) -> (Action, Vec<u8>) {
        let id = self.transaction_id();
        let nonce = self.server.nonces.make(ClientAddr(addr(CLIENT)), self.now.unix);
        let mut buffer = [0; 2000];
        let mut w = Writer::new(&mut buffer, Class::Request, Method::ALLOCATE, id).unwrap();
        udp(&mut w);
        fill(&mut w);
        w.attribute(&Realm(REALM)).unwrap().attribute(&Nonce(&nonce)).unwrap();
        let request = sign(w, key);
        self.bytes(CLIENT, &request)
    }
}

#[test]
fn response_has_the_integrity_attribute_of_the_request() {
    let named: Fill<'_> = &|w| put(w, &Username("alice"));
    let hashed: Fill<'_> = &|w| put(w, &Userhash::new("alice", REALM));
    let signs: [(Sign<'_>, Integrity); 3] =
        [(&sign_sha1, Integrity::Sha1), (&sign_sha256, Integrity::Sha256), (&sign_both, Integrity::Sha256)];
    for who in [named, hashed] {
        for (algorithm, key) in [
            (None, key("alice")),
            (Some(PasswordAlgorithm::MD5), key("alice")),
            (Some(PasswordAlgorithm::SHA256), sha256_key()),
        ] {
            for (sign, integrity) in signs {
                let mut b = Bench::new();
                let fill: Fill<'_> = &|w| {
                    who(w);
                    if let Some(algorithm) = algorithm {
                        w.attribute(&PasswordAlgorithms::SHA256_MD5).unwrap().attribute(&algorithm).unwrap();
                    }
                };
                let (action, _) = b.rfc8489(fill, &key, sign);
                let Action::Bind(bind) = action else { panic!("{action:?}") };
                let mut reply = [0; MAX_REPLY];
                let bound = b.server.bound(b.now.instant, bind.id, relayed(RELAYED, None), &mut reply);
                let Action::Reply(len) = bound else { panic!("{bound:?}") };
                let answer = Message::parse(&reply[..len]).unwrap();
                assert_eq!(answer.verify(&key).unwrap().integrity(), integrity);
                let sha1 = answer.contains(AttributeType::MESSAGE_INTEGRITY);
                assert_eq!(sha1, integrity == Integrity::Sha1);
                // And again: the allocation remembers the key, and an error is signed too.
                let (_, reply) = b.rfc8489(fill, &key, sign);
                let answer = Message::parse(&reply).unwrap();
                assert_eq!(answer.verify(&key).unwrap().integrity(), integrity);
                assert_eq!(code(&reply, false), 437);
            }
        }
    }
}

#[test]
fn bid_down_is_refused() {
    let mut b = Bench::new();
    let named = |w: &mut Writer<'_>| put(w, &Username("alice"));
    let (md5, sha256) = (PasswordAlgorithm::MD5, PasswordAlgorithm::SHA256);
    let cases: [(u16, HmacKey, Fill<'_>); 7] = [
        (400, sha256_key(), &|w| put(w, &sha256)),
        (400, sha256_key(), &|w| put(w, &PasswordAlgorithms::SHA256_MD5)),
        (400, key("alice"), &|w| {
            w.attribute(&PasswordAlgorithms::MD5).unwrap().attribute(&md5).unwrap();
        }),
        (400, sha256_key(), &|w| {
            let other = PasswordAlgorithm { number: 3, parameters: &[] };
            w.attribute(&PasswordAlgorithms::SHA256_MD5).unwrap().attribute(&other).unwrap();
        }),
        // The key of another algorithm than the one named.
        (401, key("alice"), &|w| {
            w.attribute(&PasswordAlgorithms::SHA256_MD5).unwrap().attribute(&sha256).unwrap();
        }),
        (401, sha256_key(), &|_| ()),
        (0, key("alice"), &|_| ()),
    ];
    for (want, key, fill) in cases {
        let (action, reply) = b.rfc8489(
            &|w| {
                named(w);
                fill(w);
            },
            &key,
            &sign_sha256,
        );
        if want == 0 {
            assert!(matches!(action, Action::Bind(_)));
        } else {
            assert_eq!(code(&reply, false), want);
        }
    }
    // A nonce whose bits were changed is not ours: the client gets the right ones again.
    let mut nonce = b.server.nonces.make(ClientAddr(addr("192.0.2.1:7")), b.now.unix);
    nonce[12] = b'A';
    let request = signed(TransactionId([1; 12]), "alice", &nonce, Method::ALLOCATE, &udp);
    assert_eq!(code(&b.bytes("192.0.2.1:7", &request).1, false), 438);
}

#[test]
fn unknown_userhash_is_401_and_malformed_integrity_400() {
    let mut b = Bench::new();
    let fill: Fill<'_> = &|w| put(w, &Userhash([3; 32]));
    assert_eq!(code(&b.rfc8489(fill, &key("alice"), &sign_sha1).1, false), 401);
    let truncated: Sign<'_> =
        &|w, key| w.integrity_sha256_truncated(key, MacLength::SHORTEST).unwrap().finish().to_vec();
    assert_eq!(code(&b.rfc8489(&|w| put(w, &Username("alice")), &key("alice"), truncated).1, false), 400);
}

fn failure(action: &Action) -> (&str, AuthFailureReason) {
    let Action::Unauthenticated(failure) = action else { panic!("{action:?}") };
    (&failure.user, failure.reason)
}

/// The server stops verifying the passwords of a source that guesses. The user gets in from other sources, and a client that
/// shares the address goes on with its allocation.
#[test]
fn passwords_are_tried_at_a_limited_rate() {
    let mut b = Bench::with_limits(0, Limits::default(), Limits::default());
    b.server.config.reply_limit = None;
    b.server.config.failure_limit = Some(Arc::new(FailureLimit::new(30, b.now.instant)));
    b.allocate(CLIENT);
    let guess = |b: &mut Bench, client: &str| {
        let mut guess = b.signed(client, "alice", Method::ALLOCATE, &udp);
        *guess.last_mut().unwrap() ^= 1;
        b.bytes(client, &guess).0
    };
    for i in 0..30 {
        let action = guess(&mut b, &format!("192.0.2.1:{}", 1 + i));
        assert_eq!(failure(&action), ("alice", AuthFailureReason::WrongPassword), "{i}");
    }
    for i in 0..1000 {
        assert_eq!(guess(&mut b, &format!("192.0.2.1:{}", 1 + i)), Action::Drop(DropReason::FailureLimit), "{i}");
    }
    // The right password would not be looked at either: an answer would tell that it is right.
    let right = b.signed("192.0.2.1:7", "alice", Method::ALLOCATE, &udp);
    assert_eq!(b.bytes("192.0.2.1:7", &right).0, Action::Drop(DropReason::FailureLimit));
    assert!(matches!(b.request(CLIENT, Method::REFRESH, &|_| ()).0, Action::Reply(_)), "it has an allocation");
    assert_eq!(guess(&mut b, CLIENT), Action::Drop(DropReason::FailureLimit), "and may not guess either");
    for client in ["192.0.2.2:1", "[2001:db8::1]:1"] {
        let request = b.signed(client, "alice", Method::ALLOCATE, &udp);
        assert!(matches!(b.bytes(client, &request).0, Action::Bind(_)), "{client}");
    }
    // What has no valid nonce may be forged, and counts against nobody.
    let stale = b.server.nonces.make(ClientAddr(addr("192.0.2.3:1")), b.now.unix - Duration::from_secs(4000));
    for i in 0..100 {
        let request = signed(TransactionId([i; 12]), "eve", &stale, Method::ALLOCATE, &udp);
        assert_eq!(code(&b.bytes("192.0.2.3:1", &request).1, false), 438);
    }
    assert_eq!(failure(&guess(&mut b, "192.0.2.3:1")).1, AuthFailureReason::WrongPassword);
    b.pass(2);
    assert!(matches!(b.bytes("192.0.2.1:7", &right).0, Action::Bind(_)), "the retransmission");
}

/// A wrong realm is limited like a wrong password. Only wrong passwords of the user itself count against its name.
#[test]
fn a_wrong_realm_is_limited_and_a_name_is_charged_only_for_its_own_wrong_passwords() {
    let mut b = Bench::with_limits(0, Limits::default(), Limits::default());
    b.server.config.reply_limit = None;
    b.server.config.failure_limit = Some(Arc::new(FailureLimit::new(30, b.now.instant)));
    Arc::make_mut(&mut b.server.config.credentials).add_secret("s").unwrap();
    let late = format!("{}:alice", b.now.unix.as_secs() - 1);
    let request = |b: &mut Bench, client: &str, user: &str, realm: &str| {
        let (id, nonce) = (b.transaction_id(), b.server.nonces.make(ClientAddr(addr(client)), b.now.unix));
        let mut buffer = [0; 500];
        let mut w = Writer::new(&mut buffer, Class::Request, Method::ALLOCATE, id).unwrap();
        w.attribute(&Username(user)).unwrap().attribute(&Realm(realm)).unwrap().attribute(&Nonce(&nonce)).unwrap();
        let request = w.integrity_sha1(&key("other")).unwrap().finish().to_vec();
        b.bytes(client, &request).0
    };
    let cases = [
        ("alice", "other", AuthFailureReason::WrongRealm, 1000),
        ("eve", REALM, AuthFailureReason::UnknownUser, 1000),
        (&*late, REALM, AuthFailureReason::Expired, 1000),
        ("alice", REALM, AuthFailureReason::WrongPassword, 60),
    ];
    // Each source fails once as `eve`, so that it is not let in for its clean record, and then once as the user of the case.
    for (case, (user, realm, reason, at_most)) in cases.into_iter().enumerate() {
        let mut verified = 0;
        for i in 0..1000 {
            let client = format!("10.{case}.{}.{}:1", i / 200, i % 200);
            assert_eq!(failure(&request(&mut b, &client, "eve", REALM)).1, AuthFailureReason::UnknownUser);
            let action = request(&mut b, &client, user, realm);
            if action != Action::Drop(DropReason::FailureLimit) {
                assert_eq!(failure(&action).1, reason);
                verified += 1;
            }
        }
        assert_eq!(verified, at_most, "{reason:?}");
    }
    // In the table that the sources above have used, one in a hundred runs has both buckets of this source charged already.
    b.server.config.failure_limit = Some(Arc::new(FailureLimit::new(30, b.now.instant)));
    for i in 0..40 {
        let action = request(&mut b, "192.0.2.1:1", "bob", "other");
        assert_eq!(action == Action::Drop(DropReason::FailureLimit), i >= 30, "{i}: {action:?}");
    }
}

#[test]
fn a_failure_says_who_and_why() {
    let mut b = Bench::new();
    Arc::make_mut(&mut b.server.config.credentials).add_secret("s").unwrap();
    let nonce = b.server.nonces.make(ClientAddr(addr(CLIENT)), b.now.unix);
    let soon = b.now.unix.as_secs() + 1;
    let late = b.now.unix.as_secs() - 1;
    for (user, reason) in [
        ("eve".to_owned(), AuthFailureReason::UnknownUser),
        (format!("{soon}:eve"), AuthFailureReason::WrongPassword),
        (format!("{late}:eve"), AuthFailureReason::Expired),
        (late.to_string(), AuthFailureReason::Expired),
        ("\u{1b}[2J\n".to_owned(), AuthFailureReason::UnknownUser),
    ] {
        let request = signed(b.transaction_id(), &user, &nonce, Method::ALLOCATE, &udp);
        let (action, reply) = b.bytes(CLIENT, &request);
        assert_eq!(failure(&action), (&*user, reason));
        assert_eq!(code(&reply, false), 401);
    }
    let hashed = b.rfc8489(&|w| put(w, &Userhash([3; 32])), &key("alice"), &sign_sha1).0;
    assert_eq!(failure(&hashed), ("", AuthFailureReason::UnknownUser));
    let mut buffer = [0; 500];
    let mut w = Writer::new(&mut buffer, Class::Request, Method::ALLOCATE, TransactionId([1; 12])).unwrap();
    w.attribute(&Username("alice")).unwrap().attribute(&Realm("other")).unwrap().attribute(&Nonce(&nonce)).unwrap();
    let request = w.integrity_sha1(&key("alice")).unwrap().finish().to_vec();
    assert_eq!(failure(&b.bytes(CLIENT, &request).0), ("alice", AuthFailureReason::WrongRealm));
    // A challenge is no failure.
    let bare = plain(Class::Request, Method::ALLOCATE, &udp);
    assert!(matches!(b.bytes(CLIENT, &bare).0, Action::Reply(_)));
}
