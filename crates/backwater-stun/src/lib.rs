//! STUN and TURN framing: zero-copy views over received bytes, writers into a slice.
//!
//! Bytes in, views out. There is no I/O, no clock, no allocation and no unsafe code here, and nothing panics, whatever
//! the bytes. What a request means, when to retransmit it and who may do what is for the layers above.
//!
//! # A STUN server in ten lines
//!
//! ```
//! use std::net::SocketAddr;
//! use backwater_stun::*;
//!
//! /// Answers a Binding request; `None` for anything else.
//! fn answer<'b>(datagram: &[u8], source: SocketAddr, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
//!     let request = Message::parse(datagram).ok()?;
//!     if !request.is(Class::Request, Method::BINDING) {
//!         return None;
//!     }
//!     let mut response =
//!         Writer::new(buffer, Class::SuccessResponse, Method::BINDING, request.transaction_id()).ok()?;
//!     response.attribute(&XorMappedAddress(source)).ok()?;
//!     Some(response.fingerprint().ok()?.finish())
//! }
//! #
//! # let mut buffer = [0; 100];
//! # let request = Writer::new(&mut buffer, Class::Request, Method::BINDING, TransactionId([7; 12])).unwrap().finish();
//! # let source = SocketAddr::from(([192, 0, 2, 1], 5000));
//! # let mut out = [0; 100];
//! # let response = Message::parse(answer(request, source, &mut out).unwrap()).unwrap();
//! # assert_eq!(response.check_fingerprint(), FingerprintCheck::Valid);
//! # assert_eq!(response.get(), Ok(Some(XorMappedAddress(source))));
//! ```
//!
//! # Reading
//!
//! [`Message::parse`] checks the form of a datagram once: header, length, and the bounds of every attribute. After
//! that, each getter reads one attribute, and its error concerns that attribute alone: a server can answer 400 to a
//! LIFETIME that is too short and still know the rest.
//!
//! RFC 8489 §6.3 has an order for what follows, and the types keep to it:
//!
//! 1. [`Message::check_fingerprint`], where the usage has FINGERPRINT.
//! 2. Authentication. USERNAME, REALM and NONCE are read from the [`Message`] to find the key, and
//!    [`Message::verify`] turns it into a [`Verified`]. A function that takes a `Verified` cannot be called with what
//!    has not been verified, and the getters of a `Verified` return protected attributes only.
//! 3. [`Message::unknown_required`] or [`Verified::unknown_required`], for 420.
//!
//! ```
//! use backwater_stun::*;
//!
//! /// The lifetime that a user asks for: a server's view of a Refresh request.
//! fn lifetime(datagram: &[u8], find_password: impl Fn(&str) -> Option<String>) -> Result<u32, Code> {
//!     const UNDERSTOOD: AttributeSet = AttributeSet::of(&[
//!         AttributeType::USERNAME, AttributeType::REALM, AttributeType::NONCE, AttributeType::LIFETIME,
//!     ]);
//!     let request = Message::parse(datagram).map_err(|_| Code::BAD_REQUEST)?;
//!     let (Ok(Some(Username(user))), Ok(Some(Realm(realm)))) = (request.get(), request.get()) else {
//!         return Err(Code::UNAUTHENTICATED);
//!     };
//!     let password = find_password(user).ok_or(Code::UNAUTHENTICATED)?;
//!     // A server keeps this key: hashing it is most of the work.
//!     let key = HmacKey::from(&LongTermKey::md5(user, realm, &password));
//!     let request: Verified<'_> = request.verify(&key).map_err(|error| match error {
//!         IntegrityError::Missing | IntegrityError::Mismatch => Code::UNAUTHENTICATED,
//!         _ => Code::BAD_REQUEST,
//!     })?;
//!     if request.unknown_required(UNDERSTOOD).next().is_some() {
//!         return Err(Code::UNKNOWN_ATTRIBUTE);
//!     }
//!     match request.get() {
//!         Ok(Some(Lifetime(seconds))) => Ok(seconds),
//!         Ok(None) => Ok(600),
//!         Err(_) => Err(Code::BAD_REQUEST),
//!     }
//! }
//! #
//! # let mut buffer = [0; 200];
//! # let key = HmacKey::from(&LongTermKey::md5("user", "realm", "pass"));
//! # let mut writer = Writer::new(&mut buffer, Class::Request, Method::REFRESH, TransactionId([7; 12])).unwrap();
//! # writer.attribute(&Username("user")).unwrap().attribute(&Realm("realm")).unwrap();
//! # writer.attribute(&Lifetime(300)).unwrap();
//! # let request = writer.integrity_sha1(&key).unwrap().finish();
//! # assert_eq!(lifetime(request, |_| Some("pass".into())), Ok(300));
//! # assert_eq!(lifetime(request, |_| Some("other".into())), Err(Code::UNAUTHENTICATED));
//! ```
//!
//! # Writing
//!
//! A [`Writer`] takes attributes, then message integrity, then FINGERPRINT; another order does not compile:
//!
//! ```compile_fail
//! # use backwater_stun::*;
//! # fn f(writer: Writer<'_>, key: &HmacKey) -> Result<(), WriteError> {
//! let mut writer = writer.integrity_sha1(key)?;
//! writer.attribute(&Lifetime(600))?; // no such method any more
//! # Ok(())
//! # }
//! ```
//!
//! The size is known before: [`HEADER_LEN`], [`attribute_len`] for each attribute, [`INTEGRITY_SHA1_LEN`],
//! [`INTEGRITY_SHA256_LEN`] and [`FINGERPRINT_LEN`]. A payload that is not to be copied goes out between the two parts
//! of a [`DataPrefix`].
//!
//! # Streams
//!
//! [`split_frame`] finds the frames of a TCP or TLS stream. It remembers nothing, so that it does not matter how the
//! bytes arrive.
//!
//! # An attribute of your own
//!
//! Implement [`Attribute`] for it: that is all that the attributes here do. Those that no type was given for are kept
//! in the message and visible in [`Message::attributes`].
//!
//! # What is covered
//!
//! | RFC | Feature | Here |
//! |---|---|---|
//! | 8489 §5, §14 | Header, attributes | [`Message`], [`Writer`], [`Attribute`], [`AnyAttribute`] |
//! | 8489 §6.2.2 | Framing over TCP and TLS | [`split_frame`] |
//! | 8489 §9.1 | Short-term credentials | [`HmacKey::new`] |
//! | 8489 §9.2 | Long-term credentials, password algorithms, bid-down protection | [`LongTermKey`], [`PasswordAlgorithms`], [`SecurityFeatures`] |
//! | 8489 §14.4 | Username anonymity | [`Userhash`] |
//! | 8489 §14.5, §14.6 | SHA-1 and SHA-256 integrity, truncation | [`Message::verify`], [`Message::verify_truncated`], [`MacLength`] |
//! | 8489 §14.7 | FINGERPRINT | [`Message::check_fingerprint`], [`Writer::fingerprint`] |
//! | 8489 §14.13, §6.3 | Unknown attributes | [`Message::unknown_required`], [`UnknownAttributes`] |
//! | 8265 §4.2 | OpaqueString | `opaque_string`, with feature `std` |
//! | 8656 §12 | Channels | [`ChannelNumber`], [`ChannelData`] |
//! | 8656 §11 | Send and Data indications without a copy | [`DataPrefix`], [`Message::value_range`] |
//! | 8656 §18, 6062 §6.2, 8016 | TURN's attributes: UDP, TCP, mobility, dual allocations | [`AttributeType::REGISTERED`] |
//! | 8445 §16 | ICE's attributes | [`Priority`], [`UseCandidate`], [`IceControlled`], [`IceControlling`] |
//! | 5780 §7, 7635 §6, 7982 §3, 6679 §7.2 | NAT discovery, third-party authorization, transmit counter, ECN | [`AttributeType::REGISTERED`] |
//! | 7064, 7065 | URIs | [`Uri`] |
//! | 7983, 9443 | Demultiplexing | [`demultiplex`] |
//! | 3489 | Messages without the magic cookie | no |
//!
//! # Features and sizes
//!
//! `std`, on by default, adds `opaque_string` and lets CRC-32 use what the processor has. Without it the crate needs
//! neither `std` nor `alloc`. The largest values on the stack are [`HmacKey`] with 104 bytes, [`Uri`] with 56 and [`DataPrefix`] with 50,
//! and about 200 bytes of blocks while an integrity is computed.
//!
//! The oldest Rust that it builds with is 1.88, which `sha2` needs too.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(feature = "std", test))]
extern crate std;

