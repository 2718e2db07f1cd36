//! Framing on TCP and TLS: where one message ends and the next begins (RFC 8489 §6.2.2, RFC 8656 §12.5).

use core::fmt;

use crate::channel::{CHANNEL_HEADER_LEN, ChannelData, ChannelNumber};
use crate::header::{HEADER_LEN, MAGIC_COOKIE};
use crate::padded_len;
use crate::writer::MAX_MESSAGE_LEN;

/// The longest frame, in bytes: a message, whose header is the longer one. A ChannelData takes 65,540 at most.
pub const MAX_FRAME_LEN: usize = MAX_MESSAGE_LEN;

const _: () = assert!(CHANNEL_HEADER_LEN + padded_len(0xFFFF) <= MAX_FRAME_LEN);

/// What a stream's bytes begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split<'a> {
    /// A whole frame.
    Frame {
        /// What it is.
        frame: Frame<'a>,
        /// How many bytes it takes up, padding included: where the next frame begins.
        len: usize,
    },
    /// The beginning of a frame, or nothing yet. Ask again when there are `needed` bytes, at least one more than
    /// there are and at most [`MAX_FRAME_LEN`]. The frame may turn out to be longer.
    Incomplete {
        /// Bytes from the start of the frame.
        needed: usize,
    },
}

/// One frame of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The bytes of a STUN message, for [`Message::parse`](crate::Message::parse). Where that fails, the frame can be
    /// dropped and the stream goes on.
    Message(&'a [u8]),
    /// A ChannelData.
    ChannelData(ChannelData<'a>),
}

/// The stream is not, or is no longer, STUN and TURN: no frame can be found in it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamError;

/// Splits the first frame off a stream's bytes. It remembers nothing: keep the bytes that it does not use, and pass
/// them again with those that follow.
///
/// A TURN stream is framed like this until a ConnectionBind has succeeded; then it carries the peer's bytes as they
/// are (RFC 6062 §4.3).
///
/// # Errors
/// [`StreamError`] as soon as a byte shows that no frame begins here. Close the connection.
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

    // Over a stream the padding is mandatory, and no part of the data (RFC 8656 §12.5).
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
