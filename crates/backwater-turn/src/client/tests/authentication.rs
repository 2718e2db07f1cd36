//! Challenges (RFC 8489 §9.2.5).

use super::*;

fn algorithms(w: &mut Writer<'_>, code: Code, nonce: &[u8], offer: Option<PasswordAlgorithms<'_>>) {
    put(w, &ErrorCode::from(code));
    put(w, &Realm(REALM));
    put(w, &Nonce(nonce));
    offer.iter().for_each(|offer| put(w, offer));
}

const BOTH: SecurityFeatures = SecurityFeatures { password_algorithms: true, username_anonymity: true };

#[test]
fn challenge_is_answered_with_md5_and_sha1_for_a_server_without_algorithms() {
    let mut b = Bench::new();
    b.challenge();
    let request = b.request(Method::ALLOCATE);
    let verified = Message::parse(&request).unwrap().verify(&b.key).unwrap();
    assert_eq!(verified.integrity(), Integrity::Sha1);
    assert_eq!((get(&request), get(&request)), (Some(Username("alice")), Some(Realm(REALM))));
    assert_eq!(get(&request), Some(Nonce(b"nonce")));
    assert!(!has(&request, AttributeType::PASSWORD_ALGORITHM));
}

#[test]
fn sha256_and_userhash_are_used_where_the_server_offers_them() {
    for (hide_username, username) in [(false, Some(Username("alice"))), (true, None)] {
        let mut b = Bench::with(|config| config.hide_username = hide_username);
        let request = b.request(Method::ALLOCATE);
        let offer = Some(PasswordAlgorithms::SHA256_MD5);
        b.respond(&request, Class::ErrorResponse, false, &|w| {
            algorithms(w, Code::UNAUTHENTICATED, &BOTH.nonce_cookie(), offer);
        });
        let request = b.request(Method::ALLOCATE);
        b.key = HmacKey::from(&LongTermKey::sha256("alice", REALM, "secret"));
        let verified = Message::parse(&request).unwrap().verify(&b.key).unwrap();
        assert_eq!(verified.integrity(), Integrity::Sha256);
        assert_eq!(get(&request), offer);
        assert_eq!(get(&request), Some(PasswordAlgorithm::SHA256));
        assert_eq!(get(&request), username);
        let hash = username.is_none().then(|| Userhash::new("alice", REALM));
        assert_eq!(get(&request), hash);
        // A response with the weaker attribute was not made by the server.
        let input = b.respond(&request, SUCCESS, true, &|w| put(w, &XorRelayedAddress(addr(RELAYED))));
        assert_eq!(input, Input::Ignored);
        b.integrity = Integrity::Sha256;
        b.succeed(&request, &|w| put(w, &XorRelayedAddress(addr(RELAYED))));
        assert!(b.client.is_allocated());
    }
}

#[test]
fn challenge_without_the_algorithms_that_its_nonce_announces_is_refused() {
    let mut b = Bench::new();
    let request = b.request(Method::ALLOCATE);
    b.respond(&request, Class::ErrorResponse, false, &|w| {
        algorithms(w, Code::UNAUTHENTICATED, &BOTH.nonce_cookie(), None);
    });
    assert_eq!(b.events(), [Event::Failed(Failure::BidDown)]);
    b.quiet();
}

#[test]
fn wrong_password_stops_the_client_until_there_is_another() {
    let mut b = Bench::new();
    b.challenge();
    let request = b.request(Method::ALLOCATE);
    b.challenge_with(&request, Code::UNAUTHENTICATED, b"other");
    assert_eq!(b.events(), [Event::Failed(Failure::Unauthenticated)]);
    b.quiet();
    assert_eq!(b.client.poll_timeout(), None);
    b.client.set_credential(b.now, credential());
    b.challenge();
    b.allocate(&|_| ());
    assert!(b.client.is_allocated());
}

