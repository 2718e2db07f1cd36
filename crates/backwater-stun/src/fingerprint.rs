//! FINGERPRINT (RFC 8489 §14.7): CRC-32 as in ITU V.42, XORed so that it differs from the payload's own CRC.

const XOR: u32 = 0x5354_554E;

/// Computes the FINGERPRINT that follows `message`, whose header already has its final length: FINGERPRINT is last,
/// so that the length ends where the message does.
// Not inlined: CRC-32 chooses its instructions at run time.
#[inline(never)]
pub(crate) fn fingerprint(message: &[u8]) -> u32 {
    crc32fast::hash(message) ^ XOR
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, a bit at a time.
    fn slow(message: &[u8]) -> u32 {
        let mut crc = !0_u32;
        for &byte in message {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
            }
        }
        !crc ^ XOR
    }

    #[test]
    fn fingerprint_is_crc32_at_every_length() {
        assert_eq!(slow(b"123456789") ^ XOR, 0xCBF4_3926);
        let message: std::vec::Vec<u8> = (0..200_u32).map(|i| (i * 37 + 11) as u8).collect();
        for end in 0..message.len() {
            assert_eq!(fingerprint(&message[..end]), slow(&message[..end]), "{end}");
        }
    }
}
