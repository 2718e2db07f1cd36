//! Who may use the server: long-term credentials and the nonces that go with them.

use std::{collections::HashMap, fmt, time::Duration};

use backwater_stun::{HmacKey, LongTermKey};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;

use crate::ClientAddr;

/// Static users, and shared secrets for time-limited credentials.
///
/// A time-limited username is `expiry` or `expiry:name`, the expiry in seconds since 1970-01-01 UTC; its password is
/// the base64 of HMAC-SHA1(secret, username): what is known as the TURN REST API. A new allocation needs one that has
/// not expired; an allocation that exists goes on.
#[derive(Clone)]
pub struct Credentials {
    realm: String,
    users: HashMap<String, HmacKey>,
    secrets: Vec<String>,
}

/// What cannot be a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// RFC 8489, section 14.9: a realm has fewer than 128 characters; and the server needs one.
    #[error("a realm has 1 to 127 characters, and no quotation marks or control characters")]
    Realm,
    /// RFC 8489, section 14.3: a username has fewer than 509 bytes; a colon would be ambiguous in the key.
    #[error("a user name has 1 to 508 bytes, and neither a colon nor control characters")]
    Username,
    /// Nothing would be secret.
    #[error("it is empty")]
    Empty,
}

impl Credentials {
    /// Nobody, in this realm.
    ///
    /// # Errors
    /// [`CredentialsError::Realm`].
    pub fn new(realm: &str) -> Result<Self, CredentialsError> {
        let ok = (1..128).contains(&realm.chars().count()) && !realm.chars().any(|c| c.is_control() || c == '"');
        if !ok {
            return Err(CredentialsError::Realm);
        }
        Ok(Self { realm: realm.to_owned(), users: HashMap::new(), secrets: Vec::new() })
    }

    /// Adds a user, or changes the password of one.
    ///
    /// # Errors
    /// [`CredentialsError::Username`] or [`CredentialsError::Empty`].
    pub fn add_user(&mut self, username: &str, password: &str) -> Result<(), CredentialsError> {
        let ok = (1..509).contains(&username.len()) && !username.chars().any(|c| c.is_control() || c == ':');
        if !ok {
            return Err(CredentialsError::Username);
        }
        if password.is_empty() {
            return Err(CredentialsError::Empty);
        }
        let key = LongTermKey::md5(username, &self.realm, password);
        self.users.insert(username.to_owned(), HmacKey::from(&key));
        Ok(())
    }

    /// Adds a shared secret. Several are tried in their order, so that one can be replaced without an interruption.
    ///
    /// # Errors
    /// [`CredentialsError::Empty`].
    pub fn add_secret(&mut self, secret: &str) -> Result<(), CredentialsError> {
        if secret.is_empty() {
            return Err(CredentialsError::Empty);
        }
        self.secrets.push(secret.to_owned());
        Ok(())
    }

    /// Whether there is neither a user nor a secret, so that nobody can get in.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.secrets.is_empty()
    }

    /// The realm.
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// The keys that a user's request may be made with: none for a user who is unknown or expired.
    pub(crate) fn keys(&self, username: &str, unix: Duration) -> impl Iterator<Item = HmacKey> {
        let known = self.users.get(username).cloned();
        let expiry = username.split(':').next().and_then(|expiry| expiry.parse().ok());
        let in_time = known.is_none() && expiry.is_some_and(|expiry: u64| expiry > unix.as_secs());
        let secrets = if in_time { self.secrets.as_slice() } else { &[] };
        let limited = secrets.iter().map(move |secret| {
            let password = time_limited_password(secret, username);
            HmacKey::from(&LongTermKey::md5(username, &self.realm, &password))
        });
        known.into_iter().chain(limited)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("realm", &self.realm).finish_non_exhaustive()
    }
}

/// The password of a time-limited username.
pub(crate) fn time_limited_password(secret: &str, username: &str) -> String {
    // HMAC takes a key of any length.
    let Ok(mac) = Hmac::<Sha1>::new_from_slice(secret.as_bytes()) else { return String::new() };
    BASE64_STANDARD.encode(mac.chain_update(username).finalize().into_bytes())
}

/// Nonces that need not be remembered: the time, and a keyed code over the time and the client's address.
pub(crate) struct Nonces {
    key: Hmac<Sha256>,
}

/// What a nonce is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NonceCheck {
    Valid,
    /// Not one of ours, another client's, or too old: the client gets a new one (RFC 8489, section 9.2.4).
    Stale,
}

/// Bytes of the code that are kept: guessing one takes 2^95 attempts.
const CODE_LEN: usize = 12;

/// The length of a nonce in characters.
pub(crate) const NONCE_LEN: usize = (4 + CODE_LEN) * 8 / 6 + 1;

impl Nonces {
    /// How long a nonce is good for (RFC 8656, section 5 suggests an hour).
    const LIFETIME: Duration = Duration::from_secs(3600);

    pub(crate) fn new(key: &[u8; 64]) -> Self {
        Self { key: KeyInit::new(&(*key).into()) }
    }

