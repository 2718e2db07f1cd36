//! What a running tunnel says of itself.

use serde::{Deserialize, Serialize};

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
    /// The device's counters, by name; `tx_dropped` is what the system dropped since the device was not read.
    pub device: serde_json::Map<String, serde_json::Value>,
    /// The sockets' counters, by the names of `docs/backpressure.md`, labels joined to them.
    pub transport: serde_json::Map<String, serde_json::Value>,
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
    /// Its counters, by name.
    pub counters: serde_json::Map<String, serde_json::Value>,
}
