//! The source of a load.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    task::{Context, Poll, Waker},
    time::Duration,
};

use backwater_stun::ChannelData;
use backwater_udp::{Receiver, RecvBatch, Sender, Transmit, UdpSocket};
use tokio::time::timeout;

use super::{CHANNEL, Load, LoadError, STAMP_LEN, TIME_BITS};

/// Sends the same GSO batch along many flows.
#[derive(Debug)]
pub(super) struct Sources {
    senders: Vec<Sender>,
    /// The source and the destination of each flow.
    pub(super) flows: Vec<Flow>,
    /// The flow that sends next.
    next: usize,
    /// The GSO batch of all flows, which have the same channel.
    batch: Vec<u8>,
    /// Bytes of one datagram of the batch, with its channel header.
    frame: usize,
    /// Bytes of the channel header.
    header: usize,
}

/// The source and the destination of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    /// The index of the socket.
    pub(super) sender: usize,
    /// The source address, if the socket has several.
    pub(super) from: Option<IpAddr>,
    pub(super) to: SocketAddr,
}

/// The counts of a phase of a load.
#[derive(Clone, Copy, Default)]
pub(super) struct Sent {
    pub(super) datagrams: u64,
    pub(super) refused: u64,
}

/// How long a forwarder may take for the datagrams that introduce the clients.
const PATIENCE: Duration = Duration::from_secs(1);

impl Sources {
    pub(super) fn new(sockets: &[UdpSocket]) -> Self {
        let senders = sockets.iter().map(UdpSocket::sender).collect();
        Self { senders, flows: Vec::new(), next: 0, batch: Vec::new(), frame: 0, header: 0 }
    }

    pub(super) fn prepare(&mut self, header: &[u8], load: &Load) {
        (self.frame, self.header) = (header.len() + load.size, header.len());
        self.batch = header.to_vec();
        self.batch.resize(self.frame, 0);
        self.batch = self.batch.repeat(load.burst);
    }

    pub(super) fn stamp_all(&mut self, run: u8) {
        let header = self.header;
        self.batch.chunks_exact_mut(self.frame).for_each(|datagram| stamp(datagram, header, run, 0));
    }

    /// Sends the next `due` batches, by turns of the flows. A batch that the kernel does not take now is not sent at all.
    pub(super) fn send(&mut self, due: usize, run: u8, time: u64, sent: &mut Sent) -> io::Result<()> {
        if due == 0 {
            return Ok(());
        }
        stamp(&mut self.batch, self.header, run, time);
        let slices = [IoSlice::new(&self.batch)];
        let share = due.div_ceil(self.flows.len());
        let mut transmits = Vec::with_capacity(due);
        let mut left = due;
        while left > 0 {
            let flow = self.flows[self.next];
            self.next = (self.next + 1) % self.flows.len();
            let batches = share.min(left);
            left -= batches;
            for _ in 0..batches {
                transmits.push(Transmit::new(flow.to, &slices).segment_size(self.frame).source(flow.from));
            }
            // All batches of one socket leave in one system call.
            if left == 0 || self.flows[self.next].sender != flow.sender {
                let mut cx = Context::from_waker(Waker::noop());
                let result = self.senders[flow.sender].poll_send_batch(&mut cx, &mut transmits);
                let taken: u64 = transmits.iter().map(|t| u64::from(t.report().sent)).sum();
                sent.datagrams += taken;
                sent.refused += (transmits.len() * self.batch.len() / self.frame) as u64 - taken;
                transmits.clear();
                if let Poll::Ready(result) = result {
                    result?;
                }
            }
        }
        Ok(())
    }

    /// Sends one datagram of each flow, which introduces its client to the forwarder. Returns the source of each. With `in_pairs`, the
    /// first datagram of a pair has no destination yet.
    pub(super) async fn open_ways(
        &mut self,
        arrival: &[UdpSocket],
        in_pairs: bool,
    ) -> Result<Vec<SocketAddr>, LoadError> {
        let mut receivers: Vec<Receiver> = arrival.iter().map(UdpSocket::receiver).collect();
        let mut batch = RecvBatch::new(1);
        let mut sources = Vec::with_capacity(self.flows.len());
        for (number, flow) in self.flows.iter().enumerate() {
            let mut datagram = ChannelData::header(CHANNEL, 8).to_vec();
            datagram.extend((number as u64).to_be_bytes());
            let slices = [IoSlice::new(&datagram)];
            self.senders[flow.sender].send(&mut Transmit::new(flow.to, &slices).source(flow.from)).await?;
            if in_pairs && number % 2 == 0 {
                continue;
            }
            // With pairs there is a socket for each client, or one for all.
            let at = if receivers.len() > 1 { number ^ 1 } else { 0 };
            let receiver = receivers.get_mut(at).ok_or(LoadError::NotForwarded(flow.to))?;
            let arrived = async {
                loop {
                    receiver.recv(&mut batch).await?;
                    if let Some(d) = batch.datagrams().find(|d| d.payload.ends_with(&(number as u64).to_be_bytes())) {
                        return Ok::<_, io::Error>(d.source);
                    }
                }
            };
            sources.push(timeout(PATIENCE, arrived).await.map_err(|_| LoadError::NotForwarded(flow.to))??);
        }
        Ok(sources)
    }
}

/// Stamps the first datagram of a batch.
#[inline]
fn stamp(batch: &mut [u8], header: usize, run: u8, time: u64) {
    let stamp = u64::from(run) << TIME_BITS | time & ((1 << TIME_BITS) - 1);
    if let Some(room) = batch.get_mut(header..header + STAMP_LEN) {
        room.copy_from_slice(&stamp.to_be_bytes());
    }
}
