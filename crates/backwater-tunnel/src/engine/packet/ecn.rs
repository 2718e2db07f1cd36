//! Explicit congestion notification across the tunnel (RFC 6040).

use backwater_udp::Ecn;

use super::checksum;

/// The ECN field of an IP packet, which is also that of the outer header when it is encapsulated (RFC 6040, section 4.1, normal
/// mode). `None`: not ECN-capable, or no IP packet.
#[inline]
pub fn of(packet: &[u8]) -> Option<Ecn> {
    let &[first, second] = packet.first_chunk()?;
    match first >> 4 {
        4 => Ecn::from_bits(second),
        6 => Ecn::from_bits(second >> 4),
        _ => None,
    }
}

/// Sets congestion experienced (CE) in a packet that is ECN-capable; another is left as it is.
pub fn mark(packet: &mut [u8]) {
    if of(packet).is_some() {
        set(packet, Ecn::Ce);
    }
}

/// Brings what the path did to the outer header into the packet that was inside (RFC 6040, section 4.2). `false`: it is to be
/// dropped, since the path met congestion and its receiver could not be told otherwise.
#[must_use]
pub fn decapsulate(packet: &mut [u8], outer: Option<Ecn>) -> bool {
    match (of(packet), outer) {
        (None, Some(Ecn::Ce)) => return false,
        (Some(Ecn::Ect0), Some(outer @ (Ecn::Ect1 | Ecn::Ce))) => set(packet, outer),
        (Some(Ecn::Ect1), Some(Ecn::Ce)) => set(packet, Ecn::Ce),
        (None, None | Some(Ecn::Ect0 | Ecn::Ect1))
        | (Some(Ecn::Ect0), None | Some(Ecn::Ect0))
        | (Some(Ecn::Ect1), None | Some(Ecn::Ect0 | Ecn::Ect1))
        | (Some(Ecn::Ce), _) => {}
    }
    true
}

/// Of a packet that is IPv4 or IPv6.
fn set(packet: &mut [u8], ecn: Ecn) {
    let Some([first, second, ..]) = packet.first_chunk_mut::<2>() else { return };
    if *first >> 4 == 6 {
        *second = *second & !(3 << 4) | (ecn as u8) << 4;
        return;
    }
    let old = u16::from_be_bytes([*first, *second]);
    *second = *second & !3 | ecn as u8;
    let new = u16::from_be_bytes([*first, *second]);
    if let Some([.., high, low]) = packet.first_chunk_mut::<12>() {
        let sum = checksum::update(u16::from_be_bytes([*high, *low]), old, new);
        [*high, *low] = sum.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::{super::checksum::Sum, *};

    const FIELDS: [Option<Ecn>; 4] = [None, Some(Ecn::Ect0), Some(Ecn::Ect1), Some(Ecn::Ce)];

    fn bits(ecn: Option<Ecn>) -> u8 {
        ecn.map_or(0, |ecn| ecn as u8)
    }

    /// Headers with this field and every other bit of the traffic class set.
    fn packets(ecn: Option<Ecn>) -> [Vec<u8>; 2] {
        let mut v4 = vec![0x45, 0xfc | bits(ecn), 0, 20, 1, 2, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let sum = Sum::default().bytes(&v4).checksum();
        v4[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut v6 = vec![0; 40];
        (v6[0], v6[1], v6[6]) = (0x6f, 0xcf | bits(ecn) << 4, 59);
        [v4, v6]
    }

    #[test]
    fn the_table_of_rfc_6040() {
        use Ecn::{Ce, Ect0, Ect1};
        // Figure 4: a row for each inner field; columns: outer Not-ECT, ECT(0), ECT(1), CE. The last of row one is a drop.
        let table = [
            [None, None, None, None],
            [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)],
            [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)],
            [Some(Ce); 4],
        ];
        for (inner, row) in FIELDS.into_iter().zip(table) {
            for (outer, expected) in FIELDS.into_iter().zip(row) {
                for (mut packet, wanted) in packets(inner).into_iter().zip(packets(expected)) {
                    let kept = decapsulate(&mut packet, outer);
                    assert_eq!(kept, (inner, outer) != (None, Some(Ce)), "{inner:?} in {outer:?}");
                    assert_eq!(packet, wanted, "{inner:?} in {outer:?}");
                }
            }
        }
    }

    #[test]
    fn the_outer_field_is_the_inner_one() {
        for field in FIELDS {
            assert!(packets(field).iter().all(|packet| of(packet) == field));
        }
    }

    #[test]
    fn marks_what_is_capable() {
        for field in FIELDS {
            for (mut packet, wanted) in packets(field).into_iter().zip(packets(field.map(|_| Ecn::Ce))) {
                mark(&mut packet);
                assert_eq!(packet, wanted);
            }
        }
    }

    #[test]
    fn no_bytes_panic() {
        for len in 0..24 {
            for first in 0..=255 {
                for outer in FIELDS {
                    let mut packet = vec![first; len];
                    mark(&mut packet);
                    let _ = decapsulate(&mut packet, outer);
                }
            }
        }
    }
}
