use super::*;

const NOW: Duration = Duration::from_secs(1_800_000_000);

fn client(addr: &str) -> ClientAddr {
    ClientAddr(addr.parse().unwrap())
}

const FEATURES: SecurityFeatures = SecurityFeatures { password_algorithms: true, username_anonymity: false };

#[test]
fn a_nonce_is_good_for_its_client_and_its_hour() {
    let nonces = Nonces::new(&[7; 64], FEATURES);
    let a = client("192.0.2.1:4000");
    let nonce = nonces.make(a, NOW);
    assert_eq!(backwater_stun::Nonce(&nonce).security_features(), Some(FEATURES));
    let check = |client, unix| nonces.check(&nonce, client, unix);
    let s = Duration::from_secs;
    assert_eq!(check(a, NOW), NonceCheck::Valid);
    assert_eq!(check(a, NOW + s(3600)), NonceCheck::Valid);
    assert_eq!(check(a, NOW - s(5)), NonceCheck::Valid);
    assert_eq!(check(a, NOW + s(3601)), NonceCheck::Stale);
    // Two bytes of the time come again: the code does not.
    assert_eq!(check(a, NOW + s(1 << 16)), NonceCheck::Stale);
    assert_eq!(check(client("192.0.2.1:4001"), NOW), NonceCheck::Stale);
    assert_eq!(check(client("192.0.2.2:4000"), NOW), NonceCheck::Stale);
    for (key, features) in [(8, FEATURES), (7, SecurityFeatures::default())] {
        assert_eq!(Nonces::new(&[key; 64], features).check(&nonce, a, NOW), NonceCheck::Stale);
    }
    for i in 0..nonce.len() {
        let mut forged = nonce;
        forged[i] = if forged[i] == b'A' { b'Q' } else { b'A' };
        assert_eq!(nonces.check(&forged, a, NOW), NonceCheck::Stale, "character {i}");
    }
    for other in [&b""[..], b"x", &nonce[1..], &[0xFF; NONCE_LEN], &[b'A'; NONCE_LEN], &[b'A'; 200]] {
        assert_eq!(nonces.check(other, a, NOW), NonceCheck::Stale);
    }
}

#[test]
fn time_limited_password_is_made_from_the_secret() {
    let mut c = Credentials::new("example.org").unwrap();
    c.add_secret("north").unwrap();
    c.add_secret("south").unwrap();
    let count = |name: &str| c.identities(name, Algorithm::Sha256, NOW).count();
    // Two secrets, each with SHA-1 and SHA-256.
    for (name, user) in
        [("T:alice", "alice"), ("alice:T", "alice"), ("T", ""), (":T", ""), ("T:", ""), ("T:@a:b", "@a:b")]
    {
        let at = |seconds: u64| name.replace('T', &seconds.to_string());
        assert_eq!((count(&at(NOW.as_secs() + 1)), count(&at(NOW.as_secs()))), (4, 0), "{name}");
        assert_eq!(time_limit(&at(7)), Some((7, user)), "{name}");
    }
    for name in ["+7:alice", "alice", "", ":", "alice:", "7a:b"] {
        assert_eq!(time_limit(name), None, "{name}");
    }
    assert_eq!(count("alice"), 0);
    assert_eq!(count(""), 0);
    assert!(!c.features(false).username_anonymity);
    // printf 1433895918:1 | openssl dgst -sha1 -hmac north -binary | base64
    assert_eq!(time_limited_password("north", "1433895918:1"), "FVvRuEpfqU2aWPC2GTK78NIG77I=");
    // The same with -sha256.
    assert_eq!(time_limited_password_sha256("north", "1433895918:1"), "r29tPcJPR/tGBmLDUapoQDnojv21xZnu9tbz8g1TJ8w=");
}

#[test]
fn static_users_are_found_by_name_and_by_hash_and_share_their_keys() {
    let mut c = Credentials::new("example.org").unwrap();
    // A full-width space becomes a plain one (RFC 8265).
    c.add_user("alice", "pass\u{3000}word").unwrap();
    let of = |algorithm| c.identities("alice", algorithm, NOW).next().unwrap();
    assert!(Arc::ptr_eq(&of(Algorithm::Md5), &of(Algorithm::Md5)));
    assert_eq!(of(Algorithm::Sha256).algorithm, Algorithm::Sha256);
    assert_eq!(c.by_hash(&Userhash::new("alice", "example.org")), Some("alice"));
    assert_eq!(c.by_hash(&Userhash::new("bob", "example.org")), None);
    assert!(c.features(false).username_anonymity);
    assert!(size_of::<Identity>() <= 128);
}

