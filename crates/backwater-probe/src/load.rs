//! A load that is faster than the servers it measures.
//!
//! N clients, each with a socket of its own, send ChannelData to the server, which relays it to the session's own
//! sink. One thread sends and receives, and never sleeps while a load runs: a receiver that sleeps makes the server
//! pay for waking it.
//!
//! Only the way up, from client to peer, is built. The way down and client to client will be other arrangements of
//! the same parts: trains prepared in advance, and a sink.

mod sink;

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr, UdpSocket as StdSocket},
    time::{Duration, Instant},
};

use backwater_stun::{AddressFamily, CHANNEL_HEADER_LEN, ChannelData, ChannelNumber, Code};
use backwater_udp::{Sender, Transmit, UdpSocket};
use serde::Serialize;
use sink::Sink;

use crate::{
    drops::dropped_at,
    errno::is_no_buffers,
    pace::Pace,
    turn::{Allocation, Credential, TurnError},
};

/// Whom to load, and as how many clients.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The server.
    pub server: SocketAddr,
    /// The user that allocates. `None` is *raw*: nothing is allocated, and ChannelData is sent all the same, for a
    /// forwarder that wants no TURN.
    pub credential: Option<Credential>,
    /// How many.
    pub clients: usize,
    /// Where the sink listens. Port 0 is any.
    pub sink: SocketAddr,
    /// Whether the sink receives datagrams one by one instead of in trains (GRO). On loopback the sender's kernel then
    /// takes a train apart, in the sender's time: what it costs to reach a peer without receive offload.
    pub plain_sink: bool,
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Bytes of payload in each datagram; at least [`MIN_SIZE`], at most [`MAX_SIZE`].
    pub size: usize,
    /// Datagrams in each train; at least one.
    pub burst: usize,
    /// Datagrams per second, of all clients together. Zero is as fast as possible.
    pub rate: f64,
    /// How long the load lasts before it counts.
    pub warm_up: Duration,
    /// How long it counts.
    pub duration: Duration,
}

/// What came of a load.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Clients that sent.
    pub clients: usize,
    /// Bytes of payload in each datagram.
    pub size: usize,
    /// Datagrams in each train.
    pub burst: usize,
    /// Datagrams per second that were asked for; zero is as fast as possible.
    pub rate: f64,
    /// How long it counted.
    pub seconds: f64,
    /// Datagrams that the kernel took from the clients.
    pub sent: u64,
    /// How many of them reached the sink, early or late.
    pub received: u64,
    /// How many did not.
    pub lost: u64,
    /// `lost / sent`.
    pub loss: f64,
    /// Datagrams that the kernel did not take from the clients; they are not in `sent`.
    pub refused: u64,
    /// `sent / seconds`.
    pub sent_per_second: f64,
    /// Datagrams that reached the sink within those seconds, per second.
    pub received_per_second: f64,
    /// Datagrams that the kernel dropped in front of the sink, where the system says. They are in `lost`, but are no
    /// loss of the server's.
    pub sink_dropped: Option<u64>,
    /// Median of the sampled latencies from client to sink, in microseconds; one train in 16 is sampled.
    pub p50_us: Option<f64>,
    /// 99th percentile of the same.
    pub p99_us: Option<f64>,
    /// Whether `loss` can be held against the server: false when the sink itself lost.
    pub valid: bool,
}

/// Clients that are ready to send, and their sink.
#[derive(Debug)]
pub struct Session {
    server: SocketAddr,
    clients: Vec<Client>,
    sink: Sink,
    /// Told apart in the payload, so that what a load leaves under way does not count for the next.
    run: u8,
    start: Instant,
}

