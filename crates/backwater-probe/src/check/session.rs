//! One allocation over a socket or a connection: drives [`Client`] on tokio.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use super::{Transport, tls::Tls};
use backwater_stun::{
    AddressFamily, Class, Frame, HEADER_LEN, MAX_FRAME_LEN, Message, Method, Split, TransactionId, Writer,
    XorMappedAddress, padding_len, split_frame,
};
use backwater_turn::{
    Families,
    client::{Client, Config, Credential, Event, Input},
};
use tokio::{
    net::{TcpStream, UdpSocket},
    time::{sleep_until, timeout},
};

/// The longest wait for a TCP connection.
const CONNECT: Duration = Duration::from_secs(8);

/// The waits after each transmission of a Binding request (RFC 8489 §6.2.1).
const WAITS: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// An allocation, or what becomes one.
pub(super) struct Session {
    link: Link,
    transport: Transport,
    pub(super) client: Client,
    buffer: Vec<u8>,
}

/// What a [`Session`] reports.
#[derive(Debug)]
pub(super) enum Happening {
    Event(Event),
    Data {
        peer: SocketAddr,
        payload: Vec<u8>,
    },
    /// The deadline has come.
    Deadline,
}

/// What carries messages to the server.
pub(super) enum Link {
    Udp(UdpSocket),
    Tcp {
        stream: TcpStream,
        /// Bytes that do not make a frame yet.
        received: Vec<u8>,
        /// Bytes that the connection had no room for, so that a cancelled call does not cut a frame.
        unsent: Vec<u8>,
        tls: Option<Box<Tls>>,
    },
}

impl Link {
    pub(super) async fn open(server: SocketAddr, transport: &Transport) -> io::Result<Self> {
        let trust = match transport {
            Transport::Udp => return Ok(Self::Udp(udp_socket(server).await?)),
            Transport::Tcp => None,
            Transport::Tls(trust) => Some(trust),
        };
        let connected = async {
            let stream = TcpStream::connect(server).await?;
            stream.set_nodelay(true)?;
            let tls = trust.map(Tls::new).transpose()?.map(Box::new);
            let mut link = Self::Tcp { stream, received: Vec::new(), unsent: Vec::new(), tls };
            while link.is_handshaking() {
                link.send(&[]).await?;
                link.read().await?;
            }
            Ok(link)
        };
        timeout(CONNECT, connected).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    fn is_handshaking(&self) -> bool {
        matches!(self, Self::Tcp { tls: Some(tls), .. } if tls.is_handshaking())
    }

    /// Returns the version of TLS, if the link has it.
    pub(super) fn tls_version(&self) -> Option<String> {
        match self {
            Self::Tcp { tls: Some(tls), .. } => Some(tls.version()),
            Self::Tcp { tls: None, .. } | Self::Udp(_) => None,
        }
    }

    pub(super) fn local(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Udp(socket) => socket.local_addr(),
            Self::Tcp { stream, .. } => stream.local_addr(),
        }
    }

    /// Sends a message. Cancelled, it leaves the rest for the next call.
    async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(_) if message.is_empty() => Ok(()),
            Self::Udp(socket) => socket.send(message).await.map(drop),
            Self::Tcp { stream, unsent, tls, .. } => {
                match tls {
                    Some(tls) => tls.encrypt(message, unsent)?,
                    None => unsent.extend_from_slice(message),
                }
                while !unsent.is_empty() {
                    stream.writable().await?;
                    match stream.try_write(unsent) {
                        Ok(sent) => drop(unsent.drain(..sent)),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
        }
    }

    /// Receives a datagram or a frame into `buffer`. Cancel safe.
    async fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Udp(socket) => {
                buffer.resize(MAX_FRAME_LEN, 0);
                let len = socket.recv(buffer).await?;
                buffer.truncate(len);
                Ok(())
            }
            Self::Tcp { .. } => loop {
                if let Self::Tcp { received, .. } = self
                    && let Split::Frame { frame: Frame::Message(_) | Frame::ChannelData(_), len } =
                        split_frame(received).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?
                {
                    buffer.clear();
                    buffer.extend(received.drain(..len));
                    return Ok(());
                }
                self.read().await?;
            },
        }
    }

    /// Reads what the connection has, once it has anything. Cancel safe.
    async fn read(&mut self) -> io::Result<()> {
        let Self::Tcp { stream, received, tls, .. } = self else { return Ok(()) };
        let mut part = [0; 4096];
        loop {
            stream.readable().await?;
            let part = match stream.try_read(&mut part) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => part.get(..len).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            match tls {
                Some(tls) => tls.decrypt(part, received)?,
                None => received.extend_from_slice(part),
            }
            return Ok(());
        }
    }
}

