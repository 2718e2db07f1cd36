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
    /// The relay, if the configuration has one that is used.
    pub relay: Option<RelayStatus>,
    /// Its peers, in the order of the configuration.
    pub peers: Vec<PeerStatus>,
}

/// The TURN server, and the allocation there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RelayStatus {
    /// When it is used: `auto` or `always`.
    pub mode: String,
    /// The server that is asked, or that has made the allocation.
    pub server: Option<String>,
    /// Where peers see this side; `None`: there is no allocation.
    pub relayed_address: Option<String>,
    /// The round-trip time to the server, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// What went wrong last, until there is an allocation.
    pub problem: Option<String>,
}

/// A way to a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RouteStatus {
    /// `direct` or `relayed`.
    pub kind: String,
    /// Where datagrams are sent to by it: the peer's address, or the relay's.
    pub destination: Option<String>,
    /// Whether it is in use.
    pub in_use: bool,
    /// Between the last handshake's initiation and its response by this way, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Data datagrams from the peer that have come while this way was in use.
    pub datagrams_received: u64,
    /// Those that the peer has numbered and that have not come, those still under way included.
    pub datagrams_missing: u64,
    /// Why it is used, if it is.
    pub reason: Option<String>,
}

/// A peer of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// In base64.
    pub public_key: String,
    /// Where it is.
    pub endpoint: Option<String>,
    /// The ways to it, of which one is in use.
    #[serde(default)]
    pub routes: Vec<RouteStatus>,
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
