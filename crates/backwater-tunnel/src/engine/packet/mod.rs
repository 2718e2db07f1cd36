//! IP packets as the TUN device gives and takes them. No I/O, no clock.

pub mod checksum;
pub mod coalesce;
pub mod ecn;
pub mod header;
pub mod icmp;
pub mod segment;
pub mod virtio;

use std::net::IpAddr;

use header::Packet;

/// A packet as the device gives it: a `virtio_net_hdr` and an IP packet, which may stand for many segments. Both were looked at.
#[derive(Debug, Clone, Copy)]
pub struct DevicePacket<'a> {
    raw: &'a [u8],
    /// The offload header.
    pub header: virtio::Header,
    /// The IP packet.
    pub ip: Packet<'a>,
}

impl<'a> DevicePacket<'a> {
    /// Looks at one. `None`: it is no IP packet.
    #[inline]
    pub fn parse(raw: &'a [u8]) -> Option<Self> {
        let (header, packet) = raw.split_first_chunk()?;
        Some(Self { raw, header: virtio::Header::parse(header), ip: Packet::parse(packet)? })
    }

    /// Returns all of its bytes.
    #[inline]
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Returns the destination address.
    #[inline]
    pub fn destination(&self) -> IpAddr {
        self.ip.destination()
    }
}
