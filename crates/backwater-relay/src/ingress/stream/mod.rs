//! Clients on connections: TURN over TCP and over TLS.
//!
//! A connection belongs to the thread that has accepted it. It has a task, which reads while the client takes its answers and while the
//! sockets of its allocation have room, and a bounded queue of what the client has not taken yet. Whoever has something for the client
//! writes it at once, or adds it to that queue.

mod connection;
mod frames;
mod half_open;
mod listener;
mod output;
mod proxy;
pub(crate) mod tls;

use std::{
    cell::{Cell, RefCell, RefMut},
    collections::HashMap,
    future::poll_fn,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use backwater_stun::{CHANNEL_HEADER_LEN, ChannelData, ChannelNumber};
use backwater_turn::{
    ClientAddr, FiveTuple,
    server::{Action, DropReason, MAX_REPLY},
};
use backwater_udp::{Backpressure, Policy};
use ipnet::IpNet;
use rustls::ServerConfig;
use tokio::{net::TcpStream, task::spawn_local};
use tracing::debug;

use self::{
    connection::{Connection, Outcome, Stage},
    frames::FrameError,
    half_open::HalfOpen,
    proxy::Header,
    tls::Tls,
};
use super::ClientLink;
use crate::{
    counters::Counters,
    fields::Fields,
    runs::{Place, Source},
    worker::{Worker, now},
};

pub(crate) use listener::listen;

/// How long a client may take nothing of what waits for it.
const MAX_STUCK: Duration = Duration::from_secs(10);

/// How often the thread looks for connections that are idle or stuck.
const TICK: Duration = Duration::from_secs(1);

/// Bytes that one system call receives.
const READ: usize = 64 << 10;

/// The same for a client without an allocation: 200 of the shortest requests, about a tenth of a millisecond.
const READ_BEFORE_ALLOCATION: usize = 4 << 10;

/// Receives of a connection before it lets the others run.
const BUDGET: usize = 4;

/// Bytes of datagrams that are put together for one write.
const BATCH: usize = 64 << 10;

/// Identifies a connection of a thread. It is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StreamId(u64);

macro_rules! cut_offs {
    ($($(#[$doc:meta])* $variant:ident $name:literal,)*) => {
        /// Why a connection ends.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum CutOff {
            $($(#[$doc])* $variant,)*
        }

        impl CutOff {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in metrics.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

cut_offs! {
    /// The client or the network has ended it.
    Gone "gone",
    /// What the client sends is neither STUN nor ChannelData nor TLS.
    NotTurn "not_turn",
    /// A message of more than 4,096 bytes of a client without an allocation.
    TooLong "too_long",
    /// What the client sends is no TLS that the relay speaks.
    Tls "tls",
    /// The PROXY protocol's header is missing or wrong, from an address that must send one.
    Proxy "proxy",
    /// There was no allocation for 15 seconds.
    Idle "idle",
    /// The oldest one without an allocation, when they were too many.
    HalfOpen "half_open",
    /// The client took nothing of what was for it for 10 seconds, or left 256 KiB of answers.
    Stalled "stalled",
    /// Another connection has the same addresses, according to a proxy.
    Replaced "replaced",
    /// Only descriptors were left that the relay keeps for itself.
    Descriptors "descriptors",
}

/// What a thread's connections have in common.
pub(crate) struct Options {
    /// `None`: no TLS.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// Whose connections begin with a header of the PROXY protocol.
    pub(crate) proxies: Vec<IpNet>,
    pub(crate) backpressure: Backpressure,
}

/// The connections of a thread.
pub(crate) struct Streams {
    options: Options,
    connections: RefCell<HashMap<StreamId, Rc<Connection>>>,
    by_tuple: RefCell<HashMap<(ClientAddr, SocketAddr), StreamId>>,
    half_open: RefCell<HalfOpen>,
    next: Cell<u64>,
    /// What a system call receives.
    received: RefCell<Box<[u8]>>,
    /// The same, decrypted.
    payload: RefCell<Vec<u8>>,
    batch: RefCell<Batch>,
}

/// Frames of datagrams for one client.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    frames: Vec<usize>,
}

impl Streams {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            options,
            connections: RefCell::default(),
            by_tuple: RefCell::default(),
            half_open: RefCell::default(),
            next: Cell::new(0),
            received: RefCell::new(vec![0; READ].into()),
            payload: RefCell::default(),
            batch: RefCell::default(),
        }
    }

    /// Whether nothing waits for any client.
    pub(crate) fn are_idle(&self) -> bool {
        self.connections.borrow().values().all(|connection| connection.is_idle())
    }

    pub(super) fn get(&self, id: StreamId) -> Option<Rc<Connection>> {
        self.connections.borrow().get(&id).cloned()
    }

    fn is_proxy(&self, ip: IpAddr) -> bool {
        self.options.proxies.iter().any(|net| net.contains(&ip))
    }
}

impl Worker {
    /// Starts the task that looks for idle and stuck connections, in the current `LocalSet`.
    pub(crate) fn watch_streams(self: &Rc<Self>) {
        let worker = self.clone();
        spawn_local(async move {
            let _guard = worker.health.guard();
            loop {
                tokio::time::sleep(TICK).await;
                worker.check_streams(Instant::now());
            }
        });
    }

    /// Takes over a connection that was accepted.
    fn accept(self: &Rc<Self>, stream: TcpStream, client: SocketAddr) {
        self.counters.connections.add(1);
        if crate::ports::keep_descriptors(&stream).is_err() {
            self.counters.disconnected.add(1);
            return self.counters.count_cut_off(CutOff::Descriptors);
        }
        let streams = &self.streams;
        let id = StreamId(streams.next.replace(streams.next.get() + 1));
        let stage = if streams.is_proxy(client.ip()) { Stage::Proxy } else { Stage::First };
        // The client may have ended it already.
        let connection = listener::configure(&stream).and_then(|()| Connection::new(id, stream, client, stage));
        let Ok(connection) = connection.map(Rc::new) else {
            self.counters.disconnected.add(1);
            return self.counters.count_cut_off(CutOff::Gone);
        };
        streams.connections.borrow_mut().insert(id, connection.clone());
        if stage != Stage::Proxy {
            self.has_addresses(&connection, connection.five_tuple.get());
        }
        self.wait_for_allocation(&connection);
        let worker = self.clone();
        spawn_local(async move {
            let _guard = worker.health.guard();
            let why = poll_fn(|cx| worker.poll_connection(cx, &connection)).await;
            connection.say_goodbye();
            worker.end_connection(&connection, why);
        });
    }

    /// Registers the addresses of a connection. Only a proxy can name some that another connection has: that one is gone there.
    fn has_addresses(&self, connection: &Rc<Connection>, five_tuple: FiveTuple) {
        connection.five_tuple.set(five_tuple);
        let key = (five_tuple.client, five_tuple.server);
        let old = self.streams.by_tuple.borrow().get(&key).copied();
        if let Some(old) = old.and_then(|old| self.streams.get(old)) {
            self.end_connection(&old, CutOff::Replaced);
            old.cut_off(CutOff::Replaced);
        }
        self.streams.by_tuple.borrow_mut().insert(key, connection.id);
    }

    fn wait_for_allocation(&self, connection: &Connection) {
        let crowded = self.streams.half_open.borrow_mut().add(connection.id, connection.source(), Instant::now());
        if let Some(oldest) = crowded.and_then(|oldest| self.streams.get(oldest)) {
            oldest.cut_off(CutOff::HalfOpen);
        }
    }

    /// Notes that the client of a link has an allocation.
    pub(crate) fn link_allocated(&self, link: ClientLink, id: backwater_turn::server::AllocationId) {
        let ClientLink::Stream(stream) = link else { return };
        let Some(connection) = self.streams.get(stream) else { return };
        if connection.allocation.replace(Some(id)).is_none() {
            self.streams.half_open.borrow_mut().remove(stream);
        }
    }

    /// Notes that the allocation of a link's client has ended, or has another link.
    pub(crate) fn link_released(&self, link: ClientLink, id: backwater_turn::server::AllocationId) {
        let ClientLink::Stream(stream) = link else { return };
        let Some(connection) = self.streams.get(stream).filter(|c| c.allocation.get() == Some(id)) else { return };
        connection.allocation.set(None);
        self.wait_for_allocation(&connection);
        connection.wake();
    }

    /// Has the client of a link read again, whose allocation's socket has room.
    pub(crate) fn link_has_room(&self, link: ClientLink) {
        if let ClientLink::Stream(stream) = link
            && let Some(connection) = self.streams.get(stream)
            && connection.is_paused.get()
        {
            connection.wake();
        }
    }

    /// Whether clients can be reached there.
    pub(crate) fn is_link_alive(&self, link: ClientLink) -> bool {
        match link {
            ClientLink::Udp(_) => true,
            ClientLink::Stream(id) => self.streams.connections.borrow().contains_key(&id),
        }
    }

    /// Ends a connection, with what its client held. Does nothing if it has ended.
    fn end_connection(&self, connection: &Connection, why: CutOff) {
        if self.streams.connections.borrow_mut().remove(&connection.id).is_none() {
            return;
        }
        if why == CutOff::Stalled {
            listener::reset(&connection.stream);
        }
        let five_tuple = connection.five_tuple.get();
        let key = (five_tuple.client, five_tuple.server);
        let has_addresses = self.streams.by_tuple.borrow().get(&key) == Some(&connection.id);
        if has_addresses {
            self.streams.by_tuple.borrow_mut().remove(&key);
        }
        self.streams.half_open.borrow_mut().remove(connection.id);
        self.counters.disconnected.add(1);
        self.counters.count_cut_off(why);
        self.counters.stream_sent.add(connection.take_sent() as u64);
        self.counters.count_drop(DropReason::ClientGone, connection.datagrams());
        debug!(client = %five_tuple.client, why = why.name(), "a connection has ended");
        // One that has not come as far as its addresses has nothing under them.
        if has_addresses {
            let gone = self.server.borrow_mut().client_gone(five_tuple);
            if let Some((id, families)) = gone {
                self.close(id, families);
            }
            self.log_events();
        }
    }

    fn check_streams(&self, now: Instant) {
        loop {
            let Some(idle) = self.streams.half_open.borrow_mut().expire(now) else { break };
            self.streams.get(idle).into_iter().for_each(|connection| connection.cut_off(CutOff::Idle));
        }
        let policy = self.streams.options.backpressure.get();
        for connection in self.streams.connections.borrow().values() {
            if connection.stuck_since().is_some_and(|since| since + MAX_STUCK <= now) {
                connection.cut_off(CutOff::Stalled);
            }
            self.counters.count_drop(DropReason::SlowClient, connection.drop_late(policy, now));
        }
    }

    /// Sends what waits for the client and handles what it has sent, within a budget. Ready when the connection is to end.
    fn poll_connection(self: &Rc<Self>, cx: &mut Context<'_>, connection: &Rc<Connection>) -> Poll<CutOff> {
        connection.set_waker(cx.waker());
        for _ in 0..BUDGET {
            if let Some(why) = connection.end.get() {
                return Poll::Ready(why);
            }
            let now = Instant::now();
            let late = connection.drop_late(self.streams.options.backpressure.get(), now);
            self.counters.count_drop(DropReason::SlowClient, late);
            match connection.flush(cx, now) {
                Ok(sent) => self.counters.stream_sent.add(sent as u64),
                Err(_) => return Poll::Ready(CutOff::Gone),
            }
            connection.is_paused.set(!self.has_room(connection));
            if !connection.may_read() || connection.is_paused.get() {
                return Poll::Pending;
            }
            let mut received = self.streams.received.borrow_mut();
            let most = if connection.allocation.get().is_some() { READ } else { READ_BEFORE_ALLOCATION };
            match connection.stream.try_read(&mut received[..most]) {
                Ok(0) => return Poll::Ready(CutOff::Gone),
                Ok(len) => {
                    connection.is_handled.set(true);
                    let handled = self.handle_bytes(connection, &received[..len]);
                    connection.is_handled.set(false);
                    if let Err(why) = handled {
                        return Poll::Ready(why);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match connection.stream.poll_read_ready(cx) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(_)) => return Poll::Ready(CutOff::Gone),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Err(_) => return Poll::Ready(CutOff::Gone),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether the sockets of the client's allocation have room for more of it. If not, [`link_has_room`](Self::link_has_room) follows.
    fn has_room(&self, connection: &Connection) -> bool {
        connection.allocation.get().is_none_or(|id| self.is_allocation_idle(id))
    }

    /// Handles bytes as they come from the socket.
    fn handle_bytes(self: &Rc<Self>, connection: &Rc<Connection>, bytes: &[u8]) -> Result<(), CutOff> {
        if connection.stage.get() != Stage::Proxy {
            return self.handle_client_bytes(connection, bytes);
        }
        let mut header = connection.header.take();
        header.extend_from_slice(bytes);
        match proxy::parse(&header) {
            Header::Incomplete => {
                connection.header.replace(header);
                Ok(())
            }
            Header::Invalid => Err(CutOff::Proxy),
            Header::Complete { len, addresses } => {
                connection.stage.set(Stage::First);
                let five_tuple = addresses.map(|(client, server)| FiveTuple::tcp(ClientAddr(client), server));
                self.has_addresses(connection, five_tuple.unwrap_or(connection.five_tuple.get()));
                // From now on it counts as the client's.
                self.streams.half_open.borrow_mut().remove(connection.id);
                self.wait_for_allocation(connection);
                self.handle_client_bytes(connection, header.get(len..).unwrap_or_default())
            }
        }
    }

    /// Handles bytes of the client's own.
    fn handle_client_bytes(self: &Rc<Self>, connection: &Rc<Connection>, bytes: &[u8]) -> Result<(), CutOff> {
        if connection.stage.get() == Stage::First {
            let is_tls = match bytes.first() {
                None => return Ok(()),
                // A handshake record.
                Some(0x16) => true,
                Some(0..=3 | 0x40..=0x7F) => false,
                Some(_) => return Err(CutOff::NotTurn),
            };
            if is_tls {
                let config = self.streams.options.tls.clone().ok_or(CutOff::NotTurn)?;
                connection.tls.replace(Some(Box::new(Tls::new(config).map_err(|_| CutOff::Tls)?)));
            }
            connection.stage.set(Stage::Turn);
            self.counters.count_transport(is_tls);
        }
        let mut payload = self.streams.payload.borrow_mut();
        payload.clear();
        let decrypted = connection.tls.borrow_mut().as_mut().map(|tls| {
            // The handshake's answers, or the alert, are written with what is held.
            tls.decrypt(bytes, &mut payload)
        });
        match decrypted {
            None => self.handle_frames(connection, bytes),
            Some(Err(_)) => Err(CutOff::Tls),
            Some(Ok(closed)) => {
                self.handle_frames(connection, &payload)?;
                if closed { Err(CutOff::Gone) } else { Ok(()) }
            }
        }
    }

    /// Handles the frames that end in these bytes.
    fn handle_frames(self: &Rc<Self>, connection: &Rc<Connection>, mut bytes: &[u8]) -> Result<(), CutOff> {
        let why = |error| match error {
            FrameError::NotTurn => CutOff::NotTurn,
            FrameError::TooLong => CutOff::TooLong,
        };
        let may_be_long = || connection.allocation.get().is_some();
        let mut frames = connection.frames.take();
        if let Some(frame) = frames.complete(&mut bytes, may_be_long).map_err(why)? {
            self.handle_run(connection, &frame, frame.len(), may_be_long).map_err(why)?;
        }
        let handled = self.handle_run(connection, bytes, bytes.len(), may_be_long).map_err(why)?;
        frames.keep(bytes.get(handled..).unwrap_or_default());
        connection.frames.replace(frames);
        Ok(())
    }

    /// Handles the frames at the beginning of `bytes`, and returns the length of all of them.
    fn handle_run(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        bytes: &[u8],
        len: usize,
        may_be_long: impl Fn() -> bool + Copy,
    ) -> Result<usize, FrameError> {
        let (now, from) = (now(), connection.five_tuple.get());
        let mut runs = self.runs.borrow_mut();
        runs.clear();
        let (mut at, mut reply) = (0, [0; MAX_REPLY]);
        let error = loop {
            let rest = bytes.get(at..len).unwrap_or_default();
            let frame = match frames::next(rest, may_be_long) {
                Ok(Some(len)) => rest.get(..len).unwrap_or_default(),
                Ok(None) => break None,
                Err(error) => break Some(error),
            };
            let action = self.server.borrow_mut().handle_client(now, from, frame, &mut reply);
            if let Action::Forward { via, to, ref range, dont_fragment } = action {
                let fields = if dont_fragment { Fields::OWN.dont_fragment() } else { Fields::OWN };
                runs.push(via, to, fields, Place::new(0, at + range.start, range.len()), (1, 0));
            } else if action == Action::Drop(DropReason::Lookup) {
                self.handle_later(ClientLink::Stream(connection.id), from, frame);
            } else {
                self.act(ClientLink::Stream(connection.id), now.instant, from, action, &mut reply);
            }
            at += frame.len();
        };
        self.log_events();
        self.forward(now.instant, &runs, Source::Bytes(bytes));
        error.map_or(Ok(at), Err)
    }

    pub(super) fn reply_stream(&self, id: StreamId, reply: &[u8]) {
        if let Some(connection) = self.streams.get(id) {
            connection.reply(reply, Instant::now());
        }
    }

    pub(super) fn down_stream(&self, id: StreamId, now: Instant) -> Down<'_> {
        let policy = self.streams.options.backpressure.get();
        let batch = self.streams.batch.borrow_mut();
        Down { connection: self.streams.get(id), batch, policy, now, counters: &self.counters }
    }
}

/// The way from peers to one connection.
pub(crate) struct Down<'a> {
    /// `None`: it has ended.
    connection: Option<Rc<Connection>>,
    batch: RefMut<'a, Batch>,
    policy: Policy,
    now: Instant,
    counters: &'a Counters,
}

impl Down<'_> {
    pub(super) fn channel_data<'p>(&mut self, channel: ChannelNumber, payloads: impl Iterator<Item = &'p [u8]>) {
        for payload in payloads {
            // A UDP payload is shorter than 65,536 bytes. On a connection, padding is mandatory (RFC 8656 §12.5).
            let header = ChannelData::header(channel, payload.len() as u16);
            let padding = payload.len().next_multiple_of(4) - payload.len();
            self.add(&[&header, payload, &[0; CHANNEL_HEADER_LEN][..padding]]);
        }
    }

    pub(super) fn message(&mut self, parts: &[IoSlice<'_>]) {
        match parts {
            [one] => self.add(&[one]),
            [prefix, payload, padding] => self.add(&[prefix, payload, padding]),
            _ => debug_assert!(false, "a message of {} parts", parts.len()),
        }
    }

    pub(super) fn flush(&mut self) {
        if self.batch.frames.is_empty() {
            return;
        }
        let datagrams = self.batch.frames.len();
        self.counters.stream_accepted.add(datagrams as u64);
        let outcome = match &self.connection {
            Some(connection) => connection.send(&self.batch, self.policy, self.now),
            None => Outcome { gone: datagrams, ..Outcome::default() },
        };
        self.counters.stream_sent.add(outcome.sent as u64);
        self.counters.count_drop(DropReason::SlowClient, outcome.dropped);
        self.counters.count_drop(DropReason::ClientGone, outcome.gone);
        self.batch.bytes.clear();
        self.batch.frames.clear();
    }

    fn add(&mut self, parts: &[&[u8]]) {
        let len = parts.iter().map(|part| part.len()).sum();
        if !self.batch.frames.is_empty() && self.batch.bytes.len() + len > BATCH {
            self.flush();
        }
        parts.iter().for_each(|part| self.batch.bytes.extend_from_slice(part));
        self.batch.frames.push(len);
    }
}
