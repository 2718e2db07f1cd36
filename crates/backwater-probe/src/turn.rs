//! Credentials and errors of a TURN client, and the Binding request.

use std::{
    fmt,
    io::{self, IoSlice},
    net::SocketAddr,
    time::Duration,
};

use backwater_stun::{
    Attribute, Class, Code, HEADER_LEN, Message, Method, TransactionId, WriteError, Writer, XorMappedAddress,
};
use backwater_turn::time_limited_password;
use backwater_udp::{DropReason, IcmpKind, RecvBatch, Transmit, UdpSocket};
use tokio::time::timeout;

/// A user of the server. `Debug` does not show the password.
#[derive(Clone)]
pub struct Credential {
    /// USERNAME.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Why a server could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TurnError {
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Nothing came back, not even an ICMP message.
    #[error(
        "{0}: nothing came back from {1}: UDP is blocked on the way, the address is wrong, or the server drops what is sent from here"
    )]
    NoAnswer(Method, SocketAddr),
    /// Nothing came back to this request, whereas the server has answered others.
    #[error(
        "{0}: {1} has answered before, but not this: the server drops requests, as it does after many wrong passwords or over a \
         limit, or it has ended"
    )]
    Dropped(Method, SocketAddr),
    /// No answer but an ICMP message: the host is there, and no program listens on the port. Linux only.
    #[error("{0}: nobody listens at {1}: the host has sent ICMP port unreachable")]
    NobodyListens(Method, SocketAddr),
    /// No answer but another ICMP message. Linux only.
    #[error("{method}: {server} cannot be reached: ICMP type {icmp_type}, code {code}")]
    Unreachable {
        /// The method of the request.
        method: Method,
        /// The server.
        server: SocketAddr,
        /// The type of ICMP or, for IPv6, of ICMPv6.
        icmp_type: u8,
        /// The code.
        code: u8,
    },
    /// This host has not sent the request.
    #[error("{0}: this host has sent nothing to {1}: {reason}", reason = reason(*.2))]
    NotSent(Method, SocketAddr, DropReason),
    /// The server refused.
    #[error("{method}: {server} refused with {code}{about}", about = about(*.code, .reason, *.peer))]
    Refused {
        /// The method of the request.
        method: Method,
        /// The server.
        server: SocketAddr,
        /// ERROR-CODE.
        code: Code,
        /// Its reason phrase.
        reason: String,
        /// The peer that the request was about.
        peer: Option<SocketAddr>,
    },
    /// The response lacks a required attribute, or its integrity is wrong.
    #[error("{0}: the answer has no valid {1}")]
    Malformed(Method, &'static str),
    /// The request could not be written: a name is too long, for one.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Credential {
    /// Makes the time-limited credential of a user, from the secret that the server shares with whoever issues credentials. `expiry` is
    /// the time since 1970-01-01 UTC, in whole seconds (draft-uberti-behave-turn-rest).
    pub fn time_limited(secret: &str, name: &str, expiry: Duration) -> Self {
        let user = format!("{}:{name}", expiry.as_secs());
        let password = time_limited_password(secret, &user);
        Self { user, password }
    }
}

/// Returns the text after the code of a refusal: the reason phrase, and the peer of the request.
fn about(code: Code, reason: &str, peer: Option<SocketAddr>) -> String {
    let blank = if reason.is_empty() { "" } else { " " };
    let peer = match peer {
        Some(peer) if code == Code::FORBIDDEN => format!(": it does not allow the peer {peer}"),
        Some(peer) => format!(": for the peer {peer}"),
        None => String::new(),
    };
    format!("{blank}{reason}{peer}")
}

/// Returns why these sockets have no response from `server`. `has_answered`: the server has answered other requests.
pub(crate) fn silence(method: Method, server: SocketAddr, sockets: &[UdpSocket], has_answered: bool) -> TurnError {
    let events = sockets.iter().flat_map(|socket| std::iter::from_fn(|| socket.next_icmp_error()));
    let mut said = None;
    for event in events.filter(|event| event.destination == server) {
        if let IcmpKind::Unreachable { icmp_type, code } = event.kind {
            said = Some((icmp_type, code));
        }
    }
    let refused = if server.is_ipv4() { PORT_UNREACHABLE } else { PORT_UNREACHABLE_V6 };
    let dropped = || {
        let stats: Vec<_> = sockets.iter().map(|socket| socket.stats().snapshot()).collect();
        let nothing_sent = stats.iter().all(|stats| stats.sent == 0);
        let reason = |reason: &DropReason| nothing_sent && stats.iter().any(|stats| stats.dropped(*reason) > 0);
        DropReason::ALL.into_iter().find(reason)
    };
    match said {
        Some(said) if said == refused => TurnError::NobodyListens(method, server),
        Some((icmp_type, code)) => TurnError::Unreachable { method, server, icmp_type, code },
        None if has_answered => TurnError::Dropped(method, server),
        None => dropped().map_or(TurnError::NoAnswer(method, server), |why| TurnError::NotSent(method, server, why)),
    }
}

/// ICMP's type and code (RFC 792), and ICMPv6's (RFC 4443 §3.1).
const PORT_UNREACHABLE: (u8, u8) = (3, 3);
const PORT_UNREACHABLE_V6: (u8, u8) = (1, 4);

fn reason(reason: DropReason) -> &'static str {
    if reason == DropReason::Unreachable {
        "it has no route there"
    } else if reason == DropReason::NotPermitted {
        "a local firewall does not permit it"
    } else {
        reason.name()
    }
}

/// Sends one Binding request, waits `patience` for the response, and returns the address that the server saw.
///
/// # Errors
/// See [`TurnError`].
pub async fn binding(socket: &UdpSocket, server: SocketAddr, patience: Duration) -> Result<SocketAddr, TurnError> {
    let id = TransactionId::random(getrandom::fill).map_err(io::Error::from)?;
    let mut buffer = [0; HEADER_LEN];
    let request = Writer::new(&mut buffer, Class::Request, Method::BINDING, id)?.finish();
    socket.sender().send(&mut Transmit::new(server, &[IoSlice::new(request)])).await?;
    let (mut receiver, mut batch) = (socket.receiver(), RecvBatch::new(1));
    let answer = async {
        loop {
            receiver.recv(&mut batch).await?;
            for datagram in batch.datagrams().filter(|d| d.source == server) {
                let Ok(message) = Message::parse(datagram.payload) else { continue };
                if message.transaction_id() == id && message.class() == Class::SuccessResponse {
                    let address = require::<XorMappedAddress>(&message, Method::BINDING, "XOR-MAPPED-ADDRESS")?;
                    return Ok(address.0);
                }
            }
        }
    };
    let silence = |_| Err(silence(Method::BINDING, server, std::slice::from_ref(socket), false));
    timeout(patience, answer).await.unwrap_or_else(silence)
}

pub(crate) fn require<'a, A: Attribute<'a>>(
    message: &Message<'a>,
    method: Method,
    name: &'static str,
) -> Result<A, TurnError> {
    message.get::<A>().ok().flatten().ok_or(TurnError::Malformed(method, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_password() {
        let credential = Credential { user: "a".into(), password: "hunter2".into() };
        assert_eq!(format!("{credential:?}"), "Credential { user: \"a\", .. }");
    }
}