#[test]
fn bad_credentials_are_refused() {
    use CredentialsError as E;
    assert_eq!(Credentials::new("").unwrap_err(), E::Realm);
    assert_eq!(Credentials::new(&"x".repeat(49)).unwrap_err(), E::Realm);
    let mut c = Credentials::new("r").unwrap();
    assert!(c.is_empty());
    assert_eq!(c.add_user("", "p"), Err(E::Username));
    assert_eq!(c.add_user("a:b", "p"), Err(E::Username));
    assert_eq!(c.add_user("a", ""), Err(E::Empty));
    assert_eq!(c.add_user("a", "p\u{ad}"), Err(E::Password));
    assert_eq!(c.add_secret(""), Err(E::Empty));
    c.add_user("a", "p").unwrap();
    assert_eq!(c.identities("a", Algorithm::Md5, NOW).count(), 1);
    assert!(!format!("{c:?}").contains('p'));
}

#[test]
fn hashed_users_have_the_keys_of_their_password() {
    let hashed = HashedPassword::new("ninefingers", "north.gov", "youhavetoberealistic").unwrap();
    // turnadmin -k -u ninefingers -r north.gov -p youhavetoberealistic
    let md5 = "bc807ee29df3c9ffa736523fb2c4e8ee";
    let text = hashed.to_string();
    assert!(text.starts_with(&format!("{md5}:")) && text.len() == 32 + 1 + 64, "{text}");
    assert_eq!(text.parse(), Ok(hashed));
    let md5: HashedPassword = md5.to_uppercase().parse().unwrap();
    assert!(!format!("{md5:?}").contains("bc80"));
    for wrong in
        ["", ":", "bc80", &text[..64], &format!("{text}0"), &text.replace('b', "+"), &format!("{}:", &text[..32])]
    {
        assert_eq!(wrong.parse::<HashedPassword>(), Err(CredentialsError::HashedPassword), "{wrong}");
    }
    let mut c = Credentials::new("north.gov").unwrap();
    c.add_hashed_user("ninefingers", &text.parse().unwrap()).unwrap();
    assert_eq!(c.algorithms(), PasswordAlgorithms::SHA256_MD5);
    // Who a client is shows after it has chosen: what one user lacks, nobody is offered.
    c.add_hashed_user("logen", &md5).unwrap();
    assert_eq!(c.algorithms(), PasswordAlgorithms::MD5);
    assert_eq!(c.identities("logen", Algorithm::Sha256, NOW).count(), 0);
    assert_eq!(c.identities("logen", Algorithm::Md5, NOW).count(), 1);
    assert_eq!(c.by_hash(&Userhash::new("logen", "north.gov")), Some("logen"));
    assert_eq!(c.add_hashed_user("a:b", &md5), Err(CredentialsError::Username));
}

#[test]
fn time_limited_credentials_are_made_with_the_secret_of_the_id() {
    let mut c = Credentials::new("example.org").unwrap();
    assert_eq!(c.time_limited(None, "alice", 7), Err(CredentialsError::NoSecret));
    c.add_named_secret("2026b", "north").unwrap();
    c.add_secret("south").unwrap();
    c.add_named_secret("2026a", "west").unwrap();
    for (id, secret) in [(None, "north"), (Some("2026b"), "north"), (Some("2026a"), "west")] {
        let expected = ("7:alice".to_owned(), time_limited_password(secret, "7:alice"));
        assert_eq!(c.time_limited(id, "alice", 7), Ok(expected), "{id:?}");
    }
    assert_eq!(c.time_limited(Some("2025"), "alice", 7), Err(CredentialsError::NoSecret));
    for wrong in ["", "a\nb", &"x".repeat(508)] {
        assert_eq!(c.time_limited(None, wrong, 7), Err(CredentialsError::Username), "{wrong:?}");
    }
    for id in ["", "a:b", "\u{7}", &"x".repeat(65)] {
        assert_eq!(c.add_named_secret(id, "s"), Err(CredentialsError::SecretId), "{id:?}");
    }
    assert_eq!(c.secrets(), 3);
    assert!(!format!("{c:?}").contains("north"));
}
