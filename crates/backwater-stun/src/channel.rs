//! ChannelData (RFC 8656 §12.4): a header of four bytes in front of the data.

use core::fmt;

/// Bytes of a ChannelData header.
pub const CHANNEL_HEADER_LEN: usize = 4;

/// A channel number, `0x4000..=0x7FFF`. As an attribute: CHANNEL-NUMBER.
///
/// RFC 8656 §12 has clients bind `0x4000..=0x4FFF` and reserves the rest, which RFC 5766 §11 allowed and clients in
/// wide use still bind (coturn's client picks at random). A server on a port of its own can accept both. A client should bind
/// up to [`MAX`](Self::MAX).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelNumber(u16);

/// A view of one ChannelData message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelData<'a> {
    channel: ChannelNumber,
    data: &'a [u8],
}

/// Why bytes are not a ChannelData message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChannelDataError {
    /// The datagram is shorter than the header, or than the length in the header says.
    Truncated,
    /// The channel is not in `0x4000..=0x7FFF`: another protocol.
    Channel,
}

impl ChannelNumber {
    /// The lowest channel.
    pub const MIN: Self = Self(0x4000);
    /// The highest channel that RFC 8656 has clients bind.
    pub const MAX: Self = Self(0x4FFF);

    /// Returns the channel with this number; `None` outside of `0x4000..=0x7FFF`.
    pub const fn new(number: u16) -> Option<Self> {
        if number >> 14 == 1 { Some(Self(number)) } else { None }
    }

    /// Returns the number.
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl<'a> ChannelData<'a> {
    /// Parses a datagram. Bytes after the data are ignored: over UDP a sender may add padding (RFC 8656 §12.5).
    ///
    /// # Errors
    /// See [`ChannelDataError`].
    #[inline]
    pub const fn parse(datagram: &'a [u8]) -> Result<Self, ChannelDataError> {
        let Some((&[c0, c1, l0, l1], rest)) = datagram.split_first_chunk::<CHANNEL_HEADER_LEN>() else {
            return Err(ChannelDataError::Truncated);
        };
        let Some(channel) = ChannelNumber::new(u16::from_be_bytes([c0, c1])) else {
            return Err(ChannelDataError::Channel);
        };
        let Some((data, _)) = rest.split_at_checked(u16::from_be_bytes([l0, l1]) as usize) else {
            return Err(ChannelDataError::Truncated);
        };
        Ok(Self { channel, data })
    }

    pub(crate) const fn new(channel: ChannelNumber, data: &'a [u8]) -> Self {
        Self { channel, data }
    }

    /// Returns the header of `len` bytes of data. The padding on streams is
    /// [`padding_len`](crate::padding_len)`(len)` zero bytes, which `len` does not count.
    #[inline]
    pub const fn header(channel: ChannelNumber, len: u16) -> [u8; CHANNEL_HEADER_LEN] {
        let [c0, c1] = channel.0.to_be_bytes();
        let [l0, l1] = len.to_be_bytes();
        [c0, c1, l0, l1]
    }

    /// Returns the channel.
    #[inline]
    pub const fn channel(&self) -> ChannelNumber {
        self.channel
    }

    /// Returns the data, without padding. It begins [`CHANNEL_HEADER_LEN`] bytes into the datagram.
    #[inline]
    pub const fn data(&self) -> &'a [u8] {
        self.data
    }
}

impl fmt::Display for ChannelNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

impl fmt::Debug for ChannelNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ChannelDataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the ChannelData is longer than the bytes at hand",
            Self::Channel => "not a channel number",
        })
    }
}

impl core::error::Error for ChannelDataError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_optional_on_datagrams() {
        let channel = ChannelNumber::new(0x4001).unwrap();
        let mut bytes = [0xEE; 40];
        bytes[..4].copy_from_slice(&ChannelData::header(channel, 5));
        // The length field decides; bytes after the padding are ignored.
        for len in 9..=40 {
            let view = ChannelData::parse(&bytes[..len]).unwrap();
            assert_eq!((view.channel(), view.data()), (channel, &[0xEE; 5][..]));
        }
        assert_eq!(ChannelData::parse(&bytes[..8]), Err(ChannelDataError::Truncated));
        assert_eq!(ChannelData::parse(&bytes[..3]), Err(ChannelDataError::Truncated));
        assert_eq!(ChannelData::parse(&[0x40, 0, 0, 0]).unwrap().data(), b"");
    }

    #[test]
    fn channel_numbers_of_other_protocols_are_refused() {
        // RTP's first byte is a channel's by the top two bits alone.
        for number in [0x0000, 0x3FFF, 0x8000, 0xFFFF_u16] {
            let [a, b] = number.to_be_bytes();
            assert_eq!(ChannelData::parse(&[a, b, 0, 0]), Err(ChannelDataError::Channel));
            assert_eq!(ChannelNumber::new(number), None);
        }
        assert!(ChannelNumber::new(0x4000).is_some() && ChannelNumber::new(0x7FFF).is_some());
    }
}
