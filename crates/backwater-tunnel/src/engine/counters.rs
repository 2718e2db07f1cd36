//! What is counted. The loop alone writes, so these are plain numbers.

use serde::{Deserialize, Serialize};

/// Of the device and of datagrams that belong to no peer.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Packets read from the device; one of many segments counts once.
    pub device_read: u64,
    /// Packets written to the device; joined ones are counted each.
    pub device_written: u64,
    /// Packets that the device refused.
    pub device_refused: u64,
    /// Packets from the device that could not be understood.
    pub device_malformed: u64,
    /// Packets that no peer's `AllowedIPs` cover.
    pub no_peer: u64,
    /// Packets to a peer whose address is not known.
    pub no_endpoint: u64,
    /// Packets that are too large for the path.
    pub too_big: u64,
    /// Datagrams that are no WireGuard message, or are for no session of ours.
    pub strange: u64,
    /// Handshakes that were refused: not meant for us, by nobody we know, or too many.
    pub handshakes_refused: u64,
    /// Cookies sent instead of an answer, since too many handshakes came.
    pub cookies_sent: u64,
}

/// Of one peer.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct PeerCounters {
    /// Bytes of packets to it, before encryption.
    pub bytes_sent: u64,
    /// Bytes of packets from it, after decryption.
    pub bytes_received: u64,
    /// Data datagrams to it.
    pub datagrams_sent: u64,
    /// Datagrams that the transport dropped, whatever the reason.
    pub datagrams_dropped: u64,
    /// Data datagrams from it that were good.
    pub datagrams_received: u64,
    /// Data datagrams that it has numbered and that have not come, those still under way included: lost, or never sent.
    pub datagrams_missing: u64,
    /// Times that a train was held for want of room.
    pub held: u64,
    /// Datagrams that were seen before or are too old.
    pub replayed: u64,
    /// Datagrams that do not decrypt, or not to an IP packet.
    pub invalid: u64,
    /// Packets from addresses that its `AllowedIPs` do not cover.
    pub source_not_allowed: u64,
    /// Packets dropped since they were not ECN-capable and the datagram says congestion experienced (RFC 6040).
    pub congested: u64,
    /// Sessions begun.
    pub handshakes: u64,
}
