/// The ECN field of the IP header (RFC 3168, section 5). Not-ECT is the absence of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ecn {
    /// ECN-capable transport, L4S (RFC 9331).
    Ect1 = 1,
    /// ECN-capable transport.
    Ect0 = 2,
    /// Congestion experienced.
    Ce = 3,
}

impl Ecn {
    /// Reads the two low bits of a type-of-service or traffic-class byte.
    pub fn from_bits(tos: u8) -> Option<Self> {
        match tos & 3 {
            1 => Some(Self::Ect1),
            2 => Some(Self::Ect0),
            3 => Some(Self::Ce),
            _ => None,
        }
    }
}