impl Session {
    /// Asks for an allocation of the server's address family.
    pub(super) fn new(
        link: Link,
        transport: &Transport,
        server: SocketAddr,
        credential: Credential,
    ) -> io::Result<Self> {
        let mut seed = [0; 64];
        getrandom::fill(&mut seed)?;
        let mut config = Config::new(server, credential, seed);
        config.families = Families::only(AddressFamily::of(&server));
        config.protocol = transport.protocol();
        Ok(Self { link, transport: transport.clone(), client: Client::new(Instant::now(), config), buffer: Vec::new() })
    }

    /// Returns what happens next. Cancel safe.
    ///
    /// # Errors
    /// The socket or the connection failed. An ICMP message that no program listens on the port is one.
    pub(super) async fn next(&mut self, deadline: Instant) -> io::Result<Happening> {
        loop {
            self.flush().await?;
            if let Some(event) = self.client.poll_event() {
                if let Event::Redirected { server, .. } = event {
                    self.link = Link::open(server, &self.transport).await?;
                    self.client.rebound(Instant::now());
                }
                return Ok(Happening::Event(event));
            }
            if Instant::now() >= deadline {
                return Ok(Happening::Deadline);
            }
            let at = self.client.poll_timeout().unwrap_or(deadline).min(deadline);
            tokio::select! {
                received = self.link.receive(&mut self.buffer) => {
                    received?;
                    let (now, server) = (Instant::now(), self.client.server());
                    let input = self.client.handle_input(now, server, &self.buffer);
                    if let Input::Data { peer, payload } = input {
                        let payload = self.buffer.get(payload).unwrap_or_default().to_vec();
                        return Ok(Happening::Data { peer, payload });
                    }
                }
                () = sleep_until(at.into()) => self.client.handle_timeout(Instant::now()),
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        while let Some(transmit) = self.client.poll_transmit(Instant::now()) {
            self.link.send(transmit.bytes).await?;
        }
        // What a cancelled call has left.
        self.link.send(&[]).await
    }

    /// Sends the payload behind the first four bytes through a channel.
    pub(super) async fn send(
        &mut self,
        channel: backwater_stun::ChannelNumber,
        datagram: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.client.send(Instant::now(), channel, datagram).map_err(io::Error::other)?;
        if let Link::Tcp { .. } = self.link {
            datagram.resize(datagram.len() + padding_len(datagram.len()), 0);
        }
        self.link.send(datagram).await
    }

    /// Ends the allocation, and waits a second for the response at most.
    pub(super) async fn close(mut self) {
        self.client.close(Instant::now());
        let deadline = Instant::now() + Duration::from_secs(1);
        while !self.client.is_closed() {
            match self.next(deadline).await {
                Ok(Happening::Deadline) | Err(_) => return,
                Ok(Happening::Event(_) | Happening::Data { .. }) => {}
            }
        }
    }
}

/// Binds a socket of the family of `to`, and connects it, so that ICMP messages are reported.
pub(super) async fn udp_socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any(to)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// Returns the address to bind to in order to reach `to`.
pub(super) fn any(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (IpAddr::from(Ipv4Addr::UNSPECIFIED), 0).into(),
        SocketAddr::V6(_) => (IpAddr::from(Ipv6Addr::UNSPECIFIED), 0).into(),
    }
}

/// Asks the server for the address that it sees, by a socket that need not be connected. Returns it with the round-trip time; `None`: no
/// answer within 7.5 s.
pub(super) async fn binding(socket: &UdpSocket, server: SocketAddr) -> io::Result<Option<(SocketAddr, Duration)>> {
    let id = TransactionId::random(getrandom::fill).map_err(io::Error::from)?;
    let mut buffer = [0; HEADER_LEN];
    let request = Writer::new(&mut buffer, Class::Request, Method::BINDING, id).map_err(io::Error::other)?.finish();
    for wait in WAITS {
        let began = Instant::now();
        // Some systems take no address for a connected socket.
        match socket.peer_addr() {
            Ok(_) => socket.send(request).await?,
            Err(_) => socket.send_to(request, server).await?,
        };
        if let Ok(mapped) = timeout(wait, answer(socket, server, id)).await {
            return Ok(Some((mapped?, began.elapsed())));
        }
    }
    Ok(None)
}

async fn answer(socket: &UdpSocket, server: SocketAddr, id: TransactionId) -> io::Result<SocketAddr> {
    let mut buffer = [0; 2048];
    loop {
        let (len, from) = socket.recv_from(&mut buffer).await?;
        let Ok(message) = Message::parse(buffer.get(..len).unwrap_or_default()) else { continue };
        if from == server
            && message.transaction_id() == id
            && message.is(Class::SuccessResponse, Method::BINDING)
            && let Ok(Some(XorMappedAddress(mapped))) = message.get()
        {
            return Ok(mapped);
        }
    }
}
