//! Measures what this host does when it has no room for a datagram, and how a sender fares.
//!
//! It sends datagrams to an address faster than the path takes them, so that the system refuses some. Each way to treat a refusal gets a
//! socket of its own and the same time: Backwater's two policies, and the naive mapping for comparison. Nothing has to answer at the
//! address.

mod naive;
mod outcome;
mod summary;
mod text;

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use backwater_udp::{Backpressure, Policy, RecvBatch, Sender, Transmit, UdpSocket};
use cpu_time::ProcessTime;
use naive::Naive;
pub use outcome::{Bucket, Class, Holds, NaiveOutcome, Outcome, Woken};
use serde::Serialize;
pub use summary::Summary;
use tokio::task::JoinHandle;

use crate::latency::Latencies;

/// How a refusal is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Treatment {
    /// Backwater's `Wait`, with its default deadline.
    Wait,
    /// Backwater's `Drop`.
    Drop,
    /// `ENOBUFS` is treated as `EWOULDBLOCK`: waits for the reactor without a timer.
    Naive,
}

/// The datagrams to send, and their destination.
#[derive(Clone, Copy, Debug)]
pub struct Pressure {
    /// The destination.
    pub to: SocketAddr,
    /// Bytes of payload in each datagram.
    pub size: usize,
    /// Datagrams per second; zero is as many as the system takes.
    pub rate: f64,
    /// How long each treatment is tried.
    pub duration: Duration,
}

/// The progress of a run.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The time since the run began.
    pub elapsed: Duration,
    /// Datagrams that the system took so far.
    pub sent: u64,
    /// Refusals so far.
    pub refused: u64,
}

/// The findings of all runs: what `pressure --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// The version of this program.
    pub version: &'static str,
    /// The system, by Rust's name for it.
    pub os: &'static str,
    /// The system with its release and its processor, as `uname` names them.
    pub system: String,
    /// The command that made the findings.
    pub command: String,
    /// The destination of the datagrams.
    pub address: SocketAddr,
    /// Bytes of payload in each.
    pub size: usize,
    /// Datagrams per second that were asked for; zero is as many as the system took.
    pub rate: f64,
    /// The outcome of each run.
    pub runs: Vec<Outcome>,
}

/// Interval of the progress reports.
const TELL: Duration = Duration::from_millis(200);

/// Datagrams in a row before the task yields.
const TURN: u32 = 64;

/// Seconds of a limited rate that a late sender catches up on at most.
const MOST_BEHIND: f64 = 0.1;

/// A wait that the timer has ended lasts at least this long when an event was promised.
const BACKSTOP: Duration = Duration::from_millis(25);

/// How late a promised event may come before the sender counts it as lost, and a little more.
const LATE_EDGE: Duration = Duration::from_millis(300);

/// Interval of the pauses that look for late events.
const EXAMINE_EVERY: Duration = Duration::from_secs(2);

impl Pressure {
    /// Sends for the duration, from a socket of its own that is connected or not.
    ///
    /// An error of the socket during the run ends it, and is in the outcome.
    ///
    /// # Errors
    /// The system's error, if the socket cannot be made.
    pub async fn run(
        &self,
        treatment: Treatment,
        connected: bool,
        mut progress: impl FnMut(Progress),
    ) -> io::Result<Outcome> {
        let policy = match treatment {
            Treatment::Wait => Policy::default(),
            Treatment::Drop | Treatment::Naive => Policy::Drop,
        };
        // What arrives, ICMP's messages above all, is read for all treatments alike.
        let mut subject = match treatment {
            Treatment::Wait | Treatment::Drop => Subject::backwater(self.to, connected, policy)?,
            Treatment::Naive => Subject::Naive(Naive::new(self.to, connected)?),
        };
        let (start, cpu) = (Instant::now(), ProcessTime::now());
        let ended = self.send_all(&mut subject, start, &mut progress).await;
        let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), cpu.elapsed().as_secs_f64());
        let mut outcome = subject.into_outcome();
        outcome.policy = treatment;
        outcome.connected = connected;
        outcome.seconds = seconds;
        outcome.sent_per_second = outcome.sent as f64 / (seconds - outcome.paused_seconds).max(1e-9);
        outcome.cpu_seconds = cpu_seconds;
        outcome.cpu_share = cpu_seconds / seconds.max(1e-9);
        outcome.error = ended.err().map(|e| e.to_string());
        Ok(outcome)
    }

    async fn send_all(
        &self,
        subject: &mut Subject,
        start: Instant,
        progress: &mut impl FnMut(Progress),
    ) -> io::Result<()> {
        let payload = vec![0; self.size];
        let mut budget = Budget { rate: self.rate, offered: 0.0 };
        let (end, mut tell_at, mut in_a_row) = (start + self.duration, start, 0);
        loop {
            let now = Instant::now();
            if now >= tell_at {
                tell_at = now + TELL;
                progress(subject.progress(now - start));
            }
            if now >= end {
                return Ok(());
            }
            if let Err(wait) = budget.take(now - start) {
                tokio::time::sleep(wait.min(end - now).min(TELL)).await;
                continue;
            }
            in_a_row += 1;
            if in_a_row == TURN {
                in_a_row = 0;
                tokio::task::yield_now().await;
            }
            match subject {
                Subject::Backwater(backwater) => backwater.send(self.to, &payload, end).await?,
                Subject::Naive(naive) => naive.send(&payload, end).await?,
            }
        }
    }
}

