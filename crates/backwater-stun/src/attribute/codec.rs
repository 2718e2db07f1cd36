//! The layouts of attribute values: one module for each.
//!
//! The length rule is checked before `decode` runs. No code here relies on it to avoid a panic.

use super::AttributeErrorKind::{self, Family, Length, Utf8};
use super::TransactionId;

type Encoded = Result<(), AttributeErrorKind>;
type Decoded<T> = Result<T, AttributeErrorKind>;

/// Fills `out` with `bytes`, which must have the same length.
pub(crate) fn put(out: &mut [u8], bytes: &[u8]) -> Encoded {
    if out.len() != bytes.len() {
        return Err(Length);
    }
    out.copy_from_slice(bytes);
    Ok(())
}

/// Returns the whole of `value` as an array.
fn take<const N: usize>(value: &[u8]) -> Decoded<[u8; N]> {
    value.try_into().map_err(|_| Length)
}

/// An empty value.
pub(crate) mod flag {
    use super::*;

    pub(crate) fn decode(_: &[u8], _: &TransactionId) -> Decoded<()> {
        Ok(())
    }
    pub(crate) fn value_len((): &()) -> usize {
        0
    }
    pub(crate) fn encode((): &(), _: &TransactionId, out: &mut [u8]) -> Encoded {
        put(out, &[])
    }
}

/// A number that is the whole value.
macro_rules! integer {
    ($module:ident, $int:ty) => {
        pub(crate) mod $module {
            use super::*;

            pub(crate) fn decode(value: &[u8], _: &TransactionId) -> Decoded<$int> {
                Ok(<$int>::from_be_bytes(take(value)?))
            }
            pub(crate) fn value_len(_: &$int) -> usize {
                size_of::<$int>()
            }
            pub(crate) fn encode(number: &$int, _: &TransactionId, out: &mut [u8]) -> Encoded {
                put(out, &number.to_be_bytes())
            }
        }
    };
}
integer!(int32, u32);
integer!(int64, u64);

/// One byte, then three that are reserved.
pub(crate) mod byte_first {
    use super::*;

    pub(crate) fn decode(value: &[u8], _: &TransactionId) -> Decoded<u8> {
        take::<4>(value).map(|[byte, ..]| byte)
    }
    pub(crate) fn value_len(_: &u8) -> usize {
        4
    }
    pub(crate) fn encode(byte: &u8, _: &TransactionId, out: &mut [u8]) -> Encoded {
        put(out, &[*byte, 0, 0, 0])
    }
}

/// An address family, then three bytes that are reserved.
pub(crate) mod family {
    use super::super::AddressFamily;
    use super::*;

    pub(crate) fn decode(value: &[u8], id: &TransactionId) -> Decoded<AddressFamily> {
        AddressFamily::from_number(byte_first::decode(value, id)?).ok_or(Family)
    }
    pub(crate) fn value_len(_: &AddressFamily) -> usize {
        4
    }
    pub(crate) fn encode(family: &AddressFamily, id: &TransactionId, out: &mut [u8]) -> Encoded {
        byte_first::encode(&family.number(), id, out)
    }
}

/// Two bytes, then two that are reserved. A peer may leave the reserved ones out of RESPONSE-PORT.
pub(crate) mod short_first {
    use super::*;

    pub(crate) fn decode(value: &[u8], _: &TransactionId) -> Decoded<u16> {
        value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)).ok_or(Length)
    }
    pub(crate) fn value_len(_: &u16) -> usize {
        4
    }
    pub(crate) fn encode(number: &u16, _: &TransactionId, out: &mut [u8]) -> Encoded {
        let [high, low] = number.to_be_bytes();
        put(out, &[high, low, 0, 0])
    }
}

/// Bytes that are the whole value.
pub(crate) mod bytes {
    use super::*;

    pub(crate) fn decode<'a>(value: &'a [u8], _: &TransactionId) -> Decoded<&'a [u8]> {
        Ok(value)
    }
    pub(crate) fn value_len(bytes: &&[u8]) -> usize {
        bytes.len()
    }
    pub(crate) fn encode(bytes: &&[u8], _: &TransactionId, out: &mut [u8]) -> Encoded {
        put(out, bytes)
    }
}

/// A fixed number of bytes that are the whole value.
pub(crate) mod array {
    use super::*;

    pub(crate) fn decode<const N: usize>(value: &[u8], _: &TransactionId) -> Decoded<[u8; N]> {
        take(value)
    }
    pub(crate) fn value_len<const N: usize>(_: &[u8; N]) -> usize {
        N
    }
    pub(crate) fn encode<const N: usize>(bytes: &[u8; N], _: &TransactionId, out: &mut [u8]) -> Encoded {
        put(out, bytes)
    }
}

