//! The cryptography of a handshake: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (WireGuard, section 5.4).

use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{FixedOutput, Mac, consts::U16},
};
use chacha20poly1305::{AeadInPlace, KeyInit, XChaCha20Poly1305};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A key or a hash, in bytes.
const LEN: usize = 32;

/// What encryption adds (RFC 8439, section 2.8), in bytes.
pub(super) const TAG: usize = 16;

/// The length of a TAI64N timestamp, in bytes.
pub(super) const TIMESTAMP: usize = 12;

/// The length of a `mac1`, a `mac2` and a cookie, in bytes.
pub(super) const MAC: usize = 16;

/// The length of the nonce of a cookie reply, in bytes.
pub(super) const COOKIE_NONCE: usize = 24;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

fn hash(parts: &[&[u8]]) -> [u8; LEN] {
    let mut hash = Blake2s256::new();
    parts.iter().for_each(|part| Digest::update(&mut hash, part));
    hash.finalize().into()
}

/// Returns the keyed BLAKE2s of 16 bytes (WireGuard: `Mac`).
pub(super) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC] {
    // Keys have 16 or 32 bytes, and no more than 32 is refused.
    let Ok(mut mac) = <Blake2sMac<U16> as Mac>::new_from_slice(key) else { return [0; MAC] };
    parts.iter().for_each(|part| Mac::update(&mut mac, part));
    mac.finalize_fixed().into()
}

/// Returns the key for the `mac1` of messages to the owner of this public key.
pub(super) fn mac1_key(owner: &PublicKey) -> [u8; LEN] {
    hash(&[b"mac1----", owner.as_bytes()])
}

/// Returns the key for cookie replies from the owner of this public key.
pub(super) fn cookie_key(owner: &PublicKey) -> [u8; LEN] {
    hash(&[b"cookie--", owner.as_bytes()])
}

/// HMAC (RFC 2104) with BLAKE2s, which is not keyed BLAKE2s.
fn hmac(key: &[u8; LEN], parts: &[&[u8]]) -> [u8; LEN] {
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        block.iter_mut().zip(key).for_each(|(block, key)| *block ^= key);
        block
    };
    let mut inner = Blake2s256::new();
    Digest::update(&mut inner, pad(0x36));
    parts.iter().for_each(|part| Digest::update(&mut inner, part));
    hash(&[&pad(0x5c), &inner.finalize()])
}

/// HKDF (RFC 5869) as Noise uses it: `N` keys from the chaining key and the input.
fn kdf<const N: usize>(chain: &[u8; LEN], input: &[u8]) -> [[u8; LEN]; N] {
    let secret = hmac(chain, &[input]);
    let (mut keys, mut before) = ([[0; LEN]; N], [0; LEN]);
    for (number, key) in (1u8..).zip(&mut keys) {
        let chained: &[u8] = if number == 1 { &[] } else { &before };
        *key = hmac(&secret, &[chained, &[number]]);
        before = *key;
    }
    keys
}

/// Returns the shared secret; `None` if the public key is one of the few for which it would be zero.
pub(super) fn diffie_hellman(private: &StaticSecret, public: &PublicKey) -> Option<[u8; LEN]> {
    let shared = private.diffie_hellman(public);
    shared.was_contributory().then(|| shared.to_bytes())
}

/// Returns a cipher of the data messages of one direction, and of a handshake's fields.
pub(super) fn cipher(key: &[u8; LEN]) -> Option<LessSafeKey> {
    Some(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).ok()?))
}

/// Returns the nonce that stands for a counter (WireGuard, section 5.4.6).
#[inline]
pub(super) fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// The chaining key and the hash of a handshake.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct Symmetric {
    chain: [u8; LEN],
    hash: [u8; LEN],
}

impl Symmetric {
    /// Begins a handshake with this responder.
    pub(super) fn new(responder: &PublicKey) -> Self {
        let chain = hash(&[CONSTRUCTION]);
        let identified = hash(&[&chain, IDENTIFIER]);
        Self { chain, hash: hash(&[&identified, responder.as_bytes()]) }
    }

    /// Mixes in an ephemeral public key that is sent in the clear.
    pub(super) fn mix_ephemeral(&mut self, public: &PublicKey) {
        self.mix_hash(public.as_bytes());
        self.mix_secret(public.as_bytes());
    }

    /// Mixes in a secret from which no key is taken.
    pub(super) fn mix_secret(&mut self, secret: &[u8; LEN]) {
        [self.chain] = kdf(&self.chain, secret);
    }

    /// Mixes in a secret, and returns a key.
    pub(super) fn mix_key(&mut self, secret: &[u8; LEN]) -> [u8; LEN] {
        let [chain, key] = kdf(&self.chain, secret);
        self.chain = chain;
        key
    }

    /// Mixes in the preshared key (zeros: none), and returns a key.
    pub(super) fn mix_preshared(&mut self, preshared: &[u8; LEN]) -> [u8; LEN] {
        let [chain, mixed, key] = kdf(&self.chain, preshared);
        self.chain = chain;
        self.mix_hash(&mixed);
        key
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash(&[&self.hash, data]);
    }

    /// Encrypts a field in place, all of `field` but the tag at its end.
    pub(super) fn seal(&mut self, key: &[u8; LEN], field: &mut [u8]) -> Option<()> {
        let (plain, tag) = field.split_last_chunk_mut::<TAG>()?;
        let sealed = cipher(key)?.seal_in_place_separate_tag(nonce(0), Aad::from(&self.hash), plain).ok()?;
        tag.copy_from_slice(sealed.as_ref());
        self.mix_hash(field);
        Some(())
    }

    /// Decrypts a field of `N` bytes, the tag not counted. `None`: it is not genuine.
    pub(super) fn open<const N: usize>(&mut self, key: &[u8; LEN], field: &[u8]) -> Option<[u8; N]> {
        let mut buffer = [0; LEN + TAG];
        let buffer = buffer.get_mut(..field.len())?;
        buffer.copy_from_slice(field);
        let plain = cipher(key)?.open_in_place(nonce(0), Aad::from(&self.hash), buffer).ok()?;
        let plain = (&*plain).try_into().ok()?;
        self.mix_hash(field);
        Some(plain)
    }

    /// Returns the session's keys: the initiator's for sending, and the responder's.
    pub(super) fn split(&self) -> [[u8; LEN]; 2] {
        kdf(&self.chain, &[])
    }
}

/// Encrypts a cookie for whoever sent a message with this `mac1` (WireGuard, section 5.4.7). Returns the cookie and its tag.
pub(super) fn seal_cookie(
    key: &[u8; LEN],
    nonce: &[u8; COOKIE_NONCE],
    mac1: &[u8; MAC],
    mut cookie: [u8; MAC],
) -> Option<[[u8; MAC]; 2]> {
    let tag = XChaCha20Poly1305::new(key.into()).encrypt_in_place_detached(nonce.into(), mac1, &mut cookie).ok()?;
    Some([cookie, tag.into()])
}

/// Decrypts a cookie and its tag. `None`: it is not genuine, or no answer to the message with this `mac1`.
pub(super) fn open_cookie(
    key: &[u8; LEN],
    nonce: &[u8; COOKIE_NONCE],
    mac1: &[u8; MAC],
    mut cookie: [u8; MAC],
    tag: &[u8; TAG],
) -> Option<[u8; MAC]> {
    let cipher = XChaCha20Poly1305::new(key.into());
    cipher.decrypt_in_place_detached(nonce.into(), mac1, &mut cookie, tag.into()).ok()?;
    Some(cookie)
}
