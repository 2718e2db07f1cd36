//! Writing: attributes, then integrity, then FINGERPRINT, into a slice.

use core::marker::PhantomData;

use crate::attribute::{Attribute, AttributeType, Fingerprint, MessageIntegrity, MessageIntegritySha256};
use crate::error::{AttributeError, AttributeErrorKind, WriteError};
use crate::fingerprint::fingerprint;
use crate::header::{Class, HEADER_LEN, MAGIC_COOKIE, Method, TransactionId, encode_type};
use crate::integrity::{HmacKey, MacLength};
use crate::padded_len;

/// The longest message: the length field holds multiples of four.
pub const MAX_MESSAGE_LEN: usize = HEADER_LEN + 0xFFFC;

/// Bytes that MESSAGE-INTEGRITY adds to a message.
pub const INTEGRITY_SHA1_LEN: usize = 4 + 20;

/// Bytes that MESSAGE-INTEGRITY-SHA256 adds to a message.
pub const INTEGRITY_SHA256_LEN: usize = 4 + 32;

/// Bytes that FINGERPRINT adds to a message.
pub const FINGERPRINT_LEN: usize = 4 + 4;

/// Writes one message into a slice.
///
/// The order that RFC 8489 §14 demands is in the types: ordinary attributes, then MESSAGE-INTEGRITY, then
/// MESSAGE-INTEGRITY-SHA256, then FINGERPRINT, each of the last three or not. Padding is zero. After an error the
/// writer is as it was before; nothing is ever written beyond the buffer.
#[derive(Debug)]
pub struct Writer<'b, Stage = Attributes> {
    buffer: &'b mut [u8],
    len: usize,
    transaction_id: TransactionId,
    stage: PhantomData<Stage>,
}

/// The stage of a [`Writer`] that takes attributes, and everything that follows them.
#[derive(Debug)]
pub enum Attributes {}

/// The stage of a [`Writer`] after MESSAGE-INTEGRITY.
#[derive(Debug)]
pub enum AfterSha1 {}

/// The stage of a [`Writer`] after MESSAGE-INTEGRITY-SHA256.
#[derive(Debug)]
pub enum AfterSha256 {}

/// The stage of a [`Writer`] after FINGERPRINT: there is nothing left to write.
#[derive(Debug)]
pub enum AfterFingerprint {}

/// A stage that MESSAGE-INTEGRITY-SHA256 may follow.
pub trait TakesSha256: sealed::Sealed {}
impl TakesSha256 for Attributes {}
impl TakesSha256 for AfterSha1 {}

/// A stage that FINGERPRINT may follow.
pub trait TakesFingerprint: sealed::Sealed {}
impl TakesFingerprint for Attributes {}
impl TakesFingerprint for AfterSha1 {}
impl TakesFingerprint for AfterSha256 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Attributes {}
    impl Sealed for super::AfterSha1 {}
    impl Sealed for super::AfterSha256 {}
}

/// Returns the bytes that an attribute adds to a message: header, value and padding.
#[inline]
pub fn attribute_len<'a, A: Attribute<'a>>(attribute: &A) -> usize {
    4 + padded_len(attribute.value_len())
}

impl<'b> Writer<'b> {
    /// Begins a message.
    ///
    /// # Errors
    /// [`WriteError::BufferTooSmall`]: the header does not fit.
    #[inline]
    pub fn new(
        buffer: &'b mut [u8],
        class: Class,
        method: Method,
        transaction_id: TransactionId,
    ) -> Result<Self, WriteError> {
        let header = buffer.first_chunk_mut::<HEADER_LEN>().ok_or(WriteError::BufferTooSmall)?;
        header[..2].copy_from_slice(&encode_type(class, method).to_be_bytes());
        header[2..4].fill(0);
        header[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        header[8..].copy_from_slice(&transaction_id.0);
        Ok(Self { buffer, len: HEADER_LEN, transaction_id, stage: PhantomData })
    }

    /// Appends an attribute. Message integrity and FINGERPRINT do not compile here: they have methods of their own.
    ///
    /// # Errors
    /// See [`WriteError`].
    #[inline]
    pub fn attribute<'a, A: Attribute<'a>>(&mut self, attribute: &A) -> Result<&mut Self, WriteError> {
        const {
            assert!(
                A::TYPE.0 != AttributeType::MESSAGE_INTEGRITY.0
                    && A::TYPE.0 != AttributeType::MESSAGE_INTEGRITY_SHA256.0
                    && A::TYPE.0 != AttributeType::FINGERPRINT.0,
                "the writer computes message integrity and FINGERPRINT itself"
            );
        }
        self.push(attribute)?;
        Ok(self)
    }

    /// Ends the message with the header of an attribute whose value and padding the caller sends from elsewhere.
    /// Returns how long the message is without them.
    #[inline]
    pub(crate) fn finish_before(mut self, attribute: AttributeType, value_len: usize) -> Result<usize, WriteError> {
        let start = self.len + 4;
        if value_len > MAX_MESSAGE_LEN - start.min(MAX_MESSAGE_LEN) {
            return Err(WriteError::MessageTooLong);
        }
        let out = self.buffer.get_mut(self.len..).and_then(<[u8]>::first_chunk_mut);
        *out.ok_or(WriteError::BufferTooSmall)? = attribute_header(attribute, value_len);
        self.len = start + padded_len(value_len);
        self.finish();
        Ok(start)
    }

    /// Appends MESSAGE-INTEGRITY.
    ///
    /// # Errors
    /// The attribute does not fit.
    pub fn integrity_sha1(mut self, key: &HmacKey) -> Result<Writer<'b, AfterSha1>, WriteError> {
        let (message, length) = self.with_next(20)?;
        let mac = key.sha1(message, length);
        self.push(&MessageIntegrity(mac))?;
        Ok(self.into_stage())
    }
}

