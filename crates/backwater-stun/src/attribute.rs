//! The attribute trait: a type number, a rule for the length, and a codec of the value.

use core::fmt;

use crate::{AttributeError, AttributeErrorKind, ChannelNumber, TransactionId};

mod codec;
mod structured;
mod table;

pub use structured::*;
pub use table::*;

/// Reads and writes one type of attribute.
///
/// This crate implements it for every attribute of the registry. Implement it for a private attribute. `'a` is the lifetime of the
/// message that the attribute is read from.
pub trait Attribute<'a>: Sized {
    /// The type number, in front of the value.
    const TYPE: AttributeType;

    /// The allowed lengths of the value. They are checked before [`decode`](Self::decode) and [`encode`](Self::encode).
    const LENGTH: LengthRule;

    /// Reads the value, without its padding.
    ///
    /// # Errors
    /// Why the value is invalid. Its length is one that [`LENGTH`](Self::LENGTH) allows for reading.
    fn decode(value: &'a [u8], transaction_id: &TransactionId) -> Result<Self, AttributeErrorKind>;

    /// Returns the length of the value in bytes, without its padding.
    fn value_len(&self) -> usize;

    /// Writes the value into `out`, which is [`value_len`](Self::value_len) bytes long.
    ///
    /// # Errors
    /// Why the value must not be written. The content of `out` is unspecified then.
    fn encode(&self, transaction_id: &TransactionId, out: &mut [u8]) -> Result<(), AttributeErrorKind>;
}

/// The allowed lengths of an attribute's value in bytes, without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LengthRule {
    /// The shortest value, read or written.
    pub min: u16,
    /// The longest value that is read.
    pub max: u16,
    /// The longest value that is written. It may be shorter than the longest that is read (RFC 8489 §14.3, for one).
    pub max_written: u16,
}

impl LengthRule {
    /// Returns whether a value of `len` bytes may be read.
    pub const fn reads(&self, len: usize) -> bool {
        self.min as usize <= len && len <= self.max as usize
    }

    /// Returns whether a value of `len` bytes may be written.
    pub const fn writes(&self, len: usize) -> bool {
        self.min as usize <= len && len <= self.max_written as usize
    }
}

/// The type number of an attribute (RFC 8489 §18.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttributeType(pub u16);

impl AttributeType {
    /// Returns whether a receiver that does not know the attribute must refuse the message (RFC 8489 §14).
    pub const fn comprehension_required(self) -> bool {
        self.0 < 0x8000
    }
}

impl fmt::Display for AttributeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "{:#06x}", self.0),
        }
    }
}

impl fmt::Debug for AttributeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An undecoded attribute of a message, of a known or unknown type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawAttribute<'a> {
    /// The type number.
    pub attribute_type: AttributeType,
    /// The value, without padding.
    pub value: &'a [u8],
}

impl<'a> RawAttribute<'a> {
    /// Reads the value as an attribute of type `A`, whatever [`attribute_type`](Self::attribute_type) says.
    ///
    /// # Errors
    /// Why the value is invalid.
    #[inline]
    pub fn decode<A: Attribute<'a>>(&self, transaction_id: &TransactionId) -> Result<A, AttributeError> {
        let error = |kind| AttributeError { attribute: A::TYPE, kind };
        if !A::LENGTH.reads(self.value.len()) {
            return Err(error(AttributeErrorKind::Length));
        }
        A::decode(self.value, transaction_id).map_err(error)
    }
}

/// A set of attribute types: those that a receiver understands, private ones among them.
#[derive(Clone, Copy)]
pub struct AttributeSet {
    /// One bit for each member below 64, where the registry has all its comprehension-required types.
    low: u64,
    members: &'static [AttributeType],
}

impl AttributeSet {
    /// Every attribute that this crate can read.
    pub const REGISTERED: Self = Self::of(AttributeType::REGISTERED);

    /// Returns the set of these types.
    pub const fn of(members: &'static [AttributeType]) -> Self {
        let mut low = 0;
        let mut i = 0;
        while i < members.len() {
            if members[i].0 < 64 {
                low |= 1 << members[i].0;
            }
            i += 1;
        }
        Self { low, members }
    }

    /// Returns whether a type is in the set. A type from 64 up is searched for in the list that the set was made of.
    #[inline]
    pub fn contains(&self, attribute: AttributeType) -> bool {
        if attribute.0 < 64 { self.low >> attribute.0 & 1 == 1 } else { self.members.contains(&attribute) }
    }
}

impl fmt::Debug for AttributeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.members).finish()
    }
}

#[cfg(test)]
mod tests;
