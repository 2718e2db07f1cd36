//! What `status` shows.

use std::time::Instant;

use backwater_ops::PolicyText;

use super::event_loop::EventLoop;
use crate::{
    engine::peer::name_of,
    status::{Device, PeerStatus, PeerTotals, Status},
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
            peers: peers.collect(),
        }
    }
}
