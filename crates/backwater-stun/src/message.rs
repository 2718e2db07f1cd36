//! Reading: a message as it lies in the datagram, and what of it can be trusted.

use core::ops::Range;

use crate::attribute::{
    Attribute, AttributeSet, AttributeType, Fingerprint, MessageIntegrity, MessageIntegritySha256, RawAttribute,
};
use crate::error::{AttributeError, IntegrityError, ParseError};
use crate::fingerprint::fingerprint;
use crate::header::{self, Class, HEADER_LEN, MAGIC_COOKIE, Method, TransactionId};
use crate::integrity::{HmacKey, MacLength, equal};
use crate::padded_len;

/// A view of a STUN message whose form has been checked: header, length, and the bounds of every attribute.
///
/// What its getters return is what someone wrote into a datagram. [`verify`](Self::verify) turns the message into
/// a [`Verified`], whose getters return what the holder of a key wrote.
///
/// Attributes that follow a message integrity are ignored, as RFC 8489 §14.5 and §14.6 want it: no getter returns
/// them. Where an attribute is there twice, the first counts (§14).
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    bytes: &'a [u8],
    /// Where the attributes end that a message integrity protects, or would protect.
    ordinary_end: u32,
    /// Where each of these begins; 0 where it is absent or has to be ignored.
    sha1: u32,
    sha256: u32,
    fingerprint: u32,
    /// Where the first DATA begins, or the end of the message: what a relay looks for in every datagram.
    data: u32,
}

/// A message whose integrity has been verified. Its getters return protected attributes and nothing else.
#[derive(Debug, Clone, Copy)]
pub struct Verified<'a> {
    message: Message<'a>,
    integrity: Integrity,
}

/// The attribute that verified a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Integrity {
    /// MESSAGE-INTEGRITY.
    Sha1,
    /// MESSAGE-INTEGRITY-SHA256.
    Sha256,
}

/// The result of checking FINGERPRINT (RFC 8489 §14.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FingerprintCheck {
    /// The message has none.
    Absent,
    /// It is right: the datagram is a STUN message, without an accidental bit error.
    Valid,
    /// It is wrong: the datagram is damaged, or not STUN.
    Invalid,
}

impl<'a> Message<'a> {
    /// Parses a datagram, which must be exactly one message. Checks the bounds of all attributes, not their values or integrity.
    ///
    /// # Errors
    /// See [`ParseError`]. A server drops such a datagram.
    #[inline]
    pub fn parse(datagram: &'a [u8]) -> Result<Self, ParseError> {
        let Some(&[t0, _, l0, l1, c0, c1, c2, c3]) = datagram.first_chunk() else {
            return Err(ParseError::Truncated);
        };
        if t0 >= 0x40 || u32::from_be_bytes([c0, c1, c2, c3]) != MAGIC_COOKIE {
            return Err(ParseError::NotStun);
        }
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        if length % 4 != 0 {
            return Err(ParseError::UnalignedLength);
        }
        if datagram.len() != HEADER_LEN + length {
            let truncated = datagram.len() < HEADER_LEN + length;
            return Err(if truncated { ParseError::Truncated } else { ParseError::TrailingBytes });
        }
        Self::scan(datagram)
    }

