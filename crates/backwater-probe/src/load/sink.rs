//! Where a load arrives.

use std::{
    io,
    net::{SocketAddr, UdpSocket as StdSocket},
    task::{Context, Poll, Waker},
    time::Instant,
};

use backwater_udp::{Receiver, RecvBatch, UdpSocket};
use socket2::{Domain, Socket, Type};

use super::{STAMP_LEN, TIME_BITS};
use crate::latency::Latencies;

/// Receives and counts.
#[derive(Debug)]
pub(super) struct Sink {
    local_addr: SocketAddr,
    source: Source,
    count: Count,
}

#[derive(Debug)]
enum Source {
    /// Receives trains, where the system has that.
    Trains { receiver: Receiver, batch: RecvBatch },
    /// Receives datagrams one by one, as most peers do.
    Plain { socket: StdSocket, buffer: Box<[u8]> },
}

#[derive(Debug, Default)]
struct Count {
    run: u8,
    size: usize,
    received_of_run: u64,
    received_in_phase: u64,
    latencies: Latencies,
}

/// What to ask for; the system gives what it allows.
const RECEIVE_BUFFER: usize = 64 << 20;

/// Trains per system call.
const SLOTS: usize = 64;

/// Full batches in a row before the clients send again.
const BATCHES_PER_LOOK: usize = 4;

/// The same for a plain sink, in datagrams.
const DATAGRAMS_PER_LOOK: usize = 256;

impl Sink {
    pub(super) fn bind(addr: SocketAddr, plain: bool) -> io::Result<Self> {
        let (local_addr, source) = if plain {
            let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, None)?;
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
            socket.set_nonblocking(true)?;
            socket.bind(&addr.into())?;
            let socket = StdSocket::from(socket);
            (socket.local_addr()?, Source::Plain { socket, buffer: vec![0; 1 << 16].into() })
        } else {
            let socket = UdpSocket::builder().receive_buffer(RECEIVE_BUFFER).bind(addr)?;
            let source = Source::Trains { receiver: socket.receiver(), batch: RecvBatch::new(SLOTS) };
            (socket.local_addr(), source)
        };
        Ok(Self { local_addr, source, count: Count::default() })
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local_addr
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

    /// Datagrams of this run or one before it, since this one began: what came in is the rate, whoever sent it.
    pub(super) fn received_in_phase(&self) -> u64 {
        self.count.received_in_phase
    }

    pub(super) fn latency(&mut self, percent: usize) -> Option<f64> {
        self.count.latencies.percentile(percent)
    }

    /// Takes what is there, without waiting, and lets the reactor see whether there is more.
    pub(super) async fn look(&mut self, start: Instant) -> io::Result<()> {
        match &mut self.source {
            Source::Trains { receiver, batch } => {
                let mut cx = Context::from_waker(Waker::noop());
                for _ in 0..BATCHES_PER_LOOK {
                    match receiver.poll_recv(&mut cx, batch) {
                        Poll::Ready(result) => result?,
                        Poll::Pending => {
                            // Only the reactor can tell that there is more, and it runs when this yields.
                            tokio::task::yield_now().await;
                            break;
                        }
                    }
                    let now = start.elapsed().as_nanos() as u64;
                    batch.datagrams().for_each(|datagram| self.count.add(datagram.payload, now));
                    if !batch.is_full() {
                        break;
                    }
                }
            }
            Source::Plain { socket, buffer } => {
                let now = start.elapsed().as_nanos() as u64;
                for _ in 0..DATAGRAMS_PER_LOOK {
                    match socket.recv(buffer) {
                        Ok(len) => self.count.add(buffer.get(..len).unwrap_or_default(), now),
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
    #[inline]
    fn add(&mut self, payload: &[u8], now: u64) {
        // From the end: without a relay in between, the channel header is still there.
        let stamp = payload.len().checked_sub(self.size).and_then(|at| payload.get(at..at + STAMP_LEN));
        let Some(stamp) = stamp.and_then(|bytes| bytes.first_chunk()).map(|b| u64::from_be_bytes(*b)) else {
            return;
        };
        self.received_in_phase += 1;
        if stamp >> TIME_BITS == u64::from(self.run) {
            self.received_of_run += 1;
            let time = stamp & ((1 << TIME_BITS) - 1);
            if time != 0 {
                self.latencies.record(now.saturating_sub(time));
            }
        }
    }
}
