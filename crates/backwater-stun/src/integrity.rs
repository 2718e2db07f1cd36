//! Keys and message authentication codes (RFC 8489 §9, §14.5, §14.6).
//!
//! HMAC is implemented here so that a key is only the state after the two pad blocks (104 bytes for both hashes), and so that a message
//! is hashed without a copy. The `hmac` crate keeps a block buffer in each key. The tests compare the two.

use core::fmt;

use md5::{Digest, Md5};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

const BLOCK: usize = 64;

/// A key for MESSAGE-INTEGRITY and MESSAGE-INTEGRITY-SHA256. The key is hashed once, when it is made.
///
/// Keys cannot be compared, and `Debug` does not show them.
#[derive(Clone)]
pub struct HmacKey {
    sha1: Midstate<[u32; 5]>,
    sha256: Midstate<[u32; 8]>,
}

/// The key of a user's long-term credential (RFC 8489 §9.2.2). A server may store it instead of the password. It must be kept secret
/// like the password: it authenticates as the user.
#[derive(Clone)]
pub struct LongTermKey {
    bytes: [u8; 32],
    len: usize,
}

/// The length of MESSAGE-INTEGRITY-SHA256: 16, 20, 24, 28 or all 32 bytes (RFC 8489 §14.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacLength(u8);

impl MacLength {
    /// 16 bytes: the minimum.
    pub const SHORTEST: Self = Self(16);
    /// 32 bytes: not truncated.
    pub const FULL: Self = Self(32);

    /// Returns the length of so many bytes; `None` for a length that is not allowed.
    pub const fn new(bytes: usize) -> Option<Self> {
        if bytes >= 16 && bytes <= 32 && bytes.is_multiple_of(4) { Some(Self(bytes as u8)) } else { None }
    }

    /// Returns the length in bytes.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }
}

impl HmacKey {
    /// Makes a key from bytes: the password itself for short-term credentials (RFC 8489 §9.1.1), already prepared by
    /// OpaqueString; a [`LongTermKey`] that was stored as bytes.
    pub fn new(key: &[u8]) -> Self {
        Self { sha1: Midstate::new(key), sha256: Midstate::new(key) }
    }

    /// Computes the 20 bytes of MESSAGE-INTEGRITY for a message whose header is to read `length`.
    pub(crate) fn sha1(&self, message: &[u8], length: u16) -> [u8; 20] {
        self.sha1.mac(message, length)
    }

    /// Computes the 32 bytes of MESSAGE-INTEGRITY-SHA256 for a message whose header is to read `length`.
    pub(crate) fn sha256(&self, message: &[u8], length: u16) -> [u8; 32] {
        self.sha256.mac(message, length)
    }
}

impl LongTermKey {
    /// Makes the key by MD5 of `username:realm:password`: the key of RFC 5389, and PASSWORD-ALGORITHM 1.
    ///
    /// All three must be prepared (OpaqueString) already. Preparing does not change plain ASCII.
    pub fn md5(username: &str, realm: &str, password: &str) -> Self {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&credential::<Md5>(username, realm, password));
        Self { bytes, len: 16 }
    }

    /// Makes the key by SHA-256 of `username:realm:password`: PASSWORD-ALGORITHM 2 (RFC 8489 §18.5.1).
    pub fn sha256(username: &str, realm: &str, password: &str) -> Self {
        Self { bytes: credential::<Sha256>(username, realm, password).into(), len: 32 }
    }

    /// Returns the key: 16 bytes by MD5, 32 by SHA-256.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl From<&LongTermKey> for HmacKey {
    fn from(key: &LongTermKey) -> Self {
        Self::new(key.as_bytes())
    }
}

impl fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HmacKey(..)")
    }
}

impl fmt::Debug for LongTermKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LongTermKey(..)")
    }
}

/// Returns whether two codes are equal, in a time that does not depend on where they differ.
///
/// Compares words. The lengths are multiples of a word; codes with bytes left over are unequal.
pub(crate) fn equal(a: &[u8], b: &[u8]) -> bool {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks(), b.as_chunks());
    let words = a.iter().zip(b).map(|(a, b)| u32::from_ne_bytes(*a).ct_eq(&u32::from_ne_bytes(*b)));
    let equal = words.fold(Choice::from(1), |all, word| all & word);
    a.len() == b.len() && a_rest.is_empty() && b_rest.is_empty() && equal.into()
}

fn credential<D: Digest>(username: &str, realm: &str, password: &str) -> md5::digest::Output<D> {
    D::new()
        .chain_update(username)
        .chain_update(":")
        .chain_update(realm)
        .chain_update(":")
        .chain_update(password)
        .finalize()
}

/// The state of a Merkle–Damgård hash with blocks of 64 bytes.
trait State: Copy {
    type Output: AsRef<[u8]>;
    const INITIAL: Self;
    fn compress(&mut self, blocks: &[[u8; BLOCK]]);
    fn output(self) -> Self::Output;
}

impl State for [u32; 5] {
    type Output = [u8; 20];
    const INITIAL: Self = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0];

    fn compress(&mut self, blocks: &[[u8; BLOCK]]) {
        sha1::block_api::compress(self, blocks);
    }

    fn output(self) -> Self::Output {
        let mut output = [0; 20];
        write_words(&mut output, &self);
        output
    }
}

