use backwater_stun::TransactionId;
use chacha20::{
    ChaCha12Rng,
    rand_core::{Rng, SeedableRng},
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Makes unpredictable transaction ids (RFC 8489 §5) from the key stream of ChaCha12, in a few nanoseconds each. An id does not tell
/// how many came before it.
pub(crate) struct TransactionIds(ChaCha12Rng);

impl TransactionIds {
    /// Makes the generator of one thread. All threads share the key, which is that of the nonces.
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
