//! What a running tunnel says of itself.

use backwater_udp::StatsSnapshot;
use serde::{Deserialize, Serialize};

use crate::{
    counters::{Counters, PeerCounters},
    queue::fair,
};

/// A tunnel, as `status --json` prints it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The tunnel's and its device's name.
    pub name: String,
    /// This side's public key, in base64.
    pub public_key: String,
    /// The port of its sockets.
    pub listen_port: u16,
    /// The policy: `wait:100ms`, say, or `drop`.
    pub backpressure: String,
    /// Since its start, in seconds.
    pub uptime_seconds: u64,
    /// The device's counters, and those of datagrams that belong to no peer.
    pub device: Device,
    /// The sockets' counters.
    pub transport: StatsSnapshot,
    /// Its peers, in the order of the configuration.
    pub peers: Vec<PeerStatus>,
}

/// A peer of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// In base64.
    pub public_key: String,
    /// Where it is reached; the path in use.
    pub endpoint: Option<String>,
    /// Between the last handshake's initiation and its response, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Seconds since the last handshake.
    pub last_handshake_seconds: Option<u64>,
    /// Bytes that wait for the path.
    pub queued_bytes: usize,
    /// The most that may wait, in bytes: 50 ms of the path's rate.
    pub queue_bound_bytes: usize,
    /// The path's rate in bits per second, while it is the bottleneck.
    pub path_rate: Option<u64>,
    /// Its counters.
    pub counters: PeerTotals,
}

/// The device.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Device {
    /// What the tunnel counted.
    #[serde(flatten)]
    pub counters: Counters,
    /// Packets that the system dropped since the device's queue was full; `None` when the system does not tell.
    pub tx_dropped: Option<u64>,
    /// Packets that may wait to be read (`txqueuelen`); `None` when the system does not tell.
    pub queue_len: Option<u32>,
}

/// The counters of a peer.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct PeerTotals {
    /// Of its session.
    #[serde(flatten)]
    pub session: PeerCounters,
    /// Of the queue in front of its path.
    #[serde(flatten)]
    pub queue: fair::Counters,
}
