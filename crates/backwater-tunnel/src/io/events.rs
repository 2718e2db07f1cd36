//! What the engine wants of the loop, beside moving bytes.

use std::{
    io,
    net::SocketAddr,
    task::Context,
    time::{Duration, Instant},
};

use super::event_loop::EventLoop;
use crate::engine::{Event, peer::name_of};

/// A resolver that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// The result of a resolution.
pub(super) struct Resolved {
    pub(super) public_key: [u8; 32],
    pub(super) result: io::Result<Vec<SocketAddr>>,
}

impl EventLoop {
    /// Does what the engine wants done.
    pub(super) fn handle_events(&mut self, now: Instant) {
        let mut fits = true;
        while let Some(event) = self.engine.poll_event(now) {
            match event {
                Event::Resolve { public_key, name, port } => self.resolve(public_key, name, port),
                Event::Unresolved { peer, name, error } => {
                    self.tell(peer, |key| format!("peer {key}: the name {name} does not resolve: {error}"));
                }
                Event::NoAnswer { peer, endpoint } => self.tell(peer, |key| {
                    format!(
                        "peer {key} at {endpoint} does not answer: UDP is blocked, a key is wrong, or nobody is there"
                    )
                }),
                Event::GaveUpHeld { peer } => self.sockets.cancel(peer),
                Event::RelayPeers => {
                    if let Some(relay) = &mut self.relay {
                        relay.follow_peers(now, &mut self.engine);
                    }
                }
                Event::RelayIsSilent => self.relay.iter_mut().for_each(|relay| relay.check(now)),
                Event::NewRoute { peer, route } => {
                    self.look_up_route(peer, route);
                    fits = false;
                }
            }
        }
        if !fits {
            self.fit_mtu(now);
        }
    }

    /// Does what is due for the relay, and what follows from it.
    pub(super) fn drive_relay(&mut self, cx: &mut Context<'_>, now: Instant) {
        let Self { relay: Some(relay), engine, sockets, notices, .. } = self else { return };
        relay.drive(cx, now, engine, sockets);
        while let Some(line) = relay.take_news() {
            notices.tell(&line);
        }
        self.handle_events(now);
    }

    /// Tells the operator something about a peer, whose name is its key.
    fn tell(&mut self, peer: usize, line: impl FnOnce(&str) -> String) {
        if let Some(peer) = self.engine.peers().find(|other| other.number() == peer) {
            self.notices.tell(&line(&name_of(&peer.public_key)));
        }
    }

    /// Starts to resolve a name. The loop is told the result.
    fn resolve(&self, public_key: [u8; 32], name: String, port: u16) {
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
