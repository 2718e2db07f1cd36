//! Attributes with several fields, and the types of their fields.

use core::fmt;

use super::codec::put;
use super::{AttributeErrorKind, AttributeType, ChannelNumber, RequestedTransport, TransactionId};

type Decoded<T> = Result<T, AttributeErrorKind>;

/// The address family, as addresses and TURN's family attributes number it (RFC 8489 §14.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressFamily {
    /// Number 1.
    Ipv4,
    /// Number 2.
    Ipv6,
}

impl AddressFamily {
    /// Returns the family of an address.
    pub const fn of(address: &core::net::SocketAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    pub(super) const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Ipv4),
            2 => Some(Self::Ipv6),
            _ => None,
        }
    }

    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Ipv4 => 1,
            Self::Ipv6 => 2,
        }
    }
}

impl RequestedTransport {
    /// UDP, which every TURN server relays (RFC 8656).
    pub const UDP: Self = Self(17);
    /// TCP (RFC 6062).
    pub const TCP: Self = Self(6);
}

/// The number in an ERROR-CODE: 300 to 699 (RFC 8489 §14.8).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(u16);

macro_rules! codes {
    ($($(#[$doc:meta])* $constant:ident = $number:literal, $reason:literal;)*) => {
        impl Code {
            $($(#[$doc])* pub const $constant: Self = Self($number);)*

            /// Every code of the registry.
            pub const REGISTERED: &'static [Self] = &[$(Self::$constant),*];

            /// Returns the reason phrase of the registry; empty for a code that is not in it.
            pub const fn reason(self) -> &'static str {
                match self {
                    $(Self::$constant => $reason,)*
                    _ => "",
                }
            }
        }
    };
}

codes! {
    /// The client should ask the ALTERNATE-SERVER (RFC 8489 §14.8).
    TRY_ALTERNATE = 300, "Try Alternate";
    /// The request was malformed (RFC 8489 §14.8).
    BAD_REQUEST = 400, "Bad Request";
    /// The request did not carry the right credential (RFC 8489 §14.8).
    UNAUTHENTICATED = 401, "Unauthenticated";
    /// The request was valid but is not allowed (RFC 8656 §19).
    FORBIDDEN = 403, "Forbidden";
    /// The server does not let this allocation move (RFC 8016).
    MOBILITY_FORBIDDEN = 405, "Mobility Forbidden";
    /// The server did not understand a comprehension-required attribute (RFC 8489 §14.8).
    UNKNOWN_ATTRIBUTE = 420, "Unknown Attribute";
    /// There is an allocation where there should be none, or the reverse (RFC 8656 §19).
    ALLOCATION_MISMATCH = 437, "Allocation Mismatch";
    /// The nonce is no longer valid: try again with the one in this response (RFC 8489 §14.8).
    STALE_NONCE = 438, "Stale Nonce";
    /// The server does not relay the address family (RFC 8656 §19).
    ADDRESS_FAMILY_NOT_SUPPORTED = 440, "Address Family not Supported";
    /// The credential is not the one that the allocation was made with (RFC 8656 §19).
    WRONG_CREDENTIALS = 441, "Wrong Credentials";
    /// The server does not relay over the transport asked for (RFC 8656 §19).
    UNSUPPORTED_TRANSPORT_PROTOCOL = 442, "Unsupported Transport Protocol";
    /// The peer's address is not of the relayed address's family (RFC 8656 §19).
    PEER_ADDRESS_FAMILY_MISMATCH = 443, "Peer Address Family Mismatch";
    /// There is a connection to this peer already (RFC 6062 §6.3).
    CONNECTION_ALREADY_EXISTS = 446, "Connection Already Exists";
    /// The connection to the peer failed or took too long (RFC 6062 §6.3).
    CONNECTION_TIMEOUT_OR_FAILURE = 447, "Connection Timeout or Failure";
    /// The user has as many allocations as allowed (RFC 8656 §19).
    ALLOCATION_QUOTA_REACHED = 486, "Allocation Quota Reached";
    /// Both agents think that they are in control (RFC 8445 §7.3.1.1).
    ROLE_CONFLICT = 487, "Role Conflict";
    /// The server has failed for the moment: try again (RFC 8489 §14.8).
    SERVER_ERROR = 500, "Server Error";
    /// The server has no port or other resource left (RFC 8656 §19).
    INSUFFICIENT_CAPACITY = 508, "Insufficient Capacity";
}

impl Code {
    /// Returns the code with this number; `None` outside of `300..=699`.
    pub const fn new(number: u16) -> Option<Self> {
        if 300 <= number && number <= 699 { Some(Self(number)) } else { None }
    }

    /// Returns the number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Reads the hundreds from 3 bits and the rest from 8. The bits above are reserved, and ignored.
    const fn from_wire(class: u8, number: u8) -> Option<Self> {
        if number > 99 {
            return None;
        }
        Self::new((class & 0b111) as u16 * 100 + number as u16)
    }

    const fn to_wire(self) -> [u8; 2] {
        [(self.0 / 100) as u8, (self.0 % 100) as u8]
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a request was refused (RFC 8489 §14.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorCode<'a> {
    /// The code, for programs.
    pub code: Code,
    /// The reason phrase, for people; fewer than 128 characters when written.
    pub reason: &'a str,
}

/// The code with the registry's reason phrase.
impl From<Code> for ErrorCode<'static> {
    fn from(code: Code) -> Self {
        Self { code, reason: code.reason() }
    }
}

impl<'a> ErrorCode<'a> {
    pub(super) fn read(value: &'a [u8], _: &TransactionId) -> Decoded<Self> {
        let (&[_, _, class, number], reason) = value.split_first_chunk().ok_or(AttributeErrorKind::Length)?;
        Ok(Self {
            code: Code::from_wire(class, number).ok_or(AttributeErrorKind::Value)?,
            reason: core::str::from_utf8(reason).map_err(|_| AttributeErrorKind::Utf8)?,
        })
    }

    pub(super) fn len(&self) -> usize {
        4 + self.reason.len()
    }

    pub(super) fn write(&self, _: &TransactionId, out: &mut [u8]) -> Decoded<()> {
        let [class, number] = self.code.to_wire();
        write_code([0, 0, class, number], self.reason, out)
    }
}

/// Why one of two address families could not be allocated (RFC 8656 §18.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressErrorCode<'a> {
    /// The family that was not allocated.
    pub family: AddressFamily,
    /// The code, for programs.
    pub code: Code,
    /// The reason phrase, for people; fewer than 128 characters when written.
    pub reason: &'a str,
}

impl<'a> AddressErrorCode<'a> {
    pub(super) fn read(value: &'a [u8], id: &TransactionId) -> Decoded<Self> {
        let family = value.first().and_then(|number| AddressFamily::from_number(*number));
        let ErrorCode { code, reason } = ErrorCode::read(value, id)?;
        Ok(Self { family: family.ok_or(AttributeErrorKind::Family)?, code, reason })
    }

    pub(super) fn len(&self) -> usize {
        4 + self.reason.len()
    }

    pub(super) fn write(&self, _: &TransactionId, out: &mut [u8]) -> Decoded<()> {
        let [class, number] = self.code.to_wire();
        write_code([self.family.number(), 0, class, number], self.reason, out)
    }
}

fn write_code(start: [u8; 4], reason: &str, out: &mut [u8]) -> Decoded<()> {
    if reason.chars().count() >= 128 {
        return Err(AttributeErrorKind::Length);
    }
    let (head, tail) = out.split_first_chunk_mut().ok_or(AttributeErrorKind::Length)?;
    *head = start;
    put(tail, reason.as_bytes())
}

/// The attribute types that a server did not understand, in a response with 420 (RFC 8489 §14.13).
#[derive(Clone, Copy)]
pub struct UnknownAttributes<'a>(Types<'a>);

#[derive(Clone, Copy)]
enum Types<'a> {
    Read(&'a [[u8; 2]]),
    ToWrite(&'a [AttributeType]),
}

impl<'a> UnknownAttributes<'a> {
    /// Makes the list of these types, in their order.
    pub const fn new(types: &'a [AttributeType]) -> Self {
        Self(Types::ToWrite(types))
    }

    /// Returns the types, in their order.
    pub fn iter(&self) -> impl Iterator<Item = AttributeType> + Clone + use<'a> {
        let (read, to_write): (&[[u8; 2]], &[AttributeType]) = match self.0 {
            Types::Read(pairs) => (pairs, &[]),
            Types::ToWrite(types) => (&[], types),
        };
        read.iter().map(|pair| AttributeType(u16::from_be_bytes(*pair))).chain(to_write.iter().copied())
    }

    pub(super) fn read(value: &'a [u8], _: &TransactionId) -> Decoded<Self> {
        match value.as_chunks() {
            (pairs, []) => Ok(Self(Types::Read(pairs))),
            (_, [..]) => Err(AttributeErrorKind::Length),
        }
    }

    pub(super) fn len(&self) -> usize {
        2 * match self.0 {
            Types::Read(pairs) => pairs.len(),
            Types::ToWrite(types) => types.len(),
        }
    }

    pub(super) fn write(&self, _: &TransactionId, out: &mut [u8]) -> Decoded<()> {
        out.chunks_exact_mut(2).zip(self.iter()).for_each(|(to, t)| to.copy_from_slice(&t.0.to_be_bytes()));
        Ok(())
    }
}

impl PartialEq for UnknownAttributes<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for UnknownAttributes<'_> {}

impl fmt::Debug for UnknownAttributes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// How a password becomes a key (RFC 8489 §18.5). The algorithms known have no parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasswordAlgorithm<'a> {
    /// The number of the algorithm: [`MD5`](Self::MD5) and [`SHA256`](Self::SHA256).
    pub number: u16,
    /// The parameters of the algorithm.
    pub parameters: &'a [u8],
}

impl<'a> PasswordAlgorithm<'a> {
    /// [`LongTermKey::md5`](crate::LongTermKey::md5).
    pub const MD5: PasswordAlgorithm<'static> = PasswordAlgorithm { number: 1, parameters: &[] };
    /// [`LongTermKey::sha256`](crate::LongTermKey::sha256).
    pub const SHA256: PasswordAlgorithm<'static> = PasswordAlgorithm { number: 2, parameters: &[] };

    pub(super) fn read(value: &'a [u8], _: &TransactionId) -> Decoded<Self> {
        match Self::split(value) {
            Some((algorithm, [])) => Ok(algorithm),
            Some((_, [..])) | None => Err(AttributeErrorKind::Length),
        }
    }

    pub(super) fn len(&self) -> usize {
        4 + self.parameters.len()
    }

    pub(super) fn write(&self, _: &TransactionId, out: &mut [u8]) -> Decoded<()> {
        let (head, tail) = out.split_first_chunk_mut().ok_or(AttributeErrorKind::Length)?;
        let len = u16::try_from(self.parameters.len()).map_err(|_| AttributeErrorKind::Length)?;
        let ([n0, n1], [l0, l1]) = (self.number.to_be_bytes(), len.to_be_bytes());
        *head = [n0, n1, l0, l1];
        put(tail, self.parameters)
    }

    /// Returns the first algorithm of a list, and the rest after the padding, which the last algorithm may lack.
    fn split(list: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&[n0, n1, l0, l1], rest) = list.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        let (parameters, rest) = rest.split_at_checked(len)?;
        let rest = rest.get(crate::padding_len(len)..).unwrap_or_default();
        Some((Self { number: u16::from_be_bytes([n0, n1]), parameters }, rest))
    }
}

