//! The header before each packet of a TUN device with offloads (`struct virtio_net_hdr`).

/// Its length in bytes (`TUNSETVNETHDRSZ` of 10, which is the default).
pub const LEN: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum at `csum_start + csum_offset` is but the pseudo header's sum, not
/// complemented.
pub const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: whoever wrote this vouches for the checksum.
pub const DATA_VALID: u8 = 2;

/// `VIRTIO_NET_HDR_GSO_NONE`: one packet.
pub const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`: a train of TCP segments over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`: a train of TCP segments over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`: a train of UDP datagrams (USO, Linux 6.2).
pub const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: added to a TCP type when CWR is set, which belongs to the first segment alone.
pub const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr`. [`Default`] says: one packet, complete, nothing vouched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// One of `GSO_*`, and perhaps [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of the packet's headers. A hint: the kernel may well say more.
    pub hdr_len: u16,
    /// Bytes of payload in each segment, the last perhaps excepted.
    pub gso_size: u16,
    /// Where the bytes to be summed begin, in bytes from the packet's first.
    pub csum_start: u16,
    /// Where the sum goes, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl Header {
    /// Reads one. Integers are in the host's order, as for any device that was not told otherwise (`TUNSETVNETLE`).
    pub fn parse(bytes: &[u8; LEN]) -> Self {
        let &[flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }

    /// As the device takes it.
    pub fn to_bytes(self) -> [u8; LEN] {
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_kernel_has_them() {
        let header = Header {
            flags: 1,
            gso_type: 4,
            hdr_len: 0x0203,
            gso_size: 0x0405,
            csum_start: 0x0607,
            csum_offset: 0x0809,
        };
        let bytes = header.to_bytes();
        assert_eq!(Header::parse(&bytes), header);
        if cfg!(target_endian = "little") {
            assert_eq!(bytes, [1, 4, 3, 2, 5, 4, 7, 6, 9, 8]);
        }
    }
}