pub use attribute::*;
pub use channel::{CHANNEL_HEADER_LEN, ChannelData, ChannelDataError, ChannelNumber};
pub use credential::{AlgorithmMismatch, ChallengeError, SecurityFeatures};
#[cfg(feature = "std")]
pub use credential::{OpaqueStringError, opaque_string};
pub use demultiplex::{Protocol, demultiplex};
pub use error::{AttributeError, AttributeErrorKind, IntegrityError, ParseError, WriteError};
pub use header::{Class, HEADER_LEN, MAGIC_COOKIE, Method, TransactionId};
pub use integrity::{HmacKey, LongTermKey, MacLength};
pub use message::{FingerprintCheck, Integrity, Message, Verified};
pub use prefix::DataPrefix;
pub use stream::{Frame, MAX_FRAME_LEN, Split, StreamError, split_frame};
pub use uri::{Host, Scheme, Transport, Uri, UriError};
pub use writer::{
    AfterFingerprint, AfterSha1, AfterSha256, Attributes, FINGERPRINT_LEN, INTEGRITY_SHA1_LEN, INTEGRITY_SHA256_LEN,
    MAX_MESSAGE_LEN, TakesFingerprint, TakesSha256, Writer, attribute_len,
};

mod attribute;
mod channel;
mod credential;
mod demultiplex;
mod error;
mod fingerprint;
mod header;
mod integrity;
mod message;
mod prefix;
mod stream;
mod uri;
mod writer;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// How many bytes of padding follow `len` bytes, so that the next attribute begins at a multiple of four: 0 to 3.
#[inline]
pub const fn padding_len(len: usize) -> usize {
    len.wrapping_neg() & 3
}