/// The algorithms by which the server makes long-term keys, the best first (RFC 8489 §14.11).
///
/// A client sends it back unchanged, so that the server can compare the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PasswordAlgorithms<'a>(&'a [u8]);

impl<'a> PasswordAlgorithms<'a> {
    /// MD5 alone.
    pub const MD5: PasswordAlgorithms<'static> = PasswordAlgorithms(&[0, 1, 0, 0]);
    /// SHA-256 alone.
    pub const SHA256: PasswordAlgorithms<'static> = PasswordAlgorithms(&[0, 2, 0, 0]);
    /// SHA-256, then MD5.
    pub const SHA256_MD5: PasswordAlgorithms<'static> = PasswordAlgorithms(&[0, 2, 0, 0, 0, 1, 0, 0]);

    /// Returns the algorithms, in their order.
    pub fn iter(&self) -> impl Iterator<Item = PasswordAlgorithm<'a>> + Clone + use<'a> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let (algorithm, tail) = PasswordAlgorithm::split(rest)?;
            rest = tail;
            Some(algorithm)
        })
    }

    pub(super) fn read(value: &'a [u8], _: &TransactionId) -> Decoded<Self> {
        let mut rest = value;
        while !rest.is_empty() {
            (_, rest) = PasswordAlgorithm::split(rest).ok_or(AttributeErrorKind::Length)?;
        }
        Ok(Self(value))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn write(&self, _: &TransactionId, out: &mut [u8]) -> Decoded<()> {
        put(out, self.0)
    }
}

