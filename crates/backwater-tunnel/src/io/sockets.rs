//! The sockets, one for each family of addresses.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    task::Context,
};

use backwater_udp::{Backpressure, DropReason, QueueBounds, Receiver, SendQueue, SendReport, Stats, UdpSocket};
use socket2::{Domain, Protocol, Socket, Type};

use crate::engine::{Outcome, Transmit};

/// Messages that may wait on one socket: 64, and 32 for one destination. The retransmission of the protocol makes good for one that is
/// dropped.
const OF_URGENT: QueueBounds = QueueBounds { of_a_key: 16 << 10, of_all: 32 << 10, dedicated_sockets: 0 };

/// Encrypted data that may wait on one socket. A peer gives no more than what one packet of the device makes. Send-only sockets would
/// have a send buffer that is not fitted to the path, but on Apple's systems that holds nothing, and only connected sockets are told of
/// congestion.
const OF_DATA: QueueBounds = QueueBounds {
    of_a_key: 256 << 10,
    of_all: 64 << 20,
    dedicated_sockets: if cfg!(target_vendor = "apple") { 16 } else { 0 },
};

/// Bytes to ask for: a burst of a hundred full trains while the process does not run.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What the sockets are made from, now and after a change of the network.
#[derive(Clone)]
pub(crate) struct Options {
    /// 0: any.
    pub(crate) port: u16,
    /// 0: none.
    pub(crate) mark: u32,
    pub(crate) backpressure: Backpressure,
    pub(crate) stats: Arc<Stats>,
}

/// The sockets of both families.
pub(crate) struct Sockets {
    options: Options,
    v4: Option<Side>,
    v6: Option<Side>,
}

/// How long the socket may take to send what its buffer holds, in seconds: 1/50. A turn of a busy machine's scheduler is less.
const SEND_BUFFER_PER_SECOND: u64 = 50;

/// The least that holds a full train, as the kernel counts it.
const LEAST_SEND_BUFFER: usize = 16 << 10;

/// The socket of one family.
pub(crate) struct Side {
    pub(crate) socket: UdpSocket,
    pub(crate) receiver: Receiver,
    /// Messages that go before data, by their destination.
    urgent: SendQueue<SocketAddr>,
    /// Encrypted data, by the peer's number.
    data: SendQueue<usize>,
    /// The same socket, for its options.
    options: Socket,
    /// The buffer that the system gives, and the one that is asked for now.
    default_send_buffer: usize,
    send_buffer: usize,
}

impl Sockets {
    /// Binds both families to the same port; a system without one of them does without.
    ///
    /// # Errors
    /// When no family can be bound, or the port is taken.
    pub(crate) fn bind(options: Options) -> io::Result<Self> {
        let mut sockets = Self { options, v4: None, v6: None };
        let port = sockets.port();
        sockets.rebind(port)?;
        Ok(sockets)
    }

    /// Closes the sockets, and returns their port. What waits is given up.
    pub(crate) fn close(&mut self) -> u16 {
        let port = self.port();
        (self.v4, self.v6) = (None, None);
        port
    }

    /// Binds anew after [`close`](Self::close): to the port of `before`, or to another one if none was asked for and that is
    /// taken.
    ///
    /// # Errors
    /// As [`bind`](Self::bind). There are no sockets then, and this may be tried again.
    pub(crate) fn rebind(&mut self, before: u16) -> io::Result<()> {
        let any = self.options.port == 0;
        match self.bind_both(before) {
            // Also when the port that one family was given is taken in the other.
            Err(_) if any => self.bind_both(0),
            bound => bound,
        }
    }

