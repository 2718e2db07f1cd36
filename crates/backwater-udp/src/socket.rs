use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{Backpressure, IcmpError, Receiver, Sender, Stats, contention::Contention, events::Events, sys};

/// A UDP socket. Clones are handles to the same one.
///
/// It sends through [`Sender`]s, one for each task that sends, and receives through one [`Receiver`].
#[derive(Clone)]
pub struct UdpSocket(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) io: sys::Io,
    pub(crate) state: sys::State,
    pub(crate) stats: Arc<Stats>,
    pub(crate) backpressure: Backpressure,
    pub(crate) local_addr: SocketAddr,
    /// Whom it is connected to.
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) max_train_bytes: usize,
    pub(crate) contention: Contention,
    pub(crate) events: Events,
}

/// How to make a [`UdpSocket`].
#[derive(Clone, Debug, Default)]
pub struct Builder {
    receive_buffer: Option<usize>,
    send_buffer: Option<usize>,
    reuse_port: bool,
    max_train_bytes: Option<usize>,
    stats: Option<Arc<Stats>>,
    backpressure: Backpressure,
}

impl UdpSocket {
    /// A socket on this address, with the defaults of [`Builder`].
    ///
    /// # Errors
    /// See [`Builder::bind`].
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        Builder::default().bind(addr)
    }

    /// How to make one that differs from the defaults.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Takes over a bound socket, with the defaults of [`Builder`].
    ///
    /// # Errors
    /// See [`Builder::from_std`].
    pub fn from_std(socket: std::net::UdpSocket) -> io::Result<Self> {
        Builder::default().from_std(socket)
    }

    /// A socket on the same local address that is connected to `peer`, with this one's counters and policy.
    ///
    /// On Apple's systems only a connected socket learns of congestion; elsewhere it saves looking up the route. This one
    /// has to have been bound with [`Builder::reuse_port`]. Linux may give a connected socket's place in the group
    /// datagrams of others, and between its birth and its connection any: look at where each datagram comes from.
    ///
    /// # Errors
    /// Those of the system.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O driver enabled.
    pub fn connect(&self, peer: SocketAddr) -> io::Result<Self> {
        let builder = Builder {
            reuse_port: true,
            stats: Some(self.0.stats.clone()),
            backpressure: self.0.backpressure.clone(),
            max_train_bytes: Some(self.0.max_train_bytes),
            ..Builder::default()
        };
        builder.connect(self.local_addr(), peer)
    }

    /// Another descriptor of the same socket, to be taken over by [`Builder::from_std`] on another runtime.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn try_clone_std(&self) -> io::Result<std::net::UdpSocket> {
        Ok(self.0.sock_ref().try_clone()?.into())
    }

    /// Whom it is connected to.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.0.peer
    }

    /// The next of the ICMP messages about datagrams that were sent earlier. They are read from the system by whoever
    /// receives or sends next, also when nothing else has arrived; 64 are kept.
    pub fn next_icmp_error(&self) -> Option<IcmpError> {
        self.0.events.pop()
    }

    /// The address it is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr
    }

    /// A sender. It holds no descriptor until it has to wait for the first time.
    pub fn sender(&self) -> Sender {
        Sender::new(self.clone())
    }

    /// The receiving half. One at a time: of several that wait, only the last one is woken.
    pub fn receiver(&self) -> Receiver {
        Receiver::new(self.clone())
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// The handle to the policy of its senders.
    pub fn backpressure(&self) -> &Backpressure {
        &self.0.backpressure
    }

    /// The receive buffer in bytes, as the system reports it (Linux: twice what was set, for its overhead).
    ///
    /// # Errors
    /// Those of `getsockopt`.
    pub fn receive_buffer(&self) -> io::Result<usize> {
        self.0.sock_ref().recv_buffer_size()
    }

    /// The send buffer in bytes, as the system reports it (Linux: twice what was set, for its overhead).
    ///
    /// # Errors
    /// Those of `getsockopt`.
    pub fn send_buffer(&self) -> io::Result<usize> {
        self.0.sock_ref().send_buffer_size()
    }
}

