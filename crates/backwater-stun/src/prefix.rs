//! The parts of an indication around a payload that is not copied.

use core::net::SocketAddr;

use crate::attribute::{AttributeType, XorPeerAddress};
use crate::error::WriteError;
use crate::header::{Class, Method, TransactionId};
use crate::padding_len;
use crate::writer::Writer;

/// Header, XOR-PEER-ADDRESS (24 bytes with IPv6), header of DATA.
const MAX_LEN: usize = 20 + 24 + 4;

/// A Send or Data indication without its payload: the bytes before the payload, and the padding after it.
///
/// A relay sends the three parts as slices of one datagram (RFC 8656 §11), and so forwards the payload from its receive buffer.
#[derive(Debug, Clone, Copy)]
pub struct DataPrefix {
    bytes: [u8; MAX_LEN],
    len: u8,
    padding: u8,
}

impl DataPrefix {
    /// Bytes of the longest prefix, for a peer with an IPv6 address.
    pub const MAX_LEN: usize = MAX_LEN;

    /// Makes the prefix of a Data indication, server to client, with `payload_len` bytes from `peer`.
    ///
    /// # Errors
    /// [`WriteError::MessageTooLong`] if the payload is too long for a message.
    #[inline]
    pub fn data(transaction_id: TransactionId, peer: SocketAddr, payload_len: usize) -> Result<Self, WriteError> {
        Self::new(Method::DATA, transaction_id, peer, payload_len)
    }

    /// Makes the prefix of a Send indication, client to server, with `payload_len` bytes to `peer`.
    ///
    /// # Errors
    /// [`WriteError::MessageTooLong`] if the payload is too long for a message.
    #[inline]
    pub fn send(transaction_id: TransactionId, peer: SocketAddr, payload_len: usize) -> Result<Self, WriteError> {
        Self::new(Method::SEND, transaction_id, peer, payload_len)
    }

    /// Returns the bytes before the payload.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Returns the padding after the payload: 0 to 3 bytes.
    #[inline]
    pub fn padding(&self) -> &'static [u8] {
        const ZEROS: &[u8] = &[0; 3];
        ZEROS.get(..usize::from(self.padding)).unwrap_or_default()
    }

    #[inline]
    fn new(
        method: Method,
        transaction_id: TransactionId,
        peer: SocketAddr,
        payload_len: usize,
    ) -> Result<Self, WriteError> {
        let mut bytes = [0; MAX_LEN];
        let mut writer = Writer::new(&mut bytes, Class::Indication, method, transaction_id)?;
        writer.attribute(&XorPeerAddress(peer))?;
        let len = writer.finish_before(AttributeType::DATA, payload_len)?;
        Ok(Self { bytes, len: len as u8, padding: padding_len(payload_len) as u8 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::Data;

    #[test]
    fn prefix_and_padding_match_the_writer() {
        for peer in ["192.0.2.1:4321", "[2001:db8::1]:4321"] {
            let peer: SocketAddr = peer.parse().unwrap();
            for payload in [&b""[..], b"1", b"12", b"123", b"1234", b"12345"] {
                let id = TransactionId([7; 12]);
                let prefix = DataPrefix::data(id, peer, payload.len()).unwrap();
                let parts = [prefix.as_bytes(), payload, prefix.padding()].concat();

                let mut buffer = [0xFF; 100];
                let mut writer = Writer::new(&mut buffer, Class::Indication, Method::DATA, id).unwrap();
                writer.attribute(&XorPeerAddress(peer)).unwrap().attribute(&Data(payload)).unwrap();
                assert_eq!(parts, writer.finish());
            }
        }
    }

    #[test]
    fn payload_that_exceeds_a_message_is_refused() {
        let peer = SocketAddr::from(([192, 0, 2, 1], 4321));
        let id = TransactionId([7; 12]);
        // 65,532 bytes of attributes, less 12 for the address and 4 for DATA's header.
        assert!(DataPrefix::send(id, peer, 65_516).is_ok());
        for len in [65_517, 65_536, usize::MAX - 3, usize::MAX] {
            assert_eq!(DataPrefix::send(id, peer, len).err(), Some(WriteError::MessageTooLong));
        }
    }
}
