//! FINGERPRINT (RFC 8489 §14.7): CRC-32 as in ITU V.42, XORed so that it differs from a payload's own.

const XOR: u32 = 0x5354_554E;

/// Bytes taken at a time. Sixteen tables of 1 KiB fit into any first-level cache beside the message.
const SLICES: usize = 16;

static TABLES: [[u32; 256]; SLICES] = tables();

/// The value of a FINGERPRINT that follows `message`, when the header's length is to read `length`.
pub(crate) fn fingerprint(message: &[u8], length: u16) -> u32 {
    let [high, low] = length.to_be_bytes();
    let crc = match message.split_first_chunk::<SLICES>() {
        Some((first, rest)) => {
            let mut first = *first;
            first[2] = high;
            first[3] = low;
            let (blocks, tail) = rest.as_chunks::<SLICES>();
            let crc = blocks.iter().fold(slice(!0, &first), slice);
            tail.iter().fold(crc, byte)
        }
        // No message is so short; the answer is then of no use, but there is one.
        None => message.iter().fold(!0, byte),
    };
    !crc ^ XOR
}

fn byte(crc: u32, byte: &u8) -> u32 {
    TABLES[0][usize::from(crc as u8 ^ byte)] ^ (crc >> 8)
}

fn slice(crc: u32, block: &[u8; SLICES]) -> u32 {
    let mut block = *block;
    for (byte, state) in block.iter_mut().zip(crc.to_le_bytes()) {
        *byte ^= state;
    }
    block.iter().zip(TABLES.iter().rev()).fold(0, |crc, (&byte, table)| crc ^ table[usize::from(byte)])
}

const fn tables() -> [[u32; 256]; SLICES] {
    let mut tables = [[0; 256]; SLICES];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
            bit += 1;
        }
        tables[0][i] = crc;
        i += 1;
    }
    let mut n = 1;
    while n < SLICES {
        let mut i = 0;
        while i < 256 {
            let previous = tables[n - 1][i];
            tables[n][i] = (previous >> 8) ^ tables[0][(previous & 0xFF) as usize];
            i += 1;
        }
        n += 1;
    }
    tables
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
    fn the_check_value_of_the_catalogue() {
        assert_eq!(fingerprint(b"123456789", 0) ^ XOR, 0xCBF4_3926);
    }

    #[test]
    fn slices_agree_with_the_definition_at_every_length() {
        let mut message: std::vec::Vec<u8> = (0..200_u32).map(|i| (i * 37 + 11) as u8).collect();
        message[2..4].copy_from_slice(&[0x12, 0x34]);
        for end in 0..message.len() {
            assert_eq!(fingerprint(&message[..end], 0x1234), slow(&message[..end]), "{end}");
        }
    }
}
