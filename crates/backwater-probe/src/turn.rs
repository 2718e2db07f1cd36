//! The client's side of TURN, as far as a load generator needs it: Binding, Allocate, ChannelBind, Refresh, with
//! long-term credentials.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    io::{self, IoSlice},
    net::SocketAddr,
    time::Duration,
};

use backwater_stun::{
    AddressFamily, Attribute, ChannelNumber, Class, Code, ErrorCode, HmacKey, Lifetime, LongTermKey, Message, Method,
    Nonce, Realm, RequestedAddressFamily, RequestedTransport, TransactionId, Username, WriteError, Writer,
    XorMappedAddress, XorPeerAddress, XorRelayedAddress,
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

/// An allocation on a server, and the socket that it belongs to.
#[derive(Debug)]
pub struct Allocation {
    endpoint: Endpoint,
    session: Session,
    relayed: SocketAddr,
}

/// What the server said, and what authenticates the next request.
#[derive(Debug)]
struct Session {
    user: String,
    password: String,
    realm: String,
    nonce: Vec<u8>,
    key: Option<HmacKey>,
}

/// A socket that talks to one server.
#[derive(Debug)]
struct Endpoint {
    socket: UdpSocket,
    server: SocketAddr,
}

/// The waits for an answer, each before the request is sent once more; RFC 8489 §6.2.1 with a smaller first one,
/// since the servers measured are near.
const WAITS: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
    Duration::from_millis(1600),
];

/// Answers of 401 or 438 to one request before it is given up.
const MAX_CHALLENGES: usize = 3;

/// How long an allocation is asked to live. A load is over by then.
const LIFETIME: Lifetime = Lifetime(3600);

/// Asks the server which address it sees; waits `patience` for one answer.
///
/// # Errors
/// See [`TurnError`].
pub async fn binding(socket: &UdpSocket, server: SocketAddr, patience: Duration) -> Result<SocketAddr, TurnError> {
    let endpoint = Endpoint { socket: socket.clone(), server };
    let answer = endpoint.exchange(Method::BINDING, &[patience], |_| Ok(()), None).await?;
    let message = parse(Method::BINDING, &answer)?;
    require::<XorMappedAddress>(&message, Method::BINDING, "XOR-MAPPED-ADDRESS").map(|address| address.0)
}

impl Allocation {
    /// Allocates a relayed transport address for UDP, of the family that its peers are of.
    ///
    /// # Errors
    /// See [`TurnError`].
    pub async fn new(
        socket: UdpSocket,
        server: SocketAddr,
        credential: &Credential,
        family: AddressFamily,
    ) -> Result<Self, TurnError> {
        let Credential { user, password } = credential.clone();
        let mut session = Session { user, password, realm: String::new(), nonce: Vec::new(), key: None };
        let endpoint = Endpoint { socket, server };
        let answer = session
            .request(&endpoint, Method::ALLOCATE, |w| {
                w.attribute(&RequestedTransport::UDP)?.attribute(&LIFETIME)?;
                match family {
                    // What a server takes no attribute to mean, so that those without IPv6 need not know it.
                    AddressFamily::Ipv4 => Ok(()),
                    AddressFamily::Ipv6 => w.attribute(&RequestedAddressFamily(family)).map(drop),
                }
            })
            .await?;
        let message = parse(Method::ALLOCATE, &answer)?;
        let relayed = require::<XorRelayedAddress>(&message, Method::ALLOCATE, "XOR-RELAYED-ADDRESS")?.0;
        Ok(Self { endpoint, session, relayed })
    }

    /// The address that the server relays.
    pub fn relayed(&self) -> SocketAddr {
        self.relayed
    }

    /// Gives `peer` a channel.
    ///
    /// # Errors
    /// See [`TurnError`].
    pub async fn bind_channel(&mut self, channel: ChannelNumber, peer: SocketAddr) -> Result<(), TurnError> {
        let attributes = |w: &mut Writer<'_>| w.attribute(&channel)?.attribute(&XorPeerAddress(peer)).map(drop);
        self.session.request(&self.endpoint, Method::CHANNEL_BIND, attributes).await.map(drop)
    }