/// Why there is no load.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server could not be used.
    #[error(transparent)]
    Turn(#[from] TurnError),
    /// The load cannot be sent.
    #[error("{0}")]
    Invalid(&'static str),
}

/// The smallest payload: the stamp.
pub const MIN_SIZE: usize = STAMP_LEN;

/// The largest payload: what a UDP datagram over IPv4 holds, less the channel header.
pub const MAX_SIZE: usize = 65_507 - CHANNEL_HEADER_LEN;

#[derive(Debug)]
struct Client {
    sender: Sender,
    /// The same socket, connected. A single datagram leaves by `send`, which looks up no route: some 6 % less work for
    /// the generator, which matters where the server has no more work for each datagram than it has.
    connected: StdSocket,
    allocation: Option<Allocation>,
    /// The train, with its channel headers.
    train: Vec<u8>,
    trains_sent: usize,
}

/// What a phase of a load counted.
#[derive(Default)]
struct Sent {
    datagrams: u64,
    refused: u64,
}

/// The start of each payload: the run in the first byte, then the time in nanoseconds since the session's start, or
/// zero if it is not sampled.
const STAMP_LEN: usize = 8;
const TIME_BITS: u32 = 56;

/// One train in so many carries the time.
const SAMPLED: usize = 16;

/// Trains sent, or nanoseconds gone, before the sink is looked at again.
const TRAINS_PER_LOOK: usize = 16;
const NANOS_PER_LOOK: u64 = 20_000;

/// What is under way when the sending ends gets this long to arrive, and this long after whatever arrived last.
const LONGEST_DRAIN: Duration = Duration::from_millis(500);
const QUIET: Duration = Duration::from_millis(30);

/// Ports that a client tries, but one.
const MAX_PORTS: usize = 8;

const CHANNEL: ChannelNumber = ChannelNumber::MIN;

impl Session {
    /// Makes the clients; unless raw, each allocates and binds a channel to the sink.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub async fn open(setup: &Setup) -> Result<Self, LoadError> {
        let sink = Sink::bind(setup.sink, setup.plain_sink)?;
        let mut clients = Vec::with_capacity(setup.clients);
        for _ in 0..setup.clients {
            clients.push(Client::open(setup, sink.local_addr()).await?);
        }
        Ok(Self { server: setup.server, clients, sink, run: 0, start: Instant::now() })
    }

    /// Where the sink listens.
    pub fn sink(&self) -> SocketAddr {
        self.sink.local_addr()
    }

    /// Sends a load. `meter` is read when it begins to count and when it ends.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub async fn run<M>(&mut self, load: &Load, mut meter: impl FnMut() -> M) -> Result<(Outcome, [M; 2]), LoadError> {
        let frame = load.size + CHANNEL_HEADER_LEN;
        let length = match u16::try_from(load.size) {
            Ok(length) if (MIN_SIZE..=MAX_SIZE).contains(&load.size) => length,
            _ => return Err(LoadError::Invalid("the size is out of range")),
        };
        if load.burst == 0 || self.clients.is_empty() {
            return Err(LoadError::Invalid("there is nothing to send"));
        }
        for client in &mut self.clients {
            client.train.resize(frame * load.burst, 0);
            for datagram in client.train.chunks_exact_mut(frame) {
                datagram[..CHANNEL_HEADER_LEN].copy_from_slice(&ChannelData::header(CHANNEL, length));
            }
        }
        let dropped_before = dropped_at(self.sink.local_addr());

        self.begin(load);
        self.send_for(load, load.warm_up).await?;
        self.begin(load);
        let (before, began) = (meter(), Instant::now());
        let sent = self.send_for(load, load.duration).await?;
        let (after, seconds) = (meter(), began.elapsed().as_secs_f64());
        let in_time = self.sink.received_in_phase();
        self.drain(sent.datagrams).await?;

        let sink_dropped = dropped_at(self.sink.local_addr()).zip(dropped_before).map(|(now, before)| now - before);
        let received = self.sink.received_of_run();
        let lost = sent.datagrams.saturating_sub(received);
        let [p50_us, p99_us] = [50, 99].map(|percent| self.sink.latency(percent));
        let outcome = Outcome {
            clients: self.clients.len(),
            size: load.size,
            burst: load.burst,
            rate: load.rate,
            seconds,
            sent: sent.datagrams,
            received,
            lost,
            loss: lost as f64 / (sent.datagrams.max(1)) as f64,
            refused: sent.refused,
            sent_per_second: sent.datagrams as f64 / seconds,
            received_per_second: in_time as f64 / seconds,
            sink_dropped,
            p50_us,
            p99_us,
            valid: sink_dropped.is_none_or(|dropped| dropped == 0),
        };
        Ok((outcome, [before, after]))
    }

    /// Ends the allocations.
    ///
    /// # Errors
    /// The first that could not be ended; the others are all the same.
    pub async fn close(self) -> Result<(), LoadError> {
        let mut result = Ok(());
        for allocation in self.clients.into_iter().filter_map(|client| client.allocation) {
            result = result.and(allocation.release().await);
        }
        Ok(result?)
    }

    /// A new run: stamps all trains with its number.
    fn begin(&mut self, load: &Load) {
        self.run = self.run.wrapping_add(1);
        self.sink.begin(self.run, load.size);
        for client in &mut self.clients {
            for datagram in client.train.chunks_exact_mut(load.size + CHANNEL_HEADER_LEN) {
                stamp(datagram, self.run, 0);
            }
        }
    }

    async fn send_for(&mut self, load: &Load, duration: Duration) -> io::Result<Sent> {
        let mut sent = Sent::default();
        let now = |start: Instant| start.elapsed().as_nanos() as u64;
        let began = now(self.start);
        let end = began + duration.as_nanos() as u64;
        let mut pace = Pace::new(load.rate, load.burst, began);
        let (mut client, mut looked, mut trains) = (0, began, 0);
        loop {
            let time = now(self.start);
            if time >= end {
                return Ok(sent);
            }
            let due = pace.due(time, TRAINS_PER_LOOK);
            for _ in 0..due {
                self.clients[client].send(self.server, self.run, time, load.size, &mut sent)?;
                client = (client + 1) % self.clients.len();
            }
            trains += due;
            if trains >= TRAINS_PER_LOOK || time - looked >= NANOS_PER_LOOK {
                (looked, trains) = (time, 0);
                self.sink.look(self.start).await?;
            }
            std::hint::spin_loop();
        }
    }

    async fn drain(&mut self, expected: u64) -> io::Result<()> {
        let began = Instant::now();
        let (mut last, mut seen) = (began, self.sink.received_of_run());
        while seen < expected && began.elapsed() < LONGEST_DRAIN && last.elapsed() < QUIET {
            self.sink.look(self.start).await?;
            let now = self.sink.received_of_run();
            if now > seen {
                (last, seen) = (Instant::now(), now);
            }
        }
        Ok(())
    }
}

