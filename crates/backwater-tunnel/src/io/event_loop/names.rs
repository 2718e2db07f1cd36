//! The names of the peers' endpoints, and which address of a peer is tried.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tracing::warn;

use super::EventLoop;
use crate::engine::peer::name_of;

/// A resolver that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// The result of a resolution.
pub(super) struct Resolved {
    /// The peer's public key: another peer may have its number by now.
    peer: [u8; 32],
    result: io::Result<Vec<SocketAddr>>,
}

impl EventLoop {
    /// Sends to the configured address of each peer whose address is not known yet, and has all names resolved.
    pub(super) fn find_peers(&mut self, now: Instant) {
        for peer in self.peers.iter_mut() {
            peer.endpoints.resolve_soon(now);
            if peer.endpoint().is_none()
                && let Some(first) = peer.endpoints.first()
            {
                peer.found(now, first, &mut self.path, &mut self.tools);
            }
        }
        self.resolve_names(now);
    }

    /// Starts to resolve the names whose time has come.
    pub(super) fn resolve_names(&mut self, now: Instant) {
        for peer in self.peers.iter_mut() {
            let Some((name, port)) = peer.endpoints.start_resolving(now) else { continue };
            let (results, peer) = (self.resolved.0.clone(), peer.public_key.to_bytes());
            tokio::spawn(async move {
                let result = match tokio::time::timeout(PATIENCE, tokio::net::lookup_host((name.as_str(), port))).await
                {
                    Ok(found) => found.map(Vec::from_iter),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                };
                let _ = results.send(Resolved { peer, result }).await;
            });
        }
    }

    /// Takes the result of a resolution.
    pub(super) fn resolved(&mut self, now: Instant, Resolved { peer, result }: Resolved) {
        let Some(peer) = self.by_key.get(&peer).and_then(|&number| self.peers.get_mut(number)) else { return };
        // The endpoint may be another one by now.
        if !peer.endpoints.is_resolving() {
            return;
        }
        if let Err(error) = peer.endpoints.resolved(now, result) {
            let (key, name) = (name_of(&peer.public_key), peer.endpoints.name().unwrap_or_default());
            warn!(peer = key, name, %error, "the name of the peer's endpoint does not resolve");
            if !std::mem::replace(&mut peer.told.unresolved, true) {
                self.tools.notices.tell(&format!("peer {key}: the name {name} does not resolve: {error}"));
            }
            return;
        }
        let stays = peer.endpoint().is_some_and(|current| {
            // The others are tried in turn.
            if peer.endpoints.is_failing() { peer.endpoints.contains(current) } else { peer.is_established() }
        });
        if !stays && let Some(first) = peer.endpoints.first() {
            peer.found(now, first, &mut self.path, &mut self.tools);
        }
    }
}
