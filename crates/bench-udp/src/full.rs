//! What a full queue costs, and what goes through it: a token bucket (`tbf`) in front of the namespace's loopback.

use std::{
    fmt,
    future::poll_fn,
    io::IoSlice,
    iter,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use backwater_udp::{Backpressure, Policy, Transmit, UdpSocket};
use tokio::{runtime::Runtime, task::LocalSet};

use crate::net;

/// Senders of one socket that wait.
const SENDERS: [usize; 4] = [1, 100, 1_000, 10_000];

/// How long each row is measured, and how long it runs before.
const MEASURED: Duration = Duration::from_secs(2);
const BEFORE: Duration = Duration::from_millis(300);

/// Bytes of a datagram, and of its headers on loopback.
const SIZE: usize = 1200;
const HEADERS: usize = 14 + 20 + 8;

/// Long enough that the deadline drops nothing.
const WAIT: Policy = Policy::Wait { deadline: Duration::from_secs(60) };

/// A queue that takes a hundred datagrams a second.
const LITTLE: &str = "rate 1mbit burst 3k limit 12k";

/// The lines of three tables.
#[derive(Default)]
pub(crate) struct Full {
    waiting: Vec<String>,
    shares: Vec<String>,
    beside: Vec<String>,
}

/// One call's datagrams, and the link before them.
#[derive(Clone, Copy, Debug)]
enum Batch {
    /// So many transmits of a datagram each.
    Transmits(usize),
    /// One transmit of so many datagrams (GSO).
    Segments(usize),
}

const BATCHES: [(Batch, u32); 4] =
    [(Batch::Transmits(64), 100), (Batch::Transmits(256), 100), (Batch::Segments(20), 100), (Batch::Segments(20), 500)];

/// The queue's length in batches.
const QUEUES: [(&str, f64); 3] = [("half a batch", 0.5), ("one batch", 1.0), ("four batches", 4.0)];

/// A token bucket in front of loopback, until it is dropped.
struct Queue;

pub(crate) fn measure(runtime: &Runtime) -> Full {
    let mut full = Full { beside: beside(runtime), ..Full::default() };
    match waiting(runtime) {
        Ok(lines) => full.waiting = lines,
        Err(why) => full.waiting.push(format!("| not measured: {why} | | |")),
    }
    match shares(runtime) {
        Ok(lines) => full.shares = lines,
        Err(why) => full.shares.push(format!("| not measured: {why} | | | | |")),
    }
    full
}

impl Queue {
    fn new(parameters: &str) -> Result<Self, String> {
        net::tc(&format!("qdisc add dev lo root tbf {parameters}"))?;
        Ok(Self)
    }

    /// Bytes that have left it, headers included.
    fn bytes_out(&self) -> Result<u64, String> {
        let out =
            Command::new("tc").args(["-s", "qdisc", "show", "dev", "lo"]).output().map_err(|e| format!("tc: {e}"))?;
        let text = String::from_utf8_lossy(&out.stdout);
        let sent = text.split_once("Sent ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        sent.ok_or_else(|| format!("tc has no count of bytes: {text}"))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = net::tc("qdisc del dev lo root");
    }
}

/// The share of a core that this thread uses while senders wait for a queue that takes a hundred datagrams a second.
fn waiting(runtime: &Runtime) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    let mut alone = None;
    for senders in SENDERS {
        let _queue = Queue::new(LITTLE)?;
        let there = net::sink();
        let to = net::address_of(&there);
        let tasks = LocalSet::new();
        let (share, held) = runtime.block_on(tasks.run_until(async {
            let socket = here(WAIT);
            for _ in 0..senders {
                let mut sender = socket.sender();
                tokio::task::spawn_local(async move {
                    let slices = [IoSlice::new(&[0; SIZE])];
                    loop {
                        sender.send(&mut Transmit::new(to, &slices)).await.unwrap();
                    }
                });
            }
            // Until all of them wait.
            let begin = Instant::now();
            while (socket.stats().snapshot().held as usize) < senders && begin.elapsed() < 10 * MEASURED {
                tokio::time::sleep(BEFORE / 10).await;
            }
            tokio::time::sleep(BEFORE).await;
            let (cpu, wall) = (net::cpu_time(), Instant::now());
            tokio::time::sleep(MEASURED).await;
            let share = (net::cpu_time() - cpu).as_secs_f64() / wall.elapsed().as_secs_f64();
            (share, socket.stats().snapshot().held)
        }));
        drop(tasks);
        let ratio = share / *alone.get_or_insert(share);
        lines.push(format!("| {senders} | {held} | {:.2} % | {ratio:.2} |", 100.0 * share));
    }
    Ok(lines)
}

fn here(policy: Policy) -> UdpSocket {
    let builder = UdpSocket::builder().send_buffer(4 << 20).backpressure(Backpressure::new(policy));
    builder.bind(([127, 0, 0, 1], 0).into()).unwrap()
}

/// How much of the link's rate is used.
fn shares(runtime: &Runtime) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    for (batch, mbit) in BATCHES {
        let there = net::sink();
        let to = net::address_of(&there);
        for (name, length) in QUEUES {
            let queue = Queue::new(&batch.queue(mbit, length))?;
            let used = used(runtime, &queue, batch, to)?;
            lines.push(format!(
                "| {batch}, {mbit} Mbit/s, queue of {name} | {:.2} | {:.2} | {} |",
                used.rate * 8.0 / (f64::from(mbit) * 1e6),
                used.calls,
                used.dropped
            ));
        }
    }
    Ok(lines)
}

