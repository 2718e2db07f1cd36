//! What is counted. The loop alone writes, so these are plain numbers.

use serde::Serialize;

/// Of the device and of datagrams that belong to no peer.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Counters {
    /// Packets read from the device; one of many segments counts once.
    pub(crate) device_read: u64,
    /// Packets written to the device; joined ones are counted each.
    pub(crate) device_written: u64,
    /// Packets that the device refused.
    pub(crate) device_refused: u64,
    /// Packets from the device that could not be understood.
    pub(crate) device_malformed: u64,
    /// Packets that no peer's `AllowedIPs` cover.
    pub(crate) no_peer: u64,
    /// Packets to a peer whose address is not known.
    pub(crate) no_endpoint: u64,
    /// Packets that are too large for the path.
    pub(crate) too_big: u64,
    /// Datagrams that are no WireGuard message, or are for no session of ours.
    pub(crate) strange: u64,
    /// Handshakes that were refused: not meant for us, by nobody we know, or too many.
    pub(crate) handshakes_refused: u64,
    /// Cookies sent instead of an answer, since too many handshakes came.
    pub(crate) cookies_sent: u64,
}

/// Of one peer.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct PeerCounters {
    /// Bytes of packets to it, before encryption.
    pub(crate) bytes_sent: u64,
    /// Bytes of packets from it, after decryption.
    pub(crate) bytes_received: u64,
    /// Data datagrams to it.
    pub(crate) datagrams_sent: u64,
    /// Datagrams that the transport dropped, whatever the reason.
    pub(crate) datagrams_dropped: u64,
    /// Data datagrams from it that were good.
    pub(crate) datagrams_received: u64,
    /// Data datagrams that it has numbered and that have not come, those still under way included: lost, or never sent.
    pub(crate) datagrams_missing: u64,
    /// Times that a train was held for want of room.
    pub(crate) held: u64,
    /// Datagrams that were seen before or are too old.
    pub(crate) replayed: u64,
    /// Datagrams that do not decrypt, or not to an IP packet.
    pub(crate) invalid: u64,
    /// Packets from addresses that its `AllowedIPs` do not cover.
    pub(crate) source_not_allowed: u64,
    /// Packets dropped since they were not ECN-capable and the datagram says congestion experienced (RFC 6040).
    pub(crate) congested: u64,
    /// Sessions begun.
    pub(crate) handshakes: u64,
}
