//! Long-term credentials: password algorithms, and the security features in a nonce (RFC 8489 §9.2).

use core::fmt;

use sha2::{Digest, Sha256};

use crate::attribute::{Nonce, PasswordAlgorithm, PasswordAlgorithms, Userhash};
use crate::integrity::LongTermKey;

/// The start of a nonce that carries [`SecurityFeatures`]. Four base64 characters follow (RFC 8489 §9.2).
const COOKIE: &[u8; 9] = b"obMatJos2";

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The features that a server announces in its nonces, where an attacker cannot remove them (RFC 8489 §18.1).
///
/// The bits are counted from the least significant of 24, as erratum 6290 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SecurityFeatures {
    /// Bit 0: the server sends PASSWORD-ALGORITHMS. A response without it has been tampered with.
    pub password_algorithms: bool,
    /// Bit 1: the server accepts USERHASH in place of USERNAME.
    pub username_anonymity: bool,
}

/// Why a client must not answer a challenge (RFC 8489 §9.2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChallengeError {
    /// The nonce announces PASSWORD-ALGORITHMS, and the response has none: a bid-down attack.
    BidDown,
    /// The server accepts no algorithm that this crate has.
    NoCommonAlgorithm,
}

/// The request's password algorithms are not the server's offer. The server answers 400 (RFC 8489 §9.2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlgorithmMismatch;

impl SecurityFeatures {
    /// Returns the start of the server's nonces.
    pub const fn nonce_cookie(self) -> [u8; 13] {
        let bits = self.password_algorithms as usize | (self.username_anonymity as usize) << 1;
        let mut cookie = [b'A'; 13];
        let mut i = 0;
        while i < COOKIE.len() {
            cookie[i] = COOKIE[i];
            i += 1;
        }
        cookie[12] = BASE64[bits];
        cookie
    }
}

impl Nonce<'_> {
    /// Returns the features that the nonce announces; `None` without the cookie. Unassigned bits are ignored.
    pub fn security_features(&self) -> Option<SecurityFeatures> {
        let encoded = self.0.strip_prefix(COOKIE)?.first_chunk::<4>()?;
        let mut bits = 0;
        for character in encoded {
            bits = bits << 6 | BASE64.iter().position(|c| c == character)?;
        }
        Some(SecurityFeatures { password_algorithms: bits & 1 != 0, username_anonymity: bits & 2 != 0 })
    }
}

impl Userhash {
    /// Returns SHA-256 of `username:realm`, both prepared by OpaqueString (RFC 8489 §14.4).
    pub fn new(username: &str, realm: &str) -> Self {
        Self(Sha256::new().chain_update(username).chain_update(":").chain_update(realm).finalize().into())
    }
}

impl LongTermKey {
    /// Makes the key by an algorithm; `None` for one that this crate does not have, or with parameters that it does not
    /// define.
    pub fn new(algorithm: PasswordAlgorithm<'_>, username: &str, realm: &str, password: &str) -> Option<Self> {
        match algorithm {
            PasswordAlgorithm::MD5 => Some(Self::md5(username, realm, password)),
            PasswordAlgorithm::SHA256 => Some(Self::sha256(username, realm, password)),
            PasswordAlgorithm { .. } => None,
        }
    }
}

impl PasswordAlgorithms<'_> {
    /// Chooses the client's algorithm after a 401 or 438, by the NONCE and PASSWORD-ALGORITHMS of the response.
    ///
    /// With `Some`, the client sends PASSWORD-ALGORITHM with this algorithm, and the PASSWORD-ALGORITHMS of the response unchanged.
    /// With `None`, the server does not have password algorithms: the client uses MD5 and sends neither.
    ///
    /// # Errors
    /// When the client must not try again: see [`ChallengeError`].
    pub fn choose(
        nonce: &Nonce<'_>,
        offered: Option<PasswordAlgorithms<'_>>,
    ) -> Result<Option<PasswordAlgorithm<'static>>, ChallengeError> {
        let Some(offered) = offered else {
            let promised = nonce.security_features().is_some_and(|features| features.password_algorithms);
            return if promised { Err(ChallengeError::BidDown) } else { Ok(None) };
        };
        let known = [PasswordAlgorithm::SHA256, PasswordAlgorithm::MD5];
        offered
            .iter()
            .find_map(|offer| known.into_iter().find(|algorithm| *algorithm == offer))
            .map(Some)
            .ok_or(ChallengeError::NoCommonAlgorithm)
    }

    /// Returns the algorithm of a request's key, by the server's offer (`self`) and the PASSWORD-ALGORITHMS and PASSWORD-ALGORITHM of
    /// the request. A request with neither comes from a client older than RFC 8489, and uses MD5.
    ///
    /// # Errors
    /// The request has one without the other, another list, or an algorithm that is not in the list.
    pub fn accept<'a>(
        &self,
        echoed: Option<PasswordAlgorithms<'_>>,
        chosen: Option<PasswordAlgorithm<'a>>,
    ) -> Result<PasswordAlgorithm<'a>, AlgorithmMismatch> {
        match (echoed, chosen) {
            (None, None) => Ok(PasswordAlgorithm::MD5),
            (Some(echoed), Some(chosen)) if echoed == *self && self.iter().any(|offer| offer == chosen) => Ok(chosen),
            (Some(_), Some(_)) | (Some(_), None) | (None, Some(_)) => Err(AlgorithmMismatch),
        }
    }
}

