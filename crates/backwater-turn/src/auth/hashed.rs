//! Passwords of static users that are stored as the keys they make.

use std::{fmt, str::FromStr};

use backwater_stun::{LongTermKey, opaque_string};

use super::{CredentialsError, check_username};

/// The keys that a user's name, the realm and the password make (RFC 8489, section 18.5.1). Whoever has them can act as the user with any server of
/// that realm, but does not learn the password.
///
/// As text: the MD5 key in 32 hexadecimal digits, and where the SHA-256 key is known a colon and its 64. `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct HashedPassword {
    pub(super) md5: [u8; 16],
    pub(super) sha256: Option<[u8; 32]>,
}

impl HashedPassword {
    /// Makes both keys.
    ///
    /// # Errors
    /// [`CredentialsError::Username`], [`CredentialsError::Password`] or [`CredentialsError::Empty`].
    pub fn new(username: &str, realm: &str, password: &str) -> Result<Self, CredentialsError> {
        let username = check_username(username)?;
        if password.is_empty() {
            return Err(CredentialsError::Empty);
        }
        let password = opaque_string(password).map_err(|_| CredentialsError::Password)?;
        let (mut md5, mut sha256) = ([0; 16], [0; 32]);
        md5.copy_from_slice(LongTermKey::md5(&username, realm, &password).as_bytes());
        sha256.copy_from_slice(LongTermKey::sha256(&username, realm, &password).as_bytes());
        Ok(Self { md5, sha256: Some(sha256) })
    }
}

impl FromStr for HashedPassword {
    type Err = CredentialsError;

    fn from_str(text: &str) -> Result<Self, CredentialsError> {
        let (md5, sha256) = text.split_once(':').map_or((text, None), |(md5, sha256)| (md5, Some(sha256)));
        let keys = || Some(Self { md5: digits(md5)?, sha256: sha256.map(|s| digits(s).ok_or(())).transpose().ok()? });
        keys().ok_or(CredentialsError::HashedPassword)
    }
}

impl fmt::Display for HashedPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"));
        hex(f, &self.md5)?;
        let Some(sha256) = &self.sha256 else { return Ok(()) };
        f.write_str(":")?;
        hex(f, sha256)
    }
}

impl fmt::Debug for HashedPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashedPassword(..)")
    }
}

fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}
