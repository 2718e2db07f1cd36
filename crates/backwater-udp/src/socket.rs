use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tracing::debug;

use crate::{
    Backpressure, GroBatch, IcmpError, OwnedDatagram, Receiver, SendReport, Sender, Stats, Transmit,
    events::Events,
    intake::Intake,
    lease::Leases,
    sys,
    transmit::Header,
    wait::{self, fairness::Contention},
};

mod beside;
mod options;
mod rebind;

pub(crate) use options::Leaving;
use options::Told;

/// Calls that look for what a socket caught before it was connected; what a faster peer has sent by then stays in it.
const CATCH_BUDGET: usize = 64;

/// A UDP socket. Clones are handles to the same one.
///
/// It sends through [`Sender`]s, one for each task that sends, and receives through one [`Receiver`].
#[derive(Clone)]
pub struct UdpSocket(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    /// Dropped before the socket.
    pub(crate) intake: Intake,
    pub(crate) io: sys::Io,
    pub(crate) state: sys::State,
    pub(crate) stats: Arc<Stats>,
    pub(crate) backpressure: Backpressure,
    /// The address it is bound to; the port has changed if it was bound anew.
    bound: SocketAddr,
    port: AtomicU16,
    /// Whom it is connected to.
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) max_train_bytes: usize,
    told: Told,
    /// The hop limit that was set; 0 for the system's.
    hop_limit: AtomicU8,
    /// Whether [`Fragmentation::Allowed`] is in force.
    fragments: AtomicBool,
    /// Whether there is a [`Receiver`].
    pub(crate) receiver_taken: AtomicBool,
    pub(crate) contention: Contention,
    pub(crate) leases: Leases,
    /// The sockets that only send for this one. Locked while the socket is bound anew.
    sides: Mutex<Vec<Weak<Inner>>>,
    /// The socket whose receiver reads this one, too, as a queue has connected it.
    attached_to: Weak<Inner>,
    /// Whether queues connect sockets for busy destinations.
    pub(crate) promotes: bool,
    /// Shared by the sockets that only send for this one.
    pub(crate) events: Arc<Events>,
}

/// How to make a [`UdpSocket`].
#[derive(Clone, Debug, Default)]
pub struct UdpSocketBuilder {
    receive_buffer: Option<usize>,
    send_buffer: Option<usize>,
    reuse_port: bool,
    max_train_bytes: Option<usize>,
    fragmentation: Fragmentation,
    told: Told,
    leaving: Leaving,
    promotes: Option<bool>,
    stats: Option<Arc<Stats>>,
    backpressure: Backpressure,
}

/// What happens to a datagram that is larger than the MTU of its path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragmentation {
    /// It is never fragmented: DF is set in IPv4 (RFC 791), and this host does not fragment. A datagram larger than the
    /// outgoing interface's MTU is dropped as [`TooLarge`](crate::DropReason::TooLarge). One that is too large for a link
    /// further on is lost there, and an ICMP message may say so. ICMP messages do not lower what is sent
    /// (`IP_PMTUDISC_PROBE`).
    #[default]
    Never,
    /// It is fragmented. IPv4: DF is clear, so that this host and routers may; a cached path MTU is ignored, so that a
    /// forged "fragmentation needed" changes nothing (`IP_PMTUDISC_OMIT`). IPv6: this host fragments to the path MTU that the
    /// kernel learns from ICMPv6 (`IPV6_PMTUDISC_DONT`), which RFC 8201 bounds at 1,280 bytes: a forged "packet too big"
    /// costs fragments, not datagrams. A GSO batch whose segments exceed the MTU goes out as single datagrams.
    Allowed,
}