struct Used {
    /// Bytes per second, headers included.
    rate: f64,
    /// System calls that send, per millisecond.
    calls: f64,
    dropped: u64,
}

/// Batch after batch.
fn used(runtime: &Runtime, queue: &Queue, batch: Batch, to: SocketAddr) -> Result<Used, String> {
    runtime.block_on(async {
        let socket = here(WAIT);
        let mut sender = socket.sender();
        let payload = vec![0; SIZE * batch.segments()];
        let slices = [IoSlice::new(&payload)];
        let (mut end, mut start) = (Instant::now() + BEFORE, None);
        loop {
            let transmit = || Transmit::new(to, &slices).segment_size(SIZE);
            let mut ts: Vec<_> = iter::repeat_with(transmit).take(batch.transmits()).collect();
            poll_fn(|cx| sender.poll_send_batch(cx, &mut ts)).await.map_err(|e| e.to_string())?;
            if Instant::now() < end {
                continue;
            }
            let now = (Instant::now(), queue.bytes_out()?, socket.stats().snapshot());
            let Some((then, bytes, stats)) = start else {
                end = now.0 + MEASURED / 2;
                start = Some(now);
                continue;
            };
            let seconds = (now.0 - then).as_secs_f64();
            return Ok(Used {
                rate: (now.1 - bytes) as f64 / seconds,
                calls: (now.2.attempts - stats.attempts) as f64 / seconds / 1e3,
                dropped: now.2.dropped_total() - stats.dropped_total(),
            });
        }
    })
}

impl Batch {
    fn transmits(self) -> usize {
        if let Self::Transmits(count) = self { count } else { 1 }
    }

    fn segments(self) -> usize {
        if let Self::Segments(count) = self { count } else { 1 }
    }

    /// `tbf`'s parameters. A GSO batch that is larger than the burst would be taken apart, and a part of it dropped with success.
    fn queue(self, mbit: u32, batches: f64) -> String {
        let bytes = self.transmits() * self.segments() * (SIZE + HEADERS);
        let burst = (self.segments() * (SIZE + HEADERS)).max(2 * (SIZE + HEADERS));
        format!("rate {mbit}mbit burst {burst} limit {}", (bytes as f64 * batches) as usize)
    }
}

/// A task that sends in a loop, and one beside it that wakes every millisecond: how often the other ran in a second.
fn beside(runtime: &Runtime) -> Vec<String> {
    let there = net::sink();
    let to = net::address_of(&there);
    let plain = times_run(runtime, async |end| {
        let socket = tokio::net::UdpSocket::from_std(net::socket().into()).unwrap();
        while Instant::now() < end {
            socket.send_to(&[0; SIZE], to).await.unwrap();
        }
    });
    let ours = |segments: usize, policy: Policy| {
        times_run(runtime, async |end| {
            let mut sender = here(policy).sender();
            let payload = vec![0; SIZE * segments];
            let slices = [IoSlice::new(&payload)];
            while Instant::now() < end {
                sender.send(&mut Transmit::new(to, &slices).segment_size(SIZE)).await.unwrap();
            }
        })
    };
    let line = |name: &str, times: u32| format!("| {name} | {times} | {:.2} |", f64::from(times) / f64::from(plain));
    let mut lines = vec![
        line("tokio's socket, a datagram a call", plain),
        line("Backwater, a datagram a call", ours(1, WAIT)),
        line("Backwater, a GSO batch of 20 a call", ours(20, WAIT)),
    ];
    lines.push(match Queue::new(LITTLE) {
        Ok(_queue) => line("Backwater, a datagram a call, dropped in front of a full queue", ours(1, Policy::Drop)),
        Err(why) => format!("| not measured: {why} | | |"),
    });
    lines
}

fn times_run(runtime: &Runtime, send: impl AsyncFnOnce(Instant)) -> u32 {
    runtime.block_on(async {
        let end = Instant::now() + MEASURED / 2;
        let times = Arc::<AtomicU32>::default();
        let counted = times.clone();
        let other = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                counted.fetch_add(1, Relaxed);
            }
        });
        send(end).await;
        other.abort();
        times.load(Relaxed)
    })
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transmits(count) => write!(f, "{count} datagrams a call"),
            Self::Segments(count) => write!(f, "GSO batches of {count}"),
        }
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = |f: &mut fmt::Formatter<'_>, head: &str, columns: usize, lines: &[String]| {
            writeln!(f, "{head}|---|{}", "---:|".repeat(columns))?;
            lines.iter().try_for_each(|line| writeln!(f, "{line}"))
        };
        writeln!(
            f,
            "\n### CPU while senders of one socket wait for a full queue\n\nGoal: within twice that of one sender.\n"
        )?;
        table(f, "| Senders | Datagrams held | Of a core | Of one sender's |\n", 3, &self.waiting)?;
        writeln!(
            f,
            "\n### What goes through a full queue\n\nBytes that leave it, headers included, of the rate. Goal: 0.9 with 4 calls a millisecond at the most.\n"
        )?;
        table(f, "| Load | Of the link | Calls a millisecond | Dropped |\n", 3, &self.shares)?;
        writeln!(
            f,
            "\n### A task beside one that sends in a loop\n\nIt wakes each millisecond, for a second. Goal: at least half as often as beside \
             tokio's socket.\n"
        )?;
        table(f, "| Sends | It ran | Of tokio's |\n", 2, &self.beside)
    }
}