// An offset and a length, with 16 bits each, are added all over: where that could wrap, a walk might never end.
const _: () = assert!(usize::BITS >= 32);

/// `len` with its padding.
#[inline]
const fn padded_len(len: usize) -> usize {
    (len + 3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes that the documentation states.
    #[test]
    fn nothing_on_the_stack_is_large() {
        assert_eq!(size_of::<HmacKey>(), 104);
        assert_eq!(size_of::<DataPrefix>(), 50);
        assert!(size_of::<AnyAttribute<'_>>() <= 40);
        assert!(size_of::<Message<'_>>() <= 40 && size_of::<Verified<'_>>() <= 48);
        assert!(size_of::<Uri<'_>>() <= 64 && size_of::<Writer<'_>>() <= 40 && size_of::<LongTermKey>() <= 40);
    }

    #[test]
    fn first_byte_identifies_the_protocol() {
        for (bytes, protocol) in [
            (0..=3, Protocol::Stun),
            (4..=15, Protocol::Unassigned),
            (16..=19, Protocol::Zrtp),
            (20..=63, Protocol::Dtls),
            (64..=79, Protocol::TurnChannel),
            (80..=127, Protocol::Quic),
            (128..=191, Protocol::Rtp),
            (192..=255, Protocol::Quic),
        ] {
            for byte in bytes {
                assert_eq!(demultiplex(byte), protocol);
            }
        }
    }
}