impl State for [u32; 8] {
    type Output = [u8; 32];
    const INITIAL: Self =
        [0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19];

    fn compress(&mut self, blocks: &[[u8; BLOCK]]) {
        sha2::block_api::compress256(self, blocks);
    }

    fn output(self) -> Self::Output {
        let mut output = [0; 32];
        write_words(&mut output, &self);
        output
    }
}

/// The hash's state after the inner and after the outer pad block (RFC 2104 §4 suggests to keep it).
#[derive(Clone)]
struct Midstate<S> {
    inner: S,
    outer: S,
}

impl<S: State> Midstate<S> {
    fn new(key: &[u8]) -> Self {
        let mut block = [0; BLOCK];
        match block.get_mut(..key.len()) {
            Some(start) => start.copy_from_slice(key),
            None => {
                let hashed = hash(S::INITIAL, 0, key);
                block.iter_mut().zip(hashed.as_ref()).for_each(|(to, from)| *to = *from);
            }
        }
        let after = |pad: u8| {
            let mut state = S::INITIAL;
            state.compress(&[block.map(|byte| byte ^ pad)]);
            state
        };
        Self { inner: after(0x36), outer: after(0x5C) }
    }

    fn mac(&self, message: &[u8], length: u16) -> S::Output {
        let [high, low] = length.to_be_bytes();
        let inner = match message.split_first_chunk::<BLOCK>() {
            Some((first, rest)) => {
                let mut first = *first;
                first[2] = high;
                first[3] = low;
                let mut state = self.inner;
                state.compress(&[first]);
                hash(state, 2 * BLOCK, rest)
            }
            None => {
                let mut short = [0; BLOCK];
                let (short, _) = short.split_at_mut(message.len());
                short.copy_from_slice(message);
                if let Some(field) = short.get_mut(2..4) {
                    field.copy_from_slice(&[high, low]);
                }
                hash(self.inner, BLOCK, short)
            }
        };
        hash(self.outer, BLOCK, inner.as_ref())
    }
}

/// Finishes a hash that has already taken `before` bytes.
fn hash<S: State>(mut state: S, before: usize, bytes: &[u8]) -> S::Output {
    let (blocks, tail) = bytes.as_chunks::<BLOCK>();
    if !blocks.is_empty() {
        state.compress(blocks);
    }
    let bits = (((before + bytes.len()) as u64) << 3).to_be_bytes();
    let mut end = [[0; BLOCK]; 2];
    let (start, after) = end.as_flattened_mut().split_at_mut(tail.len());
    start.copy_from_slice(tail);
    if let Some(byte) = after.first_mut() {
        *byte = 0x80;
    }
    if tail.len() < BLOCK - bits.len() {
        end[0][BLOCK - bits.len()..].copy_from_slice(&bits);
        state.compress(&end[..1]);
    } else {
        end[1][BLOCK - bits.len()..].copy_from_slice(&bits);
        state.compress(&end);
    }
    state.output()
}

fn write_words(to: &mut [u8], words: &[u32]) {
    to.chunks_exact_mut(4).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_be_bytes()));
}

#[cfg(test)]
mod tests {
    use hmac::{Hmac, KeyInit, Mac};
    use proptest::prelude::*;
    use sha1::Sha1;

    use super::*;

    fn reference<M: Mac + KeyInit>(key: &[u8], message: &[u8], length: u16) -> std::vec::Vec<u8> {
        let mut patched = message.to_vec();
        patched[2..4].copy_from_slice(&length.to_be_bytes());
        let mac = <M as KeyInit>::new_from_slice(key).unwrap();
        mac.chain_update(&patched).finalize().into_bytes().to_vec()
    }

    proptest! {
        #[test]
        fn agrees_with_the_hmac_crate(
            key in prop::collection::vec(any::<u8>(), 0..150),
            message in prop::collection::vec(any::<u8>(), 4..400),
            length: u16,
        ) {
            let ours = HmacKey::new(&key);
            prop_assert_eq!(&ours.sha1(&message, length)[..], reference::<Hmac<Sha1>>(&key, &message, length));
            prop_assert_eq!(&ours.sha256(&message, length)[..], reference::<Hmac<Sha256>>(&key, &message, length));
        }
    }

    #[test]
    fn long_term_key_matches_the_example_of_the_rfc() {
        // RFC 8489 §9.2.2 gives this one.
        let key = LongTermKey::md5("user", "realm", "pass");
        let expected = [0x84, 0x93, 0xFB, 0xC5, 0x3B, 0xA5, 0x82, 0xFB, 0x4C, 0x04, 0x4C, 0x45, 0x6B, 0xDC, 0x40, 0xEB];
        assert_eq!(key.as_bytes(), expected);
    }

    #[test]
    fn codes_are_equal_or_not() {
        assert!(equal(&[1; 20], &[1; 20]) && equal(&[], &[]));
        for (a, b) in [(&[1; 20][..], &[1; 16][..]), (&[1; 5], &[1; 5]), (&[1; 5], &[1; 4]), (&[1; 4], &[2; 4])] {
            assert!(!equal(a, b) && !equal(b, a));
        }
    }

    #[test]
    fn key_is_104_bytes_and_debug_hides_it() {
        assert_eq!(size_of::<HmacKey>(), 104);
        assert_eq!(std::format!("{:?}", HmacKey::new(b"secret")), "HmacKey(..)");
    }
}
