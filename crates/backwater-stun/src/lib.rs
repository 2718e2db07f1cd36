//! STUN and TURN framing: zero-copy views over received bytes, writers into a slice.
//!
//! No I/O, no clock, no allocation, no unsafe code, and no panic, whatever the bytes.
#![no_std]
#![forbid(unsafe_code)]

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

/// How many bytes of padding follow `len` bytes, so that the next attribute begins at a multiple of four: 0 to 3.
#[inline]
pub const fn padding_len(len: usize) -> usize {
    len.wrapping_neg() & 3
}

/// `len` with its padding; `len` is at most 65,535.
#[inline]
const fn padded_len(len: usize) -> usize {
    (len + 3) & !3
}
