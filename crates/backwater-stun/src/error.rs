//! What can be wrong with bytes that were read, or with values that are to be written.

use core::fmt;

use crate::AttributeType;

/// Why bytes are not a STUN message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseError {
    /// The top two bits are not zero or the magic cookie is missing: something else than STUN.
    NotStun,
    /// Fewer bytes than the header, or than the length in the header says.
    Truncated,
    /// More bytes than the length in the header says.
    TrailingBytes,
    /// The length in the header is not a multiple of four.
    UnalignedLength,
    /// An attribute reaches beyond the end of the message.
    AttributeOverrun,
    /// An attribute follows FINGERPRINT, which has to be the last (RFC 8489 §14.7).
    AfterFingerprint,
}

/// An attribute that is present but cannot be read, or a value that must not be written.
///
/// A server answers it with 400, if at all; which attribute it was belongs into its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttributeError {
    /// The attribute.
    pub attribute: AttributeType,
    /// What is wrong with it.
    pub kind: AttributeErrorKind,
}

/// What is wrong with an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
// As wide as the type beside it in `AttributeError`. Were it a byte, it would lie across an IPv4 address in what a getter
// returns, and the compiler would take the address apart and put it together again on the way.
#[repr(u16)]
pub enum AttributeErrorKind {
    /// Shorter or longer than its definition allows.
    Length,
    /// An address family other than IPv4 and IPv6. TURN answers it with 440.
    Family,
    /// Text that is not UTF-8.
    Utf8,
    /// A value out of its range.
    Value,
}

/// Why a message could not be written. Nothing beyond the buffer was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// The buffer has no room for it.
    BufferTooSmall,
    /// The message would be longer than its length field can say: 65,532 bytes of attributes.
    MessageTooLong,
    /// The value breaks the attribute's own rule.
    Attribute(AttributeError),
}

/// Why a message could not be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IntegrityError {
    /// There is neither MESSAGE-INTEGRITY nor MESSAGE-INTEGRITY-SHA256.
    Missing,
    /// The attribute's length is not one that its definition allows.
    Malformed,
    /// MESSAGE-INTEGRITY-SHA256 is shorter than the caller allows.
    Truncated,
    /// The message is not what the holder of the key sent.
    Mismatch,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotStun => "not a STUN message",
            Self::Truncated => "the message is longer than the bytes at hand",
            Self::TrailingBytes => "bytes follow the message",
            Self::UnalignedLength => "the length is not a multiple of four",
            Self::AttributeOverrun => "an attribute reaches beyond the message",
            Self::AfterFingerprint => "an attribute follows FINGERPRINT",
        })
    }
}

impl fmt::Display for AttributeErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Length => "wrong length",
            Self::Family => "unknown address family",
            Self::Utf8 => "not UTF-8",
            Self::Value => "value out of range",
        })
    }
}

impl fmt::Display for AttributeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.attribute, self.kind)
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BufferTooSmall => f.write_str("the buffer is too small for the message"),
            Self::MessageTooLong => f.write_str("the message is longer than its length field can say"),
            Self::Attribute(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for IntegrityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "no message integrity",
            Self::Malformed => "message integrity has a wrong length",
            Self::Truncated => "message integrity is shorter than allowed",
            Self::Mismatch => "message integrity does not match",
        })
    }
}

impl core::error::Error for ParseError {}
impl core::error::Error for AttributeError {}
impl core::error::Error for WriteError {}
impl core::error::Error for IntegrityError {}
