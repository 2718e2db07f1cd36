//! The limit of open files: each relayed address is one.

use backwater_relay::Config;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// What the relay has open beside relayed sockets and listeners: its own files, timers, and the administration's connections.
const OTHERS: u64 = 128;

/// Raises the soft limit to the hard one, and says what is missing for the configuration. The soft limit is low for the sake of programs
/// that use `select`.
pub(crate) fn raise_limit(config: &Config) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        warn!(%error, "the limit of open files stays as it is");
    }
    let Some(limit) = getrlimit(Resource::Nofile).current else { return };
    let (relayed, listeners) = config.sockets();
    let enough_for = limit.saturating_sub(listeners + OTHERS);
    if enough_for < relayed {
        warn!(
            limit,
            relayed_addresses = relayed,
            enough_for,
            remedy = "raise LimitNOFILE= (systemd), --ulimit nofile= (containers) or ulimit -n, or lower max-allocations or the range ports",
            "the limit of open files is too low for as many relayed addresses as the configuration allows: clients beyond it get 508"
        );
    }
}