/// Limits datagrams by a rate.
struct Budget {
    rate: f64,
    offered: f64,
}

impl Budget {
    /// Takes a datagram; else returns how long until the next is due.
    fn take(&mut self, elapsed: Duration) -> Result<(), Duration> {
        if self.rate <= 0.0 {
            return Ok(());
        }
        let due = elapsed.as_secs_f64() * self.rate;
        self.offered = self.offered.max(due - (self.rate * MOST_BEHIND).max(1.0));
        if self.offered <= due {
            self.offered += 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((self.offered - due) / self.rate))
    }
}

#[expect(clippy::large_enum_variant, reason = "there is one")]
enum Subject {
    Backwater(Backwater),
    Naive(Naive),
}

struct Backwater {
    socket: UdpSocket,
    sender: Sender,
    _reading: Reading,
    examined: u64,
    examine_at: Instant,
    paused: Duration,
    holds: Latencies,
}

impl Subject {
    fn backwater(to: SocketAddr, connected: bool, policy: Policy) -> io::Result<Self> {
        let builder = UdpSocket::builder().backpressure(Backpressure::new(policy));
        let local = any_like(to);
        let socket = if connected { builder.connect(local, to) } else { builder.bind(local) }?;
        Ok(Self::Backwater(Backwater {
            sender: socket.sender(),
            _reading: Reading::of(&socket),
            socket,
            examined: 0,
            examine_at: Instant::now(),
            paused: Duration::ZERO,
            holds: Latencies::default(),
        }))
    }

    fn progress(&self, elapsed: Duration) -> Progress {
        let (sent, refused) = match self {
            Self::Backwater(Backwater { socket, .. }) => {
                let stats = socket.stats().snapshot();
                // `EWOULDBLOCK` is not counted by itself, but it makes wait.
                (stats.sent, stats.no_buffers_total().max(stats.parked))
            }
            Self::Naive(naive) => naive.progress(),
        };
        Progress { elapsed, sent, refused }
    }

    fn into_outcome(self) -> Outcome {
        match self {
            Self::Backwater(Backwater { socket, sender, examined, paused, mut holds, .. }) => {
                drop(sender);
                let mut outcome = Outcome::of(&socket.stats().snapshot());
                outcome.holds = Holds::of(&mut holds);
                outcome.edges_examined = examined;
                outcome.paused_seconds = paused.as_secs_f64();
                outcome
            }
            Self::Naive(naive) => naive.into_outcome(),
        }
    }
}

impl Backwater {
    async fn send(&mut self, to: SocketAddr, payload: &[u8], end: Instant) -> io::Result<()> {
        let slices = [IoSlice::new(payload)];
        let mut transmit = Transmit::new(to, &slices);
        let mut since = None;
        poll_fn(|cx| {
            let polled = self.sender.poll_send(cx, &mut transmit);
            if polled.is_pending() {
                since.get_or_insert_with(Instant::now);
            }
            polled
        })
        .await?;
        let now = Instant::now();
        if let Some(since) = since {
            self.holds.record((now - since).as_nanos() as u64);
        }
        if since.is_some_and(|since| now - since >= BACKSTOP) && now >= self.examine_at && now + LATE_EDGE < end {
            self.examine_at = now + EXAMINE_EVERY;
            if Outcome::of(&self.socket.stats().snapshot()).advised_by_timer() > self.examined {
                // While it sends, a later event is taken for the one that is missed.
                self.examined += 1;
                tokio::time::sleep(LATE_EDGE).await;
                self.paused += now.elapsed();
            }
        }
        Ok(())
    }
}

/// Reads and discards what arrives at a socket, until it is dropped.
struct Reading(JoinHandle<()>);

impl Reading {
    fn of(socket: &UdpSocket) -> Self {
        let socket = socket.clone();
        Self(tokio::spawn(async move {
            let (mut receiver, mut batch) = (socket.receiver(), RecvBatch::new(4));
            while receiver.recv(&mut batch).await.is_ok() {}
        }))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Returns the wildcard address of the same family.
fn any_like(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_at_a_rate_is_that_many() {
        for rate in [10.0, 1000.0, 50_000.0] {
            let mut budget = Budget { rate, offered: 0.0 };
            let taken = (0..=10_000).map(|i| {
                let at = Duration::from_micros(i * 100);
                std::iter::from_fn(|| budget.take(at).ok()).count()
            });
            let taken = taken.sum::<usize>() as f64;
            assert!((taken - rate).abs() <= 2.0, "{taken} at {rate}");
        }
    }

    #[test]
    fn long_delay_is_not_caught_up() {
        let mut budget = Budget { rate: 1000.0, offered: 0.0 };
        let taken = std::iter::from_fn(|| budget.take(Duration::from_secs(5)).ok()).count();
        assert!((100..=102).contains(&taken), "{taken}");
        let wait = budget.take(Duration::from_secs(5)).unwrap_err();
        assert!(wait <= Duration::from_millis(1), "{wait:?}");
    }
}