impl UdpSocket {
    /// A socket on this address, with the defaults of [`UdpSocketBuilder`].
    ///
    /// # Errors
    /// See [`UdpSocketBuilder::bind`].
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        UdpSocketBuilder::default().bind(addr)
    }

    /// How to make one that differs from the defaults.
    pub fn builder() -> UdpSocketBuilder {
        UdpSocketBuilder::default()
    }

    /// Takes over a bound socket, with the defaults of [`UdpSocketBuilder`].
    ///
    /// # Errors
    /// See [`UdpSocketBuilder::from_std`].
    pub fn from_std(socket: std::net::UdpSocket) -> io::Result<Self> {
        UdpSocketBuilder::default().from_std(socket)
    }

    /// A socket on the same local address that is connected to `peer`, with this one's counters and policy: from now on the
    /// peer's datagrams arrive there, all others here. Either may be closed without a loss to the other.
    ///
    /// On Apple's systems only a connected socket learns of congestion; elsewhere it saves looking up the route. A datagram to
    /// anyone but the peer is dropped there as [`Invalid`](crate::DropReason::Invalid). This socket has to have been bound
    /// with [`UdpSocketBuilder::reuse_port`].
    ///
    /// A socket is born unconnected, and systems hand it anyone's datagrams until it is connected, some microseconds later.
    /// What came so is returned beside it, with whom it came from: it is up to the caller as if it had arrived here (or
    /// there, if it is the peer's). Its [`local_ip`](OwnedDatagram::local_ip) is known only if this socket is bound to one.
    /// What the system was about to hand over at that moment can arrive at the connected socket after it, and Linux before 5.4 may
    /// hand it others' datagrams later too: look at where each comes from.
    ///
    /// # Errors
    /// Those of the system: `AddrInUse` without [`UdpSocketBuilder::reuse_port`]; `Unsupported` where ports cannot be shared
    /// (Windows).
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O and time drivers enabled.
    pub fn connect(&self, peer: SocketAddr) -> io::Result<(Self, Vec<OwnedDatagram>)> {
        let builder = self.sharing();
        let connected = builder.connected(builder.bound(self.local_addr())?, peer)?;
        let caught = connected.catch(self.0.local_ip());
        Ok((connected, caught))
    }

    fn sharing(&self) -> UdpSocketBuilder {
        UdpSocketBuilder {
            reuse_port: true,
            stats: Some(self.0.stats.clone()),
            backpressure: self.0.backpressure.clone(),
            max_train_bytes: Some(self.0.max_train_bytes),
            fragmentation: self.fragmentation(),
            told: self.0.told,
            ..UdpSocketBuilder::default()
        }
    }

    /// The options that datagrams leave with now.
    pub(crate) fn header(&self) -> Header {
        Header { hop_limit: Some(self.0.hop_limit.load(Relaxed)), fragmentation: Some(self.fragmentation()) }
    }

    /// Takes what has arrived.
    fn catch(&self, local_ip: Option<IpAddr>) -> Vec<OwnedDatagram> {
        let (inner, mut buffers, mut caught) = (&*self.0, sys::Buffers::new(4), Vec::new());
        for _ in 0..CATCH_BUDGET {
            let Ok(slots) = buffers.receive(inner.sock_ref(), &inner.state) else { break };
            for (meta, payload) in (0..slots).filter_map(|slot| buffers.gro_batch(slot)) {
                let train = GroBatch { local_ip, ..GroBatch::new(meta, None, payload) };
                caught.extend(train.datagrams().map(|d| OwnedDatagram {
                    peer: d.source,
                    local_ip,
                    ecn: d.ecn,
                    payload: Bytes::copy_from_slice(d.payload),
                }));
            }
        }
        inner.stats.receive(caught.len());
        caught
    }

    /// Another descriptor of the same socket, to be taken over by [`UdpSocketBuilder::from_std`] on another runtime.
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

    /// The next entry of the error queue: ICMP messages about datagrams that were sent earlier, and the MTU of a route for
    /// which a datagram was too large ([`IcmpKind::LocalMtu`](crate::IcmpKind::LocalMtu)). The receiver or the sender that
    /// runs next reads them from the system, also when nothing else has arrived; 64 are kept.
    pub fn next_icmp_error(&self) -> Option<IcmpError> {
        self.0.events.pop()
    }

    /// Switches whether datagrams may be fragmented, for all that is sent from now on.
    ///
    /// # Errors
    /// Those of `setsockopt`. `Unsupported` on Windows, OpenBSD and NetBSD, where the system's default stays.
    pub fn set_fragmentation(&self, fragmentation: Fragmentation) -> io::Result<()> {
        self.0.state.set_fragmentation(&self.0.sock_ref(), fragmentation)?;
        self.0.fragments.store(fragmentation == Fragmentation::Allowed, Relaxed);
        Ok(())
    }

    /// Whether datagrams may be fragmented.
    pub fn fragmentation(&self) -> Fragmentation {
        if self.0.fragments.load(Relaxed) { Fragmentation::Allowed } else { Fragmentation::Never }
    }

    /// Sets the time to live (IPv4) and hop limit (IPv6) of all that is sent from now on, 1 to 255; `None`, or zero, for the system's
    /// default. Costs a system call only if it changes: a control message for each datagram costs more where most have the same.
    ///
    /// # Errors
    /// Those of `setsockopt`. `Unsupported` elsewhere than on Linux, where the system's default stays.
    #[inline]
    pub fn set_hop_limit(&self, hops: Option<u8>) -> io::Result<()> {
        let wanted = hops.unwrap_or(0);
        if self.0.hop_limit.load(Relaxed) != wanted {
            self.0.state.set_hop_limit(&self.0.sock_ref(), hops.filter(|&hops| hops > 0))?;
            self.0.hop_limit.store(wanted, Relaxed);
        }
        Ok(())
    }

    /// Sets the options that the next datagrams need. Where one cannot be set they go as they are.
    #[inline]
    pub(crate) fn prepare(&self, header: Header) {
        let Header { hop_limit, fragmentation } = header;
        if let Some(hops) = hop_limit
            && let Err(error) = self.set_hop_limit(Some(hops))
        {
            debug!(%error, "the hop limit stays as it is");
        }
        if let Some(fragmentation) = fragmentation
            && fragmentation != self.fragmentation()
            && let Err(error) = self.set_fragmentation(fragmentation)
        {
            debug!(%error, "fragmentation stays as it is");
        }
    }

    /// The address it is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr()
    }

    /// A sender. It holds no descriptor until it has to wait for the first time.
    pub fn sender(&self) -> Sender {
        Sender::new(self.clone())
    }

    /// The receiving half. A socket and its clones have one at a time, since the system's readiness wakes one task; it can be taken again
    /// when it has been dropped.
    ///
    /// # Panics
    /// While there is another one.
    #[track_caller]
    pub fn receiver(&self) -> Receiver {
        match Receiver::new(self.clone()) {
            Some(receiver) => receiver,
            None => panic!("the receiver of {self:?} is taken: there is one at a time"),
        }
    }

    /// Sends as much of `t` as the system takes now, as [`Sender::try_send`] does, without a sender: nothing is held, and nothing waits.
    ///
    /// # Errors
    /// As [`Sender::try_send`].
    pub fn try_send(&self, t: &mut Transmit<'_>) -> io::Result<SendReport> {
        wait::core::try_send(self, t)
    }

    /// How many datagrams one system call sends to a destination at most (GSO), if nothing about its route forbids it: 1 where the system
    /// has no segmentation offload. A [`Transmit`](crate::Transmit) may have more.
    pub fn max_segments(&self) -> usize {
        self.0.state.max_segments()
    }

    /// How many datagrams the system joins to one on receipt, at most (GRO): 1 where it has no receive offload, or with
    /// [`UdpSocketBuilder::receive_offload(false)`](UdpSocketBuilder::receive_offload).
    pub fn max_receive_segments(&self) -> usize {
        self.0.state.max_receive_segments()
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

impl UdpSocketBuilder {
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
    /// train and drop a part of it without a word: keep trains smaller than its burst. The limits of network devices above others
    /// (macvlan, VLAN, bond) are kept whatever is set here (Linux).
    #[must_use]
    pub fn max_train_bytes(mut self, bytes: usize) -> Self {
        self.max_train_bytes = Some(bytes);
        self
    }

    /// Whether datagrams may be fragmented. The default is [`Fragmentation::Never`]. Binding fails with `Unsupported` for
    /// [`Fragmentation::Allowed`] where [`UdpSocket::set_fragmentation`] does.
    #[must_use]
    pub fn fragmentation(mut self, fragmentation: Fragmentation) -> Self {
        self.fragmentation = fragmentation;
        self
    }

    /// Whether a [`SendQueue`](crate::SendQueue) connects sockets for busy destinations. The default is that it does on Apple's systems
    /// alone, where others learn nothing of congestion.
    #[doc(hidden)]
    #[must_use]
    pub fn connect_busy_destinations(mut self, on: bool) -> Self {
        self.promotes = Some(on);
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
    /// Outside a tokio runtime with its I/O and time drivers enabled.
    pub fn bind(&self, addr: SocketAddr) -> io::Result<UdpSocket> {
        self.from_std(self.bound(addr)?.into())
    }

    /// Binds to `addr` and connects to `peer`: only to it can be sent, and only its datagrams arrive, but for what came in
    /// the moment between the two: look at where each comes from.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), and those of the system when there is no route.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O and time drivers enabled.
    pub fn connect(&self, addr: SocketAddr, peer: SocketAddr) -> io::Result<UdpSocket> {
        self.connected(self.bound(addr)?, peer)
    }

    fn connected(&self, bound: Socket, peer: SocketAddr) -> io::Result<UdpSocket> {
        bound.connect(&peer.into())?;
        self.from_std(bound.into())
    }

    fn bound(&self, addr: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if self.reuse_port {
            set_reuse_port(&socket)?;
        }
        self.leaving.set(&socket)?;
        socket.bind(&addr.into())?;
        Ok(socket)
    }

    /// Takes over a bound socket; whether it takes IPv4 as mapped addresses, and `SO_REUSEPORT`, stay as they are.
    ///
    /// # Errors
    /// Those of the system when a socket option cannot be set.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O and time drivers enabled.
    pub fn from_std(&self, socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
        // A runtime without timers is noticed here rather than when a sender has to wait for the first time.
        drop(tokio::time::sleep(Duration::ZERO));
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
        let peer = socket.peer_addr().ok().and_then(|peer| peer.as_socket()).map(canonical);
        // Before the state reads the DSCP.
        self.leaving.set(&socket)?;
        let state = sys::State::new(&socket, local_addr.ip().is_unspecified())?;
        self.told.ask(&state, &socket)?;
        if self.fragmentation != Fragmentation::default() {
            state.set_fragmentation(&SockRef::from(&socket), self.fragmentation)?;
        }
        let io = sys::Io::new(socket.into())?;
        Ok(UdpSocket(Arc::new(Inner {
            intake: Intake::new(sys::Reader::new(&io)?),
            io,
            state,
            stats: self.stats.clone().unwrap_or_default(),
            backpressure: self.backpressure.clone(),
            bound: local_addr,
            port: AtomicU16::new(local_addr.port()),
            peer,
            max_train_bytes: self.max_train_bytes.unwrap_or(usize::MAX),
            told: self.told,
            hop_limit: AtomicU8::new(0),
            fragments: AtomicBool::new(self.fragmentation == Fragmentation::Allowed),
            receiver_taken: AtomicBool::new(false),
            contention: Contention::default(),
            leases: Leases::default(),
            sides: Mutex::default(),
            attached_to: Weak::new(),
            promotes: self.promotes.unwrap_or(cfg!(target_vendor = "apple")),
            events: Arc::default(),
        })))
    }
}

impl Inner {
    pub(crate) fn sock_ref(&self) -> SockRef<'_> {
        self.io.sock_ref()
    }

    fn local_addr(&self) -> SocketAddr {
        let mut addr = self.bound;
        addr.set_port(self.port.load(Relaxed));
        addr
    }

    fn sides(&self) -> MutexGuard<'_, Vec<Weak<Inner>>> {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address datagrams arrive at when the system does not say.
    pub(crate) fn local_ip(&self) -> Option<IpAddr> {
        Some(self.bound.ip()).filter(|ip| !ip.is_unspecified())
    }
}

/// For options that this type does not have. What reads from the descriptor, or makes it blocking, breaks the socket.
#[cfg(unix)]
impl std::os::fd::AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&*self.0.sock_ref())
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UdpSocket").field(&self.local_addr()).finish()
    }
}

