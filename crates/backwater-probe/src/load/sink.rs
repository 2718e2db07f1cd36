//! The sink of a load.

use std::{
    io,
    net::{SocketAddr, UdpSocket as StdSocket},
    task::{Context, Waker},
    time::Instant,
};

use backwater_udp::{Receiver, RecvBatch, UdpSocket};
use socket2::{Domain, Socket, Type};

use super::{STAMP_LEN, TIME_BITS};
use crate::latency::Latencies;

/// Receives and counts datagrams.
#[derive(Debug)]
pub(super) struct Sink {
    local_addrs: Vec<SocketAddr>,
    source: Source,
    count: Count,
}

#[derive(Debug)]
enum Source {
    /// Receives GRO batches, where the system has them.
    Trains { receivers: Vec<Receiver>, batch: RecvBatch },
    /// Receives datagrams one by one, as most peers do.
    Plain { socket: StdSocket, buffer: Box<[u8]> },
}

#[derive(Debug, Default)]
struct Count {
    run: u8,
    size: usize,
    received_of_run: u64,
    received_in_phase: u64,
    trains: usize,
    latencies: Latencies,
}

/// The stamp that a sender writes into a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    run: u8,
    /// When the datagram was sent, if it is the first of its GSO batch.
    time: Option<u64>,
}

/// The receive buffer to request, in bytes. The system may grant less.
const RECEIVE_BUFFER: usize = 64 << 20;

/// GRO batches per system call.
const SLOTS: usize = 64;

/// Full receive batches in a row before the sources send again.
const BATCHES_PER_LOOK: usize = 4;

/// The same for a plain sink, in datagrams.
const DATAGRAMS_PER_LOOK: usize = 256;

/// One received batch in so many is searched for send times. A prime number: with datagrams that arrive one by one, another number
/// would always sample the same place in each sent batch, and rarely the one with the time.
const SAMPLED: usize = 13;

impl Sink {
    /// Receives at these sockets.
    pub(super) fn at(sockets: &[UdpSocket]) -> Self {
        let receivers = sockets.iter().map(UdpSocket::receiver).collect();
        Self {
            local_addrs: sockets.iter().map(UdpSocket::local_addr).collect(),
            source: Source::Trains { receivers, batch: RecvBatch::new(SLOTS) },
            count: Count::default(),
        }
    }

    /// Receives datagrams at `addr` one by one.
    pub(super) fn plain(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, None)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        let socket = StdSocket::from(socket);
        let local_addrs = vec![socket.local_addr()?];
        let source = Source::Plain { socket, buffer: vec![0; 1 << 16].into() };
        Ok(Self { local_addrs, source, count: Count::default() })
    }

    pub(super) fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// Counts from zero. Payloads are now of this size, and of this run.
    pub(super) fn begin(&mut self, run: u8, size: usize) {
        let mut latencies = std::mem::take(&mut self.count.latencies);
        latencies.clear();
        self.count = Count { run, size, latencies, ..Count::default() };
    }

    /// Datagrams of this run.
    pub(super) fn received_of_run(&self) -> u64 {
        self.count.received_of_run
    }

    /// Datagrams received since this run began, of this run or an earlier one. The receive rate counts all.
    pub(super) fn received_in_phase(&self) -> u64 {
        self.count.received_in_phase
    }

    pub(super) fn latency(&mut self, percent: usize) -> Option<f64> {
        self.count.latencies.percentile(percent)
    }

    /// Receives what has arrived, without waiting, then yields to the reactor, which notices whether there is more.
    pub(super) async fn look(&mut self, start: Instant) -> io::Result<()> {
        match &mut self.source {
            Source::Trains { receivers, batch } => {
                let mut cx = Context::from_waker(Waker::noop());
                let mut drained = false;
                // A socket that the reactor has not seen anything at costs no system call.
                for receiver in receivers {
                    for _ in 0..BATCHES_PER_LOOK {
                        if receiver.poll_recv(&mut cx, batch)?.is_pending() {
                            drained = true;
                            break;
                        }
                        let now = start.elapsed().as_nanos() as u64;
                        batch.gro_batches().for_each(|train| self.count.add(train.payload, train.segment_size, now));
                        if !batch.is_full() {
                            break;
                        }
                    }
                }
                if drained {
                    // Only the reactor can tell that there is more, and it runs when this yields.
                    tokio::task::yield_now().await;
                }
            }
            Source::Plain { socket, buffer } => {
                let now = start.elapsed().as_nanos() as u64;
                for _ in 0..DATAGRAMS_PER_LOOK {
                    match socket.recv(buffer) {
                        Ok(len) => self.count.add(buffer.get(..len).unwrap_or_default(), len, now),
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                        Err(e) => return Err(e),
                    }
                }
            }
        }
        Ok(())
    }
}