    /// Ends the allocation.
    ///
    /// # Errors
    /// See [`TurnError`].
    pub async fn release(mut self) -> Result<(), TurnError> {
        let attributes = |w: &mut Writer<'_>| w.attribute(&Lifetime(0)).map(drop);
        self.session.request(&self.endpoint, Method::REFRESH, attributes).await.map(drop)
    }
}

impl Session {
    /// Sends a request with what the server wants for authentication, which it says when asked without.
    async fn request(
        &mut self,
        endpoint: &Endpoint,
        method: Method,
        attributes: impl Fn(&mut Writer<'_>) -> Result<(), WriteError>,
    ) -> Result<Vec<u8>, TurnError> {
        let mut challenges = 0;
        loop {
            let this = &*self;
            let all = |w: &mut Writer<'_>| {
                attributes(w)?;
                if this.key.is_some() {
                    let (user, realm) = (Username(&this.user), Realm(&this.realm));
                    w.attribute(&user)?.attribute(&realm)?.attribute(&Nonce(&this.nonce))?;
                }
                Ok(())
            };
            let answer = endpoint.exchange(method, &WAITS, all, this.key.as_ref()).await?;
            let message = parse(method, &answer)?;
            if message.class() == Class::SuccessResponse {
                let authentic = self.key.as_ref().is_none_or(|key| message.verify(key).is_ok());
                return if authentic { Ok(answer) } else { Err(TurnError::Malformed(method, "message integrity")) };
            }
            let error = require::<ErrorCode<'_>>(&message, method, "ERROR-CODE")?;
            challenges += 1;
            let again = match error.code {
                Code::UNAUTHENTICATED => self.key.is_none(),
                Code::STALE_NONCE => challenges <= MAX_CHALLENGES,
                _ => false,
            };
            if !again {
                let (code, reason) = (error.code, error.reason.to_owned());
                return Err(TurnError::Refused { method, server: endpoint.server, code, reason });
            }
            self.nonce = require::<Nonce<'_>>(&message, method, "NONCE")?.0.to_vec();
            self.realm = require::<Realm<'_>>(&message, method, "REALM")?.0.to_owned();
            self.key = Some((&LongTermKey::md5(&self.user, &self.realm, &self.password)).into());
        }
    }
}

impl Endpoint {
    /// One transaction: sends until an answer with its id comes, and returns that.
    async fn exchange(
        &self,
        method: Method,
        waits: &[Duration],
        attributes: impl Fn(&mut Writer<'_>) -> Result<(), WriteError>,
        key: Option<&HmacKey>,
    ) -> Result<Vec<u8>, TurnError> {
        let id = transaction_id();
        let mut buffer = [0; 2048];
        let mut writer = Writer::new(&mut buffer, Class::Request, method, id)?;
        attributes(&mut writer)?;
        let request = match key {
            Some(key) => writer.integrity_sha1(key)?.finish(),
            None => writer.finish(),
        };
        let slices = [IoSlice::new(request)];
        let (mut sender, mut receiver) = (self.socket.sender(), self.socket.receiver());
        let mut batch = RecvBatch::new(1);
        for wait in waits {
            sender.send(&mut Transmit::new(self.server, &slices)).await?;
            let answer = async {
                loop {
                    receiver.recv(&mut batch).await?;
                    if let Some(answer) = batch.datagrams().find(|d| d.source == self.server && answers(d.payload, id))
                    {
                        return Ok(answer.payload.to_vec());
                    }
                }
            };
            if let Ok(answer) = timeout(*wait, answer).await {
                return answer;
            }
        }
        Err(TurnError::NoAnswer(method, self.server))
    }
}

fn answers(datagram: &[u8], id: TransactionId) -> bool {
    Message::parse(datagram).is_ok_and(|message| {
        message.transaction_id() == id && matches!(message.class(), Class::SuccessResponse | Class::ErrorResponse)
    })
}

fn parse(method: Method, answer: &[u8]) -> Result<Message<'_>, TurnError> {
    Message::parse(answer).map_err(|_| TurnError::Malformed(method, "form"))
}

fn require<'a, A: Attribute<'a>>(message: &Message<'a>, method: Method, name: &'static str) -> Result<A, TurnError> {
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
