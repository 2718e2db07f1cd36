//! What `status` shows.

use std::{net::SocketAddr, time::Instant};

use backwater_ops::PolicyText;

use super::{event_loop::EventLoop, relay::Relay};
use crate::{
    engine::{
        Route,
        peer::{Peer, name_of},
    },
    status::{Device, PeerStatus, PeerTotals, RouteStatus, Status},
};

impl EventLoop {
    pub(super) fn status(&self, now: Instant) -> Status {
        let device = Device {
            counters: self.engine.counters(),
            tx_dropped: self.link.dropped().ok(),
            queue_len: self.link.queue_len().ok(),
        };
        let peers = self.engine.peers().map(|peer| PeerStatus {
            public_key: name_of(&peer.public_key),
            endpoint: peer.endpoint().map(|endpoint| endpoint.to_string()),
            routes: ways(peer),
            rtt_ms: peer.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            last_handshake_seconds: peer.last_handshake.and_then(|at| Some(at.elapsed().ok()?.as_secs())),
            queued_bytes: peer.queue.bytes(),
            queue_bound_bytes: peer.path.rate.bound(now),
            path_rate: peer.path.rate.bytes_per_second(now).map(|bytes| bytes * 8),
            counters: PeerTotals { session: peer.counters, queue: peer.queue.counters() },
        });
        Status {
            name: self.name.clone(),
            public_key: name_of(self.engine.public_key()),
            listen_port: self.sockets.port(),
            backpressure: PolicyText(self.options.backpressure.get()).to_string(),
            uptime_seconds: now.saturating_duration_since(self.started).as_secs(),
            device,
            transport: self.options.stats.snapshot(),
            relay: self.relay.as_ref().map(Relay::status),
            peers: peers.collect(),
        }
    }
}

/// The way in use, and the other one if there is one.
fn ways(peer: &Peer) -> Vec<RouteStatus> {
    let in_use = peer.path.route();
    let direct = in_use.filter(|route| !route.is_relayed()).map(Route::destination).or(peer.endpoints.first());
    let relayed = peer.ways.relayed().map(Route::destination);
    let way = |is_relayed: bool, destination: SocketAddr| {
        let (traffic, is_in_use) =
            (peer.traffic(is_relayed), in_use.is_some_and(|route| route.is_relayed() == is_relayed));
        RouteStatus {
            kind: if is_relayed { "relayed" } else { "direct" }.to_owned(),
            destination: Some(destination.to_string()),
            in_use: is_in_use,
            datagrams_received: traffic.received,
            datagrams_missing: traffic.missing,
            reason: is_in_use.then(|| peer.ways.reason().to_owned()),
            rtt_ms: peer.ways.rtt(is_relayed).map(|rtt| rtt.as_secs_f64() * 1e3),
        }
    };
    let direct = direct.filter(|_| !peer.ways.is_relayed_only()).map(|to| way(false, to));
    direct.into_iter().chain(relayed.map(|to| way(true, to))).collect()
}