impl fmt::Display for ChallengeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BidDown => "PASSWORD-ALGORITHMS has been removed from the challenge",
            Self::NoCommonAlgorithm => "the server takes no password algorithm that is known here",
        })
    }
}

impl fmt::Display for AlgorithmMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the password algorithms are not what was offered")
    }
}

impl core::error::Error for ChallengeError {}
impl core::error::Error for AlgorithmMismatch {}

/// Prepares a user name, realm or password for use in a key (RFC 8265 §4.2): every kind of space becomes a plain one
/// and the text is normalized (NFC).
///
/// # Errors
/// If the text is empty or has characters that are not allowed in it, such as U+00AD.
#[cfg(feature = "std")]
pub fn opaque_string(text: &str) -> Result<std::borrow::Cow<'_, str>, OpaqueStringError> {
    use precis_profiles::precis_core::profile::Profile;
    precis_profiles::OpaqueString::new().enforce(text).map_err(|_| OpaqueStringError)
}

/// A text that OpaqueString does not allow.
#[cfg(feature = "std")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpaqueStringError;

#[cfg(feature = "std")]
impl fmt::Display for OpaqueStringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("empty, or has characters that a user name, realm or password cannot have")
    }
}

#[cfg(feature = "std")]
impl core::error::Error for OpaqueStringError {}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: SecurityFeatures = SecurityFeatures { password_algorithms: true, username_anonymity: true };

    #[test]
    fn bits_are_counted_from_the_least_significant() {
        assert_eq!(
            &SecurityFeatures { username_anonymity: true, ..Default::default() }.nonce_cookie(),
            b"obMatJos2AAAC"
        );
        assert_eq!(
            &SecurityFeatures { password_algorithms: true, ..Default::default() }.nonce_cookie(),
            b"obMatJos2AAAB"
        );
        for features in [SecurityFeatures::default(), BOTH] {
            assert_eq!(Nonce(&features.nonce_cookie()).security_features(), Some(features));
        }
        // Unassigned bits are ignored, and so is what only resembles the cookie.
        assert_eq!(Nonce(b"obMatJos2///Drest").security_features(), Some(BOTH));
        for nonce in [&b""[..], b"obMatJos2", b"obMatJos2AAA", b"obMatJos2AA=B", b"xobMatJos2AAAB"] {
            assert_eq!(Nonce(nonce).security_features(), None);
        }
    }

    #[test]
    fn client_detects_bid_down() {
        let promise = BOTH.nonce_cookie();
        let (promise, silence) = (Nonce(&promise), Nonce(b"1234"));
        assert_eq!(PasswordAlgorithms::choose(&promise, None), Err(ChallengeError::BidDown));
        assert_eq!(PasswordAlgorithms::choose(&silence, None), Ok(None));
        for (offered, chosen) in [
            (PasswordAlgorithms::MD5, PasswordAlgorithm::MD5),
            (PasswordAlgorithms::SHA256, PasswordAlgorithm::SHA256),
            (PasswordAlgorithms::SHA256_MD5, PasswordAlgorithm::SHA256),
        ] {
            for nonce in [&promise, &silence] {
                assert_eq!(PasswordAlgorithms::choose(nonce, Some(offered)), Ok(Some(chosen)));
            }
        }
    }

    #[test]
    fn server_accepts_its_own_offer_or_none() {
        let offer = PasswordAlgorithms::SHA256;
        let (md5, sha256) = (PasswordAlgorithm::MD5, PasswordAlgorithm::SHA256);
        assert_eq!(offer.accept(None, None), Ok(md5));
        assert_eq!(offer.accept(Some(offer), Some(sha256)), Ok(sha256));
        assert_eq!(offer.accept(Some(offer), None), Err(AlgorithmMismatch));
        assert_eq!(offer.accept(None, Some(sha256)), Err(AlgorithmMismatch));
        assert_eq!(offer.accept(Some(offer), Some(md5)), Err(AlgorithmMismatch));
        assert_eq!(offer.accept(Some(PasswordAlgorithms::SHA256_MD5), Some(sha256)), Err(AlgorithmMismatch));
    }

    #[test]
    fn keys_by_algorithm() {
        let key = |algorithm| LongTermKey::new(algorithm, "user", "realm", "pass").map(|key| key.as_bytes().len());
        assert_eq!(key(PasswordAlgorithm::MD5), Some(16));
        assert_eq!(key(PasswordAlgorithm::SHA256), Some(32));
        assert_eq!(key(PasswordAlgorithm { number: 1, parameters: &[1] }), None);
        assert_eq!(key(PasswordAlgorithm { number: 3, parameters: &[] }), None);
    }

    #[cfg(feature = "std")]
    #[test]
    fn opaque_strings() {
        assert_eq!(opaque_string("pass word").unwrap(), "pass word");
        assert_eq!(opaque_string("a\u{3000}b").unwrap(), "a b");
        assert_eq!(opaque_string("e\u{301}").unwrap(), "\u{e9}");
        // The password of RFC 8489 B.1 as printed has a soft hyphen, which is not allowed.
        assert!(opaque_string("The\u{ad}M\u{aa}tr\u{2168}").is_err());
        assert!(opaque_string("").is_err());
    }
}