    /// Walks the attributes once. Every length is a multiple of four with its padding, as is the whole, so a value
    /// that lies within the message has its padding there too.
    #[inline]
    fn scan(bytes: &'a [u8]) -> Result<Self, ParseError> {
        // A message has at most 65,555 bytes: 32 bits hold any offset.
        let end = bytes.len() as u32;
        let mut message = Self { bytes, ordinary_end: end, sha1: 0, sha256: 0, fingerprint: 0, data: end };
        let mut at = HEADER_LEN;
        while let Some(head) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
            let here = at as u32;
            let (attribute_type, len) = split_head(*head);
            let next = padded_len(at + 4 + len);
            match attribute_type {
                AttributeType::MESSAGE_INTEGRITY if message.sha1 | message.sha256 == 0 => {
                    message.sha1 = here;
                    message.ordinary_end = here;
                }
                AttributeType::MESSAGE_INTEGRITY_SHA256 if message.sha256 == 0 => {
                    message.sha256 = here;
                    message.ordinary_end = message.ordinary_end.min(here);
                }
                AttributeType::FINGERPRINT if next < bytes.len() => return Err(ParseError::AfterFingerprint),
                AttributeType::FINGERPRINT => {
                    message.fingerprint = here;
                    message.ordinary_end = message.ordinary_end.min(here);
                }
                AttributeType::DATA => message.data = message.data.min(here),
                _ => {}
            }
            at = next;
        }
        if at != bytes.len() {
            return Err(ParseError::AttributeOverrun);
        }
        Ok(message)
    }

    /// Returns whether the message has this class and method. It costs less than comparing the two one by one.
    #[inline]
    pub fn is(&self, class: Class, method: Method) -> bool {
        self.type_bits() == header::encode_type(class, method)
    }

    /// Returns the class.
    #[inline]
    pub fn class(&self) -> Class {
        header::decode_class(self.type_bits())
    }

    /// Returns the method.
    #[inline]
    pub fn method(&self) -> Method {
        header::decode_method(self.type_bits())
    }

    /// Returns the transaction id.
    #[inline]
    pub fn transaction_id(&self) -> TransactionId {
        TransactionId(self.bytes.get(8..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default())
    }

    /// Returns the whole message with its header.
    #[inline]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns every attribute, known or not, in its order. Attributes after message integrity are ignored
    /// (RFC 8489 §14.5).
    pub fn attributes(&self) -> impl Iterator<Item = RawAttribute<'a>> + Clone + use<'a> {
        let integrity_and_fingerprint = [self.sha1, self.sha256, self.fingerprint].map(|offset| self.special(offset));
        self.ordinary().map(|(_, raw)| raw).chain(integrity_and_fingerprint.into_iter().flatten())
    }

    /// Returns the first attribute of a type; `None` if there is none.
    ///
    /// # Errors
    /// Why the attribute is invalid.
    #[inline]
    pub fn get<A: Attribute<'a>>(&self) -> Result<Option<A>, AttributeError> {
        let raw = match A::TYPE {
            AttributeType::MESSAGE_INTEGRITY => self.special(self.sha1),
            AttributeType::MESSAGE_INTEGRITY_SHA256 => self.special(self.sha256),
            AttributeType::FINGERPRINT => self.special(self.fingerprint),
            _ => self.find(A::TYPE).map(|(_, raw)| raw),
        };
        raw.map(|raw| raw.decode(&self.transaction_id())).transpose()
    }

    /// Returns all attributes of a type, in their order: for XOR-PEER-ADDRESS, which a CreatePermission may repeat, and for
    /// XOR-RELAYED-ADDRESS, of which a dual allocation has two. Message integrity and FINGERPRINT are not offered
    /// here.
    pub fn all<A: Attribute<'a>>(&self) -> impl Iterator<Item = Result<A, AttributeError>> + Clone + use<'a, A> {
        let id = self.transaction_id();
        let of_type = self.ordinary().filter(|(_, raw)| raw.attribute_type == A::TYPE);
        of_type.map(move |(_, raw)| raw.decode(&id))
    }

    /// Returns whether the message has an attribute of this type, valid or not.
    pub fn contains(&self, attribute: AttributeType) -> bool {
        self.attributes().any(|raw| raw.attribute_type == attribute)
    }

    /// Returns the place in [`as_bytes`](Self::as_bytes) of the value of the first attribute of a type. For DATA, this is the payload,
    /// which a relay forwards from its receive buffer.
    #[inline]
    pub fn value_range(&self, attribute: AttributeType) -> Option<Range<usize>> {
        self.find(attribute).map(|(at, raw)| at..at + raw.value.len())
    }

    /// Returns the comprehension-required attributes that are not in `understood`, in their order. If there are any, a server answers a
    /// request with 420 and this list, drops an indication, and a client fails the transaction of a response (RFC 8489 §6.3).
    /// Call it after authentication.
    #[inline]
    pub fn unknown_required(&self, understood: AttributeSet) -> impl Iterator<Item = AttributeType> + Clone + use<'a> {
        self.ordinary()
            .map(|(_, raw)| raw.attribute_type)
            .filter(move |t| t.comprehension_required() && !understood.contains(*t))
    }

    /// Checks FINGERPRINT, if there is one.
    #[inline]
    pub fn check_fingerprint(&self) -> FingerprintCheck {
        if self.fingerprint == 0 {
            return FingerprintCheck::Absent;
        }
        let before = self.bytes.get(..self.fingerprint as usize).unwrap_or_default();
        match self.get() {
            Ok(Some(Fingerprint(sent))) if sent == fingerprint(before) => FingerprintCheck::Valid,
            Ok(_) | Err(_) => FingerprintCheck::Invalid,
        }
    }

    /// Verifies the message's integrity: by MESSAGE-INTEGRITY-SHA256 at its full length if it is there, else by
    /// MESSAGE-INTEGRITY. The comparison takes the same time wherever the codes differ.
    ///
    /// A caller that requires SHA-256 checks [`Verified::integrity`], since an attacker on the path can remove the stronger attribute.
    ///
    /// # Errors
    /// With long-term credentials, [`Missing`](IntegrityError::Missing) and [`Mismatch`](IntegrityError::Mismatch)
    /// make a server answer 401, the others 400.
    pub fn verify(&self, key: &HmacKey) -> Result<Verified<'a>, IntegrityError> {
        self.verify_truncated(key, MacLength::FULL)
    }

    /// Like [`verify`](Self::verify), but takes a MESSAGE-INTEGRITY-SHA256 that has been truncated to no less than
    /// `shortest`. Only a usage that defines truncation should ask for this (RFC 8489 §14.6).
    ///
    /// # Errors
    /// As [`verify`](Self::verify), and [`Truncated`](IntegrityError::Truncated) below `shortest`.
    pub fn verify_truncated(&self, key: &HmacKey, shortest: MacLength) -> Result<Verified<'a>, IntegrityError> {
        let integrity = if self.sha256 != 0 {
            self.verify_sha256(key, shortest)?;
            Integrity::Sha256
        } else if self.sha1 != 0 {
            self.verify_sha1(key)?;
            Integrity::Sha1
        } else {
            return Err(IntegrityError::Missing);
        };
        Ok(Verified { message: *self, integrity })
    }

    fn verify_sha1(&self, key: &HmacKey) -> Result<(), IntegrityError> {
        let sent = self.get::<MessageIntegrity>().ok().flatten().ok_or(IntegrityError::Malformed)?;
        let (before, length) = self.up_to(self.sha1, 20).ok_or(IntegrityError::Malformed)?;
        if equal(&sent.0, &key.sha1(before, length)) { Ok(()) } else { Err(IntegrityError::Mismatch) }
    }

    fn verify_sha256(&self, key: &HmacKey, shortest: MacLength) -> Result<(), IntegrityError> {
        let sent = self.get::<MessageIntegritySha256<'_>>().ok().flatten().ok_or(IntegrityError::Malformed)?;
        let len = MacLength::new(sent.0.len()).ok_or(IntegrityError::Malformed)?;
        if len < shortest {
            return Err(IntegrityError::Truncated);
        }
        let (before, length) = self.up_to(self.sha256, len.bytes()).ok_or(IntegrityError::Malformed)?;
        let computed = key.sha256(before, length);
        let computed = computed.get(..len.bytes()).unwrap_or_default();
        if equal(sent.0, computed) { Ok(()) } else { Err(IntegrityError::Mismatch) }
    }

    /// What is hashed for the attribute at `offset`: the bytes before it, and the length that the header is taken to
    /// have, which ends after the attribute's value of `value_len` bytes (RFC 8489 §14.5).
    fn up_to(&self, offset: u32, value_len: usize) -> Option<(&'a [u8], u16)> {
        let before = self.bytes.get(..offset as usize)?;
        let length = before.len() + 4 + value_len - HEADER_LEN;
        Some((before, u16::try_from(length).ok()?))
    }

    #[inline]
    fn type_bits(&self) -> u16 {
        self.bytes.first_chunk().map(|bits| u16::from_be_bytes(*bits)).unwrap_or_default()
    }

    /// The attributes that a message integrity protects or would protect, with where their values begin.
    #[inline]
    fn ordinary(&self) -> Walk<'a> {
        Walk { bytes: self.bytes, at: HEADER_LEN, end: self.ordinary_end as usize }
    }

    /// The first ordinary attribute of a type, with where its value begins. [`Walk`] would do; this does not look at
    /// the values on the way.
    #[inline]
    fn find(&self, attribute: AttributeType) -> Option<(usize, RawAttribute<'a>)> {
        let Walk { bytes, mut at, end } = self.ordinary();
        if attribute == AttributeType::DATA {
            at = self.data as usize;
        }
        loop {
            let (attribute_type, len) = split_head(*bytes.get(at..end)?.first_chunk()?);
            let begin = at + 4;
            if attribute_type == attribute {
                let value = bytes.get(begin..begin + len)?;
                return Some((begin, RawAttribute { attribute_type, value }));
            }
            at = padded_len(begin + len);
        }
    }

    /// The attribute that begins at a remembered offset.
    fn special(&self, offset: u32) -> Option<RawAttribute<'a>> {
        if offset == 0 {
            return None;
        }
        Walk { bytes: self.bytes, at: offset as usize, end: self.bytes.len() }.next().map(|(_, raw)| raw)
    }
}

