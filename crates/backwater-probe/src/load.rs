//! A load that is faster than the measured servers.
//!
//! Sources send prepared GSO batches, and a sink counts the datagrams that arrive. On the way up the clients are the sources and a peer
//! is the sink; on the way down the reverse; from client to client the clients are both. One thread sends and receives, and does not
//! sleep while a load runs: the server would pay for waking a receiver that sleeps.

mod sink;
mod source;

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use backwater_stun::{AddressFamily, CHANNEL_HEADER_LEN, ChannelData, ChannelNumber};
use backwater_udp::UdpSocket;
use serde::Serialize;
use sink::Sink;
use source::{Flow, Sent, Sources};

use crate::{
    clients::{Clients, Round, generator_socket},
    drops::dropped_at,
    pace::Pace,
    turn::{Credential, TurnError},
};

/// The direction of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the clients to a peer, as ChannelData to the server.
    Up,
    /// From a peer to the clients' relayed addresses.
    Down,
    /// From client to client, both ways between the two of each pair: each has a channel to the other's relayed address.
    Across,
}

/// The relay between the sources and the sink.
#[derive(Clone, Debug)]
pub enum Via {
    /// A TURN server; each client has an allocation with a channel.
    Turn(SocketAddr, Credential),
    /// A [`Forwarder`](crate::forward::Forwarder) for this direction and peer, without TURN.
    Forwarder(SocketAddr),
    /// Nothing: measures the generator and the system alone.
    Nothing,
}

/// The server to load, and the clients.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The relay.
    pub via: Via,
    /// The direction.
    pub direction: Direction,
    /// The number of clients; an even number across.
    pub clients: usize,
    /// The peer's address. Port 0 is any port.
    pub peer: SocketAddr,
    /// Whether the peer receives datagrams one by one instead of in GRO batches; up only. On loopback the kernel then splits each GSO
    /// batch in the sender's time, which is the cost of a peer without receive offload.
    pub plain_sink: bool,
}

/// The load to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Bytes of payload in each datagram; at least [`MIN_SIZE`], at most [`MAX_SIZE`].
    pub size: usize,
    /// Datagrams in each GSO batch; at least one.
    pub burst: usize,
    /// Datagrams per second, of all clients together. Zero is as fast as possible.
    pub rate: f64,
    /// How long the load runs before the measurement.
    pub warm_up: Duration,
    /// How long the measurement takes.
    pub duration: Duration,
}

/// The outcome of a load.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The direction.
    pub direction: Direction,
    /// Clients that sent or received.
    pub clients: usize,
    /// Bytes of payload in each datagram.
    pub size: usize,
    /// Datagrams in each GSO batch.
    pub burst: usize,
    /// Datagrams per second that were asked for; zero is as fast as possible.
    pub rate: f64,
    /// The measured time in seconds.
    pub seconds: f64,
    /// Datagrams that the kernel took.
    pub sent: u64,
    /// Datagrams of those that reached the sink, within the measured time or later.
    pub received: u64,
    /// Datagrams of those that did not.
    pub lost: u64,
    /// `lost / sent`.
    pub loss: f64,
    /// Datagrams that the kernel did not take; they are not in `sent`.
    pub refused: u64,
    /// `sent / seconds`.
    pub sent_per_second: f64,
    /// Datagrams that reached the sink within those seconds, per second.
    pub received_per_second: f64,
    /// Datagrams that the kernel dropped in front of the sink, where the system counts them. They are in `lost`, though the server did
    /// not lose them.
    pub sink_dropped: Option<u64>,
    /// Median of the sampled latencies from source to sink, in microseconds; one received GRO batch in 13 is sampled.
    pub p50_us: Option<f64>,
    /// 99th percentile of the same.
    pub p99_us: Option<f64>,
    /// Whether `loss` is the server's: false if the sink itself lost datagrams.
    pub valid: bool,
}

/// Sources that are ready to send, and a sink.
#[derive(Debug)]
pub struct Session {
    direction: Direction,
    clients: Clients,
    allocated: bool,
    sources: Sources,
    sink: Sink,
    /// The number of the run, which is in each payload, so that datagrams of one load do not count for the next.
    run: u8,
    start: Instant,
}

