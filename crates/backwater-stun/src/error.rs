//! Errors of reading and of writing.

use core::fmt;

use crate::AttributeType;

/// Why bytes are not a STUN message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseError {
    /// The top two bits are not zero, or the magic cookie is missing: another protocol.
    NotStun,
    /// The datagram is shorter than the header, or than the length in the header says.
    Truncated,
    /// The datagram is longer than the length in the header says.
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
/// A server answers such a request with 400, or not at all, and logs the attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttributeError {
    /// The attribute.
    pub attribute: AttributeType,
    /// Why it is invalid.
    pub kind: AttributeErrorKind,
}

/// Why an attribute is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
// Two bytes, as the type beside it in `AttributeError`. With one byte, it would overlap an IPv4 address in the result of a getter,
// and the compiler would copy the address in pieces.
#[repr(u16)]
pub enum AttributeErrorKind {
    /// The value is shorter or longer than the attribute allows.
    Length,
    /// The address family is neither IPv4 nor IPv6. A TURN server answers with 440.
    Family,
    /// The text is not UTF-8.
    Utf8,
    /// The value is out of its range.
    Value,
}

/// Why a message could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// The buffer is too small.
    BufferTooSmall,
    /// The message would be longer than its length field can say: 65,532 bytes of attributes.
    MessageTooLong,
    /// The value is invalid for its attribute.
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
