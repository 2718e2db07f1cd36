//! Long-term credentials, and the nonces that go with them.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use backwater_stun::{HmacKey, LongTermKey, PasswordAlgorithms, SecurityFeatures, Userhash, opaque_string};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;

use crate::ClientAddr;

mod directory;
mod hashed;

pub use directory::Directory;
pub(crate) use directory::Lookup;
pub use hashed::HashedPassword;

/// Static users, and shared secrets for time-limited credentials.
///
/// A time-limited username is `expiry`, `expiry:name`, `name:expiry` or `:expiry`, with the expiry in seconds since 1970-01-01 UTC.
/// Its password is the base64 of HMAC-SHA1(secret, username) or of HMAC-SHA256(secret, username), as in the TURN REST API
/// (draft-uberti-behave-turn-rest). A new allocation needs a username that has not expired; an existing allocation continues.
#[derive(Clone)]
pub struct Credentials {
    realm: String,
    /// By name: an identity for each algorithm that the user has a key of.
    users: HashMap<Box<str>, [Option<Arc<Identity>>; 2]>,
    /// The names of those users by their USERHASH.
    hashes: HashMap<[u8; 32], Box<str>>,
    /// Whether a user has no key by SHA-256, so that nobody is offered it: who a client is shows only after it has chosen.
    md5_only: bool,
    secrets: Vec<Secret>,
}

#[derive(Clone)]
struct Secret {
    id: Option<Box<str>>,
    value: String,
    origin: u32,
}

/// A user, and the key by one password algorithm, which verifies the user's requests. The user's allocations share it.
pub(crate) struct Identity {
    pub(crate) name: Box<str>,
    pub(crate) algorithm: Algorithm,
    source: Source,
    /// The number of the user or the secret. Each that is added has its own, also when it replaces one with the same name.
    origin: u32,
    pub(crate) key: HmacKey,
}

/// What a key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    User,
    /// A secret, by HMAC-SHA1.
    Sha1,
    /// A secret, by HMAC-SHA256.
    Sha256,
}

/// Returns the number of a user or a secret that is added.
fn next_origin() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Relaxed)
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How a password becomes a key (RFC 8489 §18.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Md5,
    Sha256,
}

/// A request with a valid nonce that has not authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthFailure {
    /// The user name of the request, which may be anything; empty for an unknown USERHASH.
    pub user: Box<str>,
    /// The reason.
    pub reason: AuthFailureReason,
    /// The length of the reply. `None`: the source has reached the limit of replies, and gets none.
    pub reply: Option<usize>,
}

/// Why a request has not authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuthFailureReason {
    /// The integrity was made with another password.
    WrongPassword,
    /// There is no such user.
    UnknownUser,
    /// The time-limited user name has expired.
    Expired,
    /// The realm is not the server's.
    WrongRealm,
}

impl AuthFailureReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: &'static [Self] = &[Self::WrongPassword, Self::UnknownUser, Self::Expired, Self::WrongRealm];

    /// Returns the name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::WrongPassword => "wrong_password",
            Self::UnknownUser => "unknown_user",
            Self::Expired => "expired",
            Self::WrongRealm => "wrong_realm",
        }
    }
}

/// Why a credential cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// The realm is empty, too long, or has forbidden characters. Each 401 carries the realm: a longer one would make the response
    /// more than 4.5 times as long as the request.
    #[error("a realm has 1 to 48 bytes, and no quotation marks or control characters")]
    Realm,
    /// The user name is not one: it has at most 508 bytes (RFC 8489 §14.3), and no colon, which would be ambiguous in the key.
    #[error("a user name has 1 to 508 bytes, and neither a colon nor control characters")]
    Username,
    /// OpaqueString (RFC 8265) does not allow the password.
    #[error("a password has no control characters and nothing else that RFC 8265 forbids")]
    Password,
    /// The password or the secret is empty.
    #[error("it is empty")]
    Empty,
    /// It is no [`HashedPassword`].
    #[error(
        "a hashed password is the MD5 key in 32 hexadecimal digits, alone or with a colon and the SHA-256 key in 64"
    )]
    HashedPassword,
    /// It would be written before a colon.
    #[error("the id of a secret has 1 to 64 bytes, and neither a colon nor control characters")]
    SecretId,
    /// There is no secret, or none with this id.
    #[error("there is no such secret")]
    NoSecret,
}

/// Bytes of a realm at most. The shortest Allocate request has 28 bytes, and a 401 with such a realm 124.
const MAX_REALM: usize = 48;

