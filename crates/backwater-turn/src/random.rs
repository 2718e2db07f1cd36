use backwater_stun::TransactionId;
use chacha20::{
    ChaCha12Rng,
    rand_core::{Rng, SeedableRng},
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Transaction ids that nobody can predict, nor count by (RFC 8489, section 5): the key stream of ChaCha12, which costs a few
/// nanoseconds an id.
pub(crate) struct TransactionIds(ChaCha12Rng);

impl TransactionIds {
    /// Of one thread. The key is that of the nonces, which all threads share.
    pub(crate) fn new(key: &[u8; 64], thread: u16) -> Self {
        let mac: Hmac<Sha256> = KeyInit::new(&(*key).into());
        let seed = mac.chain_update("transaction ids").chain_update(thread.to_be_bytes()).finalize();
        Self(ChaCha12Rng::from_seed(seed.into_bytes().into()))
    }

    #[inline]
    pub(crate) fn next_id(&mut self) -> TransactionId {
        let mut id = [0; 12];
        self.0.fill_bytes(&mut id);
        TransactionId(id)
    }
}