impl<'b, Stage: TakesSha256> Writer<'b, Stage> {
    /// Appends MESSAGE-INTEGRITY-SHA256, all 32 bytes of it.
    ///
    /// # Errors
    /// The attribute does not fit.
    pub fn integrity_sha256(self, key: &HmacKey) -> Result<Writer<'b, AfterSha256>, WriteError> {
        self.integrity_sha256_truncated(key, MacLength::FULL)
    }

    /// Appends MESSAGE-INTEGRITY-SHA256, truncated. Only for a usage that defines it (RFC 8489 §14.6).
    ///
    /// # Errors
    /// The attribute does not fit.
    pub fn integrity_sha256_truncated(
        mut self,
        key: &HmacKey,
        len: MacLength,
    ) -> Result<Writer<'b, AfterSha256>, WriteError> {
        let (message, length) = self.with_next(len.bytes())?;
        let mac = key.sha256(message, length);
        self.push(&MessageIntegritySha256(mac.get(..len.bytes()).unwrap_or_default()))?;
        Ok(self.into_stage())
    }
}

impl<'b, Stage: TakesFingerprint> Writer<'b, Stage> {
    /// Appends FINGERPRINT.
    ///
    /// # Errors
    /// The attribute does not fit.
    pub fn fingerprint(mut self) -> Result<Writer<'b, AfterFingerprint>, WriteError> {
        let (_, length) = self.with_next(4)?;
        self.set_length(length);
        let crc = fingerprint(self.buffer.get(..self.len).unwrap_or_default());
        self.push(&Fingerprint(crc))?;
        Ok(self.into_stage())
    }
}

impl<'b, Stage> Writer<'b, Stage> {
    /// Returns the length of the message so far, in bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // A message is never empty.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Finishes the message, and returns it from the start of the buffer.
    #[inline]
    pub fn finish(mut self) -> &'b [u8] {
        self.set_length(length_at(self.len));
        self.buffer.get(..self.len).unwrap_or_default()
    }

    /// What is hashed for an attribute of `value_len` bytes that comes next: the message so far, and the length that
    /// the header is taken to have, which ends after the attribute.
    fn with_next(&self, value_len: usize) -> Result<(&[u8], u16), WriteError> {
        let end = self.len + 4 + value_len;
        if end > MAX_MESSAGE_LEN {
            return Err(WriteError::MessageTooLong);
        }
        Ok((self.buffer.get(..self.len).unwrap_or_default(), length_at(end)))
    }

    #[inline]
    fn set_length(&mut self, length: u16) {
        if let Some(field) = self.buffer.get_mut(2..4) {
            field.copy_from_slice(&length.to_be_bytes());
        }
    }

    #[inline]
    pub(crate) fn push<'a, A: Attribute<'a>>(&mut self, attribute: &A) -> Result<(), WriteError> {
        let value_len = attribute.value_len();
        let error = |kind| WriteError::Attribute(AttributeError { attribute: A::TYPE, kind });
        if !A::LENGTH.writes(value_len) {
            return Err(error(AttributeErrorKind::Length));
        }
        let end = self.len + 4 + padded_len(value_len);
        if end > MAX_MESSAGE_LEN {
            return Err(WriteError::MessageTooLong);
        }
        let out = self.buffer.get_mut(self.len..end).ok_or(WriteError::BufferTooSmall)?;
        let (head, rest) = out.split_first_chunk_mut().ok_or(WriteError::BufferTooSmall)?;
        *head = attribute_header(A::TYPE, value_len);
        // The padding, with what of the value shares its last word. An empty value has neither.
        if let Some(last) = rest.last_chunk_mut() {
            *last = [0; 4];
        }
        let value = rest.get_mut(..value_len).ok_or(WriteError::BufferTooSmall)?;
        attribute.encode(&self.transaction_id, value).map_err(error)?;
        self.len = end;
        Ok(())
    }

    fn into_stage<Next>(self) -> Writer<'b, Next> {
        Writer { buffer: self.buffer, len: self.len, transaction_id: self.transaction_id, stage: PhantomData }
    }
}

/// The header's length field for a message that ends at `end`, which is at most [`MAX_MESSAGE_LEN`].
#[inline]
fn length_at(end: usize) -> u16 {
    (end - HEADER_LEN) as u16
}

/// The four bytes in front of a value, which fits into a message.
#[inline]
fn attribute_header(attribute: AttributeType, value_len: usize) -> [u8; 4] {
    let ([t0, t1], [l0, l1]) = (attribute.0.to_be_bytes(), (value_len as u16).to_be_bytes());
    [t0, t1, l0, l1]
}

#[cfg(test)]
mod tests;
