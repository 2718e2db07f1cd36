//! Where a load arrives.

use std::{
    io,
    net::SocketAddr,
    task::{Context, Poll, Waker},
    time::Instant,
};

use backwater_udp::{Receiver, RecvBatch, UdpSocket};

use super::{STAMP_LEN, TIME_BITS};
use crate::latency::Latencies;

/// Receives and counts.
#[derive(Debug)]
pub(super) struct Sink {
    local_addr: SocketAddr,
    receiver: Receiver,
    batch: RecvBatch,
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

impl Sink {
    pub(super) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::builder().receive_buffer(RECEIVE_BUFFER).bind(addr)?;
        Ok(Self {
            local_addr: socket.local_addr(),
            receiver: socket.receiver(),
            batch: RecvBatch::new(SLOTS),
            run: 0,
            size: 0,
            received_of_run: 0,
            received_in_phase: 0,
            latencies: Latencies::default(),
        })
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Counts from zero. Payloads are now of this size, and of this run.
    pub(super) fn begin(&mut self, run: u8, size: usize) {
        (self.run, self.size) = (run, size);
        self.received_of_run = 0;
        self.received_in_phase = 0;
        self.latencies.clear();
    }

    /// Datagrams of this run.
    pub(super) fn received_of_run(&self) -> u64 {
        self.received_of_run
    }

    /// Datagrams of this run or one before it, since this one began: what came in is the rate, whoever sent it.
    pub(super) fn received_in_phase(&self) -> u64 {
        self.received_in_phase
    }

    pub(super) fn latency(&mut self, percent: usize) -> Option<f64> {
        self.latencies.percentile(percent)
    }

    /// Takes what is there, without waiting, and lets the reactor see whether there is more.
    pub(super) async fn look(&mut self, start: Instant) -> io::Result<()> {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..BATCHES_PER_LOOK {
            match self.receiver.poll_recv(&mut cx, &mut self.batch) {
                Poll::Ready(result) => result?,
                Poll::Pending => break,
            }
            self.count(start);
            if !self.batch.is_full() {
                break;
            }
        }
        tokio::task::yield_now().await;
        Ok(())
    }

    fn count(&mut self, start: Instant) {
        let now = start.elapsed().as_nanos() as u64;
        for train in self.batch.trains() {
            for payload in train.payloads() {
                // From the end: without a relay in between, the channel header is still there.
                let stamp = payload.len().checked_sub(self.size).and_then(|at| payload.get(at..at + STAMP_LEN));
                let Some(stamp) = stamp.and_then(|bytes| bytes.first_chunk()).map(|b| u64::from_be_bytes(*b)) else {
                    continue;
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
    }
}