/// UTF-8.
pub(crate) mod text {
    use super::*;

    pub(crate) fn decode<'a>(value: &'a [u8], _: &TransactionId) -> Decoded<&'a str> {
        core::str::from_utf8(value).map_err(|_| Utf8)
    }
    pub(crate) fn value_len(text: &&str) -> usize {
        text.len()
    }
    pub(crate) fn encode(text: &&str, _: &TransactionId, out: &mut [u8]) -> Encoded {
        put(out, text.as_bytes())
    }
}

/// UTF-8. Fewer than 128 characters are written (RFC 8489 §14.8, §14.14).
pub(crate) mod phrase {
    pub(crate) use super::text::{decode, value_len};
    use super::*;

    pub(crate) fn encode(text: &&str, id: &TransactionId, out: &mut [u8]) -> Encoded {
        if text.len() >= 128 && text.chars().count() >= 128 {
            return Err(Length);
        }
        text::encode(text, id, out)
    }
}

/// A transport address (RFC 8489 §14.1).
pub(crate) mod address {
    use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::super::AddressFamily;
    use super::*;
    use crate::header::MAGIC_COOKIE;

    pub(crate) fn decode(value: &[u8], _: &TransactionId) -> Decoded<SocketAddr> {
        decode_masked(value, &Mask { port: 0, v4: 0, v6: 0 })
    }
    pub(crate) fn value_len(address: &SocketAddr) -> usize {
        if address.is_ipv4() { 8 } else { 20 }
    }
    pub(crate) fn encode(address: &SocketAddr, _: &TransactionId, out: &mut [u8]) -> Encoded {
        encode_masked(address, &Mask { port: 0, v4: 0, v6: 0 }, out)
    }

    /// The mask that an address is XORed with.
    pub(crate) struct Mask {
        port: u16,
        v4: u32,
        v6: u128,
    }

    impl Mask {
        /// The header's last 16 bytes: the cookie, then the transaction id (RFC 8489 §14.2).
        #[inline]
        pub(crate) fn xor(TransactionId([a, b, c, d, e, f, g, h, i, j, k, l]): &TransactionId) -> Self {
            // Made from three numbers: an array of 16 bytes in between costs more than all the rest.
            let cookie = u128::from(MAGIC_COOKIE) << 96;
            let high = u128::from(u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h])) << 32;
            let low = u128::from(u32::from_be_bytes([*i, *j, *k, *l]));
            Self { port: (MAGIC_COOKIE >> 16) as u16, v4: MAGIC_COOKIE, v6: cookie | high | low }
        }
    }

    #[inline]
    pub(crate) fn decode_masked(value: &[u8], mask: &Mask) -> Decoded<SocketAddr> {
        let (&[_, family, p0, p1], ip) = value.split_first_chunk().ok_or(Length)?;
        let port = u16::from_be_bytes([p0, p1]) ^ mask.port;
        let ip = match AddressFamily::from_number(family).ok_or(Family)? {
            AddressFamily::Ipv4 => Ipv4Addr::from_bits(u32::from_be_bytes(take(ip)?) ^ mask.v4).into(),
            AddressFamily::Ipv6 => Ipv6Addr::from_bits(u128::from_be_bytes(take(ip)?) ^ mask.v6).into(),
        };
        Ok(SocketAddr::new(ip, port))
    }

    #[inline]
    pub(crate) fn encode_masked(address: &SocketAddr, mask: &Mask, out: &mut [u8]) -> Encoded {
        let (head, ip) = out.split_first_chunk_mut::<4>().ok_or(Length)?;
        let [p0, p1] = (address.port() ^ mask.port).to_be_bytes();
        match address {
            SocketAddr::V4(v4) => {
                *head = [0, AddressFamily::Ipv4.number(), p0, p1];
                put(ip, &(v4.ip().to_bits() ^ mask.v4).to_be_bytes())
            }
            SocketAddr::V6(v6) => {
                *head = [0, AddressFamily::Ipv6.number(), p0, p1];
                put(ip, &(v6.ip().to_bits() ^ mask.v6).to_be_bytes())
            }
        }
    }
}

/// A transport address XORed with the header's last 16 bytes (RFC 8489 §14.2).
pub(crate) mod xor_address {
    use core::net::SocketAddr;

    use super::address::Mask;
    pub(crate) use super::address::value_len;
    use super::*;

    #[inline]
    pub(crate) fn decode(value: &[u8], id: &TransactionId) -> Decoded<SocketAddr> {
        address::decode_masked(value, &Mask::xor(id))
    }
    #[inline]
    pub(crate) fn encode(address: &SocketAddr, id: &TransactionId, out: &mut [u8]) -> Encoded {
        address::encode_masked(address, &Mask::xor(id), out)
    }
}