    /// Whether the sockets have this port; 0: any that the system chose.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        port == self.options.port || self.is_bound() && port == self.port()
    }

    /// Keeps the port that the sockets have, also when they are bound anew.
    pub(crate) fn keep_port(&mut self, port: u16) {
        self.options.port = port;
    }

    /// Other sockets with the same statistics, bound to another port, with another mark if there is one.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub(crate) fn with_port(&self, port: u16, mark: Option<u32>) -> io::Result<Self> {
        Self::bind(Options { port, mark: mark.unwrap_or(self.options.mark), ..self.options.clone() })
    }

    /// The mark of what is sent; 0: none.
    pub(crate) fn mark(&self) -> u32 {
        self.options.mark
    }

    /// Changes the mark of what is sent. (Linux.)
    ///
    /// # Errors
    /// The system's; the mark is what it was.
    pub(crate) fn set_mark(&mut self, mark: u32) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        self.v4.iter().chain(&self.v6).try_for_each(|side| side.options.set_mark(mark))?;
        self.options.mark = mark;
        Ok(())
    }

    fn bind_both(&mut self, port: u16) -> io::Result<()> {
        (self.v4, self.v6) = (None, None);
        let v4 = self.options.open((Ipv4Addr::UNSPECIFIED, port).into());
        let port = v4.as_ref().map_or(port, |side| side.socket.local_addr().port());
        let v6 = self.options.open((Ipv6Addr::UNSPECIFIED, port).into());
        match (v4, v6) {
            (Ok(v4), Ok(v6)) => (self.v4, self.v6) = (Some(v4), Some(v6)),
            (Ok(v4), Err(e)) if is_absent(&e) => self.v4 = Some(v4),
            (Err(e), Ok(v6)) if is_absent(&e) => self.v6 = Some(v6),
            (Err(e), _) | (_, Err(e)) => return Err(e),
        }
        Ok(())
    }

    /// The port of the sockets, or the one that was asked for while there are none.
    pub(crate) fn port(&self) -> u16 {
        let bound = self.v4.as_ref().or(self.v6.as_ref()).map(|side| side.socket.local_addr().port());
        bound.unwrap_or(self.options.port)
    }

    pub(crate) fn is_bound(&self) -> bool {
        self.v4.is_some() || self.v6.is_some()
    }

    /// The address that the system sends from to `destination` now, if there is a way at all.
    pub(crate) fn source(&self, destination: SocketAddr) -> Option<IpAddr> {
        let socket = self.options.socket(destination).ok()?;
        // Sends nothing: it chooses a route.
        socket.connect(&destination.into()).ok()?;
        Some(socket.local_addr().ok()?.as_socket()?.ip())
    }

    /// Whether the address is not this host's (any more): no socket can be bound to it.
    pub(crate) fn is_gone(&self, ip: IpAddr) -> bool {
        let addr = SocketAddr::new(ip, 0);
        let bound = self.options.socket(addr).and_then(|socket| socket.bind(&addr.into()));
        bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
    }

    /// Sends data. What there is no room for waits, under the peer's number.
    pub(crate) fn send(&mut self, data: &Transmit<'_>) -> Outcome {
        let destination = data.route.destination();
        let Some(side) = self.side(destination.is_ipv6()) else {
            return dropped(data);
        };
        let slices = [IoSlice::new(data.bytes)];
        let mut t = backwater_udp::Transmit::new(destination, &slices)
            .segment_size(data.segment_size)
            .source(data.local_ip)
            .ecn(data.ecn);
        // What a failed socket did not send is in the report.
        let _ = side.data.send(data.peer, &mut t);
        let report = t.report();
        outcome(report, report.sent as usize * data.segment_size)
    }

    /// Sends what waits of a peer's to where the peer is now.
    pub(crate) fn redirect(&mut self, peer: usize, destination: SocketAddr, source: Option<IpAddr>) {
        if let Some(side) = self.side(destination.is_ipv6()) {
            side.data.redirect(peer, destination, source);
        }
    }

    /// Gives up what waits of a peer's.
    pub(crate) fn cancel(&mut self, peer: usize) {
        self.sides().for_each(|side| side.data.cancel(peer));
    }

    /// Sends data that waits, as far as there is room, and calls `done` with a peer's number and what has become of its datagrams.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>, mut done: impl FnMut(usize, Outcome)) {
        for side in self.sides() {
            // The datagrams of a failed socket are in the reports; the receiver finds that it has failed.
            let _ = side.data.poll_flush_with(cx, |peer, report, bytes| done(peer, outcome(report, bytes)));
        }
    }

    /// Whether the system has taken no data for seconds although some waits.
    pub(crate) fn is_stuck(&self) -> bool {
        self.v4.iter().chain(&self.v6).any(|side| side.data.held() > 0 && side.data.is_stuck())
    }

    pub(crate) fn side(&mut self, v6: bool) -> Option<&mut Side> {
        if v6 { self.v6.as_mut() } else { self.v4.as_mut() }
    }

    pub(crate) fn sides(&mut self) -> impl Iterator<Item = &mut Side> {
        self.v4.iter_mut().chain(&mut self.v6)
    }

    /// Sends a message that goes before data, or lets it wait while there is no room ([`OF_URGENT`]).
    pub(crate) fn send_message(&mut self, destination: SocketAddr, message: &[u8]) {
        if let Some(side) = self.side(destination.is_ipv6()) {
            let slices = [IoSlice::new(message)];
            // The receiver finds that a socket has failed.
            let _ = side.urgent.send(destination, &mut backwater_udp::Transmit::new(destination, &slices));
        }
    }
}

