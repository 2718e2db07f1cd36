//! One's complement sums (RFC 1071).

/// A sum so far.
///
/// The sum of 16-bit words is the same, but for the order of its bytes, whichever order they are read in (RFC 1071,
/// section 2.B): they are read in the host's, and the result is turned round once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// Of what TCP and UDP sum in front of their own header: `addresses` (source and destination as they are in the IP
    /// header; 8 or 32 bytes), the protocol, and the length in bytes of the transport header and payload. The sum is
    /// the same for IPv4 (RFC 9293, section 3.1) and IPv6 (RFC 8200, section 8.1).
    #[inline]
    pub fn pseudo_header(addresses: &[u8], protocol: u8, len: u16) -> Self {
        Self::default().bytes(addresses).word(protocol.into()).word(len)
    }

    /// With these bytes, which are at an even distance from those before; an odd one at the end counts as followed by a
    /// zero.
    #[inline]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        // Eight sums that do not wait for each other; they carry into the upper halves, and so never overflow. This is
        // the form that the compiler turns into vector instructions of any width.
        let mut sums = [0u64; 8];
        let (chunks, rest) = bytes.as_chunks::<32>();
        for chunk in chunks {
            let (words, _) = chunk.as_chunks::<4>();
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let mut sum: u64 = sums.iter().sum();
        let (words, rest) = rest.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        sum += u64::from(u32::from_ne_bytes(last));
        Self(self.0 + (sum & 0xffff_ffff) + (sum >> 32))
    }

    /// With a word, as a number.
    #[inline]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// With all of another sum, whose bytes are at an even distance from those before.
    #[inline]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The sum itself, not complemented, as a number: what a packet with [`NEEDS_CSUM`](super::virtio::NEEDS_CSUM) has
    /// in the place of its checksum.
    #[inline]
    pub fn folded(self) -> u16 {
        let mut sum = self.0;
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }

    /// The checksum, as a number.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }

    /// The checksum of a UDP datagram, where 0 would say that there is none (RFC 768).
    #[inline]
    pub fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

/// The checksum after a word that it covers has changed (RFC 1624, equation 3). All are numbers, read most significant
/// byte first.
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::default().word(!checksum).word(!old).word(new).checksum()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, word by word.
    pub(crate) fn simple(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn is_that_of_the_rfc(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0..150usize) {
            prop_assert_eq!(Sum::default().bytes(&bytes).checksum(), simple(&bytes));
            let (a, b) = bytes.split_at((2 * at).min(bytes.len() & !1));
            prop_assert_eq!(Sum::default().bytes(a).bytes(b).checksum(), simple(&bytes));
        }

        #[test]
        fn an_update_is_a_new_sum(mut words in proptest::collection::vec(any::<u16>(), 2..20), new: u16) {
            // A header whose words are all zero does not exist, and is the one case where the two differ.
            words[0] |= 1;
            let sum = |words: &[u16]| words.iter().fold(Sum::default(), |sum, word| sum.word(*word)).checksum();
            let before = sum(&words);
            let old = std::mem::replace(&mut words[1], new);
            prop_assert_eq!(update(before, old, new), sum(&words));
        }
    }

    #[test]
    fn the_largest_packet_does_not_overflow() {
        let bytes = vec![0xff; 65_534];
        assert_eq!(
            Sum::default().bytes(&bytes).bytes(&bytes).word(0xffff).folded(),
            !simple(&[bytes.clone(), bytes].concat())
        );
    }
}