impl Credentials {
    /// Makes credentials without a user, in this realm.
    ///
    /// # Errors
    /// [`CredentialsError::Realm`].
    pub fn new(realm: &str) -> Result<Self, CredentialsError> {
        let ok = (1..=MAX_REALM).contains(&realm.len()) && !realm.chars().any(|c| c.is_control() || c == '"');
        if !ok {
            return Err(CredentialsError::Realm);
        }
        Ok(Self {
            realm: realm.to_owned(),
            users: HashMap::new(),
            hashes: HashMap::new(),
            md5_only: false,
            secrets: vec![],
        })
    }

    /// Adds a user, or changes the password of one.
    ///
    /// # Errors
    /// [`CredentialsError::Username`], [`CredentialsError::Password`] or [`CredentialsError::Empty`].
    pub fn add_user(&mut self, username: &str, password: &str) -> Result<(), CredentialsError> {
        let username = check_username(username)?;
        let keys = HashedPassword::new(&username, &self.realm, password)?;
        self.insert(&username, &keys);
        Ok(())
    }

    /// Adds a user whose password is known by its keys only, or changes the keys of one. They must have been made for this name and this realm.
    ///
    /// Without a key by SHA-256, no client is offered that algorithm (RFC 8489, section 9.2.3: the server offers before it
    /// knows the user).
    ///
    /// # Errors
    /// [`CredentialsError::Username`].
    pub fn add_hashed_user(&mut self, username: &str, keys: &HashedPassword) -> Result<(), CredentialsError> {
        let username = check_username(username)?;
        self.insert(&username, keys);
        Ok(())
    }

    fn insert(&mut self, username: &str, keys: &HashedPassword) {
        let identities = identities_of(username, keys);
        self.md5_only |= keys.sha256.is_none();
        self.hashes.insert(Userhash::new(username, &self.realm).0, username.into());
        self.users.insert(username.into(), identities);
    }

    /// Adds a shared secret. Several are tried in their order, so that one can be replaced without an interruption.
    ///
    /// # Errors
    /// [`CredentialsError::Empty`].
    pub fn add_secret(&mut self, secret: &str) -> Result<(), CredentialsError> {
        self.push_secret(None, secret)
    }

    /// Adds a shared secret that [`time_limited`](Self::time_limited) finds by its id.
    ///
    /// # Errors
    /// [`CredentialsError::SecretId`] or [`CredentialsError::Empty`].
    pub fn add_named_secret(&mut self, id: &str, secret: &str) -> Result<(), CredentialsError> {
        if !(1..=64).contains(&id.len()) || id.chars().any(|c| c.is_control() || c == ':') {
            return Err(CredentialsError::SecretId);
        }
        self.push_secret(Some(id.into()), secret)
    }

    fn push_secret(&mut self, id: Option<Box<str>>, secret: &str) -> Result<(), CredentialsError> {
        if secret.is_empty() {
            return Err(CredentialsError::Empty);
        }
        self.secrets.push(Secret { id, value: secret.to_owned(), origin: next_origin() });
        Ok(())
    }

    /// Makes a time-limited credential: the username `expiry:name`, with the expiry in seconds since 1970-01-01 UTC, and its password by
    /// HMAC-SHA1, which every server with this kind of secret takes. The secret is the one with this id, or the first of all.
    ///
    /// # Errors
    /// [`CredentialsError::NoSecret`] or [`CredentialsError::Username`].
    pub fn time_limited(
        &self,
        secret_id: Option<&str>,
        name: &str,
        expiry: u64,
    ) -> Result<(String, String), CredentialsError> {
        let is_meant = |secret: &&Secret| secret_id.is_none_or(|id| secret.id.as_deref() == Some(id));
        let secret = self.secrets.iter().find(is_meant).ok_or(CredentialsError::NoSecret)?;
        let username = format!("{expiry}:{name}");
        let is_fine = username.len() < 509 && !name.is_empty() && !name.chars().any(char::is_control);
        let username =
            opaque_string(&username).ok().filter(|_| is_fine).ok_or(CredentialsError::Username)?.into_owned();
        let password = time_limited_password(&secret.value, &username);
        Ok((username, password))
    }

