//! What a client of a STUN or TURN server is told, and Binding.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    io::{self, IoSlice},
    net::SocketAddr,
    time::Duration,
};

use backwater_stun::{
    Attribute, Class, Code, HEADER_LEN, Message, Method, TransactionId, WriteError, Writer, XorMappedAddress,
};
use backwater_udp::{RecvBatch, Transmit, UdpSocket};
use tokio::time::timeout;

/// A user of the server.
#[derive(Clone, Debug)]
pub struct Credential {
    /// USERNAME.
    pub user: String,
    /// The password.
    pub password: String,
}

/// Why a server could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TurnError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Nothing came back.
    #[error("{0}: no answer from {1}")]
    NoAnswer(Method, SocketAddr),
    /// The server refused.
    #[error("{method}: {server} refused with {code} {reason}")]
    Refused {
        /// What was asked for.
        method: Method,
        /// Of whom.
        server: SocketAddr,
        /// ERROR-CODE.
        code: Code,
        /// Its reason phrase.
        reason: String,
    },
    /// The answer lacks what it must have, or its integrity is wrong.
    #[error("{0}: the answer has no valid {1}")]
    Malformed(Method, &'static str),
    /// The request could not be written: a name that is too long, for one.
    #[error("{0}")]
    Write(#[from] WriteError),
}

/// Asks the server which address it sees; waits `patience` for one answer.
///
/// # Errors
/// See [`TurnError`].
pub async fn binding(socket: &UdpSocket, server: SocketAddr, patience: Duration) -> Result<SocketAddr, TurnError> {
    let id = transaction_id();
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
    timeout(patience, answer).await.unwrap_or(Err(TurnError::NoAnswer(Method::BINDING, server)))
}

pub(crate) fn require<'a, A: Attribute<'a>>(
    message: &Message<'a>,
    method: Method,
    name: &'static str,
) -> Result<A, TurnError> {
    message.get::<A>().ok().flatten().ok_or(TurnError::Malformed(method, name))
}

/// From the standard library's hash keys, which the system's generator seeds: fresh for each call.
fn transaction_id() -> TransactionId {
    let word = || RandomState::new().build_hasher().finish().to_ne_bytes();
    let (a, b) = (word(), word());
    TransactionId(std::array::from_fn(|i| if i < 8 { a[i] } else { b[i - 8] }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_differ() {
        assert_ne!(transaction_id(), transaction_id());
    }
}