impl fmt::Debug for PasswordAlgorithms<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Declares attributes of fixed length from how they are packed into an array and unpacked from it.
macro_rules! packed {
    ($type:ident, $len:literal, |$array:pat_param| $read:expr, |$this:ident| $write:expr) => {
        impl $type {
            pub(super) fn read(value: &[u8], _: &TransactionId) -> Decoded<Self> {
                let $array: [u8; $len] = value.try_into().map_err(|_| AttributeErrorKind::Length)?;
                Ok($read)
            }

            pub(super) fn len(&self) -> usize {
                $len
            }

            pub(super) fn write(&self, _: &TransactionId, out: &mut [u8]) -> Decoded<()> {
                let $this = self;
                let array: [u8; $len] = $write;
                put(out, &array)
            }
        }
    };
}

packed!(
    ChannelNumber,
    4,
    |[n0, n1, _, _]| Self::new(u16::from_be_bytes([n0, n1])).ok_or(AttributeErrorKind::Value)?,
    |this| {
        let [n0, n1] = this.number().to_be_bytes();
        [n0, n1, 0, 0]
    }
);

/// Asks for a response from another address or port (RFC 5780 §7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChangeRequest {
    /// From the other address.
    pub ip: bool,
    /// From the other port.
    pub port: bool,
}
packed!(ChangeRequest, 4, |[_, _, _, flags]| Self { ip: flags & 4 != 0, port: flags & 2 != 0 }, |this| [
    0,
    0,
    0,
    u8::from(this.ip) << 2 | u8::from(this.port) << 1
]);