impl Client {
    /// A client whose channel leads to `sink`. A server may remember a port's last allocation for a while, and refuse
    /// another one (437); then another port does (RFC 8656 §7.4).
    async fn open(setup: &Setup, sink: SocketAddr) -> Result<Self, LoadError> {
        // Held until the end: a port that is still bound is not given out again.
        let mut refused = Vec::new();
        let family = AddressFamily::of(&sink);
        loop {
            let connected = StdSocket::bind(SocketAddr::new(local_ip(setup.server), 0))?;
            connected.connect(setup.server)?;
            let socket = UdpSocket::from_std(connected.try_clone()?)?;
            let sender = socket.sender();
            let allocation = match &setup.credential {
                None => None,
                Some(credential) => match Allocation::new(socket, setup.server, credential, family).await {
                    Err(TurnError::Refused { code: Code::ALLOCATION_MISMATCH, .. }) if refused.len() < MAX_PORTS => {
                        refused.push(connected);
                        continue;
                    }
                    result => {
                        let mut allocation = result?;
                        allocation.bind_channel(CHANNEL, sink).await?;
                        Some(allocation)
                    }
                },
            };
            return Ok(Self { sender, connected, allocation, train: Vec::new(), trains_sent: 0 });
        }
    }

    /// One train. What the kernel does not take now is not sent at all: a load is a rate, not a number of datagrams.
    #[inline]
    fn send(&mut self, server: SocketAddr, run: u8, time: u64, size: usize, sent: &mut Sent) -> io::Result<()> {
        let sampled = self.trains_sent.is_multiple_of(SAMPLED);
        self.trains_sent += 1;
        stamp(&mut self.train, run, if sampled { time } else { 0 });
        let frame = size + CHANNEL_HEADER_LEN;
        let datagrams = (self.train.len() / frame) as u64;
        let (result, taken) = if datagrams == 1 {
            let result = self.connected.send(&self.train);
            let taken = u64::from(result.is_ok());
            (result.map(drop), taken)
        } else {
            let slices = [IoSlice::new(&self.train)];
            let mut transmit = Transmit::new(server, &slices).segment_size(frame);
            let result = self.sender.try_send(&mut transmit);
            (result.map(drop), u64::from(transmit.report().sent))
        };
        sent.datagrams += taken;
        sent.refused += datagrams - taken;
        match result {
            // `ConnectionRefused` is an earlier datagram's: nobody listened.
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused) => Ok(()),
            Err(e) if !is_no_buffers(&e) => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Stamps the first datagram of a train.
#[inline]
fn stamp(train: &mut [u8], run: u8, time: u64) {
    let stamp = u64::from(run) << TIME_BITS | time & ((1 << TIME_BITS) - 1);
    if let Some(room) = train.get_mut(CHANNEL_HEADER_LEN..CHANNEL_HEADER_LEN + STAMP_LEN) {
        room.copy_from_slice(&stamp.to_be_bytes());
    }
}

/// What a client binds to, to reach `server`.
fn local_ip(server: SocketAddr) -> IpAddr {
    match server.ip() {
        ip if ip.is_loopback() => ip,
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    }
}
