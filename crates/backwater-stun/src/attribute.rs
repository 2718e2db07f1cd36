//! What an attribute is: a type with a number, a rule for its length, and one way to read and to write it.

use core::fmt;

use crate::{AttributeError, AttributeErrorKind, ChannelNumber, TransactionId};

mod codec;
mod structured;
mod table;

pub use structured::*;
pub use table::*;

/// An attribute that this crate, or yours, can read and write.
///
/// Implement it for a private attribute; those of the registry are all here. `'a` is how long the message lives that
/// the attribute was read from.
pub trait Attribute<'a>: Sized {
    /// The number in front of the value.
    const TYPE: AttributeType;

    /// How long the value may be. Checked before [`decode`](Self::decode) and [`encode`](Self::encode).
    const LENGTH: LengthRule;

    /// Reads the value, without its padding.
    ///
    /// # Errors
    /// What is wrong with the value. It has the length that [`LENGTH`](Self::LENGTH) allows for reading.
    fn decode(value: &'a [u8], transaction_id: &TransactionId) -> Result<Self, AttributeErrorKind>;

    /// The length of the value in bytes, without its padding.
    fn value_len(&self) -> usize;

    /// Writes the value into `out`, which is [`value_len`](Self::value_len) bytes long.
    ///
    /// # Errors
    /// What must not be written. What is in `out` then does not matter.
    fn encode(&self, transaction_id: &TransactionId, out: &mut [u8]) -> Result<(), AttributeErrorKind>;
}

/// How many bytes an attribute's value may have, without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LengthRule {
    /// The least, read or written.
    pub min: u16,
    /// The most that is accepted.
    pub max: u16,
    /// The most that is written: what we send is stricter than what we take (RFC 8489 §14.3, for one).
    pub max_written: u16,
}

impl LengthRule {
    /// Whether a value of `len` bytes may be read.
    pub const fn reads(&self, len: usize) -> bool {
        self.min as usize <= len && len <= self.max as usize
    }

    /// Whether a value of `len` bytes may be written.
    pub const fn writes(&self, len: usize) -> bool {
        self.min as usize <= len && len <= self.max_written as usize
    }
}

/// The number of an attribute (RFC 8489 §18.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttributeType(pub u16);

impl AttributeType {
    /// Whether a receiver that does not know the attribute has to refuse the message (RFC 8489 §14).
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

/// An attribute as it lies in the message, known or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawAttribute<'a> {
    /// Its number.
    pub attribute_type: AttributeType,
    /// Its value, without padding.
    pub value: &'a [u8],
}

impl<'a> RawAttribute<'a> {
    /// Reads the value as an attribute of type `A`, whatever [`attribute_type`](Self::attribute_type) says.
    ///
    /// # Errors
    /// What is wrong with the value.
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
