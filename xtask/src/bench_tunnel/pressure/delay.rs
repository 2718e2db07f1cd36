//! Distance: a process that holds each datagram for a while. (Not every kernel has netem.)

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::IoSlice,
    net::SocketAddr,
    task::Poll,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use backwater_udp::{Backpressure, Ecn, Policy, RecvBatch, Transmit, UdpSocket};

/// What is between the two ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delay {
    /// Where it listens.
    pub(super) midway: SocketAddr,
    pub(super) near: SocketAddr,
    pub(super) far: SocketAddr,
    /// One way.
    pub(super) delay: Duration,
}

struct Train {
    due: Instant,
    to: SocketAddr,
    payload: Box<[u8]>,
    segment_size: usize,
    ecn: Option<Ecn>,
}

/// Trains under way, at most: more is a mistake in the experiment, as nothing here is to lose any.
const MOST: usize = 10_000;

const RECEIVE_BUFFER: usize = 4 << 20;

impl Delay {
    /// As words of a command line.
    pub(super) fn words(&self) -> [String; 4] {
        [self.midway.to_string(), self.near.to_string(), self.far.to_string(), self.delay.as_millis().to_string()]
    }

    pub(super) fn parse(words: &[String]) -> Result<Self> {
        ensure!(words.len() == 4, "three addresses and milliseconds");
        let delay = Duration::from_millis(words[3].parse()?);
        Ok(Self { midway: words[0].parse()?, near: words[1].parse()?, far: words[2].parse()?, delay })
    }

    /// Does so until it is ended.
    pub(super) fn run(&self) -> Result<()> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.forward())
    }

    async fn forward(&self) -> Result<()> {
        let wait = Backpressure::new(Policy::Wait { deadline: Duration::from_secs(10) });
        let socket = UdpSocket::builder().receive_buffer(RECEIVE_BUFFER).backpressure(wait).bind(self.midway)?;
        ensure!(socket.receive_buffer()? >= RECEIVE_BUFFER, "net.core.rmem_max is below {RECEIVE_BUFFER}");
        let (mut receiver, mut sender) = (socket.receiver(), socket.sender());
        let mut batch = RecvBatch::new(16);
        let mut under_way = VecDeque::<Train>::new();
        loop {
            let due = under_way.front().map(|train| train.due);
            let timer = tokio::time::sleep_until(due.unwrap_or_else(|| Instant::now() + Duration::from_secs(1)).into());
            let mut timer = std::pin::pin!(timer);
            let received = poll_fn(|cx| match receiver.poll_recv(cx, &mut batch) {
                Poll::Ready(received) => Poll::Ready(received.map(|()| true)),
                Poll::Pending => timer.as_mut().poll(cx).map(|()| Ok(false)),
            });
            let now = Instant::now();
            if received.await? {
                for train in batch.gro_batches() {
                    let to = if train.source.ip() == self.near.ip() { self.far } else { self.near };
                    let (payload, segment_size, ecn) = (train.payload.into(), train.segment_size, train.ecn);
                    under_way.push_back(Train { due: now + self.delay, to, payload, segment_size, ecn });
                }
                ensure!(under_way.len() <= MOST, "too much is under way");
            }
            while let Some(train) = under_way.pop_front_if(|train| train.due <= Instant::now()) {
                let slices = [IoSlice::new(&train.payload)];
                let mut transmit = Transmit::new(train.to, &slices).segment_size(train.segment_size).ecn(train.ecn);
                sender.send(&mut transmit).await?;
            }
        }
    }
}
