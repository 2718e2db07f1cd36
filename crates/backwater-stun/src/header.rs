//! The first 20 bytes of every message (RFC 8489 §5).

use core::fmt;

/// Bytes in the header that every STUN message begins with.
pub const HEADER_LEN: usize = 20;

/// The value that tells STUN from other protocols on the same port (RFC 8489 §5).
pub const MAGIC_COOKIE: u32 = 0x2112_A442;

/// The 96 bits that pair a response with its request (RFC 8489 §5).
///
/// A client makes one for each request with [`random`](Self::random): an off-path attacker has to guess it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId(pub [u8; 12]);

impl TransactionId {
    /// Makes an id from random bytes that `fill` writes into the slice.
    ///
    /// RFC 8489 §5 wants a cryptographically secure generator. `fill` is the caller's, since this crate does no I/O:
    /// the `getrandom` crate's `fill`, or a closure around a generator.
    ///
    /// ```
    /// use backwater_stun::TransactionId;
    ///
    /// let id = TransactionId::random(getrandom::fill)?;
    /// # assert_ne!(id, TransactionId::random(getrandom::fill)?);
    /// # Ok::<(), getrandom::Error>(())
    /// ```
    ///
    /// # Errors
    /// The error of `fill`.
    pub fn random<E>(fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut id = [0; 12];
        fill(&mut id)?;
        Ok(Self(id))
    }
}

/// The class of a message (RFC 8489 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A request, which expects a response.
    Request,
    /// An indication, which expects none.
    Indication,
    /// The response to a request that was carried out.
    SuccessResponse,
    /// The response to a request that was refused, with an ERROR-CODE.
    ErrorResponse,
}

/// The method of a message: a number of 12 bits (RFC 8489 §18.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Method(u16);

macro_rules! methods {
    ($($(#[$doc:meta])* $constant:ident = $number:literal, $name:literal;)*) => {
        impl Method {
            $($(#[$doc])* pub const $constant: Self = Self($number);)*

            /// Every method that the registry names.
            pub const REGISTERED: &'static [Self] = &[$(Self::$constant),*];

            /// The name in the registry, or `None` for a number that has none.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some($name),)*
                    _ => None,
                }
            }
        }
    };
}

methods! {
    /// Asks which address a request came from (RFC 8489 §3).
    BINDING = 0x001, "Binding";
    /// Asks a TURN server for a relayed transport address (RFC 8656 §7).
    ALLOCATE = 0x003, "Allocate";
    /// Prolongs or ends an allocation (RFC 8656 §8).
    REFRESH = 0x004, "Refresh";
    /// Indication: the client has data for a peer (RFC 8656 §11.1).
    SEND = 0x006, "Send";
    /// Indication: a peer has data for the client (RFC 8656 §11.3).
    DATA = 0x007, "Data";
    /// Lets peers reach the allocation (RFC 8656 §10).
    CREATE_PERMISSION = 0x008, "CreatePermission";
    /// Gives a peer a channel number (RFC 8656 §12).
    CHANNEL_BIND = 0x009, "ChannelBind";
    /// Asks for a TCP connection to a peer (RFC 6062 §4.3).
    CONNECT = 0x00A, "Connect";
    /// Joins a client's data connection to a peer's (RFC 6062 §4.3).
    CONNECTION_BIND = 0x00B, "ConnectionBind";
    /// Indication: a peer has connected (RFC 6062 §4.4).
    CONNECTION_ATTEMPT = 0x00C, "ConnectionAttempt";
}

impl Method {
    /// Returns the method with this number; `None` above `0xFFF`, which the header cannot hold.
    pub const fn new(number: u16) -> Option<Self> {
        if number <= 0xFFF { Some(Self(number)) } else { None }
    }

    /// Returns the number, at most `0xFFF`.
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "{:#05x}", self.0),
        }
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Request => "request",
            Self::Indication => "indication",
            Self::SuccessResponse => "success response",
            Self::ErrorResponse => "error response",
        })
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The class and method bits are interleaved: `00 MMMMM C MMM C MMMM` (RFC 8489 §5, figure 3).
#[inline]
pub(crate) const fn encode_type(class: Class, method: Method) -> u16 {
    let class = match class {
        Class::Request => 0x0000,
        Class::Indication => 0x0010,
        Class::SuccessResponse => 0x0100,
        Class::ErrorResponse => 0x0110,
    };
    let m = method.0;
    class | (m & 0x000F) | (m & 0x0070) << 1 | (m & 0x0F80) << 2
}

#[inline]
pub(crate) const fn decode_class(bits: u16) -> Class {
    match (bits & 0x0100 != 0, bits & 0x0010 != 0) {
        (false, false) => Class::Request,
        (false, true) => Class::Indication,
        (true, false) => Class::SuccessResponse,
        (true, true) => Class::ErrorResponse,
    }
}

#[inline]
pub(crate) const fn decode_method(bits: u16) -> Method {
    Method((bits & 0x000F) | (bits & 0x00E0) >> 1 | (bits & 0x3E00) >> 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_id_is_what_fill_writes_or_its_error() {
        let filled = TransactionId::random(|bytes| {
            assert_eq!(bytes.len(), 12);
            bytes.fill(7);
            Ok::<_, &str>(())
        });
        assert_eq!(filled, Ok(TransactionId([7; 12])));
        assert_eq!(TransactionId::random(|_| Err("no entropy")), Err("no entropy"));
    }

    #[test]
    fn every_class_and_method_round_trips() {
        let classes = [Class::Request, Class::Indication, Class::SuccessResponse, Class::ErrorResponse];
        for class in classes {
            for number in 0..=0xFFF {
                let method = Method::new(number).unwrap();
                let bits = encode_type(class, method);
                assert_eq!(bits & 0xC000, 0);
                assert_eq!((decode_class(bits), decode_method(bits)), (class, method));
            }
        }
        assert_eq!(Method::new(0x1000), None);
    }

    #[test]
    fn well_known_message_types_have_their_numbers() {
        assert_eq!(encode_type(Class::Request, Method::BINDING), 0x0001);
        assert_eq!(encode_type(Class::SuccessResponse, Method::BINDING), 0x0101);
        assert_eq!(encode_type(Class::ErrorResponse, Method::ALLOCATE), 0x0113);
        assert_eq!(encode_type(Class::Indication, Method::DATA), 0x0017);
    }
}