/// Asks for an even port (RFC 8656 §18.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EvenPort {
    /// The R bit: reserve the next port too, under a RESERVATION-TOKEN.
    pub reserve_next: bool,
}
packed!(EvenPort, 1, |[bits]| Self { reserve_next: bits & 0x80 != 0 }, |this| [u8::from(this.reserve_next) << 7]);

/// An ICMP error that a datagram to the peer caused (RFC 8656 §18.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icmp {
    /// The type of ICMP or ICMPv6, by the peer's address family. Seven bits on the wire: ICMPv6's errors are below 128.
    pub icmp_type: u8,
    /// The code. Nine bits on the wire, though ICMP's code has eight.
    pub code: u16,
    /// The next link's MTU for "fragmentation needed" and "packet too big", else zero.
    pub data: u32,
}
packed!(
    Icmp,
    8,
    |[_, _, t, c, d0, d1, d2, d3]| Self {
        icmp_type: t >> 1,
        code: u16::from_be_bytes([t & 1, c]),
        data: u32::from_be_bytes([d0, d1, d2, d3]),
    },
    |this| {
        if this.icmp_type > 0x7F || this.code > 0x1FF {
            return Err(AttributeErrorKind::Value);
        }
        let [c0, c1] = this.code.to_be_bytes();
        let [d0, d1, d2, d3] = this.data.to_be_bytes();
        [0, 0, this.icmp_type << 1 | c0, c1, d0, d1, d2, d3]
    }
);

/// The number of transmissions of a request and of its response, each counted from 1 (RFC 7982 §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionTransmitCounter {
    /// Transmissions of the request.
    pub request: u8,
    /// Transmissions of the response; zero in a request.
    pub response: u8,
}
packed!(TransactionTransmitCounter, 4, |[_, _, request, response]| Self { request, response }, |this| [
    0,
    0,
    this.request,
    this.response
]);

/// The ECN field as the responder received it (RFC 6679 §7.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EcnCheck {
    /// The ECN field of the request as the responder saw it, 0 to 3.
    pub ecf: u8,
    /// Whether `ecf` is valid: the responder can read the field.
    pub valid: bool,
}
packed!(EcnCheck, 4, |[_, _, _, bits]| Self { ecf: bits >> 1 & 3, valid: bits & 1 != 0 }, |this| {
    if this.ecf > 3 {
        return Err(AttributeErrorKind::Value);
    }
    [0, 0, 0, this.ecf << 1 | u8::from(this.valid)]
});