impl<'a> Verified<'a> {
    /// Returns the attribute that verified the message.
    pub fn integrity(&self) -> Integrity {
        self.integrity
    }

    /// Returns the class.
    pub fn class(&self) -> Class {
        self.message.class()
    }

    /// Returns the method.
    pub fn method(&self) -> Method {
        self.message.method()
    }

    /// Returns the transaction id.
    pub fn transaction_id(&self) -> TransactionId {
        self.message.transaction_id()
    }

    /// Returns the message with all its attributes, protected or not.
    pub fn unverified(&self) -> Message<'a> {
        self.message
    }

    /// Returns every protected attribute, known or not, in its order.
    pub fn attributes(&self) -> impl Iterator<Item = RawAttribute<'a>> + Clone + use<'a> {
        self.message.ordinary().map(|(_, raw)| raw)
    }

    /// Returns the first protected attribute of a type; `None` if there is none.
    ///
    /// # Errors
    /// Why the attribute is invalid.
    #[inline]
    pub fn get<A: Attribute<'a>>(&self) -> Result<Option<A>, AttributeError> {
        self.message.find(A::TYPE).map(|(_, raw)| raw.decode(&self.message.transaction_id())).transpose()
    }

    /// Returns all protected attributes of a type, in their order.
    pub fn all<A: Attribute<'a>>(&self) -> impl Iterator<Item = Result<A, AttributeError>> + Clone + use<'a, A> {
        self.message.all()
    }

    /// Returns whether the message has a protected attribute of this type, valid or not.
    pub fn contains(&self, attribute: AttributeType) -> bool {
        self.message.find(attribute).is_some()
    }

    /// Returns the protected comprehension-required attributes that are not in `understood`: see
    /// [`Message::unknown_required`].
    pub fn unknown_required(&self, understood: AttributeSet) -> impl Iterator<Item = AttributeType> + Clone + use<'a> {
        self.message.unknown_required(understood)
    }
}

/// Walks attributes whose bounds have been checked.
#[derive(Clone)]
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Kept apart from `bytes`: cutting them first would make every access wait for where they are cut.
    end: usize,
}

impl<'a> Iterator for Walk<'a> {
    /// Where the value begins, and the attribute.
    type Item = (usize, RawAttribute<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.bytes.get(self.at..self.end)?.split_first_chunk()?;
        let (attribute_type, len) = split_head(*head);
        let value = rest.get(..len)?;
        let at = self.at + 4;
        self.at = at + padded_len(len);
        Some((at, RawAttribute { attribute_type, value }))
    }
}

/// An attribute's type and length. Read as one number: that is what the whole walk waits for.
#[inline]
fn split_head(head: [u8; 4]) -> (AttributeType, usize) {
    let head = u32::from_be_bytes(head);
    (AttributeType((head >> 16) as u16), (head & 0xFFFF) as usize)
}

#[cfg(test)]
mod tests;