    /// Returns whether there is neither a user nor a secret, so that every request is refused.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.secrets.is_empty()
    }

    /// Returns the number of static users.
    pub fn users(&self) -> usize {
        self.users.len()
    }

    /// Returns the number of shared secrets.
    pub fn secrets(&self) -> usize {
        self.secrets.len()
    }

    /// Returns the realm.
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// Returns the identities that a request with this user name may have: none for a user that is unknown or expired.
    pub(crate) fn identities(
        &self,
        username: &str,
        algorithm: Algorithm,
        unix: Duration,
    ) -> impl Iterator<Item = Arc<Identity>> {
        let known = self.users.get(username).and_then(|identities| identities[algorithm as usize].clone());
        let in_time = known.is_none() && time_limit(username).is_some_and(|(expiry, _)| expiry > unix.as_secs());
        let secrets = if in_time { self.secrets.as_slice() } else { &[] };
        let limited = secrets.iter().flat_map(move |secret| {
            [Source::Sha1, Source::Sha256].into_iter().map(move |source| {
                let password = match source {
                    Source::Sha256 => time_limited_password_sha256(&secret.value, username),
                    Source::Sha1 | Source::User => time_limited_password(&secret.value, username),
                };
                Arc::new(Identity::new(algorithm, username, &self.realm, &password, (source, secret.origin)))
            })
        });
        known.into_iter().chain(limited)
    }

    /// Returns whether the user or the secret that an identity comes from is still here.
    pub(crate) fn has(&self, identity: &Identity) -> bool {
        match identity.source {
            Source::User => {
                let known = self.users.get(&identity.name).and_then(|keys| keys[identity.algorithm as usize].as_ref());
                known.is_some_and(|known| known.is(identity))
            }
            Source::Sha1 | Source::Sha256 => self.secrets.iter().any(|secret| secret.origin == identity.origin),
        }
    }

    /// Returns why [`identities`](Self::identities) finds nobody for a user name.
    pub(crate) fn why_nobody(&self, username: &str, unix: Duration) -> AuthFailureReason {
        match time_limit(username) {
            Some((expiry, _)) if !self.secrets.is_empty() && expiry <= unix.as_secs() => AuthFailureReason::Expired,
            Some(_) | None => AuthFailureReason::UnknownUser,
        }
    }

    /// Returns the name of a static user. A time-limited user cannot be found by its hash.
    pub(crate) fn by_hash(&self, Userhash(hash): &Userhash) -> Option<&str> {
        self.hashes.get(hash).map(|name| &**name)
    }

    /// Returns the password algorithms that are offered to clients, the best first.
    pub(crate) fn algorithms(&self) -> PasswordAlgorithms<'static> {
        if self.md5_only { PasswordAlgorithms::MD5 } else { PasswordAlgorithms::SHA256_MD5 }
    }

    /// What the nonces say: user names may be hashed if every user can be found so.
    pub(crate) fn features(&self, has_directory: bool) -> SecurityFeatures {
        let username_anonymity = self.secrets.is_empty() && !has_directory;
        SecurityFeatures { password_algorithms: true, username_anonymity }
    }
}

/// Returns an identity for each algorithm that there is a key of.
fn identities_of(username: &str, keys: &HashedPassword) -> [Option<Arc<Identity>>; 2] {
    let origin = next_origin();
    let identity = |algorithm, key: &[u8]| {
        let (name, key) = (username.into(), HmacKey::new(key));
        Arc::new(Identity { name, algorithm, source: Source::User, origin, key })
    };
    [Some(identity(Algorithm::Md5, &keys.md5)), keys.sha256.as_ref().map(|key| identity(Algorithm::Sha256, key))]
}

impl Identity {
    fn new(algorithm: Algorithm, name: &str, realm: &str, password: &str, (source, origin): (Source, u32)) -> Self {
        let key = match algorithm {
            Algorithm::Md5 => LongTermKey::md5(name, realm, password),
            Algorithm::Sha256 => LongTermKey::sha256(name, realm, password),
        };
        Self { name: name.into(), algorithm, source, origin, key: HmacKey::from(&key) }
    }

    /// Returns the bytes that this identity takes for itself. Each time-limited one is made for its request; a static user's belongs
    /// to the credentials.
    pub(crate) fn own_bytes(&self) -> usize {
        if self.source == Source::User { 0 } else { size_of::<Self>() + self.name.len() }
    }

    /// Returns whether both are the same user with the same key.
    pub(crate) fn is(&self, other: &Self) -> bool {
        (&self.name, self.algorithm, self.source, self.origin)
            == (&other.name, other.algorithm, other.source, other.origin)
    }
}

/// Prepares the name of a static user (RFC 8265).
fn check_username(username: &str) -> Result<Cow<'_, str>, CredentialsError> {
    let ok = (1..509).contains(&username.len()) && !username.chars().any(|c| c.is_control() || c == ':');
    opaque_string(username).ok().filter(|_| ok).ok_or(CredentialsError::Username)
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("realm", &self.realm).finish_non_exhaustive()
    }
}

/// Returns the expiry of a time-limited user name, in seconds since 1970-01-01 UTC, and the name in it, which may be empty.
pub(crate) fn time_limit(username: &str) -> Option<(u64, &str)> {
    let expiry = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let (first, after) = username.split_once(':').unwrap_or((username, ""));
    let (before, last) = username.rsplit_once(':').unwrap_or(("", username));
    expiry(first).map(|expiry| (expiry, after)).or_else(|| Some((expiry(last)?, before)))
}