    pub(crate) fn make(&self, client: ClientAddr, unix: Duration) -> String {
        let stamp = (unix.as_secs() as u32).to_be_bytes();
        let mut bytes = [0; 4 + CODE_LEN];
        bytes[..4].copy_from_slice(&stamp);
        bytes[4..].copy_from_slice(&self.code(stamp, client));
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    pub(crate) fn check(&self, nonce: &[u8], client: ClientAddr, unix: Duration) -> NonceCheck {
        let mut bytes = [0; 4 + CODE_LEN];
        if nonce.len() != NONCE_LEN || BASE64_URL_SAFE_NO_PAD.decode_slice_unchecked(nonce, &mut bytes).is_err() {
            return NonceCheck::Stale;
        }
        let (stamp, code) = bytes.split_at(4);
        let stamp: [u8; 4] = stamp.try_into().unwrap_or_default();
        // Wraps in 2106. A clock that is set back a little must not make fresh nonces stale.
        let age = (unix.as_secs() as u32).wrapping_sub(u32::from_be_bytes(stamp)) as i32;
        let fresh = age.unsigned_abs() as u64 <= Self::LIFETIME.as_secs();
        // Nobody gains by timing this: a valid code is given to anyone who asks.
        if fresh && code == self.code(stamp, client) { NonceCheck::Valid } else { NonceCheck::Stale }
    }

    fn code(&self, stamp: [u8; 4], client: ClientAddr) -> [u8; CODE_LEN] {
        let ip = match client.0.ip() {
            std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            std::net::IpAddr::V6(ip) => ip,
        };
        let mac = self.key.clone().chain_update(stamp).chain_update(ip.octets());
        let mac = mac.chain_update(client.0.port().to_be_bytes()).finalize().into_bytes();
        std::array::from_fn(|i| mac.get(i).copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn client(addr: &str) -> ClientAddr {
        ClientAddr(addr.parse().unwrap())
    }

    #[test]
    fn a_nonce_is_good_for_its_client_and_its_hour() {
        let nonces = Nonces::new(&[7; 64]);
        let a = client("192.0.2.1:4000");
        let nonce = nonces.make(a, NOW);
        assert_eq!(nonce.len(), NONCE_LEN);
        let check = |client, unix| nonces.check(nonce.as_bytes(), client, unix);
        let s = Duration::from_secs;
        assert_eq!(check(a, NOW), NonceCheck::Valid);
        assert_eq!(check(a, NOW + s(3600)), NonceCheck::Valid);
        assert_eq!(check(a, NOW - s(5)), NonceCheck::Valid);
        assert_eq!(check(a, NOW + s(3601)), NonceCheck::Stale);
        assert_eq!(check(client("192.0.2.1:4001"), NOW), NonceCheck::Stale);
        assert_eq!(check(client("192.0.2.2:4000"), NOW), NonceCheck::Stale);
        assert_eq!(Nonces::new(&[8; 64]).check(nonce.as_bytes(), a, NOW), NonceCheck::Stale);
        for i in 0..nonce.len() {
            let mut forged = nonce.clone().into_bytes();
            forged[i] = if forged[i] == b'A' { b'Q' } else { b'A' };
            assert_eq!(nonces.check(&forged, a, NOW), NonceCheck::Stale, "character {i}");
        }
        for other in [&b""[..], b"x", &[0xFF; NONCE_LEN], &[b'A'; 200]] {
            assert_eq!(nonces.check(other, a, NOW), NonceCheck::Stale);
        }
    }

    #[test]
    fn time_limited_users_have_what_the_secret_makes() {
        let mut c = Credentials::new("example.org").unwrap();
        c.add_secret("north").unwrap();
        c.add_secret("south").unwrap();
        let future = format!("{}:alice", NOW.as_secs() + 1);
        assert_eq!(c.keys(&future, NOW).count(), 2);
        assert_eq!(c.keys(&(NOW.as_secs() + 1).to_string(), NOW).count(), 2);
        assert_eq!(c.keys(&format!("{}:alice", NOW.as_secs()), NOW).count(), 0);
        assert_eq!(c.keys("alice", NOW).count(), 0);
        assert_eq!(c.keys("", NOW).count(), 0);
        // printf 1433895918:1 | openssl dgst -sha1 -hmac north -binary | base64
        assert_eq!(time_limited_password("north", "1433895918:1"), "FVvRuEpfqU2aWPC2GTK78NIG77I=");
    }

    #[test]
    fn bad_credentials_are_refused() {
        use CredentialsError as E;
        assert_eq!(Credentials::new("").unwrap_err(), E::Realm);
        assert_eq!(Credentials::new(&"x".repeat(128)).unwrap_err(), E::Realm);
        let mut c = Credentials::new("r").unwrap();
        assert!(c.is_empty());
        assert_eq!(c.add_user("", "p"), Err(E::Username));
        assert_eq!(c.add_user("a:b", "p"), Err(E::Username));
        assert_eq!(c.add_user("a", ""), Err(E::Empty));
        assert_eq!(c.add_secret(""), Err(E::Empty));
        c.add_user("a", "p").unwrap();
        assert_eq!(c.keys("a", NOW).count(), 1);
        assert!(!format!("{c:?}").contains('p'));
    }
}