/// Why a load failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server could not be used.
    #[error(transparent)]
    Turn(#[from] TurnError),
    /// The datagrams that introduce the clients to the forwarder did not arrive.
    #[error("{0}: nothing is forwarded")]
    NotForwarded(SocketAddr),
    /// The load cannot be sent.
    #[error("{0}")]
    Invalid(&'static str),
    /// The load was stopped before it was done.
    #[error("stopped by a signal")]
    Stopped,
}

/// The smallest payload: the stamp.
pub const MIN_SIZE: usize = STAMP_LEN;

/// The largest payload: the largest UDP payload over IPv4, less the channel header.
pub const MAX_SIZE: usize = 65_507 - CHANNEL_HEADER_LEN;

/// The start of each payload: the run in the first byte, then the time in nanoseconds since the session's start, or
/// zero if it is not sampled.
const STAMP_LEN: usize = 8;
const TIME_BITS: u32 = 56;

/// Datagrams sent before the sink is read again.
const DATAGRAMS_PER_LOOK: usize = 128;
/// GSO batches in one system call.
const MOST_BATCHES: usize = 64;

/// How long the sink waits for the last datagrams after the sending has ended, at most.
const LONGEST_DRAIN: Duration = Duration::from_millis(500);
/// How long it waits after each datagram that arrives then.
const QUIET: Duration = Duration::from_millis(30);

/// The longest time between two yields of a load. The runtime receives signals when the load yields.
const LONGEST_TURN: Duration = Duration::from_millis(100);

/// The channel of every client.
pub(crate) const CHANNEL: ChannelNumber = ChannelNumber::MIN;

impl Session {
    /// Makes clients and a peer, with allocations and channels where there is a TURN server.
    ///
    /// # Errors
    /// See [`LoadError`]. The allocations are ended then.
    pub async fn open(setup: &Setup) -> Result<Self, LoadError> {
        Self::open_until(setup, std::future::pending()).await
    }

    /// Like [`open`](Self::open), until `stop` resolves.
    ///
    /// # Errors
    /// As [`open`](Self::open), or [`LoadError::Stopped`].
    pub async fn open_until(setup: &Setup, stop: impl Future<Output = ()>) -> Result<Self, LoadError> {
        let &Setup { direction, clients: count, .. } = setup;
        if count == 0 || direction == Direction::Across && count % 2 == 1 {
            return Err(LoadError::Invalid("there must be clients, and an even number of them across"));
        }
        if setup.plain_sink && direction != Direction::Up {
            return Err(LoadError::Invalid("only the peer of a load that goes up can be a plain one"));
        }
        let (peer, plain) = if setup.plain_sink {
            (None, Some(Sink::plain(setup.peer)?))
        } else {
            (Some(generator_socket(setup.peer)?), None)
        };
        let at_peer = peer.as_ref().map(UdpSocket::local_addr).or(plain.as_ref().map(|sink| sink.local_addrs()[0]));
        let at_peer = at_peer.unwrap_or(setup.peer);
        let server = match setup.via {
            Via::Turn(server, _) | Via::Forwarder(server) => server,
            Via::Nothing => at_peer,
        };
        let mut clients = Clients::new(server, count)?;
        let (towards_peer, towards_client): (Vec<SocketAddr>, Vec<SocketAddr>) = match &setup.via {
            Via::Turn(_, credential) => {
                let allocated = tokio::select! {
                    biased;
                    () = stop => Err(LoadError::Stopped),
                    allocated = allocate(&mut clients, credential, direction, at_peer) => allocated,
                };
                if allocated.is_err() {
                    clients.give_back().await;
                }
                (vec![server; count], allocated?)
            }
            Via::Forwarder(_) => (vec![server; count], Vec::new()),
            Via::Nothing => {
                let locals: Option<Vec<_>> = (0..count).map(|i| clients.local(i)).collect();
                let locals = locals.ok_or(NO_ADDRESS)?;
                let across = direction == Direction::Across;
                ((0..count).map(|i| if across { locals[i ^ 1] } else { at_peer }).collect(), locals)
            }
        };
        let mut ups = Sources::new(clients.sockets());
        ups.flows = clients.iter().zip(towards_peer).map(|(c, to)| Flow { sender: c.socket, from: c.ip, to }).collect();
        let mut egress = Vec::new();
        if let (Via::Forwarder(_), Some(peer)) = (&setup.via, &peer) {
            let arrival = if direction == Direction::Across { clients.sockets() } else { std::slice::from_ref(peer) };
            egress = ups.open_ways(arrival, direction == Direction::Across).await?;
        }
        let (sources, sink) = match (direction, peer) {
            (Direction::Up, peer) => (ups, plain.unwrap_or_else(|| Sink::at(peer.as_slice()))),
            (Direction::Across, _) | (Direction::Down, None) => (ups, Sink::at(clients.sockets())),
            (Direction::Down, Some(peer)) => {
                let mut downs = Sources::new(&[peer]);
                let to = towards_client.into_iter().chain(egress);
                downs.flows = to.map(|to| Flow { sender: 0, from: None, to }).collect();
                (downs, Sink::at(clients.sockets()))
            }
        };
        let allocated = matches!(setup.via, Via::Turn(..));
        Ok(Self { direction, clients, allocated, sources, sink, run: 0, start: Instant::now() })
    }

    /// Sends a load. Calls `meter` when the measurement begins and when it ends.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub async fn run<M>(&mut self, load: &Load, mut meter: impl FnMut() -> M) -> Result<(Outcome, [M; 2]), LoadError> {
        let length = match u16::try_from(load.size) {
            Ok(length) if (MIN_SIZE..=MAX_SIZE).contains(&load.size) => length,
            _ => return Err(LoadError::Invalid("the size is out of range")),
        };
        if load.burst == 0 {
            return Err(LoadError::Invalid("there is nothing to send"));
        }
        let header = ChannelData::header(CHANNEL, length);
        self.sources.prepare(if self.direction == Direction::Down { &[] } else { &header }, load);
        let dropped_before = dropped_at(self.sink.local_addrs());

        self.begin(load);
        self.send_for(load, load.warm_up).await?;
        self.begin(load);
        let (before, began) = (meter(), Instant::now());
        let sent = self.send_for(load, load.duration).await?;
        let (after, seconds) = (meter(), began.elapsed().as_secs_f64());
        let in_time = self.sink.received_in_phase();
        self.drain(sent.datagrams).await?;

        let sink_dropped = dropped_at(self.sink.local_addrs()).zip(dropped_before).map(|(now, before)| now - before);
        let received = self.sink.received_of_run();
        let lost = sent.datagrams.saturating_sub(received);
        let [p50_us, p99_us] = [50, 99].map(|percent| self.sink.latency(percent));
        let outcome = Outcome {
            direction: self.direction,
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
    /// The server refuses, or does not answer.
    pub async fn close(self) -> Result<(), LoadError> {
        let Self { mut clients, allocated, sink, .. } = self;
        // A way down ends at the clients, and a socket has one receiver.
        drop(sink);
        if allocated {
            refused(clients.release().await?)?;
        }
        Ok(())
    }

    /// Begins a run: stamps all datagrams with its number.
    fn begin(&mut self, load: &Load) {
        self.run = self.run.wrapping_add(1);
        self.sink.begin(self.run, load.size);
        self.sources.stamp_all(self.run);
    }

    async fn send_for(&mut self, load: &Load, duration: Duration) -> io::Result<Sent> {
        let mut sent = Sent::default();
        let now = |start: Instant| start.elapsed().as_nanos() as u64;
        let began = now(self.start);
        let end = began + duration.as_nanos() as u64;
        let mut pace = Pace::new(load.rate, load.burst, began);
        let most = (DATAGRAMS_PER_LOOK / load.burst).clamp(1, MOST_BATCHES);
        let (mut batches, mut yielded) = (0, began);
        loop {
            let time = now(self.start);
            if time >= end {
                return Ok(sent);
            }
            if time - yielded >= LONGEST_TURN.as_nanos() as u64 {
                yielded = time;
                tokio::task::yield_now().await;
            }
            let due = pace.due(time, most);
            self.sources.send(due, self.run, time, &mut sent)?;
            batches += due;
            // There is time for it when nothing is due.
            if due == 0 || batches >= most {
                batches = 0;
                self.sink.look(self.start).await?;
            }
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

/// Allocates for each client, with a channel to the peer or, across, to the relayed address of its partner. Returns the relayed
/// addresses.
async fn allocate(
    clients: &mut Clients,
    credential: &Credential,
    direction: Direction,
    peer: SocketAddr,
) -> Result<Vec<SocketAddr>, LoadError> {
    refused(clients.allocate(credential, AddressFamily::of(&peer)).await?)?;
    let relayed: Option<Vec<_>> = (0..clients.len()).map(|i| clients.relayed(i)).collect();
    let relayed = relayed.ok_or(NO_ADDRESS)?;
    let partner = |i: usize| if direction == Direction::Across { relayed[i ^ 1] } else { peer };
    refused(clients.bind_channels(CHANNEL, partner).await?)?;
    Ok(relayed)
}

const NO_ADDRESS: LoadError = LoadError::Invalid("a client has no address");

/// Returns an error if any request of a round was refused.
fn refused(round: Round) -> Result<(), TurnError> {
    round.refusal.map_or(Ok(()), Err)
}