#[test]
fn stale_nonce_is_replaced_for_all_requests_in_flight() {
    let mut b = Bench::allocated();
    for n in 1..=3 {
        b.client.permit(b.now, IpAddr::from([203, 0, 113, n])).unwrap();
    }
    let requests = b.sent();
    assert_eq!(requests.len(), 3);
    for request in &requests {
        b.challenge_with(request, Code::STALE_NONCE, b"fresh");
    }
    let requests = b.sent();
    assert_eq!(requests.len(), 3);
    for request in &requests {
        assert_eq!(get(request), Some(Nonce(b"fresh")));
        b.succeed(request, &|_| ());
    }
    assert_eq!(b.events().len(), 3);
}

/// A server that always has a fresh nonce makes a client that believes it ask without an end.
#[test]
fn three_challenges_are_answered_in_a_minute() {
    let mut b = Bench::new();
    let (start, mut requests, mut nonce) = (b.now, 0, 0_u32);
    while b.now < start + secs(59) {
        for request in b.sent() {
            requests += 1;
            nonce += 1;
            b.challenge_with(&request, Code::STALE_NONCE, &nonce.to_be_bytes());
        }
        b.pass(secs(1));
    }
    assert_eq!(requests, 4);
    b.pass(secs(1));
    b.request(Method::ALLOCATE);
}

#[test]
fn responses_without_the_servers_integrity_are_as_if_they_had_not_come() {
    let mut b = Bench::new();
    b.challenge();
    let request = b.request(Method::ALLOCATE);
    let relayed: Fill<'_> = &|w| put(w, &XorRelayedAddress(addr(RELAYED)));
    assert_eq!(b.respond(&request, SUCCESS, false, relayed), Input::Ignored);
    b.key = HmacKey::new(b"guess");
    assert_eq!(b.respond(&request, SUCCESS, true, relayed), Input::Ignored);
    for code in [Code::FORBIDDEN, Code::ALLOCATION_MISMATCH, Code::TRY_ALTERNATE, Code::UNAUTHENTICATED] {
        let error: Fill<'_> = &|w| put(w, &ErrorCode::from(code));
        assert_eq!(b.respond(&request, Class::ErrorResponse, true, error), Input::Ignored, "{code}");
    }
    assert_eq!(
        b.respond(&request, Class::ErrorResponse, false, &|w| put(w, &ErrorCode::from(Code::FORBIDDEN))),
        Input::Ignored
    );
    assert!(b.events().is_empty());
    b.key = HmacKey::from(&LongTermKey::md5("alice", REALM, "secret"));
    b.succeed(&request, relayed);
    assert!(b.client.is_allocated());
}

#[test]
fn credentials_are_prepared_and_bounded_and_debug_hides_the_password() {
    assert_eq!(Credential::new("a\u{3000}b", "c"), Credential::new("a b", "c"));
    assert_eq!(Credential::new(&"u".repeat(510), "c"), Err(InvalidCredential));
    assert_eq!(Credential::new("", "c"), Err(InvalidCredential));
    assert_eq!(Credential::new("a", ""), Err(InvalidCredential));
    let text = format!("{:?}", Config::new(addr(SERVER), Credential::new("a", "hunter2").unwrap(), [0; 64]));
    assert!(!text.contains("hunter2"), "{text}");
}

/// The credential of an allocation has expired: it goes on until its end, and a new credential lets it go on longer.
#[test]
fn allocation_outlives_its_credential() {
    let mut b = Bench::allocated();
    let channel = b.bound(PEER);
    let request = b.until(Method::CHANNEL_BIND);
    b.challenge_with(&request, Code::UNAUTHENTICATED, b"nonce");
    assert_eq!(b.events(), [Event::Failed(Failure::Unauthenticated)]);
    assert!(b.client.send(b.now, channel, &mut [0; 10]).is_ok());
    b.client.set_credential(b.now, credential());
    let requests = b.sent();
    assert_eq!(requests.len(), 2, "Refresh and ChannelBind");
    for request in requests {
        b.challenge_with(&request, Code::UNAUTHENTICATED, b"nonce");
    }
    for request in b.sent() {
        b.succeed(&request, &|_| ());
    }
    b.quiet();
    assert_eq!(b.events(), []);
    assert!(b.client.is_allocated());
}
