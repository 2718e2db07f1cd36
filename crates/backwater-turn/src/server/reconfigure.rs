//! A new configuration for a server with allocations.

use super::{Config, Server};
use crate::auth::Nonces;

impl Server {
    /// Replaces the configuration. Allocations stay, and none of their datagrams is lost.
    ///
    /// A user whose password is gone or another one gets 401 from now on, and the user's allocations end with their lifetime. Permissions
    /// and channels of peers that the new rules refuse end in [`review`](Self::review), which the caller calls until it returns false. Limits
    /// hold for what is new. `families`, `directory`, `quotas`, `relayed_ports`, `nonce_key` and `thread` must be those of the old configuration
    /// ([`Quotas::set_limits`](crate::Quotas::set_limits) changes limits).
    pub fn reconfigure(&mut self, config: Config) {
        self.nonces = Nonces::new(&config.nonce_key, config.credentials.features(config.directory.is_some()));
        self.metered = config.quotas.is_metered();
        self.review = Some(0);
        self.config = config;
    }

    /// Judges the permissions of some allocations by the rules of the last [`reconfigure`](Self::reconfigure): about `budget`
    /// permissions, and one allocation at least. Returns whether some are left.
    pub fn review(&mut self, budget: usize) -> bool {
        let Some(mut index) = self.review else { return false };
        let mut judged = 0;
        while judged < budget && index < self.allocations.capacity() {
            if let Some(allocation) = self.allocations.get_mut(index) {
                judged += 1 + allocation.review(&self.config.peers);
            }
            // Empty places cost next to nothing, but there may be many.
            judged += usize::from(index.is_multiple_of(64));
            index += 1;
        }
        self.review = Some(index).filter(|&index| index < self.allocations.capacity());
        self.review.is_some()
    }
}