impl Side {
    /// Fits the send buffer to a path of so many bytes per second; 0: not known.
    pub(crate) fn size_send_buffer(&mut self, rate: u64) {
        let wanted = send_buffer(rate, self.default_send_buffer);
        // Not for what the measurement swings by.
        if wanted.abs_diff(self.send_buffer) > self.send_buffer / 4 && self.options.set_send_buffer_size(wanted).is_ok()
        {
            self.send_buffer = wanted;
        }
    }

    /// Sends messages that wait, as far as there is room.
    pub(crate) fn poll_urgent(&mut self, cx: &mut Context<'_>) {
        let _ = self.urgent.poll_flush(cx);
    }
}

impl Options {
    /// One of the family of `addr`, with the mark.
    fn socket(&self, addr: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        #[cfg(target_os = "linux")]
        if self.mark != 0 {
            socket.set_mark(self.mark)?;
        }
        Ok(socket)
    }

    fn open(&self, addr: SocketAddr) -> io::Result<Side> {
        let socket = self.socket(addr)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&addr.into())?;
        let options = socket.try_clone()?;
        // Linux reports twice what was asked for.
        let default_send_buffer = options.send_buffer_size()? / if cfg!(target_os = "linux") { 2 } else { 1 };
        let socket = UdpSocket::builder()
            .receive_buffer(RECEIVE_BUFFER)
            .backpressure(self.backpressure.clone())
            .stats(self.stats.clone())
            .from_std(socket.into())?;
        Ok(Side {
            receiver: socket.receiver(),
            urgent: SendQueue::new(socket.clone(), OF_URGENT),
            data: SendQueue::new(socket.clone(), OF_DATA),
            socket,
            options,
            default_send_buffer,
            send_buffer: default_send_buffer,
        })
    }
}

/// What becomes of data that has no way.
pub(crate) fn dropped(data: &Transmit<'_>) -> Outcome {
    Outcome { dropped: data.bytes.len().div_ceil(data.segment_size.max(1)), ..Outcome::default() }
}

/// What a report says, with the bytes that were sent. `EINVAL` and `EADDRNOTAVAIL` may mean that the address to send from is no longer
/// this host's.
fn outcome(report: &SendReport, bytes: usize) -> Outcome {
    let source_is_gone =
        [DropReason::Invalid, DropReason::Unreachable].iter().any(|&reason| report.dropped.get(reason) > 0);
    Outcome { sent: report.sent as usize, dropped: report.dropped.total() as usize, bytes, source_is_gone }
}

/// Bytes that the send buffer should have, for a path of so many bytes per second (0: not known): no more than the system gives,
/// which may be little (macOS: 9,216).
fn send_buffer(rate: u64, default: usize) -> usize {
    match usize::try_from(rate / SEND_BUFFER_PER_SECOND) {
        Ok(0) | Err(_) => default,
        Ok(bytes) => bytes.max(LEAST_SEND_BUFFER).min(default),
    }
}

/// Whether the system lacks the family of addresses.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::AddrNotAvailable)
        || error.to_string().contains("not supported")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_send_buffer_fits_the_path_and_the_system() {
        for (rate, default, wanted) in [
            (0, 200_000, 200_000),
            (1_000, 200_000, LEAST_SEND_BUFFER),
            (5_000_000, 200_000, 100_000),
            (u64::MAX, 200_000, 200_000),
            (1_000, 9_216, 9_216),
            (5_000_000, 9_216, 9_216),
        ] {
            assert_eq!(send_buffer(rate, default), wanted, "{rate} {default}");
        }
    }
}
