//! How long what is encrypted may be.

use backwater_udp::gso::MAX_BYTES;

/// Bytes that encryption adds to a packet: a header of 16 and a tag of 16 (WireGuard, section 5.4.6).
pub(crate) const OVERHEAD: usize = 32;

/// The largest inner packet, and what encryption adds, in bytes.
pub(crate) const MAX_DATAGRAM: usize = 65_535 + OVERHEAD;

/// The longest packet that a datagram holds, in bytes, with its padding.
pub(crate) const LONGEST_PACKET: usize = (MAX_BYTES - OVERHEAD) & !15;
