//! The resolution of the names of the peers' endpoints.

use std::{io, net::SocketAddr, time::Duration};

use super::event_loop::EventLoop;

/// A resolver that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// The result of a resolution.
pub(super) struct Resolved {
    pub(super) public_key: [u8; 32],
    pub(super) result: io::Result<Vec<SocketAddr>>,
}

impl EventLoop {
    /// Starts to resolve a name. The loop is told the result.
    pub(super) fn resolve(&self, public_key: [u8; 32], name: String, port: u16) {
        let results = self.resolved.0.clone();
        tokio::spawn(async move {
            let result = match tokio::time::timeout(PATIENCE, tokio::net::lookup_host((name.as_str(), port))).await {
                Ok(found) => found.map(Vec::from_iter),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            let _ = results.send(Resolved { public_key, result }).await;
        });
    }
}
