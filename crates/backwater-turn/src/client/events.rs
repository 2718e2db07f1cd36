//! What a client tells its caller.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use backwater_stun::{AddressFamily, ChannelNumber, Code, Icmp, Method};

use crate::{PerFamily, unread::Unread};

/// Unread events that are kept. A caller that reads them after each call never has as many.
pub const MAX_EVENTS: usize = 256;

/// Something that happened to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The server has made an allocation. Channels and permissions follow.
    Allocated(Allocated),
    /// The allocation has moved to the client's new address (RFC 8016). Its relayed addresses are the same.
    Moved,
    /// The server accepts data from and to this address. Not repeated when the permission is refreshed.
    Permitted(IpAddr),
    /// The channel can be used. Not repeated when it is refreshed.
    Bound {
        /// The peer.
        peer: SocketAddr,
        /// The channel.
        channel: ChannelNumber,
    },
    /// The server refuses a permission or a channel. 403 and 443 are final until the caller asks again; for 486, 500 and 508 the client
    /// asks again after a minute.
    PeerRefused {
        /// The peer. Its port is 0 for a permission.
        peer: SocketAddr,
        /// The error code.
        code: Code,
        /// The server's reason phrase.
        reason: String,
    },
    /// The allocation is gone. The client makes another one, with other relayed addresses.
    Lost(Loss),
    /// The server has refused the Allocate request for now. The client asks again by itself.
    Refused {
        /// The error code.
        code: Code,
        /// The server's reason phrase.
        reason: String,
        /// How long the client waits.
        retry_in: Duration,
    },
    /// A request had no response. The client asks again by itself.
    NoResponse(Method),
    /// The client has stopped, and says why. An allocation that it has stays until it expires.
    /// [`set_credential`](super::Client::set_credential) starts the client again.
    Failed(Failure),
    /// The server names another one, which the client turns to (RFC 8489 §10). Over a stream, the caller connects to it and calls
    /// [`rebound`](super::Client::rebound).
    Redirected {
        /// The address of the other server.
        server: SocketAddr,
        /// The name that the other server's certificate must have; `None`: the name of the first server.
        domain: Option<String>,
    },
    /// The server has an allocation of someone else's for this local address. The caller binds another port and calls
    /// [`rebound`](super::Client::rebound); without that, the client tries again after two minutes (RFC 8656 §7.4).
    AddressInUse,
    /// A datagram to the peer has caused an ICMP message (RFC 8656 §11.5).
    Icmp {
        /// The peer.
        peer: SocketAddr,
        /// The message.
        icmp: Icmp,
    },
    /// The allocation has been deleted, as [`close`](super::Client::close) asked, or the server has not answered. The client is done.
    Closed,
}

/// A new allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The relayed transport addresses: peers reach the client there.
    pub relayed: PerFamily<Option<SocketAddr>>,
    /// The client's address as the server sees it. `None`: the server has not told it.
    pub mapped: Option<SocketAddr>,
    /// How long the allocation lives without a refresh.
    pub lifetime: Duration,
    /// The token of the next port, if it was asked for.
    pub token: Option<[u8; 8]>,
    /// The family that was asked for and not allocated, and why.
    pub missing: Option<(AddressFamily, Code)>,
}

/// Why an allocation is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// It expired, since the server has not answered in time.
    Expired,
    /// The server does not know it: the server has restarted, or a NAT has given the client another address.
    Unknown,
    /// The server has refused to refresh it, or to move it.
    Refused(Code),
    /// The client's address has changed, or its connection has ended.
    Rebound,
}

/// Why a client has stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The server does not accept the user name and the password.
    #[error("the server does not accept the user name and the password")]
    Unauthenticated,
    /// A challenge lacks the PASSWORD-ALGORITHMS that its nonce announces: someone on the path weakens the authentication.
    #[error("PASSWORD-ALGORITHMS has been removed from the server's challenge: a bid-down attack")]
    BidDown,
    /// The server accepts no password algorithm that this crate has.
    #[error("the server takes no password algorithm that is known here")]
    NoCommonAlgorithm,
    /// The server refuses the allocation for good.
    #[error("the server refuses the allocation: {code} {reason}")]
    Refused {
        /// The error code.
        code: Code,
        /// The server's reason phrase.
        reason: String,
    },
    /// The server has redirected the client too often, to itself, or to an address that the client cannot reach.
    #[error("the server redirects the client in a circle, too often, or to an address of the other family")]
    Redirects,
    /// A response lacks a required attribute.
    #[error("a response of the server lacks a required attribute")]
    Malformed,
    /// A request could not be written: the realm or the nonce is too long.
    #[error("the request is too long")]
    TooLong,
}

pub(super) type Events = Unread<Event, MAX_EVENTS>;
