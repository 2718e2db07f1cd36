//! The registry, once: every attribute's number, name, length rule and layout.

use core::net::SocketAddr;

use super::structured::*;
use super::{
    AddressFamily, Attribute, AttributeError, AttributeErrorKind, AttributeType, ChannelNumber, LengthRule,
    RawAttribute, TransactionId, codec,
};

/// One line for each attribute: `layout Type(value), CONSTANT = number "NAME", least..=most bytes (most written)`.
/// The layout is a module of `codec`, or `structured` for a type of `structured.rs` that lays itself out.
macro_rules! attributes {
    ($(
        $(#[$doc:meta])*
        $layout:ident $type:ident $(<$lt:lifetime>)? $(($inner:ty))?,
        $constant:ident = $number:literal $name:literal, $min:literal..=$max:literal $(($written:literal))?;
    )*) => {
        impl AttributeType {
            $(
                #[doc = concat!("`", $name, "`: [`", stringify!($type), "`].")]
                pub const $constant: Self = Self($number);
            )*

            /// Every attribute that this crate has a type for.
            pub const REGISTERED: &'static [Self] = &[$(Self::$constant),*];

            /// The name in the registry, or `None` for a number that this crate has no type for.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$constant => Some($name),)*
                    _ => None,
                }
            }

            /// How long the value may be, or `None` for a number that this crate has no type for.
            pub const fn length_rule(self) -> Option<LengthRule> {
                match self {
                    $(Self::$constant => Some(attributes!(@rule $min $max $($written)?)),)*
                    _ => None,
                }
            }
        }

        /// An attribute of any type, for code that treats all alike: a decoder, a log.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        #[allow(missing_docs)] // Each is documented at its type.
        pub enum AnyAttribute<'a> {
            $($type($type $(<$lt>)?),)*
            /// One that this crate has no type for.
            Unknown(RawAttribute<'a>),
        }

        impl<'a> AnyAttribute<'a> {
            /// Reads an attribute of the message with this transaction id.
            ///
            /// # Errors
            /// What is wrong with it. One without a type here is no error.
            pub fn decode(raw: RawAttribute<'a>, transaction_id: &TransactionId) -> Result<Self, AttributeError> {
                match raw.attribute_type {
                    $(AttributeType::$constant => raw.decode(transaction_id).map(Self::$type),)*
                    _ => Ok(Self::Unknown(raw)),
                }
            }

            /// The length of the value in bytes, without its padding.
            pub fn value_len(&self) -> usize {
                match self {
                    $(Self::$type(attribute) => attribute.value_len(),)*
                    Self::Unknown(raw) => raw.value.len(),
                }
            }

            /// Writes the value into `out`, which is [`value_len`](Self::value_len) bytes long.
            ///
            /// # Errors
            /// What must not be written, as [`Attribute::encode`].
            pub fn encode(&self, transaction_id: &TransactionId, out: &mut [u8]) -> Result<(), AttributeErrorKind> {
                match self {
                    $(Self::$type(attribute) => attribute.encode(transaction_id, out),)*
                    Self::Unknown(raw) => codec::put(out, raw.value),
                }
            }

            #[cfg(test)]
            pub(crate) fn push_to(&self, writer: &mut crate::Writer<'_>) -> Result<(), crate::WriteError> {
                match self {
                    $(Self::$type(attribute) => writer.push(attribute),)*
                    Self::Unknown(_) => unreachable!("the writer has no way to write it"),
                }
            }
        }

        $(attributes! {
            @type $layout $type $(<$lt>)? $(($inner))?,
            $constant, attributes!(@rule $min $max $($written)?),
            {
                $(#[$doc])*
                #[doc = concat!("\n\n", $name, ", ", stringify!($number), ", ", $min, " to ", $max, " bytes.")]
            }
        })*
    };

    (@rule $min:literal $max:literal) => {
        LengthRule { min: $min, max: $max, max_written: $max }
    };
    (@rule $min:literal $max:literal $written:literal) => {
        LengthRule { min: $min, max: $max, max_written: $written }
    };

    (@type flag $type:ident, $constant:ident, $rule:expr, { $(#[$doc:meta])* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $type;

        attributes!(@impl 'a $type, $constant, $rule,
            |value, id| codec::flag::decode(value, id).map(|()| Self),
            |_this| codec::flag::value_len(&()),
            |_this, id, out| codec::flag::encode(&(), id, out));
    };
    (@type structured $type:ident $(<$lt:lifetime>)?, $constant:ident, $rule:expr, { $(#[$doc:meta])* }) => {
        attributes!(@impl 'a $type $(<$lt>)?, $constant, $rule,
            |value, id| Self::read(value, id),
            |this| this.len(),
            |this, id, out| this.write(id, out));
    };
    (@type $layout:ident $type:ident $(<$lt:lifetime>)? ($inner:ty), $constant:ident, $rule:expr,
        { $(#[$doc:meta])* }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $type $(<$lt>)? (pub $inner);

        attributes!(@impl 'a $type $(<$lt>)?, $constant, $rule,
            |value, id| codec::$layout::decode(value, id).map(Self),
            |this| codec::$layout::value_len(&this.0),
            |this, id, out| codec::$layout::encode(&this.0, id, out));
    };

    (@impl $any:lifetime $type:ident, $($rest:tt)*) => {
        attributes!(@body $any $type, $($rest)*);
    };
    (@impl $any:lifetime $type:ident <$lt:lifetime>, $($rest:tt)*) => {
        attributes!(@body $lt $type<$lt>, $($rest)*);
    };
    (@body $lt:lifetime $type:ty, $constant:ident, $rule:expr,
        |$value:ident, $id:ident| $decode:expr,
        |$this:ident| $len:expr,
        |$this2:ident, $id2:ident, $out:ident| $encode:expr
    ) => {
        impl<$lt> Attribute<$lt> for $type {
            const TYPE: AttributeType = AttributeType::$constant;
            const LENGTH: LengthRule = $rule;

            #[inline]
            fn decode($value: &$lt [u8], $id: &TransactionId) -> Result<Self, AttributeErrorKind> {
                $decode
            }
            #[inline]
            fn value_len(&self) -> usize {
                let $this = self;
                $len
            }
            #[inline]
            fn encode(&self, $id2: &TransactionId, $out: &mut [u8]) -> Result<(), AttributeErrorKind> {
                let $this2 = self;
                $encode
            }
        }
    };
}

attributes! {
    // Comprehension-required.

    /// The client's address as the server saw it, in the clear, for RFC 3489's clients (RFC 8489 §14.1).
    address MappedAddress(SocketAddr), MAPPED_ADDRESS = 0x0001 "MAPPED-ADDRESS", 8..=20;
    /// Asks for an answer from another address or port (RFC 5780 §7.2).
    structured ChangeRequest, CHANGE_REQUEST = 0x0003 "CHANGE-REQUEST", 4..=4;
    /// Whose credential the message integrity was made with (RFC 8489 §14.3).
    text Username<'a>(&'a str), USERNAME = 0x0006 "USERNAME", 0..=763 (509);
    /// HMAC-SHA1 over what comes before it (RFC 8489 §14.5).
    array MessageIntegrity([u8; 20]), MESSAGE_INTEGRITY = 0x0008 "MESSAGE-INTEGRITY", 20..=20;
    /// Why a request was refused (RFC 8489 §14.8).
    structured ErrorCode<'a>, ERROR_CODE = 0x0009 "ERROR-CODE", 4..=767 (513);
    /// What the server did not understand, in a response with 420 (RFC 8489 §14.13).
    structured UnknownAttributes<'a>, UNKNOWN_ATTRIBUTES = 0x000A "UNKNOWN-ATTRIBUTES", 0..=65532;
    /// The channel to bind (RFC 8656 §18.1).
    structured ChannelNumber, CHANNEL_NUMBER = 0x000C "CHANNEL-NUMBER", 4..=4;
    /// How long an allocation lives without a refresh, in seconds (RFC 8656 §18.2).
    int32 Lifetime(u32), LIFETIME = 0x000D "LIFETIME", 4..=4;
    /// A peer's address (RFC 8656 §18.3).
    xor_address XorPeerAddress(SocketAddr), XOR_PEER_ADDRESS = 0x0012 "XOR-PEER-ADDRESS", 8..=20;
    /// The payload of a Send or Data indication (RFC 8656 §18.4).
    bytes Data<'a>(&'a [u8]), DATA = 0x0013 "DATA", 0..=65528;
    /// The name under which the server knows its users (RFC 8489 §14.9).
    text Realm<'a>(&'a str), REALM = 0x0014 "REALM", 0..=763;
    /// What the server wants to see again, as proof that a request is recent (RFC 8489 §14.10).
    ///
    /// Bytes, because a client has to give back whatever it got.
    bytes Nonce<'a>(&'a [u8]), NONCE = 0x0015 "NONCE", 0..=763;
    /// The address that the server relays for the client (RFC 8656 §18.5).
    xor_address XorRelayedAddress(SocketAddr), XOR_RELAYED_ADDRESS = 0x0016 "XOR-RELAYED-ADDRESS", 8..=20;
    /// The family of the relayed transport address that is asked for (RFC 8656 §18.6).
    family RequestedAddressFamily(AddressFamily), REQUESTED_ADDRESS_FAMILY = 0x0017 "REQUESTED-ADDRESS-FAMILY", 4..=4;
    /// Asks for an even port, and perhaps for the next one too (RFC 8656 §18.7).
    structured EvenPort, EVEN_PORT = 0x0018 "EVEN-PORT", 1..=1;
    /// The transport between server and peers, an IP protocol number (RFC 8656 §18.8).
    byte_first RequestedTransport(u8), REQUESTED_TRANSPORT = 0x0019 "REQUESTED-TRANSPORT", 4..=4;
    /// Sets the DF bit towards the peer (RFC 8656 §18.9).
    flag DontFragment, DONT_FRAGMENT = 0x001A "DONT-FRAGMENT", 0..=0;
    /// A token from an authorization server, opaque to the client (RFC 7635 §6.2).
    bytes AccessToken<'a>(&'a [u8]), ACCESS_TOKEN = 0x001B "ACCESS-TOKEN", 0..=65532;
    /// HMAC-SHA256 over what comes before it, perhaps truncated (RFC 8489 §14.6).
    bytes MessageIntegritySha256<'a>(&'a [u8]),
        MESSAGE_INTEGRITY_SHA256 = 0x001C "MESSAGE-INTEGRITY-SHA256", 16..=32;
    /// The algorithm that the client has chosen (RFC 8489 §14.12).
    structured PasswordAlgorithm<'a>, PASSWORD_ALGORITHM = 0x001D "PASSWORD-ALGORITHM", 4..=65532;
    /// SHA-256 of `username:realm`, in place of USERNAME (RFC 8489 §14.4).
    array Userhash([u8; 32]), USERHASH = 0x001E "USERHASH", 32..=32;
    /// The client's address as the server saw it (RFC 8489 §14.2).
    xor_address XorMappedAddress(SocketAddr), XOR_MAPPED_ADDRESS = 0x0020 "XOR-MAPPED-ADDRESS", 8..=20;
    /// Names a port that the server has set aside (RFC 8656 §18.10).
    array ReservationToken([u8; 8]), RESERVATION_TOKEN = 0x0022 "RESERVATION-TOKEN", 8..=8;
    /// The priority that a peer-reflexive candidate would get (RFC 8445 §7.1.1).
    int32 Priority(u32), PRIORITY = 0x0024 "PRIORITY", 4..=4;
    /// The controlling agent nominates this pair (RFC 8445 §7.1.2).
    flag UseCandidate, USE_CANDIDATE = 0x0025 "USE-CANDIDATE", 0..=0;
    /// Fills a message up, to see whether fragments pass (RFC 5780 §7.6).
    bytes Padding<'a>(&'a [u8]), PADDING = 0x0026 "PADDING", 0..=65532;
    /// The port to answer to (RFC 5780 §7.5).
    short_first ResponsePort(u16), RESPONSE_PORT = 0x0027 "RESPONSE-PORT", 2..=4;
    /// Names a TCP connection to a peer (RFC 6062 §6.2.1).
    int32 ConnectionId(u32), CONNECTION_ID = 0x002A "CONNECTION-ID", 4..=4;

    // Comprehension-optional.

    /// Asks for a second relayed transport address, of this family (RFC 8656 §18.11).
    family AdditionalAddressFamily(AddressFamily), ADDITIONAL_ADDRESS_FAMILY = 0x8000 "ADDITIONAL-ADDRESS-FAMILY", 4..=4;
    /// Why one of two families could not be allocated (RFC 8656 §18.12).
    structured AddressErrorCode<'a>, ADDRESS_ERROR_CODE = 0x8001 "ADDRESS-ERROR-CODE", 4..=767 (513);
    /// What the server can make long-term keys with (RFC 8489 §14.11).
    structured PasswordAlgorithms<'a>, PASSWORD_ALGORITHMS = 0x8002 "PASSWORD-ALGORITHMS", 0..=65532;
    /// The name that the alternate server's certificate has to be for (RFC 8489 §14.16).
    text AlternateDomain<'a>(&'a str), ALTERNATE_DOMAIN = 0x8003 "ALTERNATE-DOMAIN", 0..=255;
    /// An ICMP packet that a datagram to the peer gave rise to (RFC 8656 §18.13).
    structured Icmp, ICMP = 0x8004 "ICMP", 8..=8;
    /// The sender's software, for people to read (RFC 8489 §14.14).
    phrase Software<'a>(&'a str), SOFTWARE = 0x8022 "SOFTWARE", 0..=763 (509);
    /// A server to try instead (RFC 8489 §14.15).
    address AlternateServer(SocketAddr), ALTERNATE_SERVER = 0x8023 "ALTERNATE-SERVER", 8..=20;
    /// How often the request and its response were sent (RFC 7982 §3).
    structured TransactionTransmitCounter,
        TRANSACTION_TRANSMIT_COUNTER = 0x8025 "TRANSACTION-TRANSMIT-COUNTER", 4..=4;
    /// How long an answer may be cached, in seconds (RFC 5780).
    int32 CacheTimeout(u32), CACHE_TIMEOUT = 0x8027 "CACHE-TIMEOUT", 4..=4;
    /// CRC-32 of what comes before it, XORed with `0x5354554E` (RFC 8489 §14.7).
    int32 Fingerprint(u32), FINGERPRINT = 0x8028 "FINGERPRINT", 4..=4;
    /// The sender is the controlled agent, with this tie breaker (RFC 8445 §7.1.3).
    int64 IceControlled(u64), ICE_CONTROLLED = 0x8029 "ICE-CONTROLLED", 8..=8;
    /// The sender is the controlling agent, with this tie breaker (RFC 8445 §7.1.3).
    int64 IceControlling(u64), ICE_CONTROLLING = 0x802A "ICE-CONTROLLING", 8..=8;
    /// The address that the answer came from (RFC 5780 §7.3).
    address ResponseOrigin(SocketAddr), RESPONSE_ORIGIN = 0x802B "RESPONSE-ORIGIN", 8..=20;
    /// The address that an answer would come from if another were asked for (RFC 5780 §7.4).
    address OtherAddress(SocketAddr), OTHER_ADDRESS = 0x802C "OTHER-ADDRESS", 8..=20;
    /// What became of the ECN bits (RFC 6679 §7.2.2).
    structured EcnCheck, ECN_CHECK = 0x802D "ECN-CHECK", 4..=4;
    /// The server takes access tokens, from the authorization server of this name (RFC 7635 §6.1).
    text ThirdPartyAuthorization<'a>(&'a str),
        THIRD_PARTY_AUTHORIZATION = 0x802E "THIRD-PARTY-AUTHORIZATION", 0..=763;
    /// Lets a client move its allocation to another address; opaque to it (RFC 8016).
    bytes MobilityTicket<'a>(&'a [u8]), MOBILITY_TICKET = 0x8030 "MOBILITY-TICKET", 0..=65532;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_each_used_once() {
        let all = AttributeType::REGISTERED;
        assert_eq!(all.len(), 45);
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                assert!(a.0 < b.0, "{a} and {b} are not in order");
                assert_ne!(a.name(), b.name());
            }
        }
    }

    #[test]
    fn numbers_that_are_not_in_the_registry_have_no_name() {
        assert_eq!(AttributeType(0x7777).name(), None);
        assert_eq!(AttributeType(0x7777).length_rule(), None);
        assert_eq!(std::format!("{}", AttributeType(0x7777)), "0x7777");
    }
}
