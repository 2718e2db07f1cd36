//! IP packets as the TUN device gives and takes them. No I/O, no clock.

pub mod checksum;
pub mod coalesce;
pub mod ecn;
pub mod header;
pub mod icmp;
pub mod segment;
pub mod virtio;