/// Returns the password of a time-limited username: base64 of HMAC-SHA1 of the name, with the secret as the key
/// (draft-uberti-behave-turn-rest).
pub fn time_limited_password(secret: &str, username: &str) -> String {
    // HMAC takes a key of any length.
    let Ok(mac) = Hmac::<Sha1>::new_from_slice(secret.as_bytes()) else { return String::new() };
    BASE64_STANDARD.encode(mac.chain_update(username).finalize().into_bytes())
}

/// Returns the same with HMAC-SHA256.
pub(crate) fn time_limited_password_sha256(secret: &str, username: &str) -> String {
    let Ok(mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(secret.as_bytes()) else { return String::new() };
    BASE64_STANDARD.encode(mac.chain_update(username).finalize().into_bytes())
}

/// Makes and checks nonces without a table. A nonce is the cookie of RFC 8489 §9.2, the time, and a keyed code over both and the
/// client's address.
pub(crate) struct Nonces {
    key: Hmac<Sha256>,
    cookie: [u8; COOKIE_LEN],
}

/// The result of checking a nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NonceCheck {
    Valid,
    /// Another server's, another client's, or too old. The client gets a new one (RFC 8489 §9.2.4).
    Stale,
}

const COOKIE_LEN: usize = 13;

/// Bytes of the time in seconds: its last two. The code tells which 18 hours it was.
const STAMP_LEN: usize = 2;

/// Bytes of the code in a nonce. Guessing one takes 2^71 datagrams. More bytes would not fit into a 401 that is at most 4.5 times
/// as long as its request.
const CODE_LEN: usize = 9;

/// The length of a nonce in characters.
pub(crate) const NONCE_LEN: usize = COOKIE_LEN + ((STAMP_LEN + CODE_LEN) * 8).div_ceil(6);

impl Nonces {
    /// How long a nonce is valid (RFC 8656 §5 suggests an hour).
    const LIFETIME: Duration = Duration::from_secs(3600);

    pub(crate) fn new(key: &[u8; 64], features: SecurityFeatures) -> Self {
        Self { key: KeyInit::new(&(*key).into()), cookie: features.nonce_cookie() }
    }

    pub(crate) fn make(&self, client: ClientAddr, unix: Duration) -> [u8; NONCE_LEN] {
        let seconds = unix.as_secs();
        let mut bytes = [0; STAMP_LEN + CODE_LEN];
        bytes[..STAMP_LEN].copy_from_slice(&(seconds as u16).to_be_bytes());
        bytes[STAMP_LEN..].copy_from_slice(&self.code(seconds, client));
        let mut nonce = [0; NONCE_LEN];
        nonce[..COOKIE_LEN].copy_from_slice(&self.cookie);
        // The buffer has exactly this length.
        let _ = BASE64_URL_SAFE_NO_PAD.encode_slice(bytes, &mut nonce[COOKIE_LEN..]);
        nonce
    }

    pub(crate) fn check(&self, nonce: &[u8], client: ClientAddr, unix: Duration) -> NonceCheck {
        let mut bytes = [0; STAMP_LEN + CODE_LEN];
        let rest = nonce.strip_prefix(&self.cookie).filter(|rest| rest.len() == NONCE_LEN - COOKIE_LEN);
        let decoded = rest.map(|rest| BASE64_URL_SAFE_NO_PAD.decode_slice_unchecked(rest, &mut bytes));
        if !matches!(decoded, Some(Ok(len)) if len == bytes.len()) {
            return NonceCheck::Stale;
        }
        let (stamp, code) = bytes.split_at(STAMP_LEN);
        let stamp = u16::from_be_bytes(stamp.try_into().unwrap_or_default());
        let now = unix.as_secs();
        // Fresh nonces stay valid when the clock is set back a little.
        let age = i64::from((now as u16).wrapping_sub(stamp) as i16);
        let fresh = age.unsigned_abs() <= Self::LIFETIME.as_secs();
        // The comparison need not take constant time: anyone who asks gets a valid code.
        let valid = fresh && code == self.code(now.wrapping_add_signed(-age), client);
        if valid { NonceCheck::Valid } else { NonceCheck::Stale }
    }

    fn code(&self, seconds: u64, client: ClientAddr) -> [u8; CODE_LEN] {
        let ip = match client.0.ip() {
            std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            std::net::IpAddr::V6(ip) => ip,
        };
        let mac = self.key.clone().chain_update(seconds.to_be_bytes()).chain_update(ip.octets());
        let mac = mac.chain_update(client.0.port().to_be_bytes()).finalize().into_bytes();
        std::array::from_fn(|i| mac.get(i).copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