/// The address, with an IPv4 address that is mapped into IPv6 as what it is.
fn canonical(mut addr: SocketAddr) -> SocketAddr {
    if let IpAddr::V4(ip) = addr.ip().to_canonical() {
        addr = SocketAddr::new(ip.into(), addr.port());
    }
    addr
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "timers are disabled")]
    fn a_runtime_without_timers_is_noticed_when_a_socket_is_made() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _guard = runtime.enter();
        drop(UdpSocket::bind("127.0.0.1:0".parse().unwrap()));
    }

    /// A new socket takes others' datagrams until it is connected. Those are the business of whoever has the unconnected
    /// one, and must not look as if they came from the peer.
    #[tokio::test]
    async fn what_a_socket_caught_before_it_was_connected_goes_to_its_owner() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let stranger = std::net::UdpSocket::bind(any).unwrap();
            let peer = std::net::UdpSocket::bind(any).unwrap();
            let shared = UdpSocket::builder().reuse_port(true).bind(any.parse().unwrap()).unwrap();
            // Alone at the port, so that it is certain who takes what comes before it is connected.
            let (to, builder) = (shared.local_addr(), shared.sharing());
            let stats = shared.0.stats.clone();
            drop(shared);
            let bound = builder.bound(to).unwrap();
            stranger.send_to(b"stranger's", to).unwrap();
            stranger.send_to(b"", to).unwrap();
            peer.send_to(b"peer's", to).unwrap();
            let connected = builder.connected(bound, peer.local_addr().unwrap()).unwrap();
            let caught = connected.catch(Some(to.ip()));
            let seen: Vec<_> = caught.iter().map(|d| (d.peer, d.local_ip, &*d.payload)).collect();
            let (stranger, peer, ip) = (stranger.local_addr().unwrap(), peer.local_addr().unwrap(), Some(to.ip()));
            let want: [(_, _, &[u8]); 3] = [(stranger, ip, b"stranger's"), (stranger, ip, b""), (peer, ip, b"peer's")];
            assert_eq!(seen, want, "{any}");
            assert_eq!(stats.snapshot().received, 3);
            assert!(connected.catch(ip).is_empty());
        }
    }
}
