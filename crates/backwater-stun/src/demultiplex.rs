//! Identifies the protocol of a datagram, on a port that several protocols share.

/// The protocol by a datagram's first byte (RFC 7983 §7; RFC 9443 §2 adds QUIC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// 0–3.
    Stun,
    /// 16–19.
    Zrtp,
    /// 20–63.
    Dtls,
    /// 64–79: TURN's ChannelData, if it comes from a TURN server or client.
    TurnChannel,
    /// 80–127 and 192–255.
    Quic,
    /// 128–191.
    Rtp,
    /// 4–15: assigned to nothing, to be dropped.
    Unassigned,
}

/// Identifies the protocol by the first byte of a datagram.
///
/// This is for a port that several protocols share. On a TURN server's own port a channel may also be one of RFC 5766's,
/// up to `0x7FFF`: see [`ChannelNumber`](crate::ChannelNumber).
pub const fn demultiplex(first_byte: u8) -> Protocol {
    match first_byte {
        0..=3 => Protocol::Stun,
        4..=15 => Protocol::Unassigned,
        16..=19 => Protocol::Zrtp,
        20..=63 => Protocol::Dtls,
        64..=79 => Protocol::TurnChannel,
        80..=127 | 192..=255 => Protocol::Quic,
        128..=191 => Protocol::Rtp,
    }
}
