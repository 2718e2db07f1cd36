//! Framing on TCP and TLS (RFC 8489 §6.2.2, RFC 8656 §12.5).

use core::fmt;

use crate::channel::{CHANNEL_HEADER_LEN, ChannelData, ChannelNumber};
use crate::header::{HEADER_LEN, MAGIC_COOKIE};
use crate::padded_len;
use crate::writer::MAX_MESSAGE_LEN;

/// Bytes of the longest frame, which is a message. A ChannelData has 65,540 bytes at most.
pub const MAX_FRAME_LEN: usize = MAX_MESSAGE_LEN;

const _: () = assert!(CHANNEL_HEADER_LEN + padded_len(0xFFFF) <= MAX_FRAME_LEN);

/// The result of [`split_frame`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split<'a> {
    /// A whole frame.
    Frame {
        /// The frame.
        frame: Frame<'a>,
        /// The length of the frame in bytes, with its padding. The next frame begins there.
        len: usize,
    },
    /// An incomplete frame. Call again with `needed` bytes, which is more than there are now and at most [`MAX_FRAME_LEN`]. The frame
    /// may be longer still.
    Incomplete {
        /// Bytes from the start of the frame.
        needed: usize,
    },
}

/// One frame of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The bytes of a STUN message, for [`Message::parse`](crate::Message::parse). If parsing fails, the caller can drop the frame and
    /// continue with the next one.
    Message(&'a [u8]),
    /// A ChannelData.
    ChannelData(ChannelData<'a>),
}

/// The stream is not STUN or TURN, or has lost its framing. No later frame can be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamError;

/// Splits the first frame off a stream's bytes. It keeps no state: the caller keeps unused bytes, and passes them again with those that
/// follow.
///
/// A TURN stream is framed until a ConnectionBind has succeeded. Then it carries the peer's bytes unframed (RFC 6062 §4.3).
///
/// # Errors
/// [`StreamError`] as soon as a byte shows that no frame begins here. The caller closes the connection.
pub fn split_frame(stream: &[u8]) -> Result<Split<'_>, StreamError> {
    let is_message = match stream.first() {
        None => return Ok(Split::Incomplete { needed: CHANNEL_HEADER_LEN }),
        Some(0..=0x3F) => true,
        Some(0x40..=0x7F) => false,
        Some(0x80..=0xFF) => return Err(StreamError),
    };
    let Some(&[a, b, l0, l1]) = stream.first_chunk() else {
        return Ok(Split::Incomplete { needed: CHANNEL_HEADER_LEN });
    };
    let length = usize::from(u16::from_be_bytes([l0, l1]));

    if is_message {
        let cookie = MAGIC_COOKIE.to_be_bytes();
        let received = stream.get(4..).unwrap_or_default().iter();
        if length % 4 != 0 || received.zip(&cookie).any(|(received, expected)| received != expected) {
            return Err(StreamError);
        }
        let len = HEADER_LEN + length;
        return Ok(match stream.get(..len) {
            Some(message) => Split::Frame { frame: Frame::Message(message), len },
            None => Split::Incomplete { needed: len },
        });
    }

    // On a stream the padding is mandatory, and not part of the data (RFC 8656 §12.5).
    let len = CHANNEL_HEADER_LEN + padded_len(length);
    let channel = ChannelNumber::new(u16::from_be_bytes([a, b])).ok_or(StreamError)?;
    Ok(match (stream.get(..len), stream.get(CHANNEL_HEADER_LEN..CHANNEL_HEADER_LEN + length)) {
        (Some(_), Some(data)) => Split::Frame { frame: Frame::ChannelData(ChannelData::new(channel, data)), len },
        (None, Some(_)) | (Some(_), None) | (None, None) => Split::Incomplete { needed: len },
    })
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("neither a STUN message nor ChannelData begins here")
    }
}

impl core::error::Error for StreamError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_belongs_to_the_frame_and_not_to_the_data() {
        let stream = [0x40, 0x00, 0, 1, 0xAA, 0xFF, 0xFF, 0xFF, 0x40, 0x01, 0, 0];
        let Ok(Split::Frame { frame: Frame::ChannelData(first), len }) = split_frame(&stream) else { panic!() };
        assert_eq!((first.data(), len), (&[0xAA][..], 8));
        let Ok(Split::Frame { frame: Frame::ChannelData(second), len }) = split_frame(&stream[len..]) else { panic!() };
        assert_eq!((second.channel().number(), second.data(), len), (0x4001, &[][..], 4));
        // The frame is not over before its padding is.
        assert_eq!(split_frame(&stream[..7]), Ok(Split::Incomplete { needed: 8 }));
    }

    #[test]
    fn frame_length_is_known_after_four_bytes() {
        for (start, needed) in [
            (&[][..], 4),
            (&[0x00, 0x01, 0xFF], 4),
            (&[0x00, 0x01, 0xFF, 0xFC], 65_552),
            (&[0x40, 0x00, 0xFF, 0xFF], 65_540),
            (&[0x00, 0x01, 0x00, 0x00, 0x21, 0x12], 20),
        ] {
            assert_eq!(split_frame(start), Ok(Split::Incomplete { needed }));
        }
    }

    #[test]
    fn lost_framing_is_an_error_at_once() {
        for start in [
            &[0x80][..],
            &[0x80, 0x00],
            &[0xFF; 30],
            &[0x00, 0x01, 0x00, 0x02],
            &[0x00, 0x01, 0x00, 0x00, 0x22],
            &[0x00, 0x01, 0x00, 0x00, 0x21, 0x12, 0xA4, 0x43],
        ] {
            assert_eq!(split_frame(start), Err(StreamError));
        }
    }
}
