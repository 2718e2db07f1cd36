use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{Backpressure, Receiver, Sender, Stats, sys};

/// A UDP socket. Clones are handles to the same one.
///
/// It sends through [`Sender`]s, one for each task that sends, and receives through one [`Receiver`].
#[derive(Clone)]
pub struct UdpSocket(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) io: tokio::net::UdpSocket,
    pub(crate) state: sys::State,
    pub(crate) stats: Arc<Stats>,
    pub(crate) backpressure: Backpressure,
    pub(crate) local_addr: SocketAddr,
}

/// How to make a [`UdpSocket`].
#[derive(Clone, Debug, Default)]
pub struct Builder {
    receive_buffer: Option<usize>,
    send_buffer: Option<usize>,
    reuse_port: bool,
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
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if self.reuse_port {
            set_reuse_port(&socket)?;
        }
        socket.bind(&addr.into())?;
        self.from_std(socket.into())
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
        let state = sys::State::new(&socket, local_addr.ip().is_unspecified())?;
        let io = tokio::net::UdpSocket::from_std(socket.into())?;
        Ok(UdpSocket(Arc::new(Inner {
            io,
            state,
            stats: self.stats.clone().unwrap_or_default(),
            backpressure: self.backpressure.clone(),
            local_addr,
        })))
    }
}

impl Inner {
    pub(crate) fn sock_ref(&self) -> SockRef<'_> {
        SockRef::from(&self.io)
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