impl Count {
    /// Counts a batch by its first and last datagram. A sampled batch is counted datagram by datagram.
    #[inline]
    fn add(&mut self, train: &[u8], segment_size: usize, now: u64) {
        self.trains += 1;
        let size = self.size;
        let mut stamps = train.chunks(segment_size.max(1)).map(|datagram| stamp(datagram, size));
        if self.trains.is_multiple_of(SAMPLED) {
            for stamp in stamps.flatten() {
                self.count(stamp, 1);
                if let Some(time) = stamp.time.filter(|_| stamp.run == self.run) {
                    self.latencies.record(now.saturating_sub(time));
                }
            }
            return;
        }
        let datagrams = stamps.len() as u64;
        let Some(first) = stamps.next().flatten() else { return };
        // The datagrams of a source stay in order, so that the first and the last tell the run of those between.
        match stamps.next_back() {
            Some(last) if last.is_none_or(|last| last.run != first.run) => {
                self.count(first, 1);
                stamps.chain([last]).flatten().for_each(|stamp| self.count(stamp, 1));
            }
            Some(_) | None => self.count(first, datagrams),
        }
    }

    #[inline]
    fn count(&mut self, stamp: Stamp, datagrams: u64) {
        self.received_in_phase += datagrams;
        if stamp.run == self.run {
            self.received_of_run += datagrams;
        }
    }
}

#[inline]
fn stamp(datagram: &[u8], size: usize) -> Option<Stamp> {
    // From the end: on the way down, and without a relay in between, there is a channel header.
    let at = datagram.len().checked_sub(size)?;
    let stamp = u64::from_be_bytes(*datagram.get(at..at + STAMP_LEN)?.first_chunk()?);
    let time = stamp & ((1 << TIME_BITS) - 1);
    Some(Stamp { run: (stamp >> TIME_BITS) as u8, time: (time != 0).then_some(time) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Datagrams of ten bytes with two bytes in front, as a relay that joins datagrams sends them.
    fn train(stamps: &[(u8, u64)]) -> Vec<u8> {
        let one = |&(run, time): &(u8, u64)| {
            [&[1, 2][..], &(u64::from(run) << TIME_BITS | time).to_be_bytes(), &[3, 4]].concat()
        };
        stamps.iter().flat_map(one).collect()
    }

    #[test]
    fn trains_are_counted_whole_and_by_run() {
        let mut count = Count { run: 2, size: 10, ..Count::default() };
        for _ in 0..SAMPLED {
            count.add(&train(&[(2, 100), (2, 0), (2, 0), (2, 400), (2, 0)]), 12, 1100);
        }
        let all = 5 * SAMPLED as u64;
        assert_eq!((count.received_of_run, count.received_in_phase), (all, all));
        assert_eq!(count.latencies.percentile(100), Some(1.0), "of the one that was sampled");
        assert_eq!(count.latencies.percentile(50), Some(0.7));
        // A batch that begins in the run before.
        count.add(&train(&[(1, 100), (1, 0), (2, 400)]), 12, 1000);
        assert_eq!((count.received_of_run, count.received_in_phase), (all + 1, all + 3));
        // Not a datagram of the load.
        count.add(&[0; 9], 9, 1000);
        count.add(&[], 0, 1000);
        assert_eq!(count.received_in_phase, all + 3);
    }
}