impl Builder {
    /// The receive buffer to ask for, in bytes. The default is the system's. A system that allows less gives what it
    /// allows; see [`UdpSocket::receive_buffer`].
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// The send buffer to ask for, in bytes; as [`receive_buffer`](Self::receive_buffer).
    #[must_use]
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.send_buffer = Some(bytes);
        self
    }

    /// Sets `SO_REUSEPORT`, so that several sockets share an address. Linux spreads the 5-tuples over them; others
    /// do not.
    #[must_use]
    pub fn reuse_port(mut self, on: bool) -> Self {
        self.reuse_port = on;
        self
    }

    /// The most bytes that one system call sends as a train. The default is what UDP allows. A queue below may split a
    /// train and drop a part of it without a word: keep trains smaller than its burst.
    #[must_use]
    pub fn max_train_bytes(mut self, bytes: usize) -> Self {
        self.max_train_bytes = Some(bytes);
        self
    }

    /// Counters to share with other sockets. The default is counters of its own.
    #[must_use]
    pub fn stats(mut self, stats: Arc<Stats>) -> Self {
        self.stats = Some(stats);
        self
    }

    /// The policy of its senders, perhaps shared with other sockets.
    #[must_use]
    pub fn backpressure(mut self, handle: Backpressure) -> Self {
        self.backpressure = handle;
        self
    }

    /// Binds to `addr`. A socket on an IPv6 address takes IPv6 only, on every system.
    ///
    /// # Errors
    /// Those of the system; `Unsupported` for [`reuse_port`](Self::reuse_port) where there is no such option.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O driver enabled.
    pub fn bind(&self, addr: SocketAddr) -> io::Result<UdpSocket> {
        self.from_std(self.bound(addr)?.into())
    }

    /// Binds to `addr` and connects to `peer`: only its datagrams arrive, and only to it can be sent.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), and those of the system when there is no route.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O driver enabled.
    pub fn connect(&self, addr: SocketAddr, peer: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.bound(addr)?;
        socket.connect(&peer.into())?;
        self.from_std(socket.into())
    }

    fn bound(&self, addr: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if self.reuse_port {
            set_reuse_port(&socket)?;
        }
        socket.bind(&addr.into())?;
        Ok(socket)
    }

    /// Takes over a bound socket; whether it takes IPv4 as mapped addresses, and `SO_REUSEPORT`, stay as they are.
    ///
    /// # Errors
    /// Those of the system when a socket option cannot be set.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O driver enabled.
    pub fn from_std(&self, socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
        let socket = Socket::from(socket);
        socket.set_nonblocking(true)?;
        if let Some(bytes) = self.receive_buffer {
            at_most(bytes, |bytes| socket.set_recv_buffer_size(bytes))?;
        }
        if let Some(bytes) = self.send_buffer {
            at_most(bytes, |bytes| socket.set_send_buffer_size(bytes))?;
        }
        let local_addr = socket
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not an IP socket"))?;
        let peer = socket.peer_addr().ok().and_then(|peer| peer.as_socket());
        let state = sys::State::new(&socket, local_addr.ip().is_unspecified())?;
        let io = sys::Io::new(socket.into())?;
        Ok(UdpSocket(Arc::new(Inner {
            io,
            state,
            stats: self.stats.clone().unwrap_or_default(),
            backpressure: self.backpressure.clone(),
            local_addr,
            peer,
            max_train_bytes: self.max_train_bytes.unwrap_or(usize::MAX),
            contention: Contention::default(),
            events: Events::default(),
        })))
    }
}

impl Inner {
    pub(crate) fn sock_ref(&self) -> SockRef<'_> {
        self.io.sock_ref()
    }

    /// The address datagrams arrive at when the system does not say.
    pub(crate) fn local_ip(&self) -> Option<IpAddr> {
        Some(self.local_addr.ip()).filter(|ip| !ip.is_unspecified())
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UdpSocket").field(&self.0.local_addr).finish()
    }
}

/// Darwin refuses a size above `kern.ipc.maxsockbuf` with `ENOBUFS` instead of capping it: halve until it is taken.
fn at_most(mut bytes: usize, set: impl Fn(usize) -> io::Result<()>) -> io::Result<()> {
    const LEAST: usize = 4096;
    loop {
        match set(bytes) {
            Err(_) if bytes / 2 >= LEAST => bytes /= 2,
            result => return result,
        }
    }
}

#[cfg(unix)]
fn set_reuse_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}

#[cfg(not(unix))]
fn set_reuse_port(_socket: &Socket) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no SO_REUSEPORT"))
}
